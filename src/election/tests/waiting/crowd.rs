//! What a candidate does about the others who wait for the same lease.

use super::*;

/// The widest window, at a retry period of 2 s.
const WIDEST: Duration = Duration::from_millis(500);

/// The longest that the watch is given to tell what a conflict was about.
const PATIENCE: Duration = Duration::from_secs(1);

fn waiting(settings: Settings) -> Bench {
    let mut bench = Bench::holding_what(settings, |bench| bench.store(held_by("other_1")));
    bench.settle();
    assert!(bench.watching);
    bench
}

fn with_seed(seed: u64) -> Settings {
    Settings { seed, ..settings() }
}

/// Somebody releases the lease, and the watch says so.
fn release(bench: &mut Bench) {
    bench.store(Record::default());
    bench.notice();
}

/// Loses the race for a released lease to somebody: the attempt under way, or the one to come, meets
/// a conflict, and then the watch tells who has won.
fn lose_to(bench: &mut Bench, winner: &str) {
    release(bench);
    bench.pass(WIDEST);
    assert!(bench.is_writing(), "no attempt before {winner} has won");
    bench.store(held_by(winner));
    bench.reply();
    bench.notice();
    assert!(bench.request.is_none(), "asks what it was told");
}

/// A candidate that has lost two races; it has met a crowd.
fn crowded(settings: Settings) -> Bench {
    let mut bench = waiting(settings);
    lose_to(&mut bench, "other_2");
    lose_to(&mut bench, "other_3");
    bench
}

/// How long it waits before it tries to take what is now to be had.
fn delay(bench: &Bench) -> Duration {
    if bench.is_writing() {
        return Duration::ZERO;
    }
    let delay = bench.election.deadline(bench.now);
    delay.expect("it tries at some time")
}

/// The longest delay of many candidates with this past.
fn longest_delay(past: impl Fn(&mut Bench)) -> Duration {
    let delays = (0..200).map(|seed| {
        let mut bench = waiting(with_seed(seed));
        past(&mut bench);
        release(&mut bench);
        delay(&bench)
    });
    delays.max().expect("some")
}

#[test]
fn who_has_lost_one_race_still_tries_at_once() {
    for seed in 0..100 {
        let mut bench = waiting(with_seed(seed));
        release(&mut bench);
        assert!(bench.is_writing(), "never lost a race");
        bench.store(held_by("other_2"));
        bench.reply();
        bench.notice();
        release(&mut bench);
        assert!(bench.is_writing(), "one rival held the lease, and is gone");
    }
}

#[test]
fn the_window_opens_with_the_second_lost_race_and_grows_up_to_a_limit() {
    for (races, low, high) in [(2, 0.22, 0.25), (3, 0.44, 0.5), (9, 0.44, 0.5)] {
        let longest = longest_delay(|bench| {
            for _ in 0..races {
                lose_to(bench, "other_2");
            }
        });
        let expected = seconds(low)..=seconds(high);
        assert!(expected.contains(&longest), "{races} races: {longest:?}");
    }
}

#[test]
fn candidates_that_have_met_a_crowd_try_apart() {
    let mut delays = Vec::new();
    for seed in 0..50 {
        let mut bench = crowded(with_seed(seed));
        release(&mut bench);
        delays.push(delay(&bench));
    }
    delays.sort();
    delays.dedup();
    assert_eq!(delays.len(), 50);
    // Evenly: half of them in half of the window.
    let early = delays.iter().filter(|delay| **delay < WIDEST / 4).count();
    assert!((15..=35).contains(&early), "{delays:?}");
}

#[test]
fn the_window_is_never_more_than_a_small_part_of_the_retry_period() {
    let requested = Requested {
        lease_duration: Some(seconds(1.0)),
        ..Requested::default()
    };
    let timing = Timing::new(requested).expect("safe");
    let mut longest = Duration::ZERO;
    for seed in 0..100 {
        let mut bench = crowded(Settings {
            timing,
            ..with_seed(seed)
        });
        lose_to(&mut bench, "other_4");
        release(&mut bench);
        longest = longest.max(delay(&bench));
    }
    let limit = timing.retry_period / 4;
    assert!(limit * 9 / 10 < longest && longest <= limit, "{longest:?}");
}

