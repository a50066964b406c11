//! A candidate: it holds nothing, and nothing of its command runs.

use std::time::Duration;

use super::{
    Create, Event, Next, Reply, Report,
    holding::Holding,
    outbox::{Acquires, Attempt, Outbox, Pending, Timer},
};
use crate::{
    clock::{Instant, Now},
    exit::Exit,
    lease::{Claim, Identity, Record, Uid, Version},
    store::{Change, Failure, FailureKind, Outcome},
};

/// How often in a row the credentials may be refused before we give up: they are read anew each
/// time, so this is time for a rotation to arrive.
const UNAUTHORIZED: u32 = 3;

/// How many conflicts in a row one attempt (`--no-wait`) bears before it counts as held: each means
/// that somebody else was quicker.
const CONFLICTS: u32 = 3;

/// `leaseTransitions` is an int32 in the API.
const MOST_TRANSITIONS: u32 = i32::MAX as u32;

#[derive(Debug)]
pub(super) struct Waiting {
    started: Instant,
    known: Known,
    /// The newest version that was seen, also in watch events.
    seen: Option<Version>,
    /// Since when this process has seen the present object; for the quarantine.
    object: Option<(Uid, Instant)>,
    reading: Reading,
    leaving: Option<Leaving>,
    conflicts: u32,
    unauthorized: u32,
    /// Why the last attempt failed, if it did.
    trouble: Option<String>,
    /// The holder that the user was told of.
    told: Option<Identity>,
}

/// What we know is stored.
#[derive(Debug)]
enum Known {
    Nothing,
    Absent,
    Free(Claim),
    Held(Held),
}

/// A record that somebody else holds.
#[derive(Debug)]
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
#[derive(Clone, Copy, Debug)]
enum Reading {
    No,
    /// To stay informed.
    At(Timer),
    /// Before anything is written; at once if no time is given.
    First(Option<Timer>),
}

