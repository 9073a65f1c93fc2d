//! One subscriber's own side: takes what the follower queued, or reads the journal until it has caught up.
//!
//! Reading happens in bounded chunks on a blocking thread, a few subscribers at a time. What was read by an interest
//! or by rules that have changed since counts for nothing and is read again. Every method may be cancelled at an
//! await and called again.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use tidegate_broker::journal::Reader;
use tidegate_broker::record::{Entry, Offset};

use super::caller::{Caller, Verdicts};
use super::events::Hub;
use super::interest::Interest;
use super::subscriber::{Phase, Subscriber};

/// Bytes of events handed over at once, and read at once while catching up.
const CHUNK_BYTES: usize = 256 << 10;
/// Bytes of entries looked at for one chunk: a narrow filter must not hold a thread for the whole journal.
const SCAN_BYTES_MAX: usize = 8 << 20;

/// What comes next for a subscriber.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Delivery {
    /// Encoded records in offset order; empty when only the place has moved.
    Events(Vec<Bytes>),
    /// The entries of `from..to` were trimmed before they could be read.
    Gap {
        /// The first missing entry.
        from: Offset,
        /// The first entry that is there.
        to: Offset,
    },
    /// The journal cannot be read; the subscriber cannot go on.
    Failed(String),
}

/// What is kept from one chunk to the next.
struct Source {
    reader: Reader,
    verdicts: Verdicts,
}

struct Chunk {
    source: Source,
    next: Offset,
    delivery: Delivery,
    /// The durable end was reached.
    at_end: bool,
}

type Reading = Pin<Box<dyn Future<Output = Result<Chunk, String>> + Send>>;

/// One subscriber of the [`Hub`]; leaves it when dropped.
pub(super) struct Subscription {
    hub: Arc<Hub>,
    subscriber: Arc<Subscriber>,
    source: Option<Source>,
    reading: Option<Reading>,
    /// Set after a chunk that ended before the durable end: there is no need to ask the hub.
    far_behind: bool,
}

impl fmt::Debug for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscription").field("subscriber", &self.subscriber.id).finish_non_exhaustive()
    }
}

impl Subscription {
    pub(super) fn new(hub: Arc<Hub>, subscriber: Arc<Subscriber>) -> Self {
        Self { hub, subscriber, source: None, reading: None, far_behind: false }
    }

    /// What the hub knows of it.
    pub(super) fn subscriber(&self) -> &Arc<Subscriber> {
        &self.subscriber
    }

    /// Every wanted record before it has come out of [`Subscription::next`].
    pub(super) fn position(&self) -> Offset {
        self.hub.position(&self.subscriber)
    }

    /// Waits for what comes next.
    pub(super) async fn next(&mut self) -> Delivery {
        loop {
            if self.reading.is_some() {
                return self.finish_reading().await;
            }
            if !self.subscriber.caller.is_above_rules() {
                self.hub.check_rules();
            }
            let (events, phase) = {
                let mut state = self.subscriber.state();
                let events = state.take(CHUNK_BYTES);
                self.count(events.len() as u64, 0);
                (events, state.phase)
            };
            if !events.is_empty() {
                return Delivery::Events(events);
            }
            match phase {
                Phase::Live { .. } => self.subscriber.wake.notified().await,
                Phase::CatchingUp(next) => {
                    if self.far_behind || !self.hub.go_live(&self.subscriber, next) {
                        self.reading = Some(self.read(next));
                    }
                }
            }
        }
    }

    /// Changes what is wanted: see [`Hub::change_interest`].
    pub(super) fn change_interest(&mut self, change: impl FnOnce(&mut Interest, Offset) -> Option<Offset>) {
        self.reading = None;
        self.hub.change_interest(&self.subscriber, change);
        self.far_behind = false;
    }

    /// Events are handed over: this many of those that were pending, and others that were just read.
    fn count(&self, pending: u64, read: u64) {
        if pending + read > 0 {
            self.subscriber.delivered.fetch_add(pending + read, Ordering::Relaxed);
            self.hub.totals.delivered.fetch_add(pending + read, Ordering::Relaxed);
            self.hub.ledger.deliver(pending, read);
        }
    }

