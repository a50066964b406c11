//! The tree of the command's processes, as `/proc` shows it.
//!
//! A walk through `/proc` is not atomic against fork, so it is only a means to find whom to kill;
//! what proves that nobody is left is `waitpid` saying ECHILD in the process that all orphans go
//! to. Nothing here allocates.

use std::{
    ffi::CStr,
    fmt::{self, Write as _},
    os::fd::{AsFd, AsRawFd, OwnedFd, RawFd},
};

use nix::{
    errno::Errno,
    fcntl::{AtFlags, OFlag, openat},
    sys::stat::{Mode, fstatat},
    unistd::{Whence, lseek, read},
};

use super::sys::{self, Pid};

mod children;

/// A process that SIGKILL has not ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Survivor {
    /// Its process id.
    pub pid: i32,
    /// Its state as in `/proc/PID/stat`: `D` is uninterruptible sleep.
    pub state: u8,
    /// Its effective user.
    pub uid: u32,
    /// The first bytes of its name, padded with zeroes.
    pub comm: [u8; 16],
    /// The kernel's function in which it waits, from `/proc/PID/wchan`, padded with zeroes; nothing
    /// but zeroes if it does not wait or may not be looked at.
    pub waits_in: [u8; 32],
}

impl Default for Survivor {
    /// Nobody that is known.
    fn default() -> Self {
        Self {
            pid: 0,
            state: b'?',
            uid: 0,
            comm: [0; 16],
            waits_in: [0; 32],
        }
    }
}

impl fmt::Display for Survivor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "pid {} ({}), state {}, uid {}",
            self.pid,
            unpadded(&self.comm).escape_ascii(),
            char::from(self.state),
            self.uid
        )?;
        match unpadded(&self.waits_in) {
            [] => Ok(()),
            function => write!(f, ", wchan {}", function.escape_ascii()),
        }
    }
}

/// What stands before the first zero byte.
fn unpadded(text: &[u8]) -> &[u8] {
    let length = text.iter().position(|byte| *byte == 0);
    text.get(..length.unwrap_or(text.len())).unwrap_or_default()
}

/// One process, as its `stat` has it; `start_time` tells two processes of one pid apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Process {
    pub(super) pid: Pid,
    pub(super) state: u8,
    pub(super) parent: Pid,
    pub(super) group: Pid,
    pub(super) start_time: u64,
    pub(super) comm: [u8; 16],
}

impl Process {
    /// One that `/proc` hides, known by its number alone.
    pub(super) fn hidden(pid: Pid) -> Self {
        Self {
            pid,
            state: b'?',
            parent: 0,
            group: 0,
            start_time: 0,
            comm: [0; 16],
        }
    }

    /// Whether this is the process that another look has seen.
    fn is(&self, other: &Self) -> bool {
        let is_known = self.start_time != 0 && other.start_time != 0;
        self.pid == other.pid && !(is_known && self.start_time != other.start_time)
    }

    /// Reads the line `pid (comm) state ppid pgrp ...`, see proc_pid_stat(5). The name may hold
    /// anything, also blanks and parentheses.
    pub(super) fn parse(line: &[u8]) -> Option<Self> {
        let open = line.iter().position(|byte| *byte == b'(')?;
        let close = line.iter().rposition(|byte| *byte == b')')?;
        let name = line.get(open + 1..close)?;
        let mut comm = [0; 16];
        for (to, from) in comm.iter_mut().zip(name) {
            *to = *from;
        }
        // After the name come the fields from number 3 on.
        let mut fields = line.get(close + 2..)?.split(|byte| *byte == b' ');
        Some(Self {
            pid: number(line.get(..open)?.trim_ascii_end())?,
            comm,
            state: *fields.next()?.first()?,
            parent: number(fields.next()?)?,
            group: number(fields.next()?)?,
            start_time: number(fields.nth(16)?)?,
        })
    }
}

fn number<T: std::str::FromStr>(digits: &[u8]) -> Option<T> {
    str::from_utf8(digits).ok()?.parse().ok()
}

/// What a walk found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    /// Descendants, zombies among them: a zombie's other threads may still run.
    pub(super) descendants: usize,
    /// Processes of which can't be told whose they are: they changed under our eyes, are hidden, or
    /// something is lacking to read of them.
    pub(super) unsure: usize,
}

