//! What the design takes for granted of an API server, asked of a real one in its own words.
//!
//! The contract says that the store keeps its promises; this says why it is built as it is. Where a
//! later server may do better, the case says which one.

use std::time::{Duration, Instant};

use http::Method;
use lease_exec::lease::{Outcome, Record, Write};
use lease_exec::names::LeaseName;
use lease_exec::store::Store;
use serde_json::{Value, json};

use super::kube::{Namespace, open};
use super::{Place, created, current, done, held, run, shown, write, written};
use crate::control_plane::{Answer, ControlPlane, Requests, User, needs_kubernetes};
use crate::wait::{LIMIT, wait_until};

// === Writes ===

/// With a version but no uid a write of ours would bring a deleted lease back, held by us.
#[test]
fn put_with_a_version_re_creates_a_deleted_lease_unless_it_names_the_uid() {
    let place = Namespace::new("put_with_a_version_re_creates_a_deleted_lease");
    let admin = place.server.client(User::Admin);
    let old = put(&admin, &place, &lease("a", 1)).body;
    for (uid, status) in [(Value::Null, 201), (old["metadata"]["uid"].clone(), 409)] {
        place.delete();
        let mut again = lease("a", 2);
        again["metadata"]["resourceVersion"] = old["metadata"]["resourceVersion"].clone();
        again["metadata"]["uid"] = uid;
        let answer = put(&admin, &place, &again);
        assert_eq!(answer.status, status, "{answer:?}");
        assert_eq!(place.object().is_some(), status == 201);
    }
}

/// That is what makes a PUT without either a safe way to create.
#[test]
fn put_without_uid_and_version_gets_422_if_there_is_a_lease() {
    let place = Namespace::new("put_without_uid_and_version_gets_422");
    let admin = place.server.client(User::Admin);
    assert_eq!(put(&admin, &place, &lease("a", 1)).status, 201);
    let before = place.object();
    let answer = put(&admin, &place, &lease("b", 2));
    assert_eq!(answer.status, 422, "{answer:?}");
    let field = &answer.body["details"]["causes"][0]["field"];
    assert_eq!(field, "metadata.resourceVersion");
    assert_eq!(place.object(), before);
}

/// Unlike POST's, the right to create by PUT can be given for one name.
#[test]
fn right_to_create_one_name_is_enough_for_put_and_not_for_post() {
    let place = Namespace::new("right_to_create_one_name_is_enough_for_put");
    let user = place
        .server
        .client(place.user(&["get", "create", "update", "watch"]));
    let post = user.send(&Method::POST, &place.leases(), Some(lease("a", 1)));
    assert_eq!(post.expect("an answer").status, 403);
    let other = format!("{}/other", place.leases());
    let mut body = lease("a", 1);
    body["metadata"]["name"] = json!("other");
    let put_other = user.send(&Method::PUT, &other, Some(body));
    assert_eq!(put_other.expect("an answer").status, 403);
    assert_eq!(put(&user, &place, &lease("a", 1)).status, 201);
}

/// A name that lease-exec lets through is one that Kubernetes can have, and the other way round.
#[test]
fn names_that_are_accepted_are_those_of_the_server() {
    let place = Namespace::new("names_that_are_accepted");
    let admin = place.server.client(User::Admin);
    let [longest, too_long] = [253, 254].map(|length| "n".repeat(length));
    let names = [
        "a", "7", "a-b", "a--b", "a.b", "a.7", "1.2.3.4", &longest, &too_long, "A", "a_b", "-a",
        "a-", ".a", "a.", "a..b", "a.-b", "a-.b", "a%20b", "%C3%A4", "a%3Ab", "a%2Bb",
    ];
    for name in names {
        let path = format!("{}/{name}", place.leases());
        let decoded = percent_encoding::percent_decode_str(name).decode_utf8();
        let decoded = decoded.expect("names are text");
        let mut body = lease("a", 1);
        body["metadata"]["name"] = json!(decoded);
        let answer = admin.send(&Method::PUT, &path, Some(body));
        let answer = answer.expect("an answer");
        let expected = match LeaseName::new(&decoded) {
            Ok(_) => 201,
            Err(_) => 422,
        };
        assert_eq!(answer.status, expected, "{decoded:?}: {answer:?}");
    }
}

