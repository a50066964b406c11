//! The examples in the README, run as they stand.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use http::Method;
use k8s_openapi::api::batch::v1::CronJob;
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::{README, block, path};
use crate::control_plane::{ControlPlane, User};
use crate::surroundings::as_the_caller;
use crate::wait::{LIMIT, try_wait_until, wait_until};

// === The demo ===

#[test]
fn the_demo_hands_over_on_ctrl_c_and_after_a_crash() {
    let place = DemoPlace::new();
    let mut first = place.open_terminal("first");
    let first_token = first.wait_until_it_runs();
    let mut second = place.open_terminal("second");
    second.wait_until_it_waits();
    assert!(!second.runs(), "both run");
    assert!(
        README.contains(WAITS),
        "the README tells of another message than {WAITS:?}"
    );

    let pressed = Instant::now();
    first.signal(Signal::SIGINT);
    let second_token = second.wait_until_it_runs();
    // Had the first not released the lease, this would take the lease duration of 15 s less a
    // renewal's age of some 2 s.
    assert!(
        pressed.elapsed() < Duration::from_secs(10),
        "handed over after {:?}",
        pressed.elapsed()
    );
    assert!(
        second_token > first_token,
        "{second_token} came after {first_token}"
    );
    first.wait_until_it_is_gone();

    let mut third = place.open_terminal("first, once more");
    third.wait_until_it_waits();
    place.crash_the_holder();
    second.wait_until_it_is_gone();
    assert!(!third.runs(), "the second was killed a moment ago");
    let third_token = third.wait_until_it_runs();
    assert!(
        third_token > second_token,
        "{third_token} came after {second_token}"
    );
    third.signal(Signal::SIGTERM);
    third.wait_until_it_is_gone();
}

/// The directory in which the demo is tried, with a `cargo` that knows that all is built.
struct DemoPlace {
    directory: tempfile::TempDir,
    script: String,
}

impl DemoPlace {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("make a temporary directory");
        let cargo = directory.path().join("cargo");
        fs::write(&cargo, CARGO).expect("write to a directory of our own");
        fs::set_permissions(&cargo, fs::Permissions::from_mode(0o755))
            .expect("change our own file");
        let leases = directory.path().join("leases");
        let script = block("demo");
        assert!(
            script.contains("/tmp/leases"),
            "the demo uses another directory: {script}"
        );
        let script = script.replace("/tmp/leases", leases.to_str().expect("a path in UTF-8"));
        Self { directory, script }
    }

    /// Kills the holder as the README says, where not even USER is set, and nobody outside of here.
    fn crash_the_holder(&self) {
        const DEMO: &str = "lease-exec --lease demo ";
        let script = block("crash");
        assert!(script.contains(DEMO), "it finds others: {script}");
        let leases = self.directory.path().join("leases");
        let ours = format!("{DEMO}--store file:{} ", leases.display());
        let killed = Command::new("sh")
            .args(["-euc", &script.replace(DEMO, &ours)])
            .env_clear()
            .env("PATH", path())
            .output()
            .expect("start a shell");
        assert!(killed.status.success(), "{killed:?}");
    }

    fn open_terminal(&self, name: &str) -> Terminal {
        let file = |suffix: &str| self.directory.path().join(format!("{name}.{suffix}"));
        let (output, pid_file) = (file("output"), file("pid"));
        let file = File::create(&output).expect("write to a directory of our own");
        let mut search_path = self.directory.path().as_os_str().to_owned();
        search_path.push(":");
        search_path.push(path());
        let shell = Command::new("sh")
            .args(["-c", &self.script])
            .env("PATH", search_path)
            .env("DEMO_BINARY", env!("CARGO_BIN_EXE_lease-exec"))
            .env("DEMO_PID_FILE", &pid_file)
            .stdin(Stdio::null())
            .stdout(file.try_clone().expect("duplicate a descriptor"))
            .stderr(file)
            .process_group(0)
            .spawn()
            .expect("start a shell");
        Terminal {
            shell,
            output,
            pid_file,
        }
    }
}

#[test]
fn cargo_knows_which_program_the_demo_is_to_run() {
    let metadata = as_the_caller(&mut Command::new(env!("CARGO")))
        .args([
            "metadata",
            "--no-deps",
            "--offline",
            "--format-version",
            "1",
        ])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo runs");
    let metadata: Value = serde_json::from_slice(&metadata.stdout).expect("cargo answers in JSON");
    let packages = metadata["packages"].as_array().expect("there are some");
    let package = packages
        .iter()
        .find(|package| package["name"] == env!("CARGO_PKG_NAME"));
    // There is more than one program in the workspace.
    assert_eq!(package.expect("it is ours")["default_run"], "lease-exec");
}

