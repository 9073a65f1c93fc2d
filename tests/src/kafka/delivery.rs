//! What arrives: everything, unchanged and in order, through outages, drains and rejects.

use std::collections::{BTreeMap, HashMap};

use rdkafka::admin::{AdminOptions, AlterConfig, NewTopic, ResourceSpecifier, TopicReplication};
use tidegate::health::{Part, State};
use tidegate::kafka::KafkaSink;
use tidegate::route::{KeyRule, RouteConfig};
use tidegate_broker::record::{Append as _, Entry};

use super::stage::*;
use crate::support;
use crate::support::services::{self, Own};

/// A record, and where it is to arrive.
#[derive(Clone, Copy)]
struct Case<'a> {
    client: &'a str,
    topic: &'a str,
    payload: &'a [u8],
    kafka: &'a str,
    key: &'a str,
}

/// The content type `application/json`, and the user property `room` = `é1`.
const JSON_FROM_A_ROOM: &[u8] = b"\x03\x00\x10application/json\x26\x00\x04room\x00\x03\xc3\xa91";

#[tokio::test]
async fn records_arrive_unchanged_with_topic_key_headers_and_time() {
    let (servers, prefix) = (services::kafka(), prefix());
    let mut filled = Filled::new();
    let large: Vec<u8> = (0..200 << 10).map(|byte: u32| byte.to_le_bytes()[1]).collect();
    let json: &[u8] = br#"{"device":"sensor01","temp":23.5,"timestamp":"2025-07-27T14:30:00Z"}"#;
    let before = i64::try_from(now_ms()).unwrap();
    let case = |client, topic, payload, kafka, key| Case { client, topic, payload, kafka, key };
    let cases: [Case<'_>; 7] = [
        case("c1", "sensors/temperature", json, "sensors", "c1"),
        case("c1", "sensors/sensor01/temperature", b"23.5", "sensors", "sensor01"),
        case("c2", "iot/sensors", "Temperature: 22.5°C".as_bytes(), "mqtt", "c2"),
        case("c2", "devices/sensor01/status", b"online", "devices", "sensor01"),
        case("c2", "étage/1", b"", "mqtt", "c2"),
        case("c3", "commands/valve/open", b"\x00\xff", "commands", "valve"),
        case("c3", "alerts/high", &large, "alerts", "c3"),
    ];
    for Case { client, topic, payload, .. } in cases {
        let properties: &[u8] = if payload == json { JSON_FROM_A_ROOM } else { b"" };
        filled.append(client, topic, properties, payload);
    }
    filled.appender.append(&Entry::Control(b"no record")).unwrap();
    filled.settle().await;
    let carrying = Carrying::start(&filled.journal, &config(servers, &prefix));
    carrying.until_delivered(&filled.journal).await;
    assert_eq!(carrying.part.report().state, State::Up);
    carrying.drain().await;

    let topics = ["sensors", "commands", "alerts", "devices", "mqtt"].map(|topic| format!("{prefix}{topic}"));
    let consumed = consume(servers, &topics).await;
    assert_eq!(consumed.len(), cases.len(), "control entries stay here");
    let id = format!("{:032x}", filled.journal.id().0);
    for (offset, Case { client, topic, payload, kafka, key }) in cases.into_iter().enumerate() {
        let found = consumed
            .iter()
            .find(|record| record.header("ce_id") == format!("{id}-{offset}"))
            .unwrap_or_else(|| panic!("the record of {topic} is missing"));
        assert_eq!(found.topic, format!("{prefix}{kafka}"));
        assert_eq!(found.key.as_deref(), Some(key), "{topic}");
        assert_eq!(found.value.as_deref(), Some(payload), "{topic}");
        assert_eq!(found.header("ce_subject"), topic);
        assert_eq!(found.header("ce_specversion"), "1.0");
        assert_eq!(found.header("ce_type"), "io.tidegate.publish");
        assert_eq!(found.header("ce_source"), format!("/tidegate/clients/{client}"));
        let time = found.time.unwrap();
        assert!((before..before + 60_000).contains(&time), "the time of acceptance");
        assert!(found.header("ce_time").ends_with(&format!(".{:03}Z", time % 1000)));
        if payload == json {
            assert_eq!(found.header("content-type"), "application/json");
            assert_eq!(found.header("room"), "é1");
        }
    }
}

