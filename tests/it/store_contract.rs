//! What the election relies on, held against every store: the file store, and a real API server.
//!
//! A case knows its store only by the trait, and plays everybody else (another candidate, an
//! administrator with kubectl or an editor) by a second opening of the same lease or through
//! [`Place`].

use std::future::Future;
use std::time::Duration;

use lease_exec::clock::WallTime;
use lease_exec::lease::{Change, Claim, Failure, Identity, Outcome, Record, Version, Write};
use lease_exec::store::{Store, Watch};
use serde_json::{Value, json};

use crate::wait::LIMIT;

mod admission;
mod fairness;
mod file;
mod history;
mod kube;
mod server;
mod swaps;

use swaps::swaps_of_many_follow_each_other;

/// A lease of a test's own, and what others can do to it behind a store's back.
trait Place {
    type Store: Store;

    /// Opens the lease, as one more process would.
    fn open(&self) -> Self::Store;

    /// The stored object.
    fn object(&self) -> Option<Value>;

    /// Replaces the stored object by a changed one.
    fn put(&self, object: Value);

    /// Deletes the lease.
    fn delete(&self);
}

/// Makes a test of each case for one kind of place.
macro_rules! contract {
    ($place:path) => {
        $crate::store_contract::contract! { $place:
            absent_lease_reads_as_none
            create_makes_the_lease_when_there_is_none
            create_conflicts_when_there_is_one
            write_on_the_current_version_replaces_the_record
            write_on_a_stale_version_conflicts
            write_on_a_deleted_lease_conflicts_and_makes_none
            write_on_a_re_created_lease_conflicts
            write_with_the_current_version_but_another_uid_conflicts
            write_with_the_current_uid_but_another_version_conflicts
            write_that_changes_nothing_gets_no_version
            write_by_somebody_else_is_not_overwritten
            what_we_know_nothing_of_survives_our_writes
            absent_fields_of_the_record_are_removed
            versions_grow_also_across_deletion
            one_of_two_creates_wins
            one_of_two_writes_on_one_version_wins
            swaps_of_many_follow_each_other
            read_sees_every_write_that_was_answered
            dropped_write_is_carried_out_or_not_but_never_half
            release_frees_the_lease_and_keeps_its_transitions
            age_counts_from_the_creation
            watch_tells_of_a_write_after_the_read
            watch_tells_of_a_write_before_its_own_start
            watch_tells_of_a_creation
            watch_tells_of_a_deletion_with_its_version
            watch_tells_of_every_change_of_a_life
            dropped_wait_for_a_change_loses_none
        }
    };
    ($place:path: $($case:ident)*) => {
        $(
            #[test]
            fn $case() {
                let place = $place(stringify!($case));
                $crate::store_contract::run($crate::store_contract::$case(&place));
            }
        )*
    };
}
use contract;

// === Reading and creating ===

async fn absent_lease_reads_as_none(place: &impl Place) {
    assert_eq!(done(place.open().read()).await, None);
    assert_eq!(place.object(), None, "a read has made a lease");
}

async fn create_makes_the_lease_when_there_is_none(place: &impl Place) {
    let store = place.open();
    let created = created(&store, held("a", 1)).await;
    assert_eq!(created.record, held("a", 1));
    let read = current(&place.open()).await;
    assert_eq!(shown(&read), shown(&created));
    assert_eq!(read.record, created.record);
    let object = place.object().expect("the lease was created");
    assert_eq!(object["apiVersion"], "coordination.k8s.io/v1");
    assert_eq!(object["kind"], "Lease");
    assert_eq!(object["metadata"]["uid"], created.uid.0);
    assert_eq!(
        object["metadata"]["resourceVersion"],
        created.version.as_str()
    );
    assert_eq!(object["spec"]["holderIdentity"], "a");
    assert_eq!(object["spec"]["leaseDurationSeconds"], 15);
    assert_eq!(object["spec"]["renewTime"], "2026-01-01T00:00:00.000001Z");
    // A pod that owned its lease would take it along when it is deleted.
    assert_eq!(object["metadata"]["ownerReferences"], Value::Null);
}

