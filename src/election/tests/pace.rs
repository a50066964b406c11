//! Whatever a store answers, it is not asked again and again while no time passes.

use proptest::{prelude::*, test_runner::RngSeed};

use super::*;

/// So many requests may follow each other at once: two attempts, each with a look before it, two looks
/// at what became of the second, and if that has acquired a lease which is to be given back, two
/// attempts at the release with a look between them.
const MOST: usize = 9;

/// What becomes of a request.
#[derive(Clone, Debug)]
enum Answer {
    /// It is carried out, and answered as it should be.
    True,
    /// A write is answered by a conflict, whether it was carried out or not.
    Conflict { carried_out: bool },
    /// It fails, with the server's wish.
    Failed {
        carried_out: bool,
        kind: FailureKind,
        wish: Option<Duration>,
    },
    /// It is not carried out, and answered with what is stored.
    AsItIs,
    /// It is carried out, but something in between leaves the holder and the duration as they were.
    PutBack,
    /// Somebody else takes the lease, and that is the answer.
    Foreign,
}

fn answers() -> impl Strategy<Value = Vec<Answer>> {
    let kind = prop::sample::select(vec![
        FailureKind::Unreachable,
        FailureKind::Unreachable,
        FailureKind::Malformed,
        FailureKind::Malformed,
        FailureKind::Unauthorized,
        FailureKind::Forbidden,
        FailureKind::NoNamespace,
        FailureKind::Misconfigured,
    ]);
    let wish = prop::option::of(prop::sample::select(vec![0, 1, 300, 3_000, 600_000]));
    let failed = (any::<bool>(), kind, wish).prop_map(|(carried_out, kind, wish)| Answer::Failed {
        carried_out,
        kind,
        wish: wish.map(Duration::from_millis),
    });
    let conflict = any::<bool>().prop_map(|carried_out| Answer::Conflict { carried_out });
    let answer = prop_oneof![
        4 => Just(Answer::True),
        4 => failed,
        4 => conflict,
        2 => Just(Answer::AsItIs),
        2 => Just(Answer::PutBack),
        1 => Just(Answer::Foreign),
    ];
    prop::collection::vec(answer, 1..12)
}

/// Answers the request under way like this.
fn answer(bench: &mut Bench, answer: &Answer) {
    let writes = bench.is_writing();
    match *answer {
        Answer::Failed {
            carried_out,
            kind,
            wish,
        } => bench.fail_reply(carried_out, kind, wish),
        Answer::Conflict { carried_out } if writes => {
            let id = take_write(bench, carried_out);
            bench.event(Event::Reply(id, Reply::Written(Ok(Outcome::Conflict))));
        }
        Answer::AsItIs if writes && bench.stored.is_some() => {
            let id = take_write(bench, false);
            answer_with_stored(bench, id);
        }
        Answer::PutBack if writes && bench.stored.is_some() => {
            let before = bench.stored.clone().expect("just asked").record;
            let id = take_write(bench, true);
            let record = bench.stored.clone().expect("nobody deletes it").record;
            bench.store(Record {
                holder: before.holder,
                duration: before.duration,
                ..record
            });
            answer_with_stored(bench, id);
        }
        Answer::Foreign if writes => {
            let id = take_write(bench, false);
            bench.store(held_by("other_1"));
            answer_with_stored(bench, id);
        }
        Answer::Foreign => {
            bench.store(held_by("other_1"));
            bench.reply();
        }
        Answer::True | Answer::Conflict { .. } | Answer::AsItIs | Answer::PutBack => bench.reply(),
    }
}

fn take_write(bench: &mut Bench, carried_out: bool) -> RequestId {
    let Some(Action::Write(id, _)) = bench.request.clone() else {
        panic!("{:?} is no write", bench.request);
    };
    if carried_out {
        bench.carry_out();
    }
    bench.request = None;
    id
}

fn answer_with_stored(bench: &mut Bench, id: RequestId) {
    let claim = bench.answer().expect("something is stored");
    let reply = Reply::Written(Ok(Outcome::Written(claim)));
    bench.event(Event::Reply(id, reply));
}

/// Benches with a request under way, in all that an election may be about.
fn beginnings() -> Vec<(&'static str, Bench)> {
    let with_wait = |wait| Settings { wait, ..settings() };
    let signal = Event::Signalled {
        signal: 15,
        ends: true,
    };
    let candidate = Bench::new(settings());
    let once = Bench::new(with_wait(Some(Duration::ZERO)));
    let standby = || {
        let mut bench = Bench::holding_what(settings(), |bench| bench.store(held_by("other_1")));
        bench.settle();
        bench.pass(seconds(15.1));
        bench
    };
    let mut leaving = standby();
    leaving.event(signal);
    let mut holder = Bench::running(settings());
    holder.pass(seconds(2.0));
    let mut young = Bench::new(Settings {
        create: Create::Quarantine,
        ..settings()
    });
    young.settle();
    young.pass(seconds(2.0));
    let mut draining = Bench::running(settings());
    draining.pass(seconds(2.0));
    super::holding::end(&mut draining);
    let mut releasing = Bench::running(settings());
    super::holding::end(&mut releasing);
    vec![
        ("candidate", candidate),
        ("one attempt", once),
        ("standby", standby()),
        ("leaving standby", leaving),
        ("holder", holder),
        ("young holder", young),
        ("holder that ends while it renews", draining),
        ("holder that releases", releasing),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 2_000,
        failure_persistence: None,
        rng_seed: RngSeed::Fixed(1),
        ..ProptestConfig::default()
    })]

    #[test]
    fn no_answers_make_it_hammer_the_store(answers in answers()) {
        for (what, mut bench) in beginnings() {
            let mut requests = 0;
            let mut answers = answers.iter().cycle();
            while bench.request.is_some() {
                requests += 1;
                prop_assert!(requests <= MOST, "{what} goes on and on");
                answer(&mut bench, answers.next().expect("it goes round"));
            }
        }
    }
}
