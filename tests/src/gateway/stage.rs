//! A gateway on a journal of its own, with a stand-in for the broker that appends what is published.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use tempfile::TempDir;
use tidegate::gateway::{self, Config, Gateway, Parts, Publish, Wiring};
use tidegate::health::{Part, State};
use tidegate_broker::auth::Access;
use tidegate_broker::journal::{Appender, FileStorage, Journal, Options, Storage};
use tidegate_broker::record::{Append as _, Entry, Offset, Properties, Qos, Record, Timestamp};
use tidegate_broker::server::{LocalPublish, PublishError, Stats};
use tidegate_broker::topic::TopicName;

use crate::support::{PATIENCE, http, within};

type Done = Box<dyn FnOnce(Result<Offset, PublishError>) + Send>;

enum Order {
    Publish(LocalPublish, Done),
    Wake,
    Stop,
}

/// Appends publishes in the order in which they come and answers when they are durable.
pub(super) struct Publisher {
    orders: mpsc::SyncSender<Order>,
    accepted: AtomicU64,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Publisher {
    fn start(journal: &Journal, appender: Appender) -> Arc<Self> {
        let (orders, received) = mpsc::sync_channel(65_536);
        let wake = orders.clone();
        journal.on_durable(move |_| {
            // A full queue wakes the thread anyway.
            let _ = wake.try_send(Order::Wake);
        });
        let thread = std::thread::spawn(move || append_all(&received, appender));
        Arc::new(Self { orders, accepted: AtomicU64::new(0), thread: Mutex::new(Some(thread)) })
    }

    fn stop(&self) {
        self.orders.send(Order::Stop).unwrap();
        self.thread.lock().unwrap().take().unwrap().join().unwrap();
    }
}

impl Publish for Publisher {
    fn publish(&self, publish: LocalPublish, done: Done) {
        self.accepted.fetch_add(1, Ordering::Relaxed);
        self.orders.send(Order::Publish(publish, done)).unwrap();
    }

    fn stats(&self) -> Stats {
        Stats { publishes_in_total: self.accepted.load(Ordering::Relaxed), ..Stats::default() }
    }
}

fn append_all(orders: &mpsc::Receiver<Order>, mut appender: Appender) {
    let mut waiting: std::collections::VecDeque<(Offset, Done)> = std::collections::VecDeque::new();
    let mut stopping = false;
    while !stopping || !waiting.is_empty() {
        let first = orders.recv().unwrap();
        for order in std::iter::once(first).chain(orders.try_iter().take(4_096)) {
            match order {
                Order::Publish(publish, done) => match append(&mut appender, &publish) {
                    Ok(offset) => waiting.push_back((offset, done)),
                    Err(error) => done(Err(error)),
                },
                Order::Wake => {}
                Order::Stop => stopping = true,
            }
        }
        appender.submit();
        while let Some(batch) = appender.take_durable() {
            while waiting.front().is_some_and(|(offset, _)| *offset < batch.end()) {
                let (offset, done) = waiting.pop_front().unwrap();
                done(Ok(offset));
            }
        }
        if let Some(refused) = appender.refused() {
            for (_, done) in waiting.drain(..) {
                done(Err(refused.into()));
            }
        }
    }
}

fn append(appender: &mut Appender, publish: &LocalPublish) -> Result<Offset, PublishError> {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let record = Record {
        time: Timestamp(u64::try_from(now.as_millis()).unwrap()),
        client: &publish.client,
        topic: TopicName::new(&publish.topic)?,
        properties: Properties::from_encoded(&publish.properties),
        payload: &publish.payload,
        qos: publish.qos,
        retain: publish.retain,
        packet_id: 0,
    };
    Ok(appender.append(&Entry::Record(record))?.offset)
}

/// How a stage is set.
pub(super) struct Setting {
    pub(super) config: Config,
    pub(super) options: Options,
    pub(super) access: Access,
    pub(super) token: Option<String>,
    pub(super) sinks: Vec<Part>,
}

impl Default for Setting {
    fn default() -> Self {
        let config = Config { listen: "127.0.0.1:0".parse().unwrap(), ..Config::default() };
        let options = Options { segment_bytes: 1 << 20, tail_bytes: 1 << 20, ..Options::default() };
        Self { config, options, access: Access::default(), token: None, sinks: Vec::new() }
    }
}

/// A running gateway and what it stands on.
pub(super) struct Stage {
    pub(super) address: SocketAddr,
    pub(super) journal: Journal,
    pub(super) publisher: Arc<Publisher>,
    pub(super) mqtt: Part,
    pub(super) gateway: Gateway,
}

impl Stage {
    /// On an empty journal that ends with the returned folder.
    pub(super) async fn new(setting: Setting) -> (Self, TempDir) {
        let folder = tempfile::tempdir().unwrap();
        (Self::in_folder(folder.path(), setting).await, folder)
    }

