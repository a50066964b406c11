//! Server processes that never outlive the test process, however it ends.

use std::fs::{self, File};
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

use crate::wait::{LIMIT, try_wait_until, wait_until};

/// A directory and a process group for servers, which are both gone after the group is dropped. When
/// the test process ends otherwise, the janitor ends the servers.
///
/// The group is that of an *anchor*, which only has to exist, and ends with the test process.
pub(crate) struct ServerGroup {
    directory: PathBuf,
    anchor: Child,
}

impl ServerGroup {
    /// Makes a new directory, and an empty group.
    pub(crate) fn new() -> Self {
        let directory = tempfile::Builder::new()
            .prefix("lease-exec-control-plane-")
            .tempdir()
            .expect("make a temporary directory")
            .keep();
        let anchor = Command::new("cat")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .process_group(0)
            .spawn()
            .expect("start the anchor");
        Self { directory, anchor }
    }

    /// The directory for all that servers and tests write.
    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// The process group of the servers.
    pub(crate) fn pid(&self) -> Pid {
        pid(&self.anchor)
    }

    /// Starts a server in the group. Its output goes to `NAME.log` in the directory.
    pub(crate) fn start(&self, name: &str, command: &mut Command) -> Server {
        let log = self.directory.join(format!("{name}.log"));
        let output = File::options()
            .create(true)
            .append(true)
            .open(&log)
            .unwrap_or_else(|err| panic!("failed to open {}: {err}", log.display()));
        let child = command
            .current_dir(&self.directory)
            .stdin(Stdio::null())
            .stdout(output.try_clone().expect("duplicate a descriptor"))
            .stderr(output)
            .process_group(self.pid().as_raw())
            .spawn()
            .unwrap_or_else(|err| panic!("failed to start {name}: {err}"));
        Server {
            name: name.into(),
            child,
            log,
        }
    }
}

impl Drop for ServerGroup {
    fn drop(&mut self) {
        // Nothing to do about an error: this may be unwinding from a panic already. SIGKILL takes
        // effect a little later than the call returns, and until then a server may make files.
        let _ = killpg(self.pid(), Signal::SIGKILL);
        let _ = self.anchor.wait();
        let _ = try_wait_until(LIMIT, || fs::remove_dir_all(&self.directory).ok());
    }
}

/// A server process, killed when it is dropped.
pub(crate) struct Server {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Server {
    /// The server's process.
    pub(crate) fn pid(&self) -> Pid {
        pid(&self.child)
    }

    /// Whether the process is still there; a stopped one is.
    pub(crate) fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Stops the process with SIGSTOP: it keeps its connections and answers nothing.
    pub(crate) fn stop(&mut self) {
        self.signal(Signal::SIGSTOP);
    }

    /// Lets a stopped process continue.
    pub(crate) fn resume(&mut self) {
        self.signal(Signal::SIGCONT);
    }

    /// Asks the process to end, and waits until it has.
    pub(crate) fn terminate(&mut self) {
        self.signal(Signal::SIGTERM);
        wait_until(format!("{} ends", self.name), LIMIT * 3, || {
            (!self.is_running()).then_some(())
        });
    }

    /// Kills the process, stopped or not, and waits for its end.
    pub(crate) fn kill(&mut self) {
        // Both fail only if the process has ended and been waited for, which is what we want.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// All that the server has written.
    pub(crate) fn log(&self) -> String {
        // A log that is gone with its directory is as good as an empty one.
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// The last lines of the log, to be shown when something went wrong.
    pub(crate) fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        let tail = &lines[lines.len().saturating_sub(30)..];
        format!("the last lines of {}:\n{}", self.name, tail.join("\n"))
    }

    fn signal(&mut self, signal: Signal) {
        // Once we know of its end, the pid may be somebody else's.
        assert!(
            self.is_running(),
            "{} has ended; {}",
            self.name,
            self.log_tail()
        );
        kill(self.pid(), signal)
            .unwrap_or_else(|err| panic!("failed to send {signal} to {}: {err}", self.name));
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Finds a port on which nobody listens.
///
/// Not one that the kernel chooses: it takes those, by default from 32768 up, for outgoing
/// connections too, and a server must find its port free again after a restart.
pub(crate) fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    const FIRST: u16 = 10_000;
    const COUNT: u16 = 20_000;
    // Test processes that run at once begin at different places.
    let start = u16::try_from(std::process::id().wrapping_mul(97) % u32::from(COUNT))
        .expect("less than COUNT");
    for _ in 0..COUNT {
        let offset = (start + NEXT.fetch_add(1, Ordering::Relaxed) % COUNT) % COUNT;
        let port = FIRST + offset;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("all ports are in use");
}

fn pid(child: &Child) -> Pid {
    Pid::from_raw(i32::try_from(child.id()).expect("the kernel's pids fit"))
}
