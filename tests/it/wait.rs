//! Waiting for a condition, with a limit, in place of sleeping for a guessed time.

use std::fmt::Display;
use std::thread;
use std::time::{Duration, Instant};

/// How long a test waits for what should take well under a second. Generous, because a loaded
/// machine may run a test many times slower; a test that passes never waits this long.
pub(crate) const LIMIT: Duration = Duration::from_secs(30);

/// Returns what `condition` finds as soon as it finds something, and panics with what was awaited if
/// it has found nothing within `limit`.
#[track_caller]
pub(crate) fn wait_until<T>(
    what: impl Display,
    limit: Duration,
    condition: impl FnMut() -> Option<T>,
) -> T {
    match try_wait_until(limit, condition) {
        Some(found) => found,
        None => panic!("waited {limit:?} in vain until {what}"),
    }
}

/// The same for a caller that has more to say about why it failed.
pub(crate) fn try_wait_until<T>(
    limit: Duration,
    mut condition: impl FnMut() -> Option<T>,
) -> Option<T> {
    let deadline = Instant::now() + limit;
    loop {
        // The deadline is looked at first, so that the condition is tried once more after it: the
        // whole process may have been stopped between the two.
        let is_last = Instant::now() >= deadline;
        if let Some(found) = condition() {
            return Some(found);
        }
        if is_last {
            return None;
        }
        thread::sleep(POLL_INTERVAL);
    }
}

const POLL_INTERVAL: Duration = Duration::from_millis(10);
