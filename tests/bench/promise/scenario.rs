//! Who contends, what happens to the holder, and what becomes of the two commands.

use std::{
    fmt, process, thread,
    time::{Duration, Instant},
};

use http::Method;
use nix::sys::signal::Signal;
use serde_json::json;

use crate::{
    control_plane::{ControlPlane, User},
    gate::Gate,
    processes::{guard_of, signal},
    wait::{LIMIT, wait_until},
    witness::{Commands, DRAIN, Manner, now},
    world::{LEASE, Running, World},
};

/// A program that runs a command while it holds a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Program {
    LeaseExec,
    /// The wrapper with the time limit on requests that client-go's own helper sets.
    ClientGo,
    /// The wrapper on a client as clients are, without a time limit, and with ReleaseOnCancel.
    ClientGoReleasing,
}

/// A holder, and who waits for its lease.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pair {
    holder: Program,
    standby: Program,
}

/// The last one has a standby without client-go's slow polls, which hide how late its holder stops.
pub(crate) const PAIRS: [Pair; 4] = [
    Pair::of(Program::LeaseExec, Program::LeaseExec),
    Pair::of(Program::ClientGo, Program::ClientGo),
    Pair::of(Program::ClientGoReleasing, Program::ClientGoReleasing),
    Pair::of(Program::ClientGo, Program::LeaseExec),
];

impl Pair {
    const fn of(holder: Program, standby: Program) -> Self {
        Self { holder, standby }
    }

    pub(crate) fn name(self) -> &'static str {
        match (self.holder, self.standby) {
            (Program::LeaseExec, _) => "lease-exec",
            (Program::ClientGo, Program::LeaseExec) => "client-go, lease-exec as its standby",
            (Program::ClientGo, _) => "client-go",
            (Program::ClientGoReleasing, _) => "client-go, no request timeout, ReleaseOnCancel",
        }
    }
}

/// What happens to a holder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    LateAnswer,
    Replaced,
    Paused,
    Hang,
    Killed,
    StubbornCommand,
    Terminated,
}

pub(crate) const FAULTS: [Fault; 7] = [
    Fault::LateAnswer,
    Fault::Replaced,
    Fault::Paused,
    Fault::Hang,
    Fault::Killed,
    Fault::StubbornCommand,
    Fault::Terminated,
];

/// What the witness saw.
pub(crate) struct Outcome {
    meeting: Meeting,
    /// How long after the end of the command the lease left its holder, and whether it did so
    /// before, in the one case that is about it.
    release: Option<(Duration, Order)>,
}

/// How the holder's command and the next one met.
enum Meeting {
    /// So long after the end of the one the other began.
    Apart(Duration),
    Together(Duration),
    /// So long, and so many of the holder's processes lived on when it was looked at last.
    Endless(Duration, usize),
}

impl Meeting {
    /// What makes one worse than another.
    fn badness(&self) -> (u8, Duration) {
        match self {
            Self::Apart(gap) => (0, Duration::MAX - *gap),
            Self::Together(time) => (1, *time),
            Self::Endless(time, _) => (2, *time),
        }
    }
}

impl Outcome {
    /// The worse of two.
    pub(crate) fn or_worse(self, other: Self) -> Self {
        match self.meeting.badness() >= other.meeting.badness() {
            true => self,
            false => other,
        }
    }
}

#[derive(Clone, Copy)]
enum Order {
    Before,
    After,
}

impl Fault {
    pub(crate) fn letter(self) -> char {
        match self {
            Self::LateAnswer => 'a',
            Self::Replaced => 'b',
            Self::Paused => 'c',
            Self::Hang => 'd',
            Self::Killed => 'e',
            Self::StubbornCommand => 'f',
            Self::Terminated => 'g',
        }
    }

