//! How clients prove who they are: refusals that wait, enhanced authentication (section 4.12), and proofs that expire.

use std::time::Duration;

use super::timers::Timer;
use super::{Broker, Stage, Step};
use crate::auth::{self, Denied, Exchange, Identity, Login, Method};
use crate::broker::Now;
use crate::mqtt::{self, Auth, Connect, Decoded, Packet, ReasonCode, UserProperties, Version, encode};
use crate::record::{Append, Timestamp};
use crate::slots::Key;

/// The largest CONNECT that is kept during an exchange; a larger one is refused with 0x95.
const CONNECT_BYTES_MAX: usize = 64 << 10;

/// Enhanced authentication that was agreed on.
#[derive(Debug)]
pub(super) struct Enhanced {
    method: Method,
    /// While the client has to answer.
    exchange: Option<Exchange>,
    /// The CONNECT that waits for the end of the exchange, and the Client Identifier assigned to it.
    waiting: Option<(Box<[u8]>, Option<String>)>,
    /// What goes to the client with CONNACK.
    proof: Vec<u8>,
}

impl Enhanced {
    /// The method, and the data that go with CONNACK.
    pub(super) fn take_proof(&mut self) -> (Method, Vec<u8>) {
        (self.method, std::mem::take(&mut self.proof))
    }
}

