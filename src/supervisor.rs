//! Processes: the guard, starting, signalling, reaping, killing and proving the tree empty.
//!
//! ```text
//! init    only where lease-exec is PID 1: reaps, forwards to front, ends with front
//!  └ front    tokio and the store; subreaper; a kernel timer that kills it if it is stopped
//!     └ guard    one thread; subreaper; own group; the deadline; a kernel timer like front's
//!        └ COMMAND    killed by the kernel when the guard dies; and everything that it starts
//! ```
//!
//! What must stay true:
//!
//! - The guard is the *parent* of the command and the reaper of all its orphans. Only so is
//!   `waitpid` saying ECHILD a proof that nothing of the command lives, and the tree exactly the
//!   guard's descendants: never a process that lease-exec was started beside or with.
//! - Guard and init are forked while there is one thread, and do not exec.
//! - The guard kills by its own clock. It needs nothing of front for that, and front can't extend a
//!   deadline that has passed.
//! - Whichever of the two dies, the other kills. Whichever is stopped, the other or the kernel does.
//!   If both are, the kernel kills the command, and its group where that is its own.
//! - Front and guard are never in the command's cgroup, nor in its group.
//! - Nobody but the guard and init waits for "any child": front has children of its own, exec
//!   plugins of the kubeconfig, which others wait for.
//!
//! Must not: know leases, decide when.

use std::{
    collections::VecDeque,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, poll},
    sys::{
        prctl,
        socket::{
            AddressFamily, MsgFlags, Shutdown, SockFlag, SockType, send, shutdown, socketpair,
        },
    },
    unistd::{Pid as NixPid, setpgid},
};
use tokio::io::unix::AsyncFd;

use crate::clock::Instant;

mod cgroup;
mod command;
mod guard;
mod hearing;
mod inherited;
mod init;
mod message;
mod options;
mod patience;
mod report;
mod spawn;
mod sweep;
pub(crate) mod sys;
mod tether;
mod timer;
mod tree;

pub use command::{Command, FindError, FindErrorKind};
pub use inherited::Inherited;
pub use init::Above;
pub(crate) use message::Forwarded;
pub use options::{Audience, Leftovers, Options, Privileges};
pub use report::{NotStarted, Report, Status};
pub use timer::Deadline;
pub use tree::Survivor;

use cgroup::{Leaf, Place};
use command::Exec;
use guard::Guard;
use message::Order;
use options::{Group, Means};
use patience::{Patience, Unanswered};
use sweep::Sweep;
use sys::{Disposition, Forked, Pid, Waited};
use tether::Tether;
use timer::Watchdog;
use tree::{Process, Tree};

/// Front's handle on guard and command.
pub struct Supervisor {
    socket: Arc<OwnedFd>,
    /// The same, known to the runtime; made when first waited for.
    readable: Option<AsyncFd<Arc<OwnedFd>>>,
    guard: Pid,
    above: Above,
    command: Command,
    kill_budget: Duration,
    /// Held, so that its other end is the guard's to lose.
    _tether: Option<Tether>,
    /// Our own cgroup, in which others may have left somebody.
    place: Option<Place>,
    /// The command's own cgroup, or why it has none.
    leaf: Result<Leaf, String>,
    /// The children that this process was started with, which are not the command's.
    bystanders: Vec<Process>,
    deadline: Option<Deadline>,
    watchdog: Option<Watchdog>,
    state: State,
    /// Survivors of which the last has not been named yet.
    survivors: Vec<Survivor>,
    /// SIGKILL has been sent for as long as the kill budget, and somebody lives.
    is_stuck: bool,
    /// The guard was told to start the command, and has not said that it has read that.
    unanswered: Option<Unanswered>,
    /// The guard was told to kill, and has not said that it does.
    patience: Option<Patience>,
    /// When the guard, which had said nothing for too long, was sent SIGKILL; its death is awaited.
    given_up: Option<Instant>,
    reports: VecDeque<Report>,
}

/// What front knows of the guard's life.
enum State {
    /// It reports.
    Guarded {
        /// The command, from its start to its end.
        command: Option<Pid>,
    },
    /// It died; this process kills what it left.
    Sweeping(Sweep),
    /// There is nothing left to report.
    Over,
}

