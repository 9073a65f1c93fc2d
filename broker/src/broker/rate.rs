//! Who may come in, and how fast: connections, connects per second, publishes per second.

use std::net::IpAddr;
use std::time::Duration;

use super::limits::{Limit, RateAction};
use super::timers::Timer;
use super::{Broker, Hold, Now, Taken};
use crate::mqtt::{Publish, ReasonCode};
use crate::record::Append;
use crate::slots::Key;

/// Connections beyond the limits that are kept until their CONNECT can be answered; more are closed at once.
pub const REFUSED_CONNECTIONS_MAX: usize = 1_024;

/// What the shell measures for the broker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gauges {
    /// Resident memory of the process.
    pub memory_bytes: u64,
    /// Entries in the journal.
    pub journal_entries: u64,
    /// Size of the journal.
    pub journal_bytes: u64,
}

/// How much a bucket saves up: what flows into it in this time.
const SAVED: Duration = Duration::from_secs(1);

/// A token bucket: `rate` tokens a second flow in, as many as that are saved up, and it may be overdrawn once. Kept as
/// the time at which it will be full.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Bucket(Duration);

impl Bucket {
    /// When something may be taken out, if not now.
    fn waits_until(self, now: Duration) -> Option<Duration> {
        self.0.checked_sub(SAVED).filter(|at| *at >= now)
    }

    fn take(&mut self, tokens: u64, rate: u64, now: Duration) {
        let nanoseconds = u128::from(tokens) * 1_000_000_000 / u128::from(rate.max(1));
        let worth = Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX / 4));
        self.0 = self.0.max(now) + worth;
    }
}

/// What one connection has left of its rates.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Rates {
    publishes: Bucket,
    bytes: Bucket,
}

impl Broker {
    /// A limit was reached.
    pub(super) fn reached(&mut self, limit: Limit) {
        self.stats.limits.add(limit, 1);
    }

    /// How the CONNECT of a new connection from `peer` must be answered, if a limit forbids it.
    pub(super) fn over_limit(&mut self, peer: IpAddr, now: Now) -> Option<ReasonCode> {
        let limits = &self.limits;
        let per_address = limits.connections_per_address;
        let here = || self.per_address.get(&peer.to_canonical()).copied().unwrap_or(0);
        let limit = if self.connections.len() - self.refused_connections >= limits.connections {
            Limit::Connections
        } else if per_address > 0 && here() >= per_address {
            Limit::ConnectionsPerAddress
        } else if self.is_over_memory {
            Limit::Memory
        } else if limits.connect_rate > 0 && self.connects.waits_until(now.monotonic).is_some() {
            Limit::ConnectRate
        } else {
            if limits.connect_rate > 0 {
                self.connects.take(1, limits.connect_rate.into(), now.monotonic);
            }
            return None;
        };
        self.reached(limit);
        Some(if limit == Limit::ConnectRate {
            ReasonCode::ConnectionRateExceeded
        } else {
            ReasonCode::QuotaExceeded
        })
    }

