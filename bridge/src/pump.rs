//! Carries one cursor to one destination: cursor + batch + retry for any sink.
//!
//! [`Pump`] is the pure part: what has happened goes in through `handle_*` together with the time, what to do next
//! comes out of [`Pump::poll`]. It holds no socket, file, clock, thread or future, so that a simulation can drive it
//! step by step. [`carry`] is the thin asynchronous shell that runs it over a journal, a cursor and a [`Sink`].
//!
//! What always holds:
//! - The confirmed offset moves only over entries that the destination has confirmed (or rejected for good).
//! - Batches are handed over in offset order; at most [`Limits`] are in flight, one batch always may be.
//! - After an error everything from the confirmed offset on is offered again, in the same order.
//!
//! How a destination stores a batch, and what it cannot store, is the sink's business. What is left behind stays in
//! the journal: there is no second buffer.

mod backoff;
mod carry;
mod reject;
mod report;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::time::Duration;

use tidegate_broker::plant::{self, Bug};
use tidegate_broker::record::{Batch, Offset, Timestamp};

use backoff::Backoff;
pub use backoff::{OPERATOR_PAUSE_MAX, PAUSE_MIN, RETRY_PAUSE_MAX};
pub use carry::{DrainSignal, carry};
pub use reject::{Reject, Rejects};

/// Why a sink did not take a batch.
#[derive(Debug, thiserror::Error)]
pub enum SinkError {
    /// The destination is away or busy; the same batch is offered again after a pause.
    #[error("{0}")]
    Retry(String),
    /// Nothing will change until an operator acts (credentials, rights, a newer schema); tried again rarely.
    #[error("{0}")]
    Operator(String),
    /// The destination is away, but the sink keeps what it has taken in and goes on by itself: nothing is offered
    /// again, and [`Sink::confirmed`] is asked on. Only `confirmed` returns it, once per change of what it says.
    #[error("{0}")]
    Waiting(String),
}

/// A destination that takes batches in order.
///
/// The pump calls `connect` first and again after every error; then `write` for batches in offset order, several
/// before the first is confirmed if the sink allows it, and `confirmed` to wait for progress. A record the
/// destination will never take is a reject: the sink counts and reports it ([`Rejects`]) and goes on.
///
/// The futures of `connect`, `confirmed` and `lost` are dropped and made anew whenever the pump has something else to do
/// (more to write, drain), so none may lose anything that has happened when it is dropped: what must not be
/// interrupted belongs into `write`, which is only dropped when the deadline of a drain has passed.
pub trait Sink: Send {
    /// How many batches may be written before the first of them is confirmed.
    const WINDOW: usize;

    /// How many bytes of entries may be written before the first of them is confirmed; one batch always may.
    const WINDOW_BYTES: usize = 32 << 20;

    /// Connects. Returns the place the destination itself remembers (every entry before it is stored there), if
    /// it keeps one; the pump goes on from there, else from the journal's cursor.
    fn connect(&mut self) -> impl Future<Output = Result<Option<Offset>, SinkError>> + Send;

    /// Hands over the next batch. Returns when the sink has taken it in, which is not yet a confirmation.
    fn write(&mut self, batch: Batch) -> impl Future<Output = Result<(), SinkError>> + Send;

    /// Waits until more is stored at the destination: every entry before the returned offset. Asked only while
    /// something written is not confirmed.
    fn confirmed(&mut self) -> impl Future<Output = Result<Offset, SinkError>> + Send;

    /// Waits until the connection is lost. Asked while everything written is confirmed and there is no more to write,
    /// so that health tells the truth also when nothing flows. A sink that cannot notice never returns.
    fn lost(&mut self) -> impl Future<Output = SinkError> + Send {
        std::future::pending()
    }

    /// Finishes what no confirmation waits for. Called once, when it has drained; dropped when the deadline of the
    /// drain has passed.
    fn close(&mut self) -> impl Future<Output = ()> + Send {
        std::future::ready(())
    }
}

/// How much may be written and not confirmed. When it is reached the pump reads no further: the rest is lag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Batches.
    pub batches: usize,
    /// Bytes of entries; one batch may always be in flight, however large.
    pub bytes: usize,
}

