//! One attempt at a request: connections, credentials, and when either is made anew.
//!
//! An attempt sends its request once. Whatever can repeat a request behind our back is off (kube's
//! retry layer, hyper's retry on a connection that closed under it), because the election counts
//! a term from the send of the very write that succeeded. At most one idle connection is kept, and
//! only after a complete answer: when an attempt breaks, or is dropped by its caller's time limit,
//! its connection goes with it and the next attempt starts on a fresh one, to another address if
//! there is one.
//!
//! Must not: retry, put a time limit on an attempt (the caller does).

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use futures_util::{
    FutureExt,
    future::{BoxFuture, Shared},
};
use http::{Request, Response, header};
use http_body_util::{BodyExt, Limited};
use hyper_rustls::{
    DefaultServerNameResolver, FixedServerNameResolver, HttpsConnector, ResolveServerName,
};
use hyper_util::{
    client::legacy::{
        Client as HyperClient,
        connect::{Connect, proxy::Tunnel},
    },
    rt::{TokioExecutor, TokioTimer},
};
use jiff::{SignedDuration, Timestamp, fmt::rfc2822};
use kube::{
    client::{Body, Client, ClientBuilder, ConfigExt, RustlsTlsError},
    config::AuthInfo,
};
use rustls::pki_types::ServerName;
use tower::{BoxError, ServiceBuilder, ServiceExt, util::option_layer};

use super::{
    certificate,
    config::ClusterConfig,
    dial::{Addresses, Way},
    exec::{self, Leash},
    failure,
    proxy::Proxy,
};
use crate::{
    clock::WallTime,
    lease::{Failure, FailureKind},
};

/// A complete answer.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) code: u16,
    pub(super) body: Vec<u8>,
    /// The server's clock, from `Date`.
    pub(super) date: Option<WallTime>,
    /// `Retry-After`, if it is in seconds and more than none.
    pub(super) retry_after: Option<Duration>,
    /// What may explain a 401, from what we know of our credentials.
    pub(super) remark: Option<String>,
    /// With a 403, the user in whose name the request was sent, who may be another than the one that
    /// the server knows.
    pub(super) acting_as: Option<AuthInfo>,
}

/// The way to one API server.
pub(super) struct Connections {
    /// Where it leads, for messages.
    server: String,
    addresses: Arc<Addresses>,
    leash: Arc<Leash>,
    state: Mutex<State>,
}

struct State {
    cluster: ClusterConfig,
    connector: Option<Arc<Connector>>,
    /// The connector's credentials were refused: the next attempt waits for new ones.
    rejected: bool,
    /// New credentials that are on their way. Kept over the attempts, so that a credential plugin
    /// that takes longer than one attempt still comes to its end.
    building: Option<Building>,
    /// That of the last attempt, if this was complete; an attempt takes it out, so that one which is
    /// dropped half-way leaves nothing behind.
    idle: Option<Session>,
    /// How far the last attempt has come; `None`: it waits for credentials.
    way: Option<Way>,
    /// What was said last of credentials that can't be renewed, so that it is said once.
    warned: Option<String>,
}

type Building = Shared<BoxFuture<'static, Result<Built, Failure>>>;

#[derive(Clone)]
struct Built {
    cluster: ClusterConfig,
    connector: Arc<Connector>,
}

impl Connections {
    /// Prepares the way, which finds unusable certificates. A credential plugin is not run yet.
    ///
    /// # Errors
    ///
    /// [`FailureKind::Misconfigured`].
    pub(super) fn new(cluster: ClusterConfig) -> Result<Self, Failure> {
        let leash = Arc::default();
        let connector = match runs_programs(&cluster) {
            true => None,
            false => Some(Arc::new(Connector::build(&cluster, &leash)?)),
        };
        let server = match &cluster.proxy {
            None => cluster.server(),
            Some(proxy) => {
                let proxy = proxy.uri.to_string();
                let proxy = proxy.trim_end_matches('/');
                format!("{} through the proxy {proxy}", cluster.server())
            }
        };
        Ok(Self {
            server,
            addresses: Arc::default(),
            leash,
            state: Mutex::new(State {
                cluster,
                connector,
                rejected: false,
                building: None,
                idle: None,
                way: None,
                warned: None,
            }),
        })
    }

