//! Which cluster, as whom: kubeconfig files or the service account of the pod we run in.
//!
//! What is asked for explicitly works or fails. A kubeconfig that is there but broken is an error,
//! never a reason to look elsewhere: kube's own `Config::infer` would hide a typo behind a service
//! account's rights. Everything here reads files at most, so that a mistake shows before anything
//! is started; credential plugins run later.
//!
//! Must not: connect, start processes or threads.

use std::{
    ffi::OsString,
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use kube::config::{AuthInfo, Config, ExecAuthCluster, ExecConfig, Kubeconfig};
use secrecy::ExposeSecret;

use self::chosen::Chosen;
use super::proxy::{Proxy, ProxyVariables};
use crate::lease::{Failure, FailureKind};

mod authority;
mod chosen;
mod explain;
mod faults;
mod file;
mod server;
mod token;

pub(super) use self::token::{NoToken, Token};

/// Where the user wants the cluster's address and credentials to come from.
#[derive(Clone, Debug, Default)]
pub struct Source {
    /// `--kubeconfig`: this file and no other.
    pub kubeconfig: Option<PathBuf>,
    /// `--context`: this context of the kubeconfig, instead of its current one.
    pub context: Option<String>,
    /// `--as`: the user to impersonate.
    pub impersonate: Option<String>,
    /// `--as-group`: the groups to impersonate, instead of the kubeconfig's.
    pub impersonate_groups: Vec<String>,
    /// `--as-uid`: the uid to impersonate.
    pub impersonate_uid: Option<String>,
}

/// What the environment says of clusters. Read apart from [`Source`], so that tests need not change
/// the environment of the process that they run in.
#[derive(Clone, Debug, Default)]
struct Environment {
    kubeconfig: Option<OsString>,
    home: Option<PathBuf>,
    service_account: PathBuf,
    /// KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT, which every pod has.
    service: (String, String),
    proxies: ProxyVariables,
}

impl Environment {
    fn read() -> Self {
        let text = |name| std::env::var(name).unwrap_or_default();
        Self {
            kubeconfig: std::env::var_os("KUBECONFIG"),
            home: std::env::home_dir(),
            service_account: SERVICE_ACCOUNT.into(),
            service: (
                text("KUBERNETES_SERVICE_HOST"),
                text("KUBERNETES_SERVICE_PORT"),
            ),
            proxies: ProxyVariables::read(),
        }
    }
}

/// A cluster and how to reach it, read from files.
#[derive(Clone, Debug)]
pub struct ClusterConfig {
    source: Source,
    environment: Environment,
    origin: Origin,
    context_namespace: Option<String>,
    files: Vec<(PathBuf, Option<Stamp>)>,
    /// Without a credential plugin, which is in `exec`, and without what becomes a token.
    pub(super) config: Config,
    pub(super) token: Option<Token>,
    pub(super) exec: Option<ExecConfig>,
    pub(super) proxy: Option<Proxy>,
}

/// Where the configuration was found. Fixed when it is read first, so that neither a changed
/// environment nor `kubectl config use-context` moves us to another cluster later.
#[derive(Clone, Debug)]
enum Origin {
    Kubeconfig {
        files: Vec<PathBuf>,
        context: String,
    },
    ServiceAccount,
}

impl ClusterConfig {
    /// Finds and reads the configuration: the file and context asked for, else those of
    /// `$KUBECONFIG`, else `~/.kube/config`, else the pod's service account.
    ///
    /// # Errors
    ///
    /// [`FailureKind::Misconfigured`] with what is wrong and in which file.
    pub fn load(source: Source) -> Result<Self, Failure> {
        Self::load_in(source, Environment::read())
    }

    fn load_in(source: Source, environment: Environment) -> Result<Self, Failure> {
        let in_pod = !environment.service.0.is_empty();
        let files = kubeconfig_files(&source, &environment)?;
        if files.is_empty() {
            if let Some(context) = &source.context {
                return Err(misconfigured(format!(
                    "there is no kubeconfig to find the context {context:?} in"
                )));
            }
            if !in_pod {
                return Err(misconfigured(
                    "no cluster is configured: there is no kubeconfig ($KUBECONFIG, ~/.kube/config), and this is not a \
                     pod (KUBERNETES_SERVICE_HOST is not set)",
                ));
            }
            return Self::from_service_account(source, environment);
        }
        // Stamped before they are read: a change in between is seen as one.
        let stamps = stamped(files.iter().cloned());
        let merged = read_kubeconfigs(&files)?;
        let asked = source.kubeconfig.is_some() || source.context.is_some();
        if in_pod && !asked && file::says_nothing(&merged) {
            return Self::from_service_account(source, environment);
        }
        let current = merged.current_context.clone();
        let context = source.context.clone().or(current).ok_or_else(|| {
            misconfigured(format!(
                "{} sets no current-context, and none was asked for",
                names(&files)
            ))
        })?;
        Self::from_kubeconfig(source, environment, stamps, context, merged)
    }

    /// Reads the same files again, for the credentials in them.
    ///
    /// # Errors
    ///
    /// As [`ClusterConfig::load`]; also if they lead to another server now, as we hold our lease,
    /// or wait for it, on that of before.
    pub(super) fn reload(&self) -> Result<Self, Failure> {
        let (source, environment) = (self.source.clone(), self.environment.clone());
        let new = match &self.origin {
            Origin::ServiceAccount => Self::from_service_account(source, environment)?,
            Origin::Kubeconfig { files, context } => {
                let stamps = stamped(files.iter().cloned());
                let merged = read_kubeconfigs(files)?;
                Self::from_kubeconfig(source, environment, stamps, context.clone(), merged)?
            }
        };
        if new.config.cluster_url != self.config.cluster_url {
            let (old, new) = (self.server(), new.server());
            return Err(misconfigured(format!(
                "the configuration leads to {new} now instead of {old}"
            )));
        }
        Ok(new)
    }

    /// Whether any of the files that went into it has changed since.
    pub(super) fn is_outdated(&self) -> bool {
        self.files
            .iter()
            .any(|(path, stamp)| Stamp::of(path) != *stamp)
    }

    /// The URL of the API server, for messages.
    pub fn server(&self) -> String {
        let url = self.config.cluster_url.to_string();
        url.trim_end_matches('/').to_owned()
    }

    /// The namespace of the lease: the flag's, else that of the environment (POD_NAMESPACE), the
    /// context's, the service account's, or `default`.
    pub fn namespace(&self, flag: Option<&str>, pod_namespace: Option<&str>) -> String {
        let service_account =
            fs::read_to_string(self.environment.service_account.join("namespace")).ok();
        let sources = [
            flag,
            pod_namespace,
            self.context_namespace.as_deref(),
            service_account.as_deref(),
        ];
        let mut given = sources.into_iter().flatten().map(str::trim);
        given
            .find(|name| !name.is_empty())
            .unwrap_or("default")
            .to_owned()
    }

    /// The namespace that the kubeconfig's context names.
    pub fn context_namespace(&self) -> Option<&str> {
        self.context_namespace.as_deref()
    }

    fn from_kubeconfig(
        source: Source,
        environment: Environment,
        mut stamps: Vec<(PathBuf, Option<Stamp>)>,
        context: String,
        merged: Kubeconfig,
    ) -> Result<Self, Failure> {
        let files: Vec<PathBuf> = stamps.iter().map(|(path, _)| path.clone()).collect();
        let place = names(&files);
        let Chosen {
            mut cluster,
            user,
            namespace,
        } = Chosen::from(merged, &context, &place)?;
        let server = server::parse(cluster.1.server.as_deref(), &place)?;
        let mut config = Config::new(server.url);
        config.root_cert = authority::take(&mut cluster.1, &cluster.0, &mut stamps)?;
        config.accept_invalid_certs = cluster.1.insecure_skip_tls_verify == Some(true);
        config.tls_server_name = cluster.1.tls_server_name.clone();
        config.auth_info = user.1;
        if let Some(basic) = server.user {
            (config.auth_info.token, config.auth_info.token_file) = (None, None);
            (config.auth_info.username, config.auth_info.password) =
                (Some(basic.0), Some(basic.1.into()));
        }
        if let Some(exec) = &mut config.auth_info.exec
            && exec.provide_cluster_info
        {
            let cluster = ExecAuthCluster::try_from(&cluster.1);
            exec.cluster = cluster.ok();
        }
        let proxy = match &cluster.1.proxy_url {
            // As in client-go, this one holds whatever NO_PROXY says.
            Some(url) => Some(Proxy::parse(
                url,
                &format!("the proxy-url of the context {context:?}"),
            )?),
            None => environment.proxies.proxy_for(&config.cluster_url)?,
        };
        let mut new = Self {
            source,
            environment,
            origin: Origin::Kubeconfig { files, context },
            context_namespace: namespace,
            files: stamps,
            config,
            token: None,
            exec: None,
            proxy,
        };
        new.check(&user.0)?;
        Ok(new)
    }

    fn from_service_account(source: Source, environment: Environment) -> Result<Self, Failure> {
        let mount = &environment.service_account;
        let mut config = Config::new(server::of_pod(&environment.service)?);
        let bundle = mount.join("ca.crt");
        let files = stamped([bundle.clone()]);
        let name = format!("the service account's {}", bundle.display());
        let contents = file::read("the service account's", &bundle)?;
        config.root_cert = Some(authority::certificates(&contents, &name)?);
        config.auth_info.token_file = Some(mount.join("token").display().to_string());
        let proxy = environment.proxies.proxy_for(&config.cluster_url)?;
        let mut new = Self {
            source,
            environment,
            origin: Origin::ServiceAccount,
            context_namespace: None,
            files,
            config,
            token: None,
            exec: None,
            proxy,
        };
        new.check("the service account")?;
        Ok(new)
    }

    /// Makes the configuration ready for use, and finds what would only show later. `owner` is what
    /// the user is called.
    fn check(&mut self, owner: &str) -> Result<(), Failure> {
        self.config.default_retry = false;
        let user = &mut self.config.auth_info;
        let source = &self.source;
        user.impersonate = source.impersonate.clone().or(user.impersonate.take());
        user.impersonate_uid = (source.impersonate_uid.clone()).or(user.impersonate_uid.take());
        if !source.impersonate_groups.is_empty() {
            user.impersonate_groups = Some(source.impersonate_groups.clone());
        }
        if let Some(fault) = faults::of_user(user) {
            return Err(misconfigured(format!("{owner} {fault}")));
        }
        if server::is_in_the_clear(&self.config.cluster_url) {
            // As for kubectl, what is secret is not for the net.
            *user = AuthInfo {
                impersonate: user.impersonate.take(),
                impersonate_uid: user.impersonate_uid.take(),
                impersonate_groups: user.impersonate_groups.take(),
                impersonate_user_extra: user.impersonate_user_extra.take(),
                ..AuthInfo::default()
            };
        }
        self.token = self.take_token(owner)?;
        self.take_certificate(owner)?;
        let user = &mut self.config.auth_info;
        // Whatever else there is comes before a plugin.
        let has_certificate = user.client_certificate_data.is_some();
        self.exec = user.exec.take();
        self.exec
            .take_if(|_| self.token.is_some() || has_certificate);
        Ok(())
    }

    /// Takes out what proves who asks. As in client-go the file beats a token that stands beside it,
    /// which steps in if the file is of no use.
    fn take_token(&mut self, owner: &str) -> Result<Option<Token>, Failure> {
        let user = &mut self.config.auth_info;
        let (username, password) = (user.username.take(), user.password.take());
        let (beside, provider) = (user.token.take(), user.auth_provider.take());
        let beside = beside.map(|token| token.expose_secret().to_owned());
        let token = match user.token_file.take().map(PathBuf::from) {
            None => beside,
            Some(path) => {
                self.files.extend(stamped([path.clone()]));
                match (file::token(&path), beside) {
                    (Err(_), Some(beside)) => Some(beside),
                    (read, _) => Some(read?),
                }
            }
        };
        let unusable = |NoToken| {
            misconfigured(format!(
                "{owner} has a token with characters that no token can have"
            ))
        };
        let token = Token::bearer(&token.unwrap_or_default()).map_err(unusable)?;
        match (token, username, provider) {
            (Some(token), ..) => Ok(Some(token)),
            (None, Some(user), _) => {
                let password = password.as_ref().map_or("", |text| text.expose_secret());
                Token::basic(&user, password).map(Some).map_err(unusable)
            }
            (None, None, Some(provider)) => {
                let id = provider.config.get("id-token");
                let id = id.filter(|_| provider.name == "oidc");
                let id = id.ok_or_else(|| misconfigured(explain::auth_provider(&provider)))?;
                Token::bearer(id).map_err(unusable)
            }
            (None, None, None) => Ok(None),
        }
    }

    /// Puts what is in the files of the client certificate and its key in their place.
    fn take_certificate(&mut self, owner: &str) -> Result<(), Failure> {
        let user = &mut self.config.auth_info;
        let key = user.client_key_data.take();
        let key = key.map(|key| key.expose_secret().to_owned());
        let has_certificate =
            user.client_certificate.is_some() || user.client_certificate_data.is_some();
        let (certificate, key) = (
            (
                user.client_certificate.take(),
                user.client_certificate_data.take(),
            ),
            (user.client_key.take(), key),
        );
        if !has_certificate {
            return Ok(());
        }
        let paths = [&certificate.0, &key.0].into_iter().flatten();
        self.files.extend(stamped(paths.map(PathBuf::from)));
        let user = &mut self.config.auth_info;
        let certificate = file::contents("client-certificate", certificate, owner)?;
        user.client_certificate_data = certificate.map(|contents| BASE64.encode(contents));
        let key = file::contents("client-key", key, owner)?;
        user.client_key_data = key.map(|contents| BASE64.encode(contents).into());
        Ok(())
    }
}

/// The kubeconfig files to merge, as kubectl finds them; none: the pod's service account.
fn kubeconfig_files(source: &Source, environment: &Environment) -> Result<Vec<PathBuf>, Failure> {
    // Absolute, because a kubeconfig's own relative paths start from where it lies.
    let absolute = |path: PathBuf| std::path::absolute(&path).unwrap_or(path);
    if let Some(path) = &source.kubeconfig {
        return Ok(vec![absolute(path.clone())]);
    }
    let listed: Vec<PathBuf> = environment
        .kubeconfig
        .iter()
        .flat_map(std::env::split_paths)
        .collect();
    let listed: Vec<PathBuf> = listed
        .into_iter()
        .filter(|path| !path.as_os_str().is_empty())
        .map(absolute)
        .collect();
    if !listed.is_empty() {
        let (present, absent): (Vec<_>, Vec<_>) = listed.into_iter().partition(|path| exists(path));
        if present.is_empty() {
            return Err(misconfigured(format!(
                "$KUBECONFIG names {}, which does not exist",
                names(&absent)
            )));
        }
        if !absent.is_empty() {
            tracing::warn!("$KUBECONFIG names {}, which does not exist", names(&absent));
        }
        return Ok(present);
    }
    let usual = environment
        .home
        .as_ref()
        .map(|home| absolute(home.join(".kube/config")));
    Ok(usual.into_iter().filter(|path| exists(path)).collect())
}

/// Whether something is there, readable or not.
fn exists(path: &Path) -> bool {
    !fs::metadata(path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
}

fn read_kubeconfigs(files: &[PathBuf]) -> Result<Kubeconfig, Failure> {
    let mut merged = Kubeconfig::default();
    for file in files {
        // Only kind and version could contradict each other, and these have been looked at.
        merged = merged
            .merge(file::kubeconfig(file)?)
            .map_err(|error| misconfigured(format!("{}: {error}", file.display())))?;
    }
    Ok(merged)
}

/// What tells one state of a file from another, without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    size: u64,
    /// Seconds and nanoseconds since the Unix epoch.
    modified: (i64, i64),
}

impl Stamp {
    fn of(path: &Path) -> Option<Self> {
        let metadata = fs::metadata(path).ok()?;
        Some(Self {
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        })
    }
}

fn stamped(paths: impl IntoIterator<Item = PathBuf>) -> Vec<(PathBuf, Option<Stamp>)> {
    let paths = paths.into_iter();
    paths.map(|path| (path.clone(), Stamp::of(&path))).collect()
}

/// The files' names as part of a sentence.
fn names(files: &[PathBuf]) -> String {
    let names: Vec<String> = files
        .iter()
        .map(|file| file.display().to_string())
        .collect();
    names.join(" and ")
}

fn misconfigured(message: impl Into<String>) -> Failure {
    Failure::new(FailureKind::Misconfigured, message)
}

/// Where the kubelet puts a pod's token, certificate authority and namespace.
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

#[cfg(test)]
mod fuzz;

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by a panic")]
mod tests;
