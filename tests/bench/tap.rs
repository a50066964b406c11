//! A way to etcd that notes when a client last sent something, because nothing else says when
//! etcdctl last renewed.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, Shutdown, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use crate::stamp::Stamp;

/// A forwarder to a port of this machine. Its threads end with the connections.
pub(crate) struct Tap {
    port: u16,
    /// In nanoseconds since the epoch.
    last_sent: Arc<AtomicU64>,
}

impl Tap {
    /// Starts one; it goes on accepting for as long as this program runs.
    pub(crate) fn to(server: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
        let address = listener.local_addr().expect("a listener has an address");
        let last_sent = Arc::new(AtomicU64::new(0));
        let noted = Arc::clone(&last_sent);
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let Ok(server) = TcpStream::connect((Ipv4Addr::LOCALHOST, server)) else {
                    continue;
                };
                for stream in [&client, &server] {
                    stream
                        .set_nodelay(true)
                        .expect("a TCP connection has this option");
                }
                let clone = |stream: &TcpStream| stream.try_clone().expect("descriptors are left");
                let (from, to) = (clone(&client), clone(&server));
                let noted = Arc::clone(&noted);
                thread::spawn(move || pass(from, to, Some(&noted)));
                thread::spawn(move || pass(server, client, None));
            }
        });
        Self {
            port: address.port(),
            last_sent,
        }
    }

    /// Where the client is to connect to.
    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// When the client last sent something, since the epoch.
    pub(crate) fn last_sent(&self) -> Duration {
        Duration::from_nanos(self.last_sent.load(Ordering::SeqCst))
    }
}

/// Passes one direction on until it ends.
fn pass(mut from: TcpStream, mut to: TcpStream, noted: Option<&AtomicU64>) {
    let mut buffer = [0; 16 << 10];
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        if let Some(noted) = noted {
            let now = u64::try_from(Stamp::now().wall.as_nanos());
            noted.store(now.expect("it is before the year 2554"), Ordering::SeqCst);
        }
        if to.write_all(&buffer[..length]).is_err() {
            break;
        }
    }
    // Either may be closed already.
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}
