//! Which proxy leads to the API server, by the rules of Go's `net/http`, which kubectl follows.
//!
//! A kubeconfig's `proxy-url` holds in any case. Otherwise HTTPS_PROXY (HTTP_PROXY for an `http://`
//! server), or the same in lower case, unless NO_PROXY names the server
//! (pkg.go.dev/golang.org/x/net/http/httpproxy).
//!
//! Must not: connect.

use std::{fmt, net::IpAddr};

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use http::{HeaderValue, Uri, header::InvalidHeaderValue};

use crate::lease::{Failure, FailureKind};

/// A proxy that connections are tunnelled through.
#[derive(Clone, Debug)]
pub(super) struct Proxy {
    pub(super) kind: Kind,
    /// With its port, and without the user.
    pub(super) uri: Uri,
    pub(super) user: Option<User>,
}

/// How a proxy is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// By HTTP's CONNECT.
    Http,
    /// The same over TLS.
    Https,
    /// By SOCKS version 5 (RFC 1928). The proxy looks the server's name up, for `socks5` as for `socks5h`.
    Socks5,
}

/// By which name a proxy knows its user.
#[derive(Clone)]
pub(super) struct User {
    pub(super) name: String,
    /// Empty if there is none.
    pub(super) password: String,
}

impl Proxy {
    /// Parses a proxy's URL; `origin` says in messages where it stands. A missing scheme means
    /// `http`, and a missing port that of the scheme, as in Go.
    ///
    /// # Errors
    ///
    /// [`FailureKind::Misconfigured`] if it is no URL or not that of a proxy. The message never holds the
    /// URL, which may contain a password.
    pub(super) fn parse(url: &str, origin: &str) -> Result<Self, Failure> {
        let url = if url.contains("://") {
            url.to_owned()
        } else {
            format!("http://{url}")
        };
        let refuse = |sentence: String| Failure::new(FailureKind::Misconfigured, sentence);
        let no_url = || refuse(format!("{origin} is not the URL of a proxy"));
        let uri: Uri = url.parse().map_err(|_| no_url())?;
        let scheme = uri.scheme_str().unwrap_or_default();
        let (kind, port) = match scheme {
            "http" => (Kind::Http, 80),
            "https" => (Kind::Https, 443),
            "socks5" | "socks5h" => (Kind::Socks5, 1080),
            _ => {
                return Err(refuse(format!(
                    "{origin} names a proxy of the kind {scheme}://, but only http, https, socks5 and \
                     socks5h are supported"
                )));
            }
        };
        let port = uri.port_u16().unwrap_or(port);
        let host = uri.host().ok_or_else(no_url)?;
        let user = match uri
            .authority()
            .and_then(|all| all.as_str().rsplit_once('@'))
        {
            None => None,
            Some((user, _)) => Some(User::parse(user).ok_or_else(no_url)?),
        };
        let uri = format!("{scheme}://{host}:{port}");
        Ok(Self {
            kind,
            uri: uri.parse().map_err(|_| no_url())?,
            user,
        })
    }
}

impl User {
    /// Parses `user:password` as it stands in a URL, that is percent-encoded.
    fn parse(text: &str) -> Option<Self> {
        let (name, password) = text.split_once(':').unwrap_or((text, ""));
        let decode = |part: &str| {
            let part = percent_encoding::percent_decode_str(part).decode_utf8();
            part.ok().map(Into::into)
        };
        Some(Self {
            name: decode(name)?,
            password: decode(password)?,
        })
    }

    /// The value of `Proxy-Authorization`.
    pub(super) fn header(&self) -> Result<HeaderValue, InvalidHeaderValue> {
        let user = BASE64.encode(format!("{}:{}", self.name, self.password));
        let mut value = HeaderValue::try_from(format!("Basic {user}"))?;
        value.set_sensitive(true);
        Ok(value)
    }
}

impl fmt::Debug for User {
    /// The password has no business in a log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("User").finish_non_exhaustive()
    }
}

/// What the environment says of proxies.
#[derive(Clone, Debug, Default)]
pub(super) struct ProxyVariables {
    /// `HTTPS_PROXY` or `https_proxy`.
    pub(super) https: Option<String>,
    /// `HTTP_PROXY` or `http_proxy`.
    pub(super) http: Option<String>,
    /// `NO_PROXY` or `no_proxy`.
    pub(super) exceptions: Option<String>,
}

impl ProxyVariables {
    /// Reads the environment.
    pub(super) fn read() -> Self {
        let first = |names: [&str; 2]| {
            let values = names
                .into_iter()
                .filter_map(|name| std::env::var(name).ok());
            values
                .map(|value| value.trim().to_owned())
                .find(|value| !value.is_empty())
        };
        Self {
            https: first(["HTTPS_PROXY", "https_proxy"]),
            http: first(["HTTP_PROXY", "http_proxy"]),
            exceptions: first(["NO_PROXY", "no_proxy"]),
        }
    }

