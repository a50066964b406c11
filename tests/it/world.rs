//! One lease, somewhere, and the instances of lease-exec that contend for it.

use std::{
    ffi::{OsStr, OsString},
    fs,
    os::unix::process::{CommandExt, ExitStatusExt},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use nix::{
    sys::signal::{Signal, kill, killpg},
    unistd::Pid,
};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    cgroup::{self, TestCgroup},
    control_plane::{ControlPlane, User},
    wait::{LIMIT, wait_until},
};

/// The lease's name in every world.
pub(crate) const LEASE: &str = "demo";

/// A place for one lease, with a directory for what the instances leave behind.
///
/// Instances start in a cgroup of its own, where one can be made: each ends what dead ones have left in
/// its cgroup, and says so.
pub(crate) struct World<'a> {
    // Dropped first: that kills all in it.
    cgroup: Option<TestCgroup>,
    directory: TempDir,
    place: Place<'a>,
    instances: AtomicU32,
}

enum Place<'a> {
    File,
    Kube {
        control_plane: &'a ControlPlane,
        kubeconfig: PathBuf,
        namespace: String,
    },
}

impl World<'static> {
    /// A world whose lease is a file.
    pub(crate) fn on_files() -> Self {
        let world = Self::new(Place::File);
        fs::create_dir(world.store()).expect("the store's directory can be made");
        world
    }

    /// A world in a namespace of its own of the shared control plane.
    pub(crate) fn on_kubernetes() -> Self {
        Self::on(ControlPlane::shared())
    }
}

impl<'a> World<'a> {
    /// A world in a namespace of its own.
    pub(crate) fn on(control_plane: &'a ControlPlane) -> Self {
        static NAMESPACES: AtomicU32 = AtomicU32::new(0);
        let number = NAMESPACES.fetch_add(1, Ordering::Relaxed);
        let namespace = format!("world-{number}");
        control_plane.create_namespace(&namespace);
        let kubeconfig = control_plane.kubeconfig_at(&control_plane.url(), &namespace, User::Admin);
        Self::new(Place::Kube {
            control_plane,
            kubeconfig,
            namespace,
        })
    }

    fn new(place: Place<'a>) -> Self {
        let directory = TempDir::new().expect("a temporary directory can be made");
        fs::write(directory.path().join("witness"), WITNESS).expect("the witness can be written");
        fs::write(directory.path().join("log"), "").expect("the log can be written");
        Self {
            cgroup: TestCgroup::try_version_2(),
            directory,
            place,
            instances: AtomicU32::new(0),
        }
    }

    /// The directory for whatever a test wants to keep.
    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    /// The file store's directory.
    pub(crate) fn store(&self) -> PathBuf {
        self.path().join("store")
    }

    /// The lease's namespace.
    pub(crate) fn namespace(&self) -> &str {
        match &self.place {
            Place::File => "default",
            Place::Kube { namespace, .. } => namespace,
        }
    }

    /// lease-exec with this world's lease; what it runs is still to be said.
    pub(crate) fn lease_exec(&self) -> Invocation {
        self.lease_exec_at(env!("CARGO_BIN_EXE_lease-exec"))
    }

    /// The same with lease-exec as it was built for something else than the tests.
    pub(crate) fn lease_exec_at(&self, program: impl AsRef<OsStr>) -> Invocation {
        let invocation = self.program(program).args(["--lease", LEASE]);
        match &self.place {
            Place::File => {
                let mut store = OsString::from("file:");
                store.push(self.store());
                invocation.args([OsStr::new("--store"), &store])
            }
            Place::Kube { kubeconfig, .. } => {
                invocation.args([OsStr::new("--kubeconfig"), kubeconfig.as_os_str()])
            }
        }
    }

    /// lease-exec without any arguments.
    pub(crate) fn invocation(&self) -> Invocation {
        self.program(env!("CARGO_BIN_EXE_lease-exec"))
    }

    /// Another program, which is to start lease-exec.
    pub(crate) fn program(&self, program: impl AsRef<OsStr>) -> Invocation {
        let mut command = Command::new(program);
        command.stdin(Stdio::null());
        let number = self.instances.fetch_add(1, Ordering::Relaxed);
        Invocation {
            command,
            cgroup: self.cgroup.as_ref().map(|cgroup| cgroup.path().to_owned()),
            stdout: self.path().join(format!("stdout-{number}")),
            stderr: self.path().join(format!("stderr-{number}")),
        }
    }

