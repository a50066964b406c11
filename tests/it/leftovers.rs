//! The command ends and leaves others behind; and who hears of a signal before that.

use std::{fs, path::PathBuf};

use nix::sys::signal::Signal;

use crate::{
    processes::{InTerminal, Level, Mark, at_both_levels, children, guard_of, name, signal, state},
    wait::{LIMIT, wait_until},
    world::{Running, World},
};

/// The lines of a file, none if there is no file.
fn lines(path: &PathBuf) -> Vec<String> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

#[track_caller]
fn wait_for_line(path: &PathBuf, wanted: &str) {
    wait_until(format!("{} says {wanted}", path.display()), LIMIT, || {
        lines(path).iter().any(|line| line == wanted).then_some(())
    });
}

#[test]
fn leftovers_are_ended_before_the_release_and_the_commands_code_is_ours() {
    at_both_levels(|level| {
        let world = World::on_files();
        let mark = Mark::new();
        let ready = world.path().join("ready");
        let script = format!(
            "(setsid sh -c 'trap \"\" TERM; echo a >>{ready}; exec sleep 7777' &); \
             (setsid sh -c 'echo b >>{ready}; exec sleep 7777' &); sleep 7777 & \
             while [ \"$(cat {ready} | wc -l)\" != 2 ]; do sleep 0.01; done; exit 3",
            ready = ready.display(),
        );
        let invocation = world.lease_exec().command(mark.script(&script));
        level.apply(invocation).start().wait().assert_code(3);
        assert_eq!(mark.alive(), [0; 0]);
        assert_eq!(world.holder(), "");
    });
}

#[test]
fn what_is_left_behind_and_ended_is_said() {
    const ENDING: &str = "ending what the command left behind (--wait-descendants waits for it)";
    at_both_levels(|level| {
        let world = World::on_files();
        let leaves = "(setsid sleep 7777 &); sleep 7777 & exit 3";
        let invocation = world.lease_exec().script(leaves);
        let finished = level.apply(invocation).start().wait();
        finished.assert_code(3);
        let line = finished.stderr.lines().find(|line| line.contains(ENDING));
        let line = line.unwrap_or_else(|| panic!("{}", finished.stderr));
        assert!(line.contains("number=2"), "{line}");
        assert!(line.contains(" INFO "), "{line}");

        let invocation = world.lease_exec().script("sleep 0 & wait; exit 3");
        let finished = level.apply(invocation).start().wait();
        assert!(!finished.stderr.contains(ENDING), "{}", finished.stderr);
    });
}

#[test]
fn an_orphan_of_the_command_is_a_child_of_the_guard() {
    let world = World::on_files();
    let mark = Mark::new();
    let script = "setsid sh -c 'sleep 7777 & exit' & wait; exec sleep 7777";
    let running = world.lease_exec().command(mark.script(script)).start();
    wait_until("the guard has two children called sleep", LIMIT, || {
        let children = children(guard_of(&running));
        let sleeps = children.iter().filter(|pid| name(**pid) == "sleep");
        (sleeps.count() == 2).then_some(())
    });
    running.signal(Signal::SIGTERM);
    running.wait().assert_signal(Signal::SIGTERM);
    assert_eq!(mark.alive(), [0; 0]);
}

#[test]
fn orphans_that_end_at_once_leave_no_zombie() {
    let world = World::on_files();
    let mark = Mark::new();
    // More than the guard reaps before it looks at the clock.
    let script = "for i in $(seq 600); do (sleep 7777 &); done; exec tail -f /dev/null";
    // A renewal wakes the guard as well, so few of them.
    let invocation = world.lease_exec().args(["--lease-duration", "300s"]);
    let running = invocation.command(mark.script(script)).start();
    let guard = guard_of(&running);
    let orphans = wait_until("the guard has 600 more children", LIMIT, || {
        let children = children(guard);
        let sleeps = children.into_iter().filter(|pid| name(*pid) == "sleep");
        Some(sleeps.collect::<Vec<_>>()).filter(|sleeps| sleeps.len() == 600)
    });
    // The kernel then tells of all of them with one SIGCHLD.
    signal(guard, Signal::SIGSTOP);
    wait_until("the guard is stopped", LIMIT, || {
        (state(guard) == 'T').then_some(())
    });
    for orphan in orphans {
        signal(orphan, Signal::SIGKILL);
    }
    signal(guard, Signal::SIGCONT);
    wait_until("the command alone is left", LIMIT, || {
        (children(guard).len() == 1).then_some(())
    });
    running.signal(Signal::SIGTERM);
    running.wait().assert_signal(Signal::SIGTERM);
}

#[test]
fn leftovers_may_end_in_their_own_way_first() {
    let world = World::on_files();
    let said = world.path().join("said");
    let script = format!(
        "(setsid sh -c 'trap \"sleep 0.1; echo bye >>{said}; exit\" TERM; echo ready >>{said}; \
         while :; do sleep 0.02; done' &); until grep -q ready {said}; do sleep 0.01; done",
        said = said.display(),
    );
    world.lease_exec().script(&script).run().assert_code(0);
    assert_eq!(lines(&said), ["ready", "bye"]);
}

#[test]
fn a_leftover_that_is_stopped_may_end_in_its_own_way_first() {
    let world = World::on_files();
    let said = world.path().join("said");
    // In a session of its own: a stopped one in the command's group the kernel would continue.
    let script = format!(
        "(setsid sh -c 'trap \"echo bye >>{said}; exit\" TERM; echo $$ >{pid}; kill -STOP $$; \
         while :; do sleep 0.02; done' &); \
         until grep -q '^State:.T' /proc/$(cat {pid})/status; do sleep 0.01; done",
        said = said.display(),
        pid = world.path().join("pid").display(),
    );
    world.lease_exec().script(&script).run().assert_code(0);
    assert_eq!(lines(&said), ["bye"]);
}

