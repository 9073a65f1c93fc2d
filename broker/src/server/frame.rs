//! WebSocket frames (RFC 6455 section 5), as a server reads and writes them.
//!
//! The payload of binary frames is the byte stream of an MQTT connection: where a frame or a message begins and
//! ends means nothing to it [MQTT-6.0.0-2], so nothing is collected. A frame is decoded in the buffer it was read
//! into, and what is written stays where it lies; only the heads of frames are made here.

/// The longest payload of a control frame.
const CONTROL_BYTES_MAX: usize = 125;
/// The longest head of a client's frame: two bytes, a 64-bit length and the mask.
const HEAD_BYTES_MAX: usize = 14;

const CONTINUATION: u8 = 0x0;
const TEXT: u8 = 0x1;
const BINARY: u8 = 0x2;
const CLOSE: u8 = 0x8;
const PING: u8 = 0x9;
const PONG: u8 = 0xA;
const FINAL: u8 = 0x80;
const RESERVED: u8 = 0x70;
const MASKED: u8 = 0x80;

/// What a client did wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Violation {
    /// A frame that RFC 6455 forbids.
    #[error("a malformed WebSocket frame")]
    Malformed,
    /// A text frame [MQTT-6.0.0-1].
    #[error("a WebSocket frame that is not binary")]
    NotBinary,
    /// A longer frame than a packet may be.
    #[error("a WebSocket frame of {0} bytes; the limit is mqtt.max_packet_bytes")]
    TooLarge(u64),
}

impl Violation {
    /// The status code of the Close frame that answers it (RFC 6455 section 7.4.1).
    pub(super) const fn close_code(self) -> u16 {
        match self {
            Self::Malformed => 1002,
            Self::NotBinary => 1003,
            Self::TooLarge(_) => 1009,
        }
    }
}

/// A client's frames on their way in.
#[derive(Debug)]
pub(super) struct Decoder {
    head: [u8; HEAD_BYTES_MAX],
    head_bytes: u8,
    opcode: u8,
    /// Payload of the present frame that is still to come.
    left: u64,
    mask: [u8; 4],
    /// A message has begun and its last frame has not.
    in_message: bool,
    /// The payload of a control frame, as far as it has come.
    control: Vec<u8>,
    /// The payload of the last ping that was not answered; earlier ones need no answer.
    ping: Option<Vec<u8>>,
    /// The status code of the client's Close frame.
    closed: Option<u16>,
    payload_bytes_max: u64,
}

impl Decoder {
    pub(super) const fn new(payload_bytes_max: usize) -> Self {
        Self {
            head: [0; HEAD_BYTES_MAX],
            head_bytes: 0,
            opcode: CONTINUATION,
            left: 0,
            mask: [0; 4],
            in_message: false,
            control: Vec::new(),
            ping: None,
            closed: None,
            payload_bytes_max: payload_bytes_max as u64,
        }
    }

    /// Decodes `bytes` where they lie and returns how many bytes of payload are now at their front.
    pub(super) fn decode(&mut self, bytes: &mut [u8]) -> Result<usize, Violation> {
        let (mut at, mut payload) = (0, 0);
        while at < bytes.len() && self.closed.is_none() {
            if self.left == 0 {
                self.head[usize::from(self.head_bytes)] = bytes[at];
                self.head_bytes += 1;
                at += 1;
                self.begin_frame()?;
                continue;
            }
            let step = usize::try_from(self.left).map_or(bytes.len() - at, |left| left.min(bytes.len() - at));
            unmask(&mut bytes[at..at + step], &mut self.mask);
            if self.opcode & CLOSE == 0 {
                bytes.copy_within(at..at + step, payload);
                payload += step;
            } else {
                self.control.extend_from_slice(&bytes[at..at + step]);
            }
            at += step;
            self.left -= step as u64;
            if self.left == 0 {
                self.end_frame()?;
            }
        }
        Ok(payload)
    }

