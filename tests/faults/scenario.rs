//! What can happen to the instances, by name.

use std::{net::Ipv4Addr, time::Duration};

use nix::sys::signal::Signal;

use crate::{
    arena::{Nodes, Setting},
    network::Cut,
    proxy::{Fault, Status, Way},
    random::Random,
    witness::Shape,
};

/// A kind of round.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    pub(crate) trouble: Trouble,
}

/// What a round does.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Trouble {
    /// A node's way to the API server is faulty for a while.
    Link(fn(&mut Random) -> Fault),
    /// Processes of the holder get a signal, and the stopped go on after a while.
    Process(Signal, Whom),
    /// The holder's network is cut for a while.
    Network(Cut),
    /// The servers fail for a while.
    Servers(Outage),
    /// Of two servers behind one name, one at a time fails for a while.
    OneServer,
    /// The holder is asked to end.
    HandOver,
    /// A bit of everything, to several at once.
    Mix(Nodes),
    /// Instances use different leases: they must be seen to overlap.
    Apart(Shape),
    /// Logs with every kind of overlap must be told from a good one.
    Forgery,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Whom {
    Front,
    Guard,
    Command,
    FrontAndGuard,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outage {
    ApiServerStopped,
    ApiServerKilled,
    ApiServerRestartedThrice,
    EtcdStopped,
    EtcdKilled,
}

/// Where a scenario is played.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Servers {
    /// Other rounds use them too.
    Shared,
    /// Only one round at a time uses them.
    Own,
    /// The same, and there may be a second API server at [`SECOND`].
    Two,
}

/// Where the second API server is, at the port of the first.
pub(crate) const SECOND: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);

/// What the summary calls the fault of one server.
pub(crate) const ONE_SERVER: &str = "one of two API servers stopped or killed";

impl Outage {
    /// What the summary calls it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::ApiServerStopped => "API server stopped",
            Self::ApiServerKilled | Self::ApiServerRestartedThrice => "API server killed",
            Self::EtcdStopped => "etcd stopped",
            Self::EtcdKilled => "etcd killed",
        }
    }
}

/// What the summary calls the fault of a hand-over.
pub(crate) const HAND_OVER: &str = "SIGTERM to lease-exec";

impl Scenario {
    /// What the summary calls the fault that this is about, if it is about one.
    pub(crate) fn fault(&self) -> Option<&'static str> {
        match self.trouble {
            // Its kind does not depend on the seed, only its size.
            Trouble::Link(fault) => Some(fault(&mut Random::new(0)).name()),
            Trouble::Process(kind, whom) => Some(signal_name(kind, whom)),
            Trouble::Network(cut) => Some(cut.name()),
            Trouble::Servers(outage) => Some(outage.name()),
            Trouble::OneServer => Some(ONE_SERVER),
            Trouble::HandOver => Some(HAND_OVER),
            Trouble::Mix(_) | Trouble::Apart(_) | Trouble::Forgery => None,
        }
    }

    /// The arena that it needs.
    pub(crate) fn setting(&self) -> Setting {
        let shape = match self.trouble {
            Trouble::Process(_, Whom::FrontAndGuard) => Shape::Group,
            Trouble::Apart(shape) => shape,
            Trouble::Mix(_) => Shape::Stubborn,
            Trouble::Link(_)
            | Trouble::Process(..)
            | Trouble::Network(_)
            | Trouble::Servers(_)
            | Trouble::OneServer
            | Trouble::HandOver
            | Trouble::Forgery => Shape::Tree,
        };
        let nodes = match self.trouble {
            Trouble::Network(_) => Nodes::Networks,
            Trouble::Apart(_) => Nodes::Apart,
            Trouble::OneServer => Nodes::OfTwoServers,
            Trouble::Link(_)
            | Trouble::Process(..)
            | Trouble::Servers(_)
            | Trouble::HandOver
            | Trouble::Forgery => Nodes::Local,
            Trouble::Mix(nodes) => nodes,
        };
        Setting { shape, nodes }
    }

    pub(crate) fn servers(&self) -> Servers {
        match self.trouble {
            Trouble::Servers(_) => Servers::Own,
            Trouble::OneServer => Servers::Two,
            _ => Servers::Shared,
        }
    }

    /// Whether it shows that the harness sees what it must.
    pub(crate) fn is_of_teeth(&self) -> bool {
        matches!(self.trouble, Trouble::Apart(_) | Trouble::Forgery)
    }
}

macro_rules! scenarios {
    ($($name:literal => $trouble:expr,)*) => {
        &[$(Scenario { name: $name, trouble: $trouble }),*]
    };
}

use Outage::*;
use Signal::{SIGKILL, SIGSTOP};
use Trouble::*;
use Whom::*;

