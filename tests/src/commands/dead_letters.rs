//! What can be published nowhere is kept as it was: in the dead-letter topic, or else in the file, also across a SIGKILL.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use serde_json::{Value, json};

use crate::support::kafka::{Consumed, Topic};
use crate::support::tidegate::Tidegate;
use crate::support::{PATIENCE, eventually, report, services};

use super::stage::{Stage, consumes, metric, until_state};

async fn read(stage: &Stage, topic: &str) -> Vec<Consumed> {
    let mut topic = Topic::open(services::kafka(), &stage.topic(topic)).await;
    topic.read_to_end(PATIENCE).await;
    topic.records
}

/// A topic of one partition.
async fn create(name: &str, settings: &[(&str, &str)]) {
    let admin: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", services::kafka()).create().unwrap();
    let topic = NewTopic::new(name, 1, TopicReplication::Fixed(1));
    let topic = settings.iter().fold(topic, |topic, (key, value)| topic.set(key, value));
    admin.create_topics([&topic], &AdminOptions::new()).await.unwrap()[0].as_ref().unwrap();
}

/// The lines of the consumer's file.
fn filed(tidegate: &Tidegate) -> Vec<Value> {
    let file = tidegate.folder().join("data/dead-letters/kafka-consumer.jsonl");
    let text = std::fs::read_to_string(file).unwrap_or_default();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Where a dead letter says that it was read.
fn origin(letter: &Consumed) -> (i32, i64) {
    let number = |name| letter.header(name).expect("it says where it was").parse::<i64>().unwrap();
    (i32::try_from(number("tidegate_kafka_partition")).unwrap(), number("tidegate_kafka_offset"))
}

#[tokio::test]
async fn what_can_be_published_nowhere_is_in_the_dead_letter_topic_as_it_was() {
    let mut stage = Stage::new(services::kafka());
    stage.settings = stage.settings.set("TIDEGATE_MQTT_MAX_PACKET_BYTES", "100KB");
    let tidegate = stage.start().await;
    let large = vec![b'0'; 200_000];
    stage
        .produce("commands", Some("no action"), &[("room", "é1"), ("tidegate_reason", "old")], b"\xff")
        .await;
    stage.produce("commands", None, &[("device_id", "d"), ("action", "a/b")], b"{}").await;
    stage.command("d", 1).await;
    stage.produce("commands", Some("large"), &[("action", "a")], &large).await;
    stage.settled(&tidegate, "commands", 4).await;

    let letters = read(&stage, "dead").await;
    let sources = read(&stage, "commands").await;
    let mut reasons = BTreeMap::new();
    for letter in &letters {
        let at = origin(letter);
        let source = sources.iter().find(|source| (source.partition, source.offset) == at);
        let source = source.expect("it says where it was read");
        assert_eq!((&letter.key, &letter.value), (&source.key, &source.value));
        let own = source.headers.len();
        assert_eq!(letter.headers[..own], source.headers, "its own headers come first");
        let names: Vec<_> = letter.headers[own..].iter().map(|(name, _)| name.as_str()).collect();
        let expected = ["reason", "detail", "kafka_topic", "kafka_partition", "kafka_offset", "kafka_group"];
        assert_eq!(names, expected.map(|name| format!("tidegate_{name}")));
        assert_eq!(letter.header("tidegate_kafka_topic"), Some(&*stage.topic("commands")));
        assert_eq!(letter.header("tidegate_kafka_group"), Some(&*stage.group));
        let detail = letter.header("tidegate_detail").unwrap();
        reasons.insert(letter.header("tidegate_reason").unwrap(), detail);
    }
    assert_eq!(letters.len(), 3);
    assert_eq!(reasons.keys().collect::<Vec<_>>(), [&"illegal_topic", &"no_topic", &"too_large"]);
    assert!(reasons["no_topic"].contains("header action or a JSON field action"), "{reasons:?}");
    assert!(reasons["illegal_topic"].contains("cannot hold '/'"), "{reasons:?}");
    assert!(reasons["too_large"].contains("mqtt.max_packet_bytes"), "{reasons:?}");
    assert_eq!(metric(&tidegate, "tidegate_source_dead_letters_total", "to=\"topic\"").await, 3.0);
    assert_eq!(filed(&tidegate), Vec::<Value>::new());
}

#[tokio::test]
async fn what_the_dead_letter_topic_does_not_take_is_in_the_file() {
    let stage = Stage::new(services::kafka());
    create(&stage.topic("dead"), &[("max.message.bytes", "3000")]).await;
    let tidegate = stage.start().await;
    let large = [vec![b'x'; 5_000], vec![0xff]].concat();
    stage.produce("commands", Some("small"), &[], b"1").await;
    stage.produce("commands", Some("large"), &[("a", "1"), ("a", "2")], &large).await;
    stage.produce("commands", Some("text"), &[], &large[..5_000]).await;
    stage.settled(&tidegate, "commands", 3).await;
    let letters = read(&stage, "dead").await;
    assert_eq!(letters.iter().map(Consumed::key).collect::<Vec<_>>(), ["small"]);

    let lines = filed(&tidegate);
    assert_eq!(lines.len(), 2);
    let line = lines.iter().find(|line| line["key"] == "large").expect("it is in the file");
    assert_eq!(line["headers"], json!([{"name": "a", "value": "1"}, {"name": "a", "value": "2"}]));
    assert_eq!(line["kafka_topic"], json!(stage.topic("commands")));
    assert_eq!((&line["group"], &line["reason"]), (&json!(stage.group), &json!("no_topic")));
    let sources = read(&stage, "commands").await;
    let source = sources.iter().find(|source| source.key() == "large").unwrap();
    assert_eq!((&line["partition"], &line["offset"]), (&json!(source.partition), &json!(source.offset)));
    let base64 = line["payload_base64"].as_str().expect("no text is in base64");
    assert_eq!(base64.len(), 5_001usize.div_ceil(3) * 4);
    assert!(line["detail"].as_str().unwrap().contains("nor does the dead-letter topic take it"), "{line}");
    let text = lines.iter().find(|line| line["key"] == "text").expect("it is in the file");
    assert_eq!(text["payload"].as_str().map(str::len), Some(5_000));
    let told = until_state(&tidegate, "degraded").await;
    assert!(told["detail"].as_str().unwrap().contains("dead-letters/kafka-consumer.jsonl"), "{told}");
    assert_eq!(metric(&tidegate, "tidegate_source_dead_letters_total", "to=\"file\"").await, 2.0);
}

/// The file stands in the way of the folder, and the topic is off: nothing is kept, so nothing may be committed.
#[tokio::test]
async fn nothing_is_committed_that_is_not_kept() {
    let stage = Stage::new(services::kafka());
    let off = stage.told(&stage.group).set("TIDEGATE_KAFKA_DEAD_LETTER_TOPIC", "off");
    let mut tidegate = Tidegate::start(off).await;
    consumes(&tidegate).await;
    stage.command("d", 1).await;
    stage.settled(&tidegate, "commands", 1).await;
    let before = stage.committed("commands").await;
    let folder = tidegate.folder().join("data/dead-letters");
    std::fs::write(&folder, "in the way").unwrap();
    stage.produce("commands", Some("d"), &[], b"no action").await;
    let told = eventually("it says what is wrong", PATIENCE, async || {
        let health = until_state(&tidegate, "degraded").await;
        let detail = health["detail"].as_str().unwrap_or_default().to_owned();
        detail.contains("dead letters cannot be written").then_some(detail)
    })
    .await;
    assert!(told.contains("make room for them"), "{told}");
    assert_eq!(stage.committed("commands").await, before);
    std::fs::remove_file(&folder).unwrap();
    eventually("it is kept and committed", PATIENCE, async || {
        (stage.committed("commands").await == stage.ends("commands").await).then_some(())
    })
    .await;
    assert_eq!(filed(&tidegate).len(), 1);
    assert!(tidegate.drain().await.success(), "{}", tidegate.log());
}

const KILLS: i64 = 4;
/// Records between two kills, at least.
const BETWEEN_KILLS: i64 = 200;

#[tokio::test]
async fn no_letter_is_missing_although_the_appliance_is_killed_again_and_again() {
    let stage = Arc::new(Stage::new(services::kafka()));
    let mut tidegate = stage.start().await;
    let stop = Arc::new(AtomicBool::new(false));
    let producing = {
        let (stage, stop) = (Arc::clone(&stage), Arc::clone(&stop));
        tokio::spawn(async move {
            let mut number = 0_u64;
            while !stop.load(Ordering::Relaxed) {
                let stage = &stage;
                let some = (0..10_u64).map(|each| async move {
                    let (device, payload) = (format!("d{each}"), (number + each).to_string());
                    let headers: &[(&str, &str)] = if each % 2 == 0 { &[] } else { &[("action", "count")] };
                    stage.produce("commands", Some(&device), headers, payload.as_bytes()).await;
                });
                futures_util::future::join_all(some).await;
                number += 10;
            }
        })
    };
    for kill in 1..=KILLS {
        eventually("more records are committed", PATIENCE, async || {
            (stage.committed("commands").await.values().sum::<i64>() >= kill * BETWEEN_KILLS).then_some(())
        })
        .await;
        tidegate.kill();
        let committed = stage.committed("commands").await;
        check_that_what_is_committed_is_kept(&stage, &committed).await;
        tidegate.spawn();
        tidegate.ready().await;
        consumes_or_rejects(&tidegate).await;
    }
    stop.store(true, Ordering::Relaxed);
    producing.await.unwrap();
    let ends = stage.ends("commands").await;
    eventually("everything is committed", PATIENCE, async || {
        (stage.committed("commands").await == ends).then_some(())
    })
    .await;
    let (letters, distinct) = check_that_what_is_committed_is_kept(&stage, &ends).await;
    report(
        "commands::dead_letters",
        &format!("{KILLS} kills, {distinct} letters, {} came again", letters - distinct),
    );
}

/// It is degraded for a while after it has rejected something.
async fn consumes_or_rejects(tidegate: &Tidegate) {
    eventually("it consumes", PATIENCE, async || {
        let health = super::stage::health(tidegate).await;
        let told = health["detail"].as_str().unwrap_or_default().to_owned();
        (health["state"] == "up" || told.contains("was rejected")).then_some(())
    })
    .await;
}

/// Every record without an action below these offsets is a dead letter. Returns how many letters there are, and how many
/// of different records.
async fn check_that_what_is_committed_is_kept(
    stage: &Stage,
    committed: &BTreeMap<i32, i64>,
) -> (usize, usize) {
    let letters = read(stage, "dead").await;
    let kept: BTreeSet<(i32, i64)> = letters.iter().map(origin).collect();
    for source in read(stage, "commands").await {
        let is_committed = source.offset < committed.get(&source.partition).copied().unwrap_or(0);
        if is_committed && source.header("action").is_none() {
            let at = (source.partition, source.offset);
            assert!(kept.contains(&at), "{at:?} is committed, and kept nowhere");
        }
    }
    (letters.len(), kept.len())
}
