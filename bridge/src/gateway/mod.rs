//! The HTTP side: health, status, metrics, WebSocket, server-sent events, publish, the built-in page.
//!
//! The gateway reads the one journal like everybody else; nothing beyond the durable end is ever sent, and what is
//! published through it goes the way of every MQTT publish. What happens at each limit stands beside it in
//! [`Config`]. Who may use it is decided in `guard`, and what for in `permit` and `caller`, by the same rules as for
//! MQTT.
//!
//! In the order of a request: `serve` holds the sockets, `guard` lets in, `routes` finds the handler; `events`,
//! `subscription` and `interest` are the fan-out that `sse` and `websocket` put on the wire with `encode`.

mod caller;
mod encode;
mod envelope;
mod events;
mod guard;
mod health;
mod interest;
mod ledger;
mod metrics;
mod mqtt;
mod operator;
mod page;
mod permit;
mod publish;
mod reply;
mod resume;
mod routes;
mod serve;
mod sse;
mod status;
mod subscriber;
mod subscription;
mod websocket;

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use metrics_exporter_prometheus::PrometheusHandle;
use tidegate_broker::auth::Access;
use tidegate_broker::journal::Journal;
use tidegate_broker::server::{CertificateFiles, Certificates};
use tidegate_broker::topic::{TopicError, TopicName};
use tokio::sync::watch;
use tokio::task::JoinHandle;

pub use mqtt::Mqtt;
pub use operator::operator_token;
pub use publish::Publish;

use crate::health::Part;

/// Where HTTPS is accepted unless something else is said.
const TLS_LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 8443);

/// How the gateway behaves. What happens at each limit stands beside it.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where HTTP is accepted.
    pub listen: SocketAddr,
    /// Where HTTPS is accepted when there is a certificate.
    pub tls_listen: Option<SocketAddr>,
    /// The certificate, with those between it and its authority.
    pub tls_cert_file: Option<PathBuf>,
    /// Its private key.
    pub tls_key_file: Option<PathBuf>,
    /// What the service calls itself in `/health` and in events.
    pub service_name: String,
    /// The platform it belongs to, told at `/`; empty for none.
    pub platform: String,
    /// Web pages of these origins (`https://dash.example`) may use the gateway from a browser; those it serves
    /// itself always may. Requests from others are answered 403.
    pub allowed_origins: Vec<String>,
    /// Names besides `localhost` and IP addresses under which a browser on this machine may reach the gateway
    /// without credentials; under another name it is answered 403 (protection from DNS rebinding).
    pub allowed_hosts: Vec<String>,
    /// The Topic Name that `POST /ingest` publishes to; empty refuses it with 503.
    pub ingest_topic: String,
    /// Open HTTP connections; one more is answered 503 and closed.
    pub connections_max: usize,
    /// Event streams and WebSockets at one time; one more is answered 503.
    pub subscribers_max: usize,
    /// Topic Filters of one subscriber; one more is answered 400, or an `error` frame.
    pub filters_max: usize,
    /// Bytes waiting for one subscriber; above it, the subscriber leaves the live tail and reads the journal.
    pub queue_bytes_max: usize,
    /// Bytes of one request body; a larger one is answered 413.
    pub body_bytes_max: usize,
    /// Bytes of one frame from a WebSocket; a larger one closes it with 1009.
    pub frame_bytes_max: usize,
    /// Time for the head of a request; then the connection is closed.
    pub header_timeout_ms: u64,
    /// Time for the body of a request; then it is answered 408.
    pub body_timeout_ms: u64,
    /// Time for a publish to become durable; then it is answered 503, although it may still become durable.
    pub publish_timeout_ms: u64,
    /// Time in which a connection must take what is sent to it; then it is closed.
    pub send_timeout_ms: u64,
    /// How long a browser waits before it connects again to the event stream.
    pub retry_ms: u64,
    /// Time between two `status_update` events on an event stream.
    pub status_interval_ms: u64,
    /// Time between two pings to a WebSocket; one that is silent for three of them is closed.
    pub ping_interval_ms: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::UNSPECIFIED, 8080)),
            tls_listen: Some(TLS_LISTEN),
            tls_cert_file: None,
            tls_key_file: None,
            service_name: "tidegate".into(),
            platform: String::new(),
            allowed_origins: Vec::new(),
            allowed_hosts: Vec::new(),
            ingest_topic: "ingest".into(),
            connections_max: 4_096,
            subscribers_max: 1_024,
            filters_max: 64,
            queue_bytes_max: 1 << 20,
            body_bytes_max: 1 << 20,
            frame_bytes_max: 64 << 10,
            header_timeout_ms: 10_000,
            body_timeout_ms: 30_000,
            publish_timeout_ms: 10_000,
            send_timeout_ms: 60_000,
            retry_ms: 2_000,
            status_interval_ms: 5_000,
            ping_interval_ms: 30_000,
        }
    }
}

