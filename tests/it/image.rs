//! The image: the last stage of the Dockerfile, built around a static binary and run by podman and
//! runc with fewer rights than any cluster leaves a pod.
//!
//! Nothing is taken from the network, and everything that podman keeps is in a directory of the
//! test's own, so that images and containers of the user's are out of reach.

use std::ffi::OsString;
use std::io::{self, BufRead as _, BufReader, Lines};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::sync::OnceLock;
use std::{fs, str};

use http::Method;
use serde_json::json;
use tempfile::TempDir;

use crate::control_plane::ControlPlane;
use crate::surroundings::as_the_caller;

#[test]
fn image_is_one_file_run_as_an_unprivileged_user() {
    let image = Image::build();

    let container = stdout(image.podman().args(["create", IMAGE]));
    let archive = image.directory.path().join("files.tar");
    stdout(
        image
            .podman()
            .args(["export", "--output"])
            .arg(&archive)
            .arg(container.trim()),
    );
    let files = stdout(
        Command::new("tar")
            .arg("--list")
            .arg("--file")
            .arg(&archive),
    );
    assert_eq!(files, "lease-exec\n");

    let format = "{{.Config.User}} {{json .Config.Entrypoint}} {{json .Config.Cmd}}";
    let settings = stdout(image.podman().args(["inspect", "--format", format, IMAGE]));
    assert_eq!(settings, "65532:65532 [\"/lease-exec\"] null\n");
}

#[test]
fn program_needs_no_other_file_and_no_right() {
    let image = Image::build();

    let version = stdout(image.run("none").args([IMAGE, "--version"]));
    assert_eq!(
        version,
        concat!("lease-exec ", env!("CARGO_PKG_VERSION"), "\n")
    );

    let help = stdout(image.run("none").args([IMAGE, "--help"]));
    assert!(help.contains("--lease"), "the help text is: {help}");
}

#[test]
fn command_has_the_containers_rights_and_gives_it_its_exit_code() {
    let image = Image::build();

    let script = "
        /busybox head -c 11 /proc/1/cmdline
        echo
        /busybox id -u
        /busybox sed -n 's/^\\(CapEff\\|NoNewPrivs\\):[[:space:]]*//p' /proc/self/status
        echo $LEASE_NAME
        exit 7";
    let output = output(image.run_leased(&[]).args(["/busybox", "sh", "-c", script]));

    let lines: Vec<&str> = text(&output.stdout).lines().collect();
    let [init, user, capabilities, no_new_privileges, lease] = lines[..] else {
        panic!("the command printed something else: {output:?}");
    };
    assert_eq!(init, "/lease-exec");
    assert_eq!(user, "65532");
    assert_eq!(capabilities, "0000000000000000");
    assert_eq!(no_new_privileges, "1");
    assert_eq!(lease, "demo");
    assert_eq!(output.status.code(), Some(7), "{output:?}");
}

#[test]
fn one_container_runs_until_its_command_has_obeyed_term() {
    let image = Image::build();

    let script = "trap 'exit 3' TERM; echo started; while :; do /busybox sleep 0.05; done";
    let mut holder = image.run_leased(&[]);
    holder.args(["/busybox", "sh", "-c", script]);
    let mut holder = Piped::start(&mut holder);
    assert_eq!(holder.line(), "started");

    let refused = output(
        image
            .run_leased(&["--no-wait"])
            .args(["/busybox", "echo", "two ran"]),
    );
    assert_eq!(text(&refused.stdout), "");
    assert_eq!(refused.status.code(), Some(75), "{refused:?}");

    // It is the only one that runs.
    stdout(image.podman().args(["kill", "--all", "--signal", "TERM"]));
    assert_eq!(holder.wait(), Some(3));

    let next = stdout(
        image
            .run_leased(&["--no-wait"])
            .args(["/busybox", "echo", "released"]),
    );
    assert_eq!(next, "released\n");
}

#[test]
fn term_while_waiting_ends_a_container() {
    let image = Image::build();
    let mut holder = image.run_leased(&[]);
    holder.args([
        "/busybox",
        "sh",
        "-c",
        "echo started; exec /busybox sleep 77",
    ]);
    let mut holder = Piped::start(&mut holder);
    assert_eq!(holder.line(), "started");

    // Its messages are on standard error, which podman passes on.
    let mut waiting = Command::new("sh");
    let mut podman = image.run_leased(&[]);
    podman.args(["/busybox", "echo", "never"]);
    waiting.args(["-c", "exec \"$@\" 2>&1", "sh"]);
    waiting.arg(podman.get_program()).args(podman.get_args());
    waiting.envs(
        podman
            .get_envs()
            .filter_map(|(name, value)| Some((name, value?))),
    );
    let mut waiting = Piped::start(&mut waiting);
    while !waiting.line().contains("somebody else holds the lease") {}

    stdout(
        image
            .podman()
            .args(["kill", "--latest", "--signal", "TERM"]),
    );
    assert_eq!(waiting.wait(), Some(143));
    stdout(image.podman().args(["kill", "--all", "--signal", "TERM"]));
    // The command had no handler: as the init of a container we say so with a code.
    assert_eq!(holder.wait(), Some(143));
}

