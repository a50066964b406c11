//! Who can't be killed is named, and keeps the lease as long as that can be renewed.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, chown},
    thread,
    time::Duration,
};

use nix::sys::signal::Signal;

use super::{as_nobody, lose};
use crate::{
    processes::{LEVELS, Level, Mark, TestCgroup, guard_of, hang, name, odd, signal, state},
    wait::{LIMIT, wait_until},
    world::{Invocation, Running, World, now},
};

/// A command whose child sits in the freezer of cgroups of version 1, where SIGKILL has no effect
/// until it is thawed, as it has none on a process in uninterruptible sleep.
///
/// The duration is such that front, on a loaded machine, gets to say what it sees before its own
/// timer takes it for stopped.
fn start_frozen(world: &World, level: Level, mark: &Mark, freezer: &TestCgroup) -> (Running, i32) {
    start_frozen_script(world, level, mark, freezer, "setsid sleep 7777 & wait")
}

/// The same for a script that starts the child.
fn start_frozen_script(
    world: &World,
    level: Level,
    mark: &Mark,
    freezer: &TestCgroup,
    script: &str,
) -> (Running, i32) {
    let invocation = world.lease_exec().args(["--lease-duration", "15s"]);
    let running = level.apply(invocation.command(mark.script(script))).start();
    let frozen = wait_until("the child runs", LIMIT, || {
        mark.alive().into_iter().find(|pid| name(*pid) == "sleep")
    });
    freezer.set("cgroup.procs", &frozen.to_string());
    freezer.set("freezer.state", "FROZEN");
    wait_until("the child is frozen", LIMIT, || {
        (freezer.get("freezer.state") == "FROZEN").then_some(())
    });
    (running, frozen)
}

/// Waits until lease-exec has named the frozen process with all that the kernel says of it.
#[track_caller]
fn wait_until_it_is_named(running: &Running, frozen: i32) {
    running.wait_until_it_says(&named(frozen));
}

/// How a process named `sleep`, whose user is root, must be named while it waits in the kernel.
fn named(pid: i32) -> String {
    let waits_in = fs::read_to_string(format!("/proc/{pid}/wchan")).expect("root may read it");
    assert!(waits_in.len() > 1, "the kernel does not say where it waits");
    let state = state(pid);
    format!("not proven dead: pid {pid} (sleep), state {state}, uid 0, wchan {waits_in}")
}

/// Both at the same time, as most of it is waiting.
fn on_both_levels(test: impl Fn(Level) + Sync) {
    thread::scope(|scope| {
        for level in LEVELS {
            let test = &test;
            scope.spawn(move || test(level));
        }
    });
}

#[test]
fn a_survivor_is_named_and_keeps_the_lease_until_it_is_dead() {
    on_both_levels(|level| {
        let world = World::on_files();
        let mark = Mark::new();
        let freezer = TestCgroup::with("freezer");
        let (running, frozen) = start_frozen(&world, level, &mark, &freezer);
        running.signal(Signal::SIGTERM);
        wait_until_it_is_named(&running, frozen);
        let holder = world.holder();
        for _ in 0..3 {
            world.wait_for_renewal();
        }
        assert_eq!(world.holder(), holder);
        freezer.set("freezer.state", "THAWED");
        running.wait().assert_signal(Signal::SIGTERM);
        assert_eq!(world.holder(), "");
    });
}

#[test]
fn a_survivor_of_a_dead_guard_is_named_and_keeps_the_lease_until_it_is_dead() {
    on_both_levels(|level| {
        let world = World::on_files();
        let mark = Mark::new();
        let freezer = TestCgroup::with("freezer");
        let (running, frozen) = start_frozen(&world, level, &mark, &freezer);
        signal(guard_of(&running), Signal::SIGKILL);
        wait_until_it_is_named(&running, frozen);
        let holder = world.holder();
        for _ in 0..3 {
            world.wait_for_renewal();
        }
        assert_eq!(world.holder(), holder);
        freezer.set("freezer.state", "THAWED");
        running.wait().assert_code(125);
        assert_eq!(world.holder(), "");
    });
}

#[test]
fn a_survivor_of_a_loss_is_80_and_the_lease_is_not_released() {
    on_both_levels(|level| {
        let world = World::on_files();
        let mark = Mark::new();
        let freezer = TestCgroup::with("freezer");
        let (running, frozen) = start_frozen(&world, level, &mark, &freezer);
        let holder = world.holder();
        let lock = hang(&world);
        running.wait().assert_code(80).assert_says(&named(frozen));
        drop(lock);
        assert_eq!(world.holder(), holder);
        freezer.set("freezer.state", "THAWED");
        // The guard goes on without front.
        mark.wait_for_nobody();
    });
}

