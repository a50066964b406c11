//! On a terminal: who gets what its keys make, and who has it.

use std::{fs, os::unix::process::ExitStatusExt};

use nix::sys::signal::Signal;

use crate::{
    listener::{heard, listener},
    processes::odd,
    pty::{PROMPT, Terminal},
    shell::Process,
    wait::{LIMIT, wait_until},
    world::World,
};

const CTRL_C: &str = "\x03";
const CTRL_Z: &str = "\x1a";

/// A command that says how often it gets which signal.
const LISTEN: &str = r#"bash -c '
    trap "echo it gets INT" INT; trap "echo it gets USR1" USR1; trap "exit 4" USR2;
    echo started; while :; do sleep 0.02; done'"#;

#[test]
fn ctrl_c_reaches_the_command_once() {
    let world = World::on_files();
    let listener = listener().display();
    let mut terminal = Terminal::script(&world, &format!("stty -echo; exec $LX {listener}"));
    terminal.wait_until_it_shows("ready");
    let front = terminal.leader();
    let wait_to_hear = |terminal: &mut Terminal, expected: &[i32]| {
        wait_until(format!("{expected:?} are heard"), LIMIT, || {
            (heard(&terminal.shown()) == expected).then_some(())
        });
    };
    terminal.type_in(CTRL_C);
    wait_to_hear(&mut terminal, &[2]);
    // A second one would come the same way as this, and before it.
    signal(front, Signal::SIGUSR1);
    wait_to_hear(&mut terminal, &[2, 10]);

    // One that is sent to us alone is passed on, once, with the SIGCONT that follows it.
    signal(front, Signal::SIGINT);
    wait_to_hear(&mut terminal, &[2, 10, 2, 18]);
    signal(front, Signal::SIGUSR2);
    assert!(terminal.wait().success());
    assert_eq!(heard(&terminal.shown()), [2, 10, 2, 18, 12]);
    world.assert_nobody_is_left();
    assert_eq!(world.holder(), "");
}

#[test]
fn ctrl_c_stops_the_script_around_it() {
    let world = World::on_files();
    let script = "for i in 1 2 3; do echo round $i; $LX sh -c 'echo started; exec sleep 77'; done
                  echo after";
    let mut terminal = Terminal::script(&world, script);
    terminal.wait_until_it_shows("started");
    terminal.type_in(CTRL_C);
    let status = terminal.wait();
    assert_eq!(status.signal(), Some(libc::SIGINT), "{}", terminal.shown());
    assert_eq!(terminal.count("round"), 1);
    assert_eq!(terminal.count("after"), 0);
    world.wait_until_nobody_is_left();
    assert_eq!(world.holder(), "");
}

#[test]
fn ctrl_c_while_waiting_stops_the_script_around_it() {
    let world = World::on_files();
    let _holder = world.lease_exec().command(["sleep", "77"]).start();
    world.wait_for_holder();
    let script = "for i in 1 2 3; do echo round $i; ${LX/-q/} sleep 77; done";
    let mut terminal = Terminal::script(&world, script);
    terminal.wait_until_it_shows("somebody else holds the lease");
    terminal.type_in(CTRL_C);
    let status = terminal.wait();
    assert_eq!(status.signal(), Some(libc::SIGINT), "{}", terminal.shown());
    assert_eq!(terminal.count("round"), 1);
}

#[test]
fn ctrl_z_is_refused_with_a_message_while_holding() {
    let world = World::on_files();
    let mut terminal = Terminal::script(&world, &format!("$LX {LISTEN}; echo \"code $?\""));
    terminal.wait_until_it_shows("started");
    let [front] = world.wait_for_processes("lease-exec", 1)[..] else {
        unreachable!("one was waited for");
    };
    terminal.type_in(CTRL_Z);
    terminal.wait_until_it_shows("refused to stop the command");
    // All of them go on.
    signal(front, Signal::SIGUSR1);
    terminal.wait_until_it_shows("it gets USR1");
    world.wait_for_renewal();
    signal(front, Signal::SIGUSR2);
    terminal.wait_until_it_shows("code 4");
    assert!(terminal.wait().success());
}

