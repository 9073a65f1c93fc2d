//! The last record per topic that was published with RETAIN.
//!
//! A retained record is copied out of the journal's memory, so that a 20-byte reading does not keep a whole
//! batch alive. An empty payload removes the topic's record [MQTT-3.3.1-6]. Topics lie in a tree of levels, so
//! that a subscription finds its records without looking at the others.

use std::sync::Arc;

use bytes::Bytes;
use smallvec::SmallVec;

use crate::maps::HashMap;
use crate::plant::{self, Bug};
use crate::record::{Properties, Qos, Record, Timestamp};
use crate::topic::{TopicFilter, TopicName};

/// A retained record.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Retained {
    /// When it was accepted.
    pub time: Timestamp,
    /// The Client Identifier of the publisher.
    pub client: Box<str>,
    /// A Topic Name.
    pub topic: Box<str>,
    /// As in [`Record::properties`].
    pub properties: Box<[u8]>,
    /// As in [`Record::payload`]; counted, because many subscribers may be sent it at the same time.
    #[serde(with = "payload")]
    pub payload: Bytes,
    /// The QoS at which it was published.
    pub qos: Qos,
}

impl Retained {
    /// Copies `record`.
    pub fn of(record: &Record<'_>) -> Self {
        Self {
            time: record.time,
            client: record.client.into(),
            topic: record.topic.as_str().into(),
            properties: record.properties.encoded().into(),
            payload: Bytes::copy_from_slice(record.payload),
            qos: record.qos,
        }
    }

    /// As the record it was.
    pub fn record(&self) -> Record<'_> {
        Record {
            time: self.time,
            client: &self.client,
            topic: TopicName::trusted(&self.topic),
            properties: Properties::from_encoded(&self.properties),
            payload: &self.payload,
            qos: self.qos,
            retain: true,
            packet_id: 0,
        }
    }

    /// The bytes that `record` takes when it is retained, without what its place among the others takes.
    pub const fn bytes_of(record: &Record<'_>) -> usize {
        record.client.len()
            + record.topic.as_str().len()
            + record.properties.encoded().len()
            + record.payload.len()
    }

    /// Whether its Message Expiry Interval is over [MQTT-3.3.2-5].
    pub fn is_expired(&self, now: Timestamp) -> bool {
        let record = self.record();
        record
            .properties
            .message_expiry()
            .is_some_and(|seconds| now.0.saturating_sub(record.time.0) >= u64::from(seconds) * 1_000)
    }
}

mod payload {
    use bytes::Bytes;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(payload: &Bytes, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(payload)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Bytes, D::Error> {
        Vec::deserialize(deserializer).map(Bytes::from)
    }
}

#[derive(Debug, Default)]
struct Node {
    below: HashMap<Box<str>, Self>,
    here: Option<Arc<Retained>>,
}

/// All retained records.
#[derive(Debug, Default)]
pub struct RetainedStore {
    root: Node,
    records: usize,
    bytes: usize,
}

impl RetainedStore {
    /// How many topics have a retained record.
    pub const fn len(&self) -> usize {
        self.records
    }

    /// Whether there is none.
    pub const fn is_empty(&self) -> bool {
        self.records == 0
    }

    /// The bytes of all retained records together.
    pub const fn bytes(&self) -> usize {
        self.bytes
    }

    /// The record of `topic`.
    pub fn of_topic(&self, topic: TopicName<'_>) -> Option<&Retained> {
        let mut node = &self.root;
        for level in topic.levels() {
            node = node.below.get(level)?;
        }
        node.here.as_deref()
    }

    /// Takes in a record that was published with RETAIN.
    pub fn set(&mut self, record: &Record<'_>) {
        if record.payload.is_empty() && plant::is(Bug::RetainedNotCleared) {
            return;
        }
        if record.payload.is_empty() {
            self.remove(record.topic);
        } else {
            self.insert(Retained::of(record));
        }
    }

    /// Puts a retained record in, in place of its topic's earlier one.
    pub fn insert(&mut self, retained: Retained) {
        let mut node = &mut self.root;
        for level in retained.topic.split('/') {
            if !node.below.contains_key(level) {
                node.below.insert(level.into(), Node::default());
            }
            node = node.below.get_mut(level).expect("it was put in a line above");
        }
        self.bytes += Retained::bytes_of(&retained.record());
        match node.here.replace(Arc::new(retained)) {
            Some(earlier) => self.bytes -= Retained::bytes_of(&earlier.record()),
            None => self.records += 1,
        }
    }

