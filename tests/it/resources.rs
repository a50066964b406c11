//! Where something is lacking: a reader of our messages, processes, descriptors, a sane clock.

use std::{
    fs::{self, OpenOptions},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    time::Duration,
};

use nix::{
    fcntl::OFlag,
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    processes::{Mark, TestCgroup, assert_before_the_end, at_both_levels, quiet},
    wait::{LIMIT, wait_until},
    world::{World, needs, now},
};

#[test]
fn a_stderr_that_is_closed_full_or_without_a_reader_changes_nothing() {
    let world = World::on_files();
    let lx = world.lx().replace("-q", "-vv --lease-duration 1s");
    let code = "sh -c 'sleep 0.5; exit 9'";
    // A disk that is full, a pipe without a reader, and none at all.
    for stderr in ["2>/dev/full", "2> >(exec true)", "2>&-", "2>&- >&- <&-"] {
        let finished = world.shell(&format!("exec {lx} {code} {stderr}")).run();
        finished.assert_code(9);
        assert_eq!(world.holder(), "", "{stderr}");
    }
}

#[test]
fn a_stderr_that_nobody_reads_stops_no_renewal() {
    let world = World::on_files();
    let lx = world.lx().replace("-q", "-vv --lease-duration 1s");
    let pipe = world.path().join("pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).expect("a pipe can be made");
    let mut reader = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(OFlag::O_NONBLOCK.bits())
        .open(&pipe)
        .expect("the pipe can be opened");
    // Full from the start.
    let page = [b'x'; 4096];
    while std::io::Write::write(&mut reader, &page).is_ok() {}
    let script = format!("exec {lx} sleep 77 2>{}", pipe.display());
    let running = world.shell(&script).start();
    world.wait_for_holder();
    for _ in 0..10 {
        world.wait_for_renewal();
    }
    running.signal(Signal::SIGTERM);
    running.wait().assert_signal(Signal::SIGTERM);
    assert_eq!(world.holder(), "");
}

/// Runs `true` under a limit as a user who has no other processes, and asserts that it either works,
/// or ends at once with one line and leaves the lease free. Returns whether it worked.
#[track_caller]
fn works_or_is_refused(world: &World<'static>, limit: &str) -> bool {
    let user = "--reuid 54321 --regid 54321 --clear-groups";
    let ours = world.path().join("lease-exec").display().to_string();
    let lx = world.lx().replace(env!("CARGO_BIN_EXE_lease-exec"), &ours);
    let finished = world
        .shell(&format!("exec setpriv {user} prlimit {limit} $LX true"))
        .env("LX", lx)
        .run();
    assert_eq!(world.holder(), "", "{limit}");
    world.assert_nobody_is_left();
    match finished.status.code() {
        Some(0) => true,
        Some(125) => {
            assert_eq!(finished.stderr.lines().count(), 1, "{limit}: {finished:?}");
            false
        }
        // Not even the program itself could be loaded.
        Some(127) if finished.stderr.contains("shared libraries") => false,
        code => panic!("{limit}: {code:?}: {finished:?}"),
    }
}

#[test]
fn without_processes_or_descriptors_it_ends_with_125_and_holds_nothing() {
    // The limit counts all of a user's processes, and root can be somebody else.
    needs(nix::unistd::geteuid().is_root(), "root");
    let world = World::on_files();
    for path in [world.path(), &world.store()] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o777)).expect("it is ours");
    }
    // The directory that it was built in may be closed to others.
    fs::copy(
        env!("CARGO_BIN_EXE_lease-exec"),
        world.path().join("lease-exec"),
    )
    .expect("the program can be copied");
    for (kind, first) in [("--nproc", 1), ("--nofile", 3)] {
        let worked: Vec<bool> = (first..=24)
            .map(|limit| works_or_is_refused(&world, &format!("{kind}={limit}")))
            .collect();
        // From some limit on it works.
        assert!(worked.is_sorted(), "{kind}: {worked:?}");
        assert_eq!(worked.first(), Some(&false), "{kind}");
        assert_eq!(worked.last(), Some(&true), "{kind}");
    }
}

