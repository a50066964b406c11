//! A held lease that tools edit as a part of a release: what they leave alone, the holder keeps.

use serde_json::json;

use crate::control_plane::ControlPlane;
use crate::world::{LEASE, World, is_alive};

/// Server-side apply, client-side apply, and the merge patch that a three-way merge comes to.
#[test]
fn a_holder_survives_an_apply_of_metadata_or_an_empty_spec() {
    let control_plane = ControlPlane::shared();
    let world = World::on_kubernetes();
    let holder = world.witness("15s").start();
    let log = world.wait_for_starts(1);
    let identity = world.holder();
    let server_side = [
        "apply",
        "--server-side",
        "--force-conflicts",
        "--filename",
        "-",
    ];
    let client_side = ["apply", "--filename", "-"];
    let patch = ["patch", "lease", LEASE, "--type", "merge", "--patch"];
    let mut edits = 0;
    let mut edit = |arguments: &[&str], manifest: &str| {
        edits += 1;
        let namespace = ["--namespace", world.namespace()];
        let arguments = [arguments, &namespace].concat();
        let output = control_plane.kubectl(&arguments, manifest);
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        let lease = world.lease().expect("stored");
        assert_eq!(lease["metadata"]["labels"]["edit"], edits.to_string());
        // Renewals go on, by the same holder, in the same term.
        world.wait_for_renewal();
        world.wait_for_renewal();
        assert_eq!(world.holder(), identity);
        let log = world.log();
        assert_eq!(log.runs.len(), 1, "{log:?}");
        assert!(is_alive(log.runs[0].pid));
    };
    let manifest = |number: u32, spec: bool| {
        let mut lease = json!({
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": LEASE, "labels": {"edit": number.to_string()}},
        });
        if spec {
            lease["spec"] = json!({});
        }
        lease.to_string()
    };
    edit(&server_side, &manifest(1, false));
    edit(&server_side, &manifest(2, true));
    let body = json!({"metadata": {"labels": {"edit": "3"}}, "spec": {}}).to_string();
    edit(&[&patch[..], &[&body]].concat(), "");
    edit(&client_side, &manifest(4, true));
    assert!(is_alive(log.runs[0].pid));
    let said = holder.stderr();
    assert!(!said.contains("WARN") && !said.contains("ERROR"), "{said}");
}
