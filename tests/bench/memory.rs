//! Processes as /proc shows them: a tree, and what each takes.

use std::fs;

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// What one process takes.
pub(crate) struct Memory {
    /// VmRSS, see proc_pid_status(5): all pages, however many processes share them.
    pub(crate) resident_kib: u64,
    /// Pss, see proc_pid_smaps(5): a page that several processes share counts in parts.
    pub(crate) proportional_kib: u64,
    /// Private_Dirty, see proc_pid_smaps(5): what nobody shares and no file could give back.
    pub(crate) private_dirty_kib: u64,
}

/// Reads what a process takes.
pub(crate) fn of(pid: i32) -> Memory {
    let smaps = format!("/proc/{pid}/smaps_rollup");
    Memory {
        resident_kib: field(&format!("/proc/{pid}/status"), "VmRSS:"),
        proportional_kib: field(&smaps, "Pss:"),
        private_dirty_kib: field(&smaps, "Private_Dirty:"),
    }
}

fn field(path: &str, name: &str) -> u64 {
    let text =
        fs::read_to_string(path).unwrap_or_else(|err| panic!("failed to read {path}: {err}"));
    let value = text.lines().find_map(|line| {
        let value = line.strip_prefix(name)?.trim().strip_suffix(" kB")?;
        value.parse().ok()
    });
    value.unwrap_or_else(|| panic!("{path} has no {name}"))
}

/// A process and its descendants, parents first.
pub(crate) fn tree(pid: i32) -> Vec<i32> {
    let mut tree = vec![pid];
    let mut visited = 0;
    while let Some(parent) = tree.get(visited).copied() {
        visited += 1;
        // Any thread may be the one that a child belongs to.
        let threads = fs::read_dir(format!("/proc/{parent}/task"));
        for thread in threads.into_iter().flatten().flatten() {
            let children = fs::read_to_string(thread.path().join("children"));
            let children = children.unwrap_or_default();
            tree.extend(children.split_whitespace().flat_map(str::parse::<i32>));
        }
    }
    tree
}

/// Kills a process and its descendants with SIGKILL, as a machine does that loses its power.
pub(crate) fn kill_tree(pid: i32) {
    for pid in tree(pid) {
        // A guard whose front is dead may have been faster.
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
}
