//! What becomes of one connection of a node's.

use std::{io, sync::Arc, time::Duration};

use rustls::pki_types::ServerName;
use serde_json::Value;
use tokio::{
    io::AsyncWriteExt,
    net::{TcpListener, TcpStream},
    select,
    sync::watch,
    time::sleep,
};

use super::{
    Fault, Kind, Shared, Way,
    http::{Head, Reader, framed},
};
use crate::witness;

type Client = Reader<tokio_rustls::server::TlsStream<TcpStream>>;
type Server = Reader<tokio_rustls::client::TlsStream<TcpStream>>;

/// Takes connections until it is aborted.
pub(super) async fn accept(shared: Arc<Shared>, listener: std::net::TcpListener) {
    let listener = TcpListener::from_std(listener).expect("it does not block");
    for number in 1.. {
        match listener.accept().await {
            Ok((client, _)) => {
                let connection = Connection {
                    changes: shared.changes.subscribe(),
                    shared: shared.clone(),
                    number,
                    server: None,
                };
                tokio::spawn(connection.run(client));
            }
            // Out of descriptors, say: nothing that asking at once again would mend.
            Err(_) => sleep(Duration::from_millis(100)).await,
        }
    }
}

struct Connection {
    shared: Arc<Shared>,
    number: u64,
    changes: watch::Receiver<u64>,
    /// Opened for the first request that is passed on.
    server: Option<Server>,
}

/// A whole request.
struct Request {
    head: Head,
    body: Vec<u8>,
    kind: Kind,
    came_in: Duration,
}

/// Whether the connection serves another request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    Serve,
    Close,
}

impl Connection {
    async fn run(mut self, mut client: TcpStream) {
        let _ = client.set_nodelay(true);
        if let Some(fault) = self
            .shared
            .met(|fault| matches!(fault, Fault::BlackHole(_) | Fault::Reset))
        {
            self.shared.inject(self.number, fault);
            match fault {
                Fault::Reset => drop(client.set_zero_linger()),
                // The greeting is never answered.
                _ => park(&mut client, &mut self.changes).await,
            }
            return;
        }
        let acceptor = self.shared.acceptor.clone();
        let Ok(client) = acceptor.accept(client).await else {
            return;
        };
        let mut client = Reader::new(client);
        while let Ok(Next::Serve) = self.serve(&mut client).await {}
    }

    /// Serves one request.
    async fn serve(&mut self, client: &mut Client) -> io::Result<Next> {
        let head = loop {
            select! {
                head = client.head() => break head?,
                _ = self.changes.changed() => match self.disturb(client).await {
                    Next::Serve => {}
                    Next::Close => return Ok(Next::Close),
                },
            }
        };
        let body = client.body(&head).await?;
        let request = Request::new(head, body);
        let fate = self.shared.fate(request.kind);
        if !self.reaches_server(client, &request, fate).await? {
            return Ok(match fate {
                Some(Fault::Answer(_)) => Next::Serve,
                _ => Next::Close,
            });
        }
        let head = {
            let server = self.server(&request, fate).await?;
            select! {
                head = server.head() => head?,
                () = client.closed() => return Ok(Next::Close),
            }
        };
        self.note_answer(&request, &head);
        if request.kind == Kind::Watch && head.word(1) == "200" {
            let stream = self.stream(client, &head, fate).await;
            return stream.map(|()| Next::Close);
        }
        let server = self.server.as_mut().ok_or(io::ErrorKind::NotConnected)?;
        let body = server.body(&head).await?;
        if request.kind == Kind::Write && matches!(&*head.word(1), "200" | "201") {
            let stored = record(&body);
            self.shared.note(self.number, &format!("stored {stored}"));
            if request.is_of_holder() {
                self.shared.carried_out(request.came_in);
            }
        }
        let answer = [head.bytes(), &body].concat();
        self.answer(client, &answer, fate).await
    }

    /// Does what a fault does to a request; false if it ends here.
    async fn reaches_server(
        &mut self,
        client: &mut Client,
        request: &Request,
        fate: Option<Fault>,
    ) -> io::Result<bool> {
        let number = self.number;
        let Some(fault) = fate else {
            return Ok(true);
        };
        match fault {
            Fault::Delay { request, .. } => {
                self.shared.inject(number, fault);
                sleep(request).await;
            }
            Fault::LateWrite(wait) => {
                self.shared.inject(number, fault);
                sleep(wait).await;
            }
            Fault::BlackHole(Way::Requests | Way::Both) => {
                self.shared.inject(number, fault);
                client.closed().await;
                return Ok(false);
            }
            Fault::Reset => {
                self.shared.inject(number, fault);
                client.stream.get_ref().0.set_zero_linger()?;
                return Ok(false);
            }
            Fault::HalfClose => {
                self.half_close(client).await?;
                return Ok(false);
            }
            Fault::CutRequest => {
                self.shared.inject(number, fault);
                let cut = self.shared.place(request.bytes().len());
                let server = self.connect().await?;
                server.stream.write_all(&request.bytes()[..cut]).await?;
                server.stream.flush().await?;
                client.stream.get_ref().0.set_zero_linger()?;
                return Ok(false);
            }
            Fault::Answer(status) => {
                self.shared.inject(number, fault);
                client.stream.write_all(&status.answer()).await?;
                client.stream.flush().await?;
                return Ok(false);
            }
            Fault::RepeatWrite => {
                self.shared.inject(number, fault);
                self.send_first_of_two(request).await?;
            }
            // These come with the answer.
            Fault::BlackHole(Way::Answers)
            | Fault::CutAnswer
            | Fault::LoseAnswer
            | Fault::AnswerAfterwards(_)
            | Fault::FreezeWatch
            | Fault::EndWatch
            | Fault::DoubleWatch => {}
        }
        Ok(true)
    }

