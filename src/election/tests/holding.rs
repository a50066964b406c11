use super::*;

mod end;
mod news;
mod stamps;

/// Ends the command by itself with code 0.
pub(super) fn end(bench: &mut Bench) {
    let at = bench.now.at;
    bench.event(Event::Ended {
        exit: Exit::Command(0),
        at,
    });
    bench.event(Event::TreeGone);
}

#[test]
fn renewals_go_out_a_retry_period_after_the_last_was_sent() {
    let mut bench = Bench::running(settings());
    bench.pass(seconds(2.0));
    for _ in 0..5 {
        assert!(bench.is_writing(), "late");
        let sent = bench.now.at;
        bench.jump(seconds(0.3));
        bench.reply();
        let extended = bench.actions.iter().rev().find_map(|action| match action {
            Action::Extend { sent, .. } => Some(*sent),
            _ => None,
        });
        assert_eq!(
            extended,
            Some(sent),
            "the term does not count from before the send"
        );
        bench.pass(seconds(1.6));
        assert!(!bench.is_writing(), "early");
        bench.pass(seconds(0.1));
    }
}

#[test]
fn every_stamp_is_new_and_in_a_new_second_also_when_the_wall_clock_steps_back() {
    let mut bench = Bench::running(settings());
    let mut last = bench
        .stored
        .as_ref()
        .and_then(|claim| claim.record.renew_time);
    for _ in 0..5 {
        bench.now.wall.unix_micros -= 3_600_000_000;
        bench.pass(seconds(2.1));
        bench.settle();
        let stamp = bench
            .stored
            .as_ref()
            .and_then(|claim| claim.record.renew_time);
        assert!(stamp.map(WallTime::unix_seconds) > last.map(WallTime::unix_seconds));
        last = stamp;
    }
}

#[test]
fn a_holder_that_cannot_renew_ends_its_command_in_time() {
    let mut bench = Bench::running(settings());
    let start = bench.now.at;
    let mut terminated = None;
    let mut killed = None;
    while bench.now.at.held_since(start) < seconds(14.0) {
        if bench.request.is_some() {
            bench.lose_reply(false);
        }
        bench.pass(seconds(0.01));
        let held = bench.now.at.held_since(start);
        if terminated.is_none() && bench.did(|action| matches!(action, Action::Terminate)) > 0 {
            terminated = Some(held);
        }
        if killed.is_none() && bench.kills() > 0 {
            killed = Some(held);
        }
    }
    let terminated = terminated.expect("SIGTERM");
    let killed = killed.expect("SIGKILL");
    assert!(
        (seconds(9.99)..seconds(10.02)).contains(&terminated),
        "{terminated:?}"
    );
    assert!(
        (seconds(12.95)..seconds(12.99)).contains(&killed),
        "{killed:?}"
    );
    bench.event(Event::TreeGone);
    for _ in 0..20 {
        if bench.request.is_some() {
            bench.lose_reply(false);
        }
        bench.pass(seconds(1.0));
    }
    assert_eq!(bench.exit(), Some(Exit::Lost));
}

#[test]
fn a_holder_uses_the_faster_clock() {
    let mut bench = Bench::running(settings());
    // A suspend: only CLOCK_BOOTTIME went on.
    bench.now.at.boot += seconds(13.0);
    bench.event(Event::Wake);
    assert_eq!(bench.kills(), 1);
}

#[test]
fn after_a_pause_the_deadline_comes_before_the_good_news() {
    let mut bench = Bench::running(settings());
    bench.pass(seconds(2.1));
    assert!(bench.is_writing());
    bench.jump(seconds(20.0));
    bench.reply();
    assert_eq!(
        bench.kills(),
        1,
        "a late answer revived a term that was over"
    );
    assert_eq!(
        bench.did(|action| matches!(action, Action::Extend { .. })),
        0
    );
}

#[test]
fn a_lost_answer_counts_from_the_write_that_it_belonged_to() {
    let mut bench = Bench::running(settings());
    bench.pass(seconds(2.1));
    let first = bench.now.at;
    bench.jump(seconds(2.0));
    bench.lose_reply(true);
    assert!(
        bench.is_reading(),
        "does not look at once what became of its write"
    );
    bench.reply();
    let extended = bench
        .take_actions()
        .into_iter()
        .find_map(|action| match action {
            Action::Extend { sent, .. } => Some(sent),
            _ => None,
        });
    let extended = extended.expect("the write had been carried out");
    assert!(
        first.held_since(extended) < seconds(0.2),
        "{extended:?} {first:?}"
    );
    assert!(
        bench.now.at.held_since(extended) >= seconds(2.0),
        "counted from the answer"
    );
}