async fn create_conflicts_when_there_is_one(place: &impl Place) {
    let created = created(&place.open(), held("a", 1)).await;
    assert_eq!(
        write(&place.open(), None, held("b", 2)).await,
        Outcome::Conflict
    );
    let after = current(&place.open()).await;
    assert_eq!(shown(&after), shown(&created));
    assert_eq!(after.record, created.record);
}

// === Compare-and-swap ===

async fn write_on_the_current_version_replaces_the_record(place: &impl Place) {
    let store = place.open();
    let created = created(&store, held("a", 1)).await;
    let renewed = written(&store, &created, held("a", 2)).await;
    assert_eq!(renewed.uid, created.uid);
    assert!(renewed.version > created.version);
    assert_eq!(renewed.record, held("a", 2));
    // The base may be a read's as well as a write's.
    let taken = written(&place.open(), &current(&store).await, held("b", 3)).await;
    assert_eq!(taken.uid, created.uid);
    assert!(taken.version > renewed.version);
    assert_eq!(current(&store).await.record, held("b", 3));
}

async fn write_on_a_stale_version_conflicts(place: &impl Place) {
    let store = place.open();
    let stale = created(&store, held("a", 1)).await;
    let newer = written(&store, &stale, held("b", 2)).await;
    assert_eq!(
        write(&store, Some(&stale), held("a", 3)).await,
        Outcome::Conflict
    );
    // Not even with what is stored already: it is the base that counts.
    assert_eq!(
        write(&store, Some(&stale), held("b", 2)).await,
        Outcome::Conflict
    );
    assert_eq!(shown(&current(&store).await), shown(&newer));
}

async fn write_on_a_deleted_lease_conflicts_and_makes_none(place: &impl Place) {
    let store = place.open();
    let base = created(&store, held("a", 1)).await;
    place.delete();
    assert_eq!(
        write(&store, Some(&base), held("a", 2)).await,
        Outcome::Conflict
    );
    assert_eq!(done(store.read()).await, None);
    assert_eq!(place.object(), None);
}

async fn write_on_a_re_created_lease_conflicts(place: &impl Place) {
    let store = place.open();
    let old = created(&store, held("a", 1)).await;
    place.delete();
    let new = created(&store, held("a", 1)).await;
    assert_ne!(new.uid, old.uid);
    assert_eq!(
        write(&store, Some(&old), held("a", 2)).await,
        Outcome::Conflict
    );
    assert_eq!(shown(&current(&store).await), shown(&new));
}

async fn write_with_the_current_version_but_another_uid_conflicts(place: &impl Place) {
    let store = place.open();
    let old = created(&store, held("a", 1)).await;
    place.delete();
    let new = created(&store, held("a", 2)).await;
    let mixed = Claim {
        uid: old.uid,
        ..new.clone()
    };
    assert_eq!(
        write(&store, Some(&mixed), held("a", 3)).await,
        Outcome::Conflict
    );
    assert_eq!(shown(&current(&store).await), shown(&new));
}

async fn write_with_the_current_uid_but_another_version_conflicts(place: &impl Place) {
    let store = place.open();
    let now = created(&store, held("a", 1)).await;
    let number: u64 = now.version.as_str().parse().expect("versions are numbers");
    for other in [number + 1, number.saturating_sub(1).max(1), number * 10] {
        if other == number {
            continue;
        }
        let mixed = Claim {
            version: Version::new(other.to_string()).expect("it is a number"),
            ..now.clone()
        };
        assert_eq!(
            write(&store, Some(&mixed), held("a", 2)).await,
            Outcome::Conflict
        );
    }
    assert_eq!(shown(&current(&store).await), shown(&now));
}

/// Why the election must change `renewTime` with every write.
async fn write_that_changes_nothing_gets_no_version(place: &impl Place) {
    let store = place.open();
    let created = created(&store, held("a", 1)).await;
    let again = written(&store, &created, held("a", 1)).await;
    assert_eq!(shown(&again), shown(&created));
}

async fn write_by_somebody_else_is_not_overwritten(place: &impl Place) {
    let store = place.open();
    let base = created(&store, held("a", 1)).await;
    let mut object = place.object().expect("the lease was created");
    object["spec"]["holderIdentity"] = json!("somebody else");
    place.put(object);
    assert_eq!(
        write(&store, Some(&base), held("a", 2)).await,
        Outcome::Conflict
    );
    let found = current(&store).await;
    assert_eq!(found.record.holder, Identity::new("somebody else"));
    assert_eq!(found.uid, base.uid);
    assert!(found.version > base.version);
}

