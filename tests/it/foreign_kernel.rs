//! Kernels that lack something, as old ones and those of sandboxes do: it costs one means to kill
//! the tree with, `-v` says which, and the tree is dead all the same.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use nix::sys::signal::Signal;

use crate::{
    processes::{LEVELS, Level, Mark, TREE, guard_of, signal},
    wait::{LIMIT, wait_until},
    world::{Running, World},
};

/// What a kernel may lack.
struct Lack {
    calls: &'static str,
    /// What `-v` then says, among other things.
    says: &'static str,
}

const LACKS: [Lack; 7] = [
    Lack {
        calls: "clone3",
        says: "no cgroup (the kernel does not let it be born in one); its process group",
    },
    Lack {
        calls: "timer_create",
        says: "; no kernel timer; ",
    },
    Lack {
        calls: "F_SETSIG",
        says: "; the command alone by the kernel when we die; ",
    },
    // These have a second way, which does as much.
    Lack {
        calls: "pidfd_open,pidfd_send_signal",
        says: "; each descendant that /proc shows",
    },
    Lack {
        calls: "pidfd_send_signal",
        says: "; each descendant that /proc shows",
    },
    Lack {
        calls: "close_range,mlockall",
        says: "; a kernel timer against our being stopped; ",
    },
    Lack {
        calls: "clone3,close_range,mlockall,pidfd_open,pidfd_send_signal,timer_create,F_SETSIG",
        says: "the command alone by the kernel when we die; no kernel timer; each descendant that \
               /proc shows",
    },
];

/// Without a clone3 there is no cgroup anyway; the others are not to be hidden by what it does.
fn levels_without(lack: &Lack) -> &'static [Level] {
    if lack.calls == "clone3" {
        &LEVELS[..1]
    } else {
        &LEVELS[1..]
    }
}

/// Starts the tree on a kernel that lacks something, and waits until it has grown.
fn start(world: &World, lack: &Lack, mark: &Mark) -> Running {
    let level = levels_without(lack)[0];
    let invocation = world.lease_exec().args(["-v", "--lease-duration", "60s"]);
    let invocation = level
        .apply(invocation.command(mark.script(TREE)))
        .under([without(), Path::new(lack.calls)]);
    let running = invocation.start();
    mark.wait_for(6);
    running.wait_until_it_says(lack.says);
    running
}

#[test]
fn a_loss_kills_the_tree_whatever_the_kernel_lacks() {
    for lack in &LACKS {
        let world = World::on_files();
        let mark = Mark::new();
        let running = start(&world, lack, &mark);
        world.steal("somebody-else");
        running.wait().assert_code(79);
        assert_eq!(mark.alive(), [0; 0], "without {}", lack.calls);
    }
}

#[test]
fn a_forwarded_end_leaves_nobody_whatever_the_kernel_lacks() {
    for lack in &LACKS {
        let world = World::on_files();
        let mark = Mark::new();
        let running = start(&world, lack, &mark);
        running.signal(Signal::SIGTERM);
        running.wait().assert_signal(Signal::SIGTERM);
        assert_eq!(mark.alive(), [0; 0], "without {}", lack.calls);
        assert_eq!(world.holder(), "");
    }
}

#[test]
fn a_killed_front_or_guard_takes_the_tree_along_whatever_the_kernel_lacks() {
    for lack in &LACKS {
        for guard_dies in [true, false] {
            let world = World::on_files();
            let mark = Mark::new();
            let running = start(&world, lack, &mark);
            if guard_dies {
                signal(guard_of(&running), Signal::SIGKILL);
                running.wait().assert_code(125);
                assert_eq!(mark.alive(), [0; 0], "without {}", lack.calls);
                assert_eq!(world.holder(), "");
            } else {
                running.signal(Signal::SIGKILL);
                mark.wait_for_nobody();
            }
        }
    }
}

#[test]
fn where_the_kernel_does_not_say_who_is_left_the_lease_is_kept() {
    let world = World::on_files();
    let mark = Mark::new();
    let invocation = world.lease_exec().args(["--lease-duration", "6s"]);
    let command = mark.script("setsid sleep 7777 & exec sleep 7777");
    let running = Level::Tree
        .apply(invocation.command(command))
        .under([without(), Path::new("wait4")])
        .start();
    running.wait_until_it_says("started the command");
    mark.wait_for(2);
    let holder = world.holder();
    assert_ne!(holder, "", "released beside a live tree");
    for _ in 0..2 {
        world.wait_for_renewal();
    }
    assert_eq!(mark.alive().len(), 2);
    assert_eq!(world.holder(), holder);
    world.steal("somebody-else");
    running.wait().assert_code(80);
    assert_eq!(mark.alive(), [0; 0]);
}

