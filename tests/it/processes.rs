//! The processes of one run, as they are seen from outside: found in `/proc` by a mark in their
//! environment, never by what lease-exec says of them.

use std::{
    fs::{self, File},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tempfile::TempDir;

pub(crate) use crate::cgroup::TestCgroup;

use crate::{
    wait::{LIMIT, try_wait_until, wait_until},
    world::{Invocation, LEASE, Running, World, is_alive, now},
};

/// With which means of its own lease-exec has to get along.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Level {
    /// It can make a cgroup for the command.
    Cgroup,
    /// No cgroup of version 2 is to be seen.
    Tree,
}

/// Both, for what must be true with and without a cgroup.
pub(crate) const LEVELS: [Level; 2] = [Level::Cgroup, Level::Tree];

/// Checks something that must be true with and without a cgroup, at the same time, as both wait most of
/// it.
pub(crate) fn at_both_levels(check: impl Fn(Level) + Sync) {
    thread::scope(|scope| {
        for level in LEVELS {
            let thread = thread::Builder::new().name(format!("{level:?}"));
            let check = &check;
            let started = thread.spawn_scoped(scope, move || check(level));
            started.expect("a thread can be started");
        }
    });
}

/// Hides the file systems of cgroups of version 2 from what it executes. They are still listed, and at
/// the place of its own cgroup there is a directory that is none.
const HIDE_CGROUPS: &str = "sed -n 's/^[^ ]* [^ ]* [^ ]* [^ ]* \\([^ ]*\\) .* - cgroup2 .*/\\1/p' \
                            /proc/self/mountinfo | while read -r place; do \
                            mount -t tmpfs none \"$place\"; \
                            mkdir -p \"$place$(sed -n s/^0:://p /proc/self/cgroup)\"; \
                            done; exec \"$@\"";

impl Level {
    /// Starts lease-exec so; its pid is that of what is started.
    pub(crate) fn apply(self, invocation: Invocation) -> Invocation {
        match self {
            Self::Cgroup => invocation,
            Self::Tree => {
                invocation.under(["unshare", "--mount", "--", "sh", "-c", HIDE_CGROUPS, "sh"])
            }
        }
    }
}

/// A mark that only the command of one run and its descendants carry.
pub(crate) struct Mark(String);

impl Mark {
    pub(crate) fn new() -> Self {
        static MARKS: AtomicU32 = AtomicU32::new(0);
        let number = MARKS.fetch_add(1, Ordering::Relaxed);
        Self(format!("MARK_OF_TREE={}-{number}", std::process::id()))
    }

    /// A command line that runs a script, marked.
    pub(crate) fn script<'a>(&'a self, script: &'a str) -> [&'a str; 5] {
        ["env", &self.0, "sh", "-c", script]
    }

    /// A command line, marked.
    pub(crate) fn command<'a>(&'a self, argv: &[&'a str]) -> Vec<&'a str> {
        [&["env", &self.0], argv].concat()
    }

    /// The pids of all that carry the mark and live. A process that a signal has ended, but that
    /// nobody has reaped, has no environment any more.
    pub(crate) fn alive(&self) -> Vec<i32> {
        pids()
            .filter(|pid| {
                let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
                let mut variables = environment.split(|byte| *byte == 0);
                variables.any(|variable| variable == self.0.as_bytes())
            })
            .filter(|pid| is_alive(*pid))
            .collect()
    }

    /// Waits until there are so many.
    #[track_caller]
    pub(crate) fn wait_for(&self, count: usize) -> Vec<i32> {
        wait_until(format!("{count} processes are there"), LIMIT, || {
            Some(self.alive()).filter(|alive| alive.len() == count)
        })
    }

    /// Waits until nobody lives, and returns how long that took.
    #[track_caller]
    pub(crate) fn wait_for_nobody(&self) -> Duration {
        let since = Instant::now();
        if try_wait_until(LIMIT, || self.alive().is_empty().then_some(())).is_none() {
            let alive = self.alive();
            let names = alive.iter().map(|pid| (*pid, name(*pid), state(*pid)));
            panic!("still alive: {:?}", names.collect::<Vec<_>>());
        }
        since.elapsed()
    }
}