#[test]
fn a_conflict_by_our_own_repeated_write_is_no_loss() {
    let mut bench = Bench::running(settings());
    bench.pass(seconds(2.1));
    // Something in between sends the write twice: the second is answered.
    let Some(Action::Write(id, _)) = bench.request.clone() else {
        panic!("no write")
    };
    bench.carry_out();
    bench.event(Event::Reply(id, Reply::Written(Ok(Outcome::Conflict))));
    bench.settle();
    assert_eq!(bench.kills(), 0);
    assert_eq!(
        bench.did(|action| matches!(action, Action::Extend { .. })),
        1
    );
}

#[test]
fn a_foreign_holder_a_deletion_and_a_new_object_are_losses_without_grace() {
    type Edit = fn(&mut Bench);
    let edits: [(&str, Edit); 4] = [
        ("foreign holder, watched", |bench| {
            bench.store(held_by("other_1"));
            bench.notice();
        }),
        ("deleted, watched", |bench| {
            let deleted = bench.delete();
            bench.event(Event::Changed(Change::Deleted(deleted)));
        }),
        ("foreign holder, found by a conflict", |bench| {
            bench.store(held_by("other_1"));
            bench.pass(seconds(2.1));
            bench.settle();
        }),
        ("made again, found by a conflict", |bench| {
            bench.delete();
            bench.store(held_by("me_1"));
            bench.pass(seconds(2.1));
            bench.settle();
        }),
    ];
    for (what, edit) in edits {
        let mut bench = Bench::running(settings());
        edit(&mut bench);
        assert_eq!(bench.kills(), 1, "{what}");
        assert_eq!(
            bench.did(|action| matches!(action, Action::Terminate)),
            0,
            "{what}"
        );
        let stored = bench.stored.clone();
        bench.pass(seconds(1.0));
        assert!(bench.request.is_none(), "{what}: wrote after the loss");
        bench.event(Event::TreeGone);
        assert_eq!(bench.exit(), Some(Exit::Lost), "{what}");
        assert_eq!(bench.stored, stored, "{what}: the record was touched");
    }
}

#[test]
fn an_edit_that_leaves_us_in_place_is_no_loss() {
    let mut bench = Bench::running(settings());
    let record = bench.stored.clone().expect("stored").record;
    bench.store(record);
    bench.notice();
    bench.pass(seconds(2.1));
    bench.settle();
    assert_eq!(bench.kills(), 0);
    assert_eq!(
        bench.did(|action| matches!(action, Action::Extend { .. })),
        1
    );
}

#[test]
fn a_duration_that_somebody_shortened_counts_from_our_last_write() {
    let mut bench = Bench::running(settings());
    let record = bench.stored.clone().expect("stored").record;
    bench.store(Record {
        duration: Some(seconds(5.0)),
        ..record
    });
    bench.pass(seconds(2.0));
    // The renewal meets the edit, and so does the look at it; then the server hangs.
    bench.reply();
    bench.reply();
    bench.pass(seconds(0.9));
    assert_eq!(bench.kills(), 0);
    bench.pass(seconds(0.2));
    assert_eq!(bench.kills(), 1, "others may take over at 5 s");
}

#[test]
fn a_duration_that_somebody_removed_is_a_loss_because_others_see_it_run_out() {
    let mut bench = Bench::running(settings());
    let record = bench.stored.clone().expect("stored").record;
    bench.store(Record {
        duration: None,
        ..record
    });
    bench.pass(seconds(2.0));
    bench.reply();
    bench.reply();
    assert_eq!(bench.kills(), 1);
}

#[test]
fn a_version_that_goes_back_is_a_loss() {
    let mut bench = Bench::running(settings());
    bench.pass(seconds(2.0));
    let backup = bench.stored.clone().expect("stored");
    bench.settle();
    bench.stored = Some(backup);
    bench.pass(seconds(2.1));
    bench.settle();
    assert_eq!(bench.kills(), 1);
}

