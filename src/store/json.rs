//! The Lease as JSON: how an object becomes a [`Claim`] and a [`Record`] becomes an object.
//!
//! Objects are handled as plain JSON, never as typed structures, so that whatever we know nothing of
//! survives our writes. Fields that we do know must make sense: an object that is not a Lease as
//! `coordination.k8s.io/v1` describes it is reported with the field and its value, never guessed at.
//!
//! Must not: read or write anything, tell the time.

use std::{sync::Arc, time::Duration};

use jiff::{Timestamp, fmt::temporal::Pieces};
use serde_json::{Map, Value, json};

use crate::{
    clock::WallTime,
    lease::{Claim, Failure, FailureKind, Identity, Object, Record, Uid, Version, one_line},
};

/// Reads a stored object. `answered` is the store's own clock when it answered; with it the claim
/// carries its ages, without it they are `None`.
///
/// # Errors
///
/// [`FailureKind::Malformed`], naming the field and its value.
pub(super) fn claim_from_object(
    object: Value,
    answered: Option<WallTime>,
) -> Result<Claim, Failure> {
    match field(&object, "kind") {
        None => {}
        Some(Value::String(kind)) if kind == "Lease" => {}
        Some(kind) => return Err(nonsense("kind", kind, "Lease")),
    }
    let metadata = field(&object, "metadata").unwrap_or(&Value::Null);
    let (created_ago, written_ago) = ages(metadata, answered);
    Ok(Claim {
        uid: uid(metadata)?,
        version: version(metadata)?,
        record: record(&object)?,
        written_ago,
        created_ago,
        object: Object(Arc::new(object)),
    })
}

/// The object that replaces `base`: the base's own, with the record's fields in its spec and the
/// base's uid and version as what the write depends on.
///
/// `managedFields` are left out: a server that finds none keeps its own and goes on tracking
/// (kubernetes.io, "Server-Side Apply", "Clearing managedFields").
pub(super) fn object_with_record(base: &Claim, record: &Record) -> Value {
    let mut object = match &*base.object.0 {
        Value::Object(object) => object.clone(),
        // A claim is only ever made of an object.
        _ => Map::new(),
    };
    object
        .entry("apiVersion")
        .or_insert_with(|| json!(API_VERSION));
    object.entry("kind").or_insert_with(|| json!("Lease"));
    let metadata = object_entry(&mut object, "metadata");
    metadata.remove("managedFields");
    metadata.insert("uid".into(), json!(base.uid.0));
    metadata.insert("resourceVersion".into(), json!(base.version.as_str()));
    set_record(object_entry(&mut object, "spec"), record);
    Value::Object(object)
}

/// The object of a lease that does not exist yet: without a uid and a version.
pub(super) fn new_object(namespace: &str, name: &str, record: &Record) -> Value {
    let mut spec = Map::new();
    set_record(&mut spec, record);
    json!({
        "apiVersion": API_VERSION,
        "kind": "Lease",
        "metadata": { "name": name, "namespace": namespace },
        "spec": spec,
    })
}

/// Writes the fields of the record and leaves all others of the spec alone.
fn set_record(spec: &mut Map<String, Value>, record: &Record) {
    let holder = record.holder.as_ref().map_or("", Identity::as_str);
    spec.insert("holderIdentity".into(), json!(holder));
    set_or_remove(
        spec,
        "leaseDurationSeconds",
        record.duration.map(|duration| json!(duration.as_secs())),
    );
    set_or_remove(
        spec,
        "acquireTime",
        record.acquire_time.map(|time| json!(micro_time(time))),
    );
    set_or_remove(
        spec,
        "renewTime",
        record.renew_time.map(|time| json!(micro_time(time))),
    );
    spec.insert("leaseTransitions".into(), json!(record.transitions));
}

fn set_or_remove(spec: &mut Map<String, Value>, name: &str, value: Option<Value>) {
    match value {
        Some(value) => spec.insert(name.into(), value),
        None => spec.remove(name),
    };
}

