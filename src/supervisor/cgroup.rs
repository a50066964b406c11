//! The leaf: a cgroup (v2) of the command's own, in which it is born and its whole tree stays.
//!
//! One write to `cgroup.kill` kills everything in it, atomically against fork, also processes that
//! have become other users, that sit in nested cgroups or that are frozen, see "Core Interface
//! Files" in the kernel's admin-guide/cgroup-v2. Front and guard are never in it, or they would die
//! of it too.
//!
//! The leaf is a child of the cgroup that we are in. It is locked (flock(2)) as long as front or guard
//! lives, and marked once it is locked: one that bears the mark and is not locked was left behind by a
//! lease-exec that was killed. Others' cgroups may have any name, ours included, but not the mark.
//!
//! Must not: allocate, but where leaves and what others have left are made and looked for.

use std::{
    ffi::{CStr, CString},
    fs::File,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
    time::Duration,
};

use anyhow::{Context, Result};
use nix::{
    errno::Errno,
    fcntl::{OFlag, openat},
    sys::{
        stat::{Mode, mkdirat},
        uio::pread,
    },
    unistd::{UnlinkatFlags, unlinkat, write},
};
use uuid::Uuid;

use super::sys;

mod place;
mod remains;

/// The cgroup (v2) that this process is in, where leaves of all kin are made.
pub(super) struct Place {
    directory: OwnedFd,
    kin: String,
}

impl Place {
    /// Finds it. The leaves made in it are for commands that must not run beside others of this kin.
    ///
    /// # Errors
    ///
    /// If there is none that we may use, which is no failure: where cgroups are of version 1, or belong
    /// to somebody else.
    pub(super) fn open(kin: u64) -> Result<Self> {
        Ok(Self {
            directory: place::open_own()?,
            kin: format!("{kin:016x}"),
        })
    }

    /// Ends and removes what killed lease-execs of any kin have left, as far as that is done at once.
    /// The names of those leaves in which somebody lived are added to `emptied`.
    pub(super) fn tidy(&self, emptied: &mut Vec<String>) {
        // Before the command starts it is tried again, and then it counts.
        let _ = remains::end_all(&self.directory, None, remains::PATIENCE, emptied);
    }

    /// Ends and removes what killed lease-execs have left, and waits for what is of our kin.
    ///
    /// # Errors
    ///
    /// If somebody of our kin is left after `limit`.
    pub(super) fn end_our_kin(&self, limit: Duration, emptied: &mut Vec<String>) -> Result<()> {
        remains::end_all(&self.directory, Some(self.kin.as_bytes()), limit, emptied)
    }
}

/// A cgroup of the command's own.
pub(super) struct Leaf {
    parent: OwnedFd,
    name: CString,
    /// Locked.
    directory: OwnedFd,
    kill: OwnedFd,
    events: OwnedFd,
}

impl Leaf {
    /// Makes one.
    ///
    /// # Errors
    ///
    /// If none can be made, which is no failure: where we may not, where there are too many, or where
    /// the kernel is older than 5.14.
    pub(super) fn make(place: &Place) -> Result<Self> {
        let mut attempt = Self::try_to_make(place);
        for _ in 1..ATTEMPTS {
            if let Ok(leaf) = attempt {
                return Ok(leaf);
            }
            attempt = Self::try_to_make(place);
        }
        attempt
    }

    fn try_to_make(place: &Place) -> Result<Self> {
        let parent = place
            .directory
            .try_clone()
            .context("can't make a descriptor")?;
        // Who shares this cgroup may be in another PID namespace, and have the same pid.
        let (random, ..) = Uuid::new_v4().as_fields();
        let name = format!("{PREFIX}{}-{random:08x}-{}", std::process::id(), place.kin);
        let name = CString::new(name).context("can't name a cgroup")?;
        mkdirat(&parent, name.as_c_str(), MODE).context("can't make a cgroup")?;
        match open_files(&parent, &name) {
            Ok([directory, kill, events]) => Ok(Self {
                parent,
                name,
                directory,
                kill,
                events,
            }),
            Err(error) => {
                let _ = unlinkat(&parent, name.as_c_str(), UnlinkatFlags::RemoveDir);
                Err(error.context("can't prepare the cgroup that was made"))
            }
        }
    }

