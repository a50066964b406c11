//! kube-scheduler, which here has nothing to do but to hold a lease the way client-go does.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use super::free_port;
use super::servers::{Server, ServerGroup};
use super::version::minor_version;

/// The times of client-go's leader election.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ElectionTimes {
    /// How long the others wait after the last renewal they saw.
    pub(crate) lease_duration: Duration,
    /// How long the holder tries to renew before it gives up.
    pub(crate) renew_deadline: Duration,
    /// How often both try.
    pub(crate) retry_period: Duration,
}

impl ElectionTimes {
    /// Times for a test that doesn't want to wait.
    pub(crate) const SHORT: Self = Self {
        lease_duration: Duration::from_secs(3),
        renew_deadline: Duration::from_secs(2),
        retry_period: Duration::from_millis(500),
    };
}

/// A running kube-scheduler, killed when it is dropped. It doesn't release the lease then.
pub(crate) struct Scheduler {
    server: Server,
}

impl Scheduler {
    pub(super) fn start(
        group: &ServerGroup,
        program: &Path,
        kubeconfig: &Path,
        namespace: &str,
        lease: &str,
        times: ElectionTimes,
    ) -> Self {
        let port = free_port();
        let mut command = Command::new(program);
        command
            .args(["--leader-elect=true", "--leader-elect-resource-lock=leases"])
            .arg(format!("--leader-elect-resource-namespace={namespace}"))
            .arg(format!("--leader-elect-resource-name={lease}"))
            .arg(format!(
                "--leader-elect-lease-duration={}",
                milliseconds(times.lease_duration)
            ))
            .arg(format!(
                "--leader-elect-renew-deadline={}",
                milliseconds(times.renew_deadline)
            ))
            .arg(format!(
                "--leader-elect-retry-period={}",
                milliseconds(times.retry_period)
            ))
            .args(["--bind-address=127.0.0.1", "--cert-dir=."])
            .arg(format!("--secure-port={port}"));
        for option in [
            "--kubeconfig",
            "--authentication-kubeconfig",
            "--authorization-kubeconfig",
        ] {
            command.arg(option).arg(kubeconfig);
        }
        // As with kube-apiserver: a second port, without TLS, and an option that is gone later.
        if minor_version(program) < 24 {
            command.arg("--port=0");
        }
        let server = group.start(&format!("kube-scheduler-{port}"), &mut command);
        Self { server }
    }

    /// Whether it has got the lease at any time since its start.
    pub(crate) fn has_led(&self) -> bool {
        self.says("successfully acquired lease")
    }

    /// Whether it has logged this. Later versions begin a line's text with a capital letter.
    pub(crate) fn says(&self, text: &str) -> bool {
        self.log().to_lowercase().contains(text)
    }

    /// Whether it is running. It ends when it loses the lease.
    pub(crate) fn is_running(&mut self) -> bool {
        self.server.is_running()
    }

    /// Stops it with SIGSTOP: it renews no more, and doesn't know.
    pub(crate) fn stop(&mut self) {
        self.server.stop();
    }

    /// Lets it continue when stopped.
    pub(crate) fn resume(&mut self) {
        self.server.resume();
    }

    /// All that it has logged.
    pub(crate) fn log(&self) -> String {
        self.server.log()
    }
}

fn milliseconds(duration: Duration) -> String {
    format!("{}ms", duration.as_millis())
}
