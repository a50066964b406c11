//! The moment at which the command is started, if somebody is late or dies just then.

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
    processes::{InTerminal, Mark, TestCgroup, guard_below, guard_of, signal, state},
    wait::{LIMIT, wait_until},
    world::{World, is_alive},
};

#[test]
fn a_guard_that_wakes_up_after_the_deadline_does_not_start_the_command() {
    let world = World::on_files();
    let holder = world.lease_exec().command(["sleep", "77"]).start();
    world.wait_for_holder();
    let started = world.path().join("started");
    let running = world
        .lease_exec()
        .args(["-v", "--lease-duration", "3s"])
        .command([Path::new("touch"), &started])
        .start();
    running.wait_until_it_says("somebody else holds the lease");
    signal(guard_of(&running), Signal::SIGSTOP);
    holder.signal(Signal::SIGTERM);
    running.wait_until_it_says("acquired the lease");
    // Front renews, but the guard has not heard of it, and was told when to kill.
    let acquired = world.renewed_at();
    wait_until("what the guard was told is out of date", LIMIT, || {
        (world.renewed_at() > acquired + 3_000_000_000).then_some(())
    });
    signal(guard_of(&running), Signal::SIGCONT);
    let finished = running.wait();
    finished
        .assert_code(79)
        .assert_says("the term ran out before the command could start");
    assert!(
        !finished.stderr.contains("started the command"),
        "{finished:?}"
    );
    assert!(!started.exists(), "it ran");
    assert_eq!(world.holder(), "", "nothing ran, so it is released");
}

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
    assert_eq!(state(child), 't', "the child is held at its start");
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
    ptrace::detach(child_pid, None).expect("it is stopped");
    wait_until("the child is dead", LIMIT, || {
        (!is_alive(child)).then_some(())
    });
    assert_eq!(mark.alive(), [0; 0]);
}
