//! Which Lease, and what a request for it begins with.
//!
//! Must not: know what is asked or answered.

use http::{Method, Request, header};

use crate::lease::{Failure, FailureKind};

/// Which Lease.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) namespace: String,
    pub(super) name: String,
}

impl Target {
    /// # Errors
    ///
    /// [`FailureKind::Misconfigured`] if a name is none that Kubernetes could know.
    pub(super) fn new(namespace: String, name: String) -> Result<Self, Failure> {
        for (what, name) in [("namespace", &namespace), ("lease", &name)] {
            if !is_name(name) {
                let message = format!(
                    "{name:?} can't be the name of a {what}: lower case letters, digits, - and ."
                );
                return Err(Failure::new(FailureKind::Misconfigured, message));
            }
        }
        Ok(Self { namespace, name })
    }

    pub(super) fn path(&self) -> String {
        self.collection_path(&format!("/{}", self.name))
    }

    pub(super) fn collection_path(&self, rest: &str) -> String {
        format!(
            "/apis/coordination.k8s.io/v1/namespaces/{}/leases{rest}",
            self.namespace
        )
    }

    pub(super) fn request(&self, method: Method, path: &str, body: Vec<u8>) -> Request<Vec<u8>> {
        let mut request = Request::new(body);
        *request.method_mut() = method;
        *request.uri_mut() = path
            .parse()
            .expect("the names were checked to be nothing but letters, digits, - and .");
        let headers = request.headers_mut();
        let text = http::HeaderValue::from_static;
        headers.insert(header::ACCEPT, text("application/json"));
        headers.insert(
            header::USER_AGENT,
            text(concat!("lease-exec/", env!("CARGO_PKG_VERSION"))),
        );
        if !request.body().is_empty() {
            let headers = request.headers_mut();
            headers.insert(header::CONTENT_TYPE, text("application/json"));
        }
        request
    }
}

/// Whether Kubernetes could know it: the characters of an RFC 1123 subdomain.
pub(super) fn is_name(name: &str) -> bool {
    let known = |byte: u8| {
        byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-' || byte == b'.'
    };
    let ends = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    name.len() <= 253
        && name.bytes().all(known)
        && ends(name.as_bytes().first())
        && ends(name.as_bytes().last())
}