impl Limits {
    /// What the sink `S` asks for.
    pub const fn of<S: Sink>() -> Self {
        Self { batches: S::WINDOW, bytes: S::WINDOW_BYTES }
    }
}

/// What the pump wants done next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Connect the sink; the answer is [`Pump::handle_connected`] or [`Pump::handle_error`].
    Connect,
    /// Read the batch at this offset; the answer is [`Pump::handle_batch`], whose result is to be written, or
    /// [`Pump::handle_end`] if there is none yet.
    Read(Offset),
    /// Nothing, until one of these happens.
    Wait {
        /// The sink confirms more ([`Pump::handle_confirmed`]) or fails ([`Pump::handle_error`]).
        confirmation: bool,
        /// The durable end moves ([`Pump::handle_durable`]).
        entries: bool,
        /// This time is reached.
        until: Option<Duration>,
    },
    /// Nothing ever again: it has drained.
    Stop,
}

/// What was found when the sink connected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Resumed {
    /// Entries the destination does not have and the journal no longer holds.
    pub lost: u64,
    /// Entries by which the destination remembers more than the journal holds: the journal lost its tail, or is
    /// not the one the destination was filled from.
    pub ahead: u64,
}

/// What a confirmation moved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Entries newly confirmed.
    pub entries: u64,
    /// Records among the batches that were completed, control entries not counted.
    pub records: u64,
    /// Entries in gaps of the journal that were passed: they are lost.
    pub lost: u64,
    /// Where the last of those batches ended, if any was completed.
    pub completed: Option<Offset>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Not connected; the next attempt is due at this time.
    Resting(Duration),
    /// Connected, and there may be more to read.
    Reading,
    /// Connected, and everything durable has been read.
    AtEnd,
    /// Drained.
    Stopped,
}

/// A batch that was written and is not wholly confirmed.
#[derive(Clone, Copy, Debug)]
struct InFlight {
    end: Offset,
    bytes: usize,
    records: u64,
    lost: u64,
    time: Timestamp,
}

/// Carries one cursor to one destination; pure.
///
/// `confirmed <= end of every batch in flight <= next`, and `next` is where the last batch in flight ends (or
/// `confirmed` if there is none): nothing is passed over.
#[derive(Debug)]
pub struct Pump {
    phase: Phase,
    limits: Limits,
    confirmed: Offset,
    next: Offset,
    in_flight: VecDeque<InFlight>,
    in_flight_bytes: usize,
    backoff: Backoff,
    drain_until: Option<Duration>,
}

impl Pump {
    /// A pump that has not connected yet and will go on from `cursor`.
    pub fn new(cursor: Offset, limits: Limits) -> Self {
        assert!(limits.batches > 0, "a sink must take at least one batch");
        Self {
            phase: Phase::Resting(Duration::ZERO),
            limits,
            confirmed: cursor,
            next: cursor,
            in_flight: VecDeque::new(),
            in_flight_bytes: 0,
            backoff: Backoff::new(),
            drain_until: None,
        }
    }

    /// Every entry before it is stored at the destination: what the journal's cursor may move to.
    pub fn confirmed(&self) -> Offset {
        if plant::is(Bug::CursorBeyondConfirmed) { self.next } else { self.confirmed }
    }

    /// When the oldest batch that is written and not confirmed was begun.
    pub fn oldest_in_flight(&self) -> Option<Timestamp> {
        self.in_flight.front().map(|batch| batch.time)
    }

    /// Records that are written and not confirmed.
    pub fn records_in_flight(&self) -> u64 {
        self.in_flight.iter().map(|batch| batch.records).sum()
    }

    /// What to do next at the time `now`, counted from any fixed beginning. Asking again changes nothing.
    pub fn poll(&mut self, now: Duration) -> Action {
        if let Some(deadline) = self.drain_until
            && (self.in_flight.is_empty() || deadline <= now)
        {
            self.phase = Phase::Stopped;
        }
        let waiting = Action::Wait {
            confirmation: !self.in_flight.is_empty(),
            entries: self.phase == Phase::AtEnd && self.may_read(),
            until: self.drain_until,
        };
        match self.phase {
            Phase::Resting(due) if due <= now => Action::Connect,
            Phase::Resting(due) => Action::Wait { confirmation: false, entries: false, until: Some(due) },
            Phase::Reading if self.may_read() => Action::Read(self.next),
            Phase::Reading | Phase::AtEnd => waiting,
            Phase::Stopped => Action::Stop,
        }
    }

