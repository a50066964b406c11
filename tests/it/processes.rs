//! lease-exec's own processes fail: the command's tree is dead all the same.

use std::fs;

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    wait::{LIMIT, wait_until},
    world::{Running, World, is_alive},
};

/// Starts a tree with a daemon and a member that ignores SIGTERM, and returns its pids.
fn start_tree(world: &World, lease_duration: &str) -> (Running, Vec<i32>) {
    let tree = world.path().join("tree");
    let script = format!(
        "echo $$ >>{tree}; (setsid sh -c 'echo $$ >>{tree}; sleep 7777' &); \
         sh -c 'trap \"\" TERM; echo $$ >>{tree}; sleep 7777' & wait",
        tree = tree.display(),
    );
    let running = world
        .lease_exec()
        .args(["--lease-duration", lease_duration])
        .script(&script)
        .start();
    let pids = wait_until("the tree has grown", LIMIT, || {
        let text = fs::read_to_string(&tree).unwrap_or_default();
        let pids = text
            .lines()
            .filter_map(|line| line.parse().ok())
            .collect::<Vec<i32>>();
        (pids.len() == 3).then_some(pids)
    });
    (running, pids)
}

fn wait_for_death(pids: &[i32]) {
    wait_until(format!("{pids:?} are dead"), LIMIT, || {
        (!pids.iter().any(|pid| is_alive(*pid))).then_some(())
    });
}

/// The guard: front's only child.
fn guard_of(running: &Running) -> i32 {
    let pid = running.pid();
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    let children = children.expect("front's children can be read");
    children
        .split_whitespace()
        .next()
        .and_then(|pid| pid.parse().ok())
        .expect("front has a child")
}

fn signal(pid: i32, signal: Signal) {
    kill(Pid::from_raw(pid), signal).expect("it can be signalled");
}

#[test]
fn a_killed_front_takes_the_tree_along() {
    let world = World::on_files();
    let (running, pids) = start_tree(&world, "60s");
    running.signal(Signal::SIGKILL);
    wait_for_death(&pids);
    assert_ne!(world.holder(), "", "nobody was left to release the lease");
}

#[test]
fn a_killed_guard_takes_the_tree_along_and_the_lease_is_released_on_proof() {
    let world = World::on_files();
    let (running, pids) = start_tree(&world, "60s");
    signal(guard_of(&running), Signal::SIGKILL);
    running
        .wait()
        .assert_code(125)
        .assert_says("the guard process died");
    assert!(!pids.iter().any(|pid| is_alive(*pid)));
    assert_eq!(world.holder(), "");
}

#[test]
fn a_stopped_front_does_not_save_the_tree_from_the_deadline() {
    let world = World::on_files();
    let (running, pids) = start_tree(&world, "3s");
    running.signal(Signal::SIGSTOP);
    wait_for_death(&pids);
    // The kernel's timer ends front itself, stopped as it is.
    running.wait().assert_signal(Signal::SIGKILL);
}

#[test]
fn a_stopped_guard_does_not_save_the_tree_from_the_deadline() {
    let world = World::on_files();
    let (running, pids) = start_tree(&world, "3s");
    let guard = guard_of(&running);
    signal(guard, Signal::SIGSTOP);
    world.steal("somebody-else");
    wait_for_death(&pids);
    let finished = running.wait();
    finished.assert_code(79);
    assert_eq!(world.holder(), "somebody-else");
}

#[test]
fn leftovers_of_a_command_are_ended_before_the_release() {
    let world = World::on_files();
    let tree = world.path().join("tree");
    let script = format!(
        "(setsid sh -c 'trap \"\" TERM; echo $$ >>{tree}; while :; do sleep 0.05; done' &); \
         sleep 7777 & echo $! >>{tree}; while [ \"$(wc -l <{tree})\" != 2 ]; do :; done; exit 3",
        tree = tree.display(),
    );
    world.lease_exec().script(&script).run().assert_code(3);
    let text = fs::read_to_string(&tree).expect("written");
    let pids = text
        .lines()
        .map(|line| line.parse().expect("a pid"))
        .collect::<Vec<i32>>();
    assert_eq!(pids.len(), 2);
    assert!(!pids.iter().any(|pid| is_alive(*pid)));
    assert_eq!(world.holder(), "");
}
