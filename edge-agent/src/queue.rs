//! Readings on disk, from the moment they are accepted until the broker has acknowledged them.
//!
//! The queue is a journal with one cursor. What always holds: a reading that [`Queue::next`] returns is on disk;
//! the cursor moves only over readings that are done; after a restart, however it came about, [`Queue::next`]
//! begins at the cursor as it was last saved, so a reading may be sent again but none is skipped.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use tidegate_broker::journal::{
    Appender, Cursor, CursorError, FileStorage, FullPolicy, Journal, OpenError, Options, ReadError, Reader,
    StartAt, SyncPolicy,
};
use tidegate_broker::record::{Append, Batch, Entry, Offset, Properties, Qos, Record, Refused, Timestamp};
use tidegate_broker::topic::TopicName;
use tokio::sync::Notify;

use crate::reading::Reading;

const CURSOR: &str = "broker";
/// The queue is small, and so is the device: nothing is kept in memory that the disk has as well.
const BATCH_BYTES: usize = 16 * 1024;
const TAIL_BYTES: usize = 64 * 1024;

/// Why the queue cannot go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum QueueError {
    #[error("the folder {0} cannot be used: {1}")]
    Folder(String, std::io::Error),
    #[error("the queue cannot be opened: {0}")]
    Open(#[from] OpenError),
    #[error("the queue cannot be read: {0}")]
    Read(#[from] ReadError),
    #[error("the queue's position cannot be saved: {0}")]
    Cursor(#[from] CursorError),
    #[error("the queue could not be written, and accepts nothing until the agent is started again: {0}")]
    Failed(String),
}

/// A reading on its way out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Waiting {
    pub(crate) offset: Offset,
    pub(crate) topic: String,
    pub(crate) payload: Bytes,
}

/// The readings of one device that the broker has not acknowledged.
#[derive(Debug)]
pub(crate) struct Queue {
    journal: Journal,
    appender: Appender,
    cursor: Cursor,
    reader: Reader,
    read: VecDeque<Waiting>,
    device_id: String,
    /// Lost entries before it are counted.
    lost_before: Offset,
}

impl Queue {
    /// Opens the queue in `folder`, which is made if it is missing. `durable` is notified each time more
    /// readings are on disk.
    pub(crate) fn open(
        folder: &Path,
        device_id: &str,
        bytes_max: u64,
        full: FullPolicy,
        durable: Arc<Notify>,
    ) -> Result<Self, QueueError> {
        let shown = || folder.display().to_string();
        std::fs::create_dir_all(folder).map_err(|error| QueueError::Folder(shown(), error))?;
        let storage = FileStorage::open(folder).map_err(|error| QueueError::Folder(shown(), error))?;
        let options = Options {
            segment_bytes: (bytes_max / 16).clamp(64 << 10, 4 << 20),
            max_bytes: bytes_max,
            max_age: None,
            full,
            sync: SyncPolicy::Always,
            tail_bytes: TAIL_BYTES,
            batch_bytes: BATCH_BYTES,
        };
        let (journal, appender) = Journal::open(storage, options)?;
        journal.on_durable(move |_| durable.notify_one());
        let cursor = journal.cursor(CURSOR, StartAt::Oldest)?;
        let reader = journal.reader(cursor.position());
        Ok(Self {
            journal,
            appender,
            cursor,
            reader,
            read: VecDeque::new(),
            device_id: device_id.to_owned(),
            lost_before: Offset(0),
        })
    }

    /// Takes `reading` in; it is not on disk before [`Queue::durable_end`] is behind the offset returned.
    pub(crate) fn append(&mut self, reading: &Reading) -> Result<Offset, Refused> {
        let record = Record {
            time: now(),
            client: &self.device_id,
            topic: TopicName::new(&reading.topic).expect("a reading's topic is valid"),
            properties: Properties::NONE,
            payload: reading.payload.as_bytes(),
            qos: Qos::AtLeastOnce,
            retain: false,
            packet_id: 0,
        };
        Ok(self.appender.append(&Entry::Record(record))?.offset)
    }

    /// Has what was taken in written, unless a write is going on; call it after every round and whenever more
    /// is durable. Fails if the disk did.
    pub(crate) fn settle(&mut self) -> Result<(), QueueError> {
        while self.appender.take_durable().is_some() {}
        self.appender.submit();
        match self.appender.refused() {
            Some(Refused::Failed) => {
                let reason = self.journal.status().failed.unwrap_or_else(|| "no reason is known".to_owned());
                Err(QueueError::Failed(reason))
            }
            Some(Refused::Full) | None => Ok(()),
        }
    }

    /// Every reading before it is on disk.
    pub(crate) fn durable_end(&self) -> Offset {
        self.journal.durable_end()
    }

    /// The offset behind the newest reading taken in, on disk or not.
    pub(crate) fn end(&self) -> Offset {
        self.appender.end()
    }

    /// Bytes taken in and not yet on disk.
    pub(crate) fn unwritten_bytes(&self) -> usize {
        self.appender.backlog_bytes()
    }

    /// How many readings wait for their acknowledgement.
    pub(crate) fn waiting(&self) -> u64 {
        self.appender.end().since(self.cursor.position())
    }

    /// How many readings were dropped unsent because the queue was full.
    pub(crate) fn dropped(&self) -> u64 {
        let status = self.journal.status();
        status.cursors.iter().filter(|cursor| cursor.name == CURSOR).map(|cursor| cursor.skipped).sum()
    }

    /// The next reading to send, if there is one on disk that was not returned yet.
    pub(crate) fn next(&mut self) -> Result<Option<Waiting>, QueueError> {
        while self.read.is_empty() {
            let from = self.reader.offset();
            let Some(batch) = self.reader.next()? else { return Ok(None) };
            if batch.lost() > 0 && batch.end() > self.lost_before {
                // A repair has left them out. After a rewind they are met again and not counted again.
                self.cursor.count_lost(batch.lost());
                self.lost_before = batch.end();
            }
            self.read.extend(waiting_in(&batch, from));
        }
        Ok(self.read.pop_front())
    }

    /// Begins again with the oldest reading that is not done.
    pub(crate) fn rewind(&mut self) {
        self.read.clear();
        self.reader.seek(self.cursor.position());
    }

    /// Every reading before `to` is done. It is saved within a second.
    pub(crate) fn done(&mut self, to: Offset) {
        self.cursor.advance(to);
    }

    /// Writes everything and ends.
    pub(crate) fn close(self) -> Result<(), QueueError> {
        self.cursor.save()?;
        self.journal.close();
        match self.journal.status().failed {
            None => Ok(()),
            Some(reason) => Err(QueueError::Failed(reason)),
        }
    }
}

/// Payloads are copied out: a device sends few and small ones, and must not keep whole batches in memory.
fn waiting_in(batch: &Batch, from: Offset) -> impl Iterator<Item = Waiting> {
    batch.records().filter(move |(offset, _)| *offset >= from).map(|(offset, record)| Waiting {
        offset,
        topic: record.topic.as_str().to_owned(),
        payload: Bytes::copy_from_slice(record.payload),
    })
}

fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(folder: &Path, full: FullPolicy) -> (Queue, Arc<Notify>) {
        let durable = Arc::new(Notify::new());
        (Queue::open(folder, "pi", 1 << 20, full, Arc::clone(&durable)).unwrap(), durable)
    }

    fn reading(number: u64, bytes: usize) -> Reading {
        Reading { topic: "sensors/pi/n".into(), payload: format!("{number:0bytes$}") }
    }

    /// Appends the numbers and waits until they are on disk.
    fn fill(queue: &mut Queue, durable: &Notify, numbers: std::ops::Range<u64>) {
        let mut last = None;
        for number in numbers {
            last = Some(queue.append(&reading(number, 4)).unwrap());
        }
        wait_until_durable(queue, durable, last.unwrap());
    }

    fn wait_until_durable(queue: &mut Queue, durable: &Notify, last: Offset) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let written = async {
                queue.settle().unwrap();
                while queue.durable_end() <= last {
                    durable.notified().await;
                    queue.settle().unwrap();
                }
            };
            tokio::time::timeout(std::time::Duration::from_secs(20), written).await.unwrap();
        });
    }

    fn numbers(queue: &mut Queue) -> Vec<u64> {
        std::iter::from_fn(|| queue.next().unwrap())
            .map(|waiting| std::str::from_utf8(&waiting.payload).unwrap().parse().unwrap())
            .collect()
    }

    #[test]
    fn readings_come_back_in_order_until_they_are_done() {
        let folder = tempfile::tempdir().unwrap();
        let (mut queue, durable) = open(folder.path(), FullPolicy::Refuse);
        fill(&mut queue, &durable, 0..100);
        assert_eq!(numbers(&mut queue), (0..100).collect::<Vec<_>>());
        queue.done(Offset(40));
        queue.rewind();
        assert_eq!(queue.waiting(), 60);
        assert_eq!(numbers(&mut queue), (40..100).collect::<Vec<_>>());
        queue.close().unwrap();

        let (mut queue, _) = open(folder.path(), FullPolicy::Refuse);
        assert_eq!(numbers(&mut queue), (40..100).collect::<Vec<_>>());
    }

    #[test]
    fn a_full_queue_refuses_or_drops_the_oldest_as_it_was_told() {
        for full in [FullPolicy::Refuse, FullPolicy::DropOldest] {
            let folder = tempfile::tempdir().unwrap();
            let (mut queue, durable) = open(folder.path(), full);
            let mut accepted = 0;
            // Three times what fits.
            for number in 0..3_000 {
                match queue.append(&reading(number, 1_000)) {
                    Ok(offset) => {
                        wait_until_durable(&mut queue, &durable, offset);
                        accepted += 1;
                    }
                    Err(Refused::Full) => break,
                    Err(Refused::Failed) => panic!("the disk failed"),
                }
            }
            let kept = numbers(&mut queue);
            match full {
                FullPolicy::Refuse => {
                    assert!((700..1_100).contains(&accepted), "{accepted} readings of 1 kB filled 1 MiB");
                    assert_eq!(kept, (0..accepted).collect::<Vec<_>>());
                    assert_eq!(queue.dropped(), 0);
                }
                FullPolicy::DropOldest => {
                    assert_eq!(accepted, 3_000);
                    assert!(kept.len() < 1_100, "{} readings of 1 kB are kept in 1 MiB", kept.len());
                    assert_eq!(kept, (3_000 - kept.len() as u64..3_000).collect::<Vec<_>>());
                    assert_eq!(queue.dropped(), 3_000 - kept.len() as u64);
                }
            }
        }
    }
}
