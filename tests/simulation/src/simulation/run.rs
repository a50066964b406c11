//! Running many seeds, on as many threads as are wanted, until enough was simulated or one fails.

use std::{
    io::{self, Write as _},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use super::{
    profile::Profile,
    summary::Summary,
    world::{History, Outcome, simulate},
};

/// What to run.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// What the worlds are like.
    pub profile: Profile,
    /// The first seed; those that follow are used as well.
    pub seed: u64,
    /// How many elections are enough.
    pub elections: u64,
    /// How many threads to use. With one the same plan always gives the same counts.
    pub threads: usize,
}

/// A seed that breaks an invariant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The seed.
    pub seed: u64,
    /// What is broken, and when.
    pub violation: String,
}

impl Found {
    /// The command that plays this seed again, with all of its history.
    pub fn replay_command(&self, profile: Profile) -> String {
        let seed = self.seed;
        format!("cargo run -p lease-exec-simulation -- --profile {profile} --seed {seed}")
    }
}

/// Runs seeds until there were enough elections or one seed fails, and tells `progress` after each
/// seed what was done so far. The summary counts the failing seed as far as it went.
pub fn run(plan: Plan, progress: impl Fn(&Summary) + Sync) -> (Summary, Option<Found>) {
    let next = AtomicU64::new(plan.seed);
    let over = AtomicBool::new(false);
    let sum = Mutex::new((Summary::default(), None::<Found>));
    thread::scope(|scope| {
        for _ in 0..plan.threads.max(1) {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    let outcome = simulate(seed, plan.profile, 0, History::Forgotten);
                    let mut sum = lock(&sum);
                    sum.0.add(&outcome.summary);
                    if let Some(violation) = outcome.violation
                        && sum.1.as_ref().is_none_or(|found| seed < found.seed)
                    {
                        sum.1 = Some(Found { seed, violation });
                    }
                    if sum.1.is_some() || sum.0.elections >= plan.elections {
                        over.store(true, Ordering::Relaxed);
                    }
                    progress(&sum.0);
                }
            });
        }
    });
    sum.into_inner().unwrap_or_else(PoisonError::into_inner)
}

/// Writes to stderr every ten seconds how far a run is: to be handed to [`run`].
pub fn progress(profile: Profile) -> impl Fn(&Summary) + Sync {
    const INTERVAL: Duration = Duration::from_secs(10);
    let start = Instant::now();
    let shown = Mutex::new(start);
    move |summary| {
        let mut shown = lock(&shown);
        if shown.elapsed() >= INTERVAL {
            *shown = Instant::now();
            let seconds = start.elapsed().as_secs();
            // Not by eprintln, which tests catch. Whoever does not read loses nothing but this.
            let _ = writeln!(
                io::stderr(),
                "{seconds:>6} s: {profile}: {} elections, {:.0} hours, {} faults",
                summary.elections,
                summary.hours(),
                summary.faults(),
            );
        }
    }
}

/// Simulates one seed with all of its history.
pub fn replay(seed: u64, profile: Profile) -> Outcome {
    simulate(seed, profile, 0, History::Kept)
}

/// One row of the table that shows how much room the timing leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// How much longer than the reserve the guard takes, in microseconds.
    pub excess: i64,
    /// Elections that were simulated.
    pub elections: u64,
    /// Worlds in which something was violated; nothing more is simulated in such a one.
    pub violations: u64,
}

/// Lets every kill take as long as the reserve allows and so many microseconds longer, in the worlds
/// that leave the least room.
pub fn tightness(excess: i64, elections: u64) -> Row {
    let mut row = Row {
        excess,
        elections: 0,
        violations: 0,
    };
    let mut seed = 1;
    while row.elections < elections {
        let outcome = simulate(seed, Profile::Tight, excess, History::Forgotten);
        row.elections += outcome.summary.elections;
        row.violations += u64::from(outcome.violation.is_some());
        seed += 1;
    }
    row
}

/// The counts are whole also where a thread has panicked.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