/// The JSON object under `name`, made if it isn't there.
fn object_entry<'a>(parent: &'a mut Map<String, Value>, name: &str) -> &'a mut Map<String, Value> {
    let entry = parent.entry(name).or_insert(Value::Null);
    if !entry.is_object() {
        *entry = Value::Object(Map::new());
    }
    entry
        .as_object_mut()
        .expect("the lines above made it an object")
}

/// A time as Kubernetes' MicroTime: six digits of fraction, always in UTC.
pub(super) fn micro_time(time: WallTime) -> String {
    // The bounds are the years -9999 and 9999, beyond which no clock of ours goes.
    let bound = if time.unix_micros < 0 {
        Timestamp::MIN
    } else {
        Timestamp::MAX
    };
    let timestamp = Timestamp::from_microsecond(time.unix_micros).unwrap_or(bound);
    format!("{timestamp:.6}")
}

/// An RFC 3339 time with any length of fraction or none; finer ones lose what is below a
/// microsecond. The last hours of the year 9999, in which some time zones have the year 10000, become
/// the moment before them: nothing is decided on a time that others wrote.
fn wall_time(text: &str) -> Option<WallTime> {
    let pieces = Pieces::parse(text).ok()?;
    let time = pieces.date().to_datetime(pieces.time()?);
    let timestamp = match pieces.to_numeric_offset()?.to_timestamp(time) {
        Ok(timestamp) => timestamp,
        Err(_) if time.year() == 9999 => Timestamp::MAX,
        Err(_) => return None,
    };
    Some(WallTime {
        unix_micros: timestamp.as_microsecond(),
    })
}

fn uid(metadata: &Value) -> Result<Uid, Failure> {
    match field(metadata, "uid") {
        Some(Value::String(uid)) if !uid.is_empty() => Ok(Uid(uid.clone())),
        Some(uid) => Err(nonsense("metadata.uid", uid, "an identifier")),
        None => Err(malformed("it has no metadata.uid".into())),
    }
}

fn version(metadata: &Value) -> Result<Version, Failure> {
    let value = field(metadata, "resourceVersion")
        .ok_or_else(|| malformed("it has no metadata.resourceVersion".into()))?;
    value
        .as_str()
        .and_then(Version::new)
        .ok_or_else(|| nonsense("metadata.resourceVersion", value, "a decimal number"))
}

fn record(object: &Value) -> Result<Record, Failure> {
    let spec = match field(object, "spec") {
        None => return Ok(Record::default()),
        Some(spec) if spec.is_object() => spec,
        Some(spec) => return Err(nonsense("spec", spec, "an object")),
    };
    Ok(Record {
        holder: holder(spec)?,
        duration: duration(spec)?,
        acquire_time: time(spec, "acquireTime")?,
        renew_time: time(spec, "renewTime")?,
        transitions: transitions(spec)?,
        strategy: strategy(spec)?,
    })
}

fn holder(spec: &Value) -> Result<Option<Identity>, Failure> {
    match field(spec, "holderIdentity") {
        None => Ok(None),
        Some(Value::String(holder)) => Ok(Identity::new(holder.as_str())),
        Some(holder) => Err(nonsense("spec.holderIdentity", holder, "a string")),
    }
}

fn strategy(spec: &Value) -> Result<Option<String>, Failure> {
    match field(spec, "strategy") {
        None => Ok(None),
        Some(Value::String(strategy)) => Ok((!strategy.is_empty()).then(|| strategy.clone())),
        Some(strategy) => Err(nonsense("spec.strategy", strategy, "a string")),
    }
}

/// The API's type is a Go int32, of which it accepts what is more than zero.
fn duration(spec: &Value) -> Result<Option<Duration>, Failure> {
    let Some(value) = field(spec, "leaseDurationSeconds") else {
        return Ok(None);
    };
    let seconds = value
        .as_i64()
        .and_then(|seconds| i32::try_from(seconds).ok());
    match seconds.and_then(|seconds| u64::try_from(seconds).ok()) {
        Some(seconds) if seconds > 0 => Ok(Some(Duration::from_secs(seconds))),
        _ => Err(nonsense(
            "spec.leaseDurationSeconds",
            value,
            "a whole number above zero",
        )),
    }
}

