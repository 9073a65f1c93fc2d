//! What one transaction holds, and when it is time to commit it; pure.

use std::time::Duration;

use tidegate_broker::record::{Batch, Offset};
use tokio::time::Instant;

/// A transaction takes no further batch once it has so many,
pub(super) const BATCHES_MAX: usize = 256;
/// or so many bytes of entries. As many again may wait for the next one.
const BYTES_MAX: usize = 16 << 20;

/// The batches of one transaction. It is empty until the first is added.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Span {
    batches: usize,
    bytes: usize,
    end: Offset,
    begun: Option<Instant>,
}

impl Span {
    /// `batch` follows the ones before it.
    pub(super) fn add(&mut self, batch: &Batch, now: Instant) {
        self.put(batch.entries_bytes(), batch.end(), now);
    }

    fn put(&mut self, bytes: usize, end: Offset, now: Instant) {
        self.batches += 1;
        self.bytes += bytes;
        self.end = end;
        self.begun.get_or_insert(now);
    }

    /// Whether nothing is in it.
    pub(super) fn is_empty(&self) -> bool {
        self.begun.is_none()
    }

    /// Where its last batch ends.
    pub(super) fn end(&self) -> Offset {
        self.end
    }

    /// Whether it is to be committed: it is full, or has been open for `interval`.
    pub(super) fn is_due(&self, now: Instant, interval: Duration) -> bool {
        self.is_full() || self.due_at(interval).is_some_and(|due| due <= now)
    }

    /// When it has been open for `interval`; `None` while it is empty.
    pub(super) fn due_at(&self, interval: Duration) -> Option<Instant> {
        self.begun.map(|begun| begun + interval)
    }

    fn is_full(&self) -> bool {
        self.batches >= BATCHES_MAX || self.bytes >= BYTES_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_millis(100);

    #[test]
    fn a_transaction_is_due_when_it_is_old_or_full_and_never_when_it_is_empty() {
        let now = Instant::now();
        let later = now + Duration::from_secs(3_600);
        let mut span = Span::default();
        assert!(!span.is_due(later, INTERVAL), "nothing is committed while nothing comes");
        span.put(10, Offset(4), now);
        span.put(10, Offset(9), now + INTERVAL / 2);
        assert!(!span.is_due(now + INTERVAL / 2, INTERVAL));
        assert!(span.is_due(now + INTERVAL, INTERVAL), "its age is that of the first batch");
        assert_eq!(span.end(), Offset(9));
        assert_eq!(span.due_at(INTERVAL), Some(now + INTERVAL));

        span.put(BYTES_MAX, Offset(10), now);
        assert!(span.is_due(now, INTERVAL), "many bytes");
        let mut span = Span::default();
        (1..=BATCHES_MAX as u64).for_each(|end| span.put(1, Offset(end), now));
        assert!(span.is_due(now, INTERVAL), "many batches");
    }
}
