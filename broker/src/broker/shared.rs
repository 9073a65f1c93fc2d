//! Shared subscriptions: the sessions of a group divide what their common filter matches.
//!
//! A group is one more reader of the journal. While it is [`Flow::Live`], records reach it as they become durable;
//! when no member can take one, it is [`Flow::CatchingUp`] from that record's offset and goes on when a member has
//! room. Nothing is queued for it.
//!
//! Always holds:
//!
//! - A record is with one member at a time: it is in flight there, or was acknowledged, or is among those that came
//!   back and go to whoever has room next.
//! - At QoS 1 what an absent member has not acknowledged goes to another as soon as one is connected. At QoS 2 it
//!   stays with its member until that one's session ends, and never goes to another [MQTT-4.8.2-4] [MQTT-4.8.2-5].

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use super::deliver::{Delivered, Load};
use super::ledger::{End, Fate};
use super::{Broker, DropReason, ReadFor, Stage};
use crate::broker::Now;
use crate::plant::{self, Bug};
use crate::record::{Append, Batch, Entry, Offset, Qos, Record};
use crate::router::{Match, SubscriptionOptions};
use crate::session::control::Control;
use crate::session::window::{self, Source};
use crate::session::{Flow, Session};
use crate::slots::Key;
use crate::topic::{TopicFilter, TopicName};

/// A session's part in a group.
#[derive(Clone, Copy, Debug)]
struct Member {
    session: Key,
    options: SubscriptionOptions,
}

/// Whether a member can take a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum CanTake {
    Yes,
    /// Not now.
    Full,
    /// Its client is not connected.
    Away,
    /// The rules do not let its client receive it.
    Never,
}

/// The sessions that share one subscription.
#[derive(Debug)]
pub(super) struct Group {
    /// As it was subscribed: `$share/{ShareName}/{filter}`.
    share: TopicFilter,
    /// The filter alone.
    filter: TopicFilter,
    /// In the order in which they joined; never empty.
    members: Vec<Member>,
    /// The member whose turn it is.
    turn: usize,
    flow: Flow,
    /// With whom records are, and under which Packet Identifier.
    in_flight: BTreeMap<Offset, (Key, u16)>,
    /// Records that came back from members that left.
    returned: BTreeSet<Offset>,
    /// Records that were begun at QoS 2 and lie above the saved position: after a restart they must not be begun
    /// again.
    announced: BTreeSet<Offset>,
    /// Older records do not reach it at QoS 0: nobody was there.
    online_from: Offset,
    position_saved: Offset,
    /// Whether something was acknowledged since `position_saved`.
    progressed: bool,
    wants_read: bool,
    /// Up to here it is known that there may be records for it where it stands.
    near_until: Offset,
    /// Whether entries were trimmed that it had not read.
    pub(super) has_missed: bool,
    /// Records that are due to it and that it has not read yet, as far as they are counted; without `returned`.
    pub(super) waiting: u64,
}

impl Group {
    /// Every record before it that belongs to the group is acknowledged.
    pub(super) fn position(&self, durable_end: Offset) -> Offset {
        let served = match self.flow {
            Flow::Live => durable_end,
            Flow::CatchingUp(next) => next,
        };
        let in_flight = self.in_flight.first_key_value().map(|(offset, _)| *offset);
        let lowest = in_flight.into_iter().chain(self.returned.first().copied()).min();
        lowest.map_or(served, |lowest| lowest.min(served))
    }

    /// Records that wait for a member.
    pub(super) fn waiting_copies(&self) -> u64 {
        self.waiting + self.returned.len() as u64
    }

    fn has_work(&self) -> bool {
        self.flow != Flow::Live || !self.returned.is_empty()
    }

    fn qos_max(&self) -> Qos {
        self.members.iter().map(|member| member.options.qos).max().unwrap_or(Qos::AtMostOnce)
    }
}

/// What a checkpoint keeps of a group besides its members.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
pub(super) struct SavedGroup<'a> {
    #[serde(borrow)]
    share: Cow<'a, str>,
    position: Offset,
    announced: Vec<Offset>,
}

