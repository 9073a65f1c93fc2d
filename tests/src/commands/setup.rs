//! Where a group begins, what becomes of topics that are missing, and mistakes in the configuration.

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewPartitions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;

use crate::support::mosquitto::{Subscriber, Version};
use crate::support::tidegate::Tidegate;
use crate::support::{PATIENCE, eventually, process, services, target};

use super::stage::{Stage, consumes, metric, until_state};

fn admin() -> AdminClient<DefaultClientContext> {
    ClientConfig::new().set("bootstrap.servers", services::kafka()).create().unwrap()
}

async fn create(topic: &str, partitions: i32) {
    let new = NewTopic::new(topic, partitions, TopicReplication::Fixed(1));
    admin().create_topics([&new], &AdminOptions::new()).await.unwrap()[0].as_ref().unwrap();
}

async fn published(stage: &Stage, tidegate: &Tidegate) -> f64 {
    metric(tidegate, "tidegate_source_published_total", &stage.topic("commands")).await
}

#[tokio::test]
async fn a_new_group_leaves_old_commands_alone_and_misses_none_from_then_on() {
    let stage = Stage::new(services::kafka());
    create(&stage.topic("commands"), 3).await;
    for number in 0..6 {
        stage.command(&format!("d{number}"), number).await;
    }
    let mut tidegate = stage.start().await;
    // Where it begins is known from now on, although nothing was consumed yet.
    eventually("the beginning is committed", PATIENCE, async || {
        (stage.committed("commands").await == stage.ends("commands").await).then_some(())
    })
    .await;
    tidegate.kill();
    for number in 0..6 {
        stage.command(&format!("d{number}"), 100 + number).await;
    }
    tidegate.spawn();
    tidegate.ready().await;
    stage.settled(&tidegate, "commands", 6).await;
    assert_eq!(published(&stage, &tidegate).await, 6.0);
}

#[tokio::test]
async fn a_new_group_may_begin_with_the_oldest() {
    let mut stage = Stage::new(services::kafka());
    create(&stage.topic("commands"), 3).await;
    for number in 0..6 {
        stage.command(&format!("d{number}"), number).await;
    }
    stage.settings = stage.settings.set("TIDEGATE_KAFKA_CONSUME_START", "earliest");
    let tidegate = stage.start().await;
    stage.settled(&tidegate, "commands", 6).await;
    assert_eq!(published(&stage, &tidegate).await, 6.0);
}

/// Its records are newer than the group, whatever they were produced before.
#[tokio::test]
async fn a_partition_that_is_added_is_consumed_from_its_beginning() {
    let mut stage = Stage::new(services::kafka());
    stage.settings = stage
        .settings
        .set("TIDEGATE_KAFKA_PROPERTIES", "{ \"topic.metadata.refresh.interval.ms\" = 600000 }");
    create(&stage.topic("commands"), 1).await;
    let mut tidegate = stage.start().await;
    stage.command("d", 0).await;
    stage.settled(&tidegate, "commands", 1).await;
    tidegate.kill();
    let topic = stage.topic("commands");
    let more = NewPartitions::new(&topic, 4);
    admin().create_partitions([&more], &AdminOptions::new()).await.unwrap()[0].as_ref().unwrap();
    // A producer that knows of the new partitions.
    let fresh = stage.again();
    for number in 0..20 {
        fresh.command(&format!("d{number}"), number).await;
    }
    tidegate.spawn();
    tidegate.ready().await;
    fresh.settled(&tidegate, "commands", 20).await;
    assert!(
        fresh.ends("commands").await.values().filter(|end| **end > 0).count() > 1,
        "more than one has records"
    );
}

#[tokio::test]
async fn missing_topics_are_created_or_waited_for() {
    let mut stage = Stage::new(services::kafka());
    stage.settings = stage.settings.set("TIDEGATE_KAFKA_TOPICS_CREATE", "false");
    create(&stage.topic("commands"), 1).await;
    let tidegate = Tidegate::start(stage.told(&stage.group)).await;
    let degraded = until_state(&tidegate, "degraded").await;
    let detail = degraded["detail"].as_str().unwrap();
    assert!(detail.contains(&format!("no topic {}", stage.topic("alerts"))), "{detail}");
    assert!(detail.contains("kafka.topics.create"), "{detail}");
    // The other is consumed nevertheless.
    stage.command("d", 0).await;
    stage.settled(&tidegate, "commands", 1).await;

    let mut alerts = Subscriber::start(tidegate.mqtt, Version::V5, 1, "alerts/#", &[]).await;
    create(&stage.topic("alerts"), 1).await;
    stage.again().produce("alerts", None, &[("severity", "low")], b"the first").await;
    assert_eq!(alerts.next().await.payload, "the first", "it came before anybody could have looked");
    consumes(&tidegate).await;
}

#[tokio::test]
async fn a_configuration_in_which_a_record_could_go_round_is_refused() {
    let folder = tempfile::tempdir_in(target()).unwrap();
    let (out, err) = (folder.path().join("out"), folder.path().join("err"));
    let mut command = std::process::Command::new(Tidegate::program());
    command
        .arg("run")
        .env("TIDEGATE_KAFKA_BOOTSTRAP_SERVERS", "127.0.0.1:1")
        .env("TIDEGATE_KAFKA_HEADERS", "none")
        .env("TIDEGATE_KAFKA_CONSUME_TOPICS", "[{ topic = \"alerts\", mqtt = \"alerts/{severity}x\" }]")
        .current_dir(folder.path())
        .stdout(std::fs::File::create(&out).unwrap())
        .stderr(std::fs::File::create(&err).unwrap());
    let mut child = process::spawn(&mut command);
    let status = process::ended(&mut child, PATIENCE).await;
    assert_eq!(status.code(), Some(64));
    let said = std::fs::read_to_string(err).unwrap();
    assert!(said.contains("a field fills its level"), "{said}");
    assert!(said.contains("the route for \"alerts/#\" sends records there without ce_id"), "{said}");
    assert!(said.contains("headers minimal or cloudevents"), "{said}");
}
