//! The command line: clap's types, and every rule between options, checked once into [`Config`].
//!
//! Must not: touch files, the network or the clock.

use std::{env, ffi::OsString, path::PathBuf, time::Duration};

use clap::{
    ArgAction, ArgMatches, CommandFactory, FromArgMatches, Parser, ValueEnum,
    builder::{BoolishValueParser, Resettable},
    error::ErrorKind,
    parser::ValueSource,
};

use crate::{
    election::{Create, Requested, Timing},
    exit::{CONFLICT, Exit},
    names::{LeaseName, Namespace},
    signals::StopSignal,
    supervisor::{Audience, Leftovers, Privileges},
};

mod fault;
mod names;
mod place;
mod values;

pub use names::check_identity;

use fault::{name_variable, one_sentence};
use names::lease_name;
use place::place;
use values::{duration, stop_signal};

/// Run a command only while holding a Kubernetes Lease
///
/// Acquires the Lease, runs COMMAND once elected, keeps renewing as long as any process of the
/// command lives, and releases the Lease once none does. If the Lease can't be renewed, or is seen
/// in other hands, the command's whole process tree is killed before anybody else may start theirs,
/// and the exit code is 79.
#[derive(Debug, Parser)]
#[command(
    name = "lease-exec",
    version,
    max_term_width = 100,
    after_long_help = AFTER_HELP,
    override_usage = "lease-exec [OPTIONS] --lease <NAME> [--] <COMMAND> [ARGS]..."
)]
struct Args {
    /// The Lease's name; NAMESPACE/NAME also works
    #[arg(
        short,
        long,
        env = "LEASE_EXEC_LEASE",
        value_name = "NAME",
        help_heading = "Lease"
    )]
    lease: Option<String>,

    /// The Lease's namespace [default: POD_NAMESPACE, else the kubeconfig context's, else the
    /// service account's, else "default"]
    #[arg(
        short,
        long,
        env = "LEASE_EXEC_NAMESPACE",
        value_name = "NS",
        help_heading = "Lease"
    )]
    namespace: Option<String>,

    /// The readable part of our identity; a random part is added [default: POD_NAME, else the host
    /// name]
    #[arg(
        short,
        long,
        env = "LEASE_EXEC_IDENTITY",
        value_name = "TEXT",
        help_heading = "Lease"
    )]
    identity: Option<String>,

    /// Where the Lease lives: "kube", or "file:DIR" for trying things and for tests on one machine
    #[arg(
        long,
        env = "LEASE_EXEC_STORE",
        value_name = "STORE",
        default_value = "kube",
        help_heading = "Lease"
    )]
    store: String,

    /// What to do about an absent Lease
    #[arg(
        long,
        env = "LEASE_EXEC_CREATE",
        value_name = "WHEN",
        default_value = "auto",
        help_heading = "Lease"
    )]
    create: CreateArg,

    /// The kubeconfig file; without --kubeconfig and --context KUBECONFIG, ~/.kube/config and the
    /// service account are tried in this order
    #[arg(
        long,
        env = "LEASE_EXEC_KUBECONFIG",
        value_name = "FILE",
        help_heading = "Cluster"
    )]
    kubeconfig: Option<PathBuf>,

    /// The kubeconfig context to use
    #[arg(
        long,
        env = "LEASE_EXEC_CONTEXT",
        value_name = "NAME",
        help_heading = "Cluster"
    )]
    context: Option<String>,

    /// The user to impersonate
    #[arg(
        long = "as",
        env = "LEASE_EXEC_AS",
        value_name = "USER",
        help_heading = "Cluster"
    )]
    impersonate: Option<String>,

    /// A group to impersonate, beside a user (can be repeated)
    #[arg(
        long = "as-group",
        env = "LEASE_EXEC_AS_GROUP",
        value_name = "GROUP",
        help_heading = "Cluster"
    )]
    impersonate_groups: Vec<String>,

    /// The uid to impersonate, beside a user
    #[arg(
        long = "as-uid",
        env = "LEASE_EXEC_AS_UID",
        value_name = "UID",
        help_heading = "Cluster"
    )]
    impersonate_uid: Option<String>,

    /// Give up acquiring after this long; 0s is --no-wait [default: wait for ever]
    #[arg(short, long, env = "LEASE_EXEC_WAIT", value_name = "DURATION", value_parser = duration, allow_hyphen_values = true, help_heading = "Waiting")]
    wait: Option<Duration>,

    /// Make one attempt to acquire
    #[arg(long, env = "LEASE_EXEC_NO_WAIT", value_parser = BoolishValueParser::new(), help_heading = "Waiting")]
    no_wait: bool,

    /// The exit code when somebody else holds the Lease
    #[arg(short = 'E', long, env = "LEASE_EXEC_CONFLICT_EXIT_CODE", value_name = "N", default_value_t = CONFLICT, allow_hyphen_values = true, help_heading = "Waiting")]
    conflict_exit_code: u8,

    /// Ask the command to end by this signal, also where lease-exec gets TERM; a name or a number
    #[arg(short, long, env = "LEASE_EXEC_STOP_SIGNAL", value_name = "SIGNAL", default_value = "TERM", value_parser = stop_signal, allow_hyphen_values = true, help_heading = "Ending")]
    stop_signal: StopSignal,

    /// After a forwarded TERM, INT, HUP, QUIT or stop signal, SIGKILL the tree this much later; 0s is
    /// at once [default: never]
    #[arg(short, long, env = "LEASE_EXEC_KILL_AFTER", value_name = "DURATION", value_parser = duration, allow_hyphen_values = true, help_heading = "Ending")]
    kill_after: Option<Duration>,

    /// Forward signals to the command's whole process group; in the foreground of a terminal the rest
    /// of that group, such as the calling script, does not get them
    #[arg(short, long, env = "LEASE_EXEC_GROUP", value_parser = BoolishValueParser::new(), help_heading = "Command")]
    group: bool,

    /// Wait for what the command leaves behind when it ends, such as daemons, instead of ending it
    #[arg(long, env = "LEASE_EXEC_WAIT_DESCENDANTS", value_parser = BoolishValueParser::new(), help_heading = "Ending")]
    wait_descendants: bool,

    /// Let the command gain no privileges by executing a file (setuid, capabilities)
    #[arg(long, env = "LEASE_EXEC_NO_NEW_PRIVS", value_parser = BoolishValueParser::new(), help_heading = "Command")]
    no_new_privs: bool,

    /// From SIGTERM to SIGKILL when the Lease can't be renewed; 0s is SIGKILL at the renew deadline
    /// [default: as long as is safe, about 3s of 15s]
    #[arg(long, env = "LEASE_EXEC_LOST_GRACE", value_name = "DURATION", value_parser = duration, allow_hyphen_values = true, help_heading = "Ending")]
    lost_grace: Option<Duration>,

    /// How long others must see the Lease unchanged before they may take it; whole seconds
    /// [default: 15s]
    #[arg(long, env = "LEASE_EXEC_LEASE_DURATION", value_name = "DURATION", value_parser = duration, allow_hyphen_values = true, help_heading = "Timing")]
    lease_duration: Option<Duration>,

    /// When a holder that can't renew gives up and ends its command [default: 2/3 of the lease
    /// duration]
    #[arg(long, env = "LEASE_EXEC_RENEW_DEADLINE", value_name = "DURATION", value_parser = duration, allow_hyphen_values = true, help_heading = "Timing")]
    renew_deadline: Option<Duration>,

    /// From one renewal to the next [default: 2/15 of the lease duration]
    #[arg(long, env = "LEASE_EXEC_RETRY_PERIOD", value_name = "DURATION", value_parser = duration, allow_hyphen_values = true, help_heading = "Timing")]
    retry_period: Option<Duration>,

    /// The limit of one request, authentication included [default: 2/15 of the lease duration]
    #[arg(long, env = "LEASE_EXEC_REQUEST_TIMEOUT", value_name = "DURATION", value_parser = duration, allow_hyphen_values = true, help_heading = "Timing")]
    request_timeout: Option<Duration>,

    /// By how much API servers' clocks may differ when they show that a Lease seen for the first
    /// time has run out; "off" never trusts them
    #[arg(
        long,
        env = "LEASE_EXEC_SERVER_CLOCK_SKEW",
        value_name = "DURATION",
        default_value = "5s",
        help_heading = "Timing"
    )]
    server_clock_skew: String,

    /// How messages look; they go to stderr
    #[arg(
        long,
        env = "LEASE_EXEC_LOG_FORMAT",
        value_name = "FORMAT",
        default_value = "text",
        help_heading = "Messages"
    )]
    log_format: LogFormat,

    /// Say more; twice: also what the HTTP client does
    #[arg(short, long, env = "LEASE_EXEC_VERBOSE", action = ArgAction::Count, help_heading = "Messages")]
    verbose: u8,

    /// Say only what went wrong
    #[arg(short, long, env = "LEASE_EXEC_QUIET", value_parser = BoolishValueParser::new(), help_heading = "Messages")]
    quiet: bool,

    /// The command and its arguments, verbatim; no shell
    #[arg(trailing_var_arg = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

