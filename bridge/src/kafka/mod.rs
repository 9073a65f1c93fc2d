//! Apache Kafka as a destination.
//!
//! A record becomes a Kafka record: topic and key by [`route`](crate::route), the payload unchanged and not copied,
//! CloudEvents and user properties as headers, the time of acceptance as its timestamp. The producer is idempotent
//! and waits for all replicas, so that a key's order is kept and a broker's restart doubles nothing.
//!
//! While brokers are away, what has been handed over stays with librdkafka, which has no time-out and a bounded
//! queue; the rest is lag. Only an error that librdkafka cannot mend by itself makes a new producer, and then
//! everything from the last confirmed record on is produced again: at least once, in order.

mod config;
mod headers;
mod native;
mod shape;
mod topics;
mod trouble;
mod watch;

use rdkafka::error::RDKafkaErrorCode;
use tidegate_broker::journal::JournalId;
use tidegate_broker::record::{Batch, Offset};
use tokio::runtime::Handle;
use tokio::task::spawn_blocking;

use crate::health::Part;
use crate::pump::{Reject, Rejects, Sink, SinkError};

pub use crate::route::HeaderStyle;
pub use config::{Config, TopicsConfig};

use native::{Event, Halt, Producer};
use shape::Shaper;
use trouble::Verdict;
use watch::Watch;

