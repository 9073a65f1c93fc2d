//! Apache Kafka as a destination.
//!
//! A record becomes a Kafka record: topic and key by [`route`](crate::route), the payload unchanged and not copied,
//! CloudEvents and user properties as headers, the time of acceptance as its timestamp. The producer is idempotent
//! and waits for all replicas, so that a key's order is kept and a broker's restart doubles nothing.
//!
//! While brokers are away, what has been handed over stays with librdkafka, which has no time-out and a bounded
//! queue; the rest is lag. Only an error that librdkafka cannot mend by itself makes a new producer, and then
//! everything from the last confirmed record on is produced again: at least once, in order. [`ExactlyOnceSink`] pays for
//! transactions, and has each record once.
//!
//! What a topic will never take is a dead letter: it goes to the dead-letter topic or into a file, and only then is
//! confirmed, so that the records behind it go on. What is wrong with the whole connection still stops everything.

pub mod avro;
mod config;
mod consume;
mod dead_letter;
mod exactly_once;
mod headers;
mod native;
mod shape;
mod standing;
mod topics;
mod trouble;
mod watch;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use tidegate_broker::journal::JournalId;
use tidegate_broker::record::{Batch, Offset};
use tokio::task::spawn_blocking;

use crate::health::Part;
use crate::pump::{Sink, SinkError};

pub use crate::route::HeaderStyle;
pub use config::{Config, DeadLetterConfig, TopicsConfig};
pub use consume::{ConsumeConfig, ConsumedTopic, KafkaConsumer, Start};
pub use exactly_once::ExactlyOnceSink;

use dead_letter::Wrong;
use native::{Halt, Heard, Producer};
use shape::Shaper;
use trouble::Verdict;
use watch::Watch;

/// What librdkafka and we count differently in the size of a record, at most; it is not to refuse what fits.
const RECORD_BYTES_SLACK: u32 = 1_000;
/// The least that librdkafka accepts as `message.max.bytes`, and the most.
const RECORD_BYTES: (u32, u32) = (1_000, 1_000_000_000);
/// Where the halving of batches ends.
const BATCH_BYTES_MIN: u32 = 1_000;
/// How long the brokers may take to say how one topic is that has come back.
const TOPIC_PATIENCE: Duration = Duration::from_secs(2);

/// Writes batches to Kafka.
#[derive(Debug)]
pub struct KafkaSink {
    config: Config,
    shaper: Shaper,
    producer: Option<Producer>,
    watch: Watch,
    /// Dead letters that failed to be what they were, held back by the producer until it has room for them.
    again: VecDeque<Offset>,
    doubt: Doubt,
    /// The largest record batch of several records, in bytes: halved whenever a broker does not say what it takes and
    /// finds one too large.
    batch_bytes_max: u32,
}

/// Whether a broker is believed that finds a record too large which our own limits have let through: it says so of the
/// whole record batch, and of each record in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Doubt {
    /// It was not said.
    Nothing,
    /// It was said of the record at this offset, and the limits were asked for anew.
    Limits(Offset),
    /// It was said again: each record goes in a batch of its own, so that it is the record that is too large, and not
    /// its neighbours.
    Batches,
    /// What was doubtful is stored: the next producer is as usual again.
    Settled,
}

impl Doubt {
    /// A broker finds the record at `offset` too large. Returns whether that is doubted.
    fn grows(&mut self, offset: Offset) -> bool {
        *self = match *self {
            Self::Batches => return false,
            Self::Limits(_) => Self::Batches,
            Self::Nothing | Self::Settled => Self::Limits(offset),
        };
        true
    }

    /// Everything before `confirmed` is stored, and if `is_idle` there is nothing else.
    fn after(self, confirmed: Offset, is_idle: bool) -> Self {
        match self {
            Self::Batches if is_idle => Self::Settled,
            Self::Limits(before) if before < confirmed => Self::Nothing,
            Self::Nothing | Self::Limits(_) | Self::Batches | Self::Settled => self,
        }
    }
}

/// How librdkafka let a record go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refusal {
    /// When it was handed over.
    AtOnce,
    /// With its delivery report.
    Reported,
}

impl KafkaSink {
    /// A sink that is not connected yet, for the journal called `journal`; `part` is what `/health` says of it.
    /// Returns every mistake in `config`, if there is one.
    pub fn new(config: &Config, journal: JournalId, part: Part) -> Result<Self, Vec<String>> {
        let mistakes = config.mistakes();
        if !mistakes.is_empty() {
            return Err(mistakes);
        }
        Ok(Self {
            config: config.clone(),
            shaper: Shaper::new(config, journal, part)?,
            producer: None,
            watch: Watch::new(),
            again: VecDeque::new(),
            doubt: Doubt::Nothing,
            batch_bytes_max: u32::MAX,
        })
    }

