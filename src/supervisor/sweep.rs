//! After the guard's death: front kills what it has left.
//!
//! The proof is the kernel's here too, as in the guard: front has no child, or, where it may have
//! others, its list of children names nobody else. What `/proc` shows is no proof, because it may
//! hide processes.

use std::time::Duration;

use crate::clock::Instant;

use super::{
    NotStarted, PAUSE, Report, State, Status, Supervisor, Survivor, Unanswered,
    cgroup::Leaf,
    sys::{self, Pid, Waited},
    tree::{Process, Tree},
};

/// How far the killing has come.
pub(super) struct Sweep {
    since: Instant,
    /// The guard is reaped, so its orphans are ours now.
    guard_is_gone: bool,
    /// How it ended, if we were told.
    guards_end: Option<Status>,
    command: Option<Pid>,
    /// How many looks in a row found nobody.
    clean: u32,
    /// The survivors have been named.
    named: bool,
}

impl Supervisor {
    pub(super) fn lose_guard(&mut self) {
        let State::Guarded { command } = self.state else {
            return;
        };
        // It has closed its socket without having said that all is over, so it is dying.
        let _ = sys::kill(self.guard, libc::SIGKILL);
        self.state = State::Sweeping(Sweep {
            since: Instant::now(),
            guard_is_gone: false,
            guards_end: None,
            command,
            clean: 0,
            named: false,
        });
    }

    /// One turn of killing what the guard left to us: its orphans are our descendants, and so are
    /// the bystanders and the exec plugins of the kubeconfig. Bystanders are spared. A plugin that
    /// runs just now is not told from an orphan and dies; it is asked for again when needed.
    ///
    /// Returns how long to wait before the next one.
    pub(super) fn sweep(&mut self) -> Duration {
        let now = Instant::now();
        self.prove_alive(now);
        let State::Sweeping(sweep) = &mut self.state else {
            return PAUSE;
        };
        let is_too_long = now.held_since(sweep.since) >= self.kill_budget;
        let leaf = self.leaf.as_ref().ok();
        if let Some(leaf) = leaf {
            leaf.kill();
        }
        // Orphans come to us when the guard is dead, which is a little after its socket closed.
        if !sweep.guard_is_gone {
            let waited = sys::wait(self.guard);
            sweep.guard_is_gone = matches!(waited, Waited::Ended(..) | Waited::NoChild);
            if let Waited::Ended(_, status) = waited {
                sweep.guards_end = Some(status);
            }
        }
        let guards_end = sweep.guards_end;
        if sweep.guard_is_gone && sweep.strike(&self.bystanders, leaf) {
            let report = self.end_without_guard(guards_end);
            let report = self.end_of(report);
            self.reports.push_back(report);
            return PAUSE;
        }
        if !is_too_long {
            return PAUSE;
        }
        if !sweep.named {
            sweep.named = true;
            self.name_survivors();
        }
        // Often enough for our own timer.
        PAUSE.max(self.kill_budget / 16)
    }

    /// Reports those who live although they were sent SIGKILL: what the guard has left, or the guard.
    pub(super) fn name_survivors(&mut self) {
        self.is_stuck = true;
        let mut survivors = [Survivor::default(); 8];
        let count = Tree::of_this_process()
            .map_or(0, |tree| tree.survivors(&self.bystanders, &mut survivors));
        let survivors = survivors.into_iter().take(count).collect();
        self.reports.push_back(Report::Survivors(survivors));
    }

    /// What has come to its end now that nobody is left: the command, or the wish for one.
    fn end_without_guard(&self, status: Option<Status>) -> Report {
        match self.unanswered {
            Some(Unanswered { cancelled_by, .. }) if self.given_up.is_some() => {
                let reason = cancelled_by.map_or(NotStarted::NoAnswer, NotStarted::Cancelled);
                Report::NotStarted(reason)
            }
            _ => Report::GuardDied {
                pid: self.guard,
                status,
            },
        }
    }
}

impl Sweep {
    /// Kills all that can be found, and tells whether nobody was left.
    fn strike(&mut self, bystanders: &[Process], leaf: Option<&Leaf>) -> bool {
        self.strike_group();
        (self.walk(bystanders) || sys::has_no_child()) && !leaf.is_some_and(Leaf::is_populated)
    }

    /// Kills and reaps the command and its group. Where it had no own group its number is no
    /// group's, and nothing happens; exec plugins are in ours.
    fn strike_group(&self) {
        let Some(command) = self.command else {
            return;
        };
        if sys::has_unreaped_child_in(command) {
            let _ = sys::kill(-command, libc::SIGKILL);
        }
        if sys::is_unreaped_child(command) {
            let _ = sys::kill(command, libc::SIGKILL);
        }
        sys::wait(command);
        while let Waited::Ended(..) = sys::wait(-command) {}
    }

    /// Kills and reaps whom a walk or the list of our children finds, and tells whether twice in a
    /// row the walk found nobody and the list named nobody but bystanders.
    ///
    /// A process that forks while we walk could be missed by one walk, but then its parent, alive
    /// or a zombie that only we can reap, is seen. A second walk is for a chain of them.
    fn walk(&mut self, bystanders: &[Process]) -> bool {
        let Ok(tree) = Tree::of_this_process() else {
            return false;
        };
        let found = tree.signal(libc::SIGKILL, None, bystanders);
        let ours = std::process::id().cast_signed();
        // By their pids: never any child, see the head of the module above.
        tree.visit(bystanders, |process| {
            if process.parent == ours {
                sys::wait(process.pid);
            }
        });
        let _ = tree.hidden(bystanders, |pid| {
            sys::wait(pid);
        });
        // Whose ancestors are hidden can't be told from a stranger, so the walk is not asked about
        // those: the first of each line of descendants is a child of ours, and on the list.
        let is_clean = found.descendants == 0 && tree.has_only(bystanders) == Ok(true);
        self.clean = if is_clean { self.clean + 1 } else { 0 };
        self.clean >= 2
    }
}
