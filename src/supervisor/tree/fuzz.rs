//! Made-up lines of `/proc/PID/stat`: a process may call itself what it likes.

use proptest::prelude::*;

use super::*;
use crate::fuzz;

proptest! {
    #![proptest_config(fuzz::cases(3_000))]

    #[test]
    fn a_name_never_passes_for_another_field(
        name in prop_oneof![
            prop::collection::vec(any::<u8>(), 0..16),
            "[() A-Z0-9]{0,15}".prop_map(String::into_bytes),
            Just(b"a) S 1 1 (b".to_vec()),
        ],
        state in prop::sample::select(&b"RSDZTtXIP"[..]),
        [pid, parent, group] in any::<[u16; 3]>(),
        numbers in prop::collection::vec(any::<i64>(), 30),
        start_time in any::<u64>(),
    ) {
        let mut fields: Vec<String> = numbers.iter().map(i64::to_string).collect();
        // Number 22; these begin with number 6.
        fields[16] = start_time.to_string();
        let head = [format!("{pid} (").as_bytes(), &name, b") "].concat();
        let tail = format!("{} {parent} {group} {}\n", char::from(state), fields.join(" "));
        let line = [head, tail.into_bytes()].concat();
        let mut comm = [0; 16];
        comm[..name.len()].copy_from_slice(&name);
        let [pid, parent, group] = [pid, parent, group].map(Pid::from);
        let expected = Process { pid, state, parent, group, start_time, comm };
        prop_assert_eq!(Process::parse(&line), Some(expected));
    }

    #[test]
    fn a_damaged_line_is_refused_or_read(
        line in fuzz::damaged(vec![
            b"42 (a) S 7 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 12345 23 24\n".to_vec(),
            b"1 ((sd-pam)) S 0 1 1 0 -1 4194560 1 1 1 1 1 1 1 1 20 0 1 0 18446744073709551615".to_vec(),
        ]),
    ) {
        // Its name can be shown; its state is a letter of the kernel.
        if let Some(process) = Process::parse(&line) {
            let shown = Survivor {
                pid: process.pid,
                state: process.state,
                uid: 0,
                comm: process.comm,
                waits_in: [0; 32],
            };
            let shown = shown.to_string();
            let (name, _) = shown.rsplit_once("), state ").expect("it goes on");
            prop_assert!(!name.chars().any(char::is_control), "{name:?}");
        }
    }
}