    /// Removes the record of `topic`.
    pub fn remove(&mut self, topic: TopicName<'_>) {
        let levels: SmallVec<[&str; 16]> = topic.levels().collect();
        if let Some(removed) = remove(&mut self.root, &levels) {
            self.records -= 1;
            self.bytes -= Retained::bytes_of(&removed.record());
        }
    }

    /// The retained records whose topics match `filter`.
    pub fn matching(&self, filter: &TopicFilter) -> Vec<Arc<Retained>> {
        let levels: SmallVec<[&str; 16]> = filter.levels().collect();
        let mut found = Vec::new();
        collect(&self.root, &levels, true, &mut found);
        found
    }

    /// All retained records.
    pub fn iter(&self) -> impl Iterator<Item = Arc<Retained>> {
        let mut found = Vec::with_capacity(self.records);
        everything(&self.root, false, &mut found);
        found.into_iter()
    }
}

fn remove(node: &mut Node, levels: &[&str]) -> Option<Arc<Retained>> {
    let Some((level, rest)) = levels.split_first() else { return node.here.take() };
    let below = node.below.get_mut(*level)?;
    let removed = remove(below, rest);
    if below.here.is_none() && below.below.is_empty() {
        node.below.remove(*level);
    }
    removed
}

/// `first`: wildcards at this level do not reach names that begin with `$` [MQTT-4.7.2-1].
fn collect(node: &Node, levels: &[&str], first: bool, found: &mut Vec<Arc<Retained>>) {
    let Some((level, rest)) = levels.split_first() else {
        found.extend(node.here.clone());
        return;
    };
    match *level {
        "#" => everything(node, first, found),
        "+" => {
            for (name, below) in &node.below {
                if !(first && name.starts_with('$')) {
                    collect(below, rest, false, found);
                }
            }
        }
        name => {
            if let Some(below) = node.below.get(name) {
                collect(below, rest, false, found);
            }
        }
    }
}

fn everything(node: &Node, without_system: bool, found: &mut Vec<Arc<Retained>>) {
    found.extend(node.here.clone());
    for (name, below) in &node.below {
        if !(without_system && name.starts_with('$')) {
            everything(below, false, found);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn publish(store: &mut RetainedStore, topic: &str, payload: &[u8]) {
        store.set(&Record {
            time: Timestamp(0),
            client: "c",
            topic: TopicName::new(topic).unwrap(),
            properties: Properties::NONE,
            payload,
            qos: Qos::AtLeastOnce,
            retain: true,
            packet_id: 1,
        });
    }

    #[test]
    fn a_filter_finds_the_topics_it_matches() {
        let topics = ["a", "a/b", "a/b/c", "/", "/a", "$SYS/a", "b", "a//b", "étage/1"];
        let mut store = RetainedStore::default();
        for topic in topics {
            publish(&mut store, topic, topic.as_bytes());
        }
        for filter in ["#", "+", "a/#", "a/+", "+/b", "a", "$SYS/#", "+/a", "/+", "a/b/#", "x/#", "+/#"] {
            let filter = TopicFilter::new(filter).unwrap();
            let mut found: Vec<_> = store.matching(&filter).iter().map(|found| found.topic.clone()).collect();
            found.sort();
            let mut expected: Vec<Box<str>> = topics
                .iter()
                .filter(|topic| filter.matches(TopicName::new(topic).unwrap()))
                .map(|topic| Box::from(*topic))
                .collect();
            expected.sort();
            assert_eq!(found, expected, "{filter}");
        }
    }

    #[test]
    fn an_empty_payload_removes_and_leaves_nothing_behind() {
        let mut store = RetainedStore::default();
        publish(&mut store, "a/b", b"1");
        publish(&mut store, "a/b", b"22");
        assert_eq!((store.len(), store.bytes()), (1, "c".len() + "a/b".len() + "22".len()));
        assert_eq!(store.of_topic(TopicName::new("a/b").unwrap()).unwrap().payload[..], b"22"[..]);
        assert!(store.of_topic(TopicName::new("a").unwrap()).is_none());
        publish(&mut store, "a", b"");
        publish(&mut store, "a/b", b"");
        publish(&mut store, "a/b", b"");
        assert_eq!((store.len(), store.bytes()), (0, 0));
        assert!(store.root.below.is_empty());
    }
}
