//! What an API server does not do: other hands on the files, deaths, disks and clocks. What the two
//! stores have in common is tested with both, in `tests/it/store_contract.rs`.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{
        Barrier,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use tempfile::TempDir;

use super::{disk::LOCK_LIMIT, *};
use crate::{
    lease::{Change, Identity, Record},
    store::Watch,
};

mod by_hand;
mod damaged;
mod deaths;
mod place;
mod versions;
mod watching;

/// Generous, for a loaded machine; no test that passes waits this long.
const LIMIT: Duration = Duration::from_secs(30);

fn directory() -> TempDir {
    tempfile::tempdir().unwrap()
}

fn opened(directory: &Path, namespace: &str, name: &str) -> Result<FileStore, Failure> {
    let namespace = Namespace::new(namespace).unwrap();
    FileStore::open(directory, &namespace, &LeaseName::new(name).unwrap())
}

fn open(directory: &TempDir) -> FileStore {
    opened(directory.path(), "ops", "nightly").unwrap()
}

fn record(holder: &str, micros: i64) -> Record {
    Record {
        holder: Identity::new(holder),
        duration: Some(Duration::from_secs(15)),
        acquire_time: Some(WallTime { unix_micros: 0 }),
        renew_time: Some(WallTime {
            unix_micros: micros,
        }),
        transitions: 0,
        strategy: None,
    }
}

fn write(store: &FileStore, base: Option<&Claim>, record: Record) -> Outcome {
    let base = base.cloned();
    store.file.write(&Write { base, record }).unwrap()
}

#[track_caller]
fn written(store: &FileStore, base: Option<&Claim>, record: Record) -> Claim {
    match write(store, base, record) {
        Outcome::Written(claim) => claim,
        Outcome::Conflict => panic!("conflict"),
    }
}

#[track_caller]
fn read(store: &FileStore) -> Claim {
    store
        .file
        .claim(&store.file.read().unwrap())
        .unwrap()
        .unwrap()
}

fn is_absent(store: &FileStore) -> bool {
    let sight = store.file.read().unwrap();
    store.file.claim(&sight).unwrap().is_none()
}

/// Does what an editor does: changes the text, under the same name or with a rename.
fn edit(store: &FileStore, from: &str, to: &str) {
    let text = fs::read_to_string(store.path()).unwrap();
    assert!(text.contains(from), "{from} is not in {text}");
    let beside = store.path().with_extension("swp");
    fs::write(&beside, text.replace(from, to)).unwrap();
    fs::rename(&beside, store.path()).unwrap();
}

fn names(store: &FileStore) -> BTreeSet<String> {
    fs::read_dir(&store.file.disk.folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

fn number(claim: &Claim) -> u64 {
    claim.version.as_str().parse().unwrap()
}

/// Returns what `condition` finds as soon as it finds something.
#[track_caller]
fn until<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let limit = Instant::now() + LIMIT;
    loop {
        if let Some(found) = condition() {
            return found;
        }
        assert!(
            Instant::now() < limit,
            "waited {LIMIT:?} in vain until {what}"
        );
        thread::sleep(Duration::from_millis(1));
    }
}

/// A file system of one test's own, which only root can have.
struct Mount(PathBuf);

impl Mount {
    fn tmpfs(at: &Path, options: &str) -> Option<Self> {
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(at);
        match mount.output() {
            Ok(output) if output.status.success() => Some(Self(at.to_owned())),
            refused => {
                eprintln!("SKIPPED: this part of the test needs to mount a tmpfs: {refused:?}");
                None
            }
        }
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}
