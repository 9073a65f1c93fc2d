//! Carries what one consumer consumes into the journal, in order, and commits what is durable.
//!
//! What always holds: records are published in the order of their partition, each only when everything before it was
//! accepted, and none more than once by one consumer; at most one series of [`RECORDS_MAX`] records is under way. What
//! the journal does not take now is kept here and tried again, and meanwhile the partitions are paused.

use std::collections::VecDeque;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::message::{BorrowedMessage, Message as _};
use tidegate_broker::record::{Qos, Refused};
use tidegate_broker::server::{self, LocalPublish, PublishError, SeriesOutcome};
use tokio::runtime::Handle;

use crate::health::State;

use super::super::config::Config;
use super::super::{native, trouble};
use super::config::ConsumedTopic;
use super::dead_letter::{DeadLetters, Letter};
use super::group::{Group, Partition};
use super::headers::{self, Header};
use super::origin::{self, Origin};
use super::place::{Unplaced, place};
use super::report::Reporter;
use super::stop::Stop;
use super::template::Template;

/// Records that are published as one series.
const RECORDS_MAX: usize = 2_048;
/// A series takes no further record once it has this many bytes of payload.
const BYTES_MAX: usize = 1 << 20;
/// How long to wait for records.
const POLL: Duration = Duration::from_millis(200);
/// Offsets are committed this often at most: after a crash, what was published since comes again.
const COMMIT_INTERVAL: Duration = Duration::from_millis(50);
/// Pauses before the journal is tried again: the first, and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));
/// How often state and lag are told.
const TELL_INTERVAL: Duration = Duration::from_millis(500);
/// How often it is asked where partitions end while none is consumed.
const ENDS_INTERVAL: Duration = Duration::from_secs(5);
/// How long Kafka may take to say so.
const ENDS_TIMEOUT: Duration = Duration::from_secs(1);
/// While something is wrong with single topics, the consumer is made anew this often.
const TROUBLE_PATIENCE: Duration = Duration::from_secs(60);
/// A rebalance that takes longer is told.
const JOIN_PATIENCE: Duration = Duration::from_secs(15);

/// What becomes of the records of one Kafka topic.
#[derive(Debug)]
pub(super) struct Route {
    pub(super) topic: String,
    client: String,
    template: Template,
    qos: Qos,
    retain: bool,
}

impl Route {
    /// From what is configured, which must have no mistakes.
    pub(super) fn new(consumed: &ConsumedTopic) -> Self {
        Self {
            topic: consumed.topic.clone(),
            client: origin::client(&consumed.topic),
            template: Template::new(&consumed.mqtt).expect("mistakes were looked for"),
            qos: Qos::from_bits(consumed.qos).expect("mistakes were looked for"),
            retain: consumed.retain,
        }
    }
}

/// Where a carrier works.
#[derive(Debug)]
pub(super) struct Context<'a> {
    pub(super) config: &'a Config,
    pub(super) group: &'a str,
    /// The id of the journal, in hexadecimal.
    pub(super) journal: &'a str,
    pub(super) routes: &'a [Route],
    pub(super) broker: &'a server::Handle,
    pub(super) stop: &'a Stop,
    /// Serves what has to be asked of Kafka.
    pub(super) runtime: &'a Handle,
    /// Topics that do not exist.
    pub(super) missing: Vec<String>,
}

/// Why a carrier ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum End {
    /// It was asked to, or the broker has stopped.
    Stopped,
    /// The consumer has to be made anew.
    Failed(State, String),
}

/// A record that is consumed and not settled.
#[derive(Debug)]
struct Pending<'a> {
    route: usize,
    record: BorrowedMessage<'a>,
    fate: Fate,
}

impl Pending<'_> {
    fn payload_bytes(&self) -> usize {
        self.record.payload().map_or(0, <[u8]>::len)
    }

    fn partition(&self) -> Partition {
        (self.record.topic().to_owned(), self.record.partition())
    }

    fn is_of(&self, (topic, partition): &Partition) -> bool {
        self.record.partition() == *partition && self.record.topic() == topic
    }
}

