//! Segments: files of frames with dense offsets, and reading frames out of them.
//!
//! A name `{base offset, 20 digits}.log` exists only with a whole, synced header behind it: a segment is made under
//! another name and renamed. Every segment but the last is sealed: synced, cut to its length and closed by a
//! footer. What readers may see of a segment is told by [`Segment::end`] and [`Segment::readable`], which only the
//! writer moves.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use bytes::{Buf, Bytes, BytesMut};

use super::format::{FRAME_BYTES, Footer, Frame, FramePlace, Kind, SEGMENT_HEADER_BYTES, SegmentHeader};
use super::storage::{Storage, StorageFile};
use super::topics::{TopicSummary, Topics};
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
        }
    }

    /// A sealed segment.
    pub(super) fn sealed(header: SegmentHeader, footer: Footer, file_bytes: u64) -> Self {
        let segment = Self::new(header);
        segment.publish(footer.end, footer.position, footer.newest);
        segment.file_bytes.store(file_bytes, Ordering::Relaxed);
        *segment.index() = footer.index;
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

/// The base offset in a segment's name; `None` for other files.
pub(super) fn base_in_name(name: &str) -> Option<Offset> {
    let digits = name.strip_suffix(".log")?;
    let all_digits = digits.len() == 20 && digits.bytes().all(|byte| byte.is_ascii_digit());
    all_digits.then(|| digits.parse().ok().map(Offset)).flatten()
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
    /// How much more than needed the file is made longer at a time.
    reserve_bytes: u64,
    topics: Topics,
    /// The file before this one, as long as the operating system may cache it.
    before: Option<Arc<dyn StorageFile>>,
    /// What lies before is no longer cached.
    cached_from: u64,
}

impl ActiveSegment {
    /// Makes a segment; its name is durable when this returns.
    pub(super) fn create(storage: &dyn Storage, header: SegmentHeader) -> io::Result<Self> {
        let segment = Arc::new(Segment::new(header));
        let new = format!("{}.new", segment.name);
        let file = storage.create(&new)?;
        file.write_at(&header.encode(), 0)?;
        file.sync()?;
        storage.rename(&new, &segment.name)?;
        storage.sync_folder()?;
        Ok(Self::resume(segment, file, SEGMENT_HEADER_BYTES as u64, Topics::default()))
    }

    /// Goes on in a segment whose frames end at `position` and hold records with these `topics`.
    pub(super) fn resume(
        segment: Arc<Segment>,
        file: Arc<dyn StorageFile>,
        position: u64,
        topics: Topics,
    ) -> Self {
        segment.file_bytes.store(position, Ordering::Relaxed);
        Self {
            segment,
            file,
            position,
            length: position,
            reserve_bytes: 0,
            topics,
            before: None,
            cached_from: 0,
        }
    }

    pub(super) fn position(&self) -> u64 {
        self.position
    }

    /// Lets the file grow in steps of this size from now on, ahead of what is written.
    pub(super) fn reserve_ahead(&mut self, bytes: u64) {
        self.reserve_bytes = bytes;
    }

    /// Writes a frame behind the last one.
    pub(super) fn write(&mut self, frame: &[u8], base: Offset) -> io::Result<()> {
        let end = self.position + frame.len() as u64;
        if end > self.length && self.reserve_bytes > 0 {
            self.length = end + self.reserve_bytes;
            self.file.reserve(self.length);
        }
        self.file.write_at(frame, self.position)?;
        self.segment.remember(base, self.position);
        self.position = end;
        self.length = self.length.max(end);
        self.segment.file_bytes.store(self.position, Ordering::Relaxed);
        Ok(())
    }

    /// The records of `batch`, which was written, count for the summary of topics.
    pub(super) fn note_topics(&mut self, batch: &Batch) {
        for topic in batch.topics() {
            self.topics.note(topic);
        }
    }

    /// As [`ActiveSegment::note_topics`], of records that are lost.
    pub(super) fn note_unknown_topics(&mut self) {
        self.topics.note_unknown();
    }

    /// Writes a mark: proof for a later recovery that everything before `end` was synced.
    pub(super) fn mark(&mut self, end: Offset, time: Timestamp) -> io::Result<()> {
        let mut frame = [0; FRAME_BYTES];
        let place = FramePlace { base: end, count: 0, time, durable_before: end };
        Frame::seal(Kind::Mark, place, self.segment.header.salt, &mut frame);
        self.write(&frame, end)
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

    /// Makes the next segment and goes on there. This one must be sealed.
    pub(super) fn go_on(&mut self, storage: &dyn Storage, header: SegmentHeader) -> io::Result<()> {
        let next = Self::create(storage, header)?;
        let sealed = std::mem::replace(self, next);
        self.reserve_bytes = sealed.reserve_bytes;
        if let Some(before) = sealed.before {
            before.let_go_before(u64::MAX >> 1);
        }
        self.before = Some(sealed.file);
        Ok(())
    }

    /// Closes the segment with a footer and syncs it; entries from `durable_before` on were not synced before.
    pub(super) fn seal(&mut self, end: Offset, durable_before: Offset, newest: Timestamp) -> io::Result<()> {
        let readable = self.position;
        let index = self.segment.index().clone();
        let topics = TopicSummary::new(self.topics.encode().into());
        let footer = Footer { index, end, newest, position: readable, topics };
        let frame = footer.encode(durable_before, self.segment.header.salt);
        self.write(&frame, end)?;
        self.cut()?;
        self.file.sync()?;
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