    /// Ends the producer, if there is one; what it had in flight is offered again by the pump.
    async fn discard(&mut self) {
        self.shaper.forget();
        self.again.clear();
        self.watch = Watch::new();
        if let Some(producer) = self.producer.take() {
            // It joins librdkafka's threads.
            spawn_blocking(move || drop(producer)).await.expect("dropping a producer does not panic");
        }
    }

    /// A producer for what is known of the topics.
    fn begin(&mut self) -> Result<Producer, SinkError> {
        let client = producer_config(&self.config, &mut self.shaper, self.doubt, &mut self.batch_bytes_max);
        Producer::new(&client, self.shaper.topics()).map_err(unusable)
    }

    fn hand_over(&mut self) -> Result<(), SinkError> {
        loop {
            let Some(producer) = &mut self.producer else {
                return Err(SinkError::Retry("Kafka is not connected".into()));
            };
            let shaper = &mut self.shaper;
            let result = match self.again.front() {
                Some(&offset) => producer
                    .hand_over_again(offset, |offset, record| shaper.shape(offset, record))
                    .map(|()| _ = self.again.pop_front()),
                None => match producer.hand_over(|offset, record| shaper.shape(offset, record)) {
                    Ok(()) => return Ok(()),
                    halted @ Err(_) => halted,
                },
            };
            match result {
                Ok(()) => {}
                Err(Halt::Full) => return Ok(()),
                Err(Halt::Refused(offset, code)) => {
                    let is_again = self.again.front() == Some(&offset);
                    self.judge(offset, code, Refusal::AtOnce, is_again)?;
                }
            }
        }
    }

    /// Takes in what librdkafka has to say.
    fn listen(&mut self) -> Result<(), SinkError> {
        let Some(producer) = &mut self.producer else { return Ok(()) };
        let Heard { failed, troubles, fatal } = producer.heard();
        for (offset, code) in failed {
            self.judge(offset, code, Refusal::Reported, false)?;
        }
        if let Some(reason) = fatal {
            return Err(made_anew(&reason));
        }
        for (code, reason) in troubles {
            self.watch.hear(&self.config, code, reason)?;
        }
        Ok(())
    }

    /// The record at `offset` was not stored: makes it a dead letter, or says why everything is to be offered again.
    /// It may be held back already.
    fn judge(
        &mut self,
        offset: Offset,
        code: RDKafkaErrorCode,
        refusal: Refusal,
        held_back: bool,
    ) -> Result<(), SinkError> {
        let producer = self.producer.as_mut().expect("whoever hears of a record has a producer");
        judge(producer, &mut self.shaper, &mut self.doubt, offset, code, refusal)?;
        if !held_back {
            producer.hold_back(offset);
            self.again.push_back(offset);
        }
        Ok(())
    }

    /// Looks at closed topics anew, if that is due; those against which nothing is known any more are tried.
    async fn review(&mut self) {
        review(&self.config, &mut self.shaper, self.producer.as_mut()).await;
    }

    /// Lets go of what is stored, dead letters among it.
    fn release(&mut self) -> Result<Option<Offset>, SinkError> {
        let Some(confirmed) = self.producer.as_mut().and_then(Producer::release) else { return Ok(None) };
        self.shaper.settle(confirmed)?;
        let is_idle = self.producer.as_ref().is_some_and(Producer::is_idle);
        self.doubt = self.doubt.after(confirmed, is_idle);
        self.watch.progressed();
        Ok(Some(confirmed))
    }
}

impl Sink for KafkaSink {
    /// Enough small batches to fill the time of a round trip.
    const WINDOW: usize = 256;

    async fn connect(&mut self) -> Result<Option<Offset>, SinkError> {
        // A producer that still holds batches has failed them: they will be offered again.
        if self.producer.as_ref().is_some_and(|producer| !producer.is_idle()) {
            self.discard().await;
        }
        self.config.read_secrets().map_err(|unreadable| SinkError::Operator(unreadable.join("; ")))?;
        let topics = self.shaper.topics().to_vec();
        let found = topics::look_at(&self.config, topics).await?;
        self.shaper.take_in(found.iter().enumerate(), Instant::now())?;
        self.shaper.fetch_schemas().await?;
        // Limits may be others, and a producer that was complained about may be fatally wrong.
        self.discard().await;
        self.producer = Some(self.begin()?);
        Ok(None)
    }

