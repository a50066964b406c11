//! The birth of the command: a child of the guard that waits at a gate and then becomes it.

use std::os::fd::{AsFd, OwnedFd};

use nix::{
    errno::Errno,
    fcntl::OFlag,
    sys::{prctl, signal::Signal},
    unistd::{Pid as NixPid, getppid, pipe2, read, setpgid, write},
};

use super::{
    Group, Privileges,
    cgroup::Leaf,
    command::Exec,
    inherited::Inherited,
    sys::{self, Forked, Pid},
};

/// A child that will be the command once the gate is opened.
pub(super) struct Born {
    pub(super) pid: Pid,
    /// It is in the leaf.
    pub(super) in_leaf: bool,
    /// Closed without being opened it makes the child end.
    pub(super) gate: OwnedFd,
    /// Ends when the child becomes the command, and carries an errno if it can't. Not blocking.
    pub(super) exec_result: OwnedFd,
}

/// What the child must know.
pub(super) struct Birth<'a> {
    /// Its parent.
    pub(super) guard: Pid,
    pub(super) group: Group,
    pub(super) privileges: Privileges,
    pub(super) inherited: &'a Inherited,
    pub(super) exec: &'a mut Exec,
}

/// Forks the child, into the leaf if there is one and it can be done.
pub(super) fn bear(birth: Birth<'_>, leaf: Option<&Leaf>) -> Result<Born, Errno> {
    let (gate_out, gate) = pipe2(OFlag::O_CLOEXEC)?;
    let (exec_result, result_in) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
    let group = birth.group;
    let into_leaf = leaf.and_then(|leaf| sys::fork_into(leaf.directory()).ok());
    let in_leaf = into_leaf.is_some();
    let forked = match into_leaf {
        Some(forked) => forked,
        None => sys::fork()?,
    };
    match forked {
        Forked::Child => {
            drop(gate);
            let errno = become_command(birth, &gate_out);
            let _ = write(result_in.as_fd(), &(errno as i32).to_ne_bytes());
            sys::exit_now(127)
        }
        Forked::Parent(pid) => {
            // Also done by the child; whoever is first.
            join(pid, group);
            Ok(Born {
                pid,
                in_leaf,
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

fn become_command(birth: Birth<'_>, gate: &OwnedFd) -> Errno {
    join(0, birth.group);
    // The kernel forgets this at a change of user or group, which only the command can make.
    let _ = prctl::set_pdeathsig(Signal::SIGKILL);
    // If the guard had died before, there would be no signal. After it died the parent is whoever
    // reaps orphans, which need not be pid 1.
    if getppid().as_raw() != birth.guard {
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
    if birth.privileges == Privileges::NoneNew
        && let Err(errno) = prctl::set_no_new_privs()
    {
        return errno;
    }
    birth.inherited.restore();
    birth.exec.exec()
}
