//! lease-exec as PID 1 of a PID namespace, as in a container.

use std::{fs, process::Command};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::json;

use crate::{
    control_plane::{ControlPlane, User},
    pty::{PROMPT, Terminal},
    shell::Process,
    wait::{LIMIT, wait_until},
    world::{Invocation, LEASE, Running, World},
};

/// What makes a PID namespace whose first process is what follows. The namespace ends with it.
pub(crate) fn namespace() -> Vec<&'static str> {
    let mut words = vec!["unshare"];
    if !nix::unistd::geteuid().is_root() {
        words.push("--map-root-user");
    }
    words.extend(["--pid", "--fork", "--kill-child", "--mount-proc"]);
    words
}

/// A bash script as PID 1 of a namespace of its own, which is to `exec $LX`.
fn first(world: &World<'static>, script: &str) -> Invocation {
    let words = namespace();
    world.script_of(words[0], &[&words[1..], &["bash", "-c", script]].concat())
}

/// lease-exec's own processes, by their pids outside.
#[derive(Debug)]
struct Own {
    init: i32,
    front: i32,
    guard: i32,
}

impl Own {
    fn of(world: &World<'static>) -> Self {
        let one = |name| world.wait_for_processes(name, 1)[0];
        let own = Self {
            init: one("lease-init"),
            front: one("lease-exec"),
            guard: one("lease-guard"),
        };
        let parent = |pid| Process::read(pid).expect("it lives").parent;
        assert_eq!(parent(own.guard), own.front);
        assert_eq!(parent(own.front), own.init);
        own
    }
}

fn signal(pid: i32, signal: Signal) {
    kill(Pid::from_raw(pid), signal).expect("it can be signalled");
}

/// A tree whose members differ in how they can be missed.
const TREE: &str = r#"bash -c '
    sleep 77 & setsid sleep 77 & (setsid sh -c "sleep 77 & exit 0" &)
    sh -c "trap \"\" TERM; sleep 77" & sh -c "kill -STOP \$\$; sleep 77" &
    echo started; wait'"#;

/// Starts the tree as PID 1, and waits until it is there.
fn start_tree(world: &World<'static>, options: &str) -> Running {
    let script = format!("exec ${{LX/--lease/{options} --lease}} {TREE}");
    let running = first(world, &script).start();
    running.wait_until_it_prints("started");
    world.wait_for_processes("sleep", 4);
    wait_until("one is stopped", LIMIT, || {
        let processes = world.processes();
        processes.into_iter().find(|process| process.state == 'T')
    });
    running
}

#[test]
fn exit_codes_and_deaths_by_signal_pass_through_it() {
    let world = World::on_files();
    for (script, code) in [
        ("exit 0", 0),
        ("exit 42", 42),
        ("exit 255", 255),
        ("kill -TERM $$", 143),
        ("kill -KILL $$", 137),
    ] {
        let finished = first(&world, &format!("exec $LX sh -c '{script}'")).run();
        finished.assert_code(code);
    }
    let missing = first(&world, "exec $LX no-such-command-anywhere").run();
    missing.assert_code(127);
}

#[test]
fn term_while_waiting_ends_it() {
    let world = World::on_files();
    let _holder = world.lease_exec().command(["sleep", "77"]).start();
    let holder = world.wait_for_holder();
    for ending in [
        Signal::SIGTERM,
        Signal::SIGINT,
        Signal::SIGHUP,
        Signal::SIGQUIT,
    ] {
        let running = first(&world, "exec ${LX/-q/} echo never").start();
        running.wait_until_it_says("somebody else holds the lease");
        signal(Own::of(&world).init, ending);
        let finished = running.wait();
        finished.assert_code(128 + ending as i32);
        assert_eq!(finished.stdout(), "");
        world.wait_until_nobody_is_left();
    }
    assert_eq!(world.holder(), holder);
}

#[test]
fn term_while_holding_ends_the_command_and_releases_the_lease() {
    let world = World::on_files();
    let running = first(&world, "exec $LX sleep 77").start();
    world.wait_for_processes("sleep", 1);
    signal(Own::of(&world).init, Signal::SIGTERM);
    running.wait().assert_code(143);
    assert_eq!(world.holder(), "");
    world.assert_nobody_is_left();
}

