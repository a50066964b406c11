//! What is wrong with a command line, in one sentence.

use std::ffi::OsString;

use clap::{
    builder::Resettable,
    error::{ContextKind, ContextValue},
};

use super::command;

/// The message, which in clap's words is about an option also where the variable in its place is wrong.
pub(super) fn name_variable(error: &clap::Error, argv: Vec<OsString>) -> String {
    let sentence = one_sentence(error);
    let Some(ContextValue::String(option)) = error.get(ContextKind::InvalidArg) else {
        return sentence;
    };
    let command = command();
    let Some(variable) = command
        .get_arguments()
        .find(|arg| arg.get_long().is_some_and(|long| names(option, long)))
        .and_then(clap::Arg::get_env)
    else {
        return sentence;
    };
    let without = command
        .clone()
        .mut_args(|arg| arg.env(Resettable::Reset))
        .try_get_matches_from(argv);
    let is_the_same = without.is_err_and(|other| {
        other.get(ContextKind::InvalidArg) == error.get(ContextKind::InvalidArg)
    });
    if is_the_same {
        return sentence;
    }
    sentence.replace(&format!("'{option}'"), &variable.to_string_lossy())
}

/// Whether this is the option of that name, as clap writes it: with its values or dots.
fn names(option: &str, long: &str) -> bool {
    let rest = option
        .strip_prefix("--")
        .and_then(|name| name.strip_prefix(long));
    rest.is_some_and(|rest| !rest.starts_with(|char: char| char == '-' || char.is_alphanumeric()))
}

/// clap's message as one sentence, without its heading, usage and hints.
pub(super) fn one_sentence(error: &clap::Error) -> String {
    let rendered = error.render().to_string();
    let lines = rendered
        .lines()
        .map(str::trim)
        .take_while(|line| !line.is_empty());
    let sentence = lines.collect::<Vec<_>>().join(" ");
    let sentence = sentence.strip_prefix("error: ").unwrap_or(&sentence);
    format!("{sentence} (see lease-exec --help)")
}