const AFTER_HELP: &str = "\
In the command's environment: LEASE_NAME, LEASE_NAMESPACE, LEASE_HOLDER_IDENTITY, \
LEASE_TRANSITIONS, LEASE_UID, and LEASE_FENCING_TOKEN, a number that is constant while this holder \
holds the Lease and larger for every later one.

Examples:
  Run a migration in one replica at a time, each after the other:
    lease-exec --lease migrate -- ./migrate up
  A cron job that is a success where somebody else runs it (a crashed holder's
  Lease runs out in 15s, so wait a little longer than that):
    lease-exec -l nightly --wait 20s -E 0 -- ./nightly.sh
  A container's entrypoint, one replica active and the others on standby:
    ENTRYPOINT [\"/lease-exec\", \"--lease\", \"worker\", \"--\"]
  With no cluster at all:
    lease-exec --lease demo --store file:/tmp/leases -- sh -c 'echo I lead; exec sleep 600'

Exit codes: the command's own, 128+N for signal N, 64 usage, 69 API server unreachable, 75 held by \
somebody else, 77 forbidden, 78 configuration, 79 leadership lost, 80 tree not proven dead, 125 \
our own failure, 126 and 127 command not executable, not found.";

/// `--create` as it is written.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum CreateArg {
    /// Create it
    Auto,
    /// The Lease must exist
    Never,
    /// Create it, and start the command once it has existed for one lease duration
    Quarantine,
}

