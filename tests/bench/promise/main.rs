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
mod scenario;
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
    thread,
};

// Where they look for each other.
use it::{control_plane, processes, wait, world};

use control_plane::ControlPlane;
use scenario::{FAULTS, Fault, Outcome, PAIRS, Pair};

fn main() {
    let arguments = env::args().skip(1).collect::<Vec<_>>();
    match &arguments[..] {
        [word, manner, file] if word == witness::WORD => witness::run(manner, Path::new(file)),
        _ => compare(&Choice::of(&arguments)),
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
        if !choice.letters.contains(fault.letter()) {
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

/// What the command line asks for; cargo adds `--bench`.
struct Choice {
    letters: String,
    rounds: u32,
}

impl Choice {
    fn of(arguments: &[String]) -> Self {
        let mut choice = Self {
            letters: FAULTS.map(Fault::letter).iter().collect(),
            rounds: 1,
        };
        for argument in arguments.iter().filter(|argument| *argument != "--bench") {
            match argument.parse() {
                Ok(rounds @ 1..) => choice.rounds = rounds,
                Ok(0) => panic!("{USAGE}"),
                Err(_)
                    if argument
                        .chars()
                        .all(|letter| choice.letters.contains(letter)) =>
                {
                    choice.letters.clone_from(argument);
                }
                Err(_) => panic!("{USAGE}"),
            }
        }
        choice
    }
}

const USAGE: &str = "usage: cargo bench --bench promise [-- [LETTERS] [ROUNDS]], such as -- ad 3";

fn say(line: &str) {
    writeln!(stdout(), "{line}").expect("stdout can be written");
}