#[tokio::test]
async fn each_device_keeps_its_order_and_stays_in_one_partition() {
    let (servers, prefix) = (services::kafka(), prefix());
    let (mut filled, mut sent) = (Filled::new(), HashMap::new());
    let config = config(servers, &prefix);
    append_readings(&mut filled, 50, 200, &mut sent);
    filled.settle().await;
    let carrying = Carrying::start(&filled.journal, &config);
    // The second half goes in while the pump is at the tail.
    for _ in 0..20 {
        append_readings(&mut filled, 50, 10, &mut sent);
        filled.appender.submit();
    }
    filled.settle().await;
    carrying.until_delivered(&filled.journal).await;
    carrying.drain().await;

    let consumed = consume(servers, &[format!("{prefix}sensors")]).await;
    assert_eq!(check_sequences(&consumed, &sent), 0, "nothing failed, so nothing comes twice");
    let mut partitions = HashMap::new();
    for record in &consumed {
        let first = *partitions.entry(&record.key).or_insert(record.partition);
        assert_eq!(first, record.partition, "{:?}", record.key);
    }
    assert_eq!(
        partitions.values().collect::<std::collections::HashSet<_>>().len(),
        3,
        "all partitions are used"
    );
}

#[tokio::test]
async fn a_pump_goes_on_where_the_one_before_it_drained() {
    let (servers, prefix) = (services::kafka(), prefix());
    let (mut filled, mut sent) = (Filled::new(), HashMap::new());
    let config = config(servers, &prefix);
    for _ in 0..3 {
        append_readings(&mut filled, 5, 400, &mut sent);
        filled.settle().await;
        let carrying = Carrying::start(&filled.journal, &config);
        eventually("it connects", || carrying.part.report().state == State::Up).await;
        carrying.drain().await;
    }
    let carrying = Carrying::start(&filled.journal, &config);
    carrying.until_delivered(&filled.journal).await;
    carrying.drain().await;
    let consumed = consume(servers, &[format!("{prefix}sensors")]).await;
    assert_eq!(check_sequences(&consumed, &sent), 0, "a drain leaves nothing in flight");
}

#[tokio::test]
async fn missing_topics_are_created_as_configured_and_others_left_alone() {
    let (servers, prefix) = (services::kafka(), prefix());
    let admin = admin(servers);
    let existing = format!("{prefix}alerts");
    let new = NewTopic::new(&existing, 1, TopicReplication::Fixed(1)).set("retention.ms", "7777000");
    admin.create_topics([&new], &AdminOptions::new()).await.unwrap()[0].as_ref().unwrap();

    let mut filled = Filled::new();
    filled.append("c", "sensors/d/x", b"", b"1");
    filled.append("c", "alerts/low", b"", b"2");
    filled.append("c", "x/y", b"", b"3");
    filled.settle().await;
    let mut config = config(servers, &prefix);
    config.topics.partitions = 5;
    config.topics.retention_ms = 3_600_000;
    let carrying = Carrying::start(&filled.journal, &config);
    carrying.until_delivered(&filled.journal).await;
    carrying.drain().await;

    let metadata = admin.inner().fetch_metadata(None, DEADLINE).unwrap();
    let mut found = BTreeMap::new();
    for topic in metadata.topics().iter().filter(|topic| topic.name().starts_with(&prefix)) {
        let resource = ResourceSpecifier::Topic(topic.name());
        let described = admin.describe_configs([&resource], &AdminOptions::new()).await.unwrap();
        let retention = described[0].as_ref().unwrap().get("retention.ms").unwrap().value.clone().unwrap();
        found.insert(
            topic.name().trim_start_matches(&prefix).to_owned(),
            (topic.partitions().len(), retention),
        );
    }
    let hour = |partitions| (partitions, "3600000".to_owned());
    let expected = [
        ("alerts", (1, "7777000".to_owned())),
        ("commands", hour(5)),
        ("dead-letter", hour(5)),
        ("devices", hour(5)),
        ("mqtt", hour(5)),
        ("sensors", hour(5)),
    ];
    let expected: BTreeMap<_, _> =
        expected.into_iter().map(|(name, shape)| (name.to_owned(), shape)).collect();
    assert_eq!(found, expected, "the routes' topics, and none that a device invented");
}

