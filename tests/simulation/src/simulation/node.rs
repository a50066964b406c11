//! One node: a machine with one instance of lease-exec, which is started again whenever it ends.
//!
//! This is the part that the driver has in the program: the loop, and the order of what it waits
//! for.

use crate::{
    clock::Instant,
    election::{Action, Election, Event, Reply, RequestId, Settings},
    exit::Exit,
    lease::{Failure, FailureKind, Identity},
};

use super::{
    clocks::Clocks,
    profile::NodePlan,
    summary::Fault,
    world::{Happening, MILLISECOND, NEVER, SECOND, World},
};

pub(super) struct Node {
    pub(super) plan: NodePlan,
    pub(super) clocks: Clocks,
    /// Counts the instances.
    pub(super) life: u32,
    pub(super) election: Option<Election>,
    pub(super) identity: Identity,
    /// What happened while it was paused.
    pub(super) inbox: Vec<Event>,
    pub(super) pause: Option<Pause>,
    /// When that ends.
    pub(super) resumes_at: u64,
    /// Counts pauses, so that only the last one's end counts.
    pub(super) pauses: u32,
    /// It was paused between an event and what follows from it.
    pub(super) undrained: bool,
    pub(super) request: Option<InFlight>,
    pub(super) watch: Option<Watch>,
    pub(super) cut: Cut,
    pub(super) cuts: u32,
    pub(super) record: Ledger,
    /// When the election wants to be woken, in true time.
    wake_at: u64,
    /// When the one timer goes off that stands for that and for the limit of a request.
    alarm_at: u64,
    alarms: u32,
    /// The time that was handed in last; writes count from it.
    handled: Instant,
}

/// What of a node stands still.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pause {
    /// The front alone: its guard and the command go on.
    Front,
    /// Everything, but the clocks.
    Node,
    /// Everything, and CLOCK_MONOTONIC_RAW.
    Suspend,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct InFlight {
    pub(super) id: RequestId,
    pub(super) writes: bool,
    limit_at: u64,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Watch {
    pub(super) name: u64,
    /// The server sends events.
    pub(super) open: bool,
    /// They do not arrive any more.
    pub(super) frozen: bool,
    /// When the last event arrives: they stay in order.
    pub(super) last: u64,
}

/// Which ways are closed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Cut {
    pub(super) outgoing: bool,
    pub(super) incoming: bool,
}

/// What one instance has done and been told: the invariants are held against it.
#[derive(Clone, Debug, Default)]
pub(super) struct Ledger {
    /// When each of the last writes that were carried out was sent.
    pub(super) commits: Vec<Instant>,
    pub(super) started: bool,
    /// It was told that nothing of the command runs.
    pub(super) gone: bool,
    pub(super) lost: bool,
    /// It was answered with 403.
    pub(super) forbidden: bool,
    /// It was answered with something that no retry mends.
    pub(super) misconfigured: bool,
    pub(super) stuck: bool,
    pub(super) too_late: bool,
    pub(super) guard_died: bool,
    pub(super) ended: Option<Exit>,
    pub(super) refused: Option<Exit>,
    pub(super) signals: Vec<i32>,
    /// The request whose answer it is just given, if that came before its limit.
    pub(super) answered: Option<RequestId>,
    /// The newest version at which it was told that the lease was gone or somebody else's.
    pub(super) foreign: u64,
    /// The version of its last write that was carried out.
    pub(super) committed: u64,
    /// The version of the write that acquired last.
    pub(super) acquired: u64,
    /// How many more requests it may send at once, in thousandths, and when that was so.
    pub(super) allowance: u64,
    pub(super) allowed_at: u64,
}

impl Node {
    pub(super) fn new(plan: NodePlan, clocks: Clocks) -> Self {
        Self {
            handled: clocks.read(0).at,
            plan,
            clocks,
            life: 0,
            election: None,
            identity: Identity::new("nobody yet").expect("not empty"),
            inbox: Vec::new(),
            pause: None,
            resumes_at: 0,
            pauses: 0,
            undrained: false,
            request: None,
            watch: None,
            cut: Cut::default(),
            cuts: 0,
            record: Ledger::default(),
            wake_at: NEVER,
            alarm_at: NEVER,
            alarms: 0,
        }
    }

    pub(super) fn is_paused(&self) -> bool {
        self.pause.is_some()
    }

    /// Whether its guard and its command stand still as well.
    pub(super) fn is_frozen(&self) -> bool {
        matches!(self.pause, Some(Pause::Node | Pause::Suspend))
    }

