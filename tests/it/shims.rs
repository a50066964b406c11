//! What the tests of tini, dumb-init, catatonit, timeout (of coreutils) and process-wrap ask of such
//! programs, with lease-exec in their place. Where it is meant to differ, a test shows how, and says
//! why.
//!
//! Some of what they test is tested elsewhere:
//!
//! | whose | what | where |
//! | --- | --- | --- |
//! | tini, timeout | every exit code; 125, 126 and 127 | `exit_status`, `resources` |
//! | tini, dumb-init | orphans, as PID 1 | `init` |
//! | tini, timeout | mask and dispositions, ignored signals | `inheritance`, `signals` |
//! | tini | `docker run -it` | `init` |
//! | dumb-init | Ctrl-Z stops wrapper and command; refused here | `terminal` |
//! | dumb-init, catatonit | directory and descriptors; LISTEN_PID | `inheritance` |
//! | catatonit | one static file | `image` |
//! | timeout | SIGCHLD ignored by the parent | `init` |
//! | timeout | children of somebody else at the start | `inheritance` |
//! | timeout | SIGKILL of the wrapper | `processes` |
//!
//! Not offered, and so not tested: another signal in the place of the one that came (dumb-init), a
//! signal at the death of our parent, and a word about each stranger reaped (tini).

use std::{fs, process::Command};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    listener::{heard, listener},
    pty::Terminal,
    wait::{LIMIT, wait_until},
    world::{Invocation, LEASE, World},
};

/// Starts a script as PID 1.
fn as_pid_1(world: &World<'static>, script: &str) -> Invocation {
    let mut words = vec!["--pid", "--fork", "--kill-child", "--mount-proc"];
    if !nix::unistd::geteuid().is_root() {
        words.push("--map-root-user");
    }
    words.extend(["bash", "-c", script]);
    world.script_of("unshare", &words)
}

fn signal(pid: i32, signal: Signal) {
    kill(Pid::from_raw(pid), signal).expect("it can be signalled");
}

fn one(world: &World<'static>, name: &str) -> i32 {
    world.wait_for_processes(name, 1)[0]
}

// === tini ===

