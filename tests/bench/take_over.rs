//! How late after the end of a dead holder's lease the next command starts.
//!
//! The contenders do it side by side, each on a lease of its own, because they mostly wait.

use std::{thread, time::Duration};

use crate::{
    contender::{Contender, Ground, Instance},
    memory, print_ratios, settle,
    stamp::{Stamp, Stamps},
    statistics::{Samples, milliseconds},
    tap::Tap,
};

/// The duration of the leases whose holder is killed. With less than this client-go, in the
/// proportions of its defaults, renews more than once a second; its observers see the record's times
/// in whole seconds and take two such renewals for one, so that they take over too early.
const LEASE: Duration = Duration::from_secs(8);

/// One take-over.
struct TakeOver {
    contender: Contender,
    killed: Stamp,
    started: Stamp,
    /// When the dead holder sent its last renewal, since the epoch.
    renewed: Duration,
    /// When the standby says that it saw that renewal, since the epoch; not all say so.
    seen: Option<Duration>,
}

/// From the death of a holder and its command, all at once, to the start of the standby's command.
pub(crate) fn report(ground: &Ground, contenders: &[Contender], rounds: usize) {
    let expiring = contenders
        .iter()
        .copied()
        .filter(|contender| contender.has_expiry())
        .collect::<Vec<_>>();
    let stamps = expiring.iter().enumerate().map(|(number, _)| {
        let name = format!("take-over-{number}");
        Stamps::listen(ground.directory(), &name)
    });
    let stamps = stamps.collect::<Vec<_>>();
    let names = || expiring.iter().map(Contender::name);
    let watching = || {
        let watching = expiring.iter().filter(|contender| contender.says_seen());
        watching.map(Contender::name)
    };
    let mut since_seen = Samples::of(watching());
    let mut since_expiry = Samples::of(names());
    let mut since_kill = Samples::of(names());
    for round in 0..rounds {
        let take_overs = thread::scope(|scope| {
            let running = expiring.iter().zip(&stamps).enumerate();
            let running = running.map(|(place, (contender, stamps))| {
                let moment = moment(round + place * rounds);
                scope.spawn(move || take_over(ground, stamps, *contender, moment))
            });
            let running = running.collect::<Vec<_>>();
            let ended = running.into_iter().map(|one| one.join());
            ended
                .map(|one| one.expect("it has said above why it failed"))
                .collect::<Vec<_>>()
        });
        let mut seen = since_seen.columns();
        let columns = since_expiry.columns().zip(since_kill.columns());
        for (take_over, (since_expiry, since_kill)) in take_overs.iter().zip(columns) {
            since_expiry.push(take_over.late_after(take_over.renewed));
            since_kill.push(take_over.started.since(take_over.killed));
            if let Some(at) = take_over.seen {
                let column = seen.next().expect("who says so has a column");
                column.push(take_over.late_after(at));
            }
        }
    }
    print_tables(&since_seen, &since_expiry, &since_kill);
}

fn print_tables(since_seen: &Samples, since_expiry: &Samples, since_kill: &Samples) {
    let duration = LEASE.as_secs();
    println!(
        "\nTake-over after a crash, lease duration {duration} s: from the moment when the standby saw \
         the last renewal + {duration} s to the start of its command, ms"
    );
    print!("{since_seen}");
    let own = Contender::Kube.name();
    if let Some(p99) = since_seen.percentile(own, 99) {
        println!(
            "{own}: p99 {:.2} ms; it is to be at most 50",
            milliseconds(p99)
        );
    }
    println!(
        "\nThe same from the moment when the holder sent its last renewal + {duration} s, ms (in \
         lease-exec's and client-go's record; of etcdctl's connection, the last that it sent)"
    );
    print!("{since_expiry}");
    print_ratios(since_expiry, None);
    println!("\nThe same from the crash, ms (how long ago the last renewal was then is chance)");
    print!("{since_kill}");
}

impl TakeOver {
    /// How long after the end of a lease that counts from `renewed` the command started.
    fn late_after(&self, renewed: Duration) -> Duration {
        let expiry = renewed + LEASE;
        let late = self.started.wall.checked_sub(expiry);
        let early = expiry.saturating_sub(self.started.wall);
        let name = self.contender.name();
        late.unwrap_or_else(|| panic!("a standby of {name} started {early:?} too early: a defect"))
    }
}

/// When to kill, counted from when all is settled: spread by the golden ratio over the longest time
/// between two renewals (etcdctl's), so that not all crashes come as long after one.
fn moment(number: usize) -> Duration {
    (LEASE / 3).mul_f64((number as f64 * 0.618).fract())
}

fn take_over(ground: &Ground, stamps: &Stamps, contender: Contender, moment: Duration) -> TakeOver {
    let lease = Some(LEASE);
    let tap = (contender == Contender::Etcdctl).then(|| Tap::to(ground.etcd_port()));
    let holder = ground.start_changed(contender, lease, stamps, |command| {
        if let Some(tap) = &tap {
            command.env("ETCDCTL_ENDPOINTS", tap.url());
        }
    });
    let command = stamps.next();
    let standby = ground.start_changed(contender, lease, stamps, |command| {
        if contender.says_seen() {
            command.env("LEASE_EXEC_VERBOSE", "2");
        }
    });
    let standby = settle(ground, contender, standby);
    thread::sleep(moment);
    let killed = Stamp::now();
    memory::kill_tree(holder.pid());
    let renewed = match &tap {
        Some(tap) => tap.last_sent(),
        None => ground.renewed_at(contender).expect("there is a record"),
    };
    let next = stamps.next();
    let started = next.started();
    let seen = contender
        .says_seen()
        .then(|| seen(&standby, started.wall - LEASE));
    next.end();
    drop(command);
    holder.wait();
    standby.wait();
    TakeOver {
        contender,
        killed,
        started,
        renewed,
        seen,
    }
}

/// When the standby saw the last renewal before `limit`, be it by a read or by the watch, as it says
/// with `-vv`: the write by which it took over is later than that.
fn seen(standby: &Instance, limit: Duration) -> Duration {
    let said = standby.stderr();
    let seen = said
        .lines()
        .filter(|line| line.contains(" event=") && line.contains("renew_time: Some"))
        .filter_map(|line| {
            let time: jiff::Timestamp = line.split_whitespace().next()?.parse().ok()?;
            u64::try_from(time.as_nanosecond()).ok()
        })
        .map(Duration::from_nanos)
        .filter(|seen| *seen <= limit);
    seen.max()
        .unwrap_or_else(|| panic!("the standby saw no renewal before {limit:?}: {said}"))
}
