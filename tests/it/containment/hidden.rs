//! What `/proc` hides (hidepid in proc(5)) from a lease-exec that is not privileged is killed too,
//! and is no reason to take the tree for dead.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
};

use nix::sys::signal::Signal;

use super::as_nobody;
use crate::{
    processes::{Mark, children, guard_of, name, odd, signal},
    wait::{LIMIT, wait_until},
    world::{Running, World},
};

/// A run by a user who sees nobody else's processes, nor those of its own that may not be dumped.
/// What `beside` says is started first; the script is to start a hidden daemon as `$0`.
fn start(world: &World, mark: &Mark, beside: &str, script: &str) -> Running {
    for place in [world.path(), &world.store()] {
        let everybody = fs::Permissions::from_mode(0o777);
        fs::set_permissions(place, everybody).expect("it is ours");
    }
    let daemon = odd().to_str().expect("UTF-8");
    let argv = mark.command(&["sh", "-c", script, daemon]);
    let invocation = world.lease_exec().args(["--lease-duration", "60s"]);
    let nobody = as_nobody(beside, 2);
    invocation.command(argv).under(nobody).start()
}

/// Waits for the daemon: the files of what may not be dumped are root's.
#[track_caller]
fn wait_for_hidden(mark: &Mark) -> i32 {
    wait_until("there is a hidden daemon", LIMIT, || {
        let is_roots = |pid: &i32| {
            fs::metadata(format!("/proc/{pid}/environ")).is_ok_and(|process| process.uid() == 0)
        };
        mark.alive()
            .into_iter()
            .find(|pid| name(*pid) == "odd" && is_roots(pid))
    })
}

#[test]
fn a_hidden_daemon_of_a_dead_guard_is_killed_before_the_release() {
    let world = World::on_files();
    let mark = Mark::new();
    let running = start(&world, &mark, "", "\"$0\" hidden & wait");
    wait_for_hidden(&mark);
    signal(guard_of(&running), Signal::SIGKILL);
    running.wait().assert_code(125);
    assert_eq!(mark.alive(), [0; 0]);
    assert_eq!(world.holder(), "");
}

#[test]
fn a_hidden_daemon_that_the_command_has_left_is_killed_before_the_release() {
    let world = World::on_files();
    let mark = Mark::new();
    let go = world.path().join("go");
    let script = format!(
        "\"$0\" hidden & until [ -e {} ]; do sleep 0.02; done; exit 4",
        go.display()
    );
    let running = start(&world, &mark, "", &script);
    wait_for_hidden(&mark);
    fs::write(go, "").expect("written");
    running.wait().assert_code(4);
    assert_eq!(mark.alive(), [0; 0]);
    assert_eq!(world.holder(), "");
}

#[test]
fn beside_bystanders_that_are_hidden_too_only_the_daemon_is_killed() {
    let world = World::on_files();
    let mark = Mark::new();
    let bystander = Mark::new();
    // One that is root's, and one that may be seen.
    let seen = bystander.command(&["setpriv", "--reuid=65534", "sleep", "7777"]);
    let hidden = bystander.command(&["sleep", "7777"]);
    let beside = format!("{} & {} &", seen.join(" "), hidden.join(" "));
    let running = start(&world, &mark, &beside, "\"$0\" hidden & wait");
    wait_for_hidden(&mark);
    assert_eq!(children(running.pid()).len(), 3, "bystanders and the guard");
    signal(guard_of(&running), Signal::SIGKILL);
    running.wait().assert_code(125);
    assert_eq!(mark.alive(), [0; 0]);
    assert_eq!(world.holder(), "");
    assert_eq!(bystander.alive().len(), 2);
}
