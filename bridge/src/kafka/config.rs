//! How the Kafka sink is configured, and what that means to librdkafka.
//!
//! What delivery relies on (idempotence, acknowledgement by all replicas, no time-out of its own) is fixed; every other
//! librdkafka property can be set. All mistakes are found before anything connects, and told together.

use std::collections::BTreeMap;

use rdkafka::ClientConfig;
use rdkafka::error::KafkaError;
use serde::{Deserialize, Serialize};

use crate::route::{HeaderStyle, RouteConfig, Routes, default_routes};

/// Kafka as a destination; off while `bootstrap_servers` is empty.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// `host:port`, several separated by commas. Empty = Kafka is not used.
    pub bootstrap_servers: String,
    /// How this appliance names itself to the brokers.
    pub client_id: String,
    /// Compression of record batches: `none`, `gzip`, `snappy` or `lz4`. Every client can read `none` and `gzip`.
    pub compression: String,
    /// Milliseconds to wait for more records before a batch is sent.
    pub linger_ms: u32,
    /// The largest batch in bytes.
    pub batch_bytes: u32,
    /// The largest record in bytes, key and headers included. Larger ones are rejected. A topic's own
    /// `max.message.bytes` counts if it is smaller.
    pub record_bytes_max: u32,
    /// Which headers a record carries, unless its route says so.
    pub headers: HeaderStyle,
    /// The beginning of `ce_source`; the publisher's Client Identifier follows.
    pub source: String,
    /// How topics are created.
    pub topics: TopicsConfig,
    /// Which MQTT topic goes to which Kafka topic; the first that matches wins.
    pub routes: Vec<RouteConfig>,
    /// Any other property of librdkafka, by its own name.
    pub properties: BTreeMap<String, String>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            bootstrap_servers: String::new(),
            client_id: "tidegate".into(),
            compression: "none".into(),
            linger_ms: 5,
            batch_bytes: 1_000_000,
            record_bytes_max: 1_000_000,
            headers: HeaderStyle::CloudEvents,
            source: "/tidegate".into(),
            topics: TopicsConfig::default(),
            routes: default_routes(),
            properties: BTreeMap::new(),
        }
    }
}

/// How the topics named by routes are created when they do not exist. Topics that exist are left as they are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TopicsConfig {
    /// Whether missing topics are created.
    pub create: bool,
    /// Partitions of a new topic, unless its route says so; -1 = the broker's default.
    pub partitions: i32,
    /// Replicas of a new topic; -1 = the broker's default.
    pub replication: i32,
    /// How long a new topic keeps records, unless its route says so, in milliseconds; 0 = the broker's default, -1 = for
    /// ever.
    pub retention_ms: i64,
}

impl Default for TopicsConfig {
    fn default() -> Self {
        Self { create: true, partitions: 3, replication: -1, retention_ms: 0 }
    }
}

/// Properties that delivery relies on, and why each cannot be set.
const FIXED: &[(&str, &str)] = &[
    ("bootstrap.servers", "set kafka.bootstrap_servers instead"),
    ("metadata.broker.list", "set kafka.bootstrap_servers instead"),
    ("client.id", "set kafka.client_id instead"),
    ("enable.idempotence", "delivery relies on it being true"),
    ("acks", "delivery relies on it being all"),
    ("request.required.acks", "delivery relies on it being all"),
    ("message.timeout.ms", "records stay in the journal until they are delivered"),
    ("delivery.timeout.ms", "records stay in the journal until they are delivered"),
    ("transactional.id", "transactions are not used"),
    ("log.queue", "it is used internally"),
];

/// How many records librdkafka may hold. It spends about 1 KiB on each beside the payload, which it does not copy;
/// when it is reached, the rest of a batch waits for delivery reports.
pub(super) const RECORDS_HELD_MAX: u32 = 50_000;

impl Config {
    /// Whether Kafka is a destination at all.
    pub fn is_on(&self) -> bool {
        !self.bootstrap_servers.trim().is_empty()
    }

    /// Every mistake in it, with the key it is in; empty if it is right.
    pub fn mistakes(&self) -> Vec<String> {
        let mut mistakes = Vec::new();
        for (key, value) in &self.properties {
            let wrong = match FIXED.iter().find(|(fixed, _)| fixed == key) {
                Some((_, why)) => Some(format!("it cannot be set here: {why}")),
                None => wrong_property(key, value),
            };
            mistakes.extend(wrong.map(|why| format!("kafka.properties.{key}: {why}")));
        }
        mistakes.extend(self.own_properties().into_iter().filter_map(|(property, value)| {
            let key = KEYS.iter().find(|(_, known)| *known == property).map_or(property, |(key, _)| *key);
            wrong_property(property, &value).map(|why| format!("kafka.{key}: {why}"))
        }));
        if let Err(wrong) = Routes::new(&self.routes) {
            mistakes.extend(wrong.into_iter().map(|why| format!("kafka.routes: {why}")));
        }
        let TopicsConfig { partitions, replication, retention_ms, .. } = self.topics;
        if partitions < -1 || partitions == 0 {
            mistakes.push(format!("kafka.topics.partitions: {partitions} must be at least 1, or -1"));
        }
        if replication < -1 || replication == 0 || replication > i32::from(i16::MAX) {
            mistakes.push(format!("kafka.topics.replication: {replication} must be 1 to 32767, or -1"));
        }
        if retention_ms < -1 {
            mistakes.push(format!("kafka.topics.retention: {retention_ms} ms must be positive, 0 or -1"));
        }
        if self.source.is_empty() {
            mistakes.push("kafka.source: it cannot be empty, CloudEvents asks for a source".into());
        }
        mistakes
    }

