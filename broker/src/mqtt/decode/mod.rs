//! Bytes to packets: the fixed header (section 2.1), and which body follows it.

mod connect;
mod publish;
mod rest;
mod subscribe;

use super::error::{Checked, ConnectError, DecodeError, malformed, protocol};
use super::packet::{Connect, Packet};
use super::wire::{NOT_MINIMAL, TOO_LONG, VarInt, var_int};
use super::{ReasonCode, Version};

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

/// Who sent a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sender {
    Client,
    Either,
}

/// Decodes the first packet of a connection, which must be a CONNECT [MQTT-3.1.0-1] of at most
/// `packet_bytes_max` bytes. It tells the version that everything after it speaks.
pub fn decode_connect(bytes: &[u8], packet_bytes_max: usize) -> Result<Decoded<Connect<'_>>, ConnectError> {
    let unknown = |error: &DecodeError| ConnectError { error: *error, version: None };
    match bytes.first() {
        None => return Ok(Decoded::Incomplete { needed: None }),
        Some(0x10) => {}
        Some(0x11..=0x1F) => return Err(unknown(RESERVED_FLAGS)),
        Some(_) => {
            return Err(unknown(protocol!(
                "the first packet of a connection must be CONNECT",
                "MQTT-3.1.0-1",
            )));
        }
    }
    match frame(bytes, packet_bytes_max).map_err(unknown)? {
        Frame::Incomplete { needed } => Ok(Decoded::Incomplete { needed }),
        Frame::TooLarge { bytes } => {
            Err(unknown(&DecodeError::TooLarge { bytes, bytes_max: packet_bytes_max }))
        }
        Frame::Whole { body, bytes, minimal } => {
            let packet = connect::connect(body)?;
            if packet.version.is_v5() && !minimal {
                return Err(ConnectError { error: *NOT_MINIMAL, version: Some(packet.version) });
            }
            Ok(Decoded::Packet { packet, bytes })
        }
    }
}

/// Decodes the packet at the front of `bytes`, whichever side sent it.
///
/// A packet of more than `packet_bytes_max` bytes is an error as soon as its length is known.
#[inline]
pub fn decode(
    bytes: &[u8],
    version: Version,
    packet_bytes_max: usize,
) -> Result<Decoded<Packet<'_>>, DecodeError> {
    decode_from(Sender::Either, bytes, version, packet_bytes_max)
}

/// Decodes the packet at the front of `bytes`, which a client sent after its CONNECT: as [`decode`], and in
/// addition what only a server may send is an error (CONNACK, SUBACK ..., a Subscription Identifier in a PUBLISH
/// [MQTT-3.3.4-6], a server's Reason Codes in DISCONNECT), and so is a second CONNECT [MQTT-3.1.0-2].
#[inline]
pub fn decode_from_client(
    bytes: &[u8],
    version: Version,
    packet_bytes_max: usize,
) -> Result<Decoded<Packet<'_>>, DecodeError> {
    decode_from(Sender::Client, bytes, version, packet_bytes_max)
}

#[inline]
fn decode_from(
    sender: Sender,
    bytes: &[u8],
    version: Version,
    packet_bytes_max: usize,
) -> Result<Decoded<Packet<'_>>, DecodeError> {
    let Some(&first) = bytes.first() else { return Ok(Decoded::Incomplete { needed: None }) };
    check_first(first, version, sender)?;
    let (body, bytes) = match frame(bytes, packet_bytes_max)? {
        Frame::Whole { minimal: false, .. } if version.is_v5() => return Err(*NOT_MINIMAL),
        Frame::Whole { body, bytes, .. } => (body, bytes),
        Frame::Incomplete { needed } => return Ok(Decoded::Incomplete { needed }),
        Frame::TooLarge { bytes } => {
            return Err(DecodeError::TooLarge { bytes, bytes_max: packet_bytes_max });
        }
    };
    // The packets that come by the million are read here and written straight into the result; the others are read
    // elsewhere, so that the way of the former is short.
    let whole = |packet| Ok(Decoded::Packet { packet, bytes });
    match first >> 4 {
        3 => whole(Packet::Publish(publish::publish(first, body, version, sender)?)),
        4 => whole(Packet::PubAck(publish::ack(body, version, publish::TAKEN_OVER)?)),
        5 => whole(Packet::PubRec(publish::ack(body, version, publish::TAKEN_OVER)?)),
        6 => whole(Packet::PubRel(publish::ack(body, version, publish::RELEASED)?)),
        7 => whole(Packet::PubComp(publish::ack(body, version, publish::RELEASED)?)),
        _ => whole(rare_packet(first, body, version, sender)?),
    }
}

