//! Kafka, and then PostgreSQL with all its backends, stand still: SIGSTOP, so that connections stay open and nobody answers.

use std::time::{Duration, Instant};

use super::row::Place;
use super::stage::{Plan, Stage};
use super::{PATIENCE, quick_or_long};
use crate::support::eventually;
use crate::support::process::Frozen;
use crate::support::services::{Own, Service};

const FROZEN: Duration = Duration::from_secs(18);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_missing_after_kafka_stood_still() {
    let kafka = Own::start(Service::Kafka);
    let plan = Plan::on_kafka(kafka.url());
    frozen(plan, FROZEN, kafka.pid(), "kafka", "Kafka", Place::KafkaFrozen).await;
}

/// For longer than the brokers wait for the end of a transaction: back again they end it, and the identity is gone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_missing_or_twice_after_kafka_stood_still_in_transactions() {
    let (frozen_s, transaction_s) = quick_or_long((9, 5), (90, 60));
    let kafka = Own::start(Service::Kafka);
    let plan = Plan::on_kafka(kafka.url()).exactly_once(transaction_s);
    let name = format!("Kafka, exactly once (transactions of {transaction_s} s at most),");
    let duration = Duration::from_secs(frozen_s);
    frozen(plan, duration, kafka.pid(), "kafka", &name, Place::TransactionsFrozen).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_missing_after_postgresql_stood_still() {
    let postgres = Own::start(Service::Postgres);
    let plan = Plan { postgres: postgres.url(), ..Plan::usual() };
    frozen(plan, FROZEN, postgres.pid(), "postgres", "PostgreSQL", Place::PostgresFrozen).await;
}

async fn frozen(plan: Plan, duration: Duration, pid: u32, sink: &str, name: &str, place: Place) {
    let per_second = plan.devices.per_second();
    let stage = Stage::start("frozen", plan).await;
    let before = stage.load.acknowledged();
    let began = Instant::now();
    let frozen = Frozen::with_children(pid);
    // What is behind grows with the load all the time: publishes are accepted and stay in the journal.
    let held = per_second * duration.as_secs() / 2;
    eventually(&format!("{name} is behind by {held} entries"), PATIENCE, async || {
        (stage.tidegate.sink(sink).await.lag_entries >= held).then_some(())
    })
    .await;
    tokio::time::sleep(duration.saturating_sub(began.elapsed())).await;
    let meanwhile = stage.load.acknowledged() - before;
    drop(frozen);
    let ended = Instant::now();
    assert!(meanwhile >= held, "{meanwhile} acknowledged meanwhile");
    let findings = stage.finish(ended).await;
    for account in &findings.accounts {
        assert_eq!(account.done.connects, 1, "{} noticed: {account:?}", account.device);
    }
    let seconds = duration.as_secs();
    findings.row(format!("{name} stopped for {seconds} s (SIGSTOP)")).record(place);
}