impl Broker {
    /// Makes a session a member of the group of `share`, or changes what it asked for there.
    pub(super) fn join(
        &mut self,
        session_key: Key,
        share: &TopicFilter,
        filter: TopicFilter,
        options: SubscriptionOptions,
    ) {
        let key = match self.by_share.get(share) {
            Some(key) => *key,
            None => self.add_group(share, filter, &options),
        };
        let member = Member { session: session_key, options };
        let Some(group) = self.groups.get_mut(key) else { return };
        match group.members.iter_mut().find(|member| member.session == session_key) {
            Some(earlier) => *earlier = member,
            None => {
                group.members.push(member);
                self.shared_subscriptions += 1;
                if let Some(session) = self.sessions.get_mut(session_key) {
                    session.shared.push(key);
                }
            }
        }
        self.member_arrived(key, session_key, options.since);
    }

    fn add_group(&mut self, share: &TopicFilter, filter: TopicFilter, options: &SubscriptionOptions) -> Key {
        let key = self.groups.insert(Group {
            share: share.clone(),
            filter: filter.clone(),
            members: Vec::new(),
            turn: 0,
            flow: Flow::CatchingUp(options.since),
            in_flight: BTreeMap::new(),
            returned: BTreeSet::new(),
            announced: BTreeSet::new(),
            online_from: options.since,
            position_saved: options.since,
            progressed: false,
            wants_read: false,
            near_until: Offset(0),
            has_missed: false,
            waiting: 0,
        });
        self.by_share.insert(share.clone(), key);
        self.shared_router.subscribe(&filter, key, *options);
        key
    }

    /// A connected session can take part from `end` on: it may be the first, and it may take over from the absent.
    fn member_arrived(&mut self, key: Key, session_key: Key, end: Offset) {
        let is_connected =
            |session: Key| self.sessions.get(session).is_some_and(|session| session.connection.is_some());
        let Some(group) = self.groups.get(key) else { return };
        let alone = !group.members.iter().any(|it| it.session != session_key && is_connected(it.session));
        if !is_connected(session_key) {
            return;
        }
        if alone && let Some(group) = self.groups.get_mut(key) {
            group.online_from = end;
        }
        self.take_back(key);
    }

    /// The client of a session has come: its groups may go on.
    pub(super) fn arrive_in_groups(&mut self, session_key: Key, end: Offset) {
        for key in self.groups_of(session_key) {
            self.member_arrived(key, session_key, end);
        }
    }

    /// The client of a session has gone: others take over what it has not acknowledged.
    pub(super) fn leave_groups(&mut self, session_key: Key) {
        for key in self.groups_of(session_key) {
            self.take_back(key);
        }
    }

    fn groups_of(&self, session_key: Key) -> Vec<Key> {
        self.sessions.get(session_key).map(|session| session.shared.clone()).unwrap_or_default()
    }

    /// Takes QoS 1 records back from absent members, if there is somebody to give them to.
    fn take_back(&mut self, key: Key) {
        let Some(group) = self.groups.get_mut(key).filter(|_| !plant::is(Bug::SharedNotHandedOver)) else {
            return;
        };
        let sessions = &mut self.sessions;
        let is_connected = |key: Key| sessions.get(key).is_some_and(|session| session.connection.is_some());
        if !group.members.iter().any(|member| is_connected(member.session)) {
            return;
        }
        let Group { in_flight, returned, .. } = group;
        let returned_before = returned.len();
        in_flight.retain(|offset, (holder, packet_id)| {
            let Some(session) = sessions.get_mut(*holder) else { return false };
            let absent = session.connection.is_none();
            let qos = session.window.find(*packet_id).map(|delivery| delivery.qos);
            let takes_back = qos == Some(Qos::AtLeastOnce) || plant::is(Bug::SharedHandedOverTwice);
            if !absent || !takes_back {
                return true;
            }
            session.window.finish(*packet_id);
            returned.insert(*offset);
            false
        });
        let came_back = (returned.len() - returned_before) as u64;
        self.book_returned(came_back);
        self.want_group(key);
    }

