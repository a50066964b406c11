//! What a candidate says and does while requests fail, and what one attempt is.

use super::*;

fn once() -> Settings {
    Settings {
        wait: Some(Duration::ZERO),
        ..settings()
    }
}

fn requests(bench: &Bench) -> usize {
    bench.did(|action| matches!(action, Action::Read(_) | Action::Write(..)))
}

#[test]
fn one_attempt_looks_briefly_what_became_of_its_write() {
    let mut bench = Bench::new(once());
    bench.reply();
    bench.lose_reply(false);
    assert!(bench.is_reading());
    bench.reply();
    assert_eq!(bench.exit(), Some(Exit::Unreachable));
    assert_eq!(requests(&bench), 3);

    let mut bench = Bench::new(once());
    bench.reply();
    bench.lose_reply(false);
    bench.lose_reply(false);
    // It leaves now, and whoever leaves looks once more after a write in doubt.
    bench.lose_reply(false);
    assert_eq!(bench.exit(), Some(Exit::Unreachable));
    assert_eq!(requests(&bench), 4);
}

#[test]
fn who_may_wait_goes_on_after_a_write_that_failed() {
    let mut bench = Bench::new(settings());
    for _ in 0..5 {
        bench.reply();
        assert!(bench.is_writing());
        bench.lose_reply(false);
        bench.pass(seconds(2.5));
    }
    assert_eq!(bench.exit(), None);
    bench.settle();
    assert_eq!(bench.starts(), 1);
}

#[test]
fn conflicts_without_a_winner_end_one_attempt_and_no_other() {
    for (settings, ends) in [(once(), true), (settings(), false)] {
        let mut bench = Bench::holding_what(settings, |bench| bench.store(Record::default()));
        for _ in 0..200 {
            if let Some(Action::Write(id, _)) = bench.request.clone() {
                bench.request = None;
                bench.event(Event::Reply(id, Reply::Written(Ok(Outcome::Conflict))));
            } else if bench.is_reading() {
                bench.reply();
            } else {
                bench.pass(seconds(0.1));
            }
        }
        assert_eq!(bench.exit(), ends.then_some(Exit::Conflict(75)));
    }
}

#[test]
fn a_holder_that_is_seen_after_failed_writes_is_why_the_wait_runs_out() {
    let mut bench = Bench::new(Settings {
        wait: Some(seconds(10.0)),
        ..settings()
    });
    bench.reply();
    bench.lose_reply(false);
    bench.store(held_by("other_1"));
    bench.pass(seconds(2.5));
    bench.settle();
    let told = bench.did(|action| matches!(action, Action::Report(Report::Reachable)));
    assert_eq!(told, 1);
    bench.pass(seconds(8.0));
    // The write that failed may have been carried out since.
    bench.settle();
    assert_eq!(bench.exit(), Some(Exit::Conflict(75)));
}

#[test]
fn a_holder_is_told_of_once_however_often_it_renews() {
    let mut bench = Bench::holding_what(settings(), |bench| bench.store(held_by("other_1")));
    bench.settle();
    for _ in 0..3 {
        bench.pass(seconds(2.0));
        bench.store(held_by("other_1"));
        bench.notice();
    }
    let told =
        |bench: &Bench| bench.did(|action| matches!(action, Action::Report(Report::HeldBy { .. })));
    assert_eq!(told(&bench), 1);
    bench.store(held_by("other_2"));
    bench.notice();
    assert_eq!(told(&bench), 2);

    let mut bench = Bench::holding_what(settings(), |bench| {
        bench.store(held_by("other_1"));
        bench.jump(seconds(60.0));
    });
    bench.settle();
    assert_eq!(bench.starts(), 1);
    assert_eq!(told(&bench), 0, "nobody held it any more");
}

#[test]
fn a_write_whose_answer_makes_no_sense_leaves_nothing_behind() {
    for carried_out in [true, false] {
        for settings in [once(), settings()] {
            let mut bench = Bench::new(settings);
            bench.reply();
            bench.fail_reply(carried_out, FailureKind::Malformed, None);
            bench.settle();
            assert_eq!(bench.exit(), Some(Exit::Configuration), "{carried_out}");
            assert_eq!(bench.holder(), None, "{carried_out}");
            assert_eq!(bench.starts(), 0, "{carried_out}");
        }
    }
}

#[test]
fn answers_that_never_make_sense_end_it_after_one_look() {
    let mut bench = Bench::new(settings());
    bench.reply();
    for _ in 0..2 {
        assert_eq!(bench.exit(), None);
        bench.fail_reply(true, FailureKind::Malformed, None);
    }
    assert_eq!(bench.exit(), Some(Exit::Configuration));
}
