//! What survives a restart: the checkpoint, and the entries behind it.
//!
//! A checkpoint is the broker's state at one offset. [`Broker::restore`] takes it in, [`Broker::replay`] every
//! entry from its offset to the durable end, [`Broker::restored`] closes the gap between the two lives: clients
//! that were connected count as gone.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Broker;
use super::shared::SavedGroup;
use super::timers::{PROGRESS_INTERVAL, Timer};
use crate::auth::Access;
use crate::broker::{Limits, Now};
use crate::plant::{self, Bug};
use crate::record::{Append, Batch, Entry, Offset, Qos, Record, Timestamp};
use crate::retained::Retained;
use crate::router::SubscriptionOptions;
use crate::session::control::{Control, Will};
use crate::session::window::{Source, Stage};
use crate::session::{Flow, NEVER_EXPIRES, Session};
use crate::slots::Key;
use crate::topic::TopicFilter;

/// How long a client that was connected when the broker went away has to come back before its Will is published.
/// The server's failure is not the client's [MQTT-3.1.2-8].
const WILL_GRACE: Duration = Duration::from_secs(15);

/// Raised whenever the content changes. Format 1 had no groups of shared subscriptions; it is still read.
const FORMAT: u32 = 2;
const FORMAT_WITHOUT_GROUPS: u32 = 1;

/// Why the state cannot be restored.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The bytes are no checkpoint.
    #[error("the checkpoint cannot be read: {0}")]
    Checkpoint(#[from] postcard::Error),
    /// A checkpoint of another format.
    #[error(
        "the checkpoint has format {0}, this program reads format {FORMAT}: it was written by another version"
    )]
    Format(u32),
    /// A control entry that cannot be read.
    #[error(
        "the control entry at offset {offset} cannot be read ({error}): it was written by another version"
    )]
    Control {
        /// Where it lies.
        offset: Offset,
        /// What is wrong.
        error: postcard::Error,
    },
}

#[derive(Serialize, Deserialize)]
struct Checkpoint<'a> {
    format: u32,
    offset: Offset,
    next_session: u64,
    #[serde(borrow)]
    sessions: Vec<SavedSession<'a>>,
    retained: Vec<Cow<'a, Retained>>,
}

