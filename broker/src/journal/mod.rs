//! The journal: one durable log, many cursors.
//!
//! Entries come in through the one [`Appender`], which fills batches; the [`Writer`] (a thread of its own) writes
//! all filled batches, syncs once and moves the durable end; [`Reader`]s follow up to it; [`Cursor`]s are the named
//! positions below which nothing is needed any more.
//!
//! What always holds: offsets are dense and never used again for other content, also across a crash; an entry
//! before the durable end survives a crash and a power loss (with [`SyncPolicy::Always`]); readers and cursors
//! never pass the durable end; damage below the durable end is refused at opening or at reading, never passed over;
//! after a failed write or sync nothing is accepted until the journal is opened again; nothing is trimmed that a
//! cursor has not passed, unless [`FullPolicy::DropOldest`] says so, loudly and counted.
//!
//! A disk that is full is no failure: what does not fit waits in memory, unacknowledged, and nothing more is accepted
//! until there is space. Nothing that was written before is in doubt then, and the same bytes are written to the same
//! place once they fit. Only a sync that fails for want of space is a failed sync like any other.
//!
//! What entries mean is left to the broker, where files are to the [`Storage`]. Files of other names in the same
//! folder are left alone.

mod appender;
mod count;
mod cursors;
mod export;
mod forgiving;
mod format;
pub mod inspect;
mod memory;
mod reader;
mod readonly;
mod recovery;
pub mod repair;
mod salt;
mod segment;
mod segment_writer;
mod storage;
mod tail;
#[cfg(test)]
mod tests;
mod topics;
mod walk;
mod writer;

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

pub use appender::Appender;
use appender::Handover;
use count::Published;
pub use count::RecordsFrom;
pub use cursors::Cursor;
use cursors::{Cursors, Ends};
pub use export::{Exported, export};
pub use reader::Reader;
pub use readonly::ReadOnlyFolder;
use segment::Segment;
pub use storage::{
    Call, Fault, FileStorage, Kept, MemoryStorage, Storage, StorageFile, is_no_space, read_file, replace_file,
};
use tail::Tail;
pub use topics::TopicSummary;
pub use writer::Writer;

use crate::record::{Offset, Timestamp};

/// A batch is never larger, unless one entry is.
const BATCH_BYTES_MAX: usize = 64 << 20;

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
    /// The oldest segment is trimmed, loudly, and counted for every cursor that had not read it. Only where
    /// [`Journal::keep_from`] forbids that, new entries are refused.
    DropOldest,
}

/// How the journal behaves.
#[derive(Clone, Debug)]
pub struct Options {
    /// A segment is sealed when it has reached this size.
    pub segment_bytes: u64,
    /// The size of all segments together; kept to within the headers and footers of segments and half a segment for
    /// control entries, and what must be written so that a full journal can be read to its end and trimmed (less than a
    /// hundred bytes per entry and QoS 2 subscriber that is behind). At least four segments must fit: `segment_bytes` is lowered to a quarter of it.
    pub max_bytes: u64,
    /// Segments whose newest entry is older are trimmed once every cursor has passed them; with
    /// [`FullPolicy::DropOldest`] also before, loudly and counted.
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

impl Options {
    /// What control entries may take beyond `max_bytes`. A full journal must still learn that a session came back,
    /// and how far it has read, or nothing could ever be trimmed.
    const fn reserve_bytes(&self) -> u64 {
        self.segment_bytes / 2
    }
}

impl Default for Options {
    fn default() -> Self {
        Self {
            segment_bytes: 64 << 20,
            max_bytes: 8 << 30,
            max_age: None,
            full: FullPolicy::Refuse,
            sync: SyncPolicy::Always,
            tail_bytes: 16 << 20,
            batch_bytes: 1 << 20,
        }
    }
}

/// Why a journal cannot be opened. Opening changes nothing that was acknowledged.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The storage failed.
    #[error("cannot {doing} {file}: {error}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// With what.
        file: String,
        /// What the storage says.
        error: io::Error,
    },
    /// Entries that had been acknowledged are not readable, or nobody can know whether they are.
    #[error(
        "{file} is damaged at byte {at}: {found}. To go on without loss restore the journal's folder from a copy; to \
         go on with everything that is still readable run `tidegate journal repair`, which first tells what is lost"
    )]
    Damaged {
        /// Which file.
        file: String,
        /// Where in it.
        at: u64,
        /// What is wrong there.
        found: String,
    },
    /// Written by a newer program.
    #[error("{file} has format version {version}, which this program does not know: run a newer one")]
    Version {
        /// Which file.
        file: String,
        /// Its version.
        version: u32,
    },
    /// Files of two journals are mixed.
    #[error("{file} belongs to another journal: move it out of the folder, or put back what belongs there")]
    Foreign {
        /// Which file.
        file: String,
    },
    /// The writer's thread cannot be started.
    #[error("cannot start the journal's thread: {0}")]
    Thread(io::Error),
}

