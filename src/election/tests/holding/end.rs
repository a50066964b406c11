//! How a term ends: by signals, deadlines and survivors, and with which release.

use super::*;

#[test]
fn a_release_empties_the_record_as_client_go_does() {
    let mut bench = Bench::running(settings());
    bench.pass(seconds(2.0));
    bench.settle();
    let last = bench.stored.clone().expect("stored").record;
    bench.pass(seconds(1.5));
    end(&mut bench);
    bench.settle();
    let expected = Record {
        holder: None,
        duration: Some(seconds(1.0)),
        acquire_time: Some(bench.now.wall),
        renew_time: Some(bench.now.wall),
        transitions: last.transitions,
        strategy: None,
    };
    assert_eq!(bench.stored.expect("stored").record, expected);
}

#[test]
fn a_refused_release_is_told_and_not_tried_again() {
    let mut bench = Bench::running(settings());
    end(&mut bench);
    bench.refuse_reply(FailureKind::Forbidden);
    assert_eq!(bench.exit(), Some(Exit::Command(0)));
    let told = |action: &Action| matches!(action, Action::Report(Report::NotReleased { message, .. }) if message == "Forbidden");
    assert_eq!(bench.did(told), 1);
}

#[test]
fn attempts_at_a_release_keep_their_distance() {
    for (lease, pause) in [(15, 1.0), (3, 0.2)] {
        let requested = Requested {
            lease_duration: Some(Duration::from_secs(lease)),
            ..Requested::default()
        };
        let mut bench = Bench::running(Settings {
            timing: Timing::new(requested).expect("safe"),
            ..settings()
        });
        end(&mut bench);
        for _ in 0..3 {
            assert!(bench.request.is_some());
            bench.lose_reply(false);
            bench.pass(seconds(pause - 0.01));
            assert!(bench.request.is_none(), "too soon at {lease} s");
            bench.pass(seconds(0.02));
        }
    }
}

#[test]
fn a_signal_that_does_not_ask_to_end_starts_no_count() {
    let mut bench = Bench::running(Settings {
        kill_after: Some(seconds(3.0)),
        ..settings()
    });
    let signal = |signal, ends| Event::Signalled { signal, ends };
    bench.event(signal(10, false));
    for _ in 0..3 {
        bench.pass(seconds(2.0));
        bench.settle();
    }
    assert_eq!(bench.kills(), 0);
    bench.event(signal(15, true));
    bench.pass(seconds(2.0));
    bench.settle();
    assert_eq!(bench.kills(), 0);
    bench.pass(seconds(1.1));
    assert_eq!(bench.kills(), 1);
}

#[test]
fn the_grace_of_a_loss_is_not_prolonged_by_a_late_renewal() {
    let mut bench = Bench::running(settings());
    let start = bench.now.at;
    let is_over = |bench: &Bench| bench.did(|action| matches!(action, Action::Terminate)) > 0;
    while !is_over(&bench) {
        if bench.request.is_some() && bench.now.at.held_since(start) < seconds(9.0) {
            bench.lose_reply(false);
        }
        bench.pass(seconds(0.01));
    }
    // The last renewal succeeds after all.
    bench.settle();
    bench.take_actions();
    bench.pass(seconds(2.9));
    bench.settle();
    assert_eq!(bench.kills(), 0);
    bench.pass(seconds(0.1));
    assert_eq!(bench.kills(), 1, "the command was told to end long ago");
    assert_eq!(
        bench.did(|action| matches!(action, Action::Extend { .. })),
        0
    );
}

#[test]
fn what_the_guard_had_to_end_at_its_deadline_is_a_loss_whoever_saw_it_first() {
    // Front has renewed, and the guard was too slow to hear of it; or front was slow too.
    for slept in [0.0, 13.0] {
        let mut bench = Bench::running(settings());
        bench.jump(seconds(slept));
        bench.event(Event::Overdue);
        let is_lost = |action: &Action| matches!(action, Action::Report(Report::Lost { .. }));
        assert_eq!(bench.did(is_lost), 1);
        bench.event(Event::TreeGone);
        bench.settle();
        assert_eq!(bench.exit(), Some(Exit::Lost));
        assert_eq!(bench.holder(), None);
    }
}

#[test]
fn survivors_of_the_last_kill_end_the_waiting() {
    let mut bench = Bench::running(settings());
    while bench.kills() == 0 {
        if bench.request.is_some() {
            bench.lose_reply(false);
        }
        bench.pass(seconds(0.1));
    }
    assert_eq!(bench.exit(), None);
    bench.event(Event::TreeStuck {
        survivors: "pid 7".to_owned(),
    });
    assert_eq!(bench.exit(), Some(Exit::Survivors));
    assert_eq!(bench.holder(), Some("me_1"), "released under a survivor");
}

#[test]
fn a_command_that_ends_at_the_moment_of_the_loss_is_lost() {
    let mut bench = Bench::running(settings());
    bench.store(held_by("other_1"));
    bench.notice();
    end(&mut bench);
    assert_eq!(bench.exit(), Some(Exit::Lost));
}

#[test]
fn it_holds_from_the_answer_until_the_exit() {
    let mut bench = Bench::new(settings());
    assert!(!bench.election.holds());
    bench.settle();
    assert!(bench.election.holds());
    end(&mut bench);
    assert!(bench.election.holds());
    bench.settle();
    assert!(!bench.election.holds());
}

