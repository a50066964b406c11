//! The lock, deaths at any instant, and disks that are full.

use super::*;

#[test]
fn stopped_lock_holder_hangs_nobody() {
    let directory = directory();
    let store = open(&directory);
    let claim = written(&store, None, record("me", 1));
    let lock = store.file.disk.lock().unwrap();
    let start = Instant::now();
    let base = Some(claim.clone());
    let failure = store
        .file
        .write(&Write {
            base,
            record: record("me", 2),
        })
        .unwrap_err();
    assert!(start.elapsed() >= LOCK_LIMIT);
    assert_eq!(failure.kind, FailureKind::Unreachable);
    assert!(
        failure.message.contains("ops/.nightly.lock"),
        "{}",
        failure.message
    );
    // To read what is settled needs no lock.
    assert_eq!(read(&store).version, claim.version);
    drop(lock);
    written(&store, Some(&claim), record("me", 2));
}

#[test]
fn lock_is_not_inherited_by_commands() {
    let directory = directory();
    let store = open(&directory);
    let lock = store.file.disk.lock().unwrap();
    let flags = fcntl(lock.file(), FcntlArg::F_GETFD).unwrap();
    assert!(FdFlag::from_bits_truncate(flags).contains(FdFlag::FD_CLOEXEC));
    // Even a copy that got away does not keep the lock.
    let _copy = lock.file().try_clone().unwrap();
    drop(lock);
    store.file.disk.lock().unwrap();
}

#[test]
fn lock_of_a_removed_folder_locks_nothing() {
    let directory = directory();
    let store = open(&directory);
    let other = open(&directory);
    let stale = other.file.disk.lock().unwrap();
    fs::remove_dir_all(&store.file.disk.folder).unwrap();
    assert!(!store.file.disk.is_in_place(&stale).unwrap());
    // The folder is made again, with another lock.
    written(&store, None, record("me", 1));
    assert!(!store.file.disk.is_in_place(&stale).unwrap());
}

#[test]
fn death_between_ledger_and_lease_gives_no_version_twice() {
    let directory = directory();
    let store = open(&directory);
    let created = written(&store, None, record("me", 1));
    let old = fs::read_to_string(store.path()).unwrap();
    let lost = written(&store, Some(&created), record("other", 2));
    // As if the second write had been killed before its last rename.
    fs::write(store.path(), old).unwrap();
    let found = read(&store);
    assert!(found.version > lost.version);
    assert_eq!(found.record, created.record);
    assert_eq!(found.uid, created.uid);
    assert_eq!(
        write(&store, Some(&lost), record("other", 3)),
        Outcome::Conflict
    );

    // The same for a creation.
    fs::remove_file(store.path()).unwrap();
    assert!(is_absent(&store));
    let lost = written(&store, None, record("me", 4));
    fs::remove_file(store.path()).unwrap();
    assert!(is_absent(&store));
    assert!(written(&store, None, record("me", 5)).version > lost.version);
}

#[test]
fn reader_never_sees_half_a_file() {
    let directory = directory();
    let store = open(&directory);
    written(&store, None, record("me", 0));
    // Long enough for a write(2) in place to be seen half done.
    let note = "x".repeat(200_000);
    edit(
        &store,
        "\"spec\": {",
        &format!("\"spec\": {{\"note\": \"{note}\", "),
    );
    let mut claim = read(&store);
    let done = AtomicBool::new(false);
    let looks = AtomicU64::new(0);
    thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut last = 0;
            while !done.load(Ordering::Relaxed) {
                let text = fs::read_to_string(store.path()).unwrap();
                let object: Value = serde_json::from_str(&text).unwrap();
                assert_eq!(
                    object["spec"]["note"].as_str().map(str::len),
                    Some(note.len())
                );
                let version = number(&read(&store));
                assert!(version >= last);
                last = version;
                looks.fetch_add(1, Ordering::Relaxed);
            }
        });
        for micros in 1..60 {
            let before = looks.load(Ordering::Relaxed);
            claim = written(&store, Some(&claim), record("me", micros));
            // A writer that never pauses can keep the lock from the reader for as long as it likes.
            while looks.load(Ordering::Relaxed) == before && !reader.is_finished() {
                thread::yield_now();
            }
        }
        done.store(true, Ordering::Relaxed);
        reader.join().unwrap();
    });
}

