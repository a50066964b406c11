//! The election in every history of a small world: a model check of the program's own files.
//!
//! Where the simulation tries many long histories at random, this tries all short ones. In a world
//! messages take no time unless a fault delays them, but arrive in any order; whatever is due
//! happens before time passes, but in any order; and the clock jumps from one thing that is due to
//! the next. A fault can strike at each of these moments. The bounds of each world are in
//! [`worlds`]; `MODEL_MORE=n` adds n faults and n times four seconds to each (the world with a
//! deletion gets all kinds of faults in place of one more), and takes long.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, Write as _},
    num::NonZero,
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::Duration,
};

use lease_exec_simulation::election::{Create, Requested, Timing};
use stateright::{
    Checker, HasDiscoveries, Model, Property,
    report::{ReportData, ReportDiscovery, Reporter},
};

use state::{Landmark, Rate, State};
use step::{Step, TROUBLES};
use world::{MESSAGES, Menu, Server, World};

mod state;
mod step;
mod world;

/// The slowest clock, the fastest that is allowed beside it, and a true one.
const RATES: [Rate; 3] = [Rate(999), Rate(1001), Rate(1000)];

/// States to visit in an ordinary run of the tests, at least, so that bounds that were drawn too
/// tight show.
const STATES: usize = 1_000_000;

/// The worlds in which no history may break a rule.
fn worlds() -> Vec<(&'static str, World)> {
    let more: u8 = match std::env::var("MODEL_MORE") {
        Ok(more) => more.parse().expect("MODEL_MORE is a number up to 255"),
        Err(_) => 0,
    };
    let quick = timing(Duration::from_secs(4), Duration::from_secs(2));
    let slow = timing(Duration::from_secs(7), Duration::from_secs(1));
    let [two, three] = [2, 3].map(|nodes| RATES[..nodes].to_vec());
    let mut worlds = vec![
        ("one fault", World::new(two.clone(), quick, 1, 20).ends(1)),
        (
            "a new process",
            World::new(two.clone(), quick, 1, 16).restarts(1),
        ),
        (
            "late renewals",
            World::new(two.clone(), quick, 2, 20).menu(Menu::Slowness),
        ),
        ("two faults", World::new(two, slow, 2, 18)),
        ("three nodes", World::new(three, quick, 1, 16)),
        (
            "a deletion",
            World::new(RATES[..2].to_vec(), slow, 1, 31)
                .deletions(1)
                .create(Create::Quarantine)
                // With all faults it has four million states, and takes minutes.
                .menu(if more == 0 { Menu::Slowness } else { Menu::All }),
        ),
    ];
    for (_, world) in &mut worlds {
        // Of the deletion's, the first of these is the whole menu.
        world.faults += more - u8::from(more > 0 && world.deletions > 0);
        world.horizon += Duration::from_secs(4) * u32::from(more);
    }
    worlds
}

fn timing(retry_period: Duration, request_timeout: Duration) -> Timing {
    Timing::new(Requested {
        retry_period: Some(retry_period),
        request_timeout: Some(request_timeout),
        ..Requested::default()
    })
    .expect("three attempts fit into the default renew deadline")
}

const KEEPS_THE_RULES: &str = "no rule is broken";

const LANDMARKS: [(&str, Landmark); 6] = [
    ("a lease is handed over", Landmark::HandOver),
    ("a lease that has run out is taken over", Landmark::TakeOver),
    ("a loss kills a command", Landmark::Killed),
    ("a write of unknown fate is found", Landmark::Matched),
    ("the lease is deleted", Landmark::Deleted),
    (
        "a lease that was made again is held long enough to start",
        Landmark::StartedAgain,
    ),
];

/// How many of them are about deletions, and stand last.
const OF_DELETIONS: usize = 2;

/// How often each trouble was tried, in all worlds together.
static TRIED: [AtomicU64; TROUBLES.len()] = [const { AtomicU64::new(0) }; TROUBLES.len()];

impl Model for World {
    type State = State;
    type Action = Step;

    fn init_states(&self) -> Vec<State> {
        vec![self.beginning()]
    }

    fn actions(&self, state: &State, steps: &mut Vec<Step>) {
        self.steps(state, steps);
    }

    fn next_state(&self, state: &State, step: Step) -> Option<State> {
        if let Some(trouble) = step.trouble() {
            TRIED[trouble].fetch_add(1, Ordering::Relaxed);
        }
        self.after(state, step)
    }

    fn within_boundary(&self, state: &State) -> bool {
        state.messages.len() <= MESSAGES
    }

    fn properties(&self) -> Vec<Property<Self>> {
        fn shows(state: &State, landmark: Landmark) -> bool {
            state.landmark == Some(landmark)
        }
        vec![
            Property::always(KEEPS_THE_RULES, |_, state: &State| state.broken.is_none()),
            Property::sometimes(LANDMARKS[0].0, |_, state| shows(state, LANDMARKS[0].1)),
            Property::sometimes(LANDMARKS[1].0, |_, state| shows(state, LANDMARKS[1].1)),
            Property::sometimes(LANDMARKS[2].0, |_, state| shows(state, LANDMARKS[2].1)),
            Property::sometimes(LANDMARKS[3].0, |_, state| shows(state, LANDMARKS[3].1)),
            Property::sometimes(LANDMARKS[4].0, |_, state| shows(state, LANDMARKS[4].1)),
            Property::sometimes(LANDMARKS[5].0, |_, state| shows(state, LANDMARKS[5].1)),
        ]
    }
}

