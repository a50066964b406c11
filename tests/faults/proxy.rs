//! A proxy between one node and the API server that sees what is said, and breaks it.
//!
//! It speaks TLS with both sides: with the server's own certificate to the node, and as the
//! administrator to the server. Every connection of the node's has one of its own behind it.

mod fault;
mod http;
mod serve;

use std::{
    fs::{self, File},
    io::Write,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use tokio::{runtime::Handle, sync::watch, task::AbortHandle};

use crate::{control_plane::ControlPlane, random::Random, tally, witness};

pub(crate) use fault::{Fault, Kind, Status, Way};

/// A node's way to the API server. Dropping it closes its connections.
pub(crate) struct Link {
    shared: Arc<Shared>,
    port: u16,
    accepting: AbortHandle,
}

/// A fault that meets so many of a hundred requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Active {
    pub(crate) fault: Fault,
    pub(crate) percent: u64,
}

struct Shared {
    node: usize,
    server: SocketAddr,
    acceptor: tokio_rustls::TlsAcceptor,
    connector: tokio_rustls::TlsConnector,
    state: Mutex<State>,
    /// Wakes connections that wait; counts the changes.
    changes: watch::Sender<u64>,
    injected: AtomicU64,
    log: File,
}

struct State {
    active: Vec<Active>,
    random: Random,
    /// When the newest write came in that the server has carried out for a holder.
    renewed: Option<Duration>,
}

impl Link {
    /// Opens a way for a node, on all addresses of this machine; what happens is appended to `log`.
    pub(crate) fn open(
        control_plane: &ControlPlane,
        node: usize,
        log: &Path,
        random: Random,
    ) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).expect("a port is free");
        listener
            .set_nonblocking(true)
            .expect("a socket can be made not to block");
        let port = listener.local_addr().expect("it listens").port();
        let (acceptor, connector) = tls(control_plane);
        let log = File::options().create(true).append(true).open(log);
        let shared = Arc::new(Shared {
            node,
            server: (Ipv4Addr::LOCALHOST, control_plane.port()).into(),
            acceptor,
            connector,
            state: Mutex::new(State {
                active: Vec::new(),
                random,
                renewed: None,
            }),
            changes: watch::Sender::new(0),
            injected: AtomicU64::new(0),
            log: log.expect("a log can be made"),
        });
        let accepting = runtime().spawn(serve::accept(shared.clone(), listener));
        Self {
            shared,
            port,
            accepting: accepting.abort_handle(),
        }
    }

    /// The port on which it listens.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Makes these the faults that are active, and no others.
    pub(crate) fn set(&self, active: &[Active]) {
        self.shared.note(0, &format!("active are {active:?}"));
        lock(&self.shared.state).active = active.to_vec();
        self.shared.changes.send_modify(|changes| *changes += 1);
    }

    /// How many faults have taken effect so far.
    pub(crate) fn injected(&self) -> u64 {
        self.shared.injected.load(Ordering::Relaxed)
    }

    /// When the newest write came in that the server has carried out for a holder, on
    /// CLOCK_BOOTTIME.
    pub(crate) fn renewed(&self) -> Option<Duration> {
        lock(&self.shared.state).renewed
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.accepting.abort();
        self.shared.changes.send_replace(u64::MAX);
    }
}

impl Shared {
    /// The active fault that meets a request of this kind, if one does.
    fn fate(&self, kind: Kind) -> Option<Fault> {
        let mut state = lock(&self.state);
        let State { active, random, .. } = &mut *state;
        let mut active = active.iter();
        let met =
            active.find(|active| active.fault.concerns(kind) && random.percent(active.percent));
        met.map(|active| active.fault)
    }

    /// An active fault of these, if it meets whoever asks.
    fn met(&self, is_it: impl Fn(Fault) -> bool) -> Option<Fault> {
        let mut state = lock(&self.state);
        let State { active, random, .. } = &mut *state;
        let mut active = active.iter();
        let met = active.find(|active| is_it(active.fault) && random.percent(active.percent));
        met.map(|active| active.fault)
    }

    /// A random place in so many bytes.
    fn place(&self, count: usize) -> usize {
        lock(&self.state).random.index(count.max(1))
    }

    fn carried_out(&self, came_in: Duration) {
        let mut state = lock(&self.state);
        state.renewed = state.renewed.max(Some(came_in));
    }

    /// Counts a fault that takes effect now.
    fn inject(&self, connection: u64, fault: Fault) {
        tally::count(fault.name());
        self.injected.fetch_add(1, Ordering::Relaxed);
        self.note(connection, &format!("FAULT {fault:?}"));
    }

    fn note(&self, connection: u64, text: &str) {
        let time = witness::now().as_secs_f64();
        let node = self.node;
        let mut log = &self.log;
        // One write, because all nodes append to the same file.
        let _ = log.write_all(
            format!("{time:.4} node {node} connection {connection}: {text}\n").as_bytes(),
        );
    }
}

fn tls(control_plane: &ControlPlane) -> (tokio_rustls::TlsAcceptor, tokio_rustls::TlsConnector) {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let read = |name: &str| {
        fs::read(control_plane.directory().join(name)).expect("the control plane has written it")
    };
    let certificates = |pem: &[u8]| {
        let certificates = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>();
        certificates.expect("it is PEM")
    };
    let key = |pem: &[u8]| PrivateKeyDer::from_pem_slice(pem).expect("it is PEM");
    let versions = "the provider has both versions of TLS";

    let server = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .expect(versions)
        .with_no_client_auth()
        .with_single_cert(certificates(&read("server.pem")), key(&read("server.key")))
        .expect("the certificate and its key belong together");

    let admin = control_plane.client_certificate("admin", &["system:masters"]);
    let mut roots = RootCertStore::empty();
    for root in certificates(control_plane.ca_pem().as_bytes()) {
        roots.add(root).expect("it is an authority's");
    }
    let client = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect(versions)
        .with_root_certificates(roots)
        .with_client_auth_cert(
            certificates(admin.certificate.as_bytes()),
            key(admin.key.as_bytes()),
        )
        .expect("the certificate and its key belong together");
    (Arc::new(server).into(), Arc::new(client).into())
}

/// All proxies share one thread.
fn runtime() -> &'static Handle {
    static RUNTIME: OnceLock<Handle> = OnceLock::new();
    RUNTIME.get_or_init(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("an async runtime can be built");
        let handle = runtime.handle().clone();
        std::thread::spawn(move || runtime.block_on(std::future::pending::<()>()));
        handle
    })
}

/// A panic in another thread must not become one here.
fn lock<T>(value: &Mutex<T>) -> MutexGuard<'_, T> {
    value.lock().unwrap_or_else(PoisonError::into_inner)
}
