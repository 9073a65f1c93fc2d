//! Segments: files of frames with dense offsets, and reading frames out of them.
//!
//! A name `{base offset, 20 digits}.log` exists only with a whole, synced header behind it: a segment is made under
//! another name and renamed. Every segment but the last is sealed: synced, cut to its length and closed by a
//! footer. What readers may see of a segment is told by [`Segment::end`] and [`Segment::readable`], which only the
//! writer moves.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use bytes::{Buf, Bytes, BytesMut};

use super::format::{FRAME_BYTES, Footer, Frame, FramePlace, Kind, SEGMENT_HEADER_BYTES, SegmentHeader};
use super::storage::{Storage, StorageFile, is_no_space};
use super::topics::{TopicSummary, Topics};
use crate::plant::{self, Bug};
use crate::record::{Batch, Offset, Timestamp};

/// One frame in so many bytes is remembered in the sparse index; a seek reads at most this much in vain.
const INDEX_EVERY_BYTES: u64 = 256 * 1024;
/// About this much of the newest entries stays in the operating system's cache for readers that are a little
/// behind. Whoever is further behind reads from disk in order; and what gigabytes of entries would drive out of
/// the cache, or count against a container's memory, is worth more.
const CACHED_BYTES: u64 = 32 << 20;
const CACHE_STEP_BYTES: u64 = 8 << 20;
/// How much of a segment is read at once.
const READ_BYTES: u64 = 256 * 1024;

/// What is known of a segment's file; shared by the writer and the readers.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) header: SegmentHeader,
    pub(super) name: String,
    end: AtomicU64,
    readable: AtomicU64,
    newest: AtomicU64,
    file_bytes: AtomicU64,
    index: Mutex<Vec<(Offset, u64)>>,
    /// How many records it holds: once it is sealed, and as far as its footer says.
    pub(super) records: OnceLock<u64>,
    /// How many records lie before it, as far as that was needed: see `count`.
    pub(super) ordinal: OnceLock<i64>,
}

impl Segment {
    pub(super) fn new(header: SegmentHeader) -> Self {
        Self {
            header,
            name: file_name(header.base),
            end: AtomicU64::new(header.base.0),
            readable: AtomicU64::new(SEGMENT_HEADER_BYTES as u64),
            newest: AtomicU64::new(header.created.0),
            file_bytes: AtomicU64::new(SEGMENT_HEADER_BYTES as u64),
            index: Mutex::default(),
            records: OnceLock::new(),
            ordinal: OnceLock::new(),
        }
    }

    /// A sealed segment.
    pub(super) fn sealed(header: SegmentHeader, footer: Footer, file_bytes: u64) -> Self {
        let segment = Self::new(header);
        segment.publish(footer.end, footer.position, footer.newest);
        segment.file_bytes.store(file_bytes, Ordering::Relaxed);
        *segment.index() = footer.index;
        if let Some(records) = footer.records {
            let _ = segment.records.set(records.into());
        }
        segment
    }

    pub(super) fn base(&self) -> Offset {
        self.header.base
    }

    /// The offset behind the last entry that readers may see.
    pub(super) fn end(&self) -> Offset {
        Offset(self.end.load(Ordering::Acquire))
    }

    /// The file position behind the last frame that readers may see.
    pub(super) fn readable(&self) -> u64 {
        self.readable.load(Ordering::Acquire)
    }

    /// When the newest entry was written.
    pub(super) fn newest(&self) -> Timestamp {
        Timestamp(self.newest.load(Ordering::Relaxed))
    }

    /// What the file takes on disk.
    pub(super) fn file_bytes(&self) -> u64 {
        self.file_bytes.load(Ordering::Relaxed)
    }

    /// Lets readers see the frames before file position `readable`.
    pub(super) fn publish(&self, end: Offset, readable: u64, newest: Timestamp) {
        self.newest.fetch_max(newest.0, Ordering::Relaxed);
        self.readable.store(readable, Ordering::Release);
        self.end.store(end.0, Ordering::Release);
    }