#[test]
fn without_memory_and_front_the_tree_is_dead_before_the_end() {
    let _quiet = quiet();
    at_both_levels(|level| {
        let world = World::on_files();
        let mark = Mark::new();
        let memory = TestCgroup::with("memory");
        memory.set("memory.limit_in_bytes", "67108864");
        // Who wants more memory waits, instead of being killed.
        memory.set("memory.oom_control", "1");
        let invocation = world.lease_exec().args(["--lease-duration", "6s"]);
        let script = "trap '' TERM; setsid sleep 7777 & exec tail /dev/zero";
        let running = level
            .apply(invocation.command(mark.script(script)))
            .under(memory.around())
            .start();
        wait_until("all memory is used", LIMIT, || {
            let control = memory.get("memory.oom_control");
            control.contains("under_oom 1").then_some(())
        });
        assert_ne!(mark.alive(), [0; 0]);
        // What is left is the guard, which needs none.
        running.signal(Signal::SIGSTOP);
        mark.wait_for_nobody();
        assert_before_the_end(&world, Duration::from_secs(6));
    });
}

#[test]
fn term_to_all_of_its_processes_at_once_is_an_ordered_end() {
    let world = World::on_files();
    let script = "exec $LX bash -c 'trap \"exit 3\" TERM; (setsid sleep 77 &)
                                    echo started; while :; do sleep 0.02; done'";
    let running = world.shell(script).start();
    running.wait_until_it_prints("started");
    world.wait_for_processes("sleep", 2);
    // As systemd does with KillMode=control-group.
    for process in world.processes() {
        // Children of the command come and go.
        let _ = kill(Pid::from_raw(process.pid), Signal::SIGTERM);
    }
    running.wait().assert_code(3);
    assert_eq!(world.holder(), "");
    world.assert_nobody_is_left();
}

#[test]
fn of_two_leases_around_one_command_the_loss_of_either_kills_all() {
    let tree = "bash -c '(setsid sleep 77 &); sleep 77'";
    let lose = |nested: &str| {
        let world = World::on_files();
        let running = world.shell(&format!("exec {nested} {tree}")).start();
        world.wait_for_processes("sleep", 2);
        world.steal("somebody-else");
        running.wait().assert_code(79);
        world.assert_nobody_is_left();
        let other = world.lease_file().with_file_name("other.json");
        let other = fs::read_to_string(other).expect("it was made");
        let other: serde_json::Value = serde_json::from_str(&other).expect("JSON");
        other["spec"]["holderIdentity"] == ""
    };
    // The outer one gets the code of the inner one and releases its lease.
    assert!(lose("${LX/demo/other} $LX"));
    // The inner one is killed, so that its lease has to run out.
    assert!(!lose("$LX ${LX/demo/other}"));
}

#[test]
fn clocks_that_differ_from_those_outside_change_nothing() {
    let namespaces = std::path::Path::new("/proc/self/ns/time");
    needs(namespaces.exists(), "a kernel with time namespaces (5.6)");
    let world = World::on_files();
    let root: &[&str] = if nix::unistd::geteuid().is_root() {
        &[]
    } else {
        &["-r"]
    };
    let clocks = [
        "--time",
        "--fork",
        "--boottime",
        "5000",
        "--monotonic",
        "1000",
    ];
    let start = |script: &str| {
        let words = [root, &clocks, &["bash", "-c", script]].concat();
        world.script_of("unshare", &words).start()
    };
    start("exec $LX sh -c 'exit 9'").wait().assert_code(9);

    // The deadline is kept by the guard alone, and by the kernel's timer alone.
    for victims in [&["lease-exec"][..], &["lease-exec", "lease-guard"]] {
        let running = start("exec ${LX/-q/-q --lease-duration 10s} sleep 77");
        world.wait_for_processes("sleep", 1);
        world.wait_for_renewal();
        for victim in victims {
            let pid = world.wait_for_processes(victim, 1)[0];
            kill(Pid::from_raw(pid), Signal::SIGSTOP).expect("it can be stopped");
        }
        world.wait_for_processes("sleep", 0);
        let alive =
            Duration::from_nanos(u64::try_from(now() - world.renewed_at()).expect("seconds"));
        assert!(alive < Duration::from_secs(10), "it lived for {alive:?}");
        // Not at once, either.
        assert!(alive > Duration::from_secs(2), "it lived for {alive:?}");
        drop(running);
        world.wait_until_nobody_is_left();
        world.delete();
    }
}
