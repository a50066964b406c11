//! A command that tells which signals it gets, each as often as it gets it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

/// The program, compiled once.
pub(crate) fn listener() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let directory = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let program = directory.join("listener");
        // Another run of the tests may be about to do the same.
        let own = directory.join(format!("listener-{}", std::process::id()));
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/listener/listener.c");
        let status = Command::new("cc").arg("-o").arg(&own).arg(source).status();
        let status = status.expect("cc can be run; tests/run.sh installs it");
        assert!(status.success(), "{source} can't be compiled");
        fs::rename(&own, &program).expect("a file in our own directory can be renamed");
        program
    })
}

/// The numbers in what it has printed so far.
pub(crate) fn heard(stdout: &str) -> Vec<i32> {
    stdout
        .lines()
        .filter_map(|line| line.parse().ok())
        .collect()
}