#[derive(Clone, Debug)]
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
            reading: Reading::First(None),
            leaving: None,
            conflicts: 0,
            unauthorized: 0,
            trouble: None,
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
            Event::GuardDied { .. } => {
                self.leave(Exit::Internal, Some("the guard process died".to_owned()));
            }
            // Nothing of a command runs, so there is nothing else to hear.
            Event::Wake
            | Event::Signalled { ends: false, .. }
            | Event::Ended { .. }
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
            Reading::At(timer) | Reading::First(Some(timer)) => Some(timer.left(now)),
            Reading::No | Reading::First(None) => None,
        };
        let known = match (&self.known, self.reading) {
            (Known::Held(held), Reading::No | Reading::At(_)) => {
                let watch = outbox.next_watch(now);
                Some(watch.map_or(held.left(now), |watch| watch.min(held.left(now))))
            }
            _ => None,
        };
        [wait, reading, known].into_iter().flatten().min()
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
            Reading::First(Some(_)) => return Next::Stay,
            Reading::At(timer) if timer.is_due(now.at) => return self.read(outbox, now.at),
            Reading::At(_) | Reading::No => {}
        }
        match &self.known {
            Known::Nothing => self.read(outbox, now.at),
            Known::Absent if outbox.settings.create == Create::Never => {
                let message = "the lease does not exist, and --create=never".to_owned();
                self.leave(Exit::Configuration, Some(message));
                self.plan(outbox, now)
            }
            Known::Absent => self.take(outbox, now, None),
            Known::Free(claim) => {
                let claim = claim.clone();
                self.take(outbox, now, Some(claim))
            }
            Known::Held(held) if held.left(now.at).is_zero() => {
                let claim = held.claim.clone();
                self.take(outbox, now, Some(claim))
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

    /// Swaps ourselves in. Of a held record this is only right once it has run out.
    fn take(&mut self, outbox: &mut Outbox, now: Now, base: Option<Claim>) -> Next {
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
        // Whatever comes of it, look before the next write.
        self.reading = Reading::First(None);
        outbox.write(now, base, record, Acquires::Yes);
        Next::Stay
    }

    // === Answers ===

    fn on_reply(&mut self, outbox: &mut Outbox, now: Now, reply: Reply) -> Option<Box<Holding>> {
        match (outbox.answered()?, reply) {
            (Pending::Read(_), Reply::Read(Ok(claim))) => {
                self.note_success(outbox);
                self.on_read(outbox, now, claim)
            }
            (Pending::Write(_, attempt), Reply::Written(Ok(Outcome::Written(claim)))) => {
                self.note_success(outbox);
                let newer = self.seen.as_ref().is_some_and(|seen| *seen > claim.version);
                // Something newer than our success was seen: read back what became of it.
                if newer {
                    None
                } else {
                    Some(self.acquired(outbox, now, attempt, claim))
                }
            }
            (Pending::Write(..), Reply::Written(Ok(Outcome::Conflict))) => {
                self.note_success(outbox);
                self.conflicts += 1;
                if self.conflicts > 1 {
                    let after = outbox.retry_period();
                    self.reading = Reading::First(Some(Timer {
                        since: now.at,
                        after,
                    }));
                }
                None
            }
            (Pending::Write(_, attempt), Reply::Written(Err(failure))) => {
                if failure.kind != FailureKind::Unreachable {
                    outbox.settle(attempt);
                }
                self.on_failure(outbox, now, failure);
                None
            }
            (Pending::Read(_), Reply::Read(Err(failure))) => {
                if self.leaving.is_some() {
                    outbox.settle_all();
                }
                self.on_failure(outbox, now, failure);
                None
            }
            // An answer of the wrong kind: the driver's defect, as good as none.
            (Pending::Read(_), Reply::Written(_)) | (Pending::Write(..), Reply::Read(_)) => None,
        }
    }

    fn on_read(
        &mut self,
        outbox: &mut Outbox,
        now: Now,
        claim: Option<Claim>,
    ) -> Option<Box<Holding>> {
        let ours = claim
            .as_ref()
            .and_then(|claim| outbox.attempt_behind(claim));
        if let (Some(attempt), Some(claim)) = (ours, &claim) {
            return Some(self.acquired(outbox, now, attempt, claim.clone()));
        }
        if self.leaving.is_some() {
            outbox.settle_all();
        }
        match claim {
            None => {
                self.known = Known::Absent;
                self.object = None;
            }
            Some(claim) => {
                let aged = is_aged(outbox, &claim);
                self.learn(outbox, now.at, claim, aged);
            }
        }
        if self.conflicts >= CONFLICTS && outbox.settings.wait == Some(Duration::ZERO) {
            let message = "other candidates were quicker each time".to_owned();
            self.leave(outbox.settings.conflict, Some(message));
        }
        if outbox.watch_is_refused() {
            let after = outbox.retry_period();
            self.reading = Reading::At(Timer {
                since: now.at,
                after,
            });
        }
        None
    }

    fn on_failure(&mut self, outbox: &mut Outbox, now: Now, failure: Failure) {
        let once = outbox.settings.wait == Some(Duration::ZERO);
        let message = Some(failure.message.clone());
        match failure.kind {
            FailureKind::Forbidden => return self.leave(Exit::Forbidden, message),
            FailureKind::NoNamespace | FailureKind::Malformed | FailureKind::Misconfigured => {
                return self.leave(Exit::Configuration, message);
            }
            FailureKind::Unauthorized => {
                self.unauthorized += 1;
                if once || self.unauthorized >= UNAUTHORIZED {
                    return self.leave(Exit::Configuration, message);
                }
            }
            FailureKind::Unreachable if once && !outbox.is_in_doubt() => {
                return self.leave(Exit::Unreachable, message);
            }
            FailureKind::Unreachable if once && self.trouble.is_some() => {
                // The look at what became of our write failed as well.
                return self.leave(Exit::Unreachable, message);
            }
            FailureKind::Unreachable => {}
        }
        if !outbox.in_trouble {
            outbox.in_trouble = true;
            outbox.report(Report::Unreachable(failure.message.clone()));
        }
        self.trouble = message;
        self.reading = Reading::First(if once {
            None
        } else {
            let timing = outbox.settings.timing;
            let wish = failure
                .retry_after
                .unwrap_or_default()
                .min(timing.lease_duration);
            Some(outbox.since_last_request(now.at, wish))
        });
    }

    fn note_success(&mut self, outbox: &mut Outbox) {
        self.trouble = None;
        self.unauthorized = 0;
        if outbox.in_trouble {
            outbox.in_trouble = false;
            outbox.report(Report::Reachable);
        }
    }

    fn acquired(
        &mut self,
        outbox: &mut Outbox,
        now: Now,
        attempt: Attempt,
        claim: Claim,
    ) -> Box<Holding> {
        outbox.settle_all();
        let seen_since = match &self.object {
            Some((uid, since)) if *uid == claim.uid => *since,
            _ => now.at,
        };
        let taken_from = match &self.known {
            Known::Held(held) => held.claim.record.holder.clone(),
            Known::Nothing | Known::Absent | Known::Free(_) => None,
        };
        let quarantine = quarantine(outbox, now.at, seen_since, &claim);
        let leaving = self
            .leaving
            .take()
            .map(|leaving| (leaving.exit, leaving.message));
        let mut holding = Holding::new(outbox, self.started, attempt.sent, claim);
        holding.quarantine(now.at, quarantine);
        holding.announce(outbox, taken_from);
        if let Some((exit, message)) = leaving {
            holding.abandon(now.at, exit, message);
        }
        Box::new(holding)
    }

    // === The watch ===

    fn on_change(&mut self, outbox: &mut Outbox, now: Now, change: Change) {
        if outbox.note(now.at, &change) {
            let after = outbox
                .next_watch(now.at)
                .unwrap_or_else(|| outbox.retry_period());
            if matches!(self.reading, Reading::No) {
                self.reading = Reading::At(Timer {
                    since: now.at,
                    after,
                });
            }
        }
        let (Change::Written(claim) | Change::Deleted(claim)) = &change else {
            return;
        };
        // A late or doubled event: what is newer counts.
        if self
            .seen
            .as_ref()
            .is_some_and(|seen| *seen >= claim.version)
        {
            return;
        }
        if claim.record.holder.as_ref() == Some(&outbox.settings.identity) {
            // Our own write's event. Only an answer to us can start a term.
            self.seen = Some(claim.version.clone());
            return;
        }
        match change {
            Change::Written(claim) => self.learn(outbox, now.at, claim, false),
            Change::Deleted(claim) => {
                self.seen = Some(claim.version);
                self.known = Known::Absent;
                self.object = None;
            }
            Change::Ended(_) | Change::Refused(_) => {}
        }
    }

    /// Takes in what is stored. A version that was known already keeps the moment at which it was
    /// first seen.
    fn learn(&mut self, outbox: &mut Outbox, now: Instant, claim: Claim, aged: bool) {
        self.seen = Some(claim.version.clone());
        match &self.object {
            Some((uid, _)) if *uid == claim.uid => {}
            _ => self.object = Some((claim.uid.clone(), now)),
        }
        let Some(holder) = claim.record.holder.clone() else {
            self.known = Known::Free(claim);
            return;
        };
        let since = match &self.known {
            Known::Held(held)
                if held.claim.version == claim.version && held.claim.uid == claim.uid =>
            {
                held.since
            }
            _ => now,
        };
        let duration = claim
            .record
            .duration
            .unwrap_or(outbox.settings.timing.lease_duration);
        if self.told.as_ref() != Some(&holder) && !aged {
            self.told = Some(holder.clone());
            outbox.report(Report::HeldBy { holder, duration });
        }
        self.known = Known::Held(Held {
            claim,
            since,
            duration,
            aged,
        });
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

/// Whether the store's own clock says that the record has run out: its age, by the store, is at
/// least the duration written in it and the skew that the clocks of several servers may have.
fn is_aged(outbox: &Outbox, claim: &Claim) -> bool {
    let Some((skew, age)) = outbox.settings.server_clock_skew.zip(claim.written_ago) else {
        return false;
    };
    let duration = claim
        .record
        .duration
        .unwrap_or(outbox.settings.timing.lease_duration);
    age >= duration.saturating_add(skew)
}

/// How long the command must still wait because the object is young. The wait belongs to the
/// object, not to its creator, so that it is not lost when the lease changes hands meanwhile.
fn quarantine(outbox: &Outbox, now: Instant, seen_since: Instant, claim: &Claim) -> Duration {
    if outbox.settings.create != Create::Quarantine {
        return Duration::ZERO;
    }
    let duration = outbox.settings.timing.lease_duration;
    // Two clocks that may each err by one in a thousand.
    let needed = duration + duration / 500;
    let by_own_clock = needed.saturating_sub(now.observed_since(seen_since));
    match outbox.settings.server_clock_skew.zip(claim.created_ago) {
        None => by_own_clock,
        Some((skew, age)) => by_own_clock.min(needed.saturating_add(skew).saturating_sub(age)),
    }
}

fn held_by(claim: &Claim) -> String {
    match &claim.record.holder {
        Some(holder) => format!("{holder} holds the lease"),
        None => "somebody else holds the lease".to_owned(),
    }
}
