//! Whatever the command's descendants are and do, they are dead before the lease can move; and
//! nobody else is.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, chown},
    path::Path,
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    processes::{
        Grown, LEVELS, Level, Mark, TestCgroup, assert_before_the_end, cgroup, children, guard_of,
        hang, name, odd, signal, state,
    },
    wait::{LIMIT, try_wait_until, wait_until},
    world::{Invocation, Running, World, now},
};

/// The lease duration where a test waits for the deadline.
const SHORT: Duration = Duration::from_secs(6);

#[test]
fn a_store_that_hangs_costs_the_tree_its_life_before_the_end() {
    for level in LEVELS {
        let world = World::on_files();
        let grown = Grown::start(&world, level, "6s");
        let _lock = hang(&world);
        grown.mark.wait_for_nobody();
        assert_before_the_end(&world, SHORT);
        grown.running.wait().assert_code(79);
    }
}

#[test]
fn a_forwarded_end_leaves_nobody() {
    for level in LEVELS {
        let world = World::on_files();
        let grown = Grown::start(&world, level, "60s");
        grown.running.signal(Signal::SIGTERM);
        grown.running.wait().assert_signal(Signal::SIGTERM);
        assert_eq!(grown.mark.alive(), [0; 0]);
        assert_eq!(world.holder(), "");
    }
}

/// Starts a command line, marked.
fn start(world: &World, level: Level, mark: &Mark, argv: &[&str]) -> Running {
    let invocation = world.lease_exec().args(["-v", "--lease-duration", "60s"]);
    level.apply(invocation.command(mark.command(argv))).start()
}

#[track_caller]
fn lose(world: &World, running: Running, mark: &Mark) {
    world.steal("somebody-else");
    running.wait().assert_code(79);
    assert_eq!(mark.alive(), [0; 0]);
}

#[test]
fn a_stopped_command_is_killed() {
    for level in LEVELS {
        let world = World::on_files();
        let mark = Mark::new();
        let running = start(&world, level, &mark, &["sh", "-c", "kill -STOP $$"]);
        wait_until("the command is stopped", LIMIT, || {
            mark.alive()
                .iter()
                .any(|pid| state(*pid) == 'T')
                .then_some(())
        });
        lose(&world, running, &mark);
    }
}

#[test]
fn a_process_whose_main_thread_has_ended_is_killed() {
    for level in LEVELS {
        let world = World::on_files();
        let mark = Mark::new();
        let odd = odd().to_str().expect("UTF-8");
        let script = format!("setsid {odd} headless & wait");
        let running = start(&world, level, &mark, &["sh", "-c", &script]);
        let threads = |pid: i32| format!("/proc/{pid}/task");
        let headless = wait_until("the main thread has ended", LIMIT, || {
            let command = *children(guard_of(&running)).first()?;
            let child = *children(command).first()?;
            let threads = fs::read_dir(threads(child)).map_or(0, Iterator::count);
            (name(child) == "odd" && state(child) == 'Z' && threads == 2).then_some(child)
        });
        lose(&world, running, &mark);
        assert!(!Path::new(&threads(headless)).exists(), "a thread lives");
    }
}

#[test]
fn a_process_that_is_traced_by_another_of_the_tree_is_killed() {
    for level in LEVELS {
        let world = World::on_files();
        let mark = Mark::new();
        let running = start(
            &world,
            level,
            &mark,
            &[odd().to_str().expect("UTF-8"), "traced"],
        );
        wait_until("one is stopped by its tracer", LIMIT, || {
            mark.alive()
                .iter()
                .any(|pid| state(*pid) == 't')
                .then_some(())
        });
        lose(&world, running, &mark);
    }
}

#[test]
fn fork_bombs_are_killed_although_no_process_and_hardly_a_descriptor_is_to_be_had() {
    for level in LEVELS {
        for kind in ["bomb", "scattering-bomb"] {
            let world = World::on_files();
            let mark = Mark::new();
            let pids = TestCgroup::with("pids");
            pids.set("pids.max", "100");
            let invocation = world.lease_exec().args(["--lease-duration", "60s"]);
            let argv = mark.command(&["nice", "-n", "19", odd().to_str().expect("UTF-8"), kind]);
            let running = level
                .apply(invocation.command(argv))
                .under(["prlimit", "--nofile=32"])
                .under(pids.around())
                .start();
            wait_until("the bomb has used up all processes", LIMIT, || {
                (pids.get("pids.current") == "100").then_some(())
            });
            lose(&world, running, &mark);
        }
    }
}