#[test]
fn ctrl_z_is_refused_where_it_stops_a_child_of_the_command_alone() {
    let world = World::on_files();
    let odd = odd().display();
    let mut terminal = Terminal::script(&world, &format!("$LX {odd} vforking; echo \"code $?\""));
    terminal.wait_until_it_shows("borne");
    terminal.type_in(CTRL_Z);
    terminal.wait_until_it_shows("refused to stop the command");
    terminal.type_in("go on\n");
    terminal.wait_until_it_shows("executed");
    terminal.wait_until_it_shows("code 0");
    assert!(terminal.wait().success());
}

#[test]
fn a_stop_by_kill_is_refused_with_a_message_while_holding() {
    let world = World::on_files();
    let running = world.shell(&format!("exec $LX {LISTEN}")).start();
    running.wait_until_it_prints("started");
    running.signal(Signal::SIGTSTP);
    running.wait_until_it_says("refused to stop");
    running.signal(Signal::SIGUSR2);
    running.wait().assert_code(4);
}

#[test]
fn ctrl_z_while_waiting_stops_it_until_it_is_continued() {
    let world = World::on_files();
    let holder = world.lease_exec().command(["sleep", "77"]).start();
    world.wait_for_holder();
    let mut terminal = Terminal::interactive(&world);
    terminal.type_in("${LX/-q/} echo hel''lo\n");
    terminal.wait_until_it_shows("somebody else holds the lease");
    terminal.type_in(CTRL_Z);
    terminal.wait_until_it_shows("Stopped");
    terminal.wait_until_it_shows(PROMPT);
    terminal.type_in("fg\n");
    wait_until("the job has the terminal", LIMIT, || {
        (terminal.foreground() != terminal.leader()).then_some(())
    });
    holder.signal(Signal::SIGTERM);
    terminal.wait_until_it_shows("hello");
    terminal.wait_until_it_shows(PROMPT);
}

#[test]
fn a_command_that_stops_itself_is_continued_at_once() {
    let world = World::on_files();
    for stop in ["TSTP", "TTIN", "TTOU", "STOP"] {
        let script = format!("exec $LX sh -c 'kill -{stop} $$; exit 3'");
        let running = world.shell(&script).start();
        if stop != "TSTP" {
            // Without a terminal in the foreground these would only come again, and SIGSTOP is
            // somebody's intention.
            wait_until("it is stopped", LIMIT, || {
                let processes = world.processes();
                processes.into_iter().find(|process| process.state == 'T')
            });
            running.signal(Signal::SIGCONT);
        }
        let finished = running.wait();
        finished.assert_code(3);
        assert_eq!(finished.stderr.contains("refused"), stop == "TSTP");
    }
}

#[test]
fn a_script_still_has_the_terminal_after_it() {
    let world = World::on_files();
    let script = "$LX true; read -r line; echo \"the script reads $line\"
                  $LX sh -c 'read -r line; echo \"the command reads $line\"'";
    let mut terminal = Terminal::script(&world, script);
    terminal.type_in("one\n");
    terminal.wait_until_it_shows("the script reads one");
    terminal.type_in("two\n");
    terminal.wait_until_it_shows("the command reads two");
    assert!(terminal.wait().success(), "{}", terminal.shown());
}

#[test]
fn a_background_job_does_not_steal_the_terminal() {
    let world = World::on_files();
    let mut terminal = Terminal::interactive(&world);
    let shell = terminal.leader();
    terminal.type_in("$LX sh -c 'echo st''arted; exec sleep 77' &\n");
    terminal.wait_until_it_shows("started");
    assert_eq!(terminal.foreground(), shell);
    terminal.type_in("read -r line\n");
    terminal.type_in("words\n");
    terminal.type_in("echo \"it is $line\"\n");
    terminal.wait_until_it_shows("it is words");
    // It is in a group of its own, so that what ends that group can't hit the shell's job.
    let [sleep] = world.wait_for_processes("sleep", 1)[..] else {
        unreachable!("one was waited for");
    };
    let sleep = Process::read(sleep).expect("it lives");
    assert_eq!(sleep.group, sleep.pid);
    terminal.type_in("kill %1; wait %1; echo \"code\" $?\n");
    terminal.wait_until_it_shows("code 143");
    world.wait_until_nobody_but(&[shell]);
}

