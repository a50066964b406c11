//! `--stop-signal`: by which signal the command is asked to end.

use std::os::unix::process::ExitStatusExt;

use nix::sys::signal::Signal;

use crate::{
    listener::{heard, listener},
    processes::hang,
    pty::Terminal,
    wait::{LIMIT, wait_until},
    world::{Running, World},
};

const WINCH: i32 = libc::SIGWINCH;
const CONT: i32 = libc::SIGCONT;

#[track_caller]
/// In any order: of signals that are pending together the kernel delivers the lowest first.
fn wait_to_hear(running: &Running, expected: &[i32]) {
    let sorted = |mut signals: Vec<i32>| {
        signals.sort_unstable();
        signals
    };
    let expected = sorted(expected.to_vec());
    wait_until(format!("{expected:?} are heard"), LIMIT, || {
        (sorted(heard(&running.stdout())) == expected).then_some(())
    });
}

/// A command that ends with 5 by this signal alone, and says so of SIGTERM.
fn ends_by(name: &str) -> String {
    format!(
        "trap 'echo asked; exit 5' {name}; trap 'echo terminated' TERM; echo ready
         while :; do sleep 0.02; done"
    )
}

#[test]
fn what_images_want_to_be_stopped_by_is_what_their_command_gets() {
    // httpd, haproxy, nginx, postgres and systemd.
    for (signal, name) in [
        ("WINCH", "WINCH"),
        ("SIGUSR1", "USR1"),
        ("quit", "QUIT"),
        ("2", "INT"),
        ("SIGRTMIN+3", "RTMIN+3"),
    ] {
        let world = World::on_files();
        let invocation = world.lease_exec().args(["--stop-signal", signal]);
        let running = invocation.command(["bash", "-c", &ends_by(name)]).start();
        running.wait_until_it_prints("ready");
        running.signal(Signal::SIGTERM);
        let finished = running.wait();
        finished.assert_code(5);
        assert_eq!(finished.stdout(), "ready\nasked\n", "{signal}");
        assert_eq!(world.holder(), "");
    }
}

#[test]
fn a_loss_asks_by_the_stop_signal() {
    let world = World::on_files();
    let invocation = world
        .lease_exec()
        .args(["-s", "USR1", "--lease-duration", "6s"]);
    let running = invocation.command(["bash", "-c", &ends_by("USR1")]).start();
    running.wait_until_it_prints("ready");
    world.wait_for_renewal();
    let _lock = hang(&world);
    let finished = running.wait();
    finished.assert_code(79);
    assert_eq!(finished.stdout(), "ready\nasked\n");
}

#[test]
fn what_is_left_behind_gets_term_all_the_same() {
    let world = World::on_files();
    let script =
        "(setsid sh -c 'trap \"echo bye; exit\" TERM; echo up; while :; do sleep 0.02; done' &)
                  trap 'exit 3' WINCH; echo ready; while :; do sleep 0.02; done";
    let running = world
        .lease_exec()
        .args(["-s", "WINCH"])
        .script(script)
        .start();
    for line in ["ready", "up"] {
        running.wait_until_it_prints(line);
    }
    running.signal(Signal::SIGTERM);
    let finished = running.wait();
    finished.assert_code(3);
    assert!(
        finished.stdout().ends_with("bye\n"),
        "{}",
        finished.stdout()
    );
}

#[test]
fn the_stop_signal_itself_asks_to_end_and_starts_the_count() {
    let world = World::on_files();
    let invocation = world.lease_exec().args(["-s", "WINCH", "-k", "500ms"]);
    let running = invocation.command([listener()]).start();
    running.wait_until_it_prints("ready");
    running.signal(Signal::SIGWINCH);
    wait_to_hear(&running, &[WINCH, CONT]);
    let finished = running.wait();
    finished
        .assert_signal(Signal::SIGKILL)
        .assert_says("forwarded SIGWINCH to the command")
        .assert_says("--kill-after 500ms has passed since SIGWINCH");
    assert_eq!(world.holder(), "");
}

#[test]
fn the_stop_signal_ends_a_standby() {
    let world = World::on_files();
    let _holder = world.lease_exec().command(["sleep", "77"]).start();
    world.wait_for_holder();
    let invocation = world.lease_exec().args(["-s", "WINCH"]);
    let running = invocation.command(["sleep", "77"]).start();
    running.wait_until_it_says("somebody else holds the lease");
    running.signal(Signal::SIGWINCH);
    // No process dies of this one.
    running.wait().assert_code(128 + WINCH);
}

#[test]
fn a_window_that_changes_its_size_asks_nobody_to_end() {
    let world = World::on_files();
    let listener = listener().display();
    // In a group of its own, so that it is passed on.
    let script = format!("stty -echo; exec ${{LX/-q/-q -s WINCH -k 0s}} {listener} own-group");
    let mut terminal = Terminal::script(&world, &script);
    terminal.wait_until_it_shows("ready");
    terminal.resize();
    wait_until("it is heard", LIMIT, || {
        (heard(&terminal.shown()) == [WINCH]).then_some(())
    });
    let front = nix::unistd::Pid::from_raw(terminal.leader());
    nix::sys::signal::kill(front, Signal::SIGUSR2).expect("it can be signalled");
    assert!(terminal.wait().success());
    assert_eq!(heard(&terminal.shown()), [WINCH, libc::SIGUSR2]);

    // While it waits.
    let _holder = world.lease_exec().command(["sleep", "77"]).start();
    world.wait_for_holder();
    let mut terminal = Terminal::script(&world, "exec ${LX/-q/-s WINCH} sleep 77");
    terminal.wait_until_it_shows("somebody else holds the lease");
    terminal.resize();
    terminal.type_in("\x03");
    assert_eq!(terminal.wait().signal(), Some(libc::SIGINT));
}
