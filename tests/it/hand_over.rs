//! Several instances on one lease: one runs, and the next starts when it ends.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::json;

use crate::{
    wait::{LIMIT, wait_until},
    world::{Running, World},
};

#[test]
fn one_of_three_runs_and_the_next_starts_when_it_ends_on_files() {
    one_of_three_runs_and_the_next_starts_when_it_ends(&World::on_files());
}

#[test]
fn one_of_three_runs_and_the_next_starts_when_it_ends_on_kubernetes() {
    one_of_three_runs_and_the_next_starts_when_it_ends(&World::on_kubernetes());
}

fn one_of_three_runs_and_the_next_starts_when_it_ends(world: &World) {
    let mut instances = Vec::new();
    for _ in 0..3 {
        instances.push(world.witness("60s").start());
    }
    for run in 1..=3 {
        let log = world.wait_for_starts(run);
        assert_eq!(log.runs.len(), run);
        wait_for_standbys(&instances, world);
        // The others wait: nobody starts while the holder renews.
        world.lease().expect("the lease is stored");
        let holder = instances.iter().position(has_acquired);
        let holder = instances.remove(holder.expect("somebody holds the lease"));
        holder.signal(Signal::SIGTERM);
        holder.wait().assert_signal(Signal::SIGTERM);
    }
    world.log().assert_exclusive();
    assert_eq!(world.holder(), "");
    let lease = world.lease().expect("the lease is stored");
    // The first creates the lease and the others take it over.
    assert_eq!(lease["spec"]["leaseTransitions"], 2, "{lease}");
    assert_eq!(lease["spec"]["leaseDurationSeconds"], 1, "{lease}");
}

/// Waits until all but the holder have said that they wait.
fn wait_for_standbys(instances: &[Running], world: &World) {
    wait_until("the standbys wait for the holder", LIMIT, || {
        let holder = world.holder();
        let waiting = instances
            .iter()
            .filter(|instance| instance.stderr().contains("somebody else holds the lease"))
            .count();
        let holding = instances
            .iter()
            .filter(|instance| has_acquired(instance))
            .count();
        (!holder.is_empty() && waiting + 1 >= instances.len() && holding == 1).then_some(())
    });
}

fn has_acquired(instance: &Running) -> bool {
    instance.stderr().contains("acquired the lease")
}

#[test]
fn a_standby_takes_over_a_killed_holder_after_the_duration_on_files() {
    a_standby_takes_over_a_killed_holder_after_the_duration(&World::on_files());
}

#[test]
fn a_standby_takes_over_a_killed_holder_after_the_duration_on_kubernetes() {
    a_standby_takes_over_a_killed_holder_after_the_duration(&World::on_kubernetes());
}

fn a_standby_takes_over_a_killed_holder_after_the_duration(world: &World) {
    let holder = world.witness("5s").start();
    world.wait_for_starts(1);
    let standby = world.witness("5s").start();
    standby.wait_until_it_says("somebody else holds the lease");
    holder.signal(Signal::SIGKILL);
    holder.wait().assert_signal(Signal::SIGKILL);
    let renewed_at = world.renewed_at();
    let log = world.wait_for_starts(2);
    log.assert_exclusive();
    let waited = Duration::from_nanos(
        u64::try_from(log.runs[1].started - renewed_at).expect("after the renewal"),
    );
    assert!(
        waited >= Duration::from_secs(5),
        "took over after {waited:?}"
    );
    standby.wait_until_it_says("whose holder had let it run out");
}

#[test]
fn a_standby_starts_only_after_a_draining_command_is_gone_and_the_lease_is_renewed_all_the_while() {
    let world = World::on_kubernetes();
    // The witness' own end on SIGTERM is replaced by 20 s of further work.
    let slow = "trap 'i=0; while [ $i -lt 400 ]; do sleep 0.05; i=$((i+1)); done; \
                echo end >>\"$0\".ended; date +%s%N >>\"$0\".ended; exit 7' TERM; \
                while :; do sleep 0.05; done";
    let marker = world.path().join("slow");
    let holder = world
        .lease_exec()
        .args(["--lease-duration", "5s"])
        .command(["sh", "-c", slow, marker.to_str().expect("a plain path")])
        .start();
    world.wait_for_holder();
    let standby = world.witness("5s").start();
    standby.wait_until_it_says("somebody else holds the lease");
    holder.wait_until_it_says("started the command");
    holder.signal(Signal::SIGTERM);
    let mut renewals = 0;
    let ended = world.path().join("slow.ended");
    while !ended.exists() && renewals < 5 {
        world.wait_for_renewal();
        renewals += 1;
    }
    assert!(
        renewals >= 5,
        "only {renewals} renewals while the command ended"
    );
    assert!(world.log().runs.is_empty(), "the standby did not wait");
    holder.wait_within(LIMIT * 2).assert_code(7);
    let log = world.wait_for_starts(1);
    let text = std::fs::read_to_string(&ended).expect("the command has ended");
    let ended: u128 = text
        .lines()
        .nth(1)
        .and_then(|time| time.parse().ok())
        .expect("a time");
    let gap = log.runs[0]
        .started
        .checked_sub(ended)
        .expect("the standby started first");
    assert!(
        gap < 1_000_000_000,
        "the standby started {gap} ns after the command's end"
    );
}