    /// The connection comes from `peer` and not from where it seemed to: a proxy said so. To be called before
    /// anything is received.
    pub fn set_peer(&mut self, key: Key, peer: IpAddr) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        let earlier = std::mem::replace(&mut connection.peer, peer);
        let allowed = self.limits.connections_per_address;
        if allowed == 0 || earlier.to_canonical() == peer.to_canonical() {
            return;
        }
        let here = self.per_address.get(&peer.to_canonical()).copied().unwrap_or(0);
        if here >= allowed && connection.refusal.is_none() {
            connection.refusal = Some(ReasonCode::QuotaExceeded);
            self.refused_connections += 1;
            self.reached(Limit::ConnectionsPerAddress);
        }
        self.discount_address(earlier);
        self.count_address(peer);
    }

    /// One more connection from `peer`.
    pub(super) fn count_address(&mut self, peer: IpAddr) {
        if self.limits.connections_per_address > 0 {
            *self.per_address.entry(peer.to_canonical()).or_default() += 1;
        }
    }

    /// One connection from `peer` less.
    pub(super) fn discount_address(&mut self, peer: IpAddr) {
        if let Some(count) = self.per_address.get_mut(&peer.to_canonical()) {
            *count -= 1;
            if *count == 0 {
                self.per_address.remove(&peer.to_canonical());
            }
        }
    }

    /// Whether the client may publish now; if not, it is held back or disconnected. `None` means it may.
    pub(super) fn slow_down(
        &mut self,
        key: Key,
        publish: &Publish<'_>,
        now: Now,
        log: &mut dyn Append,
    ) -> Option<Taken> {
        if self.is_over_memory {
            self.reached(Limit::Memory);
            self.hold_for_room(key);
            return Some(Taken::NotNow);
        }
        let rates = self.connections.get_mut(key)?.rates.as_deref_mut()?;
        let (count, bytes) = (u64::from(self.limits.publish_rate), self.limits.publish_bytes_rate);
        let over_count = rates.publishes.waits_until(now.monotonic).filter(|_| count > 0);
        let over_bytes = rates.bytes.waits_until(now.monotonic).filter(|_| bytes > 0);
        let Some(at) = over_count.max(over_bytes) else {
            let size = publish.topic.len() + publish.payload.len();
            rates.publishes.take(1, count, now.monotonic);
            rates.bytes.take(size as u64, bytes, now.monotonic);
            return None;
        };
        self.reached(if over_count.is_some() { Limit::PublishRate } else { Limit::PublishBytesRate });
        match self.limits.publish_rate_action {
            RateAction::Hold => {
                if let Some(connection) = self.connections.get_mut(key) {
                    connection.hold = Some(Hold::Rate);
                }
                // Due times are compared with whole nanoseconds: one later is late enough.
                self.timers.set(at + Duration::from_nanos(1), Timer::Rate(key));
                Some(Taken::NotNow)
            }
            RateAction::Disconnect => {
                self.refused_publish(super::RefusalReason::Rate);
                self.disconnect(key, ReasonCode::MessageRateTooHigh, now, log);
                Some(Taken::Taken)
            }
        }
    }

    /// Nothing is read from a connection until [`Broker::handle_room`].
    pub(super) fn hold_for_room(&mut self, key: Key) {
        if let Some(connection) = self.connections.get_mut(key) {
            connection.hold = Some(Hold::Room);
            self.held.push(key);
        }
    }

    /// Goes on with a connection that was held back for this reason.
    pub(super) fn resume_from(&mut self, key: Key, hold: Hold) {
        if let Some(connection) = self.connections.get_mut(key)
            && connection.hold == Some(hold)
        {
            connection.hold = None;
            self.resumed.push_back(key);
        }
    }

    /// What the shell has measured. While the memory is too much, nobody new is let in and publishers are held back.
    pub fn handle_gauges(&mut self, gauges: Gauges) {
        let limit = self.limits.memory_bytes;
        let is_over = limit > 0 && gauges.memory_bytes > limit;
        if is_over != self.is_over_memory {
            self.is_over_memory = is_over;
            let (used, limit) = (gauges.memory_bytes >> 20, limit >> 20);
            if is_over {
                tracing::warn!(
                    "the process uses {used} MiB of memory, more than limits.memory_bytes ({limit} MiB): new clients \
                     are refused and publishers wait until it is less"
                );
            } else {
                tracing::info!(
                    "the process uses {used} MiB of memory again: clients are let in and publishers go on"
                );
            }
        }
        self.gauges = gauges;
        self.stats.memory_bytes_max = self.stats.memory_bytes_max.max(gauges.memory_bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_gives_what_was_saved_and_then_its_rate() {
        for rate in [1, 7, 100, 1_000_000] {
            let mut bucket = Bucket::default();
            let mut now = Duration::from_secs(1_000);
            let mut taken = 0;
            while bucket.waits_until(now).is_none() {
                bucket.take(1, rate, now);
                taken += 1;
            }
            assert_eq!(taken, rate + u64::from(1_000_000_000 % rate != 0), "saved up in a second");
            taken = 0;
            let end = now + Duration::from_secs(10);
            while now < end {
                match bucket.waits_until(now) {
                    Some(at) => now = at + Duration::from_nanos(1),
                    None => {
                        bucket.take(1, rate, now);
                        taken += 1;
                    }
                }
            }
            assert!(taken.abs_diff(10 * rate) <= 2 + rate / 1_000, "{taken} in ten seconds at {rate}");
        }
    }

    #[test]
    fn a_large_publish_may_overdraw_a_bucket_and_is_waited_for() {
        let mut bucket = Bucket::default();
        let now = Duration::from_secs(5);
        bucket.take(10_000, 1_000, now);
        assert_eq!(bucket.waits_until(now), Some(now + Duration::from_secs(9)));
    }
}