#[test]
fn renewals_go_on_while_the_command_drains_and_end_when_its_tree_is_gone() {
    let mut bench = Bench::running(settings());
    bench.event(Event::Signalled {
        signal: 15,
        ends: true,
    });
    for _ in 0..10 {
        bench.pass(seconds(2.0));
        assert!(
            bench.is_writing(),
            "does not renew while the command drains"
        );
        bench.settle();
    }
    let at = bench.now.at;
    bench.event(Event::Ended {
        exit: Exit::Command(3),
        at,
    });
    assert_eq!(
        bench.holder(),
        Some("me_1"),
        "released before the tree was gone"
    );
    bench.event(Event::TreeGone);
    bench.settle();
    assert_eq!(bench.holder(), None);
    assert_eq!(bench.exit(), Some(Exit::Command(3)));
    let transitions = bench.stored.as_ref().map(|claim| claim.record.transitions);
    assert_eq!(transitions, Some(0), "a release keeps the transitions");
}

#[test]
fn a_release_waits_for_the_renewal_that_is_under_way() {
    for (carried_out, answered) in [(true, true), (true, false), (false, false)] {
        let mut bench = Bench::running(settings());
        bench.pass(seconds(2.0));
        assert!(bench.is_writing());
        end(&mut bench);
        assert_eq!(bench.exit(), None);
        if answered {
            bench.reply();
        } else {
            bench.lose_reply(carried_out);
        }
        bench.pass(seconds(1.1));
        bench.settle();
        assert_eq!(bench.holder(), None, "{carried_out} {answered}");
        assert_eq!(bench.exit(), Some(Exit::Command(0)));
    }
}

#[test]
fn a_release_never_touches_a_strangers_record() {
    let mut bench = Bench::running(settings());
    bench.store(held_by("other_1"));
    let stored = bench.stored.clone();
    end(&mut bench);
    bench.settle();
    assert_eq!(bench.stored, stored);
    assert_eq!(bench.exit(), Some(Exit::Command(0)));
}

#[test]
fn a_release_whose_answer_is_lost_is_looked_up() {
    let mut bench = Bench::running(settings());
    end(&mut bench);
    bench.lose_reply(true);
    bench.pass(seconds(1.1));
    bench.settle();
    assert_eq!(
        bench.did(|action| matches!(action, Action::Report(Report::Released))),
        1
    );
    assert_eq!(bench.exit(), Some(Exit::Command(0)));
}

#[test]
fn a_release_is_given_up_after_a_few_seconds_whatever_the_durations() {
    let requested = Requested {
        lease_duration: Some(seconds(180.0)),
        ..Requested::default()
    };
    let slow = Settings {
        timing: Timing::new(requested).expect("safe"),
        ..settings()
    };
    for settings in [settings(), slow] {
        for hangs in [true, false] {
            let mut bench = Bench::running(settings.clone());
            end(&mut bench);
            let start = bench.now.at;
            while bench.exit().is_none() {
                if bench.request.is_some() && !hangs {
                    bench.lose_reply(false);
                }
                bench.pass(seconds(0.1));
            }
            let waited = bench.now.at.held_since(start);
            assert!((seconds(4.9)..seconds(5.2)).contains(&waited), "{waited:?}");
            assert_eq!(bench.exit(), Some(Exit::Command(0)));
            let requests =
                bench.did(|action| matches!(action, Action::Read(_) | Action::Write(..)));
            assert!(hangs || requests >= 2 + 4, "only {requests} requests");
        }
    }
}

#[test]
fn a_command_that_ended_before_the_loss_keeps_its_code() {
    let mut bench = Bench::running(settings());
    let at = bench.now.at;
    bench.event(Event::Ended {
        exit: Exit::Command(0),
        at,
    });
    bench.jump(seconds(0.1));
    bench.store(held_by("other_1"));
    bench.notice();
    bench.event(Event::TreeGone);
    assert_eq!(bench.exit(), Some(Exit::Command(0)));
}

#[test]
fn a_command_that_ends_well_because_of_the_loss_is_lost_all_the_same() {
    let mut bench = Bench::running(settings());
    bench.store(held_by("other_1"));
    bench.notice();
    bench.jump(seconds(0.1));
    end(&mut bench);
    assert_eq!(bench.exit(), Some(Exit::Lost));
}