    async fn write(&mut self, batch: Batch) -> Result<(), SinkError> {
        self.review().await;
        if self.doubt == Doubt::Settled && self.producer.as_ref().is_some_and(Producer::is_idle) {
            self.doubt = Doubt::Nothing;
            self.discard().await;
            self.producer = Some(self.begin()?);
        }
        let Some(producer) = &mut self.producer else {
            return Err(SinkError::Retry("Kafka is not connected".into()));
        };
        if producer.is_idle() {
            self.watch.begun();
        }
        producer.hold(batch);
        self.hand_over()
    }

    async fn confirmed(&mut self) -> Result<Offset, SinkError> {
        loop {
            self.listen()?;
            self.hand_over()?;
            if let Some(confirmed) = self.release()? {
                return Ok(confirmed);
            }
            if let Some(complaint) = self.watch.complaint(&self.config) {
                return Err(complaint);
            }
            let Some(producer) = &self.producer else {
                return Err(SinkError::Retry("Kafka is not connected".into()));
            };
            self.watch.next(&producer.wake()).await;
        }
    }

    async fn lost(&mut self) -> SinkError {
        loop {
            if let Err(error) = self.listen() {
                return error;
            }
            if let Err(error) = self.watch.look(&self.config).await {
                return error;
            }
            let Some(producer) = &self.producer else {
                return SinkError::Retry("Kafka is not connected".into());
            };
            let wake = producer.wake();
            wake.notified().await;
        }
    }
}

/// How librdkafka is to produce for what is known of the topics. Where that is not enough, `batch_bytes_max` is halved.
fn producer_config(
    config: &Config,
    shaper: &mut Shaper,
    doubt: Doubt,
    batch_bytes_max: &mut u32,
) -> ClientConfig {
    let (smallest, largest) = shaper.standings().limits();
    let record_bytes_max = largest.saturating_add(RECORD_BYTES_SLACK).clamp(RECORD_BYTES.0, RECORD_BYTES.1);
    // A batch of several records must fit into any topic.
    let fits = smallest.saturating_sub(RECORD_BYTES_SLACK);
    if doubt == Doubt::Batches {
        *batch_bytes_max = ((*batch_bytes_max).min(fits) / 2).max(BATCH_BYTES_MIN);
    }
    let mut client = config.producer((*batch_bytes_max).min(fits), record_bytes_max);
    if doubt == Doubt::Batches {
        client.set("batch.num.messages", "1");
    }
    client
}

#[expect(clippy::needless_pass_by_value, reason = "as map_err calls it")]
fn unusable(error: KafkaError) -> SinkError {
    SinkError::Operator(format!("Kafka cannot be used with this configuration: {error}"))
}

/// The record at `offset`, which `producer` holds, was not stored: condemns it to be a dead letter, or says why
/// everything is to be offered again.
fn judge(
    producer: &Producer,
    shaper: &mut Shaper,
    doubt: &mut Doubt,
    offset: Offset,
    code: RDKafkaErrorCode,
    refusal: Refusal,
) -> Result<(), SinkError> {
    let record = producer.record(offset).expect("the batch of a record that is judged is held");
    let was_dead = shaper.is_dead_letter(offset);
    let topic = if was_dead { shaper.dead_letter() } else { shaper.topic_of(&record) };
    let topic = topic.expect("a record that was handed over has a topic");
    let name = shaper.topics()[topic].name.clone();
    let wrong = match trouble::verdict(code) {
        Verdict::Reject(trouble::TOO_LARGE) if refusal == Refusal::Reported && doubt.grows(offset) => {
            return Err(SinkError::Retry(
                "Kafka takes only smaller records than before; asking for its limits".into(),
            ));
        }
        Verdict::Reject(trouble::TOO_LARGE) if refusal == Refusal::Reported => Wrong::new(
            trouble::TOO_LARGE,
            format!(
                "its payload has {} bytes, and Kafka finds that too large for {name}; raise its max.message.bytes to carry \
                 such records",
                record.payload.len()
            ),
        ),
        Verdict::Reject(trouble::TOO_LARGE) => {
            shape::too_large(&record, &name, shaper.standings().batch_bytes_max(topic))
        }
        Verdict::Reject(reason) => Wrong::new(reason, format!("Kafka will not store it in {name}: {code}")),
        Verdict::Topic(reason) => {
            if reason == trouble::UNKNOWN_TOPIC && shaper.standings().is_trusted(topic) {
                return Err(SinkError::Retry(trouble::topic_detail(&name, reason, code)));
            }
            let wrong = shaper.standings().close(topic, Instant::now(), || {
                Wrong::new(reason, trouble::topic_detail(&name, reason, code))
            });
            shaper.any_open()?;
            wrong
        }
        // Only a producer that has failed lets go of its records, and that may be heard before the failure itself.
        Verdict::Again if trouble::lets_go(code) => return Err(made_anew(&code.to_string())),
        Verdict::Again => return Err(SinkError::Retry(format!("Kafka did not store a record: {code}"))),
        Verdict::Operator => {
            return Err(SinkError::Operator(format!(
                "Kafka does not store records: {code}; check the rights of this client"
            )));
        }
    };
    if was_dead {
        shaper.condemn_to_file(offset, &wrong);
    } else {
        shaper.condemn(offset, wrong);
    }
    Ok(())
}

