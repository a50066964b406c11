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
//! Must not: allocate, but for [`Leaf::make`].

use std::{
    ffi::{CStr, CString, OsStr},
    fs::{self, File},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
        unix::ffi::{OsStrExt, OsStringExt},
    },
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use nix::{
    errno::Errno,
    fcntl::{OFlag, openat},
    sys::{
        stat::{Mode, fstat, mkdirat},
        statfs::{CGROUP2_SUPER_MAGIC, fstatfs},
        uio::pread,
    },
    unistd::{UnlinkatFlags, unlinkat, write},
};

use super::{sys, tree::Process};

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
    /// Makes one, and ends and removes those that killed lease-execs have left beside it. The
    /// names of those in which somebody lived are added to `emptied`.
    ///
    /// # Errors
    ///
    /// If none can be made, which is no failure: where cgroups are of version 1, or belong to
    /// somebody else.
    pub(super) fn make(kin: u64, emptied: &mut Vec<String>) -> Result<Self> {
        let parent = open_own()?;
        // Before the command starts it is tried again, and then it counts.
        let _ = end_abandoned(&parent, None, PATIENCE, emptied);
        let stat = fs::read("/proc/self/stat").context("can't read /proc/self/stat")?;
        let process = Process::parse(&stat).context("can't understand /proc/self/stat")?;
        let name = format!("{PREFIX}{}-{}-{kin:016x}", process.pid, process.start_time);
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

    /// Ends and removes what lease-execs that have been killed since left beside it.
    ///
    /// # Errors
    ///
    /// If somebody is left after `limit` in one that was made for the same kin. Others are not waited
    /// for.
    pub(super) fn end_abandoned_beside(
        &self,
        limit: Duration,
        emptied: &mut Vec<String>,
    ) -> Result<()> {
        end_abandoned(&self.parent, kin_in(&self.name), limit, emptied)
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

/// The leaves' names begin so; a pid, its start time and the kin follow.
const PREFIX: &str = "lease-exec-";

/// Whoever may read the directory can lock it, and a leaf that is locked seems to have an owner.
const MODE: Mode = Mode::S_IRWXU;

/// The mark, an extended attribute. Cgroups of version 2 have those of users since Linux 5.7, see
/// "Extended attributes" in xattr(7), and so wherever there is a `cgroup.kill`.
const MARK: &CStr = c"user.lease-exec";

/// The kin in a name that has the form of a leaf's, and in no other.
fn kin_in(name: &CStr) -> Option<&[u8]> {
    let rest = name.to_bytes().strip_prefix(PREFIX.as_bytes())?;
    let mut parts = rest.split(|byte| *byte == b'-');
    let mut next = |is_right: fn(&u8) -> bool| {
        let part = parts.next()?;
        (!part.is_empty() && part.iter().all(is_right)).then_some(part)
    };
    let (_pid, _start_time) = (next(u8::is_ascii_digit)?, next(u8::is_ascii_digit)?);
    let kin = next(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))?;
    (kin.len() == 16 && parts.next().is_none()).then_some(kin)
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

// === Finding the place ===

/// Opens the directory of the cgroup that this process is in.
fn open_own() -> Result<OwnedFd> {
    let cgroups = fs::read("/proc/self/cgroup").context("can't read /proc/self/cgroup")?;
    let mounts = fs::read("/proc/self/mountinfo").context("can't read /proc/self/mountinfo")?;
    let path = own_path(&cgroups, &mounts)
        .context("no cgroup file system of version 2 shows this process's cgroup")?;
    let directory = nix::fcntl::open(&path, READ | OFlag::O_DIRECTORY, Mode::empty())
        .with_context(|| format!("can't open {}", path.display()))?;
    // Something else may be mounted over it.
    let found =
        fstatfs(&directory).with_context(|| format!("can't ask about {}", path.display()))?;
    ensure!(
        found.filesystem_type() == CGROUP2_SUPER_MAGIC,
        "{} is no cgroup of version 2",
        path.display()
    );
    // Where systemd runs, it alone writes to cgroups that it has not delegated, see its
    // CGROUP_DELEGATION.
    if Path::new("/run/systemd/system").exists() {
        ensure!(
            is_delegated(&directory),
            "systemd has not delegated {} (Delegate=yes)",
            path.display()
        );
    }
    Ok(directory)
}

fn is_delegated(directory: &OwnedFd) -> bool {
    [c"user.delegate", c"trusted.delegate"].iter().any(|name| {
        let mut value = [0; 8];
        let length = sys::read_attribute(directory.as_fd(), name, &mut value);
        length == Ok(1) && value[0] == b'1'
    })
}

/// Where this process's cgroup (v2) is mounted, from its `cgroup` and `mountinfo` in `/proc/self`,
/// see cgroups(7) and proc_pid_mountinfo(5).
fn own_path(cgroups: &[u8], mounts: &[u8]) -> Option<PathBuf> {
    let own = lines(cgroups).find_map(|line| line.strip_prefix(b"0::"))?;
    let own = Path::new(OsStr::from_bytes(own));
    let mounted = lines(mounts).filter_map(|line| {
        let dash = line.windows(3).position(|three| three == b" - ")?;
        let kind = line.get(dash + 3..)?.split(|byte| *byte == b' ').next()?;
        let mut fields = line.split(|byte| *byte == b' ').skip(3);
        let (root, point) = (unescape(fields.next()?), unescape(fields.next()?));
        (kind == b"cgroup2").then_some(())?;
        // Both are seen from our own cgroup namespace.
        let below = own.strip_prefix(root).ok()?;
        Some(point.join(below))
    });
    // The last one mounted is the one that is seen.
    mounted
        .last()
        .filter(|path| !path.components().any(|part| part.as_os_str() == ".."))
}

fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(|byte| *byte == b'\n')
}

/// In mountinfo blanks and backslashes are written as a backslash and three octal digits.
fn unescape(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, after)) = rest.split_first() {
        let digits = after
            .get(..3)
            .and_then(|digits| str::from_utf8(digits).ok());
        let escaped = digits.and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match escaped {
            Some(byte) if *first == b'\\' => {
                bytes.push(byte);
                rest = after.get(3..).unwrap_or_default();
            }
            _ => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    PathBuf::from(std::ffi::OsString::from_vec(bytes))
}

// === What others have left behind ===

/// How long a start may be held up by the remains of others: for as long as a kill takes. Who lives on
/// after it would hold up every start.
const PATIENCE: Duration = Duration::from_millis(20);

/// Kills whoever lives in a leaf whose front and guard are both dead, and removes it. They could do
/// no more about it, and nobody else would. With `kin` only what was made for it counts as a failure,
/// and is waited for. The names of those in which somebody was are added to `emptied`.
///
/// # Errors
///
/// If somebody still lives in one of those after `limit`.
fn end_abandoned(
    parent: &OwnedFd,
    kin: Option<&[u8]>,
    limit: Duration,
    emptied: &mut Vec<String>,
) -> Result<()> {
    let since = Instant::now();
    let parent_again = open_directory(parent, c".").context("can't read our own cgroup")?;
    let mut buffer = [0; 8192];
    let mut failure = Ok(());
    while let length @ 1.. = sys::read_directory(parent_again.as_fd(), &mut buffer)? {
        for (_, name) in sys::entries(buffer.get(..length).unwrap_or_default()) {
            let Some(its_kin) = kin_in(name) else {
                continue;
            };
            let is_awaited = kin.is_none_or(|kin| kin == its_kin);
            let left = limit.saturating_sub(since.elapsed());
            let left = if is_awaited { left } else { Duration::ZERO };
            match end_if_abandoned(parent, name, left) {
                Ok(true) => emptied.push(name.to_string_lossy().into_owned()),
                Ok(false) => {}
                Err(error) if is_awaited => failure = Err(error),
                Err(_) => {}
            }
        }
    }
    failure
}

/// A leaf is locked before it is marked, it is marked before anybody is born in it, and locked as long
/// as one of its owners lives. So one that bears the mark and is not locked has none. This is the
/// kernel's word, which the pid in its name is not: that may mean somebody else by now, or in another
/// PID namespace.
///
/// Without the mark it is a stranger's, or was just made by somebody who may have died of that. A
/// stranger's stays, and what has our mode can be removed only while nobody is in it. If it is removed
/// from under one who is just making it, that lease-exec does without.
///
/// Tells whether somebody was in it.
fn end_if_abandoned(parent: &OwnedFd, name: &CStr, limit: Duration) -> Result<bool> {
    // Another user's may not even be looked into, unless we are root.
    let Ok(directory) = open_directory(parent, name).map(File::from) else {
        return Ok(false);
    };
    if directory.try_lock().is_err() {
        return Ok(false);
    }
    if sys::read_attribute(directory.as_fd(), MARK, &mut [0; 8]).is_err() {
        let stat = fstat(&directory).context("can't ask about a cgroup")?;
        if stat.st_mode & 0o7777 == MODE.bits() {
            let _ = unlinkat(parent, name, UnlinkatFlags::RemoveDir);
        }
        return Ok(false);
    }
    let Ok(events) = openat(&directory, c"cgroup.events", READ, Mode::empty()) else {
        return Ok(false);
    };
    let was_populated = is_populated(events.as_fd());
    // Where it can't be opened, who is in it may be ending all the same.
    if let Ok(kill) = openat(&directory, c"cgroup.kill", WRITE, Mode::empty()) {
        let _ = write(kill, b"1");
    }
    let since = Instant::now();
    while is_populated(events.as_fd()) {
        ensure!(
            since.elapsed() < limit,
            "in the cgroup {}, which a killed lease-exec has left, somebody lives on after SIGKILL",
            name.to_string_lossy()
        );
        std::thread::sleep(Duration::from_millis(1));
    }
    remove(parent.as_fd(), name);
    Ok(was_populated)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &[u8] = b"\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw
";

    fn found(cgroups: &str, mounts: &[u8]) -> Option<String> {
        own_path(cgroups.as_bytes(), mounts).map(|path| path.display().to_string())
    }

    #[test]
    fn only_a_name_of_our_form_has_a_kin() {
        assert_eq!(
            kin_in(c"lease-exec-12-345-0123456789abcdef"),
            Some(&b"0123456789abcdef"[..])
        );
        for other in [
            c"lease-exec-",
            c"lease-exec-demo",
            c"lease-exec-12-0123456789abcdef",
            c"lease-exec--345-0123456789abcdef",
            c"lease-exec-12-x-0123456789abcdef",
            c"lease-exec-12-345-0123456789abcde",
            c"lease-exec-12-345-0123456789ABCDEF",
            c"lease-exec-12-345-0123456789abcdef0",
            c"lease-exec-12-345-0123456789abcdef-1",
            c"a-lease-exec-12-345-0123456789abcdef",
        ] {
            assert_eq!(kin_in(other), None, "{other:?}");
        }
    }

    #[test]
    fn a_child_is_found_also_behind_many_files() {
        let directory = tempfile::tempdir().expect("it can be made");
        for number in 0..200 {
            let name = format!("a-file-with-a-long-name-{number}");
            fs::write(directory.path().join(name), "").expect("it can be written");
        }
        let flags = READ | OFlag::O_DIRECTORY;
        let opened = nix::fcntl::open(directory.path(), flags, Mode::empty()).expect("it is there");
        let mut found = [0; 256];
        assert!(!find_child(&opened, &mut found));
        fs::create_dir(directory.path().join("child")).expect("it can be made");
        assert!(find_child(&opened, &mut found));
        assert!(found.starts_with(b"child\0"));
    }

    #[test]
    fn the_own_cgroup_is_found_wherever_version_2_is_mounted() {
        let cgroups = "4:memory:/other\n0::/a/b\n";
        let path = found(cgroups, HYBRID);
        assert_eq!(path.as_deref(), Some("/sys/fs/cgroup/unified/a/b"));
        let root = found("0::/\n", HYBRID);
        assert_eq!(root.as_deref(), Some("/sys/fs/cgroup/unified/"));
    }

    #[test]
    fn a_mount_that_begins_further_down_is_understood() {
        let mounts = b"9 1 0:38 /a /mnt/with\\040blank rw - cgroup2 none rw\n";
        let path = found("0::/a/b\n", mounts);
        assert_eq!(path.as_deref(), Some("/mnt/with blank/b"));
        assert_eq!(found("0::/other\n", mounts), None);
    }

    #[test]
    fn what_cannot_be_seen_is_not_found() {
        assert_eq!(found("4:memory:/a\n", HYBRID), None, "only version 1");
        assert_eq!(found("0::/../a\n", HYBRID), None, "outside our namespace");
        assert_eq!(found("0::/a\n", b""), None, "not mounted");
        assert_eq!(found("", b"nonsense\n - cgroup2\n"), None);
    }
}
