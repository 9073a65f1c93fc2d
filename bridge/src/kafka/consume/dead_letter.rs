//! Dead letters of the consumer: records that can be published nowhere, on their way to where they are kept instead.
//!
//! Each goes to the dead-letter topic as it is, key, value, headers and time, with headers behind its own that say why,
//! and from where; or, where that topic does not take it either, into the file. It is kept when Kafka has confirmed it or
//! the file is on disk; whoever commits offsets waits for that. After a crash a letter may be kept twice.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use rdkafka::ClientContext;
use rdkafka::error::RDKafkaErrorCode as Code;
use rdkafka::message::{BorrowedMessage, Header, Message as _, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, DeliveryResult, ProducerContext};
use serde::Serialize;
use tokio::runtime::Handle;

use super::super::config::Config;
use super::super::dead_letter::{self, DeadLetterFile, Wrong};
use super::super::native;
use super::super::trouble::{self, Verdict};
use super::super::{RECORD_BYTES, RECORD_BYTES_SLACK, topics};
use super::NAME;
use super::place::Unplaced;
use crate::pump::SinkError;
use crate::route::KafkaTopic;

/// How long Kafka may take to confirm letters before whoever waits looks after other things.
const CONFIRM_TIMEOUT: Duration = Duration::from_millis(500);
/// How long to wait for news at a time: less than it takes to send a batch.
const POLL: Duration = Duration::from_millis(1);

/// A record that is kept, not published.
#[derive(Debug)]
pub(super) struct Letter {
    pub(super) why: Unplaced,
    way: Way,
    /// It was found too large together with others, and is tried alone.
    alone: bool,
}

/// How far a letter has come.
#[derive(Debug)]
enum Way {
    ToTopic,
    /// Handed over to librdkafka, which says here what becomes of it.
    Sent(Arc<Delivery>),
    /// Its topic does not take it, for this reason, if there is one.
    ToFile(Option<Wrong>),
    /// In the file, which is not synced.
    Written,
    Kept(Place),
}

/// Where a letter is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Topic,
    File,
    Nowhere,
}

/// What became of a record that was handed over.
#[derive(Debug, Default)]
struct Delivery(OnceLock<Result<(), Code>>);

impl Letter {
    /// Not kept yet.
    pub(super) const fn new(why: Unplaced) -> Self {
        Self { why, way: Way::ToTopic, alone: false }
    }

    /// Where it is kept, once it is.
    pub(super) const fn place(&self) -> Option<Place> {
        match &self.way {
            Way::Kept(place) => Some(*place),
            Way::ToTopic | Way::Sent(_) | Way::ToFile(_) | Way::Written => None,
        }
    }
}

/// The dead letters of one consumer.
pub(super) struct DeadLetters<'a> {
    config: &'a Config,
    /// The consumer group, which letters name.
    group: &'a str,
    runtime: &'a Handle,
    /// Made with the first letter: most consumers never have one.
    producer: Option<BaseProducer<Reports>>,
    /// Until when the topic is not tried, and why.
    closed: Option<(Instant, Wrong)>,
    file: Option<DeadLetterFile>,
}

impl<'a> DeadLetters<'a> {
    /// Nothing is connected or opened yet.
    pub(super) fn new(config: &'a Config, group: &'a str, runtime: &'a Handle) -> Self {
        let dead_letter = &config.dead_letter;
        let file = |folder: &std::path::PathBuf| {
            DeadLetterFile::new(folder.clone(), NAME, dead_letter.file_bytes_max)
        };
        Self {
            config,
            group,
            runtime,
            producer: None,
            closed: None,
            file: dead_letter.folder.as_ref().map(file),
        }
    }

