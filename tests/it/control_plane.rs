//! A real control plane for the tests: etcd and kube-apiserver, with RBAC and own certificates.
//!
//! Where the programs come from is the business of `tests/control-plane.sh`. Everything here blocks,
//! so that tests can call it whether or not they have an async runtime. Nothing stays behind when
//! the test process ends, see [`ServerGroup`].

mod certificates;
mod kubeconfig;
mod requests;
mod scheduler;
mod servers;
#[cfg(test)]
mod tests;
mod trouble;
mod version;

use std::fs;
use std::io::Write as _;
use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, SystemTime};

use http::Method;
use serde_json::{Value, json};

use crate::surroundings::as_the_caller;
use crate::wait::{LIMIT, try_wait_until};
use crate::world::LEASE;

pub(crate) use certificates::{Authority, Identity};
pub(crate) use kubeconfig::User;
pub(crate) use requests::{Answer, Requests};
pub(crate) use scheduler::{ElectionTimes, Scheduler};
pub(crate) use servers::free_port;
pub(crate) use version::needs_kubernetes;

use certificates::TokenKey;
use servers::{Server, ServerGroup};
use version::minor_version;

/// A running control plane.
///
/// Other tests may use the [shared](Self::shared) one at the same time: a test makes its own
/// namespace in it. A test that stops or kills a server starts its own control plane.
pub(crate) struct ControlPlane {
    // Dropped first: that ends all servers at once.
    group: ServerGroup,
    authority: Authority,
    etcd_port: u16,
    port: u16,
    bind_address: Ipv4Addr,
    options: &'static [&'static str],
    etcd: Mutex<Server>,
    api_server: Mutex<Server>,
    admin: Requests,
    files: AtomicU32,
}