#[derive(Debug)]
enum Fate {
    Publish(LocalPublish),
    PassedOver(&'static str),
    Reject(Letter),
}

/// Carries until it is told to stop or the consumer fails.
pub(super) struct Carrier<'a> {
    consumer: &'a BaseConsumer<Group>,
    context: Context<'a>,
    report: &'a mut Reporter,
    pending: VecDeque<Pending<'a>>,
    pending_bytes: usize,
    dead: DeadLetters<'a>,
    /// What is wrong with single topics, until they are consumed again.
    troubled: Vec<(String, String)>,
    /// Since when nothing was.
    untroubled_at: Instant,
    /// The assignment that was paused, by its number.
    paused: Option<u64>,
    committed_at: Instant,
    told_at: Instant,
    ends_at: Instant,
    joined_at: Instant,
    was_joined: bool,
}

impl<'a> Carrier<'a> {
    pub(super) fn new(
        consumer: &'a BaseConsumer<Group>,
        context: Context<'a>,
        report: &'a mut Reporter,
    ) -> Self {
        let now = Instant::now();
        let dead = DeadLetters::new(context.config, context.group, context.runtime);
        let troubled = context.missing.iter().map(|topic| (topic.clone(), missing(topic))).collect();
        Self {
            consumer,
            context,
            report,
            pending: VecDeque::new(),
            pending_bytes: 0,
            dead,
            troubled,
            untroubled_at: now,
            paused: None,
            committed_at: now,
            told_at: now,
            ends_at: now,
            joined_at: now,
            was_joined: false,
        }
    }

    pub(super) fn run(mut self) -> End {
        loop {
            if self.context.stop.deadline().is_some() {
                return self.finish();
            }
            let carried = self.collect().and_then(|()| self.settle());
            if let Err(end) = carried {
                self.finish();
                return end;
            }
            self.commit();
            self.tell(None);
            if let Some((_, detail)) = self.troubled.first()
                && self.untroubled_at.elapsed() >= TROUBLE_PATIENCE
            {
                // librdkafka tells of a change for the worse only.
                let detail = detail.clone();
                self.finish();
                return End::Failed(State::Degraded, detail);
            }
        }
    }

    /// What is settled is committed, before the partitions are given back.
    fn finish(&self) -> End {
        self.consumer.context().commit(self.consumer, CommitMode::Sync);
        End::Stopped
    }

    /// Takes in what has come, until there is enough for a series.
    fn collect(&mut self) -> Result<(), End> {
        let is_due = self.consumer.context().is_commit_due();
        let mut timeout = if is_due { COMMIT_INTERVAL } else { POLL };
        while self.pending.len() < RECORDS_MAX && self.pending_bytes < BYTES_MAX {
            match self.consumer.poll(timeout) {
                None => break,
                Some(Ok(record)) => self.take(record),
                Some(Err(error)) => self.hear(&error)?,
            }
            timeout = Duration::ZERO;
        }
        self.let_go_of_revoked()
    }

    fn take(&mut self, record: BorrowedMessage<'a>) {
        let topic = record.topic();
        let route = self.context.routes.iter().position(|route| route.topic == topic);
        let Some(route) = route else { return };
        self.troubled.retain(|(troubled, _)| troubled != topic);
        let (headers, nameless) = native::headers(&record);
        let payload = record.payload().unwrap_or_default();
        let (fate, left_out) =
            fate(&self.context.routes[route], self.context.journal, &headers, record.key(), payload);
        self.report.consumed(route, left_out + nameless);
        let pending = Pending { route, record, fate };
        self.pending_bytes += pending.payload_bytes();
        self.pending.push_back(pending);
    }

    /// Publishes what was taken in, in order. When it returns everything is settled.
    fn settle(&mut self) -> Result<(), End> {
        let mut pause = PAUSES.0;
        while !self.pending.is_empty() {
            self.keep_rejects()?;
            let SeriesOutcome { durable, refused } = self.publish()?;
            self.settle_first(durable, refused.is_none());
            let waits = match refused {
                None => continue,
                Some(PublishError::Topic(why)) => {
                    self.reject_first("illegal_topic", format!("it makes no topic: {why}"));
                    continue;
                }
                Some(PublishError::TooLarge) => {
                    let told =
                        "its payload is larger than mqtt.max_packet_bytes; raise it to carry such records";
                    self.reject_first("too_large", told.into());
                    continue;
                }
                Some(PublishError::Stopped) => return Err(End::Stopped),
                Some(PublishError::Busy) => None,
                Some(PublishError::Refused(Refused::Full)) => Some(
                    "the journal is full, so nothing is consumed until there is room; see journal in /health",
                ),
                Some(PublishError::Refused(Refused::Failed)) => {
                    Some("the journal has failed, so nothing is consumed: check the disk, then restart")
                }
            };
            if durable > 0 {
                pause = PAUSES.0;
            }
            self.commit();
            self.wait(pause, waits)?;
            pause = (pause * 2).min(PAUSES.1);
        }
        self.resume()
    }

