//! A scripted resolver, and real addresses of this machine that accept, refuse or stay silent.

use std::{
    net::{Ipv4Addr, TcpListener},
    sync::{
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread,
};

use tokio::time::timeout;

use super::*;

/// What this machine is also called. Each test has a port of its own.
fn address(last: u8) -> SocketAddr {
    (Ipv4Addr::new(127, 77, 0, last), 0).into()
}

fn accepting(last: u8, port: u16) -> TcpListener {
    TcpListener::bind((address(last).ip(), port)).unwrap()
}

/// A listener whose queue is full: the kernel drops what comes, as a firewall does.
struct Silent {
    _listener: tokio::net::TcpListener,
    _queued: Vec<TcpStream>,
}

async fn silent(last: u8, port: u16) -> Silent {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    let place = SocketAddr::new(address(last).ip(), port);
    socket.bind(place).unwrap();
    let listener = socket.listen(1).unwrap();
    let mut queued = Vec::new();
    let connect = || timeout(Duration::from_millis(200), TcpStream::connect(place));
    while let Ok(stream) = connect().await {
        queued.push(stream.unwrap());
    }
    Silent {
        _listener: listener,
        _queued: queued,
    }
}

fn port() -> u16 {
    accepting(9, 0).local_addr().unwrap().port()
}

fn known(found: &[u8]) -> Arc<Addresses> {
    let found: Vec<_> = found.iter().copied().map(address).collect();
    Arc::new(Addresses::new(move |_| Ok(found.clone())))
}

/// The last part of the address that a fresh way has come to, if it has within the limit.
async fn reach(addresses: &Arc<Addresses>, port: u16, limit: Duration) -> (Way, Option<u8>) {
    let way = Way::new(addresses.clone());
    let uri: Uri = format!("http://server.example:{port}").parse().unwrap();
    let connected = timeout(limit, way.clone().oneshot(uri)).await;
    let peer = connected.ok().map(|stream| {
        let peer = way.opened()(stream.unwrap()).inner().peer_addr().unwrap();
        let IpAddr::V4(peer) = peer.ip() else {
            panic!("{peer} is none of the test's");
        };
        peer.octets()[3]
    });
    (way, peer)
}

fn order(addresses: &Addresses) -> Vec<SocketAddr> {
    addresses.line().known.clone()
}

/// Longer than anything takes that happens.
const LIMIT: Duration = Duration::from_secs(30);

#[tokio::test]
async fn silent_address_costs_a_quarter_of_a_second_and_goes_to_the_end() {
    let port = port();
    let _silent = silent(1, port).await;
    let _listener = accepting(2, port);
    let addresses = known(&[1, 2]);
    let began = Instant::now();
    let (way, peer) = reach(&addresses, port, LIMIT).await;
    assert_eq!(peer, Some(2));
    assert!(began.elapsed() >= HEAD_START);
    assert!(began.elapsed() < CONNECT_LIMIT, "they were not raced");
    way.has_answered();
    assert_eq!(order(&addresses), [address(2), address(1)]);
    let (way, _) = reach(&addresses, port, LIMIT).await;
    assert_eq!(way.to_string(), "the answer of 127.77.0.2");
}

#[tokio::test]
async fn address_that_refuses_costs_no_time() {
    let port = port();
    let _listener = accepting(2, port);
    let addresses = known(&[1, 2]);
    let (_, peer) = reach(&addresses, port, HEAD_START).await;
    assert_eq!(peer, Some(2));
}

#[tokio::test]
async fn address_that_accepts_but_never_answers_is_not_the_first_next_time() {
    let port = port();
    let _listeners = [accepting(1, port), accepting(2, port)];
    let addresses = known(&[1, 2]);
    // Nobody tells that the attempt was dropped.
    assert_eq!(reach(&addresses, port, LIMIT).await.1, Some(1));
    let (way, peer) = reach(&addresses, port, LIMIT).await;
    assert_eq!(peer, Some(2));
    way.has_answered();
    let (way, peer) = reach(&addresses, port, LIMIT).await;
    assert_eq!(peer, Some(2));
    way.has_answered();
    // A later request on the same connection.
    way.is_asked();
    assert_eq!(reach(&addresses, port, LIMIT).await.1, Some(1));
}

#[tokio::test]
async fn attempts_too_short_for_a_race_come_to_every_address_in_turn() {
    let port = port();
    let _silent = [silent(1, port).await, silent(2, port).await];
    let _listener = accepting(3, port);
    let addresses = known(&[1, 2, 3]);
    let short = HEAD_START / 2;
    assert_eq!(reach(&addresses, port, short).await.1, None);
    let (way, peer) = reach(&addresses, port, short).await;
    assert_eq!(peer, None);
    assert_eq!(way.to_string(), "a connection to 127.77.0.2");
    assert_eq!(reach(&addresses, port, LIMIT).await.1, Some(3));
}

#[tokio::test]
async fn lookup_outlives_its_attempt_and_is_made_once() {
    let port = port();
    let _listener = accepting(1, port);
    let (answer, wait) = mpsc::channel::<()>();
    let (wait, lookups) = (Mutex::new(wait), Arc::new(AtomicUsize::new(0)));
    let counted = lookups.clone();
    let addresses = Arc::new(Addresses::new(move |host| {
        assert_eq!(host, "server.example");
        counted.fetch_add(1, Ordering::Relaxed);
        let _ = wait.lock().unwrap().recv();
        Ok(vec![address(1)])
    }));
    for _ in 0..2 {
        let (way, peer) = reach(&addresses, port, Duration::from_millis(50)).await;
        assert_eq!(peer, None);
        assert_eq!(way.to_string(), "the addresses of server.example");
    }
    assert_eq!(lookups.load(Ordering::Relaxed), 1);
    answer.send(()).unwrap();
    assert_eq!(reach(&addresses, port, LIMIT).await.1, Some(1));
    // The next lookup hangs, and what is known does.
    assert_eq!(reach(&addresses, port, LIMIT).await.1, Some(1));
    while lookups.load(Ordering::Relaxed) < 2 {
        thread::yield_now();
    }
    drop(answer);
}

#[tokio::test]
async fn server_that_has_moved_is_found_by_the_lookup_that_the_old_address_has_caused() {
    let port = port();
    let _listener = accepting(2, port);
    let lookups = AtomicUsize::new(0);
    let addresses = Arc::new(Addresses::new(move |_| {
        let first = lookups.fetch_add(1, Ordering::Relaxed) == 0;
        Ok(vec![address(if first { 1 } else { 2 })])
    }));
    addresses.look_up("server.example").await.unwrap();
    assert_eq!(order(&addresses), [address(1)]);
    assert_eq!(reach(&addresses, port, LIMIT).await.1, Some(2));
    assert_eq!(order(&addresses), [address(2)]);
}

#[tokio::test]
async fn name_without_an_address_is_told() {
    let unknown = Arc::new(Addresses::new(|_| Err(io::Error::other("Name not known"))));
    let empty = Arc::new(Addresses::new(|_| Ok(Vec::new())));
    for (addresses, expected) in [
        (unknown, "no address of x.example: name not known"),
        (empty, "x.example has no address"),
    ] {
        let way = Way::new(addresses);
        let error = way.oneshot(Uri::from_static("https://x.example")).await;
        assert_eq!(error.unwrap_err().to_string(), expected);
    }
}

#[tokio::test]
async fn failing_lookup_does_not_hide_why_the_known_address_failed() {
    let port = port();
    let lookups = AtomicUsize::new(0);
    let addresses = Arc::new(Addresses::new(move |_| {
        match lookups.fetch_add(1, Ordering::Relaxed) {
            0 => Ok(vec![address(1)]),
            _ => Err(io::Error::other("no")),
        }
    }));
    addresses.look_up("server.example").await.unwrap();
    let uri: Uri = format!("http://server.example:{port}").parse().unwrap();
    let error = Way::new(addresses).oneshot(uri).await.unwrap_err();
    assert_eq!(error.to_string(), "tcp connect error");
}

#[test]
fn families_take_turns() {
    let [a, b, c] = [1, 2, 3].map(address);
    let [x, y] = ["[::1]:0", "[::2]:0"].map(|text| text.parse().unwrap());
    assert_eq!(by_turns(&[x, y, a, b, c]), [x, a, y, b, c]);
    assert_eq!(by_turns(&[a, b, x]), [a, x, b]);
    assert_eq!(by_turns(&[]), []);
}
