//! What the bytes of a segment mean.
//!
//! A segment is one [`SegmentHeader`] and then frames without gaps. A [`Frame`] is a header of [`FRAME_BYTES`]
//! and a body; batches, marks, gaps and the footer of a sealed segment are all frames. All integers are
//! little-endian.
//!
//! ```text
//! segment header:  magic[8] | u32 version | u32 crc of the other 60 bytes | u128 journal id | u64 base offset
//!                  | u64 created, ms | u32 salt | 12 zero bytes
//! frame header:    u32 magic | u32 crc of bytes 8..48 | u32 crc of the body | u32 body bytes | u64 base offset
//!                  | u64 time, ms | u64 durable before | u32 count | u8 kind | 3 zero bytes
//! gap body:        u8: 1 = its entries are lost, 0 = its offsets are left out
//! footer body:     (u64 offset, u64 file position)* | topic summary | u32 bytes of it | u32 records + 1 | u64 end offset
//!                  | u64 newest, ms | u64 footer position | magic[8]
//! ```
//!
//! In a footer, 0 for records + 1 means that they were not counted.
//!
//! Every frame checksum begins with the segment's random salt. So a frame is only ever valid in the segment it was
//! written for: neither what a file held in an earlier life nor a payload that imitates a frame is taken for one.

use bytes::Bytes;

use super::JournalId;
use super::topics::TopicSummary;
use crate::plant::{self, Bug};
use crate::record::{Offset, Timestamp};

pub(super) const SEGMENT_HEADER_BYTES: usize = 64;
pub(super) const FRAME_BYTES: usize = 48;
/// Version 1 has no summary of topics in its footers; it is read, and no longer written.
pub(super) const VERSION: u32 = 2;

const SEGMENT_MAGIC: [u8; 8] = *b"TidegatJ";
const FOOTER_MAGIC: [u8; 8] = *b"TidegatT";
const FOOTER_MAGIC_1: [u8; 8] = *b"TidegatF";
const FRAME_MAGIC: u32 = u32::from_le_bytes(*b"\xd7TgF");
const FOOTER_FIXED_BYTES: usize = 32;
const SUMMARY_FIXED_BYTES: usize = 8;
/// The end of a footer's body, and so of a sealed file: where the footer begins, and a magic.
pub(super) const TRAILER_BYTES: usize = 16;

/// What a segment says about itself in its first bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SegmentHeader {
    pub(super) id: JournalId,
    pub(super) base: Offset,
    pub(super) created: Timestamp,
    /// Where every frame checksum of this segment begins.
    pub(super) salt: u32,
}

/// Why the first bytes of a file are not a segment header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HeaderFault {
    /// The checksum or the magic is wrong.
    Damaged,
    /// Whole, but of a version this program does not know.
    Version(u32),
}

impl SegmentHeader {
    pub(super) fn encode(&self) -> [u8; SEGMENT_HEADER_BYTES] {
        let mut bytes = [0; SEGMENT_HEADER_BYTES];
        bytes[0..8].copy_from_slice(&SEGMENT_MAGIC);
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        bytes[16..32].copy_from_slice(&self.id.0.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.base.0.to_le_bytes());
        bytes[40..48].copy_from_slice(&self.created.0.to_le_bytes());
        bytes[48..52].copy_from_slice(&self.salt.to_le_bytes());
        let crc = Self::crc(&bytes);
        bytes[12..16].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    pub(super) fn decode(bytes: &[u8; SEGMENT_HEADER_BYTES]) -> Result<Self, HeaderFault> {
        if bytes[0..8] != SEGMENT_MAGIC || u32_at(bytes, 12) != Self::crc(bytes) {
            return Err(HeaderFault::Damaged);
        }
        let version = u32_at(bytes, 8);
        if !(1..=VERSION).contains(&version) {
            return Err(HeaderFault::Version(version));
        }
        let id = u128::from(u64_at(bytes, 16)) | u128::from(u64_at(bytes, 24)) << 64;
        Ok(Self {
            id: JournalId(id),
            base: Offset(u64_at(bytes, 32)),
            created: Timestamp(u64_at(bytes, 40)),
            salt: u32_at(bytes, 48),
        })
    }

    fn crc(bytes: &[u8; SEGMENT_HEADER_BYTES]) -> u32 {
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&bytes[..12]);
        hasher.update(&bytes[16..]);
        hasher.finalize()
    }
}

