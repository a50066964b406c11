//! What a candidate makes of what it is told late, and what it tells apart.

use super::*;

#[test]
fn another_process_of_the_same_name_is_a_stranger() {
    let mut bench = Bench::holding_what(settings(), |bench| bench.store(held_by("me_2")));
    bench.settle();
    assert!(!bench.is_writing());
    bench.pass(seconds(14.9));
    assert_eq!(bench.starts(), 0);
    bench.pass(seconds(0.2));
    bench.settle();
    assert_eq!(bench.starts(), 1);
}

#[test]
fn an_answer_to_an_older_request_is_of_no_interest() {
    let careful = Settings {
        create: Create::Quarantine,
        ..settings()
    };
    // Renewing in quarantine, it learns that somebody else has the lease: it contends again, and
    // the renewal that is under way concerns it no more.
    let mut bench = Bench::new(careful);
    bench.settle();
    bench.pass(seconds(2.0));
    let (id, reply) = bench.carry_out();
    bench.store(held_by("other_1"));
    bench.notice();
    assert!(bench.is_reading(), "does not contend again");
    let actions = bench.take_actions().len();
    assert!(actions > 0);
    bench.event(Event::Reply(id, reply));
    assert_eq!(bench.take_actions(), [], "an answer that came too late");
    bench.settle();
    let told = bench.did(|action| matches!(action, Action::Report(Report::HeldBy { .. })));
    assert_eq!(told, 1);
    assert_eq!(bench.starts(), 0);
}

#[test]
fn a_quarantine_counts_from_the_object_and_not_from_the_first_look() {
    let careful = Settings {
        create: Create::Quarantine,
        ..settings()
    };
    let mut bench = Bench::holding_what(careful, |bench| bench.store(held_by("other_1")));
    bench.settle();
    for _ in 0..10 {
        bench.pass(seconds(2.0));
        bench.store(held_by("other_1"));
        bench.notice();
    }
    let deleted = bench.delete();
    bench.event(Event::Changed(Change::Deleted(deleted)));
    bench.settle();
    assert_eq!(bench.holder(), Some("me_1"));
    for _ in 0..7 {
        bench.pass(seconds(2.0));
        bench.settle();
    }
    assert_eq!(
        bench.starts(),
        0,
        "the deleted lease's holder may still run"
    );
    bench.pass(seconds(1.1));
    bench.settle();
    assert_eq!(bench.starts(), 1);
}

#[test]
fn candidates_that_failed_together_come_back_apart() {
    let mut moments = Vec::new();
    for seed in 0..10 {
        let mut bench = Bench::new(Settings { seed, ..settings() });
        bench.lose_reply(false);
        let wait = bench.election.deadline(bench.now).expect("it tries again");
        assert!((seconds(2.0)..seconds(2.4)).contains(&wait), "{wait:?}");
        moments.push(wait);
    }
    moments.sort();
    moments.dedup();
    assert_eq!(moments.len(), 10);
    let spread = moments[9].saturating_sub(moments[0]);
    assert!(spread > seconds(0.2), "all within {spread:?}");
}