async fn what_we_know_nothing_of_survives_our_writes(place: &impl Place) {
    let store = place.open();
    created(&store, held("a", 1)).await;
    let mut object = place.object().expect("the lease was created");
    object["metadata"]["labels"] = json!({ "team": "ops" });
    object["metadata"]["annotations"] = json!({ "why": "\u{201c}nightly\u{201d} \u{2014} \n" });
    object["metadata"]["finalizers"] = json!(["example.com/keep"]);
    place.put(object);
    let before = place.object().expect("the lease was labelled");
    let claim = written(&store, &current(&store).await, held("b", 2)).await;
    written(&place.open(), &claim, held("c", 3)).await;
    let after = place.object().expect("the lease was written");
    for field in [
        "labels",
        "annotations",
        "finalizers",
        "creationTimestamp",
        "uid",
    ] {
        assert_ne!(before["metadata"][field], Value::Null, "{field}");
        assert_eq!(
            after["metadata"][field], before["metadata"][field],
            "{field}"
        );
    }
    assert_eq!(after["spec"]["holderIdentity"], "c");
    // A finalizer would keep the lease, and with it the namespace, from being deleted.
    let mut object = after;
    object["metadata"]["finalizers"] = json!([]);
    place.put(object);
}

async fn absent_fields_of_the_record_are_removed(place: &impl Place) {
    let store = place.open();
    let base = created(&store, held("a", 1)).await;
    let bare = Record {
        holder: Identity::new("a"),
        ..Record::default()
    };
    let after = written(&store, &base, bare.clone()).await;
    assert_eq!(after.record, bare);
    assert_eq!(current(&store).await.record, bare);
}

async fn versions_grow_also_across_deletion(place: &impl Place) {
    let store = place.open();
    let mut last: Option<Claim> = None;
    for life in 1..=3 {
        let born = created(&store, held("a", life * 10)).await;
        let renewed = written(&store, &born, held("a", life * 10 + 1)).await;
        if let Some(last) = &last {
            assert!(born.version > last.version, "{born:?} after {last:?}");
            assert_ne!(born.uid, last.uid);
        }
        last = Some(renewed);
        place.delete();
    }
}

// === At the same time ===

async fn one_of_two_creates_wins(place: &impl Place) {
    let (a, b) = (place.open(), place.open());
    let both = tokio::join!(write(&a, None, held("a", 1)), write(&b, None, held("b", 2)));
    let winner = the_winner(both);
    assert_eq!(shown(&current(&a).await), shown(&winner));
}

async fn one_of_two_writes_on_one_version_wins(place: &impl Place) {
    let (a, b) = (place.open(), place.open());
    let mut base = created(&a, held("", 0)).await;
    for round in 1..=10 {
        let both = tokio::join!(
            write(&a, Some(&base), held("a", round)),
            write(&b, Some(&base), held("b", round)),
        );
        base = the_winner(both);
        assert_eq!(shown(&current(&a).await), shown(&base));
    }
}

async fn read_sees_every_write_that_was_answered(place: &impl Place) {
    let (writer, reader) = (place.open(), place.open());
    let mut claim = created(&writer, held("a", 0)).await;
    for round in 1_i64..=20 {
        claim = written(&writer, &claim, held("a", round)).await;
        assert_eq!(shown(&current(&reader).await), shown(&claim));
    }
}

async fn dropped_write_is_carried_out_or_not_but_never_half(place: &impl Place) {
    let store = place.open();
    let mut base = created(&store, held("a", 0)).await;
    for round in 1_i64..=20 {
        let limit = Duration::from_micros(round.unsigned_abs() * 200);
        let attempt = Write {
            base: Some(base.clone()),
            record: held("a", round),
        };
        let _ = tokio::time::timeout(limit, store.write(attempt)).await;
        let found = current(&store).await;
        let is_base = found.record == base.record;
        assert!(is_base || found.record == held("a", round), "{found:?}");
        // The next write settles it, at the latest when the dropped one has been carried out.
        base = match write(&store, Some(&found), held("b", round)).await {
            Outcome::Written(claim) => claim,
            Outcome::Conflict => {
                let found = current(&store).await;
                assert_eq!(found.record, held("a", round));
                found
            }
        };
    }
}

