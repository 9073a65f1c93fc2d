//! What waits to be written to one connection.
//!
//! Small things are copied one behind the other, so that one write carries many packets; a large payload stays
//! where it is and is written from there.

use std::collections::VecDeque;
use std::io::IoSlice;

use bytes::{Buf, Bytes};

/// From this size on a payload is referred to instead of copied: copying less costs less than another piece in a
/// vectored write and keeping a whole batch in memory.
pub const SHARED_BYTES_MIN: usize = 8_192;

/// An empty buffer that has grown beyond this is given back.
const SPARE_BYTES_MAX: usize = 65_536;

/// The pieces offered to one vectored write.
const PIECES_MAX: usize = 64;

/// Bytes in order, some owned, some shared.
#[derive(Debug, Default)]
pub struct Outbox {
    own: Vec<u8>,
    /// How much of `own` was written.
    written: usize,
    /// Shared pieces, each with the place in `own` before which it goes.
    shared: VecDeque<(usize, Bytes)>,
    shared_bytes: usize,
}

impl Outbox {
    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.written == self.own.len() && self.shared.is_empty()
    }

    /// How many bytes wait.
    pub const fn len(&self) -> usize {
        self.own.len() - self.written + self.shared_bytes
    }

    /// Where packets are encoded to. Only ever append to it.
    pub const fn own(&mut self) -> &mut Vec<u8> {
        &mut self.own
    }

    /// Appends `piece` without copying it.
    pub fn share(&mut self, piece: Bytes) {
        if !piece.is_empty() {
            self.shared_bytes += piece.len();
            self.shared.push_back((self.own.len(), piece));
        }
    }

    /// The first pieces that wait, in order, for a vectored write.
    pub fn pieces(&self) -> impl Iterator<Item = IoSlice<'_>> {
        self.slices().map(IoSlice::new)
    }

    /// The first pieces that wait, in order.
    pub fn slices(&self) -> impl Iterator<Item = &[u8]> {
        let mut at = self.written;
        let mut shared = self.shared.iter();
        let mut next_shared = shared.next();
        std::iter::from_fn(move || {
            let end = next_shared.map_or(self.own.len(), |(before, _)| *before);
            if at < end {
                let piece = &self.own[at..end];
                at = end;
                return Some(piece);
            }
            let (_, piece) = next_shared?;
            next_shared = shared.next();
            Some(&**piece)
        })
        .take(PIECES_MAX)
    }

    /// Notes that the first `bytes` were written.
    pub fn advance(&mut self, mut bytes: usize) {
        while bytes > 0 {
            let end = self.shared.front().map_or(self.own.len(), |(before, _)| *before);
            if self.written < end {
                let step = bytes.min(end - self.written);
                self.written += step;
                bytes -= step;
                continue;
            }
            let Some((_, piece)) = self.shared.front_mut() else {
                debug_assert!(false, "no more was written than waited");
                break;
            };
            let step = bytes.min(piece.len());
            piece.advance(step);
            bytes -= step;
            self.shared_bytes -= step;
            if piece.is_empty() {
                self.shared.pop_front();
            }
        }
        if self.is_empty() {
            self.clear();
        }
    }

    /// Drops everything.
    pub fn clear(&mut self) {
        self.written = 0;
        self.shared_bytes = 0;
        self.shared.clear();
        if self.own.capacity() > SPARE_BYTES_MAX {
            self.own = Vec::new();
        } else {
            self.own.clear();
        }
    }

    /// Gives spare memory back while nothing waits.
    pub fn shrink(&mut self) {
        if self.is_empty() {
            *self = Self::default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_come_in_the_order_they_were_put_in_whatever_is_written_at_once() {
        for step in 1..12 {
            let mut outbox = Outbox::default();
            outbox.share(Bytes::from_static(b"ab"));
            outbox.own().extend_from_slice(b"cde");
            outbox.share(Bytes::from_static(b"f"));
            outbox.share(Bytes::from_static(b"gh"));
            outbox.own().extend_from_slice(b"i");
            let mut written = Vec::new();
            while !outbox.is_empty() {
                let all: Vec<u8> = outbox.pieces().flat_map(|piece| piece.to_vec()).collect();
                assert_eq!(all.len(), outbox.len());
                let now = step.min(all.len());
                written.extend_from_slice(&all[..now]);
                outbox.advance(now);
            }
            assert_eq!(written, b"abcdefghi");
            assert_eq!(outbox.len(), 0);
        }
    }
}
