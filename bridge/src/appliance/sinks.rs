//! The sinks that are switched on: each carries the journal from a cursor of its own, on a thread of its own.
//!
//! The cursor's name is the sink's name. A sink that is switched off again leaves its cursor, so that it goes on
//! where it was once it is switched on; until then the cursor holds the journal's segments back.

use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tidegate_broker::journal::{Journal, StartAt};
use tidegate_broker::server::SESSIONS_CURSOR;
use tokio::sync::watch;

use crate::config::Config;
use crate::health::Part;
use crate::kafka::{self, ExactlyOnceSink, KafkaSink};
use crate::postgres::PostgresSink;
use crate::pump::{DrainSignal, Sink, carry};

use super::StartError;

/// The sinks there are, by the names of their cursors.
pub const NAMES: [&str; 2] = [KAFKA, POSTGRES];

const KAFKA: &str = "kafka";
const POSTGRES: &str = "postgres";

/// Every sink that is switched on.
#[derive(Debug)]
pub(super) struct Sinks {
    running: Vec<(Part, JoinHandle<()>)>,
    drain: watch::Sender<Option<tokio::time::Instant>>,
}

/// What is configured of Kafka, with the folder for what no topic takes.
pub(super) fn kafka_settings(config: &Config) -> kafka::Config {
    let mut settings = config.kafka.clone();
    settings.dead_letter.folder = Some(config.data_dir.join("dead-letters"));
    settings
}

impl Sinks {
    /// Starts them; none has to be reachable.
    pub(super) fn start(config: &Config, journal: &Journal) -> Result<Self, StartError> {
        config.check_secrets().map_err(|unreadable| StartError::Secret(unreadable.to_string()))?;
        let (drain, signal) = watch::channel(None);
        let mut sinks = Self { running: Vec::new(), drain };
        if config.kafka.is_on() {
            let part = Part::new(KAFKA);
            let wrong = |mistakes: Vec<String>| StartError::Internal {
                part: "the Kafka sink",
                error: mistakes.join("; "),
            };
            let settings = kafka_settings(config);
            let (id, told) = (journal.id(), part.clone());
            if settings.exactly_once {
                let sink = ExactlyOnceSink::new(&settings, id, told).map_err(wrong)?;
                sinks.add(journal, part, signal.clone(), move || sink)?;
            } else {
                let sink = KafkaSink::new(&settings, id, told).map_err(wrong)?;
                sinks.add(journal, part, signal.clone(), move || sink)?;
            }
        }
        if config.postgres.is_on() {
            let part = Part::new(POSTGRES);
            let (settings, id, told) = (config.postgres.clone(), journal.id(), part.clone());
            sinks.add(journal, part, signal, move || PostgresSink::new(settings, id, told))?;
        }
        sinks.warn_of_cursors_left(journal);
        Ok(sinks)
    }

    /// What each says of itself.
    pub(super) fn parts(&self) -> Vec<Part> {
        self.running.iter().map(|(part, _)| part.clone()).collect()
    }

    /// Ends them: what is in flight may be confirmed until `deadline`, the cursors are saved.
    pub(super) fn drain(self, deadline: Instant) {
        self.drain.send_replace(Some(deadline.into()));
        for (part, thread) in self.running {
            if thread.join().is_err() {
                tracing::error!(
                    "the sink {} had failed: please report this as a bug of tidegate",
                    part.name()
                );
            }
        }
    }

    fn add<S: Sink + 'static>(
        &mut self,
        journal: &Journal,
        part: Part,
        drain: DrainSignal,
        make: impl FnOnce() -> S + Send + 'static,
    ) -> Result<(), StartError> {
        let name = part.name();
        let internal = |error: &dyn ToString| StartError::Internal { part: name, error: error.to_string() };
        let cursor = journal.cursor(name, StartAt::Oldest).map_err(|error| internal(&error))?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| internal(&error))?;
        let (journal, told) = (journal.clone(), part.clone());
        let run = move || {
            runtime.block_on(carry(&journal, &cursor, make(), told, drain));
            // A destination that does not answer must not hold up the drain.
            runtime.shutdown_timeout(Duration::from_millis(100));
        };
        let thread = std::thread::Builder::new().name(format!("tidegate-{name}")).spawn(run);
        self.running.push((part, thread.map_err(|error| internal(&error))?));
        Ok(())
    }

    /// Cursors that nothing moves hold the journal back for ever.
    fn warn_of_cursors_left(&self, journal: &Journal) {
        let is_moved =
            |name: &str| name == SESSIONS_CURSOR || self.running.iter().any(|(part, _)| part.name() == name);
        for cursor in journal.status().cursors {
            let name = cursor.name.as_str();
            if is_moved(name) {
                continue;
            }
            let what = if NAMES.contains(&name) {
                format!("{name} is switched off but was on before")
            } else {
                format!("nothing here moves the cursor {name}")
            };
            tracing::warn!(
                "{what}: the journal keeps what it has not delivered ({} bytes) until it is on again; `tidegate journal \
                 cursors remove {name}`, while tidegate does not run, lets go of it",
                cursor.lag_bytes
            );
        }
    }
}