/// The descendants of one process.
pub(super) struct Tree {
    proc: OwnedFd,
    root: Pid,
}

impl Tree {
    /// Opens `/proc` for the descendants of the calling process.
    ///
    /// # Errors
    ///
    /// If there is no `/proc`, or it shows another PID namespace's processes: killing by its
    /// numbers would hit strangers.
    pub(super) fn of_this_process() -> Result<Self, Errno> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let proc = nix::fcntl::open(c"/proc", flags, Mode::empty())?;
        let root = nix::unistd::getpid().as_raw();
        let tree = Self { proc, root };
        match tree.read(c"self/stat") {
            Ok(process) if process.pid == root => Ok(tree),
            Ok(_) => Err(Errno::ENOENT),
            Err(errno) => Err(errno),
        }
    }

    pub(super) fn descriptor(&self) -> RawFd {
        self.proc.as_raw_fd()
    }

    /// Whether this process descends from the root.
    pub(super) fn is_descendant(&self, pid: Pid) -> bool {
        self.process(pid)
            .is_ok_and(|process| self.descends(&process, &[], &mut Known::default()) == Some(true))
    }

    /// Shows every descendant that is not one of `spared`, or theirs.
    pub(super) fn visit(&self, spared: &[Process], mut see: impl FnMut(&Process)) -> Found {
        let mut found = Found::default();
        let mut known = Known::default();
        // The walk starts over with each call; /proc can seek.
        let _ = lseek(self.proc.as_fd(), 0, Whence::SeekSet);
        let mut buffer = [0; 8192];
        loop {
            let length = match sys::read_directory(self.proc.as_fd(), &mut buffer) {
                Ok(0) => return found,
                Ok(length) => length,
                Err(_) => {
                    found.unsure += 1;
                    return found;
                }
            };
            for pid in pids(buffer.get(..length).unwrap_or_default()) {
                let process = match self.process(pid) {
                    Ok(process) => process,
                    // It has ended, or is hidden.
                    Err(Errno::ENOENT | Errno::ESRCH) => continue,
                    Err(_) => {
                        found.unsure += 1;
                        continue;
                    }
                };
                match self.descends(&process, spared, &mut known) {
                    Some(true) => {
                        found.descendants += 1;
                        see(&process);
                    }
                    Some(false) => {}
                    None => found.unsure += 1,
                }
            }
        }
    }

    /// Sends a signal to every descendant that is not one of `spared`, or theirs; of those that
    /// `/proc` hides to the root's children alone. When they die, theirs become the root's.
    ///
    /// With `group`, the group is signalled whole as soon as one of the root's own children is seen
    /// in it, because that is atomic against fork. The root is the only one who could reap that
    /// child, so the group's number can't have passed to somebody else.
    pub(super) fn signal(&self, signal: i32, group: Option<Pid>, spared: &[Process]) -> Found {
        let mut group = group;
        let mut found = self.visit(spared, |process| {
            if process.parent == self.root && group == Some(process.group) {
                let _ = sys::kill(-process.group, signal);
                group = None;
            }
            self.signal_one(process, signal, spared);
        });
        // Without the list the walk must do: it is a means, not the proof.
        let _ = self.hidden(spared, |pid| {
            found.descendants += 1;
            Self::signal_child(pid, signal);
        });
        found
    }

    /// Sends a signal to every descendant that `is_meant`.
    pub(super) fn signal_those(&self, signal: i32, is_meant: impl Fn(&Process) -> bool) {
        self.visit(&[], |process| {
            if is_meant(process) {
                self.signal_one(process, signal, &[]);
            }
        });
    }

    /// The handle is opened first and the ancestry checked again after it: if the pid has been
    /// reused in between, either the check is about the process that the handle means, or the
    /// handle means a dead one.
    fn signal_one(&self, process: &Process, signal: i32, spared: &[Process]) {
        let handle = sys::pidfd_open(process.pid);
        let Ok(again) = self.process(process.pid) else {
            return;
        };
        if again.start_time != process.start_time
            || self.descends(&again, spared, &mut Known::default()) != Some(true)
        {
            return;
        }
        Self::send(handle, process.pid, signal);
    }

    /// Sends a signal to the process that the handle means, which was just seen to be the one that
    /// has this pid. No permission shows in the end as a survivor.
    fn send(handle: Result<OwnedFd, Errno>, pid: Pid, signal: i32) {
        let sent = handle.and_then(|handle| sys::pidfd_send_signal(handle.as_fd(), signal));
        match sent {
            // A dead process is what we want.
            Ok(()) | Err(Errno::ESRCH) => {}
            // No descriptor to be had, a kernel before 5.3, or a filter that refuses either call, by
            // whatever error: the check must do.
            Err(_) => {
                let _ = sys::kill(pid, signal);
            }
        }
    }

    /// Whether a process descends from the root; `None` if one of its ancestors went away while we
    /// looked.
    fn descends(&self, process: &Process, spared: &[Process], known: &mut Known) -> Option<bool> {
        let mut at = *process;
        // The kernel has no more pids than this, so the loop ends also if they are reused under us.
        for _ in 0..4_194_304 {
            let is_spared = spared.iter().any(|other| other.is(&at));
            let verdict = match at.parent {
                _ if is_spared || at.pid == self.root => Some(false),
                parent if parent == self.root => Some(true),
                0 | 1 => Some(false),
                parent => known.recall(parent),
            };
            if let Some(verdict) = verdict {
                known.remember(process.pid, verdict);
                return Some(verdict);
            }
            at = self.process(at.parent).ok()?;
        }
        None
    }

    /// Fills `survivors` with the first descendants and returns how many they are.
    pub(super) fn survivors(&self, spared: &[Process], survivors: &mut [Survivor]) -> usize {
        let mut places = survivors.iter_mut();
        let mut count = 0;
        self.visit(spared, |process| {
            if let Some(place) = places.next() {
                *place = Survivor {
                    pid: process.pid,
                    state: process.state,
                    uid: self.owner(process.pid),
                    comm: process.comm,
                    waits_in: self.wait_channel(process.pid),
                };
                count += 1;
            }
        });
        let _ = self.hidden(spared, |pid| {
            if let Some(place) = places.next() {
                *place = Survivor {
                    pid,
                    uid: u32::MAX,
                    ..Survivor::default()
                };
                count += 1;
            }
        });
        count
    }

    fn owner(&self, pid: Pid) -> u32 {
        let mut path = Path::default();
        let _ = write!(path, "{pid}");
        // `/proc/PID` belongs to the effective user.
        fstatat(&self.proc, path.as_c_str(), AtFlags::empty()).map_or(u32::MAX, |stat| stat.st_uid)
    }

    /// See `/proc/PID/wchan` in proc(5): `0` where a process does not wait, or may not be looked at.
    fn wait_channel(&self, pid: Pid) -> [u8; 32] {
        let mut function = [0; 32];
        let mut path = Path::default();
        let _ = write!(path, "{pid}/wchan");
        let length = self.read_file(path.as_c_str(), &mut function);
        if length.is_err() || function.starts_with(b"0") {
            return [0; 32];
        }
        function
    }

    /// Reads of one process; ENOENT and ESRCH mean that there is none, or that it is hidden.
    pub(super) fn process(&self, pid: Pid) -> Result<Process, Errno> {
        let mut path = Path::default();
        let _ = write!(path, "{pid}/stat");
        self.read(path.as_c_str())
    }

    fn read(&self, path: &CStr) -> Result<Process, Errno> {
        let mut buffer = [0; 1024];
        let length = self.read_file(path, &mut buffer)?;
        Process::parse(buffer.get(..length).unwrap_or_default()).ok_or(Errno::EBADMSG)
    }

    /// Reads the beginning of a file below `/proc`, and returns how much of it there is.
    fn read_file(&self, path: &CStr, buffer: &mut [u8]) -> Result<usize, Errno> {
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
        let file = openat(&self.proc, path, flags, Mode::empty())?;
        read(&file, buffer)
    }
}

