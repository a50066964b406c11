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
mod memory;
mod metrics;
mod options;
mod requests;
mod stamp;
mod statistics;
mod stub;
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

use contender::{Contender, Ground, Instance};
use hand_over::Cause;
use options::{Options, Table};
use stamp::Stamps;
use statistics::Samples;

/// Rounds of what takes seconds, at most.
const SLOW_ROUNDS: usize = 8;

/// The duration of the leases of those whose memory is looked at.
const CRASH_LEASE: Duration = Duration::from_secs(3);

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
    match Options::parse(&words) {
        Ok(options) => {
            compare(&options);
            ExitCode::SUCCESS
        }
        Err(message) => {
            println!("{message}\n{}", Options::usage());
            ExitCode::FAILURE
        }
    }
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

/// The memory of every process that is not the command's, at rest.
fn report_memory(ground: &Ground, stamps: &Stamps, contenders: &[Contender]) {
    println!("\nMemory, KiB, of each process but the command");
    println!(
        "{:<44}{:>10}{:>10}{:>15}",
        "", "VmRSS", "Pss", "Private_Dirty"
    );
    for contender in contenders {
        let (holder, command, standby) = pair(ground, stamps, *contender, Some(CRASH_LEASE));
        // Time for a few renewals, which may need more than the start.
        thread::sleep(CRASH_LEASE);
        for (role, instance) in [("holder", &holder), ("standby", &standby)] {
            let tree = memory::tree(instance.pid());
            for (process, pid) in contender.processes().iter().zip(tree) {
                let memory = memory::of(pid);
                println!(
                    "{:<44}{:>10}{:>10}{:>15}",
                    format!("{}, {role}, {process}", contender.name()),
                    memory.resident_kib,
                    memory.proportional_kib,
                    memory.private_dirty_kib
                );
            }
        }
        command.end();
        stamps.next().end();
        holder.wait();
        standby.wait();
    }
}

fn report_sizes(ground: &Ground, contenders: &[Contender]) {
    println!("\nProgram files, KiB");
    for contender in contenders {
        let program = ground.program(*contender);
        let Ok(metadata) = fs::metadata(&program) else {
            continue;
        };
        println!("{:<44}{:>10}", contender.name(), metadata.len() / 1024);
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
