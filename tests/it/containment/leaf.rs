//! The cgroup that is made for the command: who is in it, and that it goes.

use std::{
    fs,
    os::unix::process::ExitStatusExt,
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
    processes::{Grown, Level, Mark, TestCgroup, cgroup, children, name},
    wait::{LIMIT, try_wait_until, wait_until},
    world::{Invocation, Running, World},
};

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
fn who_is_put_into_the_cgroup_is_dead_before_the_release() {
    let world = World::on_files();
    let mark = Mark::new();
    // One process that obeys, after which the guard has no child, and nobody to kill but the visitor.
    let invocation = world.lease_exec().command(mark.command(&["sleep", "7777"]));
    let outer = TestCgroup::version_2();
    let running = invocation.under(outer.around()).start();
    running.wait_until_it_says("started the command");
    let command = mark.wait_for(1)[0];
    // No descendant of the command's, so that no wait of the guard's speaks of it.
    let mut visitor = Command::new("sleep")
        .arg("7777")
        .spawn()
        .expect("sleep runs");
    let leaf = cgroup(command);
    let path = TestCgroup::mount_of_version_2().join(leaf.trim_start_matches('/'));
    fs::write(path.join("cgroup.procs"), visitor.id().to_string()).expect("root may");
    running.signal(Signal::SIGTERM);
    running.wait().assert_signal(Signal::SIGTERM);
    let ended = visitor.try_wait().expect("it is our child");
    let _ = visitor.kill();
    let _ = visitor.wait();
    assert_eq!(
        ended.and_then(|status| status.signal()),
        Some(libc::SIGKILL)
    );
    assert_eq!(world.holder(), "");
    assert!(!path.exists(), "the cgroup was left behind");
}

#[test]
fn who_is_put_into_the_cgroup_while_it_is_killed_is_killed_too() {
    for front_dies in [false, true] {
        let world = World::on_files();
        let mark = Mark::new();
        let freezer = TestCgroup::with("freezer");
        let outer = TestCgroup::version_2();
        let invocation = world.lease_exec().args(["--lease-duration", "15s"]);
        let invocation = invocation.command(mark.script("setsid sleep 7777 & wait"));
        let running = invocation.under(outer.around()).start();
        let frozen = wait_until("the child runs", LIMIT, || {
            mark.alive().into_iter().find(|pid| name(*pid) == "sleep")
        });
        // It keeps the killing going.
        freezer.set("cgroup.procs", &frozen.to_string());
        freezer.set("freezer.state", "FROZEN");
        wait_until("it is frozen", LIMIT, || {
            (freezer.get("freezer.state") == "FROZEN").then_some(())
        });
        running.signal(if front_dies {
            Signal::SIGKILL
        } else {
            Signal::SIGTERM
        });
        wait_until("it has been sent SIGKILL", LIMIT, || {
            is_killed(frozen).then_some(())
        });
        if !front_dies {
            // By now everybody has been killed more than once.
            running.wait_until_it_says("not proven dead");
        }
        let mut visitor = Command::new("sleep")
            .arg("7777")
            .spawn()
            .expect("sleep runs");
        let leaf = TestCgroup::mount_of_version_2().join(cgroup(frozen).trim_start_matches('/'));
        fs::write(leaf.join("cgroup.procs"), visitor.id().to_string()).expect("root may");
        let ended = try_wait_until(LIMIT, || visitor.try_wait().expect("it is our child"));
        let _ = visitor.kill();
        let _ = visitor.wait();
        assert!(ended.is_some(), "the visitor lives on: {front_dies}");
        freezer.set("freezer.state", "THAWED");
        mark.wait_for_nobody();
    }
}

