//! The only way from one holder to the API server, which can be held up and shut.
//!
//! Must not: look into what is encrypted. It tells a write from a read by its size.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

/// A proxy to a server on this machine. Its threads end with the program.
pub(crate) struct Gate {
    port: u16,
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    /// How many chunks have been passed on while the rest was shut.
    late: AtomicU64,
}

/// In the order in which it may happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Open,
    /// The next write passes, and no answer from then on.
    Armed,
    /// Requests pass, and answers wait here.
    Held,
    /// The answers that waited pass, and requests vanish.
    Late,
    /// Connections stay, and nothing passes.
    Shut,
}

impl Gate {
    /// Opens a gate to the server on this port.
    pub(crate) fn open(server: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
        let port = listener
            .local_addr()
            .expect("a listener has an address")
            .port();
        let shared = Arc::new(Shared {
            state: Mutex::new(State::Open),
            late: AtomicU64::new(0),
        });
        let accepting = Arc::clone(&shared);
        thread::spawn(move || {
            for client in listener.incoming() {
                let client = client.expect("a connection can be accepted");
                let Ok(server) = TcpStream::connect((Ipv4Addr::LOCALHOST, server)) else {
                    continue;
                };
                accepting.connect(client, server);
            }
        });
        Self { port, shared }
    }

    /// The port on 127.0.0.1.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// From the next write on, keeps every answer waiting.
    pub(crate) fn hold_answers_from_the_next_write(&self) {
        *self.shared.state() = State::Armed;
    }

    /// Whether a write has passed whose answer waits.
    pub(crate) fn is_holding(&self) -> bool {
        *self.shared.state() == State::Held
    }

    /// Lets the answers that wait pass, and nothing after them.
    pub(crate) fn shut_after_what_waits(&self) {
        *self.shared.state() = State::Late;
        // The pumps look every millisecond; what waits is on this machine already.
        let mut passed = None;
        while passed != Some(self.shared.late.load(Ordering::SeqCst)) {
            passed = Some(self.shared.late.load(Ordering::SeqCst));
            thread::sleep(LATE);
        }
        self.shut();
    }

    /// Lets nothing pass, in either direction; nobody is told.
    pub(crate) fn shut(&self) {
        *self.shared.state() = State::Shut;
    }
}

impl Shared {
    fn connect(self: &Arc<Self>, client: TcpStream, server: TcpStream) {
        let clone = |stream: &TcpStream| stream.try_clone().expect("a socket can be duplicated");
        for stream in [&client, &server] {
            stream
                .set_nodelay(true)
                .expect("a socket can be told not to wait");
        }
        let (upward, downward) = (Arc::clone(self), Arc::clone(self));
        let (from, to) = (clone(&client), clone(&server));
        thread::spawn(move || upward.pump(from, to, Self::request_passes));
        thread::spawn(move || downward.pump(server, client, Self::answer_passes));
    }

    /// Moves what may pass until an end goes away. While the gate is shut neither end learns of the
    /// other's.
    fn pump(&self, mut from: TcpStream, mut to: TcpStream, passes: fn(&Self, usize) -> bool) {
        let mut bytes = [0; 16 * 1024];
        while let Ok(count @ 1..) = from.read(&mut bytes) {
            if passes(self, count) && to.write_all(&bytes[..count]).is_err() {
                break;
            }
        }
        while *self.state() != State::Open {
            thread::sleep(PACE);
        }
        let _ = to.shutdown(std::net::Shutdown::Both);
    }

    fn request_passes(&self, bytes: usize) -> bool {
        let mut state = self.state();
        if *state == State::Armed && bytes >= SMALLEST_WRITE {
            *state = State::Held;
        }
        !matches!(*state, State::Late | State::Shut)
    }

    fn answer_passes(&self, _bytes: usize) -> bool {
        while *self.state() == State::Held {
            thread::sleep(PACE);
        }
        let state = *self.state();
        if state == State::Late {
            self.late.fetch_add(1, Ordering::SeqCst);
        }
        state != State::Shut
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How often a pump looks whether it may go on.
const PACE: Duration = Duration::from_millis(1);

/// Within this a waiting answer has passed, or there is none left.
const LATE: Duration = Duration::from_millis(50);

/// In bytes. A Lease that is written takes more in a connection that is in use: 700 as JSON, and 400 as
/// protobuf, in which today's client-go writes. A request without a body takes 40. The handshake is
/// over when the gate is armed.
const SMALLEST_WRITE: usize = 200;
