//! lease-exec and its peers: how each is started on a lease or lock of its own.

use std::{
    env,
    ffi::{OsStr, OsString},
    fs::{self, File},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill, killpg},
    unistd::Pid,
};
use serde_json::Value;
use tempfile::TempDir;

use crate::{
    control_plane::{ControlPlane, User},
    stamp::Stamps,
    wait::{LIMIT, wait_until},
    world::LEASE,
};

/// Who is compared; in this order they take turns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Contender {
    /// lease-exec on an API server.
    Kube,
    /// `tests/client-go` on that API server: client-go's election, with ReleaseOnCancel.
    ClientGo,
    /// `etcdctl lock` on that API server's etcd, with neither TLS nor an API server in between.
    Etcdctl,
    /// lease-exec on the file store.
    File,
    /// `flock` on a file.
    Flock,
}

impl Contender {
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Kube => "lease-exec, Kubernetes",
            Self::ClientGo => "client-go wrapper",
            Self::Etcdctl => "etcdctl lock",
            Self::File => "lease-exec, file store",
            Self::Flock => "flock",
        }
    }

    /// Whether its standby says, where it is asked to say everything, when it saw a renewal.
    pub(crate) fn says_seen(self) -> bool {
        matches!(self, Self::Kube | Self::File)
    }

    /// Whether what it holds runs out when it stops renewing. The kernel drops a dead process' lock.
    pub(crate) fn has_expiry(self) -> bool {
        self != Self::Flock
    }

    /// Whether it passes SIGTERM on to its command. `etcdctl lock` takes it and goes on; flock dies of
    /// it, but its command keeps the lock.
    pub(crate) fn forwards_sigterm(self) -> bool {
        matches!(self, Self::Kube | Self::ClientGo | Self::File)
    }

    /// Whether it sends requests to the API server.
    pub(crate) fn asks_api_server(self) -> bool {
        matches!(self, Self::Kube | Self::ClientGo)
    }

    /// Whether its standby polls, so that a hand-over takes seconds.
    pub(crate) fn polls(self) -> bool {
        self == Self::ClientGo
    }

    /// Its processes, parents first.
    pub(crate) fn processes(self) -> &'static [&'static str] {
        match self {
            Self::Kube | Self::File => &["front", "guard"],
            Self::ClientGo => &["client-go-wrapper"],
            Self::Etcdctl => &["etcdctl"],
            Self::Flock => &["flock"],
        }
    }
}

/// What they contend on.
pub(crate) struct Ground {
    // Dropped last: it holds what the others write.
    control_plane: ControlPlane,
    kubeconfig: PathBuf,
    directory: TempDir,
    instances: AtomicU32,
}

impl Ground {
    /// Starts the servers.
    pub(crate) fn prepare() -> Self {
        let control_plane = ControlPlane::start();
        let kubeconfig = control_plane.kubeconfig(User::Admin);
        let directory = TempDir::new().expect("a temporary directory can be made");
        fs::create_dir(directory.path().join(STORE)).expect("the store's directory can be made");
        Self {
            control_plane,
            kubeconfig,
            directory,
            instances: AtomicU32::new(0),
        }
    }

    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// All whose programs are there; a directory given by KUBEBUILDER_ASSETS may lack some.
    pub(crate) fn contenders(&self) -> Vec<Contender> {
        let all = [
            Contender::Kube,
            Contender::ClientGo,
            Contender::Etcdctl,
            Contender::File,
            Contender::Flock,
        ];
        let is_there = |contender: &Contender| {
            let is_there = self.program(*contender).exists();
            if !is_there {
                println!(
                    "left out, as there is no such program: {}",
                    contender.name()
                );
            }
            is_there
        };
        all.into_iter().filter(is_there).collect()
    }

    /// The contender's program file.
    pub(crate) fn program(&self, contender: Contender) -> PathBuf {
        match contender {
            Contender::Kube | Contender::File => env!("CARGO_BIN_EXE_lease-exec").into(),
            Contender::ClientGo => {
                let wrapper = ControlPlane::client_go_wrapper();
                wrapper.unwrap_or_else(|| "client-go-wrapper".into())
            }
            Contender::Etcdctl => self.control_plane.etcdctl().get_program().into(),
            Contender::Flock => flock(),
        }
    }

