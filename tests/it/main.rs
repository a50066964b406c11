//! The whole program, on real parts: real processes, a real API server, a real container runtime.

mod anywhere;
mod at_rest;
mod bad_input;
mod client_go;
mod command;
mod connection;
mod containment;
mod control_plane;
mod coordinated;
mod documents;
mod edits;
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
mod kubeconfigs;
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
mod stop_signal;
mod store_contract;
mod terminal;
mod terminal_groups;
mod wait;
mod world;

#[path = "../support/mod.rs"]
#[expect(dead_code, reason = "faults and benchmarks use the rest")]
mod support;

use support::{cgroup, janitor, surroundings};

/// libtest has no place for this: when it runs the first test, there is more than one thread.
#[used]
#[unsafe(link_section = ".init_array")]
static BEFORE_MAIN: extern "C" fn() = before_main;

extern "C" fn before_main() {
    // SAFETY: what the C library runs before `main` it runs in the only thread.
    let janitor = unsafe {
        surroundings::settle();
        janitor::Janitor::hire()
    };
    // It works when this process has ended.
    std::mem::forget(janitor);
}

#[path = "../bench/memory.rs"]
#[expect(dead_code, reason = "the benchmark uses all of it, and this only some")]
mod memory;
