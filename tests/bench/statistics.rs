//! Durations in columns, and what is said of them in one row each.

use std::{fmt, slice::IterMut, time::Duration};

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
}

impl fmt::Display for Samples {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:<44}{:>10}{:>10}{:>10}{:>10}",
            "", "min", "median", "p99", "max"
        )?;
        for (name, column) in self.names.iter().zip(&self.columns) {
            let mut sorted = column.clone();
            sorted.sort();
            write!(f, "{name:<44}")?;
            for percent in [0, 50, 99, 100] {
                let milliseconds = percentile(&sorted, percent).as_secs_f64() * 1e3;
                write!(f, "{milliseconds:>10.2}")?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

/// The smallest sample that at least `percent` of them don't exceed.
fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied().unwrap_or_default()
}
