//! A server that is an API server, and any kind of proxy on the way to one, and remembers what came.
//!
//! It looks at the first byte that a client sends to know what is meant: TLS, SOCKS or HTTP. What it
//! is asked to tunnel it serves itself, so that a proxy needs no server behind it.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::Value;

/// What a client asked for first, and how it came.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Request {
    /// Which of the servers, `one` or `two`.
    pub(crate) server: &'static str,
    /// The hops: `tls NAME`, `connect HOST:PORT`, `socks HOST:PORT`, each with the user.
    pub(crate) way: Vec<String>,
    /// What stands in the path in front of the API.
    pub(crate) prefix: String,
    pub(crate) namespace: String,
    /// The user: headers and the client certificate, sorted.
    pub(crate) user: Vec<String>,
}

/// Listens on a port of this machine until it is dropped.
pub(crate) struct Recorder {
    pub(crate) port: u16,
    is_closed: Arc<AtomicBool>,
    requests: Arc<Mutex<Vec<Request>>>,
}

impl Recorder {
    pub(crate) fn start(server: &'static str, tls: Arc<ServerConfig>) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
        let port = listener.local_addr().expect("it listens").port();
        let is_closed = Arc::new(AtomicBool::new(false));
        let requests = Arc::new(Mutex::default());
        let (closed, all) = (is_closed.clone(), Arc::clone(&requests));
        thread::spawn(move || {
            for client in listener.incoming() {
                if closed.load(Ordering::SeqCst) {
                    return;
                }
                let (tls, all) = (tls.clone(), Arc::clone(&all));
                thread::spawn(move || {
                    let client = client?;
                    client.set_read_timeout(Some(LIMIT))?;
                    let request = Request {
                        server,
                        ..Request::default()
                    };
                    // How a connection ends is for the client to see.
                    serve(Box::new(client), &tls, request, &all)
                });
            }
        });
        Self {
            port,
            is_closed,
            requests,
        }
    }

    /// What was asked for first.
    pub(crate) fn first(&self) -> Option<Request> {
        let requests = self.requests.lock();
        let requests = requests.unwrap_or_else(PoisonError::into_inner);
        requests.first().cloned()
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.is_closed.store(true, Ordering::SeqCst);
        // Wakes the thread that accepts.
        let _ = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port));
    }
}

trait Stream: Read + Write + Send {}
impl<T: Read + Write + Send> Stream for T {}

/// A stream of which the first bytes have been looked at.
struct Peeked {
    stream: BufReader<Box<dyn Stream>>,
}

impl Read for Peeked {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.stream.read(bytes)
    }
}

impl Write for Peeked {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.get_mut().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.get_mut().flush()
    }
}

fn serve(
    stream: Box<dyn Stream>,
    tls: &Arc<ServerConfig>,
    mut request: Request,
    all: &Mutex<Vec<Request>>,
) -> io::Result<()> {
    let mut stream = Peeked {
        stream: BufReader::new(stream),
    };
    match stream.stream.fill_buf()?.first() {
        Some(0x16) => {
            let connection = ServerConnection::new(tls.clone()).map_err(io::Error::other)?;
            let mut stream = StreamOwned::new(connection, stream);
            while stream.conn.is_handshaking() {
                stream.conn.complete_io(&mut stream.sock)?;
            }
            let name = stream.conn.server_name().unwrap_or("-");
            request.way.push(format!("tls {name}"));
            if let Some([certificate, ..]) = stream.conn.peer_certificates() {
                request
                    .user
                    .push(format!("certificate of {}", common_name(certificate)));
            }
            serve(Box::new(stream), tls, request, all)
        }
        Some(5) => {
            request.way.push(socks(&mut stream)?);
            serve(Box::new(stream), tls, request, all)
        }
        Some(_) => {
            let head = head(&mut stream.stream)?;
            let Some(target) = head[0].strip_prefix("CONNECT ") else {
                return answer(&mut stream, &head, request, all);
            };
            let target = target.split(' ').next().unwrap_or_default();
            let user = header(&head, "proxy-authorization");
            request
                .way
                .push(format!("connect {target} {}", decoded(&user)));
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n")?;
            serve(Box::new(stream), tls, request, all)
        }
        None => Ok(()),
    }
}

/// The name of a certificate's user, which starts with `user-`.
fn common_name(der: &[u8]) -> String {
    let text = String::from_utf8_lossy(der);
    let start = text
        .find("user-")
        .expect("that is how all users are called");
    let name = text[start..]
        .chars()
        .take_while(|letter| letter.is_ascii_lowercase() || *letter == '-');
    name.collect()
}

/// The lines of a request's head: the request itself, and its headers.
fn head(stream: &mut impl BufRead) -> io::Result<Vec<String>> {
    let lines: Result<Vec<String>, _> = stream
        .lines()
        .take_while(|line| !line.as_ref().is_ok_and(String::is_empty))
        .collect();
    let lines = lines?;
    match lines.is_empty() {
        true => Err(io::ErrorKind::UnexpectedEof.into()),
        false => Ok(lines),
    }
}