#[test]
fn a_background_job_that_reads_is_stopped_and_its_lease_renewed() {
    let world = World::on_files();
    let mut terminal = Terminal::interactive(&world);
    let shell = terminal.leader();
    terminal.type_in("${LX/-q/-q --lease-duration 3s} cat &\n");
    let stopped = || {
        let processes = world.processes();
        let cat = processes.iter().find(|process| process.name == "cat")?;
        (cat.state == 'T').then_some(cat.pid)
    };
    let cat = wait_until("the command is stopped", LIMIT, stopped);
    // It is not continued over and over.
    for _ in 0..3 {
        world.wait_for_renewal();
        assert_eq!(stopped(), Some(cat));
    }
    // The shell's job is brought to the foreground: Ctrl-C ends it.
    terminal.type_in("fg\n");
    wait_until("the job has the terminal", LIMIT, || {
        (terminal.foreground() != shell).then_some(())
    });
    terminal.type_in(CTRL_C);
    terminal.wait_until_it_shows(PROMPT);
    wait_until("the shell has the terminal again", LIMIT, || {
        (terminal.foreground() == shell).then_some(())
    });
    world.wait_until_nobody_but(&[shell]);
    assert_eq!(world.holder(), "");
}

#[test]
fn a_standby_that_was_put_into_the_background_lets_its_command_be_stopped_when_it_reads() {
    let world = World::on_files();
    let holder = world.lease_exec().command(["sleep", "77"]).start();
    world.wait_for_holder();
    let mut terminal = Terminal::interactive(&world);
    let shell = terminal.leader();
    terminal.type_in("${LX/-q/--lease-duration 3s} cat\n");
    terminal.wait_until_it_shows("somebody else holds the lease");
    terminal.type_in(CTRL_Z);
    terminal.wait_until_it_shows(PROMPT);
    terminal.type_in("bg\n");
    terminal.wait_until_it_shows(PROMPT);
    holder.signal(Signal::SIGTERM);
    let stopped = || {
        let processes = world.processes();
        let cat = processes.iter().find(|process| process.name == "cat")?;
        (cat.state == 'T').then_some(cat.pid)
    };
    let cat = wait_until("the command is stopped", LIMIT, stopped);
    // It is not continued over and over.
    for _ in 0..3 {
        world.wait_for_renewal();
        assert_eq!(stopped(), Some(cat));
    }
    assert_eq!(terminal.count("refused"), 0, "{}", terminal.shown());
    terminal.type_in("kill %1; wait %1; echo \"code\" $?\n");
    terminal.wait_until_it_shows("code 143");
    world.wait_until_nobody_but(&[shell]);
}

#[test]
fn a_command_whose_script_has_lost_the_terminal_is_stopped_when_it_reads() {
    let world = World::on_files();
    let mut terminal = Terminal::interactive(&world);
    let shell = terminal.leader();
    let go = world.path().join("go");
    terminal.type_in(&format!(
        "sh -c \"${{LX/-q/-q --lease-duration 3s}} sh -c 'echo st''arted
         until [ -e {} ]; do sleep 0.02; done; exec cat'; :\"\n",
        go.display()
    ));
    terminal.wait_until_it_shows("started\r");
    let [front] = world.wait_for_processes("lease-exec", 1)[..] else {
        unreachable!("one was waited for");
    };
    // The shell takes the terminal back, and the command, which shares its group, runs on.
    let script = Process::read(front).expect("it lives").parent;
    signal(script, Signal::SIGSTOP);
    terminal.wait_until_it_shows(PROMPT);
    fs::write(go, "").expect("written");
    let stopped = || {
        let processes = world.processes();
        let cat = processes.iter().find(|process| process.name == "cat")?;
        (cat.state == 'T').then_some(cat.pid)
    };
    let cat = wait_until("the command is stopped", LIMIT, stopped);
    for _ in 0..3 {
        world.wait_for_renewal();
        assert_eq!(stopped(), Some(cat));
    }
    assert_eq!(terminal.count("refused"), 0, "{}", terminal.shown());
    terminal.type_in("fg\n");
    wait_until("the job has the terminal", LIMIT, || {
        (terminal.foreground() != shell).then_some(())
    });
    wait_until("the command goes on", LIMIT, || {
        stopped().is_none().then_some(())
    });
    terminal.type_in(CTRL_C);
    terminal.wait_until_it_shows(PROMPT);
    world.wait_until_nobody_but(&[shell]);
}

