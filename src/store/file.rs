//! The file store: leases of one machine, in a directory, for trying things and for tests.
//!
//! A lease is `DIR/NAMESPACE/NAME.json`, a Lease as kubectl reads and writes it. Two files beside it
//! are ours: `.NAME.lock`, which is locked (flock(2)) around every read-compare-write and is never
//! removed or replaced, and `.NAME.ledger`, which remembers what must survive the lease's removal.
//!
//! The contract is an API server's:
//!
//! - Every write gets a version above all earlier ones of that lease, also when somebody has removed
//!   the file in between: the ledger with the new version is in place *before* the lease is, so that
//!   no death between the two gives a version twice.
//! - Files change as a whole: written beside, fsync(2), rename(2). A reader never sees half of one,
//!   and neither SIGKILL at any instant nor a full disk harms what is stored.
//! - A change made by somebody else (an editor, `jq`, `kubectl get -o json >`, `rm`) is noticed by
//!   comparing the file with the ledger, byte by byte, and then given what an API server would have
//!   given it: the next version, and a uid of its own if it isn't the object that was there. The
//!   election takes a lease over only on a version that has stood still, and this is why none stands
//!   still under a change. What was half written when a process was killed is treated the same.
//!   An edit in the microseconds between our last look and our rename is lost: editors don't lock.
//! - A file that is empty, or is not a Lease that makes sense, is a failure and never overwritten.
//! - How long ago a lease was written counts on CLOCK_BOOTTIME, from when this boot wrote it or first
//!   noticed it. The wall clock has no part in it.
//!
//! Files are for their owner, and for the group of the directory of the namespace where the group may
//! write to it (0600 or 0660, and what the umask leaves of that): whoever could read the lock file could
//! lock all others out. They belong to the user who wrote last.
//!
//! Must not: retry a write, judge whether a lease has expired, hold a lock longer than one operation.

use std::{path::Path, sync::Arc, time::Duration};

use jiff::Timestamp;
use serde_json::{Map, Value, json};
use uuid::Uuid;

use self::{
    disk::{Disk, Lock, Staged, malformed, read_text},
    ledger::{BootClock, Ledger, Presence, Stamp, Stamps},
};
use super::{Store, json as lease_json};
use crate::{
    clock::WallTime,
    lease::{Claim, Failure, FailureKind, Outcome, Version, Write},
    names::{LeaseName, Namespace},
};

pub use self::watch::FileWatch;

mod disk;
mod ledger;
#[cfg(test)]
mod tests;
mod watch;

/// A lease in a directory of this machine.
#[derive(Clone, Debug)]
pub struct FileStore {
    file: Arc<LeaseFile>,
}

impl FileStore {
    /// Opens the lease NAME of NAMESPACE under `directory`, which must exist: a mistyped path shall
    /// not become a second place where everybody is elected. What is in it is made as needed.
    ///
    /// # Errors
    ///
    /// [`FailureKind::Misconfigured`] if the directory is missing, is none, or can't be written to,
    /// or if the name is too long for a file's, at more than 243 bytes; [`FailureKind::Unreachable`] for a full disk and the like.
    pub fn open(
        directory: &Path,
        namespace: &Namespace,
        name: &LeaseName,
    ) -> Result<Self, Failure> {
        let file = LeaseFile {
            disk: Disk::open(directory, namespace, name)?,
            namespace: namespace.clone(),
            name: name.clone(),
            clock: BootClock::of_this_boot(),
        };
        Ok(Self {
            file: Arc::new(file),
        })
    }

    /// The directory that was opened, as an absolute path.
    pub fn directory(&self) -> &Path {
        let folder = &self.file.disk.folder;
        folder.parent().unwrap_or(folder)
    }

    /// The file that people may look at.
    pub fn path(&self) -> &Path {
        &self.file.disk.lease
    }
}

impl Store for FileStore {
    type Watch = FileWatch;

    async fn read(&self) -> Result<Option<Claim>, Failure> {
        blocking(&self.file, |file| file.claim(&file.read()?)).await
    }

    async fn write(&self, write: Write) -> Result<Outcome, Failure> {
        blocking(&self.file, move |file| file.write(&write)).await
    }