/// Why a batch cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The storage failed.
    #[error("cannot read {file}: {error}")]
    Io {
        /// Which file.
        file: String,
        /// What the storage says.
        error: io::Error,
    },
    /// What was read is not what was written.
    #[error(
        "{file} is damaged at byte {at}: {found}. Until it is restored from a copy, or `tidegate journal repair` has been \
         run on the stopped appliance, nothing behind it is read"
    )]
    Damaged {
        /// Which file.
        file: String,
        /// Where in it the damaged frame begins.
        at: u64,
        /// What is wrong there.
        found: String,
    },
    /// No segment holds the entry, although it is durable and was not trimmed.
    #[error("no segment holds entry {offset}")]
    Missing {
        /// Which entry.
        offset: Offset,
    },
}

/// Why a cursor cannot be made or moved.
#[derive(Debug, thiserror::Error)]
pub enum CursorError {
    /// The file of cursors cannot be written.
    #[error("cannot save the cursors: {0}")]
    Save(#[from] io::Error),
    /// There is no such cursor.
    #[error("there is no cursor `{0}`")]
    Unknown(String),
    /// The journal holds no such place.
    #[error("the journal holds entries {start} to {end} (the next one), and so no cursor can be at {to}")]
    Outside {
        /// Where it was to be.
        to: Offset,
        /// The oldest entry.
        start: Offset,
        /// The durable end.
        end: Offset,
    },
    /// Not a cursor's name.
    #[error("a cursor's name has 1 to 1024 bytes, not {bytes}")]
    Name {
        /// Its length.
        bytes: usize,
    },
}

/// The version of the files that are written; older ones are read.
pub const FORMAT: u32 = format::VERSION;

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
    /// Entries trimmed or lost before it had read them.
    pub skipped: u64,
    /// For one that is behind: when the oldest entry it has not passed was written, or a little earlier. Told by the batch
    /// if that is in memory, else by when its segment was made.
    pub behind_since: Option<Timestamp>,
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
    /// What happens at the limit, where a cursor does not let it trim.
    pub policy: FullPolicy,
    /// How many segments there are.
    pub segments: usize,
    /// Whether entries are refused because `max_bytes` is reached or the disk is full.
    pub full: bool,
    /// What the storage said, if the disk is full: it goes on by itself when there is space.
    pub no_space: Option<String>,
    /// What failed, if a write or sync failed.
    pub failed: Option<String>,
    /// Every cursor.
    pub cursors: Vec<CursorStatus>,
}

/// Tells the time: the system's clock, or that of a simulation.
pub type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

