//! A candidate: it holds nothing, and nothing of its command runs.

use std::time::Duration;

use super::{
    Create, Event, Next,
    outbox::{Acquires, Outbox, Timer},
};
use crate::{
    clock::{Instant, Now},
    exit::Exit,
    lease::{Claim, Identity, Record, Uid, Version},
};

/// How often in a row the credentials may be refused before we give up: they are read anew each
/// time, so this is time for a rotation to arrive.
const UNAUTHORIZED: u32 = 3;

/// How many conflicts over one and the same version one attempt (`--no-wait`) bears.
const CONFLICTS: u32 = 3;

/// `leaseTransitions` is an int32 in the API.
const MOST_TRANSITIONS: u32 = i32::MAX as u32;

mod crowd;
mod news;

use crowd::{Crowd, Race};

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Waiting {
    started: Instant,
    known: Known,
    /// The newest version that was seen, also in watch events.
    seen: Option<Version>,
    /// The present object; for the quarantine.
    object: Option<Seen>,
    /// The longest duration of any holder that this process has seen; for the quarantine.
    longest: Duration,
    reading: Reading,
    /// The watch has told something newer since the read under way was sent.
    overtaken: bool,
    crowd: Crowd,
    /// The write that is to acquire, until it is known what became of it.
    race: Option<Race>,
    leaving: Option<Leaving>,
    /// Conflicts in a row although nobody has changed what is stored. One may be the echo of a
    /// write of our own; more are no race that somebody else has won.
    conflicts: u32,
    unauthorized: u32,
    /// Since when reading, which was allowed before, is forbidden.
    forbidden: Option<Instant>,
    /// Why the last attempt failed, if it did.
    trouble: Option<String>,
    /// It was a write: that reads succeed is no news then.
    cannot_write: bool,
    /// The holder that the user was told of.
    told: Option<Identity>,
}

/// An object, and for how long it has certainly been there.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Seen {
    uid: Uid,
    /// Since when this process has seen it.
    since: Instant,
    /// Its age on the store's own clock, and when an answer told it. No event of a watch does.
    age: Option<(Duration, Instant)>,
}

/// What we know is stored.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Known {
    Nothing,
    Absent,
    Free(Claim),
    Held(Held),
}

/// A record that somebody else holds.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Held {
    claim: Claim,
    /// When this version was first seen.
    since: Instant,
    /// How long it must be seen unchanged.
    duration: Duration,
    /// The store's own clock says that it is older than that.
    aged: bool,
}

impl Held {
    fn left(&self, now: Instant) -> Duration {
        if self.aged {
            return Duration::ZERO;
        }
        self.duration.saturating_sub(now.observed_since(self.since))
    }
}

/// When to read next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Reading {
    No,
    /// To stay informed.
    At(Timer),
    /// Before anything is written; at once if no time is given.
    First(Option<Timer>),
    /// The same, unless the watch tells before then what a read would.
    UnlessTold(Timer),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Leaving {
    exit: Exit,
    message: Option<String>,
}

impl Waiting {
    pub(super) fn new(started: Instant) -> Self {
        Self {
            started,
            known: Known::Nothing,
            seen: None,
            object: None,
            longest: Duration::ZERO,
            reading: Reading::First(None),
            overtaken: false,
            crowd: Crowd::default(),
            race: None,
            leaving: None,
            conflicts: 0,
            unauthorized: 0,
            forbidden: None,
            trouble: None,
            cannot_write: false,
            told: None,
        }
    }

