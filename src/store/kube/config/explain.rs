//! What is wrong with a configuration, in one sentence.

use std::{io, path::Path};

use kube::config::{AuthProviderConfig, InClusterError, KubeconfigError, LoadDataError};

use super::{
    super::failure::{one_line, plain},
    SERVICE_ACCOUNT,
};

/// Why a kubeconfig can't be used; `place` is the files' names. The caller knows better what its
/// certificate authority was read from.
pub(super) fn kubeconfig(error: &KubeconfigError, place: &str) -> String {
    let data = |what: &str, error: &LoadDataError| match error {
        LoadDataError::ReadFile(error, path) => unreadable(what, path, error),
        LoadDataError::DecodeBase64(_) => format!("{what} in {place} is not base64"),
        LoadDataError::NoBase64DataOrFile => format!("{what} is missing in {place}"),
    };
    match error {
        KubeconfigError::ReadConfig(error, path) => unreadable("the kubeconfig", path, error),
        KubeconfigError::Parse(error) => {
            let text = error.to_string();
            let first = text
                .lines()
                .map(str::trim)
                .find(|line| !line.is_empty())
                .unwrap_or_default();
            format!("{place} is not a kubeconfig: {}", one_line(first))
        }
        KubeconfigError::CurrentContextNotSet => format!("{place} sets no current-context"),
        KubeconfigError::LoadContext(name) => format!("{place} has no context {name:?}"),
        KubeconfigError::LoadClusterOfContext(name) => {
            format!("{place} has no cluster {name:?}, which its context names")
        }
        KubeconfigError::MissingClusterUrl => format!("the cluster in {place} has no server"),
        KubeconfigError::ParseClusterUrl(_) => format!("the server in {place} is not a URL"),
        // kube takes the variable up where the kubeconfig has none.
        KubeconfigError::ParseProxyUrl(_) => {
            format!("the proxy-url in {place}, or else HTTPS_PROXY, is not a URL")
        }
        KubeconfigError::LoadCertificateAuthority(error) => {
            data("the certificate authority", error)
        }
        KubeconfigError::LoadClientCertificate(error) => data("the client certificate", error),
        KubeconfigError::LoadClientKey(error) => data("the client key", error),
        other => format!("{}: {}", place, plain(other)),
    }
}

/// Why an `auth-provider` can't be used; kubectl, too, refuses all but `oidc` since 1.26.
pub(super) fn auth_provider(provider: &AuthProviderConfig) -> String {
    let instead = match provider.name.as_str() {
        "oidc" => return "the auth-provider \"oidc\" of the user has no id-token".to_owned(),
        "gcp" => "; use the credential plugin gke-gcloud-auth-plugin (an exec user) instead",
        "azure" => "; use the credential plugin kubelogin (an exec user) instead",
        _ => "",
    };
    let name = one_line(&provider.name);
    format!("the auth-provider {name:?} of the user is not supported{instead}")
}

pub(super) fn service_account(error: &InClusterError) -> String {
    let file = |name: &str, error: &io::Error| {
        unreadable(
            "the service account's",
            &Path::new(SERVICE_ACCOUNT).join(name),
            error,
        )
    };
    match error {
        InClusterError::ReadDefaultNamespace(error) => file("namespace", error),
        InClusterError::ReadCertificateBundle(error) => file("ca.crt", error),
        InClusterError::ParseCertificates(_) => format!("{SERVICE_ACCOUNT}/ca.crt is not PEM"),
        InClusterError::ReadEnvironmentVariable(_) => "KUBERNETES_SERVICE_PORT is not set".into(),
        InClusterError::ParseClusterPort(_) => "KUBERNETES_SERVICE_PORT is not a port".into(),
        InClusterError::ParseClusterUrl(_) => "KUBERNETES_SERVICE_HOST is not a host".into(),
    }
}

pub(super) fn unreadable(what: &str, path: &Path, error: &io::Error) -> String {
    format!("can't read {what} {}: {}", path.display(), plain(error))
}
