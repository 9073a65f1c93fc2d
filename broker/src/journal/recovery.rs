//! Opening: finds the end of the journal again and tells a torn tail from damage.
//!
//! Sealed segments are trusted by their footers and must connect. The last segment is read frame by frame. At its
//! first bad frame the journal ends, unless something proves that entries from there on had been synced: a later
//! frame or mark whose `durable_before` lies beyond, a saved cursor, or what the file of cursors knows of the end. Then this is damage, and the journal
//! refuses to open. Otherwise the rest is the torn tail of a crash and is dropped.
//!
//! The limit of this: of the last group of batches that was synced before a crash nothing on disk proves that it
//! was, until the next group is written or an idle second leaves a mark. Damage exactly there looks like a torn
//! tail; so does, after a crash, a file that lost its end together with the proof that lay there. After an orderly
//! close everything is proved.
//!
//! What survived although it may never have been synced is written again and synced before it counts as durable:
//! after a failed sync the operating system may hold pages for clean that are not on disk.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use super::cursors::{Saved, SavedCursor};
use super::format::{
    FRAME_BYTES, Footer, Frame, HeaderFault, Kind, SEGMENT_HEADER_BYTES, SegmentHeader, TRAILER_BYTES,
    find_frame,
};
use super::segment::{self, ActiveSegment, Found, FrameReader, Held, Segment};
use super::storage::{self, Storage, StorageFile};
use super::{JournalId, OpenError, cursors, fresh_id, fresh_salt};
use crate::plant::{self, Bug};
use crate::record::{Batch, Offset, Timestamp};

/// How much is read at once where whole files are searched or copied.
const CHUNK_BYTES: u64 = 1 << 20;

/// What was found.
#[derive(Debug)]
pub(super) struct Recovered {
    pub(super) id: JournalId,
    /// All segments; the last one is the active one.
    pub(super) segments: VecDeque<Arc<Segment>>,
    pub(super) active: ActiveSegment,
    pub(super) end: Offset,
    /// What the newest mark proves to be synced.
    pub(super) marked: Offset,
    pub(super) cursors: Vec<SavedCursor>,
}

/// Finds the journal in `storage`, or makes one.
pub(super) fn recover(storage: &dyn Storage, now: Timestamp) -> Result<Recovered, OpenError> {
    let names = storage.list().map_err(|error| folder_error(storage, "list", error))?;
    let mut bases = Vec::new();
    for name in &names {
        let unfinished = name.strip_suffix(".new");
        if unfinished.is_some_and(|name| name == cursors::FILE || segment::base_in_name(name).is_some()) {
            storage.remove(name).map_err(|error| io_error(storage, "remove", name, error))?;
        }
        bases.extend(segment::base_in_name(name));
    }
    let saved = read_cursors(storage, names.iter().any(|name| name == cursors::FILE))?;
    // A process may have been killed between a rename and this.
    storage.sync_folder().map_err(|error| folder_error(storage, "sync", error))?;
    match bases.pop() {
        None => begin(storage, saved, now),
        Some(last) => resume(storage, &bases, last, saved, now),
    }
}

fn read_cursors(storage: &dyn Storage, exists: bool) -> Result<Option<Saved>, OpenError> {
    if !exists {
        return Ok(None);
    }
    let read = || storage::read_file(&*storage.open(cursors::FILE)?);
    let bytes = read().map_err(|error| io_error(storage, "read", cursors::FILE, error))?;
    cursors::decode(&bytes).map(Some).map_err(|at| OpenError::Damaged {
        file: storage.display(cursors::FILE),
        at: at as u64,
        found: "the saved cursors are not readable, so that nobody knows what was already carried on"
            .to_owned(),
    })
}

fn begin(storage: &dyn Storage, saved: Option<Saved>, now: Timestamp) -> Result<Recovered, OpenError> {
    if let Some(saved) = &saved
        && saved.synced.0 > 0
    {
        let found = format!("it knows of {} entries on disk, but there are no segments", saved.synced);
        return Err(damaged(storage, cursors::FILE, 0, &found));
    }
    let cursors = saved.map(|saved| saved.cursors).unwrap_or_default();
    let id = fresh_id(|| storage.random());
    let header = SegmentHeader { id, base: Offset(0), created: now, salt: fresh_salt(storage) };
    let active = create(storage, header)?;
    let segments = VecDeque::from([active.segment.clone()]);
    Ok(Recovered { id, segments, active, end: Offset(0), marked: Offset(0), cursors })
}

