//! What the other tests rely on, and that nothing is left of a control plane.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use http::Method;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde_json::json;

use super::{ControlPlane, ElectionTimes, User};
use crate::surroundings::as_the_caller;
use crate::wait::{LIMIT, wait_until};

#[test]
fn a_lease_is_written_read_and_deleted() {
    let control_plane = ControlPlane::shared();
    control_plane.create_namespace("harness-lease");
    assert_eq!(control_plane.get_lease("harness-lease", "nightly"), None);

    let lease = json!({"spec": {"holderIdentity": "me"}});
    let written = control_plane.put_lease("harness-lease", "nightly", lease);
    assert_eq!(
        control_plane.get_lease("harness-lease", "nightly"),
        Some(written)
    );

    control_plane.delete_lease("harness-lease", "nightly");
    assert_eq!(control_plane.get_lease("harness-lease", "nightly"), None);
}

#[test]
fn a_user_without_a_role_may_not_read_a_lease() {
    let answer = read_lease_as(User::named("nobody-in-particular"));
    assert!(matches!(answer, Ok((403, _))), "{answer:?}");
}

#[test]
fn a_certificate_names_groups_too() {
    let identity = ControlPlane::shared().client_certificate("chief", &["system:masters"]);
    let answer = read_lease_as(User::Certificate(identity));
    assert!(matches!(answer, Ok((404, _))), "{answer:?}");
}

#[test]
fn a_token_names_its_service_account() {
    let token = ControlPlane::shared().token("default", "harness");
    let (status, answer) = read_lease_as(User::Token(token)).expect("an answer");
    let message = answer["message"].as_str().unwrap_or_default();
    assert_eq!(status, 403);
    assert!(
        message.contains("system:serviceaccount:default:harness"),
        "{message}"
    );
}

#[test]
fn an_expired_certificate_is_not_accepted() {
    let identity = ControlPlane::shared().expired_client_certificate("late");
    let answer = read_lease_as(User::Certificate(identity));
    assert!(matches!(answer, Ok((401, _))), "{answer:?}");
}

#[test]
fn a_certificate_of_version_1_is_accepted_by_the_server_and_refused_by_rustls() {
    let control_plane = ControlPlane::shared();
    let identity = control_plane.x509_v1_client_certificate("old-format");
    let kubeconfig = control_plane.kubeconfig(User::Certificate(identity.clone()));
    let kubeconfig = kubeconfig.to_str().expect("a path in UTF-8");
    let kubectl =
        control_plane.kubectl(&["--kubeconfig", kubeconfig, "get", "lease", "nightly"], "");
    let message = String::from_utf8_lossy(&kubectl.stderr);
    assert!(
        message.contains("User \"old-format\" cannot get resource"),
        "{message}"
    );

    let answer = read_lease_as(User::Certificate(identity));
    let message = answer.expect_err("rustls doesn't know version 1");
    assert!(message.contains("UnsupportedCertVersion"), "{message}");
}

#[test]
fn kubectl_applies_a_manifest() {
    let control_plane = ControlPlane::shared();
    let manifest = "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: harness-kubectl\n";
    let kubectl = control_plane.kubectl(&["apply", "-f", "-"], manifest);
    assert!(
        kubectl.status.success(),
        "{}",
        String::from_utf8_lossy(&kubectl.stderr)
    );
    let (status, _) = control_plane.raw(Method::GET, "/api/v1/namespaces/harness-kubectl", None);
    assert_eq!(status, 200);
}

#[test]
fn the_servers_certificate_is_valid_by_name_too() {
    let control_plane = ControlPlane::shared();
    let authority = control_plane.directory().join("harness-authority.pem");
    fs::write(&authority, control_plane.ca_pem()).expect("write to the control plane's directory");
    let server = format!("--server=https://localhost:{}", control_plane.port());
    let authority = format!("--certificate-authority={}", authority.display());
    let kubectl = control_plane.kubectl(&[&server, &authority, "get", "--raw", "/readyz"], "");
    assert_eq!(
        String::from_utf8_lossy(&kubectl.stdout),
        "ok",
        "{kubectl:?}"
    );
}

