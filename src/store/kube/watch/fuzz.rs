//! Made-up lines of a watch: an event is read as it stands, says nothing, or ends the watch.

use proptest::prelude::*;

use super::*;
use crate::{
    fuzz,
    names::{LeaseName, Namespace},
};

fn lines() -> Vec<Vec<u8>> {
    let event = |kind: &str, name: &str, holder: &str| {
        serde_json::json!({
            "type": kind,
            "object": {
                "apiVersion": "coordination.k8s.io/v1",
                "kind": "Lease",
                "metadata": { "name": name, "uid": "u-1", "resourceVersion": "41" },
                "spec": { "holderIdentity": holder, "leaseDurationSeconds": 15 },
            },
        })
        .to_string()
        .into_bytes()
    };
    let error = br#"{"type": "ERROR", "object": {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old"}}"#;
    vec![
        event("ADDED", "nightly", "me_1"),
        event("MODIFIED", "nightly", ""),
        event("DELETED", "nightly", "me_1"),
        event("MODIFIED", "other", "me_1"),
        event("BOOKMARK", "nightly", "me_1"),
        error.to_vec(),
        b"[]".to_vec(),
        b"42".to_vec(),
        b"\"x\"".to_vec(),
        b"true".to_vec(),
    ]
}

proptest! {
    #![proptest_config(fuzz::cases(3_000))]

    #[test]
    fn damaged_event_is_read_as_it_stands_or_ends_the_watch(line in fuzz::damaged(lines())) {
        let target = Target {
            namespace: Namespace::new("ops").expect("a name"),
            name: LeaseName::new("nightly").expect("a name"),
        };
        let stands: Value = serde_json::from_slice(&line).unwrap_or_default();
        let kind = stands["type"].as_str();
        let object = &stands["object"];
        match change(&line, &target) {
            Some(Change::Written(claim)) => {
                prop_assert!(matches!(kind, Some("ADDED" | "MODIFIED")), "{kind:?}");
                let holder = object["spec"]["holderIdentity"].as_str().unwrap_or("");
                prop_assert_eq!(claim.record.holder, crate::lease::Identity::new(holder));
                prop_assert_eq!(object["metadata"]["resourceVersion"].as_str(), Some(claim.version.as_str()));
                prop_assert_eq!(claim.written_ago, None);
            }
            Some(Change::Deleted(claim)) => {
                prop_assert_eq!(kind, Some("DELETED"));
                prop_assert_eq!(object["metadata"]["uid"].as_str(), Some(claim.uid.0.as_str()));
                prop_assert_eq!(object["metadata"]["name"].as_str(), Some("nightly"));
            }
            Some(Change::Ended(reason)) => {
                prop_assert!(!reason.is_empty());
                prop_assert_eq!(reason.lines().count(), 1, "{}", reason);
            }
            Some(Change::Refused(_)) => prop_assert!(false, "no event takes a right away"),
            None => {
                let is_ours = object["metadata"]["name"] == "nightly";
                prop_assert!(kind == Some("BOOKMARK") || !is_ours, "an event of ours was passed over");
            }
        }
    }
}