    fn watch(&self, from: Option<Version>) -> FileWatch {
        FileWatch::new(Arc::clone(&self.file), from)
    }

    fn while_idle(&self, limit: Duration, act: impl FnOnce()) {
        self.file.disk.while_unlocked(limit, act);
    }
}

/// Does `work` where it may block. If the caller gives up it is done all the same, which is harmless:
/// every write is a compare-and-swap.
async fn blocking<T: Send + 'static>(
    file: &Arc<LeaseFile>,
    work: impl FnOnce(&LeaseFile) -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    let file = Arc::clone(file);
    let done = tokio::task::spawn_blocking(move || work(&file)).await;
    done.unwrap_or_else(|err| {
        Err(Failure::new(
            FailureKind::Unreachable,
            format!("can't finish a file operation: {err}"),
        ))
    })
}

/// The lease's files and what they mean.
#[derive(Debug)]
struct LeaseFile {
    disk: Disk,
    namespace: Namespace,
    name: LeaseName,
    clock: BootClock,
}

/// The files as they were at one moment.
#[derive(Debug)]
struct Sight {
    /// Before they were read, so that no age comes out too long.
    now: Option<Stamp>,
    text: Option<String>,
    ledger: Option<Ledger>,
}

impl Sight {
    /// Whether the ledger tells of exactly this file, so that what is in it is what we wrote and the
    /// version in it is right.
    fn is_settled(&self) -> bool {
        let now = self.now.as_ref();
        match (&self.text, &self.ledger) {
            (None, None) => true,
            (None, Some(ledger)) => ledger.presence == Presence::Deleted,
            (Some(_), None) => false,
            (Some(text), Some(ledger)) => {
                ledger.presence == Presence::Stored
                    && ledger.text == *text
                    && ledger.created.know(now)
                    && ledger.written.know(now)
            }
        }
    }

    /// Whether the file is, or was until it was removed, the one that the ledger tells of.
    fn matches_ledger(&self) -> bool {
        let known = self.ledger.as_ref();
        let known = known.filter(|ledger| ledger.presence == Presence::Stored);
        self.text.as_deref() == known.map(|ledger| ledger.text.as_str())
    }
}

impl LeaseFile {
    /// Sees the files in a settled state.
    ///
    /// Mostly without the lock: the text is read before the ledger, and the ledger is in place before
    /// the text that it tells of, so if they agree the text was what is stored when it was read.
    fn read(&self) -> Result<Sight, Failure> {
        let sight = self.look()?;
        if sight.is_settled() {
            return Ok(sight);
        }
        self.settle(&self.disk.lock()?)
    }

    /// Carries out one compare-and-swap.
    fn write(&self, write: &Write) -> Result<Outcome, Failure> {
        let lock = self.disk.lock()?;
        let sight = self.settle(&lock)?;
        let current = self.claim(&sight)?;
        let object = match (&write.base, current) {
            (None, None) => {
                let mut object = lease_json::new_object(&self.namespace, &self.name, &write.record);
                set_origin(&mut object, &Uuid::new_v4().to_string());
                object
            }
            // The object is compared as well: should version and uid ever match by accident (the
            // ledger was removed, a file of another machine was copied here), nothing is lost.
            (Some(base), Some(current))
                if base.uid == current.uid
                    && base.version == current.version
                    && base.object == current.object =>
            {
                let object = lease_json::object_with_record(&current, &write.record);
                // As an API server does: what changes nothing gets no version.
                if object == *current.object.0 {
                    return Ok(Outcome::Written(current));
                }
                object
            }
            _ => return Ok(Outcome::Conflict),
        };
        match self.replace(&lock, &sight, object)? {
            Some(sight) => {
                let claim = self.claim(&sight)?;
                Ok(claim.map_or(Outcome::Conflict, Outcome::Written))
            }
            None => Ok(Outcome::Conflict),
        }
    }

    /// The claim that a settled sight shows, with its ages.
    fn claim(&self, sight: &Sight) -> Result<Option<Claim>, Failure> {
        let (Some(text), Some(ledger)) = (&sight.text, &sight.ledger) else {
            return Ok(None);
        };
        let mut claim = self.claim_from_text(text)?;
        claim.created_ago = ledger.created.age(sight.now.as_ref());
        claim.written_ago = ledger.written.age(sight.now.as_ref());
        Ok(Some(claim))
    }