    /// The position of a frame at or before the one that holds `offset`, not far from it.
    pub(super) fn position_near(&self, offset: Offset) -> u64 {
        let index = self.index();
        match index.partition_point(|(base, _)| *base <= offset).checked_sub(1) {
            Some(at) => index[at].1,
            None => SEGMENT_HEADER_BYTES as u64,
        }
    }

    /// Remembers the frame at `position` if the last one remembered is far enough away.
    pub(super) fn remember(&self, base: Offset, position: u64) {
        let mut index = self.index();
        let last = index.last().map_or(SEGMENT_HEADER_BYTES as u64, |(_, position)| *position);
        if position >= last + INDEX_EVERY_BYTES {
            index.push((base, position));
        }
    }

    fn index(&self) -> std::sync::MutexGuard<'_, Vec<(Offset, u64)>> {
        self.index.lock().expect("no thread panics while it holds an index")
    }
}

pub(super) fn file_name(base: Offset) -> String {
    format!("{base:020}.log")
}

fn unfinished_name(base: Offset) -> String {
    format!("{}.new", file_name(base))
}

/// The base offset in a segment's name; `None` for other files.
pub(super) fn base_in_name(name: &str) -> Option<Offset> {
    let digits = name.strip_suffix(".log")?;
    let all_digits = digits.len() == 20 && digits.bytes().all(|byte| byte.is_ascii_digit());
    all_digits.then(|| digits.parse().ok().map(Offset)).flatten()
}

/// Why something was not written.
#[derive(Debug)]
pub(super) enum WriteError {
    /// The disk is full. Nothing else has changed: the same may be tried again.
    NoSpace(io::Error),
    /// Nothing may be written any more.
    Failed(io::Error),
}

impl WriteError {
    /// From a call that only adds to the disk.
    fn adding(error: io::Error) -> Self {
        if is_no_space(&error) { Self::NoSpace(error) } else { Self::Failed(error) }
    }
}

impl From<io::Error> for WriteError {
    fn from(error: io::Error) -> Self {
        Self::Failed(error)
    }
}

impl From<WriteError> for io::Error {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::NoSpace(error) | WriteError::Failed(error) => error,
        }
    }
}

/// What the frames of a segment hold, as far as it is kept while it is written to.
#[derive(Debug, Default)]
pub(super) struct Held {
    pub(super) topics: Topics,
    pub(super) records: u64,
}

/// The segment that is written to.
#[derive(Debug)]
pub(super) struct ActiveSegment {
    pub(super) segment: Arc<Segment>,
    file: Arc<dyn StorageFile>,
    /// Where the next frame goes.
    position: u64,
    /// How long the file is.
    length: u64,
    /// So much is always reserved behind what is written, and at most twice as much.
    reserve_bytes: u64,
    topics: Topics,
    /// How many records it holds.
    records: u64,
    /// The file before this one, as long as the operating system may cache it.
    before: Option<Arc<dyn StorageFile>>,
    /// What lies before is no longer cached.
    cached_from: u64,
}

impl ActiveSegment {
    /// Makes a segment; its name is durable when this returns.
    pub(super) fn create(storage: &dyn Storage, header: SegmentHeader) -> io::Result<Self> {
        let file = Self::prepare(storage, &header)?;
        Self::adopt(storage, header, file)
    }

    /// Makes the file of a segment under another name: everything that needs space.
    fn prepare(storage: &dyn Storage, header: &SegmentHeader) -> Result<Arc<dyn StorageFile>, WriteError> {
        let file = storage.create(&unfinished_name(header.base)).map_err(WriteError::adding)?;
        file.write_at(&header.encode(), 0).map_err(WriteError::adding)?;
        file.sync().map_err(WriteError::adding)?;
        Ok(file)
    }

    /// Gives a prepared file its name.
    fn adopt(storage: &dyn Storage, header: SegmentHeader, file: Arc<dyn StorageFile>) -> io::Result<Self> {
        let segment = Arc::new(Segment::new(header));
        storage.rename(&unfinished_name(header.base), &segment.name)?;
        if !plant::is(Bug::FolderNotSynced) {
            storage.sync_folder()?;
        }
        Ok(Self::resume(segment, file, SEGMENT_HEADER_BYTES as u64, Held::default()))
    }

