//! What the rules denied, over MQTT and HTTP together: everything is counted, some of it is logged. A client that
//! publishes where it may not, again and again, must not fill the disk.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::identity::Identity;
use crate::record::Timestamp;

/// Lines in one second; what comes beyond is counted and told with the next line.
const LINES_PER_SECOND: u32 = 10;

/// Decides which of many like events are logged.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct LogRate {
    second: u64,
    lines: u32,
    unlogged: u64,
}

impl LogRate {
    /// One happened at `now`. `Some` if it is to be logged, with the number of those before it that were not.
    pub(super) fn note(&mut self, now: Duration) -> Option<u64> {
        if now.as_secs() != self.second {
            self.second = now.as_secs();
            self.lines = 0;
        }
        if self.lines >= LINES_PER_SECOND {
            self.unlogged += 1;
            return None;
        }
        self.lines += 1;
        Some(std::mem::take(&mut self.unlogged))
    }
}

/// What was denied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attempt {
    /// A publish or a Will.
    Publish,
    /// A subscription, of which there is nothing to receive.
    Subscribe,
}

/// How much was denied since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DenialCounts {
    /// Publishes and Wills.
    pub publishes: u64,
    /// Subscriptions.
    pub subscriptions: u64,
}

/// Counts all denials and logs some.
#[derive(Debug, Default)]
pub(super) struct Denials {
    log: Mutex<LogRate>,
    publishes: AtomicU64,
    subscriptions: AtomicU64,
}

impl Denials {
    /// `rule` denied `identity` the topic at `now`.
    pub(super) fn note(
        &self,
        identity: &Identity,
        attempt: Attempt,
        topic: &str,
        rule: &str,
        now: Timestamp,
    ) {
        let (action, count) = match attempt {
            Attempt::Publish => ("publish to", &self.publishes),
            Attempt::Subscribe => ("subscribe to", &self.subscriptions),
        };
        count.fetch_add(1, Ordering::Relaxed);
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        let noted = log.note(Duration::from_millis(now.0));
        drop(log);
        let Some(unlogged) = noted else { return };
        if unlogged > 0 {
            tracing::warn!(unlogged, "more denials than are logged");
        }
        let (client, user) = (identity.client(), identity.name());
        tracing::warn!(client, user, action, topic, rule, "denied");
    }

    pub(super) fn counts(&self) -> DenialCounts {
        DenialCounts {
            publishes: self.publishes.load(Ordering::Relaxed),
            subscriptions: self.subscriptions.load(Ordering::Relaxed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_counted_and_not_logged() {
        let mut log = LogRate::default();
        let at = |millis| Duration::from_millis(millis);
        for _ in 0..LINES_PER_SECOND {
            assert_eq!(log.note(at(1_000)), Some(0));
        }
        for _ in 0..500 {
            assert_eq!(log.note(at(1_999)), None);
        }
        assert_eq!(log.note(at(2_000)), Some(500));
        assert_eq!(log.note(at(2_000)), Some(0));
    }
}
