//! What became of every copy for a subscriber: in = delivered + dropped + pending.
//!
//! A copy is one accepted record for one session, or for one group of a shared subscription. It is *in* when it is
//! decided that it is due: a QoS 0 record on arrival, every other when it is durable. It is *pending* while it waits in
//! the journal for a session that is behind, and while it is in flight. It is *delivered* when it is sent at QoS 0 or
//! acknowledged in full. What lay in the journal for a session before the process started is in when the session reads
//! it, what was in flight at QoS 2 is in from the start. Records from the retained store and below `$SYS` are no copies.
//!
//! A session that is behind does not list its copies, it only counts them. Those that it does not find when it gets
//! there, because they were trimmed or because it has unsubscribed or lost the right meanwhile, are dropped when it has
//! come to the end.

use super::Broker;
use super::stats::{Counts, DropReason, Stats};
use crate::mqtt::ReasonCode;
use crate::record::{Offset, Qos, Record};
use crate::router::Match;
use crate::session::Session;
use crate::session::window::Source;
use crate::slots::Key;

/// What became of the copies for subscribers since the start.
///
/// `taken_in = delivered + dropped + waiting + in_flight` after every call of the broker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Balance {
    pub taken_in: u64,
    pub delivered: u64,
    pub dropped: Counts<DropReason, { DropReason::ALL.len() }>,
    /// Copies that lie in the journal for sessions and groups that are behind.
    pub waiting: u64,
    /// Copies that were sent at QoS 1 or 2 and are not acknowledged in full.
    pub in_flight: u64,
}

impl Balance {
    /// Copies that may still be delivered.
    pub const fn pending(&self) -> u64 {
        self.waiting + self.in_flight
    }

    /// Whether the equation holds.
    pub fn is_balanced(&self) -> bool {
        self.taken_in == self.delivered + self.dropped.sum() + self.pending()
    }
}

/// What became of a copy that was looked after.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// Sent at QoS 0.
    Sent,
    /// Begun at QoS 1 or 2.
    Begun,
    /// Not to be sent.
    Dropped(DropReason),
}

/// How a copy in flight ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Acknowledged,
    Dropped(DropReason),
}

impl End {
    /// What an acknowledgement means: from 0x80 on the client has not taken it.
    pub(super) const fn of(reason: ReasonCode) -> Self {
        if reason.as_u8() >= 0x80 { Self::Dropped(DropReason::Refused) } else { Self::Acknowledged }
    }
}

/// What becomes of a durable record for a session that is not live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Backlog {
    /// It waits.
    Waits,
    /// At QoS 0, and nobody is there.
    Missed,
    /// It is not due, or was accounted for when it arrived.
    NotDue,
}

impl Broker {
    /// Books a copy that has just become due.
    pub(super) fn book_new(&mut self, fate: Fate) {
        self.stats.balance.taken_in += 1;
        self.book(fate);
    }

    fn book(&mut self, fate: Fate) {
        let balance = &mut self.stats.balance;
        match fate {
            Fate::Sent => balance.delivered += 1,
            Fate::Begun => balance.in_flight += 1,
            Fate::Dropped(reason) => balance.dropped.add(reason, 1),
        }
    }

    /// Books a copy that a session which was behind has come to.
    pub(super) fn book_read(&mut self, key: Key, offset: Offset, fate: Fate) {
        let counted = offset >= self.counted_from;
        let waiting = self.sessions.get_mut(key).map(|session| &mut session.waiting);
        match waiting.filter(|waiting| counted && **waiting > 0) {
            Some(waiting) => {
                *waiting -= 1;
                self.stats.balance.waiting -= 1;
            }
            None => self.stats.balance.taken_in += 1,
        }
        self.book(fate);
    }

    /// As [`Broker::book_read`], for a group.
    pub(super) fn book_read_by_group(&mut self, key: Key, offset: Offset, fate: Fate) {
        let counted = offset >= self.counted_from;
        let waiting = self.groups.get_mut(key).map(|group| &mut group.waiting);
        match waiting.filter(|waiting| counted && **waiting > 0) {
            Some(waiting) => {
                *waiting -= 1;
                self.stats.balance.waiting -= 1;
            }
            None => self.stats.balance.taken_in += 1,
        }
        self.book(fate);
    }

    /// A copy has become due to a session that is behind.
    pub(super) fn let_wait(&mut self, key: Key) {
        if let Some(session) = self.sessions.get_mut(key) {
            session.waiting += 1;
            self.stats.balance.taken_in += 1;
            self.stats.balance.waiting += 1;
        }
    }

    /// As [`Broker::let_wait`], for a group.
    pub(super) fn let_wait_for_group(&mut self, key: Key) {
        if let Some(group) = self.groups.get_mut(key) {
            group.waiting += 1;
            self.stats.balance.taken_in += 1;
            self.stats.balance.waiting += 1;
        }
    }

    /// A copy in flight goes back to the journal, for another member of its group.
    pub(super) fn book_returned(&mut self, count: u64) {
        let balance = &mut self.stats.balance;
        balance.in_flight = balance.in_flight.saturating_sub(count);
        balance.waiting += count;
    }

    /// Copies that had come back are looked after again, with this outcome.
    pub(super) fn book_given(&mut self, fate: Fate) {
        self.stats.balance.waiting -= 1;
        self.book(fate);
    }

