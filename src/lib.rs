//! Runs a command only while holding a Kubernetes Lease.
//!
//! The library is the program's own, for its tests; its interface may change at any time.
//!
//! # The map
//!
//! ```text
//! argv, env ──cli──▶ Config ──main──▶ driver: Store, Election, Supervisor
//!                                        │
//!  store ──▶ reply, change          ─┐   │
//!  guard ──▶ ended, tree gone, ...  ─┼─ Event ─▶ election.handle(now, event)
//!  signals ─▶ signal                ─┤                     │
//!  clock ──▶ election.deadline(now) ─┘                     ▼
//!                      Action ◀── election.poll() until None
//!    Read, Write, Watch ─▶ store    Start, Extend, Kill ─▶ supervisor    Exit ─▶ main
//! ```
//!
//! | room | holds | must not |
//! | --- | --- | --- |
//! | `main.rs` | the order of the start, and the one printed error | decide |
//! | [`cli`] | clap's types; every rule between options, checked once | touch files, network, clock |
//! | [`lease`] | a Lease as data: the words that election and stores share | do anything |
//! | [`election`] | who may run and when: a pure state machine | know async, Kubernetes, files, the time |
//! | [`driver`] | the only loop, and the only place that asks the time | hold a condition about leases |
//! | [`store`] | read, compare-and-swap, watch: [`store::kube`], [`store::file`] | retry, judge expiry |
//! | [`supervisor`] | processes: the guard, starting, killing, proof; all unsafe code | know leases |
//! | [`names`], [`signals`], [`exit`], [`log`], [`clock`] | one thing each | |
//!
//! # The invariants
//!
//! 1. At any instant at most one command tree per lease is able to run, provided that clock *rates*
//!    differ by no more than one in a thousand, a process wakes up within the timing's reserve
//!    ([`election::Timing`]), every taker waits for the duration written in the record, and nobody
//!    deletes or edits a held lease by hand. Clocks may show any time whatever.
//! 2. A term counts from before its write was sent. The kill at its end depends neither on the async
//!    runtime, nor on any request, nor on lease-exec's own good health: the guard process kills at a
//!    deadline of its own, and the kernel kills a guard that does not.
//! 3. The lease is released only after the kernel has said that nothing of the command's tree is
//!    left, and only by a compare-and-swap on our own last write.
//! 4. Standbys watch; they don't poll, unless they may not watch.
//! 5. Nothing that a user, a server or a full pipe does makes us panic, block or print twice.

pub mod cli;
pub mod clock;
pub mod driver;
pub mod election;
pub mod exit;
#[cfg(test)]
mod fuzz;
pub mod lease;
pub mod log;
pub mod names;
pub mod signals;
pub mod store;
pub mod supervisor;