    /// Publishes what is pending as one series, and waits until what is accepted of it is durable.
    fn publish(&self) -> Result<SeriesOutcome, End> {
        let publishes: Vec<LocalPublish> = self
            .pending
            .iter()
            .filter_map(|pending| match &pending.fate {
                Fate::Publish(publish) => Some(publish.clone()),
                Fate::PassedOver(_) | Fate::Reject(_) => None,
            })
            .collect();
        let (done, outcome) = sync_channel(1);
        self.context.broker.publish_series(publishes, move |outcome| {
            // Nobody waits any more if the drain took too long; what is durable is so nevertheless.
            let _ = done.try_send(outcome);
        });
        loop {
            match outcome.recv_timeout(POLL) {
                Ok(outcome) => return Ok(outcome),
                Err(RecvTimeoutError::Disconnected) => return Err(End::Stopped),
                Err(RecvTimeoutError::Timeout) => {
                    if self.context.stop.deadline().is_some_and(|deadline| Instant::now() >= deadline) {
                        return Err(End::Stopped);
                    }
                }
            }
        }
    }

    /// The first `durable` of those to be published are durable; what lies between them is settled with them, and
    /// with `all` what lies behind.
    fn settle_first(&mut self, mut durable: usize, all: bool) {
        // Records of one partition mostly come together.
        let mut settled: Option<(Partition, i64)> = None;
        while let Some(first) = self.pending.pop_front() {
            match &first.fate {
                Fate::Publish(_) if durable == 0 && !all => {
                    self.pending.push_front(first);
                    break;
                }
                Fate::Publish(_) => {
                    durable = durable.saturating_sub(1);
                    self.report.published(first.route);
                }
                Fate::PassedOver(reason) => self.report.passed_over(first.route, reason),
                Fate::Reject(letter) => {
                    // One that came while the journal was waited for is kept with the next series.
                    let Some(place) = letter.place() else {
                        self.pending.push_front(first);
                        break;
                    };
                    let kept = self.dead.told(place);
                    self.report.rejected(first.route, &first.record, &letter.why, (place, &kept));
                }
            }
            self.pending_bytes -= first.payload_bytes();
            let next = first.record.offset() + 1;
            match &mut settled {
                Some((partition, offset)) if first.is_of(partition) => *offset = next,
                _ => {
                    if let Some((partition, offset)) = settled.replace((first.partition(), next)) {
                        self.consumer.context().settled(&partition, offset);
                    }
                }
            }
        }
        if let Some((partition, offset)) = settled {
            self.consumer.context().settled(&partition, offset);
        }
    }

    /// What was to be published next will never be.
    fn reject_first(&mut self, reason: &'static str, detail: String) {
        if let Some(first) = self.pending.front_mut() {
            first.fate = Fate::Reject(Letter::new(Unplaced { reason, detail }));
        }
    }

    /// Keeps what is pending and can be published nowhere. When it returns, each is where its offset may be committed.
    fn keep_rejects(&mut self) -> Result<(), End> {
        let mut pause = PAUSES.0;
        loop {
            let mut letters: Vec<_> = self
                .pending
                .iter_mut()
                .filter_map(|pending| match &mut pending.fate {
                    Fate::Reject(letter) if letter.place().is_none() => Some((&pending.record, letter)),
                    Fate::Reject(_) | Fate::Publish(_) | Fate::PassedOver(_) => None,
                })
                .collect();
            if letters.is_empty() {
                return Ok(());
            }
            if let Err(waits) = self.dead.keep(&mut letters) {
                self.commit();
                self.wait(pause, Some(&waits))?;
                pause = (pause * 2).min(PAUSES.1);
            }
        }
    }

    /// Waits before the journal, or Kafka, is tried again. The group is attended to meanwhile, but nothing more is consumed.
    fn wait(&mut self, pause: Duration, waits: Option<&str>) -> Result<(), End> {
        if self.context.stop.deadline().is_some() {
            return Err(End::Stopped);
        }
        self.pause()?;
        self.context.stop.wait(pause);
        // What had left librdkafka before it was paused comes still.
        match self.consumer.poll(Duration::ZERO) {
            None => {}
            Some(Ok(record)) => self.take(record),
            Some(Err(error)) => self.hear(&error)?,
        }
        self.ask_for_ends();
        self.tell(waits);
        self.let_go_of_revoked()
    }