    /// What a connection of any kind needs.
    pub(super) fn client(&self) -> ClientConfig {
        let mut client = ClientConfig::new();
        client
            .set("bootstrap.servers", self.bootstrap_servers.trim())
            .set("client.id", &self.client_id)
            .set("socket.keepalive.enable", "true")
            .set("reconnect.backoff.max.ms", "2000");
        for (key, value) in self.properties.iter().filter(|(key, _)| !is_producer_only(key)) {
            client.set(key, value);
        }
        client
    }

    /// The producer; records larger than `record_bytes_max` are refused when they are handed over.
    pub(super) fn producer(&self, record_bytes_max: u32) -> ClientConfig {
        let mut client = self.client();
        client
            .set("enable.idempotence", "true")
            .set("message.timeout.ms", "0")
            // Also the sign of life while nothing flows: a broker that is away shows within this time.
            .set("topic.metadata.refresh.interval.ms", "30000")
            .set("queue.buffering.max.messages", RECORDS_HELD_MAX.to_string())
            // The Java clients' partitioner: the same key finds the same partition whoever produces.
            .set("partitioner", "murmur2_random");
        for (property, value) in self.own_properties() {
            client.set(property, value);
        }
        for (key, value) in &self.properties {
            client.set(key, value);
        }
        client.set("message.max.bytes", record_bytes_max.to_string());
        client
    }

    fn own_properties(&self) -> [(&'static str, String); 5] {
        [
            ("client.id", self.client_id.clone()),
            ("compression.type", self.compression.clone()),
            ("linger.ms", self.linger_ms.to_string()),
            ("batch.size", self.batch_bytes.to_string()),
            ("message.max.bytes", self.record_bytes_max.to_string()),
        ]
    }
}

/// What an operator calls properties of librdkafka.
const KEYS: &[(&str, &str)] = &[
    ("client_id", "client.id"),
    ("compression", "compression.type"),
    ("linger", "linger.ms"),
    ("batch_bytes", "batch.size"),
    ("max_record_bytes", "message.max.bytes"),
];

/// Properties that librdkafka warns about when a client that does not produce has them.
fn is_producer_only(key: &str) -> bool {
    [
        "queue.buffering.",
        "batch.",
        "compression.",
        "linger.",
        "message.",
        "partitioner",
        "sticky.",
        "delivery.",
    ]
    .iter()
    .any(|prefix| key.starts_with(prefix))
}

/// What librdkafka says against one property, if it does.
fn wrong_property(key: &str, value: &str) -> Option<String> {
    let mut alone = ClientConfig::new();
    alone.set(key, value);
    let error = alone.create_native_config().err()?;
    if let KafkaError::ClientConfig(_, why, _, _) = error { Some(why) } else { Some(error.to_string()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_off_and_right() {
        let config = Config::default();
        assert!(!config.is_on());
        assert_eq!(config.mistakes(), Vec::<String>::new());
        let written = toml::to_string(&config).unwrap();
        assert_eq!(toml::from_str::<Config>(&written).unwrap(), config);
        assert_eq!(toml::from_str::<Config>("").unwrap(), config);
    }

    #[test]
    fn every_mistake_is_told_with_its_key() {
        let config: Config = toml::from_str(
            r#"
            compression = "middle-out"
            linger_ms = 4000000000
            source = ""
            routes = [{ filter = "a/#/b", topic = "x" }]
            topics = { partitions = 0, replication = 0, retention_ms = -2 }
            [properties]
            "acks" = "1"
            "no.such.thing" = "1"
            "socket.timeout.ms" = "60000"
            "#,
        )
        .unwrap();
        let mistakes = config.mistakes();
        let keys: Vec<_> =
            mistakes.iter().map(|mistake| mistake.split(": ").next().unwrap_or_default()).collect();
        assert_eq!(
            keys,
            [
                "kafka.properties.acks",
                "kafka.properties.no.such.thing",
                "kafka.compression",
                "kafka.linger",
                "kafka.routes",
                "kafka.topics.partitions",
                "kafka.topics.replication",
                "kafka.topics.retention",
                "kafka.source",
            ],
            "{mistakes:#?}"
        );
        assert!(toml::from_str::<Config>("bootstrap = \"x\"").is_err());
    }

    #[test]
    fn a_property_of_librdkafka_reaches_it() {
        let mut config = Config { bootstrap_servers: " localhost:1 ".into(), ..Config::default() };
        config.properties.insert("socket.timeout.ms".into(), "1234".into());
        config.properties.insert("linger.ms".into(), "77".into());
        let native = config.producer(500_000).create_native_config().unwrap();
        let check = |key: &str, value: &str| assert_eq!(native.get(key).unwrap(), value, "{key}");
        check("socket.timeout.ms", "1234");
        check("linger.ms", "77");
        check("message.max.bytes", "500000");
        check("bootstrap.servers", "localhost:1");
        check("enable.idempotence", "true");
        check("message.timeout.ms", "0");
    }
}
