//! Whether two commands ever run at once, under the same faults: lease-exec beside a wrapper on
//! client-go's leader election.
//!
//! `cargo bench --bench promise` prints one table, within some four minutes; `-- ad 3` takes the rows a
//! and d, and the worst of three rounds. The wrapper is `tests/client-go/main.go`. A holder and a
//! standby contend; a fault meets the holder; and the commands themselves, which stamp a file every
//! 5 ms, say how long two ran. All columns run at the same time, each on a lease of its own, and each
//! holder has a way of its own to the API server. The lease lasts 6 s, client-go's RenewDeadline is
//! 4 s and its RetryPeriod 1 s; lease-exec is told of the 6 s only.

mod gate;
#[path = "../launch.rs"]
mod launch;
mod scenario;
#[path = "../../support/mod.rs"]
#[expect(dead_code, reason = "the tests use more of it")]
mod support;
mod witness;

#[expect(dead_code, unused_imports, reason = "the tests use more of it")]
#[path = "../../it"]
mod it {
    pub(crate) mod control_plane;
    pub(crate) mod processes;
    pub(crate) mod wait;
    pub(crate) mod world;
}

use std::{
    env,
    io::{Write, stdout},
    path::Path,
    process::ExitCode,
    thread,
};

// Where they look for each other.
use it::{control_plane, processes, wait, world};
use support::{cgroup, janitor, surroundings};

use control_plane::ControlPlane;
use launch::launch;
use scenario::{FAULTS, Fault, Outcome, PAIRS, Pair};

fn main() -> ExitCode {
    let arguments = env::args().skip(1).collect::<Vec<_>>();
    match &arguments[..] {
        [word, manner, file] if word == witness::WORD => {
            witness::run(manner, Path::new(file));
            ExitCode::SUCCESS
        }
        _ => launch(Choice::of(&arguments), USAGE, compare),
    }
}

/// Prints a row for each fault that is chosen, with the worst of its rounds.
fn compare(choice: &Choice) {
    assert!(
        ControlPlane::client_go_wrapper().is_some(),
        "this needs client-go-wrapper (tests/client-go) in the directory of kube-apiserver"
    );
    let control_plane = ControlPlane::start();
    let names = PAIRS.map(Pair::name).join(" | ");
    say(&format!("| | what happens to the holder | {names} |"));
    say(&format!("| --- | --- |{}", " --- |".repeat(PAIRS.len())));
    for fault in FAULTS {
        if !choice.has(fault.letter()) {
            continue;
        }
        let rounds = (0..choice.rounds).map(|_| round(fault, &control_plane));
        let worst = rounds.reduce(|worst, round| {
            let mut both = worst.into_iter().zip(round);
            PAIRS.map(|_| {
                let (one, other) = both.next().expect("there is one for each pair");
                one.or_worse(other)
            })
        });
        let cells = worst
            .expect("there is a round")
            .map(|cell| cell.to_string());
        let (letter, what) = (fault.letter(), fault.describe());
        say(&format!("| {letter} | {what} | {} |", cells.join(" | ")));
    }
}

/// Lets it happen to all pairs at the same time.
fn round(fault: Fault, control_plane: &ControlPlane) -> [Outcome; PAIRS.len()] {
    thread::scope(|scope| {
        let runs = PAIRS.map(|pair| scope.spawn(move || fault.befall(pair, control_plane)));
        runs.map(|run| run.join().expect("a run that fails has said why"))
    })
}

/// What the command line asks for.
struct Choice {
    /// Of faults; none is all.
    letters: String,
    rounds: u32,
}

impl Choice {
    /// Reads the command line; `None` asks for help. cargo adds `--bench`.
    fn of(arguments: &[String]) -> Result<Option<Self>, String> {
        let mut choice = Self {
            letters: String::new(),
            rounds: 1,
        };
        let is_known = |letter| FAULTS.map(Fault::letter).contains(&letter);
        for argument in arguments {
            match (&**argument, argument.parse()) {
                ("--bench", _) => {}
                ("-h" | "--help", _) => return Ok(None),
                (option, _) if option.starts_with('-') => {
                    return Err(format!("there is no option {option:?}"));
                }
                (_, Ok(rounds @ 1..)) => choice.rounds = rounds,
                (letters, Err(_)) if !letters.is_empty() && letters.chars().all(is_known) => {
                    choice.letters.push_str(letters);
                }
                (word, _) => {
                    return Err(format!(
                        "{word:?} is neither letters of rows nor a whole number from 1 up"
                    ));
                }
            }
        }
        Ok(Some(choice))
    }

    fn has(&self, letter: char) -> bool {
        self.letters.is_empty() || self.letters.contains(letter)
    }
}

const USAGE: &str = "usage: cargo bench --bench promise [-- [LETTERS] [ROUNDS]], such as -- ad 3; LETTERS \
                     are of what stands in the first column";

fn say(line: &str) {
    writeln!(stdout(), "{line}").expect("stdout can be written");
}