    /// Pauses everything that is assigned, again whenever something was assigned.
    fn pause(&mut self) -> Result<(), End> {
        let assignments = self.consumer.context().told().assignments;
        if self.paused == Some(assignments) {
            return Ok(());
        }
        let paused = self.consumer.assignment().and_then(|assignment| self.consumer.pause(&assignment));
        paused.map_err(|error| failed(&error))?;
        self.paused = Some(assignments);
        Ok(())
    }

    fn resume(&mut self) -> Result<(), End> {
        if self.paused.take().is_some() {
            let resumed = self.consumer.assignment().and_then(|assignment| self.consumer.resume(&assignment));
            resumed.map_err(|error| failed(&error))?;
        }
        Ok(())
    }

    /// What was consumed of partitions that went is published by whoever has them now.
    fn let_go_of_revoked(&mut self) -> Result<(), End> {
        let (revoked, not_assigned) = {
            let mut told = self.consumer.context().told();
            (std::mem::take(&mut told.revoked), told.not_assigned.take())
        };
        if !revoked.is_empty() {
            let (gone, kept): (VecDeque<_>, VecDeque<_>) =
                self.pending.drain(..).partition(|pending| revoked.contains(&pending.partition()));
            self.pending = kept;
            for pending in gone {
                self.pending_bytes -= pending.payload_bytes();
                self.report.passed_over(pending.route, "revoked");
            }
        }
        match not_assigned {
            Some(why) => Err(End::Failed(
                State::Down,
                format!("Kafka does not say where to begin: {why}; trying again"),
            )),
            None => Ok(()),
        }
    }

    fn commit(&mut self) {
        let group = self.consumer.context();
        if group.is_commit_due() && self.committed_at.elapsed() >= COMMIT_INTERVAL {
            self.committed_at = Instant::now();
            group.commit(self.consumer, CommitMode::Async);
        }
    }

    /// Takes in what is wrong with a topic, or with everything.
    fn hear(&mut self, error: &KafkaError) -> Result<(), End> {
        tracing::debug!("Kafka: {error}");
        let code = error.rdkafka_error_code().unwrap_or(Code::Unknown);
        let Context { config, group, .. } = &self.context;
        // The list of codes grows with every release of librdkafka, hence the wildcard.
        #[expect(clippy::wildcard_enum_match_arm, reason = "the enum is as long as Kafka's list of errors")]
        match code {
            Code::GroupAuthorizationFailed => Err(End::Failed(
                State::Failed,
                format!(
                    "Kafka does not let this client into the consumer group {group}: give it the right to read that \
                     group, or set kafka.consume.group"
                ),
            )),
            Code::FencedInstanceId => Err(End::Failed(
                State::Failed,
                format!(
                    "another appliance consumes under the name of this one, {}: its data folder must be a copy of this \
                     one; give that appliance an empty data folder, or each a kafka.consume.group of its own",
                    self.context.journal
                ),
            )),
            // Which topic it is about is not told; those that may be read go on.
            Code::TopicAuthorizationFailed => {
                self.trouble(
                    "",
                    "Kafka does not let this client read a topic of kafka.consume.topics that brings nothing: give it \
                     the right to read that topic, or leave it out"
                        .into(),
                );
                Ok(())
            }
            Code::UnknownTopicOrPartition | Code::UnknownTopic => {
                self.trouble(
                    "",
                    "a topic of kafka.consume.topics is missing in Kafka; waiting for it".into(),
                );
                Ok(())
            }
            code if trouble::needs_operator(code) => {
                let last = self.consumer.context().told().last_error.clone();
                let (code, reason) = last.unwrap_or_else(|| (code, code.to_string()));
                Err(End::Failed(State::Failed, trouble::unreachable_detail(config, code, &reason)))
            }
            _ if matches!(error, KafkaError::MessageConsumptionFatal(_)) => Err(failed(error)),
            _ => Ok(()),
        }
    }

    /// Something is wrong with `topic`, or with one that is not known, until it is consumed.
    fn trouble(&mut self, topic: &str, detail: String) {
        self.troubled.retain(|(troubled, _)| troubled != topic);
        self.troubled.push((topic.to_owned(), detail));
    }

