//! Killed again and again under load, Tidegate loses nothing it has acknowledged.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tidegate_broker::mqtt::Version;
use tidegate_broker::record::Qos;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::support::device::{Device, Done, Order};
use crate::support::kafka::Topic;
use crate::support::ledger::{self, Account, Delivery};
use crate::support::mosquitto;
use crate::support::mqtt::{Connection, Options, Received};
use crate::support::postgres::Database;
use crate::support::random::Random;
use crate::support::tidegate::{Settings, Tidegate};
use crate::support::{eventually, report, services, unique, within};

const CRASHES: u64 = 20;
const DEVICES: usize = 20;
/// Publishes per second and device: enough that every kill hits some on their way, and that the databases keep up.
const PACE: u32 = 150;
const PATIENCE: Duration = Duration::from_secs(180);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost_when_it_is_killed_at_20_random_moments() {
    let mut random = Random::printed("crash");
    let run = unique("crash");
    let database = Database::create(services::postgres()).await;
    let settings = Settings::default().kafka(services::kafka()).postgres(&database.url);
    let mut tidegate = Tidegate::start(settings).await;

    let kept_topic = format!("kept/{run}");
    mosquitto::publish(tidegate.mqtt, mosquitto::Version::V5, 1, &kept_topic, b"kept", &["-r"]);
    let away = Options::persistent(Version::V5, &format!("{run}_away"));
    subscribe_and_go(&tidegate, &away, &format!("queue/{run}/#")).await;

    let load = Load::start(&tidegate, &run);
    for crash in 1..=CRASHES {
        load.more_acknowledged(random.within(1..800)).await;
        // Somewhere between two acknowledgements, too.
        tokio::time::sleep(Duration::from_micros(random.within(0..20_000))).await;
        tidegate.crash_and_restart().await;
        println!("crash {crash}: {} acknowledged so far", load.acknowledged.load(Ordering::Relaxed));
    }
    load.more_acknowledged(500).await;
    let Finished { accounts, queued } = load.finish().await;
    tidegate.assert_alive();

    tidegate.caught_up("kafka", 0, PATIENCE).await;
    tidegate.caught_up("postgres", 0, PATIENCE).await;
    let in_kafka = kafka_deliveries(&tidegate, &run).await;
    let in_postgres = postgres_deliveries(&database, &run).await;
    let kafka = ledger::check("Kafka", &accounts, &in_kafka);
    let postgres = ledger::check("PostgreSQL", &accounts, &in_postgres);
    report("crash", &format!("Kafka:      {kafka}\nPostgreSQL: {postgres}"));
    assert_eq!(postgres.duplicated, 0, "a journal entry is in PostgreSQL twice");
    assert_eq!(offsets(&in_kafka), offsets(&in_postgres), "both have the same journal entries");

    retained_is_kept(&tidegate, &kept_topic).await;
    queue_is_kept(&tidegate, &away, queued).await;
}

/// Devices that publish until they are told to finish.
struct Load {
    orders: watch::Sender<Order>,
    acknowledged: Arc<AtomicU64>,
    devices: Vec<(String, Qos, JoinHandle<Done>)>,
    queue: JoinHandle<Done>,
}

struct Finished {
    accounts: Vec<Account>,
    /// What the device did that publishes for the subscriber that is away.
    queued: Done,
}

impl Load {
    fn start(tidegate: &Tidegate, run: &str) -> Self {
        let (orders, order) = watch::channel(Order::Publish);
        let acknowledged = Arc::new(AtomicU64::new(0));
        let spawn = |device: Device| tokio::spawn(device.run(order.clone(), Arc::clone(&acknowledged)));
        let devices = (0..DEVICES).map(|index| {
            let id = format!("{run}_{index}");
            let qos = if index % 2 == 0 { Qos::AtLeastOnce } else { Qos::ExactlyOnce };
            let version = if index % 4 < 2 { Version::V311 } else { Version::V5 };
            let device = Device { version, pace: Some(PACE), ..Device::new(tidegate.mqtt, &id, qos) };
            (id, qos, spawn(device))
        });
        let devices = devices.collect();
        let queue = Device {
            topic: format!("queue/{run}/numbers"),
            pace: Some(PACE),
            ..Device::new(tidegate.mqtt, &format!("{run}_queue"), Qos::ExactlyOnce)
        };
        let queue = spawn(queue);
        Self { orders, acknowledged, devices, queue }
    }

