//! What a watch says, and when it is over.

use nix::time::{ClockId, clock_gettime};

use super::*;
use crate::store::kube::watch::Lines;

#[tokio::test]
async fn watch_tells_what_happens_to_its_lease_until_it_ends() {
    let event =
        |kind: &str, object: Value| format!("{}\n", json!({ "type": kind, "object": object }));
    let mut other = lease("50");
    other["metadata"]["name"] = json!("weekly");
    let written = event("MODIFIED", lease("42"));
    let (half, rest) = written.split_at(40);
    let server = Server::new([Reply::Lines(vec![
        half.into(),
        format!("{rest}{}", event("BOOKMARK", lease("43"))),
        event("ADDED", other),
        event("DELETED", lease("44")),
        event(
            "ERROR",
            json!({ "kind": "Status", "code": 410, "message": "too old resource version: 1 (2)" }),
        ),
        event("MODIFIED", lease("45")),
    ])]);
    let mut watch = server.store().watch(Version::new("41"));
    assert!(
        matches!(watch.next().await, Change::Written(claim) if claim.version.as_str() == "42" && claim.uid == Uid("u-1".into()))
    );
    assert!(matches!(watch.next().await, Change::Deleted(claim) if claim.version.as_str() == "44"));
    let ended = "the API server ended the watch (410: too old resource version: 1 (2))";
    assert_eq!(watch.next().await, Change::Ended(ended.into()));
    assert!(watch.next().now_or_never().is_none());
    let line = server.seen()[0].line.clone();
    let start =
        "GET /apis/coordination.k8s.io/v1/namespaces/ops/leases?&watch=true&timeoutSeconds=2";
    assert!(
        line.starts_with(start)
            && line.ends_with("&fieldSelector=metadata.name%3Dnightly&resourceVersion=41 HTTP/1.1"),
        "{line}"
    );
}

#[tokio::test]
async fn watch_that_gives_nonsense_ends() {
    for (line, named) in [
        ("<html>\n".to_owned(), "something else than events"),
        ("{\"type\": \"SURPRISE\"}\n".to_owned(), "something else than events"),
        (
            json!({ "type": "MODIFIED", "object": { "kind": "Lease", "metadata": { "name": "nightly" } } }).to_string() + "\n",
            "no metadata.uid",
        ),
        ("x".repeat(3 << 20), "too large"),
        ("{".to_owned(), "ended the watch"),
    ] {
        let server = Server::new([Reply::Lines(vec![line])]);
        let change = server.store().watch(None).next().await;
        assert!(matches!(&change, Change::Ended(message) if message.contains(named)), "{named}: {change:?}");
    }
}

#[tokio::test]
async fn line_that_is_no_object_ends_the_watch() {
    for line in ["[]\n", "42\n", "\"x\"\n", "true\n", "null\n"] {
        let server = Server::new([Reply::Lines(vec![line.to_owned()])]);
        let change = server.store().watch(None).next().await;
        let ended = "the watch gave something else than events";
        assert_eq!(change, Change::Ended(ended.into()), "{line}");
    }
}

/// The processor time for so many empty lines that come in one piece, before an event. What other
/// threads and processes do in between does not count.
async fn time_for_empty_lines(count: usize) -> Duration {
    let server = Server::new([]);
    let mut text = vec![b'\n'; count];
    text.extend_from_slice(b"{}\nrest");
    let end = tokio::time::Instant::now() + Duration::from_secs(600);
    let mut lines = Lines::of(text.into(), end);
    let connections = server.store().connections;
    let since = processor_time();
    assert_eq!(lines.next(&connections).await, Ok(b"{}\n".to_vec()));
    let elapsed = processor_time() - since;
    let ended = lines.next(&connections).await;
    assert_eq!(ended, Err("the API server ended the watch".into()));
    elapsed
}

/// How long this thread has run.
fn processor_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)
        .unwrap()
        .into()
}

#[tokio::test]
async fn eight_times_as_many_lines_take_some_eight_times_as_long() {
    let (mut few, mut many) = (Duration::MAX, Duration::MAX);
    // The shortest of some times is the one that met with the fewest interruptions.
    for _ in 0..5 {
        few = few.min(time_for_empty_lines(20_000).await);
        many = many.min(time_for_empty_lines(160_000).await);
    }
    assert!(many < few * 24, "{few:?} and {many:?}");
}

#[tokio::test]
async fn watch_goes_on_after_megabytes_of_empty_lines() {
    let event = json!({ "type": "MODIFIED", "object": lease("42") });
    let empty = "\n".repeat(1 << 20);
    let mut lines = vec![empty; 4];
    lines.push(format!("{event}\n"));
    let server = Server::new([Reply::Lines(lines)]);
    let mut watch = server.store().watch(None);
    assert!(matches!(watch.next().await, Change::Written(claim) if claim.version.as_str() == "42"));
    let ended = "the API server ended the watch";
    assert_eq!(watch.next().await, Change::Ended(ended.into()));
}

#[tokio::test]
async fn watch_without_the_right_is_refused_with_the_rule() {
    let message = "leases is forbidden: User \"me\" cannot watch resource \"leases\"";
    let server = Server::new([status(403, "Forbidden", message, json!({}))]);
    let mut watch = server.store().watch(None);
    let Change::Refused(failure) = watch.next().await else {
        panic!("it was not refused");
    };
    assert_eq!(failure.kind, FailureKind::Forbidden);
    assert!(
        failure
            .message
            .starts_with("the user \"me\" may not watch the lease ops/nightly; "),
        "{}",
        failure.message
    );
    assert!(watch.next().now_or_never().is_none());
}

#[tokio::test]
async fn watch_has_a_connection_of_its_own() {
    let server = Server::new([found("41"), Reply::Silence, found("41")]);
    let store = server.store();
    store.read().await.unwrap();
    let mut watch = store.watch(None);
    assert!(
        tokio::time::timeout(Duration::from_millis(100), watch.next())
            .await
            .is_err()
    );
    store.read().await.unwrap();
    assert_eq!(server.connections(), [0, 1, 0]);
}

#[tokio::test]
async fn watch_that_the_server_forgets_to_end_ends_by_itself() {
    let event = json!({ "type": "MODIFIED", "object": lease("42") });
    let server = Server::new([Reply::Begin(vec![format!("{event}\n")])]);
    let store = server.store();
    let mut watch = KubeWatch::start_for(
        store.connections.clone(),
        store.target.clone(),
        None,
        Duration::from_secs(1),
        Duration::from_millis(1),
    );
    assert!(matches!(watch.next().await, Change::Written(_)));
    let ended = "the API server did not end the watch in time";
    assert_eq!(watch.next().await, Change::Ended(ended.into()));
    assert!(server.seen()[0].line.contains("&timeoutSeconds=1&"));
}
