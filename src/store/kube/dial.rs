//! Connecting to a server by its name: one lookup at a time, and the addresses raced (RFC 8305).
//!
//! A lookup goes on when the attempt that asked for it is over, and what it finds serves the next
//! ones. An address goes to the end of the line when it is tried, and to the front when it has
//! answered a request. So the next attempt begins with another one, whatever an address failed at,
//! and whether the attempt was told of it or dropped.
//!
//! Must not: send anything, put a limit on an attempt.

use std::{
    fmt, io,
    net::{IpAddr, SocketAddr, ToSocketAddrs},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use futures_util::{
    FutureExt, StreamExt,
    future::{BoxFuture, Shared, ready},
    stream::FuturesUnordered,
};
use http::Uri;
use hyper_util::{client::legacy::connect::HttpConnector, rt::TokioIo};
use tokio::{
    net::TcpStream,
    time::{Instant, sleep_until},
};
use tower::{BoxError, Service, ServiceExt, service_fn};

use super::failure::plain;

/// Where a server is, as far as that is known.
pub(super) struct Addresses {
    resolve: Resolve,
    line: Mutex<Line>,
}

/// Finds the addresses of a name, whose ports mean nothing. Blocks.
type Resolve = Box<dyn Fn(&str) -> io::Result<Vec<SocketAddr>> + Send + Sync>;

/// The addresses of one name, in the order in which they are tried.
#[derive(Default)]
struct Line {
    host: String,
    known: Vec<SocketAddr>,
    /// What is on its way.
    lookup: Option<Lookup>,
}

type Lookup = Shared<BoxFuture<'static, Result<(), String>>>;

impl Default for Addresses {
    fn default() -> Self {
        Self::new(|host| Ok((host, 0).to_socket_addrs()?.collect()))
    }
}

impl Addresses {
    fn new(resolve: impl Fn(&str) -> io::Result<Vec<SocketAddr>> + Send + Sync + 'static) -> Self {
        Self {
            resolve: Box::new(resolve),
            line: Mutex::default(),
        }
    }

    /// Asks for the addresses of a name, if that is not on its way already.
    fn look_up(self: &Arc<Self>, host: &str) -> Lookup {
        let mut line = self.line();
        if line.host != host {
            *line = Line {
                host: host.to_owned(),
                ..Line::default()
            };
        }
        if let Ok(address) = host.trim_matches(['[', ']']).parse::<IpAddr>() {
            line.known = vec![(address, 0).into()];
            return ready(Ok(())).boxed().shared();
        }
        let addresses = self.clone();
        let start = || {
            let host = host.to_owned();
            let looked_up = tokio::task::spawn_blocking(move || {
                let found = (addresses.resolve)(&host);
                addresses.take_up(&host, found)
            });
            let ended = |_| Err("the program is coming to its end".to_owned());
            looked_up
                .map(move |looked_up| looked_up.unwrap_or_else(ended))
                .boxed()
                .shared()
        };
        line.lookup.get_or_insert_with(start).clone()
    }

    /// Lines up what a lookup has found.
    fn take_up(&self, host: &str, found: io::Result<Vec<SocketAddr>>) -> Result<(), String> {
        let mut line = self.line();
        if line.host == host {
            line.lookup = None;
        }
        let found = found.map_err(|error| format!("no address of {host}: {}", plain(&error)))?;
        if line.host == host {
            line.known.retain(|address| found.contains(address));
            for address in by_turns(&found) {
                if line.known.len() < MOST_ADDRESSES && !line.known.contains(&address) {
                    line.known.push(address);
                }
            }
        }
        Ok(())
    }

    /// The first in line that is not among those which were tried.
    fn untried(&self, tried: &[SocketAddr]) -> Option<SocketAddr> {
        let line = self.line();
        let mut known = line.known.iter().copied();
        known.find(|address| !tried.contains(address))
    }

    fn move_to(&self, end: End, address: SocketAddr) {
        let known = &mut self.line().known;
        if let Some(place) = known.iter().position(|known| *known == address) {
            known.remove(place);
            let place = match end {
                End::Front => 0,
                End::Back => known.len(),
            };
            known.insert(place, address);
        }
    }

    fn line(&self) -> MutexGuard<'_, Line> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An end of the line.
enum End {
    Front,
    Back,
}

/// The families by turns, beginning with that of the first.
fn by_turns(found: &[SocketAddr]) -> Vec<SocketAddr> {
    let is_first = |address: &SocketAddr| found[0].is_ipv6() == address.is_ipv6();
    let (one, other): (Vec<_>, Vec<_>) = found.iter().copied().partition(is_first);
    let mut turns: Vec<(usize, SocketAddr)> = one.into_iter().enumerate().collect();
    turns.extend(other.into_iter().enumerate());
    // The sort is stable.
    turns.sort_by_key(|(turn, _)| *turn);
    turns.into_iter().map(|(_, address)| address).collect()
}

/// The way of one client to its server: makes the connections, and knows how far it has come.
#[derive(Clone)]
pub(super) struct Way {
    addresses: Arc<Addresses>,
    stage: Arc<Mutex<Stage>>,
}

/// What a client waits for.
#[derive(Clone, Debug)]
enum Stage {
    /// The addresses of this name.
    Lookup(String),
    /// A connection to one of these.
    Connect(Vec<SocketAddr>),
    /// TLS, and before it a proxy's consent.
    Handshake(SocketAddr),
    Answer(SocketAddr),
}

impl Way {
    pub(super) fn new(addresses: Arc<Addresses>) -> Self {
        Self {
            addresses,
            stage: Arc::new(Mutex::new(Stage::Connect(Vec::new()))),
        }
    }

    /// Passes a connection on, and takes note that it is ready for a request.
    pub(super) fn opened<T>(&self) -> impl FnOnce(T) -> T + Clone + Send + Sync + use<T> {
        let way = self.clone();
        move |connection| {
            let mut stage = way.stage();
            if let Stage::Handshake(address) = *stage {
                *stage = Stage::Answer(address);
            }
            connection
        }
    }

    /// A request is sent on the connection that there is, if there is one.
    pub(super) fn is_asked(&self) {
        self.move_to(End::Back);
    }

    /// The server has answered as it should.
    pub(super) fn has_answered(&self) {
        self.move_to(End::Front);
    }

    fn move_to(&self, end: End) {
        if let Stage::Answer(address) = *self.stage() {
            self.addresses.move_to(end, address);
        }
    }

    fn set(&self, stage: Stage) {
        *self.stage() = stage;
    }

    fn stage(&self) -> MutexGuard<'_, Stage> {
        self.stage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Connects to whichever address is first to accept.
    async fn race(self, uri: Uri) -> Result<TokioIo<TcpStream>, BoxError> {
        let host = uri.host().unwrap_or_default();
        self.set(Stage::Lookup(host.to_owned()));
        let mut lookup = self.addresses.look_up(host);
        let mut is_looked_up = false;
        let mut tried = Vec::new();
        let mut connects = FuturesUnordered::new();
        let mut next_at = Instant::now();
        let mut problem: Option<BoxError> = None;
        loop {
            let mut untried = self.addresses.untried(&tried);
            if let Some(address) = untried
                && (connects.is_empty() || Instant::now() >= next_at)
            {
                tried.push(address);
                self.addresses.move_to(End::Back, address);
                self.set(Stage::Connect(tried.clone()));
                connects.push(connect(address, uri.clone()));
                next_at = Instant::now() + HEAD_START;
                untried = self.addresses.untried(&tried);
            }
            // Those that were known may be out of date, and a lookup mostly takes milliseconds.
            let is_over = is_looked_up || problem.is_some() && Instant::now() >= next_at;
            if is_over && connects.is_empty() && untried.is_none() {
                let none = || format!("{host} has no address").into();
                return Err(problem.unwrap_or_else(none));
            }
            let is_timed = Instant::now() < next_at && (untried.is_some() || problem.is_some());
            tokio::select! {
                Some((address, connected)) = connects.next() => match connected {
                    Ok(stream) => {
                        self.set(Stage::Handshake(address));
                        return Ok(stream);
                    }
                    Err(error) => problem = Some(error),
                },
                looked_up = &mut lookup, if !is_looked_up => {
                    is_looked_up = true;
                    if let Err(error) = looked_up {
                        problem.get_or_insert(error.into());
                    }
                }
                () = sleep_until(next_at), if is_timed => {}
            }
        }
    }
}

impl Service<Uri> for Way {
    type Response = TokioIo<TcpStream>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Self::Response, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        self.clone().race(uri).boxed()
    }
}

/// What is waited for, after "waited for".
impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.stage() {
            Stage::Lookup(host) => write!(f, "the addresses of {host}"),
            Stage::Connect(tried) if tried.is_empty() => f.write_str("a connection"),
            Stage::Connect(tried) => {
                let tried: Vec<_> = tried.iter().map(|tried| tried.ip().to_string()).collect();
                write!(f, "a connection to {}", tried.join(" or "))
            }
            Stage::Handshake(address) => write!(f, "the TLS handshake with {}", address.ip()),
            Stage::Answer(address) => write!(f, "the answer of {}", address.ip()),
        }
    }
}

