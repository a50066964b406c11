//! Which Kubernetes this is, and what is no matter for it.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::Path;
use std::thread;

use super::{output, programs};

/// Whether Kubernetes is 1.`minor` or later, as the test that asks needs it to be. If not, the test is not
/// applicable, and says so where `tests/run.sh` counts it; then it returns.
pub(crate) fn needs_kubernetes(minor: u32, reason: &str) -> bool {
    let program = programs().join("kube-apiserver");
    if minor_version(&program) >= minor {
        return true;
    }
    let version = output(&program, "--version");
    let version = version.trim().replace(" v", " ");
    let current = thread::current();
    let name = current.name().unwrap_or("a test");
    let line = format!("not applicable on {version}: {name} ({reason})\n");
    // The standard error of tests that pass is not shown, but for what is written in this way.
    let _ = io::stderr().write_all(line.as_bytes());
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("not-applicable");
    let file = File::options().create(true).append(true).open(&path);
    // One write, so that lines of several tests do not mix.
    file.and_then(|mut file| file.write_all(line.as_bytes()))
        .unwrap_or_else(|err| panic!("failed to write {}: {err}", path.display()));
    false
}

/// The second number in, for instance, `Kubernetes v1.20.2`.
pub(super) fn minor_version(program: &Path) -> u32 {
    let version = output(program, "--version");
    let minor = version
        .split('.')
        .nth(1)
        .and_then(|minor| minor.parse().ok());
    minor.unwrap_or_else(|| panic!("{} has an odd version: {version}", program.display()))
}