/// The API's type is a Go int32, of which it accepts what is not negative.
fn transitions(spec: &Value) -> Result<u32, Failure> {
    let Some(value) = field(spec, "leaseTransitions") else {
        return Ok(0);
    };
    let transitions = value.as_i64().and_then(|number| u32::try_from(number).ok());
    transitions.ok_or_else(|| {
        nonsense(
            "spec.leaseTransitions",
            value,
            "a whole number from zero up",
        )
    })
}

fn time(spec: &Value, name: &str) -> Result<Option<WallTime>, Failure> {
    let Some(value) = field(spec, name) else {
        return Ok(None);
    };
    match value.as_str().and_then(wall_time) {
        Some(time) => Ok(Some(time)),
        None => Err(nonsense(&format!("spec.{name}"), value, "an RFC 3339 time")),
    }
}

/// How long before `answered` the object was created, and its record last written.
fn ages(metadata: &Value, answered: Option<WallTime>) -> (Option<Duration>, Option<Duration>) {
    let Some(answered) = answered else {
        return (None, None);
    };
    let before = |time: WallTime| {
        let micros = answered.unix_micros.saturating_sub(time.unix_micros);
        Duration::from_micros(u64::try_from(micros).unwrap_or(0))
    };
    let created = field(metadata, "creationTimestamp")
        .and_then(Value::as_str)
        .and_then(wall_time);
    (created.map(before), last_write(metadata).map(before))
}

/// The names under which our writes enter `managedFields`. Each write takes the one that does not
/// own `spec.renewTime` yet, so that every one moves the field to another owner, and with that the
/// entry's time.
///
/// Without it a time may say nothing: servers between kubernetes/kubernetes#95240 (1.20) and #110058
/// (1.25) leave an entry's time alone when its owner changes a value, so that a lease which has
/// long been renewed looks as old as its acquisition.
const MANAGERS: [&str; 2] = ["lease-exec-a", "lease-exec-b"];

/// The field manager under whose name to write over `base`.
pub(super) fn field_manager(base: Option<&Claim>) -> &'static str {
    let [first, second] = MANAGERS;
    let metadata = base.and_then(|base| field(&base.object.0, "metadata"));
    let is_owner = |owner: &Value| owner["manager"] == first;
    match metadata {
        Some(metadata) if owners_of_renew_time(metadata).any(is_owner) => second,
        _ => first,
    }
}

/// When `spec.renewTime` was last written, by the server's clock; `None` unless its one owner is one
/// of ours, because the time of any other may be that of an earlier write.
fn last_write(metadata: &Value) -> Option<WallTime> {
    let mut owners = owners_of_renew_time(metadata);
    let owner = owners.next()?;
    let is_ours = MANAGERS.iter().any(|manager| owner["manager"] == *manager);
    if !is_ours || owners.next().is_some() {
        return None;
    }
    field(owner, "time")
        .and_then(Value::as_str)
        .and_then(wall_time)
}

/// The entries of `managedFields` that own `spec.renewTime`.
fn owners_of_renew_time(metadata: &Value) -> impl Iterator<Item = &Value> {
    let entries = field(metadata, "managedFields").and_then(Value::as_array);
    let entries = entries.into_iter().flatten();
    entries.filter(|entry| entry.pointer("/fieldsV1/f:spec/f:renewTime").is_some())
}

/// A field that is there; JSON's null is as good as absent.
fn field<'a>(parent: &'a Value, name: &str) -> Option<&'a Value> {
    parent.get(name).filter(|value| !value.is_null())
}

fn nonsense(name: &str, value: &Value, expected: &str) -> Failure {
    let mut text = one_line(&value.to_string());
    if text.chars().count() > LONGEST_VALUE_SHOWN {
        text = text
            .chars()
            .take(LONGEST_VALUE_SHOWN)
            .chain("...".chars())
            .collect();
    }
    malformed(format!("its {name} is {text}, not {expected}"))
}

fn malformed(what: String) -> Failure {
    Failure::new(
        FailureKind::Malformed,
        format!("what is stored is not a Lease that makes sense: {what}"),
    )
}