impl ControlPlane {
    /// The control plane that all tests of this process share, started by the first that asks.
    pub(crate) fn shared() -> &'static Self {
        static SHARED: OnceLock<ControlPlane> = OnceLock::new();
        SHARED.get_or_init(Self::start)
    }

    /// Starts a control plane of the caller's own, and waits until it is ready.
    pub(crate) fn start() -> Self {
        Self::start_with(&[])
    }

    /// The same, with further options for the API server.
    pub(crate) fn start_with(options: &'static [&'static str]) -> Self {
        Self::start_at(Ipv4Addr::LOCALHOST, &[], options, Authority::new())
    }

    /// The same, with certificates of this authority.
    pub(crate) fn start_under(authority: Authority) -> Self {
        Self::start_at(Ipv4Addr::LOCALHOST, &[], &[], authority)
    }

    /// The same, but the API server listens on all addresses of this machine, and has a certificate
    /// for this one of them.
    pub(crate) fn start_reachable_at(address: Ipv4Addr) -> Self {
        Self::start_at(Ipv4Addr::UNSPECIFIED, &[address], &[], Authority::new())
    }

    /// The same, but the API server listens on the first of these addresses only, and has a
    /// certificate for all of them.
    pub(crate) fn start_on(addresses: &[Ipv4Addr]) -> Self {
        Self::start_at(addresses[0], addresses, &[], Authority::new())
    }

    fn start_at(
        bind_address: Ipv4Addr,
        addresses: &[Ipv4Addr],
        options: &'static [&'static str],
        authority: Authority,
    ) -> Self {
        let group = ServerGroup::new();
        write_secrets(group.directory(), &authority, addresses);

        let etcd_port = free_port();
        let etcd = Mutex::new(start_etcd(&group, etcd_port));
        wait_until_etcd_listens(&etcd, etcd_port);

        let port = free_port();
        let api_server = Mutex::new(start_api_server(
            &group,
            bind_address,
            port,
            etcd_port,
            options,
        ));
        let url = url(bind_address, port);
        let admin = kubeconfig::content(&User::Admin, &url, "default", &authority);
        let admin = Requests::new(admin);

        let control_plane = Self {
            group,
            authority,
            etcd_port,
            port,
            bind_address,
            options,
            etcd,
            api_server,
            admin,
            files: AtomicU32::new(0),
        };
        control_plane.wait_until_ready();
        control_plane
    }

    // === Where it is ===

    /// The API server's URL.
    pub(crate) fn url(&self) -> String {
        url(self.bind_address, self.port)
    }

    /// The API server's port.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// The URL of the API server's etcd, which asks nobody for a certificate.
    pub(crate) fn etcd_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.etcd_port)
    }

    /// The directory of this control plane, which is removed with it; tests may write there too.
    pub(crate) fn directory(&self) -> &Path {
        self.group.directory()
    }

    /// The certificate of the authority that has signed the API server's certificate, as PEM.
    pub(crate) fn ca_pem(&self) -> String {
        self.authority.certificate()
    }

    // === Who asks ===

    /// A certificate for a server on this machine, signed by the same authority.
    pub(crate) fn server_certificate(&self) -> Identity {
        self.authority.server(&[])
    }

    /// A client certificate for `user`, a member of `groups`.
    pub(crate) fn client_certificate(&self, user: &str, groups: &[&str]) -> Identity {
        self.authority.client(user, groups)
    }

    /// A client certificate for `user` that has expired.
    pub(crate) fn expired_client_certificate(&self, user: &str) -> Identity {
        self.authority.expired_client(user)
    }

    /// A client certificate for `user` in the old format that rustls refuses.
    pub(crate) fn x509_v1_client_certificate(&self, user: &str) -> Identity {
        self.authority.x509_v1_client(user)
    }

    /// A token of a service account, which is made if it doesn't exist.
    pub(crate) fn token(&self, namespace: &str, service_account: &str) -> String {
        let accounts = format!("/api/v1/namespaces/{namespace}/serviceaccounts");
        let account = json!({"metadata": {"name": service_account}});
        let (status, answer) = self.raw(Method::POST, &accounts, Some(account));
        assert!(
            [201, 409].contains(&status),
            "failed to make a service account: {answer}"
        );
        // Just above the ten minutes that are the least the API server issues.
        let request = json!({"spec": {"expirationSeconds": 3600}});
        let token = format!("{accounts}/{service_account}/token");
        let answer = self.expect(201, Method::POST, &token, Some(request));
        let token = answer["status"]["token"].as_str();
        token
            .expect("a TokenRequest is answered with a token")
            .into()
    }

    /// A token of a service account that is there, which is accepted for `life`: the API server itself issues
    /// none of less than ten minutes. It lets a minute pass between a token's end and its refusal.
    pub(crate) fn token_that_lives(
        &self,
        namespace: &str,
        service_account: &str,
        life: Duration,
    ) -> String {
        let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/{service_account}");
        let account = self.expect(200, Method::GET, &path, None);
        let now = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .expect("it is later than 1970")
            .as_secs();
        let claims = json!({
            "iss": ISSUER,
            "aud": [ISSUER],
            "sub": format!("system:serviceaccount:{namespace}:{service_account}"),
            "iat": now - 60,
            "nbf": now - 60,
            "exp": now + life.as_secs() - 60,
            "kubernetes.io": {
                "namespace": namespace,
                "serviceaccount": {
                    "name": service_account,
                    "uid": account["metadata"]["uid"],
                },
            },
        });
        let key = fs::read_to_string(self.directory().join("tokens.key"));
        TokenKey::sign(&key.expect("it was written at the start"), &claims)
    }

    /// Writes a kubeconfig file for `user`, with all it needs embedded.
    pub(crate) fn kubeconfig(&self, user: User) -> PathBuf {
        self.kubeconfig_at(&self.url(), "default", user)
    }

    /// Writes a kubeconfig file with another URL, such as a proxy's on this machine, and another
    /// default namespace.
    pub(crate) fn kubeconfig_at(&self, url: &str, namespace: &str, user: User) -> PathBuf {
        let content = kubeconfig::content(&user, url, namespace, &self.authority);
        let number = self.files.fetch_add(1, Ordering::Relaxed);
        let path = self.directory().join(format!("kubeconfig-{number}"));
        // JSON is YAML.
        fs::write(&path, content.to_string())
            .unwrap_or_else(|err| panic!("failed to write {}: {err}", path.display()));
        path
    }

    // === Requests ===

    /// Sends a request as the administrator, who may do everything, and returns the status and the
    /// answer: JSON, or a string if it is none.
    pub(crate) fn raw(&self, method: Method, path: &str, body: Option<Value>) -> (u16, Value) {
        let answer = self
            .admin
            .send(&method, path, body)
            .unwrap_or_else(|err| panic!("failed to {method} {path}: {err}"));
        (answer.status, answer.body)
    }

    /// Sends a request as another user. The error says why there was no answer.
    pub(crate) fn raw_as(
        &self,
        user: User,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> Result<(u16, Value), String> {
        let answer = self.client(user).send(&method, path, body)?;
        Ok((answer.status, answer.body))
    }

    /// A client for requests as another user, whose answers are seen whole.
    pub(crate) fn client(&self, user: User) -> Requests {
        self.client_at(&self.url(), user)
    }

    /// The same, to another URL.
    pub(crate) fn client_at(&self, url: &str, user: User) -> Requests {
        Requests::new(kubeconfig::content(&user, url, "default", &self.authority))
    }

    /// Lets a user do these things to the lease that the tests contend for, and to no other.
    pub(crate) fn grant(&self, namespace: &str, user: &str, verbs: &[&str]) {
        let path = format!("/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}");
        let role = json!({
            "metadata": {"name": user},
            "rules": [{
                "apiGroups": ["coordination.k8s.io"],
                "resources": ["leases"],
                "resourceNames": [LEASE],
                "verbs": verbs,
            }],
        });
        let binding = json!({
            "metadata": {"name": user},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": user},
            "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user}],
        });
        self.expect(201, Method::POST, &format!("{path}/roles"), Some(role));
        self.expect(
            201,
            Method::POST,
            &format!("{path}/rolebindings"),
            Some(binding),
        );
    }

    /// Makes a namespace, which must not exist yet.
    pub(crate) fn create_namespace(&self, name: &str) {
        let namespace = json!({"metadata": {"name": name}});
        self.expect(201, Method::POST, "/api/v1/namespaces", Some(namespace));
    }

    /// Reads a lease; `None` if there is none.
    pub(crate) fn get_lease(&self, namespace: &str, name: &str) -> Option<Value> {
        match self.raw(Method::GET, &lease_path(namespace, name), None) {
            (200, lease) => Some(lease),
            (404, _) => None,
            (status, answer) => {
                panic!("failed to read lease {namespace}/{name}: {status} {answer}")
            }
        }
    }

    /// Writes a lease and returns it as it was stored. It is made if there is none; otherwise `lease`
    /// must be one that was read, and not have been written since.
    pub(crate) fn put_lease(&self, namespace: &str, name: &str, mut lease: Value) -> Value {
        lease["metadata"]["name"] = json!(name);
        match self.raw(Method::PUT, &lease_path(namespace, name), Some(lease)) {
            (200 | 201, lease) => lease,
            (status, answer) => {
                panic!("failed to write lease {namespace}/{name}: {status} {answer}")
            }
        }
    }

    /// Deletes a lease, if there is one.
    pub(crate) fn delete_lease(&self, namespace: &str, name: &str) {
        let (status, answer) = self.raw(Method::DELETE, &lease_path(namespace, name), None);
        assert!(
            [200, 404].contains(&status),
            "failed to delete lease {namespace}/{name}: {answer}"
        );
    }

    /// Runs kubectl as the administrator, with `input` as its standard input.
    pub(crate) fn kubectl(&self, arguments: &[&str], input: &str) -> Output {
        let mut kubectl = Command::new(Self::kubectl_program())
            .args(arguments)
            // It keeps what it has learnt about a server in its home directory.
            .env("HOME", self.directory())
            .env("KUBECONFIG", self.kubeconfig(User::Admin))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("start kubectl, from the control plane's programs or from PATH");
        let mut pipe = kubectl.stdin.take().expect("standard input is a pipe");
        // A kubectl that doesn't read its input may have ended already.
        let _ = pipe.write_all(input.as_bytes());
        drop(pipe);
        kubectl.wait_with_output().expect("wait for kubectl")
    }

    /// The path of kubectl. The envtest tools have it, but whoever sets KUBEBUILDER_ASSETS need not.
    pub(crate) fn kubectl_program() -> PathBuf {
        let own = programs().join("kubectl");
        if own.exists() { own } else { "kubectl".into() }
    }

    /// The 37 of kubectl 1.37.
    pub(crate) fn kubectl_minor_version() -> u32 {
        let arguments = ["version", "--client", "--output", "json"];
        let output = Command::new(Self::kubectl_program())
            .args(arguments)
            .output();
        let version = output.expect("start kubectl").stdout;
        let version: Value = serde_json::from_slice(&version).expect("kubectl prints JSON");
        let minor = version["clientVersion"]["minor"]
            .as_str()
            .unwrap_or_default();
        let digits = minor.trim_end_matches('+');
        digits.parse().expect("kubectl has a minor version")
    }

    /// Runs etcdctl with the API server's etcd, for what shares no key with it (`etcdctl lock`).
    pub(crate) fn etcdctl(&self) -> Command {
        let mut etcdctl = Command::new(programs().join("etcdctl"));
        etcdctl
            .env("ETCDCTL_API", "3")
            .env("ETCDCTL_ENDPOINTS", self.etcd_url());
        etcdctl
    }

    /// Starts kube-scheduler as a candidate for a lease: it is a real client-go elector.
    ///
    /// # Panics
    ///
    /// If there is no such program, which a directory given by KUBEBUILDER_ASSETS may lack.
    pub(crate) fn start_scheduler(
        &self,
        namespace: &str,
        lease: &str,
        times: ElectionTimes,
    ) -> Scheduler {
        let program = programs().join("kube-scheduler");
        let directory = programs().display();
        assert!(
            program.exists(),
            "this test needs kube-scheduler in {directory}, beside kube-apiserver"
        );
        let kubeconfig = self.kubeconfig(User::Admin);
        Scheduler::start(&self.group, &program, &kubeconfig, namespace, lease, times)
    }

    /// The program that runs a command under client-go's leader election (`tests/client-go`). `None`
    /// if there is none, as in a directory given by KUBEBUILDER_ASSETS.
    pub(crate) fn client_go_wrapper() -> Option<PathBuf> {
        Some(programs().join("client-go-wrapper")).filter(|program| program.exists())
    }

    // === Helpers ===

    fn expect(&self, expected: u16, method: Method, path: &str, body: Option<Value>) -> Value {
        let (status, answer) = self.raw(method.clone(), path, body);
        assert_eq!(status, expected, "{method} {path} was answered: {answer}");
        answer
    }

    /// Waits until requests are served, RBAC has its default roles, and namespace `default` exists,
    /// which the API server makes a little later.
    fn wait_until_ready(&self) {
        let answers = |path| matches!(self.admin.send(&Method::GET, path, None), Ok(answer) if answer.status == 200);
        let ready = try_wait_until(START_LIMIT, || {
            if !lock(&self.api_server).is_running() {
                return Some(false);
            }
            (answers("/readyz") && answers("/api/v1/namespaces/default")).then_some(true)
        });
        let server = lock(&self.api_server);
        match ready {
            Some(true) => {}
            Some(false) => panic!("kube-apiserver ended at its start; {}", server.log_tail()),
            None => panic!(
                "kube-apiserver not ready in {START_LIMIT:?}; {}",
                server.log_tail()
            ),
        }
    }
}

