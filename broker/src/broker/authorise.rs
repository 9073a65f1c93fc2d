//! What the rules say of what a connected client does.
//!
//! Nothing is asked for a client that may do everything, nor for a publish to the topic of the one before. Who may
//! receive a topic is asked when the topic's matches are worked out, and then remembered with them; a session without
//! a connection counts as one that may, because nothing is sent to it and its next connection asks again.

use super::{Broker, Connection};
use crate::auth::{Attempt, Identity, Rules, Verdict};
use crate::broker::Now;
use crate::router::Matches;
use crate::session::Session;
use crate::slots::{Key, Slots};
use crate::topic::{TopicFilter, TopicName};

impl Connection {
    /// Whether its client may receive from `topic`.
    pub(super) fn may_receive(&self, rules: &Rules, topic: TopicName<'_>) -> bool {
        self.unrestricted
            || self.identity.as_ref().is_some_and(|identity| rules.lets_receive(identity, topic))
    }
}

impl Broker {
    /// The client of a connection is `identity` from now on.
    pub(super) fn set_identity(&mut self, key: Key, identity: Identity, now: Now) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        connection.unrestricted = self.rules.is_unrestricted(&identity);
        connection.may_publish.clear();
        let expires = identity.expires();
        connection.identity = Some(identity);
        if let Some(expires) = expires {
            self.expect_expiry(key, expires, now);
        }
    }

    /// Forgets every answer if the rules have changed. Costs a load where they have not.
    pub(super) fn check_rules(&mut self) {
        let version = self.access.rules_version();
        if version == self.rules_version {
            return;
        }
        self.rules_version = version;
        self.rules = self.access.rules();
        self.router.forget();
        for key in self.connections.keys() {
            let Some(connection) = self.connections.get_mut(key) else { continue };
            connection.may_publish.clear();
            let Some(identity) = &connection.identity else { continue };
            connection.unrestricted = self.rules.is_unrestricted(identity);
            let session = connection.session.and_then(|session| self.sessions.get_mut(session));
            if let Some(session) = session {
                session.restricted = !connection.unrestricted;
            }
        }
    }

    /// Forgets who receives what if a session gets a client that may receive other things than the one before.
    pub(super) fn check_matches(&mut self, key: Key, session: Key) {
        let Some(connection) = self.connections.get(key) else { return };
        let Some(session) = self.sessions.get_mut(session) else { return };
        let restricted = !connection.unrestricted;
        if !session.filters.is_empty() && (restricted || session.restricted) {
            self.router.forget();
        }
        session.restricted = restricted;
    }

    /// The sessions that `topic` goes to.
    pub(super) fn matches(&mut self, topic: TopicName<'_>) -> Matches {
        let may = may_receive(&self.rules, &self.sessions, &self.connections, topic);
        self.router.matches(topic, may)
    }

    /// The same, without remembering it.
    pub(super) fn look_up(&self, topic: TopicName<'_>) -> Matches {
        self.router.look_up(topic, may_receive(&self.rules, &self.sessions, &self.connections, topic))
    }

    /// Whether the client of a connection may publish to `topic`; if not, that is counted and logged.
    pub(super) fn may_publish(&mut self, key: Key, topic: TopicName<'_>, now: Now) -> bool {
        let Some(connection) = self.connections.get_mut(key) else { return false };
        if connection.unrestricted && !topic.is_system() {
            return true;
        }
        if connection.may_publish == topic.as_str() {
            return true;
        }
        let Some(identity) = &connection.identity else { return false };
        match self.rules.may_publish(identity, topic) {
            Verdict::Allowed => {
                connection.may_publish.clear();
                connection.may_publish.push_str(topic.as_str());
                true
            }
            Verdict::Denied(rule) => {
                self.access.note_denial(identity, Attempt::Publish, topic.as_str(), &rule, now.wall);
                false
            }
        }
    }

    /// Whether there is anything in `filter` for the client of a connection; if not, that is counted and logged.
    pub(super) fn may_subscribe(&self, key: Key, filter: &TopicFilter, now: Now) -> bool {
        let Some(connection) = self.connections.get(key) else { return false };
        if connection.unrestricted {
            return true;
        }
        let Some(identity) = &connection.identity else { return false };
        let inner = filter.shared().ok().flatten().map(|(_, inner)| inner);
        match self.rules.may_subscribe(identity, inner.as_ref().unwrap_or(filter)) {
            Verdict::Allowed => true,
            Verdict::Denied(rule) => {
                self.access.note_denial(identity, Attempt::Subscribe, filter.as_str(), &rule, now.wall);
                false
            }
        }
    }
}

/// Says of each session whether it may receive from `topic`.
fn may_receive(
    rules: &Rules,
    sessions: &Slots<Session>,
    connections: &Slots<Connection>,
    topic: TopicName<'_>,
) -> impl Fn(Key) -> bool {
    move |session| {
        let key = sessions.get(session).and_then(|session| session.connection);
        let Some(connection) = key.and_then(|key| connections.get(key)) else { return true };
        connection.may_receive(rules, topic)
    }
}
