//! Destinations that fail between write and confirm, each with its pump.

use std::collections::VecDeque;
use std::time::Duration;

use tidegate::pump::{Action, Limits, Pump, SinkError};
use tidegate_broker::journal::{Cursor, CursorError, Journal, ReadError, Reader, StartAt};
use tidegate_broker::record::{Batch, Offset};

use super::ledger::{Hasher, Ledger};
use crate::support::random::Random;

/// What a destination promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// At least once: what was written may be stored although it was not confirmed, and comes again (Kafka).
    Repeats,
    /// Rows and position in one transaction (PostgreSQL).
    Transactional,
}

/// The part that survives everything: it runs on another machine.
#[derive(Debug)]
pub(super) struct Destination {
    pub(super) name: &'static str,
    kind: Kind,
    position: Offset,
    /// How often each offset is stored.
    stored: Vec<u8>,
    pub(super) away: bool,
    pub(super) digest: Hasher,
}

impl Destination {
    pub(super) fn new(name: &'static str, kind: Kind) -> Self {
        Self { name, kind, position: Offset(0), stored: Vec::new(), away: false, digest: Hasher::default() }
    }

    fn store(&mut self, batch: &Batch, ledger: &mut Ledger) {
        ledger.see(batch, self.name);
        for (offset, _) in batch.records() {
            self.digest.add(offset.0);
            self.store_one(offset);
        }
        self.position = batch.end();
    }

    fn store_one(&mut self, offset: Offset) {
        let (name, at) = (self.name, offset.0 as usize);
        if self.stored.len() <= at {
            self.stored.resize(at + 1, 0);
        } else {
            assert!(self.stored[at] > 0, "{name} gets offset {offset} after later ones");
        }
        self.stored[at] = self.stored[at].saturating_add(1);
        assert!(
            self.kind == Kind::Repeats || self.stored[at] == 1,
            "{name} has offset {offset} twice, in spite of its transactions"
        );
    }

    pub(super) fn has(&self, offset: Offset) -> bool {
        self.stored.get(offset.0 as usize).is_some_and(|count| *count > 0)
    }
}

/// The part that lives and dies with the appliance.
#[derive(Debug)]
pub(super) struct Carrier {
    pump: Pump,
    cursor: Cursor,
    reader: Reader,
    written: VecDeque<Batch>,
    durable_seen: Offset,
    /// Every entry before it was done with when this life began, as the cursor or the destination says.
    began_at: Offset,
    /// Records that were delivered since.
    delivered: u64,
    /// Entries that were trimmed since, before they could be.
    lost: u64,
}

impl Carrier {
    pub(super) fn new(journal: &Journal, name: &str) -> Result<Self, CursorError> {
        let cursor = journal.cursor(name, StartAt::Oldest)?;
        let pump = Pump::new(cursor.position(), Limits { batches: 4, bytes: 1 << 20 });
        let reader = journal.reader(cursor.position());
        Ok(Self {
            pump,
            began_at: cursor.position(),
            cursor,
            reader,
            written: VecDeque::new(),
            durable_seen: Offset(0),
            delivered: 0,
            lost: 0,
        })
    }

    /// Does one thing that the pump wants done, or lets something happen at the destination.
    pub(super) fn step(
        &mut self,
        destination: &mut Destination,
        journal: &Journal,
        ledger: &mut Ledger,
        now: Duration,
        random: &mut Random,
        calm: bool,
    ) {
        if journal.durable_end() != self.durable_seen {
            self.durable_seen = journal.durable_end();
            self.pump.handle_durable();
        }
        match self.pump.poll(now) {
            Action::Connect if destination.away => self.fail(destination, ledger, now, random),
            Action::Connect => self.connect(destination, journal, ledger),
            Action::Read(offset) => self.read(destination, offset, now),
            Action::Wait { confirmation: true, .. } => {
                if destination.away || (!calm && random.within(0..6) == 0) {
                    self.fail(destination, ledger, now, random);
                } else if let Some(batch) = self.written.pop_front() {
                    destination.store(&batch, ledger);
                    self.delivered += self.pump.handle_confirmed(batch.end()).records;
                }
            }
            Action::Wait { .. } | Action::Stop => {}
        }
        self.cursor.advance(self.pump.confirmed());
    }

    fn connect(&mut self, destination: &Destination, journal: &Journal, ledger: &Ledger) {
        let before = self.pump.confirmed();
        let remembered = (destination.kind == Kind::Transactional).then_some(destination.position);
        let resumed = self.pump.handle_connected(remembered, journal.start(), journal.durable_end());
        assert_eq!(resumed.ahead, 0, "{}: the destination has what the journal lost", destination.name);
        // What it had stored, although nobody heard of that.
        self.delivered += remembered.map_or(0, |remembered| ledger.count(before, remembered));
        self.lost += resumed.lost;
    }

    fn read(&mut self, destination: &Destination, offset: Offset, now: Duration) {
        self.reader.seek(offset);
        match self.reader.next() {
            Ok(Some(batch)) => {
                let (batch, lost) = self.pump.handle_batch(batch);
                self.lost += lost;
                self.written.extend(batch);
            }
            Ok(None) => self.pump.handle_end(),
            // The disk fails now and then; that a durable entry is not there must never be said.
            Err(error @ ReadError::Io { .. }) => {
                self.written.clear();
                let _ = self.pump.handle_error(&SinkError::Retry(error.to_string()), now);
            }
            Err(error) => panic!("{}: {error}", destination.name),
        }
    }

    /// The connection breaks. What was written may have been stored all the same.
    fn fail(
        &mut self,
        destination: &mut Destination,
        ledger: &mut Ledger,
        now: Duration,
        random: &mut Random,
    ) {
        while random.within(0..2) == 0 {
            let Some(batch) = self.written.pop_front() else {
                break;
            };
            destination.store(&batch, ledger);
        }
        self.written.clear();
        let _ = self.pump.handle_error(&SinkError::Retry("gone".into()), now);
    }

    pub(super) fn is_done(&self, journal: &Journal) -> bool {
        self.pump.confirmed() == journal.durable_end()
    }

    /// In = delivered + dropped: what lies before the confirmed offset was carried, or is counted as lost.
    pub(super) fn check_conservation(&self, ledger: &Ledger, name: &str) {
        let records = ledger.count(self.began_at, self.pump.confirmed());
        let (delivered, lost) = (self.delivered, self.lost);
        assert!(
            delivered <= records && records <= delivered + lost,
            "{name}: of {records} records {delivered} were delivered and {lost} entries lost"
        );
    }

    /// Entries that were trimmed before they were carried.
    pub(super) fn skipped(&self) -> u64 {
        self.cursor.skipped()
    }
}
