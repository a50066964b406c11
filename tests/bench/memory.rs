//! Processes as /proc shows them: a tree, what each takes, and how often each runs.

use std::{
    fs::{self, File},
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    time::{clock_getcpuclockid, clock_gettime},
    unistd::Pid,
};

// === What one process takes ===

/// What one process takes.
#[derive(Clone, Copy, Debug)]
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
    let kib = |path: &str, name| {
        let value = field(path, name);
        let value = value.strip_suffix(" kB").and_then(|kib| kib.parse().ok());
        value.unwrap_or_else(|| panic!("{name} in {path} is not in kB"))
    };
    Memory {
        resident_kib: kib(&format!("/proc/{pid}/status"), "VmRSS:"),
        proportional_kib: kib(&smaps, "Pss:"),
        private_dirty_kib: kib(&smaps, "Private_Dirty:"),
    }
}

fn field(path: &str, name: &str) -> String {
    let text =
        fs::read_to_string(path).unwrap_or_else(|err| panic!("failed to read {path}: {err}"));
    let value = text.lines().find_map(|line| line.strip_prefix(name));
    let value = value.unwrap_or_else(|| panic!("{path} has no {name}"));
    value.trim().to_owned()
}

// === How often it runs ===

/// What a process has done so far, with all threads that it has now.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Activity {
    at: Instant,
    /// voluntary_ctxt_switches, see proc_pid_status(5): how often it has gone to sleep, and so has
    /// woken up.
    pub(crate) wake_ups: u64,
    /// On a processor, see clock_getcpuclockid(3).
    cpu: Duration,
}

/// Reads what a process has done.
pub(crate) fn activity(pid: i32) -> Activity {
    let threads = fs::read_dir(format!("/proc/{pid}/task"));
    let threads = threads.unwrap_or_else(|err| panic!("failed to list threads of {pid}: {err}"));
    let wake_ups = threads.flatten().map(|thread| {
        let status = thread.path().join("status");
        let switches = field(&status.display().to_string(), "voluntary_ctxt_switches:");
        let switches = switches.parse::<u64>();
        switches.expect("the kernel counts in whole numbers")
    });
    let wake_ups = wake_ups.sum();
    let cpu = clock_getcpuclockid(Pid::from_raw(pid)).and_then(clock_gettime);
    let cpu = cpu.unwrap_or_else(|err| panic!("failed to read the processor time of {pid}: {err}"));
    Activity {
        at: Instant::now(),
        wake_ups,
        cpu: cpu.into(),
    }
}

/// What a process does in an hour, if it goes on as it did for a while.
pub(crate) struct Hour {
    pub(crate) wake_ups: f64,
    pub(crate) cpu: Duration,
}

impl Activity {
    /// What an hour would be, going by what has happened since an earlier look.
    pub(crate) fn per_hour_since(&self, before: &Self) -> Hour {
        let hours = (self.at - before.at).as_secs_f64() / 3600.0;
        Hour {
            wake_ups: self.wake_ups.abs_diff(before.wake_ups) as f64 / hours,
            cpu: self.cpu.saturating_sub(before.cpu).div_f64(hours),
        }
    }
}

// === Whose they are ===

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

/// A program as the first process of a PID namespace, as in a container. Dropping it kills it, and
/// the namespace with it.
pub(crate) struct First(Child);

impl First {
    /// Starts what `command` would start; what that says goes to a file.
    pub(crate) fn start(command: &Command, stderr: &Path) -> Self {
        let mut first = Command::new("unshare");
        // Whoever is not root may do so as the root of a user namespace.
        if !nix::unistd::geteuid().is_root() {
            first.arg("--map-root-user");
        }
        first
            .args(["--pid", "--fork", "--kill-child", "--mount-proc", "--"])
            .arg(command.get_program())
            .args(command.get_args())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(stderr).expect("an output file can be made"));
        let variables = command.get_envs();
        first.envs(variables.filter_map(|(name, value)| Some((name, value?))));
        let child = first.spawn();
        Self(child.unwrap_or_else(|err| panic!("failed to start {first:?}: {err}")))
    }

    /// Its processes as they are seen from outside, parents first.
    pub(crate) fn processes(&self) -> Vec<i32> {
        let unshare = i32::try_from(self.0.id()).expect("a pid is an i32");
        tree(unshare).split_off(1)
    }
}

impl Drop for First {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
