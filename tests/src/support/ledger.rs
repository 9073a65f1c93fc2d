//! The books: what devices were told is safe, against what a destination has.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use tidegate_broker::record::Qos;

use super::device::Done;

/// What one device was told.
#[derive(Clone, Debug)]
pub(crate) struct Account {
    /// The device in the topic.
    pub(crate) device: String,
    /// The QoS it published with.
    pub(crate) qos: Qos,
    /// What it has done. It has finished: all it began is acknowledged.
    pub(crate) done: Done,
}

/// One record or row at a destination.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Delivery {
    pub(crate) device: String,
    /// The number that the device gave it.
    pub(crate) number: u64,
    /// The journal's offset it comes from.
    pub(crate) offset: u64,
}

/// The sums.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sums {
    /// Publishes acknowledged.
    pub(crate) acknowledged: u64,
    /// Publishes delivered, each counted once.
    pub(crate) delivered: u64,
    /// Journal entries beyond the first for one publish: the device sent it again because the acknowledgement was lost.
    pub(crate) published_again: u64,
    /// Deliveries beyond the first of one journal entry.
    pub(crate) duplicated: u64,
}

impl fmt::Display for Sums {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "acknowledged {}, delivered {}, duplicated {} (and {} published again by their devices)",
            self.acknowledged, self.delivered, self.duplicated, self.published_again
        )
    }
}

/// Compares, and fails with the first few differences, unless the books balance.
pub(crate) fn check(destination: &str, accounts: &[Account], deliveries: &[Delivery]) -> Sums {
    let (sums, wrong) = compare(accounts, deliveries);
    let shown = &wrong[..wrong.len().min(20)];
    assert!(wrong.is_empty(), "{destination}: {sums}; {} differences, such as {shown:#?}", wrong.len());
    sums
}

/// The sums and every difference. `deliveries` are in the destination's order, at least per device. The books balance if
///
/// - every acknowledged publish is delivered, and nothing that no device sent;
/// - the first deliveries of a device's publishes are in the order in which it sent them;
/// - no publish of QoS 2 is in the journal twice, and none of QoS 1 more often than its device sent it.
fn compare(accounts: &[Account], deliveries: &[Delivery]) -> (Sums, Vec<String>) {
    let mut by_device: BTreeMap<&str, Vec<&Delivery>> = BTreeMap::new();
    for delivery in deliveries {
        by_device.entry(&delivery.device).or_default().push(delivery);
    }
    let mut sums = Sums::default();
    let mut wrong = Vec::new();
    for account in accounts {
        let delivered = by_device.remove(account.device.as_str()).unwrap_or_default();
        add(account, &delivered, &mut sums, &mut wrong);
    }
    wrong.extend(by_device.keys().map(|device| format!("{device} never published")));
    (sums, wrong)
}

fn add(account: &Account, delivered: &[&Delivery], sums: &mut Sums, wrong: &mut Vec<String>) {
    let device = &account.device;
    let mut offsets: BTreeMap<u64, BTreeSet<u64>> = BTreeMap::new();
    let mut expected = 0;
    for delivery in delivered {
        let of_number = offsets.entry(delivery.number).or_default();
        if of_number.is_empty() {
            if delivery.number != expected {
                let (number, offset) = (delivery.number, delivery.offset);
                wrong.push(format!("{device}: {number} (offset {offset}) comes where {expected} is due"));
            }
            expected = delivery.number + 1;
        }
        if !of_number.insert(delivery.offset) {
            sums.duplicated += 1;
        }
    }
    let acknowledged = account.done.acknowledged;
    let missing: Vec<u64> =
        (0..acknowledged).filter(|number| !offsets.contains_key(number)).take(5).collect();
    if !missing.is_empty() {
        wrong.push(format!("{device}: acknowledged and not delivered: {missing:?} of {acknowledged}"));
    }
    if let Some((beyond, _)) = offsets.range(acknowledged..).next() {
        wrong.push(format!("{device}: {beyond} was delivered, {acknowledged} were published"));
    }
    let again: u64 = offsets.values().map(|offsets| offsets.len() as u64 - 1).sum();
    let allowed = match account.qos {
        Qos::AtMostOnce | Qos::AtLeastOnce => account.done.resent,
        Qos::ExactlyOnce => 0,
    };
    if again > allowed {
        let first = offsets.iter().find(|(_, offsets)| offsets.len() > 1);
        wrong.push(format!(
            "{device}: {again} more entries than publishes, {allowed} allowed, such as {first:?}"
        ));
    }
    sums.acknowledged += acknowledged;
    sums.delivered += offsets.len() as u64;
    sums.published_again += again;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn delivered(numbers_and_offsets: &[(u64, u64)]) -> Vec<Delivery> {
        let delivery = |&(number, offset): &(u64, u64)| Delivery { device: "d".into(), number, offset };
        numbers_and_offsets.iter().map(delivery).collect()
    }

    fn compared(qos: Qos, acknowledged: u64, resent: u64, deliveries: &[(u64, u64)]) -> Option<Sums> {
        let done = Done { acknowledged, resent, ..Done::default() };
        let accounts = [Account { device: "d".into(), qos, done }];
        let (sums, wrong) = compare(&accounts, &delivered(deliveries));
        wrong.is_empty().then_some(sums)
    }

    #[test]
    fn the_books_balance_only_when_everything_is_there_in_order() {
        let (once, twice) = (Qos::ExactlyOnce, Qos::AtLeastOnce);
        let sums = |duplicated, published_again| {
            Some(Sums { acknowledged: 3, delivered: 3, published_again, duplicated })
        };
        assert_eq!(compared(once, 3, 0, &[(0, 4), (1, 5), (2, 9)]), sums(0, 0));
        assert_eq!(compared(once, 3, 0, &[(0, 4), (1, 5), (0, 4), (1, 5), (2, 9)]), sums(2, 0));
        assert_eq!(compared(twice, 3, 2, &[(0, 4), (1, 5), (0, 6), (1, 7), (2, 9)]), sums(0, 2));
        assert_eq!(compared(twice, 3, 1, &[(0, 4), (1, 5), (0, 6), (1, 7), (2, 9)]), None, "too many");
        assert_eq!(compared(once, 3, 2, &[(0, 4), (1, 5), (1, 6), (2, 9)]), None, "twice at QoS 2");
        assert_eq!(compared(once, 3, 0, &[(0, 4), (2, 9)]), None, "one is missing");
        assert_eq!(compared(once, 3, 0, &[(0, 4), (1, 5)]), None, "the last is missing");
        assert_eq!(compared(once, 3, 0, &[(0, 4), (2, 5), (1, 9)]), None, "out of order");
        assert_eq!(compared(once, 2, 0, &[(0, 4), (1, 5), (2, 9)]), None, "one too many");
    }
}
