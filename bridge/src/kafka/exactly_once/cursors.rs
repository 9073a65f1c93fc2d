//! The cursor topic as a whole: makes it, and reads what it holds for one identity. Everything here blocks.
//!
//! Who reads after a claim was committed waits until the claim can be seen: whatever older producers of the same
//! identity have begun is decided by then, and lies before it.

use std::time::{Duration, Instant};

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message as _;
use rdkafka::{Offset as KafkaOffset, TopicPartitionList};
use tokio::runtime::Handle;

use crate::kafka::config::Config;
use crate::kafka::topics::{self, LastWords};
use crate::kafka::{trouble, unusable};
use crate::pump::SinkError;

use super::place::{Claim, Found, Identity};

/// How long the brokers may take to answer an admin request.
const ADMIN_TIMEOUT: Duration = Duration::from_secs(15);
/// How long to read before it is told that this is what is waited for.
const READ_PATIENCE: Duration = Duration::from_secs(20);
/// How often it is looked whether somebody still waits.
const POLL_TIMEOUT: Duration = Duration::from_millis(200);

/// What makes a topic fit for cursors: compaction keeps the last record of each key for ever, and small segments keep
/// what has to be read at a start small.
const TOPIC_CONFIG: [(&str, &str); 3] =
    [("cleanup.policy", POLICY), ("segment.bytes", "8388608"), ("min.cleanable.dirty.ratio", "0.1")];
const POLICY: &str = "compact";

/// Makes the cursor topic, if it is missing, and checks that it keeps cursors. Must be called inside `runtime`.
pub(super) fn prepare(config: &Config, runtime: &Handle) -> Result<(), SinkError> {
    let topic = config.cursor_topic.as_str();
    let known = topics::reach(config)?;
    let admin: AdminClient<LastWords> =
        config.client().create_with_context(LastWords::default()).map_err(unusable)?;
    if !known.contains(topic) {
        create(config, &admin, runtime)?;
    }
    if topics::unwritable(&admin, [topic]).contains(topic) {
        return Err(SinkError::Operator(format!(
            "this client may not write the Kafka topic {topic}, where it keeps how far this journal has come: grant it \
             Write, Read and Describe there, or name another kafka.cursor_topic"
        )));
    }
    match runtime.block_on(cleanup_policy(&admin, topic)) {
        Some(policy) if policy != POLICY => Err(SinkError::Operator(format!(
            "the Kafka topic {topic} has cleanup.policy = {policy}, which would forget how far this journal has come: \
             set cleanup.policy = {POLICY}, or name another kafka.cursor_topic"
        ))),
        Some(_) | None => Ok(()),
    }
}

fn create(config: &Config, admin: &AdminClient<LastWords>, runtime: &Handle) -> Result<(), SinkError> {
    let topic = config.cursor_topic.as_str();
    if !config.topics.create {
        return Err(SinkError::Operator(format!(
            "Kafka has no topic {topic}: create it with cleanup.policy = {POLICY}, or set kafka.topics.create = true"
        )));
    }
    let new = NewTopic::new(topic, 1, TopicReplication::Fixed(config.topics.replication));
    let new = TOPIC_CONFIG.iter().fold(new, |new, (key, value)| new.set(key, value));
    let options =
        AdminOptions::new().request_timeout(Some(ADMIN_TIMEOUT)).operation_timeout(Some(ADMIN_TIMEOUT));
    let results = runtime
        .block_on(admin.create_topics([&new], &options))
        .map_err(|error| SinkError::Retry(format!("Kafka did not create the topic {topic}: {error}")))?;
    for result in results {
        match result {
            Ok(topic) => tracing::info!("created the Kafka topic {topic}"),
            Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
            Err((topic, code)) => {
                let wrong = trouble::not_created(&topic, code)?;
                return Err(SinkError::Operator(wrong.detail.to_string()));
            }
        }
    }
    Ok(())
}

/// The topic's `cleanup.policy`; `None` for who may not read the configuration of topics.
async fn cleanup_policy(admin: &AdminClient<LastWords>, topic: &str) -> Option<String> {
    let options = AdminOptions::new().request_timeout(Some(ADMIN_TIMEOUT));
    let described = admin.describe_configs([&ResourceSpecifier::Topic(topic)], &options).await.ok()?;
    described.first()?.as_ref().ok()?.get("cleanup.policy")?.value.clone()
}

