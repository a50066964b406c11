//! When a candidate watches, and when it watches again.

use super::*;

#[test]
fn a_watch_that_ended_is_opened_again_after_a_read_with_a_retry_period_for_each_request() {
    let mut bench = Bench::holding_what(settings(), |bench| bench.store(held_by("other_1")));
    bench.settle();
    bench.take_actions();
    bench.event(Event::Changed(Change::Ended("closed".to_owned())));
    bench.pass(seconds(2.5));
    assert!(bench.is_reading());
    bench.settle();
    let watches = |bench: &Bench| bench.did(|action| matches!(action, Action::Watch(_)));
    assert_eq!(watches(&bench), 0);
    bench.pass(seconds(2.0));
    assert_eq!(watches(&bench), 1);
    // The same version, so the observation goes on.
    bench.pass(seconds(10.6));
    assert!(bench.is_writing());
}

#[test]
fn watches_that_ended_together_when_they_should_are_opened_again_soon_and_apart() {
    let mut moments = Vec::new();
    for seed in 0..50 {
        let mut bench = Bench::holding_what(Settings { seed, ..settings() }, |bench| {
            bench.store(held_by("other_1"));
        });
        bench.settle();
        bench.pass(seconds(4.1));
        bench.take_actions();
        bench.event(Event::Changed(Change::Ended("closed".to_owned())));
        assert_eq!(bench.actions, [], "at once");
        let wait = bench.election.deadline(bench.now).expect("it looks");
        bench.pass(wait);
        assert!(bench.is_reading());
        let watches = |bench: &Bench| bench.did(|action| matches!(action, Action::Watch(_)));
        assert_eq!(watches(&bench), 0, "before the look");
        bench.settle();
        assert_eq!(watches(&bench), 1);
        moments.push(wait);
    }
    moments.sort();
    moments.dedup();
    assert_eq!(moments.len(), 50);
    assert!(moments[49] < seconds(0.5), "{moments:?}");
    let spread = moments[49] - moments[0];
    assert!(spread > seconds(0.4), "all within {spread:?}");
}

/// How long after each refusal the watch is tried again, while it is refused this often.
fn retries_of_a_refused_watch(bench: &mut Bench, refusals: usize) -> Vec<Duration> {
    let watches = |bench: &Bench| bench.did(|action| matches!(action, Action::Watch(_)));
    let mut pauses = Vec::new();
    for _ in 0..refusals {
        let before = watches(bench);
        bench.event(Event::Changed(Change::Refused(Failure {
            kind: FailureKind::Forbidden,
            message: "no watch".to_owned(),
            retry_after: None,
        })));
        let refused = bench.now.at;
        while watches(bench) == before {
            bench.pass(seconds(0.1));
            if bench.is_reading() {
                bench.store(held_by("other_1"));
                bench.settle();
            }
        }
        pauses.push(bench.now.at.held_since(refused));
    }
    pauses
}

#[test]
fn a_refused_watch_is_tried_again_after_seconds_and_then_ever_later_without_a_word() {
    let mut bench = Bench::holding_what(settings(), |bench| bench.store(held_by("other_1")));
    bench.settle();
    let pauses = retries_of_a_refused_watch(&mut bench, 7);
    for (pause, least) in pauses
        .iter()
        .zip([15.0, 30.0, 60.0, 120.0, 240.0, 300.0, 300.0])
    {
        // It is tried after a poll.
        let expected = seconds(least)..seconds(least + 2.6);
        assert!(expected.contains(pause), "{pauses:?}");
    }
    let told = bench.did(|action| matches!(action, Action::Report(Report::Polling(_))));
    assert_eq!(told, 1);
}

#[test]
fn a_watch_that_was_served_makes_the_next_refusal_a_first_one() {
    let event: fn(&mut Bench) = |bench| {
        bench.store(held_by("other_1"));
        bench.notice();
    };
    let end: fn(&mut Bench) = |bench| {
        bench.event(Event::Changed(Change::Ended("closed".to_owned())));
        while !bench.is_reading() {
            bench.pass(seconds(0.1));
        }
        bench.settle();
        bench.pass(seconds(2.1));
    };
    for served in [event, end] {
        let mut bench = Bench::holding_what(settings(), |bench| bench.store(held_by("other_1")));
        bench.settle();
        retries_of_a_refused_watch(&mut bench, 3);
        served(&mut bench);
        let pauses = retries_of_a_refused_watch(&mut bench, 1);
        assert!(pauses[0] < seconds(18.0), "{pauses:?}");
    }
}

#[test]
fn a_watch_that_ended_is_not_down_for_so_long_that_a_short_record_seems_to_run_out() {
    let slow = Requested {
        lease_duration: Some(seconds(60.0)),
        ..Requested::default()
    };
    for seed in 0..50 {
        let settings = Settings {
            timing: Timing::new(slow).expect("safe"),
            seed,
            ..settings()
        };
        let mut bench = Bench::holding_what(settings, |bench| bench.store(held_by("other_1")));
        bench.settle();
        for _ in 0..200 {
            bench.pass(seconds(0.13));
            bench.store(Record {
                duration: Some(seconds(1.0)),
                ..held_by("other_1")
            });
            bench.notice();
        }
        bench.event(Event::Changed(Change::Ended("closed".to_owned())));
        bench.pass(seconds(0.25));
        assert!(bench.is_reading(), "still blind");
    }
}