#[tokio::test]
async fn a_record_that_kafka_will_never_take_is_rejected_and_the_rest_goes_on() {
    let (servers, prefix) = (services::kafka(), prefix());
    let mut filled = Filled::new();
    let mut config = config(servers, &prefix);
    config.record_bytes_max = 100_000;
    let too_large = vec![b'x'; 150_000];
    filled.append("c", "sensors/d/x", b"", b"before");
    filled.append("c", "sensors/d/x", b"", &too_large);
    filled.append("c", "sensors/d/x", b"", b"after");
    filled.settle().await;
    let carrying = Carrying::start(&filled.journal, &config);
    carrying.until_delivered(&filled.journal).await;
    eventually("the reject shows", || carrying.part.report().state == State::Degraded).await;
    let report = carrying.part.report();
    assert_eq!(report.rejected, 1);
    let detail = report.detail.unwrap();
    assert!(detail.contains("offset 1") && detail.contains("sensors/d/x"), "{detail}");
    assert!(detail.contains("150000 bytes") && detail.contains("kafka.max_record_bytes"), "{detail}");

    // The topic's limit shrinks below ours while the producer runs: it asks again instead of losing neighbours.
    let topic = format!("{prefix}sensors");
    let altered = AlterConfig::new(ResourceSpecifier::Topic(&topic)).set("max.message.bytes", "20000");
    admin(servers).alter_configs([&altered], &AdminOptions::new()).await.unwrap()[0].as_ref().unwrap();
    for number in 0..10 {
        filled.append("c", "sensors/d/x", b"", format!("small {number}").as_bytes());
    }
    filled.append("c", "sensors/d/x", b"", &too_large[..50_000]);
    filled.append("c", "sensors/d/x", b"", b"last");
    filled.settle().await;
    carrying.until_delivered(&filled.journal).await;
    assert_eq!(carrying.part.report().rejected, 2);
    carrying.drain().await;

    let consumed = consume(servers, &[topic]).await;
    let mut values: Vec<_> = consumed.iter().map(|record| record.value_text().to_owned()).collect();
    values.dedup();
    let mut expected = vec!["before".to_owned(), "after".to_owned()];
    expected.extend((0..10).map(|number| format!("small {number}")));
    expected.push("last".into());
    assert_eq!(values, expected);
}

#[tokio::test]
async fn a_topic_that_no_route_wants_stays_here_and_mistakes_are_told_at_once() {
    let (servers, prefix) = (services::kafka(), prefix());
    let mut filled = Filled::new();
    let mut config = config(servers, &prefix);
    let topic = format!("{prefix}only");
    let route = RouteConfig {
        filter: "a/+".into(),
        topic: topic.clone(),
        key: KeyRule::Topic,
        ..RouteConfig::default()
    };
    config.routes = vec![route];
    filled.append("c", "a/b", b"", b"1");
    filled.append("c", "b/a", b"", b"2");
    filled.settle().await;
    let carrying = Carrying::start(&filled.journal, &config);
    carrying.until_delivered(&filled.journal).await;
    carrying.drain().await;
    let consumed = consume(servers, &[topic]).await;
    assert_eq!(consumed.len(), 1);
    assert_eq!((consumed[0].key.as_deref(), consumed[0].value_text()), (Some("a/b"), "1"));

    config.linger_ms = u32::MAX;
    config.routes.clear();
    let mistakes = KafkaSink::new(&config, filled.journal.id(), Part::new("kafka")).unwrap_err();
    assert_eq!(mistakes.len(), 2, "{mistakes:?}");
}

#[tokio::test]
async fn an_outage_is_lag_and_nothing_is_lost_or_reordered() {
    let kafka = own_kafka().await;
    let (mut filled, mut sent) = (Filled::new(), HashMap::new());
    let config = config(&kafka.url(), &prefix());
    let carrying = Carrying::start(&filled.journal, &config);
    append_readings(&mut filled, 20, 100, &mut sent);
    filled.settle().await;
    carrying.until_delivered(&filled.journal).await;

    // Stopped while records are on their way, and kept away until that is noticed.
    append_readings(&mut filled, 20, 100, &mut sent);
    filled.appender.submit();
    with(&kafka, Own::stop).await;
    append_readings(&mut filled, 20, 2_000, &mut sent);
    filled.settle().await;
    eventually("the outage shows", || carrying.part.report().state == State::Down).await;
    let report = carrying.part.report();
    let detail = report.detail.unwrap();
    assert!(detail.contains(&kafka.url()) && detail.contains("cannot be reached"), "{detail}");
    eventually("lag grows", || {
        carrying.part.report().lag.is_some_and(|lag| lag.entries >= 40_000 && lag.age_ms > 0)
    })
    .await;

    with(&kafka, Own::start_again).await;
    append_readings(&mut filled, 20, 100, &mut sent);
    filled.settle().await;
    carrying.until_delivered(&filled.journal).await;
    eventually("it is up again, without lag", || {
        let report = carrying.part.report();
        report.state == State::Up && report.lag.is_some_and(|lag| lag.entries == 0)
    })
    .await;
    carrying.drain().await;

    let topic = config.routes[0].topic.clone();
    let consumed = consume(&kafka.url(), &[topic]).await;
    let repeated = check_sequences(&consumed, &sent);
    println!("sent {}, consumed {}, repeated {repeated}", sent.values().sum::<u64>(), consumed.len());
}

