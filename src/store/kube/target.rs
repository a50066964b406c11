//! Which Lease, and the requests for it.
//!
//! Must not: know what is answered.

use http::{HeaderValue, Request, header};
use k8s_openapi::api::coordination::v1::Lease;
use kube::{
    Resource,
    api::{GetParams, PostParams, WatchParams},
    core,
};

use crate::{
    lease::Version,
    names::{LeaseName, Namespace},
};

/// Which Lease.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) namespace: Namespace,
    pub(super) name: LeaseName,
}

impl Target {
    /// A read without a version, so that the server asks etcd.
    pub(super) fn read(&self) -> Request<Vec<u8>> {
        with_headers(self.leases().get(&self.name, &GetParams::default()))
    }

    pub(super) fn write(&self, manager: &str, object: Vec<u8>) -> Request<Vec<u8>> {
        let parameters = PostParams {
            field_manager: Some(manager.to_owned()),
            ..PostParams::default()
        };
        with_headers(self.leases().replace(&self.name, &parameters, object))
    }

    /// A watch from this version on, which the server is to end after so many seconds.
    pub(super) fn watch(&self, from: Option<&Version>, seconds: u32) -> Request<Vec<u8>> {
        let parameters = WatchParams {
            bookmarks: false,
            ..WatchParams::default()
                .fields(&format!("metadata.name={}", self.name))
                .timeout(seconds)
        };
        let version = from.map_or("", Version::as_str);
        with_headers(self.leases().watch(&parameters, version))
    }

    fn leases(&self) -> core::Request {
        core::Request::new(Lease::url_path(&(), Some(&self.namespace)))
    }
}

fn with_headers(request: Result<Request<Vec<u8>>, core::request::Error>) -> Request<Vec<u8>> {
    let mut request = request.expect("names are nothing but letters, digits, - and .");
    let agent = concat!("lease-exec/", env!("CARGO_PKG_VERSION"));
    let headers = request.headers_mut();
    headers.insert(header::ACCEPT, HeaderValue::from_static("application/json"));
    headers.insert(header::USER_AGENT, HeaderValue::from_static(agent));
    request
}