/// Who is left goes with the test, whether it passes or not.
impl Drop for Mark {
    fn drop(&mut self) {
        for pid in self.alive() {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}

/// The tree that containment is measured by: the command, a plain child, one in a session of its
/// own, an orphan in yet another, one that ignores what can be ignored (when a command dies that has a
/// stopped child, the kernel sends SIGHUP to the group), and one that is stopped.
pub(crate) const TREE: &str = "sleep 7777 & setsid sleep 7777 & \
    (setsid sh -c 'sleep 7777 & exit 0' &); \
    sh -c 'trap \"\" HUP INT QUIT TERM; exec sleep 7777' & \
    (sleep 7777 & kill -STOP $!); \
    wait";

/// A run of [`TREE`], grown to its full size.
pub(crate) struct Grown {
    pub(crate) running: Running,
    pub(crate) mark: Mark,
    /// Those in the command's process group.
    pub(crate) group: Vec<i32>,
    pub(crate) guard: i32,
    /// Where it all is, but for the command's own: a lease-exec that starts in the same cgroup ends
    /// what dead ones have left there, and would hide that they have left something.
    outer: Option<TestCgroup>,
}

impl Grown {
    pub(crate) fn start(world: &World, level: Level, lease_duration: &str) -> Self {
        let invocation = world
            .lease_exec()
            .args(["-v", "--lease-duration", lease_duration]);
        let outer = TestCgroup::version_2();
        let around = |invocation: Invocation| invocation.under(outer.around());
        let mut grown = Self::start_as(invocation, level, around);
        grown.outer = Some(outer);
        grown
    }

    /// The same with something around it all.
    pub(crate) fn start_as(
        invocation: Invocation,
        level: Level,
        around: impl FnOnce(Invocation) -> Invocation,
    ) -> Self {
        let mark = Mark::new();
        let invocation = invocation.command(mark.script(TREE));
        let running = around(level.apply(invocation)).start();
        let tree = wait_until("the tree has grown", LIMIT, || {
            let alive = mark.alive();
            // The stopped one may not have become what it is to be.
            let running = alive.iter().filter(|pid| state(**pid) != 'T');
            let sleeps = running.clone().filter(|pid| name(**pid) == "sleep").count();
            ((alive.len(), running.count(), sleeps) == (6, 5, 4)).then_some(alive)
        });
        let guard = guard_of(&running);
        let own_group = |pid: i32| field(pid, 5);
        let command = tree.iter().find(|pid| field(**pid, 4) == guard.to_string());
        let command = *command.expect("the command is the guard's child");
        let group = tree
            .iter()
            .copied()
            .filter(|pid| own_group(*pid) == own_group(command))
            .collect::<Vec<_>>();
        assert_eq!(group.len(), 4, "two have left the group");
        let in_leaf = cgroup(command).contains("/lease-exec-");
        assert_eq!(in_leaf, level == Level::Cgroup, "{}", cgroup(command));
        Self {
            running,
            mark,
            group,
            guard,
            outer: None,
        }
    }

    /// Sends front and guard a signal, in this order.
    pub(crate) fn signal_both(&self, both: Signal) {
        self.running.signal(both);
        signal(self.guard, both);
    }

    /// Waits until nobody in the command's group lives.
    #[track_caller]
    pub(crate) fn wait_for_group(&self) {
        let group = &self.group;
        wait_until(format!("the group {group:?} is dead"), LIMIT, || {
            (!group.iter().any(|pid| is_alive(*pid))).then_some(())
        });
    }
}

/// lease-exec in the foreground of a terminal of its own, where the command joins the group of the
/// shell that started it. All of it goes with its test.
pub(crate) struct InTerminal {
    terminal: Child,
    code: PathBuf,
    pub(crate) front: i32,
}

impl InTerminal {
    /// Starts it; the shell starts `beside` in the background first.
    pub(crate) fn start(world: &World, beside: &str, arguments: &str) -> Self {
        let file = |name: &str| world.path().join(name);
        let (session, pid, code) = (file("session"), file("front"), file("code"));
        // The shell outlives it: the end of a session's leader is a hangup for the whole group.
        let script = format!(
            "{beside} &\nsh -c 'echo $$ >{pid}; exec {exe} --lease {LEASE} --store file:{store} \
             {arguments}'\necho $? >{code}\nexec sleep 7777\n",
            pid = pid.display(),
            exe = env!("CARGO_BIN_EXE_lease-exec"),
            store = world.store().display(),
            code = code.display(),
        );
        fs::write(&session, script).expect("it can be written");
        let mut terminal = Command::new("script");
        world.take_in(&mut terminal);
        let terminal = terminal
            .args(["--quiet", "--return", "--command"])
            // The group is a job of a shell's, as it is where people work. Otherwise the end of the
            // command, whose parent is in another group, would orphan it, which is a hangup too.
            .arg(format!("bash -mc 'sh {}; :'", session.display()))
            .arg("/dev/null")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .expect("script runs");
        let front = wait_until("lease-exec runs", LIMIT, || {
            let text = fs::read_to_string(&pid).ok()?;
            text.trim().parse().ok()
        });
        Self {
            terminal,
            code,
            front,
        }
    }

    /// Waits for its exit code, as the shell shows it.
    #[track_caller]
    pub(crate) fn wait(&self) -> i32 {
        wait_until("lease-exec ends", LIMIT, || {
            let text = fs::read_to_string(&self.code).ok()?;
            text.trim().parse().ok()
        })
    }
}

impl Drop for InTerminal {
    fn drop(&mut self) {
        let _ = self.terminal.kill();
        let _ = self.terminal.wait();
    }
}

/// Makes the file store hang, as somebody does who is stopped in the middle of a write, until the
/// lock is dropped.
pub(crate) fn hang(world: &World) -> File {
    let name = format!(".{LEASE}.lock");
    let path = world.store().join("default").join(name);
    let lock = File::open(path).expect("the store has a lock");
    lock.lock().expect("it can be locked");
    lock
}

/// Held by who makes the kernel fork without end, or by those who compare a tree's death with the
/// lease's end: on a machine that is so busy nobody may wake up within the reserve, and then nothing
/// is promised.
static FORKING: RwLock<()> = RwLock::new(());

/// Keeps tests away that would disturb a test of the deadline.
pub(crate) fn quiet() -> RwLockReadGuard<'static, ()> {
    FORKING.read().unwrap_or_else(PoisonError::into_inner)
}

/// Keeps tests of the deadline away.
pub(crate) fn noise() -> RwLockWriteGuard<'static, ()> {
    FORKING.write().unwrap_or_else(PoisonError::into_inner)
}