/// Verdicts within one walk. A stale one costs a needless look or another walk, because every
/// process is judged afresh before it is signalled.
struct Known([(Pid, bool); 128]);

impl Default for Known {
    fn default() -> Self {
        Self([(0, false); 128])
    }
}

impl Known {
    fn recall(&self, pid: Pid) -> Option<bool> {
        let (known, verdict) = self.0.get(Self::place(pid))?;
        (*known == pid).then_some(*verdict)
    }

    fn remember(&mut self, pid: Pid, verdict: bool) {
        if let Some(place) = self.0.get_mut(Self::place(pid)) {
            *place = (pid, verdict);
        }
    }

    fn place(pid: Pid) -> usize {
        usize::try_from(pid).unwrap_or(0) % 128
    }
}

/// A short path in a place of its own, with a zero byte at its end.
#[derive(Default)]
struct Path {
    bytes: [u8; 32],
    used: usize,
}

impl Path {
    fn as_c_str(&self) -> &CStr {
        CStr::from_bytes_until_nul(&self.bytes).unwrap_or_default()
    }
}

impl fmt::Write for Path {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let last = self.bytes.len() - 1;
        for byte in text.bytes() {
            let place = self.bytes.get_mut(..last).ok_or(fmt::Error)?;
            *place.get_mut(self.used).ok_or(fmt::Error)? = byte;
            self.used += 1;
        }
        Ok(())
    }
}

