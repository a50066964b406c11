//! The guard: the parent of the command, and of all orphans of its tree.
//!
//! One thread and one loop. After the fork it allocates nothing, waits for nothing but `ppoll`, and
//! needs no descriptor that it does not have already but those of `/proc` and pidfds, so that lack
//! of memory, processes or descriptors, however much the command causes, can't keep it from
//! killing. Whatever it must know is in the messages of front; it decides nothing about leases.
//!
//! At every wake-up it compares the clocks with the deadline before it reads a message: an
//! extension that waited while the guard was stopped must not revive a term that has run out.

use std::{
    os::fd::{AsFd, AsRawFd, OwnedFd},
    time::Duration,
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, ppoll},
    sys::{prctl, time::TimeSpec},
    unistd::{Pid as NixPid, chdir, read, setpgid},
};

use crate::clock::Instant;

use super::{
    Group, Leftovers, Means, Options, Status,
    cgroup::Leaf,
    command::{ENVIRONMENT_ROOM, Exec},
    inherited::Inherited,
    message::{SIZE, Word},
    options,
    spawn::{self, Birth, Born},
    sys::{self, Pid, SignalSet, Waited},
    tether::{self, Tether},
    timer::{Deadline, Wake, Watchdog, nap},
    tree::Tree,
};

mod killing;
mod orders;

/// What the guard is forked with.
pub(super) struct Guard {
    pub(super) front: OwnedFd,
    pub(super) inherited: Inherited,
    pub(super) exec: Exec,
    pub(super) options: Options,
    /// Our ends; held until the end.
    pub(super) tether: Option<Tether>,
    /// Where messages are read into.
    pub(super) buffer: Box<[u8]>,
}

/// How long what the command left behind has between SIGTERM and SIGKILL.
const LEFTOVER_GRACE: Duration = Duration::from_millis(500);

/// How many children are reaped before the clock is looked at again.
const REAPED_AT_ONCE: usize = 256;

/// The pause while somebody who is no child of ours is in the leaf: nothing says when they are gone.
const LINGERING_PAUSE: Duration = Duration::from_millis(2);

/// The pause once the kill budget is used up: only the kernel can end those who are left.
const HOPELESS_PAUSE: Duration = Duration::from_millis(100);

impl Guard {
    /// The place for messages.
    pub(super) fn buffer() -> Box<[u8]> {
        vec![0; SIZE + ENVIRONMENT_ROOM].into_boxed_slice()
    }

    /// Is the guard, until front is gone and nothing of the command lives. `fronts_read_end` is that
    /// of front's tether.
    pub(super) fn run(self, fronts_read_end: Option<OwnedFd>, leaf: Option<Leaf>) -> ! {
        let code = match Watch::new(self, fronts_read_end, leaf) {
            Ok(mut watch) => {
                watch.run();
                if let Some(leaf) = &watch.leaf {
                    leaf.remove();
                }
                0
            }
            // Front sees the end of the socket.
            Err(_) => 1,
        };
        sys::exit_now(code)
    }
}

/// Where the command is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Not started yet.
    Waiting,
    /// It lives.
    Running,
    /// It ended; what it left behind has had SIGTERM.
    Draining { since: Instant },
    /// The tree is being killed.
    Killing {
        since: Instant,
        pause: Duration,
        /// When front was last told.
        told: Option<Instant>,
        /// The survivors have been named.
        named: bool,
    },
    /// Nothing of it lives, and nothing will.
    Over,
}

/// The running guard.
struct Watch {
    guard: Guard,
    pid: Pid,
    phase: Phase,
    /// The command, until it is reaped.
    command: Option<Pid>,
    /// The group that it was started in.
    group: Group,
    /// The command's own group, if it has one, also after it is reaped.
    own_group: Option<Pid>,
    /// Closed by exec; carries an errno if that fails.
    exec_result: Option<OwnedFd>,
    exec_errno: Option<i32>,
    /// What was done for the command at its birth.
    means: Means,
    /// How the command ended, where front is told of it only when nobody is left.
    awaited: Option<Status>,
    /// Front was told that others are awaited.
    is_awaiting: bool,
    /// There is no child, but somebody in the leaf.
    lingering: bool,
    deadline: Option<Deadline>,
    /// The first signal that came before the start and ends who waits for it.
    cancelled_by: Option<i32>,
    /// Nobody is at the other end of the socket.
    alone: bool,
    /// What could not be sent because front does not read, in this order.
    unsent: [Option<Word>; 2],
    children: OwnedFd,
    wake: Wake,
    watchdog: Option<Watchdog>,
    tree: Option<Tree>,
    leaf: Option<Leaf>,
    fronts_read_end: Option<OwnedFd>,
}

