//! What became of every record for each output: in = delivered + dropped + pending.
//!
//! What always holds: whenever a [`Balance`] is taken, the equation holds. `in` and `pending` come from one side (what
//! the journal has counted, what waits in sessions and queues), `delivered` and `dropped` from the other (what
//! destinations have confirmed), so that a record that was lost on the way stays pending for ever instead of being
//! forgotten.

use tidegate_broker::journal::RecordsFrom;

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
#[derive(Clone, Copy, Debug)]
pub struct Account {
    /// What the journal had counted when `behind` was counted.
    total: u64,
    /// Records that were its business then.
    behind: u64,
    delivered: u64,
    rejected: u64,
    trimmed: u64,
}

impl Account {
    /// A sink starts, and `found` lies before it.
    pub const fn begin(found: RecordsFrom) -> Self {
        Self { total: found.total, behind: found.records, delivered: 0, rejected: 0, trimmed: 0 }
    }

    /// What it says when the journal has counted `total`.
    pub fn balance(&self, total: u64) -> Balance {
        Balance {
            taken_in: self.taken_in(total),
            delivered: self.delivered,
            dropped: vec![("rejected", self.rejected), ("trimmed", self.trimmed)],
            pending: self.pending(total),
        }
    }

    /// The cursor has passed `records`; `rejected` were rejected since the start, some perhaps of records to come.
    /// Returns how many were delivered.
    pub fn passed(&mut self, records: u64, rejected: u64) -> u64 {
        let newly_rejected = rejected.saturating_sub(self.rejected).min(records);
        self.rejected += newly_rejected;
        self.delivered += records - newly_rejected;
        records - newly_rejected
    }

    /// The sink goes on where `found` lies before it. What is no longer before it the destination has stored, except
    /// that `lost` entries were trimmed; what is before it again has come back.
    pub fn resume(&mut self, found: RecordsFrom, lost: u64, rejected: u64) {
        let pending = self.pending(found.total);
        let gone = pending.saturating_sub(found.records);
        let trimmed = gone.min(lost);
        self.trimmed += trimmed;
        self.passed(gone - trimmed, rejected);
        self.behind += found.records.saturating_sub(pending);
    }

    /// Records were trimmed before the sink had read them: `found` is left, and `in_flight` it has read.
    pub fn trimmed(&mut self, found: RecordsFrom, in_flight: u64) {
        let left = found.records + in_flight;
        self.trimmed += self.pending(found.total).saturating_sub(left);
    }

    const fn taken_in(&self, total: u64) -> u64 {
        self.behind + (total - self.total)
    }

    const fn pending(&self, total: u64) -> u64 {
        self.taken_in(total).saturating_sub(self.delivered + self.rejected + self.trimmed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(account: Account, total: u64, expected: [u64; 5]) {
        let balance = account.balance(total);
        let dropped: Vec<u64> = balance.dropped.iter().map(|(_, count)| *count).collect();
        let [taken_in, delivered, rejected, trimmed, pending] = expected;
        assert_eq!(balance.taken_in, delivered + rejected + trimmed + pending, "the equation");
        assert_eq!(
            (balance.taken_in, balance.delivered, &dropped[..], balance.pending),
            (taken_in, delivered, &[rejected, trimmed][..], pending)
        );
    }

    #[test]
    fn every_record_is_settled_once() {
        let mut account = Account::begin(RecordsFrom { records: 10, total: 3 });
        check(account, 3, [10, 0, 0, 0, 10]);
        check(account, 8, [15, 0, 0, 0, 15]);
        assert_eq!(account.passed(4, 0), 4);
        // One is rejected before its batch is confirmed.
        assert_eq!(account.passed(4, 1), 3);
        check(account, 8, [15, 7, 1, 0, 7]);
        // The connection was lost, but three more had arrived, one to be rejected.
        account.resume(RecordsFrom { records: 4, total: 8 }, 0, 2);
        check(account, 8, [15, 9, 2, 0, 4]);
        // Two more come, and five are trimmed, while one is in flight.
        account.trimmed(RecordsFrom { records: 0, total: 10 }, 1);
        check(account, 10, [17, 9, 2, 5, 1]);
        assert_eq!(account.passed(1, 2), 1);
        check(account, 10, [17, 10, 2, 5, 0]);
    }

    #[test]
    fn what_a_destination_has_forgotten_comes_in_again() {
        let mut account = Account::begin(RecordsFrom { records: 5, total: 0 });
        account.passed(5, 0);
        account.resume(RecordsFrom { records: 3, total: 0 }, 0, 0);
        check(account, 0, [8, 5, 0, 0, 3]);
    }

    #[test]
    fn a_gap_while_it_was_away_is_told_apart_from_what_arrived() {
        let mut account = Account::begin(RecordsFrom { records: 20, total: 0 });
        account.resume(RecordsFrom { records: 8, total: 0 }, 9, 0);
        check(account, 0, [20, 3, 0, 9, 8]);
    }
}
