//! One subscriber, as the hub and its own task see it: its phase, what it wants, its bounded queue.

use std::collections::VecDeque;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::extract::ws::Utf8Bytes;
use bytes::Bytes;
use tidegate_broker::record::{Offset, Timestamp};
use tokio::sync::{Notify, mpsc};

use super::caller::Caller;
use super::encode;
use super::interest::Interest;

/// What an event in a queue costs besides its bytes.
const QUEUED_EVENT_BYTES: usize = 64;
/// Frames besides records that wait for one WebSocket; more are not sent to it.
const CONTROL_FRAMES_MAX: usize = 64;

/// How a subscriber is connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    EventStream,
    WebSocket,
}

/// Where a subscriber's records come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// From the follower; records before `from` are not for it.
    Live { from: Offset },
    /// From the journal; this is the next offset to read.
    CatchingUp(Offset),
}

/// What the follower and the subscriber's own task share.
#[derive(Debug)]
pub(super) struct State {
    pub(super) phase: Phase,
    pub(super) interest: Arc<Interest>,
    queue: VecDeque<(Offset, Bytes)>,
    queued_bytes: usize,
    /// Events that were due and have to be read again.
    pub(super) owed: u64,
    /// Whether entries were trimmed before they were read.
    pub(super) has_missed: bool,
}

impl State {
    /// Takes events out of the queue, at least one if there is one, up to about `bytes_max`.
    pub(super) fn take(&mut self, bytes_max: usize) -> Vec<Bytes> {
        let mut taken = Vec::new();
        let mut bytes = 0;
        while bytes < bytes_max
            && let Some((_, event)) = self.queue.pop_front()
        {
            bytes += event.len();
            self.queued_bytes -= event.len() + QUEUED_EVENT_BYTES;
            taken.push(event);
        }
        taken
    }

    pub(super) fn first_queued(&self) -> Option<Offset> {
        self.queue.front().map(|(offset, _)| *offset)
    }

    /// How many events wait.
    pub(super) fn queued(&self) -> usize {
        self.queue.len()
    }

    /// Gives up what is queued, if anything is, and goes back to the first of it; says whether it did.
    pub(super) fn give_up_queue(&mut self) -> bool {
        let Some(first) = self.first_queued() else { return false };
        self.owed += self.queue.len() as u64;
        self.queue = VecDeque::new();
        self.queued_bytes = 0;
        self.phase = Phase::CatchingUp(first);
        true
    }

    /// Queues a live event; when it does not fit, gives up the queue and says so.
    pub(super) fn push(&mut self, offset: Offset, event: Bytes, bytes_max: usize) -> Pushed {
        let cost = event.len() + QUEUED_EVENT_BYTES;
        if self.queued_bytes + cost > bytes_max && self.give_up_queue() {
            self.owed += 1;
            return Pushed::FellBehind;
        }
        self.queued_bytes += cost;
        self.queue.push_back((offset, event));
        Pushed::Queued
    }
}

/// What became of a live event.
pub(super) enum Pushed {
    Queued,
    FellBehind,
}

/// One subscriber, seen from the hub.
#[derive(Debug)]
pub(super) struct Subscriber {
    pub(super) id: u64,
    pub(super) kind: Kind,
    pub(super) caller: Caller,
    pub(super) connected_at: Timestamp,
    pub(super) delivered: AtomicU64,
    pub(super) wake: Notify,
    state: Mutex<State>,
    control: Option<mpsc::Sender<Utf8Bytes>>,
}

impl Subscriber {
    /// One that begins with the record at `from`. WebSockets also get a receiver for frames that are no records.
    pub(super) fn new(
        id: u64,
        kind: Kind,
        caller: Caller,
        interest: Interest,
        from: Offset,
    ) -> (Arc<Self>, mpsc::Receiver<Utf8Bytes>) {
        let (control, frames) = mpsc::channel(CONTROL_FRAMES_MAX);
        let control = match kind {
            Kind::EventStream => None,
            Kind::WebSocket => Some(control),
        };
        let state = State {
            phase: Phase::CatchingUp(from),
            interest: Arc::new(interest),
            queue: VecDeque::new(),
            queued_bytes: 0,
            owed: 0,
            has_missed: false,
        };
        let subscriber = Self {
            id,
            kind,
            caller,
            connected_at: encode::now(),
            delivered: AtomicU64::new(0),
            wake: Notify::new(),
            state: Mutex::new(state),
            control,
        };
        (Arc::new(subscriber), frames)
    }

    /// Offers a frame that is no record; `None` if this kind takes none.
    pub(super) fn offer(&self, frame: &Utf8Bytes) -> Option<bool> {
        self.control.as_ref().map(|control| control.try_send(frame.clone()).is_ok())
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn client_id(&self) -> String {
        match self.kind {
            Kind::EventStream => format!("stream_{}", self.id),
            Kind::WebSocket => format!("client_{}", self.id),
        }
    }
}
