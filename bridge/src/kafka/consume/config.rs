//! What is consumed, how it is configured, and what that means to librdkafka.
//!
//! All mistakes are found before anything connects, those that would let a record go round for ever among them.

use rdkafka::ClientConfig;
use serde::{Deserialize, Serialize};

use super::super::config::Config;
use super::template::Template;
use crate::route::{HeaderStyle, RouteConfig};

/// What is consumed from Kafka and published over MQTT; nothing while `topics` is empty.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ConsumeConfig {
    /// The consumer group. Empty = one of this appliance alone.
    pub group: String,
    /// Where a group begins that has read nothing yet.
    pub start: Start,
    /// The Kafka topics, and what becomes of their records.
    pub topics: Vec<ConsumedTopic>,
}

impl Default for ConsumeConfig {
    fn default() -> Self {
        let consumed = |topic: &str, mqtt: &str| ConsumedTopic {
            topic: topic.into(),
            mqtt: mqtt.into(),
            qos: 1,
            retain: false,
        };
        Self {
            group: String::new(),
            start: Start::Latest,
            topics: vec![
                consumed("commands", "commands/{device_id}/{action}"),
                consumed("alerts", "alerts/{severity}"),
            ],
        }
    }
}

/// One Kafka topic that is consumed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConsumedTopic {
    /// The Kafka topic.
    pub topic: String,
    /// The MQTT topic of its records, with `{field}` for levels that differ from record to record.
    pub mqtt: String,
    /// With which QoS they are published: 0, 1 or 2.
    #[serde(default = "at_least_once")]
    pub qos: u8,
    /// Whether each becomes the retained record of its topic.
    #[serde(default)]
    pub retain: bool,
}

const fn at_least_once() -> u8 {
    1
}

/// Where a group begins that has read nothing yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Start {
    /// With what is produced from now on.
    Latest,
    /// With the oldest record that Kafka still has.
    Earliest,
}

/// Properties that delivery relies on, and why each cannot be set.
const FIXED: &[(&str, &str)] = &[
    ("group.id", "set kafka.consume.group instead"),
    ("auto.offset.reset", "set kafka.consume.start instead"),
    ("enable.auto.commit", "offsets are committed when their records are durable"),
    ("auto.commit.interval.ms", "offsets are committed when their records are durable"),
    ("enable.auto.offset.store", "offsets are committed when their records are durable"),
    ("enable.partition.eof", "it is used internally"),
    ("statistics.interval.ms", "it is used internally"),
    ("allow.auto.create.topics", "set kafka.topics.create instead"),
];

impl ConsumeConfig {
    /// Whether anything is consumed.
    pub fn is_on(&self) -> bool {
        !self.topics.is_empty()
    }

    /// Every mistake in it, with the key it is in, given the rest of `config`; empty if it is right.
    pub(in super::super) fn mistakes(&self, config: &Config) -> Vec<String> {
        let mut mistakes = Vec::new();
        for (at, consumed) in self.topics.iter().enumerate() {
            let ConsumedTopic { topic, mqtt, qos, .. } = consumed;
            let mut wrong = |why: String| mistakes.push(format!("kafka.consume.topics: {topic}: {why}"));
            if let Err(why) = crate::route::check_kafka_topic(topic) {
                wrong(why);
            }
            if let Err(why) = Template::new(mqtt) {
                wrong(format!("mqtt = {mqtt:?}: {why}"));
            }
            if *qos > 2 {
                wrong(format!("qos = {qos}: it is 0, 1 or 2"));
            }
            if self.topics[..at].iter().any(|earlier| earlier.topic == *topic) {
                wrong("it is consumed already: one line for each Kafka topic".into());
            }
            if config.dead_letter.topic.as_ref() == Some(topic) {
                wrong(
                    "it is kafka.dead_letter.topic: what can be published nowhere would go round for ever; choose another \
                     one, or let another program read it"
                        .into(),
                );
            }
            if let Some(route) =
                config.routes.iter().find(|route| route.topic == *topic && !names_origin(config, route))
            {
                wrong(format!(
                    "the route for {:?} sends records there without ce_id, so that they could not be told from others when \
                     they come back, and would go round for ever: let them have the headers minimal or cloudevents, or \
                     leave the topic out of kafka.routes or of kafka.consume.topics",
                    route.filter
                ));
            }
        }
        let fixed = |key: &String| FIXED.iter().find(|(fixed, _)| fixed == key);
        mistakes.extend(config.properties.keys().filter_map(|key| {
            fixed(key).map(|(_, why)| format!("kafka.properties.{key}: it cannot be set here: {why}"))
        }));
        mistakes
    }

    /// The consumer group, where `journal` is the id of the appliance's journal: two appliances have the same only
    /// if both are told so, because each record then comes to one of them.
    pub(super) fn group(&self, client_id: &str, journal: &str) -> String {
        if self.group.is_empty() { format!("{client_id}-{journal}") } else { self.group.clone() }
    }
}