/// Like `cargo run`, becomes the program.
const CARGO: &str = r#"#!/bin/sh
[ "$1 $2" = "run --" ] || exit 99
shift 2
echo $$ >"$DEMO_PID_FILE"
exec "$DEMO_BINARY" "$@"
"#;

/// A shell that runs the demo's commands.
struct Terminal {
    shell: Child,
    output: PathBuf,
    pid_file: PathBuf,
}

impl Terminal {
    /// Returns the token that the command shows.
    fn wait_until_it_runs(&self) -> u64 {
        let token = self.wait_for("runs the command", |output| {
            let (_, rest) = output.split_once(RUNS)?;
            let (token, _) = rest.split_once('\n')?;
            Some(token.to_owned())
        });
        token
            .parse()
            .unwrap_or_else(|err| panic!("token {token:?}: {err}"))
    }

    fn wait_until_it_waits(&self) {
        self.wait_for("says that it waits", |output| {
            output.contains(WAITS).then_some(())
        });
    }

    fn wait_for<T>(&self, what: &str, mut find: impl FnMut(&str) -> Option<T>) -> T {
        let found = try_wait_until(LIMIT, || find(&self.output()));
        found.unwrap_or_else(|| panic!("the demo never {what}; it says:\n{}", self.output()))
    }

    fn runs(&self) -> bool {
        self.output().contains(RUNS)
    }

    /// Waits for the shell and for all that it has started, which all have its environment.
    fn wait_until_it_is_gone(&mut self) {
        self.shell.wait().expect("the shell is our child");
        let mark = format!("DEMO_PID_FILE={}", self.pid_file.display());
        wait_until("all of the demo's processes are gone", LIMIT, || {
            let left = processes_with(&mark).expect("read /proc");
            left.is_empty().then_some(())
        });
    }

    /// Sends a signal to lease-exec itself.
    fn signal(&self, signal: Signal) {
        let pid = fs::read_to_string(&self.pid_file).expect("lease-exec has been started");
        let pid = pid.trim().parse().expect("a pid is a number");
        kill(Pid::from_raw(pid), signal).expect("lease-exec is there");
    }

    fn output(&self) -> String {
        fs::read_to_string(&self.output).expect("read our own file")
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // What a failed test leaves; when lease-exec is killed, so is its command.
        if let Ok(None) = self.shell.try_wait() {
            let group = i32::try_from(self.shell.id()).expect("the kernel's pids fit");
            let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
            let _ = self.shell.wait();
        }
    }
}

/// The pids of all processes with `variable` in the environment that they were started with.
/// Zombies have none.
fn processes_with(variable: &str) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let process = entry?.path();
        // Not a process, or gone in the meantime.
        let Ok(environment) = fs::read(process.join("environ")) else {
            continue;
        };
        if environment
            .split(|&byte| byte == 0)
            .any(|entry| entry == variable.as_bytes())
        {
            found.push(process);
        }
    }
    Ok(found)
}

const RUNS: &str = "I run, token ";
/// The README names this message.
const WAITS: &str = "somebody else holds the lease";

// === Kubernetes ===

#[test]
fn the_role_in_the_readme_is_enough_for_its_lease_and_for_no_other() {
    const NAMESPACE: &str = "documents-rbac";
    let control_plane = ControlPlane::shared();
    control_plane.create_namespace(NAMESPACE);
    kubectl(
        control_plane,
        &["apply", "--namespace", NAMESPACE, "--filename", "-"],
        block("rbac"),
    );
    let token = control_plane.token(NAMESPACE, "nightly");
    let kubeconfig =
        control_plane.kubeconfig_at(&control_plane.url(), NAMESPACE, User::Token(token));

    let granted = lease_exec(&kubeconfig, "nightly");
    assert!(granted.status.success(), "{granted:?}");
    assert_eq!(String::from_utf8_lossy(&granted.stdout), "ran\n");
    let lease = control_plane
        .get_lease(NAMESPACE, "nightly")
        .expect("lease-exec has made it");
    assert_eq!(lease["spec"]["holderIdentity"], "", "it was released");

    standby_waits_by_watch(&kubeconfig);

    let refused = lease_exec(&kubeconfig, "other");
    assert_eq!(refused.status.code(), Some(77), "{refused:?}");
    assert_eq!(refused.stdout, b"");
    assert_eq!(control_plane.get_lease(NAMESPACE, "other"), None);

    // What the message says is to be added is what the README has, and is enough.
    let message = String::from_utf8_lossy(&refused.stderr);
    let rule = rule_in(&message);
    let role = block("rbac").replace("name: lease-exec-nightly", "name: lease-exec-other");
    let (before, rest) = role
        .split_once("\n- apiGroups")
        .expect("the role has a rule");
    let (_, after) = rest.split_once("\n---").expect("the binding follows");
    let role = format!("{before}\n- {rule}\n---{after}");
    kubectl(
        control_plane,
        &["apply", "--namespace", NAMESPACE, "--filename", "-"],
        &role,
    );
    let granted = lease_exec(&kubeconfig, "other");
    assert!(
        granted.status.success(),
        "with the rule {rule}: {granted:?}"
    );
}

