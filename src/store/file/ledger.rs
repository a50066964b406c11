//! What the store remembers beside the lease file: the highest version that it ever gave, and the
//! file as it last wrote it, by which it notices that somebody else has changed or removed it.
//!
//! Must not: touch a file but for the machine's own identity, judge a lease.

use std::{fs, io::ErrorKind, time::Duration};

use nix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};

/// The memory of one lease. It survives the lease file's removal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ledger {
    /// The highest version given so far, also to a deletion.
    pub(super) version: u64,
    /// The uid of the object that is or was last stored.
    pub(super) uid: String,
    /// Whether the object is still there.
    pub(super) presence: Presence,
    /// The lease file, byte by byte, as it was last written.
    pub(super) text: String,
    /// When the object was created.
    pub(super) created: Stamps,
    /// When the file was last written.
    pub(super) written: Stamps,
}

/// Whether there is a lease file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Presence {
    /// There is.
    Stored,
    /// It is known to have been removed, and that has got a version.
    Deleted,
}

impl Ledger {
    /// Takes a ledger as [`Self::to_text`] wrote it; `None` if it is something else.
    pub(super) fn from_text(text: &str) -> Option<Self> {
        let value: Value = serde_json::from_str(text).ok()?;
        let string = |name: &str| value.get(name)?.as_str().map(str::to_owned);
        Some(Self {
            version: value.get("version")?.as_u64()?,
            uid: string("uid")?,
            presence: match value.get("presence")?.as_str()? {
                "stored" => Presence::Stored,
                "deleted" => Presence::Deleted,
                _ => return None,
            },
            text: string("text")?,
            created: Stamps::from_value(value.get("created")?)?,
            written: Stamps::from_value(value.get("written")?)?,
        })
    }

    /// The content of the ledger file.
    pub(super) fn to_text(&self) -> String {
        let presence = match self.presence {
            Presence::Stored => "stored",
            Presence::Deleted => "deleted",
        };
        let value = json!({
            "version": self.version,
            "uid": self.uid,
            "presence": presence,
            "text": self.text,
            "created": self.created.to_value(),
            "written": self.written.to_value(),
        });
        format!("{value:#}\n")
    }
}

/// When one thing happened, by each clock that was there to tell.
///
/// A clock is CLOCK_BOOTTIME of one boot: nobody can set it, and it says nothing to anybody on
/// another. So each adds the moment at which it first noticed, which is never too early. That is
/// also right where one machine shows several boots (containers with a boot id or a kernel of their
/// own) or where several machines share the directory, and it costs no more than that a lease found
/// after a restart of the machine counts as written when it is first looked at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Stamps(Vec<Stamp>);

impl Stamps {
    /// It happened now.
    pub(super) fn at(now: Option<&Stamp>) -> Self {
        Self(now.cloned().into_iter().collect())
    }

    /// Whether the clock of `now` can tell how long ago it was, or never will.
    pub(super) fn know(&self, now: Option<&Stamp>) -> bool {
        now.is_none_or(|now| self.by_clock_of(now).is_some())
    }

    /// Adds that the clock of `now` has noticed it now, unless it has before.
    pub(super) fn notice(&mut self, now: Option<&Stamp>) {
        let Some(now) = now.filter(|now| self.by_clock_of(now).is_none()) else {
            return;
        };
        if self.0.len() >= MOST_STAMPS {
            self.0.remove(0);
        }
        self.0.push(now.clone());
    }

    /// How long before `now` it was, at least.
    pub(super) fn age(&self, now: Option<&Stamp>) -> Option<Duration> {
        let now = now?;
        let then = self.by_clock_of(now)?;
        Some(now.since_boot.saturating_sub(then.since_boot))
    }

    fn by_clock_of(&self, now: &Stamp) -> Option<&Stamp> {
        self.0.iter().find(|stamp| stamp.clock == now.clock)
    }

    fn from_value(value: &Value) -> Option<Self> {
        let stamp = |value: &Value| {
            Some(Stamp {
                clock: value.get("clock")?.as_str()?.to_owned(),
                since_boot: Duration::from_nanos(value.get("sinceBootNanos")?.as_u64()?),
            })
        };
        value
            .as_array()?
            .iter()
            .map(stamp)
            .collect::<Option<_>>()
            .map(Self)
    }

    fn to_value(&self) -> Value {
        let value = |stamp: &Stamp| {
            let nanos = u64::try_from(stamp.since_boot.as_nanos()).unwrap_or(u64::MAX);
            json!({ "clock": stamp.clock, "sinceBootNanos": nanos })
        };
        self.0.iter().map(value).collect()
    }
}

/// A moment on the clock of one boot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    clock: String,
    since_boot: Duration,
}

/// The clock by which ages count.
#[derive(Clone, Debug)]
pub(super) struct BootClock {
    /// `None` if this machine does not say which boot it is in, or by how much its clock differs from
    /// others of that boot; ages are unknown then.
    name: Option<String>,
}

