//! x
pub mod cli;
pub mod clock;
pub mod election;
pub mod exit;
pub mod lease;
pub mod signals;
pub mod store;
pub mod supervisor;
