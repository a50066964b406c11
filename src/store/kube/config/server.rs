//! Where the API server is.

use std::net::IpAddr;

use http::{Uri, uri::Scheme};
use percent_encoding::percent_decode_str;

use super::misconfigured;
use crate::lease::Failure;

/// A server's URL, and the user who stands in it, with a password.
pub(super) struct Server {
    pub(super) url: Uri,
    pub(super) user: Option<(String, String)>,
}

/// Parses what a kubeconfig has for a server. As for kubectl a missing scheme means `http`.
///
/// # Errors
///
/// [`crate::lease::FailureKind::Misconfigured`]. The message holds no password.
pub(super) fn parse(text: Option<&str>, place: &str) -> Result<Server, Failure> {
    let text =
        text.ok_or_else(|| misconfigured(format!("the cluster in {place} has no server")))?;
    let no_url = || misconfigured(format!("the server in {place} is not a URL"));
    let (scheme, rest) = match text.split_once("://") {
        Some((scheme, rest)) => (scheme, rest),
        None if text.trim_end_matches('/').contains('/') => {
            return Err(no_url());
        }
        None => ("http", text),
    };
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (user, host) = match rest[..end].rsplit_once('@') {
        Some((user, host)) => (Some(user), host),
        None => (None, &rest[..end]),
    };
    let url: Uri = format!("{scheme}://{host}{}", &rest[end..])
        .parse()
        .map_err(|_| no_url())?;
    if !matches!(url.scheme_str(), Some("http" | "https")) || url.host().is_none() {
        return Err(misconfigured(format!(
            "{place} has no usable server: {:?} is not an http:// or https:// URL",
            url.to_string().trim_end_matches('/')
        )));
    }
    let has_port = url
        .authority()
        .is_some_and(|authority| !authority.as_str().ends_with(url.host().unwrap_or_default()));
    if has_port && url.port_u16().is_none() {
        return Err(no_url());
    }
    // kube would panic at a path which, with that of a lease, is longer than any URL can be.
    if url.path().len() > LONGEST_PATH {
        return Err(misconfigured(format!(
            "the path of the server in {place} is too long"
        )));
    }
    let decoded = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
    Ok(Server {
        url: with_port(&url),
        user: user.map(|user| {
            let (name, password) = user.split_once(':').unwrap_or((user, ""));
            (decoded(name), decoded(password))
        }),
    })
}

/// The server of the pod that this is, from the variables that name its host and port.
pub(super) fn of_pod((host, port): &(String, String)) -> Result<Uri, Failure> {
    let host = match host.contains(':') {
        true => format!("[{host}]"),
        false => host.clone(),
    };
    let port: u16 = port.parse().map_err(|_| {
        misconfigured(match port.is_empty() {
            true => "KUBERNETES_SERVICE_PORT is not set".to_owned(),
            false => format!("KUBERNETES_SERVICE_PORT is {port:?}, which is not a port"),
        })
    })?;
    let url = format!("https://{host}:{port}");
    url.parse()
        .map_err(|_| misconfigured("KUBERNETES_SERVICE_HOST is not a host"))
}

/// Whether all that is sent to it can be read on the way. What leaves this machine not at all may be
/// for a program that speaks TLS in our place.
pub(super) fn is_in_the_clear(url: &Uri) -> bool {
    let host = url.host().unwrap_or_default().trim_matches(['[', ']']);
    let address = host.parse::<IpAddr>();
    let is_local = host == "localhost" || address.is_ok_and(|address| address.is_loopback());
    url.scheme() == Some(&Scheme::HTTP) && !is_local
}

/// The URL with its port: a tunnel through a proxy takes a missing one for 443 whatever the scheme.
fn with_port(url: &Uri) -> Uri {
    if url.scheme() != Some(&Scheme::HTTP) || url.port().is_some() {
        return url.clone();
    }
    let mut parts = url.clone().into_parts();
    parts.authority = parts
        .authority
        .map(|authority| format!("{authority}:80").parse().unwrap_or(authority));
    Uri::from_parts(parts).unwrap_or_else(|_| url.clone())
}

/// In bytes.
const LONGEST_PATH: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_http_server_gets_its_port() {
        let with_port = |url: &str| super::with_port(&url.parse().expect("a URL"));
        assert_eq!(with_port("http://a"), "http://a:80/");
        assert_eq!(with_port("http://a:8080/x"), "http://a:8080/x");
        assert_eq!(with_port("https://a/x"), "https://a/x");
    }

    #[test]
    fn what_goes_over_the_net_without_tls_is_in_the_clear() {
        for (url, expected) in [
            ("http://a.example", true),
            ("http://10.0.0.1:8080", true),
            ("https://10.0.0.1", false),
            ("http://127.0.0.1:8001", false),
            ("http://[::1]:8001", false),
            ("http://localhost", false),
        ] {
            assert_eq!(
                is_in_the_clear(&url.parse().expect("a URL")),
                expected,
                "{url}"
            );
        }
    }

    #[test]
    fn pod_of_ipv6_has_brackets_in_its_url() {
        for (host, port, url) in [
            ("fd00::1", "443", "https://[fd00::1]:443/"),
            ("10.0.0.1", "6443", "https://10.0.0.1:6443/"),
        ] {
            let service = (host.to_owned(), port.to_owned());
            assert_eq!(of_pod(&service).expect("it is one"), url);
        }
    }

    #[test]
    fn password_in_the_url_is_in_no_message() {
        for url in [
            "ftp://me:secret@a",
            "https://me:secret@a:99999",
            "me:secret@a/b",
        ] {
            let failure = parse(Some(url), "FILE").err().expect("it is refused");
            assert!(!failure.message.contains("secret"), "{}", failure.message);
        }
    }
}
