//! Says how each record is produced: where to, under which key, with which headers, and as which bytes.
//!
//! A record that its Kafka topic will not take is shaped as a dead letter: the payload unchanged, under its key, with
//! its headers and behind them why. What the dead-letter topic will not take goes into the file and is not produced.
//! So is a record whose payload does not fit the schema of a route that encodes.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tidegate_broker::journal::JournalId;
use tidegate_broker::record::{Offset, Record};
use tokio::task::spawn_blocking;

use crate::health::Part;
use crate::pump::SinkError;
use crate::route::{Destination, HeaderStyle, KafkaTopic, Routes};

use super::avro::Catalog;
use super::config::Config;
use super::consume::came_from;
use super::dead_letter::{self, DeadLetters, Wrong};
use super::headers::{HeaderSink as _, HeaderWriter};
use super::native::{Headers, Outgoing, Value};
use super::standing::{Found, Standings};
use super::trouble;

/// Room for the headers of CloudEvents and one of the publisher's; the list grows when there are more.
const HEADERS_USUAL: usize = 7;
/// The reason of a dead letter whose payload does not fit the schema.
const NO_FIT: &str = "schema";

/// Shapes records, in offset order. What changes from record to record is written into buffers that are kept.
///
/// A sink that has to begin anew calls [`Shaper::forget`]; whoever knows better than the shaper that a record will not
/// be taken says so with [`Shaper::condemn`] before it is offered again. [`Shaper::settle`] comes before a
/// confirmation.
#[derive(Debug)]
pub(super) struct Shaper {
    routes: Routes,
    /// The topics of the routes, and behind them the dead-letter topic, if there is one.
    topics: Vec<KafkaTopic>,
    dead_letter: Option<usize>,
    standings: Standings,
    dead: DeadLetters,
    /// Which headers the records of each route carry.
    styles: Vec<HeaderStyle>,
    headers: HeaderWriter,
    /// What routes encode by; `None` if none does.
    catalog: Option<Arc<Catalog>>,
    record_bytes_max: u32,
    unrouted: metrics::Counter,
    returning: metrics::Counter,
}

impl Shaper {
    /// For records of `journal`, on their way to the sink whose health is `part`. Returns every mistake in the routes,
    /// if there is one.
    pub(super) fn new(config: &Config, journal: JournalId, part: Part) -> Result<Self, Vec<String>> {
        let routes = Routes::new(&config.routes)?;
        let mut topics = routes.topics().to_vec();
        let dead_letter = config.dead_letter.topic.as_ref().map(|name| {
            topics.push(KafkaTopic { name: name.clone(), partitions: None, retention_ms: None });
            topics.len() - 1
        });
        let patience = Duration::from_millis(config.dead_letter.patience_ms.into());
        let unrouted = metrics::counter!("tidegate_sink_unrouted_total", "sink" => part.name());
        let returning = metrics::counter!("tidegate_sink_returning_total", "sink" => part.name());
        Ok(Self {
            routes,
            standings: Standings::new(&topics, config.record_bytes_max, dead_letter, patience),
            topics,
            dead_letter,
            dead: DeadLetters::new(&config.dead_letter, journal, part),
            styles: config.routes.iter().map(|route| route.headers.unwrap_or(config.headers)).collect(),
            headers: HeaderWriter::new(journal.0, &config.source),
            catalog: Catalog::new(&config.schema_registry, &config.routes),
            record_bytes_max: config.record_bytes_max,
            unrouted,
            returning,
        })
    }

    /// The Kafka topics that records can go to; [`Outgoing::topic`] counts in them.
    pub(super) fn topics(&self) -> &[KafkaTopic] {
        &self.topics
    }

    /// Makes sure that every route that encodes has a schema; nothing is to be shaped before.
    pub(super) async fn fetch_schemas(&self) -> Result<(), SinkError> {
        match self.catalog.clone() {
            None => Ok(()),
            Some(catalog) => {
                spawn_blocking(move || catalog.prepare()).await.expect("asking a registry does not panic")
            }
        }
    }

