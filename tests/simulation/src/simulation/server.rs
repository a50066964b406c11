//! The API server and etcd as far as one Lease goes: what a PUT, a GET, a DELETE and a watch do.
//!
//! The rules are those of `pkg/registry/coordination/lease/strategy.go` and of the generic registry
//! in kubernetes/apiserver; the contract tests of the program's stores hold each of them against a
//! real server. Everything here happens at once: what a network makes of it is the wire's.

use std::{collections::VecDeque, rc::Rc, time::Duration};

use crate::lease::{Change, Claim, Object, Record, Uid, Version};

/// How many events a watch can be given later; what is older is compacted.
const EVENTS: usize = 64;

/// Any time; what counts are differences.
const EPOCH_MICROS: i64 = 1_790_000_000_000_000;

#[derive(Debug)]
pub(super) struct Server {
    stored: Option<Stored>,
    revision: u64,
    compacted: u64,
    uids: u64,
    events: VecDeque<(u64, Rc<Change>)>,
    /// The namespace is being deleted: nothing can be created in it.
    pub(super) terminating: bool,
    /// How much the clock of each API server is fast, in microseconds.
    clocks: Vec<i64>,
}

/// The object.
#[derive(Clone, Debug)]
pub(super) struct Stored {
    pub(super) claim: Claim,
    pub(super) revision: u64,
    /// When this version was written, in true time.
    pub(super) committed: u64,
    /// When lease-exec last wrote, in true time; what `renewed` tells by a server's clock.
    pub(super) written: u64,
    /// The managedFields time of the entry that owns `renewTime`, in seconds, if lease-exec does.
    renewed: Option<i64>,
    created: i64,
}

/// The body and the preconditions of a PUT.
#[derive(Clone, Debug)]
pub(super) struct Put {
    pub(super) uid: Option<Uid>,
    pub(super) version: Option<Version>,
    pub(super) record: Record,
    pub(super) by: Writer,
}

/// Who writes: it decides who owns the `renewTime` in managedFields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Writer {
    LeaseExec,
    /// Somebody who leaves `renewTime` alone.
    Editor,
    /// Somebody who writes `renewTime` as well.
    Stranger,
}

/// What a PUT leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Status {
    Created,
    Updated,
    /// 200, but with nothing written.
    Unchanged,
    /// 409
    Conflict,
    /// 422
    Invalid,
    /// 403, for the namespace.
    Terminating,
}

/// Which API server answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Replica(pub(super) usize);

/// The version is compacted (410).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Gone;

impl Server {
    pub(super) fn new(revision: u64, clocks: Vec<i64>) -> Self {
        Self {
            stored: None,
            revision,
            compacted: 0,
            uids: 0,
            events: VecDeque::with_capacity(EVENTS + 1),
            terminating: false,
            clocks,
        }
    }

    pub(super) fn replicas(&self) -> usize {
        self.clocks.len()
    }

    pub(super) fn revision(&self) -> u64 {
        self.revision
    }

    pub(super) fn stored(&self) -> Option<&Stored> {
        self.stored.as_ref()
    }

    /// A quorum read.
    pub(super) fn read(&self, now: u64, replica: Replica) -> Option<Claim> {
        let stored = self.stored.as_ref()?;
        let date = self.seconds(now, replica);
        let mut claim = stored.claim.clone();
        // A store that sees a negative age is not certain.
        let ago = |at: i64| u64::try_from(date - at).ok().map(Duration::from_secs);
        claim.written_ago = stored.renewed.and_then(ago);
        claim.created_ago = ago(stored.created);
        Some(claim)
    }

    /// Carries out a PUT, and says with which object it is answered if it succeeds.
    pub(super) fn put(&mut self, now: u64, replica: Replica, put: Put) -> Status {
        let Some(stored) = &self.stored else {
            if put.uid.is_some() {
                return Status::Conflict;
            }
            if self.terminating {
                return Status::Terminating;
            }
            // The version is not looked at: there is nothing to compare it with.
            self.create(now, replica, put.record, put.by);
            return Status::Created;
        };
        if put.uid.is_none() && put.version.is_none() {
            return Status::Invalid;
        }
        if put.uid.is_some_and(|uid| uid != stored.claim.uid) {
            return Status::Conflict;
        }
        match put.version {
            None => return Status::Invalid,
            Some(version) if version != stored.claim.version => return Status::Conflict,
            Some(_) => {}
        }
        if put.record == stored.claim.record {
            return Status::Unchanged;
        }
        self.update(now, replica, put.record, put.by);
        Status::Updated
    }

