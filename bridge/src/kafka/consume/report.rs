//! What the consumer says of itself: its [`Part`] of `/health`, its metrics, and one log line per change.
//!
//! Every consumed record is counted once more as published, rejected or passed over, so that
//! consumed = published + rejected + passed over, except for what is just under way.

use std::time::{Duration, Instant};

use metrics::{Counter, Gauge, counter, gauge};

use rdkafka::message::{BorrowedMessage, Message as _};

use crate::health::{Lag, Part, State};

use super::dead_letter::Place;
use super::place::Unplaced;

/// Rejects less than this apart belong to one burst, of which only the first is logged.
const BURST_GAP: Duration = Duration::from_secs(10);
/// A consumer that has rejected a record stays degraded for this long.
const REJECTS_REMEMBERED: Duration = Duration::from_secs(60);

/// What is counted of one Kafka topic.
#[derive(Debug)]
struct Counted {
    topic: String,
    consumed: Counter,
    published: Counter,
    headers_left_out: Counter,
    lag: Gauge,
}

/// Tells what the consumer does.
#[derive(Debug)]
pub(super) struct Reporter {
    part: Part,
    /// In the order of the configuration.
    topics: Vec<Counted>,
    /// What was last logged of its state.
    logged: Option<(State, Option<String>)>,
    reject: Option<(Instant, String)>,
    untold: u64,
}

impl Reporter {
    pub(super) fn new<'a>(part: Part, topics: impl Iterator<Item = &'a str>) -> Self {
        let source = part.name();
        let counted = |topic: &str| Counted {
            topic: topic.to_owned(),
            consumed: counter!("tidegate_source_consumed_total", "source" => source, "topic" => topic.to_owned()),
            published: counter!("tidegate_source_published_total", "source" => source, "topic" => topic.to_owned()),
            headers_left_out: counter!(
                "tidegate_source_headers_left_out_total", "source" => source, "topic" => topic.to_owned()
            ),
            lag: gauge!("tidegate_source_lag_entries", "source" => source, "topic" => topic.to_owned()),
        };
        let topics = topics.map(counted).collect();
        Self { part, topics, logged: None, reject: None, untold: 0 }
    }

    /// A record of the topic with this index came, of which so many headers do not travel on.
    pub(super) fn consumed(&self, topic: usize, headers_left_out: u64) {
        self.topics[topic].consumed.increment(1);
        self.topics[topic].headers_left_out.increment(headers_left_out);
    }

    /// It is durable in the journal.
    pub(super) fn published(&self, topic: usize) {
        self.topics[topic].published.increment(1);
    }

    /// It is not published, for `reason`, and nothing is wrong with it.
    pub(super) fn passed_over(&self, topic: usize, reason: &'static str) {
        let (source, topic) = (self.part.name(), self.topics[topic].topic.clone());
        counter!("tidegate_source_passed_over_total", "source" => source, "topic" => topic, "reason" => reason)
            .increment(1);
    }

    /// It can be published nowhere, and is kept in this place, told as such.
    pub(super) fn rejected(
        &mut self,
        topic: usize,
        record: &BorrowedMessage<'_>,
        why: &Unplaced,
        (place, kept): (Place, &str),
    ) {
        let (source, topic) = (self.part.name(), &self.topics[topic].topic);
        counter!(
            "tidegate_source_rejected_total", "source" => source, "topic" => topic.clone(), "reason" => why.reason
        )
        .increment(1);
        let to = match place {
            Place::Topic => "topic",
            Place::File => "file",
            Place::Nowhere => "nowhere",
        };
        counter!("tidegate_source_dead_letters_total", "source" => source, "to" => to).increment(1);
        let told = format!(
            "the record at offset {} of partition {} of the Kafka topic {topic} was rejected: {}; {kept}",
            record.offset(),
            record.partition(),
            why.detail
        );
        let now = Instant::now();
        if self.reject.as_ref().is_none_or(|(last, _)| now.duration_since(*last) >= BURST_GAP) {
            tracing::warn!(source, untold = self.untold, "{source}: {told}; the records behind it go on");
            self.untold = 0;
        } else {
            self.untold += 1;
        }
        self.reject = Some((now, told));
        self.part.update(|report| report.rejected += 1);
    }

    /// How many records of each topic, by its index, are not settled yet.
    pub(super) fn lagging(&mut self, lags: &[u64]) {
        #[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
        for (counted, lag) in self.topics.iter().zip(lags) {
            counted.lag.set(*lag as f64);
        }
        let lag = Lag { entries: lags.iter().sum(), age_ms: 0 };
        self.part.update(|report| report.lag = Some(lag));
    }

    /// It works.
    pub(super) fn working(&mut self) {
        let rejecting = self.reject.as_ref().filter(|(at, _)| at.elapsed() < REJECTS_REMEMBERED);
        match rejecting.map(|(_, told)| told.clone()) {
            // It was logged when it came.
            Some(told) => self.part.set(State::Degraded, Some(told)),
            None => self.part.set(State::Up, None),
        }
        let source = self.part.name();
        match self.logged.take() {
            None => tracing::info!(source, "{source} consumes"),
            Some((State::Up, _)) => {}
            Some(_) => tracing::info!(source, "{source} consumes again"),
        }
        self.logged = Some((State::Up, None));
    }

    /// It does not work, or not fully.
    pub(super) fn troubled(&mut self, state: State, detail: &str) {
        let now = Some((state, Some(detail.to_owned())));
        self.part.set(state, Some(detail.to_owned()));
        if self.logged != now {
            let source = self.part.name();
            tracing::warn!(
                source,
                "{source}: {detail}; what is in Kafka stays there and is consumed afterwards"
            );
            self.logged = now;
        }
    }
}