fn requests(bench: &Bench) -> usize {
    bench.did(|action| matches!(action, Action::Read(_) | Action::Write(..)))
}

/// Why the lease was not released, and when others may take it, if that was told.
fn not_released(bench: &Bench) -> Option<(String, Duration)> {
    bench.actions.iter().find_map(|action| match action {
        Action::Report(Report::NotReleased { message, left }) => Some((message.clone(), *left)),
        _ => None,
    })
}

#[test]
fn a_release_that_meets_conflicts_looks_at_once_and_then_keeps_its_distance() {
    let mut bench = Bench::running(settings());
    end(&mut bench);
    bench.take_actions();
    let start = bench.now.at;
    while bench.exit().is_none() {
        assert!(requests(&bench) < 100, "hammers the server");
        if let Some(Action::Write(id, _)) = bench.request.clone() {
            bench.request = None;
            bench.event(Event::Reply(id, Reply::Written(Ok(Outcome::Conflict))));
        } else if bench.is_reading() {
            bench.reply();
        } else {
            if bench.now.at == start {
                assert_eq!(requests(&bench), 2, "a look and a second attempt");
            }
            bench.pass(seconds(0.1));
        }
    }
    // Each second a look and an attempt.
    assert_eq!(requests(&bench), 2 + 4 * 2);
    let (message, _) = not_released(&bench).expect("told");
    assert_eq!(message, "each attempt meets a conflict");
}

#[test]
fn an_answer_that_is_not_our_release_is_looked_up_and_no_renewal() {
    type Answer = fn(&mut Bench, Record);
    let unchanged: Answer = |_, _| {};
    let put_back: Answer = |bench, record| {
        let before = bench.stored.clone().expect("stored").record;
        bench.store(Record {
            holder: before.holder,
            duration: before.duration,
            ..record
        });
    };
    let still_held: Answer = |bench, record| {
        let holder = Some(identity("me_1"));
        bench.store(Record { holder, ..record });
    };
    for (what, answer, duration) in [
        ("unchanged", unchanged, D),
        ("put back", put_back, D),
        ("still held", still_held, seconds(1.0)),
    ] {
        let mut bench = Bench::running(settings());
        let sent = bench.now.at;
        bench.pass(seconds(2.0));
        bench.lose_reply(false);
        end(&mut bench);
        bench.take_actions();
        while bench.exit().is_none() {
            assert!(requests(&bench) < 100, "{what}: hammers the server");
            if let Some(Action::Write(id, write)) = bench.request.clone() {
                bench.request = None;
                answer(&mut bench, write.record);
                let claim = bench.answer().expect("stored");
                let reply = Reply::Written(Ok(Outcome::Written(claim)));
                bench.event(Event::Reply(id, reply));
            } else if bench.is_reading() {
                bench.reply();
            } else {
                bench.pass(seconds(0.1));
            }
        }
        let (message, left) = not_released(&bench).expect("told");
        assert!(message.contains("something else"), "{what}: {message}");
        let held = bench.now.at.held_since(sent);
        assert_eq!(left, duration.saturating_sub(held), "{what}");
        let renewed = bench.did(|action| matches!(action, Action::Report(Report::Renewed)));
        assert_eq!(renewed, 0, "{what}");
    }
}

#[test]
fn a_release_that_is_undone_once_is_tried_again() {
    let mut bench = Bench::running(settings());
    let before = bench.stored.clone().expect("stored").record;
    end(&mut bench);
    let (id, _) = bench.carry_out();
    bench.store(before);
    let claim = bench.answer().expect("stored");
    bench.event(Event::Reply(
        id,
        Reply::Written(Ok(Outcome::Written(claim))),
    ));
    bench.pass(seconds(1.1));
    bench.settle();
    assert_eq!(bench.holder(), None);
    assert_eq!(bench.exit(), Some(Exit::Command(0)));
    assert_eq!(not_released(&bench), None);
}

#[test]
fn a_release_whose_answer_makes_no_sense_is_looked_up() {
    let mut bench = Bench::running(settings());
    end(&mut bench);
    bench.fail_reply(true, FailureKind::Malformed, None);
    bench.pass(seconds(1.1));
    bench.settle();
    assert_eq!(not_released(&bench), None);
    let released = bench.did(|action| matches!(action, Action::Report(Report::Released)));
    assert_eq!(released, 1);
    assert_eq!(bench.exit(), Some(Exit::Command(0)));
}

#[test]
fn a_loss_by_a_shortened_duration_says_so() {
    for (duration, reason) in [
        (
            Some(seconds(3.0)),
            "no renewal has succeeded for 2s, and somebody has shortened the duration to 3s",
        ),
        (
            None,
            "no renewal has succeeded for 2s, and somebody has removed the duration",
        ),
        (Some(D), "no renewal has succeeded for 10s"),
    ] {
        let mut bench = Bench::running(settings());
        let record = bench.stored.clone().expect("stored").record;
        bench.store(Record { duration, ..record });
        bench.pass(seconds(2.0));
        bench.reply();
        bench.reply();
        // The next renewal is not answered.
        bench.pass(seconds(8.0));
        let told = bench.actions.iter().find_map(|action| match action {
            Action::Report(Report::Lost { reason, .. }) => Some(reason.clone()),
            _ => None,
        });
        assert_eq!(told.as_deref(), Some(reason), "{duration:?}");
    }
}
