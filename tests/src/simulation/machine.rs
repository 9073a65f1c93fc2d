//! The appliance between two crashes: broker core, journal and pumps, stepped by hand as the shard steps them.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::sync::Arc;

use tidegate_broker::auth::{Access, Anonymous};
use tidegate_broker::broker::{Broker, DropReason, Limits, Now, Received, Stats};
use tidegate_broker::journal::{
    Appender, Clock, Cursor, Journal, MemoryStorage, Reader, StartAt, Storage, Writer,
};
use tidegate_broker::record::{Append, Offset, Refused};
use tidegate_broker::server::{checkpoint, reads};
use tidegate_broker::slots::Key;

use super::ledger::Ledger;
use super::plan::Plan;
use super::sinks::Carrier;

/// Reads for sessions that are behind, per round.
const READS_PER_ROUND: usize = 20;
/// A checkpoint is taken after so many entries, so that a journal that drops the oldest never drops what only the
/// checkpoint knows.
const CHECKPOINT_ENTRIES: u64 = 50;

/// What became of bytes from a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Took {
    Everything,
    /// The rest waits until there is room.
    Held,
    /// The connection is at its end.
    Closing,
}

pub(super) struct Machine {
    pub(super) broker: Broker,
    pub(super) journal: Journal,
    pub(super) appender: Appender,
    pub(super) writer: Writer,
    pub(super) carriers: Vec<Carrier>,
    reader: Reader,
    cursor: Cursor,
    storage: Arc<dyn Storage>,
    /// Taken, and waiting until everything in it is durable.
    checkpoint: Option<checkpoint::Taken>,
    checkpoint_at: Offset,
    /// What was received and not yet consumed, per connection.
    unread: BTreeMap<Key, Vec<u8>>,
    told_failed: bool,
}

impl Machine {
    pub(super) fn start(
        disk: &MemoryStorage,
        plan: &Plan,
        clock: Clock,
        now: Now,
        sinks: &[&str],
        ledger: &mut Ledger,
    ) -> Result<Self, String> {
        fn say(error: impl Display) -> String {
            error.to_string()
        }
        let storage: Arc<dyn Storage> = Arc::new(disk.clone());
        let (journal, mut appender, writer) =
            Journal::open_stepped_at(Arc::clone(&storage), plan.options.clone(), clock).map_err(say)?;
        let cursor = journal.cursor("sessions", StartAt::Oldest).map_err(say)?;
        let saved = checkpoint::read(&storage).map_err(say)?;
        let limits = Limits { in_flight: 5, outgoing_bytes: 400, ..Limits::default() };
        let access = Arc::new(Access::new(Anonymous::Always, None));
        let (mut broker, from) =
            Broker::restore(limits, access, storage.random(), saved.as_deref()).map_err(say)?;
        let end = journal.durable_end();
        if from > end {
            return Err(format!("the checkpoint is of {from}, the journal ends at {end}"));
        }
        if from < journal.start() {
            return Err(format!("the checkpoint is of {from}, the journal begins at {}", journal.start()));
        }
        journal.keep_from(from);
        let mut reader = journal.reader(from);
        while let Some(batch) = reader.next().map_err(say)? {
            ledger.see(&batch, "a restart");
            broker.replay(&batch).map_err(say)?;
        }
        broker.restored(end, now, &mut appender);
        let carriers = sinks.iter().map(|name| Carrier::new(&journal, name));
        let carriers = carriers.collect::<Result<_, _>>().map_err(say)?;
        Ok(Self {
            broker,
            journal,
            appender,
            writer,
            carriers,
            reader,
            cursor,
            storage,
            checkpoint: None,
            checkpoint_at: from,
            unread: BTreeMap::new(),
            told_failed: false,
        })
    }

    /// Bytes from a client.
    pub(super) fn receive(&mut self, key: Key, bytes: &[u8], now: Now) -> Took {
        let unread = self.unread.entry(key).or_default();
        unread.extend_from_slice(bytes);
        match self.broker.receive(key, unread, now, &mut self.appender) {
            Received::More { consumed, .. } => {
                unread.drain(..consumed);
                Took::Everything
            }
            Received::Held { consumed } => {
                unread.drain(..consumed);
                Took::Held
            }
            Received::Closing => {
                self.unread.remove(&key);
                Took::Closing
            }
        }
    }