    /// Keeps `letters`. `Err` says why not all are kept yet: it is to be called again. Blocks while Kafka is asked.
    pub(super) fn keep(&mut self, letters: &mut [(&BorrowedMessage<'_>, &mut Letter)]) -> Result<(), String> {
        loop {
            self.send(letters)?;
            let kept = self.listen(letters);
            self.write(letters)?;
            kept?;
            if letters.iter().all(|(_, letter)| letter.place().is_some()) {
                return Ok(());
            }
        }
    }

    /// Where letters of this place are, in words.
    pub(super) fn told(&self, place: Place) -> String {
        match (place, &self.config.dead_letter.topic, &self.file) {
            (Place::Topic, Some(topic), _) => format!("it is in the Kafka topic {topic}"),
            (Place::File, _, Some(file)) => format!("it is in {}", file.path().display()),
            _ => "it is not kept".to_owned(),
        }
    }

    /// Hands over what is on its way to the topic, or finds that it goes into the file.
    fn send(&mut self, letters: &mut [(&BorrowedMessage<'_>, &mut Letter)]) -> Result<(), String> {
        let (mut alone, group) = (false, self.group);
        for (record, letter) in letters {
            if !matches!(letter.way, Way::ToTopic) || alone {
                continue;
            }
            match self.open_topic()? {
                Some((producer, topic)) => {
                    let delivery = Arc::new(Delivery::default());
                    letter.way = match hand_over(producer, topic, record, letter, group, &delivery) {
                        Ok(()) => Way::Sent(delivery),
                        Err(code) => self.refused(letter, code)?,
                    };
                    alone = letter.alone;
                }
                None => letter.way = Way::ToFile(self.closed.as_ref().map(|(_, wrong)| wrong.clone())),
            }
        }
        Ok(())
    }

    /// The producer and the topic, unless that is off or closed. `Err` if it is not known.
    fn open_topic(&mut self) -> Result<Option<(&BaseProducer<Reports>, &'a str)>, String> {
        let Some(topic) = self.config.dead_letter.topic.as_deref() else { return Ok(None) };
        if self.closed.as_ref().is_some_and(|(until, _)| Instant::now() < *until) {
            return Ok(None);
        }
        self.closed = None;
        let producer = match self.producer.take() {
            Some(producer) => producer,
            None => match self.connect(topic)? {
                Ok(producer) => producer,
                Err(wrong) => {
                    self.close(wrong);
                    return Ok(None);
                }
            },
        };
        Ok(Some((self.producer.insert(producer), topic)))
    }

    /// A producer for the topic, which is created if it is missing and that is wanted; or what is wrong with it.
    fn connect(&self, topic: &str) -> Result<Result<BaseProducer<Reports>, Wrong>, String> {
        let wanted = KafkaTopic { name: topic.to_owned(), partitions: None, retention_ms: None };
        let looking = topics::look_at(self.config, vec![wanted]);
        let found = self.runtime.block_on(looking).map_err(|error| match error {
            SinkError::Retry(detail) | SinkError::Waiting(detail) | SinkError::Operator(detail) => detail,
        })?;
        let found = found.into_iter().next().expect("one topic was asked for");
        if let Some(wrong) = found.wrong {
            return Ok(Err(wrong));
        }
        let limit = found.batch_bytes_max.unwrap_or(self.config.record_bytes_max);
        let largest = limit.saturating_add(RECORD_BYTES_SLACK).clamp(RECORD_BYTES.0, RECORD_BYTES.1);
        let config = self.config.producer(limit.saturating_sub(RECORD_BYTES_SLACK), largest);
        let producer = config.create_with_context(Reports);
        producer.map(Ok).map_err(|error| format!("Kafka cannot be used with this configuration: {error}"))
    }

    /// Takes in what became of letters that were handed over.
    fn listen(&mut self, letters: &mut [(&BorrowedMessage<'_>, &mut Letter)]) -> Result<(), String> {
        let deadline = Instant::now() + CONFIRM_TIMEOUT;
        while is_awaited(letters) {
            let Some(producer) = &self.producer else { break };
            if Instant::now() >= deadline {
                return Err("waiting for Kafka to confirm dead letters".to_owned());
            }
            producer.poll(POLL);
        }
        let is_one_of_many =
            letters.iter().filter(|(_, letter)| matches!(letter.way, Way::Sent(_))).count() > 1;
        let mut failed = Ok(());
        for (_, letter) in letters {
            let Way::Sent(delivery) = &letter.way else { continue };
            letter.way = match delivery.0.get() {
                Some(Ok(())) => Way::Kept(Place::Topic),
                // A broker finds a whole batch too large, and says so of each record in it.
                Some(Err(code))
                    if is_one_of_many && trouble::verdict(*code) == Verdict::Reject(trouble::TOO_LARGE) =>
                {
                    letter.alone = true;
                    Way::ToTopic
                }
                Some(Err(code)) => match self.refused(letter, *code) {
                    Ok(way) => way,
                    Err(detail) => {
                        failed = Err(detail);
                        Way::ToTopic
                    }
                },
                None => Way::ToTopic,
            };
        }
        failed
    }

    /// The topic did not take `letter`: where that goes now, or why everything has to be sent anew.
    fn refused(&mut self, letter: &Letter, code: Code) -> Result<Way, String> {
        let topic = self.config.dead_letter.topic.as_deref().unwrap_or_default();
        match trouble::verdict(code) {
            Verdict::Reject(reason) => Ok(Way::ToFile(Some(Wrong::new(
                reason,
                format!("Kafka will not store it in {topic}: {code}"),
            )))),
            Verdict::Topic(reason) => {
                let wrong = Wrong::new(reason, trouble::topic_detail(topic, reason, code));
                self.close(wrong.clone());
                Ok(Way::ToFile(Some(wrong)))
            }
            Verdict::Again | Verdict::Operator => {
                self.producer = None;
                Err(format!(
                    "Kafka does not store the dead letter of {} in {topic}: {code}; trying again",
                    letter.why.reason
                ))
            }
        }
    }

    fn close(&mut self, wrong: Wrong) {
        let patience = Duration::from_millis(self.config.dead_letter.patience_ms.into());
        self.closed = Some((Instant::now() + patience, wrong));
        self.producer = None;
    }

    /// Writes what goes into the file, and returns when it is on disk.
    fn write(&mut self, letters: &mut [(&BorrowedMessage<'_>, &mut Letter)]) -> Result<(), String> {
        let written = self.append(letters);
        let Some(file) = &mut self.file else { return Ok(()) };
        if let Err(error) = written.and_then(|()| file.sync()) {
            // What was not synced may be gone although the next sync succeeds.
            for (_, letter) in letters {
                if matches!(letter.way, Way::Written) {
                    letter.way = Way::ToFile(None);
                }
            }
            return Err(dead_letter::unwritable(&file.path(), &error));
        }
        for (_, letter) in letters {
            if matches!(letter.way, Way::Written) {
                letter.way = Way::Kept(Place::File);
            }
        }
        Ok(())
    }

    fn append(&mut self, letters: &mut [(&BorrowedMessage<'_>, &mut Letter)]) -> std::io::Result<()> {
        for (record, letter) in letters {
            let Way::ToFile(wrong) = &letter.way else { continue };
            if let Some(wrong) = wrong {
                let detail = &mut letter.why.detail;
                *detail = format!("{detail}; nor does the dead-letter topic take it: {}", wrong.detail);
            }
            letter.way = match &mut self.file {
                Some(file) => {
                    letter.way = Way::ToFile(None);
                    file.append(&line(record, &letter.why, self.group))?;
                    Way::Written
                }
                None => Way::Kept(Place::Nowhere),
            };
        }
        Ok(())
    }
}

fn is_awaited(letters: &[(&BorrowedMessage<'_>, &mut Letter)]) -> bool {
    letters.iter().any(|(_, letter)| match &letter.way {
        Way::Sent(delivery) => delivery.0.get().is_none(),
        Way::ToTopic | Way::ToFile(_) | Way::Written | Way::Kept(_) => false,
    })
}

/// Hands `record` over as it is, with headers that say why and from where.
fn hand_over(
    producer: &BaseProducer<Reports>,
    topic: &str,
    record: &BorrowedMessage<'_>,
    letter: &Letter,
    group: &str,
    delivery: &Arc<Delivery>,
) -> Result<(), Code> {
    let (partition, offset) = (record.partition().to_string(), record.offset().to_string());
    let why = [
        (dead_letter::REASON, letter.why.reason),
        (dead_letter::DETAIL, dead_letter::shortened(&letter.why.detail)),
        (dead_letter::KAFKA_TOPIC, record.topic()),
        ("tidegate_kafka_partition", &partition),
        ("tidegate_kafka_offset", &offset),
        ("tidegate_kafka_group", group),
    ];
    let own = record.headers().map_or_else(OwnedHeaders::new, |headers| headers.detach());
    let headers =
        why.iter().fold(own, |headers, (key, value)| headers.insert(Header { key, value: Some(*value) }));
    let mut sent = BaseRecord::with_opaque_to(topic, Arc::clone(delivery)).headers(headers);
    if let Some(key) = record.key() {
        sent = sent.key(key);
    }
    if let Some(payload) = record.payload() {
        sent = sent.payload(payload);
    }
    if let Some(time) = record.timestamp().to_millis() {
        sent = sent.timestamp(time);
    }
    producer
        .send::<[u8], [u8]>(sent)
        .map_err(|(error, _)| error.rdkafka_error_code().unwrap_or(Code::Unknown))
}

/// Tells each letter what became of it.
struct Reports;

impl ClientContext for Reports {
    fn log(&self, _level: rdkafka::config::RDKafkaLogLevel, facility: &str, line: &str) {
        tracing::debug!(target: "librdkafka", "{facility}: {line}");
    }

    fn error(&self, error: rdkafka::error::KafkaError, reason: &str) {
        // The consumer hears of the same brokers, and tells.
        tracing::debug!("Kafka: {error}: {reason}");
    }
}

impl ProducerContext for Reports {
    type DeliveryOpaque = Arc<Delivery>;

    fn delivery(&self, result: &DeliveryResult<'_>, delivery: Arc<Delivery>) {
        let became = match result {
            Ok(_) => Ok(()),
            Err((error, _)) => Err(error.rdkafka_error_code().unwrap_or(Code::Unknown)),
        };
        // librdkafka reports each record once.
        let _ = delivery.0.set(became);
    }
}

/// A line of the file, with its line feed.
fn line(record: &BorrowedMessage<'_>, why: &Unplaced, group: &str) -> Vec<u8> {
    let (headers, _) = native::headers(record);
    let (key, key_base64) = optional(record.key());
    let (payload, payload_base64) = optional(record.payload());
    let line = Line {
        time: record.timestamp().to_millis().and_then(dead_letter::rfc_3339),
        kafka_topic: record.topic(),
        partition: record.partition(),
        offset: record.offset(),
        group,
        reason: why.reason,
        detail: &why.detail,
        key,
        key_base64,
        headers: headers.iter().map(|(name, value)| LineHeader::new(name, *value)).collect(),
        payload,
        payload_base64,
    };
    let mut text = serde_json::to_vec(&line).expect("texts and numbers are always JSON");
    text.push(b'\n');
    text
}

/// As [`dead_letter::text_or_base64`]; neither for what is absent.
fn optional(bytes: Option<&[u8]>) -> (Option<&str>, Option<String>) {
    bytes.map_or((None, None), dead_letter::text_or_base64)
}

/// What is absent is left out.
#[derive(Serialize)]
struct Line<'a> {
    /// RFC 3339; the record's own time.
    time: Option<String>,
    kafka_topic: &'a str,
    partition: i32,
    offset: i64,
    group: &'a str,
    reason: &'a str,
    detail: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key_base64: Option<String>,
    /// In their order, without those whose names are no text.
    headers: Vec<LineHeader<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload_base64: Option<String>,
}

#[derive(Serialize)]
struct LineHeader<'a> {
    name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    value_base64: Option<String>,
}

impl<'a> LineHeader<'a> {
    fn new(name: &'a str, value: Option<&'a [u8]>) -> Self {
        let (value, value_base64) = optional(value);
        Self { name, value, value_base64 }
    }
}
