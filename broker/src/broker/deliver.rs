//! Records on their way to MQTT subscribers.
//!
//! Three ways lead to a session. A QoS 0 record reaches live sessions when it arrives. Every other record reaches
//! live sessions when it is durable. A session that is behind reads the journal: [`Broker::poll_read`] says from
//! where, [`Broker::read`] takes the batch.

use std::borrow::Cow;
use std::sync::Arc;

use super::aliases::Alias;
use super::ledger::{End, Fate};
use super::outbox::Outbox;
use super::{Broker, Connection, DropReason, Limit, ReadFor, Release, SHARED_BYTES_MIN};
use crate::broker::Now;
use crate::mqtt::encode::{self, PublishHead};
use crate::mqtt::{ReasonCode, Version};
use crate::record::{Append, Appended, Batch, Entry, Offset, Properties, Qos, Record, Timestamp};
use crate::router::Match;
use crate::session::control::Control;
use crate::session::window::{Source, Stage};
use crate::session::{Flow, RetainedDelivery, Session};
use crate::slots::Key;

/// Up to this many deliveries in flight, one that is acknowledged is at once followed by another.
const SMALL_WINDOW: usize = 8;

/// What became of a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Delivered {
    /// Sent, or rightly not sent.
    Done(Fate),
    /// The client has enough on its hands: the same record must come again.
    Behind,
}

/// A record and the memory it lies in, if that may be referred to.
#[derive(Clone, Copy)]
pub(super) struct Load<'a> {
    pub(super) record: &'a Record<'a>,
    pub(super) batch: Option<&'a Batch>,
    /// Where the content is found again, should it have to be sent once more.
    pub(super) offset: Offset,
    /// The group of a shared subscription for which it is delivered.
    pub(super) group: Option<Key>,
}

/// What a PUBLISH to one client says besides its record.
#[derive(Clone, Copy)]
struct Wrap<'a> {
    dup: bool,
    qos: Qos,
    retain: bool,
    packet_id: u16,
    identifiers: &'a [u32],
}

/// The last PUBLISH of a record that goes to many, so that it is encoded once per kind of receiver.
#[derive(Default)]
pub(super) struct Memo {
    kind: Option<(bool, Qos, bool)>,
    bytes: Vec<u8>,
    packet_id_at: usize,
}

impl Broker {
    /// Delivers a QoS 0 record to the sessions that are live; says whether that was all of them.
    pub(super) fn deliver_on_arrival(
        &mut self,
        publisher: Option<Key>,
        record: &Record<'_>,
        place: Appended,
        matches: &[Match],
        now: Now,
    ) -> bool {
        let mut everyone = true;
        let mut memo = Memo::default();
        let durable_end = self.durable_end;
        let load = Load { record, batch: None, offset: place.offset, group: None };
        for found in matches {
            let Some(session) = self.sessions.get_mut(found.session) else { continue };
            let own = found.no_local && publisher == Some(found.session);
            if own {
                continue;
            }
            if session.connection.is_none() {
                self.dropped(DropReason::Away, 1);
                self.book_new(Fate::Dropped(DropReason::Away));
                continue;
            }
            if session.flow == Flow::Live && durable_end >= session.live_since {
                // Everything that arrived while it was behind has been delivered.
                session.arrivals_missed_from = None;
            }
            if session.flow != Flow::Live || session.arrivals_missed_from.is_some() {
                everyone = false;
                continue;
            }
            let memo = (matches.len() > 1).then_some(&mut memo);
            match self.send_once(found, load, memo, now) {
                Delivered::Done(fate) => self.book_new(fate),
                Delivered::Behind => {
                    everyone = false;
                    if let Some(session) = self.sessions.get_mut(found.session) {
                        session.fall_behind(durable_end, place.offset);
                    }
                }
            }
        }
        everyone
    }

