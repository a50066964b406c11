//! A context of a kubeconfig, with the cluster and the user that it names.

use kube::config::{AuthInfo, Cluster, Kubeconfig};

use super::{faults, misconfigured};
use crate::lease::Failure;

/// What a context leads to. Names are as messages call what they name.
pub(super) struct Chosen {
    pub(super) cluster: (String, Cluster),
    pub(super) user: (String, AuthInfo),
    pub(super) namespace: Option<String>,
}

impl Chosen {
    /// Follows the names from the context.
    ///
    /// # Errors
    ///
    /// One of them is nobody's, or a cluster contradicts itself.
    pub(super) fn from(merged: Kubeconfig, name: &str, place: &str) -> Result<Self, Failure> {
        let mut contexts = merged.contexts.into_iter();
        let context = contexts
            .find(|context| context.name == name)
            .and_then(|context| context.context)
            .ok_or_else(|| misconfigured(format!("{place} has no context {name:?}")))?;
        let absent = |what: &str, name: &str| {
            misconfigured(format!(
                "{place} has no {what} {name:?}, which its context names"
            ))
        };
        let mut clusters = merged.clusters.into_iter();
        let cluster = clusters
            .find(|cluster| cluster.name == context.cluster)
            .and_then(|cluster| cluster.cluster)
            .ok_or_else(|| absent("cluster", &context.cluster))?;
        let owner = format!("the cluster {:?} in {place}", context.cluster);
        if let Some(fault) = faults::of_cluster(&cluster) {
            return Err(misconfigured(format!("{owner} {fault}")));
        }
        let user = match context.user {
            None => (place.to_owned(), AuthInfo::default()),
            Some(name) => {
                let mut users = merged.auth_infos.into_iter();
                let user = users.find(|user| user.name == name);
                let user = user.ok_or_else(|| absent("user", &name))?;
                let owner = format!("the user {name:?} in {place}");
                (owner, user.auth_info.unwrap_or_default())
            }
        };
        Ok(Self {
            cluster: (owner, cluster),
            user,
            namespace: context.namespace,
        })
    }
}
