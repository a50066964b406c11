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

use futures_util::FutureExt;
use http::Uri;
use kube::config::{
    Cluster, Config, Context, ExecConfig, KubeConfigOptions, Kubeconfig, KubeconfigError,
};
use secrecy::ExposeSecret;

use super::proxy::{Proxy, ProxyVariables};
use crate::lease::{Failure, FailureKind};

mod authority;
mod explain;
mod file;
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
    /// `--as-group`: the groups to impersonate; only beside a user.
    pub impersonate_groups: Vec<String>,
}

/// What the environment says of clusters. Read apart from [`Source`], so that tests need not change
/// the environment of the process that they run in.
#[derive(Clone, Debug, Default)]
struct Environment {
    kubeconfig: Option<OsString>,
    home: Option<PathBuf>,
    service_account: PathBuf,
    in_pod: bool,
    proxies: ProxyVariables,
}

impl Environment {
    fn read() -> Self {
        Self {
            kubeconfig: std::env::var_os("KUBECONFIG"),
            home: std::env::home_dir(),
            service_account: SERVICE_ACCOUNT.into(),
            in_pod: std::env::var_os("KUBERNETES_SERVICE_HOST").is_some(),
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
        if source.impersonate.is_none() && !source.impersonate_groups.is_empty() {
            return Err(misconfigured(
                "a group can only be impersonated together with a user",
            ));
        }
        let files = kubeconfig_files(&source, &environment)?;
        if files.is_empty() {
            if let Some(context) = &source.context {
                return Err(misconfigured(format!(
                    "there is no kubeconfig to find the context {context:?} in"
                )));
            }
            if !environment.in_pod {
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
        let current = merged
            .current_context
            .clone()
            .filter(|name| !name.is_empty());
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

    /// The URL of the API server, for messages: without a password.
    pub fn server(&self) -> String {
        let url = self.config.cluster_url.to_string();
        let url = url.trim_end_matches('/');
        match url.split_once("://") {
            Some((scheme, rest)) => {
                let place = rest.split('/').next().unwrap_or_default();
                let user = place.rfind('@').map_or(0, |end| end + 1);
                format!("{scheme}://{}", &rest[user..])
            }
            None => url.to_owned(),
        }
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
        mut merged: Kubeconfig,
    ) -> Result<Self, Failure> {
        let files: Vec<PathBuf> = stamps.iter().map(|(path, _)| path.clone()).collect();
        let place = names(&files);
        let authority = match cluster_of(&mut merged, &context) {
            Some(cluster) => authority::take(cluster, &mut stamps)?,
            None => None,
        };
        let authority =
            authority.unwrap_or_else(|| format!("the certificate-authority-data in {place}"));
        let proxy_url = cluster_of(&mut merged, &context)
            .and_then(|cluster| cluster.proxy_url.clone())
            .filter(|url| !url.is_empty());
        let context_namespace =
            context_of(&merged, &context).and_then(|context| context.namespace.clone());
        let options = KubeConfigOptions {
            context: Some(context.clone()),
            ..KubeConfigOptions::default()
        };
        // It awaits nothing; it is only async because its sibling once was.
        let config = Config::from_custom_kubeconfig(merged, &options)
            .now_or_never()
            .ok_or_else(|| misconfigured(format!("can't read {place} without waiting")))?
            .map_err(|error| match error {
                KubeconfigError::ParseCertificates(_) => authority::no_certificate(&authority),
                error => misconfigured(explain::kubeconfig(&error, &place)),
            })?;
        authority::check(&config, &authority)?;
        let proxy = match proxy_url {
            // As in client-go, this one holds whatever NO_PROXY says.
            Some(url) => Some(Proxy::parse(
                &url,
                &format!("the proxy-url of the context {context:?}"),
            )?),
            None => environment.proxies.proxy_for(&config.cluster_url)?,
        };
        let mut new = Self {
            source,
            environment,
            origin: Origin::Kubeconfig { files, context },
            context_namespace: context_namespace.filter(|name| !name.is_empty()),
            files: stamps,
            config,
            token: None,
            exec: None,
            proxy,
        };
        new.check(&place)?;
        Ok(new)
    }

    fn from_service_account(source: Source, environment: Environment) -> Result<Self, Failure> {
        let mut config =
            Config::incluster().map_err(|error| misconfigured(explain::service_account(&error)))?;
        // kube reads it untrimmed, and a line's end is no part of a name.
        config.default_namespace = config.default_namespace.trim().to_owned();
        authority::check(&config, &format!("{SERVICE_ACCOUNT}/ca.crt"))?;
        let proxy = environment.proxies.proxy_for(&config.cluster_url)?;
        // Out of kube's sight, which would read it while it connects: it is stamped like any other.
        let files = stamped(config.root_cert_file.take());
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
        new.check("the service account's files")?;
        Ok(new)
    }

    /// Makes the configuration ready for use, and finds what would only show later.
    fn check(&mut self, place: &str) -> Result<(), Failure> {
        let scheme = self.config.cluster_url.scheme_str();
        if !matches!(scheme, Some("http" | "https")) || self.config.cluster_url.host().is_none() {
            return Err(misconfigured(format!(
                "{place} has no usable server: {:?} is not an http:// or https:// URL",
                self.server()
            )));
        }
        // kube would panic at a path which, with ours, is longer than any URL can be.
        if self.config.cluster_url.path().len() > LONGEST_PATH {
            return Err(misconfigured(format!(
                "the path of the server in {place} is too long"
            )));
        }
        self.config.cluster_url = with_port(&self.config.cluster_url);
        self.config.default_retry = false;
        self.token = self.take_token()?;
        let user = &mut self.config.auth_info;
        self.exec = user.exec.take().filter(|_| self.token.is_none());
        for (path, is_beside) in [
            (
                &user.client_certificate,
                user.client_certificate_data.is_some(),
            ),
            (&user.client_key, user.client_key_data.is_some()),
        ] {
            let path = path.as_ref().filter(|_| !is_beside).map(PathBuf::from);
            self.files.extend(stamped(path));
        }
        file::take(
            "the client certificate",
            &mut user.client_certificate,
            &mut user.client_certificate_data,
        )?;
        file::take(
            "the client key",
            &mut user.client_key,
            &mut user.client_key_data,
        )?;
        if let Some(user) = &self.source.impersonate {
            self.config.auth_info.impersonate = Some(user.clone());
        }
        if !self.source.impersonate_groups.is_empty() {
            self.config.auth_info.impersonate_groups = Some(self.source.impersonate_groups.clone());
        }
        Ok(())
    }

    /// Takes out what proves who asks. As in client-go the file beats a token that stands beside it.
    fn take_token(&mut self) -> Result<Option<Token>, Failure> {
        let user = &mut self.config.auth_info;
        let (username, password) = (user.username.take(), user.password.take());
        let (inline, provider) = (user.token.take(), user.auth_provider.take());
        let token = match user.token_file.take() {
            Some(path) => {
                let path = PathBuf::from(path);
                self.files.extend(stamped([path.clone()]));
                // What is no text fails as a header does.
                String::from_utf8_lossy(&file::read("the token", &path)?).into_owned()
            }
            None => inline.map_or_else(String::new, |token| token.expose_secret().to_owned()),
        };
        let unusable = |NoToken| misconfigured("the token has characters that no token can have");
        let token = Token::bearer(&token).map_err(unusable)?;
        match (token, username, provider) {
            (Some(token), ..) => Ok(Some(token)),
            (None, Some(user), _) if !user.is_empty() => {
                let password = password
                    .as_ref()
                    .map_or("", |password| password.expose_secret());
                Token::basic(&user, password).map(Some).map_err(unusable)
            }
            (None, _, Some(provider)) => {
                let token = provider
                    .config
                    .get("id-token")
                    .filter(|_| provider.name == "oidc");
                let token =
                    token.ok_or_else(|| misconfigured(explain::auth_provider(&provider)))?;
                Token::bearer(token).map_err(unusable)
            }
            (None, _, None) => Ok(None),
        }
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
        let place = names(std::slice::from_ref(file));
        merged = merged
            .merge(file::kubeconfig(file)?)
            .map_err(|error| misconfigured(explain::kubeconfig(&error, &place)))?;
    }
    Ok(merged)
}

fn context_of<'a>(kubeconfig: &'a Kubeconfig, name: &str) -> Option<&'a Context> {
    let named = kubeconfig
        .contexts
        .iter()
        .find(|context| context.name == name)?;
    named.context.as_ref()
}

fn cluster_of<'a>(kubeconfig: &'a mut Kubeconfig, context: &str) -> Option<&'a mut Cluster> {
    let name = context_of(kubeconfig, context)?.cluster.clone();
    let named = kubeconfig
        .clusters
        .iter_mut()
        .find(|cluster| cluster.name == name)?;
    named.cluster.as_mut()
}

/// The URL with its port: a tunnel through a proxy takes a missing one for 443 whatever the scheme.
fn with_port(url: &Uri) -> Uri {
    if url.scheme_str() != Some("http") || url.port().is_some() {
        return url.clone();
    }
    let mut parts = url.clone().into_parts();
    parts.authority = parts
        .authority
        .map(|authority| format!("{authority}:80").parse().unwrap_or(authority));
    Uri::from_parts(parts).unwrap_or_else(|_| url.clone())
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

/// In bytes.
const LONGEST_PATH: usize = 4096;

/// Where the kubelet puts a pod's token, certificate authority and namespace.
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

#[cfg(test)]
mod fuzz;

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by a panic")]
mod tests;