const RESERVED_FLAGS: &DecodeError =
    malformed!("the reserved flags of a fixed header are not as they must be", "MQTT-2.1.3-1");

/// What the first byte decides alone.
#[inline]
fn check_first(first: u8, version: Version, sender: Sender) -> Checked<()> {
    let flags = first & 0x0F;
    match first >> 4 {
        3 => return check_publish_flags(flags),
        0 => return Err(malformed!("packet type 0 is reserved", "2.1.2")),
        15 if !version.is_v5() => {
            return Err(malformed!("packet type 15 is reserved before MQTT 5.0", "2.2.1"));
        }
        1 if sender == Sender::Client => {
            return Err(protocol!("a client sends CONNECT once", "MQTT-3.1.0-2"));
        }
        2 | 9 | 11 | 13 if sender == Sender::Client => {
            return Err(protocol!("only a server sends this type of packet", "2.1.2"));
        }
        _ => {}
    }
    let expected = match first >> 4 {
        6 | 8 | 10 => 0b0010,
        _ => 0b0000,
    };
    // MQTT 3.1 let a repeated PUBREL, SUBSCRIBE and UNSUBSCRIBE carry DUP, and called the flags of the others unused.
    if flags == expected || version == Version::V31 { Ok(()) } else { Err(RESERVED_FLAGS) }
}

#[inline]
fn check_publish_flags(flags: u8) -> Checked<()> {
    match flags & 0b0110 {
        0b0110 => Err(malformed!("a PUBLISH has QoS 0, 1 or 2", "MQTT-3.3.1-4")),
        0b0000 if flags & 0b1000 != 0 => {
            Err(malformed!("a PUBLISH with QoS 0 has no DUP flag", "MQTT-3.3.1-2"))
        }
        _ => Ok(()),
    }
}

enum Frame<'a> {
    Incomplete {
        needed: Option<usize>,
    },
    TooLarge {
        /// How many bytes it has.
        bytes: usize,
    },
    Whole {
        /// What follows the fixed header.
        body: &'a [u8],
        /// How many bytes the packet takes.
        bytes: usize,
        /// Whether its Remaining Length took as few bytes as it could. MQTT 5.0 asks for that, 3 does not.
        minimal: bool,
    },
}

/// Finds where the packet at the front of `bytes` ends; there is a first byte.
#[inline]
fn frame(bytes: &[u8], packet_bytes_max: usize) -> Checked<Frame<'_>> {
    let (remaining, length_bytes, minimal) = match var_int(&bytes[1..]) {
        VarInt::Value { value, bytes, minimal } => (value as usize, bytes, minimal),
        VarInt::Incomplete => return Ok(Frame::Incomplete { needed: None }),
        VarInt::TooLong => return Err(TOO_LONG),
    };
    let head = 1 + length_bytes;
    let total = head + remaining;
    if total > packet_bytes_max {
        return Ok(Frame::TooLarge { bytes: total });
    }
    match bytes.get(head..total) {
        Some(body) => Ok(Frame::Whole { body, bytes: total, minimal }),
        None => Ok(Frame::Incomplete { needed: Some(total) }),
    }
}

#[inline(never)]
fn rare_packet(first: u8, body: &[u8], version: Version, sender: Sender) -> Result<Packet<'_>, DecodeError> {
    Ok(match first >> 4 {
        1 => Packet::Connect(Box::new(connect::connect(body)?)),
        2 => Packet::ConnAck(Box::new(connect::connack(body, version)?)),
        8 => Packet::Subscribe(subscribe::subscribe(body, version)?),
        9 => Packet::SubAck(subscribe::suback(body, version)?),
        10 => Packet::Unsubscribe(subscribe::unsubscribe(body, version)?),
        11 => Packet::UnsubAck(subscribe::unsuback(body, version)?),
        12 => rest::ping(body).map(|()| Packet::PingReq)?,
        13 => rest::ping(body).map(|()| Packet::PingResp)?,
        14 => Packet::Disconnect(rest::disconnect(body, version, sender)?),
        _ => Packet::Auth(rest::auth(body, sender)?),
    })
}

/// Reads a Reason Code that must be one of `legal`.
fn reason_code(byte: u8, legal: &[ReasonCode], illegal: &'static DecodeError) -> Checked<ReasonCode> {
    ReasonCode::from_u8(byte).filter(|reason| legal.contains(reason)).ok_or(illegal)
}
