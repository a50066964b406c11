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
