//! Which worlds there are, and what one seed makes of them.

use std::{fmt, str::FromStr, time::Duration};

use super::{clocks::SLEW, random::Random};
use crate::{
    election::{Create, Requested, Timing},
    exit::{CONFLICT, Exit},
};

/// What the worlds of a run are like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Profile {
    /// One of the following, by the seed.
    #[default]
    Mixed,
    /// All faults, but nobody deletes or edits a held lease.
    Plain,
    /// The lease is deleted and made again as well, and all candidates quarantine.
    Quarantine,
    /// The lease is deleted and made again as well, and nobody quarantines.
    Deletions,
    /// The lease is deleted and edited in any way.
    Edits,
    /// Nothing goes wrong.
    Calm,
    /// Nothing goes wrong for a day, and the command never ends.
    Day,
    /// Up to a hundred candidates.
    Herd,
    /// The clocks, delays and cuts that leave the least room, and a kill that takes as long as the
    /// reserve allows.
    Tight,
    /// All faults but those by hand, on machines that are suspended and whose CLOCK_BOOTTIME is
    /// slewed as fast as chrony does. A kill takes what such clocks leave of the reserve.
    ///
    /// The promise is not made for them: CLOCK_MONOTONIC_RAW, which no one slews, stops in suspend,
    /// so that a holder with a slow CLOCK_BOOTTIME counts up to a twelfth of its term too little.
    Slewed,
    /// All faults but those by hand, leases of a second, and mostly candidates that may not watch.
    Polling,
}

/// Each profile by its name.
pub const PROFILES: [(&str, Profile); 11] = [
    ("mixed", Profile::Mixed),
    ("plain", Profile::Plain),
    ("quarantine", Profile::Quarantine),
    ("deletions", Profile::Deletions),
    ("edits", Profile::Edits),
    ("calm", Profile::Calm),
    ("day", Profile::Day),
    ("herd", Profile::Herd),
    ("tight", Profile::Tight),
    ("slewed", Profile::Slewed),
    ("polling", Profile::Polling),
];

impl FromStr for Profile {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = PROFILES.iter().find(|(name, _)| *name == text);
        found
            .map(|(_, profile)| *profile)
            .ok_or_else(|| format!("there is no profile {text}"))
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let found = PROFILES.iter().find(|(_, profile)| profile == self);
        f.write_str(found.map_or("", |(name, _)| name))
    }
}

/// One world, before anything has happened in it.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) profile: Profile,
    pub(super) nodes: Vec<NodePlan>,
    /// How long it is simulated, in microseconds, as all of the following.
    pub(super) length: u64,
    /// The longest way of a message where nothing is wrong.
    pub(super) latency: u64,
    /// The mean time between two faults of a storm.
    pub(super) pause: u64,
    /// The mean time that a command takes.
    pub(super) work: Option<u64>,
    /// The latest that a delayed write is carried out.
    pub(super) lateness: u64,
    /// The pace of the fastest node. Others keep to it as well: a short duration in a record makes
    /// candidates try that often who do not see its renewals.
    pub(super) pace: u64,
    pub(super) chances: Chances,
    /// The clocks of the API servers.
    pub(super) replicas: Vec<i64>,
    /// What the guard takes longer for a kill than the reserve.
    pub(super) kill_excess: i64,
    /// In storms CLOCK_BOOTTIME is slewed as fast as chrony does.
    pub(super) slews: bool,
}

/// The settings of one node.
#[derive(Clone, Debug)]
pub(super) struct NodePlan {
    pub(super) timing: Timing,
    pub(super) wait: Option<Duration>,
    pub(super) create: Create,
    pub(super) server_clock_skew: Option<Duration>,
    pub(super) kill_after: Option<Duration>,
    pub(super) conflict: Exit,
    /// It may not watch.
    pub(super) polls: bool,
}

/// How often a message of a storm fails, in ten thousand.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Chances {
    pub(super) request_lost: u64,
    pub(super) write_late: u64,
    pub(super) answer_lost: u64,
    pub(super) answer_late: u64,
    pub(super) error_after_commit: u64,
    pub(super) refused: u64,
    pub(super) event_lost: u64,
    pub(super) event_doubled: u64,
    pub(super) event_late: u64,
    pub(super) disordered: u64,
    pub(super) watch_ends: u64,
    pub(super) timer_late: u64,
    pub(super) stall: u64,
}

const SECOND: u64 = 1_000_000;
const MINUTE: u64 = 60 * SECOND;
const HOUR: u64 = 60 * MINUTE;

