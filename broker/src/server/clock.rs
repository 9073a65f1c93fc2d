//! The time, as the broker core wants it.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::broker::Now;
use crate::record::Timestamp;

/// A clock that began when it was made.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock {
    start: Instant,
}

impl Clock {
    pub(super) fn start() -> Self {
        Self { start: Instant::now() }
    }

    pub(super) fn now(self) -> Now {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        let wall = u64::try_from(wall.as_millis()).unwrap_or(u64::MAX);
        Now { monotonic: self.start.elapsed(), wall: Timestamp(wall) }
    }
}
