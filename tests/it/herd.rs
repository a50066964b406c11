//! Many instances on one API server: a crowd on one lease, and many leases side by side.
//!
//! `HERD_STANDBYS` and `HERD_LEASES` say how many; what was counted is printed (`--nocapture`).

use std::{
    env, fmt, thread,
    time::{Duration, Instant},
};

use http::Method;
use nix::sys::signal::Signal;

use crate::{
    control_plane::{ControlPlane, User},
    wait::{try_wait_until, wait_until},
    world::{Running, World},
};

/// Hand-overs from one standby to the next.
const HAND_OVERS: usize = 8;

/// In the first two nobody has met a crowd yet, and in the next two windows still grow.
const LEARNING: usize = 4;

/// Instances that are started at a time.
const BATCH: usize = 10;

/// A start of many processes takes its time.
const PATIENCE: Duration = Duration::from_secs(120);

/// How long nothing but renewals is watched.
const REST: Duration = Duration::from_secs(12);

/// What the API server has answered about leases since it started.
#[derive(Clone, Copy, Debug, Default)]
struct Answers {
    writes: u64,
    conflicts: u64,
    reads: u64,
    watches: u64,
    /// Watches that are open.
    open: u64,
}

impl Answers {
    /// Asks the API server, by its own counts.
    fn of(control_plane: &ControlPlane) -> Self {
        let (status, answer) = control_plane.raw(Method::GET, "/metrics", None);
        assert_eq!(status, 200, "{answer}");
        let text = answer.as_str().expect("metrics are no JSON");
        let mut answers = Self::default();
        for line in text.lines() {
            if !line.contains(r#"resource="leases""#) {
                continue;
            }
            let (name, count) = line.rsplit_once(' ').expect("a name and a count");
            let count = count.parse::<f64>().expect("a number") as u64;
            let is = |verb: &str| name.contains(&format!(r#"verb="{verb}""#));
            // The first is its name up to 1.22.
            let is_open = name.starts_with("apiserver_longrunning_gauge{")
                || name.starts_with("apiserver_longrunning_requests{");
            if is_open && is("WATCH") {
                answers.open += count;
            }
            if !name.starts_with("apiserver_request_total{") {
                continue;
            }
            match () {
                () if is("PUT") && name.contains(r#"code="409""#) => answers.conflicts += count,
                () if is("PUT") => answers.writes += count,
                () if is("GET") => answers.reads += count,
                () if is("WATCH") => answers.watches += count,
                () => {}
            }
        }
        answers
    }

    fn since(self, earlier: Self) -> Self {
        Self {
            writes: self.writes - earlier.writes,
            conflicts: self.conflicts - earlier.conflicts,
            reads: self.reads - earlier.reads,
            watches: self.watches - earlier.watches,
            open: self.open,
        }
    }
}

impl fmt::Display for Answers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            writes,
            conflicts,
            reads,
            watches,
            open,
        } = self;
        write!(
            f,
            "{conflicts} conflicts, {writes} writes, {reads} reads, {watches} watches ended, {open} open"
        )
    }
}

fn number(name: &str, default: usize) -> usize {
    match env::var(name) {
        Ok(text) => text
            .parse()
            .unwrap_or_else(|_| panic!("{name} is a number")),
        Err(_) => default,
    }
}

/// Waits for what the API server's counts show. They are many, so they are not asked for all the
/// time.
fn wait_for(what: &str, control_plane: &ControlPlane, is_so: impl Fn(Answers) -> bool) -> Answers {
    wait_until(what, PATIENCE, || {
        let answers = Answers::of(control_plane);
        if is_so(answers) {
            return Some(answers);
        }
        thread::sleep(Duration::from_millis(200));
        None
    })
}

/// Starts so many, some at a time, and waits for each to say this.
fn start_all(count: usize, words: &str, start: impl Fn(usize) -> Running) -> Vec<Running> {
    let mut instances = Vec::new();
    for first in (0..count).step_by(BATCH) {
        let batch = (first..count.min(first + BATCH))
            .map(&start)
            .collect::<Vec<_>>();
        for instance in &batch {
            let says = || instance.stderr().contains(words).then_some(());
            if try_wait_until(PATIENCE, says).is_none() {
                let (begun, said) = (instances.len(), instance.stderr());
                panic!("after {begun} others, waited {PATIENCE:?} in vain for {words:?}:\n{said}");
            }
        }
        instances.extend(batch);
    }
    instances
}

