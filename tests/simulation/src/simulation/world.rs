//! The world of one seed: what is to happen, in the order of true time.

use std::{cmp::Reverse, collections::BinaryHeap, fmt, fmt::Write as _, rc::Rc};

use super::{
    clocks::{Clocks, RATE_ERROR, Rates},
    guard::Tree,
    invariants::Watcher,
    node::Node,
    profile::{Plan, Profile},
    random::Random,
    server::{Replica, Server},
    summary::{Fault, Summary},
    wire::{Fate, Request},
};
use crate::{
    election::{Event, Reply, RequestId},
    lease::Change,
};

pub(super) const MILLISECOND: u64 = 1_000;
pub(super) const SECOND: u64 = 1_000_000;
pub(super) const NEVER: u64 = u64::MAX;

pub(super) struct World {
    /// True time, in microseconds.
    pub(super) now: u64,
    pub(super) random: Random,
    pub(super) plan: Plan,
    pub(super) nodes: Vec<Node>,
    pub(super) trees: Vec<Tree>,
    pub(super) server: Server,
    pub(super) service: Service,
    /// Faults happen at present.
    pub(super) storm: bool,
    pub(super) watcher: Watcher,
    pub(super) summary: Summary,
    /// How many names of trees and watches were given.
    pub(super) names: u64,
    agenda: BinaryHeap<Reverse<Entry>>,
    scheduled: u64,
    history: Option<String>,
}

/// How the API servers are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Service {
    Up,
    /// etcd stands still; requests wait.
    Stalled {
        until: u64,
    },
    /// Nobody answers.
    Down,
    /// One server after the other restarts.
    Restarting,
}

/// What is to happen.
#[derive(Debug)]
pub(super) enum Happening {
    Begin {
        node: usize,
        life: u32,
    },
    /// A node's timer: for its election's deadline or a request's limit.
    Alarm {
        node: usize,
        number: u32,
    },
    Arrive {
        request: Box<Request>,
        fate: Fate,
    },
    Answer {
        node: usize,
        life: u32,
        id: RequestId,
        reply: Box<Reply>,
    },
    OpenWatch {
        node: usize,
        watch: u64,
        after: u64,
    },
    Notice {
        node: usize,
        watch: u64,
        change: Rc<Change>,
    },
    EndWatch {
        node: usize,
        watch: u64,
        why: &'static str,
    },
    TreeStarts {
        tree: u64,
    },
    TreeEnds {
        tree: u64,
        by_itself: bool,
    },
    TreeGone {
        tree: u64,
    },
    TreeStuck {
        tree: u64,
    },
    GuardAlarm {
        tree: u64,
        number: u32,
    },
    GuardFound {
        node: usize,
        life: u32,
    },
    Resume {
        node: usize,
        number: u32,
    },
    Heal {
        node: usize,
        number: u32,
    },
    ServiceBack,
    NamespaceBack,
    Fault,
    Calm,
    Storm {
        number: u32,
    },
    MustRun {
        since: u64,
    },
}

struct Entry {
    at: u64,
    number: u64,
    happening: Happening,
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.number == other.number
    }
}

impl Eq for Entry {}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Entry {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}

/// What one seed came to.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The counts.
    pub summary: Summary,
    /// The invariant that was broken, and when; nothing was simulated after that.
    pub violation: Option<String>,
    /// All that happened, if it was asked for.
    pub history: String,
}

/// Whether to write down what happens, which takes much longer than simulating it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum History {
    /// Nothing but the counts.
    Forgotten,
    /// All of it.
    Kept,
}

/// Simulates one seed.
pub fn simulate(seed: u64, profile: Profile, kill_excess: i64, history: History) -> Outcome {
    let mut world = World::new(seed, profile, kill_excess, history);
    world.run();
    let violation = world.watcher.violation.take();
    let mut summary = world.summary;
    summary.seeds = 1;
    summary.micros = world.now;
    Outcome {
        summary,
        violation,
        history: world.history.unwrap_or_default(),
    }
}

impl World {
    fn new(seed: u64, profile: Profile, kill_excess: i64, history: History) -> Self {
        let mut random = Random::new(seed);
        let plan = Plan::new(profile, kill_excess, &mut random);
        // Versions of different lengths must compare as numbers.
        let revision = random.pick(&[1, 7, 95, 990, 9_900, 99_950, 123_456_789]);
        let server = Server::new(revision, plan.replicas.clone());
        let mut world = Self {
            now: 0,
            random,
            nodes: Vec::with_capacity(plan.nodes.len()),
            trees: Vec::with_capacity(8),
            server,
            service: Service::Up,
            storm: false,
            watcher: Watcher::default(),
            summary: Summary::default(),
            names: 0,
            agenda: BinaryHeap::with_capacity(1_024),
            scheduled: 0,
            history: (history == History::Kept).then(String::new),
            plan,
        };
        world.populate();
        world
    }

