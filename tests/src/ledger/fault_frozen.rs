//! Kafka, and then PostgreSQL with all its backends, stand still: SIGSTOP, so that connections stay open and nobody answers.

use std::time::{Duration, Instant};

use super::PATIENCE;
use super::row::Place;
use super::stage::{Plan, Stage};
use crate::support::eventually;
use crate::support::process::Frozen;
use crate::support::services::{Own, Service};

const FROZEN: Duration = Duration::from_secs(18);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_missing_after_kafka_stood_still() {
    let kafka = Own::start(Service::Kafka);
    let plan = Plan { kafka: kafka.url(), kafka_for_consumers: kafka.url(), ..Plan::usual() };
    frozen(plan, kafka.pid(), "kafka", "Kafka", Place::KafkaFrozen).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_missing_after_postgresql_stood_still() {
    let postgres = Own::start(Service::Postgres);
    let plan = Plan { postgres: postgres.url(), ..Plan::usual() };
    frozen(plan, postgres.pid(), "postgres", "PostgreSQL", Place::PostgresFrozen).await;
}

async fn frozen(plan: Plan, pid: u32, sink: &str, name: &str, place: Place) {
    let per_second = plan.devices.per_second();
    let stage = Stage::start("frozen", plan).await;
    let before = stage.load.acknowledged();
    let began = Instant::now();
    let frozen = Frozen::with_children(pid);
    // What is behind grows with the load all the time: publishes are accepted and stay in the journal.
    let held = per_second * FROZEN.as_secs() / 2;
    eventually(&format!("{name} is behind by {held} entries"), PATIENCE, async || {
        (stage.tidegate.sink(sink).await.lag_entries >= held).then_some(())
    })
    .await;
    tokio::time::sleep(FROZEN.saturating_sub(began.elapsed())).await;
    let meanwhile = stage.load.acknowledged() - before;
    drop(frozen);
    let ended = Instant::now();
    assert!(meanwhile >= held, "{meanwhile} acknowledged meanwhile");
    let findings = stage.finish(ended).await;
    for account in &findings.accounts {
        assert_eq!(account.done.connects, 1, "{} noticed: {account:?}", account.device);
    }
    let seconds = FROZEN.as_secs();
    findings.row(format!("{name} stopped for {seconds} s (SIGSTOP)")).record(place);
}
