use super::*;

mod crowd;
mod news;
mod quarantine;
mod trouble;
mod watch;

#[test]
fn an_absent_lease_is_created_and_the_command_started() {
    let mut bench = Bench::new(settings());
    bench.reply();
    assert!(
        matches!(&bench.request, Some(Action::Write(_, Write { base: None, record })) if record.transitions == 0)
    );
    bench.settle();
    assert_eq!(bench.starts(), 1);
    assert_eq!(bench.holder(), Some("me_1"));
    assert_eq!(bench.term().token, Version::new("101").expect("decimal"));
}

#[test]
fn the_term_counts_from_before_the_write_was_sent() {
    let mut bench = Bench::new(settings());
    bench.reply();
    let sent = bench.now.at;
    bench.jump(seconds(1.5));
    bench.settle();
    assert_eq!(bench.term().sent, sent);
}

#[test]
fn a_released_lease_is_taken_at_once_and_counts_a_transition() {
    let released = Record {
        transitions: 4,
        duration: Some(seconds(1.0)),
        ..Record::default()
    };
    let mut bench = Bench::holding_what(settings(), |bench| bench.store(released));
    bench.settle();
    assert_eq!(bench.starts(), 1);
    assert_eq!(bench.term().transitions, 5);
}

#[test]
fn a_held_lease_is_taken_only_after_the_records_own_duration_unchanged() {
    let record = Record {
        duration: Some(seconds(40.0)),
        ..held_by("other_1")
    };
    let mut bench = Bench::holding_what(settings(), |bench| bench.store(record));
    bench.settle();
    bench.pass(seconds(39.9));
    assert!(!bench.is_writing(), "took over early");
    bench.pass(seconds(0.2));
    assert!(bench.is_writing(), "did not take over");
    bench.settle();
    assert_eq!(bench.starts(), 1);
    assert_eq!(bench.term().transitions, 1);
}

#[test]
fn a_renewal_that_was_not_seen_makes_the_take_over_fail_and_the_wait_begin_again() {
    let mut bench = Bench::holding_what(settings(), |bench| bench.store(held_by("other_1")));
    bench.settle();
    bench.pass(seconds(14.0));
    bench.store(held_by("other_1"));
    bench.pass(seconds(1.1));
    assert!(bench.is_writing());
    bench.settle();
    // The watch might have told of it.
    bench.pass(seconds(1.0));
    assert!(bench.is_reading());
    bench.settle();
    assert_eq!(bench.starts(), 0);
    assert_eq!(bench.holder(), Some("other_1"));
    let watches = bench.did(|action| matches!(action, Action::Watch(_)));
    assert_eq!(watches, 2, "a watch that had said nothing was kept");
    bench.pass(seconds(14.9));
    assert!(
        !bench.is_writing(),
        "counted from before it saw the new version"
    );
    bench.pass(seconds(0.2));
    bench.settle();
    assert_eq!(bench.starts(), 1);
}

#[test]
fn an_observer_uses_the_slower_clock() {
    let mut bench = Bench::holding_what(settings(), |bench| bench.store(held_by("other_1")));
    bench.settle();
    // A suspend of a minute: CLOCK_MONOTONIC_RAW stood still.
    bench.now.at.boot += seconds(60.0);
    bench.event(Event::Wake);
    assert!(!bench.is_writing(), "a suspend counted as observation");
    bench.now.at.raw += seconds(15.0);
    bench.event(Event::Wake);
    assert!(bench.is_writing());
}

#[test]
fn a_release_seen_by_the_watch_is_taken_at_once() {
    let mut bench = Bench::holding_what(settings(), |bench| bench.store(held_by("other_1")));
    bench.settle();
    assert!(bench.watching);
    bench.pass(seconds(3.0));
    bench.store(Record::default());
    bench.notice();
    assert!(bench.is_writing());
    bench.settle();
    assert_eq!(bench.starts(), 1);
}