    /// The proxy for this server.
    ///
    /// # Errors
    ///
    /// As [`Proxy::parse`].
    pub(super) fn proxy_for(&self, server: &Uri) -> Result<Option<Proxy>, Failure> {
        let (url, origin) = match server.scheme_str() {
            Some("http") => (&self.http, "HTTP_PROXY"),
            _ => (&self.https, "HTTPS_PROXY"),
        };
        match url {
            Some(url) if !self.excepted(server) => Proxy::parse(url, origin).map(Some),
            _ => Ok(None),
        }
    }

    /// Whether the server is reached without a proxy: this machine always is.
    fn excepted(&self, server: &Uri) -> bool {
        let host = server
            .host()
            .unwrap_or_default()
            .trim_matches(['[', ']'])
            .to_lowercase();
        let default_port = if server.scheme_str() == Some("http") {
            80
        } else {
            443
        };
        let port = server.port_u16().unwrap_or(default_port);
        let address: Option<IpAddr> = host.parse().ok();
        if host == "localhost" || address.is_some_and(|address| address.is_loopback()) {
            return true;
        }
        let entries = self
            .exceptions
            .as_deref()
            .unwrap_or_default()
            .split(',')
            .map(str::trim);
        entries
            .filter(|entry| !entry.is_empty())
            .any(|entry| match Exception::parse(entry) {
                Some(exception) => exception.holds_for(&host, address, port),
                None => {
                    tracing::warn!(
                        "ignoring {entry:?} in NO_PROXY, which is no host, address or network"
                    );
                    false
                }
            })
    }
}

/// One entry of NO_PROXY.
enum Exception {
    Everything,
    Network {
        address: IpAddr,
        prefix: u8,
    },
    Address {
        address: IpAddr,
        port: Option<u16>,
    },
    /// `suffix` starts with a dot.
    Domain {
        suffix: String,
        itself: bool,
        port: Option<u16>,
    },
}

impl Exception {
    fn parse(entry: &str) -> Option<Self> {
        let entry = entry.to_lowercase();
        if entry == "*" {
            return Some(Self::Everything);
        }
        if let Some((address, prefix)) = entry.split_once('/') {
            let address: IpAddr = address.parse().ok()?;
            let prefix = prefix
                .parse()
                .ok()
                .filter(|prefix| *prefix <= bits(address).1)?;
            return Some(Self::Network { address, prefix });
        }
        if let Ok(address) = entry.trim_matches(['[', ']']).parse() {
            return Some(Self::Address {
                address,
                port: None,
            });
        }
        let (host, port) = match entry.rsplit_once(':') {
            Some((host, port)) => (host, Some(port.parse().ok()?)),
            None => (entry.as_str(), None),
        };
        if let Ok(address) = host.trim_matches(['[', ']']).parse() {
            return Some(Self::Address { address, port });
        }
        let host = host
            .strip_prefix('*')
            .filter(|rest| rest.starts_with('.'))
            .unwrap_or(host);
        let valid =
            |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte) || !byte.is_ascii();
        if host.trim_matches('.').is_empty() || !host.bytes().all(valid) {
            return None;
        }
        Some(match host.strip_prefix('.') {
            Some(_) => Self::Domain {
                suffix: host.to_owned(),
                itself: false,
                port,
            },
            None => Self::Domain {
                suffix: format!(".{host}"),
                itself: true,
                port,
            },
        })
    }

    fn holds_for(&self, host: &str, address: Option<IpAddr>, port: u16) -> bool {
        let same_port = |wanted: &Option<u16>| wanted.is_none_or(|wanted| wanted == port);
        match self {
            Self::Everything => true,
            Self::Network {
                address: network,
                prefix,
            } => address.is_some_and(|address| {
                let ((network, width), (address, address_width)) = (bits(*network), bits(address));
                let shift = u32::from(width - prefix);
                width == address_width
                    && network.checked_shr(shift).unwrap_or(0)
                        == address.checked_shr(shift).unwrap_or(0)
            }),
            Self::Address {
                address: wanted,
                port,
            } => address == Some(*wanted) && same_port(port),
            Self::Domain {
                suffix,
                itself,
                port,
            } => {
                let matches = host.ends_with(suffix) || (*itself && host == &suffix[1..]);
                matches && same_port(port)
            }
        }
    }
}