impl Supervisor {
    /// Forks the init, if this process is PID 1, and the guard. All signals that are to be forwarded
    /// must be blocked already.
    ///
    /// The caller must be the only thread. Where this process is PID 1, it is the child that
    /// returns from here: process ids taken before mean somebody else.
    ///
    /// # Errors
    ///
    /// If there is more than one thread, or none more can be made, or the kernel has no process or descriptor for us.
    pub fn begin(inherited: Inherited, command: Command, options: Options) -> Result<Self> {
        ensure_one_thread()?;
        ensure_threads_can_be_made()?;
        // If it were ignored, children would vanish without a status.
        sys::set_disposition(libc::SIGCHLD, Disposition::Default);
        let exec = Exec::new(&command, std::process::id().cast_signed());
        let above = init::interpose(options.stop_signal)?;
        prctl::set_child_subreaper(true).context("can't become the reaper of orphans")?;
        let bystanders = bystanders();
        // Without either the other means must do.
        let mut emptied = Vec::new();
        let place = Place::open(options.kin);
        let leaf = match &place {
            Ok(place) => {
                place.tidy(&mut emptied);
                Leaf::make(place).map_err(|error| format!("{error:#}"))
            }
            Err(error) => Err(format!("{error:#}")),
        };
        let (tether, guards_tether) = Tether::pair().ok().unzip();
        let (front, guards) = socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_CLOEXEC,
        )
        .context("can't make the guard's socket")?;
        let guard = Guard {
            front: guards,
            inherited,
            exec,
            options,
            tether: guards_tether,
            buffer: Guard::buffer(),
        };
        let pid = match sys::fork().context("can't fork the guard")? {
            Forked::Child => {
                drop(front);
                guard.run(tether.map(Tether::into_read_end), leaf.ok())
            }
            Forked::Parent(pid) => pid,
        };
        drop(guard);
        // Also done by the guard; whoever is first.
        let _ = setpgid(NixPid::from_raw(pid), NixPid::from_raw(0));
        Ok(Self {
            socket: Arc::new(front),
            readable: None,
            guard: pid,
            above,
            command,
            kill_budget: options.kill_budget,
            _tether: tether,
            place: place.ok(),
            leaf,
            bystanders,
            deadline: None,
            // Without the timer the other layers must do.
            watchdog: Watchdog::new().ok(),
            state: State::Guarded { command: None },
            survivors: Vec::new(),
            is_stuck: false,
            unanswered: None,
            patience: None,
            given_up: None,
            reports: emptied.into_iter().map(Report::Emptied).collect(),
        })
    }

    /// Who is above this process, for [`crate::signals::die_of`].
    pub fn above(&self) -> Above {
        self.above
    }

    /// A handle for the signals thread.
    pub fn forwarder(&self) -> Forwarder {
        Forwarder {
            socket: Arc::clone(&self.socket),
            guard: self.guard,
        }
    }

    /// Whether the command runs or is about to.
    pub fn is_engaged(&self) -> bool {
        self.deadline.is_some() && !matches!(self.state, State::Over)
    }

    /// Continues what the terminal has stopped together with this process. The guard does that by
    /// itself where the command stops, but not where only something below it does: a child between
    /// vfork and exec, for instance, for which its parent waits without being stopped.
    pub fn undo_stop(&self) {
        self.tell(Order::Signal(Forwarded {
            signal: libc::SIGTSTP,
            sender: 0,
            from_terminal: true,
        }));
    }

    /// Asks the guard to start the command, with these variables added to its environment or in
    /// the place of those with their names. [`Supervisor::next`] tells what came of it.
    ///
    /// A guard that has not read the order when the deadline given here passes is stopped, and will
    /// not carry it out any more. [`Supervisor::next`] then kills it, whatever later deadlines say.
    ///
    /// # Errors
    ///
    /// If the variables don't fit, the guard does not take orders, or somebody lives on in a cgroup
    /// that a killed lease-exec has left beside ours. That the guard died is no error but a report.
    pub fn start(&mut self, deadline: Deadline, environment: &[(&str, String)]) -> Result<()> {
        let mut message = Order::Start(deadline).encode().to_vec();
        message.extend(command::environment(environment)?);
        if let Some(place) = &self.place {
            // The holder before us may have been killed while we waited. No renewal is sent
            // meanwhile, and there is time for them after it.
            let limit = LIMIT_FOR_REMAINS.min(deadline.left(Instant::now()) / 4);
            let mut emptied = Vec::new();
            let ended = place.end_our_kin(limit, &mut emptied);
            self.reports
                .extend(emptied.into_iter().map(Report::Emptied));
            ended?;
        }
        self.deadline = Some(deadline);
        let now = Instant::now();
        self.push_watchdog(now);
        self.unanswered = Some(Unanswered {
            patience: Patience {
                since: now,
                limit: deadline.left(now),
            },
            cancelled_by: None,
        });
        match order(&self.socket, &message) {
            Ok(()) | Err(Errno::EPIPE | Errno::ECONNRESET) => Ok(()),
            Err(errno) => bail!("the guard does not take orders: {errno}"),
        }
    }

    /// Tells that this signal, one of those that end a process, asks us to end. If the guard has not
    /// read yet that it is to start the command, it has a quarter of the kill budget left to do so.
    pub fn cancel_start(&mut self, signal: i32) {
        if let Some(unanswered) = &mut self.unanswered {
            let now = Instant::now();
            let short = Patience {
                since: now,
                limit: self.kill_budget / 4,
            };
            unanswered.patience = unanswered.patience.or_sooner(short, now);
            unanswered.cancelled_by.get_or_insert(signal);
        }
    }

    /// Moves the deadline, unless the present one has passed or is later. If the guard does not
    /// read, its own deadline rules.
    pub fn extend(&mut self, deadline: Deadline) {
        let now = Instant::now();
        if let Some(present) = self.deadline {
            self.deadline = Some(present.extended(deadline, now));
            self.push_watchdog(now);
            self.tell(Order::Extend(deadline));
        }
    }

    /// Sends the command the signal that asks it to end, and SIGCONT.
    ///
    /// Whoever does this is not stopped, and will have more to do at the deadline: front's own timer
    /// moves on to seven eighths of the kill budget after it.
    pub fn terminate(&mut self) {
        self.push_watchdog_to(Instant::now(), self.kill_budget / 8 * 7);
        self.tell(Order::Terminate);
    }

    /// Kills the whole tree, if it was started, with SIGKILL. A guard that does not say within a
    /// quarter of the kill budget that it does so is killed itself, by [`Supervisor::next`], which
    /// kills the command.
    pub fn kill(&mut self) {
        if self.deadline.is_some() {
            let now = Instant::now();
            self.patience.get_or_insert(Patience {
                since: now,
                limit: self.kill_budget / 4,
            });
            self.prove_alive(now);
            self.tell(Order::Kill);
        }
    }

    /// Waits for the next report. It may be dropped and called again without losing any, and waits
    /// for ever when nothing can follow.
    pub async fn next(&mut self) -> Report {
        loop {
            if let Some(report) = self.reports.pop_front() {
                return report;
            }
            match &mut self.state {
                State::Guarded { .. } => match self.given_up {
                    Some(since) => self.await_guards_death(since).await,
                    None => self.hear().await,
                },
                State::Sweeping(_) => {
                    let pause = self.sweep();
                    if self.reports.is_empty() {
                        tokio::time::sleep(pause).await;
                    }
                }
                State::Over => std::future::pending().await,
            }
        }
    }

    /// Ends the guard and reaps it, as dropping does.
    pub fn finish(self) {}

    fn tell(&self, what: Order) {
        // A dead guard shows when its reports are read; a stopped one has its own deadline.
        let _ = order(&self.socket, &what.encode());
    }

    /// Front's timer is due an eighth of the kill budget after the guard's.
    fn push_watchdog(&mut self, now: Instant) {
        self.push_watchdog_to(now, self.kill_budget / 8 * 5);
    }

    /// Sets front's timer for so long after the deadline, if that is still ahead.
    fn push_watchdog_to(&mut self, now: Instant, after_deadline: Duration) {
        if let (Some(watchdog), Some(deadline)) = (&mut self.watchdog, self.deadline) {
            let left = deadline.left(now);
            if !left.is_zero() {
                watchdog.push(now.boot + left + after_deadline);
            }
        }
    }

    /// Whoever does something is not stopped: front's timer is for when it is. By now the killing is
    /// under way, so that there is nothing to be gained by hurry; front has a code to exit with.
    fn prove_alive(&mut self, now: Instant) {
        if let Some(watchdog) = &mut self.watchdog {
            watchdog.push(now.boot + (self.kill_budget / 8 * 3).max(Duration::from_secs(1)));
        }
    }

    fn disarm(&mut self) {
        if let Some(watchdog) = &mut self.watchdog {
            watchdog.disarm();
        }
    }
}

