//! A connection to the API server: straight, or by what a proxy passes on.
//!
//! As with Go's `net/http`, which kubectl uses, a proxy that is reached by TLS has to show a certificate
//! that would do for the API server, and a SOCKS proxy looks the server's name up.
//!
//! Must not: choose the proxy, send anything to the API server.

use std::{
    fmt::Display,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use futures_util::{
    FutureExt,
    future::{BoxFuture, ready},
};
use http::{Method, Request, Uri, header};
use http_body_util::Empty;
use hyper::{
    body::Bytes,
    client::conn::http1,
    rt::{Read, ReadBufCursor, Write},
};
use hyper_rustls::{HttpsConnector, ResolveServerName};
use hyper_util::client::legacy::connect::{Connected, Connection, proxy::SocksV5};
use tower::{BoxError, Service, ServiceExt, service_fn};

use super::{
    dial::Way,
    proxy::{Kind, Proxy},
};

/// Makes connections on a way, through a proxy if there is one.
#[derive(Clone)]
pub(super) struct Tunnels {
    pub(super) way: Way,
    pub(super) proxy: Option<Proxy>,
    pub(super) tls: Arc<rustls::ClientConfig>,
    pub(super) server_name: Arc<dyn ResolveServerName + Send + Sync>,
}

impl Tunnels {
    async fn open(self, server: Uri) -> Result<Tunnel, BoxError> {
        let Some(proxy) = self.proxy else {
            return Ok(Tunnel(Box::new(self.way.oneshot(server).await?)));
        };
        let door = proxy.uri.clone();
        match proxy.kind {
            Kind::Http => by_connect(self.way.oneshot(door).await?, proxy, server).await,
            Kind::Https => {
                let tls = HttpsConnector::new(self.way, self.tls, true, self.server_name);
                by_connect(tls.oneshot(door).await?, proxy, server).await
            }
            Kind::Socks5 => by_socks(self.way.oneshot(door).await?, proxy, server).await,
        }
    }
}

/// Asks a SOCKS proxy for a connection (RFC 1928).
async fn by_socks(
    stream: impl Read + Write + Send + Unpin + 'static,
    proxy: Proxy,
    server: Uri,
) -> Result<Tunnel, BoxError> {
    // It is connected already: an error of the connector's own is one that it would not show.
    let mut stream = Some(stream);
    let connect = service_fn(move |_: Uri| ready(stream.take().ok_or(io::ErrorKind::NotConnected)));
    let mut socks = SocksV5::new(proxy.uri, connect);
    if let Some(user) = proxy.user {
        socks = socks.with_auth(user.name, user.password);
    }
    let connected = socks.oneshot(server).await;
    let stream = connected.map_err(|error| refused(&error))?;
    Ok(Tunnel(Box::new(stream)))
}

/// Asks for a tunnel (RFC 9110, 9.3.6).
async fn by_connect(
    stream: impl Read + Write + Send + Unpin + 'static,
    proxy: Proxy,
    server: Uri,
) -> Result<Tunnel, BoxError> {
    let request = request_for(&proxy, &server)?;
    let (mut sender, connection) = http1::handshake(stream).await?;
    // It ends with the tunnel, or with the sender if there is none.
    tokio::spawn(connection.with_upgrades());
    let answer = sender.send_request(request).await?;
    if !answer.status().is_success() {
        return Err(refused(&answer.status()));
    }
    Ok(Tunnel(Box::new(hyper::upgrade::on(answer).await?)))
}

fn request_for(proxy: &Proxy, server: &Uri) -> Result<Request<Empty<Bytes>>, BoxError> {
    let host = server.host().unwrap_or_default();
    let target = format!("{host}:{}", server.port_u16().unwrap_or(443));
    let mut request = Request::builder()
        .method(Method::CONNECT)
        .uri(&target)
        .header(header::HOST, &target);
    if let Some(user) = &proxy.user {
        request = request.header(header::PROXY_AUTHORIZATION, user.header()?);
    }
    Ok(request.body(Empty::new())?)
}

fn refused(reason: &dyn Display) -> BoxError {
    format!("the proxy refuses the connection: {reason}").into()
}

impl Service<Uri> for Tunnels {
    type Response = Tunnel;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Tunnel, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, server: Uri) -> Self::Future {
        self.clone().open(server).boxed()
    }
}

/// What is between lease-exec and the API server, of whatever kind.
pub(super) struct Tunnel(Box<dyn Stream>);

trait Stream: Read + Write + Send + Unpin {}

impl<T: Read + Write + Send + Unpin> Stream for T {}

impl Connection for Tunnel {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl Read for Tunnel {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl Write for Tunnel {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}
