//! What the store tells a holder: answers to its requests, and the watch's events.

use std::time::Duration;

use super::{Holding, Lost, Phase, RELEASE_PAUSE, Release, at_once};
use crate::{
    clock::{Instant, Now},
    election::{
        Action, Reply, Report,
        outbox::{Attempt, Outbox, Pending, Timer, coordinated, unlike},
    },
    lease::{Change, Claim, Failure, FailureKind, Outcome},
};

impl Holding {
    // === Answers ===

    pub(super) fn on_reply(&mut self, outbox: &mut Outbox, now: Now, reply: Reply) {
        match (outbox.answered(), reply) {
            (Some(Pending::Write(_, attempt)), Reply::Written(result))
                if matches!(self.phase, Phase::Gone(_)) =>
            {
                self.on_release_reply(outbox, now.at, attempt, result);
            }
            (Some(Pending::Write(_, attempt)), Reply::Written(Ok(Outcome::Written(claim)))) => {
                if !outbox.is_result(attempt, &claim) {
                    self.doubt = true;
                    self.on_failure(outbox, now.at, attempt.sent, unlike());
                } else if claim.version < self.seen {
                    // Something newer was seen: read back what became of our write.
                    self.look(now.at, soon(outbox, now.at));
                } else {
                    self.renewed(outbox, attempt, claim);
                }
            }
            (Some(Pending::Write(..)), Reply::Written(Ok(Outcome::Conflict))) => {
                self.look(now.at, soon(outbox, now.at));
            }
            (Some(Pending::Write(_, attempt)), Reply::Written(Err(failure))) => {
                match failure.kind {
                    FailureKind::Unreachable | FailureKind::Malformed => self.doubt = true,
                    FailureKind::Unauthorized
                    | FailureKind::Forbidden
                    | FailureKind::NoNamespace
                    | FailureKind::Misconfigured => outbox.settle(attempt),
                }
                self.on_failure(outbox, now.at, attempt.sent, failure);
            }
            (Some(Pending::Read(_)), Reply::Read(Ok(claim))) => self.on_read(outbox, now.at, claim),
            (Some(Pending::Read(_)), Reply::Read(Err(failure))) => {
                if failure.kind == FailureKind::Malformed {
                    self.lose(outbox, now.at, failure.message);
                } else {
                    self.on_failure(outbox, now.at, now.at, failure);
                }
            }
            // No request was under way, or an answer of the wrong kind: as good as none.
            (None | Some(Pending::Read(_) | Pending::Write(..)), _) => {}
        }
    }

    /// Reads before the next write: the first time at once, and then at this pace. A look that shows
    /// nothing new leads to a write, and whatever has come between may come again.
    fn look(&mut self, now: Instant, pace: Timer) {
        self.doubt = true;
        self.looks += 1;
        self.renewal = if self.looks == 1 { at_once(now) } else { pace };
    }

    /// A write of ours is known to have been carried out: the term counts from its send.
    fn renewed(&mut self, outbox: &mut Outbox, attempt: Attempt, claim: Claim) {
        outbox.settle_all();
        self.sent = attempt.sent;
        self.seen = claim.version.clone();
        self.claim = claim;
        self.doubt = false;
        self.looks = 0;
        self.trouble = None;
        self.renewal = Timer {
            since: attempt.sent,
            after: outbox.settings.timing.retry_period,
        };
        if self.failing {
            self.failing = false;
            outbox.report(Report::Renewed);
        }
        if self.phase == Phase::Running && self.lost.is_none() {
            let kill_deadline = self.kill_deadline(outbox);
            outbox.act(Action::Extend {
                sent: self.sent,
                kill_deadline,
            });
        }
    }

    fn on_read(&mut self, outbox: &mut Outbox, now: Instant, claim: Option<Claim>) {
        self.doubt = false;
        let Some(claim) = claim else {
            return self.lose(outbox, now, "the lease was deleted".to_owned());
        };
        if claim.uid != self.claim.uid {
            return self.lose(
                outbox,
                now,
                "the lease was deleted and made again".to_owned(),
            );
        }
        if claim.record.holder.is_none() && matches!(self.phase, Phase::Gone(_)) {
            // The release of unknown fate was carried out.
            return self.released(outbox);
        }
        if claim.record.holder.as_ref() != Some(&outbox.settings.identity) {
            return self.lose(outbox, now, taken(&claim));
        }
        if let Some(message) = coordinated(&claim) {
            return self.lose(outbox, now, message);
        }
        if claim.version < self.claim.version {
            let message =
                "the lease went back to an older version: was a backup restored?".to_owned();
            return self.lose(outbox, now, message);
        }
        if let Some(attempt) = outbox.attempt_behind(&claim) {
            self.renewed(outbox, attempt, claim);
            if matches!(self.phase, Phase::Gone(_)) {
                self.renewal = at_once(now);
            }
        } else {
            // Unchanged, or edited by somebody who left us in place. Others count from the edit,
            // which is later than we do; but they count by the record's duration.
            self.seen = self.seen.clone().max(claim.version.clone());
            let shorter = claim.record.duration < self.claim.record.duration;
            self.claim = claim;
            if shorter && self.phase == Phase::Running && self.lost.is_none() {
                let kill_deadline = self.kill_deadline(outbox);
                outbox.act(Action::Extend {
                    sent: self.sent,
                    kill_deadline,
                });
            }
            self.renewal = at_once(now);
        }
    }

