//! Messages: one line on stderr per change of state.
//!
//! A reader of our stderr that stops reading, or goes away, must never stop us: a holder whose
//! message waits for a full pipe renews no more, and `eprintln!` panics on a closed one. So lines
//! go through a bounded queue to a thread of their own, and are dropped when the queue is full.
//!
//! Must not: be used before the guard is forked (it starts a thread).

use std::{
    io::{self, IsTerminal, Write},
    sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    thread,
    time::Duration,
};

use anyhow::Context;
use tracing::{Level, error, info};
use tracing_subscriber::{
    Layer,
    filter::Targets,
    fmt::{MakeWriter, layer},
    layer::SubscriberExt,
    registry,
};

use crate::{
    cli::{LogFormat, Verbosity},
    driver::Ending,
    exit::Exit,
    lease::one_line,
};

/// How many lines may wait for a slow reader.
const QUEUE: usize = 1024;

/// How long the end of the program waits for a slow reader. Nothing of the command runs and the
/// lease is released by then.
const FLUSH: Duration = Duration::from_millis(500);

/// The log of this process.
#[derive(Debug)]
pub struct Log {
    lines: SyncSender<Line>,
}

enum Line {
    Text(Vec<u8>),
    /// Acknowledged once all lines before it are written.
    Flush(SyncSender<()>),
}

impl Log {
    /// Starts the thread that writes, and takes all of `tracing`'s events from here on.
    ///
    /// # Errors
    ///
    /// The thread can't be started, or a log was started before.
    pub fn start(format: LogFormat, verbosity: Verbosity) -> anyhow::Result<Self> {
        let (lines, queue) = sync_channel(QUEUE);
        thread::Builder::new()
            .name("log".to_owned())
            .spawn(move || write_all(&queue))
            .context("can't start the thread that writes messages")?;
        let writer = Queue(lines.clone());
        let layer = match format {
            LogFormat::Text => layer()
                .with_target(false)
                .with_ansi(wants_colour())
                .with_writer(writer)
                .boxed(),
            LogFormat::Json => layer()
                .json()
                .flatten_event(true)
                .with_target(false)
                .with_writer(writer)
                .boxed(),
        };
        let subscriber = registry().with(layer.with_filter(targets(verbosity)));
        tracing::subscriber::set_global_default(subscriber).context("can't take the messages")?;
        Ok(Self { lines })
    }

    /// Says how it ended, unless the exit code is the command's, and waits until all is written, but
    /// not for long.
    pub fn finish(self, ending: &Ending, lease: &str) {
        let code = ending.exit.code();
        let message = ending.message.as_deref().unwrap_or("");
        match ending.exit {
            Exit::Command(_) | Exit::Signal(_) => {}
            // What is to be expected is no error.
            Exit::Conflict(_) => info!(%lease, "exiting with {code}: {message}"),
            _ => error!(%lease, "exiting with {code}: {message}"),
        }
        let (done, written) = sync_channel(1);
        if self.lines.try_send(Line::Flush(done)).is_ok() {
            // A reader that does not read keeps its lines; we do not wait for it.
            let _ = written.recv_timeout(FLUSH);
        }
    }
}

/// The one error of a program that ends before its log has begun.
pub fn error_line(format: LogFormat, message: &str) -> String {
    match format {
        LogFormat::Text => format!("lease-exec: {}", one_line(message)),
        LogFormat::Json => serde_json::json!({ "level": "ERROR", "message": message }).to_string(),
    }
}

fn targets(verbosity: Verbosity) -> Targets {
    match verbosity {
        Verbosity::Quiet => Targets::new().with_target("lease_exec", Level::WARN),
        Verbosity::Normal => Targets::new().with_target("lease_exec", Level::INFO),
        Verbosity::Verbose => Targets::new().with_target("lease_exec", Level::DEBUG),
        Verbosity::Trace => Targets::new()
            .with_target("lease_exec", Level::TRACE)
            .with_default(Level::DEBUG),
    }
}

/// Colours are for people who look at a terminal and have not declined them (no-color.org).
fn wants_colour() -> bool {
    io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

fn write_all(queue: &Receiver<Line>) {
    let mut stderr = io::stderr();
    while let Ok(line) = queue.recv() {
        match line {
            // A closed or hung-up stderr: the line is lost, and we go on.
            Line::Text(text) => drop(stderr.write_all(&text)),
            Line::Flush(done) => drop(done.send(())),
        }
    }
}

/// Writes each event into the queue; `tracing_subscriber::fmt` hands it over in one piece.
#[derive(Clone)]
struct Queue(SyncSender<Line>);

impl Write for Queue {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        match self.0.try_send(Line::Text(text.to_vec())) {
            Ok(()) | Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => Ok(text.len()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Queue {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}