impl Config {
    /// The files of the certificate, if there is one.
    pub fn certificate_files(&self) -> Option<CertificateFiles> {
        let (certificate, key) = (self.tls_cert_file.clone()?, self.tls_key_file.clone()?);
        Some(CertificateFiles { certificate, key, client_authorities: None, client_required: false })
    }

    /// Every mistake in it, each as one line that names the key.
    pub fn mistakes(&self) -> Vec<String> {
        let mut mistakes = Vec::new();
        match (&self.tls_cert_file, &self.tls_key_file) {
            (Some(_), None) => {
                mistakes.push("http.tls_cert_file: needs its private key: set http.tls_key_file".to_owned());
            }
            (None, Some(_)) => {
                mistakes.push("http.tls_key_file: needs its certificate: set http.tls_cert_file".to_owned());
            }
            (None, None) if self.tls_listen.is_some_and(|listen| listen != TLS_LISTEN) => mistakes.push(
                "http.tls_listen: needs a certificate: set http.tls_cert_file and http.tls_key_file"
                    .to_owned(),
            ),
            (None, None) | (Some(_), Some(_)) => {}
        }
        for origin in &self.allowed_origins {
            if guard::origin_authority(origin).is_none() {
                mistakes.push(format!(
                    "http.allowed_origins: {origin:?} is no origin; write scheme://host or scheme://host:port"
                ));
            }
        }
        if !self.ingest_topic.is_empty()
            && let Err(error) = TopicName::new(&self.ingest_topic)
        {
            let error: TopicError = error;
            mistakes.push(format!("http.ingest_topic: {error}"));
        }
        let positive = [
            ("connections_max", self.connections_max as u64),
            ("subscribers_max", self.subscribers_max as u64),
            ("filters_max", self.filters_max as u64),
            ("queue_bytes_max", self.queue_bytes_max as u64),
            ("body_bytes_max", self.body_bytes_max as u64),
            ("frame_bytes_max", self.frame_bytes_max as u64),
            ("header_timeout_ms", self.header_timeout_ms),
            ("body_timeout_ms", self.body_timeout_ms),
            ("publish_timeout_ms", self.publish_timeout_ms),
            ("send_timeout_ms", self.send_timeout_ms),
            ("retry_ms", self.retry_ms),
            ("status_interval_ms", self.status_interval_ms),
            ("ping_interval_ms", self.ping_interval_ms),
        ];
        for (key, _) in positive.iter().filter(|(_, value)| *value == 0) {
            mistakes.push(format!("http.{key}: must be at least 1"));
        }
        mistakes
    }
}

/// What the gateway tells about the other parts in `/health`.
#[derive(Clone, Debug)]
pub struct Parts {
    /// The MQTT listener.
    pub mqtt: Part,
    /// Each sink.
    pub sinks: Vec<Part>,
    /// Whatever else publishes are taken from.
    pub sources: Vec<Part>,
}

impl Parts {
    /// All of them.
    fn all(&self) -> impl Iterator<Item = &Part> {
        std::iter::once(&self.mqtt).chain(&self.sinks).chain(&self.sources)
    }
}

/// What the gateway is connected to.
#[derive(Clone)]
pub struct Wiring {
    /// Where records come from.
    pub journal: Journal,
    /// Where publishes go.
    pub publisher: Arc<dyn Publish>,
    /// The certificate for HTTPS; without it there is none.
    pub certificates: Option<Arc<Certificates>>,
    /// Where WebSockets at `/mqtt` go, and where else MQTT is accepted; without it `/mqtt` is answered 503.
    pub mqtt: Option<Mqtt>,
    /// Who may connect, and what for: the rules of the MQTT listener.
    pub access: Arc<Access>,
    /// The token that lets an operator in from anywhere: see [`operator_token`].
    pub operator_token: Option<String>,
    /// The other parts, for `/health`.
    pub parts: Parts,
    /// What other parts record through the `metrics` facade; it is shown at `/metrics` together with the
    /// gateway's own.
    pub metrics: Option<PrometheusHandle>,
}

