//! A real client-go elector on the same lease: kube-scheduler, and a wrapper like ours.

use std::{
    ffi::OsStr,
    fs,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;

use crate::{
    control_plane::{ControlPlane, ElectionTimes, Scheduler, User},
    wait::{LIMIT, wait_until},
    world::{Invocation, LEASE, World},
};

fn scheduler(world: &World) -> Scheduler {
    ControlPlane::shared().start_scheduler(world.namespace(), LEASE, ElectionTimes::SHORT)
}

#[test]
fn client_go_waits_for_us_and_takes_what_we_release() {
    let world = World::on_kubernetes();
    let holder = world.witness("5s").start();
    world.wait_for_starts(1);
    let mut scheduler = scheduler(&world);
    wait_until("the scheduler contends", LIMIT, || {
        scheduler
            .says("attempting to acquire leader lease")
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

/// The program of `tests/client-go` with this world's lease, running the witness.
fn wrapper(world: &World) -> Invocation {
    let wrapper = ControlPlane::client_go_wrapper();
    let wrapper = wrapper.expect(
        "this test needs client-go-wrapper (tests/client-go) in the directory of kube-apiserver",
    );
    let times = ElectionTimes::SHORT;
    let milliseconds = |duration: Duration| format!("{}ms", duration.as_millis());
    let kubeconfig = ControlPlane::shared().kubeconfig(User::Admin);
    world
        .program(wrapper)
        .args(["-lease", LEASE])
        .args(["-namespace", world.namespace(), "-release-on-cancel"])
        .args(["-duration", &milliseconds(times.lease_duration)])
        .args(["-renew", &milliseconds(times.renew_deadline)])
        .args(["-retry", &milliseconds(times.retry_period)])
        .args([OsStr::new("-kubeconfig"), kubeconfig.as_os_str()])
}

/// A witness that ends, with nothing of it left, when there is a file `stop`: the wrapper lets go
/// when its child has ended, whatever that has started. client-go has no token to give.
const ENDING_WITNESS: &str = r#"
cd "$1"
exec 9>>lock
if ! flock -n 9; then echo "overlap $2 $$ 0" >>log; exit 99; fi
echo "start $2 $$ $(date +%s%N)" >>log
until [ -e stop ]; do sleep 0.02; done
echo "beat $2 $$ $(date +%s%N)" >>log
"#;

#[test]
fn commands_of_ours_and_of_a_client_go_wrapper_take_turns() {
    let world = World::on_kubernetes();
    let directory = world.path().to_str().expect("a path in UTF-8");
    let argv = |token| ["sh", "-c", ENDING_WITNESS, "witness", directory, token];
    let first = wrapper(&world);
    let first = first.command(argv("1")).start();
    world.wait_for_starts(1);
    let ours = world.witness("5s").start();
    ours.wait_until_it_says("somebody else holds the lease");
    fs::write(world.path().join("stop"), "").expect("a file can be made");
    first.wait().assert_code(0);
    world.wait_for_starts(2).assert_exclusive();

    let second = wrapper(&world);
    let last = u64::MAX.to_string();
    let second = second.command(argv(&last)).start();
    second.wait_until_it_says("holds the lease");
    let before = transitions(&world);
    ours.signal(Signal::SIGTERM);
    ours.wait().assert_signal(Signal::SIGTERM);
    second.wait().assert_code(0);
    let log = world.log();
    assert_eq!(log.runs.len(), 3, "{log:?}");
    log.assert_exclusive();
    assert_eq!(transitions(&world), before + 1);
}

fn transitions(world: &World) -> i64 {
    let lease = world.lease().expect("stored");
    lease["spec"]["leaseTransitions"]
        .as_i64()
        .expect("everybody counts transitions")
}
