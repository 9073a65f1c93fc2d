//! Writes a whole segment beside the one that bears its name, and puts it in place with one rename.
//!
//! What is written is dense: where entries are missing there is a gap. Until [`SegmentWriter::finish`] has returned the
//! folder looks as before.

use std::io;
use std::sync::Arc;

use bytes::Bytes;

use super::format::{self, FRAME_BYTES, Frame, FramePlace, Kind, SEGMENT_HEADER_BYTES, SegmentHeader};
use super::segment::{ActiveSegment, Held, Segment};
use super::storage::Storage;
use crate::record::{Batch, Offset, Timestamp};

#[derive(Debug)]
pub(super) struct SegmentWriter<'a> {
    storage: &'a dyn Storage,
    name: String,
    header: SegmentHeader,
    active: ActiveSegment,
    end: Offset,
    newest: Timestamp,
}

impl<'a> SegmentWriter<'a> {
    pub(super) fn begin(storage: &'a dyn Storage, header: SegmentHeader) -> io::Result<Self> {
        let segment = Arc::new(Segment::new(header));
        let name = segment.name.clone();
        let file = storage.create(&format!("{name}.new"))?;
        file.write_at(&header.encode(), 0)?;
        let active = ActiveSegment::resume(segment, file, SEGMENT_HEADER_BYTES as u64, Held::default());
        Ok(Self { storage, name, header, active, end: header.base, newest: header.created })
    }

    /// The offset behind what is written.
    pub(super) fn end(&self) -> Offset {
        self.end
    }

    /// The size so far.
    pub(super) fn bytes(&self) -> u64 {
        self.active.position()
    }

    /// Leaves the offsets up to `to` without entries.
    pub(super) fn gap_to(&mut self, to: Offset, lost: bool) -> io::Result<()> {
        if lost && self.end < to {
            self.active.note_unknown_topics();
        }
        while self.end < to {
            let count = u32::try_from(to.since(self.end)).unwrap_or(u32::MAX);
            let place = FramePlace { base: self.end, count, time: self.newest, durable_before: self.end };
            self.write(Kind::Gap, place, &format::gap_body(lost))?;
        }
        Ok(())
    }

    /// Adds a batch, whose entries are encoded in `body`; it begins where the last one ended.
    pub(super) fn batch(&mut self, place: FramePlace, body: Bytes) -> io::Result<()> {
        self.write(Kind::Batch, place, &body)?;
        let batch = Batch::from_encoded(place.base, place.count, place.time, body);
        self.active.note_records(&batch.map_err(io::Error::other)?);
        Ok(())
    }

    fn write(&mut self, kind: Kind, place: FramePlace, body: &[u8]) -> io::Result<()> {
        assert_eq!(place.base, self.end, "offsets are dense");
        let mut frame = Vec::with_capacity(FRAME_BYTES + body.len());
        frame.resize(FRAME_BYTES, 0);
        frame.extend_from_slice(body);
        Frame::seal(kind, place, self.header.salt, &mut frame);
        self.active.write(&frame, place.base)?;
        self.end = place.base.plus(u64::from(place.count));
        self.newest = self.newest.max(place.time);
        Ok(())
    }

    /// Closes it with a footer, syncs it and gives it its name. One without entries stays open for them.
    pub(super) fn finish(mut self) -> io::Result<()> {
        if self.end > self.header.base {
            self.active.seal(self.end, self.end, self.newest)?;
        }
        self.active.sync()?;
        self.storage.rename(&format!("{}.new", self.name), &self.name)?;
        self.storage.sync_folder()
    }
}