    /// Has a command start in this world's cgroup that is no [`Invocation`].
    pub(crate) fn take_in(&self, command: &mut Command) {
        if let Some(cgroup) = &self.cgroup {
            cgroup::begin_in(cgroup.path(), command);
        }
    }

    /// lease-exec with this world's lease and durations, running the witness.
    pub(crate) fn witness(&self, lease_duration: &str) -> Invocation {
        self.lease_exec()
            .args(["--lease-duration", lease_duration])
            .command([OsStr::new("sh"), self.path().join("witness").as_os_str()])
    }

    /// What the witnesses have written so far.
    pub(crate) fn log(&self) -> Log {
        Log::parse(&fs::read_to_string(self.path().join("log")).expect("the log can be read"))
    }

    /// Waits until so many witnesses have started, and returns the log.
    #[track_caller]
    pub(crate) fn wait_for_starts(&self, starts: usize) -> Log {
        self.wait_for_starts_within(starts, LIMIT)
    }

    /// The same with another limit.
    #[track_caller]
    pub(crate) fn wait_for_starts_within(&self, starts: usize, limit: Duration) -> Log {
        wait_until(format!("{starts} witnesses have started"), limit, || {
            let log = self.log();
            (log.runs.len() >= starts).then_some(log)
        })
    }

    /// The lease's object as it is stored.
    pub(crate) fn lease(&self) -> Option<Value> {
        match &self.place {
            Place::File => {
                let text = fs::read_to_string(self.lease_file()).ok()?;
                Some(serde_json::from_str(&text).expect("the stored lease is JSON"))
            }
            Place::Kube {
                control_plane,
                namespace,
                ..
            } => control_plane.get_lease(namespace, LEASE),
        }
    }

    /// The file that holds the lease.
    pub(crate) fn lease_file(&self) -> PathBuf {
        self.store().join("default").join(format!("{LEASE}.json"))
    }

    /// The holder as it is stored; empty if nobody holds the lease.
    pub(crate) fn holder(&self) -> String {
        let lease = self.lease().unwrap_or(Value::Null);
        let holder = lease["spec"]["holderIdentity"].as_str();
        holder.unwrap_or_default().to_owned()
    }

    /// When the stored record says that it was last renewed, in nanoseconds since the epoch.
    pub(crate) fn renewed_at(&self) -> u128 {
        let lease = self.lease().expect("the lease is stored");
        let text = lease["spec"]["renewTime"].as_str();
        let time: jiff::Timestamp = text
            .expect("the lease was renewed")
            .parse()
            .expect("renewTime is RFC 3339");
        u128::try_from(time.as_nanosecond()).expect("after 1970")
    }

    /// Waits until somebody holds the lease, and returns who.
    #[track_caller]
    pub(crate) fn wait_for_holder(&self) -> String {
        wait_until("somebody holds the lease", LIMIT, || {
            Some(self.holder()).filter(|holder| !holder.is_empty())
        })
    }

    /// Waits until the stored record is renewed once more.
    #[track_caller]
    pub(crate) fn wait_for_renewal(&self) {
        let before = self.renewed_at();
        wait_until("the lease is renewed", LIMIT, || {
            (self.renewed_at() != before).then_some(())
        });
    }

    /// Edits the stored object by hand, whoever holds it, and returns it as it is then stored.
    pub(crate) fn edit(&self, edit: impl Fn(&mut Value)) -> Value {
        wait_until("an edit meets no conflict", LIMIT, || {
            let mut lease = self.lease()?;
            edit(&mut lease);
            let Place::Kube {
                control_plane,
                namespace,
                ..
            } = &self.place
            else {
                let draft = self.store().join("draft");
                fs::write(&draft, lease.to_string()).expect("a draft can be written");
                fs::rename(&draft, self.lease_file()).expect("the lease can be replaced");
                return Some(lease);
            };
            let path =
                format!("/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases/{LEASE}");
            match control_plane.raw(http::Method::PUT, &path, Some(lease)) {
                (200, lease) => Some(lease),
                (409, _) => None,
                (status, answer) => panic!("the edit was answered {status}: {answer}"),
            }
        })
    }

    /// Writes a foreign holder over whoever holds the lease, and returns what is then stored.
    pub(crate) fn steal(&self, holder: &str) -> Value {
        let Place::Kube {
            control_plane,
            namespace,
            ..
        } = &self.place
        else {
            return self.edit(|lease| lease["spec"]["holderIdentity"] = json!(holder));
        };
        let patch = json!({"spec": {"holderIdentity": holder}}).to_string();
        let output = control_plane.kubectl(
            &[
                "patch",
                "lease",
                LEASE,
                "-n",
                namespace,
                "--type=merge",
                "-o",
                "json",
                "-p",
                &patch,
            ],
            "",
        );
        assert!(output.status.success(), "{output:?}");
        serde_json::from_slice(&output.stdout).expect("kubectl prints JSON")
    }