/// The URL of an API server that listens there.
fn url(bind_address: Ipv4Addr, port: u16) -> String {
    let is_everywhere = bind_address.is_unspecified();
    let address = if is_everywhere {
        Ipv4Addr::LOCALHOST
    } else {
        bind_address
    };
    format!("https://{address}:{port}")
}

/// Writes what the API server reads: certificates and keys.
fn write_secrets(directory: &Path, authority: &Authority, addresses: &[Ipv4Addr]) {
    let server = authority.server(addresses);
    let tokens = TokenKey::new();
    for (name, content) in [
        ("ca.pem", authority.certificate()),
        ("server.pem", server.certificate),
        ("server.key", server.key),
        ("tokens.key", tokens.private),
        ("tokens.pem", tokens.public),
    ] {
        fs::write(directory.join(name), content).expect("write to a directory of our own");
    }
}

fn start_etcd(group: &ServerGroup, port: u16) -> Server {
    let program = programs().join("etcd");
    let url = format!("http://127.0.0.1:{port}");
    let peer_url = format!("http://127.0.0.1:{}", free_port());
    let mut command = Command::new(&program);
    command
        .args([
            "--name=only",
            "--data-dir=etcd",
            "--logger=zap",
            "--log-level=warn",
        ])
        .arg("--log-outputs=stderr")
        .arg(format!("--listen-client-urls={url}"))
        .arg(format!("--advertise-client-urls={url}"))
        .arg(format!("--listen-peer-urls={peer_url}"))
        .arg(format!("--initial-advertise-peer-urls={peer_url}"))
        .arg(format!("--initial-cluster=only={peer_url}"));
    // From 3.5 on. Nobody needs the data after a power failure.
    if output(&program, "--help").contains("--unsafe-no-fsync") {
        command.arg("--unsafe-no-fsync");
    }
    group.start("etcd", &mut command)
}

