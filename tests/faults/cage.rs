//! Where all instances live: cgroups and network namespaces that are gone when this process is,
//! however it ends.

use std::{
    fs,
    io::{self, PipeWriter},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

/// The place of all instances of this process. Its name is the beginning of the name of everything
/// that this process makes in the kernel.
pub(crate) struct Cage {
    name: String,
    cgroup: PathBuf,
    janitor: Child,
    // `None` while being dropped.
    lifeline: Option<PipeWriter>,
}

impl Cage {
    /// Makes the place, and clears away those that belong to nobody.
    pub(crate) fn new() -> Self {
        let name = format!("{PREFIX}{}", std::process::id());
        let mount = mount_of_cgroups();
        let cgroup = mount.join(&name);
        let status = script("stale", &mount, &name).status();
        assert!(status.expect("sh can be run").success(), "stale cages stay");
        fs::create_dir(&cgroup).expect("a cgroup can be made; these tests need root");
        // Close-on-exec, so that only this process keeps the pipe.
        let (end, lifeline) = io::pipe().expect("a pipe can be made");
        let janitor = script("wait", &mount, &name)
            .stdin(end)
            // Ctrl-C in a terminal doesn't reach it.
            .process_group(0)
            .spawn();
        Self {
            name,
            cgroup,
            janitor: janitor.expect("sh can be run"),
            lifeline: Some(lifeline),
        }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// A new cgroup for one node: what one leaves behind, no other must end.
    pub(crate) fn cgroup(&self, node: &str) -> PathBuf {
        let cgroup = self.cgroup.join(node);
        fs::create_dir(&cgroup).expect("a cgroup can be made");
        cgroup
    }
}

impl Drop for Cage {
    fn drop(&mut self) {
        self.lifeline = None;
        // Nothing to do about an error: we may be unwinding already.
        let _ = self.janitor.wait();
    }
}

/// Kills all that lives in a cgroup, and removes it.
pub(crate) fn clear(cgroup: &Path) {
    let _ = fs::write(cgroup.join("cgroup.kill"), "1");
    // An emptied one stays for a moment; the janitor takes what is left.
    for directory in fs::read_dir(cgroup).into_iter().flatten().flatten() {
        let _ = fs::remove_dir(directory.path());
    }
    let _ = fs::remove_dir(cgroup);
}

const PREFIX: &str = "lxf";

/// Killed processes go a little later than the kill returns, so removing may have to be tried again.
const SCRIPT: &str = r#"
sweep() {
    cgroup=$mount/$1
    for attempt in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
        [ -d "$cgroup" ] || break
        echo 1 >"$cgroup/cgroup.kill"
        sleep 0.05
        find "$cgroup" -depth -type d -exec rmdir {} \; 2>/dev/null
    done
    for file in /run/netns/"$1"n*; do
        [ -e "$file" ] && ip netns del "${file##*/}"
    done
    ip link del "$1b" 2>/dev/null
}
what=$1 mount=$2 name=$3 prefix=$4
case $what in
stale)
    for cgroup in "$mount/$prefix"*; do
        [ -d "$cgroup" ] || continue
        stale=${cgroup##*/}
        [ -d "/proc/${stale#"$prefix"}" ] || sweep "$stale"
    done ;;
wait)
    trap '' HUP INT TERM
    cat
    sweep "$name" ;;
esac
exit 0
"#;

fn script(what: &str, mount: &Path, name: &str) -> Command {
    let mut command = Command::new("sh");
    command
        .args(["-c", SCRIPT, "janitor", what])
        .arg(mount)
        .args([name, PREFIX])
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    command
}

fn mount_of_cgroups() -> PathBuf {
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("/proc is mounted");
    let found = mounts.lines().find_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        let point = before.split(' ').nth(4)?;
        after.starts_with("cgroup2 ").then(|| PathBuf::from(point))
    });
    found.expect("cgroups of version 2, which these tests need, are mounted")
}