    /// Deletes the lease.
    pub(crate) fn delete(&self) {
        match &self.place {
            Place::File => fs::remove_file(self.lease_file()).expect("the lease can be removed"),
            Place::Kube {
                control_plane,
                namespace,
                ..
            } => control_plane.delete_lease(namespace, LEASE),
        }
    }
}

/// A command of the tests' own that must be alone: it takes a lock without waiting, and says when
/// it starts and, every few hundredths of a second, that it is alive. Its children hold the lock
/// too.
const WITNESS: &str = r#"
cd "$(dirname "$0")"
exec 9>>lock
if ! flock -n 9; then echo "overlap $LEASE_FENCING_TOKEN $$ $(date +%s%N)" >>log; exit 99; fi
echo "start $LEASE_FENCING_TOKEN $$ $(date +%s%N)" >>log
while :; do echo "beat $LEASE_FENCING_TOKEN $$ $(date +%s%N)" >>log; sleep 0.02; done
"#;

/// What the witnesses wrote.
#[derive(Debug)]
pub(crate) struct Log {
    /// One for each start, in order.
    pub(crate) runs: Vec<Run>,
    /// Witnesses that found another one running.
    pub(crate) overlaps: usize,
}

/// One run of a witness. Times are nanoseconds since the epoch.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) token: u64,
    pub(crate) pid: i32,
    pub(crate) started: u128,
    pub(crate) last_beat: u128,
}

impl Log {
    fn parse(text: &str) -> Self {
        let mut log = Self {
            runs: Vec::new(),
            overlaps: 0,
        };
        // The last line may be half written.
        for line in text
            .split_inclusive('\n')
            .filter(|line| line.ends_with('\n'))
        {
            let words = line.split_whitespace().collect::<Vec<_>>();
            let [what, token, pid, time] = words[..] else {
                panic!("a line of the witness is malformed: {line:?}");
            };
            let time = time.parse().expect("a time");
            match what {
                "start" => log.runs.push(Run {
                    token: token.parse().expect("a token"),
                    pid: pid.parse().expect("a pid"),
                    started: time,
                    last_beat: time,
                }),
                "beat" => {
                    let run = log
                        .runs
                        .iter_mut()
                        .rev()
                        .find(|run| run.pid.to_string() == pid);
                    run.expect("a beat follows its start").last_beat = time;
                }
                "overlap" => log.overlaps += 1,
                other => panic!("a witness wrote {other:?}"),
            }
        }
        log
    }

    /// Asserts that no two runs overlapped and that tokens grew.
    #[track_caller]
    pub(crate) fn assert_exclusive(&self) {
        assert_eq!(self.overlaps, 0, "two witnesses ran at once: {self:?}");
        for pair in self.runs.windows(2) {
            assert!(pair[0].last_beat <= pair[1].started, "overlap: {pair:?}");
            assert!(
                pair[0].token < pair[1].token,
                "token did not grow: {pair:?}"
            );
        }
    }
}

/// lease-exec, about to be started.
pub(crate) struct Invocation {
    command: Command,
    cgroup: Option<PathBuf>,
    stdout: PathBuf,
    stderr: PathBuf,
}

