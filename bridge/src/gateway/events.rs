//! The fan-out: one follower reads each durable batch once and gives its records to every live subscriber.
//!
//! A subscriber is [`Phase::Live`], and then the follower puts encoded events into its bounded queue, or it is
//! [`Phase::CatchingUp`], and then it reads the journal itself, in its own time, until it has come to where the
//! follower is. When the queue of a live subscriber is full, the queue is thrown away and the subscriber catches
//! up from the first record that was in it. So a stuck subscriber costs a few hundred bytes, nobody waits for it,
//! and it misses nothing and gets nothing twice.
//!
//! An event is encoded once per form however many subscribers get it. A batch wakes a subscriber once.
//!
//! Who may receive a topic is asked when it is looked up who wants it, and remembered with that until the rules
//! change. Then what is queued for those whom the rules concern is given up, and they read it again by the new ones.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{self, JoinHandle, Thread};

use axum::extract::ws::Utf8Bytes;
use bytes::Bytes;
use tidegate_broker::auth::{Access, Rules};
use tidegate_broker::journal::{Journal, Reader};
use tidegate_broker::record::{Batch, Entry, Offset, Record, Timestamp};
use tidegate_broker::topic::TopicName;
use tokio::sync::{Semaphore, mpsc};

use super::caller::Caller;
use super::encode::{self, Encoder, Form};
use super::interest::Interest;
use super::ledger::{Ledger, Lost};
use super::subscriber::{Kind, Phase, Pushed, Subscriber};
use super::subscription::Subscription;

/// What it may cost to remember which subscribers want which topics; above it, all is forgotten and looked up again.
const REMEMBERED_BYTES_MAX: usize = 8 << 20;
/// What a remembered topic costs besides its name and its subscribers.
const REMEMBERED_TOPIC_BYTES: usize = 96;
/// Subscribers that read segments at the same time; more wait for their turn.
const CATCH_UP_READS_MAX: usize = 4;

/// Limits of the fan-out.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Subscribers at one time; one more is refused.
    pub(super) subscribers_max: usize,
    /// Bytes in one subscriber's queue; above it the subscriber catches up from the journal.
    pub(super) queue_bytes_max: usize,
}

#[derive(Debug)]
struct Table {
    /// Every record before it has been given to the live subscribers.
    position: Offset,
    subscribers: BTreeMap<u64, Arc<Subscriber>>,
    live: usize,
    by_topic: ByTopic,
    /// By which the subscribers in `by_topic` and the events in their queues were chosen.
    rules: Arc<Rules>,
}

/// Which subscribers may want, and may receive, records of a topic, as far as it was looked up since they or the rules
/// changed last.
#[derive(Debug, Default)]
struct ByTopic {
    interested: HashMap<Box<str>, Arc<[Arc<Subscriber>]>>,
    bytes: usize,
}

impl ByTopic {
    fn clear(&mut self) {
        self.interested.clear();
        self.bytes = 0;
    }

    fn insert(&mut self, topic: TopicName<'_>, interested: &Arc<[Arc<Subscriber>]>) {
        let bytes =
            REMEMBERED_TOPIC_BYTES + topic.as_str().len() + interested.len() * size_of::<Arc<Subscriber>>();
        if self.bytes + bytes > REMEMBERED_BYTES_MAX {
            self.clear();
        }
        self.bytes += bytes;
        self.interested.insert(topic.as_str().into(), Arc::clone(interested));
    }
}

/// All subscribers and the follower's place.
#[derive(Debug)]
pub(super) struct Hub {
    pub(super) journal: Journal,
    pub(super) access: Arc<Access>,
    pub(super) encoder: Encoder,
    pub(super) reads: Arc<Semaphore>,
    pub(super) totals: Totals,
    pub(super) ledger: Ledger,
    limits: Limits,
    table: Mutex<Table>,
    /// Of the rules in `table`; changed only while that is locked.
    rules_version: AtomicU64,
    next_id: AtomicU64,
    alarm: Arc<Alarm>,
    stopped: AtomicBool,
}

/// Wakes the follower. It is apart from the [`Hub`] because the journal's writer thread holds it: whatever holds
/// the journal must not be dropped there.
#[derive(Debug, Default)]
struct Alarm {
    follower: OnceLock<Thread>,
    /// When the durable end moved last, in milliseconds since the Unix epoch; 0 for never.
    last_activity_ms: AtomicU64,
}

impl Alarm {
    fn ring(&self) {
        if let Some(follower) = self.follower.get() {
            follower.unpark();
        }
    }
}

