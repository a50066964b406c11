//! Simulates elections for as long as is wanted: see `--help`.

use std::{
    env, fmt,
    io::{self, Write as _},
    process::ExitCode,
    str::FromStr,
    thread,
    time::Instant,
};

use lease_exec_simulation::simulation::{
    Found, PROFILES, Plan, Profile, progress, replay, run, tightness,
};

const HELP: &str = "\
Simulate elections of lease-exec and check that no invariant is broken

Usage: cargo run --release -p lease-exec-simulation -- [OPTIONS]

Options:
      --elections N      Simulate at least so many [default: 500000]
      --profile NAME     What the worlds are like [default: mixed]
      --first-seed N     Begin with this seed [default: 1]
      --threads N        Use so many threads [default: all processors]
      --seed N           Simulate this seed alone, and print its history
      --until-violation  Print after how many elections the first violation was
                         found. Uses one thread, so that the count is always the
                         same
      --limit N          Give that up after so many [default: 500000]
      --tightness        Let kills take longer than the reserve, and print how many
                         worlds of --elections per row [default: 20000] show it
  -h, --help             Print this help

Exit codes:
  0  no violation; with --until-violation: one was found;
     with --tightness: none within the reserve, and some beyond it
  1  a violation, whose seed and history are printed;
     with --until-violation: none was found within the limit;
     with --tightness: the table is not as it should be
  2  wrong usage
";

/// Kills that take this many microseconds longer than the reserve.
const EXCESSES: [i64; 10] = [
    -100_000, -20_000, -5_000, 0, 500, 1_000, 2_000, 5_000, 20_000, 100_000,
];

fn main() -> ExitCode {
    let result = Options::parse(env::args().skip(1)).map(|options| options.carry_out());
    match result {
        Ok(Ok(code)) => code,
        // Nobody reads any more.
        Ok(Err(_)) => ExitCode::FAILURE,
        Err(message) => {
            let _ = writeln!(io::stderr(), "{message}; see --help");
            ExitCode::from(2)
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Task {
    #[default]
    Simulate,
    Replay(u64),
    UntilViolation,
    Tightness,
    Help,
}

#[derive(Debug, Default)]
struct Options {
    task: Task,
    elections: Option<u64>,
    limit: Option<u64>,
    profile: Profile,
    first_seed: Option<u64>,
    threads: Option<usize>,
}

impl Options {
    fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut options = Self::default();
        while let Some(name) = arguments.next() {
            let mut value = || arguments.next().ok_or(format!("{name} needs a value"));
            match name.as_str() {
                "--elections" => options.elections = Some(number(&name, &value()?)?),
                "--limit" => options.limit = Some(number(&name, &value()?)?),
                "--profile" => options.profile = value()?.parse()?,
                "--first-seed" => options.first_seed = Some(number(&name, &value()?)?),
                "--threads" => options.threads = Some(number(&name, &value()?)?),
                "--seed" => options.task = Task::Replay(number(&name, &value()?)?),
                "--until-violation" => options.task = Task::UntilViolation,
                "--tightness" => options.task = Task::Tightness,
                "-h" | "--help" => options.task = Task::Help,
                _ => return Err(format!("there is no option {name}")),
            }
        }
        Ok(options)
    }

    fn carry_out(&self) -> io::Result<ExitCode> {
        match self.task {
            Task::Simulate => self.simulate(),
            Task::Replay(seed) => show(seed, self.profile),
            Task::UntilViolation => self.until_violation(),
            Task::Tightness => self.tightness(),
            Task::Help => {
                write!(io::stdout(), "{HELP}\nProfiles:")?;
                for (name, _) in PROFILES {
                    write!(io::stdout(), " {name}")?;
                }
                writeln!(io::stdout())?;
                Ok(ExitCode::SUCCESS)
            }
        }
    }

    fn plan(&self, elections: u64, threads: usize) -> Plan {
        Plan {
            profile: self.profile,
            seed: self.first_seed.unwrap_or(1),
            elections,
            threads,
        }
    }

    fn simulate(&self) -> io::Result<ExitCode> {
        let all = thread::available_parallelism().map_or(1, usize::from);
        let threads = self.threads.unwrap_or(all);
        let elections = self.elections.unwrap_or(500_000);
        let start = Instant::now();
        let (summary, found) = run(self.plan(elections, threads), progress(self.profile));
        let seconds = start.elapsed().as_secs_f64();
        write!(io::stdout(), "{summary}")?;
        writeln!(io::stdout(), "{seconds:>12.1}  seconds of real time")?;
        match found {
            None => Ok(ExitCode::SUCCESS),
            Some(found) => show(found.seed, self.profile),
        }
    }

    fn until_violation(&self) -> io::Result<ExitCode> {
        let limit = self.limit.unwrap_or(500_000);
        let (summary, found) = run(self.plan(limit, 1), |_| {});
        let elections = summary.elections;
        let Some(found) = found else {
            writeln!(io::stdout(), "no violation in {elections} elections")?;
            return Ok(ExitCode::FAILURE);
        };
        writeln!(
            io::stdout(),
            "violated after {elections} elections, with seed {}: {}",
            found.seed,
            found.violation,
        )?;
        Ok(ExitCode::SUCCESS)
    }

    fn tightness(&self) -> io::Result<ExitCode> {
        let elections = self.elections.unwrap_or(20_000);
        let mut is_tight = true;
        writeln!(
            io::stdout(),
            "kill beyond the reserve   elections   worlds violated"
        )?;
        for excess in EXCESSES {
            let row = tightness(excess, elections);
            let millis = excess as f64 / 1e3;
            let (elections, violations) = (row.elections, row.violations);
            writeln!(
                io::stdout(),
                "{millis:>20.1} ms {elections:>11} {violations:>17}"
            )?;
            is_tight &= (excess > 0) == (violations > 0);
        }
        Ok(if is_tight {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        })
    }
}

/// Prints the history of one seed.
fn show(seed: u64, profile: Profile) -> io::Result<ExitCode> {
    let outcome = replay(seed, profile);
    write!(io::stdout(), "{}", outcome.history)?;
    match outcome.violation {
        None => {
            writeln!(io::stdout(), "seed {seed}: no violation")?;
            Ok(ExitCode::SUCCESS)
        }
        Some(violation) => {
            let found = Found { seed, violation };
            let (violation, again) = (&found.violation, found.replay_command(profile));
            writeln!(
                io::stdout(),
                "seed {seed} of profile {profile}: {violation}\nreplay it with: {again}"
            )?;
            Ok(ExitCode::FAILURE)
        }
    }
}

fn number<T: FromStr<Err: fmt::Display>>(name: &str, text: &str) -> Result<T, String> {
    text.parse()
        .map_err(|error| format!("{name} {text}: {error}"))
}