/// A standby says so if it may not watch.
fn standby_waits_by_watch(kubeconfig: &Path) {
    let directory = tempfile::tempdir().expect("make a temporary directory");
    let messages = directory.path().join("messages");
    let start = |command: &str, messages: Stdio| {
        lease_exec_command(kubeconfig, "nightly")
            .args([command])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(messages)
            .spawn()
            .expect("run lease-exec")
    };
    // Its command ends when we close its standard input, also if that is because the test failed.
    let mut holder = start("cat", Stdio::null());
    let mut input = holder.stdin.take().expect("standard input is a pipe");
    let mut output = holder.stdout.take().expect("standard output is a pipe");
    input.write_all(b"x").expect("the holder is there");
    output
        .read_exact(&mut [0])
        .expect("the holder's command runs");

    let file = File::create(&messages).expect("write to a directory of our own");
    let mut standby = start("true", file.into());
    let said = || fs::read_to_string(&messages).expect("read our own file");
    if try_wait_until(LIMIT, || said().contains(WAITS).then_some(())).is_none() {
        panic!("the standby does not wait; it says:\n{}", said());
    }
    drop(input);
    let ended = [holder.wait(), standby.wait()];
    assert!(
        ended
            .iter()
            .all(|status| status.as_ref().is_ok_and(ExitStatus::success)),
        "{ended:?}; the standby says:\n{}",
        said()
    );
    assert!(!said().contains("polling"), "the standby says:\n{}", said());
}

/// The rule in a message, as YAML on one line.
fn rule_in(message: &str) -> &str {
    let start = message
        .find('{')
        .unwrap_or_else(|| panic!("there is no rule in {message}"));
    let end = message
        .rfind('}')
        .unwrap_or_else(|| panic!("there is no rule in {message}"));
    &message[start..=end]
}

#[test]
fn the_deployment_in_the_readme_is_valid() {
    let control_plane = ControlPlane::shared();
    control_plane.create_namespace("documents-deployment");
    kubectl(
        control_plane,
        &[
            "create",
            "--namespace=documents-deployment",
            "--dry-run=server",
            "--filename=-",
        ],
        block("deployment"),
    );
}

/// The oldest API servers that the tests may use know neither this version of CronJob nor
/// podFailurePolicy. So the fields are held against the types of a newer one, and the server checks
/// the job.
#[test]
fn the_cronjob_in_the_readme_is_valid() {
    let control_plane = ControlPlane::shared();
    control_plane.create_namespace("documents-cronjob");
    // Sets nothing that isn't there; prints JSON, and asks no server what a CronJob is.
    let convert = [
        "label",
        "--local",
        "--output=json",
        "--filename=-",
        "test=readme",
    ];
    let cron_job = kubectl(control_plane, &convert, block("cronjob"));
    let mut written: Value = serde_json::from_slice(&cron_job.stdout).expect("kubectl prints JSON");

    let known: CronJob = serde_json::from_value(written.clone()).expect("it is a CronJob");
    let known = serde_json::to_value(known).expect("it can be written as JSON");
    // The types leave out what they don't know.
    assert_eq!(
        written, known,
        "left as it is written, right what is known of it"
    );

    let job = json!({
        "metadata": {"name": "nightly"},
        "spec": written["spec"]["jobTemplate"]["spec"].take(),
    });
    let jobs = "/apis/batch/v1/namespaces/documents-cronjob/jobs?dryRun=All";
    let (status, answer) = control_plane.raw(Method::POST, jobs, Some(job));
    assert_eq!(status, 201, "{answer}");
}

/// Runs lease-exec with a command that says `ran`.
fn lease_exec(kubeconfig: &Path, lease: &str) -> Output {
    lease_exec_command(kubeconfig, lease)
        .args(["echo", "ran"])
        .output()
        .expect("run lease-exec")
}

fn lease_exec_command(kubeconfig: &Path, lease: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lease-exec"));
    command
        .arg("--kubeconfig")
        .arg(kubeconfig)
        .args(["--lease", lease, "--"]);
    command
}

fn kubectl(control_plane: &ControlPlane, arguments: &[&str], input: &str) -> Output {
    let output = control_plane.kubectl(arguments, input);
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "kubectl {arguments:?} failed: {message}"
    );
    output
}
