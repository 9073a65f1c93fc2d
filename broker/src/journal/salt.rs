//! Finding a segment's salt again when its header is lost.
//!
//! Without its salt no frame of a segment could be checked, and 64 damaged bytes would cost all its entries. A CRC is
//! linear in where it begins (for a fixed length), so the checksum of a frame header tells the one salt it can have been
//! made with; the checksum of the frame's body then says whether that is so. Of all salts that frames agree with, the
//! one that covers most bytes is the segment's: an imitation inside a payload is smaller than the frame around it.

use std::collections::BTreeMap;
use std::io;

use bytes::BytesMut;

use super::format::{self, FRAME_BYTES, Frame};
use super::storage::StorageFile;
use crate::record::Offset;

const CHUNK_BYTES: u64 = 1 << 20;
/// What a frame header's checksum is of.
const CHECKED_BYTES: usize = FRAME_BYTES - 8;
/// A frame that claims to be larger is not looked at.
const BODY_BYTES_MAX: u64 = 512 << 20;

/// The salt of the segment in `file`, whose first entry is `base`; `None` if no frame is whole.
pub(super) fn find(file: &dyn StorageFile, base: Offset) -> io::Result<Option<u32>> {
    let length = file.len()?;
    let solver = Solver::new();
    let mut covered: BTreeMap<u32, u64> = BTreeMap::new();
    let mut from = 0;
    while from < length {
        let bytes = (length - from).min(CHUNK_BYTES);
        let mut chunk = BytesMut::zeroed(usize::try_from(bytes).expect("a chunk is small"));
        file.read_at(&mut chunk, from)?;
        let last = bytes == length - from;
        let mut next = from + if last { bytes } else { bytes - (FRAME_BYTES as u64 - 1) };
        let mut behind = 0;
        while let Some(at) = format::find_frame(&chunk, behind) {
            behind = at + 1;
            let Some((salt, frame)) = solver.salt_of(&chunk[at..]) else { continue };
            let begin = from + at as u64;
            if frame.base < base || !holds(file, &frame, begin, length, salt)? {
                continue;
            }
            *covered.entry(salt).or_default() += frame.bytes() as u64;
            let end = begin + frame.bytes() as u64;
            if end >= from + bytes {
                next = end;
                break;
            }
            behind = usize::try_from(end - from).expect("it lies in the chunk");
        }
        from = next.max(from + 1);
    }
    Ok(covered.into_iter().max_by_key(|(_, bytes)| *bytes).map(|(salt, _)| salt))
}

fn holds(file: &dyn StorageFile, frame: &Frame, at: u64, length: u64, salt: u32) -> io::Result<bool> {
    let body_bytes = u64::from(frame.body_bytes);
    if body_bytes > BODY_BYTES_MAX || at + frame.bytes() as u64 > length {
        return Ok(false);
    }
    let mut body = vec![0; frame.body_bytes as usize];
    file.read_at(&mut body, at + FRAME_BYTES as u64)?;
    Ok(frame.holds(&body, salt))
}

/// Solves `crc(salt, header) = checksum` for the salt.
#[derive(Debug)]
struct Solver {
    /// By the highest bit of a change of the checksum: that change, and the change of the salt that makes it.
    basis: [(u32, u32); 32],
}

impl Solver {
    fn new() -> Self {
        let zeros = [0; CHECKED_BYTES];
        let without = format::crc(0, &zeros);
        let mut basis = [(0, 0); 32];
        for bit in 0..32 {
            let (mut image, mut salt) = (format::crc(1 << bit, &zeros) ^ without, 1 << bit);
            while image != 0 {
                let top = 31 - image.leading_zeros() as usize;
                if basis[top].0 == 0 {
                    basis[top] = (image, salt);
                    break;
                }
                image ^= basis[top].0;
                salt ^= basis[top].1;
            }
        }
        Self { basis }
    }

    /// The only salt with which `bytes` can begin with a frame header, and that header.
    fn salt_of(&self, bytes: &[u8]) -> Option<(u32, Frame)> {
        let header = bytes.first_chunk::<FRAME_BYTES>()?;
        let mut left = format::u32_at(header, 4) ^ format::crc(0, &header[8..]);
        let mut salt = 0;
        while left != 0 {
            let (image, change) = self.basis[31 - left.leading_zeros() as usize];
            if image == 0 {
                return None;
            }
            left ^= image;
            salt ^= change;
        }
        Frame::decode(header, salt).map(|frame| (salt, frame))
    }
}

#[cfg(test)]
mod tests {
    use super::super::format::{FramePlace, Kind};
    use super::super::{MemoryStorage, Storage};
    use super::*;
    use crate::record::Timestamp;

    fn frame(salt: u32, base: u64, body: &[u8]) -> Vec<u8> {
        let mut frame = vec![0; FRAME_BYTES];
        frame.extend(body);
        let place =
            FramePlace { base: Offset(base), count: 1, time: Timestamp(7), durable_before: Offset(base) };
        Frame::seal(Kind::Batch, place, salt, &mut frame);
        frame
    }

    fn check(bytes: &[u8], base: u64, expected: Option<u32>) {
        let disk = MemoryStorage::default();
        let file = disk.create("x").unwrap();
        file.write_at(bytes, 0).unwrap();
        assert_eq!(find(&*file, Offset(base)).unwrap(), expected);
    }

    #[test]
    fn one_whole_frame_tells_the_salt() {
        for salt in [0, 1, 0x8000_0000, 0xdead_beef, u32::MAX] {
            let mut bytes = vec![0xd7; 64];
            bytes.extend(frame(salt, 40, b"some entries"));
            check(&bytes, 40, Some(salt));
            check(&bytes, 41, None);
            let last = bytes.len() - 1;
            bytes[last] ^= 1;
            check(&bytes, 40, None);
        }
    }

    #[test]
    fn a_payload_that_imitates_frames_is_outweighed() {
        let imitation = frame(1, 50, b"looks like an entry");
        let mut bytes = vec![0; 64];
        bytes.extend(frame(2, 40, &[&imitation[..], &imitation[..]].concat()));
        check(&bytes, 40, Some(2));
        // The frame around it is damaged, and another one is whole.
        bytes[64 + 60] ^= 1;
        bytes.extend(frame(2, 60, &[7; 300]));
        check(&bytes, 40, Some(2));
    }

    #[test]
    fn frames_are_found_across_chunks() {
        let mut bytes = vec![0; CHUNK_BYTES as usize - 20];
        bytes.extend(frame(3, 1, &[9; 3_000]));
        check(&bytes, 0, Some(3));
    }
}
