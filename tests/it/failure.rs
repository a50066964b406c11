//! lease-exec's own processes fail: the command's tree is dead all the same, and in time.

use std::{fs, time::Duration};

use nix::{
    sys::{
        ptrace,
        signal::{Signal, kill},
    },
    unistd::Pid,
};

use crate::{
    control_plane::ControlPlane,
    processes::{
        Grown, InTerminal, LEVELS, Level, Mark, TestCgroup, Tracer, assert_before_the_end,
        at_both_levels, children, guard_below, guard_of, name, quiet, signal, state,
    },
    wait::{LIMIT, wait_until},
    world::{Running, World, now},
};

mod start;

/// The lease duration where a test waits for the deadline.
const SHORT: Duration = Duration::from_secs(6);

#[test]
fn a_killed_front_takes_the_tree_along() {
    at_both_levels(|level| {
        let world = World::on_files();
        let grown = Grown::start(&world, level, "60s");
        grown.running.signal(Signal::SIGKILL);
        grown.mark.wait_for_nobody();
        assert_ne!(world.holder(), "", "nobody was left to release the lease");
    });
}

#[test]
fn a_kill_of_all_fronts_group_leaves_the_guard_to_kill() {
    at_both_levels(|level| {
        let world = World::on_files();
        let grown = Grown::start(&world, level, "60s");
        kill(Pid::from_raw(-grown.running.pid()), Signal::SIGKILL).expect("it leads its group");
        grown.mark.wait_for_nobody();
    });
}

#[test]
fn a_killed_guard_takes_the_tree_along_and_the_lease_is_released_on_proof() {
    at_both_levels(|level| {
        let world = World::on_files();
        let grown = Grown::start(&world, level, "60s");
        signal(grown.guard, Signal::SIGKILL);
        grown.running.wait().assert_code(125).assert_says(&format!(
            "exiting with 125: the guard process (pid {}) was killed by SIGKILL ",
            grown.guard
        ));
        assert_eq!(grown.mark.alive(), [0; 0]);
        assert_eq!(world.holder(), "");
    });
}

#[test]
fn a_stopped_front_does_not_save_the_tree_from_the_deadline() {
    let _quiet = quiet();
    at_both_levels(|level| {
        let world = World::on_files();
        let grown = Grown::start(&world, level, "6s");
        grown.running.signal(Signal::SIGSTOP);
        grown.mark.wait_for_nobody();
        assert_before_the_end(&world, SHORT);
        // The kernel's timer ends front itself, stopped as it is.
        grown.running.wait().assert_signal(Signal::SIGKILL);
    });
}

#[test]
fn an_end_at_the_deadline_is_a_loss_though_front_has_slept_through_it() {
    let _quiet = quiet();
    for options in [&[][..], &["--wait-descendants"]] {
        let world = World::on_files();
        let mark = Mark::new();
        let arguments = [&["--lease-duration", "15s"], options].concat();
        let command = mark.command(&["sleep", "7777"]);
        let running = world.lease_exec().args(arguments).command(command).start();
        mark.wait_for(1);
        running.wait_until_it_says("started the command");
        running.signal(Signal::SIGSTOP);
        // Its own timer would end it more than a second after that.
        mark.wait_for_nobody();
        running.signal(Signal::SIGCONT);
        let finished = running.wait();
        finished
            .assert_code(79)
            .assert_says("lost the lease: no renewal has succeeded for 10s");
    }
}

#[test]
fn a_front_that_was_stopped_hears_of_the_end_behind_much_else() {
    let world = World::on_files();
    // The guard says of each stop that it has refused it, more than the socket has room for.
    let go = world.path().join("go");
    let script = format!(
        "until [ -e {} ]; do sleep 0.02; done; for i in $(seq 1000); do kill -TSTP $$; done; exit 7",
        go.display()
    );
    let invocation = world.lease_exec().args(["--lease-duration", "60s"]);
    let running = invocation.script(&script).start();
    running.wait_until_it_says("started the command");
    let guard = guard_of(&running);
    running.signal(Signal::SIGSTOP);
    wait_until("front is stopped", LIMIT, || {
        (state(running.pid()) == 'T').then_some(())
    });
    fs::write(go, "").expect("written");
    wait_until("the command has ended", LIMIT, || {
        children(guard).is_empty().then_some(())
    });
    running.signal(Signal::SIGCONT);
    running.wait().assert_code(7);
    assert_eq!(world.holder(), "");
}

#[test]
fn a_stopped_guard_does_not_save_the_tree_from_the_end() {
    at_both_levels(|level| {
        let world = World::on_files();
        let grown = Grown::start(&world, level, "60s");
        signal(grown.guard, Signal::SIGSTOP);
        world.steal("somebody-else");
        grown.mark.wait_for_nobody();
        grown.running.wait().assert_code(79);
        assert_eq!(world.holder(), "somebody-else");
    });
}

