//! How a candidate keeps out of the way of the others who wait for the same lease.
//!
//! Nothing here makes anything safe: every write is a compare-and-swap, and of many only one
//! succeeds. It spares the API server the others.
//!
//! Must not: bring an attempt forward, or put one off without a limit.

use std::time::Duration;

use super::super::outbox::{Outbox, Timer};
use crate::{clock::Instant, lease::Identity};

/// So many lost races show a crowd. One shows no more than one rival, who held the lease from then
/// on and is gone when it is free again: whoever shares a lease with one or two others is never
/// delayed.
const CROWD: u32 = 2;

/// The first window, as a part of the retry period: a quarter of a second of 2 s.
const FIRST: u32 = 8;

/// The widest window. On two busy cores 200 standbys need some 100 ms to be told of anything, and
/// most of them still meet in an eighth of the retry period.
const WIDEST: u32 = 4;

/// The narrowest window that is kept.
const NARROWEST: u32 = 64;

/// The crowd, as far as this candidate has met it.
///
/// Standbys see a release within the same few milliseconds, and if all of them write at once, all
/// but one meet a conflict. So whoever has met a crowd waits before an attempt for a random part of
/// its *window*, and gives the attempt up, without a request, when the watch shows a new holder
/// meanwhile. With n candidates and a window w the first of them tries after about w / n, and only
/// those conflict whose moment lies within the one round trip and the one event that tell the
/// others of it: about n * trip / w of n. A window costs much only where the crowd is gone, and
/// then once, because who waits alone wins.
///
/// Nobody is told how large the crowd is. It shows in what becomes of an attempt: the window opens
/// with the second race that is lost, doubles with each further one up to a limit, and halves
/// when the lease was to be had for three quarters of it before anybody took it, which in a crowd
/// never happens: it can't be told from a slow server, so it takes much. A fresh candidate has no
/// window; it then wins, and the others give up. What others do, and whether they do the same,
/// matters to nothing but the number of conflicts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Crowd {
    /// Races lost since the window was last closed, up to [`CROWD`].
    lost: u32,
    window: Duration,
    /// From when the lease was to be had until when our attempt is made.
    turn: Option<Timer>,
}

impl Crowd {
    /// Whether to try now, the lease being to be had; if not, [`Self::left`] says when. An attempt
    /// that would come after `limit` is made at once.
    pub(super) fn is_our_turn(
        &mut self,
        outbox: &mut Outbox,
        now: Instant,
        limit: Option<Duration>,
    ) -> bool {
        if self.window.is_zero() {
            return true;
        }
        let window = self.window;
        let turn = self.turn.get_or_insert_with(|| Timer {
            since: now,
            after: outbox.part_of(window),
        });
        let left = turn.left(now);
        left.is_zero() || limit.is_some_and(|limit| limit <= left)
    }

    /// How long until our turn; `None` if we wait for none.
    pub(super) fn left(&self, now: Instant) -> Option<Duration> {
        self.turn.map(|turn| turn.left(now))
    }

    /// The attempt is made.
    pub(super) fn enter(&mut self) {
        self.turn = None;
    }

    /// Somebody else has taken the lease; if we waited for our turn, it is given up.
    pub(super) fn yield_turn(&mut self, now: Instant, retry_period: Duration) {
        let Some(turn) = self.turn.take() else {
            return;
        };
        if now.held_since(turn.since) <= self.window * 3 / 4 {
            return;
        }
        self.window /= 2;
        if self.window < retry_period / NARROWEST {
            *self = Self::default();
        }
    }

    /// Our attempt was made, and somebody else's won.
    pub(super) fn lose(&mut self, retry_period: Duration) {
        self.lost = (self.lost + 1).min(CROWD);
        if self.lost == CROWD {
            let wider = (self.window * 2).max(retry_period / FIRST);
            self.window = wider.min(retry_period / WIDEST);
        }
    }
}

/// A write of ours that is to acquire the lease, until it is known who has won.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Race {
    /// Who held the lease before, if anybody did.
    pub(super) from: Option<Identity>,
    /// Since it was sent the watch has told what others have made of the lease, and not of a later
    /// write of our own.
    pub(super) is_told: bool,
    /// It was answered by a conflict.
    pub(super) is_refused: bool,
}
