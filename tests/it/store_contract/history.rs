//! What happens to the state behind a lease: etcd forgets, is restored, a namespace goes away, the
//! API server restarts.

use std::{sync::mpsc, thread, time::Duration};

use lease_exec::lease::{Change, FailureKind, Outcome, Version, Write};
use lease_exec::store::Store;

use super::kube::open;
use super::{assert_written, created, current, held, next, run, shown, until, written};
use crate::control_plane::{ControlPlane, User};
use crate::wait::LIMIT;
use crate::world::{LEASE, World, is_alive};

#[test]
fn watch_from_before_a_compaction_ends_with_410_and_one_from_the_next_renewal_works() {
    let control_plane = ControlPlane::start();
    let store = open(control_plane.kubeconfig(User::Admin), "default", "nightly");
    run(async {
        let mut claim = created(&store, held("a", 0)).await;
        let old = claim.version.clone();
        for round in 1..=5 {
            claim = written(&store, &claim, held("a", round)).await;
        }
        control_plane.compact_etcd();
        // A server that has run all the while would still know the events.
        control_plane.kill_api_server();
        control_plane.start_api_server();
        let change = next(&mut store.watch(Some(old))).await;
        let Change::Ended(reason) = &change else {
            panic!("{change:?} in place of an end");
        };
        assert!(reason.contains("410"), "{reason}");
        // A server that has just started knows the events since it read all Leases. Whatever else was
        // written since the lease was (the server has Leases of its own) makes even the newest version
        // of that one too old for a watch, until its next renewal.
        let claim = current(&store).await;
        written(&store, &claim, held("a", 6)).await;
        let claim = current(&store).await;
        let mut watch = store.watch(Some(claim.version.clone()));
        let renewed = written(&store, &claim, held("a", 7)).await;
        assert_written(&next(&mut watch).await, &renewed);
    });
}

/// What was held before must not be believed: others may have held the lease since.
#[test]
fn restored_backup_costs_the_holder_its_command_and_it_says_why() {
    let control_plane = ControlPlane::start();
    let world = World::on(&control_plane);
    let holder = world.witness("60s").start();
    let log = world.wait_for_starts(1);
    world.wait_for_renewal();
    let version = || {
        let lease = world.lease().expect("the lease is stored");
        let version = lease["metadata"]["resourceVersion"].as_str();
        Version::new(version.expect("it has a version")).expect("versions are numbers")
    };
    let saved = (version(), control_plane.save());
    world.wait_for_renewal();
    let lost = version();
    assert!(lost > saved.0);
    control_plane.restore(&saved.1);
    let finished = holder.wait_within(LIMIT * 2);
    finished
        .assert_code(79)
        .assert_says("the lease went back to an older version: was a backup restored?");
    assert!(!is_alive(log.runs[0].pid));
    assert!(version() < lost, "the restored state was written over");
}

#[test]
fn namespace_that_goes_away_ends_the_holder_and_the_standby_with_clear_words() {
    let world = World::on_kubernetes();
    let control_plane = ControlPlane::shared();
    let holder = world.witness("60s").start();
    let log = world.wait_for_starts(1);
    let standby = world.witness("60s").start();
    standby.wait_until_it_says("somebody else holds the lease");
    let path = format!("/api/v1/namespaces/{}", world.namespace());
    let (status, answer) = control_plane.raw(http::Method::DELETE, &path, None);
    assert_eq!(status, 200, "{answer}");
    // The controller that empties namespaces, played by us: while it has not come to the lease,
    // that is held and renewed.
    world.wait_for_renewal();
    assert!(is_alive(log.runs[0].pid));
    world.delete();
    holder
        .wait()
        .assert_code(79)
        .assert_says("the lease was deleted");
    assert!(!is_alive(log.runs[0].pid));
    standby
        .wait()
        .assert_code(78)
        .assert_says("is being deleted");
    assert_eq!(world.lease(), None);
    assert_eq!(world.log().runs.len(), 1);
    world.lease_exec().command(["true"]).run().assert_code(78);
}

/// Neither a server that drains nor one that is just starting may look like a lost lease. A missing
/// right is another matter: until RBAC's rules are read, a server refuses everybody, in the words that
/// it has for those who have none.
#[test]
fn server_that_restarts_never_says_that_the_lease_is_gone_or_another() {
    const NAME: &str = "somebody";
    let control_plane = ControlPlane::start();
    control_plane.grant("default", NAME, &["get", "create", "update", "watch"]);
    let kubeconfig = control_plane.kubeconfig(User::named(NAME));
    let store = open(kubeconfig, "default", LEASE);
    let (go, going) = mpsc::channel();
    thread::scope(|scope| {
        let restart = scope.spawn(move || {
            going.recv().expect("the other thread says when");
            for _ in 0..3 {
                control_plane.terminate_api_server();
                control_plane.start_api_server();
            }
        });
        run(async {
            let claim = until("the right to create is known", async || {
                let record = held("a", 1);
                match store.write(Write { base: None, record }).await {
                    Ok(Outcome::Written(claim)) => Some(claim),
                    Ok(Outcome::Conflict) | Err(_) => None,
                }
            })
            .await;
            go.send(()).expect("the other thread waits");
            let (mut answers, mut failures) = (0, 0);
            while !restart.is_finished() {
                match store.read().await {
                    Ok(read) => {
                        let read = read.expect("nobody has deleted the lease");
                        assert_eq!(shown(&read), shown(&claim));
                        answers += 1;
                    }
                    Err(failure) => {
                        let is_expected = matches!(
                            failure.kind,
                            FailureKind::Unreachable | FailureKind::Forbidden
                        );
                        assert!(is_expected, "{failure:?}");
                        failures += 1;
                    }
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            assert!(
                answers > 0 && failures > 0,
                "{answers} answers, {failures} failures"
            );
        });
    });
}
