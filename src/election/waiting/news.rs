//! What the store tells a candidate: answers to its requests, and the watch's events.

use std::{mem, time::Duration};

use super::{CONFLICTS, Held, Known, Reading, Seen, UNAUTHORIZED, Waiting};
use crate::{
    clock::{Instant, Now},
    election::{
        Create, Reply, Report,
        holding::Holding,
        outbox::{Attempt, Outbox, Pending, Timer, coordinated, unlike},
    },
    exit::Exit,
    lease::{Change, Claim, Failure, FailureKind, Outcome},
};

impl Waiting {
    // === Answers ===

    pub(super) fn on_reply(
        &mut self,
        outbox: &mut Outbox,
        now: Now,
        reply: Reply,
    ) -> Option<Box<Holding>> {
        let overtaken = mem::take(&mut self.overtaken);
        match (outbox.answered()?, reply) {
            (Pending::Read(_), Reply::Read(Ok(claim))) if overtaken && self.is_old(&claim) => {
                self.reading = Reading::First(None);
                None
            }
            (Pending::Read(_), Reply::Read(Ok(claim))) => self.on_read(outbox, now, claim),
            (Pending::Write(_, attempt), Reply::Written(Ok(Outcome::Written(claim))))
                if !outbox.is_result(attempt, &claim) =>
            {
                self.cannot_write = true;
                self.on_failure(outbox, now, unlike());
                None
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
                self.on_conflict(outbox, now.at);
                None
            }
            (Pending::Write(_, attempt), Reply::Written(Err(failure))) => {
                match failure.kind {
                    // It may have been carried out: who leaves looks first, and releases.
                    FailureKind::Unreachable | FailureKind::Malformed => {}
                    FailureKind::Unauthorized
                    | FailureKind::Forbidden
                    | FailureKind::NoNamespace
                    | FailureKind::Misconfigured => outbox.settle(attempt),
                }
                self.cannot_write = true;
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

    /// Somebody else was faster, or something in between has sent our write twice. What the watch has
    /// told since the write was sent, if it was not of a write of our own, is newer than both, and
    /// all that a read would tell; so where it is about to tell, nobody reads but who is not told.
    fn on_conflict(&mut self, outbox: &mut Outbox, now: Instant) {
        if let Some(race) = &mut self.race {
            race.is_refused = true;
            if race.is_told && outbox.is_watching() {
                self.reading = Reading::No;
                return self.judge_race(outbox);
            }
        }
        self.conflicts += 1;
        if self.conflicts > 1 {
            let after = outbox.retry_period();
            self.reading = Reading::First(Some(Timer { since: now, after }));
        } else if outbox.is_watching() {
            let after = outbox.patience();
            self.reading = Reading::UnlessTold(Timer { since: now, after });
        }
    }

    /// Draws the conclusions from a race, once its end and what is stored since are known.
    fn judge_race(&mut self, outbox: &mut Outbox) {
        let Some(race) = self.race.take_if(|race| race.is_refused) else {
            return;
        };
        if !race.is_told && race.from.is_some() {
            // The record was written, and the watch did not say so.
            outbox.watch_anew();
        }
        if let Known::Held(held) = &self.known
            && held.claim.record.holder != race.from
        {
            self.crowd.lose(outbox.settings.timing.retry_period);
        }
    }

    /// Whether an answer is older than what the watch has told. Only where it may be: an answer to a
    /// read that was sent later is the truth, also if a backup was restored and versions went back.
    fn is_old(&self, claim: &Option<Claim>) -> bool {
        let version = claim.as_ref().map(|claim| &claim.version);
        self.seen.as_ref() > version
    }

    fn on_read(
        &mut self,
        outbox: &mut Outbox,
        now: Now,
        claim: Option<Claim>,
    ) -> Option<Box<Holding>> {
        if let Some(message) = claim.as_ref().and_then(coordinated) {
            outbox.settle_all();
            self.leave(Exit::Configuration, Some(message));
            return None;
        }
        let ours = claim
            .as_ref()
            .and_then(|claim| outbox.attempt_behind(claim));
        if let (Some(attempt), Some(claim)) = (ours, &claim) {
            self.note_success(outbox);
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
        self.judge_race(outbox);
        if !self.cannot_write || matches!(self.known, Known::Held(_)) {
            self.note_success(outbox);
        } else if outbox.settings.wait == Some(Duration::ZERO) {
            // This was the look at what became of the one write.
            outbox.settle_all();
            self.leave(Exit::Unreachable, self.trouble.clone());
        }
        if self.conflicts >= CONFLICTS && outbox.settings.wait == Some(Duration::ZERO) {
            let message =
                "the lease is free, but each attempt to take it meets a conflict".to_owned();
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
            FailureKind::Forbidden => {
                if self.is_really_forbidden(outbox, now.at) {
                    return self.leave(Exit::Forbidden, message);
                }
            }
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

    /// Whether a 403 is to be believed. An API server that starts gives one to everybody, in the
    /// same words, until it has read the roles; so where reading was allowed before, it must last
    /// for a lease duration.
    fn is_really_forbidden(&mut self, outbox: &Outbox, now: Instant) -> bool {
        if self.cannot_write || self.known == Known::Nothing {
            return true;
        }
        let since = *self.forbidden.get_or_insert(now);
        let patience = outbox.settings.timing.lease_duration;
        outbox.settings.wait == Some(Duration::ZERO) || now.held_since(since) >= patience
    }

    fn note_success(&mut self, outbox: &mut Outbox) {
        self.trouble = None;
        self.forbidden = None;
        self.cannot_write = false;
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
        self.see(now.at, &claim);
        let taken_from = match &self.known {
            Known::Held(held) => held.claim.record.holder.clone(),
            Known::Nothing | Known::Absent | Known::Free(_) => None,
        };
        let quarantine = self.quarantine(outbox, now.at);
        let leaving = self
            .leaving
            .take()
            .map(|leaving| (leaving.exit, leaving.message));
        let mut holding = Holding::new(outbox, self.started, attempt.sent, claim);
        holding.quarantine(now.at, quarantine);
        holding.announce(outbox, taken_from);
        if let Some((exit, message)) = leaving {
            holding.abandon(outbox, now.at, exit, message);
        }
        Box::new(holding)
    }

    /// Takes in which object is there, and its age if the claim is an answer's.
    fn see(&mut self, now: Instant, claim: &Claim) {
        let mut seen = match self.object.take() {
            Some(seen) if seen.uid == claim.uid => seen,
            _ => Seen {
                uid: claim.uid.clone(),
                since: now,
                age: None,
            },
        };
        seen.age = claim.created_ago.map(|age| (age, now)).or(seen.age);
        self.object = Some(seen);
    }

    /// How long the command must still wait because the object is young. The wait belongs to the
    /// object, not to its creator, so that it is not lost when the lease changes hands meanwhile.
    ///
    /// It is as long as a holder of the deleted one may run. A duration that this process has never
    /// seen it can't know, which is why the manual asks for the same one everywhere.
    pub(super) fn quarantine(&self, outbox: &Outbox, now: Instant) -> Duration {
        if outbox.settings.create != Create::Quarantine {
            return Duration::ZERO;
        }
        let duration = outbox.settings.timing.lease_duration.max(self.longest);
        // Two clocks that may each err by one in a thousand.
        let needed = duration + duration / 500;
        let Some(seen) = &self.object else {
            return needed;
        };
        let by_own_clock = needed.saturating_sub(now.observed_since(seen.since));
        match outbox.settings.server_clock_skew.zip(seen.age) {
            None => by_own_clock,
            Some((skew, (age, told))) => {
                let age = age.saturating_add(now.observed_since(told));
                by_own_clock.min(needed.saturating_add(skew).saturating_sub(age))
            }
        }
    }

    // === The watch ===

    pub(super) fn on_change(&mut self, outbox: &mut Outbox, now: Now, change: Change) {
        // A record that is renewed must not seem to run out while nobody watches it: its duration may
        // be much shorter than ours.
        let limit = match &self.known {
            Known::Held(held) => held.duration,
            Known::Nothing | Known::Absent | Known::Free(_) => Duration::MAX,
        };
        if outbox.note(now.at, &change, limit) {
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
        self.overtaken = outbox.is_reading();
        if claim.record.holder.as_ref() == Some(&outbox.settings.identity) {
            // Our own write's event. Only an answer to us can start a term.
            self.seen = Some(claim.version.clone());
            if let Some(race) = &mut self.race {
                race.is_told = false;
            }
            if let Reading::UnlessTold(_) = self.reading {
                self.reading = Reading::First(None);
            }
            return;
        }
        match change {
            Change::Written(claim) => {
                if let Some(message) = coordinated(&claim) {
                    return self.leave(Exit::Configuration, Some(message));
                }
                self.learn(outbox, now.at, claim, false);
            }
            Change::Deleted(claim) => {
                self.seen = Some(claim.version);
                self.known = Known::Absent;
                self.object = None;
            }
            Change::Ended(_) | Change::Refused(_) => {}
        }
        if let Some(race) = &mut self.race {
            race.is_told = true;
        }
        if let Reading::UnlessTold(_) = self.reading {
            self.reading = Reading::No;
        }
        self.judge_race(outbox);
    }

    /// Takes in what is stored. A version that was known already keeps the moment at which it was
    /// first seen.
    fn learn(&mut self, outbox: &mut Outbox, now: Instant, claim: Claim, aged: bool) {
        if self.seen.as_ref() != Some(&claim.version) {
            self.conflicts = 0;
        }
        self.seen = Some(claim.version.clone());
        self.see(now, &claim);
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
        self.longest = self.longest.max(duration);
        if since == now {
            let retry_period = outbox.settings.timing.retry_period;
            self.crowd.yield_turn(now, retry_period);
        }
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
