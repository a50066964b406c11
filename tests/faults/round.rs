//! One round: trouble of one kind in an arena, and what must be true during it and afterwards.

use std::{fs, time::Duration};

use http::Method;
use nix::sys::signal::Signal;

use crate::{
    arena::{Arena, LIMIT, Verdict},
    control_plane::{ControlPlane, Requests, User},
    history::{History, Term},
    network::Cut,
    node::{guard_of, signal},
    proxy::{Active, Fault, Status},
    random::Random,
    scenario::{self, Outage, SECOND, Scenario, Trouble, Whom},
    statistics, tally,
};

/// Plays a round, and says what was wrong.
pub(crate) fn play(
    arena: &mut Arena,
    scenario: &Scenario,
    seed: u64,
    control_plane: &ControlPlane,
) -> Verdict {
    arena.begin(scenario.name, seed);
    match scenario.trouble {
        Trouble::Apart(_) => return overlap(arena),
        Trouble::Forgery => return forgery(arena),
        _ => {}
    }
    let terms = arena.history.terms.len();
    let term = arena.settle()?;
    let injected = arena.injected();
    match scenario.trouble {
        Trouble::HandOver => hand_over(arena)?,
        Trouble::Link(fault) => link(arena, &term, fault)?,
        Trouble::Process(kind, whom) => process(arena, kind, whom)?,
        Trouble::Network(cut) => network(arena, &term, cut)?,
        Trouble::Servers(outage) => servers(arena, control_plane, outage)?,
        Trouble::OneServer => one_server(arena, control_plane, &term)?,
        Trouble::Mix(_) => mix(arena)?,
        // Dealt with above.
        Trouble::Apart(_) | Trouble::Forgery => {}
    }
    arena.heal();
    arena.expect_progress()?;
    let has_links = matches!(scenario.trouble, Trouble::Link(_) | Trouble::Mix(_));
    if has_links && arena.injected() == injected {
        return Err("no fault took effect".to_owned());
    }
    // The first term takes over from nobody.
    let new = arena.history.terms.len() - terms.max(1);
    statistics::with(|statistics| match scenario.trouble {
        Trouble::HandOver => statistics.after_release += new,
        Trouble::Process(Signal::SIGKILL, _) => statistics.after_kill += new,
        _ => statistics.after_trouble += new,
    });
    Ok(())
}

/// The holder is asked to end, and another one starts.
fn hand_over(arena: &mut Arena) -> Verdict {
    let wait = arena
        .random
        .time_between(Duration::ZERO, Duration::from_millis(700));
    arena.pass(wait)?;
    // What an earlier round did to the holder may have ended it only now.
    let (term, front) = arena.wait_until("the holder is there", |arena| {
        let term = arena.history.current()?.clone();
        let front = arena.nodes[term.node].front()?;
        Some((term, front))
    })?;
    signal(front, Signal::SIGTERM, scenario::HAND_OVER);
    let next = arena.expect_term_after(term.token)?;
    let ended = arena
        .history
        .terms
        .iter()
        .find(|old| old.token == term.token);
    let ended = ended.ok_or("the term is not in the history")?.last;
    // Earlier would have been a violation.
    let gap = next.started.saturating_sub(ended);
    arena.note(&format!("handed over in {gap:?}"));
    statistics::with(|statistics| statistics.hand_overs.push(gap));
    Ok(())
}

/// A fault of one node's link, which in most cases is the holder's.
fn link(arena: &mut Arena, term: &Term, fault: fn(&mut Random) -> Fault) -> Verdict {
    let fault = fault(&mut arena.random);
    explain(arena, fault);
    let longest = arena.lease_duration() * 5 / 2;
    let window = arena
        .random
        .time_between(Duration::from_millis(1500), longest);
    let percent = arena.random.pick(&[100, 100, 70, 40]);
    let active = [Active { fault, percent }];
    match arena.random.index(10) {
        0..6 => arena.afflict(term.node, &active),
        6..8 => {
            let node = arena.random.index(arena.nodes.len());
            arena.afflict(node, &active);
        }
        _ => {
            for node in 0..arena.nodes.len() {
                arena.afflict(node, &active);
            }
        }
    }
    let injected = arena.injected();
    arena.pass(window)?;
    insist(arena, injected, fault)
}