fn resume(
    storage: &dyn Storage,
    sealed: &[Offset],
    last: Offset,
    saved: Option<Saved>,
    now: Timestamp,
) -> Result<Recovered, OpenError> {
    let mut segments = VecDeque::new();
    for base in sealed {
        let segment = read_sealed(storage, *base)?;
        check_connected(storage, segments.back(), &segment.header)?;
        segments.push_back(Arc::new(segment));
    }
    let (header, file) = open_segment(storage, last)?;
    check_connected(storage, segments.back(), &header)?;
    let id = header.id;
    if saved.as_ref().is_some_and(|saved| saved.id != id) {
        return Err(OpenError::Foreign { file: storage.display(cursors::FILE) });
    }
    let scan = Scan::run(storage, header, file)?;
    let rest = scan.search_rest();
    let rest = rest.map_err(|error| io_error(storage, "read", &scan.segment.name, error))?;
    scan.refuse_damage(storage, &rest, saved.as_ref())?;
    let cursors = saved.map(|saved| saved.cursors).unwrap_or_default();
    let (end, marked, is_sealed) = (scan.end, scan.durable_before, scan.footer.is_some());
    let mut active = scan.settle(storage, &rest)?;
    segments.push_back(active.segment.clone());
    if is_sealed {
        // The crash came before the next one was made.
        let header = SegmentHeader { id, base: end, created: now, salt: fresh_salt(storage) };
        active = create(storage, header)?;
        segments.push_back(active.segment.clone());
    }
    Ok(Recovered { id, segments, active, end, marked, cursors })
}

fn create(storage: &dyn Storage, header: SegmentHeader) -> Result<ActiveSegment, OpenError> {
    let name = segment::file_name(header.base);
    ActiveSegment::create(storage, header).map_err(|error| io_error(storage, "make", &name, error))
}

fn open_segment(
    storage: &dyn Storage,
    base: Offset,
) -> Result<(SegmentHeader, Arc<dyn StorageFile>), OpenError> {
    let name = segment::file_name(base);
    let file = storage.open(&name).map_err(|error| io_error(storage, "open", &name, error))?;
    let mut bytes = [0; SEGMENT_HEADER_BYTES];
    let length = file.len().map_err(|error| io_error(storage, "measure", &name, error))?;
    if length < bytes.len() as u64 {
        return Err(damaged(storage, &name, length, "the file ends inside its header"));
    }
    file.read_at(&mut bytes, 0).map_err(|error| io_error(storage, "read", &name, error))?;
    match SegmentHeader::decode(&bytes) {
        Ok(header) if header.base == base => Ok((header, file)),
        Ok(_) => Err(damaged(storage, &name, 32, "the file was renamed: it begins with another entry")),
        Err(HeaderFault::Damaged) => Err(damaged(storage, &name, 0, "its header is not readable")),
        Err(HeaderFault::Version(version)) => {
            Err(OpenError::Version { file: storage.display(&name), version })
        }
    }
}

fn check_connected(
    storage: &dyn Storage,
    before: Option<&Arc<Segment>>,
    header: &SegmentHeader,
) -> Result<(), OpenError> {
    let Some(before) = before else { return Ok(()) };
    let name = segment::file_name(header.base);
    if before.header.id != header.id {
        return Err(OpenError::Foreign { file: storage.display(&name) });
    }
    if before.end() != header.base {
        let found = format!("the segment before it ends at entry {}: a file is missing", before.end());
        return Err(damaged(storage, &name, 0, &found));
    }
    Ok(())
}

/// A segment that is followed by another one, and so must have a whole footer.
fn read_sealed(storage: &dyn Storage, base: Offset) -> Result<Segment, OpenError> {
    let (header, file) = open_segment(storage, base)?;
    let name = segment::file_name(base);
    let read = |error| io_error(storage, "read", &name, error);
    let length = file.len().map_err(read)?;
    let trailer_at = length.saturating_sub(TRAILER_BYTES as u64);
    let no_footer =
        |at| damaged(storage, &name, at, "a later segment exists, but its footer is not readable");
    let mut trailer = [0; TRAILER_BYTES];
    file.read_at(&mut trailer, trailer_at).map_err(read)?;
    let position = Footer::position(&trailer).filter(|at| *at < length);
    let position = position.ok_or_else(|| no_footer(trailer_at))?;
    let Found::Frame(frame, body) =
        FrameReader::new(file, header.salt, position).next(length).map_err(read)?
    else {
        return Err(no_footer(position));
    };
    let footer = Footer::decode(&body).filter(|footer| {
        let ends = footer.position == position && position + frame.bytes() as u64 == length;
        frame.kind == Kind::Footer && ends && footer.end == frame.base
    });
    let footer = footer.ok_or_else(|| no_footer(position))?;
    Ok(Segment::sealed(header, footer, length))
}