fn system_clock() -> Clock {
    Arc::new(|| {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Timestamp(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
    })
}

/// A handle to an open journal; cheap to clone, usable from any thread.
///
/// When the last handle and the appender are dropped, the journal closes as with [`Journal::close`].
#[derive(Clone, Debug)]
pub struct Journal {
    shared: Arc<Shared>,
    thread: Arc<WriterThread>,
}

impl Journal {
    /// Opens the journal in `storage`, recovers its tail, and starts the writer thread.
    ///
    /// # Errors
    ///
    /// If the storage fails, or if what is there is not what was acknowledged; see [`OpenError`].
    pub fn open(storage: Arc<dyn Storage>, options: Options) -> Result<(Self, Appender), OpenError> {
        let (journal, appender, writer) = Self::open_stepped(storage, options)?;
        let thread = std::thread::Builder::new().name("journal".to_owned());
        let thread = thread.spawn(move || writer.run()).map_err(OpenError::Thread)?;
        *journal.thread.locked() = Some(thread);
        Ok((journal, appender))
    }

    /// Like [`Journal::open`] without the thread: the caller steps the [`Writer`]. For simulations.
    ///
    /// # Errors
    ///
    /// As [`Journal::open`].
    pub fn open_stepped(
        storage: Arc<dyn Storage>,
        options: Options,
    ) -> Result<(Self, Appender, Writer), OpenError> {
        Self::open_stepped_at(storage, options, system_clock())
    }

    /// Like [`Journal::open_stepped`] with the caller's clock.
    ///
    /// # Errors
    ///
    /// As [`Journal::open`].
    pub fn open_stepped_at(
        storage: Arc<dyn Storage>,
        mut options: Options,
        clock: Clock,
    ) -> Result<(Self, Appender, Writer), OpenError> {
        // Trimming goes by whole segments: with fewer than four of them it could not keep room.
        options.segment_bytes = options.segment_bytes.min(options.max_bytes / 4);
        options.batch_bytes = options.batch_bytes.min(BATCH_BYTES_MAX);
        let recovered = recovery::recover(&*storage, clock())?;
        let start = recovered.segments.front().map_or(recovered.end, |segment| segment.base());
        let shared = Arc::new(Shared {
            id: recovered.id,
            tail: Tail::new(recovered.end, options.tail_bytes),
            storage,
            clock,
            bytes: AtomicU64::new(recovered.segments.iter().map(|segment| segment.file_bytes()).sum()),
            segments: RwLock::new(recovered.segments),
            start: AtomicU64::new(start.0),
            durable_end: AtomicU64::new(recovered.end.0),
            published: Mutex::new(Published { end: recovered.end, records: 0 }),
            synced: AtomicU64::new(recovered.end.0),
            room: AtomicU64::new(0),
            trim_wanted: AtomicU64::new(u64::MAX),
            kept_from: AtomicU64::new(u64::MAX),
            full: AtomicBool::new(false),
            no_space: Mutex::default(),
            closed: AtomicBool::new(false),
            failed: OnceLock::new(),
            handover: Handover::default(),
            cursors: Cursors::restored(recovered.cursors, start),
            notifiers: RwLock::default(),
            options,
        });
        let writer = Writer::new(shared.clone(), recovered.active, recovered.marked);
        let thread = Arc::new(WriterThread { shared: shared.clone(), thread: Mutex::new(None) });
        let journal = Self { shared, thread };
        let appender = Appender::new(journal.clone());
        Ok((journal, appender, writer))
    }

    /// Which journal this is.
    pub fn id(&self) -> JournalId {
        self.shared.id
    }

    /// The oldest kept entry.
    pub fn start(&self) -> Offset {
        self.shared.start()
    }

    /// Every entry before it is on disk. Readers never pass it.
    pub fn durable_end(&self) -> Offset {
        self.shared.durable_end()
    }

    /// A reader at `from` (or at the oldest kept entry, if that is later).
    pub fn reader(&self, from: Offset) -> Reader {
        Reader::new(self.shared.clone(), from)
    }

    /// Calls `notify` from the writer thread each time the durable end has moved, the journal has failed, or it
    /// has room again after it was full. It must be quick and must not block, and must not call this.
    pub fn on_durable(&self, notify: impl Fn(Offset) + Send + Sync + 'static) {
        let mut notifiers = self.shared.notifiers.write().expect("notifiers do not panic");
        notifiers.push(Box::new(notify));
    }

    /// The cursor called `name`; a new one begins at `start`, and is saved when this returns.
    ///
    /// # Errors
    ///
    /// If the name is empty or longer than 1,024 bytes, or a new cursor cannot be saved. Such a cursor holds its
    /// place until the journal is closed; ask again for it.
    pub fn cursor(&self, name: &str, start: StartAt) -> Result<Cursor, CursorError> {
        Cursor::open(&self.shared, name, start)
    }

    /// Lets nothing from `offset` on be trimmed, not even by [`FullPolicy::DropOldest`]: whoever opens the journal again
    /// needs it to know its own state. Holds until it is called again, or the journal is closed.
    pub fn keep_from(&self, offset: Offset) {
        self.shared.kept_from.store(offset.0, Ordering::Release);
        self.shared.handover.poke();
    }

    /// Forgets the cursor called `name`, so that it holds nothing back any more.
    ///
    /// # Errors
    ///
    /// If there is none, or the file cannot be written; then the cursor stays.
    pub fn remove_cursor(&self, name: &str) -> Result<(), CursorError> {
        Cursor::remove(&self.shared, name)
    }

    /// Puts the cursor called `name` at `to`, also back, and saves it; it is made if there is none. `skipped` entries
    /// are counted as lost to it. For tools: nobody may be using the cursor.
    ///
    /// # Errors
    ///
    /// If the journal holds no such place, the name is none, or the file cannot be written.
    pub fn place_cursor(&self, name: &str, to: Offset, skipped: u64) -> Result<(), CursorError> {
        Cursor::place(&self.shared, name, to, skipped)
    }

    /// What it looks like now.
    pub fn status(&self) -> Status {
        let shared = &self.shared;
        let cursors = shared.cursors.all().into_iter().map(|(name, state)| CursorStatus {
            lag_bytes: shared.bytes_from(state.position()),
            position: state.position(),
            skipped: state.skipped(),
            behind_since: shared.written_near(state.position()),
            name,
        });
        Status {
            start: shared.start(),
            durable_end: shared.durable_end(),
            bytes: shared.bytes.load(Ordering::Relaxed),
            max_bytes: shared.options.max_bytes,
            policy: shared.options.full,
            segments: shared.segments().len(),
            full: shared.full.load(Ordering::Relaxed),
            no_space: shared.no_space().clone(),
            failed: shared.failed.get().cloned(),
            cursors: cursors.collect(),
        }
    }

    /// Writes and syncs everything submitted, saves the cursors, ends the writer thread. Submit, or drop the
    /// appender, before: from now on it refuses. A journal that is stepped is ended by [`Writer::finish`] instead.
    pub fn close(&self) {
        self.thread.close();
    }
}

/// The thread of the [`Writer`], if it runs in one.
#[derive(Debug)]
struct WriterThread {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl WriterThread {
    fn locked(&self) -> MutexGuard<'_, Option<JoinHandle<()>>> {
        self.thread.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn close(&self) {
        let Some(thread) = self.locked().take() else { return };
        self.shared.closed.store(true, Ordering::Release);
        self.shared.allow(0);
        self.shared.handover.close();
        if thread.thread().id() == std::thread::current().id() {
            // A notifier held the last handle; a thread cannot wait for itself, and ends without that.
            return;
        }
        if thread.join().is_err() {
            tracing::error!("the journal's thread panicked; what was not durable yet is lost");
        }
        // They may hold handles of this journal, which would hold each other for ever.
        self.shared.notifiers.write().expect("notifiers do not panic").clear();
    }
}

impl Drop for WriterThread {
    fn drop(&mut self) {
        self.close();
    }
}

type Notify = Box<dyn Fn(Offset) + Send + Sync>;

/// What the appender, the writer, readers and cursors share.
struct Shared {
    id: JournalId,
    options: Options,
    storage: Arc<dyn Storage>,
    clock: Clock,
    segments: RwLock<VecDeque<Arc<Segment>>>,
    tail: Tail,
    start: AtomicU64,
    durable_end: AtomicU64,
    published: Mutex<Published>,
    /// As `durable_end`, and synced whatever the policy is.
    synced: AtomicU64,
    /// What all segments take on disk.
    bytes: AtomicU64,
    /// The total of bytes, since the journal was opened, up to which the appender may accept: records up to
    /// [`Options::reserve_bytes`] below it, control entries up to it.
    room: AtomicU64,
    /// A cursor that reaches this offset lets something be trimmed that is in the way.
    trim_wanted: AtomicU64,
    /// Nothing from this offset on is ever dropped.
    kept_from: AtomicU64,
    full: AtomicBool,
    /// What the storage said when the disk was full.
    no_space: Mutex<Option<String>>,
    closed: AtomicBool,
    failed: OnceLock<String>,
    handover: Handover,
    cursors: Cursors,
    notifiers: RwLock<Vec<Notify>>,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "journal {:032x} {}..{}", self.id.0, self.start(), self.durable_end())
    }
}

