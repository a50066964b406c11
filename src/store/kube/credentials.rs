//! Credentials, and when they are made anew.
//!
//! They are made on a thread of their own, because files may lie where reading hangs, and plugins
//! take their time. An attempt waits for that only if there are none, or none that are good. What is
//! being made goes on when nobody waits, and serves a later attempt.
//!
//! Must not: connect.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::{
    FutureExt,
    future::{BoxFuture, Shared},
};
use kube::config::AuthInfo;

use super::{
    config::ClusterConfig,
    connector::Connector,
    exec::{Leash, Terminal},
};
use crate::lease::{Failure, FailureKind};

/// The credentials for one API server.
pub(super) struct Credentials {
    leash: Arc<Leash>,
    state: Mutex<State>,
}

struct State {
    cluster: Arc<ClusterConfig>,
    stage: Stage,
    /// What was said last of credentials that can't be renewed, so that it is said once.
    warned: Option<String>,
}

#[derive(Clone)]
enum Stage {
    /// There are none yet.
    First(Building),
    Good(Arc<Connector>),
    /// They are good while others are on their way.
    Renewing(Arc<Connector>, Building),
    /// The server does not accept them.
    Refused(Arc<Connector>, Building),
}

/// `None`: those that there are do.
type Building = Shared<BoxFuture<'static, Result<Option<Built>, Failure>>>;

#[derive(Clone)]
struct Built {
    cluster: Arc<ClusterConfig>,
    connector: Arc<Connector>,
}

#[derive(Clone, Copy)]
enum Why {
    First,
    /// Files may have changed.
    Look,
    Renew,
}

impl Credentials {
    /// Reads the credentials, which finds unusable certificates. A credential plugin is not run yet.
    ///
    /// # Errors
    ///
    /// [`FailureKind::Misconfigured`].
    pub(super) fn new(cluster: ClusterConfig) -> Result<Self, Failure> {
        let cluster = Arc::new(cluster);
        let leash = Arc::default();
        let stage = match cluster.exec {
            Some(_) => Stage::First(build(&cluster, Why::First, &leash)),
            None => Stage::Good(Arc::new(Connector::build(
                &cluster,
                &leash,
                Terminal::None,
            )?)),
        };
        Ok(Self {
            leash,
            state: Mutex::new(State {
                cluster,
                stage,
                warned: None,
            }),
        })
    }

    /// Waits until the first ones were made, or could not be.
    pub(super) async fn prepare(&self) {
        let first = match &self.state().stage {
            Stage::First(building) => building.clone(),
            Stage::Good(_) | Stage::Renewing(..) | Stage::Refused(..) => return,
        };
        let _ = first.await;
    }

    /// The user that the configuration names.
    pub(super) fn user(&self) -> AuthInfo {
        self.state().cluster.config.auth_info.clone()
    }

    /// What an attempt waits for that has none.
    pub(super) fn awaited(&self) -> String {
        let plugin = &self.state().cluster.exec;
        match plugin.as_ref().and_then(|plugin| plugin.command.as_ref()) {
            Some(command) => format!("the credential plugin {command:?}"),
            None => "the files of the credentials".to_owned(),
        }
    }

    /// Those for the next attempt, not known to be useless.
    ///
    /// # Errors
    ///
    /// There are none. Those which were good once may be so again.
    pub(super) async fn current(&self) -> Result<Arc<Connector>, Failure> {
        loop {
            let building = match self.state().next(&self.leash) {
                Ok(connector) => return Ok(connector),
                Err(building) => building,
            };
            let built = building.clone().await;
            let mut state = self.state();
            let is_first = matches!(state.stage, Stage::First(_));
            state.take_up(&building, built.clone(), &self.leash);
            match built {
                Ok(Some(built)) => return Ok(built.connector),
                Ok(None) => {}
                // The configuration was good once, and somebody may be about to replace it.
                Err(failure) if !is_first && failure.kind == FailureKind::Misconfigured => {
                    return Err(Failure {
                        kind: FailureKind::Unauthorized,
                        ..failure
                    });
                }
                Err(failure) => return Err(failure),
            }
        }
    }