/// A program whose standard output is read line by line.
struct Piped {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Piped {
    fn start(command: &mut Command) -> Self {
        let child = command.stdout(Stdio::piped()).spawn();
        let mut child = child.unwrap_or_else(|err| panic!("{}", cannot_run(command, &err)));
        let stdout = child.stdout.take().expect("standard output is a pipe");
        Self {
            child,
            lines: BufReader::new(stdout).lines(),
        }
    }

    #[track_caller]
    fn line(&mut self) -> String {
        let line = self.lines.next().expect("there is another line");
        line.expect("a line in UTF-8")
    }

    fn wait(mut self) -> Option<i32> {
        self.child.wait().expect("wait for it").code()
    }
}

#[test]
fn orphans_of_the_command_are_reaped_while_it_runs() {
    let image = Image::build();

    // The inner shell ends at once. Until somebody waits for it, an ended process is in /proc.
    let script = "
        orphan=$(/busybox sh -c '/busybox sleep 0.1 >/dev/null & echo $!')
        [ -d /proc/$orphan ] && echo orphaned
        while [ -d /proc/$orphan ]; do /busybox sleep 0.01; done
        echo reaped";
    let lines = stdout(image.run_leased(&[]).args(["/busybox", "sh", "-c", script]));
    assert_eq!(lines, "orphaned\nreaped\n");
}

#[test]
fn in_a_pod_it_needs_only_what_every_pod_has_and_one_rule() {
    let image = Image::build();
    let control_plane = ControlPlane::shared();
    let namespace = "image";
    control_plane.create_namespace(namespace);
    grant_one_lease(control_plane, namespace);

    // What the kubelet mounts into a pod.
    let account = image.subdirectory("serviceaccount");
    for (name, content) in [
        ("ca.crt", control_plane.ca_pem()),
        ("namespace", namespace.into()),
        ("token", control_plane.token(namespace, LEASE)),
    ] {
        fs::write(account.join(name), content).expect("write to a directory of our own");
    }

    let mut volume = account.into_os_string();
    volume.push(":/var/run/secrets/kubernetes.io/serviceaccount:ro");
    let mut run = image.run("host");
    run.arg("--volume")
        .arg(volume)
        .args(["--volume", BUSYBOX])
        .args(["--env", "KUBERNETES_SERVICE_HOST=127.0.0.1", "--env"])
        .arg(format!("KUBERNETES_SERVICE_PORT={}", control_plane.port()))
        .args([IMAGE, "--lease", LEASE, "--"])
        .args(["/busybox", "sh", "-c", "echo $LEASE_NAMESPACE/$LEASE_NAME"]);
    assert_eq!(stdout(&mut run), "image/demo\n");

    let lease = control_plane.get_lease(namespace, LEASE);
    let lease = lease.expect("the lease outlives its holder");
    assert_eq!(lease["spec"]["holderIdentity"], "");
}

/// Lets the service account that is called like the lease use that lease, and nothing else.
fn grant_one_lease(control_plane: &ControlPlane, namespace: &str) {
    let rules = json!([{
        "apiGroups": ["coordination.k8s.io"],
        "resources": ["leases"],
        "resourceNames": [LEASE],
        "verbs": ["get", "create", "update", "watch"],
    }]);
    let role = json!({"metadata": {"name": LEASE}, "rules": rules});
    let binding = json!({
        "metadata": {"name": LEASE},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": LEASE},
        "subjects": [{"kind": "ServiceAccount", "namespace": namespace, "name": LEASE}],
    });
    for (resource, object) in [("roles", role), ("rolebindings", binding)] {
        let path = format!("/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}/{resource}");
        let (status, answer) = control_plane.raw(Method::POST, &path, Some(object));
        assert_eq!(status, 201, "{path} was answered: {answer}");
    }
}

/// The image, in a store of its own.
struct Image {
    directory: TempDir,
}

impl Image {
    /// Builds the Dockerfile's last stage.
    fn build() -> Self {
        // Under the directory for temporary files, because podman limits the length of its paths.
        let directory = tempfile::Builder::new()
            .prefix("lease-exec-image-")
            .tempdir()
            .expect("make a temporary directory");
        // Locks would be in a piece of memory that all of the machine's podmans share.
        fs::write(
            directory.path().join("containers.conf"),
            "[engine]\nlock_type = \"file\"\n",
        )
        .expect("write to a directory of our own");
        let image = Self { directory };

        // A directory in place of the stage that compiles: podman then leaves that stage out.
        let build_stage = image.subdirectory("build-stage");
        fs::copy(static_binary(), build_stage.join("lease-exec"))
            .expect("copy the static binary to a directory of our own");
        let mut build_context = OsString::from("build=");
        build_context.push(&build_stage);
        stdout(
            image
                .podman()
                .args(["build", "--network", "none", "--pull=never", "--tag", IMAGE])
                .arg("--build-context")
                .arg(build_context)
                .arg("--file")
                .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("Dockerfile"))
                // Empty: the image takes nothing but what the build stage has made.
                .arg(image.subdirectory("context")),
        );
        image
    }

