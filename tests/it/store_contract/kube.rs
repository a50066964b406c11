//! The contract, held against a real API server with etcd, and what is true of that one only.

use std::{
    path::PathBuf,
    sync::atomic::{AtomicU32, Ordering},
};

use http::Method;
use lease_exec::lease::{Change, FailureKind, Outcome, Write};
use lease_exec::names;
use lease_exec::store::Store;
use lease_exec::store::kube::{ClusterConfig, KubeStore, Source};
use serde_json::{Value, json};

use super::{Place, assert_written, created, current, done, held, next, run, write, written};
use crate::control_plane::{ControlPlane, User};
use crate::wait::{LIMIT, wait_until};

super::contract!(Namespace::new);
super::contract!(Namespace::new: lease_just_written_never_looks_old);

// === What RBAC must allow ===

/// The rule that the documents tell people to make, and no other.
#[test]
fn one_rule_for_one_name_is_enough() {
    let place = Namespace::new("one_rule_for_one_name_is_enough");
    let user = place.user(&["get", "create", "update", "watch"]);
    run(async {
        let store = place.open_as(user.clone(), "nightly");
        assert_eq!(done(store.read()).await, None);
        let born = created(&store, held("a", 1)).await;
        let mut watch = store.watch(Some(born.version.clone()));
        let renewed = written(&store, &born, held("a", 2)).await;
        assert_written(&next(&mut watch).await, &renewed);
        assert_eq!(write(&store, None, held("b", 3)).await, Outcome::Conflict);
        assert_eq!(current(&store).await.record, held("a", 2));

        let other = place.open_as(user, "other");
        let failure = other.read().await.expect_err("another name is not allowed");
        assert_eq!(failure.kind, FailureKind::Forbidden, "{}", failure.message);
    });
}

#[test]
fn watch_without_the_right_is_refused_and_the_rest_works() {
    let place = Namespace::new("watch_without_the_right_is_refused_and_the_rest_works");
    let user = place.user(&["get", "create", "update"]);
    run(async {
        let store = place.open_as(user, "nightly");
        let born = created(&store, held("a", 1)).await;
        let change = next(&mut store.watch(Some(born.version.clone()))).await;
        let Change::Refused(failure) = change else {
            panic!("{change:?} instead of a refusal");
        };
        assert_eq!(failure.kind, FailureKind::Forbidden);
        assert!(failure.message.contains("watch"), "{}", failure.message);
        written(&store, &born, held("a", 2)).await;
    });
}

#[test]
fn lease_made_beforehand_needs_no_right_to_create() {
    let place = Namespace::new("lease_made_beforehand_needs_no_right_to_create");
    let user = place.user(&["get", "update", "watch"]);
    run(async {
        let store = place.open_as(user, "nightly");
        let attempt = Write {
            base: None,
            record: held("a", 1),
        };
        let failure = store.write(attempt).await.expect_err("it may not create");
        assert_eq!(failure.kind, FailureKind::Forbidden, "{}", failure.message);
        assert_eq!(place.object(), None);
        let made = created(&place.open(), held("", 0)).await;
        written(&store, &made, held("a", 1)).await;
    });
}

// === Namespaces ===

#[test]
fn missing_namespace_is_no_absent_lease() {
    let mut place = Namespace::new("missing_namespace_is_no_absent_lease");
    place.name = "there-is-no-such-namespace".into();
    run(async {
        let attempt = Write {
            base: None,
            record: held("a", 1),
        };
        let failure = place.open().write(attempt).await;
        let failure = failure.expect_err("there is no namespace");
        assert_eq!(
            failure.kind,
            FailureKind::NoNamespace,
            "{}",
            failure.message
        );
    });
}

/// A namespace of one test's own.
pub(super) struct Namespace {
    pub(super) server: &'static ControlPlane,
    pub(super) name: String,
}

impl Namespace {
    /// `case` is for people who look into the server; it says nothing to the test.
    pub(super) fn new(case: &str) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("{number}-{}", case.replace('_', "-"));
        // A namespace's name is a label, of at most 63 bytes.
        let name = name[..name.len().min(63)].trim_end_matches('-').to_owned();
        let server = ControlPlane::shared();
        server.create_namespace(&name);
        Self { server, name }
    }

    pub(super) fn open_as(&self, user: User, lease: &str) -> KubeStore {
        open(self.server.kubeconfig(user), &self.name, lease)
    }

    /// The path of the leases.
    pub(super) fn leases(&self) -> String {
        format!(
            "/apis/coordination.k8s.io/v1/namespaces/{}/leases",
            self.name
        )
    }

    /// The path of the lease `nightly`.
    pub(super) fn nightly(&self) -> String {
        format!("{}/nightly", self.leases())
    }

    /// A user who may do this and nothing else to the lease `nightly`.
    pub(super) fn user(&self, verbs: &[&str]) -> User {
        let name = format!("user-of-{}", self.name);
        let group = "rbac.authorization.k8s.io";
        let role = json!({
            "metadata": { "name": "one-lease" },
            "rules": [{
                "apiGroups": ["coordination.k8s.io"],
                "resources": ["leases"],
                "resourceNames": ["nightly"],
                "verbs": verbs,
            }],
        });
        let binding = json!({
            "metadata": { "name": "one-lease" },
            "roleRef": { "apiGroup": group, "kind": "Role", "name": "one-lease" },
            "subjects": [{ "apiGroup": group, "kind": "User", "name": name }],
        });
        for (kind, object) in [("roles", role), ("rolebindings", binding)] {
            let path = format!("/apis/{group}/v1/namespaces/{}/{kind}", self.name);
            let (status, answer) = self.server.raw(Method::POST, &path, Some(object));
            assert_eq!(status, 201, "{answer}");
        }
        self.wait_until_bound(&name, verbs);
        User::named(&name)
    }

    /// The server's authorizer learns of a new role a moment after it was stored.
    fn wait_until_bound(&self, user: &str, verbs: &[&str]) {
        let path = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
        for verb in verbs {
            let review = json!({ "spec": { "user": user, "resourceAttributes": {
                "group": "coordination.k8s.io",
                "resource": "leases",
                "namespace": self.name,
                "name": "nightly",
                "verb": verb,
            }}});
            let allowed = || {
                let (_, answer) = self.server.raw(Method::POST, path, Some(review.clone()));
                (answer["status"]["allowed"] == true).then_some(())
            };
            let what = format!("{user} may {verb}");
            wait_until(what, LIMIT, allowed);
        }
    }
}

/// Opens a lease as the kubeconfig says.
pub(super) fn open(kubeconfig: PathBuf, namespace: &str, lease: &str) -> KubeStore {
    let source = Source {
        kubeconfig: Some(kubeconfig),
        ..Source::default()
    };
    let namespace = names::Namespace::new(namespace).expect("it is one");
    let lease = names::LeaseName::new(lease).expect("it is one");
    ClusterConfig::load(source)
        .and_then(|cluster| KubeStore::new(cluster, namespace, lease))
        .unwrap_or_else(|failure| panic!("failed to {}", failure.message))
}

impl Place for Namespace {
    type Store = KubeStore;

    fn open(&self) -> KubeStore {
        self.open_as(User::Admin, "nightly")
    }

    fn object(&self) -> Option<Value> {
        self.server.get_lease(&self.name, "nightly")
    }

    fn put(&self, object: Value) {
        self.server.put_lease(&self.name, "nightly", object);
    }

    fn delete(&self) {
        self.server.delete_lease(&self.name, "nightly");
    }
}
