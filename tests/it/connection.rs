//! Connections to the API server: as whom, to where, and by which way.

mod addresses;
mod credentials;
mod impersonation;
mod way;

use std::{
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
};

use http::Method;
use serde_json::{Value, json};

use crate::{
    control_plane::{Authority, ControlPlane, User},
    wait::{LIMIT, wait_until},
    world::{Finished, Invocation, LEASE, World, is_alive},
};

/// All that lease-exec needs.
const VERBS: &[&str] = &["get", "create", "update", "watch"];

/// A kubeconfig for `user` with the world's namespace, after an edit.
fn kubeconfig(world: &World<'_>, user: User, edit: impl Fn(&mut Value)) -> PathBuf {
    edited(ControlPlane::shared(), world, user, edit)
}

/// The same for a world on another control plane.
fn edited(
    control_plane: &ControlPlane,
    world: &World<'_>,
    user: User,
    edit: impl Fn(&mut Value),
) -> PathBuf {
    let path = control_plane.kubeconfig_at(&control_plane.url(), world.namespace(), user);
    let text = fs::read_to_string(&path).expect("a kubeconfig can be read");
    let mut config = serde_json::from_str(&text).expect("a kubeconfig of ours is JSON");
    edit(&mut config);
    fs::write(&path, config.to_string()).expect("a kubeconfig can be written");
    path
}

/// The same with this user's entry.
fn kubeconfig_as(world: &World<'_>, user: &Value) -> PathBuf {
    kubeconfig(world, User::Admin, |config| {
        config["users"][0]["user"] = user.clone();
    })
}

/// The cluster's entry in a kubeconfig.
fn cluster(config: &mut Value) -> &mut Value {
    &mut config["clusters"][0]["cluster"]
}

/// lease-exec with the world's lease and this kubeconfig.
fn lease_exec(world: &World<'_>, kubeconfig: &Path) -> Invocation {
    let invocation = world.invocation().args(["--lease", LEASE, "--kubeconfig"]);
    invocation.args([kubeconfig])
}

/// The same running the witness, with the default durations.
fn witness(world: &World<'_>, kubeconfig: &Path) -> Invocation {
    let witness = world.path().join("witness");
    lease_exec(world, kubeconfig).command([OsStr::new("sh"), witness.as_os_str()])
}

/// Replaces a file as a careful program does.
fn replace(path: &Path, content: &str) {
    let draft = path.with_extension("draft");
    fs::write(&draft, content).expect("a draft can be written");
    fs::rename(&draft, path).expect("a file can be replaced");
}

/// Asserts that the one command of this world still runs, and that renewals go on.
#[track_caller]
fn assert_holding(world: &World<'_>) {
    world.wait_for_renewal();
    world.wait_for_renewal();
    let log = world.log();
    assert_eq!(log.runs.len(), 1, "{log:?}");
    assert!(is_alive(log.runs[0].pid), "the command has ended");
}

/// Waits until the API server answers so to a read of the lease.
fn wait_for_status(world: &World<'_>, user: &User, expected: u16) {
    let control_plane = ControlPlane::shared();
    let path = format!(
        "/apis/coordination.k8s.io/v1/namespaces/{}/leases/{LEASE}",
        world.namespace()
    );
    wait_until(format!("{user:?} is answered {expected}"), LIMIT, || {
        let answer = control_plane.raw_as(user.clone(), Method::GET, &path, None);
        matches!(answer, Ok((status, _)) if status == expected).then_some(())
    });
}

/// Asserts a code, and that stderr is one line that holds all these texts.
#[track_caller]
fn assert_refused(finished: &Finished, code: i32, texts: &[&str]) {
    finished.assert_code(code);
    assert_eq!(finished.stderr.lines().count(), 1, "{}", finished.stderr);
    for text in texts {
        finished.assert_says(text);
    }
}

// === Who, and where ===

#[test]
fn without_the_right_to_create_the_message_holds_the_rule_all_the_same() {
    let control_plane = ControlPlane::shared();
    let world = World::on_kubernetes();
    let namespace = world.namespace();
    control_plane.grant(namespace, "updater", &["get", "update", "watch"]);
    wait_for_status(&world, &User::named("updater"), 404);
    let kubeconfig = kubeconfig(&world, User::named("updater"), |_| {});
    let run = || {
        lease_exec(&world, &kubeconfig)
            .args(["-q"])
            .command(["true"])
            .run()
    };
    let rule = format!(
        "Role in the namespace {namespace:?} with the rule {{apiGroups: [coordination.k8s.io], resources: [leases], \
         resourceNames: [{LEASE}], verbs: [get, create, update, watch]}}"
    );
    assert_refused(&run(), 77, &[&format!("{namespace}/{LEASE}"), &rule]);
    assert!(world.lease().is_none());
    // With a lease that exists these rights are enough.
    world.lease_exec().command(["true"]).run().assert_code(0);
    run().assert_code(0);
}

