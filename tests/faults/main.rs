//! The whole program under faults: real instances and commands, a real API server and etcd, a proxy
//! in between that breaks what they say, and witnesses who must be alone.
//!
//! `cargo test --test faults` plays every scenario once; `arguments.rs` knows what else there is.
//! Everything is chosen by seeds, which every line of progress shows; what the machine makes of it
//! is not, so that a failure may take several rounds to come back.

#![expect(
    clippy::print_stdout,
    reason = "progress and the summary are for people"
)]

mod arena;
mod arguments;
mod history;
mod network;
mod node;
mod proxy;
mod random;
mod round;
mod runner;
mod scenario;
mod statistics;
mod tally;
mod witness;

#[path = "../support/mod.rs"]
#[expect(dead_code, reason = "the tests use all of it, and this only some")]
mod support;

#[path = "../it"]
mod it {
    //! What the integration tests have to offer.
    #![expect(
        dead_code,
        unused_imports,
        reason = "the tests use all of it, and this only some"
    )]

    pub(crate) mod control_plane;
    pub(crate) mod wait;
    pub(crate) mod world;
}

use std::{
    env,
    path::Path,
    process::ExitCode,
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use it::{control_plane, wait, world};
use support::{cgroup, janitor, surroundings};

use arguments::{Arguments, Task};
use random::Random;
use runner::{Job, Runner};
use scenario::{SCENARIOS, Scenario, Trouble, Whom};

fn main() -> ExitCode {
    let words = env::args().skip(1).collect::<Vec<_>>();
    if let [word, role, directory] = &words[..]
        && word == witness::WORD
    {
        return witness::run(role, Path::new(directory));
    }
    // SAFETY: nobody has started a thread.
    let _janitor = unsafe {
        surroundings::settle();
        janitor::Janitor::hire()
    };
    match Arguments::parse() {
        Ok(arguments) => run(arguments),
        Err(problem) => {
            println!("{problem}\n{}", arguments::USAGE);
            ExitCode::from(64)
        }
    }
}

fn run(arguments: Arguments) -> ExitCode {
    let started = Instant::now();
    let seed = arguments.seed.unwrap_or_else(fresh_seed);
    let expected = expected(&arguments.task);
    let (passed, mut failures) = match arguments.task {
        Task::Help => {
            println!("{}", arguments::USAGE);
            return ExitCode::SUCCESS;
        }
        Task::List(scenarios) => {
            for scenario in scenarios {
                println!("{}: scenario", scenario.name);
            }
            return ExitCode::SUCCESS;
        }
        Task::Each(scenarios) if scenarios.is_empty() => (0, Vec::new()),
        Task::Each(scenarios) => {
            let jobs = numbered(seed, scenarios);
            play(arguments.lanes, |runner| runner.play(&blocks(jobs, 1)))
        }
        Task::Repeat(scenario, rounds) => {
            let jobs = numbered(seed, vec![scenario; rounds]);
            play(arguments.lanes, |runner| runner.play(&blocks(jobs, 5)))
        }
        Task::Random(rounds) => {
            let mut random = Random::new(seed);
            let choices = SCENARIOS.iter().filter(|scenario| !scenario.is_of_teeth());
            let choices = choices.collect::<Vec<_>>();
            let scenarios = (0..rounds).map(|_| random.pick(&choices)).collect();
            let jobs = numbered(seed, scenarios);
            play(arguments.lanes, |runner| runner.play(&blocks(jobs, 5)))
        }
        Task::Release => play(arguments.lanes, |runner| release(runner, seed)),
    };
    let missing = expected.iter().filter(|fault| tally::counts()[*fault] == 0);
    failures.extend(missing.map(|fault| format!("never took effect: {fault}")));
    let verdict = match failures.len() {
        0 => "ok",
        _ => "FAILED",
    };
    for failure in &failures {
        println!("failed: {failure}");
    }
    println!(
        "\ntest result: {verdict}. {passed} rounds passed; {} failed; finished in {:.2}s\n",
        failures.len(),
        started.elapsed().as_secs_f64()
    );
    match failures.len() {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

/// The faults that must have taken effect in the end: a round passes only with its own, but may be
/// left out by mistake.
fn expected(task: &Task) -> Vec<&'static str> {
    let scenarios = match task {
        Task::Each(scenarios) => scenarios.clone(),
        Task::Repeat(scenario, rounds) => vec![*scenario; (*rounds).min(1)],
        Task::Release => SCENARIOS.iter().collect(),
        // By chance.
        Task::Help | Task::List(_) | Task::Random(_) => Vec::new(),
    };
    scenarios
        .iter()
        .filter_map(|scenario| scenario.fault())
        .collect()
}

/// Plays with everything set up, and prints the summary.
fn play(lanes: usize, rounds: impl FnOnce(&Runner)) -> (usize, Vec<String>) {
    SCENARIOS
        .iter()
        .filter_map(Scenario::fault)
        .for_each(tally::list);
    Runner::with(lanes, |runner| {
        rounds(runner);
        println!("\n{}", runner.summary());
        runner.outcome()
    })
}

/// 200 rounds with SIGKILL, 200 with SIGSTOP, every other scenario several times, and as many
/// hand-overs as it takes to see 1,000 take-overs.
fn release(runner: &Runner, seed: u64) {
    let mut scenarios = Vec::new();
    for scenario in SCENARIOS {
        let rounds = match scenario.trouble {
            Trouble::Process(_, Whom::Front | Whom::Guard) => 60,
            Trouble::Process(_, Whom::Command | Whom::FrontAndGuard) => 40,
            Trouble::Link(_) => 10,
            Trouble::Network(_) => 15,
            Trouble::Servers(_) | Trouble::OneServer => 6,
            Trouble::Mix(_) => 40,
            Trouble::HandOver => 300,
            Trouble::Apart(_) | Trouble::Forgery => 1,
        };
        scenarios.extend(vec![scenario; rounds]);
    }
    let mut seed = seed;
    let mut jobs = numbered(seed, scenarios);
    while !jobs.is_empty() {
        seed = seed.wrapping_add(u64::try_from(jobs.len()).unwrap_or(0));
        runner.play(&blocks(jobs, 10));
        let missing = 1000_usize.saturating_sub(statistics::with(|all| all.take_overs()));
        let is_good = runner.outcome().1.is_empty();
        let hand_over = SCENARIOS
            .iter()
            .find(|scenario| matches!(scenario.trouble, Trouble::HandOver));
        jobs = match hand_over {
            Some(hand_over) if is_good => numbered(seed, vec![hand_over; missing]),
            _ => Vec::new(),
        };
    }
}

/// Every round's seed alone plays it again.
fn numbered(seed: u64, scenarios: Vec<&'static Scenario>) -> Vec<Job> {
    let seeds = (0..).map(|number| seed.wrapping_add(number));
    let jobs = scenarios.into_iter().zip(seeds);
    jobs.map(|(scenario, seed)| Job { scenario, seed })
        .collect()
}

/// Rounds that follow each other in one arena: up to so many, of one kind.
fn blocks(jobs: Vec<Job>, length: usize) -> Vec<Vec<Job>> {
    let mut blocks: Vec<Vec<Job>> = Vec::new();
    for job in jobs {
        let fitting = blocks.iter_mut().find(|block| {
            block.len() < length
                && block[0].scenario.setting() == job.scenario.setting()
                && block[0].scenario.servers() == job.scenario.servers()
                && !job.scenario.is_of_teeth()
        });
        match fitting {
            Some(block) => block.push(job),
            None => blocks.push(vec![job]),
        }
    }
    blocks
}

fn fresh_seed() -> u64 {
    let time = SystemTime::now().duration_since(UNIX_EPOCH);
    time.map_or(0, |time| time.as_secs() % 1_000_000)
}