/// All of them.
pub(crate) const SCENARIOS: &[Scenario] = scenarios! {
    "hand-over" => HandOver,
    "delay" => Link(delay),
    "requests-swallowed" => Link(|_| Fault::BlackHole(Way::Requests)),
    "answers-swallowed" => Link(|_| Fault::BlackHole(Way::Answers)),
    "all-swallowed" => Link(|_| Fault::BlackHole(Way::Both)),
    "reset" => Link(|_| Fault::Reset),
    "half-close" => Link(|_| Fault::HalfClose),
    "cut-request" => Link(|_| Fault::CutRequest),
    "cut-answer" => Link(|_| Fault::CutAnswer),
    "lost-answer" => Link(|_| Fault::LoseAnswer),
    "error-afterwards" => Link(|_| Fault::AnswerAfterwards(Status::TIMEOUT)),
    "late-write" => Link(late_write),
    "repeated-write" => Link(|_| Fault::RepeatWrite),
    "conflict" => Link(|_| Fault::Answer(Status::CONFLICT)),
    "too-many-requests" => Link(|_| Fault::Answer(Status::too_many(5))),
    "come-back-in-ten-minutes" => Link(|_| Fault::Answer(Status::too_many(600))),
    "server-error" => Link(|_| Fault::Answer(Status::INTERNAL)),
    "server-unavailable" => Link(|_| Fault::Answer(Status::UNAVAILABLE)),
    "server-timeout" => Link(|_| Fault::Answer(Status::TIMEOUT)),
    "unauthorized" => Link(|_| Fault::Answer(Status::UNAUTHORIZED)),
    "forbidden" => Link(|_| Fault::Answer(Status::FORBIDDEN)),
    "watch-frozen" => Link(|_| Fault::FreezeWatch),
    "watch-ended" => Link(|_| Fault::EndWatch),
    "watch-doubled" => Link(|_| Fault::DoubleWatch),
    "front-killed" => Process(SIGKILL, Front),
    "guard-killed" => Process(SIGKILL, Guard),
    "command-killed" => Process(SIGKILL, Command),
    "front-and-guard-killed" => Process(SIGKILL, FrontAndGuard),
    "front-stopped" => Process(SIGSTOP, Front),
    "guard-stopped" => Process(SIGSTOP, Guard),
    "command-stopped" => Process(SIGSTOP, Command),
    "front-and-guard-stopped" => Process(SIGSTOP, FrontAndGuard),
    "link-down" => Network(Cut::Down),
    "link-cut-to-server" => Network(Cut::Requests),
    "link-cut-to-node" => Network(Cut::Answers),
    "api-server-stopped" => Servers(ApiServerStopped),
    "api-server-killed" => Servers(ApiServerKilled),
    "api-server-restarted-thrice" => Servers(ApiServerRestartedThrice),
    "etcd-stopped" => Servers(EtcdStopped),
    "etcd-killed" => Servers(EtcdKilled),
    "one-of-two-api-servers" => OneServer,
    "mix" => Mix(Nodes::Local),
    "mix-with-networks" => Mix(Nodes::Networks),
    "teeth-lock" => Apart(Shape::Tree),
    "teeth-order" => Apart(Shape::Lockless),
    "teeth-forgery" => Forgery,
};

/// The scenario of this name.
pub(crate) fn named(name: &str) -> Option<&'static Scenario> {
    SCENARIOS.iter().find(|scenario| scenario.name == name)
}

/// A random fault of a link.
pub(crate) fn fault(random: &mut Random) -> Fault {
    let links = SCENARIOS
        .iter()
        .filter_map(|scenario| match scenario.trouble {
            Trouble::Link(fault) => Some(fault),
            _ => None,
        });
    let fault = random.pick(&links.collect::<Vec<_>>());
    fault(random)
}

fn delay(random: &mut Random) -> Fault {
    let mut wait = || random.time_between(Duration::from_millis(10), Duration::from_secs(3));
    Fault::Delay {
        request: wait(),
        answer: wait(),
    }
}

fn late_write(random: &mut Random) -> Fault {
    // From in time for the request to well after the next take-over.
    Fault::LateWrite(random.time_between(Duration::from_millis(200), Duration::from_secs(15)))
}

/// What the summary calls a signal.
pub(crate) fn signal_name(kind: Signal, whom: Whom) -> &'static str {
    match (kind, whom) {
        (Signal::SIGKILL, Whom::Front) => "SIGKILL to front",
        (Signal::SIGKILL, Whom::Guard) => "SIGKILL to the guard",
        (Signal::SIGKILL, Whom::Command) => "SIGKILL to the command",
        (Signal::SIGKILL, Whom::FrontAndGuard) => "SIGKILL to front and guard (each counted)",
        (_, Whom::Front) => "SIGSTOP to front",
        (_, Whom::Guard) => "SIGSTOP to the guard",
        (_, Whom::Command) => "SIGSTOP to the command",
        (_, Whom::FrontAndGuard) => "SIGSTOP to front and guard (each counted)",
    }
}