#[test]
fn term_ends_it_though_it_is_stopped_while_waiting() {
    let world = World::on_files();
    let _holder = world.lease_exec().command(["sleep", "77"]).start();
    world.wait_for_holder();
    let running = first(&world, "exec ${LX/-q/} echo never").start();
    running.wait_until_it_says("somebody else holds the lease");
    let own = Own::of(&world);
    signal(own.init, Signal::SIGTSTP);
    wait_until("front is stopped", LIMIT, || {
        (Process::read(own.front)?.state == 'T').then_some(())
    });
    signal(own.init, Signal::SIGTERM);
    running.wait().assert_code(143);
}

#[test]
fn signals_from_inside_the_namespace_are_passed_on_too() {
    let world = World::on_files();
    let script = "exec $LX bash -c 'trap \"exit 9\" USR1; echo up; while :; do sleep 0.02; done'";
    let running = first(&world, script).start();
    running.wait_until_it_prints("up");
    // The kernel drops those for which PID 1 has neither a handler nor a block.
    let inside = Own::of(&world).init.to_string();
    enter(&world, &inside, "kill -USR1 1").run().assert_code(0);
    running.wait().assert_code(9);
}

#[test]
fn what_the_command_sends_to_its_init_does_not_come_back_unless_it_asks_to_end() {
    let world = World::on_files();
    let go = world.path().join("go").display().to_string();
    let script = "
        trap \"echo bounced\" USR1 CONT; trap \"echo end; exit 5\" TERM; trap \"echo told\" USR2
        echo up; read line
        kill -USR1 1; (kill -USR1 1; sleep 0.1); sleep 0.1
        kill -TERM 1; while :; do sleep 0.02; done";
    let script = format!("mkfifo {go}; exec $LX bash -c '{script}' <>{go}");
    let running = first(&world, &script).start();
    running.wait_until_it_prints("up");
    // Others are passed on all the time, also before.
    let inside = Own::of(&world).init.to_string();
    let script = format!("kill -USR2 1; sleep 0.1; echo >{go}");
    enter(&world, &inside, &script).run().assert_code(0);
    let finished = running.wait();
    finished.assert_code(5);
    assert_eq!(finished.stdout(), "up\ntold\nend\n");
}

/// A script inside the namespace that is no descendant of its PID 1, as with `kubectl exec`.
fn enter(world: &World<'static>, init: &str, script: &str) -> Invocation {
    let words = ["--target", init, "--pid", "--mount", "bash", "-c", script];
    world.script_of("nsenter", &words)
}

#[test]
fn a_hundred_orphans_of_the_command_and_of_strangers_leave_no_zombie() {
    let world = World::on_files();
    let orphans = "for i in $(seq 100); do (sleep 0.05 & exit) done; echo grown";
    let script = format!("exec $LX bash -c '{orphans}; while :; do sleep 0.05; done'");
    let running = first(&world, &script).start();
    running.wait_until_it_prints("grown");
    // What these leave behind is PID 1's.
    let own = Own::of(&world);
    let inside = own.init.to_string();
    enter(&world, &inside, orphans).run().assert_code(0);
    for parent in [own.init, own.front, own.guard] {
        wait_until(format!("{parent} has one child again"), LIMIT, || {
            (children(parent) == 1).then_some(())
        });
    }
    signal(own.init, Signal::SIGTERM);
    running.wait().assert_code(143);
}

/// How many children a process has, zombies among them.
fn children(pid: i32) -> usize {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    let children = children.expect("the kernel lists children");
    children.split_whitespace().count()
}