    /// A session unsubscribes: what it has in flight is completed as its own [MQTT-3.10.4-3].
    pub(super) fn part(&mut self, session_key: Key, share: &TopicFilter) {
        let Some(&key) = self.by_share.get(share) else { return };
        let Some(group) = self.groups.get_mut(key) else { return };
        if let Some(session) = self.sessions.get_mut(session_key) {
            session.shared.retain(|joined| *joined != key);
            group.in_flight.retain(|offset, (holder, packet_id)| {
                if *holder != session_key {
                    return true;
                }
                if let Some(delivery) = session.window.find(*packet_id) {
                    delivery.source = Source::Journal(*offset);
                    if delivery.qos == Qos::ExactlyOnce {
                        session.announced.insert(*offset);
                    }
                }
                false
            });
        }
        self.remove_member(key, session_key, DropReason::Unsubscribed);
    }

    /// A session has ended: what it had begun at QoS 1 goes to others, at QoS 2 it is dropped [MQTT-4.8.2-5].
    pub(super) fn end_in_groups(&mut self, session_key: Key, session: &mut Session) {
        for key in std::mem::take(&mut session.shared) {
            let Some(group) = self.groups.get_mut(key) else { continue };
            let Group { in_flight, returned, announced, .. } = group;
            let returned_before = returned.len();
            let mut dropped = 0;
            in_flight.retain(|offset, (holder, packet_id)| {
                if *holder != session_key {
                    return true;
                }
                let begun = session.window.find(*packet_id).map(|delivery| (delivery.qos, delivery.stage));
                match begun {
                    Some((Qos::AtLeastOnce, _) | (_, window::Stage::Announced)) => {
                        announced.remove(offset);
                        returned.insert(*offset);
                    }
                    Some(_) => dropped += 1,
                    None => {}
                }
                false
            });
            let came_back = (returned.len() - returned_before) as u64;
            self.book_returned(came_back);
            self.dropped(DropReason::SessionEnded, dropped);
            for _ in 0..dropped {
                self.book_end(End::Dropped(DropReason::SessionEnded));
            }
            self.remove_member(key, session_key, DropReason::SessionEnded);
        }
    }

    /// Takes a session off a group; a group that nobody is in is no more, and what waits for it is dropped.
    fn remove_member(&mut self, key: Key, session_key: Key, reason: DropReason) {
        let Some(group) = self.groups.get_mut(key) else { return };
        if let Some(index) = group.members.iter().position(|member| member.session == session_key) {
            group.members.remove(index);
            self.shared_subscriptions -= 1;
            group.turn -= usize::from(group.turn > index);
        }
        if !group.members.is_empty() {
            self.want_group(key);
            return;
        }
        if let Some(group) = self.groups.remove(key) {
            self.by_share.remove(&group.share);
            self.shared_router.unsubscribe(&group.filter, key);
            self.book_lost(group.waiting_copies(), reason);
        }
    }

    /// Delivers a record that has become durable to one member of each group in `matches`.
    pub(super) fn deliver_to_groups(
        &mut self,
        matches: &[Match],
        load: Load<'_>,
        now: Now,
        log: &mut dyn Append,
    ) {
        for found in matches {
            let key = found.session;
            let live = self.groups.get(key).is_some_and(|group| group.flow == Flow::Live);
            if !live {
                self.let_wait_for_group(key);
                continue;
            }
            match self.dispatch(key, load, now, log) {
                Delivered::Done(fate) => self.book_new(fate),
                Delivered::Behind => {
                    if let Some(group) = self.groups.get_mut(key) {
                        group.flow = Flow::CatchingUp(load.offset);
                    }
                    self.let_wait_for_group(key);
                }
            }
        }
    }

    /// Gives a record to the member whose turn it is among those that can take it.
    fn dispatch(&mut self, key: Key, load: Load<'_>, now: Now, log: &mut dyn Append) -> Delivered {
        let Some(group) = self.groups.get(key) else { return Delivered::Behind };
        let (count, turn) = (group.members.len(), group.turn);
        let load = Load { group: Some(key), ..load };
        let (mut permitted, mut denied) = (false, false);
        for step in 0..count {
            let at = (turn + step) % count;
            let Some(member) = self.groups.get(key).and_then(|group| group.members.get(at).copied()) else {
                return Delivered::Behind;
            };
            match self.can_take(member.session, load.record.topic) {
                CanTake::Yes => permitted = true,
                CanTake::Full => {
                    permitted = true;
                    continue;
                }
                CanTake::Away => {
                    continue;
                }
                CanTake::Never => {
                    denied = true;
                    continue;
                }
            }
            let found = Match::of(member.session, &member.options);
            let delivered = self.deliver(&found, load, None, now, log);
            if delivered == Delivered::Behind {
                continue;
            }
            if let Some(group) = self.groups.get_mut(key) {
                group.turn = (at + 1) % count;
            }
            return delivered;
        }
        if permitted || !denied {
            return Delivered::Behind;
        }
        // What none of those who are here may receive is left out, so that it does not hold up the rest.
        self.dropped(DropReason::Denied, 1);
        Delivered::Done(Fate::Dropped(DropReason::Denied))
    }

