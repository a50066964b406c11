//! Acting as another user: what is said without the right to it, and what then gives it.

use http::Method;
use serde_json::{Value, json};

use super::{VERBS, assert_refused, kubeconfig, lease_exec, wait_for_status};
use crate::control_plane::{ControlPlane, User};
use crate::wait::{LIMIT, wait_until};
use crate::world::{Invocation, World};

#[test]
fn impersonation_needs_the_right_and_then_counts_as_the_other_user() {
    let world = World::on_kubernetes();
    let worker = format!("worker-{}", world.namespace());
    let rules = [rule("", "users", &worker)];
    // The option, in place of the kubeconfig's entry.
    let as_option = |invocation: Invocation| invocation.args(["--as", &worker]);
    check(&world, &worker, &json!({}), as_option, None, &rules);
}

/// Servers before 1.22 ignore a uid; the rule for it harms nobody there.
#[test]
fn impersonation_with_groups_and_a_uid_needs_all_the_rules_that_are_named() {
    let world = World::on_kubernetes();
    let worker = format!("worker-{}", world.namespace());
    let user = json!({"as": worker, "as-groups": ["devs"], "as-uid": "7", "as-user-extra": {"scope": ["x"]}});
    let rules = [
        rule("", "users", &worker),
        rule("", "groups", "devs"),
        rule("authentication.k8s.io", "uids", "7"),
        rule("authentication.k8s.io", "userextras/scope", "x"),
    ];
    check(
        &world,
        &worker,
        &user,
        |invocation| invocation,
        None,
        &rules,
    );
}

#[test]
fn impersonation_of_a_service_account_needs_a_rule_in_its_namespace() {
    let world = World::on_kubernetes();
    let worker = format!("system:serviceaccount:{}:bot", world.namespace());
    let user = json!({"as": worker});
    let rules = [rule("", "serviceaccounts", "bot")];
    let namespace = Some(world.namespace());
    check(
        &world,
        &worker,
        &user,
        |invocation| invocation,
        namespace,
        &rules,
    );
}

/// Runs lease-exec as a user `boss` who acts as `worker`, first without the right to it, then with just
/// the `rules` that the message has named, in a namespace or in all.
fn check(
    world: &World<'_>,
    worker: &str,
    user: &Value,
    options: impl Fn(Invocation) -> Invocation,
    namespace: Option<&str>,
    rules: &[Value],
) {
    let control_plane = ControlPlane::shared();
    let boss = format!("boss-{}", world.namespace());
    control_plane.grant(world.namespace(), worker, VERBS);
    wait_for_status(world, &User::named(worker), 404);
    let kubeconfig = kubeconfig(world, User::named(&boss), |config| {
        for (key, value) in user.as_object().expect("an entry") {
            config["users"][0]["user"][key] = value.clone();
        }
    });
    let run = || {
        let invocation = lease_exec(world, &kubeconfig).args(["-q", "--no-wait"]);
        options(invocation).command(["true"]).run()
    };
    let kind = namespace.map_or("a ClusterRole", |_| "a Role");
    let refused = format!("the user {boss:?} may not impersonate {worker:?}");
    let mut texts = vec![refused, format!("bind to it {kind}")];
    texts.extend(rules.iter().map(shown));
    let texts: Vec<_> = texts.iter().map(String::as_str).collect();
    assert_refused(&run(), 77, &texts);
    assert!(world.lease().is_none());

    // Each rule alone is not enough.
    for count in 1..=rules.len() {
        bind(&boss, namespace, count, &rules[count - 1]);
        if count < rules.len() {
            assert_refused(&run(), 77, &texts);
        }
    }
    wait_until("the new right arrives", LIMIT, || {
        (run().status.code() == Some(0)).then_some(())
    });
    assert_eq!(world.holder(), "");
}

fn rule(group: &str, resource: &str, name: &str) -> Value {
    json!({
        "apiGroups": [group],
        "resources": [resource],
        "resourceNames": [name],
        "verbs": ["impersonate"],
    })
}

/// The rule as the message has it.
fn shown(rule: &Value) -> String {
    let field = |name: &str| rule[name][0].as_str().expect("a text");
    format!(
        "{{apiGroups: [{:?}], resources: [{}], resourceNames: [{:?}], verbs: [impersonate]}}",
        field("apiGroups"),
        field("resources"),
        field("resourceNames"),
    )
}

/// Binds a role of one rule to a user, in a namespace or in all.
fn bind(user: &str, namespace: Option<&str>, number: usize, rule: &Value) {
    let group = "rbac.authorization.k8s.io";
    let name = format!("{user}-{number}");
    let (place, kind) = match namespace {
        Some(namespace) => (format!("namespaces/{namespace}/"), "Role"),
        None => (String::new(), "ClusterRole"),
    };
    let role = json!({"metadata": {"name": name}, "rules": [rule]});
    let binding = json!({
        "metadata": {"name": name},
        "roleRef": {"apiGroup": group, "kind": kind, "name": name},
        "subjects": [{"apiGroup": group, "kind": "User", "name": user}],
    });
    let kind = kind.to_lowercase();
    for (resource, object) in [
        (format!("{kind}s"), role),
        (format!("{kind}bindings"), binding),
    ] {
        let path = format!("/apis/{group}/v1/{place}{resource}");
        let (status, answer) = ControlPlane::shared().raw(Method::POST, &path, Some(object));
        assert_eq!(status, 201, "{answer}");
    }
}
