//! Failed logins are slowed per address, so that guessing takes long and costs little here.
//!
//! A refusal is answered after a delay that doubles with each failure. At most [`WAITING_MAX`] refusals wait per
//! address; beyond that, attempts from there are refused at once and unchecked. Who has the right credentials is not
//! slowed. Pure: time comes in, the delay goes out, waiting is left to the caller. The clock may be set: what then would
//! wait longer than ever allowed counts as answered.

use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use crate::maps::HashMap;

/// The first delay.
const DELAY_MIN: Duration = Duration::from_millis(100);
/// The longest delay.
const DELAY_MAX: Duration = Duration::from_secs(5);
/// After so long without a failure an address is forgotten.
const QUIET: Duration = Duration::from_secs(60);
/// Refusals that wait per address.
const WAITING_MAX: usize = 16;
/// Failures that are free on this machine, where all programs share one address.
const LOOPBACK_FREE: u32 = 10;
/// Addresses that are remembered; when there are more, the one that has been quiet longest is forgotten.
const ADDRESSES_MAX: usize = 10_000;

#[derive(Clone, Debug, Default)]
struct Failures {
    count: u32,
    last: Duration,
    /// When those that wait are answered.
    due: Vec<Duration>,
}

/// What is remembered of addresses with failed logins.
#[derive(Clone, Debug, Default)]
pub(super) struct Throttle {
    addresses: HashMap<IpAddr, Failures>,
}

impl Throttle {
    /// For how long so many refusals wait for `peer` that it is not worth a look; `None` if it is.
    pub(super) fn full_for(&self, peer: IpAddr, now: Duration) -> Option<Duration> {
        let failures = self.addresses.get(&network(peer))?;
        let waiting = failures.due.iter().filter(|due| waits(**due, now));
        if waiting.clone().count() < WAITING_MAX {
            return None;
        }
        waiting.min().map(|due| due.saturating_sub(now))
    }

    /// A login from `peer` has failed; says how long the refusal is to wait.
    pub(super) fn failed(&mut self, peer: IpAddr, now: Duration) -> Duration {
        let network = network(peer);
        if self.addresses.len() >= ADDRESSES_MAX && !self.addresses.contains_key(&network) {
            self.make_room(now);
        }
        let failures = self.addresses.entry(network).or_default();
        if now.saturating_sub(failures.last) >= QUIET {
            *failures = Failures::default();
        }
        failures.count = failures.count.saturating_add(1);
        failures.last = now;
        let free = if network.is_loopback() { LOOPBACK_FREE } else { 0 };
        let Some(doublings) = failures.count.checked_sub(free + 1) else { return Duration::ZERO };
        let delay = DELAY_MIN.saturating_mul(1 << doublings.min(16)).min(DELAY_MAX);
        failures.due.retain(|due| waits(*due, now));
        failures.due.push(now + delay);
        delay
    }

    fn make_room(&mut self, now: Duration) {
        self.addresses.retain(|_, failures| now.saturating_sub(failures.last) < QUIET);
        if self.addresses.len() >= ADDRESSES_MAX
            && let Some(quietest) =
                self.addresses.iter().min_by_key(|(_, failures)| failures.last).map(|(address, _)| *address)
        {
            self.addresses.remove(&quietest);
        }
    }
}

/// Whether a refusal that is due then has yet to be answered.
fn waits(due: Duration, now: Duration) -> bool {
    due > now && due <= now + DELAY_MAX
}

/// What counts as one address: of IPv6 the first 64 bits, which one customer has to himself.
fn network(peer: IpAddr) -> IpAddr {
    match peer.to_canonical() {
        IpAddr::V6(address) if !address.is_loopback() => {
            IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)))
        }
        IpAddr::V4(address) if address.is_loopback() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        IpAddr::V4(_) | IpAddr::V6(_) => peer.to_canonical(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn delays(throttle: &mut Throttle, peer: &str, now: Duration, count: usize) -> Vec<u128> {
        (0..count).map(|_| throttle.failed(peer.parse().unwrap(), now).as_millis()).collect()
    }

    #[test]
    fn delays_double_and_are_forgotten_after_a_quiet_minute() {
        let mut throttle = Throttle::default();
        let doubling = [100, 200, 400, 800, 1_600, 3_200, 5_000, 5_000];
        assert_eq!(delays(&mut throttle, "192.0.2.1", SECOND, 8), doubling);
        assert_eq!(delays(&mut throttle, "192.0.2.2", SECOND, 1), [100], "each address for itself");
        assert_eq!(delays(&mut throttle, "192.0.2.1", 60 * SECOND, 1), [5_000]);
        assert_eq!(delays(&mut throttle, "192.0.2.1", 120 * SECOND, 2), [100, 200]);
    }

    #[test]
    fn this_machine_has_ten_for_nothing() {
        let mut throttle = Throttle::default();
        for peer in ["127.0.0.1", "127.0.0.2", "::1", "::ffff:127.0.0.1", "127.0.0.1"] {
            assert_eq!(delays(&mut throttle, peer, SECOND, 2), [0, 0]);
        }
        assert_eq!(delays(&mut throttle, "127.0.0.1", SECOND, 2), [100, 200]);
    }

    #[test]
    fn an_ipv6_customer_is_one_address() {
        let mut throttle = Throttle::default();
        assert_eq!(delays(&mut throttle, "2001:db8:0:1::1", SECOND, 1), [100]);
        assert_eq!(delays(&mut throttle, "2001:db8:0:1:ffff::2", SECOND, 1), [200]);
        assert_eq!(delays(&mut throttle, "2001:db8:0:2::1", SECOND, 1), [100]);
        assert_eq!(delays(&mut throttle, "::ffff:192.0.2.1", SECOND, 1), [100]);
        assert_eq!(delays(&mut throttle, "192.0.2.1", SECOND, 1), [200]);
    }

    #[test]
    fn sixteen_refusals_wait_and_no_more() {
        let mut throttle = Throttle::default();
        let peer = "192.0.2.1".parse().unwrap();
        let now = SECOND;
        for _ in 0..WAITING_MAX {
            assert!(throttle.full_for(peer, now).is_none());
            throttle.failed(peer, now);
        }
        assert_eq!(throttle.full_for(peer, now), Some(DELAY_MIN));
        assert_eq!(throttle.full_for("192.0.2.2".parse().unwrap(), now), None);
        assert_eq!(throttle.full_for(peer, now + DELAY_MIN), None, "the first has been answered");
        let later = 3_600 * SECOND;
        for _ in 0..WAITING_MAX {
            throttle.failed(peer, later);
        }
        assert!(throttle.full_for(peer, later).is_some());
        assert_eq!(
            throttle.full_for(peer, later - 60 * SECOND),
            None,
            "a clock that was set back locks nobody out"
        );
    }

    #[test]
    fn the_table_is_bounded() {
        let mut throttle = Throttle::default();
        for index in 0..ADDRESSES_MAX as u32 + 500 {
            throttle.failed(
                std::net::Ipv4Addr::from_bits(0x0A00_0000 + index).into(),
                SECOND + Duration::from_millis(index.into()),
            );
        }
        assert_eq!(throttle.addresses.len(), ADDRESSES_MAX);
        assert_eq!(delays(&mut throttle, "10.0.0.0", 20 * SECOND, 1), [100], "the quietest was forgotten");
        assert_eq!(delays(&mut throttle, "10.0.39.200", 20 * SECOND, 1), [200]);
    }
}
