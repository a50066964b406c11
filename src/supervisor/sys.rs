//! The system calls that nix lacks, or has only for the signals 1 to 31, as safe functions.
//!
//! Nothing here allocates, so that the guard and a forked child may call all of it.

use std::{
    ffi::CStr,
    mem::{self, MaybeUninit},
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
    ptr,
};

use nix::{
    errno::Errno,
    sys::wait::{Id, WaitPidFlag, waitid},
};

use super::Status;

/// A process id, or in `kill` a negated group id.
pub(crate) type Pid = libc::pid_t;

/// The signals that Linux numbers, real-time ones included.
pub(super) const SIGNALS: std::ops::RangeInclusive<i32> = 1..=64;

/// A set of signals, real-time ones included.
#[derive(Clone, Copy)]
pub(crate) struct SignalSet(libc::sigset_t);

impl SignalSet {
    /// The set without a member.
    pub(crate) fn empty() -> Self {
        let mut set = MaybeUninit::uninit();
        // SAFETY: sigemptyset initialises the set that it is given.
        unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            Self(set.assume_init())
        }
    }

    /// The set of every signal.
    pub(super) fn all() -> Self {
        let mut set = Self::empty();
        // SAFETY: the set is initialised and ours.
        unsafe { libc::sigfillset(&raw mut set.0) };
        set
    }

    /// The set of those signals that `wanted` picks.
    pub(crate) fn of(wanted: impl Fn(i32) -> bool) -> Self {
        let mut set = Self::empty();
        for signal in SIGNALS.filter(|signal| wanted(*signal)) {
            // SAFETY: the set is initialised and ours; the C libraries refuse the two or three
            // numbers that they keep for themselves, which we have no use for.
            unsafe { libc::sigaddset(&raw mut set.0, signal) };
        }
        set
    }

    /// Makes this set the calling thread's mask and returns the one before.
    pub(crate) fn replace_mask(&self) -> Self {
        let mut before = Self::empty();
        // SAFETY: both sets are initialised. SIG_SETMASK with valid pointers can't fail.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.0, &raw mut before.0) };
        before
    }

    /// Waits until one of these signals, which must be blocked, arrives and takes it.
    pub(super) fn wait(&self) -> Result<Arrived, Errno> {
        // SAFETY: siginfo_t is plain data, for which zeroes are valid.
        let mut info: libc::siginfo_t = unsafe { mem::zeroed() };
        // SAFETY: the set and the place for the answer are valid and ours.
        let signal = Errno::result(unsafe { libc::sigwaitinfo(&raw const self.0, &raw mut info) })?;
        Ok(Arrived {
            signal,
            code: info.si_code,
            // SAFETY: si_pid lies inside the union whatever the signal was; it is zero, as set
            // above or by the kernel, where the signal has no sender.
            sender: unsafe { info.si_pid() },
            value: 0,
        })
    }

    /// Makes a descriptor from which these signals, which must be blocked, can be read.
    pub(crate) fn reader(&self, flags: i32) -> Result<OwnedFd, Errno> {
        // SAFETY: the set is initialised; -1 asks for a new descriptor.
        let descriptor = Errno::result(unsafe {
            libc::signalfd(-1, &raw const self.0, libc::SFD_CLOEXEC | flags)
        })?;
        // SAFETY: the kernel has just given us this descriptor, nobody else owns it.
        Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
    }
}

/// A signal as it arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Arrived {
    /// Its number.
    pub(crate) signal: i32,
    /// Who made it: `SI_USER`, `SI_KERNEL` and so on, see sigaction(2).
    pub(crate) code: i32,
    /// The sending process; 0 if it was the kernel or is outside our PID namespace.
    pub(crate) sender: Pid,
    /// What the sender gave to sigqueue(3); 0 if it used something else.
    pub(crate) value: u64,
}

impl Arrived {
    /// The signal as it reached `init`, if that has passed it on.
    pub(crate) fn passed_on_by(self, init: Pid) -> Self {
        if self.code == libc::SI_QUEUE && self.sender == init {
            Self {
                sender: Pid::try_from(self.value).unwrap_or(0),
                ..self
            }
        } else {
            self
        }
    }
}

/// Takes one signal from a descriptor made by [`SignalSet::reader`].
pub(crate) fn read_signal(reader: BorrowedFd<'_>) -> Result<Arrived, Errno> {
    // SAFETY: signalfd_siginfo is plain data, for which zeroes are valid.
    let mut info: libc::signalfd_siginfo = unsafe { mem::zeroed() };
    let size = size_of::<libc::signalfd_siginfo>();
    // SAFETY: the buffer is valid for `size` bytes and any bytes are a valid siginfo.
    let length =
        Errno::result(unsafe { libc::read(reader.as_raw_fd(), (&raw mut info).cast(), size) })?;
    if usize::try_from(length) != Ok(size) {
        return Err(Errno::EIO);
    }
    Ok(Arrived {
        signal: info.ssi_signo.cast_signed(),
        code: info.ssi_code,
        sender: info.ssi_pid.cast_signed(),
        value: info.ssi_ptr,
    })
}

