//! All that a connection needs: address, certificates, credentials.
//!
//! Must not: connect, know when credentials are made anew.

use std::{sync::Arc, time::Duration};

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use http::header;
use hyper_rustls::{
    DefaultServerNameResolver, FixedServerNameResolver, HttpsConnector, ResolveServerName,
};
use hyper_util::{
    client::legacy::Client as HyperClient,
    rt::{TokioExecutor, TokioTimer},
};
use jiff::{SignedDuration, Timestamp};
use kube::client::{Body, Client, ClientBuilder, ConfigExt, RustlsTlsError};
use rustls::pki_types::ServerName;
use tower::{BoxError, ServiceBuilder, ServiceExt};

use super::{
    certificate,
    config::ClusterConfig,
    dial::Way,
    exec::{self, Given, Leash, Terminal},
    failure, pinned,
    proxy::Proxy,
    tunnel::Tunnels,
};
use crate::lease::{Failure, FailureKind};

/// All that a connection needs: address, certificates, credentials. Makes clients, each of which
/// has connections of its own.
pub(super) struct Connector {
    config: kube::Config,
    tls: Arc<rustls::ClientConfig>,
    /// By which the server's certificate has to be for it.
    server_name: Arc<dyn ResolveServerName + Send + Sync>,
    proxy: Option<Proxy>,
    /// When the credentials run out, as far as we were told.
    expires: Option<Expiry>,
    /// When the client certificate does.
    certificate_ends: Option<Timestamp>,
}

impl Connector {
    /// Blocks while a credential plugin runs.
    pub(super) fn build(
        cluster: &ClusterConfig,
        leash: &Leash,
        terminal: Terminal,
    ) -> Result<Self, Failure> {
        let given = match &cluster.exec {
            Some(plugin) => exec::run(plugin, leash, terminal)?,
            None => Given::default(),
        };
        Self::with(cluster, given)
    }

    /// With what a plugin gave in place of what the configuration holds.
    pub(super) fn with(cluster: &ClusterConfig, given: Given) -> Result<Self, Failure> {
        let mut config = cluster.config.clone();
        if let Some((certificate, key)) = given.certificate {
            let user = &mut config.auth_info;
            user.client_certificate_data = Some(BASE64.encode(certificate));
            user.client_key_data = Some(BASE64.encode(key).into());
        }
        if let Some(token) = given.token.as_ref().or(cluster.token.as_ref()) {
            let header = (header::AUTHORIZATION, token.header());
            config.headers.push(header);
        }
        let server = cluster.server();
        let unusable = |error: kube::Error| failure::from_setup(&error, &server);
        let mut tls = config.rustls_client_config().map_err(unusable)?;
        if let Some(bundle) = &config.root_cert
            && !config.accept_invalid_certs
        {
            pinned::trust(&mut tls, bundle)
                .map_err(|error| Failure::new(FailureKind::Misconfigured, error.to_string()))?;
        }
        let server_name: Arc<dyn ResolveServerName + Send + Sync> = match &config.tls_server_name {
            None => Arc::new(DefaultServerNameResolver::default()),
            Some(name) => {
                let name = ServerName::try_from(name.clone())
                    .map_err(RustlsTlsError::InvalidServerName)
                    .map_err(|error| unusable(kube::Error::RustlsTls(error)))?;
                Arc::new(FixedServerNameResolver::new(name))
            }
        };
        let certificate_ends =
            client_certificate(&config).and_then(|pem| certificate::end_of_first(&pem));
        Ok(Self {
            config,
            tls: tls.into(),
            server_name,
            proxy: cluster.proxy.clone(),
            expires: given.expires.map(Expiry::starting_now),
            certificate_ends,
        })
    }

    /// Why the credentials may have been refused.
    pub(super) fn remark(&self) -> Option<String> {
        let end = self
            .certificate_ends
            .filter(|end| *end <= Timestamp::now())?;
        Some(format!("the client certificate has expired at {end}"))
    }

    /// A client without connections, which are to be made on this way.
    pub(super) fn client(&self, way: &Way) -> Result<Client, kube::Error> {
        let tunnels = Tunnels {
            way: way.clone(),
            proxy: self.proxy.clone(),
            tls: self.tls.clone(),
            server_name: self.server_name.clone(),
        };
        let https = HttpsConnector::new(tunnels, self.tls.clone(), false, self.server_name.clone());
        let client: HyperClient<_, Body> = HyperClient::builder(TokioExecutor::new())
            .pool_max_idle_per_host(1)
            .pool_idle_timeout(LONGEST_IDLE)
            .pool_timer(TokioTimer::new())
            .retry_canceled_requests(false)
            .build(https.map_response(way.opened()));
        let service = ServiceBuilder::new()
            .layer(self.config.base_uri_layer())
            .layer(self.config.extra_headers_layer()?)
            .map_err(BoxError::from)
            .service(client);
        Ok(ClientBuilder::new(service, self.config.default_namespace.clone()).build())
    }

    pub(super) fn has_expired(&self) -> bool {
        let expiry = self.expires.as_ref();
        expiry.is_some_and(|expiry| Timestamp::now() >= expiry.at)
    }

    /// Whether it is time to fetch new credentials.
    pub(super) fn is_due(&self) -> bool {
        let expiry = self.expires.as_ref();
        expiry.is_some_and(|expiry| expiry.at.duration_since(Timestamp::now()) <= expiry.lead)
    }
}

/// The end of credentials.
struct Expiry {
    at: Timestamp,
    /// How long before that new ones are fetched: a third of their life is enough for those that
    /// don't live long.
    lead: SignedDuration,
}

impl Expiry {
    fn starting_now(at: Timestamp) -> Self {
        let life = at.duration_since(Timestamp::now());
        Self {
            at,
            lead: RENEWED_BEFORE.min(life / 3),
        }
    }
}

/// The client certificate as PEM, if there is one.
fn client_certificate(config: &kube::Config) -> Option<String> {
    let user = &config.auth_info;
    let pem = match (&user.client_certificate_data, &user.client_certificate) {
        (Some(data), _) => BASE64.decode(data).ok()?,
        (None, Some(path)) => std::fs::read(path).ok()?,
        (None, None) => return None,
    };
    String::from_utf8(pem).ok()
}

/// Who waits writes on the connection of its last read if that is still open, which saves it a TCP
/// and a TLS handshake when the lease is released. kube-apiserver closes a connection that was idle
/// for 90 s (`IdleTimeout` of its secure serving); a write that is sent just then would be lost, so
/// we are first. A load balancer may forget it earlier, but TCP's keepalive shows it life, and us
/// the end.
const LONGEST_IDLE: Duration = Duration::from_secs(85);

/// New credentials are fetched so long before the old ones expire.
const RENEWED_BEFORE: SignedDuration = SignedDuration::from_secs(60);

#[cfg(test)]
mod fuzz;
