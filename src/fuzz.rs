//! What the tests share that throw made-up input at whatever reads input from outside.
//!
//! The inputs follow from a seed, so that a run can be repeated: `FUZZ_SEED=n` tries others, and
//! `FUZZ_CASES=n` tries n for each test instead of as many as take a second or so.

use proptest::{
    prelude::*,
    sample::Index,
    test_runner::{RngAlgorithm, RngSeed},
};

/// The configuration of a test that tries so many inputs in an ordinary run.
pub(crate) fn cases(ordinary: u32) -> ProptestConfig {
    ProptestConfig {
        cases: variable("FUZZ_CASES").unwrap_or(ordinary),
        rng_algorithm: RngAlgorithm::ChaCha,
        rng_seed: RngSeed::Fixed(variable("FUZZ_SEED").unwrap_or(1)),
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

fn variable<T: std::str::FromStr>(name: &str) -> Option<T> {
    let text = std::env::var(name).ok()?;
    let number = text.parse().ok();
    Some(number.unwrap_or_else(|| panic!("{name} is no number: {text}")))
}

/// One of these texts with some damage: bytes changed, cut out, doubled, put in, or its end missing.
pub(crate) fn damaged(texts: Vec<Vec<u8>>) -> impl Strategy<Value = Vec<u8>> {
    let damage = prop_oneof![
        any::<u8>().prop_map(|byte| vec![byte]),
        Just(Vec::new()),
        proptest::sample::select(POISON).prop_map(|poison| poison.as_bytes().to_vec()),
    ];
    let damages = prop::collection::vec((any::<Index>(), any::<Index>(), damage), 0..6);
    let end = prop::option::weighted(0.2, any::<Index>());
    (prop::sample::select(texts), damages, end).prop_map(|(mut text, damages, end)| {
        for (place, length, damage) in damages {
            let start = place.index(text.len() + 1);
            let length = length.index(9).min(text.len() - start);
            text.splice(start..start + length, damage);
        }
        if let Some(end) = end {
            text.truncate(end.index(text.len() + 1));
        }
        text
    })
}

/// What has a meaning in JSON, YAML, a header or on a terminal.
const POISON: &[&str] = &[
    "null",
    "true",
    "-1",
    "1e999",
    "99999999999999999999999999",
    "\"\"",
    "{}",
    "[]",
    "[[[[[[[[",
    "\\u0000",
    "\\ud800",
    "\u{1b}[2J",
    "\n",
    "\r\n",
    "\t",
    "&a ",
    "*a",
    "<<: *a",
    "!!binary ",
    "? ",
    "- ",
    ": ",
    "---\n",
    "'",
    "\"",
    "|\n",
    "%",
    "\0",
];
