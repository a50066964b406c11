//! Signals that others send to lease-exec: which go to the command, which the driver hears of.
//!
//! They are blocked from the first line of `main` and read one by one, because a handler would see
//! neither who sent one nor how often. One thread does that and passes them to the guard itself, so
//! that the command gets them also while the runtime is busy.
//!
//! Must not: decide what a signal means for the lease.

use std::{
    os::fd::{AsFd, OwnedFd},
    thread,
};

use anyhow::{Context, Result};
use nix::{
    errno::Errno,
    sys::{
        prctl,
        resource::{Resource, setrlimit},
    },
    unistd::{getpid, getppid, getsid},
};
use tokio::sync::mpsc;

use crate::supervisor::{
    Above, Forwarded, Forwarder, Inherited,
    sys::{self, Arrived, Disposition, SignalSet},
};

/// The blocked signals.
pub struct Signals {
    inherited: Inherited,
    blocked: SignalSet,
}

/// A signal that arrived, as the driver hears of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    /// Its number.
    pub signal: i32,
    /// It was made by the terminal, as by Ctrl-C, and not sent by a process.
    pub from_terminal: bool,
}

impl Signals {
    /// Blocks all signals that are to be read. From here on none of them is lost, and none acts.
    ///
    /// To be called by the only thread, before anything else is done, so that all later threads
    /// have them blocked as well.
    pub fn block(inherited: Inherited) -> Self {
        let blocked = SignalSet::of(is_read);
        blocked.replace_mask();
        // Rust's runtime has handlers for these two, which swallow the first one that is sent by
        // kill(1). A fault ends us either way.
        for signal in [libc::SIGSEGV, libc::SIGBUS] {
            if !inherited.ignores(signal) {
                sys::set_disposition(signal, Disposition::Default);
            }
        }
        Self { inherited, blocked }
    }

    /// Starts the thread that reads them, and returns the end of the queue on which the driver
    /// hears of them. If the driver does not listen, the queue fills and later ones are dropped;
    /// the command gets them nevertheless.
    ///
    /// # Errors
    ///
    /// If the kernel has no descriptor or thread for us.
    pub fn listen(self, forwarder: Forwarder, above: Above) -> Result<mpsc::Receiver<Received>> {
        let reader = self.blocked.reader(0).context("can't open the signals")?;
        let (sender, receiver) = mpsc::channel(QUEUE);
        thread::Builder::new()
            .name("signals".into())
            .spawn(move || self.read(&reader, &forwarder, above, &sender))
            .context("can't start the thread that reads signals")?;
        Ok(receiver)
    }

    fn read(
        &self,
        reader: &OwnedFd,
        forwarder: &Forwarder,
        above: Above,
        driver: &mpsc::Sender<Received>,
    ) {
        let leads_session = getsid(None) == Ok(getpid());
        loop {
            let arrived = match sys::read_signal(reader.as_fd()) {
                Ok(arrived) => arrived,
                Err(Errno::EINTR) => continue,
                // A descriptor of ours has no other way to fail.
                Err(_) => return,
            };
            let arrived = match above {
                Above::OwnInit => arrived.passed_on_by(getppid().as_raw()),
                Above::Caller => arrived,
            };
            let is_ignored = self.inherited.ignores(arrived.signal);
            let treatment = if forwarder.is_guard(arrived.sender) {
                Treatment::Drop
            } else {
                Treatment::of(arrived, is_ignored)
            };
            let from_terminal = is_from_terminal(arrived, leads_session);
            // The driver first: it must not wait for a guard that is stopped.
            if treatment != Treatment::Drop {
                let _ = driver.try_send(Received {
                    signal: arrived.signal,
                    from_terminal,
                });
            }
            if treatment == Treatment::Forward {
                forwarder.forward(Forwarded {
                    signal: arrived.signal,
                    sender: arrived.sender,
                    from_terminal,
                });
            }
        }
    }
}

/// How many signals the driver may be behind.
const QUEUE: usize = 64;

