//! The network to Kafka falls silent: connections stay open, nothing passes, and what was on its way is gone.

use std::time::{Duration, Instant};

use super::row::Place;
use super::stage::{Plan, Stage};
use super::{PATIENCE, quick_or_long};
use crate::support::services;
use crate::support::silent_proxy::{Network, SilentProxy};
use crate::support::tidegate::Settings;
use crate::support::{eventually, within};

/// At the beginning Kafka still hears what it is sent and its answers are lost: it has records that nobody knows it has.
/// Until so much of its answers is lost, which is at least one.
const ANSWERS_BYTES: u64 = 50;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_missing_after_the_network_to_kafka_fell_silent() {
    let (silence_s, publishes) = quick_or_long((8, 5_000), (120, 50_000));
    // As it is shipped it takes a minute to give a silent connection up; the short form cannot wait for that.
    let settings = quick_or_long(
        Settings::default().set("TIDEGATE_KAFKA_PROPERTIES", "{ \"socket.timeout.ms\" = \"3000\" }"),
        Settings::default(),
    );
    let kafka = services::kafka_proxied();
    let proxy = SilentProxy::start(kafka.advertised, kafka.listener).await;
    let plan = Plan { settings, kafka: kafka.advertised.to_string(), ..Plan::usual() };
    let stage = Stage::start("silent", plan).await;

    let before = stage.load.acknowledged();
    let began = Instant::now();
    proxy.set(Network::AnswersSwallowed);
    eventually("answers of Kafka are swallowed", PATIENCE, async || {
        (proxy.swallowed_bytes() >= ANSWERS_BYTES).then_some(())
    })
    .await;
    proxy.set(Network::Swallowing);
    let silence = Duration::from_secs(silence_s);
    within("enough is acknowledged during the silence", PATIENCE, stage.load.more_acknowledged(publishes))
        .await;
    tokio::time::sleep(silence.saturating_sub(began.elapsed())).await;
    let meanwhile = stage.load.acknowledged() - before;
    let behind = stage.tidegate.sink("kafka").await;
    assert!(behind.lag_entries >= publishes, "{behind:?}");
    let silent_s = began.elapsed().as_secs();
    proxy.set(Network::Passing);
    let ended = Instant::now();
    let findings = stage.finish(ended).await;
    let fault = format!("the network to Kafka silent for {silent_s} s, {meanwhile} publishes meanwhile");
    findings.row(fault).record(Place::KafkaSilent);
}
