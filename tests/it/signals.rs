//! Signals that others send to lease-exec: which the command gets, and how often.

use std::{fs, os::unix::process::ExitStatusExt, process::Command, thread, time::Duration};

use nix::sys::signal::Signal;

use crate::{
    listener::{heard, listener},
    processes::{TestCgroup, state},
    wait::{LIMIT, wait_until},
    world::{Finished, LEASE, Running, World},
};

/// Those that have a meaning for a command and don't stop it.
fn forwarded() -> impl Iterator<Item = i32> {
    let others = [
        libc::SIGCONT,
        libc::SIGSTKFLT,
        libc::SIGPIPE,
        libc::SIGALRM,
        libc::SIGUSR1,
        libc::SIGURG,
        libc::SIGVTALRM,
        libc::SIGPROF,
        libc::SIGWINCH,
        libc::SIGIO,
        libc::SIGPWR,
    ];
    // The C library keeps 32 and 33 for itself.
    others.into_iter().chain(ENDING).chain(34..=64)
}

const ENDING: [i32; 4] = [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM];

/// Sends a signal of any number, this often and without a pause.
fn send(signal: i32, pid: i32, times: usize) {
    let script = format!("for ((i = 0; i < {times}; i++)); do kill -{signal} {pid}; done");
    let status = Command::new("bash").args(["-c", &script]).status();
    assert!(status.expect("bash can be run").success());
}

fn start_listener(world: &World<'static>) -> Running {
    let running = world.lease_exec().command([listener()]).start();
    running.wait_until_it_prints("ready");
    running
}

#[track_caller]
fn wait_to_hear(running: &Running, signal: i32, times: usize) {
    wait_until(format!("signal {signal} is heard"), LIMIT, || {
        (count(&running.stdout(), signal) >= times).then_some(())
    });
}

fn count(stdout: &str, signal: i32) -> usize {
    let numbers = heard(stdout).into_iter();
    numbers.filter(|number| *number == signal).count()
}

#[test]
fn every_signal_reaches_the_command_as_often_as_it_is_sent() {
    let world = World::on_files();
    let running = start_listener(&world);
    let mut continued = 0;
    for signal in forwarded() {
        for times in 1..=3 {
            send(signal, running.pid(), 1);
            // The kernel merges those up to 31 while one is pending, so we wait for each.
            wait_to_hear(&running, signal, times);
            if signal == libc::SIGCONT || ENDING.contains(&signal) {
                continued += 1;
                wait_to_hear(&running, libc::SIGCONT, continued);
            }
        }
    }
    send(libc::SIGUSR2, running.pid(), 1);
    let finished = running.wait();
    let stdout = finished.assert_code(0).stdout();
    for signal in forwarded() {
        let expected = if signal == libc::SIGCONT {
            continued
        } else {
            3
        };
        assert_eq!(count(&stdout, signal), expected, "{signal} in {stdout}");
    }
}

#[test]
fn real_time_signals_are_not_merged_and_wait_for_a_guard_that_is_slow() {
    let world = World::on_files();
    let listener = listener().display();
    let running = world.shell(&format!("exec $LX {listener}")).start();
    running.wait_until_it_prints("ready");
    let [guard] = world.wait_for_processes("lease-guard", 1)[..] else {
        unreachable!("one was waited for");
    };
    // Together they are more than fit into the guard's socket.
    let script =
        "kill -STOP $2; for ((i = 0; i < 200; i++)); do kill -34 $1; kill -37 $1; kill -64 $1
                  done; kill -CONT $2";
    let status = Command::new("bash")
        .args(["-c", script, "bash"])
        .args([running.pid().to_string(), guard.to_string()])
        .status();
    assert!(status.expect("bash can be run").success());
    for signal in [34, 37, 64] {
        wait_to_hear(&running, signal, 200);
    }
    send(libc::SIGUSR2, running.pid(), 1);
    let finished = running.wait();
    let stdout = finished.assert_code(0).stdout();
    for signal in [34, 37, 64] {
        assert_eq!(count(&stdout, signal), 200, "signal {signal}");
    }
}

#[test]
fn the_command_alone_is_signalled_and_not_what_it_has_started() {
    let world = World::on_files();
    // Of two signals bash looks at the lower number first.
    let script = "
        trap 'kill -WINCH $!; wait; exit 3' TERM
        bash -c 'trap \"echo child gets TERM\" TERM; trap \"echo child ends; exit\" WINCH
                 echo child is ready; while :; do sleep 0.02; done' &
        while :; do sleep 0.02; done";
    let running = world.shell(&format!("exec $LX bash -c '{}'", quoted(script)));
    let running = running.start();
    running.wait_until_it_prints("child is ready");
    running.signal(Signal::SIGTERM);
    let finished = running.wait();
    finished.assert_code(3);
    assert_eq!(finished.stdout(), "child is ready\nchild ends\n");
}

