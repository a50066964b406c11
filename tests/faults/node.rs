//! One node: an instance of lease-exec that is started again whenever it ends, as the kubelet does.

use std::{
    ffi::OsString,
    fs::{self, File},
    os::unix::process::{CommandExt, ExitStatusExt},
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    cgroup::{self, TestCgroup},
    network::Namespace,
    proxy::Link,
    tally,
    witness::{self, Shape},
};

/// A node, whose instance contends for one lease.
pub(crate) struct Node {
    pub(crate) number: usize,
    pub(crate) link: Link,
    pub(crate) namespace: Option<Namespace>,
    pub(crate) lease_duration: Duration,
    pub(crate) setup: Setup,
    child: Option<Child>,
    runs: usize,
    start_at: Instant,
}

/// What all instances of a node are started with.
pub(crate) struct Setup {
    pub(crate) lease: String,
    pub(crate) kubeconfig: PathBuf,
    pub(crate) cgroup: TestCgroup,
    pub(crate) directory: PathBuf,
    /// What the node has in the place of `/etc/hosts`, if not that of this machine.
    pub(crate) hosts: Option<PathBuf>,
    pub(crate) shape: Shape,
}

/// Between two runs of an instance.
const PAUSE: Duration = Duration::from_millis(400);

impl Node {
    pub(crate) fn new(
        number: usize,
        link: Link,
        namespace: Option<Namespace>,
        lease_duration: Duration,
        setup: Setup,
    ) -> Self {
        Self {
            number,
            link,
            namespace,
            lease_duration,
            setup,
            child: None,
            runs: 0,
            start_at: Instant::now(),
        }
    }

    /// Starts the instance if it is time to; if one has ended, returns how.
    pub(crate) fn tend(&mut self) -> Option<ExitStatus> {
        match &mut self.child {
            Some(child) => {
                let status = child.try_wait().expect("a child can be waited for")?;
                self.child = None;
                self.start_at = Instant::now() + PAUSE;
                Some(status)
            }
            None => {
                if Instant::now() >= self.start_at {
                    self.start();
                }
                None
            }
        }
    }

    /// The front process, while it runs.
    pub(crate) fn front(&self) -> Option<i32> {
        let child = self.child.as_ref()?;
        Some(i32::try_from(child.id()).expect("a pid is an i32"))
    }

    /// What the newest instance has said so far.
    pub(crate) fn messages(&self) -> String {
        let text = fs::read(self.message_file(self.runs)).unwrap_or_default();
        String::from_utf8_lossy(&text).into_owned()
    }

    fn message_file(&self, run: usize) -> PathBuf {
        let name = format!("node-{}-run-{run}", self.number);
        self.setup.directory.join(name)
    }

    fn start(&mut self) {
        self.runs += 1;
        let messages = File::create(self.message_file(self.runs)).expect("a file can be made");
        let Setup { shape, .. } = &self.setup;
        let words = self.words();
        let mut command = Command::new(&words[0]);
        cgroup::begin_in(self.setup.cgroup.path(), &mut command);
        let child = command
            .args(&words[1..])
            .env(witness::NODE, self.number.to_string())
            .env(witness::SHAPE, shape.name())
            .stdin(Stdio::null())
            .stdout(messages.try_clone().expect("it can be duplicated"))
            .stderr(messages)
            .process_group(0)
            .spawn();
        self.child = Some(child.expect("lease-exec can be started"));
    }

    fn words(&self) -> Vec<OsString> {
        let mut words: Vec<OsString> = Vec::new();
        if let Some(namespace) = &self.namespace {
            // Not `ip netns exec`, which mounts another /sys.
            words.push("nsenter".into());
            words.push(format!("--net=/run/netns/{}", namespace.name).into());
        }
        if let Some(hosts) = &self.setup.hosts {
            let script = "mount --bind \"$1\" /etc/hosts && shift && exec \"$@\"";
            words.extend(["unshare", "--mount", "sh", "-c", script, "sh"].map(OsString::from));
            words.push(hosts.into());
        }
        words.push(env!("CARGO_BIN_EXE_lease-exec").into());
        let identity = format!("node-{}", self.number);
        let duration = format!("{}s", self.lease_duration.as_secs());
        for word in ["-v", "--lease", &self.setup.lease, "--identity", &identity] {
            words.push(word.into());
        }
        words.extend(["--lease-duration".into(), duration.into()]);
        words.extend(["--kubeconfig".into(), self.setup.kubeconfig.clone().into()]);
        words.push("--".into());
        let own = std::env::current_exe().expect("a program knows its file");
        words.extend([own.into(), witness::WORD.into(), "root".into()]);
        words.push(self.setup.directory.clone().into());
        words
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.setup.cgroup.kill();
        if let Some(child) = &mut self.child {
            let _ = child.wait();
        }
    }
}

/// Sends a process a signal, and counts it if it was there to get it.
pub(crate) fn signal(pid: i32, signal: Signal, fault: &'static str) -> bool {
    let is_sent = kill(Pid::from_raw(pid), signal).is_ok();
    if is_sent {
        tally::count(fault);
    }
    is_sent
}

/// The guard above a command, if it is still there.
pub(crate) fn guard_of(command: i32) -> Option<i32> {
    let stat = fs::read_to_string(format!("/proc/{command}/stat")).ok()?;
    let parent = stat.rsplit(") ").next()?.split(' ').nth(1)?;
    let name = fs::read_to_string(format!("/proc/{parent}/comm")).ok()?;
    if name.trim_end() != "lease-guard" {
        return None;
    }
    parent.parse().ok()
}

/// How an instance ended, in words.
pub(crate) fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("code {code}"),
        (None, signal) => format!("signal {}", signal.unwrap_or(0)),
    }
}
