//! Who waits: how much it asks of the API server, and that nothing which may happen to its watch
//! delays it or makes it hurry.

use std::{
    ffi::OsStr,
    thread,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;

use crate::{
    control_plane::{ControlPlane, User},
    gateway::{Gateway, Kind, Watches},
    processes::{children, guard_of},
    wait::{LIMIT, wait_until},
    world::{Invocation, LEASE, Running, World, now},
};

/// lease-exec with the world's lease, running the witness, through a gateway.
fn witness(world: &World<'_>, gateway: &Gateway<'_>, lease_duration: &str) -> Invocation {
    let kubeconfig = gateway.kubeconfig(world.namespace());
    world
        .invocation()
        .args(["--lease", LEASE, "--lease-duration", lease_duration])
        .args([OsStr::new("--kubeconfig"), kubeconfig.as_os_str()])
        .command([OsStr::new("sh"), world.path().join("witness").as_os_str()])
}

/// A holder, and a standby behind a gateway that has begun to watch, or has tried to.
fn holder_and_standby(
    world: &World<'_>,
    gateway: &Gateway<'_>,
    lease_duration: &str,
) -> (Running, Running) {
    let holder = world.witness(lease_duration).start();
    world.wait_for_starts(1);
    let standby = witness(world, gateway, lease_duration).start();
    wait_until("the standby watches", LIMIT, || {
        let requests = gateway.requests();
        requests
            .iter()
            .any(|seen| seen.kind == Kind::Watch && seen.code.is_some())
            .then_some(())
    });
    (holder, standby)
}

/// Lets the holder release the lease.
fn release(holder: Running) {
    holder.signal(Signal::SIGTERM);
    holder.wait().assert_signal(Signal::SIGTERM);
}

fn kill(holder: Running) {
    holder.signal(Signal::SIGKILL);
    holder.wait().assert_signal(Signal::SIGKILL);
}

/// Waits until so much time has passed, in all of which the holder has renewed the lease.
fn wait_for_renewals(world: &World<'_>, time: Duration) {
    let start = Instant::now();
    while start.elapsed() < time {
        world.wait_for_renewal();
    }
}

fn nanoseconds(from: u128, to: u128) -> Duration {
    let nanoseconds = to.checked_sub(from).expect("this came later");
    Duration::from_nanos(u64::try_from(nanoseconds).expect("a short time"))
}

// === A watch that works ===

#[test]
fn a_standby_at_rest_asks_for_nothing_and_starts_by_one_write_on_an_open_connection() {
    let world = World::on_kubernetes();
    let gateway = Gateway::for_admin(ControlPlane::shared());
    let (holder, standby) = holder_and_standby(&world, &gateway, "15s");
    let guard = guard_of(&standby);
    wait_for_renewals(&world, Duration::from_secs(20));
    assert_eq!(gateway.kinds(), [Kind::Read, Kind::Watch]);
    assert_eq!(gateway.connections(), 2);

    release(holder);
    let log = world.wait_for_starts(2);
    log.assert_exclusive();
    let requests = gateway.requests();
    let between = requests[2..]
        .iter()
        .filter(|seen| seen.at < log.runs[1].started)
        .collect::<Vec<_>>();
    let [write] = between[..] else {
        panic!("between the release and the start there were {between:?}");
    };
    assert_eq!((write.kind, write.code), (Kind::Write, Some(200)));
    assert_eq!(
        write.connection, requests[0].connection,
        "the write went out on a new connection"
    );
    assert_eq!(gateway.connections(), 2);
    // The guard was there all the while.
    assert_eq!(children(guard), [log.runs[1].pid]);
}

#[test]
fn a_holder_at_rest_renews_once_per_retry_period_and_reads_nothing() {
    let world = World::on_kubernetes();
    let gateway = Gateway::for_admin(ControlPlane::shared());
    let _holder = witness(&world, &gateway, "15s").start();
    world.wait_for_starts(1);
    wait_until("the holder watches", LIMIT, || {
        gateway.kinds().contains(&Kind::Watch).then_some(())
    });
    let before = gateway.requests().len();
    let start = now();
    wait_for_renewals(&world, Duration::from_secs(16));
    let requests = gateway.requests();
    let renewals = &requests[before..];
    assert!(
        renewals.iter().all(|seen| seen.kind == Kind::Write),
        "{renewals:?}"
    );
    let periods = nanoseconds(start, now()).as_secs_f64() / 2.0;
    let count = renewals.len() as f64;
    assert!(count <= periods + 1.0, "{count} in {periods} periods");
    assert_eq!(gateway.connections(), 2);
}

#[test]
fn a_killed_holder_is_followed_exactly_one_duration_after_its_last_renewal_was_seen() {
    let world = World::on_kubernetes();
    let gateway = Gateway::for_admin(ControlPlane::shared());
    let (holder, _standby) = holder_and_standby(&world, &gateway, "6s");
    world.wait_for_renewal();
    kill(holder);
    assert_follows_on_time(&world, &gateway);
}

#[test]
fn a_silent_watch_delays_no_take_over() {
    let world = World::on_kubernetes();
    let gateway = Gateway::for_admin(ControlPlane::shared());
    let (holder, _standby) = holder_and_standby(&world, &gateway, "6s");
    world.wait_for_renewal();
    kill(holder);
    wait_until("the standby has seen the last renewal", LIMIT, || {
        let lease = world.lease().expect("the lease is stored");
        let last = gateway.events().pop()?;
        (lease["metadata"]["resourceVersion"] == last.version).then_some(())
    });
    gateway.set(Watches::Silent);
    assert_follows_on_time(&world, &gateway);
}

/// Asserts that the standby's next request is the write that takes the lease, one duration of 6 s
/// after the last event that it was told of.
#[track_caller]
fn assert_follows_on_time(world: &World<'_>, gateway: &Gateway<'_>) {
    let log = world.wait_for_starts(2);
    log.assert_exclusive();
    let requests = gateway.requests();
    let kinds = gateway.kinds();
    assert_eq!(kinds[..3], [Kind::Read, Kind::Watch, Kind::Write]);
    assert_eq!(requests[2].code, Some(200));
    let events = gateway.events();
    let seen = events.iter().rev().find(|event| event.at < requests[2].at);
    let waited = nanoseconds(seen.expect("it saw renewals").at, requests[2].at);
    let duration = Duration::from_secs(6);
    // This clock may be slewed, by one in two thousand.
    assert!(
        waited >= duration - duration / 1000,
        "it waited only {waited:?}"
    );
    let late = waited.saturating_sub(duration);
    assert!(late < Duration::from_millis(500), "it came {late:?} late");
}

// === A watch that doesn't ===

/// The retry period that goes with a lease duration of 6 s.
const RETRY_PERIOD: Duration = Duration::from_millis(800);

/// Ended at once, refused, without a free seat, and failing.
#[test]
fn a_watch_that_fails_again_and_again_costs_one_request_per_retry_period() {
    thread::scope(|scope| {
        for watches in [
            Watches::Ended,
            Watches::Refused(404),
            Watches::Refused(429),
            Watches::Refused(500),
        ] {
            scope.spawn(|| {
                let world = World::on_kubernetes();
                let gateway = Gateway::for_admin(ControlPlane::shared());
                gateway.set(watches);
                let (holder, standby) = holder_and_standby(&world, &gateway, "6s");
                assert_asks_once_per_retry_period(&world, &gateway, RETRY_PERIOD);
                assert_starts_after_a_release(&world, &gateway, holder, RETRY_PERIOD * 3);
                let said = standby.stderr();
                assert!(!said.contains("polling"), "{said}");
            });
        }
    });
}

#[test]
fn a_watch_whose_version_is_too_old_costs_one_request_per_retry_period_until_one_is_not() {
    let control_plane = ControlPlane::start();
    let world = World::on(&control_plane);
    let gateway = Gateway::for_admin(&control_plane);
    // A server that has run all the while would still know what etcd has forgotten.
    world.lease_exec().command(["true"]).run().assert_code(0);
    control_plane.compact_etcd();
    control_plane.kill_api_server();
    control_plane.start_api_server();
    gateway.set(Watches::FromTheBeginning);
    let (holder, _standby) = holder_and_standby(&world, &gateway, "15s");
    // A server that has just started may be slow, so these are the default durations.
    assert_asks_once_per_retry_period(&world, &gateway, Duration::from_secs(2));
    assert_eq!(gateway.events().len(), 0);
    gateway.set(Watches::Served);
    wait_until("an event comes through", LIMIT, || gateway.events().pop());
    assert_starts_after_a_release(&world, &gateway, holder, Duration::ZERO);
}

/// Asserts that, and that it goes on asking, for ten periods.
#[track_caller]
fn assert_asks_once_per_retry_period(world: &World<'_>, gateway: &Gateway<'_>, period: Duration) {
    let start = now();
    let before = gateway.requests().len();
    wait_for_renewals(world, period * 10);
    let requests = gateway.requests();
    let periods = nanoseconds(start, now()).as_secs_f64() / period.as_secs_f64();
    let count = (requests.len() - before) as f64;
    let within = periods / 2.0..=periods + 1.0;
    assert!(
        within.contains(&count),
        "{count} in {periods} periods: {requests:?}"
    );
    assert_eq!(world.log().runs.len(), 1);
}

#[test]
fn a_standby_that_may_not_watch_polls_with_jitter_and_says_so_once() {
    let control_plane = ControlPlane::shared();
    let world = World::on_kubernetes();
    let user = format!("poller-{}", world.namespace());
    control_plane.grant(world.namespace(), &user, &["get", "create", "update"]);
    let gateway = Gateway::start(control_plane, &user, &[]);
    wait_until("the role arrives", LIMIT, || {
        let path = format!(
            "/apis/coordination.k8s.io/v1/namespaces/{}/leases/{LEASE}",
            world.namespace()
        );
        let answer = control_plane.raw_as(User::named(&user), http::Method::GET, &path, None);
        matches!(answer, Ok((404, _))).then_some(())
    });
    let (holder, standby) = holder_and_standby(&world, &gateway, "6s");
    wait_for_renewals(&world, RETRY_PERIOD * 12);
    let requests = gateway.requests();
    assert_eq!(
        (requests[1].kind, requests[1].code),
        (Kind::Watch, Some(403))
    );
    // After a quarter of a minute it asks for a watch again.
    let again = Duration::from_secs(14);
    let polls = requests[2..]
        .iter()
        .take_while(|seen| nanoseconds(requests[1].at, seen.at) < again)
        .collect::<Vec<_>>();
    assert!(polls.len() >= 8, "{polls:?}");
    assert!(
        polls.iter().all(|seen| seen.kind == Kind::Read),
        "{polls:?}"
    );
    let mut pauses = polls
        .windows(2)
        .map(|pair| nanoseconds(pair[0].at, pair[1].at))
        .collect::<Vec<_>>();
    pauses.sort();
    let (shortest, longest) = (pauses[0], pauses[pauses.len() - 1]);
    assert!(shortest >= RETRY_PERIOD, "{pauses:?}");
    // Up to a fifth of jitter, of which so many pauses show more than a quarter.
    assert!(longest >= shortest + RETRY_PERIOD / 20, "{pauses:?}");
    assert_starts_after_a_release(&world, &gateway, holder, RETRY_PERIOD * 2);
    let said = standby.stderr();
    assert_eq!(
        said.matches("polling instead of watching").count(),
        1,
        "{said}"
    );
}

#[test]
fn a_watch_that_falls_silent_is_replaced_after_one_duration() {
    let world = World::on_kubernetes();
    let gateway = Gateway::for_admin(ControlPlane::shared());
    let (holder, _standby) = holder_and_standby(&world, &gateway, "5s");
    world.wait_for_renewal();
    gateway.set(Watches::Silent);
    // On the old version the lease can't be taken.
    let attempt = wait_until("the standby tries to take the lease", LIMIT, || {
        let mut requests = gateway.requests().into_iter();
        requests.find(|seen| seen.kind == Kind::Write && seen.code.is_some())
    });
    assert_eq!(attempt.code, Some(409));
    gateway.set(Watches::Served);
    // Not of the old watch, which is there until the client has ended it.
    wait_until("events of another watch come through", LIMIT, || {
        let mut events = gateway.events().into_iter();
        events.find(|event| event.watch > 1)
    });
    let expected = [
        Kind::Read,
        Kind::Watch,
        Kind::Write,
        Kind::Read,
        Kind::Watch,
    ];
    assert_eq!(gateway.kinds(), expected);
    assert_eq!(world.log().runs.len(), 1);
    assert_starts_after_a_release(&world, &gateway, holder, Duration::ZERO);
}

#[test]
fn a_watch_that_lags_by_more_than_the_duration_is_safe_and_costs_little() {
    let world = World::on_kubernetes();
    let gateway = Gateway::for_admin(ControlPlane::shared());
    let lag = Duration::from_secs(8);
    gateway.set(Watches::Late(lag));
    let (holder, _standby) = holder_and_standby(&world, &gateway, "6s");
    let (start, before) = (now(), gateway.requests().len());
    wait_for_renewals(&world, lag * 2);
    let requests = gateway.requests();
    let periods = nanoseconds(start, now()).as_secs_f64() / RETRY_PERIOD.as_secs_f64();
    let count = (requests.len() - before) as f64;
    assert!(
        count <= periods + 1.0,
        "{count} in {periods} periods: {requests:?}"
    );
    // It tries on what it knows, which is too old.
    let mut writes = requests.iter().filter(|seen| seen.kind == Kind::Write);
    assert!(writes.all(|seen| seen.code == Some(409)), "{requests:?}");
    assert_eq!(world.log().runs.len(), 1);
    assert_starts_after_a_release(&world, &gateway, holder, lag);
}

/// Asserts that the standby starts its command at most so long after the release, and two seconds
/// for a slow machine.
#[track_caller]
fn assert_starts_after_a_release(
    world: &World<'_>,
    gateway: &Gateway<'_>,
    holder: Running,
    limit: Duration,
) {
    let released = now();
    release(holder);
    let log = world.wait_for_starts(2);
    log.assert_exclusive();
    let waited = nanoseconds(released, log.runs[1].started);
    let limit = limit + Duration::from_secs(2);
    let requests = gateway.requests();
    assert!(waited < limit, "it started after {waited:?}: {requests:?}");
}
