//! Bad input gets one clear sentence and its exit code, and leaves nothing in the lease.

use std::{fs, path::Path};

use http::Method;
use serde_json::json;

use crate::{
    control_plane::{ControlPlane, User, free_port},
    wait::{LIMIT, wait_until},
    world::{Finished, LEASE, World},
};

/// Asserts a code, and exactly one line of message that holds all these texts.
#[track_caller]
fn assert_refused(finished: &Finished, code: i32, texts: &[&str]) {
    finished.assert_code(code);
    assert_eq!(
        finished.stderr.lines().count(),
        1,
        "not one sentence:\n{}",
        finished.stderr
    );
    for text in texts {
        finished.assert_says(text);
    }
    assert!(finished.stdout.is_empty(), "{finished:?}");
}

#[test]
fn wrong_usage_is_64() {
    let world = World::on_files();
    let store = format!("file:{}", world.store().display());
    let cases: &[(&[&str], &str)] = &[
        (&["--store", &store, "--", "true"], "no lease is named"),
        (
            &["--store", &store, "--lease", "demo"],
            "no command is given",
        ),
        (
            &["--store", &store, "--lease", "de_mo", "true"],
            "'_' at position 3",
        ),
        (
            &["--store", &store, "--lease", "demo", "--bogus", "true"],
            "'--bogus'",
        ),
        (
            &[
                "--store",
                &store,
                "--lease",
                "demo",
                "--renew-deadline",
                "14s",
                "true",
            ],
            "12.972s",
        ),
        (
            &[
                "--store", &store, "--lease", "demo", "--wait", "soon", "true",
            ],
            "'soon'",
        ),
        (
            &["--store", "nowhere", "--lease", "demo", "true"],
            "\"nowhere\"",
        ),
    ];
    for (args, text) in cases {
        assert_refused(&world.invocation().args(*args).run(), 64, &[text]);
    }
    assert!(world.lease().is_none());
}

#[test]
fn a_cluster_beside_a_file_store_is_64_and_a_flag_beats_a_variable() {
    let world = World::on_files();
    let store = format!("file:{}", world.store().display());
    let flags = [
        "--kubeconfig",
        "--context",
        "--as",
        "--as-group",
        "--as-uid",
    ];
    let variables = [
        "LEASE_EXEC_KUBECONFIG",
        "LEASE_EXEC_CONTEXT",
        "LEASE_EXEC_AS",
        "LEASE_EXEC_AS_GROUP",
        "LEASE_EXEC_AS_UID",
    ];
    let run = |flags: &[&str], variables: &[(&str, &str)]| {
        let invocation = world.invocation().args(["--lease", LEASE]).args(flags);
        let given = |invocation: crate::world::Invocation, (name, value): &(&str, &str)| {
            invocation.env(name, value)
        };
        let invocation = variables.iter().fold(invocation, given);
        invocation.args(["--", "true"]).run()
    };
    for (flag, variable) in flags.into_iter().zip(variables) {
        let left_over = ("LEASE_EXEC_STORE", store.as_str());
        let both = run(&["--store", &store, flag, "x"], &[]);
        assert_refused(&both, 64, &[flag, "--store", &store]);
        let leftover = run(&[flag, "x"], &[left_over]);
        assert_refused(&leftover, 64, &[flag, "LEASE_EXEC_STORE", &store]);
        let inherited = run(&[], &[left_over, (variable, "x")]);
        assert_refused(&inherited, 64, &[variable, "LEASE_EXEC_STORE", &store]);
        assert!(world.lease().is_none());
        run(&["--store", &store], &[(variable, "x")]).assert_code(0);
        fs::remove_file(world.lease_file()).expect("the lease was made");
    }
    // Nobody asked us for this one.
    run(&["--store", &store], &[("KUBECONFIG", "x")])
        .assert_code(0)
        .assert_says(&format!("store={store}"));
}

