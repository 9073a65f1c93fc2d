//! One client's protocol state: subscriptions, Packet Identifiers in flight, how far it has been served.
//!
//! A session follows the journal. While it is [`Flow::Live`], records reach it through the router as they become
//! durable. When it is away, or slower than the records come, it is [`Flow::CatchingUp`] at an offset and reads
//! the journal from there; nothing is queued for it. What is kept of it after a crash is in [`control`].

pub mod control;
pub mod window;

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use self::control::Will;
use self::window::Window;
use crate::maps::HashMap;
use crate::plant::{self, Bug};
use crate::record::{Offset, Qos, Timestamp};
use crate::retained::Retained;
use crate::router::SubscriptionOptions;
use crate::slots::Key;
use crate::topic::TopicFilter;

/// Session Expiry Interval that never ends.
pub const NEVER_EXPIRES: u32 = u32::MAX;

/// How a session gets its records: the whole back-pressure story.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// Through the router, as they become durable.
    Live,
    /// From the journal, beginning with this offset.
    CatchingUp(Offset),
}

/// What is known of the records that a session which is behind has to read: their offsets, in order.
///
/// Either every record from where it stands to the durable end that may be due to it is listed, or the list is not
/// complete and the journal must be looked through behind the last one. With this a client that was away, and for whom
/// little came, need not look at everything that came meanwhile for others.
#[derive(Debug, Default)]
pub struct Ahead {
    offsets: VecDeque<Offset>,
    complete: bool,
}

impl Ahead {
    /// The most offsets that are listed; behind them the journal is looked through.
    const OFFSETS_MAX: usize = 32;

    /// Nothing is ahead yet.
    pub const fn nothing() -> Self {
        Self { offsets: VecDeque::new(), complete: true }
    }

    /// A record has become durable. They come in order.
    pub fn note(&mut self, offset: Offset) {
        if !self.complete || self.offsets.back() == Some(&offset) {
            return;
        }
        if self.offsets.len() < Self::OFFSETS_MAX {
            self.offsets.push_back(offset);
        } else {
            self.complete = false;
        }
    }

    /// Whether the record at `offset` is known to be due.
    pub fn names(&self, offset: Offset) -> bool {
        self.offsets.front() == Some(&offset)
    }

    /// Where a session that stands at `next` would go on.
    fn reached(&self, next: Offset, durable_end: Offset) -> Offset {
        match self.offsets.iter().find(|offset| **offset >= next) {
            Some(offset) => *offset,
            None if self.complete => next.max(durable_end),
            None => next,
        }
    }

    /// Where a session that stands at `next` goes on.
    fn after(&mut self, next: Offset, durable_end: Offset) -> Offset {
        while self.offsets.front().is_some_and(|offset| *offset < next) {
            self.offsets.pop_front();
        }
        self.reached(next, durable_end)
    }
}

/// A retained record on its way to a new subscription.
#[derive(Clone, Debug)]
pub struct RetainedDelivery {
    /// The record.
    pub retained: Arc<Retained>,
    /// The QoS that was granted.
    pub qos: Qos,
    /// The Subscription Identifier of the subscription.
    pub identifier: Option<u32>,
    /// It is sent when every entry before this offset is durable.
    pub gate: Offset,
}

/// The state of one session.
#[derive(Debug)]
pub struct Session {
    /// Never used again for another session.
    pub number: u64,
    /// The Client Identifier.
    pub client: Arc<str>,
    /// The connection that uses it now.
    pub connection: Option<Key>,
    /// How many seconds it outlives its connection; [`NEVER_EXPIRES`] means for ever.
    pub expiry_s: u32,
    /// When its last connection ended; `None` while it is connected.
    pub left_at: Option<Timestamp>,
    /// When it ends, while no connection uses it.
    pub expires_at: Option<Duration>,
    /// What it subscribed to.
    pub filters: HashMap<TopicFilter, SubscriptionOptions>,
    /// The groups of its shared subscriptions.
    pub shared: Vec<Key>,
    /// What it was sent and has not acknowledged.
    pub window: Window,
    /// How it gets its records.
    pub flow: Flow,
    /// What it has to read, while it is behind.
    pub ahead: Ahead,
    /// Up to here it is known that there may be records for it where it stands.
    pub near_until: Offset,
    /// Deliveries from an earlier connection that must be sent again first, by Packet Identifier.
    pub resend: VecDeque<u16>,
    /// Retained records that wait for room in the window or for durability.
    pub retained: VecDeque<RetainedDelivery>,
    /// QoS 0 records from this offset on were not delivered on arrival; `None` while they are.
    pub arrivals_missed_from: Option<Offset>,
    /// While records before this offset are not durable, QoS 0 records must queue behind them.
    pub live_since: Offset,
    /// The end of the journal when it was connected: older records do not reach it at QoS 0.
    pub online_from: Offset,
    /// QoS 0 records before this offset were delivered on arrival to the connection before.
    pub arrivals_end: Offset,
    /// The end of the journal when the connection before ended.
    pub left_end: Offset,
    /// QoS 2 publishes received and not yet released [MQTT-4.3.3-10].
    pub unreleased: BTreeSet<u16>,
    /// Records delivered at QoS 2 before a restart that lie above its position: never to be delivered again.
    pub announced: BTreeSet<Offset>,
    /// Published when the connection ends without a DISCONNECT.
    pub will: Option<Will>,
    /// When the Will is due, while it waits for its delay.
    pub will_at: Option<Duration>,
    /// Whether the Will waits only because the broker was away: a client that returns voids it.
    pub will_in_grace: bool,
    /// Whether its Will is due and the journal has no room for it.
    pub waits_for_room: bool,
    /// The last position that the journal knows of.
    pub position_saved: Offset,
    /// Whether the journal knows it.
    pub recorded: bool,
    /// Whether it is in the list of sessions that have acknowledged something since `position_saved`.
    pub progressed: bool,
    /// Whether it is in the list of sessions that want to read.
    pub wants_read: bool,
    /// Whether its last client could not receive everything it subscribed to.
    pub restricted: bool,
    /// Whether entries were trimmed that it had not read.
    pub has_missed: bool,
    /// Records that are due to it and that it has not read yet, as far as they are counted.
    pub waiting: u64,
}