#[test]
fn what_the_command_sends_to_its_supervisor_does_not_come_back() {
    let world = World::on_files();
    let script = "
        trap 'echo bounced' USR1 HUP; trap 'echo end; exit 5' USR2
        read -r _ _ _ front _ </proc/$PPID/stat
        kill -USR1 $front; kill -HUP $front; (kill -USR1 $front; sleep 0.1)
        echo sent; while :; do sleep 0.02; done";
    let running = world.shell(&format!("exec $LX bash -c '{}'", quoted(script)));
    let running = running.start();
    running.wait_until_it_prints("sent");
    // It comes the same way as those would, and after them.
    running.signal(Signal::SIGUSR2);
    let finished = running.wait();
    finished.assert_code(5);
    assert_eq!(finished.stdout(), "sent\nend\n");
}

#[test]
fn what_was_ignored_at_entry_neither_ends_it_nor_reaches_the_command() {
    let world = World::on_files();
    let holder = world.lease_exec().command(["sleep", "77"]).start();
    world.wait_for_holder();
    let listener = listener().display();
    let script = format!("trap '' HUP INT TERM QUIT USR1; exec ${{LX/-q/}} {listener}");
    let running = world.shell(&script).start();
    running.wait_until_it_says("somebody else holds the lease");
    let ignored = [1, 2, 3, 15, libc::SIGUSR1];
    let send_all = || {
        for signal in ignored {
            send(signal, running.pid(), 1);
        }
    };
    // While it waits.
    send_all();
    holder.signal(Signal::SIGTERM);
    running.wait_until_it_prints("ready");
    // While it holds.
    send_all();
    send(libc::SIGUSR2, running.pid(), 1);
    let finished = running.wait();
    finished.assert_code(0);
    assert_eq!(heard(&finished.stdout()), [libc::SIGUSR2]);
}

#[test]
fn nohup_keeps_a_hangup_from_the_command_that_sends_it_to_itself() {
    let world = World::on_files();
    let finished = world.shell("nohup $LX sh -c 'kill -HUP $$; echo ok'").run();
    finished.assert_code(0);
    assert_eq!(finished.stdout(), "ok\n");
}

#[test]
fn a_pipe_without_a_reader_ends_the_command_and_not_us() {
    let world = World::on_files();
    // Died of PIPE, as it would without us, and the lease is released.
    let script = "{ $LX yes; echo $? >&2; } | head -n 1";
    let finished = world.shell(script).run();
    assert_eq!(finished.stdout(), "y\n");
    assert_eq!(finished.stderr, "141\n");
    assert_eq!(world.holder(), "");
}

#[test]
fn term_at_any_time_after_the_start_ends_it_and_leaves_nothing() {
    let world = World::on_files();
    let rounds: u64 = match std::env::var("TERM_ROUNDS") {
        Ok(text) => text.parse().expect("TERM_ROUNDS is a number"),
        Err(_) => 200,
    };
    let mut codes = std::collections::BTreeSet::new();
    for round in 0..rounds {
        // Every other command neither ends by itself nor, once it runs, at SIGTERM. It is killed, but
        // only if the driver has heard of the signal.
        let (script, expected) = match round % 2 {
            0 => ("exec $LX sh -c 'exit 7'", [143, 7]),
            _ => (STUBBORN, [143, 137]),
        };
        let running = world.shell(script).start();
        // No waiting: when the signal comes is what varies.
        thread::sleep(Duration::from_micros(round * 20_000 / rounds));
        running.signal(Signal::SIGTERM);
        let code = ended(&running.wait());
        assert!(expected.contains(&code), "round {round}: {script}: {code}");
        codes.insert(code);
        assert_eq!(world.holder(), "", "round {round}");
        world.assert_nobody_is_left();
    }
    assert!(codes.contains(&143), "{codes:?}");
    let running = world.shell(STUBBORN).start();
    running.wait_until_it_prints("up");
    running.signal(Signal::SIGTERM);
    assert_eq!(ended(&running.wait()), 137);
}

/// A run whose command takes no notice of SIGTERM.
const STUBBORN: &str =
    "exec ${LX/-q/-q --kill-after 20ms} sh -c 'trap \"\" TERM; echo up; exec sleep 7777'";

/// The code that a shell would see.
fn ended(finished: &Finished) -> i32 {
    let status = finished.status;
    status
        .code()
        .unwrap_or_else(|| 128 + status.signal().expect("it has ended"))
}

#[test]
fn a_stopped_command_can_be_ended() {
    let world = World::on_files();
    for signal in ENDING {
        let running = world
            .shell("exec $LX sh -c 'kill -STOP $$; echo on'")
            .start();
        wait_until("the command is stopped", LIMIT, || {
            let processes = world.processes();
            processes.into_iter().find(|process| process.state == 'T')
        });
        send(signal, running.pid(), 1);
        let finished = running.wait();
        assert_eq!(ended(&finished), 128 + signal);
        assert_eq!(finished.stdout(), "");
    }
    assert_eq!(world.holder(), "");
    world.assert_nobody_is_left();
}

/// A script in the single quotes of another.
fn quoted(script: &str) -> String {
    script.replace('\'', r"'\''")
}