const API_VERSION: &str = "coordination.k8s.io/v1";

/// In characters; enough to recognise a value, and still one line.
const LONGEST_VALUE_SHOWN: usize = 80;

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by a panic")]
mod fuzz;

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by a panic")]
mod tests {
    use super::*;

    fn stored(spec: Value) -> Value {
        json!({
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {
                "name": "nightly",
                "namespace": "ops",
                "uid": "u-1",
                "resourceVersion": "41",
                "creationTimestamp": "2026-01-01T00:00:00Z",
                "labels": { "team": "a" },
            },
            "spec": spec,
        })
    }

    fn second(seconds: i64) -> WallTime {
        WallTime {
            unix_micros: seconds * 1_000_000,
        }
    }

    /// 2026-01-01T00:00:00Z
    const NEW_YEAR: i64 = 1_767_225_600;

    #[test]
    fn record_of_client_go_is_read() {
        let object = stored(json!({
            "holderIdentity": "pod-a_1f2e",
            "leaseDurationSeconds": 15,
            "acquireTime": "2026-01-01T00:00:00.000000Z",
            "renewTime": "2026-01-01T00:00:01.000002Z",
            "leaseTransitions": 3,
        }));
        let claim = claim_from_object(object, None).unwrap();
        assert_eq!(claim.uid, Uid("u-1".into()));
        assert_eq!(claim.version.as_str(), "41");
        assert_eq!(
            claim.record,
            Record {
                holder: Identity::new("pod-a_1f2e"),
                duration: Some(Duration::from_secs(15)),
                acquire_time: Some(second(NEW_YEAR)),
                renew_time: Some(WallTime {
                    unix_micros: (NEW_YEAR + 1) * 1_000_000 + 2
                }),
                transitions: 3,
                strategy: None,
            }
        );
        assert_eq!((claim.created_ago, claim.written_ago), (None, None));
    }

    #[test]
    fn absent_null_and_empty_fields_mean_nobody_holds_it() {
        for spec in [
            Value::Null,
            json!({}),
            json!({ "holderIdentity": "", "leaseDurationSeconds": null, "renewTime": null }),
        ] {
            let claim = claim_from_object(stored(spec), None).unwrap();
            assert_eq!(claim.record, Record::default());
        }
    }

    #[test]
    fn any_length_of_fraction_is_a_time() {
        for (text, micros) in [
            ("2026-01-01T00:00:00Z", 0),
            ("2026-01-01T00:00:00.5Z", 500_000),
            ("2026-01-01T00:00:00.123456789Z", 123_456),
            ("2026-01-01T01:00:00.000001+01:00", 1),
        ] {
            let claim = claim_from_object(stored(json!({ "renewTime": text })), None).unwrap();
            let expected = WallTime {
                unix_micros: NEW_YEAR * 1_000_000 + micros,
            };
            assert_eq!(claim.record.renew_time, Some(expected), "{text}");
        }
    }

    #[test]
    fn time_beyond_the_last_that_can_be_counted_is_the_last() {
        let last = Timestamp::MAX.as_microsecond();
        for (text, micros) in [
            ("9999-12-30T22:00:00.999999Z", last),
            ("9999-12-30T22:00:01Z", last),
            ("9999-12-31T23:59:59.000000Z", last),
            ("9999-12-31T23:59:59.999999999-23:59", last),
            // Year 0 is not too early.
            ("0000-01-01T00:00:00Z", -62_167_219_200_000_000),
        ] {
            let spec = json!({ "renewTime": text, "acquireTime": text });
            let claim = claim_from_object(stored(spec), None).unwrap();
            let expected = Some(WallTime {
                unix_micros: micros,
            });
            assert_eq!(claim.record.renew_time, expected, "{text}");
            assert_eq!(claim.record.acquire_time, expected, "{text}");
        }
        for text in [
            "9999-12-31",
            "9999-12-31T23:59:59",
            "9999-12-32T00:00:00Z",
            "9999-12-31T24:00:00Z",
            "10000-01-01T00:00:00Z",
        ] {
            let failure = claim_from_object(stored(json!({ "renewTime": text })), None);
            assert_eq!(failure.unwrap_err().kind, FailureKind::Malformed, "{text}");
        }
    }

