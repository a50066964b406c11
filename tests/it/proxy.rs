//! A proxy on this machine between lease-exec and the API server, which counts and breaks
//! connections.
//!
//! Must not: look into what is encrypted.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use crate::kubeconfigs::recorder::socks;

/// A proxy that leads to one server, whatever it is asked for. Dropping it closes its connections.
pub(crate) struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
}

/// How clients say where they want to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Manner {
    /// They take the proxy for the server.
    Forward,
    /// They ask for a tunnel, by HTTP's CONNECT.
    Tunnel,
    /// They ask for a connection, by SOCKS.
    Socks,
}

struct Shared {
    manner: Manner,
    server: SocketAddr,
    is_closed: AtomicBool,
    connections: Mutex<Vec<Arc<Connection>>>,
    tunnels: Mutex<Vec<String>>,
}

/// Both ends of one connection. They are kept, so that nothing is closed that is not meant to be.
struct Connection {
    client: TcpStream,
    server: TcpStream,
    is_black_hole: AtomicBool,
}

impl Proxy {
    /// Starts a proxy to the server on this port of 127.0.0.1.
    pub(crate) fn start(manner: Manner, port: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
        let address = listener.local_addr().expect("a listener has an address");
        let shared = Arc::new(Shared {
            manner,
            server: (Ipv4Addr::LOCALHOST, port).into(),
            is_closed: AtomicBool::new(false),
            connections: Mutex::default(),
            tunnels: Mutex::default(),
        });
        let accepting = Arc::clone(&shared);
        thread::spawn(move || {
            for client in listener.incoming() {
                if accepting.is_closed.load(Ordering::SeqCst) {
                    return;
                }
                let shared = Arc::clone(&accepting);
                let client = client.expect("a connection can be accepted");
                thread::spawn(move || shared.serve(client));
            }
        });
        Self { address, shared }
    }

    /// The address as `host:port`.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// How many connections have been made to the server so far.
    pub(crate) fn connections(&self) -> usize {
        lock(&self.shared.connections).len()
    }

    /// What tunnels were asked for so far, each as `host:port`, or as [`socks`] has it.
    pub(crate) fn tunnels(&self) -> Vec<String> {
        lock(&self.shared.tunnels).clone()
    }

    /// Turns every connection that there is into a black hole: it stays open, and takes all that is
    /// sent, but nothing comes through any more. New connections are not affected.
    pub(crate) fn black_hole(&self) {
        for connection in lock(&self.shared.connections).iter() {
            connection.is_black_hole.store(true, Ordering::SeqCst);
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.is_closed.store(true, Ordering::SeqCst);
        // Wakes the thread that accepts.
        let _ = TcpStream::connect(self.address);
        for connection in lock(&self.shared.connections).iter() {
            let _ = connection.client.shutdown(Shutdown::Both);
            let _ = connection.server.shutdown(Shutdown::Both);
        }
    }
}

impl Shared {
    /// Serves one connection. If the client or the server goes away, so does the other end.
    fn serve(&self, client: TcpStream) {
        let is_open = match self.manner {
            Manner::Forward => true,
            Manner::Tunnel => self.open_tunnel(&client),
            Manner::Socks => {
                let asked = socks(&mut &client);
                asked.is_ok_and(|asked| {
                    lock(&self.tunnels).push(asked);
                    true
                })
            }
        };
        if !is_open {
            return;
        }
        let Ok(server) = TcpStream::connect(self.server) else {
            return;
        };
        let connection = Arc::new(Connection {
            client,
            server,
            is_black_hole: AtomicBool::new(false),
        });
        lock(&self.connections).push(Arc::clone(&connection));
        let upward = Arc::clone(&connection);
        thread::spawn(move || upward.pump(&upward.client, &upward.server));
        connection.pump(&connection.server, &connection.client);
    }

    /// Answers the request for a tunnel; false if there was none.
    fn open_tunnel(&self, client: &TcpStream) -> bool {
        let mut lines = BufReader::new(client).lines();
        let Some(Ok(request)) = lines.next() else {
            return false;
        };
        let words = request.split(' ').collect::<Vec<_>>();
        let ["CONNECT", target, _] = words[..] else {
            return false;
        };
        lock(&self.tunnels).push(target.to_owned());
        // The client waits for the answer, so nothing but the rest of the head comes before it.
        if !lines.any(|line| line.is_ok_and(|line| line.is_empty())) {
            return false;
        }
        let mut client = client;
        client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").is_ok()
    }
}

impl Connection {
    /// Moves bytes until one end goes away, and then, unless this is a black hole, closes both.
    fn pump(&self, mut from: &TcpStream, mut to: &TcpStream) {
        let mut bytes = [0; 16 * 1024];
        while let Ok(count @ 1..) = from.read(&mut bytes) {
            if !self.is_black_hole() && to.write_all(&bytes[..count]).is_err() {
                break;
            }
        }
        if !self.is_black_hole() {
            let _ = self.client.shutdown(Shutdown::Both);
            let _ = self.server.shutdown(Shutdown::Both);
        }
    }

    fn is_black_hole(&self) -> bool {
        self.is_black_hole.load(Ordering::SeqCst)
    }
}

/// A panic in another thread must not become one here.
fn lock<T>(value: &Mutex<T>) -> MutexGuard<'_, T> {
    value.lock().unwrap_or_else(PoisonError::into_inner)
}
