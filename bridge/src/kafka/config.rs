//! How the Kafka sink is configured, and what that means to librdkafka.
//!
//! What delivery relies on (idempotence, acknowledgement by all replicas, no time-out of its own) is fixed; every other
//! librdkafka property can be set. All mistakes are found before anything connects, and told together.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use rdkafka::ClientConfig;
use rdkafka::error::KafkaError;
use rdkafka::types::RDKafkaConfRes;
use serde::{Deserialize, Serialize};

use crate::route::{HeaderStyle, RouteConfig, Routes, check_kafka_topic, default_routes};
use crate::secret;

use super::avro::{self, RegistryConfig};
use super::consume::ConsumeConfig;

/// Kafka as a destination; off while `bootstrap_servers` is empty.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// `host:port`, several separated by commas. Empty = Kafka is not used.
    pub bootstrap_servers: String,
    /// How this appliance names itself to the brokers.
    pub client_id: String,
    /// The user that SASL names; empty for none.
    pub username: String,
    /// The user's password; empty for none.
    pub password: String,
    /// The file with the user's password, read whenever a connection is made anew; it stands above `password`.
    pub password_file: Option<PathBuf>,
    /// Compression of record batches: `none`, `gzip`, `snappy`, `lz4` or `zstd`. Every client can read `none` and `gzip`.
    pub compression: String,
    /// Milliseconds to wait for more records before a batch is sent.
    pub linger_ms: u32,
    /// The largest batch in bytes.
    pub batch_bytes: u32,
    /// The largest record in bytes, key and headers included. Larger ones are dead letters. A topic's own
    /// `max.message.bytes` counts if it is smaller.
    pub record_bytes_max: u32,
    /// Which headers a record carries, unless its route says so.
    pub headers: HeaderStyle,
    /// The beginning of `ce_source`; the publisher's Client Identifier follows.
    pub source: String,
    /// How topics are created.
    pub topics: TopicsConfig,
    /// What becomes of records that Kafka does not take.
    pub dead_letter: DeadLetterConfig,
    /// Whether each record is stored once, by transactions; else at least once.
    pub exactly_once: bool,
    /// Who this appliance is to the brokers' transaction coordinator. Empty = the client id and the journal's id.
    pub transactional_id: String,
    /// Where each transaction says how far the journal has come.
    pub cursor_topic: String,
    /// Milliseconds that a transaction is open.
    pub transaction_interval_ms: u32,
    /// Which MQTT topic goes to which Kafka topic; the first that matches wins.
    pub routes: Vec<RouteConfig>,
    /// Where routes with an encoding have their schemas from.
    pub schema_registry: RegistryConfig,
    /// What is consumed and published over MQTT.
    pub consume: ConsumeConfig,
    /// Any other property of librdkafka, by its own name.
    pub properties: BTreeMap<String, String>,
    /// Properties of librdkafka, by name, with the file that holds the value. They stand above `properties`.
    pub property_files: BTreeMap<String, String>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            bootstrap_servers: String::new(),
            client_id: "tidegate".into(),
            username: String::new(),
            password: String::new(),
            password_file: None,
            compression: "none".into(),
            linger_ms: 5,
            batch_bytes: 1_000_000,
            record_bytes_max: 1_000_000,
            headers: HeaderStyle::CloudEvents,
            source: "/tidegate".into(),
            topics: TopicsConfig::default(),
            dead_letter: DeadLetterConfig::default(),
            exactly_once: false,
            transactional_id: String::new(),
            cursor_topic: "tidegate-cursors".into(),
            transaction_interval_ms: 100,
            routes: default_routes(),
            schema_registry: RegistryConfig::default(),
            consume: ConsumeConfig::default(),
            properties: BTreeMap::new(),
            property_files: BTreeMap::new(),
        }
    }
}

impl fmt::Debug for Config {
    /// Values of properties may be secrets, so only their names are shown.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("bootstrap_servers", &self.bootstrap_servers)
            .field("client_id", &self.client_id)
            .field("username", &self.username)
            .field("password_file", &self.password_file)
            .field("routes", &self.routes)
            .field("topics", &self.topics)
            .field("properties", &self.properties.keys())
            .field("property_files", &self.property_files)
            .finish_non_exhaustive()
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

/// What becomes of records that their Kafka topic will never take.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DeadLetterConfig {
    /// The Kafka topic that they go to, created like the others; `None` = none, all go into the file.
    pub topic: Option<String>,
    /// Milliseconds for which a missing topic is waited for before its records are dead letters, and after which it is
    /// tried again.
    pub patience_ms: u32,
    /// What the file of those that no topic takes, and the one before it, hold together, in bytes.
    pub file_bytes_max: u64,
    /// Where the file lies. Whoever composes the appliance says it; `None` = there is none, what no topic takes is
    /// only counted.
    #[serde(skip)]
    pub folder: Option<PathBuf>,
}