    pub(crate) fn describe(self) -> &'static str {
        match self {
            Self::LateAnswer => {
                "a renewal is carried out, its answer comes as late as the client bears, then silence"
            }
            Self::Replaced => "the lease is deleted, and another makes it anew and starts",
            Self::Paused => "its own processes are stopped for 12 s, then continued",
            Self::Hang => "the API server takes its next write, and answers nothing any more",
            Self::Killed => "SIGKILL to its own processes",
            Self::StubbornCommand => {
                "silence, with a command that ignores SIGTERM and has a child in another session"
            }
            Self::Terminated => "SIGTERM, with a command that takes 9 s to end",
        }
    }

    fn manner(self) -> Manner {
        match self {
            Self::StubbornCommand => Manner::Stubborn,
            Self::Terminated => Manner::Slow,
            Self::LateAnswer | Self::Replaced | Self::Paused | Self::Hang | Self::Killed => {
                Manner::Obedient
            }
        }
    }

    /// Lets a pair contend, does it to the holder, and waits for what comes of it.
    pub(crate) fn befall(self, pair: Pair, control_plane: &ControlPlane) -> Outcome {
        let world = World::on(control_plane);
        let gate = Gate::open(control_plane.port());
        let commands = ["holder", "standby"].map(|side| Commands::new(world.path().join(side)));
        let [ours, theirs] = &commands;

        let place = |port| Place {
            control_plane,
            world: &world,
            port,
        };
        let argv = ours.argv(self.manner());
        let holder = pair.holder.start(&place(gate.port()), &argv);
        wait_until("the holder's command runs", LIMIT, || ours.life());
        let identity = world.holder();
        let standby = (self != Self::Replaced).then(|| {
            let argv = theirs.argv(Manner::Obedient);
            let standby = pair.standby.start(&place(control_plane.port()), &argv);
            standby.wait_until_it_says("holds the lease");
            standby
        });
        world.wait_for_renewal();

        let mut other = None;
        match self {
            Self::LateAnswer => late_answer(&world, &gate, pair.holder),
            Self::Replaced => other = Some(replace(&world, control_plane, theirs)),
            Self::Paused => {
                let own = pair.holder.own_processes(&holder);
                own.iter().for_each(|pid| signal(*pid, Signal::SIGSTOP));
                thread::sleep(PAUSE);
                own.iter().for_each(|pid| resume(*pid));
            }
            Self::Hang => {
                hold_up_a_write(&gate);
                gate.shut();
            }
            Self::StubbornCommand => gate.shut(),
            Self::Killed => {
                let own = pair.holder.own_processes(&holder);
                own.iter().for_each(|pid| signal(*pid, Signal::SIGKILL));
            }
            Self::Terminated => holder.signal(Signal::SIGTERM),
        }

        let left = (self == Self::Terminated).then(|| {
            wait_until("the lease leaves its holder", LIMIT, || {
                (world.holder() != identity).then(now)
            })
        });
        let meeting = meeting(ours, theirs);
        let release = left.map(|left| {
            let ended = ours.life().expect("it has run").last;
            match left.checked_sub(ended) {
                Some(later) => (later, Order::After),
                None => (ended - left, Order::Before),
            }
        });
        if let Some(other) = &mut other {
            other.kill().expect("a child of ours can be killed");
            other.wait().expect("a child of ours can be waited for");
        }
        drop(standby);
        Outcome { meeting, release }
    }
}

/// A renewal is carried out, and its answer comes later than any other that client-go would take.
fn late_answer(world: &World, gate: &Gate, holder: Program) {
    let before = world.renewed_at();
    hold_up_a_write(gate);
    let sent = Instant::now();
    wait_until("the write is carried out", LIMIT, || {
        (world.renewed_at() != before).then_some(())
    });
    let patience = match holder {
        // Its request timeout, which is shorter than the deadline.
        Program::ClientGo => RENEW_DEADLINE / 2,
        Program::LeaseExec | Program::ClientGoReleasing => RENEW_DEADLINE,
    };
    thread::sleep(patience.mul_f64(0.96).saturating_sub(sent.elapsed()));
    gate.shut_after_what_waits();
}

/// Returns when a write has passed whose answer waits.
fn hold_up_a_write(gate: &Gate) {
    gate.hold_answers_from_the_next_write();
    wait_until("a write is on its way", LIMIT, || {
        gate.is_holding().then_some(())
    });
}

/// Plays another who makes the lease anew, and starts its command once it has it.
fn replace(world: &World, control_plane: &ControlPlane, commands: &Commands) -> process::Child {
    let namespace = world.namespace();
    let path = format!("/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases/{LEASE}");
    wait_until("the lease is another's", LIMIT, || {
        let time = jiff::Timestamp::now();
        let lease = json!({"metadata": {"name": LEASE}, "spec": {
            "holderIdentity": "another",
            "leaseDurationSeconds": DURATION.as_secs(),
            "acquireTime": format!("{time:.6}"),
            "renewTime": format!("{time:.6}"),
            "leaseTransitions": 0,
        }});
        control_plane.delete_lease(namespace, LEASE);
        // The holder may have made it first.
        let (status, _) = control_plane.raw(Method::PUT, &path, Some(lease));
        (status == 201).then_some(())
    });
    let argv = commands.argv(Manner::Obedient);
    let (program, arguments) = argv.split_first().expect("the program is the first word");
    let mut command = process::Command::new(program);
    command
        .args(arguments)
        .spawn()
        .expect("this program can be started")
}

