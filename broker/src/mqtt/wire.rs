//! The data representations of section 1.5, read one after another.

use std::str::from_utf8;

use super::error::{Checked, DecodeError, malformed, protocol};
use crate::topic::{TOPIC_LEVELS_MAX, TopicError, TopicFilter, TopicName};

const SHORT: &DecodeError = malformed!("the packet ends inside a field", "2.1.4");

/// Reads values from the front of the bytes of one packet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    pub(super) const fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// What has not been read.
    pub(super) const fn rest(self) -> &'a [u8] {
        self.0
    }

    pub(super) const fn is_empty(self) -> bool {
        self.0.is_empty()
    }

    #[inline]
    pub(super) fn take(&mut self, bytes: usize) -> Checked<&'a [u8]> {
        let (value, rest) = self.0.split_at_checked(bytes).ok_or(SHORT)?;
        self.0 = rest;
        Ok(value)
    }

    #[inline]
    fn array<const N: usize>(&mut self) -> Checked<[u8; N]> {
        let (value, rest) = self.0.split_first_chunk().ok_or(SHORT)?;
        self.0 = rest;
        Ok(*value)
    }

    #[inline]
    pub(super) fn u8(&mut self) -> Checked<u8> {
        self.array().map(|[byte]| byte)
    }

    #[inline]
    pub(super) fn u16(&mut self) -> Checked<u16> {
        self.array().map(u16::from_be_bytes)
    }

    #[inline]
    pub(super) fn u32(&mut self) -> Checked<u32> {
        self.array().map(u32::from_be_bytes)
    }

    /// A Packet Identifier, which is never 0.
    #[inline]
    pub(super) fn packet_id(&mut self) -> Checked<u16> {
        match self.u16()? {
            0 => Err(protocol!("a Packet Identifier is never 0", "MQTT-2.2.1-3")),
            packet_id => Ok(packet_id),
        }
    }

    /// A Variable Byte Integer of MQTT 5.0.
    #[inline]
    pub(super) fn var_int(&mut self) -> Checked<u32> {
        match var_int(self.0) {
            VarInt::Value { value, bytes, minimal: true } => {
                self.take(bytes)?;
                Ok(value)
            }
            VarInt::Value { minimal: false, .. } => Err(NOT_MINIMAL),
            VarInt::Incomplete => Err(SHORT),
            VarInt::TooLong => Err(TOO_LONG),
        }
    }

    /// Binary Data, or the bytes of a UTF-8 Encoded String: two bytes of length in front (sections 1.5.4, 1.5.6).
    #[inline]
    pub(super) fn binary(&mut self) -> Checked<&'a [u8]> {
        let bytes = self.u16()?;
        self.take(usize::from(bytes))
    }

    /// A UTF-8 Encoded String.
    #[inline]
    pub(super) fn text(&mut self) -> Checked<&'a str> {
        text(self.binary()?)
    }

    /// The section of properties at this place of an MQTT 5.0 packet, without its length.
    #[inline]
    pub(super) fn properties(&mut self) -> Checked<&'a [u8]> {
        let bytes = self.var_int()?;
        self.take(bytes as usize)
    }

    /// That nothing is left.
    #[inline]
    pub(super) const fn end(self) -> Checked<()> {
        if self.0.is_empty() {
            Ok(())
        } else {
            Err(malformed!("bytes are left over at the end of the packet", "2.1.4"))
        }
    }
}

/// A Variable Byte Integer at the front of some bytes (section 1.5.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum VarInt {
    /// Its value, how many bytes it took, and whether no fewer would have done.
    Value { value: u32, bytes: usize, minimal: bool },
    /// The bytes end before it does.
    Incomplete,
    /// A fifth byte would follow.
    TooLong,
}

pub(super) const NOT_MINIMAL: &DecodeError =
    malformed!("a Variable Byte Integer takes more bytes than it needs", "MQTT-1.5.5-1");
pub(super) const TOO_LONG: &DecodeError =
    malformed!("a Variable Byte Integer has at most four bytes", "1.5.5");

/// Reads a Variable Byte Integer.
#[inline]
pub(super) fn var_int(bytes: &[u8]) -> VarInt {
    let mut value = 0;
    for at in 0..4 {
        let Some(&byte) = bytes.get(at) else { return VarInt::Incomplete };
        value |= u32::from(byte & 0x7F) << (7 * at);
        if byte & 0x80 == 0 {
            return VarInt::Value { value, bytes: at + 1, minimal: byte != 0 || at == 0 };
        }
    }
    VarInt::TooLong
}

const ILL_FORMED: &DecodeError = malformed!("a string is not well-formed UTF-8", "MQTT-1.5.4-1");
const NUL: &DecodeError = malformed!("a string holds the character U+0000", "MQTT-1.5.4-2");

/// A UTF-8 Encoded String's bytes as text. A byte order mark is a character like any other [MQTT-1.5.4-3].
#[inline]
pub(super) fn text(bytes: &[u8]) -> Checked<&str> {
    let text = from_utf8(bytes).map_err(|_| ILL_FORMED)?;
    if is_plain::<false>(bytes) { Ok(text) } else { Err(NUL) }
}

