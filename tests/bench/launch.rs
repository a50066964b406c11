//! How a benchmark starts, and that nothing of it stays, however it ends.
//!
//! One that is stopped by Ctrl-C, or killed, runs no destructors, and what it has started is in groups,
//! sessions and cgroups of its own. So the program that cargo starts only runs itself once more and
//! waits. That second one has a directory for all temporary files, whose name is in its environment,
//! and so in that of all that it starts. A janitor notices the end of the first one, kills all that
//! have the name, and removes the directory.
//!
//! Must not: change anything that is measured.

use std::{
    env,
    ffi::OsString,
    io::{self, Write, stderr, stdout},
    os::unix::process::{CommandExt, ExitStatusExt},
    process::{Command, ExitCode, ExitStatus, Stdio},
};

use crate::surroundings;

/// Runs a benchmark as the command line asks for it; `None` asks for help.
pub(crate) fn launch<C>(
    choice: Result<Option<C>, String>,
    usage: &str,
    run: impl FnOnce(&C),
) -> ExitCode {
    match choice {
        Ok(Some(choice)) if env::var_os(DIRECTORY).is_some() => {
            // SAFETY: nobody has started a thread.
            unsafe { surroundings::settle() };
            run(&choice);
        }
        Ok(Some(_)) => return run_again(),
        Ok(None) => writeln!(stdout(), "{usage}").expect("stdout can be written"),
        Err(problem) => {
            // An error would have no place to be told.
            let _ = writeln!(stderr(), "{problem}, see -- --help");
            return ExitCode::from(BAD_USAGE);
        }
    }
    ExitCode::SUCCESS
}

/// Runs this program with the same arguments, and has all removed that it leaves behind.
fn run_again() -> ExitCode {
    let directory = tempfile::Builder::new()
        .prefix("lease-exec-bench-")
        .tempdir()
        .expect("a temporary directory can be made")
        .keep();
    let mut mark = OsString::from(DIRECTORY);
    mark.push("=");
    mark.push(&directory);
    // Both ends are close-on-exec, so that only this process keeps the pipe.
    let (end, mut lifeline) = io::pipe().expect("a pipe can be made");
    // In a group of its own, so that Ctrl-C in the terminal doesn't reach it.
    let mut janitor = Command::new("sh")
        .args(["-c", JANITOR, "janitor"])
        .args([mark.as_os_str(), directory.as_os_str()])
        .stdin(end)
        .stdout(Stdio::null())
        .process_group(0)
        .spawn()
        .expect("sh can be run");
    let own = env::current_exe().expect("this program has a path");
    let mut bench = Command::new(own)
        .args(env::args_os().skip(1))
        .env(DIRECTORY, &directory)
        .env("TMPDIR", &directory)
        .spawn()
        .expect("this program can be started");
    writeln!(lifeline, "{}", bench.id()).expect("the janitor reads");
    let status = bench.wait().expect("a child can be waited for");
    drop(lifeline);
    janitor.wait().expect("a child can be waited for");
    ExitCode::from(code(status))
}

/// An exit status as a shell has it.
fn code(status: ExitStatus) -> u8 {
    let code = status.code().or(status.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1)
}

/// The variable that tells the second one, and all that it starts, from others.
const DIRECTORY: &str = "BENCH_DIRECTORY";

/// EX_USAGE of sysexits(3head).
const BAD_USAGE: u8 = 64;

/// Nobody is left when nobody was found twice: one look may miss the child of a process that ends
/// meanwhile. A killed process leaves its cgroup a little later than the kill returns.
const JANITOR: &str = r#"
trap '' HUP INT TERM
mark=$1 directory=$2
read -r bench
cat
mount=$(sed -n 's/^[^ ]* [^ ]* [^ ]* [^ ]* \([^ ]*\) .* - cgroup2 .*/\1/p' /proc/self/mountinfo | head -n 1)
leaves=
kill_all() {
    found=no
    for file in $(grep -lszxF -e "$mark" /proc/[0-9]*/environ); do
        process=${file%/environ} found=yes
        leaf=$(sed -n 's/^0::\(.*\/lease-exec-[^/]*\).*/\1/p' "$process/cgroup" 2>/dev/null)
        leaves="$leaves ${leaf:+$mount$leaf}"
        kill -s KILL "${process#/proc/}" 2>/dev/null
    done
    [ $found = yes ]
}
looks=0
for attempt in $(seq 100); do
    if kill_all; then looks=0; else looks=$((looks + 1)); fi
    [ $looks = 2 ] && break
    sleep 0.05
done
is_gone() {
    for path in $leaves "$mount/box-$bench-"* "$directory"; do
        [ -e "$path" ] && return 1
    done
    return 0
}
for attempt in $(seq 100); do
    find $leaves "$mount/box-$bench-"* -depth -type d -exec rmdir {} \; 2>/dev/null
    rm -rf -- "$directory" 2>/dev/null
    is_gone && break
    sleep 0.05
done
"#;
