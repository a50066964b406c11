//! The durations of one configuration, and the inequalities that make them safe.
//!
//! All are counted by the holder from the instant before its last good write was sent. With D the
//! lease duration, K the kill budget and rho the bound on a clock's rate error, an observer may
//! take over no earlier than D / (1 + rho) of true time after that instant. A SIGKILL at
//! (1 - rho) * (D / (1 + rho) - K) on the holder's clock therefore leaves K of true time for the
//! tree to die, whatever the two clocks do.

use std::{fmt, time::Duration};

/// The durations of an election. A value of this type satisfies the inequalities.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Timing {
    /// How long others must see a record unchanged before they may take the lease over; whole
    /// seconds.
    pub lease_duration: Duration,
    /// When a holder whose renewals fail gives up and sends SIGTERM.
    pub renew_deadline: Duration,
    /// When the tree gets SIGKILL.
    pub kill_deadline: Duration,
    /// From SIGKILL to the proof that the tree is dead; what the safety of everything rests on.
    pub kill_budget: Duration,
    /// From the send of one renewal to the next; also the least time between two attempts of a
    /// candidate.
    pub retry_period: Duration,
    /// The limit of one request.
    pub request_timeout: Duration,
}

/// What the user asked for; what is absent scales with the lease duration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Requested {
    /// `--lease-duration`
    pub lease_duration: Option<Duration>,
    /// `--renew-deadline`
    pub renew_deadline: Option<Duration>,
    /// `--retry-period`
    pub retry_period: Option<Duration>,
    /// `--request-timeout`
    pub request_timeout: Option<Duration>,
    /// `--lost-grace`
    pub lost_grace: Option<Duration>,
}

/// Why a configuration is refused: one sentence with the numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unsafe(String);

impl fmt::Display for Unsafe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Unsafe {}

/// The default lease duration, client-go's.
pub const LEASE_DURATION: Duration = Duration::from_secs(15);

/// The share of the lease duration that the defaults of retry period, request timeout and kill
/// budget take: 2 s of 15 s.
const SHARE: (u32, u32) = (2, 15);

/// The bound on the rate error of a clock, in thousandths (rho). A crystal is good to 0.1 and the
/// kernel's PLL to 0.5; neither clock that we use may be slewed faster without the other one
/// showing it.
const RATE_ERROR_PERMILLE: u32 = 1;

impl Timing {
    /// Completes and checks a configuration.
    ///
    /// # Errors
    ///
    /// [`Unsafe`] if an inequality is broken.
    pub fn new(requested: Requested) -> Result<Self, Unsafe> {
        let lease_duration = requested.lease_duration.unwrap_or(LEASE_DURATION);
        let seconds = lease_duration.as_secs();
        if lease_duration.subsec_nanos() != 0 || seconds == 0 || i32::try_from(seconds).is_err() {
            return refuse(format!(
                "lease-duration is {}, but must be whole seconds from 1s to {}s",
                show(lease_duration),
                i32::MAX,
            ));
        }
        let share = lease_duration * SHARE.0 / SHARE.1;
        let kill_budget = share;
        let latest_kill = latest_kill(lease_duration, kill_budget);
        let renew_deadline = requested.renew_deadline.unwrap_or(lease_duration * 2 / 3);
        let retry_period = requested.retry_period.unwrap_or(share);
        let request_timeout = requested.request_timeout.unwrap_or(share);
        if retry_period.is_zero() || request_timeout.is_zero() {
            return refuse("retry-period and request-timeout must be more than 0s".to_owned());
        }
        if renew_deadline > latest_kill {
            return refuse(format!(
                "renew-deadline {} must be at most {} = (1 - {rho}) * (lease-duration {} / (1 + {rho}) \
                 - kill budget {}), so that the command is dead before another may start",
                show(renew_deadline),
                show(latest_kill),
                show(lease_duration),
                show(kill_budget),
                rho = f64::from(RATE_ERROR_PERMILLE) / 1000.0,
            ));
        }
        let needed = request_timeout
            .saturating_mul(3)
            .saturating_add(retry_period);
        if needed > renew_deadline {
            return refuse(format!(
                "retry-period {} + 3 * request-timeout {} = {} must be at most renew-deadline {}, so \
                 that one lost request does not lose the lease",
                show(retry_period),
                show(request_timeout),
                show(needed),
                show(renew_deadline),
            ));
        }
        let kill_deadline = requested.lost_grace.map_or(latest_kill, |grace| {
            latest_kill.min(renew_deadline.saturating_add(grace))
        });
        Ok(Self {
            lease_duration,
            renew_deadline,
            kill_deadline,
            kill_budget,
            retry_period,
            request_timeout,
        })
    }

