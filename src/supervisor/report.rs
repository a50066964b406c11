//! What the supervisor says of the command.

use crate::clock::Instant;

use super::{command::FindError, tree::Survivor};

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// It exited with this code.
    Exited(u8),
    /// This signal killed it.
    Signalled(i32),
}

impl Status {
    /// The exit code by which shells show it: 128 + N for signal N.
    pub fn code(self) -> i32 {
        match self {
            Self::Exited(code) => i32::from(code),
            Self::Signalled(signal) => 128 + signal,
        }
    }
}

/// What happened to the command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Report {
    /// Before anything else: the cgroup of this name, whose lease-exec was killed, had somebody in it
    /// who was sent SIGKILL.
    Emptied(String),
    /// It runs.
    Started {
        /// Its process id.
        pid: i32,
        /// What there is to kill its tree with, for people.
        means: String,
    },
    /// It can't be executed after all. Nothing runs, nothing follows.
    ExecFailed(FindError),
    /// It was not started. Nothing runs, nothing follows.
    NotStarted(NotStarted),
    /// This signal, which asks to end, was passed on to it, or to those of it who are awaited. One
    /// that it has had already, from the terminal or by its own hand, is not.
    Forwarded(i32),
    /// It was stopped by this signal, SIGTSTP, SIGTTIN or SIGTTOU, and at once continued.
    Stopped(i32),
    /// It ended so, and left others behind, which are awaited. `Ended` follows once they are gone.
    Awaiting(Status),
    /// It ended; or, where what it leaves behind is awaited, nothing of it lives any more. What it
    /// left behind otherwise gets SIGTERM and half a second, then SIGKILL.
    Ended {
        /// How.
        status: Status,
        /// When.
        at: Instant,
    },
    /// It ended so in the place of `Ended`, but beyond the deadline: the guard has killed it.
    Overdue(Status),
    /// It ended, and what it left behind has been sent SIGTERM.
    Draining {
        /// How many processes, zombies among them; 0 if they can't be counted.
        count: i32,
    },
    /// Proven: nothing of the command lives. Nothing follows.
    Empty,
    /// These, or the first of these, were sent SIGKILL and live on although the kill budget is used
    /// up. Said once; `Empty` follows if they end after all.
    Survivors(Vec<Survivor>),
    /// The guard died, and nothing of the command lives: this process has killed it. Nothing follows.
    GuardDied {
        /// Its process id.
        pid: i32,
        /// How it died, unless that is unknown.
        status: Option<Status>,
    },
}

/// Why the command was not started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotStarted {
    /// The guard was stopped, did not read the order to start before the deadline, and is dead now.
    NoAnswer,
    /// This signal, one of those that end a program by default, came before.
    Cancelled(i32),
    /// The deadline had passed.
    TooLate,
    /// There was no process to be had; the `errno` of pipe or fork.
    NoProcess(i32),
}
