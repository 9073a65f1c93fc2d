//! Reading batches back: from memory at the tail, else from segments.

use std::io;
use std::sync::Arc;

use super::format::{self, Footer, Frame, Kind};
use super::segment::{Found, FrameReader, Segment};
use super::{ReadError, Shared, TopicSummary};
use crate::plant::{self, Bug};
use crate::record::{Batch, Offset};

/// Reads batches from an offset up to the durable end: from memory at the tail, else from segments.
///
/// Batches come in order and without gaps, each beginning where the one before ended. Only where entries were
/// trimmed before they were read does a reader go on at the oldest kept one, and counts what it missed. What a repair
/// could not save comes as a [gap](Batch::is_gap), so that everybody who reads passes it and can count it.
#[derive(Debug)]
pub struct Reader {
    shared: Arc<Shared>,
    offset: Offset,
    skipped: u64,
    place: Option<Place>,
    /// The summary that was asked for last.
    summary: Option<(Offset, TopicSummary)>,
}

/// Where in which segment a reader is.
#[derive(Debug)]
struct Place {
    segment: Arc<Segment>,
    frames: FrameReader,
    /// The batch in front of `frames`: whoever takes only a part of it seeks back into it.
    last: Option<Batch>,
}

impl Place {
    /// Whether `offset` is in the last batch or just behind it.
    fn is_near(&self, offset: Offset) -> bool {
        self.last.as_ref().is_some_and(|last| last.base() <= offset && offset <= last.end())
    }
}

#[allow(clippy::should_implement_trait)]
impl Reader {
    pub(super) fn new(shared: Arc<Shared>, from: Offset) -> Self {
        let offset = from.max(shared.start());
        Self { shared, offset, skipped: 0, place: None, summary: None }
    }

    /// The next entry that `next` will return.
    pub fn offset(&self) -> Offset {
        self.offset
    }

    /// Entries that were trimmed before this reader had read them.
    pub fn skipped(&self) -> u64 {
        self.skipped
    }

    /// Goes on from `offset`; what lies in between does not count as skipped. Beyond the durable end it waits
    /// until the durable end has come that far. Seeking inside the batch that was returned last costs nothing.
    pub fn seek(&mut self, offset: Offset) {
        self.offset = offset;
        self.place.take_if(|place| !place.is_near(offset));
    }

    /// The next batch, beginning exactly at [`Reader::offset`]; `None` at the durable end.
    ///
    /// Reads from disk when it is not at the tail: do not call it where blocking is forbidden.
    ///
    /// # Errors
    ///
    /// If the segment cannot be read or is damaged. The reader stays where it is.
    pub fn next(&mut self) -> Result<Option<Batch>, ReadError> {
        loop {
            // First, for it may bring the reader to the durable end.
            self.skip_trimmed();
            if self.offset >= self.shared.durable_end() && !plant::is(Bug::ReadPastDurableEnd) {
                return Ok(None);
            }
            if let Some(batch) = self.shared.tail.at(self.offset) {
                self.place = None;
                return Ok(Some(self.pass(&batch)));
            }
            if plant::is(Bug::ReadPastDurableEnd) && self.offset >= self.shared.durable_end() {
                return Ok(None);
            }
            match self.read() {
                Ok(batch) => return Ok(Some(self.pass(&batch))),
                Err(error) => {
                    self.place = None;
                    // A segment that was trimmed meanwhile is no error: the loop goes on behind it.
                    if self.offset >= self.shared.start() {
                        return Err(error);
                    }
                }
            }
        }
    }

    /// Seeks over sealed segments of which `wanted` says that nothing in them is looked for. Returns how far it is
    /// known what `wanted` says: up to there it need not be asked again for the same.
    ///
    /// Reads a few kilobytes per segment. What cannot be read is not passed over, so that [`Reader::next`] tells why;
    /// nor is what was trimmed, so that whoever misses it learns of that from there.
    pub fn pass_over(&mut self, wanted: impl Fn(&TopicSummary) -> bool) -> Offset {
        loop {
            if self.offset < self.shared.start() {
                return self.offset;
            }
            let Some(segment) = self.shared.sealed_segment_of(self.offset) else {
                return self.offset.max(self.shared.durable_end());
            };
            match self.summary_of(&segment) {
                Some(summary) if !wanted(&summary) => self.seek(segment.end()),
                Some(_) | None => return segment.end(),
            }
        }
    }

