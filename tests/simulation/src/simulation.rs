//! Whole worlds of nodes, clocks, networks and API servers around the program's own election.
//!
//! A seed decides everything that happens. What must be true is looked at whenever it could have
//! become false, against what is really so: true time, what the server has stored, and what runs.
//!
//! | part | holds |
//! | --- | --- |
//! | `world` | the agenda: what is to happen, in the order of true time |
//! | `profile` | which worlds there are, and what a seed makes of them |
//! | `node`, `clocks` | a machine: its instance of lease-exec, as the driver runs it, and its clocks |
//! | `guard` | the command's tree, and the guard that kills it |
//! | `wire`, `server` | requests and watches and how they fail; the API server's exact rules |
//! | `faults` | what else goes wrong |
//! | `history` | what is written down of requests, answers and events |
//! | `invariants`, `swaps` | what must be true: of who runs and writes, of the store's history |
//! | `summary`, `run` | counts, and running many seeds |
//!
//! Must not: know more of the election than its events, actions and settings.

mod clocks;
mod faults;
mod guard;
mod history;
mod invariants;
mod node;
mod profile;
mod random;
mod run;
mod server;
mod summary;
mod swaps;
mod wire;
mod world;

pub use profile::{PROFILES, Profile};
pub use run::{Found, Plan, Row, progress, replay, run, tightness};
pub use summary::{Fault, Summary};
pub use world::{History, Outcome, simulate};