    /// Delivers what became durable with `batch` to the sessions that are live.
    pub(super) fn deliver_durable(&mut self, batch: &Batch, now: Now, log: &mut dyn Append) {
        while let Some(delivery) = self.deliveries.front() {
            if delivery.place.offset >= batch.end() {
                return;
            }
            let Some(delivery) = self.deliveries.pop_front() else { return };
            let Some((_, Entry::Record(record))) = batch.entries_at(delivery.place).next() else {
                debug_assert!(false, "deliveries name records");
                continue;
            };
            let load =
                Load { record: &record, batch: Some(batch), offset: delivery.place.offset, group: None };
            let mut memo = Memo::default();
            let many = delivery.matches.len() > 1;
            for found in &*delivery.matches {
                let Some(session) = self.sessions.get_mut(found.session) else { continue };
                if session.flow != Flow::Live {
                    // One that is behind will look for it there.
                    session.ahead.note(delivery.place.offset);
                    self.stats.book_backlog(session, found, &record, delivery.place.offset);
                    continue;
                }
                if !is_due(session, found, &record, delivery.place.offset) {
                    continue;
                }
                match self.deliver(found, load, many.then_some(&mut memo), now, log) {
                    Delivered::Done(fate) => self.book_new(fate),
                    Delivered::Behind => {
                        if let Some(session) = self.sessions.get_mut(found.session) {
                            session.fall_behind(delivery.place.offset, log.end());
                            session.ahead.note(delivery.place.offset);
                        }
                        self.let_wait(found.session);
                    }
                }
            }
            if let Some(groups) = &delivery.shared {
                self.deliver_to_groups(groups, load, now, log);
            }
        }
    }

    /// Publishes that were accepted do not reach a subscriber.
    pub(super) fn dropped(&mut self, reason: DropReason, count: u64) {
        self.stats.publishes_dropped.add(reason, count);
    }

    /// Puts a session on the list of those that want to read.
    pub(super) fn want_read(&mut self, key: Key) {
        if let Some(session) = self.sessions.get_mut(key) {
            let has_work =
                session.flow != Flow::Live || !session.resend.is_empty() || !session.retained.is_empty();
            if has_work && !session.wants_read && session.connection.is_some() {
                session.wants_read = true;
                self.reads.push_back(ReadFor::Session(key));
            }
            if !session.shared.is_empty() {
                self.want_groups(key);
            }
        }
    }

    /// How many sessions want to read now.
    pub fn reads_waiting(&self) -> usize {
        self.reads.len()
    }

    /// Who wants to read next, and from which offset. The caller reads the batch that holds it and calls
    /// [`Broker::read`], or [`Broker::read_failed`].
    pub fn poll_read(&mut self, now: Now, log: &mut dyn Append) -> Option<(ReadFor, Offset)> {
        while let Some(reader) = self.reads.pop_front() {
            let offset = match reader {
                ReadFor::Session(key) => self.next_read(key, now, log),
                ReadFor::Group(key) => self.next_group_read(key),
            };
            if let Some(offset) = offset {
                return Some((reader, offset));
            }
        }
        None
    }