/// Totals since the start.
#[derive(Debug, Default)]
pub(super) struct Totals {
    /// Events given to subscribers.
    pub(super) delivered: AtomicU64,
    /// How often a live subscriber fell behind.
    pub(super) fell_behind: AtomicU64,
    /// Subscribers refused because there were too many.
    pub(super) refused: AtomicU64,
    /// Broadcast frames not sent to a WebSocket that did not read.
    pub(super) control_dropped: AtomicU64,
    /// Reads of the journal that failed.
    pub(super) read_errors: AtomicU64,
}

/// There are as many subscribers as there may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} subscribers are connected, which is the limit (http.subscribers_max): try again later")]
pub(super) struct TooManySubscribers(usize);

/// Current counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) event_streams: usize,
    pub(super) websockets: usize,
    pub(super) catching_up: usize,
    pub(super) subscribers_max: usize,
}

/// The running follower; stops when it is told to.
#[derive(Debug)]
pub(super) struct Follower {
    hub: Arc<Hub>,
    thread: Option<JoinHandle<()>>,
}

impl Hub {
    /// A hub at the durable end of `journal`, and its follower.
    pub(super) fn start(
        journal: Journal,
        access: Arc<Access>,
        encoder: Encoder,
        limits: Limits,
    ) -> std::io::Result<(Arc<Self>, Follower)> {
        // Before the rules themselves: if they change in between, they are taken once more.
        let rules_version = access.rules_version();
        let table = Table {
            position: journal.durable_end(),
            subscribers: BTreeMap::new(),
            live: 0,
            by_topic: ByTopic::default(),
            rules: access.rules(),
        };
        let hub = Arc::new(Self {
            journal,
            access,
            encoder,
            reads: Arc::new(Semaphore::new(CATCH_UP_READS_MAX)),
            totals: Totals::default(),
            ledger: Ledger::default(),
            limits,
            table: Mutex::new(table),
            rules_version: AtomicU64::new(rules_version),
            next_id: AtomicU64::new(1),
            alarm: Arc::default(),
            stopped: AtomicBool::new(false),
        });
        let following = Arc::clone(&hub);
        let thread =
            thread::Builder::new().name("gateway-follow".into()).spawn(move || follow(&following))?;
        hub.alarm.follower.get_or_init(|| thread.thread().clone());
        let alarm = Arc::clone(&hub.alarm);
        hub.journal.on_durable(move |_| {
            alarm.last_activity_ms.store(encode::now().0, Ordering::Relaxed);
            alarm.ring();
        });
        Ok((Arc::clone(&hub), Follower { hub, thread: Some(thread) }))
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new subscriber that begins with the record at `from`. WebSockets also get a receiver for frames that
    /// are no records.
    pub(super) fn subscribe(
        self: &Arc<Self>,
        kind: Kind,
        caller: Caller,
        interest: Interest,
        from: Offset,
    ) -> Result<(Subscription, mpsc::Receiver<Utf8Bytes>), TooManySubscribers> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let (subscriber, frames) = Subscriber::new(id, kind, caller, interest, from);
        let mut table = self.table();
        if table.subscribers.len() >= self.limits.subscribers_max {
            self.totals.refused.fetch_add(1, Ordering::Relaxed);
            return Err(TooManySubscribers(self.limits.subscribers_max));
        }
        table.subscribers.insert(subscriber.id, Arc::clone(&subscriber));
        table.by_topic.clear();
        drop(table);
        Ok((Subscription::new(Arc::clone(self), subscriber), frames))
    }

    /// Forgets a subscriber.
    pub(super) fn remove(&self, subscriber: &Subscriber) {
        let mut table = self.table();
        if table.subscribers.remove(&subscriber.id).is_some() {
            table.by_topic.clear();
            let state = subscriber.state();
            self.ledger.lose(state.queued() as u64 + state.owed, Lost::Disconnected);
            match state.phase {
                Phase::Live { .. } => table.live -= 1,
                Phase::CatchingUp(_) => {}
            }
        }
    }

    /// Makes the subscriber live if it has come to where the follower is; `next` is what it wants next.
    pub(super) fn go_live(&self, subscriber: &Subscriber, next: Offset) -> bool {
        let mut table = self.table();
        if next < table.position {
            return false;
        }
        let mut state = subscriber.state();
        match state.phase {
            Phase::Live { .. } => {}
            Phase::CatchingUp(_) => {
                state.phase = Phase::Live { from: next };
                table.live += 1;
                // What it has not found again on the way is not there for it any more.
                let missed = std::mem::take(&mut state.has_missed);
                let why = if missed { Lost::Trimmed } else { Lost::Unsubscribed };
                self.ledger.lose(std::mem::take(&mut state.owed), why);
            }
        }
        drop(state);
        drop(table);
        // Records may have become durable since the follower last had somebody to read for.
        self.alarm.ring();
        true
    }

