//! Whatever a hand, an editor or a disk leaves in the file: it is read as it stands or refused.

use proptest::prelude::*;

use super::*;
use crate::{fuzz, lease::FailureKind};

proptest! {
    #![proptest_config(fuzz::cases(400))]

    #[test]
    fn damaged_file_is_read_as_it_stands_or_refused_and_left_alone(
        text in fuzz::damaged(vec![
            br#"{"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"uid": "u-1", "resourceVersion": "7"}, "spec": {"holderIdentity": "me_1", "leaseDurationSeconds": 15, "leaseTransitions": 3}}"#.to_vec(),
            br#"{"apiVersion": "coordination.k8s.io/v1", "kind": "Lease"}"#.to_vec(),
        ]),
    ) {
        let (directory, elsewhere) = (directory(), directory());
        let store = open(&directory);
        fs::write(store.path(), &text).unwrap();
        let found = store.file.read().and_then(|sight| store.file.claim(&sight));
        let stored = fs::read(store.path()).unwrap();
        let foreign = written(&open(&elsewhere), None, record("me", 1));
        let writes = [None, Some(foreign)].map(|base| {
            store.file.write(&Write { base, record: record("me", 2) })
        });
        prop_assert_eq!(fs::read(store.path()).unwrap(), stored.clone());
        match found {
            Ok(claim) => {
                let object: Value = serde_json::from_slice(&text).unwrap();
                let holder = object["spec"]["holderIdentity"].as_str().unwrap_or("");
                let claim = claim.expect("there is a file");
                prop_assert_eq!(claim.record.holder, Identity::new(holder));
                prop_assert_eq!(writes, [Ok(Outcome::Conflict), Ok(Outcome::Conflict)]);
            }
            Err(failure) => {
                prop_assert_eq!(failure.kind, FailureKind::Malformed);
                prop_assert_eq!(failure.message.lines().count(), 1, "{}", failure.message);
                prop_assert_eq!(writes, [Err(failure.clone()), Err(failure)]);
                prop_assert_eq!(stored, text);
            }
        }
    }
}
