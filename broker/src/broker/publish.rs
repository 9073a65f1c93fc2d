//! Publishes coming in, from clients, from Wills and from other parts of the appliance.

use std::sync::Arc;

use super::{Broker, Delivery, Limit, RefusalReason, Release, TOPIC_ALIASES_MAX, Taken};
use crate::broker::Now;
use crate::mqtt::{Ack, Publish, ReasonCode, Version};
use crate::plant::{self, Bug};
use crate::record::{Append, Appended, Entry, Offset, Qos, Record, Refused};
use crate::retained::Retained;
use crate::session::control::Control;
use crate::slots::Key;
use crate::topic::{TOPIC_LEVELS_MAX, TopicName};

impl Broker {
    pub(super) fn handle_publish(
        &mut self,
        key: Key,
        publish: &Publish<'_>,
        now: Now,
        log: &mut dyn Append,
    ) -> Taken {
        if let Some(taken) = self.slow_down(key, publish, now, log) {
            return taken;
        }
        let alias = match self.resolve_alias(key, publish) {
            Ok(alias) => alias,
            Err(reason) => {
                self.stats.protocol_errors_total += 1;
                self.disconnect(key, reason, now, log);
                return Taken::Taken;
            }
        };
        let Some(connection) = self.connections.get(key) else { return Taken::Taken };
        let Some(session_key) = connection.session else { return Taken::Taken };
        let version = connection.version;
        let over = version.is_v5() && connection.unacknowledged >= self.limits.receive_maximum;
        if publish.qos > Qos::AtMostOnce && over {
            self.stats.protocol_errors_total += 1;
            self.reached(Limit::ReceiveMaximum);
            self.disconnect(key, ReasonCode::ReceiveMaximumExceeded, now, log);
            return Taken::Taken;
        }
        if self.is_too_deep(publish.topic) {
            self.reached(Limit::TopicLevels);
            self.refused_publish(RefusalReason::TopicLevels);
            self.disconnect(key, ReasonCode::TopicNameInvalid, now, log);
            return Taken::Taken;
        }
        let Some(session) = self.sessions.get(session_key) else { return Taken::Taken };
        if publish.qos == Qos::ExactlyOnce && session.unreleased.contains(&publish.packet_id) {
            // It is here already, though perhaps not on disk yet [MQTT-4.3.3-10].
            self.gate(log.end(), key, Release::PubRec(publish.packet_id, ReasonCode::Success));
            return Taken::Taken;
        }
        if !publish.properties.describe(publish.payload) {
            return self.refuse_payload(key, publish, now, log);
        }
        let client = Arc::clone(&session.client);
        let topic = TopicName::trusted(alias.as_deref().unwrap_or(publish.topic));
        if !self.may_publish(key, topic, now) {
            return self.deny_publish(key, publish, log);
        }
        let mut scratch = Vec::new();
        let record = Record {
            time: now.wall,
            client: &client,
            topic,
            properties: publish.travelling(&mut scratch),
            payload: publish.payload,
            qos: publish.qos,
            retain: publish.retain,
            packet_id: publish.packet_id,
        };
        if version.is_v5()
            && publish.qos > Qos::AtMostOnce
            && let Some(limit) = self.retained_limit(&record)
        {
            self.reached(limit);
            self.refused_publish(RefusalReason::Quota);
            self.answer_publish(key, publish, log.end(), ReasonCode::QuotaExceeded);
            return Taken::Taken;
        }
        let outcome = self.publish(session_key, &record, now, log);
        self.acknowledge(key, publish, outcome, now, log)
    }

    fn acknowledge(
        &mut self,
        key: Key,
        publish: &Publish<'_>,
        outcome: Result<Appended, Refused>,
        now: Now,
        log: &mut dyn Append,
    ) -> Taken {
        let Some(connection) = self.connections.get(key) else { return Taken::Taken };
        let (gate, reason) = match outcome {
            Ok(place) => (place.offset.plus(1), ReasonCode::Success),
            Err(refused) => {
                let can_tell = connection.version.is_v5() && publish.qos > Qos::AtMostOnce;
                match refused {
                    Refused::Full if plant::is(Bug::FullAcknowledged) => (log.end(), ReasonCode::Success),
                    Refused::Full if can_tell => (log.end(), ReasonCode::QuotaExceeded),
                    Refused::Full => {
                        self.hold_for_room(key);
                        return Taken::NotNow;
                    }
                    // The journal's end will never be durable, so there is nothing to wait for.
                    Refused::Failed if can_tell => (Offset(0), ReasonCode::ImplementationSpecificError),
                    Refused::Failed => {
                        self.refused_publish(refused.into());
                        self.disconnect(key, ReasonCode::ImplementationSpecificError, now, log);
                        return Taken::Taken;
                    }
                }
            }
        };
        if let Err(refused) = outcome {
            self.refused_publish(refused.into());
        }
        self.answer_publish(key, publish, gate, reason);
        Taken::Taken
    }