/// How messages look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// One line of text each
    Text,
    /// One JSON object a line
    Json,
}

/// How much is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verbosity {
    /// Only what went wrong.
    Quiet,
    /// Each change of state.
    Normal,
    /// What leads to it.
    Verbose,
    /// Also what the HTTP client does.
    Trace,
}

/// Where the lease lives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// In a Kubernetes API server.
    Kube {
        /// The kubeconfig file that was named.
        kubeconfig: Option<PathBuf>,
        /// The context that was named.
        context: Option<String>,
        /// The user to impersonate.
        impersonate: Option<String>,
        /// The groups to impersonate.
        impersonate_groups: Vec<String>,
        /// The uid to impersonate.
        impersonate_uid: Option<String>,
    },
    /// In a directory of this machine.
    File(PathBuf),
}

/// What the user asked for, complete and consistent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The lease's name.
    pub name: LeaseName,
    /// The namespace, if one was named.
    pub namespace: Option<Namespace>,
    /// The readable part of the identity, if one was named.
    pub identity: Option<String>,
    /// Where the lease lives.
    pub place: Place,
    /// What to do about an absent lease.
    pub create: Create,
    /// How long to try to acquire; `None` is for ever, zero is one attempt.
    pub wait: Option<Duration>,
    /// How to end when somebody else holds the lease.
    pub conflict: Exit,
    /// By which signal the command is asked to end.
    pub stop_signal: StopSignal,
    /// From a forwarded signal that asks the command to end to SIGKILL.
    pub kill_after: Option<Duration>,
    /// Who gets a signal that is forwarded.
    pub audience: Audience,
    /// What becomes of those whom the command leaves behind.
    pub leftovers: Leftovers,
    /// Whether the command may gain privileges.
    pub privileges: Privileges,
    /// The durations.
    pub timing: Timing,
    /// By how much the clocks of API servers may differ; `None` never trusts them.
    pub server_clock_skew: Option<Duration>,
    /// How messages look.
    pub log_format: LogFormat,
    /// How much is said.
    pub verbosity: Verbosity,
    /// The command and its arguments; never empty.
    pub command: Vec<OsString>,
}

/// What the command line asks for.
#[derive(Debug)]
pub enum Request {
    /// To run a command.
    Run(Box<Config>),
    /// To print this text (help or version) and end.
    Print(String),
}

/// Why the command line is refused: one sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UsageError(pub String);

impl std::fmt::Display for UsageError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for UsageError {}

/// Parses the command line and the `LEASE_EXEC_*` variables; one that is empty counts as unset.
///
/// # Errors
///
/// [`UsageError`] for anything that can't be meant, or that would be unsafe.
pub fn parse(argv: impl IntoIterator<Item = OsString>) -> Result<Request, UsageError> {
    let argv: Vec<OsString> = argv.into_iter().collect();
    let matches = match without_blanks(command()).try_get_matches_from(&argv) {
        Ok(matches) => matches,
        // A help text names all variables.
        Err(error) if error.kind() == ErrorKind::DisplayHelp => {
            let error = command().try_get_matches_from(argv).err().unwrap_or(error);
            return Ok(Request::Print(error.render().to_string()));
        }
        Err(error) if !error.use_stderr() => return Ok(Request::Print(error.render().to_string())),
        Err(error) => return Err(UsageError(name_variable(&error, argv))),
    };
    let args =
        Args::from_arg_matches(&matches).map_err(|error| UsageError(one_sentence(&error)))?;
    Config::new(args, &matches).map(|config| Request::Run(Box::new(config)))
}

