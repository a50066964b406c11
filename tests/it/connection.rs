//! The way to the API server: credentials that change, plugins, proxies, dead connections.

use std::{
    ffi::OsStr,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use http::Method;
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::{
    control_plane::{ControlPlane, User, free_port},
    proxy::{Manner, Proxy},
    wait::{LIMIT, wait_until},
    world::{Finished, Invocation, LEASE, World, is_alive},
};

/// All that lease-exec needs.
const VERBS: &[&str] = &["get", "create", "update", "watch"];

/// A kubeconfig for `user` with the world's namespace, after an edit.
fn kubeconfig(world: &World<'_>, user: User, edit: impl Fn(&mut Value)) -> PathBuf {
    let control_plane = ControlPlane::shared();
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

// === Credentials that change ===

#[test]
fn a_token_file_that_rotates_is_read_again_and_the_command_never_notices() {
    let control_plane = ControlPlane::shared();
    let world = World::on_kubernetes();
    let namespace = world.namespace();
    let [old, new] = ["old", "new"].map(|account| {
        let user = format!("system:serviceaccount:{namespace}:{account}");
        control_plane.grant(namespace, &user, VERBS);
        let token = control_plane.token(namespace, account);
        wait_for_status(&world, &User::Token(token.clone()), 404);
        token
    });
    let file = world.path().join("token");
    fs::write(&file, &old).expect("written");
    let kubeconfig = kubeconfig_as(&world, &json!({"tokenFile": file}));
    let holder = witness(&world, &kubeconfig).start();
    world.wait_for_starts(1);

    replace(&file, &new);
    let account = format!("/api/v1/namespaces/{namespace}/serviceaccounts/old");
    let (status, _) = control_plane.raw(Method::DELETE, &account, None);
    assert_eq!(status, 200);
    wait_for_status(&world, &User::Token(old), 401);
    assert_holding(&world);
    let said = holder.stderr();
    assert!(!said.contains("failed to renew"), "{said}");
    holder.signal(Signal::SIGTERM);
    holder.wait().assert_signal(Signal::SIGTERM);
    assert_eq!(world.holder(), "");
}

#[test]
fn a_client_certificate_that_rotates_file_by_file_is_taken_up_when_it_is_whole() {
    let control_plane = ControlPlane::shared();
    let world = World::on_kubernetes();
    let namespace = world.namespace();
    let [old, new] = ["old", "new"].map(|user| {
        control_plane.grant(namespace, user, VERBS);
        let identity = control_plane.client_certificate(user, &[]);
        wait_for_status(&world, &User::Certificate(identity.clone()), 404);
        identity
    });
    let [certificate, key] = ["certificate", "key"].map(|name| world.path().join(name));
    fs::write(&certificate, &old.certificate).expect("written");
    fs::write(&key, &old.key).expect("written");
    let user = json!({"client-certificate": certificate, "client-key": key});
    let holder = witness(&world, &kubeconfig_as(&world, &user)).start();
    world.wait_for_starts(1);

    // Half-way, certificate and key don't match, and what was read before has to do.
    replace(&certificate, &new.certificate);
    holder.wait_until_it_says("can't renew the credentials");
    assert_holding(&world);
    replace(&key, &new.key);
    // Nothing tells when it has read them, but it looks before each renewal.
    assert_holding(&world);
    let binding =
        format!("/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}/rolebindings/old");
    let (status, _) = control_plane.raw(Method::DELETE, &binding, None);
    assert_eq!(status, 200);
    wait_for_status(&world, &User::Certificate(old), 403);
    assert_holding(&world);
    let said = holder.stderr();
    assert!(!said.contains("failed to renew"), "{said}");
}

// === Credential plugins ===

/// A plugin that is a shell script. It starts with one line in `runs`.
struct Plugin {
    kubeconfig: PathBuf,
    directory: PathBuf,
}

impl Plugin {
    /// Writes a plugin and a kubeconfig that names it. The script runs in the world's directory.
    fn new(world: &World<'_>, script: &str) -> Self {
        let directory = world.path().to_owned();
        let program = directory.join("plugin");
        let script = format!(
            "#!/bin/sh\ncd '{}'\necho $$ >>runs\n{script}",
            directory.display()
        );
        fs::write(&program, script).expect("written");
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("made executable");
        let exec = json!({
            "apiVersion": "client.authentication.k8s.io/v1",
            "command": program,
            "interactiveMode": "Never",
        });
        let kubeconfig = kubeconfig_as(world, &json!({"exec": exec}));
        Self {
            kubeconfig,
            directory,
        }
    }

    /// The pids of the plugin's runs so far.
    fn runs(&self) -> Vec<i32> {
        pids(&self.directory.join("runs"))
    }
}

fn pids(path: &Path) -> Vec<i32> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines().filter_map(|line| line.parse().ok()).collect()
}

/// A script that gives this token.
fn gives(token: &str) -> String {
    let credential = json!({
        "apiVersion": "client.authentication.k8s.io/v1",
        "kind": "ExecCredential",
        "status": {"token": token},
    });
    format!("echo '{credential}'\n")
}

/// The token of a new service account of the world's that may use the lease.
fn token(world: &World<'_>) -> String {
    let control_plane = ControlPlane::shared();
    let namespace = world.namespace();
    let user = format!("system:serviceaccount:{namespace}:plugged");
    control_plane.grant(namespace, &user, VERBS);
    let token = control_plane.token(namespace, "plugged");
    wait_for_status(world, &User::Token(token.clone()), 404);
    token
}

#[test]
fn a_credential_plugin_runs_once_for_a_token_that_lasts() {
    let world = World::on_kubernetes();
    let plugin = Plugin::new(&world, &gives(&token(&world)));
    let holder = witness(&world, &plugin.kubeconfig).start();
    world.wait_for_starts(1);
    assert_holding(&world);
    holder.signal(Signal::SIGTERM);
    holder.wait().assert_signal(Signal::SIGTERM);
    assert_eq!(world.holder(), "");
    assert_eq!(plugin.runs().len(), 1);
}

#[test]
fn a_credential_plugin_that_fails_at_first_or_gives_an_old_token_is_run_again() {
    let world = World::on_kubernetes();
    let token = token(&world);
    for first in ["exit 3\n", &gives("no-such-token")] {
        let script = format!(
            "if ! [ -e tried ]; then touch tried; {first}exit; fi\n{}",
            gives(&token)
        );
        let plugin = Plugin::new(&world, &script);
        let runs = plugin.runs().len();
        let finished = lease_exec(&world, &plugin.kubeconfig)
            .command(["echo", "done"])
            .run();
        assert_eq!(finished.assert_code(0).stdout(), "done\n");
        assert_eq!(plugin.runs().len(), runs + 2);
        fs::remove_file(world.path().join("tried")).expect("removed");
    }
}

#[test]
fn a_credential_plugin_that_hangs_holds_up_neither_an_attempt_nor_the_end() {
    let world = World::on_kubernetes();
    let hanging = "sleep 7777 & echo $! >>children\nwait\n";
    let plugin = Plugin::new(&world, hanging);
    let assert_nothing_stays = |runs: usize| {
        let children = pids(&world.path().join("children"));
        let all = [plugin.runs(), children].concat();
        assert_eq!(all.len(), 2 * runs, "{all:?}");
        wait_until(format!("{all:?} are dead"), LIMIT, || {
            (!all.iter().any(|pid| is_alive(*pid))).then_some(())
        });
    };
    lease_exec(&world, &plugin.kubeconfig)
        .args(["-q", "--no-wait"])
        .command(["true"])
        .run()
        .assert_code(69)
        .assert_says("no answer within 2s");
    assert_nothing_stays(1);

    let candidate = lease_exec(&world, &plugin.kubeconfig)
        .command(["true"])
        .start();
    candidate.wait_until_it_says("can't reach the store");
    candidate.signal(Signal::SIGTERM);
    // Far less than the plugin takes, and than it is allowed.
    candidate.wait().assert_signal(Signal::SIGTERM);
    assert_nothing_stays(2);
    assert!(world.lease().is_none());
}

#[test]
fn no_signal_is_blocked_in_a_credential_plugin() {
    let world = World::on_kubernetes();
    let look = "grep -h SigBlk /proc/self/status /proc/$PPID/status >blocked";
    let plugin = Plugin::new(&world, &format!("{look}\n{}", gives(&token(&world))));
    lease_exec(&world, &plugin.kubeconfig)
        .command(["true"])
        .run()
        .assert_code(0);
    let blocked = fs::read_to_string(world.path().join("blocked")).expect("read");
    let [of_plugin, ours] = blocked.lines().collect::<Vec<_>>()[..] else {
        panic!("not two masks: {blocked}");
    };
    let nothing = "SigBlk:\t0000000000000000";
    assert_eq!(of_plugin, nothing);
    assert_ne!(
        ours, nothing,
        "a plugin that inherited our mask would not be noticed"
    );
}

#[test]
fn a_credential_plugin_without_credentials_is_one_sentence_and_78() {
    let world = World::on_kubernetes();
    for (script, text) in [
        ("echo no", "printed something else than an ExecCredential"),
        ("echo '{}'", "gave neither a token nor a client certificate"),
        ("exit 3", "failed with exit status: 3"),
        ("kill -KILL $$", "failed with signal: 9"),
    ] {
        let plugin = Plugin::new(&world, script);
        let program = world.path().join("plugin").display().to_string();
        let invocation = || lease_exec(&world, &plugin.kubeconfig).args(["-q"]);
        let finished = invocation().args(["--no-wait"]).command(["true"]).run();
        assert_refused(&finished, 78, &[&program, text]);
        // Without it a plugin gets another try, and of the first failure there is a line, too.
        let finished = invocation().command(["true"]).run();
        finished
            .assert_code(78)
            .assert_says(&program)
            .assert_says(text);
    }
    fs::remove_file(world.path().join("plugin")).expect("removed");
    let missing = lease_exec(
        &world,
        &kubeconfig_as(&world, &json!({"exec": {"command": "/nonexistent/plugin"}})),
    );
    let finished = missing.args(["-q"]).command(["true"]).run();
    assert_refused(&finished, 78, &["/nonexistent/plugin", "no such file"]);
    assert!(world.lease().is_none());
}

// === Proxies ===

#[test]
fn https_proxy_and_no_proxy_decide_the_way_to_the_api_server() {
    let world = World::on_kubernetes();
    let control_plane = ControlPlane::shared();
    let port = control_plane.port();
    let proxy = Proxy::start(Manner::Tunnel, port);
    // Loopback addresses are never proxied. This one is none, and leads to this machine as well; it
    // is not in the API server's certificate, though.
    let kubeconfig = kubeconfig(&world, User::Admin, |config| {
        cluster(config)["server"] = json!(format!("https://0.0.0.0:{port}"));
        cluster(config)["tls-server-name"] = json!("localhost");
    });
    let exact = format!("0.0.0.0:{port}");
    let other_port = format!("0.0.0.0:{}", port ^ 1);
    for (exceptions, is_tunnelled) in [
        ("", true),
        ("example.com,10.0.0.0/8,1.0.0.0", true),
        (&other_port, true),
        ("*", false),
        ("0.0.0.0", false),
        ("example.com, 0.0.0.0/8", false),
        (&exact, false),
    ] {
        for variables in [["HTTPS_PROXY", "NO_PROXY"], ["https_proxy", "no_proxy"]] {
            let before = proxy.tunnels().len();
            lease_exec(&world, &kubeconfig)
                .env(variables[0], format!("http://{}", proxy.address()))
                .env(variables[1], exceptions)
                .command(["true"])
                .run()
                .assert_code(0);
            let tunnels = &proxy.tunnels()[before..];
            assert_eq!(!tunnels.is_empty(), is_tunnelled, "NO_PROXY={exceptions}");
            assert!(tunnels.iter().all(|target| *target == exact), "{tunnels:?}");
        }
    }

    // The command gets the variables as they were.
    let finished = lease_exec(&world, &kubeconfig)
        .env("HTTPS_PROXY", proxy.address().to_string())
        .script("echo $HTTPS_PROXY");
    assert_eq!(
        finished.run().assert_code(0).stdout(),
        format!("{}\n", proxy.address())
    );
}

#[test]
fn loopback_is_never_proxied_but_by_the_kubeconfigs_own_word() {
    let world = World::on_kubernetes();
    let port = ControlPlane::shared().port();
    let by_kubeconfig = Proxy::start(Manner::Tunnel, port);
    let by_environment = Proxy::start(Manner::Tunnel, port);
    let variable = by_environment.address().to_string();
    world
        .lease_exec()
        .env("HTTPS_PROXY", &variable)
        .command(["true"])
        .run()
        .assert_code(0);
    let kubeconfig = kubeconfig(&world, User::Admin, |config| {
        cluster(config)["proxy-url"] = json!(format!("http://{}", by_kubeconfig.address()));
    });
    lease_exec(&world, &kubeconfig)
        .env("HTTPS_PROXY", &variable)
        .env("NO_PROXY", "*")
        .command(["true"])
        .run()
        .assert_code(0);
    let tunnels = by_kubeconfig.tunnels();
    assert!(!tunnels.is_empty(), "it went past the proxy-url");
    let server = format!("127.0.0.1:{port}");
    assert!(
        tunnels.iter().all(|target| *target == server),
        "{tunnels:?}"
    );
    assert_eq!(by_environment.tunnels(), [""; 0]);
}

#[test]
fn a_proxy_that_is_not_there_is_69_and_named() {
    let world = World::on_kubernetes();
    let address = format!("127.0.0.1:{}", free_port());
    let kubeconfig = kubeconfig(&world, User::Admin, |config| {
        cluster(config)["proxy-url"] = json!(format!("http://me:secret@{address}"));
    });
    let finished = lease_exec(&world, &kubeconfig)
        .args(["-q", "--no-wait"])
        .command(["true"])
        .run();
    assert_refused(&finished, 69, &["connection refused", "proxy", &address]);
    assert!(!finished.stderr.contains("secret"), "{}", finished.stderr);
}

// === Connections that die silently ===

/// A world's kubeconfig through a proxy that only forwards.
fn forwarded(world: &World<'_>) -> (Proxy, PathBuf) {
    let proxy = Proxy::start(Manner::Forward, ControlPlane::shared().port());
    let kubeconfig = kubeconfig(world, User::Admin, |config| {
        cluster(config)["server"] = json!(format!("https://{}", proxy.address()));
    });
    (proxy, kubeconfig)
}

#[test]
fn a_holder_whose_connections_become_black_holes_goes_on_over_fresh_ones() {
    let world = World::on_kubernetes();
    let (proxy, kubeconfig) = forwarded(&world);
    let holder = witness(&world, &kubeconfig).start();
    world.wait_for_starts(1);
    world.wait_for_renewal();
    let before = proxy.connections();
    proxy.black_hole();
    assert_holding(&world);
    assert!(
        proxy.connections() > before,
        "the old connections still work"
    );
    // The term did not even come near its end: one attempt was lost, and the next one was good.
    let failures = holder.stderr().matches("failed to renew").count();
    assert!(failures <= 1, "{}", holder.stderr());
    holder.signal(Signal::SIGTERM);
    holder.wait().assert_signal(Signal::SIGTERM);
    assert_eq!(world.holder(), "");
}

#[test]
fn a_standby_whose_watch_becomes_a_black_hole_takes_over_a_released_lease_after_the_duration() {
    let world = World::on_kubernetes();
    let holder = world.witness("10s").start();
    world.wait_for_starts(1);
    let (proxy, kubeconfig) = forwarded(&world);
    let standby = witness(&world, &kubeconfig).start();
    standby.wait_until_it_says("somebody else holds the lease");
    wait_until("the standby watches", LIMIT, || {
        (proxy.connections() >= 2).then_some(())
    });
    world.wait_for_renewal();
    proxy.black_hole();
    holder.signal(Signal::SIGTERM);
    holder.wait().assert_signal(Signal::SIGTERM);
    let released_at = crate::world::now();
    let log = world.wait_for_starts_within(2, LIMIT);
    log.assert_exclusive();
    // The record's duration since the last renewal that it saw, one attempt on the connection that
    // is dead as well, a retry period, and as much again for a slow machine.
    let waited = log.runs[1].started.saturating_sub(released_at);
    let limit = Duration::from_secs(20).as_nanos();
    assert!(waited < limit, "it took over {waited} ns after the release");
}

#[test]
fn tcp_asks_within_seconds_whether_the_other_side_of_an_idle_watch_is_there() {
    let world = World::on_kubernetes();
    let holder = world.witness("600s").start();
    world.wait_for_starts(1);
    let (proxy, kubeconfig) = forwarded(&world);
    let standby = witness(&world, &kubeconfig).start();
    standby.wait_until_it_says("somebody else holds the lease");
    // proc(5) has no more than the names; the kernel's Documentation/networking/proc_net_tcp.rst
    // explains: the remote address in hexadecimal, the state (01 is established), and the timer that
    // runs (02 is keepalive) with the hundredths of a second that are left.
    let port = format!(":{:04X}", proxy.address().port());
    let timers = || {
        let table = fs::read_to_string("/proc/net/tcp").expect("read");
        let rows = table.lines().map(|line| line.split_whitespace().collect());
        let ours = rows.filter(|row: &Vec<&str>| row[2].ends_with(&port) && row[3] == "01");
        let timers = ours.map(|row| row[5].split_once(':').expect("timer and time"));
        let timers = timers.map(|(timer, left)| {
            let left = u64::from_str_radix(left, 16).expect("hexadecimal");
            (timer == "02").then(|| Duration::from_millis(left * 10))
        });
        timers.collect::<Vec<_>>()
    };
    // The five seconds of silence after which it asks, and some for the kernel's rounding.
    let limit = Duration::from_secs(6);
    let is_asked = |left: &Option<Duration>| left.is_some_and(|left| left < limit);
    wait_until("the connections are asked by TCP", LIMIT, || {
        let timers = timers();
        let is_watching = proxy.connections() >= 2 && !timers.is_empty();
        (is_watching && timers.iter().all(is_asked)).then_some(())
    });
    drop(holder);
}

// === Who, and where ===

#[test]
fn impersonation_needs_the_right_and_then_counts_as_the_other_user() {
    let control_plane = ControlPlane::shared();
    let world = World::on_kubernetes();
    let namespace = world.namespace();
    let [boss, worker] = ["boss", "worker"].map(|name| format!("{name}-{namespace}"));
    control_plane.grant(namespace, &worker, VERBS);
    wait_for_status(&world, &User::named(&worker), 404);
    let kubeconfig = kubeconfig(&world, User::named(&boss), |_| {});
    let run = || {
        lease_exec(&world, &kubeconfig)
            .args(["-q", "--no-wait", "--as", &worker])
            .command(["true"])
            .run()
    };
    let rule = json!({
        "apiGroups": [""],
        "resources": ["users"],
        "resourceNames": [worker],
        "verbs": ["impersonate"],
    });
    let shown = format!(
        "{{apiGroups: [\"\"], resources: [users], resourceNames: [{worker:?}], verbs: [impersonate]}}"
    );
    assert_refused(&run(), 77, &[&boss, &worker, "ClusterRole", &shown]);
    assert!(world.lease().is_none());

    // Exactly the rule that the message names.
    let role = json!({"metadata": {"name": boss}, "rules": [rule]});
    let group = "rbac.authorization.k8s.io";
    let binding = json!({
        "metadata": {"name": boss},
        "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": boss},
        "subjects": [{"apiGroup": group, "kind": "User", "name": boss}],
    });
    for (kind, object) in [("clusterroles", role), ("clusterrolebindings", binding)] {
        let path = format!("/apis/{group}/v1/{kind}");
        let (status, answer) = control_plane.raw(Method::POST, &path, Some(object));
        assert_eq!(status, 201, "{answer}");
    }
    wait_until("the new right arrives", LIMIT, || {
        (run().status.code() == Some(0)).then_some(())
    });
    assert_eq!(world.holder(), "");
}

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
