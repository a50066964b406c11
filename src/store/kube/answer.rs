//! What came back to a request, whole.
//!
//! Must not: say what it means.

use std::time::Duration;

use http::{HeaderValue, header, response::Parts};
use jiff::fmt::rfc2822;
use kube::config::AuthInfo;

use crate::clock::WallTime;

/// A complete answer.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) code: u16,
    pub(super) body: Vec<u8>,
    /// The server's clock, from `Date`.
    pub(super) date: Option<WallTime>,
    /// `Retry-After`, if it is in seconds and more than none.
    pub(super) retry_after: Option<Duration>,
    /// What may explain a 401, from what we know of our credentials.
    pub(super) remark: Option<String>,
    /// With a 403, the user in whose name the request was sent, who may be another than the one that
    /// the server knows.
    pub(super) acting_as: Option<AuthInfo>,
}

impl Answer {
    pub(super) fn new(
        head: &Parts,
        body: Vec<u8>,
        remark: Option<String>,
        acting_as: Option<AuthInfo>,
    ) -> Self {
        let text = |name| {
            let value = head.headers.get(name);
            value.and_then(|value: &HeaderValue| value.to_str().ok())
        };
        Self {
            code: head.status.as_u16(),
            body,
            date: text(header::DATE).and_then(http_date),
            retry_after: text(header::RETRY_AFTER)
                .and_then(|value| value.trim().parse().ok())
                .map(Duration::from_secs)
                .filter(|wish| !wish.is_zero()),
            remark,
            acting_as,
        }
    }
}

/// A header like `Sat, 21 Nov 2026 07:43:31 GMT` (RFC 9110, 5.6.7).
fn http_date(text: &str) -> Option<WallTime> {
    let date = rfc2822::DateTimeParser::new().parse_timestamp(text).ok()?;
    Some(WallTime {
        unix_micros: date.as_microsecond(),
    })
}
