//! One appliance with everything around it: devices that publish, and clients at the four outputs.

use std::time::{Duration, Instant};

use tidegate_broker::record::Qos;

use super::PATIENCE;
use super::conservation::balances;
use super::count::{Account, Delivery, Promise, Sums, check};
use super::load::{Devices, Load};
use super::outputs::{self, Stream, Subscriber};
use super::row::Row;
use crate::support::kafka::Topic;
use crate::support::postgres::Database;
use crate::support::services;
use crate::support::tidegate::{Settings, Tidegate};
use crate::support::{eventually, unique};

/// What a stage is made of.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) settings: Settings,
    pub(super) devices: Devices,
    /// Where the appliance finds Kafka.
    pub(super) kafka: String,
    /// Where a consumer finds the same Kafka; the same place, unless there is something in between.
    pub(super) kafka_for_consumers: String,
    /// What is said of Kafka; a consumer there reads what is committed.
    pub(super) promise: Promise,
    /// An administrator's URL of PostgreSQL.
    pub(super) postgres: String,
}

impl Plan {
    /// The usual load and the shared services.
    pub(super) fn usual() -> Self {
        Self {
            settings: Settings::default(),
            devices: Devices::USUAL,
            kafka: services::kafka().to_owned(),
            kafka_for_consumers: services::kafka().to_owned(),
            promise: Promise::AtLeastOnce,
            postgres: services::postgres().to_owned(),
        }
    }

    /// The usual load, and Kafka at `servers`.
    pub(super) fn on_kafka(servers: String) -> Self {
        Self { kafka_for_consumers: servers.clone(), kafka: servers, ..Self::usual() }
    }

    /// The same with transactions, whose end the brokers wait for no longer than `transaction_s` seconds.
    pub(super) fn exactly_once(self, transaction_s: u64) -> Self {
        let properties = format!("{{ \"transaction.timeout.ms\" = \"{}\" }}", transaction_s * 1_000);
        let settings = self
            .settings
            .set("TIDEGATE_KAFKA_EXACTLY_ONCE", "true")
            .set("TIDEGATE_KAFKA_PROPERTIES", &properties);
        Self { settings, promise: Promise::ExactlyOnce, ..self }
    }
}

/// An appliance under load.
#[derive(Debug)]
pub(super) struct Stage {
    pub(super) tidegate: Tidegate,
    pub(super) database: Database,
    pub(super) load: Load,
    /// What the names of everything begin with.
    pub(super) run: String,
    kafka: String,
    promise: Promise,
    subscriber: Subscriber,
    stream: Stream,
    /// Whether the process has run from the beginning.
    is_first_process: bool,
}

