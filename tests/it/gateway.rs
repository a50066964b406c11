//! A gateway on this machine between lease-exec and the API server, which sees each request and
//! does what it is told to watches.
//!
//! It speaks TLS with both sides, and has one connection to the server for each of the client's:
//! when the server closes its own, the client's is closed too. The client is taken for the user whom
//! the gateway was started for.

#[path = "../faults/proxy/http.rs"]
mod message;

use std::{
    collections::VecDeque,
    io,
    net::{Ipv4Addr, TcpListener as Listener},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    select,
    sync::watch,
    time::{Instant, sleep_until},
};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use self::message::{Head, Reader, framed};
use crate::{
    control_plane::{ControlPlane, Identity, User},
    world::now,
};

/// A running gateway. Dropping it closes its connections.
pub(crate) struct Gateway<'a> {
    control_plane: &'a ControlPlane,
    port: u16,
    shared: Arc<Shared>,
}

/// What becomes of watches, those that are open included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Watches {
    /// They are served.
    Served,
    /// They are ended as the server ends one, each as soon as it has begun.
    Ended,
    /// They stay open, and say nothing any more.
    Silent,
    /// Their events come so much later.
    Late(Duration),
    /// They are asked for from the oldest of all versions, whatever the client asks for.
    FromTheBeginning,
    /// They are refused with this code.
    Refused(u16),
}

/// What a request is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Read,
    Write,
    Watch,
}

/// A request that came in. Times are nanoseconds since the epoch.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) kind: Kind,
    /// The client's connections are counted from 1.
    pub(crate) connection: usize,
    pub(crate) at: u128,
    /// Of the answer, once it has come.
    pub(crate) code: Option<u16>,
    /// The path, without what follows a question mark.
    pub(crate) path: String,
}

/// An event of a watch.
#[derive(Clone, Debug)]
pub(crate) struct Event {
    /// The number of the request for the watch, from 0.
    pub(crate) watch: usize,
    /// Just before it was passed on, in nanoseconds since the epoch.
    pub(crate) at: u128,
    /// The version that it tells of.
    pub(crate) version: String,
}

struct Shared {
    server: u16,
    acceptor: TlsAcceptor,
    connector: TlsConnector,
    watches: watch::Sender<Watches>,
    /// False when the gateway is gone.
    is_open: watch::Sender<bool>,
    log: Mutex<Log>,
}

#[derive(Default)]
struct Log {
    connections: usize,
    requests: Vec<Seen>,
    events: Vec<Event>,
}

type Client = Reader<tokio_rustls::server::TlsStream<TcpStream>>;
type Server = Reader<tokio_rustls::client::TlsStream<TcpStream>>;

impl<'a> Gateway<'a> {
    /// Opens one for a user in these groups, where watches are served.
    pub(crate) fn start(control_plane: &'a ControlPlane, user: &str, groups: &[&str]) -> Self {
        let listener = Listener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
        let nonblocking = listener.set_nonblocking(true);
        nonblocking.expect("a socket can be made not to block");
        let port = listener.local_addr().expect("it listens").port();
        let user = control_plane.client_certificate(user, groups);
        let shared = Arc::new(Shared {
            server: control_plane.port(),
            acceptor: acceptor(&control_plane.server_certificate()),
            connector: connector(&control_plane.ca_pem(), &user),
            watches: watch::Sender::new(Watches::Served),
            is_open: watch::Sender::new(true),
            log: Mutex::default(),
        });
        let accepting = Arc::clone(&shared);
        thread::spawn(move || {
            tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("an async runtime can be built")
                .block_on(accept(accepting, listener));
        });
        Self {
            control_plane,
            port,
            shared,
        }
    }

    /// The administrator's.
    pub(crate) fn for_admin(control_plane: &'a ControlPlane) -> Self {
        Self::start(control_plane, "admin", &["system:masters"])
    }

