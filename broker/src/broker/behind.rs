//! Sessions that are behind: what they and groups look for in the journal, so that the rest can be passed over, and
//! how they are served from it.

use super::deliver::{Delivered, Load};
use super::ledger::Fate;
use super::{Broker, DropReason, ReadFor};
use crate::broker::Now;
use crate::record::{Append, Batch, Entry, Offset, Qos, Record};
use crate::router::Match;
use crate::session::Flow;
use crate::slots::Key;
use crate::topic::TopicFilter;

/// So many filters of a session that is behind are compared with a topic in less time than everything that the topic
/// matches is looked up.
const FEW_FILTERS: usize = 4;

impl Broker {
    /// The filters of a reader that was named by [`Broker::poll_read`] with `offset`: a record that none of them
    /// matches is not for it, and the caller may pass over it. `None` if it must read `offset`, or if it is known
    /// already that something for it may be near.
    pub fn looks_for(&self, reader: ReadFor, offset: Offset) -> Option<Vec<&TopicFilter>> {
        match reader {
            ReadFor::Session(key) => {
                let session = self.sessions.get(key)?;
                let looks = session.resend.is_empty()
                    && session.flow == Flow::CatchingUp(offset)
                    && offset >= session.near_until
                    && !session.ahead.names(offset);
                looks.then(|| session.filters.keys().collect())
            }
            ReadFor::Group(key) => self.group_looks_for(key, offset),
        }
    }

    /// Nothing before `next` is for the reader, which goes on there; up to `near_until` something may be.
    pub fn passed_over(&mut self, reader: ReadFor, next: Offset, near_until: Offset) {
        match reader {
            ReadFor::Session(key) => {
                let Some(session) = self.sessions.get_mut(key) else { return };
                session.near_until = near_until;
                if session.flow != Flow::CatchingUp(next) {
                    session.flow = Flow::CatchingUp(next);
                    self.want_read(key);
                }
            }
            ReadFor::Group(key) => self.group_passed_over(key, next, near_until),
        }
    }

    /// Delivers what is due to a session that is behind, from a batch it has read, until it has enough.
    pub(super) fn catch_up(&mut self, key: Key, batch: &Batch, now: Now, log: &mut dyn Append) {
        let durable_end = self.durable_end;
        let Some(session) = self.sessions.get_mut(key) else { return };
        let Flow::CatchingUp(mut next) = session.flow else { return };
        if batch.base() > next {
            let trimmed = batch.base().since(next);
            tracing::warn!(client = %session.client, trimmed, "a session was too far behind: records were trimmed before it read them");
            session.has_missed = true;
            self.stats.publishes_dropped.add(DropReason::Trimmed, trimmed);
            next = batch.base();
        }
        if batch.is_gap() {
            let lost = batch.starting_at(next).lost();
            if lost > 0 {
                tracing::warn!(client = %session.client, lost, "a session passes entries that are lost since the journal was repaired");
                // From before the process started, so that nothing of it waits.
                self.stats.publishes_dropped.add(DropReason::Trimmed, lost);
            }
            next = next.max(batch.end());
        }
        for (place, entry) in batch.entries_from(next) {
            if place.offset >= durable_end {
                break;
            }
            if let Entry::Record(record) = entry
                && let Some(found) = self.match_in_backlog(key, &record, place.offset)
            {
                let load = Load { record: &record, batch: Some(batch), offset: place.offset, group: None };
                match self.deliver(&found, load, None, now, log) {
                    Delivered::Done(fate) => self.book_read(key, place.offset, fate),
                    Delivered::Behind => break,
                }
            }
            next = place.offset.plus(1);
        }
        if let Some(session) = self.sessions.get_mut(key) {
            session.flow = Flow::CatchingUp(next);
        }
    }

    /// How a record in a session's backlog matches, if it is to be delivered.
    fn match_in_backlog(&mut self, key: Key, record: &Record<'_>, offset: Offset) -> Option<Match> {
        let filters = &self.sessions.get(key)?.filters;
        if filters.len() <= FEW_FILTERS && !filters.keys().any(|filter| filter.matches(record.topic)) {
            return None;
        }
        let matches = self.matches(record.topic);
        let index = matches.binary_search_by_key(&key, |found| found.session).ok()?;
        let mut found = matches[index].clone();
        let session = self.sessions.get(key)?;
        if offset < found.since {
            // Not all of its filters are older than the record.
            found = Match::among(key, session.filters.iter(), record.topic, offset)?;
        }
        let own = found.no_local && *session.client == *record.client;
        // What came while it was away is not kept for it at QoS 0.
        let away = found.qos.min(record.qos) == Qos::AtMostOnce && offset < session.online_from;
        let arrived = record.qos == Qos::AtMostOnce
            && session.arrivals_missed_from.is_none_or(|missed_from| offset < missed_from);
        let again = !session.announced.is_empty() && session.announced.contains(&offset);
        if away && !own && !again && !session.has_accounted(offset) {
            self.dropped(DropReason::Away, 1);
            self.book_read(key, offset, Fate::Dropped(DropReason::Away));
        }
        (!own && !away && !arrived && !again).then_some(found)
    }
}