#[test]
fn a_guard_that_closes_its_descriptors_one_by_one_keeps_no_pipe_open() {
    let world = World::on_files();
    let script = format!(
        "exec 7> >(cat; echo eof >&2)
         {without} close_range $LX sh -c 'echo started; exec 7>&-; read -r line' <>{go} &
         exec 7>&-; wait $!",
        without = without().display(),
        go = go(&world).display(),
    );
    let running = world.shell(&script).start();
    running.wait_until_it_prints("started");
    // Front keeps what it was given, as any shell that waits would; the guard must not.
    let guard = world.wait_for_processes("lease-guard", 1)[0];
    wait_until("the guard has closed what it was given", LIMIT, || {
        let link = |fd: &str| fs::read_link(format!("/proc/{guard}/fd/{fd}"));
        (link("7").is_err() && link("0").is_err()).then_some(())
    });
    fs::write(world.path().join("go"), "\n").expect("the command reads it");
    running.wait().assert_code(0);
    world.wait_until_nobody_is_left();
}

fn go(world: &World<'static>) -> PathBuf {
    let go = world.path().join("go");
    nix::unistd::mkfifo(&go, nix::sys::stat::Mode::S_IRWXU).expect("a pipe can be made");
    go
}

// === /proc ===

/// Hides `/proc` from what it executes.
const HIDE_PROC: [&str; 6] = [
    "unshare",
    "--mount",
    "sh",
    "-c",
    "mount -t tmpfs none /proc && exec \"$@\"",
    "sh",
];

#[test]
fn without_proc_the_commands_group_is_killed() {
    let world = World::on_files();
    let mark = Mark::new();
    let script = "sleep 7777 & sh -c 'trap \"\" TERM; exec sleep 7777' & wait";
    let invocation = world.lease_exec().args(["-v", "--lease-duration", "60s"]);
    let invocation = invocation.command(mark.script(script)).under(HIDE_PROC);
    let running = invocation.start();
    mark.wait_for(3);
    running.wait_until_it_says("; no /proc");
    running.signal(Signal::SIGTERM);
    running.wait().assert_signal(Signal::SIGTERM);
    assert_eq!(mark.alive(), [0; 0]);
    assert_eq!(world.holder(), "");
}

#[test]
fn without_proc_who_has_left_the_group_keeps_the_lease() {
    let world = World::on_files();
    let mark = Mark::new();
    let invocation = world.lease_exec().args(["--lease-duration", "5s"]);
    let invocation = invocation.command(mark.script("setsid sleep 7777 & wait"));
    let running = invocation.under(HIDE_PROC).start();
    mark.wait_for(2);
    running.signal(Signal::SIGTERM);
    running.wait_until_it_says("the command's tree is not proven dead");
    let holder = world.holder();
    for _ in 0..3 {
        world.wait_for_renewal();
    }
    assert_eq!(world.holder(), holder);
    assert_eq!(mark.alive().len(), 1);
    world.steal("somebody-else");
    running.wait().assert_code(80);
    assert_eq!(world.holder(), "somebody-else");
}

// === Clocks ===

#[test]
fn a_held_lease_is_not_old_to_a_time_namespace_in_the_place_of_another() {
    let world = World::on_files();
    let holder = world.lease_exec().args(["--lease-duration", "60s"]);
    let holder = holder.command(["sleep", "7777"]).start();
    holder.wait_until_it_says("started the command");
    // Prints its time namespace, and then tries once, by a clock that is so much ahead.
    let try_ahead = |seconds: &str| {
        let script = "readlink /proc/self/ns/time && exec \"$@\"";
        let clock = ["unshare", "--time", "--fork", "--boottime", seconds];
        let invocation = world.lease_exec().args(["--lease-duration", "60s"]);
        let invocation = invocation.args(["--no-wait"]).command(["echo", "started"]);
        let finished = invocation
            .under(clock.iter().chain(&["sh", "-c", script, "sh"]))
            .start()
            .wait();
        finished.assert_code(75);
        finished.stdout()
    };
    // The kernel gives the number of a namespace that is gone to the next.
    let are_taken_for_one = (0..50).any(|_| try_ahead("0") == try_ahead("100000"));
    assert!(are_taken_for_one, "no number was given twice");
    holder.signal(Signal::SIGTERM);
    holder.wait().assert_signal(Signal::SIGTERM);
}

/// The program of `without.c`, compiled once.
fn without() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let directory = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let program = directory.join("without");
        // Another run of the tests may be about to do the same.
        let own = directory.join(format!("without-{}", std::process::id()));
        let source = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/tests/it/foreign_kernel/without.c"
        );
        let status = Command::new("cc")
            .args(["-Wall", "-Wextra", "-o"])
            .args([own.as_path(), Path::new(source)])
            .status();
        let status = status.expect("cc can be run; tests/run.sh installs it");
        assert!(status.success(), "{source} can't be compiled");
        fs::rename(&own, &program).expect("a file in our own directory can be renamed");
        program
    })
}