/// The API server would wait for etcd as well, but only look again after a second.
fn wait_until_etcd_listens(etcd: &Mutex<Server>, port: u16) {
    let listens = || TcpStream::connect(("127.0.0.1", port)).ok();
    if try_wait_until(LIMIT, listens).is_none() {
        panic!("etcd doesn't listen; {}", lock(etcd).log_tail());
    }
}

fn start_api_server(
    group: &ServerGroup,
    bind_address: Ipv4Addr,
    port: u16,
    etcd_port: u16,
    options: &[&str],
) -> Server {
    let program = programs().join("kube-apiserver");
    let mut command = Command::new(&program);
    command
        .arg(format!("--etcd-servers=http://127.0.0.1:{etcd_port}"))
        .arg(format!("--secure-port={port}"))
        .arg(format!("--bind-address={bind_address}"))
        .arg("--advertise-address=127.0.0.1")
        // There is no service to keep endpoints of, and none may be on the loopback interface.
        .arg("--endpoint-reconciler-type=none")
        .arg("--service-cluster-ip-range=10.0.0.0/24")
        .args(["--client-ca-file=ca.pem", "--cert-dir=."])
        .args([
            "--tls-cert-file=server.pem",
            "--tls-private-key-file=server.key",
        ])
        .arg("--service-account-key-file=tokens.pem")
        .arg("--service-account-signing-key-file=tokens.key")
        .arg(format!("--service-account-issuer={ISSUER}"))
        .args(["--authorization-mode=RBAC", "--profiling=false"])
        .args(options);
    // Up to 1.23 it listens without TLS too unless told not to, and from 1.24 on there is no such
    // option.
    if minor_version(&program) < 24 {
        command.arg("--insecure-port=0");
    }
    group.start("kube-apiserver", &mut command)
}

