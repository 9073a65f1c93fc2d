//! How long to rest after a failure: doubling from [`PAUSE_MIN`], without jitter, begun again after progress.

use std::time::Duration;

/// The pause after the first failure.
pub const PAUSE_MIN: Duration = Duration::from_millis(100);
/// The longest pause while the destination is away or busy.
pub const RETRY_PAUSE_MAX: Duration = Duration::from_secs(10);
/// The longest pause while an operator has to act.
pub const OPERATOR_PAUSE_MAX: Duration = Duration::from_secs(60);

/// Doubling pauses. There is no jitter: one appliance is one client, and a test can say what comes next.
#[derive(Debug)]
pub(super) struct Backoff {
    next: Duration,
}

impl Backoff {
    pub(super) const fn new() -> Self {
        Self { next: PAUSE_MIN }
    }

    /// The pause now, at most `longest`; the next one is twice as long.
    pub(super) fn next(&mut self, longest: Duration) -> Duration {
        let pause = self.next.min(longest);
        self.next = (pause * 2).min(OPERATOR_PAUSE_MAX);
        pause
    }

    /// There was progress: the next pause is the shortest again.
    pub(super) const fn reset(&mut self) {
        self.next = PAUSE_MIN;
    }
}
