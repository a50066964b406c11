//! The tethers: the kernel kills the command's process group when front or guard dies.
//!
//! A process group can be made the owner of a pipe's read end and SIGKILL the signal that tells it
//! of input (F_SETOWN, F_SETSIG and O_ASYNC in fcntl(2)). The kernel then also sends that signal
//! when the last writer goes away, which it does for a process that was killed, stopped as it may
//! have been before. It reaches members that are stopped, and as long as root asked for it those
//! that have become other users.
//!
//! What must stay true:
//!
//! - The signal is sent only while somebody holds the read end. So there are two pipes, one held
//!   open for writing by the guard and read by front, one the other way round: whichever of the two
//!   dies first, the other still reads.
//! - Each write end is held by one process alone. Both are closed by exec.
//! - In both processes the read end has the lower number. Linux has been seen to close what a dead
//!   process held from the highest number down, which no manual page promises. As long as it does,
//!   and both are killed at the same instant, each has let go of its write end before its read end,
//!   so that one of the two pipes has a reader when its writer goes.
//! - Nothing is ever written: input would kill as well.
//! - Only for a group that is the command's own; never for the caller's.

use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

use nix::{errno::Errno, fcntl::OFlag, unistd::pipe2};

use super::sys::{self, Pid};

/// One process's ends of the two pipes.
pub(super) struct Tether {
    /// Of the pipe whose writer is the other process.
    pub(super) reads: OwnedFd,
    /// Of the pipe whose reader is the other process.
    writes: OwnedFd,
}

impl Tether {
    /// The ends for front and for the guard, which both have until the one that is not theirs is
    /// dropped.
    pub(super) fn pair() -> Result<(Self, Self), Errno> {
        let (fronts_reads, guards_writes) = pipe2(OFlag::O_CLOEXEC)?;
        let (guards_reads, fronts_writes) = pipe2(OFlag::O_CLOEXEC)?;
        Ok((
            Self::new(fronts_reads, fronts_writes)?,
            Self::new(guards_reads, guards_writes)?,
        ))
    }

    fn new(reads: OwnedFd, writes: OwnedFd) -> Result<Self, Errno> {
        let writes = sys::duplicate_above(writes.as_fd(), reads.as_raw_fd())?;
        Ok(Self { reads, writes })
    }

    /// Lets go of the write end.
    pub(super) fn into_read_end(self) -> OwnedFd {
        self.reads
    }

    /// The numbers of both ends.
    pub(super) fn descriptors(&self) -> [RawFd; 2] {
        [self.reads.as_raw_fd(), self.writes.as_raw_fd()]
    }
}

/// Puts a group, which must exist, at the read ends of both pipes. The rights that count when it is
/// killed are those of the process that calls this.
///
/// # Errors
///
/// If the kernel can't do it, as some that only resemble Linux.
pub(super) fn attach(read_ends: [&OwnedFd; 2], group: Pid) -> Result<(), Errno> {
    for end in read_ends {
        sys::kill_group_at_close(end.as_fd(), group)?;
    }
    Ok(())
}
