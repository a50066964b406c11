//! What tests, faults and benchmarks share.

pub(crate) mod cgroup;
pub(crate) mod janitor;
pub(crate) mod random;
pub(crate) mod surroundings;

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// The smallest sample that at least `percent` of them don't exceed.
pub(crate) fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied().unwrap_or_default()
}

/// The time since the boot, which all processes see alike.
pub(crate) fn now() -> Duration {
    let time = clock_gettime(ClockId::CLOCK_BOOTTIME);
    time.expect("Linux has had this clock since 2.6.39").into()
}