    /// Begins a frame if its head is complete.
    fn begin_frame(&mut self) -> Result<(), Violation> {
        let have = usize::from(self.head_bytes);
        if have < 2 {
            return Ok(());
        }
        let (first, second) = (self.head[0], self.head[1]);
        let length_bytes = match second & !MASKED {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        if have == 2 {
            self.check_head(first, second)?;
        }
        if have < 2 + length_bytes + 4 {
            return Ok(());
        }
        let length = match length_bytes {
            0 => u64::from(second & !MASKED),
            _ => self.head[2..2 + length_bytes].iter().fold(0, |length, byte| length << 8 | u64::from(*byte)),
        };
        if length > self.payload_bytes_max {
            return Err(Violation::TooLarge(length));
        }
        self.opcode = first & 0x0F;
        if self.opcode & CLOSE == 0 {
            self.in_message = first & FINAL == 0;
        }
        self.mask.copy_from_slice(&self.head[2 + length_bytes..have]);
        self.head_bytes = 0;
        self.left = length;
        if length == 0 { self.end_frame() } else { Ok(()) }
    }

    fn check_head(&self, first: u8, second: u8) -> Result<(), Violation> {
        let opcode = first & 0x0F;
        // No extension was agreed on that gives the reserved bits a meaning, and clients mask (section 5.1).
        if first & RESERVED != 0 || second & MASKED == 0 {
            return Err(Violation::Malformed);
        }
        match opcode {
            CONTINUATION if self.in_message => Ok(()),
            BINARY if !self.in_message => Ok(()),
            TEXT if !self.in_message => Err(Violation::NotBinary),
            CLOSE | PING | PONG => {
                let short = usize::from(second & !MASKED) <= CONTROL_BYTES_MAX;
                if short && first & FINAL != 0 { Ok(()) } else { Err(Violation::Malformed) }
            }
            _ => Err(Violation::Malformed),
        }
    }

    fn end_frame(&mut self) -> Result<(), Violation> {
        let control = std::mem::take(&mut self.control);
        match self.opcode {
            PING => self.ping = Some(control),
            CLOSE => {
                self.closed = Some(match *control.as_slice() {
                    [] => 1000,
                    [_] => return Err(Violation::Malformed),
                    [high, low, ref reason @ ..] => {
                        let code = u16::from_be_bytes([high, low]);
                        if !may_close(code) || std::str::from_utf8(reason).is_err() {
                            return Err(Violation::Malformed);
                        }
                        code
                    }
                });
            }
            _ => {}
        }
        Ok(())
    }

    /// The payload of a ping that is to be answered.
    pub(super) const fn take_ping(&mut self) -> Option<Vec<u8>> {
        self.ping.take()
    }

    /// The status code with which the client has closed.
    pub(super) const fn closed(&self) -> Option<u16> {
        self.closed
    }
}

/// Whether a Close frame may carry `code` (section 7.4).
const fn may_close(code: u16) -> bool {
    matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999)
}

/// Undoes the mask, and leaves it as the bytes behind `bytes` need it.
fn unmask(bytes: &mut [u8], mask: &mut [u8; 4]) {
    let mut words = bytes.chunks_exact_mut(4);
    let whole = u32::from_ne_bytes(*mask);
    for word in &mut words {
        let plain = u32::from_ne_bytes([word[0], word[1], word[2], word[3]]) ^ whole;
        word.copy_from_slice(&plain.to_ne_bytes());
    }
    let rest = words.into_remainder();
    for (byte, mask) in rest.iter_mut().zip(mask.iter()) {
        *byte ^= mask;
    }
    mask.rotate_left(rest.len());
}

/// Appends the head of a binary frame with `payload` bytes, which is a message of its own.
pub(super) fn binary_head(out: &mut Vec<u8>, payload: usize) {
    out.push(FINAL | BINARY);
    match payload {
        0..=125 => out.push(payload as u8),
        126..=0xFFFF => {
            out.push(126);
            out.extend_from_slice(&(payload as u16).to_be_bytes());
        }
        _ => {
            out.push(127);
            out.extend_from_slice(&(payload as u64).to_be_bytes());
        }
    }
}

/// Appends the answer to a ping with this payload.
pub(super) fn pong(out: &mut Vec<u8>, payload: &[u8]) {
    debug_assert!(payload.len() <= CONTROL_BYTES_MAX, "a ping is a control frame too");
    out.extend_from_slice(&[FINAL | PONG, payload.len() as u8]);
    out.extend_from_slice(payload);
}

