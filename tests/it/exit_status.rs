//! How a command that can't be executed ends, and how one that can does.

use std::{
    ffi::OsStr,
    fs::{self, OpenOptions},
    os::unix::{
        fs::{PermissionsExt, symlink},
        process::ExitStatusExt,
    },
    path::PathBuf,
};

use crate::{
    wait::{LIMIT, wait_until},
    world::World,
};

fn program(world: &World<'static>, name: &str, content: &[u8]) -> PathBuf {
    let path = world.path().join(name);
    fs::write(&path, content).expect("written");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("it is ours");
    path
}

/// Runs it, and asserts that it is refused with this code and one line, and that the lease is free.
#[track_caller]
fn assert_refused(world: &World<'static>, command: impl AsRef<OsStr>, code: i32) {
    let finished = world.lease_exec().args(["-q"]).command([&command]).run();
    finished.assert_code(code);
    finished.assert_says(&command.as_ref().to_string_lossy());
    assert_eq!(finished.stderr.lines().count(), 1, "{}", finished.stderr);
    assert_eq!(finished.stdout(), "");
    assert_eq!(world.holder(), "");
}

#[test]
fn what_is_not_there_is_127_and_what_cannot_be_executed_126() {
    let world = World::on_files();
    let path = |name: &str| world.path().join(name);
    fs::write(path("plain"), "true").expect("written");
    fs::create_dir(path("directory")).expect("made");
    symlink("loop", path("loop")).expect("made");
    symlink("nowhere", path("dangling")).expect("made");
    for (command, code) in [
        (path("missing"), 127),
        (path("dangling"), 127),
        (path("plain/below"), 127),
        ("no-such-command-anywhere".into(), 127),
        (path("plain"), 126),
        (path("directory"), 126),
        (path("loop"), 126),
        (
            program(&world, "no-interpreter", b"#!/no/such/interpreter\n"),
            127,
        ),
        (
            program(&world, "elf", b"\x7fELF\x02\x01\x01\0, but no more"),
            126,
        ),
    ] {
        assert_refused(&world, &command, code);
    }
}

#[test]
fn a_script_without_a_first_line_is_run_by_the_shell() {
    let world = World::on_files();
    let script = program(&world, "no-first-line", b"echo \"$0 $# $2\"; exit 3\n");
    for under in [&["env"][..], &[]] {
        // As env(1) does it.
        let finished = match under {
            [] => world.lease_exec().command([&script]),
            under => world.program(under[0]).args([&script]),
        };
        let finished = finished.args(["one", "two words"]).run();
        finished.assert_code(3);
        let expected = format!("{} 2 two words\n", script.display());
        assert_eq!(finished.stdout(), expected);
    }
    let empty = program(&world, "empty", b"");
    world.lease_exec().command([&empty]).run().assert_code(0);
    // In PATH too.
    let path = format!("{}:/bin:/usr/bin", world.path().display());
    let invocation = world.lease_exec().env("PATH", path);
    let finished = invocation.command(["no-first-line", "a", "b"]).run();
    finished.assert_code(3);
}

#[test]
fn a_file_that_is_being_written_is_126() {
    let world = World::on_files();
    let busy = program(&world, "busy", &fs::read("/bin/true").expect("it is there"));
    let writer = OpenOptions::new().append(true).open(&busy);
    let writer = writer.expect("it is ours");
    assert_refused(&world, &busy, 126);
    drop(writer);
    world.lease_exec().command([&busy]).run().assert_code(0);
}

#[test]
fn a_command_that_vanishes_while_we_wait_is_127_and_the_lease_is_released() {
    let world = World::on_files();
    let _holder = world.lease_exec().command(["sleep", "77"]).start();
    world.wait_for_holder();
    let command = program(&world, "vanishing", b"#!/bin/sh\n");
    let running = world.lease_exec().command([&command]).start();
    running.wait_until_it_says("somebody else holds the lease");
    fs::remove_file(&command).expect("it is ours");
    _holder.signal(nix::sys::signal::Signal::SIGTERM);
    let finished = running.wait();
    finished.assert_code(127).assert_says("vanishing");
    assert_eq!(world.holder(), "");
}

#[test]
fn every_exit_code_passes_unchanged() {
    let world = World::on_files();
    // Four at a time: each is an instance of its own, with a lease of its own.
    let script = "
        run() {
            ${LX/demo/demo-$1} sh -c \"exit $1\"
            [ $? = $1 ] || echo \"$? for $1\"
        }
        for ((code = 0; code < 256; code += 4)); do
            for i in 0 1 2 3; do run $((code + i)) & done; wait
        done
        echo all";
    let finished = world.shell(script).start().wait_within(4 * LIMIT);
    assert_eq!(finished.stdout(), "all\n");
    assert_eq!(finished.stderr, "");
}

#[test]
fn every_deadly_signal_of_the_command_becomes_ours_without_a_core_file() {
    let world = World::on_files();
    let harmless = [
        libc::SIGCHLD,
        libc::SIGCONT,
        libc::SIGURG,
        libc::SIGWINCH,
        libc::SIGSTOP,
        libc::SIGTSTP,
        libc::SIGTTIN,
        libc::SIGTTOU,
        // The C library's own.
        32,
        33,
    ];
    for signal in (1..=64).filter(|signal| !harmless.contains(signal)) {
        // Only the command gives up its core file; ours would be written over it.
        let script =
            format!("ulimit -c unlimited; exec $LX sh -c 'ulimit -c 0; kill -{signal} $$'");
        let finished = world.shell(&script).directory(world.path()).run();
        assert_eq!(finished.status.signal(), Some(signal), "{finished:?}");
        assert!(!finished.status.core_dumped(), "{finished:?}");
        assert_eq!(world.holder(), "", "signal {signal}");
    }
    let files = fs::read_dir(world.path()).expect("ours");
    let cores = files.filter(|file| {
        let name = file.as_ref().expect("ours").file_name();
        name.to_string_lossy().starts_with("core")
    });
    assert_eq!(cores.count(), 0);
}

#[test]
fn options_end_at_the_first_word_that_is_none() {
    let world = World::on_files();
    let lx = world.lx();
    let without_dashes = lx.strip_suffix(" --").expect("it ends so");
    let help = world.shell(&format!("{without_dashes} ls --help")).run();
    help.assert_code(0);
    assert!(help.stdout().starts_with("Usage: ls"), "{}", help.stdout());
    let words = world
        .shell(&format!(
            "{without_dashes} printf '%s,' -q --lease other -- -v"
        ))
        .run();
    assert_eq!(words.stdout(), "-q,--lease,other,--,-v,");
}

#[test]
fn a_script_sees_the_code_of_a_signal_as_without_us() {
    let world = World::on_files();
    let script = "for signal in TERM INT KILL USR1 RTMIN+3; do
            sh -c \"kill -${signal/RTMIN+3/37} \\$\\$\"; without=$?
            $LX sh -c \"kill -${signal/RTMIN+3/37} \\$\\$\"; with=$?
            [ $without = $with ] || echo $signal: $without $with
        done 2>/dev/null; echo all";
    assert_eq!(world.shell(script).run().stdout(), "all\n");
    wait_until("nobody is left", LIMIT, || {
        world.processes().is_empty().then_some(())
    });
}