    /// podman, on the image's own store. It needs no systemd.
    fn podman(&self) -> Command {
        let directory = self.directory.path();
        let mut podman = Command::new("podman");
        podman
            .env("CONTAINERS_CONF", directory.join("containers.conf"))
            .arg("--root")
            .arg(directory.join("root"))
            .arg("--runroot")
            .arg(directory.join("run"))
            .arg("--tmpdir")
            .arg(directory.join("tmp"))
            .args(["--storage-driver", "vfs", "--runtime", "runc"])
            .args(["--cgroup-manager", "cgroupfs", "--events-backend", "none"]);
        podman
    }

    /// Running a container that has no rights and can write nothing. The image and the arguments are
    /// still to be added.
    fn run(&self, network: &str) -> Command {
        let mut run = self.podman();
        run.args(["run", "--rm", "--network", network])
            .args(["--read-only", "--read-only-tmpfs=false", "--cap-drop=all"])
            .args(["--security-opt", "no-new-privileges"])
            // podman would raise these limits, which it may not do in every environment.
            .args(["--ulimit", "nofile=1024:1024"])
            .args(["--ulimit", "nproc=1024:1024"])
            // A test that fails, or is interrupted, must not leave it running for ever.
            .args(["--timeout", "120"]);
        run
    }

    /// Running a container that has a shell, and contends for a lease that is in the one directory
    /// where it can write. The command is still to be added.
    fn run_leased(&self, options: &[&str]) -> Command {
        let mut run = self.run("none");
        run.args(["--volume", "leases:/leases:U"])
            .args(["--volume", BUSYBOX])
            .args([IMAGE, "--lease", LEASE, "--store", "file:/leases"])
            .args(options)
            .arg("--");
        run
    }

    fn subdirectory(&self, name: &str) -> PathBuf {
        let path = self.directory.path().join(name);
        fs::create_dir(&path).expect("make a directory in one of our own");
        path
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        // What a test that failed has left running. That it fails is no news to anybody by now.
        let _ = self
            .podman()
            .args(["rm", "--all", "--force", "--time", "0"])
            .output();
        let _ = self
            .podman()
            .args(["volume", "rm", "--all", "--force"])
            .output();
    }
}

/// Runs a command that must succeed, and returns what it printed.
#[track_caller]
fn stdout(command: &mut Command) -> String {
    let output = output(command);
    assert!(
        output.status.success(),
        "{command:?} ended with {}: {}",
        output.status,
        text(&output.stderr)
    );
    text(&output.stdout).into()
}

#[track_caller]
fn output(command: &mut Command) -> Output {
    command
        .output()
        .unwrap_or_else(|err| panic!("{}", cannot_run(command, &err)))
}

fn cannot_run(command: &Command, err: &io::Error) -> String {
    let program = command.get_program().display();
    format!("failed to run {program}: {err}; tests/run.sh installs what the tests need")
}

fn text(bytes: &[u8]) -> &str {
    str::from_utf8(bytes).expect("all that these programs print is UTF-8")
}

/// The program as one static file, which is built if need be.
pub(crate) fn static_binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/static-binary.sh");
        // Its messages are shown: the first time, it takes minutes.
        let path = stdout(as_the_caller(&mut Command::new(script)).stderr(Stdio::inherit()));
        path.trim_end().into()
    })
}

const IMAGE: &str = "lease-exec";

const LEASE: &str = "demo";

/// A shell and its tools in one static file, which the image has not.
const BUSYBOX: &str = "/bin/busybox:/busybox:ro";
