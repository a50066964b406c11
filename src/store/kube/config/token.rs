//! What proves who asks.

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use http::HeaderValue;

/// The value of an `Authorization` header. It is checked when it is made: what is no header value
/// makes kube's own layer panic, and a panic would end a running command.
#[derive(Clone, Debug)]
pub(in crate::store::kube) struct Token(HeaderValue);

/// The text holds what no header can.
#[derive(Debug)]
pub(in crate::store::kube) struct NoToken;

impl Token {
    /// A bearer token, trimmed; `None` if that leaves nothing.
    pub(in crate::store::kube) fn bearer(text: &str) -> Result<Option<Self>, NoToken> {
        match text.trim() {
            "" => Ok(None),
            text => Self::new(&format!("Bearer {text}")).map(Some),
        }
    }

    /// A user with a password (RFC 7617).
    pub(super) fn basic(user: &str, password: &str) -> Result<Self, NoToken> {
        Self::new(&format!(
            "Basic {}",
            BASE64.encode(format!("{user}:{password}"))
        ))
    }

    pub(in crate::store::kube) fn header(&self) -> HeaderValue {
        self.0.clone()
    }

    fn new(text: &str) -> Result<Self, NoToken> {
        let mut value = HeaderValue::from_str(text).map_err(|_| NoToken)?;
        value.set_sensitive(true);
        Ok(Self(value))
    }
}