#[test]
fn a_guard_that_is_stopped_when_the_command_has_ended_keeps_nobody_from_the_lease() {
    let world = World::on_files();
    let go = world.path().join("go");
    let script = format!("until [ -e {} ]; do sleep 0.02; done; exit 7", go.display());
    let invocation = world.lease_exec().args(["--lease-duration", "60s"]);
    let running = invocation.script(&script).start();
    running.wait_until_it_says("started the command");
    // No renewal moves its timer before the end.
    let _tracer = Tracer::attach(guard_of(&running), "timer_settime", "signal=STOP:when=1");
    fs::write(&go, "").expect("it can be written");
    running.wait().assert_code(7);
    assert_eq!(world.holder(), "");
}

#[test]
fn a_stopped_guard_does_not_save_the_tree_from_an_api_server_that_hangs() {
    let control_plane = ControlPlane::start();
    at_both_levels(|level| {
        let world = World::on(&control_plane);
        let grown = Grown::start(&world, level, "6s");
        signal(grown.guard, Signal::SIGSTOP);
        control_plane.stop_api_server();
        grown.mark.wait_for_nobody();
        let gone_at = now();
        grown.running.wait().assert_code(79);
        control_plane.continue_api_server();
        // The last renewal may have been carried out without anybody's knowing.
        let end = world.renewed_at() + SHORT.as_nanos();
        assert!(gone_at < end, "{} ns too late", gone_at - end);
    });
}

#[test]
fn a_guard_that_is_continued_after_the_deadline_kills_though_it_was_extended_meanwhile() {
    let world = World::on_files();
    let grown = Grown::start(&world, Level::Cgroup, "15s");
    world.wait_for_renewal();
    let renewed = world.renewed_at();
    let read = renewed + Duration::from_millis(500).as_nanos();
    wait_until("the guard has read that", LIMIT, || {
        (now() > read).then_some(())
    });
    signal(grown.guard, Signal::SIGSTOP);
    // SIGKILL is due, and the kernel's timer for the guard most of a second later.
    let due = renewed + Duration::from_millis(13_100).as_nanos();
    wait_until("its term has run out", LIMIT, || {
        (now() > due).then_some(())
    });
    assert!(world.renewed_at() > renewed, "front has not renewed");
    signal(grown.guard, Signal::SIGCONT);
    grown.mark.wait_for_nobody();
    // By the guard, and not by its own death.
    let finished = grown.running.wait();
    finished.assert_code(79);
    finished.assert_says("a signal ended the command");
}

#[test]
fn with_front_and_guard_stopped_the_group_is_dead_before_the_end() {
    let _quiet = quiet();
    at_both_levels(|level| {
        let world = World::on_files();
        let grown = Grown::start(&world, level, "6s");
        grown.signal_both(Signal::SIGSTOP);
        grown.wait_for_group();
        assert_before_the_end(&world, SHORT);
    });
}

#[test]
fn in_a_terminal_with_front_and_guard_frozen_the_command_is_dead_before_the_end() {
    let _quiet = quiet();
    let world = World::on_files();
    let bystander = Mark::new();
    let mark = Mark::new();
    let beside = bystander.command(&["sleep", "7777"]).join(" ");
    let command = mark.command(&["sleep", "7777"]).join(" ");
    let arguments = format!("--lease-duration 6s -- {command}");
    let terminal = InTerminal::start(&world, &beside, &arguments);
    wait_until("the command runs", LIMIT, || {
        mark.alive()
            .iter()
            .any(|pid| name(*pid) == "sleep")
            .then_some(())
    });
    // The group is the caller's, so that the kernel must not kill it when the guard dies.
    let freezer = TestCgroup::version_2();
    for pid in [terminal.front, guard_below(terminal.front)] {
        freezer.set("cgroup.procs", &pid.to_string());
    }
    freezer.set("cgroup.freeze", "1");
    mark.wait_for_nobody();
    assert_before_the_end(&world, SHORT);
    assert_eq!(terminal.wait(), 128 + 9);
    assert_eq!(bystander.alive().len(), 1, "the caller's group was killed");
}

/// A run whose front and guard are both stopped, so that neither can do anything about what happens
/// to the other.
fn start_stopped(world: &World, level: Level) -> Grown {
    let grown = Grown::start(world, level, "60s");
    grown.signal_both(Signal::SIGSTOP);
    wait_until("both are stopped", LIMIT, || {
        let states = [grown.running.pid(), grown.guard].map(state);
        (states == ['T', 'T']).then_some(())
    });
    grown
}

#[test]
fn a_killed_front_takes_the_group_along_although_the_guard_is_frozen() {
    at_both_levels(|level| {
        let world = World::on_files();
        let freezer = TestCgroup::version_2();
        let grown = Grown::start(&world, level, "60s");
        // Not stopped: when front dies the kernel continues who is, in a group that it orphans.
        freezer.set("cgroup.procs", &grown.guard.to_string());
        freezer.set("cgroup.freeze", "1");
        wait_until("the guard is frozen", LIMIT, || {
            freezer
                .get("cgroup.events")
                .contains("frozen 1")
                .then_some(())
        });
        grown.running.signal(Signal::SIGKILL);
        grown.wait_for_group();
        signal(grown.guard, Signal::SIGKILL);
    });
}