impl Watch {
    fn new(
        guard: Guard,
        fronts_read_end: Option<OwnedFd>,
        leaf: Option<Leaf>,
    ) -> Result<Self, Errno> {
        SignalSet::all().replace_mask();
        // Also done by front; whoever is first.
        let _ = setpgid(NixPid::from_raw(0), NixPid::from_raw(0));
        let _ = prctl::set_name(c"lease-guard");
        prctl::set_child_subreaper(true)?;
        let children = SignalSet::of(|signal| signal == libc::SIGCHLD);
        let watch = Self {
            guard,
            pid: nix::unistd::getpid().as_raw(),
            phase: Phase::Waiting,
            command: None,
            group: Group::Own,
            own_group: None,
            exec_result: None,
            exec_errno: None,
            means: Means::default(),
            awaited: None,
            is_awaiting: false,
            lingering: false,
            deadline: None,
            cancelled_by: None,
            alone: false,
            unsent: [None; 2],
            children: children.reader(libc::SFD_NONBLOCK)?,
            wake: Wake::new()?,
            // Without a timer or a /proc the other layers must do.
            watchdog: Watchdog::new().ok(),
            tree: Tree::of_this_process().ok(),
            leaf,
            fronts_read_end,
        };
        let _ = nix::sys::mman::mlockall(nix::sys::mman::MlockAllFlags::MCL_CURRENT);
        Ok(watch)
    }

    fn run(&mut self) {
        while !(self.alone && self.phase == Phase::Over) {
            self.check_deadline(Instant::now());
            self.read_orders();
            self.read_exec_result();
            self.reap();
            self.advance(Instant::now());
            self.flush();
            self.rest();
            if !(self.alone && self.phase == Phase::Over) {
                self.sleep();
            }
        }
    }

    // === Time ===

    fn has_passed(&self, now: Instant) -> bool {
        self.deadline
            .is_some_and(|deadline| deadline.left(now).is_zero())
    }

    fn check_deadline(&mut self, now: Instant) {
        if self.has_passed(now) {
            self.begin_killing(now);
        }
    }

    /// Moves the kernel's timer, which is due half of the kill budget after the deadline. It must not
    /// be in a hurry: a guard that is not stopped but only waits for its turn can kill more than
    /// its death does.
    fn push_watchdog(&mut self, now: Instant) {
        if let (Some(watchdog), Some(deadline)) = (&mut self.watchdog, self.deadline) {
            let left = deadline.left(now);
            watchdog.push(now.boot + left + self.guard.options.kill_budget / 2);
        }
    }

    fn sleep(&mut self) {
        let now = Instant::now();
        let left = self.deadline.map(|deadline| deadline.left(now));
        match left {
            Some(left) if !left.is_zero() && self.phase != Phase::Over => {
                self.wake.set(now.boot + nap(left));
            }
            _ => self.wake.unset(),
        }
        let pause = match self.phase {
            _ if self.lingering => Some(LINGERING_PAUSE),
            Phase::Killing { pause, .. } => Some(pause),
            Phase::Draining { since } => Some(LEFTOVER_GRACE.saturating_sub(now.held_since(since))),
            Phase::Waiting | Phase::Running | Phase::Over => {
                let is_owing = !self.alone && self.unsent != [None; 2];
                is_owing.then_some(HOPELESS_PAUSE)
            }
        };
        let nobody = self.children.as_fd();
        let front = if self.alone {
            nobody
        } else {
            self.guard.front.as_fd()
        };
        let result = self.exec_result.as_ref().map_or(nobody, AsFd::as_fd);
        let ready = |descriptor| PollFd::new(descriptor, PollFlags::POLLIN);
        let mut descriptors: [PollFd<'_>; 4] = [
            ready(nobody),
            ready(front),
            ready(result),
            ready(self.wake.descriptor().as_fd()),
        ];
        let _ = ppoll(&mut descriptors, pause.map(TimeSpec::from_duration), None);
        while sys::read_signal(self.children.as_fd()).is_ok() {}
    }