    /// The sink has connected and remembers `remembered`, if it keeps a place; the journal holds `start..end`.
    pub fn handle_connected(&mut self, remembered: Option<Offset>, start: Offset, end: Offset) -> Resumed {
        assert!(self.in_flight.is_empty(), "a sink connects anew only after what was in flight has failed");
        let wanted = remembered.unwrap_or(self.confirmed);
        let resumed = Resumed { lost: start.since(wanted), ahead: wanted.since(end) };
        self.confirmed = wanted.max(start).min(end);
        let next = if plant::is(Bug::RetryGoesOn) { self.next } else { self.confirmed };
        self.next = next.max(self.confirmed);
        self.phase = Phase::Reading;
        resumed
    }

    /// A batch was read at the offset that [`Action::Read`] named. Returns what the sink is to be handed, and how
    /// many entries the journal had trimmed before they could be read.
    #[must_use = "the batch counts as written"]
    pub fn handle_batch(&mut self, batch: Batch) -> (Option<Batch>, u64) {
        assert!(self.next <= batch.base(), "batches are read and written in offset order");
        let lost = batch.base().since(self.next);
        self.next = batch.end();
        if plant::is(Bug::SkippedBatch) && !self.in_flight.is_empty() {
            return (None, lost);
        }
        self.in_flight_bytes += batch.entries_bytes();
        self.in_flight.push_back(InFlight {
            end: batch.end(),
            bytes: batch.entries_bytes(),
            records: batch.records_count(),
            lost: batch.lost(),
            time: batch.time(),
        });
        (Some(batch), lost)
    }

    /// There was nothing to read: everything durable has been handed over.
    pub fn handle_end(&mut self) {
        match self.phase {
            Phase::Reading => self.phase = Phase::AtEnd,
            Phase::Resting(_) | Phase::AtEnd | Phase::Stopped => {}
        }
    }

    /// The durable end has moved.
    pub fn handle_durable(&mut self) {
        match self.phase {
            Phase::AtEnd => self.phase = Phase::Reading,
            Phase::Resting(_) | Phase::Reading | Phase::Stopped => {}
        }
    }

    /// The destination has stored every entry before `to`.
    pub fn handle_confirmed(&mut self, to: Offset) -> Progress {
        assert!(self.confirmed <= to, "a confirmation cannot be taken back");
        assert!(to <= self.next, "only what was written can be confirmed");
        let mut progress = Progress { entries: to.since(self.confirmed), ..Progress::default() };
        while let Some(batch) = self.in_flight.front().copied().filter(|batch| batch.end <= to) {
            self.in_flight.pop_front();
            self.in_flight_bytes -= batch.bytes;
            progress.records += batch.records;
            progress.lost += batch.lost;
            progress.completed = Some(batch.end);
        }
        if self.confirmed < to {
            self.backoff.reset();
        }
        self.confirmed = to;
        progress
    }

    /// The sink has failed, or the journal could not be read. Says how long the pump rests before it tries again.
    pub fn handle_error(&mut self, error: &SinkError, now: Duration) -> Option<Duration> {
        let pause = match error {
            SinkError::Retry(_) => self.backoff.next(RETRY_PAUSE_MAX),
            SinkError::Operator(_) => self.backoff.next(OPERATOR_PAUSE_MAX),
            SinkError::Waiting(_) => return None,
        };
        self.in_flight.clear();
        self.in_flight_bytes = 0;
        if !plant::is(Bug::RetryGoesOn) {
            self.next = self.confirmed;
        }
        self.phase = Phase::Resting(now + pause);
        Some(pause)
    }

    /// Nothing more is to be read; what is in flight may be confirmed until `deadline`.
    pub fn handle_drain(&mut self, deadline: Duration) {
        self.drain_until = Some(deadline);
    }

    fn may_read(&self) -> bool {
        self.drain_until.is_none()
            && (self.in_flight.is_empty()
                || (self.in_flight.len() < self.limits.batches && self.in_flight_bytes < self.limits.bytes))
    }
}
