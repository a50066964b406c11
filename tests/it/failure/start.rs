//! Front, or the guard, is stopped or dies before the command has started, or just then.

use std::{
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use nix::{
    sys::{
        ptrace,
        signal::{Signal, kill},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};
use serde_json::Value;

use super::SHORT;
use crate::{
    processes::{LEVELS, Level, Mark, TestCgroup, Tracer, at_both_levels, guard_of, signal, state},
    wait::{LIMIT, wait_until},
    world::{Running, World, is_alive, now},
};

// === A guard that is stopped before the start ===

/// A standby that has found somebody else holding the lease; its guard, and who holds the lease. The
/// command leaves a file behind if it ever runs.
fn start_standby(
    world: &World,
    level: Level,
    mark: &Mark,
    lease_duration: &str,
) -> (Running, i32, Running) {
    let holder = world.lease_exec().command(["sleep", "7777"]).start();
    holder.wait_until_it_says("started the command");
    let script = format!("touch {}; sleep 7777 & wait", ran(world).display());
    let invocation = world
        .lease_exec()
        .args(["--lease-duration", lease_duration]);
    let standby = level
        .apply(invocation.command(mark.script(&script)))
        .start();
    standby.wait_until_it_says("somebody else holds the lease");
    let guard = guard_of(&standby);
    (standby, guard, holder)
}

/// Lets the holder give the lease back, so that the standby acquires it.
fn release(holder: Running) {
    holder.signal(Signal::SIGTERM);
    holder.wait().assert_signal(Signal::SIGTERM);
}

fn stop(pid: i32) {
    signal(pid, Signal::SIGSTOP);
    wait_until("it is stopped", LIMIT, || (state(pid) == 'T').then_some(()));
}

/// A run whose guard was stopped before it was told to start the command; and the guard.
fn start_with_a_stopped_guard(
    world: &World,
    level: Level,
    mark: &Mark,
    lease_duration: &str,
) -> (Running, i32) {
    let (standby, guard, holder) = start_standby(world, level, mark, lease_duration);
    stop(guard);
    release(holder);
    standby.wait_until_it_says("acquired the lease");
    (standby, guard)
}

fn ran(world: &World) -> PathBuf {
    world.path().join("ran")
}

const NO_ANSWER: &str = "the guard process did not answer when told to start the command";

#[test]
fn a_guard_that_is_stopped_before_the_start_is_given_up_and_the_lease_is_released() {
    at_both_levels(|level| {
        let world = World::on_files();
        let mark = Mark::new();
        let (running, guard) = start_with_a_stopped_guard(&world, level, &mark, "6s");
        let acquired = Instant::now();
        running.wait().assert_code(125).assert_says(NO_ANSWER);
        assert!(acquired.elapsed() > SHORT / 2, "it was not patient");
        assert!(!is_alive(guard));
        assert!(!ran(&world).exists(), "the command ran");
        assert_eq!(world.holder(), "");
    });
}

#[test]
fn a_guard_that_is_stopped_before_the_start_does_not_keep_us_from_ending() {
    let world = World::on_files();
    let mark = Mark::new();
    let (running, guard) = start_with_a_stopped_guard(&world, Level::Tree, &mark, "60s");
    running.signal(Signal::SIGTERM);
    running.wait().assert_signal(Signal::SIGTERM);
    assert!(!is_alive(guard));
    assert!(!ran(&world).exists(), "the command ran");
    assert_eq!(world.holder(), "");
}

#[test]
fn a_loss_while_the_guard_is_stopped_before_the_start_is_a_loss() {
    let world = World::on_files();
    let mark = Mark::new();
    let (running, guard) = start_with_a_stopped_guard(&world, Level::Tree, &mark, "60s");
    world.steal("somebody-else");
    running.wait().assert_code(79);
    assert!(!is_alive(guard));
    assert!(!ran(&world).exists(), "the command ran");
    assert_eq!(world.holder(), "somebody-else");
}

#[test]
fn a_guard_that_is_continued_in_time_starts_the_command() {
    let world = World::on_files();
    let mark = Mark::new();
    let (running, guard) = start_with_a_stopped_guard(&world, Level::Cgroup, &mark, "6s");
    let first_term = world.renewed_at() + SHORT.as_nanos();
    signal(guard, Signal::SIGCONT);
    running.wait_until_it_says("started the command");
    // The patience was for the start alone.
    wait_until("the first term is over", LIMIT, || {
        (world.renewed_at() > first_term).then_some(())
    });
    mark.wait_for(2);
    running.signal(Signal::SIGTERM);
    running.wait().assert_signal(Signal::SIGTERM);
    assert_eq!(mark.alive(), [0; 0]);
}

#[test]
fn a_guard_that_is_continued_when_it_is_given_up_leaves_nobody() {
    for round in 0..16 {
        let world = World::on_files();
        let mark = Mark::new();
        let level = LEVELS[round % 2];
        let (running, guard) = start_with_a_stopped_guard(&world, level, &mark, "6s");
        // A quarter of the kill budget, a little sooner or later.
        let given_up = Duration::from_millis(200 - 16 + 2 * round as u64);
        let term = Instant::now();
        running.signal(Signal::SIGTERM);
        wait_until("it is about to be given up", LIMIT, || {
            (term.elapsed() + Duration::from_millis(20) >= given_up).then_some(())
        });
        while term.elapsed() < given_up {
            std::hint::spin_loop();
        }
        let _ = kill(Pid::from_raw(guard), Signal::SIGCONT);
        let finished = running.wait();
        assert_eq!(mark.alive(), [0; 0]);
        assert_eq!(world.holder(), "");
        let is_killed = finished.stderr.contains("the guard process (pid");
        let is_known = finished.stderr.contains("started the command");
        assert!(
            is_killed || is_known || !ran(&world).exists(),
            "the command ran after all: {finished:?}"
        );
    }
}

#[test]
fn a_guard_that_can_not_be_killed_keeps_the_lease_until_it_is_dead() {
    let world = World::on_files();
    let mark = Mark::new();
    let (running, guard, holder) = start_standby(&world, Level::Tree, &mark, "6s");
    let freezer = TestCgroup::with("freezer");
    freezer.set("cgroup.procs", &guard.to_string());
    freezer.set("freezer.state", "FROZEN");
    wait_until("the guard is frozen", LIMIT, || {
        (freezer.get("freezer.state") == "FROZEN").then_some(())
    });
    release(holder);
    running.wait_until_it_says("acquired the lease");
    running.signal(Signal::SIGTERM);
    running.wait_until_it_says(&format!(
        "not proven dead: pid {guard} (lease-guard), state D"
    ));
    for _ in 0..3 {
        world.wait_for_renewal();
    }
    freezer.set("freezer.state", "THAWED");
    running.wait().assert_signal(Signal::SIGTERM);
    assert!(!ran(&world).exists(), "the command ran");
    assert_eq!(world.holder(), "");
}

#[test]
fn a_standby_whose_guard_is_stopped_does_not_wait_for_it() {
    let world = World::on_files();
    let mark = Mark::new();
    // The kill budget is longer than this test waits.
    let (standby, guard, _holder) = start_standby(&world, Level::Tree, &mark, "300s");
    stop(guard);
    standby.signal(Signal::SIGTERM);
    standby.wait().assert_signal(Signal::SIGTERM);
    assert!(!is_alive(guard), "a stopped guard was left behind");
}

#[test]
fn an_order_to_start_that_is_read_too_late_starts_nothing() {
    let world = World::on_files();
    let mark = Mark::new();
    let (running, guard) = start_with_a_stopped_guard(&world, Level::Cgroup, &mark, "15s");
    stop(running.pid());
    // SIGKILL is due, and the kernel's timer for front more than a second later.
    let due = world.renewed_at() + Duration::from_millis(13_100).as_nanos();
    wait_until("the term has run out", LIMIT, || {
        (now() > due).then_some(())
    });
    signal(guard, Signal::SIGCONT);
    wait_until("the guard has read it", LIMIT, || is_polling(guard));
    running.signal(Signal::SIGCONT);
    // Nobody knows whether somebody else has started theirs meanwhile.
    running
        .wait()
        .assert_code(79)
        .assert_says("the term ran out before the command could start");
    assert!(!ran(&world).exists(), "the command ran");
    assert_eq!(world.holder(), "");
}

#[test]
fn a_guard_that_is_stopped_when_it_has_answered_is_killed_and_the_lease_is_released() {
    let world = World::on_files();
    let mark = Mark::new();
    let (standby, guard, holder) = start_standby(&world, Level::Cgroup, &mark, "6s");
    // What it says first is that it starts the command.
    let _tracer = Tracer::attach(guard, "sendto", "signal=STOP:when=1");
    release(holder);
    let finished = standby.wait();
    finished
        .assert_code(125)
        .assert_says("was killed by SIGKILL");
    assert!(!ran(&world).exists(), "the command ran");
    assert_eq!(world.holder(), "");
}

// === A front that is stopped between acquiring and starting ===

/// Starts a run that has acquired the lease and waits because that is young, and stops its front.
/// The command keeps the lease's record as it finds it at its start, and is the witness then.
fn start_stopped_before_the_start(world: &World) -> Running {
    let script = format!(
        "cp {} {}; exec sh {}",
        world.lease_file().display(),
        found(world).display(),
        world.path().join("witness").display()
    );
    let running = world
        .lease_exec()
        .args(["--lease-duration", "4s", "--create", "quarantine"])
        .script(&script)
        .start();
    running.wait_until_it_says("waiting before the command starts");
    stop(running.pid());
    running
}

fn found(world: &World) -> PathBuf {
    world.path().join("found")
}

#[test]
fn who_was_stopped_before_the_start_does_not_start_beside_who_took_over() {
    let world = World::on_files();
    let first = start_stopped_before_the_start(&world);
    let second = world.witness("4s").start();
    world.wait_for_starts(1);
    first.signal(Signal::SIGCONT);
    first.wait_until_it_says("lost the lease");
    first.wait_until_it_says("somebody else holds the lease");
    for _ in 0..3 {
        world.wait_for_renewal();
    }
    assert!(!found(&world).exists(), "the first has started too");
    // It is a candidate like any other.
    release(second);
    world.wait_for_starts(2).assert_exclusive();
    assert!(found(&world).exists());
    first.signal(Signal::SIGTERM);
    first.wait().assert_signal(Signal::SIGTERM);
}

#[test]
fn who_was_stopped_before_the_start_renews_before_it() {
    let world = World::on_files();
    let first = start_stopped_before_the_start(&world);
    let acquired = world.renewed_at();
    // The command would have started a little after the term.
    let end = acquired + Duration::from_secs(5).as_nanos();
    wait_until("the term and the wait are over", LIMIT, || {
        (now() > end).then_some(())
    });
    assert_eq!(world.renewed_at(), acquired, "it is not stopped");
    let continued = now();
    first.signal(Signal::SIGCONT);
    world.wait_for_starts(1);
    let record = fs::read_to_string(found(&world)).expect("the command has kept it");
    let record: Value = serde_json::from_str(&record).expect("the record is JSON");
    let renewed: jiff::Timestamp = record["spec"]["renewTime"]
        .as_str()
        .and_then(|time| time.parse().ok())
        .expect("the record says when");
    let continued = i128::try_from(continued).expect("a time");
    // The record has microseconds.
    assert!(renewed.as_nanosecond() + 1000 > continued, "not renewed");
}

// === The birth of the command ===

/// When the guard dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Moment {
    /// The child exists, and has done nothing yet.
    Birth,
    /// The guard has let it go on, and it has done nothing yet.
    GateOpened,
}

#[test]
fn a_guard_that_dies_when_it_has_borne_a_child_leaves_no_command() {
    at_both_levels(|level| {
        for moment in [Moment::Birth, Moment::GateOpened] {
            let world = World::on_files();
            let mark = Mark::new();
            let (running, guard, holder) = start_standby(&world, level, &mark, "60s");
            let events = ptrace::Options::PTRACE_O_TRACEFORK
                | ptrace::Options::PTRACE_O_TRACECLONE
                | ptrace::Options::PTRACE_O_TRACEEXEC;
            ptrace::seize(Pid::from_raw(guard), events).expect("root may trace");
            release(holder);
            // The kernel stops both; the child before it has asked to die with its parent.
            wait_for_event(guard, &[libc::PTRACE_EVENT_FORK, libc::PTRACE_EVENT_CLONE]);
            let child = ptrace::getevent(Pid::from_raw(guard)).expect("it is stopped");
            let child = i32::try_from(child).expect("a pid");
            wait_for_event(child, &[libc::PTRACE_EVENT_STOP]);
            if moment == Moment::GateOpened {
                ptrace::cont(Pid::from_raw(guard), None).expect("it is stopped");
                wait_until("the guard waits for news", LIMIT, || is_polling(guard));
            }
            signal(guard, Signal::SIGKILL);
            wait_until("the guard is dead", LIMIT, || end_of(guard));
            ptrace::cont(Pid::from_raw(child), None).expect("it is stopped");
            // By itself: it is not left to the tether, which is not everywhere.
            let end = wait_until("the child is dead", LIMIT, || end_of(child));
            let by_itself = WaitStatus::Exited(Pid::from_raw(child), 127);
            assert_eq!(end, by_itself, "{moment:?}");
            running
                .wait()
                .assert_code(125)
                .assert_says("was killed by SIGKILL");
            assert!(!ran(&world).exists(), "the command ran: {moment:?}");
            assert_eq!(world.holder(), "");
        }
    });
}

#[test]
fn a_guard_that_was_stopped_while_it_bore_the_command_does_not_let_it_run() {
    let world = World::on_files();
    let mark = Mark::new();
    let (running, guard, holder) = start_standby(&world, Level::Cgroup, &mark, "15s");
    let events = ptrace::Options::PTRACE_O_TRACEFORK | ptrace::Options::PTRACE_O_TRACECLONE;
    ptrace::seize(Pid::from_raw(guard), events).expect("root may trace");
    release(holder);
    // It has read the order in time.
    wait_for_event(guard, &[libc::PTRACE_EVENT_FORK, libc::PTRACE_EVENT_CLONE]);
    let child = ptrace::getevent(Pid::from_raw(guard)).expect("it is stopped");
    let child = i32::try_from(child).expect("a pid");
    wait_for_event(child, &[libc::PTRACE_EVENT_STOP]);
    ptrace::detach(Pid::from_raw(child), None).expect("it is stopped");
    // SIGKILL is due, and the kernel's timer for the guard most of a second later.
    let due = world.renewed_at() + Duration::from_millis(13_100).as_nanos();
    wait_until("the term has run out", LIMIT, || {
        (now() > due).then_some(())
    });
    ptrace::detach(Pid::from_raw(guard), None).expect("it is stopped");
    running
        .wait()
        .assert_code(79)
        .assert_says("the term ran out before the command could start");
    assert!(!ran(&world).exists(), "the command ran");
    assert_eq!(mark.alive(), [0; 0]);
    assert_eq!(world.holder(), "");
}

/// What waitpid has to say of one process that this thread traces.
fn news_of(pid: i32) -> WaitStatus {
    let flags = WaitPidFlag::WNOHANG | WaitPidFlag::__WALL;
    waitpid(Pid::from_raw(pid), Some(flags)).expect("it is traced")
}

#[track_caller]
fn wait_for_event(pid: i32, events: &[i32]) {
    wait_until(
        format!("one of the events {events:?}"),
        LIMIT,
        || match news_of(pid) {
            WaitStatus::StillAlive => None,
            WaitStatus::PtraceEvent(_, _, event) if events.contains(&event) => Some(()),
            other => panic!("{other:?} came first"),
        },
    );
}

/// How a process that this thread traces has ended, if it has. It must not have executed anything.
fn end_of(pid: i32) -> Option<WaitStatus> {
    match news_of(pid) {
        WaitStatus::StillAlive => None,
        end @ (WaitStatus::Exited(..) | WaitStatus::Signaled(..)) => Some(end),
        other => panic!("{other:?} came first"),
    }
}

/// Whether it has nothing to do: the guard sleeps in ppoll alone. Who is stopped does not sleep.
fn is_polling(guard: i32) -> Option<()> {
    let call = fs::read_to_string(format!("/proc/{guard}/syscall")).ok()?;
    let number: i64 = call.split(' ').next()?.parse().ok()?;
    (number == libc::SYS_ppoll && state(guard) == 'S').then_some(())
}

#[test]
fn a_command_outlives_the_life_of_an_idle_thread() {
    // The kernel kills a command when the *thread* dies that has borne it, and threads of a pool
    // that have had nothing to do for ten seconds die.
    let world = World::on_files();
    let finished = world.lease_exec().script("sleep 12; exit 7").run();
    finished.assert_code(7);
}
