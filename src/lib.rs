//! Runs a command only while holding a Kubernetes Lease.
pub mod cli;
pub mod clock;
pub mod election;
pub mod exit;
pub mod lease;
pub mod log;
pub mod store;
