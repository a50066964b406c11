//! Requests to the API server from code that is not async.

use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use http::{HeaderMap, Method, Request};
use kube::client::Body;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use serde_json::Value;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// A client with a thread of its own, which has the async runtime: blocking on a runtime panics in a
/// test that is async itself. Requests don't wait for each other.
pub(crate) struct Requests {
    jobs: UnboundedSender<Job>,
}

/// What a server answered.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    /// JSON, or a string if it is none.
    pub(crate) body: Value,
}

impl Answer {
    /// A header's value; empty if there is none.
    pub(crate) fn header(&self, name: &str) -> &str {
        let value = self.headers.get(name);
        value
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
    }
}

struct Job {
    request: Request<Body>,
    answer: mpsc::Sender<Result<Answer, String>>,
}

impl Requests {
    /// Starts the thread, which ends when this is dropped.
    pub(crate) fn new(kubeconfig: Value) -> Self {
        let (jobs, receiver) = unbounded_channel();
        thread::spawn(move || {
            tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("build an async runtime")
                .block_on(serve(kubeconfig, receiver));
        });
        Self { jobs }
    }

    /// Sends a request and waits for the answer. The error says why there was none.
    pub(crate) fn send(
        &self,
        method: &Method,
        path: &str,
        body: Option<Value>,
    ) -> Result<Answer, String> {
        let mut request = Request::builder().method(method).uri(path);
        if body.is_some() {
            request = request.header("Content-Type", "application/json");
        }
        let body = body
            .map(|body| body.to_string().into_bytes())
            .unwrap_or_default();
        let request = request
            .body(Body::from(body))
            .map_err(|err| err.to_string())?;
        let (answer, receiver) = mpsc::channel();
        // If the thread is gone, it has dropped `answer`, which is noticed below.
        let _ = self.jobs.send(Job { request, answer });
        receiver
            .recv()
            .unwrap_or_else(|_| Err("the client has failed, see above".into()))
    }
}

async fn serve(kubeconfig: Value, mut jobs: UnboundedReceiver<Job>) {
    let client = connect(kubeconfig).await;
    while let Some(Job { request, answer }) = jobs.recv().await {
        let client = client.clone();
        tokio::spawn(async move {
            let outcome = match client {
                Ok(client) => ask(client, request).await,
                Err(err) => Err(err),
            };
            // The one who asked may have been a test that has failed.
            let _ = answer.send(outcome);
        });
    }
}

async fn connect(kubeconfig: Value) -> Result<Client, String> {
    let kubeconfig: Kubeconfig =
        serde_json::from_value(kubeconfig).map_err(|err| format!("kubeconfig: {err}"))?;
    let mut config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
        .await
        .map_err(|err| format!("kubeconfig: {err}"))?;
    // A test wants to see what the server says, not what it says in the end.
    config.default_retry = false;
    Client::try_from(config).map_err(|err| format!("{err:?}"))
}

async fn ask(client: Client, request: Request<Body>) -> Result<Answer, String> {
    let exchange = async {
        let response = client
            .send(request)
            .await
            .map_err(|err| format!("{err:?}"))?;
        let (head, body) = response.into_parts();
        let bytes = body.collect_bytes().await;
        let bytes = bytes.map_err(|err| format!("{err:?}"))?;
        let text = String::from_utf8_lossy(&bytes).into_owned();
        Ok(Answer {
            status: head.status.as_u16(),
            headers: head.headers,
            body: serde_json::from_str(&text).unwrap_or(Value::String(text)),
        })
    };
    match tokio::time::timeout(ANSWER_LIMIT, exchange).await {
        Ok(answer) => answer,
        Err(_) => Err(format!("no answer within {ANSWER_LIMIT:?}")),
    }
}

/// So that a request to a stopped server ends at all.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);