impl std::fmt::Debug for Wiring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Wiring").field("parts", &self.parts).finish_non_exhaustive()
    }
}

/// Why the gateway did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration is wrong.
    #[error("{}", .0.join("\n"))]
    Config(Vec<String>),
    /// The address cannot be listened on.
    #[error("cannot listen for HTTP on {address}: {error}; {} ({variable})", advice(.error))]
    Listen {
        /// The configured address.
        address: SocketAddr,
        /// The variable that sets it.
        variable: &'static str,
        /// What the operating system says.
        error: io::Error,
    },
    /// The follower's thread cannot be started.
    #[error("cannot start the gateway's thread: {0}")]
    Thread(io::Error),
}

fn advice(error: &io::Error) -> &'static str {
    if error.kind() == io::ErrorKind::AddrInUse {
        "stop the other program on that port or set another one"
    } else {
        "check the address"
    }
}

/// A running gateway.
#[derive(Debug)]
pub struct Gateway {
    address: SocketAddr,
    tls_address: Option<SocketAddr>,
    draining: watch::Sender<bool>,
    accepting: JoinHandle<()>,
    _follower: events::Follower,
}

/// Starts the gateway in the current tokio runtime.
///
/// # Errors
///
/// If the configuration has a mistake, or the address cannot be listened on.
pub async fn start(config: Config, wiring: Wiring) -> Result<Gateway, StartError> {
    let mistakes = config.mistakes();
    if !mistakes.is_empty() {
        return Err(StartError::Config(mistakes));
    }
    let (listener, address) = bind(config.listen, "TIDEGATE_HTTP_LISTEN").await?;
    let tls = match (wiring.certificates, config.tls_listen) {
        (Some(certificates), Some(listen)) => {
            Some((bind(listen, "TIDEGATE_HTTP_TLS_LISTEN").await?, certificates))
        }
        (Some(_), None) | (None, _) => None,
    };
    let tls_address = tls.as_ref().map(|((_, address), _)| *address);

    let limits =
        events::Limits { subscribers_max: config.subscribers_max, queue_bytes_max: config.queue_bytes_max };
    let encoder = encode::Encoder::new(wiring.journal.id(), &config.service_name);
    let (hub, follower) =
        events::Hub::start(wiring.journal.clone(), Arc::clone(&wiring.access), encoder, limits)
            .map_err(StartError::Thread)?;
    let guard = guard::Guard::new(&config, Arc::clone(&wiring.access), wiring.operator_token.clone());
    let (draining, drain) = watch::channel(false);
    let app = Arc::new(routes::App {
        config,
        hub,
        publisher: wiring.publisher,
        mqtt: wiring.mqtt,
        guard,
        parts: wiring.parts,
        metrics: wiring.metrics,
        drain: serve::Drain(drain),
        started: Instant::now(),
        status: status::Cache::default(),
        sockets: websocket::Open::default(),
    });
    let places = serve::Places::new(app.config.connections_max);
    let plain = serve::accept(listener, None, Arc::clone(&app), places.clone());
    let accepting = match tls {
        None => tokio::spawn(plain),
        Some(((listener, _), certificates)) => {
            let encrypted = serve::accept(listener, Some(certificates), app, places);
            tokio::spawn(async { _ = tokio::join!(plain, encrypted) })
        }
    };
    Ok(Gateway { address, tls_address, draining, accepting, _follower: follower })
}

async fn bind(
    address: SocketAddr,
    variable: &'static str,
) -> Result<(tokio::net::TcpListener, SocketAddr), StartError> {
    let refuse = |error| StartError::Listen { address, variable, error };
    let listener = tokio::net::TcpListener::bind(address).await.map_err(refuse)?;
    let bound = listener.local_addr().map_err(refuse)?;
    Ok((listener, bound))
}

impl Gateway {
    /// Where it listens, with the port that was chosen if 0 was asked for.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where it listens for HTTPS, if it does.
    pub const fn tls_address(&self) -> Option<SocketAddr> {
        self.tls_address
    }

    /// Stops accepting, ends event streams, closes WebSockets with 1001, lets running requests finish, and gives
    /// up waiting at `deadline` from now.
    pub async fn drain(self, deadline: Duration) {
        self.draining.send_replace(true);
        let mut accepting = self.accepting;
        if tokio::time::timeout(deadline, &mut accepting).await.is_err() {
            tracing::warn!("HTTP connections were still open at the deadline and are cut");
            accepting.abort();
        }
    }
}