impl Session {
    /// A new session that sees nothing before `now_at`.
    pub fn new(number: u64, client: &str, now_at: Offset) -> Self {
        Self {
            number,
            client: client.into(),
            connection: None,
            expiry_s: 0,
            left_at: None,
            expires_at: None,
            filters: HashMap::default(),
            shared: Vec::new(),
            window: Window::default(),
            flow: Flow::CatchingUp(now_at),
            ahead: Ahead::default(),
            near_until: Offset(0),
            resend: VecDeque::new(),
            retained: VecDeque::new(),
            arrivals_missed_from: Some(now_at),
            live_since: now_at,
            online_from: now_at,
            arrivals_end: now_at,
            left_end: now_at,
            unreleased: BTreeSet::new(),
            announced: BTreeSet::new(),
            will: None,
            will_at: None,
            will_in_grace: false,
            waits_for_room: false,
            position_saved: now_at,
            recorded: false,
            progressed: false,
            wants_read: false,
            restricted: false,
            has_missed: false,
            waiting: 0,
        }
    }

    /// Whether it outlives its connection, so that the journal must know its state.
    pub const fn is_kept(&self) -> bool {
        self.expiry_s > 0
    }

    /// How many deliveries its client has yet to answer on this connection: those in flight, without the ones from
    /// an earlier connection that still have to be sent again.
    pub fn outstanding(&self) -> usize {
        self.window.unfinished().saturating_sub(self.resend.len())
    }

    /// Leaves the live tail: reads the journal from `next` on. Records at QoS 0 that arrived before
    /// `arrivals_seen` were delivered on arrival and are not delivered again.
    pub fn fall_behind(&mut self, next: Offset, arrivals_seen: Offset) {
        if self.flow == Flow::Live {
            self.ahead = Ahead::nothing();
        }
        self.flow = Flow::CatchingUp(next);
        self.arrivals_missed_from.get_or_insert(arrivals_seen);
    }

    /// Passes over records that are known not to be due to it.
    pub fn skip_ahead(&mut self, durable_end: Offset) {
        if let Flow::CatchingUp(next) = self.flow {
            self.flow = Flow::CatchingUp(self.ahead.after(next, durable_end));
        }
    }

    /// Every record before it that belongs to the session is acknowledged; `durable_end` is where a live session
    /// stands.
    pub fn position(&self, durable_end: Offset) -> Offset {
        // Groups keep account of what is due to them.
        let has_own_filters = self.filters.len() > self.shared.len();
        let served = match self.flow {
            Flow::CatchingUp(next) if has_own_filters => self.ahead.reached(next, durable_end),
            Flow::Live | Flow::CatchingUp(_) => durable_end,
        };
        if plant::is(Bug::PositionPassesInFlight) {
            return served;
        }
        self.window.lowest_offset().map_or(served, |lowest| lowest.min(served))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_ahead_is_gone_to_and_the_rest_is_passed_over() {
        let mut ahead = Ahead::nothing();
        assert_eq!(ahead.after(Offset(3), Offset(90)), Offset(90), "nothing came");
        for offset in [5, 5, 70] {
            ahead.note(Offset(offset));
        }
        assert_eq!(ahead.after(Offset(3), Offset(90)), Offset(5));
        assert_eq!(ahead.after(Offset(5), Offset(90)), Offset(5), "it was not taken");
        assert_eq!(ahead.after(Offset(6), Offset(90)), Offset(70));
        assert_eq!(ahead.after(Offset(71), Offset(90)), Offset(90));
        assert_eq!(ahead.after(Offset(95), Offset(90)), Offset(95), "never back");
    }

    #[test]
    fn behind_a_list_that_is_full_or_unknown_everything_is_looked_at() {
        let mut unknown = Ahead::default();
        unknown.note(Offset(50));
        assert_eq!(unknown.after(Offset(3), Offset(90)), Offset(3));
        let mut full = Ahead::nothing();
        let last = 10 * Ahead::OFFSETS_MAX as u64;
        (1..=Ahead::OFFSETS_MAX as u64 + 5).for_each(|number| full.note(Offset(10 * number)));
        assert_eq!(full.after(Offset(last - 1), Offset(9_000)), Offset(last));
        assert_eq!(full.after(Offset(last + 1), Offset(9_000)), Offset(last + 1));
    }
}