    pub(super) fn handle(&mut self, outbox: &mut Outbox, now: Now, event: Event) -> Next {
        self.check_wait(outbox, now.at);
        match event {
            Event::Reply(_, reply) => {
                if let Some(holding) = self.on_reply(outbox, now, reply) {
                    return Next::Hold(holding);
                }
            }
            Event::Changed(change) => self.on_change(outbox, now, change),
            Event::Signalled { signal, ends: true } => self.leave(Exit::Signal(signal), None),
            Event::GuardDied(how) => self.leave(Exit::Internal, Some(how)),
            // Nothing of a command runs, so there is nothing else to hear.
            Event::Wake
            | Event::Signalled { ends: false, .. }
            | Event::Ended { .. }
            | Event::Overdue
            | Event::NotStarted(_)
            | Event::TreeGone
            | Event::TreeStuck { .. } => {}
        }
        self.plan(outbox, now)
    }

    pub(super) fn deadline(&self, outbox: &Outbox, now: Instant) -> Option<Duration> {
        let wait = self.wait_timer(outbox).filter(|_| self.leaving.is_none());
        let wait = wait.map(|timer| timer.left(now));
        if !outbox.is_idle() {
            return wait;
        }
        let reading = match self.reading {
            Reading::At(timer) | Reading::First(Some(timer)) | Reading::UnlessTold(timer) => {
                Some(timer.left(now))
            }
            Reading::No | Reading::First(None) => None,
        };
        let known = match self.reading {
            Reading::No | Reading::At(_) => self.next_attempt(outbox, now),
            Reading::First(_) | Reading::UnlessTold(_) => None,
        };
        [wait, reading, known].into_iter().flatten().min()
    }

    /// How long until there is something to do about what we know, if nothing is read before.
    fn next_attempt(&self, outbox: &Outbox, now: Instant) -> Option<Duration> {
        match (self.crowd.left(now), &self.known) {
            (Some(left), _) => Some(left),
            (None, Known::Held(held)) => {
                let watch = outbox.next_watch(now);
                Some(watch.map_or(held.left(now), |watch| watch.min(held.left(now))))
            }
            (None, Known::Nothing | Known::Absent | Known::Free(_)) => None,
        }
    }

    // === What is next ===

    fn plan(&mut self, outbox: &mut Outbox, now: Now) -> Next {
        if let Some(leaving) = self.leaving.clone() {
            return self.plan_leaving(outbox, now.at, leaving);
        }
        if !outbox.is_idle() {
            return Next::Stay;
        }
        match self.reading {
            Reading::First(None) => return self.read(outbox, now.at),
            Reading::First(Some(timer)) if timer.is_due(now.at) => {
                return self.read(outbox, now.at);
            }
            Reading::At(timer) | Reading::UnlessTold(timer) if timer.is_due(now.at) => {
                return self.read(outbox, now.at);
            }
            Reading::First(Some(_)) | Reading::UnlessTold(_) => return Next::Stay,
            Reading::At(_) | Reading::No => {}
        }
        match &self.known {
            Known::Nothing => self.read(outbox, now.at),
            Known::Absent if outbox.settings.create == Create::Never => {
                let message = "the lease does not exist, and --create=never".to_owned();
                self.leave(Exit::Configuration, Some(message));
                self.plan(outbox, now)
            }
            Known::Absent => self.contend(outbox, now, None),
            Known::Free(claim) => {
                let claim = claim.clone();
                self.contend(outbox, now, Some(claim))
            }
            Known::Held(held) if held.left(now.at).is_zero() => {
                let claim = held.claim.clone();
                self.contend(outbox, now, Some(claim))
            }
            Known::Held(held) if outbox.settings.wait == Some(Duration::ZERO) => {
                let message = held_by(&held.claim);
                self.leave(outbox.settings.conflict, Some(message));
                self.plan(outbox, now)
            }
            Known::Held(held) => {
                outbox.keep_watching(now.at, &held.claim.version);
                Next::Stay
            }
        }
    }

    /// Leaves nothing behind: a write whose fate is unknown is looked up once, and what it made is
    /// released.
    fn plan_leaving(&mut self, outbox: &mut Outbox, now: Instant, leaving: Leaving) -> Next {
        if outbox.is_writing() {
            return Next::Stay;
        }
        if outbox.is_in_doubt() {
            return if outbox.is_idle() {
                self.read(outbox, now)
            } else {
                Next::Stay
            };
        }
        outbox.exit(leaving.exit, leaving.message);
        Next::Over
    }

