//! The whole program, on real parts: real processes, a real API server, a real container runtime.

mod at_rest;
mod bad_input;
mod client_go;
mod command;
mod connection;
mod containment;
mod control_plane;
mod documents;
mod exit_status;
mod failure;
mod footprint;
mod foreign_kernel;
mod gateway;
mod hand_over;
mod herd;
mod image;
mod inheritance;
mod init;
mod late_start;
mod leftovers;
mod listener;
mod loss;
mod outages;
mod places;
mod processes;
mod proxy;
mod pty;
mod resources;
mod shell;
mod shims;
mod signals;
mod start_up;
mod store_contract;
mod terminal;
mod terminal_groups;
mod wait;
mod world;

#[path = "../bench/memory.rs"]
#[expect(dead_code, reason = "the benchmark uses all of it, and this only some")]
mod memory;
