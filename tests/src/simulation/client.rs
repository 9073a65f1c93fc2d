//! A device as the specification describes it: it sends again what was not acknowledged, and takes QoS 2 once. It
//! remembers what it was told, and complains at once when it is told something else.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use tidegate_broker::mqtt::{
    self, Connect, Decoded, Disconnect, Packet, ReasonCode, Subscription, Version, Will, encode,
};
use tidegate_broker::record::{Offset, Properties, Qos};
use tidegate_broker::slots::Key;
use tidegate_broker::topic::TopicName;

use super::ledger::Id;

/// What a client subscribes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Filter {
    All,
    /// Of one device.
    Sensors,
    /// Shared by a group.
    Jobs,
}

impl Filter {
    const fn text(self) -> &'static str {
        match self {
            Self::All => "#",
            Self::Sensors => "sensors/a/+",
            Self::Jobs => "$share/team/jobs/#",
        }
    }

    pub(super) fn matches(self, topic: &str) -> bool {
        match self {
            Self::All => true,
            Self::Sensors => topic.starts_with("sensors/a/"),
            Self::Jobs => topic.starts_with("jobs/"),
        }
    }
}

/// What kind of client it is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kind {
    pub(super) name: &'static str,
    pub(super) version: Version,
    pub(super) filter: Option<(Filter, Qos)>,
    /// Whether it subscribes and unsubscribes as it likes.
    pub(super) toggles: bool,
    pub(super) expiry_s: u32,
    /// The delay of its Will in seconds, if it has one.
    pub(super) will_delay_s: Option<u32>,
}

/// Never within a simulation.
pub(super) const LONG_S: u32 = 500_000;

impl Kind {
    pub(super) const fn new(name: &'static str, version: Version) -> Self {
        Self { name, version, filter: None, toggles: false, expiry_s: LONG_S, will_delay_s: None }
    }
}

/// A publish on its way to the broker.
#[derive(Clone, Copy, Debug)]
struct Outgoing {
    packet_id: u16,
    number: u32,
    qos: Qos,
    retain: bool,
    is_empty: bool,
    /// PUBREC has come.
    received: bool,
}

/// What a subscriber was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Delivery {
    pub(super) id: Id,
    pub(super) qos: Qos,
    /// From the retained store.
    pub(super) retain: bool,
    /// A publish of a device that did not come before.
    pub(super) is_first: bool,
}

/// What became of the Will of one connection.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Fate {
    pub(super) delay_s: u32,
    /// CONNACK has come.
    pub(super) armed: bool,
    /// DISCONNECT was sent.
    pub(super) orderly: bool,
    /// When the connection was lost, in which life of the broker.
    pub(super) lost_at: Option<(u64, u64)>,
    pub(super) must: bool,
    pub(super) must_not: bool,
}

#[derive(Debug)]
pub(super) struct Client {
    pub(super) kind: Kind,
    index: u8,
    pub(super) connection: Option<Key>,
    connected: bool,
    /// Whether the broker has confirmed that it keeps the session.
    pub(super) kept: bool,
    /// When all of its CONNECT had been sent.
    pub(super) connect_sent_at: Option<u64>,
    /// What the last CONNACK said.
    pub(super) present: Option<bool>,
    /// Wants to be subscribed.
    pub(super) wants: bool,
    pub(super) subscribed: bool,
    asked: bool,
    /// The end of the journal when it learnt that it is subscribed, or is not any more.
    pub(super) subscribed_from: Option<Offset>,
    pub(super) unsubscribed_from: Option<Offset>,
    next_packet_id: u16,
    pub(super) next_number: u32,
    outgoing: VecDeque<Outgoing>,
    incoming: BTreeSet<u16>,
    input: Vec<u8>,
    pub(super) output: Vec<u8>,
    /// Numbers acknowledged (PUBACK, or PUBREC: from there on the broker answers for it).
    pub(super) acknowledged: BTreeSet<u32>,
    /// Numbers that the broker has refused.
    pub(super) refused: u64,
    /// Numbers sent anew after the session was lost: QoS 2 cannot help there.
    pub(super) may_repeat: BTreeSet<u32>,
    /// How often the broker ended the session while it may have had deliveries in flight.
    pub(super) sessions_lost: u64,
    pub(super) deliveries: Vec<Delivery>,
    seen: BTreeSet<Id>,
    /// How far each device has come in the journal, at each QoS.
    pub(super) last: BTreeMap<(u8, Qos), Offset>,
    pub(super) wills: Vec<Fate>,
    /// PUBLISH packets that came over the present connection to the broker's present life.
    pub(super) publishes_in: u64,
}

impl Client {
    pub(super) fn new(index: usize, kind: Kind) -> Self {
        Self {
            kind,
            index: u8::try_from(index).expect("a few clients"),
            connection: None,
            connected: false,
            kept: false,
            connect_sent_at: None,
            present: None,
            wants: kind.filter.is_some(),
            subscribed: false,
            asked: false,
            subscribed_from: None,
            unsubscribed_from: None,
            next_packet_id: 1,
            next_number: 0,
            outgoing: VecDeque::new(),
            incoming: BTreeSet::new(),
            input: Vec::new(),
            output: Vec::new(),
            acknowledged: BTreeSet::new(),
            refused: 0,
            may_repeat: BTreeSet::new(),
            sessions_lost: 0,
            deliveries: Vec::new(),
            seen: BTreeSet::new(),
            last: BTreeMap::new(),
            wills: Vec::new(),
            publishes_in: 0,
        }
    }

