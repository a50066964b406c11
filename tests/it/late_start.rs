//! The moment at which the command is started, if somebody dies just then.

use std::{fs, path::Path};

use nix::{
    sys::{
        ptrace,
        signal::Signal,
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};

use crate::{
    processes::{InTerminal, Mark, TestCgroup, guard_below, signal, state},
    wait::{LIMIT, wait_until},
    world::{World, is_alive},
};

#[test]
fn a_guard_that_dies_before_the_kernel_is_told_to_kill_its_child_leaves_no_command() {
    let world = World::on_files();
    let holder = world.lease_exec().command(["sleep", "77"]).start();
    world.wait_for_holder();
    let elsewhere = TestCgroup::version_2();
    let mark = Mark::new();
    let command = mark.command(&["sleep", "7777"]).join(" ");
    // In the foreground of a terminal the group is the caller's, which the kernel does not kill.
    let terminal = InTerminal::start(&world, "true", &format!("-- {command}"));
    let front = terminal.front;
    let guard = Pid::from_raw(guard_below(front));
    ptrace::seize(guard, ptrace::Options::PTRACE_O_TRACEFORK).expect("who started it may trace");
    holder.signal(Signal::SIGTERM);
    let child = wait_until("the guard forks", LIMIT, || {
        match waitpid(guard, Some(WaitPidFlag::__WALL | WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::PtraceEvent(..)) => ptrace::getevent(guard).ok(),
            _ => None,
        }
    });
    let child = i32::try_from(child).expect("a pid");
    // The child is stopped at its first instruction, and the guard does all that it does for it.
    ptrace::cont(guard, None).expect("it is stopped");
    wait_until("the guard has opened the gate and is asleep", LIMIT, || {
        let directory = fs::read_link(format!("/proc/{guard}/cwd")).ok()?;
        (directory == Path::new("/") && state(guard.as_raw()) == 'S').then_some(())
    });
    // Until it is its turn to run it does not know yet that it is held.
    wait_until("the child is held at its start", LIMIT, || {
        (state(child) == 't').then_some(())
    });
    // Any lease-exec that starts now would end a leaf that was left behind.
    elsewhere.set("cgroup.procs", &child.to_string());
    signal(front, Signal::SIGSTOP);
    wait_until("front is stopped", LIMIT, || {
        (state(front) == 'T').then_some(())
    });
    signal(guard.as_raw(), Signal::SIGKILL);
    signal(front, Signal::SIGKILL);
    wait_until("both are dead", LIMIT, || {
        // The tracer hears of the guard's end first.
        let _ = waitpid(guard, Some(WaitPidFlag::__WALL | WaitPidFlag::WNOHANG));
        (!is_alive(front) && !is_alive(guard.as_raw())).then_some(())
    });
    let child_pid = Pid::from_raw(child);
    waitpid(child_pid, Some(WaitPidFlag::__WALL)).expect("it is traced");
    ptrace::cont(child_pid, None).expect("it is stopped");
    // By itself: the kernel may tell a group that such deaths orphan to hang up, but it need not.
    let end = wait_until("the child has ended", LIMIT, || {
        match waitpid(child_pid, Some(WaitPidFlag::__WALL | WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) => None,
            other => Some(other),
        }
    });
    assert_eq!(end, Ok(WaitStatus::Exited(child_pid, 127)));
    assert_eq!(mark.alive(), [0; 0]);
}
