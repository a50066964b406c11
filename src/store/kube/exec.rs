//! Credential plugins: the `exec` users of a kubeconfig.
//!
//! kube could run them, but gives them our standard input, which is the command's, waits for them
//! without a limit, and can't go on with the credentials that it has while it fetches new ones.
//! The protocol: kubernetes.io, "Authenticating", "client-go credential plugins".
//!
//! A plugin runs in a process group of its own, so that all of it can be killed when it takes too
//! long or when we end. One that may ask on our terminal stays in ours, and is killed alone.
//!
//! Must not: run on the runtime's thread, as it blocks until the plugin has ended.

use std::{
    io::{self, Read},
    os::{
        fd::{AsFd, OwnedFd},
        unix::process::CommandExt,
    },
    process::{Child, ChildStdout, Command, ExitStatus, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use kube::config::{ExecConfig, ExecInteractiveMode};
use nix::{
    fcntl::{OFlag, open},
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        signal::{self, Signal, killpg},
        stat::Mode,
    },
    unistd::{Pid, getpgrp, tcgetpgrp},
};
use serde_json::{Value, json};

use super::{config::Token, failure::plain};
use crate::{
    lease::{Failure, FailureKind},
    supervisor::Inherited,
};

/// What a plugin gave.
#[derive(Default)]
pub(super) struct Given {
    pub(super) token: Option<Token>,
    /// A client certificate and its key, each as PEM.
    pub(super) certificate: Option<(String, String)>,
    /// When to ask again; `None`: when they are refused.
    pub(super) expires: Option<Timestamp>,
}

/// Holds the plugin that runs, so that none outlives whom it works for.
#[derive(Default)]
pub(super) struct Leash(Mutex<Held>);

#[derive(Default)]
enum Held {
    #[default]
    Nothing,
    /// Not reaped, so that its number, which is its group's too, is nobody else's.
    Plugin(Child),
    /// Nothing is started any more.
    Cut,
}

impl Leash {
    /// Kills the plugin that runs, if there is one, and starts no further one.
    pub(super) fn cut(&self) {
        let mut held = self.held();
        if let Held::Plugin(child) = &*held {
            kill(child);
        }
        *held = Held::Cut;
    }

    /// Starts a plugin and returns its output; `None` if the leash was cut.
    fn start(&self, command: &mut Command) -> io::Result<Option<ChildStdout>> {
        let mut held = self.held();
        if matches!(*held, Held::Cut) {
            return Ok(None);
        }
        let mut child = command.spawn()?;
        let stdout = child.stdout.take();
        *held = Held::Plugin(child);
        Ok(stdout)
    }

    /// Waits until the plugin has ended by itself, and reaps it.
    fn wait(&self, deadline: Instant) -> io::Result<ExitStatus> {
        loop {
            let mut held = self.held();
            let Held::Plugin(child) = &mut *held else {
                return Err(io::Error::other("was killed, as the program ends"));
            };
            if let Some(status) = child.try_wait()? {
                *held = Held::Nothing;
                return Ok(status);
            }
            if Instant::now() >= deadline {
                return Err(too_long());
            }
            drop(held);
            // Its output is at its end, so it is about to end, or it is misbehaving.
            thread::sleep(LOOK_AGAIN);
        }
    }

    /// Kills the plugin, unless it has ended by itself, and reaps it.
    fn end(&self) {
        let mut held = self.held();
        let mut child = match std::mem::take(&mut *held) {
            Held::Plugin(child) => child,
            other => {
                *held = other;
                return;
            }
        };
        kill(&child);
        // Not while the lock is held, for which the end of the program would wait.
        drop(held);
        let _ = child.wait();
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Kills a plugin that is not reaped, with its group if it has one. It may take a while to die, for
/// instance while a file server hangs, so that the caller decides whether to wait for that.
fn kill(child: &Child) {
    // Linux numbers processes below 2^22, see proc(5) on pid_max.
    if let Ok(pid) = i32::try_from(child.id()).map(Pid::from_raw) {
        // There is no such group if it is in ours. A failure means that nobody is left.
        let _ = killpg(pid, Signal::SIGKILL).or_else(|_| signal::kill(pid, Signal::SIGKILL));
    }
}

/// Where a plugin can ask its questions.
#[derive(Debug)]
pub(super) enum Terminal {
    /// Nowhere: there is no terminal, or it is the command's.
    None,
    /// We are in its foreground.
    Ours(OwnedFd),
}

impl Terminal {
    /// Looks for one, as long as no command has it. Standard input is no longer ours.
    pub(super) fn find() -> Self {
        let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        match open(c"/dev/tty", flags, Mode::empty()) {
            Ok(terminal) if tcgetpgrp(&terminal) == Ok(getpgrp()) => Self::Ours(terminal),
            _ => Self::None,
        }
    }
}

/// Runs the plugin to its end.
///
/// # Errors
///
/// [`FailureKind::Misconfigured`] if it can't be run, [`FailureKind::Unauthorized`] if it gave no
/// credentials; with the command and its status.
pub(super) fn run(exec: &ExecConfig, leash: &Leash, terminal: Terminal) -> Result<Given, Failure> {
    run_within(exec, leash, terminal, LONGEST_RUN)
}

fn run_within(
    exec: &ExecConfig,
    leash: &Leash,
    terminal: Terminal,
    limit: Duration,
) -> Result<Given, Failure> {
    let misconfigured = |message: String| Failure::new(FailureKind::Misconfigured, message);
    let Some(program) = &exec.command else {
        return Err(misconfigured(
            "the kubeconfig's exec user names no command".into(),
        ));
    };
    let terminal = match (&exec.interactive_mode, terminal) {
        (Some(ExecInteractiveMode::Never), _) => Terminal::None,
        (Some(ExecInteractiveMode::Always), Terminal::None) => {
            return Err(misconfigured(format!(
                "the credential plugin {program:?} has to ask something (interactiveMode: Always), for which there \
                 must be a terminal and no command yet"
            )));
        }
        (_, terminal) => terminal,
    };
    let deadline = Instant::now() + limit;
    let failed = |what: String| {
        Failure::new(
            FailureKind::Unauthorized,
            format!("the credential plugin {program:?} {what}"),
        )
    };
    let stdout = leash
        .start(&mut command(program, exec, terminal))
        .map_err(|error| misconfigured(not_started(program, exec, &error)))?
        .ok_or_else(|| failed("was not started, as the program ends".into()))?;
    let ended =
        read_output(stdout, deadline).and_then(|output| Ok((output, leash.wait(deadline)?)));
    if ended.is_err() {
        // Nobody would read what it says.
        leash.end();
    }
    let (output, status) = ended.map_err(|error| failed(plain(&error)))?;
    if !status.success() {
        return Err(failed(format!("failed with {status}")));
    }
    parse(&output).map_err(failed)
}

fn command(program: &str, exec: &ExecConfig, terminal: Terminal) -> Command {
    let mut command = Command::new(program);
    command.args(exec.args.iter().flatten());
    for variable in exec.env.iter().flatten() {
        if let (Some(name), Some(value)) = (variable.get("name"), variable.get("value")) {
            command.env(name, value);
        }
    }
    let mut spec = json!({ "interactive": matches!(terminal, Terminal::Ours(_)) });
    if let Some(cluster) = exec
        .cluster
        .as_ref()
        .and_then(|cluster| serde_json::to_value(cluster).ok())
    {
        spec["cluster"] = cluster;
    }
    let request = json!({ "apiVersion": exec.api_version, "kind": "ExecCredential", "spec": spec });
    command.env("KUBERNETES_EXEC_INFO", request.to_string());
    // Standard error is where a plugin tells people what to do.
    command.stdout(Stdio::piped());
    match terminal {
        // The terminal would stop it in another group, so it stays in ours.
        Terminal::Ours(terminal) => {
            command.stdin(terminal);
        }
        // Standard input is the command's.
        Terminal::None => {
            command.stdin(Stdio::null()).process_group(0);
        }
    }
    if let Ok(inherited) = Inherited::at_entry() {
        inherited.pass_on(&mut command);
    }
    command
}

fn not_started(program: &str, exec: &ExecConfig, error: &io::Error) -> String {
    let hint = exec.install_hint.as_deref().unwrap_or_default().trim();
    let hint = if hint.is_empty() {
        String::new()
    } else {
        format!(" ({})", super::failure::one_line(hint))
    };
    format!(
        "can't run the credential plugin {program:?}: {}{hint}",
        plain(error)
    )
}

/// Reads what the plugin prints until it closes its output.
fn read_output(mut stdout: ChildStdout, deadline: Instant) -> io::Result<Vec<u8>> {
    let mut output = Vec::new();
    let mut piece = [0; 8192];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let mut ready = [PollFd::new(stdout.as_fd(), PollFlags::POLLIN)];
        match poll(
            &mut ready,
            PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX),
        ) {
            Ok(0) => return Err(too_long()),
            Ok(_) => {}
            Err(nix::Error::EINTR) => continue,
            Err(error) => return Err(error.into()),
        }
        match stdout.read(&mut piece)? {
            0 => return Ok(output),
            count => output.extend_from_slice(&piece[..count]),
        }
        if output.len() > LONGEST_OUTPUT {
            return Err(io::Error::other("prints without end"));
        }
    }
}

fn too_long() -> io::Error {
    io::Error::other(format!("was killed after {} s", LONGEST_RUN.as_secs()))
}

/// Reads an ExecCredential; the error says what the plugin did.
pub(super) fn parse(output: &[u8]) -> Result<Given, String> {
    let credential: Value = serde_json::from_slice(output)
        .map_err(|_| "printed something else than an ExecCredential".to_owned())?;
    let status = &credential["status"];
    let text = |name: &str| {
        status[name]
            .as_str()
            .filter(|text| !text.trim().is_empty())
            .map(str::to_owned)
    };
    let token = Token::bearer(status["token"].as_str().unwrap_or_default())
        .map_err(|_| "gave a token with characters that no token can have".to_owned())?;
    let certificate = text("clientCertificateData").zip(text("clientKeyData"));
    if token.is_none() && certificate.is_none() {
        return Err("gave neither a token nor a client certificate".into());
    }
    let expires = match text("expirationTimestamp") {
        None => None,
        Some(time) => Some(
            time.parse()
                .map_err(|_| format!("gave an expirationTimestamp of {time:?}"))?,
        ),
    };
    Ok(Given {
        token,
        certificate,
        expires,
    })
}

/// Long enough for a person to log in by a browser.
const LONGEST_RUN: Duration = Duration::from_secs(120);

/// How often to look whether a plugin that prints no more has ended.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// In bytes.
const LONGEST_OUTPUT: usize = 1 << 20;

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by a panic")]
mod tests {
    use super::*;

    fn plugin(script: &str) -> ExecConfig {
        ExecConfig {
            api_version: Some("client.authentication.k8s.io/v1".into()),
            command: Some("/bin/sh".into()),
            args: Some(vec!["-c".into(), script.into()]),
            env: Some(vec![
                [("name", "GIVEN"), ("value", "abc")]
                    .map(|(a, b)| (a.to_owned(), b.to_owned()))
                    .into(),
            ]),
            ..ExecConfig::default()
        }
    }

    fn run_alone(exec: &ExecConfig) -> Result<Given, Failure> {
        run(exec, &Leash::default(), Terminal::None)
    }

    #[test]
    fn plugin_is_told_what_is_asked_and_gives_a_token() {
        let credentials = run_alone(&plugin(
            r#"case $KUBERNETES_EXEC_INFO in *'"interactive":false'*) ;; *) exit 1;; esac
               read -r line && exit 2
               printf '%s' '{"kind":"ExecCredential","status":{"token":"'$GIVEN'\n","expirationTimestamp":"2030-01-01T00:00:00Z"}}'"#,
        ));
        let credentials = credentials.map_err(|failure| failure.message).unwrap();
        assert_eq!(credentials.token.unwrap().header(), "Bearer abc");
        assert_eq!(
            credentials.expires,
            Some("2030-01-01T00:00:00Z".parse().unwrap())
        );
    }

    #[test]
    fn failing_plugin_is_named_with_its_status() {
        for (script, kind, named) in [
            (
                "exit 3",
                FailureKind::Unauthorized,
                "failed with exit status: 3",
            ),
            (
                "echo no",
                FailureKind::Unauthorized,
                "something else than an ExecCredential",
            ),
            (
                r#"echo '{"status": {"token": "a\u000ab"}}'"#,
                FailureKind::Unauthorized,
                "gave a token with characters that no token can have",
            ),
            (
                "echo '{}'",
                FailureKind::Unauthorized,
                "neither a token nor a client certificate",
            ),
        ] {
            let failure = run_alone(&plugin(script)).err().unwrap();
            assert_eq!(failure.kind, kind);
            assert!(
                failure.message.contains("\"/bin/sh\""),
                "{}",
                failure.message
            );
            assert!(failure.message.contains(named), "{}", failure.message);
        }
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("plugin");
        let absent = ExecConfig {
            command: Some(path.display().to_string()),
            install_hint: Some("get it\nsomewhere".into()),
            ..ExecConfig::default()
        };
        let failure = run_alone(&absent).err().unwrap();
        assert_eq!(failure.kind, FailureKind::Misconfigured);
        assert_eq!(
            failure.message,
            format!(
                "can't run the credential plugin {path:?}: no such file or directory (get it somewhere)"
            )
        );
    }

    #[test]
    fn plugin_that_hangs_is_killed_with_all_that_it_has_started() {
        let directory = tempfile::tempdir().unwrap();
        let pids = directory.path().join("pids");
        let tree = format!("sleep 7777 & echo $$ $! >{}", pids.display());
        // The second one has closed its output.
        for script in [format!("{tree}; wait"), format!("{tree}; exec >&-; wait")] {
            let script = format!("exec 2>/dev/null; {script}");
            let leash = Leash::default();
            let limit = Duration::from_millis(500);
            let failure = run_within(&plugin(&script), &leash, Terminal::None, limit)
                .err()
                .unwrap();
            assert_eq!(failure.kind, FailureKind::Unauthorized);
            assert!(failure.message.ends_with("was killed after 120 s"));
            for pid in std::fs::read_to_string(&pids).unwrap().split_whitespace() {
                let deadline = Instant::now() + Duration::from_secs(30);
                while runs(pid) {
                    assert!(Instant::now() < deadline, "{pid} runs on");
                    thread::yield_now();
                }
            }
            std::fs::remove_file(&pids).unwrap();
        }
    }

    #[test]
    fn cut_leash_kills_what_runs_and_starts_nothing_more() {
        let leash = Leash::default();
        let endless = plugin("exec sleep 7777");
        let failure = thread::scope(|scope| {
            let running = scope.spawn(|| run(&endless, &leash, Terminal::None).err().unwrap());
            while matches!(*leash.held(), Held::Nothing) {
                thread::yield_now();
            }
            leash.cut();
            running.join().unwrap()
        });
        assert!(failure.message.ends_with("as the program ends"));
        let failure = run(&plugin("exit 3"), &leash, Terminal::None)
            .err()
            .unwrap();
        assert!(
            failure
                .message
                .ends_with("was not started, as the program ends")
        );
    }

    /// Whether it is there and no zombie: orphans of the tests' may have nobody who reaps them.
    fn runs(pid: &str) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let state = stat
            .rsplit(") ")
            .next()
            .and_then(|rest| rest.chars().next());
        !matches!(state, None | Some('Z' | 'X'))
    }
}
