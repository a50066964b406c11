//! What may happen next.

use std::time::Duration;

use crate::{
    state::{Cargo, Message, Node, Shared, State},
    world::{Menu, World},
};

/// One thing that happens. Numbers name a node, or the place of a message among those under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// The message arrives.
    Deliver(usize),
    /// The message is lost.
    Lose(usize),
    /// The message arrives at any time from now on, or never.
    Delay(usize),
    /// The message arrives once now and once more at any time from now on.
    Repeat(usize),
    /// The connection breaks under the message, and the node learns of it.
    Break(usize),
    /// The election is woken at its deadline.
    Wake(usize),
    /// The limit of the request is over.
    TimeOut(usize),
    /// The watch ends.
    EndWatch(usize),
    /// The command ends by itself; what it leaves behind is dead a little later.
    End(usize),
    /// The guard's deadline has come.
    Kill(usize),
    /// The tree that was sent SIGKILL is dead.
    Dead(usize),
    /// What a crash left behind is dead.
    OrphanDead(usize),
    /// SIGTERM for the process.
    Stop(usize),
    /// The process dies.
    Crash(usize),
    /// A new process starts.
    Restart(usize),
    /// The process is stopped.
    Pause(usize),
    /// The process goes on.
    Resume(usize),
    /// Somebody deletes the lease.
    Delete,
    /// The clock jumps to when something is due.
    Advance,
}

/// What goes wrong, as the summary calls it.
pub(crate) const TROUBLES: [&str; 9] = [
    "messages lost",
    "messages delayed",
    "messages repeated",
    "connections broken",
    "watches ended",
    "SIGTERM",
    "crashes",
    "pauses",
    "deletions of the lease",
];

impl Step {
    /// Which trouble this is, if it is any.
    pub(crate) fn trouble(self) -> Option<usize> {
        match self {
            Self::Lose(_) => Some(0),
            Self::Delay(_) => Some(1),
            Self::Repeat(_) => Some(2),
            Self::Break(_) => Some(3),
            Self::EndWatch(_) => Some(4),
            Self::Stop(_) => Some(5),
            Self::Crash(_) => Some(6),
            Self::Pause(_) => Some(7),
            Self::Delete => Some(8),
            Self::Deliver(_)
            | Self::Wake(_)
            | Self::TimeOut(_)
            | Self::End(_)
            | Self::Kill(_)
            | Self::Dead(_)
            | Self::OrphanDead(_)
            | Self::Restart(_)
            | Self::Resume(_)
            | Self::Advance => None,
        }
    }

    /// Whether this is one of the faults that a history may have so many of. Deletions are bounded by
    /// themselves.
    pub(crate) fn is_fault(self) -> bool {
        self.trouble().is_some() && self != Self::Delete
    }
}

impl World {
    pub(crate) fn steps(&self, state: &State, steps: &mut Vec<Step>) {
        if state.broken.is_some() {
            return;
        }
        let may_fail = state.faults > 0;
        for (place, message) in state.messages.iter().enumerate() {
            let twin = place
                .checked_sub(1)
                .is_some_and(|before| state.messages[before] == *message);
            if twin {
                continue;
            }
            if self.can_arrive(state, message) {
                steps.push(Step::Deliver(place));
            }
            if may_fail {
                self.faults_of(state, place, message, steps);
            }
        }
        for (index, node) in state.nodes.iter().enumerate() {
            self.steps_of(state, index, node, steps);
        }
        if state.deletions > 0 && state.stored.is_some() {
            steps.push(Step::Delete);
        }
        if self.next(state).is_some() {
            steps.push(Step::Advance);
        }
        if self.menu == Menu::Slowness {
            steps
                .retain(|step| !step.is_fault() || matches!(step, Step::Delay(_) | Step::Pause(_)));
        }
    }

    fn faults_of(&self, state: &State, place: usize, message: &Message, steps: &mut Vec<Step>) {
        steps.push(Step::Lose(place));
        if !message.late {
            steps.push(Step::Delay(place));
            if self.can_arrive(state, message) && !matches!(message.cargo, Cargo::Answer(..)) {
                steps.push(Step::Repeat(place));
            }
        }
        let node = &state.nodes[message.node];
        if node.life == message.life
            && !node.paused
            && let Cargo::Read(id) | Cargo::Write(id, _) | Cargo::Answer(id, _) = &message.cargo
            && node.request.is_some_and(|request| request.id == *id)
        {
            steps.push(Step::Break(place));
        }
    }

    fn steps_of(&self, state: &State, index: usize, node: &Node, steps: &mut Vec<Step>) {
        let may_fail = state.faults > 0;
        let now = state.now;
        if let Some(tree) = node.tree {
            match tree.dead_by {
                None if tree.kill_at <= now => steps.push(Step::Kill(index)),
                None => {}
                Some(_) => steps.push(Step::Dead(index)),
            }
            if state.ends > 0 && !tree.has_ended {
                steps.push(Step::End(index));
            }
        }
        if node.orphan.is_some() {
            steps.push(Step::OrphanDead(index));
        }
        if node.election.is_none() {
            if state.restarts > 0 {
                steps.push(Step::Restart(index));
            }
            return;
        }
        if node.paused {
            steps.push(Step::Resume(index));
            return;
        }
        if node.wake.is_some_and(|wake| wake <= now) {
            steps.push(Step::Wake(index));
        }
        if node.request.is_some_and(|request| request.limit <= now) {
            steps.push(Step::TimeOut(index));
        }
        if may_fail {
            steps.extend([Step::Crash(index), Step::Pause(index), Step::Stop(index)]);
            if node.watching {
                steps.push(Step::EndWatch(index));
            }
        }
    }

    /// Whether the message's receiver can take it now.
    pub(crate) fn can_arrive(&self, state: &State, message: &Message) -> bool {
        message.cargo.is_request() || !state.nodes[message.node].paused
    }

    /// When the next thing is due, unless something is due now or that is beyond the horizon.
    pub(crate) fn next(&self, state: &State) -> Option<Duration> {
        let urgent = |message: &Shared<Message>| !message.late && self.can_arrive(state, message);
        if state.messages.iter().any(urgent) {
            return None;
        }
        let due = |node: &Node| {
            let tree = node.tree.map(|tree| tree.dead_by.unwrap_or(tree.kill_at));
            let limit = node.request.map(|request| request.limit);
            let heard = [node.wake, limit].map(|due| due.filter(|_| !node.paused));
            let due = [tree, node.orphan, heard[0], heard[1]];
            due.into_iter().flatten().min()
        };
        let next = state.nodes.iter().filter_map(|node| due(node)).min()?;
        (next > state.now && next <= self.horizon).then_some(next)
    }
}
