//! How long a tree outlives what should end it: from the event to its last process's death, as it is
//! seen from outside, beside the end of the lease.
//!
//! `cargo bench --bench kill` prints one table, within some minutes; `-- --rounds N` takes so many
//! rounds of each row, and further words the rows whose event has one of them in its name.
//!
//! The tree is six processes, of which two have left the command's process group; see `TREE`. It
//! needs root and a control plane, as the tests do.

use std::{
    env,
    io::{Write, stdout},
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;

mod launch;
#[path = "../support/mod.rs"]
#[expect(dead_code, reason = "the tests use more of it")]
mod support;

#[expect(dead_code, unused_imports, reason = "the tests use more of it")]
#[path = "../it"]
mod it {
    pub(crate) mod control_plane;
    pub(crate) mod processes;
    pub(crate) mod wait;
    pub(crate) mod world;
}

// Where they look for each other.
use it::{control_plane, processes, wait, world};
use support::{cgroup, janitor, surroundings};

use control_plane::ControlPlane;
use launch::launch;
use processes::{Grown, Level, signal};
use world::{World, is_alive, now};

/// What happens to a run.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Event {
    FrontKilled,
    GuardKilled,
    BothKilled,
    FrontStopped,
    GuardStopped,
    BothStopped,
    ServerHung,
}

/// One round.
struct Round {
    /// From the event to the last death.
    outlived: Duration,
    /// From the event to the end of the lease, when others may start.
    deadline: Duration,
}

fn main() -> ExitCode {
    launch(Choice::of(env::args().skip(1)), USAGE, measure)
}

/// What the command line asks for.
struct Choice {
    rounds: usize,
    /// Parts of the names of events; none is all.
    events: Vec<String>,
}

impl Choice {
    /// Reads the command line; `None` asks for help. cargo adds `--bench`.
    fn of(mut arguments: impl Iterator<Item = String>) -> Result<Option<Self>, String> {
        let mut choice = Self {
            rounds: ROUNDS,
            events: Vec::new(),
        };
        while let Some(argument) = arguments.next() {
            match &*argument {
                "--bench" => {}
                "-h" | "--help" => return Ok(None),
                "--rounds" => {
                    let number = arguments.next().and_then(|text| text.parse().ok());
                    let rounds = number.filter(|&rounds| rounds > 0);
                    choice.rounds = rounds.ok_or("--rounds takes a whole number from 1 up")?;
                }
                option if option.starts_with('-') => {
                    return Err(format!("there is no option {option:?}"));
                }
                part => {
                    let has_part = |name: &str| !part.is_empty() && name.contains(part);
                    let mut rows = ROWS.iter();
                    if !rows.any(|(event, level, _)| has_part(&event.describe(*level))) {
                        return Err(format!("no row has {part:?} in its first column"));
                    }
                    choice.events.push(argument);
                }
            }
        }
        Ok(Some(choice))
    }

    fn has(&self, event: &str) -> bool {
        self.events.is_empty() || self.events.iter().any(|part| event.contains(&**part))
    }
}

const USAGE: &str = "usage: cargo bench --bench kill [-- [--rounds N] [EVENT...]], such as -- --rounds 3 \
                     'SIGKILL to both'; an EVENT is a part of what stands in the first column";

/// What is measured, with the seconds that the lease lasts.
const ROWS: [(Event, Level, u64); 10] = [
    (Event::FrontKilled, Level::Cgroup, 60),
    (Event::FrontKilled, Level::Tree, 60),
    (Event::GuardKilled, Level::Cgroup, 60),
    (Event::GuardKilled, Level::Tree, 60),
    (Event::BothKilled, Level::Cgroup, 60),
    (Event::BothKilled, Level::Tree, 60),
    (Event::FrontStopped, Level::Cgroup, 3),
    (Event::GuardStopped, Level::Cgroup, 3),
    (Event::BothStopped, Level::Cgroup, 3),
    (Event::ServerHung, Level::Cgroup, 3),
];

