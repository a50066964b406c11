//! README, manual page and `--help` say what the program does, and what they tell users to run
//! works.

mod examples;
mod priority;
mod promises;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::process::Command;

use lease_exec::exit;

const README: &str = include_str!("../../README.md");
const MANUAL: &str = include_str!("../../man/lease-exec.1");

// === Options ===

/// What a user is told about an option.
#[derive(Debug, Default, PartialEq, Eq)]
struct Documented {
    short: Option<char>,
    /// The name of its value.
    value: Option<String>,
    environment: Option<String>,
    default: Option<String>,
}

#[test]
fn the_manual_has_every_option_with_its_environment_name_and_default() {
    let help = options_of_help();
    let manual = options_of_manual();
    for (name, in_help) in &help {
        assert_eq!(
            manual.get(name),
            Some(in_help),
            "--{name}: left the manual, right --help"
        );
    }
    let surplus: Vec<&String> = manual
        .keys()
        .filter(|name| !help.contains_key(*name))
        .collect();
    assert!(surplus.is_empty(), "only in the manual: {surplus:?}");
}

#[test]
fn the_manual_has_every_value_that_an_option_can_take() {
    let items = items_of_manual();
    let mut count = 0;
    for (name, text) in items_of_help() {
        let (_, values) = text.split_once("Possible values:\n").unwrap_or_default();
        let values = values
            .lines()
            .map_while(|line| line.trim().strip_prefix("- "));
        for value in values.filter_map(|line| line.split(':').next()) {
            let quoted = format!(".Ql {value}");
            assert!(
                items[&name]
                    .lines()
                    .any(|line| line.trim_end_matches([' ', ':', '.']) == quoted),
                "there is no {value} at --{name} in the manual"
            );
            count += 1;
        }
    }
    assert!(count >= 4, "only {count} values are in --help");
}

#[test]
fn every_option_can_be_given_in_the_environment() {
    for (name, option) in options_of_help() {
        let expected = match name.as_str() {
            "help" | "version" => None,
            name => Some(format!(
                "LEASE_EXEC_{}",
                name.replace('-', "_").to_uppercase()
            )),
        };
        assert_eq!(option.environment, expected, "--{name}");
    }
}

#[test]
fn the_documents_name_no_option_that_does_not_exist() {
    let help = options_of_help();
    let longs: BTreeSet<String> = help.keys().map(|name| format!("--{name}")).collect();
    let shorts: BTreeSet<String> = help
        .values()
        .filter_map(|option| option.short)
        .map(|short| format!("-{short}"))
        .collect();

    let mut named: Vec<&str> = inline_code(README)
        .flat_map(|code| options_in(words(code)))
        .collect();
    assert!(
        named.contains(&"--store"),
        "no options found in the text: {named:?}"
    );
    for line in README.lines().chain(MANUAL.lines()) {
        named.extend(options_in(own_arguments(line)));
    }
    assert!(
        named.contains(&"-w"),
        "no options found in the examples: {named:?}"
    );
    for option in named {
        assert!(
            longs.contains(option) || shorts.contains(option),
            "there is no option {option}"
        );
    }
}

/// The options in `--help`, by their long names.
fn options_of_help() -> BTreeMap<String, Documented> {
    let items = items_of_help().into_iter();
    let options = items.map(|(name, text)| {
        let (heading, body) = text.split_once('\n').unwrap_or((&text, ""));
        let body = body.split_whitespace().collect::<Vec<_>>().join(" ");
        let option = Documented {
            short: heading
                .strip_prefix('-')
                .and_then(|rest| rest.chars().next()),
            value: between(heading, "<", ">"),
            environment: between(&body, "[env: ", "]"),
            default: between(&body, "[default: ", "]"),
        };
        // A long name alone begins with two hyphens.
        (
            name,
            Documented {
                short: option.short.filter(|&short| short != '-'),
                ..option
            },
        )
    });
    options.collect()
}

/// The text on each option in `--help`, by its long name, beginning with its heading, such as
/// `-l, --lease <NAME>`.
fn items_of_help() -> BTreeMap<String, String> {
    let mut items = BTreeMap::new();
    let mut current = None;
    for line in help("--help").lines() {
        let trimmed = line.trim_start();
        if line.len() - trimmed.len() <= HEADING_INDENT && trimmed.starts_with('-') {
            let (_, long) = trimmed.split_once("--").expect("an option has a long name");
            let end = long
                .find(|char: char| !is_of_name(char))
                .unwrap_or(long.len());
            items.extend(current.replace((long[..end].to_owned(), trimmed.to_owned())));
        } else if let Some((_, text)) = &mut current {
            text.push('\n');
            text.push_str(line);
        }
    }
    items.extend(current);
    assert!(items.len() > 10, "--help has an unexpected form: {items:?}");
    items
}

