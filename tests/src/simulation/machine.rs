//! The appliance between two crashes: broker core, journal and pumps, stepped by hand.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tidegate_broker::auth::{Access, Anonymous};
use tidegate_broker::broker::{Broker, Limits, Now, Received};
use tidegate_broker::journal::{
    Appender, Cursor, Journal, MemoryStorage, OpenError, Options, Reader, StartAt, Storage, Writer,
};
use tidegate_broker::record::{Append, Offset, Refused, Timestamp};
use tidegate_broker::server::checkpoint;
use tidegate_broker::slots::Key;

use super::sinks::Carrier;

/// Small sizes, so that segments roll and batches are many.
fn options() -> Options {
    Options {
        segment_bytes: 6_000,
        max_bytes: 4 << 20,
        tail_bytes: 3_000,
        batch_bytes: 1_000,
        ..Options::default()
    }
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
    /// Taken, and waiting until every entry before its offset is durable.
    checkpoint: Option<(Offset, Offset, Vec<u8>)>,
    /// What was received and not yet consumed, per connection.
    unread: BTreeMap<Key, Vec<u8>>,
}

impl Machine {
    pub(super) fn start(
        disk: &MemoryStorage,
        clock: &Arc<AtomicU64>,
        seed: u64,
        sinks: &[&str],
    ) -> Result<Self, OpenError> {
        let storage: Arc<dyn Storage> = Arc::new(disk.clone());
        let ticks = Arc::clone(clock);
        let wall = Arc::new(move || Timestamp(ticks.load(Ordering::Relaxed)));
        let (journal, mut appender, writer) =
            Journal::open_stepped_at(Arc::clone(&storage), options(), wall)?;
        let saved = checkpoint::read(&storage).expect("a checkpoint is whole or not there");
        let limits = Limits { in_flight: 5, outgoing_bytes: 400, ..Limits::default() };
        let access = Arc::new(Access::new(Anonymous::Always, None));
        let (mut broker, from) =
            Broker::restore(limits, access, seed, saved.as_deref()).expect("the checkpoint can be read");
        let end = journal.durable_end();
        assert!(from <= end, "a checkpoint is saved only when everything before it is durable");
        let mut reader = journal.reader(from);
        while let Some(batch) = reader.next().expect("a journal that opens can be read") {
            broker.replay(&batch).expect("control entries can be read");
        }
        let millis = clock.load(Ordering::Relaxed);
        let now = Now { monotonic: Duration::from_millis(millis), wall: Timestamp(millis) };
        broker.restored(end, now, &mut appender);
        let cursor = journal.cursor("sessions", StartAt::Oldest).expect("the disk works at the start");
        let carriers = sinks.iter().map(|name| Carrier::new(&journal, name)).collect();
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
            unread: BTreeMap::new(),
        })
    }

    /// Bytes from a client. Says whether the connection lives.
    pub(super) fn receive(&mut self, key: Key, bytes: &[u8], now: Now) -> bool {
        let unread = self.unread.entry(key).or_default();
        unread.extend_from_slice(bytes);
        match self.broker.receive(key, unread, now, &mut self.appender) {
            Received::More { consumed, .. } => {
                unread.drain(..consumed);
                true
            }
            Received::Held { .. } => panic!("the journal has room in this simulation"),
            Received::Closing => {
                self.unread.remove(&key);
                false
            }
        }
    }

    pub(super) fn close(&mut self, key: Key, now: Now) {
        self.unread.remove(&key);
        self.broker.closed(key, now, &mut self.appender);
    }

    /// What the shard does between two waits.
    pub(super) fn round(&mut self, now: Now) {
        self.broker.handle_timeout(now, &mut self.appender);
        self.appender.submit();
        while let Some(batch) = self.appender.take_durable() {
            self.broker.durable(&batch, now, &mut self.appender);
        }
        for _ in 0..20 {
            let Some((key, offset)) = self.broker.poll_read(now, &mut self.appender) else { break };
            self.reader.seek(offset);
            match self.reader.next() {
                Ok(Some(batch)) => self.broker.read(key, &batch, now, &mut self.appender),
                Ok(None) => break,
                Err(_) => self.broker.read_failed(key, now, &mut self.appender),
            }
        }
        self.save_checkpoint();
    }

    /// Takes the bytes that wait for one connection, at most `limit` of them; says whether it is to be closed.
    pub(super) fn transmit(&mut self, key: Key, limit: usize) -> (Vec<u8>, bool) {
        let Some((outbox, closing)) = self.broker.output(key) else { return (Vec::new(), true) };
        let mut bytes: Vec<u8> = outbox.pieces().flat_map(|piece| piece.to_vec()).collect();
        bytes.truncate(limit);
        outbox.advance(bytes.len());
        let closed = closing && outbox.is_empty();
        if !bytes.is_empty() {
            self.broker.written(key, bytes.len());
        }
        (bytes, closed)
    }

    pub(super) fn take_checkpoint(&mut self) {
        let end = self.appender.end();
        let position = self.broker.lowest_position().map_or(end, |lowest| lowest.min(end));
        self.checkpoint = Some((end, position, self.broker.checkpoint(end)));
    }

    fn save_checkpoint(&mut self) {
        let durable_end = self.broker.durable_end();
        if let Some((_, position, body)) = self.checkpoint.take_if(|(offset, ..)| *offset <= durable_end)
            && checkpoint::write(&self.storage, &body).is_ok()
        {
            self.cursor.advance(position);
        }
    }

    pub(super) fn has_failed(&self) -> bool {
        self.appender.refused() == Some(Refused::Failed)
    }

    pub(super) fn is_settled(&self) -> bool {
        self.broker.durable_end() == self.appender.end() && self.broker.reads_waiting() == 0
    }
}
