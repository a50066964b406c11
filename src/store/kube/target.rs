//! Which Lease, and what a request for it begins with.
//!
//! Must not: know what is asked or answered.

use http::{Method, Request, header};

use crate::names::{LeaseName, Namespace};

/// Which Lease.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) namespace: Namespace,
    pub(super) name: LeaseName,
}

impl Target {
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
            .expect("names are nothing but letters, digits, - and .");
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
