//! A client that does as the specification says, and knows what it may be sent.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use tidegate_broker::mqtt::encode::{self, PublishHead};
use tidegate_broker::mqtt::{Decoded, PACKET_BYTES_MAX, Packet, Publish, ReasonCode, Version, decode};
use tidegate_broker::record::{Properties, Qos};
use tidegate_broker::slots::Key;

/// The most bytes of one delivery.
const DELIVERY_BYTES_MAX: usize = 64;

/// The most bytes of one answer.
const ANSWER_BYTES_MAX: usize = 64;

/// An answer that the client owes.
#[derive(Clone, Copy)]
enum Owed {
    Ack(u16),
    Rec(u16),
    Rel(u16),
    Comp(u16),
}

pub(super) struct Client {
    pub(super) id: &'static str,
    pub(super) version: Version,
    pub(super) key: Option<Key>,
    pub(super) output: Vec<u8>,
    pub(super) receive_maximum: u16,
    /// It has sent what no client sends, so nothing is known about it until it connects anew.
    pub(super) wild: bool,
    greeted: bool,
    owed: VecDeque<Owed>,
    /// Publishes received on this connection and not yet answered in full.
    in_flight: BTreeSet<u16>,
    /// QoS 2 publishes received whose PUBREL has not come, by identifier; kept with the session.
    received: BTreeMap<u16, Vec<u8>>,
    /// Its own publishes that are not acknowledged; kept with the session.
    sent: BTreeMap<u16, Vec<u8>>,
    next_packet_id: u16,
    asked: usize,
}

impl Client {
    pub(super) const fn new(id: &'static str, version: Version) -> Self {
        Self {
            id,
            version,
            key: None,
            output: Vec::new(),
            receive_maximum: 1,
            wild: false,
            greeted: false,
            owed: VecDeque::new(),
            in_flight: BTreeSet::new(),
            received: BTreeMap::new(),
            sent: BTreeMap::new(),
            next_packet_id: 0,
            asked: 0,
        }
    }

    /// A new connection begins.
    pub(super) fn open(&mut self, key: Key, receive_maximum: u16) {
        if self.wild {
            self.received.clear();
            self.sent.clear();
        }
        let _ = self.lose();
        self.key = Some(key);
        self.wild = false;
        self.receive_maximum = receive_maximum;
    }

    /// The connection is gone.
    pub(super) fn lose(&mut self) -> Option<Key> {
        self.greeted = false;
        self.output.clear();
        self.owed.clear();
        self.in_flight.clear();
        self.asked = 0;
        self.key.take()
    }

    /// Publishes, unless too much of that is unacknowledged.
    pub(super) fn publish(&mut self, topic: &str, payload: Vec<u8>, qos: Qos, retain: bool, most: usize) {
        if self.key.is_none() || (qos > Qos::AtMostOnce && self.sent.len() >= most) {
            return;
        }
        let mut packet_id = 0;
        if qos > Qos::AtMostOnce {
            self.next_packet_id = self.next_packet_id % 200 + 1;
            packet_id = self.next_packet_id;
            if self.sent.contains_key(&packet_id) {
                return;
            }
            self.sent.insert(packet_id, payload.clone());
        }
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
        encode::publish(&mut self.output, self.version, &head, &payload);
    }

    /// Puts the oldest answer it owes into `output`, perhaps twice; says whether there was one.
    pub(super) fn answer_one(&mut self, twice: bool) -> bool {
        let Some(owed) = self.owed.pop_front() else { return false };
        for _ in 0..=usize::from(twice) {
            self.asked += 1;
            let (out, version) = (&mut self.output, self.version);
            match owed {
                Owed::Ack(packet_id) => encode::puback(out, version, packet_id, ReasonCode::Success),
                Owed::Rec(packet_id) => encode::pubrec(out, version, packet_id, ReasonCode::Success),
                Owed::Rel(packet_id) => encode::pubrel(out, version, packet_id, ReasonCode::Success),
                Owed::Comp(packet_id) => encode::pubcomp(out, version, packet_id, ReasonCode::Success),
            }
        }
        if let Owed::Ack(packet_id) | Owed::Comp(packet_id) = owed {
            self.in_flight.remove(&packet_id);
        }
        true
    }