    fn read(&mut self, outbox: &mut Outbox, now: Instant) -> Next {
        self.reading = Reading::No;
        outbox.read(now);
        Next::Stay
    }

    /// Takes the lease, which is to be had, as soon as the crowd leaves it to us. No wait is too
    /// short for one attempt.
    fn contend(&mut self, outbox: &mut Outbox, now: Now, base: Option<Claim>) -> Next {
        let limit = outbox.settings.wait.map(|after| {
            let since = self.started;
            Timer { since, after }.left(now.at)
        });
        if self.crowd.is_our_turn(outbox, now.at, limit) {
            self.take(outbox, now, base)
        } else {
            Next::Stay
        }
    }

    /// Swaps ourselves in. Of a held record this is only right once it has run out.
    fn take(&mut self, outbox: &mut Outbox, now: Now, base: Option<Claim>) -> Next {
        // A lease that is not there is made all the same: it then grows old for those who come later.
        if base.is_some() && self.would_wait_in_vain(outbox, now.at) {
            let message = "the command was not run: --create=quarantine lasts longer than --wait";
            self.leave(outbox.settings.conflict, Some(message.to_owned()));
            return self.plan(outbox, now);
        }
        let transitions = match &base {
            None => 0,
            Some(base) => base
                .record
                .transitions
                .saturating_add(1)
                .min(MOST_TRANSITIONS),
        };
        let record = Record {
            holder: Some(outbox.settings.identity.clone()),
            duration: Some(outbox.settings.timing.lease_duration),
            transitions,
            ..Record::default()
        };
        self.crowd.enter();
        self.race = Some(Race {
            from: base.as_ref().and_then(|base| base.record.holder.clone()),
            is_told: false,
            is_refused: false,
        });
        // Whatever comes of it, look before the next write.
        self.reading = Reading::First(None);
        outbox.write(now, base, record, Acquires::Yes);
        Next::Stay
    }

    // === Leaving ===

    fn leave(&mut self, exit: Exit, message: Option<String>) {
        if self.leaving.is_none() {
            self.leaving = Some(Leaving { exit, message });
        }
    }

    fn wait_timer(&self, outbox: &Outbox) -> Option<Timer> {
        let after = outbox.settings.wait.filter(|wait| !wait.is_zero())?;
        Some(Timer {
            since: self.started,
            after,
        })
    }

    /// Whether `--wait` runs out before the quarantine, so that holding the lease would only keep
    /// others out.
    fn would_wait_in_vain(&self, outbox: &Outbox, now: Instant) -> bool {
        self.wait_timer(outbox)
            .is_some_and(|wait| wait.left(now) < self.quarantine(outbox, now))
    }

    fn check_wait(&mut self, outbox: &Outbox, now: Instant) {
        if !self
            .wait_timer(outbox)
            .is_some_and(|timer| timer.is_due(now))
        {
            return;
        }
        match (&self.trouble, &self.known) {
            (Some(trouble), _) => self.leave(Exit::Unreachable, Some(trouble.clone())),
            (None, Known::Nothing) => {
                self.leave(
                    Exit::Unreachable,
                    Some("no answer before --wait ran out".to_owned()),
                );
            }
            (None, Known::Held(held)) => {
                let message = held_by(&held.claim);
                self.leave(outbox.settings.conflict, Some(message));
            }
            (None, Known::Absent | Known::Free(_)) => {
                self.leave(outbox.settings.conflict, Some("--wait ran out".to_owned()));
            }
        }
    }
}

fn held_by(claim: &Claim) -> String {
    match &claim.record.holder {
        Some(holder) => format!("{holder} holds the lease; the command was not run"),
        None => "somebody else holds the lease; the command was not run".to_owned(),
    }
}
