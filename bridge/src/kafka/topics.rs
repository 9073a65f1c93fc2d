//! Prepares the destination: finds the brokers, creates missing topics, learns how large a record may be.
//!
//! Only topics that routes name are ever created, and a topic that exists is left as it is.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::metadata::MetadataTopic;
use rdkafka::producer::{BaseProducer, DeliveryResult, Producer as _, ProducerContext};
use tokio::runtime::Handle;

use crate::pump::SinkError;
use crate::route::KafkaTopic;

use super::config::{Config, TopicsConfig};
use super::trouble;

/// How long one attempt to reach any broker may take.
const REACH_TIMEOUT: Duration = Duration::from_secs(5);
/// How long to collect what librdkafka said while it tried.
const WORDS_TIMEOUT: Duration = Duration::from_millis(10);
/// How long the brokers may take to answer an admin request.
const ADMIN_TIMEOUT: Duration = Duration::from_secs(15);

/// The last thing librdkafka complained about: says more than the time-out that follows from it.
#[derive(Clone, Debug, Default)]
struct LastWords(Arc<Mutex<Option<(RDKafkaErrorCode, String)>>>);

impl ProducerContext for LastWords {
    type DeliveryOpaque = ();

    fn delivery(&self, _: &DeliveryResult<'_>, (): ()) {}
}

impl ClientContext for LastWords {
    fn log(&self, _level: RDKafkaLogLevel, facility: &str, line: &str) {
        tracing::debug!(target: "librdkafka", "{facility}: {line}");
    }

    fn error(&self, error: KafkaError, reason: &str) {
        let code = error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Unknown);
        // That all brokers are down follows from why each is.
        if code != RDKafkaErrorCode::AllBrokersDown {
            *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some((code, reason.to_owned()));
        }
    }
}

/// Connects for long enough to make `topics` exist. Returns the largest record that all of them take, in bytes.
///
/// Blocks, for [`REACH_TIMEOUT`] if nobody answers; must be called where blocking is allowed, inside `runtime`.
pub(super) fn prepare(config: &Config, topics: &[KafkaTopic], runtime: &Handle) -> Result<u32, SinkError> {
    let known = reach(config)?;
    let admin: AdminClient<LastWords> =
        config.client().create_with_context(LastWords::default()).map_err(unusable)?;
    let missing: Vec<_> = topics.iter().filter(|topic| !known.contains(&topic.name)).collect();
    if !missing.is_empty() {
        create(config, &admin, &missing, runtime)?;
    }
    Ok(runtime.block_on(smallest_limit(config, &admin, topics)))
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
        let (code, reason) = said.unwrap_or_else(|| (code, code.to_string()));
        trouble::unreachable(config, code, &reason)
    })?;
    let exists = |topic: &&MetadataTopic| topic.error().is_none();
    Ok(metadata.topics().iter().filter(exists).map(|topic| topic.name().to_owned()).collect())
}

#[expect(clippy::needless_pass_by_value, reason = "as map_err calls it")]
fn unusable(error: KafkaError) -> SinkError {
    SinkError::Operator(format!("Kafka cannot be used with this configuration: {error}"))
}

fn create(
    config: &Config,
    admin: &AdminClient<LastWords>,
    missing: &[&KafkaTopic],
    runtime: &Handle,
) -> Result<(), SinkError> {
    if !config.topics.create {
        return Err(SinkError::Operator(format!(
            "Kafka has no topic {}: create it, or set kafka.topics.create = true",
            missing[0].name
        )));
    }
    let TopicsConfig { partitions, replication, retention_ms, .. } = config.topics;
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
    for result in results {
        match result {
            Ok(topic) => tracing::info!("created the Kafka topic {topic}"),
            Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
            Err((topic, code)) => return Err(trouble::not_created(&topic, code)),
        }
    }
    Ok(())
}

/// The smallest `max.message.bytes` of `topics`, if the brokers tell and it is below the configured limit.
async fn smallest_limit(config: &Config, admin: &AdminClient<LastWords>, topics: &[KafkaTopic]) -> u32 {
    let wanted: Vec<_> = topics.iter().map(|topic| ResourceSpecifier::Topic(&topic.name)).collect();
    let options = AdminOptions::new().request_timeout(Some(ADMIN_TIMEOUT));
    // Who may not read the configuration of topics still may produce; then the configured limit has to be right.
    let described = admin.describe_configs(&wanted, &options).await.unwrap_or_default();
    described
        .into_iter()
        .flatten()
        .filter_map(|topic| topic.get("max.message.bytes")?.value.as_ref()?.parse().ok())
        .fold(config.record_bytes_max, u32::min)
        .max(MESSAGE_BYTES_MIN)
}

/// The least that librdkafka accepts as `message.max.bytes`.
const MESSAGE_BYTES_MIN: u32 = 1_000;
