//! Kafka and PostgreSQL may go away under load: devices notice nothing, and later nothing is missing.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tidegate_broker::record::Qos;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::support::device::{Device, Done, Order};
use crate::support::kafka::{Consumed, Topic};
use crate::support::ledger::{self, Account, Delivery};
use crate::support::postgres::Database;
use crate::support::services::{Own, Service};
use crate::support::tidegate::{Settings, Tidegate};
use crate::support::{eventually, process, report, unique, within};

const DEVICES: usize = 10;
/// Publishes per second and device.
const PACE: u32 = 200;
const OUTAGE: Duration = Duration::from_secs(30);
const PATIENCE: Duration = Duration::from_secs(180);
/// A sink that has caught up under this load is never further behind.
const LAG_USUAL: u64 = 4_000;
/// What the process may need at most, whatever is away.
const MEMORY_BYTES_MAX: u64 = 256 << 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_missing_after_kafka_and_then_postgresql_were_away_for_30_s() {
    let (kafka, postgres) = (Own::start(Service::Kafka), Own::start(Service::Postgres));
    let mut database = Database::create(&postgres.url()).await;
    let settings = Settings::default().kafka(&kafka.url()).postgres(&database.url);
    let mut tidegate = Tidegate::start(settings).await;
    let run = unique("outage");
    let load = Load::start(&tidegate, &run);

    for (sink, other, service) in [("kafka", "postgres", &kafka), ("postgres", "kafka", &postgres)] {
        tidegate.caught_up(sink, LAG_USUAL, PATIENCE).await;
        tidegate.caught_up(other, LAG_USUAL, PATIENCE).await;
        service.stop();
        goes_on_without(&tidegate, &load, sink, other).await;
        service.start_again();
        tidegate.caught_up(sink, LAG_USUAL, PATIENCE).await;
    }
    let accounts = load.finish().await;
    tidegate.assert_alive();
    tidegate.caught_up("kafka", 0, PATIENCE).await;
    tidegate.caught_up("postgres", 0, PATIENCE).await;

    let in_kafka = ledger::check("Kafka", &accounts, &kafka_deliveries(&kafka).await);
    database.reconnect().await;
    let in_postgres = ledger::check("PostgreSQL", &accounts, &postgres_deliveries(&database).await);
    let peak = process::peak_memory_bytes(tidegate.pid());
    let peak_mib = peak >> 20;
    report(
        "outage",
        &format!("Kafka:      {in_kafka}\nPostgreSQL: {in_postgres}\npeak memory {peak_mib} MiB"),
    );
    assert_eq!(in_postgres.duplicated, 0, "a journal entry is in PostgreSQL twice");
    assert!(peak < MEMORY_BYTES_MAX, "peak memory {} MiB", peak >> 20);
}

/// For as long as the outage lasts: publishes are acknowledged all the time, the health page tells which sink is behind, by ever
/// more, and that the other is not.
async fn goes_on_without(tidegate: &Tidegate, load: &Load, away: &str, present: &str) {
    let began = Instant::now();
    let mut last = tidegate.sink(away).await.lag_entries;
    let mut acknowledged = load.acknowledged();
    while began.elapsed() < OUTAGE {
        // In half a second of this load each of the two grows by a thousand; it is enough that both grow.
        acknowledged =
            eventually("publishes are acknowledged meanwhile", Duration::from_secs(5), async || {
                Some(load.acknowledged()).filter(|&now| now > acknowledged + 500)
            })
            .await;
        last = eventually(
            &format!("/health tells that {away} is further behind"),
            Duration::from_secs(5),
            async || Some(tidegate.sink(away).await.lag_entries).filter(|&lag| lag > last),
        )
        .await;
    }
    let (behind, other) = (tidegate.sink(away).await, tidegate.sink(present).await);
    report("outage", &format!("{away} away for {OUTAGE:?}: {behind:?}; {present}: {other:?}"));
    assert_ne!(behind.state, "up", "{behind:?}");
    assert!(!behind.detail.is_empty(), "it says what is wrong: {behind:?}");
    let sent = OUTAGE.as_secs() * u64::from(PACE) * DEVICES as u64;
    assert!(behind.lag_entries > sent / 2, "about {sent} entries behind: {behind:?}");
    assert!(behind.lag_age_ms > OUTAGE.as_millis() as u64 / 2, "{behind:?}");
    assert_eq!(other.state, "up", "{other:?}");
    assert!(other.lag_entries <= LAG_USUAL, "{other:?}");
    let health = tidegate.health().await;
    assert_eq!(health["status"], "degraded", "{health}");
}

struct Load {
    orders: watch::Sender<Order>,
    acknowledged: Arc<AtomicU64>,
    devices: Vec<(String, JoinHandle<Done>)>,
}

impl Load {
    fn start(tidegate: &Tidegate, run: &str) -> Self {
        let (orders, order) = watch::channel(Order::Publish);
        let acknowledged = Arc::new(AtomicU64::new(0));
        let devices = (0..DEVICES).map(|index| {
            let id = format!("{run}_{index}");
            let device = Device { pace: Some(PACE), ..Device::new(tidegate.mqtt, &id, Qos::AtLeastOnce) };
            (id, tokio::spawn(device.run(order.clone(), Arc::clone(&acknowledged))))
        });
        let devices = devices.collect();
        Self { orders, acknowledged, devices }
    }

    fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Relaxed)
    }

    async fn finish(self) -> Vec<Account> {
        self.orders.send(Order::Finish).expect("the devices listen");
        let mut accounts = Vec::new();
        for (device, task) in self.devices {
            let done =
                within("a device finishes", PATIENCE, task).await.expect("a device keeps to the rules");
            assert_eq!(done.connects, 1, "{device} noticed the outage: {done:?}");
            accounts.push(Account { device, qos: Qos::AtLeastOnce, done });
        }
        accounts
    }
}

async fn kafka_deliveries(kafka: &Own) -> Vec<Delivery> {
    let mut topic = Topic::open(&kafka.url(), "sensors").await;
    topic.read_to_end(PATIENCE).await;
    let delivery = |record: &Consumed| Delivery {
        device: record.key().to_owned(),
        number: std::str::from_utf8(&record.value).unwrap().parse().unwrap(),
        offset: record.origin().1,
    };
    topic.records.iter().map(delivery).collect()
}

async fn postgres_deliveries(database: &Database) -> Vec<Delivery> {
    let sql = "SELECT device, number, \"position\" FROM tidegate.readings ORDER BY \"position\", item";
    let rows = database.query(sql, &[]).await;
    let delivery = |row: &tokio_postgres::Row| {
        let (number, offset): (f64, i64) = (row.get(1), row.get(2));
        Delivery { device: row.get(0), number: number as u64, offset: offset as u64 }
    };
    rows.iter().map(delivery).collect()
}