    /// Says how it goes, now and then; `waits` is why the journal takes nothing.
    fn tell(&mut self, waits: Option<&str>) {
        if self.told_at.elapsed() < TELL_INTERVAL {
            return;
        }
        self.told_at = Instant::now();
        let (is_connected, is_joined, last_error) = {
            let told = self.consumer.context().told();
            (told.is_connected, told.is_joined, told.last_error.clone())
        };
        self.tell_lag();
        if is_joined {
            self.joined_at = self.told_at;
            self.was_joined = true;
        }
        if is_connected == Some(false) {
            let config = self.context.config;
            let (code, reason) =
                last_error.unwrap_or_else(|| (Code::AllBrokersDown, "no broker is connected".to_owned()));
            let detail = trouble::unreachable_detail(config, code, &reason);
            let state = if trouble::is_refusal(code, &reason) { State::Failed } else { State::Down };
            return self.report.troubled(state, &detail);
        }
        // What was wrong before says nothing of what will be.
        self.consumer.context().told().last_error = None;
        if !is_joined && self.joined_at.elapsed() >= JOIN_PATIENCE {
            let detail = format!(
                "the consumer group {} has given this member no partitions for more than {} s: another member may hold it up",
                self.context.group,
                JOIN_PATIENCE.as_secs()
            );
            return self.report.troubled(State::Down, &detail);
        }
        if let Some(waits) = waits {
            return self.report.troubled(State::Degraded, waits);
        }
        if !self.was_joined {
            return;
        }
        self.settle_troubles();
        match self.troubled.first() {
            Some((_, detail)) => self.report.troubled(State::Degraded, detail),
            None => {
                self.untroubled_at = self.told_at;
                self.report.working();
            }
        }
    }

    /// A topic of which partitions are assigned is there.
    fn settle_troubles(&mut self) {
        let told = self.consumer.context().told();
        self.troubled.retain(|(topic, _)| !told.positions.keys().any(|(assigned, _)| assigned == topic));
    }

    fn tell_lag(&mut self) {
        let mut lags = vec![0; self.context.routes.len()];
        let is_idle = self.pending.is_empty() && self.paused.is_none();
        for ((topic, _), position) in &self.consumer.context().told().positions {
            if is_idle && position.is_read {
                continue;
            }
            let lag = position.end.zip(position.next).map_or(0, |(end, next)| end.saturating_sub(next));
            if let Some(at) = self.context.routes.iter().position(|route| route.topic == *topic) {
                lags[at] += u64::try_from(lag).unwrap_or(0);
            }
        }
        self.report.lagging(&lags);
    }

    /// While nothing is consumed, nothing else says how much there is.
    fn ask_for_ends(&mut self) {
        if self.ends_at.elapsed() < ENDS_INTERVAL {
            return;
        }
        self.ends_at = Instant::now();
        let group = self.consumer.context();
        let partitions: Vec<Partition> = group.told().positions.keys().cloned().collect();
        for partition in partitions {
            let Ok((_, end)) = self.consumer.fetch_watermarks(&partition.0, partition.1, ENDS_TIMEOUT) else {
                return;
            };
            if let Some(position) = group.told().positions.get_mut(&partition) {
                position.end = Some(end);
            }
        }
    }
}

fn missing(topic: &str) -> String {
    format!(
        "Kafka has no topic {topic}; waiting for it: create it, or set kafka.topics.create = true, or leave it out of \
         kafka.consume.topics"
    )
}

fn failed(error: &KafkaError) -> End {
    End::Failed(State::Down, format!("the Kafka consumer has to be made anew: {error}"))
}

/// What becomes of a record, and how many of its headers do not travel on.
fn fate(
    route: &Route,
    journal: &str,
    headers: &[Header<'_>],
    key: Option<&[u8]>,
    payload: &[u8],
) -> (Fate, u64) {
    let via = match origin::origin(headers, journal) {
        Origin::PassedOver(reason) => return (Fate::PassedOver(reason), 0),
        Origin::Taken(via) => via,
    };
    let topic = match place(&route.template, headers, key, payload) {
        Ok(topic) => topic,
        Err(unplaced) => return (Fate::Reject(Letter::new(unplaced)), 0),
    };
    let travelling = headers::travelling(headers, via.as_deref());
    let publish = LocalPublish {
        client: route.client.clone(),
        topic,
        payload: Bytes::copy_from_slice(payload),
        qos: route.qos,
        retain: route.retain,
        properties: travelling.encoded,
    };
    (Fate::Publish(publish), travelling.left_out)
}
