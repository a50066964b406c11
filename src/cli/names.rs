//! The names on the command line: the lease's, its namespace's and our own.

use clap::ArgMatches;

use crate::names::{LeaseName, Namespace};

use super::{Args, UsageError, on_command_line, refuse};

/// Splits and checks the lease's name and namespace.
pub(super) fn lease_name(
    args: &Args,
    matches: &ArgMatches,
) -> Result<(Option<Namespace>, LeaseName), UsageError> {
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
    let name = LeaseName::new(name).map_err(UsageError)?;
    let namespace = namespace.as_deref().map(Namespace::new).transpose();
    Ok((namespace.map_err(UsageError)?, name))
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
