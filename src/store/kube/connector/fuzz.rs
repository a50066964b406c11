//! Made-up output of credential plugins: it gives what a request can be made with, or is refused
//! with one sentence.

use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::{
    fuzz,
    store::kube::{config::Source, dial::Addresses},
};

fn cluster() -> ClusterConfig {
    let directory = tempfile::tempdir().expect("made");
    let path = directory.path().join("kubeconfig");
    let text = "current-context: a\nclusters: [{name: a, cluster: {server: 'https://a.example'}}]\n\
                contexts: [{name: a, context: {cluster: a, user: a}}]\n\
                users: [{name: a, user: {exec: {command: x}}}]\n";
    std::fs::write(&path, text).expect("written");
    let source = Source {
        kubeconfig: Some(path),
        ..Source::default()
    };
    ClusterConfig::load(source).expect("usable")
}

fn outputs() -> Vec<Vec<u8>> {
    let key = rcgen::KeyPair::generate().expect("a key");
    let certificate = rcgen::CertificateParams::default().self_signed(&key);
    let certificate = certificate.expect("signed").pem();
    let credential = |status: serde_json::Value| {
        serde_json::json!({
            "apiVersion": "client.authentication.k8s.io/v1",
            "kind": "ExecCredential",
            "status": status,
        })
        .to_string()
        .into_bytes()
    };
    vec![
        credential(serde_json::json!({ "token": "abc" })),
        credential(serde_json::json!({
            "token": "a\nb",
            "expirationTimestamp": "2030-01-01T00:00:00Z",
        })),
        credential(serde_json::json!({
            "token": "abc",
            "expirationTimestamp": "-009999-01-02T01:59:59Z",
        })),
        credential(serde_json::json!({
            "token": "abc",
            "expirationTimestamp": "9999-12-30T22:00:00Z",
        })),
        credential(serde_json::json!({
            "clientCertificateData": certificate,
            "clientKeyData": key.serialize_pem(),
        })),
        credential(serde_json::json!({
            "clientCertificateData": "-----BEGIN CERTIFICATE-----\nanVuaw==\n-----END CERTIFICATE-----",
            "clientKeyData": "-----BEGIN PRIVATE KEY-----\nanVuaw==\n-----END PRIVATE KEY-----",
        })),
    ]
}

proptest! {
    #![proptest_config(fuzz::cases(500))]

    #[test]
    fn damaged_output_of_a_plugin_is_usable_or_refused_with_one_sentence(
        output in fuzz::damaged(outputs())
    ) {
        let given = match exec::parse(&output) {
            Ok(given) => given,
            Err(problem) => {
                prop_assert_eq!(problem.lines().count(), 1, "{:?}", problem);
                return Ok(());
            }
        };
        let connector = match Connector::with(&cluster(), given) {
            Ok(connector) => connector,
            Err(failure) => {
                prop_assert_eq!(failure.message.lines().count(), 1, "{:?}", failure.message);
                prop_assert!(failure.message.len() < 2_000, "{}", failure.message);
                return Ok(());
            }
        };
        let _ = (connector.is_due(), connector.has_expired(), connector.remark());
        // What a request needs is made here, and the request's own head.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime").block_on(async {
            let way = Way::new(Arc::<Addresses>::default());
            let client = connector.client(&way).expect("a client");
            let sent = client.send(http::Request::new(Body::empty()));
            let _ = tokio::time::timeout(std::time::Duration::ZERO, sent).await;
        });
    }
}
