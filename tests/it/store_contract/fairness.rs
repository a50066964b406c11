//! Priority and fairness: which queue a request waits in, and what comes of a full one.

use std::time::Duration;

use http::Method;
use lease_exec::lease::FailureKind;
use lease_exec::store::Store;
use serde_json::{Value, json};

use super::admission::{Verdict, Webhook};
use super::kube::Namespace;
use super::server::lease;
use super::{run, until};
use crate::control_plane::{Answer, ControlPlane, User};
use crate::wait::{LIMIT, wait_until};

/// Only the accounts of kube-system have leader election's priority; everybody else is served with
/// the ordinary load, unless a FlowSchema says otherwise. (Before 1.23 watches wait in no queue.)
#[test]
fn flow_schema_decides_which_queue_the_requests_for_a_lease_wait_in() {
    let place = Namespace::new("flow_schema_decides_which_queue");
    let schemas = FlowSchemas::of(place.server);
    let nightly = place.nightly();
    let system = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases/nightly";
    for (namespace, method, path, schema) in [
        ("kube-system", Method::GET, system, "system-leader-election"),
        (
            "kube-system",
            Method::PATCH,
            system,
            "kube-system-service-accounts",
        ),
        (&place.name, Method::GET, &nightly, "service-accounts"),
        (&place.name, Method::PUT, &nightly, "service-accounts"),
    ] {
        let token = place.server.token(namespace, "runner");
        let client = place.server.client(User::Token(token));
        let answer = client.send(&method, path, None).expect("an answer");
        assert_eq!(schemas.name_of(&answer), schema, "{method} {path}");
    }

    let account = json!({
        "kind": "ServiceAccount",
        "serviceAccount": {"namespace": place.name, "name": "runner"},
    });
    let own = schemas.create(&place, "leader-election", account);
    let token = place.server.token(&place.name, "runner");
    let client = place.server.client(User::Token(token));
    // The server reads its schemas again a moment after one was stored.
    wait_until("the schema of our own is in use", LIMIT, || {
        let answer = client
            .send(&Method::GET, &nightly, None)
            .expect("an answer");
        (schemas.name_of(&answer) == own).then_some(())
    });
    schemas.delete(&own);
}

/// It says 429 and when to come again, which may be later than a holder can wait.
#[test]
fn server_without_a_free_seat_refuses_us_and_says_for_how_long() {
    let place = Namespace::new("server_without_a_free_seat_refuses_us");
    let schemas = FlowSchemas::of(place.server);
    let user = place.user(&["get", "create", "update", "watch"]);
    let User::Named { name, .. } = &user else {
        unreachable!("places make users by name");
    };
    schemas.create_narrow_level(&place);
    let subject = json!({"kind": "User", "user": {"name": name}});
    let own = schemas.create(&place, &place.name, subject);
    let client = place.server.client(user.clone());
    wait_until("the schema of our own is in use", LIMIT, || {
        let path = place.nightly();
        let answer = client.send(&Method::GET, &path, None).expect("an answer");
        (schemas.name_of(&answer) == own).then_some(())
    });
    // Whoever writes sits on a seat for as long as the webhook sleeps.
    let webhook = Webhook::start(place.server, &place.name);
    webhook.does(Verdict::Sleep(Duration::from_secs(2)));
    std::thread::scope(|scope| {
        for number in 0..20 {
            let (client, place) = (&client, &place);
            scope.spawn(move || {
                client.send(&Method::PUT, &place.nightly(), Some(lease("a", number)))
            });
        }
        run(async {
            let store = place.open_as(user.clone(), "nightly");
            let failure = until("there is no seat", async || {
                let failure = store.read().await.err()?;
                failure.retry_after.is_some().then_some(failure)
            })
            .await;
            assert_eq!(failure.kind, FailureKind::Unreachable);
            assert!(failure.message.contains("429"), "{}", failure.message);
            assert!(failure.retry_after >= Some(Duration::from_secs(1)));
            until("there is a seat again", async || store.read().await.ok()).await;
        });
    });
    schemas.delete(&own);
}

/// The API group of FlowSchemas, in the version that the server prefers.
struct FlowSchemas {
    server: &'static ControlPlane,
    version: String,
}

impl FlowSchemas {
    fn of(server: &'static ControlPlane) -> Self {
        let (_, group) = server.raw(Method::GET, "/apis/flowcontrol.apiserver.k8s.io", None);
        let version = group["preferredVersion"]["groupVersion"].as_str();
        let version = version.expect("the server knows priority and fairness");
        Self {
            server,
            version: version.to_owned(),
        }
    }

    /// The name of the schema by which an answer was let through.
    fn name_of(&self, answer: &Answer) -> String {
        let uid = answer.header("x-kubernetes-pf-flowschema-uid");
        let (_, all) = self.server.raw(Method::GET, &self.path(""), None);
        let items = all["items"].as_array().expect("a list has items");
        let schema = items.iter().find(|item| item["metadata"]["uid"] == uid);
        let name = schema.and_then(|schema| schema["metadata"]["name"].as_str());
        name.unwrap_or_else(|| panic!("no schema has the uid {uid:?}: {answer:?}"))
            .to_owned()
    }

    /// Gives somebody's requests for a place's leases a priority level.
    fn create(&self, place: &Namespace, level: &str, subject: Value) -> String {
        let schema = json!({
            "apiVersion": self.version,
            "kind": "FlowSchema",
            "metadata": {"name": place.name},
            "spec": {
                "priorityLevelConfiguration": {"name": level},
                "matchingPrecedence": 900,
                "distinguisherMethod": {"type": "ByUser"},
                "rules": [{
                    "subjects": [subject],
                    "resourceRules": [{
                        "apiGroups": ["coordination.k8s.io"],
                        "resources": ["leases"],
                        "namespaces": [place.name],
                        "verbs": ["get", "create", "update", "watch"],
                    }],
                }],
            },
        });
        self.post("flowschemas", schema);
        place.name.clone()
    }

    /// Makes a priority level with the name of a place, which has few seats and no queue.
    fn create_narrow_level(&self, place: &Namespace) {
        // They were renamed.
        let is_old = ["v1alpha1", "v1beta1", "v1beta2"]
            .iter()
            .any(|version| self.version.ends_with(version));
        let shares = match is_old {
            true => "assuredConcurrencyShares",
            false => "nominalConcurrencyShares",
        };
        let level = json!({
            "apiVersion": self.version,
            "kind": "PriorityLevelConfiguration",
            "metadata": {"name": place.name},
            "spec": {
                "type": "Limited",
                "limited": {shares: 1, "limitResponse": {"type": "Reject"}},
            },
        });
        self.post("prioritylevelconfigurations", level);
    }

    fn post(&self, kind: &str, object: Value) {
        let path = format!("/apis/{}/{kind}", self.version);
        let (status, answer) = self.server.raw(Method::POST, &path, Some(object));
        assert_eq!(status, 201, "{answer}");
    }

    fn delete(&self, name: &str) {
        let path = self.path(&format!("/{name}"));
        let (status, answer) = self.server.raw(Method::DELETE, &path, None);
        assert_eq!(status, 200, "{answer}");
    }

    fn path(&self, rest: &str) -> String {
        format!("/apis/{}/flowschemas{rest}", self.version)
    }
}
