//! From when a quarantine counts: from the first sight of the object that is there now.

use super::*;

/// Who trusts its own observation alone.
fn careful() -> Settings {
    Settings {
        create: Create::Quarantine,
        server_clock_skew: None,
        ..settings()
    }
}

/// Lets somebody hold the lease for a while, seen by the watch.
fn watch_a_holder(bench: &mut Bench, renewals: u32) {
    for _ in 0..renewals {
        bench.pass(seconds(2.0));
        bench.store(held_by("other_1"));
        bench.notice();
    }
}

fn release(bench: &mut Bench) {
    bench.store(Record::default());
    bench.notice();
    bench.settle();
    assert_eq!(bench.holder(), Some("me_1"));
}

#[test]
fn an_object_that_was_watched_for_long_needs_no_quarantine() {
    let mut bench = Bench::holding_what(careful(), |bench| bench.store(held_by("other_1")));
    bench.settle();
    watch_a_holder(&mut bench, 10);
    release(&mut bench);
    assert_eq!(bench.starts(), 1);
}

#[test]
fn an_object_made_again_unseen_is_young() {
    let mut bench = Bench::holding_what(careful(), |bench| bench.store(held_by("other_1")));
    bench.settle();
    watch_a_holder(&mut bench, 10);
    bench.delete();
    watch_a_holder(&mut bench, 1);
    release(&mut bench);
    assert_eq!(
        bench.starts(),
        0,
        "the deleted lease's holder may still run"
    );
}

#[test]
fn an_object_made_again_grows_old_in_its_turn() {
    let mut bench = Bench::holding_what(careful(), |bench| bench.store(held_by("other_1")));
    bench.settle();
    bench.delete();
    watch_a_holder(&mut bench, 10);
    release(&mut bench);
    assert_eq!(bench.starts(), 1);
}

#[test]
fn our_own_object_made_late_is_young() {
    let mut bench = Bench::new(careful());
    bench.reply();
    let late = bench.request.clone();
    bench.lose_reply(false);
    // Somebody else's create is carried out first, and ours once their object is deleted unseen.
    bench.store(held_by("other_1"));
    bench.notice();
    bench.pass(seconds(2.5));
    bench.settle();
    watch_a_holder(&mut bench, 10);
    bench.delete();
    bench.request = late;
    bench.carry_out();
    assert_eq!(bench.holder(), Some("me_1"));
    bench.pass(seconds(15.1));
    bench.settle();
    assert!(bench.election.holds(), "did not recognise its own write");
    assert_eq!(
        bench.starts(),
        0,
        "the deleted lease's holder may still run"
    );
}

#[test]
fn the_quarantine_is_for_the_longest_duration_that_was_seen() {
    let requested = Requested {
        lease_duration: Some(seconds(3.0)),
        ..Requested::default()
    };
    let quick = Settings {
        timing: Timing::new(requested).expect("safe"),
        ..careful()
    };
    let mut bench = Bench::holding_what(quick, |bench| bench.store(held_by("other_1")));
    bench.settle();
    watch_a_holder(&mut bench, 2);
    let deleted = bench.delete();
    bench.event(Event::Changed(Change::Deleted(deleted)));
    bench.settle();
    assert_eq!(bench.holder(), Some("me_1"));
    for _ in 0..14 {
        bench.pass(seconds(1.0));
        bench.settle();
        assert_eq!(bench.starts(), 0, "the holder for 15 s may still run");
    }
    bench.pass(seconds(1.1));
    bench.settle();
    assert_eq!(bench.starts(), 1);
}
