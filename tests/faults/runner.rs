//! Plays rounds side by side, and keeps count of them.

use std::{
    collections::VecDeque,
    fs,
    net::Ipv4Addr,
    panic::{self, AssertUnwindSafe},
    path::{Path, PathBuf},
    sync::{
        Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use crate::{
    arena::{Arena, Ground},
    control_plane::ControlPlane,
    janitor,
    network::Network,
    random::Random,
    round,
    scenario::{SECOND, Scenario, Servers},
    statistics,
};

/// A round to be played.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Job {
    pub(crate) scenario: &'static Scenario,
    pub(crate) seed: u64,
}

/// All that rounds need, set up.
pub(crate) struct Runner {
    network: Network,
    shared: OnceLock<ControlPlane>,
    /// For outages, which only one round at a time can have.
    own: OnceLock<ControlPlane>,
    /// The same, for those of one API server of two.
    two: OnceLock<ControlPlane>,
    directory: PathBuf,
    lanes: usize,
    begun: Instant,
    passed: AtomicUsize,
    failures: Mutex<Vec<String>>,
    lateness: AtomicU64,
    is_over: AtomicBool,
}

impl Runner {
    /// Sets everything up, lets `play` use it, and takes it down again.
    pub(crate) fn with<T>(lanes: usize, play: impl FnOnce(&Self) -> T) -> T {
        let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join(janitor::name());
        fs::create_dir_all(&directory).expect("cargo's directory for tests can be written");
        let runner = Self {
            network: Network::new(&janitor::name()),
            shared: OnceLock::new(),
            own: OnceLock::new(),
            two: OnceLock::new(),
            directory,
            lanes,
            begun: Instant::now(),
            passed: AtomicUsize::new(0),
            failures: Mutex::default(),
            lateness: AtomicU64::new(0),
            is_over: AtomicBool::new(false),
        };
        let outcome = thread::scope(|scope| {
            scope.spawn(|| runner.measure_lateness());
            // Also when it panics, so that the other thread ends.
            let outcome = panic::catch_unwind(AssertUnwindSafe(|| play(&runner)));
            runner.is_over.store(true, Ordering::Relaxed);
            outcome
        });
        // Only if no evidence is in it.
        let _ = fs::remove_dir(&runner.directory);
        outcome.unwrap_or_else(|panic| panic::resume_unwind(panic))
    }

    /// Plays all of these; the rounds of a block follow each other in one arena.
    pub(crate) fn play(&self, blocks: &[Vec<Job>]) {
        let with = |servers: Servers| {
            let blocks = blocks.iter();
            let fitting = blocks.filter(|block| block[0].scenario.servers() == servers);
            Mutex::new(fitting.cloned().collect::<VecDeque<_>>())
        };
        let [own, two, shared] = [Servers::Own, Servers::Two, Servers::Shared].map(with);
        thread::scope(|scope| {
            scope.spawn(|| self.work(&own, &self.own));
            scope.spawn(|| self.work(&two, &self.two));
            for _ in 0..self.lanes {
                scope.spawn(|| self.work(&shared, &self.shared));
            }
        });
    }

    /// How many rounds passed, and what failed.
    pub(crate) fn outcome(&self) -> (usize, Vec<String>) {
        let passed = self.passed.load(Ordering::Relaxed);
        (passed, lock(&self.failures).clone())
    }

    pub(crate) fn summary(&self) -> String {
        let (passed, failures) = self.outcome();
        let lateness = self.lateness();
        format!(
            "rounds: {} ({passed} passed), {} at once\nthis program's latest wake-up: {lateness:.1?} \
             late\n{}",
            passed + failures.len(),
            self.lanes,
            statistics::with(|statistics| statistics.summary())
        )
    }

    fn work(&self, blocks: &Mutex<VecDeque<Vec<Job>>>, servers: &OnceLock<ControlPlane>) {
        // Not locked while a block is played.
        let next = || lock(blocks).pop_front();
        while let Some(block) = next() {
            let address = self.network.address();
            let control_plane = servers.get_or_init(|| match block[0].scenario.servers() {
                Servers::Shared | Servers::Own => ControlPlane::start_reachable_at(address),
                Servers::Two => ControlPlane::start_on(&[Ipv4Addr::LOCALHOST, SECOND]),
            });
            let ground = Ground {
                network: &self.network,
                control_plane,
                directory: &self.directory,
            };
            let mut arena = None;
            for job in block {
                let arena_of_job = arena.take();
                arena = self.round(&ground, job, arena_of_job);
            }
        }
    }

    /// Plays one round, and returns the arena if it can be used for another.
    fn round(&self, ground: &Ground, job: Job, arena: Option<Arena>) -> Option<Arena> {
        let Job { scenario, seed } = job;
        let begun = Instant::now();
        let mut arena =
            arena.unwrap_or_else(|| Arena::new(ground, scenario.setting(), Random::new(seed)));
        let played = panic::catch_unwind(AssertUnwindSafe(|| {
            round::play(&mut arena, scenario, seed, ground.control_plane)
        }));
        let verdict = played.unwrap_or_else(|_| Err("the harness panicked, see above".to_owned()));
        let at = self.begun.elapsed().as_secs_f64();
        let took = begun.elapsed().as_secs_f64();
        let name = scenario.name;
        match verdict {
            Ok(()) => {
                self.passed.fetch_add(1, Ordering::Relaxed);
                println!("{at:7.1} s  {name} --seed {seed} ... ok ({took:.1} s)");
                (!scenario.is_of_teeth()).then_some(arena)
            }
            Err(problem) => {
                let evidence = arena.keep(&problem);
                let late = self.lateness();
                println!(
                    "{at:7.1} s  {name} --seed {seed} ... FAILED\n{evidence}\
                     this program's latest wake-up so far: {late:.1?} late"
                );
                let again = format!("--scenario {name} --seed {seed}: {problem}");
                lock(&self.failures).push(again);
                None
            }
        }
    }

    fn lateness(&self) -> Duration {
        Duration::from_micros(self.lateness.load(Ordering::Relaxed))
    }

    /// Measures how late this program wakes up: where that nears the reserve, the machine is too busy
    /// to say anything about lease-exec.
    fn measure_lateness(&self) {
        const NAP: Duration = Duration::from_millis(10);
        while !self.is_over.load(Ordering::Relaxed) {
            let before = Instant::now();
            thread::sleep(NAP);
            let late = before.elapsed().saturating_sub(NAP);
            let late = u64::try_from(late.as_micros()).unwrap_or(u64::MAX);
            self.lateness.fetch_max(late, Ordering::Relaxed);
        }
    }
}

/// A panic in another thread must not become one here.
fn lock<T>(value: &Mutex<T>) -> MutexGuard<'_, T> {
    value.lock().unwrap_or_else(PoisonError::into_inner)
}