impl Plan {
    pub(super) fn new(profile: Profile, kill_excess: i64, random: &mut Random) -> Self {
        let profile = match profile {
            Profile::Mixed => one_of_all(random),
            profile => profile,
        };
        // The least of `--server-clock-skew`, less one second for the rounding.
        let spread = (LEAST_SKEW.as_secs() - 1) * SECOND;
        let replicas = random.between(1, 3);
        let clock = |random: &mut Random| i64::try_from(random.between(0, spread)).expect("small");
        let replicas = (0..replicas).map(|_| clock(random)).collect();
        let count = match profile {
            Profile::Herd => random.between(20, 100),
            Profile::Tight => 2,
            Profile::Day => random.between(2, 4),
            _ if random.happens(300) => 1,
            _ if random.happens(500) => random.between(6, 12),
            // Mostly few: more of them say more rarely something new.
            _ => random.between(2, 5),
        };
        let nodes = NodePlan::of_all(profile, count, random);
        let shortest = nodes.iter().map(|node| node.timing.request_timeout).min();
        let shortest = micros(shortest.unwrap_or_default());
        let pace = nodes.iter().map(|node| node.timing.retry_period).min();
        let pace = micros(pace.unwrap_or_default());
        let mean = [25, 90, 300, 1_200, 3_600];
        Self {
            length: match profile {
                Profile::Day => 24 * HOUR,
                Profile::Herd => 6 * MINUTE,
                Profile::Tight => 2 * HOUR,
                _ => HOUR,
            },
            latency: match profile {
                Profile::Tight => 100,
                _ => (random.between(1, 30) * 1_000).min(shortest / 6),
            },
            pause: random.between(5, 100) * SECOND,
            work: match profile {
                Profile::Day => None,
                Profile::Tight => Some(10 * MINUTE),
                // Many hand-overs, so that who has met a crowd shows it.
                Profile::Herd => Some(random.pick(&[5, 10, 15, 25, 60]) * SECOND),
                _ => Some(random.pick(&mean) * SECOND),
            },
            lateness: random.pick(&[0, 5, 60]) * SECOND,
            pace: match profile {
                // Somebody may write one second.
                Profile::Edits => pace.min(SECOND / 8),
                _ => pace,
            },
            chances: Chances::new(profile, random),
            replicas,
            kill_excess: match profile {
                Profile::Slewed => kill_excess - slewed_away(&nodes),
                _ => kill_excess,
            },
            slews: match profile {
                Profile::Slewed => true,
                Profile::Tight => false,
                _ => random.happens(2_500),
            },
            nodes,
            profile,
        }
    }

    pub(super) fn has_storms(&self) -> bool {
        !matches!(self.profile, Profile::Calm | Profile::Day | Profile::Herd)
    }

    pub(super) fn deletes(&self) -> bool {
        matches!(
            self.profile,
            Profile::Quarantine | Profile::Deletions | Profile::Edits
        )
    }

    pub(super) fn edits(&self) -> bool {
        self.profile == Profile::Edits
    }

    /// Whether a machine may be suspended while a clock of its is slewed.
    pub(super) fn slews_in_suspend(&self) -> bool {
        self.profile == Profile::Slewed
    }

    /// Whether two trees may run at once for a while after somebody deleted or edited the lease.
    pub(super) fn bears_overlap_by_hand(&self) -> bool {
        matches!(self.profile, Profile::Deletions | Profile::Edits)
    }

    /// The longest lease duration that any node writes.
    pub(super) fn longest_lease(&self) -> u64 {
        let longest = self.nodes.iter().map(|node| node.timing.lease_duration);
        micros(longest.max().unwrap_or_default())
    }

    /// The longest retry period of any node.
    pub(super) fn longest_retry(&self) -> u64 {
        let longest = self.nodes.iter().map(|node| node.timing.retry_period);
        micros(longest.max().unwrap_or_default())
    }
}

/// The least value of `--server-clock-skew` in use; the API servers' clocks differ by less.
const LEAST_SKEW: Duration = Duration::from_secs(4);

fn one_of_all(random: &mut Random) -> Profile {
    match random.below(100) {
        0..42 => Profile::Plain,
        42..62 => Profile::Quarantine,
        62..78 => Profile::Deletions,
        78..90 => Profile::Edits,
        90..94 => Profile::Tight,
        94..99 => Profile::Calm,
        _ => Profile::Herd,
    }
}

