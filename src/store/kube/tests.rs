//! The store against a scripted HTTP server: what is asked, how often, and over which connection.

use std::{fs, net::TcpListener, time::Duration};

use futures_util::FutureExt;
use serde_json::{Value, json};

use self::server::{Reply, Seen, Server};
use super::*;
use crate::{
    clock::WallTime,
    lease::{Identity, Record, Uid},
    store::{Change, Watch, json},
};

mod server;

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
    assert_eq!(claim.written_ago, Some(Duration::from_secs(100)));
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
        assert_eq!(seen.line, format!("PUT {path} HTTP/1.1"));
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
    assert_eq!(
        store.read().await.unwrap_err().kind,
        FailureKind::Misconfigured
    );
    assert_eq!(
        store.read().await.unwrap_err().kind,
        FailureKind::Misconfigured
    );
}

#[tokio::test]
async fn each_failure_is_one_attempt_and_one_sentence() {
    use FailureKind::{
        Forbidden, Malformed, Misconfigured, NoNamespace, Unauthorized, Unreachable,
    };
    let forbidden = "leases.coordination.k8s.io \"nightly\" is forbidden: User \"system:serviceaccount:ops:x\" cannot \
                     update resource \"leases\" in API group \"coordination.k8s.io\" in the namespace \"ops\"";
    let terminating = json!({ "causes": [{ "reason": "NamespaceTerminating" }] });
    for (write, reply, kind, message) in [
        (
            renewal(),
            status(401, "Unauthorized", "Unauthorized", json!({})),
            Unauthorized,
            "the API server does not accept the credentials (401: Unauthorized)",
        ),
        (
            renewal(),
            status(403, "Forbidden", forbidden, json!({})),
            Forbidden,
            "the user \"system:serviceaccount:ops:x\" may not update the lease ops/nightly; bind to it a Role in the \
             namespace \"ops\" with the rule {apiGroups: [coordination.k8s.io], resources: [leases], resourceNames: \
             [nightly], verbs: [get, create, update, watch]}",
        ),
        (
            creation(),
            status(
                403,
                "Forbidden",
                "admission webhook \"w\" denied the request",
                json!({}),
            ),
            Forbidden,
            "the API server forbids it (403: admission webhook \"w\" denied the request)",
        ),
        (
            creation(),
            status(
                403,
                "Forbidden",
                "unable to create new content",
                terminating,
            ),
            NoNamespace,
            "the namespace \"ops\" is being deleted",
        ),
        (
            creation(),
            status(
                404,
                "NotFound",
                "namespaces \"ops\" not found",
                json!({ "kind": "namespaces" }),
            ),
            NoNamespace,
            "the namespace \"ops\" does not exist",
        ),
        (
            renewal(),
            status(422, "Invalid", "spec.strategy: is wrong", json!({})),
            Malformed,
            "the API server refuses the request (422: spec.strategy: is wrong)",
        ),
        (
            creation(),
            status(422, "Invalid", "metadata.name: is wrong", json!({})),
            Misconfigured,
            "the API server refuses the request (422: metadata.name: is wrong)",
        ),
        (
            renewal(),
            status(
                500,
                "InternalError",
                "etcdserver: leader changed",
                json!({}),
            ),
            Unreachable,
            "no usable answer from the API server (500: etcdserver: leader changed)",
        ),
        (
            renewal(),
            Reply::Answer(
                400,
                "Client sent an HTTP request to an HTTPS server.\n".into(),
            ),
            Misconfigured,
            "the API server refuses the request (400: Client sent an HTTP request to an HTTPS server)",
        ),
        (
            creation(),
            status(
                403,
                "Forbidden",
                "x: User \"system:anonymous\" cannot update resource",
                json!({}),
            ),
            Forbidden,
            "the API server takes us for system:anonymous: the configuration holds no credentials that it knows",
        ),
        (
            renewal(),
            Reply::Answer(302, String::new()),
            Unreachable,
            "no usable answer from the API server (302 Found)",
        ),
        (
            renewal(),
            Reply::Answer(200, "<html>please log in</html>".into()),
            Unreachable,
            "the answer is not the API server's, as it is no JSON; is there a proxy in between?",
        ),
    ] {
        let server = Server::new([reply]);
        let failure = server.store().write(write).await.unwrap_err();
        assert_eq!((failure.kind, failure.message.as_str()), (kind, message));
        assert_eq!(server.seen().len(), 1);
    }
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

fn sent_token(seen: &Seen) -> &str {
    let header = seen
        .headers
        .iter()
        .find_map(|line| line.strip_prefix("authorization: Bearer "));
    header.unwrap_or_default()
}

#[tokio::test]
async fn refused_token_is_read_again_before_the_next_attempt() {
    let server = Server::new([
        status(401, "Unauthorized", "Unauthorized", json!({})),
        found("41"),
    ]);
    let token = server.directory.path().join("token");
    fs::write(&token, "old\n").unwrap();
    let store = server.store_as("tokenFile: token");
    // As long as the old and as old: nothing but the refusal tells that it is another.
    let file = fs::File::options().write(true).open(&token).unwrap();
    let modified = file.metadata().unwrap().modified().unwrap();
    fs::write(&token, "new\n").unwrap();
    file.set_modified(modified).unwrap();

    let refused = store.read().await.unwrap_err();
    assert_eq!(refused.kind, FailureKind::Unauthorized);
    store.read().await.unwrap();
    let seen = server.seen();
    assert_eq!((sent_token(&seen[0]), sent_token(&seen[1])), ("old", "new"));
}

#[tokio::test]
async fn changed_token_is_taken_up_without_a_refusal_or_a_wait() {
    let server = Server::new((0..1000).map(|_| found("41")));
    let token = server.directory.path().join("token");
    fs::write(&token, "old").unwrap();
    let store = server.store_as("tokenFile: token");
    store.read().await.unwrap();
    fs::write(&token, "another").unwrap();
    for _ in 0..999 {
        store.read().await.unwrap();
        if sent_token(server.seen().last().unwrap()) == "another" {
            return;
        }
    }
    panic!("the new token was never sent");
}

#[tokio::test]
async fn credential_plugin_that_outlasts_an_attempt_serves_a_later_one() {
    let server = Server::new([found("41"), found("41")]);
    let directory = server.directory.path();
    let [plugin, runs, go] = ["plugin", "runs", "go"].map(|name| directory.join(name));
    let script = format!(
        "echo run >> {}\nwhile ! [ -e {} ]; do sleep 0.01; done\n\
         echo '{{\"status\": {{\"token\": \"plugged\"}}}}'\n",
        runs.display(),
        go.display()
    );
    fs::write(&plugin, script).unwrap();
    let plugin = plugin.display();
    let store = server.store_as(&format!("exec: {{command: sh, args: ['{plugin}']}}"));
    let first = tokio::time::timeout(Duration::from_millis(100), store.read()).await;
    assert!(first.is_err());
    fs::write(&go, "").unwrap();
    store.read().await.unwrap();
    store.read().await.unwrap();
    assert!(
        server
            .seen()
            .iter()
            .all(|seen| sent_token(seen) == "plugged")
    );
    assert_eq!(fs::read_to_string(&runs).unwrap(), "run\n");
}

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
    let start = "GET /apis/coordination.k8s.io/v1/namespaces/ops/leases?watch=1&fieldSelector=metadata.name%3Dnightly&\
                 timeoutSeconds=2";
    assert!(
        line.starts_with(start) && line.ends_with("&resourceVersion=41 HTTP/1.1"),
        "{line}"
    );
}

#[tokio::test]
async fn watch_that_gives_nonsense_ends() {
    for (line, named) in [
        ("<html>\n".to_owned(), "something else than JSON"),
        ("{\"type\": \"SURPRISE\"}\n".to_owned(), "unknown type"),
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
async fn names_that_kubernetes_could_not_know_are_refused() {
    let server = Server::new([]);
    let source = Source {
        kubeconfig: Some(server.kubeconfig("")),
        ..Source::default()
    };
    let cluster = ClusterConfig::load(source).unwrap();
    for (namespace, name) in [
        ("ops", "a/b"),
        ("ops", ""),
        ("Ops", "a"),
        ("ops", "-a"),
        ("ops?", "a"),
    ] {
        let refused = KubeStore::new(cluster.clone(), namespace.into(), name.into())
            .err()
            .unwrap();
        assert_eq!(refused.kind, FailureKind::Misconfigured);
    }
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
    let authorization = "Proxy-Authorization: Basic bWU6cEBzcw==".to_owned();
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