/// Text that was checked when its packet was decoded.
pub(super) fn trusted_text(bytes: &[u8]) -> &str {
    from_utf8(bytes).expect("checked when the packet was decoded")
}

/// A Topic Name.
#[inline]
pub(super) fn topic_name(bytes: &[u8]) -> Checked<TopicName<'_>> {
    let text = from_utf8(bytes).map_err(|_| ILL_FORMED)?;
    // Only a long one can have too many levels.
    if !bytes.is_empty() && bytes.len() < TOPIC_LEVELS_MAX && is_plain::<true>(bytes) {
        return Ok(TopicName::trusted(text));
    }
    TopicName::new(text).map_err(topic_error)
}

/// That `text` is a Topic Filter; `None` if only its levels are too many, which its own Reason Code tells and not
/// the end of the connection.
pub(super) fn check_filter(text: &str) -> Checked<Option<TopicFilter>> {
    match TopicFilter::new(text) {
        Ok(filter) => Ok(Some(filter)),
        Err(TopicError::TooManyLevels) => Ok(None),
        Err(error) => Err(topic_error(error)),
    }
}

pub(super) const fn topic_error(error: TopicError) -> &'static DecodeError {
    match error {
        TopicError::Empty => malformed!("a topic needs at least one character", "MQTT-4.7.3-1"),
        TopicError::TooLong => malformed!("a topic has at most 65535 bytes", "MQTT-4.7.3-3"),
        TopicError::TooManyLevels => &DecodeError::TopicLevels,
        TopicError::Nul => NUL,
        TopicError::WildcardInName => {
            malformed!("a Topic Name cannot hold the wildcards + and #", "MQTT-3.3.2-2")
        }
        TopicError::MisplacedWildcard => {
            malformed!("a wildcard must fill its level, and # must be the last level", "MQTT-4.7.1-1")
        }
        TopicError::MalformedShare => malformed!(
            "a Shared Subscription is written $share/name/filter, with no + or # in the name",
            "MQTT-4.8.2-2",
        ),
    }
}

/// Whether none of `bytes` is 0 or, where that is asked for, `+` or `#`. Runs for every string of every packet:
/// blocks of a fixed size and no early return let it be done in vector registers.
#[inline]
fn is_plain<const NO_WILDCARDS: bool>(bytes: &[u8]) -> bool {
    let is_bad = |byte: u8| {
        // `+` and `#` differ in the bit 0x08 alone.
        const DIFFERENCE: u8 = b'+' ^ b'#';
        (byte == 0) | (NO_WILDCARDS & ((byte | DIFFERENCE) == b'+'))
    };
    let any_bad = |block: &[u8; 16]| block.iter().fold(false, |bad, byte| bad | is_bad(*byte));
    // The last block overlaps the one before, which costs less than what is left byte by byte.
    if let Some(last) = bytes.last_chunk() {
        let (blocks, _) = bytes.as_chunks();
        return !blocks.iter().fold(any_bad(last), |bad, block| bad | any_bad(block));
    }
    let mut last = [b'/'; 16];
    last[..bytes.len()].copy_from_slice(bytes);
    !any_bad(&last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_bytes_hold_no_nul_and_no_wildcard() {
        for length in 0..70 {
            let mut bytes = vec![b'a'; length];
            assert!(is_plain::<true>(&bytes) && is_plain::<false>(&bytes));
            for at in 0..length {
                for byte in 0..=u8::MAX {
                    bytes[at] = byte;
                    let plain = !matches!(byte, 0 | b'+' | b'#');
                    assert_eq!(is_plain::<true>(&bytes), plain, "{byte} at {at} of {length}");
                    assert_eq!(is_plain::<false>(&bytes), byte != 0, "{byte} at {at} of {length}");
                }
                bytes[at] = b'a';
            }
        }
    }

    #[test]
    fn variable_byte_integers_are_read_as_in_table_1_1() {
        let check = |bytes: &[u8], expected| assert_eq!(var_int(bytes), expected, "{bytes:?}");
        let value = |value, bytes, minimal| VarInt::Value { value, bytes, minimal };
        check(&[0], value(0, 1, true));
        check(&[0x7F, 9], value(127, 1, true));
        check(&[0x80, 0x01], value(128, 2, true));
        check(&[0xFF, 0x7F], value(16_383, 2, true));
        check(&[0x80, 0x80, 0x01], value(16_384, 3, true));
        check(&[0xFF, 0xFF, 0x7F], value(2_097_151, 3, true));
        check(&[0x80, 0x80, 0x80, 0x01], value(2_097_152, 4, true));
        check(&[0xFF, 0xFF, 0xFF, 0x7F], value(268_435_455, 4, true));
        check(&[0x80, 0x00], value(0, 2, false));
        check(&[0xFF, 0x80, 0x00], value(127, 3, false));
        check(&[], VarInt::Incomplete);
        check(&[0x80], VarInt::Incomplete);
        check(&[0xFF, 0xFF, 0xFF], VarInt::Incomplete);
        check(&[0xFF, 0xFF, 0xFF, 0x80], VarInt::TooLong);
        check(&[0x80, 0x80, 0x80, 0x80, 0x01], VarInt::TooLong);
    }
}