#[test]
fn a_late_or_doubled_event_changes_nothing() {
    let mut bench = Bench::holding_what(settings(), |bench| bench.store(Record::default()));
    let free = bench.stored.clone().expect("stored");
    bench.store(held_by("other_1"));
    bench.settle();
    bench.event(Event::Changed(Change::Written(free)));
    assert!(
        !bench.is_writing(),
        "acted on an event older than what was read"
    );
}

#[test]
fn a_deletion_seen_by_the_watch_leads_to_a_create() {
    let mut bench = Bench::holding_what(settings(), |bench| bench.store(held_by("other_1")));
    bench.settle();
    let deleted = bench.delete();
    bench.event(Event::Changed(Change::Deleted(deleted)));
    assert!(matches!(
        &bench.request,
        Some(Action::Write(_, Write { base: None, .. }))
    ));
    bench.settle();
    assert_eq!(bench.starts(), 1);
}

#[test]
fn a_lost_answer_to_an_acquire_is_found_again_by_its_stamp() {
    let mut bench = Bench::new(settings());
    bench.reply();
    let sent = bench.now.at;
    bench.jump(seconds(2.0));
    bench.lose_reply(true);
    assert_eq!(bench.starts(), 0);
    bench.pass(seconds(2.5));
    assert!(bench.is_reading(), "did not look what became of its write");
    bench.settle();
    assert_eq!(bench.starts(), 1);
    assert_eq!(bench.term().sent, sent);
    assert_eq!(bench.term().token, Version::new("101").expect("decimal"));
}

#[test]
fn an_acquire_that_took_too_long_is_renewed_before_the_start() {
    let mut bench = Bench::new(settings());
    bench.reply();
    bench.jump(seconds(9.0));
    bench.reply();
    assert_eq!(bench.starts(), 0);
    assert!(bench.is_writing());
    let renewed = bench.now.at;
    bench.reply();
    assert_eq!(bench.term().sent, renewed);
    assert_eq!(
        bench.term().token,
        Version::new("101").expect("decimal"),
        "the token is the acquiring write's"
    );
}

#[test]
fn a_signal_while_waiting_ends_at_once_and_writes_nothing() {
    let mut bench = Bench::holding_what(settings(), |bench| bench.store(held_by("other_1")));
    bench.settle();
    bench.event(Event::Signalled {
        signal: 10,
        ends: false,
    });
    assert_eq!(bench.exit(), None);
    bench.event(Event::Signalled {
        signal: 15,
        ends: true,
    });
    assert_eq!(bench.exit(), Some(Exit::Signal(15)));
    assert!(bench.request.is_none());
}

#[test]
fn a_signal_during_an_acquire_releases_what_it_acquired() {
    for lost in [false, true] {
        let mut bench = Bench::new(settings());
        bench.reply();
        bench.event(Event::Signalled {
            signal: 15,
            ends: true,
        });
        assert_eq!(bench.exit(), None, "left a write behind");
        if lost {
            bench.lose_reply(true);
        }
        bench.settle();
        assert_eq!(bench.exit(), Some(Exit::Signal(15)));
        assert_eq!(bench.holder(), None);
        assert_eq!(bench.starts(), 0);
    }
}

#[test]
fn one_attempt_ends_with_the_conflict_code_when_somebody_holds() {
    let once = Settings {
        wait: Some(Duration::ZERO),
        ..settings()
    };
    let mut bench = Bench::holding_what(once, |bench| bench.store(held_by("other_1")));
    bench.settle();
    assert_eq!(bench.exit(), Some(Exit::Conflict(75)));
    assert_eq!(bench.holder(), Some("other_1"));
}