#[test]
fn a_wrong_variable_is_named_and_not_the_option_that_nobody_gave() {
    let world = World::on_files();
    for (variable, value, says) in [
        ("LEASE_EXEC_WAIT", "soon", "it is not a duration"),
        ("LEASE_EXEC_NO_WAIT", "maybe", "value was not a boolean"),
        ("LEASE_EXEC_VERBOSE", "much", "invalid digit"),
        ("LEASE_EXEC_CREATE", "perhaps", "[possible values: auto,"),
        ("LEASE_EXEC_CONFLICT_EXIT_CODE", "256", "is not in 0..=255"),
    ] {
        let invocation = world.lease_exec().env(variable, value).command(["true"]);
        let finished = invocation.run();
        assert_refused(&finished, 64, &[&format!("'{value}' for {variable}"), says]);
        assert!(!finished.stderr.contains("'--"), "{}", finished.stderr);
    }
    let invocation = world.lease_exec().env("LEASE_EXEC_WAIT", "soon");
    let finished = invocation.args(["--wait=-5s"]).command(["true"]).run();
    assert_refused(&finished, 64, &["'-5s' for '--wait <DURATION>'"]);
    for yes in ["true", "1", "yes", "ON"] {
        let invocation = world.lease_exec().env("LEASE_EXEC_QUIET", yes);
        let finished = invocation.command(["true"]).run();
        assert_eq!(
            (finished.stderr.as_str(), finished.stdout()),
            ("", String::new())
        );
    }
}

#[test]
fn an_empty_variable_counts_as_unset() {
    let world = World::on_files();
    let mut invocation = world.lease_exec();
    let arguments = lease_exec::cli::command();
    let names = arguments.get_arguments().filter_map(|arg| arg.get_env());
    let names: Vec<String> = names
        .map(|name| name.to_string_lossy().into_owned())
        .collect();
    assert!(
        names.contains(&"LEASE_EXEC_QUIET".to_owned()),
        "no variables found: {names:?}"
    );
    for name in &names {
        invocation = invocation.env(name, "");
    }
    let finished = invocation.command(["true"]).run();
    finished.assert_code(0).assert_says("acquired the lease");
    let help = world
        .invocation()
        .env("LEASE_EXEC_WAIT", "")
        .args(["--help"]);
    assert!(help.run().stdout().contains("[env: LEASE_EXEC_WAIT]"));
    // On the command line nothing was left out by a template.
    let finished = world.lease_exec().args(["--wait="]).command(["true"]).run();
    assert_refused(&finished, 64, &["--wait"]);
}

#[test]
fn a_help_text_that_cannot_be_written_is_125_with_a_reason() {
    let world = World::on_files();
    let script = r#"exec "$0" --help >/dev/full"#;
    let shell = world.program("sh").args(["-c", script]);
    let finished = shell.args([env!("CARGO_BIN_EXE_lease-exec")]).run();
    assert_refused(&finished, 125, &["can't write to standard output", "space"]);
}

#[test]
fn a_fifo_in_the_place_of_the_lease_is_78_at_once() {
    let world = World::on_files();
    world.lease_exec().command(["true"]).run().assert_code(0);
    fs::remove_file(world.lease_file()).expect("the lease was made");
    nix::unistd::mkfifo(&world.lease_file(), nix::sys::stat::Mode::S_IRWXU).expect("a FIFO");
    let finished = world.lease_exec().args(["-q"]).command(["true"]).run();
    assert_refused(&finished, 78, &["it is not a file"]);
}

#[test]
fn a_lease_exec_below_the_holder_of_its_lease_says_that_it_waits_for_itself() {
    let world = World::on_files();
    let inner = "exec $LX true";
    let outer = world.shell(&format!("exec $LX sh -c '{inner}'"));
    let finished = outer.env("LEASE_EXEC_WAIT", "1s").run();
    finished
        .assert_code(75)
        .assert_says("the holder is the lease-exec that has started us");
    // Neither is any other holder taken for it.
    let _holder = world.witness("15s").start();
    world.wait_for_starts(1);
    let beside = world
        .lease_exec()
        .args(["--no-wait"])
        .env("LEASE_HOLDER_IDENTITY", "somebody_else");
    let beside = beside.command(["true"]).run();
    beside.assert_code(75);
    assert!(!beside.stderr.contains("started us"), "{}", beside.stderr);
}

