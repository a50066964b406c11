//! What goes out: the actions, the one request under way, and the writes whose fate is unknown.

use std::{collections::VecDeque, time::Duration};

use super::{Action, Report, RequestId, Settings};
use crate::{
    clock::{Instant, Now, WallTime},
    exit::Exit,
    lease::{Change, Claim, Failure, FailureKind, Record, Version, Write},
};

/// How many writes of unknown fate are remembered. To forget one is safe: its success is then
/// never recognised.
const ATTEMPTS: usize = 16;

/// A refused watch is tried again after this long: an API server that starts refuses everything for
/// some seconds.
const WATCH_AGAIN: Duration = Duration::from_secs(15);

/// One that is refused again is tried after twice as long each time, up to this: a right may have been
/// given meanwhile.
const WATCH_AGAIN_AT_MOST: Duration = Duration::from_secs(300);

/// From this retry period on no two writes share a whole second of `renewTime`. A client-go
/// observer compares records whose times have whole seconds, so to it two such writes look like
/// one, and it would count from the earlier.
const WHOLE_SECOND: Duration = Duration::from_secs(1);

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Outbox {
    pub(super) settings: Settings,
    actions: VecDeque<Action>,
    requests: u64,
    pending: Option<Pending>,
    /// When the last request was sent.
    last_request: Option<Instant>,
    attempts: VecDeque<Attempt>,
    last_stamp: Option<WallTime>,
    watching: Watching,
    /// How long after the next refusal of a watch it is tried again.
    watch_again: Duration,
    /// Whether the user was told that we poll.
    told_polling: bool,
    random: u64,
    /// Whether the user was told that the API server can't be reached.
    pub(super) in_trouble: bool,
}

/// The request under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Pending {
    Read(RequestId),
    Write(RequestId, Attempt),
}

/// A write of ours, told from all others by its stamp.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Attempt {
    /// Just before it was sent.
    pub(super) sent: Instant,
    stamp: WallTime,
    /// Whether it is to make or keep us the holder; a release is not.
    holds: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Watching {
    No { not_before: Option<Timer> },
    Since(Instant),
    Refused { not_before: Timer },
}

/// A moment to come, counted as a holder must: early rather than late.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Timer {
    pub(super) since: Instant,
    pub(super) after: Duration,
}

impl Timer {
    /// How long until it is due; zero if it is.
    pub(super) fn left(self, now: Instant) -> Duration {
        self.after.saturating_sub(now.held_since(self.since))
    }

    pub(super) fn is_due(self, now: Instant) -> bool {
        self.left(now).is_zero()
    }
}

impl Outbox {
    pub(super) fn new(settings: Settings) -> Self {
        Self {
            random: settings.seed,
            settings,
            actions: VecDeque::new(),
            requests: 0,
            pending: None,
            last_request: None,
            attempts: VecDeque::new(),
            last_stamp: None,
            watching: Watching::No { not_before: None },
            watch_again: WATCH_AGAIN,
            told_polling: false,
            in_trouble: false,
        }
    }

