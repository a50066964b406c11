//! What tests, faults and benchmarks share.

pub(crate) mod cgroup;
pub(crate) mod janitor;
pub(crate) mod surroundings;
