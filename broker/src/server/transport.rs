//! The ways a client can come, and how many came by each.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

/// How MQTT is carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// Plain TCP.
    Tcp,
    /// TLS over TCP.
    Tls,
    /// WebSocket over TCP.
    Ws,
    /// WebSocket over TLS.
    Wss,
    /// A Unix socket.
    Unix,
}

impl Transport {
    /// Every transport.
    pub const ALL: [Self; 5] = [Self::Tcp, Self::Tls, Self::Ws, Self::Wss, Self::Unix];

    /// What it is called in metrics, messages and `/health`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Tls => "tls",
            Self::Ws => "ws",
            Self::Wss => "wss",
            Self::Unix => "unix",
        }
    }

    /// Whether it is encrypted.
    pub(super) const fn is_tls(self) -> bool {
        match self {
            Self::Tls | Self::Wss => true,
            Self::Tcp | Self::Ws | Self::Unix => false,
        }
    }

    /// Whether MQTT lies in WebSocket frames.
    pub(super) const fn is_web(self) -> bool {
        match self {
            Self::Ws | Self::Wss => true,
            Self::Tcp | Self::Tls | Self::Unix => false,
        }
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What came by one transport.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TransportStats {
    /// Open connections.
    pub connections: u64,
    /// Connections since the start.
    pub connections_total: u64,
    /// Connections that ended before the first byte of MQTT because their PROXY header, TLS or WebSocket handshake
    /// was refused.
    pub handshake_failures_total: u64,
}

/// Counted by the shard, read by everybody.
#[derive(Debug, Default)]
pub(super) struct Counters([Counter; Transport::ALL.len()]);

#[derive(Debug, Default)]
struct Counter {
    opened: AtomicU64,
    closed: AtomicU64,
    failed: AtomicU64,
}

impl Counters {
    pub(super) fn opened(&self, transport: Transport) {
        self.0[transport as usize].opened.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn closed(&self, transport: Transport) {
        self.0[transport as usize].closed.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn failed(&self, transport: Transport) {
        self.0[transport as usize].failed.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn stats(&self, transport: Transport) -> TransportStats {
        let counter = &self.0[transport as usize];
        // Read in this order, a connection that comes meanwhile is not missed from the difference.
        let closed = counter.closed.load(Ordering::Relaxed);
        let opened = counter.opened.load(Ordering::Relaxed);
        TransportStats {
            connections: opened.saturating_sub(closed),
            connections_total: opened,
            handshake_failures_total: counter.failed.load(Ordering::Relaxed),
        }
    }
}
