//! What the supervisor is told, and with what it has to make do.

use std::time::Duration;

use nix::{
    fcntl::{OFlag, open},
    sys::stat::Mode,
    unistd::{Pid as NixPid, getpgid, getppid, tcgetpgrp},
};

use super::sys::Pid;
use crate::signals::StopSignal;

/// What the supervisor must know from its start.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// How long killing may take, from the first SIGKILL to the proof that the tree is empty. The
    /// kernel's timers for guard and front are due a half and five eighths of it after the deadline,
    /// that for a front which has seen the loss coming seven eighths; after all of it the survivors are
    /// named.
    pub kill_budget: Duration,
    /// The same for all whose commands exclude each other: what one of them has left behind must be
    /// gone before another starts.
    pub kin: u64,
    /// What becomes of those who are left when the command itself has ended.
    pub leftovers: Leftovers,
    /// Who gets a signal that is forwarded.
    pub audience: Audience,
    /// Whether the command may gain privileges by executing a file.
    pub privileges: Privileges,
    /// By which signal the command is asked to end.
    pub stop_signal: StopSignal,
}

/// What becomes of descendants that the command leaves behind when it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leftovers {
    /// SIGTERM, half a second, SIGKILL.
    End,
    /// They are waited for, as for commands that put themselves in the background. Signals are
    /// forwarded to all of them then.
    Await,
}

/// Who gets a signal that is forwarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Audience {
    /// The command itself.
    Command,
    /// The command and those of its descendants that are in its process group.
    Group,
}

/// Whether the command may gain privileges by executing a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Privileges {
    /// As without us.
    AsUsual,
    /// It may not, nor may its descendants, see PR_SET_NO_NEW_PRIVS in prctl(2).
    NoneNew,
}

/// What there is to kill the command's tree with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Means {
    /// It was born in a cgroup of its own.
    pub(super) leaf: bool,
    /// The kernel kills its group when front or guard dies.
    pub(super) tether: bool,
    /// The kernel kills a guard that is stopped beyond the deadline.
    pub(super) timer: bool,
    /// `/proc` shows who descends from the command.
    pub(super) proc: bool,
}

/// Which process group the command joins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Group {
    /// One of its own.
    Own,
    /// The caller's, because that is in the terminal's foreground and the command must be too.
    Shared(Pid),
}

impl Group {
    /// For the guard to ask right before the command starts. The terminal's foreground group is never
    /// changed: to take it would stop whoever reads the terminal after us.
    pub(super) fn of_command() -> Self {
        match getpgid(Some(getppid())).map(NixPid::as_raw) {
            // A group that was made outside our PID namespace has the number 0 and can't be joined.
            Ok(fronts) if fronts > 0 && foreground_group() == Some(fronts) => Self::Shared(fronts),
            _ => Self::Own,
        }
    }
}

/// The group that has the terminal, if there is one. Not to be kept: shells change it. The terminal is
/// closed again, because it would not be free as long as somebody has it open.
pub(super) fn foreground_group() -> Option<Pid> {
    let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    let terminal = open(c"/dev/tty", flags, Mode::empty()).ok()?;
    tcgetpgrp(terminal).ok().map(NixPid::as_raw)
}
