//! The history of swaps, as whoever looks at the store from outside sees it: it must be that of one
//! lease whose versions follow each other, whatever order requests arrive in and answers come back.
//!
//! Must not: ask the server whether a swap is right; what it stored before is remembered here.

use super::world::World;
use crate::lease::{Claim, Uid, Version, Write};

/// The end of the history.
#[derive(Debug, Default)]
pub(super) struct Swaps {
    /// What is stored, if anything.
    stored: Option<(Uid, Version)>,
    /// The newest revision, which may be that of a deletion.
    newest: u64,
}

impl World {
    /// A swap was carried out: it must be on exactly the version before it, so that no two are on
    /// the same. To be called before [`Self::watcher_sees_change`].
    pub(super) fn check_swap(&mut self, write: &Write) {
        if write.base.as_ref().map(named) != self.watcher.swaps.stored {
            self.violate("a swap on another version than the one before it");
        }
    }

    /// Something was stored, or removed, or is told once more.
    pub(super) fn watcher_sees_change(&mut self) {
        let newest = self.server.revision();
        let stored = self.server.stored().map(|stored| named(&stored.claim));
        let last = &self.watcher.swaps;
        let is_old = newest == last.newest && stored == last.stored;
        if newest <= last.newest && !is_old {
            self.violate("a version that does not grow");
        }
        self.watcher.swaps = Swaps { stored, newest };
    }

    /// What is read must be what the last swap has stored.
    pub(super) fn check_read(&mut self, claim: Option<&Claim>) {
        if claim.map(named) != self.watcher.swaps.stored {
            self.violate("a read of something else than what was stored last");
        }
    }

    /// Each command that starts has a token above those of all before it.
    pub(super) fn check_token(&mut self, position: usize) {
        let newcomer = &self.trees[position];
        if newcomer.disowned.is_none() && newcomer.token <= self.watcher.last_token {
            self.violate("a command starts with a token that is not above the last one");
        }
    }
}

/// What of a claim a swap is on.
fn named(claim: &Claim) -> (Uid, Version) {
    (claim.uid.clone(), claim.version.clone())
}
