//! What a run has done: counts that say whether it tried anything.

use std::{collections::BTreeMap, fmt};

/// Makes the enum and the list of it from one list of names.
macro_rules! faults {
    ($($name:ident,)*) => {
        /// Everything bad that can happen, in the order in which it is listed.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        #[expect(missing_docs, reason = "the names are what is printed")]
        pub enum Fault {
            $($name,)*
        }

        impl Fault {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name,)*];
        }
    };
}

faults! {
    RequestLost,
    WriteLate,
    AnswerLost,
    AnswerLate,
    ErrorAfterCommit,
    Unauthorized401,
    Forbidden403,
    TooManyRequests429,
    InternalError500,
    Unavailable503,
    Timeout504,
    CutOneWayOut,
    CutOneWayIn,
    CutBothWays,
    EtcdStall,
    Outage,
    RollingRestart,
    WatchEventLost,
    WatchEventDoubled,
    WatchEventLate,
    WatchEventsDisordered,
    WatchFrozen,
    WatchEnded,
    WatchTooOld410,
    WatchForbidden403,
    LeaseDeleted,
    LeaseMadeAgain,
    NamespaceTerminating,
    HolderEdited,
    HolderRemoved,
    DurationEdited,
    DurationRemoved,
    RenewTimeEdited,
    LabelEdited,
    NodePaused,
    FrontPaused,
    FrontStalledBeforeActing,
    Suspended,
    FrontKilled,
    GuardKilled,
    PowerLost,
    TimerLate,
    WallClockStepped,
    ClockRateChanged,
    Signalled,
    CommandDeafToTerm,
    CommandUnkillable,
    CommandLeavesForksBehind,
    CommandNotExecutable,
}

const FAULTS: usize = Fault::ALL.len();

/// The counts of a run.
#[derive(Clone, Debug)]
pub struct Summary {
    /// Seeds that were simulated.
    pub seeds: u64,
    /// Terms that began: a lease was acquired.
    pub elections: u64,
    /// Those in which another process had held the lease just before.
    pub hand_overs: u64,
    /// Commands that started.
    pub starts: u64,
    /// Renewals that a holder learnt of.
    pub renewals: u64,
    /// Releases that were carried out.
    pub releases: u64,
    /// Losses of a lease.
    pub losses: u64,
    /// Requests that were sent.
    pub requests: u64,
    /// Conflicts that were answered.
    pub conflicts: u64,
    /// Elections in worlds that are herds.
    pub herd_elections: u64,
    /// The candidates at each of these, added up.
    pub herd_candidates: u64,
    /// Conflicts that were answered in these worlds.
    pub herd_conflicts: u64,
    /// True time that passed in the simulated worlds, in microseconds.
    pub micros: u64,
    /// Trees that ran on for a moment after a pause beyond their deadline.
    pub run_ons: u64,
    /// Two trees at once after somebody had deleted or edited a held lease, which is not promised.
    pub overlaps_by_hand: u64,
    /// The longest of these, in microseconds.
    pub longest_overlap: u64,
    /// Processes by the code with which they ended.
    pub exits: BTreeMap<u8, u64>,
    faults: [u64; FAULTS],
}

impl Default for Summary {
    fn default() -> Self {
        Self {
            seeds: 0,
            elections: 0,
            hand_overs: 0,
            starts: 0,
            renewals: 0,
            releases: 0,
            losses: 0,
            requests: 0,
            conflicts: 0,
            herd_elections: 0,
            herd_candidates: 0,
            herd_conflicts: 0,
            micros: 0,
            run_ons: 0,
            overlaps_by_hand: 0,
            longest_overlap: 0,
            exits: BTreeMap::new(),
            faults: [0; FAULTS],
        }
    }
}

impl Summary {
    pub(super) fn count(&mut self, fault: Fault) {
        self.faults[fault as usize] += 1;
    }

    /// How often a fault was really injected.
    pub fn injected(&self, fault: Fault) -> u64 {
        self.faults[fault as usize]
    }

