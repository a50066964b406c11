//! Changes are told at once, and none is missed.

use super::*;

async fn next(watch: &mut FileWatch) -> Change {
    let next = tokio::time::timeout(LIMIT, watch.next()).await;
    next.expect("waited in vain for a change")
}

#[track_caller]
fn assert_written(change: &Change, claim: &Claim) {
    let Change::Written(told) = change else {
        panic!("{change:?}");
    };
    assert_eq!(told.version, claim.version);
    assert_eq!((told.written_ago, told.created_ago), (None, None));
}

/// Lets the watch run until it waits for the kernel, so that what comes then is noticed, not seen.
async fn settle_down(watch: &mut FileWatch) {
    tokio::time::timeout(LIMIT, async {
        loop {
            // At least once, for the notices of our own doings that still wait to be read.
            let step = tokio::time::timeout(Duration::from_millis(10), watch.next()).await;
            assert!(step.is_err(), "unexpected {step:?}");
            if watch.is_at_rest() {
                return;
            }
        }
    })
    .await
    .expect("the watch never came to rest");
}

#[tokio::test]
async fn watch_tells_of_writes_edits_and_removals() {
    let directory = directory();
    let store = open(&directory);
    let created = written(&store, None, record("me", 1));
    let mut watch = store.watch(Some(created.version.clone()));
    settle_down(&mut watch).await;

    let renewed = written(&store, Some(&created), record("me", 2));
    assert_written(&next(&mut watch).await, &renewed);
    settle_down(&mut watch).await;

    edit(&store, "\"me\"", "\"stranger\"");
    let change = next(&mut watch).await;
    let edited = read(&store);
    assert!(edited.version > renewed.version);
    assert_written(&change, &edited);
    settle_down(&mut watch).await;

    // In place, as `>` does.
    let text = fs::read_to_string(store.path()).unwrap();
    fs::write(store.path(), text.replace("stranger", "vandal")).unwrap();
    let change = next(&mut watch).await;
    let edited = read(&store);
    assert_written(&change, &edited);
    settle_down(&mut watch).await;

    fs::remove_file(store.path()).unwrap();
    let Change::Deleted(deleted) = next(&mut watch).await else {
        panic!("not told of the removal");
    };
    assert_eq!(deleted.uid, edited.uid);
    assert_eq!(deleted.record, edited.record);
    assert!(deleted.version > edited.version);
    settle_down(&mut watch).await;

    let created = written(&store, None, record("me", 3));
    assert!(created.version > deleted.version);
    assert_written(&next(&mut watch).await, &created);
}

#[tokio::test]
async fn watch_misses_nothing_between_the_read_and_its_start() {
    let directory = directory();
    let store = open(&directory);
    let mut from_nothing = store.watch(None);
    let created = written(&store, None, record("me", 1));
    assert_written(&next(&mut from_nothing).await, &created);

    let mut watch = store.watch(Some(created.version.clone()));
    let renewed = written(&store, Some(&created), record("me", 2));
    assert_written(&next(&mut watch).await, &renewed);

    let mut watch = store.watch(Some(renewed.version.clone()));
    fs::remove_file(store.path()).unwrap();
    let Change::Deleted(deleted) = next(&mut watch).await else {
        panic!("not told of the removal");
    };
    assert!(deleted.version > renewed.version);
}

#[tokio::test]
async fn watch_says_nothing_of_neighbours() {
    let directory = directory();
    let store = open(&directory);
    let neighbour = opened(directory.path(), "ops", "daily").unwrap();
    let created = written(&store, None, record("me", 1));
    let mut watch = store.watch(Some(created.version.clone()));
    settle_down(&mut watch).await;
    written(&neighbour, None, record("other", 1));
    let renewed = written(&store, Some(&created), record("me", 2));
    // The first thing told is our own change, though the neighbour's came before it.
    assert_written(&next(&mut watch).await, &renewed);
}

#[tokio::test]
async fn dropped_wait_loses_no_change() {
    let directory = directory();
    let store = open(&directory);
    let mut claim = written(&store, None, record("me", 0));
    let mut watch = store.watch(Some(claim.version.clone()));
    for micros in 1..50 {
        claim = written(&store, Some(&claim), record("me", micros));
        // Drops the wait after a time that differs from round to round.
        let limit = Duration::from_micros(micros.unsigned_abs() * 41 % 1500);
        let change = match tokio::time::timeout(limit, watch.next()).await {
            Ok(change) => change,
            Err(_) => next(&mut watch).await,
        };
        assert_written(&change, &claim);
    }
}

#[tokio::test]
async fn watch_ends_when_its_folder_is_removed() {
    let directory = directory();
    let store = open(&directory);
    let created = written(&store, None, record("me", 1));
    let mut watch = store.watch(Some(created.version.clone()));
    settle_down(&mut watch).await;
    fs::remove_dir_all(&store.file.disk.folder).unwrap();
    let deleted = next(&mut watch).await;
    assert!(matches!(deleted, Change::Deleted(_)), "{deleted:?}");
    let ended = next(&mut watch).await;
    assert!(matches!(ended, Change::Ended(_)), "{ended:?}");
    let more = tokio::time::timeout(Duration::from_millis(20), watch.next()).await;
    assert!(more.is_err(), "{more:?}");
}

#[tokio::test]
async fn watch_that_the_kernel_does_not_grant_is_refused() {
    let directory = directory();
    let store = open(&directory);
    fs::remove_dir_all(&store.file.disk.folder).unwrap();
    let Change::Refused(failure) = next(&mut store.watch(None)).await else {
        panic!("not refused");
    };
    assert!(failure.message.contains("watch "), "{}", failure.message);
}

#[tokio::test]
async fn malformed_file_ends_the_watch_with_the_reason() {
    let directory = directory();
    let store = open(&directory);
    let created = written(&store, None, record("me", 1));
    let mut watch = store.watch(Some(created.version.clone()));
    settle_down(&mut watch).await;
    fs::write(store.path(), "{").unwrap();
    let Change::Ended(reason) = next(&mut watch).await else {
        panic!("not ended");
    };
    assert!(reason.contains("it is not JSON"), "{reason}");
}