/// The limits of what lease-exec takes and counts are the server's.
#[test]
fn fields_at_their_limits_are_accepted_and_beyond_them_refused() {
    let place = Namespace::new("fields_at_their_limits");
    let admin = place.server.client(User::Admin);
    let identities = [
        "a",
        "\u{e9}/\u{1f980} \\\"",
        &"i".repeat(200 + "_".len() + 32),
    ];
    for identity in identities {
        run(async {
            let store = place.open();
            let mut record = held(identity, 1);
            record.duration = Some(Duration::from_secs(i32::MAX as u64));
            record.transitions = i32::MAX as u32;
            let claim = created(&store, record.clone()).await;
            assert_eq!(current(&store).await.record, record);
            let free = Record {
                holder: None,
                duration: Some(Duration::from_secs(1)),
                ..record
            };
            written(&store, &claim, free).await;
        });
        place.delete();
    }
    let beyond = [
        ("leaseDurationSeconds", json!(0)),
        ("leaseDurationSeconds", json!(-1)),
        ("leaseDurationSeconds", json!(1_u64 << 31)),
        ("leaseTransitions", json!(-1)),
        ("leaseTransitions", json!(1_u64 << 31)),
    ];
    for (field, value) in beyond {
        let mut body = lease("a", 1);
        body["spec"][field] = value;
        let answer = put(&admin, &place, &body);
        // One that does not fit its type is not even read.
        assert!([400, 422].contains(&answer.status), "{body}: {answer:?}");
        assert_eq!(place.object(), None);
    }
}

#[test]
fn identical_bytes_make_no_event() {
    let place = Namespace::new("identical_bytes_make_no_event");
    let admin = place.server.client(User::Admin);
    let first = put(&admin, &place, &lease("a", 1)).body;
    let version = version(&first);
    let same = put(&admin, &place, &first);
    assert_eq!(same.status, 200, "{same:?}");
    assert_eq!(same.body["metadata"]["resourceVersion"], *version);
    let mut changed = first.clone();
    changed["spec"]["renewTime"] = json!("2026-01-01T00:00:00.000002Z");
    let changed = put(&admin, &place, &changed).body;
    let events = watch(&admin, &place, version, 1);
    assert_eq!(events.len(), 1, "{events:?}");
    assert_eq!(events[0]["object"], changed);
}

// === Several API servers ===

#[test]
fn two_api_servers_are_one_store_even_if_one_of_them_was_asleep() {
    let control_plane = ControlPlane::start();
    let mut second = control_plane.start_second_api_server();
    let kubeconfig = control_plane.kubeconfig(User::Admin);
    let first = open(kubeconfig, "default", "nightly");
    let kubeconfig = control_plane.kubeconfig_at(second.url(), "default", User::Admin);
    let other = open(kubeconfig, "default", "nightly");
    run(async {
        let mut claim = created(&first, held("a", 0)).await;
        for round in 1_i64..=10 {
            let stale = current(&other).await;
            assert_eq!(shown(&stale), shown(&claim));
            second.stop();
            claim = written(&first, &claim, held("a", round)).await;
            second.resume();
            // It may not have learnt of the write; a swap and a read show it all the same.
            let swap = write(&other, Some(&stale), held("b", round)).await;
            assert_eq!(swap, Outcome::Conflict);
            assert_eq!(shown(&current(&other).await), shown(&claim));
            claim = written(&other, &claim, held("b", round)).await;
            assert_eq!(shown(&current(&first).await), shown(&claim));
        }
    });
}

// === Reads ===

/// A read that the server's cache could answer would be worth nothing.
#[test]
fn our_read_asks_etcd_where_one_at_version_0_asks_the_cache() {
    let control_plane = ControlPlane::start();
    let store = open(control_plane.kubeconfig(User::Admin), "default", "nightly");
    run(async {
        let claim = created(&store, held("a", 1)).await;
        let path = "/apis/coordination.k8s.io/v1/namespaces/default/leases/nightly";
        let cached = format!("{path}?resourceVersion=0");
        wait_until("the cache has the lease", LIMIT, || {
            let (status, _) = control_plane.raw(Method::GET, &cached, None);
            (status == 200).then_some(())
        });
        control_plane.stop_etcd();
        let (status, object) = control_plane.raw(Method::GET, &cached, None);
        assert_eq!(status, 200, "{object}");
        assert_eq!(
            object["metadata"]["resourceVersion"],
            claim.version.as_str()
        );
        let read = tokio::time::timeout(Duration::from_secs(2), store.read()).await;
        assert!(
            !matches!(read, Ok(Ok(_))),
            "answered without etcd: {read:?}"
        );
        control_plane.continue_etcd();
        assert_eq!(shown(&current(&store).await), shown(&claim));
    });
}

