//! The rules between the durations, held against arithmetic of this file's own.
//!
//! The arithmetic is exact and knows nothing of how the program computes: whole nanoseconds, and
//! fractions only as products of both sides.

use std::time::Duration;

use lease_exec_simulation::election::{Requested, Timing};
use proptest::prelude::*;

/// The bound on a clock's rate error, in thousandths: a clock shows from 999 to 1001 where 1000
/// pass.
const SLOWEST: u128 = 999;
const FASTEST: u128 = 1001;

/// What the program may lose by rounding its bound down, in each of two divisions: it refuses what
/// is closer to the bound than this.
const ROUNDING: Duration = Duration::from_nanos(2);

fn nanos(duration: Duration) -> u128 {
    duration.as_nanos()
}

/// Whether what happens this late by a holder's clock, and takes `death` of true time from there,
/// is over before an observer may take the lease, whichever way the two clocks err.
fn is_over_in_time(by_holder: Duration, death: Duration, lease_duration: Duration) -> bool {
    // by_holder * 1000 / slowest + death <= lease_duration * 1000 / fastest
    let over = nanos(by_holder) * 1000 * FASTEST + nanos(death) * SLOWEST * FASTEST;
    over <= nanos(lease_duration) * 1000 * SLOWEST
}

/// The kill budget as it is documented: 2 s of 15 s, at every size.
fn kill_budget(lease_duration: Duration) -> Duration {
    lease_duration * 2 / 15
}

fn leaves_room_for_three_attempts(timing: &Timing) -> bool {
    let attempts = nanos(timing.retry_period) + 3 * nanos(timing.request_timeout);
    attempts <= nanos(timing.renew_deadline)
}

fn is_whole_and_in_range(lease_duration: Duration) -> bool {
    lease_duration.subsec_nanos() == 0 && (1..=i32::MAX as u64).contains(&lease_duration.as_secs())
}

/// Everything that an accepted configuration promises.
fn check_accepted(requested: Requested, timing: &Timing) -> Result<(), TestCaseError> {
    let lease_duration = timing.lease_duration;
    prop_assert!(is_whole_and_in_range(lease_duration));
    prop_assert_eq!(timing.kill_budget, kill_budget(lease_duration));
    let budget = timing.kill_budget;
    prop_assert!(is_over_in_time(
        timing.kill_deadline,
        budget,
        lease_duration
    ));
    prop_assert!(timing.renew_deadline <= timing.kill_deadline);
    prop_assert!(leaves_room_for_three_attempts(timing));
    prop_assert!(!timing.retry_period.is_zero() && !timing.request_timeout.is_zero());
    // The kernel kills a guard that does nothing half of the budget after the guard's own
    // deadline, and a front that does nothing an eighth after that; a third of the budget is left
    // for the tree to die.
    for later in [budget / 2, budget / 8 * 5] {
        let by_kernel = timing.kill_deadline + later;
        prop_assert!(is_over_in_time(by_kernel, budget / 3, lease_duration));
    }
    // What was asked for is what there is; only the kill may come earlier.
    let asked = |asked: Option<Duration>, is: Duration| asked.is_none_or(|asked| asked == is);
    prop_assert!(asked(requested.lease_duration, lease_duration));
    prop_assert!(asked(requested.renew_deadline, timing.renew_deadline));
    prop_assert!(asked(requested.retry_period, timing.retry_period));
    prop_assert!(asked(requested.request_timeout, timing.request_timeout));
    let grace = timing.kill_deadline - timing.renew_deadline;
    prop_assert!(requested.lost_grace.is_none_or(|asked| grace <= asked));
    // The kill is no earlier than it need be.
    let as_asked = requested.lost_grace.is_some_and(|asked| grace == asked);
    let one_later = timing.kill_deadline + ROUNDING;
    prop_assert!(as_asked || !is_over_in_time(one_later, budget, lease_duration));
    Ok(())
}

