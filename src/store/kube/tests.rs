//! The store against a scripted HTTP server: what is asked, how often, and over which connection.

use std::{fs, net::TcpListener, time::Duration};

use futures_util::FutureExt;
use serde_json::{Value, json};

use self::server::{Reply, Seen, Server};
use super::*;
use crate::{
    clock::WallTime,
    lease::{Change, Identity, Record, Uid},
    store::{Watch, json},
};

mod credentials;
mod failures;
mod server;
mod watch;

fn lease(version: &str) -> Value {
    json!({
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {
            "name": "nightly", "namespace": "ops", "uid": "u-1", "resourceVersion": version,
            "creationTimestamp": "2026-11-21T07:00:00Z",
        },
        "spec": { "holderIdentity": "me", "leaseDurationSeconds": 15, "somethingNew": [1] },
    })
}

fn status(code: u16, reason: &str, message: &str, details: Value) -> Reply {
    let body = json!({
        "kind": "Status", "apiVersion": "v1", "status": "Failure",
        "code": code, "reason": reason, "message": message, "details": details,
    });
    Reply::Answer(code, body.to_string())
}

fn found(version: &str) -> Reply {
    Reply::Answer(200, lease(version).to_string())
}

fn claim(version: &str) -> Claim {
    json::claim_from_object(lease(version), None).unwrap()
}

fn record() -> Record {
    Record {
        holder: Identity::new("me"),
        duration: Some(Duration::from_secs(15)),
        acquire_time: None,
        renew_time: Some(WallTime { unix_micros: 0 }),
        transitions: 1,
        strategy: None,
    }
}

fn renewal() -> Write {
    Write {
        base: Some(claim("41")),
        record: record(),
    }
}

fn creation() -> Write {
    Write {
        base: None,
        record: record(),
    }
}

#[tokio::test]
async fn read_asks_etcd_and_counts_ages_by_the_servers_clock() {
    let date = "Date: Sat, 21 Nov 2026 07:01:40 GMT";
    let server = Server::new([Reply::With(200, date, lease("41").to_string())]);
    let claim = server.store().read().await.unwrap().unwrap();
    assert_eq!(claim.version.as_str(), "41");
    assert_eq!(claim.created_ago, Some(Duration::from_secs(100)));
    assert_eq!(claim.written_ago, None);
    let seen = server.seen();
    let path = "/apis/coordination.k8s.io/v1/namespaces/ops/leases/nightly";
    assert_eq!(seen[0].line, format!("GET {path} HTTP/1.1"));
    let agent = format!("user-agent: lease-exec/{}", env!("CARGO_PKG_VERSION"));
    for header in [
        "authorization: Bearer abc",
        "accept: application/json",
        &agent,
    ] {
        assert!(
            seen[0].headers.iter().any(|line| line == header),
            "{header}: {:?}",
            seen[0].headers
        );
    }
}

#[tokio::test]
async fn ages_are_unknown_without_a_date() {
    for header in ["x: y", "Date: yesterday"] {
        let server = Server::new([Reply::With(200, header, lease("41").to_string())]);
        let claim = server.store().read().await.unwrap().unwrap();
        assert_eq!((claim.created_ago, claim.written_ago), (None, None));
    }
}

#[tokio::test]
async fn every_write_is_a_put_and_names_the_uid_and_version_of_its_base() {
    let server = Server::new([found("42"), Reply::Answer(201, lease("43").to_string())]);
    let store = server.store();
    assert!(
        matches!(store.write(renewal()).await.unwrap(), Outcome::Written(claim) if claim.version.as_str() == "42")
    );
    assert!(matches!(
        store.write(creation()).await.unwrap(),
        Outcome::Written(_)
    ));
    let seen = server.seen();
    let path = "/apis/coordination.k8s.io/v1/namespaces/ops/leases/nightly";
    for seen in &seen {
        let line = format!("PUT {path}?&fieldManager=lease-exec-a HTTP/1.1");
        assert_eq!(seen.line, line);
    }
    let body: Value = serde_json::from_str(&seen[0].body).unwrap();
    assert_eq!(
        (
            &body["metadata"]["uid"],
            &body["metadata"]["resourceVersion"]
        ),
        (&json!("u-1"), &json!("41"))
    );
    assert_eq!(body["spec"]["renewTime"], "1970-01-01T00:00:00.000000Z");
    assert_eq!(body["spec"]["somethingNew"], json!([1]));
    let body: Value = serde_json::from_str(&seen[1].body).unwrap();
    assert_eq!(
        body["metadata"],
        json!({ "name": "nightly", "namespace": "ops" })
    );
}

#[tokio::test]
async fn conflicts_are_values() {
    let must = json!({ "causes": [{ "field": "metadata.resourceVersion", "message": "must be specified" }] });
    let gone = json!({ "kind": "leases", "name": "nightly" });
    for (write, reply) in [
        (
            renewal(),
            status(409, "Conflict", "the object has been modified", json!({})),
        ),
        (renewal(), status(404, "NotFound", "not found", gone)),
        (
            creation(),
            status(409, "AlreadyExists", "exists", json!({})),
        ),
        (
            creation(),
            status(422, "Invalid", "must be specified for an update", must),
        ),
    ] {
        let server = Server::new([reply]);
        assert_eq!(server.store().write(write).await, Ok(Outcome::Conflict));
    }
}