    /// How the topics stand.
    pub(super) const fn standings(&mut self) -> &mut Standings {
        &mut self.standings
    }

    /// Takes in what was found of the topics with these indices. `Err` if one is missing and still waited for.
    pub(super) fn take_in<'f>(
        &mut self,
        found: impl IntoIterator<Item = (usize, &'f Found)>,
        now: Instant,
    ) -> Result<(), SinkError> {
        let mut waited_for = None;
        for (index, found) in found {
            // What is too large for a route may still be kept where it is a dead letter.
            let told = found.batch_bytes_max.filter(|_| self.dead_letter == Some(index));
            let limit = told.unwrap_or(self.record_bytes_max);
            let waits = self.standings.take_in(index, found, limit, now);
            waited_for = waited_for.or(waits);
        }
        self.any_open()?;
        match waited_for {
            None => Ok(()),
            Some(wrong) => Err(SinkError::Retry(format!(
                "{}; if that takes longer than kafka.dead_letter.patience, its records are dead letters",
                wrong.detail
            ))),
        }
    }

    /// `Err` if no topic takes records, the dead-letter topic neither.
    pub(super) fn any_open(&self) -> Result<(), SinkError> {
        match self.standings.all_closed() {
            None => Ok(()),
            Some(wrong) => Err(SinkError::Operator(format!(
                "Kafka takes records for none of the topics; of the first: {}",
                wrong.detail
            ))),
        }
    }