impl Default for DeadLetterConfig {
    fn default() -> Self {
        Self {
            topic: Some("tidegate-dead-letter".into()),
            patience_ms: 30_000,
            file_bytes_max: 64 << 20,
            folder: None,
        }
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
    ("transactional.id", "set kafka.exactly_once and kafka.transactional_id instead"),
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
        mistakes.extend(self.access_mistakes());
        mistakes.extend(self.own_properties().into_iter().filter_map(|(property, value)| {
            let key = KEYS.iter().find(|(_, known)| *known == property).map_or(property, |(key, _)| *key);
            wrong_property(property, &value).map(|why| format!("kafka.{key}: {why}"))
        }));
        if let Err(wrong) = Routes::new(&self.routes) {
            mistakes.extend(wrong.into_iter().map(|why| format!("kafka.routes: {why}")));
        }
        let encodings = avro::mistakes(&self.schema_registry, &self.routes);
        mistakes.extend(encodings.into_iter().map(|why| format!("kafka.routes: {why}")));
        mistakes.extend(self.schema_registry.mistakes());
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
        if let Some(topic) = &self.dead_letter.topic {
            let carried = self.routes.iter().any(|route| route.topic == *topic);
            let wrong = if carried {
                Err(format!("a route carries records to {topic:?} as well"))
            } else {
                check_kafka_topic(topic)
            };
            mistakes.extend(wrong.err().map(|why| format!("kafka.dead_letter.topic: {why}")));
        }
        mistakes.extend(self.transaction_mistakes());
        mistakes.extend(self.consume.mistakes(self));
        if self.source.is_empty() {
            mistakes.push("kafka.source: it cannot be empty, CloudEvents asks for a source".into());
        }
        mistakes
    }

    /// What is wrong with how it is to be known to the brokers.
    fn access_mistakes(&self) -> Vec<String> {
        let mut mistakes = Vec::new();
        for property in self.property_files.keys() {
            let wrong = match FIXED.iter().find(|(fixed, _)| fixed == property) {
                Some((_, why)) => Some(format!("it cannot be set here: {why}")),
                None => unknown_property(property),
            };
            mistakes.extend(wrong.map(|why| format!("kafka.property_files.{property}: {why}")));
        }
        let get = |property: &str| self.properties.get(property).map(|value| value.to_ascii_uppercase());
        let protocol = get("security.protocol").unwrap_or_default();
        let mechanism = get("sasl.mechanism").or_else(|| get("sasl.mechanisms"));
        if protocol.starts_with("SASL") && !mechanism.as_deref().is_some_and(|it| MECHANISMS.contains(&it)) {
            mistakes.push(format!(
                "kafka.properties.sasl.mechanism: {} with security.protocol = {protocol}; use one of {}",
                mechanism.map_or_else(|| "it is missing".to_owned(), |it| format!("{it} is not built in,")),
                MECHANISMS.join(", ")
            ));
        }
        mistakes
    }

    /// Reads the secrets that lie in files, as they are now. Returns which cannot be read, and why.
    pub fn read_secrets(&mut self) -> Result<(), Vec<String>> {
        let mut unreadable = Vec::new();
        match self.password_file.as_deref().map(secret::read) {
            Some(Ok(password)) => self.password = password,
            Some(Err(why)) => unreadable.push(format!("kafka.password_file: {why}")),
            None => {}
        }
        for (property, path) in &self.property_files {
            match secret::read(Path::new(path)) {
                Ok(value) => _ = self.properties.insert(property.clone(), value),
                Err(why) => unreadable.push(format!("kafka.property_files.{property}: {why}")),
            }
        }
        if unreadable.is_empty() { Ok(()) } else { Err(unreadable) }
    }

    /// Which files of schemas, and of the Schema Registry's password, cannot be used now, and why.
    pub fn unusable_files(&self) -> Vec<String> {
        avro::unusable_files(&self.schema_registry, &self.routes)
    }