    /// Sends a write whose answer nobody gets.
    async fn send_first_of_two(&mut self, request: &Request) -> io::Result<()> {
        let server = self.connect().await?;
        server.stream.write_all(&request.bytes()).await?;
        server.stream.flush().await?;
        let head = server.head().await?;
        let body = server.body(&head).await?;
        let (code, stored) = (head.word(1), record(&body));
        if matches!(&*code, "200" | "201") && request.is_of_holder() {
            self.shared.carried_out(request.came_in);
        }
        let text = format!("the first of two was answered {code}, {stored}");
        self.shared.note(self.number, &text);
        Ok(())
    }

    /// Passes a request on, and returns where its answer will come from.
    async fn server(&mut self, request: &Request, fate: Option<Fault>) -> io::Result<&mut Server> {
        let text = format!("{} {fate:?}", request.describe());
        self.shared.note(self.number, &text);
        let server = self.connect().await?;
        server.stream.write_all(&request.bytes()).await?;
        server.stream.flush().await?;
        Ok(server)
    }

    /// Does what a fault does to an answer.
    async fn answer(
        &mut self,
        client: &mut Client,
        answer: &[u8],
        fate: Option<Fault>,
    ) -> io::Result<Next> {
        let number = self.number;
        // A black hole that has come meanwhile swallows the answer too.
        let is_hole = |fault| matches!(fault, Fault::BlackHole(Way::Answers | Way::Both));
        let fate = self.shared.met(is_hole).or(fate);
        match fate {
            Some(fault @ Fault::BlackHole(_)) => {
                self.shared.inject(number, fault);
                client.closed().await;
                return Ok(Next::Close);
            }
            Some(fault @ Fault::LoseAnswer) => {
                self.shared.inject(number, fault);
                return Ok(Next::Close);
            }
            Some(fault @ Fault::CutAnswer) => {
                self.shared.inject(number, fault);
                let cut = self.shared.place(answer.len());
                client.stream.write_all(&answer[..cut]).await?;
                client.stream.flush().await?;
                return Ok(Next::Close);
            }
            Some(fault @ Fault::AnswerAfterwards(status)) => {
                self.shared.inject(number, fault);
                client.stream.write_all(&status.answer()).await?;
            }
            Some(Fault::Delay { answer: wait, .. }) => {
                sleep(wait).await;
                client.stream.write_all(answer).await?;
            }
            // These have been done to the request, or are for watches.
            Some(_) | None => client.stream.write_all(answer).await?,
        }
        client.stream.flush().await?;
        Ok(Next::Serve)
    }

    /// Passes the events of a watch on, until either side ends it.
    async fn stream(
        &mut self,
        client: &mut Client,
        head: &Head,
        fate: Option<Fault>,
    ) -> io::Result<()> {
        client.stream.write_all(head.bytes()).await?;
        client.stream.flush().await?;
        if let Some(Fault::FreezeWatch | Fault::EndWatch) = fate
            && self.break_watch(client).await? == Next::Close
        {
            return Ok(());
        }
        loop {
            let server = self.server.as_mut().ok_or(io::ErrorKind::NotConnected)?;
            let chunk = select! {
                chunk = server.chunk() => chunk?,
                () = client.closed() => return Ok(()),
                _ = self.changes.changed() => {
                    if self.disturb(client).await == Next::Close
                        || self.break_watch(client).await? == Next::Close {
                        return Ok(());
                    }
                    continue;
                }
            };
            let is_hole = |fault| matches!(fault, Fault::BlackHole(Way::Answers | Way::Both));
            if let Some(fault) = self.shared.met(is_hole) {
                self.shared.inject(self.number, fault);
                client.closed().await;
                return Ok(());
            }
            let text = String::from_utf8_lossy(&chunk).into_owned();
            self.shared
                .note(self.number, &format!("event {}", event(&text)));
            client.stream.write_all(&framed(&chunk)).await?;
            if chunk.is_empty() {
                return client.stream.flush().await;
            }
            if let Some(fault) = self.shared.met(|fault| fault == Fault::DoubleWatch) {
                self.shared.inject(self.number, fault);
                client.stream.write_all(&framed(&chunk)).await?;
            }
            client.stream.flush().await?;
        }
    }

