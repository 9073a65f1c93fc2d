//! What waits until the journal is durable up to some offset: acknowledgements and other answers, in order.

use super::{Broker, Stage};
use crate::mqtt::{ReasonCode, encode};
use crate::plant::{self, Bug};
use crate::record::Offset;
use crate::slots::Key;

/// Something that leaves when every entry before `gate` is durable.
#[derive(Debug)]
pub(super) struct Gated {
    gate: Offset,
    pub(super) connection: Key,
    pub(super) release: Release,
}

#[derive(Debug)]
pub(super) enum Release {
    PubAck(u16, ReasonCode),
    PubRec(u16, ReasonCode),
    PubComp(u16, ReasonCode),
    /// To a subscriber: the journal knows that it has the publish.
    PubRel(u16),
    /// To a subscriber: the journal knows the Packet Identifier of this QoS 2 delivery.
    Announced(u16),
    /// An encoded packet.
    Packet(Box<[u8]>),
    /// A local publish, by its token.
    Local(u64, Offset),
}

impl Release {
    /// Memory besides its own.
    const fn bytes(&self) -> usize {
        match self {
            Self::Packet(bytes) => bytes.len(),
            Self::PubAck(..)
            | Self::PubRec(..)
            | Self::PubComp(..)
            | Self::PubRel(_)
            | Self::Announced(_)
            | Self::Local(..) => 0,
        }
    }
}

impl Broker {
    /// Queues `release` until every entry before `gate` is durable. When nothing else waits and it is durable
    /// already, it leaves at once.
    pub(super) fn gate(&mut self, gate: Offset, connection: Key, release: Release) {
        let at_once = (gate <= self.durable_end && self.gated.is_empty()) || plant::is(Bug::AckBeforeDurable);
        if at_once {
            self.let_go(connection, release);
        } else {
            self.gated_bytes += release.bytes();
            self.gated.push_back(Gated { gate, connection, release });
        }
    }

    /// Memory of the answers that wait until what they depend on is durable. The caller reads nothing while it is
    /// too much.
    pub fn gated_bytes(&self) -> usize {
        self.gated.len() * size_of::<Gated>() + self.gated_bytes
    }

    pub(super) fn release(&mut self) {
        while let Some(gated) = self.gated.front() {
            if gated.gate > self.durable_end {
                return;
            }
            let Some(Gated { connection, release, .. }) = self.gated.pop_front() else { return };
            self.gated_bytes -= release.bytes();
            self.let_go(connection, release);
        }
    }

    fn let_go(&mut self, key: Key, release: Release) {
        if let Release::Local(token, offset) = release {
            self.local_done.push_back((token, Ok(offset)));
            return;
        }
        let Some(connection) = self.connections.get_mut(key) else { return };
        if connection.stage == Stage::Closing {
            return;
        }
        let version = connection.version;
        match release {
            Release::Announced(packet_id) => {
                self.send_announced(key, packet_id);
                return;
            }
            Release::PubRel(packet_id) => {
                self.send_pubrel(key, packet_id);
                return;
            }
            Release::PubAck(..) | Release::PubRec(..) | Release::PubComp(..) => {}
            // Retained records of a subscription wait for the same gate as its SUBACK.
            Release::Packet(_) | Release::Local(..) => {
                // The first packet of a connection is its CONNACK.
                connection.greeted = true;
                if let Some(session) = connection.session {
                    self.want_read(session);
                }
            }
        }
        let Some(connection) = self.connections.get_mut(key) else { return };
        if finishes_publish(&release) {
            connection.unacknowledged = connection.unacknowledged.saturating_sub(1);
        }
        self.stats.packets_out_total += 1;
        let out = self.outbox(key);
        match release {
            Release::PubAck(packet_id, reason) => encode::puback(out, version, packet_id, reason),
            Release::PubRec(packet_id, reason) => encode::pubrec(out, version, packet_id, reason),
            Release::PubComp(packet_id, reason) => encode::pubcomp(out, version, packet_id, reason),
            Release::Packet(bytes) => out.extend_from_slice(&bytes),
            Release::PubRel(_) | Release::Announced(_) | Release::Local(..) => {}
        }
    }
}

const fn finishes_publish(release: &Release) -> bool {
    match release {
        Release::PubAck(..) | Release::PubComp(..) => true,
        Release::PubRec(_, reason) => reason.as_u8() >= 0x80,
        Release::PubRel(_) | Release::Announced(_) | Release::Packet(_) | Release::Local(..) => false,
    }
}