#[test]
fn an_attempt_is_made_when_its_moment_comes_and_not_before() {
    let mut bench = crowded(settings());
    release(&mut bench);
    let delay = delay(&bench);
    assert!(!delay.is_zero());
    bench.jump(delay - Duration::from_nanos(1));
    bench.event(Event::Wake);
    assert!(bench.request.is_none());
    bench.jump(Duration::from_nanos(1));
    bench.event(Event::Wake);
    assert!(bench.is_writing());
    bench.settle();
    assert_eq!(bench.starts(), 1);
}

#[test]
fn an_attempt_is_given_up_when_the_watch_shows_a_new_holder() {
    let mut bench = crowded(settings());
    bench.take_actions();
    release(&mut bench);
    bench.store(held_by("other_4"));
    bench.notice();
    bench.pass(seconds(14.9));
    let requests = bench.did(|action| matches!(action, Action::Read(_) | Action::Write(..)));
    assert_eq!(requests, 0, "{:?}", bench.actions);
    // And the new holder is observed as any other.
    bench.pass(WIDEST + seconds(0.2));
    assert!(bench.is_writing());
}

#[test]
fn a_change_that_leaves_the_lease_free_puts_nothing_off() {
    let mut bench = crowded(settings());
    release(&mut bench);
    let moment = delay(&bench);
    bench.jump(moment / 2);
    release(&mut bench);
    assert_eq!(delay(&bench), moment - moment / 2);
}

#[test]
fn a_lease_that_was_deleted_or_has_run_out_is_left_to_the_crowd_as_well() {
    let mut bench = crowded(settings());
    let deleted = bench.delete();
    bench.event(Event::Changed(Change::Deleted(deleted)));
    assert!(bench.request.is_none());
    bench.pass(WIDEST);
    assert!(bench.is_writing());

    let mut bench = crowded(settings());
    bench.jump(seconds(15.0));
    bench.event(Event::Wake);
    assert!(bench.request.is_none());
    bench.pass(WIDEST);
    assert!(bench.is_writing());
    // It was renewed after all.
    bench.store(held_by("other_3"));
    bench.notice();
    bench.reply();
    assert!(bench.request.is_none());
    bench.pass(seconds(14.9));
    assert!(bench.request.is_none());
}

#[test]
fn one_attempt_and_the_end_of_a_wait_leave_nothing_to_the_crowd() {
    let patient = Settings {
        wait: Some(seconds(5.0)),
        ..settings()
    };
    for (left, waits) in [(1.0, true), (0.0005, false)] {
        let mut bench = crowded(patient.clone());
        let used = bench.now.at.held_since(Instant {
            boot: seconds(1000.0),
            raw: seconds(1000.0),
        });
        bench.pass(seconds(5.0 - left) - used);
        assert_eq!(bench.exit(), None);
        release(&mut bench);
        assert_eq!(bench.is_writing(), !waits, "{left} s are left");
        if waits {
            bench.pass(WIDEST);
        }
        bench.settle();
        assert_eq!(bench.starts(), 1, "{left} s are left");
    }
    let mut bench = Bench::holding_what(
        Settings {
            wait: Some(Duration::ZERO),
            ..settings()
        },
        |bench| bench.store(Record::default()),
    );
    bench.reply();
    for _ in 0..5 {
        assert!(bench.is_writing(), "one attempt waits");
        bench.store(Record::default());
        bench.reply();
        assert!(bench.is_reading(), "one attempt watches");
        bench.reply();
    }
    bench.settle();
    assert_eq!(bench.starts(), 1);
}

#[test]
fn a_window_that_turns_out_too_wide_is_narrowed_and_closed() {
    // Nobody takes the lease for so long: there is no crowd any more.
    let narrowings = |count: usize, gap: f64| {
        longest_delay(|bench| {
            lose_to(bench, "other_2");
            lose_to(bench, "other_3");
            for _ in 0..count {
                release(bench);
                if !bench.is_writing() {
                    // Its own moment may have come by then: it is late.
                    bench.jump(seconds(gap));
                    bench.store(held_by("other_4"));
                    bench.notice();
                }
            }
        })
    };
    let half = narrowings(1, 0.2);
    assert!((seconds(0.11)..=seconds(0.125)).contains(&half), "{half:?}");
    let same = narrowings(1, 0.18);
    assert!((seconds(0.22)..=seconds(0.25)).contains(&same), "{same:?}");
    assert_eq!(narrowings(4, 0.2), Duration::ZERO, "it is never closed");
}