#[test]
fn a_killed_guard_takes_the_group_along_although_front_is_stopped() {
    at_both_levels(|level| {
        let world = World::on_files();
        let grown = start_stopped(&world, level);
        signal(grown.guard, Signal::SIGKILL);
        grown.wait_for_group();
    });
}

#[test]
fn with_front_and_guard_killed_at_once_the_group_is_dead() {
    for round in 0..10 {
        let world = World::on_files();
        let grown = start_stopped(&world, LEVELS[round % 2]);
        grown.signal_both(Signal::SIGKILL);
        grown.wait_for_group();
    }
}

#[test]
fn a_stalled_runtime_does_not_save_the_tree_from_the_deadline() {
    let _quiet = quiet();
    at_both_levels(|level| {
        let world = World::on_files();
        let grown = Grown::start(&world, level, "6s");
        // The runtime is the main thread. The others, also those that read signals, go on.
        let main_thread = Pid::from_raw(grown.running.pid());
        ptrace::seize(main_thread, ptrace::Options::empty()).expect("root may trace");
        ptrace::interrupt(main_thread).expect("it is traced");
        grown.mark.wait_for_nobody();
        assert_before_the_end(&world, SHORT);
    });
}

#[test]
fn everybody_frozen_for_ever_is_dead_before_the_end_as_far_as_the_group_goes() {
    let _quiet = quiet();
    at_both_levels(|level| {
        let world = World::on_files();
        let freezer = TestCgroup::version_2();
        let invocation = world.lease_exec().args(["--lease-duration", "6s"]);
        let grown = Grown::start_as(invocation, level, |invocation| {
            invocation.under(freezer.around())
        });
        freezer.set("cgroup.freeze", "1");
        grown.wait_for_group();
        assert_before_the_end(&world, SHORT);
        assert_eq!(freezer.get("cgroup.freeze"), "1", "nobody was thawed");
    });
}

#[test]
fn a_command_that_runs_out_of_memory_dies_by_itself_and_the_lease_is_released() {
    let world = World::on_files();
    let memory = TestCgroup::with("memory");
    memory.set("memory.limit_in_bytes", "16777216");
    let mark = Mark::new();
    let procs = memory.path().join("cgroup.procs");
    let script = format!(
        "setsid sleep 7777 & echo $$ >{} && exec tail /dev/zero",
        procs.display()
    );
    let finished = world.lease_exec().command(mark.script(&script)).run();
    finished.assert_signal(Signal::SIGKILL);
    assert_eq!(memory_kills(&memory), 1);
    assert_eq!(mark.alive(), [0; 0], "what it left was ended");
    assert_eq!(world.holder(), "", "its own death is no loss");
}

fn memory_kills(memory: &TestCgroup) -> u32 {
    let control = memory.get("memory.oom_control");
    let kills = control
        .lines()
        .find_map(|line| line.strip_prefix("oom_kill "));
    kills.and_then(|kills| kills.parse().ok()).expect("a count")
}

#[test]
fn too_few_descriptors_are_a_failure_of_our_own_before_the_lease_is_touched() {
    let world = World::on_files();
    for limit in 10..40 {
        let invocation = world.lease_exec().command(["true"]);
        let finished = invocation
            .under(["prlimit", &format!("--nofile={limit}")])
            .start()
            .wait();
        if finished.status.code() == Some(0) {
            assert!(limit > 10, "the limit has no effect");
            return;
        }
        finished.assert_code(125);
        assert!(world.lease().is_none(), "the lease was touched");
    }
    panic!("40 descriptors are not enough");
}

// === Other users ===

/// A command that has become another user: the kernel has forgotten to kill it with its parent.
fn start_as_another_user(world: &World, level: Level, mark: &Mark) -> Running {
    let argv = mark.command(&[
        "setpriv",
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
        "sleep",
        "7777",
    ]);
    let running = level.apply(world.lease_exec().command(argv)).start();
    wait_until("the command is another user", LIMIT, || {
        let pid = *mark.alive().first()?;
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let is_another = status.contains("Uid:\t65534\t65534\t65534\t65534");
        (is_another && name(pid) == "sleep").then_some(())
    });
    running
}

#[test]
fn a_command_that_became_another_user_dies_with_the_guard() {
    at_both_levels(|level| {
        let world = World::on_files();
        let mark = Mark::new();
        let running = start_as_another_user(&world, level, &mark);
        signal(guard_of(&running), Signal::SIGKILL);
        running.wait().assert_code(125);
        assert_eq!(mark.alive(), [0; 0]);
        assert_eq!(world.holder(), "");
    });
}

#[test]
fn a_command_that_became_another_user_dies_with_front_and_guard() {
    at_both_levels(|level| {
        let world = World::on_files();
        let mark = Mark::new();
        let running = start_as_another_user(&world, level, &mark);
        let guard = guard_of(&running);
        running.signal(Signal::SIGSTOP);
        signal(guard, Signal::SIGSTOP);
        running.signal(Signal::SIGKILL);
        signal(guard, Signal::SIGKILL);
        mark.wait_for_nobody();
    });
}
