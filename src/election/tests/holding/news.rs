//! What a holder makes of what it is told late, twice, by halves or by strangers.

use super::*;

/// The instants and deadlines that the guard was told since the actions were last taken.
fn extensions(bench: &Bench) -> Vec<(Instant, Duration)> {
    let extensions = bench.actions.iter().filter_map(|action| match action {
        Action::Extend {
            sent,
            kill_deadline,
        } => Some((*sent, *kill_deadline)),
        _ => None,
    });
    extensions.collect()
}

#[test]
fn a_success_older_than_what_was_seen_is_looked_up() {
    let mut bench = Bench::running(settings());
    bench.pass(seconds(2.0));
    let sent = bench.now.at;
    let (id, reply) = bench.carry_out();
    // Before the answer comes, somebody shortens the record that the renewal has made.
    let record = bench.stored.clone().expect("stored").record;
    bench.store(Record {
        duration: Some(seconds(5.0)),
        ..record
    });
    bench.notice();
    bench.event(Event::Reply(id, reply));
    assert_eq!(extensions(&bench), [], "an older answer was believed");
    assert!(bench.is_reading(), "does not look what is stored");
    bench.reply();
    let short = settings().timing.kill_deadline_for(seconds(5.0));
    assert_eq!(extensions(&bench), [(sent, short)]);
}

#[test]
fn a_watch_event_never_prolongs_a_term() {
    let mut bench = Bench::running(settings());
    bench.pass(seconds(2.0));
    bench.carry_out();
    bench.jump(seconds(1.0));
    bench.notice();
    assert_eq!(extensions(&bench), []);
    bench.jump(seconds(12.0));
    bench.event(Event::Wake);
    assert_eq!(bench.kills(), 1, "the term outlived its deadline");
}

#[test]
fn another_process_of_the_same_name_is_a_stranger() {
    let mut bench = Bench::running(settings());
    bench.store(held_by("me_2"));
    bench.notice();
    assert_eq!(bench.kills(), 1);
}

#[test]
fn nothing_is_renewed_once_the_tree_is_gone() {
    for carried_out in [false, true] {
        let mut bench = Bench::running(settings());
        end(&mut bench);
        bench.take_actions();
        let mut writes = 0;
        while bench.exit().is_none() {
            if let Some(Action::Write(_, write)) = &bench.request {
                assert_eq!(write.record.holder, None, "renewed for nothing");
                writes += 1;
            }
            if bench.is_writing() {
                bench.lose_reply(carried_out);
            } else if bench.is_reading() {
                bench.reply();
            }
            bench.pass(seconds(0.1));
        }
        assert!(writes > 0, "did not try to release");
    }
}

#[test]
fn an_answer_that_the_watch_has_overtaken_is_believed() {
    let mut bench = Bench::running(settings());
    bench.pass(seconds(2.0));
    let sent = bench.now.at;
    let (id, reply) = bench.carry_out();
    bench.notice();
    bench.event(Event::Reply(id, reply));
    let kill_deadline = settings().timing.kill_deadline;
    assert_eq!(extensions(&bench), [(sent, kill_deadline)]);
}

#[test]
fn an_event_about_what_was_before_our_term_is_no_loss() {
    let mut bench = Bench::holding_what(settings(), |bench| bench.store(held_by("other_1")));
    let before = bench.stored.clone().expect("stored");
    bench.settle();
    bench.pass(seconds(15.1));
    bench.settle();
    assert_eq!(bench.starts(), 1);
    bench.event(Event::Changed(Change::Written(before)));
    assert_eq!(bench.kills(), 0);
}

#[test]
fn the_event_of_our_own_release_is_no_loss() {
    let mut bench = Bench::running(settings());
    end(&mut bench);
    let (id, reply) = bench.carry_out();
    bench.notice();
    bench.event(Event::Reply(id, reply));
    let told = |report: &Report| {
        let wanted = |action: &Action| matches!(action, Action::Report(told) if told == report);
        bench.did(wanted)
    };
    assert_eq!(told(&Report::Released), 1, "{:?}", bench.actions);
    assert_eq!(bench.exit(), Some(Exit::Command(0)));
}