async fn connect(
    address: SocketAddr,
    uri: Uri,
) -> (SocketAddr, Result<TokioIo<TcpStream>, BoxError>) {
    let resolve = service_fn(move |_| ready(Ok::<_, io::Error>([address].into_iter())));
    let mut tcp = HttpConnector::new_with_resolver(resolve);
    tcp.enforce_http(false);
    // TCP as a lease needs it: no waiting for more to send, and a peer that died silently shows.
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(CONNECT_LIMIT));
    tcp.set_keepalive(Some(KEEPALIVE));
    tcp.set_keepalive_interval(Some(KEEPALIVE));
    tcp.set_keepalive_retries(Some(KEEPALIVE_RETRIES));
    tcp.set_tcp_user_timeout(Some(UNACKNOWLEDGED_LIMIT));
    (address, tcp.oneshot(uri).await.map_err(BoxError::from))
}

/// How long an address is alone before the next is tried, too (RFC 8305, 5).
const HEAD_START: Duration = Duration::from_millis(250);

/// Of one name.
const MOST_ADDRESSES: usize = 16;

const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// How long nothing has to come before the kernel asks whether the peer is there, and how often it
/// does so.
const KEEPALIVE: Duration = Duration::from_secs(5);
const KEEPALIVE_RETRIES: u32 = 3;

/// TCP_USER_TIMEOUT, see tcp(7): what was sent, keepalive probes included, is acknowledged within
/// this or the connection is over.
const UNACKNOWLEDGED_LIMIT: Duration = Duration::from_secs(20);

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by a panic")]
mod tests;
