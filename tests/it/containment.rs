//! Whatever the command's descendants are and do, they are dead before the lease can move; and
//! nobody else is.

use std::{fs, path::Path, process::Command, time::Duration};

use nix::sys::signal::Signal;

use crate::{
    processes::{
        Grown, Level, Mark, TestCgroup, assert_before_the_end, at_both_levels, children, guard_of,
        hang, name, noise, odd, quiet, signal, state,
    },
    wait::{LIMIT, try_wait_until, wait_until},
    world::{Running, World},
};

mod hidden;
mod leaf;
mod remains;
mod survivors;

/// The lease duration where a test waits for the deadline.
const SHORT: Duration = Duration::from_secs(6);

#[test]
fn a_store_that_hangs_costs_the_tree_its_life_before_the_end() {
    let _quiet = quiet();
    at_both_levels(|level| {
        let world = World::on_files();
        let grown = Grown::start(&world, level, "6s");
        let _lock = hang(&world);
        grown.mark.wait_for_nobody();
        assert_before_the_end(&world, SHORT);
        grown.running.wait().assert_code(79);
    });
}

#[test]
fn a_forwarded_end_leaves_nobody() {
    at_both_levels(|level| {
        let world = World::on_files();
        let grown = Grown::start(&world, level, "60s");
        grown.running.signal(Signal::SIGTERM);
        grown.running.wait().assert_signal(Signal::SIGTERM);
        assert_eq!(grown.mark.alive(), [0; 0]);
        assert_eq!(world.holder(), "");
    });
}

/// Has a user without privileges execute what follows, after some words of shell. It has a `/proc`
/// of its own, which hides so much from it, whatever that of this machine does.
fn as_nobody(before: &str, hidepid: u8) -> [String; 7] {
    let script = format!(
        "{before} mount -t proc -o hidepid={hidepid} proc /proc && \
         exec setpriv --reuid=65534 --regid=65534 --clear-groups \"$@\""
    );
    ["unshare", "--mount", "--", "sh", "-c", &script, "sh"].map(str::to_owned)
}

/// Starts a command line, marked.
fn start(world: &World, level: Level, mark: &Mark, argv: &[&str]) -> Running {
    let invocation = world.lease_exec().args(["-v", "--lease-duration", "60s"]);
    level.apply(invocation.command(mark.command(argv))).start()
}

#[track_caller]
fn lose(world: &World, running: Running, mark: &Mark) {
    world.steal("somebody-else");
    running.wait().assert_code(79);
    assert_eq!(mark.alive(), [0; 0]);
}

#[test]
fn a_stopped_command_is_killed() {
    at_both_levels(|level| {
        let world = World::on_files();
        let mark = Mark::new();
        let running = start(&world, level, &mark, &["sh", "-c", "kill -STOP $$"]);
        wait_until("the command is stopped", LIMIT, || {
            mark.alive()
                .iter()
                .any(|pid| state(*pid) == 'T')
                .then_some(())
        });
        lose(&world, running, &mark);
    });
}

#[test]
fn a_process_whose_main_thread_has_ended_is_killed() {
    at_both_levels(|level| {
        let world = World::on_files();
        let mark = Mark::new();
        let odd = odd().to_str().expect("UTF-8");
        let script = format!("setsid {odd} headless & wait");
        let running = start(&world, level, &mark, &["sh", "-c", &script]);
        let threads = |pid: i32| format!("/proc/{pid}/task");
        let headless = wait_until("the main thread has ended", LIMIT, || {
            let command = *children(guard_of(&running)).first()?;
            let child = *children(command).first()?;
            let threads = fs::read_dir(threads(child)).map_or(0, Iterator::count);
            (name(child) == "odd" && state(child) == 'Z' && threads == 2).then_some(child)
        });
        lose(&world, running, &mark);
        assert!(!Path::new(&threads(headless)).exists(), "a thread lives");
    });
}

#[test]
fn a_process_that_is_traced_by_another_of_the_tree_is_killed() {
    at_both_levels(|level| {
        let world = World::on_files();
        let mark = Mark::new();
        let running = start(
            &world,
            level,
            &mark,
            &[odd().to_str().expect("UTF-8"), "traced"],
        );
        wait_until("one is stopped by its tracer", LIMIT, || {
            mark.alive()
                .iter()
                .any(|pid| state(*pid) == 't')
                .then_some(())
        });
        lose(&world, running, &mark);
    });
}

