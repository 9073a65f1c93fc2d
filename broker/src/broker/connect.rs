//! How clients come and go: CONNECT, takeover, DISCONNECT, Wills, the end of sessions.

use std::borrow::Cow;
use std::time::Duration;

use super::aliases::OutgoingAliases;
use super::timers::Timer;
use super::{Broker, Ending, Leaving, Limit, Release, Stage, TOPIC_ALIASES_MAX};
use crate::auth::{Denied, Identity, Login};
use crate::broker::Now;
use crate::mqtt::{ConnAck, Connect, ConnectError, Disconnect, ReasonCode, Version, encode};
use crate::plant::{self, Bug};
use crate::record::{Append, Entry, Offset, Properties, Record, Refused};
use crate::session::control::{Control, Will};
use crate::session::window;
use crate::session::{Ahead, Flow, NEVER_EXPIRES, Session};
use crate::slots::Key;
use crate::topic::TopicName;

/// How long a Will waits that the full journal has refused.
const WILL_RETRY: Duration = Duration::from_secs(1);

impl Broker {
    /// Whether the client was let in, and its connection is not closing.
    pub fn is_let_in(&self, key: Key) -> bool {
        self.connections.get(key).is_some_and(|connection| connection.stage == Stage::Connected)
    }

    /// The first packet was no CONNECT that may be received.
    pub(super) fn reject(&mut self, key: Key, error: &ConnectError) {
        if let Some(connection) = self.connections.get(key) {
            tracing::debug!(peer = %connection.peer, %error, "refusing a connection");
        }
        self.stats.connections_refused_total += 1;
        self.close(key);
    }