// === Records and ages ===

async fn release_frees_the_lease_and_keeps_its_transitions(place: &impl Place) {
    let store = place.open();
    let mut record = held("a", 1);
    record.transitions = 7;
    let held_claim = created(&store, record.clone()).await;
    let release = Record {
        holder: None,
        duration: Some(Duration::from_secs(1)),
        ..record
    };
    let released = written(&store, &held_claim, release.clone()).await;
    assert_eq!(released.record, release);
    let object = place.object().expect("a release keeps the lease");
    assert_eq!(object["spec"]["holderIdentity"], "");
    assert_eq!(object["spec"]["leaseDurationSeconds"], 1);
    assert_eq!(object["spec"]["leaseTransitions"], 7);
    assert_eq!(current(&store).await.record, release);
    // And who saw it released can take it.
    written(&place.open(), &released, held("b", 2)).await;
}

async fn age_counts_from_the_creation(place: &impl Place) {
    // Servers tell the time in whole seconds, so that a write may look a second older than it is.
    let (young, old) = (Duration::from_secs(1), Duration::from_secs(2));
    let store = place.open();
    let fresh = created(&store, held("a", 1)).await;
    for age in [fresh.written_ago, fresh.created_ago] {
        assert!(age.is_some_and(|age| age <= young), "{fresh:?}");
    }
    let aged = until("the lease is two seconds old", async || {
        let claim = current(&store).await;
        (claim.created_ago >= Some(old)).then_some(claim)
    })
    .await;
    assert_eq!(shown(&aged), shown(&fresh));
    let renewed = written(&store, &aged, held("a", 2)).await;
    assert!(renewed.created_ago >= Some(old), "{renewed:?}");
}

/// The election may take a lease that looks old. A store that can't tell its age says nothing.
async fn lease_just_written_never_looks_old(place: &impl Place) {
    let (young, old) = (Duration::from_secs(1), Duration::from_secs(3));
    let store = place.open();
    let fresh = created(&store, held("a", 1)).await;
    let aged = until("the lease is three seconds old", async || {
        let claim = current(&store).await;
        (claim.created_ago >= Some(old)).then_some(claim)
    })
    .await;
    assert_eq!(shown(&aged), shown(&fresh));
    let renewed = written(&store, &aged, held("a", 2)).await;
    assert!(
        renewed.written_ago.is_none_or(|age| age <= young),
        "{renewed:?}"
    );
    let again = current(&store).await;
    assert_eq!(shown(&again), shown(&renewed));
    assert!(
        again.written_ago.is_none_or(|age| age <= young),
        "{again:?}"
    );
}

// === Watching ===

async fn watch_tells_of_a_write_after_the_read(place: &impl Place) {
    let store = place.open();
    let read = created(&store, held("a", 1)).await;
    let mut watch = store.watch(Some(read.version.clone()));
    let (change, renewed) = tokio::join!(next(&mut watch), async {
        written(&place.open(), &read, held("a", 2)).await
    });
    assert_written(&change, &renewed);
}

async fn watch_tells_of_a_write_before_its_own_start(place: &impl Place) {
    let store = place.open();
    let read = created(&store, held("a", 1)).await;
    let renewed = written(&store, &read, held("a", 2)).await;
    assert_written(&next(&mut store.watch(Some(read.version))).await, &renewed);
}

async fn watch_tells_of_a_creation(place: &impl Place) {
    let store = place.open();
    let mut watch = store.watch(None);
    let (change, born) = tokio::join!(next(&mut watch), async {
        // So that the watch has begun: what was there before is not promised to be told.
        tokio::task::yield_now().await;
        created(&place.open(), held("a", 1)).await
    });
    assert_written(&change, &born);
}

async fn watch_tells_of_a_deletion_with_its_version(place: &impl Place) {
    let store = place.open();
    let read = created(&store, held("a", 1)).await;
    let mut watch = store.watch(Some(read.version.clone()));
    place.delete();
    let Change::Deleted(deleted) = next(&mut watch).await else {
        panic!("not told of the deletion");
    };
    assert_eq!(deleted.uid, read.uid);
    assert_eq!(deleted.record, read.record);
    assert!(deleted.version > read.version, "{deleted:?} after {read:?}");
    let born = created(&store, held("b", 2)).await;
    assert!(born.version > deleted.version);
    assert_written(&next(&mut watch).await, &born);
}