impl Invocation {
    pub(crate) fn args<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.command.args(args);
        self
    }

    /// What to run, after `--`.
    pub(crate) fn command<S: AsRef<OsStr>>(self, argv: impl IntoIterator<Item = S>) -> Self {
        self.args(["--"]).args(argv)
    }

    /// A shell script to run.
    pub(crate) fn script(self, script: &str) -> Self {
        self.command(["sh", "-c", script])
    }

    pub(crate) fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Has another program start it, to which these words are followed by lease-exec and its
    /// arguments; standard input is empty.
    pub(crate) fn under<S: AsRef<OsStr>>(mut self, argv: impl IntoIterator<Item = S>) -> Self {
        let mut argv = argv.into_iter();
        let mut command = Command::new(argv.next().expect("a program"));
        command
            .args(argv)
            .arg(self.command.get_program())
            .args(self.command.get_args())
            .stdin(Stdio::null());
        let variables = self.command.get_envs();
        command.envs(variables.filter_map(|(name, value)| Some((name, value?))));
        self.command = command;
        self
    }

    /// Where it is started.
    pub(crate) fn directory(mut self, path: &Path) -> Self {
        self.command.current_dir(path);
        self
    }

    pub(crate) fn stdin(mut self, stdin: impl Into<Stdio>) -> Self {
        self.command.stdin(stdin);
        self
    }

    /// Starts it, in a process group of its own.
    pub(crate) fn start(mut self) -> Running {
        let create = |path: &Path| fs::File::create(path).expect("an output file can be made");
        if let Some(cgroup) = &self.cgroup {
            cgroup::begin_in(cgroup, &mut self.command);
        }
        let child = self
            .command
            .stdout(create(&self.stdout))
            .stderr(create(&self.stderr))
            .process_group(0)
            .spawn()
            .expect("lease-exec can be started");
        Running {
            child,
            stdout: self.stdout,
            stderr: self.stderr,
        }
    }

    /// Starts it and waits for its end.
    #[track_caller]
    pub(crate) fn run(self) -> Finished {
        self.start().wait()
    }
}

/// lease-exec, running. Dropping it kills it and the rest of its process group; the guard then kills
/// what it runs.
pub(crate) struct Running {
    child: Child,
    stdout: PathBuf,
    stderr: PathBuf,
}

impl Running {
    pub(crate) fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).expect("a pid is an i32")
    }

    /// Sends it, and only it, a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid()), signal).expect("lease-exec can be signalled");
    }

    pub(crate) fn stderr(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.stderr).expect("stderr was kept")).into_owned()
    }

    pub(crate) fn stdout(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.stdout).expect("stdout was kept")).into_owned()
    }

    /// Waits until this is a line of stdout.
    #[track_caller]
    pub(crate) fn wait_until_it_prints(&self, line: &str) {
        wait_until(format!("{line:?} is printed"), LIMIT, || {
            self.stdout()
                .lines()
                .any(|other| other == line)
                .then_some(())
        });
    }

    /// Waits until it has said this on stderr.
    #[track_caller]
    pub(crate) fn wait_until_it_says(&self, text: &str) {
        wait_until(format!("lease-exec says {text:?}"), LIMIT, || {
            self.stderr().contains(text).then_some(())
        });
    }

    #[track_caller]
    pub(crate) fn wait(self) -> Finished {
        self.wait_within(LIMIT)
    }

    #[track_caller]
    pub(crate) fn wait_within(mut self, limit: Duration) -> Finished {
        let status = wait_until("lease-exec ends", limit, || {
            self.child.try_wait().expect("lease-exec can be waited for")
        });
        Finished {
            status,
            stdout: fs::read(&self.stdout).expect("stdout was kept"),
            stderr: self.stderr(),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Only while it is not reaped its number is surely its own.
        if let Ok(None) = self.child.try_wait() {
            let _ = killpg(Pid::from_raw(self.pid()), Signal::SIGKILL);
        }
        let _ = self.child.wait();
    }
}

/// What became of an invocation.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: String,
}

impl Finished {
    #[track_caller]
    pub(crate) fn assert_code(&self, code: i32) -> &Self {
        assert_eq!(self.status.code(), Some(code), "{self:?}");
        self
    }

    #[track_caller]
    pub(crate) fn assert_signal(&self, signal: Signal) -> &Self {
        assert_eq!(self.status.signal(), Some(signal as i32), "{self:?}");
        self
    }

    /// Asserts that stderr holds this text.
    #[track_caller]
    pub(crate) fn assert_says(&self, text: &str) -> &Self {
        assert!(
            self.stderr.contains(text),
            "{text:?} is not in\n{}",
            self.stderr
        );
        self
    }

    pub(crate) fn stdout(&self) -> String {
        String::from_utf8(self.stdout.clone()).expect("the command printed text")
    }
}

/// Fails a test that could show nothing here, because something is missing, and says what: a test
/// that passes has shown what its name says.
#[track_caller]
pub(crate) fn needs(is_there: bool, what: &str) {
    assert!(is_there, "this test needs {what}");
}

/// The wall clock, as the witnesses read it.
pub(crate) fn now() -> u128 {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH);
    since_epoch.expect("the clock is after 1970").as_nanos()
}

/// Whether a process exists and is no zombie.
pub(crate) fn is_alive(pid: i32) -> bool {
    let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else {
        return false;
    };
    let state = stat
        .rsplit(')')
        .next()
        .and_then(|rest| rest.split_whitespace().next());
    !matches!(state, Some("Z" | "X"))
}