#[test]
fn tini_orphans_below_another_subreaper_are_reaped() {
    let world = World::on_files();
    // The other one is lease-exec too.
    let orphans = "for i in $(seq 100); do (sleep 0.05 & exit) done; echo grown";
    let script = format!(
        "exec ${{LX/{LEASE}/outer}} $LX bash -c '{orphans}; while :; do read -t 0.1 <>pipe; done'"
    );
    let pipe = world.path().join("pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).expect("a pipe can be made");
    let running = world.shell(&script).directory(world.path()).start();
    running.wait_until_it_prints("grown");
    for guard in world.wait_for_processes("lease-guard", 2) {
        wait_until(format!("{guard} has one child again"), LIMIT, || {
            let children = fs::read_to_string(format!("/proc/{guard}/task/{guard}/children"));
            let children = children.expect("the kernel lists children");
            (children.split_whitespace().count() == 1).then_some(())
        });
    }
    running.signal(Signal::SIGTERM);
    running.wait().assert_signal(Signal::SIGTERM);
    world.assert_nobody_is_left();
}

#[test]
fn tini_no_warning_because_it_is_always_a_subreaper() {
    let world = World::on_files();
    for finished in [
        world.shell("exec $LX true").run(),
        as_pid_1(&world, "exec $LX true").run(),
        as_pid_1(&world, "$LX true; exit $?").run(),
    ] {
        assert_eq!(finished.assert_code(0).stderr, "");
    }
}

#[test]
fn tini_term_usr1_and_usr2_end_the_child_and_then_us() {
    let world = World::on_files();
    let signals = [Signal::SIGTERM, Signal::SIGUSR1, Signal::SIGUSR2];
    for ending in signals {
        let running = world.shell("exec $LX sleep 77").start();
        one(&world, "sleep");
        running.signal(ending);
        // Of the signal itself, so that a shell around us sees what it would see without us.
        running.wait().assert_signal(ending);
    }
    for (ending, code) in signals.into_iter().zip([143, 138, 140]) {
        let running = as_pid_1(&world, "exec $LX sleep 77").start();
        one(&world, "sleep");
        // As `docker kill` does.
        signal(one(&world, "lease-init"), ending);
        running.wait().assert_code(code);
    }
    assert_eq!(world.holder(), "");
    world.assert_nobody_is_left();
}

#[test]
fn tini_and_dumb_init_options_that_are_wrong_or_ask_for_help() {
    let world = World::on_files();
    let lease = ["--lease", LEASE];
    // 64 where theirs is 1, with which too many commands end.
    for wrong in [
        &["--no-such-option", "true"][..],
        &["-w", "no-duration", "true"],
        &["--"],
        &[],
    ] {
        let finished = world.invocation().args(lease).args(wrong).run();
        finished.assert_code(64);
        assert_eq!(finished.stdout(), "", "{wrong:?}");
        assert_ne!(finished.stderr, "", "{wrong:?}");
    }
    for (asking, expected) in [
        ("-h", "Usage"),
        ("--help", "Usage"),
        ("-V", "lease-exec "),
        ("--version", "lease-exec "),
    ] {
        let finished = world.invocation().args([asking]).run();
        finished.assert_code(0);
        assert!(finished.stdout().contains(expected), "{asking}");
        assert_eq!(finished.stderr, "", "{asking}");
    }
}

// === dumb-init ===

#[test]
fn dumb_init_faults_and_limits_end_us_and_the_tree_instead_of_being_forwarded() {
    // They are about whoever gets them: to forward one would hide that lease-exec is broken.
    let world = World::on_files();
    for fault in [
        Signal::SIGILL,
        Signal::SIGTRAP,
        Signal::SIGABRT,
        Signal::SIGBUS,
        Signal::SIGFPE,
        Signal::SIGSEGV,
        Signal::SIGXCPU,
        Signal::SIGXFSZ,
        Signal::SIGSYS,
    ] {
        let script = "ulimit -c 0; exec $LX sh -c '(setsid sleep 77 &); sleep 77'";
        let running = world.shell(script).start();
        world.wait_for_processes("sleep", 2);
        running.signal(fault);
        running.wait().assert_signal(fault);
        world.wait_until_nobody_is_left();
        world.delete();
    }
}

#[test]
fn dumb_init_term_ends_a_pipeline_of_six() {
    let world = World::on_files();
    let running = world
        .shell("exec $LX sh -c 'sleep 77 | sleep 77 | sleep 77 | sleep 77 | sleep 77 | sleep 77'")
        .start();
    world.wait_for_processes("sleep", 6);
    running.signal(Signal::SIGTERM);
    running.wait().assert_signal(Signal::SIGTERM);
    world.assert_nobody_is_left();
    assert_eq!(world.holder(), "");
}

#[test]
fn dumb_init_what_the_child_leaves_behind_gets_term_and_then_kill() {
    let world = World::on_files();
    let notes = world.path().join("notes");
    let script = "exec $LX sh -c '
        bash -c \"trap \\\"echo obeyed >>notes; exit\\\" TERM; echo up; while :; do sleep 0.02; done\" &
        setsid bash -c \"trap \\\"echo ignored >>notes\\\" TERM; echo up; while :; do sleep 0.02; done\" &
        read line <go; exit 6'";
    let go = world.path().join("go");
    nix::unistd::mkfifo(&go, nix::sys::stat::Mode::S_IRWXU).expect("a pipe can be made");
    let running = world.shell(script).directory(world.path()).start();
    wait_until("both are up", LIMIT, || {
        (running.stdout() == "up\nup\n").then_some(())
    });
    fs::write(&go, "\n").expect("the command reads it");
    running.wait().assert_code(6);
    world.assert_nobody_is_left();
    let notes = fs::read_to_string(notes).expect("both have been told");
    assert!(
        notes.contains("obeyed") && notes.contains("ignored"),
        "{notes}"
    );
    assert_eq!(world.holder(), "");
}

#[test]
fn dumb_init_statuses_and_deaths() {
    let world = World::on_files();
    for code in [0, 1, 2, 32, 64, 127, 254, 255] {
        let finished = world.shell(&format!("exec $LX sh -c 'exit {code}'")).run();
        finished.assert_code(code);
    }
    for death in [
        Signal::SIGTERM,
        Signal::SIGHUP,
        Signal::SIGQUIT,
        Signal::SIGKILL,
    ] {
        let number = death as i32;
        let script = format!("$LX sh -c 'kill -{number} $$'; exit $?");
        world.shell(&script).run().assert_code(128 + number);
        let script = format!("exec $LX sh -c 'kill -{number} $$'");
        as_pid_1(&world, &script).run().assert_code(128 + number);
    }
}

#[test]
fn dumb_init_a_bad_command_with_and_without_dashes() {
    let world = World::on_files();
    for script in [
        "exec $LX /no/such/command",
        "exec ${LX%--} /no/such/command",
        "exec $LX no-such-command-anywhere -- more",
        "exec ${LX%--} no-such-command-anywhere --help",
    ] {
        let finished = world.shell(script).run();
        finished.assert_code(127).assert_says("such");
        assert_eq!(finished.stderr.lines().count(), 1, "{}", finished.stderr);
    }
}

#[test]
fn dumb_init_a_filter_works_on_a_terminal() {
    let world = World::on_files();
    let mut terminal = Terminal::script(&world, "$LX tac; echo \"code $?\"");
    terminal.type_in("one\ntwo\n\x04");
    // Behind what the terminal itself shows of the keys.
    terminal.wait_until_it_shows("one\r\ntwo\r\n");
    terminal.wait_until_it_shows("two\r\none\r\n");
    terminal.wait_until_it_shows("code 0");
}

#[test]
fn dumb_init_a_script_with_job_control_works_on_a_terminal() {
    let world = World::on_files();
    let script = "exec $LX bash -mc 'sleep 0.1 & fg; (exit 4) & fg; echo \"job $?\"'";
    let mut terminal = Terminal::script(&world, script);
    terminal.wait_until_it_shows("job 4");
    assert!(terminal.wait().success(), "{}", terminal.shown());
    assert_eq!(terminal.count("no job control"), 0);
}

#[test]
fn dumb_init_no_signal_comes_of_a_change_of_terminal() {
    // There is none: the terminal is never handed over.
    let world = World::on_files();
    let listener = listener().display();
    let mut terminal = Terminal::script(&world, &format!("exec $LX {listener}"));
    terminal.wait_until_it_shows("ready");
    signal(terminal.leader(), Signal::SIGUSR2);
    assert!(terminal.wait().success());
    assert_eq!(heard(&terminal.shown()), [libc::SIGUSR2]);
}

// === catatonit ===

#[test]
fn catatonit_the_end_is_noticed_among_many_others() {
    let world = World::on_files();
    // All end at the same instant, and the kernel says SIGCHLD once.
    let go = world.path().join("go");
    nix::unistd::mkfifo(&go, nix::sys::stat::Mode::S_IRWXU).expect("a pipe can be made");
    let orphans = "for i in $(seq 50); do (read line & exit) done";
    let script = format!("exec $LX bash -c 'exec <go; echo up; {orphans}; read line; exit 7'");
    for starts in [World::shell, as_pid_1] {
        let running = starts(&world, &script).directory(world.path()).start();
        // Opened by the command, and closed at once: all reads end.
        fs::write(&go, "").expect("the command reads it");
        running.wait().assert_code(7);
    }
}

// === timeout ===

#[test]
fn timeout_and_lease_exec_can_be_cascaded() {
    let world = World::on_files();
    let finished = world
        .shell("timeout 60 $LX timeout 60 ${LX/demo/other} timeout 60 sh -c 'exit 5'")
        .run();
    finished.assert_code(5);
    // 124 is timeout's own, and never ours.
    world
        .shell("timeout 0.5 $LX sleep 77")
        .run()
        .assert_code(124);
    world
        .shell("$LX timeout 0.1 sleep 77")
        .run()
        .assert_code(124);
    world.wait_until_nobody_is_left();
    assert_eq!(world.holder(), "");
}

#[test]
fn timeout_a_parent_that_is_pid_1_is_no_orphanage() {
    let world = World::on_files();
    let script = "$LX sh -c 'sleep 0.1; exit 5'; exit $?";
    as_pid_1(&world, script).run().assert_code(5);
    assert_eq!(world.holder(), "");
}

#[test]
fn timeout_timers_work_though_alarms_are_blocked_at_entry() {
    let world = World::on_files();
    let lx = world.lx().replace("-q", "-q --kill-after 200ms");
    let script = format!(
        "exec env --block-signal=ALRM {lx} bash -c 'trap \"\" TERM; echo up; \
         while :; do sleep 0.02; done'"
    );
    let running = world.shell(&script).start();
    running.wait_until_it_prints("up");
    running.signal(Signal::SIGTERM);
    running.wait().assert_signal(Signal::SIGKILL);
    world.assert_nobody_is_left();
}

#[test]
fn timeout_a_broken_pipe_of_ours_does_not_leave_the_command_behind() {
    let world = World::on_files();
    // Our messages have no reader: neither do we die of it nor is the command left alone.
    let lx = world.lx().replace("-q", "-vv --lease-duration 1s");
    let script = format!(
        "{{ {lx} sh -c 'exec 2>/dev/null; sleep 0.5; exit 8'; echo $? >code; }} 2>&1 | true"
    );
    world.shell(&script).directory(world.path()).run();
    let code = fs::read_to_string(world.path().join("code"));
    assert_eq!(code.expect("it has ended").trim(), "8");
    world.wait_until_nobody_is_left();
}

// === process-wrap ===

#[test]
fn process_wrap_the_death_of_the_leader_is_the_end_of_its_children() {
    let world = World::on_files();
    let running = world
        .shell("exec $LX sh -c 'sleep 77 & setsid sleep 77 & echo $$; wait'")
        .start();
    world.wait_for_processes("sleep", 2);
    let leader = wait_until("its pid is printed", LIMIT, || {
        running.stdout().trim().parse::<i32>().ok()
    });
    let status = Command::new("kill")
        .args(["-KILL", &leader.to_string()])
        .status();
    assert!(status.expect("kill can be run").success());
    running.wait().assert_signal(Signal::SIGKILL);
    world.assert_nobody_is_left();
}
