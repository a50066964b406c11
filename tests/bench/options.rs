//! What the command line asks for: which tables, and how much of each.

use std::time::Duration;

/// One thing that is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Table {
    HandOver,
    Sigterm,
    StartUp,
    TakeOver,
    Herd,
    Requests,
    Memory,
    Sizes,
}

/// The tables by their names on the command line, in the order in which they are made.
pub(crate) const TABLES: [(&str, Table); 8] = [
    ("hand-over", Table::HandOver),
    ("sigterm", Table::Sigterm),
    ("start-up", Table::StartUp),
    ("take-over", Table::TakeOver),
    ("herd", Table::Herd),
    ("requests", Table::Requests),
    ("memory", Table::Memory),
    ("sizes", Table::Sizes),
];

/// What is asked for.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    /// All, unless some are named.
    pub(crate) tables: Vec<Table>,
    /// Rounds of what takes milliseconds.
    pub(crate) rounds: usize,
    /// How many wait in the herd.
    pub(crate) standbys: usize,
    /// How long requests are counted in each state.
    pub(crate) window: Duration,
}

impl Options {
    /// Takes the words after the program's name, to which cargo adds `--bench`; `None` asks for help.
    pub(crate) fn parse(words: &[String]) -> Result<Option<Self>, String> {
        let mut options = Self {
            tables: Vec::new(),
            rounds: 30,
            standbys: 50,
            window: Duration::from_secs(30),
        };
        let mut words = words.iter().map(String::as_str);
        while let Some(word) = words.next() {
            match word {
                "--bench" => {}
                "-h" | "--help" => return Ok(None),
                "--rounds" => options.rounds = number(word, words.next(), MOST_ROUNDS)?,
                "--standbys" => options.standbys = number(word, words.next(), MOST_STANDBYS)?,
                "--window" => {
                    let seconds = number(word, words.next(), MOST_SECONDS)?;
                    options.window = Duration::from_secs(seconds as u64);
                }
                option if option.starts_with('-') => {
                    return Err(format!("there is no option {option:?}"));
                }
                _ => {
                    let named = TABLES.iter().find(|(name, _)| *name == word);
                    let (_, table) = named.ok_or_else(|| format!("no table is called {word:?}"))?;
                    options.tables.push(*table);
                }
            }
        }
        if options.tables.is_empty() {
            options.tables = TABLES.map(|(_, table)| table).to_vec();
        }
        Ok(Some(options))
    }

    /// How to ask.
    pub(crate) fn usage() -> String {
        let names = TABLES.map(|(name, _)| name).join(", ");
        format!(
            "usage: cargo bench --bench peers [-- [TABLE...] [--rounds N] [--standbys N] [--window \
             SECONDS]]\ntables: {names}; all of them if none is named"
        )
    }
}

fn number(option: &str, value: Option<&str>, most: usize) -> Result<usize, String> {
    value
        .and_then(|value| value.parse().ok())
        .filter(|number| (1..=most).contains(number))
        .ok_or_else(|| format!("{option} takes a whole number from 1 to {most}"))
}

const MOST_ROUNDS: usize = 10_000;
const MOST_STANDBYS: usize = 200;
const MOST_SECONDS: usize = 3600;