#[test]
fn nobody_lives_on_whichever_of_its_processes_is_killed() {
    let world = World::on_files();
    for victims in [
        |own: &Own| vec![own.init],
        |own: &Own| vec![own.front],
        |own: &Own| vec![own.guard],
        |own: &Own| vec![own.front, own.guard],
    ] {
        let running = start_tree(&world, "--lease-duration 60s");
        let own = Own::of(&world);
        let victims = victims(&own);
        // Stopped first, so that they die together.
        for each in [Signal::SIGSTOP, Signal::SIGKILL] {
            for victim in &victims {
                signal(*victim, each);
            }
        }
        let finished = running.wait();
        if victims == [own.guard] {
            finished.assert_code(125);
        } else {
            assert!(!finished.status.success());
        }
        world.wait_until_nobody_is_left();
        if !world.holder().is_empty() {
            world.delete();
        }
    }
}

#[test]
fn nobody_lives_on_though_front_and_guard_are_stopped() {
    let world = World::on_files();
    let running = start_tree(&world, "--lease-duration 3s");
    let own = Own::of(&world);
    for pid in [own.front, own.guard] {
        signal(pid, Signal::SIGSTOP);
    }
    running.wait().assert_code(137);
    world.wait_until_nobody_is_left();
}

#[test]
fn everything_in_the_namespace_ends_with_it() {
    let world = World::on_files();
    let running = first(&world, "exec $LX sh -c 'echo started; read -r line <go'");
    let go = world.path().join("go");
    nix::unistd::mkfifo(&go, nix::sys::stat::Mode::S_IRWXU).expect("a pipe can be made");
    let running = running.directory(world.path()).start();
    running.wait_until_it_prints("started");
    let inside = Own::of(&world).init.to_string();
    let stranger = enter(&world, &inside, "exec sleep 77").start();
    world.wait_for_processes("sleep", 1);
    fs::write(&go, "\n").expect("the command reads it");
    running.wait().assert_code(0);
    stranger.wait().assert_signal(Signal::SIGKILL);
    world.wait_until_nobody_is_left();
}

#[test]
fn children_are_waited_for_though_they_were_ignored_at_entry() {
    let world = World::on_files();
    for starts in [World::shell, first] {
        let run = |command| {
            let script = format!("trap '' CHLD; exec $LX {command}");
            starts(&world, &script).run()
        };
        run("sh -c 'exit 42'").assert_code(42);
        // The command has it as we found it.
        let line = run("grep SigIgn /proc/self/status").stdout();
        let mask = line.split_whitespace().last().expect("a number");
        let mask = u64::from_str_radix(mask, 16).expect("in hexadecimal");
        assert_ne!(mask & 1 << (libc::SIGCHLD - 1), 0, "{line}");
    }
}

#[test]
fn on_a_terminal_it_is_as_docker_run_it_expects() {
    let world = World::on_files();
    let session = |script: &str| {
        let inside = ["setsid", "--ctty", "bash", "-c", script];
        Terminal::session(&world, &[&namespace()[..], &inside].concat())
    };
    let shell = "exec $LX bash --norc --noprofile --noediting -i";
    let shell = format!("export PS1='{PROMPT}'; {shell}");

    let mut terminal = session(&shell);
    terminal.wait_until_it_shows(PROMPT);
    let inner = terminal.foreground();
    let wait_for_job = |terminal: &Terminal| {
        world.wait_for_processes("sleep", 1);
        wait_until("the job has the terminal", LIMIT, || {
            (terminal.foreground() != inner).then_some(())
        });
    };
    terminal.type_in("sleep 77\n");
    wait_for_job(&terminal);
    terminal.type_in("\x1a");
    terminal.wait_until_it_shows("Stopped");
    terminal.wait_until_it_shows(PROMPT);
    terminal.type_in("fg\n");
    wait_for_job(&terminal);
    terminal.type_in("\x03");
    world.wait_for_processes("sleep", 0);
    terminal.type_in("exit 5\n");
    assert_eq!(terminal.wait().code(), Some(5), "{}", terminal.shown());

    let mut terminal = session("exec $LX sh -c 'while :; do echo tick; sleep 0.02; done'");
    terminal.wait_until_it_shows("tick");
    terminal.type_in("\x1a");
    terminal.wait_until_it_shows("refused to stop");
    // It goes on, also where the stop comes between vfork and exec of a child.
    for _ in 0..20 {
        terminal.type_in("\x1a");
        terminal.wait_until_it_shows("^Z");
        terminal.wait_until_it_shows("tick");
        terminal.wait_until_it_shows("tick");
    }
    terminal.type_in("\x03");
    assert_eq!(terminal.wait().code(), Some(130), "{}", terminal.shown());

    let mut terminal = session(&shell);
    terminal.wait_until_it_shows(PROMPT);
    terminal.hang_up();
    terminal.wait();
    world.wait_until_nobody_is_left();
    assert_eq!(world.holder(), "");
}