/// What becomes of a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Treatment {
    /// Nothing.
    Drop,
    /// The driver hears of it.
    Tell,
    /// The driver hears of it, and the guard, which decides whether the command has it already.
    Forward,
}

impl Treatment {
    fn of(arrived: Arrived, is_ignored: bool) -> Self {
        match arrived.signal {
            // It continues whether it is ignored or not, and so do we.
            libc::SIGCONT => Self::Forward,
            // Blocked signals arrive also if they were ignored, as by nohup.
            _ if is_ignored => Self::Drop,
            libc::SIGTTIN | libc::SIGTTOU => Self::Drop,
            libc::SIGTSTP => Self::Tell,
            _ => Self::Forward,
        }
    }
}

/// The signal by which the command is asked to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StopSignal(i32);

impl StopSignal {
    /// What it is unless another is asked for.
    pub const TERM: Self = Self(libc::SIGTERM);

    /// `None` for a number that is no signal, and for one by which nobody can be asked to end: it
    /// can't be caught, or stops or continues a process, or tells of its children.
    pub fn new(signal: i32) -> Option<Self> {
        let asks = match signal {
            libc::SIGKILL | libc::SIGSTOP | libc::SIGCONT | libc::SIGCHLD => false,
            libc::SIGTSTP | libc::SIGTTIN | libc::SIGTTOU => false,
            // The C library keeps 32 and 33 for itself.
            1..=31 | 34..=64 => true,
            _ => false,
        };
        asks.then_some(Self(signal))
    }

    /// Its number.
    pub fn number(self) -> i32 {
        self.0
    }

    /// Whether a signal asks to end: one of the four that people and supervisors use for it, or this
    /// one, but not a window's change of size, which the terminal tells with SIGWINCH.
    pub fn is_asked_by(self, received: Received) -> bool {
        match received.signal {
            libc::SIGTERM | libc::SIGINT | libc::SIGQUIT | libc::SIGHUP => true,
            signal => signal == self.0 && !received.from_terminal,
        }
    }
}

/// Whether a signal ends a program that does nothing about it. Such a program is lease-exec while no
/// command runs.
pub fn ends_by_default(signal: i32) -> bool {
    !matches!(
        signal,
        libc::SIGCONT
            | libc::SIGSTOP
            | libc::SIGTSTP
            | libc::SIGTTIN
            | libc::SIGTTOU
            | libc::SIGCHLD
            | libc::SIGURG
            | libc::SIGWINCH
    )
}

/// Whether a signal is blocked and read. Others keep their default action: faults, which can't be
/// blocked; SIGABRT, with which we would end ourselves; the kernel's limits; SIGCHLD, which nobody
/// here waits for.
fn is_read(signal: i32) -> bool {
    !matches!(
        signal,
        libc::SIGKILL
            | libc::SIGSTOP
            | libc::SIGCHLD
            | libc::SIGSEGV
            | libc::SIGBUS
            | libc::SIGILL
            | libc::SIGFPE
            | libc::SIGTRAP
            | libc::SIGSYS
            | libc::SIGABRT
            | libc::SIGXCPU
            | libc::SIGXFSZ
    )
}

/// Whether the terminal made a signal for the whole foreground group.
///
/// When the terminal goes away the kernel tells nobody but the leader of the session, and the
/// foreground group only once that has ended. As `ssh -t host lease-exec ...` runs us, or a window
/// that is opened for us, we are that leader.
fn is_from_terminal(arrived: Arrived, leads_session: bool) -> bool {
    let can_be = match arrived.signal {
        libc::SIGINT | libc::SIGQUIT | libc::SIGTSTP | libc::SIGWINCH => true,
        libc::SIGHUP => !leads_session,
        // No key or event of a terminal makes another.
        _ => false,
    };
    can_be && arrived.code == libc::SI_KERNEL
}

/// Stops this process, as Ctrl-Z asked for, until it is continued. Where nobody could continue it,
/// because no shell with job control is above, the kernel does nothing.
pub fn stop() {
    sys::die_of(libc::SIGTSTP);
}