/// Whether a configuration can't be accepted, or is so close to the bound that it need not be.
fn is_unsafe(requested: Requested) -> bool {
    let lease_duration = requested.lease_duration.unwrap_or(Duration::from_secs(15));
    if !is_whole_and_in_range(lease_duration) {
        return true;
    }
    let budget = kill_budget(lease_duration);
    let share = lease_duration * 2 / 15;
    let renew_deadline = requested.renew_deadline.unwrap_or(lease_duration * 2 / 3);
    let retry_period = requested.retry_period.unwrap_or(share);
    let request_timeout = requested.request_timeout.unwrap_or(share);
    let attempts = nanos(retry_period) + 3 * nanos(request_timeout);
    retry_period.is_zero()
        || request_timeout.is_zero()
        || attempts > nanos(renew_deadline)
        || !is_over_in_time(
            renew_deadline.saturating_add(ROUNDING),
            budget,
            lease_duration,
        )
}

/// A duration around a share of the lease duration: anywhere, or within nanoseconds of it.
fn around(share: Duration) -> impl Strategy<Value = Duration> {
    let most = u64::try_from(nanos(share)).expect("centuries") * 2;
    let near = (any::<bool>(), 0..4_u64).prop_map(move |(above, nanos)| {
        let nanos = Duration::from_nanos(nanos);
        if above {
            share + nanos
        } else {
            share.saturating_sub(nanos)
        }
    });
    prop_oneof![
        3 => (0..=most).prop_map(Duration::from_nanos),
        3 => near,
        1 => Just(Duration::ZERO),
        1 => Just(Duration::MAX),
    ]
}

/// The latest kill, found by search: the most nanoseconds that are over in time.
fn latest_kill(lease_duration: Duration) -> Duration {
    let budget = kill_budget(lease_duration);
    let (mut good, mut bad) = (Duration::ZERO, lease_duration);
    while bad - good > Duration::from_nanos(1) {
        let middle = good + (bad - good) / 2;
        if is_over_in_time(middle, budget, lease_duration) {
            good = middle;
        } else {
            bad = middle;
        }
    }
    good
}

fn lease_durations() -> impl Strategy<Value = Duration> {
    prop_oneof![
        4 => (1..=3600_u64).prop_map(Duration::from_secs),
        1 => (3600..=i32::MAX as u64).prop_map(Duration::from_secs),
        1 => (1..=5_000_000_000_u64).prop_map(Duration::from_nanos),
        1 => prop_oneof![
            Just(Duration::ZERO),
            Just(Duration::MAX),
            Just(Duration::from_secs(i32::MAX as u64 + 1)),
        ],
    ]
}

