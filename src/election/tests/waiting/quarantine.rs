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
    bench.pass(seconds(1.0));
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

/// A wait that a quarantine of 15 s outlasts.
fn impatient() -> Settings {
    Settings {
        wait: Some(seconds(14.0)),
        ..careful()
    }
}

#[test]
fn a_wait_that_ends_before_the_quarantine_keeps_nobody_out() {
    let mut bench = Bench::holding_what(impatient(), |bench| bench.store(Record::default()));
    bench.settle();
    assert_eq!(bench.holder(), None, "holds a lease that it can't use");
    assert_eq!(bench.exit(), Some(Exit::Conflict(75)));
}

#[test]
fn a_wait_that_is_longer_than_what_is_left_of_the_quarantine_takes_the_lease() {
    let patient = Settings {
        wait: Some(seconds(20.0)),
        ..careful()
    };
    let mut bench = Bench::holding_what(patient, |bench| bench.store(held_by("other_1")));
    bench.settle();
    watch_a_holder(&mut bench, 2);
    release(&mut bench);
    bench.pass(seconds(11.1));
    bench.settle();
    assert_eq!(bench.starts(), 1);
}

#[test]
fn a_short_wait_will_do_for_an_object_that_the_servers_clock_shows_to_be_old() {
    let trusting = Settings {
        server_clock_skew: Some(seconds(5.0)),
        ..impatient()
    };
    let mut bench = Bench::holding_what(trusting, |bench| {
        bench.store(held_by("other_1"));
        bench.jump(seconds(21.0));
        bench.stored.as_mut().expect("stored").record = Record::default();
    });
    bench.settle();
    assert_eq!(bench.starts(), 1);
}

#[test]
fn the_age_of_an_object_that_was_read_counts_when_the_watch_shows_it_free() {
    let trusting = Settings {
        server_clock_skew: Some(seconds(5.0)),
        ..impatient()
    };
    let mut bench = Bench::holding_what(trusting, |bench| {
        bench.store(held_by("other_1"));
        bench.jump(seconds(19.0));
    });
    bench.settle();
    assert_eq!(bench.holder(), Some("other_1"));
    bench.pass(seconds(1.5));
    // No event of a watch has an age.
    bench.store(Record::default());
    bench.notice();
    bench.settle();
    assert_eq!(bench.starts(), 1);
}

#[test]
fn an_absent_lease_is_made_though_the_wait_is_short_so_that_it_grows_old() {
    let mut bench = Bench::new(impatient());
    bench.settle();
    assert_eq!(bench.holder(), Some("me_1"));
    bench.pass(seconds(14.1));
    bench.settle();
    assert_eq!(bench.holder(), None);
    assert_eq!(bench.exit(), Some(Exit::Conflict(75)));
}
