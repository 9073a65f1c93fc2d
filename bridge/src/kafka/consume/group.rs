//! The consumer group as librdkafka tells of it: partitions that come and go, errors, statistics.
//!
//! What always holds: a partition is consumed from an offset that was settled here, and what is committed was settled
//! by whoever publishes. Partitions that go are committed first. Everything here runs in the thread that polls.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _, ConsumerContext};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::types::RDKafkaRespErr;
use rdkafka::{Offset, TopicPartitionList};
use serde::Deserialize;

use super::config::Start;

/// How long the brokers may take to say where partitions begin and end.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// A partition of a topic.
pub(super) type Partition = (String, i32);

/// How far a partition that is assigned has been settled.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Position {
    /// Every record before it is durable, rejected or passed over; `None` until there was one.
    pub(super) next: Option<i64>,
    /// What was last committed, as far as is known.
    committed: Option<i64>,
    /// Where the partition ends, as last heard.
    pub(super) end: Option<i64>,
    /// Whether librdkafka has looked at everything before `end` and hands nothing over any more: what is left there are
    /// the marks behind transactions, and what was taken back.
    pub(super) is_read: bool,
}

/// What librdkafka has said.
#[derive(Debug, Default)]
pub(super) struct Told {
    pub(super) positions: BTreeMap<Partition, Position>,
    /// Partitions that went, until they are asked for.
    pub(super) revoked: Vec<Partition>,
    /// Counts assignments.
    pub(super) assignments: u64,
    /// The last error and its words.
    pub(super) last_error: Option<(RDKafkaErrorCode, String)>,
    /// Why partitions could not be taken over.
    pub(super) not_assigned: Option<String>,
    /// Whether any broker is connected; `None` until there are statistics.
    pub(super) is_connected: Option<bool>,
    /// Whether the group is not in the middle of a rebalance.
    pub(super) is_joined: bool,
}

/// The context of the consumer.
#[derive(Debug)]
pub(super) struct Group {
    start: Start,
    /// Topics that did not exist when this appliance first looked: every record in them is new.
    appeared: HashSet<String>,
    told: Mutex<Told>,
}

impl Group {
    pub(super) fn new(start: Start, appeared: HashSet<String>) -> Self {
        Self { start, appeared, told: Mutex::default() }
    }

    pub(super) fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Everything of `partition` before `next` is settled.
    pub(super) fn settled(&self, partition: &Partition, next: i64) {
        if let Some(position) = self.told().positions.get_mut(partition) {
            position.next = Some(next);
        }
    }

    /// Whether something is settled that is not committed.
    pub(super) fn is_commit_due(&self) -> bool {
        self.told().positions.values().any(|position| position.next != position.committed)
    }

    /// Commits what is settled. If it fails it is due again.
    pub(super) fn commit(&self, consumer: &BaseConsumer<Self>, mode: CommitMode) {
        self.commit_some(consumer, mode, |_| true);
    }

    fn commit_some(
        &self,
        consumer: &BaseConsumer<Self>,
        mode: CommitMode,
        wanted: impl Fn(&Partition) -> bool,
    ) {
        // It would be tried for longer than a drain may take.
        if self.told().is_connected == Some(false) {
            return;
        }
        let due = self.take_due(wanted);
        if due.count() == 0 {
            return;
        }
        if let Err(error) = consumer.commit(&due, mode) {
            self.not_committed(&error);
        }
    }

    /// What of the `wanted` partitions is due; counted as committed from now on.
    fn take_due(&self, wanted: impl Fn(&Partition) -> bool) -> TopicPartitionList {
        let mut due = TopicPartitionList::new();
        for (partition, position) in
            self.told().positions.iter_mut().filter(|(partition, _)| wanted(partition))
        {
            if let Some(next) = position.next.filter(|_| position.next != position.committed) {
                add(&mut due, partition, Offset::Offset(next));
                position.committed = Some(next);
            }
        }
        due
    }

    fn not_committed(&self, error: &KafkaError) {
        tracing::debug!("Kafka did not commit offsets: {error}; they are committed again");
        self.told().positions.values_mut().for_each(|position| position.committed = None);
    }

    fn assign(&self, consumer: &BaseConsumer<Self>, partitions: &TopicPartitionList) {
        let assigned = self.starting_offsets(consumer, partitions).and_then(|assigned| {
            if is_cooperative(consumer) {
                consumer.incremental_assign(&assigned)?;
            } else {
                consumer.assign(&assigned)?;
            }
            Ok(assigned)
        });
        match assigned {
            Ok(assigned) => {
                {
                    let mut told = self.told();
                    told.assignments += 1;
                    for element in assigned.elements() {
                        let next = element.offset().to_raw().filter(|offset| *offset >= 0);
                        let position = Position { next, ..Position::default() };
                        told.positions.insert((element.topic().to_owned(), element.partition()), position);
                    }
                }
                // Also where nothing was consumed yet: what comes between now and the first record is not to be missed.
                self.commit(consumer, CommitMode::Sync);
            }
            Err(error) => {
                // The group has to go on nevertheless; whoever polls makes the consumer anew.
                let nothing = TopicPartitionList::new();
                let _ = if is_cooperative(consumer) {
                    consumer.incremental_assign(&nothing)
                } else {
                    consumer.assign(&nothing)
                };
                self.told().not_assigned = Some(error.to_string());
            }
        }
    }