/// kill(2), for every signal.
pub(super) fn kill(pid: Pid, signal: i32) -> Result<(), Errno> {
    // SAFETY: kill touches no memory of ours.
    Errno::result(unsafe { libc::kill(pid, signal) }).map(drop)
}

/// Passes a signal on with the pid of whoever sent it, which [`Arrived::passed_on_by`] finds again;
/// see sigqueue(3).
pub(super) fn pass_on(pid: Pid, signal: i32, sender: Pid) -> Result<(), Errno> {
    // SAFETY: sigval is plain data, for which zeroes are valid.
    let mut value: libc::sigval = unsafe { mem::zeroed() };
    value.sival_ptr = ptr::without_provenance_mut(usize::try_from(sender).unwrap_or(0));
    // SAFETY: sigqueue touches no memory of ours; what it hands over is a number.
    Errno::result(unsafe { libc::sigqueue(pid, signal, value) }).map(drop)
}

/// Lets a signal have its default action on this process; comes back if that is not death.
pub(crate) fn die_of(signal: i32) {
    set_disposition(signal, Disposition::Default);
    let before = SignalSet::all().replace_mask();
    let mut without = before;
    // SAFETY: the set is initialised and ours.
    unsafe { libc::sigdelset(&raw mut without.0, signal) };
    // To this thread and not to the process: another thread may be reading signals.
    // SAFETY: raise touches no memory of ours.
    unsafe { libc::raise(signal) };
    without.replace_mask();
    // A stop that is over. The next one is for the thread that reads signals again.
    before.replace_mask();
}

/// What to do with a signal.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Disposition {
    /// As the kernel has it.
    Default,
    /// Nothing.
    Ignore,
}

/// Sets what a signal does. Refused without effect for SIGKILL, SIGSTOP and the numbers that the C
/// library keeps for itself.
pub(crate) fn set_disposition(signal: i32, disposition: Disposition) {
    // SAFETY: sigaction is plain data, for which zeroes are valid.
    let mut action: libc::sigaction = unsafe { mem::zeroed() };
    action.sa_sigaction = match disposition {
        Disposition::Default => libc::SIG_DFL,
        Disposition::Ignore => libc::SIG_IGN,
    };
    // SAFETY: the action is valid and installs no code of ours.
    unsafe { libc::sigaction(signal, &raw const action, ptr::null_mut()) };
}

/// Whether a signal is ignored by this process.
pub(super) fn is_ignored(signal: i32) -> bool {
    // SAFETY: sigaction is plain data, for which zeroes are valid.
    let mut action: libc::sigaction = unsafe { mem::zeroed() };
    // SAFETY: only asks, into a place that is ours.
    let asked = unsafe { libc::sigaction(signal, ptr::null(), &raw mut action) };
    asked == 0 && action.sa_sigaction == libc::SIG_IGN
}

/// Whether a descriptor is open.
pub(super) fn is_open(descriptor: RawFd) -> bool {
    // SAFETY: F_GETFD only asks.
    let flags = unsafe { libc::fcntl(descriptor, libc::F_GETFD) };
    flags != -1
}

/// Makes a copy of a descriptor with a higher number than `floor`.
pub(super) fn duplicate_above(descriptor: BorrowedFd<'_>, floor: RawFd) -> Result<OwnedFd, Errno> {
    // SAFETY: touches no memory of ours.
    let copy = Errno::result(unsafe {
        libc::fcntl(descriptor.as_raw_fd(), libc::F_DUPFD_CLOEXEC, floor + 1)
    })?;
    // SAFETY: the kernel has just given us this descriptor, nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(copy) })
}

/// Lets the kernel send SIGKILL to every member of a group when the last writer of a pipe, of which
/// this is a read end, goes away or writes.
pub(super) fn kill_group_at_close(read_end: BorrowedFd<'_>, group: Pid) -> Result<(), Errno> {
    let descriptor = read_end.as_raw_fd();
    // SAFETY: these four only set properties of an open file.
    unsafe {
        Errno::result(libc::fcntl(descriptor, F_SETSIG, libc::SIGKILL))?;
        Errno::result(libc::fcntl(descriptor, libc::F_SETOWN, -group))?;
        let flags = Errno::result(libc::fcntl(descriptor, libc::F_GETFL))?;
        Errno::result(libc::fcntl(
            descriptor,
            libc::F_SETFL,
            flags | libc::O_ASYNC,
        ))?;
    }
    Ok(())
}

