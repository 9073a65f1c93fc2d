//! What became of every record for each output: in = delivered + dropped + pending.
//!
//! What always holds: whenever a [`Balance`] is taken, the equation holds. `in` and `pending` come from one side (what
//! the journal has counted, what waits in sessions and queues), `delivered` and `dropped` from the other (what
//! destinations have confirmed), so that a record that was lost on the way stays pending for ever instead of being
//! forgotten.

use std::collections::BTreeMap;

use tidegate_broker::journal::RecordsFrom;

/// How many records a destination will never take, by the short fixed word for why.
pub type Reasons = BTreeMap<&'static str, u64>;

/// What became of an output's records since the start of the process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Balance {
    /// Records that became its business.
    pub taken_in: u64,
    /// Those that arrived.
    pub delivered: u64,
    /// Those that never will, by reason.
    pub dropped: Vec<(&'static str, u64)>,
    /// Those that still may.
    pub pending: u64,
}

/// The account of one sink.
///
/// A record becomes the sink's business when it is durable: what lies between its cursor and the durable end when the
/// process starts, and everything that becomes durable after. It is settled when the cursor passes it.
#[derive(Clone, Debug)]
pub struct Account {
    /// What the journal had counted when `behind` was counted.
    total: u64,
    /// Records that were its business then.
    behind: u64,
    delivered: u64,
    rejected: Reasons,
    trimmed: u64,
}

impl Account {
    /// A sink starts, and `found` lies before it.
    pub const fn begin(found: RecordsFrom) -> Self {
        Self { total: found.total, behind: found.records, delivered: 0, rejected: Reasons::new(), trimmed: 0 }
    }

    /// What it says when the journal has counted `total`.
    pub fn balance(&self, total: u64) -> Balance {
        let rejected = self.rejected.iter().map(|(reason, count)| (*reason, *count));
        Balance {
            taken_in: self.taken_in(total),
            delivered: self.delivered,
            dropped: rejected.chain([("trimmed", self.trimmed)]).collect(),
            pending: self.pending(total),
        }
    }

    /// The cursor has passed `records`; `rejected` were rejected since the start, some perhaps of records to come.
    /// Returns how many were delivered.
    pub fn passed(&mut self, records: u64, rejected: &Reasons) -> u64 {
        let mut delivered = records;
        for (reason, count) in rejected {
            let known = self.rejected.entry(reason).or_default();
            let newly_rejected = count.saturating_sub(*known).min(delivered);
            *known += newly_rejected;
            delivered -= newly_rejected;
        }
        self.delivered += delivered;
        delivered
    }

    /// The sink goes on where `found` lies before it. What is no longer before it the destination has stored, except
    /// that `lost` entries were trimmed; what is before it again has come back. Returns how many were delivered.
    pub fn resume(&mut self, found: RecordsFrom, lost: u64, rejected: &Reasons) -> u64 {
        let pending = self.pending(found.total);
        let gone = pending.saturating_sub(found.records);
        let trimmed = gone.min(lost);
        self.trimmed += trimmed;
        self.behind += found.records.saturating_sub(pending);
        self.passed(gone - trimmed, rejected)
    }

    /// Records were trimmed before the sink had read them: `found` is left, and `in_flight` it has read.
    pub fn trimmed(&mut self, found: RecordsFrom, in_flight: u64) {
        let left = found.records + in_flight;
        self.trimmed += self.pending(found.total).saturating_sub(left);
    }

    const fn taken_in(&self, total: u64) -> u64 {
        self.behind + (total - self.total)
    }

    fn pending(&self, total: u64) -> u64 {
        let rejected: u64 = self.rejected.values().sum();
        self.taken_in(total).saturating_sub(self.delivered + rejected + self.trimmed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(account: &Account, total: u64, expected: [u64; 5]) {
        let balance = account.balance(total);
        let of = |is_trimmed: bool| -> u64 {
            let wanted = balance.dropped.iter().filter(|(reason, _)| (*reason == "trimmed") == is_trimmed);
            wanted.map(|(_, count)| *count).sum()
        };
        let [taken_in, delivered, rejected, trimmed, pending] = expected;
        assert_eq!(balance.taken_in, delivered + rejected + trimmed + pending, "the equation");
        assert_eq!(
            (balance.taken_in, balance.delivered, of(false), of(true), balance.pending),
            (taken_in, delivered, rejected, trimmed, pending)
        );
    }

    fn rejected(large: u64, invalid: u64) -> Reasons {
        Reasons::from([("too_large", large), ("invalid", invalid)])
    }

    #[test]
    fn each_reason_is_told_once_its_records_are_passed() {
        let mut account = Account::begin(RecordsFrom { records: 10, total: 0 });
        assert_eq!(account.passed(4, &rejected(1, 2)), 1);
        assert_eq!(account.balance(0).dropped, [("invalid", 2), ("too_large", 1), ("trimmed", 0)]);
        // Three more are known, of which one lies beyond what was passed.
        assert_eq!(account.passed(2, &rejected(2, 4)), 0);
        assert_eq!(account.passed(4, &rejected(2, 4)), 3);
        assert_eq!(account.balance(0).dropped, [("invalid", 4), ("too_large", 2), ("trimmed", 0)]);
    }

    #[test]
    fn every_record_is_settled_once() {
        let mut account = Account::begin(RecordsFrom { records: 10, total: 3 });
        check(&account, 3, [10, 0, 0, 0, 10]);
        check(&account, 8, [15, 0, 0, 0, 15]);
        assert_eq!(account.passed(4, &rejected(0, 0)), 4);
        // One is rejected before its batch is confirmed.
        assert_eq!(account.passed(4, &rejected(1, 0)), 3);
        check(&account, 8, [15, 7, 1, 0, 7]);
        // The connection was lost, but three more had arrived, one to be rejected.
        assert_eq!(account.resume(RecordsFrom { records: 4, total: 8 }, 0, &rejected(2, 0)), 2);
        check(&account, 8, [15, 9, 2, 0, 4]);
        // Two more come, and five are trimmed, while one is in flight.
        account.trimmed(RecordsFrom { records: 0, total: 10 }, 1);
        check(&account, 10, [17, 9, 2, 5, 1]);
        assert_eq!(account.passed(1, &rejected(2, 0)), 1);
        check(&account, 10, [17, 10, 2, 5, 0]);
    }

    #[test]
    fn what_a_destination_has_forgotten_comes_in_again() {
        let mut account = Account::begin(RecordsFrom { records: 5, total: 0 });
        account.passed(5, &rejected(0, 0));
        assert_eq!(account.resume(RecordsFrom { records: 3, total: 0 }, 0, &rejected(0, 0)), 0);
        check(&account, 0, [8, 5, 0, 0, 3]);
    }

    #[test]
    fn a_gap_while_it_was_away_is_told_apart_from_what_arrived() {
        let mut account = Account::begin(RecordsFrom { records: 20, total: 0 });
        assert_eq!(account.resume(RecordsFrom { records: 8, total: 0 }, 9, &rejected(0, 0)), 3);
        check(&account, 0, [20, 3, 0, 9, 8]);
    }
}