/// In `--help` an option's name stands further left than what is said about it.
const HEADING_INDENT: usize = 6;

/// The options in the manual, by their long names.
fn options_of_manual() -> BTreeMap<String, Documented> {
    let items = items_of_manual().into_iter();
    let options = items.map(|(name, text)| {
        // The separators of the items took the last newline of each.
        let text = format!("{text}\n");
        let (heading, body) = text.split_once('\n').expect("an item has a text");
        let short = heading
            .split_once(" , Fl -")
            .and_then(|(short, _)| short.chars().next());
        let default = body.split_once("Default: ").map(|(_, rest)| {
            let lines = rest.lines().take_while(|line| !line.starts_with('.'));
            lines
                .collect::<Vec<_>>()
                .join(" ")
                .trim_end_matches('.')
                .into()
        });
        let option = Documented {
            short,
            value: between(&format!("{heading}\n"), " Ar ", "\n"),
            environment: between(body, "Environment:\n.Ev ", " .\n"),
            default,
        };
        (name, option)
    });
    options.collect()
}

/// The text on each option in the manual, by its long name, beginning with its heading, such as
/// `l , Fl -lease Ar NAME`.
fn items_of_manual() -> BTreeMap<String, &'static str> {
    let items = section(MANUAL, ".Sh OPTIONS", ".Sh ")
        .split("\n.It Fl ")
        .skip(1);
    let named = items.map(|item| {
        let (_, long) = item.split_once('-').expect("an option has a long name");
        (first_word(long), item)
    });
    named.collect()
}

fn between(text: &str, start: &str, end: &str) -> Option<String> {
    let (_, rest) = text.split_once(start)?;
    let (content, _) = rest.split_once(end)?;
    Some(content.into())
}

/// The words of a command line in an example that are lease-exec's own: from its name, or from what
/// `cargo run` passes on, to `--`. In YAML the words are separated by commas.
fn own_arguments(line: &str) -> impl Iterator<Item = &str> {
    let is_start = |word: &str| word.rsplit('/').next() == Some("lease-exec");
    let by_cargo = line.contains("cargo run -- ");
    words(line)
        .skip_while(move |word| {
            if by_cargo {
                *word != "--"
            } else {
                !is_start(word)
            }
        })
        .skip(1)
        .take_while(|word| *word != "--")
}

fn options_in<'text>(words: impl Iterator<Item = &'text str>) -> impl Iterator<Item = &'text str> {
    words.filter(|word| word.starts_with('-') && !word.trim_matches('-').is_empty())
}

fn words(line: &str) -> impl Iterator<Item = &str> {
    line.split(|char: char| char.is_whitespace() || "[],\"".contains(char))
        .filter(|word| !word.is_empty())
}

/// What stands between backticks, outside of fenced blocks, and begins with an option of ours rather
/// than with the name of another program.
fn inline_code(text: &str) -> impl Iterator<Item = &str> {
    let outside_of_fences = text.split("```").step_by(2);
    outside_of_fences
        .flat_map(|part| part.split('`').skip(1).step_by(2))
        .filter(|code| code.starts_with('-'))
}

fn is_of_name(char: char) -> bool {
    char.is_ascii_alphanumeric() || char == '-'
}

fn first_word(text: &str) -> String {
    text.split_whitespace().next().unwrap_or_default().into()
}

// === Help text ===

#[test]
fn the_readme_shows_the_help_text_as_it_is() {
    let shown = block("help");
    assert!(
        shown == help("-h"),
        "the README shows:\n{shown}\n-h says:\n{}",
        help("-h")
    );
}

fn help(option: &str) -> String {
    // Without a terminal the width is that of COLUMNS.
    let output = Command::new(env!("CARGO_BIN_EXE_lease-exec"))
        .arg(option)
        .env("COLUMNS", "100")
        .output()
        .expect("run lease-exec");
    assert!(output.status.success(), "{option} failed: {output:?}");
    String::from_utf8(output.stdout).expect("the help text is UTF-8")
}

// === Exit codes ===

