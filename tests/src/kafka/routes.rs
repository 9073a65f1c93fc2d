//! Which Kafka topic and key a record has, what the topics are like, and that no device invents one.

use std::collections::BTreeMap;

use rdkafka::admin::{AdminOptions, ResourceSpecifier};
use tidegate::config::{Loaded, Sources};
use tidegate::kafka::{Config, HeaderStyle};
use tidegate::route::{KeyRule, RouteConfig};

use super::stage::*;
use crate::support::{root, services};

/// Partitions and `retention.ms` of the topics that begin with `prefix`, by what follows it.
async fn topics(servers: &str, prefix: &str) -> BTreeMap<String, (usize, String)> {
    let admin = admin(servers);
    let metadata = admin.inner().fetch_metadata(None, DEADLINE).unwrap();
    let mut found = BTreeMap::new();
    for topic in metadata.topics().iter().filter(|topic| topic.name().starts_with(prefix)) {
        let resource = ResourceSpecifier::Topic(topic.name());
        let described = admin.describe_configs([&resource], &AdminOptions::new()).await.unwrap();
        let retention = described[0].as_ref().unwrap().get("retention.ms").unwrap().value.clone().unwrap();
        let name = topic.name().strip_prefix(prefix).unwrap().to_owned();
        found.insert(name, (topic.partitions().len(), retention));
    }
    found
}

/// `deploy/health.toml` as it is read, with `prefix` before its topics.
fn health(servers: &str, prefix: &str) -> Config {
    let path = root().join("deploy/health.toml");
    let sources = Sources {
        file: Some(("health.toml".into(), std::fs::read_to_string(path).unwrap())),
        environment: vec![("KAFKA_BOOTSTRAP_SERVERS".into(), servers.into())],
        options: Vec::new(),
    };
    let mut config = Loaded::load(&sources).unwrap().config.kafka;
    assert_eq!(config.bootstrap_servers, servers);
    for route in &mut config.routes {
        route.topic = format!("{prefix}{}", route.topic);
    }
    config.dead_letter.topic = Some(format!("{prefix}dead"));
    config
}

