//! The control entries: changes of sessions that must outlive a crash, as they lie in the journal.
//!
//! A session is named by its number, which is never used again; only [`Control::Connected`] carries the Client
//! Identifier. New kinds are added at the end, so that older journals stay readable.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use crate::record::{Offset, Qos, Timestamp};
use crate::retained::Retained;
use crate::router::SubscriptionOptions;

/// A Will, as its CONNECT gave it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Will {
    /// A Topic Name.
    pub topic: Box<str>,
    /// Encoded travelling properties.
    pub properties: Box<[u8]>,
    /// Its payload.
    pub payload: Box<[u8]>,
    /// Its QoS.
    pub qos: Qos,
    /// Whether it becomes the topic's retained record.
    pub retain: bool,
    /// Seconds between the end of the connection and its publication (Will Delay Interval).
    pub delay_s: u32,
}

/// One change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Control<'a> {
    /// A client connected; the session is new if its number is.
    Connected {
        /// The session.
        session: u64,
        /// The Client Identifier.
        #[serde(borrow)]
        client: Cow<'a, str>,
        /// Its Session Expiry Interval in seconds; `u32::MAX` means never.
        expiry_s: u32,
        /// Its Will.
        will: Option<Cow<'a, Will>>,
    },
    /// The connection ended.
    Disconnected {
        /// The session.
        session: u64,
        /// When.
        at: Timestamp,
        /// The Session Expiry Interval from now on.
        expiry_s: u32,
        /// Whether its Will is still to be published.
        will_waits: bool,
    },
    /// The session and everything in it is gone.
    Ended {
        /// The session.
        session: u64,
    },
    /// The Will was published or is void.
    WillDone {
        /// The session.
        session: u64,
    },
    /// Filters were subscribed, in place of earlier ones that are equal.
    Subscribed {
        /// The session.
        session: u64,
        /// Filters and what was granted.
        #[serde(borrow)]
        filters: Vec<(Cow<'a, str>, SubscriptionOptions)>,
    },
    /// Filters were unsubscribed.
    Unsubscribed {
        /// The session.
        session: u64,
        /// The filters.
        #[serde(borrow)]
        filters: Vec<Cow<'a, str>>,
    },
    /// PUBREL came: the Packet Identifier of a received QoS 2 publish is free again.
    Released {
        /// The session.
        session: u64,
        /// The client's Packet Identifier.
        packet_id: u16,
    },
    /// A QoS 2 delivery gets this Packet Identifier.
    Announced {
        /// The session.
        session: u64,
        /// The broker's Packet Identifier.
        packet_id: u16,
        /// What is delivered.
        offset: Offset,
    },
    /// PUBREC came for a QoS 2 delivery: it must not be sent again.
    Received {
        /// The session.
        session: u64,
        /// The broker's Packet Identifier.
        packet_id: u16,
    },
    /// PUBCOMP came for a QoS 2 delivery.
    Completed {
        /// The session.
        session: u64,
        /// The broker's Packet Identifier.
        packet_id: u16,
    },
    /// Every record before `position` that belongs to the session is acknowledged.
    Progress {
        /// The session.
        session: u64,
        /// Where its backlog begins.
        position: Offset,
    },
    /// A QoS 2 delivery of a retained record gets this Packet Identifier. The record comes along, because the
    /// journal may have trimmed it long ago.
    AnnouncedRetained {
        /// The session.
        session: u64,
        /// The broker's Packet Identifier.
        packet_id: u16,
        /// What is delivered.
        retained: Cow<'a, Retained>,
    },
    /// A QoS 2 delivery for the group of a shared subscription gets this Packet Identifier.
    AnnouncedShared {
        /// The session.
        session: u64,
        /// The broker's Packet Identifier.
        packet_id: u16,
        /// What is delivered.
        offset: Offset,
        /// The filter of the group, with its ShareName.
        share: Cow<'a, str>,
    },
    /// Every record before `position` that belongs to the group of a shared subscription is acknowledged.
    SharedProgress {
        /// The filter of the group, with its ShareName.
        share: Cow<'a, str>,
        /// Where its backlog begins.
        position: Offset,
    },
}

impl Control<'_> {
    /// As the body of a control entry.
    pub fn encode(&self) -> Vec<u8> {
        postcard::to_stdvec(self).expect("encoding into memory cannot fail for types without unknown lengths")
    }

    /// From the body of a control entry.
    pub fn decode(body: &[u8]) -> Result<Control<'_>, postcard::Error> {
        postcard::from_bytes(body)
    }
}
