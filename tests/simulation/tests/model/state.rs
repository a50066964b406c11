//! What a world looks like at one moment: the store, the nodes and what is under way between them.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    ops::Deref,
    sync::Arc,
    time::Duration,
};

use lease_exec_simulation::{
    clock::{Instant, Now, WallTime},
    election::{Election, Reply, RequestId},
    lease::{Change, Claim, Version, Write},
};

/// True time is counted from the beginning of the world.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct State {
    pub(crate) now: Duration,
    /// How many faults may still happen.
    pub(crate) faults: u8,
    /// How many commands may still end by themselves.
    pub(crate) ends: u8,
    /// How many processes may still start.
    pub(crate) restarts: u8,
    /// How often the lease may still be deleted.
    pub(crate) deletions: u8,
    pub(crate) stored: Option<Stored>,
    /// How many writes were carried out.
    pub(crate) versions: u32,
    /// How often the lease was made.
    pub(crate) objects: u32,
    pub(crate) nodes: Vec<Shared<Node>>,
    /// What is under way, in an order that depends on nothing but its contents.
    pub(crate) messages: Vec<Shared<Message>>,
    /// The token of the last command that was started.
    pub(crate) token: Option<Version>,
    /// What the last step showed.
    pub(crate) landmark: Option<Landmark>,
    /// The first rule that was broken.
    pub(crate) broken: Option<&'static str>,
}

/// What the API server holds.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Stored {
    pub(crate) claim: Claim,
    pub(crate) written: Duration,
    /// Which node wrote it.
    pub(crate) author: usize,
}

/// A machine: the process that contends, if one does, and what it runs.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Node {
    pub(crate) rate: Rate,
    /// Counts the processes, each of which has an identity of its own.
    pub(crate) life: u8,
    pub(crate) election: Option<Election>,
    pub(crate) request: Option<Request>,
    pub(crate) watching: bool,
    /// When the election wants to be woken.
    pub(crate) wake: Option<Duration>,
    /// It is stopped: only the guard and the kernel act.
    pub(crate) paused: bool,
    pub(crate) tree: Option<Tree>,
    /// The tree that a crash left behind is dead by then.
    pub(crate) orphan: Option<Duration>,
    /// What a stopped process has not heard yet.
    pub(crate) unheard: Vec<News>,
    /// The process was told that its tree is dead.
    pub(crate) gone: bool,
}

/// The request that an election waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Request {
    pub(crate) id: RequestId,
    pub(crate) kind: Kind,
    /// When its time limit is over.
    pub(crate) limit: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    Read,
    Write,
}

/// The command and its descendants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Tree {
    /// When the guard sends SIGKILL.
    pub(crate) kill_at: Duration,
    /// It was sent SIGKILL, and is dead by then.
    pub(crate) dead_by: Option<Duration>,
    /// The command itself has ended; others of its tree may live.
    pub(crate) has_ended: bool,
}

/// What a guard says of its tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum News {
    Ended(End),
    Gone,
}

/// How a command came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum End {
    ByItself,
    Killed,
}

/// Something under way between a node and the store.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Message {
    pub(crate) node: usize,
    pub(crate) life: u8,
    pub(crate) cargo: Cargo,
    /// It may take as long as it likes; any other arrives before time passes.
    pub(crate) late: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Cargo {
    Read(RequestId),
    Write(RequestId, Write),
    Answer(RequestId, Reply),
    Notice(Change),
}

impl Cargo {
    /// Whether it is on its way to the store.
    pub(crate) fn is_request(&self) -> bool {
        matches!(self, Self::Read(_) | Self::Write(..))
    }
}

/// What shows that a world has come to where it matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Landmark {
    /// A node has taken a lease that another released.
    HandOver,
    /// A node has taken a lease from a holder that did not renew it.
    TakeOver,
    /// A command was killed because its lease was lost.
    Killed,
    /// A write of unknown fate was found to have been carried out.
    Matched,
    /// Somebody has deleted the lease.
    Deleted,
    /// A node runs its command under a lease that was made again.
    StartedAgain,
}

/// How fast a node's clocks go, in thousandths of true time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Rate(pub(crate) u64);

impl Rate {
    /// What the node's clocks show.
    pub(crate) fn now(self, now: Duration) -> Now {
        let shown = BOOT + Duration::from_nanos(nanos(now) * self.0 / 1000);
        Now {
            at: Instant {
                boot: shown,
                raw: shown,
            },
            // Stands still, as a wall clock may.
            wall: WallTime {
                unix_micros: 1_800_000_000_000_000,
            },
        }
    }

    /// The first moment of true time at which so much will have passed since `since`.
    pub(crate) fn when(self, since: Instant, passed: Duration) -> Duration {
        let shown = nanos(since.boot.saturating_sub(BOOT) + passed);
        Duration::from_nanos((shown * 1000).div_ceil(self.0))
    }
}

/// What the clocks of all nodes show when the world begins.
const BOOT: Duration = Duration::from_secs(1000);

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).expect("a world lasts for seconds")
}

/// A value that is cheap to copy, and whose hash is computed once.
#[derive(Clone, Debug)]
pub(crate) struct Shared<T> {
    value: Arc<T>,
    digest: u64,
}

impl<T: Hash> Shared<T> {
    pub(crate) fn new(value: T) -> Self {
        let mut hasher = DefaultHasher::new();
        value.hash(&mut hasher);
        Self {
            value: Arc::new(value),
            digest: hasher.finish(),
        }
    }

    pub(crate) fn digest(&self) -> u64 {
        self.digest
    }
}

impl<T> Deref for Shared<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T: PartialEq> PartialEq for Shared<T> {
    fn eq(&self, other: &Self) -> bool {
        self.digest == other.digest && self.value == other.value
    }
}

impl<T: Eq> Eq for Shared<T> {}

impl<T> Hash for Shared<T> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.digest.hash(state);
    }
}