/// What a frame holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Entries.
    Batch = 1,
    /// Nothing but the proof, in `durable_before`, that what lies before it was synced.
    Mark = 2,
    /// The last frame of a sealed segment: its sparse index.
    Footer = 3,
    /// No entries, although it has `count` offsets: they are lost, or left out, and stay unused for ever.
    Gap = 4,
}

/// The body of a gap.
pub(super) const fn gap_body(lost: bool) -> [u8; 1] {
    [lost as u8]
}

/// Whether the entries of the gap with this body are lost, and not only left out.
pub(super) fn gap_is_loss(body: &[u8]) -> bool {
    body != gap_body(false)
}

/// The header of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Frame {
    pub(super) kind: Kind,
    pub(super) body_bytes: u32,
    body_crc: u32,
    /// The offset of its first entry; of the entry to follow, if it holds none.
    pub(super) base: Offset,
    pub(super) count: u32,
    pub(super) time: Timestamp,
    /// Every entry before this offset was synced when the frame was written.
    pub(super) durable_before: Offset,
}

impl Frame {
    /// Fills the header in front of `frame`, whose body is already there.
    pub(super) fn seal(kind: Kind, place: FramePlace, salt: u32, frame: &mut [u8]) {
        let (header, body) =
            frame.split_first_chunk_mut::<FRAME_BYTES>().expect("a frame begins with room for its header");
        let body_bytes = u32::try_from(body.len()).expect("the journal keeps batches below 4 GiB");
        header[0..4].copy_from_slice(&FRAME_MAGIC.to_le_bytes());
        header[8..12].copy_from_slice(&crc(salt, body).to_le_bytes());
        header[12..16].copy_from_slice(&body_bytes.to_le_bytes());
        header[16..24].copy_from_slice(&place.base.0.to_le_bytes());
        header[24..32].copy_from_slice(&place.time.0.to_le_bytes());
        header[32..40].copy_from_slice(&place.durable_before.0.to_le_bytes());
        header[40..44].copy_from_slice(&place.count.to_le_bytes());
        header[44] = kind as u8;
        let crc = crc(salt, &header[8..]);
        header[4..8].copy_from_slice(&crc.to_le_bytes());
    }

    /// The frame header at the front of `bytes`; `None` if there is none, or not a whole one.
    pub(super) fn decode(bytes: &[u8], salt: u32) -> Option<Self> {
        let header = bytes.first_chunk::<FRAME_BYTES>()?;
        if u32_at(header, 0) != FRAME_MAGIC || !matches(u32_at(header, 4), salt, &header[8..]) {
            return None;
        }
        let kind = match header[44] {
            1 => Kind::Batch,
            2 => Kind::Mark,
            3 => Kind::Footer,
            4 => Kind::Gap,
            _ => return None,
        };
        Some(Self {
            kind,
            body_bytes: u32_at(header, 12),
            body_crc: u32_at(header, 8),
            base: Offset(u64_at(header, 16)),
            count: u32_at(header, 40),
            time: Timestamp(u64_at(header, 24)),
            durable_before: Offset(u64_at(header, 32)),
        })
    }

    /// Header and body together.
    pub(super) fn bytes(&self) -> usize {
        FRAME_BYTES + self.body_bytes as usize
    }

    /// The offset behind its last entry.
    pub(super) fn end(&self) -> Offset {
        self.base.plus(u64::from(self.count))
    }

    /// Whether `body` is what was written.
    pub(super) fn holds(&self, body: &[u8], salt: u32) -> bool {
        body.len() == self.body_bytes as usize && matches(self.body_crc, salt, body)
    }
}

/// What a frame header says beside what follows from the body.
#[derive(Clone, Copy, Debug)]
pub(super) struct FramePlace {
    pub(super) base: Offset,
    pub(super) count: u32,
    pub(super) time: Timestamp,
    pub(super) durable_before: Offset,
}

