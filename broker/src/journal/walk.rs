//! Walking over a segment that may be damaged: frame by frame, and on to the next one behind what is none.
//!
//! Every byte behind the header is told once: as a frame whose checksums are right, as bytes that are none, or as the
//! zeros that were only reserved. A frame is only ever taken for one with the segment's own salt, so that neither
//! what the disk held before nor a payload that imitates a frame is mistaken for an entry.

use std::io;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use super::format::{self, FRAME_BYTES, Frame, SEGMENT_HEADER_BYTES};
use super::segment::{Found, FrameReader};
use super::storage::StorageFile;

/// How much is read at once where a file is searched.
const CHUNK_BYTES: u64 = 1 << 20;

/// What lies at one place.
#[derive(Debug)]
pub(super) enum Step {
    /// A whole frame whose checksums are right.
    Frame {
        /// Where it begins.
        at: u64,
        frame: Frame,
        body: Bytes,
    },
    /// No frame, up to the next place where one begins.
    Bad {
        at: u64,
        to: u64,
        /// The header of the frame that was here, where only its body is damaged.
        header: Option<Frame>,
    },
    /// Nothing but zeros up to the end of the file.
    Zeros { at: u64 },
}

/// Walks over one file.
#[derive(Debug)]
pub(super) struct Walk {
    file: Arc<dyn StorageFile>,
    salt: u32,
    length: u64,
    frames: FrameReader,
}

impl Walk {
    pub(super) fn new(file: Arc<dyn StorageFile>, salt: u32, length: u64) -> Self {
        let frames = FrameReader::new(file.clone(), salt, SEGMENT_HEADER_BYTES as u64);
        Self { file, salt, length, frames }
    }

    /// What lies next; `None` at the end of the file.
    pub(super) fn next(&mut self) -> io::Result<Option<Step>> {
        let at = self.frames.position();
        match self.frames.next(self.length)? {
            Found::End => Ok(None),
            Found::Frame(frame, body) => Ok(Some(Step::Frame { at, frame, body })),
            Found::Bad(header) => {
                let (next, used) = self.search(at)?;
                self.frames = FrameReader::new(self.file.clone(), self.salt, next);
                if next == self.length && used == at {
                    return Ok(Some(Step::Zeros { at }));
                }
                let to = if next == self.length { used } else { next };
                Ok(Some(Step::Bad { at, to, header }))
            }
        }
    }

    /// Where behind `at` the next whole frame header lies, or the end of the file; and the place behind the last byte
    /// before it that is not zero.
    fn search(&self, at: u64) -> io::Result<(u64, u64)> {
        let mut used = at;
        let mut from = at;
        while from < self.length {
            let bytes = (self.length - from).min(CHUNK_BYTES);
            let mut chunk = BytesMut::zeroed(usize::try_from(bytes).expect("a chunk is small"));
            self.file.read_at(&mut chunk, from)?;
            let mut behind = if from == at { 1 } else { 0 };
            while let Some(place) = format::find_frame(&chunk, behind) {
                if Frame::decode(&chunk[place..], self.salt).is_some() {
                    return Ok((from + place as u64, used.max(from)));
                }
                behind = place + 1;
            }
            if let Some(last) = chunk.iter().rposition(|byte| *byte != 0) {
                used = from + last as u64 + 1;
            }
            // A header may lie across two chunks.
            from += if bytes == CHUNK_BYTES { bytes - (FRAME_BYTES as u64 - 1) } else { bytes };
        }
        Ok((self.length, used))
    }
}