#[test]
fn exec_plugins_keep_their_exit_status() {
    let world = World::on_files();
    let control_plane = ControlPlane::shared();
    let namespace = "exec-plugin";
    control_plane.create_namespace(namespace);
    let token = control_plane.token(namespace, LEASE);
    let user = format!("system:serviceaccount:{namespace}:{LEASE}");
    control_plane.grant(namespace, &user, &["get", "create", "update", "watch"]);
    let kubeconfig = plugin_kubeconfig(&world, control_plane, namespace, &token);

    // Orphans come to the guard and, from the plugin, to front, all the time.
    let churn = "while :; do (sleep 0.01 & exit); (setsid sleep 0.01 & exit); sleep 0.01; done";
    let script = format!(
        "exec {exe} --lease {LEASE} --lease-duration 10s --retry-period 300ms \
         --request-timeout 2s --kubeconfig {kubeconfig} -- bash -c 'echo started; {churn}'",
        exe = env!("CARGO_BIN_EXE_lease-exec"),
    );
    let running = first(&world, &script).start();
    running.wait_until_it_prints("started");
    let calls = || {
        let calls = fs::read_to_string(world.path().join("calls"));
        calls.unwrap_or_default().lines().count()
    };
    let before = calls();
    wait_until("the plugin is asked again and again", LIMIT, || {
        (calls() >= before + 8).then_some(())
    });
    // It is to run as if we had not been there: who reads signals has them blocked.
    let signals = fs::read_to_string(world.path().join("signals")).expect("written by the plugin");
    let without = Command::new("grep")
        .args(["SigBlk", "/proc/self/status"])
        .output();
    let without = without.expect("grep can be run").stdout;
    assert_eq!(signals, String::from_utf8_lossy(&without));
    signal(Own::of(&world).init, Signal::SIGTERM);
    let finished = running.wait();
    finished.assert_code(143);
    for trouble in ["WARN", "ERROR"] {
        assert!(!finished.stderr.contains(trouble), "{}", finished.stderr);
    }
    let lease = control_plane.get_lease(namespace, LEASE);
    assert_eq!(lease.expect("it was made")["spec"]["holderIdentity"], "");
}

/// A kubeconfig whose user is whom a plugin says, which notes each call and leaves an orphan.
fn plugin_kubeconfig(
    world: &World<'static>,
    control_plane: &ControlPlane,
    namespace: &str,
    token: &str,
) -> String {
    let path = |name: &str| world.path().join(name).display().to_string();
    let plugin = format!(
        r#"(sleep 0.01 >/dev/null & exit)
           echo called >>{calls}
           grep SigBlk /proc/self/status >{signals}.new; mv {signals}.new {signals}
           cat <<END
{{"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "status": {{
  "token": "{token}", "expirationTimestamp": "$(date --utc --date '1 second' +%Y-%m-%dT%H:%M:%SZ)"}}}}
END
"#,
        calls = path("calls"),
        signals = path("signals"),
    );
    fs::write(path("plugin"), plugin).expect("written");
    let base = control_plane.kubeconfig_at(&control_plane.url(), namespace, User::Admin);
    let base = fs::read_to_string(base).expect("written by us");
    let mut content: serde_json::Value = serde_json::from_str(&base).expect("JSON");
    content["users"][0]["user"] = json!({"exec": {
        "apiVersion": "client.authentication.k8s.io/v1",
        "command": "bash",
        "args": [path("plugin")],
        "interactiveMode": "Never",
    }});
    fs::write(path("kubeconfig"), content.to_string()).expect("written");
    path("kubeconfig")
}
