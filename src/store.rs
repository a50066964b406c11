//! Where a lease lives: read it, write it by compare-and-swap, watch it.
//!
//! Must not: retry, judge whether a lease has expired, tell the time but for an object's age by the
//! store's own clock. A conflict is a value, not an error. Every call is one attempt; the caller
//! puts a time limit on it and may drop it at any point, after which a write may or may not have
//! been carried out.

use std::{future::Future, time::Duration};

use crate::lease::{Claim, Record, Version};

pub mod file;
mod json;
pub mod kube;

/// One attempt at a write. Every write is a compare-and-swap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    /// What the write replaces: it is carried out only if the object's uid and version are still
    /// these. `None` creates the object, and only if there is none.
    pub base: Option<Claim>,
    /// The spec's fields to write; all others are taken from the base.
    pub record: Record,
}

/// What became of a write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was carried out, and this is the object since.
    Written(Claim),
    /// The base was not, or no longer, what is stored (HTTP 409; for a create, 422). A repeat of
    /// our own write by something in between looks the same, so the caller reads back.
    Conflict,
}

/// Why an attempt failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What the caller may conclude.
    pub kind: FailureKind,
    /// One sentence for people, lower case, without a full stop, fits "failed to ...".
    pub message: String,
    /// How long the server asked us to wait before the next attempt (`Retry-After`).
    pub retry_after: Option<Duration>,
}

/// The kinds of failure that make a difference to the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureKind {
    /// No answer, or one that says "later" (timeouts, resets, 429, 5xx). A write may have been
    /// carried out.
    Unreachable,
    /// The credentials were not accepted (401). The store reads them anew before its next attempt.
    Unauthorized,
    /// The credentials do not have the right (403). The message holds the RBAC rule to add.
    Forbidden,
    /// The namespace does not exist or is being deleted.
    NoNamespace,
    /// What is stored is not a Lease that makes sense.
    Malformed,
    /// The configuration can't work, however often it is tried.
    Misconfigured,
}

/// What a watch says. It may be late, doubled or lost: it wakes or stops, it proves nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The object was created or written.
    Written(Claim),
    /// The object was deleted; this is its last state, with the version of the deletion.
    Deleted(Claim),
    /// The watch is over (it ended, broke, or its version is too old); the caller reads and watches
    /// again.
    Ended(String),
    /// The store does not allow a watch (403); the caller polls. The message holds the rule to add.
    Refused(Failure),
}

/// A place where one lease lives.
pub trait Store {
    /// The stream of changes of this store.
    type Watch: Watch;

    /// Reads what is stored now; `None` if there is nothing. Linearizable: never from a cache.
    fn read(&self) -> impl Future<Output = Result<Option<Claim>, Failure>>;

    /// Makes one attempt at a write.
    fn write(&self, write: Write) -> impl Future<Output = Result<Outcome, Failure>>;

    /// Watches for changes after `from`; `None` means from now on, where there was nothing.
    /// Returns at once; failures come as changes.
    fn watch(&self, from: Option<Version>) -> Self::Watch;
}

/// Changes, one after another.
pub trait Watch {
    /// Waits for the next change. Nothing follows [`Change::Ended`] and [`Change::Refused`].
    /// Dropping the returned future loses nothing.
    fn next(&mut self) -> impl Future<Output = Change>;
}
