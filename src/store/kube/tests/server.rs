//! An HTTP server that answers by a script and remembers what it was asked.

use std::{
    collections::VecDeque,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::PathBuf,
    sync::{Arc, Mutex},
    thread,
};

use tempfile::TempDir;

use super::super::{ClusterConfig, KubeStore, LeaseName, Namespace, Source};

/// What the server does with one request.
pub(super) enum Reply {
    /// Answers with this status and body, and keeps the connection.
    Answer(u16, String),
    /// Answers so, with one more header.
    With(u16, &'static str, String),
    /// Answers with these lines, one chunk each, and closes.
    Lines(Vec<String>),
    /// Answers with these lines, and then says no more, but holds the connection.
    Begin(Vec<String>),
    /// Closes the connection without an answer.
    Close,
    /// Says nothing, and holds the connection.
    Silence,
}

#[derive(Clone, Debug)]
pub(super) struct Seen {
    /// Connections are numbered from 0.
    pub(super) connection: usize,
    pub(super) line: String,
    pub(super) headers: Vec<String>,
    pub(super) body: String,
}

pub(super) struct Server {
    pub(super) address: SocketAddr,
    replies: Arc<Mutex<VecDeque<Reply>>>,
    seen: Arc<Mutex<Vec<Seen>>>,
    pub(super) directory: TempDir,
}

impl Server {
    pub(super) fn new(replies: impl IntoIterator<Item = Reply>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = Self {
            address: listener.local_addr().unwrap(),
            replies: Arc::new(Mutex::new(replies.into_iter().collect())),
            seen: Arc::default(),
            directory: tempfile::tempdir().unwrap(),
        };
        let (replies, seen) = (server.replies.clone(), server.seen.clone());
        thread::spawn(move || {
            for (connection, stream) in listener.incoming().enumerate() {
                let (replies, seen) = (replies.clone(), seen.clone());
                thread::spawn(move || serve(stream.unwrap(), connection, &replies, &seen));
            }
        });
        server
    }

    pub(super) fn store(&self) -> KubeStore {
        self.store_as("token: abc")
    }

    pub(super) fn store_as(&self, user: &str) -> KubeStore {
        self.store_from(self.kubeconfig(user))
    }

    pub(super) fn store_from(&self, kubeconfig: PathBuf) -> KubeStore {
        let source = Source {
            kubeconfig: Some(kubeconfig),
            ..Source::default()
        };
        let cluster = ClusterConfig::load(source).unwrap();
        KubeStore::new(
            cluster,
            Namespace::new("ops").unwrap(),
            LeaseName::new("nightly").unwrap(),
        )
        .unwrap()
    }

    pub(super) fn kubeconfig(&self, user: &str) -> PathBuf {
        let path = self.directory.path().join("kubeconfig");
        let text = format!(
            "current-context: a\nclusters: [{{name: a, cluster: {{server: 'http://{}'}}}}]\n\
             contexts: [{{name: a, context: {{cluster: a, user: a}}}}]\nusers: [{{name: a, user: {{{user}}}}}]\n",
            self.address
        );
        std::fs::write(&path, text).unwrap();
        path
    }

    pub(super) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    /// On which connection each request came.
    pub(super) fn connections(&self) -> Vec<usize> {
        self.seen().iter().map(|seen| seen.connection).collect()
    }
}

/// Serves one connection, until the script or the client ends it.
fn serve(
    stream: TcpStream,
    connection: usize,
    replies: &Mutex<VecDeque<Reply>>,
    seen: &Mutex<Vec<Seen>>,
) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut stream = stream;
    while let Some(request) = read_request(&mut reader, connection) {
        seen.lock().unwrap().push(request);
        let reply = replies
            .lock()
            .unwrap()
            .pop_front()
            .expect("a request that no test has foreseen");
        match reply {
            Reply::Answer(code, body) => answer(&mut stream, code, "x: y", &body),
            Reply::With(code, header, body) => answer(&mut stream, code, header, &body),
            Reply::Lines(lines) => {
                chunks(&mut stream, lines);
                write!(stream, "0\r\n\r\n").unwrap();
                return;
            }
            Reply::Begin(lines) => {
                chunks(&mut stream, lines);
                // Until the client goes away.
                let _ = reader.read(&mut [0]);
                return;
            }
            Reply::Close => return,
            Reply::Silence => {
                // Until the client goes away.
                let _ = reader.read(&mut [0]);
                return;
            }
        }
    }
}

/// Begins an answer with these lines, one chunk each.
fn chunks(stream: &mut TcpStream, lines: Vec<String>) {
    write!(
        stream,
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    .unwrap();
    for line in lines {
        write!(stream, "{:x}\r\n{line}\r\n", line.len()).unwrap();
        stream.flush().unwrap();
    }
}

fn read_request(reader: &mut impl BufRead, connection: usize) -> Option<Seen> {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        match line.trim_end() {
            "" => break,
            line => lines.push(line.to_owned()),
        }
    }
    let length = lines
        .iter()
        .find_map(|line| line.strip_prefix("content-length: "));
    let mut body = vec![0; length.map_or(0, |length| length.parse().unwrap())];
    reader.read_exact(&mut body).ok()?;
    Some(Seen {
        connection,
        line: lines.remove(0),
        headers: lines,
        body: String::from_utf8(body).unwrap(),
    })
}

fn answer(stream: &mut TcpStream, code: u16, header: &str, body: &str) {
    let length = body.len();
    let answer = format!("HTTP/1.1 {code} x\r\ncontent-length: {length}\r\n{header}\r\n\r\n{body}");
    // In one piece, or TCP waits before it sends the second. The client may have gone; what it then
    // makes of that is what the test looks at.
    let _ = stream.write_all(answer.as_bytes());
}
