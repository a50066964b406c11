//! What a process gets from the place where the tests were started: made the same everywhere, once,
//! in the process of the tests, from which all that they start inherits it.
//!
//! Must not: decide what a test sets itself.

use std::{env, ffi::OsString, fs, os::unix::ffi::OsStringExt, process::Command, ptr};

use nix::sys::{
    resource::{RLIM_INFINITY, Resource, getrlimit, setrlimit},
    signal::SigSet,
    stat::{Mode, umask},
};

/// Makes this process's surroundings those of all machines.
///
/// # Safety
///
/// There must be one thread only.
pub(crate) unsafe fn settle() {
    (1..=64).for_each(heed);
    let unblocked = SigSet::empty().thread_set_mask();
    unblocked.expect("signals can be unblocked");
    umask(Mode::from_bits_truncate(0o022));
    for (resource, limit) in LIMITS {
        limit_to(resource, limit);
    }
    // SAFETY: the call takes no pointers; a descriptor that stays open here disturbs nobody.
    unsafe { libc::close_range(3, u32::MAX, libc::CLOSE_RANGE_CLOEXEC as i32) };
    for (name, _) in env::vars_os() {
        if !name.to_str().is_some_and(is_kept) {
            // SAFETY: as is said above, nobody else can read the environment meanwhile.
            unsafe { env::remove_var(name) };
        }
    }
    // SAFETY: as above.
    unsafe { env::set_var("HOME", env!("CARGO_TARGET_TMPDIR")) };
}

/// Gives a command the environment that the tests were started with, as what fetches and builds
/// programs needs the caller's proxies, caches and toolchain.
pub(crate) fn as_the_caller(command: &mut Command) -> &mut Command {
    // It stays as it was at the start, see proc_pid_environ(5).
    let environment = fs::read("/proc/self/environ").expect("/proc is mounted");
    let variables = environment.split(|byte| *byte == 0).filter_map(|variable| {
        let at = variable.iter().position(|byte| *byte == b'=')?;
        let [name, value] =
            [&variable[..at], &variable[at + 1..]].map(|bytes| OsString::from_vec(bytes.to_vec()));
        Some((name, value))
    });
    command.env_clear().envs(variables)
}

/// Whether a variable is one for the tests, or says where things are on this machine.
fn is_kept(name: &str) -> bool {
    [
        "PATH",
        "TMPDIR",
        "KUBEBUILDER_ASSETS",
        "RUST_BACKTRACE",
        "TERM_ROUNDS",
    ]
    .contains(&name)
        || ["HERD_", "RUST_TEST_", "TEST_"]
            .iter()
            .any(|prefix| name.starts_with(prefix))
}

/// Ends that a signal is ignored. What Rust ignores itself, SIGPIPE, it resets in every child.
///
/// The C library's function refuses the signals that it keeps for itself.
fn heed(signal: i32) {
    let set = |new: *const usize, old: *mut usize| {
        // SAFETY: both are null or the kernel's sigaction, of at most four words.
        unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, new, old, 8_usize) }
    };
    let (mut action, default) = ([0; 4], [0; 4]);
    let is_known = set(ptr::null(), action.as_mut_ptr()) == 0;
    if is_known && action[0] == libc::SIG_IGN && signal != libc::SIGPIPE {
        set(default.as_ptr(), ptr::null_mut());
    }
}

/// Sets a limit, if need be and if that may be with more than was allowed.
fn limit_to(resource: Resource, limit: u64) {
    let (_, hard) = getrlimit(resource).expect("there is such a limit");
    if setrlimit(resource, limit, hard.max(limit)).is_err() {
        // Who is not root keeps to what is allowed.
        let _ = setrlimit(resource, limit.min(hard), hard);
    }
}

/// As most machines have them, but for files: 50 standbys' pipes take more than 1024.
const LIMITS: [(Resource, u64); 8] = [
    (Resource::RLIMIT_AS, RLIM_INFINITY),
    (Resource::RLIMIT_CORE, 0),
    (Resource::RLIMIT_CPU, RLIM_INFINITY),
    (Resource::RLIMIT_DATA, RLIM_INFINITY),
    (Resource::RLIMIT_FSIZE, RLIM_INFINITY),
    (Resource::RLIMIT_NOFILE, 4096),
    (Resource::RLIMIT_NPROC, RLIM_INFINITY),
    (Resource::RLIMIT_STACK, 8 << 20),
];
