//! Kafka is there and stores nothing: what is said of it, and that everything is delivered afterwards.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use tidegate_broker::record::Qos;
use tokio::sync::watch;

use crate::support::device::{Device, Order};
use crate::support::kafka::{Partition, Topic, partitions};
use crate::support::process::{self, Signal};
use crate::support::services::{NODES, Own, Service};
use crate::support::tidegate::{Settings, Tidegate};
use crate::support::{PATIENCE, eventually, unique};

/// Publishes of one device.
const PUBLISHES: u64 = 200;

async fn publish(tidegate: &Tidegate, device: &str) {
    let (_orders, order) = watch::channel(Order::Publish);
    let device = Device { limit: PUBLISHES, ..Device::new(tidegate.mqtt, device, Qos::AtLeastOnce) };
    let done = device.run(order, Arc::new(AtomicU64::new(0))).await;
    assert_eq!(done.acknowledged, PUBLISHES);
}

/// Three replicas must have a record, and one of three nodes is away: the brokers that are there refuse it
/// (`NOT_ENOUGH_REPLICAS`) until the third is back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_few_replicas_are_waited_for_and_named() {
    let cluster = Own::start(Service::KafkaCluster);
    let (servers, topic) = (cluster.url(), unique("strict"));
    let admin: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", &servers).create().unwrap();
    let strict = NewTopic::new(&topic, 3, TopicReplication::Fixed(3)).set("min.insync.replicas", "3");
    admin.create_topics([&strict], &AdminOptions::new()).await.unwrap()[0].as_ref().unwrap();
    let routes = format!("[{{ filter = \"#\", topic = \"{topic}\", key = \"device\" }}]");
    let settings = Settings::default().kafka(&servers).set("TIDEGATE_KAFKA_ROUTES", &routes);
    let tidegate = Tidegate::start(settings).await;
    publish(&tidegate, "first").await;
    tidegate.caught_up("kafka", 0, PATIENCE).await;

    process::send(cluster.node(3), Signal::Kill);
    let two = |partition: &Partition| partition.leader > 0 && partition.in_sync == NODES.len() - 1;
    partitions("two replicas are in sync", &servers, &topic, two).await;
    publish(&tidegate, "second").await;
    let told = eventually("/health names what is missing", PATIENCE, async || {
        let health = tidegate.sink("kafka").await;
        health.detail.contains("min.insync.replicas").then_some(health)
    })
    .await;
    assert_eq!(told.state, "down", "{told:?}");
    assert!(told.detail.contains(&topic) && told.detail.contains("2 replicas in sync"), "{told:?}");
    assert!(told.lag_entries >= PUBLISHES, "{told:?}");
    assert!(tidegate.log().contains(&told.detail), "it is in the log as well");

    tokio::task::block_in_place(|| cluster.start_again());
    tidegate.caught_up("kafka", 0, PATIENCE).await;
    let mut topic = Topic::open(&servers, &topic).await;
    topic.read_to_end(PATIENCE).await;
    for device in ["first", "second"] {
        let of_device = topic.records.iter().filter(|record| record.key() == device);
        let numbers: Vec<u64> =
            of_device.map(|record| std::str::from_utf8(&record.value).unwrap().parse().unwrap()).collect();
        assert_eq!(numbers, (0..PUBLISHES).collect::<Vec<_>>(), "{device}: each once, in order");
    }
}
