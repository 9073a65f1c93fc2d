//! Where entries come in: the [`Appender`], and the [`Handover`] between it and the writer.
//!
//! The appender fills a batch in its own memory and takes no lock per entry. A batch goes to the writer when the
//! writer is idle or the batch is full; so while one group of batches is being synced the next one fills, and
//! groups grow with the load by themselves.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::format::FRAME_BYTES;
use super::{Journal, Shared};
use crate::record::{
    Append, Appended, Batch, BatchBuilder, Entry, Offset, Refused, Timestamp, encoded_bytes,
};

/// A record that is older than its batch seems as old as that. The shard's clock is read a moment before the journal's;
/// what is older by more, because the clock was set back, gets a batch of its own.
const OLDER_MS: u64 = 1_000;

/// What a new batch reserves at least.
const BATCH_BYTES_MIN: usize = 512;

/// What lies between the appender's thread and the writer's.
#[derive(Debug, Default)]
pub(super) struct Handover {
    slot: Mutex<Slot>,
    wake: Condvar,
    /// Whether the writer has batches that are not published yet.
    busy: AtomicBool,
    /// Bytes of all batches, frames included, that have become durable since the journal was opened.
    durable_bytes: AtomicU64,
}

#[derive(Debug, Default)]
struct Slot {
    filled: Vec<BatchBuilder>,
    durable: VecDeque<Batch>,
    poked: bool,
    closing: bool,
}

impl Handover {
    fn locked(&self) -> MutexGuard<'_, Slot> {
        self.slot.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, batch: BatchBuilder) {
        let mut slot = self.locked();
        slot.filled.push(batch);
        self.busy.store(true, Ordering::Release);
        drop(slot);
        self.wake.notify_one();
    }

    /// Lets the writer look after cursors, age and size.
    pub(super) fn poke(&self) {
        self.locked().poked = true;
        self.wake.notify_one();
    }

    /// Lets the writer end when it has written what is filled.
    pub(super) fn close(&self) {
        self.locked().closing = true;
        self.wake.notify_one();
    }

    /// Waits until there is something to do or `timeout` has passed; whether the journal is to be closed.
    pub(super) fn wait(&self, timeout: Option<Duration>) -> bool {
        let idle = |slot: &mut Slot| slot.filled.is_empty() && !slot.poked && !slot.closing;
        let slot = self.locked();
        let mut slot = match timeout {
            Some(timeout) => {
                self.wake.wait_timeout_while(slot, timeout, idle).unwrap_or_else(PoisonError::into_inner).0
            }
            None => self.wake.wait_while(slot, idle).unwrap_or_else(PoisonError::into_inner),
        };
        slot.poked = false;
        slot.closing
    }

    /// Everything that is filled.
    pub(super) fn take(&self) -> Vec<BatchBuilder> {
        std::mem::take(&mut self.locked().filled)
    }

    /// Hands `batches` back to the appender: they are durable, or (an empty iterator) will never be.
    pub(super) fn settle(&self, batches: impl Iterator<Item = Batch>, bytes: u64) {
        let mut slot = self.locked();
        slot.durable.extend(batches);
        self.durable_bytes.fetch_add(bytes, Ordering::Release);
        self.busy.store(!slot.filled.is_empty(), Ordering::Release);
    }

    pub(super) fn durable_bytes(&self) -> u64 {
        self.durable_bytes.load(Ordering::Acquire)
    }
}

/// The one place where entries come in. Fills a batch while the writer syncs the one before.
///
/// What it has accepted and not submitted is submitted when it is dropped.
#[derive(Debug)]
pub struct Appender {
    journal: Journal,
    filling: Option<BatchBuilder>,
    end: Offset,
    /// Bytes of all batches, frames included, since the journal was opened.
    accepted_bytes: u64,
    /// What the next batch will probably need: the size of the last one, or half the estimate before.
    estimate_bytes: usize,
    durable: VecDeque<Batch>,
    durable_taken: u64,
}

impl Appender {
    pub(super) fn new(journal: Journal) -> Self {
        let end = journal.shared.durable_end();
        Self {
            journal,
            filling: None,
            end,
            accepted_bytes: 0,
            estimate_bytes: BATCH_BYTES_MIN,
            durable: VecDeque::new(),
            durable_taken: 0,
        }
    }

    fn shared(&self) -> &Arc<Shared> {
        &self.journal.shared
    }

    /// Hands the filled batch to the writer if it is idle; never blocks. Call it once per round of input.
    pub fn submit(&mut self) {
        if self.filling.is_some() && !self.shared().handover.busy.load(Ordering::Acquire) {
            self.hand_over();
        }
    }

