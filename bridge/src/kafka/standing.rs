//! How each Kafka topic stands: whether it takes records, and how large they may be. Time is an argument.
//!
//! A topic that takes none is closed: its records are dead letters from then on, without being tried. It is looked at
//! again after the patience, and then tried; what fails then closes it at once. A topic that is not seen is waited for
//! first, for as long as the patience, since it may be about to be made anew; one that is there and that this client
//! may not write is closed at once, since rights do not come and go by themselves. Where all are closed, the sink waits
//! instead of making everything a dead letter.

use std::time::{Duration, Instant};

use tidegate_broker::record::Offset;

use crate::route::KafkaTopic;

use super::dead_letter::Wrong;

/// What was found when a topic was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Found {
    /// Its `max.message.bytes`, if this client may read it.
    pub(super) batch_bytes_max: Option<u32>,
    /// Why it takes no records, if that shows without writing one.
    pub(super) wrong: Option<Wrong>,
    /// Whether this client sees it; one that it does not see may be about to be made.
    pub(super) is_seen: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    Open,
    /// Tried, because nothing is known against it any more; from the first record on that was handed over.
    Tried(Option<Offset>),
    Closed(Wrong),
}

#[derive(Debug)]
struct Standing {
    name: String,
    state: State,
    batch_bytes_max: u32,
    /// Since when it is missing.
    missing_since: Option<Instant>,
}

/// How the topics stand that a sink writes, by their index.
#[derive(Debug)]
pub(super) struct Standings {
    topics: Vec<Standing>,
    patience: Duration,
    /// The index of the dead-letter topic. Nobody waits for it: there is the file.
    dead_letter: Option<usize>,
    look_at: Option<Instant>,
}

impl Standings {
    /// Of `topics`, of which nothing is known; a record may be as large as `bytes_max` until more is.
    pub(super) fn new(
        topics: &[KafkaTopic],
        bytes_max: u32,
        dead_letter: Option<usize>,
        patience: Duration,
    ) -> Self {
        let standing = |topic: &KafkaTopic| Standing {
            name: topic.name.clone(),
            state: State::Open,
            batch_bytes_max: bytes_max,
            missing_since: None,
        };
        Self { topics: topics.iter().map(standing).collect(), patience, dead_letter, look_at: None }
    }

    /// Takes in what was found of the topic with this index. Returns why its records have to wait for it, if they do.
    pub(super) fn take_in(&mut self, index: usize, found: &Found, limit: u32, now: Instant) -> Option<Wrong> {
        let topic = &mut self.topics[index];
        let Some(wrong) = &found.wrong else {
            topic.batch_bytes_max = found.batch_bytes_max.map_or(limit, |told| told.min(limit));
            topic.missing_since = None;
            if let State::Closed(_) = topic.state {
                tracing::debug!("the Kafka topic {} is tried again", topic.name);
                topic.state = State::Tried(None);
            }
            return None;
        };
        let since = *topic.missing_since.get_or_insert(now);
        let waits = now.saturating_duration_since(since) < self.patience
            && self.dead_letter != Some(index)
            && !found.is_seen;
        if waits && topic.state == State::Open {
            return Some(wrong.clone());
        }
        self.close(index, now, || wrong.clone());
        None
    }

    /// The topic with this index takes no records, because of `wrong`, unless it is closed already. Returns why it is.
    pub(super) fn close(&mut self, index: usize, now: Instant, wrong: impl FnOnce() -> Wrong) -> Wrong {
        let topic = &mut self.topics[index];
        if let State::Closed(wrong) = &topic.state {
            return wrong.clone();
        }
        let wrong = wrong();
        let meant = if self.dead_letter == Some(index) {
            "dead letters go into the file"
        } else {
            "its records are dead letters"
        };
        // One that was tried in vain has been told of.
        if topic.state == State::Open {
            tracing::warn!(
                "Kafka takes no records for the topic {}: {}; until it does, which is tried every {} s, {meant}",
                topic.name,
                wrong.detail,
                self.patience.as_secs()
            );
        }
        topic.state = State::Closed(wrong.clone());
        self.look_at.get_or_insert(now + self.patience);
        wrong
    }

    /// Why the topic with this index takes no records, if it is closed.
    pub(super) fn closed(&self, index: usize) -> Option<&Wrong> {
        match &self.topics[index].state {
            State::Closed(wrong) => Some(wrong),
            State::Open | State::Tried(_) => None,
        }
    }

    /// Why nothing is taken at all, if every topic is closed: then it is not the topics that something is wrong with.
    pub(super) fn all_closed(&self) -> Option<&Wrong> {
        (0..self.topics.len()).map(|index| self.closed(index)).reduce(|first, next| next.and(first)).flatten()
    }

    /// Whether a failure of the topic with this index comes as a surprise, so that it is worth waiting for it.
    pub(super) fn is_trusted(&self, index: usize) -> bool {
        self.topics[index].state == State::Open && self.dead_letter != Some(index)
    }

    /// The record at `offset` is handed over to the topic with this index.
    pub(super) fn hand_over(&mut self, index: usize, offset: Offset) {
        if let State::Tried(from @ None) = &mut self.topics[index].state {
            *from = Some(offset);
        }
    }

    /// Everything before `confirmed` is stored.
    pub(super) fn settle(&mut self, confirmed: Offset) {
        for topic in &mut self.topics {
            if let State::Tried(Some(from)) = topic.state
                && from < confirmed
            {
                tracing::info!("the Kafka topic {} takes records again", topic.name);
                topic.state = State::Open;
            }
        }
    }

