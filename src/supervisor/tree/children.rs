//! The root's own children, as the kernel lists them in `/proc/PID/task/TID/children`.
//!
//! `hidepid` (proc(5)) hides whole processes of others, and those that may not be dumped, from
//! whoever is not privileged, but not from this list: what is on it and can't be read is hidden.
//! The file is there where the kernel was built with CONFIG_PROC_CHILDREN. It leaves none out as
//! long as none is reaped while it is read, see proc_tid_children(5).

use std::{
    fmt::Write as _,
    os::fd::{AsFd, OwnedFd},
};

use nix::{
    errno::Errno,
    fcntl::{OFlag, openat},
    sys::stat::Mode,
    unistd::read,
};

use super::{
    super::sys::{self, Pid},
    Path, Process, Tree, pids,
};

impl Tree {
    /// Shows the pid of every child of the root, zombies among them.
    ///
    /// # Errors
    ///
    /// If the list can't be had or was cut short.
    pub(in super::super) fn children(&self, mut see: impl FnMut(Pid)) -> Result<(), Errno> {
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
        let directory = flags | OFlag::O_DIRECTORY;
        let threads = openat(&self.proc, c"self/task", directory, Mode::empty())?;
        let mut buffer = [0; 2048];
        loop {
            let length = sys::read_directory(threads.as_fd(), &mut buffer)?;
            if length == 0 {
                return Ok(());
            }
            for thread in pids(buffer.get(..length).unwrap_or_default()) {
                let mut path = Path::default();
                let _ = write!(path, "{thread}/children");
                match openat(&threads, path.as_c_str(), flags, Mode::empty()) {
                    Ok(list) => read_pids(&list, &mut see)?,
                    // A thread that has ended has left its children to another. The main thread,
                    // to which orphans come, does not end.
                    Err(Errno::ENOENT | Errno::ESRCH) if thread != self.root => {}
                    Err(errno) => return Err(errno),
                }
            }
        }
    }

    /// Shows the children of the root that `/proc` does not, but for those who are spared.
    ///
    /// # Errors
    ///
    /// As those of [`Tree::children`].
    pub(in super::super) fn hidden(
        &self,
        spared: &[Process],
        mut see: impl FnMut(Pid),
    ) -> Result<(), Errno> {
        self.children(|pid| {
            let hidden = Process::hidden(pid);
            let is_spared = spared.iter().any(|other| other.is(&hidden));
            if !is_spared && self.process(pid).is_err() {
                see(pid);
            }
        })
    }

    /// Whether the root has no children but those who are spared. They are told by their start as
    /// well, where it can be read.
    ///
    /// # Errors
    ///
    /// As those of [`Tree::children`].
    pub(in super::super) fn has_only(&self, spared: &[Process]) -> Result<bool, Errno> {
        let mut others = 0;
        self.children(|pid| {
            let found = self.process(pid).unwrap_or(Process::hidden(pid));
            if !spared.iter().any(|other| other.is(&found)) {
                others += 1;
            }
        })?;
        Ok(others == 0)
    }

    /// Sends a signal to a child of the calling process, if that is what the pid means.
    pub(super) fn signal_child(pid: Pid, signal: i32) {
        let handle = sys::pidfd_open(pid);
        // Nobody else can have its number before it is reaped.
        if !sys::is_unreaped_child(pid) {
            return;
        }
        Self::send(handle, pid, signal);
    }
}

/// Reads numbers with a blank behind each.
fn read_pids(list: &OwnedFd, see: &mut impl FnMut(Pid)) -> Result<(), Errno> {
    let mut buffer = [0; 1024];
    let mut pid: Pid = 0;
    loop {
        let length = match read(list, &mut buffer) {
            Err(Errno::EINTR) => continue,
            Ok(0) => return Ok(()),
            length => length?,
        };
        for byte in buffer.get(..length).unwrap_or_default() {
            if byte.is_ascii_digit() {
                pid = pid.wrapping_mul(10).wrapping_add(Pid::from(byte - b'0'));
            } else {
                see(pid);
                pid = 0;
            }
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_also_across_the_ends_of_the_buffer() {
        let (out, into) = nix::unistd::pipe().unwrap();
        let numbers: Vec<Pid> = (0..1000).map(|number| 4_190_000 + number).collect();
        let text: String = numbers.iter().map(|number| format!("{number} ")).collect();
        nix::unistd::write(&into, text.as_bytes()).unwrap();
        drop(into);
        let mut read = Vec::new();
        read_pids(&out, &mut |pid| read.push(pid)).unwrap();
        assert_eq!(read, numbers);
    }

    #[test]
    fn a_child_is_listed_whichever_thread_has_made_it() {
        let tree = Tree::of_this_process().unwrap();
        let mut sleep = std::process::Command::new("sleep");
        let mut child = sleep.arg("60").spawn().unwrap();
        let pid = Pid::try_from(child.id()).unwrap();
        let mut listed = false;
        let answer = tree.children(|other| listed |= other == pid);
        let mut hidden = false;
        let asked = tree.hidden(&[], |other| hidden |= other == pid);
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!((answer, asked), (Ok(()), Ok(())));
        assert!(listed);
        assert!(!hidden);
    }
}
