//! What is wrong with a file, in one sentence.

use std::{io, path::Path};

use kube::config::AuthProviderConfig;

use super::super::failure::{one_line, plain};

/// Why a text is no YAML, from what the parser says.
pub(super) fn syntax(error: &serde_saphyr::Error) -> String {
    let text = error.to_string();
    let mut lines = text.lines().map(str::trim);
    let first = lines.find(|line| !line.is_empty()).unwrap_or_default();
    one_line(first.trim_start_matches("error: "))
}

/// Which field is of another type than it should be. What it holds may be a secret.
pub(super) fn field(error: &serde_path_to_error::Error<serde_json::Error>) -> String {
    let text = one_line(&error.inner().to_string());
    match text.rsplit_once(", expected ") {
        Some((_, expected)) => format!("{} is not {expected}", error.path()),
        None => format!("{} has a {text}", error.path()),
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

pub(super) fn unreadable(what: &str, path: &Path, error: &io::Error) -> String {
    format!("can't read {what} {}: {}", path.display(), plain(error))
}