    /// The directory, to be born into.
    pub(super) fn directory(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }

    /// Its name, for people.
    pub(super) fn name(&self) -> String {
        self.name.to_string_lossy().into_owned()
    }

    /// The numbers of all that is open.
    pub(super) fn descriptors(&self) -> [RawFd; 4] {
        [&self.parent, &self.directory, &self.kill, &self.events].map(AsRawFd::as_raw_fd)
    }

    /// Sends SIGKILL to everybody in it.
    pub(super) fn kill(&self) {
        // The only answer that matters is that nobody is left in the end.
        let _ = write(&self.kill, b"1");
    }

    /// Whether somebody is in it, or may be.
    pub(super) fn is_populated(&self) -> bool {
        is_populated(self.events.as_fd())
    }

    /// Removes it with all cgroups that the command has made in it, if nobody is in them.
    pub(super) fn remove(&self) {
        remove(self.parent.as_fd(), &self.name);
    }
}

const READ: OFlag = OFlag::O_RDONLY.union(OFlag::O_CLOEXEC);
const WRITE: OFlag = OFlag::O_WRONLY.union(OFlag::O_CLOEXEC);

/// The leaves' names begin so; a pid, a random part and the kin follow.
const PREFIX: &str = "lease-exec-";

/// Somebody who looks for remains may take away one that is not marked yet.
const ATTEMPTS: usize = 8;

/// Whoever may read the directory can lock it, and a leaf that is locked seems to have an owner.
const MODE: Mode = Mode::S_IRWXU;

/// The mark, an extended attribute. Cgroups of version 2 have those of users since Linux 5.7, see
/// "Extended attributes" in xattr(7), and so wherever there is a `cgroup.kill`.
const MARK: &CStr = c"user.lease-exec";

/// The kin in a name that has the form of a leaf's, and in no other.
fn kin_in(name: &CStr) -> Option<&[u8]> {
    let rest = name.to_bytes().strip_prefix(PREFIX.as_bytes())?;
    let mut parts = rest.split(|byte| *byte == b'-');
    let pid = parts.next()?;
    let mut next = |length| {
        let is_hex = |byte: &u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        let part = parts.next()?;
        (part.len() == length && part.iter().all(is_hex)).then_some(part)
    };
    let (_random, kin) = (next(8)?, next(16)?);
    let is_pid = !pid.is_empty() && pid.iter().all(u8::is_ascii_digit);
    (is_pid && parts.next().is_none()).then_some(kin)
}

fn open_directory<F: AsFd>(parent: &F, name: &CStr) -> Result<OwnedFd, Errno> {
    let flags = READ | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW;
    openat(parent, name, flags, Mode::empty())
}

/// Locks and marks a leaf, and opens all that is needed of it: the directory, `cgroup.kill`, which is
/// there since Linux 5.14, and `cgroup.events`.
fn open_files(parent: &OwnedFd, name: &CStr) -> Result<[OwnedFd; 3]> {
    let directory = File::from(open_directory(parent, name)?);
    directory.try_lock()?;
    sys::write_attribute(directory.as_fd(), MARK, b"1")?;
    let kill = openat(&directory, c"cgroup.kill", WRITE, Mode::empty())?;
    let events = openat(&directory, c"cgroup.events", READ, Mode::empty())?;
    Ok([OwnedFd::from(directory), kill, events])
}

fn is_populated(events: BorrowedFd<'_>) -> bool {
    let mut text = [0; 256];
    match pread(events, &mut text, 0) {
        Ok(length) => {
            let text = text.get(..length).unwrap_or_default();
            !text
                .split(|byte| *byte == b'\n')
                .any(|line| line == b"populated 0")
        }
        // It was removed, which can be done only while nobody is in it.
        Err(Errno::ENODEV) => false,
        Err(_) => true,
    }
}

