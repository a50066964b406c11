//! What the proxy can do to requests, answers and connections.

use std::time::Duration;

/// One kind of trouble, as long as it is active.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Requests wait so long before they are passed on, and answers likewise.
    Delay { request: Duration, answer: Duration },
    /// Everything in this direction vanishes, on connections that stay open.
    BlackHole(Way),
    /// Connections are reset: those there are, and those of every request.
    Reset,
    /// The proxy's side of a connection is closed, and the client's is left open.
    HalfClose,
    /// A request is cut at a random byte, and both connections are reset.
    CutRequest,
    /// An answer is cut at a random byte, and the client's connection is closed.
    CutAnswer,
    /// The server carries a request out, and the connection is closed instead of an answer.
    LoseAnswer,
    /// The proxy answers by itself.
    Answer(Status),
    /// The server carries a request out, and the proxy answers something else.
    AnswerAfterwards(Status),
    /// A write is sent twice, and the second answer is the one that is passed on.
    RepeatWrite,
    /// A write is sent so much later, whether or not somebody still waits for its answer.
    LateWrite(Duration),
    /// A watch stays open and says nothing any more.
    FreezeWatch,
    /// A watch is ended, as the server ends one.
    EndWatch,
    /// Every event of a watch comes twice.
    DoubleWatch,
}

/// A direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// To the server.
    Requests,
    /// From the server.
    Answers,
    Both,
}

/// An answer of the proxy's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Status {
    pub(crate) code: u16,
    pub(crate) reason: &'static str,
    pub(crate) retry_after: Option<u32>,
}

/// What a client asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Read,
    Write,
    Watch,
}

impl Fault {
    /// Whether a request of this kind can meet it.
    pub(crate) fn concerns(self, kind: Kind) -> bool {
        match self {
            Self::Delay { .. }
            | Self::BlackHole(_)
            | Self::Reset
            | Self::HalfClose
            | Self::CutRequest
            | Self::Answer(_) => true,
            // A watch is broken by what is for watches.
            Self::CutAnswer | Self::LoseAnswer | Self::AnswerAfterwards(_) => kind != Kind::Watch,
            Self::RepeatWrite | Self::LateWrite(_) => kind == Kind::Write,
            Self::FreezeWatch | Self::EndWatch | Self::DoubleWatch => kind == Kind::Watch,
        }
    }

    /// What the summary calls it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Delay { .. } => "requests delayed",
            Self::BlackHole(Way::Requests) => "requests swallowed",
            Self::BlackHole(Way::Answers) => "answers swallowed",
            Self::BlackHole(Way::Both) => "requests and answers swallowed",
            Self::Reset => "connections reset",
            Self::HalfClose => "connections half closed",
            Self::CutRequest => "requests cut",
            Self::CutAnswer => "answers cut",
            Self::LoseAnswer => "requests carried out and their answers lost",
            Self::Answer(status) => status.name(),
            Self::AnswerAfterwards(_) => "requests carried out and answered with 504",
            Self::RepeatWrite => "writes repeated",
            Self::LateWrite(_) => "writes sent late",
            Self::FreezeWatch => "watches frozen",
            Self::EndWatch => "watches ended",
            Self::DoubleWatch => "watch events doubled",
        }
    }
}

impl Status {
    pub(crate) const CONFLICT: Self = Self::new(409, "Conflict");
    pub(crate) const UNAUTHORIZED: Self = Self::new(401, "Unauthorized");
    pub(crate) const FORBIDDEN: Self = Self::new(403, "Forbidden");
    pub(crate) const INTERNAL: Self = Self::new(500, "InternalError");
    pub(crate) const UNAVAILABLE: Self = Self::new(503, "ServiceUnavailable");
    pub(crate) const TIMEOUT: Self = Self::new(504, "Timeout");

    const fn new(code: u16, reason: &'static str) -> Self {
        Self {
            code,
            reason,
            retry_after: None,
        }
    }

    /// Too many requests; the client is asked to come back after so many seconds.
    pub(crate) const fn too_many(seconds: u32) -> Self {
        Self {
            retry_after: Some(seconds),
            ..Self::new(429, "TooManyRequests")
        }
    }

    fn name(self) -> &'static str {
        match (self.code, self.retry_after) {
            (401, _) => "answered 401",
            (403, _) => "answered 403",
            (409, _) => "answered 409",
            (429, Some(600)) => "answered 429, Retry-After 600",
            (429, _) => "answered 429, Retry-After 5",
            (500, _) => "answered 500",
            (503, _) => "answered 503",
            // There are no others.
            _ => "answered 504",
        }
    }

    /// The whole answer, as the API server would word it.
    pub(crate) fn answer(self) -> Vec<u8> {
        let Self {
            code,
            reason,
            retry_after,
        } = self;
        let body = serde_json::json!({
            "kind": "Status", "apiVersion": "v1", "status": "Failure",
            "message": "the fault proxy says so", "reason": reason, "code": code,
        })
        .to_string();
        let retry_after = match retry_after {
            Some(seconds) => format!("Retry-After: {seconds}\r\n"),
            None => String::new(),
        };
        let length = body.len();
        format!(
            "HTTP/1.1 {code} {reason}\r\nContent-Type: application/json\r\n{retry_after}\
             Content-Length: {length}\r\n\r\n{body}"
        )
        .into_bytes()
    }
}
