//! kubeconfig files with everything embedded.

use serde_json::{Value, json};

use super::certificates::{Authority, Identity, base64};

/// Who a kubeconfig file is for.
#[derive(Clone, Debug)]
pub(crate) enum User {
    /// The administrator, who may do everything.
    Admin,
    /// A user with a new client certificate, who may do nothing before a role is granted.
    Named {
        /// The name that a RoleBinding has as its subject.
        name: String,
        /// The groups the user is in.
        groups: Vec<String>,
    },
    /// Whoever the certificate says.
    Certificate(Identity),
    /// Whoever the bearer token says, such as a service account.
    Token(String),
}

impl User {
    /// A user in no group.
    pub(crate) fn named(name: &str) -> Self {
        Self::Named {
            name: name.into(),
            groups: Vec::new(),
        }
    }
}

/// The content of a kubeconfig file. Users without a certificate get one from `authority`.
pub(super) fn content(user: &User, url: &str, namespace: &str, authority: &Authority) -> Value {
    let user = match user {
        User::Admin => certificate(&authority.client("admin", &["system:masters"])),
        User::Named { name, groups } => {
            let groups: Vec<&str> = groups.iter().map(String::as_str).collect();
            certificate(&authority.client(name, &groups))
        }
        User::Certificate(identity) => certificate(identity),
        User::Token(token) => json!({"token": token}),
    };
    let cluster = json!({
        "server": url,
        "certificate-authority-data": base64(&authority.certificate()),
    });
    json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "test", "cluster": cluster}],
        "users": [{"name": "test", "user": user}],
        "contexts": [{
            "name": "test",
            "context": {"cluster": "test", "user": "test", "namespace": namespace},
        }],
        "current-context": "test",
    })
}

fn certificate(identity: &Identity) -> Value {
    json!({
        "client-certificate-data": base64(&identity.certificate),
        "client-key-data": base64(&identity.key),
    })
}