    /// What a connection of any kind needs. Secrets that lie in files are as [`Config::read_secrets`] has read them.
    pub(super) fn client(&self) -> ClientConfig {
        let mut client = ClientConfig::new();
        client
            .set("bootstrap.servers", self.bootstrap_servers.trim())
            .set("client.id", &self.client_id)
            .set("socket.keepalive.enable", "true")
            // Topics are created by us, as configured, or not at all.
            .set("allow.auto.create.topics", "false")
            .set("reconnect.backoff.max.ms", "2000");
        for (key, value) in self.properties.iter().filter(|(key, _)| !is_producer_only(key)) {
            client.set(key, value);
        }
        self.secure(&mut client);
        client
    }

    /// Who we are, and whom we believe.
    fn secure(&self, client: &mut ClientConfig) {
        for (property, value) in [("sasl.username", &self.username), ("sasl.password", &self.password)] {
            if !value.is_empty() {
                client.set(property, value);
            }
        }
        let has = |property| client.get(property).is_some();
        let is_tls =
            client.get("security.protocol").is_some_and(|it| it.to_ascii_uppercase().ends_with("SSL"));
        // An OpenSSL that is built in does not know where this system keeps the public authorities.
        if is_tls && !has("ssl.ca.location") && !has("ssl.ca.pem") {
            client.set("ssl.ca.location", "probe");
        }
    }

