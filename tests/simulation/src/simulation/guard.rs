//! The command's tree and the guard that is its parent.
//!
//! The guard kills by the deadline that it was given, on its own clocks, whatever its front does. It
//! never moves a deadline that has passed, and moves one only forward.

use std::time::Duration;

use super::{
    profile::micros,
    server::revision,
    summary::Fault,
    world::{Happening, MILLISECOND, NEVER, SECOND, World},
};
use crate::{
    clock::Instant,
    election::{Event, NotStarted, Term},
    exit::Exit,
};

#[derive(Clone, Debug)]
pub(super) struct Tree {
    pub(super) name: u64,
    pub(super) node: usize,
    pub(super) life: u32,
    /// The revision of the write that acquired.
    pub(super) token: u64,
    sent: Instant,
    kill_after: Duration,
    alarms: u32,
    pub(super) state: State,
    /// The first process has ended.
    ended: bool,
    /// SIGKILL was sent.
    pub(super) killed: bool,
    /// Nothing ends it before then.
    pub(super) unkillable_until: u64,
    /// When it began to run, or to run again.
    pub(super) since: u64,
    /// It can't run at present, because the node stands still.
    pub(super) frozen: bool,
    /// It may outlive its term: no lock can prevent it.
    pub(super) excused: bool,
    /// When somebody deleted or edited the lease under it.
    pub(super) disowned: Option<u64>,
    deaf: bool,
    cancelled_by: Option<i32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Starting,
    Running,
}

impl Tree {
    /// Whether it may do something now, and must be the only one that can.
    pub(super) fn is_able(&self) -> bool {
        self.state == State::Running && !self.frozen && !self.excused
    }
}

impl World {
    // === Orders ===

    pub(super) fn start(&mut self, index: usize, life: u32, term: &Term) {
        let token = revision(&term.token);
        self.check_start(index, term, token);
        let name = self.next_name();
        let known = self.nodes[index].record.committed;
        let disowned = self.watcher.last_hand.filter(|hand| hand.revision > known);
        self.trees.push(Tree {
            name,
            node: index,
            life,
            token,
            sent: term.sent,
            kill_after: term.kill_deadline,
            alarms: 0,
            state: State::Starting,
            ended: false,
            killed: false,
            unkillable_until: 0,
            since: self.now,
            frozen: self.nodes[index].is_frozen(),
            excused: false,
            disowned: disowned.map(|hand| hand.at),
            deaf: self.random.happens(3_000),
            cancelled_by: None,
        });
        let lease = micros(self.nodes[index].plan.timing.lease_duration);
        let after = match self.random.below(100) {
            // No processor for a while.
            0 if self.storm => self.random.below(lease * 2),
            _ => self.random.between(100, 3 * MILLISECOND),
        };
        self.schedule(after, Happening::TreeStarts { tree: name });
    }

    pub(super) fn extend(&mut self, index: usize, life: u32, sent: Instant, kill_after: Duration) {
        self.summary.renewals += 1;
        self.check_extension(index, sent, kill_after);
        let now = self.nodes[index].clocks.read(self.now).at;
        let Some(tree) = self.tree_of(index, life) else {
            return;
        };
        let left = |tree: &Tree| tree.kill_after.saturating_sub(now.held_since(tree.sent));
        let (old, new) = (left(tree), kill_after.saturating_sub(now.held_since(sent)));
        if !old.is_zero() && new > old {
            tree.sent = sent;
            tree.kill_after = kill_after;
        }
        // The alarm that is set comes too early, and is set anew then.
    }

    pub(super) fn terminate(&mut self, index: usize, life: u32) {
        let Some(tree) = self.tree_of(index, life) else {
            return;
        };
        let (name, deaf, state) = (tree.name, tree.deaf, tree.state);
        if state == State::Starting {
            tree.cancelled_by.get_or_insert(15);
            return;
        }
        if deaf {
            return self.count(Fault::CommandDeafToTerm);
        }
        let after = self.random.below(3 * SECOND);
        let by_itself = true;
        self.schedule(
            after,
            Happening::TreeEnds {
                tree: name,
                by_itself,
            },
        );
    }

    pub(super) fn kill_of(&mut self, index: usize, life: u32) {
        let lost = self.nodes[index].record.lost;
        let Some(tree) = self.tree_of(index, life) else {
            return;
        };
        let name = tree.name;
        if lost && let Some(position) = self.position(name) {
            self.excuse_unkillable(position);
        }
        self.kill(name);
    }

    // === What happens to a tree ===

