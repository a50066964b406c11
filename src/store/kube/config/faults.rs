//! What kubectl refuses, although it could be read: each contradicts itself.
//!
//! A fault ends a sentence that begins with the name of what has it.

use kube::config::{AuthInfo, Cluster, ExecConfig};

/// What is wrong with a cluster's fields.
pub(super) fn of_cluster(cluster: &Cluster) -> Option<&'static str> {
    let file = cluster.certificate_authority.is_some();
    let data = cluster.certificate_authority_data.is_some();
    let insecure = cluster.insecure_skip_tls_verify == Some(true);
    first([
        (
            file && data,
            "has both certificate-authority and certificate-authority-data",
        ),
        (
            insecure && (file || data),
            "has both a certificate authority and insecure-skip-tls-verify",
        ),
    ])
}

/// What is wrong with a user's fields, and with whom it acts as.
pub(super) fn of_user(user: &AuthInfo) -> Option<&'static str> {
    let certificate = (
        user.client_certificate.is_some(),
        user.client_certificate_data.is_some(),
    );
    let key = (user.client_key.is_some(), user.client_key_data.is_some());
    let has_certificate = certificate.0 || certificate.1;
    let token = user.token.is_some() || user.token_file.is_some();
    let name = user.username.is_some() || user.password.is_some();
    let acts_as_more = user.impersonate_uid.is_some()
        || user.impersonate_groups.iter().flatten().next().is_some()
        || user
            .impersonate_user_extra
            .iter()
            .flatten()
            .next()
            .is_some();
    let exec = user.exec.as_ref();
    let nameless = |exec: &ExecConfig| {
        exec.env
            .iter()
            .flatten()
            .any(|variable| !variable.contains_key("name"))
    };
    first([
        (token && name, "has both a token and a username or password"),
        (
            certificate == (true, true),
            "has both client-certificate and client-certificate-data",
        ),
        (
            has_certificate && key == (true, true),
            "has both client-key and client-key-data",
        ),
        (
            has_certificate && key == (false, false),
            "has a client certificate without its key",
        ),
        (
            exec.is_some() && user.auth_provider.is_some(),
            "has both exec and auth-provider",
        ),
        (
            exec.is_some_and(|exec| exec.command.is_none()),
            "has an exec without a command",
        ),
        (
            exec.is_some_and(nameless),
            "has an exec with a variable without a name",
        ),
        (
            acts_as_more && user.impersonate.is_none(),
            "acts as a group, uid or more of a user (as-groups, as-uid, as-user-extra), but not as a user (as)",
        ),
    ])
}

fn first<const N: usize>(faults: [(bool, &'static str); N]) -> Option<&'static str> {
    let mut faults = faults.into_iter();
    faults.find_map(|(is_there, fault)| is_there.then_some(fault))
}
