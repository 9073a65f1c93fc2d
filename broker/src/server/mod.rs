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

/// What the listeners and the shard need to know.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where plain MQTT is accepted.
    pub mqtt_listen: std::net::SocketAddr,
    /// Who may connect.
    pub access: std::sync::Arc<crate::auth::Access>,
    /// Limits of connections and sessions.
    pub limits: Limits,
}

/// What one client may use. What happens at each limit stands beside it.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at one time; one more is refused with 0x97.
    pub connections: usize,
    /// Bytes of one packet; a larger one closes the connection with 0x95.
    pub packet_bytes: usize,
    /// Unacknowledged QoS 1 and 2 publishes the broker sends to one client; more wait in the journal.
    pub in_flight: u16,
    /// QoS 1 and 2 publishes one client may have unacknowledged (our Receive Maximum); a v5 client that sends
    /// more is disconnected with 0x93.
    pub receive_maximum: u16,
    /// The longest Session Expiry Interval in seconds; a longer wish is lowered to it, also for MQTT 3 clients
    /// without clean session.
    pub session_expiry_s: u32,
    /// The longest Keep Alive in seconds that is granted; 0 means any.
    pub keep_alive_s: u16,
    /// Time from the connection to its CONNECT packet; then it is closed.
    pub connect_timeout: std::time::Duration,
    /// Bytes waiting to be sent to one client; a slower reader leaves the live tail and reads the journal.
    pub outgoing_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 100_000,
            packet_bytes: 1 << 20,
            in_flight: 1_024,
            receive_maximum: 1_024,
            session_expiry_s: 7 * 24 * 3_600,
            keep_alive_s: 0,
            connect_timeout: std::time::Duration::from_secs(10),
            outgoing_bytes: 1 << 20,
        }
    }
}

/// Why the server did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {error}")]
    Listen {
        /// The configured address.
        address: std::net::SocketAddr,
        /// What the operating system says.
        error: std::io::Error,
    },
    /// The broker's state cannot be restored.
    #[error("cannot restore the broker's state: {0}")]
    Restore(String),
}

/// A running broker with its listeners.
#[derive(Debug)]
pub struct Server;

#[allow(unused_variables)]
impl Server {
    /// Restores the broker's state from `storage` and the journal, binds the listeners and starts the shard.
    pub fn start(
        options: Options,
        journal: crate::journal::Journal,
        appender: crate::journal::Appender,
        storage: std::sync::Arc<dyn crate::journal::Storage>,
    ) -> Result<Self, StartError> {
        todo!()
    }

    /// A handle for the other parts of the appliance.
    pub fn handle(&self) -> Handle {
        todo!()
    }

    /// Where it listens, with the port that was chosen if 0 was asked for.
    pub fn mqtt_address(&self) -> std::net::SocketAddr {
        todo!()
    }

    /// Stops accepting, tells clients (0x8B in v5), makes everything accepted durable, saves a checkpoint and
    /// ends; gives up waiting for clients at `deadline`.
    pub fn drain(self, deadline: std::time::Duration) {
        todo!()
    }
}
