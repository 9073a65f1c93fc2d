//! Bytes to packets.

use super::Version;
use super::error::{ConnectError, DecodeError};
use super::packet::{Connect, Packet};

/// What lies at the front of some received bytes.
#[derive(Clone, Debug, PartialEq)]
pub enum Decoded<P> {
    /// Not a whole packet yet, and nothing wrong so far.
    Incomplete {
        /// How many bytes the packet will have in all, once they are known.
        needed: Option<usize>,
    },
    /// A whole packet.
    Packet {
        /// The packet.
        packet: P,
        /// How many bytes it took; the next packet begins there.
        bytes: usize,
    },
}

/// Decodes the first packet of a connection, which must be a CONNECT [MQTT-3.1.0-1] of at most
/// `packet_bytes_max` bytes. It tells the version that everything after it speaks.
pub fn decode_connect(bytes: &[u8], packet_bytes_max: usize) -> Result<Decoded<Connect<'_>>, ConnectError> {
    let _ = (bytes, packet_bytes_max);
    todo!()
}

/// Decodes the packet at the front of `bytes`, whichever side sent it.
///
/// A packet of more than `packet_bytes_max` bytes is an error as soon as its length is known.
pub fn decode(
    bytes: &[u8],
    version: Version,
    packet_bytes_max: usize,
) -> Result<Decoded<Packet<'_>>, DecodeError> {
    let _ = (bytes, version, packet_bytes_max);
    todo!()
}

/// Decodes the packet at the front of `bytes`, which a client sent after its CONNECT: as [`decode`], and in
/// addition what only a server may send is an error (CONNACK, SUBACK ..., a Subscription Identifier in a PUBLISH
/// [MQTT-3.3.4-6], a server's Reason Codes in DISCONNECT), and so is a second CONNECT [MQTT-3.1.0-2].
pub fn decode_from_client(
    bytes: &[u8],
    version: Version,
    packet_bytes_max: usize,
) -> Result<Decoded<Packet<'_>>, DecodeError> {
    let _ = (bytes, version, packet_bytes_max);
    todo!()
}
