//! What one instance asks of the API server in an hour while nothing happens, by the server's own
//! count, and what CPU it takes.

use std::{
    thread,
    time::{Duration, Instant},
};

use crate::{
    contender::{Contender, Ground, Instance},
    memory,
    metrics::{self, Requests},
    settle,
    stamp::Stamps,
    stub::Stub,
};

/// What was seen of one instance at rest.
struct Rest {
    requests: Requests,
    /// Those of them that this program wrote.
    writes: u64,
    watches: u64,
    cpu: Duration,
}

/// Counts for those that use the API server, with their own default durations, as a holder and as a
/// standby.
pub(crate) fn report(ground: &Ground, stamps: &Stamps, contenders: &[Contender], window: Duration) {
    println!(
        "\nRequests for the Lease and seconds of CPU, per hour, with default durations (seen over {} s, \
         so that one request is {} an hour)",
        window.as_secs(),
        3600 / window.as_secs()
    );
    println!(
        "{:<44}{:>10}{:>10}{:>10}{:>10}{:>14}",
        "", "GET", "PUT", "other", "CPU s", "open watches"
    );
    // Since 1.26 the API server has one of its own.
    let own_watches = metrics::open_watches(ground.control_plane());
    let asking = contenders.iter().filter(|one| one.asks_api_server());
    for contender in asking {
        let holding = hold(ground, stamps, *contender, window);
        let at_rest = stand_by(ground, stamps, *contender, window);
        for (role, rest) in [("holding", holding), ("standby", at_rest)] {
            let name = format!("{}, {role}", contender.name());
            let watches = rest.watches.saturating_sub(own_watches);
            println!("{name:<44}{}{watches:>14}", rest.per_hour(window));
        }
    }
    println!(
        "A watch is counted when it ends; lease-exec asks for 4 to 5 minutes each, which is 12 to 15 an \
         hour. A standby at rest is to send nothing else, and to take less than 1 s of CPU."
    );
}

/// A holder with nobody beside it.
fn hold(ground: &Ground, stamps: &Stamps, contender: Contender, window: Duration) -> Rest {
    let holder = ground.start(contender, None, stamps);
    let command = stamps.next();
    thread::sleep(QUIET);
    let rest = observe(ground, (contender, &holder), window, None);
    command.end();
    holder.wait();
    rest
}

/// A standby beside a holder that renews, which is this program: so all requests but its own are the
/// standby's.
fn stand_by(ground: &Ground, stamps: &Stamps, contender: Contender, window: Duration) -> Rest {
    let mut stub = Stub::of(ground, contender);
    stub.write("somebody");
    let standby = settle(ground, contender, ground.start(contender, None, stamps));
    stub.write("somebody");
    thread::sleep(QUIET);
    let rest = observe(ground, (contender, &standby), window, Some(&mut stub));
    standby.terminate(contender);
    standby.wait();
    stub.write("");
    rest
}

/// Looks on for as long as `window`, while the holder renews if one is given.
fn observe(
    ground: &Ground,
    (contender, instance): (Contender, &Instance),
    window: Duration,
    mut stub: Option<&mut Stub<'_>>,
) -> Rest {
    let own = contender.processes().len();
    let cpu = || {
        let own = memory::tree(instance.pid()).into_iter().take(own);
        own.map(metrics::cpu_time).sum::<Duration>()
    };
    let before = (Requests::of(ground.control_plane()), cpu());
    let since = Instant::now();
    let mut writes = 0;
    while since.elapsed() < window {
        if let Some(stub) = &mut stub {
            stub.write("somebody");
            writes += 1;
        }
        let left = window.saturating_sub(since.elapsed());
        thread::sleep(RENEWAL_PERIOD.min(left));
    }
    let after = (Requests::of(ground.control_plane()), cpu());
    Rest {
        requests: &after.0 - &before.0,
        writes,
        watches: metrics::open_watches(ground.control_plane()),
        cpu: after.1.saturating_sub(before.1),
    }
}

impl Rest {
    fn per_hour(&self, window: Duration) -> String {
        let share = 3600.0 / window.as_secs_f64();
        let get = self.requests.with_verb("GET");
        let put = self.requests.with_verb("PUT").saturating_sub(self.writes);
        let other = self.requests.total() - get - self.requests.with_verb("PUT");
        let hourly = |count| (count as f64 * share).round();
        format!(
            "{:>10}{:>10}{:>10}{:>10.2}",
            hourly(get),
            hourly(put),
            hourly(other),
            self.cpu.as_secs_f64() * share
        )
    }
}

/// Both programs' by default.
const RENEWAL_PERIOD: Duration = Duration::from_secs(2);

/// What an instance is given to come to rest.
const QUIET: Duration = Duration::from_secs(3);
