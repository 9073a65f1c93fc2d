//! A device as the specification describes it: it sends again what was not acknowledged, and takes QoS 2 once.

use std::collections::{BTreeSet, VecDeque};

use tidegate_broker::mqtt::{self, Connect, Decoded, Packet, ReasonCode, Subscription, Version, encode};
use tidegate_broker::record::{Offset, Properties, Qos};
use tidegate_broker::slots::Key;

/// A publish on its way to the broker.
#[derive(Clone, Debug)]
struct Outgoing {
    packet_id: u16,
    number: u64,
    qos: Qos,
    /// PUBREC has come.
    received: bool,
}

/// What a subscriber was sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Delivery {
    pub(super) payload: String,
    pub(super) qos: Qos,
    pub(super) retain: bool,
}

#[derive(Debug)]
pub(super) struct Client {
    pub(super) id: String,
    version: Version,
    /// Subscribes at this QoS to this filter, once.
    subscription: Option<(&'static str, Qos)>,
    pub(super) connection: Option<Key>,
    connected: bool,
    /// Whether the broker has confirmed that it keeps the session.
    kept: bool,
    pub(super) subscribed: bool,
    /// The end of the journal when it learnt that it is subscribed.
    pub(super) subscribed_from: Option<Offset>,
    next_packet_id: u16,
    next_number: u64,
    outgoing: VecDeque<Outgoing>,
    incoming: BTreeSet<u16>,
    input: Vec<u8>,
    pub(super) output: Vec<u8>,
    /// Numbers acknowledged (PUBACK, or PUBREC: from there on the broker answers for it).
    pub(super) acknowledged: BTreeSet<u64>,
    /// Of these, those published at QoS 2.
    pub(super) exactly_once: BTreeSet<u64>,
    pub(super) deliveries: Vec<Delivery>,
}

impl Client {
    pub(super) fn new(id: &str, version: Version, subscription: Option<(&'static str, Qos)>) -> Self {
        Self {
            id: id.to_owned(),
            version,
            subscription,
            connection: None,
            connected: false,
            kept: false,
            subscribed: false,
            subscribed_from: None,
            next_packet_id: 1,
            next_number: 0,
            outgoing: VecDeque::new(),
            incoming: BTreeSet::new(),
            input: Vec::new(),
            output: Vec::new(),
            acknowledged: BTreeSet::new(),
            exactly_once: BTreeSet::new(),
            deliveries: Vec::new(),
        }
    }

    pub(super) fn open(&mut self, connection: Key) {
        self.connection = Some(connection);
        let connect = Connect {
            clean_start: false,
            session_expiry_s: if self.version.is_v5() { 100_000 } else { 0 },
            ..Connect::new(self.version, &self.id)
        };
        encode::connect(&mut self.output, &connect);
    }

    /// The network went away, with everything that was on its way in either direction.
    pub(super) fn lose_connection(&mut self) -> Option<Key> {
        self.connected = false;
        self.input.clear();
        self.output.clear();
        self.connection.take()
    }

    pub(super) const fn is_connected(&self) -> bool {
        self.connected
    }

    pub(super) fn is_idle(&self) -> bool {
        self.connected
            && self.outgoing.is_empty()
            && self.output.is_empty()
            && (self.subscribed || self.subscription.is_none())
    }

    /// Publishes the next number, if few enough are unacknowledged.
    pub(super) fn publish(&mut self, qos: Qos, retain: bool) {
        if !self.connected || self.outgoing.len() >= 20 {
            return;
        }
        let number = self.next_number;
        self.next_number += 1;
        let packet_id = if qos == Qos::AtMostOnce { 0 } else { self.take_packet_id() };
        let outgoing = Outgoing { packet_id, number, qos, received: false };
        self.write_publish(&outgoing, retain, false);
        if qos > Qos::AtMostOnce {
            self.outgoing.push_back(outgoing);
        }
    }

    fn take_packet_id(&mut self) -> u16 {
        loop {
            let packet_id = self.next_packet_id;
            // A small space, so that identifiers are used again and again.
            self.next_packet_id = self.next_packet_id % 50 + 1;
            if self.outgoing.iter().all(|outgoing| outgoing.packet_id != packet_id) {
                return packet_id;
            }
        }
    }

    fn write_publish(&mut self, outgoing: &Outgoing, retain: bool, dup: bool) {
        let payload = format!("{}:{}", self.id, outgoing.number);
        // A few topics per device, one of them with a multi-byte beginning.
        let topic = match outgoing.number % 3 {
            0 => format!("sensors/{}/temperature", self.id),
            1 => format!("étage/{}", self.id),
            _ => "shared".to_owned(),
        };
        let head = encode::PublishHead {
            dup,
            qos: outgoing.qos,
            retain,
            packet_id: outgoing.packet_id,
            topic: &topic,
            properties: Properties::NONE,
            message_expiry: None,
            subscription_ids: &[],
            topic_alias: None,
            payload_bytes: payload.len(),
        };
        encode::publish(&mut self.output, self.version, &head, payload.as_bytes());
    }

    /// Bytes from the broker.
    pub(super) fn receive(&mut self, bytes: &[u8]) {
        self.input.extend_from_slice(bytes);
        let input = std::mem::take(&mut self.input);
        let mut rest = &input[..];
        while !rest.is_empty() {
            match mqtt::decode(rest, self.version, usize::MAX).expect("the broker sends valid packets") {
                Decoded::Incomplete { .. } => break,
                Decoded::Packet { packet, bytes } => {
                    self.handle(&packet);
                    rest = &rest[bytes..];
                }
            }
        }
        self.input = rest.to_vec();
    }

    fn handle(&mut self, packet: &Packet<'_>) {
        match packet {
            Packet::ConnAck(ack) => self.handle_connack(ack.reason, ack.session_present),
            // One that is refused, because the journal has failed, is asked for again at the next connection.
            Packet::SubAck(ack) => self.subscribed = ack.codes.iter().all(|code| code.as_u8() < 0x80),
            Packet::PubAck(ack) => self.finish(ack.packet_id, ack.reason, Qos::AtLeastOnce),
            Packet::PubRec(ack) => self.handle_pubrec(ack.packet_id, ack.reason),
            Packet::PubComp(ack) => self.finish(ack.packet_id, ReasonCode::Success, Qos::ExactlyOnce),
            Packet::PubRel(ack) => {
                self.incoming.remove(&ack.packet_id);
                encode::pubcomp(&mut self.output, self.version, ack.packet_id, ReasonCode::Success);
            }
            Packet::Publish(publish) => self.handle_publish(publish),
            Packet::Disconnect(_) => self.connected = false,
            other => panic!("a broker does not send {other:?}"),
        }
    }

    fn handle_connack(&mut self, reason: ReasonCode, present: bool) {
        if reason != ReasonCode::Success {
            return;
        }
        assert!(present || !self.kept, "{}: the broker forgot a session it had confirmed", self.id);
        self.connected = true;
        self.kept = true;
        if !present {
            self.incoming.clear();
            self.subscribed = false;
        }
        if let Some((filter, qos)) = self.subscription.filter(|_| !self.subscribed) {
            let subscription = [Subscription::new(filter, qos)];
            encode::subscribe(&mut self.output, self.version, 60_000, None, subscription);
        }
        for outgoing in self.outgoing.clone() {
            if outgoing.received && present {
                encode::pubrel(&mut self.output, self.version, outgoing.packet_id, ReasonCode::Success);
            } else {
                self.write_publish(&outgoing, false, present);
            }
        }
    }

    fn handle_pubrec(&mut self, packet_id: u16, reason: ReasonCode) {
        if reason.as_u8() >= 0x80 {
            self.outgoing.retain(|outgoing| outgoing.packet_id != packet_id);
            return;
        }
        if let Some(outgoing) = self.outgoing.iter_mut().find(|outgoing| outgoing.packet_id == packet_id) {
            outgoing.received = true;
            self.acknowledged.insert(outgoing.number);
            self.exactly_once.insert(outgoing.number);
        }
        encode::pubrel(&mut self.output, self.version, packet_id, ReasonCode::Success);
    }

    fn finish(&mut self, packet_id: u16, reason: ReasonCode, qos: Qos) {
        let found =
            self.outgoing.iter().position(|outgoing| outgoing.packet_id == packet_id && outgoing.qos == qos);
        let Some(outgoing) = found.and_then(|at| self.outgoing.remove(at)) else { return };
        if reason.as_u8() < 0x80 {
            self.acknowledged.insert(outgoing.number);
        }
    }

    fn handle_publish(&mut self, publish: &mqtt::Publish<'_>) {
        let delivery = Delivery {
            payload: String::from_utf8(publish.payload.to_vec()).expect("devices publish text"),
            qos: publish.qos,
            retain: publish.retain,
        };
        match publish.qos {
            Qos::AtMostOnce => self.deliveries.push(delivery),
            Qos::AtLeastOnce => {
                self.deliveries.push(delivery);
                encode::puback(&mut self.output, self.version, publish.packet_id, ReasonCode::Success);
            }
            Qos::ExactlyOnce => {
                if self.incoming.insert(publish.packet_id) {
                    self.deliveries.push(delivery);
                }
                encode::pubrec(&mut self.output, self.version, publish.packet_id, ReasonCode::Success);
            }
        }
    }
}