    /// Answers a publish at QoS 1 or 2 when every entry before `gate` is durable. A refusal waits as well: the
    /// answers keep the order of the publishes.
    fn answer_publish(&mut self, key: Key, publish: &Publish<'_>, gate: Offset, reason: ReasonCode) {
        let release = match publish.qos {
            Qos::AtMostOnce => return,
            Qos::AtLeastOnce => Release::PubAck(publish.packet_id, reason),
            Qos::ExactlyOnce => Release::PubRec(publish.packet_id, reason),
        };
        let Some(connection) = self.connections.get_mut(key) else { return };
        connection.unacknowledged += 1;
        if publish.qos == Qos::ExactlyOnce && reason == ReasonCode::Success {
            let session = connection.session.and_then(|session| self.sessions.get_mut(session));
            if let Some(session) = session {
                session.unreleased.insert(publish.packet_id);
            }
        }
        self.gate(gate, key, release);
    }

    /// A publish was not accepted.
    pub(super) fn refused_publish(&mut self, reason: RefusalReason) {
        self.stats.publishes_refused.add(reason, 1);
    }

    /// Whether a topic has more levels than it may have.
    pub(super) fn is_too_deep(&self, topic: &str) -> bool {
        let levels_max = self.limits.topic_levels;
        // Only a long one can have so many, and the decoder has looked at the most there can ever be.
        levels_max < TOPIC_LEVELS_MAX
            && topic.len() >= levels_max
            && topic.bytes().filter(|&byte| byte == b'/').count() >= levels_max
    }

    /// The limit that keeps `record` from being retained, if it is to be.
    fn retained_limit(&self, record: &Record<'_>) -> Option<Limit> {
        if !record.retain || record.payload.is_empty() {
            return None;
        }
        let more = Retained::bytes_of(record);
        let is_over = |records, bytes| {
            if records > self.limits.retained {
                Some(Limit::Retained)
            } else if bytes > self.limits.retained_bytes {
                Some(Limit::RetainedBytes)
            } else {
                None
            }
        };
        let (records, bytes) = (self.retained.len(), self.retained.bytes());
        // Looking for an earlier one is needed only where there is little room.
        is_over(records + 1, bytes + more)?;
        match self.retained.of_topic(record.topic) {
            Some(earlier) => is_over(records, bytes + more - Retained::bytes_of(&earlier.record())),
            None => is_over(records + 1, bytes + more),
        }
    }

    /// The rules do not let it in. MQTT 3 knows no refusal: it is acknowledged and dropped [MQTT-3.3.5-2].
    fn deny_publish(&mut self, key: Key, publish: &Publish<'_>, log: &mut dyn Append) -> Taken {
        let Some(connection) = self.connections.get_mut(key) else { return Taken::Taken };
        let reason = match connection.version {
            Version::V31 | Version::V311 => ReasonCode::Success,
            Version::V5 => ReasonCode::NotAuthorized,
        };
        let release = match publish.qos {
            Qos::AtMostOnce => return Taken::Taken,
            Qos::AtLeastOnce => Release::PubAck(publish.packet_id, reason),
            Qos::ExactlyOnce => Release::PubRec(publish.packet_id, reason),
        };
        connection.unacknowledged += 1;
        self.gate(log.end(), key, release);
        Taken::Taken
    }

    fn resolve_alias(&mut self, key: Key, publish: &Publish<'_>) -> Result<Option<Arc<str>>, ReasonCode> {
        let Some(alias) = publish.topic_alias else { return Ok(None) };
        let Some(connection) = self.connections.get_mut(key) else { return Ok(None) };
        if alias > TOPIC_ALIASES_MAX {
            return Err(ReasonCode::TopicAliasInvalid);
        }
        let index = usize::from(alias) - 1;
        if publish.topic.is_empty() {
            let known = connection.aliases.get(index).cloned().flatten();
            return known.map(Some).ok_or(ReasonCode::ProtocolError);
        }
        if connection.aliases.len() <= index {
            connection.aliases.resize(index + 1, None);
        }
        connection.aliases[index] = Some(publish.topic.into());
        Ok(None)
    }

