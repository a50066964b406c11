//! What went wrong, in one sentence: answers that are no success, and connections that broke.
//!
//! Must not: retry, hide a failure, print the server's whole answer.

use std::{error::Error as StdError, io, time::Duration};

use kube::{
    client::RustlsTlsError,
    core::response::{StatusCause, StatusDetails, reason},
};
use rustls::CertificateError;
use serde_json::Value;

use super::{answer::Answer, impersonation, target::Target};
use crate::lease::{Failure, FailureKind};

/// What an answer that is no success means, whatever the request was. The caller has taken out the
/// answers that its request gives a meaning of its own.
pub(super) fn from_answer(answer: &Answer, target: &Target) -> Failure {
    let status = Status::of(answer);
    let said = status.sentence(answer.code);
    let (kind, message) = match answer.code {
        401 => (
            FailureKind::Unauthorized,
            match &answer.remark {
                Some(remark) => {
                    format!("the API server does not accept the credentials: {remark} ({said})")
                }
                None => format!("the API server does not accept the credentials ({said})"),
            },
        ),
        403 if status.namespace_is_terminating() => (
            FailureKind::NoNamespace,
            format!("the namespace {:?} is being deleted", target.namespace),
        ),
        403 => (FailureKind::Forbidden, forbidden(&status, answer, target)),
        404 if status.kind() == Some("namespaces") => (
            FailureKind::NoNamespace,
            format!("the namespace {:?} does not exist", target.namespace),
        ),
        // The API server's own word on a version or resource that it does not serve.
        404 if status.body.is_some() => (
            FailureKind::Misconfigured,
            format!("the server does not serve coordination.k8s.io/v1 leases ({said})"),
        ),
        // It says so of a whole group that it does not serve, and while it is starting.
        404 if answer.body.starts_with(b"404 page not found") => (
            FailureKind::Unreachable,
            format!(
                "the server does not serve coordination.k8s.io leases, or it is still starting ({said})"
            ),
        ),
        400 | 405 | 406 | 413 | 414 | 415 | 422 => (
            FailureKind::Misconfigured,
            format!("the API server refuses the request ({said})"),
        ),
        // Timeouts, 429, 5xx, and whatever something in between may answer.
        _ => (
            FailureKind::Unreachable,
            format!("no usable answer from the API server ({said})"),
        ),
    };
    let retry_after = answer.retry_after.or(status.retry_after());
    Failure {
        retry_after: retry_after.filter(|_| kind == FailureKind::Unreachable),
        ..Failure::new(kind, message)
    }
}

/// The answer's `metav1.Status`, if that is what its body is.
pub(super) struct Status {
    body: Option<kube::core::Status>,
    /// What the server said in its place, if that is plain text.
    text: Option<String>,
}

impl Status {
    /// Looks for a status in the body.
    pub(super) fn of(answer: &Answer) -> Self {
        let body: Option<Value> = serde_json::from_slice(&answer.body).ok();
        let body = body.filter(|body| body["kind"] == "Status");
        let text = std::str::from_utf8(&answer.body).ok().map(str::trim);
        Self {
            body: body.and_then(|body| serde_json::from_value(body).ok()),
            // Neither JSON nor HTML is for people.
            text: text
                .filter(|text| !text.starts_with(['{', '[', '<']))
                .map(str::to_owned),
        }
    }

    /// The HTTP code that it stands for.
    pub(super) fn code(&self) -> Option<u16> {
        let code = self.body.as_ref().map(|body| body.code);
        code.filter(|code| *code != 0)
    }

    /// Whether the object itself was not found. A 404 that says less proves nothing: a proxy or a
    /// server that is just starting may have sent it.
    pub(super) fn says_lease_not_found(&self) -> bool {
        let body = self.body.as_ref();
        body.is_some_and(|body| body.reason == reason::NOT_FOUND) && self.kind() == Some("leases")
    }

    /// Whether a PUT without a version met an object that exists: validation then demands one.
    pub(super) fn demands_version(&self) -> bool {
        self.causes()
            .any(|cause| cause.field == "metadata.resourceVersion")
    }

