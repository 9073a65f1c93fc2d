//! What happens when time has passed.
//!
//! A timer that is no longer wanted stays where it is and does nothing when it is due. So that clients which come
//! and go leave nothing behind, all are made anew from the connections and sessions that are there whenever there
//! are many more than those can want.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use super::limits::Limit;
use super::{Broker, Hold, Now, Stage};
use crate::mqtt::ReasonCode;
use crate::record::{Append, Entry};
use crate::session::control::Control;
use crate::slots::Key;

/// How often kept sessions tell the journal how far they are.
pub(super) const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);

/// Sessions looked at for quiet progress at each of these times, if not a fixed part of all are more.
const QUIET_SESSIONS: usize = 1_024;
/// Connections looked at for reads that wait for room, likewise.
const RETRIED_CONNECTIONS: usize = 4_096;

/// Timers that there may be without anyone having piled them up.
const TIMERS_SPARE: usize = 1_024;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Timer {
    /// A connection may have been silent too long, or have sent no CONNECT.
    Silence(Key),
    /// A connection that was too fast may publish again.
    Rate(Key),
    /// A session may have expired.
    Expiry(Key),
    /// A Will may be due.
    Will(Key),
    /// A refusal has waited long enough.
    Refusal(Key),
    /// What a client has proven itself with may have expired.
    Credentials(Key),
    /// Kept sessions tell the journal how far they are.
    Progress,
    /// The values below `$SYS` are brought up to date.
    System,
}

/// Timers in the order in which they are due.
#[derive(Debug, Default)]
pub(super) struct Timers(BinaryHeap<Reverse<(Duration, Timer)>>);

impl Timers {
    pub(super) fn set(&mut self, at: Duration, timer: Timer) {
        self.0.push(Reverse((at, timer)));
    }

    fn next(&self) -> Option<Duration> {
        self.0.peek().map(|Reverse((at, _))| *at)
    }

    fn pop_due(&mut self, now: Duration) -> Option<(Duration, Timer)> {
        if self.next()? > now {
            return None;
        }
        self.0.pop().map(|Reverse(due)| due)
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}

impl Broker {
    /// When [`Broker::handle_timeout`] wants to be called next.
    pub fn poll_timeout(&self) -> Option<Duration> {
        self.timers.next()
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Now, log: &mut dyn Append) {
        while let Some((at, timer)) = self.timers.pop_due(now.monotonic) {
            match timer {
                Timer::Silence(key) => self.check_silence(key, at, now, log),
                Timer::Rate(key) => self.resume_from(key, Hold::Rate),
                Timer::Expiry(key) => self.check_expiry(key, now, log),
                Timer::Will(key) => self.check_will(key, now, log),
                Timer::Refusal(key) => self.answer_refused(key),
                Timer::Credentials(key) => self.check_credentials(key, now, log),
                Timer::System => self.update_system(now),
                Timer::Progress => {
                    self.tell_connections_late(log);
                    self.save_progress(log);
                    self.retry_reads();
                    self.timers.set(now.monotonic + PROGRESS_INTERVAL, Timer::Progress);
                }
            }
        }
    }

    /// Makes all timers anew if most of them must be superfluous: a connection wants one or two, a session at most
    /// two.
    pub(super) fn thin_timers(&mut self) {
        let wanted = 2 * (self.connections.len() + self.sessions.len());
        if self.timers.0.len() <= 2 * wanted + TIMERS_SPARE {
            return;
        }
        let old = std::mem::take(&mut self.timers);
        for Reverse((at, timer)) in old.0 {
            let keep = match timer {
                Timer::Progress | Timer::System => true,
                Timer::Rate(key) => self.connections.get(key).is_some_and(|it| it.hold == Some(Hold::Rate)),
                Timer::Refusal(key) => {
                    self.connections.get(key).is_some_and(|it| matches!(it.stage, Stage::Refusing(_)))
                }
                Timer::Credentials(key) => {
                    self.connections.get(key).is_some_and(|it| it.expiry_checked_at == Some(at))
                }
                Timer::Silence(_) | Timer::Expiry(_) | Timer::Will(_) => false,
            };
            if keep {
                self.timers.set(at, timer);
            }
        }
        for (key, connection) in self.connections.iter() {
            if !connection.silence_at.is_zero() {
                self.timers.set(connection.silence_at, Timer::Silence(key));
            }
        }
        for (key, session) in self.sessions.iter() {
            if let Some(at) = session.expires_at {
                self.timers.set(at, Timer::Expiry(key));
            }
            if let Some(at) = session.will_at {
                self.timers.set(at, Timer::Will(key));
            }
        }
    }

