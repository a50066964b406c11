//! How the guard ends the tree: leftovers first with SIGTERM, then everybody with SIGKILL until
//! nobody is left.

use std::time::Duration;

use crate::clock::Instant;

use super::{
    super::{message::Word, sys, tree::Survivor},
    HOPELESS_PAUSE, LEFTOVER_GRACE, Phase, Watch,
};

impl Watch {
    /// The command ended and left others behind.
    pub(super) fn drain(&mut self) {
        let mut count = None;
        for signal in [libc::SIGTERM, libc::SIGCONT] {
            match &self.tree {
                Some(tree) => {
                    let found = tree.signal(signal, self.own_group, &[]);
                    count.get_or_insert(found.descendants);
                }
                None => self.signal_own_group(signal),
            }
        }
        // A child that could not become the command leaves nothing behind, and one that is just
        // being reaped is nobody.
        if self.exec_errno.is_none() && count != Some(0) {
            let count = count.and_then(|count| i32::try_from(count).ok());
            self.tell(Word::Draining(count.unwrap_or(0)));
        }
        self.phase = Phase::Draining {
            since: Instant::now(),
        };
    }

    /// From here on each turn of the loop strikes.
    pub(super) fn begin_killing(&mut self, now: Instant) {
        if let Phase::Running | Phase::Draining { .. } = self.phase {
            self.phase = Phase::Killing {
                since: now,
                pause: SWEEP_PAUSES[0] / 2,
                told: None,
                named: false,
            };
        }
    }

    pub(super) fn advance(&mut self, now: Instant) {
        if let Phase::Draining { since } = self.phase
            && now.held_since(since) >= LEFTOVER_GRACE
        {
            self.begin_killing(now);
        }
        let Phase::Killing {
            since,
            pause,
            mut told,
            mut named,
        } = self.phase
        else {
            return;
        };
        self.strike();
        self.prove_alive(now, &mut told);
        let is_hopeless = now.held_since(since) >= self.guard.options.kill_budget;
        if is_hopeless && !named {
            named = self.name_survivors();
        }
        let pause = if is_hopeless {
            // Often enough for our own timer, and front's.
            HOPELESS_PAUSE.min(self.guard.options.kill_budget / 16)
        } else {
            (pause * 2).min(SWEEP_PAUSES[1])
        };
        self.phase = Phase::Killing {
            since,
            pause,
            told,
            named,
        };
        self.reap();
    }

    /// SIGKILL to the command's cgroup and to its group, each atomically against fork, then to whom
    /// a walk through `/proc` finds.
    fn strike(&self) {
        if let Some(leaf) = &self.leaf {
            leaf.kill();
        }
        self.signal_own_group(libc::SIGKILL);
        if let Some(command) = self.command {
            let _ = sys::kill(command, libc::SIGKILL);
        }
        if let Some(tree) = &self.tree {
            tree.signal(libc::SIGKILL, self.own_group, &[]);
        }
    }

    /// The command's group may outlive the command; whom it leaves there are our children, and keep
    /// the group's number from becoming somebody else's.
    fn signal_own_group(&self, signal: i32) {
        if let Some(group) = self.own_group
            && sys::has_unreaped_child_in(group)
        {
            let _ = sys::kill(-group, signal);
        }
    }

    /// Whoever sweeps is not stopped: the kernel's timers, this one and front's, are for those who
    /// are, so they are moved on, an eighth of the kill budget at a time.
    fn prove_alive(&mut self, now: Instant, told: &mut Option<Instant>) {
        let step = self.guard.options.kill_budget / 8;
        if told.is_some_and(|told| now.held_since(told) < step) {
            return;
        }
        *told = Some(now);
        if let Some(watchdog) = &mut self.watchdog {
            watchdog.push(now.boot + self.guard.options.kill_budget / 4);
        }
        self.tell(Word::Killing);
    }

    fn name_survivors(&self) -> bool {
        let mut survivors = [Survivor::default(); NAMED_SURVIVORS];
        let count = self
            .tree
            .as_ref()
            .map_or(0, |tree| tree.survivors(&[], &mut survivors));
        for survivor in survivors.iter().take(count) {
            self.tell(Word::Survivor(*survivor));
        }
        self.tell(Word::Survivors)
    }
}

/// The pauses between two sweeps double from the first of these to the last.
const SWEEP_PAUSES: [Duration; 2] = [Duration::from_micros(200), Duration::from_millis(5)];

/// How many survivors are named.
const NAMED_SURVIVORS: usize = 8;
