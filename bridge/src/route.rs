//! Topic Name, client and payload to Kafka topic and key; pure.
//!
//! Routes are tried in order and the first whose filter matches wins. A route's Kafka topic is legal by construction,
//! and only configured topics ever come out: no device can invent one. What a topic resolves to is remembered in a
//! bounded table, so that a device's second record costs one look-up.
//!
//! The payload is looked at only where a route asks for it ([`KeyRule::Payload`]). `sensors/temperature`, for one, has
//! no device level: with [`KeyRule::Device`] its key is the Client Identifier, even if the payload names a device.

mod key;
mod pointer;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::hash::{BuildHasher, RandomState};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use tidegate_broker::topic::{TopicFilter, TopicName};

pub use key::KeyRule;
pub use pointer::Pointer;

/// The longest name of a Kafka topic in bytes.
const KAFKA_TOPIC_BYTES_MAX: usize = 249;
/// How many topics are remembered; a new one takes the place of one with the same hash.
const REMEMBERED_TOPICS: usize = 8_192;
/// Longer topics are resolved each time, so that the table stays below about 3 MiB.
const REMEMBERED_TOPIC_BYTES_MAX: usize = 256;

/// One line of the routing table, as it is configured.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RouteConfig {
    /// Which topics it is for: an MQTT Topic Filter. `#` alone stands for every topic, also those beginning with `$`.
    pub filter: String,
    /// The Kafka topic that they go to.
    pub topic: String,
    /// What the Kafka key is.
    #[serde(default)]
    pub key: KeyRule,
    /// Partitions of the Kafka topic when it is created, -1 for the broker's default; `None` = as for all topics.
    #[serde(default)]
    pub partitions: Option<i32>,
    /// How long the Kafka topic keeps records when it is created, in milliseconds, 0 for the broker's default, -1 for
    /// ever; `None` = as for all topics.
    #[serde(default)]
    pub retention_ms: Option<i64>,
    /// Which headers its records carry; `None` = as for all routes.
    #[serde(default)]
    pub headers: Option<HeaderStyle>,
    /// What becomes of the payload; `None` = it stays as it is.
    #[serde(default)]
    pub encoding: Option<Encoding>,
    /// The subject of the Schema Registry that has the schema; `None` = the name of the Kafka topic and `-value`.
    #[serde(default)]
    pub subject: Option<String>,
    /// A file with the schema, which is registered if it is not yet; `None` = the latest of the subject.
    #[serde(default)]
    pub schema: Option<PathBuf>,
}

/// What a payload, which must be JSON then, becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Encoding {
    /// Avro, in Confluent's wire format.
    Avro,
}

/// Which headers a Kafka record carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HeaderStyle {
    /// CloudEvents binary mode, and what the publisher sent along.
    CloudEvents,
    /// What the publisher sent along (user properties, content type, response topic, correlation data), and `ce_id`.
    #[serde(alias = "user")]
    Minimal,
    /// None.
    None,
}

/// The routes that hold when none are configured.
pub fn default_routes() -> Vec<RouteConfig> {
    let route = |filter: &str, topic: &str, key| RouteConfig {
        filter: filter.into(),
        topic: topic.into(),
        key,
        ..RouteConfig::default()
    };
    vec![
        route("sensors/#", "sensors", KeyRule::Device),
        route("commands/#", "commands", KeyRule::Device),
        route("alerts/#", "alerts", KeyRule::Client),
        route("devices/#", "devices", KeyRule::Device),
        route("#", "mqtt", KeyRule::Client),
    ]
}

/// Where a record goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Destination<'a> {
    /// Which of the configured routes it is, counted from 0.
    pub route: usize,
    /// Index into [`Routes::topics`].
    pub topic: usize,
    /// The Kafka key; `None` is no key.
    pub key: Option<Cow<'a, str>>,
}

/// A Kafka topic that routes name, and what it is like when it is created.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KafkaTopic {
    /// Its name.
    pub name: String,
    /// Partitions; as in [`RouteConfig`].
    pub partitions: Option<i32>,
    /// Milliseconds for which it keeps records; as in [`RouteConfig`].
    pub retention_ms: Option<i64>,
}

impl KafkaTopic {
    /// Takes in what one more route says of it; the error names what they do not agree on.
    fn agree(&mut self, route: &RouteConfig) -> Result<(), &'static str> {
        if let (Some(one), Some(other)) = (self.partitions, route.partitions)
            && one != other
        {
            return Err("partitions");
        }
        if let (Some(one), Some(other)) = (self.retention_ms, route.retention_ms)
            && one != other
        {
            return Err("retention");
        }
        self.partitions = self.partitions.or(route.partitions);
        self.retention_ms = self.retention_ms.or(route.retention_ms);
        Ok(())
    }
}

#[derive(Debug)]
struct Route {
    /// `None` matches every topic.
    filter: Option<TopicFilter>,
    topic: usize,
    key: KeyRule,
}

/// Where in a topic the key lies.
#[derive(Clone, Copy, Debug)]
enum KeyAt {
    Level { start: u16, end: u16 },
    Client,
    Topic,
    Nowhere,
}

#[derive(Clone, Copy, Debug)]
struct Resolved {
    route: usize,
    /// For a key from the payload: what it is if there is none.
    key: KeyAt,
}

#[derive(Debug)]
struct Remembered {
    topic: Box<str>,
    resolved: Option<Resolved>,
}

/// The routing table.
#[derive(Debug)]
pub struct Routes {
    routes: Vec<Route>,
    topics: Vec<KafkaTopic>,
    remembered: Vec<Option<Remembered>>,
    hasher: RandomState,
}