    /// Sends what needs no reading, then says which offset the session must read.
    fn next_read(&mut self, key: Key, now: Now, log: &mut dyn Append) -> Option<Offset> {
        self.sessions.get_mut(key)?.wants_read = false;
        loop {
            let durable_end = self.durable_end;
            let session = self.sessions.get_mut(key)?;
            let connection = self.connections.get(session.connection?)?;
            if !connection.greeted || connection.outbox.len() > self.limits.outgoing_bytes {
                return None;
            }
            let has_room = session.window.has_room(connection.in_flight_max);
            let may_send_again = session.outstanding() < usize::from(connection.in_flight_max);
            if let Some(&packet_id) = session.resend.front() {
                match session.window.find(packet_id).map(|delivery| (delivery.stage, delivery.source.clone()))
                {
                    // It has come back with a smaller Receive Maximum [MQTT-3.3.4-9].
                    Some((Stage::Sent | Stage::Announced, _)) if !may_send_again => return None,
                    // What is not durable is read when it is.
                    Some((
                        Stage::Sent | Stage::Announced,
                        Source::Journal(offset) | Source::Shared(offset),
                    )) => {
                        return (offset < durable_end).then_some(offset);
                    }
                    Some((Stage::Sent | Stage::Announced, Source::Retained(retained))) => {
                        let load =
                            Load { record: &retained.record(), batch: None, offset: Offset(0), group: None };
                        self.send_again(key, packet_id, load, now);
                    }
                    Some((Stage::Released, _)) => {
                        if let Some(connection) = session.connection {
                            self.send_pubrel(connection, packet_id);
                        }
                    }
                    Some((Stage::Received | Stage::Done, _)) | None => {}
                }
                if let Some(session) = self.sessions.get_mut(key) {
                    session.resend.pop_front();
                }
                continue;
            }
            if let Some(front) = session.retained.front() {
                if front.gate > durable_end || (front.qos > Qos::AtMostOnce && !has_room) {
                    return None;
                }
                let delivery = front.clone();
                if self.send_retained(key, &delivery, now, log) == Delivered::Behind {
                    return None;
                }
                if let Some(session) = self.sessions.get_mut(key) {
                    session.retained.pop_front();
                }
                continue;
            }
            session.skip_ahead(durable_end);
            return match session.flow {
                Flow::Live => None,
                Flow::CatchingUp(next) if next >= durable_end => {
                    session.flow = Flow::Live;
                    session.live_since = log.end();
                    self.book_caught_up(key);
                    None
                }
                Flow::CatchingUp(_) if !has_room => None,
                Flow::CatchingUp(next) => Some(next),
            };
        }
    }

    /// A batch for a reader: it begins at the offset that [`Broker::poll_read`] named, or later if older records
    /// were trimmed.
    pub fn read(&mut self, reader: ReadFor, batch: &Batch, now: Now, log: &mut dyn Append) {
        let key = match reader {
            ReadFor::Session(key) => key,
            ReadFor::Group(key) => return self.read_group(key, batch, now, log),
        };
        let Some(session) = self.sessions.get(key) else { return };
        self.is_refused = false;
        if session.resend.is_empty() {
            self.catch_up(key, batch, now, log);
        } else {
            self.resend_from(key, batch, now);
        }
        if !self.is_refused {
            self.want_read_if_room(key);
        }
    }

    /// The journal could not be read; a client that waits for it must not believe that it has everything. A group
    /// stays behind and tries again.
    pub fn read_failed(&mut self, reader: ReadFor, now: Now, log: &mut dyn Append) {
        let ReadFor::Session(key) = reader else { return };
        if let Some(connection) = self.sessions.get(key).and_then(|session| session.connection) {
            self.disconnect(connection, ReasonCode::ImplementationSpecificError, now, log);
        }
    }

    pub(super) fn want_read_if_room(&mut self, key: Key) {
        let Some(session) = self.sessions.get(key) else { return };
        let Some(connection) = session.connection.and_then(|key| self.connections.get(key)) else { return };
        // Half a window is worth a read; a small one is filled as soon as there is room, because its client may hold
        // the rest back until it has more.
        let max = usize::from(connection.in_flight_max);
        let low = max.saturating_sub(1).min(SMALL_WINDOW).max(max / 2);
        if session.outstanding() <= low && connection.outbox.len() <= self.limits.outgoing_bytes {
            self.want_read(key);
        }
    }

    /// Sends deliveries in flight again whose records lie in `batch`, which was read for the first of them.
    fn resend_from(&mut self, key: Key, batch: &Batch, now: Now) {
        let mut entries = batch.entries();
        let mut first = true;
        loop {
            let Some(session) = self.sessions.get_mut(key) else { return };
            let Some(connection) = session.connection.and_then(|key| self.connections.get(key)) else {
                return;
            };
            if session.outstanding() >= usize::from(connection.in_flight_max) {
                return;
            }
            let Some(&packet_id) = session.resend.front() else { return };
            let waiting = match session.window.find(packet_id) {
                Some(delivery) if matches!(delivery.stage, Stage::Sent | Stage::Announced) => delivery,
                Some(_) | None => return,
            };
            let (Source::Journal(offset) | Source::Shared(offset)) = waiting.source else { return };
            // Only the first was asked for: one below the batch is not missing, it has yet to be read.
            if offset >= batch.end() || (offset < batch.base() && !first) {
                return;
            }
            first = false;
            session.resend.pop_front();
            if entries.place().offset > offset {
                entries = batch.entries();
            }
            match entries.find(|(place, _)| place.offset >= offset) {
                Some((place, Entry::Record(record))) if place.offset == offset => {
                    let load = Load { record: &record, batch: Some(batch), offset, group: None };
                    self.send_again(key, packet_id, load, now);
                }
                Some(_) | None => {
                    tracing::warn!(%offset, "a record was trimmed before it could be delivered again");
                    self.finish(key, packet_id, End::Dropped(DropReason::Trimmed));
                    self.dropped(DropReason::Trimmed, 1);
                }
            }
        }
    }

