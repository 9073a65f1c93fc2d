//! `kafka.exactly_once`: whatever is killed, a consumer that reads what is committed sees each journal entry once.
//!
//! A device whose PUBACK was lost publishes again, and then the journal has two entries; that is not Kafka's. So entries are
//! counted by their offset, against what `tidegate journal dump` says the journal holds, and publishes at QoS 2 by payload as well.

mod cluster;
mod identity;
mod rejects;
mod rights;

use std::collections::BTreeSet;
use std::time::Duration;

use crate::journal_tools::journal;
use crate::ledger::count::{Account, Promise, Sums, check};
use crate::ledger::load::{Devices, Load};
use crate::ledger::outputs;
use crate::support::kafka::Topic;
use crate::support::random::Random;
use crate::support::tidegate::{Settings, Tidegate};
use crate::support::{report, services, unique};

/// How long anything may take that must end.
const PATIENCE: Duration = Duration::from_secs(120);

/// What exactly once is asked for with: a topic and a cursor topic that begin with `run`.
fn settings(kafka: &str, run: &str) -> Settings {
    let routes = format!(
        "[{{ filter = \"sensors/#\", topic = \"{run}\", key = \"device\" }}, \
          {{ filter = \"#\", topic = \"{run}-rest\" }}]"
    );
    Settings::default()
        .kafka(kafka)
        .set("TIDEGATE_KAFKA_EXACTLY_ONCE", "true")
        .set("TIDEGATE_KAFKA_CURSOR_TOPIC", &format!("{run}-cursors"))
        .set("TIDEGATE_KAFKA_ROUTES", &routes)
}

/// An appliance under load, and where its records go.
struct Stage {
    tidegate: Tidegate,
    load: Load,
    run: String,
    kafka: String,
}

impl Stage {
    async fn start(name: &str, kafka: &str, change: impl FnOnce(Settings) -> Settings) -> Self {
        let run = unique(name);
        let tidegate = Tidegate::start(change(settings(kafka, &run))).await;
        let load = Load::start(tidegate.mqtt, &run, Devices::USUAL);
        let stage = Self { tidegate, load, run, kafka: kafka.to_owned() };
        stage.delivers().await;
        stage
    }

    /// Waits until the sink is up and not further behind than this load makes it be.
    async fn delivers(&self) {
        self.load.more_acknowledged(100).await;
        self.tidegate.caught_up("kafka", 2_000, PATIENCE).await;
    }

    /// Lets the devices finish, and counts once everything is delivered.
    async fn finish(mut self) -> (Tidegate, Sums) {
        let accounts = self.load.finish().await;
        self.tidegate.assert_alive();
        self.tidegate.caught_up("kafka", 0, PATIENCE).await;
        let topic = Topic::open(&self.kafka, &self.run).await;
        let sums = delivered_once(&mut self.tidegate, topic, &accounts).await;
        (self.tidegate, sums)
    }
}

/// Drains `tidegate`, and fails unless `topic` has each entry of its journal once, in the order of each device.
async fn delivered_once(tidegate: &mut Tidegate, topic: Topic, accounts: &[Account]) -> Sums {
    let id = tidegate.journal_id().await;
    assert!(tidegate.drain().await.success());
    let deliveries = outputs::kafka(topic, &id).await;
    let sums = check("Kafka", Promise::ExactlyOnce, accounts, &deliveries);
    assert_eq!((sums.lost, sums.duplicated), (0, 0), "{sums:?}");
    let delivered: BTreeSet<u64> = deliveries.iter().map(|delivery| delivery.offset).collect();
    assert_eq!(delivered.len(), deliveries.len(), "each entry once");
    assert_eq!(delivered, offsets_of_readings(tidegate).await, "what the journal holds");
    sums
}

/// The offsets of every reading in the journal of a tidegate that has drained.
async fn offsets_of_readings(tidegate: &Tidegate) -> BTreeSet<u64> {
    let dump = journal(&tidegate.folder().join("data"), &["dump", "--filter", "sensors/#"]).await;
    assert_eq!(dump.code, Some(0), "{}", dump.stderr);
    let offset = |line: &str| {
        let line: serde_json::Value = serde_json::from_str(line).expect("a dump is JSON lines");
        line["offset"].as_u64().expect("each line has an offset")
    };
    dump.stdout.lines().map(offset).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_record_is_delivered_once_over_twenty_kills() {
    const KILLS: u64 = 20;
    let mut random = Random::printed("once");
    let mut stage = Stage::start("once", services::kafka(), |settings| settings).await;
    for kill in 0..KILLS {
        match random.within(0..4) {
            // In the middle of a transaction, or of its commit.
            0 | 1 => stage.delivers().await,
            // While it connects, is fencing the one before it, or reads its cursor.
            2 => tokio::time::sleep(Duration::from_millis(random.within(0..1_500))).await,
            _ => stage.load.more_acknowledged(random.within(1..2_000)).await,
        }
        // Somewhere between two commits, too.
        tokio::time::sleep(Duration::from_micros(random.within(0..120_000))).await;
        if kill % 5 == 4 {
            assert!(stage.tidegate.drain().await.success());
        } else {
            stage.tidegate.kill();
        }
        stage.tidegate.spawn();
        stage.tidegate.ready().await;
    }
    stage.delivers().await;
    let (_, sums) = stage.finish().await;
    report("exactly once", &format!("{KILLS} kills and drains: {sums:?}"));
    assert!(sums.acknowledged > 1_000, "{sums:?}");
}
