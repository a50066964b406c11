//! What the witnesses of one lease wrote, and whether it keeps the promise.
//!
//! Everybody appends to the log, so a line of an older term below the start of a newer one is an
//! overlap, whatever clocks and locks say.

use std::{
    fs::File,
    io::{Read, Seek, SeekFrom},
    path::{Path, PathBuf},
    time::Duration,
};

/// The log of one lease's witnesses, read as it grows.
pub(crate) struct History {
    path: PathBuf,
    offset: u64,
    pub(crate) terms: Vec<Term>,
    /// What the counter was last raised to, as far as the log says.
    count: u64,
    violation: Option<String>,
}

/// One run of the witness. Times are on CLOCK_BOOTTIME.
#[derive(Clone, Debug)]
pub(crate) struct Term {
    pub(crate) token: u64,
    /// The root's.
    pub(crate) pid: i32,
    pub(crate) node: usize,
    pub(crate) started: Duration,
    /// The last line of any of its processes.
    pub(crate) last: Duration,
    /// The last time that the root raised the counter.
    pub(crate) counted: Duration,
    has_counted: bool,
}

impl History {
    /// The log at `path`, which need not exist yet.
    pub(crate) fn new(path: PathBuf) -> Self {
        Self {
            path,
            offset: 0,
            terms: Vec::new(),
            count: 0,
            violation: None,
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Reads what is new.
    pub(crate) fn refresh(&mut self) {
        let Ok(mut file) = File::open(&self.path) else {
            return;
        };
        let mut text = String::new();
        file.seek(SeekFrom::Start(self.offset))
            .and_then(|_| file.read_to_string(&mut text))
            .expect("the log can be read, and is ASCII");
        // The last line may be half written.
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        self.offset += u64::try_from(whole).expect("a usize fits into 64 bits");
        for line in text[..whole].lines() {
            if let Err(problem) = self.take(line) {
                let violation = format!("{problem}: {line:?}");
                self.violation.get_or_insert(violation);
            }
        }
    }

    /// The first line that should not be, and why.
    pub(crate) fn violation(&self) -> Option<&str> {
        self.violation.as_deref()
    }

    /// The newest term.
    pub(crate) fn current(&self) -> Option<&Term> {
        self.terms.last()
    }

    fn take(&mut self, line: &str) -> Result<(), &'static str> {
        let words = line.split(' ').collect::<Vec<_>>();
        let [what, token, pid, role, node, time, count] = words[..] else {
            return Err("a line is malformed");
        };
        let malformed = "a number is malformed";
        let token = token.parse().map_err(|_| malformed)?;
        let time = Duration::from_nanos(time.parse().map_err(|_| malformed)?);
        match what {
            "overlap" => return Err("the lock was taken"),
            "start" => return self.start(token, pid, node, time),
            "tick" | "stop" => {}
            _ => return Err("a line is malformed"),
        }
        let newest = self.terms.last_mut().ok_or("a line before any start")?;
        if token != newest.token {
            return Err("a process of an older term lives");
        }
        newest.last = newest.last.max(time);
        if role != "root" || what == "stop" {
            return Ok(());
        }
        newest.counted = time;
        let count: u64 = count.parse().map_err(|_| malformed)?;
        // One who was killed may have raised it without saying so.
        let slack = u64::from(!newest.has_counted);
        newest.has_counted = true;
        let expected = self.count + 1;
        self.count = count;
        // A term that never counted aloud may have raised it too, and so on.
        let silent = self.terms.iter().rev().skip(1);
        let silent = silent.take_while(|term| !term.has_counted).count();
        let silent = u64::try_from(silent).expect("a usize fits into 64 bits");
        match (expected..=expected + slack * (1 + silent)).contains(&count) {
            true => Ok(()),
            false => Err("the counter is not exact"),
        }
    }

    fn start(
        &mut self,
        token: u64,
        pid: &str,
        node: &str,
        time: Duration,
    ) -> Result<(), &'static str> {
        let last = self.terms.last().map(|term| (term.token, term.last));
        self.terms.push(Term {
            token,
            pid: pid.parse().map_err(|_| "a pid is malformed")?,
            node: node.parse().map_err(|_| "a node is malformed")?,
            started: time,
            last: time,
            counted: time,
            has_counted: false,
        });
        match last {
            Some((older, _)) if older >= token => Err("the token did not grow"),
            Some((_, last)) if last > time => Err("the start is older than the last sign of life"),
            Some(_) | None => Ok(()),
        }
    }
}