#[test]
fn whoever_is_stopped_while_it_acquires_does_not_keep_the_stores_lock() {
    let mut stopped = 0;
    // Nobody else's remains are to hold up the start.
    let outer = TestCgroup::version_2();
    for round in 0..40 {
        let world = World::on_files();
        let before = world.lease_exec().command(["true"]);
        before.under(outer.around()).run().assert_code(0);
        let invocation = world.lease_exec().command(["sleep", "7777"]);
        let running = invocation.under(outer.around()).start();
        // This is no wait for anything: the instant is what is varied.
        thread::sleep(Duration::from_micros(4_000 + round * 900));
        running.signal(Signal::SIGTSTP);
        let is_stopped = wait_until("it is stopped, or refuses", LIMIT, || {
            let is_stopped = state(running.pid()) == 'T';
            let refuses = running.stderr().contains("refused to stop");
            (is_stopped || refuses).then_some(is_stopped)
        });
        if is_stopped {
            stopped += 1;
            // It has nothing to wait for: nobody else is there.
            let lock = fs::File::open(lock_file(&world));
            let lock = lock.expect("the store has a lock");
            assert!(lock.try_lock().is_ok(), "round {round}: it is held");
        }
    }
    assert!(stopped > 0, "none was stopped while it acquired");
}

fn lock_file(world: &World<'_>) -> std::path::PathBuf {
    world.store().join(format!("default/.{LEASE}.lock"))
}

#[test]
fn a_command_that_is_stopped_again_and_again_is_renewed() {
    let world = World::on_files();
    // Each time the guard says that it has continued it, long before the next renewal is due.
    let script = "for i in $(seq 40); do sleep 0.1; kill -TSTP $$; done; exit 3";
    let invocation = world.lease_exec().args(["--lease-duration", "3s"]);
    let finished = invocation.script(script).run();
    finished.assert_code(3);
    assert!(!finished.stderr.contains("lost"), "{}", finished.stderr);
}

#[test]
fn a_standby_that_was_stopped_once_can_not_be_stopped_when_it_holds() {
    let world = World::on_files();
    let holder = world.lease_exec().command(["sleep", "77"]).start();
    world.wait_for_holder();
    let running = world.lease_exec().command([listener()]).start();
    running.wait_until_it_says("somebody else holds the lease");
    let blocked = || {
        let status = fs::read_to_string(format!("/proc/{}/status", running.pid()));
        let status = status.expect("it runs");
        let line = status.lines().find(|line| line.starts_with("SigBlk"));
        line.expect("it says which signals are blocked").to_owned()
    };
    let before = blocked();
    running.signal(Signal::SIGTSTP);
    wait_until("it is stopped", LIMIT, || {
        (state(running.pid()) == 'T').then_some(())
    });
    running.signal(Signal::SIGCONT);
    holder.signal(Signal::SIGTERM);
    running.wait_until_it_prints("ready");
    assert_eq!(blocked(), before);
    running.signal(Signal::SIGTSTP);
    running.wait_until_it_says("refused to stop");
    send(libc::SIGUSR2, running.pid(), 1);
    running.wait().assert_code(0);
}

/// Sends a standby these in this order, and returns how it has ended.
fn standby_gets(signals: &[i32]) -> i32 {
    let world = World::on_files();
    let _holder = world.lease_exec().command(["sleep", "77"]).start();
    let holder = world.wait_for_holder();
    let running = world.lease_exec().command(["sleep", "77"]).start();
    running.wait_until_it_says("somebody else holds the lease");
    for signal in signals {
        send(*signal, running.pid(), 1);
    }
    let finished = running.wait();
    assert_eq!(world.holder(), holder);
    ended(&finished)
}

#[test]
fn a_standby_is_ended_by_what_would_end_a_plain_program() {
    use libc::{SIGALRM, SIGIO, SIGPIPE, SIGPWR, SIGUSR1, SIGUSR2};
    for signal in [
        SIGUSR1, SIGUSR2, SIGPIPE, SIGALRM, SIGIO, SIGPWR, 34, 37, 64,
    ] {
        assert_eq!(standby_gets(&[signal]), 128 + signal);
    }
}

#[test]
fn what_a_plain_program_ignores_does_not_end_a_standby() {
    use libc::{SIGCHLD, SIGCONT, SIGTERM, SIGURG, SIGWINCH};
    let signals = [SIGCHLD, SIGCONT, SIGURG, SIGWINCH, SIGTERM];
    assert_eq!(standby_gets(&signals), 128 + SIGTERM);
}

#[test]
fn what_would_end_a_plain_program_releases_a_young_lease_first() {
    let world = World::on_files();
    let invocation = world.lease_exec().args(["--create", "quarantine"]);
    let running = invocation.command(["sleep", "77"]).start();
    running.wait_until_it_says("the lease is young");
    send(37, running.pid(), 1);
    let finished = running.wait();
    assert_eq!(ended(&finished), 128 + 37);
    finished.assert_says("released the lease");
    assert_eq!(world.holder(), "");
}
