//! The wire: bytes to packets and back, for MQTT 3.1, 3.1.1 and 5.0; knows no sessions.
//!
//! A decoded [`Packet`] borrows from the bytes it was read from, and one that exists is valid: every rule that
//! the bytes of one packet can decide has been checked. What needs a session to decide (is this Packet
//! Identifier in use, is this topic alias known, may this client publish here) is left to the broker core.
//!
//! Decoding: [`decode_connect`] for the first packet of a connection, which finds the version, then
//! [`decode_from_client`] (a broker's side) or [`decode`] (which also takes what only servers send).
//! Encoding: one function per packet in [`encode`]. It writes into a `Vec<u8>`: what leaves a connection is
//! one growing run of bytes that is written and cleared, which needs no reference counts, and a `Vec` appends
//! in fewer instructions than `BytesMut`.
//!
//! Clauses are cited by their MQTT 5.0 numbers, and by 3.1.1 numbers where only that version has the rule.

mod decode;
pub mod encode;
mod error;
mod packet;
mod property;
mod reason;
#[cfg(test)]
mod tests;
mod wire;

pub use decode::{Decoded, decode, decode_connect, decode_from_client};
pub use error::{ConnectError, DecodeError};
pub use packet::{
    Ack, Auth, ConnAck, Connect, Disconnect, Filters, FiltersIter, Packet, Publish, ReasonCodes,
    RetainHandling, SubAck, Subscribe, Subscription, Subscriptions, SubscriptionsIter, UnsubAck, Unsubscribe,
    Will,
};
pub use property::{SubscriptionIds, UserProperties, UserPropertiesIter, WireProperties};
pub use reason::ReasonCode;

/// The largest packet that can be written: five bytes of fixed header and the largest Remaining Length.
pub const PACKET_BYTES_MAX: usize = 5 + REMAINING_LENGTH_MAX;

/// The largest Remaining Length in bytes (section 1.5.5).
pub const REMAINING_LENGTH_MAX: usize = 268_435_455;

/// A version of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub enum Version {
    /// MQTT 3.1, protocol name `MQIsdp`, level 3.
    V31,
    /// MQTT 3.1.1, protocol name `MQTT`, level 4.
    V311,
    /// MQTT 5.0, protocol name `MQTT`, level 5.
    V5,
}

impl Version {
    /// The Protocol Level (3.1.1) or Protocol Version (5.0) byte of CONNECT.
    pub const fn level(self) -> u8 {
        match self {
            Self::V31 => 3,
            Self::V311 => 4,
            Self::V5 => 5,
        }
    }

    /// Whether packets carry properties and acknowledgements carry Reason Codes.
    pub const fn is_v5(self) -> bool {
        matches!(self, Self::V5)
    }
}
