//! The command of the comparison: this program again, saying every few milliseconds that it lives.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::{
        signal::{SigSet, Signal, kill},
        signalfd::{SfdFlags, SignalFd},
    },
    unistd::Pid,
};

use crate::world::is_alive;

pub(crate) use crate::support::now;

/// The first argument that makes this program the command; then come the manner and the file.
pub(crate) const WORD: &str = "witness";

/// How the command takes SIGTERM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Manner {
    /// It ends at once.
    Obedient,
    /// It ends when it is through, [`DRAIN`] later.
    Slow,
    /// It doesn't care, and has a descendant in a session of its own that doesn't either.
    Stubborn,
}

/// How long a slow command takes to end; more than the lease's duration.
pub(crate) const DRAIN: Duration = Duration::from_secs(9);

impl Manner {
    /// All of them, with the word for each.
    const WORDS: [(Self, &str); 3] = [
        (Self::Obedient, "obedient"),
        (Self::Slow, "slow"),
        (Self::Stubborn, "stubborn"),
    ];

    fn word(self) -> &'static str {
        let word = Self::WORDS.iter().find(|(manner, _)| *manner == self);
        word.expect("every manner has a word").1
    }
}

/// Is the command.
pub(crate) fn run(manner: &str, file: &Path) {
    let manner = Manner::WORDS.iter().find(|(_, word)| *word == manner);
    // What a descendant is called with is no manner: it has no descendants.
    let manner = manner.map(|(manner, _)| *manner);
    let mut term = SigSet::empty();
    term.add(Signal::SIGTERM);
    if manner != Some(Manner::Obedient) {
        term.thread_block().expect("a signal can be blocked");
    }
    let came = SignalFd::with_flags(&term, SfdFlags::SFD_NONBLOCK).expect("signals can be read");
    let mut beats = File::options()
        .append(true)
        .open(file)
        .expect("the benchmark has made the file");
    if manner == Some(Manner::Stubborn) {
        let own = std::env::current_exe().expect("this program has a path");
        // It forks, so that nobody here is its parent.
        let descendant = Command::new("setsid")
            .arg("--fork")
            .arg(own)
            .args([WORD, "descendant"])
            .arg(file)
            .stdin(Stdio::null())
            .status();
        descendant.expect("run setsid");
    }
    let started = Instant::now();
    let mut end = started + LONGEST_LIFE;
    let mut is_told = false;
    // Nothing of the benchmark is left behind when its files are gone.
    while Instant::now() < end && file.exists() {
        let beat = format!("{} {}\n", std::process::id(), now().as_nanos());
        beats
            .write_all(beat.as_bytes())
            .expect("a beat can be written");
        if manner == Some(Manner::Slow) && !is_told && matches!(came.read_signal(), Ok(Some(_))) {
            is_told = true;
            end = Instant::now() + DRAIN;
        }
        thread::sleep(PACE);
    }
}

/// One side's commands, as they are seen by what they leave behind. Dropping it kills them.
pub(crate) struct Commands {
    file: PathBuf,
}

/// When the first beat of a side was, and the last.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Life {
    pub(crate) first: Duration,
    pub(crate) last: Duration,
}

impl Commands {
    pub(crate) fn new(file: PathBuf) -> Self {
        File::create(&file).expect("a file can be made");
        Self { file }
    }

    /// The command line.
    pub(crate) fn argv(&self, manner: Manner) -> Vec<String> {
        let own = std::env::current_exe().expect("this program has a path");
        let text = |path: &Path| path.to_str().expect("a path in UTF-8").to_owned();
        vec![
            text(&own),
            WORD.into(),
            manner.word().into(),
            text(&self.file),
        ]
    }

    /// From the first beat of any process to the last of any, if there was one.
    pub(crate) fn life(&self) -> Option<Life> {
        self.lives().into_values().reduce(|all, life| Life {
            first: all.first.min(life.first),
            last: all.last.max(life.last),
        })
    }

    /// Whether any process lives.
    pub(crate) fn are_alive(&self) -> bool {
        self.pids().any(is_alive)
    }

    /// How many processes live.
    pub(crate) fn count(&self) -> usize {
        self.pids().filter(|pid| is_alive(*pid)).count()
    }

    fn pids(&self) -> impl Iterator<Item = i32> {
        self.lives().into_keys()
    }

    fn lives(&self) -> BTreeMap<i32, Life> {
        let text = fs::read_to_string(&self.file).expect("the beats can be read");
        let mut lives = BTreeMap::new();
        // The last line may be half written.
        for line in text.split_inclusive('\n') {
            let Some((pid, at)) = line.trim_end().split_once(' ') else {
                continue;
            };
            let (Ok(pid), Ok(nanos), true) = (pid.parse(), at.parse(), line.ends_with('\n')) else {
                continue;
            };
            let at = Duration::from_nanos(nanos);
            let life = lives.entry(pid).or_insert(Life {
                first: at,
                last: at,
            });
            life.last = at;
        }
        lives
    }
}

impl Drop for Commands {
    fn drop(&mut self) {
        // Only those that were seen a moment ago: a pid that has ended may be somebody else's.
        for pid in self.pids().filter(|pid| is_alive(*pid)) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}

const PACE: Duration = Duration::from_millis(5);

const LONGEST_LIFE: Duration = Duration::from_secs(180);
