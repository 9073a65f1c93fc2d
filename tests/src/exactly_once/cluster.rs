//! Kafka dies in the middle of transactions, or is away for a while: it is lag, then everything once.

use std::sync::Arc;
use std::time::Duration;

use super::{PATIENCE, Stage};
use crate::support::process::Signal;
use crate::support::random::Random;
use crate::support::services::{Own, Service};
use crate::support::{eventually, report};

async fn with(kafka: &Arc<Own>, act: fn(&Own)) {
    let kafka = Arc::clone(kafka);
    tokio::task::spawn_blocking(move || act(&kafka)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_record_is_delivered_once_when_kafka_dies_in_transactions() {
    let mut random = Random::printed("kafka dies");
    let kafka = tokio::task::spawn_blocking(|| Arc::new(Own::start(Service::Kafka))).await.unwrap();
    let mut stage = Stage::start("dies", &kafka.url(), |settings| settings).await;
    for round in 0..3 {
        stage.load.more_acknowledged(random.within(200..1_500)).await;
        tokio::time::sleep(Duration::from_micros(random.within(0..120_000))).await;
        with(&kafka, if round == 2 { Own::stop } else { killed }).await;
        stage.load.more_acknowledged(500).await;
        let told = eventually("/health says that Kafka is away", PATIENCE, async || {
            Some(stage.tidegate.sink("kafka").await).filter(|sink| sink.state == "down")
        })
        .await;
        assert!(told.detail.contains(&stage.kafka) && told.lag_entries > 0, "{told:?}");
        if round == 1 {
            // Both of them.
            stage.tidegate.kill();
            stage.tidegate.spawn();
            stage.tidegate.ready().await;
        }
        with(&kafka, Own::start_again).await;
        stage.delivers().await;
    }
    let (_, sums) = stage.finish().await;
    report("exactly once", &format!("Kafka killed twice, once with tidegate, and restarted once: {sums:?}"));
}

fn killed(kafka: &Own) {
    kafka.signal(Signal::Kill);
    // Also takes note that it is gone.
    kafka.stop();
}

/// Longer than the brokers wait for the end of a transaction: when they are back they end it, and the identity is gone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_record_is_delivered_once_when_kafka_stood_still_for_longer_than_a_transaction_may_last() {
    let kafka = tokio::task::spawn_blocking(|| Arc::new(Own::start(Service::Kafka))).await.unwrap();
    let stage = Stage::start("stands", &kafka.url(), |settings| {
        settings.set("TIDEGATE_KAFKA_PROPERTIES", "{ \"transaction.timeout.ms\" = \"3000\" }")
    })
    .await;
    for _ in 0..2 {
        stage.load.more_acknowledged(300).await;
        kafka.signal(Signal::Stop);
        let away = eventually("/health says that nothing is confirmed", PATIENCE, async || {
            Some(stage.tidegate.sink("kafka").await).filter(|sink| sink.state == "down")
        })
        .await;
        kafka.signal(Signal::Continue);
        assert!(away.lag_age_ms > 3_000, "{away:?}");
        stage.delivers().await;
    }
    stage.finish().await;
}
