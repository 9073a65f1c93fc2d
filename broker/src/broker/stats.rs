//! What the broker counts.
//!
//! What became of every copy for a subscriber stands in [`Balance`].

use std::fmt;
use std::marker::PhantomData;

use super::ledger::Balance;
use super::limits::LimitCounts;
use crate::record::Refused;

/// A count for every kind of `K`, of which there are `N`.
pub struct Counts<K, const N: usize>([u64; N], PhantomData<K>);

impl<K: Into<usize>, const N: usize> Counts<K, N> {
    /// The count of one kind.
    pub fn of(&self, kind: K) -> u64 {
        self.0[kind.into()]
    }

    /// All counts together.
    pub fn sum(&self) -> u64 {
        self.0.iter().sum()
    }

    pub(super) fn add(&mut self, kind: K, count: u64) {
        self.0[kind.into()] += count;
    }
}

impl<K, const N: usize> Clone for Counts<K, N> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<K, const N: usize> Copy for Counts<K, N> {}

impl<K, const N: usize> Default for Counts<K, N> {
    fn default() -> Self {
        Self([0; N], PhantomData)
    }
}

impl<K, const N: usize> PartialEq for Counts<K, N> {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}

impl<K, const N: usize> Eq for Counts<K, N> {}

impl<K, const N: usize> fmt::Debug for Counts<K, N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Why an accepted publish does not reach a subscriber it was meant for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DropReason {
    /// Its Message Expiry Interval was over [MQTT-3.3.2-5].
    Expired,
    /// It is larger than the client takes [MQTT-3.1.2-25].
    TooLarge,
    /// The journal trimmed it before the session had read it, or before it could be sent again.
    Trimmed,
    /// At QoS 0, and the client of a kept session was away, or all members of a group were.
    Away,
    /// The subscriber may not read the topic.
    Denied,
    /// It waited for a session that ended, or had been sent to it and was not acknowledged.
    SessionEnded,
    /// The session unsubscribed, or lost the right to read the topic, before it had read it.
    Unsubscribed,
    /// The client has answered that it does not take it.
    Refused,
}

impl DropReason {
    /// Every reason.
    pub const ALL: [Self; 8] = [
        Self::Expired,
        Self::TooLarge,
        Self::Trimmed,
        Self::Away,
        Self::Denied,
        Self::SessionEnded,
        Self::Unsubscribed,
        Self::Refused,
    ];

    /// Its name in the metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Expired => "expired",
            Self::TooLarge => "too_large",
            Self::Trimmed => "trimmed",
            Self::Away => "away",
            Self::Denied => "denied",
            Self::SessionEnded => "session_ended",
            Self::Unsubscribed => "unsubscribed",
            Self::Refused => "refused",
        }
    }
}

impl From<DropReason> for usize {
    fn from(reason: DropReason) -> Self {
        reason as Self
    }
}

/// Why a publish was not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusalReason {
    /// The journal was full, and the publisher could be told.
    JournalFull,
    /// The journal has failed.
    JournalFailed,
    /// The publisher, over MQTT or HTTP, may not write to the topic.
    Denied,
    /// It was to be retained, and there is no room for more.
    Quota,
    /// The publisher was too fast, and was disconnected for it.
    Rate,
    /// Its topic has too many levels.
    TopicLevels,
    /// Its payload is not the text that it says it is.
    PayloadFormat,
}

impl RefusalReason {
    /// Every reason.
    pub const ALL: [Self; 7] = [
        Self::JournalFull,
        Self::JournalFailed,
        Self::Denied,
        Self::Quota,
        Self::Rate,
        Self::TopicLevels,
        Self::PayloadFormat,
    ];

    /// Its name in the metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::JournalFull => "journal_full",
            Self::JournalFailed => "journal_failed",
            Self::Denied => "denied",
            Self::Quota => "quota",
            Self::Rate => "rate",
            Self::TopicLevels => "topic_levels",
            Self::PayloadFormat => "payload_format",
        }
    }
}

impl From<Refused> for RefusalReason {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Full => Self::JournalFull,
            Refused::Failed => Self::JournalFailed,
        }
    }
}

impl From<RefusalReason> for usize {
    fn from(reason: RefusalReason) -> Self {
        reason as Self
    }
}

/// Totals since the start, and current counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Stats {
    pub connections: u64,
    /// Connections that were accepted by the network.
    pub connections_total: u64,
    /// CONNECT packets that were answered with success.
    pub connects_total: u64,
    pub connections_refused_total: u64,
    /// Logins refused for who the client is, and proofs that were not renewed, over MQTT or HTTP.
    pub logins_failed_total: u64,
    /// Logins refused unchecked after many that failed, over MQTT or HTTP.
    pub logins_unchecked_total: u64,
    /// Connections and streams that ended because a token had expired.
    pub credentials_expired_total: u64,
    /// Publishes and Wills that the rules did not allow, over MQTT or HTTP.
    pub publishes_denied_total: u64,
    pub subscriptions_denied_total: u64,
    pub sessions: u64,
    /// Sessions whose client is connected.
    pub sessions_connected: u64,
    /// The most of those there were at one time.
    pub sessions_connected_max: u64,
    pub sessions_expired_total: u64,
    pub subscriptions: u64,
    pub shared_subscriptions: u64,
    pub retained: u64,
    pub retained_bytes: u64,
    pub packets_in_total: u64,
    pub packets_out_total: u64,
    pub bytes_in_total: u64,
    pub bytes_out_total: u64,
    /// Publishes accepted.
    pub publishes_in_total: u64,
    pub publish_bytes_in_total: u64,
    /// PUBLISH packets sent, `publishes_again_total` and `publishes_stored_total` among them.
    pub publishes_out_total: u64,
    pub publish_bytes_out_total: u64,
    /// PUBLISH packets that were sent once more.
    pub publishes_again_total: u64,
    /// PUBLISH packets that were sent from the retained store, or below `$SYS`.
    pub publishes_stored_total: u64,
    pub publishes_refused: Counts<RefusalReason, { RefusalReason::ALL.len() }>,
    pub publishes_dropped: Counts<DropReason, { DropReason::ALL.len() }>,
    pub balance: Balance,
    pub protocol_errors_total: u64,
    /// Resident memory of the process.
    pub memory_bytes: u64,
    pub memory_bytes_max: u64,
    pub journal_entries: u64,
    pub journal_bytes: u64,
    pub limits: LimitCounts,
}