    /// Whether nothing may be read from a connection for now.
    pub(super) fn is_held(&self, key: Key) -> bool {
        self.unread.get(&key).is_some_and(|unread| unread.len() > 2_000)
    }

    pub(super) fn close(&mut self, key: Key, now: Now) {
        self.unread.remove(&key);
        self.broker.closed(key, now, &mut self.appender);
    }

    /// What the shard does between two waits.
    pub(super) fn round(&mut self, now: Now, ledger: &mut Ledger) {
        for _ in 0..self.broker.resuming() {
            if let Some(key) = self.broker.poll_resumed()
                && self.unread.contains_key(&key)
            {
                let _ = self.receive(key, &[], now);
            }
        }
        self.appender.submit();
        while let Some(batch) = self.appender.take_durable() {
            ledger.see(&batch, "the broker");
            self.broker.durable(&batch, now, &mut self.appender);
        }
        for _ in 0..READS_PER_ROUND {
            if !reads::serve_one(&mut self.broker, &mut self.reader, now, &mut self.appender) {
                break;
            }
        }
        self.broker.handle_timeout(now, &mut self.appender);
        self.appender.submit();
        match self.appender.refused() {
            None if self.broker.is_holding() => self.broker.handle_room(),
            Some(Refused::Failed) if !self.told_failed => {
                self.told_failed = true;
                self.broker.journal_failed(now, &mut self.appender);
            }
            None | Some(Refused::Full | Refused::Failed) => {}
        }
        let is_full = self.appender.refused() == Some(Refused::Full);
        if is_full || self.appender.end().since(self.checkpoint_at) > CHECKPOINT_ENTRIES {
            self.take_checkpoint();
        }
        self.save_checkpoint();
        self.broker.audit().unwrap_or_else(|wrong| panic!("the books are wrong: {wrong}"));
    }

    /// Takes the bytes that wait for one connection, at most `limit` of them; says whether it is to be closed.
    pub(super) fn transmit(&mut self, key: Key, limit: usize, bytes: &mut Vec<u8>) -> bool {
        bytes.clear();
        let Some((outbox, closing)) = self.broker.output(key) else {
            return true;
        };
        outbox.slices().for_each(|piece| bytes.extend_from_slice(piece));
        bytes.truncate(limit);
        outbox.advance(bytes.len());
        let closed = closing && outbox.is_empty();
        if !bytes.is_empty() {
            self.broker.written(key, bytes.len());
        }
        closed
    }

    pub(super) fn take_checkpoint(&mut self) {
        let end = self.appender.end();
        if self.checkpoint.is_none() && end > self.checkpoint_at && !self.has_failed() {
            self.checkpoint = Some(checkpoint::Taken::of(&self.broker, end));
            self.checkpoint_at = end;
        }
    }

    fn save_checkpoint(&mut self) {
        let durable_end = self.broker.durable_end();
        if let Some(taken) = self.checkpoint.take_if(|taken| taken.may_be_written(durable_end))
            && checkpoint::write(&self.storage, &taken.body).is_ok()
        {
            self.journal.keep_from(taken.offset);
            self.cursor.advance(taken.position);
        }
    }

    /// Ends in order, as on SIGTERM: clients are told, everything accepted is made durable, the state is saved.
    pub(super) fn end(&mut self, now: Now, ledger: &mut Ledger) {
        self.broker.drain(now, &mut self.appender);
        for _ in 0..8 {
            self.writer.step();
            self.round(now, ledger);
        }
        let end = self.appender.end();
        if !self.has_failed() && self.broker.durable_end() == end {
            self.checkpoint = Some(checkpoint::Taken::of(&self.broker, end));
            self.save_checkpoint();
        }
        self.writer.finish();
    }

    pub(super) fn has_failed(&self) -> bool {
        self.appender.refused() == Some(Refused::Failed)
    }

    pub(super) fn is_settled(&self) -> bool {
        self.broker.durable_end() == self.appender.end() && self.broker.reads_waiting() == 0
    }

    pub(super) fn stats(&self) -> Stats {
        self.broker.stats()
    }

    /// Publishes that were trimmed before a subscriber had them.
    pub(super) fn trimmed(&self) -> u64 {
        self.broker.stats().publishes_dropped.of(DropReason::Trimmed)
    }
}