#[test]
fn a_crowd_of_standbys_hands_over_with_few_conflicts() {
    let standbys = number("HERD_STANDBYS", 50);
    let control_plane = ControlPlane::start();
    // Later versions have a lease of their own for each API server, and watch those.
    let own = Answers::of(&control_plane).open;
    let world = World::on(&control_plane);
    let mut holder = world.witness("15s").start();
    world.wait_for_starts(1);
    let mut others = start_all(standbys, "somebody else holds the lease", |number| {
        world
            .witness("15s")
            .env("LEASE_EXEC_IDENTITY", format!("standby-{number}"))
            .start()
    });
    let mut before = wait_for("all standbys watch", &control_plane, |answers| {
        answers.open - own >= standbys as u64
    });
    let mut later = 0;
    for round in 0..HAND_OVERS {
        holder.signal(Signal::SIGTERM);
        holder.wait_within(PATIENCE).assert_signal(Signal::SIGTERM);
        let log = world.wait_for_starts_within(round + 2, PATIENCE);
        // Renewals: by then everybody who lost has read what there was to read.
        let after = wait_for("the new holder renews", &control_plane, |answers| {
            answers.since(before).writes >= 4
        });
        let counted = after.since(before);
        let candidates = others.len() as u64;
        let gap = log.runs[round + 1].started - log.runs[round].last_beat;
        let millis = gap / 1_000_000;
        eprintln!("hand-over {round}: {candidates} candidates, {millis} ms, {counted}");
        assert_eq!(log.runs.len(), round + 2, "more than one has won: {log:?}");
        assert!(counted.conflicts < candidates, "{counted}");
        if round >= LEARNING {
            later += counted.conflicts;
        }
        // Whoever met a conflict looks at most once; so do this test and the winner's renewals.
        assert!(counted.reads <= counted.conflicts + 4, "{counted}");
        let winner = world.holder();
        let is_winner = |instance: &Running| instance.stderr().contains("acquired the lease");
        let position = others.iter().position(is_winner);
        holder = others.remove(position.unwrap_or_else(|| panic!("no instance is {winner}")));
        before = Answers::of(&control_plane);
    }
    world.log().assert_exclusive();
    let rounds = (HAND_OVERS - LEARNING) as u64;
    eprintln!("then {} conflicts per hand-over", later / rounds);
    assert!(
        later / rounds <= standbys as u64 / 3,
        "{later} conflicts in {rounds} hand-overs among {standbys} standbys that know of each other"
    );
}

#[test]
fn many_leases_on_one_server_are_held_with_nothing_but_renewals() {
    let leases = number("HERD_LEASES", 60);
    let control_plane = ControlPlane::start();
    let world = World::on(&control_plane);
    let kubeconfig =
        control_plane.kubeconfig_at(&control_plane.url(), world.namespace(), User::Admin);
    let kubeconfig = kubeconfig.to_str().expect("a plain path");
    let began = Instant::now();
    let instances = start_all(leases, "started the command", |number| {
        let name = format!("lease-{number}");
        world
            .invocation()
            .args(["--kubeconfig", kubeconfig, "--lease-duration", "30s"])
            .args(["--lease", &name])
            .command(["sleep", "infinity"])
            .start()
    });
    eprintln!("{leases} leases were taken within {:.1?}", began.elapsed());
    let all = Answers::of(&control_plane);
    // Each is created once, and nobody has met anybody.
    assert_eq!(all.conflicts, 0, "{all}");
    assert!(all.reads <= 2 * leases as u64, "{all}");

    let (began, before) = (Instant::now(), Answers::of(&control_plane));
    wait_until("the time of rest is over", PATIENCE, || {
        (began.elapsed() >= REST).then_some(())
    });
    let counted = Answers::of(&control_plane).since(before);
    let failed = |instance: &&Running| instance.stderr().contains("failed to renew");
    let failures = instances.iter().filter(failed).count();
    let periods = began.elapsed().as_secs_f64() / 4.0;
    eprintln!("at rest, in {periods:.1} retry periods: {counted}; {failures} could not renew");
    assert_eq!(counted.conflicts, 0, "{counted}");
    assert!(counted.reads <= leases as u64 / 10, "{counted}");
    let most = leases as f64 * (periods + 1.0);
    let least = leases as f64 * (periods / 1.2 - 1.0);
    assert!(
        (least..=most).contains(&(counted.writes as f64)),
        "{counted}"
    );
    assert_eq!(failures, 0, "renewals failed");
    for instance in instances {
        instance.signal(Signal::SIGTERM);
        instance
            .wait_within(PATIENCE)
            .assert_signal(Signal::SIGTERM);
    }
}