    /// Delivers a durable record to a connected session.
    pub(super) fn deliver(
        &mut self,
        found: &Match,
        load: Load<'_>,
        memo: Option<&mut Memo>,
        now: Now,
        log: &mut dyn Append,
    ) -> Delivered {
        let qos = found.qos.min(load.record.qos);
        if qos == Qos::AtMostOnce {
            return self.send_once(found, load, memo, now);
        }
        let limit = self.limits.outgoing_bytes;
        let Some(session) = self.sessions.get_mut(found.session) else { return Delivered::Behind };
        let Some(connection) = session.connection.and_then(|key| self.connections.get(key)) else {
            return Delivered::Behind;
        };
        if connection.outbox.len() > limit {
            self.reached(Limit::OutgoingBytes);
            return Delivered::Behind;
        }
        if !session.window.has_room(connection.in_flight_max) {
            self.reached(Limit::InFlight);
            return Delivered::Behind;
        }
        let retain = load.record.retain && found.retain_as_published;
        let wrap = Wrap { dup: false, qos, retain, packet_id: u16::MAX, identifiers: &found.identifiers };
        let Some(expiry) = expiry_left(load.record, now.wall) else {
            return self.leave_out(DropReason::Expired);
        };
        if !fits(connection, load.record, &wrap, expiry) {
            return self.leave_out(DropReason::TooLarge);
        }
        let source = match load.group {
            None => Source::Journal(load.offset),
            Some(_) => Source::Shared(load.offset),
        };
        if qos == Qos::ExactlyOnce && session.is_kept() {
            return self.announce(found.session, source, load.group, log);
        }
        let packet_id = session.window.begin(source, qos, Stage::Sent);
        let wrap = Wrap { packet_id, ..wrap };
        if let Some(key) = session.connection {
            self.write_publish(key, load, &wrap, expiry, memo);
        }
        if let Some(group) = load.group {
            self.note_in_flight(group, load.offset, found.session, packet_id);
        }
        Delivered::Done(Fate::Begun)
    }

    /// A record is not sent to a session, for a reason that lies in the two of them.
    fn leave_out(&mut self, reason: DropReason) -> Delivered {
        self.dropped(reason, 1);
        Delivered::Done(Fate::Dropped(reason))
    }

    /// Begins a QoS 2 delivery to a kept session: the journal learns its Packet Identifier first, so that after a
    /// crash the client does not take one publish for another.
    fn announce(&mut self, key: Key, source: Source, group: Option<Key>, log: &mut dyn Append) -> Delivered {
        let share = group.and_then(|group| self.share(group));
        let Some(session) = self.sessions.get_mut(key) else { return Delivered::Behind };
        let Some(connection) = session.connection else { return Delivered::Behind };
        let packet_id = session.window.begin(source.clone(), Qos::ExactlyOnce, Stage::Announced);
        let number = session.number;
        let control = match (&source, &share) {
            (Source::Shared(offset), Some(share)) => {
                let share = Cow::Borrowed(share.as_str());
                Control::AnnouncedShared { session: number, packet_id, offset: *offset, share }
            }
            (Source::Journal(offset) | Source::Shared(offset), _) => {
                Control::Announced { session: number, packet_id, offset: *offset }
            }
            (Source::Retained(retained), _) => {
                Control::AnnouncedRetained { session: number, packet_id, retained: Cow::Borrowed(retained) }
            }
        };
        if log.append_freeing(&Entry::Control(&control.encode())).is_err() {
            session.window.take_back();
            self.is_refused = true;
            return Delivered::Behind;
        }
        match (source, group) {
            (Source::Shared(offset), Some(group)) => {
                self.note_announced(group, offset);
                self.note_in_flight(group, offset, key, packet_id);
            }
            (Source::Journal(offset) | Source::Shared(offset), _) => _ = session.announced.insert(offset),
            (Source::Retained(_), _) => {}
        }
        self.gate(log.end(), connection, Release::Announced(packet_id));
        Delivered::Done(Fate::Begun)
    }