    /// Goes on in a segment whose frames end at `position` and hold this.
    pub(super) fn resume(
        segment: Arc<Segment>,
        file: Arc<dyn StorageFile>,
        position: u64,
        held: Held,
    ) -> Self {
        segment.file_bytes.store(position, Ordering::Relaxed);
        Self {
            segment,
            file,
            position,
            length: position,
            reserve_bytes: 0,
            topics: held.topics,
            records: held.records,
            before: None,
            cached_from: 0,
        }
    }

    pub(super) fn position(&self) -> u64 {
        self.position
    }

    /// Lets the file grow ahead of what is written from now on, in steps of this size.
    pub(super) fn reserve_ahead(&mut self, bytes: u64) {
        self.reserve_bytes = bytes;
    }

    /// Writes a frame behind the last one. Some space is always reserved behind it: where that cannot be had, the
    /// frame is not written, and what was reserved before can be given back for what must be saved before anything
    /// can be trimmed.
    pub(super) fn write(&mut self, frame: &[u8], base: Offset) -> Result<(), WriteError> {
        let end = self.position + frame.len() as u64;
        if end + self.reserve_bytes > self.length && self.reserve_bytes > 0 {
            let length = end + 2 * self.reserve_bytes;
            self.added(self.file.reserve(length))?;
            self.length = length;
        }
        self.put(frame, base)
    }

    /// Writes a frame behind the last one, reserving nothing.
    fn put(&mut self, frame: &[u8], base: Offset) -> Result<(), WriteError> {
        self.added(self.file.write_at(frame, self.position))?;
        self.segment.remember(base, self.position);
        self.position += frame.len() as u64;
        self.length = self.length.max(self.position);
        self.segment.file_bytes.store(self.position, Ordering::Relaxed);
        Ok(())
    }

    /// Leaves the file as long as it was if there was no space to make it longer.
    fn added(&self, added: io::Result<()>) -> Result<(), WriteError> {
        let error = match added {
            Ok(()) => return Ok(()),
            Err(error) => WriteError::adding(error),
        };
        if matches!(error, WriteError::NoSpace(_)) {
            self.file.set_len(self.length)?;
        }
        Err(error)
    }

    /// The records of `batch`, which was written, count for the summary of topics; returns how many they are.
    pub(super) fn note_records(&mut self, batch: &Batch) -> u64 {
        let before = self.records;
        for topic in batch.topics() {
            self.topics.note(topic);
            self.records += 1;
        }
        self.records - before
    }

    /// How many records it holds.
    pub(super) fn records(&self) -> u64 {
        self.records
    }

    /// As [`ActiveSegment::note_records`], of records that are lost.
    pub(super) fn note_unknown_topics(&mut self) {
        self.topics.note_unknown();
    }

    /// Writes a mark: proof for a later recovery that everything before `end` was synced.
    pub(super) fn mark(&mut self, end: Offset, time: Timestamp) -> Result<(), WriteError> {
        let mut frame = [0; FRAME_BYTES];
        let place = FramePlace { base: end, count: 0, time, durable_before: end };
        Frame::seal(Kind::Mark, place, self.segment.header.salt, &mut frame);
        self.put(&frame, end)
    }

    pub(super) fn sync(&self) -> io::Result<()> {
        self.file.sync()
    }

    /// Gives back what was reserved and not used. Takes effect with the next sync.
    pub(super) fn cut(&mut self) -> io::Result<()> {
        if self.length > self.position {
            self.file.set_len(self.position)?;
            self.length = self.position;
        }
        Ok(())
    }

    /// What the operating system need not cache any more: the segment before, and this one's front.
    pub(super) fn let_cache_go(&mut self) {
        if self.position < self.cached_from + CACHED_BYTES + CACHE_STEP_BYTES {
            return;
        }
        if let Some(before) = self.before.take() {
            before.let_go_before(u64::MAX >> 1);
        }
        self.cached_from = self.position - CACHED_BYTES;
        self.file.let_go_before(self.cached_from);
    }