    pub(super) fn tree_starts(&mut self, name: u64) {
        let Some(position) = self.position(name) else {
            return;
        };
        let tree = &self.trees[position];
        let (index, life) = (tree.node, tree.life);
        if self.nodes[index].is_frozen() {
            return self.schedule_at(
                self.after_pause(index),
                Happening::TreeStarts { tree: name },
            );
        }
        let reason = if self.left(position).is_zero() {
            Some(NotStarted::TooLate)
        } else if let Some(signal) = tree.cancelled_by {
            Some(NotStarted::Cancelled(signal))
        } else if self.nodes[index].life != life {
            // Its front is gone, and the guard has seen it.
            self.trees.swap_remove(position);
            return;
        } else if self.storm && self.random.happens(20) {
            self.count(Fault::CommandNotExecutable);
            Some(NotStarted::Refused(Exit::NotFound, "not found".to_owned()))
        } else {
            None
        };
        if let Some(reason) = reason {
            self.note(format_args!("node {index}: does not start: {reason:?}"));
            self.trees.swap_remove(position);
            if self.nodes[index].life == life {
                self.tell(index, Event::NotStarted(reason));
            }
            return;
        }
        let token = self.trees[position].token;
        self.note(format_args!(
            "node {index}: the command starts, token {token}"
        ));
        self.trees[position].state = State::Running;
        self.trees[position].since = self.now;
        self.summary.starts += 1;
        self.check_token(position);
        self.check_alone(position);
        self.guard_alarm(name, 0);
        if self.trees[position].killed {
            return self.die(name);
        }
        if let Some(work) = self.plan.work {
            let after = self.random.below(work * 2) + MILLISECOND;
            let by_itself = true;
            self.schedule(
                after,
                Happening::TreeEnds {
                    tree: name,
                    by_itself,
                },
            );
        }
    }

    /// The deadline has come, or may have.
    pub(super) fn guard_alarm(&mut self, name: u64, number: u32) {
        let Some(position) = self.position(name) else {
            return;
        };
        let tree = &self.trees[position];
        if tree.alarms != number || self.nodes[tree.node].is_frozen() {
            return;
        }
        let left = self.left(position);
        if left.is_zero() {
            self.excuse_unkillable(position);
            if !self.trees[position].killed {
                let node = self.trees[position].node;
                self.note(format_args!("node {node}: the guard kills"));
                self.kill(name);
            }
            return;
        }
        let index = self.trees[position].node;
        let after = self.nodes[index].clocks.true_micros_held(left).max(1);
        let tree = &mut self.trees[position];
        tree.alarms += 1;
        let number = tree.alarms;
        self.schedule(after, Happening::GuardAlarm { tree: name, number });
    }

    /// Sets the guards' alarms of a node anew: its clocks run at another rate.
    pub(super) fn reset_guards(&mut self, index: usize) {
        for position in 0..self.trees.len() {
            let tree = &mut self.trees[position];
            if tree.node == index && tree.state == State::Running {
                tree.alarms += 1;
                let (name, number) = (tree.name, tree.alarms);
                self.guard_alarm(name, number);
            }
        }
    }

    /// SIGKILL to the whole tree.
    pub(super) fn kill(&mut self, name: u64) {
        let Some(position) = self.position(name) else {
            return;
        };
        let tree = &mut self.trees[position];
        if tree.killed {
            return;
        }
        tree.killed = true;
        if tree.state == State::Running {
            self.die(name);
        }
    }

    /// From SIGKILL to the proof, or to the report that there is none.
    fn die(&mut self, name: u64) {
        let Some(position) = self.position(name) else {
            return;
        };
        let tree = &self.trees[position];
        let budget = micros(self.nodes[tree.node].plan.timing.kill_budget);
        let until = tree.unkillable_until;
        let longest = budget.saturating_add_signed(self.plan.kill_excess);
        let after = match self.random.below(4) {
            _ if self.is_tight() => longest,
            0 => self.random.below(longest + 1),
            1 => longest,
            _ => self.random.below((20 * MILLISECOND).min(longest) + 1),
        };
        if until > self.now + after {
            self.schedule(budget, Happening::TreeStuck { tree: name });
            if until != NEVER {
                self.schedule_at(until, Happening::TreeGone { tree: name });
            }
            return;
        }
        self.schedule(after, Happening::TreeGone { tree: name });
    }

    pub(super) fn tree_ends(&mut self, name: u64, by_itself: bool) {
        let Some(position) = self.position(name) else {
            return;
        };
        let tree = &self.trees[position];
        let (index, life) = (tree.node, tree.life);
        if tree.ended || tree.killed {
            return;
        }
        if self.nodes[index].is_frozen() {
            let happening = Happening::TreeEnds {
                tree: name,
                by_itself,
            };
            return self.schedule_at(self.after_pause(index), happening);
        }
        let code = self.random.pick(&[0, 0, 0, 1, 75, 79, 255]);
        let at = self.nodes[index].clocks.read(self.now).at;
        let exit = Exit::Command(code);
        self.ended(position, Event::Ended { exit, at });
        let unkillable = self
            .trees
            .get(position)
            .map_or(0, |tree| tree.unkillable_until);
        let after = match self.random.below(10) {
            _ if self.plan.chances.request_lost == 0 && !self.storm => 0,
            // What was left behind gets SIGTERM, and SIGKILL half a second later.
            0 => {
                self.count(Fault::CommandLeavesForksBehind);
                let budget = micros(self.nodes[index].plan.timing.kill_budget);
                self.random
                    .below(500 * MILLISECOND + budget.min(100 * MILLISECOND))
            }
            _ => 0,
        };
        let at = (self.now + after).max(unkillable);
        self.note(format_args!("node {index}: life {life}: the command ended"));
        self.schedule_at(at, Happening::TreeGone { tree: name });
    }