#[test]
fn no_history_breaks_a_rule_and_each_landmark_is_reached() {
    let mut visited = 0;
    for (name, world) in worlds() {
        let began = std::time::Instant::now();
        let is_of_deletions = world.deletions > 0;
        let threads = thread::available_parallelism().map_or(1, NonZero::get);
        let checker = world.checker().threads(threads).spawn_bfs();
        let checker = checker.join_and_report(&mut Progress {
            name,
            said: Duration::ZERO,
        });
        let states = checker.unique_state_count();
        say(&format!(
            "{name}: {states} states, histories of up to {} steps, {:.1?}",
            checker.max_depth(),
            began.elapsed()
        ));
        if let Some(history) = checker.discovery(KEEPS_THE_RULES) {
            panic!("{name}: {}", told(history.into_vec()));
        }
        let reached: BTreeSet<&str> = checker.discoveries().into_keys().collect();
        let of_all = LANDMARKS.len() - OF_DELETIONS;
        let awaited = match is_of_deletions {
            true => &LANDMARKS[of_all..],
            false => &LANDMARKS[..of_all],
        };
        for (landmark, _) in awaited {
            assert!(reached.contains(landmark), "{name}: never seen: {landmark}");
        }
        visited += states;
    }
    say(&format!("{visited} states in all; what was tried:"));
    let tried = TRIED.each_ref().map(|tried| tried.load(Ordering::Relaxed));
    for (trouble, tried) in TROUBLES.iter().zip(tried) {
        say(&format!("{tried:>10}  {trouble}"));
    }
    assert!(!tried.contains(&0), "some trouble was never tried");
    assert!(
        visited >= STATES,
        "only {visited} states: the bounds are too tight"
    );
}

/// Says how far a check is, every ten seconds.
struct Progress {
    name: &'static str,
    /// How long it had taken when this was last said.
    said: Duration,
}

impl Reporter<World> for Progress {
    fn report_checking(&mut self, data: ReportData) {
        if data.duration >= self.said + Duration::from_secs(10) {
            self.said = data.duration;
            let (states, seconds) = (data.unique_states, data.duration.as_secs());
            say(&format!("{seconds:>6} s: {}: {states} states", self.name));
        }
    }

    /// The test itself says what was found.
    fn report_discoveries(&mut self, _: &World, _: BTreeMap<&'static str, ReportDiscovery<World>>) {
    }

    fn delay(&self) -> Duration {
        // The end of a check waits for it.
        Duration::from_millis(100)
    }
}

/// Writes a line that is shown also where the test passes. Whoever does not read misses only this.
fn say(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}

#[test]
fn deletion_without_quarantine_is_found() {
    let mut world = small_world();
    world.deletions = 1;
    let history = broken_history(world).expect("two commands can run");
    assert!(history.contains("two commands run"), "{history}");
}

#[test]
fn death_that_outlasts_its_budget_by_a_millisecond_is_found() {
    let mut world = small_world();
    let history = broken_history(world.clone());
    assert_eq!(history, None, "the budget itself is enough");
    world.death = world.timing.kill_budget + Duration::from_millis(1);
    let history = broken_history(world).expect("two commands can run");
    assert!(history.contains("two commands run"), "{history}");
}

#[test]
fn clocks_that_err_by_a_little_more_than_is_allowed_are_found() {
    let mut world = small_world();
    world.rates = vec![Rate(998), Rate(1001)];
    let history = broken_history(world).expect("two commands can run");
    assert!(history.contains("two commands run"), "{history}");
}

#[test]
fn server_that_compares_no_versions_is_found() {
    let mut world = small_world();
    world.server = Server::Obeys;
    assert!(broken_history(world).is_some());
}

fn small_world() -> World {
    let timing = timing(Duration::from_secs(4), Duration::from_secs(2));
    World::new(RATES[..2].to_vec(), timing, 1, 16)
}

/// The shortest history that breaks a rule, told.
fn broken_history(world: World) -> Option<String> {
    let rule = HasDiscoveries::AllOf(BTreeSet::from([KEEPS_THE_RULES]));
    let checker = world.checker().finish_when(rule).spawn_bfs().join();
    let history = checker.discovery(KEEPS_THE_RULES)?;
    Some(told(history.into_vec()))
}

fn told(history: Vec<(State, Option<Step>)>) -> String {
    let mut text = String::new();
    for (state, step) in history {
        let line = match (step, state.broken) {
            (Some(step), _) => format!("\n{:>13.6?} {step:?}", state.now),
            (None, broken) => format!("\n{:>13.6?} {}", state.now, broken.unwrap_or("the end")),
        };
        text.push_str(&line);
    }
    text
}