#[test]
fn a_pod_name_that_would_break_a_line_is_64() {
    let world = World::on_files();
    let finished = world
        .lease_exec()
        .env("POD_NAME", "two\nlines")
        .command(["true"])
        .run();
    assert_refused(&finished, 64, &["POD_NAME", "'\\n'"]);
    assert!(world.lease().is_none());
}

#[test]
fn a_full_disk_ends_one_attempt_with_69() {
    let world = World::on_files();
    world.lease_exec().command(["true"]).run().assert_code(0);
    // A file may have no bytes any more, so that reads succeed and writes fail; the signal that goes
    // with it is ignored.
    let script = "ulimit -f 0; trap '' XFSZ; exec $LX true";
    let finished = world.shell(script).env("LEASE_EXEC_NO_WAIT", "true").run();
    finished.assert_code(69);
    assert!(finished.stderr.lines().count() <= 2, "{}", finished.stderr);
}

#[test]
fn a_terminating_signal_ends_us_while_a_kubeconfig_is_read() {
    let world = World::on_files();
    let fifo = world.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).expect("a FIFO can be made");
    let running = world
        .invocation()
        .args(["--lease", LEASE, "--kubeconfig"])
        .args([&fifo])
        .args(["--", "true"])
        .start();
    wait_until("lease-exec waits for the FIFO", LIMIT, || {
        let path = format!("/proc/{}/wchan", running.pid());
        let wchan = fs::read_to_string(path).unwrap_or_default();
        (wchan.contains("fifo") || wchan.contains("wait_for_partner")).then_some(())
    });
    running.signal(nix::sys::signal::Signal::SIGTERM);
    running
        .wait()
        .assert_signal(nix::sys::signal::Signal::SIGTERM);
}

#[test]
fn a_file_store_without_a_usable_directory_is_78() {
    let world = World::on_files();
    let run = |directory: &Path| {
        let store = format!("file:{}", directory.display());
        world
            .invocation()
            .args(["--lease", LEASE, "--store", &store, "--", "true"])
            .run()
    };
    let refusal = |path: &Path| format!("lease-exec: can't keep leases in {}: ", path.display());
    let missing = world.path().join("missing");
    assert_refused(&run(&missing), 78, &[&refusal(&missing)]);
    assert!(!missing.exists(), "a mistyped directory was made");
    let file = world.path().join("file");
    fs::write(&file, "").expect("written");
    assert_refused(&run(&file), 78, &[&refusal(&file)]);
    // Read-only also for root.
    assert_refused(&run(Path::new("/proc/sys")), 78, &["/proc/sys"]);
}

#[test]
fn a_stored_lease_that_makes_no_sense_is_78_and_stays_as_it_is() {
    let world = World::on_files();
    world.lease_exec().command(["true"]).run().assert_code(0);
    let good = world.lease().expect("stored");
    let edits: [(&str, serde_json::Value); 5] = [
        ("leaseDurationSeconds", json!(-5)),
        ("leaseDurationSeconds", json!("15")),
        ("holderIdentity", json!(17)),
        ("renewTime", json!("yesterday")),
        ("leaseTransitions", json!(-1)),
    ];
    for (field, value) in edits {
        let mut bad = good.clone();
        bad["spec"][field] = value;
        fs::write(world.lease_file(), bad.to_string()).expect("written");
        let finished = world.lease_exec().args(["-q"]).command(["true"]).run();
        assert_refused(&finished, 78, &[field]);
        assert_eq!(world.lease(), Some(bad), "the file was changed");
    }
    fs::write(world.lease_file(), "not JSON").expect("written");
    let finished = world.lease_exec().args(["-q"]).command(["true"]).run();
    assert_refused(&finished, 78, &[&world.lease_file().display().to_string()]);
    assert_eq!(
        fs::read_to_string(world.lease_file()).expect("read"),
        "not JSON"
    );
}