#[test]
fn one_attempt_takes_a_record_that_the_servers_own_clock_shows_to_be_old() {
    for (age, taken) in [(19.9, false), (20.1, true)] {
        let once = Settings {
            wait: Some(Duration::ZERO),
            ..settings()
        };
        let mut bench = Bench::holding_what(once, |bench| {
            bench.store(held_by("other_1"));
            bench.jump(seconds(age));
        });
        bench.settle();
        assert_eq!(bench.starts() == 1, taken, "at {age} s");
    }
    let never = Settings {
        wait: Some(Duration::ZERO),
        server_clock_skew: None,
        ..settings()
    };
    let mut bench = Bench::holding_what(never, |bench| {
        bench.store(held_by("other_1"));
        bench.jump(seconds(9999.0));
    });
    bench.settle();
    assert_eq!(bench.exit(), Some(Exit::Conflict(75)));
}

#[test]
fn one_attempt_ends_when_the_server_is_out_of_reach() {
    let once = Settings {
        wait: Some(Duration::ZERO),
        ..settings()
    };
    let mut bench = Bench::new(once);
    bench.lose_reply(false);
    assert_eq!(bench.exit(), Some(Exit::Unreachable));
}

#[test]
fn one_attempt_ends_when_reads_succeed_and_writes_fail() {
    let once = Settings {
        wait: Some(Duration::ZERO),
        ..settings()
    };
    let mut bench = Bench::new(once);
    while bench.exit().is_none() {
        assert!(bench.actions.len() < 20, "tries on and on");
        if bench.is_writing() {
            bench.lose_reply(false);
        } else {
            bench.reply();
        }
    }
    assert_eq!(bench.exit(), Some(Exit::Unreachable));
}

#[test]
fn writes_that_fail_while_reads_succeed_are_told_once() {
    let mut bench = Bench::new(settings());
    for _ in 0..20 {
        if bench.is_writing() {
            bench.lose_reply(false);
        } else if bench.is_reading() {
            bench.reply();
        }
        bench.pass(seconds(1.0));
    }
    let told = bench.did(|action| {
        matches!(
            action,
            Action::Report(Report::Unreachable(_) | Report::Reachable)
        )
    });
    assert_eq!(told, 1);
}

#[test]
fn an_answer_with_a_stranger_in_it_starts_nothing() {
    let mut bench = Bench::new(settings());
    bench.reply();
    let (id, reply) = bench.carry_out();
    let Reply::Written(Ok(Outcome::Written(mut claim))) = reply else {
        panic!("not written: {reply:?}");
    };
    claim.record.holder = Some(identity("mallory"));
    bench.event(Event::Reply(
        id,
        Reply::Written(Ok(Outcome::Written(claim))),
    ));
    assert_eq!(bench.starts(), 0);
    bench.pass(seconds(2.5));
    bench.settle();
    assert_eq!(bench.starts(), 1, "what is stored is ours after all");
}

#[test]
fn the_wait_also_bounds_the_time_from_the_lease_to_the_start() {
    let careful = Settings {
        create: Create::Quarantine,
        wait: Some(seconds(5.0)),
        ..settings()
    };
    let mut bench = Bench::new(careful);
    bench.settle();
    bench.pass(seconds(2.1));
    bench.settle();
    assert_eq!(bench.exit(), None);
    bench.pass(seconds(3.0));
    bench.settle();
    assert_eq!(bench.exit(), Some(Exit::Conflict(75)));
    assert_eq!(bench.starts(), 0);
    assert_eq!(bench.holder(), None);
}

#[test]
fn answers_that_are_too_slow_for_a_start_are_not_hurried() {
    let mut bench = Bench::new(settings());
    bench.reply();
    let mut writes = 0;
    for _ in 0..5 {
        assert!(bench.is_writing());
        writes += 1;
        bench.jump(seconds(8.0));
        bench.reply();
    }
    assert_eq!(bench.starts(), 0);
    assert_eq!(
        bench.did(|action| matches!(action, Action::Write(..))),
        writes + 1
    );
}

