//! Many who swap at once: whatever each of them saw must fit one history.

use std::cell::Cell;

use futures_util::future::join_all;
use lease_exec::lease::{Claim, Failure, Outcome, Version, Write};
use lease_exec::store::Store;

use super::{Place, created, current, held};

/// How many openings of the lease swap at the same time, and how often each of them succeeds.
const WRITERS: i64 = 4;
const SWAPS: i64 = 20;

/// Each swap is on exactly the version before it, no two are on the same, versions only grow, and a
/// read sees whatever was answered before it began: the history is linearizable.
pub(super) async fn swaps_of_many_follow_each_other(place: &impl Place) {
    let first = created(&place.open(), held("", 0)).await;
    let newest = Cell::new(number(&first));
    let swaps = join_all((0..WRITERS).map(|writer| swaps(place.open(), writer, &newest)));
    let mut swaps = swaps.await.concat();
    swaps.sort_by(|one, other| one.1.cmp(&other.1));
    let mut last = first.version;
    for (base, version) in &swaps {
        assert_eq!(*base, last, "the base of {version:?}, in {swaps:?}");
        assert!(*version > last, "{version:?} after {last:?}, in {swaps:?}");
        last = version.clone();
    }
    assert_eq!(swaps.len() as i64, WRITERS * SWAPS);
    assert_eq!(current(&place.open()).await.version, last);
}

/// Swaps on what it reads until enough succeeded, and returns the version that each was on and the
/// version that it made.
async fn swaps(store: impl Store, writer: i64, newest: &Cell<u64>) -> Vec<(Version, Version)> {
    let mut swaps = Vec::new();
    let mut micros = writer;
    while (swaps.len() as i64) < SWAPS {
        let answered = newest.get();
        let Some(base) = unless_locked(store.read().await) else {
            continue;
        };
        let base = base.expect("nobody deletes it");
        assert!(
            number(&base) >= answered,
            "{base:?} was read after {answered} was answered"
        );
        micros += WRITERS;
        let record = held(&format!("writer-{writer}"), micros);
        let attempt = Write {
            base: Some(base.clone()),
            record: record.clone(),
        };
        if let Some(Outcome::Written(claim)) = unless_locked(store.write(attempt).await) {
            assert_eq!(claim.record, record);
            newest.set(newest.get().max(number(&claim)));
            swaps.push((base.version, claim.version));
        }
    }
    swaps
}

/// What came of an attempt, unless it gave up waiting for the file store's lock, which others have
/// all the time where the disk is slow; nothing has happened then.
fn unless_locked<T>(result: Result<T, Failure>) -> Option<T> {
    match result {
        Ok(done) => Some(done),
        Err(failure) if failure.message.starts_with("can't lock") => None,
        Err(failure) => panic!("failed to {}", failure.message),
    }
}

fn number(claim: &Claim) -> u64 {
    let version = claim.version.as_str();
    version.parse().expect("versions are decimal numbers")
}