fn header(head: &[String], wanted: &str) -> String {
    let headers = head.iter().filter_map(|line| line.split_once(": "));
    let value = headers
        .into_iter()
        .find(|(name, _)| name.eq_ignore_ascii_case(wanted));
    value.map_or_else(String::new, |(_, value)| value.to_owned())
}

/// Basic authentication as text.
fn decoded(value: &str) -> String {
    let bytes = value
        .strip_prefix("Basic ")
        .and_then(|value| BASE64.decode(value).ok());
    bytes.map_or_else(
        || value.to_owned(),
        |bytes| String::from_utf8_lossy(&bytes).into_owned(),
    )
}

/// Answers like a SOCKS proxy (RFC 1928, 1929), and says where the client wants to go.
pub(crate) fn socks<S: Read + Write>(stream: &mut S) -> io::Result<String> {
    let bytes = |stream: &mut S, count: usize| {
        let mut bytes = vec![0; count];
        stream.read_exact(&mut bytes).map(|()| bytes)
    };
    let text = |stream: &mut S| {
        let length = bytes(stream, 1)?[0];
        let text = bytes(stream, length.into())?;
        io::Result::Ok(String::from_utf8_lossy(&text).into_owned())
    };
    let methods = bytes(stream, 2)?[1];
    let methods = bytes(stream, methods.into())?;
    let mut user = String::new();
    if methods.contains(&2) {
        stream.write_all(&[5, 2])?;
        bytes(stream, 1)?;
        user = format!("{}:{}", text(stream)?, text(stream)?);
        stream.write_all(&[1, 0])?;
    } else {
        stream.write_all(&[5, 0])?;
    }
    let kind = bytes(stream, 4)?[3];
    let host = match kind {
        1 => {
            Ipv4Addr::from(<[u8; 4]>::try_from(bytes(stream, 4)?).expect("four bytes")).to_string()
        }
        _ => text(stream)?,
    };
    let port = bytes(stream, 2)?;
    let port = u16::from_be_bytes([port[0], port[1]]);
    stream.write_all(&[5, 0, 0, 1, 0, 0, 0, 0, 0, 0])?;
    Ok(format!("socks {host}:{port} {user}"))
}

/// Takes down what an API server would see, and refuses it.
fn answer(
    stream: &mut Peeked,
    head: &[String],
    mut request: Request,
    all: &Mutex<Vec<Request>>,
) -> io::Result<()> {
    let length = header(head, "content-length").parse().unwrap_or(0);
    let mut body = vec![0; length];
    stream.read_exact(&mut body)?;
    let path = head[0].split(' ').nth(1).unwrap_or_default();
    let (prefix, rest) = path.split_once("/apis/").unwrap_or((path, ""));
    request.prefix = prefix.to_owned();
    request.namespace = match rest.split_once("/namespaces/") {
        Some((_, rest)) => rest.split('/').next().unwrap_or_default().to_owned(),
        None => review_namespace(&body),
    };
    for line in &head[1..] {
        let (name, value) = line.split_once(": ").unwrap_or((line, ""));
        let name = name.to_ascii_lowercase();
        if name == "authorization" || name.starts_with("impersonate-") {
            request.user.push(format!("{name}: {}", decoded(value)));
        }
    }
    request.user.sort();
    all.lock()
        .unwrap_or_else(PoisonError::into_inner)
        .push(request);
    let status = r#"{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"Forbidden","code":403,"message":"no"}"#;
    let length = status.len();
    write!(
        stream,
        "HTTP/1.1 403 Forbidden\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n\
         {status}"
    )?;
    stream.flush()
}

/// The namespace of a SelfSubjectRulesReview in JSON or in protobuf.
fn review_namespace(body: &[u8]) -> String {
    if let Ok(review) = serde_json::from_slice::<Value>(body) {
        return review["spec"]["namespace"]
            .as_str()
            .unwrap_or_default()
            .into();
    }
    // A runtime.Unknown, which follows a mark of four bytes, holds the review as its field 2.
    let review = body
        .strip_prefix(b"k8s\0")
        .and_then(|body| field(body, 2))
        .and_then(|review| field(review, 2));
    let namespace = review.and_then(|spec| field(spec, 1)).unwrap_or_default();
    String::from_utf8_lossy(namespace).into_owned()
}

/// A field of a message in protobuf; all of them are texts or messages of less than 128 bytes.
fn field(mut message: &[u8], wanted: u8) -> Option<&[u8]> {
    while let [tag, length, rest @ ..] = message {
        let (content, rest) = rest.split_at_checked((*length).into())?;
        if tag >> 3 == wanted {
            return Some(content);
        }
        message = rest;
    }
    None
}

/// How long a client may say nothing.
const LIMIT: Duration = Duration::from_secs(60);