#[test]
fn a_window_that_was_closed_opens_with_two_races_again() {
    let past = |races: usize| {
        longest_delay(|bench| {
            lose_to(bench, "other_2");
            lose_to(bench, "other_3");
            for _ in 0..4 {
                release(bench);
                if !bench.is_writing() {
                    bench.jump(seconds(0.2));
                    bench.store(held_by("other_4"));
                    bench.notice();
                }
            }
            if bench.is_writing() {
                bench.store(held_by("other_4"));
                bench.reply();
                bench.notice();
            }
            for _ in 0..races {
                lose_to(bench, "other_5");
            }
        })
    };
    assert_eq!(past(0), Duration::ZERO);
    assert!(past(2) > seconds(0.2));
}

#[test]
fn a_renewal_that_comes_before_the_take_over_is_no_race() {
    let mut bench = waiting(settings());
    for _ in 0..3 {
        bench.pass(seconds(15.0));
        assert!(bench.is_writing(), "waits though it has met nobody");
        bench.store(held_by("other_1"));
        bench.reply();
        bench.notice();
    }
    release(&mut bench);
    assert!(bench.is_writing());
}

#[test]
fn what_the_watch_has_told_before_the_conflict_is_not_read_either() {
    let mut bench = waiting(settings());
    release(&mut bench);
    bench.store(held_by("other_2"));
    bench.notice();
    bench.reply();
    assert!(bench.request.is_none());
    // Released by then, it is taken on what was told.
    release(&mut bench);
    assert!(bench.is_writing());
    bench.settle();
    assert_eq!(bench.starts(), 1);
}

#[test]
fn a_conflict_of_which_the_watch_tells_nothing_is_looked_into() {
    let mut waits = Vec::new();
    for seed in 0..20 {
        let mut bench = waiting(with_seed(seed));
        release(&mut bench);
        bench.store(held_by("other_2"));
        bench.reply();
        assert!(bench.request.is_none());
        let wait = delay(&bench);
        assert!((PATIENCE / 2..=PATIENCE).contains(&wait), "{wait:?}");
        waits.push(wait);
        bench.pass(wait);
        assert!(bench.is_reading());
        bench.settle();
        bench.pass(seconds(14.9));
        assert!(bench.request.is_none(), "took over early");
    }
    waits.sort();
    waits.dedup();
    assert_eq!(waits.len(), 20, "all read at once");
}

#[test]
fn without_a_watch_a_conflict_is_looked_into_at_once() {
    let mut bench = Bench::holding_what(settings(), |bench| bench.store(Record::default()));
    bench.reply();
    bench.store(held_by("other_1"));
    bench.reply();
    assert!(bench.is_reading(), "nobody would tell");

    // And so it is where the watch has told, and has ended since.
    let mut bench = waiting(settings());
    release(&mut bench);
    bench.store(held_by("other_2"));
    bench.notice();
    bench.event(Event::Changed(Change::Ended("closed".to_owned())));
    bench.reply();
    assert!(bench.is_reading(), "nobody would tell");
}

#[test]
fn a_conflict_that_is_the_echo_of_our_own_write_is_read_back() {
    for told_first in [true, false] {
        let mut bench = waiting(settings());
        release(&mut bench);
        // Something in between sends it twice, and passes the second answer on.
        let (id, _) = bench.carry_out();
        if told_first {
            bench.notice();
        }
        bench.event(Event::Reply(id, Reply::Written(Ok(Outcome::Conflict))));
        if !told_first {
            assert!(bench.request.is_none());
            bench.notice();
        }
        if told_first {
            bench.pass(PATIENCE);
        }
        assert!(bench.is_reading(), "told first: {told_first}");
        bench.settle();
        assert_eq!(bench.starts(), 1, "told first: {told_first}");
    }
}

#[test]
fn our_own_write_told_after_a_strangers_is_read_back() {
    let mut bench = waiting(settings());
    release(&mut bench);
    let (id, _) = bench.carry_out();
    let stranger = Claim {
        record: held_by("other_2"),
        ..bench.stored.clone().expect("just written")
    };
    bench.event(Event::Changed(Change::Written(stranger)));
    // A write of ours of long ago is carried out.
    let ours = bench.stored.clone().expect("just written").record;
    bench.store(ours);
    bench.notice();
    bench.event(Event::Reply(id, Reply::Written(Ok(Outcome::Conflict))));
    bench.pass(PATIENCE);
    assert!(bench.is_reading(), "what was told last was of our own");
}
