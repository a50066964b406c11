//! What the API server counts, and how long processes have run.

use std::{
    collections::BTreeMap,
    fs,
    ops::{AddAssign, Sub},
    time::Duration,
};

use http::Method;
use serde_json::Value;

use crate::control_plane::ControlPlane;

/// Requests for Leases by verb and code, as the API server has counted them. A watch is counted when
/// it ends.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Requests(BTreeMap<(String, String), u64>);

impl Requests {
    /// Reads the counters, without what the API server has written for itself.
    pub(crate) fn of(control_plane: &ControlPlane) -> Self {
        let mut requests = Self::default();
        for (labels, value) in samples(control_plane, "apiserver_request_total") {
            let key = (label(&labels, "verb"), label(&labels, "code"));
            *requests.0.entry(key).or_default() += value;
        }
        let written = ("PUT".to_owned(), "200".to_owned());
        if let Some(count) = requests.0.get_mut(&written) {
            *count = count.saturating_sub(own_writes(control_plane));
        }
        requests
    }

    /// How many there were with this verb.
    pub(crate) fn with_verb(&self, verb: &str) -> u64 {
        let counted = self.0.iter().filter(|((other, _), _)| other == verb);
        counted.map(|(_, count)| count).sum()
    }

    /// How many were answered so.
    pub(crate) fn with_code(&self, code: &str) -> u64 {
        let counted = self.0.iter().filter(|((_, other), _)| other == code);
        counted.map(|(_, count)| count).sum()
    }

    /// How many there were.
    pub(crate) fn total(&self) -> u64 {
        self.0.values().sum()
    }
}

impl Sub for &Requests {
    type Output = Requests;

    /// Those since an earlier look.
    fn sub(self, earlier: Self) -> Requests {
        let since = self.0.iter().map(|(key, count)| {
            let before = earlier.0.get(key).copied().unwrap_or_default();
            (key.clone(), count.saturating_sub(before))
        });
        Requests(since.collect())
    }
}

impl AddAssign for Requests {
    fn add_assign(&mut self, more: Self) {
        for (key, count) in more.0 {
            *self.0.entry(key).or_default() += count;
        }
    }
}

/// How often the API server has written the Lease that says that it lives, which it has since
/// Kubernetes 1.26. No counter tells whose Lease a request was for, but etcd knows how often a key
/// was written.
fn own_writes(control_plane: &ControlPlane) -> u64 {
    let mut etcdctl = control_plane.etcdctl();
    etcdctl.args(["get", "--prefix", "/registry/leases/kube-system/"]);
    let output = etcdctl.args(["--write-out", "json"]).output();
    let output = output.expect("etcdctl can be run");
    assert!(output.status.success(), "etcdctl: {output:?}");
    let answer: Value = serde_json::from_slice(&output.stdout).expect("etcdctl prints JSON");
    let keys = answer["kvs"].as_array().into_iter().flatten();
    keys.filter_map(|key| key["version"].as_u64()).sum()
}

/// How many watches of Leases are open.
pub(crate) fn open_watches(control_plane: &ControlPlane) -> u64 {
    // The second name is the one since Kubernetes 1.23.
    let names = [
        "apiserver_longrunning_gauge",
        "apiserver_longrunning_requests",
    ];
    let counted = names
        .iter()
        .flat_map(|name| samples(control_plane, name))
        .filter(|(labels, _)| label(labels, "verb") == "WATCH");
    counted.map(|(_, count)| count).sum()
}

/// A metric's samples that are about Leases: labels and value.
fn samples(control_plane: &ControlPlane, name: &str) -> Vec<(String, u64)> {
    let (status, text) = control_plane.raw(Method::GET, "/metrics", None);
    let text = text.as_str().unwrap_or_default();
    assert_eq!(status, 200, "the API server tells its metrics: {text}");
    let samples = text.lines().filter_map(|line| {
        let (labels, value) = line
            .strip_prefix(name)?
            .strip_prefix('{')?
            .rsplit_once("} ")?;
        let value = value.parse().ok()?;
        (label(labels, "resource") == "leases").then(|| (labels.to_owned(), value))
    });
    samples.collect()
}

/// A label's value; none of those that are asked for has a quotation mark in it.
fn label(labels: &str, name: &str) -> String {
    let value = labels.split(',').find_map(|label| {
        let value = label.strip_prefix(name)?.strip_prefix("=\"")?;
        value.strip_suffix('"')
    });
    value.unwrap_or_default().to_owned()
}

/// How long a process has run on some CPU, by the first number of its threads' schedstat, see "Per
/// process stats" in the kernel's scheduler/sched-stats.
pub(crate) fn cpu_time(pid: i32) -> Duration {
    let threads = fs::read_dir(format!("/proc/{pid}/task"))
        .unwrap_or_else(|err| panic!("failed to read the threads of {pid}: {err}"));
    let nanoseconds = threads.flatten().map(|thread| {
        // A thread may have ended.
        let stat = fs::read_to_string(thread.path().join("schedstat")).unwrap_or_default();
        let first = stat.split_whitespace().next();
        first
            .and_then(|text| text.parse::<u64>().ok())
            .unwrap_or_default()
    });
    Duration::from_nanos(nanoseconds.sum())
}
