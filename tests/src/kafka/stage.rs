//! A journal, a pump and the Kafka sink in one process, and a consumer that sees what arrived.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::admin::AdminClient;
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Headers, Message};
use rdkafka::{ClientConfig, Offset as KafkaOffset, TopicPartitionList};
use tidegate::health::Part;
use tidegate::kafka::{Config, KafkaSink};
use tidegate::pump;
use tidegate_broker::journal::{Appender, FileStorage, FullPolicy, Journal, Options, StartAt, SyncPolicy};
use tidegate_broker::record::{Append, Entry, Offset, Properties, Qos, Record, Timestamp};
use tidegate_broker::topic::TopicName;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::support::services::{Own, Service};
use crate::support::{self, unique};

/// Longer than anything here takes on a busy machine.
pub(crate) const DEADLINE: Duration = Duration::from_secs(90);

/// What the topics of one test begin with, and no other's.
pub(crate) fn prefix() -> String {
    format!("{}-", unique("t"))
}

/// Kafka at `servers` with the usual routes to topics that begin with `prefix`.
pub(crate) fn config(servers: &str, prefix: &str) -> Config {
    let mut config = Config { bootstrap_servers: servers.into(), ..Config::default() };
    for route in &mut config.routes {
        route.topic = format!("{prefix}{}", route.topic);
    }
    config.dead_letter.topic = Some(format!("{prefix}dead-letter"));
    config
}

/// A journal in a folder of its own, and the place to fill it.
pub(crate) struct Filled {
    pub(crate) journal: Journal,
    pub(crate) appender: Appender,
    _folder: tempfile::TempDir,
}

impl Filled {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let options = Options {
            segment_bytes: 4 << 20,
            max_bytes: 1 << 30,
            max_age: None,
            full: FullPolicy::Refuse,
            sync: SyncPolicy::Never,
            tail_bytes: 1 << 20,
            batch_bytes: 64 << 10,
        };
        let (journal, appender) = Journal::open(FileStorage::open(folder.path()).unwrap(), options).unwrap();
        Self { journal, appender, _folder: folder }
    }

    pub(crate) fn append(&mut self, client: &str, topic: &str, properties: &[u8], payload: &[u8]) -> Offset {
        let record = Record {
            time: Timestamp(now_ms()),
            client,
            topic: TopicName::new(topic).unwrap(),
            properties: Properties::from_encoded(properties),
            payload,
            qos: Qos::AtLeastOnce,
            retain: false,
            packet_id: 1,
        };
        self.appender.append(&Entry::Record(record)).unwrap().offset
    }

    /// Waits until everything appended is durable.
    pub(crate) async fn settle(&mut self) {
        let end = self.appender.end();
        eventually("the journal syncs", || {
            self.appender.submit();
            self.journal.durable_end() >= end
        })
        .await;
    }
}

pub(crate) fn now_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    u64::try_from(since.as_millis()).unwrap()
}

/// A pump at work.
pub(crate) struct Carrying {
    pub(crate) part: Part,
    pub(crate) drain: watch::Sender<Option<tokio::time::Instant>>,
    pub(crate) task: JoinHandle<()>,
}

impl Carrying {
    pub(crate) fn start(journal: &Journal, config: &Config) -> Self {
        let part = Part::new("kafka");
        let sink = KafkaSink::new(config, journal.id(), part.clone()).unwrap();
        let (drain, signal) = watch::channel(None);
        let (journal, told) = (journal.clone(), part.clone());
        let task = tokio::spawn(async move {
            let cursor = journal.cursor("kafka", StartAt::Oldest).unwrap();
            pump::carry(&journal, &cursor, sink, told, signal).await;
        });
        Self { part, drain, task }
    }

    pub(crate) async fn until_delivered(&self, journal: &Journal) {
        let cursor = journal.cursor("kafka", StartAt::Oldest).unwrap();
        eventually("everything is confirmed", || cursor.position() == journal.durable_end()).await;
    }

    pub(crate) async fn drain(self) {
        self.drain.send_replace(Some(tokio::time::Instant::now() + Duration::from_secs(20)));
        self.task.await.unwrap();
    }
}

/// Waits until `condition` holds; fails after [`DEADLINE`].
pub(crate) async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    support::eventually(what, DEADLINE, async || condition().then_some(())).await;
}

/// A Kafka record as a consumer sees it.
#[derive(Debug)]
pub(crate) struct Consumed {
    pub(crate) topic: String,
    pub(crate) partition: i32,
    pub(crate) key: Option<String>,
    pub(crate) value: Option<Vec<u8>>,
    pub(crate) time: Option<i64>,
    pub(crate) headers: Vec<(String, String)>,
}