/// Where the search for a frame may go on behind `bytes[at]`: the next place that begins like one.
pub(super) fn find_frame(bytes: &[u8], mut at: usize) -> Option<usize> {
    let magic = FRAME_MAGIC.to_le_bytes();
    while let Some(found) = bytes.get(at..)?.iter().position(|&byte| byte == magic[0]) {
        at += found;
        if bytes[at..].starts_with(&magic) {
            return Some(at);
        }
        at += 1;
    }
    None
}

/// What the footer of a sealed segment says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Footer {
    /// (offset, file position) of some frames, ascending.
    pub(super) index: Vec<(Offset, u64)>,
    /// The offset behind the last entry.
    pub(super) end: Offset,
    /// When the newest entry was written.
    pub(super) newest: Timestamp,
    /// Where in the file the footer's frame begins.
    pub(super) position: u64,
    /// What the topics of its records may be.
    pub(super) topics: TopicSummary,
    /// How many records it holds, if they were counted.
    pub(super) records: Option<u32>,
}

impl Footer {
    /// The whole frame. Entries from `durable_before` on are not synced yet.
    pub(super) fn encode(&self, durable_before: Offset, salt: u32) -> Vec<u8> {
        let mut frame = vec![0; FRAME_BYTES];
        for (offset, position) in &self.index {
            frame.extend(offset.0.to_le_bytes());
            frame.extend(position.to_le_bytes());
        }
        let topics = self.topics.as_bytes();
        frame.extend(topics);
        frame.extend(u32::try_from(topics.len()).expect("a summary is small").to_le_bytes());
        let records = self.records.and_then(|records| records.checked_add(1)).unwrap_or(0);
        frame.extend(records.to_le_bytes());
        frame.extend(self.end.0.to_le_bytes());
        frame.extend(self.newest.0.to_le_bytes());
        frame.extend(self.position.to_le_bytes());
        frame.extend(FOOTER_MAGIC);
        let place = FramePlace { base: self.end, count: 0, time: self.newest, durable_before };
        Frame::seal(Kind::Footer, place, salt, &mut frame);
        frame
    }

    /// From the body of a footer frame whose checksum is right.
    pub(super) fn decode(body: &Bytes) -> Option<Self> {
        let (rest, fixed) = body.split_at_checked(body.len().checked_sub(FOOTER_FIXED_BYTES)?)?;
        let (index, topics, records) = if fixed[24..32] == FOOTER_MAGIC {
            let (rest, more) = rest.split_at_checked(rest.len().checked_sub(SUMMARY_FIXED_BYTES)?)?;
            let (index, topics) = rest.split_at_checked(rest.len().checked_sub(u32_at(more, 0) as usize)?)?;
            (index, topics, u32_at(more, 4).checked_sub(1))
        } else if fixed[24..32] == FOOTER_MAGIC_1 {
            (rest, &[][..], None)
        } else {
            return None;
        };
        if !index.len().is_multiple_of(16) {
            return None;
        }
        let topics = if topics.is_empty() { Bytes::new() } else { body.slice_ref(topics) };
        let topics = TopicSummary::new(topics);
        let index = index.chunks_exact(16).map(|pair| (Offset(u64_at(pair, 0)), u64_at(pair, 8))).collect();
        Some(Self {
            index,
            end: Offset(u64_at(fixed, 0)),
            newest: Timestamp(u64_at(fixed, 8)),
            position: u64_at(fixed, 16),
            topics,
            records,
        })
    }

    /// Where the footer begins, from the last bytes of a sealed file.
    pub(super) fn position(trailer: &[u8; TRAILER_BYTES]) -> Option<u64> {
        (trailer[8..16] == FOOTER_MAGIC || trailer[8..16] == FOOTER_MAGIC_1).then(|| u64_at(trailer, 0))
    }
}

pub(super) fn crc(salt: u32, bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new_with_initial(salt);
    hasher.update(bytes);
    hasher.finalize()
}

fn matches(expected: u32, salt: u32, bytes: &[u8]) -> bool {
    plant::is(Bug::ChecksumUnchecked) || expected == crc(salt, bytes)
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes were taken"))
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes were taken"))
}
