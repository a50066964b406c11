//! Many standbys behind one holder: how soon one of them runs, and what all of them ask of the API
//! server.

use std::{thread, time::Duration};

use crate::{
    contender::{Contender, Ground, Instance},
    memory,
    metrics::Requests,
    print_ratios,
    stamp::Stamps,
    statistics::Samples,
    wait,
};

/// What a herd of one contender did.
struct Herd {
    gaps: Vec<Duration>,
    requests: Requests,
}

/// Hands over from one to the next of `standbys` and a holder, for each contender in turn.
pub(crate) fn report(ground: &Ground, stamps: &Stamps, contenders: &[Contender], standbys: usize) {
    let mut samples = Samples::of(contenders.iter().map(Contender::name));
    let hand_overs = HAND_OVERS.min(standbys);
    let mut counted = Vec::new();
    for (contender, samples) in contenders.iter().zip(samples.columns()) {
        let herd = run(ground, stamps, *contender, standbys, hand_overs);
        samples.extend(herd.gaps);
        if contender.asks_api_server() {
            counted.push((contender.name(), herd.requests));
        }
    }
    println!(
        "\nHerd: from the end of one command to the start of the next, with {standbys} standbys at the \
         first hand-over and one less at each that follows, ms"
    );
    print!("{samples}");
    print_ratios(&samples, None);
    println!(
        "\nRequests of the whole herd per hand-over, within {} s of it, and how many of all were answered \
         so (a watch is counted when it ends)",
        CALM.as_secs()
    );
    let row = |name: &str, cells: [String; 6]| {
        let cells = cells.map(|cell| format!("{cell:>9}")).concat();
        println!("{name:<44}{cells}");
    };
    let head = ["GET", "PUT", "WATCH", "all", "409", "429"];
    row("", head.map(str::to_owned));
    for (name, requests) in counted {
        let cells = [
            requests.with_verb("GET"),
            requests.with_verb("PUT"),
            requests.with_verb("WATCH"),
            requests.total(),
            requests.with_code("409"),
            requests.with_code("429"),
        ];
        let per_hand_over = |count| format!("{:.1}", count as f64 / hand_overs as f64);
        row(name, cells.map(per_hand_over));
    }
}

fn run(
    ground: &Ground,
    stamps: &Stamps,
    contender: Contender,
    standbys: usize,
    hand_overs: usize,
) -> Herd {
    let holder = ground.start(contender, None, stamps);
    let mut command = stamps.next();
    let waiting = (0..standbys)
        .map(|_| ground.start(contender, None, stamps))
        .collect::<Vec<Instance>>();
    wait::wait_until("the herd waits", START_LIMIT, || {
        ground.are_waiting(contender, &waiting).then_some(())
    });
    thread::sleep(CALM);
    let mut gaps = Vec::new();
    let mut requests = Requests::default();
    for _ in 0..hand_overs {
        let before = Requests::of(ground.control_plane());
        let ended = command.end();
        command = stamps.next();
        gaps.push(command.started().since(ended));
        thread::sleep(CALM);
        requests += &Requests::of(ground.control_plane()) - &before;
    }
    // Those who wait first, so that none of them starts.
    let mut all = waiting;
    all.push(holder);
    let (holders, others) = all
        .into_iter()
        .partition::<Vec<_>, _>(|one| memory::tree(one.pid()).contains(&command.pid()));
    for one in others {
        one.terminate(contender);
        one.wait();
    }
    command.end();
    holders.into_iter().for_each(Instance::wait);
    Herd { gaps, requests }
}

/// How many hand-overs are measured, at most.
const HAND_OVERS: usize = 10;

/// After this, whoever wanted the lease has asked for it.
const CALM: Duration = Duration::from_secs(1);

/// Hundreds of processes start at once.
const START_LIMIT: Duration = Duration::from_secs(120);