    /// The next batch that has become durable, in order; each is returned once.
    pub fn take_durable(&mut self) -> Option<Batch> {
        if self.durable.is_empty() {
            let handover = &self.journal.shared.handover;
            let durable_bytes = handover.durable_bytes();
            if durable_bytes == self.durable_taken {
                return None;
            }
            std::mem::swap(&mut self.durable, &mut handover.locked().durable);
            self.durable_taken = durable_bytes;
        }
        self.durable.pop_front()
    }

    /// Bytes accepted and not yet durable: the shard stops reading its sockets above a limit.
    pub fn backlog_bytes(&self) -> usize {
        let backlog = self.accepted_bytes - self.shared().handover.durable_bytes();
        usize::try_from(backlog).expect("what is in memory fits into a usize")
    }

    /// Whether the journal would refuse, and why. `Full` holds until something was trimmed.
    pub fn refused(&self) -> Option<Refused> {
        let shared = self.shared();
        if shared.is_closed() {
            Some(Refused::Failed)
        } else if shared.full.load(Ordering::Relaxed) {
            Some(Refused::Full)
        } else {
            None
        }
    }

    /// There seemed to be no room for a total of `after` bytes; why the entry is refused, if it is.
    #[cold]
    fn refuse(&self, after: u64) -> Option<Refused> {
        let shared = self.shared();
        if shared.is_closed() {
            return Some(Refused::Failed);
        }
        let was_full = shared.full.swap(true, Ordering::SeqCst);
        if after <= shared.room.load(Ordering::SeqCst) {
            // The writer made room meanwhile. It may have looked before this said that it is full, and would not
            // look again.
            shared.full.store(false, Ordering::SeqCst);
            return None;
        }
        if !was_full {
            tracing::warn!(
                max_bytes = shared.options.max_bytes,
                "the journal is full and refuses entries until a cursor moves on"
            );
            shared.handover.poke();
        }
        Some(Refused::Full)
    }

    fn begin(&mut self, first: &Entry<'_>) -> BatchBuilder {
        let now = self.shared().now();
        // No record may be older than its batch, or it would not keep its time.
        let time = match first {
            Entry::Record(record) => Timestamp(record.time.0.min(now.0)),
            Entry::Control(_) => now,
        };
        let capacity = self.estimate_bytes.max(encoded_bytes(first)).min(u32::MAX as usize);
        self.accepted_bytes += FRAME_BYTES as u64;
        BatchBuilder::new(self.end, time, FRAME_BYTES, capacity)
    }

    fn push(&mut self, entry: &Entry<'_>, bytes: usize) -> Appended {
        let batch_bytes = self.shared().options.batch_bytes;
        let is_older = |batch: &BatchBuilder| match entry {
            Entry::Record(record) => record.time.0 + OLDER_MS < batch.time().0,
            Entry::Control(_) => false,
        };
        let closes = |batch: &BatchBuilder| batch.entries_bytes() + bytes > batch_bytes || is_older(batch);
        if self.filling.as_ref().is_some_and(closes) {
            self.hand_over();
        }
        if self.filling.is_none() {
            self.filling = Some(self.begin(entry));
        }
        let batch = self.filling.as_mut().expect("a batch was just begun");
        let appended = batch.push(entry);
        self.accepted_bytes += bytes as u64;
        self.end = appended.offset.plus(1);
        appended
    }

    fn hand_over(&mut self) {
        if let Some(batch) = self.filling.take() {
            let used = batch.entries_bytes().max(BATCH_BYTES_MIN);
            self.estimate_bytes = used.max(self.estimate_bytes / 2);
            self.shared().handover.put(batch);
        }
    }
}

impl Append for Appender {
    fn append(&mut self, entry: &Entry<'_>) -> Result<Appended, Refused> {
        let bytes = encoded_bytes(entry);
        let kept_free = match entry {
            Entry::Record(_) => self.shared().options.reserve_bytes(),
            Entry::Control(_) => 0,
        };
        let after = self.accepted_bytes + bytes as u64 + kept_free;
        if after > self.shared().room.load(Ordering::Relaxed)
            && let Some(refused) = self.refuse(after)
        {
            return Err(refused);
        }
        Ok(self.push(entry, bytes))
    }

    fn append_freeing(&mut self, entry: &Entry<'_>) -> Result<Appended, Refused> {
        let shared = self.shared();
        if shared.is_closed() {
            return Err(Refused::Failed);
        }
        let bytes = encoded_bytes(entry);
        let is_over = self.accepted_bytes + bytes as u64 > shared.room.load(Ordering::Relaxed);
        // Where the disk has no space, there is none for this either.
        if is_over && shared.no_space().is_some() {
            return Err(Refused::Full);
        }
        Ok(self.push(entry, bytes))
    }

    fn end(&self) -> Offset {
        self.end
    }
}

impl Drop for Appender {
    fn drop(&mut self) {
        self.hand_over();
    }
}