#[test]
fn a_tree_that_cannot_be_proven_dead_is_renewed_for_and_never_released() {
    let mut bench = Bench::running(settings());
    bench.event(Event::TreeStuck {
        survivors: "pid 7".to_owned(),
    });
    for _ in 0..5 {
        bench.pass(seconds(2.0));
        assert!(bench.is_writing(), "does not renew for a survivor");
        bench.settle();
    }
    assert_eq!(bench.exit(), None);
    bench.store(held_by("other_1"));
    bench.notice();
    assert_eq!(bench.exit(), Some(Exit::Survivors));
    assert_eq!(bench.holder(), Some("other_1"));
}

#[test]
fn kill_after_counts_from_the_first_signal_that_asks_to_end() {
    let mut bench = Bench::running(Settings {
        kill_after: Some(seconds(3.0)),
        ..settings()
    });
    bench.event(Event::Signalled {
        signal: 10,
        ends: false,
    });
    bench.event(Event::Signalled {
        signal: 15,
        ends: true,
    });
    for _ in 0..2 {
        bench.pass(seconds(1.4));
        bench.settle();
        bench.event(Event::Signalled {
            signal: 15,
            ends: true,
        });
    }
    assert_eq!(bench.kills(), 0);
    bench.pass(seconds(0.3));
    assert_eq!(bench.kills(), 1);
    let reason = KillReason::KillAfter {
        after: seconds(3.0),
        signal: 15,
    };
    let is_said = |action: &Action| *action == Action::Report(Report::Killing(reason));
    assert_eq!(bench.did(is_said), 1);
    let at = bench.now.at;
    bench.event(Event::Ended {
        exit: Exit::Signal(9),
        at,
    });
    bench.event(Event::TreeGone);
    bench.settle();
    assert_eq!(
        bench.exit(),
        Some(Exit::Signal(9)),
        "an ordered kill is no loss"
    );
}

#[test]
fn a_command_that_does_not_start_leaves_a_free_lease() {
    let cases = [
        (NotStarted::NoAnswer, Exit::Internal),
        (
            NotStarted::Refused(Exit::NotExecutable, "no".to_owned()),
            Exit::NotExecutable,
        ),
        (NotStarted::Cancelled(15), Exit::Signal(15)),
        (NotStarted::TooLate, Exit::Lost),
    ];
    for (reason, exit) in cases {
        let mut bench = Bench::running(settings());
        bench.event(Event::NotStarted(reason));
        bench.settle();
        assert_eq!(bench.exit(), Some(exit));
        assert_eq!(bench.holder(), None);
    }
}

#[test]
fn a_dead_guard_ends_us_and_releases_only_on_proof() {
    let mut bench = Bench::running(settings());
    bench.event(Event::TreeStuck {
        survivors: "pid 7".to_owned(),
    });
    bench.pass(seconds(2.0));
    assert!(bench.is_writing(), "does not renew for a survivor");
    bench.settle();
    assert_eq!(bench.exit(), None);
    bench.event(Event::GuardDied("the guard died".to_owned()));
    bench.settle();
    assert_eq!(bench.exit(), Some(Exit::Internal));
    assert_eq!(bench.holder(), None);
}

#[test]
fn missing_rights_while_holding_are_borne_until_the_deadline() {
    let mut bench = Bench::running(settings());
    bench.pass(seconds(2.0));
    bench.refuse_reply(FailureKind::Forbidden);
    assert_eq!(bench.kills(), 0);
    bench.pass(seconds(1.1));
    bench.settle();
    assert_eq!(
        bench.did(|action| matches!(action, Action::Report(Report::Renewed))),
        1
    );
}

#[test]
fn a_servers_wish_to_wait_is_heard_only_if_there_is_time() {
    for (wish, waits) in [(3.0, true), (600.0, false)] {
        let mut bench = Bench::running(settings());
        bench.pass(seconds(2.0));
        bench.fail_reply(false, FailureKind::Unreachable, Some(seconds(wish)));
        bench.pass(seconds(1.1));
        assert_eq!(bench.request.is_none(), waits, "{wish} s");
    }
}

#[test]
fn nothing_follows_the_exit() {
    let mut bench = Bench::running(settings());
    end(&mut bench);
    bench.settle();
    assert!(bench.exit().is_some());
    bench.take_actions();
    bench.pass(seconds(60.0));
    bench.event(Event::Wake);
    assert!(bench.actions.is_empty());
    assert_eq!(bench.election.deadline(bench.now), None);
}