#[test]
fn a_scheduler_takes_the_lease_of_another_that_was_stopped() {
    let control_plane = ControlPlane::shared();
    control_plane.create_namespace("harness-scheduler");
    let start =
        || control_plane.start_scheduler("harness-scheduler", "nightly", ElectionTimes::SHORT);
    let (mut first, mut second) = (start(), start());
    // Which of the two will lead is for them to decide.
    wait_until("a scheduler leads", LIMIT, || {
        (first.has_led() || second.has_led()).then_some(())
    });
    let (leader, standby) = if first.has_led() {
        (&mut first, &mut second)
    } else {
        (&mut second, &mut first)
    };
    assert!(!standby.has_led());
    leader.stop();
    wait_until("the other one leads", LIMIT, || {
        standby.has_led().then_some(())
    });
    leader.resume();
    wait_until("the stopped one has ended", LIMIT, || {
        (!leader.is_running()).then_some(())
    });
    assert!(leader.says("leaderelection lost"), "{}", leader.log());
}

#[test]
fn the_api_server_continues_after_a_stop_and_keeps_its_data_when_killed() {
    let control_plane = ControlPlane::start();
    control_plane.put_lease(
        "default",
        "nightly",
        json!({"spec": {"holderIdentity": "me"}}),
    );
    control_plane.stop_api_server();
    control_plane.continue_api_server();
    let before = control_plane.get_lease("default", "nightly");
    assert!(before.is_some());

    control_plane.kill_api_server();
    let url = control_plane.url();
    let answer = control_plane.raw_as(User::Admin, Method::GET, "/readyz", None);
    assert!(answer.is_err(), "{url} answered: {answer:?}");
    control_plane.start_api_server();
    assert_eq!(control_plane.get_lease("default", "nightly"), before);
}

#[test]
fn etcd_keeps_its_data_when_killed_behind_an_api_server_on_all_addresses() {
    // All of 127.0.0.0/8 is this machine.
    let address = Ipv4Addr::new(127, 0, 0, 2);
    let control_plane = ControlPlane::start_reachable_at(address);
    let lease = json!({"spec": {"holderIdentity": "me"}});
    let written = control_plane.put_lease("default", "nightly", lease);
    control_plane.kill_etcd();
    control_plane.start_etcd();
    assert_eq!(control_plane.get_lease("default", "nightly"), Some(written));
    let at_address = TcpStream::connect((address, control_plane.port()));
    assert!(at_address.is_ok(), "{at_address:?}");
}

#[test]
fn etcd_answers_again_after_a_stop() {
    let control_plane = ControlPlane::start();
    let keys = || {
        let mut etcdctl = control_plane.etcdctl();
        etcdctl.args([
            "--command-timeout=1s",
            "get",
            "--keys-only",
            "--prefix",
            "/registry/leases/",
        ]);
        etcdctl.output().expect("run etcdctl")
    };
    control_plane.put_lease(
        "default",
        "nightly",
        json!({"spec": {"holderIdentity": "me"}}),
    );
    control_plane.stop_etcd();
    assert!(!keys().status.success(), "a stopped etcd has answered");
    control_plane.continue_etcd();
    let keys = wait_until("etcd answers", LIMIT, || {
        Some(keys()).filter(|keys| keys.status.success())
    });
    let keys = String::from_utf8_lossy(&keys.stdout).into_owned();
    assert!(keys.contains("/registry/leases/default/nightly"), "{keys}");
    assert!(control_plane.get_lease("default", "nightly").is_some());
}