    /// On the journal of this folder.
    pub(super) async fn in_folder(folder: &Path, setting: Setting) -> Self {
        Self::on(FileStorage::open(folder).unwrap(), setting).await
    }

    pub(super) async fn on(storage: Arc<dyn Storage>, setting: Setting) -> Self {
        let (journal, appender) = Journal::open(storage, setting.options).unwrap();
        let publisher = Publisher::start(&journal, appender);
        let mqtt = Part::new("mqtt");
        mqtt.set(State::Up, None);
        let wiring = Wiring {
            mqtt: None,
            certificates: None,
            journal: journal.clone(),
            publisher: Arc::clone(&publisher) as Arc<dyn Publish>,
            access: Arc::new(setting.access),
            operator_token: setting.token,
            parts: Parts { mqtt: mqtt.clone(), sinks: setting.sinks, sources: Vec::new() },
            metrics: None,
        };
        let gateway = gateway::start(setting.config, wiring).await.unwrap();
        Self { address: gateway.address(), journal, publisher, mqtt, gateway }
    }

    /// Publishes and waits until it is durable.
    pub(super) async fn publish(&self, topic: &str, payload: impl Into<Bytes>) -> Offset {
        self.publish_all([(topic.to_owned(), payload.into())]).await
    }

    /// Publishes all, without waiting in between, and waits until the last is durable.
    pub(super) async fn publish_all(&self, all: impl IntoIterator<Item = (String, Bytes)>) -> Offset {
        let mut last = None;
        for (topic, payload) in all {
            let (done, durable) = tokio::sync::oneshot::channel();
            let publish = LocalPublish {
                client: "device-1".into(),
                topic,
                payload,
                qos: Qos::AtLeastOnce,
                retain: false,
                properties: Vec::new(),
            };
            self.publisher.publish(
                publish,
                Box::new(move |result| {
                    let _ = done.send(result);
                }),
            );
            last = Some(durable);
        }
        within("the publishes are durable", PATIENCE, last.unwrap()).await.unwrap().unwrap()
    }

    /// `n` small readings of device `device`, payloads `first..first + n`.
    pub(super) async fn publish_numbers(&self, topic: &str, numbers: std::ops::Range<u64>) -> Offset {
        self.publish_all(numbers.map(|n| (topic.to_owned(), Bytes::from(n.to_string())))).await
    }

    pub(super) async fn health(&self) -> (u16, serde_json::Value) {
        let reply = http::get(self.address, "/health").await;
        (reply.status, reply.json())
    }

    /// A sample from `/metrics`.
    pub(super) async fn metric(&self, name: &str) -> u64 {
        let reply = http::get(self.address, "/metrics").await;
        let line = reply.text().lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no {name} in {}", reply.text())).parse().unwrap()
    }

    /// Ends everything, so that the journal can be opened again.
    pub(super) async fn end(self) {
        self.gateway.drain(Duration::from_secs(10)).await;
        self.publisher.stop();
        self.journal.close();
    }
}
