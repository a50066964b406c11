//! What sees to it that nothing of the tests stays, however their process ends.
//!
//! Destructors do not run in a process that is killed, nor for statics, and PR_SET_PDEATHSIG is sent
//! when the *thread* ends that started a process, which is that of a test. So a helper waits for the
//! end of a pipe whose other end only the process of the tests has. Then it kills all processes that
//! it knows by their cgroup or their environment, and removes the cgroups, the network and the
//! directory for temporary files.

use std::{
    env,
    ffi::OsString,
    io::{self, PipeWriter},
    os::unix::process::CommandExt,
    process::{Child, Command, Stdio},
};

/// The helper. Dropping this has it do its work, and waits for that.
pub(crate) struct Janitor {
    helper: Child,
    /// `None` while being dropped.
    lifeline: Option<PipeWriter>,
}

impl Janitor {
    /// Starts the helper, has temporary files made in a directory of this process's own, and clears
    /// away what processes have left whose janitor was killed too.
    ///
    /// # Safety
    ///
    /// There must be one thread only.
    pub(crate) unsafe fn hire() -> Self {
        // Short: in it are sockets, whose paths may have 107 bytes.
        let directory = tempfile::Builder::new().prefix("lxt-").tempdir();
        let directory = directory.expect("a temporary directory can be made").keep();
        let mut mark = OsString::from("TMPDIR=");
        mark.push(&directory);
        // Both ends are close-on-exec, so that no process that a test starts keeps the pipe.
        let (end, lifeline) = io::pipe().expect("a pipe can be made");
        let helper = Command::new("sh")
            .args(["-c", SCRIPT, "janitor", PREFIX, &name()])
            .args([&mark, directory.as_os_str()])
            .stdin(end)
            .stdout(Stdio::null())
            // Ctrl-C in a terminal doesn't reach it.
            .process_group(0)
            .current_dir("/")
            .spawn()
            .expect("sh can be run");
        // SAFETY: nobody else can read the environment meanwhile. The helper has not got it.
        unsafe { env::set_var("TMPDIR", &directory) };
        Self {
            helper,
            lifeline: Some(lifeline),
        }
    }
}

impl Drop for Janitor {
    fn drop(&mut self) {
        self.lifeline = None;
        // Nothing to do about an error: this may be unwinding already.
        let _ = self.helper.wait();
    }
}

/// What the names of all begin with that this process makes in the kernel: cgroups and network
/// interfaces, whose names have at most 15 bytes.
pub(crate) fn name() -> String {
    format!("{PREFIX}{}", std::process::id())
}

const PREFIX: &str = "lxt";

/// A killed process goes a little later than the kill returns, so that removing may have to be tried
/// again; and one look may miss the child of a process that ends meanwhile.
const SCRIPT: &str = r#"
set -u
trap '' HUP INT QUIT TERM
prefix=$1 name=$2 mark=$3 directory=$4
# These say what is killed and removed, so that none may be less than it should be.
case $prefix:$name:$mark:$directory in
lxt:lxt[0-9]*:TMPDIR=/*/lxt-*:/*/lxt-*) ;;
*) exit 1 ;;
esac
mounts=$(sed -n 's/^[^ ]* [^ ]* [^ ]* [^ ]* \([^ ]*\) .* - cgroup2\{0,1\} .*/\1/p' /proc/self/mountinfo)
version_2=$(sed -n 's/^[^ ]* [^ ]* [^ ]* [^ ]* \([^ ]*\) .* - cgroup2 .*/\1/p' /proc/self/mountinfo | head -n 1)
leaves=
cgroups() {
    for mount in $mounts; do
        for cgroup in "$mount/$1" "$mount/$1"-*; do
            if [ -d "$cgroup" ]; then echo "$cgroup"; fi
        done
    done
    for leaf in $leaves; do
        if [ -d "$leaf" ]; then echo "$leaf"; fi
    done
}
kill_all() {
    for cgroup in $(cgroups "$1"); do
        [ ! -e "$cgroup/freezer.state" ] || echo THAWED >"$cgroup/freezer.state"
        [ ! -e "$cgroup/cgroup.kill" ] || echo 1 >"$cgroup/cgroup.kill"
    done
    # The mark is that of this run: another run's processes are known by their cgroups alone.
    [ "$1" = "$name" ] || return
    found=no
    for file in $(grep -lszxF -e "$mark" /proc/[0-9]*/environ); do
        process=${file%/environ} found=yes
        leaf=$(sed -n 's/^0::\(.*\/lease-exec-[^/]*\).*/\1/p' "$process/cgroup" 2>/dev/null)
        leaves="$leaves ${leaf:+$version_2$leaf}"
        kill -s KILL "${process#/proc/}" 2>/dev/null
    done
    [ $found = yes ]
}
sweep() {
    looks=0
    for attempt in $(seq 100); do
        if kill_all "$1"; then looks=0; else looks=$((looks + 1)); fi
        for cgroup in $(cgroups "$1"); do
            find "$cgroup" -depth -type d -exec rmdir {} \; 2>/dev/null
        done
        if [ $looks -ge 2 ] && [ -z "$(cgroups "$1")" ]; then break; fi
        sleep 0.05
    done
    for file in /run/netns/"$1"n*; do
        if [ -e "$file" ]; then ip netns del "${file##*/}"; fi
    done
    if [ -e "/sys/class/net/$1b" ]; then ip link del "$1b"; fi
}
for mount in $mounts; do
    for cgroup in "$mount/$prefix"[0-9]*; do
        pid=${cgroup##*/"$prefix"}
        pid=${pid%%-*}
        if [ -d "$cgroup" ] && [ ! -e "/proc/$pid" ]; then sweep "$prefix$pid"; fi
    done
done
cat
sweep "$name"
for attempt in $(seq 100); do
    rm -rf -- "$directory" 2>/dev/null && break
    sleep 0.05
done
"#;
