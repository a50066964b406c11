//! What must be true at all times, and at which moments that is looked at.

use super::{
    clocks::RATE_ERROR,
    guard::Tree,
    profile::{Profile, micros},
    server::{revision, version},
    swaps::Swaps,
    wire::Request,
    world::{Happening, MILLISECOND, SECOND, World},
};
use crate::{
    clock::Instant,
    election::{Create, Election, Event, NotStarted, Reply, Report, Term},
    exit::Exit,
    lease::{Change, Failure, FailureKind, Identity, Write},
};
use std::time::Duration;

/// What is remembered to tell whether an invariant is broken.
#[derive(Debug, Default)]
pub(super) struct Watcher {
    pub(super) violation: Option<String>,
    /// The token of the last command that started.
    pub(super) last_token: u64,
    /// The last time that somebody deleted or edited the lease.
    pub(super) last_hand: Option<Hand>,
    /// When a command was last seen running.
    pub(super) last_alive: u64,
    /// From then on there is always a command, but for the moment of a hand-over.
    pub(super) settled_at: Option<u64>,
    last_holder: Option<Identity>,
    pub(super) swaps: Swaps,
}

/// Somebody's deletion or edit.
#[derive(Clone, Copy, Debug)]
pub(super) struct Hand {
    pub(super) revision: u64,
    pub(super) at: u64,
}

/// What a write found.
#[derive(Clone, Copy, Debug)]
pub(super) enum Before {
    Nothing,
    Free,
    Ours,
    Others {
        duration: Option<Duration>,
        /// Since when, in true time, nobody has written it.
        since: u64,
    },
}

/// What a request costs of its sender's allowance.
const COST: u64 = 1_000;

/// The largest allowance.
const ALLOWANCE: u64 = 40 * COST;

impl World {
    pub(super) fn violate(&mut self, what: &str) {
        if self.watcher.violation.is_none() {
            let (seconds, micros) = (self.now / SECOND, self.now % SECOND);
            self.watcher.violation = Some(format!("at {seconds}.{micros:06} s: {what}"));
            self.note(format_args!("VIOLATION: {what}"));
        }
    }

    // === Requests and writes ===

    pub(super) fn check_request(&mut self, index: usize, write: Option<&Write>) {
        let now = self.now;
        let retry = self.plan.pace;
        let node = &mut self.nodes[index];
        // Who lost the lease before anything ran begins anew, and its request is of no interest.
        let begins_anew = node.record.lost && !node.record.started;
        if node.request.is_some() && !begins_anew {
            return self.violate("a second request while the first is under way");
        }
        let record = &mut node.record;
        let earned = (now - record.allowed_at).min(10 * retry) * 8 * COST / retry;
        record.allowance = (record.allowance + earned).min(ALLOWANCE);
        record.allowed_at = now;
        if record.allowance < COST {
            return self.violate(&format!("node {index} hammers the server"));
        }
        record.allowance -= COST;
        let Some(write) = write else {
            return;
        };
        let (gone, life) = (record.gone, node.life);
        let holds = write.record.holder.is_some();
        let ours = node.identity == *write.record.holder.as_ref().unwrap_or(&node.identity);
        if !ours {
            self.violate("a write in somebody else's name");
        } else if holds && gone {
            self.violate("a renewal after the tree was gone");
        } else if !holds && self.tree_of(index, life).is_some() {
            self.violate("a release while something of the command is left");
        }
        if write.record.renew_time.is_none() {
            self.violate("a write without a renewTime");
        }
    }

    /// What a write that arrives finds.
    pub(super) fn before(&self, request: &Request) -> Before {
        let Some(stored) = self.server.stored() else {
            return Before::Nothing;
        };
        let record = &stored.claim.record;
        match &record.holder {
            None => Before::Free,
            Some(holder) if request.identity.as_ref() == Some(holder) => Before::Ours,
            Some(_) => Before::Others {
                duration: record.duration,
                // The servers' clocks tell of lease-exec's own writes only, and not of an edit.
                since: match self.nodes[request.node].plan.server_clock_skew {
                    Some(_) => stored.written,
                    None => stored.committed,
                },
            },
        }
    }