    /// Forgets the instance that runs; what it started may go on.
    pub(super) fn end(&mut self) {
        self.election = None;
        self.inbox.clear();
        self.undrained = false;
        self.request = None;
        self.watch = None;
        self.wake_at = NEVER;
        if self.pause == Some(Pause::Front) {
            self.pause = None;
        }
    }
}

impl World {
    /// Starts an instance of lease-exec in place of the last one.
    pub(super) fn begin(&mut self, index: usize, life: u32) {
        if self.nodes[index].life != life || self.nodes[index].election.is_some() {
            return;
        }
        if self.nodes[index].is_paused() {
            return self.schedule(SECOND, Happening::Begin { node: index, life });
        }
        let life = life + 1;
        let (random, seed) = (self.random.next(), self.random.next());
        let now = self.now;
        let node = &mut self.nodes[index];
        node.life = life;
        // Some share the readable part: what makes an identity unique is the random one.
        let name = if index % 3 == 2 {
            "same".to_owned()
        } else {
            format!("node-{index}")
        };
        node.identity = Identity::new(format!("{name}_{life}-{random:016x}")).expect("not empty");
        node.record = Ledger {
            allowance: 40_000,
            allowed_at: now,
            ..Ledger::default()
        };
        let plan = &node.plan;
        let settings = Settings {
            identity: node.identity.clone(),
            timing: plan.timing,
            wait: plan.wait,
            create: plan.create,
            server_clock_skew: plan.server_clock_skew,
            kill_after: plan.kill_after,
            conflict: plan.conflict,
            seed,
        };
        let read = node.clocks.read(now);
        node.handled = read.at;
        node.election = Some(Election::new(settings, read));
        self.note(format_args!("node {index}: begins, as life {life}"));
        self.drain(index);
    }

    /// Hands an event to a front that runs.
    pub(super) fn hand_in(&mut self, index: usize, event: Event) {
        let stalls = self.storm && self.random.happens(self.plan.chances.stall);
        self.watcher_hears(index, &event);
        if let Event::Signalled { signal, ends: true } = event {
            self.forward(index, signal);
        }
        let now = self.now;
        let node = &mut self.nodes[index];
        let read = node.clocks.read(now);
        let Some(election) = &mut node.election else {
            return;
        };
        node.handled = read.at;
        election.handle(read, event);
        if stalls {
            node.undrained = true;
            let lease = super::profile::micros(node.plan.timing.lease_duration);
            let length = self.random.below(lease * 3 / 2);
            self.count(Fault::FrontStalledBeforeActing);
            return self.pause(index, Pause::Front, length);
        }
        self.drain(index);
    }

    /// Carries out what the election wants, and sets the timer.
    pub(super) fn drain(&mut self, index: usize) {
        let life = self.nodes[index].life;
        let handled = self.nodes[index].handled;
        while let Some(action) = self.nodes[index].election.as_mut().and_then(Election::poll) {
            self.carry_out(index, life, handled, action);
            if self.watcher.violation.is_some() {
                return;
            }
        }
        self.check_killed(index, life);
        let now = self.now;
        let node = &mut self.nodes[index];
        let Some(election) = &node.election else {
            return;
        };
        // After a stall the clocks have moved on, and the next wake-up is due at once.
        let late = node.undrained;
        node.undrained = false;
        match election.deadline(node.clocks.read(now)) {
            None => node.wake_at = NEVER,
            Some(left) => {
                if left.is_zero() && !late {
                    return self.violate("the deadline after an event is not later than the event");
                }
                node.wake_at = now + node.clocks.true_micros(left);
            }
        }
        if node.wake_at != NEVER {
            let late = self.random.below(MILLISECOND / 2);
            self.nodes[index].wake_at += late;
            if self.storm && self.random.happens(self.plan.chances.timer_late) {
                self.count(Fault::TimerLate);
                self.nodes[index].wake_at += self.random.below(2 * SECOND);
            }
        }
        self.set_alarm(index);
    }

    fn set_alarm(&mut self, index: usize) {
        let node = &mut self.nodes[index];
        let limit = node.request.map_or(NEVER, |request| request.limit_at);
        let at = node.wake_at.min(limit);
        // An alarm that comes too early is set again then.
        if at < node.alarm_at {
            node.alarms += 1;
            node.alarm_at = at;
            let number = node.alarms;
            self.schedule_at(
                at,
                Happening::Alarm {
                    node: index,
                    number,
                },
            );
        }
    }

    pub(super) fn on_alarm(&mut self, index: usize, number: u32) {
        let node = &mut self.nodes[index];
        if node.alarms != number {
            return;
        }
        node.alarm_at = NEVER;
        if node.is_paused() || node.election.is_none() {
            return;
        }
        let life = node.life;
        if let Some(request) = node.request
            && request.limit_at <= self.now
        {
            let reply = failed(request.writes, no_answer());
            self.deliver(index, request.id, reply);
        }
        let node = &self.nodes[index];
        if node.life == life && !node.is_paused() && node.wake_at <= self.now {
            self.hand_in(index, Event::Wake);
        }
        if !self.nodes[index].is_paused() {
            self.set_alarm(index);
        }
    }

