//! The way there: proxies, and connections that die silently.

use std::{
    fs,
    io::{Read, Write},
    net::TcpListener,
    path::PathBuf,
    thread,
    time::Duration,
};

use nix::sys::signal::Signal;
use serde_json::json;

use super::{assert_holding, assert_refused, cluster, kubeconfig, lease_exec, witness};
use crate::{
    control_plane::{ControlPlane, User, free_port},
    proxy::{Manner, Proxy},
    wait::{LIMIT, wait_until},
    world::{World, now},
};

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
        ("example.com,1.2.3.4/8,1.0.0.0", true),
        (&other_port, true),
        ("*", false),
        ("0.0.0.0", false),
        ("example.com, 1.2.3.4/7", false),
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

/// As through `ssh -D`. The proxy is asked by name, even for one that this machine does not know.
#[test]
fn a_lease_is_held_through_a_socks_proxy_which_looks_the_name_up() {
    let world = World::on_kubernetes();
    let proxy = Proxy::start(Manner::Socks, ControlPlane::shared().port());
    let kubeconfig = kubeconfig(&world, User::Admin, |config| {
        cluster(config)["server"] = json!("https://api.inside.test:6443");
        cluster(config)["tls-server-name"] = json!("localhost");
        cluster(config)["proxy-url"] = json!(format!("socks5://me:p%3Aw@{}", proxy.address()));
    });
    let holder = witness(&world, &kubeconfig).start();
    world.wait_for_starts(1);
    assert_holding(&world);
    // Its connection dies, and it makes another.
    proxy.black_hole();
    assert_holding(&world);
    let tunnels = proxy.tunnels();
    let expected = "socks api.inside.test:6443 me:p:w";
    assert!(tunnels.len() >= 2, "{tunnels:?}");
    assert!(tunnels.iter().all(|asked| asked == expected), "{tunnels:?}");
    holder.signal(Signal::SIGTERM);
    holder.wait().assert_signal(Signal::SIGTERM);
    assert_eq!(world.holder(), "");
}

#[test]
fn a_socks_proxy_that_refuses_is_69_and_quoted() {
    let world = World::on_kubernetes();
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let address = listener.local_addr().expect("it has an address");
    thread::spawn(move || {
        for client in listener.incoming() {
            let mut client = client.expect("a connection");
            // "No acceptable methods" (RFC 1928, 3).
            let _ = client
                .read(&mut [0; 16])
                .map(|_| client.write_all(&[5, 0xff]));
        }
    });
    let kubeconfig = kubeconfig(&world, User::Admin, |config| {
        cluster(config)["proxy-url"] = json!(format!("socks5h://me:secret@{address}"));
    });
    let invocation = lease_exec(&world, &kubeconfig).args(["-q", "--no-wait"]);
    let finished = invocation.command(["true"]).run();
    let place = format!("through the proxy socks5h://{address}");
    assert_refused(&finished, 69, &["the proxy refuses the connection", &place]);
    assert!(!finished.stderr.contains("secret"), "{}", finished.stderr);
}

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
    let released_at = now();
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