    /// The server has refused them: the next attempt waits for others.
    pub(super) fn are_refused(&self) {
        let mut state = self.state();
        state.stage = match state.stage.clone() {
            Stage::Good(connector) => {
                Stage::Refused(connector, build(&state.cluster, Why::Renew, &self.leash))
            }
            Stage::Renewing(connector, building) => Stage::Refused(connector, building),
            other @ (Stage::First(_) | Stage::Refused(..)) => other,
        };
    }

    /// What may explain a refusal.
    pub(super) fn remark(&self) -> Option<String> {
        match &self.state().stage {
            Stage::First(_) => None,
            Stage::Good(connector)
            | Stage::Renewing(connector, _)
            | Stage::Refused(connector, _) => connector.remark(),
        }
    }

    /// Never held while awaiting. What it protects is consistent after every single assignment.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Credentials {
    fn drop(&mut self) {
        self.leash.cut();
    }
}

impl State {
    /// What there is for an attempt, or what it has to wait for.
    fn next(&mut self, leash: &Arc<Leash>) -> Result<Arc<Connector>, Building> {
        if let Stage::Renewing(_, building) = self.stage.clone()
            && let Some(built) = building.clone().now_or_never()
        {
            let problem = built.as_ref().err().map(|failure| failure.message.clone());
            if let Some(problem) = &problem
                && self.warned.as_ref() != Some(problem)
            {
                tracing::warn!("can't renew the credentials: {problem}");
            }
            self.warned = problem;
            self.take_up(&building, built, leash);
        }
        if let Stage::Good(connector) = &self.stage {
            let why = match connector.is_due() {
                true => Why::Renew,
                false => Why::Look,
            };
            let building = build(&self.cluster, why, leash);
            // It starts when it is asked for the first time.
            let _ = building.clone().now_or_never();
            self.stage = Stage::Renewing(connector.clone(), building);
        }
        match &self.stage {
            Stage::Good(connector) => Ok(connector.clone()),
            Stage::Renewing(connector, _) if !connector.has_expired() => Ok(connector.clone()),
            Stage::First(building) | Stage::Renewing(_, building) | Stage::Refused(_, building) => {
                Err(building.clone())
            }
        }
    }

    /// Goes on from what was built, unless another attempt has done so.
    fn take_up(
        &mut self,
        building: &Building,
        built: Result<Option<Built>, Failure>,
        leash: &Arc<Leash>,
    ) {
        let (Stage::First(current) | Stage::Renewing(_, current) | Stage::Refused(_, current)) =
            &self.stage
        else {
            return;
        };
        if !current.ptr_eq(building) {
            return;
        }
        if let Ok(Some(built)) = built {
            self.cluster = built.cluster;
            self.stage = Stage::Good(built.connector);
            return;
        }
        self.stage = match self.stage.clone() {
            Stage::First(_) => Stage::First(build(&self.cluster, Why::First, leash)),
            Stage::Good(connector) | Stage::Renewing(connector, _) => Stage::Good(connector),
            Stage::Refused(connector, _) => {
                Stage::Refused(connector, build(&self.cluster, Why::Renew, leash))
            }
        };
    }
}

/// Makes credentials, once it is asked for them. Then it goes on when nobody waits.
fn build(cluster: &Arc<ClusterConfig>, why: Why, leash: &Arc<Leash>) -> Building {
    let (cluster, leash) = (cluster.clone(), leash.clone());
    let work = move || {
        let (cluster, terminal) = match why {
            Why::First => (cluster, Terminal::find()),
            Why::Look if !cluster.is_outdated() => return Ok(None),
            Why::Look | Why::Renew => (Arc::new(cluster.reload()?), Terminal::None),
        };
        let connector = Arc::new(Connector::build(&cluster, &leash, terminal)?);
        Ok(Some(Built { cluster, connector }))
    };
    let ended = |_| {
        Err(Failure::new(
            FailureKind::Unreachable,
            "the program is coming to its end",
        ))
    };
    let built = async move {
        tokio::task::spawn_blocking(work)
            .await
            .unwrap_or_else(ended)
    };
    built.boxed().shared()
}
