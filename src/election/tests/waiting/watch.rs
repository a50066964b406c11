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