async fn watch_tells_of_every_change_of_a_life(place: &impl Place) {
    let store = place.open();
    let mut claim = created(&store, held("a", 0)).await;
    let mut watch = store.watch(Some(claim.version.clone()));
    for round in 1_i64..=20 {
        claim = written(&store, &claim, held("a", round)).await;
        assert_written(&next(&mut watch).await, &claim);
    }
}

async fn dropped_wait_for_a_change_loses_none(place: &impl Place) {
    let store = place.open();
    let mut claim = created(&store, held("a", 0)).await;
    let mut watch = store.watch(Some(claim.version.clone()));
    for round in 1_i64..=20 {
        claim = written(&store, &claim, held("a", round)).await;
        let limit = Duration::from_micros(round.unsigned_abs() * 150);
        let change = match tokio::time::timeout(limit, watch.next()).await {
            Ok(change) => change,
            Err(_) => next(&mut watch).await,
        };
        assert_written(&change, &claim);
    }
}

// === What the cases are told in ===

/// A record with which `holder` holds the lease, different for each `micros`.
fn held(holder: &str, micros: i64) -> Record {
    Record {
        holder: Identity::new(holder),
        duration: Some(Duration::from_secs(15)),
        acquire_time: Some(new_year(0)),
        renew_time: Some(new_year(micros)),
        transitions: 0,
        strategy: None,
    }
}

/// So many microseconds after 2026-01-01T00:00:00Z.
fn new_year(micros: i64) -> WallTime {
    WallTime {
        unix_micros: 1_767_225_600_000_000 + micros,
    }
}

/// What tells one state of a lease from all others.
fn shown(claim: &Claim) -> (&str, &str) {
    (&claim.uid.0, claim.version.as_str())
}

async fn done<T>(call: impl Future<Output = Result<T, Failure>>) -> T {
    let answer = tokio::time::timeout(LIMIT, call).await;
    let answer = answer.expect("the store never answered");
    answer.unwrap_or_else(|failure| panic!("failed to {}", failure.message))
}

async fn current(store: &impl Store) -> Claim {
    done(store.read()).await.expect("there is a lease")
}

async fn write(store: &impl Store, base: Option<&Claim>, record: Record) -> Outcome {
    let base = base.cloned();
    done(store.write(Write { base, record })).await
}

async fn created(store: &impl Store, record: Record) -> Claim {
    match write(store, None, record).await {
        Outcome::Written(claim) => claim,
        Outcome::Conflict => panic!("the creation met a conflict"),
    }
}

async fn written(store: &impl Store, base: &Claim, record: Record) -> Claim {
    match write(store, Some(base), record).await {
        Outcome::Written(claim) => claim,
        Outcome::Conflict => panic!("the write met a conflict"),
    }
}

fn the_winner(outcomes: (Outcome, Outcome)) -> Claim {
    match outcomes {
        (Outcome::Written(claim), Outcome::Conflict)
        | (Outcome::Conflict, Outcome::Written(claim)) => claim,
        both => panic!("not exactly one has won: {both:?}"),
    }
}

async fn next(watch: &mut impl Watch) -> Change {
    let change = tokio::time::timeout(LIMIT, watch.next()).await;
    change.expect("waited in vain for a change")
}

#[track_caller]
fn assert_written(change: &Change, claim: &Claim) {
    let Change::Written(told) = change else {
        panic!("{change:?} instead of {claim:?}");
    };
    assert_eq!(shown(told), shown(claim));
    assert_eq!(told.record, claim.record);
    // An event may be of any age: it must not be mistaken for an answer.
    assert_eq!((told.written_ago, told.created_ago), (None, None));
}

/// Returns what `condition` finds as soon as it finds something.
async fn until<T>(what: &str, mut condition: impl AsyncFnMut() -> Option<T>) -> T {
    let search = async {
        loop {
            if let Some(found) = condition().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let found = tokio::time::timeout(LIMIT, search).await;
    found.unwrap_or_else(|_| panic!("waited {LIMIT:?} in vain until {what}"))
}

/// Runs a case where the program runs: in a runtime of one thread.
fn run(case: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("build a runtime")
        .block_on(case);
}