/// Sees to it that a round has had a fault: standbys of a calm lease ask seldom, rare faults meet few
/// requests, and a stopped holder sends none.
fn insist(arena: &mut Arena, injected: u64, fault: Fault) -> Verdict {
    if arena.injected() > injected {
        return Ok(());
    }
    let always = [Active {
        fault,
        percent: 100,
    }];
    for node in 0..arena.nodes.len() {
        arena.afflict(node, &always);
    }
    arena.wait_until("a fault takes effect", |arena| {
        (arena.injected() > injected).then_some(())
    })
}

/// Says which exit codes a fault explains: a candidate whom the server does not want gives up.
fn explain(arena: &mut Arena, fault: Fault) {
    match fault {
        Fault::Answer(Status::UNAUTHORIZED) => arena.explained.push(78),
        Fault::Answer(Status::FORBIDDEN) => arena.explained.push(77),
        _ => {}
    }
}

/// Processes of the holder are killed, or stopped for a while.
fn process(arena: &mut Arena, kind: Signal, whom: Whom) -> Verdict {
    if whom == Whom::Guard || whom == Whom::FrontAndGuard {
        // Front fails when the guard dies.
        arena.explained.push(125);
    }
    let wait = arena
        .random
        .time_between(Duration::ZERO, Duration::from_millis(1500));
    arena.pass(wait)?;
    let (term, pids) = arena.wait_until("the holder's processes are there", |arena| {
        let term = arena.history.current()?.clone();
        let pids = pids(arena, &term, whom)?;
        Some((term, pids))
    })?;
    let name = scenario::signal_name(kind, whom);
    arena.note(&format!("{kind} to {pids:?}"));
    // The second may have ended because of the first.
    let sent = pids.iter().map(|pid| signal(*pid, kind, name));
    if !sent.collect::<Vec<_>>()[0] {
        return Err("the holder's processes have ended by themselves".to_owned());
    }
    match kind {
        Signal::SIGKILL => {
            if let Whom::Front | Whom::FrontAndGuard = whom {
                crash(arena, &term)?;
            } else {
                arena.expect_term_after(term.token)?;
            }
        }
        _ => {
            let longest = arena.lease_duration() * 2;
            let window = arena
                .random
                .time_between(Duration::from_millis(50), longest);
            arena.pass(window)?;
            for pid in pids {
                // Those that are left; numbers are not given out again so soon.
                let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), Signal::SIGCONT);
            }
        }
    }
    Ok(())
}

/// Waits for the take-over after a holder's death, which must not come before its lease is over.
fn crash(arena: &mut Arena, term: &Term) -> Verdict {
    // So that what the holder had sent is through, and long before anybody may take over.
    arena.pass(Duration::from_millis(300))?;
    let renewed = arena.nodes[term.node].link.renewed();
    let duration = arena.nodes[term.node].lease_duration;
    let next = arena.expect_term_after(term.token)?;
    let renewed = renewed.ok_or("the holder's renewals did not come by")?;
    // Clocks may differ by so much; ours is the same.
    let earliest = renewed + duration.mul_f64(0.999);
    if next.started < earliest {
        let early = earliest - next.started;
        return Err(format!("taken over {early:?} too early"));
    }
    let late = next.started.saturating_sub(renewed + duration);
    arena.note(&format!("taken over {late:?} after the end"));
    statistics::with(|statistics| statistics.crashes.push(late));
    Ok(())
}

fn pids(arena: &Arena, term: &Term, whom: Whom) -> Option<Vec<i32>> {
    let front = arena.nodes[term.node].front()?;
    let guard = guard_of(term.pid)?;
    Some(match whom {
        Whom::Front => vec![front],
        Whom::Guard => vec![guard],
        Whom::Command => vec![term.pid],
        // In the other order front might release the lease before it is its turn.
        Whom::FrontAndGuard => vec![front, guard],
    })
}