    fn populate(&mut self) {
        let nodes = self.plan.nodes.clone();
        let profile = self.plan.profile;
        self.note(format_args!("a world of profile {profile}"));
        for (node, plan) in nodes.into_iter().enumerate() {
            self.note(format_args!("node {node}: {plan:?}"));
            let clocks = self.new_clocks();
            self.nodes.push(Node::new(plan, clocks));
            let after = match self.plan.profile {
                Profile::Herd => self.random.below(SECOND),
                _ => self.random.below(5 * SECOND),
            };
            self.schedule(after, Happening::Begin { node, life: 0 });
        }
        if self.plan.has_storms() {
            self.schedule(2 * SECOND, Happening::Storm { number: 0 });
            self.schedule(3 * SECOND, Happening::Fault);
        } else {
            self.await_running(0);
        }
    }

    /// The clocks of a machine that was just switched on.
    pub(super) fn new_clocks(&mut self) -> Clocks {
        let rates = self.new_rates();
        let uptime = std::time::Duration::from_secs(self.random.between(1, 100_000));
        // Hours and days apart.
        let hours = self.random.around_zero(100);
        let wall = 1_790_000_000_000_000 + hours * 3_600_000_000;
        Clocks::new(self.now, uptime, rates, wall)
    }

    pub(super) fn new_rates(&mut self) -> Rates {
        let most = i64::from(RATE_ERROR);
        if self.plan.profile == Profile::Tight || self.random.happens(1_000) {
            let rate = self.random.pick(&[-most, most]);
            return Rates {
                boot: rate,
                raw: rate,
            };
        }
        Rates {
            boot: self.random.around_zero(RATE_ERROR),
            raw: self.random.around_zero(RATE_ERROR),
        }
    }

    pub(super) fn schedule(&mut self, after: u64, happening: Happening) {
        self.schedule_at(self.now.saturating_add(after), happening);
    }

    /// Schedules something for this time, or for now if that is past.
    pub(super) fn schedule_at(&mut self, at: u64, happening: Happening) {
        let at = at.max(self.now);
        self.scheduled += 1;
        let number = self.scheduled;
        self.agenda.push(Reverse(Entry {
            at,
            number,
            happening,
        }));
    }

    /// Writes a line of the history, if there is one.
    pub(super) fn note(&mut self, what: fmt::Arguments<'_>) {
        if let Some(history) = &mut self.history {
            let (seconds, micros) = (self.now / SECOND, self.now % SECOND);
            writeln!(history, "{seconds:>6}.{micros:06} {what}")
                .expect("a string can be written to");
        }
    }

    pub(super) fn count(&mut self, fault: Fault) {
        self.note(format_args!("fault: {fault:?}"));
        self.summary.count(fault);
    }

    pub(super) fn next_name(&mut self) -> u64 {
        self.names += 1;
        self.names
    }

    pub(super) fn any_replica(&mut self) -> Replica {
        Replica(self.random.index(self.server.replicas()))
    }

    fn run(&mut self) {
        while let Some(Reverse(entry)) = self.agenda.pop() {
            if entry.at > self.plan.length {
                break;
            }
            self.now = entry.at;
            self.happen(entry.happening);
            if self.watcher.violation.is_some() {
                return;
            }
        }
        self.now = self.plan.length;
        self.check_the_end();
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Begin { node, life } => self.begin(node, life),
            Happening::Alarm { node, number } => self.on_alarm(node, number),
            Happening::Arrive { request, fate } => self.arrive(request, fate),
            Happening::Answer {
                node,
                life,
                id,
                reply,
            } => self.on_answer(node, life, id, *reply),
            Happening::OpenWatch { node, watch, after } => self.open_watch(node, watch, after),
            Happening::Notice {
                node,
                watch,
                change,
            } => self.on_notice(node, watch, &change),
            Happening::EndWatch { node, watch, why } => self.end_watch(node, watch, why),
            Happening::TreeStarts { tree } => self.tree_starts(tree),
            Happening::TreeEnds { tree, by_itself } => self.tree_ends(tree, by_itself),
            Happening::TreeGone { tree } => self.tree_gone(tree),
            Happening::TreeStuck { tree } => self.tree_stuck(tree),
            Happening::GuardAlarm { tree, number } => self.guard_alarm(tree, number),
            Happening::GuardFound { node, life } => self.guard_found_dead(node, life),
            Happening::Resume { node, number } => self.resume(node, number),
            Happening::Heal { node, number } => self.heal(node, number),
            Happening::ServiceBack => {
                self.service = Service::Up;
                self.note(format_args!("the API server is well again"));
            }
            Happening::NamespaceBack => {
                self.server.terminating = false;
                self.note(format_args!("the namespace is there again"));
            }
            Happening::Fault => self.fault(),
            Happening::Calm => self.calm(),
            Happening::Storm { number } => self.begin_storm(number),
            Happening::MustRun { since } => self.must_run(since),
        }
    }

    /// The node of the command that runs, or else of the lease's holder.
    pub(super) fn holder(&self) -> Option<usize> {
        if let Some(tree) = self.trees.first() {
            return Some(tree.node);
        }
        let holds = |node: &Node| {
            node.election
                .as_ref()
                .is_some_and(|election| election.holds())
        };
        self.nodes.iter().position(holds)
    }

    /// Hands an event to a node's front, or keeps it until that runs again.
    pub(super) fn tell(&mut self, node: usize, event: Event) {
        if self.nodes[node].election.is_none() {
            return;
        }
        if self.nodes[node].is_paused() {
            return self.nodes[node].inbox.push(event);
        }
        self.hand_in(node, event);
    }
}
