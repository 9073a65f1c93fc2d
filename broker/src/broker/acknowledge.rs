//! What subscribers answer: PUBACK, PUBREC, PUBCOMP, and what becomes of the delivery.

use super::ledger::End;
use super::{Broker, DropReason, Release};
use crate::broker::Now;
use crate::mqtt::{Ack, ReasonCode, Version, encode};
use crate::record::{Append, Entry, Offset, Qos};
use crate::session::control::Control;
use crate::session::window::{Source, Stage};
use crate::slots::Key;

impl Broker {
    pub(super) fn handle_puback(&mut self, key: Key, ack: &Ack<'_>, now: Now, log: &mut dyn Append) {
        let Some((session_key, _)) = self.delivery(key, ack.packet_id, Qos::AtLeastOnce, now, log) else {
            return;
        };
        self.finish(session_key, ack.packet_id, End::of(ack.reason));
        self.progressed(key);
    }

    pub(super) fn handle_pubrec(&mut self, key: Key, ack: &Ack<'_>, now: Now, log: &mut dyn Append) {
        let Some((session_key, version)) = self.delivery(key, ack.packet_id, Qos::ExactlyOnce, now, log)
        else {
            self.answer_unknown_pubrec(key, ack.packet_id, log);
            return;
        };
        let Some(session) = self.sessions.get_mut(session_key) else { return };
        let (kept, number) = (session.is_kept(), session.number);
        if version.is_v5() && ack.reason.as_u8() >= 0x80 {
            // The client will not take it: the delivery is over [MQTT-4.3.3-4].
            self.complete(key, ack.packet_id, End::of(ack.reason), log);
            return;
        }
        let Some(delivery) = session.window.find(ack.packet_id) else { return };
        match delivery.stage {
            Stage::Received | Stage::Announced | Stage::Done => {}
            Stage::Released => self.send_pubrel(key, ack.packet_id),
            Stage::Sent if kept => {
                delivery.stage = Stage::Received;
                let received = Control::Received { session: number, packet_id: ack.packet_id }.encode();
                if log.append_freeing(&Entry::Control(&received)).is_err() {
                    // The client sends PUBREC again when it reconnects.
                    delivery.stage = Stage::Sent;
                    self.disconnect(key, ReasonCode::ImplementationSpecificError, now, log);
                    return;
                }
                self.gate(log.end(), key, Release::PubRel(ack.packet_id));
            }
            Stage::Sent => self.send_pubrel(key, ack.packet_id),
        }
    }

    fn answer_unknown_pubrec(&mut self, key: Key, packet_id: u16, log: &dyn Append) {
        let Some(connection) = self.connections.get(key) else { return };
        if connection.session.is_some() {
            let mut packet = Vec::new();
            encode::pubrel(&mut packet, connection.version, packet_id, ReasonCode::PacketIdentifierNotFound);
            // Not before the CONNACK, should that still wait [MQTT-3.2.0-1].
            let gate = if connection.greeted { Offset(0) } else { log.end() };
            self.gate(gate, key, Release::Packet(packet.into()));
        }
    }

    pub(super) fn handle_pubcomp(&mut self, key: Key, ack: &Ack<'_>, now: Now, log: &mut dyn Append) {
        let Some((session_key, _)) = self.delivery(key, ack.packet_id, Qos::ExactlyOnce, now, log) else {
            return;
        };
        let session = self.sessions.get_mut(session_key);
        let stage =
            session.and_then(|session| session.window.find(ack.packet_id)).map(|delivery| delivery.stage);
        match stage {
            Some(Stage::Released) => self.complete(key, ack.packet_id, End::Acknowledged, log),
            Some(Stage::Announced | Stage::Sent | Stage::Received) => {
                // It answers a PUBREL that was not sent.
                self.stats.protocol_errors_total += 1;
                self.disconnect(key, ReasonCode::ProtocolError, now, log);
            }
            Some(Stage::Done) | None => {}
        }
    }

    fn complete(&mut self, key: Key, packet_id: u16, end: End, log: &mut dyn Append) {
        let Some(session_key) = self.connections.get(key).and_then(|connection| connection.session) else {
            return;
        };
        let Some(session) = self.sessions.get_mut(session_key) else { return };
        let (number, kept) = (session.number, session.is_kept());
        let journaled = session
            .window
            .find(packet_id)
            .is_some_and(|delivery| !matches!(delivery.source, Source::Retained(_)));
        self.finish(session_key, packet_id, end);
        if kept && journaled {
            // Lost with a crash, it costs a PUBREL that the client answers again.
            let completed = Control::Completed { session: number, packet_id }.encode();
            let _ = log.append_freeing(&Entry::Control(&completed));
        }
        self.progressed(key);
    }

    /// Ends a delivery.
    pub(super) fn finish(&mut self, session_key: Key, packet_id: u16, end: End) {
        match self.close_delivery(session_key, packet_id) {
            Some(Source::Journal(_) | Source::Shared(_)) => {
                if end == End::Dropped(DropReason::Refused) {
                    self.dropped(DropReason::Refused, 1);
                }
                self.book_end(end);
            }
            Some(Source::Retained(_)) | None => {}
        }
    }

    /// Ends a delivery without booking it; returns where its content was.
    pub(super) fn close_delivery(&mut self, session_key: Key, packet_id: u16) -> Option<Source> {
        let source = self.sessions.get_mut(session_key)?.window.finish(packet_id)?;
        if let Source::Shared(offset) = source {
            self.settle(session_key, offset, packet_id);
        }
        Some(source)
    }

    /// The session of a connection, if `packet_id` is in flight there at `qos`. An acknowledgement of the wrong
    /// kind is a protocol error; one of something unknown is left alone.
    fn delivery(
        &mut self,
        key: Key,
        packet_id: u16,
        qos: Qos,
        now: Now,
        log: &mut dyn Append,
    ) -> Option<(Key, Version)> {
        let connection = self.connections.get(key)?;
        let (session_key, version) = (connection.session?, connection.version);
        let found = self.sessions.get_mut(session_key)?.window.find(packet_id)?.qos;
        if found != qos {
            self.stats.protocol_errors_total += 1;
            self.disconnect(key, ReasonCode::ProtocolError, now, log);
            return None;
        }
        Some((session_key, version))
    }

    fn progressed(&mut self, key: Key) {
        let Some(session_key) = self.connections.get(key).and_then(|connection| connection.session) else {
            return;
        };
        if let Some(session) = self.sessions.get_mut(session_key) {
            if !session.progressed {
                session.progressed = true;
                self.progressing.push(session_key);
            }
            self.want_read_if_room(session_key);
        }
    }
}