/// Who claimed the identity last, whether or not that is decided: to be asked before the others are fenced.
pub(super) fn last_claim(config: &Config, identity: &Identity) -> Result<Found, SinkError> {
    read(config, identity, Until::End)
}

/// What the topic holds for `identity`, whose own claim has been committed.
pub(super) fn committed(config: &Config, identity: &Identity) -> Result<Found, SinkError> {
    read(config, identity, Until::Claim)
}

/// Another instance has the same identity.
pub(super) fn rival_told(identity: &Identity, rival: &Claim) -> SinkError {
    SinkError::Operator(format!(
        "another instance has taken over the transactional id {}: it runs on {} with the journal {}; this one delivers \
         nothing more until it is restarted. Give each its own kafka.transactional_id, or stop the other and restart \
         this one",
        identity.transactional_id, rival.host, rival.journal
    ))
}

impl ConsumerContext for LastWords {}

/// How far to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Until {
    /// To where the topic ends now, also what is not decided.
    End,
    /// To the claim that is made now; what is not decided before it is waited for.
    Claim,
}

impl Until {
    const fn isolation(self) -> &'static str {
        match self {
            Self::End => "read_uncommitted",
            Self::Claim => "read_committed",
        }
    }
}

/// Reads from the beginning. At [`READ_PATIENCE`] it fails.
fn read(config: &Config, identity: &Identity, until: Until) -> Result<Found, SinkError> {
    let topic = config.cursor_topic.as_str();
    let consumer: BaseConsumer<LastWords> = config
        .client()
        // librdkafka wants one; nothing is stored under it.
        .set("group.id", &identity.transactional_id)
        .set("enable.auto.commit", "false")
        .set("enable.partition.eof", "true")
        .set("isolation.level", until.isolation())
        .create_with_context(LastWords::default())
        .map_err(unusable)?;
    let mut assigned = TopicPartitionList::new();
    assigned.add_partition_offset(topic, 0, KafkaOffset::Beginning).map_err(unusable)?;
    consumer.assign(&assigned).map_err(unusable)?;
    let (mut found, mut last, begun) = (Found::default(), None, Instant::now());
    // What comes in meanwhile keeps the end away for ever.
    let (_, end) = consumer
        .fetch_watermarks(topic, 0, READ_PATIENCE)
        .map_err(|error| waits(config, &error.to_string()))?;
    loop {
        if begun.elapsed() >= READ_PATIENCE {
            let why = last.map_or_else(|| UNDECIDED.to_owned(), |error: KafkaError| error.to_string());
            return Err(waits(config, &why));
        }
        match consumer.poll(POLL_TIMEOUT) {
            None => {}
            Some(Ok(record)) => {
                let key = record.key().unwrap_or_default();
                found
                    .read(identity, key, record.payload())
                    .map_err(|what| unreadable(config, identity, &what))?;
                let is_enough = match until {
                    Until::Claim => found.is_claimed(identity),
                    Until::End => record.offset() + 1 >= end,
                };
                if is_enough {
                    return Ok(found);
                }
            }
            Some(Err(KafkaError::PartitionEOF(_))) => match until {
                Until::End => return Ok(found),
                // The end of what is decided; the claim lies beyond it until the transactions before it are.
                Until::Claim => last = None,
            },
            Some(Err(error)) => {
                let code = error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Unknown);
                if code == RDKafkaErrorCode::TopicAuthorizationFailed {
                    return Err(SinkError::Operator(format!(
                        "Kafka does not let this client read the topic {topic}: {code}; it needs Read there"
                    )));
                }
                last = Some(error);
            }
        }
    }
}

/// Why the end of what is decided can stay before our own claim.
const UNDECIDED: &str = "a transaction of another producer in this topic is open; the brokers end it after that \
                         producer's transaction.timeout.ms at the latest";

fn waits(config: &Config, why: &str) -> SinkError {
    SinkError::Retry(format!(
        "how far this journal has come cannot be read from the Kafka topic {} yet: {why}",
        config.cursor_topic
    ))
}

fn unreadable(config: &Config, identity: &Identity, what: &str) -> SinkError {
    let (topic, key) = (&config.cursor_topic, identity.cursor_key());
    SinkError::Operator(format!(
        "the cursor of this journal in the Kafka topic {topic} (key {key}) cannot be understood: {what}; a newer version \
         of tidegate may have written it. Use that version, or write an empty value under this key to begin at the \
         journal's own cursor"
    ))
}