/// Prints a row for each event that is chosen.
fn measure(choice: &Choice) {
    say("| event | lease | who | min | median | max | the lease's end, at the earliest |");
    say("| --- | --- | --- | --- | --- | --- | --- |");
    for (event, level, seconds) in ROWS {
        let name = event.describe(level);
        if !choice.has(&name) {
            continue;
        }
        let mut rounds = (0..choice.rounds)
            .map(|_| event.round(level, seconds))
            .collect::<Vec<_>>();
        rounds.sort_by_key(|round| round.outlived);
        let earliest = rounds.iter().map(|round| round.deadline).min();
        let at = |place: usize| format!("{:.1} ms", millis(rounds[place].outlived));
        say(&format!(
            "| {} | {seconds} s | {} | {} | {} | {} | {:.1} ms |",
            name,
            event.who(),
            at(0),
            at(choice.rounds / 2),
            at(choice.rounds - 1),
            millis(earliest.unwrap_or_default()),
        ));
    }
}

/// How many, unless it is said.
const ROUNDS: usize = 21;

fn say(line: &str) {
    writeln!(stdout(), "{line}").expect("stdout can be written");
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

impl Event {
    fn describe(self, level: Level) -> String {
        let what = match self {
            Self::FrontKilled => "SIGKILL to front",
            Self::GuardKilled => "SIGKILL to the guard",
            Self::BothKilled => "SIGKILL to both",
            Self::FrontStopped => "SIGSTOP to front",
            Self::GuardStopped => "SIGSTOP to the guard, API server hung",
            Self::BothStopped => "SIGSTOP to both",
            Self::ServerHung => "API server hung",
        };
        match level {
            Level::Cgroup => what.to_owned(),
            Level::Tree => format!("{what}, no cgroup"),
        }
    }

    /// With both out of action nobody is left to find those who have left the group.
    fn who(self) -> &'static str {
        match self {
            Self::BothKilled | Self::BothStopped => "the group",
            _ => "the tree",
        }
    }

    fn round(self, level: Level, seconds: u64) -> Round {
        let control_plane;
        let hangs = matches!(self, Self::ServerHung | Self::GuardStopped);
        let world = if hangs {
            control_plane = Some(ControlPlane::start());
            World::on(control_plane.as_ref().expect("just made"))
        } else {
            control_plane = None;
            World::on_files()
        };
        let grown = Grown::start(&world, level, &format!("{seconds}s"));
        let who = match self.who() {
            "the group" => grown.group.clone(),
            _ => grown.mark.alive(),
        };
        let renewed_at = world.renewed_at();
        let at = now();
        let since = Instant::now();
        match self {
            Self::FrontKilled => grown.running.signal(Signal::SIGKILL),
            Self::GuardKilled => signal(grown.guard, Signal::SIGKILL),
            Self::BothKilled => grown.signal_both(Signal::SIGKILL),
            Self::FrontStopped => grown.running.signal(Signal::SIGSTOP),
            Self::GuardStopped => signal(grown.guard, Signal::SIGSTOP),
            Self::BothStopped => grown.signal_both(Signal::SIGSTOP),
            Self::ServerHung => {}
        }
        if let Some(control_plane) = &control_plane {
            control_plane.stop_api_server();
        }
        while who.iter().any(|pid| is_alive(*pid)) {
            assert!(since.elapsed() < wait::LIMIT, "somebody lives on");
            thread::sleep(Duration::from_micros(100));
        }
        let outlived = since.elapsed();
        if let Some(control_plane) = &control_plane {
            control_plane.continue_api_server();
        }
        // A guard's death ends in a release, after which the record says nothing of this term.
        let renewed_at = match self {
            Self::GuardKilled => renewed_at,
            _ => world.renewed_at(),
        };
        let end = renewed_at + Duration::from_secs(seconds).as_nanos();
        let deadline = u64::try_from(end.saturating_sub(at)).unwrap_or(u64::MAX);
        Round {
            outlived,
            deadline: Duration::from_nanos(deadline),
        }
    }
}