    /// The journal knows a delivery's Packet Identifier: it may be sent.
    pub(super) fn send_announced(&mut self, key: Key, packet_id: u16) {
        let Some(session_key) = self.connections.get(key).and_then(|connection| connection.session) else {
            return;
        };
        if let Some(session) = self.sessions.get_mut(session_key) {
            session.resend.push_back(packet_id);
            self.want_read(session_key);
        }
    }

    /// Sends a record at QoS 0.
    fn send_once(&mut self, found: &Match, load: Load<'_>, memo: Option<&mut Memo>, now: Now) -> Delivered {
        let Some(session) = self.sessions.get(found.session) else { return Delivered::Behind };
        let Some(key) = session.connection else { return Delivered::Behind };
        let Some(connection) = self.connections.get(key) else { return Delivered::Behind };
        if connection.outbox.len() > self.limits.outgoing_bytes {
            self.reached(Limit::OutgoingBytes);
            return Delivered::Behind;
        }
        let retain = load.record.retain && found.retain_as_published;
        let wrap =
            Wrap { dup: false, qos: Qos::AtMostOnce, retain, packet_id: 0, identifiers: &found.identifiers };
        let Some(expiry) = expiry_left(load.record, now.wall) else {
            return self.leave_out(DropReason::Expired);
        };
        if !fits(connection, load.record, &wrap, expiry) {
            return self.leave_out(DropReason::TooLarge);
        }
        self.write_publish(key, load, &wrap, expiry, memo);
        Delivered::Done(Fate::Sent)
    }

    /// Sends a delivery in flight with the Packet Identifier it has.
    fn send_again(&mut self, key: Key, packet_id: u16, load: Load<'_>, now: Now) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        let Some(connection) = session.connection else { return };
        let permitted = self
            .connections
            .get(connection)
            .is_some_and(|connection| connection.may_receive(&self.rules, load.record.topic));
        if !permitted {
            // It was begun under other rules, or for another user of the same Client Identifier.
            self.finish(key, packet_id, End::Dropped(DropReason::Denied));
            self.dropped(DropReason::Denied, 1);
            return;
        }
        let Some(delivery) = session.window.find(packet_id) else { return };
        let dup = delivery.stage == Stage::Sent;
        self.stats.publishes_again_total += u64::from(dup);
        delivery.stage = Stage::Sent;
        let qos = delivery.qos;
        let from_store = matches!(delivery.source, Source::Retained(_));
        let found = match delivery.source {
            Source::Shared(offset) => self.shared_match(key, offset, packet_id),
            Source::Journal(_) | Source::Retained(_) => {
                Match::among(key, session.filters.iter(), load.record.topic, Offset(u64::MAX))
            }
        };
        let as_published = found.as_ref().is_some_and(|found| found.retain_as_published);
        let retain = from_store || (load.record.retain && as_published);
        let identifiers = found.as_ref().map_or(&[][..], |found| &found.identifiers);
        // One that has begun is completed even if it has expired meanwhile: the client may have it already.
        let expiry = expiry_left(load.record, now.wall).unwrap_or(Some(0));
        self.write_publish(
            connection,
            load,
            &Wrap { dup, qos, retain, packet_id, identifiers },
            expiry,
            None,
        );
    }