    /// Writes a kubeconfig file that leads here, with this default namespace.
    pub(crate) fn kubeconfig(&self, namespace: &str) -> PathBuf {
        let url = format!("https://127.0.0.1:{}", self.port);
        // Whose certificate the client has is no matter to us.
        self.control_plane
            .kubeconfig_at(&url, namespace, User::Admin)
    }

    /// From now on this becomes of watches.
    pub(crate) fn set(&self, watches: Watches) {
        self.shared.watches.send_replace(watches);
    }

    /// All requests so far.
    pub(crate) fn requests(&self) -> Vec<Seen> {
        self.shared.log().requests.clone()
    }

    /// What the requests so far were for.
    pub(crate) fn kinds(&self) -> Vec<Kind> {
        self.requests().iter().map(|seen| seen.kind).collect()
    }

    /// How many connections were made so far, whether or not they were used.
    pub(crate) fn connections(&self) -> usize {
        self.shared.log().connections
    }

    /// All events so far that were passed on to the client.
    pub(crate) fn events(&self) -> Vec<Event> {
        self.shared.log().events.clone()
    }
}

impl Drop for Gateway<'_> {
    fn drop(&mut self) {
        self.shared.is_open.send_replace(false);
    }
}

/// Serves connections until the gateway is gone.
async fn accept(shared: Arc<Shared>, listener: Listener) {
    let listener = TcpListener::from_std(listener).expect("it does not block");
    let mut is_open = shared.is_open.subscribe();
    loop {
        let (client, _) = select! {
            accepted = listener.accept() => accepted.expect("a connection can be accepted"),
            _ = is_open.changed() => return,
        };
        let number = {
            let mut log = shared.log();
            log.connections += 1;
            log.connections
        };
        let shared = Arc::clone(&shared);
        // How a connection ends is for the client to see.
        tokio::spawn(async move { shared.serve(number, client).await });
    }
}

impl Shared {
    async fn serve(&self, number: usize, client: TcpStream) -> io::Result<()> {
        client.set_nodelay(true)?;
        let mut client = Reader::new(self.acceptor.accept(client).await?);
        let server = TcpStream::connect((Ipv4Addr::LOCALHOST, self.server)).await?;
        server.set_nodelay(true)?;
        let name = ServerName::try_from("localhost").map_err(io::Error::other)?;
        let mut server = Reader::new(self.connector.connect(name, server).await?);
        loop {
            let head = select! {
                head = client.head() => head?,
                () = server.closed() => return Ok(()),
            };
            let body = client.body(&head).await?;
            let (kind, request) = self.note_request(number, &head);
            let watches = self.watches.borrow().clone();
            if let (Kind::Watch, Watches::Refused(code)) = (kind, &watches) {
                self.note_answer(request, *code);
                write(&mut client.stream, &refusal(*code)).await?;
                continue;
            }
            let mut head = head.bytes().to_vec();
            if kind == Kind::Watch && watches == Watches::FromTheBeginning {
                head = from_the_beginning(&head);
            }
            write(&mut server.stream, &[head, body].concat()).await?;
            let head = server.head().await?;
            let code = head.word(1).parse().map_err(io::Error::other)?;
            self.note_answer(request, code);
            if kind == Kind::Watch && code == 200 {
                write(&mut client.stream, head.bytes()).await?;
                return self.pass_events(request, &mut client, &mut server).await;
            }
            let body = server.body(&head).await?;
            write(&mut client.stream, &[head.bytes(), &body].concat()).await?;
        }
    }

