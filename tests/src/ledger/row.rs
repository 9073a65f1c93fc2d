//! One line of the ledger: a fault and what became of everything. `tests/ledger` puts the lines together.

use std::fs;
use std::time::Duration;

use super::count::Sums;
use crate::support::{report, target};

/// Where a row stands in the table.
#[derive(Clone, Copy, Debug)]
pub(super) enum Place {
    Killed = 10,
    KilledQos2 = 11,
    DiskFull = 20,
    DiskFullReal = 21,
    KafkaFrozen = 30,
    PostgresFrozen = 31,
    TransactionsFrozen = 32,
    KafkaAway = 40,
    PostgresAway = 41,
    KafkaLeadersKilled = 42,
    KafkaRestartedInTurn = 43,
    KafkaLeadersMoved = 44,
    TransactionsAway = 45,
    KafkaSilent = 50,
    PostgresRestarted = 60,
    BackendTerminated = 61,
    Damaged = 70,
    DamagedSealed = 71,
    DamagedRepaired = 72,
    TornTail = 73,
    Everything = 80,
}

/// What one fault came to.
#[derive(Clone, Debug)]
pub(super) struct Row {
    /// What was done, and what was seen of it.
    pub(super) fault: String,
    pub(super) kafka: Sums,
    pub(super) postgres: Sums,
    pub(super) subscriber: Sums,
    pub(super) stream: Sums,
    /// From the end of the fault until every output had everything.
    pub(super) recovered_in: Duration,
}

impl Row {
    /// Writes it down.
    pub(super) fn record(&self, place: Place) {
        let [kafka, postgres, mqtt, stream] = [self.kafka, self.postgres, self.subscriber, self.stream];
        let mut all = Sums::default();
        [kafka, postgres, mqtt, stream].into_iter().for_each(|sums| all += sums);
        let line = format!(
            "| {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {:.1} |",
            self.fault,
            kafka.acknowledged,
            kafka.delivered,
            postgres.delivered,
            mqtt.delivered,
            stream.delivered,
            all.lost,
            kafka.duplicated,
            mqtt.duplicated,
            postgres.duplicated + stream.duplicated,
            all.out_of_order,
            postgres.sent_again,
            self.recovered_in.as_secs_f64(),
        );
        report("ledger", &line);
        let folder = target().join("ledger");
        fs::create_dir_all(&folder).expect("target/ can be written");
        fs::write(folder.join(format!("{}.row", place as u8)), line + "\n").expect("target/ can be written");
    }
}