#[test]
fn the_guard_is_told_of_a_shortened_record_and_the_renewal_mends_it() {
    let mut bench = Bench::running(settings());
    let start = bench.now.at;
    let record = bench.stored.clone().expect("stored").record;
    bench.store(Record {
        duration: Some(seconds(5.0)),
        ..record
    });
    bench.pass(seconds(2.0));
    bench.reply();
    assert!(bench.is_reading());
    bench.reply();
    let short = settings().timing.kill_deadline_for(seconds(5.0));
    assert_eq!(extensions(&bench), [(start, short)]);
    assert!(bench.is_writing());
    bench.settle();
    let record = bench.stored.clone().expect("stored").record;
    assert_eq!(record.duration, Some(D));
    assert_eq!(extensions(&bench)[1].1, settings().timing.kill_deadline);
}

#[test]
fn a_wish_to_wait_is_heard_if_two_more_attempts_fit_in_after_it() {
    // 8 s are left, and an attempt takes up to 2 s.
    for (wish, waits) in [(3.9, true), (4.0, false), (5.0, false)] {
        let mut bench = Bench::running(settings());
        bench.pass(seconds(2.0));
        bench.fail_reply(false, FailureKind::Unreachable, Some(seconds(wish)));
        bench.pass(seconds(1.1));
        assert_eq!(bench.request.is_none(), waits, "{wish} s");
    }
}

#[test]
fn a_loss_names_who_holds_the_lease() {
    let mut bench = Bench::running(settings());
    bench.store(held_by("other_1"));
    bench.notice();
    let reason = bench.actions.iter().find_map(|action| match action {
        Action::Report(Report::Lost { reason, .. }) => Some(reason.clone()),
        _ => None,
    });
    assert_eq!(reason.as_deref(), Some("other_1 holds the lease"));
}

#[test]
fn a_watch_that_ended_is_opened_again_a_retry_period_after_it_was_opened() {
    let mut bench = Bench::running(settings());
    let watches = |bench: &Bench| bench.did(|action| matches!(action, Action::Watch(_)));
    bench.pass(seconds(2.0));
    bench.settle();
    bench.pass(seconds(1.0));
    let before = watches(&bench);
    bench.event(Event::Changed(Change::Ended("closed".to_owned())));
    bench.pass(seconds(0.5));
    assert_eq!(watches(&bench), before + 1, "it was opened long ago");
    bench.event(Event::Changed(Change::Ended("closed".to_owned())));
    bench.pass(seconds(0.6));
    bench.settle();
    bench.pass(seconds(0.8));
    assert_eq!(watches(&bench), before + 1, "opened again at once");
    // No renewal is due now.
    bench.pass(seconds(1.1));
    assert_eq!(watches(&bench), before + 2);
}

#[test]
fn a_servers_wish_makes_a_holder_slower_and_never_faster() {
    for (wish, answered, again) in [
        (0.0, 0.0, 1.0),
        (0.0, 0.8, 1.0),
        (0.3, 0.5, 1.0),
        (0.3, 0.8, 1.1),
        (1.5, 0.0, 1.5),
    ] {
        let mut bench = Bench::running(settings());
        bench.pass(seconds(2.0));
        bench.jump(seconds(answered));
        bench.fail_reply(false, FailureKind::Unreachable, Some(seconds(wish)));
        bench.pass(seconds(again - answered - 0.01));
        assert!(bench.request.is_none(), "{wish} {answered}: too soon");
        bench.pass(seconds(0.02));
        assert!(bench.is_reading(), "{wish} {answered}: too late");
    }
}

#[test]
fn a_strategy_costs_the_holder_its_command_whether_told_or_found() {
    for is_told in [true, false] {
        let mut bench = Bench::running(settings());
        let record = bench.stored.clone().expect("stored").record;
        bench.store(Record {
            strategy: Some("OldestEmulationVersion".to_owned()),
            ..record
        });
        if is_told {
            bench.notice();
        } else {
            // The renewal meets a conflict, and the look shows why.
            bench.pass(seconds(2.0));
            bench.settle();
        }
        assert_eq!(bench.kills(), 1, "told: {is_told}");
        bench.event(Event::TreeGone);
        assert_eq!(bench.exit(), Some(Exit::Lost), "told: {is_told}");
        let versions = bench.versions;
        bench.pass(seconds(60.0));
        assert_eq!(bench.versions, versions, "it was written");
    }
}
