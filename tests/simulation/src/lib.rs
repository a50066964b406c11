//! The election of lease-exec in a world that is made up: simulated, model-checked, and with rules
//! taken out.
//!
//! The four modules below are symbolic links to the program's own files: what is tested here is
//! what runs. They are compiled once more because the decisions alone compile in seconds, and so
//! that they are optimised here without the rest of the program.

pub mod clock;
pub mod election;
pub mod exit;
pub mod lease;
pub mod simulation;