impl Drop for Supervisor {
    /// Ends the guard and reaps it. If the tree is not proven empty, the guard is told to kill and
    /// given the kill budget for it, unless it has used that up already, and goes on without us if
    /// that is not enough.
    ///
    /// Blocks, for at most the kill budget.
    fn drop(&mut self) {
        let _ = shutdown(self.socket.as_raw_fd(), Shutdown::Both);
        let since = Instant::now();
        let is_over = matches!(self.state, State::Over) || self.deadline.is_none();
        let patience = if self.is_stuck {
            Duration::ZERO
        } else {
            self.kill_budget
        };
        // A healthy guard takes a fraction of a millisecond, and whoever called us waits for it.
        let mut pause = Duration::from_micros(100);
        while !matches!(sys::wait(self.guard), Waited::Ended(..) | Waited::NoChild) {
            let now = Instant::now();
            let waited = now.held_since(since);
            if is_over && waited >= self.kill_budget / 8 {
                // Nothing of the command lives or will, so a guard that is stopped has no work left.
                let _ = sys::kill(self.guard, libc::SIGKILL);
            }
            if waited >= patience {
                break;
            }
            self.prove_alive(now);
            std::thread::sleep(pause);
            pause = PAUSE.min(pause * 2);
        }
        // Front has nothing to do any more. The guard, if it lives, has a timer of its own.
        self.disarm();
        if let Ok(leaf) = &self.leaf {
            // The guard does the same, unless it was killed.
            leaf.remove();
        }
    }
}

