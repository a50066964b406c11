//! The Kubernetes store: one `coordination.k8s.io/v1` Lease on an API server.
//!
//! Every write is a PUT. One with `metadata.uid` and `metadata.resourceVersion` is carried out only
//! if the object is still the one of the base; a version without a uid would silently re-create a
//! Lease that was deleted. One without either creates the Lease, and gets 422 if it exists
//! (AllowCreateOnUpdate and AllowUnconditionalUpdate in the API server's Lease strategy); unlike a
//! POST, RBAC can allow it for one name alone. A read names no resourceVersion, so that the server
//! asks etcd and not its cache.
//!
//! Must not: use PATCH or POST, retry, take anything but the API server's own word for the Lease's
//! absence.

use std::sync::Arc;

use serde_json::Value;

use self::{answer::Answer, client::Connections, failure::Status, target::Target};
use super::{Store, json};
use crate::{
    lease::{Claim, Failure, FailureKind, Outcome, Version, Write},
    names::{LeaseName, Namespace},
};

mod answer;
mod certificate;
mod client;
mod config;
mod connector;
mod credentials;
mod dial;
mod exec;
mod failure;
mod impersonation;
mod pinned;
mod proxy;
mod target;
mod tunnel;
mod watch;

pub use self::{
    config::{ClusterConfig, Source},
    watch::KubeWatch,
};

/// A Lease on an API server. Used inside a tokio runtime with I/O and time.
pub struct KubeStore {
    connections: Arc<Connections>,
    target: Arc<Target>,
}

impl KubeStore {
    /// Prepares to use the Lease `namespace/name`; nothing is sent yet, and no credential plugin is
    /// run.
    ///
    /// # Errors
    ///
    /// [`FailureKind::Misconfigured`] if certificates can't be used.
    pub fn new(
        cluster: ClusterConfig,
        namespace: Namespace,
        name: LeaseName,
    ) -> Result<Self, Failure> {
        Ok(Self {
            connections: Arc::new(Connections::new(cluster)?),
            target: Arc::new(Target { namespace, name }),
        })
    }
}

impl Store for KubeStore {
    type Watch = KubeWatch;

    async fn read(&self) -> Result<Option<Claim>, Failure> {
        let answer = self.connections.send(self.target.read()).await?;
        match answer.code {
            200 => claim(&answer).map(Some),
            404 if Status::of(&answer).says_lease_not_found() => Ok(None),
            _ => Err(failure::from_answer(&answer, &self.target)),
        }
    }

    async fn write(&self, write: Write) -> Result<Outcome, Failure> {
        let (namespace, name) = (&self.target.namespace, &self.target.name);
        let object = match &write.base {
            Some(base) => json::object_with_record(base, &write.record),
            None => json::new_object(namespace, name, &write.record),
        };
        let manager = json::field_manager(write.base.as_ref());
        let request = self.target.write(manager, object.to_string().into_bytes());
        let answer = self.connections.send(request).await?;
        let status = Status::of(&answer);
        match answer.code {
            200 | 201 => claim(&answer)
                .map(Outcome::Written)
                .map_err(says_nothing_of_write),
            409 => Ok(Outcome::Conflict),
            422 if write.base.is_none() && status.demands_version() => Ok(Outcome::Conflict),
            404 if write.base.is_some() && status.says_lease_not_found() => Ok(Outcome::Conflict),
            // What is not the record's comes from the base: so that is what makes no sense.
            422 if write.base.is_some() => Err(Failure {
                kind: FailureKind::Malformed,
                ..failure::from_answer(&answer, &self.target)
            }),
            _ => Err(failure::from_answer(&answer, &self.target)),
        }
    }

    async fn prepare(&self) {
        self.connections.prepare().await;
    }

    fn awaited(&self) -> Option<String> {
        Some(self.connections.awaited())
    }

    fn watch(&self, from: Option<Version>) -> KubeWatch {
        KubeWatch::start(self.connections.clone(), self.target.clone(), from.as_ref())
    }
}

/// The Lease in an answer that says success.
fn claim(answer: &Answer) -> Result<Claim, Failure> {
    let object: Option<Value> = serde_json::from_slice(&answer.body).ok();
    match object.filter(Value::is_object) {
        Some(object) => json::claim_from_object(object, answer.date),
        // A login page, say. If the request was a write, nobody knows what became of it.
        None => Err(Failure::new(
            FailureKind::Unreachable,
            "the answer is not the API server's, as it is no JSON; is there a proxy in between?",
        )),
    }
}

/// A success that holds no Lease is as good as an answer that was lost: the write may have been
/// carried out, and what is stored may well make sense.
fn says_nothing_of_write(failure: Failure) -> Failure {
    let message = match failure.kind {
        FailureKind::Malformed => format!(
            "the answer says nothing of use on the write: {}",
            failure.message
        ),
        // It says so itself.
        _ => failure.message,
    };
    Failure::new(FailureKind::Unreachable, message)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by a panic")]
mod tests;