    /// What the programs and servers say that they are.
    pub(crate) fn versions(&self) -> Vec<String> {
        let output = |mut command: Command, argument: &str| {
            let output = command.arg(argument).output().ok()?;
            let text = String::from_utf8(output.stdout).ok()?;
            Some(text.lines().collect::<Vec<_>>().join(", "))
        };
        let (_, server) = self.control_plane.raw(http::Method::GET, "/version", None);
        let server = server["gitVersion"]
            .as_str()
            .unwrap_or("of unknown version");
        let own = Command::new(env!("CARGO_BIN_EXE_lease-exec"));
        [
            output(own, "--version"),
            Some(format!("kube-apiserver {server}")),
            output(self.control_plane.etcdctl(), "version"),
            output(Command::new(flock()), "--version"),
        ]
        .into_iter()
        .flatten()
        .collect()
    }

    /// The API server.
    pub(crate) fn control_plane(&self) -> &ControlPlane {
        &self.control_plane
    }

    /// A contender that runs `argv`. Without a lease duration it takes its own default.
    pub(crate) fn command<'a>(
        &self,
        contender: Contender,
        lease: Option<Duration>,
        argv: impl IntoIterator<Item = &'a OsStr>,
    ) -> Command {
        let mut command = match contender {
            Contender::Etcdctl => self.control_plane.etcdctl(),
            _ => Command::new(self.program(contender)),
        };
        match contender {
            Contender::Kube => {
                let kubeconfig = ["--kubeconfig".as_ref(), self.kubeconfig.as_os_str()];
                command.args(["--lease", LEASE]).args(kubeconfig);
            }
            Contender::File => {
                let mut store = OsString::from("file:");
                store.push(self.directory().join(STORE));
                let store = ["--store".as_ref(), store.as_os_str()];
                command.args(["--lease", LEASE]).args(store);
            }
            Contender::ClientGo => {
                let kubeconfig = ["-kubeconfig".as_ref(), self.kubeconfig.as_os_str()];
                command.args(kubeconfig).arg("-release-on-cancel");
                command.args(["-lease", CLIENT_GO_LEASE]);
            }
            Contender::Etcdctl => {
                command.args(["lock", LEASE]);
            }
            Contender::Flock => {
                command.arg(self.directory().join("flock"));
            }
        }
        if let Some(lease) = lease {
            let seconds = lease.as_secs();
            match contender {
                Contender::Kube | Contender::File => {
                    command.args(["--lease-duration", &format!("{seconds}s")]);
                }
                // In the proportions of its defaults, which are lease-exec's too.
                Contender::ClientGo => {
                    for (option, share) in [("duration", 15), ("renew", 10), ("retry", 2)] {
                        let milliseconds = seconds * 1000 * share / 15;
                        command.arg(format!("-{option}={milliseconds}ms"));
                    }
                }
                Contender::Etcdctl => {
                    command.arg(format!("--ttl={seconds}"));
                }
                // A lock has none.
                Contender::Flock => {}
            }
        }
        if contender != Contender::Flock {
            command.arg("--");
        }
        command.args(argv);
        command
    }

    /// Starts a contender with the command that tells the time.
    pub(crate) fn start(
        &self,
        contender: Contender,
        lease: Option<Duration>,
        stamps: &Stamps,
    ) -> Instance {
        self.start_changed(contender, lease, stamps, |_| {})
    }

    /// The same with another option or variable.
    pub(crate) fn start_changed(
        &self,
        contender: Contender,
        lease: Option<Duration>,
        stamps: &Stamps,
        change: impl FnOnce(&mut Command),
    ) -> Instance {
        let own = env::current_exe().expect("this program has a path");
        let argv = [own.as_os_str()].into_iter().chain(stamps.arguments());
        let mut command = self.command(contender, lease, argv);
        change(&mut command);
        let number = self.instances.fetch_add(1, Ordering::Relaxed);
        let stderr = self.directory().join(format!("stderr-{number}"));
        silence(&mut command);
        let child = command
            .stderr(File::create(&stderr).expect("an output file can be made"))
            .process_group(0)
            .spawn()
            .unwrap_or_else(|err| panic!("failed to start {command:?}: {err}"));
        Instance { child, stderr }
    }

    /// Whether these instances wait for another one, and no others do.
    pub(crate) fn are_waiting(&self, contender: Contender, standbys: &[Instance]) -> bool {
        let all_say = |words| standbys.iter().all(|one| one.stderr().contains(words));
        match contender {
            Contender::Kube | Contender::File => all_say("somebody else holds the lease"),
            Contender::ClientGo => all_say("holds the lease"),
            // Each has a key of its own below the lock's name, and so has the holder.
            Contender::Etcdctl => {
                let mut etcdctl = self.control_plane.etcdctl();
                etcdctl.args(["get", "--prefix", "--keys-only", LEASE]);
                let output = etcdctl.output().expect("etcdctl has been started before");
                let keys = String::from_utf8_lossy(&output.stdout);
                keys.lines().filter(|key| !key.is_empty()).count() == standbys.len() + 1
            }
            // See proc_locks(5).
            Contender::Flock => {
                let locks = fs::read_to_string("/proc/locks").expect("the kernel tells of locks");
                let waits = |one: &Instance| {
                    locks.contains(&format!("-> FLOCK  ADVISORY  WRITE {} ", one.pid()))
                };
                standbys.iter().all(waits)
            }
        }
    }

    /// The port of the API server's etcd.
    pub(crate) fn etcd_port(&self) -> u16 {
        let url = self.control_plane.etcd_url();
        let port = url.rsplit(':').next().and_then(|port| port.parse().ok());
        port.expect("the URL ends with a port")
    }

    /// The contender's Lease on the API server.
    pub(crate) fn lease_of(&self, contender: Contender) -> &'static str {
        match contender {
            Contender::ClientGo => CLIENT_GO_LEASE,
            _ => LEASE,
        }
    }

    /// When the record says that it was last renewed, since the epoch.
    pub(crate) fn renewed_at(&self, contender: Contender) -> Option<Duration> {
        let lease = match contender {
            Contender::Kube | Contender::ClientGo => {
                let lease = self.lease_of(contender);
                self.control_plane.get_lease("default", lease)?
            }
            Contender::File => {
                let path = self.directory().join(STORE).join("default");
                let text = fs::read(path.join(format!("{LEASE}.json"))).ok()?;
                serde_json::from_slice::<Value>(&text).ok()?
            }
            Contender::Etcdctl | Contender::Flock => return None,
        };
        let time: jiff::Timestamp = lease["spec"]["renewTime"].as_str()?.parse().ok()?;
        let nanoseconds = u64::try_from(time.as_nanosecond()).ok()?;
        Some(Duration::from_nanos(nanoseconds))
    }
}

