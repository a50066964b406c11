//! On a terminal: what its keys make reaches also a command that has left the caller's group.

use std::fs;

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    listener::{heard, listener},
    pty::Terminal,
    wait::{LIMIT, wait_until},
    world::World,
};

const CTRL_C: &str = "\x03";
const CTRL_BACKSLASH: &str = "\x1c";

#[track_caller]
fn wait_to_hear(terminal: &mut Terminal, expected: &[i32]) {
    wait_until(format!("{expected:?} are heard"), LIMIT, || {
        (heard(&terminal.shown()) == expected).then_some(())
    });
}

#[test]
fn keys_reach_a_command_in_a_group_of_its_own_once() {
    let world = World::on_files();
    let listener = listener().display();
    let script = format!("stty -echo; exec $LX {listener} own-group");
    let mut terminal = Terminal::script(&world, &script);
    terminal.wait_until_it_shows("ready");
    let front = Pid::from_raw(terminal.leader());
    // Each that asks to end is followed by one SIGCONT, because it is passed on.
    terminal.type_in(CTRL_C);
    wait_to_hear(&mut terminal, &[2, 18]);
    terminal.type_in(CTRL_BACKSLASH);
    wait_to_hear(&mut terminal, &[2, 18, 3, 18]);
    terminal.resize();
    wait_to_hear(&mut terminal, &[2, 18, 3, 18, 28]);
    // A second one of them would come the same way as these, and before them.
    for signal in [Signal::SIGUSR1, Signal::SIGUSR2] {
        kill(front, signal).expect("it can be signalled");
    }
    assert!(terminal.wait().success());
    assert_eq!(heard(&terminal.shown()), [2, 18, 3, 18, 28, 10, 12]);
    world.assert_nobody_is_left();
    assert_eq!(world.holder(), "");
}

#[test]
fn ctrl_c_ends_timeout() {
    let world = World::on_files();
    let script =
        "trap : INT; $LX timeout 600 sh -c 'echo started; exec sleep 600'; echo \"code $?\"";
    let mut terminal = Terminal::script(&world, script);
    terminal.wait_until_it_shows("started");
    terminal.type_in(CTRL_C);
    // The limit of this wait is far below that of timeout(1).
    terminal.wait_until_it_shows("code 130");
    assert!(terminal.wait().success());
    world.wait_until_nobody_is_left();
    assert_eq!(world.holder(), "");
}

#[test]
fn a_command_that_stops_itself_in_a_group_of_its_own_is_continued() {
    let world = World::on_files();
    let script = "$LX timeout 600 sh -c 'kill -TSTP $PPID; sleep 0; echo done'; echo \"code $?\"";
    let mut terminal = Terminal::script(&world, script);
    terminal.wait_until_it_shows("refused to stop the command");
    terminal.wait_until_it_shows("code 0");
    assert!(terminal.wait().success());
}

#[test]
fn ctrl_c_reaches_the_awaited_who_are_elsewhere() {
    let world = World::on_files();
    let daemon = world.path().join("daemon");
    let text = "trap 'echo bye; exit' INT; echo ready; while :; do sleep 0.02; done";
    fs::write(&daemon, text).expect("written");
    let script = format!(
        "trap : INT; ${{LX/-q/-q --wait-descendants}} sh -c 'setsid --fork sh {}; exit 3'
         echo \"code $?\"",
        daemon.display()
    );
    let mut terminal = Terminal::script(&world, &script);
    terminal.wait_until_it_shows("ready");
    world.wait_for_renewal();
    terminal.type_in(CTRL_C);
    terminal.wait_until_it_shows("bye");
    terminal.wait_until_it_shows("code 3");
    assert!(terminal.wait().success());
}

#[test]
fn lease_execs_in_one_group_do_not_continue_each_other_for_ever() {
    let world = World::on_files();
    let listener = listener().display();
    // Each writes where it can be told from the others.
    let one = |name: &str| {
        format!(
            "${{LX/--lease demo/--lease {name}}} {listener} >{}/{name}",
            world.path().display()
        )
    };
    let script = format!("{} | {} | {}", one("one"), one("two"), one("three"));
    let mut terminal = Terminal::script(&world, &script);
    let heard_by = |name: &str| {
        let text = fs::read_to_string(world.path().join(name)).unwrap_or_default();
        (text.contains("ready"), heard(&text))
    };
    let names = ["one", "two", "three"];
    wait_until("all are ready", LIMIT, || {
        names.iter().all(|name| heard_by(name).0).then_some(())
    });
    let fronts = world.wait_for_processes("lease-exec", 3);
    let send_all = |signal: Signal| {
        for front in &fronts {
            kill(Pid::from_raw(*front), signal).expect("it can be signalled");
        }
    };
    // Each continues the whole group after this, because members of it may be stopped.
    send_all(Signal::SIGHUP);
    let count = |name: &str, signal: Signal| {
        let numbers = heard_by(name).1.into_iter();
        numbers.filter(|number| *number == signal as i32).count()
    };
    // There and back so often takes longer than what has to come to rest.
    for round in 1..=20 {
        send_all(Signal::SIGUSR1);
        wait_until(format!("round {round} is heard"), LIMIT, || {
            let is_heard = |name: &&str| count(name, Signal::SIGUSR1) == round;
            names.iter().all(is_heard).then_some(())
        });
    }
    for name in names {
        // Three guards tell the group, and three fronts pass at most two of those on.
        let continued = count(name, Signal::SIGCONT);
        assert!((1..=9).contains(&continued), "{name}: {continued}");
    }
    send_all(Signal::SIGUSR2);
    assert!(terminal.wait().success());
}