    /// Takes a record in: into the journal, the retained store, and on its way to whoever subscribed.
    pub(super) fn publish(
        &mut self,
        publisher: Key,
        record: &Record<'_>,
        now: Now,
        log: &mut dyn Append,
    ) -> Result<Appended, Refused> {
        let mut record = *record;
        if let Some(limit) = self.retained_limit(&record) {
            // The journal must say the same as the store, so that a restart does.
            record.retain = false;
            self.reached(limit);
        }
        let record = &record;
        let place = log.append(&Entry::Record(*record))?;
        self.stats.publishes_in_total += 1;
        self.stats.publish_bytes_in_total += record.payload.len() as u64;
        if record.retain {
            self.retained.set(record);
        }
        let matches = self.matches(record.topic);
        let shared = (!self.shared_router.is_empty())
            .then(|| self.shared_router.matches(record.topic, |_| true))
            .filter(|groups| !groups.is_empty());
        let arrived = matches.is_empty()
            || (record.qos == Qos::AtMostOnce
                && self.deliver_on_arrival(Some(publisher), record, place, &matches, now));
        if !arrived {
            self.deliveries.push_back(Delivery { place, matches, shared });
        } else if shared.is_some() {
            self.deliveries.push_back(Delivery { place, matches: self.router.nobody(), shared });
        }
        Ok(place)
    }

    /// Publishes for another part of the appliance. [`Broker::poll_local`] says by `token` when it is durable.
    pub fn publish_local(&mut self, token: u64, record: &Record<'_>, now: Now, log: &mut dyn Append) {
        match self.append_local(record, now, log) {
            Ok(offset) => self.await_local(token, offset),
            Err(refused) => self.local_done.push_back((token, Err(refused))),
        }
    }

    /// Publishes for another part of the appliance, which asks for the last of several with
    /// [`Broker::await_local`] when all of them are durable.
    pub fn append_local(
        &mut self,
        record: &Record<'_>,
        now: Now,
        log: &mut dyn Append,
    ) -> Result<Offset, Refused> {
        // No session has the key of a connection that was never opened, so No Local excludes nobody.
        let outcome = self.publish(Key::NONE, record, now, log);
        outcome.map(|place| place.offset).inspect_err(|&refused| self.refused_publish(refused.into()))
    }

    /// Has [`Broker::poll_local`] say by `token` when everything up to and with `offset` is durable.
    pub fn await_local(&mut self, token: u64, offset: Offset) {
        self.gate(offset.plus(1), Key::NONE, Release::Local(token, offset));
    }

    /// The payload is not the text it is declared to be.
    fn refuse_payload(&mut self, key: Key, publish: &Publish<'_>, now: Now, log: &mut dyn Append) -> Taken {
        const REASON: ReasonCode = ReasonCode::PayloadFormatInvalid;
        self.refused_publish(RefusalReason::PayloadFormat);
        let release = match publish.qos {
            Qos::AtMostOnce => {
                self.disconnect(key, REASON, now, log);
                return Taken::Taken;
            }
            Qos::AtLeastOnce => Release::PubAck(publish.packet_id, REASON),
            Qos::ExactlyOnce => Release::PubRec(publish.packet_id, REASON),
        };
        if let Some(connection) = self.connections.get_mut(key) {
            connection.unacknowledged += 1;
        }
        self.gate(log.end(), key, release);
        Taken::Taken
    }

    pub(super) fn handle_pubrel(&mut self, key: Key, ack: &Ack<'_>, now: Now, log: &mut dyn Append) {
        let Some(session_key) = self.connections.get(key).and_then(|connection| connection.session) else {
            return;
        };
        let Some(session) = self.sessions.get_mut(session_key) else { return };
        let known = session.unreleased.remove(&ack.packet_id);
        if known && session.is_kept() {
            let released = Control::Released { session: session.number, packet_id: ack.packet_id }.encode();
            if log.append_freeing(&Entry::Control(&released)).is_err() {
                // Without the entry the identifier would count as used after a crash; the client must ask again.
                session.unreleased.insert(ack.packet_id);
                self.disconnect(key, ReasonCode::ImplementationSpecificError, now, log);
                return;
            }
        }
        let reason = if known { ReasonCode::Success } else { ReasonCode::PacketIdentifierNotFound };
        self.gate(log.end(), key, Release::PubComp(ack.packet_id, reason));
    }
}
