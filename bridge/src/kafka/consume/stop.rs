//! Tells a thread that it is to end, and whoever asked that it has.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Shared by the thread and whoever ends it.
#[derive(Debug, Default)]
pub(super) struct Stop {
    state: Mutex<Asked>,
    changed: Condvar,
}

#[derive(Clone, Copy, Debug, Default)]
struct Asked {
    /// Until when what is under way may be finished; `None` while nobody asked.
    deadline: Option<Instant>,
    has_ended: bool,
}

impl Stop {
    /// The thread is to end, and may finish what is under way until `deadline`.
    pub(super) fn ask(&self, deadline: Instant) {
        self.change(|asked| asked.deadline = Some(deadline));
    }

    /// Until when what is under way may be finished, once somebody has asked.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).deadline
    }

    /// For the thread: waits for `pause`, or until it is to end.
    pub(super) fn wait(&self, pause: Duration) {
        self.wait_while(pause, |asked| asked.deadline.is_none());
    }

    /// For whoever asked: waits until the thread has ended, for `patience` at most.
    pub(super) fn wait_for_end(&self, patience: Duration) {
        self.wait_while(patience, |asked| !asked.has_ended);
    }

    /// What the thread holds until it ends, also when it panics.
    pub(super) fn end_on_drop(self: &std::sync::Arc<Self>) -> EndOnDrop {
        EndOnDrop(std::sync::Arc::clone(self))
    }

    fn change(&self, change: impl FnOnce(&mut Asked)) {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed.notify_all();
    }

    fn wait_while(&self, patience: Duration, condition: impl Fn(&Asked) -> bool) {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.changed.wait_timeout_while(state, patience, |asked| condition(asked)));
    }
}

/// Says that the thread has ended when it is dropped.
#[derive(Debug)]
pub(super) struct EndOnDrop(std::sync::Arc<Stop>);

impl Drop for EndOnDrop {
    fn drop(&mut self) {
        self.0.change(|asked| asked.has_ended = true);
    }
}
