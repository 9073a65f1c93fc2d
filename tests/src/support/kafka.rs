//! A Kafka consumer that reads a topic from its beginning, and remembers everything.

use std::time::Duration;

use bytes::Bytes;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{Consumer as _, StreamConsumer};
use rdkafka::message::{Headers as _, Message as _};
use rdkafka::{Offset, TopicPartitionList};

use super::{PATIENCE, eventually, unique};

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

    /// The first header of this name, as text.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let (_, value) = self.headers.iter().find(|(known, _)| known == name)?;
        Some(std::str::from_utf8(value).expect("headers are text"))
    }

    /// The MQTT topic it was published on.
    pub(crate) fn mqtt_topic(&self) -> &str {
        self.header("ce_subject").expect("every record names its MQTT topic in ce_subject")
    }

    /// The entry of the journal it stands for; the same record, written twice, has the same.
    pub(crate) fn journal_entry(&self) -> &str {
        self.header("ce_id").expect("every record has its journal and offset in ce_id")
    }
}

/// Reads all partitions of one topic.
pub(crate) struct Topic {
    name: String,
    consumer: StreamConsumer,
    /// What was read so far, per partition in the order of the partition.
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
        let consumer: StreamConsumer = ClientConfig::new()
            .set("bootstrap.servers", bootstrap_servers)
            .set("group.id", unique("reader"))
            .set("enable.auto.commit", "false")
            .set("auto.offset.reset", "earliest")
            .set("isolation.level", "read_committed")
            .create()
            .expect("the consumer's configuration is valid");
        let partitions = eventually(&format!("the Kafka topic {name} exists"), PATIENCE, async || {
            // Asking for metadata blocks; the clock of the test may stand still meanwhile, nothing else runs in it.
            let metadata = consumer.fetch_metadata(Some(name), Duration::from_secs(5)).ok()?;
            let partitions = metadata.topics().first()?.partitions().len();
            (partitions > 0).then_some(partitions)
        })
        .await;
        let mut assignment = TopicPartitionList::new();
        for partition in 0..partitions {
            let partition = i32::try_from(partition).expect("Kafka counts partitions in i32");
            assignment.add_partition_offset(name, partition, Offset::Beginning).expect("the offset is valid");
        }
        consumer.assign(&assignment).expect("the partitions exist");
        Self { name: name.to_owned(), consumer, records: Vec::new() }
    }

    /// Reads on until `done` holds for all that was read. `done` is asked after each record, so it should be cheap: keep a
    /// count of what the last record adds.
    pub(crate) async fn read_until(&mut self, patience: Duration, mut done: impl FnMut(&Consumed) -> bool) {
        let deadline = tokio::time::Instant::now() + patience;
        loop {
            let received = tokio::time::timeout_at(deadline, self.consumer.recv()).await;
            let Ok(received) = received else {
                panic!(
                    "not within {patience:?}: what was awaited in the Kafka topic {}; it has {} records, the last: {:?}",
                    self.name,
                    self.records.len(),
                    self.records.last()
                );
            };
            // The consumer reconnects by itself; what it reports meanwhile is no end.
            let Ok(message) = received else { continue };
            let headers = message.headers().map_or_else(Vec::new, |headers| {
                let owned = |header: rdkafka::message::Header<'_, &[u8]>| {
                    (header.key.to_owned(), Bytes::copy_from_slice(header.value.unwrap_or_default()))
                };
                headers.iter().map(owned).collect()
            });
            self.records.push(Consumed {
                partition: message.partition(),
                offset: message.offset(),
                key: message.key().map(Bytes::copy_from_slice),
                value: Bytes::copy_from_slice(message.payload().unwrap_or_default()),
                headers,
            });
            if done(self.records.last().expect("one was just added")) {
                return;
            }
        }
    }

    /// Reads on until `count` records came from MQTT topics that begin with `prefix`, and returns them.
    pub(crate) async fn under(&mut self, prefix: &str, count: usize, patience: Duration) -> Vec<Consumed> {
        let of_interest = |record: &Consumed| record.mqtt_topic().starts_with(prefix);
        let mut found = self.records.iter().filter(|record| of_interest(record)).count();
        if found < count {
            let read = self.read_until(patience, |record| {
                found += usize::from(of_interest(record));
                found >= count
            });
            read.await;
        }
        self.records.iter().filter(|record| of_interest(record)).cloned().collect()
    }
}