    /// Makes one attempt and reads its answer, whatever its status.
    ///
    /// # Errors
    ///
    /// No answer came, or not all of it.
    pub(super) async fn send(&self, request: Request<Vec<u8>>) -> Result<Answer, Failure> {
        self.state().way = None;
        let connector = self.connector().await?;
        let idle = self.state().idle.take();
        let session = match idle.filter(|idle| Arc::ptr_eq(&idle.connector, &connector)) {
            Some(session) => session,
            None => self.session(connector)?,
        };
        self.state().way = Some(session.way.clone());
        session.way.is_asked();
        let response = session.client.send(request.map(Body::from)).await;
        let response = response.map_err(|error| self.broken(&error))?;
        let answer = self.read(response).await?;
        // A server that is overloaded, shutting down or behind a broken proxy may do better on
        // another connection, which may lead to another server.
        if answer.code < 500 && !matches!(answer.code, 401 | 408 | 429) {
            session.way.has_answered();
            self.state().idle = Some(session);
        }
        Ok(answer)
    }

    /// Makes one attempt on a connection of its own, and leaves the answer's body to be read.
    ///
    /// # Errors
    ///
    /// No answer came.
    pub(super) async fn open(&self, request: Request<Vec<u8>>) -> Result<Response<Body>, Failure> {
        let session = self.session(self.connector().await?)?;
        let response = session.client.send(request.map(Body::from)).await;
        let response = response.map_err(|error| self.broken(&error))?;
        match response.status() {
            http::StatusCode::OK => session.way.has_answered(),
            http::StatusCode::UNAUTHORIZED => self.state().rejected = true,
            // The caller reads what it is.
            _ => {}
        }
        Ok(response)
    }

    /// Reads the whole of an answer.
    ///
    /// # Errors
    ///
    /// Not all of it came.
    pub(super) async fn read(&self, response: Response<Body>) -> Result<Answer, Failure> {
        let (head, body) = response.into_parts();
        let mut remark = None;
        let mut acting_as = None;
        if head.status == http::StatusCode::FORBIDDEN {
            let state = self.state();
            let connector = state.connector.as_ref();
            acting_as = connector.map(|connector| connector.config.auth_info.clone());
        }
        if head.status == http::StatusCode::UNAUTHORIZED {
            let mut state = self.state();
            state.rejected = true;
            remark = state
                .connector
                .as_ref()
                .and_then(|connector| connector.remark());
        }
        let body = Limited::new(body, LARGEST_ANSWER).collect().await;
        let body = body.map_err(|error| self.broken(&*error))?;
        let text = |name| {
            head.headers
                .get(name)
                .and_then(|value: &http::HeaderValue| value.to_str().ok())
        };
        Ok(Answer {
            code: head.status.as_u16(),
            body: body.to_bytes().to_vec(),
            date: text(header::DATE).and_then(http_date),
            retry_after: text(header::RETRY_AFTER)
                .and_then(|value| value.trim().parse().ok())
                .map(Duration::from_secs)
                .filter(|wish| !wish.is_zero()),
            remark,
            acting_as,
        })
    }

    /// What the last attempt waits for.
    pub(super) fn awaited(&self) -> String {
        match &self.state().way {
            Some(way) => format!("{way} ({})", self.server),
            None => "credentials".to_owned(),
        }
    }

    /// A client without connections.
    fn session(&self, connector: Arc<Connector>) -> Result<Session, Failure> {
        let way = Way::new(self.addresses.clone());
        let client = connector.client(&way);
        Ok(Session {
            client: client.map_err(|error| failure::from_setup(&error, &self.server))?,
            connector,
            way,
        })
    }