    pub(super) fn poll(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    pub(super) fn act(&mut self, action: Action) {
        self.actions.push_back(action);
    }

    pub(super) fn report(&mut self, report: Report) {
        self.act(Action::Report(report));
    }

    pub(super) fn exit(&mut self, exit: Exit, message: Option<String>) {
        self.act(Action::Exit(exit, message));
    }

    // === Requests ===

    pub(super) fn is_idle(&self) -> bool {
        self.pending.is_none()
    }

    pub(super) fn awaits(&self, id: RequestId) -> bool {
        match self.pending {
            Some(Pending::Read(pending) | Pending::Write(pending, _)) => pending == id,
            None => false,
        }
    }

    /// The write under way, if one is.
    pub(super) fn is_writing(&self) -> bool {
        matches!(self.pending, Some(Pending::Write(..)))
    }

    pub(super) fn is_reading(&self) -> bool {
        matches!(self.pending, Some(Pending::Read(_)))
    }

    /// Takes the request that was just answered.
    pub(super) fn answered(&mut self) -> Option<Pending> {
        self.pending.take()
    }

    pub(super) fn read(&mut self, now: Instant) {
        if let Watching::No {
            not_before: Some(timer),
        } = &mut self.watching
        {
            // This is a request as well, and has the first period. A watch that fails at once, again
            // and again, costs no more than polling would.
            timer.after = 2 * self.settings.timing.retry_period;
        }
        let id = self.next_id();
        self.last_request = Some(now);
        self.pending = Some(Pending::Read(id));
        self.act(Action::Read(id));
    }

    /// Sends a write, with `renew_time` (and `acquire_time`, if the record asks for one by having
    /// any) stamped.
    pub(super) fn write(
        &mut self,
        now: Now,
        base: Option<Claim>,
        mut record: Record,
        acquires: Acquires,
    ) {
        let stamp = self.stamp(now.wall);
        record.renew_time = Some(stamp);
        if acquires == Acquires::Yes {
            record.acquire_time = Some(stamp);
        }
        let attempt = Attempt {
            sent: now.at,
            stamp,
            holds: record.holder.is_some(),
        };
        if self.attempts.len() == ATTEMPTS {
            self.attempts.pop_front();
        }
        self.attempts.push_back(attempt);
        let id = self.next_id();
        self.last_request = Some(now.at);
        self.pending = Some(Pending::Write(id, attempt));
        self.act(Action::Write(id, Write { base, record }));
    }

    /// Finds the write of ours of unknown fate that made this claim and us its holder.
    pub(super) fn attempt_behind(&self, claim: &Claim) -> Option<Attempt> {
        if claim.record.holder.as_ref() != Some(&self.settings.identity) {
            return None;
        }
        let stamp = claim.record.renew_time?;
        self.attempts
            .iter()
            .find(|attempt| attempt.holds && attempt.stamp == stamp)
            .copied()
    }

    /// Whether this is what that write makes. A proxy or an admission webhook may answer with
    /// something else, and nothing may rest on it.
    pub(super) fn is_result(&self, attempt: Attempt, claim: &Claim) -> bool {
        let record = &claim.record;
        let holder = attempt.holds.then_some(&self.settings.identity);
        record.holder.as_ref() == holder && record.renew_time == Some(attempt.stamp)
    }

    /// Forgets a write that was certainly not carried out, or whose success is known.
    pub(super) fn settle(&mut self, settled: Attempt) {
        self.attempts
            .retain(|attempt| attempt.stamp != settled.stamp);
    }

    /// Whether a write of ours may have been carried out without our knowing.
    pub(super) fn is_in_doubt(&self) -> bool {
        !self.attempts.is_empty()
    }

    /// Forgets all writes in doubt: what is stored has been read since, and is not one of them.
    pub(super) fn settle_all(&mut self) {
        self.attempts.clear();
    }

    fn next_id(&mut self) -> RequestId {
        self.requests += 1;
        RequestId(self.requests)
    }

    /// The stamp of the next write: the wall clock, but later than the last stamp, and in another
    /// whole second unless renewals are closer together than that.
    fn stamp(&mut self, wall: WallTime) -> WallTime {
        let stamp = match self.last_stamp {
            None => wall,
            Some(last) if wall.unix_seconds() > last.unix_seconds() => wall,
            Some(last) if wall > last && self.settings.timing.retry_period < WHOLE_SECOND => wall,
            Some(last) => WallTime {
                unix_micros: (last.unix_seconds() + 1) * 1_000_000,
            },
        };
        self.last_stamp = Some(stamp);
        stamp
    }

    // === The watch ===

    /// Watches from `version` on, unless a watch is under way or its time has not come.
    pub(super) fn keep_watching(&mut self, now: Instant, version: &Version) {
        let may_watch = match self.watching {
            Watching::No { not_before } => not_before.is_none_or(|timer| timer.is_due(now)),
            Watching::Since(_) => false,
            Watching::Refused { not_before } => not_before.is_due(now),
        };
        if may_watch {
            self.watching = Watching::Since(now);
            self.act(Action::Watch(version.clone()));
        }
    }

    /// Notes what a change says about the watch itself; true if it ended. Of all who watch the same
    /// server each then comes back at a moment of its own, up to a quarter of the retry period later,
    /// or of `limit` if that is less.
    pub(super) fn note(&mut self, now: Instant, change: &Change, limit: Duration) -> bool {
        match change {
            Change::Written(_) | Change::Deleted(_) => {
                self.watch_again = WATCH_AGAIN;
                false
            }
            Change::Ended(_) => {
                self.watch_again = WATCH_AGAIN;
                let since = if let Watching::Since(since) = self.watching {
                    since
                } else {
                    now
                };
                let retry_period = self.settings.timing.retry_period;
                let jitter = self.part_of(retry_period.min(limit) / 4);
                let after = retry_period.max(now.held_since(since)) + jitter;
                self.watching = Watching::No {
                    not_before: Some(Timer { since, after }),
                };
                true
            }
            Change::Refused(failure) => {
                let not_before = Timer {
                    since: now,
                    after: self.watch_again,
                };
                self.watching = Watching::Refused { not_before };
                self.watch_again = (self.watch_again * 2).min(WATCH_AGAIN_AT_MOST);
                if !self.told_polling {
                    self.told_polling = true;
                    self.report(Report::Polling(failure.message.clone()));
                }
                true
            }
        }
    }

    /// Lets [`Self::keep_watching`] replace the watch, which has proven to be silent.
    pub(super) fn watch_anew(&mut self) {
        if let Watching::Since(_) = self.watching {
            self.watching = Watching::No { not_before: None };
        }
    }

    /// When the watch may be opened again, if it is down.
    pub(super) fn next_watch(&self, now: Instant) -> Option<Duration> {
        match self.watching {
            Watching::No { not_before } => {
                Some(not_before.map_or(Duration::ZERO, |timer| timer.left(now)))
            }
            Watching::Since(_) | Watching::Refused { .. } => None,
        }
    }

    pub(super) fn watch_is_refused(&self) -> bool {
        matches!(self.watching, Watching::Refused { .. })
    }

    /// Whether a watch is under way, as far as we know.
    pub(super) fn is_watching(&self) -> bool {
        matches!(self.watching, Watching::Since(_))
    }

    // === Jitter ===

    /// A retry period, lengthened by up to a fifth so that candidates that failed together do not
    /// come back together.
    pub(super) fn retry_period(&mut self) -> Duration {
        let period = self.settings.timing.retry_period;
        period + period.mul_f64(0.2 * self.fraction())
    }

    /// How long the watch may take to tell what a conflict was about: a quarter to half of a retry
    /// period, so that those whom it does not tell do not all ask at once.
    pub(super) fn patience(&mut self) -> Duration {
        let least = self.settings.timing.retry_period / 4;
        least + self.part_of(least)
    }

    /// A random part of a duration.
    pub(super) fn part_of(&mut self, whole: Duration) -> Duration {
        whole.mul_f64(self.fraction())
    }

    /// A retry period, or longer if the server wishes so, after the last request was sent: a server
    /// that refuses at once is not hammered, and one that hangs costs no further wait.
    pub(super) fn since_last_request(&mut self, now: Instant, wish: Duration) -> Timer {
        Timer {
            since: self.last_request.unwrap_or(now),
            after: self.retry_period().max(wish),
        }
    }

    /// The next pseudo-random number in [0, 1), by splitmix64 (Steele, Lea, Flood: Fast splittable
    /// pseudorandom number generators, 2014).
    fn fraction(&mut self) -> f64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.random;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        (mixed >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// What an answer to a write that holds something else is worth.
pub(super) fn unlike() -> Failure {
    Failure::new(
        FailureKind::Unreachable,
        "the answer to a write holds something else than what was written".to_owned(),
    )
}

/// Why a lease is not one to contend for: the controller of coordinated leader election (KEP-4355) gives
/// it to whom it wants, and does not wait until a record has run out (S4). Never written, then.
pub(super) fn coordinated(claim: &Claim) -> Option<String> {
    let strategy = claim.record.strategy.as_ref()?;
    Some(format!(
        "the lease belongs to coordinated leader election, as its spec.strategy is {strategy:?}; use another lease"
    ))
}

/// Whether a write begins a term.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Acquires {
    Yes,
    No,
}