    /// `packet` are the bytes of `connect`.
    pub(super) fn handle_connect(
        &mut self,
        key: Key,
        connect: &Connect<'_>,
        packet: &[u8],
        now: Now,
        log: &mut dyn Append,
    ) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        connection.version = connect.version;
        if let Some(reason) = connection.refusal {
            self.refuse(key, connect.version, reason);
            return;
        }
        let peer = connection.peer;
        if self.journal_failed {
            // Its CONNACK would wait for the entries before it.
            self.refuse(key, connect.version, ReasonCode::ServerUnavailable);
            return;
        }
        if let Some(reason) = unfit(connect) {
            self.refuse(key, connect.version, reason);
            return;
        }
        if self.access.wait_of(peer, now.wall).is_some() {
            self.refuse(key, connect.version, ReasonCode::ConnectionRateExceeded);
            return;
        }
        let assigned = connect.client_id.is_empty().then(|| self.assign_client_id());
        if let Some(method) = connect.authentication_method {
            self.begin_exchange(key, method, connect, packet, assigned, now, log);
            return;
        }
        let client = assigned.as_deref().unwrap_or(connect.client_id);
        match self.admit(key, connect, client, now) {
            Ok(identity) => self.welcome(key, identity, connect, assigned.as_deref(), now, log),
            Err(denied) => {
                let reason = match denied {
                    Denied::BadCredentials => ReasonCode::BadUserNameOrPassword,
                    Denied::NotAuthorised => ReasonCode::NotAuthorized,
                };
                self.refuse_login(key, client, denied, reason, now);
            }
        }
    }

    /// The client is `identity`: it gets its session.
    pub(super) fn welcome(
        &mut self,
        key: Key,
        identity: Identity,
        connect: &Connect<'_>,
        assigned: Option<&str>,
        now: Now,
        log: &mut dyn Append,
    ) {
        let client = assigned.unwrap_or(connect.client_id);
        self.set_identity(key, identity, now);
        if let Some(will) = &connect.will
            && !self.may_publish(key, will.topic, now)
        {
            self.refuse(key, connect.version, ReasonCode::NotAuthorized);
            return;
        }
        if let Some((limit, reason)) = self.limit_of_connect(client, connect) {
            self.reached(limit);
            self.refuse(key, connect.version, reason);
            return;
        }
        match self.open_session(client, connect, now, log) {
            Ok((session, present)) => self.accept(key, session, present, connect, assigned, now, log),
            Err(Refused::Full) => self.refuse(key, connect.version, ReasonCode::QuotaExceeded),
            Err(Refused::Failed) => self.refuse(key, connect.version, ReasonCode::ServerUnavailable),
        }
    }

    /// Who the client is, if it may connect; `client` is its Client Identifier, or the one assigned to it.
    fn admit(&self, key: Key, connect: &Connect<'_>, client: &str, now: Now) -> Result<Identity, Denied> {
        let connection = self.connections.get(key).ok_or(Denied::NotAuthorised)?;
        let login = Login {
            peer: connection.peer,
            client,
            username: connect.username,
            password: connect.password,
            certificate: connection.certificate.as_deref(),
        };
        self.access.connect(&login, now.wall)
    }

    pub(super) fn refuse(&mut self, key: Key, version: Version, reason: ReasonCode) {
        self.stats.connections_refused_total += 1;
        self.stats.packets_out_total += 1;
        encode::connack_refused(self.outbox(key), version, reason);
        self.close(key);
    }

    /// The limit that keeps a client out that may come in, and how it is told.
    fn limit_of_connect(&self, client: &str, connect: &Connect<'_>) -> Option<(Limit, ReasonCode)> {
        if self.sessions.len() >= self.limits.sessions && !self.by_client.contains_key(client) {
            return Some((Limit::Sessions, ReasonCode::QuotaExceeded));
        }
        let will = connect.will.as_ref().filter(|will| self.is_too_deep(will.topic.as_str()));
        will.map(|_| (Limit::TopicLevels, ReasonCode::TopicNameInvalid))
    }

    fn assign_client_id(&mut self) -> String {
        // Session numbers are never used again, so the identifier is new; the seed makes it hard to guess.
        self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(self.next_session | 1);
        format!("tidegate-{:x}-{:08x}", self.next_session, self.seed >> 32)
    }

    /// The session that `client` goes on with, or a new one, and whether it was there.
    fn open_session(
        &mut self,
        client: &str,
        connect: &Connect<'_>,
        now: Now,
        log: &mut dyn Append,
    ) -> Result<(Key, bool), Refused> {
        if let Some(session) = self.by_client.get(client).copied() {
            // What was due before it came is done before it comes, whenever the timers are looked at.
            self.check_will(session, now, log);
            self.check_expiry(session, now, log);
            if self.sessions.get(session).is_some_and(|session| session.waits_for_room) {
                return Err(Refused::Full);
            }
        }
        let earlier = self.by_client.get(client).copied();
        if let Some(session) = earlier
            && let Some(connection) = self.sessions.get(session).and_then(|session| session.connection)
        {
            // [MQTT-3.1.4-3]
            self.finish_with(connection, ReasonCode::SessionTakenOver);
            self.leave(connection, Leaving::TakenOver, now, log);
        }
        let mut earlier = self.by_client.get(client).copied();
        if let Some(session) = earlier.and_then(|session| self.sessions.get_mut(session))
            && session.will_in_grace
        {
            session.will = None;
            session.will_in_grace = false;
        }
        if let Some(session) = earlier.filter(|_| connect.clean_start) {
            self.publish_will(session, now, log);
            self.end_session(session, log);
            earlier = None;
        }
        let will = connect.will.as_ref().map(|will| Will {
            topic: will.topic.as_str().into(),
            properties: will.travelling(&mut Vec::new()).encoded().into(),
            payload: will.payload.into(),
            qos: will.qos,
            retain: will.retain,
            delay_s: will.delay_s,
        });
        let number = earlier
            .and_then(|session| self.sessions.get(session))
            .map_or(self.next_session, |session| session.number);
        let expiry_s = self.granted_expiry(connect);
        let mut recorded = false;
        if expiry_s > 0 || will.is_some() || earlier.is_some() {
            let control = Control::Connected {
                session: number,
                client: Cow::Borrowed(client),
                expiry_s,
                will: will.as_ref().map(Cow::Borrowed),
            };
            recorded = match log.append(&Entry::Control(&control.encode())) {
                Ok(_) => true,
                Err(refused) => self.do_without(refused, earlier, &control, log)?,
            };
        }
        let present = earlier.is_some();
        let key = earlier.unwrap_or_else(|| {
            self.next_session += 1;
            self.add_session(Session::new(number, client, log.end()))
        });
        let session = self.sessions.get_mut(key).expect("it was found or made above");
        session.recorded |= recorded;
        session.expiry_s = expiry_s;
        session.will = will;
        session.will_at = None;
        session.left_at = None;
        session.expires_at = None;
        Ok((key, present))
    }

    /// The journal refuses to take down that a client has come. If it is full, it may be for what that client has not
    /// read yet, so a session that is there goes on. Says whether the journal has it after all; else it is told later.
    fn do_without(
        &mut self,
        refused: Refused,
        earlier: Option<Key>,
        control: &Control<'_>,
        log: &mut dyn Append,
    ) -> Result<bool, Refused> {
        let Some(key) = earlier.filter(|_| refused == Refused::Full) else { return Err(refused) };
        let Some(session) = self.sessions.get(key) else { return Err(refused) };
        let Control::Connected { expiry_s, will, .. } = control else { return Err(refused) };
        if will.is_none() && session.will.is_none() && *expiry_s == session.expiry_s && session.recorded {
            self.untold.push(key);
            Ok(false)
        } else if session.position(self.durable_end) < self.durable_end {
            log.append_freeing(&Entry::Control(&control.encode())).map(|_| true)
        } else {
            Err(refused)
        }
    }

    fn granted_expiry(&self, connect: &Connect<'_>) -> u32 {
        let wished = match connect.version {
            Version::V31 | Version::V311 if connect.clean_start => 0,
            Version::V31 | Version::V311 => NEVER_EXPIRES,
            Version::V5 => connect.session_expiry_s,
        };
        wished.min(self.limits.session_expiry_s)
    }

    #[allow(clippy::too_many_arguments)]
    fn accept(
        &mut self,
        key: Key,
        session_key: Key,
        present: bool,
        connect: &Connect<'_>,
        assigned: Option<&str>,
        now: Now,
        log: &mut dyn Append,
    ) {
        let keep_alive_s = match (connect.keep_alive_s, self.limits.keep_alive_s) {
            (wished, 0) => wished,
            // MQTT 3 cannot be told another one, so its own holds [MQTT-3.1.2-24].
            (wished, _) if !connect.version.is_v5() => wished,
            // Who turns it off has chosen to; whoever is limited sends something in time.
            (0, _) => 0,
            (wished, longest) => wished.min(longest),
        };
        let in_flight_max = self.limits.in_flight.min(connect.receive_maximum);
        self.check_matches(key, session_key);
        let Some(connection) = self.connections.get_mut(key) else { return };
        let proof = connection.enhanced.as_mut().map(|enhanced| enhanced.take_proof());
        connection.stage = Stage::Connected;
        connection.session = Some(session_key);
        connection.heard_at = now.monotonic;
        if self.limits.publish_rate > 0 || self.limits.publish_bytes_rate > 0 {
            connection.rates = Some(Box::default());
        }
        // One and a half times the Keep Alive [MQTT-3.1.2-22].
        connection.silence_max = Duration::from_millis(u64::from(keep_alive_s) * 1_500);
        connection.in_flight_max = in_flight_max;
        connection.packet_bytes_max = connect.maximum_packet_bytes.map_or(usize::MAX, |bytes| bytes as usize);
        connection.takes_words = connect.request_problem_information;
        connection.aliases_out = OutgoingAliases::new(connect.topic_alias_maximum);
        self.watch_silence(key);
        let session = self.sessions.get_mut(session_key).expect("it was opened for this connection");
        session.connection = Some(key);
        session.online_from = log.end();
        session.arrivals_missed_from = Some(log.end());
        session.live_since = log.end();
        let in_flight: Vec<_> = session.window.iter().map(|(id, delivery)| (id, delivery.stage)).collect();
        let granted = (session.expiry_s != connect.session_expiry_s).then_some(session.expiry_s);
        let kept = session.is_kept();
        self.arrive_in_groups(session_key, log.end());
        let answer = ConnAck {
            session_present: present,
            session_expiry_s: granted.filter(|_| connect.version.is_v5()),
            receive_maximum: self.limits.receive_maximum,
            maximum_packet_bytes: u32::try_from(self.limits.packet_bytes).ok(),
            assigned_client_id: assigned,
            topic_alias_maximum: TOPIC_ALIASES_MAX,
            server_keep_alive_s: (keep_alive_s != connect.keep_alive_s).then_some(keep_alive_s),
            authentication_method: proof.as_ref().map(|(method, _)| method.name()),
            authentication_data: proof.as_ref().map(|(_, data)| &data[..]).filter(|data| !data.is_empty()),
            ..ConnAck::default()
        };
        let mut packet = Vec::with_capacity(32);
        encode::connack(&mut packet, connect.version, &answer);
        let gate = if kept && !plant::is(Bug::ConnackBeforeDurable) { log.end() } else { Offset(0) };
        self.stats.connects_total += 1;
        self.stats.sessions_connected += 1;
        self.stats.sessions_connected_max =
            self.stats.sessions_connected_max.max(self.stats.sessions_connected);
        self.tell_connected(key, session_key, connect.clean_start, present, now);
        self.answer(key, gate, packet, now, log);
        // It is gone already if the CONNACK is more than it takes.
        if self.connections.get(key).is_some_and(|connection| connection.session == Some(session_key)) {
            self.resume(key, session_key, &in_flight, log);
        }
    }

    /// Goes on with the deliveries that an earlier connection left unfinished [MQTT-4.4.0-1].
    fn resume(
        &mut self,
        key: Key,
        session_key: Key,
        in_flight: &[(u16, window::Stage)],
        log: &mut dyn Append,
    ) {
        for &(packet_id, stage) in in_flight {
            match stage {
                window::Stage::Sent if plant::is(Bug::NotSentAgain) => {}
                window::Stage::Sent => {
                    if let Some(session) = self.sessions.get_mut(session_key) {
                        session.resend.push_back(packet_id);
                    }
                }
                window::Stage::Announced => self.gate(log.end(), key, Release::Announced(packet_id)),
                // It is no PUBLISH and waits for none [MQTT-3.3.4-10].
                window::Stage::Received | window::Stage::Released => {
                    self.gate(log.end(), key, Release::PubRel(packet_id));
                }
                window::Stage::Done => {}
            }
        }
        self.want_read(session_key);
    }

    pub(super) fn handle_disconnect(
        &mut self,
        key: Key,
        disconnect: &Disconnect<'_>,
        now: Now,
        log: &mut dyn Append,
    ) {
        if let Some(wished) = disconnect.session_expiry_s {
            let session = self.connections.get(key).and_then(|connection| connection.session);
            if let Some(session) = session.and_then(|session| self.sessions.get_mut(session)) {
                if session.expiry_s == 0 && wished > 0 {
                    // A session that was to end cannot be kept after all [MQTT-3.14.2-2].
                    self.stats.protocol_errors_total += 1;
                    self.disconnect(key, ReasonCode::ProtocolError, now, log);
                    return;
                }
                session.expiry_s = wished.min(self.limits.session_expiry_s);
            }
        }
        self.close(key);
        if let Some(connection) = self.connections.get_mut(key) {
            connection.ending = Ending::Told(disconnect.reason);
        }
        // Only a normal disconnection leaves no Will [MQTT-3.1.2-8].
        let keeps_will = disconnect.reason != ReasonCode::Success || plant::is(Bug::WillNotVoided);
        let leaving = if keeps_will { Leaving::Lost } else { Leaving::Orderly };
        self.leave(key, leaving, now, log);
    }

    /// Parts a connection from its session; says what becomes of the session.
    pub(super) fn leave(&mut self, key: Key, leaving: Leaving, now: Now, log: &mut dyn Append) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        connection.aliases = Vec::new();
        connection.aliases_out = None;
        let ending = connection.ending;
        let Some(session_key) = connection.session.take() else { return };
        let identity = connection.identity.take();
        let durable_end = self.durable_end;
        let Some(session) = self.sessions.get_mut(session_key) else { return };
        session.connection = None;
        self.stats.sessions_connected -= 1;
        session.left_at = Some(now.wall);
        session.left_end = log.end();
        session.arrivals_end = session.arrivals_missed_from.unwrap_or_else(|| log.end());
        session.retained.clear();
        session.resend.clear();
        if session.flow == Flow::Live {
            session.ahead = Ahead::nothing();
            session.flow = Flow::CatchingUp(durable_end);
        }
        if leaving == Leaving::Drained {
            return;
        }
        self.tell_disconnected(key, session_key, ending, now);
        let Some(session) = self.sessions.get_mut(session_key) else { return };
        let rules = &self.rules;
        let denies = |topic: &str| {
            let topic = TopicName::trusted(topic);
            identity.is_some_and(|identity| !rules.may_publish(&identity, topic).is_allowed())
        };
        // The rules may have changed since they allowed it.
        if leaving == Leaving::Orderly || session.will.as_ref().is_some_and(|will| denies(&will.topic)) {
            session.will = None;
        }
        let shares = !session.shared.is_empty();
        let delay_s = session.will.as_ref().map_or(0, |will| will.delay_s).min(session.expiry_s);
        let will_at = now.monotonic + Duration::from_secs(u64::from(delay_s));
        if session.will.is_some() && delay_s > 0 {
            session.will_at = Some(will_at);
            self.timers.set(will_at, Timer::Will(session_key));
        } else {
            self.publish_will(session_key, now, log);
        }
        if shares {
            self.leave_groups(session_key);
        }
        self.retire(session_key, now, log);
    }

    /// A session has lost its connection: it ends, or waits for its client.
    fn retire(&mut self, key: Key, now: Now, log: &mut dyn Append) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        if !session.is_kept() {
            // It stays until its Will is published.
            session.expires_at = session.will_at;
            match session.expires_at {
                Some(at) => self.timers.set(at, Timer::Expiry(key)),
                None => self.end_session(key, log),
            }
            return;
        }
        let expiry_s = session.expiry_s;
        self.note_connection(key, log);
        let Some(session) = self.sessions.get_mut(key) else { return };
        if session.expiry_s != NEVER_EXPIRES {
            let at = now.monotonic + Duration::from_secs(u64::from(expiry_s));
            session.expires_at = Some(at);
            self.timers.set(at, Timer::Expiry(key));
        }
    }

    /// Tells the journal whether a session has a connection, and what of its Will. If the journal is full, it is told
    /// later: else a restart would publish a Will that the client has taken back, or count from when it had left before.
    fn note_connection(&mut self, key: Key, log: &mut dyn Append) {
        let Some(session) = self.sessions.get(key) else { return };
        let (number, expiry_s) = (session.number, session.expiry_s);
        let control = match (session.connection, session.left_at) {
            (None, Some(at)) => {
                Control::Disconnected { session: number, at, expiry_s, will_waits: session.will.is_some() }
            }
            (Some(_), _) => {
                let (client, will) =
                    (Cow::Borrowed(&*session.client), session.will.as_ref().map(Cow::Borrowed));
                Control::Connected { session: number, client, expiry_s, will }
            }
            (None, None) => return,
        };
        if log.append(&Entry::Control(&control.encode())).is_err() {
            self.untold.push(key);
        }
    }

    /// Tells the journal of connections that came or were lost while it was full.
    pub(super) fn tell_connections_late(&mut self, log: &mut dyn Append) {
        for key in std::mem::take(&mut self.untold) {
            self.note_connection(key, log);
        }
    }

    /// Publishes the session's Will now, if it has one that was not published. If the journal is full, it is tried
    /// again.
    pub(super) fn publish_will(&mut self, key: Key, now: Now, log: &mut dyn Append) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        session.will_at = None;
        session.waits_for_room = false;
        let Some(will) = session.will.take() else { return };
        let (number, client) = (session.number, session.client.clone());
        let record = Record {
            time: now.wall,
            client: &client,
            topic: TopicName::trusted(&will.topic),
            properties: Properties::from_encoded(&will.properties),
            payload: &will.payload,
            qos: will.qos,
            retain: will.retain,
            packet_id: 0,
        };
        match self.publish(key, &record, now, log) {
            Ok(_) => {
                let done = Control::WillDone { session: number }.encode();
                let _ = log.append(&Entry::Control(&done));
            }
            Err(refused) => {
                self.refused_publish(refused.into());
                tracing::warn!(%client, %refused, "a Will is not published yet");
                let Some(session) = self.sessions.get_mut(key) else { return };
                session.will = Some(will);
                if refused == Refused::Full {
                    let at = now.monotonic + WILL_RETRY;
                    session.waits_for_room = true;
                    session.will_at = Some(at);
                    self.timers.set(at, Timer::Will(key));
                }
            }
        }
    }

    /// Removes a session and everything in it.
    pub(super) fn end_session(&mut self, key: Key, log: &mut dyn Append) {
        let Some(mut session) = self.sessions.remove(key) else { return };
        self.drop_filters(key, &mut session);
        self.book_session_ended(&session);
        self.by_client.remove(&session.client);
        self.by_number.remove(&session.number);
        // The journal may know it even if it is not kept now: because of a Will, or of its earlier life.
        let ended = Control::Ended { session: session.number }.encode();
        if session.recorded {
            let _ = log.append_freeing(&Entry::Control(&ended));
        }
    }

    /// Ends the subscriptions of a session that was removed.
    pub(super) fn drop_filters(&mut self, key: Key, session: &mut Session) {
        self.end_in_groups(key, session);
        for filter in session.filters.keys() {
            self.router.unsubscribe(filter, key);
        }
    }

    pub(super) fn check_expiry(&mut self, key: Key, now: Now, log: &mut dyn Append) {
        let Some(session) = self.sessions.get(key) else { return };
        if session.expires_at.is_some_and(|at| at <= now.monotonic) && !plant::is(Bug::ExpiryIgnored) {
            // The end of the session is the latest time for the Will [MQTT-3.1.3-9].
            self.publish_will(key, now, log);
            let Some(session) = self.sessions.get_mut(key) else { return };
            if let Some(at) = session.will_at {
                session.expires_at = Some(at);
                self.timers.set(at, Timer::Expiry(key));
                return;
            }
            tracing::debug!(client = %session.client, "a session has expired");
            self.stats.sessions_expired_total += 1;
            self.end_session(key, log);
        }
    }

    pub(super) fn check_will(&mut self, key: Key, now: Now, log: &mut dyn Append) {
        let Some(session) = self.sessions.get(key) else { return };
        if session.will_at.is_some_and(|at| at <= now.monotonic) {
            self.publish_will(key, now, log);
        }
    }
}

/// Why a CONNECT cannot be accepted from anybody.
fn unfit(connect: &Connect<'_>) -> Option<ReasonCode> {
    // An empty Client Identifier needs a session that ends with the connection in MQTT 3.1.1
    // [MQTT-3.1.3-8], and is not allowed at all in MQTT 3.1.
    let empty_allowed = match connect.version {
        Version::V31 => false,
        Version::V311 => connect.clean_start,
        Version::V5 => true,
    };
    if connect.client_id.is_empty() && !empty_allowed {
        return Some(ReasonCode::ClientIdentifierNotValid);
    }
    let misdescribed = connect.will.as_ref().is_some_and(|will| !will.properties.describe(will.payload));
    misdescribed.then_some(ReasonCode::PayloadFormatInvalid)
}
