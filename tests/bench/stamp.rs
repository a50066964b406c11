//! The command of the benchmark: this program again, saying by the clock when it starts and ends.
//!
//! It talks over a socket, so that neither side polls a file, and so that the time at which it ends
//! is ours to choose.

use std::{
    ffi::OsStr,
    io::{BufRead, BufReader, Read, Write},
    net::Shutdown,
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    time::Duration,
};

use nix::{
    sys::socket::{getsockopt, sockopt::PeerCredentials},
    time::{ClockId, clock_gettime},
};

use crate::wait::{LIMIT, wait_until};

/// The first argument that makes this program the command; the second is the socket.
pub(crate) const WORD: &str = "stamp";

/// Is the command: says when it has started, waits to be let go, and says when it ends.
pub(crate) fn run(socket: &Path) {
    let started = Stamp::now();
    let mut stream = UnixStream::connect(socket).expect("connect to the benchmark");
    stream
        .write_all(started.line().as_bytes())
        .expect("tell the benchmark of the start");
    // Also when the benchmark is no more.
    let _ = stream.read(&mut [0]);
    let ended = Stamp::now();
    let _ = stream.write_all(ended.line().as_bytes());
}

/// One moment on two clocks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stamp {
    monotonic: Duration,
    /// Since the epoch.
    pub(crate) wall: Duration,
}

impl Stamp {
    pub(crate) fn now() -> Self {
        let read = |clock| {
            clock_gettime(clock)
                .expect("the kernel has this clock")
                .into()
        };
        Self {
            monotonic: read(ClockId::CLOCK_MONOTONIC),
            wall: read(ClockId::CLOCK_REALTIME),
        }
    }

    /// How much later than `earlier` it is.
    pub(crate) fn since(self, earlier: Self) -> Duration {
        let since = self.monotonic.checked_sub(earlier.monotonic);
        since.expect("two commands that run at once would be a defect")
    }

    fn line(self) -> String {
        format!("{} {}\n", self.monotonic.as_nanos(), self.wall.as_nanos())
    }

    fn parse(line: &str) -> Option<Self> {
        let (monotonic, wall) = line.trim_end().split_once(' ')?;
        Some(Self {
            monotonic: Duration::from_nanos(monotonic.parse().ok()?),
            wall: Duration::from_nanos(wall.parse().ok()?),
        })
    }
}

/// Where commands report.
pub(crate) struct Stamps {
    socket: PathBuf,
    listener: UnixListener,
}

impl Stamps {
    /// Listens on a socket of this name; each listener hears the commands that were given it alone.
    pub(crate) fn listen(directory: &Path, name: &str) -> Self {
        let socket = directory.join(name);
        let listener = UnixListener::bind(&socket).expect("listen in a directory of our own");
        // So that waiting has a limit.
        listener
            .set_nonblocking(true)
            .expect("a socket can be made not to block");
        Self { socket, listener }
    }

    /// The command's words after the program's name.
    pub(crate) fn arguments(&self) -> [&OsStr; 2] {
        [WORD.as_ref(), self.socket.as_os_str()]
    }

    /// Waits until the next command has started.
    pub(crate) fn next(&self) -> Running {
        let stream = wait_until("a command has started", LIMIT, || {
            self.listener.accept().ok().map(|(stream, _)| stream)
        });
        stream
            .set_nonblocking(false)
            .expect("a socket can be made to block");
        let mut stream = BufReader::new(stream);
        let started = read_stamp(&mut stream);
        Running { stream, started }
    }
}

/// A command that runs until it is let go. Dropping it lets it go as well.
#[must_use]
pub(crate) struct Running {
    stream: BufReader<UnixStream>,
    started: Stamp,
}

impl Running {
    pub(crate) fn started(&self) -> Stamp {
        self.started
    }

    /// Its process.
    pub(crate) fn pid(&self) -> i32 {
        let peer = getsockopt(self.stream.get_ref(), PeerCredentials);
        peer.expect("a connected socket has a peer").pid()
    }

    /// Lets the command end, and returns when it did.
    pub(crate) fn end(mut self) -> Stamp {
        let let_go = self.stream.get_ref().shutdown(Shutdown::Write);
        let_go.expect("a command that nobody killed is connected");
        read_stamp(&mut self.stream)
    }
}

fn read_stamp(stream: &mut BufReader<UnixStream>) -> Stamp {
    let mut line = String::new();
    stream
        .read_line(&mut line)
        .expect("a command says what time it is");
    Stamp::parse(&line).unwrap_or_else(|| panic!("a command said {line:?}"))
}