impl Routes {
    /// Checks `configured` and tells every mistake in it.
    pub fn new(configured: &[RouteConfig]) -> Result<Self, Vec<String>> {
        let mut routes = Vec::with_capacity(configured.len());
        let mut topics: Vec<KafkaTopic> = Vec::new();
        let mut mistakes = Vec::new();
        for route in configured {
            let RouteConfig { filter, topic: name, key, .. } = route;
            let mut wrong = |why: String| mistakes.push(format!("the route for {filter:?}: {why}"));
            if let Err(why) = check_kafka_topic(name) {
                wrong(why);
            }
            let topic = topics.iter().position(|known| known.name == *name).unwrap_or_else(|| {
                topics.push(KafkaTopic { name: name.clone(), partitions: None, retention_ms: None });
                topics.len() - 1
            });
            if let Err(what) = topics[topic].agree(route) {
                wrong(format!("another route gives the topic {name:?} another {what}: say it once"));
            }
            match TopicFilter::new(filter) {
                Ok(_) if filter == "#" => routes.push(Route { filter: None, topic, key: key.clone() }),
                Ok(parsed) => routes.push(Route { filter: Some(parsed), topic, key: key.clone() }),
                Err(why) => wrong(why.to_string()),
            }
        }
        if configured.is_empty() {
            mistakes.push(
                "there must be at least one route; {filter = \"#\", topic = \"mqtt\"} takes everything"
                    .into(),
            );
        }
        if !mistakes.is_empty() {
            return Err(mistakes);
        }
        let remembered = std::iter::repeat_with(|| None).take(REMEMBERED_TOPICS).collect();
        Ok(Self { routes, topics, remembered, hasher: RandomState::new() })
    }

    /// The Kafka topics that records can go to, each once.
    pub fn topics(&self) -> &[KafkaTopic] {
        &self.topics
    }

    /// Where a record with `payload`, published by `client` at `topic`, goes; `None` if no route matches.
    pub fn destination<'a>(
        &mut self,
        topic: TopicName<'a>,
        client: &'a str,
        payload: &'a [u8],
    ) -> Option<Destination<'a>> {
        let resolved = self.resolved(topic)?;
        let route = &self.routes[resolved.route];
        let in_payload = match &route.key {
            KeyRule::Payload(pointer) => pointer.find(payload),
            KeyRule::Device | KeyRule::Client | KeyRule::Topic | KeyRule::Level(_) | KeyRule::None => None,
        };
        let key = in_payload.or_else(|| {
            let key = match resolved.key {
                KeyAt::Level { start, end } => Some(&topic.as_str()[usize::from(start)..usize::from(end)]),
                KeyAt::Topic => Some(topic.as_str()),
                // A key that everybody without a name shares would put them all into one partition.
                KeyAt::Client => Some(client).filter(|client| !client.is_empty()),
                KeyAt::Nowhere => None,
            };
            key.map(Cow::Borrowed)
        });
        Some(Destination { route: resolved.route, topic: route.topic, key })
    }

    fn resolved(&mut self, topic: TopicName<'_>) -> Option<Resolved> {
        let text = topic.as_str();
        if text.len() > REMEMBERED_TOPIC_BYTES_MAX {
            return self.resolve(topic);
        }
        #[expect(clippy::cast_possible_truncation, reason = "only the low bits of the hash are wanted")]
        let slot = self.hasher.hash_one(text) as usize % REMEMBERED_TOPICS;
        if let Some(remembered) = &self.remembered[slot]
            && *remembered.topic == *text
        {
            return remembered.resolved;
        }
        let resolved = self.resolve(topic);
        self.remembered[slot] = Some(Remembered { topic: text.into(), resolved });
        resolved
    }

    fn resolve(&self, topic: TopicName<'_>) -> Option<Resolved> {
        let matches = |route: &Route| route.filter.as_ref().is_none_or(|filter| filter.matches(topic));
        let route = self.routes.iter().position(matches)?;
        let key = match &self.routes[route].key {
            KeyRule::Device | KeyRule::Payload(_) => device_level(topic.as_str()),
            KeyRule::Client => KeyAt::Client,
            KeyRule::Topic => KeyAt::Topic,
            KeyRule::Level(number) => level(topic.as_str(), *number),
            KeyRule::None => KeyAt::Nowhere,
        };
        Some(Resolved { route, key })
    }
}

/// Where the device id lies: the second level of a topic of at least three, if it is not empty.
fn device_level(topic: &str) -> KeyAt {
    if topic.bytes().filter(|byte| *byte == b'/').count() < 2 { KeyAt::Client } else { level(topic, 2) }
}

/// Where the level of this number lies, counted from 1, if there is one and it is not empty.
fn level(topic: &str, number: u16) -> KeyAt {
    let mut start = 0;
    for (before, text) in topic.split('/').enumerate().take(number.into()) {
        let end = start + text.len();
        if before + 1 == usize::from(number) && start < end {
            let at = |place: usize| u16::try_from(place).expect("a topic has at most 65535 bytes");
            return KeyAt::Level { start: at(start), end: at(end) };
        }
        start = end + 1;
    }
    KeyAt::Client
}

/// Why `name` cannot name a Kafka topic, if it cannot.
pub(crate) fn check_kafka_topic(name: &str) -> Result<(), String> {
    if name.is_empty() || name.len() > KAFKA_TOPIC_BYTES_MAX {
        return Err(format!(
            "a Kafka topic has 1 to {KAFKA_TOPIC_BYTES_MAX} characters, {name:?} has {}",
            name.len()
        ));
    }
    if name == "." || name == ".." {
        return Err(format!("{name:?} cannot name a Kafka topic"));
    }
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    if name.bytes().all(legal) {
        return Ok(());
    }
    Err(format!("a Kafka topic is made of letters, digits, '.', '_' and '-': {name:?} is not"))
}
