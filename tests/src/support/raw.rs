//! An MQTT connection of our own that blocks: for hostile clients, and for answers that are refusals.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};

use tidegate_broker::mqtt::encode::{self, PublishHead};
use tidegate_broker::mqtt::{Connect, Decoded, Subscription, Version, decode};
use tidegate_broker::record::{Properties, Qos};

use super::PATIENCE;
use super::mqtt::{Received, owned};

const PACKET_BYTES_MAX: usize = 1 << 28;

/// A connection that sends what it is told.
#[derive(Debug)]
pub(crate) struct Raw {
    pub(crate) stream: TcpStream,
    version: Version,
    received: Vec<u8>,
}

impl Raw {
    /// Opens a connection and sends nothing.
    pub(crate) fn open(address: SocketAddr, version: Version) -> Self {
        let stream = TcpStream::connect(address).expect("the broker accepts connections");
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { stream, version, received: Vec::new() }
    }

    /// Says CONNECT; returns the answer.
    pub(crate) fn knock(address: SocketAddr, connect: &Connect<'_>) -> (Self, Option<Received>) {
        let mut raw = Self::open(address, connect.version);
        raw.send(|out| encode::connect(out, connect));
        let answer = raw.next();
        (raw, answer)
    }

    /// Connects; the answer must be a success.
    pub(crate) fn connect(address: SocketAddr, connect: &Connect<'_>) -> Self {
        let (raw, answer) = Self::knock(address, connect);
        match answer {
            Some(Received::ConnAck { reason, .. }) if !reason.is_failure() => raw,
            other => panic!("{} is answered {other:?}", connect.client_id),
        }
    }

    /// Sends packets. A connection that was closed meanwhile shows when something is to come from it.
    pub(crate) fn send(&mut self, encode: impl FnOnce(&mut Vec<u8>)) {
        let mut bytes = Vec::new();
        encode(&mut bytes);
        let _ = self.stream.write_all(&bytes);
    }

    /// Publishes.
    pub(crate) fn publish(&mut self, topic: &str, payload: &[u8], qos: Qos, packet_id: u16, retain: bool) {
        let version = self.version;
        self.send(|out| publish(out, version, topic, payload, qos, packet_id, retain));
    }

    /// Subscribes; the next packet is the answer.
    pub(crate) fn subscribe(&mut self, filters: &[&str], qos: Qos) -> Option<Received> {
        let version = self.version;
        let filters = filters.iter().map(|filter| Subscription::new(filter, qos));
        self.send(|out| encode::subscribe(out, version, 1, None, filters));
        self.next()
    }

    /// The next packet; `None` when the connection has ended.
    pub(crate) fn next(&mut self) -> Option<Received> {
        let mut buffer = [0; 16 << 10];
        loop {
            if let Decoded::Packet { packet, bytes } =
                decode(&self.received, self.version, PACKET_BYTES_MAX).expect("the broker sends packets")
            {
                let received = owned(&packet);
                self.received.drain(..bytes);
                return Some(received);
            }
            match self.stream.read(&mut buffer) {
                Ok(0) => return None,
                Ok(bytes) => self.received.extend_from_slice(&buffer[..bytes]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    panic!("nothing came within {PATIENCE:?}")
                }
                Err(_) => return None,
            }
        }
    }
}

/// Writes a PUBLISH without properties.
pub(crate) fn publish(
    out: &mut Vec<u8>,
    version: Version,
    topic: &str,
    payload: &[u8],
    qos: Qos,
    packet_id: u16,
    retain: bool,
) {
    let head = PublishHead {
        dup: false,
        qos,
        retain,
        packet_id,
        topic,
        properties: Properties::NONE,
        message_expiry: None,
        subscription_ids: &[],
        topic_alias: None,
        payload_bytes: payload.len(),
    };
    encode::publish(out, version, &head, payload);
}
