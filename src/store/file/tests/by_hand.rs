//! Changes that others make to the files, and ages, which they must not forge.

use super::*;

#[test]
fn edit_by_hand_gets_a_version_of_its_own() {
    let directory = directory();
    let store = open(&directory);
    let before = written(&store, None, record("me", 1));
    edit(&store, "\"me\"", "\"stranger\"");
    let edited = read(&store);
    assert!(edited.version > before.version);
    assert_eq!(edited.uid, before.uid);
    assert_eq!(edited.record.holder, Identity::new("stranger"));
    let text = fs::read_to_string(store.path()).unwrap();
    assert!(
        text.contains(&format!("\"resourceVersion\": \"{}\"", edited.version)),
        "{text}"
    );
    // And the edit back to what it was is one more.
    edit(&store, "\"stranger\"", "\"me\"");
    edit(
        &store,
        &format!("\"{}\"", edited.version),
        &format!("\"{}\"", before.version),
    );
    assert_eq!(fs::read_to_string(store.path()).unwrap(), pretty(&before));
    assert!(read(&store).version > edited.version);
}

fn pretty(claim: &Claim) -> String {
    format!("{:#}\n", claim.object.0)
}

#[test]
fn edit_by_hand_is_not_overwritten_by_who_has_not_read_it() {
    let directory = directory();
    let store = open(&directory);
    let before = written(&store, None, record("me", 1));
    edit(
        &store,
        "\"spec\": {",
        "\"spec\": {\"preferredHolder\": \"other\", ",
    );
    assert_eq!(
        write(&store, Some(&before), record("me", 2)),
        Outcome::Conflict
    );
    let edited = read(&store);
    assert_eq!(edited.object.0["spec"]["preferredHolder"], "other");
    let after = written(&store, Some(&edited), record("me", 2));
    assert_eq!(after.object.0["spec"]["preferredHolder"], "other");
}

#[test]
fn file_put_back_after_its_removal_was_seen_is_another_object() {
    let directory = directory();
    let store = open(&directory);
    let before = written(&store, None, record("me", 1));
    let text = fs::read_to_string(store.path()).unwrap();
    fs::remove_file(store.path()).unwrap();
    assert!(is_absent(&store));
    fs::write(store.path(), text).unwrap();
    let restored = read(&store);
    assert!(
        number(&restored) > number(&before) + 1,
        "the removal has a version too"
    );
    assert_ne!(restored.uid, before.uid);
}

#[test]
fn lease_made_by_hand_is_taken_for_what_it_says() {
    let directory = directory();
    let store = open(&directory);
    let made = json!({
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": { "labels": { "team": "a" }, "uid": "of-a-cluster", "resourceVersion": "77" },
        "spec": { "holderIdentity": "somebody", "leaseDurationSeconds": 3 },
    });
    fs::write(store.path(), made.to_string()).unwrap();
    let claim = read(&store);
    assert_eq!(claim.version.as_str(), "78");
    assert_ne!(claim.uid.0, "of-a-cluster");
    assert_eq!(claim.record.duration, Some(Duration::from_secs(3)));
    let metadata = &claim.object.0["metadata"];
    assert_eq!(metadata["labels"]["team"], "a");
    assert_eq!(
        (&metadata["name"], &metadata["namespace"]),
        (&json!("nightly"), &json!("ops"))
    );
    assert!(metadata["creationTimestamp"].is_string());
    assert_eq!(read(&store).version, claim.version);
}