impl BootClock {
    /// Asks the kernel which boot this is, and by how much this time namespace's CLOCK_BOOTTIME differs
    /// from the machine's, see time_namespaces(7). The namespace's number says nothing: when it is
    /// gone, the next one gets it.
    pub(super) fn of_this_boot() -> Self {
        Self { name: clock_name() }
    }

    /// The moment, if it will mean anything to a later reader.
    pub(super) fn now(&self) -> Option<Stamp> {
        let clock = self.name.clone()?;
        let now = clock_gettime(ClockId::CLOCK_BOOTTIME).ok()?;
        Some(Stamp {
            clock,
            since_boot: Duration::from(now),
        })
    }

    #[cfg(test)]
    pub(super) fn named(name: &str) -> Self {
        Self {
            name: Some(name.to_owned()),
        }
    }
}

fn clock_name() -> Option<String> {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let boot = Some(boot.trim()).filter(|boot| !boot.is_empty())?;
    let offset = match fs::read_link("/proc/self/ns/time") {
        Ok(own) => {
            // The offsets are those of the namespace that our children are born in.
            let of_children = fs::read_link("/proc/self/ns/time_for_children").ok()?;
            let offsets = fs::read_to_string("/proc/self/timens_offsets").ok()?;
            (own == of_children).then(|| boottime_offset(&offsets))??
        }
        // Kernels before 5.6, and those built without, have no time namespaces.
        Err(err) if err.kind() == ErrorKind::NotFound => "0 0".to_owned(),
        Err(_) => return None,
    };
    Some(format!("{boot} boottime {offset}"))
}

/// The seconds and nanoseconds in the line of CLOCK_BOOTTIME.
fn boottime_offset(offsets: &str) -> Option<String> {
    let words = offsets.lines().map(|line| line.split_whitespace());
    let mut found = words.filter_map(|mut words| {
        (words.next()? == "boottime").then_some(())?;
        let (seconds, nanos): (i64, i64) =
            (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        Some(format!("{seconds} {nanos}"))
    });
    found.next()
}

/// How many clocks a ledger remembers at once; one that was forgotten notices anew.
const MOST_STAMPS: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    fn stamp(clock: &str, seconds: u64) -> Stamp {
        Stamp {
            clock: clock.into(),
            since_boot: Duration::from_secs(seconds),
        }
    }

    #[test]
    fn ledger_survives_being_written_and_read() {
        for presence in [Presence::Stored, Presence::Deleted] {
            let ledger = Ledger {
                version: u64::MAX,
                uid: "u".into(),
                presence,
                text: "{\"a\": \"\u{e4}\\n\"}\n".into(),
                created: Stamps::at(Some(&stamp("a", 3))),
                written: Stamps(vec![stamp("a", 4), stamp("b", 0)]),
            };
            assert_eq!(Ledger::from_text(&ledger.to_text()), Some(ledger));
        }
    }

    #[test]
    fn half_a_ledger_is_none() {
        let ledger = Ledger {
            version: 1,
            uid: "u".into(),
            presence: Presence::Stored,
            text: String::new(),
            created: Stamps::default(),
            written: Stamps::default(),
        };
        let text = ledger.to_text();
        for length in 0..text.trim_end().len() {
            assert_eq!(Ledger::from_text(&text[..length]), None, "{length}");
        }
    }

    #[test]
    fn age_is_unknown_to_another_boot_until_it_has_noticed() {
        let mut stamps = Stamps::at(Some(&stamp("first", 100)));
        assert_eq!(
            stamps.age(Some(&stamp("first", 130))),
            Some(Duration::from_secs(30))
        );
        assert_eq!(stamps.age(Some(&stamp("second", 9000))), None);
        assert!(!stamps.know(Some(&stamp("second", 9000))));
        stamps.notice(Some(&stamp("second", 9000)));
        stamps.notice(Some(&stamp("second", 9005)));
        assert_eq!(
            stamps.age(Some(&stamp("second", 9007))),
            Some(Duration::from_secs(7))
        );
        assert_eq!(
            stamps.age(Some(&stamp("first", 130))),
            Some(Duration::from_secs(30))
        );
    }

    #[test]
    fn the_clocks_name_holds_its_offset() {
        let offsets = "monotonic           0         0\nboottime      -12345        67\n";
        assert_eq!(boottime_offset(offsets).as_deref(), Some("-12345 67"));
        for unreadable in ["", "monotonic 0 0\n", "boottime 0\n", "boottime a 0\n"] {
            assert_eq!(boottime_offset(unreadable), None, "{unreadable:?}");
        }
    }

    #[test]
    fn age_is_unknown_without_a_clock() {
        let mut stamps = Stamps::at(None);
        stamps.notice(None);
        assert_eq!(stamps, Stamps::default());
        assert!(stamps.know(None));
        assert_eq!(stamps.age(None), None);
    }

    #[test]
    fn stamps_do_not_grow_for_ever() {
        let mut stamps = Stamps::default();
        for number in 0..100 {
            stamps.notice(Some(&stamp(&number.to_string(), 1)));
        }
        assert_eq!(stamps.0.len(), MOST_STAMPS);
        assert!(stamps.know(Some(&stamp("99", 2))));
    }
}
