use super::*;
use crate::lease::Identity;

const A: Replica = Replica(0);
const SECOND: u64 = 1_000_000;

fn server() -> Server {
    Server::new(8, vec![0, 3_000_000])
}

fn record(holder: &str) -> Record {
    Record {
        holder: Identity::new(holder),
        duration: Some(Duration::from_secs(15)),
        ..Record::default()
    }
}

/// A PUT with these preconditions.
fn put(uid: Option<&Uid>, version: Option<&Version>, holder: &str) -> Put {
    Put {
        uid: uid.cloned(),
        version: version.cloned(),
        record: record(holder),
        by: Writer::LeaseExec,
    }
}

#[test]
fn a_put_without_preconditions_creates_and_never_overwrites() {
    let mut server = server();
    assert_eq!(server.put(0, A, put(None, None, "a")), Status::Created);
    assert_eq!(server.put(0, A, put(None, None, "b")), Status::Invalid);
    let claim = server.read(0, A).expect("created");
    assert_eq!(claim.record, record("a"));
    assert_eq!(revision(&claim.version), 9);
}

#[test]
fn a_put_needs_the_version_and_the_uid_that_are_stored() {
    let mut server = server();
    server.put(0, A, put(None, None, "a"));
    let old = server.read(0, A).expect("created");
    let swap = put(Some(&old.uid), Some(&old.version), "b");
    assert_eq!(server.put(0, A, swap.clone()), Status::Updated);
    assert_eq!(server.put(0, A, swap), Status::Conflict);
    let new = server.read(0, A).expect("stored");
    assert!(new.version > old.version, "from 9 to 10");
    let stranger = Uid("another".to_owned());
    let wrong = put(Some(&stranger), Some(&new.version), "c");
    assert_eq!(server.put(0, A, wrong), Status::Conflict);
    let unconditional = put(Some(&new.uid), None, "c");
    assert_eq!(server.put(0, A, unconditional), Status::Invalid);
    assert_eq!(server.read(0, A).expect("stored"), new);
}

#[test]
fn a_version_without_a_uid_makes_a_deleted_lease_again() {
    let mut server = server();
    server.put(0, A, put(None, None, "a"));
    let old = server.read(0, A).expect("created");
    server.delete();
    assert_eq!(server.read(0, A), None);
    let with_uid = put(Some(&old.uid), Some(&old.version), "a");
    assert_eq!(server.put(0, A, with_uid), Status::Conflict);
    let without = put(None, Some(&old.version), "a");
    assert_eq!(server.put(0, A, without), Status::Created);
    let new = server.read(0, A).expect("made again");
    assert_ne!(new.uid, old.uid);
    assert!(new.version > old.version);
}

#[test]
fn identical_bytes_make_no_new_version() {
    let mut server = server();
    server.put(0, A, put(None, None, "a"));
    let old = server.read(0, A).expect("created");
    let same = put(Some(&old.uid), Some(&old.version), "a");
    assert_eq!(server.put(5 * SECOND, A, same), Status::Unchanged);
    assert_eq!(server.events_after(8).map(|events| events.len()), Ok(1));
    assert_eq!(server.read(0, A).expect("stored"), old);
}

#[test]
fn nothing_is_created_in_a_namespace_that_ends() {
    let mut server = server();
    server.put(0, A, put(None, None, "a"));
    let claim = server.read(0, A).expect("created");
    server.terminating = true;
    let renewal = put(Some(&claim.uid), Some(&claim.version), "b");
    assert_eq!(server.put(0, A, renewal), Status::Updated);
    server.delete();
    assert_eq!(server.put(0, A, put(None, None, "a")), Status::Terminating);
}

#[test]
fn ages_are_by_the_clock_of_the_server_that_answers() {
    let mut server = server();
    server.put(SECOND / 2, A, put(None, None, "a"));
    let ages = |server: &Server, now, replica| {
        let claim = server.read(now, Replica(replica)).expect("stored");
        let seconds = |age: Option<Duration>| age.map(|age| age.as_secs());
        (seconds(claim.written_ago), seconds(claim.created_ago))
    };
    // Whole seconds on both sides.
    assert_eq!(ages(&server, SECOND, 0), (Some(1), Some(1)));
    assert_eq!(ages(&server, 2 * SECOND, 1), (Some(5), Some(5)));
    let swap = |server: &Server, by| {
        let claim = server.read(0, A).expect("stored");
        Put {
            by,
            ..put(Some(&claim.uid), Some(&claim.version), "b")
        }
    };
    let renewal = swap(&server, Writer::LeaseExec);
    server.put(10 * SECOND, Replica(1), renewal);
    // The server that wrote is ahead of the one that answers.
    assert_eq!(ages(&server, 11 * SECOND, 0), (None, Some(11)));
    assert_eq!(ages(&server, 20 * SECOND, 0), (Some(7), Some(20)));
    server.edit(21 * SECOND, Writer::Editor, |record| record.duration = None);
    assert_eq!(ages(&server, 22 * SECOND, 0), (Some(9), Some(22)));
    server.edit(23 * SECOND, Writer::Stranger, |_| {});
    assert_eq!(ages(&server, 24 * SECOND, 0), (None, Some(24)));
}

#[test]
fn a_watch_is_given_every_event_after_its_version_or_none() {
    let mut server = server();
    server.put(0, A, put(None, None, "a"));
    server.edit(1, Writer::Editor, |record| record.holder = None);
    server.delete();
    let events = server.events_after(9).expect("not compacted");
    assert_eq!(events.len(), 2);
    let Change::Written(edited) = &*events[0] else {
        panic!("{:?}", events[0]);
    };
    assert_eq!((edited.written_ago, edited.created_ago), (None, None));
    assert_eq!(edited.record.holder, None);
    let Change::Deleted(last) = &*events[1] else {
        panic!("{:?}", events[1]);
    };
    assert_eq!(revision(&last.version), 11);
    assert_eq!(last.record, edited.record);
    server.compact();
    assert_eq!(server.events_after(9), Err(Gone));
    assert_eq!(server.events_after(11), Ok(Vec::new()));
    for _ in 0..2 * EVENTS {
        server.edit(1, Writer::Editor, |_| {});
        server.put(0, A, put(None, None, "a"));
    }
    assert_eq!(server.events_after(11), Err(Gone));
}
