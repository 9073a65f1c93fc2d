//! Destinations that fail between write and confirm, each with its pump.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use tidegate::pump::{Action, Limits, Pump, SinkError};
use tidegate_broker::journal::{Cursor, Journal, ReadError, Reader, StartAt};
use tidegate_broker::record::{Batch, Offset};

use super::world::Seen;
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
    pub(super) kind: Kind,
    position: Offset,
    pub(super) stored: Vec<Seen>,
    pub(super) away: bool,
}

impl Destination {
    pub(super) const fn new(name: &'static str, kind: Kind) -> Self {
        Self { name, kind, position: Offset(0), stored: Vec::new(), away: false }
    }

    fn store(&mut self, batch: &Batch) {
        self.stored.extend(batch.records().map(|(offset, record)| Seen::of(offset, &record)));
        self.position = batch.end();
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
}

impl Carrier {
    pub(super) fn new(journal: &Journal, name: &str) -> Self {
        let cursor = journal.cursor(name, StartAt::Oldest).expect("the disk works at the start");
        let pump = Pump::new(cursor.position(), Limits { batches: 4, bytes: 1 << 20 });
        let reader = journal.reader(cursor.position());
        Self { pump, cursor, reader, written: VecDeque::new(), durable_seen: Offset(0) }
    }

    /// Does one thing that the pump wants done, or lets something happen at the destination.
    pub(super) fn step(
        &mut self,
        destination: &mut Destination,
        journal: &Journal,
        now: Duration,
        random: &mut Random,
        calm: bool,
    ) {
        if journal.durable_end() != self.durable_seen {
            self.durable_seen = journal.durable_end();
            self.pump.handle_durable();
        }
        match self.pump.poll(now) {
            Action::Connect if destination.away => self.fail(destination, now, random),
            Action::Connect => {
                let remembered = (destination.kind == Kind::Transactional).then_some(destination.position);
                let resumed = self.pump.handle_connected(remembered, journal.start(), journal.durable_end());
                assert_eq!(
                    resumed.lost, 0,
                    "{}: the journal was trimmed below its slowest cursor",
                    destination.name
                );
                assert_eq!(
                    resumed.ahead, 0,
                    "{}: the destination has what the journal lost",
                    destination.name
                );
            }
            Action::Read(offset) => self.read(destination, offset, now),
            Action::Wait { confirmation: true, .. } => {
                if destination.away || (!calm && random.within(0..6) == 0) {
                    self.fail(destination, now, random);
                } else {
                    self.confirm(destination);
                }
            }
            Action::Wait { .. } | Action::Stop => {}
        }
        self.cursor.advance(self.pump.confirmed());
    }

    fn read(&mut self, destination: &Destination, offset: Offset, now: Duration) {
        self.reader.seek(offset);
        match self.reader.next() {
            Ok(Some(batch)) => {
                let (batch, lost) = self.pump.handle_batch(batch);
                assert_eq!(lost, 0, "the journal was trimmed below its slowest cursor");
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

    fn confirm(&mut self, destination: &mut Destination) {
        if let Some(batch) = self.written.pop_front() {
            destination.store(&batch);
            self.pump.handle_confirmed(batch.end());
        }
    }

    /// The connection breaks. What was written may have been stored all the same.
    fn fail(&mut self, destination: &mut Destination, now: Duration, random: &mut Random) {
        while random.within(0..2) == 0 {
            let Some(batch) = self.written.pop_front() else { break };
            destination.store(&batch);
        }
        self.written.clear();
        let _ = self.pump.handle_error(&SinkError::Retry("gone".into()), now);
    }

    pub(super) fn is_done(&self, journal: &Journal) -> bool {
        self.pump.confirmed() == journal.durable_end()
    }
}

/// First occurrences of each payload, in the order in which they were stored.
pub(super) fn first_occurrences(stored: &[Seen]) -> Vec<&Seen> {
    let mut known = BTreeMap::new();
    stored.iter().filter(|seen| known.insert(&seen.payload, ()).is_none()).collect()
}