    /// Sees to it that the silence of a connection is looked at when it may have lasted too long.
    pub(super) fn watch_silence(&mut self, key: Key) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        let due = connection.heard_at + connection.silence_max;
        let is_watched = !connection.silence_at.is_zero() && connection.silence_at <= due;
        if !connection.silence_max.is_zero() && !is_watched {
            connection.silence_at = due;
            self.timers.set(due, Timer::Silence(key));
        }
    }

    fn check_silence(&mut self, key: Key, at: Duration, now: Now, log: &mut dyn Append) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        if connection.silence_at != at {
            return;
        }
        connection.silence_at = Duration::ZERO;
        if connection.silence_max.is_zero() || matches!(connection.stage, Stage::Closing | Stage::Refusing(_))
        {
            return;
        }
        match connection.hold {
            // It is not the client that is silent: nothing is read from it.
            Some(Hold::Room | Hold::Rate | Hold::Turn) => connection.heard_at = now.monotonic,
            // It does not read either: as long as it takes something, it lives.
            Some(Hold::Outbox) if connection.took_output => {
                connection.heard_at = now.monotonic;
                connection.took_output = false;
            }
            Some(Hold::Outbox) | None => {}
        }
        if connection.heard_at + connection.silence_max > now.monotonic {
            self.watch_silence(key);
            return;
        }
        if matches!(connection.stage, Stage::AwaitingConnect | Stage::Authenticating) {
            self.reached(Limit::ConnectTimeout);
        }
        tracing::debug!(client = self.client_of(key), "closing a silent connection");
        self.disconnect(key, ReasonCode::KeepAliveTimeout, now, log);
    }

    /// Tells the journal how far kept sessions are: those that have acknowledged something, and by turns the others.
    pub(super) fn save_progress(&mut self, log: &mut dyn Append) {
        /// A session with nothing to acknowledge still moves on, but not worth an entry each second.
        const QUIET_ENTRIES: u64 = 100_000;
        let mut progressing = std::mem::take(&mut self.progressing);
        while let Some(key) = progressing.pop() {
            if !self.save_position(key, 1, log) {
                progressing.push(key);
                self.progressing = progressing;
                return;
            }
        }
        let places = self.sessions.places();
        for key in self.sessions.keys_from(self.quiet_next, QUIET_SESSIONS.max(places / 64)) {
            if !self.save_position(key, QUIET_ENTRIES, log) {
                return;
            }
        }
        self.save_group_progress(QUIET_ENTRIES, log);
        self.quiet_next += QUIET_SESSIONS.max(places / 64);
        if self.quiet_next >= places {
            self.quiet_next = 0;
        }
    }

    /// Writes down how far a kept session is if it has moved by `moved_min`; says whether the journal takes more.
    fn save_position(&mut self, key: Key, moved_min: u64, log: &mut dyn Append) -> bool {
        let durable_end = self.durable_end;
        let Some(session) = self.sessions.get_mut(key).filter(|session| session.is_kept()) else {
            return true;
        };
        let position = session.position(durable_end);
        if position.since(session.position_saved) >= moved_min {
            let progress = Control::Progress { session: session.number, position }.encode();
            if log.append_freeing(&Entry::Control(&progress)).is_err() {
                return false;
            }
            session.position_saved = position;
            session.announced = session.announced.split_off(&position);
        }
        if moved_min == 1 {
            session.progressed = false;
        }
        true
    }

    /// Lets sessions that are behind try again, after room was made where none was.
    fn retry_reads(&mut self) {
        let places = self.connections.places();
        let count = RETRIED_CONNECTIONS.max(places / 16);
        for key in self.connections.keys_from(self.retry_next, count) {
            if let Some(session) = self.connections.get(key).and_then(|connection| connection.session) {
                self.want_read(session);
            }
        }
        self.want_every_group();
        self.retry_next = if self.retry_next + count >= places { 0 } else { self.retry_next + count };
    }
}
