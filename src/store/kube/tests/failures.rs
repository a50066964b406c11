//! What an answer that is no success is taken for, and how people are told.

use super::{
    FailureKind::{Forbidden, Malformed, Misconfigured, NoNamespace, Unauthorized, Unreachable},
    *,
};

/// Makes one write that fails, and sees that it was tried once.
async fn check(write: Write, reply: Reply, kind: FailureKind, message: &str) {
    let server = Server::new([reply]);
    let failure = server.store().write(write).await.unwrap_err();
    assert_eq!((failure.kind, failure.message.as_str()), (kind, message));
    assert_eq!(server.seen().len(), 1);
}

fn forbidden(message: &str, details: Value) -> Reply {
    status(403, "Forbidden", message, details)
}

#[tokio::test]
async fn refusal_says_what_would_cure_it() {
    let unauthorized = status(401, "Unauthorized", "Unauthorized", json!({}));
    let message = "the API server does not accept the credentials (401: Unauthorized)";
    check(renewal(), unauthorized, Unauthorized, message).await;

    let rbac = "leases.coordination.k8s.io \"nightly\" is forbidden: User \"system:serviceaccount:ops:x\" cannot \
                update resource \"leases\" in API group \"coordination.k8s.io\" in the namespace \"ops\"";
    let message = "the user \"system:serviceaccount:ops:x\" may not update the lease ops/nightly; bind to it a Role \
                   in the namespace \"ops\" with the rule {apiGroups: [coordination.k8s.io], resources: [leases], \
                   resourceNames: [nightly], verbs: [get, create, update, watch]}";
    check(renewal(), forbidden(rbac, json!({})), Forbidden, message).await;

    // Word for word from servers that were asked to create by a PUT: 1.37 and 1.20.
    let named = "leases.coordination.k8s.io \"nightly\" is forbidden: User \"x\" cannot create resource \"leases\" in \
                 API group \"coordination.k8s.io\" in the namespace \"ops\"";
    let message = "the lease ops/nightly does not exist, and the right to create it is missing; make the lease, or \
                   bind to the user \"x\" a Role in the namespace \"ops\" with the rule {apiGroups: \
                   [coordination.k8s.io], resources: [leases], resourceNames: [nightly], verbs: [get, create, \
                   update, watch]}";
    check(creation(), forbidden(named, json!({})), Forbidden, message).await;

    let silent = "leases.coordination.k8s.io \"nightly\" is forbidden: ";
    let message = "the lease ops/nightly does not exist, and the right to create it is missing (403: leases.coordination.k8s.io \"nightly\" is \
                   forbidden); make the lease, or bind to the user a Role in the namespace \"ops\" with the rule {apiGroups: \
                   [coordination.k8s.io], resources: [leases], resourceNames: [nightly], verbs: [get, create, \
                   update, watch]}";
    check(creation(), forbidden(silent, json!({})), Forbidden, message).await;

    let roleless = "leases \"nightly\" is forbidden: RBAC: role \"x\" not found";
    let message = "the lease ops/nightly does not exist, and the right to create it is missing (403: leases \"nightly\" is forbidden: RBAC: role \
                   \"x\" not found); make the lease, or bind to the user a Role in the namespace \"ops\" with the rule {apiGroups: \
                   [coordination.k8s.io], resources: [leases], resourceNames: [nightly], verbs: [get, create, \
                   update, watch]}";
    check(
        creation(),
        forbidden(roleless, json!({})),
        Forbidden,
        message,
    )
    .await;

    let anonymous = "x: User \"system:anonymous\" cannot update resource";
    let message = "the API server takes us for system:anonymous: the configuration holds no credentials that it knows";
    check(
        renewal(),
        forbidden(anonymous, json!({})),
        Forbidden,
        message,
    )
    .await;

    let quota = "leases \"nightly\" is forbidden: exceeded quota: q";
    let message =
        "the API server forbids it (403: leases \"nightly\" is forbidden: exceeded quota: q)";
    check(creation(), forbidden(quota, json!({})), Forbidden, message).await;

    let webhook = "admission webhook \"w\" denied the request";
    let message = "the API server forbids it (403: admission webhook \"w\" denied the request)";
    check(
        creation(),
        forbidden(webhook, json!({})),
        Forbidden,
        message,
    )
    .await;
}