    /// What it means that a connection broke.
    pub(super) fn broken(&self, error: &(dyn std::error::Error + 'static)) -> Failure {
        let broken = failure::from_error(error, &self.server);
        if broken.credentials {
            self.state().rejected = true;
        }
        broken.failure
    }

    /// The connector for the next attempt, with credentials that are not known to be useless.
    async fn connector(&self) -> Result<Arc<Connector>, Failure> {
        let building = {
            let mut state = self.state();
            state.take_up_finished();
            if state.building.is_none() && state.wants_new_credentials() {
                state.building = Some(build(
                    state.cluster.clone(),
                    state.connector.is_some(),
                    self.leash.clone(),
                ));
            }
            match (&state.connector, &state.building) {
                (Some(connector), None) => return Ok(connector.clone()),
                // Good enough while the next is on its way.
                (Some(connector), Some(_)) if !state.rejected && !connector.has_expired() => {
                    return Ok(connector.clone());
                }
                (_, Some(building)) => building.clone(),
                (None, None) => {
                    return Err(failure::failure(
                        FailureKind::Unreachable,
                        "there is no connection yet",
                    ));
                }
            }
        };
        let built = building.await;
        let mut state = self.state();
        state.take_up(built.clone());
        match built {
            Ok(built) => Ok(built.connector),
            // The configuration was good once, and somebody may be about to replace it.
            Err(failure)
                if state.connector.is_some() && failure.kind == FailureKind::Misconfigured =>
            {
                Err(Failure {
                    kind: FailureKind::Unauthorized,
                    ..failure
                })
            }
            Err(failure) => Err(failure),
        }
    }

    /// Never held while awaiting. What it protects is consistent after every single assignment.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Connections {
    fn drop(&mut self) {
        self.leash.cut();
    }
}

impl State {
    fn wants_new_credentials(&self) -> bool {
        match &self.connector {
            None => true,
            Some(connector) => {
                self.rejected || connector.expires_soon() || self.cluster.is_outdated()
            }
        }
    }

    fn take_up_finished(&mut self) {
        let finished = self
            .building
            .as_ref()
            .and_then(|building| building.clone().now_or_never());
        if let Some(built) = finished {
            let problem = built.as_ref().err().map(|failure| failure.message.clone());
            if let Some(problem) = problem
                .as_ref()
                .filter(|problem| self.warned.as_ref() != Some(*problem))
            {
                tracing::warn!("can't renew the credentials: {problem}");
            }
            self.warned = problem;
            self.take_up(built);
        }
    }

    fn take_up(&mut self, built: Result<Built, Failure>) {
        self.building = None;
        if let Ok(built) = built {
            self.cluster = built.cluster;
            self.connector = Some(built.connector);
            self.rejected = false;
        }
    }
}

/// Starts to read the credentials: again if they were read before. It goes on when nobody waits.
fn build(cluster: ClusterConfig, again: bool, leash: Arc<Leash>) -> Building {
    let built = tokio::task::spawn_blocking(move || {
        let cluster = if again { cluster.reload()? } else { cluster };
        let connector = Arc::new(Connector::build(&cluster, &leash)?);
        Ok(Built { cluster, connector })
    });
    let built = async move {
        built.await.unwrap_or_else(|_| {
            Err(failure::failure(
                FailureKind::Unreachable,
                "the program is coming to its end",
            ))
        })
    };
    built.boxed().shared()
}

/// Whether reading the credentials starts a program.
fn runs_programs(cluster: &ClusterConfig) -> bool {
    cluster.exec.is_some() || cluster.config.auth_info.auth_provider.is_some()
}

/// A client, and where its requests go.
struct Session {
    connector: Arc<Connector>,
    way: Way,
    client: Client,
}

/// All that a connection needs: address, certificates, credentials. Makes clients, each of which
/// has connections of its own.
struct Connector {
    config: kube::Config,
    auth: Option<kube::client::middleware::AuthLayer>,
    tls: Arc<rustls::ClientConfig>,
    /// By which the server's certificate has to be for it.
    server_name: Arc<dyn ResolveServerName + Send + Sync>,
    proxy: Option<Proxy>,
    /// When the credentials run out, as far as we were told.
    expires: Option<Timestamp>,
    /// When the client certificate does.
    certificate_ends: Option<Timestamp>,
}

impl Connector {
    /// Blocks while files are read and a credential plugin runs.
    fn build(cluster: &ClusterConfig, leash: &Leash) -> Result<Self, Failure> {
        let mut config = cluster.config.clone();
        let mut expires = None;
        if let Some(plugin) = &cluster.exec {
            let credentials = exec::run(plugin, leash)?;
            let user = &mut config.auth_info;
            user.token = credentials.token.map(Into::into);
            if let Some((certificate, key)) = credentials.certificate {
                user.client_certificate_data = Some(BASE64.encode(certificate));
                user.client_key_data = Some(BASE64.encode(key).into());
            }
            expires = credentials.expires;
        }
        let server = cluster.server();
        let unusable = |error: kube::Error| failure::from_setup(&error, &server);
        let tls = Arc::new(config.rustls_client_config().map_err(unusable)?);
        let server_name: Arc<dyn ResolveServerName + Send + Sync> = match &config.tls_server_name {
            None => Arc::new(DefaultServerNameResolver::default()),
            Some(name) => {
                let name = ServerName::try_from(name.clone())
                    .map_err(RustlsTlsError::InvalidServerName)
                    .map_err(|error| unusable(kube::Error::RustlsTls(error)))?;
                Arc::new(FixedServerNameResolver::new(name))
            }
        };
        let auth = config.auth_layer().map_err(unusable)?;
        let certificate_ends =
            client_certificate(&config).and_then(|pem| certificate::end_of_first(&pem));
        Ok(Self {
            config,
            auth,
            tls,
            server_name,
            proxy: cluster.proxy.clone(),
            expires,
            certificate_ends,
        })
    }