    /// `partitions` with the offset from which each is consumed.
    fn starting_offsets(
        &self,
        consumer: &BaseConsumer<Self>,
        partitions: &TopicPartitionList,
    ) -> KafkaResult<TopicPartitionList> {
        let mut starting = TopicPartitionList::new();
        if partitions.count() == 0 {
            return Ok(starting);
        }
        let mut new = BTreeMap::<String, Vec<i32>>::new();
        for element in consumer.committed_offsets(partitions.clone(), ANSWER_TIMEOUT)?.elements() {
            element.error()?;
            let (topic, partition) = (element.topic(), element.partition());
            match element.offset().to_raw().filter(|offset| *offset >= 0) {
                Some(offset) => starting.add_partition_offset(topic, partition, Offset::Offset(offset))?,
                None => new.entry(topic.to_owned()).or_default().push(partition),
            }
        }
        for (topic, partitions) in new {
            let begins_at_end = self.begins_at_end(consumer, &topic)?;
            for partition in partitions {
                let begin = match begins_at_end.get(&partition) {
                    Some(end) => *end,
                    None => consumer.fetch_watermarks(&topic, partition, ANSWER_TIMEOUT)?.0,
                };
                starting.add_partition_offset(&topic, partition, Offset::Offset(begin))?;
            }
        }
        Ok(starting)
    }

    /// Where each partition of `topic` ends, if the group begins there; none if what it has not committed is to be
    /// consumed from the oldest record on.
    fn begins_at_end(&self, consumer: &BaseConsumer<Self>, topic: &str) -> KafkaResult<HashMap<i32, i64>> {
        if self.start == Start::Earliest || self.appeared.contains(topic) {
            return Ok(HashMap::new());
        }
        let metadata = consumer.fetch_metadata(Some(topic), ANSWER_TIMEOUT)?;
        let partitions = metadata.topics().iter().flat_map(|topic| topic.partitions());
        let partitions: Vec<i32> = partitions.map(|partition| partition.id()).collect();
        let mut all = TopicPartitionList::new();
        for &partition in &partitions {
            all.add_partition(topic, partition);
        }
        let committed = consumer.committed_offsets(all, ANSWER_TIMEOUT)?;
        if committed.elements().iter().any(|element| element.offset() != Offset::Invalid) {
            // The group has begun already, so that a partition it does not know has been added since.
            return Ok(HashMap::new());
        }
        let (mut ends, mut begun) = (HashMap::new(), TopicPartitionList::new());
        for partition in partitions {
            let (_, end) = consumer.fetch_watermarks(topic, partition, ANSWER_TIMEOUT)?;
            ends.insert(partition, end);
            begun.add_partition_offset(topic, partition, Offset::Offset(end))?;
        }
        // For every partition, so that another member which has its own a moment later sees that the group has begun.
        if let Err(error) = consumer.commit(&begun, CommitMode::Sync) {
            self.not_committed(&error);
        }
        Ok(ends)
    }

    fn revoke(&self, consumer: &BaseConsumer<Self>, partitions: &TopicPartitionList) {
        let gone: HashSet<Partition> = partitions
            .elements()
            .iter()
            .map(|element| (element.topic().to_owned(), element.partition()))
            .collect();
        // Another member has them already if the assignment was lost, and its offsets are not to be overwritten.
        if !consumer.assignment_lost() {
            self.commit_some(consumer, CommitMode::Sync, |partition| gone.contains(partition));
        }
        let unassigned = if is_cooperative(consumer) {
            consumer.incremental_unassign(partitions)
        } else {
            consumer.unassign()
        };
        let mut told = self.told();
        if let Err(error) = unassigned {
            told.not_assigned = Some(error.to_string());
        }
        told.positions.retain(|partition, _| !gone.contains(partition));
        told.revoked.extend(gone);
    }
}

fn is_cooperative(consumer: &BaseConsumer<Group>) -> bool {
    use rdkafka::consumer::RebalanceProtocol as Protocol;
    match consumer.rebalance_protocol() {
        Protocol::Cooperative => true,
        Protocol::Eager | Protocol::None => false,
    }
}

fn add(list: &mut TopicPartitionList, (topic, partition): &Partition, offset: Offset) {
    list.add_partition_offset(topic, *partition, offset).expect("an offset from Kafka is an offset");
}

impl ConsumerContext for Group {
    fn rebalance(
        &self,
        consumer: &BaseConsumer<Self>,
        event: RDKafkaRespErr,
        partitions: &mut TopicPartitionList,
    ) {
        if event == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS {
            self.assign(consumer, partitions);
        } else {
            self.revoke(consumer, partitions);
        }
    }

    fn commit_callback(&self, result: KafkaResult<()>, _offsets: &TopicPartitionList) {
        if let Err(error) = result {
            self.not_committed(&error);
        }
    }
}