/// How long a start waits for the death of those whom a killed holder has left in our cgroup.
const LIMIT_FOR_REMAINS: Duration = Duration::from_millis(500);

/// The children that this process was started with.
fn bystanders() -> Vec<Process> {
    let mut bystanders = Vec::new();
    // A walk through /proc costs the more the more processes there are, and mostly there are none.
    if sys::has_no_child() {
        return bystanders;
    }
    if let Ok(tree) = Tree::of_this_process() {
        let ours = std::process::id().cast_signed();
        tree.visit(&[], |process| {
            if process.parent == ours {
                bystanders.push(*process);
            }
        });
        // Nobody reaps them, so that their number is enough to know them by.
        let _ = tree.hidden(&[], |pid| bystanders.push(Process::hidden(pid)));
    }
    bystanders
}

/// The pause between two looks at what can't be waited for.
const PAUSE: Duration = Duration::from_millis(2);

/// Passes signals to the guard, independently of the runtime and of [`Supervisor`].
#[derive(Clone)]
pub struct Forwarder {
    socket: Arc<OwnedFd>,
    guard: Pid,
}

impl Forwarder {
    /// Whether this is the guard's pid: it continues the caller's group, and with it this process.
    pub(crate) fn is_guard(&self, pid: Pid) -> bool {
        pid == self.guard
    }

    /// Passes one signal on. Where hundreds wait already, the guard is given a second to read some of
    /// them; if it does not, because it is stopped, the signal is dropped.
    pub(crate) fn forward(&self, forwarded: Forwarded) {
        let message = Order::Signal(forwarded).encode();
        while order(&self.socket, &message) == Err(Errno::EAGAIN) {
            let mut place = [PollFd::new(self.socket.as_fd(), PollFlags::POLLOUT)];
            match poll(&mut place, 1000_u16) {
                Ok(1..) | Err(Errno::EINTR) => {}
                Ok(_) | Err(_) => return,
            }
        }
    }
}

fn order(socket: &OwnedFd, message: &[u8]) -> Result<(), Errno> {
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    send(socket.as_raw_fd(), message, flags).map(drop)
}

fn ensure_one_thread() -> Result<()> {
    // Without /proc it can't be asked.
    let threads = std::fs::read_dir("/proc/self/task").map_or(1, Iterator::count);
    if threads > 1 {
        bail!("the guard must be forked by the only thread, and there are {threads}");
    }
    Ok(())
}

/// See pid_namespaces(7): after unshare(2) or setns(2) with a PID namespace a process can't make
/// threads, because its children would be in another namespace than itself.
fn ensure_threads_can_be_made() -> Result<()> {
    let children = "/proc/self/ns/pid_for_children";
    // Before Linux 4.12 there is no such file. While nobody is in the new namespace, the link is there
    // but can't be read.
    let is_known = std::fs::symlink_metadata(children).is_ok();
    if is_known
        && let Ok(ours) = std::fs::read_link("/proc/self/ns/pid")
        && std::fs::read_link(children).ok() != Some(ours)
    {
        bail!(
            "run in a PID namespace of which this process is no member, but its children would be \
             (does unshare --pid lack --fork?)"
        );
    }
    Ok(())
}