/// A contender, running. Dropping it kills it.
pub(crate) struct Instance {
    child: Child,
    stderr: PathBuf,
}

impl Instance {
    pub(crate) fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).expect("a pid is an i32")
    }

    /// Sends SIGTERM to it; where it would not pass that on, to its command as well, which is in its
    /// process group.
    pub(crate) fn terminate(&self, contender: Contender) {
        let pid = Pid::from_raw(self.pid());
        let sent = match contender.forwards_sigterm() {
            true => kill(pid, Signal::SIGTERM),
            false => killpg(pid, Signal::SIGTERM),
        };
        sent.expect("a child that was not waited for has a pid");
    }

    /// Waits until it has ended.
    pub(crate) fn wait(mut self) {
        wait_until("a contender has ended", LIMIT, || {
            self.child.try_wait().expect("a child can be waited for")
        });
    }

    /// What it has said.
    pub(crate) fn stderr(&self) -> String {
        fs::read_to_string(&self.stderr).unwrap_or_default()
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        // It has mostly ended already; otherwise nothing of it stays.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Keeps a program's words out of the tables.
pub(crate) fn silence(command: &mut Command) {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
}

/// util-linux's, from PATH.
fn flock() -> PathBuf {
    let path = env::var_os("PATH").unwrap_or_default();
    let mut programs = env::split_paths(&path).map(|directory| directory.join("flock"));
    let found = programs.find(|program| program.exists());
    found.unwrap_or_else(|| "flock".into())
}

/// It has a lease of its own, so that nobody finds what another has left.
const CLIENT_GO_LEASE: &str = "client-go";

/// The file store's directory, below the ground's.
const STORE: &str = "store";