#[test]
fn a_job_that_was_brought_to_the_foreground_can_be_interrupted() {
    let world = World::on_files();
    let mut terminal = Terminal::interactive(&world);
    let shell = terminal.leader();
    terminal.type_in(&format!("$LX {} &\n", LISTEN.replace('\n', " ")));
    terminal.wait_until_it_shows("started\r");
    terminal.type_in("fg\n");
    wait_until("the job has the terminal", LIMIT, || {
        (terminal.foreground() != shell).then_some(())
    });
    terminal.type_in(CTRL_C);
    terminal.wait_until_it_shows("it gets INT\r");
    terminal.type_in(CTRL_Z);
    terminal.wait_until_it_shows("refused to stop");
    let [front] = world.wait_for_processes("lease-exec", 1)[..] else {
        unreachable!("one was waited for");
    };
    signal(front, Signal::SIGUSR2);
    terminal.wait_until_it_shows(PROMPT);
    terminal.type_in("echo \"code\" $?\n");
    terminal.wait_until_it_shows("code 4");
    assert_eq!(terminal.count("it gets INT\r"), 1);
}

#[test]
fn a_stopped_command_in_a_pipeline_can_be_ended() {
    let world = World::on_files();
    let mut terminal = Terminal::interactive(&world);
    let shell = terminal.leader();
    // The command itself, and one that waits for a child that is stopped: it obeys only then.
    for (command, code) in [
        ("sh -c 'kill -STOP $$; echo ne''ver'", 143),
        (
            "bash -c 'trap \"exit 3\" TERM; sh -c \"kill -STOP \\$\\$\"; sleep 77'",
            3,
        ),
    ] {
        terminal.type_in(&format!(
            "$LX {command} | cat; echo code ${{PIPESTATUS[0]}}\n"
        ));
        wait_until("somebody is stopped", LIMIT, || {
            let processes = world.processes();
            processes.into_iter().find(|process| process.state == 'T')
        });
        let [front] = world.wait_for_processes("lease-exec", 1)[..] else {
            unreachable!("one was waited for");
        };
        signal(front, Signal::SIGTERM);
        terminal.wait_until_it_shows(&format!("code {code}"));
        terminal.wait_until_it_shows(PROMPT);
        world.wait_until_nobody_but(&[shell]);
    }
    assert_eq!(terminal.count("never"), 0);
    assert_eq!(world.holder(), "");
}

#[test]
fn a_hangup_ends_all() {
    let world = World::on_files();
    let script = "$LX bash -c 'sleep 77 & setsid sleep 77 & (setsid sh -c \"sleep 77 & exit\" &)
                               echo started; wait'";
    let mut terminal = Terminal::script(&world, script);
    terminal.wait_until_it_shows("started");
    world.wait_for_processes("sleep", 3);
    terminal.hang_up();
    terminal.wait();
    world.wait_until_nobody_is_left();
    assert_eq!(world.holder(), "");
}

#[test]
fn a_hangup_ends_all_where_we_lead_the_session() {
    let world = World::on_files();
    // Then the kernel tells us alone.
    let script = "exec $LX bash -c 'sleep 77 & echo started; wait'";
    let mut terminal = Terminal::script(&world, script);
    terminal.wait_until_it_shows("started");
    world.wait_for_processes("sleep", 1);
    terminal.hang_up();
    terminal.wait();
    world.wait_until_nobody_is_left();
    assert_eq!(world.holder(), "");
}