/// The network of a node, which in most cases is the holder's, is cut.
fn network(arena: &mut Arena, term: &Term, cut: Cut) -> Verdict {
    let node = match arena.random.percent(75) {
        true => term.node,
        false => arena.random.index(arena.nodes.len()),
    };
    let longest = arena.lease_duration() * 5 / 2;
    let window = arena
        .random
        .time_between(Duration::from_millis(500), longest);
    arena.note(&format!("node {node}: {cut:?} for {window:?}"));
    arena.namespace(node)?.cut(cut);
    let passed = arena.pass(window);
    let mended = arena.namespace(node)?.mend(cut);
    arena.note("mended");
    passed.and(mended)
}

/// The API server or etcd fails, for all nodes.
fn servers(arena: &mut Arena, control_plane: &ControlPlane, outage: Outage) -> Verdict {
    let longest = arena.lease_duration() * 2;
    let window = arena
        .random
        .time_between(Duration::from_millis(500), longest);
    arena.note(&format!("{outage:?} for {window:?}"));
    match outage {
        Outage::ApiServerStopped => {
            tally::count(Outage::ApiServerStopped.name());
            control_plane.stop_api_server();
            let passed = arena.pass(window);
            control_plane.continue_api_server();
            passed
        }
        Outage::ApiServerKilled => restart_api_server(arena, control_plane, window),
        Outage::ApiServerRestartedThrice => {
            for _ in 0..3 {
                restart_api_server(arena, control_plane, Duration::from_millis(100))?;
            }
            Ok(())
        }
        Outage::EtcdStopped => {
            tally::count(Outage::EtcdStopped.name());
            control_plane.stop_etcd();
            let passed = arena.pass(window);
            control_plane.continue_etcd();
            passed
        }
        Outage::EtcdKilled => {
            tally::count(Outage::EtcdKilled.name());
            control_plane.kill_etcd();
            let passed = arena.pass(window);
            control_plane.start_etcd();
            passed
        }
    }
}

/// Of two API servers behind one name one fails for a while, which may be longer than the lease lasts, and
/// then one again: the holder goes on with the other.
fn one_server(arena: &mut Arena, control_plane: &ControlPlane, term: &Term) -> Verdict {
    let mut second = control_plane.start_second_api_server_on(SECOND);
    let admins = [&control_plane.url(), second.url()];
    let admins = admins.map(|url| control_plane.client_at(url, User::Admin));
    for _ in 0..2 {
        let longest = arena.lease_duration() * 4 / 3;
        let window = arena
            .random
            .time_between(Duration::from_millis(500), longest);
        let victim = arena.random.index(3);
        arena.note(&format!("fault {victim} for {window:?}"));
        tally::count(scenario::ONE_SERVER);
        match victim {
            0 => control_plane.stop_api_server(),
            1 => control_plane.kill_api_server(),
            _ => second.stop(),
        }
        let passed = arena.pass(window);
        match victim {
            0 => control_plane.continue_api_server(),
            1 => control_plane.start_api_server(),
            _ => second.resume(),
        }
        passed?;
        arena.wait_until("both servers are ready", |_| {
            let is_ready = |admin: &Requests| {
                let answer = admin.send(&Method::GET, "/readyz", None);
                answer.is_ok_and(|answer| answer.status == 200)
            };
            admins.iter().all(is_ready).then_some(())
        })?;
    }
    match arena.history.current() {
        Some(now) if now.token == term.token => Ok(()),
        now => Err(format!(
            "the fault of one server has cost {term:?} the lease: {now:?}"
        )),
    }
}

fn restart_api_server(
    arena: &mut Arena,
    control_plane: &ControlPlane,
    window: Duration,
) -> Verdict {
    tally::count(Outage::ApiServerKilled.name());
    control_plane.kill_api_server();
    let passed = arena.pass(window);
    control_plane.start_api_server();
    passed
}