/// Whether SIGKILL waits for a process.
fn is_killed(pid: i32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    status.lines().any(|line| {
        let pending = line
            .strip_prefix("SigPnd:\t")
            .or(line.strip_prefix("ShdPnd:\t"));
        let pending = pending.and_then(|mask| u64::from_str_radix(mask, 16).ok());
        pending.unwrap_or(0) & 1 << (libc::SIGKILL - 1) != 0
    })
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
    let before = leaves(&outer);
    assert_eq!(before.len(), 2);

    let finished = beside_others(&world, &outer, "third", &["true"]).wait();
    finished.assert_code(0);
    assert_eq!(grown.mark.alive(), [0; 0], "who left the group lives on");
    let leaves = leaves(&outer);
    assert_eq!(leaves.len(), 1, "{leaves:?}");
    // That of the living is not named, nor is any where nobody was left.
    let dead = before.iter().find(|leaf| !leaves.contains(leaf));
    let dead = dead.expect("there were two");
    let line = "killing what a dead lease-exec has left in its cgroup";
    assert_eq!(finished.stderr.matches(line).count(), 1);
    finished.assert_says(&format!("cgroup={dead}"));
    let finished = beside_others(&world, &outer, "fourth", &["true"]).wait();
    assert!(!finished.stderr.contains(line), "{}", finished.stderr);
    living.signal(Signal::SIGTERM);
    living.wait().assert_signal(Signal::SIGTERM);
}

/// A holder in this cgroup, and who waits there for its lease to start a command.
pub(super) fn start_holder_and_next(world: &World, outer: &TestCgroup) -> (Grown, Running) {
    let around = |invocation: Invocation| invocation.under(outer.around());
    let lease_exec = || world.lease_exec().args(["-v", "--lease-duration", "6s"]);
    let grown = Grown::start_as(lease_exec(), Level::Cgroup, around);
    let next = around(lease_exec().command(["echo", "started"])).start();
    next.wait_until_it_says("somebody else holds the lease");
    (grown, next)
}

#[test]
fn who_waits_ends_what_a_killed_holder_has_left_in_its_cgroup_before_it_starts() {
    let world = World::on_files();
    let outer = TestCgroup::version_2();
    let (grown, next) = start_holder_and_next(&world, &outer);
    grown.signal_both(Signal::SIGSTOP);
    grown.signal_both(Signal::SIGKILL);
    next.wait().assert_code(0);
    assert_eq!(grown.mark.alive(), [0; 0], "who left the group lives on");
    assert_eq!(leaves(&outer), [""; 0]);
}

#[test]
fn who_waits_does_not_start_beside_what_can_not_be_killed_in_its_cgroup() {
    let world = World::on_files();
    let outer = TestCgroup::version_2();
    let freezer = TestCgroup::with("freezer");
    let (grown, next) = start_holder_and_next(&world, &outer);
    let alive = grown.mark.alive();
    let daemon = alive.iter().find(|pid| !grown.group.contains(*pid));
    let daemon = daemon.expect("two have left the group");
    freezer.set("cgroup.procs", &daemon.to_string());
    freezer.set("freezer.state", "FROZEN");
    wait_until("it is frozen", LIMIT, || {
        (freezer.get("freezer.state") == "FROZEN").then_some(())
    });
    grown.signal_both(Signal::SIGSTOP);
    grown.signal_both(Signal::SIGKILL);
    let finished = next.wait();
    finished
        .assert_code(125)
        .assert_says("somebody lives on after SIGKILL");
    assert_eq!(finished.stdout(), "");
    assert_eq!(world.holder(), "");
    freezer.set("freezer.state", "THAWED");
    grown.mark.wait_for_nobody();
}