    fn ended(&mut self, position: usize, event: Event) {
        let tree = &mut self.trees[position];
        tree.ended = true;
        let (index, life) = (tree.node, tree.life);
        if self.nodes[index].life == life {
            self.tell(index, event);
        }
    }

    pub(super) fn tree_gone(&mut self, name: u64) {
        let Some(position) = self.position(name) else {
            return;
        };
        let tree = &self.trees[position];
        let (index, life) = (tree.node, tree.life);
        if self.nodes[index].is_frozen() {
            return self.schedule_at(self.after_pause(index), Happening::TreeGone { tree: name });
        }
        if !tree.ended {
            let at = self.nodes[index].clocks.read(self.now).at;
            let exit = Exit::Signal(9);
            let event = match self.left(position) {
                Duration::ZERO => Event::Overdue,
                _ => Event::Ended { exit, at },
            };
            self.ended(position, event);
        }
        let Some(position) = self.position(name) else {
            return;
        };
        self.note(format_args!(
            "node {index}: the tree of life {life} is gone"
        ));
        self.watcher.last_alive = self.now;
        self.check_disowned(position);
        self.trees.swap_remove(position);
        if self.nodes[index].life == life {
            self.tell(index, Event::TreeGone);
        }
    }

    pub(super) fn tree_stuck(&mut self, name: u64) {
        let Some(position) = self.position(name) else {
            return;
        };
        let (index, life) = (self.trees[position].node, self.trees[position].life);
        if self.nodes[index].life == life {
            let survivors = "42 (stuck)".to_owned();
            self.tell(index, Event::TreeStuck { survivors });
        }
    }

    /// A signal that asks the command to end, forwarded.
    pub(super) fn forward(&mut self, index: usize, signal: i32) {
        let life = self.nodes[index].life;
        if let Some(tree) = self.tree_of(index, life)
            && tree.state == State::Starting
        {
            tree.cancelled_by.get_or_insert(signal);
            return;
        }
        self.terminate(index, life);
    }

    /// The front, or the guard, is dead: whoever is left kills the tree.
    pub(super) fn kill_orphan(&mut self, index: usize, life: u32) {
        if let Some(tree) = self.tree_of(index, life) {
            let name = tree.name;
            if let Some(position) = self.position(name) {
                self.excuse_unkillable(position);
            }
            self.kill(name);
        }
    }

    /// The guard died, and the front has proven the tree dead.
    pub(super) fn guard_found_dead(&mut self, index: usize, life: u32) {
        let is_its = |tree: &Tree| tree.node == index && tree.life == life;
        if self.nodes[index].is_frozen() {
            return self.schedule_at(
                self.after_pause(index),
                Happening::GuardFound { node: index, life },
            );
        }
        self.trees.retain(|tree| !is_its(tree));
        self.watcher.last_alive = self.now;
        if self.nodes[index].life == life {
            self.tell(index, Event::GuardDied("the guard died".to_owned()));
        }
    }

    // === Standing still ===

    pub(super) fn freeze(&mut self, index: usize) {
        for tree in self.trees.iter_mut().filter(|tree| tree.node == index) {
            tree.frozen = true;
        }
    }

    /// After a pause a tree whose deadline has passed runs on for as long as its guard takes to wake
    /// up and kill it. No lock can prevent that.
    pub(super) fn thaw(&mut self, index: usize) {
        for position in 0..self.trees.len() {
            if self.trees[position].node != index {
                continue;
            }
            let over = self.trees[position].killed || self.left(position).is_zero();
            let tree = &mut self.trees[position];
            tree.frozen = false;
            tree.since = self.now;
            if over && !tree.excused && tree.state == State::Running {
                tree.excused = true;
                self.summary.run_ons += 1;
            }
            if self.trees[position].is_able() {
                self.check_alone(position);
            }
        }
        self.reset_guards(index);
    }

    /// A tree that can't be killed outlives its term.
    pub(super) fn excuse_unkillable(&mut self, position: usize) {
        let now = self.now;
        let tree = &mut self.trees[position];
        if tree.unkillable_until > now {
            tree.excused = true;
        }
    }

    // === Which tree ===

    pub(super) fn tree_of(&mut self, index: usize, life: u32) -> Option<&mut Tree> {
        let is_its = |tree: &&mut Tree| tree.node == index && tree.life == life;
        self.trees.iter_mut().find(is_its)
    }

    /// When what is due in a pause happens.
    fn after_pause(&self, index: usize) -> u64 {
        self.nodes[index].resumes_at.max(self.now) + 1
    }

    pub(super) fn position(&self, name: u64) -> Option<usize> {
        self.trees.iter().position(|tree| tree.name == name)
    }

    /// What is left until the guard kills, by its clocks.
    fn left(&self, position: usize) -> Duration {
        let tree = &self.trees[position];
        let now = self.nodes[tree.node].clocks.read(self.now).at;
        tree.kill_after.saturating_sub(now.held_since(tree.sent))
    }
}