    /// Every wanted record before the returned offset was taken out of the queue or read.
    pub(super) fn position(&self, subscriber: &Subscriber) -> Offset {
        let table = self.table();
        let state = subscriber.state();
        match state.phase {
            Phase::Live { from } => state.first_queued().unwrap_or_else(|| table.position.max(from)),
            Phase::CatchingUp(next) => state.first_queued().map_or(next, |queued| queued.min(next)),
        }
    }

    /// Judges anew if the rules have changed: forgets who may receive what, and lets those whom the rules concern read
    /// again what was queued for them. Costs two loads where nothing has changed.
    pub(super) fn check_rules(&self) {
        if self.rules_version.load(Ordering::Acquire) != self.access.rules_version() {
            self.take_rules(&mut self.table());
        }
    }

    fn take_rules(&self, table: &mut Table) {
        let version = self.access.rules_version();
        if self.rules_version.load(Ordering::Acquire) == version {
            return;
        }
        table.rules = self.access.rules();
        table.by_topic.clear();
        for subscriber in table.subscribers.values().filter(|known| !known.caller.is_above_rules()) {
            let mut state = subscriber.state();
            let was_live = matches!(state.phase, Phase::Live { .. });
            if state.give_up_queue() {
                table.live -= usize::from(was_live);
                drop(state);
                subscriber.wake.notify_one();
            }
        }
        self.rules_version.store(version, Ordering::Release);
    }

    /// Changes what a subscriber wants. `change` gets the interest and up to where the subscriber has come, and
    /// returns the offset to go back to, if any. What is queued is given up and read again by the new interest, for
    /// which it does not count as given.
    pub(super) fn change_interest(
        &self,
        subscriber: &Subscriber,
        change: impl FnOnce(&mut Interest, Offset) -> Option<Offset>,
    ) {
        let mut table = self.table();
        table.by_topic.clear();
        let mut state = subscriber.state();
        let was_live = matches!(state.phase, Phase::Live { .. });
        state.give_up_queue();
        let position = match state.phase {
            Phase::Live { from } => table.position.max(from),
            Phase::CatchingUp(next) => next,
        };
        let mut interest = Interest::clone(&state.interest);
        if let Some(back) = change(&mut interest, position)
            && back < position
        {
            state.phase = Phase::CatchingUp(back);
        }
        state.interest = Arc::new(interest);
        let is_live = matches!(state.phase, Phase::Live { .. });
        table.live -= usize::from(was_live && !is_live);
        drop(state);
        subscriber.wake.notify_one();
    }