    /// Deletes the object, if there is one.
    pub(super) fn delete(&mut self) {
        let Some(stored) = self.stored.take() else {
            return;
        };
        let version = self.next_revision();
        let claim = Claim {
            version,
            ..stored.claim
        };
        self.log(Change::Deleted(claim));
    }

    /// Changes the object in any way, whoever holds it, if there is one.
    pub(super) fn edit(&mut self, now: u64, by: Writer, change: impl FnOnce(&mut Record)) {
        let Some(stored) = &self.stored else {
            return;
        };
        let mut record = stored.claim.record.clone();
        change(&mut record);
        self.update(now, Replica(0), record, by);
    }

    /// The events after this version, oldest first.
    pub(super) fn events_after(&self, version: u64) -> Result<Vec<Rc<Change>>, Gone> {
        if version < self.compacted {
            return Err(Gone);
        }
        let newer = self.events.iter().filter(|(at, _)| *at > version);
        Ok(newer.map(|(_, change)| Rc::clone(change)).collect())
    }

    pub(super) fn last_event(&self) -> Option<Rc<Change>> {
        self.events.back().map(|(_, change)| Rc::clone(change))
    }

    /// Forgets all events, as etcd does every five minutes.
    pub(super) fn compact(&mut self) {
        self.events.clear();
        self.compacted = self.revision;
    }

    /// Other objects are written as well.
    pub(super) fn skip(&mut self, revisions: u64) {
        self.revision += revisions;
    }

    fn create(&mut self, now: u64, replica: Replica, record: Record, by: Writer) {
        self.uids += 1;
        let version = self.next_revision();
        let seconds = self.seconds(now, replica);
        let claim = Claim {
            uid: Uid(format!("uid-{}", self.uids)),
            version,
            record,
            written_ago: None,
            created_ago: None,
            object: Object::default(),
        };
        self.stored = Some(Stored {
            claim: claim.clone(),
            revision: self.revision,
            committed: now,
            written: now,
            renewed: (by == Writer::LeaseExec).then_some(seconds),
            created: seconds,
        });
        self.log(Change::Written(claim));
    }

    fn update(&mut self, now: u64, replica: Replica, record: Record, by: Writer) {
        let version = self.next_revision();
        let seconds = self.seconds(now, replica);
        let revision = self.revision;
        let Some(stored) = &mut self.stored else {
            return;
        };
        stored.claim.version = version;
        stored.claim.record = record;
        stored.revision = revision;
        stored.committed = now;
        match by {
            Writer::LeaseExec => {
                stored.written = now;
                stored.renewed = Some(seconds);
            }
            Writer::Editor => {}
            Writer::Stranger => stored.renewed = None,
        }
        let claim = stored.claim.clone();
        self.log(Change::Written(claim));
    }

    fn log(&mut self, change: Change) {
        self.events.push_back((self.revision, Rc::new(change)));
        if self.events.len() > EVENTS
            && let Some((version, _)) = self.events.pop_front()
        {
            self.compacted = version;
        }
    }

    fn next_revision(&mut self) -> Version {
        self.revision += 1;
        version(self.revision)
    }

    fn seconds(&self, now: u64, replica: Replica) -> i64 {
        let now = i64::try_from(now).expect("a few days");
        (EPOCH_MICROS + now + self.clocks[replica.0]).div_euclid(1_000_000)
    }
}

/// A revision as the API shows it.
pub(super) fn version(revision: u64) -> Version {
    Version::new(revision.to_string()).expect("revisions are positive decimal numbers")
}

/// The revision behind a version that this server made.
pub(super) fn revision(version: &Version) -> u64 {
    version.as_str().parse().expect("made by this server")
}

#[cfg(test)]
mod tests;
