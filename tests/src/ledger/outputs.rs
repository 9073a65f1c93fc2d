//! The four outputs, each read by a client that keeps its side and remembers everything in the order in which it came.

use std::collections::{BTreeMap, HashSet};
use std::net::SocketAddr;
use std::time::Duration;

use serde_json::Value;
use tidegate_broker::mqtt::Version;
use tidegate_broker::record::Qos;
use tokio::task::JoinHandle;

use super::PATIENCE;
use super::count::Delivery;
use super::load::is_last;
use crate::support::http::EventStream;
use crate::support::kafka::{Consumed, Topic};
use crate::support::mqtt::{Connection, Options, Received};
use crate::support::postgres::Database;
use crate::support::within;

/// Pause before the next attempt to connect.
const RECONNECT_INTERVAL: Duration = Duration::from_millis(20);

/// Who sent a payload, and as which of its publishes.
fn parse(document: &Value) -> (String, u64) {
    let device = document["device"].as_str().unwrap_or_else(|| panic!("no device: {document}"));
    let number = document["seq"].as_u64().unwrap_or_else(|| panic!("no number: {document}"));
    (device.to_owned(), number)
}

fn parse_bytes(payload: &[u8]) -> (String, u64) {
    parse(&serde_json::from_slice(payload).expect("payloads arrive as they were sent"))
}

/// Everything in the Kafka topic that is committed, each partition in its order.
pub(crate) async fn kafka(mut topic: Topic, journal: &str) -> Vec<Delivery> {
    topic.read_to_end(PATIENCE).await;
    let delivery = |record: &Consumed| {
        let (of_journal, offset) = record.origin();
        assert_eq!(of_journal, journal, "{record:?}");
        let (device, number) = parse_bytes(&record.value);
        assert_eq!(device, record.key(), "{record:?}");
        Delivery { device, number, offset }
    };
    topic.records.iter().map(delivery).collect()
}

/// Every row, in the order of the journal.
pub(super) async fn postgres(database: &Database, run: &str) -> Vec<Delivery> {
    let sql = "SELECT device, number, \"position\" FROM tidegate.readings \
               WHERE starts_with(device, $1) AND metric = 'seq' ORDER BY \"position\", item";
    let rows = database.query(sql, &[&run]).await;
    let delivery = |row: &tokio_postgres::Row| {
        let (number, offset): (f64, i64) = (row.get(1), row.get(2));
        Delivery { device: row.get(0), number: number as u64, offset: offset as u64 }
    };
    rows.iter().map(delivery).collect()
}

/// A persistent MQTT session with a subscription at QoS 2, whose client comes back after every loss of its connection and keeps the
/// method of delivery of [MQTT-4.3.3]: a publish at QoS 2 counts when its Packet Identifier is not in use. Those that were
/// published at QoS 1 come at QoS 1, all of which count.
#[derive(Debug)]
pub(super) struct Subscriber {
    task: JoinHandle<Vec<(String, u64)>>,
}

impl Subscriber {
    /// Subscribes and goes on reading.
    pub(super) async fn start(address: SocketAddr, run: &str, filter: &str) -> Self {
        let options = Options::persistent(Version::V5, &format!("{run}_subscriber"));
        let mut connection = Connection::open(address, &options).await.expect("the broker is there");
        connection.subscribe(filter, Qos::ExactlyOnce).await.expect("the broker is there");
        let task = tokio::spawn(async move {
            let mut reading = Reading::default();
            loop {
                if reading.read(&mut connection).await.is_ok() {
                    return reading.deliveries;
                }
                connection = reconnect(address, &options).await;
            }
        });
        Self { task }
    }

    /// Waits until the last publish has come. The journal's offsets, which MQTT does not tell, are taken from `journal`: the n-th
    /// delivery of a publish is its n-th entry there, and one delivery more is its last entry again.
    pub(super) async fn finish(self, journal: &[Delivery]) -> Vec<Delivery> {
        let received = within("the subscriber has everything", PATIENCE, self.task).await;
        let received = received.expect("the broker keeps to the rules");
        let mut entries: BTreeMap<(&str, u64), Vec<u64>> = BTreeMap::new();
        for delivery in journal {
            let offsets = entries.entry((&delivery.device, delivery.number)).or_default();
            if !offsets.contains(&delivery.offset) {
                offsets.push(delivery.offset);
            }
        }
        let mut seen: BTreeMap<(&str, u64), usize> = BTreeMap::new();
        let delivery = |(device, number): &'_ (String, u64), nth: usize| {
            let offsets = entries.get(&(device.as_str(), *number)).map_or(&[][..], Vec::as_slice);
            let offset = offsets.get(nth).or(offsets.last()).copied().unwrap_or_default();
            Delivery { device: device.clone(), number: *number, offset }
        };
        let deliveries = received.iter().map(|publish| {
            let nth = seen.entry((&publish.0, publish.1)).or_default();
            *nth += 1;
            delivery(publish, *nth - 1)
        });
        deliveries.collect()
    }

    /// Whether the last publish has come.
    pub(super) fn is_complete(&self) -> bool {
        self.task.is_finished()
    }
}

