//! Durations in columns, and what is said of them in one row each.

use std::{fmt, slice::IterMut, time::Duration};

use crate::support::percentile;

/// Durations of the same thing done by each of those that are compared.
pub(crate) struct Samples {
    names: Vec<&'static str>,
    columns: Vec<Vec<Duration>>,
}

impl Samples {
    pub(crate) fn of(names: impl Iterator<Item = &'static str>) -> Self {
        let names = names.collect::<Vec<_>>();
        let columns = vec![Vec::new(); names.len()];
        Self { names, columns }
    }

    /// The durations to add to, in the order of the names.
    pub(crate) fn columns(&mut self) -> IterMut<'_, Vec<Duration>> {
        self.columns.iter_mut()
    }

    /// The smallest of this one's durations that at least `percent` of them don't exceed; `None` if
    /// nothing of that name was measured.
    pub(crate) fn percentile(&self, name: &str, percent: usize) -> Option<Duration> {
        let place = self.names.iter().position(|other| *other == name)?;
        let mut sorted = self.columns.get(place)?.clone();
        sorted.sort();
        (!sorted.is_empty()).then(|| percentile(&sorted, percent))
    }

    /// How many times as long as for `peer` it takes for `own`, by their medians; `None` if either
    /// was not measured.
    pub(crate) fn ratio(&self, own: &str, peer: &str) -> Option<f64> {
        let own = self.percentile(own, 50)?.as_secs_f64();
        let peer = self.percentile(peer, 50)?.as_secs_f64();
        (peer > 0.0).then(|| own / peer)
    }
}

impl fmt::Display for Samples {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:<44}{:>10}{:>10}{:>10}{:>10}{:>8}",
            "", "min", "median", "p99", "max", "rounds"
        )?;
        for (name, column) in self.names.iter().zip(&self.columns) {
            let mut sorted = column.clone();
            sorted.sort();
            write!(f, "{name:<44}")?;
            for percent in [0, 50, 99, 100] {
                write!(f, "{:>10.2}", milliseconds(percentile(&sorted, percent)))?;
            }
            writeln!(f, "{:>8}", sorted.len())?;
        }
        Ok(())
    }
}

/// A duration as the tables have it.
pub(crate) fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
