//! Who may run, and when: a pure state machine.
//!
//! Events and the time go in ([`Election::handle`]), actions come out ([`Election::poll`]), and
//! [`Election::deadline`] says when to come back if nothing happens. The same code runs in the
//! program, in a simulator and in a model checker.
//!
//! The caller's side of the contract:
//!
//! 1. One event in, then all actions out and carried out in order, then wait.
//! 2. A reply names the request it answers. There is at most one request under way; a new one means
//!    that the answer to an older one is of no interest any more.
//! 3. The time handed in was read before the call and after everything that the event tells of, and
//!    a write is sent after the call that asked for it. Validity counts from there.
//!
//! The rules that make it safe, each where it is kept:
//!
//! - A term counts from before its write was sent, never from the reply (`holding.rs`).
//! - A held lease is taken only on a version that this process has seen unchanged for the duration
//!   written in the record, or when the store's own clock says that the record is that old
//!   (`waiting.rs`).
//! - Watch events wake or stop us; they never start or extend a term.
//! - A write of unknown fate is found again by its `renewTime`, which is new in every write
//!   (`outbox.rs`).
//! - The lease is released only after the whole tree is dead, and only if the record is still our
//!   own last write (`holding.rs`).
//!
//! Must not: know async, a runtime, Kubernetes, files, the environment or a log, or ask the time.

use std::time::Duration;

use crate::{
    clock::{Instant, Now},
    exit::Exit,
    lease::{Change, Claim, Failure, Identity, Outcome, Uid, Version, Write},
};

mod holding;
mod outbox;
mod timing;
mod waiting;

#[cfg(test)]
mod tests;

use holding::Holding;
use outbox::Outbox;
pub use timing::{LEASE_DURATION, Requested, Timing, Unsafe};
use waiting::Waiting;

/// What one election is told at its start.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Settings {
    /// Our identity: unique to this process.
    pub identity: Identity,
    /// The durations.
    pub timing: Timing,
    /// How long to try to acquire; `None` is for ever, zero is one attempt.
    pub wait: Option<Duration>,
    /// What to do about an absent lease.
    pub create: Create,
    /// By how much the clocks of API servers may differ, rounding included; `None` never trusts
    /// them.
    pub server_clock_skew: Option<Duration>,
    /// From the first forwarded TERM, INT, HUP or QUIT to SIGKILL; `None` is never.
    pub kill_after: Option<Duration>,
    /// How to end when somebody else holds the lease.
    pub conflict: Exit,
    /// Seeds the jitter.
    pub seed: u64,
}

/// What to do about an absent lease.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Create {
    /// Create it and start at once.
    #[default]
    Auto,
    /// The lease must exist.
    Never,
    /// Create it, and let the command start only once the object has existed for one lease
    /// duration, so that a holder of a deleted one, cut off from the API server, is dead by then.
    Quarantine,
}

/// Names one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RequestId(pub u64);

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The time that [`Election::deadline`] named has come. A spurious one is harmless.
    Wake,
    /// A request was answered, or its time limit passed, which is [`FailureKind::Unreachable`].
    ///
    /// [`FailureKind::Unreachable`]: crate::lease::FailureKind::Unreachable
    Reply(RequestId, Reply),
    /// The watch saw a change.
    Changed(Change),
    /// A signal for us arrived. While the command runs it has been forwarded already.
    Signalled {
        /// Its number.
        signal: i32,
        /// Whether it is to end lease-exec, or asks the command to end: TERM, INT, HUP and QUIT, and
        /// while no command runs all that would end a program that does nothing about them.
        ends: bool,
    },
    /// The command's first process ended.
    Ended {
        /// How.
        exit: Exit,
        /// When the guard saw it.
        at: Instant,
    },
    /// The guard had to kill the command, because the term's deadline had passed.
    Overdue,
    /// The command did not start, and nothing of it runs.
    NotStarted(NotStarted),
    /// The command's tree is proven dead.
    TreeGone,
    /// The tree was sent SIGKILL, but could not be proven dead within the kill budget. It may
    /// still follow that it is.
    TreeStuck {
        /// The processes that were seen alive, for people.
        survivors: String,
    },
    /// The guard is dead, as this sentence says, and its command's tree is proven dead.
    GuardDied(String),
}

/// The answer to a request.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Reply {
    /// To [`Action::Read`].
    Read(Result<Option<Claim>, Failure>),
    /// To [`Action::Write`].
    Written(Result<Outcome, Failure>),
}

/// Why the command did not start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotStarted {
    /// The guard did not take the order, and is dead.
    NoAnswer,
    /// The system refused to execute it, for this reason.
    Refused(Exit, String),
    /// This signal came first.
    Cancelled(i32),
    /// The deadline had passed when it was about to start.
    TooLate,
}

