//! The files of one lease: where they are, their lock, and how one is replaced as a whole.
//!
//! Must not: know what is in them.

use std::{
    fmt::Display,
    fs::{self, DirBuilder, File, Metadata, OpenOptions, TryLockError},
    io::{self, ErrorKind, Read, Write as _},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{self, Mutex, MutexGuard},
    thread,
    time::{Duration, Instant},
};

use nix::{
    fcntl::OFlag,
    unistd::{AccessFlags, eaccess},
};

use crate::{
    lease::{Failure, FailureKind},
    names::{LeaseName, Namespace},
};

/// Where the files of one lease are.
#[derive(Debug)]
pub(super) struct Disk {
    /// The namespace's directory, which holds all of them.
    pub(super) folder: PathBuf,
    /// The lease as people see it.
    pub(super) lease: PathBuf,
    /// What the store must remember beside it.
    pub(super) ledger: PathBuf,
    lock: PathBuf,
    /// Held by the thread of this process that holds the lock.
    turn: Mutex<()>,
}

impl Disk {
    /// Checks that leases can be kept in `directory`, and makes what is ours to make in it.
    pub(super) fn open(
        directory: &Path,
        namespace: &Namespace,
        name: &LeaseName,
    ) -> Result<Self, Failure> {
        if name.len() > LONGEST_NAME {
            return Err(misconfigured(format!(
                "can't use the name {name:?}: it is longer than {LONGEST_NAME} bytes"
            )));
        }
        // A later change of the working directory must not move the lease.
        let directory =
            std::path::absolute(directory).map_err(|err| failed("find", directory, &err))?;
        check_directory(&directory)?;
        let folder = directory.join(&**namespace);
        let disk = Self {
            lease: folder.join(format!("{name}.json")),
            ledger: folder.join(format!(".{name}.ledger")),
            lock: folder.join(format!(".{name}.lock")),
            folder,
            turn: Mutex::new(()),
        };
        disk.make_folder()?;
        check_directory(&disk.folder)?;
        eaccess(
            &disk.folder,
            AccessFlags::R_OK | AccessFlags::W_OK | AccessFlags::X_OK,
        )
        .map_err(|err| failed("keep leases in", &disk.folder, &err.into()))?;
        disk.open_lock()?;
        Ok(disk)
    }

