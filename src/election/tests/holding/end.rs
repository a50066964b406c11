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
