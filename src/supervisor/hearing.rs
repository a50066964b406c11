//! While the guard lives: front hears what it says, and gives it up if it says nothing for too long.

use std::{os::fd::AsRawFd, sync::Arc, time::Duration};

use nix::{
    errno::Errno,
    sys::{
        socket::{MsgFlags, recv},
        wait::{Id, WaitPidFlag, WaitStatus, waitid},
    },
    unistd::Pid as NixPid,
};
use tokio::io::{Interest, unix::AsyncFd};

use crate::clock::Instant;

use super::{
    Means, NotStarted, PAUSE, Report, State, Supervisor,
    message::{SIZE, Word},
    sys,
};

impl Supervisor {
    /// Waits until the socket may have something, and takes one word from it.
    pub(super) async fn hear(&mut self) {
        if self.readable.is_none() {
            let socket = Arc::clone(&self.socket);
            // SAFETY: the socket is open as long as the `Arc` that is registered, which always
            // names the same descriptor.
            let registered = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) };
            self.readable = registered.ok();
        }
        let patience = self.patience_left(Instant::now());
        let Some(readable) = &self.readable else {
            // No descriptor to be had for the runtime: look now and then.
            tokio::time::sleep(PAUSE).await;
            self.take_word();
            if self.patience_left(Instant::now()) == Some(Duration::ZERO) {
                self.give_up();
            }
            return;
        };
        let ready = tokio::time::timeout(patience.unwrap_or(Duration::MAX), readable.readable());
        match ready.await {
            Ok(Ok(mut ready)) => {
                let mut bytes = [0; SIZE];
                let flags = MsgFlags::MSG_DONTWAIT;
                let taken = recv(self.socket.as_raw_fd(), &mut bytes, flags);
                if taken == Err(Errno::EAGAIN) {
                    ready.clear_ready();
                }
                drop(ready);
                self.take(taken, &bytes);
            }
            Ok(Err(_)) => tokio::time::sleep(PAUSE).await,
            Err(_) => self.give_up(),
        }
    }

    /// The guard does not say that it does what it was told: it is stopped. Its death makes the
    /// kernel kill the command, if there is one, and leaves the rest of the tree to us.
    fn give_up(&mut self) {
        self.given_up = Some(Instant::now());
        let _ = sys::kill(self.guard, libc::SIGKILL);
    }

    /// How long the guard may still say nothing, if it owes us a word.
    fn patience_left(&self, now: Instant) -> Option<Duration> {
        let start = self.unanswered.map(|unanswered| unanswered.patience);
        let owed = [start, self.patience].into_iter().flatten();
        owed.map(|patience| patience.left(now)).min()
    }

    /// Waits for the death of a guard that was given up. It may have been continued at the last
    /// moment, so what it said before it died counts. The end of the socket alone would not do: a
    /// child that it has just borne may hold the other end.
    pub(super) async fn await_guards_death(&mut self, since: Instant) {
        let asked = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        let guard = Id::Pid(NixPid::from_raw(self.guard));
        // Before the socket is read: once it is dead, nothing more comes.
        let is_dead = waitid(guard, asked) != Ok(WaitStatus::StillAlive);
        let mut bytes = [0; SIZE];
        match recv(self.socket.as_raw_fd(), &mut bytes, MsgFlags::MSG_DONTWAIT) {
            Err(Errno::EAGAIN) if is_dead => self.lose_guard(),
            Err(Errno::EAGAIN) => {
                let now = Instant::now();
                self.prove_alive(now);
                if !self.is_stuck && now.held_since(since) >= self.kill_budget {
                    self.name_survivors();
                } else {
                    tokio::time::sleep(PAUSE).await;
                }
            }
            taken => self.take(taken, &bytes),
        }
    }

    fn take_word(&mut self) {
        let mut bytes = [0; SIZE];
        let taken = recv(self.socket.as_raw_fd(), &mut bytes, MsgFlags::MSG_DONTWAIT);
        self.take(taken, &bytes);
    }

    fn take(&mut self, taken: nix::Result<usize>, bytes: &[u8]) {
        match taken {
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            // All that it said is heard by now: a socket hands over what was sent before its end.
            Ok(0) | Err(_) => self.lose_guard(),
            Ok(length) => {
                let message = bytes.get(..length).unwrap_or_default();
                if let Some(word) = Word::decode(message) {
                    self.understand(word);
                }
            }
        }
    }

    fn understand(&mut self, word: Word) {
        let report = match word {
            Word::Starting => {
                self.unanswered = None;
                return;
            }
            Word::Started(pid, means) => {
                self.state = State::Guarded { command: Some(pid) };
                sys::let_go_of_stdio();
                let means = self.describe(means);
                Report::Started { pid, means }
            }
            Word::ExecFailed(errno) => self.end_of(Report::ExecFailed(
                self.command.exec_error(Errno::from_raw(errno)),
            )),
            Word::StartFailed(errno) => {
                self.end_of(Report::NotStarted(NotStarted::NoProcess(errno)))
            }
            Word::Cancelled(signal) => {
                self.end_of(Report::NotStarted(NotStarted::Cancelled(signal)))
            }
            Word::TooLate => self.end_of(Report::NotStarted(NotStarted::TooLate)),
            Word::Forwarded(signal) => Report::Forwarded(signal),
            Word::Stopped(signal) => Report::Stopped(signal),
            Word::Ended(status, at) => {
                self.state = State::Guarded { command: None };
                Report::Ended { status, at }
            }
            Word::Overdue(status) => {
                self.state = State::Guarded { command: None };
                Report::Overdue(status)
            }
            Word::Awaiting(status) => {
                self.state = State::Guarded { command: None };
                Report::Awaiting(status)
            }
            Word::Draining(count) => Report::Draining { count },
            Word::Killing => {
                // A guard that works needs no timer of ours against it.
                self.patience = None;
                self.prove_alive(Instant::now());
                return;
            }
            Word::Survivor(survivor) => return self.survivors.push(survivor),
            Word::Survivors => {
                self.is_stuck = true;
                Report::Survivors(std::mem::take(&mut self.survivors))
            }
            Word::Empty => self.end_of(Report::Empty),
        };
        self.reports.push_back(report);
    }

    /// With this report nothing of the command lives.
    pub(super) fn end_of(&mut self, report: Report) -> Report {
        self.disarm();
        self.state = State::Over;
        report
    }

    fn describe(&self, means: Means) -> String {
        let leaf = match &self.leaf {
            Ok(leaf) if means.leaf => format!("its cgroup {}", leaf.name()),
            Ok(_) => "no cgroup (the kernel does not let it be born in one)".to_owned(),
            Err(reason) => format!("no cgroup ({reason})"),
        };
        let tether = if means.tether {
            "its process group, also by the kernel when we die"
        } else {
            "the command alone by the kernel when we die"
        };
        let timer = if means.timer {
            "a kernel timer against our being stopped"
        } else {
            "no kernel timer"
        };
        let proc = if means.proc {
            "each descendant that /proc shows"
        } else {
            "no /proc"
        };
        format!("{leaf}; {tether}; {timer}; {proc}")
    }
}
