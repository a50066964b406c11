//! How the file store notices a change at once: inotify(7) on the lease's directory.
//!
//! A notice only says "look again"; what is told to the caller comes from reading the files, so a
//! notice that is late, doubled or about a neighbour does no harm.
//!
//! Must not: poll, write but for what every read may write.

use std::{
    ffi::OsStr,
    io,
    os::fd::{AsFd, AsRawFd, RawFd},
    path::Path,
    sync::Arc,
};

use nix::{
    errno::Errno,
    sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent},
};
use tokio::io::{Interest, unix::AsyncFd};

use super::{super::Watch, LeaseFile, Sight, blocking};
use crate::lease::{Change, Claim, Failure, FailureKind, Version};

/// The changes of one lease file. See [`Store::watch`](super::super::Store::watch).
#[derive(Debug)]
pub struct FileWatch {
    file: Arc<LeaseFile>,
    /// The version that the caller knows; `None` if it knows of no lease.
    seen: Option<Version>,
    /// What was last there, in case the files can no longer say what was deleted.
    last: Option<Claim>,
    /// `None` until the first call of `next`.
    notices: Option<AsyncFd<Notices>>,
    phase: Phase,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The files may have changed since we last looked, or the caller did.
    Look,
    /// We have looked, and there has been no notice since.
    Rest,
    /// There will be no more notices; what there is to see by now is told yet.
    Last,
    /// Nothing follows.
    Over,
}

impl FileWatch {
    pub(super) fn new(file: Arc<LeaseFile>, from: Option<Version>) -> Self {
        Self {
            file,
            seen: from,
            last: None,
            notices: None,
            phase: Phase::Look,
        }
    }

    /// Whether it now waits for the kernel.
    #[cfg(test)]
    pub(super) fn is_at_rest(&self) -> bool {
        self.phase == Phase::Rest
    }

    /// Begins to watch, before the first look: a change is then either seen or noticed.
    fn begin(&mut self) -> Result<(), Failure> {
        if self.notices.is_none() {
            self.notices = Some(Notices::begin(&self.file.disk.folder)?);
        }
        Ok(())
    }

    /// What a settled sight has of news for the caller.
    fn news(&mut self, sight: &Sight) -> Result<Option<Change>, Failure> {
        if let Some(mut claim) = self.file.claim(sight)? {
            // Events carry no ages: see `Claim`.
            (claim.written_ago, claim.created_ago) = (None, None);
            self.last = Some(claim.clone());
            let seen = self.seen.replace(claim.version.clone());
            let is_news = seen.as_ref() != Some(&claim.version);
            return Ok(is_news.then_some(Change::Written(claim)));
        }
        if self.seen.take().is_none() {
            return Ok(None);
        }
        let last = self.last.take();
        Ok(Some(match self.file.deleted_claim(sight)?.or(last) {
            Some(claim) => Change::Deleted(claim),
            None => Change::Ended(format!(
                "{} is gone with all that was known of it",
                self.file.disk.lease.display()
            )),
        }))
    }

    /// The next change, but for remembering that nothing follows the last one.
    async fn change(&mut self) -> Change {
        loop {
            if let Err(failure) = self.begin() {
                return Change::Refused(failure);
            }
            // Nothing of `self` changes before an `await` is through, so that whoever drops this
            // future loses nothing.
            match (self.phase, &self.notices) {
                (Phase::Rest, Some(notices)) => {
                    match wait(notices, self.file.disk.lease.file_name()).await {
                        Ok(phase) => self.phase = phase,
                        Err(err) => return Change::Ended(format!("wait for a change: {err}")),
                    }
                }
                (Phase::Look | Phase::Last | Phase::Rest, _) => {
                    let sight = blocking(&self.file, LeaseFile::read).await;
                    let news = sight.and_then(|sight| self.news(&sight));
                    if self.phase == Phase::Look {
                        self.phase = Phase::Rest;
                    } else if let Ok(None) = news {
                        return Change::Ended("the directory was removed".into());
                    }
                    match news {
                        Err(failure) => return Change::Ended(failure.message),
                        Ok(Some(change)) => return change,
                        Ok(None) => {}
                    }
                }
                (Phase::Over, _) => std::future::pending().await,
            }
        }
    }
}

impl Watch for FileWatch {
    async fn next(&mut self) -> Change {
        let change = self.change().await;
        if matches!(change, Change::Ended(_) | Change::Refused(_)) {
            self.phase = Phase::Over;
        }
        change
    }
}

/// Waits until there is a reason to look at the file called `name`.
async fn wait(notices: &AsyncFd<Notices>, name: Option<&OsStr>) -> io::Result<Phase> {
    loop {
        let mut ready = notices.readable().await?;
        let Ok(events) = ready.try_io(|notices| Ok(notices.get_ref().0.read_events()?)) else {
            continue;
        };
        let events = events?;
        if events.iter().any(|event| event.mask.intersects(GONE)) {
            return Ok(Phase::Last);
        }
        let concerns = |event: &InotifyEvent| {
            event.name.as_deref() == name || event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW)
        };
        if events.iter().any(concerns) {
            return Ok(Phase::Look);
        }
    }
}

/// An inotify instance that watches one directory.
#[derive(Debug)]
struct Notices(Inotify);

impl Notices {
    /// Begins to watch. Where that is impossible the caller polls: to end the watch instead would
    /// have it begin anew at once, and for ever.
    fn begin(folder: &Path) -> Result<AsyncFd<Self>, Failure> {
        let begin = || {
            let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
            inotify.add_watch(folder, CHANGES | GONE | AddWatchFlags::IN_ONLYDIR)?;
            #[expect(
                deprecated,
                reason = "its successor is unsafe because a descriptor might be closed too early; \
                          this one is owned by what is registered"
            )]
            AsyncFd::with_interest(Self(inotify), Interest::READABLE)
        };
        begin().map_err(|err| {
            let limit = match Errno::from_raw(err.raw_os_error().unwrap_or(0)) {
                Errno::EMFILE => " (see fs.inotify.max_user_instances)",
                Errno::ENOSPC => " (see fs.inotify.max_user_watches)",
                _ => "",
            };
            Failure::new(
                FailureKind::Misconfigured,
                format!("can't watch {}: {err}{limit}", folder.display()),
            )
        })
    }
}

impl AsRawFd for Notices {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

/// A file renamed into place, moved away, removed, or written to and closed. Not: written to but
/// still open, when there may be half of it.
const CHANGES: AddWatchFlags = AddWatchFlags::IN_MOVED_TO
    .union(AddWatchFlags::IN_MOVED_FROM)
    .union(AddWatchFlags::IN_DELETE)
    .union(AddWatchFlags::IN_CLOSE_WRITE);

/// What ends the notices. The kernel tells the last two also unasked.
const GONE: AddWatchFlags = AddWatchFlags::IN_DELETE_SELF
    .union(AddWatchFlags::IN_MOVE_SELF)
    .union(AddWatchFlags::IN_IGNORED)
    .union(AddWatchFlags::IN_UNMOUNT);
