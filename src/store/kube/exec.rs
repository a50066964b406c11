//! Credential plugins: the `exec` users of a kubeconfig.
//!
//! kube could run them, but gives them our standard input, which is the command's, waits for them
//! without a limit, and can't go on with the credentials that it has while it fetches new ones.
//! The protocol: kubernetes.io, "Authenticating", "client-go credential plugins".
//!
//! Must not: run on the runtime's thread, as it blocks until the plugin has ended.

use std::{
    io::{self, Read},
    os::fd::AsFd,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use jiff::Timestamp;
use kube::config::{ExecConfig, ExecInteractiveMode};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::{Value, json};

use super::failure::{failure, plain};
use crate::store::{Failure, FailureKind};

/// What a plugin gave.
pub(super) struct Credentials {
    pub(super) token: Option<String>,
    /// A client certificate and its key, each as PEM.
    pub(super) certificate: Option<(String, String)>,
    /// When to ask again; `None`: when they are refused.
    pub(super) expires: Option<Timestamp>,
}

/// Runs the plugin to its end.
///
/// # Errors
///
/// [`FailureKind::Misconfigured`] if it can't be run, [`FailureKind::Unauthorized`] if it gave no
/// credentials; with the command and its status.
pub(super) fn run(exec: &ExecConfig) -> Result<Credentials, Failure> {
    let misconfigured = |message: String| failure(FailureKind::Misconfigured, message);
    let Some(program) = &exec.command else {
        return Err(misconfigured(
            "the kubeconfig's exec user names no command".into(),
        ));
    };
    if exec.interactive_mode == Some(ExecInteractiveMode::Always) {
        let message = format!(
            "the credential plugin {program:?} needs a terminal of its own (interactiveMode: Always)"
        );
        return Err(misconfigured(message));
    }
    let mut child = command(program, exec)
        .spawn()
        .map_err(|error| misconfigured(not_started(program, exec, &error)))?;
    let output = read_output(&mut child, LONGEST_RUN);
    if output.is_err() {
        // It may run still, and nobody would read what it says. An error means that it has ended.
        let _ = child.kill();
    }
    let failed = |what: String| {
        failure(
            FailureKind::Unauthorized,
            format!("the credential plugin {program:?} {what}"),
        )
    };
    let status = child
        .wait()
        .map_err(|error| failed(format!("was lost: {}", plain(&error))))?;
    let output = output.map_err(|error| failed(plain(&error)))?;
    if !status.success() {
        return Err(failed(format!("failed with {status}")));
    }
    parse(&output).map_err(failed)
}

fn command(program: &str, exec: &ExecConfig) -> Command {
    let mut command = Command::new(program);
    command.args(exec.args.iter().flatten());
    for variable in exec.env.iter().flatten() {
        if let (Some(name), Some(value)) = (variable.get("name"), variable.get("value")) {
            command.env(name, value);
        }
    }
    let mut spec = json!({ "interactive": false });
    if let Some(cluster) = exec
        .cluster
        .as_ref()
        .and_then(|cluster| serde_json::to_value(cluster).ok())
    {
        spec["cluster"] = cluster;
    }
    let request = json!({ "apiVersion": exec.api_version, "kind": "ExecCredential", "spec": spec });
    command.env("KUBERNETES_EXEC_INFO", request.to_string());
    // Standard input is the command's. Standard error is where a plugin tells people what to do.
    command.stdin(Stdio::null()).stdout(Stdio::piped());
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
fn read_output(child: &mut Child, limit: Duration) -> io::Result<Vec<u8>> {
    let started = Instant::now();
    let mut output = Vec::new();
    let Some(mut stdout) = child.stdout.take() else {
        return Ok(output);
    };
    let mut piece = [0; 8192];
    loop {
        let left = limit.saturating_sub(started.elapsed());
        let mut ready = [PollFd::new(stdout.as_fd(), PollFlags::POLLIN)];
        match poll(
            &mut ready,
            PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX),
        ) {
            Ok(0) => {
                return Err(io::Error::other(format!(
                    "was still running after {} s",
                    limit.as_secs()
                )));
            }
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

/// Reads an ExecCredential; the error says what the plugin did.
fn parse(output: &[u8]) -> Result<Credentials, String> {
    let credential: Value = serde_json::from_slice(output)
        .map_err(|_| "printed something else than an ExecCredential".to_owned())?;
    let status = &credential["status"];
    let text = |name: &str| {
        status[name]
            .as_str()
            .filter(|text| !text.trim().is_empty())
            .map(str::to_owned)
    };
    let token = text("token").map(|token| token.trim().to_owned());
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
    Ok(Credentials {
        token,
        certificate,
        expires,
    })
}

/// Long enough for a person to log in by a browser.
const LONGEST_RUN: Duration = Duration::from_secs(120);

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

    #[test]
    fn plugin_is_told_what_is_asked_and_gives_a_token() {
        let credentials = run(&plugin(
            r#"case $KUBERNETES_EXEC_INFO in *'"interactive":false'*) ;; *) exit 1;; esac
               read -r line && exit 2
               printf '%s' '{"kind":"ExecCredential","status":{"token":"'$GIVEN'\n","expirationTimestamp":"2030-01-01T00:00:00Z"}}'"#,
        ));
        let credentials = credentials.map_err(|failure| failure.message).unwrap();
        assert_eq!(credentials.token.as_deref(), Some("abc"));
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
                "echo '{}'",
                FailureKind::Unauthorized,
                "neither a token nor a client certificate",
            ),
        ] {
            let failure = run(&plugin(script)).err().unwrap();
            assert_eq!(failure.kind, kind);
            assert!(
                failure.message.contains("\"/bin/sh\""),
                "{}",
                failure.message
            );
            assert!(failure.message.contains(named), "{}", failure.message);
        }
        let absent = ExecConfig {
            command: Some("/nonexistent/plugin".into()),
            install_hint: Some("get it\nsomewhere".into()),
            ..ExecConfig::default()
        };
        let failure = run(&absent).err().unwrap();
        assert_eq!(failure.kind, FailureKind::Misconfigured);
        assert_eq!(
            failure.message,
            "can't run the credential plugin \"/nonexistent/plugin\": no such file or directory (get it somewhere)"
        );
    }

    #[test]
    fn plugin_that_hangs_is_given_up() {
        let mut child = command(
            "sleep",
            &ExecConfig {
                args: Some(vec!["60".into()]),
                ..ExecConfig::default()
            },
        )
        .spawn()
        .unwrap();
        let error = read_output(&mut child, Duration::from_millis(50)).unwrap_err();
        assert_eq!(error.to_string(), "was still running after 0 s");
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