    fn send_retained(
        &mut self,
        key: Key,
        delivery: &RetainedDelivery,
        now: Now,
        log: &mut dyn Append,
    ) -> Delivered {
        let record = delivery.retained.record();
        let Some(session) = self.sessions.get_mut(key) else { return Delivered::Behind };
        let Some(connection_key) = session.connection else { return Delivered::Behind };
        let Some(connection) = self.connections.get(connection_key) else { return Delivered::Behind };
        // The rules may have changed since it subscribed.
        if !connection.may_receive(&self.rules, record.topic) {
            return Delivered::Done(Fate::Dropped(DropReason::Denied));
        }
        let identifiers = delivery.identifier.as_slice();
        let wrap = Wrap { dup: false, qos: delivery.qos, retain: true, packet_id: u16::MAX, identifiers };
        let Some(expiry) = expiry_left(&record, now.wall) else {
            return Delivered::Done(Fate::Dropped(DropReason::Expired));
        };
        if !fits(connection, &record, &wrap, expiry) {
            return self.leave_out(DropReason::TooLarge);
        }
        let source = Source::Retained(Arc::clone(&delivery.retained));
        let packet_id = match delivery.qos {
            Qos::AtMostOnce => 0,
            Qos::ExactlyOnce if session.is_kept() => return self.announce(key, source, None, log),
            // A crash forgets that it was sent, and the client subscribes again with a new session.
            Qos::AtLeastOnce | Qos::ExactlyOnce => session.window.begin(source, delivery.qos, Stage::Sent),
        };
        let load = Load { record: &record, batch: None, offset: Offset(0), group: None };
        self.stats.publishes_stored_total += 1;
        self.write_publish(connection_key, load, &Wrap { packet_id, ..wrap }, expiry, None);
        Delivered::Done(Fate::Sent)
    }

    /// Sends a value below `$SYS`, unless the client has enough to read: a newer one follows.
    pub(super) fn send_system(&mut self, found: &Match, record: &Record<'_>, now: Now) {
        let session = self.sessions.get(found.session);
        let connection = session.and_then(|session| self.connections.get(session.connection?));
        let can_take = |connection: &Connection| {
            connection.greeted && connection.outbox.len() <= self.limits.outgoing_bytes
        };
        if connection.is_some_and(can_take) {
            self.stats.publishes_stored_total += 1;
            let load = Load { record, batch: None, offset: Offset(0), group: None };
            self.send_once(found, load, None, now);
        }
    }

    /// Sends PUBREL: what it says can no longer be undone by a crash.
    pub(super) fn send_pubrel(&mut self, key: Key, packet_id: u16) {
        let Some(connection) = self.connections.get(key) else { return };
        let version = connection.version;
        let session = connection.session.and_then(|session| self.sessions.get_mut(session));
        let Some(delivery) = session.and_then(|session| session.window.find(packet_id)) else { return };
        delivery.stage = Stage::Released;
        encode::pubrel(self.outbox(key), version, packet_id, ReasonCode::Success);
        self.stats.packets_out_total += 1;
    }

    fn write_publish(
        &mut self,
        key: Key,
        load: Load<'_>,
        wrap: &Wrap<'_>,
        expiry: Option<u32>,
        memo: Option<&mut Memo>,
    ) {
        let _ = self.outbox(key);
        let Some(connection) = self.connections.get_mut(key) else { return };
        let version = connection.version;
        self.stats.publishes_out_total += 1;
        self.stats.publish_bytes_out_total += load.record.payload.len() as u64;
        self.stats.packets_out_total += 1;
        if connection.aliases_out.is_some() {
            write_aliased(connection, load, wrap, expiry);
            return;
        }
        let outbox = &mut connection.outbox;
        match memo {
            Some(memo) if wrap.identifiers.is_empty() && load.record.payload.len() < SHARED_BYTES_MIN => {
                memo.write(outbox, version, load.record, wrap, expiry);
            }
            Some(_) | None => {
                encode_publish(outbox, version, load, &head(version, load.record, wrap, expiry));
            }
        }
    }
}

