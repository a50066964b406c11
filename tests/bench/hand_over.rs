//! What takes milliseconds: hand-over, and a run of nothing.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use crate::{
    contender::{self, Contender, Ground},
    pair, print_ratios,
    stamp::{Stamp, Stamps},
    statistics::{Samples, milliseconds},
    stub::Stub,
};

/// Why a holder gives the lease back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    /// Its command has ended.
    End,
    /// It got SIGTERM, as from a rollout, and its command ends of that at once.
    Sigterm,
}

/// From the end of the holder's command, or from SIGTERM to the holder, to the start of the
/// standby's command.
pub(crate) fn report(
    ground: &Ground,
    stamps: &Stamps,
    contenders: &[Contender],
    cause: Cause,
    rounds: usize,
) {
    let mut samples = Samples::of(contenders.iter().map(Contender::name));
    for round in 0..=rounds {
        for (contender, samples) in contenders.iter().zip(samples.columns()) {
            if contender.polls() && round > POLLING_ROUNDS {
                continue;
            }
            let gap = hand_over(ground, stamps, *contender, cause);
            // The first round warms caches up.
            if round > 0 {
                samples.push(gap);
            }
        }
    }
    println!("\n{}", cause.title());
    print!("{samples}");
    print_ratios(&samples, Some(HAND_OVER_TARGETS));
    let own = Contender::Kube.name();
    if let Some(p99) = samples.percentile(own, 99) {
        println!(
            "{own}: p99 {:.2} ms; it is to be at most 50",
            milliseconds(p99)
        );
    }
}

fn hand_over(ground: &Ground, stamps: &Stamps, contender: Contender, cause: Cause) -> Duration {
    let (holder, command, standby) = pair(ground, stamps, contender, None);
    let from = match cause {
        Cause::End => command.end(),
        Cause::Sigterm => {
            let sent = Stamp::now();
            holder.terminate(contender);
            sent
        }
    };
    let next = stamps.next();
    let gap = next.started().since(from);
    next.end();
    holder.wait();
    standby.wait();
    gap
}

impl Cause {
    fn title(self) -> &'static str {
        match self {
            Self::End => "Hand-over: from the end of one command to the start of the next, ms",
            Self::Sigterm => {
                "Hand-over on SIGTERM: from the signal to the holder to the start of the next \
                 command, ms\n(etcdctl lock does not pass it on and flock's command keeps the lock, \
                 so there their command gets it too)"
            }
        }
    }
}

/// All of a run whose command does nothing, with nobody else about.
pub(crate) fn report_whole_run(ground: &Ground, contenders: &[Contender], rounds: usize) {
    let bare = "true alone";
    let names = contenders.iter().map(Contender::name).chain([bare]);
    let mut samples = Samples::of(names);
    let mut left_held = 0;
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
        left_held += usize::from(free(ground, Contender::ClientGo));
    }
    println!("\nStart-up: a whole run of `true` on a free lease, ms");
    print!("{samples}");
    print_ratios(&samples, Some(&[(Contender::Etcdctl, 1.0)]));
    if left_held > 0 {
        println!(
            "{} did not release the lease at the end of {left_held} of {} runs; it was freed for the next",
            Contender::ClientGo.name(),
            rounds + 1
        );
    }
}

/// Releases what a contender that has ended has not released, and tells whether there was anything.
fn free(ground: &Ground, contender: Contender) -> bool {
    let mut stub = Stub::of(ground, contender);
    let is_held = stub.is_held();
    if is_held {
        stub.write("");
    }
    is_held
}

/// How many times as long as for each of these it may take, by the medians.
const HAND_OVER_TARGETS: &[(Contender, f64)] =
    &[(Contender::Etcdctl, 2.0), (Contender::ClientGo, 0.01)];

/// Rounds of whoever polls, at most: each takes seconds.
const POLLING_ROUNDS: usize = 5;