/// An address as a number, and how many bits it has.
fn bits(address: IpAddr) -> (u128, u8) {
    match address {
        IpAddr::V4(address) => (u32::from(address).into(), 32),
        IpAddr::V6(address) => (address.into(), 128),
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by a panic")]
mod tests {
    use super::*;

    fn excepted(exceptions: &str, server: &str) -> bool {
        let variables = ProxyVariables {
            https: Some("http://proxy:3128".into()),
            http: Some("http://plain:3128".into()),
            exceptions: Some(exceptions.into()),
        };
        variables
            .proxy_for(&server.parse().unwrap())
            .unwrap()
            .is_none()
    }

    #[test]
    fn no_proxy_is_held_against_the_api_server() {
        for (exceptions, server, expected) in [
            ("", "https://api.example.com", false),
            ("example.com", "https://api.example.com", true),
            ("example.com", "https://example.com", true),
            ("example.com", "https://badexample.com", false),
            (".example.com", "https://api.example.com:6443", true),
            (".example.com", "https://example.com", false),
            ("*.example.com", "https://api.example.com", true),
            ("*.example.com", "https://example.com", false),
            ("API.Example.COM", "https://api.example.com", true),
            ("api.example.com:6443", "https://api.example.com:6443", true),
            ("api.example.com:6443", "https://api.example.com", false),
            ("api.example.com:443", "https://api.example.com", true),
            ("other, api.example.com ,", "https://api.example.com", true),
            ("*", "https://api.example.com", true),
            ("10.0.0.0/8", "https://10.96.0.1", true),
            ("10.0.0.0/8", "https://11.96.0.1", false),
            ("0.0.0.0/0", "https://11.96.0.1", true),
            ("10.96.0.1", "https://10.96.0.1:443", true),
            ("10.96.0.1:6443", "https://10.96.0.1", false),
            ("10.96.0.1:443", "https://10.96.0.1", true),
            ("fd00::/8", "https://[fd00::1]:6443", true),
            ("fd00::/8", "https://10.96.0.1", false),
            ("fd00::1", "https://[fd00::1]:6443", true),
            ("[fd00::1]:6443", "https://[fd00::1]:6443", true),
            ("[fd00::1]:443", "https://[fd00::1]:6443", false),
            // Nonsense is passed over, and what stands beside it still holds.
            (
                "10.0.0.0/99, ://x, :80, api.example.com:port, example.com",
                "https://example.com",
                true,
            ),
            (
                "10.0.0.0/99, ://x, :80, api.example.com:port",
                "https://api.example.com",
                false,
            ),
        ] {
            assert_eq!(
                excepted(exceptions, server),
                expected,
                "{exceptions:?} {server}"
            );
        }
    }

    #[test]
    fn this_machine_is_never_reached_through_a_proxy() {
        for server in [
            "https://localhost:6443",
            "https://127.0.0.1:6443",
            "https://127.1.2.3",
            "http://[::1]:8080",
        ] {
            assert!(excepted("", server), "{server}");
        }
    }

    #[test]
    fn scheme_of_the_server_chooses_the_variable() {
        let variables = ProxyVariables {
            https: Some("secure:3128".into()),
            http: None,
            exceptions: None,
        };
        let proxy = variables
            .proxy_for(&"https://api".parse().unwrap())
            .unwrap()
            .unwrap();
        assert_eq!(proxy.uri, "http://secure:3128/");
        assert!(
            variables
                .proxy_for(&"http://api".parse().unwrap())
                .unwrap()
                .is_none()
        );
    }

    #[test]
    fn user_in_the_url_becomes_a_header() {
        for (user, expected) in [
            ("me:p%40ss%3A", "me:p@ss:"),
            ("me", "me:"),
            ("me:", "me:"),
            (":x", ":x"),
        ] {
            let url = format!("http://{user}@proxy:3128");
            let proxy = Proxy::parse(&url, "HTTPS_PROXY").unwrap();
            let value = proxy.user.as_ref().unwrap().header().unwrap();
            assert_eq!(
                value.to_str().unwrap(),
                format!("Basic {}", BASE64.encode(expected))
            );
            assert!(value.is_sensitive());
            assert_eq!(proxy.uri, "http://proxy:3128/");
            assert!(!format!("{proxy:?}").contains("ss"), "{proxy:?}");
        }
        assert!(Proxy::parse("proxy", "HTTPS_PROXY").unwrap().user.is_none());
    }

    #[test]
    fn scheme_says_how_a_proxy_is_spoken_to_and_at_which_port() {
        for (url, kind, uri) in [
            ("proxy", Kind::Http, "http://proxy:80/"),
            ("proxy:1", Kind::Http, "http://proxy:1/"),
            ("http://[::1]/", Kind::Http, "http://[::1]:80/"),
            ("HTTPS://proxy", Kind::Https, "https://proxy:443/"),
            ("socks5://me:x@proxy", Kind::Socks5, "socks5://proxy:1080/"),
            ("socks5h://proxy:9/", Kind::Socks5, "socks5h://proxy:9/"),
        ] {
            let proxy = Proxy::parse(url, "HTTPS_PROXY").unwrap();
            assert_eq!(
                (proxy.kind, proxy.uri.to_string()),
                (kind, uri.to_owned()),
                "{url}"
            );
        }
    }

    #[test]
    fn other_kinds_of_proxy_are_refused_without_showing_a_password() {
        for (url, named) in [
            ("socks4://me:secret@proxy:1080", "socks4://"),
            ("http://me:sec ret@proxy", "not the URL"),
            ("http://me:%ffsec@proxy", "not the URL"),
            ("http://me:secret@", "not the URL"),
        ] {
            let failure = Proxy::parse(url, "the proxy-url of the cluster").unwrap_err();
            assert_eq!(failure.kind, FailureKind::Misconfigured);
            assert!(
                failure.message.starts_with("the proxy-url of the cluster"),
                "{}",
                failure.message
            );
            assert!(failure.message.contains(named), "{}", failure.message);
            assert!(!failure.message.contains("sec"), "{}", failure.message);
        }
    }
}