/// Asserts that it is earlier than the stored record's end.
#[track_caller]
pub(crate) fn assert_before_the_end(world: &World, lease_duration: Duration) {
    let end = world.renewed_at() + lease_duration.as_nanos();
    let now = now();
    assert!(now < end, "{} ns too late", now - end);
}

/// What traces a process to meddle with one of its system calls; goes away when dropped.
pub(crate) struct Tracer(Child);

impl Tracer {
    /// Does this, in the words of strace(1), when the process that runs makes the call.
    pub(crate) fn attach(pid: i32, call: &str, injection: &str) -> Self {
        let tracer = Command::new("strace")
            .args([
                "-qq",
                "-p",
                &pid.to_string(),
                "-e",
                &format!("trace={call}"),
            ])
            .args(["-e", &format!("inject={call}:{injection}")])
            .stderr(Stdio::null())
            .spawn()
            .expect("strace runs");
        let tracer = Self(tracer);
        wait_until("it is traced", LIMIT, || {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
            let line = format!("TracerPid:\t{}", tracer.0.id());
            status.lines().any(|other| other == line).then_some(())
        });
        tracer
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub(crate) fn signal(pid: i32, signal: Signal) {
    kill(Pid::from_raw(pid), signal).expect("it can be signalled");
}

/// The guard: the child of front that is called so.
#[track_caller]
pub(crate) fn guard_of(running: &Running) -> i32 {
    guard_below(running.pid())
}

#[track_caller]
pub(crate) fn guard_below(front: i32) -> i32 {
    wait_until("there is a guard", LIMIT, || {
        children(front)
            .into_iter()
            .find(|pid| name(*pid) == "lease-guard")
    })
}

pub(crate) fn children(pid: i32) -> Vec<i32> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    let children = children.unwrap_or_default();
    children
        .split_whitespace()
        .filter_map(|pid| pid.parse().ok())
        .collect()
}

pub(crate) fn pids() -> impl Iterator<Item = i32> {
    let entries = fs::read_dir("/proc").expect("/proc can be read");
    entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
}

/// A process's name; empty if there is none.
pub(crate) fn name(pid: i32) -> String {
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    name.trim_end().to_owned()
}

pub(crate) fn state(pid: i32) -> char {
    field(pid, 3).chars().next().unwrap_or('?')
}

/// A field of `/proc/PID/stat` behind the name, numbered as in proc_pid_stat(5).
fn field(pid: i32, number: usize) -> String {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let rest = stat.rsplit(") ").next().unwrap_or_default();
    let field = rest.split(' ').nth(number - 3);
    field.unwrap_or_default().to_owned()
}

/// A process's cgroup of version 2.
pub(crate) fn cgroup(pid: i32) -> String {
    let cgroups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    let own = cgroups.lines().find_map(|line| line.strip_prefix("0::"));
    own.unwrap_or_default().to_owned()
}

// === Odd processes ===

/// The program of `odd.c`, compiled once.
pub(crate) fn odd() -> &'static Path {
    static ODD: OnceLock<TempDir> = OnceLock::new();
    let directory = ODD.get_or_init(|| {
        let directory = TempDir::new().expect("a temporary directory can be made");
        let everybody = fs::Permissions::from_mode(0o755);
        fs::set_permissions(directory.path(), everybody).expect("it is ours");
        let status = Command::new("cc")
            .args(["-Wall", "-Wextra", "-pthread", "-o"])
            .arg(directory.path().join("odd"))
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/odd.c"))
            .status();
        assert!(status.expect("there is a C compiler").success());
        directory
    });
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| directory.path().join("odd"))
}