/// The numeric names among directory entries.
fn pids(entries: &[u8]) -> impl Iterator<Item = Pid> {
    sys::entries(entries).filter_map(|(_, name)| number(name.to_bytes()))
}

#[cfg(test)]
mod fuzz;

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    const REST: &[u8] = b" 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 12345 23 24";

    fn line(head: &[u8]) -> Vec<u8> {
        [head, REST].concat()
    }

    #[test]
    fn stat_is_read_behind_the_last_parenthesis() {
        let process = Process::parse(&line(b"42 (a) R 1 (b) S 7")).unwrap();
        assert_eq!(process.pid, 42);
        assert_eq!(process.state, b'S');
        assert_eq!(process.parent, 7);
        assert_eq!(process.group, 5);
        assert_eq!(&process.comm, b"a) R 1 (b\0\0\0\0\0\0\0");
        assert_eq!(process.start_time, 12345);
    }

    #[test]
    fn a_stat_that_is_cut_off_is_refused() {
        let whole = line(b"42 (a) S 7");
        assert!(Process::parse(&whole).is_some());
        let start_time = whole.windows(5).position(|five| five == b"12345").unwrap();
        for length in 0..=start_time {
            assert_eq!(Process::parse(&whole[..length]), None, "{length} bytes");
        }
    }

    #[test]
    fn directory_entries_that_are_no_numbers_are_skipped() {
        let mut entries = Vec::new();
        for name in ["self", "1", "4194304", "12a", ".."] {
            let length = (19 + name.len() + 1).next_multiple_of(8);
            let mut entry = vec![0; length];
            entry[16..18].copy_from_slice(&u16::try_from(length).unwrap().to_ne_bytes());
            entry[19..19 + name.len()].copy_from_slice(name.as_bytes());
            entries.extend(entry);
        }
        assert_eq!(pids(&entries).collect::<Vec<_>>(), [1, 4_194_304]);
    }

    #[test]
    fn a_child_is_a_descendant_unless_it_is_spared() {
        let tree = Tree::of_this_process().unwrap();
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .unwrap();
        let pid = Pid::try_from(child.id()).unwrap();
        let sees = |spared: &[Process]| {
            let mut seen = None;
            tree.visit(spared, |process| {
                if process.pid == pid {
                    seen = Some(*process);
                }
            });
            seen
        };
        let seen = sees(&[]);
        let without = seen.map(|process| sees(&[process]));
        let of_another_time = seen.map(|process| {
            sees(&[Process {
                start_time: process.start_time + 1,
                ..process
            }])
        });
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(seen.is_some());
        assert_eq!(without, Some(None));
        assert!(of_another_time.flatten().is_some());
    }

    #[test]
    fn a_survivor_is_named_with_all_that_is_known_of_it() {
        let survivor = Survivor {
            pid: 9,
            state: b'D',
            uid: 33,
            comm: *b"nfs\x1b[2J\0\0\0\0\0\0\0\0\0",
            waits_in: *b"rpc_wait_bit_killable\0\0\0\0\0\0\0\0\0\0\0",
        };
        let text = survivor.to_string();
        assert_eq!(
            text,
            "pid 9 (nfs\\x1b[2J), state D, uid 33, wchan rpc_wait_bit_killable"
        );
        let unknown = Survivor {
            waits_in: [0; 32],
            ..survivor
        };
        assert!(unknown.to_string().ends_with(", uid 33"), "{unknown}");
    }
}
