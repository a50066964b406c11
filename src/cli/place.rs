//! Where the lease lives, and that no option speaks of another place.

use clap::{ArgMatches, parser::ValueSource};

use super::{Args, Place, UsageError, on_command_line, refuse};

/// Checks `--store` and the options that only a cluster has.
pub(super) fn place(args: &Args, matches: &ArgMatches) -> Result<Place, UsageError> {
    for (flag, text) in [
        ("--as", args.impersonate.as_deref()),
        ("--as-uid", args.impersonate_uid.as_deref()),
    ] {
        if text == Some("") {
            return refuse(format!("{flag} is empty"));
        }
    }
    if args.impersonate_groups.iter().any(String::is_empty) {
        return refuse("--as-group is empty");
    }
    match args.store.split_once(':') {
        None if args.store == "kube" => Ok(Place::Kube {
            kubeconfig: args.kubeconfig.clone(),
            context: args.context.clone(),
            impersonate: args.impersonate.clone(),
            impersonate_groups: args.impersonate_groups.clone(),
            impersonate_uid: args.impersonate_uid.clone(),
        }),
        Some(("file", "")) => refuse("--store file: needs a directory: file:DIR"),
        Some(("file", directory)) => {
            check_no_cluster(&args.store, matches)?;
            Ok(Place::File(directory.into()))
        }
        _ => refuse(format!(
            "--store is {:?}, but must be kube or file:DIR",
            args.store
        )),
    }
}

/// Who names a cluster must not get a lease that other machines know nothing of, as where a
/// `LEASE_EXEC_STORE` was left over. A flag beats a variable.
fn check_no_cluster(store: &str, matches: &ArgMatches) -> Result<(), UsageError> {
    for (id, flag, variable) in [
        ("kubeconfig", "--kubeconfig", "LEASE_EXEC_KUBECONFIG"),
        ("context", "--context", "LEASE_EXEC_CONTEXT"),
        ("impersonate", "--as", "LEASE_EXEC_AS"),
        ("impersonate_groups", "--as-group", "LEASE_EXEC_AS_GROUP"),
        ("impersonate_uid", "--as-uid", "LEASE_EXEC_AS_UID"),
    ] {
        let named_by = match matches.value_source(id) {
            Some(ValueSource::CommandLine) => flag,
            Some(ValueSource::EnvVariable) if !on_command_line(matches, "store") => variable,
            _ => continue,
        };
        let from = match on_command_line(matches, "store") {
            true => "--store",
            false => "LEASE_EXEC_STORE",
        };
        return refuse(format!(
            "{named_by} is for a cluster, but {from} is {store:?}, a directory of this machine"
        ));
    }
    Ok(())
}
