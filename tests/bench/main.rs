//! How fast and how large lease-exec is beside the tools that people use in its place.
//!
//! `cargo bench --bench peers` makes all tables, on a control plane of its own, within about ten
//! minutes; `-- hand-over herd --rounds 200` takes some of them and changes how much is done. What is
//! compared takes turns in every round, so that whatever else the machine does slows all of them
//! alike. There are no limits to fail by: the numbers are for people to read.

#![expect(clippy::print_stdout, reason = "the tables are what this prints")]

mod contender;
mod hand_over;
mod herd;
mod launch;
mod memory;
mod metrics;
mod options;
mod requests;
mod stamp;
mod statistics;
mod stub;
#[path = "../support/mod.rs"]
#[expect(dead_code, reason = "the tests use more of it")]
mod support;
mod take_over;
mod tap;

#[path = "../it"]
mod it {
    //! What the integration tests have to offer.
    #![expect(
        dead_code,
        unused_imports,
        reason = "the tests use all of it, and this only some"
    )]

    pub(crate) mod control_plane;
    pub(crate) mod wait;
    pub(crate) mod world;
}

use std::{
    env, fs,
    path::Path,
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

use it::{control_plane, wait, world};
use support::{cgroup, janitor, surroundings};

use contender::{Contender, Ground, Instance};
use hand_over::Cause;
use launch::launch;
use options::{Options, Table};
use stamp::Stamps;
use statistics::Samples;

/// Rounds of what takes seconds, at most.
const SLOW_ROUNDS: usize = 8;

/// What a standby is given after it has shown that it waits, to open its watch and come to rest:
/// that it has done so doesn't show from outside.
const SETTLING: Duration = Duration::from_millis(300);

fn main() -> ExitCode {
    let words = env::args().skip(1).collect::<Vec<_>>();
    if let [word, socket] = &words[..]
        && word == stamp::WORD
    {
        stamp::run(Path::new(socket));
        return ExitCode::SUCCESS;
    }
    launch(Options::parse(&words), &Options::usage(), compare)
}

fn compare(options: &Options) {
    let ground = Ground::prepare();
    let stamps = Stamps::listen(ground.directory(), "stamps");
    let contenders = ground.contenders();
    describe(&ground);
    let since = Instant::now();
    for table in &options.tables {
        let rounds = options.rounds;
        match table {
            Table::HandOver => {
                hand_over::report(&ground, &stamps, &contenders, Cause::End, rounds);
            }
            Table::Sigterm => {
                hand_over::report(&ground, &stamps, &contenders, Cause::Sigterm, rounds);
            }
            Table::StartUp => hand_over::report_whole_run(&ground, &contenders, rounds),
            Table::TakeOver => take_over::report(&ground, &contenders, rounds.min(SLOW_ROUNDS)),
            Table::Herd => herd::report(&ground, &stamps, &contenders, options.standbys),
            Table::Requests => requests::report(&ground, &stamps, &contenders, options.window),
            Table::Memory => report_memory(&ground, &stamps, &contenders),
            Table::Sizes => report_sizes(&ground, &contenders),
        }
    }
    println!(
        "\nload at the end: {}; it took {} s",
        load(),
        since.elapsed().as_secs()
    );
}

// === What is measured ===

/// A holder, its command, and a standby that waits.
fn pair(
    ground: &Ground,
    stamps: &Stamps,
    contender: Contender,
    lease: Option<Duration>,
) -> (Instance, stamp::Running, Instance) {
    let holder = ground.start(contender, lease, stamps);
    let command = stamps.next();
    let standby = settle(ground, contender, ground.start(contender, lease, stamps));
    (holder, command, standby)
}

/// Waits until a standby waits and has come to rest.
fn settle(ground: &Ground, contender: Contender, standby: Instance) -> Instance {
    let standby = [standby];
    wait::wait_until("the standby waits", wait::LIMIT, || {
        ground.are_waiting(contender, &standby).then_some(())
    });
    thread::sleep(SETTLING);
    let [standby] = standby;
    standby
}

/// Prints how lease-exec's medians compare with its peers', for those that are in the table, and
/// what they are to be at most where that is settled.
fn print_ratios(samples: &Samples, targets: Option<&[(Contender, f64)]>) {
    let pairs = [
        (Contender::Kube, Contender::Etcdctl),
        (Contender::Kube, Contender::ClientGo),
        (Contender::File, Contender::Flock),
    ];
    for (own, peer) in pairs {
        let Some(ratio) = samples.ratio(own.name(), peer.name()) else {
            continue;
        };
        let target = targets
            .unwrap_or_default()
            .iter()
            .find(|(with_target, _)| *with_target == peer);
        let target = target.map_or(String::new(), |(_, most)| {
            format!("; it is to be at most {most}")
        });
        println!(
            "{}: median {ratio:.3} times that of {}{target}",
            own.name(),
            peer.name()
        );
    }
}

/// What every process takes that is not the command's, with the default durations: its memory after a
/// while, and how often it ran meanwhile. All of them are there at once, each pair on a lease of its
/// own.
fn report_memory(ground: &Ground, stamps: &Stamps, contenders: &[Contender]) {
    let mut pairs = Vec::new();
    let mut processes = Vec::new();
    for contender in contenders {
        let (holder, command, standby) = pair(ground, stamps, *contender, None);
        for (role, instance) in [("holder", &holder), ("standby", &standby)] {
            let tree = memory::tree(instance.pid());
            for (process, pid) in contender.processes().iter().zip(tree) {
                processes.push((format!("{}, {role}, {process}", contender.name()), pid));
            }
        }
        pairs.push((holder, command, standby));
    }
    let first = first_standby(ground);
    for (process, pid) in ["init", "front", "guard"].iter().zip(first.processes()) {
        let name = Contender::Kube.name();
        processes.push((format!("{name}, standby as PID 1, {process}"), pid));
    }

    let before = processes.iter().map(|(_, pid)| memory::activity(*pid));
    let before = before.collect::<Vec<_>>();
    thread::sleep(AT_REST);
    println!(
        "\nAt rest, each process but the command: KiB, and what {} s would make in an hour",
        AT_REST.as_secs()
    );
    println!(
        "{:<48}{:>8}{:>8}{:>15}{:>10}{:>8}",
        "", "VmRSS", "Pss", "Private_Dirty", "wake-ups", "CPU, s"
    );
    for ((name, pid), before) in processes.iter().zip(before) {
        let hour = memory::activity(*pid).per_hour_since(&before);
        let memory = memory::of(*pid);
        println!(
            "{name:<48}{:>8}{:>8}{:>15}{:>10.0}{:>8.2}",
            memory.resident_kib,
            memory.proportional_kib,
            memory.private_dirty_kib,
            hour.wake_ups,
            hour.cpu.as_secs_f64()
        );
    }
    drop(first);
    for (holder, command, standby) in pairs {
        command.end();
        stamps.next().end();
        holder.wait();
        standby.wait();
    }
}

/// One more standby on the API server, as the first process of a PID namespace.
fn first_standby(ground: &Ground) -> memory::First {
    let stderr = ground.directory().join("stderr-first");
    let command = ground.command(Contender::Kube, None, ["true".as_ref()]);
    let first = memory::First::start(&command, &stderr);
    wait::wait_until("a standby waits as PID 1", wait::LIMIT, || {
        let said = fs::read_to_string(&stderr).unwrap_or_default();
        said.contains("somebody else holds the lease").then_some(())
    });
    thread::sleep(SETTLING);
    first
}

/// How long processes are watched that have nothing to do but to keep, or to wait for, a lease.
const AT_REST: Duration = Duration::from_secs(60);

fn report_sizes(ground: &Ground, contenders: &[Contender]) {
    println!("\nProgram files, bytes");
    for contender in contenders {
        let program = ground.program(*contender);
        let Ok(metadata) = fs::metadata(&program) else {
            continue;
        };
        println!("{:<48}{:>10}", contender.name(), metadata.len());
    }
}

// === Under what circumstances ===

fn describe(ground: &Ground) {
    let profile = match cfg!(debug_assertions) {
        true => "debug: the numbers mean nothing",
        false => "release",
    };
    let cores = thread::available_parallelism().map_or(0, usize::from);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    println!("profile: {profile}");
    println!("machine: {cores} cores, Linux {}", kernel.trim());
    println!("load at the start: {}", load());
    for version in ground.versions() {
        println!("{version}");
    }
    println!(
        "All servers run on this machine; etcd, the file store and flock's file are in {}.",
        env::temp_dir().display()
    );
    println!(
        "The client-go wrapper is tests/client-go, with the client-go of the API server's source."
    );
    println!("etcdctl speaks to etcd itself, without TLS and without an API server in between.");
    println!("The guard locks its memory, so that all of the program file is resident in it.");
    println!("With fewer than 100 rounds p99 is the largest sample.");
}

/// The machine's load over the last 1, 5 and 15 minutes.
fn load() -> String {
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    load.split_whitespace()
        .take(3)
        .collect::<Vec<_>>()
        .join(" ")
}