    /// A write of an instance's was carried out.
    pub(super) fn on_commit(&mut self, request: &Request, before: Before) {
        let Some(write) = &request.write else {
            return;
        };
        self.check_swap(write);
        let record = &write.record;
        if write.base.is_none() && !matches!(before, Before::Nothing) {
            self.violate("a create overwrote something");
        }
        if write.base.is_some() && matches!(before, Before::Nothing) {
            self.violate("a write made a lease that was deleted");
        }
        match before {
            Before::Others { .. } if record.holder.is_none() => {
                self.violate("somebody else's record was emptied");
            }
            Before::Others { duration, since } => self.check_take_over(request, duration, since),
            Before::Ours | Before::Nothing | Before::Free => {}
        }
        let node = &mut self.nodes[request.node];
        if node.life != request.life || node.election.is_none() {
            return;
        }
        let revision = self.server.revision();
        node.record.committed = revision;
        let acquires = record.holder.is_some() && !matches!(before, Before::Ours);
        if acquires {
            node.record.acquired = revision;
        }
        let commits = &mut node.record.commits;
        if commits.len() == 24 {
            commits.remove(0);
        }
        commits.push(request.sent);
        // It is the holder again, and known to be.
        if let Some(tree) = self.tree_of(request.node, request.life) {
            tree.disowned = None;
        }
    }

    /// A held lease is taken only once it has been left alone for the record's duration.
    fn check_take_over(&mut self, request: &Request, duration: Option<Duration>, since: u64) {
        let own = self.nodes[request.node].plan.timing.lease_duration;
        let duration = micros(duration.unwrap_or(own));
        let waited = request.sent_at.saturating_sub(since);
        let least = duration * 1_000_000 / (1_000_000 + u64::from(RATE_ERROR));
        if waited + 2 < least {
            self.violate("a held lease was taken before it had run out");
        }
    }

    // === Terms ===

    pub(super) fn check_start(&mut self, index: usize, term: &Term, token: u64) {
        let record = &mut self.nodes[index].record;
        if record.started {
            return self.violate("a second start of one process");
        }
        record.started = true;
        // If the answer was lost, and somebody edited what the write made, the version that was read
        // is that of the edit: it is larger, and no other term's.
        if record.acquired == 0 || token < record.acquired {
            return self.violate("a start whose token is no version that it acquired with");
        }
        self.check_extension(index, term.sent, term.kill_deadline);
    }

    /// A term counts from the send of an own write that was carried out.
    pub(super) fn check_extension(&mut self, index: usize, sent: Instant, kill: Duration) {
        let node = &self.nodes[index];
        let commits = &node.record.commits;
        if !commits.contains(&sent) {
            self.violate("a term that counts from no write that was carried out");
        } else if kill > node.plan.timing.kill_deadline {
            self.violate("a kill later than the timing allows");
        }
    }

    /// Who was told that the lease is not its own any more kills at once.
    pub(super) fn check_killed(&mut self, index: usize, life: u32) {
        let foreign = self.nodes[index].record.foreign;
        let lives = |tree: &mut Tree| tree.token < foreign && !tree.killed;
        if self.tree_of(index, life).is_some_and(lives) {
            self.violate("a command goes on although its front was told of another holder");
        }
    }

    /// At most one tree can run.
    pub(super) fn check_alone(&mut self, position: usize) {
        let now = self.now;
        let token = self.trees[position].token;
        let newcomer = &self.trees[position];
        if newcomer.disowned.is_none() && token < self.watcher.last_token {
            return self.violate("a fencing token that does not grow");
        }
        self.watcher.last_token = self.watcher.last_token.max(token);
        if let Some(settled) = self.watcher.settled_at {
            let since = self.watcher.last_alive.max(settled);
            let idle = self.trees.iter().filter(|tree| tree.is_able()).count() <= 1;
            if idle && now > since + self.longest_gap() {
                return self.violate("a hand-over took long although all is well");
            }
        }
        self.watcher.last_alive = now;
        if !self.trees[position].is_able() {
            return;
        }
        for other in 0..self.trees.len() {
            if other == position || !self.trees[other].is_able() {
                continue;
            }
            let (one, two) = (&self.trees[other], &self.trees[position]);
            let by_hand = one.disowned.is_some() || two.disowned.is_some();
            if by_hand && self.plan.bears_overlap_by_hand() {
                self.summary.overlaps_by_hand += 1;
            } else {
                let (one, two) = (one.node, two.node);
                return self.violate(&format!("the commands of nodes {one} and {two} both run"));
            }
        }
    }

    /// A tree whose lease was deleted or edited under it is dead within a lease duration.
    pub(super) fn check_disowned(&mut self, position: usize) {
        let tree = &self.trees[position];
        let lease = micros(self.nodes[tree.node].plan.timing.lease_duration);
        let counts = self.plan.bears_overlap_by_hand() && !tree.excused && !tree.frozen;
        let overlaps = self
            .trees
            .iter()
            .filter(|other| other.name != tree.name && other.is_able() && tree.is_able())
            .map(|other| self.now - tree.since.max(other.since))
            .max();
        let overlap = overlaps.unwrap_or_default();
        self.summary.longest_overlap = self.summary.longest_overlap.max(overlap);
        if counts && tree.disowned.is_some_and(|since| self.now > since + lease) {
            self.violate(
                "a command outlived its deleted or edited lease by more than its duration",
            );
        }
    }

