//! The journal: one durable log, many cursors. (Interface first.)

mod storage;

use std::sync::Arc;
use std::time::Duration;

use crate::record::{Append, Appended, Batch, Entry, Offset, Refused};
pub use storage::{FileStorage, MemoryStorage, Storage, StorageFile};

/// When a batch counts as durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyncPolicy {
    /// After `fdatasync`.
    Always,
    /// After the write; `fdatasync` at least this often.
    Interval(Duration),
    /// After the write; the operating system decides when it reaches the disk.
    Never,
}

/// What happens when the journal has reached its size and the slowest cursor does not let it trim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FullPolicy {
    /// New entries are refused.
    Refuse,
    /// The oldest segment is trimmed, loudly, and counted for every cursor that had not read it.
    DropOldest,
}

/// How the journal behaves.
#[derive(Clone, Debug)]
pub struct Options {
    /// A segment is sealed when it has reached this size.
    pub segment_bytes: u64,
    /// The size of all segments together.
    pub max_bytes: u64,
    /// Segments whose newest entry is older are trimmed once every cursor has passed them.
    pub max_age: Option<Duration>,
    /// What happens at `max_bytes`.
    pub full: FullPolicy,
    /// When a batch counts as durable.
    pub sync: SyncPolicy,
    /// How many bytes of the newest batches stay in memory for readers at the tail.
    pub tail_bytes: usize,
    /// A batch is closed when it has reached this size; an entry larger than this has a batch of its own.
    pub batch_bytes: usize,
}

/// Why a journal cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {}

/// Why a batch cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {}

/// Why a cursor cannot be made or moved.
#[derive(Debug, thiserror::Error)]
pub enum CursorError {}

/// Identifies a journal for as long as its folder lives; random, made when the folder is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct JournalId(pub u128);

/// Where a cursor begins that did not exist before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartAt {
    /// At the oldest kept entry.
    Oldest,
    /// At the durable end.
    End,
    /// At this offset.
    Offset(Offset),
}

/// What a cursor looks like from outside.
#[derive(Clone, Debug)]
pub struct CursorStatus {
    /// Its name.
    pub name: String,
    /// Every entry before it is done.
    pub position: Offset,
    /// Bytes between it and the durable end, from segment sizes.
    pub lag_bytes: u64,
    /// Entries trimmed before it had read them.
    pub skipped: u64,
}

/// What the journal looks like from outside.
#[derive(Clone, Debug)]
pub struct Status {
    /// The oldest kept entry.
    pub start: Offset,
    /// Every entry before it is on disk.
    pub durable_end: Offset,
    /// Size of all segments.
    pub bytes: u64,
    /// The limit of `bytes`.
    pub max_bytes: u64,
    /// How many segments there are.
    pub segments: usize,
    /// Whether entries are refused because `max_bytes` is reached.
    pub full: bool,
    /// What failed, if a write or sync failed.
    pub failed: Option<String>,
    /// Every cursor.
    pub cursors: Vec<CursorStatus>,
}

/// A handle to an open journal; cheap to clone, usable from any thread.
#[derive(Clone, Debug)]
pub struct Journal;

#[allow(unused_variables)]
impl Journal {
    /// Opens the journal in `storage`, recovers its tail, and starts the writer thread.
    pub fn open(storage: Arc<dyn Storage>, options: Options) -> Result<(Self, Appender), OpenError> {
        todo!()
    }

    /// Like [`Journal::open`] without the thread: the caller steps the [`Writer`]. For simulations.
    pub fn open_stepped(
        storage: Arc<dyn Storage>,
        options: Options,
    ) -> Result<(Self, Appender, Writer), OpenError> {
        todo!()
    }

    /// Which journal this is.
    pub fn id(&self) -> JournalId {
        todo!()
    }

    /// The oldest kept entry.
    pub fn start(&self) -> Offset {
        todo!()
    }

    /// Every entry before it is on disk. Readers never pass it.
    pub fn durable_end(&self) -> Offset {
        todo!()
    }

    /// A reader at `from` (or at the oldest kept entry, if that is later).
    pub fn reader(&self, from: Offset) -> Reader {
        todo!()
    }

    /// Calls `notify` from the writer thread each time the durable end has moved, or the journal has failed.
    /// It must be quick and must not block.
    pub fn on_durable(&self, notify: impl Fn(Offset) + Send + Sync + 'static) {
        todo!()
    }

    /// The cursor called `name`; a new one begins at `start`.
    pub fn cursor(&self, name: &str, start: StartAt) -> Result<Cursor, CursorError> {
        todo!()
    }

    /// Forgets the cursor called `name`, so that it holds nothing back any more.
    pub fn remove_cursor(&self, name: &str) -> Result<(), CursorError> {
        todo!()
    }

    /// What it looks like now.
    pub fn status(&self) -> Status {
        todo!()
    }

    /// Writes and syncs everything accepted, saves the cursors, ends the writer thread.
    pub fn close(&self) {
        todo!()
    }
}

/// The one place where entries come in. Fills a batch while the writer syncs the one before.
#[derive(Debug)]
pub struct Appender;

#[allow(unused_variables)]
impl Appender {
    /// Hands the filled batch to the writer if it is idle; never blocks. Call it once per round of input.
    pub fn submit(&mut self) {
        todo!()
    }

    /// The next batch that has become durable, in order; each is returned once.
    pub fn take_durable(&mut self) -> Option<Batch> {
        todo!()
    }

    /// Bytes accepted and not yet durable: the shard stops reading its sockets above a limit.
    pub fn backlog_bytes(&self) -> usize {
        todo!()
    }

    /// Whether the journal would refuse, and why.
    pub fn refused(&self) -> Option<Refused> {
        todo!()
    }
}

#[allow(unused_variables)]
impl Append for Appender {
    fn append(&mut self, entry: &Entry<'_>) -> Result<Appended, Refused> {
        todo!()
    }

    fn end(&self) -> Offset {
        todo!()
    }
}

/// Writes batches and syncs them.
#[derive(Debug)]
pub struct Writer;

impl Writer {
    /// Writes and syncs the submitted batch, if there is one; says whether there was.
    pub fn step(&mut self) -> bool {
        todo!()
    }
}

/// Reads batches from an offset up to the durable end: from memory at the tail, else from segments.
#[derive(Debug)]
pub struct Reader;

#[allow(unused_variables, clippy::should_implement_trait)]
impl Reader {
    /// The next entry that `next` will return.
    pub fn offset(&self) -> Offset {
        todo!()
    }

    /// Goes on from `offset`.
    pub fn seek(&mut self, offset: Offset) {
        todo!()
    }

    /// The next batch, beginning exactly at [`Reader::offset`]; `None` at the durable end.
    pub fn next(&mut self) -> Result<Option<Batch>, ReadError> {
        todo!()
    }
}

/// A named durable reading position. What lies before it is done and may be trimmed.
#[derive(Debug)]
pub struct Cursor;

#[allow(unused_variables)]
impl Cursor {
    /// Every entry before it is done.
    pub fn position(&self) -> Offset {
        todo!()
    }

    /// Moves it forward; it is saved within a second, and at close.
    pub fn advance(&self, to: Offset) {
        todo!()
    }

    /// Saves all cursors now.
    pub fn save(&self) -> Result<(), CursorError> {
        todo!()
    }
}
