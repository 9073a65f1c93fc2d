//! What clients may use, what happens where they would use more, and how often that came to pass.

use std::time::Duration;

use super::stats::Counts;

/// What clients may use. What happens at each limit stands beside it; [`Limit`] has its name in the statistics.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at one time; the CONNECT of one more is answered 0x97, or 3 in MQTT 3.
    pub connections: usize,
    /// Connections from one address at one time, answered as above; 0 means any number.
    pub connections_per_address: usize,
    /// New connections per second, with so many saved up; the CONNECT of one more is answered 0x9F, or 3 in MQTT 3.
    /// 0 means any number.
    pub connect_rate: u32,
    /// Time from the connection to its CONNECT packet; then it is closed.
    pub connect_timeout: Duration,
    /// Bytes of one packet; a larger one closes the connection with 0x95.
    pub packet_bytes: usize,
    /// PUBLISH packets one connection may send per second, with so many saved up; 0 means any number.
    pub publish_rate: u32,
    /// Bytes of Topic Names and payloads one connection may publish per second, with so many saved up; 0 means any
    /// number.
    pub publish_bytes_rate: u64,
    /// What happens to a client that publishes faster.
    pub publish_rate_action: RateAction,
    /// Filters one session may subscribe to; one more is answered 0x97, or 0x80 in MQTT 3.
    pub subscriptions: usize,
    /// Levels of a Topic Name, at most [`crate::topic::TOPIC_LEVELS_MAX`]: a deeper publish closes the connection
    /// with 0x90, a deeper filter is answered 0x8F, or 0x80 in MQTT 3.
    pub topic_levels: usize,
    /// Unacknowledged QoS 1 and 2 publishes the broker sends to one client; more wait in the journal.
    pub in_flight: u16,
    /// QoS 1 and 2 publishes one client may have unacknowledged (our Receive Maximum); a v5 client that sends
    /// more is disconnected with 0x93.
    pub receive_maximum: u16,
    /// Sessions, with or without a client; the CONNECT that would make one more is answered 0x97, or 3 in MQTT 3.
    pub sessions: usize,
    /// The longest Session Expiry Interval in seconds; a longer wish is lowered to it, also for MQTT 3 clients
    /// without clean session.
    pub session_expiry_s: u32,
    /// The longest Keep Alive in seconds that is granted to an MQTT 5 client, which is told (MQTT 3 has no word for
    /// it); a client may turn it off. 0 means any.
    pub keep_alive_s: u16,
    /// Topics with a retained record. A publish that would make one more is answered 0x97; in MQTT 3 and at QoS 0
    /// it is carried without being retained.
    pub retained: usize,
    /// Bytes of all retained records together, answered as above.
    pub retained_bytes: usize,
    /// Bytes waiting to be sent to one client. A slower reader leaves the live tail and reads the journal; nothing is
    /// read from a client that lets so many answers wait.
    pub outgoing_bytes: usize,
    /// Memory of the process. While it uses more, the CONNECT of a new connection is answered 0x97, or 3 in MQTT 3,
    /// and nothing is read from a client that publishes: nothing is lost. 0 lets the shell choose three quarters of
    /// what there is.
    pub memory_bytes: u64,
    /// How often the values below `$SYS` are brought up to date; zero switches them off.
    pub system_interval: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 100_000,
            connections_per_address: 0,
            connect_rate: 10_000,
            connect_timeout: Duration::from_secs(10),
            packet_bytes: 1 << 20,
            publish_rate: 0,
            publish_bytes_rate: 0,
            publish_rate_action: RateAction::Hold,
            subscriptions: 16_384,
            topic_levels: crate::topic::TOPIC_LEVELS_MAX,
            in_flight: 4_096,
            receive_maximum: 1_024,
            sessions: 1_000_000,
            session_expiry_s: 7 * 24 * 3_600,
            keep_alive_s: 60,
            retained: 1_000_000,
            retained_bytes: 256 << 20,
            outgoing_bytes: 1 << 20,
            memory_bytes: 0,
            system_interval: Duration::from_secs(10),
        }
    }
}

/// What happens to a client that publishes faster than it may.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RateAction {
    /// Nothing is read from it until it may publish again: it has to wait, and nothing is lost.
    #[default]
    Hold,
    /// It is disconnected with 0x96.
    Disconnect,
}

/// A limit that was reached, for the statistics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Limit {
    Connections,
    ConnectionsPerAddress,
    ConnectRate,
    ConnectTimeout,
    PacketBytes,
    PublishRate,
    PublishBytesRate,
    Subscriptions,
    TopicLevels,
    InFlight,
    ReceiveMaximum,
    Sessions,
    Retained,
    RetainedBytes,
    OutgoingBytes,
    Memory,
}

impl Limit {
    /// Every limit, in the order of [`Limits`].
    pub const ALL: [Self; 16] = [
        Self::Connections,
        Self::ConnectionsPerAddress,
        Self::ConnectRate,
        Self::ConnectTimeout,
        Self::PacketBytes,
        Self::PublishRate,
        Self::PublishBytesRate,
        Self::Subscriptions,
        Self::TopicLevels,
        Self::InFlight,
        Self::ReceiveMaximum,
        Self::Sessions,
        Self::Retained,
        Self::RetainedBytes,
        Self::OutgoingBytes,
        Self::Memory,
    ];

    /// Its name in the metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Connections => "connections",
            Self::ConnectionsPerAddress => "connections_per_address",
            Self::ConnectRate => "connect_rate",
            Self::ConnectTimeout => "connect_timeout",
            Self::PacketBytes => "packet_bytes",
            Self::PublishRate => "publish_rate",
            Self::PublishBytesRate => "publish_bytes_rate",
            Self::Subscriptions => "subscriptions",
            Self::TopicLevels => "topic_levels",
            Self::InFlight => "in_flight",
            Self::ReceiveMaximum => "receive_maximum",
            Self::Sessions => "sessions",
            Self::Retained => "retained",
            Self::RetainedBytes => "retained_bytes",
            Self::OutgoingBytes => "outgoing_bytes",
            Self::Memory => "memory",
        }
    }
}

impl From<Limit> for usize {
    fn from(limit: Limit) -> Self {
        limit as Self
    }
}

/// How often each limit was reached.
pub type LimitCounts = Counts<Limit, { Limit::ALL.len() }>;