    /// What the server said, once and on one line.
    pub(super) fn sentence(&self, code: u16) -> String {
        let message = self.body.as_ref().map(|body| body.message.trim());
        let message = message.or(self.text.as_deref());
        match message.filter(|message| !message.is_empty()) {
            Some(message) => format!("{code}: {}", one_line(message)),
            None => match http::StatusCode::from_u16(code)
                .ok()
                .and_then(|code| code.canonical_reason())
            {
                Some(reason) => format!("{code} {reason}"),
                None => code.to_string(),
            },
        }
    }

    fn details(&self) -> Option<&StatusDetails> {
        self.body.as_ref()?.details.as_ref()
    }

    /// The resource that the status is about.
    fn kind(&self) -> Option<&str> {
        self.details().map(|details| details.kind.as_str())
    }

    fn causes(&self) -> impl Iterator<Item = &StatusCause> {
        self.details()
            .into_iter()
            .flat_map(|details| &details.causes)
    }

    fn namespace_is_terminating(&self) -> bool {
        let text = "because it is being terminated";
        self.causes()
            .any(|cause| cause.reason == "NamespaceTerminating")
            || self
                .body
                .as_ref()
                .is_some_and(|body| body.message.contains(text))
    }

    fn retry_after(&self) -> Option<Duration> {
        let seconds = self.details()?.retry_after_seconds;
        (seconds > 0).then(|| Duration::from_secs(seconds.into()))
    }

    /// What the authorizer refused.
    fn denial(&self) -> Option<Denial<'_>> {
        let body = self
            .body
            .as_ref()
            .filter(|body| body.reason == reason::FORBIDDEN)?;
        let message = body.message.as_str();
        if let Some((_, rest)) = message.split_once("User \"")
            && let Some((user, rest)) = rest.split_once("\" cannot ")
        {
            return Some(match rest.split(' ').next()? {
                verb if verb.starts_with("impersonate") => Denial::Impersonation { user },
                "create" => Denial::Creation { user: Some(user) },
                verb => Denial::Lease { user, verb },
            });
        }
        // The right to create by a PUT is asked for when the object proves absent, and of that
        // question older servers, such as 1.20, repeat neither user nor verb; RBAC's own reason is
        // empty, or names roles that it could not find. Whoever else forbids something says why.
        let (_, reason) = message.split_once(" is forbidden:")?;
        let reason = reason.trim();
        let is_rbac = reason.is_empty() || reason.starts_with("RBAC: ");
        is_rbac.then_some(Denial::Creation { user: None })
    }
}

impl From<kube::core::Status> for Status {
    fn from(body: kube::core::Status) -> Self {
        Self {
            body: Some(body),
            text: None,
        }
    }
}

