//! Where a lease lives: read it, write it by compare-and-swap, watch it.
//!
//! Must not: retry, judge whether a lease has expired, tell the time but for an object's age by the
//! store's own clock. A conflict is a value, not an error. Every call is one attempt; the caller
//! puts a time limit on it and may drop it at any point, after which a write may or may not have
//! been carried out.

use std::{future::Future, time::Duration};

use crate::lease::{Change, Claim, Failure, Outcome, Version, Write};

pub mod file;
mod json;
pub mod kube;

/// A place where one lease lives.
pub trait Store {
    /// The stream of changes of this store.
    type Watch: Watch;

    /// Reads what is stored now; `None` if there is nothing. Linearizable: never from a cache.
    fn read(&self) -> impl Future<Output = Result<Option<Claim>, Failure>>;

    /// Makes one attempt at a write.
    fn write(&self, write: Write) -> impl Future<Output = Result<Outcome, Failure>>;

    /// Waits until the first attempt has what it needs, however long that takes. To be dropped is
    /// safe; attempts work without it.
    fn prepare(&self) -> impl Future<Output = ()> {
        std::future::ready(())
    }

    /// Says what the last attempt waited for, if it was dropped: "the answer of ...".
    fn awaited(&self) -> Option<String> {
        None
    }

    /// Watches for changes after `from`; `None` means from now on, where there was nothing.
    /// Returns at once; failures come as changes.
    fn watch(&self, from: Option<Version>) -> Self::Watch;

    /// Calls `act`, which may stop this process, while nothing is under way in it for which other
    /// processes would have to wait; after `limit` all the same. Blocks.
    fn while_idle(&self, limit: Duration, act: impl FnOnce()) {
        let _ = limit;
        act();
    }
}

/// Changes, one after another.
pub trait Watch {
    /// Waits for the next change. Nothing follows [`Change::Ended`] and [`Change::Refused`].
    /// Dropping the returned future loses nothing.
    fn next(&mut self) -> impl Future<Output = Change>;
}