#[test]
fn a_wait_that_runs_out_tells_a_holder_from_an_outage() {
    let patient = Settings {
        wait: Some(seconds(5.0)),
        ..settings()
    };
    let mut bench = Bench::holding_what(patient.clone(), |bench| bench.store(held_by("other_1")));
    bench.settle();
    bench.pass(seconds(4.9));
    assert_eq!(bench.exit(), None);
    bench.pass(seconds(0.2));
    assert_eq!(bench.exit(), Some(Exit::Conflict(75)));

    let mut bench = Bench::new(patient);
    bench.lose_reply(false);
    bench.pass(seconds(5.1));
    assert_eq!(bench.exit(), Some(Exit::Unreachable));
}

#[test]
fn failures_that_time_does_not_mend_end_at_once() {
    let cases = [
        (FailureKind::Forbidden, Exit::Forbidden),
        (FailureKind::NoNamespace, Exit::Configuration),
        (FailureKind::Malformed, Exit::Configuration),
        (FailureKind::Misconfigured, Exit::Configuration),
    ];
    for (kind, exit) in cases {
        let mut bench = Bench::new(settings());
        bench.refuse_reply(kind);
        assert_eq!(bench.exit(), Some(exit), "{kind:?}");
    }
}

#[test]
fn a_refusal_where_reading_was_allowed_ends_it_only_if_it_lasts() {
    let mut bench = Bench::holding_what(settings(), |bench| bench.store(held_by("other_1")));
    bench.settle();
    let refuse_for = |bench: &mut Bench, limit: Duration| {
        bench.event(Event::Changed(Change::Ended("closed".to_owned())));
        let began = bench.now.at;
        while bench.exit().is_none() && bench.now.at.held_since(began) < limit {
            bench.pass(seconds(0.1));
            if bench.is_reading() {
                bench.refuse_reply(FailureKind::Forbidden);
            }
        }
        bench.now.at.held_since(began)
    };
    // An API server that starts refuses everybody until it knows who has which rights.
    refuse_for(&mut bench, seconds(14.0));
    assert_eq!(bench.exit(), None);
    bench.store(held_by("other_1"));
    bench.pass(seconds(2.5));
    bench.settle();
    let lasted = refuse_for(&mut bench, seconds(60.0));
    assert_eq!(bench.exit(), Some(Exit::Forbidden));
    assert!(lasted >= seconds(15.0), "{lasted:?}");
}

#[test]
fn refused_credentials_are_tried_again_but_not_for_ever() {
    let mut bench = Bench::new(settings());
    for _ in 0..2 {
        bench.refuse_reply(FailureKind::Unauthorized);
        assert_eq!(bench.exit(), None);
        bench.pass(seconds(2.5));
    }
    bench.refuse_reply(FailureKind::Unauthorized);
    assert_eq!(bench.exit(), Some(Exit::Configuration));
}

#[test]
fn an_outage_is_tried_at_most_once_per_retry_period_and_told_once() {
    let mut bench = Bench::new(settings());
    for _ in 0..10 {
        let sent = bench.now.at;
        bench.lose_reply(false);
        while bench.request.is_none() {
            bench.pass(seconds(0.01));
        }
        let gap = bench.now.at.held_since(sent);
        assert!((seconds(2.0)..seconds(2.42)).contains(&gap), "{gap:?}");
    }
    let told = bench.did(|action| matches!(action, Action::Report(Report::Unreachable(_))));
    assert_eq!(told, 1);
    bench.settle();
    assert_eq!(
        bench.did(|action| matches!(action, Action::Report(Report::Reachable))),
        1
    );
    assert_eq!(bench.starts(), 1);
}

#[test]
fn without_the_right_to_watch_it_polls_and_says_so_once() {
    let mut bench = Bench::holding_what(settings(), |bench| bench.store(held_by("other_1")));
    bench.settle();
    let refused = Failure {
        kind: FailureKind::Forbidden,
        message: "no watch".to_owned(),
        retry_after: None,
    };
    bench.event(Event::Changed(Change::Refused(refused)));
    for _ in 0..5 {
        bench.pass(seconds(2.5));
        assert!(bench.is_reading(), "does not poll");
        bench.store(held_by("other_1"));
        bench.settle();
    }
    assert_eq!(
        bench.did(|action| matches!(action, Action::Report(Report::Polling(_)))),
        1
    );
    bench.store(Record::default());
    bench.pass(seconds(2.5));
    bench.settle();
    assert_eq!(bench.starts(), 1);
}