    #[test]
    fn nonsense_is_reported_with_its_field_and_value() {
        for (spec, named) in [
            (json!([1]), "spec is [1]"),
            (json!({ "holderIdentity": 7 }), "spec.holderIdentity is 7"),
            (
                json!({ "leaseDurationSeconds": 0 }),
                "spec.leaseDurationSeconds is 0",
            ),
            (
                json!({ "leaseDurationSeconds": -3 }),
                "spec.leaseDurationSeconds is -3",
            ),
            (
                json!({ "leaseDurationSeconds": 1.5 }),
                "spec.leaseDurationSeconds is 1.5",
            ),
            (
                json!({ "leaseDurationSeconds": "15" }),
                "spec.leaseDurationSeconds is \"15\"",
            ),
            (
                json!({ "leaseDurationSeconds": 1_u64 << 40 }),
                "spec.leaseDurationSeconds is 1099",
            ),
            (
                json!({ "renewTime": "yesterday" }),
                "spec.renewTime is \"yesterday\"",
            ),
            (json!({ "acquireTime": 5 }), "spec.acquireTime is 5"),
            (
                json!({ "leaseTransitions": -1 }),
                "spec.leaseTransitions is -1",
            ),
        ] {
            let failure = claim_from_object(stored(spec), None).unwrap_err();
            assert_eq!(failure.kind, FailureKind::Malformed);
            assert!(
                failure.message.contains(named),
                "{named}: {}",
                failure.message
            );
        }
    }

    #[test]
    fn object_without_a_comparable_version_and_a_uid_is_malformed() {
        for (name, value, named) in [
            ("uid", Value::Null, "no metadata.uid"),
            ("uid", json!(""), "metadata.uid is \"\""),
            (
                "resourceVersion",
                Value::Null,
                "no metadata.resourceVersion",
            ),
            (
                "resourceVersion",
                json!("0x1f"),
                "metadata.resourceVersion is \"0x1f\"",
            ),
            (
                "resourceVersion",
                json!(41),
                "metadata.resourceVersion is 41",
            ),
        ] {
            let mut object = stored(json!({}));
            object["metadata"][name] = value;
            let failure = claim_from_object(object, None).unwrap_err();
            assert_eq!(failure.kind, FailureKind::Malformed);
            assert!(
                failure.message.contains(named),
                "{named}: {}",
                failure.message
            );
        }
        let failure = claim_from_object(json!({ "kind": "Status" }), None).unwrap_err();
        assert!(
            failure.message.contains("kind is \"Status\""),
            "{}",
            failure.message
        );
    }

    #[test]
    fn long_values_are_cut_in_messages() {
        let failure =
            claim_from_object(stored(json!({ "renewTime": "ä".repeat(5000) })), None).unwrap_err();
        assert!(failure.message.chars().count() < 250, "{}", failure.message);
    }

    #[test]
    fn write_replaces_the_record_and_keeps_everything_else() {
        let mut object = stored(json!({
            "holderIdentity": "pod-a_1f2e",
            "leaseDurationSeconds": 15,
            "acquireTime": "2026-01-01T00:00:00.000000Z",
            "preferredHolder": "pod-b",
            "strategy": "OldestEmulationVersion",
        }));
        object["metadata"]["managedFields"] = json!([{ "manager": "x" }]);
        let base = claim_from_object(object, None).unwrap();
        let record = Record {
            holder: None,
            duration: Some(Duration::from_secs(1)),
            acquire_time: None,
            renew_time: Some(second(NEW_YEAR)),
            transitions: 4,
            strategy: None,
        };
        let mut expected = stored(json!({
            "holderIdentity": "",
            "leaseDurationSeconds": 1,
            "renewTime": "2026-01-01T00:00:00.000000Z",
            "leaseTransitions": 4,
            "preferredHolder": "pod-b",
            "strategy": "OldestEmulationVersion",
        }));
        assert_eq!(object_with_record(&base, &record), expected);

        // And of a Lease without a spec.
        let bare = claim_from_object(stored(Value::Null), None).unwrap();
        expected["spec"]
            .as_object_mut()
            .unwrap()
            .remove("preferredHolder");
        expected["spec"].as_object_mut().unwrap().remove("strategy");
        assert_eq!(object_with_record(&bare, &record), expected);
    }