    /// How `record`, which lies at `offset`, is produced; `None` if it is not.
    pub(super) fn shape<'r>(&mut self, offset: Offset, record: &Record<'r>) -> Option<Outgoing<'r>> {
        let Some(destination) = self.routes.destination(record.topic, record.client, record.payload) else {
            self.unrouted.increment(1);
            return None;
        };
        let from_kafka = came_from(record.client, record.packet_id);
        if from_kafka.is_some_and(|topic| topic == self.topics[destination.topic].name) {
            self.returning.increment(1);
            return None;
        }
        if let Some((wrong, to_file)) = self.dead.condemned(offset) {
            return self.bury(offset, record, destination, wrong, to_file);
        }
        if let Some(wrong) = self.standings.closed(destination.topic).cloned() {
            return self.bury(offset, record, destination, wrong, false);
        }
        let value = match self.value(destination.route, record) {
            Ok(value) => value,
            Err(wrong) => return self.bury(offset, record, destination, wrong, false),
        };
        let topic = destination.topic;
        let style = match self.styles[destination.route] {
            // Whatever else is wanted, a record that can come back has to say where it was.
            HeaderStyle::None if from_kafka.is_some() => HeaderStyle::Minimal,
            style @ (HeaderStyle::CloudEvents | HeaderStyle::Minimal | HeaderStyle::None) => style,
        };
        let headers = (style != HeaderStyle::None).then(|| self.headers_of(style, offset, record));
        let key = destination.key.clone().map(bytes);
        let outgoing = Outgoing { topic, key, value, headers };
        let (needed, limit) = (outgoing.batch_bytes(record), self.standings.batch_bytes_max(topic));
        if needed > limit as usize {
            let wrong = too_large(record, &self.topics[topic].name, limit);
            return self.bury(offset, record, destination, wrong, false);
        }
        self.standings.hand_over(topic, offset);
        Some(outgoing)
    }

    /// What becomes the value of `record`, which goes the way of the route counted `route`.
    fn value(&self, route: usize, record: &Record<'_>) -> Result<Value, Wrong> {
        let encoded = self.catalog.as_ref().and_then(|catalog| catalog.encode(route, record.payload));
        match encoded {
            None => Ok(Value::Payload),
            Some(Ok(bytes)) => Ok(Value::Encoded(bytes)),
            Some(Err(misfit)) => {
                Err(Wrong::new(NO_FIT, format!("it does not fit the schema of its route: {misfit}")))
            }
        }
    }

    /// Which of the topics `record` belongs to, whether it takes it or not.
    pub(super) fn topic_of(&mut self, record: &Record<'_>) -> Option<usize> {
        Some(self.routes.destination(record.topic, record.client, record.payload)?.topic)
    }

    /// The record at `offset` is a dead letter whenever it is offered, until it is settled.
    pub(super) fn condemn(&mut self, offset: Offset, wrong: Wrong) {
        self.dead.condemn(offset, wrong);
    }

    /// The dead-letter topic does not take the record at `offset` either, so it goes into the file.
    pub(super) fn condemn_to_file(&mut self, offset: Offset, wrong: &Wrong) {
        self.dead.condemn_to_file(offset, wrong);
    }

    /// Whether the record at `offset` was shaped as a dead letter and is not settled.
    pub(super) fn is_dead_letter(&self, offset: Offset) -> bool {
        self.dead.has(offset)
    }

    /// The index of the dead-letter topic, if there is one.
    pub(super) const fn dead_letter(&self) -> Option<usize> {
        self.dead_letter
    }

    /// What was not handed over, because it went into the file of dead letters, is on disk when this returns.
    pub(super) fn sync(&mut self) -> Result<(), SinkError> {
        self.dead.sync()
    }

    /// Everything before `confirmed` is stored. `Err` if that is not so, because the file of dead letters cannot be
    /// written.
    pub(super) fn settle(&mut self, confirmed: Offset) -> Result<(), SinkError> {
        self.standings.settle(confirmed);
        self.dead.settle(confirmed)
    }

    /// What is not settled is offered again.
    pub(super) fn forget(&mut self) {
        self.dead.forget();
    }

    fn headers_of(&mut self, style: HeaderStyle, offset: Offset, record: &Record<'_>) -> Headers {
        let mut headers = Headers::new(HEADERS_USUAL);
        self.headers.write(style, offset, record, &mut headers);
        headers
    }

    /// `record` as a dead letter; `None` if it went into the file.
    fn bury<'r>(
        &mut self,
        offset: Offset,
        record: &Record<'r>,
        destination: Destination<'r>,
        wrong: Wrong,
        to_file: bool,
    ) -> Option<Outgoing<'r>> {
        let key = destination.key.map(bytes);
        let open = self.dead_letter.filter(|topic| !to_file && self.standings.closed(*topic).is_none());
        let (wrong, key) = match open {
            None => (wrong, key),
            Some(topic) => {
                // Without any header nobody could tell where it is from.
                let style = match self.styles[destination.route] {
                    HeaderStyle::None => HeaderStyle::Minimal,
                    style @ (HeaderStyle::CloudEvents | HeaderStyle::Minimal) => style,
                };
                let mut headers = self.headers_of(style, offset, record);
                headers.add(dead_letter::REASON, wrong.reason.as_bytes());
                headers.add(dead_letter::DETAIL, dead_letter::shortened(&wrong.detail).as_bytes());
                headers.add(dead_letter::KAFKA_TOPIC, self.topics[destination.topic].name.as_bytes());
                let outgoing = Outgoing { topic, key, value: Value::Payload, headers: Some(headers) };
                if outgoing.batch_bytes(record) <= self.standings.batch_bytes_max(topic) as usize {
                    self.standings.hand_over(topic, offset);
                    self.dead.send(offset, record, wrong);
                    return Some(outgoing);
                }
                (wrong, outgoing.key)
            }
        };
        let to = (self.topics[destination.topic].name.as_str(), key.as_deref());
        self.dead.write(offset, record, wrong, to);
        None
    }
}

/// `record` does not fit into its topic, which takes record batches of `limit` bytes.
pub(super) fn too_large(record: &Record<'_>, topic: &str, limit: u32) -> Wrong {
    let bytes = record.payload.len();
    Wrong::new(
        trouble::TOO_LARGE,
        format!(
            "its payload has {bytes} bytes, and {topic} takes records of {limit} bytes with key and headers, the \
             smaller of kafka.max_record_bytes and its max.message.bytes; raise both to carry such records"
        ),
    )
}

fn bytes(key: Cow<'_, str>) -> Cow<'_, [u8]> {
    match key {
        Cow::Borrowed(key) => Cow::Borrowed(key.as_bytes()),
        Cow::Owned(key) => Cow::Owned(key.into_bytes()),
    }
}
