//! As much of HTTP/1.1 (RFC 9112) as lease-exec and an API server speak with each other.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt};

/// Reads messages from a connection. Every wait may be given up and begun anew.
pub(super) struct Reader<S> {
    pub(super) stream: S,
    buffer: Vec<u8>,
}

/// The lines before the body, with the empty one at their end.
pub(super) struct Head(Vec<u8>);

/// How long a body is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Length {
    Bytes(usize),
    Chunked,
}

impl<S: AsyncRead + Unpin> Reader<S> {
    pub(super) fn new(stream: S) -> Self {
        Self {
            stream,
            buffer: Vec::new(),
        }
    }

    /// The next message's head.
    pub(super) async fn head(&mut self) -> io::Result<Head> {
        self.through(b"\r\n\r\n").await.map(Head)
    }

    /// The body of the message that has this head, as its sender framed it.
    pub(super) async fn body(&mut self, head: &Head) -> io::Result<Vec<u8>> {
        match head.length() {
            Length::Bytes(count) => self.take(count).await,
            Length::Chunked => {
                let mut body = Vec::new();
                loop {
                    let chunk = self.chunk().await?;
                    body.extend(framed(&chunk));
                    if chunk.is_empty() {
                        return Ok(body);
                    }
                }
            }
        }
    }

    /// What the next chunk of a chunked body holds; nothing if it is the last.
    pub(super) async fn chunk(&mut self) -> io::Result<Vec<u8>> {
        // Nothing is taken before all is there, so that giving up loses nothing.
        loop {
            if let Some(end) = find(&self.buffer, b"\r\n") {
                let line = String::from_utf8_lossy(&self.buffer[..end]).into_owned();
                let size = line.split(';').next().unwrap_or_default().trim();
                let size = usize::from_str_radix(size, 16).map_err(io::Error::other)?;
                let whole = end + 2 + size + 2;
                if self.buffer.len() >= whole {
                    let chunk = self.buffer.drain(..whole).collect::<Vec<_>>();
                    return Ok(chunk[end + 2..end + 2 + size].to_vec());
                }
            }
            self.fill().await?;
        }
    }

    /// Waits until the other side has closed the connection.
    pub(super) async fn closed(&mut self) {
        while self.fill().await.is_ok() {}
    }

    async fn through(&mut self, end: &[u8]) -> io::Result<Vec<u8>> {
        loop {
            if let Some(start) = find(&self.buffer, end) {
                return Ok(self.buffer.drain(..start + end.len()).collect());
            }
            self.fill().await?;
        }
    }

    async fn take(&mut self, count: usize) -> io::Result<Vec<u8>> {
        while self.buffer.len() < count {
            self.fill().await?;
        }
        Ok(self.buffer.drain(..count).collect())
    }

    async fn fill(&mut self) -> io::Result<()> {
        match self.stream.read_buf(&mut self.buffer).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }
}

impl Head {
    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// A word of the first line: `GET /path HTTP/1.1`, `HTTP/1.1 200 OK`.
    pub(super) fn word(&self, number: usize) -> String {
        let text = String::from_utf8_lossy(&self.0);
        let line = text.lines().next().unwrap_or_default();
        line.split(' ').nth(number).unwrap_or_default().to_owned()
    }

    pub(super) fn length(&self) -> Length {
        let text = String::from_utf8_lossy(&self.0).to_lowercase();
        let field = |name: &str| {
            let mut lines = text.lines();
            lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(':').map(str::trim))
        };
        match (field("transfer-encoding"), field("content-length")) {
            (Some("chunked"), _) => Length::Chunked,
            (_, Some(count)) => Length::Bytes(count.parse().unwrap_or(0)),
            (_, None) => Length::Bytes(0),
        }
    }
}

/// A chunk as it is sent.
pub(super) fn framed(chunk: &[u8]) -> Vec<u8> {
    let mut bytes = format!("{:x}\r\n", chunk.len()).into_bytes();
    bytes.extend(chunk);
    bytes.extend(b"\r\n");
    bytes
}

fn find(bytes: &[u8], pattern: &[u8]) -> Option<usize> {
    let mut windows = bytes.windows(pattern.len());
    windows.position(|window| window == pattern)
}
