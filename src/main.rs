//! The order of the start, and the one printed error.
//!
//! Everything that can be wrong without the lease is found before the lease is touched, and no
//! thread exists before the guard is forked.

use std::{
    env,
    fs::{self, File},
    io::{ErrorKind, Write},
    os::unix::fs::MetadataExt,
    process::ExitCode,
    thread,
    time::Duration,
};

use anyhow::Context;
use lease_exec::{
    cli::{self, Config, LogFormat, Place, Request, UsageError},
    driver::{self, Ending, Parts},
    election::Settings,
    exit::Exit,
    lease::{Failure, FailureKind, Identity},
    log::{self, Log},
    names::Namespace,
    signals::{self, Signals},
    store::{
        file::FileStore,
        kube::{ClusterConfig, KubeStore, Source},
    },
    supervisor::{Above, Command, Inherited, Options, Supervisor},
};
use tokio::runtime::Runtime;
use uuid::Uuid;

fn main() -> ExitCode {
    let request = match cli::parse(env::args_os()) {
        Ok(request) => request,
        Err(error) => return fail(LogFormat::Text, Exit::Usage, &error.to_string()),
    };
    let config = match request {
        Request::Run(config) => config,
        Request::Print(text) => return print(&text),
    };
    let format = config.log_format;
    let mut above = Above::Caller;
    let ending = run(*config, &mut above);
    let ending = ending.unwrap_or_else(|error| {
        let exit = if error.is::<UsageError>() {
            Exit::Usage
        } else {
            Exit::Internal
        };
        Ending::new(exit, format!("{error:#}"))
    });
    match (ending.exit, ending.message) {
        (Exit::Signal(signal), None) => signals::die_of(signal, above),
        (exit, None) => ExitCode::from(exit.code()),
        (exit, Some(message)) => fail(format, exit, &message),
    }
}

/// Prints why nothing was run.
fn fail(format: LogFormat, exit: Exit, message: &str) -> ExitCode {
    // Nobody may be listening, and there is nobody else to tell.
    let _ = writeln!(std::io::stderr(), "{}", log::error_line(format, message));
    ExitCode::from(exit.code())
}

/// Prints what was asked for.
fn print(text: &str) -> ExitCode {
    let mut stdout = std::io::stdout();
    match write!(stdout, "{text}").and_then(|()| stdout.flush()) {
        Ok(()) => ExitCode::SUCCESS,
        // Who has closed a pipe (`| head`) has read enough.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => {
            ExitCode::from(Exit::Internal.code())
        }
        Err(error) => {
            let message = format!("can't write to standard output: {error}");
            fail(LogFormat::Text, Exit::Internal, &message)
        }
    }
}

/// Where the lease lives, found to be usable; no request was sent.
enum Prepared {
    Kube(Box<ClusterConfig>),
    File(FileStore),
}

impl Prepared {
    /// As people know it: the server's URL, or what `--store` says.
    fn describe(&self) -> String {
        match self {
            Self::Kube(cluster) => cluster.server(),
            Self::File(store) => format!("file:{}", store.directory().display()),
        }
    }
}

fn run(config: Config, above: &mut Above) -> anyhow::Result<Ending> {
    let inherited = Inherited::at_entry()?;
    // Until the guard is forked a signal may end us as any program. Only PID 1 has to catch what
    // comes early, because to it the kernel sends no signal that has no handler.
    let early = (std::process::id() == 1).then(|| Signals::block(inherited));
    let command = match Command::find(&config.command) {
        Ok(command) => command,
        Err(error) => return Ok(Ending::new(driver::exit_of(error.kind), error.message)),
    };
    let (prepared, namespace) = match prepare(&config) {
        Ok(prepared) => prepared,
        Err(failure) => return Ok(Ending::new(Exit::Configuration, failure.message)),
    };
    let settings = settings(&config)?;
    let lease = (namespace.to_string(), config.name.to_string());
    let described = format!("{namespace}/{}", config.name);

    let options = Options {
        kill_budget: config.timing.kill_budget,
        kin: kin(&config.place, &described),
        leftovers: config.leftovers,
        audience: config.audience,
        privileges: config.privileges,
        stop_signal: config.stop_signal,
    };
    let signals = early.unwrap_or_else(|| Signals::block(inherited));
    let supervisor = Supervisor::begin(inherited, command, options)?;
    *above = supervisor.above();
    // From here on there may be threads.
    let log = Log::start(config.log_format, config.verbosity)?;
    let signals = signals.listen(supervisor.forwarder(), supervisor.above())?;
    let runtime = runtime()?;
    let parts = Parts {
        supervisor,
        signals,
        stop_signal: config.stop_signal,
        lease,
        place: prepared.describe(),
        above: env::var("LEASE_HOLDER_IDENTITY").ok(),
    };
    let ending = runtime.block_on(async {
        match prepared {
            Prepared::File(store) => driver::run(store, parts, settings).await,
            Prepared::Kube(cluster) => match KubeStore::new(*cluster, namespace, config.name) {
                Ok(store) => driver::run(store, parts, settings).await,
                Err(failure) => {
                    parts.supervisor.finish();
                    Ending::new(Exit::Configuration, failure.message)
                }
            },
        }
    });
    // A credential plugin or a file that hangs must not keep us.
    runtime.shutdown_background();
    log.finish(&ending, &described);
    Ok(Ending {
        message: None,
        ..ending
    })
}