#[test]
fn a_chain_of_short_lived_processes_is_killed() {
    for level in LEVELS {
        let world = World::on_files();
        let mark = Mark::new();
        let invocation = world
            .lease_exec()
            .args(["--wait-descendants", "--lease-duration", "60s"]);
        let argv = mark.command(&[odd().to_str().expect("UTF-8"), "chain"]);
        let running = level.apply(invocation.command(argv)).start();
        let command = wait_until("the command runs", LIMIT, || {
            children(guard_of(&running)).first().copied()
        });
        wait_until("the chain has left the command behind", LIMIT, || {
            (!children(guard_of(&running)).contains(&command)).then_some(())
        });
        world.steal("somebody-else");
        running.wait().assert_code(79);
        // A link lives too short to be counted; they all have the program's name.
        let links = try_wait_until(Duration::from_millis(200), || {
            (!mark.alive().is_empty()).then_some(())
        });
        assert_eq!(links, None, "the chain goes on");
    }
}

// === The leaf ===

#[test]
fn the_command_has_a_cgroup_of_its_own_without_front_and_guard_until_it_has_ended() {
    let world = World::on_files();
    let grown = Grown::start(&world, Level::Cgroup, "60s");
    let outer = cgroup(grown.running.pid());
    assert_eq!(cgroup(grown.guard), outer);
    let leaf = cgroup(grown.group[0]);
    assert!(leaf.starts_with(&outer), "{leaf} is not in {outer}");
    for pid in grown.mark.alive() {
        assert_eq!(cgroup(pid), leaf);
    }
    grown.running.wait_until_it_says("its cgroup lease-exec-");
    let path = TestCgroup::mount_of_version_2().join(leaf.trim_start_matches('/'));
    assert!(path.exists());
    fs::create_dir_all(path.join("nested/deeper")).expect("a command may make cgroups");
    grown.running.signal(Signal::SIGTERM);
    grown.running.wait().assert_signal(Signal::SIGTERM);
    assert!(!path.exists(), "it was left behind");
}

#[test]
fn without_a_cgroup_the_reason_is_said_to_who_wants_to_know() {
    let world = World::on_files();
    let invocation = world.lease_exec().args(["-v"]).command(["true"]);
    let finished = Level::Tree.apply(invocation).start().wait();
    finished
        .assert_code(0)
        .assert_says("is no cgroup of version 2");
    let finished = Level::Tree
        .apply(world.lease_exec().command(["true"]))
        .start()
        .wait();
    assert!(!finished.stderr.contains("cgroup"), "{}", finished.stderr);
}

#[test]
fn what_a_killed_lease_exec_has_left_in_its_cgroup_is_ended_by_the_next() {
    let world = World::on_files();
    let outer = TestCgroup::version_2();
    let around = |invocation: Invocation| invocation.under(outer.around());
    let invocation = world.lease_exec().args(["--lease-duration", "60s"]);
    let grown = Grown::start_as(invocation, Level::Cgroup, around);
    let living = around(
        world
            .invocation()
            .args(["--lease", "other", "--store"])
            .args([format!("file:{}", world.store().display())])
            .command(["sleep", "7777"]),
    )
    .start();
    living.wait_until_it_says("started the command");
    grown.signal_both(Signal::SIGSTOP);
    grown.signal_both(Signal::SIGKILL);
    grown.wait_for_group();
    assert_eq!(leaves(&outer).len(), 2);

    let next = world
        .invocation()
        .args(["--lease", "third", "--store"])
        .args([format!("file:{}", world.store().display())])
        .command(["true"]);
    around(next).start().wait().assert_code(0);
    assert_eq!(grown.mark.alive(), [0; 0], "who left the group lives on");
    let leaves = leaves(&outer);
    assert_eq!(leaves.len(), 1, "{leaves:?}");
    living.signal(Signal::SIGTERM);
    living.wait().assert_signal(Signal::SIGTERM);
}

/// lease-exec in this cgroup, with a lease of its own.
fn beside_others(world: &World, outer: &TestCgroup, lease: &str, argv: &[&str]) -> Running {
    let invocation = world
        .invocation()
        .args(["--lease", lease, "--lease-duration", "60s", "--store"])
        .args([format!("file:{}", world.store().display())]);
    invocation.command(argv).under(outer.around()).start()
}