/// What each output has, by the QoS of the devices.
#[derive(Debug)]
pub(super) struct Findings {
    /// The appliance, which still runs.
    pub(super) tidegate: Tidegate,
    pub(super) accounts: Vec<Account>,
    outputs: [(&'static str, Promise, Vec<Delivery>); 4],
    recovered_in: Duration,
}

impl Stage {
    /// Starts everything, and waits until publishes are acknowledged and both sinks are up.
    pub(super) async fn start(name: &str, plan: Plan) -> Self {
        let run = unique(name);
        let database = Database::create(&plan.postgres).await;
        // A topic of its own, so that nobody has to read what others wrote.
        let routes = format!(
            "[{{ filter = \"sensors/#\", topic = \"{run}\", key = \"device\" }}, {{ filter = \"#\", topic = \"mqtt\" }}]"
        );
        let settings =
            plan.settings.kafka(&plan.kafka).postgres(&database.url).set("TIDEGATE_KAFKA_ROUTES", &routes);
        let tidegate = Tidegate::start(settings).await;
        let filter = "sensors/#";
        let subscriber = Subscriber::start(tidegate.mqtt, &run, filter).await;
        let stream = Stream::start(tidegate.http, filter).await;
        let load = Load::start(tidegate.mqtt, &run, plan.devices);
        load.more_acknowledged(100).await;
        let stage = Self {
            tidegate,
            database,
            load,
            run,
            kafka: plan.kafka_for_consumers,
            promise: plan.promise,
            subscriber,
            stream,
            is_first_process: true,
        };
        for sink in ["kafka", "postgres"] {
            stage.is_keeping_up(sink).await;
        }
        stage
    }

    /// Waits until a sink is up and not further behind than this load makes it be.
    pub(super) async fn is_keeping_up(&self, sink: &str) {
        self.tidegate.caught_up(sink, LAG_USUAL, PATIENCE).await;
    }

    /// Kills the appliance and starts it again on the same data.
    pub(super) async fn crash_and_restart(&mut self) {
        self.is_first_process = false;
        self.tidegate.crash_and_restart().await;
    }

    /// The process that is there from now on is not the first one.
    pub(super) fn will_be_restarted(&mut self) {
        self.is_first_process = false;
    }

    /// The fault is over: lets the devices finish, waits until every output has everything, and counts.
    pub(super) async fn finish(mut self, fault_ended: Instant) -> Findings {
        let accounts = self.load.finish().await;
        self.tidegate.assert_alive();
        for sink in ["kafka", "postgres"] {
            self.tidegate.caught_up(sink, 0, PATIENCE).await;
        }
        eventually("the subscriber and the event stream have everything", PATIENCE, async || {
            (self.subscriber.is_complete() && self.stream.is_complete()).then_some(())
        })
        .await;
        let recovered_in = fault_ended.elapsed();

        // What the subscriber confirmed last stands behind everything that sinks carry.
        self.tidegate.caught_up("kafka", 0, PATIENCE).await;
        self.tidegate.caught_up("postgres", 0, PATIENCE).await;
        balances(&self.tidegate, self.is_first_process).await;
        self.database.reconnect().await;
        let in_postgres = outputs::postgres(&self.database, &self.run).await;
        let journal = self.tidegate.journal_id().await;
        let in_kafka = outputs::kafka(Topic::open(&self.kafka, &self.run).await, &journal).await;
        let in_subscriber = self.subscriber.finish(&in_postgres).await;
        let in_stream = self.stream.finish().await;
        Findings {
            tidegate: self.tidegate,
            accounts,
            outputs: [
                ("Kafka", self.promise, in_kafka),
                ("PostgreSQL", Promise::ExactlyOnce, in_postgres),
                ("the MQTT subscriber", Promise::AsPublished, in_subscriber),
                ("the event stream", Promise::ExactlyOnce, in_stream),
            ],
            recovered_in,
        }
    }
}

/// A sink that has caught up under the usual load is never further behind.
const LAG_USUAL: u64 = 4_000;

impl Findings {
    /// The row of all devices. Fails if anything is lost, out of order, or twice where it must not be.
    pub(super) fn row(&self, fault: impl Into<String>) -> Row {
        self.row_where(fault, |_| true)
    }

    /// The row of the devices that publish at `qos`.
    pub(super) fn row_of(&self, qos: Qos, fault: impl Into<String>) -> Row {
        self.row_where(fault, |account| account.qos == qos)
    }

    fn row_where(&self, fault: impl Into<String>, wanted: impl Fn(&Account) -> bool) -> Row {
        let accounts: Vec<Account> =
            self.accounts.iter().filter(|account| wanted(account)).cloned().collect();
        let is_left_out = |delivery: &Delivery| {
            self.accounts.iter().any(|account| account.device == delivery.device && !wanted(account))
        };
        let [kafka, postgres, subscriber, stream] =
            self.outputs.each_ref().map(|(output, promise, all)| -> Sums {
                let deliveries: Vec<Delivery> =
                    all.iter().filter(|delivery| !is_left_out(delivery)).cloned().collect();
                check(output, *promise, &accounts, &deliveries)
            });
        assert!(postgres.acknowledged > 0, "nothing was published, so nothing is shown");
        Row { fault: fault.into(), kafka, postgres, subscriber, stream, recovered_in: self.recovered_in }
    }
}