/// Looks at closed topics anew, if that is due; those against which nothing is known any more are tried.
async fn review(config: &Config, shaper: &mut Shaper, producer: Option<&mut Producer>) {
    let due = shaper.standings().due(Instant::now());
    if due.is_empty() {
        return;
    }
    let topics: Vec<_> = due.iter().map(|&index| shaper.topics()[index].clone()).collect();
    // What is wrong with the whole connection the producer tells.
    let Ok(found) = topics::look_at(config, topics).await else { return };
    if let Some(producer) = producer {
        for (&index, found) in due.iter().zip(&found) {
            if found.wrong.is_none() {
                producer.ask_for_topic(index, TOPIC_PATIENCE);
            }
        }
    }
    // They are closed, so none is waited for.
    let _ = shaper.take_in(due.into_iter().zip(&found), Instant::now());
}

/// The producer has failed for good.
fn made_anew(reason: &str) -> SinkError {
    SinkError::Retry(format!(
        "the Kafka producer has to be made anew: {reason}; records from the last confirmed one on are sent again"
    ))
}

#[cfg(test)]
mod tests {
    use tidegate_broker::record::{BatchBuilder, Entry, Properties, Qos, Record, Timestamp};
    use tidegate_broker::topic::TopicName;

    use super::*;

    fn batch(base: u64) -> Batch {
        let mut builder = BatchBuilder::new(Offset(base), Timestamp(1), 0, 64);
        builder.push(&Entry::Record(Record {
            time: Timestamp(1),
            client: "c",
            topic: TopicName::new("sensors/d/x").unwrap(),
            properties: Properties::NONE,
            payload: b"1",
            qos: Qos::AtLeastOnce,
            retain: false,
            packet_id: 1,
        }));
        builder.finish(|_| {}).1
    }

    /// A sink with a producer that reaches nobody, as if it had been connected.
    fn sink() -> KafkaSink {
        let config = Config { bootstrap_servers: "127.0.0.1:1".into(), ..Config::default() };
        let mut sink = KafkaSink::new(&config, JournalId(1), Part::new("kafka")).unwrap();
        let producer = Producer::new(&config.producer(1_000_000, 1_000_000), sink.shaper.topics()).unwrap();
        sink.producer = Some(producer);
        sink
    }

    async fn next(sink: &mut KafkaSink) -> Result<Offset, SinkError> {
        tokio::time::timeout(Duration::from_secs(20), sink.confirmed()).await.expect("it says something")
    }

    #[tokio::test]
    async fn brokers_that_are_away_are_told_once_and_nothing_is_offered_again() {
        let mut sink = sink();
        sink.write(batch(0)).await.unwrap();
        let told = next(&mut sink).await.unwrap_err();
        assert!(matches!(told, SinkError::Waiting(_)), "{told:?}");
        assert!(told.to_string().contains("127.0.0.1:1 cannot be reached"), "{told}");
        sink.write(batch(1)).await.unwrap();
        let again = tokio::time::timeout(Duration::from_secs(1), sink.confirmed()).await;
        assert!(again.is_err(), "it was said once: {again:?}");
    }

    #[tokio::test]
    async fn a_fatal_error_asks_for_everything_again_and_the_old_producer_is_let_go() {
        let mut sink = sink();
        sink.write(batch(0)).await.unwrap();
        sink.producer.as_ref().unwrap().fail_fatally();
        let error = loop {
            match next(&mut sink).await.unwrap_err() {
                SinkError::Waiting(_) => {}
                other @ (SinkError::Retry(_) | SinkError::Operator(_)) => break other,
            }
        };
        assert!(matches!(error, SinkError::Retry(_)), "{error:?}");
        assert!(error.to_string().contains("made anew"), "{error}");
        let error = sink.write(batch(0)).await.unwrap_err();
        assert!(matches!(error, SinkError::Retry(_)), "a producer that failed takes nothing: {error:?}");

        // There is nobody to connect to, but what was in flight is offered again, so it must be gone.
        sink.connect().await.unwrap_err();
        assert!(sink.producer.is_none());
    }
}
