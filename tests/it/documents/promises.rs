//! The table of what shows each promise names what there is.

use std::{fs, path::Path};

const CONTRIBUTING: &str = include_str!("../../../CONTRIBUTING.md");
const SCENARIOS: &str = include_str!("../../faults/scenario.rs");

#[test]
fn each_test_scenario_and_mutant_that_shows_a_promise_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let tests = sources_in(&root.join("tests/it"));
    let is_test = |name: &str| tests.contains(&format!("#[test]\nfn {name}("));
    let is_scenario = |name: &str| SCENARIOS.contains(&format!("\"{name}\" => "));
    let is_mutant = |name: &str| root.join(format!("tests/mutants/{name}.patch")).exists();
    let exists = |kind: &str, name: &str| match kind {
        "test" => is_test(name),
        "scenario" => is_scenario(name),
        _ => is_mutant(name),
    };

    let mut counts = [0; 3];
    for row in rows() {
        let cells: Vec<&str> = row.split('|').skip(2).collect();
        let mut names_of_row = 0;
        let kinds = ["test", "scenario", "mutant"];
        for ((cell, kind), count) in cells.iter().zip(kinds).zip(&mut counts) {
            for name in cell.split('`').skip(1).step_by(2) {
                assert!(exists(kind, name), "there is no {kind} {name}: {row}");
                *count += 1;
                names_of_row += 1;
            }
        }
        assert!(names_of_row > 0, "nothing shows this: {row}");
    }
    assert!(counts.iter().all(|&count| count >= 10), "only {counts:?}");
}

/// The rows of the table, without its head.
fn rows() -> impl Iterator<Item = &'static str> {
    let (_, section) = CONTRIBUTING
        .split_once("### What shows what is promised")
        .expect("there is such a section");
    let lines = section.lines().skip_while(|line| !line.starts_with('|'));
    lines.take_while(|line| line.starts_with('|')).skip(2)
}

/// All that stands in the Rust files below this directory.
fn sources_in(directory: &Path) -> String {
    let mut text = String::new();
    for entry in fs::read_dir(directory).expect("the sources are there") {
        let path = entry.expect("the sources can be listed").path();
        if path.is_dir() {
            text.push_str(&sources_in(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            text.push_str(&fs::read_to_string(&path).expect("a source is UTF-8"));
        }
    }
    text
}
