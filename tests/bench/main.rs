//! How fast and how large lease-exec is beside the tools that people use in its place.
//!
//! `cargo bench` runs it, on a control plane of its own; `cargo bench -- ROUNDS` changes how many
//! rounds there are. What is compared takes turns in every round, so that whatever else the machine
//! does slows all of them alike. There are no limits to fail by: the numbers are for people to read.

#![expect(clippy::print_stdout, reason = "the tables are what this prints")]

mod contender;
mod memory;
mod stamp;
mod statistics;

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
    process::Command,
    thread,
    time::{Duration, Instant},
};

use it::{control_plane, wait, world};

use contender::{Contender, Ground};
use stamp::{Stamp, Stamps};
use statistics::Samples;

/// Rounds of what takes milliseconds, unless the command line says otherwise.
const ROUNDS: usize = 30;

/// Rounds of what takes seconds, at most.
const SLOW_ROUNDS: usize = 5;

/// The duration of the leases whose holder is killed. Both programs take whole seconds, and etcd no
/// less than two.
const CRASH_LEASE: Duration = Duration::from_secs(3);

/// What a standby is given after it has shown that it waits, to open its watch and come to rest:
/// that it has done so doesn't show from outside.
const SETTLING: Duration = Duration::from_millis(300);

fn main() {
    let arguments = env::args().skip(1).collect::<Vec<_>>();
    match &arguments[..] {
        [word, socket] if word == stamp::WORD => stamp::run(Path::new(socket)),
        _ => compare(rounds(&arguments)),
    }
}

/// The number of rounds; cargo adds `--bench`.
fn rounds(arguments: &[String]) -> usize {
    let mut given = arguments.iter().filter(|argument| *argument != "--bench");
    let rounds = given.next().map_or(Some(ROUNDS), |text| text.parse().ok());
    match (rounds, given.next()) {
        (Some(rounds), None) if rounds > 0 => rounds,
        _ => panic!("usage: cargo bench --bench peers [-- ROUNDS]"),
    }
}

fn compare(rounds: usize) {
    let ground = Ground::prepare();
    let stamps = Stamps::listen(ground.directory());
    let contenders = ground.contenders();
    describe(&ground);
    report_hand_over(&ground, &stamps, &contenders, rounds);
    report_whole_run(&ground, &contenders, rounds);
    report_take_over(&ground, &stamps, &contenders, rounds.min(SLOW_ROUNDS));
    report_memory(&ground, &stamps, &contenders);
    report_sizes(&ground, &contenders);
    println!("\nload at the end: {}", load());
}

// === What is measured ===

/// From the end of the holder's command to the start of the standby's.
fn report_hand_over(ground: &Ground, stamps: &Stamps, contenders: &[Contender], rounds: usize) {
    let mut samples = Samples::of(contenders.iter().map(Contender::name));
    for round in 0..=rounds {
        for (contender, samples) in contenders.iter().zip(samples.columns()) {
            if contender.polls() && round > SLOW_ROUNDS {
                continue;
            }
            let gap = hand_over(ground, stamps, *contender);
            // The first round warms caches up.
            if round > 0 {
                samples.push(gap);
            }
        }
    }
    println!(
        "\nHand-over: from the end of one command to the start of the next, ms, {rounds} rounds; for \
         whom they take seconds, {} of them",
        rounds.min(SLOW_ROUNDS)
    );
    print!("{samples}");
}

fn hand_over(ground: &Ground, stamps: &Stamps, contender: Contender) -> Duration {
    let (holder, command, standby) = pair(ground, stamps, contender, None);
    let ended = command.end();
    let next = stamps.next();
    let gap = next.started().since(ended);
    next.end();
    holder.wait();
    standby.wait();
    gap
}