#[test]
fn a_survivor_of_a_kill_at_the_deadline_is_80_and_no_timer_hits_who_kills_in_vain() {
    on_both_levels(|level| {
        let world = World::on_files();
        let mark = Mark::new();
        let freezer = TestCgroup::with("freezer");
        // Until the deadline the command is only asked to end. The timers are due within the kill
        // budget, after which the survivor is named.
        let script = "trap '' TERM; setsid sleep 7777 & wait";
        let (running, frozen) = start_frozen_script(&world, level, &mark, &freezer, script);
        let guard = guard_of(&running);
        let _lock = hang(&world);
        let named = named(frozen);
        running.wait().assert_code(80).assert_says(&named);
        assert_eq!(name(guard), "lease-guard", "the guard has died");
        freezer.set("freezer.state", "THAWED");
        mark.wait_for_nobody();
    });
}

#[test]
fn a_front_that_wakes_up_late_for_the_loss_still_says_80() {
    on_both_levels(|level| {
        let world = World::on_files();
        let mark = Mark::new();
        let freezer = TestCgroup::with("freezer");
        let (running, _) = start_frozen(&world, level, &mark, &freezer);
        let _lock = hang(&world);
        running.wait_until_it_says("lost the lease");
        // At 15 s SIGKILL is due at 12.96 s, and the kill budget is 2 s. It sleeps over the first and
        // over more than five eighths of the second.
        let due = world.renewed_at() + Duration::from_millis(12_960).as_nanos();
        wait_until("SIGKILL is nearly due", LIMIT, || {
            (now() + 300_000_000 > due).then_some(())
        });
        running.signal(Signal::SIGSTOP);
        wait_until("two thirds of the kill budget are over", LIMIT, || {
            (now() > due + 1_340_000_000).then_some(())
        });
        running.signal(Signal::SIGCONT);
        running.wait().assert_code(80);
        freezer.set("freezer.state", "THAWED");
        mark.wait_for_nobody();
    });
}

/// A run by a user who is not root, whose command has a child that has become root; returns the
/// child as well.
fn start_becoming_root(
    world: &World,
    mark: &Mark,
    around: impl FnOnce(Invocation) -> Invocation,
) -> (Running, i32) {
    for place in [world.path(), &world.store()] {
        let everybody = fs::Permissions::from_mode(0o777);
        fs::set_permissions(place, everybody).expect("it is ours");
    }
    let program = world.path().join("becomes-root");
    fs::copy(odd(), &program).expect("it can be copied");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o4755)).expect("it is ours");
    let script = format!("{} root & wait", program.display());
    let invocation = world.lease_exec().args(["-v", "--lease-duration", "6s"]);
    let invocation = invocation.command(mark.script(&script));
    let invocation = invocation.under(as_nobody("", 0));
    let running = around(invocation).start();
    let root = wait_until("the child is root", LIMIT, || {
        let is_root = |pid: &i32| {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            name(*pid) == "becomes-root" && status.contains("Uid:\t0\t0\t0\t0")
        };
        mark.alive().into_iter().find(is_root)
    });
    (running, root)
}

#[test]
fn a_descendant_that_has_become_root_can_only_be_named() {
    let world = World::on_files();
    let mark = Mark::new();
    let (running, root) = start_becoming_root(&world, &mark, |invocation| invocation);
    running.signal(Signal::SIGTERM);
    let named = format!("not proven dead: pid {root} (becomes-root), state S, uid 0");
    running.wait_until_it_says(&named);
    for _ in 0..3 {
        world.wait_for_renewal();
    }
    world.steal("somebody-else");
    running.wait().assert_code(80);
    assert_eq!(world.holder(), "somebody-else");
    assert_eq!(mark.alive(), [root]);
}

#[test]
fn a_descendant_that_has_become_root_is_killed_where_the_cgroup_is_ours() {
    let world = World::on_files();
    let mark = Mark::new();
    let outer = TestCgroup::version_2();
    for place in [outer.path(), &outer.path().join("cgroup.procs")] {
        chown(place, Some(65534), Some(65534)).expect("root may");
    }
    let around = |invocation: Invocation| invocation.under(outer.around());
    let (running, _) = start_becoming_root(&world, &mark, around);
    lose(&world, running, &mark);
}