#[tokio::test]
async fn only_the_api_servers_own_word_proves_that_there_is_no_lease() {
    let details = json!({ "group": "coordination.k8s.io", "kind": "leases", "name": "nightly" });
    let server = Server::new([
        status(404, "NotFound", "leases \"nightly\" not found", details),
        Reply::Answer(404, "<html>not here</html>".into()),
        Reply::Answer(404, "404 page not found\n".into()),
        status(
            404,
            "NotFound",
            "the server could not find the requested resource",
            json!({}),
        ),
    ]);
    let store = server.store();
    assert_eq!(store.read().await, Ok(None));
    assert_eq!(
        store.read().await.unwrap_err().kind,
        FailureKind::Unreachable
    );
    // A server that is just starting answers so, too.
    let starting = store.read().await.unwrap_err();
    assert_eq!(starting.kind, FailureKind::Unreachable);
    assert_eq!(
        starting.message,
        "the server does not serve coordination.k8s.io leases, or it is still starting (404: 404 page not found)"
    );
    assert_eq!(
        store.read().await.unwrap_err().kind,
        FailureKind::Misconfigured
    );
}

#[tokio::test]
async fn nothing_is_repeated_behind_our_back_and_each_failure_costs_its_connection() {
    let server = Server::new([
        found("41"),
        Reply::With(429, "Retry-After: 5", String::new()),
        Reply::Answer(503, String::new()),
        Reply::Close,
        found("41"),
        found("41"),
    ]);
    let store = server.store();
    store.read().await.unwrap();
    let overloaded = store.read().await.unwrap_err();
    assert_eq!(overloaded.kind, FailureKind::Unreachable);
    assert_eq!(overloaded.retry_after, Some(Duration::from_secs(5)));
    assert_eq!(
        store.read().await.unwrap_err().kind,
        FailureKind::Unreachable
    );
    assert_eq!(
        store.read().await.unwrap_err().kind,
        FailureKind::Unreachable
    );
    store.read().await.unwrap();
    store.read().await.unwrap();
    assert_eq!(server.connections(), [0, 0, 1, 2, 3, 3]);
}

#[tokio::test]
async fn zero_to_retry_after_is_no_wish() {
    let body = json!({ "kind": "Status", "code": 429, "details": { "retryAfterSeconds": 0 } });
    let wish = json!({ "kind": "Status", "code": 429, "details": { "retryAfterSeconds": 3 } });
    let server = Server::new([
        Reply::With(429, "Retry-After: 0", String::new()),
        Reply::With(429, "Retry-After: 0", body.to_string()),
        Reply::With(429, "Retry-After: 0", wish.to_string()),
    ]);
    let store = server.store();
    for expected in [None, None, Some(Duration::from_secs(3))] {
        assert_eq!(store.read().await.unwrap_err().retry_after, expected);
    }
}

#[tokio::test]
async fn attempt_that_is_dropped_takes_its_connection_with_it() {
    let server = Server::new([found("41"), Reply::Silence, found("41")]);
    let store = server.store();
    store.read().await.unwrap();
    let dropped = tokio::time::timeout(Duration::from_millis(100), store.read()).await;
    assert!(dropped.is_err());
    store.read().await.unwrap();
    assert_eq!(server.connections(), [0, 0, 1]);
}

#[tokio::test]
async fn closed_port_is_named() {
    let free = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let mut server = Server::new([]);
    server.address = free;
    let failure = server.store().read().await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Unreachable);
    assert_eq!(
        failure.message,
        format!("connection refused (http://{free})")
    );
}

#[tokio::test]
async fn proxy_that_refuses_is_named_without_its_password() {
    let server = Server::new([Reply::Answer(407, String::new())]);
    let path = server.kubeconfig("token: abc");
    let text = fs::read_to_string(&path).unwrap();
    let direct = format!("server: 'http://{}'", server.address);
    let proxied = format!(
        "server: 'http://api.example', proxy-url: 'http://me:secret@{}'",
        server.address
    );
    fs::write(&path, text.replace(&direct, &proxied)).unwrap();
    let failure = server.store_from(path).read().await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Unreachable);
    let place = format!(
        "(http://api.example:80 through the proxy http://{})",
        server.address
    );
    let expected =
        format!("the proxy refuses the connection: 407 Proxy Authentication Required {place}");
    assert_eq!(failure.message, expected);
}

#[tokio::test]
async fn proxy_is_asked_for_a_tunnel_to_the_api_server() {
    let server = Server::new([Reply::Answer(200, String::new()), found("41"), found("41")]);
    let path = server.kubeconfig("as: alice");
    let text = fs::read_to_string(&path).unwrap();
    let direct = format!("server: 'http://{}'", server.address);
    let proxied = format!(
        "server: 'http://api.example', proxy-url: 'http://me:p%40ss@{}'",
        server.address
    );
    fs::write(&path, text.replace(&direct, &proxied)).unwrap();
    let store = server.store_from(path);
    store.read().await.unwrap();
    store.read().await.unwrap();

    let seen = server.seen();
    assert_eq!(seen[0].line, "CONNECT api.example:80 HTTP/1.1");
    // That is "me:p@ss".
    let authorization = "proxy-authorization: Basic bWU6cEBzcw==".to_owned();
    assert!(
        seen[0].headers.contains(&authorization),
        "{:?}",
        seen[0].headers
    );
    for seen in &seen[1..] {
        assert!(seen.line.starts_with("GET /apis/"), "{}", seen.line);
        assert!(
            seen.headers.contains(&"impersonate-user: alice".to_owned()),
            "{:?}",
            seen.headers
        );
        assert!(
            !seen
                .headers
                .iter()
                .any(|header| header.contains("bWU6cEBzcw"))
        );
    }
    assert_eq!(server.connections(), [0, 0, 0]);
}