#[test]
fn a_kubeconfig_that_cannot_be_used_is_78() {
    let world = World::on_files();
    let run = |args: &[&str]| {
        world
            .invocation()
            .args(["--lease", LEASE])
            .args(args)
            .args(["--", "true"])
            .run()
    };
    let missing = world.path().join("missing").display().to_string();
    assert_refused(&run(&["--kubeconfig", &missing]), 78, &[&missing]);
    let malformed = world.path().join("malformed");
    fs::write(&malformed, "{{{").expect("written");
    let malformed = malformed.display().to_string();
    assert_refused(&run(&["--kubeconfig", &malformed]), 78, &[&malformed]);
    let good = ControlPlane::shared()
        .kubeconfig(User::Admin)
        .display()
        .to_string();
    let unknown = run(&["--kubeconfig", &good, "--context", "nowhere"]);
    assert_refused(&unknown, 78, &["nowhere"]);
    // No cluster at all: neither a kubeconfig nor a service account.
    let nothing = world
        .invocation()
        .env("HOME", world.path())
        .args(["--lease", LEASE, "--", "true"])
        .run();
    assert_refused(&nothing, 78, &["kubeconfig"]);
    // What was named explicitly never falls through to something else.
    let explicit = world
        .invocation()
        .env("KUBECONFIG", &good)
        .args(["--lease", LEASE, "--kubeconfig", &missing, "--", "true"])
        .run();
    assert_refused(&explicit, 78, &[&missing]);
}

#[test]
fn an_unreachable_server_is_69_when_the_wait_runs_out() {
    let world = World::on_files();
    let control_plane = ControlPlane::shared();
    let url = format!("https://127.0.0.1:{}", free_port());
    let kubeconfig = control_plane.kubeconfig_at(&url, "default", User::Admin);
    for wait in ["--no-wait", "--wait=1s"] {
        let finished = world
            .invocation()
            .args(["--lease", LEASE, "-q", wait, "--kubeconfig"])
            .args([&kubeconfig])
            .args(["--", "true"])
            .run();
        finished.assert_code(69).assert_says(&url);
    }
}

#[test]
fn credentials_that_are_not_accepted_are_78() {
    let world = World::on_files();
    let control_plane = ControlPlane::shared();
    let run = |user: User| {
        let kubeconfig = control_plane.kubeconfig(user);
        world
            .invocation()
            .args(["--lease", LEASE, "-q", "--no-wait", "--kubeconfig"])
            .args([&kubeconfig])
            .args(["--", "true"])
            .run()
    };
    let expired = control_plane.expired_client_certificate("late");
    assert_refused(&run(User::Certificate(expired)), 78, &["expired"]);
    let old_format = control_plane.x509_v1_client_certificate("old");
    assert_refused(&run(User::Certificate(old_format)), 78, &["version 1"]);
    assert_refused(&run(User::Token("no-such-token".to_owned())), 78, &["401"]);
}

#[test]
fn missing_rights_are_77_with_the_rule_to_add_and_the_rule_helps() {
    let control_plane = ControlPlane::shared();
    let world = World::on_kubernetes();
    let namespace = world.namespace().to_owned();
    let user = User::named("rookie");
    let kubeconfig = control_plane.kubeconfig_at(&control_plane.url(), &namespace, user);
    let run = || {
        world
            .invocation()
            .args(["--lease", LEASE, "-q", "--no-wait", "--kubeconfig"])
            .args([&kubeconfig])
            .args(["--", "true"])
            .run()
    };
    let rule = "apiGroups: [coordination.k8s.io], resources: [leases], resourceNames: [demo], \
                verbs: [get, create, update, watch]";
    assert_refused(&run(), 77, &["rookie", &namespace, rule]);

    // Exactly the rule that the message names.
    control_plane.grant(&namespace, "rookie", &["get", "create", "update", "watch"]);
    // The authorizer sees new roles a moment later.
    wait_until("the new right arrives", LIMIT, || {
        (run().status.code() == Some(0)).then_some(())
    });
    assert_eq!(world.holder(), "");
}