    /// When the tree gets SIGKILL if somebody has shortened the record's duration to `recorded`:
    /// others count by the record, so we must too.
    pub fn kill_deadline_for(&self, recorded: Duration) -> Duration {
        self.kill_deadline
            .min(latest_kill(recorded, self.kill_budget))
    }
}

/// The latest safe SIGKILL: (1 - rho) * (D / (1 + rho) - K), rounded down.
fn latest_kill(lease_duration: Duration, kill_budget: Duration) -> Duration {
    let observed = lease_duration * 1000 / (1000 + RATE_ERROR_PERMILLE);
    observed.saturating_sub(kill_budget) * (1000 - RATE_ERROR_PERMILLE) / 1000
}

/// A duration in seconds with at most three decimals, rounded down so that a bound that is shown
/// can be used.
fn show(duration: Duration) -> String {
    let millis = duration.as_millis();
    let text = format!("{}.{:03}", millis / 1000, millis % 1000);
    format!("{}s", text.trim_end_matches('0').trim_end_matches('.'))
}

fn refuse(message: String) -> Result<Timing, Unsafe> {
    Err(Unsafe(message))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(seconds: f64) -> Option<Duration> {
        Some(Duration::from_secs_f64(seconds))
    }

    #[test]
    fn the_defaults_are_those_of_client_go() {
        let timing = Timing::new(Requested::default()).expect("the defaults are safe");
        assert_eq!(timing.lease_duration, Duration::from_secs(15));
        assert_eq!(timing.renew_deadline, Duration::from_secs(10));
        assert_eq!(timing.retry_period, Duration::from_secs(2));
        assert_eq!(timing.request_timeout, Duration::from_secs(2));
        assert_eq!(timing.kill_deadline.as_millis(), 12_972);
    }

    #[test]
    fn everything_scales_with_the_lease_duration() {
        for lease in [1, 3, 5, 15, 60, 3600, i32::MAX as u64] {
            let lease_duration = Some(Duration::from_secs(lease));
            let timing = Timing::new(Requested {
                lease_duration,
                ..Requested::default()
            });
            let timing = timing.expect("scaled defaults are safe");
            // 12.97 of 15 s, at every size.
            let share = timing.kill_deadline.as_secs_f64() / lease as f64;
            assert!((share - 0.8648).abs() < 0.001, "{lease}: {share}");
        }
    }

    #[test]
    fn broken_inequalities_are_refused_with_their_numbers() {
        let cases = [
            (
                Requested {
                    renew_deadline: seconds(14.0),
                    ..Requested::default()
                },
                "renew-deadline 14s must be at most 12.972s = (1 - 0.001) * (lease-duration 15s / \
                 (1 + 0.001) - kill budget 2s)",
            ),
            (
                Requested {
                    request_timeout: seconds(3.0),
                    ..Requested::default()
                },
                "retry-period 2s + 3 * request-timeout 3s = 11s must be at most renew-deadline 10s",
            ),
            (
                Requested {
                    lease_duration: seconds(1.5),
                    ..Requested::default()
                },
                "lease-duration is 1.5s, but must be whole seconds from 1s to 2147483647s",
            ),
            (
                Requested {
                    lease_duration: seconds(0.0),
                    ..Requested::default()
                },
                "lease-duration is 0s, but must be whole seconds from 1s to 2147483647s",
            ),
            (
                Requested {
                    retry_period: seconds(0.0),
                    ..Requested::default()
                },
                "retry-period and request-timeout must be more than 0s",
            ),
        ];
        for (requested, expected) in cases {
            let message = Timing::new(requested).expect_err("unsafe").to_string();
            assert!(message.starts_with(expected), "{message}");
        }
    }

    #[test]
    fn a_grace_only_brings_the_kill_forward() {
        let kill = |grace| {
            let requested = Requested {
                lost_grace: seconds(grace),
                ..Requested::default()
            };
            Timing::new(requested)
                .expect("a grace is never unsafe")
                .kill_deadline
                .as_millis()
        };
        assert_eq!(kill(0.0), 10_000);
        assert_eq!(kill(1.5), 11_500);
        assert_eq!(kill(60.0), 12_972);
    }

    #[test]
    fn a_shortened_record_shortens_the_deadline() {
        let timing = Timing::new(Requested::default()).expect("the defaults are safe");
        let short = timing.kill_deadline_for(Duration::from_secs(5));
        assert_eq!(short.as_millis(), 2_992);
        assert_eq!(
            timing.kill_deadline_for(Duration::from_secs(1)),
            Duration::ZERO
        );
        assert_eq!(
            timing.kill_deadline_for(Duration::from_secs(99)),
            timing.kill_deadline
        );
    }
}