// === --wait-descendants ===

/// A command that ends with 3 at once and leaves a daemon, which takes TERM as an order to end.
fn start_daemon(world: &World, level: Level, mark: &Mark) -> Running {
    let said = world.path().join("said");
    let script = format!(
        "(setsid sh -c 'trap \"echo bye >>{said}; exit\" TERM; echo ready >>{said}; \
         until [ -e {path}/go ]; do sleep 0.02; done; echo done >>{said}' &); exit 3",
        said = said.display(),
        path = world.path().display(),
    );
    let invocation = world.lease_exec().args(["--wait-descendants"]);
    let running = level
        .apply(invocation.command(mark.script(&script)))
        .start();
    wait_for_line(&said, "ready");
    running
}

#[test]
fn descendants_are_waited_for_if_asked() {
    at_both_levels(|level| {
        let world = World::on_files();
        let mark = Mark::new();
        let running = start_daemon(&world, level, &mark);
        for _ in 0..2 {
            world.wait_for_renewal();
        }
        assert_ne!(mark.alive(), [0; 0], "it was ended");
        running.wait_until_it_says("the command ended; waiting for what it left behind");
        fs::write(world.path().join("go"), "").expect("written");
        let finished = running.wait();
        finished.assert_code(3);
        let said = |what: &str| finished.stderr.matches(what).count();
        assert_eq!(said("the command ended"), 1, "{}", finished.stderr);
        assert_eq!(said("what the command left behind has ended"), 1);
        assert_eq!(lines(&world.path().join("said")), ["ready", "done"]);
        assert_eq!(world.holder(), "");
    });
}

#[test]
fn descendants_that_are_waited_for_get_the_signals() {
    let world = World::on_files();
    let mark = Mark::new();
    let running = start_daemon(&world, Level::Cgroup, &mark);
    wait_until("the command itself has ended", LIMIT, || {
        children(guard_of(&running))
            .iter()
            .all(|pid| state(*pid) == 'S')
            .then_some(())
    });
    running.signal(Signal::SIGTERM);
    running.wait().assert_code(3);
    assert_eq!(lines(&world.path().join("said")), ["ready", "bye"]);
}

#[test]
fn a_loss_while_descendants_are_waited_for_is_a_loss() {
    let world = World::on_files();
    let mark = Mark::new();
    let running = start_daemon(&world, Level::Cgroup, &mark);
    world.steal("somebody-else");
    running.wait().assert_code(79);
    assert_eq!(mark.alive(), [0; 0]);
}

// === --group ===

/// A command and a child of it that both say who hears SIGUSR1.
fn listeners(world: &World) -> String {
    let said = world.path().join("said");
    let listener = |name: &str, rest: &str| {
        format!(
            "trap 'echo {name} >>{said}' USR1; echo {name} is ready >>{said}; {rest}",
            said = said.display()
        )
    };
    let ever = "while :; do sleep 0.02; done";
    let child = world.path().join("child.sh");
    fs::write(&child, listener("child", ever)).expect("written");
    let script = format!("sh {} & {}", child.display(), listener("command", ever));
    let file = world.path().join("command.sh");
    fs::write(&file, script).expect("written");
    file.display().to_string()
}

#[test]
fn a_signal_goes_to_the_command_alone_or_with_group_to_its_group() {
    for (options, hears) in [
        (&[][..], vec!["command"]),
        (&["-g"], vec!["child", "command"]),
    ] {
        let world = World::on_files();
        let said = world.path().join("said");
        let script = listeners(&world);
        let running = world
            .lease_exec()
            .args(options)
            .command(["sh", &script])
            .start();
        for name in ["command is ready", "child is ready"] {
            wait_for_line(&said, name);
        }
        running.signal(Signal::SIGUSR1);
        for name in &hears {
            wait_for_line(&said, name);
        }
        // What follows it has arrived: so has what was sent before.
        running.signal(Signal::SIGTERM);
        running.wait().assert_signal(Signal::SIGTERM);
        let mut heard = lines(&said).split_off(2);
        heard.sort();
        assert_eq!(heard, hears);
    }
}

#[test]
fn with_a_group_that_is_the_callers_a_signal_spares_the_caller() {
    let world = World::on_files();
    let said = world.path().join("said");
    let bystander = Mark::new();
    let beside = bystander.command(&["sleep", "7777"]).join(" ");
    let arguments = format!("-g -- sh {}", listeners(&world));
    let terminal = InTerminal::start(&world, &beside, &arguments);
    for name in ["command is ready", "child is ready"] {
        wait_for_line(&said, name);
    }
    signal(terminal.front, Signal::SIGUSR1);
    for name in ["command", "child"] {
        wait_for_line(&said, name);
    }
    assert_eq!(bystander.alive().len(), 1, "the caller's own child was hit");
    signal(terminal.front, Signal::SIGTERM);
    assert_eq!(terminal.wait(), 128 + 15);
    assert_eq!(bystander.alive().len(), 1, "the caller's own child was hit");
}

// === --no-new-privs ===

#[test]
fn the_command_gains_no_privileges_if_asked() {
    let world = World::on_files();
    let with = |options: &[&str]| {
        let invocation = world.lease_exec().args(options);
        let finished = invocation
            .command(["grep", "NoNewPrivs", "/proc/self/status"])
            .run();
        finished.assert_code(0).stdout()
    };
    assert_eq!(with(&[]), "NoNewPrivs:\t0\n");
    assert_eq!(with(&["--no-new-privs"]), "NoNewPrivs:\t1\n");
}
