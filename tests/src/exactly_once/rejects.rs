//! Records that Kafka will never take, in the middle of transactions: the rest once, each of them once where dead letters go,
//! and counted once.

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, AlterConfig, ResourceSpecifier};
use rdkafka::client::DefaultClientContext;
use tidegate_broker::mqtt::Version;
use tidegate_broker::record::Qos;

use super::{PATIENCE, Stage};
use crate::support::kafka::Topic;
use crate::support::mqtt::{Connection, Flags, Options, Received};
use crate::support::tidegate::Tidegate;
use crate::support::{eventually, services, unique};

/// Publishes `payloads` and waits until they are on disk.
pub(super) async fn publish(tidegate: &Tidegate, topic: &str, payloads: &[Vec<u8>]) {
    let mut connection =
        Connection::open(tidegate.mqtt, &Options::clean(Version::V5, "large")).await.unwrap();
    for (packet_id, payload) in (1..).zip(payloads) {
        let flags = Flags { dup: false, retain: false };
        connection.publish(topic, payload, Qos::AtLeastOnce, packet_id, flags);
    }
    connection.flush().await.unwrap();
    for _ in payloads {
        let answer = connection.receive().await.unwrap();
        assert!(matches!(answer, Received::PubAck { .. }), "{answer:?}");
    }
    connection.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_too_large_in_the_middle_is_rejected_once_and_the_rest_is_delivered_once() {
    let kafka = services::kafka();
    let dead_letters = unique("dead");
    let mut stage = Stage::start("large", kafka, |settings| {
        settings
            .set("TIDEGATE_KAFKA_MAX_RECORD_BYTES", "100000")
            .set("TIDEGATE_KAFKA_DEAD_LETTER_TOPIC", &dead_letters)
    })
    .await;
    // Larger than is configured: it never leaves.
    let around = |size: usize| vec![b"before".to_vec(), vec![b'x'; size], b"after".to_vec()];
    publish(&stage.tidegate, "large/1", &around(150_000)).await;
    rejected(&stage.tidegate, 1).await;

    // Larger than the topic takes since a moment ago: the broker refuses it, and the transaction with it.
    let admin: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", kafka).create().unwrap();
    let topic = format!("{}-rest", stage.run);
    let altered = AlterConfig::new(ResourceSpecifier::Topic(&topic)).set("max.message.bytes", "20000");
    admin.alter_configs([&altered], &AdminOptions::new()).await.unwrap()[0].as_ref().unwrap();
    publish(&stage.tidegate, "large/2", &around(50_000)).await;
    rejected(&stage.tidegate, 2).await;

    // Nothing of it is counted or delivered again by the next start.
    stage.load.more_acknowledged(200).await;
    stage.tidegate.crash_and_restart().await;
    publish(&stage.tidegate, "large/3", &[b"last".to_vec()]).await;
    let mut rest = Topic::open(kafka, &topic).await;
    rest.matching(5, PATIENCE, |_| true).await;
    let health = stage.tidegate.sink("kafka").await;
    assert_eq!(health.rejected, 0, "{health:?}");
    stage.finish().await;
    let mut dead = Topic::open(kafka, &dead_letters).await;
    dead.read_to_end(PATIENCE).await;
    let mut dead: Vec<_> =
        dead.records.iter().map(|record| (record.mqtt_topic(), record.value.len())).collect();
    dead.sort_unstable();
    assert_eq!(dead, [("large/1", 150_000), ("large/2", 50_000)]);
    rest.read_to_end(PATIENCE).await;
    let mut values: Vec<_> = rest
        .records
        .iter()
        .map(|record| (record.mqtt_topic(), String::from_utf8_lossy(&record.value)))
        .collect();
    values.sort();
    let expected = [
        ("large/1", "after"),
        ("large/1", "before"),
        ("large/2", "after"),
        ("large/2", "before"),
        ("large/3", "last"),
    ];
    assert_eq!(values, expected.map(|(topic, value)| (topic, value.into())));
}

async fn rejected(tidegate: &Tidegate, count: u64) {
    eventually("the reject shows", PATIENCE, async || {
        (tidegate.sink("kafka").await.rejected == count).then_some(())
    })
    .await;
}