#[test]
fn whenever_front_and_guard_are_killed_their_cgroup_does_not_stay_and_no_other_is_touched() {
    let world = World::on_files();
    let outer = TestCgroup::version_2();
    let neighbour = Mark::new();
    let living = beside_others(
        &world,
        &outer,
        "living",
        &neighbour.command(&["sleep", "7777"]),
    );
    living.wait_until_it_says("started the command");
    let command = neighbour.wait_for(1);
    let its_leaf = leaves(&outer);
    assert_eq!(its_leaf.len(), 1);
    let is_over = AtomicBool::new(false);
    let marks = thread::scope(|scope| {
        // Others come and go all the while, and look for what dead ones have left.
        let passers_by = scope.spawn(|| {
            let mut runs = 0;
            while !is_over.load(Ordering::Relaxed) {
                let lease = format!("passer-by-{runs}");
                let script = "sleep 0.02; exit 7";
                let passer_by = beside_others(&world, &outer, &lease, &["sh", "-c", script]);
                passer_by.wait().assert_code(7);
                runs += 1;
            }
            runs
        });
        let marks = kill_at_any_instant(&world, &outer);
        is_over.store(true, Ordering::Relaxed);
        assert!(passers_by.join().expect("none was hit") > 0);
        marks
    });
    wait_until("nobody but the living one is left", LIMIT, || {
        (outer.get("cgroup.procs").lines().count() == 2).then_some(())
    });
    beside_others(&world, &outer, "next", &["true"])
        .wait()
        .assert_code(0);
    assert_eq!(leaves(&outer), its_leaf);
    for mark in marks {
        assert_eq!(mark.alive(), [0; 0]);
    }
    assert_eq!(neighbour.alive(), command);
    living.signal(Signal::SIGTERM);
    living.wait().assert_signal(Signal::SIGTERM);
    assert_eq!(leaves(&outer), [""; 0]);
}

/// Starts one lease-exec after the other, and kills its front, its guard or both at some instant of
/// its start, its run or its end, which together take less than a tenth of a second. Returns the
/// marks of all that they have started.
fn kill_at_any_instant(world: &World, outer: &TestCgroup) -> Vec<Mark> {
    let mut instants = 1_u64;
    let mut marks = Vec::new();
    for round in 0..80 {
        // xorshift: any sequence that is spread well.
        instants ^= instants << 13;
        instants ^= instants >> 7;
        instants ^= instants << 17;
        let instant = Duration::from_micros(instants % 100_000);
        let mark = Mark::new();
        let script = mark.script("setsid sleep 7777 & sleep 0.03");
        let running = beside_others(world, outer, &format!("round-{round}"), &script);
        // This is no wait for anything: the instant is what is varied.
        thread::sleep(instant);
        let front = running.pid();
        let guard = children(front)
            .into_iter()
            .find(|pid| name(*pid) == "lease-guard");
        let victims = match round % 4 {
            0 => [Some(front), None],
            1 => [guard, None],
            2 => [Some(front), guard],
            _ => [guard, Some(front)],
        };
        for victim in victims.into_iter().flatten() {
            // Front is not reaped yet; the guard may just have ended.
            let _ = kill(Pid::from_raw(victim), Signal::SIGKILL);
        }
        running.wait();
        marks.push(mark);
    }
    marks
}

fn leaves(outer: &TestCgroup) -> Vec<String> {
    let entries = fs::read_dir(outer.path()).expect("it can be read");
    entries
        .map(|entry| entry.expect("it can be read").file_name())
        .map(|name| name.to_string_lossy().into_owned())
        .filter(|name| name.starts_with("lease-exec-"))
        .collect()
}

// === Who can't be killed ===

/// A command whose child sits in the freezer of cgroups of version 1, where SIGKILL has no effect
/// until it is thawed, as it has none on a process in uninterruptible sleep.
///
/// The duration is such that front, on a loaded machine, gets to say what it sees before its own
/// timer takes it for stopped.
fn start_frozen(world: &World, level: Level, mark: &Mark, freezer: &TestCgroup) -> (Running, i32) {
    let invocation = world.lease_exec().args(["--lease-duration", "15s"]);
    let script = "setsid sleep 7777 & wait";
    let running = level.apply(invocation.command(mark.script(script))).start();
    let frozen = wait_until("the child runs", LIMIT, || {
        mark.alive().into_iter().find(|pid| name(*pid) == "sleep")
    });
    freezer.set("cgroup.procs", &frozen.to_string());
    freezer.set("freezer.state", "FROZEN");
    wait_until("the child is frozen", LIMIT, || {
        (freezer.get("freezer.state") == "FROZEN").then_some(())
    });
    (running, frozen)
}