#[test]
fn fork_bombs_are_killed_although_no_process_and_hardly_a_descriptor_is_to_be_had() {
    let _noise = noise();
    at_both_levels(|level| {
        for kind in ["bomb", "scattering-bomb"] {
            let world = World::on_files();
            let mark = Mark::new();
            let pids = TestCgroup::with("pids");
            pids.set("pids.max", "100");
            let invocation = world.lease_exec().args(["--lease-duration", "60s"]);
            let argv = mark.command(&["nice", "-n", "19", odd().to_str().expect("UTF-8"), kind]);
            let running = level
                .apply(invocation.command(argv))
                .under(["prlimit", "--nofile=32"])
                .under(pids.around())
                .start();
            wait_until("the bomb has used up all processes", LIMIT, || {
                (pids.get("pids.current") == "100").then_some(())
            });
            lose(&world, running, &mark);
        }
    });
}

#[test]
fn a_chain_of_short_lived_processes_is_killed() {
    let _noise = noise();
    at_both_levels(|level| {
        let world = World::on_files();
        let mark = Mark::new();
        let invocation = world
            .lease_exec()
            .args(["--wait-descendants", "--lease-duration", "60s"]);
        let argv = mark.command(&[odd().to_str().expect("UTF-8"), "chain"]);
        let running = level.apply(invocation.command(argv)).start();
        let command = wait_until("the command runs", LIMIT, || {
            children(guard_of(&running)).first().copied()
        });
        wait_until("the chain has left the command behind", LIMIT, || {
            (!children(guard_of(&running)).contains(&command)).then_some(())
        });
        world.steal("somebody-else");
        running.wait().assert_code(79);
        // A link lives too short to be counted; they all have the program's name.
        let links = try_wait_until(Duration::from_millis(200), || {
            (!mark.alive().is_empty()).then_some(())
        });
        assert_eq!(links, None, "the chain goes on");
    });
}

// === Bystanders ===

#[test]
fn children_that_lease_exec_was_executed_with_and_the_callers_group_live_on() {
    at_both_levels(|level| {
        // A loss, which the guard sees to, and the guard's death, after which front does.
        for guard_dies in [false, true] {
            let world = World::on_files();
            let mark = Mark::new();
            let bystander = Mark::new();
            let invocation = world.lease_exec().args(["--lease-duration", "60s"]);
            let script = format!(
                "{} & exec \"$@\"",
                bystander.command(&["sleep", "7777"]).join(" ")
            );
            let running = level
                .apply(invocation.command(mark.script("sleep 7777 & wait")))
                .under(["sh", "-c", &script, "sh"])
                .start();
            mark.wait_for(2);
            assert_eq!(
                children(running.pid()).len(),
                2,
                "a bystander and the guard"
            );
            if guard_dies {
                signal(guard_of(&running), Signal::SIGKILL);
                running.wait().assert_code(125);
                assert_eq!(mark.alive(), [0; 0]);
            } else {
                lose(&world, running, &mark);
            }
            assert_eq!(bystander.alive().len(), 1);
        }
    });
}

#[test]
fn a_session_in_the_same_pid_namespace_lives_on() {
    let world = World::on_files();
    let mark = Mark::new();
    let session = Mark::new();
    let namespace = [
        "unshare",
        "--pid",
        "--fork",
        "--mount-proc",
        "--kill-child",
        "--",
        "sh",
        "-c",
        "\"$@\"; echo $? >\"$0\"; exec sleep 7777",
    ];
    let code = world.path().join("code");
    let invocation = world.lease_exec().args(["--lease-duration", "60s"]);
    let outside = invocation
        .command(mark.script("sleep 7777 & wait"))
        .under(
            namespace
                .iter()
                .map(std::ffi::OsStr::new)
                .chain([code.as_os_str()]),
        )
        .start();
    let first = mark.wait_for(2)[0];
    // As kubectl exec comes in: no descendant of anybody in the namespace.
    let target = format!("--target={first}");
    let argv = session.command(&["sleep", "7777"]);
    let mut visitor = Command::new("nsenter")
        .args([&target, "--pid", "--mount", "--"])
        .args(argv)
        .spawn()
        .expect("nsenter runs");
    session.wait_for(1);
    world.steal("somebody-else");
    wait_until("lease-exec has ended", LIMIT, || {
        let code = fs::read_to_string(&code).unwrap_or_default();
        (code == "79\n").then_some(())
    });
    assert_eq!(mark.alive(), [0; 0]);
    assert_eq!(session.alive().len(), 1);
    drop(session);
    visitor.wait().expect("it was killed");
    drop(outside);
}