/// Those who contend for the same lease. A directory is known by what it is, because a mount shows it
/// under another path too. Kubernetes clusters count as the same: one has many addresses. The number
/// is the same in each release: an older one's remains must be known by it.
fn kin(place: &Place, lease: &str) -> u64 {
    let directory = match place {
        Place::File(directory) => fs::metadata(directory).map_or_else(
            |_| "?".to_owned(),
            |found| format!("{}:{}", found.dev(), found.ino()),
        ),
        Place::Kube { .. } => String::new(),
    };
    // FNV-1a, of 64 bits (RFC 9923).
    format!("{directory} {lease}")
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        })
}

/// Starts the runtime, with all that it needs later where there may be nothing left to be had.
fn runtime() -> anyhow::Result<Runtime> {
    // tokio panics without these.
    let spare = (0..SPARE_DESCRIPTORS).map(|_| File::open("/dev/null"));
    let spare: Vec<File> = spare
        .collect::<Result<_, _>>()
        .context("can't open files")?;
    drop(spare);
    let thread = thread::Builder::new().spawn(|| ());
    // A thread that does nothing does not panic.
    let _ = thread.context("can't start a thread")?.join();

    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .thread_keep_alive(FOR_EVER)
        .build()
        .context("can't start the runtime")?;
    // As long as one thread for blocking work lives, more of it waits for that one.
    runtime.spawn_blocking(|| ());
    Ok(runtime)
}

/// As many as the runtime and a store have open at once, and some for the unforeseen.
const SPARE_DESCRIPTORS: usize = 10;

/// Longer than this program runs.
const FOR_EVER: Duration = Duration::from_secs(u32::MAX as u64);

/// Finds where the lease lives, and its namespace.
fn prepare(config: &Config) -> Result<(Prepared, Namespace), Failure> {
    let flag = config.namespace.as_deref();
    let pod_namespace = env::var("POD_NAMESPACE")
        .ok()
        .filter(|text| !text.is_empty());
    let named = |name: &str| {
        let namespace = Namespace::new(name);
        namespace.map_err(|sentence| Failure::new(FailureKind::Misconfigured, sentence))
    };
    match &config.place {
        Place::Kube {
            kubeconfig,
            context,
            impersonate,
            impersonate_groups,
            impersonate_uid,
        } => {
            let cluster = ClusterConfig::load(Source {
                kubeconfig: kubeconfig.clone(),
                context: context.clone(),
                impersonate: impersonate.clone(),
                impersonate_groups: impersonate_groups.clone(),
                impersonate_uid: impersonate_uid.clone(),
            })?;
            let namespace = named(&cluster.namespace(flag, pod_namespace.as_deref()))?;
            Ok((Prepared::Kube(Box::new(cluster)), namespace))
        }
        Place::File(directory) => {
            let namespace = named(flag.or(pod_namespace.as_deref()).unwrap_or("default"))?;
            let store = FileStore::open(directory, &namespace, &config.name)?;
            Ok((Prepared::File(store), namespace))
        }
    }
}

fn settings(config: &Config) -> anyhow::Result<Settings> {
    // Unique to this process: a pod's name stays the same when its container is restarted, and a
    // pid is always 1.
    let random = Uuid::new_v4();
    let identity = Identity::new(format!("{}_{random}", readable_identity(config)?));
    Ok(Settings {
        identity: identity.context("can't make up an identity")?,
        timing: config.timing,
        wait: config.wait,
        create: config.create,
        server_clock_skew: config.server_clock_skew,
        kill_after: config.kill_after,
        conflict: config.conflict,
        seed: random.as_u64_pair().0,
    })
}

/// The part of the identity by which people know us.
fn readable_identity(config: &Config) -> anyhow::Result<String> {
    if let Some(text) = &config.identity {
        return Ok(text.clone());
    }
    if let Some(text) = env::var_os("POD_NAME").filter(|text| !text.is_empty()) {
        let text = text.to_string_lossy().into_owned();
        cli::check_identity("POD_NAME", &text)?;
        return Ok(text);
    }
    let name = nix::unistd::gethostname().context("can't read the host name")?;
    Ok(name.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kin_is_the_same_in_each_release() {
        let place = Place::Kube {
            kubeconfig: None,
            context: None,
            impersonate: None,
            impersonate_groups: Vec::new(),
            impersonate_uid: None,
        };
        assert_eq!(kin(&place, "ops/nightly"), 0x8019_55ed_ad3a_16d3);
    }
}