/// Waits until lease-exec has named the frozen process with all that the kernel says of it.
#[track_caller]
fn wait_until_it_is_named(running: &Running, frozen: i32) {
    running.wait_until_it_says(&named(frozen));
}

/// How a process named `sleep`, whose user is root, must be named while it waits in the kernel.
fn named(pid: i32) -> String {
    let waits_in = fs::read_to_string(format!("/proc/{pid}/wchan")).expect("root may read it");
    assert!(waits_in.len() > 1, "the kernel does not say where it waits");
    let state = state(pid);
    format!("not proven dead: pid {pid} (sleep), state {state}, uid 0, wchan {waits_in}")
}

/// Both at the same time, as most of it is waiting.
fn on_both_levels(test: impl Fn(Level) + Sync) {
    thread::scope(|scope| {
        for level in LEVELS {
            let test = &test;
            scope.spawn(move || test(level));
        }
    });
}

#[test]
fn a_survivor_is_named_and_keeps_the_lease_until_it_is_dead() {
    on_both_levels(|level| {
        let world = World::on_files();
        let mark = Mark::new();
        let freezer = TestCgroup::with("freezer");
        let (running, frozen) = start_frozen(&world, level, &mark, &freezer);
        running.signal(Signal::SIGTERM);
        wait_until_it_is_named(&running, frozen);
        let holder = world.holder();
        for _ in 0..3 {
            world.wait_for_renewal();
        }
        assert_eq!(world.holder(), holder);
        freezer.set("freezer.state", "THAWED");
        running.wait().assert_signal(Signal::SIGTERM);
        assert_eq!(world.holder(), "");
    });
}

#[test]
fn a_survivor_of_a_dead_guard_is_named_and_keeps_the_lease_until_it_is_dead() {
    on_both_levels(|level| {
        let world = World::on_files();
        let mark = Mark::new();
        let freezer = TestCgroup::with("freezer");
        let (running, frozen) = start_frozen(&world, level, &mark, &freezer);
        signal(guard_of(&running), Signal::SIGKILL);
        wait_until_it_is_named(&running, frozen);
        let holder = world.holder();
        for _ in 0..3 {
            world.wait_for_renewal();
        }
        assert_eq!(world.holder(), holder);
        freezer.set("freezer.state", "THAWED");
        running.wait().assert_code(125);
        assert_eq!(world.holder(), "");
    });
}

#[test]
fn a_survivor_of_a_loss_is_80_and_the_lease_is_not_released() {
    on_both_levels(|level| {
        let world = World::on_files();
        let mark = Mark::new();
        let freezer = TestCgroup::with("freezer");
        let (running, frozen) = start_frozen(&world, level, &mark, &freezer);
        let holder = world.holder();
        let lock = hang(&world);
        running.wait().assert_code(80).assert_says(&named(frozen));
        drop(lock);
        assert_eq!(world.holder(), holder);
        freezer.set("freezer.state", "THAWED");
        // The guard goes on without front.
        mark.wait_for_nobody();
    });
}

#[test]
fn a_front_that_wakes_up_late_for_the_loss_still_says_80() {
    on_both_levels(|level| {
        let world = World::on_files();
        let mark = Mark::new();
        let freezer = TestCgroup::with("freezer");
        let (running, _) = start_frozen(&world, level, &mark, &freezer);
        let _lock = hang(&world);
        running.wait_until_it_says("lost the lease");
        // At 15 s SIGKILL is due at 12.96 s, and the kill budget is 2 s. It sleeps over the first and
        // over half of the second.
        let due = world.renewed_at() + Duration::from_millis(12_960).as_nanos();
        wait_until("SIGKILL is nearly due", LIMIT, || {
            (now() + 300_000_000 > due).then_some(())
        });
        running.signal(Signal::SIGSTOP);
        wait_until("half of the kill budget is over", LIMIT, || {
            (now() > due + 1_000_000_000).then_some(())
        });
        running.signal(Signal::SIGCONT);
        running.wait().assert_code(80);
        freezer.set("freezer.state", "THAWED");
        mark.wait_for_nobody();
    });
}