#[test]
fn nothing_is_left_when_dropped_even_of_stopped_servers() {
    let control_plane = ControlPlane::start();
    let directory = control_plane.directory().to_path_buf();
    let group = control_plane.group.pid();
    control_plane.stop_api_server();
    control_plane.stop_etcd();
    drop(control_plane);
    assert_nothing_is_left(group, &directory);
}

/// The test runs itself once more in another process, which is killed.
#[test]
fn nothing_is_left_of_a_killed_test_process() {
    const IS_VICTIM: &str = "TEST_IS_VICTIM";
    if std::env::var_os(IS_VICTIM).is_some() {
        be_killed(&ControlPlane::start());
    }
    // libtest names tests without the crate.
    let (_crate, module) = module_path!().split_once("::").expect("we are in a module");
    let name = format!("{module}::nothing_is_left_of_a_killed_test_process");
    let own = std::env::current_exe().expect("this program has a path");
    let mut victim = as_the_caller(&mut Command::new(own))
        .args([name.as_str(), "--exact", "--nocapture"])
        .env(IS_VICTIM, "")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        // All that the victim starts in its own group would be killed with it.
        .process_group(0)
        .spawn()
        .expect("start this program");
    let output = BufReader::new(victim.stdout.take().expect("standard output is a pipe"));
    let words = output
        .lines()
        .map_while(Result::ok)
        .find_map(|line| {
            line.split_once("control plane: ")
                .map(|(_, words)| words.to_owned())
        })
        .expect("the victim says which control plane it has started");
    let (group, directory) = words
        .split_once(' ')
        .expect("a process group and a directory");
    let group = Pid::from_raw(group.parse().expect("a process group"));
    let directory = Path::new(directory);
    assert!(directory.exists());
    assert_eq!(killpg(group, None), Ok(()));

    let victim_group = Pid::from_raw(i32::try_from(victim.id()).expect("the kernel's pids fit"));
    killpg(victim_group, Signal::SIGKILL).expect("kill the victim's process group");
    victim.wait().expect("wait for the victim");
    assert_nothing_is_left(group, directory);
}

fn be_killed(control_plane: &ControlPlane) -> ! {
    let group = control_plane.group.pid();
    let mut output = std::io::stdout();
    writeln!(
        output,
        "control plane: {group} {}",
        control_plane.directory().display()
    )
    .and_then(|()| output.flush())
    .expect("write to the test that waits for it");
    // Nothing will ever be read.
    let _ = std::io::stdin().read_line(&mut String::new());
    unreachable!("the test kills us, or its end does");
}

fn read_lease_as(user: User) -> Result<(u16, serde_json::Value), String> {
    ControlPlane::shared().raw_as(
        user,
        Method::GET,
        &super::lease_path("default", "none"),
        None,
    )
}

fn assert_nothing_is_left(group: Pid, directory: &Path) {
    wait_until(format!("{} is removed", directory.display()), LIMIT, || {
        (!directory.exists()).then_some(())
    });
    wait_until(format!("process group {group} has ended"), LIMIT, || {
        members(group).is_empty().then_some(())
    });
}

/// The processes of a group that have not ended. One that has, and that nobody waits for, is still
/// listed: an orphan's parent is a container's first process, and not every one of those is an init.
fn members(group: Pid) -> Vec<Pid> {
    fs::read_dir("/proc")
        .expect("list /proc")
        .filter_map(|entry| {
            let stat = fs::read_to_string(entry.ok()?.path().join("stat")).ok()?;
            // proc_pid_stat(5): the command's name, in parentheses, may contain anything.
            let (pid, rest) = stat.split_once(' ')?;
            let mut fields = rest.rsplit_once(')')?.1.split_whitespace();
            let (state, _parent, its_group) = (fields.next()?, fields.next()?, fields.next()?);
            let is_member = its_group.parse() == Ok(group.as_raw()) && state != "Z";
            is_member.then_some(Pid::from_raw(pid.parse().ok()?))
        })
        .collect()
}