impl Broker {
    /// Refuses a CONNECT for who the client is, or is not. After a wrong guess the answer waits.
    pub(super) fn refuse_login(
        &mut self,
        key: Key,
        client: &str,
        denied: Denied,
        reason: ReasonCode,
        now: Now,
    ) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        let (peer, version) = (connection.peer, connection.version);
        let delay = self.access.login_failed(peer, client, denied, now.wall);
        if delay.is_zero() {
            self.refuse(key, version, reason);
            return;
        }
        connection.stage = Stage::Refusing(reason);
        self.timers.set(now.monotonic + delay, Timer::Refusal(key));
    }

    pub(super) fn answer_refused(&mut self, key: Key) {
        let Some(connection) = self.connections.get(key) else { return };
        if let Stage::Refusing(reason) = connection.stage {
            self.refuse(key, connection.version, reason);
        }
    }

    /// A CONNECT names a method: it waits for the end of the exchange.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn begin_exchange(
        &mut self,
        key: Key,
        method: &str,
        connect: &Connect<'_>,
        packet: &[u8],
        assigned: Option<String>,
        now: Now,
        log: &mut dyn Append,
    ) {
        let Some(method) = Method::named(method).filter(|method| self.access.offers(*method)) else {
            // [MQTT-4.12.0-1]
            self.refuse(key, connect.version, ReasonCode::BadAuthenticationMethod);
            return;
        };
        if packet.len() > CONNECT_BYTES_MAX {
            self.refuse(key, connect.version, ReasonCode::PacketTooLarge);
            return;
        }
        let Some(connection) = self.connections.get_mut(key) else { return };
        connection.stage = Stage::Authenticating;
        let waiting = Some((packet.into(), assigned));
        let exchange = Some(Exchange::begin(method));
        connection.enhanced = Some(Box::new(Enhanced { method, exchange, waiting, proof: Vec::new() }));
        self.go_on(key, connect.authentication_data, now, log);
    }

    /// Bytes before the end of the exchange: nothing but AUTH and DISCONNECT may come [MQTT-3.1.2-30].
    pub(super) fn receive_auth(&mut self, key: Key, bytes: &[u8], now: Now, log: &mut dyn Append) -> Step {
        match mqtt::decode_from_client(bytes, Version::V5, self.limits.packet_bytes) {
            Ok(Decoded::Incomplete { needed }) => Step::Incomplete { needed },
            Ok(Decoded::Packet { packet, bytes }) => {
                self.stats.packets_in_total += 1;
                let method = self.method_of(key);
                #[expect(clippy::wildcard_enum_match_arm, reason = "every other packet is as wrong")]
                match packet {
                    Packet::Auth(auth) if auth.method != method => {
                        self.refuse(key, Version::V5, ReasonCode::BadAuthenticationMethod);
                    }
                    Packet::Auth(auth) if auth.reason == ReasonCode::ContinueAuthentication => {
                        self.go_on(key, auth.data, now, log);
                    }
                    Packet::Disconnect(_) => self.close(key),
                    _ => {
                        self.stats.protocol_errors_total += 1;
                        self.refuse(key, Version::V5, ReasonCode::ProtocolError);
                    }
                }
                Step::Done { bytes }
            }
            Err(error) => {
                self.stats.protocol_errors_total += 1;
                self.refuse(key, Version::V5, error.reason());
                Step::Wrong
            }
        }
    }

    /// AUTH from a connected client: it proves itself again.
    pub(super) fn handle_auth(&mut self, key: Key, auth: &Auth<'_>, now: Now, log: &mut dyn Append) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        let wrong = match &mut connection.enhanced {
            // Nothing was agreed on [MQTT-4.12.0-6].
            None => Some(ReasonCode::ProtocolError),
            // The method stays the same [MQTT-4.12.1-1].
            Some(enhanced) if auth.method != Some(enhanced.method.name()) => Some(ReasonCode::ProtocolError),
            Some(enhanced) => match (auth.reason, &enhanced.exchange) {
                (ReasonCode::Reauthenticate, None) => {
                    enhanced.exchange = Some(Exchange::begin(enhanced.method));
                    None
                }
                (ReasonCode::ContinueAuthentication, Some(_)) => None,
                _ => Some(ReasonCode::ProtocolError),
            },
        };
        match wrong {
            None => self.go_on(key, auth.data, now, log),
            Some(reason) => {
                self.stats.protocol_errors_total += 1;
                self.disconnect(key, reason, now, log);
            }
        }
    }

    /// Takes the client's next message of the exchange.
    fn go_on(&mut self, key: Key, data: Option<&[u8]>, now: Now, log: &mut dyn Append) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        let Some(enhanced) = &mut connection.enhanced else { return };
        let Some(exchange) = enhanced.exchange.take() else { return };
        let waiting = enhanced.waiting.take();
        let connect = waiting.as_ref().and_then(|(packet, _)| connect_in(packet));
        let assigned = waiting.as_ref().and_then(|(_, assigned)| assigned.as_deref());
        let client = match (&connect, &connection.identity) {
            (Some(connect), _) => assigned.unwrap_or(connect.client_id).to_owned(),
            (None, Some(identity)) => identity.client().to_owned(),
            (None, None) => return,
        };
        let login = Login::anonymous(connection.peer, &client);
        match (self.access.authenticate(exchange, &login, data, now.wall), connect) {
            (Ok(auth::Step::Continue(exchange, data)), _) => {
                if let Some(enhanced) = self.connections.get_mut(key).and_then(|it| it.enhanced.as_mut()) {
                    enhanced.exchange = Some(exchange);
                    enhanced.waiting = waiting;
                }
                self.send_auth(key, ReasonCode::ContinueAuthentication, &data);
            }
            (Ok(auth::Step::Done(identity, data)), Some(connect)) => {
                if let Some(enhanced) = self.connections.get_mut(key).and_then(|it| it.enhanced.as_mut()) {
                    enhanced.proof = data;
                }
                self.welcome(key, identity, &connect, assigned, now, log);
            }
            (Ok(auth::Step::Done(identity, data)), None) => self.proven_again(key, identity, &data, now, log),
            (Err(denied), Some(_)) => {
                self.refuse_login(key, &client, denied, ReasonCode::NotAuthorized, now);
            }
            (Err(denied), None) => {
                tracing::info!(client, %denied, "a client has failed to prove itself again");
                self.access.note_not_renewed();
                self.disconnect(key, ReasonCode::NotAuthorized, now, log);
            }
        }
    }

    /// A connected client has proven itself again: it must still be the same.
    fn proven_again(&mut self, key: Key, identity: Identity, data: &[u8], now: Now, log: &mut dyn Append) {
        let Some(connection) = self.connections.get(key) else { return };
        let before = connection.identity.as_ref().and_then(Identity::name);
        let Some(session) = connection.session.filter(|_| before == identity.name()) else {
            self.access.note_not_renewed();
            self.disconnect(key, ReasonCode::NotAuthorized, now, log);
            return;
        };
        self.set_identity(key, identity, now);
        self.check_matches(key, session);
        self.send_auth(key, ReasonCode::Success, data);
    }

    fn method_of(&self, key: Key) -> Option<&'static str> {
        Some(self.connections.get(key)?.enhanced.as_ref()?.method.name())
    }

    fn send_auth(&mut self, key: Key, reason: ReasonCode, data: &[u8]) {
        let auth = Auth {
            reason,
            method: self.method_of(key),
            data: (!data.is_empty()).then_some(data),
            reason_string: None,
            user_properties: UserProperties::NONE,
        };
        encode::auth(self.outbox(key), &auth);
        self.stats.packets_out_total += 1;
    }

    /// Looks again when what a client has proven itself with expires. One timer counts per connection, the earliest.
    pub(super) fn expect_expiry(&mut self, key: Key, expires: Timestamp, now: Now) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        let at = now.monotonic + Duration::from_millis(expires.0.saturating_sub(now.wall.0));
        if connection.expiry_checked_at.is_none_or(|earlier| at < earlier) {
            connection.expiry_checked_at = Some(at);
            self.timers.set(at, Timer::Credentials(key));
        }
    }

    /// What a client has proven itself with may be over.
    pub(super) fn check_credentials(&mut self, key: Key, now: Now, log: &mut dyn Append) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        if connection.expiry_checked_at.is_none_or(|at| at > now.monotonic) {
            return;
        }
        connection.expiry_checked_at = None;
        let Some(identity) = connection.identity.clone() else { return };
        let Some(expires) = identity.expires() else { return };
        if expires > now.wall {
            // It has proven itself again, or the clock was set.
            self.expect_expiry(key, expires, now);
            return;
        }
        tracing::info!(client = identity.client(), "a token has expired: closing its connection");
        self.access.note_expired();
        self.disconnect_saying(key, ReasonCode::MaximumConnectTime, "the token has expired", now, log);
    }
}

/// The CONNECT that was kept.
fn connect_in(packet: &[u8]) -> Option<Connect<'_>> {
    match mqtt::decode_connect(packet, usize::MAX) {
        Ok(Decoded::Packet { packet, .. }) => Some(packet),
        Ok(Decoded::Incomplete { .. }) | Err(_) => None,
    }
}
