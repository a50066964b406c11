//! The names on the command line: the lease's, its namespace's and our own.

use clap::ArgMatches;

use super::{Args, UsageError, on_command_line, refuse};

/// Splits and checks the lease's name and namespace.
pub(super) fn lease_name(
    args: &Args,
    matches: &ArgMatches,
) -> Result<(Option<String>, String), UsageError> {
    let Some(lease) = &args.lease else {
        return refuse(
            "no lease is named: lease-exec --lease NAME -- COMMAND [ARGS...] (see lease-exec --help)",
        );
    };
    let (prefix, name) = match lease.split_once('/') {
        Some((prefix, name)) => (Some(prefix.to_owned()), name),
        None => (None, lease.as_str()),
    };
    let namespace = match (prefix, &args.namespace) {
        (Some(prefix), Some(namespace)) if prefix != *namespace => {
            // A flag beats a variable, whichever of the two it is.
            match (
                on_command_line(matches, "lease"),
                on_command_line(matches, "namespace"),
            ) {
                (true, false) => Some(prefix),
                (false, true) => Some(namespace.clone()),
                _ => {
                    return refuse(format!(
                        "--lease names the namespace {prefix:?}, but --namespace names {namespace:?}"
                    ));
                }
            }
        }
        (Some(prefix), _) => Some(prefix),
        (None, namespace) => namespace.clone(),
    };
    check_name("lease name", name, 253, true)?;
    if let Some(namespace) = &namespace {
        check_name("namespace", namespace, 63, false)?;
    }
    Ok((namespace, name.to_owned()))
}

/// Checks a name by RFC 1123 as Kubernetes applies it: lower-case letters, digits and `-`, and `.`
/// in a subdomain, beginning and ending (each part) with a letter or digit.
///
/// # Errors
///
/// [`UsageError`], with the offending character.
pub fn check_name(what: &str, name: &str, most: usize, dots: bool) -> Result<(), UsageError> {
    let allowed = if dots {
        "a-z, 0-9, '-' and '.'"
    } else {
        "a-z, 0-9 and '-'"
    };
    if name.is_empty() {
        return refuse(format!("the {what} is empty"));
    }
    if name.len() > most {
        return refuse(format!(
            "the {what} has {} characters, but at most {most} are allowed",
            name.len()
        ));
    }
    let is_word = |letter: char| letter.is_ascii_lowercase() || letter.is_ascii_digit();
    let wrong = name
        .char_indices()
        .find(|(_, letter)| !(is_word(*letter) || *letter == '-' || (dots && *letter == '.')));
    if let Some((at, letter)) = wrong {
        return refuse(format!(
            "the {what} {name:?} has {letter:?} at position {}, but only {allowed} are allowed",
            at + 1
        ));
    }
    for part in name.split('.') {
        let edges = [part.chars().next(), part.chars().next_back()];
        for edge in edges {
            match edge {
                Some(letter) if is_word(letter) => {}
                Some(letter) => {
                    return refuse(format!(
                        "the {what} {name:?} has {letter:?} where each part must begin and end with a-z or 0-9"
                    ));
                }
                None => {
                    return refuse(format!(
                        "the {what} {name:?} has an empty part beside a '.'"
                    ));
                }
            }
        }
    }
    Ok(())
}

/// Checks the readable part of an identity, which `what` names.
///
/// # Errors
///
/// [`UsageError`] if it is empty, too long, or would not fit on a line.
pub fn check_identity(what: &str, text: &str) -> Result<(), UsageError> {
    if text.is_empty() {
        return refuse(format!("{what} is empty"));
    }
    if text.len() > 200 {
        return refuse(format!(
            "{what} has {} bytes, but at most 200 are allowed",
            text.len()
        ));
    }
    match text.chars().find(|letter| letter.is_control()) {
        Some(letter) => refuse(format!("{what} holds the control character {letter:?}")),
        None => Ok(()),
    }
}
