//! The command line, which other tests' runs share: `cargo test` passes it to all.

use std::env;

use crate::scenario::{SCENARIOS, Scenario};

/// What the command line asks for.
#[derive(Clone, Debug)]
pub(crate) struct Arguments {
    pub(crate) task: Task,
    pub(crate) seed: Option<u64>,
    /// How many rounds at once.
    pub(crate) lanes: usize,
}

#[derive(Clone, Debug)]
pub(crate) enum Task {
    Help,
    List(Vec<&'static Scenario>),
    /// Each of these once.
    Each(Vec<&'static Scenario>),
    /// This one so many times.
    Repeat(&'static Scenario, usize),
    /// So many random ones.
    Random(usize),
    /// What must pass before a release.
    Release,
}

/// More would make wake-ups late on two cores, and lease-exec relies on those.
const LANES: usize = 8;

/// Shown if it is asked for, and for arguments that can't be right.
pub(crate) const USAGE: &str = "usage: cargo test --test faults -- [--list] [--scenario NAME] \
                                [--seed N] [--rounds N] [--release] [--lanes N] [FILTER...]\n\
                                \n\
                                Without options every scenario is played once, or those whose names hold a FILTER.\n\
                                \n\
                                --list           name the scenarios\n\
                                --scenario NAME  play this one alone\n\
                                --seed N         begin with this seed, which every line of progress shows\n\
                                --rounds N       play so many rounds: of the scenario, or of random ones\n\
                                --release        play what must pass before a release\n\
                                --lanes N        play so many rounds at once [default: 8]";

/// What the standard test runner knows beside, and `cargo test` may pass to all: it has no effect.
const OF_THE_STANDARD_RUNNER: [&str; 15] = [
    "--bench",
    "--ensure-time",
    "--exclude-should-panic",
    "--fail-fast",
    "--force-run-in-process",
    "--include-ignored",
    "--no-capture",
    "--nocapture",
    "--quiet",
    "--report-time",
    "--show-output",
    "--shuffle",
    "--test",
    "--verbose",
    "-q",
];

impl Arguments {
    /// Reads the command line. What only the standard test runner knows has no effect.
    pub(crate) fn parse() -> Result<Self, String> {
        Self::from(env::args().skip(1))
    }

    fn from(arguments: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut arguments = arguments.flat_map(|argument| match argument.split_once('=') {
            Some((name, value)) if name.starts_with("--") => {
                vec![name.to_owned(), value.to_owned()]
            }
            _ => vec![argument],
        });
        let mut seed = None;
        let mut lanes = None;
        let mut rounds = None;
        let mut scenario = None;
        let mut is_help = false;
        let (mut is_list, mut is_release, mut is_nothing, mut is_exact) = Default::default();
        let (mut filters, mut skipped) = (Vec::new(), Vec::new());
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().ok_or(format!("{argument} needs a value"));
            match &*argument {
                "--seed" => seed = Some(number(&value()?)?),
                "--lanes" => lanes = Some(number(&value()?)?),
                "--rounds" => rounds = Some(number(&value()?)?),
                "--scenario" => scenario = Some(value()?),
                "--release" => is_release = true,
                "--list" => is_list = true,
                "-h" | "--help" => is_help = true,
                "--exact" => is_exact = true,
                // None is ignored.
                "--ignored" => is_nothing = true,
                "--skip" => skipped.push(value()?),
                "--test-threads" | "--format" | "--color" | "--logfile" | "-Z"
                | "--shuffle-seed" => drop(value()?),
                option if OF_THE_STANDARD_RUNNER.contains(&option) => {}
                option if option.starts_with('-') => {
                    return Err(format!("there is no option {option}"));
                }
                _ => filters.push(argument),
            }
        }
        let matches = |words: &[String], scenario: &Scenario| {
            words.iter().any(|word| match is_exact {
                true => scenario.name == word,
                false => scenario.name.contains(word.as_str()),
            })
        };
        let chosen = SCENARIOS.iter().filter(|scenario| {
            !is_nothing
                && (filters.is_empty() || matches(&filters, scenario))
                && !matches(&skipped, scenario)
        });
        let chosen = chosen.collect::<Vec<_>>();
        let scenario = match scenario {
            Some(name) => {
                let scenario = crate::scenario::named(&name);
                Some(scenario.ok_or(format!("there is no scenario {name:?}; see --list"))?)
            }
            None => None,
        };
        let task = match (scenario, rounds) {
            _ if is_help => Task::Help,
            _ if is_list => Task::List(chosen),
            _ if is_release => Task::Release,
            (Some(scenario), rounds) => Task::Repeat(scenario, rounds.unwrap_or(1)),
            (None, Some(rounds)) => Task::Random(rounds),
            (None, None) => Task::Each(chosen),
        };
        Ok(Self {
            lanes: lanes.unwrap_or(LANES),
            task,
            seed,
        })
    }
}

fn number<T: std::str::FromStr>(text: &str) -> Result<T, String> {
    text.parse().map_err(|_| format!("{text:?} is no number"))
}