    /// What was stored last before it was deleted, with the version of the deletion; `None` if a
    /// settled sight shows no deletion.
    fn deleted_claim(&self, sight: &Sight) -> Result<Option<Claim>, Failure> {
        let deleted = |ledger: &&Ledger| ledger.presence == Presence::Deleted;
        let Some(ledger) = sight.ledger.as_ref().filter(deleted) else {
            return Ok(None);
        };
        let mut object = self.parse(&ledger.text)?;
        set_metadata(&mut object, "resourceVersion", &ledger.version.to_string());
        self.claim_from_object(object).map(Some)
    }

    fn look(&self) -> Result<Sight, Failure> {
        let now = self.clock.now();
        let text = read_text(&self.disk.lease)?;
        let ledger = match read_text(&self.disk.ledger)? {
            None => None,
            Some(ledger) => Some(Ledger::from_text(&ledger).ok_or_else(|| {
                malformed(
                    &self.disk.ledger,
                    "it is not a ledger that lease-exec wrote",
                )
            })?),
        };
        Ok(Sight { now, text, ledger })
    }

    /// Looks, and gives whatever somebody else did since our last write the version that it lacks.
    fn settle(&self, lock: &Lock) -> Result<Sight, Failure> {
        let sight = self.look()?;
        if sight.is_settled() {
            return Ok(sight);
        }
        if !sight.matches_ledger() {
            return match &sight.text {
                Some(text) => self.adopt(lock, &sight, text),
                None => self.settle_ledger(lock, sight, |ledger| {
                    ledger.presence = Presence::Deleted;
                    ledger.version = next_version(ledger.version)?;
                    Some(())
                }),
            };
        }
        let now = sight.now.clone();
        self.settle_ledger(lock, sight, |ledger| {
            ledger.created.notice(now.as_ref());
            ledger.written.notice(now.as_ref());
            Some(())
        })
    }

    /// Writes a changed ledger about a file that stays as it is.
    fn settle_ledger(
        &self,
        lock: &Lock,
        sight: Sight,
        change: impl FnOnce(&mut Ledger) -> Option<()>,
    ) -> Result<Sight, Failure> {
        let mut ledger = sight.ledger;
        if let Some(ledger) = &mut ledger {
            change(ledger).ok_or_else(|| self.versions_used_up())?;
            Staged::write(&self.disk.ledger, &ledger.to_text(), lock)?.commit()?;
        }
        Ok(Sight { ledger, ..sight })
    }

    /// Stores anew, as an API server would have, what somebody put in the place of the lease file.
    fn adopt(&self, lock: &Lock, sight: &Sight, text: &str) -> Result<Sight, Failure> {
        let mut object = self.parse(text)?;
        let metadata = object.get("metadata").unwrap_or(&Value::Null);
        for (field, expected) in [("name", &*self.name), ("namespace", &*self.namespace)] {
            let found = metadata.get(field).filter(|found| !found.is_null());
            if let Some(found) = found.filter(|found| *found != expected) {
                return Err(malformed(
                    &self.disk.lease,
                    format!("its metadata.{field} is {found}, not {expected:?}"),
                ));
            }
        }
        let uid = metadata.get("uid").and_then(Value::as_str);
        let known = sight.ledger.as_ref();
        let known = known.filter(|ledger| ledger.presence == Presence::Stored);
        match known.filter(|ledger| uid == Some(&ledger.uid)) {
            Some(_) => {}
            None => set_origin(&mut object, &Uuid::new_v4().to_string()),
        }
        set_metadata(&mut object, "name", &self.name);
        set_metadata(&mut object, "namespace", &self.namespace);
        let adopted = self.replace(lock, sight, object)?;
        adopted.ok_or_else(|| {
            Failure::new(
                FailureKind::Unreachable,
                format!(
                    "can't read {}: it is being changed at this moment",
                    self.disk.lease.display()
                ),
            )
        })
    }

