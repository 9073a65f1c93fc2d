//! Every way MQTT is carried: TLS, WebSocket, Unix socket, and behind a proxy that says whom it carries.

mod certificates;
mod hasty;
mod proxy;
mod tls;
mod unix;
mod web;

use std::net::SocketAddr;

use tidegate_broker::mqtt::encode::{self, PublishHead};
use tidegate_broker::mqtt::{Connect, Decoded, Packet, ReasonCode, Subscription, Version, decode};
use tidegate_broker::record::{Properties, Qos};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::support::tidegate::{Settings, Tidegate};
use crate::support::{PATIENCE, free_address, http, within};

use certificates::Authority;

/// Room for payloads of one MiB.
const PACKET_BYTES_MAX: &str = "2MiB";

/// An appliance that listens in every way.
struct Everywhere {
    tidegate: Tidegate,
    authority: Authority,
    tls: SocketAddr,
    ws: SocketAddr,
    wss: SocketAddr,
    https: SocketAddr,
}

impl Everywhere {
    async fn start(settings: Settings) -> Self {
        let mut everywhere = Self::prepare(settings);
        everywhere.tidegate.spawn();
        everywhere.tidegate.ready().await;
        everywhere
    }

    fn prepare(settings: Settings) -> Self {
        let [tls, ws, wss, https] = std::array::from_fn(|_| free_address());
        let settings = settings
            .set("TIDEGATE_MQTT_TLS_LISTEN", &tls.to_string())
            .set("TIDEGATE_MQTT_WS_LISTEN", &ws.to_string())
            .set("TIDEGATE_MQTT_WSS_LISTEN", &wss.to_string())
            .set("TIDEGATE_HTTP_TLS_LISTEN", &https.to_string())
            .set("TIDEGATE_HTTP_TLS_CERT_FILE", "server.pem")
            .set("TIDEGATE_HTTP_TLS_KEY_FILE", "server.key")
            .set("TIDEGATE_MQTT_UNIX_LISTEN", "mqtt.sock")
            .set("TIDEGATE_MQTT_TLS_CERT_FILE", "server.pem")
            .set("TIDEGATE_MQTT_TLS_KEY_FILE", "server.key")
            .set("TIDEGATE_MQTT_TLS_CLIENT_CA_FILE", "authority.pem")
            .set("TIDEGATE_MQTT_MAX_PACKET_BYTES", PACKET_BYTES_MAX);
        let tidegate = Tidegate::prepare(settings);
        let authority = Authority::new("authority");
        authority.write(tidegate.folder());
        authority.server().write(tidegate.folder(), "server");
        Self { tidegate, authority, tls, ws, wss, https }
    }

    /// A file in its folder, as an argument of a command.
    fn file(&self, name: &str) -> String {
        self.tidegate.folder().join(name).display().to_string()
    }

    /// A sample of `/metrics`.
    async fn metric(&self, sample: &str) -> u64 {
        let reply = http::get(self.tidegate.http, "/metrics").await;
        let text = reply.text();
        let line = text.lines().find_map(|line| line.strip_prefix(sample));
        line.unwrap_or_else(|| panic!("no {sample} in {text}")).trim().parse().unwrap()
    }

    /// Fails unless a client that does nothing wrong is served.
    async fn assert_serves(&self) {
        let mut client = Client::plain(self.tidegate.mqtt).await;
        client.send(&connect("bystander", Version::V5)).await;
        client.expect_connack(ReasonCode::Success).await;
    }
}

/// Packets out and in over any stream.
struct Client<S> {
    stream: S,
    received: Vec<u8>,
}

impl Client<TcpStream> {
    async fn plain(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.expect("somebody listens");
        stream.set_nodelay(true).unwrap();
        Self { stream, received: Vec::new() }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Client<S> {
    async fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.expect("the connection is open");
        self.stream.flush().await.expect("the connection is open");
    }

    /// The next packet, seen by `look`, which says whether it is the one that is awaited.
    async fn until(&mut self, version: Version, mut look: impl FnMut(&Packet<'_>) -> bool) {
        within("the broker sends the packet", PATIENCE, async {
            loop {
                while let Decoded::Packet { packet, bytes } =
                    decode(&self.received, version, 1 << 28).expect("the broker sends packets")
                {
                    let found = look(&packet);
                    self.received.drain(..bytes);
                    if found {
                        return;
                    }
                }
                let bytes = self.stream.read_buf(&mut self.received).await.expect("the connection is open");
                assert_ne!(bytes, 0, "the broker has closed");
            }
        })
        .await;
    }

    async fn expect_connack(&mut self, expected: ReasonCode) {
        self.until(Version::V5, |packet| {
            let Packet::ConnAck(connack) = packet else { panic!("{packet:?}") };
            assert_eq!(connack.reason, expected);
            true
        })
        .await;
    }

    /// Waits until the broker has closed, whatever it says before.
    async fn expect_end(&mut self) {
        within("the broker closes", PATIENCE, async {
            // A reset is an end too: the broker need not read what it does not want.
            while matches!(self.stream.read_buf(&mut self.received).await, Ok(bytes) if bytes > 0) {}
        })
        .await;
    }
}

fn connect(client: &str, version: Version) -> Vec<u8> {
    let mut out = Vec::new();
    encode::connect(&mut out, &Connect { clean_start: true, ..Connect::new(version, client) });
    out
}

fn subscribe(filter: &str, version: Version) -> Vec<u8> {
    let mut out = Vec::new();
    encode::subscribe(&mut out, version, 1, None, [Subscription::new(filter, Qos::AtLeastOnce)]);
    out
}

fn publish(topic: &str, payload: &[u8], packet_id: u16, version: Version) -> Vec<u8> {
    let head = PublishHead {
        dup: false,
        qos: Qos::AtLeastOnce,
        retain: false,
        packet_id,
        topic,
        properties: Properties::NONE,
        message_expiry: None,
        subscription_ids: &[],
        topic_alias: None,
        payload_bytes: payload.len(),
    };
    let mut out = Vec::new();
    encode::publish(&mut out, version, &head, payload);
    out
}

/// `bytes` bytes that repeat nowhere near.
fn payload(bytes: usize) -> Vec<u8> {
    (0..bytes as u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}
