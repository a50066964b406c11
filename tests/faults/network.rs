//! Nodes with a network of their own, whose link can be cut.
//!
//! A node is a network namespace on a bridge; the API server and its proxies are reached at the
//! bridge's address.

use std::{
    net::Ipv4Addr,
    process::Command,
    sync::atomic::{AtomicUsize, Ordering},
};

use crate::{arena::Verdict, tally};

/// The bridge that nodes are connected to. It goes with this process.
pub(crate) struct Network {
    name: String,
    address: Ipv4Addr,
    nodes: AtomicUsize,
}

/// A network namespace. It goes when this is dropped, and with this process at the latest.
pub(crate) struct Namespace {
    pub(crate) name: String,
    bridge: String,
    /// The bridge's end of the link.
    port: String,
    address: Ipv4Addr,
    gateway: Ipv4Addr,
}

/// How a link is cut. Nobody is told: what is sent just never arrives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cut {
    Down,
    Requests,
    Answers,
}

impl Cut {
    /// What the summary calls it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Down => "links of nodes taken down",
            Self::Requests => "links of nodes cut towards the server",
            Self::Answers => "links of nodes cut towards the node",
        }
    }
}

impl Network {
    /// Makes the bridge, with an address that nobody on this machine has.
    pub(crate) fn new(cage: &str) -> Self {
        let used = ip(&["-o", "-4", "address"]);
        // A range that is for tests of networks (RFC 2544).
        // Processes that begin at once look in different places first.
        let first = std::process::id().to_le_bytes()[0];
        let free = (0..=255).map(|net| Ipv4Addr::new(198, 18, first.wrapping_add(net), 1));
        let mut free = free.filter(|address| !used.contains(&format!(" {address}/")));
        let address = free.next().expect("one of 256 networks is free");
        let network = Self {
            name: format!("{cage}b"),
            address,
            nodes: AtomicUsize::new(0),
        };
        let bridge = &network.name;
        // An address of its own. Otherwise it has that of its lowest port, and when other lanes'
        // ports come and go it changes, at which the kernel forgets all neighbours.
        let card = ["address", "02:00:00:00:01:00"];
        ip(&[&["link", "add", bridge], &card[..], &["type", "bridge"]].concat());
        ip(&["address", "add", &format!("{address}/24"), "dev", bridge]);
        ip(&["link", "set", bridge, "up"]);
        network
    }

    /// Where the API server is for nodes.
    pub(crate) fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// A new node.
    pub(crate) fn namespace(&self, cage: &str) -> Namespace {
        let number = self.nodes.fetch_add(1, Ordering::Relaxed);
        let [first, second, third, _] = self.address.octets();
        // Old nodes' numbers come back after a long while, when they are long gone.
        let last = u8::try_from(number % 250).expect("less than 250") + 2;
        let namespace = Namespace {
            name: format!("{cage}n{number}"),
            bridge: self.name.clone(),
            port: format!("{cage}v{}", number % 250),
            address: Ipv4Addr::new(first, second, third, last),
            gateway: self.address,
        };
        let Namespace { name, port, .. } = &namespace;
        ip(&["netns", "add", name]);
        ip(&[
            "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", name,
        ]);
        ip(&["link", "set", port, "master", &self.name, "up"]);
        let address = format!("{}/24", namespace.address);
        ip(&["-n", name, "address", "add", &address, "dev", "eth0"]);
        ip(&["-n", name, "link", "set", "eth0", "up"]);
        ip(&["-n", name, "link", "set", "lo", "up"]);
        namespace
    }
}

impl Namespace {
    /// Cuts the link until it is mended.
    pub(crate) fn cut(&self, cut: Cut) {
        let (node, gateway) = (self.address.to_string(), self.gateway.to_string());
        let replace = |to| {
            let permanent = ["lladdr", NOWHERE, "nud", "permanent", "dev"];
            [&["neighbour", "replace", to][..], &permanent].concat()
        };
        match cut {
            Cut::Down => {
                ip(&["link", "set", &self.port, "down"]);
            }
            Cut::Requests => {
                ip(&[&["-n", &self.name][..], &replace(&gateway), &["eth0"]].concat());
            }
            Cut::Answers => {
                ip(&[&replace(&node)[..], &[&self.bridge]].concat());
            }
        }
        self.stir();
    }

    /// Ends a cut, which counts only if nothing else has ended it before.
    pub(crate) fn mend(&self, cut: Cut) -> Verdict {
        if !self.is_cut(cut) {
            return Err(format!("the cut {cut:?} was healed before its time"));
        }
        tally::count(cut.name());
        let (node, gateway) = (self.address.to_string(), self.gateway.to_string());
        let delete = ["neighbour", "del"];
        match cut {
            Cut::Down => ip(&["link", "set", &self.port, "up"]),
            Cut::Requests => {
                let own = ["-n", &self.name];
                ip(&[&own[..], &delete, &[&gateway, "dev", "eth0"]].concat())
            }
            Cut::Answers => ip(&[&delete[..], &[&node, "dev", &self.bridge]].concat()),
        };
        Ok(())
    }

    fn is_cut(&self, cut: Cut) -> bool {
        let (node, gateway) = (self.address.to_string(), self.gateway.to_string());
        let list = ["-o", "neighbour", "show", "nud", "permanent", "to"];
        match cut {
            Cut::Down => !ip(&["-o", "link", "show", "up", "dev", &self.port]).contains(&self.port),
            Cut::Requests => {
                let own = ["-n", &self.name];
                ip(&[&own[..], &list, &[&gateway]].concat()).contains(NOWHERE)
            }
            Cut::Answers => ip(&[&list[..], &[&node]].concat()).contains(NOWHERE),
        }
    }

    /// A port comes and goes, as those of other lanes do: one with the lowest address of all.
    fn stir(&self) {
        let (port, [.., last]) = (format!("{}s", self.port), self.address.octets());
        let card = format!("02:00:00:00:00:{last:02x}");
        let card = ["address", &card, "type", "veth"];
        let peer = ["peer", "name", "stir", "netns", &self.name];
        ip(&[&["link", "add", &port], &card[..], &peer].concat());
        ip(&["link", "set", &port, "master", &self.bridge, "up"]);
        ip(&["link", "del", &port]);
    }
}

/// A card that nobody has.
const NOWHERE: &str = "02:00:00:00:00:01";

impl Drop for Namespace {
    fn drop(&mut self) {
        // What fails here the janitor does; we may be unwinding already.
        let _ = Command::new("ip")
            .args(["netns", "del", &self.name])
            .status();
    }
}

fn ip(arguments: &[&str]) -> String {
    let output = Command::new("ip").args(arguments).output();
    let output = output.expect("ip, of iproute2, can be run");
    let (text, problem) = (
        String::from_utf8_lossy(&output.stdout).into_owned(),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    );
    assert!(output.status.success(), "ip {arguments:?}: {problem}");
    text
}