    /// Puts `object` with the next version in the place of what `sight` shows; `None` if something
    /// else is there by now.
    fn replace(
        &self,
        lock: &Lock,
        sight: &Sight,
        mut object: Value,
    ) -> Result<Option<Sight>, Failure> {
        let version = self.version_after(sight, &object)?;
        set_metadata(&mut object, "resourceVersion", &version.to_string());
        // Nothing that could not be read back is ever written.
        let uid = self.claim_from_object(object.clone())?.uid.0;
        let text = format!("{object:#}\n");
        let known = sight.ledger.as_ref().filter(|ledger| ledger.uid == uid);
        let mut created = known
            .map(|ledger| ledger.created.clone())
            .unwrap_or_default();
        created.notice(sight.now.as_ref());
        let ledger = Ledger {
            version,
            uid,
            presence: Presence::Stored,
            text: text.clone(),
            created,
            written: Stamps::at(sight.now.as_ref()),
        };
        // Both are complete on the disk before either is put in place, so a disk that is full
        // changes nothing; and the last look is as late as can be.
        let staged_lease = Staged::write(&self.disk.lease, &text, lock)?;
        let staged_ledger = Staged::write(&self.disk.ledger, &ledger.to_text(), lock)?;
        if read_text(&self.disk.lease)? != sight.text {
            return Ok(None);
        }
        staged_ledger.commit()?;
        staged_lease.commit()?;
        self.disk.sync()?;
        Ok(Some(Sight {
            now: sight.now.clone(),
            text: Some(text),
            ledger: Some(ledger),
        }))
    }

    /// The version of the next write. Without a ledger, which happens to a file that was put here by
    /// hand or whose ledger was removed, it is above the one that the file itself claims.
    fn version_after(&self, sight: &Sight, object: &Value) -> Result<u64, Failure> {
        let claimed = || {
            let version = object.pointer("/metadata/resourceVersion")?.as_str()?;
            version.parse().ok()
        };
        let last = match &sight.ledger {
            Some(ledger) => ledger.version,
            None => claimed().unwrap_or(0),
        };
        next_version(last).ok_or_else(|| self.versions_used_up())
    }

    fn versions_used_up(&self) -> Failure {
        malformed(&self.disk.lease, "no higher resourceVersion can be given")
    }

    fn claim_from_text(&self, text: &str) -> Result<Claim, Failure> {
        self.claim_from_object(self.parse(text)?)
    }

    fn claim_from_object(&self, object: Value) -> Result<Claim, Failure> {
        lease_json::claim_from_object(object, None)
            .map_err(|failure| malformed(&self.disk.lease, failure.message))
    }

    /// Reads JSON that can be a Lease. That the fields make sense is checked where they are used.
    fn parse(&self, text: &str) -> Result<Value, Failure> {
        let path = &self.disk.lease;
        if text.trim().is_empty() {
            return Err(malformed(path, "it is empty (remove it to free the lease)"));
        }
        let object: Value = serde_json::from_str(text)
            .map_err(|err| malformed(path, format!("it is not JSON: {err}")))?;
        if !object.is_object() {
            return Err(malformed(path, "it is not a JSON object"));
        }
        for (field, expected) in [("apiVersion", "coordination.k8s.io/v1"), ("kind", "Lease")] {
            let found = object.get(field).unwrap_or(&Value::Null);
            if found != expected {
                let sentence = format!("its {field} is {found}, not {expected:?}");
                return Err(malformed(path, sentence));
            }
        }
        match object.get("metadata") {
            None | Some(Value::Null | Value::Object(_)) => Ok(object),
            Some(metadata) => {
                let sentence = format!("its metadata is {metadata}, not an object");
                Err(malformed(path, sentence))
            }
        }
    }
}

/// Makes it an object that begins to exist now.
fn set_origin(object: &mut Value, uid: &str) {
    set_metadata(object, "uid", uid);
    let now = Timestamp::from_second(WallTime::now().unix_seconds()).unwrap_or(Timestamp::MAX);
    set_metadata(object, "creationTimestamp", &now.to_string());
}

/// Sets a field of the metadata of what is known to be a JSON object.
fn set_metadata(object: &mut Value, field: &str, value: &str) {
    let metadata = &mut object["metadata"];
    if !metadata.is_object() {
        *metadata = Value::Object(Map::new());
    }
    metadata[field] = json!(value);
}

fn next_version(version: u64) -> Option<u64> {
    version.checked_add(1)
}
