//! Credentials that change, and the plugins that give them.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime},
};

use http::Method;
use nix::sys::signal::Signal;
use serde_json::json;

use super::{
    VERBS, assert_holding, assert_refused, kubeconfig_as, lease_exec, replace, wait_for_status,
    witness,
};
use crate::{
    control_plane::{ControlPlane, User},
    pty::Terminal,
    wait::{LIMIT, wait_until},
    world::{LEASE, World, is_alive},
};

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

/// As where nobody renews the token of a pod that is bound to it, or where a script has put a token into a
/// file and never comes back. The API server remembers for some seconds that it has accepted a token.
#[test]
fn a_token_that_expires_costs_the_holder_its_command() {
    let control_plane = ControlPlane::shared();
    let world = World::on_kubernetes();
    let namespace = world.namespace();
    let user = format!("system:serviceaccount:{namespace}:brief");
    control_plane.grant(namespace, &user, VERBS);
    let longer = control_plane.token(namespace, "brief");
    wait_for_status(&world, &User::Token(longer), 404);
    let file = world.path().join("token");
    let life = Duration::from_secs(20);
    let token = control_plane.token_that_lives(namespace, "brief", life);
    let issued = SystemTime::now();
    fs::write(&file, token).expect("written");
    let kubeconfig = kubeconfig_as(&world, &json!({"tokenFile": file}));
    let holder = witness(&world, &kubeconfig).start();
    let log = world.wait_for_starts(1);
    let finished = holder.wait_within(LIMIT * 2);
    finished
        .assert_code(79)
        .assert_says("the API server does not accept the credentials");
    assert!(
        issued
            .elapsed()
            .is_ok_and(|age| age >= life - Duration::from_secs(1))
    );
    assert!(!is_alive(log.runs[0].pid));
}

