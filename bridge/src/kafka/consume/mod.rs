//! From Kafka to the devices: topics are consumed and published over MQTT, by default `commands` and `alerts`.
//!
//! A consumed record is published as HTTP publishes: it goes into the journal, and from there to whoever subscribed; at
//! QoS 1 it waits for a device that is away. Its offset is committed when it is durable in the journal, so that it gets
//! there at least once; the records of a partition keep their order. What can be published nowhere is a dead
//! letter ([`dead_letter`]), counted and told, and holds nothing up. While the journal takes nothing, nothing more is consumed.
//!
//! Where a record is published is said in [`place`], how none goes round for ever in [`origin`], where a group begins
//! in [`group`].

mod carry;
mod config;
mod dead_letter;
mod group;
mod headers;
mod origin;
mod place;
mod report;
mod stop;
mod template;

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer as _};
use tidegate_broker::journal::JournalId;
use tidegate_broker::server;
use tokio::runtime::Handle;

use crate::health::{Part, State};
use crate::pump::SinkError;
use crate::route::{KafkaTopic, Routes};

use super::config::Config;
use super::topics;

pub use config::{ConsumeConfig, ConsumedTopic, Start};
pub(super) use origin::came_from;

use carry::{Carrier, End, Route};
use group::Group;
use report::Reporter;
use stop::Stop;

/// What it is called in `/health` and in the metrics.
const NAME: &str = "kafka-consumer";
/// Pauses between two attempts to connect: the first, and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(15));
/// How long a topic that was just created may take to be seen.
const APPEAR_TIMEOUT: Duration = Duration::from_secs(5);
/// How often it is looked for.
const APPEAR_INTERVAL: Duration = Duration::from_millis(100);

/// A consumer at work, on a thread of its own.
#[derive(Debug)]
pub struct KafkaConsumer {
    part: Part,
    stop: Arc<Stop>,
    thread: JoinHandle<()>,
}

impl KafkaConsumer {
    /// Starts it; Kafka need not be there. `journal` is what `broker` publishes into. `runtime` serves what has to be
    /// asked of Kafka; it must outlive the consumer. Fails if no thread can be made.
    ///
    /// # Panics
    ///
    /// If `config` has mistakes: see [`Config::mistakes`].
    pub fn start(
        config: &Config,
        journal: JournalId,
        broker: server::Handle,
        runtime: &Handle,
    ) -> io::Result<Self> {
        let (part, stop) = (Part::new(NAME), Arc::new(Stop::default()));
        let journal = format!("{:032x}", journal.0);
        let consume = &config.consume;
        let session = Session {
            group: consume.group(&config.client_id, &journal),
            routes: consume.topics.iter().map(Route::new).collect(),
            report: Reporter::new(part.clone(), consume.topics.iter().map(|it| it.topic.as_str())),
            config: config.clone(),
            journal,
            broker,
            runtime: runtime.clone(),
            stop: Arc::clone(&stop),
        };
        let thread = std::thread::Builder::new().name(format!("tidegate-{NAME}"));
        let thread = thread.spawn(move || session.run())?;
        Ok(Self { part, stop, thread })
    }

    /// What it says of itself.
    pub fn part(&self) -> Part {
        self.part.clone()
    }

    /// Ends it: what is under way may become durable until `deadline`; offsets are committed and the group is left.
    pub fn drain(self, deadline: Instant) {
        self.stop.ask(deadline);
        // Kafka may be away, and then leaving takes longer than anybody waits; nothing is lost by it.
        while !self.thread.is_finished() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                tracing::warn!(
                    "{NAME}: the group was not left in time; what was consumed and not committed is consumed again"
                );
                return;
            }
            self.stop.wait_for_end(left);
        }
        if self.thread.join().is_err() {
            tracing::error!("{NAME} had failed: please report this as a bug of tidegate");
        }
    }
}

/// Everything that outlives a connection.
struct Session {
    config: Config,
    group: String,
    journal: String,
    routes: Vec<Route>,
    broker: server::Handle,
    runtime: Handle,
    stop: Arc<Stop>,
    report: Reporter,
}