/// What the server says of a name, lease-exec says before it asks: with 64, and only of those.
#[test]
fn just_the_names_that_the_server_refuses_are_refused_at_the_start() {
    let control_plane = ControlPlane::shared();
    let world = World::on_kubernetes();
    let kubeconfig = kubeconfig(&world, User::Admin, |_| {});
    let longest = "a".repeat(253);
    let too_long = "a".repeat(254);
    for (name, is_good) in [
        ("a..b", false),
        ("a.-b", false),
        ("a-.b", false),
        ("Nightly", false),
        ("nightly_run", false),
        (&too_long, false),
        ("a.b-c.9", true),
        ("0", true),
        (&longest, true),
    ] {
        let path = format!(
            "/apis/coordination.k8s.io/v1/namespaces/{}/leases/{name}",
            world.namespace()
        );
        let lease = json!({"metadata": {"name": name}});
        let (status, answer) = control_plane.raw(Method::PUT, &path, Some(lease));
        assert_eq!(status, if is_good { 201 } else { 422 }, "{name}: {answer}");
        let invocation = world
            .invocation()
            .args(["-q", "--lease", name, "--kubeconfig"]);
        let finished = invocation.args([&kubeconfig]).args(["--", "true"]).run();
        match is_good {
            true => {
                finished.assert_code(0);
            }
            false => assert_refused(&finished, 64, &["the lease name"]),
        }
    }
}

#[test]
fn what_was_named_explicitly_never_falls_through_to_the_pods_service_account() {
    let world = World::on_kubernetes();
    let good = kubeconfig(&world, User::Admin, |_| {});
    let good = good.display().to_string();
    let missing = world.path().join("missing").display().to_string();
    let in_pod = || {
        world
            .invocation()
            .env("KUBERNETES_SERVICE_HOST", "127.0.0.1")
            .env(
                "KUBERNETES_SERVICE_PORT",
                ControlPlane::shared().port().to_string(),
            )
            .env("HOME", world.path())
            .args(["--lease", LEASE, "-q"])
    };
    let cases = [
        (in_pod().args(["--kubeconfig", &missing]), &*missing),
        (in_pod().args(["--context", "nowhere"]), "nowhere"),
        (
            in_pod()
                .env("KUBECONFIG", &good)
                .args(["--context", "nowhere"]),
            "nowhere",
        ),
        (in_pod().env("KUBECONFIG", &missing), &*missing),
        (
            in_pod()
                .env("KUBECONFIG", &good)
                .args(["--kubeconfig", &missing]),
            &*missing,
        ),
    ];
    for (invocation, text) in cases {
        let finished = invocation.command(["true"]).run();
        assert_refused(&finished, 78, &[text]);
        assert!(
            !finished.stderr.contains("service account"),
            "{}",
            finished.stderr
        );
    }
    assert!(world.lease().is_none());
    // Were the service account looked for, this would be the message.
    let finished = in_pod().command(["true"]).run();
    assert_refused(&finished, 78, &["service account"]);
}

#[test]
fn the_files_of_kubeconfig_are_merged() {
    let world = World::on_kubernetes();
    let mut users = Value::Null;
    let whole = kubeconfig(&world, User::Admin, |_| {});
    let mut rest: Value =
        serde_json::from_str(&fs::read_to_string(&whole).expect("read")).expect("JSON");
    std::mem::swap(&mut users, &mut rest["users"]);
    rest["users"] = json!([]);
    let users = json!({"apiVersion": "v1", "kind": "Config", "users": users});
    let [first, second] = [("first", rest), ("second", users)].map(|(name, content)| {
        let path = world.path().join(name);
        fs::write(&path, content.to_string()).expect("written");
        path
    });
    let run = |list: &[&Path]| {
        let list = std::env::join_paths(list).expect("no colons");
        let invocation = world.invocation().env("KUBECONFIG", list);
        let invocation = invocation.args(["--lease", LEASE, "-q", "--no-wait"]);
        invocation.command(["true"]).run()
    };
    run(&[&first, &second]).assert_code(0);
    run(&[&second, &first]).assert_code(0);
    assert!(
        world.lease().is_some(),
        "the context's namespace was not used"
    );
    // Neither is enough.
    assert_ne!(run(&[&first]).status.code(), Some(0));
    assert_refused(&run(&[&second]), 78, &["current-context"]);
}

#[test]
fn a_server_that_is_not_trusted_is_told_in_one_sentence() {
    let world = World::on_kubernetes();
    let key = rcgen::KeyPair::generate().expect("a key");
    let stranger = rcgen::CertificateParams::new([]).expect("no names");
    let stranger = stranger.self_signed(&key).expect("signed").pem();
    let authority = world.path().join("ca.pem");
    fs::write(&authority, stranger).expect("written");
    let kubeconfig = kubeconfig(&world, User::Admin, |config| {
        cluster(config)["certificate-authority-data"] = Value::Null;
        cluster(config)["certificate-authority"] = json!(authority);
    });
    let sentence = "the server's certificate is not signed by a certificate authority that the configuration trusts";
    let finished = lease_exec(&world, &kubeconfig)
        .args(["-q", "--no-wait"])
        .command(["true"])
        .run();
    assert_refused(&finished, 69, &[sentence, &ControlPlane::shared().url()]);

    // The authority's file may be about to rotate, so a candidate waits, and looks again.
    let candidate = lease_exec(&world, &kubeconfig)
        .command(["echo", "done"])
        .start();
    candidate.wait_until_it_says(sentence);
    replace(&authority, &ControlPlane::shared().ca_pem());
    assert_eq!(candidate.wait().assert_code(0).stdout(), "done\n");
}

/// As RKE2 can issue them.
#[test]
fn keys_on_p_521_and_signatures_with_sha_512_are_taken() {
    let authority = Authority::that_signs_by(&rcgen::PKCS_ECDSA_P521_SHA512);
    let control_plane = ControlPlane::start_under(authority);
    let world = World::on(&control_plane);
    // The administrator has a certificate of the same kind.
    let kubeconfig = control_plane.kubeconfig(User::Admin);
    let invocation = lease_exec(&world, &kubeconfig).command(["true"]);
    invocation.run().assert_code(0);
}