#[tokio::test]
async fn a_drain_while_kafka_is_away_leaves_the_rest_to_the_next_pump() {
    let kafka = own_kafka().await;
    let (mut filled, mut sent) = (Filled::new(), HashMap::new());
    let config = config(&kafka.url(), &prefix());
    let carrying = Carrying::start(&filled.journal, &config);
    append_readings(&mut filled, 20, 100, &mut sent);
    filled.settle().await;
    carrying.until_delivered(&filled.journal).await;
    with(&kafka, Own::stop).await;
    append_readings(&mut filled, 20, 100, &mut sent);
    filled.settle().await;
    eventually("the outage shows", || carrying.part.report().state == State::Down).await;
    carrying.drain.send_replace(Some(tokio::time::Instant::now()));
    support::within("the drain ends", DEADLINE, carrying.task).await.unwrap();

    with(&kafka, Own::start_again).await;
    let carrying = Carrying::start(&filled.journal, &config);
    carrying.until_delivered(&filled.journal).await;
    carrying.drain().await;
    let consumed = consume(&kafka.url(), &[config.routes[0].topic.clone()]).await;
    check_sequences(&consumed, &sent);
}

#[tokio::test]
async fn a_topic_that_was_deleted_is_made_again() {
    let (servers, prefix) = (services::kafka(), prefix());
    let (mut filled, config) = (Filled::new(), config(servers, &prefix));
    let carrying = Carrying::start(&filled.journal, &config);
    filled.append("c", "sensors/d/x", b"", b"lost with the topic");
    filled.settle().await;
    carrying.until_delivered(&filled.journal).await;
    let topic = format!("{prefix}sensors");
    let deleted = admin(servers).delete_topics(&[&topic], &AdminOptions::new()).await.unwrap();
    deleted[0].as_ref().unwrap();
    filled.append("c", "sensors/d/x", b"", b"kept");
    filled.settle().await;
    carrying.until_delivered(&filled.journal).await;
    carrying.drain().await;
    let consumed = consume(servers, &[topic]).await;
    assert_eq!(consumed.last().map(Consumed::value_text), Some("kept"));
}

#[tokio::test]
async fn while_nothing_flows_health_tells_that_kafka_went_away_and_came_back() {
    let kafka = own_kafka().await;
    let filled = Filled::new();
    let config = config(&kafka.url(), &prefix());
    let carrying = Carrying::start(&filled.journal, &config);
    eventually("it connects", || carrying.part.report().state == State::Up).await;
    with(&kafka, Own::stop).await;
    eventually("the outage shows", || carrying.part.report().state == State::Down).await;
    with(&kafka, Own::start_again).await;
    eventually("it is back", || carrying.part.report().state == State::Up).await;
    carrying.drain().await;
}

#[tokio::test]
async fn a_broker_that_was_never_there_is_named_with_what_to_do() {
    let mut filled = Filled::new();
    filled.append("c", "sensors/d/x", b"", b"1");
    filled.settle().await;
    // A port that was free a moment ago.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let carrying = Carrying::start(&filled.journal, &config(&format!("127.0.0.1:{port}"), &prefix()));
    eventually("it is told", || carrying.part.report().state == State::Down).await;
    let report = carrying.part.report();
    let detail = report.detail.unwrap();
    assert!(detail.contains(&format!("127.0.0.1:{port} cannot be reached")), "{detail}");
    assert!(detail.contains("Connection refused") && detail.contains("bootstrap_servers"), "{detail}");
    assert_eq!(report.lag.unwrap().entries, 1);
    carrying.drain().await;
}