/// The command line's definition, for the tests that hold the documents equal to it.
pub fn command() -> clap::Command {
    // Values of the environment do not belong into a help text, nor into a log of it.
    Args::command().mut_args(|arg| arg.hide_env_values(true))
}

/// Takes empty variables for unset, as with POD_NAME: templates leave them where there is no value.
fn without_blanks(command: clap::Command) -> clap::Command {
    command.mut_args(|arg| {
        let name = arg.get_env().map(ToOwned::to_owned);
        let is_blank = name
            .and_then(env::var_os)
            .is_some_and(|value| value.is_empty());
        if is_blank {
            arg.env(Resettable::Reset)
        } else {
            arg
        }
    })
}

impl Config {
    fn new(args: Args, matches: &ArgMatches) -> Result<Self, UsageError> {
        let (namespace, name) = lease_name(&args, matches)?;
        if args.command.is_empty() {
            return refuse(
                "no command is given: lease-exec --lease NAME -- COMMAND [ARGS...] (see lease-exec --help)",
            );
        }
        let timing = Timing::new(Requested {
            lease_duration: args.lease_duration,
            renew_deadline: args.renew_deadline,
            retry_period: args.retry_period,
            request_timeout: args.request_timeout,
            lost_grace: args.lost_grace,
        });
        Ok(Self {
            name,
            namespace,
            identity: match args.identity.clone() {
                Some(text) => check_identity("--identity", &text).map(|()| Some(text))?,
                None => None,
            },
            place: place(&args, matches)?,
            create: match args.create {
                CreateArg::Auto => Create::Auto,
                CreateArg::Never => Create::Never,
                CreateArg::Quarantine => Create::Quarantine,
            },
            wait: wait(&args, matches)?,
            conflict: Exit::Conflict(args.conflict_exit_code),
            stop_signal: args.stop_signal,
            kill_after: args.kill_after,
            audience: if args.group {
                Audience::Group
            } else {
                Audience::Command
            },
            leftovers: if args.wait_descendants {
                Leftovers::Await
            } else {
                Leftovers::End
            },
            privileges: if args.no_new_privs {
                Privileges::NoneNew
            } else {
                Privileges::AsUsual
            },
            timing: timing.map_err(|error| UsageError(error.to_string()))?,
            server_clock_skew: server_clock_skew(&args.server_clock_skew)?,
            log_format: args.log_format,
            verbosity: verbosity(&args, matches)?,
            command: args.command,
        })
    }
}

fn wait(args: &Args, matches: &ArgMatches) -> Result<Option<Duration>, UsageError> {
    match (args.no_wait, args.wait) {
        (false, wait) => Ok(wait),
        (true, None | Some(Duration::ZERO)) => Ok(Some(Duration::ZERO)),
        // A flag beats a variable.
        (true, wait) => match (
            on_command_line(matches, "no_wait"),
            on_command_line(matches, "wait"),
        ) {
            (true, false) => Ok(Some(Duration::ZERO)),
            (false, true) => Ok(wait),
            _ => refuse("--wait and --no-wait exclude each other"),
        },
    }
}

fn verbosity(args: &Args, matches: &ArgMatches) -> Result<Verbosity, UsageError> {
    let verbose = match args.verbose {
        0 => Verbosity::Normal,
        1 => Verbosity::Verbose,
        _ => Verbosity::Trace,
    };
    if !args.quiet || args.verbose == 0 {
        return Ok(if args.quiet {
            Verbosity::Quiet
        } else {
            verbose
        });
    }
    // A flag beats a variable.
    match (
        on_command_line(matches, "quiet"),
        on_command_line(matches, "verbose"),
    ) {
        (true, false) => Ok(Verbosity::Quiet),
        (false, true) => Ok(verbose),
        _ => refuse("--quiet and --verbose exclude each other"),
    }
}

fn server_clock_skew(text: &str) -> Result<Option<Duration>, UsageError> {
    if text == "off" {
        return Ok(None);
    }
    match humantime::parse_duration(text) {
        Ok(skew) => Ok(Some(skew)),
        Err(_) => refuse(format!(
            "--server-clock-skew is {text:?}, but must be a duration, such as 5s or 1m30s, or \"off\""
        )),
    }
}

fn on_command_line(matches: &ArgMatches, id: &str) -> bool {
    matches.value_source(id) == Some(ValueSource::CommandLine)
}

fn refuse<T>(message: impl Into<String>) -> Result<T, UsageError> {
    Err(UsageError(message.into()))
}

#[cfg(test)]
mod tests;
