//! A Kafka consumer that reads a topic from its beginning, and remembers everything.

use std::collections::HashSet;
use std::time::Duration;

use bytes::Bytes;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _, StreamConsumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{Headers as _, Message as _, OwnedHeaders};
use rdkafka::{Offset, TopicPartitionList};

use super::{PATIENCE, eventually, unique};

/// How long one question to the broker may take.
const ANSWER_PATIENCE: Duration = Duration::from_secs(5);

/// Adds a header whose name may be any bytes, which rdkafka has no way for.
pub(crate) fn add_header(headers: &mut OwnedHeaders, name: &[u8], value: &[u8]) {
    let size = |bytes: &[u8]| isize::try_from(bytes.len()).expect("a slice is no longer than isize::MAX");
    // SAFETY: what `as_borrowed` returns is librdkafka's list itself; it belongs to `headers`, which is borrowed mutably. Name
    // and value are copied before the call returns.
    let added = unsafe {
        let list = std::ptr::from_ref(headers.as_borrowed()).cast_mut().cast();
        rdkafka::bindings::rd_kafka_header_add(
            list,
            name.as_ptr().cast(),
            size(name),
            value.as_ptr().cast(),
            size(value),
        )
    };
    assert_eq!(added, rdkafka::types::RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR);
}

/// A consumed record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Consumed {
    pub(crate) partition: i32,
    pub(crate) offset: i64,
    pub(crate) key: Option<Bytes>,
    pub(crate) value: Bytes,
    /// In their order; names may come twice.
    pub(crate) headers: Vec<(String, Bytes)>,
}

impl Consumed {
    /// The key as text; empty if there is none.
    pub(crate) fn key(&self) -> &str {
        self.key.as_deref().map_or("", |key| std::str::from_utf8(key).expect("keys are text"))
    }

    /// The last header of this name, as text. A device may name a property as it likes; ours come behind it.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let (_, value) = self.headers.iter().rev().find(|(known, _)| known == name)?;
        Some(std::str::from_utf8(value).expect("headers are text"))
    }

    /// The MQTT topic it was published on.
    pub(crate) fn mqtt_topic(&self) -> &str {
        self.header("ce_subject").expect("every record names its MQTT topic in ce_subject")
    }

    /// The journal and the offset it comes from; the same record, written twice, has the same.
    pub(crate) fn origin(&self) -> (&str, u64) {
        let id = self.header("ce_id").expect("every record has its journal and offset in ce_id");
        let (journal, offset) = id.rsplit_once('-').expect("ce_id is JOURNAL-OFFSET");
        (journal, offset.parse().expect("offsets are whole numbers"))
    }
}

/// How a partition is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Partition {
    /// The node that leads it; none is -1.
    pub(crate) leader: i32,
    /// How many of its replicas are in sync.
    pub(crate) in_sync: usize,
}

/// Waits until all partitions of a topic are as they are `wanted`, and returns them.
pub(crate) async fn partitions(
    what: &str,
    bootstrap_servers: &str,
    topic: &str,
    wanted: impl Fn(&Partition) -> bool,
) -> Vec<Partition> {
    let asking: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", bootstrap_servers)
        .create()
        .expect("the consumer's configuration is valid");
    eventually(&format!("of {topic}: {what}"), 3 * PATIENCE, async || {
        let metadata = asking.fetch_metadata(Some(topic), ANSWER_PATIENCE).ok()?;
        let found = metadata.topics().first()?.partitions().iter();
        let found: Vec<_> = found
            .map(|partition| Partition { leader: partition.leader(), in_sync: partition.isr().len() })
            .collect();
        (!found.is_empty() && found.iter().all(&wanted)).then_some(found)
    })
    .await
}

/// What a topic has next.
enum Read<'a> {
    Record(&'a Consumed),
    /// There is no more in this partition now.
    End(usize),
}

/// Reads all partitions of one topic.
pub(crate) struct Topic {
    name: String,
    consumer: StreamConsumer,
    /// The next offset of each partition.
    next: Vec<i64>,
    /// What was read so far; each partition in its order.
    pub(crate) records: Vec<Consumed>,
}

impl std::fmt::Debug for Topic {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Topic").field("name", &self.name).field("records", &self.records.len()).finish()
    }
}