/// From asm-generic/fcntl.h; the libc crate has it for one architecture only.
const F_SETSIG: i32 = 10;

/// Reads an extended attribute; returns how much of it there is.
pub(super) fn read_attribute(
    file: BorrowedFd<'_>,
    name: &CStr,
    buffer: &mut [u8],
) -> Result<usize, Errno> {
    // SAFETY: the name is terminated and the buffer valid for its length.
    let length = Errno::result(unsafe {
        libc::fgetxattr(
            file.as_raw_fd(),
            name.as_ptr(),
            buffer.as_mut_ptr().cast(),
            buffer.len(),
        )
    })?;
    usize::try_from(length).map_err(|_| Errno::EIO)
}

/// Writes an extended attribute, whether it is there already or not.
pub(super) fn write_attribute(
    file: BorrowedFd<'_>,
    name: &CStr,
    value: &[u8],
) -> Result<(), Errno> {
    // SAFETY: the name is terminated and the value valid for its length.
    Errno::result(unsafe {
        libc::fsetxattr(
            file.as_raw_fd(),
            name.as_ptr(),
            value.as_ptr().cast(),
            value.len(),
            0,
        )
    })
    .map(drop)
}

/// Closes the descriptors from `first` to `last`, both included, whoever owns them. Only for
/// processes that own nothing outside what they keep: guard, init, and the command before exec.
pub(super) fn close_range(first: RawFd, last: RawFd) {
    let (Ok(first), Ok(last)) = (u32::try_from(first), u32::try_from(last)) else {
        return;
    };
    if first > last {
        return;
    }
    // SAFETY: the caller has promised that nobody uses these descriptors any more. musl has no
    // wrapper for this call.
    let closed = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
    if closed != 0 {
        // Before Linux 5.9. Programs have few descriptors and they are the low ones.
        for descriptor in first..=last.min(4096) {
            // SAFETY: as above.
            unsafe { libc::close(descriptor.cast_signed()) };
        }
    }
}

/// Which side of a fork we are on.
pub(super) enum Forked {
    /// The new process.
    Child,
    /// The old one, with the new one's id.
    Parent(Pid),
}

/// fork(2). The caller must be the only thread: then the child may do whatever a process may.
pub(super) fn fork() -> Result<Forked, Errno> {
    // SAFETY: with one thread no lock is held by somebody who does not exist in the child.
    match Errno::result(unsafe { libc::fork() })? {
        0 => Ok(Forked::Child),
        pid => Ok(Forked::Parent(pid)),
    }
}

/// fork(2) into another cgroup (v2), given as its open directory: the child is never outside of it,
/// see CLONE_INTO_CGROUP in clone(2). The caller must be the only thread.
///
/// # Errors
///
/// Those of fork; and where the kernel, a seccomp filter or the cgroup's state does not allow it.
pub(super) fn fork_into(cgroup: BorrowedFd<'_>) -> Result<Forked, Errno> {
    // SAFETY: clone_args is plain data, for which zeroes are valid.
    let mut arguments: libc::clone_args = unsafe { mem::zeroed() };
    arguments.flags = CLONE_INTO_CGROUP;
    arguments.exit_signal = libc::SIGCHLD.unsigned_abs().into();
    arguments.cgroup = cgroup.as_raw_fd().unsigned_abs().into();
    let size = size_of::<libc::clone_args>();
    // SAFETY: the arguments are valid for `size` bytes, and share no memory with the child, which
    // goes on with a copy of this stack. With one thread no lock is held by somebody who does not
    // exist there. What a C library does at its own fork, it does for threads and its allocator,
    // neither of which the child uses.
    let pid = Errno::result(unsafe { libc::syscall(libc::SYS_clone3, &raw mut arguments, size) })?;
    match Pid::try_from(pid) {
        Ok(0) => Ok(Forked::Child),
        Ok(pid) => Ok(Forked::Parent(pid)),
        Err(_) => Err(Errno::EOVERFLOW),
    }
}

/// From linux/sched.h; the libc crate has it for some C libraries only, and too narrow.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Ends this process without running anything.
pub(crate) fn exit_now(code: i32) -> ! {
    // SAFETY: _exit does not return and touches no memory.
    unsafe { libc::_exit(code) }
}

/// What wait had to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Waited {
    /// There is nothing new of any child; or the kernel did not say, as where a filter refuses the
    /// call, so that nothing is proven.
    Nothing,
    /// There is no such child (ECHILD).
    NoChild,
    /// A child ended, and is reaped now.
    Ended(Pid, Status),
    /// A child was stopped by this signal.
    Stopped(Pid, i32),
}