/// Appends a Close frame.
pub(super) fn close(out: &mut Vec<u8>, code: u16) {
    out.extend_from_slice(&[FINAL | CLOSE, 2]);
    out.extend_from_slice(&code.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    const MASK: [u8; 4] = [0xA1, 0x02, 0xF3, 0x54];

    /// A client's frame.
    fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
        let mut head = Vec::new();
        binary_head(&mut head, payload.len());
        head[0] = first;
        head[1] |= MASKED;
        head.extend_from_slice(&MASK);
        head.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
        head
    }

    /// Decodes `bytes` in pieces of `step`.
    fn decode(decoder: &mut Decoder, bytes: &[u8], step: usize) -> Result<Vec<u8>, Violation> {
        let mut payload = Vec::new();
        for piece in bytes.chunks(step) {
            let mut piece = piece.to_vec();
            let decoded = decoder.decode(&mut piece)?;
            payload.extend_from_slice(&piece[..decoded]);
        }
        Ok(payload)
    }

    #[test]
    fn payloads_come_out_as_they_went_in_however_they_are_cut() {
        let long: Vec<u8> = (0..70_000_u32).map(|n| (n % 251) as u8).collect();
        let mut bytes = frame(FINAL | BINARY, b"one");
        bytes.extend(frame(FINAL | BINARY, b""));
        bytes.extend(frame(BINARY, b"fragm"));
        bytes.extend(frame(FINAL | PING, b"are you there"));
        bytes.extend(frame(CONTINUATION, b"en"));
        bytes.extend(frame(FINAL | CONTINUATION, b"ted"));
        bytes.extend(frame(FINAL | PONG, b""));
        bytes.extend(frame(FINAL | BINARY, &long[..300]));
        bytes.extend(frame(FINAL | BINARY, &long));
        let expected = [b"onefragmented", &long[..300], &long].concat();
        for step in [1, 2, 3, 5, 7, 64, 4_096, bytes.len()] {
            let mut decoder = Decoder::new(100_000);
            assert_eq!(decode(&mut decoder, &bytes, step), Ok(expected.clone()), "{step}");
            assert_eq!(decoder.take_ping().as_deref(), Some(&b"are you there"[..]));
            assert_eq!(decoder.take_ping(), None);
            assert_eq!(decoder.closed(), None);
        }
    }

    #[test]
    fn a_frame_that_is_forbidden_is_a_violation_at_its_head() {
        let check = |bytes: &[u8], expected: Violation| {
            for step in [1, bytes.len()] {
                assert_eq!(decode(&mut Decoder::new(1_000), bytes, step), Err(expected), "{bytes:x?}");
            }
        };
        check(&frame(FINAL | TEXT, b"no"), Violation::NotBinary);
        check(&frame(TEXT, b"no"), Violation::NotBinary);
        check(&frame(FINAL | CONTINUATION, b"of what"), Violation::Malformed);
        check(&frame(FINAL | 0x40 | BINARY, b"compressed"), Violation::Malformed);
        check(&frame(FINAL | 0x3, b"no such frame"), Violation::Malformed);
        check(&frame(FINAL | 0xB, b"no such frame"), Violation::Malformed);
        check(&frame(PING, b"in pieces"), Violation::Malformed);
        check(&frame(FINAL | PING, &[0; 126]), Violation::Malformed);
        check(&[FINAL | BINARY, 2, 0, 0], Violation::Malformed);
        check(&frame(FINAL | CLOSE, &[3]), Violation::Malformed);
        check(&frame(FINAL | CLOSE, &1005_u16.to_be_bytes()), Violation::Malformed);
        check(&frame(FINAL | CLOSE, &[3, 0xE8, 0xFF]), Violation::Malformed);
        check(&[frame(BINARY, b"a"), frame(FINAL | BINARY, b"b")].concat(), Violation::Malformed);
        check(&[frame(BINARY, b"a"), frame(FINAL | TEXT, b"b")].concat(), Violation::Malformed);
        check(&frame(FINAL | BINARY, &[0; 1_001]), Violation::TooLarge(1_001));
        let endless = [&[FINAL | BINARY, MASKED | 127][..], &[0xFF; 8], &MASK].concat();
        check(&endless, Violation::TooLarge(u64::MAX));
    }

    #[test]
    fn nothing_counts_after_a_close() {
        let bytes =
            [frame(FINAL | BINARY, b"a"), frame(FINAL | CLOSE, &[]), frame(FINAL | BINARY, b"b")].concat();
        let mut decoder = Decoder::new(1_000);
        assert_eq!(decode(&mut decoder, &bytes, bytes.len()), Ok(b"a".to_vec()));
        assert_eq!(decoder.closed(), Some(1000));
        let mut decoder = Decoder::new(1_000);
        let bytes = frame(FINAL | CLOSE, &[0x0F, 0xA0, b'x']);
        assert_eq!(decode(&mut decoder, &bytes, 1), Ok(Vec::new()));
        assert_eq!(decoder.closed(), Some(4000));
    }

    #[test]
    fn heads_have_the_shortest_length() {
        let check = |payload, expected: &[u8]| {
            let mut out = Vec::new();
            binary_head(&mut out, payload);
            assert_eq!(out, expected, "{payload}");
        };
        check(0, &[0x82, 0]);
        check(125, &[0x82, 125]);
        check(126, &[0x82, 126, 0, 126]);
        check(65_535, &[0x82, 126, 0xFF, 0xFF]);
        check(65_536, &[0x82, 127, 0, 0, 0, 0, 0, 1, 0, 0]);
    }
}