    /// Takes the lock, without which nothing may be written.
    ///
    /// A process that is stopped while it holds the lock must not hang all others, so the lock is
    /// tried for a limited time instead of waited for.
    pub(super) fn lock(&self) -> Result<Lock<'_>, Failure> {
        let limit = Instant::now() + LOCK_LIMIT;
        loop {
            let file = self.open_lock()?;
            if let Some(turn) = self.try_turn() {
                match file.try_lock() {
                    Ok(()) => {
                        let lock = Lock { file, _turn: turn };
                        if self.is_in_place(&lock)? {
                            return Ok(lock);
                        }
                    }
                    Err(TryLockError::WouldBlock) => drop(turn),
                    Err(TryLockError::Error(err)) => return Err(failed("lock", &self.lock, &err)),
                }
            }
            if Instant::now() >= limit {
                return Err(Failure::new(
                    FailureKind::Unreachable,
                    format!(
                        "can't lock {}: another process has held it for {LOCK_LIMIT:?} (is one stopped?)",
                        self.lock.display()
                    ),
                ));
            }
            thread::sleep(LOCK_RETRY);
        }
    }

    /// Calls `act` while no thread of this process holds the lock, and none can take it; after `limit`
    /// all the same.
    pub(super) fn while_unlocked(&self, limit: Duration, act: impl FnOnce()) {
        let since = Instant::now();
        let mut turn = self.try_turn();
        while turn.is_none() && since.elapsed() < limit {
            thread::sleep(LOCK_RETRY);
            turn = self.try_turn();
        }
        act();
        drop(turn);
    }

    fn try_turn(&self) -> Option<MutexGuard<'_, ()>> {
        match self.turn.try_lock() {
            Ok(turn) => Some(turn),
            // What it guards is nothing that a panic could have broken.
            Err(sync::TryLockError::Poisoned(broken)) => Some(broken.into_inner()),
            Err(sync::TryLockError::WouldBlock) => None,
        }
    }

    /// Makes sure that after a power failure the files are what they are now. What was renamed
    /// survives the end of any process without this.
    pub(super) fn sync(&self) -> Result<(), Failure> {
        let synced = File::open(&self.folder).and_then(|folder| folder.sync_all());
        match synced {
            // Some file systems do not know fsync(2) of a directory, and have no need of it.
            Err(err) if err.kind() == ErrorKind::InvalidInput => Ok(()),
            synced => synced.map_err(|err| failed("write", &self.folder, &err)),
        }
    }

    /// Opens the lock file. Rust sets O_CLOEXEC on every file it opens, so no command inherits it.
    fn open_lock(&self) -> Result<File, Failure> {
        let mut options = OpenOptions::new();
        options
            .read(true)
            .write(true)
            .custom_flags(OFlag::O_NOFOLLOW.bits());
        let opened = match options.open(&self.lock) {
            Err(err) if err.kind() == ErrorKind::NotFound => {
                self.make_folder()?;
                options.create(true).mode(self.mode()).open(&self.lock)
            }
            opened => opened,
        };
        opened.map_err(|err| failed("open", &self.lock, &err))
    }

    /// Whether the file that was locked is still the one that others will lock. We never remove a
    /// lock file, but somebody may have removed the whole folder.
    pub(super) fn is_in_place(&self, lock: &Lock<'_>) -> Result<bool, Failure> {
        let locked = lock.file.metadata();
        let locked = locked.map_err(|err| failed("look at", &self.lock, &err))?;
        match fs::symlink_metadata(&self.lock) {
            Ok(named) => Ok((named.dev(), named.ino()) == (locked.dev(), locked.ino())),
            Err(err) if err.kind() == ErrorKind::NotFound => Ok(false),
            Err(err) => Err(failed("look at", &self.lock, &err)),
        }
    }

    /// What a new file may be at most: whoever can read the lock file can lock it, and for as long as they
    /// like. So it is for those alone who may write to the folder, and never for all users.
    fn mode(&self) -> u32 {
        match fs::metadata(&self.folder) {
            Ok(folder) if folder.mode() & 0o020 != 0 => 0o660,
            _ => 0o600,
        }
    }

    fn make_folder(&self) -> Result<(), Failure> {
        match DirBuilder::new().mode(0o770).create(&self.folder) {
            Err(err) if err.kind() != ErrorKind::AlreadyExists => {
                Err(failed("create", &self.folder, &err))
            }
            _ => Ok(()),
        }
    }
}

/// The right to write, for as long as it lives.
#[derive(Debug)]
pub(super) struct Lock<'a> {
    file: File,
    /// Given back after the file is unlocked.
    _turn: MutexGuard<'a, ()>,
}

#[cfg(test)]
impl Lock<'_> {
    pub(super) fn file(&self) -> &File {
        &self.file
    }
}

impl Drop for Lock<'_> {
    /// Unlocks instead of only closing: the lock belongs to the open file, of which a process that
    /// is being forked at this moment may have a copy until it has called execve(2).
    fn drop(&mut self) {
        // It can't fail for a lock that is held; if it did, closing would release it all the same.
        let _ = self.file.unlock();
    }
}

/// The content of a text file, `None` if there is none.
pub(super) fn read_text(path: &Path) -> Result<Option<String>, Failure> {
    // Who opens a FIFO waits for a writer otherwise.
    let mut options = OpenOptions::new();
    options.read(true).custom_flags(OFlag::O_NONBLOCK.bits());
    let file = match options.open(path) {
        Ok(file) => file,
        Err(err) if err.kind() == ErrorKind::NotFound => return Ok(None),
        Err(err) => return Err(failed("read", path, &err)),
    };
    let kind = file.metadata().map_err(|err| failed("read", path, &err))?;
    if !kind.is_file() {
        return Err(malformed(path, "it is not a file"));
    }
    // Room for what we write ourselves: one read(2) for it and one for the end, instead of six.
    let mut content = Vec::with_capacity(4096);
    file.take(LARGEST_FILE + 1)
        .read_to_end(&mut content)
        .map_err(|err| failed("read", path, &err))?;
    if content.len() as u64 > LARGEST_FILE {
        let sentence = format!("it is larger than {LARGEST_FILE} bytes");
        return Err(malformed(path, sentence));
    }
    let text = String::from_utf8(content);
    text.map(Some)
        .map_err(|_| malformed(path, "it is not UTF-8"))
}

