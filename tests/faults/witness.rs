//! The command of all instances: this program again, in several processes, all of which must be alone
//! with their tree.
//!
//! They write to one file that everybody appends to, so that its order is the order of events, and
//! share one lock, which is free only when none of them is left.
//!
//! A line is `WHAT TOKEN PID ROLE NODE TIME COUNT`; TIME is nanoseconds on CLOCK_BOOTTIME, and COUNT
//! what the counter was raised to, or `-`.

use std::{
    env,
    fs::{self, File},
    io::Write,
    os::fd::{AsFd, BorrowedFd},
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode},
    time::Duration,
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        signal::{SigSet, Signal},
        signalfd::{SfdFlags, SignalFd},
    },
};

pub(crate) use crate::support::now;

/// The first argument that makes this program a witness; a role and the directory follow.
pub(crate) const WORD: &str = "witness";

/// The environment variable with the node's name.
pub(crate) const NODE: &str = "FAULTS_NODE";

/// The environment variable with a [`Shape`].
pub(crate) const SHAPE: &str = "FAULTS_SHAPE";

/// The processes that a witness consists of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// A root, a child, a child in a session of its own, and a daemon.
    Tree,
    /// The same, of which all but the root ignore SIGTERM.
    Stubborn,
    /// A root and a child in its process group: all that the kernel ends by itself when front and
    /// guard are both gone.
    Group,
    /// A root that takes no lock, so that only the order of the lines can tell.
    Lockless,
}

impl Shape {
    const ALL: [Self; 4] = [Self::Tree, Self::Stubborn, Self::Group, Self::Lockless];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Tree => "tree",
            Self::Stubborn => "stubborn",
            Self::Group => "group",
            Self::Lockless => "lockless",
        }
    }
}

/// How long a process is silent between two lines.
const PERIOD: Duration = Duration::from_millis(50);

/// Is one process of a witness.
pub(crate) fn run(role: &str, directory: &Path) -> ExitCode {
    let witness = Witness::new(role, directory);
    match role {
        "root" => witness.root(),
        _ => witness.member(),
    }
}

struct Witness {
    role: String,
    token: String,
    node: String,
    shape: Shape,
    directory: PathBuf,
    log: File,
    signals: SignalFd,
}

impl Witness {
    fn new(role: &str, directory: &Path) -> Self {
        let mut mask = SigSet::empty();
        mask.add(Signal::SIGTERM);
        mask.thread_block().expect("a signal can be blocked");
        let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC);
        let variable = |name| env::var(name).unwrap_or_else(|err| panic!("{name}: {err}"));
        let shape = variable(SHAPE);
        let log = File::options().append(true).open(directory.join("log"));
        Self {
            role: role.to_owned(),
            token: variable("LEASE_FENCING_TOKEN"),
            node: variable(NODE),
            shape: Shape::ALL
                .into_iter()
                .find(|known| known.name() == shape)
                .expect("the shape is a name of one"),
            directory: directory.to_owned(),
            log: log.expect("the log is there"),
            signals: signals.expect("a signal can be read from a descriptor"),
        }
    }

    fn root(self) -> ExitCode {
        let lock = File::options()
            .create(true)
            .append(true)
            .open(self.directory.join("lock"))
            .expect("the lock can be opened");
        if self.shape != Shape::Lockless && lock.try_lock().is_err() {
            self.say("overlap", "-");
            return ExitCode::from(99);
        }
        self.say("start", "-");
        let members: &[(&str, &[&str])] = match self.shape {
            Shape::Lockless => &[],
            Shape::Group => &[("child", &[])],
            Shape::Tree | Shape::Stubborn => &[
                ("child", &[]),
                ("session", &["setsid"]),
                ("daemon", &["setsid", "--fork"]),
            ],
        };
        // Not waited for: ending them is lease-exec's business.
        let _members = members
            .iter()
            .map(|(role, starter)| self.start(role, starter, lock.as_fd()))
            .collect::<Vec<_>>();
        while !self.is_told_to_end() {
            self.say("tick", &self.count().to_string());
        }
        self.say("stop", "-");
        ExitCode::SUCCESS
    }

    fn member(self) -> ExitCode {
        // The root's lock, as long as it is the same open file.
        let lock = std::io::stdin().as_fd().try_clone_to_owned();
        let lock = File::from(lock.expect("standard input is the lock"));
        if lock.try_lock().is_err() {
            self.say("overlap", "-");
            return ExitCode::from(99);
        }
        loop {
            self.say("tick", "-");
            if self.is_told_to_end() && self.shape != Shape::Stubborn {
                self.say("stop", "-");
                return ExitCode::SUCCESS;
            }
        }
    }

    /// Starts another process of the tree, which gets the lock as its standard input.
    fn start(&self, role: &str, starter: &[&str], lock: BorrowedFd) -> Child {
        let own = env::current_exe().expect("a program knows its file");
        let mut words = starter.iter().map(|word| word.as_ref());
        let mut command = Command::new(words.next().unwrap_or(own.as_os_str()));
        command.args(words);
        if !starter.is_empty() {
            command.arg(&own);
        }
        let lock = lock.try_clone_to_owned();
        command
            .args([WORD, role])
            .arg(&self.directory)
            .stdin(lock.expect("a descriptor can be duplicated"))
            .spawn()
            .expect("a process can be started")
    }

    /// Raises the counter by one, without any care, and returns what it was raised to.
    fn count(&self) -> u64 {
        let path = self.directory.join("counter");
        let text = fs::read_to_string(&path).expect("the counter can be read");
        let count = text.trim().parse::<u64>().expect("it is a number") + 1;
        let file = File::options().write(true).open(&path);
        // All in one write of one length, so that a kill leaves the old number or the new one.
        let written = file.and_then(|mut file| file.write_all(format!("{count:020}").as_bytes()));
        written.expect("the counter can be written");
        count
    }

    /// Waits for a period; whether SIGTERM came meanwhile, or ever.
    fn is_told_to_end(&self) -> bool {
        let mut descriptors = [PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
        let period = PollTimeout::try_from(PERIOD).expect("a period is short");
        let is_told = poll(&mut descriptors, period).is_ok_and(|ready| ready > 0);
        if is_told && self.shape == Shape::Stubborn && self.role != "root" {
            // Taken, so that the next wait is one.
            let _ = self.signals.read_signal();
        }
        is_told
    }

    fn say(&self, what: &str, count: &str) {
        let Self {
            token, role, node, ..
        } = self;
        let pid = std::process::id();
        let time = now().as_nanos();
        let line = format!("{what} {token} {pid} {role} {node} {time} {count}\n");
        let mut log = &self.log;
        log.write_all(line.as_bytes())
            .expect("the log can be written");
    }
}