    /// Why the credentials may have been refused.
    fn remark(&self) -> Option<String> {
        let end = self
            .certificate_ends
            .filter(|end| *end <= Timestamp::now())?;
        Some(format!("the client certificate has expired at {end}"))
    }

    /// A client without connections, which are to be made on this way.
    fn client(&self, way: &Way) -> Result<Client, kube::Error> {
        let Some(proxy) = &self.proxy else {
            return self.client_over(self.https(way.clone()).map_response(way.opened()));
        };
        let mut tunnel = Tunnel::new(proxy.uri.clone(), way.clone());
        if let Some(authorization) = &proxy.authorization {
            tunnel = tunnel.with_auth(authorization.clone());
        }
        self.client_over(self.https(tunnel).map_response(way.opened()))
    }

    fn https<C>(&self, connector: C) -> HttpsConnector<C> {
        HttpsConnector::new(connector, self.tls.clone(), false, self.server_name.clone())
    }

    fn client_over<C>(&self, connector: C) -> Result<Client, kube::Error>
    where
        C: Connect + Clone + Send + Sync + 'static,
    {
        let client: HyperClient<_, Body> = HyperClient::builder(TokioExecutor::new())
            .pool_max_idle_per_host(1)
            .pool_idle_timeout(LONGEST_IDLE)
            .pool_timer(TokioTimer::new())
            .retry_canceled_requests(false)
            .build(connector);
        let service = ServiceBuilder::new()
            .layer(self.config.base_uri_layer())
            .layer(option_layer(self.auth.as_ref()))
            .layer(self.config.extra_headers_layer()?)
            .map_err(BoxError::from)
            .service(client);
        Ok(ClientBuilder::new(service, self.config.default_namespace.clone()).build())
    }

    fn has_expired(&self) -> bool {
        self.expires
            .is_some_and(|expires| Timestamp::now() >= expires)
    }

    fn expires_soon(&self) -> bool {
        self.expires
            .is_some_and(|expires| Timestamp::now() + RENEWED_BEFORE >= expires)
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

/// A header like `Sat, 21 Nov 2026 07:43:31 GMT` (RFC 9110, 5.6.7).
fn http_date(text: &str) -> Option<WallTime> {
    let date = rfc2822::DateTimeParser::new().parse_timestamp(text).ok()?;
    Some(WallTime {
        unix_micros: date.as_microsecond(),
    })
}

/// In bytes. etcd keeps no object above 1.5 MiB.
const LARGEST_ANSWER: usize = 4 << 20;

/// Who waits writes on the connection of its last read if that is still open, which saves it a TCP
/// and a TLS handshake when the lease is released. kube-apiserver closes a connection that was idle
/// for 90 s (`IdleTimeout` of its secure serving); a write that is sent just then would be lost, so
/// we are first. A load balancer may forget it earlier, but TCP's keepalive shows it life, and us
/// the end.
const LONGEST_IDLE: Duration = Duration::from_secs(85);

/// New credentials are fetched this long before the old ones expire.
const RENEWED_BEFORE: SignedDuration = SignedDuration::from_secs(60);
