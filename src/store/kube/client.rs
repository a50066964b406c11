//! One attempt at a request, and the connection for it.
//!
//! An attempt sends its request once. Whatever can repeat a request behind our back is off (kube's
//! retry layer, hyper's retry on a connection that closed under it), because the election counts
//! a term from the send of the very write that succeeded. At most one idle connection is kept, and
//! only after a complete answer: when an attempt breaks, or is dropped by its caller's time limit,
//! its connection goes with it and the next attempt starts on a fresh one, to another address if
//! there is one.
//!
//! Must not: retry, put a time limit on an attempt (the caller does).

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use http::{Request, Response};
use http_body_util::{BodyExt, Limited};
use kube::client::{Body, Client};

use super::{
    answer::Answer,
    config::ClusterConfig,
    connector::Connector,
    credentials::Credentials,
    dial::{Addresses, Way},
    failure,
};
use crate::lease::Failure;

/// The way to one API server.
pub(super) struct Connections {
    /// Where it leads, for messages.
    server: String,
    addresses: Arc<Addresses>,
    credentials: Credentials,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// That of the last attempt, if this was complete; an attempt takes it out, so that one which is
    /// dropped half-way leaves nothing behind.
    idle: Option<Session>,
    /// How far the last attempt has come; `None`: it waits for credentials.
    way: Option<Way>,
}

/// A client, and where its requests go.
struct Session {
    connector: Arc<Connector>,
    way: Way,
    client: Client,
}

impl Connections {
    /// Prepares the way, which finds unusable certificates. A credential plugin is not run yet.
    ///
    /// # Errors
    ///
    /// [`FailureKind::Misconfigured`].
    pub(super) fn new(cluster: ClusterConfig) -> Result<Self, Failure> {
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
            credentials: Credentials::new(cluster)?,
            state: Mutex::default(),
        })
    }

    /// Waits until the first credentials were made, or could not be, however long that takes.
    pub(super) async fn prepare(&self) {
        self.credentials.prepare().await;
    }

    /// Makes one attempt and reads its answer, whatever its status.
    ///
    /// # Errors
    ///
    /// No answer came, or not all of it.
    pub(super) async fn send(&self, request: Request<Vec<u8>>) -> Result<Answer, Failure> {
        self.state().way = None;
        let connector = self.credentials.current().await?;
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
        let session = self.session(self.credentials.current().await?)?;
        let response = session.client.send(request.map(Body::from)).await;
        let response = response.map_err(|error| self.broken(&error))?;
        match response.status() {
            http::StatusCode::OK => session.way.has_answered(),
            http::StatusCode::UNAUTHORIZED => self.credentials.are_refused(),
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
        let is_forbidden = head.status == http::StatusCode::FORBIDDEN;
        let acting_as = is_forbidden.then(|| self.credentials.user());
        if head.status == http::StatusCode::UNAUTHORIZED {
            remark = self.credentials.remark();
            self.credentials.are_refused();
        }
        let body = Limited::new(body, LARGEST_ANSWER).collect().await;
        let body = body.map_err(|error| self.broken(&*error))?;
        Ok(Answer::new(
            &head,
            body.to_bytes().to_vec(),
            remark,
            acting_as,
        ))
    }

    /// What the last attempt waits for.
    pub(super) fn awaited(&self) -> String {
        match &self.state().way {
            Some(way) => format!("{way} ({})", self.server),
            None => self.credentials.awaited(),
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
            self.credentials.are_refused();
        }
        broken.failure
    }

    /// Never held while awaiting. What it protects is consistent after every single assignment.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// In bytes. etcd keeps no object above 1.5 MiB.
const LARGEST_ANSWER: usize = 4 << 20;
