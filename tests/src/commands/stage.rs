//! One appliance, its topics, who produces into them and the devices that are commanded.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use tidegate_broker::mqtt::Version;
use tidegate_broker::record::Qos;

use crate::support::metrics::Metrics;
use crate::support::mqtt::{Connection, Options, Received};
use crate::support::tidegate::{Settings, Tidegate};
use crate::support::{PATIENCE, eventually, unique, within};

/// Topics that no other test has, and an appliance that consumes them.
pub(super) struct Stage {
    servers: String,
    prefix: String,
    pub(super) group: String,
    /// Kafka topic without its prefix, MQTT topic, QoS, retain.
    pub(super) consumed: Vec<(&'static str, &'static str, u8, bool)>,
    /// What else the appliance is told.
    pub(super) settings: Settings,
    /// How the test's own clients get in.
    client: ClientConfig,
    producer: FutureProducer,
}

impl Stage {
    /// Nothing is there yet.
    pub(super) fn new(servers: &str) -> Self {
        Self::with(servers, "", &[])
    }

    /// The same with topics that begin with `begin`, and more properties of librdkafka for the test's own clients.
    pub(super) fn with(servers: &str, begin: &str, more: &[(&str, &str)]) -> Self {
        let prefix = format!("{begin}{}-", unique("t"));
        let mut client = ClientConfig::new();
        client.set("bootstrap.servers", servers);
        client.extend(more.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        Self {
            servers: servers.to_owned(),
            group: format!("{prefix}group"),
            prefix,
            consumed: vec![
                ("commands", "commands/{device_id}/{action}", 1, false),
                ("alerts", "alerts/{severity}", 1, false),
            ],
            settings: Settings::default(),
            producer: producer(&client),
            client,
        }
    }

    /// The same stage with a producer that knows nothing yet, as if somebody else produced.
    pub(super) fn again(&self) -> Self {
        Self {
            servers: self.servers.clone(),
            prefix: self.prefix.clone(),
            group: self.group.clone(),
            consumed: self.consumed.clone(),
            settings: self.settings.clone(),
            client: self.client.clone(),
            producer: producer(&self.client),
        }
    }

    /// A Kafka topic of this test.
    pub(super) fn topic(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// What an appliance of this stage is told.
    pub(super) fn told(&self, group: &str) -> Settings {
        let consumed: Vec<String> = self
            .consumed
            .iter()
            .map(|(topic, mqtt, qos, retain)| {
                let topic = self.topic(topic);
                format!("{{ topic = \"{topic}\", mqtt = \"{mqtt}\", qos = {qos}, retain = {retain} }}")
            })
            .collect();
        let routes: Vec<String> = ["commands", "alerts", "sensors"]
            .iter()
            .map(|name| {
                let topic = self.topic(name);
                format!("{{ filter = \"{name}/#\", topic = \"{topic}\", key = \"device\" }}")
            })
            .collect();
        self.settings
            .clone()
            .kafka(&self.servers)
            .set("TIDEGATE_KAFKA_CONSUME_TOPICS", &format!("[{}]", consumed.join(", ")))
            .set("TIDEGATE_KAFKA_CONSUME_GROUP", group)
            .set("TIDEGATE_KAFKA_DEAD_LETTER_TOPIC", &self.topic("dead"))
            .set("TIDEGATE_KAFKA_ROUTES", &format!("[{}]", routes.join(", ")))
    }

    /// Starts an appliance and waits until it consumes.
    pub(super) async fn start(&self) -> Tidegate {
        let tidegate = Tidegate::start(self.told(&self.group)).await;
        consumes(&tidegate).await;
        tidegate
    }

    /// Produces a record and waits until Kafka has it.
    pub(super) async fn produce(
        &self,
        topic: &str,
        key: Option<&str>,
        headers: &[(&str, &str)],
        payload: &[u8],
    ) {
        let headers = headers.iter().fold(OwnedHeaders::new(), |headers, (key, value)| {
            headers.insert(Header { key, value: Some(*value) })
        });
        self.send(topic, key, headers, payload).await;
    }

    /// Writes one record with headers of any kind, and returns when Kafka has it.
    pub(super) async fn send(&self, topic: &str, key: Option<&str>, headers: OwnedHeaders, payload: &[u8]) {
        let topic = self.topic(topic);
        let mut record = FutureRecord::to(&topic).payload(payload).headers(headers);
        if let Some(key) = key {
            record = record.key(key);
        }
        self.producer.send(record, PATIENCE).await.expect("Kafka takes the record");
    }

    /// The command with this number for a device.
    pub(super) async fn command(&self, device: &str, number: u64) {
        self.produce("commands", Some(device), &[("action", "count")], number.to_string().as_bytes()).await;
    }

    /// Where each partition of a topic ends.
    pub(super) async fn ends(&self, topic: &str) -> BTreeMap<i32, i64> {
        let (client, topic) = (self.client.clone(), self.topic(topic));
        asked(move || {
            let consumer = reader(&client, "nobody");
            let metadata = consumer.fetch_metadata(Some(&topic), PATIENCE).expect("Kafka knows the topic");
            let partitions = metadata.topics()[0].partitions().iter().map(|partition| partition.id());
            let end = |partition| consumer.fetch_watermarks(&topic, partition, PATIENCE).unwrap().1;
            partitions.map(|partition| (partition, end(partition))).collect()
        })
        .await
    }

    /// What a group has committed of each partition of a topic; partitions without a commit are left out.
    pub(super) async fn committed(&self, topic: &str) -> BTreeMap<i32, i64> {
        let ends = self.ends(topic).await;
        let (client, group, topic) = (self.client.clone(), self.group.clone(), self.topic(topic));
        asked(move || {
            let mut partitions = TopicPartitionList::new();
            for partition in ends.keys() {
                partitions.add_partition(&topic, *partition);
            }
            let committed = reader(&client, &group).committed_offsets(partitions, PATIENCE).unwrap();
            let offset = |offset: Offset| offset.to_raw().filter(|offset| *offset >= 0);
            committed
                .elements()
                .iter()
                .filter_map(|element| Some((element.partition(), offset(element.offset())?)))
                .collect()
        })
        .await
    }

    /// Waits until everything in `topic` is settled and committed, and checks that `consumed` records were consumed and
    /// that each was published, rejected or passed over.
    pub(super) async fn settled(&self, tidegate: &Tidegate, topic: &str, consumed: u64) {
        #[expect(clippy::cast_precision_loss, reason = "counts are small")]
        let consumed = consumed as f64;
        let of_topic = self.topic(topic);
        let sum = async |family: &str| metric(tidegate, family, &of_topic).await;
        // What the appliance itself sends there may come only now, so the end is looked for each time.
        eventually(&format!("everything in {topic} is committed"), PATIENCE, async || {
            let all_came = sum("tidegate_source_consumed_total").await >= consumed;
            (all_came && self.committed(topic).await == self.ends(topic).await).then_some(())
        })
        .await;
        let all = sum("tidegate_source_consumed_total").await;
        let published = sum("tidegate_source_published_total").await;
        let rejected = sum("tidegate_source_rejected_total").await;
        let passed_over = sum("tidegate_source_passed_over_total").await;
        assert_eq!(all, published + rejected + passed_over, "{published} {rejected} {passed_over}");
        assert_eq!(all, consumed, "each record is consumed once while nothing fails");
    }
}

fn producer(client: &ClientConfig) -> FutureProducer {
    client.clone().set("enable.idempotence", "true").create().expect("the producer's configuration is valid")
}

/// Asks Kafka something where blocking is allowed.
async fn asked<T: Send + 'static>(question: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(question).await.expect("Kafka answers")
}

fn reader(client: &ClientConfig, group: &str) -> BaseConsumer {
    client.clone().set("group.id", group).create().expect("the consumer's configuration is valid")
}

/// What `/health` says of the consumer.
pub(super) async fn health(tidegate: &Tidegate) -> serde_json::Value {
    let health = tidegate.health().await;
    health["sources"].as_array().and_then(|sources| sources.first()).expect("there is a source").clone()
}

/// Waits until it is in this state, and returns what else it says.
pub(super) async fn until_state(tidegate: &Tidegate, state: &str) -> serde_json::Value {
    eventually(&format!("the consumer is {state}"), PATIENCE, async || {
        Some(health(tidegate).await).filter(|health| health["state"] == state)
    })
    .await
}

/// Waits until it works.
pub(super) async fn consumes(tidegate: &Tidegate) {
    until_state(tidegate, "up").await;
}

/// A metric: all samples of the family with this label together.
pub(super) async fn metric(tidegate: &Tidegate, family: &str, label: &str) -> f64 {
    Metrics::of(tidegate).await.sum(family, label)
}

/// A device with a session that outlives its connections. It acknowledges what it gets and remembers the numbers.
pub(super) struct Receiver {
    connection: Connection,
    /// Whether the broker knew its session.
    pub(super) was_known: bool,
    pub(super) numbers: Vec<u64>,
}

impl Receiver {
    /// Connects and subscribes to its commands.
    pub(super) async fn open(address: SocketAddr, version: Version, id: &str) -> Self {
        let options = Options::persistent(version, id);
        let connection = Connection::open(address, &options).await.expect("the device may connect");
        let was_known = connection.session_present;
        let mut receiver = Self { was_known, numbers: Vec::new(), connection };
        if !was_known {
            let filter = format!("commands/{id}/#");
            receiver.connection = connection_after(receiver.connection, &filter).await;
        }
        receiver
    }

    /// Receives until it has `count` numbers.
    pub(super) async fn until(&mut self, count: usize) {
        while self.numbers.len() < count {
            self.next(PATIENCE).await.expect("the next command arrives");
        }
    }

    /// Receives one command; `None` when the connection is lost.
    pub(super) async fn next(&mut self, patience: Duration) -> Option<u64> {
        let received = within("a command arrives", patience, self.connection.receive()).await.ok()?;
        let Received::Publish { payload, packet_id, .. } = received else { return None };
        let text = std::str::from_utf8(&payload).expect("commands of these tests are numbers");
        let number = text.parse().expect("commands of these tests are numbers");
        self.numbers.push(number);
        self.connection.puback(packet_id);
        self.connection.flush().await.ok()?;
        Some(number)
    }

    /// Goes; the session stays.
    pub(super) async fn close(self) {
        self.connection.close().await.expect("the connection is open");
    }
}

async fn connection_after(mut connection: Connection, filter: &str) -> Connection {
    connection.subscribe(filter, Qos::AtLeastOnce).await.expect("the device may subscribe");
    connection
}