/// Ends this process as a signal would, without a core dump: a shell stops a script at Ctrl-C only
/// if the program *died* of SIGINT. Below our own init it exits with 128 + N, which is what the
/// caller is to see.
pub fn die_of(signal: i32, above: Above) -> ! {
    if above == Above::Caller {
        let _ = setrlimit(Resource::RLIMIT_CORE, 0, 0);
        let _ = prctl::set_dumpable(false);
        sys::die_of(signal);
    }
    sys::exit_now(128 + signal)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arrived(signal: i32, code: i32) -> Arrived {
        Arrived {
            signal,
            code,
            sender: 0,
            value: 0,
        }
    }

    fn by_kill(signal: i32) -> Treatment {
        Treatment::of(arrived(signal, libc::SI_USER), false)
    }

    #[test]
    fn what_has_a_meaning_for_the_command_is_forwarded() {
        for signal in [
            1, 2, 3, 10, 12, 13, 14, 15, 18, 23, 26, 27, 28, 29, 30, 34, 64,
        ] {
            assert!(is_read(signal), "{signal}");
            assert_eq!(by_kill(signal), Treatment::Forward, "{signal}");
        }
    }

    #[test]
    fn job_control_stops_do_not_reach_the_command() {
        assert_eq!(by_kill(libc::SIGTSTP), Treatment::Tell);
        assert_eq!(by_kill(libc::SIGTTIN), Treatment::Drop);
        assert_eq!(by_kill(libc::SIGTTOU), Treatment::Drop);
    }

    #[test]
    fn what_was_ignored_at_entry_is_dropped_but_for_continue() {
        for signal in [1, 2, 3, 10, 15, 20, 34] {
            let treatment = Treatment::of(arrived(signal, libc::SI_USER), true);
            assert_eq!(treatment, Treatment::Drop, "{signal}");
        }
        let treatment = Treatment::of(arrived(libc::SIGCONT, libc::SI_USER), true);
        assert_eq!(treatment, Treatment::Forward);
    }

    #[test]
    fn faults_and_limits_keep_their_default_action() {
        for signal in [4, 5, 6, 7, 8, 9, 11, 17, 19, 24, 25, 31] {
            assert!(!is_read(signal), "{signal}");
        }
    }

    #[test]
    fn a_program_is_ended_by_all_but_those_that_stop_continue_or_mean_nothing() {
        for signal in [1, 2, 3, 9, 10, 12, 13, 14, 15, 16, 26, 27, 29, 30, 34, 64] {
            assert!(ends_by_default(signal), "{signal}");
        }
        for signal in [17, 18, 19, 20, 21, 22, 23, 28] {
            assert!(!ends_by_default(signal), "{signal}");
        }
    }

    #[test]
    fn only_keys_resizes_and_hangups_come_from_the_terminal() {
        let is_from_terminal = |signal, code| super::is_from_terminal(arrived(signal, code), false);
        assert!(is_from_terminal(libc::SIGINT, libc::SI_KERNEL));
        assert!(is_from_terminal(libc::SIGHUP, libc::SI_KERNEL));
        assert!(!is_from_terminal(libc::SIGINT, libc::SI_USER));
        assert!(!is_from_terminal(libc::SIGPIPE, libc::SI_KERNEL));
    }

    #[test]
    fn only_our_own_init_says_for_whom_it_passes_a_signal_on() {
        let queued = |sender| Arrived {
            sender,
            value: 77,
            ..arrived(libc::SIGUSR1, libc::SI_QUEUE)
        };
        assert_eq!(queued(1).passed_on_by(1).sender, 77);
        assert_eq!(queued(5).passed_on_by(1).sender, 5);
        let sent = arrived(libc::SIGUSR1, libc::SI_USER);
        assert_eq!(sent.passed_on_by(0).sender, 0);
    }

    #[test]
    fn a_hangup_is_for_the_leader_of_the_session_alone() {
        let is_from_terminal =
            |signal| super::is_from_terminal(arrived(signal, libc::SI_KERNEL), true);
        assert!(!is_from_terminal(libc::SIGHUP));
        assert!(is_from_terminal(libc::SIGINT));
    }
}