/// Whether a session that is live gets a record now that it is durable.
fn is_due(session: &Session, found: &Match, record: &Record<'_>, offset: Offset) -> bool {
    let own = found.no_local && *session.client == *record.client;
    let arrived = record.qos == Qos::AtMostOnce
        && session.arrivals_missed_from.is_none_or(|missed_from| offset < missed_from);
    !own && !arrived
}

impl Memo {
    fn write(
        &mut self,
        outbox: &mut Outbox,
        version: Version,
        record: &Record<'_>,
        wrap: &Wrap<'_>,
        expiry: Option<u32>,
    ) {
        let kind = (version.is_v5(), wrap.qos, wrap.retain);
        if self.kind != Some(kind) {
            self.kind = Some(kind);
            self.bytes.clear();
            let head = head(version, record, wrap, expiry);
            self.packet_id_at = encode::publish(&mut self.bytes, version, &head, record.payload);
        }
        let own = outbox.own();
        let packet_id_at = own.len() + self.packet_id_at;
        own.extend_from_slice(&self.bytes);
        if wrap.qos > Qos::AtMostOnce {
            own[packet_id_at..packet_id_at + 2].copy_from_slice(&wrap.packet_id.to_be_bytes());
        }
    }
}

/// Writes a PUBLISH to a client that takes topic aliases. What it is sent is encoded for it alone.
fn write_aliased(connection: &mut Connection, load: Load<'_>, wrap: &Wrap<'_>, expiry: Option<u32>) {
    let (version, bytes_max) = (connection.version, connection.packet_bytes_max);
    let mut head = head(version, load.record, wrap, expiry);
    if let Some(aliases) = &mut connection.aliases_out {
        let longer = |number| PublishHead { topic_alias: Some(number), ..head };
        let alias = aliases.of(head.topic, || longer(1).packet_bytes(version) <= bytes_max);
        head = match alias {
            Some(Alias::New(number)) => longer(number),
            Some(Alias::Known(number)) => PublishHead { topic: "", ..longer(number) },
            None => head,
        };
    }
    encode_publish(&mut connection.outbox, version, load, &head);
}

fn encode_publish(outbox: &mut Outbox, version: Version, load: Load<'_>, head: &PublishHead<'_>) {
    match load.batch {
        Some(batch) if load.record.payload.len() >= SHARED_BYTES_MIN => {
            encode::publish_head(outbox.own(), version, head);
            outbox.share(batch.share(load.record.payload));
        }
        Some(_) | None => {
            encode::publish(outbox.own(), version, head, load.record.payload);
        }
    }
}

fn head<'a>(version: Version, record: &Record<'a>, wrap: &Wrap<'a>, expiry: Option<u32>) -> PublishHead<'a> {
    PublishHead {
        dup: wrap.dup,
        qos: wrap.qos,
        retain: wrap.retain,
        packet_id: wrap.packet_id,
        topic: record.topic.as_str(),
        properties: if version.is_v5() { record.properties } else { Properties::NONE },
        message_expiry: expiry,
        subscription_ids: wrap.identifiers,
        topic_alias: None,
        payload_bytes: record.payload.len(),
    }
}

/// Seconds left to deliver `record`, if they are counted; `None` when they are over [MQTT-3.3.2-5]
/// [MQTT-3.3.2-6].
fn expiry_left(record: &Record<'_>, now: Timestamp) -> Option<Option<u32>> {
    if record.properties.is_empty() {
        return Some(None);
    }
    let Some(seconds) = record.properties.message_expiry() else { return Some(None) };
    let waited = u32::try_from(now.0.saturating_sub(record.time.0) / 1_000).unwrap_or(u32::MAX);
    if waited >= seconds.max(1) { None } else { Some(Some(seconds.saturating_sub(waited))) }
}

/// Whether the client takes a packet of this size [MQTT-3.1.2-24]; one it does not take counts as delivered
/// [MQTT-3.1.2-25].
fn fits(connection: &Connection, record: &Record<'_>, wrap: &Wrap<'_>, expiry: Option<u32>) -> bool {
    connection.packet_bytes_max == usize::MAX
        || head(connection.version, record, wrap, expiry).packet_bytes(connection.version)
            <= connection.packet_bytes_max
}
