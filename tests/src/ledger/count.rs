//! The books: what devices were told is safe, against what an output has.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::AddAssign;

use tidegate_broker::record::Qos;

use crate::support::device::Done;

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

/// One record, row, publish or event at an output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Delivery {
    pub(crate) device: String,
    /// The number that the device gave it.
    pub(crate) number: u64,
    /// The journal's offset it comes from.
    pub(crate) offset: u64,
}

/// The sums of one output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sums {
    /// Publishes acknowledged.
    pub(crate) acknowledged: u64,
    /// Publishes delivered, each counted once.
    pub(crate) delivered: u64,
    /// Publishes acknowledged and not delivered.
    pub(crate) lost: u64,
    /// Journal entries beyond the first for one publish: the device sent it again because the acknowledgement was lost.
    pub(crate) sent_again: u64,
    /// Deliveries beyond the first of one journal entry.
    pub(crate) duplicated: u64,
    /// Publishes that came first behind one that their device sent later.
    pub(crate) out_of_order: u64,
}

impl AddAssign for Sums {
    fn add_assign(&mut self, other: Self) {
        self.acknowledged += other.acknowledged;
        self.delivered += other.delivered;
        self.lost += other.lost;
        self.sent_again += other.sent_again;
        self.duplicated += other.duplicated;
        self.out_of_order += other.out_of_order;
    }
}

/// How often an output may have one journal entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Promise {
    /// Once or more often.
    AtLeastOnce,
    /// As was published.
    AsPublished,
    /// Once, also what was published at QoS 1.
    ExactlyOnce,
}

impl Promise {
    /// Whether what was published at `qos` may come again.
    const fn repeats(self, qos: Qos) -> bool {
        match (self, qos) {
            (Self::AtLeastOnce, _) | (Self::AsPublished, Qos::AtMostOnce | Qos::AtLeastOnce) => true,
            (Self::AsPublished, Qos::ExactlyOnce) | (Self::ExactlyOnce, _) => false,
        }
    }
}

/// Compares, and fails with the first few differences, unless the books balance.
pub(crate) fn check(output: &str, promise: Promise, accounts: &[Account], deliveries: &[Delivery]) -> Sums {
    let (sums, wrong) = compare(promise, accounts, deliveries);
    let shown = &wrong[..wrong.len().min(20)];
    assert!(wrong.is_empty(), "{output}: {sums:?}; {} differences, such as {shown:#?}", wrong.len());
    sums
}

/// The sums and every difference. `deliveries` are in the output's order, at least per device. The books balance if
///
/// - every acknowledged publish is delivered, and nothing that no device sent;
/// - the first deliveries of a device's publishes are in the order in which it sent them, but for those that were refused at first;
/// - no publish of QoS 2 is in the journal twice, and none of QoS 1 more often than its device sent it;
/// - no journal entry came again where that is promised.
fn compare(promise: Promise, accounts: &[Account], deliveries: &[Delivery]) -> (Sums, Vec<String>) {
    let mut by_device: BTreeMap<&str, Vec<&Delivery>> = BTreeMap::new();
    for delivery in deliveries {
        by_device.entry(&delivery.device).or_default().push(delivery);
    }
    let mut sums = Sums::default();
    let mut wrong = Vec::new();
    for account in accounts {
        let delivered = by_device.remove(account.device.as_str()).unwrap_or_default();
        let of_device = of_device(account, &delivered, &mut wrong);
        if of_device.duplicated > 0 && !promise.repeats(account.qos) {
            wrong.push(format!("{}: {} journal entries came again", account.device, of_device.duplicated));
        }
        sums += of_device;
    }
    wrong.extend(by_device.keys().map(|device| format!("{device} never published")));
    (sums, wrong)
}