#[test]
fn an_absent_lease_is_refused_if_it_must_exist() {
    let mut bench = Bench::new(Settings {
        create: Create::Never,
        ..settings()
    });
    bench.settle();
    assert_eq!(bench.exit(), Some(Exit::Configuration));
    assert!(bench.stored.is_none());
}

#[test]
fn a_quarantined_lease_is_held_and_renewed_but_not_used_while_it_is_young() {
    let careful = Settings {
        create: Create::Quarantine,
        server_clock_skew: None,
        ..settings()
    };
    let mut bench = Bench::new(careful);
    bench.settle();
    for _ in 0..7 {
        assert_eq!(bench.starts(), 0);
        bench.pass(seconds(2.01));
        assert!(bench.is_writing(), "does not renew in quarantine");
        bench.settle();
    }
    assert_eq!(bench.starts(), 0);
    bench.pass(seconds(1.1));
    assert_eq!(bench.starts(), 1);
}

#[test]
fn a_quarantine_outlives_its_creator() {
    let careful = Settings {
        create: Create::Quarantine,
        ..settings()
    };
    let mut bench = Bench::holding_what(careful, |bench| {
        bench.store(Record::default());
        bench.jump(seconds(4.0));
    });
    bench.settle();
    assert_eq!(
        bench.starts(),
        0,
        "the creator's release ended the quarantine"
    );
    assert_eq!(bench.holder(), Some("me_1"));
}

#[test]
fn a_released_old_lease_needs_no_quarantine() {
    let careful = Settings {
        create: Create::Quarantine,
        ..settings()
    };
    let mut bench = Bench::holding_what(careful, |bench| {
        bench.store(Record::default());
        bench.jump(seconds(60.0));
    });
    // The bench's age is that of the last write; the write that acquires does not make it young.
    bench.reply();
    let (id, reply) = bench.carry_out();
    let Reply::Written(Ok(Outcome::Written(claim))) = reply else {
        panic!("not written: {reply:?}");
    };
    let claim = Claim {
        created_ago: Some(seconds(60.0)),
        ..claim
    };
    bench.event(Event::Reply(
        id,
        Reply::Written(Ok(Outcome::Written(claim))),
    ));
    assert_eq!(bench.starts(), 1);
}

#[test]
fn conflicts_without_a_winner_are_not_repeated_at_full_speed() {
    let mut bench = Bench::holding_what(settings(), |bench| bench.store(Record::default()));
    let mut writes = 0;
    let start = bench.now.at;
    while bench.now.at.held_since(start) < seconds(20.0) {
        if let Some(Action::Write(id, _)) = bench.request.clone() {
            writes += 1;
            bench.request = None;
            bench.event(Event::Reply(id, Reply::Written(Ok(Outcome::Conflict))));
        } else if bench.is_reading() {
            bench.reply();
        } else {
            bench.pass(seconds(0.1));
        }
    }
    assert!((3..=12).contains(&writes), "{writes} writes in 20 s");
}

#[test]
fn a_late_success_after_a_deletion_starts_nothing() {
    let mut bench = Bench::holding_what(settings(), |bench| bench.store(held_by("other_1")));
    bench.settle();
    bench.pass(seconds(15.1));
    let (id, reply) = bench.carry_out();
    let deleted = bench.delete();
    bench.event(Event::Changed(Change::Deleted(deleted)));
    bench.event(Event::Reply(id, reply));
    assert_eq!(
        bench.starts(),
        0,
        "an answer older than the deletion started a term"
    );
    bench.store(held_by("other_2"));
    bench.settle();
    assert_eq!(bench.starts(), 0);
}
