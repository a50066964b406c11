//! Cgroups of the tests' own, of version 1 or 2. They go with what they were made for, and with the
//! process of the tests at the latest, see `janitor.rs`.

use std::{
    fs::{self, File},
    io::Write,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
};

use crate::{
    janitor,
    wait::{LIMIT, try_wait_until},
};

/// A cgroup of a test's own, with one controller of version 1 or 2. Dropping it kills all in it.
pub(crate) struct TestCgroup {
    path: PathBuf,
}

impl TestCgroup {
    /// A cgroup of version 2, wherever that is mounted.
    pub(crate) fn version_2() -> Self {
        Self::try_version_2().expect("a cgroup of version 2 can be made; these tests need root")
    }

    /// The same; `None` where no such cgroup can be made.
    pub(crate) fn try_version_2() -> Option<Self> {
        Self::below(&mount_of(|kind, _| kind == "cgroup2")?)
    }

    pub(crate) fn mount_of_version_2() -> PathBuf {
        mount_of(|kind, _| kind == "cgroup2").expect("cgroups of version 2 are mounted")
    }

    /// One of version 1, with this controller.
    pub(crate) fn with(controller: &str) -> Self {
        let has_it = |kind: &str, options: &str| {
            kind == "cgroup" && options.split(',').any(|option| option == controller)
        };
        let mount =
            mount_of(has_it).expect("cgroups of version 1 are mounted, with this controller");
        Self::below(&mount).expect("a cgroup can be made; these tests need root")
    }

    fn below(mount: &Path) -> Option<Self> {
        static CGROUPS: AtomicU32 = AtomicU32::new(0);
        let number = CGROUPS.fetch_add(1, Ordering::Relaxed);
        let path = mount.join(format!("{}-{number}", janitor::name()));
        fs::create_dir(&path).ok()?;
        Some(Self { path })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn set(&self, file: &str, value: &str) {
        let path = self.path.join(file);
        fs::write(&path, value).unwrap_or_else(|err| panic!("{}: {err}", path.display()));
    }

    pub(crate) fn get(&self, file: &str) -> String {
        let text = fs::read_to_string(self.path.join(file)).expect("it can be read");
        text.trim_end().to_owned()
    }

    /// What puts the program that follows into it.
    pub(crate) fn around(&self) -> [String; 4] {
        let procs = self.path.join("cgroup.procs");
        let script = "echo $$ >\"$0\" && exec \"$@\"";
        let words = ["sh", "-c", script, procs.to_str().expect("UTF-8")];
        words.map(str::to_owned)
    }

    /// Kills all in it that SIGKILL can kill.
    pub(crate) fn kill(&self) {
        for (file, word) in [("freezer.state", "THAWED"), ("cgroup.kill", "1")] {
            if self.path.join(file).exists() {
                let _ = fs::write(self.path.join(file), word);
            }
        }
    }
}

impl Drop for TestCgroup {
    fn drop(&mut self) {
        self.kill();
        let _ = try_wait_until(LIMIT, || {
            for entry in fs::read_dir(&self.path).into_iter().flatten().flatten() {
                let _ = fs::remove_dir(entry.path());
            }
            fs::remove_dir(&self.path).ok()
        });
    }
}

/// Has a command begin in this cgroup of version 2.
pub(crate) fn begin_in(cgroup: &Path, command: &mut Command) {
    let procs = File::options()
        .write(true)
        .open(cgroup.join("cgroup.procs"));
    let procs = procs.expect("who has made a cgroup may write to it");
    let enter = move || (&procs).write_all(b"0");
    // SAFETY: all that it does after the fork is one system call.
    unsafe { command.pre_exec(enter) };
}

/// Where a file system of this type and with these options of its own is mounted.
fn mount_of(is_it: impl Fn(&str, &str) -> bool) -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("/proc is mounted");
    mounts.lines().find_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        let mut after = after.split(' ');
        let kind = after.next()?;
        let options = after.nth(1)?;
        let point = before.split(' ').nth(4)?;
        is_it(kind, options).then(|| PathBuf::from(point))
    })
}
