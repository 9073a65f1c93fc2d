//! What Kafka will never take is kept and told, and holds nothing up: the dead-letter topic, and the file behind it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use serde_json::Value;
use tempfile::TempDir;
use tidegate::health::State;
use tidegate::kafka::Config;
use tidegate::route::{KeyRule, RouteConfig};
use tidegate_broker::record::Qos;

use super::stage::*;
use crate::support::device::{Device, Order};
use crate::support::kafka::Topic;
use crate::support::metrics::Metrics;
use crate::support::services::{self, Secure};
use crate::support::tidegate::{Settings, Tidegate};
use crate::support::unique;

/// The usual routes, and dead letters that are tried again every second; the file lies in the folder.
fn impatient(servers: &str, prefix: &str) -> (Config, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(servers, prefix);
    config.dead_letter.patience_ms = 1_000;
    config.dead_letter.folder = Some(folder.path().into());
    (config, folder)
}

/// What a user of [`Secure`] says to be let in.
fn login(user: &str) -> [(&'static str, String); 4] {
    [
        ("security.protocol", "sasl_plaintext".to_owned()),
        ("sasl.mechanism", "PLAIN".to_owned()),
        ("sasl.username", user.to_owned()),
        ("sasl.password", services::secret(user)),
    ]
}

/// A client of [`Secure`] that may do everything.
fn administrator(secure: &Secure) -> ClientConfig {
    let mut client = ClientConfig::new();
    client.set("bootstrap.servers", &secure.sasl).set("group.id", unique("t"));
    for (key, value) in login("admin") {
        client.set(key, value);
    }
    client
}

/// What lies in the file of dead letters.
fn filed(folder: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(folder.join("kafka.jsonl")).unwrap_or_default();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

async fn create(admin: &AdminClient<DefaultClientContext>, name: &str, settings: &[(&str, &str)]) {
    let topic = NewTopic::new(name, 1, TopicReplication::Fixed(1));
    let topic = settings.iter().fold(topic, |topic, (key, value)| topic.set(key, value));
    admin.create_topics([&topic], &AdminOptions::new()).await.unwrap()[0].as_ref().unwrap();
}

async fn delete(admin: &AdminClient<DefaultClientContext>, name: &str) {
    admin.delete_topics(&[name], &AdminOptions::new()).await.unwrap()[0].as_ref().unwrap();
}

fn values(consumed: &[Consumed]) -> Vec<&str> {
    consumed.iter().map(Consumed::value_text).collect()
}

#[tokio::test]
async fn what_is_too_large_goes_to_the_dead_letter_topic_or_else_into_the_file() {
    let (servers, prefix) = (services::kafka(), prefix());
    let (config, folder) = impatient(servers, &prefix);
    create(&admin(servers), &format!("{prefix}sensors"), &[("max.message.bytes", "20000")]).await;
    let mut filled = Filled::new();
    let (large, huge) = ("x".repeat(50_000), "y".repeat(1_200_000));
    let fits = "z".repeat(19_000);
    let payloads = ["before", &large, "between", &huge, "after", &fits];
    for payload in payloads {
        filled.append("c", "sensors/d/x", b"\x26\x00\x01k\x00\x01v", payload.as_bytes());
    }
    filled.settle().await;
    let carrying = Carrying::start(&filled.journal, &config);
    carrying.until_delivered(&filled.journal).await;
    eventually("it is told", || carrying.part.report().state == State::Degraded).await;
    let report = carrying.part.report();
    assert_eq!(report.rejected, 2);
    let detail = report.detail.unwrap();
    assert!(detail.contains("1200000 bytes") && detail.contains("kafka.jsonl"), "{detail}");
    let balance = carrying.part.balance(|| 6).unwrap();
    assert_eq!((balance.delivered, balance.pending), (4, 0));
    assert_eq!(balance.dropped[0], ("too_large", 2));
    carrying.drain().await;

    let consumed = consume(servers, &[format!("{prefix}sensors")]).await;
    assert_eq!(values(&consumed), ["before", "between", "after", &fits]);
    let dead = consume(servers, &[format!("{prefix}dead-letter")]).await;
    assert_eq!(dead.len(), 1);
    assert_eq!((dead[0].key.as_deref(), dead[0].value_text()), (Some("d"), &*large));
    assert_eq!(dead[0].header("ce_subject"), "sensors/d/x");
    assert_eq!(dead[0].header("ce_id"), format!("{:032x}-1", filled.journal.id().0));
    assert_eq!(dead[0].header("k"), "v");
    assert_eq!(dead[0].header("tidegate_reason"), "too_large");
    assert_eq!(dead[0].header("tidegate_kafka_topic"), format!("{prefix}sensors"));
    assert!(dead[0].header("tidegate_detail").contains("50000 bytes"), "{:?}", dead[0].headers);

    let filed = filed(folder.path());
    assert_eq!(filed.len(), 1);
    let line = &filed[0];
    assert_eq!((line["offset"].as_u64(), line["payload"].as_str()), (Some(3), Some(&*huge)));
    assert_eq!((line["topic"].as_str(), line["client"].as_str()), (Some("sensors/d/x"), Some("c")));
    assert_eq!((line["reason"].as_str(), line["key"].as_str()), (Some("too_large"), Some("d")));
    assert_eq!(line["kafka_topic"].as_str(), Some(&*format!("{prefix}sensors")));
}

#[tokio::test]
async fn without_a_dead_letter_topic_everything_goes_into_the_file() {
    let (servers, prefix) = (services::kafka(), prefix());
    let (mut config, folder) = impatient(servers, &prefix);
    config.dead_letter.topic = None;
    config.record_bytes_max = 1_000;
    let mut filled = Filled::new();
    let large = [b"\xff".repeat(1_500), b"x".to_vec()].concat();
    for payload in [b"before".as_slice(), &large, b"after"] {
        filled.append("c", "sensors/d/x", b"", payload);
    }
    filled.settle().await;
    let carrying = Carrying::start(&filled.journal, &config);
    carrying.until_delivered(&filled.journal).await;
    assert_eq!(carrying.part.report().rejected, 1);
    carrying.drain().await;
    let consumed = consume(servers, &[format!("{prefix}sensors")]).await;
    assert_eq!(values(&consumed), ["before", "after"]);
    let filed = filed(folder.path());
    assert_eq!(filed.len(), 1);
    assert_eq!(filed[0]["payload"], Value::Null, "it is no text");
    assert!(filed[0]["payload_base64"].as_str().unwrap().starts_with("////"));
}

/// Kafka refuses the whole record batch for the sake of one record, and says which it was.
#[tokio::test]
async fn what_kafka_finds_invalid_is_a_dead_letter_and_its_neighbours_arrive() {
    let (servers, prefix) = (services::kafka(), prefix());
    let (mut config, folder) = impatient(servers, &prefix);
    let (compacted, recent) = (format!("{prefix}compacted"), format!("{prefix}recent"));
    let admin = admin(servers);
    // One takes no record without a key, the other none that is older than a millisecond.
    create(&admin, &compacted, &[("cleanup.policy", "compact")]).await;
    create(&admin, &recent, &[("message.timestamp.before.max.ms", "1")]).await;
    let route = |filter: &str, topic: &str, key| RouteConfig {
        filter: filter.into(),
        topic: topic.into(),
        key,
        ..RouteConfig::default()
    };
    config.routes = vec![
        route("sensors/#", &compacted, KeyRule::Device),
        route("alerts/#", &compacted, KeyRule::None),
        route("#", &recent, KeyRule::Client),
    ];
    let mut filled = Filled::new();
    for number in 0..20 {
        let topic = if [7, 8].contains(&number) { "alerts/high" } else { "sensors/d/x" };
        filled.append("c", topic, b"", number.to_string().as_bytes());
    }
    filled.append("c", "late", b"", b"late");
    filled.settle().await;
    let carrying = Carrying::start(&filled.journal, &config);
    carrying.until_delivered(&filled.journal).await;
    assert_eq!(carrying.part.report().rejected, 3);
    carrying.drain().await;
    let consumed = consume(servers, &[compacted]).await;
    let neighbours: Vec<String> =
        (0..20).filter(|number| ![7, 8].contains(number)).map(|number: i32| number.to_string()).collect();
    assert_eq!(values(&consumed), neighbours, "each once, in order");
    let dead = consume(servers, &[format!("{prefix}dead-letter")]).await;
    let reasons: BTreeMap<&str, &str> =
        dead.iter().map(|record| (record.value_text(), record.header("tidegate_reason"))).collect();
    assert_eq!(reasons, BTreeMap::from([("7", "invalid"), ("8", "invalid"), ("late", "invalid_timestamp")]));
    assert_eq!(filed(folder.path()).len(), 0, "the dead-letter topic took them");
}

#[tokio::test]
async fn the_records_of_a_topic_that_is_gone_are_dead_letters_until_it_is_back() {
    let (servers, prefix) = (services::kafka(), prefix());
    let (mut config, _folder) = impatient(servers, &prefix);
    config.topics.create = false;
    let admin = admin(servers);
    let names = ["sensors", "commands", "alerts", "devices", "mqtt", "dead-letter"];
    for name in names {
        create(&admin, &format!("{prefix}{name}"), &[]).await;
    }
    let (gone, other) = (format!("{prefix}sensors"), format!("{prefix}devices"));
    let mut filled = Filled::new();
    let carrying = Carrying::start(&filled.journal, &config);
    let mut sent: HashMap<String, u64> = HashMap::new();
    let both = |filled: &mut Filled, sent: &mut HashMap<String, u64>| {
        filled.append("c", "sensors/d/x", b"", format!("{}", sent.len()).as_bytes());
        for device in ["a", "b"] {
            let number = sent.entry(device.into()).or_default();
            filled.append("c", &format!("devices/{device}/status"), b"", number.to_string().as_bytes());
            *number += 1;
        }
    };
    both(&mut filled, &mut sent);
    filled.settle().await;
    carrying.until_delivered(&filled.journal).await;
    assert_eq!(carrying.part.report().rejected, 0);

    delete(&admin, &gone).await;
    eventually("the topic is gone", || {
        let metadata = admin.inner().fetch_metadata(None, DEADLINE).unwrap();
        metadata.topics().iter().all(|topic| topic.name() != gone)
    })
    .await;
    for _ in 0..50 {
        both(&mut filled, &mut sent);
    }
    filled.settle().await;
    carrying.until_delivered(&filled.journal).await;
    let report = carrying.part.report();
    assert!(report.rejected > 0, "the topic is gone");
    let detail = report.detail.unwrap();
    assert!(detail.contains(&gone) && detail.contains("kafka.topics.create"), "{detail}");

    // Back, and used again without a restart: records are sent until one arrives.
    create(&admin, &gone, &[]).await;
    let mut reader = Topic::open(servers, &gone).await;
    crate::support::eventually("a record arrives in the topic that is back", DEADLINE, async || {
        both(&mut filled, &mut sent);
        filled.settle().await;
        carrying.until_delivered(&filled.journal).await;
        reader.read_to_end(DEADLINE).await;
        (!reader.records.is_empty()).then_some(())
    })
    .await;
    let rejected = carrying.part.report().rejected;
    both(&mut filled, &mut sent);
    filled.settle().await;
    carrying.until_delivered(&filled.journal).await;
    assert_eq!(carrying.part.report().rejected, rejected, "nothing is a dead letter any more");
    carrying.drain().await;

    check_sequences(&consume(servers, &[other]).await, &sent);
    reader.read_to_end(DEADLINE).await;
    let dead = consume(servers, &[format!("{prefix}dead-letter")]).await;
    let offsets: BTreeSet<&str> = dead.iter().map(|record| record.header("ce_id")).collect();
    assert_eq!(offsets.len() as u64, rejected, "each is there, and counted once");
    let arrived = reader.records.iter().map(|record| record.header("ce_id").unwrap());
    let kept: BTreeSet<&str> = arrived.chain(offsets.iter().copied()).collect();
    assert_eq!(kept.len() as u64, sent["a"] - 1, "all but what was deleted with the topic");
    for record in &dead {
        assert_eq!(record.header("tidegate_reason"), "unknown_topic");
        assert_eq!(record.header("tidegate_kafka_topic"), gone);
    }
}

#[tokio::test]
async fn a_topic_that_may_not_be_written_stops_its_own_records_only() {
    let secure = services::kafka_secure();
    let prefix = format!("{}{}", Secure::ALLOWED, prefix());
    let (mut config, folder) = impatient(&secure.sasl, &prefix);
    config.properties.extend(login("writer").map(|(key, value)| (key.to_owned(), value)));
    let client = administrator(&secure);
    let admin: AdminClient<DefaultClientContext> = client.create().unwrap();
    // One that may be seen and not written, one that may not even be seen.
    let (seen, unseen) = (unique("seen"), unique("unseen"));
    for name in [&seen, &unseen] {
        create(&admin, name, &[]).await;
    }
    let rights = |operation: &str, topic: &str| {
        let arguments =
            ["--add", "--allow-principal", "User:writer", "--operation", operation, "--topic", topic];
        secure.tool(
            "org.apache.kafka.tools.AclCommand",
            &arguments.map(str::to_owned).each_ref().map(String::as_str),
        );
    };
    rights("Describe", &seen);
    config.routes[2].topic.clone_from(&seen);
    config.routes[3].topic.clone_from(&unseen);

    let mut filled = Filled::new();
    for number in 0..20 {
        for topic in ["alerts/high", "devices/d/status", "sensors/d/x"] {
            filled.append("c", topic, b"", number.to_string().as_bytes());
        }
    }
    filled.settle().await;
    let carrying = Carrying::start(&filled.journal, &config);
    carrying.until_delivered(&filled.journal).await;
    let report = carrying.part.report();
    assert_eq!(report.rejected, 40, "{report:?}");
    let detail = report.detail.unwrap();
    assert!(detail.contains(&unseen) && detail.contains("rights of this client"), "{detail}");

    rights("Write", &seen);
    let count = |number: u64| carrying.part.report().rejected == number;
    crate::support::eventually("the topic is written", DEADLINE, async || {
        let before = carrying.part.report().rejected;
        filled.append("c", "alerts/high", b"", b"allowed");
        filled.settle().await;
        carrying.until_delivered(&filled.journal).await;
        count(before).then_some(())
    })
    .await;
    carrying.drain().await;

    let read = async |name: &str| consume_as(&client, &[name.to_owned()]).await;
    let numbers: Vec<String> = (0..20).map(|number| number.to_string()).collect();
    let delivered = read(&format!("{prefix}sensors")).await;
    assert_eq!(values(&delivered), numbers);
    assert_eq!(values(&read(&seen).await).last(), Some(&"allowed"));
    let dead = read(&format!("{prefix}dead-letter")).await;
    let mut kept: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for record in dead.iter().filter(|record| record.value_text() != "allowed") {
        assert_eq!(record.header("tidegate_reason"), "not_authorised");
        kept.entry(record.header("tidegate_kafka_topic")).or_default().insert(record.value_text());
    }
    let all: BTreeSet<&str> = numbers.iter().map(String::as_str).collect();
    assert_eq!(kept, BTreeMap::from([(seen.as_str(), all.clone()), (unseen.as_str(), all)]));
    assert_eq!(filed(folder.path()).len(), 0, "the dead-letter topic took them");
}

#[tokio::test]
async fn neighbours_of_a_record_that_is_too_large_arrive_where_kafka_does_not_tell_its_limit() {
    let secure = services::kafka_secure();
    let prefix = format!("{}{}", Secure::ALLOWED, prefix());
    let (mut config, folder) = impatient(&secure.sasl, &prefix);
    config.properties.extend(login("writer").map(|(key, value)| (key.to_owned(), value)));
    config.record_bytes_max = 100_000;
    let client = administrator(&secure);
    let admin: AdminClient<DefaultClientContext> = client.create().unwrap();
    let topic = format!("{prefix}sensors");
    create(&admin, &topic, &[("max.message.bytes", "20000")]).await;
    let mut filled = Filled::new();
    // A batch of the small ones alone is larger than the topic takes, too.
    let small = |number: u32| format!("{number:03}{}", " ".repeat(1_000));
    let large = "x".repeat(50_000);
    for number in 0..60 {
        if number == 30 {
            filled.append("c", "sensors/d/x", b"", large.as_bytes());
        }
        filled.append("c", "sensors/d/x", b"", small(number).as_bytes());
    }
    filled.settle().await;
    let carrying = Carrying::start(&filled.journal, &config);
    carrying.until_delivered(&filled.journal).await;
    for number in 60..90 {
        filled.append("c", "sensors/d/x", b"", small(number).as_bytes());
    }
    filled.settle().await;
    carrying.until_delivered(&filled.journal).await;
    assert_eq!(carrying.part.report().rejected, 1, "{:?}", carrying.part.report());
    carrying.drain().await;

    let mut next = 0;
    for record in consume_as(&client, &[topic]).await {
        let number: u32 = record.value_text().trim_end().parse().unwrap();
        assert!(number <= next, "{number} came before {next}");
        next += u32::from(number == next);
    }
    assert_eq!(next, 90);
    let dead = consume_as(&client, &[format!("{prefix}dead-letter")]).await;
    assert!(!dead.is_empty() && dead.iter().all(|record| record.value_text() == large));
    assert_eq!(filed(folder.path()).len(), 0);
}

#[tokio::test]
async fn where_no_topic_takes_records_everything_waits_and_nothing_is_a_dead_letter() {
    let (servers, prefix) = (services::kafka(), prefix());
    let (mut config, folder) = impatient(servers, &prefix);
    config.topics.create = false;
    let mut filled = Filled::new();
    for number in 0..10 {
        filled.append("c", "sensors/d/x", b"", number.to_string().as_bytes());
    }
    filled.settle().await;
    let carrying = Carrying::start(&filled.journal, &config);
    eventually("it waits for somebody", || carrying.part.report().state == State::Failed).await;
    let report = carrying.part.report();
    let detail = report.detail.unwrap();
    assert!(
        detail.contains(&format!("{prefix}sensors")) && detail.contains("kafka.topics.create"),
        "{detail}"
    );
    assert_eq!((report.rejected, report.lag.unwrap().entries), (0, 10));
    let admin = admin(servers);
    for route in &config.routes {
        create(&admin, &route.topic, &[]).await;
    }
    carrying.until_delivered(&filled.journal).await;
    assert_eq!(carrying.part.report().rejected, 0);
    carrying.drain().await;
    let consumed = consume(servers, &[format!("{prefix}sensors")]).await;
    assert_eq!(consumed.len(), 10);
    assert_eq!(filed(folder.path()).len(), 0);
}

#[tokio::test]
async fn where_the_dead_letter_topic_may_not_be_written_the_file_has_them() {
    let secure = services::kafka_secure();
    let prefix = format!("{}{}", Secure::ALLOWED, prefix());
    let (mut config, folder) = impatient(&secure.sasl, &prefix);
    config.dead_letter.topic = Some(unique("forbidden"));
    config.record_bytes_max = 1_000;
    config.properties.extend(login("writer").map(|(key, value)| (key.to_owned(), value)));
    let mut filled = Filled::new();
    for number in 0..10 {
        filled.append("c", "sensors/d/x", b"", number.to_string().as_bytes());
        filled.append("c", "sensors/d/x", b"", &[b'x'; 2_000]);
    }
    filled.settle().await;
    let carrying = Carrying::start(&filled.journal, &config);
    carrying.until_delivered(&filled.journal).await;
    assert_eq!(carrying.part.report().rejected, 10);
    carrying.drain().await;
    let offsets: Vec<_> = filed(folder.path()).iter().map(|line| line["offset"].as_u64().unwrap()).collect();
    assert_eq!(offsets, (0..10).map(|number| 2 * number + 1).collect::<Vec<_>>());
}

#[tokio::test]
async fn the_program_keeps_dead_letters_in_its_data_folder_where_kafka_takes_none() {
    const PUBLISHES: u64 = 30;
    let secure = services::kafka_secure();
    let topic = format!("{}{}", Secure::ALLOWED, unique("small"));
    let properties = login("writer").map(|(name, value)| format!("\"{name}\" = \"{value}\""));
    let settings = Settings::default()
        .kafka(&secure.sasl)
        .set("TIDEGATE_KAFKA_PROPERTIES", &format!("{{ {} }}", properties.join(", ")))
        .set(
            "TIDEGATE_KAFKA_ROUTES",
            &format!("[{{ filter = \"#\", topic = \"{topic}\", key = \"device\" }}]"),
        )
        .set("TIDEGATE_KAFKA_DEAD_LETTER_TOPIC", &unique("forbidden"))
        .set("TIDEGATE_KAFKA_MAX_RECORD_BYTES", "1000");
    let mut tidegate = Tidegate::start(settings).await;
    let payload = |_: &str, number: u64| {
        let padding = if number.is_multiple_of(3) { 1_500 } else { 0 };
        format!("{number}{}", " ".repeat(padding)).into_bytes()
    };
    let device = Device::new(tidegate.mqtt, "d", Qos::AtLeastOnce);
    let device = Device { limit: PUBLISHES, payload, ..device };
    let (_order, orders) = tokio::sync::watch::channel(Order::Publish);
    assert_eq!(device.run(orders, Arc::default()).await.acknowledged, PUBLISHES);
    let file = tidegate.folder().join("data/dead-letters");
    let health = crate::support::eventually("all are rejected", DEADLINE, async || {
        Some(tidegate.sink("kafka").await).filter(|health| health.rejected == PUBLISHES / 3)
    })
    .await;
    assert!(health.detail.contains("dead-letters/kafka.jsonl"), "it says where they are: {health:?}");
    // What is counted is on disk.
    tidegate.kill();
    let kept = filed(&file);
    let numbers: BTreeSet<u64> =
        kept.iter().map(|line| line["payload"].as_str().unwrap().trim_end().parse().unwrap()).collect();
    assert_eq!(numbers, (0..PUBLISHES).step_by(3).collect());
    assert!(kept.iter().all(|line| line["reason"] == "too_large"), "{kept:?}");
}

#[tokio::test]
async fn no_dead_letter_is_missing_after_kills() {
    const DEVICES: usize = 4;
    const PUBLISHES: u64 = 1_500;
    let (servers, prefix) = (services::kafka(), prefix());
    let routes = format!("[{{ filter = \"#\", topic = \"{prefix}all\", key = \"device\", partitions = 2 }}]");
    let dead = format!("{prefix}dead");
    let settings = Settings::default()
        .kafka(servers)
        .set("TIDEGATE_KAFKA_ROUTES", &routes)
        .set("TIDEGATE_KAFKA_DEAD_LETTER_TOPIC", &dead)
        .set("TIDEGATE_KAFKA_MAX_RECORD_BYTES", "1000");
    let mut tidegate = Tidegate::start(settings).await;
    let (order, orders) = tokio::sync::watch::channel(Order::Publish);
    let total = Arc::new(AtomicU64::new(0));
    // Each seventh is too large.
    let payload = |_: &str, number: u64| {
        let padding = if number % 7 == 3 { 1_500 } else { 0 };
        format!("{number}{}", " ".repeat(padding)).into_bytes()
    };
    let devices = (0..DEVICES).map(|index| {
        let device = Device::new(tidegate.mqtt, &format!("d{index}"), Qos::AtLeastOnce);
        let device = Device { limit: PUBLISHES, payload, ..device };
        tokio::spawn(device.run(orders.clone(), Arc::clone(&total)))
    });
    let devices: Vec<_> = devices.collect();
    for round in 1..4 {
        let wanted = round * PUBLISHES * DEVICES as u64 / 4;
        eventually("the devices get on", || total.load(std::sync::atomic::Ordering::Relaxed) >= wanted).await;
        tidegate.crash_and_restart().await;
    }
    for device in devices {
        assert_eq!(device.await.unwrap().acknowledged, PUBLISHES);
    }
    drop(order);
    crate::support::eventually("kafka has caught up", DEADLINE, async || {
        (tidegate.sink("kafka").await.lag_entries == 0).then_some(())
    })
    .await;
    let health = tidegate.sink("kafka").await;
    let metrics = Metrics::of(&tidegate).await;
    let counted = metrics.sum("tidegate_sink_rejected_total", "reason=\"too_large\"");
    assert_eq!(counted as u64, health.rejected, "counted by reason");
    let output = metrics.outputs().into_iter().find(|output| output.name == "kafka").unwrap();
    assert!(output.is_balanced() && output.pending == 0, "{output:?}");
    assert_eq!(output.dropped["too_large"], health.rejected);

    let kept = consume(servers, &[dead]).await;
    let small = consume(servers, &[format!("{prefix}all")]).await;
    for (records, is_large) in [(&kept, true), (&small, false)] {
        for device in 0..DEVICES {
            let of_device: Vec<u64> = records
                .iter()
                .filter(|record| record.header("ce_subject") == format!("sensors/d{device}/load"))
                .map(|record| record.value_text().trim_end().parse().unwrap())
                .collect();
            let numbers: BTreeSet<u64> = of_device.iter().copied().collect();
            let expected: BTreeSet<u64> =
                (0..PUBLISHES).filter(|number| (number % 7 == 3) == is_large).collect();
            assert_eq!(numbers, expected, "device {device}");
            let mut next = expected.iter().peekable();
            for number in of_device {
                if next.peek().is_some_and(|first| **first == number) {
                    next.next();
                } else {
                    assert!(
                        next.peek().is_none_or(|first| **first > number),
                        "device {device}: {number} is early"
                    );
                }
            }
        }
    }
}
