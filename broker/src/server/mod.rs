//! Listeners and the shard. (Interface first.)

use bytes::Bytes;

use crate::record::{Offset, Qos, Refused};

/// A publish that does not come from an MQTT connection.
#[derive(Clone, Debug)]
pub struct LocalPublish {
    /// Stands in for the Client Identifier of the publisher.
    pub client: String,
    /// A Topic Name.
    pub topic: String,
    /// Its payload.
    pub payload: Bytes,
    /// Its QoS.
    pub qos: Qos,
    /// Whether it becomes the topic's retained record.
    pub retain: bool,
    /// Travelling properties, encoded as [`crate::record::Properties`].
    pub properties: Vec<u8>,
}

/// Why a local publish was not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// Not a Topic Name.
    #[error(transparent)]
    Topic(#[from] crate::topic::TopicError),
    /// The journal refused it.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// Too many local publishes wait already.
    #[error("the broker is busy: try again")]
    Busy,
    /// The broker is draining.
    #[error("the broker is stopping")]
    Stopped,
}

/// Totals since the start, and current counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Stats {
    pub connections: u64,
    pub connections_total: u64,
    pub connections_refused_total: u64,
    pub sessions: u64,
    pub subscriptions: u64,
    pub retained: u64,
    pub packets_in_total: u64,
    pub packets_out_total: u64,
    pub bytes_in_total: u64,
    pub bytes_out_total: u64,
    pub publishes_in_total: u64,
    pub publishes_out_total: u64,
    pub publishes_refused_total: u64,
    pub publishes_dropped_total: u64,
    pub protocol_errors_total: u64,
}

/// A handle to the running broker; cheap to clone, usable from any thread.
#[derive(Clone, Debug)]
pub struct Handle;

#[allow(unused_variables)]
impl Handle {
    /// Publishes; `done` is called once, from the shard's thread, when the record is durable or refused. It must
    /// not block.
    pub fn publish(
        &self,
        publish: LocalPublish,
        done: impl FnOnce(Result<Offset, PublishError>) + Send + 'static,
    ) {
        todo!()
    }

    /// What the broker has done so far.
    pub fn stats(&self) -> Stats {
        todo!()
    }
}