/// A run by a user who is not root, whose command has a child that has become root; returns the
/// child as well.
fn start_becoming_root(
    world: &World,
    mark: &Mark,
    around: impl FnOnce(Invocation) -> Invocation,
) -> (Running, i32) {
    for place in [world.path(), &world.store()] {
        let everybody = fs::Permissions::from_mode(0o777);
        fs::set_permissions(place, everybody).expect("it is ours");
    }
    let program = world.path().join("becomes-root");
    fs::copy(odd(), &program).expect("it can be copied");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o4755)).expect("it is ours");
    let script = format!("{} root & wait", program.display());
    let invocation = world.lease_exec().args(["-v", "--lease-duration", "6s"]);
    let invocation = invocation.command(mark.script(&script)).under([
        "setpriv",
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
    ]);
    let running = around(invocation).start();
    let root = wait_until("the child is root", LIMIT, || {
        let is_root = |pid: &i32| {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            name(*pid) == "becomes-root" && status.contains("Uid:\t0\t0\t0\t0")
        };
        mark.alive().into_iter().find(is_root)
    });
    (running, root)
}

#[test]
fn a_descendant_that_has_become_root_can_only_be_named() {
    let world = World::on_files();
    let mark = Mark::new();
    let (running, root) = start_becoming_root(&world, &mark, |invocation| invocation);
    running.signal(Signal::SIGTERM);
    let named = format!("not proven dead: pid {root} (becomes-root), state S, uid 0");
    running.wait_until_it_says(&named);
    for _ in 0..3 {
        world.wait_for_renewal();
    }
    world.steal("somebody-else");
    running.wait().assert_code(80);
    assert_eq!(world.holder(), "somebody-else");
    assert_eq!(mark.alive(), [root]);
}

#[test]
fn a_descendant_that_has_become_root_is_killed_where_the_cgroup_is_ours() {
    let world = World::on_files();
    let mark = Mark::new();
    let outer = TestCgroup::version_2();
    for place in [outer.path(), &outer.path().join("cgroup.procs")] {
        chown(place, Some(65534), Some(65534)).expect("root may");
    }
    let around = |invocation: Invocation| invocation.under(outer.around());
    let (running, _) = start_becoming_root(&world, &mark, around);
    lose(&world, running, &mark);
}

// === Bystanders ===

#[test]
fn children_that_lease_exec_was_executed_with_and_the_callers_group_live_on() {
    for level in LEVELS {
        // A loss, which the guard sees to, and the guard's death, after which front does.
        for guard_dies in [false, true] {
            let world = World::on_files();
            let mark = Mark::new();
            let bystander = Mark::new();
            let invocation = world.lease_exec().args(["--lease-duration", "60s"]);
            let script = format!(
                "{} & exec \"$@\"",
                bystander.command(&["sleep", "7777"]).join(" ")
            );
            let running = level
                .apply(invocation.command(mark.script("sleep 7777 & wait")))
                .under(["sh", "-c", &script, "sh"])
                .start();
            mark.wait_for(2);
            assert_eq!(
                children(running.pid()).len(),
                2,
                "a bystander and the guard"
            );
            if guard_dies {
                signal(guard_of(&running), Signal::SIGKILL);
                running.wait().assert_code(125);
                assert_eq!(mark.alive(), [0; 0]);
            } else {
                lose(&world, running, &mark);
            }
            assert_eq!(bystander.alive().len(), 1);
        }
    }
}

#[test]
fn a_session_in_the_same_pid_namespace_lives_on() {
    let world = World::on_files();
    let mark = Mark::new();
    let session = Mark::new();
    let namespace = [
        "unshare",
        "--pid",
        "--fork",
        "--mount-proc",
        "--kill-child",
        "--",
        "sh",
        "-c",
        "\"$@\"; echo $? >\"$0\"; exec sleep 7777",
    ];
    let code = world.path().join("code");
    let invocation = world.lease_exec().args(["--lease-duration", "60s"]);
    let outside = invocation
        .command(mark.script("sleep 7777 & wait"))
        .under(
            namespace
                .iter()
                .map(std::ffi::OsStr::new)
                .chain([code.as_os_str()]),
        )
        .start();
    let first = mark.wait_for(2)[0];
    // As kubectl exec comes in: no descendant of anybody in the namespace.
    let target = format!("--target={first}");
    let argv = session.command(&["sleep", "7777"]);
    let mut visitor = Command::new("nsenter")
        .args([&target, "--pid", "--mount", "--"])
        .args(argv)
        .spawn()
        .expect("nsenter runs");
    session.wait_for(1);
    world.steal("somebody-else");
    wait_until("lease-exec has ended", LIMIT, || {
        let code = fs::read_to_string(&code).unwrap_or_default();
        (code == "79\n").then_some(())
    });
    assert_eq!(mark.alive(), [0; 0]);
    assert_eq!(session.alive().len(), 1);
    drop(session);
    visitor.wait().expect("it was killed");
    drop(outside);
}