    /// `bytes` came from the broker, which are whole packets.
    pub(super) fn receive(&mut self, mut bytes: &[u8], durable: &BTreeSet<Vec<u8>>) {
        self.asked = 0;
        while !bytes.is_empty() {
            let (packet, taken) = match decode(bytes, self.version, PACKET_BYTES_MAX) {
                Ok(Decoded::Packet { packet, bytes }) => (packet, bytes),
                // A client whose CONNECT was wild may be answered in another version.
                _ if self.wild => return,
                other => panic!("{}: the broker sends {bytes:02x?}: {other:?}", self.id),
            };
            bytes = &bytes[taken..];
            if !self.wild {
                self.take(&packet, durable);
            }
        }
    }

    fn take(&mut self, packet: &Packet<'_>, durable: &BTreeSet<Vec<u8>>) {
        if let Packet::ConnAck(ack) = packet {
            assert!(!self.greeted, "{}: a second CONNACK", self.id);
            self.greeted = true;
            if !ack.session_present && ack.reason == ReasonCode::Success {
                self.received.clear();
                self.sent.clear();
            }
            return;
        }
        assert!(self.greeted, "{}: {packet:?} comes before CONNACK [MQTT-3.2.0-1]", self.id);
        match packet {
            Packet::Publish(publish) => self.take_publish(publish, durable),
            Packet::PubRel(ack) => {
                self.received.remove(&ack.packet_id);
                self.owed.push_back(Owed::Comp(ack.packet_id));
            }
            Packet::PubAck(ack) => {
                let payload = self.sent.remove(&ack.packet_id);
                self.check_durable(ack.reason, payload.as_ref(), durable);
            }
            Packet::PubRec(ack) => {
                let payload = self.sent.get(&ack.packet_id).cloned();
                self.check_durable(ack.reason, payload.as_ref(), durable);
                if ack.reason.is_failure() {
                    self.sent.remove(&ack.packet_id);
                } else {
                    self.owed.push_back(Owed::Rel(ack.packet_id));
                }
            }
            Packet::PubComp(ack) => {
                self.sent.remove(&ack.packet_id);
            }
            Packet::SubAck(_) | Packet::UnsubAck(_) | Packet::PingResp | Packet::Disconnect(_) => {}
            other => panic!("a broker does not send {other:?}"),
        }
    }

    fn take_publish(&mut self, publish: &Publish<'_>, durable: &BTreeSet<Vec<u8>>) {
        if publish.qos == Qos::AtMostOnce {
            assert!(!publish.dup, "[MQTT-3.3.1-2]");
            return;
        }
        let (id, packet_id) = (self.id, publish.packet_id);
        assert!(durable.contains(publish.payload), "{id}: delivered before it is durable: {publish:?}");
        assert!(self.in_flight.insert(packet_id), "{id}: {packet_id} is in flight already: {publish:?}");
        assert!(
            self.in_flight.len() <= usize::from(self.receive_maximum),
            "{id}: more than {} in flight [MQTT-3.3.4-9]",
            self.receive_maximum
        );
        if publish.qos == Qos::AtLeastOnce {
            self.owed.push_back(Owed::Ack(packet_id));
            return;
        }
        let earlier = self.received.insert(packet_id, publish.payload.to_vec());
        assert!(
            earlier.is_none_or(|earlier| earlier == publish.payload),
            "{id}: {packet_id} was another publish, so this one is lost: {publish:?}"
        );
        self.owed.push_back(Owed::Rec(packet_id));
    }

    fn check_durable(&self, reason: ReasonCode, payload: Option<&Vec<u8>>, durable: &BTreeSet<Vec<u8>>) {
        if let Some(payload) = payload.filter(|_| !reason.is_failure()) {
            assert!(durable.contains(payload), "{}: acknowledged before it is durable", self.id);
        }
    }

    /// Asserts that `waiting` bytes are what a client that does not read may cost.
    pub(super) fn most_waiting(&mut self, waiting: usize, limit: usize) {
        if self.wild {
            return;
        }
        let answers = (self.asked + self.sent.len() + 64) * ANSWER_BYTES_MAX;
        assert!(waiting <= limit + DELIVERY_BYTES_MAX + answers, "{}: {waiting} bytes wait", self.id);
    }
}