    // === The command ===

    fn start(&mut self, deadline: Deadline, variables: &[u8], now: Instant) {
        // The timer comes first: after the word front waits as long as we live, and we may be stopped.
        self.deadline = Some(deadline);
        self.push_watchdog(now);
        // Front takes a guard that does not say this for stopped, and concludes that it has borne
        // nobody. If it can't be said, front is dead or will kill us.
        if self.say(Word::Starting).is_err() {
            return;
        }
        self.phase = Phase::Over;
        if let Some(signal) = self.cancelled_by {
            return self.tell_surely(Word::Cancelled(signal));
        }
        if self.has_passed(now) {
            return self.tell_surely(Word::TooLate);
        }
        self.guard.exec.add(variables);
        // Only now: while we waited, we may have been put into the background.
        self.group = Group::of_command();
        let Guard {
            exec,
            inherited,
            options,
            ..
        } = &mut self.guard;
        let birth = Birth {
            guard: self.pid,
            group: self.group,
            privileges: options.privileges,
            inherited,
            exec,
        };
        let born = match spawn::bear(birth, self.leaf.as_ref()) {
            Ok(born) => born,
            Err(errno) => return self.tell_surely(Word::StartFailed(errno as i32)),
        };
        let Born {
            pid,
            in_leaf,
            gate,
            exec_result,
        } = born;
        self.own_group = (self.group == Group::Own).then_some(pid);
        self.means = Means {
            leaf: in_leaf,
            tether: self.attach_tethers(),
            timer: self.watchdog.is_some(),
            proc: self.tree.is_some(),
        };
        self.command = Some(pid);
        self.exec_result = Some(exec_result);
        // The last look before the command may run: everything up to here may have taken long.
        self.phase = Phase::Running;
        if self.has_passed(Instant::now()) {
            // A closed gate makes the child end without becoming the command; it is reaped in the
            // loop, and front is told then.
            drop(gate);
            self.exec_errno = Some(TOO_LATE);
        } else {
            spawn::open(gate);
        }
        self.let_go();
    }

    /// The command's group exists, and it waits at the gate.
    fn attach_tethers(&mut self) -> bool {
        let fronts = self.fronts_read_end.take();
        match (&self.guard.tether, fronts, self.own_group) {
            (Some(ours), Some(fronts), Some(group)) => {
                tether::attach([&ours.reads, &fronts], group).is_ok()
            }
            _ => false,
        }
    }

    /// Closes all that belongs to the command or to nobody, so that the guard keeps no pipe open
    /// and no directory busy.
    fn let_go(&self) {
        let _ = chdir(c"/");
        let tether = self.guard.tether.as_ref().map(Tether::descriptors);
        let leaf = self.leaf.as_ref().map(Leaf::descriptors);
        let [reads, writes] = tether.unwrap_or([-1; 2]);
        let [parent, directory, kill, events] = leaf.unwrap_or([-1; 4]);
        let mut kept = [
            self.guard.front.as_raw_fd(),
            self.children.as_raw_fd(),
            self.wake.descriptor().as_fd().as_raw_fd(),
            self.exec_result.as_ref().map_or(-1, AsRawFd::as_raw_fd),
            self.tree.as_ref().map_or(-1, Tree::descriptor),
            reads,
            writes,
            parent,
            directory,
            kill,
            events,
        ];
        kept.sort_unstable();
        let mut from = 0;
        for descriptor in kept.into_iter().filter(|descriptor| *descriptor >= 0) {
            sys::close_range(from, descriptor - 1);
            from = descriptor + 1;
        }
        sys::close_range(from, i32::MAX);
    }