    /// Seals this segment, behind whose last entry `header` begins, and goes on in a new one. Everything that needs
    /// space comes first, so that without it nothing has changed.
    pub(super) fn roll(
        &mut self,
        storage: &dyn Storage,
        header: SegmentHeader,
        durable_before: Offset,
        newest: Timestamp,
    ) -> Result<(), WriteError> {
        let file = Self::prepare(storage, &header)?;
        self.seal(header.base, durable_before, newest)?;
        let next = Self::adopt(storage, header, file)?;
        let sealed = std::mem::replace(self, next);
        self.reserve_bytes = sealed.reserve_bytes;
        if let Some(before) = sealed.before {
            before.let_go_before(u64::MAX >> 1);
        }
        self.before = Some(sealed.file);
        Ok(())
    }

    /// Closes the segment with a footer and syncs it; entries from `durable_before` on were not synced before.
    pub(super) fn seal(
        &mut self,
        end: Offset,
        durable_before: Offset,
        newest: Timestamp,
    ) -> Result<(), WriteError> {
        let readable = self.position;
        let index = self.segment.index().clone();
        let topics = TopicSummary::new(self.topics.encode().into());
        let told = if plant::is(Bug::FooterEndOffByOne) { Offset(end.0 - 1) } else { end };
        let records = u32::try_from(self.records).ok();
        let footer = Footer { index, end: told, newest, position: readable, topics, records };
        let frame = footer.encode(durable_before, self.segment.header.salt);
        self.put(&frame, end)?;
        self.cut()?;
        if !plant::is(Bug::SealNotSynced) {
            self.file.sync()?;
        }
        let _ = self.segment.records.set(self.records);
        self.segment.publish(end, readable, newest);
        Ok(())
    }
}

/// What [`FrameReader::next`] found.
#[derive(Debug)]
pub(super) enum Found {
    /// A whole frame and its body.
    Frame(Frame, Bytes),
    /// Bytes that are no whole, undamaged frame; with the header, if that is undamaged.
    Bad(Option<Frame>),
    /// The limit.
    End,
}

/// Reads frames one after the other, many with one call.
#[derive(Debug)]
pub(super) struct FrameReader {
    file: Arc<dyn StorageFile>,
    salt: u32,
    position: u64,
    buffer: Bytes,
}

impl FrameReader {
    pub(super) fn new(file: Arc<dyn StorageFile>, salt: u32, position: u64) -> Self {
        Self { file, salt, position, buffer: Bytes::new() }
    }

    /// Where the next frame begins; a bad one is not passed.
    pub(super) fn position(&self) -> u64 {
        self.position
    }

    /// The next frame, which must end at or before file position `limit`.
    pub(super) fn next(&mut self, limit: u64) -> io::Result<Found> {
        if self.position >= limit {
            return Ok(Found::End);
        }
        if !self.fill(FRAME_BYTES, limit)? {
            return Ok(Found::Bad(None));
        }
        let Some(frame) = Frame::decode(&self.buffer, self.salt) else {
            return Ok(Found::Bad(None));
        };
        if !self.fill(frame.bytes(), limit)?
            || !frame.holds(&self.buffer[FRAME_BYTES..frame.bytes()], self.salt)
        {
            return Ok(Found::Bad(Some(frame)));
        }
        let mut whole = self.buffer.split_to(frame.bytes());
        whole.advance(FRAME_BYTES);
        self.position += frame.bytes() as u64;
        Ok(Found::Frame(frame, whole))
    }

    /// Whether `bytes` from the position on are in the buffer now.
    fn fill(&mut self, bytes: usize, limit: u64) -> io::Result<bool> {
        if self.buffer.len() >= bytes {
            return Ok(true);
        }
        let left = limit - self.position;
        if left < bytes as u64 {
            return Ok(false);
        }
        let take = left.min(READ_BYTES.max(bytes as u64));
        let mut buffer = BytesMut::zeroed(usize::try_from(take).map_err(|_| io::ErrorKind::FileTooLarge)?);
        self.file.read_at(&mut buffer, self.position)?;
        self.buffer = buffer.freeze();
        Ok(true)
    }
}