impl Shared {
    fn now(&self) -> Timestamp {
        (self.clock)()
    }

    fn start(&self) -> Offset {
        Offset(self.start.load(Ordering::Acquire))
    }

    fn durable_end(&self) -> Offset {
        Offset(self.durable_end.load(Ordering::Acquire))
    }

    fn is_failed(&self) -> bool {
        self.failed.get().is_some()
    }

    /// Whether no entry will be accepted any more.
    fn is_closed(&self) -> bool {
        self.is_failed() || self.closed.load(Ordering::Acquire)
    }

    /// Lets the appender accept up to a total of `room` bytes, unless the journal is closed.
    fn allow(&self, room: u64) {
        self.room.store(room, Ordering::SeqCst);
        if self.is_closed() {
            self.room.store(0, Ordering::SeqCst);
        }
    }

    fn fail(&self, reason: String) {
        // Only the first reason counts; what follows is its consequence.
        let _ = self.failed.set(reason);
        self.allow(0);
    }

    fn no_space(&self) -> MutexGuard<'_, Option<String>> {
        self.no_space.lock().expect("no thread panics while it holds a message")
    }

    fn notify(&self) {
        let end = self.durable_end();
        for notify in self.notifiers.read().expect("notifiers do not panic").iter() {
            notify(end);
        }
    }

    fn segments(&self) -> RwLockReadGuard<'_, VecDeque<Arc<Segment>>> {
        self.segments.read().expect("no thread panics while it holds the segments")
    }

    fn segments_mut(&self) -> RwLockWriteGuard<'_, VecDeque<Arc<Segment>>> {
        self.segments.write().expect("no thread panics while it holds the segments")
    }

    /// The oldest segment, unless it is the active one.
    fn oldest_sealed(&self) -> Option<Arc<Segment>> {
        let segments = self.segments();
        (segments.len() > 1).then(|| segments[0].clone())
    }

    /// The segment that holds `offset`, or would if it were already written.
    fn segment_of(&self, offset: Offset) -> Option<Arc<Segment>> {
        let segments = self.segments();
        let at = segments.partition_point(|segment| segment.base() <= offset).checked_sub(1)?;
        Some(segments[at].clone())
    }

    /// The sealed segment that holds `offset`; `None` if that is in the segment that is written to.
    fn sealed_segment_of(&self, offset: Offset) -> Option<Arc<Segment>> {
        let segments = self.segments();
        let at = segments.partition_point(|segment| segment.base() <= offset).checked_sub(1)?;
        (at + 1 < segments.len()).then(|| segments[at].clone())
    }

    /// When the entry at `offset` was written, or a little earlier; `None` at the durable end.
    fn written_near(&self, offset: Offset) -> Option<Timestamp> {
        if offset >= self.durable_end() {
            return None;
        }
        if let Some(batch) = self.tail.at(offset) {
            return Some(batch.time());
        }
        self.segment_of(offset.max(self.start())).map(|segment| segment.header.created)
    }

    /// About how many bytes lie between `offset` and the durable end.
    fn bytes_from(&self, offset: Offset) -> u64 {
        if offset >= self.durable_end() {
            return 0;
        }
        let segments = self.segments();
        let behind = segments.iter().rev().take_while(|segment| segment.end() > offset);
        behind.map(|segment| segment.readable() - segment.position_near(offset)).sum()
    }

    /// Saves all cursors but `without`; where durable does not mean synced, only up to what is synced.
    fn save_cursors(&self, without: Option<&str>) -> io::Result<()> {
        let synced = Offset(self.synced.load(Ordering::Acquire));
        let positions = match self.options.sync {
            SyncPolicy::Always => self.durable_end(),
            SyncPolicy::Interval(_) | SyncPolicy::Never => synced,
        };
        self.cursors.save(&*self.storage, self.id, Ends { synced, positions }, without)
    }
}

fn fresh_id(random: impl Fn() -> u64) -> JournalId {
    JournalId(u128::from(random()) << 64 | u128::from(random()))
}

fn fresh_salt(storage: &dyn Storage) -> u32 {
    u32::try_from(storage.random() >> 32).expect("32 bits are left")
}