#[tokio::test]
async fn the_routes_for_health_devices_carry_and_create_what_they_say() {
    let (servers, prefix) = (services::kafka(), prefix());
    let config = health(servers, &prefix);
    let mut filled = Filled::new();
    let reading = r#"{"deviceId":"device-7","timestamp":1753626600,"heartRate":72,"bodyTemperature":98.6}"#;
    let cases = [
        ("health/device_data", reading, "device_data", "device-7"),
        ("health/device_data", r#"{"timestamp":1,"deviceId":8}"#, "device_data", "8"),
        ("health/device_data", "not JSON", "device_data", "c"),
        ("health/blood_pressure", reading, "blood_pressure_device_topic", "device-7"),
        ("health/heart_rate", reading, "heart_rate_device_topic", "device-7"),
        ("health/oxygen_saturation", reading, "oxygen_saturation_device_topic", "device-7"),
        ("health/temperature", reading, "temperature_device_topic", "device-7"),
        ("alerts/health", reading, "health_alerts_topic", "device-7"),
        ("alerts/critical", reading, "alerts", "c"),
        ("ping/messages", r#"{"messageId":"m-1","content":"ping"}"#, "ping_topic", "m-1"),
        ("pong/messages", r#"{"messageId":"m-1","response":"pong"}"#, "pong_topic", "m-1"),
        ("ping/analytics", r#"{"messageId":"m-1"}"#, "ping_analytics_topic", "m-1"),
        ("sensors/s1/temperature", r#"{"sensor_id":"s1","value":1.5}"#, "sensor_raw", "s1"),
        ("sensors/s1/temperature", "23.5", "sensor_raw", "s1"),
        ("sensors/s1/agg", r#"{"sensor_id":"s1","rolling_avg":1.5}"#, "sensor_agg", "s1"),
    ];
    for (topic, payload, ..) in cases {
        filled.append("c", topic, b"", payload.as_bytes());
    }
    filled.append("c", "health/unheard-of", b"", b"stays here");
    filled.settle().await;
    let carrying = Carrying::start(&filled.journal, &config);
    carrying.until_delivered(&filled.journal).await;
    carrying.drain().await;

    let week = |partitions| (partitions, (7 * 86_400_000_u64).to_string());
    let day = |partitions| (partitions, 86_400_000_u64.to_string());
    let expected = BTreeMap::from([
        ("device_data", week(3)),
        ("blood_pressure_device_topic", week(3)),
        ("heart_rate_device_topic", week(3)),
        ("oxygen_saturation_device_topic", week(3)),
        ("temperature_device_topic", week(3)),
        ("health_alerts_topic", week(3)),
        ("ping_topic", day(3)),
        ("pong_topic", day(3)),
        ("ping_analytics_topic", week(1)),
        ("sensor_raw", week(3)),
        ("sensor_agg", week(3)),
        ("alerts", day(1)),
    ]);
    let mut found = topics(servers, &prefix).await;
    assert!(found.remove("dead").is_some(), "{found:?}");
    let found: BTreeMap<&str, _> = found.iter().map(|(name, shape)| (name.as_str(), shape.clone())).collect();
    assert_eq!(found, expected);

    let names: Vec<String> = expected.keys().map(|name| format!("{prefix}{name}")).collect();
    let consumed = consume(servers, &names).await;
    assert_eq!(consumed.len(), cases.len());
    let id = format!("{:032x}", filled.journal.id().0);
    for (offset, (topic, payload, kafka, key)) in cases.into_iter().enumerate() {
        let record =
            consumed.iter().find(|record| record.header("ce_id") == format!("{id}-{offset}")).unwrap();
        assert_eq!(record.topic, format!("{prefix}{kafka}"), "{topic}");
        assert_eq!((record.key.as_deref(), record.value_text()), (Some(key), payload), "{topic}");
    }
}

#[tokio::test]
async fn a_device_named_in_the_payload_stays_in_one_partition_and_in_order() {
    let (servers, prefix) = (services::kafka(), prefix());
    let config = health(servers, &prefix);
    let mut filled = Filled::new();
    for number in 0..20 {
        for device in 0..30 {
            let reading = format!(r#"{{"heartRate":{number},"deviceId":"device-{device}"}}"#);
            filled.append("gateway", "health/device_data", b"", reading.as_bytes());
        }
    }
    filled.settle().await;
    let carrying = Carrying::start(&filled.journal, &config);
    carrying.until_delivered(&filled.journal).await;
    carrying.drain().await;
    let consumed = consume(servers, &[format!("{prefix}device_data")]).await;
    let mut of_device: BTreeMap<&str, Vec<(i32, u64)>> = BTreeMap::new();
    for record in &consumed {
        let reading: serde_json::Value = serde_json::from_str(record.value_text()).unwrap();
        assert_eq!(record.key.as_deref(), reading["deviceId"].as_str());
        let readings = of_device.entry(record.key.as_deref().unwrap()).or_default();
        readings.push((record.partition, reading["heartRate"].as_u64().unwrap()));
    }
    assert_eq!(of_device.len(), 30);
    for (device, readings) in &of_device {
        let partition = readings[0].0;
        let expected: Vec<_> = (0..20).map(|number| (partition, number)).collect();
        assert_eq!(readings, &expected, "{device}");
    }
    let used: std::collections::BTreeSet<_> = of_device.values().map(|readings| readings[0].0).collect();
    assert_eq!(used.len(), 3, "all partitions are used");
}

#[tokio::test]
async fn each_route_has_its_headers_and_a_stranger_invents_no_topic() {
    let (servers, prefix) = (services::kafka(), prefix());
    let mut filled = Filled::new();
    let mut config = config(servers, &prefix);
    let route = |filter: &str, key, headers| RouteConfig {
        filter: filter.into(),
        topic: format!("{prefix}only"),
        key,
        partitions: Some(1),
        headers,
        ..RouteConfig::default()
    };
    config.headers = HeaderStyle::Minimal;
    config.routes = vec![
        route("full/#", KeyRule::Level(3), Some(HeaderStyle::CloudEvents)),
        route("bare/#", KeyRule::None, Some(HeaderStyle::None)),
        route("+/data", KeyRule::Topic, None),
    ];
    config.dead_letter.topic = None;
    let invented = ["../etc", "__tidegate", "a/b/c/d", "only2"];
    for topic in ["full/a/b", "bare/a", "some/data"].iter().chain(&invented) {
        filled.append("c", topic, b"\x26\x00\x01k\x00\x01v", b"1");
    }
    filled.settle().await;
    let carrying = Carrying::start(&filled.journal, &config);
    carrying.until_delivered(&filled.journal).await;
    assert_eq!(carrying.part.report().rejected, 0);
    carrying.drain().await;
    let found = topics(servers, &prefix).await;
    assert_eq!(found.keys().collect::<Vec<_>>(), ["only"]);
    for topic in invented {
        assert!(!topics(servers, topic).await.contains_key(""), "{topic}");
    }
    let consumed = consume(servers, &[format!("{prefix}only")]).await;
    let names = |record: &Consumed| record.headers.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
    assert_eq!(consumed.len(), 3);
    assert_eq!(consumed[0].key.as_deref(), Some("b"));
    assert_eq!(
        names(&consumed[0]),
        ["k", "ce_specversion", "ce_id", "ce_source", "ce_type", "ce_subject", "ce_time"]
    );
    assert_eq!((consumed[1].key.as_deref(), names(&consumed[1])), (None, Vec::new()));
    assert_eq!(
        (consumed[2].key.as_deref(), names(&consumed[2])),
        (Some("some/data"), vec!["k".into(), "ce_id".into()])
    );
}