#[test]
fn what_a_killed_writer_left_behind_is_replaced() {
    let directory = directory();
    let store = open(&directory);
    let claim = written(&store, None, record("me", 1));
    let usual = names(&store);
    let outside = directory.path().join("outside");
    fs::write(&outside, "keep").unwrap();
    fs::write(store.file.disk.folder.join(".nightly.ledger.new"), "{").unwrap();
    std::os::unix::fs::symlink(&outside, store.file.disk.folder.join("nightly.json.new")).unwrap();
    written(&store, Some(&claim), record("me", 2));
    assert_eq!(names(&store), usual);
    assert_eq!(fs::read_to_string(outside).unwrap(), "keep");
}

#[test]
fn writer_killed_at_any_instant_leaves_a_lease_that_reads_and_grows() {
    let directory = directory();
    let store = open(&directory);
    let folder = store.file.disk.folder.clone();
    let mut last = 0;
    for round in 0..25_u64 {
        let mut writer = Writer::start(&directory);
        until("the writer writes", || {
            let text = fs::read_to_string(store.path()).ok()?;
            let object: Value = serde_json::from_str(&text).unwrap();
            let version: u64 = object["metadata"]["resourceVersion"]
                .as_str()?
                .parse()
                .unwrap();
            (version > last + 1).then_some(())
        });
        // Any instant will do; these are spread over several writes.
        thread::sleep(Duration::from_micros(round * 397 % 5000));
        writer.kill();
        let claim = read(&store);
        assert!(number(&claim) > last, "{} after {last}", claim.version);
        let written = written(&store, Some(&claim), record("me", 1));
        assert!(written.version > claim.version);
        last = number(&written);
        let litter: Vec<_> = fs::read_dir(&folder).unwrap().collect();
        assert_eq!(litter.len(), 3, "{litter:?}");
    }
}

/// Not a test by itself but the process that the test above kills.
#[test]
fn helper_that_writes_until_it_is_killed() {
    let Some(directory) = std::env::var_os(WRITER_DIRECTORY) else {
        return;
    };
    let directory = PathBuf::from(directory);
    let store = opened(&directory, "ops", "nightly").unwrap();
    // The end is for when the test has died before it could kill us.
    let end = Instant::now() + LIMIT;
    for micros in 2.. {
        let current = store.file.claim(&store.file.read().unwrap()).unwrap();
        write(&store, current.as_ref(), record("writer", micros));
        assert!(Instant::now() < end, "nobody killed the writer");
    }
}

const WRITER_DIRECTORY: &str = "LEASE_EXEC_TEST_WRITER_DIRECTORY";

struct Writer(Child);

impl Writer {
    fn start(directory: &TempDir) -> Self {
        let helper = "store::file::tests::deaths::helper_that_writes_until_it_is_killed";
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", helper, "--test-threads=1"])
            .env(WRITER_DIRECTORY, directory.path())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        Self(child)
    }

    fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn full_disk_fails_the_write_and_harms_nothing() {
    let directory = directory();
    let Some(_mount) = Mount::tmpfs(directory.path(), "size=64k") else {
        return;
    };
    let store = open(&directory);
    let claim = written(&store, None, record("me", 1));
    let usual = names(&store);
    let text = fs::read_to_string(store.path()).unwrap();
    let filler = directory.path().join("filler");
    fs::write(&filler, vec![0; 1 << 20]).unwrap_err();
    // No page is left, then one: the lease's file fits, the ledger's does not.
    for spare in [0, 4096] {
        let filled = fs::metadata(&filler).unwrap().len();
        let file = fs::OpenOptions::new().write(true).open(&filler).unwrap();
        file.set_len(filled - spare).unwrap();
        let base = Some(claim.clone());
        let failure = store
            .file
            .write(&Write {
                base,
                record: record("me", 2),
            })
            .unwrap_err();
        assert_eq!(failure.kind, FailureKind::Unreachable);
        assert!(
            failure.message.contains("No space left on device"),
            "{}",
            failure.message
        );
        assert_eq!(names(&store), usual);
        assert_eq!(fs::read_to_string(store.path()).unwrap(), text);
        assert_eq!(read(&store).version, claim.version);
    }
    fs::remove_file(filler).unwrap();
    written(&store, Some(&claim), record("me", 2));
}