/// What the answer names, if anything, is but the first of what is missing; the configuration names all.
#[tokio::test]
async fn refused_impersonation_says_of_whom_and_all_that_would_allow_it() {
    let old = "users \"worker\" is forbidden: User \"boss\" cannot impersonate resource \"users\" in API group \"\" \
               at the cluster scope";
    let lease = |verb| {
        format!(
            "leases.coordination.k8s.io \"nightly\" is forbidden: User \"boss\" cannot {verb} resource \"leases\" in \
             API group \"coordination.k8s.io\" in the namespace \"ops\""
        )
    };
    let rule = |group, resource, names| {
        format!(
            "{{apiGroups: [{group:?}], resources: [{resource}], resourceNames: {names}, verbs: [impersonate]}}"
        )
    };
    let users = rule("", "users", r#"["worker"]"#);
    let groups = rule("", "groups", r#"["a", "b"]"#);
    let uids = rule("authentication.k8s.io", "uids", r#"["7"]"#);
    let extras = rule("authentication.k8s.io", "userextras/scope", r#"["x"]"#);
    let account = rule("", "serviceaccounts", r#"["bot"]"#);
    let group = rule("", "groups", r#"["a"]"#);
    for (user, whom, cure) in [
        (
            "as: worker",
            r#""worker""#.to_owned(),
            format!("a ClusterRole with the rule {users}"),
        ),
        (
            "as: worker, as-groups: [a, b], as-uid: '7', as-user-extra: {Scope: [x]}",
            r#""worker" with the groups ["a", "b"] and the uid "7" and "Scope" ["x"]"#.to_owned(),
            format!("a ClusterRole with the rules {users}, {groups}, {uids}, {extras}"),
        ),
        (
            "as: 'system:serviceaccount:ops:bot'",
            r#""system:serviceaccount:ops:bot""#.to_owned(),
            format!("a Role in the namespace \"ops\" with the rule {account}"),
        ),
        (
            "as: 'system:serviceaccount:ops:bot', as-groups: [a]",
            r#""system:serviceaccount:ops:bot" with the groups ["a"]"#.to_owned(),
            format!(
                "a Role in the namespace \"ops\" with the rule {account} and a ClusterRole with the rule {group}"
            ),
        ),
    ] {
        for said in [
            old.to_owned(),
            lease("impersonate-on:user-info:get"),
            lease("impersonate:serviceaccount"),
        ] {
            let server = Server::new([forbidden(&said, json!({}))]);
            let failure = server.store_as(user).read().await.unwrap_err();
            let message =
                format!("the user \"boss\" may not impersonate {whom}; bind to it {cure}");
            assert_eq!((failure.kind, failure.message), (Forbidden, message));
        }
    }
    // A proxy's own doing.
    let message = format!("the API server forbids it (403: {old})");
    check(renewal(), forbidden(old, json!({})), Forbidden, &message).await;
}

#[tokio::test]
async fn namespace_that_is_not_there_is_named() {
    let terminating = json!({ "causes": [{ "reason": "NamespaceTerminating" }] });
    let reply = forbidden("unable to create new content", terminating);
    let message = "the namespace \"ops\" is being deleted";
    check(creation(), reply, NoNamespace, message).await;

    let details = json!({ "kind": "namespaces" });
    let reply = status(404, "NotFound", "namespaces \"ops\" not found", details);
    let message = "the namespace \"ops\" does not exist";
    check(creation(), reply, NoNamespace, message).await;
}

#[tokio::test]
async fn what_validation_refuses_is_the_bases_fault_if_there_is_one() {
    let invalid = |message: &str| status(422, "Invalid", message, json!({}));
    let message = "the API server refuses the request (422: spec.strategy: is wrong)";
    check(
        renewal(),
        invalid("spec.strategy: is wrong"),
        Malformed,
        message,
    )
    .await;
    let message = "the API server refuses the request (422: metadata.name: is wrong)";
    check(
        creation(),
        invalid("metadata.name: is wrong"),
        Misconfigured,
        message,
    )
    .await;
}

#[tokio::test]
async fn answer_that_settles_nothing_leaves_the_write_open() {
    let reply = status(
        500,
        "InternalError",
        "etcdserver: leader changed",
        json!({}),
    );
    let message = "no usable answer from the API server (500: etcdserver: leader changed)";
    check(renewal(), reply, Unreachable, message).await;

    let reply = Reply::Answer(302, String::new());
    let message = "no usable answer from the API server (302 Found)";
    check(renewal(), reply, Unreachable, message).await;

    let reply = Reply::Answer(200, "<html>please log in</html>".into());
    let message =
        "the answer is not the API server's, as it is no JSON; is there a proxy in between?";
    check(renewal(), reply, Unreachable, message).await;
}

#[tokio::test]
async fn success_without_a_lease_leaves_the_write_open() {
    let mut unversioned = lease("42");
    unversioned["metadata"]["resourceVersion"] = Value::Null;
    for (code, body, problem) in [
        (
            200,
            json!({ "kind": "Status", "status": "Success" }),
            "its kind is \"Status\", not Lease",
        ),
        (201, unversioned, "it has no metadata.resourceVersion"),
    ] {
        let message = format!(
            "the answer says nothing of use on the write: what is stored is not a Lease that makes sense: {problem}"
        );
        for write in [renewal(), creation()] {
            let reply = Reply::Answer(code, body.to_string());
            check(write, reply, Unreachable, &message).await;
        }
        let server = Server::new([Reply::Answer(200, body.to_string())]);
        let failure = server.store().read().await.unwrap_err();
        assert_eq!(failure.kind, Malformed);
    }
}

#[tokio::test]
async fn plain_text_of_a_server_is_quoted() {
    let reply = Reply::Answer(
        400,
        "Client sent an HTTP request to an HTTPS server.\n".into(),
    );
    let message =
        "the API server refuses the request (400: Client sent an HTTP request to an HTTPS server)";
    check(renewal(), reply, Misconfigured, message).await;
}