#[test]
fn a_strangers_cgroup_is_left_alone_whatever_it_is_called() {
    let world = World::on_files();
    let outer = TestCgroup::version_2();
    let bystanders = Mark::new();
    let path_of = |name: &str| outer.path().join(name);
    let inhabited = [
        "lease-exec-demo",
        "lease-exec-1-01234567-0123456789abcdef",
        "lease-exec-1-01234567-0123456789abcdef-3",
    ];
    let empty = ["lease-exec-", "lease-exec-3-01234567-0123456789abcdef"];
    for name in inhabited.iter().chain(&empty) {
        fs::create_dir(path_of(name)).expect("a cgroup can be made");
    }
    for name in inhabited {
        let procs = path_of(name).join("cgroup.procs");
        let script = format!("echo 0 >{} || exit; setsid sleep 7777 &", procs.display());
        let script = bystanders.script(&script);
        let status = Command::new(script[0]).args(&script[1..]).status();
        assert!(status.expect("it can be run").success());
    }
    let living = bystanders.wait_for(inhabited.len());

    beside_others(&world, &outer, "another", &["true"])
        .wait()
        .assert_code(0);
    assert_eq!(bystanders.alive(), living, "a bystander was killed");
    let mut expected = [&inhabited[..], &empty].concat();
    expected.sort_unstable();
    let mut left = leaves(&outer);
    left.sort_unstable();
    assert_eq!(left, expected);
}

#[test]
fn a_user_who_may_only_look_can_not_lock_what_a_killed_lease_exec_has_left() {
    let world = World::on_files();
    let outer = TestCgroup::version_2();
    let around = |invocation: Invocation| invocation.under(outer.around());
    let invocation = world.lease_exec().args(["--lease-duration", "60s"]);
    let grown = Grown::start_as(invocation, Level::Cgroup, around);
    grown.signal_both(Signal::SIGSTOP);
    grown.signal_both(Signal::SIGKILL);
    grown.wait_for_group();
    let can_lock = |path: &Path| {
        let nobody = [
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
            "flock",
            "--nonblock",
        ];
        let mut setpriv = Command::new("setpriv");
        let status = setpriv.args(nobody).arg(path).arg("true").status();
        status.expect("setpriv and flock can be run").success()
    };
    assert!(can_lock(outer.path()), "the test itself does not work");
    let leaves = leaves(&outer);
    assert_eq!(leaves.len(), 1, "{leaves:?}");
    assert!(
        !can_lock(&outer.path().join(&leaves[0])),
        "who locks it makes it seem to be somebody's"
    );
}

#[test]
fn a_store_that_is_mounted_elsewhere_too_is_the_same() {
    let world = World::on_files();
    let elsewhere = tempfile::tempdir().expect("it can be made");
    let kin_in = |store: &Path, around: &[&str]| {
        let invocation = world.invocation().args(["--lease", "demo", "--store"]);
        let invocation = invocation.args([format!("file:{}", store.display())]);
        let invocation = invocation.command(["cat", "/proc/self/cgroup"]);
        let stdout = invocation.under(around).start().wait().stdout();
        let leaf = stdout.lines().find_map(|line| line.strip_prefix("0::"));
        let kin = leaf.and_then(|leaf| leaf.rsplit('-').next());
        kin.unwrap_or_default().to_owned()
    };
    let (from, to) = (world.store(), elsewhere.path());
    let script = format!(
        "mount --bind {} {} && exec \"$@\"",
        from.display(),
        to.display()
    );
    let mounted = ["unshare", "--mount", "sh", "-c", &script, "sh"];
    let kin = kin_in(&from, &["env"]);
    assert_eq!(kin.len(), 16, "{kin}");
    assert_eq!(kin_in(to, &mounted), kin);
}

/// lease-exec in this cgroup, with a lease of its own.
pub(super) fn beside_others(
    world: &World,
    outer: &TestCgroup,
    lease: &str,
    argv: &[&str],
) -> Running {
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

pub(super) fn leaves(outer: &TestCgroup) -> Vec<String> {
    let entries = fs::read_dir(outer.path()).expect("it can be read");
    entries
        .map(|entry| entry.expect("it can be read").file_name())
        .map(|name| name.to_string_lossy().into_owned())
        .filter(|name| name.starts_with("lease-exec-"))
        .collect()
}
