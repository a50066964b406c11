//! A real client-go elector on the same lease: kube-scheduler.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::{
    control_plane::{ControlPlane, ElectionTimes, Scheduler},
    wait::{LIMIT, wait_until},
    world::{LEASE, World},
};

fn scheduler(world: &World) -> Scheduler {
    let scheduler =
        ControlPlane::shared().start_scheduler(world.namespace(), LEASE, ElectionTimes::SHORT);
    scheduler.expect("this test needs kube-scheduler in the directory of kube-apiserver")
}

#[test]
fn client_go_waits_for_us_and_takes_what_we_release() {
    let world = World::on_kubernetes();
    let holder = world.witness("5s").start();
    world.wait_for_starts(1);
    let mut scheduler = scheduler(&world);
    wait_until("the scheduler contends", LIMIT, || {
        scheduler
            .log()
            .contains("attempting to acquire leader lease")
            .then_some(())
    });
    for _ in 0..12 {
        world.wait_for_renewal();
        assert!(
            !scheduler.has_led(),
            "client-go led beside us: {}",
            scheduler.log()
        );
    }
    let ours = world.lease().expect("stored");
    holder.signal(Signal::SIGTERM);
    holder.wait().assert_signal(Signal::SIGTERM);
    wait_until("the scheduler leads", LIMIT, || {
        scheduler.has_led().then_some(())
    });
    assert!(scheduler.is_running());
    let theirs = world.lease().expect("stored");
    let transitions = |lease: &serde_json::Value| lease["spec"]["leaseTransitions"].as_i64();
    assert_eq!(
        transitions(&theirs),
        transitions(&ours).map(|count| count + 1)
    );
}

#[test]
fn we_wait_for_client_go_and_take_over_when_it_stops_renewing() {
    let world = World::on_kubernetes();
    let mut scheduler = scheduler(&world);
    wait_until("the scheduler leads", LIMIT, || {
        scheduler.has_led().then_some(())
    });
    let standby = world.witness("5s").start();
    standby.wait_until_it_says("somebody else holds the lease");
    // Longer than the duration and the skew that servers' clocks may have, so that nothing but its
    // renewals shows that it lives: also to a newcomer.
    let started = Instant::now();
    while started.elapsed() < ElectionTimes::SHORT.lease_duration + Duration::from_secs(7) {
        world.wait_for_renewal();
        assert!(world.log().runs.is_empty(), "we ran beside client-go");
    }
    let newcomer = world
        .lease_exec()
        .args(["--no-wait"])
        .command(["true"])
        .run();
    newcomer.assert_code(75);
    scheduler.stop();
    world.wait_for_starts(1);
    // Thawed, it finds itself deposed, and ends as client-go's electors do.
    scheduler.resume();
    wait_until("the deposed scheduler ends", LIMIT, || {
        (!scheduler.is_running()).then_some(())
    });
    world.wait_for_renewal();
    assert_eq!(world.log().runs.len(), 1);
}
