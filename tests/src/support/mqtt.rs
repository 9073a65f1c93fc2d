//! An MQTT connection of our own: packets out, packets in, nothing done by itself.
//!
//! It is built on the product's codec, so it proves nothing about the wire (stock clients do that); it is for tests that must
//! know exactly what was sent and what was acknowledged.

use std::net::SocketAddr;

use bytes::{Buf as _, Bytes, BytesMut};
use tidegate_broker::mqtt::encode::{self, PublishHead};
use tidegate_broker::mqtt::{Connect, Decoded, Packet, ReasonCode, Subscription, Version, decode};
use tidegate_broker::record::{Properties, Qos};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::{PATIENCE, within};

const PACKET_BYTES_MAX: usize = 1 << 28;

/// A packet from the broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Received {
    ConnAck { session_present: bool, reason: ReasonCode, receive_maximum: u16 },
    Publish { topic: String, payload: Bytes, qos: Qos, retain: bool, dup: bool, packet_id: u16 },
    PubAck { packet_id: u16, reason: ReasonCode },
    PubRec { packet_id: u16, reason: ReasonCode },
    PubRel { packet_id: u16 },
    PubComp { packet_id: u16 },
    SubAck { packet_id: u16, codes: Vec<ReasonCode> },
    UnsubAck { packet_id: u16 },
    PingResp,
    Disconnect { reason: ReasonCode },
}

/// How to connect.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) version: Version,
    pub(crate) client_id: String,
    /// Whether an old session is forgotten. If not, the session outlives the connection.
    pub(crate) clean_start: bool,
    pub(crate) receive_maximum: u16,
}

impl Options {
    /// A session that outlives its connections.
    pub(crate) fn persistent(version: Version, client_id: &str) -> Self {
        Self { version, client_id: client_id.to_owned(), clean_start: false, receive_maximum: u16::MAX }
    }

    /// A session that ends with its connection.
    pub(crate) fn clean(version: Version, client_id: &str) -> Self {
        Self { clean_start: true, ..Self::persistent(version, client_id) }
    }
}

/// A connection after its CONNECT.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) version: Version,
    /// Whether the broker knew the session.
    pub(crate) session_present: bool,
    /// Publishes of QoS 1 and 2 the broker takes before it has acknowledged the first.
    pub(crate) receive_maximum: u16,
    stream: TcpStream,
    received: BytesMut,
    out: Vec<u8>,
}

