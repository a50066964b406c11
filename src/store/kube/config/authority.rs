//! The certificate authority by which a server is known.

use std::path::PathBuf;

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use kube::config::Cluster;
use rustls::RootCertStore;

use super::{
    super::{certificate, failure::plain},
    Stamp, file, misconfigured, stamped,
};
use crate::lease::Failure;

/// Reads a cluster's certificates, from their file if they are not in the kubeconfig itself, and
/// leaves them in the place of that file's name.
pub(super) fn take(
    cluster: &mut Cluster,
    owner: &str,
    stamps: &mut Vec<(PathBuf, Option<Stamp>)>,
) -> Result<Option<Vec<Vec<u8>>>, Failure> {
    let path = cluster.certificate_authority.take();
    stamps.extend(stamped(path.as_ref().map(PathBuf::from)));
    let name = match &path {
        Some(path) => format!("the certificate-authority {path}"),
        None => format!("the certificate-authority-data of {owner}"),
    };
    let data = cluster.certificate_authority_data.take();
    let Some(contents) = file::contents("certificate-authority", (path, data), owner)? else {
        return Ok(None);
    };
    cluster.certificate_authority_data = Some(BASE64.encode(&contents));
    certificates(&contents, &name).map(Some)
}

/// The certificates of a bundle. As in Go, what can't be read is passed over as long as there is one
/// that can.
///
/// # Errors
///
/// There is none: a server would be refused for it, as if that were its fault.
pub(super) fn certificates(bundle: &[u8], name: &str) -> Result<Vec<Vec<u8>>, Failure> {
    let mut usable = Vec::new();
    let mut problem = "holds no certificate in PEM".to_owned();
    for certificate in certificate::in_pem(&String::from_utf8_lossy(bundle)) {
        match RootCertStore::empty().add(certificate.as_slice().into()) {
            Ok(()) => usable.push(certificate),
            Err(error) => problem = format!("can't be used: {}", plain(&error)),
        }
    }
    match usable.is_empty() {
        true => Err(misconfigured(format!("{name} {problem}"))),
        false => Ok(usable),
    }
}