// === Watches ===

#[test]
fn watch_of_one_name_needs_neither_the_right_to_list_nor_that_to_watch_all() {
    let place = Namespace::new("watch_of_one_name_needs_no_right_to_list");
    let user = place
        .server
        .client(place.user(&["create", "update", "watch"]));
    let born = put(&user, &place, &lease("a", 1)).body;
    for path in [
        place.leases(),
        format!("{}?watch=1&timeoutSeconds=1", place.leases()),
        format!(
            "{}?watch=1&timeoutSeconds=1&fieldSelector=metadata.name%3Dother",
            place.leases()
        ),
    ] {
        let answer = user.send(&Method::GET, &path, None).expect("an answer");
        assert_eq!(answer.status, 403, "{path}: {answer:?}");
    }
    place.put({
        let mut object = born.clone();
        object["spec"]["holderIdentity"] = json!("b");
        object
    });
    let events = watch(&user, &place, version(&born), 1);
    assert_eq!(events.len(), 1, "{events:?}");
    assert_eq!(events[0]["object"]["spec"]["holderIdentity"], "b");
}

#[test]
fn server_ends_a_watch_when_it_was_asked_to() {
    let place = Namespace::new("server_ends_a_watch_when_it_was_asked_to");
    let admin = place.server.client(User::Admin);
    let born = put(&admin, &place, &lease("a", 1)).body;
    let began = Instant::now();
    assert_eq!(watch(&admin, &place, version(&born), 2).len(), 0);
    let took = began.elapsed();
    assert!(took >= Duration::from_secs(2), "it ended after {took:?}");
}

// === The server's clock ===

#[test]
fn creation_and_managed_fields_are_stamped_with_the_clock_of_the_date_header() {
    let place = Namespace::new("creation_and_managed_fields_are_stamped");
    let admin = place.server.client(User::Admin);
    let born = put(&admin, &place, &lease("a", 1));
    let date = jiff::fmt::rfc2822::DateTimeParser::new()
        .parse_timestamp(born.header("date"))
        .expect("an answer has a date");
    let metadata = &born.body["metadata"];
    for stamp in [
        &metadata["creationTimestamp"],
        &metadata["managedFields"][0]["time"],
    ] {
        let time: jiff::Timestamp = stamp
            .as_str()
            .expect("a time")
            .parse()
            .expect("times are RFC 3339");
        let age = date.duration_since(time).as_secs();
        assert!((0..=1).contains(&age), "{date} is not just after {time}");
    }
}

/// Servers from 1.20 to 1.25 leave an entry's time alone as long as its manager owns the same
/// fields (kubernetes/kubernetes#110058); so the field must move to another manager.
#[test]
fn every_write_of_ours_moves_the_renew_time_to_the_other_manager_with_a_new_time() {
    let place = Namespace::new("every_write_of_ours_moves_the_renew_time");
    run(async {
        let store = place.open();
        let mut claim = created(&store, held("a", 0)).await;
        let mut last = owner_of_renew_time(&place.object().expect("it was created"));
        for round in 1..=4 {
            let due = next_second(&last.1);
            wait_until("the clock shows the next second", LIMIT, || {
                (jiff::Timestamp::now() >= due).then_some(())
            });
            claim = written(&store, &claim, held("a", round)).await;
            let age = claim.written_ago.expect("the server has stamped it");
            assert!(age <= Duration::from_secs(1), "{claim:?}");
            let owner = owner_of_renew_time(&place.object().expect("it was written"));
            assert_ne!(owner.0, last.0, "the same manager has written twice");
            assert!(owner.1 > last.1, "{owner:?} is not later than {last:?}");
            last = owner;
        }
    });
}

