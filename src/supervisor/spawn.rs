//! The birth of the command: a child of the guard that waits at a gate and then becomes it.

use std::os::fd::{AsFd, OwnedFd};

use nix::{
    errno::Errno,
    fcntl::OFlag,
    sys::{prctl, signal::Signal},
    unistd::{Pid as NixPid, getppid, pipe2, read, setpgid, write},
};

use super::{
    Group,
    command::Exec,
    inherited::Inherited,
    sys::{self, Forked, Pid},
};

/// A child that will be the command once the gate is opened.
pub(super) struct Born {
    pub(super) pid: Pid,
    /// Closed without being opened it makes the child end.
    pub(super) gate: OwnedFd,
    /// Ends when the child becomes the command, and carries an errno if it can't. Not blocking.
    pub(super) exec_result: OwnedFd,
}

/// Forks the child.
pub(super) fn bear(
    guard: Pid,
    group: Group,
    inherited: &Inherited,
    exec: &mut Exec,
) -> Result<Born, Errno> {
    let (gate_out, gate) = pipe2(OFlag::O_CLOEXEC)?;
    let (exec_result, result_in) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
    match sys::fork()? {
        Forked::Child => {
            drop(gate);
            let errno = become_command(guard, group, inherited, exec, &gate_out);
            let _ = write(result_in.as_fd(), &(errno as i32).to_ne_bytes());
            sys::exit_now(127)
        }
        Forked::Parent(pid) => {
            // Also done by the child; whoever is first.
            join(pid, group);
            Ok(Born {
                pid,
                gate,
                exec_result,
            })
        }
    }
}

/// Lets the child go on.
pub(super) fn open(gate: OwnedFd) {
    // The child lives or does not; either way there is nothing more to do about it here.
    let _ = write(gate.as_fd(), &[1]);
}

fn join(pid: Pid, group: Group) {
    let group = match group {
        Group::Own => 0,
        Group::Shared(group) => group,
    };
    let _ = setpgid(NixPid::from_raw(pid), NixPid::from_raw(group));
}

fn become_command(
    guard: Pid,
    group: Group,
    inherited: &Inherited,
    exec: &mut Exec,
    gate: &OwnedFd,
) -> Errno {
    join(0, group);
    // The kernel forgets this at a change of user or group, which only the command can make.
    let _ = prctl::set_pdeathsig(Signal::SIGKILL);
    // If the guard had died before, there would be no signal. After it died the parent is whoever
    // reaps orphans, which need not be pid 1.
    if getppid().as_raw() != guard {
        sys::exit_now(127);
    }
    let mut passed = [0];
    loop {
        match read(gate, &mut passed) {
            Ok(1) => break,
            Err(Errno::EINTR) => {}
            _ => sys::exit_now(127),
        }
    }
    inherited.restore();
    exec.exec()
}
