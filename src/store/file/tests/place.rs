//! What lies in the directory, and what is found out when the store is opened.

use super::*;

#[test]
fn file_is_a_lease_that_people_can_read() {
    let directory = directory();
    let store = open(&directory);
    let claim = written(&store, None, record("me", 1));
    let path = directory.path().join("ops/nightly.json");
    assert_eq!(store.path(), path);
    let object: Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    assert_eq!(object["apiVersion"], "coordination.k8s.io/v1");
    assert_eq!(object["kind"], "Lease");
    let metadata = &object["metadata"];
    assert_eq!(metadata["name"], "nightly");
    assert_eq!(metadata["namespace"], "ops");
    assert_eq!(metadata["resourceVersion"], "1");
    let created: Timestamp = metadata["creationTimestamp"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap();
    let age = WallTime::now().unix_seconds() - created.as_second();
    assert!((0..=60).contains(&age), "{age}");
    assert_eq!(metadata["uid"], claim.uid.0);
    assert_eq!(object["spec"]["holderIdentity"], "me");
    assert_eq!(
        names(&store),
        BTreeSet::from([".nightly.ledger", ".nightly.lock", "nightly.json"].map(String::from))
    );
}

/// A user who can read a file can lock it.
#[test]
fn files_are_for_those_who_may_write_to_the_folder_and_never_for_all() {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let umask = status.lines().find_map(|line| line.strip_prefix("Umask:"));
    let umask = u32::from_str_radix(umask.unwrap().trim(), 8).unwrap();
    let mode_of = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
    let directory = directory();
    let store = open(&directory);
    let folder = &store.file.disk.folder;
    written(&store, None, record("me", 1));
    assert_eq!(mode_of(folder), 0o770 & !umask);
    for (of_folder, of_files) in [
        (0o700, 0o600),
        (0o755, 0o600),
        (0o770, 0o660),
        (0o777, 0o660),
    ] {
        fs::remove_dir_all(folder).unwrap();
        fs::create_dir(folder).unwrap();
        fs::set_permissions(folder, fs::Permissions::from_mode(of_folder)).unwrap();
        written(&store, None, record("me", 1));
        for name in names(&store) {
            assert_eq!(
                mode_of(&folder.join(&name)),
                of_files & !umask,
                "{name} in {of_folder:o}"
            );
        }
        // Nor does a lock file that was made by hand.
        let lock = folder.join(".nightly.lock");
        fs::set_permissions(&lock, fs::Permissions::from_mode(0o666)).unwrap();
        let claim = read(&store);
        written(&store, Some(&claim), record("me", 2));
        assert_eq!(mode_of(store.path()), 0o660 & !umask);
    }
}

#[test]
fn leases_of_other_names_are_other_leases() {
    let directory = directory();
    let places = [
        ("a", "b.c"),
        ("a", "c"),
        ("b", "c"),
        ("a", "c.json"),
        ("a", "b"),
    ];
    for (namespace, name) in places {
        let store = opened(directory.path(), namespace, name).unwrap();
        let claim = written(&store, None, record(name, 1));
        assert_eq!(claim.version.as_str(), "1");
    }
}

#[track_caller]
fn assert_refused(directory: &Path, namespace: &str, name: &str, said: &str) {
    let failure = opened(directory, namespace, name).unwrap_err();
    assert_eq!(
        failure.kind,
        FailureKind::Misconfigured,
        "{}",
        failure.message
    );
    assert!(failure.message.contains(said), "{}", failure.message);
}

#[test]
fn directory_that_is_missing_is_not_made() {
    let directory = directory();
    let mistyped = directory.path().join("laeses");
    assert_refused(
        &mistyped,
        "ops",
        "nightly",
        "laeses: No such file or directory",
    );
    assert!(!mistyped.exists());
}

#[test]
fn file_in_the_place_of_the_directory_is_refused() {
    let directory = directory();
    let file = directory.path().join("file");
    fs::write(&file, "").unwrap();
    assert_refused(&file, "ops", "nightly", "it is not a directory");
    assert_refused(directory.path(), "file", "nightly", "it is not a directory");
}

#[test]
fn name_that_is_too_long_for_a_file_is_refused() {
    let directory = directory();
    assert_refused(directory.path(), "ops", &"a".repeat(244), "longer than 243");
    let longest = opened(directory.path(), "ops", &"a".repeat(243)).unwrap();
    written(&longest, None, record("me", 1));
}

#[test]
fn directory_that_cannot_be_written_to_is_refused() {
    let directory = directory();
    let folder = directory.path().join("ops");
    fs::create_dir(&folder).unwrap();
    if nix::unistd::geteuid().is_root() {
        // Permissions do not bind root, but a read-only file system does.
        let Some(_mount) = Mount::tmpfs(&folder, "ro") else {
            return;
        };
        assert_refused(directory.path(), "ops", "nightly", "Read-only file system");
    } else {
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o555)).unwrap();
        assert_refused(directory.path(), "ops", "nightly", "Permission denied");
    }
}