impl NodePlan {
    fn of_all(profile: Profile, count: u64, random: &mut Random) -> Vec<Self> {
        let durations = [1, 2, 3, 5, 10, 15, 15, 15, 30, 60];
        let common = match profile {
            Profile::Tight => 15,
            Profile::Polling => 1,
            _ => random.pick(&durations),
        };
        // A creator can't know of a longer duration that it never saw.
        let mixed = match profile {
            Profile::Quarantine | Profile::Tight | Profile::Slewed | Profile::Polling => false,
            _ => random.happens(3_000),
        };
        let plan = |index| {
            let seconds = if mixed {
                random.pick(&durations)
            } else {
                common
            };
            Self::new(profile, index, seconds, random)
        };
        (0..count).map(plan).collect()
    }

    fn new(profile: Profile, index: u64, seconds: u64, random: &mut Random) -> Self {
        let all_is_well = matches!(profile, Profile::Calm | Profile::Day | Profile::Herd);
        let plain = all_is_well || profile == Profile::Tight;
        // The first node never gives up: there is always somebody who must succeed.
        let waits = index == 0 || plain;
        Self {
            timing: timing(seconds, profile, random),
            wait: match random.below(10) {
                _ if waits => None,
                0 => Some(Duration::ZERO),
                1 | 2 => Some(Duration::from_secs(random.between(1, 120))),
                _ => None,
            },
            create: match profile {
                Profile::Quarantine => Create::Quarantine,
                Profile::Deletions | Profile::Edits if random.happens(8_000) => Create::Auto,
                _ if plain => Create::Auto,
                _ => random.pick(&[
                    Create::Auto,
                    Create::Auto,
                    Create::Never,
                    Create::Quarantine,
                ]),
            },
            server_clock_skew: if random.happens(5_000) {
                Some(LEAST_SKEW + Duration::from_secs(random.below(5)))
            } else {
                None
            },
            kill_after: random
                .happens(6_000)
                .then(|| Duration::from_millis(random.between(0, 20_000))),
            conflict: Exit::Conflict(random.pick(&[CONFLICT, 0, 1])),
            polls: match profile {
                Profile::Polling => random.happens(8_000),
                _ => random.happens(500) && !all_is_well,
            },
        }
    }
}

/// Durations as users give them: the lease duration alone, or all of them.
fn timing(seconds: u64, profile: Profile, random: &mut Random) -> Timing {
    let lease_duration = Duration::from_secs(seconds);
    let plain = Requested {
        lease_duration: Some(lease_duration),
        ..Requested::default()
    };
    let share = |random: &mut Random, low, high| {
        let percent = u32::try_from(random.between(low, high)).expect("at most 100");
        Some(lease_duration * percent / 100)
    };
    let own = Requested {
        renew_deadline: share(random, 50, 86),
        retry_period: share(random, 3, 20),
        request_timeout: share(random, 8, 20),
        lost_grace: share(random, 0, 20).filter(|_| random.happens(5_000)),
        ..plain
    };
    let chosen = if random.happens(3_000) && profile != Profile::Tight {
        own
    } else {
        plain
    };
    Timing::new(chosen)
        .or_else(|_| Timing::new(plain))
        .expect("durations that scale with the lease duration are safe")
}

impl Chances {
    fn new(profile: Profile, random: &mut Random) -> Self {
        if matches!(
            profile,
            Profile::Calm | Profile::Day | Profile::Herd | Profile::Tight
        ) {
            return Self::default();
        }
        // Some worlds have many failures of one kind, some a few of all, some none of a kind.
        let mut chance = || match random.below(4) {
            0 => 0,
            1 => random.below(1_500),
            _ => random.below(200),
        };
        Self {
            request_lost: chance(),
            write_late: chance(),
            answer_lost: chance(),
            answer_late: chance(),
            error_after_commit: chance(),
            refused: chance(),
            event_lost: chance(),
            event_doubled: chance(),
            event_late: chance(),
            disordered: chance() / 4,
            watch_ends: chance() / 4,
            timer_late: chance(),
            stall: chance() / 8,
        }
    }
}

/// How much a holder may count too little whose slowed CLOCK_BOOTTIME alone counts a suspend, in
/// microseconds: what it is slow while the machine is awake, which is less than the whole lease.
fn slewed_away(nodes: &[NodePlan]) -> i64 {
    let leases = nodes.iter().map(|node| node.timing.lease_duration);
    let longest = micros(leases.max().unwrap_or_default());
    i64::try_from(longest * u64::from(SLEW) / 1_000_000).expect("a minute at most")
}

/// A duration of the election's in microseconds.
pub(super) fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX / 4)
}
