//! The clocks of one node, as functions of true time.
//!
//! True time is in microseconds. CLOCK_MONOTONIC_RAW runs at a rate of its own and stops in suspend;
//! CLOCK_BOOTTIME counts suspend and may be slewed; the wall clock shows anything.

use std::time::Duration;

use crate::clock::{Instant, Now, WallTime};

/// The bound on the rate error of a clock that the election's timing is made for, in parts per
/// million.
pub(super) const RATE_ERROR: u32 = 1_000;

/// How fast chrony slews at most by default, in parts per million (chrony.conf(5), `maxslewrate`).
pub(super) const SLEW: u32 = 83_333;

const MILLION: i64 = 1_000_000;

/// By how many parts per million each clock is fast.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rates {
    pub(super) boot: i64,
    pub(super) raw: i64,
}

#[derive(Clone, Debug)]
pub(super) struct Clocks {
    /// The true time at which the two readings were taken.
    since: u64,
    boot_nanos: u64,
    raw_nanos: u64,
    rates: Rates,
    suspended: bool,
    /// What the wall clock shows beyond CLOCK_BOOTTIME, in microseconds.
    wall_offset: i64,
}

impl Clocks {
    pub(super) fn new(now: u64, uptime: Duration, rates: Rates, wall_offset: i64) -> Self {
        let uptime = nanos(uptime);
        Self {
            since: now,
            boot_nanos: uptime,
            raw_nanos: uptime,
            rates,
            suspended: false,
            wall_offset,
        }
    }

    pub(super) fn read(&self, now: u64) -> Now {
        let (boot, raw) = self.nanos(now);
        let micros = i64::try_from(boot / 1_000).expect("an uptime of years");
        Now {
            at: Instant {
                boot: Duration::from_nanos(boot),
                raw: Duration::from_nanos(raw),
            },
            wall: WallTime {
                unix_micros: micros + self.wall_offset,
            },
        }
    }

    pub(super) fn set_rates(&mut self, now: u64, rates: Rates) {
        self.settle(now);
        self.rates = rates;
    }

    pub(super) fn suspend(&mut self, now: u64) {
        self.settle(now);
        self.suspended = true;
    }

    pub(super) fn resume(&mut self, now: u64) {
        self.settle(now);
        self.suspended = false;
    }

    /// Sets the wall clock forward or back.
    pub(super) fn step_wall(&mut self, micros: i64) {
        self.wall_offset += micros;
    }

    /// In how many microseconds of true time a timer goes off that counts this much of the clock
    /// that it is set on: CLOCK_BOOTTIME, or CLOCK_MONOTONIC, which has the same rate.
    pub(super) fn true_micros(&self, local: Duration) -> u64 {
        stretch(nanos(local), self.rates.boot)
    }

    /// In how many microseconds of true time a holder's elapsed time has grown by this much.
    pub(super) fn true_micros_held(&self, local: Duration) -> u64 {
        stretch(nanos(local), self.rates.boot.max(self.rates.raw))
    }

    fn settle(&mut self, now: u64) {
        (self.boot_nanos, self.raw_nanos) = self.nanos(now);
        self.since = now;
    }

    fn nanos(&self, now: u64) -> (u64, u64) {
        let passed = now - self.since;
        if self.suspended {
            // The hardware clock counts, and nothing else.
            return (self.boot_nanos + passed * 1_000, self.raw_nanos);
        }
        (
            self.boot_nanos + shrink(passed, self.rates.boot),
            self.raw_nanos + shrink(passed, self.rates.raw),
        )
    }
}

/// Nanoseconds on a clock of this rate in so many true microseconds.
fn shrink(micros: u64, rate: i64) -> u64 {
    let rate = u64::try_from(MILLION + rate).expect("no clock runs backwards");
    micros * rate / 1_000
}

/// True microseconds, rounded up, until a clock of this rate has counted so many nanoseconds.
fn stretch(nanos: u64, rate: i64) -> u64 {
    let rate = u128::try_from(MILLION + rate).expect("no clock runs backwards");
    let micros = (u128::from(nanos) * 1_000).div_ceil(rate);
    u64::try_from(micros)
        .unwrap_or(u64::MAX / 4)
        .min(u64::MAX / 4)
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000;

    fn clocks(boot: i64, raw: i64) -> Clocks {
        Clocks::new(5, Duration::from_secs(10), Rates { boot, raw }, 0)
    }

    #[test]
    fn clocks_run_at_their_own_rates_and_a_change_of_rate_is_no_step() {
        let mut clocks = clocks(1_000, -1_000);
        let start = clocks.read(5).at;
        let later = clocks.read(5 + 1_000 * SECOND).at;
        assert_eq!(later.held_since(start), Duration::from_secs(1_001));
        assert_eq!(later.observed_since(start), Duration::from_secs(999));
        clocks.set_rates(5 + 1_000 * SECOND, Rates { boot: 0, raw: 0 });
        assert_eq!(clocks.read(5 + 1_000 * SECOND).at, later);
        let last = clocks.read(5 + 1_001 * SECOND).at;
        assert_eq!(last.held_since(later), Duration::from_secs(1));
    }

    #[test]
    fn only_the_boot_clock_counts_suspend() {
        let mut clocks = clocks(0, 0);
        let start = clocks.read(5).at;
        clocks.suspend(5 + SECOND);
        clocks.resume(5 + 61 * SECOND);
        let end = clocks.read(5 + 62 * SECOND).at;
        assert_eq!(end.held_since(start), Duration::from_secs(62));
        assert_eq!(end.observed_since(start), Duration::from_secs(2));
    }

    #[test]
    fn a_timer_goes_off_when_its_clock_says_so_and_not_before() {
        for rate in [-1_000, -1, 0, 7, 1_000, 83_333] {
            let clocks = clocks(rate, 0);
            for local in [1, 999_999_999, 15_000_000_000, 12_972_014_985] {
                let local = Duration::from_nanos(local);
                let start = clocks.read(1_234).at.boot;
                let micros = clocks.true_micros(local);
                // One microsecond for the rounding of each of two readings.
                let reached = clocks.read(1_234 + micros + 1).at.boot - start;
                assert!(reached >= local, "{rate}: {reached:?} of {local:?}");
                let before = clocks.read(1_234 + micros.saturating_sub(2)).at.boot - start;
                assert!(before <= local, "{rate}: {before:?} of {local:?}");
            }
        }
    }

    #[test]
    fn a_step_of_the_wall_clock_moves_nothing_else() {
        let mut clocks = clocks(0, 0);
        let before = clocks.read(100);
        clocks.step_wall(-3_600_000_000);
        let after = clocks.read(100);
        assert_eq!(before.at, after.at);
        assert_eq!(
            before.wall.unix_micros - after.wall.unix_micros,
            3_600_000_000
        );
    }
}