    fn carry_out(&mut self, index: usize, life: u32, handled: Instant, action: Action) {
        match action {
            Action::Read(id) => self.send(index, id, None, handled),
            Action::Write(id, write) => self.send(index, id, Some(write), handled),
            Action::Watch(version) => self.watch(index, &version),
            Action::Start(term) => self.start(index, life, &term),
            Action::Extend {
                sent,
                kill_deadline,
            } => self.extend(index, life, sent, kill_deadline),
            Action::Terminate => self.terminate(index, life),
            Action::Kill => self.kill_of(index, life),
            Action::Report(report) => self.hear(index, &report),
            Action::Exit(exit, message) => {
                self.note(format_args!(
                    "node {index}: exits with {exit:?}: {}",
                    message.unwrap_or_default()
                ));
                self.on_exit(index, exit);
                self.nodes[index].end();
                let longest = if self.storm { 20 * SECOND } else { 2 * SECOND };
                let after = self.random.between(MILLISECOND, longest);
                self.schedule(after, Happening::Begin { node: index, life });
            }
        }
    }

    /// Notes the one request of a node, whose limit counts from now.
    pub(super) fn await_answer(&mut self, index: usize, id: RequestId, writes: bool) {
        let node = &mut self.nodes[index];
        let limit = node.plan.timing.request_timeout;
        let limit_at = self.now + node.clocks.true_micros(limit) + 1;
        node.request = Some(InFlight {
            id,
            writes,
            limit_at,
        });
    }

    // === Pauses ===

    pub(super) fn pause(&mut self, index: usize, pause: Pause, length: u64) {
        if self.nodes[index].is_paused() {
            return;
        }
        self.note(format_args!(
            "node {index}: paused ({pause:?}) for {} ms",
            length / MILLISECOND
        ));
        let now = self.now;
        let node = &mut self.nodes[index];
        node.pauses += 1;
        node.pause = Some(pause);
        node.resumes_at = now + length;
        let number = node.pauses;
        if pause == Pause::Suspend {
            node.clocks.suspend(now);
        }
        if node.is_frozen() {
            self.freeze(index);
        }
        self.schedule(
            length,
            Happening::Resume {
                node: index,
                number,
            },
        );
    }

    pub(super) fn resume(&mut self, index: usize, number: u32) {
        let now = self.now;
        let node = &mut self.nodes[index];
        if node.pauses != number {
            return;
        }
        let Some(pause) = node.pause.take() else {
            return;
        };
        if pause == Pause::Suspend {
            node.clocks.resume(now);
        }
        let life = node.life;
        self.note(format_args!("node {index}: resumes"));
        if pause != Pause::Front {
            self.thaw(index);
        }
        if self.nodes[index].undrained {
            self.drain(index);
        }
        let mut events = std::mem::take(&mut self.nodes[index].inbox);
        events.sort_by_key(importance);
        let mut events = events.into_iter();
        for event in events.by_ref() {
            if self.nodes[index].life != life || self.nodes[index].is_paused() {
                self.nodes[index].inbox.push(event);
                break;
            }
            match event {
                Event::Reply(id, reply) => self.deliver(index, id, reply),
                event => self.hand_in(index, event),
            }
        }
        if self.nodes[index].life == life {
            self.nodes[index].inbox.extend(events);
        }
        let node = &mut self.nodes[index];
        node.alarm_at = NEVER;
        if node.election.is_some() && !node.is_paused() {
            self.set_alarm(index);
        }
    }
}

/// The order in which the driver looks at what has happened.
fn importance(event: &Event) -> u8 {
    match event {
        Event::Ended { .. }
        | Event::Overdue
        | Event::NotStarted(_)
        | Event::TreeGone
        | Event::TreeStuck { .. }
        | Event::GuardDied(_) => 0,
        Event::Signalled { .. } => 1,
        Event::Changed(_) => 2,
        Event::Reply(..) => 3,
        Event::Wake => 4,
    }
}

/// The answer to a request that failed.
pub(super) fn failed(writes: bool, failure: Failure) -> Reply {
    if writes {
        Reply::Written(Err(failure))
    } else {
        Reply::Read(Err(failure))
    }
}

fn no_answer() -> Failure {
    Failure {
        kind: FailureKind::Unreachable,
        message: "no answer in time".to_owned(),
        retry_after: None,
    }
}