async fn reconnect(address: SocketAddr, options: &Options) -> Connection {
    loop {
        if let Ok(connection) = Connection::open(address, options).await {
            assert!(connection.session_present, "the session of the subscriber is kept");
            return connection;
        }
        // Not a wait for anything: the broker may be away, and asking in a busy loop would slow its return.
        tokio::time::sleep(RECONNECT_INTERVAL).await;
    }
}

#[derive(Debug, Default)]
struct Reading {
    deliveries: Vec<(String, u64)>,
    /// Packet Identifiers of publishes that were received and not yet released.
    received: HashSet<u16>,
}

impl Reading {
    /// Reads until the last publish is released; fails when the connection is lost.
    async fn read(&mut self, connection: &mut Connection) -> std::io::Result<()> {
        loop {
            while let Some(packet) = connection.received_already() {
                match packet {
                    Received::Publish { payload, qos: Qos::ExactlyOnce, packet_id, .. } => {
                        if self.received.insert(packet_id) {
                            self.deliveries.push(parse_bytes(&payload));
                        }
                        connection.pubrec(packet_id);
                    }
                    Received::Publish { payload, qos: Qos::AtLeastOnce, packet_id, .. } => {
                        self.deliveries.push(parse_bytes(&payload));
                        connection.puback(packet_id);
                    }
                    Received::PubRel { packet_id } => {
                        self.received.remove(&packet_id);
                        connection.pubcomp(packet_id);
                    }
                    Received::Disconnect { .. } => return Err(std::io::ErrorKind::ConnectionAborted.into()),
                    other => panic!("the subscriber did not ask for {other:?}"),
                }
            }
            connection.flush().await?;
            if self.received.is_empty() && self.deliveries.last().is_some_and(|(device, _)| is_last(device)) {
                return Ok(());
            }
            connection.read_more().await?;
        }
    }
}

/// An event stream that is opened again, with the id of its last event, whenever it ends.
#[derive(Debug)]
pub(super) struct Stream {
    task: JoinHandle<Vec<Delivery>>,
}

impl Stream {
    /// Opens it and goes on reading.
    pub(super) async fn start(address: SocketAddr, filter: &str) -> Self {
        let path =
            format!("/stream/events?status=off&filter={}", filter.replace('#', "%23").replace('+', "%2B"));
        let mut stream = EventStream::open(address, &path, None).await;
        let task = tokio::spawn(async move {
            let mut deliveries: Vec<Delivery> = Vec::new();
            loop {
                while let Ok(event) = stream.try_next().await {
                    assert_eq!(event.name, "", "{event:?}");
                    let data: Value =
                        serde_json::from_str(&event.data).expect("the data of an event is JSON");
                    let (device, number) = parse(&data["data"]);
                    let offset = event.id.parse().expect("the id of an event is an offset");
                    let is_last = is_last(&device);
                    deliveries.push(Delivery { device, number, offset });
                    if is_last {
                        return deliveries;
                    }
                }
                let last = deliveries.last().map(|delivery| delivery.offset.to_string());
                let headers: Vec<_> = last.iter().map(|id| ("Last-Event-ID", id.as_str())).collect();
                stream = loop {
                    if let Ok(stream) = EventStream::try_open_with(address, &path, &headers).await {
                        break stream;
                    }
                    // Not a wait for anything, as above.
                    tokio::time::sleep(RECONNECT_INTERVAL).await;
                };
            }
        });
        Self { task }
    }

    /// Waits until the last publish has come.
    pub(super) async fn finish(self) -> Vec<Delivery> {
        let deliveries = within("the event stream has everything", PATIENCE, self.task).await;
        deliveries.expect("events are as documented")
    }

    /// Whether the last publish has come.
    pub(super) fn is_complete(&self) -> bool {
        self.task.is_finished()
    }
}