    /// Waits for that many acknowledgements more.
    async fn more_acknowledged(&self, count: u64) {
        let goal = self.acknowledged.load(Ordering::Relaxed) + count;
        eventually("more publishes are acknowledged", PATIENCE, async || {
            (self.acknowledged.load(Ordering::Relaxed) >= goal).then_some(())
        })
        .await;
    }

    async fn finish(self) -> Finished {
        self.orders.send(Order::Finish).expect("the devices listen");
        let mut accounts = Vec::new();
        for (device, qos, task) in self.devices {
            let done =
                within("a device finishes", PATIENCE, task).await.expect("a device keeps to the rules");
            assert!(done.connects > 1, "{device} never lost its connection: {done:?}");
            assert_eq!(done.sessions_lost, 0, "{device} lost its session: {done:?}");
            accounts.push(Account { device, qos, done });
        }
        let queued =
            within("a device finishes", PATIENCE, self.queue).await.expect("a device keeps to the rules");
        Finished { accounts, queued }
    }
}

async fn subscribe_and_go(tidegate: &Tidegate, options: &Options, filter: &str) {
    let mut connection = Connection::open(tidegate.mqtt, options).await.unwrap();
    connection.subscribe(filter, Qos::AtLeastOnce).await.unwrap();
    connection.close().await.unwrap();
}

async fn kafka_deliveries(tidegate: &Tidegate, run: &str) -> Vec<Delivery> {
    let journal = tidegate.journal_id().await;
    let mut topic = Topic::open(services::kafka(), "sensors").await;
    topic.read_to_end(PATIENCE).await;
    let ours = topic.records.iter().filter(|record| record.key().starts_with(run));
    let delivery = |record: &crate::support::kafka::Consumed| {
        let (of_journal, offset) = record.origin();
        assert_eq!(of_journal, journal, "{record:?}");
        let number = std::str::from_utf8(&record.value).unwrap().parse().unwrap();
        Delivery { device: record.key().to_owned(), number, offset }
    };
    ours.map(delivery).collect()
}

async fn postgres_deliveries(database: &Database, run: &str) -> Vec<Delivery> {
    let sql = "SELECT device, number, \"position\" FROM tidegate.readings \
               WHERE starts_with(device, $1) AND metric = 'load' ORDER BY \"position\", item";
    let rows = database.query(sql, &[&run]).await;
    let delivery = |row: &tokio_postgres::Row| {
        let (number, offset): (f64, i64) = (row.get(1), row.get(2));
        Delivery { device: row.get(0), number: number as u64, offset: offset as u64 }
    };
    rows.iter().map(delivery).collect()
}

fn offsets(deliveries: &[Delivery]) -> BTreeSet<u64> {
    deliveries.iter().map(|delivery| delivery.offset).collect()
}

async fn retained_is_kept(tidegate: &Tidegate, topic: &str) {
    let mut subscriber =
        mosquitto::Subscriber::start(tidegate.mqtt, mosquitto::Version::V311, 1, topic, &[]).await;
    let received = subscriber.next().await;
    assert_eq!((received.payload.as_ref(), received.retain), (b"kept".as_ref(), true));
}

/// The session is there, subscribed, and has every publish in order. Each was published at QoS 2, so none comes twice but by the
/// broker's own repetition, which says DUP.
async fn queue_is_kept(tidegate: &Tidegate, away: &Options, queued: Done) {
    let mut connection = Connection::open(tidegate.mqtt, away).await.unwrap();
    assert!(connection.session_present, "the session of the subscriber that was away is kept");
    for expected in 0..queued.acknowledged {
        let received = connection.receive().await.expect("the connection lives");
        let Received::Publish { payload, packet_id, .. } = received else {
            panic!("unexpected: {received:?}")
        };
        assert_eq!(payload, expected.to_string().as_bytes(), "of {queued:?}");
        connection.puback(packet_id);
        connection.flush().await.expect("the connection lives");
    }
    let queued = queued.acknowledged;
    report("crash", &format!("queue:      acknowledged {queued}, delivered {queued}, duplicated 0"));
}