    /// The producer of record batches of at most `batch_bytes_max`, or of one record of at most `record_bytes_max`;
    /// larger ones are refused when they are handed over.
    pub(super) fn producer(&self, batch_bytes_max: u32, record_bytes_max: u32) -> ClientConfig {
        let mut client = self.client();
        client
            .set("enable.idempotence", "true")
            .set("message.timeout.ms", "0")
            // Also the sign of life while nothing flows: a broker that is away shows within this time.
            .set("topic.metadata.refresh.interval.ms", "30000")
            .set("queue.buffering.max.messages", RECORDS_HELD_MAX.to_string())
            // Larger payloads are sent from where they lie; below, one more piece to send costs more than the copy.
            .set("message.copy.max.bytes", "512")
            // The Java clients' partitioner: the same key finds the same partition whoever produces.
            .set("partitioner", "murmur2_random");
        for (property, value) in self.own_properties() {
            client.set(property, value);
        }
        for (key, value) in &self.properties {
            client.set(key, value);
        }
        self.secure(&mut client);
        let batch = client.get("batch.size").and_then(|bytes| bytes.parse().ok()).unwrap_or(self.batch_bytes);
        client.set("batch.size", batch.min(batch_bytes_max).max(1).to_string());
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

/// What SASL can be done with: the others need libraries that are not built in.
const MECHANISMS: [&str; 3] = ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"];

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
        "transaction.",
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

/// Why there is no property of this name, if there is none.
fn unknown_property(key: &str) -> Option<String> {
    let mut alone = ClientConfig::new();
    alone.set(key, "");
    let error = alone.create_native_config().err()?;
    let is_unknown = matches!(error, KafkaError::ClientConfig(RDKafkaConfRes::RD_KAFKA_CONF_UNKNOWN, ..));
    is_unknown.then(|| "librdkafka has no such property".to_owned())
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
            cursor_topic = "x"
            topics = { partitions = 0, replication = 0, retention_ms = -2 }
            dead_letter = { topic = "not legal" }
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
                "kafka.dead_letter.topic",
                "kafka.cursor_topic",
                "kafka.source",
            ],
            "{mistakes:#?}"
        );
        assert!(toml::from_str::<Config>("bootstrap = \"x\"").is_err());
        let config: Config = toml::from_str("dead_letter = { topic = \"mqtt\" }").unwrap();
        assert_eq!(
            config.mistakes(),
            ["kafka.dead_letter.topic: a route carries records to \"mqtt\" as well"]
        );
    }

    #[test]
    fn what_sasl_cannot_be_done_with_is_a_mistake() {
        let check = |properties: &[(&str, &str)], expected: &[&str]| {
            let properties =
                properties.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
            assert_eq!(Config { properties, ..Config::default() }.mistakes(), expected);
        };
        let uses = "use one of PLAIN, SCRAM-SHA-256, SCRAM-SHA-512";
        let wrong = |why: &str| {
            format!("kafka.properties.sasl.mechanism: {why} with security.protocol = SASL_SSL; {uses}")
        };
        check(&[("security.protocol", "sasl_ssl"), ("sasl.mechanism", "SCRAM-SHA-512")], &[]);
        check(&[("security.protocol", "SASL_SSL"), ("sasl.mechanisms", "PLAIN")], &[]);
        check(&[("security.protocol", "SASL_SSL")], &[&wrong("it is missing")]);
        let bearer = [("security.protocol", "SASL_SSL"), ("sasl.mechanism", "OAUTHBEARER")];
        check(&bearer, &[&wrong("OAUTHBEARER is not built in,")]);
    }

    #[test]
    fn secrets_in_files_are_those_of_the_moment_and_stand_above_the_others() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        let mut config = Config {
            username: "tide".into(),
            password_file: Some(file("password").into()),
            property_files: BTreeMap::from([("ssl.key.password".into(), file("key"))]),
            properties: BTreeMap::from([("sasl.password".into(), "old".into())]),
            ..Config::default()
        };
        let missing = |key: &str, name: &str| {
            format!("kafka.{key}: {} cannot be read: No such file or directory (os error 2)", file(name))
        };
        let (password, key) =
            (missing("password_file", "password"), missing("property_files.ssl.key.password", "key"));
        assert_eq!(config.mistakes(), Vec::<String>::new());
        assert_eq!(config.read_secrets(), Err(vec![password, key.clone()]));
        std::fs::write(file("password"), "first\n").unwrap();
        assert_eq!(config.read_secrets(), Err(vec![key]));
        std::fs::write(file("key"), "locked\n").unwrap();
        for password in ["first", "second"] {
            std::fs::write(file("password"), password).unwrap();
            config.read_secrets().unwrap();
            for client in [config.client(), config.producer(1_000, 1_000)] {
                let get = |property| client.get(property).unwrap().to_owned();
                assert_eq!(get("sasl.username"), "tide");
                assert_eq!(get("sasl.password"), password);
                assert_eq!(get("ssl.key.password"), "locked");
            }
        }
        let shown = format!("{config:?}");
        assert!(!["first", "second", "locked", "old"].iter().any(|secret| shown.contains(secret)), "{shown}");
    }

    #[test]
    fn the_file_of_a_property_is_no_way_around() {
        let files = ["acks", "no.such.thing", "ssl.key.password"].map(|name| (name.into(), "/secret".into()));
        let config = Config { property_files: BTreeMap::from(files), ..Config::default() };
        assert_eq!(
            config.mistakes(),
            [
                "kafka.property_files.acks: it cannot be set here: delivery relies on it being all",
                "kafka.property_files.no.such.thing: librdkafka has no such property",
            ]
        );
    }

    #[test]
    fn public_authorities_are_looked_for_unless_one_is_named() {
        let check = |properties: &[(&str, &str)], expected: Option<&str>| {
            let properties =
                properties.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
            let config = Config { properties, ..Config::default() };
            assert_eq!(config.client().get("ssl.ca.location"), expected);
        };
        check(&[], None);
        check(&[("security.protocol", "SASL_PLAINTEXT")], None);
        check(&[("security.protocol", "SASL_SSL")], Some("probe"));
        check(&[("security.protocol", "ssl"), ("ssl.ca.location", "/ca.pem")], Some("/ca.pem"));
        check(&[("security.protocol", "ssl"), ("ssl.ca.pem", "-----BEGIN")], None);
    }

    #[test]
    fn a_property_of_librdkafka_reaches_it() {
        let mut config = Config { bootstrap_servers: " localhost:1 ".into(), ..Config::default() };
        config.properties.insert("socket.timeout.ms".into(), "1234".into());
        config.properties.insert("linger.ms".into(), "77".into());
        let native = config.producer(400_000, 500_000).create_native_config().unwrap();
        let check = |key: &str, value: &str| assert_eq!(native.get(key).unwrap(), value, "{key}");
        check("socket.timeout.ms", "1234");
        check("linger.ms", "77");
        check("message.max.bytes", "500000");
        check("batch.size", "400000");
        check("allow.auto.create.topics", "false");
        check("bootstrap.servers", "localhost:1");
        check("enable.idempotence", "true");
        check("message.timeout.ms", "0");
    }
}
