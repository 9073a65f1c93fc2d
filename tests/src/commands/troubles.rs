//! What is wrong with records, with the journal, with Kafka: told, waited for, and never in the way of the rest.

use std::sync::Arc;

use tidegate_broker::mqtt::Version;

use crate::support::mosquitto::{self, Subscriber};
use crate::support::services::{self, Own, Service};
use crate::support::tidegate::Tidegate;
use crate::support::{PATIENCE, eventually};

use super::stage::{Receiver, Stage, consumes, health, metric, until_state};

async fn own(service: Service) -> Arc<Own> {
    tokio::task::spawn_blocking(move || Arc::new(Own::start(service))).await.unwrap()
}

/// Does something slow to a service of the test's own, where blocking is allowed.
async fn with(service: &Arc<Own>, act: fn(&Own)) {
    let service = Arc::clone(service);
    tokio::task::spawn_blocking(move || act(&service)).await.unwrap();
}

#[tokio::test]
async fn what_can_be_published_nowhere_is_counted_and_the_rest_goes_on() {
    let mut stage = Stage::new(services::kafka());
    stage.settings = stage.settings.set("TIDEGATE_MQTT_MAX_PACKET_BYTES", "100KB");
    let tidegate = stage.start().await;
    let mut device = Receiver::open(tidegate.mqtt, Version::V5, "d").await;
    let mut everything = Subscriber::start(tidegate.mqtt, mosquitto::Version::V5, 1, "#", &[]).await;
    stage.command("d", 0).await;
    stage.produce("commands", Some("d"), &[], b"no action").await;
    stage.produce("commands", Some("d"), &[("action", "#")], b"0").await;
    stage.produce("commands", Some("d"), &[("action", "a/b")], b"0").await;
    stage.produce("commands", Some("d"), &[("action", "a")], &vec![b'0'; 200_000]).await;
    stage.produce("commands", Some("d"), &[("ce_subject", "commands/+/a")], b"0").await;
    stage.command("d", 1).await;
    device.until(2).await;
    assert_eq!(device.numbers, [0, 1]);
    for _ in 0..2 {
        assert_eq!(everything.next().await.topic, "commands/d/count", "nothing else was published");
    }
    stage.settled(&tidegate, "commands", 7).await;
    let rejected = async |reason: &str| {
        metric(&tidegate, "tidegate_source_rejected_total", &format!("reason=\"{reason}\"")).await
    };
    assert_eq!(rejected("no_topic").await, 1.0);
    assert_eq!(rejected("illegal_topic").await, 3.0);
    assert_eq!(rejected("too_large").await, 1.0);
    let told = until_state(&tidegate, "degraded").await;
    assert_eq!(told["rejected"], 5);
    let detail = told["detail"].as_str().unwrap();
    assert!(detail.contains("was rejected") && detail.contains(&stage.topic("commands")), "{detail}");
    assert!(detail.contains(&format!("it is in the Kafka topic {}", stage.topic("dead"))), "{detail}");
    assert!(tidegate.log().contains("header action or a JSON field action or command"), "{}", tidegate.log());
}