#[test]
fn the_readme_has_the_table_of_exit_codes() {
    assert_eq!(table_in_readme("### Exit codes"), owned(exit::TABLE));
}

#[test]
fn the_manual_has_the_table_of_exit_codes() {
    let section = section(MANUAL, ".Sh EXIT STATUS", ".El");
    let rows = section.split("\n.It ").skip(1).map(|item| {
        let (code, meaning) = item.split_once('\n').expect("an item has a text");
        (
            code.into(),
            meaning.trim_end().replace('\n', " ").replace("\\-", "-"),
        )
    });
    assert_eq!(rows.collect::<Vec<_>>(), owned(exit::TABLE));
}

fn owned(table: &[(&str, &str)]) -> Vec<(String, String)> {
    table
        .iter()
        .map(|&(code, meaning)| (code.into(), meaning.into()))
        .collect()
}

// === Kubernetes ===

#[test]
fn the_documents_name_the_versions_of_kubernetes_that_are_tested() {
    let module = include_str!("../client-go/go.mod");
    let current = module
        .lines()
        .find_map(|line| line.trim().strip_prefix("k8s.io/kubernetes v"))
        .and_then(|version| version.rsplit_once('.'))
        .expect("go.mod names the current Kubernetes")
        .0;
    // The oldest is that of Debian 12.
    let tested = format!("tested with 1.20 and {current}");
    for (name, document) in [("README", README), ("the manual", MANUAL)] {
        assert!(document.contains(&tested), "{name} does not say {tested:?}");
    }
    assert!(README.contains(&format!("Kubernetes {current}, compiled once")));
}

// === The command's environment ===

#[test]
fn the_documents_name_the_variables_that_the_command_gets() {
    let directory = tempfile::tempdir().expect("make a temporary directory");
    let output = Command::new(env!("CARGO_BIN_EXE_lease-exec"))
        .args(["--lease", "documents", "--store"])
        .arg(format!("file:{}", directory.path().display()))
        .args(["--", "env"])
        .output()
        .expect("run lease-exec");
    assert!(output.status.success(), "{output:?}");
    let environment = String::from_utf8(output.stdout).expect("our own environment is UTF-8");
    let set: BTreeSet<String> = environment
        .lines()
        .filter_map(|line| line.split_once('='))
        .map(|(name, _)| name.into())
        .filter(|name: &String| name.starts_with("LEASE_"))
        .collect();
    assert!(set.contains("LEASE_FENCING_TOKEN"), "{set:?}");

    let readme = table_in_readme("These are added for the command:");
    let readme: BTreeSet<String> = readme.into_iter().map(|(name, _)| name).collect();
    assert_eq!(readme, set, "left the README, right the command");

    let manual = section(MANUAL, "Set for the command", ".El");
    let manual: BTreeSet<String> = manual.split("\n.It Ev ").skip(1).map(first_word).collect();
    assert_eq!(manual, set, "left the manual, right the command");
}

/// Where the commands of the tests are found.
fn path() -> OsString {
    std::env::var_os("PATH").expect("the tests run with a PATH")
}

// === Parts of the documents ===

/// The fenced block in the README after the comment `<!-- test: NAME -->`.
fn block(name: &str) -> &'static str {
    let marker = format!("<!-- test: {name} -->\n```");
    let (_, rest) = README
        .split_once(&marker)
        .unwrap_or_else(|| panic!("the README has no fenced block marked {name}"));
    let (_language, rest) = rest.split_once('\n').expect("a fence is a line");
    let (block, _) = rest.split_once("```").expect("a fence is closed");
    block
}

/// The first two columns of the table after `heading` in the README, without its head.
fn table_in_readme(heading: &str) -> Vec<(String, String)> {
    let lines = section(README, heading, "\n#")
        .lines()
        .skip_while(|line| !line.starts_with('|'));
    lines
        .take_while(|line| line.starts_with('|'))
        .skip(2)
        .map(|row| {
            let mut cells = row
                .split('|')
                .skip(1)
                .map(|cell| cell.trim().replace('`', ""));
            let mut cell = || cells.next().expect("a row has two columns");
            (cell(), cell())
        })
        .collect()
}

/// The text from `start` to `end`.
fn section<'text>(text: &'text str, start: &str, end: &str) -> &'text str {
    let (_, rest) = text
        .split_once(start)
        .unwrap_or_else(|| panic!("there is no {start:?}"));
    rest.split_once(end).map_or(rest, |(section, _)| section)
}