    // === What an instance hears and says ===

    pub(super) fn watcher_hears(&mut self, index: usize, event: &Event) {
        let node = &mut self.nodes[index];
        let record = &mut node.record;
        let claim = match event {
            Event::Changed(Change::Written(claim) | Change::Deleted(claim)) => Some(claim),
            // An answer that came after the limit of its request is of no interest.
            Event::Reply(id, Reply::Read(Ok(claim))) if record.answered == Some(*id) => {
                claim.as_ref()
            }
            _ => None,
        };
        if let Some(claim) = claim {
            let deleted = matches!(event, Event::Changed(Change::Deleted(_)));
            if deleted || claim.record.holder.as_ref() != Some(&node.identity) {
                record.foreign = record.foreign.max(revision(&claim.version));
            }
        }
        match event {
            Event::TreeGone => record.gone = true,
            Event::NotStarted(reason) => {
                record.gone = true;
                match reason {
                    NotStarted::NoAnswer => record.guard_died = true,
                    NotStarted::Refused(exit, _) => record.refused = Some(*exit),
                    NotStarted::Cancelled(signal) => record.signals.push(*signal),
                    NotStarted::TooLate => record.too_late = true,
                }
            }
            Event::GuardDied(_) => {
                record.gone = true;
                record.guard_died = true;
            }
            Event::Ended { exit, .. } => record.ended = Some(*exit),
            Event::TreeStuck { .. } => record.stuck = true,
            Event::Signalled { signal, .. } => record.signals.push(*signal),
            Event::Changed(_) => record.allowance += 3 * COST,
            Event::Reply(_, Reply::Read(Err(failure)) | Reply::Written(Err(failure))) => {
                record.heard(failure);
            }
            Event::Overdue | Event::Wake | Event::Reply(..) => {}
        }
    }

    pub(super) fn hear(&mut self, index: usize, report: &Report) {
        self.note(format_args!("node {index}: {report:?}"));
        match report {
            Report::Acquired { .. } => {
                self.summary.elections += 1;
                let identity = &self.nodes[index].identity;
                if self.watcher.last_holder.as_ref() != Some(identity) {
                    if self.watcher.last_holder.is_some() {
                        self.summary.hand_overs += 1;
                    }
                    self.watcher.last_holder = Some(identity.clone());
                }
            }
            Report::Lost { .. } => {
                self.summary.losses += 1;
                self.nodes[index].record.lost = true;
            }
            Report::Released => self.summary.releases += 1,
            Report::HeldBy { .. }
            | Report::Unreachable(_)
            | Report::Reachable
            | Report::Polling(_)
            | Report::Quarantined(_)
            | Report::RenewFailed { .. }
            | Report::Renewed
            | Report::Killing(_)
            | Report::Stuck(_)
            | Report::NotReleased { .. } => {}
        }
        let trouble = matches!(
            report,
            Report::Lost { .. }
                | Report::RenewFailed { .. }
                | Report::Unreachable(_)
                | Report::NotReleased { .. }
        );
        if trouble && !self.plan.has_storms() {
            self.violate("trouble although nothing is wrong");
        }
    }

    /// Every process ends once, and for a reason that there is.
    pub(super) fn on_exit(&mut self, index: usize, exit: Exit) {
        *self.summary.exits.entry(exit.code()).or_default() += 1;
        let node = &mut self.nodes[index];
        let life = node.life;
        if node.election.as_mut().and_then(Election::poll).is_some() {
            return self.violate("an action after the exit");
        }
        let (record, plan) = (&node.record, &node.plan);
        let is_true = match exit {
            Exit::Command(_) => record.ended == Some(exit),
            Exit::Signal(signal) => record.ended == Some(exit) || record.signals.contains(&signal),
            Exit::Lost => record.lost || record.too_late,
            Exit::Survivors => record.lost && record.stuck,
            Exit::Conflict(_) => exit == plan.conflict && plan.wait.is_some(),
            Exit::Unreachable => plan.wait.is_some(),
            Exit::Forbidden => record.forbidden,
            Exit::Configuration => record.misconfigured || plan.create == Create::Never,
            Exit::Internal => record.guard_died,
            Exit::NotFound => record.refused == Some(exit),
            Exit::Usage | Exit::NotExecutable => false,
        };
        if !is_true {
            return self.violate(&format!("the exit {exit:?} is not what happened"));
        }
        if let Some(tree) = self.tree_of(index, life) {
            tree.excused = true;
            if exit != Exit::Survivors {
                self.violate("an exit while something of the command is left");
            }
        }
    }

    // === That something runs ===

    /// From now on all is well; how long it may take until a command runs.
    pub(super) fn await_running(&mut self, since: u64) {
        let limit = self.longest_silence();
        self.schedule(limit, Happening::MustRun { since });
    }