    /// Whether a session's client can take one more record now, from `topic`.
    fn can_take(&self, session_key: Key, topic: TopicName<'_>) -> CanTake {
        let Some(session) = self.sessions.get(session_key) else { return CanTake::Away };
        let Some(connection) = session.connection.and_then(|key| self.connections.get(key)) else {
            return CanTake::Away;
        };
        if !connection.may_receive(&self.rules, topic) {
            return CanTake::Never;
        }
        if self.has_room(session_key) { CanTake::Yes } else { CanTake::Full }
    }

    /// Whether a session's client can take one more record now.
    fn has_room(&self, session_key: Key) -> bool {
        let Some(session) = self.sessions.get(session_key) else { return false };
        let Some(connection) = session.connection.and_then(|key| self.connections.get(key)) else {
            return false;
        };
        connection.greeted
            && connection.stage == Stage::Connected
            && connection.outbox.len() <= self.limits.outgoing_bytes
            && session.window.has_room(connection.in_flight_max)
    }

    /// Notes with whom a record is now.
    pub(super) fn note_in_flight(&mut self, key: Key, offset: Offset, holder: Key, packet_id: u16) {
        if let Some(group) = self.groups.get_mut(key) {
            group.in_flight.insert(offset, (holder, packet_id));
        }
    }

    /// Notes that a record was begun at QoS 2.
    pub(super) fn note_announced(&mut self, key: Key, offset: Offset) {
        if let Some(group) = self.groups.get_mut(key) {
            group.announced.insert(offset);
        }
    }

    /// The filter of a group, with its ShareName.
    pub(super) fn share(&self, key: Key) -> Option<TopicFilter> {
        self.groups.get(key).map(|group| group.share.clone())
    }

    /// A member has acknowledged a record in full.
    pub(super) fn settle(&mut self, session_key: Key, offset: Offset, packet_id: u16) {
        let Some(session) = self.sessions.get(session_key) else { return };
        for key in &session.shared {
            if let Some(group) = self.groups.get_mut(*key)
                && group.in_flight.get(&offset) == Some(&(session_key, packet_id))
            {
                group.in_flight.remove(&offset);
                group.progressed = true;
                return;
            }
        }
    }

    /// What the member asked for whose delivery this is.
    pub(super) fn shared_match(&self, session_key: Key, offset: Offset, packet_id: u16) -> Option<Match> {
        let share = self.share_of(session_key, offset, packet_id)?;
        let options = self.sessions.get(session_key)?.filters.get(share)?;
        Some(Match::of(session_key, options))
    }

    /// The group for which a delivery is in flight.
    pub(super) fn share_of(&self, session_key: Key, offset: Offset, packet_id: u16) -> Option<&TopicFilter> {
        let session = self.sessions.get(session_key)?;
        let mut groups = session.shared.iter().filter_map(|key| self.groups.get(*key));
        groups
            .find(|group| group.in_flight.get(&offset) == Some(&(session_key, packet_id)))
            .map(|group| &group.share)
    }

    /// Puts the groups of a session that have work on the list of those that want to read.
    pub(super) fn want_groups(&mut self, session_key: Key) {
        let joined = self.sessions.get(session_key).map_or(0, |session| session.shared.len());
        for index in 0..joined {
            let session = self.sessions.get(session_key);
            if let Some(key) = session.and_then(|session| session.shared.get(index).copied()) {
                self.want_group(key);
            }
        }
    }

    pub(super) fn want_every_group(&mut self) {
        for key in self.groups.keys() {
            self.want_group(key);
        }
    }

    fn want_group(&mut self, key: Key) {
        if let Some(group) = self.groups.get_mut(key)
            && group.has_work()
            && !group.wants_read
        {
            group.wants_read = true;
            self.reads.push_back(ReadFor::Group(key));
        }
    }

