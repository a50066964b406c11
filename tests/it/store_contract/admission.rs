//! An admission webhook in the way of every write, as policy engines put one there.

use std::{
    io::{BufRead, BufReader, Write as _},
    net::{TcpListener, TcpStream},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use http::Method;
use lease_exec::lease::{FailureKind, Write};
use lease_exec::store::Store;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::{Value, json};

use super::kube::Namespace;
use super::{Place, created, current, held, run, written};
use crate::control_plane::ControlPlane;
use crate::wait::{LIMIT, wait_until};
use crate::world::{World, is_alive};

#[test]
fn webhook_that_refuses_is_quoted() {
    let place = Namespace::new("webhook_that_refuses_is_quoted");
    let webhook = Webhook::start(place.server, &place.name);
    webhook.does(Verdict::Refuse);
    run(async {
        let attempt = Write {
            base: None,
            record: held("a", 1),
        };
        let failure = place.open().write(attempt).await;
        let failure = failure.expect_err("the webhook has refused it");
        assert_eq!(failure.kind, FailureKind::Forbidden);
        assert!(
            failure.message.contains("no leases on Sundays"),
            "{}",
            failure.message
        );
        assert_eq!(place.object(), None);
    });
}

#[test]
fn webhook_that_fails_fails_the_write_as_a_broken_server_would() {
    let place = Namespace::new("webhook_that_fails_fails_the_write");
    let webhook = Webhook::start(place.server, &place.name);
    run(async {
        let store = place.open();
        let claim = created(&store, held("a", 1)).await;
        webhook.does(Verdict::Fail);
        let attempt = Write {
            base: Some(claim.clone()),
            record: held("a", 2),
        };
        let failure = store.write(attempt).await.expect_err("the webhook fails");
        assert_eq!(failure.kind, FailureKind::Unreachable);
        assert!(failure.message.contains("webhook"), "{}", failure.message);
        assert_eq!(current(&store).await.record, held("a", 1));
        webhook.does(Verdict::Allow);
        written(&store, &claim, held("a", 3)).await;
    });
}

/// Longer than a request's timeout, and shorter than all the attempts that fit into a term.
#[test]
fn webhook_that_is_slow_for_a_while_costs_no_lease() {
    let world = World::on_kubernetes();
    let webhook = Webhook::start(ControlPlane::shared(), world.namespace());
    let holder = world.witness("15s").start();
    let log = world.wait_for_starts(1);
    world.wait_for_renewal();
    webhook.does(Verdict::Sleep(Duration::from_secs(4)));
    holder.wait_until_it_says("failed to renew the lease");
    webhook.does(Verdict::Allow);
    holder.wait_until_it_says("renewed the lease again");
    world.wait_for_renewal();
    assert!(is_alive(log.runs[0].pid));
    assert_eq!(world.log().runs.len(), 1);
}

#[test]
fn webhook_that_stays_slow_costs_the_command_its_life_before_the_duration_is_over() {
    let world = World::on_kubernetes();
    let webhook = Webhook::start(ControlPlane::shared(), world.namespace());
    let holder = world.witness("6s").start();
    let log = world.wait_for_starts(1);
    world.wait_for_renewal();
    webhook.does(Verdict::Sleep(Duration::from_secs(60)));
    let finished = holder.wait();
    finished.assert_code(79);
    assert!(!is_alive(log.runs[0].pid));
    webhook.does(Verdict::Allow);
    let last_beat = world.log().runs[0].last_beat;
    let end = world.renewed_at() + Duration::from_secs(6).as_nanos();
    assert!(last_beat < end, "{} ns too late", last_beat - end);
}

/// A webhook for the leases of one namespace, which allows everything until it is told otherwise.
pub(super) struct Webhook {
    server: &'static ControlPlane,
    name: String,
    shared: Arc<Shared>,
}

struct Shared {
    verdict: Mutex<Verdict>,
    calls: AtomicUsize,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Verdict {
    Allow,
    Refuse,
    /// Closes the connection without an answer.
    Fail,
    /// Allows it so much later.
    Sleep(Duration),
}

impl Webhook {
    /// Starts one, and waits until the API server asks it.
    pub(super) fn start(server: &'static ControlPlane, namespace: &str) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port is free");
        let port = listener
            .local_addr()
            .expect("a listener has an address")
            .port();
        let shared = Arc::new(Shared {
            verdict: Mutex::new(Verdict::Allow),
            calls: AtomicUsize::new(0),
        });
        let serving = Arc::clone(&shared);
        let tls = Arc::new(tls(server));
        // The thread ends with the process.
        thread::spawn(move || {
            for stream in listener.incoming() {
                let stream = stream.expect("a connection can be accepted");
                let (serving, tls) = (Arc::clone(&serving), Arc::clone(&tls));
                thread::spawn(move || serving.serve(stream, tls));
            }
        });
        let webhook = Self {
            server,
            name: format!("webhook-{namespace}"),
            shared,
        };
        webhook.register(namespace, port);
        webhook
    }

    fn register(&self, namespace: &str, port: u16) {
        let labels = json!({"webhook": namespace});
        let path = format!("/api/v1/namespaces/{namespace}");
        let (_, mut object) = self.server.raw(Method::GET, &path, None);
        object["metadata"]["labels"] = labels.clone();
        let (status, answer) = self.server.raw(Method::PUT, &path, Some(object));
        assert_eq!(status, 200, "{answer}");
        let configuration = json!({
            "metadata": {"name": self.name},
            "webhooks": [{
                "name": "leases.example.com",
                "admissionReviewVersions": ["v1"],
                "sideEffects": "None",
                "failurePolicy": "Fail",
                "timeoutSeconds": 30,
                "namespaceSelector": {"matchLabels": labels},
                "clientConfig": {
                    "url": format!("https://127.0.0.1:{port}/"),
                    "caBundle": BASE64.encode(self.server.ca_pem()),
                },
                "rules": [{
                    "apiGroups": ["coordination.k8s.io"],
                    "apiVersions": ["v1"],
                    "resources": ["leases"],
                    "operations": ["CREATE", "UPDATE"],
                }],
            }],
        });
        let (status, answer) = self
            .server
            .raw(Method::POST, CONFIGURATIONS, Some(configuration));
        assert_eq!(status, 201, "{answer}");
        // The server reads its configurations again a moment after one was stored.
        let probe = format!("/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases/probe");
        wait_until("the webhook is asked", LIMIT, || {
            let lease = json!({"metadata": {"name": "probe"}});
            let (status, answer) = self.server.raw(Method::PUT, &probe, Some(lease));
            assert_eq!(status, 201, "{answer}");
            let (status, answer) = self.server.raw(Method::DELETE, &probe, None);
            assert_eq!(status, 200, "{answer}");
            (self.shared.calls.load(Ordering::SeqCst) > 0).then_some(())
        });
    }

    pub(super) fn does(&self, verdict: Verdict) {
        *self
            .shared
            .verdict
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = verdict;
    }
}

impl Drop for Webhook {
    fn drop(&mut self) {
        // So that it asks nobody any more when the namespace is used again.
        let path = format!("{CONFIGURATIONS}/{}", self.name);
        self.server.raw(Method::DELETE, &path, None);
    }
}

impl Shared {
    /// Answers the requests of one connection, one after another.
    fn serve(&self, stream: TcpStream, tls: Arc<ServerConfig>) {
        let connection = ServerConnection::new(tls).expect("the configuration is valid");
        let mut stream = BufReader::new(StreamOwned::new(connection, stream));
        while let Some(review) = read_request(&mut stream) {
            self.calls.fetch_add(1, Ordering::SeqCst);
            let verdict = *self.verdict.lock().unwrap_or_else(PoisonError::into_inner);
            match verdict {
                Verdict::Allow | Verdict::Refuse => {}
                Verdict::Fail => return,
                Verdict::Sleep(time) => thread::sleep(time),
            }
            let answer = json!({
                "apiVersion": "admission.k8s.io/v1",
                "kind": "AdmissionReview",
                "response": {
                    "uid": review["request"]["uid"],
                    "allowed": !matches!(verdict, Verdict::Refuse),
                    "status": {"code": 403, "message": "no leases on Sundays"},
                },
            })
            .to_string();
            let head = format!(
                "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
                answer.len()
            );
            // The server may have lost its patience.
            if stream
                .get_mut()
                .write_all((head + &answer).as_bytes())
                .is_err()
            {
                return;
            }
        }
    }
}

/// The body of the next request on a connection, if one comes.
fn read_request(stream: &mut impl BufRead) -> Option<Value> {
    let mut length = 0;
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).ok()?;
        let line = line.trim_end().to_lowercase();
        if let Some(text) = line.strip_prefix("content-length:") {
            length = text.trim().parse().ok()?;
        }
        if line.is_empty() {
            break;
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).ok()?;
    serde_json::from_slice(&body).ok()
}

fn tls(server: &ControlPlane) -> ServerConfig {
    let identity = server.server_certificate();
    let certificate = CertificateDer::from_pem_slice(identity.certificate.as_bytes());
    let key = PrivateKeyDer::from_pem_slice(identity.key.as_bytes());
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the provider serves them")
        .with_no_client_auth()
        .with_single_cert(
            vec![certificate.expect("it is PEM")],
            key.expect("it is PEM"),
        )
        .expect("the key is the certificate's")
}

const CONFIGURATIONS: &str =
    "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations";
