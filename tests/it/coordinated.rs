//! Leases that belong to coordinated leader election (KEP-4355): they have a strategy, and a controller
//! in the API server decides who holds them.

use serde_json::{Value, json};

use crate::control_plane::{ControlPlane, needs_kubernetes};
use crate::world::{World, is_alive};

#[test]
fn a_lease_of_coordinated_leader_election_is_left_alone_on_files() {
    check(&World::on_files());
}

#[test]
fn a_lease_of_coordinated_leader_election_is_left_alone_on_kubernetes() {
    if !needs_kubernetes(
        33,
        "coordination.k8s.io/v1beta1, with coordinated leader election",
    ) {
        return;
    }
    // Off by default, and then the API server drops the fields.
    let control_plane = ControlPlane::start_with(&[
        "--feature-gates=CoordinatedLeaderElection=true",
        "--runtime-config=coordination.k8s.io/v1beta1=true",
    ]);
    check(&World::on(&control_plane));
}

fn check(world: &World<'_>) {
    const MESSAGE: &str = "the lease belongs to coordinated leader election";
    let set = |strategy: Value, preferred: Value| {
        world.edit(|lease| {
            lease["spec"]["strategy"] = strategy.clone();
            lease["spec"]["preferredHolder"] = preferred.clone();
        })
    };
    let coordinate = || set(json!("OldestEmulationVersion"), json!("pod-b"));
    let spec = || world.lease().expect("stored")["spec"].clone();
    // Free, at first sight.
    world.lease_exec().command(["true"]).run().assert_code(0);
    let edited = coordinate();
    for options in [&["-q"][..], &["-q", "--no-wait"]] {
        let finished = world.lease_exec().args(options).command(["true"]).run();
        finished.assert_code(78).assert_says(MESSAGE);
        assert_eq!(finished.stderr.lines().count(), 1, "{}", finished.stderr);
    }
    assert_eq!(spec(), edited["spec"]);

    // Held, and waited for.
    set(Value::Null, Value::Null);
    let holder = world.witness("15s").start();
    let log = world.wait_for_starts(1);
    let standby = world.witness("15s").start();
    standby.wait_until_it_says("somebody else holds the lease");
    let edited = coordinate();
    holder.wait().assert_code(79).assert_says(MESSAGE);
    assert!(!is_alive(log.runs[0].pid));
    standby.wait().assert_code(78).assert_says(MESSAGE);
    assert_eq!(spec(), edited["spec"], "it was written");
    assert_eq!(world.log().runs.len(), 1);
}
