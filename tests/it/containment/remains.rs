//! What a killed lease-exec has left in its cgroup is found whatever others do there.

use std::fs;

use nix::sys::signal::Signal;

use super::leaf::{beside_others, leaves, start_holder_and_next};
use crate::{
    processes::{TestCgroup, children, signal},
    wait::{LIMIT, wait_until},
    world::{Running, World},
};

#[test]
fn who_has_no_cgroup_ends_what_a_killed_holder_has_left_all_the_same() {
    let world = World::on_files();
    let outer = TestCgroup::version_2();
    outer.set("cgroup.max.descendants", "1");
    let (grown, next) = start_holder_and_next(&world, &outer);
    grown.signal_both(Signal::SIGSTOP);
    grown.signal_both(Signal::SIGKILL);
    let finished = next.wait();
    finished
        .assert_code(0)
        .assert_says("no cgroup (can't make a cgroup");
    assert_eq!(grown.mark.alive(), [0; 0], "who left the group lives on");
}

#[test]
fn who_looks_after_what_a_killed_holder_has_left_does_not_hide_it_from_the_next() {
    let world = World::on_files();
    let outer = TestCgroup::version_2();
    let (grown, next) = start_holder_and_next(&world, &outer);
    grown.signal_both(Signal::SIGSTOP);
    grown.signal_both(Signal::SIGKILL);
    grown.wait_for_group();
    // It has locked the cgroup, and does nothing about it.
    let (tracer, busy) = start_stopped_at(&world, &outer, "flock");
    next.wait().assert_code(0);
    assert_eq!(grown.mark.alive(), [0; 0], "who left the group lives on");
    signal(busy, Signal::SIGCONT);
    tracer.wait().assert_code(0);
    assert_eq!(leaves(&outer), [""; 0]);
}

/// A lease-exec in this cgroup that is stopped when it has first made this system call; below what
/// traces it.
fn start_stopped_at(world: &World, outer: &TestCgroup, call: &str) -> (Running, i32) {
    let said = world.path().join("trace");
    let strace = [
        "strace".to_owned(),
        format!("--output={}", said.display()),
        format!("--trace={call}"),
        format!("--inject={call}:signal=STOP:when=1"),
    ];
    let around = outer.around().into_iter().chain(strace);
    let invocation = world
        .invocation()
        .args(["-v", "--lease", "another", "--store"])
        .args([format!("file:{}", world.store().display())])
        .command(["true"]);
    let tracer = invocation.under(around).start();
    let stopped = wait_until("it is stopped", LIMIT, || {
        // Its state tells nothing: who is traced is stopped for a moment at each call.
        let said = fs::read_to_string(&said).unwrap_or_default();
        let is_stopped = said.contains("--- stopped by SIGSTOP ---");
        children(tracer.pid())
            .first()
            .copied()
            .filter(|_| is_stopped)
    });
    (tracer, stopped)
}

#[test]
fn who_is_robbed_of_the_cgroup_that_it_is_just_making_makes_another() {
    let world = World::on_files();
    let outer = TestCgroup::version_2();
    let (tracer, making) = start_stopped_at(&world, &outer, "mkdirat");
    let made = leaves(&outer);
    assert_eq!(made.len(), 1, "{made:?}");
    // Nothing shows yet that it has an owner.
    beside_others(&world, &outer, "passer-by", &["true"])
        .wait()
        .assert_code(0);
    assert_eq!(leaves(&outer), [""; 0]);
    signal(making, Signal::SIGCONT);
    let finished = tracer.wait();
    finished
        .assert_code(0)
        .assert_says("its cgroup lease-exec-");
    assert!(!finished.stderr.contains(&made[0]), "{}", finished.stderr);
}

#[test]
fn copies_that_start_at_once_in_namespaces_of_their_own_have_a_cgroup_each() {
    let world = World::on_files();
    let outer = TestCgroup::version_2();
    // In each of them it has the same pid.
    let copies =
        "for copy in 1 2 3 4 5 6 7 8; do unshare --pid --fork --mount-proc \"$@\" & done; wait";
    let copies = ["sh", "-c", copies, "sh"].map(str::to_owned);
    for _ in 0..5 {
        let invocation = world.lease_exec().args(["-v"]).command(["true"]);
        let around = outer.around().into_iter().chain(copies.clone());
        let finished = invocation.under(around).start().wait();
        let count = finished.stderr.matches("its cgroup lease-exec-").count();
        assert_eq!(count, 8, "{}", finished.stderr);
    }
}

#[test]
fn who_was_moved_and_whose_old_cgroup_is_gone_starts() {
    let world = World::on_files();
    let elsewhere = TestCgroup::version_2();
    let holder = world.lease_exec().command(["sleep", "7777"]).start();
    holder.wait_until_it_says("started the command");
    let standby = {
        let outer = TestCgroup::version_2();
        let invocation = world.lease_exec().command(["true"]);
        let standby = invocation.under(outer.around()).start();
        standby.wait_until_it_says("somebody else holds the lease");
        for pid in outer.get("cgroup.procs").lines() {
            elsewhere.set("cgroup.procs", pid);
        }
        for leaf in leaves(&outer) {
            fs::remove_dir(outer.path().join(leaf)).expect("nobody is in it");
        }
        let path = outer.path().to_owned();
        drop(outer);
        assert!(!path.exists(), "it is not gone");
        standby
    };
    holder.signal(Signal::SIGTERM);
    holder.wait().assert_signal(Signal::SIGTERM);
    standby.wait().assert_code(0);
}