#[test]
fn a_hangup_while_messages_are_written_is_no_panic() {
    let world = World::on_files();
    // A command that obeys no hangup, so that there is much to say to a terminal that is gone.
    let code = world.path().join("code");
    let script = format!(
        "trap '' HUP; ${{LX/-q/-vv --lease-duration 1s}} sh -c 'echo started; read line
             until [ -e {path}/go ]; do sleep 0.02; done; exit 6'; echo $? >{path}/code",
        path = world.path().display()
    );
    let mut terminal = Terminal::script(&world, &script);
    terminal.wait_until_it_shows("started");
    terminal.hang_up();
    for _ in 0..3 {
        world.wait_for_renewal();
    }
    fs::write(world.path().join("go"), "").expect("written");
    let code = wait_until("it has ended", LIMIT, || {
        fs::read_to_string(&code)
            .ok()
            .filter(|text| text.ends_with('\n'))
    });
    assert_eq!(code, "6\n");
    assert_eq!(world.holder(), "");
}

#[test]
fn nohup_keeps_it_over_a_hangup() {
    let world = World::on_files();
    let mut terminal = Terminal::interactive(&world);
    let script = format!(
        "cd {path}; nohup $LX sh -c 'echo $PPID >ppid; until [ -e go ]; do sleep 0.02; done;
             echo done >result' >nohup 2>&1 &\n",
        path = world.path().display()
    );
    terminal.type_in(&script);
    let [front] = world.wait_for_processes("lease-exec", 1)[..] else {
        unreachable!("one was waited for");
    };
    wait_until("the command has started", LIMIT, || {
        fs::read_to_string(world.path().join("ppid"))
            .ok()
            .filter(|text| text.ends_with('\n'))
    });
    terminal.hang_up();
    terminal.wait();
    signal(front, Signal::SIGHUP);
    world.wait_for_renewal();
    fs::write(world.path().join("go"), "").expect("written");
    world.wait_until_nobody_is_left();
    let result = fs::read_to_string(world.path().join("result"));
    assert_eq!(result.expect("the command has ended by itself"), "done\n");
}

#[test]
fn a_shell_with_job_control_works_inside() {
    let world = World::on_files();
    let script = "PS1='ready> ' $LX bash --norc --noprofile --noediting -i; echo \"code $?\"";
    let mut terminal = Terminal::script(&world, script);
    terminal.wait_until_it_shows(PROMPT);
    let shell = terminal.foreground();
    terminal.type_in("sleep 77\n");
    world.wait_for_processes("sleep", 1);
    wait_until("the job has the terminal", LIMIT, || {
        (terminal.foreground() != shell).then_some(())
    });
    terminal.type_in(CTRL_Z);
    terminal.wait_until_it_shows("Stopped");
    terminal.wait_until_it_shows(PROMPT);
    terminal.type_in("jobs\n");
    terminal.wait_until_it_shows("sleep 77");
    terminal.wait_until_it_shows(PROMPT);
    terminal.type_in("kill %1\n");
    world.wait_for_processes("sleep", 0);
    terminal.type_in("sleep 78\n");
    world.wait_for_processes("sleep", 1);
    wait_until("the job has the terminal", LIMIT, || {
        (terminal.foreground() != shell).then_some(())
    });
    terminal.type_in(CTRL_C);
    terminal.wait_until_it_shows(PROMPT);
    // A bash that has not noticed yet that its stopped job is dead wants to be told twice.
    terminal.type_in("exit 5\nexit 5\n");
    terminal.wait_until_it_shows("code 5");
    assert!(terminal.wait().success());
    assert_eq!(terminal.count("refused"), 0, "{}", terminal.shown());
    world.wait_until_nobody_is_left();
}

fn signal(pid: i32, signal: Signal) {
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal).expect("it can be signalled");
}
