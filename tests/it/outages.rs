//! The API server hangs, dies and comes back.

use crate::{
    control_plane::ControlPlane,
    wait::LIMIT,
    world::{World, is_alive, now},
};

#[test]
fn a_hanging_api_server_costs_the_command_its_life_before_the_duration_is_over() {
    let control_plane = ControlPlane::start();
    let world = World::on(&control_plane);
    let holder = world.witness("10s").start();
    let log = world.wait_for_starts(1);
    world.wait_for_renewal();
    control_plane.stop_api_server();
    let finished = holder.wait_within(LIMIT * 2);
    let gone_at = now();
    finished.assert_code(79).assert_says("lost the lease");
    assert!(!is_alive(log.runs[0].pid));
    control_plane.continue_api_server();
    // The holder's last word to the server may have been carried out without its knowing, so the
    // time to compare with is that of the newest write that the server has.
    let renewed_at = world.renewed_at();
    let last_beat = world.log().runs[0].last_beat;
    assert!(
        last_beat > renewed_at,
        "the command ended before the outage"
    );
    let outlived = last_beat - renewed_at;
    assert!(
        outlived < 10_000_000_000,
        "the command lived {outlived} ns after the last renewal"
    );
    assert!(gone_at > last_beat);
}

#[test]
fn a_killed_api_server_that_comes_back_in_time_is_never_noticed_by_the_command() {
    let control_plane = ControlPlane::start();
    let world = World::on(&control_plane);
    let holder = world.witness("60s").start();
    world.wait_for_starts(1);
    world.wait_for_renewal();
    control_plane.kill_api_server();
    holder.wait_until_it_says("failed to renew the lease");
    control_plane.start_api_server();
    holder.wait_until_it_says("renewed the lease again");
    world.wait_for_renewal();
    let log = world.log();
    assert_eq!(log.runs.len(), 1);
    assert!(is_alive(log.runs[0].pid));
    holder.signal(nix::sys::signal::Signal::SIGTERM);
    holder
        .wait()
        .assert_signal(nix::sys::signal::Signal::SIGTERM);
    assert_eq!(world.holder(), "");
}

#[test]
fn a_candidate_waits_for_an_api_server_that_is_not_there_yet() {
    let control_plane = ControlPlane::start();
    let world = World::on(&control_plane);
    control_plane.kill_api_server();
    let candidate = world.witness("15s").start();
    candidate.wait_until_it_says("can't get at the lease");
    control_plane.start_api_server();
    world.wait_for_starts(1);
    candidate.wait_until_it_says("can get at the lease again");
}