impl Connection {
    /// Connects.
    pub(crate) async fn open(address: SocketAddr, options: &Options) -> std::io::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let mut connection = Self {
            version: options.version,
            session_present: false,
            receive_maximum: u16::MAX,
            stream,
            received: BytesMut::new(),
            out: Vec::new(),
        };
        let connect = Connect {
            clean_start: options.clean_start,
            session_expiry_s: if options.clean_start { 0 } else { 3_600 },
            receive_maximum: options.receive_maximum,
            ..Connect::new(options.version, &options.client_id)
        };
        encode::connect(&mut connection.out, &connect);
        connection.flush().await?;
        match connection.receive().await? {
            Received::ConnAck { session_present, reason, receive_maximum } => {
                if reason.is_failure() {
                    let why = format!("{} is refused: {reason:?}", options.client_id);
                    return Err(std::io::Error::other(why));
                }
                connection.session_present = session_present;
                connection.receive_maximum = receive_maximum;
                Ok(connection)
            }
            other => panic!("the answer to CONNECT is {other:?}"),
        }
    }

    /// Puts a publish into what [`Self::flush`] sends. `packet_id` is left out at QoS 0.
    pub(crate) fn publish(&mut self, topic: &str, payload: &[u8], qos: Qos, packet_id: u16, flags: Flags) {
        let head = PublishHead {
            dup: flags.dup,
            qos,
            retain: flags.retain,
            packet_id,
            topic,
            properties: Properties::NONE,
            message_expiry: None,
            subscription_ids: &[],
            topic_alias: None,
            payload_bytes: payload.len(),
        };
        encode::publish(&mut self.out, self.version, &head, payload);
    }

    /// Puts a PUBACK into what [`Self::flush`] sends.
    pub(crate) fn puback(&mut self, packet_id: u16) {
        encode::puback(&mut self.out, self.version, packet_id, ReasonCode::Success);
    }

    /// Puts a PUBREC into what [`Self::flush`] sends.
    pub(crate) fn pubrec(&mut self, packet_id: u16) {
        encode::pubrec(&mut self.out, self.version, packet_id, ReasonCode::Success);
    }

    /// Puts a PUBREL into what [`Self::flush`] sends.
    pub(crate) fn pubrel(&mut self, packet_id: u16) {
        encode::pubrel(&mut self.out, self.version, packet_id, ReasonCode::Success);
    }

    /// Puts a PUBCOMP into what [`Self::flush`] sends.
    pub(crate) fn pubcomp(&mut self, packet_id: u16) {
        encode::pubcomp(&mut self.out, self.version, packet_id, ReasonCode::Success);
    }

    /// Sends what was put together.
    pub(crate) async fn flush(&mut self) -> std::io::Result<()> {
        self.stream.write_all(&self.out).await?;
        self.out.clear();
        Ok(())
    }

    /// Subscribes and waits for the confirmation. Retained records may come before it; they are returned.
    pub(crate) async fn subscribe(&mut self, filter: &str, qos: Qos) -> std::io::Result<Vec<Received>> {
        const PACKET_ID: u16 = 1;
        encode::subscribe(&mut self.out, self.version, PACKET_ID, None, [Subscription::new(filter, qos)]);
        self.flush().await?;
        let mut before = Vec::new();
        loop {
            match self.receive().await? {
                Received::SubAck { packet_id: PACKET_ID, codes } => {
                    assert!(!codes[0].is_failure(), "SUBSCRIBE {filter} is refused: {codes:?}");
                    return Ok(before);
                }
                other => before.push(other),
            }
        }
    }

    /// Says DISCONNECT and closes. A persistent session stays.
    pub(crate) async fn close(mut self) -> std::io::Result<()> {
        // A 5.0 session keeps the expiry it was opened with.
        let goodbye = tidegate_broker::mqtt::Disconnect::new(ReasonCode::Success);
        encode::disconnect(&mut self.out, self.version, &goodbye);
        self.flush().await?;
        self.stream.shutdown().await
    }

    /// The next packet. Nothing is lost if the future is dropped.
    pub(crate) async fn receive(&mut self) -> std::io::Result<Received> {
        within("the broker sends a packet", PATIENCE, async {
            loop {
                if let Some(received) = self.received_already() {
                    return Ok(received);
                }
                self.read_more().await?;
            }
        })
        .await
    }

    /// The next packet, if it has arrived whole.
    pub(crate) fn received_already(&mut self) -> Option<Received> {
        let decoded = decode(&self.received, self.version, PACKET_BYTES_MAX);
        let decoded = decoded.unwrap_or_else(|error| panic!("the broker sent what is no packet: {error}"));
        match decoded {
            Decoded::Incomplete { .. } => None,
            Decoded::Packet { packet, bytes } => {
                let received = owned(&packet);
                self.received.advance(bytes);
                Some(received)
            }
        }
    }

    /// Waits for more bytes. Nothing is lost if the future is dropped.
    pub(crate) async fn read_more(&mut self) -> std::io::Result<()> {
        self.received.reserve(1 << 16);
        match self.stream.read_buf(&mut self.received).await? {
            0 => Err(std::io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }
}

/// Flags of a publish.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Flags {
    pub(crate) dup: bool,
    pub(crate) retain: bool,
}

pub(crate) fn owned(packet: &Packet<'_>) -> Received {
    match packet {
        Packet::ConnAck(connack) => Received::ConnAck {
            session_present: connack.session_present,
            reason: connack.reason,
            receive_maximum: connack.receive_maximum,
        },
        Packet::Publish(publish) => Received::Publish {
            topic: publish.topic.to_owned(),
            payload: Bytes::copy_from_slice(publish.payload),
            qos: publish.qos,
            retain: publish.retain,
            dup: publish.dup,
            packet_id: publish.packet_id,
        },
        Packet::PubAck(ack) => Received::PubAck { packet_id: ack.packet_id, reason: ack.reason },
        Packet::PubRec(ack) => Received::PubRec { packet_id: ack.packet_id, reason: ack.reason },
        Packet::PubRel(ack) => Received::PubRel { packet_id: ack.packet_id },
        Packet::PubComp(ack) => Received::PubComp { packet_id: ack.packet_id },
        Packet::SubAck(suback) => {
            Received::SubAck { packet_id: suback.packet_id, codes: suback.codes.iter().collect() }
        }
        Packet::UnsubAck(unsuback) => Received::UnsubAck { packet_id: unsuback.packet_id },
        Packet::PingResp => Received::PingResp,
        Packet::Disconnect(disconnect) => Received::Disconnect { reason: disconnect.reason },
        Packet::Connect(_)
        | Packet::Subscribe(_)
        | Packet::Unsubscribe(_)
        | Packet::PingReq
        | Packet::Auth(_) => panic!("the broker sent {packet:?}"),
    }
}