impl Topic {
    /// Waits until the topic exists and goes to its beginning.
    pub(crate) async fn open(bootstrap_servers: &str, name: &str) -> Self {
        Self::open_with(bootstrap_servers, name, &[]).await
    }

    /// The same, with more properties of librdkafka.
    pub(crate) async fn open_with(bootstrap_servers: &str, name: &str, more: &[(&str, &str)]) -> Self {
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", bootstrap_servers)
            .set("group.id", unique("reader"))
            .set("enable.auto.commit", "false")
            .set("auto.offset.reset", "earliest")
            .set("enable.partition.eof", "true")
            .set("isolation.level", "read_committed")
            .extend(more.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        let consumer: StreamConsumer = config.create().expect("the consumer's configuration is valid");
        let partitions = eventually(&format!("the Kafka topic {name} exists"), PATIENCE, async || {
            // Asking blocks this thread; it waits for nothing else.
            let metadata = consumer.fetch_metadata(Some(name), ANSWER_PATIENCE).ok()?;
            let partitions = metadata.topics().first()?.partitions().len();
            (partitions > 0).then_some(partitions)
        })
        .await;
        let topic = Self { name: name.to_owned(), consumer, next: vec![0; partitions], records: Vec::new() };
        topic.assign();
        topic
    }

    /// Reads everything that the topic holds now and is committed.
    pub(crate) async fn read_to_end(&mut self, patience: Duration) {
        // Assigned anew, each partition says once more where it ends: the marks behind transactions take offsets too, so
        // the end is not known from the last record.
        self.assign();
        let deadline = tokio::time::Instant::now() + patience;
        let mut left: HashSet<usize> = (0..self.next.len()).collect();
        while !left.is_empty() {
            if let Read::End(partition) = self.read(deadline).await {
                left.remove(&partition);
            }
        }
    }

    /// Reads on until `count` records are `wanted`, and returns all that are, in their order.
    pub(crate) async fn matching(
        &mut self,
        count: usize,
        patience: Duration,
        wanted: impl Fn(&Consumed) -> bool,
    ) -> Vec<Consumed> {
        let deadline = tokio::time::Instant::now() + patience;
        let mut found = self.records.iter().filter(|record| wanted(record)).count();
        while found < count {
            if let Read::Record(record) = self.read(deadline).await {
                found += usize::from(wanted(record));
            }
        }
        self.records.iter().filter(|record| wanted(record)).cloned().collect()
    }

    /// Goes on reading where it is.
    fn assign(&self) {
        let mut assignment = TopicPartitionList::new();
        for (partition, next) in (0..).zip(&self.next) {
            let next = Offset::Offset(*next);
            assignment.add_partition_offset(&self.name, partition, next).expect("the offset is valid");
        }
        self.consumer.assign(&assignment).expect("the partitions exist");
    }

    /// Reads one record more, or the end of a partition.
    async fn read(&mut self, deadline: tokio::time::Instant) -> Read<'_> {
        let message = loop {
            match tokio::time::timeout_at(deadline, self.consumer.recv()).await {
                Ok(Ok(message)) => break message,
                Ok(Err(KafkaError::PartitionEOF(partition))) => {
                    return Read::End(usize::try_from(partition).expect("partitions are counted from 0"));
                }
                // The consumer connects again by itself; what it reports meanwhile is no end.
                Ok(Err(_)) => {}
                Err(_) => panic!(
                    "the Kafka topic {} does not have what was awaited; it has {} records, the last: {:?}",
                    self.name,
                    self.records.len(),
                    self.records.last()
                ),
            }
        };
        let headers = message.headers().map_or_else(Vec::new, |headers| {
            let owned = |header: rdkafka::message::Header<'_, &[u8]>| {
                (header.key.to_owned(), Bytes::copy_from_slice(header.value.unwrap_or_default()))
            };
            headers.iter().map(owned).collect()
        });
        let partition = usize::try_from(message.partition()).expect("partitions are counted from 0");
        self.next[partition] = message.offset() + 1;
        self.records.push(Consumed {
            partition: message.partition(),
            offset: message.offset(),
            key: message.key().map(Bytes::copy_from_slice),
            value: Bytes::copy_from_slice(message.payload().unwrap_or_default()),
            headers,
        });
        Read::Record(self.records.last().expect("one was just added"))
    }
}
