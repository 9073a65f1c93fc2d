//! What became of every event for an event stream or a WebSocket: in = delivered + dropped + pending.
//!
//! An event is *in* when it is put into a live subscriber's queue, or when a subscriber that catches up has read it. It
//! is *delivered* when the subscriber's connection has taken it over, and *pending* while it lies in the queue, or was
//! given up there and has to be read again. Every change is booked under the lock of the subscriber it is about, so
//! that none is booked before the one it follows from.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::balance::Balance;

/// Why an event is not delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lost {
    /// Its subscriber has gone.
    Disconnected,
    /// It was trimmed from the journal before it could be read again.
    Trimmed,
    /// Its subscriber no longer wants it, or may no longer receive it.
    Unsubscribed,
}

impl Lost {
    const ALL: [Self; 3] = [Self::Disconnected, Self::Trimmed, Self::Unsubscribed];

    const fn name(self) -> &'static str {
        match self {
            Self::Disconnected => "disconnected",
            Self::Trimmed => "trimmed",
            Self::Unsubscribed => "unsubscribed",
        }
    }
}

#[derive(Debug, Default)]
struct Books {
    taken_in: u64,
    delivered: u64,
    lost: [u64; 3],
    pending: u64,
}

/// The books of all subscribers together.
#[derive(Debug, Default)]
pub(super) struct Ledger(Mutex<Books>);

impl Ledger {
    fn books(&self) -> MutexGuard<'_, Books> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An event has become due.
    pub(super) fn take_in(&self) {
        let mut books = self.books();
        books.taken_in += 1;
        books.pending += 1;
    }

    /// Events are handed over: this many of those that were pending, and others that were just read.
    pub(super) fn deliver(&self, pending: u64, read: u64) {
        let mut books = self.books();
        books.taken_in += read;
        books.delivered += pending + read;
        books.pending -= pending;
    }

    /// Pending events are not delivered any more.
    pub(super) fn lose(&self, count: u64, why: Lost) {
        if count > 0 {
            let mut books = self.books();
            books.lost[why as usize] += count;
            books.pending -= count;
        }
    }

    pub(super) fn balance(&self) -> Balance {
        let books = self.books();
        Balance {
            taken_in: books.taken_in,
            delivered: books.delivered,
            dropped: Lost::ALL.map(|why| (why.name(), books.lost[why as usize])).to_vec(),
            pending: books.pending,
        }
    }
}