/// Waits until the holder's command has ended and the other has begun.
fn meeting(ours: &Commands, theirs: &Commands) -> Meeting {
    wait_until("the other command runs", LIMIT * 2, || theirs.life());
    let since = Instant::now();
    while ours.are_alive() && since.elapsed() < WINDOW {
        thread::sleep(Duration::from_millis(50));
    }
    let (is_endless, count) = (ours.are_alive(), ours.count());
    let ours = ours.life().expect("it has run");
    let theirs = theirs.life().expect("it has just been seen");
    let together = ours.last.min(theirs.last).checked_sub(theirs.first);
    match together {
        Some(together) if is_endless => Meeting::Endless(together, count),
        Some(together) => Meeting::Together(together),
        None => Meeting::Apart(theirs.first - ours.last),
    }
}

fn resume(pid: i32) {
    // lease-exec's have been killed by then, as they must.
    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), Signal::SIGCONT);
}

/// Where a program contends.
struct Place<'a> {
    control_plane: &'a ControlPlane,
    world: &'a World<'a>,
    port: u16,
}

impl Program {
    fn start(self, place: &Place<'_>, argv: &[String]) -> Running {
        let namespace = place.world.namespace();
        let url = format!("https://127.0.0.1:{}", place.port);
        let kubeconfig = place
            .control_plane
            .kubeconfig_at(&url, namespace, User::Admin);
        let kubeconfig = kubeconfig.to_str().expect("a path in UTF-8");
        let seconds = |duration: Duration| format!("{}s", duration.as_secs());
        let duration = seconds(DURATION);
        if self == Self::LeaseExec {
            let invocation = place.world.invocation().args(["--lease", LEASE]);
            let invocation = invocation.args(["--kubeconfig", kubeconfig]);
            let invocation = invocation.args(["--lease-duration", &duration]);
            return invocation.command(argv).start();
        }
        let wrapper = ControlPlane::client_go_wrapper().expect("main has looked for it");
        let (renew, retry) = (seconds(RENEW_DEADLINE), seconds(RETRY_PERIOD));
        let mut invocation = place.world.program(wrapper);
        for (option, value) in [
            ("-lease", LEASE),
            ("-namespace", namespace),
            ("-kubeconfig", kubeconfig),
            ("-duration", &duration),
            ("-renew", &renew),
            ("-retry", &retry),
        ] {
            invocation = invocation.args([option, value]);
        }
        if self == Self::ClientGoReleasing {
            invocation = invocation.args(["-timeout", "0", "-release-on-cancel"]);
        }
        // A command that takes long to end is given the time, as lease-exec does.
        if argv.contains(&"slow".to_owned()) {
            invocation = invocation.args(["-grace", &seconds(DRAIN * 2)]);
        }
        invocation.command(argv).start()
    }

    /// Its processes without the command's.
    fn own_processes(self, running: &Running) -> Vec<i32> {
        match self {
            Self::LeaseExec => vec![running.pid(), guard_of(running)],
            Self::ClientGo | Self::ClientGoReleasing => vec![running.pid()],
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.meeting {
            Meeting::Apart(gap) => write!(f, "none (apart by {} ms)", gap.as_millis())?,
            Meeting::Together(time) => write!(f, "{} ms", time.as_millis())?,
            Meeting::Endless(time, count) => {
                write!(f, "at least {} ms, {count} left running", time.as_millis())?
            }
        }
        if let Some((time, order)) = &self.release {
            let order = match order {
                Order::Before => "before",
                Order::After => "after",
            };
            write!(
                f,
                "; lease given up {} ms {order} the command's end",
                time.as_millis()
            )?;
        }
        Ok(())
    }
}

const DURATION: Duration = Duration::from_secs(6);

const RENEW_DEADLINE: Duration = Duration::from_secs(4);

const RETRY_PERIOD: Duration = Duration::from_secs(1);

/// Twice the lease's duration.
const PAUSE: Duration = Duration::from_secs(12);

/// How long two commands that run at once are looked at.
const WINDOW: Duration = Duration::from_secs(15);