/// Whether what `route` sends says in which journal it lies.
fn names_origin(config: &Config, route: &RouteConfig) -> bool {
    match route.headers.unwrap_or(config.headers) {
        HeaderStyle::CloudEvents | HeaderStyle::Minimal => true,
        HeaderStyle::None => false,
    }
}

/// What holds unless `kafka.properties` says otherwise.
const USUAL: &[(&str, &str)] = &[
    // A dead member's partitions go to another after this time, or to itself when it comes back.
    ("session.timeout.ms", "10000"),
    ("heartbeat.interval.ms", "2000"),
    // Partitions that stay where they are go on while others move.
    ("partition.assignment.strategy", "cooperative-sticky"),
    // New topics and partitions are seen within this time.
    ("topic.metadata.refresh.interval.ms", "10000"),
    // What lies ready in memory; a record that is larger still comes, alone.
    ("queued.max.messages.kbytes", "4096"),
    // Once so much lies ready, or that many records of one partition, the brokers are asked for no more, and it is looked
    // only this often whether they should be: with the usual second most of the time would be spent waiting.
    ("queued.min.messages", "20000"),
    ("fetch.queue.backoff.ms", "5"),
];

/// The consumer, as a member of `group`. In a group of its own it is a static member, called after `journal`: after a
/// crash it takes its own place at once, where others would wait until its absence is noticed.
pub(super) fn consumer(config: &Config, group: &str, journal: &str) -> ClientConfig {
    let mut client = config.client();
    if config.consume.group.is_empty() && client.get("group.instance.id").is_none() {
        client.set("group.instance.id", journal);
    }
    for (key, value) in USUAL {
        if client.get(key).is_none() {
            client.set(*key, *value);
        }
    }
    client
        .set("group.id", group)
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("allow.auto.create.topics", "false")
        // Only for what was committed and is gone: where a group begins is settled when partitions are assigned.
        .set("auto.offset.reset", "earliest")
        // Also the sign of life: whether brokers can be reached is read from the statistics.
        .set("statistics.interval.ms", "1000");
    client
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_right_and_a_consumer_can_be_made_of_it() {
        let config = Config { bootstrap_servers: "127.0.0.1:1".into(), ..Config::default() };
        assert_eq!(config.consume.mistakes(&config), Vec::<String>::new());
        let native = consumer(&config, "g", "0a").create_native_config().unwrap();
        assert_eq!(native.get("group.id").unwrap(), "g");
        assert_eq!(native.get("enable.auto.commit").unwrap(), "false");
    }

    #[test]
    fn properties_of_any_connection_reach_the_consumer_and_those_of_a_producer_do_not() {
        let mut config = Config::default();
        config.properties.insert("session.timeout.ms".into(), "7000".into());
        config.properties.insert("security.protocol".into(), "sasl_plaintext".into());
        config.properties.insert("linger.ms".into(), "7".into());
        let client = consumer(&config, "g", "0a");
        assert_eq!(client.get("group.instance.id"), Some("0a"));
        assert_eq!(client.get("session.timeout.ms"), Some("7000"));
        assert_eq!(client.get("security.protocol"), Some("sasl_plaintext"));
        assert_eq!(client.get("linger.ms"), None);
    }

    #[test]
    fn an_appliance_has_a_group_of_its_own_unless_it_is_told_another() {
        let mut config = ConsumeConfig::default();
        assert_eq!(config.group("tidegate", "0a"), "tidegate-0a");
        config.group = "plant".into();
        assert_eq!(config.group("tidegate", "0a"), "plant");
        let shared = Config { consume: config, ..Config::default() };
        assert_eq!(consumer(&shared, "plant", "0a").get("group.instance.id"), None);
    }

    #[test]
    fn every_mistake_is_told() {
        let mut config = Config::default();
        let line = |topic: &str, mqtt: &str, qos| ConsumedTopic {
            topic: topic.into(),
            mqtt: mqtt.into(),
            qos,
            retain: false,
        };
        config.consume.topics = vec![
            line("not legal", "a", 1),
            line("a", "a/#", 1),
            line("b", "b", 3),
            line("b", "b", 1),
            line("alerts", "alerts/{severity}", 1),
        ];
        config.properties.insert("group.id".into(), "x".into());
        config.headers = HeaderStyle::None;
        let mistakes = config.consume.mistakes(&config);
        let starts = [
            "kafka.consume.topics: not legal: a Kafka topic is made of",
            "kafka.consume.topics: a: mqtt = \"a/#\": ",
            "kafka.consume.topics: b: qos = 3: it is 0, 1 or 2",
            "kafka.consume.topics: b: it is consumed already",
            "kafka.consume.topics: alerts: the route for \"alerts/#\" sends records there without ce_id",
            "kafka.properties.group.id: it cannot be set here: set kafka.consume.group",
        ];
        assert_eq!(mistakes.len(), starts.len(), "{mistakes:#?}");
        for (mistake, start) in mistakes.iter().zip(starts) {
            assert!(mistake.starts_with(start), "{mistake}");
        }
    }
}