/// A new content of a file, complete and on the disk, but under another name as yet.
///
/// The name is the same each time, so what a killed process left behind is replaced by the next
/// write; the lock keeps two from writing it at once.
#[derive(Debug)]
pub(super) struct Staged<'a> {
    path: &'a Path,
    staged: PathBuf,
}

impl<'a> Staged<'a> {
    /// Writes `text` beside `path`. If that fails (a full disk, say), nothing of it stays behind.
    pub(super) fn write(path: &'a Path, text: &str, lock: &Lock<'_>) -> Result<Self, Failure> {
        let mut staged = path.as_os_str().to_owned();
        staged.push(STAGED_SUFFIX);
        let staged = PathBuf::from(staged);
        let this = Self { path, staged };
        this.remove();
        // It is for those who may lock. `create_new` neither follows a link nor opens what another process
        // put there.
        let mode = |lock: Metadata| lock.mode() & 0o660;
        let mut options = OpenOptions::new();
        options.write(true).create_new(true);
        lock.file
            .metadata()
            .and_then(|lock| options.mode(mode(lock)).open(&this.staged))
            .and_then(|mut file| {
                file.write_all(text.as_bytes())?;
                // Without it the rename may reach the disk before the content does.
                file.sync_all()
            })
            .map_err(|err| failed("write", &this.staged, &err))?;
        Ok(this)
    }

    /// Puts the new content in place of the old one, at once: who reads sees one or the other.
    pub(super) fn commit(self) -> Result<(), Failure> {
        fs::rename(&self.staged, self.path).map_err(|err| failed("replace", self.path, &err))
    }

    fn remove(&self) {
        // It need not be there; if it can't be removed, creating it says why.
        let _ = fs::remove_file(&self.staged);
    }
}

impl Drop for Staged<'_> {
    fn drop(&mut self) {
        self.remove();
    }
}

/// The failure of one operation on one file, whose kind says whether a repetition may help.
pub(super) fn failed(what: &str, path: &Path, err: &io::Error) -> Failure {
    let kind = match err.kind() {
        ErrorKind::NotFound
        | ErrorKind::NotADirectory
        | ErrorKind::IsADirectory
        | ErrorKind::PermissionDenied
        | ErrorKind::ReadOnlyFilesystem => FailureKind::Misconfigured,
        // A full disk, an I/O error, too many open files: it may pass.
        _ => FailureKind::Unreachable,
    };
    Failure::new(kind, format!("can't {what} {}: {err}", path.display()))
}

/// What is in the file is not what it should be.
pub(super) fn malformed(path: &Path, sentence: impl Display) -> Failure {
    Failure::new(
        FailureKind::Malformed,
        format!("can't understand {}: {sentence}", path.display()),
    )
}

fn misconfigured(message: String) -> Failure {
    Failure::new(FailureKind::Misconfigured, message)
}

fn check_directory(path: &Path) -> Result<(), Failure> {
    match fs::metadata(path) {
        Ok(found) if found.is_dir() => Ok(()),
        Ok(_) => Err(misconfigured(format!(
            "can't keep leases in {}: it is not a directory",
            path.display()
        ))),
        Err(err) => Err(failed("keep leases in", path, &err)),
    }
}

const STAGED_SUFFIX: &str = ".new";

/// In bytes. Kubernetes allows 253, Linux 255 for a file's name, of which `.NAME.ledger.new` takes
/// twelve.
const LONGEST_NAME: usize = 243;

/// In bytes; an API server stores no larger objects either (etcd's `--max-request-bytes` is 1.5 MiB).
const LARGEST_FILE: u64 = 1 << 20;

/// How long the lock is tried. A write takes a few milliseconds, on a slow disk some tens; and the
/// caller's own limit (2 s by default) must be longer, or its user would never read which lock it is.
pub(super) const LOCK_LIMIT: Duration = Duration::from_secs(1);

/// How soon the lock is tried again. The rename wakes a standby while the writer still holds the lock
/// for the directory's fsync, so this is part of every hand-over.
const LOCK_RETRY: Duration = Duration::from_micros(200);