    /// How large the record batch of a single record may be.
    pub(super) fn batch_bytes_max(&self, index: usize) -> u32 {
        self.topics[index].batch_bytes_max
    }

    /// The smallest and the largest of those limits.
    pub(super) fn limits(&self) -> (u32, u32) {
        let limits = || self.topics.iter().map(|topic| topic.batch_bytes_max);
        (limits().min().unwrap_or_default(), limits().max().unwrap_or_default())
    }

    /// The topics that are to be looked at again now. They are due once; what is found is taken in.
    pub(super) fn due(&mut self, now: Instant) -> Vec<usize> {
        if self.look_at.is_none_or(|at| now < at) {
            return Vec::new();
        }
        let closed = |index: &usize| self.closed(*index).is_some();
        let due: Vec<usize> = (0..self.topics.len()).filter(closed).collect();
        self.look_at = (!due.is_empty()).then(|| now + self.patience);
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn standings() -> Standings {
        let topic = |name: &str| KafkaTopic { name: name.into(), partitions: None, retention_ms: None };
        Standings::new(&[topic("a"), topic("dead")], 1_000, Some(1), 30 * SECOND)
    }

    fn missing() -> Found {
        let wrong = Some(Wrong::new("unknown_topic", "it is not there"));
        Found { batch_bytes_max: None, wrong, is_seen: false }
    }

    fn there(batch_bytes_max: Option<u32>) -> Found {
        Found { batch_bytes_max, wrong: None, is_seen: true }
    }

    #[test]
    fn a_missing_topic_is_waited_for_then_closed_and_comes_back_without_a_restart() {
        let (mut standings, begun) = (standings(), Instant::now());
        assert!(standings.is_trusted(0));
        assert!(standings.take_in(0, &missing(), 1_000, begun).is_some(), "it is waited for");
        assert!(standings.take_in(0, &missing(), 1_000, begun + 29 * SECOND).is_some());
        assert_eq!(standings.closed(0), None);
        let closed_at = begun + 31 * SECOND;
        assert!(standings.take_in(0, &missing(), 1_000, closed_at).is_none());
        assert_eq!(standings.closed(0).unwrap().reason, "unknown_topic");
        assert_eq!(standings.due(closed_at + 29 * SECOND), Vec::<usize>::new());
        assert_eq!(standings.due(closed_at + 30 * SECOND), [0]);
        assert_eq!(
            standings.due(closed_at + 31 * SECOND),
            Vec::<usize>::new(),
            "it was asked for a moment ago"
        );
        // Still missing: it is not waited for a second time.
        assert!(standings.take_in(0, &missing(), 1_000, closed_at + 31 * SECOND).is_none());
        assert!(standings.take_in(0, &there(Some(500)), 1_000, closed_at + 60 * SECOND).is_none());
        assert_eq!(standings.closed(0), None);
        assert!(!standings.is_trusted(0), "until something has arrived");
        standings.hand_over(0, Offset(7));
        standings.settle(Offset(7));
        assert!(!standings.is_trusted(0));
        standings.settle(Offset(8));
        assert!(standings.is_trusted(0));
    }

    #[test]
    fn a_topic_that_is_there_and_may_not_be_written_is_not_waited_for() {
        let (mut standings, now) = (standings(), Instant::now());
        let wrong = Some(Wrong::new("not_authorised", "no right to write a"));
        let unwritable = Found { batch_bytes_max: None, wrong, is_seen: true };
        assert_eq!(standings.take_in(0, &unwritable, 1_000, now), None);
        assert_eq!(standings.closed(0).unwrap().reason, "not_authorised");
        // It is looked at again, and not tried as long as that shows.
        assert_eq!(standings.due(now + 30 * SECOND), [0]);
        assert_eq!(standings.take_in(0, &unwritable, 1_000, now + 30 * SECOND), None);
        assert!(standings.closed(0).is_some());
        assert_eq!(standings.take_in(0, &there(None), 1_000, now + 60 * SECOND), None);
        assert_eq!(standings.closed(0), None);
    }

    #[test]
    fn where_every_topic_is_closed_it_is_not_the_topics() {
        let (mut standings, now) = (standings(), Instant::now());
        assert_eq!(standings.all_closed(), None);
        standings.close(1, now, || Wrong::new("not_authorised", "no right to write dead"));
        assert_eq!(standings.all_closed(), None);
        standings.close(0, now, || Wrong::new("not_authorised", "no right to write a"));
        assert_eq!(standings.all_closed().map(|wrong| &*wrong.detail), Some("no right to write a"));
        standings.take_in(1, &there(None), 1_000, now);
        assert_eq!(standings.all_closed(), None);
    }

    #[test]
    fn nobody_waits_for_the_dead_letter_topic() {
        let mut standings = standings();
        assert!(standings.take_in(1, &missing(), 1_000, Instant::now()).is_none());
        assert!(standings.closed(1).is_some());
        assert!(!standings.is_trusted(1));
    }

    #[test]
    fn the_smaller_of_what_is_configured_and_what_the_topic_takes_is_the_limit() {
        let (mut standings, now) = (standings(), Instant::now());
        standings.take_in(0, &there(Some(500)), 1_000, now);
        standings.take_in(1, &there(None), 2_000, now);
        assert_eq!((standings.batch_bytes_max(0), standings.batch_bytes_max(1)), (500, 2_000));
        assert_eq!(standings.limits(), (500, 2_000));
        standings.take_in(0, &there(Some(5_000)), 1_000, now);
        assert_eq!(standings.batch_bytes_max(0), 1_000);
    }
}
