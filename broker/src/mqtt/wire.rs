//! The data representations of section 1.5, read one after another.

use std::str::from_utf8;

/// Reads values from the front of bytes that are all there. Every `None` means: the bytes end too early.
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
    pub(super) fn take(&mut self, bytes: usize) -> Option<&'a [u8]> {
        let (value, rest) = self.0.split_at_checked(bytes)?;
        self.0 = rest;
        Some(value)
    }

    #[inline]
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (value, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*value)
    }

    #[inline]
    pub(super) fn u8(&mut self) -> Option<u8> {
        self.array().map(|[byte]| byte)
    }

    #[inline]
    pub(super) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    #[inline]
    pub(super) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    /// Binary Data, or the bytes of a UTF-8 Encoded String: two bytes of length in front (sections 1.5.4, 1.5.6).
    #[inline]
    pub(super) fn binary(&mut self) -> Option<&'a [u8]> {
        let bytes = self.u16()?;
        self.take(usize::from(bytes))
    }
}

/// A Variable Byte Integer at the front of some bytes (section 1.5.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum VarInt {
    /// Its value, how many bytes it took, and whether fewer would have done.
    Value { value: u32, bytes: usize, minimal: bool },
    /// The bytes end before it does.
    Incomplete,
    /// A fifth byte would follow [MQTT-1.5.5-1].
    TooLong,
}

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

/// A UTF-8 Encoded String's bytes as text; `None` if they are ill-formed [MQTT-1.5.4-1] or hold U+0000
/// [MQTT-1.5.4-2]. A byte order mark is a character like any other [MQTT-1.5.4-3].
#[inline]
pub(super) fn text(bytes: &[u8]) -> Option<&str> {
    if bytes.contains(&0) { None } else { from_utf8(bytes).ok() }
}

/// Text that was checked when its packet was decoded.
pub(super) fn trusted_text(bytes: &[u8]) -> &str {
    from_utf8(bytes).expect("checked when the packet was decoded")
}
