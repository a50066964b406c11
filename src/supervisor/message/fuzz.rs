//! Made-up messages: what was sent comes out, and nothing else is taken for a message.

use proptest::prelude::*;

use super::*;
use crate::fuzz;

fn durations() -> impl Strategy<Value = Duration> {
    any::<u64>().prop_map(Duration::from_nanos)
}

fn instants() -> impl Strategy<Value = Instant> {
    (durations(), durations()).prop_map(|(boot, raw)| Instant { boot, raw })
}

fn deadlines() -> impl Strategy<Value = Deadline> {
    let parts = (instants(), durations());
    parts.prop_map(|(sent, kill_after)| Deadline { sent, kill_after })
}

fn orders() -> impl Strategy<Value = Order> {
    let forwarded = (any::<i32>(), any::<i32>(), any::<bool>());
    prop_oneof![
        deadlines().prop_map(Order::Start),
        deadlines().prop_map(Order::Extend),
        forwarded.prop_map(|(signal, sender, from_terminal)| {
            Order::Signal(Forwarded {
                signal,
                sender,
                from_terminal,
            })
        }),
        Just(Order::Terminate),
        Just(Order::Kill),
    ]
}

fn words() -> impl Strategy<Value = Word> {
    let means = any::<[bool; 4]>().prop_map(|[leaf, tether, timer, proc]| Means {
        leaf,
        tether,
        timer,
        proc,
    });
    let status = prop_oneof![
        any::<u8>().prop_map(Status::Exited),
        any::<i32>().prop_map(Status::Signalled),
    ];
    let survivor = (
        any::<i32>(),
        any::<u8>(),
        any::<u32>(),
        any::<[u8; 16]>(),
        any::<[u8; 32]>(),
    );
    prop_oneof![
        status.clone().prop_map(Word::Awaiting),
        any::<i32>().prop_map(Word::Draining),
        any::<i32>().prop_map(Word::Forwarded),
        Just(Word::Starting),
        (any::<i32>(), means).prop_map(|(pid, means)| Word::Started(pid, means)),
        any::<i32>().prop_map(Word::ExecFailed),
        any::<i32>().prop_map(Word::StartFailed),
        any::<i32>().prop_map(Word::Cancelled),
        Just(Word::TooLate),
        any::<i32>().prop_map(Word::Stopped),
        (status, instants()).prop_map(|(status, at)| Word::Ended(status, at)),
        Just(Word::Killing),
        survivor.prop_map(|(pid, state, uid, comm, waits_in)| {
            Word::Survivor(Survivor {
                pid,
                state,
                uid,
                comm,
                waits_in,
            })
        }),
        Just(Word::Survivors),
        Just(Word::Empty),
    ]
}

/// The bytes in which two messages differ beyond their kind, which is the first.
fn kind(bytes: &[u8]) -> Option<u8> {
    bytes.first().copied()
}

proptest! {
    #![proptest_config(fuzz::cases(3_000))]

    #[test]
    fn whatever_is_sent_comes_out_as_it_went_in(
        order in orders(),
        word in words(),
        rest in prop::collection::vec(any::<u8>(), 0..64),
    ) {
        let bytes = [&order.encode()[..], &rest].concat();
        prop_assert_eq!(Order::decode(&bytes), Some((order, rest.as_slice())));
        let bytes = [&word.encode()[..], &rest].concat();
        prop_assert_eq!(Word::decode(&bytes), Some(word));
    }

    #[test]
    fn what_is_cut_off_is_no_message(order in orders(), word in words(), length in 0..SIZE) {
        let (order, word) = (order.encode(), word.encode());
        prop_assert_eq!(Order::decode(&order[..length]), None);
        prop_assert_eq!(Word::decode(&word[..length]), None);
    }

    #[test]
    fn no_bytes_are_taken_for_what_their_kind_does_not_say(
        bytes in prop::collection::vec(any::<u8>(), 0..64),
        small in 0..32_u8,
        has_small in any::<bool>(),
    ) {
        let mut bytes = bytes;
        if let (Some(first), true) = (bytes.first_mut(), has_small) {
            *first = small;
        }
        if let Some((order, rest)) = Order::decode(&bytes) {
            prop_assert_eq!(kind(&order.encode()), kind(&bytes));
            prop_assert_eq!(rest, &bytes[SIZE..]);
            // It means what it would mean if it had been sent so.
            let sent = order.encode();
            prop_assert_eq!(Order::decode(&sent), Some((order, &[][..])));
        } else {
            prop_assert!(bytes.len() < SIZE || bytes[0] > 4);
        }
        if let Some(word) = Word::decode(&bytes) {
            prop_assert_eq!(kind(&word.encode()), kind(&bytes));
            prop_assert_eq!(Word::decode(&word.encode()), Some(word));
        } else {
            prop_assert!(bytes.len() < SIZE || bytes[0] > 16);
        }
    }
}