#[derive(Serialize, Deserialize)]
struct SavedSession<'a> {
    number: u64,
    #[serde(borrow)]
    client: Cow<'a, str>,
    expiry_s: u32,
    /// When its connection ended; `None` while it is connected.
    left_at: Option<Timestamp>,
    filters: Vec<(Cow<'a, str>, SubscriptionOptions)>,
    position: Offset,
    unreleased: Vec<u16>,
    /// QoS 2 deliveries in flight: identifier, content, whether PUBREC has come.
    in_flight: Vec<(u16, SavedSource<'a>, bool)>,
    announced: Vec<Offset>,
    will: Option<Will>,
}

/// As [`Source`].
#[derive(Serialize, Deserialize)]
enum SavedSource<'a> {
    Journal(Offset),
    Retained(Cow<'a, Retained>),
    /// For the group with this filter.
    Shared(Offset, #[serde(borrow)] Cow<'a, str>),
}

/// The offset that a checkpoint is of, if all of it can be read.
pub fn checkpoint_offset(bytes: &[u8]) -> Result<Offset, RestoreError> {
    let (format, _) = postcard::take_from_bytes::<u32>(bytes)?;
    if ![FORMAT_WITHOUT_GROUPS, FORMAT].contains(&format) {
        return Err(RestoreError::Format(format));
    }
    let (checkpoint, rest): (Checkpoint<'_>, _) = postcard::take_from_bytes(bytes)?;
    if format != FORMAT_WITHOUT_GROUPS {
        let _: Vec<SavedGroup<'_>> = postcard::from_bytes(rest)?;
    }
    Ok(checkpoint.offset)
}

impl Broker {
    /// The state after every entry before `offset`, which must be the end of what was accepted.
    pub fn checkpoint(&self, offset: Offset) -> Vec<u8> {
        let sessions = self.sessions.iter().filter(|(_, session)| session.recorded);
        let retained: Vec<Arc<Retained>> = self.retained.iter().collect();
        let checkpoint = Checkpoint {
            format: FORMAT,
            offset,
            next_session: self.next_session,
            sessions: sessions.map(|(key, session)| self.saved(key, session)).collect(),
            retained: retained
                .iter()
                .filter(|_| !plant::is(Bug::RetainedNotInCheckpoint))
                .map(|retained| Cow::Borrowed(&**retained))
                .collect(),
        };
        let cannot_fail = "encoding into memory cannot fail for types of known length";
        let mut bytes = postcard::to_stdvec(&checkpoint).expect(cannot_fail);
        bytes.extend(postcard::to_stdvec(&self.saved_groups()).expect(cannot_fail));
        bytes
    }

    fn saved<'a>(&'a self, key: Key, session: &'a Session) -> SavedSession<'a> {
        let filters =
            session.filters.iter().map(|(filter, options)| (Cow::Borrowed(filter.as_str()), *options));
        let exactly_once = session.window.iter().filter(|(_, delivery)| delivery.qos == Qos::ExactlyOnce);
        let in_flight = exactly_once.map(|(packet_id, delivery)| {
            let source = match &delivery.source {
                Source::Journal(offset) => SavedSource::Journal(*offset),
                Source::Shared(offset) => match self.share_of(key, *offset, packet_id) {
                    Some(share) => SavedSource::Shared(*offset, Cow::Borrowed(share.as_str())),
                    None => SavedSource::Journal(*offset),
                },
                Source::Retained(retained) => SavedSource::Retained(Cow::Borrowed(&**retained)),
            };
            let received = matches!(delivery.stage, Stage::Received | Stage::Released);
            (packet_id, source, received)
        });
        SavedSession {
            number: session.number,
            client: Cow::Borrowed(&session.client),
            expiry_s: session.expiry_s,
            left_at: session.left_at,
            filters: filters.collect(),
            position: session.position(self.durable_end),
            unreleased: session.unreleased.iter().copied().collect(),
            in_flight: in_flight.collect(),
            announced: session.announced.iter().copied().collect(),
            will: session.will.clone(),
        }
    }

    /// The oldest offset that a kept session, or a group with one, still needs.
    pub fn lowest_position(&self) -> Option<Offset> {
        let kept = self.sessions.iter().filter(|(_, session)| session.is_kept());
        let sessions = kept.map(|(_, session)| session.position(self.durable_end));
        sessions.chain(self.lowest_group_position()).min()
    }

    /// A broker with the state of `checkpoint`, and the offset from which entries are to be replayed.
    pub fn restore(
        limits: Limits,
        access: Arc<Access>,
        seed: u64,
        checkpoint: Option<&[u8]>,
    ) -> Result<(Self, Offset), RestoreError> {
        let mut broker = Self::new(limits, access, seed);
        let Some(bytes) = checkpoint else { return Ok((broker, Offset(0))) };
        let (format, _) = postcard::take_from_bytes::<u32>(bytes)?;
        if ![FORMAT_WITHOUT_GROUPS, FORMAT].contains(&format) {
            return Err(RestoreError::Format(format));
        }
        let (checkpoint, rest): (Checkpoint<'_>, _) = postcard::take_from_bytes(bytes)?;
        broker.next_session = checkpoint.next_session;
        for saved in &checkpoint.sessions {
            broker.restore_session(saved);
        }
        for retained in checkpoint.retained {
            broker.retained.insert(retained.into_owned());
        }
        if format != FORMAT_WITHOUT_GROUPS {
            let groups: Vec<SavedGroup<'_>> = postcard::from_bytes(rest)?;
            groups.iter().for_each(|group| broker.restore_group(group));
        }
        Ok((broker, checkpoint.offset))
    }

    fn restore_session(&mut self, saved: &SavedSession<'_>) {
        let mut session = Session::new(saved.number, &saved.client, saved.position);
        session.recorded = true;
        session.expiry_s = saved.expiry_s;
        session.left_at = saved.left_at;
        session.unreleased = saved.unreleased.iter().copied().collect();
        session.announced = saved.announced.iter().copied().collect();
        session.will.clone_from(&saved.will);
        let mut shared = Vec::new();
        for (packet_id, source, received) in &saved.in_flight {
            let stage = if *received { Stage::Released } else { Stage::Sent };
            let source = match source {
                SavedSource::Journal(offset) => Source::Journal(*offset),
                SavedSource::Shared(offset, share) => {
                    shared.push((*packet_id, *offset, share));
                    Source::Shared(*offset)
                }
                SavedSource::Retained(retained) => Source::Retained(Arc::new(Retained::clone(retained))),
            };
            session.window.restore(*packet_id, source, stage);
        }
        let key = self.add_session(session);
        for (filter, options) in &saved.filters {
            self.restore_filter(key, filter, *options);
        }
        for (packet_id, offset, share) in shared {
            self.restore_shared(key, share, packet_id, offset);
        }
    }

    pub(super) fn add_session(&mut self, session: Session) -> Key {
        let (client, number) = (session.client.clone(), session.number);
        let key = self.sessions.insert(session);
        self.by_client.insert(client, key);
        self.by_number.insert(number, key);
        key
    }

    fn restore_filter(&mut self, key: Key, filter: &str, options: SubscriptionOptions) {
        let Ok(filter) = TopicFilter::new(filter) else { return };
        match filter.shared() {
            Ok(Some((_, shared))) => self.join(key, &filter, shared, options),
            Ok(None) | Err(_) => self.router.subscribe(&filter, key, options),
        }
        if let Some(session) = self.sessions.get_mut(key) {
            session.filters.insert(filter, options);
        }
    }

    /// Entries from the checkpoint's offset on, in order. All of them are durable.
    pub fn replay(&mut self, batch: &Batch) -> Result<(), RestoreError> {
        for (place, entry) in batch.entries() {
            match entry {
                Entry::Record(record) => self.replay_record(&record),
                Entry::Control(body) => {
                    let control = Control::decode(body)
                        .map_err(|error| RestoreError::Control { offset: place.offset, error })?;
                    self.replay_control(control, place.offset);
                }
            }
        }
        self.durable_end = batch.end();
        Ok(())
    }

    fn replay_record(&mut self, record: &Record<'_>) {
        if record.retain {
            self.retained.set(record);
        }
        if record.qos == Qos::ExactlyOnce && record.packet_id != 0 && !plant::is(Bug::PacketIdForgotten) {
            let session = self.by_client.get(record.client).and_then(|key| self.sessions.get_mut(*key));
            if let Some(session) = session {
                session.unreleased.insert(record.packet_id);
            }
        }
    }

    fn replay_control(&mut self, control: Control<'_>, offset: Offset) {
        if let Control::Connected { session, client, expiry_s, will } = control {
            self.replay_connected(session, &client, expiry_s, will.map(Cow::into_owned), offset);
            return;
        }
        if let Control::SharedProgress { share, position } = control {
            self.replay_shared_progress(&share, position);
            return;
        }
        let Some(key) = self.session_of(&control) else { return };
        if let Control::Ended { .. } = control {
            self.forget(key);
            return;
        }
        let Some(session) = self.sessions.get_mut(key) else { return };
        match control {
            Control::Disconnected { at, expiry_s, will_waits, .. } => {
                session.left_at = Some(at);
                session.expiry_s = expiry_s;
                if !will_waits {
                    session.will = None;
                }
            }
            Control::WillDone { .. } => session.will = None,
            Control::Subscribed { .. } if plant::is(Bug::SubscriptionForgotten) => {}
            Control::Subscribed { filters, .. } => {
                for (filter, options) in filters {
                    self.restore_filter(key, &filter, options);
                }
            }
            Control::Unsubscribed { filters, .. } => {
                for filter in filters.iter().filter_map(|filter| TopicFilter::new(filter).ok()) {
                    if let Some(session) = self.sessions.get_mut(key) {
                        session.filters.remove(&filter);
                    }
                    self.unsubscribe_one(key, &filter);
                }
            }
            Control::Released { .. } if plant::is(Bug::ReleaseForgotten) => {}
            Control::Released { packet_id, .. } => {
                session.unreleased.remove(&packet_id);
            }
            Control::Announced { .. } if plant::is(Bug::DeliveryForgotten) => {}
            Control::Announced { packet_id, offset, .. } => {
                session.announced.insert(offset);
                session.window.restore(packet_id, Source::Journal(offset), Stage::Sent);
            }
            Control::AnnouncedRetained { packet_id, retained, .. } => {
                let source = Source::Retained(Arc::new(retained.into_owned()));
                session.window.restore(packet_id, source, Stage::Sent);
            }
            Control::Received { .. } if plant::is(Bug::ReceiptForgotten) => {}
            Control::Received { packet_id, .. } => {
                if let Some(delivery) = session.window.find(packet_id) {
                    delivery.stage = Stage::Released;
                }
            }
            Control::AnnouncedShared { packet_id, offset, share, .. } => {
                session.window.restore(packet_id, Source::Shared(offset), Stage::Sent);
                self.restore_shared(key, &share, packet_id, offset);
            }
            Control::Completed { packet_id, .. } => _ = self.close_delivery(key, packet_id),
            Control::Progress { position, .. } => {
                session.flow = Flow::CatchingUp(position);
                session.position_saved = position;
                session.announced = session.announced.split_off(&position);
            }
            Control::Connected { .. } | Control::Ended { .. } | Control::SharedProgress { .. } => {}
        }
    }

    fn session_of(&self, control: &Control<'_>) -> Option<Key> {
        let (Control::Connected { session: number, .. }
        | Control::Disconnected { session: number, .. }
        | Control::Ended { session: number }
        | Control::WillDone { session: number }
        | Control::Subscribed { session: number, .. }
        | Control::Unsubscribed { session: number, .. }
        | Control::Released { session: number, .. }
        | Control::Announced { session: number, .. }
        | Control::Received { session: number, .. }
        | Control::Completed { session: number, .. }
        | Control::Progress { session: number, .. }
        | Control::AnnouncedRetained { session: number, .. }
        | Control::AnnouncedShared { session: number, .. }) = control
        else {
            return None;
        };
        self.by_number.get(number).copied()
    }

    fn replay_connected(
        &mut self,
        number: u64,
        client: &str,
        expiry_s: u32,
        will: Option<Will>,
        offset: Offset,
    ) {
        self.next_session = self.next_session.max(number + 1);
        let key = match self.by_number.get(&number) {
            Some(key) => *key,
            None => {
                if let Some(earlier) = self.by_client.get(client).copied() {
                    self.forget(earlier);
                }
                self.add_session(Session::new(number, client, offset))
            }
        };
        if let Some(session) = self.sessions.get_mut(key) {
            session.recorded = true;
            session.expiry_s = expiry_s;
            session.left_at = None;
            session.will = will.filter(|_| !plant::is(Bug::WillForgotten));
        }
    }

    fn forget(&mut self, key: Key) {
        let Some(mut session) = self.sessions.remove(key) else { return };
        self.by_client.remove(&session.client);
        self.by_number.remove(&session.number);
        self.drop_filters(key, &mut session);
    }

    /// Replay is over; `durable_end` is where the journal begins anew. Sessions without a client wait for it from
    /// now on.
    pub fn restored(&mut self, durable_end: Offset, now: Now, log: &mut dyn Append) {
        self.durable_end = durable_end;
        self.open_books();
        for key in self.sessions.keys() {
            let Some(session) = self.sessions.get_mut(key) else { continue };
            if session.will.is_some() {
                let delay = session.will.as_ref().map_or(0, |will| will.delay_s);
                let at = now.monotonic + WILL_GRACE.max(Duration::from_secs(u64::from(delay)));
                session.will_at = Some(at);
                session.will_in_grace = session.left_at.is_none();
                self.timers.set(at, Timer::Will(key));
            }
            // It was connected when the broker went away: its time begins now.
            let left_at = *session.left_at.get_or_insert(now.wall);
            if session.expiry_s == 0 && session.will.is_none() {
                self.end_session(key, log);
                continue;
            }
            if session.expiry_s != NEVER_EXPIRES {
                let away = Duration::from_millis(now.wall.0.saturating_sub(left_at.0));
                let left = Duration::from_secs(u64::from(session.expiry_s)).saturating_sub(away);
                let at = session.will_at.unwrap_or_default().max(now.monotonic + left);
                session.expires_at = Some(at);
                self.timers.set(at, Timer::Expiry(key));
            }
        }
        self.timers.set(now.monotonic + PROGRESS_INTERVAL, Timer::Progress);
        self.update_system(now);
    }
}
