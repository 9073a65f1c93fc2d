//! What is wrong with a packet, and how its sender is told.

use super::{ReasonCode, Version, encode};
use crate::topic::TOPIC_LEVELS_MAX;

/// Why bytes are not a packet that may be received. The connection they came on must be closed
/// [MQTT-4.13.1-1].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The bytes cannot be read as the specification says.
    #[error("malformed packet: {what} [{clause}]")]
    Malformed {
        /// What is wrong.
        what: &'static str,
        /// The clause of the specification that says so.
        clause: &'static str,
    },
    /// The bytes can be read but say what is not allowed.
    #[error("protocol error: {what} [{clause}]")]
    Protocol {
        /// What is wrong.
        what: &'static str,
        /// The clause of the specification that says so.
        clause: &'static str,
    },
    /// A topic alias of 0, which no one may use.
    #[error("a topic alias is never 0 [MQTT-3.3.2-8]")]
    TopicAlias,
    /// A Topic Name that is well-formed and has more levels than are taken here.
    #[error("a topic has at most {TOPIC_LEVELS_MAX} levels here")]
    TopicLevels,
    /// More bytes than the receiver takes.
    #[error("a packet of {bytes} bytes is larger than the {bytes_max} allowed here [MQTT-3.2.2-15]")]
    TooLarge {
        /// How many bytes the packet has.
        bytes: usize,
        /// How many it may have.
        bytes_max: usize,
    },
    /// A CONNECT of a version that is not spoken here.
    #[error("protocol level {level} is not supported: use MQTT 3.1, 3.1.1 or 5.0 [MQTT-3.1.2-2]")]
    UnsupportedVersion {
        /// The Protocol Level byte.
        level: u8,
    },
}

/// What reading a part of a packet gives. A fault is a reference to a constant, so that the results on the way of a
/// good packet stay small.
pub(super) type Checked<T> = Result<T, &'static DecodeError>;

/// A malformed packet: what is wrong, and the clause that says so.
macro_rules! malformed {
    ($what:expr, $clause:expr $(,)?) => {
        &const { $crate::mqtt::DecodeError::Malformed { what: $what, clause: $clause } }
    };
}

/// A Protocol Error: what is wrong, and the clause that says so.
macro_rules! protocol {
    ($what:expr, $clause:expr $(,)?) => {
        &const { $crate::mqtt::DecodeError::Protocol { what: $what, clause: $clause } }
    };
}

pub(super) use {malformed, protocol};

impl DecodeError {
    /// The Reason Code for the DISCONNECT or CONNACK that ends the connection.
    pub const fn reason(&self) -> ReasonCode {
        match self {
            Self::Malformed { .. } => ReasonCode::MalformedPacket,
            Self::Protocol { .. } => ReasonCode::ProtocolError,
            Self::TopicAlias => ReasonCode::TopicAliasInvalid,
            Self::TopicLevels => ReasonCode::TopicNameInvalid,
            Self::TooLarge { .. } => ReasonCode::PacketTooLarge,
            Self::UnsupportedVersion { .. } => ReasonCode::UnsupportedProtocolVersion,
        }
    }
}

/// Why the first packet of a connection is not a CONNECT that may be received.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{error}")]
pub struct ConnectError {
    /// What is wrong.
    pub error: DecodeError,
    /// The version the client asked for, if the bytes tell.
    pub version: Option<Version>,
}

impl ConnectError {
    /// The Reason Code that fits.
    pub const fn reason(&self) -> ReasonCode {
        self.error.reason()
    }

    /// Writes the CONNACK to send before the connection is closed. Writes nothing where none may be sent: to
    /// what is not an MQTT client, and to an MQTT 3 client unless its version is refused [MQTT-3.1.4-1].
    pub fn answer(&self, out: &mut Vec<u8>) {
        let version = match (self.error, self.version) {
            // A bridge sets the high bit of the level to ask for private extensions and tries again without it
            // when it is refused in its own version.
            (DecodeError::UnsupportedVersion { level }, _) if level & 0x7F < 5 => Version::V311,
            (DecodeError::UnsupportedVersion { .. }, _) | (_, Some(Version::V5)) => Version::V5,
            (_, Some(Version::V31 | Version::V311) | None) => return,
        };
        encode::connack_refused(out, version, self.reason());
    }
}

impl From<ConnectError> for DecodeError {
    fn from(error: ConnectError) -> Self {
        error.error
    }
}

impl From<&'static Self> for DecodeError {
    #[cold]
    fn from(fault: &'static Self) -> Self {
        *fault
    }
}