#[test]
fn what_is_no_lease_is_reported_and_left_alone() {
    let directory = directory();
    let store = open(&directory);
    let base = written(&store, None, record("me", 1));
    let text = fs::read_to_string(store.path()).unwrap();
    let half = &text[..text.len() / 2];
    for (content, said) in [
        ("", "it is empty"),
        (half, "it is not JSON: EOF"),
        ("[]", "it is not a JSON object"),
        (
            &text.replace("\"Lease\"", "\"List\""),
            "its kind is \"List\"",
        ),
        (
            &text.replace("v1", "v2"),
            "its apiVersion is \"coordination.k8s.io/v2\"",
        ),
        (
            &text.replace("\"nightly\"", "\"daily\""),
            "its metadata.name is \"daily\"",
        ),
        (
            &text.replace(": 15", ": -15"),
            "spec.leaseDurationSeconds is -15",
        ),
        (
            &text.replace(": 0,", ": \"none\","),
            "spec.leaseTransitions is \"none\"",
        ),
    ] {
        fs::write(store.path(), content).unwrap();
        let attempts = [
            store.file.read().map(drop),
            store
                .file
                .write(&Write {
                    base: None,
                    record: record("me", 2),
                })
                .map(drop),
            store
                .file
                .write(&Write {
                    base: Some(base.clone()),
                    record: record("me", 2),
                })
                .map(drop),
        ];
        for attempt in attempts {
            let failure = attempt.unwrap_err();
            assert_eq!(failure.kind, FailureKind::Malformed, "{content}");
            assert!(
                failure.message.contains(said),
                "{said}: {}",
                failure.message
            );
            assert!(
                failure.message.contains("ops/nightly.json"),
                "{}",
                failure.message
            );
        }
        assert_eq!(fs::read_to_string(store.path()).unwrap(), content);
    }
    fs::write(store.path(), text).unwrap();
    assert_eq!(read(&store).version, base.version);
}

#[test]
fn ledger_that_was_tampered_with_is_reported() {
    let directory = directory();
    let store = open(&directory);
    written(&store, None, record("me", 1));
    fs::write(&store.file.disk.ledger, "{}").unwrap();
    let failure = store.file.read().unwrap_err();
    assert_eq!(failure.kind, FailureKind::Malformed);
    assert!(
        failure.message.contains(".nightly.ledger"),
        "{}",
        failure.message
    );
}

#[test]
fn file_that_is_too_large_is_not_read() {
    let directory = directory();
    let store = open(&directory);
    fs::write(store.path(), " ".repeat((1 << 20) + 1)).unwrap();
    let failure = store.file.read().unwrap_err();
    assert_eq!(failure.kind, FailureKind::Malformed);
    assert!(
        failure.message.contains("larger than"),
        "{}",
        failure.message
    );
}

#[test]
fn age_counts_from_the_write_or_from_when_an_edit_was_noticed() {
    let directory = directory();
    let store = open(&directory);
    let start = Instant::now();
    let created = written(&store, None, record("me", 1));
    assert_eq!(created.written_ago, Some(Duration::ZERO));
    let aged = until("the lease has aged", || {
        let claim = read(&store);
        let passed = start.elapsed();
        assert!(
            claim.written_ago.unwrap() <= passed,
            "{claim:?} after {passed:?}"
        );
        (claim.written_ago > Some(Duration::from_millis(20))).then_some(claim)
    });
    assert_eq!(aged.written_ago, aged.created_ago);
    edit(&store, "\"me\"", "\"other\"");
    let edited = read(&store);
    assert_eq!(edited.written_ago, Some(Duration::ZERO));
    assert!(edited.created_ago >= aged.created_ago);
}

#[test]
fn lease_of_another_boot_ages_from_when_it_was_first_seen() {
    let directory = directory();
    let store = open(&directory);
    let before = written(&store, None, record("me", 1));
    until("the lease has aged", || {
        (read(&store).written_ago > Some(Duration::from_millis(20))).then_some(())
    });
    let restarted = open(&directory);
    let mut file = Arc::into_inner(restarted.file).unwrap();
    file.clock = BootClock::named("the next boot");
    let restarted = FileStore {
        file: Arc::new(file),
    };
    let first = read(&restarted);
    // The version stands still: nobody has written.
    assert_eq!(first.version, before.version);
    assert_eq!(first.written_ago, Some(Duration::ZERO));
    let later = until("it ages on this boot too", || {
        let claim = read(&restarted);
        (claim.written_ago > Some(Duration::ZERO)).then_some(claim)
    });
    assert_eq!(later.version, before.version);
    assert!(read(&store).written_ago > Some(Duration::from_millis(20)));
    let renewed = written(&restarted, Some(&later), record("me", 2));
    assert!(renewed.created_ago >= later.created_ago);
}