    /// Offers a frame that is no record to every WebSocket; returns how many took it.
    pub(super) fn broadcast(&self, frame: &Utf8Bytes) -> usize {
        let mut sent = 0;
        for subscriber in self.table().subscribers.values() {
            match subscriber.offer(frame) {
                None => {}
                Some(true) => sent += 1,
                Some(false) => {
                    self.totals.control_dropped.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
        sent
    }

    /// How many subscribers may get records of `topic` now.
    pub(super) fn interested(&self, topic: TopicName<'_>) -> usize {
        let mut table = self.table();
        self.take_rules(&mut table);
        table.subscribers.values().filter(|subscriber| table.is_for(subscriber, topic)).count()
    }

    /// How many subscribers have exactly this filter.
    pub(super) fn subscribed(&self, filter: &str) -> usize {
        let table = self.table();
        let has = |subscriber: &&Arc<Subscriber>| {
            subscriber.state().interest.filters().any(|known| known == filter)
        };
        table.subscribers.values().filter(has).count()
    }

    /// Current counts.
    pub(super) fn counts(&self) -> Counts {
        let mut counts = Counts { subscribers_max: self.limits.subscribers_max, ..Counts::default() };
        for subscriber in self.table().subscribers.values() {
            match subscriber.kind {
                Kind::EventStream => counts.event_streams += 1,
                Kind::WebSocket => counts.websockets += 1,
            }
            match subscriber.state().phase {
                Phase::Live { .. } => {}
                Phase::CatchingUp(_) => counts.catching_up += 1,
            }
        }
        counts
    }

    /// Every subscriber.
    pub(super) fn subscribers(&self) -> Vec<Arc<Subscriber>> {
        self.table().subscribers.values().cloned().collect()
    }

    /// When the durable end moved last.
    pub(super) fn last_activity(&self) -> Option<Timestamp> {
        let last = self.alarm.last_activity_ms.load(Ordering::Relaxed);
        (last > 0).then_some(Timestamp(last))
    }

    /// Gives one batch to the live subscribers.
    fn deliver(&self, batch: &Batch) {
        let mut table = self.table();
        self.take_rules(&mut table);
        if batch.base() > table.position {
            // Trimmed under the follower: each subscriber finds the gap, and tells it, on its own.
            self.all_catch_up(&mut table);
        }
        let from = table.position.max(batch.base());
        let mut woken: Vec<Arc<Subscriber>> = Vec::new();
        for (appended, entry) in batch.entries_from(from) {
            let record = match entry {
                Entry::Record(record) => record,
                Entry::Control(_) => continue,
            };
            self.deliver_record(&mut table, appended.offset, &record, &mut woken);
        }
        table.position = batch.end();
        drop(table);
        for subscriber in woken {
            subscriber.wake.notify_one();
        }
    }

    fn deliver_record(
        &self,
        table: &mut Table,
        offset: Offset,
        record: &Record<'_>,
        woken: &mut Vec<Arc<Subscriber>>,
    ) {
        let mut encoded: [Option<Bytes>; 3] = [None, None, None];
        for subscriber in table.interested(record.topic).iter() {
            let mut state = subscriber.state();
            match state.phase {
                Phase::Live { from } if from <= offset => {}
                Phase::Live { .. } | Phase::CatchingUp(_) => continue,
            }
            let Some(form) = state.interest.form(offset, record.topic) else { continue };
            let slot = match form {
                Form::Sse => &mut encoded[0],
                Form::TopicMessage => &mut encoded[1],
                Form::Event => &mut encoded[2],
            };
            let event = slot.get_or_insert_with(|| self.encoder.encode(form, offset, record));
            let first = state.first_queued().is_none();
            self.ledger.take_in();
            match state.push(offset, event.clone(), self.limits.queue_bytes_max) {
                Pushed::Queued => {}
                Pushed::FellBehind => {
                    table.live -= 1;
                    self.totals.fell_behind.fetch_add(1, Ordering::Relaxed);
                }
            }
            // What was queued before this batch has woken it already; what comes next finds it not empty.
            if first {
                woken.push(Arc::clone(subscriber));
            }
        }
    }

    fn all_catch_up(&self, table: &mut Table) {
        for subscriber in table.subscribers.values() {
            let mut state = subscriber.state();
            if let Phase::Live { from } = state.phase {
                // What is queued is delivered first and lies before this place.
                state.phase = Phase::CatchingUp(table.position.max(from));
                drop(state);
                subscriber.wake.notify_one();
            }
        }
        table.live = 0;
    }

    /// Reads and delivers the next batch; `false` when there is nothing to do until the durable end moves.
    fn step(&self, reader: &mut Reader) -> bool {
        {
            let mut table = self.table();
            if table.live == 0 {
                table.position = table.position.max(self.journal.durable_end());
                return false;
            }
            if reader.offset() != table.position {
                reader.seek(table.position);
            }
        }
        match reader.next() {
            Ok(Some(batch)) => {
                self.deliver(&batch);
                true
            }
            Ok(None) => false,
            Err(error) => {
                self.totals.read_errors.fetch_add(1, Ordering::Relaxed);
                tracing::error!(%error, "the gateway cannot follow the journal; its subscribers read for themselves");
                let mut table = self.table();
                self.all_catch_up(&mut table);
                table.position = table.position.max(self.journal.durable_end());
                false
            }
        }
    }
}

impl Table {
    /// Whether `subscriber` may want records of `topic` and may receive them.
    fn is_for(&self, subscriber: &Subscriber, topic: TopicName<'_>) -> bool {
        subscriber.state().interest.may_want(topic) && subscriber.caller.may_receive(&self.rules, topic)
    }

    fn interested(&mut self, topic: TopicName<'_>) -> Arc<[Arc<Subscriber>]> {
        if let Some(known) = self.by_topic.interested.get(topic.as_str()) {
            return Arc::clone(known);
        }
        let wanting = self.subscribers.values().filter(|subscriber| self.is_for(subscriber, topic));
        let interested: Arc<[_]> = wanting.cloned().collect();
        self.by_topic.insert(topic, &interested);
        interested
    }
}

/// The follower's thread. A wake-up that comes while it works makes the next `park` return at once.
fn follow(hub: &Hub) {
    let mut reader = hub.journal.reader(hub.table().position);
    while !hub.stopped.load(Ordering::Acquire) {
        if !hub.step(&mut reader) {
            thread::park();
        }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.hub.stopped.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            if thread.join().is_err() {
                tracing::error!("the gateway's follower panicked");
            }
        }
    }
}

#[cfg(test)]
mod tests;