/// What would make the second manager needless, if there were no older servers.
#[test]
fn a_manager_that_writes_twice_moves_the_time_of_its_entry() {
    if !needs_kubernetes(25, "kubernetes/kubernetes#110058") {
        return;
    }
    let place = Namespace::new("a_manager_that_writes_twice_moves_the_time");
    let admin = place.server.client(User::Admin);
    let born = put(&admin, &place, &lease("a", 1)).body;
    let before = owner_of_renew_time(&born);
    let due = next_second(&before.1);
    wait_until("the clock shows the next second", LIMIT, || {
        (jiff::Timestamp::now() >= due).then_some(())
    });
    let mut changed = born;
    changed["spec"]["renewTime"] = json!("2026-01-01T00:00:00.000002Z");
    let after = owner_of_renew_time(&put(&admin, &place, &changed).body);
    assert_eq!(after.0, before.0);
    assert!(after.1 > before.1, "{after:?} is not later than {before:?}");
}

// === Namespaces ===

#[test]
fn nothing_is_created_in_a_namespace_that_is_being_deleted_and_what_is_there_is_renewed() {
    let place = Namespace::new("nothing_is_created_in_a_namespace_that_is_being_deleted");
    run(async {
        let store = place.open();
        let claim = created(&store, held("a", 1)).await;
        // Nobody here empties namespaces, so that this one stays as it is.
        let path = format!("/api/v1/namespaces/{}", place.name);
        let (status, answer) = place.server.raw(Method::DELETE, &path, None);
        assert_eq!(status, 200, "{answer}");
        let claim = written(&store, &claim, held("a", 2)).await;
        place.delete();
        assert_eq!(done(store.read()).await, None);
        assert_eq!(
            write(&store, Some(&claim), held("a", 3)).await,
            Outcome::Conflict
        );
        let attempt = Write {
            base: None,
            record: held("a", 4),
        };
        let failure = store.write(attempt).await.expect_err("it may not be made");
        assert!(
            failure.message.contains("is being deleted"),
            "{}",
            failure.message
        );
    });
}

// === What the cases are told in ===

pub(super) fn lease(holder: &str, micros: u32) -> Value {
    json!({
        "metadata": {"name": "nightly"},
        "spec": {
            "holderIdentity": holder,
            "leaseDurationSeconds": 15,
            "renewTime": format!("2026-01-01T00:00:00.{micros:06}Z"),
        },
    })
}

pub(super) fn put(client: &Requests, place: &Namespace, lease: &Value) -> Answer {
    let answer = client.send(&Method::PUT, &place.nightly(), Some(lease.clone()));
    answer.expect("an answer")
}

fn version(object: &Value) -> &str {
    let version = object["metadata"]["resourceVersion"].as_str();
    version.expect("a stored object has a version")
}

/// The events of the lease `nightly` since a version, until the server ends the watch.
fn watch(client: &Requests, place: &Namespace, version: &str, seconds: u32) -> Vec<Value> {
    let path = format!(
        "{}?watch=1&fieldSelector=metadata.name%3Dnightly&resourceVersion={version}\
         &timeoutSeconds={seconds}",
        place.leases()
    );
    let answer = client.send(&Method::GET, &path, None).expect("an answer");
    assert_eq!(answer.status, 200, "{answer:?}");
    // One event alone is JSON; several, each on a line of its own, are not.
    match answer.body {
        Value::String(text) => text
            .lines()
            .map(|line| serde_json::from_str(line).expect("an event is JSON"))
            .collect(),
        event => vec![event],
    }
}

/// The manager that owns `spec.renewTime`, and when it got it.
fn owner_of_renew_time(object: &Value) -> (String, String) {
    let entries = object["metadata"]["managedFields"].as_array();
    let entries = entries.expect("the server tracks fields");
    let owners = entries
        .iter()
        .filter(|entry| !entry["fieldsV1"]["f:spec"]["f:renewTime"].is_null())
        .collect::<Vec<_>>();
    let [owner] = owners[..] else {
        panic!("not exactly one manager owns the field: {entries:?}");
    };
    let text = |field: &str| owner[field].as_str().unwrap_or_default().to_owned();
    (text("manager"), text("time"))
}

/// Times of entries have whole seconds.
fn next_second(time: &str) -> jiff::Timestamp {
    let time: jiff::Timestamp = time.parse().expect("times are RFC 3339");
    time + jiff::SignedDuration::from_secs(1)
}