    fn read_exec_result(&mut self) {
        let Some(pipe) = &self.exec_result else {
            return;
        };
        let mut errno = [0; 4];
        match read(pipe.as_fd(), &mut errno) {
            Err(Errno::EAGAIN | Errno::EINTR) => return,
            Ok(4) => self.exec_errno = Some(i32::from_ne_bytes(errno)),
            _ => {
                if let (None, Some(pid)) = (self.exec_errno, self.command) {
                    self.tell(Word::Started(pid, self.means));
                }
            }
        }
        self.exec_result = None;
    }

    fn reap(&mut self) {
        // A fork bomb must not keep us from looking at the clock.
        for _ in 0..REAPED_AT_ONCE {
            match sys::wait(-1) {
                Waited::Nothing => {
                    self.lingering = false;
                    return self.note_leftovers();
                }
                Waited::NoChild => return self.note_nobody(),
                Waited::Ended(pid, status) if Some(pid) == self.command => self.note_end(status),
                Waited::Stopped(pid, signal) if Some(pid) == self.command => {
                    self.refuse_stop(pid, signal);
                }
                // Others of the tree are none of anybody's business.
                Waited::Ended(..) | Waited::Stopped(..) => {}
            }
        }
        // The kernel has told of all the dead already, so the next sleep must not wait for its word.
        let _ = sys::kill(self.pid, libc::SIGCHLD);
    }

    /// The command itself may have ended, and others live.
    fn note_leftovers(&mut self) {
        if self.phase != Phase::Running || self.command.is_some() {
            return;
        }
        match self.awaited {
            Some(status) if !self.is_awaiting => {
                self.is_awaiting = self.tell(Word::Awaiting(status));
            }
            Some(_) => {}
            None => self.drain(),
        }
    }

    fn note_end(&mut self, status: Status) {
        // What exec had to say comes before.
        self.read_exec_result();
        self.command = None;
        if self.exec_errno.is_some() {
            return;
        }
        match self.guard.options.leftovers {
            Leftovers::End => self.tell_end(status),
            Leftovers::Await => self.awaited = Some(status),
        }
    }

    /// Beyond the deadline it is we who have killed it, whether front has seen the loss or not.
    fn tell_end(&mut self, status: Status) {
        let now = Instant::now();
        self.tell_surely(if self.has_passed(now) {
            Word::Overdue(status)
        } else {
            Word::Ended(status, now)
        });
    }

    /// ECHILD: with all orphans of the tree coming to us, the proof that nothing of it lives; where
    /// there is a leaf, also nobody may be in that.
    fn note_nobody(&mut self) {
        if matches!(self.phase, Phase::Waiting | Phase::Over) {
            return;
        }
        self.lingering = self.leaf.as_ref().is_some_and(Leaf::is_populated);
        if self.lingering {
            return self.note_leftovers();
        }
        self.phase = Phase::Over;
        if let Some(status) = self.awaited.take() {
            self.tell_end(status);
        }
        self.tell_surely(match self.exec_errno {
            Some(TOO_LATE) => Word::TooLate,
            Some(errno) => Word::ExecFailed(errno),
            None => Word::Empty,
        });
    }

    /// Whether nothing of the command lives or will, and front knows: all that it waits for is said.
    fn is_done(&self) -> bool {
        self.phase == Phase::Over && (self.alone || self.unsent == [None; 2])
    }

    /// Not before: if we are stopped while front waits for a word, the kernel's timer must end it.
    fn rest(&mut self) {
        if self.is_done()
            && let Some(watchdog) = &mut self.watchdog
        {
            watchdog.disarm();
        }
    }

    /// A holder that is stopped from the terminal could not renew. SIGSTOP is somebody's intention,
    /// a debugger's perhaps. In the background SIGTTIN and SIGTTOU would only come again, and what
    /// is in the foreground changes.
    fn refuse_stop(&mut self, command: Pid, signal: i32) {
        let is_refused = match signal {
            libc::SIGTSTP => true,
            libc::SIGTTIN | libc::SIGTTOU => {
                options::foreground_group() == Some(self.present_group(command))
            }
            // Only those four stop a process.
            _ => false,
        };
        if is_refused {
            self.tell(Word::Stopped(signal));
            self.continue_group(command);
        }
    }
}

/// Stands for an errno where the child was not let become the command.
const TOO_LATE: i32 = -1;

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests;
