//! The Kafka side of comparisons: the same records as tidegate makes, through a bare rdkafka producer, which copies
//! each payload when it is handed over; and how much has arrived.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer as _, ThreadedProducer};

/// Partitions of the topics that benches write to.
pub const PARTITIONS: i32 = 3;
/// How many devices there are; records go round among them.
pub const DEVICES: u64 = 1_000;
/// How long to wait for the broker's answer to one question.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);
/// How long to wait until everything sent is stored.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(120);

/// The device that record `number` is of.
pub fn device(number: u64) -> String {
    format!("device-{:03}", number % DEVICES)
}

/// Makes `topic` with [`PARTITIONS`].
pub fn create_topic(servers: &str, topic: &str) -> Result<()> {
    let admin: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", servers).create()?;
    let topics = [NewTopic::new(topic, PARTITIONS, TopicReplication::Fixed(-1))];
    let options = AdminOptions::new().operation_timeout(Some(ANSWER_TIMEOUT));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    for result in runtime.block_on(admin.create_topics(&topics, &options))? {
        result.map_err(|(topic, code)| anyhow::anyhow!("the topic {topic} was not made: {code}"))?;
    }
    Ok(())
}

/// Counts what lies in one topic.
pub struct Counter {
    consumer: BaseConsumer,
    topic: String,
}

impl std::fmt::Debug for Counter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Counter").field("topic", &self.topic).finish_non_exhaustive()
    }
}

impl Counter {
    /// For `topic`, which exists.
    pub fn new(servers: &str, topic: &str) -> Result<Self> {
        let consumer = ClientConfig::new().set("bootstrap.servers", servers).create()?;
        Ok(Self { consumer, topic: topic.to_owned() })
    }

    /// How many records there are.
    pub fn count(&self) -> Result<u64> {
        let mut count = 0;
        for partition in 0..PARTITIONS {
            let (low, high) = self.consumer.fetch_watermarks(&self.topic, partition, ANSWER_TIMEOUT)?;
            count += u64::try_from(high - low)?;
        }
        Ok(count)
    }

    /// Waits until there are `records`; fails after `limit`.
    pub fn wait_for(&self, records: u64, limit: Duration) -> Result<()> {
        const PAUSE: Duration = Duration::from_millis(10);
        let begun = Instant::now();
        loop {
            let count = self.count()?;
            if count >= records {
                ensure!(count == records, "{count} records arrived instead of {records}");
                return Ok(());
            }
            ensure!(begun.elapsed() < limit, "{count} of {records} records arrived within {limit:?}");
            std::thread::sleep(PAUSE);
        }
    }
}

/// A producer of rdkafka as most programs have it: a thread of its own for the reports, everything copied.
pub struct Bare {
    producer: ThreadedProducer<DefaultProducerContext>,
    topic: String,
    headers: bool,
}

impl std::fmt::Debug for Bare {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bare").field("topic", &self.topic).finish_non_exhaustive()
    }
}

impl Bare {
    /// With the configuration that tidegate gives librdkafka, as far as it matters to speed, and `properties` on top;
    /// with the headers of CloudEvents as tidegate writes them, if `headers` says so.
    pub fn new(
        servers: &str,
        topic: &str,
        headers: bool,
        properties: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self> {
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", servers)
            .set("enable.idempotence", "true")
            .set("linger.ms", "5")
            .set("queue.buffering.max.messages", "50000")
            .set("partitioner", "murmur2_random");
        config.extend(properties);
        let producer = config.create().context("the producer's configuration")?;
        Ok(Self { producer, topic: topic.to_owned(), headers })
    }

    /// Sends one record; waits while there is no room.
    pub fn send(&self, device: &str, id: &str, payload: &[u8]) -> Result<()> {
        let mut record =
            BaseRecord::to(&self.topic).key(device).payload(payload).timestamp(1_753_626_600_000);
        if self.headers {
            let header = |key, value| Header { key, value: Some(value) };
            let headers = OwnedHeaders::new_with_capacity(7)
                .insert(header("ce_specversion", "1.0"))
                .insert(header("ce_id", id))
                .insert(header("ce_source", "/tidegate/clients/filler-0"))
                .insert(header("ce_type", "io.tidegate.publish"))
                .insert(header("ce_subject", "sensors/device-000/temperature"))
                .insert(header("ce_time", "2025-07-27T14:30:00.007Z"));
            record = record.headers(headers);
        }
        loop {
            match self.producer.send(record) {
                Ok(()) => return Ok(()),
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back)) => {
                    std::thread::sleep(Duration::from_millis(1));
                    record = back;
                }
                Err((error, _)) => return Err(error).context("handing a record to rdkafka"),
            }
        }
    }

    /// Waits until everything sent is stored.
    pub fn flush(&self) -> Result<()> {
        self.producer.flush(FLUSH_TIMEOUT).context("waiting for Kafka to store everything")
    }
}

/// The id that record `number` has in its headers.
pub fn id(number: u64) -> String {
    format!("{:032x}-{number}", 0)
}

/// Sends `records` payloads of `payload_bytes` from memory and waits until they are stored.
pub fn send_from_memory(bare: &Bare, records: u64, payload_bytes: usize) -> Result<()> {
    let devices: Vec<_> = (0..DEVICES).map(device).collect();
    let ids: Vec<_> = (0..if bare.headers { records } else { 1 }).map(id).collect();
    let payload = vec![b'.'; payload_bytes];
    for number in 0..records {
        let device = &devices[usize::try_from(number % DEVICES)?];
        let id = &ids[usize::try_from(if bare.headers { number } else { 0 })?];
        bare.send(device, id, &payload)?;
    }
    bare.flush()
}