    /// The offset that a group must read, if a member has room for what is there.
    pub(super) fn next_group_read(&mut self, key: Key) -> Option<Offset> {
        let durable_end = self.durable_end;
        let group = self.groups.get_mut(key)?;
        group.wants_read = false;
        let group = self.groups.get(key)?;
        if !group.members.iter().any(|member| self.has_room(member.session)) {
            return None;
        }
        let group = self.groups.get_mut(key)?;
        if let Some(&offset) = group.returned.first() {
            return Some(offset);
        }
        match group.flow {
            Flow::Live => None,
            Flow::CatchingUp(next) if next >= durable_end => {
                group.flow = Flow::Live;
                self.book_group_caught_up(key);
                None
            }
            Flow::CatchingUp(next) => Some(next),
        }
    }

    /// As in [`Broker::looks_for`].
    pub(super) fn group_looks_for(&self, key: Key, offset: Offset) -> Option<Vec<&TopicFilter>> {
        let group = self.groups.get(key)?;
        let looks =
            group.returned.is_empty() && group.flow == Flow::CatchingUp(offset) && offset >= group.near_until;
        looks.then(|| vec![&group.filter])
    }

    /// As in [`Broker::passed_over`].
    pub(super) fn group_passed_over(&mut self, key: Key, next: Offset, near_until: Offset) {
        let Some(group) = self.groups.get_mut(key) else { return };
        group.near_until = near_until;
        if group.flow != Flow::CatchingUp(next) {
            group.flow = Flow::CatchingUp(next);
            self.want_group(key);
        }
    }

    /// A batch for a group, as in [`Broker::read`].
    pub(super) fn read_group(&mut self, key: Key, batch: &Batch, now: Now, log: &mut dyn Append) {
        let Some(group) = self.groups.get(key) else { return };
        self.is_refused = false;
        if group.returned.is_empty() {
            self.catch_up_group(key, batch, now, log);
        } else {
            self.give_returned(key, batch, now, log);
        }
        if !self.is_refused {
            self.want_group(key);
        }
    }

    /// Gives records that came back, and that lie in `batch`, to other members.
    fn give_returned(&mut self, key: Key, batch: &Batch, now: Now, log: &mut dyn Append) {
        let Some(group) = self.groups.get_mut(key) else { return };
        // The batch was read for the first of them; if that lies below it, it was trimmed, and in a gap it is lost.
        let kept_from = if batch.is_gap() { batch.end() } else { batch.base() };
        let kept = group.returned.split_off(&kept_from);
        let trimmed = std::mem::replace(&mut group.returned, kept).len();
        if trimmed > 0 {
            tracing::warn!(share = %group.share, trimmed, "records of a shared subscription were trimmed before another member took them");
        }
        let due: Vec<Offset> = group.returned.range(..batch.end()).copied().collect();
        self.dropped(DropReason::Trimmed, trimmed as u64);
        self.book_lost(trimmed as u64, DropReason::Trimmed);
        let mut entries = batch.entries();
        for offset in due {
            let found = entries.find(|(place, _)| place.offset >= offset);
            let fate = match found {
                Some((place, Entry::Record(record))) if place.offset == offset => {
                    let load = Load { record: &record, batch: Some(batch), offset, group: None };
                    match self.dispatch(key, load, now, log) {
                        Delivered::Done(fate) => fate,
                        Delivered::Behind => return,
                    }
                }
                Some(_) | None => Fate::Dropped(DropReason::Trimmed),
            };
            self.book_given(fate);
            if let Some(group) = self.groups.get_mut(key) {
                group.returned.remove(&offset);
            }
        }
    }

