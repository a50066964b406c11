//! The simulation as an ordinary test: many worlds, each decided by a seed.
//!
//! A seed that fails is printed, with the command that plays it again and prints all that happened in
//! that world.

use std::{
    io::{self, Write as _},
    thread,
};

use lease_exec_simulation::simulation::{
    Fault, Plan, Profile, Summary, progress, replay, run, tightness,
};

/// How many terms begin in an ordinary run of the tests.
const ELECTIONS: u64 = 500_000;

fn processors() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

#[test]
fn simulation_breaks_no_invariant_in_half_a_million_elections() {
    let plan = Plan {
        profile: Profile::Mixed,
        seed: 1,
        elections: ELECTIONS,
        threads: processors(),
    };
    let (summary, found) = run(plan, progress(plan.profile));
    if let Some(found) = found {
        let again = found.replay_command(plan.profile);
        panic!("{}\nreplay it with: {again}\n{summary}", found.violation);
    }
    // Also where the test passes: who reads it sees what was tried, and how often.
    let _ = write!(io::stderr(), "{summary}");
    // That nothing was broken is worth something only if much was tried.
    assert!(summary.elections >= ELECTIONS, "{summary}");
    assert!(summary.hours() > 5_000.0, "{summary}");
    assert!(summary.hand_overs > ELECTIONS / 2, "{summary}");
    assert!(summary.starts > ELECTIONS / 2, "{summary}");
    assert!(summary.losses > ELECTIONS / 100, "{summary}");
    assert!(summary.faults() > ELECTIONS * 2, "{summary}");
    assert_eq!(summary.missing(), [], "never injected");
    for code in [0, 1, 69, 75, 77, 78, 79, 80, 125, 127, 137, 143] {
        assert!(
            summary.exits.contains_key(&code),
            "nobody exited with {code}\n{summary}"
        );
    }
}

#[test]
fn simulation_of_a_day_without_faults_has_one_holder_and_few_requests() {
    let plan = Plan {
        profile: Profile::Day,
        seed: 1,
        elections: 5,
        threads: processors(),
    };
    let (summary, found) = run(plan, |_| {});
    assert_eq!(found, None);
    assert!(summary.hours() >= 5.0 * 24.0, "{summary}");
}

/// Without turns each election in a herd meets about as many conflicts as there are candidates.
#[test]
fn simulation_of_herds_has_few_conflicts_at_each_election() {
    let plan = Plan {
        profile: Profile::Herd,
        seed: 1,
        elections: 1_000,
        threads: processors(),
    };
    let (summary, found) = run(plan, |_| {});
    assert_eq!(found, None);
    assert!(summary.herd_elections >= 1_000, "{summary}");
    assert!(
        summary.herd_conflicts < summary.herd_candidates / 4,
        "{summary}"
    );
}

#[test]
fn simulation_of_slewed_clocks_on_suspended_machines_breaks_no_invariant() {
    let summary = simulate_well(Profile::Slewed);
    assert!(summary.injected(Fault::Suspended) > 500, "{summary}");
    assert!(summary.injected(Fault::ClockRateChanged) > 500, "{summary}");
}

#[test]
fn simulation_of_polling_standbys_of_a_second_breaks_no_invariant() {
    let summary = simulate_well(Profile::Polling);
    assert!(
        summary.injected(Fault::WatchForbidden403) > 5_000,
        "{summary}"
    );
}

/// Some thousand elections of a profile that is no part of the mixed one.
fn simulate_well(profile: Profile) -> Summary {
    let plan = Plan {
        profile,
        seed: 1,
        elections: 20_000,
        threads: processors(),
    };
    let (summary, found) = run(plan, progress(plan.profile));
    assert_eq!(found, None, "of profile {profile}");
    summary
}

#[test]
fn simulation_of_one_seed_is_always_the_same() {
    for seed in 1..20 {
        let (one, two) = (replay(seed, Profile::Mixed), replay(seed, Profile::Mixed));
        assert!(one.history == two.history, "of seed {seed}");
        assert!(!one.history.is_empty(), "of seed {seed}");
    }
}

/// Who looks for the cause of a violation needs more than states.
#[test]
fn simulation_writes_down_requests_answers_events_and_faults() {
    let histories = (1..20).map(|seed| replay(seed, Profile::Mixed).history);
    let history = histories.collect::<String>();
    for word in [
        " creates held by ",
        " writes held by ",
        " over version ",
        " reads\n",
        " is answered: wrote version ",
        " is answered: conflict\n",
        " arrives (AnswerLost): ",
        " arrives (AnswerLate(",
        " is lost\n",
        ": saw version ",
        "fault: WriteLate",
    ] {
        assert!(history.contains(word), "no history has {word:?}");
    }
}

/// The simulation can fail: the reserve is just what it must be.
#[test]
fn simulation_shows_kills_that_are_a_little_too_slow() {
    for excess in [-100_000, 0] {
        let row = tightness(excess, 5_000);
        assert_eq!(row.violations, 0, "{row:?}");
    }
    for excess in [2_000, 20_000] {
        let row = tightness(excess, 5_000);
        assert!(row.violations > 0, "{row:?}");
    }
}
