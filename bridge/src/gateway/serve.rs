//! Holds the HTTP sockets: accepts, limits, serves, drains.
//!
//! [`accept`] returns when the gateway drains and every connection it accepted is done; aborting it cuts them.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::{SockRef, TcpKeepalive};
use tidegate_broker::server::{Certificates, Descriptors, Told, none_left};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tower_service::Service as _;

use super::guard::Peer;
use super::routes::{self, App};

/// After this a peer that answers nothing is asked whether it is still there.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
/// The pause before it is looked again whether there is room for one more socket.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);
/// Connections that are being told that they are too many; more are closed without a word.
const REFUSALS_MAX: usize = 64;
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(1);
const HEAD_BYTES_MAX: usize = 64 << 10;

/// Room for connections, of all listeners together.
#[derive(Clone, Debug)]
pub(super) struct Places {
    connections: Arc<Semaphore>,
    refusals: Arc<Semaphore>,
}

impl Places {
    pub(super) fn new(connections_max: usize) -> Self {
        Self {
            connections: Arc::new(Semaphore::new(connections_max)),
            refusals: Arc::new(Semaphore::new(REFUSALS_MAX)),
        }
    }
}

/// Accepts until the gateway drains, then waits for the connections.
pub(super) async fn accept(
    listener: TcpListener,
    certificates: Option<Arc<Certificates>>,
    app: Arc<App>,
    places: Places,
) {
    let mut drain = app.drain.clone();
    let router = routes::router(Arc::clone(&app));
    let mut connections = JoinSet::new();
    let mut room = Room::new();
    loop {
        let accepted = tokio::select! {
            biased;
            () = drain.begun() => break,
            Some(_) = connections.join_next() => continue,
            accepted = listener.accept() => accepted,
        };
        let placed = match accepted {
            Ok((stream, peer)) => tokio::select! {
                biased;
                () = drain.begun() => break,
                placed = room.place(stream) => placed.map(|stream| (stream, peer)),
            },
            Err(error) => Err(error),
        };
        match placed {
            Ok((stream, peer)) => match Arc::clone(&places.connections).try_acquire_owned() {
                Ok(place) => {
                    let connection = Connection {
                        router: router.clone(),
                        peer,
                        drain: drain.clone(),
                        header_timeout: Duration::from_millis(app.config.header_timeout_ms),
                        send_timeout: Duration::from_millis(app.config.send_timeout_ms),
                        tls: certificates.as_ref().map(|certificates| certificates.current().into()),
                    };
                    connections.spawn(async move {
                        connection.serve(stream).await;
                        drop(place);
                    });
                }
                // Who expects TLS understands no answer without it.
                Err(_) if certificates.is_some() => {}
                Err(_) => {
                    if let Ok(turn) = Arc::clone(&places.refusals).try_acquire_owned() {
                        connections.spawn(async move {
                            refuse(stream).await;
                            drop(turn);
                        });
                    }
                }
            },
            Err(error) => {
                room.tell(&error);
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
    // WebSockets have left their HTTP connection behind.
    app.sockets.all_closed().await;
}

/// Lets sockets in while there is room for them.
struct Room {
    descriptors: Descriptors,
    told: Told,
    begun: Instant,
}

impl Room {
    fn new() -> Self {
        Self { descriptors: Descriptors::for_http(), told: Told::default(), begun: Instant::now() }
    }

    /// Waits until there is room.
    async fn place(&mut self, stream: TcpStream) -> io::Result<TcpStream> {
        if self.descriptors.hold(&stream) {
            return Ok(stream);
        }
        let mut stream = stream.into_std()?;
        loop {
            match self.descriptors.place(stream) {
                Ok(stream) => return TcpStream::from_std(stream),
                Err(waiting) => stream = waiting,
            }
            self.tell(&none_left());
            tokio::time::sleep(ACCEPT_PAUSE).await;
        }
    }

    fn tell(&mut self, error: &io::Error) {
        if self.told.is_news(self.begun.elapsed()) {
            tracing::warn!(
                %error,
                "no more HTTP connections are accepted until some have ended; raise LimitNOFILE or ulimit -n"
            );
        }
    }
}

/// Tells when the gateway begins to drain.
#[derive(Clone, Debug)]
pub(super) struct Drain(pub(super) watch::Receiver<bool>);

impl Drain {
    /// Whether it has begun.
    pub(super) fn has_begun(&self) -> bool {
        *self.0.borrow()
    }

    /// Waits until it begins, or the gateway is gone.
    pub(super) async fn begun(&mut self) {
        let _ = self.0.wait_for(|begun| *begun).await;
    }
}

struct Connection {
    router: Router,
    peer: SocketAddr,
    drain: Drain,
    header_timeout: Duration,
    send_timeout: Duration,
    tls: Option<TlsAcceptor>,
}

impl Connection {
    async fn serve(mut self, stream: TcpStream) {
        set_options(&stream, self.send_timeout);
        let Some(tls) = self.tls.take() else { return self.serve_http(stream).await };
        match tokio::time::timeout(self.header_timeout, tls.accept(stream)).await {
            Ok(Ok(stream)) => self.serve_http(stream).await,
            Ok(Err(error)) => tracing::debug!(peer = %self.peer, %error, "a TLS handshake failed"),
            Err(_) => tracing::debug!(peer = %self.peer, "a TLS handshake took too long"),
        }
    }

    async fn serve_http(mut self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
        let (router, peer) = (self.router, Peer(self.peer));
        let service = service_fn(move |request: Request<Incoming>| {
            let mut request = request.map(Body::new);
            request.extensions_mut().insert(peer);
            let mut router = router.clone();
            async move { Ok::<_, Infallible>(router.call(request).await.unwrap_or_else(|never| match never {})) }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.header_timeout)
            .max_buf_size(HEAD_BYTES_MAX)
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades();
        let mut connection = std::pin::pin!(connection);
        let served = tokio::select! {
            served = connection.as_mut() => served,
            () = self.drain.begun() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = served {
            tracing::debug!(peer = %self.peer, %error, "an HTTP connection ended early");
        }
    }
}

/// A peer that takes nothing, or is gone without a word, loses its connection and not our memory.
fn set_options(stream: &TcpStream, send_timeout: Duration) {
    let socket = SockRef::from(stream);
    let set = stream
        .set_nodelay(true)
        .and_then(|()| socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE_IDLE)))
        .and_then(|()| socket.set_tcp_user_timeout(Some(send_timeout)));
    if let Err(error) = set {
        tracing::debug!(%error, "a socket option could not be set");
    }
}

/// One connection too many gets an answer. The request is read away: closing on it would reset the connection and
/// take the answer back.
async fn refuse(mut stream: TcpStream) {
    const BODY: &str = "{\"error\":\"too_many_connections\",\
        \"detail\":\"too many connections (http.connections_max): try again later\"}";
    let answer = format!(
        "HTTP/1.1 503 Service Unavailable\r\nretry-after: 5\r\nconnection: close\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n{BODY}",
        BODY.len()
    );
    let told = async {
        stream.write_all(answer.as_bytes()).await?;
        stream.shutdown().await?;
        tokio::io::copy(&mut stream, &mut tokio::io::sink()).await
    };
    let _ = tokio::time::timeout(REFUSAL_TIMEOUT, told).await;
}
