//! Versions grow at every write, and each write wins or conflicts.

use super::*;

#[test]
fn versions_grow_across_removals() {
    let directory = directory();
    let store = open(&directory);
    let mut last = 0;
    let mut uids = BTreeSet::new();
    for round in 0..5 {
        let created = written(&store, None, record("me", round));
        assert!(number(&created) > last, "{created:?}");
        let renewed = written(&store, Some(&created), record("me", round + 100));
        assert!(number(&renewed) > number(&created));
        assert_eq!(renewed.uid, created.uid);
        last = number(&renewed);
        uids.insert(created.uid.0);
        fs::remove_file(store.path()).unwrap();
        // Whether or not somebody looks in between.
        if round % 2 == 0 {
            assert!(is_absent(&store));
        }
        // A holder that has not noticed must not bring the lease back.
        assert_eq!(
            write(&store, Some(&renewed), record("me", 999)),
            Outcome::Conflict
        );
        assert!(is_absent(&store));
    }
    assert_eq!(uids.len(), 5);
}

#[test]
fn versions_go_on_from_the_file_when_the_ledger_is_lost() {
    let directory = directory();
    let store = open(&directory);
    let mut claim = written(&store, None, record("me", 1));
    for micros in 2..6 {
        claim = written(&store, Some(&claim), record("me", micros));
    }
    fs::remove_file(&store.file.disk.ledger).unwrap();
    assert_eq!(number(&read(&store)), number(&claim) + 1);
    assert_eq!(
        write(&store, Some(&claim), record("me", 9)),
        Outcome::Conflict
    );
}

#[test]
fn versions_that_are_used_up_are_a_failure() {
    let directory = directory();
    let store = open(&directory);
    written(&store, None, record("me", 1));
    fs::remove_file(&store.file.disk.ledger).unwrap();
    let highest = format!("\"resourceVersion\": \"{}\"", u64::MAX);
    edit(&store, "\"resourceVersion\": \"1\"", &highest);
    let failure = store.file.read().unwrap_err();
    assert_eq!(failure.kind, FailureKind::Malformed);
    assert!(
        failure.message.contains("resourceVersion"),
        "{}",
        failure.message
    );
}

#[test]
fn write_that_changes_nothing_gets_no_version() {
    let directory = directory();
    let store = open(&directory);
    let created = written(&store, None, record("me", 1));
    let again = written(&store, Some(&created), record("me", 1));
    assert_eq!(again.version, created.version);
}

#[test]
fn exactly_one_of_many_wins_each_version() {
    const WRITERS: usize = 6;
    const ROUNDS: usize = 25;
    let directory = directory();
    written(&open(&directory), None, record("me", 0));
    let barrier = Barrier::new(WRITERS);
    let wins: Vec<Vec<(u64, u64)>> = thread::scope(|scope| {
        let writer = |number_of_writer: usize| {
            let store = open(&directory);
            let mut wins = Vec::new();
            for round in 0..ROUNDS {
                let base = read(&store);
                // All have read the same version before any writes.
                barrier.wait();
                let micros = (round * WRITERS + number_of_writer + 1) as i64;
                if let Outcome::Written(claim) = write(&store, Some(&base), record("w", micros)) {
                    wins.push((number(&base), number(&claim)));
                }
                barrier.wait();
            }
            wins
        };
        let threads: Vec<_> = (0..WRITERS)
            .map(|n| scope.spawn(move || writer(n)))
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    });
    let mut won: Vec<_> = wins.into_iter().flatten().collect();
    won.sort_unstable();
    let expected: Vec<_> = (1..=ROUNDS as u64).map(|base| (base, base + 1)).collect();
    assert_eq!(won, expected);
}

#[test]
fn exactly_one_of_many_creates() {
    const WRITERS: usize = 6;
    let directory = directory();
    let stores: Vec<_> = (0..WRITERS).map(|_| open(&directory)).collect();
    let barrier = Barrier::new(WRITERS);
    let created: usize = thread::scope(|scope| {
        let barrier = &barrier;
        let threads: Vec<_> = stores
            .iter()
            .map(|store| {
                scope.spawn(move || {
                    barrier.wait();
                    matches!(write(store, None, record("w", 1)), Outcome::Written(_))
                })
            })
            .collect();
        threads
            .into_iter()
            .filter_map(|thread| thread.join().unwrap().then_some(()))
            .count()
    });
    assert_eq!(created, 1);
}