fn requests() -> impl Strategy<Value = Requested> {
    lease_durations().prop_flat_map(|lease_duration| {
        let scale =
            lease_duration.clamp(Duration::from_secs(1), Duration::from_secs(i32::MAX as u64));
        let renew_deadline = prop_oneof![around(latest_kill(scale)), around(scale * 2 / 3)];
        (
            proptest::option::weighted(0.7, renew_deadline),
            proptest::option::weighted(0.5, around(scale * 2 / 15)),
            proptest::option::weighted(0.5, around(scale * 2 / 15)),
            proptest::option::weighted(0.5, around(scale / 5)),
        )
            .prop_map(
                move |(renew_deadline, retry_period, request_timeout, lost_grace)| Requested {
                    lease_duration: Some(lease_duration),
                    renew_deadline,
                    retry_period,
                    request_timeout,
                    lost_grace,
                },
            )
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 5_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_accepted_is_safe_and_what_is_refused_is_not(requested in requests()) {
        match Timing::new(requested) {
            Ok(timing) => check_accepted(requested, &timing)?,
            Err(error) => prop_assert!(is_unsafe(requested), "refused without need: {error}"),
        }
    }

    #[test]
    fn a_shortened_record_is_outlived_by_nobody(
        lease in 1..=3600_u64,
        recorded in 0..=3600_u64,
        grace in proptest::option::of(0..=3600_u64),
    ) {
        let timing = Timing::new(Requested {
            lease_duration: Some(Duration::from_secs(lease)),
            lost_grace: grace.map(Duration::from_secs),
            ..Requested::default()
        });
        let timing = timing.expect("the defaults of every duration are safe");
        let recorded = Duration::from_secs(recorded);
        let kill = timing.kill_deadline_for(recorded);
        prop_assert!(kill <= timing.kill_deadline);
        let in_time = is_over_in_time(kill, timing.kill_budget, recorded);
        prop_assert!(in_time || kill.is_zero());
    }

    #[test]
    fn the_bound_that_a_refusal_names_is_accepted(lease in 1..=3600_u64, beyond in 1..1_000_000_u64) {
        let lease_duration = Duration::from_secs(lease);
        let with = |renew_deadline| Timing::new(Requested {
            lease_duration: Some(lease_duration),
            renew_deadline: Some(renew_deadline),
            ..Requested::default()
        });
        let refused = with(latest_kill(lease_duration) + Duration::from_nanos(beyond));
        let message = refused.expect_err("beyond the bound").to_string();
        let (_, rest) = message.split_once("must be at most ").expect("it names a bound");
        let (bound, _) = rest.split_once(' ').expect("it goes on");
        let bound = humantime(bound);
        prop_assert!(with(bound).is_ok(), "{message}");
        // And it is the bound, to the millisecond that is shown.
        prop_assert!(latest_kill(lease_duration) - bound < Duration::from_millis(1) + ROUNDING);
    }
}

/// Reads seconds like `12.972s`.
fn humantime(text: &str) -> Duration {
    let seconds = text.strip_suffix('s').expect("in seconds");
    let (whole, fraction) = seconds.split_once('.').unwrap_or((seconds, "0"));
    let millis: u64 = format!("{fraction:0<3}").parse().expect("a number");
    Duration::from_secs(whole.parse().expect("a number")) + Duration::from_millis(millis)
}

#[test]
fn the_defaults_of_every_duration_from_a_second_to_an_hour_are_accepted() {
    for seconds in 1..=3600 {
        let requested = Requested {
            lease_duration: Some(Duration::from_secs(seconds)),
            ..Requested::default()
        };
        let timing = Timing::new(requested).expect("scaled defaults are safe");
        check_accepted(requested, &timing).expect("and so is what they come to");
    }
}

#[test]
fn the_bounds_are_exact() {
    for seconds in (1..=3600).chain([i32::MAX as u64]) {
        let lease_duration = Duration::from_secs(seconds);
        let with = |renew_deadline, retry_period, request_timeout| {
            Timing::new(Requested {
                lease_duration: Some(lease_duration),
                renew_deadline: Some(renew_deadline),
                retry_period: Some(retry_period),
                request_timeout: Some(request_timeout),
                lost_grace: None,
            })
            .is_ok()
        };
        let latest = latest_kill(lease_duration);
        let short = lease_duration / 100;
        let one = Duration::from_nanos(1);
        assert!(with(latest - ROUNDING, short, short), "{seconds}");
        assert!(!with(latest + one, short, short), "{seconds}");
        // The third attempt ends with the deadline, or a nanosecond after it.
        let renew_deadline = lease_duration / 2;
        let retry_period = renew_deadline - 3 * short;
        assert!(with(renew_deadline, retry_period, short), "{seconds}");
        assert!(
            !with(renew_deadline, retry_period + one, short),
            "{seconds}"
        );
        assert!(
            !with(renew_deadline, retry_period, short + one),
            "{seconds}"
        );
        assert!(!with(renew_deadline, Duration::ZERO, short), "{seconds}");
        assert!(
            !with(renew_deadline, retry_period, Duration::ZERO),
            "{seconds}"
        );
    }
}