/// What lies behind the end of the last segment.
#[derive(Debug)]
struct Rest {
    /// Where a frame proves that every entry before an offset was synced, although the end lies before it.
    proof: Option<(u64, Offset)>,
    /// Up to the last byte that is not zero. Zeros were only reserved.
    torn_bytes: u64,
}

/// The last segment, frame by frame.
#[derive(Debug)]
struct Scan {
    segment: Segment,
    file: Arc<dyn StorageFile>,
    length: u64,
    /// The offset behind the last whole frame, and that frame's end in the file.
    end: Offset,
    position: u64,
    newest: Timestamp,
    /// The most that any frame proves to be synced, and where the frames begin that nothing proves.
    durable_before: Offset,
    doubtful_from: u64,
    /// The end of the last batch, where marks may follow.
    batches_end: u64,
    held: Held,
    footer: Option<Footer>,
}

impl Scan {
    fn run(
        storage: &dyn Storage,
        header: SegmentHeader,
        file: Arc<dyn StorageFile>,
    ) -> Result<Self, OpenError> {
        let segment = Segment::new(header);
        let name = segment.name.clone();
        let length = file.len().map_err(|error| io_error(storage, "measure", &name, error))?;
        let mut frames = FrameReader::new(file.clone(), header.salt, SEGMENT_HEADER_BYTES as u64);
        let mut scan = Self {
            segment,
            file,
            length,
            end: header.base,
            position: SEGMENT_HEADER_BYTES as u64,
            newest: header.created,
            durable_before: header.base,
            doubtful_from: SEGMENT_HEADER_BYTES as u64,
            batches_end: SEGMENT_HEADER_BYTES as u64,
            held: Held::default(),
            footer: None,
        };
        while scan.footer.is_none() {
            match frames.next(length).map_err(|error| io_error(storage, "read", &name, error))? {
                Found::Frame(frame, body) if frame.base == scan.end => scan.take(&frame, &body),
                Found::Bad(Some(frame)) if plant::is(Bug::TornTailKept) && frame.base == scan.end => {
                    scan.take(&frame, &Bytes::new());
                    scan.position = scan.position.min(length);
                    break;
                }
                Found::Frame(..) | Found::Bad(_) | Found::End => break,
            }
            if plant::is(Bug::OffsetReused) && scan.end.0.is_multiple_of(7) {
                break;
            }
        }
        Ok(scan)
    }

    fn take(&mut self, frame: &Frame, body: &Bytes) {
        if frame.durable_before >= frame.base {
            // Entries are proved, not marks: one left out would be a hole between the entries around it.
            self.doubtful_from = self.batches_end;
        }
        self.durable_before = self.durable_before.max(frame.durable_before);
        match frame.kind {
            Kind::Batch | Kind::Gap => {
                self.batches_end = self.position + frame.bytes() as u64;
                self.segment.remember(frame.base, self.position);
                self.newest = Timestamp(self.newest.0.max(frame.time.0));
                // Whoever reads a malformed batch is told; what it holds is not needed for that.
                if let Ok(batch) = Batch::from_encoded(frame.base, frame.count, frame.time, body.clone()) {
                    for topic in batch.topics() {
                        if !plant::is(Bug::TopicSummaryIncomplete) {
                            self.held.topics.note(topic);
                        }
                        self.held.records += 1;
                    }
                }
            }
            Kind::Mark => {}
            Kind::Footer => self.footer = Footer::decode(body),
        }
        self.end = frame.end();
        self.position += frame.bytes() as u64;
    }

