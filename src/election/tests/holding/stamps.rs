//! The `renewTime` and `acquireTime` of our writes, and the jitter.

use super::*;

fn timing(lease: f64, retry_period: Option<f64>) -> Timing {
    let requested = Requested {
        lease_duration: Some(seconds(lease)),
        retry_period: retry_period.map(seconds),
        ..Requested::default()
    };
    Timing::new(requested).expect("safe")
}

/// The record after a renewal that is sent when the wall clock shows that many microseconds more
/// than the stamp of the acquiring write.
fn renewed_after(timing: Timing, micros: i64) -> (Record, Record) {
    let mut bench = Bench::running(Settings {
        timing,
        ..settings()
    });
    let before = bench.stored.clone().expect("stored").record;
    let stamp = before.renew_time.expect("stamped").unix_micros;
    let period = timing.retry_period;
    bench.now.at.boot += period;
    bench.now.at.raw += period;
    bench.now.wall.unix_micros = stamp + micros;
    bench.event(Event::Wake);
    bench.settle();
    (before, bench.stored.clone().expect("stored").record)
}

#[test]
fn a_stamp_is_the_wall_clock_in_a_new_second() {
    // The first stamp is at a quarter of a second.
    let cases = [
        (timing(15.0, None), 2_000_000, 2_000_000),
        (timing(15.0, None), 750_000, 750_000),
        (timing(15.0, None), 500_000, 750_000),
        (timing(15.0, Some(1.0)), 500_000, 750_000),
        (timing(15.0, None), -3_600_000_000, 750_000),
        // Renewals that are closer together can't each have a second.
        (timing(3.0, None), 400_000, 400_000),
        (timing(3.0, None), 0, 750_000),
        (timing(3.0, None), -1, 750_000),
    ];
    for (timing, after, expected) in cases {
        let (before, renewed) = renewed_after(timing, after);
        let micros = |record: &Record| record.renew_time.expect("stamped").unix_micros;
        assert_eq!(
            micros(&renewed) - micros(&before),
            expected,
            "{after} us after the last at {:?}",
            timing.retry_period
        );
    }
}

#[test]
fn a_renewal_keeps_the_time_of_the_acquisition() {
    let (acquired, renewed) = renewed_after(timing(15.0, None), 2_000_000);
    assert_eq!(acquired.acquire_time, acquired.renew_time);
    assert_eq!(renewed.acquire_time, acquired.acquire_time);
    assert!(renewed.renew_time > renewed.acquire_time);
}

#[test]
fn the_jitter_is_that_of_splitmix64() {
    let mut outbox = Outbox::new(Settings {
        seed: 1_234_567,
        ..settings()
    });
    // The published generator's first numbers for this seed.
    let numbers: [u64; 5] = [
        6_457_827_717_110_365_317,
        3_203_168_211_198_807_973,
        9_817_491_932_198_370_423,
        4_593_380_528_125_082_431,
        16_408_922_859_458_223_821,
    ];
    for number in numbers {
        let fraction = number as f64 / u64::MAX as f64;
        let jitter = outbox.retry_period().as_secs_f64() - 2.0;
        assert!((jitter - 0.4 * fraction).abs() < 1e-6, "{jitter}");
    }
}
