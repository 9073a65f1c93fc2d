//! The frames of one WebSocket, on their way in and out.
//!
//! Everything that waits to be sent becomes one frame [MQTT-6.0.0-2], whose payload is written from where it lies.
//! A control frame goes between two others, never into one; of those that wait only the last counts.

use std::io::{self, IoSlice};

use super::frame::{self, Decoder, Violation};
use super::lower::Lower;
use crate::broker::Outbox;

/// The longest frame that is sent: a browser hands a frame on only when it has all of it.
const FRAME_BYTES_MAX: usize = 64 * 1_024;
/// A normal end (RFC 6455 section 7.4.1).
const NORMAL: u16 = 1000;

#[derive(Debug)]
pub(super) struct Web {
    decoder: Decoder,
    /// The answer to the handshake, the head of the frame that has begun, or control frames.
    pending: Vec<u8>,
    /// Payload of the frame that has begun and is still to be written.
    frame_left: usize,
    /// What to send between two frames.
    control: Vec<u8>,
    violation: Option<Violation>,
    /// Nothing may follow what is pending.
    closing: bool,
}

impl Web {
    /// A WebSocket that first sends `answer`.
    pub(super) const fn new(payload_bytes_max: usize, answer: Vec<u8>) -> Self {
        Self {
            decoder: Decoder::new(payload_bytes_max),
            pending: answer,
            frame_left: 0,
            control: Vec::new(),
            violation: None,
            closing: false,
        }
    }

    /// One that was refused and sends nothing but `answer`.
    pub(super) fn refused(answer: Vec<u8>) -> Self {
        Self { closing: true, ..Self::new(0, answer) }
    }

    /// Decodes `bytes` where they lie and returns how many bytes of MQTT are now at their front.
    pub(super) fn decode(&mut self, bytes: &mut [u8]) -> Result<usize, Violation> {
        self.check()?;
        let decoded = self.decoder.decode(bytes);
        self.violation = decoded.err();
        if let Some(ping) = self.decoder.take_ping().filter(|_| !self.closing) {
            self.control.clear();
            frame::pong(&mut self.control, &ping);
        }
        if let Some(code) = self.decoder.closed() {
            self.close(code);
        }
        decoded
    }

    /// What the client did wrong, if it did.
    pub(super) fn check(&self) -> Result<(), Violation> {
        self.violation.map_or(Ok(()), Err)
    }

    /// Whether the client has closed.
    pub(super) const fn is_closed(&self) -> bool {
        self.decoder.closed().is_some()
    }

    /// Queues a Close frame unless one was sent.
    fn close(&mut self, code: u16) {
        if !self.closing {
            self.closing = true;
            self.control.clear();
            frame::close(&mut self.control, code);
        }
    }

    /// Nothing more is sent but a Close frame; to be called when everything else was written.
    pub(super) fn finish(&mut self) {
        self.close(self.violation.map_or(NORMAL, Violation::close_code));
    }

    /// Whether nothing of its own waits to be written.
    pub(super) const fn is_flushed(&self) -> bool {
        self.pending.is_empty() && self.control.is_empty()
    }

    /// Writes as much of `outbox` as the peer takes. Returns how many bytes of it are on their way.
    pub(super) fn write(&mut self, lower: &mut Lower, outbox: &mut Outbox) -> io::Result<usize> {
        let mut total = 0;
        while lower.flush()? {
            if self.pending.is_empty() && self.frame_left == 0 && !self.begin(outbox) {
                break;
            }
            // The rest of a frame may still be in an outbox that is not at hand.
            if self.pending.is_empty() && outbox.is_empty() {
                break;
            }
            let sent = lower.send(&self.pieces(outbox))?;
            if sent == 0 {
                break;
            }
            let own = sent.min(self.pending.len());
            self.pending.drain(..own);
            let payload = sent - own;
            outbox.advance(payload);
            self.frame_left -= payload;
            total += payload;
        }
        Ok(total)
    }

    /// What is pending, and of `outbox` what belongs to the frame that has begun.
    fn pieces<'a>(&'a self, outbox: &'a Outbox) -> Vec<IoSlice<'a>> {
        let mut pieces = vec![IoSlice::new(&self.pending)];
        let mut left = self.frame_left;
        for piece in outbox.slices() {
            if left == 0 {
                break;
            }
            let part = &piece[..left.min(piece.len())];
            pieces.push(IoSlice::new(part));
            left -= part.len();
        }
        pieces
    }

    /// Puts what comes next into `pending`; says whether there is anything.
    fn begin(&mut self, outbox: &Outbox) -> bool {
        if !self.control.is_empty() {
            self.pending = std::mem::take(&mut self.control);
            return true;
        }
        // Behind a Close frame nothing is sent (RFC 6455 section 5.5.1).
        if outbox.is_empty() || self.closing {
            return false;
        }
        self.frame_left = outbox.len().min(FRAME_BYTES_MAX);
        frame::binary_head(&mut self.pending, self.frame_left);
        true
    }
}