/// Asks for news of one child, or of any with -1, without waiting.
pub(super) fn wait(pid: Pid) -> Waited {
    let mut status = 0;
    loop {
        // SAFETY: the place for the status is ours.
        let found = unsafe { libc::waitpid(pid, &raw mut status, libc::WNOHANG | libc::WUNTRACED) };
        match found {
            0 => return Waited::Nothing,
            -1 => match Errno::last() {
                Errno::EINTR => {}
                Errno::ECHILD => return Waited::NoChild,
                _ => return Waited::Nothing,
            },
            pid if libc::WIFSTOPPED(status) => return Waited::Stopped(pid, libc::WSTOPSIG(status)),
            pid if libc::WIFSIGNALED(status) => {
                return Waited::Ended(pid, Status::Signalled(libc::WTERMSIG(status)));
            }
            pid => {
                // WEXITSTATUS is eight bits wide.
                let code = u8::try_from(libc::WEXITSTATUS(status)).unwrap_or(u8::MAX);
                return Waited::Ended(pid, Status::Exited(code));
            }
        }
    }
}

/// Whether this is a child of ours that nobody has reaped, so that its id and, if it leads one, its
/// group's id can't mean anybody else.
pub(super) fn is_unreaped_child(pid: Pid) -> bool {
    is_unreaped(libc::P_PID, pid)
}

/// Whether a child of ours that nobody has reaped is in this group, so that the group's id can't
/// mean another one.
pub(super) fn has_unreaped_child_in(group: Pid) -> bool {
    is_unreaped(libc::P_PGID, group)
}

/// Whether we have no child at all, whoever has made it and however it is to tell of its end.
/// Takes no status away from anybody.
pub(super) fn has_no_child() -> bool {
    let any = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    waitid(Id::All, any | WaitPidFlag::__WALL) == Err(Errno::ECHILD)
}

fn is_unreaped(kind: libc::idtype_t, id: Pid) -> bool {
    let Ok(id) = libc::id_t::try_from(id) else {
        return false;
    };
    // SAFETY: siginfo_t is plain data, for which zeroes are valid.
    let mut info: libc::siginfo_t = unsafe { mem::zeroed() };
    let options = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
    // SAFETY: the place for the answer is ours.
    unsafe { libc::waitid(kind, id, &raw mut info, options) == 0 }
}

/// pidfd_open(2): a handle on exactly this process.
pub(super) fn pidfd_open(pid: Pid) -> Result<OwnedFd, Errno> {
    // SAFETY: touches no memory of ours.
    let descriptor = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })?;
    let descriptor = RawFd::try_from(descriptor).map_err(|_| Errno::EBADF)?;
    // SAFETY: the kernel has just given us this descriptor, nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// pidfd_send_signal(2).
pub(super) fn pidfd_send_signal(process: BorrowedFd<'_>, signal: i32) -> Result<(), Errno> {
    let no_info = ptr::null::<libc::siginfo_t>();
    // SAFETY: a null siginfo asks the kernel to fill it in as kill does.
    Errno::result(unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            process.as_raw_fd(),
            signal,
            no_info,
            0,
        )
    })
    .map(drop)
}

/// getdents64(2): the next entries of a directory, as many as fit; 0 at its end.
pub(super) fn read_directory(directory: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<usize, Errno> {
    // SAFETY: the buffer is valid for its length.
    let length = Errno::result(unsafe {
        libc::syscall(
            libc::SYS_getdents64,
            directory.as_raw_fd(),
            buffer.as_mut_ptr(),
            buffer.len(),
        )
    })?;
    usize::try_from(length).map_err(|_| Errno::EIO)
}

/// The types and names in what [`read_directory`] read: each entry is an inode and an offset of
/// eight bytes, its own length in two, a type, and a name that ends with a zero byte.
pub(super) fn entries(mut entries: &[u8]) -> impl Iterator<Item = (u8, &CStr)> {
    std::iter::from_fn(move || {
        let length = entries.get(16..)?.first_chunk::<2>()?;
        let length = usize::from(u16::from_ne_bytes(*length));
        let kind = *entries.get(18)?;
        let name = CStr::from_bytes_until_nul(entries.get(19..length)?).ok()?;
        entries = entries.get(length..)?;
        Some((kind, name))
    })
}

/// Puts `/dev/null` in the place of standard input and output of this process, so that whoever
/// reads or writes their other end sees only what the command does.
pub(super) fn let_go_of_stdio() {
    // SAFETY: the path is a terminated string; dup2 closes only 0 and 1, which Rust's standard
    // library treats as always open and which stay so.
    unsafe {
        let null = libc::open(c"/dev/null".as_ptr(), libc::O_RDWR | libc::O_CLOEXEC);
        if null >= 0 {
            libc::dup2(null, 0);
            libc::dup2(null, 1);
            libc::close(null);
        }
    }
}
