//! Prepares the destination: finds the brokers, creates missing topics, learns what may be written and how large a record
//! may be.
//!
//! Only topics that routes name are ever created, and a topic that exists is left as it is.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rdkafka::admin::{
    AdminClient, AdminOptions, NewTopic, OwnedResourceSpecifier, ResourceSpecifier, TopicReplication,
};
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::metadata::MetadataTopic;
use rdkafka::producer::{BaseProducer, DeliveryResult, Producer as _, ProducerContext};
use tokio::runtime::Handle;
use tokio::task::spawn_blocking;

use crate::pump::SinkError;
use crate::route::KafkaTopic;

use super::config::{Config, TopicsConfig};
use super::dead_letter::Wrong;
use super::standing::Found;
use super::{native, trouble};

/// How long one attempt to reach any broker may take.
const REACH_TIMEOUT: Duration = Duration::from_secs(5);
/// How long to collect what librdkafka said while it tried.
const WORDS_TIMEOUT: Duration = Duration::from_millis(10);
/// How long the brokers may take to answer an admin request.
const ADMIN_TIMEOUT: Duration = Duration::from_secs(15);

/// The last thing librdkafka complained about: says more than the time-out that follows from it.
#[derive(Clone, Debug, Default)]
pub(super) struct LastWords(Arc<Mutex<Words>>);

#[derive(Clone, Debug, Default)]
struct Words {
    /// An error with its reason.
    error: Option<(RDKafkaErrorCode, String)>,
    /// Why a connection ended, which librdkafka only logs when it was the broker who ended it.
    ended: Option<String>,
}

impl ProducerContext for LastWords {
    type DeliveryOpaque = ();

    fn delivery(&self, _: &DeliveryResult<'_>, (): ()) {}
}

impl ClientContext for LastWords {
    fn log(&self, _level: RDKafkaLogLevel, facility: &str, line: &str) {
        tracing::debug!(target: "librdkafka", "{facility}: {line}");
        if facility == "FAIL" {
            // The name of librdkafka's thread stands before it.
            let told = line.split_once("]: ").map_or(line, |(_, told)| told);
            self.0.lock().unwrap_or_else(PoisonError::into_inner).ended = Some(told.to_owned());
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        let code = error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Unknown);
        // That all brokers are down follows from why each is.
        if code != RDKafkaErrorCode::AllBrokersDown {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).error = Some((code, reason.to_owned()));
        }
    }
}

/// What [`prepare`] finds of `topics`, without blocking. May be dropped.
pub(super) async fn look_at(config: &Config, topics: Vec<KafkaTopic>) -> Result<Vec<Found>, SinkError> {
    let (config, runtime) = (config.clone(), Handle::current());
    let looking = spawn_blocking(move || prepare(&config, &topics, &runtime));
    looking.await.expect("preparing does not panic")
}

/// Connects for long enough to make `topics` exist. Returns what was found of each, in their order.
///
/// Blocks, for [`REACH_TIMEOUT`] if nobody answers; must be called where blocking is allowed, inside `runtime`.
fn prepare(config: &Config, topics: &[KafkaTopic], runtime: &Handle) -> Result<Vec<Found>, SinkError> {
    let known = reach(config)?;
    let admin: AdminClient<LastWords> =
        config.client().create_with_context(LastWords::default()).map_err(unusable)?;
    let missing: Vec<_> = topics.iter().filter(|topic| !known.contains(&topic.name)).collect();
    let missing =
        if missing.is_empty() { HashMap::new() } else { create(config, &admin, &missing, runtime)? };
    let limits = runtime.block_on(limits(&admin, topics));
    let unwritable = unwritable(&admin, topics.iter().map(|topic| topic.name.as_str()));
    let found = topics.iter().zip(limits).map(|(topic, batch_bytes_max)| {
        let name = topic.name.as_str();
        let missing = missing.get(name).cloned();
        let is_seen = missing.is_none();
        let wrong = missing.or_else(|| unwritable.contains(name).then(|| trouble::not_writable(name)));
        Found { batch_bytes_max, wrong, is_seen }
    });
    Ok(found.collect())
}

/// Those of `topics` that are there and that this client may not write. Blocks, for [`ADMIN_TIMEOUT`] if nobody answers.
pub(super) fn unwritable<'t>(
    admin: &AdminClient<LastWords>,
    topics: impl IntoIterator<Item = &'t str>,
) -> HashSet<String> {
    native::unwritable(admin.inner(), topics, ADMIN_TIMEOUT)
}

/// Asks any broker for the topics there are; `Err` says why none answers. Blocks as [`prepare`] does.
pub(super) fn reach(config: &Config) -> Result<HashSet<String>, SinkError> {
    let words = LastWords::default();
    let probe: BaseProducer<LastWords> =
        config.client().create_with_context(words.clone()).map_err(unusable)?;
    // All topics, because asking for one by name may create it.
    let metadata = probe.client().fetch_metadata(None, REACH_TIMEOUT).map_err(|error| {
        probe.poll(WORDS_TIMEOUT);
        let said = words.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let code = error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Unknown);
        let ended = said.ended.map(|reason| (code, reason));
        let (code, reason) = said.error.or(ended).unwrap_or_else(|| (code, code.to_string()));
        trouble::unreachable(config, code, &reason)
    })?;
    let exists = |topic: &&MetadataTopic| topic.error().is_none();
    Ok(metadata.topics().iter().filter(exists).map(|topic| topic.name().to_owned()).collect())
}

