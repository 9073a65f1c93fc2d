//! Kafka and PostgreSQL go away under load: devices notice nothing, `/health` says what is behind, and later nothing is missing.

use std::time::{Duration, Instant};

use super::quick_or_long;
use super::row::Place;
use super::stage::{Plan, Stage};
use crate::support::process::{self, Signal};
use crate::support::services::{Own, Service};
use crate::support::{eventually, report};

/// What the process may need at most, whatever is away.
const MEMORY_BYTES_MAX: u64 = 256 << 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_missing_after_kafka_was_away() {
    let kafka = Own::start(Service::Kafka);
    let plan = Plan::on_kafka(kafka.url());
    away(plan, &kafka, ["kafka", "postgres"], "Kafka", Place::KafkaAway, quick_or_long(6, 300)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_missing_or_twice_after_kafka_was_away_in_transactions() {
    let (away_s, transaction_s) = quick_or_long((8, 4), (90, 60));
    let kafka = Own::start(Service::Kafka);
    let plan = Plan::on_kafka(kafka.url()).exactly_once(transaction_s);
    let name = format!("Kafka, exactly once (transactions of {transaction_s} s at most),");
    away(plan, &kafka, ["kafka", "postgres"], &name, Place::TransactionsAway, away_s).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_missing_after_postgresql_was_away() {
    let postgres = Own::start(Service::Postgres);
    let plan = Plan { postgres: postgres.url(), ..Plan::usual() };
    away(plan, &postgres, ["postgres", "kafka"], "PostgreSQL", Place::PostgresAway, quick_or_long(6, 60))
        .await;
}

async fn away(plan: Plan, service: &Own, [sink, other]: [&str; 2], name: &str, place: Place, outage_s: u64) {
    // PostgreSQL's children would outlive a killed parent for a while; how it dies at once is another fault.
    let signal = if sink == "kafka" { Signal::Kill } else { Signal::Interrupt };
    let outage = Duration::from_secs(outage_s);
    let per_second = plan.devices.per_second();
    let stage = Stage::start("away", plan).await;
    tokio::task::block_in_place(|| {
        service.signal(signal);
        service.stop();
    });
    goes_on_without(&stage, sink, other, outage, per_second).await;
    tokio::task::block_in_place(|| service.start_again());
    let ended = Instant::now();
    let pid = stage.tidegate.pid();
    stage.is_keeping_up(sink).await;
    let peak = process::peak_memory_bytes(pid);
    let findings = stage.finish(ended).await;
    for account in &findings.accounts {
        assert_eq!(account.done.connects, 1, "{} noticed: {account:?}", account.device);
    }
    report("ledger", &format!("{name} away: peak memory {} MiB", peak >> 20));
    assert!(peak < MEMORY_BYTES_MAX, "peak memory {} MiB", peak >> 20);
    let seconds = outage.as_secs();
    let how = if signal == Signal::Kill { " (SIGKILL)" } else { "" };
    findings.row(format!("{name} away for {seconds} s{how}")).record(place);
}

/// For as long as the outage lasts: publishes are acknowledged all the time, the health page tells which sink is behind, by ever
/// more, and that the other is not.
async fn goes_on_without(stage: &Stage, away: &str, present: &str, outage: Duration, per_second: u64) {
    let began = Instant::now();
    let tidegate = &stage.tidegate;
    let mut last = tidegate.sink(away).await.lag_entries;
    let mut acknowledged = stage.load.acknowledged();
    while began.elapsed() < outage {
        acknowledged =
            eventually("publishes are acknowledged meanwhile", Duration::from_secs(5), async || {
                Some(stage.load.acknowledged()).filter(|&now| now > acknowledged + per_second / 4)
            })
            .await;
        last = eventually(
            &format!("/health tells that {away} is further behind"),
            Duration::from_secs(5),
            async || Some(tidegate.sink(away).await.lag_entries).filter(|&lag| lag > last),
        )
        .await;
    }
    let (behind, other) = (tidegate.sink(away).await, tidegate.sink(present).await);
    report("ledger", &format!("{away} away for {outage:?}: {behind:?}; {present}: {other:?}"));
    assert_ne!(behind.state, "up", "{behind:?}");
    assert!(!behind.detail.is_empty(), "it says what is wrong: {behind:?}");
    let sent = outage.as_secs() * per_second;
    assert!(behind.lag_entries > sent / 2, "about {sent} entries behind: {behind:?}");
    assert!(behind.lag_age_ms > outage.as_millis() as u64 / 2, "{behind:?}");
    assert_eq!(other.state, "up", "{other:?}");
    let health = tidegate.health().await;
    assert_eq!(health["status"], "degraded", "{health}");
    stage.is_keeping_up(present).await;
}