    #[test]
    fn new_object_has_neither_uid_nor_version() {
        let record = Record {
            holder: Identity::new("me"),
            duration: Some(Duration::from_secs(15)),
            acquire_time: Some(second(NEW_YEAR)),
            renew_time: Some(second(NEW_YEAR + 1)),
            transitions: 0,
            strategy: None,
        };
        let object = new_object("ops", "nightly", &record);
        assert_eq!(
            object["metadata"],
            json!({ "name": "nightly", "namespace": "ops" })
        );
        assert_eq!(
            object["spec"],
            json!({
                "holderIdentity": "me",
                "leaseDurationSeconds": 15,
                "acquireTime": "2026-01-01T00:00:00.000000Z",
                "renewTime": "2026-01-01T00:00:01.000000Z",
                "leaseTransitions": 0,
            })
        );
    }

    fn entry(manager: &str, time: Value, owned: Value) -> Value {
        json!({ "manager": manager, "time": time, "fieldsV1": owned })
    }

    #[test]
    fn age_counts_from_our_last_write_and_from_nobody_elses() {
        let owner = |manager: &str, time: Value| {
            entry(manager, time, json!({ "f:spec": { "f:renewTime": {} } }))
        };
        let at = |seconds: &str| json!(format!("2026-01-01T00:00:{seconds}Z"));
        let other = entry("kubectl", at("59"), json!({ "f:metadata": {} }));
        for (entries, written_ago) in [
            (
                vec![owner("lease-exec-a", at("10")), other.clone()],
                Some(50),
            ),
            (
                vec![other.clone(), owner("lease-exec-b", at("20"))],
                Some(40),
            ),
            // Others may write without moving their entry's time.
            (vec![owner("kube-scheduler", at("10"))], None),
            (
                vec![owner("lease-exec-a", at("10")), owner("x", at("11"))],
                None,
            ),
            (vec![other.clone()], None),
            (vec![], None),
            (vec![owner("lease-exec-a", Value::Null)], None),
            (vec![owner("lease-exec-a", json!("soon"))], None),
            // The clock of the server that answers is behind that of the one that wrote.
            (
                vec![owner("lease-exec-a", json!("2026-01-01T00:02:00Z"))],
                Some(0),
            ),
        ] {
            let mut object = stored(json!({}));
            object["metadata"]["managedFields"] = json!(entries);
            let claim = claim_from_object(object, Some(second(NEW_YEAR + 60))).unwrap();
            let expected = written_ago.map(Duration::from_secs);
            assert_eq!(claim.written_ago, expected, "{entries:?}");
            assert_eq!(claim.created_ago, Some(Duration::from_secs(60)));
        }
    }

    #[test]
    fn each_write_takes_the_field_over_from_the_one_before() {
        assert_eq!(field_manager(None), "lease-exec-a");
        let owned = json!({ "f:spec": { "f:renewTime": {} } });
        for (owner, next) in [
            ("lease-exec-a", "lease-exec-b"),
            ("lease-exec-b", "lease-exec-a"),
            ("kube-scheduler", "lease-exec-a"),
        ] {
            let mut object = stored(json!({}));
            object["metadata"]["managedFields"] = json!([entry(owner, Value::Null, owned.clone())]);
            let claim = claim_from_object(object, None).unwrap();
            assert_eq!(field_manager(Some(&claim)), next);
        }
    }

    #[test]
    fn age_is_unknown_without_a_creation_time() {
        let mut object = stored(json!({}));
        object["metadata"]["creationTimestamp"] = Value::Null;
        let claim = claim_from_object(object, Some(second(NEW_YEAR))).unwrap();
        assert_eq!((claim.created_ago, claim.written_ago), (None, None));
    }
}