/// Several kinds of trouble one after the other and at once, 60 % of it for the holder.
fn mix(arena: &mut Arena) -> Verdict {
    // A guard may be killed, and access be denied.
    arena.explained.extend([77, 78, 125]);
    let injected = arena.injected();
    let phases = 3 + arena.random.index(4);
    let mut stopped = None;
    // Only once: the tree may outlive front and guard if both are struck.
    let strikes_in = arena.random.index(2 * phases);
    for phase in 0..phases {
        let node = match (arena.random.percent(60), arena.history.current()) {
            (true, Some(term)) => term.node,
            _ => arena.random.index(arena.nodes.len()),
        };
        let faults = (0..1 + arena.random.index(2)).map(|_| Active {
            fault: scenario::fault(&mut arena.random),
            percent: arena.random.pick(&[100, 50, 20]),
        });
        let faults = faults.collect::<Vec<_>>();
        arena.afflict(node, &faults);
        if phase == strikes_in {
            stopped = strike(arena);
        }
        let cut = arena.nodes[node].namespace.is_some() && arena.random.percent(40);
        let cut = cut.then(|| arena.random.pick(&[Cut::Down, Cut::Requests, Cut::Answers]));
        if let Some(cut) = cut {
            arena.note(&format!("node {node}: {cut:?}"));
            arena.namespace(node)?.cut(cut);
        }
        let time = arena
            .random
            .time_between(Duration::from_millis(300), Duration::from_secs(3));
        arena.pass(time)?;
        if let Some(cut) = cut {
            arena.namespace(node)?.mend(cut)?;
        }
        if arena.random.percent(40) {
            arena.afflict(node, &[]);
        }
    }
    if let Some(pid) = stopped {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), Signal::SIGCONT);
    }
    // Standbys have connections too, if only to watch.
    insist(arena, injected, Fault::Reset)
}

/// Sends one process of the holder, if there is one, SIGKILL or SIGSTOP; returns who is stopped.
fn strike(arena: &mut Arena) -> Option<i32> {
    let whom = arena
        .random
        .pick(&[Whom::Front, Whom::Guard, Whom::Command]);
    let kind = arena.random.pick(&[Signal::SIGKILL, Signal::SIGSTOP]);
    let term = arena.history.current()?.clone();
    let pid = pids(arena, &term, whom)?[0];
    arena.note(&format!("{kind} to {whom:?} {pid}"));
    signal(pid, kind, scenario::signal_name(kind, whom));
    (kind == Signal::SIGSTOP).then_some(pid)
}

/// Instances with different leases run at once, and the harness must see it.
fn overlap(arena: &mut Arena) -> Verdict {
    let deadline = std::time::Instant::now() + LIMIT;
    // Commands that find the lock taken end so.
    arena.explained.push(99);
    while std::time::Instant::now() < deadline {
        // The violation is what it waits for.
        let looked = arena.look();
        if let Some(violation) = arena.history.violation().map(str::to_owned) {
            arena.note(&format!("seen, as it should be: {violation}"));
            return Ok(());
        }
        looked?;
        std::thread::sleep(Duration::from_millis(10));
    }
    Err("two that run at once were not seen".to_owned())
}

/// Logs that no two commands can have written alone must be seen through, and a good one believed.
fn forgery(arena: &Arena) -> Verdict {
    let good = "start 7 1 root 0 10 -\ntick 7 1 root 0 20 1\ntick 7 2 child 0 21 -\n\
                tick 7 1 root 0 30 2\nstop 7 1 root 0 40 -\n\
                start 9 3 root 1 50 -\ntick 9 3 root 1 60 4\n";
    let forgeries = [
        ("overlap 11 4 root 2 70 -", "the lock was taken"),
        ("start 9 4 root 2 70 -", "the token did not grow"),
        ("start 8 4 root 2 70 -", "the token did not grow"),
        ("start 11 4 root 2 55 -", "older than the last sign of life"),
        ("tick 7 2 child 0 70 -", "a process of an older term lives"),
        ("stop 7 2 child 0 70 -", "a process of an older term lives"),
        ("tick 9 3 root 1 70 4", "the counter is not exact"),
        ("tick 9 3 root 1 70 6", "the counter is not exact"),
        ("something else", "a line is malformed"),
    ];
    let path = arena.history.path().with_file_name("forged");
    let violation = |text: &str| {
        fs::write(&path, text).expect("a file can be written");
        let mut history = History::new(path.clone());
        history.refresh();
        history.violation().map(str::to_owned)
    };
    if let Some(problem) = violation(good) {
        return Err(format!("a good log is not believed: {problem}"));
    }
    for (line, expected) in forgeries {
        match violation(&format!("{good}{line}\n")) {
            Some(problem) if problem.contains(expected) => {}
            other => return Err(format!("{line:?} was taken for {other:?}")),
        }
    }
    Ok(())
}