/// All of a run whose command does nothing, with nobody else about.
fn report_whole_run(ground: &Ground, contenders: &[Contender], rounds: usize) {
    let bare = "true alone";
    let names = contenders.iter().map(Contender::name).chain([bare]);
    let mut samples = Samples::of(names);
    for round in 0..=rounds {
        let commands = contenders
            .iter()
            .map(|contender| ground.command(*contender, None, ["true".as_ref()]))
            .chain([Command::new("true")]);
        for (mut command, samples) in commands.zip(samples.columns()) {
            contender::silence(&mut command);
            let before = Instant::now();
            let status = command.status();
            let took = before.elapsed();
            let status = status.unwrap_or_else(|err| panic!("failed to run {command:?}: {err}"));
            assert!(status.success(), "{command:?}: {status}");
            if round > 0 {
                samples.push(took);
            }
        }
    }
    println!("\nStart-up: a whole run of `true` on a free lease, ms, {rounds} rounds");
    print!("{samples}");
}

/// From the death of a holder and its command, all at once, to the start of the standby's command.
fn report_take_over(ground: &Ground, stamps: &Stamps, contenders: &[Contender], rounds: usize) {
    let expiring = contenders
        .iter()
        .copied()
        .filter(|contender| contender.has_expiry())
        .collect::<Vec<_>>();
    let mut since_kill = Samples::of(expiring.iter().map(Contender::name));
    let recording = expiring
        .iter()
        .filter(|contender| contender.records_renewals());
    let mut since_expiry = Samples::of(recording.map(Contender::name));
    for round in 0..rounds {
        let mut expiries = since_expiry.columns();
        // Spread by the golden ratio, so that no period of renewals makes all crashes come as long
        // after one.
        let moment = CRASH_LEASE.mul_f64((round as f64 * 0.618).fract());
        for (contender, since_kill) in expiring.iter().zip(since_kill.columns()) {
            let take_over = take_over(ground, stamps, *contender, moment);
            since_kill.push(take_over.started.since(take_over.killed));
            if let Some(renewed) = take_over.renewed {
                let expiry = renewed + CRASH_LEASE;
                let late = take_over.started.wall.checked_sub(expiry);
                let late = late.expect("a standby that starts too early would be a defect");
                let column = expiries.next();
                column.expect("who has a record has a column").push(late);
            }
        }
    }
    let duration = CRASH_LEASE.as_secs();
    println!(
        "\nTake-over after a crash, lease duration {duration} s: from the last renewal + {duration} s \
         to the start of the next command, ms, {rounds} rounds"
    );
    print!("{since_expiry}");
    println!(
        "\nThe same, from the crash to the start of the next command, ms, {rounds} rounds (how long ago \
         the last renewal was then is chance)"
    );
    print!("{since_kill}");
}

struct TakeOver {
    killed: Stamp,
    started: Stamp,
    /// When the record says that it was last renewed, since the epoch; etcd doesn't say.
    renewed: Option<Duration>,
}

fn take_over(ground: &Ground, stamps: &Stamps, contender: Contender, moment: Duration) -> TakeOver {
    let (holder, command, standby) = pair(ground, stamps, contender, Some(CRASH_LEASE));
    thread::sleep(moment);
    let killed = Stamp::now();
    memory::kill_tree(holder.pid());
    let renewed = ground.renewed_at(contender);
    let next = stamps.next();
    let started = next.started();
    next.end();
    drop(command);
    holder.wait();
    standby.wait();
    TakeOver {
        killed,
        started,
        renewed,
    }
}

/// A holder, its command, and a standby that waits.
fn pair(
    ground: &Ground,
    stamps: &Stamps,
    contender: Contender,
    lease: Option<Duration>,
) -> (contender::Instance, stamp::Running, contender::Instance) {
    let holder = ground.start(contender, lease, stamps);
    let command = stamps.next();
    let standby = ground.start(contender, lease, stamps);
    wait::wait_until("the standby waits", wait::LIMIT, || {
        ground.is_waiting(contender, &standby).then_some(())
    });
    thread::sleep(SETTLING);
    (holder, command, standby)
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