    /// A copy in flight ends.
    pub(super) fn book_end(&mut self, end: End) {
        let balance = &mut self.stats.balance;
        balance.in_flight = balance.in_flight.saturating_sub(1);
        match end {
            End::Acknowledged => balance.delivered += 1,
            End::Dropped(reason) => balance.dropped.add(reason, 1),
        }
    }

    /// Copies that waited are not found any more.
    pub(super) fn book_lost(&mut self, count: u64, reason: DropReason) {
        if count == 0 {
            return;
        }
        if reason != DropReason::Trimmed {
            // Entries that were trimmed are told where the gap is found, all of them.
            self.dropped(reason, count);
        }
        let balance = &mut self.stats.balance;
        balance.waiting = balance.waiting.saturating_sub(count);
        balance.dropped.add(reason, count);
    }

    /// A session has come to the end of the journal: what it has not found on the way is not there for it any more.
    pub(super) fn book_caught_up(&mut self, key: Key) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        let lost = std::mem::take(&mut session.waiting);
        let trimmed = std::mem::take(&mut session.has_missed);
        self.book_lost(lost, if trimmed { DropReason::Trimmed } else { DropReason::Unsubscribed });
    }

    /// As [`Broker::book_caught_up`], for a group. At QoS 0 it passes over what came while nobody was there.
    pub(super) fn book_group_caught_up(&mut self, key: Key) {
        let Some(group) = self.groups.get_mut(key) else { return };
        let lost = std::mem::take(&mut group.waiting);
        let trimmed = std::mem::take(&mut group.has_missed);
        self.book_lost(lost, if trimmed { DropReason::Trimmed } else { DropReason::Away });
    }

    /// A session was removed, and its groups have taken what was theirs.
    pub(super) fn book_session_ended(&mut self, session: &Session) {
        self.book_lost(session.waiting, DropReason::SessionEnded);
        let own = session.window.iter().filter(|(_, it)| matches!(it.source, Source::Journal(_))).count();
        self.dropped(DropReason::SessionEnded, own as u64);
        for _ in 0..own {
            self.book_end(End::Dropped(DropReason::SessionEnded));
        }
    }

    /// The books begin: what was in flight before the restart is in, what waits is not counted yet.
    pub(super) fn open_books(&mut self) {
        self.counted_from = self.durable_end;
        let (waiting, in_flight) = self.copies();
        self.stats.balance =
            Balance { taken_in: waiting + in_flight, waiting, in_flight, ..Balance::default() };
    }

    /// Copies that wait and copies in flight, counted one by one.
    fn copies(&self) -> (u64, u64) {
        let waiting = self.sessions.iter().map(|(_, session)| session.waiting).sum::<u64>()
            + self.groups.iter().map(|(_, group)| group.waiting_copies()).sum::<u64>();
        let in_flight = self.sessions.iter().map(|(_, session)| {
            session.window.iter().filter(|(_, it)| !matches!(it.source, Source::Retained(_))).count() as u64
        });
        (waiting, in_flight.sum())
    }

    /// Whether the books are balanced and agree with what is really there. Looks at every session: for tests.
    pub fn audit(&self) -> Result<(), String> {
        let balance = &self.stats.balance;
        let found = self.copies();
        if balance.is_balanced() && found == (balance.waiting, balance.in_flight) {
            return Ok(());
        }
        Err(format!("{balance:?}, but {found:?} copies are waiting and in flight"))
    }
}

impl Stats {
    /// A record has become durable that matches a session which is not live.
    pub(super) fn book_backlog(
        &mut self,
        session: &mut Session,
        found: &Match,
        record: &Record<'_>,
        offset: Offset,
    ) {
        match session.backlog(found, record, offset) {
            Backlog::Waits => {
                session.waiting += 1;
                self.balance.taken_in += 1;
                self.balance.waiting += 1;
            }
            Backlog::Missed => {
                self.publishes_dropped.add(DropReason::Away, 1);
                self.balance.taken_in += 1;
                self.balance.dropped.add(DropReason::Away, 1);
            }
            Backlog::NotDue => {}
        }
    }
}

impl Session {
    /// What becomes of a durable record that its filters match, while it is not live.
    fn backlog(&self, found: &Match, record: &Record<'_>, offset: Offset) -> Backlog {
        if found.no_local && *self.client == *record.client {
            return Backlog::NotDue;
        }
        if self.connection.is_some() {
            let arrived = record.qos == Qos::AtMostOnce
                && self.arrivals_missed_from.is_none_or(|missed_from| offset < missed_from);
            return if arrived { Backlog::NotDue } else { Backlog::Waits };
        }
        if found.qos.min(record.qos) > Qos::AtMostOnce || !self.has_accounted(offset) {
            return Backlog::Waits;
        }
        // What arrives at QoS 0 was accounted for then.
        if record.qos == Qos::AtMostOnce { Backlog::NotDue } else { Backlog::Missed }
    }

    /// Whether a record at QoS 0 was delivered to the connection before, or came when nobody was there.
    pub(super) fn has_accounted(&self, offset: Offset) -> bool {
        offset < self.arrivals_end || offset >= self.left_end
    }
}