    fn summary_of(&mut self, segment: &Segment) -> Option<TopicSummary> {
        if let Some((base, summary)) = &self.summary
            && *base == segment.base()
        {
            return Some(summary.clone());
        }
        let file = self.shared.storage.open(&segment.name).ok()?;
        let mut frames = FrameReader::new(file, segment.header.salt, segment.readable());
        let Ok(Found::Frame(frame, body)) = frames.next(segment.file_bytes()) else { return None };
        let footer = Footer::decode(&body).filter(|_| frame.kind == Kind::Footer)?;
        self.summary = Some((segment.base(), footer.topics.clone()));
        Some(footer.topics)
    }

    fn pass(&mut self, batch: &Batch) -> Batch {
        let batch = batch.starting_at(self.offset);
        self.offset = batch.end();
        batch
    }

    fn skip_trimmed(&mut self) {
        let start = self.shared.start();
        if self.offset < start {
            self.skipped += start.since(self.offset);
            self.seek(start);
        }
    }

    /// The batch that holds the offset, from its segment.
    fn read(&mut self) -> Result<Batch, ReadError> {
        loop {
            let place = match &mut self.place {
                Some(place) => place,
                None => self.place.insert(locate(&self.shared, self.offset)?),
            };
            if let Some(last) = &place.last
                && self.offset < last.end()
            {
                return Ok(last.clone());
            }
            let (segment, at) = (&place.segment, place.frames.position());
            let damaged = |found: String| ReadError::Damaged {
                file: self.shared.storage.display(&segment.name),
                at,
                found,
            };
            match place.frames.next(segment.readable()) {
                Ok(Found::Frame(frame, _)) if frame.end() <= self.offset => {}
                Ok(Found::Frame(frame, body)) => {
                    let batch = batch(&frame, body, self.offset).map_err(damaged)?;
                    place.last = Some(batch.clone());
                    return Ok(batch);
                }
                Ok(Found::End) if self.offset >= segment.end() => self.place = None,
                Ok(Found::End) => return Err(damaged(format!("entry {} is missing", self.offset))),
                Ok(Found::Bad(_)) => return Err(damaged("a checksum is wrong".to_owned())),
                Err(error) => return Err(io_error(&self.shared, segment, error)),
            }
        }
    }
}

fn batch(frame: &Frame, body: bytes::Bytes, offset: Offset) -> Result<Batch, String> {
    match frame.kind {
        Kind::Batch if frame.base <= offset => {
            Batch::from_encoded(frame.base, frame.count, frame.time, body).map_err(|error| error.to_string())
        }
        Kind::Gap if frame.base <= offset => {
            Ok(Batch::gap(frame.base, frame.count, frame.time, format::gap_is_loss(&body)))
        }
        Kind::Batch | Kind::Gap | Kind::Mark | Kind::Footer => Err(format!("entry {offset} is missing")),
    }
}

fn locate(shared: &Shared, offset: Offset) -> Result<Place, ReadError> {
    let segment = shared.segment_of(offset).ok_or(ReadError::Missing { offset })?;
    if segment.end() <= offset {
        return Err(ReadError::Missing { offset });
    }
    let file = shared.storage.open(&segment.name).map_err(|error| io_error(shared, &segment, error))?;
    let frames = FrameReader::new(file, segment.header.salt, segment.position_near(offset));
    Ok(Place { segment, frames, last: None })
}

fn io_error(shared: &Shared, segment: &Segment, error: io::Error) -> ReadError {
    ReadError::Io { file: shared.storage.display(&segment.name), error }
}