/// PostgreSQL is away and holds the journal back until it is full.
#[tokio::test]
async fn a_full_journal_is_waited_for_and_no_command_is_passed_over() {
    let postgres = own(Service::Postgres).await;
    with(&postgres, Own::stop).await;
    let mut stage = Stage::new(services::kafka());
    stage.settings = stage
        .settings
        .postgres(&postgres.url())
        .set("TIDEGATE_JOURNAL_MAX_BYTES", "4MiB")
        .set("TIDEGATE_JOURNAL_SEGMENT_BYTES", "1MiB")
        .set("TIDEGATE_MQTT_MAX_PACKET_BYTES", "1MiB");
    let tidegate = stage.start().await;
    let mut device = Receiver::open(tidegate.mqtt, Version::V5, "d").await;
    // The journal takes some sixty of these.
    const COUNT: u64 = 140;
    let number = |number: u64| format!("{number:0>60000}").into_bytes();
    for each in 0..COUNT {
        stage.produce("commands", Some("d"), &[("action", "count")], &number(each)).await;
    }
    let detail = eventually("it says that it waits", PATIENCE, async || {
        let detail = health(&tidegate).await["detail"].as_str().unwrap_or_default().to_owned();
        detail.contains("journal is full").then_some(detail)
    })
    .await;
    assert!(detail.contains("nothing is consumed until there is room"), "{detail}");
    let name = stage.topic("commands");
    let so_far = metric(&tidegate, "tidegate_source_published_total", &name).await;
    assert!(so_far < 140.0, "the journal was not full: {so_far}");
    let committed: i64 = stage.committed("commands").await.values().sum();
    #[expect(clippy::cast_precision_loss, reason = "counts are small")]
    let committed = committed as f64;
    assert!(committed <= so_far, "{committed} committed, the journal has {so_far}");
    eventually("the lag shows", PATIENCE, async || {
        (health(&tidegate).await["lag"]["entries"].as_u64()? > 0).then_some(())
    })
    .await;

    with(&postgres, Own::start_again).await;
    device.until(usize::try_from(COUNT).unwrap()).await;
    assert_eq!(device.numbers, (0..COUNT).collect::<Vec<_>>());
    consumes(&tidegate).await;
    stage.settled(&tidegate, "commands", COUNT).await;
}

#[tokio::test]
async fn kafka_that_was_away_is_told_and_consumed_again() {
    let kafka = own(Service::Kafka).await;
    let stage = Stage::new(&kafka.url());
    let tidegate = stage.start().await;
    let mut device = Receiver::open(tidegate.mqtt, Version::V5, "d").await;
    stage.command("d", 0).await;
    device.until(1).await;
    with(&kafka, Own::stop).await;
    let down = until_state(&tidegate, "down").await;
    let detail = down["detail"].as_str().unwrap();
    assert!(detail.contains(&kafka.url()) && detail.contains("cannot be reached"), "{detail}");
    with(&kafka, Own::start_again).await;
    consumes(&tidegate).await;
    stage.command("d", 1).await;
    device.until(2).await;
    assert_eq!(device.numbers, [0, 1], "what was committed does not come again");
}

#[tokio::test]
async fn a_drain_while_kafka_is_away_does_not_wait_for_it() {
    let kafka = own(Service::Kafka).await;
    let stage = Stage::new(&kafka.url());
    let mut tidegate = stage.start().await;
    stage.command("d", 0).await;
    stage.settled(&tidegate, "commands", 1).await;
    with(&kafka, Own::stop).await;
    until_state(&tidegate, "down").await;
    assert!(tidegate.drain().await.success(), "{}", tidegate.log());
    with(&kafka, Own::start_again).await;
    stage.command("d", 1).await;
    tidegate.spawn();
    tidegate.ready().await;
    stage.settled(&tidegate, "commands", 1).await;
}

#[tokio::test]
async fn kafka_that_was_never_there_is_told_with_what_to_do_and_mqtt_works() {
    let stage = Stage::new(&crate::support::free_address().to_string());
    let tidegate = Tidegate::start(stage.told(&stage.group)).await;
    let down = until_state(&tidegate, "down").await;
    assert_eq!(down["name"], "kafka-consumer");
    let detail = down["detail"].as_str().unwrap();
    assert!(detail.contains("cannot be reached") && detail.contains("kafka.bootstrap_servers"), "{detail}");
    let mut everything = Subscriber::start(tidegate.mqtt, mosquitto::Version::V5, 1, "#", &[]).await;
    mosquitto::publish(tidegate.mqtt, mosquitto::Version::V5, 1, "sensors/a/b", b"1", &[]);
    assert_eq!(everything.next().await.payload, "1");
}
