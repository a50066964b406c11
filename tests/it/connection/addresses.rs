//! A name with several addresses, each of another API server, and name servers that keep silent.

use std::{
    fs,
    net::{Ipv4Addr, UdpSocket},
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU8, Ordering},
    thread,
};

use http::Method;
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::{cluster, edited, witness};
use crate::{
    control_plane::{ControlPlane, Requests, User},
    wait::{LIMIT, wait_until},
    world::{LEASE, Running, World, now},
};

const NAME: &str = "api.lease-exec.test";

/// A node with a network of its own, whose link leads to two addresses of this machine.
struct Node {
    namespace: String,
    /// Those of the API servers.
    servers: [Ipv4Addr; 2],
    /// Replaces those in `/etc` for lease-exec.
    files: PathBuf,
}

impl Node {
    fn new(directory: &Path) -> Self {
        // Tests begin at different places, as do processes that begin at once.
        static FIRST: AtomicU8 = AtomicU8::new(0);
        let first = std::process::id().to_le_bytes()[0].wrapping_mul(16);
        let first = first.wrapping_add(FIRST.fetch_add(1, Ordering::Relaxed));
        let used = ip(&["-o", "-4", "address"]);
        // A range that is for tests of networks (RFC 2544), from its second half.
        let nets = (0..=255_u8).map(|net| Ipv4Addr::new(198, 19, first.wrapping_add(net), 1));
        let mut free = nets.filter(|address| !used.contains(&format!(" {address}/")));
        let address = free.next().expect("one of 256 networks is free");
        let [a, b, net, _] = address.octets();
        let node = Self {
            namespace: format!("lease-exec-{}-{net}", std::process::id()),
            servers: [1, 2].map(|last| Ipv4Addr::new(a, b, net, last)),
            files: directory.to_owned(),
        };
        let (name, host) = (&node.namespace, format!("lx{net}"));
        ip(&["netns", "add", name]);
        ip(&[
            "link", "add", &host, "type", "veth", "peer", "name", "eth0", "netns", name,
        ]);
        for server in node.servers {
            ip(&["address", "add", &format!("{server}/24"), "dev", &host]);
        }
        ip(&["link", "set", &host, "up"]);
        let own = format!("{a}.{b}.{net}.3/24");
        ip(&["-n", name, "address", "add", &own, "dev", "eth0"]);
        ip(&["-n", name, "link", "set", "eth0", "up"]);
        ip(&["-n", name, "link", "set", "lo", "up"]);
        fs::write(directory.join("hosts"), "127.0.0.1 localhost\n").expect("written");
        fs::write(directory.join("resolv.conf"), "").expect("written");
        node
    }

    /// Names both addresses in the node's `/etc/hosts`.
    fn name_in_hosts(&self) {
        let [one, other] = self.servers;
        let hosts = format!("127.0.0.1 localhost\n{one} {NAME}\n{other} {NAME}\n");
        fs::write(self.files.join("hosts"), hosts).expect("written");
    }

    /// What is sent to this address just never arrives.
    fn cut(&self, server: Ipv4Addr) {
        let server = server.to_string();
        // Frames to a card that nobody has.
        let nowhere = ["lladdr", "02:00:00:00:00:01", "nud", "permanent"];
        let own = ["-n", &self.namespace, "neighbour", "replace", &server];
        ip(&[&own[..], &nowhere, &["dev", "eth0"]].concat());
    }

    fn mend(&self, server: Ipv4Addr) {
        let server = server.to_string();
        let own = ["-n", &self.namespace, "neighbour", "del", &server];
        ip(&[&own[..], &["dev", "eth0"]].concat());
    }

    /// The witness on this node, with the default durations.
    fn start(&self, world: &World<'_>, kubeconfig: &Path) -> Running {
        let files = self.files.display();
        let enter = format!(
            "mount --bind {files}/hosts /etc/hosts && mount --bind {files}/resolv.conf /etc/resolv.conf && \
             exec nsenter --net=/run/netns/{} \"$@\"",
            self.namespace
        );
        let shell = ["unshare", "--mount", "sh", "-c", &enter, "sh"];
        witness(world, kubeconfig).under(shell).start()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // We may be unwinding. The link goes with its other end.
        let delete = ["netns", "del", &self.namespace];
        let _ = Command::new("ip").args(delete).status();
    }
}

