//! The keys of the section `[kafka.consume]`.

use crate::kafka::{ConsumedTopic, Start};

use super::super::kind::{Choice, Kind, Switch, Text, quoted};
use super::super::source;
use super::{Key, Raw};

/// In the order of the example file.
pub(super) const KEYS: &[Key] = &[
    key!(
        "kafka.consume.topics",
        kafka.consume.topics,
        ConsumedTopics,
        "Which Kafka topics are consumed and published over MQTT; [] switches it off. A {field} is taken from the headers \
         ce_subject or mqtt_topic (the whole topic), a header of its name, the record's key (device_id only), or a JSON \
         field of the value: device_id, deviceId, device or sensor_id; action or command; severity or level; else its \
         name. What has none is a dead letter, as kafka.dead_letter.topic says, or in dead-letters/kafka-consumer.jsonl, \
         with headers tidegate_kafka_partition, tidegate_kafka_offset and tidegate_kafka_group besides."
    ),
    key!(
        "kafka.consume.group",
        kafka.consume.group,
        Text,
        "The consumer group. Not set: one of this appliance alone, kafka.client_id and the id of its journal, so that it \
         gets every record. Appliances with the same group share the records."
    )
    .sample("\"plant-7\""),
    key!(
        "kafka.consume.start",
        kafka.consume.start,
        Choice(&[("latest", Start::Latest), ("earliest", Start::Earliest)]),
        "Where a group begins that has read nothing yet: latest (with what is produced from then on, so that no old \
         command moves anything) or earliest."
    ),
];

/// A list of tables with `topic`, `mqtt` and, if they are not 1 and false, `qos` and `retain`.
struct ConsumedTopics;

impl Kind<Vec<ConsumedTopic>> for ConsumedTopics {
    fn parse(&self, text: &str) -> Result<Vec<ConsumedTopic>, String> {
        match source::value(text)? {
            Raw::One(_) => Err(format!("{} is not a list of topics, {TOPIC}", quoted(text))),
            topics @ (Raw::List(_) | Raw::Table(_)) => self.read(&topics),
        }
    }
    fn show(&self, value: &Vec<ConsumedTopic>) -> Option<String> {
        let topics: Vec<String> = value
            .iter()
            .map(|ConsumedTopic { topic, mqtt, qos, retain }| {
                let (topic, mqtt) = (quoted(topic), quoted(mqtt));
                format!("    {{ topic = {topic}, mqtt = {mqtt}, qos = {qos}, retain = {retain} }},\n")
            })
            .collect();
        Some(if topics.is_empty() { "[]".to_owned() } else { format!("[\n{}]", topics.concat()) })
    }
    fn read(&self, raw: &Raw) -> Result<Vec<ConsumedTopic>, String> {
        match raw {
            Raw::List(topics) => topics.iter().map(consumed_topic).collect(),
            Raw::Table(_) => consumed_topic(raw).map(|topic| vec![topic]),
            Raw::One(text) => self.parse(text),
        }
    }
}

const TOPIC: &str = "as in [{ topic = \"commands\", mqtt = \"commands/{device_id}/{action}\" }]";

fn consumed_topic(raw: &Raw) -> Result<ConsumedTopic, String> {
    let Raw::Table(entries) = raw else { return Err(format!("is not a list of topics, {TOPIC}")) };
    let (mut topic, mut mqtt, mut qos, mut retain) = (None, None, 1, false);
    for (name, value) in entries {
        match name.as_str() {
            "topic" => topic = Some(value.one()?.to_owned()),
            "mqtt" => mqtt = Some(value.one()?.to_owned()),
            "qos" => {
                let text = value.one()?;
                qos = text.parse().map_err(|_| format!("qos is 0, 1 or 2, not {}", quoted(text)))?;
            }
            "retain" => retain = Switch.read(value)?,
            other => return Err(format!("{} is not a part of a consumed topic, {TOPIC}", quoted(other))),
        }
    }
    match (topic, mqtt) {
        (Some(topic), Some(mqtt)) => Ok(ConsumedTopic { topic, mqtt, qos, retain }),
        (None, _) => Err(format!("a consumed topic has no topic, {TOPIC}")),
        (_, None) => Err(format!("a consumed topic has no mqtt, {TOPIC}")),
    }
}