fn of_device(account: &Account, delivered: &[&Delivery], wrong: &mut Vec<String>) -> Sums {
    let device = &account.device;
    let mut sums = Sums { acknowledged: account.done.acknowledged, ..Sums::default() };
    let mut offsets: BTreeMap<u64, BTreeSet<u64>> = BTreeMap::new();
    let mut newest = None;
    for Delivery { number, offset, .. } in delivered {
        let of_number = offsets.entry(*number).or_default();
        // What was refused was sent again, and its place is where it was sent again.
        if of_number.is_empty() && !account.done.refused.contains(number) {
            if newest.is_some_and(|newest| newest > *number) {
                sums.out_of_order += 1;
                wrong.push(format!("{device}: {number} (offset {offset}) comes behind {newest:?}"));
            }
            newest = newest.max(Some(*number));
        }
        if !of_number.insert(*offset) {
            sums.duplicated += 1;
        }
    }
    let missing: Vec<u64> = (0..sums.acknowledged).filter(|number| !offsets.contains_key(number)).collect();
    sums.lost = missing.len() as u64;
    if !missing.is_empty() {
        let (some, of) = (&missing[..missing.len().min(5)], sums.acknowledged);
        wrong.push(format!("{device}: acknowledged and not delivered: {some:?} of {of}"));
    }
    if let Some((beyond, _)) = offsets.range(sums.acknowledged..).next() {
        wrong.push(format!("{device}: {beyond} was delivered, {} were published", sums.acknowledged));
    }
    sums.delivered = offsets.len() as u64;
    sums.sent_again = offsets.values().map(|offsets| offsets.len() as u64 - 1).sum();
    let allowed = match account.qos {
        Qos::AtMostOnce | Qos::AtLeastOnce => account.done.resent,
        Qos::ExactlyOnce => 0,
    };
    if sums.sent_again > allowed {
        let first = offsets.iter().find(|(_, offsets)| offsets.len() > 1);
        let again = sums.sent_again;
        wrong.push(format!("{device}: {again} entries too many, {allowed} allowed, such as {first:?}"));
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;

    fn delivered(numbers_and_offsets: &[(u64, u64)]) -> Vec<Delivery> {
        let delivery = |&(number, offset): &(u64, u64)| Delivery { device: "d".into(), number, offset };
        numbers_and_offsets.iter().map(delivery).collect()
    }

    fn compared(promise: Promise, qos: Qos, resent: u64, deliveries: &[(u64, u64)]) -> (Sums, bool) {
        let done = Done { acknowledged: 3, resent, ..Done::default() };
        let accounts = [Account { device: "d".into(), qos, done }];
        let (sums, wrong) = compare(promise, &accounts, &delivered(deliveries));
        (sums, wrong.is_empty())
    }

    #[test]
    fn the_books_balance_only_when_everything_is_there_in_order() {
        let (once, twice) = (Qos::ExactlyOnce, Qos::AtLeastOnce);
        let three = Sums { acknowledged: 3, delivered: 3, ..Sums::default() };
        let check = |qos, resent, deliveries: &[(u64, u64)], expected: (Sums, bool)| {
            let found = compared(Promise::AtLeastOnce, qos, resent, deliveries);
            assert_eq!(found, expected, "{deliveries:?}");
        };
        check(once, 0, &[(0, 4), (1, 5), (2, 9)], (three, true));
        let repeated = Sums { duplicated: 2, ..three };
        check(once, 0, &[(0, 4), (1, 5), (0, 4), (1, 5), (2, 9)], (repeated, true));
        let sent_again = Sums { sent_again: 2, ..three };
        check(twice, 2, &[(0, 4), (1, 5), (0, 6), (1, 7), (2, 9)], (sent_again, true));
        check(twice, 1, &[(0, 4), (1, 5), (0, 6), (1, 7), (2, 9)], (sent_again, false));
        check(once, 2, &[(0, 4), (1, 5), (1, 6), (2, 9)], (Sums { sent_again: 1, ..three }, false));
        let two = Sums { delivered: 2, lost: 1, ..three };
        check(once, 0, &[(0, 4), (2, 9)], (two, false));
        check(once, 0, &[(0, 4), (1, 5)], (two, false));
        check(once, 0, &[(0, 4), (2, 5), (1, 9)], (Sums { out_of_order: 1, ..three }, false));
        check(once, 0, &[(0, 4), (1, 5), (2, 9), (3, 10)], (Sums { delivered: 4, ..three }, false));
    }

    #[test]
    fn what_may_come_again_depends_on_the_output_and_the_qos() {
        let balances = |promise, qos| compared(promise, qos, 0, &[(0, 4), (1, 5), (1, 5), (2, 9)]).1;
        assert!(balances(Promise::AtLeastOnce, Qos::ExactlyOnce));
        assert!(balances(Promise::AsPublished, Qos::AtLeastOnce));
        assert!(!balances(Promise::AsPublished, Qos::ExactlyOnce));
        assert!(!balances(Promise::ExactlyOnce, Qos::AtLeastOnce));
    }
}
