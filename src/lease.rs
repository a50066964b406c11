//! The words that the election and the stores share: a Lease as data.
//!
//! The record is client-go's (`resourcelock.LeaderElectionRecord` on a `coordination.k8s.io/v1`
//! Lease), so that a Go operator and lease-exec can share a Lease.
//!
//! Must not: read or write anything, judge who may run.

use std::{cmp::Ordering, fmt, sync::Arc, time::Duration};

use crate::clock::WallTime;

/// Who holds a lease: `holderIdentity`. Never empty, and unique to one process: a readable part and
/// a random one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Identity(String);

impl Identity {
    /// Takes a holder's name as it stands in a record; `None` for the empty one, which means that
    /// nobody holds the lease.
    pub fn new(text: impl Into<String>) -> Option<Self> {
        let text = text.into();
        (!text.is_empty()).then_some(Self(text))
    }

    /// The text as it stands in the record.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// For people, on one line: whoever may write the lease may put anything into it.
impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", one_line(&self.0))
    }
}

/// A text with its control characters written out, so that it can't pretend to be more than one
/// line.
pub fn one_line(text: &str) -> String {
    let escaped = text.chars().map(|letter| match letter {
        letter if letter.is_control() => letter.escape_default().to_string(),
        letter => letter.to_string(),
    });
    escaped.collect()
}

/// A `metadata.uid`: which object of that name it is. A Lease that was deleted and made again has
/// another.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Uid(pub String);

/// A `metadata.resourceVersion`, ordered as KEP-5504 says: decimal without a leading zero, the
/// longer one is the greater, else the lexically greater.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Version(String);

impl Version {
    /// Takes a version as it stands in an object; `None` if it is not a decimal number without a
    /// leading zero, because such versions can't be compared.
    pub fn new(text: impl Into<String>) -> Option<Self> {
        let text = text.into();
        let decimal = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        (decimal && !text.starts_with('0')).then_some(Self(text))
    }

    /// The text as it stands in the object.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Ord for Version {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.0.len(), &self.0).cmp(&(other.0.len(), &other.0))
    }
}

impl PartialOrd for Version {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The fields of a Lease's spec that the election reads and writes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Record {
    /// `holderIdentity`; `None` if it is absent or empty: nobody holds the lease.
    pub holder: Option<Identity>,
    /// `leaseDurationSeconds`, in whole seconds and more than zero; `None` if it is absent.
    pub duration: Option<Duration>,
    /// `acquireTime`: for people.
    pub acquire_time: Option<WallTime>,
    /// `renewTime`: for people, and the nonce by which a write is recognised.
    pub renew_time: Option<WallTime>,
    /// `leaseTransitions`; an absent one counts as 0. Never negative.
    pub transitions: u32,
    /// `strategy` of coordinated leader election (KEP-4355); `None` if it is absent or empty. Only read:
    /// a lease that has one is never written.
    pub strategy: Option<String>,
}

/// What the store holds under a lease's name, as it was at one version.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Claim {
    /// Which object it is.
    pub uid: Uid,
    /// The version at which it was so.
    pub version: Version,
    /// Its spec.
    pub record: Record,
    /// By the store's own clock, how long before the answer the record was last written; only in
    /// answers to reads and writes, never in watch events, and only if the store is certain. For a
    /// Kubernetes API server this is the answer's `Date` less the `managedFields` time of the entry
    /// that owns `f:spec.f:renewTime`, if that was made by lease-exec.
    pub written_ago: Option<Duration>,
    /// By the store's own clock, how long before the answer the object was created; as above.
    pub created_ago: Option<Duration>,
    /// The whole object, for the next write to build on.
    pub object: Object,
}

/// A Lease as the store returned it, whole, so that fields, labels and annotations that we know
/// nothing of survive our writes. Only stores look inside.
#[derive(Clone, Default, PartialEq, Hash)]
pub struct Object(pub Arc<serde_json::Value>);

impl Eq for Object {}

impl fmt::Debug for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Object(..)")
    }
}

/// One attempt at a write. Every write is a compare-and-swap.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Write {
    /// What the write replaces: it is carried out only if the object's uid and version are still
    /// these. `None` creates the object, and only if there is none.
    pub base: Option<Claim>,
    /// The spec's fields to write; all others are taken from the base.
    pub record: Record,
}

/// What became of a write.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// It was carried out, and this is the object since.
    Written(Claim),
    /// The base was not, or no longer, what is stored (HTTP 409; for a create, 422). A repeat of
    /// our own write by something in between looks the same, so the caller reads back.
    Conflict,
}

/// Why an attempt failed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Failure {
    /// What the caller may conclude.
    pub kind: FailureKind,
    /// One sentence for people of bounded length, lower case, without a full stop, fits "failed to
    /// ...".
    pub message: String,
    /// How long the server asked us to wait before the next attempt (`Retry-After`).
    pub retry_after: Option<Duration>,
}

impl Failure {
    /// A failure without a wish of the store's. What is no sentence becomes one: control characters
    /// are written out, because a line feed would forge a line of the log, and what is too long is cut.
    pub fn new(kind: FailureKind, message: impl Into<String>) -> Self {
        let mut message = one_line(&message.into());
        if let Some((end, _)) = message.char_indices().nth(LONGEST_MESSAGE) {
            message.truncate(end);
            message.push_str("...");
        }
        Self {
            kind,
            message,
            retry_after: None,
        }
    }
}

/// In characters.
const LONGEST_MESSAGE: usize = 1500;

/// The kinds of failure that make a difference to the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
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
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn message_of_a_failure_is_one_line_of_bounded_length() {
        let forged = Failure::new(
            FailureKind::Forbidden,
            "no\n2026-01-01 INFO all is well\u{1b}[2J",
        );
        assert_eq!(forged.message, "no\\n2026-01-01 INFO all is well\\u{1b}[2J");
        let long = Failure::new(FailureKind::Malformed, "\u{e4}".repeat(500_000));
        assert_eq!(long.message.chars().count(), LONGEST_MESSAGE + 3);
    }
}