    pub(super) fn open(&mut self, connection: Key, clean_start: bool) {
        self.connection = Some(connection);
        self.present = None;
        self.connect_sent_at = None;
        let topic = format!("status/{}", self.kind.name);
        let number = self.wills.len() as u32;
        let payload = Id { client: self.index, will: true, number }.payload(0);
        let will = self.kind.will_delay_s.map(|delay_s| {
            self.wills.push(Fate { delay_s, ..Fate::default() });
            Will {
                topic: TopicName::new(&topic).expect("it is a name"),
                payload: &payload,
                qos: Qos::AtLeastOnce,
                retain: false,
                delay_s,
                properties: mqtt::WireProperties::NONE,
            }
        });
        let connect = Connect {
            clean_start,
            session_expiry_s: if self.kind.version.is_v5() { self.kind.expiry_s } else { 0 },
            will,
            ..Connect::new(self.kind.version, self.kind.name)
        };
        encode::connect(&mut self.output, &connect);
        if clean_start {
            self.kept = false;
        }
    }

    /// The network went away, with everything that was on its way in either direction.
    pub(super) fn lose_connection(&mut self) -> Option<Key> {
        self.connected = false;
        self.asked = false;
        self.input.clear();
        self.output.clear();
        self.connection.take()
    }

    /// Says DISCONNECT.
    pub(super) fn disconnect(&mut self) {
        encode::disconnect(&mut self.output, self.kind.version, &Disconnect::new(ReasonCode::Success));
        self.connected = false;
        if let Some(fate) = self.wills.last_mut() {
            fate.orderly = true;
        }
    }

    pub(super) const fn is_connected(&self) -> bool {
        self.connected
    }

    pub(super) fn is_idle(&self) -> bool {
        self.connected && self.outgoing.is_empty() && self.output.is_empty() && self.subscribed == self.wants
    }

    /// Publishes the next number, if few enough are unacknowledged.
    pub(super) fn publish(&mut self, qos: Qos, retain: bool, clears: bool) {
        if !self.connected || self.outgoing.len() >= 20 {
            return;
        }
        let number = self.next_number;
        self.next_number += 1;
        let packet_id = if qos == Qos::AtMostOnce { 0 } else { self.take_packet_id() };
        let is_empty = clears && self.kind.version.is_v5();
        let outgoing =
            Outgoing { packet_id, number, qos, retain: retain || is_empty, is_empty, received: false };
        self.write_publish(&outgoing, false);
        if qos > Qos::AtMostOnce {
            self.outgoing.push_back(outgoing);
        }
    }

    fn take_packet_id(&mut self) -> u16 {
        loop {
            let packet_id = self.next_packet_id;
            // A small space, so that identifiers are used again and again.
            self.next_packet_id = self.next_packet_id % 22 + 1;
            if self.outgoing.iter().all(|outgoing| outgoing.packet_id != packet_id) {
                return packet_id;
            }
        }
    }

    /// A few topics per device, one of them with a multi-byte beginning.
    pub(super) fn topic(&self, number: u32) -> String {
        let name = self.kind.name;
        match number % 4 {
            0 => format!("sensors/{name}/temperature"),
            1 => format!("étage/{name}"),
            2 => format!("jobs/{name}"),
            _ => format!("state/{name}"),
        }
    }

    fn write_publish(&mut self, outgoing: &Outgoing, dup: bool) {
        let id = Id { client: self.index, will: false, number: outgoing.number };
        let padding = if outgoing.number % 16 == 5 { 250 } else { (outgoing.number * 7 % 60) as usize };
        let (mut payload, mut properties) = (Vec::new(), Vec::new());
        if outgoing.is_empty {
            encode::user_property(&mut properties, "id", &id.text());
        } else {
            payload = id.payload(padding);
        }
        let head = encode::PublishHead {
            dup,
            qos: outgoing.qos,
            retain: outgoing.retain,
            packet_id: outgoing.packet_id,
            topic: &self.topic(outgoing.number),
            properties: Properties::from_encoded(&properties),
            message_expiry: None,
            subscription_ids: &[],
            topic_alias: None,
            payload_bytes: payload.len(),
        };
        encode::publish(&mut self.output, self.kind.version, &head, &payload);
    }

    /// Subscribes or unsubscribes, as it wants.
    pub(super) fn ask(&mut self) {
        let Some((filter, qos)) = self.kind.filter else {
            return;
        };
        if !self.connected || self.asked || self.subscribed == self.wants {
            return;
        }
        self.asked = true;
        if self.wants {
            let subscription = [Subscription::new(filter.text(), qos)];
            encode::subscribe(&mut self.output, self.kind.version, 60_000, None, subscription);
            self.unsubscribed_from = None;
        } else {
            encode::unsubscribe(&mut self.output, self.kind.version, 60_001, [filter.text()]);
        }
    }