impl Session {
    fn run(mut self) {
        let _end = self.stop.end_on_drop();
        let mut pause = PAUSES.0;
        while self.stop.deadline().is_none() {
            let begun = Instant::now();
            let detail = match self.connect() {
                Ok((consumer, missing)) => match self.carry(&consumer, missing) {
                    End::Stopped => return,
                    End::Failed(state, detail) => (state, detail),
                },
                Err(SinkError::Operator(detail)) => (State::Failed, detail),
                Err(SinkError::Retry(detail) | SinkError::Waiting(detail)) => (State::Down, detail),
            };
            self.report.troubled(detail.0, &detail.1);
            if begun.elapsed() > PAUSES.1 {
                pause = PAUSES.0;
            }
            self.stop.wait(pause);
            pause = (pause * 2).min(PAUSES.1);
        }
    }

    fn carry(&mut self, consumer: &BaseConsumer<Group>, missing: Vec<String>) -> End {
        Carrier::new(
            consumer,
            carry::Context {
                config: &self.config,
                group: &self.group,
                journal: &self.journal,
                routes: &self.routes,
                broker: &self.broker,
                stop: &self.stop,
                runtime: &self.runtime,
                missing,
            },
            &mut self.report,
        )
        .run()
    }

    /// A consumer that has subscribed, and the topics that do not exist.
    fn connect(&mut self) -> Result<(BaseConsumer<Group>, Vec<String>), SinkError> {
        self.config.read_secrets().map_err(|why| SinkError::Operator(why.join("; ")))?;
        let topics: Vec<String> = self.routes.iter().map(|route| route.topic.clone()).collect();
        let known = topics::reach(&self.config)?;
        let appeared: Vec<String> = topics.iter().filter(|topic| !known.contains(*topic)).cloned().collect();
        let missing = self.create(&appeared)?;
        let unusable =
            |error| SinkError::Operator(format!("Kafka cannot be used with this configuration: {error}"));
        let context = Group::new(self.config.consume.start, appeared.into_iter().collect());
        let consumer: BaseConsumer<Group> = config::consumer(&self.config, &self.group, &self.journal)
            .create_with_context(context)
            .map_err(unusable)?;
        let names: Vec<&str> = topics.iter().map(String::as_str).collect();
        consumer.subscribe(&names).map_err(unusable)?;
        Ok((consumer, missing))
    }

    /// What the topics `names` are to be like: as the sink would create those that a route names, else as usual.
    fn wanted(&self, names: &[String]) -> Vec<KafkaTopic> {
        let routed = Routes::new(&self.config.routes).expect("mistakes were looked for");
        let usual = |name: &String| KafkaTopic { name: name.clone(), partitions: None, retention_ms: None };
        let wanted = |name: &String| routed.topics().iter().find(|topic| topic.name == *name).cloned();
        names.iter().map(|name| wanted(name).unwrap_or_else(|| usual(name))).collect()
    }

    /// Creates what is missing, if that is wanted; returns what still is.
    fn create(&self, missing: &[String]) -> Result<Vec<String>, SinkError> {
        if missing.is_empty() || !self.config.topics.create {
            return Ok(missing.to_vec());
        }
        let looking = topics::look_at(&self.config, self.wanted(missing));
        for wrong in self.runtime.block_on(looking)?.into_iter().filter_map(|found| found.wrong) {
            // The topics that are there are consumed nevertheless.
            tracing::warn!("{NAME}: {}", wrong.detail);
        }
        // The broker that is asked next may not have heard of them yet, and the consumer looks only now and then.
        let deadline = Instant::now() + APPEAR_TIMEOUT;
        loop {
            let known = topics::reach(&self.config)?;
            let missing: Vec<String> =
                missing.iter().filter(|topic| !known.contains(*topic)).cloned().collect();
            if missing.is_empty() || Instant::now() >= deadline || self.stop.deadline().is_some() {
                return Ok(missing);
            }
            self.stop.wait(APPEAR_INTERVAL);
        }
    }
}
