//! Made-up objects: whatever a server or a file holds, it is read right or refused.

use proptest::prelude::*;

use super::*;
use crate::fuzz;

/// Any JSON, and what is known to be awkward.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        any::<String>().prop_map(Value::from),
        prop::sample::select(AWKWARD_NUMBERS).prop_map(Value::from),
        prop::sample::select(AWKWARD_TEXTS).prop_map(Value::from),
        (1..5_000_usize).prop_map(|length| Value::from("\u{9b}x".repeat(length))),
        (1..100_usize).prop_map(|depth| (0..depth).fold(json!(1), |inner, _| json!([inner]))),
    ];
    leaf.prop_recursive(3, 16, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map("[a-z:./]{0,8}", inner, 0..4)
                .prop_map(|fields| Value::Object(fields.into_iter().collect())),
        ]
    })
}

const AWKWARD_NUMBERS: &[i64] = &[
    -1,
    0,
    1,
    i32::MAX as i64,
    i32::MAX as i64 + 1,
    u32::MAX as i64,
    u32::MAX as i64 + 1,
    i64::MIN,
    i64::MAX,
];

const AWKWARD_TEXTS: &[&str] = &[
    "",
    " ",
    "0",
    "041",
    "+41",
    "-1",
    "15s",
    "Lease",
    "lease-exec-a",
    "2026-01-01T00:00:00Z",
    "2026-01-01T00:00:00.000001Z",
    "2026-12-31T23:59:60Z",
    "0000-01-01T00:00:00Z",
    "-009999-01-02T01:59:59Z",
    "9999-12-31T23:59:59.999999999Z",
    "10000-01-01T00:00:00Z",
    "2026-01-01T00:00:00+25:00",
    "me\nERROR somebody else",
    "me\0",
    "99999999999999999999999999999999999999",
];

/// A field as it should be, missing, or something else.
fn field_of(good: impl Strategy<Value = Value> + 'static) -> impl Strategy<Value = Option<Value>> {
    prop_oneof![
        12 => good.prop_map(Some),
        2 => Just(None),
        1 => Just(Some(Value::Null)),
        2 => any_json().prop_map(Some),
    ]
}

fn object_of(
    fields: Vec<(&'static str, BoxedStrategy<Option<Value>>)>,
) -> impl Strategy<Value = Value> {
    let (names, values): (Vec<_>, Vec<_>) = fields.into_iter().unzip();
    let more = prop::collection::btree_map("x[a-z]{0,3}", any_json(), 0..3);
    (values, more).prop_map(move |(values, more)| {
        let known = names.iter().zip(values);
        let known = known.filter_map(|(name, value)| Some(((*name).to_owned(), value?)));
        Value::Object(known.chain(more).collect())
    })
}

fn times() -> impl Strategy<Value = Value> {
    (-400_000_000_000_000_000..400_000_000_000_000_000_i64)
        .prop_map(|unix_micros| json!(micro_time(WallTime { unix_micros })))
}

fn leases() -> impl Strategy<Value = Value> {
    let owner = object_of(vec![
        (
            "manager",
            field_of(prop::sample::select(&MANAGERS[..]).prop_map(Value::from)).boxed(),
        ),
        ("time", field_of(times()).boxed()),
        (
            "fieldsV1",
            field_of(Just(json!({ "f:spec": { "f:renewTime": {} } }))).boxed(),
        ),
    ]);
    let owners = prop::collection::vec(owner, 0..3).prop_map(Value::from);
    let metadata = object_of(vec![
        ("name", field_of(Just(json!("nightly"))).boxed()),
        (
            "uid",
            field_of(any::<String>().prop_map(Value::from)).boxed(),
        ),
        (
            "resourceVersion",
            field_of("[1-9][0-9]{0,30}".prop_map(Value::from)).boxed(),
        ),
        ("creationTimestamp", field_of(times()).boxed()),
        ("managedFields", field_of(owners).boxed()),
        ("labels", any_json().prop_map(Some).boxed()),
    ]);
    let spec = object_of(vec![
        (
            "holderIdentity",
            field_of(any::<String>().prop_map(Value::from)).boxed(),
        ),
        (
            "leaseDurationSeconds",
            field_of((1..=i32::MAX).prop_map(Value::from)).boxed(),
        ),
        ("acquireTime", field_of(times()).boxed()),
        ("renewTime", field_of(times()).boxed()),
        (
            "leaseTransitions",
            field_of((0..=i32::MAX).prop_map(Value::from)).boxed(),
        ),
        ("strategy", any_json().prop_map(Some).boxed()),
    ]);
    object_of(vec![
        (
            "apiVersion",
            field_of(Just(json!("coordination.k8s.io/v1"))).boxed(),
        ),
        ("kind", field_of(Just(json!("Lease"))).boxed()),
        ("metadata", field_of(metadata).boxed()),
        ("spec", field_of(spec).boxed()),
    ])
}

fn wall_times() -> impl Strategy<Value = WallTime> {
    any::<i64>().prop_map(|unix_micros| WallTime { unix_micros })
}

fn records() -> impl Strategy<Value = Record> {
    (
        any::<String>(),
        prop::option::of(1..=i32::MAX as u64),
        prop::option::of(0..=250_000_000_000_000_000_i64),
        prop::option::of(0..=250_000_000_000_000_000_i64),
        0..=i32::MAX as u32,
    )
        .prop_map(|(holder, seconds, acquired, renewed, transitions)| Record {
            holder: Identity::new(holder),
            duration: seconds.map(Duration::from_secs),
            acquire_time: acquired.map(|unix_micros| WallTime { unix_micros }),
            renew_time: renewed.map(|unix_micros| WallTime { unix_micros }),
            transitions,
            strategy: None,
        })
}

/// A field of the spec, with null as good as absent.
fn in_spec<'a>(object: &'a Value, name: &str) -> Option<&'a Value> {
    object
        .pointer(&format!("/spec/{name}"))
        .filter(|value| !value.is_null())
}

