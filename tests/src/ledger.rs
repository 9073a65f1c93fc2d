//! The loss ledger: one fault at a time, under load, and what became of everything that was acknowledged.
//!
//! The shipped program on a real file system, with real Kafka and PostgreSQL. Each test makes one fault while devices publish at
//! QoS 1 and 2, and then counts at four outputs: Kafka, PostgreSQL, a persistent MQTT subscriber at QoS 2, and an event stream
//! that is resumed by the id of its last event. Nothing acknowledged may be missing anywhere, nothing may overtake what its device
//! sent before it, and nothing but Kafka may have anything twice. The figures go into `target/ledger`, one row per fault, of which
//! `tests/ledger` makes a table.
//!
//! The faults are short unless `TIDEGATE_TEST_LEDGER` is `long`.

mod conservation;
pub(crate) mod count;
mod fault_away;
mod fault_cluster;
mod fault_damage;
mod fault_disk_full;
mod fault_everything;
mod fault_frozen;
mod fault_kill;
mod fault_postgres;
mod fault_silent;
pub(crate) mod load;
pub(crate) mod outputs;
mod row;
mod stage;

use std::time::Duration;

/// How long anything may take that must end.
const PATIENCE: Duration = Duration::from_secs(180);

/// What a fault is like in every run of the tests, and what in the long form.
fn quick_or_long<T>(quick: T, long: T) -> T {
    let is_long = std::env::var("TIDEGATE_TEST_LEDGER").is_ok_and(|extent| extent == "long");
    if is_long { long } else { quick }
}