#[track_caller]
fn ip(arguments: &[&str]) -> String {
    let output = Command::new("ip").args(arguments).output();
    let output = output.expect("ip, of iproute2, can be run");
    assert!(output.status.success(), "ip {arguments:?}: {output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A kubeconfig that calls the servers by their name.
fn by_name(control_plane: &ControlPlane, world: &World<'_>) -> PathBuf {
    edited(control_plane, world, User::Admin, |config| {
        let url = format!("https://{NAME}:{}", control_plane.port());
        cluster(config)["server"] = json!(url);
        // They have a certificate for this name.
        cluster(config)["tls-server-name"] = json!("localhost");
    })
}

/// Waits until the lease was renewed more often than one attempt too many would allow, as one of the
/// servers sees it.
#[track_caller]
fn wait_for_renewals(world: &World<'_>, server: &Requests) {
    let path = format!(
        "/apis/coordination.k8s.io/v1/namespaces/{}/leases/{LEASE}",
        world.namespace()
    );
    let mut last = Value::Null;
    let mut renewals = 0;
    wait_until("the lease is renewed thrice", LIMIT, || {
        // A server that is overloaded is asked again.
        let answer = server.send(&Method::GET, &path, None).ok()?;
        let renewed = answer.body["spec"]["renewTime"].clone();
        if renewed.is_string() && renewed != last {
            last = renewed;
            renewals += 1;
        }
        (renewals > 3).then_some(())
    });
}

#[test]
fn of_two_api_servers_behind_one_name_either_may_be_cut_off_stop_or_die() {
    let directory = tempfile::tempdir().expect("made");
    let node = Node::new(directory.path());
    node.name_in_hosts();
    let [one, other] = node.servers;
    let control_plane = ControlPlane::start_on(&node.servers);
    let mut second = control_plane.start_second_api_server_on(other);
    let [at_first, at_second] =
        [&control_plane.url(), second.url()].map(|url| control_plane.client_at(url, User::Admin));
    let world = World::on(&control_plane);
    let kubeconfig = by_name(&control_plane, &world);

    // A candidate comes through whichever address is silent.
    node.cut(one);
    let holder = node.start(&world, &kubeconfig);
    world.wait_for_starts(1);
    node.mend(one);
    node.cut(other);
    let standby = node.start(&world, &kubeconfig);
    standby.wait_until_it_says("somebody else holds the lease");
    wait_for_renewals(&world, &at_first);
    node.mend(other);

    node.cut(one);
    wait_for_renewals(&world, &at_second);
    node.mend(one);

    control_plane.stop_api_server();
    wait_for_renewals(&world, &at_second);
    control_plane.continue_api_server();
    second.stop();
    wait_for_renewals(&world, &at_first);
    second.resume();

    control_plane.kill_api_server();
    wait_for_renewals(&world, &at_second);
    control_plane.start_api_server();
    second.stop();
    wait_for_renewals(&world, &at_first);

    let log = world.log();
    assert_eq!(log.runs.len(), 1, "{log:?}\n{}", holder.stderr());
    // The holder has an address left to release the lease to, and the standby one to take it from.
    let asked_at = now();
    holder.signal(Signal::SIGTERM);
    holder.wait().assert_signal(Signal::SIGTERM);
    let log = world.wait_for_starts(2);
    log.assert_exclusive();
    let waited = log.runs[1].started.saturating_sub(asked_at);
    // The standby's watch may be one of those that fell silent: then the duration has to pass.
    assert!(waited < 25_000_000_000, "it took over after {waited} ns");
    standby.signal(Signal::SIGTERM);
    standby.wait().assert_signal(Signal::SIGTERM);
}

/// Answers every question for an address with these, and others with nothing (RFC 1035, 4).
fn serve_names(server: &UdpSocket, addresses: &[Ipv4Addr]) -> Option<()> {
    let mut packet = [0; 512];
    let (length, client) = server.recv_from(&mut packet).ok()?;
    let end = 12 + packet[12..length].iter().position(|byte| *byte == 0)? + 5;
    // Type A, class IN.
    let is_known = packet[end - 4..end] == [0, 1, 0, 1];
    let answers = if is_known { addresses } else { &[] };
    let count = u8::try_from(answers.len()).expect("few");
    let mut answer = packet[..end].to_vec();
    answer[2..12].copy_from_slice(&[0x81, 0x80, 0, 1, 0, count, 0, 0, 0, 0]);
    for address in answers {
        // The name that was asked for, A, IN, one second, four bytes.
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 1, 0, 4]);
        answer.extend(address.octets());
    }
    server.send_to(&answer, client).ok()?;
    Some(())
}

#[test]
fn a_silent_name_server_delays_the_first_connection_and_no_other() {
    let directory = tempfile::tempdir().expect("made");
    let node = Node::new(directory.path());
    let [one, other] = node.servers;
    let control_plane = ControlPlane::start_on(&node.servers);
    let second = control_plane.start_second_api_server_on(other);
    let world = World::on(&control_plane);
    let kubeconfig = by_name(&control_plane, &world);
    let silent = UdpSocket::bind((one, 53)).expect("port 53 of a new address is free");
    let speaking = UdpSocket::bind((other, 53)).expect("port 53 of a new address is free");
    let servers = node.servers;
    thread::spawn(move || while serve_names(&speaking, &servers).is_some() {});
    // The C library asks the second one five seconds after the first.
    let file = directory.path().join("resolv.conf");
    fs::write(file, format!("nameserver {one}\nnameserver {other}\n")).expect("written");

    let holder = node.start(&world, &kubeconfig);
    holder.wait_until_it_says(&format!(
        "no answer within 2s: waited for the addresses of {NAME}"
    ));
    world.wait_for_starts(1);
    node.cut(one);
    let at_second = control_plane.client_at(second.url(), User::Admin);
    wait_for_renewals(&world, &at_second);
    node.mend(one);
    let log = world.log();
    assert_eq!(log.runs.len(), 1, "{log:?}");
    // At most the attempt on the connection that died was lost.
    let said = holder.stderr();
    assert!(said.matches("failed to renew").count() <= 1, "{said}");
    holder.signal(Signal::SIGTERM);
    holder.wait().assert_signal(Signal::SIGTERM);
    drop(silent);
}