    /// The longest that nothing may run from the moment on at which all is well.
    pub(super) fn longest_silence(&self) -> u64 {
        if !self.plan.has_storms() {
            return 10 * SECOND;
        }
        let lease = self.plan.longest_lease();
        // Late writes may prolong a record once more; then it must run out, and if it is gone, a
        // quarantine follows. A candidate that was told to wait does so for at most a lease duration.
        let by_hand = if self.plan.edits() { 60 * SECOND } else { 0 };
        self.plan.lateness + 3 * lease + by_hand + 90 * SECOND
    }

    /// The longest that a hand-over takes where all is well: a candidate may be just starting, or
    /// may have to poll, or to wait because the lease is young.
    fn longest_gap(&self) -> u64 {
        let quarantines = |node: &super::node::Node| node.plan.create == Create::Quarantine;
        let quarantine = if self.nodes.iter().any(quarantines) {
            2 * self.plan.longest_lease()
        } else {
            0
        };
        5 * SECOND + 3 * self.plan.longest_retry() + quarantine
    }

    /// Whether a command runs, or one that can't be killed is left and keeps its lease.
    fn runs_or_lingers(&self) -> bool {
        let lingers = |tree: &Tree| {
            let node = &self.nodes[tree.node];
            node.life == tree.life && node.election.is_some()
        };
        self.trees
            .iter()
            .any(|tree| tree.is_able() || lingers(tree))
    }

    pub(super) fn must_run(&mut self, since: u64) {
        let runs = self.runs_or_lingers();
        if !runs && self.watcher.last_alive <= since {
            return self.violate("no command has run although all is well");
        }
        self.watcher.settled_at = Some(self.now);
    }

    /// At the end of a time in which all was well.
    pub(super) fn check_gap(&mut self) {
        let Some(settled) = self.watcher.settled_at.take() else {
            return;
        };
        let runs = self.runs_or_lingers();
        let since = self.watcher.last_alive.max(settled);
        if !runs && self.now > since + self.longest_gap() {
            self.violate("no command runs although all is well");
        }
    }

    pub(super) fn check_the_end(&mut self) {
        if self.plan.has_storms() {
            return;
        }
        self.check_gap();
        let nodes = u64::try_from(self.nodes.len()).expect("at most a hundred");
        if self.plan.profile == Profile::Herd {
            self.summary.herd_elections = self.summary.elections;
            self.summary.herd_candidates = self.summary.elections * nodes;
            self.summary.herd_conflicts = self.summary.conflicts;
        }
        let summary = &self.summary;
        // Every renewal; a look after each watch; who meets a hand-over tries once and looks.
        let budget = self.now / self.plan.pace
            + nodes * (self.now / (25 * SECOND) + 4)
            + summary.elections * (3 * nodes + 4);
        if summary.requests > budget {
            let requests = summary.requests;
            self.violate(&format!("{requests} requests, and {budget} are enough"));
        } else if summary.conflicts > self.conflicts_borne(nodes) {
            self.violate("more conflicts than candidates that know of each other need");
        } else if self.plan.profile == Profile::Day && summary.elections != 1 {
            self.violate("the lease changed hands although nothing is wrong");
        }
    }

    /// The most conflicts where nothing is wrong. Each process meets two before it knows of a crowd.
    /// Then it meets one only if its turn comes while the word of a new holder is on its way: five
    /// messages and late timers, of a window that is first an eighth of the retry period. Chance may
    /// make it twice as many, and a few more where few are expected.
    fn conflicts_borne(&self, nodes: u64) -> u64 {
        let lives = self
            .nodes
            .iter()
            .map(|node| u64::from(node.life))
            .sum::<u64>();
        let way = 5 * self.plan.latency + MILLISECOND;
        let window = self.plan.longest_retry() / 8;
        let meeting = (2 * nodes * way / window).min(nodes);
        2 * lives + self.summary.elections * (meeting + 4)
    }

    /// Notes that somebody has just deleted or edited the lease.
    pub(super) fn touched_by_hand(&mut self) {
        let revision = self.server.revision();
        let at = self.now;
        self.note(format_args!("the version is now {}", version(revision)));
        self.watcher.last_hand = Some(Hand { revision, at });
        for tree in &mut self.trees {
            tree.disowned.get_or_insert(at);
        }
    }
}

impl super::node::Ledger {
    fn heard(&mut self, failure: &Failure) {
        match failure.kind {
            FailureKind::Forbidden => self.forbidden = true,
            FailureKind::Unauthorized
            | FailureKind::NoNamespace
            | FailureKind::Malformed
            | FailureKind::Misconfigured => self.misconfigured = true,
            FailureKind::Unreachable => {}
        }
    }
}