    fn catch_up_group(&mut self, key: Key, batch: &Batch, now: Now, log: &mut dyn Append) {
        let durable_end = self.durable_end;
        let Some(group) = self.groups.get(key) else { return };
        let Flow::CatchingUp(mut next) = group.flow else { return };
        if batch.base() > next {
            let trimmed = batch.base().since(next);
            tracing::warn!(share = %group.share, trimmed, "a shared subscription was too far behind: records were trimmed before it read them");
            if let Some(group) = self.groups.get_mut(key) {
                group.has_missed = true;
            }
            self.dropped(DropReason::Trimmed, trimmed);
            next = batch.base();
        }
        if batch.is_gap() {
            self.dropped(DropReason::Trimmed, batch.starting_at(next).lost());
            next = next.max(batch.end());
        }
        for (place, entry) in batch.entries_from(next) {
            if place.offset >= durable_end {
                break;
            }
            if let Entry::Record(record) = entry
                && self.is_due_to_group(key, &record, place.offset)
            {
                let load = Load { record: &record, batch: Some(batch), offset: place.offset, group: None };
                match self.dispatch(key, load, now, log) {
                    Delivered::Done(fate) => self.book_read_by_group(key, place.offset, fate),
                    Delivered::Behind => break,
                }
            }
            next = place.offset.plus(1);
        }
        if let Some(group) = self.groups.get_mut(key) {
            group.flow = Flow::CatchingUp(next);
        }
    }

    fn is_due_to_group(&self, key: Key, record: &Record<'_>, offset: Offset) -> bool {
        let Some(group) = self.groups.get(key) else { return false };
        // What came while nobody was there is not kept at QoS 0.
        let missed = offset < group.online_from && group.qos_max().min(record.qos) == Qos::AtMostOnce;
        !missed && !group.announced.contains(&offset) && group.filter.matches(record.topic)
    }

    /// Tells the journal how far the groups with kept members are.
    pub(super) fn save_group_progress(&mut self, quiet_entries: u64, log: &mut dyn Append) {
        let durable_end = self.durable_end;
        for key in self.groups.keys() {
            if !self.is_kept_group(key) {
                continue;
            }
            let Some(group) = self.groups.get_mut(key) else { continue };
            let position = group.position(durable_end);
            let moved = position.since(group.position_saved);
            if moved == 0 || (moved < quiet_entries && !group.progressed) {
                continue;
            }
            let share = Cow::Borrowed(group.share.as_str());
            if log
                .append_freeing(&Entry::Control(&Control::SharedProgress { share, position }.encode()))
                .is_err()
            {
                return;
            }
            group.moved_to(position);
        }
    }

    fn is_kept_group(&self, key: Key) -> bool {
        let kept = |session: Key| self.sessions.get(session).is_some_and(Session::is_kept);
        self.groups.get(key).is_some_and(|group| group.members.iter().any(|it| kept(it.session)))
    }

    /// The oldest offset that a group with kept members still needs.
    pub(super) fn lowest_group_position(&self) -> Option<Offset> {
        let kept = self.groups.iter().filter(|(key, _)| self.is_kept_group(*key));
        kept.map(|(_, group)| group.position(self.durable_end)).min()
    }

    pub(super) fn saved_groups(&self) -> Vec<SavedGroup<'_>> {
        let kept = self.groups.iter().filter(|(key, _)| self.is_kept_group(*key));
        kept.map(|(_, group)| SavedGroup {
            share: Cow::Borrowed(group.share.as_str()),
            position: group.position(self.durable_end),
            announced: group.announced.iter().copied().collect(),
        })
        .collect()
    }

    /// Where a group goes on after a restart. Its members are there already.
    pub(super) fn restore_group(&mut self, saved: &SavedGroup<'_>) {
        if let Some(group) = self.group_of(&saved.share) {
            group.announced.extend(saved.announced.iter().copied());
        }
        self.replay_shared_progress(&saved.share, saved.position);
    }

    pub(super) fn replay_shared_progress(&mut self, share: &str, position: Offset) {
        if let Some(group) = self.group_of(share) {
            group.flow = Flow::CatchingUp(position);
            group.moved_to(position);
        }
    }

    /// A delivery at QoS 2 that a member had begun before a restart.
    pub(super) fn restore_shared(&mut self, session_key: Key, share: &str, packet_id: u16, offset: Offset) {
        if let Some(group) = self.group_of(share) {
            group.announced.insert(offset);
            group.in_flight.insert(offset, (session_key, packet_id));
        }
    }

    fn group_of(&mut self, share: &str) -> Option<&mut Group> {
        let key = *self.by_share.get(share)?;
        self.groups.get_mut(key)
    }
}

impl Group {
    fn moved_to(&mut self, position: Offset) {
        self.position_saved = position;
        self.progressed = false;
        self.announced = self.announced.split_off(&position);
    }
}