/// Holds what was read against the object, field by field.
fn check_reading(object: &Value, claim: &Claim) -> Result<(), TestCaseError> {
    let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str);
    prop_assert_eq!(text("/metadata/uid"), Some(claim.uid.0.as_str()));
    prop_assert_eq!(
        text("/metadata/resourceVersion"),
        Some(claim.version.as_str())
    );
    let Record {
        holder,
        duration,
        acquire_time,
        renew_time,
        transitions,
        strategy,
    } = &claim.record;
    let named = in_spec(object, "strategy").map(|value| value.as_str().unwrap());
    prop_assert_eq!(strategy.as_deref(), named.filter(|name| !name.is_empty()));
    match in_spec(object, "holderIdentity") {
        None => prop_assert_eq!(holder, &None),
        Some(Value::String(text)) if text.is_empty() => prop_assert_eq!(holder, &None),
        Some(value) => {
            prop_assert_eq!(value.as_str(), holder.as_ref().map(Identity::as_str));
        }
    }
    let seconds = in_spec(object, "leaseDurationSeconds").map(|value| value.as_u64().unwrap());
    prop_assert_eq!(*duration, seconds.map(Duration::from_secs));
    prop_assert!(duration.is_none_or(|duration| !duration.is_zero()));
    for (name, time) in [("acquireTime", acquire_time), ("renewTime", renew_time)] {
        prop_assert_eq!(in_spec(object, name).is_some(), time.is_some());
        // It can be written, and is the same when it is read again.
        let again = time.map(|time| wall_time(&micro_time(time)));
        prop_assert_eq!(again, time.map(Some));
    }
    let counted = in_spec(object, "leaseTransitions").map_or(0, |value| value.as_u64().unwrap());
    prop_assert_eq!(u64::from(*transitions), counted);
    Ok(())
}

/// An object without the fields that a write sets or leaves out.
fn without_ours(mut object: Value) -> Value {
    let ours: [(&str, &[&str]); 3] = [
        ("", &["apiVersion", "kind"]),
        ("/metadata", &["uid", "resourceVersion", "managedFields"]),
        (
            "/spec",
            &[
                "holderIdentity",
                "leaseDurationSeconds",
                "acquireTime",
                "renewTime",
                "leaseTransitions",
            ],
        ),
    ];
    for (pointer, names) in ours {
        if let Some(fields) = object.pointer_mut(pointer).and_then(Value::as_object_mut) {
            fields.retain(|name, _| !names.contains(&name.as_str()));
        }
    }
    let fields = object.as_object_mut().unwrap();
    fields.retain(|name, value| name != "spec" || !(value.is_null() || *value == json!({})));
    object
}

fn check_refusal(failure: &Failure) -> Result<(), TestCaseError> {
    prop_assert_eq!(failure.kind, FailureKind::Malformed);
    prop_assert_eq!(failure.message.lines().count(), 1);
    prop_assert!(failure.message.chars().count() < 300, "{}", failure.message);
    Ok(())
}

proptest! {
    #![proptest_config(fuzz::cases(400))]

    #[test]
    fn made_up_lease_is_read_right_or_refused_and_keeps_what_is_not_ours(
        object in leases(),
        answered in prop::option::of(wall_times()),
        record in records(),
    ) {
        let claim = match claim_from_object(object.clone(), answered) {
            Ok(claim) => claim,
            Err(failure) => return check_refusal(&failure),
        };
        check_reading(&object, &claim)?;
        let written = object_with_record(&claim, &record);
        prop_assert_eq!(without_ours(written.clone()), without_ours(object));
        let again = claim_from_object(written, None).expect("what we write can be read");
        prop_assert_eq!((again.uid, again.version, again.record), (claim.uid, claim.version, record));
    }

    #[test]
    fn damaged_text_is_refused_or_read_as_it_stands(text in fuzz::damaged(texts())) {
        let Ok(object) = serde_json::from_slice::<Value>(&text) else {
            return Ok(());
        };
        match claim_from_object(object.clone(), None) {
            Ok(claim) => check_reading(&object, &claim)?,
            Err(failure) => check_refusal(&failure)?,
        }
    }
}

fn texts() -> Vec<Vec<u8>> {
    let lease = |spec: Value| {
        json!({
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": { "name": "nightly", "uid": "u-1", "resourceVersion": "41" },
            "spec": spec,
        })
        .to_string()
        .into_bytes()
    };
    vec![
        lease(json!({
            "holderIdentity": "me_1",
            "leaseDurationSeconds": 15,
            "acquireTime": "2026-01-01T00:00:00.000000Z",
            "renewTime": "2026-01-01T00:00:01.000002Z",
            "leaseTransitions": 3,
        })),
        lease(json!({ "holderIdentity": "", "leaseDurationSeconds": 1 })),
    ]
}
