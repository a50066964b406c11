//! Time as the election counts it: two clocks that nobody can set, and a stamp for people.
//!
//! `std::time::Instant` is CLOCK_MONOTONIC: it stands still while the machine is suspended and NTP
//! may slew it by up to 8 % (chrony's default `maxslewrate`). Neither error may ever let a command
//! run on while somebody else starts theirs, so an [`Instant`] here carries two readings and each
//! side uses the one that errs in the safe direction: the holder of a lease takes the *larger*
//! elapsed time, an observer who waits for it to run out takes the *smaller*.
//!
//! Must not: sleep, decide anything.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// A moment on this machine's own clocks, comparable only with others of the same boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Instant {
    /// CLOCK_BOOTTIME since boot: counts suspend, is slewed by NTP.
    pub boot: Duration,
    /// CLOCK_MONOTONIC_RAW since boot: is never slewed, stops in suspend.
    pub raw: Duration,
}

impl Instant {
    /// Reads both clocks. Only the driver and the guard call this; everyone else is handed the time.
    pub fn now() -> Self {
        Self {
            boot: read(ClockId::CLOCK_BOOTTIME),
            raw: read(ClockId::CLOCK_MONOTONIC_RAW),
        }
    }

    /// The time that has passed since `earlier` as the holder of a lease must count it: at least as
    /// much as really passed, but for the drift that the timing's reserve covers.
    pub fn held_since(self, earlier: Self) -> Duration {
        let boot = self.boot.saturating_sub(earlier.boot);
        let raw = self.raw.saturating_sub(earlier.raw);
        boot.max(raw)
    }

    /// The time that has passed since `earlier` as an observer must count it: at most as much as
    /// really passed, but for the drift that the timing's reserve covers.
    pub fn observed_since(self, earlier: Self) -> Duration {
        let boot = self.boot.saturating_sub(earlier.boot);
        let raw = self.raw.saturating_sub(earlier.raw);
        boot.min(raw)
    }
}

/// A wall-clock time, in microseconds since the Unix epoch: the resolution of Kubernetes' MicroTime.
///
/// It is written for people and as the nonce of a write. It is never compared with a clock to
/// decide who may run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WallTime {
    /// Microseconds since 1970-01-01T00:00:00Z.
    pub unix_micros: i64,
}

impl WallTime {
    /// Reads CLOCK_REALTIME.
    pub fn now() -> Self {
        let since_epoch = read(ClockId::CLOCK_REALTIME);
        Self {
            unix_micros: i64::try_from(since_epoch.as_micros()).unwrap_or(i64::MAX),
        }
    }

    /// The whole seconds since the Unix epoch, rounded down.
    pub fn unix_seconds(self) -> i64 {
        self.unix_micros.div_euclid(1_000_000)
    }
}

/// Everything that the driver reads off the clocks before it hands an event to the election.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// The moment on the clocks that decide.
    pub at: Instant,
    /// The wall clock, for the stamps in the record only.
    pub wall: WallTime,
}

impl Now {
    /// Reads all the clocks.
    pub fn read() -> Self {
        Self {
            at: Instant::now(),
            wall: WallTime::now(),
        }
    }
}

/// A duration for people, rounded to milliseconds: `2.667s`, `500ms`, `1m 30s`.
pub fn shown(duration: Duration) -> String {
    let millis = duration
        .saturating_add(Duration::from_micros(500))
        .as_millis();
    let millis = u64::try_from(millis).unwrap_or(u64::MAX);
    let rounded = Duration::from_millis(millis);
    if millis < 1000 || millis % 1000 == 0 {
        return humantime::format_duration(rounded).to_string();
    }
    let text = format!("{}.{:03}", millis / 1000, millis % 1000);
    format!("{}s", text.trim_end_matches('0'))
}

/// Reads one clock. These clocks exist on every Linux that can run us (2.6.39 and later), and
/// `clock_gettime` has no other way to fail with them.
fn read(clock: ClockId) -> Duration {
    clock_gettime(clock).map_or(Duration::ZERO, Duration::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_shown_to_the_millisecond_at_most() {
        for (nanos, text) in [
            (0, "0s"),
            (2_666_666_666, "2.667s"),
            (2_500_000_000, "2.5s"),
            (90_000_000_000, "1m 30s"),
            (500_000_000, "500ms"),
            (999_600_000, "1s"),
        ] {
            assert_eq!(shown(Duration::from_nanos(nanos)), text);
        }
        shown(Duration::MAX);
    }
}
