//! Random choices that a seed repeats.

use std::time::Duration;

pub(crate) use crate::support::random::Random;

impl Random {
    /// Whether something happens that happens in so many of a hundred cases.
    pub(crate) fn percent(&mut self, chance: u64) -> bool {
        self.happens(chance * 100)
    }

    /// At least `from` and less than `to`, which is more.
    pub(crate) fn time_between(&mut self, from: Duration, to: Duration) -> Duration {
        from + (to - from).mul_f64(self.below(1_000_000) as f64 / 1e6)
    }
}
