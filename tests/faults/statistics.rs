//! What the rounds measured, and the summary.

use std::{
    fmt::Write,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use crate::{support::percentile, tally};

/// What all rounds of this run have measured.
#[derive(Debug, Default)]
pub(crate) struct Statistics {
    /// Take-overs by what came before.
    pub(crate) after_release: usize,
    pub(crate) after_kill: usize,
    pub(crate) after_trouble: usize,
    /// From the end of one command to the start of the next.
    pub(crate) hand_overs: Vec<Duration>,
    /// From a killed holder's last renewal, plus the lease duration, to the start of the next
    /// command.
    pub(crate) crashes: Vec<Duration>,
}

static STATISTICS: Mutex<Statistics> = Mutex::new(Statistics {
    after_release: 0,
    after_kill: 0,
    after_trouble: 0,
    hand_overs: Vec::new(),
    crashes: Vec::new(),
});

/// Changes or reads the statistics.
pub(crate) fn with<T>(change: impl FnOnce(&mut Statistics) -> T) -> T {
    change(&mut STATISTICS.lock().unwrap_or_else(PoisonError::into_inner))
}

impl Statistics {
    pub(crate) fn take_overs(&self) -> usize {
        self.after_release + self.after_kill + self.after_trouble
    }

    /// All of it, and what was injected, as lines.
    pub(crate) fn summary(&self) -> String {
        let mut text = format!(
            "take-overs: {} ({} after a release, {} after a SIGKILL, {} after other faults)\n",
            self.take_overs(),
            self.after_release,
            self.after_kill,
            self.after_trouble,
        );
        for (name, samples) in [
            ("hand-over", &self.hand_overs),
            ("take-over after a crash, less the duration", &self.crashes),
        ] {
            let mut sorted = samples.clone();
            sorted.sort();
            let Some(max) = sorted.last() else {
                continue;
            };
            let [half, most, max] = [percentile(&sorted, 50), percentile(&sorted, 99), *max]
                .map(|time| time.as_secs_f64() * 1e3);
            let count = sorted.len();
            let _ = writeln!(
                text,
                "{name}: p50 {half:.1} ms, p99 {most:.1} ms, max {max:.1} ms ({count} samples)"
            );
        }
        text.push_str("faults that took effect:\n");
        for (name, count) in tally::counts() {
            let _ = writeln!(text, "{count:>8}  {name}");
        }
        text
    }
}