    fn on_failure(&mut self, outbox: &mut Outbox, now: Instant, since: Instant, failure: Failure) {
        self.trouble = Some(failure.message.clone());
        if matches!(self.phase, Phase::Gone(_)) {
            self.renewal = release_pace(outbox, since);
            return;
        }
        let left = self
            .renew_deadline(outbox)
            .saturating_sub(now.held_since(self.sent));
        // The server's wish counts only if another attempt and a spare one fit in after it.
        let spare = outbox.settings.timing.request_timeout * 2;
        let wish = failure
            .retry_after
            .filter(|wish| wish.saturating_add(spare) < left);
        let pace = soon(outbox, since);
        self.renewal = match wish {
            // It makes the pace slower, and never faster.
            Some(after) if after > pace.left(now) => Timer { since: now, after },
            Some(_) | None => pace,
        };
        if !self.failing {
            self.failing = true;
            outbox.report(Report::RenewFailed {
                message: failure.message,
                left,
            });
        }
    }

    fn on_release_reply(
        &mut self,
        outbox: &mut Outbox,
        now: Instant,
        attempt: Attempt,
        result: Result<Outcome, Failure>,
    ) {
        match result {
            Ok(Outcome::Written(claim)) if !outbox.is_result(attempt, &claim) => {
                self.doubt = true;
                self.on_failure(outbox, now, attempt.sent, unlike());
            }
            Ok(Outcome::Written(claim)) if claim.record.holder.is_none() => self.released(outbox),
            // The last renewal, sent before the tree was gone.
            Ok(Outcome::Written(claim)) => {
                self.renewed(outbox, attempt, claim);
                self.renewal = at_once(now);
            }
            Ok(Outcome::Conflict) => {
                self.trouble = Some("each attempt meets a conflict".to_owned());
                self.look(now, release_pace(outbox, attempt.sent));
            }
            Err(failure) => match failure.kind {
                FailureKind::Unreachable | FailureKind::Malformed => {
                    self.doubt = true;
                    self.on_failure(outbox, now, attempt.sent, failure);
                }
                FailureKind::Unauthorized
                | FailureKind::Forbidden
                | FailureKind::NoNamespace
                | FailureKind::Misconfigured => self.give_up(outbox, now, failure.message),
            },
        }
    }

    fn released(&mut self, outbox: &mut Outbox) {
        outbox.report(Report::Released);
        self.phase = Phase::Gone(Release::Settled);
    }

    // === The watch ===

    pub(super) fn on_change(&mut self, outbox: &mut Outbox, now: Instant, change: Change) {
        outbox.note(now, &change, Duration::MAX);
        let (Change::Written(claim) | Change::Deleted(claim)) = &change else {
            return;
        };
        // Late or doubled, or about our own release.
        if claim.version <= self.seen || matches!(self.phase, Phase::Gone(_)) {
            return;
        }
        let deleted = matches!(change, Change::Deleted(_));
        if deleted && claim.uid == self.claim.uid {
            self.lose(outbox, now, "the lease was deleted".to_owned());
        } else if claim.uid != self.claim.uid {
            self.lose(
                outbox,
                now,
                "the lease was deleted and made again".to_owned(),
            );
        } else if claim.record.holder.as_ref() != Some(&outbox.settings.identity) {
            self.lose(outbox, now, taken(claim));
        } else if let Some(message) = coordinated(claim) {
            self.lose(outbox, now, message);
        } else {
            // Our own write, or an edit that leaves us in place: no reason to stop, and an event
            // never prolongs a term.
            self.seen = claim.version.clone();
        }
    }

    /// The lease was seen in other hands: kill now, without grace.
    fn lose(&mut self, outbox: &mut Outbox, now: Instant, message: String) {
        if !self.may_write() {
            return;
        }
        match self.phase {
            // Nothing runs; there is just nothing to release.
            Phase::Gone(_) => self.give_up(outbox, now, message),
            Phase::Running | Phase::Preparing { .. } => {
                outbox.report(Report::Lost {
                    reason: message,
                    grace: Duration::ZERO,
                });
                let at = self.lost.map_or(now, |lost| lost.at);
                self.lost = Some(Lost {
                    at,
                    by_evidence: true,
                });
                if self.phase == Phase::Running {
                    self.killed = true;
                    outbox.act(Action::Kill);
                }
            }
        }
    }
}

fn taken(claim: &Claim) -> String {
    match &claim.record.holder {
        Some(holder) => format!("{holder} holds the lease"),
        None => "somebody emptied the lease".to_owned(),
    }
}

/// The pace of a holder in trouble: half a retry period after the last attempt was sent, so that a
/// server that refuses at once is not hammered and one that hangs costs no further wait.
fn soon(outbox: &Outbox, since: Instant) -> Timer {
    let after = outbox.settings.timing.retry_period / 2;
    Timer { since, after }
}

/// The pace of a release in trouble.
fn release_pace(outbox: &Outbox, since: Instant) -> Timer {
    let pace = soon(outbox, since);
    Timer {
        after: pace.after.min(RELEASE_PAUSE),
        ..pace
    }
}