    /// Bytes from the broker.
    pub(super) fn receive(&mut self, bytes: &[u8]) {
        let mut input = std::mem::take(&mut self.input);
        input.extend_from_slice(bytes);
        let mut at = 0;
        while at < input.len() {
            let decoded = mqtt::decode(&input[at..], self.kind.version, usize::MAX);
            match decoded.expect("the broker sends valid packets") {
                Decoded::Incomplete { .. } => break,
                Decoded::Packet { packet, bytes } => {
                    self.handle(&packet);
                    at += bytes;
                }
            }
        }
        input.drain(..at);
        self.input = input;
    }

    fn handle(&mut self, packet: &Packet<'_>) {
        match packet {
            Packet::ConnAck(ack) => self.handle_connack(ack.reason, ack.session_present),
            // One that is refused, because the journal is full or has failed, is asked for again.
            Packet::SubAck(ack) => {
                self.asked = false;
                self.subscribed = ack.codes.iter().all(|code| code.as_u8() < 0x80);
            }
            Packet::UnsubAck(ack) => {
                self.asked = false;
                self.subscribed = ack.codes.iter().any(|code| code.as_u8() >= 0x80);
            }
            Packet::PubAck(ack) => self.finish(ack.packet_id, ack.reason, Qos::AtLeastOnce),
            Packet::PubRec(ack) => self.handle_pubrec(ack.packet_id, ack.reason),
            Packet::PubComp(ack) => self.finish(ack.packet_id, ReasonCode::Success, Qos::ExactlyOnce),
            Packet::PubRel(ack) => {
                self.incoming.remove(&ack.packet_id);
                encode::pubcomp(&mut self.output, self.kind.version, ack.packet_id, ReasonCode::Success);
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
        self.connected = true;
        self.present = Some(present);
        if let Some(fate) = self.wills.last_mut() {
            fate.armed = true;
        }
        if !present {
            self.sessions_lost += u64::from(!self.incoming.is_empty());
            self.incoming.clear();
            self.subscribed = false;
        }
        self.ask();
        for outgoing in self.outgoing.clone() {
            if outgoing.received && present {
                encode::pubrel(&mut self.output, self.kind.version, outgoing.packet_id, ReasonCode::Success);
            } else {
                if !present {
                    self.may_repeat.insert(outgoing.number);
                }
                self.write_publish(&outgoing, present);
            }
        }
    }

    fn handle_pubrec(&mut self, packet_id: u16, reason: ReasonCode) {
        let found = self.outgoing.iter().position(|outgoing| outgoing.packet_id == packet_id);
        if reason.as_u8() >= 0x80 {
            self.refused += u64::from(found.is_some());
            self.outgoing.retain(|outgoing| outgoing.packet_id != packet_id);
            return;
        }
        if let Some(at) = found {
            self.outgoing[at].received = true;
            self.acknowledged.insert(self.outgoing[at].number);
        }
        encode::pubrel(&mut self.output, self.kind.version, packet_id, ReasonCode::Success);
    }

    fn finish(&mut self, packet_id: u16, reason: ReasonCode, qos: Qos) {
        let found =
            self.outgoing.iter().position(|outgoing| outgoing.packet_id == packet_id && outgoing.qos == qos);
        let Some(outgoing) = found.and_then(|at| self.outgoing.remove(at)) else {
            return;
        };
        if reason.as_u8() < 0x80 {
            self.acknowledged.insert(outgoing.number);
        } else {
            self.refused += 1;
        }
    }

    fn handle_publish(&mut self, publish: &mqtt::Publish<'_>) {
        self.publishes_in += 1;
        let mut scratch = Vec::new();
        // In MQTT 3 an empty one is like any other.
        let id = Id::of(publish.payload, publish.travelling(&mut scratch));
        let delivery =
            id.map(|id| Delivery { id, qos: publish.qos, retain: publish.retain, is_first: false });
        let (filter, _) = self.kind.filter.expect("only subscribers are sent anything");
        assert!(filter.matches(publish.topic), "{} did not ask for {}", self.kind.name, publish.topic);
        match publish.qos {
            Qos::AtMostOnce => self.take(delivery),
            Qos::AtLeastOnce => {
                self.take(delivery);
                encode::puback(&mut self.output, self.kind.version, publish.packet_id, ReasonCode::Success);
            }
            Qos::ExactlyOnce => {
                if self.incoming.insert(publish.packet_id) {
                    self.take(delivery);
                }
                encode::pubrec(&mut self.output, self.kind.version, publish.packet_id, ReasonCode::Success);
            }
        }
    }

    fn take(&mut self, delivery: Option<Delivery>) {
        let Some(delivery) = delivery else { return };
        let Delivery { id, qos, retain, .. } = delivery;
        let is_first = !retain && !id.will && self.seen.insert(id);
        assert!(
            is_first || retain || id.will || qos == Qos::AtLeastOnce,
            "{} got {id:?} twice",
            self.kind.name
        );
        self.deliveries.push(Delivery { is_first, ..delivery });
    }
}