impl Consumed {
    pub(crate) fn of(message: &impl Message) -> Self {
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        let headers = message.headers().map(|headers| {
            headers.iter().map(|header| (header.key.into(), text(header.value.unwrap()))).collect()
        });
        Self {
            topic: message.topic().into(),
            partition: message.partition(),
            key: message.key().map(text),
            value: message.payload().map(Into::into),
            time: message.timestamp().to_millis(),
            headers: headers.unwrap_or_default(),
        }
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        &self.headers.iter().find(|(key, _)| key == name).unwrap_or_else(|| panic!("no header {name}")).1
    }

    pub(crate) fn value_text(&self) -> &str {
        std::str::from_utf8(self.value.as_ref().unwrap()).unwrap()
    }
}

/// Everything that lies in `topics`, in the order of each partition.
pub(crate) async fn consume(servers: &str, topics: &[String]) -> Vec<Consumed> {
    let mut client = ClientConfig::new();
    client.set("bootstrap.servers", servers).set("group.id", unique("t"));
    consume_as(&client, topics).await
}

/// Everything that lies in `topics` for whoever `client` is.
pub(crate) async fn consume_as(client: &ClientConfig, topics: &[String]) -> Vec<Consumed> {
    let (client, topics) = (client.clone(), topics.to_vec());
    tokio::task::spawn_blocking(move || consume_blocking(client, &topics)).await.unwrap()
}

fn consume_blocking(mut client: ClientConfig, topics: &[String]) -> Vec<Consumed> {
    let consumer: BaseConsumer = client.set("enable.auto.commit", "false").create().unwrap();
    let mut assigned = TopicPartitionList::new();
    let mut left = 0;
    for topic in topics {
        let metadata = consumer.fetch_metadata(Some(topic), DEADLINE).unwrap();
        for partition in metadata.topics()[0].partitions() {
            let (low, high) = consumer.fetch_watermarks(topic, partition.id(), DEADLINE).unwrap();
            left += high - low;
            assigned.add_partition_offset(topic, partition.id(), KafkaOffset::Beginning).unwrap();
        }
    }
    consumer.assign(&assigned).unwrap();
    let (mut consumed, begun) = (Vec::new(), Instant::now());
    while left > 0 {
        assert!(begun.elapsed() < DEADLINE, "{left} records were not consumed within {DEADLINE:?}");
        if let Some(message) = consumer.poll(Duration::from_millis(200)) {
            consumed.push(Consumed::of(&message.unwrap()));
            left -= 1;
        }
    }
    consumed
}

pub(crate) fn admin(servers: &str) -> AdminClient<DefaultClientContext> {
    ClientConfig::new().set("bootstrap.servers", servers).create().unwrap()
}

/// Does something slow to a Kafka of the test's own, where blocking is allowed.
pub(crate) async fn with(kafka: &Arc<Own>, act: fn(&Own)) {
    let kafka = Arc::clone(kafka);
    tokio::task::spawn_blocking(move || act(&kafka)).await.unwrap();
}

pub(crate) async fn own_kafka() -> Arc<Own> {
    tokio::task::spawn_blocking(|| Arc::new(Own::start(Service::Kafka))).await.unwrap()
}

/// Fails if a device's numbers do not all arrive, first occurrences in order. Returns how many came more than once.
pub(crate) fn check_sequences(consumed: &[Consumed], expected: &HashMap<String, u64>) -> usize {
    let (mut next, mut repeated) = (BTreeMap::<&str, u64>::new(), 0);
    for record in consumed {
        let next = next.entry(record.key.as_deref().unwrap()).or_default();
        let number: u64 = record.value_text().parse().unwrap();
        assert!(number <= *next, "{:?}: {number} came before {next}", record.key);
        if number == *next { *next += 1 } else { repeated += 1 }
    }
    for (device, count) in expected {
        assert_eq!(next.get(device.as_str()), Some(count), "{device}");
    }
    repeated
}

/// Appends `rounds` readings of each of `devices`, and counts them in `sent`.
pub(crate) fn append_readings(
    filled: &mut Filled,
    devices: usize,
    rounds: u64,
    sent: &mut HashMap<String, u64>,
) {
    for _ in 0..rounds {
        for device in 0..devices {
            let device = format!("d{device}");
            let number = sent.entry(device.clone()).or_default();
            filled.append("gateway", &format!("sensors/{device}/count"), b"", number.to_string().as_bytes());
            *number += 1;
        }
    }
}