/// Writes batches to Kafka.
#[derive(Debug)]
pub struct KafkaSink {
    config: Config,
    shaper: Shaper,
    rejects: Rejects,
    /// Rejects of batches not wholly confirmed, in no particular order.
    rejected: Vec<Reject>,
    producer: Option<Producer>,
    watch: Watch,
    /// A broker refused a record as too large that our own limit had let through; once is answered by asking for the
    /// limit again, twice by believing it.
    limit_doubted_at: Option<Offset>,
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
            shaper: Shaper::new(config, journal, part.name())?,
            rejects: Rejects::new(part),
            rejected: Vec::new(),
            producer: None,
            watch: Watch::new(),
            limit_doubted_at: None,
        })
    }

    /// Ends the producer, if there is one; what it had in flight is offered again by the pump.
    async fn discard(&mut self) {
        self.rejected.clear();
        self.watch = Watch::new();
        if let Some(producer) = self.producer.take() {
            // It joins librdkafka's threads.
            spawn_blocking(move || drop(producer)).await.expect("dropping a producer does not panic");
        }
    }

    fn hand_over(&mut self) -> Result<(), SinkError> {
        let Some(producer) = &mut self.producer else {
            return Err(SinkError::Retry("Kafka is not connected".into()));
        };
        loop {
            match producer.hand_over(|offset, record| self.shaper.shape(offset, record)) {
                Ok(()) | Err(Halt::Full) => return Ok(()),
                Err(Halt::Refused(offset, code)) => match trouble::verdict(code) {
                    Verdict::Reject(reason) => {
                        let reject = reject(producer, &self.config, offset, reason, code);
                        self.rejected.push(reject);
                    }
                    Verdict::Again => {
                        return Err(SinkError::Retry(format!("Kafka takes no records: {code}")));
                    }
                    Verdict::Operator => {
                        return Err(SinkError::Operator(format!("Kafka takes no records: {code}")));
                    }
                },
            }
        }
    }

    /// Takes in what librdkafka has to say.
    fn listen(&mut self) -> Result<(), SinkError> {
        let Some(producer) = &mut self.producer else { return Ok(()) };
        let mut failed = Vec::new();
        let mut said = Vec::new();
        producer.poll(|event| match event {
            Event::Failed(offset, code) => failed.push((offset, code)),
            Event::Trouble { code, reason, fatal } => said.push((code, reason, fatal)),
        });
        for (offset, code) in failed {
            self.judge(offset, code)?;
        }
        for (code, reason, fatal) in said {
            self.hear(code, reason, fatal)?;
        }
        Ok(())
    }

    fn judge(&mut self, offset: Offset, code: RDKafkaErrorCode) -> Result<(), SinkError> {
        let producer = self.producer.as_ref().expect("whoever listens has a producer");
        match trouble::verdict(code) {
            Verdict::Reject("too_large") if self.limit_doubted_at.is_none_or(|doubted| doubted != offset) => {
                self.limit_doubted_at = Some(offset);
                Err(SinkError::Retry(
                    "Kafka takes only smaller records than before; asking for its limit".into(),
                ))
            }
            Verdict::Reject(reason) => {
                let reject = reject(producer, &self.config, offset, reason, code);
                self.rejected.push(reject);
                Ok(())
            }
            // Only a producer that has failed lets go of its records, and that may be heard before the failure itself.
            Verdict::Again if trouble::lets_go(code) => Err(made_anew(&code.to_string())),
            Verdict::Again => Err(SinkError::Retry(format!("Kafka did not store a record: {code}"))),
            Verdict::Operator => Err(SinkError::Operator(format!(
                "Kafka does not store records: {code}; check the rights of this client"
            ))),
        }
    }

    fn hear(&mut self, code: RDKafkaErrorCode, reason: String, fatal: bool) -> Result<(), SinkError> {
        tracing::debug!("Kafka: {code}: {reason}");
        if fatal || code == RDKafkaErrorCode::Fatal {
            return Err(made_anew(&reason));
        }
        self.watch.hear(&self.config, code, reason)
    }

    /// Lets go of what is stored, and counts what was rejected on the way.
    fn release(&mut self) -> Option<Offset> {
        let confirmed = self.producer.as_mut()?.release()?;
        if !self.rejected.is_empty() {
            self.rejected.sort_by_key(|reject| reject.offset);
            let settled = self.rejected.partition_point(|reject| reject.offset < confirmed);
            for reject in self.rejected.drain(..settled) {
                self.rejects.add(&reject);
            }
        }
        self.watch.progressed();
        Some(confirmed)
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
        let (config, topics) = (self.config.clone(), self.shaper.topics().to_vec());
        let runtime = Handle::current();
        let record_bytes_max = spawn_blocking(move || topics::prepare(&config, &topics, &runtime))
            .await
            .expect("preparing does not panic")?;
        // The limit may be another, and a producer that was complained about may be fatally wrong.
        self.discard().await;
        let producer = Producer::new(&self.config.producer(record_bytes_max), self.shaper.topics()).map_err(
            |error| SinkError::Operator(format!("Kafka cannot be used with this configuration: {error}")),
        )?;
        self.producer = Some(producer);
        Ok(None)
    }

    async fn write(&mut self, batch: Batch) -> Result<(), SinkError> {
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
            if let Some(confirmed) = self.release() {
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

/// The producer has failed for good.
fn made_anew(reason: &str) -> SinkError {
    SinkError::Retry(format!(
        "the Kafka producer has to be made anew: {reason}; records from the last confirmed one on are sent again"
    ))
}

/// What to count and tell of the record at `offset`, which `producer` holds.
fn reject(
    producer: &Producer,
    config: &Config,
    offset: Offset,
    reason: &'static str,
    code: RDKafkaErrorCode,
) -> Reject {
    let record = producer.record(offset);
    let bytes = record.map_or(0, |record| record.payload.len());
    let topic = record.map(|record| record.topic.as_str().to_owned()).unwrap_or_default();
    let detail = match reason {
        "too_large" => format!(
            "its payload has {bytes} bytes, and the smaller of kafka.max_record_bytes = {} and the topics' \
             max.message.bytes is the limit; raise both to carry such records",
            config.record_bytes_max
        ),
        _ => format!("Kafka will not store it: {code}"),
    };
    Reject { offset, topic, reason, detail }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

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
        let producer = Producer::new(&config.producer(1_000_000), sink.shaper.topics()).unwrap();
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