#[test]
fn one_attempt_ends_with_75_beside_a_holder_and_e_changes_it() {
    for world in [World::on_files(), World::on_kubernetes()] {
        let _holder = world.witness("15s").start();
        world.wait_for_starts(1);
        let second = world
            .lease_exec()
            .args(["--no-wait"])
            .command(["true"])
            .run();
        second.assert_code(75).assert_says("holds the lease");
        world
            .lease_exec()
            .args(["-w", "0s", "-E", "0"])
            .command(["false"])
            .run()
            .assert_code(0);
        let quiet = world
            .lease_exec()
            .args(["--no-wait", "-q"])
            .command(["true"])
            .run();
        assert_eq!(quiet.assert_code(75).stderr, "");
        let patient = world
            .lease_exec()
            .args(["-w", "3s"])
            .command(["true"])
            .run();
        patient.assert_code(75);
    }
}

#[test]
fn after_a_crash_runs_of_one_attempt_get_in_though_none_of_them_waits() {
    for world in [World::on_files(), World::on_kubernetes()] {
        let holder = world.witness("2s").start();
        world.wait_for_starts(1);
        holder.signal(Signal::SIGKILL);
        holder.wait().assert_signal(Signal::SIGKILL);
        let first = world
            .lease_exec()
            .args(["--no-wait"])
            .command(["true"])
            .run();
        first.assert_code(75);
        wait_until("a run of one attempt gets in", LIMIT, || {
            let run = world
                .lease_exec()
                .args(["--no-wait"])
                .command(["true"])
                .run();
            match run.status.code() {
                Some(0) => Some(()),
                Some(75) => None,
                _ => panic!("{run:?}"),
            }
        });
    }
}

#[test]
fn a_holder_that_renews_never_looks_dead_to_a_newcomer() {
    for world in [World::on_files(), World::on_kubernetes()] {
        let _holder = world.witness("3s").start();
        world.wait_for_starts(1);
        // Longer than the duration and the skew that servers' clocks may have.
        let started = Instant::now();
        while started.elapsed() < Duration::from_secs(10) {
            world.wait_for_renewal();
        }
        let newcomer = world
            .lease_exec()
            .args(["--no-wait"])
            .command(["true"])
            .run();
        newcomer.assert_code(75);
        world.log().assert_exclusive();
    }
}

#[test]
fn a_signal_while_waiting_ends_at_once_and_leaves_the_lease_alone() {
    for signal in [
        Signal::SIGTERM,
        Signal::SIGINT,
        Signal::SIGHUP,
        Signal::SIGQUIT,
    ] {
        let world = World::on_files();
        let _holder = world.witness("15s").start();
        world.wait_for_starts(1);
        let standby = world.lease_exec().command(["true"]).start();
        standby.wait_until_it_says("somebody else holds the lease");
        let holder = world.holder();
        standby.signal(signal);
        standby.wait().assert_signal(signal);
        assert_eq!(world.holder(), holder);
    }
}

#[test]
fn unknown_fields_labels_and_annotations_survive() {
    for world in [World::on_files(), World::on_kubernetes()] {
        world.lease_exec().command(["true"]).run().assert_code(0);
        let before = world.edit(|lease| {
            lease["metadata"]["labels"] = json!({"team": "ops"});
            lease["metadata"]["annotations"] = json!({"example.com/note": "keep me"});
            lease["spec"]["strategyOfTomorrow"] = json!("keep me too");
        });
        world.lease_exec().command(["true"]).run().assert_code(0);
        let after = world.lease().expect("stored");
        assert_eq!(after["metadata"]["labels"]["team"], "ops", "{after}");
        assert_eq!(
            after["metadata"]["annotations"]["example.com/note"], "keep me",
            "{after}"
        );
        assert_eq!(after["metadata"]["uid"], before["metadata"]["uid"]);
        // A server drops fields that it does not know; what it keeps, we keep.
        assert_eq!(
            after["spec"]["strategyOfTomorrow"],
            before["spec"]["strategyOfTomorrow"]
        );
    }
}

#[test]
fn two_with_the_same_identity_exclude_each_other() {
    let world = World::on_files();
    let _holder = world
        .witness("15s")
        .env("LEASE_EXEC_IDENTITY", "same")
        .start();
    world.wait_for_starts(1);
    assert!(world.holder().starts_with("same_"), "{}", world.holder());
    let second = world
        .lease_exec()
        .args(["--identity", "same", "--no-wait"])
        .command(["true"])
        .run();
    second.assert_code(75);
}