/// As when a pod is deleted by force while its node can't be reached: nobody renews its token.
#[test]
fn a_token_bound_to_a_pod_that_is_deleted_costs_the_holder_its_command() {
    let control_plane = ControlPlane::shared();
    let world = World::on_kubernetes();
    let namespace = world.namespace();
    let user = format!("system:serviceaccount:{namespace}:bound");
    control_plane.grant(namespace, &user, VERBS);
    // It makes the service account.
    control_plane.token(namespace, "bound");
    let pods = format!("/api/v1/namespaces/{namespace}/pods");
    let pod = json!({
        "metadata": {"name": "worker"},
        "spec": {
            "serviceAccountName": "bound",
            "automountServiceAccountToken": false,
            "containers": [{"name": "worker", "image": "example.com/worker"}],
        },
    });
    let (status, pod) = control_plane.raw(Method::POST, &pods, Some(pod));
    assert_eq!(status, 201, "{pod}");
    let request = json!({"spec": {
        "expirationSeconds": 600,
        "boundObjectRef": {
            "kind": "Pod",
            "apiVersion": "v1",
            "name": "worker",
            "uid": pod["metadata"]["uid"],
        },
    }});
    let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/bound/token");
    let (status, answer) = control_plane.raw(Method::POST, &path, Some(request));
    assert_eq!(status, 201, "{answer}");
    let token = answer["status"]["token"].as_str().expect("a token");
    wait_for_status(&world, &User::Token(token.into()), 404);
    let file = world.path().join("token");
    fs::write(&file, token).expect("written");
    let kubeconfig = kubeconfig_as(&world, &json!({"tokenFile": file}));
    let holder = witness(&world, &kubeconfig).start();
    let log = world.wait_for_starts(1);
    world.wait_for_renewal();

    let pod = format!("{pods}/worker?gracePeriodSeconds=0");
    let (status, answer) = control_plane.raw(Method::DELETE, &pod, None);
    assert_eq!(status, 200, "{answer}");
    let finished = holder.wait_within(LIMIT * 2);
    finished
        .assert_code(79)
        .assert_says("the API server does not accept the credentials");
    assert!(!is_alive(log.runs[0].pid));
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

/// A plugin that is a shell script. It starts with one line in `runs`. The shell is bash, as dash
/// empties the signal mask.
struct Plugin {
    kubeconfig: PathBuf,
    directory: PathBuf,
}

impl Plugin {
    /// Writes a plugin and a kubeconfig that names it. The script runs in the world's directory.
    fn new(world: &World<'_>, script: &str) -> Self {
        Self::that_asks("Never", world, script)
    }

    /// The same with another `interactiveMode`.
    fn that_asks(mode: &str, world: &World<'_>, script: &str) -> Self {
        let directory = world.path().to_owned();
        let program = directory.join("plugin");
        let script = format!(
            "#!/usr/bin/env bash\ncd '{}'\necho $$ >>runs\n{script}",
            directory.display()
        );
        fs::write(&program, script).expect("written");
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("made executable");
        let exec = json!({
            "apiVersion": "client.authentication.k8s.io/v1",
            "command": program,
            "interactiveMode": mode,
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

/// A script that gives this token, with an end in so many seconds.
fn gives_for(seconds: u32, token: &str) -> String {
    let status = format!(
        r#""status":{{"expirationTimestamp":"'"$(date -u -d "@$(($(date +%s) + {seconds}))" +%FT%TZ)"'","#
    );
    gives(token).replace(r#""status":{"#, &status)
}

#[test]
fn a_credential_plugin_is_run_again_once_before_its_token_expires() {
    let world = World::on_kubernetes();
    let plugin = Plugin::new(&world, &gives_for(15, &token(&world)));
    let holder = witness(&world, &plugin.kubeconfig).start();
    world.wait_for_starts(1);
    let began = Instant::now();
    wait_until("the plugin has run thrice", LIMIT * 2, || {
        (plugin.runs().len() >= 3).then_some(())
    });
    // Each time after two thirds of its life, less the second that is lost in rounding.
    let elapsed = began.elapsed();
    assert!(elapsed > Duration::from_secs(15), "thrice in {elapsed:?}");
    assert_holding(&world);
    let said = holder.stderr();
    assert!(!said.contains("can't renew the credentials"), "{said}");
}

#[test]
fn a_token_that_is_no_header_costs_a_holder_nothing() {
    let world = World::on_kubernetes();
    // It is renewed after two thirds of its life, and the last third is what a slow machine has for the rest.
    let good = gives_for(60, &token(&world));
    let bad = gives("x").replace(r#""x""#, r#""a\u000ab""#);
    let script = format!("if ! [ -e tried ]; then touch tried; {good}exit; fi\n{bad}");
    let plugin = Plugin::new(&world, &script);
    let holder = witness(&world, &plugin.kubeconfig).start();
    world.wait_for_starts(1);
    wait_until("the bad token is refused", LIMIT * 2, || {
        let said = holder.stderr();
        let refused = "gave a token with characters that no token can have";
        said.contains(refused).then_some(())
    });
    assert_holding(&world);
}

#[test]
fn a_slow_credential_plugin_is_waited_for_where_nobody_waits_for_the_lease() {
    let world = World::on_kubernetes();
    let script = format!("sleep 3\n{}", gives(&token(&world)));
    let plugin = Plugin::new(&world, &script);
    let invocation = lease_exec(&world, &plugin.kubeconfig).args(["--no-wait"]);
    let finished = invocation.command(["echo", "done"]).run();
    assert_eq!(finished.assert_code(0).stdout(), "done\n");
}

#[test]
fn a_credential_plugin_is_answered_on_the_terminal_before_the_command_starts() {
    let world = World::on_kubernetes();
    let asks = "printf 'which code? ' >&2\nread -r code\n[ \"$code\" = 123 ] || exit 4\n";
    let script = format!("{asks}{}", gives(&token(&world)));
    for mode in ["Always", "IfAvailable"] {
        let plugin = Plugin::that_asks(mode, &world, &script);
        let kubeconfig = plugin.kubeconfig.display().to_string();
        let program = env!("CARGO_BIN_EXE_lease-exec");
        let argv = [
            "setsid",
            "--ctty",
            program,
            "--lease",
            LEASE,
            "--kubeconfig",
            &kubeconfig,
            "--",
        ];
        let argv = [&argv[..], &["sh", "-c", "read -r line; echo it got $line"]].concat();
        let mut terminal = Terminal::session(&world, &argv);
        terminal.wait_until_it_shows("which code?");
        terminal.type_in("123\n");
        terminal.wait_until_it_shows("started the command");
        terminal.type_in("this\n");
        terminal.wait_until_it_shows("it got this");
        assert!(terminal.wait().success(), "{}", terminal.shown());
    }
    let plugin = Plugin::that_asks("Always", &world, &script);
    let invocation = lease_exec(&world, &plugin.kubeconfig).args(["-q"]);
    // The tests themselves may have a terminal.
    let invocation = invocation.command(["true"]).under(["setsid", "--wait"]);
    let finished = invocation.run();
    assert_refused(&finished, 78, &["interactiveMode: Always", "terminal"]);
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
    let impatient = lease_exec(&world, &plugin.kubeconfig).args(["--wait", "3s"]);
    let finished = impatient.command(["true"]).run();
    let program = world.path().join("plugin");
    finished
        .assert_code(69)
        .assert_says(&format!("waited for the credential plugin {program:?}"));
    assert_nothing_stays(1);

    let candidate = lease_exec(&world, &plugin.kubeconfig)
        .command(["true"])
        .start();
    candidate.wait_until_it_says("can't get at the lease");
    candidate.signal(Signal::SIGTERM);
    // Far less than the plugin takes, and than it is allowed.
    candidate.wait().assert_signal(Signal::SIGTERM);
    assert_nothing_stays(2);
    assert!(world.lease().is_none());
}

#[test]
fn a_credential_plugin_has_the_mask_and_the_ignored_signals_that_we_were_given() {
    let world = World::on_kubernetes();
    let show = "grep -E 'Sig(Blk|Ign)' /proc/self/status >seen";
    let plugin = Plugin::new(&world, &format!("{show}\n{}", gives(&token(&world))));
    // We block most signals, and the standard library has SIGPIPE act again.
    let given = ["--block-signal=TERM,ALRM", "--ignore-signal=HUP,PIPE"];
    lease_exec(&world, &plugin.kubeconfig)
        .command(["true"])
        .under([&["env", "--default-signal"], &given[..]].concat())
        .run()
        .assert_code(0);
    let seen = fs::read_to_string(world.path().join("seen")).expect("the plugin has written it");
    let sets = seen.lines().filter_map(|line| {
        let (_, digits) = line.split_once(":\t")?;
        // The C library keeps 32 and 33 for itself.
        Some(u64::from_str_radix(digits, 16).ok()? & !(0b11 << 31))
    });
    let of = |signals: [i32; 2]| signals.map(|signal| 1 << (signal - 1)).iter().sum::<u64>();
    let expected = [
        of([libc::SIGTERM, libc::SIGALRM]),
        of([libc::SIGHUP, libc::SIGPIPE]),
    ];
    assert_eq!(sets.collect::<Vec<_>>(), expected, "{seen}");
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
    let plugin = world.path().join("absent").display().to_string();
    let missing = kubeconfig_as(&world, &json!({"exec": {"command": plugin}}));
    let missing = lease_exec(&world, &missing).args(["-q"]);
    let finished = missing.command(["true"]).run();
    assert_refused(&finished, 78, &[&plugin, "no such file"]);
    assert!(world.lease().is_none());
}