    /// Freezes or ends a watch, if such a fault is active.
    async fn break_watch(&mut self, client: &mut Client) -> io::Result<Next> {
        let breaks = |fault| matches!(fault, Fault::FreezeWatch | Fault::EndWatch);
        let Some(fault) = self.shared.met(breaks) else {
            return Ok(Next::Serve);
        };
        self.shared.inject(self.number, fault);
        match fault {
            Fault::FreezeWatch => client.closed().await,
            _ => {
                client.stream.write_all(&framed(b"")).await?;
                client.stream.flush().await?;
            }
        }
        Ok(Next::Close)
    }

    /// Does to a connection that waits what newly active faults do to it.
    async fn disturb(&mut self, client: &mut Client) -> Next {
        // The link is gone.
        if *self.changes.borrow() == u64::MAX {
            return Next::Close;
        }
        let does = |fault| matches!(fault, Fault::Reset | Fault::HalfClose);
        match self.shared.met(does) {
            Some(Fault::Reset) => {
                self.shared.inject(self.number, Fault::Reset);
                let _ = client.stream.get_ref().0.set_zero_linger();
                Next::Close
            }
            Some(_) => {
                // The client may be gone, which is as good.
                let _ = self.half_close(client).await;
                Next::Close
            }
            None => Next::Serve,
        }
    }

    async fn half_close(&mut self, client: &mut Client) -> io::Result<()> {
        self.shared.inject(self.number, Fault::HalfClose);
        client.stream.get_mut().0.shutdown().await?;
        client.closed().await;
        Ok(())
    }

    async fn connect(&mut self) -> io::Result<&mut Server> {
        if self.server.is_none() {
            let stream = TcpStream::connect(self.shared.server).await?;
            stream.set_nodelay(true)?;
            let name = ServerName::try_from("localhost").map_err(io::Error::other)?;
            let stream = self.shared.connector.connect(name, stream).await?;
            self.server = Some(Reader::new(stream));
        }
        self.server
            .as_mut()
            .ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    fn note_answer(&self, request: &Request, head: &Head) {
        let (what, code) = (request.head.word(0), head.word(1));
        self.shared
            .note(self.number, &format!("{what} was answered {code}"));
    }
}

impl Request {
    fn new(head: Head, body: Vec<u8>) -> Self {
        let target = head.word(1);
        let kind = match &*head.word(0) {
            "PUT" => Kind::Write,
            _ if target.contains("watch=") => Kind::Watch,
            _ => Kind::Read,
        };
        Self {
            head,
            body,
            kind,
            came_in: witness::now(),
        }
    }

    fn bytes(&self) -> Vec<u8> {
        [self.head.bytes(), &self.body].concat()
    }

    /// Whether it writes a record that somebody holds.
    fn is_of_holder(&self) -> bool {
        let object: Value = serde_json::from_slice(&self.body).unwrap_or_default();
        let holder = object["spec"]["holderIdentity"].as_str();
        holder.is_some_and(|holder| !holder.is_empty())
    }

    fn describe(&self) -> String {
        match self.kind {
            Kind::Write => format!("PUT {}", record(&self.body)),
            Kind::Read => "GET".to_owned(),
            Kind::Watch => "WATCH".to_owned(),
        }
    }
}

/// What matters of a Lease in a body, framed or not.
fn record(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    let start = text.find('{').unwrap_or(0);
    let mut objects = serde_json::Deserializer::from_str(&text[start..]).into_iter::<Value>();
    let object = objects.next().and_then(Result::ok).unwrap_or_default();
    short(&object)
}

fn event(chunk: &str) -> String {
    let event: Value = serde_json::from_str(chunk).unwrap_or_default();
    format!("{} {}", event["type"], short(&event["object"]))
}

fn short(object: &Value) -> String {
    let (metadata, spec) = (&object["metadata"], &object["spec"]);
    format!(
        "version {} holder {} duration {} renewed {}",
        metadata["resourceVersion"],
        spec["holderIdentity"],
        spec["leaseDurationSeconds"],
        spec["renewTime"]
    )
}

/// Keeps a connection open and says nothing, until the client or the link gives it up.
async fn park(client: &mut TcpStream, changes: &mut watch::Receiver<u64>) {
    use tokio::io::AsyncReadExt;
    let mut bytes = [0; 4096];
    loop {
        select! {
            read = client.read(&mut bytes) => if !read.is_ok_and(|count| count > 0) {
                return;
            },
            _ = changes.changed() => if *changes.borrow() == u64::MAX {
                return;
            },
        }
    }
}