/// What to do, in the order given.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Read the lease and reply.
    Read(RequestId),
    /// Write the lease and reply.
    Write(RequestId, Write),
    /// Watch for changes after this version, in place of any earlier watch.
    Watch(Version),
    /// Start the command.
    Start(Term),
    /// The term goes on: it now counts from this instant.
    Extend {
        /// Just before the write was sent.
        sent: Instant,
        /// When the tree must get SIGKILL, counted from `sent`.
        kill_deadline: Duration,
    },
    /// Send the command SIGTERM: its lease can't be renewed.
    Terminate,
    /// SIGKILL the whole tree.
    Kill,
    /// Tell the user.
    Report(Report),
    /// End, and say why if there is something to say. Nothing follows.
    Exit(Exit, Option<String>),
}

/// What the command is told about the term it runs in.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Term {
    /// The version of the write that acquired the lease: larger in every later term.
    pub token: Version,
    /// Which object it is.
    pub uid: Uid,
    /// `leaseTransitions`.
    pub transitions: u32,
    /// Just before the write that it counts from was sent.
    pub sent: Instant,
    /// When the tree must get SIGKILL, counted from `sent`.
    pub kill_deadline: Duration,
}

/// A change of state that a user may want to see; at most one line each.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Report {
    /// Somebody else holds the lease.
    HeldBy {
        /// Who.
        holder: Identity,
        /// For how long the record must stay unchanged before we may take over.
        duration: Duration,
    },
    /// The API server could not be reached.
    Unreachable(String),
    /// The API server answers again.
    Reachable,
    /// We may not watch; we poll instead.
    Polling(String),
    /// The lease is ours.
    Acquired {
        /// The fencing token.
        token: Version,
        /// `leaseTransitions`.
        transitions: u32,
        /// Who held it before, if it was taken over without a release.
        taken_from: Option<Identity>,
    },
    /// The lease is young; the command waits this long.
    Quarantined(Duration),
    /// A renewal failed.
    RenewFailed {
        /// Why.
        message: String,
        /// How long until the command gets SIGTERM.
        left: Duration,
    },
    /// Renewing works again.
    Renewed,
    /// Leadership is lost.
    Lost {
        /// For this one reason.
        reason: String,
        /// How long until SIGKILL; zero is now.
        grace: Duration,
    },
    /// The command lives on for this reason too long; its tree gets SIGKILL.
    Killing(KillReason),
    /// The tree could not be proven dead.
    Stuck(String),
    /// The lease is free again.
    Released,
    /// The lease could not be released; it runs out by itself.
    NotReleased {
        /// Why.
        message: String,
        /// How long until others may take it, at the earliest.
        left: Duration,
    },
}

/// What a command has outlived.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KillReason {
    /// `--kill-after`, counted from a signal that asked it to end.
    KillAfter {
        /// That long.
        after: Duration,
        /// The signal's number.
        signal: i32,
    },
    /// The term's deadline, or the grace of a loss.
    Deadline,
}

/// One candidate's election for one lease.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Election {
    outbox: Outbox,
    state: State,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum State {
    Waiting(Box<Waiting>),
    Holding(Box<Holding>),
    Over,
}

/// Where the state goes after an event.
enum Next {
    Stay,
    Wait(Box<Waiting>),
    Hold(Box<Holding>),
    Over,
}

impl Election {
    /// Starts to contend. The first actions are ready.
    pub fn new(settings: Settings, now: Now) -> Self {
        let waiting = Box::new(Waiting::new(now.at));
        let mut election = Self {
            outbox: Outbox::new(settings),
            state: State::Waiting(waiting),
        };
        election.handle(now, Event::Wake);
        election
    }

    /// Takes in one event. The deadlines that have passed by `now` come first, whatever the event.
    pub fn handle(&mut self, now: Now, event: Event) {
        let event = match event {
            Event::Reply(id, _) if !self.outbox.awaits(id) => Event::Wake,
            event => event,
        };
        let next = match &mut self.state {
            State::Waiting(waiting) => waiting.handle(&mut self.outbox, now, event),
            State::Holding(holding) => holding.handle(&mut self.outbox, now, event),
            State::Over => Next::Stay,
        };
        match next {
            Next::Stay => {}
            Next::Wait(waiting) => {
                self.state = State::Waiting(waiting);
                self.handle(now, Event::Wake);
            }
            Next::Hold(holding) => {
                self.state = State::Holding(holding);
                self.handle(now, Event::Wake);
            }
            Next::Over => self.state = State::Over,
        }
    }

    /// The next action to carry out, until there is none.
    pub fn poll(&mut self) -> Option<Action> {
        self.outbox.poll()
    }

    /// How long after `now` to hand in [`Event::Wake`] if nothing else happens; `None` is never.
    /// After an event was handled at `now` it is more than zero.
    pub fn deadline(&self, now: Now) -> Option<Duration> {
        match &self.state {
            State::Waiting(waiting) => waiting.deadline(&self.outbox, now.at),
            State::Holding(holding) => holding.deadline(&self.outbox, now.at),
            State::Over => None,
        }
    }

    /// Whether we hold the lease, or held it and have not seen its end.
    pub fn holds(&self) -> bool {
        matches!(self.state, State::Holding(_))
    }
}
