//! The process above front where lease-exec is PID 1 of a PID namespace, as in a container.
//!
//! The kernel drops every signal from inside that would kill PID 1, also that of its own timer; so
//! front must not be PID 1. And when PID 1 exits, the kernel kills everything in the namespace,
//! which no other process can promise. This one only reaps and forwards, and ends with front.

use anyhow::{Context, Result};

use crate::signals::{Received, StopSignal};

use super::{
    Status,
    sys::{self, Forked, Pid, SignalSet, Waited},
};

/// Who is above front.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Above {
    /// Whoever started us.
    Caller,
    /// Our own PID 1, which passes an exit code on but can't die of a signal.
    OwnInit,
}

/// Puts an init above the calling process if that is PID 1: it returns in a child.
///
/// All signals that [`forwards`] must be blocked already, or they are lost.
pub(super) fn interpose(stop_signal: StopSignal) -> Result<Above> {
    if std::process::id() != 1 {
        return Ok(Above::Caller);
    }
    match sys::fork().context("can't fork front")? {
        Forked::Child => Ok(Above::OwnInit),
        Forked::Parent(front) => run(front, stop_signal),
    }
}

fn run(front: Pid, stop_signal: StopSignal) -> ! {
    let everything = SignalSet::all();
    everything.replace_mask();
    // Whoever reads the other end of a pipe must not wait for us, and no directory be kept busy.
    sys::close_range(0, i32::MAX);
    let _ = nix::unistd::chdir(c"/");
    let _ = nix::sys::prctl::set_name(c"lease-init");
    let mut state = State::default();
    loop {
        if let Some(status) = reap(front, &mut state) {
            sys::exit_now(status.code());
        }
        // Otherwise the signal would pend for ever, and a second one would do no more.
        if state.is_stopped && state.is_to_end {
            state.is_stopped = false;
            let _ = sys::kill(front, libc::SIGCONT);
        }
        if let Ok(arrived) = everything.wait()
            && forwards(arrived.signal, arrived.code)
        {
            let is_asked = stop_signal.is_asked_by(Received {
                signal: arrived.signal,
                from_terminal: false,
            });
            state.is_to_end |= is_asked;
            state.is_stopped &= arrived.signal != libc::SIGCONT;
            // `kill 1` is how a process inside a container ends the container, also one of the
            // command's: a signal that asks to end is passed on as nobody's.
            let sender = if is_asked { 0 } else { arrived.sender };
            pass_on(front, arrived.signal, sender);
        }
    }
}

/// What is known of front.
#[derive(Default)]
struct State {
    /// Ctrl-Z, or whoever else, has stopped it.
    is_stopped: bool,
    /// It was sent a signal that ends a process.
    is_to_end: bool,
}

/// Tells front, and who it was, so that the command does not get back what its tree has sent.
fn pass_on(front: Pid, signal: i32, sender: Pid) {
    // The queue may be full, where kill(2) still works for all but real-time signals.
    if sys::pass_on(front, signal, sender).is_err() {
        let _ = sys::kill(front, signal);
    }
}

/// Reaps whoever is dead, our own and orphans; returns how front ended if it did.
fn reap(front: Pid, state: &mut State) -> Option<Status> {
    loop {
        match sys::wait(-1) {
            Waited::Ended(pid, status) if pid == front => return Some(status),
            Waited::Stopped(pid, _) if pid == front => state.is_stopped = true,
            Waited::Ended(..) | Waited::Stopped(..) => {}
            // Front is a child until it is reaped here, so there is always one.
            Waited::Nothing | Waited::NoChild => return None,
        }
    }
}

/// Whether front is told. What the terminal makes, but for the hangup, goes to front's group, which
/// is ours, so front has it already.
fn forwards(signal: i32, code: i32) -> bool {
    match signal {
        libc::SIGCHLD | libc::SIGTTIN | libc::SIGTTOU => false,
        libc::SIGSEGV | libc::SIGBUS | libc::SIGILL | libc::SIGFPE => false,
        libc::SIGTRAP | libc::SIGSYS | libc::SIGABRT => false,
        libc::SIGINT | libc::SIGQUIT | libc::SIGTSTP | libc::SIGWINCH => code != libc::SI_KERNEL,
        // All others, also real-time ones.
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn front_is_told_of_all_but_faults_children_and_what_the_terminal_told_it() {
        for signal in [1, 2, 3, 10, 12, 13, 14, 15, 18, 20, 23, 28, 30, 34, 64] {
            assert!(forwards(signal, libc::SI_USER), "{signal}");
        }
        for signal in [4, 5, 6, 7, 8, 11, 17, 21, 22, 31] {
            assert!(!forwards(signal, libc::SI_USER), "{signal}");
        }
        for signal in [2, 3, 20, 28] {
            assert!(!forwards(signal, libc::SI_KERNEL), "{signal}");
        }
        assert!(forwards(libc::SIGHUP, libc::SI_KERNEL));
    }
}
