//! How long front waits for a word of the guard before it takes the guard for stopped.

use std::time::Duration;

use crate::clock::Instant;

/// A wait for one word.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    pub(super) since: Instant,
    pub(super) limit: Duration,
}

impl Patience {
    /// What is left of it; zero once the guard is to be given up.
    pub(super) fn left(self, now: Instant) -> Duration {
        self.limit.saturating_sub(now.held_since(self.since))
    }

    /// The one of the two that ends first.
    pub(super) fn or_sooner(self, other: Self, now: Instant) -> Self {
        if other.left(now) < self.left(now) {
            other
        } else {
            self
        }
    }
}

/// The order to start the command, as long as the guard has not said that it has read it. Before it
/// says so it forks nothing, so a guard that has died without a word of it has left nobody.
#[derive(Clone, Copy, Debug)]
pub(super) struct Unanswered {
    /// Lasts until the deadline that came with the order, because after that the guard would refuse
    /// it; shorter once somebody asked us to end.
    pub(super) patience: Patience,
    /// The first signal that asked us to end.
    pub(super) cancelled_by: Option<i32>,
}
