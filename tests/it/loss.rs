//! The lease is seen in other hands: the command is killed at once, and the stranger's record stays.

use std::time::Duration;

use crate::{
    processes::hang,
    wait::{LIMIT, wait_until},
    world::{World, is_alive, now},
};

#[test]
fn a_foreign_holder_kills_the_command_within_a_second_on_files() {
    a_foreign_holder_kills_the_command_within_a_second(&World::on_files());
}

#[test]
fn a_foreign_holder_written_with_kubectl_kills_the_command_within_a_second() {
    a_foreign_holder_kills_the_command_within_a_second(&World::on_kubernetes());
}

fn a_foreign_holder_kills_the_command_within_a_second(world: &World) {
    // Renewals are 8 s apart, so it is the watch that must tell.
    let holder = world.witness("60s").start();
    let log = world.wait_for_starts(1);
    holder.wait_until_it_says("started the command");
    let stolen = world.steal("somebody-else");
    let stolen_at = now();
    let finished = holder.wait();
    finished
        .assert_code(79)
        .assert_says("somebody-else holds the lease");
    assert!(!is_alive(log.runs[0].pid));
    let last_beat = world.log().runs[0].last_beat;
    let outlived =
        Duration::from_nanos(u64::try_from(last_beat.saturating_sub(stolen_at)).expect("short"));
    assert!(
        outlived < Duration::from_secs(1),
        "the command ran on for {outlived:?}"
    );
    assert_eq!(world.lease().expect("stored")["spec"], stolen["spec"]);
}

#[test]
fn a_deleted_lease_kills_the_command_within_a_second_on_files() {
    a_deleted_lease_kills_the_command_within_a_second(&World::on_files());
}

#[test]
fn a_deleted_lease_kills_the_command_within_a_second_on_kubernetes() {
    a_deleted_lease_kills_the_command_within_a_second(&World::on_kubernetes());
}

fn a_deleted_lease_kills_the_command_within_a_second(world: &World) {
    let holder = world.witness("60s").start();
    world.wait_for_starts(1);
    holder.wait_until_it_says("started the command");
    world.delete();
    let deleted_at = now();
    holder
        .wait()
        .assert_code(79)
        .assert_says("the lease was deleted");
    let last_beat = world.log().runs[0].last_beat;
    let outlived =
        Duration::from_nanos(u64::try_from(last_beat.saturating_sub(deleted_at)).expect("short"));
    assert!(
        outlived < Duration::from_secs(1),
        "the command ran on for {outlived:?}"
    );
    assert!(world.lease().is_none(), "the holder made the lease again");
}

#[test]
fn a_loss_kills_the_whole_tree() {
    let world = World::on_files();
    let tree = world.path().join("tree");
    let script = format!(
        "sleep 7777 & echo $! >>{tree}; \
         setsid sh -c 'echo $$ >>{tree}; exec sleep 7777' & \
         (setsid sh -c 'echo $$ >>{tree}; sleep 7777' &); \
         sh -c 'trap \"\" TERM; echo $$ >>{tree}; sleep 7777' & \
         sh -c 'echo $$ >>{tree}; kill -STOP $$; sleep 7777' & \
         echo $$ >>{tree}; wait",
        tree = tree.display(),
    );
    let holder = world
        .lease_exec()
        .args(["--lease-duration", "60s"])
        .script(&script)
        .start();
    let pids = wait_until("the tree has grown", LIMIT, || {
        let text = std::fs::read_to_string(&tree).unwrap_or_default();
        let pids = text
            .lines()
            .filter_map(|line| line.parse().ok())
            .collect::<Vec<i32>>();
        (pids.len() == 6).then_some(pids)
    });
    assert!(pids.iter().all(|pid| is_alive(*pid)));
    world.steal("somebody-else");
    holder.wait().assert_code(79);
    let alive = pids
        .iter()
        .filter(|pid| is_alive(**pid))
        .collect::<Vec<_>>();
    assert!(alive.is_empty(), "still alive: {alive:?}");
}

#[test]
fn a_command_that_ignores_the_end_is_killed_after_kill_after() {
    let world = World::on_files();
    let holder = world
        .lease_exec()
        .args(["-k", "500ms"])
        .script("trap '' TERM; echo ready; while :; do sleep 0.05; done")
        .start();
    holder.wait_until_it_prints("ready");
    holder.signal(nix::sys::signal::Signal::SIGTERM);
    let finished = holder.wait();
    finished.assert_signal(nix::sys::signal::Signal::SIGKILL);
    for line in [
        "forwarded SIGTERM to the command ",
        "killing the command's whole tree: --kill-after 500ms has passed since SIGTERM ",
    ] {
        let said = finished.stderr.matches(line).count();
        assert_eq!(said, 1, "{line:?} in\n{}", finished.stderr);
    }
    assert_eq!(world.holder(), "", "an ordered kill releases the lease");
}

#[test]
fn a_command_that_ends_well_because_of_a_loss_is_79_all_the_same() {
    for ending in ["exit 0", "trap - TERM; kill -TERM $$"] {
        let world = World::on_files();
        let script = format!("trap 'echo obeyed; {ending}' TERM; while :; do sleep 0.05; done");
        let holder = world
            .lease_exec()
            .args(["--lease-duration", "6s"])
            .script(&script)
            .start();
        holder.wait_until_it_says("started the command");
        world.wait_for_renewal();
        let _lock = hang(&world);
        let finished = holder.wait();
        finished.assert_code(79);
        assert_eq!(finished.stdout(), "obeyed\n", "it was not asked to end");
    }
}

#[test]
fn a_command_that_has_ended_before_the_loss_keeps_its_code() {
    let world = World::on_files();
    // What it leaves behind has half a second to end, and the loss comes within that.
    let script = "(setsid sh -c 'trap \"\" TERM; sleep 7777' &); exit 3";
    let holder = world
        .lease_exec()
        .args(["--lease-duration", "60s"])
        .script(script)
        .start();
    holder.wait_until_it_says("the command ended");
    world.steal("somebody-else");
    holder.wait().assert_code(3);
    assert_eq!(world.holder(), "somebody-else");
}