/// Removes a cgroup with all below it, the deepest first; stops where somebody is in one.
fn remove(parent: BorrowedFd<'_>, name: &CStr) {
    // Each round removes one. A command that made more than this has its own ways to remove them.
    for _ in 0..1024 {
        let removed = unlinkat(parent, name, UnlinkatFlags::RemoveDir);
        if removed != Err(Errno::EBUSY) || !remove_deepest(parent, name) {
            return;
        }
    }
}

/// Removes one cgroup below this one that has none below itself; tells whether that was done.
fn remove_deepest(parent: BorrowedFd<'_>, name: &CStr) -> bool {
    let Ok(mut at) = open_directory(&parent, name) else {
        return false;
    };
    let mut child = [0; 256];
    if !find_child(&at, &mut child) {
        return false;
    }
    for _ in 0..256 {
        let name = CStr::from_bytes_until_nul(&child).unwrap_or_default();
        let Ok(below) = open_directory(&at, name) else {
            return false;
        };
        let mut grandchild = [0; 256];
        if !find_child(&below, &mut grandchild) {
            return unlinkat(&at, name, UnlinkatFlags::RemoveDir).is_ok();
        }
        (at, child) = (below, grandchild);
    }
    false
}

/// Finds a cgroup in this one, and writes down its name, which is at most 255 bytes long.
fn find_child(directory: &OwnedFd, found: &mut [u8; 256]) -> bool {
    // Read from its beginning.
    let Ok(directory) = open_directory(directory, c".") else {
        return false;
    };
    let mut buffer = [0; 2048];
    while let Ok(length @ 1..) = sys::read_directory(directory.as_fd(), &mut buffer) {
        let entries = sys::entries(buffer.get(..length).unwrap_or_default());
        for (kind, name) in entries {
            let name = name.to_bytes_with_nul();
            if kind == libc::DT_DIR
                && !matches!(name, b".\0" | b"..\0")
                && let Some(place) = found.get_mut(..name.len())
            {
                place.copy_from_slice(name);
                return true;
            }
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_name_of_our_form_has_a_kin() {
        assert_eq!(
            kin_in(c"lease-exec-12-01234567-0123456789abcdef"),
            Some(&b"0123456789abcdef"[..])
        );
        for other in [
            c"lease-exec-",
            c"lease-exec-demo",
            c"lease-exec-12-0123456789abcdef",
            c"lease-exec--01234567-0123456789abcdef",
            c"lease-exec-x-01234567-0123456789abcdef",
            c"lease-exec-12-0123456x-0123456789abcdef",
            c"lease-exec-12-0123456-0123456789abcdef",
            c"lease-exec-12-01234567-0123456789abcde",
            c"lease-exec-12-01234567-0123456789ABCDEF",
            c"lease-exec-12-01234567-0123456789abcdef0",
            c"lease-exec-12-01234567-0123456789abcdef-1",
            c"a-lease-exec-12-01234567-0123456789abcdef",
        ] {
            assert_eq!(kin_in(other), None, "{other:?}");
        }
    }

    #[test]
    fn a_child_is_found_also_behind_many_files() {
        let directory = tempfile::tempdir().expect("it can be made");
        for number in 0..200 {
            let name = format!("a-file-with-a-long-name-{number}");
            std::fs::write(directory.path().join(name), "").expect("it can be written");
        }
        let flags = READ | OFlag::O_DIRECTORY;
        let opened = nix::fcntl::open(directory.path(), flags, Mode::empty()).expect("it is there");
        let mut found = [0; 256];
        assert!(!find_child(&opened, &mut found));
        std::fs::create_dir(directory.path().join("child")).expect("it can be made");
        assert!(find_child(&opened, &mut found));
        assert!(found.starts_with(b"child\0"));
    }
}