#[test]
fn without_the_right_to_create_an_absent_lease_is_77_and_the_message_says_so() {
    let control_plane = ControlPlane::shared();
    let world = World::on_kubernetes();
    let namespace = world.namespace().to_owned();
    let user = User::named("updater");
    control_plane.grant(&namespace, "updater", &["get", "update", "watch"]);
    let kubeconfig = control_plane.kubeconfig_at(&control_plane.url(), &namespace, user);
    let run = || {
        let invocation = world.invocation().args(["-q", "--no-wait", "--kubeconfig"]);
        let invocation = invocation.args([&kubeconfig]).args(["--lease", LEASE]);
        invocation.args(["--", "true"]).run()
    };
    // The authorizer sees new roles a moment later.
    let refused = wait_until("the right to read arrives", LIMIT, || {
        let finished = run();
        (!finished.stderr.contains("may not get")).then_some(finished)
    });
    assert_refused(
        &refused,
        77,
        &["does not exist, and the right to create it is missing"],
    );
}

#[test]
fn without_the_right_to_watch_a_standby_polls_and_says_so() {
    let control_plane = ControlPlane::shared();
    let world = World::on_kubernetes();
    let namespace = world.namespace().to_owned();
    control_plane.grant(&namespace, "poller", &["get", "create", "update"]);
    let holder = world.witness("15s").start();
    world.wait_for_starts(1);
    let kubeconfig =
        control_plane.kubeconfig_at(&control_plane.url(), &namespace, User::named("poller"));
    let poller = world
        .invocation()
        .args(["--lease", LEASE, "--lease-duration", "3s", "--kubeconfig"])
        .args([&kubeconfig])
        .args(["--", "echo", "polled"])
        .start();
    poller.wait_until_it_says("polling instead of watching");
    holder.signal(nix::sys::signal::Signal::SIGTERM);
    assert_eq!(poller.wait().assert_code(0).stdout(), "polled\n");
}

#[test]
fn a_missing_or_terminating_namespace_is_78() {
    let world = World::on_files();
    let control_plane = ControlPlane::shared();
    let run = |namespace: &str| {
        let kubeconfig = control_plane.kubeconfig(User::Admin);
        world
            .invocation()
            .args(["--lease", LEASE, "-q", "-n", namespace, "--kubeconfig"])
            .args([&kubeconfig])
            .args(["--", "true"])
            .run()
    };
    assert_refused(&run("nowhere"), 78, &["nowhere"]);
    control_plane.create_namespace("going");
    // Nobody ends the namespace here: there is no namespace controller, so it stays terminating.
    let (status, _) = control_plane.raw(Method::DELETE, "/api/v1/namespaces/going", None);
    assert_eq!(status, 200);
    assert_refused(&run("going"), 78, &["going", "being deleted"]);
}

#[test]
fn a_lease_that_must_exist_is_78_when_it_does_not() {
    for world in [World::on_files(), World::on_kubernetes()] {
        let run = || {
            world
                .lease_exec()
                .args(["-q", "--create", "never"])
                .command(["true"])
                .run()
        };
        assert_refused(&run(), 78, &["does not exist", "--create=never"]);
        assert!(world.lease().is_none());
        world.lease_exec().command(["true"]).run().assert_code(0);
        run().assert_code(0);
    }
}

#[test]
fn an_empty_command_and_a_namespace_for_children_alone_are_explained() {
    let world = World::on_files();
    let finished = world.lease_exec().command([""]).run();
    assert_refused(&finished, 127, &["the command is empty"]);
    let without_fork = world.lease_exec().command(["true"]);
    let finished = without_fork.under(["unshare", "--pid", "--"]).run();
    assert_refused(&finished, 125, &["does unshare --pid lack --fork?"]);
}
