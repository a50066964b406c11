//! What a whole run costs, whose command is `true` and whose lease nobody else wants.

use std::{collections::BTreeMap, fs};

use crate::{
    control_plane::ControlPlane,
    gateway::{Gateway, Kind},
    processes::TestCgroup,
    world::{Invocation, LEASE, World},
};

#[test]
fn a_run_of_true_reads_once_writes_twice_and_watches_on_two_connections() {
    let world = World::on_kubernetes();
    let gateway = Gateway::for_admin(ControlPlane::shared());
    let kubeconfig = gateway.kubeconfig(world.namespace());
    let leases = format!(
        "/apis/coordination.k8s.io/v1/namespaces/{}/leases",
        world.namespace()
    );
    let lease = format!("{leases}/{LEASE}");
    // There is none at first, and then one that was released.
    for (found, taken) in [(404, 201), (200, 200)] {
        let (before, connections) = (gateway.requests().len(), gateway.connections());
        let invocation = world.invocation().args(["--lease", LEASE, "--kubeconfig"]);
        let invocation = invocation.args([&kubeconfig]).command(["true"]);
        invocation.run().assert_code(0);
        let requests = gateway.requests();
        // The watch is for foreign writes while the command runs. Nothing waits for it, so it may
        // come before or after the release, or not even get to the server.
        let (watches, rest): (Vec<_>, Vec<_>) = requests[before..]
            .iter()
            .partition(|seen| seen.kind == Kind::Watch);
        let rest = rest
            .iter()
            .map(|seen| {
                (
                    seen.kind,
                    &*seen.path,
                    seen.code,
                    seen.connection - connections,
                )
            })
            .collect::<Vec<_>>();
        let expected = [
            (Kind::Read, &*lease, Some(found), 1),
            (Kind::Write, &*lease, Some(taken), 1),
            (Kind::Write, &*lease, Some(200), 1),
        ];
        assert_eq!(rest, expected);
        assert!(watches.len() <= 1, "{watches:?}");
        assert!(
            watches.iter().all(|seen| seen.path == leases),
            "{watches:?}"
        );
        assert!(gateway.connections() - connections <= 2);
        assert_eq!(world.holder(), "");
    }
}

#[test]
fn a_run_of_true_on_files_makes_as_many_system_calls_as_it_did() {
    let world = World::on_files();
    // The first makes the lease.
    world.lease_exec().command(["true"]).run().assert_code(0);
    assert_system_calls(&world, world.lease_exec(), FILES);
}

#[test]
fn a_run_of_true_on_kubernetes_makes_as_many_system_calls_as_it_did() {
    let world = World::on_kubernetes();
    world.lease_exec().command(["true"]).run().assert_code(0);
    assert_system_calls(&world, world.lease_exec(), KUBERNETES);
}

/// Counts the system calls of lease-exec, its guard and its command.
fn assert_system_calls(world: &World<'_>, invocation: Invocation, limit: u32) {
    let table = world.path().join("calls");
    // Alone, or what others have left beside it would be looked after too.
    let cgroup = TestCgroup::version_2();
    let strace = ["strace", "-f", "-c", "-S", "calls", "-o"].map(str::to_owned);
    let table_name = table.to_string_lossy().into_owned();
    let invocation = invocation
        // How many directories it looks into is the developer's business.
        .env("PATH", "/usr/bin:/bin")
        // Where cargo has the loader look for libraries is cargo's.
        .env("LD_LIBRARY_PATH", "")
        .command(["/bin/true"])
        .under(
            cgroup
                .around()
                .into_iter()
                .chain(strace)
                .chain([table_name]),
        );
    invocation.run().assert_code(0);
    let table = fs::read_to_string(&table).expect("strace has written it");
    let calls = calls(&table);
    let count: u32 = calls.values().sum();
    assert!(count > 200, "that is not a whole run: {table}");
    assert!(
        count <= limit,
        "{count} system calls, more than {limit}:\n{table}"
    );
}

/// The calls in a table of strace, by name.
fn calls(table: &str) -> BTreeMap<&str, u32> {
    let rows = table.lines().map(|line| line.split_whitespace().collect());
    // % time, seconds, microseconds per call, calls, errors if there were any, and the name.
    let rows = rows.filter_map(|row: Vec<&str>| {
        let calls = row.get(3)?.parse().ok()?;
        let name = row.last()?;
        (*name != "total").then_some((*name, calls))
    });
    rows.collect()
}

/// In a build without optimisation some 870 on files and 770 on Kubernetes were counted, of which a
/// sixth are the checks of such a build, and a quarter more is allowed: kernels, C libraries and the
/// turns that threads take differ. What is done once more for each file, signal or request shows.
const FILES: u32 = 1100;
const KUBERNETES: u32 = 960;