    /// Refuses if something proves that entries from the end on had been synced.
    fn refuse_damage(
        &self,
        storage: &dyn Storage,
        rest: &Rest,
        saved: Option<&Saved>,
    ) -> Result<(), OpenError> {
        let name = &self.segment.name;
        let (end, at) = (self.end, self.position);
        let refuse = |proof: String| {
            Err(damaged(storage, name, at, &format!("entry {end} is not readable, but {proof}")))
        };
        let saved_cursors = saved.map_or(&[][..], |saved| &saved.cursors);
        if let Some(cursor) = saved_cursors.iter().find(|cursor| cursor.position > end) {
            let (name, position) = (&cursor.name, cursor.position);
            return refuse(format!("cursor `{name}` had already passed it and stands at {position}"));
        }
        if let Some(saved) = saved.filter(|saved| saved.synced > end) {
            let file = storage.display(cursors::FILE);
            return refuse(format!("{file} proves that every entry before {} was on disk", saved.synced));
        }
        match rest.proof {
            None => Ok(()),
            Some((at, before)) => {
                refuse(format!("byte {at} proves that every entry before {before} was on disk"))
            }
        }
    }

    /// What lies behind the end. A frame's header is proof enough of what it says to be synced.
    fn search_rest(&self) -> io::Result<Rest> {
        let overlap = FRAME_BYTES as u64 - 1;
        let mut rest = Rest { proof: None, torn_bytes: 0 };
        let mut from = self.position;
        while from < self.length && rest.proof.is_none() {
            let bytes = (self.length - from).min(CHUNK_BYTES);
            let mut chunk = BytesMut::zeroed(usize::try_from(bytes).expect("a chunk is small"));
            self.file.read_at(&mut chunk, from)?;
            rest.proof = self.proof_in(&chunk).map(|(at, before)| (from + at as u64, before));
            if let Some(last) = chunk.iter().rposition(|byte| *byte != 0) {
                rest.torn_bytes = from + last as u64 + 1 - self.position;
            }
            from += if bytes == CHUNK_BYTES { bytes - overlap } else { bytes };
        }
        Ok(rest)
    }

    /// Where in `chunk` a frame proves more to be synced than was read.
    fn proof_in(&self, chunk: &[u8]) -> Option<(usize, Offset)> {
        let mut from = 0;
        while let Some(at) = find_frame(chunk, from) {
            let frame = Frame::decode(&chunk[at..], self.segment.header.salt);
            if let Some(frame) = frame.filter(|frame| frame.durable_before > self.end) {
                return Some((at, frame.durable_before));
            }
            from = at + 1;
        }
        None
    }

    /// Drops the torn tail and makes what survived durable.
    fn settle(self, storage: &dyn Storage, rest: &Rest) -> Result<ActiveSegment, OpenError> {
        let name = self.segment.name.clone();
        if rest.torn_bytes > 0 {
            tracing::warn!(
                file = storage.display(&name),
                at = self.position,
                bytes = rest.torn_bytes,
                "dropped the torn tail of a crash: it had never been acknowledged"
            );
        }
        let settled = self.write_again();
        settled.map_err(|error| io_error(storage, "make durable the tail of", &name, error))?;
        let readable = self.footer.as_ref().map_or(self.position, |footer| footer.position);
        self.segment.publish(self.end, readable, self.newest);
        if self.footer.is_some() {
            let _ = self.segment.records.set(self.held.records);
        }
        Ok(ActiveSegment::resume(Arc::new(self.segment), self.file, self.position, self.held))
    }

    fn write_again(&self) -> io::Result<()> {
        // Also where the file seems to end there: the cut, too, may be what a failed sync left undone.
        self.file.set_len(self.position)?;
        let mut from = self.doubtful_from;
        while from < self.position && !plant::is(Bug::TailNotRewritten) {
            let bytes = (self.position - from).min(CHUNK_BYTES);
            let mut chunk = BytesMut::zeroed(usize::try_from(bytes).expect("a chunk is small"));
            self.file.read_at(&mut chunk, from)?;
            self.file.write_at(&chunk, from)?;
            from += bytes;
        }
        self.file.sync()
    }
}

fn damaged(storage: &dyn Storage, name: &str, at: u64, found: &str) -> OpenError {
    OpenError::Damaged { file: storage.display(name), at, found: found.to_owned() }
}

fn io_error(storage: &dyn Storage, doing: &'static str, name: &str, error: io::Error) -> OpenError {
    OpenError::Io { doing, file: storage.display(name), error }
}

fn folder_error(storage: &dyn Storage, doing: &'static str, error: io::Error) -> OpenError {
    OpenError::Io { doing, file: storage.display(""), error }
}