fn output(program: &Path, option: &str) -> String {
    let output = Command::new(program)
        .arg(option)
        .output()
        .unwrap_or_else(|err| panic!("failed to run {}: {err}", program.display()));
    // Some programs write their help to the one, some to the other.
    let all = [output.stdout, output.stderr].concat();
    String::from_utf8_lossy(&all).into_owned()
}

/// The directory of the control plane's programs, which are built if need be.
fn programs() -> &'static Path {
    static PROGRAMS: OnceLock<PathBuf> = OnceLock::new();
    PROGRAMS.get_or_init(|| {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/control-plane.sh");
        // Its messages are shown: the first time, it takes minutes.
        let output = as_the_caller(&mut Command::new(&script))
            .stderr(Stdio::inherit())
            .output()
            .unwrap_or_else(|err| panic!("failed to run {}: {err}", script.display()));
        assert!(
            output.status.success(),
            "{} failed, see above",
            script.display()
        );
        let directory = String::from_utf8(output.stdout).expect("a path in UTF-8");
        // KUBEBUILDER_ASSETS may be relative, and servers run in a directory of their own.
        fs::canonicalize(directory.trim_end()).expect("the directory has just been checked")
    })
}

fn lease_path(namespace: &str, name: &str) -> String {
    format!("/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases/{name}")
}

/// A panic in another test must not become one here.
fn lock(server: &Mutex<Server>) -> MutexGuard<'_, Server> {
    server.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Who issues the tokens of service accounts, and for whom.
const ISSUER: &str = "https://kubernetes.default.svc";

/// Some three seconds, unless the machine has much else to do.
const START_LIMIT: Duration = Duration::from_secs(120);
