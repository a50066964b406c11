//! The FlowSchema in the README, applied as it stands.

use http::Method;
use serde_json::Value;

use super::block;
use crate::{
    control_plane::{ControlPlane, User},
    wait::{LIMIT, wait_until},
    world::World,
};

#[test]
fn the_flow_schema_in_the_readme_gives_lease_exec_the_level_of_leader_elections() {
    let control_plane = ControlPlane::shared();
    let world = World::on_kubernetes();
    let namespace = world.namespace();
    apply(control_plane, block("rbac"), namespace);
    let token = control_plane.token(namespace, "nightly");
    let client = control_plane.client(User::Token(token.clone()));
    let path = format!("/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases/nightly");
    // Which schema and which level have let a request through.
    let way = || {
        let answer = client.send(&Method::GET, &path, None).expect("an answer");
        ["flowschema", "prioritylevel"].map(|kind| {
            let header = format!("x-kubernetes-pf-{kind}-uid");
            answer.header(&header).to_owned()
        })
    };
    let uid = |kind: &str, name: &str| {
        let output = control_plane.kubectl(&["get", kind, name, "--output=json"], "");
        let object: Value = serde_json::from_slice(&output.stdout).expect("kubectl prints JSON");
        let uid = object["metadata"]["uid"].as_str();
        uid.expect("what is stored has a uid").to_owned()
    };
    let before = way();
    assert_eq!(before[0], uid("flowschema", "service-accounts"));

    apply(
        control_plane,
        &schema_for(control_plane, namespace),
        namespace,
    );
    let level = uid("prioritylevelconfiguration", "leader-election");
    let expected = [uid("flowschema", "lease-exec"), level];
    assert_ne!(before, expected);
    // The server reads its schemas again a moment after one was stored.
    wait_until("the schema is in use", LIMIT, || {
        (way() == expected).then_some(())
    });

    // A read, a write that acquires and one that releases; from 1.23 on the watch counts as well.
    let counted = dispatched(control_plane);
    let kubeconfig =
        control_plane.kubeconfig_at(&control_plane.url(), namespace, User::Token(token));
    let invocation = world
        .invocation()
        .args(["--lease", "nightly", "--kubeconfig"]);
    let invocation = invocation.args([kubeconfig]).command(["true"]);
    invocation.run().assert_code(0);
    let requests = dispatched(control_plane) - counted;
    assert!((3..=4).contains(&requests), "{requests} requests");
}

/// Applies a manifest of the README's.
fn apply(control_plane: &ControlPlane, manifest: &str, namespace: &str) {
    let arguments = ["apply", "--namespace", namespace, "--filename", "-"];
    let output = control_plane.kubectl(&arguments, manifest);
    assert!(output.status.success(), "{output:?}");
}

/// The README's schema for another namespace, in the version that the server has; the oldest that
/// the tests may use has no later one.
fn schema_for(control_plane: &ControlPlane, namespace: &str) -> String {
    let (_, group) = control_plane.raw(Method::GET, "/apis/flowcontrol.apiserver.k8s.io", None);
    let version = group["preferredVersion"]["groupVersion"].as_str();
    let version = version.expect("the server knows priority and fairness");
    let mut schema = block("flowschema").to_owned();
    for (text, replacement) in [
        (
            "apiVersion: flowcontrol.apiserver.k8s.io/v1\n",
            format!("apiVersion: {version}\n"),
        ),
        (
            "serviceaccounts:default",
            format!("serviceaccounts:{namespace}"),
        ),
        (
            "namespaces: [default]",
            format!("namespaces: [{namespace}]"),
        ),
    ] {
        assert_eq!(schema.matches(text).count(), 1, "{text:?} in the README");
        schema = schema.replace(text, &replacement);
    }
    schema
}

/// How many requests the schema has let through, by the server's own count.
fn dispatched(control_plane: &ControlPlane) -> u64 {
    let (_, metrics) = control_plane.raw(Method::GET, "/metrics", None);
    let metrics = metrics.as_str().expect("metrics are text");
    let lines = metrics.lines().filter(|line| {
        line.starts_with("apiserver_flowcontrol_dispatched_requests_total{")
            && line.contains("\"lease-exec\"")
    });
    let counts = lines.map(|line| -> u64 {
        let count = line.rsplit(' ').next().and_then(|count| count.parse().ok());
        count.unwrap_or_else(|| panic!("a metric without a count: {line}"))
    });
    counts.sum()
}