impl ClientContext for Group {
    fn log(&self, _level: RDKafkaLogLevel, facility: &str, line: &str) {
        tracing::debug!(target: "librdkafka", "{facility}: {line}");
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!("Kafka: {error}: {reason}");
        let code = error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Unknown);
        let mut told = self.told();
        // That all brokers are down follows from why each is.
        if code != RDKafkaErrorCode::AllBrokersDown || told.last_error.is_none() {
            told.last_error = Some((code, reason.to_owned()));
        }
    }

    fn stats_raw(&self, statistics: &[u8]) {
        let Ok(statistics) = serde_json::from_slice::<Statistics>(statistics) else { return };
        let mut told = self.told();
        let is_connected = statistics.brokers.values().any(|broker| broker.state == "UP");
        told.is_connected = Some(is_connected);
        told.is_joined = statistics.cgrp.is_some_and(|group| group.join_state == "steady");
        for ((topic, partition), position) in &mut told.positions {
            let known = statistics.topics.get(topic);
            let Some(known) = known.and_then(|topic| topic.partitions.get(&partition.to_string())) else {
                continue;
            };
            position.end = Some(known.end()).filter(|end| *end >= 0).or(position.end);
            position.is_read = known.fetchq_cnt == 0 && known.end() >= 0 && known.next_offset >= known.end();
        }
    }
}

/// What of librdkafka's statistics (STATISTICS.md) is looked at.
#[derive(Debug, Deserialize)]
struct Statistics {
    #[serde(default)]
    brokers: HashMap<String, BrokerStatistics>,
    #[serde(default)]
    topics: HashMap<String, TopicStatistics>,
    cgrp: Option<GroupStatistics>,
}

#[derive(Debug, Deserialize)]
struct BrokerStatistics {
    state: String,
}

#[derive(Debug, Deserialize)]
struct TopicStatistics {
    partitions: HashMap<String, PartitionStatistics>,
}

#[derive(Debug, Deserialize)]
struct PartitionStatistics {
    hi_offset: i64,
    ls_offset: i64,
    /// From where the brokers are asked next.
    #[serde(default)]
    next_offset: i64,
    /// Records that wait to be handed over.
    #[serde(default)]
    fetchq_cnt: u64,
}

impl PartitionStatistics {
    /// Where a consumer ends that reads only what is committed; negative while it is not known.
    const fn end(&self) -> i64 {
        if self.ls_offset >= 0 { self.ls_offset } else { self.hi_offset }
    }
}

#[derive(Debug, Deserialize)]
struct GroupStatistics {
    join_state: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group_with(partition: &Partition) -> Group {
        let group = Group::new(Start::Latest, HashSet::new());
        group.told().positions.insert(partition.clone(), Position::default());
        group
    }

    #[test]
    fn what_is_settled_is_due_once_and_again_when_the_commit_failed() {
        let partition = ("commands".to_owned(), 1);
        let group = group_with(&partition);
        assert!(!group.is_commit_due());
        group.settled(&partition, 7);
        group.settled(&("commands".to_owned(), 2), 9);
        assert!(group.is_commit_due());
        let due = group.take_due(|_| true);
        assert_eq!(due.to_topic_map(), HashMap::from([(partition, Offset::Offset(7))]));
        assert!(!group.is_commit_due());
        group.commit_callback(Err(KafkaError::ConsumerCommit(RDKafkaErrorCode::RebalanceInProgress)), &due);
        assert!(group.is_commit_due());
    }

    #[test]
    fn the_statistics_say_whether_kafka_is_there_and_where_partitions_end() {
        let partition = ("commands".to_owned(), 1);
        let group = group_with(&partition);
        group.stats_raw(
            br#"{"brokers":{"a":{"state":"DOWN"},"b":{"state":"UP"}},"cgrp":{"state":"up","join_state":"steady"},
                "topics":{"commands":{"partitions":{"1":{"hi_offset":12,"ls_offset":11},"-1":{"hi_offset":-1,"ls_offset":-1}}}}}"#,
        );
        {
            let told = group.told();
            assert_eq!((told.is_connected, told.is_joined), (Some(true), true));
            assert_eq!(told.positions[&partition].end, Some(11));
        }
        let read = |next_offset: i64, waiting: u64| {
            let partition_told = format!(
                r#"{{"hi_offset":12,"ls_offset":11,"next_offset":{next_offset},"fetchq_cnt":{waiting}}}"#
            );
            let told = format!(r#"{{"topics":{{"commands":{{"partitions":{{"1":{partition_told}}}}}}}}}"#);
            group.stats_raw(told.as_bytes());
            group.told().positions[&partition].is_read
        };
        assert!(read(11, 0));
        assert!(!read(10, 0), "there is more to fetch");
        assert!(!read(11, 3), "there is more to hand over");
        group.stats_raw(br#"{"brokers":{"a":{"state":"DOWN"}}}"#);
        let told = group.told();
        assert_eq!((told.is_connected, told.is_joined), (Some(false), false));
        assert_eq!(told.positions[&partition].end, Some(11), "what was heard is kept");
    }
}
