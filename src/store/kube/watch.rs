//! Watching one Lease: a long answer, one JSON event per line.
//!
//! It has a connection of its own, so that it can't get in the way of requests. The server ends it
//! after some minutes; if the server, or the way there, dies silently, TCP's keepalive ends it
//! within half a minute. Something in between may keep the connection up when the server is gone;
//! then the watch ends when the server should have ended it.
//!
//! Must not: read, start again by itself, fail in any other way than by a [`Change`].

use std::{
    hash::{BuildHasher, Hasher, RandomState},
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use futures_util::{Stream, StreamExt, stream};
use http::Request;
use http_body_util::BodyExt;
use kube::{client::Body, core::WatchEvent};
use serde_json::Value;
use tokio::time::Instant;

use super::{
    client::Connections,
    failure::{self, Status},
    target::Target,
};
use crate::{
    lease::{Change, FailureKind, Version},
    store::{Watch, json},
};

/// The changes of a Lease on an API server.
pub struct KubeWatch {
    /// Ends after [`Change::Ended`] or [`Change::Refused`].
    changes: Pin<Box<dyn Stream<Item = Change> + Send>>,
}

impl KubeWatch {
    pub(super) fn start(
        connections: Arc<Connections>,
        target: Arc<Target>,
        from: Option<&Version>,
    ) -> Self {
        // Spread over a minute, so that watches which began together don't all end together.
        let spread = RandomState::new().build_hasher().finish() % 60;
        let length = SHORTEST_WATCH + Duration::from_secs(spread);
        Self::start_for(connections, target, from, length, LATEST_END)
    }

    /// The server is asked to end the watch after `length`, and given so much longer for it.
    pub(super) fn start_for(
        connections: Arc<Connections>,
        target: Arc<Target>,
        from: Option<&Version>,
        length: Duration,
        patience: Duration,
    ) -> Self {
        let seconds = u32::try_from(length.as_secs()).unwrap_or(u32::MAX);
        let open = Step::Open {
            connections,
            request: target.watch(from, seconds),
            limit: length + patience,
        };
        let changes = stream::unfold((open, target), |(step, target)| async move {
            let (change, next) = step.take(&target).await?;
            Some((change, (next, target)))
        });
        Self {
            changes: Box::pin(changes),
        }
    }
}

impl Watch for KubeWatch {
    async fn next(&mut self) -> Change {
        match self.changes.next().await {
            Some(change) => change,
            None => std::future::pending().await,
        }
    }
}

/// Where a watch stands.
enum Step {
    Open {
        connections: Arc<Connections>,
        request: Request<Vec<u8>>,
        limit: Duration,
    },
    Read {
        connections: Arc<Connections>,
        lines: Lines,
    },
    Over,
}

impl Step {
    /// Goes on to the next change; `None` after the last.
    async fn take(self, target: &Target) -> Option<(Change, Self)> {
        let (connections, mut lines) = match self {
            Self::Open {
                connections,
                request,
                limit,
            } => {
                let end = Instant::now() + limit;
                match open(&connections, target, request).await {
                    Ok(body) => (connections, Lines::of(body, end)),
                    Err(change) => return Some((change, Self::Over)),
                }
            }
            Self::Read { connections, lines } => (connections, lines),
            Self::Over => return None,
        };
        loop {
            let line = match lines.next(&connections).await {
                Ok(line) => line,
                Err(reason) => return Some((Change::Ended(reason), Self::Over)),
            };
            match change(&line, target) {
                None => {}
                Some(over @ (Change::Ended(_) | Change::Refused(_))) => {
                    return Some((over, Self::Over));
                }
                Some(change) => return Some((change, Self::Read { connections, lines })),
            }
        }
    }
}

/// Asks for the watch; an error is its only change.
async fn open(
    connections: &Connections,
    target: &Target,
    request: Request<Vec<u8>>,
) -> Result<Body, Change> {
    let opened = tokio::time::timeout(OPEN_LIMIT, async {
        let response = connections.open(request).await?;
        match response.status() {
            http::StatusCode::OK => Ok(response.into_body()),
            _ => Err(failure::from_answer(
                &connections.read(response).await?,
                target,
            )),
        }
    });
    match opened.await {
        Ok(Ok(body)) => Ok(body),
        Ok(Err(failure)) if failure.kind == FailureKind::Forbidden => Err(Change::Refused(failure)),
        Ok(Err(failure)) => Err(Change::Ended(failure.message)),
        Err(_) => {
            let seconds = OPEN_LIMIT.as_secs();
            Err(Change::Ended(format!(
                "the API server did not start the watch within {seconds} s"
            )))
        }
    }
}

/// What an event says; `None` if it says nothing about the Lease.
fn change(line: &[u8], target: &Target) -> Option<Change> {
    let Ok(event) = serde_json::from_slice::<WatchEvent<Value>>(line) else {
        return Some(Change::Ended(
            "the watch gave something else than events".into(),
        ));
    };
    let (object, is_deleted) = match event {
        WatchEvent::Bookmark(_) => return None,
        WatchEvent::Added(object) | WatchEvent::Modified(object) => (object, false),
        WatchEvent::Deleted(object) => (object, true),
        WatchEvent::Error(status) => {
            let status = Status::from(*status);
            let sentence = status.sentence(status.code().unwrap_or(500));
            return Some(Change::Ended(format!(
                "the API server ended the watch ({sentence})"
            )));
        }
    };
    // Something in between may not know field selectors; another Lease's event is none of ours.
    if object["metadata"]["name"] != *target.name {
        return None;
    }
    Some(match json::claim_from_object(object, None) {
        Ok(claim) if is_deleted => Change::Deleted(claim),
        Ok(claim) => Change::Written(claim),
        Err(failure) => Change::Ended(failure.message),
    })
}

/// A body, line by line.
pub(super) struct Lines {
    body: Body,
    read: Vec<u8>,
    /// Where in it the first line begins that was not given out. Those before are removed all at
    /// once: one by one, each would move all that follow.
    start: usize,
    /// When to wait no longer.
    end: Instant,
}

impl Lines {
    pub(super) fn of(body: Body, end: Instant) -> Self {
        Self {
            body,
            read: Vec::new(),
            start: 0,
            end,
        }
    }

    /// The next line that is not empty; the error says why there is none.
    pub(super) async fn next(&mut self, connections: &Connections) -> Result<Vec<u8>, String> {
        let mut searched = self.start;
        loop {
            let unsearched = self.read.get(searched..).unwrap_or_default();
            if let Some(length) = unsearched.iter().position(|byte| *byte == b'\n') {
                searched += length + 1;
                let line = self.read.get(self.start..searched).unwrap_or_default();
                self.start = searched;
                if line.iter().all(u8::is_ascii_whitespace) {
                    continue;
                }
                return Ok(line.to_vec());
            }
            self.read.drain(..self.start);
            self.start = 0;
            searched = self.read.len();
            if searched > LONGEST_LINE {
                return Err("the watch gave an event that is too large".into());
            }
            let frame = tokio::time::timeout_at(self.end, self.body.frame()).await;
            match frame.map_err(|_| "the API server did not end the watch in time")? {
                None => return Err("the API server ended the watch".into()),
                Some(Err(error)) => return Err(connections.broken(&error).message),
                // A frame that is no data is a trailer, which says nothing here.
                Some(Ok(frame)) => self
                    .read
                    .extend_from_slice(frame.data_ref().map_or(&[], |data| data)),
            }
        }
    }
}

/// The server ends the watch after this, and up to a minute more (`timeoutSeconds`).
const SHORTEST_WATCH: Duration = Duration::from_secs(240);

/// How much later than asked the server may end the watch.
const LATEST_END: Duration = Duration::from_secs(15);

/// Within this the watch has begun, or it is given up. A server that is overloaded may queue it.
const OPEN_LIMIT: Duration = Duration::from_secs(30);

/// In bytes. etcd keeps no object above 1.5 MiB, and a Lease has a thousandth of it.
const LONGEST_LINE: usize = 1 << 20;

#[cfg(test)]
mod fuzz;
