//! Runs a command only while holding a Kubernetes Lease.
pub mod clock;
pub mod exit;
pub mod lease;
pub mod store;
pub mod supervisor;