    /// Passes a watch's events on, until either side ends it.
    async fn pass_events(
        &self,
        watch: usize,
        client: &mut Client,
        server: &mut Server,
    ) -> io::Result<()> {
        let mut watches = self.watches.subscribe();
        let mut late = VecDeque::<(Instant, Vec<u8>)>::new();
        loop {
            let rule = watches.borrow_and_update().clone();
            if rule == Watches::Ended {
                return write(&mut client.stream, &framed(b"")).await;
            }
            let due = late.front().map(|(due, _)| *due);
            select! {
                chunk = server.chunk() => match rule {
                    Watches::Silent => {}
                    Watches::Late(lag) => late.push_back((Instant::now() + lag, chunk?)),
                    _ => self.pass_event(watch, client, &chunk?).await?,
                },
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                    if let Some((_, chunk)) = late.pop_front() {
                        self.pass_event(watch, client, &chunk).await?;
                    }
                }
                () = client.closed() => return Ok(()),
                changed = watches.changed() => changed.map_err(io::Error::other)?,
            }
        }
    }

    async fn pass_event(&self, watch: usize, client: &mut Client, chunk: &[u8]) -> io::Result<()> {
        let event: Value = serde_json::from_slice(chunk).unwrap_or_default();
        if let Some(version) = event["object"]["metadata"]["resourceVersion"].as_str() {
            self.log().events.push(Event {
                watch,
                at: now(),
                version: version.to_owned(),
            });
        }
        write(&mut client.stream, &framed(chunk)).await?;
        match chunk {
            [] => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }

    /// Returns the request's number.
    fn note_request(&self, connection: usize, head: &Head) -> (Kind, usize) {
        let target = head.word(1);
        let kind = match &*head.word(0) {
            "GET" if target.contains("watch=true") => Kind::Watch,
            "GET" => Kind::Read,
            "PUT" => Kind::Write,
            other => panic!("lease-exec sent {other} {target}"),
        };
        let mut log = self.log();
        log.requests.push(Seen {
            kind,
            connection,
            at: now(),
            code: None,
            path: target.split('?').next().unwrap_or_default().to_owned(),
        });
        (kind, log.requests.len() - 1)
    }

    fn note_answer(&self, request: usize, code: u16) {
        self.log().requests[request].code = Some(code);
    }

    /// A panic in another thread must not become one here.
    fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The head of the request for a watch, with another version in it: that of the first write to
/// etcd, which no API server remembers.
fn from_the_beginning(head: &[u8]) -> Vec<u8> {
    let text = String::from_utf8_lossy(head);
    let (before, rest) = text
        .split_once("resourceVersion=")
        .expect("a watch has a version to begin with");
    let after = rest.trim_start_matches(|char: char| char.is_ascii_digit());
    format!("{before}resourceVersion=1{after}").into_bytes()
}

/// An answer of the gateway's own, in the API server's form.
fn refusal(code: u16) -> Vec<u8> {
    let body = json!({
        "kind": "Status", "apiVersion": "v1", "status": "Failure",
        "message": "the gateway refuses watches", "code": code,
    })
    .to_string();
    let length = body.len();
    format!(
        "HTTP/1.1 {code} Refused\r\nContent-Type: application/json\r\n\
         Content-Length: {length}\r\n\r\n{body}"
    )
    .into_bytes()
}

async fn write(stream: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> io::Result<()> {
    stream.write_all(bytes).await?;
    stream.flush().await
}

// === TLS ===

fn acceptor(identity: &Identity) -> TlsAcceptor {
    let (certificate, key) = parts(identity);
    let provider = Arc::new(aws_lc_rs::default_provider());
    let server = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the provider has both versions of TLS")
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .expect("the certificate and its key belong together");
    Arc::new(server).into()
}

fn connector(authority: &str, user: &Identity) -> TlsConnector {
    let (certificate, key) = parts(user);
    let mut roots = RootCertStore::empty();
    let root = CertificateDer::from_pem_slice(authority.as_bytes()).expect("it is PEM");
    roots.add(root).expect("it is an authority's");
    let provider = Arc::new(aws_lc_rs::default_provider());
    let client = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the provider has both versions of TLS")
        .with_root_certificates(roots)
        .with_client_auth_cert(vec![certificate], key)
        .expect("the certificate and its key belong together");
    Arc::new(client).into()
}

fn parts(identity: &Identity) -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
    let certificate = CertificateDer::from_pem_slice(identity.certificate.as_bytes());
    let key = PrivateKeyDer::from_pem_slice(identity.key.as_bytes());
    (certificate.expect("it is PEM"), key.expect("it is PEM"))
}
