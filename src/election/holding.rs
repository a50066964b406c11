//! A holder: from the write that acquired the lease until it is released or lost.

use std::time::Duration;

use super::{
    Action, Event, KillReason, Next, NotStarted, Report, Term,
    outbox::{Acquires, Outbox, Timer},
    waiting::Waiting,
};
use crate::{
    clock::{Instant, Now, shown},
    exit::Exit,
    lease::{Claim, Identity, Record, Version},
};

/// How long a release is tried, whatever the durations: whoever stops us waits for it, and the lease
/// runs out by itself.
const RELEASE_LIMIT: Duration = Duration::from_secs(5);

/// The most that lies between two attempts at a release.
const RELEASE_PAUSE: Duration = Duration::from_secs(1);

/// client-go's value for a released lease: the API refuses 0.
const RELEASED_DURATION: Duration = Duration::from_secs(1);

mod news;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Holding {
    /// When the election began; `--wait` counts from it if the lease is lost before the command
    /// started.
    started: Instant,
    /// What is stored, as far as we know: our last good write, or somebody's edit of it.
    claim: Claim,
    /// Just before our last good write was sent: the term counts from here.
    sent: Instant,
    /// The version of the write that acquired.
    token: Version,
    /// The newest version that was seen, also in watch events.
    seen: Version,
    phase: Phase,
    /// When to send the next renewal.
    renewal: Timer,
    /// Read before the next write, because the fate of the last one is unknown.
    doubt: bool,
    /// How often it was read for a conflict or the like since a write is known to have succeeded.
    looks: u32,
    /// Renewals fail, and the user was told.
    failing: bool,
    /// Why the last request failed, if it did.
    trouble: Option<String>,
    /// The command's own end.
    ended: Option<(Exit, Instant)>,
    lost: Option<Lost>,
    kill_after: Option<KillAfter>,
    killed: bool,
    /// The tree was sent SIGKILL and could not be proven dead in time.
    stuck: bool,
    /// How to end although no command ended.
    verdict: Option<(Exit, Option<String>)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Phase {
    /// Nothing of the command runs yet; it may start once this much has been observed to pass.
    Preparing {
        since: Instant,
        quarantine: Duration,
    },
    /// The command was ordered to start, and its tree is not proven dead.
    Running,
    /// Nothing of the command runs any more; only the release is left.
    Gone(Release),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Release {
    /// It is tried until then.
    Due { give_up: Timer },
    /// It has succeeded, or there is nothing to release.
    Settled,
}

/// `--kill-after`, running since this signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct KillAfter {
    signal: i32,
    timer: Timer,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Lost {
    at: Instant,
    /// Not by the deadline but because the lease was seen in other hands: nothing is written any
    /// more.
    by_evidence: bool,
}

impl Holding {
    pub(super) fn new(outbox: &Outbox, started: Instant, sent: Instant, claim: Claim) -> Self {
        Self {
            started,
            sent,
            token: claim.version.clone(),
            seen: claim.version.clone(),
            claim,
            phase: Phase::Preparing {
                since: sent,
                quarantine: Duration::ZERO,
            },
            renewal: Timer {
                since: sent,
                after: outbox.settings.timing.retry_period,
            },
            doubt: false,
            looks: 0,
            failing: false,
            trouble: None,
            ended: None,
            lost: None,
            kill_after: None,
            killed: false,
            stuck: false,
            verdict: None,
        }
    }

    /// Lets the command start only once `quarantine` has passed.
    pub(super) fn quarantine(&mut self, now: Instant, quarantine: Duration) {
        self.phase = Phase::Preparing {
            since: now,
            quarantine,
        };
    }

    /// Tells the user of the new term.
    pub(super) fn announce(&self, outbox: &mut Outbox, taken_from: Option<Identity>) {
        outbox.report(Report::Acquired {
            token: self.token.clone(),
            transitions: self.claim.record.transitions,
            taken_from,
        });
        if let Phase::Preparing { quarantine, .. } = self.phase
            && !quarantine.is_zero()
        {
            outbox.report(Report::Quarantined(quarantine));
        }
    }

    /// Ends without starting the command: only the release is left.
    pub(super) fn abandon(
        &mut self,
        outbox: &Outbox,
        now: Instant,
        exit: Exit,
        message: Option<String>,
    ) {
        self.gone(outbox, now);
        self.verdict = Some((exit, message));
    }

    /// Nothing of the command runs any more: no renewal is sent from here on, and the release at
    /// once.
    fn gone(&mut self, outbox: &Outbox, now: Instant) {
        // Once the term has run out others may take the lease, and there is no hurry any more.
        let left = self.left(outbox, now);
        let after = left.max(RELEASE_PAUSE).min(RELEASE_LIMIT);
        let give_up = Timer { since: now, after };
        self.phase = Phase::Gone(Release::Due { give_up });
        self.renewal = at_once(now);
        self.looks = 0;
    }

    pub(super) fn handle(&mut self, outbox: &mut Outbox, now: Now, event: Event) -> Next {
        self.check_deadlines(outbox, now.at);
        match event {
            Event::Wake => {}
            Event::Reply(_, reply) => self.on_reply(outbox, now, reply),
            Event::Changed(change) => self.on_change(outbox, now.at, change),
            Event::Signalled { signal, ends } => self.on_signal(outbox, now.at, signal, ends),
            Event::Ended { exit, at } => self.ended = Some((exit, at)),
            Event::Overdue if self.lost.is_some() => {}
            Event::Overdue => {
                let message = "no renewal has reached the guard process in time".to_owned();
                self.miss(outbox, now.at, message);
            }
            Event::NotStarted(reason) => self.on_not_started(outbox, now.at, reason),
            Event::TreeGone => self.gone(outbox, now.at),
            Event::TreeStuck { survivors } => {
                self.stuck = true;
                outbox.report(Report::Stuck(survivors));
            }
            Event::GuardDied(how) => self.on_guard_failed(outbox, now.at, how),
        }
        // The news may have brought a deadline forward.
        self.check_deadlines(outbox, now.at);
        self.plan(outbox, now)
    }

    // === Deadlines ===

    /// Acts on what time alone decides. It comes before every event: after a pause the news may be
    /// good, but the deadline has passed.
    fn check_deadlines(&mut self, outbox: &mut Outbox, now: Instant) {
        if let Phase::Gone(Release::Due { give_up }) = self.phase
            && give_up.is_due(now)
        {
            let message = self.trouble.clone();
            let message = message.unwrap_or_else(|| "no answer in time".to_owned());
            self.give_up(outbox, now, message);
        }
        if let (Phase::Preparing { .. }, Some(timer)) = (self.phase, self.wait_timer(outbox))
            && timer.is_due(now)
        {
            let message = "--wait ran out before the command could start".to_owned();
            let exit = match &self.trouble {
                Some(_) => Exit::Unreachable,
                None => outbox.settings.conflict,
            };
            self.abandon(outbox, now, exit, Some(message));
        }
        if self.phase != Phase::Running {
            return;
        }
        let held = now.held_since(self.sent);
        if self.lost.is_none() && held >= self.renew_deadline(outbox) {
            self.miss(outbox, now, self.reason_of_loss(outbox, held));
        }
        let asked = self.kill_after.filter(|running| running.timer.is_due(now));
        let overdue = held >= self.kill_deadline(outbox)
            || self
                .kill_timer(outbox)
                .is_some_and(|timer| timer.is_due(now));
        if !self.killed && (asked.is_some() || overdue) {
            self.killed = true;
            let reason = asked.map_or(KillReason::Deadline, |running| KillReason::KillAfter {
                after: running.timer.after,
                signal: running.signal,
            });
            outbox.report(Report::Killing(reason));
            outbox.act(Action::Kill);
        }
    }

    /// The lease is lost because it was not renewed in time.
    fn miss(&mut self, outbox: &mut Outbox, now: Instant, reason: String) {
        self.lost = Some(Lost {
            at: now,
            by_evidence: false,
        });
        let held = now.held_since(self.sent);
        let grace = self.kill_deadline(outbox).saturating_sub(held);
        outbox.report(Report::Lost { reason, grace });
        outbox.act(Action::Terminate);
    }

    /// `--wait` also bounds the time that the command is kept from starting.
    fn wait_timer(&self, outbox: &Outbox) -> Option<Timer> {
        let after = outbox.settings.wait.filter(|wait| !wait.is_zero())?;
        Some(Timer {
            since: self.started,
            after,
        })
    }

    /// The lease stays as it is.
    fn give_up(&mut self, outbox: &mut Outbox, now: Instant, message: String) {
        let left = self.left(outbox, now);
        outbox.report(Report::NotReleased { message, left });
        self.phase = Phase::Gone(Release::Settled);
    }

    /// How long until others may take the lease, at the earliest: they go by what is written in it.
    fn left(&self, outbox: &Outbox, now: Instant) -> Duration {
        let recorded = self.claim.record.duration.unwrap_or_default();
        let duration = recorded.min(outbox.settings.timing.lease_duration);
        duration.saturating_sub(now.held_since(self.sent))
    }

    /// Why the lease is lost for want of a renewal, `held` after the last one was sent.
    fn reason_of_loss(&self, outbox: &Outbox, held: Duration) -> String {
        let deadline = self.renew_deadline(outbox);
        if deadline == outbox.settings.timing.renew_deadline {
            return format!("no renewal has succeeded for {}", shown(deadline));
        }
        let edit = match self.claim.record.duration {
            Some(duration) => format!("shortened the duration to {}", shown(duration)),
            None => "removed the duration".to_owned(),
        };
        let held = shown(held);
        format!("no renewal has succeeded for {held}, and somebody has {edit}")
    }

    /// When SIGTERM is due for want of a renewal, counted from `sent`.
    fn renew_deadline(&self, outbox: &Outbox) -> Duration {
        outbox
            .settings
            .timing
            .renew_deadline
            .min(self.kill_deadline(outbox))
    }

    /// When SIGKILL is due for want of a renewal, counted from `sent`.
    fn kill_deadline(&self, outbox: &Outbox) -> Duration {
        // A record without a duration counts as run out to client-go.
        let recorded = self.claim.record.duration.unwrap_or_default();
        outbox.settings.timing.kill_deadline_for(recorded)
    }

    /// The end of the grace of a loss. The guard kills at the term's own deadline whatever we do;
    /// this counts from the loss, for a term that was prolonged while the command was ending.
    fn kill_timer(&self, outbox: &Outbox) -> Option<Timer> {
        let lost = self.lost?;
        let grace = self
            .kill_deadline(outbox)
            .saturating_sub(self.renew_deadline(outbox));
        Some(Timer {
            since: lost.at,
            after: grace,
        })
    }

    pub(super) fn deadline(&self, outbox: &Outbox, now: Instant) -> Option<Duration> {
        let left = |after: Duration| after.saturating_sub(now.held_since(self.sent));
        let mut next = Vec::with_capacity(5);
        if self.phase == Phase::Running {
            if self.lost.is_none() {
                next.push(left(self.renew_deadline(outbox)));
            }
            if !self.killed {
                next.push(left(self.kill_deadline(outbox)));
                next.extend(self.kill_timer(outbox).map(|timer| timer.left(now)));
                next.extend(self.kill_after.map(|running| running.timer.left(now)));
            }
        }
        match self.phase {
            Phase::Gone(Release::Due { give_up }) => next.push(give_up.left(now)),
            Phase::Preparing { .. } => {
                next.extend(self.wait_timer(outbox).map(|timer| timer.left(now)));
            }
            Phase::Running | Phase::Gone(Release::Settled) => {}
        }
        if outbox.is_idle() && self.may_write() {
            next.push(self.renewal.left(now));
            if !matches!(self.phase, Phase::Gone(_)) {
                next.extend(outbox.next_watch(now));
            }
            if let Phase::Preparing { since, quarantine } = self.phase {
                // Once the quarantine is over, a preparing holder waits for a renewal only.
                let quiet = quarantine.saturating_sub(now.observed_since(since));
                next.extend(Some(quiet).filter(|quiet| !quiet.is_zero()));
            }
        }
        next.into_iter().min()
    }

    fn may_write(&self) -> bool {
        !self.lost.is_some_and(|lost| lost.by_evidence)
    }

    // === What is next ===

    fn plan(&mut self, outbox: &mut Outbox, now: Now) -> Next {
        if self.phase == Phase::Running
            && self.stuck
            && let Some(lost) = self.lost
            && (lost.by_evidence || self.killed)
        {
            let message = "the lease was lost, and the command's tree is not proven dead";
            outbox.exit(Exit::Survivors, Some(message.to_owned()));
            return Next::Over;
        }
        if !self.may_write() {
            return self.plan_after_evidence(outbox);
        }
        if self.phase == Phase::Gone(Release::Settled) {
            return self.end(outbox);
        }
        if !outbox.is_idle() {
            return Next::Stay;
        }
        if let Phase::Gone(Release::Due { .. }) = self.phase {
            return self.plan_release(outbox, now);
        }
        if let Phase::Preparing { since, quarantine } = self.phase
            && now.at.observed_since(since) >= quarantine
            && !self.doubt
            && self.is_fresh(outbox, now.at)
        {
            self.start(outbox);
        }
        if self.renewal.is_due(now.at) {
            if self.doubt {
                outbox.read(now.at);
            } else {
                self.renew(outbox, now);
            }
        }
        outbox.keep_watching(now.at, &self.seen);
        Next::Stay
    }

    /// Whether enough of the term is left to start the command. If not, the next renewal, which is
    /// due then, makes it so.
    fn is_fresh(&self, outbox: &Outbox, now: Instant) -> bool {
        let used = now.held_since(self.sent);
        used <= outbox.settings.timing.lease_duration / 2 && used < self.renew_deadline(outbox)
    }

    fn start(&mut self, outbox: &mut Outbox) {
        self.phase = Phase::Running;
        outbox.act(Action::Start(Term {
            token: self.token.clone(),
            uid: self.claim.uid.clone(),
            transitions: self.claim.record.transitions,
            sent: self.sent,
            kill_deadline: self.kill_deadline(outbox),
        }));
    }

    fn renew(&mut self, outbox: &mut Outbox, now: Now) {
        let record = Record {
            holder: Some(outbox.settings.identity.clone()),
            duration: Some(outbox.settings.timing.lease_duration),
            ..self.claim.record.clone()
        };
        outbox.write(now, Some(self.claim.clone()), record, Acquires::No);
    }

    /// The lease is somebody else's: wait for the proof that the tree is dead, and write nothing.
    fn plan_after_evidence(&self, outbox: &mut Outbox) -> Next {
        match self.phase {
            Phase::Running => Next::Stay,
            Phase::Gone(_) => self.end(outbox),
            // Nothing ran, so nothing is lost: contend again.
            Phase::Preparing { .. } => {
                outbox.answered();
                outbox.settle_all();
                Next::Wait(Box::new(Waiting::new(self.started)))
            }
        }
    }

    /// Gives the lease back, if it is still as we wrote it last.
    fn plan_release(&mut self, outbox: &mut Outbox, now: Now) -> Next {
        if !self.renewal.is_due(now.at) {
            return Next::Stay;
        }
        if self.doubt {
            outbox.read(now.at);
            return Next::Stay;
        }
        let record = Record {
            holder: None,
            duration: Some(RELEASED_DURATION),
            ..self.claim.record.clone()
        };
        outbox.write(now, Some(self.claim.clone()), record, Acquires::Yes);
        Next::Stay
    }

    fn end(&self, outbox: &mut Outbox) -> Next {
        if let Some((exit, message)) = &self.verdict {
            outbox.exit(*exit, message.clone());
            return Next::Over;
        }
        // A command that ended by itself before the loss has done its work.
        let (exit, message) = match (self.ended, self.lost) {
            (Some((exit, at)), Some(lost)) if at.boot < lost.at.boot => (exit, None),
            (_, Some(_)) => (
                Exit::Lost,
                Some("the lease was lost, and the command's tree is dead"),
            ),
            (Some((exit, _)), None) => (exit, None),
            (None, None) => (Exit::Internal, Some("nobody knows how the command ended")),
        };
        outbox.exit(exit, message.map(str::to_owned));
        Next::Over
    }

    // === What the guard and others say ===

    fn on_signal(&mut self, outbox: &Outbox, now: Instant, signal: i32, ends: bool) {
        if !ends {
            return;
        }
        match self.phase {
            Phase::Preparing { .. } => self.abandon(outbox, now, Exit::Signal(signal), None),
            Phase::Running if self.kill_after.is_none() => {
                self.kill_after = outbox.settings.kill_after.map(|after| KillAfter {
                    signal,
                    timer: Timer { since: now, after },
                });
            }
            Phase::Running | Phase::Gone(_) => {}
        }
    }

    fn on_not_started(&mut self, outbox: &Outbox, now: Instant, reason: NotStarted) {
        let (exit, message) = match reason {
            NotStarted::NoAnswer => {
                let message = "the guard process did not answer when told to start the command, \
                               and was killed";
                return self.on_guard_failed(outbox, now, message.to_owned());
            }
            NotStarted::Refused(exit, reason) => (exit, Some(reason)),
            NotStarted::Cancelled(signal) => (Exit::Signal(signal), None),
            NotStarted::TooLate => (
                Exit::Lost,
                Some("the term ran out before the command could start".to_owned()),
            ),
        };
        self.abandon(outbox, now, exit, message);
    }

    /// Nothing of the command runs, and nobody could run it. A loss that came first is the reason to
    /// end, and this only its manner.
    fn on_guard_failed(&mut self, outbox: &Outbox, now: Instant, message: String) {
        self.gone(outbox, now);
        if self.lost.is_none() {
            self.verdict = Some((Exit::Internal, Some(message)));
        }
    }
}

fn at_once(now: Instant) -> Timer {
    Timer {
        since: now,
        after: Duration::ZERO,
    }
}