/// Why brokers that answer store nothing, if the partitions of the topics that routes name show it. Blocks as [`prepare`] does.
pub(super) fn stalled(config: &Config, runtime: &Handle) -> Option<String> {
    let admin: AdminClient<LastWords> = config.client().create_with_context(LastWords::default()).ok()?;
    let metadata = admin.inner().fetch_metadata(None, REACH_TIMEOUT).ok()?;
    let is_ours = |topic: &&MetadataTopic| config.routes.iter().any(|route| route.topic == topic.name());
    let mut found = Vec::new();
    for topic in metadata.topics().iter().filter(is_ours) {
        let (name, partitions) = (topic.name(), topic.partitions());
        let without_leader = partitions.iter().filter(|partition| partition.leader() < 0).count();
        if without_leader > 0 {
            found.push(format!(
                "{without_leader} of {} partitions of {name} have no leader",
                partitions.len()
            ));
            continue;
        }
        let needed = runtime.block_on(in_sync_min(&admin, name));
        let in_sync = partitions.iter().map(|partition| partition.isr().len()).min().unwrap_or(usize::MAX);
        if needed.is_some_and(|needed| in_sync < needed) {
            found.push(format!(
                "a partition of {name} has {in_sync} replicas in sync, and min.insync.replicas asks for {}",
                needed.unwrap_or_default()
            ));
        }
    }
    (!found.is_empty()).then(|| format!("{}; bring the brokers back that are away", found.join(", ")))
}

/// How many replicas of a topic must be in sync before it takes records, if the brokers tell.
async fn in_sync_min(admin: &AdminClient<LastWords>, topic: &str) -> Option<usize> {
    let options = AdminOptions::new().request_timeout(Some(ADMIN_TIMEOUT));
    let described = admin.describe_configs(&[ResourceSpecifier::Topic(topic)], &options).await.ok()?;
    described.first()?.as_ref().ok()?.get("min.insync.replicas")?.value.as_ref()?.parse().ok()
}

#[expect(clippy::needless_pass_by_value, reason = "as map_err calls it")]
fn unusable(error: KafkaError) -> SinkError {
    SinkError::Operator(format!("Kafka cannot be used with this configuration: {error}"))
}

/// Creates topics that are `missing`. Returns those that still are, with why.
fn create(
    config: &Config,
    admin: &AdminClient<LastWords>,
    missing: &[&KafkaTopic],
    runtime: &Handle,
) -> Result<HashMap<String, Wrong>, SinkError> {
    let TopicsConfig { create, partitions, replication, retention_ms } = config.topics;
    if !create {
        let why = |topic: &&KafkaTopic| {
            let name = &topic.name;
            let told = format!("Kafka has no topic {name}: create it, or set kafka.topics.create = true");
            (name.clone(), Wrong::new(trouble::UNKNOWN_TOPIC, told))
        };
        return Ok(missing.iter().map(why).collect());
    }
    let retention = |topic: &KafkaTopic| topic.retention_ms.unwrap_or(retention_ms).to_string();
    let retentions: Vec<_> = missing.iter().map(|topic| retention(topic)).collect();
    let new = missing.iter().zip(&retentions).map(|(topic, retention)| {
        let replication = TopicReplication::Fixed(replication);
        let new = NewTopic::new(&topic.name, topic.partitions.unwrap_or(partitions), replication);
        if retention == "0" { new } else { new.set("retention.ms", retention) }
    });
    let topics: Vec<_> = new.collect();
    let options =
        AdminOptions::new().request_timeout(Some(ADMIN_TIMEOUT)).operation_timeout(Some(ADMIN_TIMEOUT));
    let results = runtime
        .block_on(admin.create_topics(&topics, &options))
        .map_err(|error| SinkError::Retry(format!("Kafka did not create topics: {error}")))?;
    let mut wrong = HashMap::new();
    for result in results {
        match result {
            Ok(topic) => tracing::info!("created the Kafka topic {topic}"),
            Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
            Err((topic, code)) => _ = wrong.insert(topic.clone(), trouble::not_created(&topic, code)?),
        }
    }
    Ok(wrong)
}

/// The `max.message.bytes` of each of `topics`, where the brokers tell it.
async fn limits(admin: &AdminClient<LastWords>, topics: &[KafkaTopic]) -> Vec<Option<u32>> {
    let wanted: Vec<_> = topics.iter().map(|topic| ResourceSpecifier::Topic(&topic.name)).collect();
    let options = AdminOptions::new().request_timeout(Some(ADMIN_TIMEOUT));
    // Who may not read the configuration of topics still may produce; then the configured limit has to be right.
    let described = admin.describe_configs(&wanted, &options).await.unwrap_or_default();
    let limit = |topic: &KafkaTopic| {
        let is_it = |specifier: &OwnedResourceSpecifier| matches!(specifier, OwnedResourceSpecifier::Topic(name) if *name == topic.name);
        let told = described.iter().flatten().find(|told| is_it(&told.specifier))?;
        told.get("max.message.bytes")?.value.as_ref()?.parse().ok()
    };
    topics.iter().map(limit).collect()
}
