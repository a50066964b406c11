//! Acting as another user: as whom, and what gives the right to it.
//!
//! The rules are those of the verb `impersonate` on what is impersonated, which every API server knows.
//! Since 1.36 there are finer verbs too (`impersonate-on:user-info:get` and others, KEP-5284), which a
//! server asks for first; what is allowed by the old verb stays allowed.
//!
//! Must not: send anything, read files.

use kube::config::AuthInfo;

use crate::names::{LeaseName, Namespace};

/// Says who may not act as the user that the configuration names, and what would allow it; `None` if it
/// names none.
pub(super) fn refused(user: &str, auth: &AuthInfo) -> Option<String> {
    let whom = auth.impersonate.as_deref()?;
    let groups = auth.impersonate_groups.as_deref().unwrap_or_default();
    let mut also = Vec::new();
    let mut rules = Vec::new();
    let role = match service_account(whom) {
        Some((namespace, name)) => Some(format!(
            "a Role in the namespace {namespace:?} with the rule {}",
            rule("", "serviceaccounts", &[name])
        )),
        None => {
            rules.push(rule("", "users", &[whom]));
            None
        }
    };
    if !groups.is_empty() {
        also.push(format!("the groups {groups:?}"));
        rules.push(rule("", "groups", groups));
    }
    if let Some(uid) = &auth.impersonate_uid {
        also.push(format!("the uid {uid:?}"));
        rules.push(rule(AUTHENTICATION, "uids", &[uid]));
    }
    let mut extras: Vec<_> = auth.impersonate_user_extra.iter().flatten().collect();
    extras.sort();
    for (key, values) in extras {
        also.push(format!("{key:?} {values:?}"));
        let resource = format!("userextras/{}", key.to_lowercase());
        rules.push(rule(AUTHENTICATION, &resource, values));
    }
    let cluster_role = match rules.len() {
        0 => None,
        1 => Some(format!("a ClusterRole with the rule {}", rules[0])),
        _ => Some(format!("a ClusterRole with the rules {}", rules.join(", "))),
    };
    let also = match also.is_empty() {
        true => String::new(),
        false => format!(" with {}", also.join(" and ")),
    };
    let roles: Vec<_> = role.into_iter().chain(cluster_role).collect();
    Some(format!(
        "the user {user:?} may not impersonate {whom:?}{also}; bind to it {}",
        roles.join(" and ")
    ))
}

/// Namespace and name of a service account that is named as a user.
fn service_account(user: &str) -> Option<(&str, &str)> {
    let (namespace, name) = user
        .strip_prefix("system:serviceaccount:")?
        .split_once(':')?;
    // A service account is called as a lease may be.
    let are_names = Namespace::new(namespace).is_ok() && LeaseName::new(name).is_ok();
    are_names.then_some((namespace, name))
}

fn rule(group: &str, resource: &str, names: &[impl AsRef<str>]) -> String {
    let names: Vec<&str> = names.iter().map(AsRef::as_ref).collect();
    format!(
        "{{apiGroups: [{group:?}], resources: [{resource}], resourceNames: {names:?}, verbs: [impersonate]}}"
    )
}

const AUTHENTICATION: &str = "authentication.k8s.io";