    /// The faults that were never injected.
    pub fn missing(&self) -> Vec<Fault> {
        let all = Fault::ALL.iter().copied();
        all.filter(|fault| self.injected(*fault) == 0).collect()
    }

    /// All faults together.
    pub fn faults(&self) -> u64 {
        self.faults.iter().sum()
    }

    /// Simulated time.
    pub fn hours(&self) -> f64 {
        self.micros as f64 / 3.6e9
    }

    /// Adds the counts of another run.
    pub fn add(&mut self, other: &Self) {
        self.seeds += other.seeds;
        self.elections += other.elections;
        self.hand_overs += other.hand_overs;
        self.starts += other.starts;
        self.renewals += other.renewals;
        self.releases += other.releases;
        self.losses += other.losses;
        self.requests += other.requests;
        self.conflicts += other.conflicts;
        self.herd_elections += other.herd_elections;
        self.herd_candidates += other.herd_candidates;
        self.herd_conflicts += other.herd_conflicts;
        self.micros += other.micros;
        self.run_ons += other.run_ons;
        self.overlaps_by_hand += other.overlaps_by_hand;
        self.longest_overlap = self.longest_overlap.max(other.longest_overlap);
        for (code, count) in &other.exits {
            *self.exits.entry(*code).or_default() += count;
        }
        for (count, more) in self.faults.iter_mut().zip(other.faults) {
            *count += more;
        }
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:>12}  seeds", self.seeds)?;
        writeln!(f, "{:>12.0}  simulated hours", self.hours())?;
        for (count, name) in [
            (self.elections, "elections"),
            (self.hand_overs, "hand-overs"),
            (self.starts, "starts"),
            (self.renewals, "renewals"),
            (self.releases, "releases"),
            (self.losses, "losses"),
            (self.requests, "requests"),
            (self.conflicts, "conflicts"),
            (self.herd_elections, "elections in a herd"),
            (self.herd_candidates, "candidates at these"),
            (self.herd_conflicts, "conflicts in a herd"),
            (self.run_ons, "run-ons after a pause"),
            (self.overlaps_by_hand, "overlaps after a deletion or edit"),
        ] {
            writeln!(f, "{count:>12}  {name}")?;
        }
        let longest = self.longest_overlap as f64 / 1e6;
        writeln!(f, "{longest:>12.3}  seconds, the longest of these")?;
        writeln!(f, "{:>12}  faults:", self.faults())?;
        for fault in Fault::ALL {
            let name = words(&format!("{fault:?}"));
            writeln!(f, "{:>16}  {name}", self.injected(*fault))?;
        }
        writeln!(f, "{:>12}  exits:", self.exits.values().sum::<u64>())?;
        for (code, count) in &self.exits {
            writeln!(f, "{count:>16}  with {code}")?;
        }
        Ok(())
    }
}

/// `TheName` as `the name`.
fn words(name: &str) -> String {
    let mut words = String::new();
    let mut after_digit = false;
    for letter in name.chars() {
        let begins = letter.is_ascii_uppercase() || letter.is_ascii_digit() && !after_digit;
        if begins && !words.is_empty() {
            words.push(' ');
        }
        after_digit = letter.is_ascii_digit();
        words.push(letter.to_ascii_lowercase());
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_add_up_and_are_shown_in_words() {
        let mut one = Summary::default();
        one.count(Fault::Unauthorized401);
        one.elections = 2;
        *one.exits.entry(79).or_default() += 1;
        let mut sum = one.clone();
        sum.add(&one);
        assert_eq!(sum.elections, 4);
        assert_eq!(sum.injected(Fault::Unauthorized401), 2);
        assert_eq!((sum.missing().len(), sum.faults()), (FAULTS - 1, 2));
        let shown = sum.to_string();
        assert!(shown.contains("2  unauthorized 401\n"), "{shown}");
        assert!(shown.contains("2  with 79\n"), "{shown}");
        assert!(shown.contains("  0  outage\n"), "none is left out: {shown}");
    }
}
