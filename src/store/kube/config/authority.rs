//! The certificate authority by which a server is known.

use std::path::PathBuf;

use kube::config::{Cluster, Config};
use rustls::RootCertStore;

use super::{super::failure::plain, Stamp, file, misconfigured, stamped};
use crate::lease::Failure;

/// Reads the file of the certificate authority, if there is one, and returns what to call it. Empty
/// fields are as good as none, as they are to kubectl.
pub(super) fn take(
    cluster: &mut Cluster,
    stamps: &mut Vec<(PathBuf, Option<Stamp>)>,
) -> Result<Option<String>, Failure> {
    let (path, data) = (
        &mut cluster.certificate_authority,
        &mut cluster.certificate_authority_data,
    );
    data.take_if(|data| data.is_empty());
    stamps.extend(stamped(path.as_ref().map(PathBuf::from)));
    let path = file::take("the certificate authority", path, data)?;
    Ok(path.map(|path| format!("the certificate authority {path}")))
}

/// A server would be refused for a certificate authority that is none, as if that were its fault.
pub(super) fn check(config: &Config, name: &str) -> Result<(), Failure> {
    let Some(certificates) = &config.root_cert else {
        return Ok(());
    };
    if certificates.is_empty() {
        return Err(no_certificate(name));
    }
    let mut roots = RootCertStore::empty();
    for certificate in certificates {
        let added = roots.add(certificate.as_slice().into());
        added.map_err(|error| misconfigured(format!("{name} can't be used: {}", plain(&error))))?;
    }
    Ok(())
}

pub(super) fn no_certificate(name: &str) -> Failure {
    misconfigured(format!("{name} holds no certificate in PEM"))
}
