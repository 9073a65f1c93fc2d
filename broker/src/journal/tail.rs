//! The newest batches, kept in memory for readers that follow closely.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};

use crate::record::{Batch, Offset};

/// A run of batches up to the last written one; the oldest leave when they take more than the limit together.
///
/// It may hold batches that are not synced yet: the durable end, not this, says what readers may see.
#[derive(Debug)]
pub(super) struct Tail {
    batches: Mutex<Batches>,
    /// The first offset in memory, for readers to see without the lock that they are too far behind.
    start: AtomicU64,
    bytes_max: usize,
}

#[derive(Debug, Default)]
struct Batches {
    queue: VecDeque<(Batch, usize)>,
    bytes: usize,
}

impl Tail {
    pub(super) fn new(end: Offset, bytes_max: usize) -> Self {
        Self { batches: Mutex::default(), start: AtomicU64::new(end.0), bytes_max }
    }

    /// Adds the batch behind the last one, which holds on to `bytes` of memory.
    pub(super) fn push(&self, batch: Batch, bytes: usize) {
        let mut batches = self.locked();
        let mut start = batch.end();
        batches.bytes += bytes;
        batches.queue.push_back((batch, bytes));
        while batches.bytes > self.bytes_max {
            let Some((_, bytes)) = batches.queue.pop_front() else { break };
            batches.bytes -= bytes;
        }
        if let Some((first, _)) = batches.queue.front() {
            start = first.base();
        }
        self.start.store(start.0, Ordering::Release);
    }

    /// The batch that holds `offset`, if it is in memory.
    pub(super) fn at(&self, offset: Offset) -> Option<Batch> {
        if offset.0 < self.start.load(Ordering::Acquire) {
            return None;
        }
        let batches = self.locked();
        let at = batches.queue.partition_point(|(batch, _)| batch.end() <= offset);
        let (batch, _) = batches.queue.get(at)?;
        (batch.base() <= offset).then(|| batch.clone())
    }

    /// How many batches are held, and the memory they take.
    #[cfg(test)]
    pub(super) fn held(&self) -> (usize, usize) {
        let batches = self.locked();
        (batches.queue.len(), batches.bytes)
    }

    fn locked(&self) -> MutexGuard<'_, Batches> {
        self.batches.lock().expect("no thread panics while it holds the tail")
    }
}