    async fn finish_reading(&mut self) -> Delivery {
        let Some(reading) = self.reading.as_mut() else { return Delivery::Events(Vec::new()) };
        let chunk = reading.await;
        self.reading = None;
        match chunk {
            Ok(chunk) => {
                let current = self.subscriber.caller.is_above_rules()
                    || chunk.source.verdicts.are_current(&self.hub.access);
                self.source = Some(chunk.source);
                if !current {
                    return Delivery::Events(Vec::new());
                }
                self.far_behind = !chunk.at_end;
                let mut state = self.subscriber.state();
                state.phase = Phase::CatchingUp(chunk.next);
                match &chunk.delivery {
                    Delivery::Events(events) => {
                        let read = events.len() as u64;
                        let again = state.owed.min(read);
                        state.owed -= again;
                        self.count(again, read - again);
                    }
                    Delivery::Gap { .. } => state.has_missed = true,
                    Delivery::Failed(_) => {}
                }
                drop(state);
                chunk.delivery
            }
            Err(error) => {
                self.hub.totals.read_errors.fetch_add(1, Ordering::Relaxed);
                Delivery::Failed(error)
            }
        }
    }

    fn read(&mut self, next: Offset) -> Reading {
        let (hub, interest) = (Arc::clone(&self.hub), Arc::clone(&self.subscriber.state().interest));
        let (source, subscriber) = (self.source.take(), Arc::clone(&self.subscriber));
        Box::pin(async move {
            let permit = Arc::clone(&hub.reads).acquire_owned().await;
            let read = tokio::task::spawn_blocking(move || {
                let _permit = permit;
                let source = Source::at(next, source, &hub, &subscriber.caller);
                read_chunk(&hub, source, &subscriber.caller, &interest, next)
            });
            match read.await {
                Ok(chunk) => chunk,
                Err(error) => Err(format!("the journal could not be read: {error}")),
            }
        })
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.hub.remove(&self.subscriber);
    }
}

impl Source {
    /// What was kept, as far as it can still be used; else a new one at `next`.
    fn at(next: Offset, kept: Option<Self>, hub: &Hub, caller: &Caller) -> Self {
        let (reader, verdicts) = match kept {
            Some(kept) => (Some(kept.reader), Some(kept.verdicts)),
            None => (None, None),
        };
        let reader = reader.unwrap_or_else(|| hub.journal.reader(next));
        let verdicts = verdicts.filter(|verdicts| verdicts.are_current(&hub.access));
        Self { reader, verdicts: verdicts.unwrap_or_else(|| Verdicts::new(caller, &hub.access)) }
    }
}

/// Reads from `next` until a chunk is full, enough was looked at, or the durable end is reached.
fn read_chunk(
    hub: &Hub,
    mut source: Source,
    caller: &Caller,
    interest: &Interest,
    next: Offset,
) -> Result<Chunk, String> {
    let start = hub.journal.start();
    if next < start {
        let delivery = Delivery::Gap { from: next, to: start };
        return Ok(Chunk { source, next: start, delivery, at_end: false });
    }
    if source.reader.offset() != next {
        source.reader.seek(next);
    }
    let (mut events, mut bytes, mut scanned, mut next) = (Vec::new(), 0, 0, next);
    while bytes < CHUNK_BYTES && scanned < SCAN_BYTES_MAX {
        let batch = match source.reader.next() {
            Ok(Some(batch)) => batch,
            Ok(None) => {
                let delivery = Delivery::Events(events);
                return Ok(Chunk { source, next, delivery, at_end: true });
            }
            // What was read before the failure is delivered; the failure comes again with the next chunk.
            Err(_) if next < hub.journal.start() || !events.is_empty() => break,
            Err(error) => return Err(format!("the journal cannot be read at offset {next}: {error}")),
        };
        if batch.base() > next {
            if events.is_empty() {
                let delivery = Delivery::Gap { from: next, to: batch.base() };
                return Ok(Chunk { source, next: batch.base(), delivery, at_end: false });
            }
            break;
        }
        if batch.is_gap() {
            if events.is_empty() {
                let delivery = Delivery::Gap { from: next, to: batch.end() };
                return Ok(Chunk { source, next: batch.end(), delivery, at_end: false });
            }
            break;
        }
        scanned += batch.entries_bytes();
        let mut entries = batch.entries_from(next);
        while bytes < CHUNK_BYTES
            && let Some((appended, entry)) = entries.next()
        {
            next = appended.offset.plus(1);
            let Entry::Record(record) = entry else { continue };
            if let Some(form) = interest.form(appended.offset, record.topic)
                && source.verdicts.may_receive(caller, record.topic)
            {
                let event = hub.encoder.encode(form, appended.offset, &record);
                bytes += event.len();
                events.push(event);
            }
        }
    }
    Ok(Chunk { source, next, delivery: Delivery::Events(events), at_end: false })
}
