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
fn a_look_that_was_overtaken_by_the_watch_finds_no_term() {
    // The answer to its create is lost, so it looks what became of it; and while the answer to that
    // is on its way, the lease is deleted and made again by somebody else.
    let mut bench = Bench::new(settings());
    bench.reply();
    bench.lose_reply(true);
    while !bench.is_reading() {
        bench.pass(seconds(0.1));
    }
    let (id, late) = bench.carry_out();
    bench.delete();
    bench.store(held_by("other_1"));
    bench.notice();
    bench.event(Event::Reply(id, late));
    assert!(!bench.election.holds(), "the lease is somebody else's");
    bench.settle();
    assert_eq!(bench.starts(), 0);
    // What it was told by then counts, and nothing of what it knew before.
    bench.pass(seconds(14.9));
    assert_eq!(bench.starts(), 0);
    bench.pass(seconds(0.2));
    bench.settle();
    assert_eq!(bench.starts(), 1);
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

#[test]
fn an_answer_that_the_watch_has_overtaken_is_believed() {
    let mut bench = Bench::holding_what(settings(), |bench| bench.store(held_by("other_1")));
    bench.settle();
    bench.pass(seconds(15.1));
    let (id, reply) = bench.carry_out();
    bench.notice();
    assert_eq!(bench.starts(), 0, "an event started a term");
    bench.event(Event::Reply(id, reply));
    assert_eq!(bench.starts(), 1);
}

#[test]
fn a_write_carried_out_late_is_recognised_after_a_later_one() {
    let mut bench = Bench::new(settings());
    bench.reply();
    let first = bench.now.at;
    let late = bench.request.clone();
    bench.lose_reply(false);
    while !bench.is_writing() {
        bench.pass(seconds(0.1));
        if bench.is_reading() {
            bench.reply();
        }
    }
    let second = std::mem::replace(&mut bench.request, late);
    bench.carry_out();
    bench.request = second;
    bench.settle();
    assert_eq!(bench.starts(), 1);
    assert_eq!(bench.term().sent, first);
}

#[test]
fn a_write_that_was_refused_leaves_no_doubt() {
    let mut bench = Bench::new(settings());
    bench.reply();
    bench.refuse_reply(FailureKind::Unauthorized);
    bench.event(Event::Signalled {
        signal: 15,
        ends: true,
    });
    assert_eq!(bench.exit(), Some(Exit::Signal(15)));
    assert!(bench.request.is_none());
}

#[test]
fn the_user_is_told_of_the_term_and_of_whom_it_was_taken_from() {
    let mut bench = Bench::holding_what(settings(), |bench| {
        bench.store(Record {
            transitions: 3,
            ..held_by("other_1")
        });
    });
    bench.settle();
    bench.pass(seconds(15.1));
    bench.settle();
    let told = |bench: &Bench| {
        let mut reports = Vec::new();
        for action in &bench.actions {
            if let Action::Report(report @ (Report::Acquired { .. } | Report::Quarantined(_))) =
                action
            {
                reports.push(report.clone());
            }
        }
        reports
    };
    let acquired = Report::Acquired {
        token: bench.term().token,
        transitions: 4,
        taken_from: Some(identity("other_1")),
    };
    assert_eq!(told(&bench), [acquired]);

    let mut bench = Bench::new(Settings {
        create: Create::Quarantine,
        server_clock_skew: None,
        ..settings()
    });
    bench.settle();
    let [
        Report::Acquired { taken_from, .. },
        Report::Quarantined(wait),
    ] = &told(&bench)[..]
    else {
        panic!("{:?}", bench.actions);
    };
    assert_eq!((taken_from, *wait), (&None, seconds(15.03)));
}

#[test]
fn who_gives_up_says_who_holds_the_lease() {
    let mut bench = Bench::holding_what(
        Settings {
            wait: Some(Duration::ZERO),
            ..settings()
        },
        |bench| bench.store(held_by("other_1")),
    );
    bench.settle();
    let message = bench.actions.iter().find_map(|action| match action {
        Action::Exit(_, message) => message.clone(),
        _ => None,
    });
    assert_eq!(
        message.as_deref(),
        Some("other_1 holds the lease; the command was not run")
    );
}

#[test]
fn a_start_at_the_very_deadline_waits_for_a_renewal() {
    let requested = Requested {
        renew_deadline: Some(seconds(5.0)),
        retry_period: Some(seconds(1.0)),
        request_timeout: Some(seconds(1.0)),
        ..Requested::default()
    };
    for (latency, starts) in [(4.9, 1), (5.0, 0)] {
        let mut bench = Bench::new(Settings {
            timing: Timing::new(requested).expect("safe"),
            ..settings()
        });
        bench.reply();
        bench.jump(seconds(latency));
        bench.reply();
        assert_eq!(bench.starts(), starts, "{latency} s");
        bench.settle();
        assert_eq!(bench.starts(), 1, "{latency} s");
    }
}

/// A record that the controller of coordinated leader election gives to whom it wants.
fn coordinated(record: Record) -> Record {
    Record {
        strategy: Some("OldestEmulationVersion".to_owned()),
        ..record
    }
}

#[test]
fn a_lease_with_a_strategy_is_never_written_and_ends_the_candidate() {
    let bench_on = |record: Record| Bench::holding_what(settings(), |bench| bench.store(record));
    // At first sight, free or held; and told by the watch, or found when the watch is silent.
    let mut at_first = vec![
        bench_on(coordinated(Record::default())),
        bench_on(coordinated(held_by("other_1"))),
    ];
    let mut told = bench_on(held_by("other_1"));
    told.settle();
    told.store(coordinated(held_by("other_1")));
    told.notice();
    let mut found = bench_on(held_by("other_1"));
    found.settle();
    found.store(coordinated(held_by("other_1")));
    found.pass(seconds(20.0));
    at_first.extend([told, found]);
    for mut bench in at_first {
        bench.settle();
        // The take-over in vain is looked into.
        bench.pass(seconds(5.0));
        bench.settle();
        assert_eq!(bench.exit(), Some(Exit::Configuration));
        assert_eq!(bench.starts(), 0);
        let record = bench.stored.expect("stored").record;
        assert_ne!(record.holder, Some(identity("me_1")), "it was taken");
    }
}

#[test]
fn a_strategy_that_comes_after_a_write_in_doubt_lets_nothing_start() {
    let mut bench = Bench::new(settings());
    bench.reply();
    bench.lose_reply(true);
    let record = bench.stored.clone().expect("carried out").record;
    bench.store(coordinated(record));
    bench.pass(seconds(2.5));
    bench.settle();
    assert_eq!(bench.exit(), Some(Exit::Configuration));
    assert_eq!(bench.starts(), 0);
    let versions = bench.versions;
    bench.pass(seconds(60.0));
    assert_eq!(bench.versions, versions, "it was written");
}
