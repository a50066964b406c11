//! What lease-execs that were killed have left in their cgroups.

use std::{
    ffi::CStr,
    fs::File,
    os::fd::{AsFd, OwnedFd},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use nix::{
    errno::Errno,
    fcntl::openat,
    sys::stat::{Mode, fstat},
    unistd::{UnlinkatFlags, unlinkat, write},
};

use super::{super::sys, MARK, MODE, READ, WRITE, is_populated, kin_in, open_directory, remove};

/// How long a start may be held up by the remains of others: for as long as a kill takes. Who lives on
/// after it would hold up every start.
pub(super) const PATIENCE: Duration = Duration::from_millis(20);

/// Kills whoever lives in a leaf whose front and guard are both dead, and removes it. They could do
/// no more about it, and nobody else would. With `kin` only what was made for it counts as a failure,
/// and is waited for. The names of those in which somebody was are added to `emptied`.
///
/// # Errors
///
/// If somebody still lives in one of those after `limit`.
pub(super) fn end_all(
    parent: &OwnedFd,
    kin: Option<&[u8]>,
    limit: Duration,
    emptied: &mut Vec<String>,
) -> Result<()> {
    let since = Instant::now();
    let mut failure = Ok(());
    // Read from its beginning.
    let parent_again = match open_directory(parent, c".") {
        // We were moved, and it was removed, with nobody in it.
        Err(Errno::ENOENT | Errno::ENODEV) => return failure,
        other => other.context("can't read our own cgroup")?,
    };
    let mut buffer = [0; 8192];
    while let length @ 1.. = read_names(&parent_again, &mut buffer)? {
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

/// As much of a directory as fits, nothing at its end.
fn read_names(directory: &OwnedFd, buffer: &mut [u8]) -> Result<usize> {
    match sys::read_directory(directory.as_fd(), buffer) {
        Err(Errno::ENOENT | Errno::ENODEV) => Ok(0),
        other => other.context("can't read our own cgroup"),
    }
}

/// A leaf is locked before it is marked, it is marked before anybody is born in it, and locked as long
/// as one of its owners lives. So one that bears the mark and is not locked has none. This is the
/// kernel's word, which the pid in its name is not: that may mean somebody else by now, or in another
/// PID namespace.
///
/// Without the mark it is a stranger's, or was just made by somebody who may have died of that. A
/// stranger's stays, and what has our mode can be removed only while nobody is in it. If it is removed
/// from under one who is just making it, that lease-exec makes another.
///
/// Whoever looks shares the lock with others who look, so that none of them is taken for an owner.
///
/// Tells whether somebody was in it.
fn end_if_abandoned(parent: &OwnedFd, name: &CStr, limit: Duration) -> Result<bool> {
    // Another user's may not even be looked into, unless we are root.
    let Ok(directory) = open_directory(parent, name).map(File::from) else {
        return Ok(false);
    };
    if directory.try_lock_shared().is_err() {
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