/// What RBAC refused.
enum Denial<'a> {
    /// To act as another user.
    Impersonation { user: &'a str },
    /// To make the lease, which is absent; older servers do not say to whom.
    Creation { user: Option<&'a str> },
    /// Any other verb on the lease.
    Lease { user: &'a str, verb: &'a str },
}

/// A 403 by RBAC gets the rule that cures it; any other (an admission webhook, a quota) stays as the
/// server said it.
fn forbidden(status: &Status, answer: &Answer, target: &Target) -> String {
    let (namespace, name) = (&target.namespace, &target.name);
    let role = format!(
        "a Role in the namespace {namespace:?} with the rule {{apiGroups: [coordination.k8s.io], resources: [leases], \
         resourceNames: [{name}], verbs: [get, create, update, watch]}}"
    );
    let said = status.sentence(403);
    let said = said.trim_end_matches(':');
    let cured = match status.denial() {
        None => None,
        Some(
            Denial::Impersonation { user: ANONYMOUS }
            | Denial::Creation {
                user: Some(ANONYMOUS),
            }
            | Denial::Lease {
                user: ANONYMOUS, ..
            },
        ) => Some(format!(
            "the API server takes us for {ANONYMOUS}: the configuration holds no credentials that it knows"
        )),
        // Where the configuration names nobody to impersonate, something in between does.
        Some(Denial::Impersonation { user }) => answer
            .acting_as
            .as_ref()
            .and_then(|auth| impersonation::refused(user, auth)),
        Some(Denial::Creation { user }) => {
            let (said, user) = match user {
                Some(user) => (String::new(), format!(" {user:?}")),
                None => (format!(" ({said})"), String::new()),
            };
            Some(format!(
                "the lease {namespace}/{name} does not exist, and the right to create it is missing{said}; make the \
                 lease, or bind to the user{user} {role}"
            ))
        }
        Some(Denial::Lease { user, verb }) => Some(format!(
            "the user {user:?} may not {verb} the lease {namespace}/{name}; bind to it {role}"
        )),
    };
    cured.unwrap_or_else(|| format!("the API server forbids it ({said})"))
}

/// Why no answer came, and what to do before the next attempt.
pub(super) struct Broken {
    pub(super) failure: Failure,
    /// Whether credentials or trusted certificates may be out of date.
    pub(super) credentials: bool,
}

/// What an error of the client, or of a body that it is reading, means. `server` is its URL.
pub(super) fn from_error(error: &(dyn StdError + 'static), server: &str) -> Broken {
    let causes = causes(error);
    let find = |kind, message: String, credentials| Broken {
        failure: Failure::new(kind, message),
        credentials,
    };
    for cause in &causes {
        if let Some(error) = cause.downcast_ref::<rustls::Error>() {
            return find(
                FailureKind::Unreachable,
                format!("{} ({server})", tls(error)),
                true,
            );
        }
    }
    // TLS explains at length that an attacker may have cut the answer short.
    let is_cut = |cause: &&(dyn StdError + 'static)| {
        let error = cause.downcast_ref::<io::Error>();
        error.is_some_and(|error| error.kind() == io::ErrorKind::UnexpectedEof)
    };
    if causes.iter().any(is_cut) {
        let message = format!("the connection was closed by the other side ({server})");
        return find(FailureKind::Unreachable, message, false);
    }
    let innermost = causes
        .last()
        .map_or_else(String::new, |cause| plain(*cause));
    find(
        FailureKind::Unreachable,
        format!("{innermost} ({server})"),
        false,
    )
}

/// What an error in setting up the client means: something in the configuration is unusable.
pub(super) fn from_setup(error: &kube::Error, server: &str) -> Failure {
    let message = match error {
        kube::Error::RustlsTls(RustlsTlsError::InvalidPrivateKey(error))
            if format!("{error:?}").contains(VERSION_1) =>
        {
            "the client certificate is an X.509 version 1 certificate, which this program's TLS library refuses \
             (`openssl x509 -text` shows the version); have a version 3 certificate issued"
                .to_owned()
        }
        kube::Error::RustlsTls(RustlsTlsError::InvalidPrivateKey(rustls::Error::General(_))) => {
            "unusable client key: it is none of RSA with 2,048 to 8,192 bits, ECDSA on P-256, P-384 or P-521, and \
             Ed25519"
                .to_owned()
        }
        error => {
            let causes = causes(error);
            let innermost = causes.last().map_or_else(String::new, |cause| plain(*cause));
            match error {
                kube::Error::RustlsTls(RustlsTlsError::AddRootCertificate(_)) => {
                    format!("unusable certificate authority: {innermost}")
                }
                kube::Error::RustlsTls(_) => format!("unusable client certificate: {}", plain(error)),
                _ => innermost,
            }
        }
    };
    Failure::new(FailureKind::Misconfigured, format!("{message} ({server})"))
}

/// What TLS found fault with.
fn tls(error: &rustls::Error) -> String {
    let rustls::Error::InvalidCertificate(fault) = error else {
        return match error {
            rustls::Error::AlertReceived(alert) => {
                format!("the server broke off the TLS handshake: {alert:?}")
            }
            _ => format!("TLS failed: {}", plain(error)),
        };
    };
    match fault {
        CertificateError::UnknownIssuer => {
            "the server's certificate is not signed by a certificate authority that the configuration trusts".into()
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "the server's certificate has expired, or this machine's clock is wrong".into()
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "the server's certificate is not valid yet, or this machine's clock is wrong".into()
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            format!("the server's certificate is for another name: {fault}")
        }
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            "the server's certificate is not one for servers".into()
        }
        // webpki does not say which. The first is that of a cluster that was made anew.
        CertificateError::BadSignature => {
            "the server's certificate is signed by another certificate authority of the same name as the one that \
             the configuration trusts, or with an RSA key of fewer than 2,048 bits, which lease-exec refuses"
                .into()
        }
        CertificateError::UnsupportedSignatureAlgorithmContext { .. }
        | CertificateError::UnsupportedSignatureAlgorithmForPublicKeyContext { .. } => {
            "the server's certificate is signed by an algorithm that lease-exec's TLS library refuses; have it \
             signed by ECDSA, Ed25519, or RSA with SHA-256 or longer"
                .into()
        }
        CertificateError::Other(_) if format!("{fault:?}").contains(VERSION_1) => {
            "the server's certificate is an X.509 version 1 certificate, which names no servers; have a version 3 \
             certificate issued"
                .into()
        }
        CertificateError::Other(_) if format!("{fault:?}").contains("CaUsedAsEndEntity") => {
            "the server shows the certificate of an authority as its own; have one for the server issued".into()
        }
        _ => format!("the server's certificate is not acceptable: {}", plain(error)),
    }
}

/// The error and what caused it, outermost first. An `io::Error` that wraps another error doesn't
/// count it among its sources, but as what it holds.
fn causes<'a>(error: &'a (dyn StdError + 'static)) -> Vec<&'a (dyn StdError + 'static)> {
    let mut causes = vec![error];
    let mut current = error;
    loop {
        let held = current
            .downcast_ref::<io::Error>()
            .and_then(io::Error::get_ref);
        let next = held
            .map(|held| held as &(dyn StdError + 'static))
            .or(current.source());
        let Some(next) = next else {
            return causes;
        };
        causes.push(next);
        current = next;
    }
}

/// The text of an error as part of a sentence: without the errno, on one line, lower case.
pub(super) fn plain(error: &(dyn StdError + 'static)) -> String {
    let text = one_line(&error.to_string());
    let text = match text.rfind(" (os error ") {
        Some(end) if text.ends_with(')') => &text[..end],
        _ => &text,
    };
    let mut characters = text.chars();
    match characters.next() {
        // An abbreviation or a name stays as it is.
        Some(first) if !characters.clone().next().is_some_and(char::is_uppercase) => {
            first.to_lowercase().chain(characters).collect()
        }
        _ => text.to_owned(),
    }
}

/// Text of others in a message of ours: one line, and no longer than a message should be.
pub(super) fn one_line(text: &str) -> String {
    let words: Vec<&str> = text.split_whitespace().collect();
    let mut line = words.join(" ");
    if let Some((end, _)) = line.char_indices().nth(LONGEST_QUOTE) {
        line.truncate(end);
        line.push_str("...");
    }
    line.trim_end_matches('.').to_owned()
}

/// As webpki calls what it refuses in a certificate of X.509 version 1.
const VERSION_1: &str = "UnsupportedCertVersion";

/// Who sends requests without credentials.
const ANONYMOUS: &str = "system:anonymous";

/// In characters.
const LONGEST_QUOTE: usize = 500;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broken_connection_is_one_short_sentence() {
        let refused = io::Error::from_raw_os_error(libc::ECONNREFUSED);
        let cut = io::Error::new(
            io::ErrorKind::UnexpectedEof,
            "peer closed: https://long.example/story",
        );
        let alert = rustls::Error::AlertReceived(rustls::AlertDescription::CertificateExpired);
        let unknown = rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer);
        for (error, credentials, message) in [
            (io::Error::other(refused), false, "connection refused (S)"),
            (
                io::Error::other(cut),
                false,
                "the connection was closed by the other side (S)",
            ),
            (
                io::Error::other(alert),
                true,
                "the server broke off the TLS handshake: CertificateExpired (S)",
            ),
            (
                io::Error::other(unknown),
                true,
                "the server's certificate is not signed by a certificate authority that the configuration trusts (S)",
            ),
        ] {
            let broken = from_error(&error, "S");
            assert_eq!(broken.failure.kind, FailureKind::Unreachable);
            assert_eq!(broken.failure.message, message);
            assert_eq!(broken.credentials, credentials);
        }
    }
}
