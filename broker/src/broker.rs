//! The broker core: what every packet means, without sockets, files, clocks or threads.
//!
//! Bytes come in through [`Broker::receive`], durable batches through [`Broker::durable`], time through
//! [`Broker::handle_timeout`]. What goes out lies in each connection's [`Outbox`], and [`Broker::poll_output`]
//! names the connections that have something. Entries go to whatever implements [`Append`].
//!
//! Always holds:
//!
//! - No PUBACK, PUBREC or PUBCOMP, no CONNACK or SUBACK of a kept session, and no delivery at QoS 1 or 2 leaves
//!   before the entries it depends on are durable: they wait in [`Broker::gated`] and `deliveries` and only
//!   [`Broker::durable`] releases them.
//! - Acknowledgements leave in the order of the publishes they answer [MQTT-4.6.0-2] [MQTT-4.6.0-3].
//! - Nothing queues for a slow or absent client: its session notes an offset and reads the journal.

mod acknowledge;
mod aliases;
mod authenticate;
mod authorise;
mod behind;
mod connect;
mod deliver;
mod gate;
mod ledger;
mod limits;
mod outbox;
mod publish;
mod rate;
mod restore;
mod shared;
mod stats;
mod subscribe;
mod system;
#[cfg(test)]
mod tests;
mod timers;

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use self::aliases::OutgoingAliases;
use self::authenticate::Enhanced;
use self::gate::{Gated, Release};
pub use self::ledger::Balance;
pub use self::limits::{Limit, LimitCounts, Limits, RateAction};
pub use self::outbox::{Outbox, SHARED_BYTES_MIN};
use self::rate::{Bucket, Rates};
pub use self::rate::{Gauges, REFUSED_CONNECTIONS_MAX};
pub use self::restore::{RestoreError, checkpoint_offset};
use self::shared::Group;
pub use self::stats::{Counts, DropReason, RefusalReason, Stats};
use self::system::{Ending, System};
use self::timers::Timers;
use crate::auth::{Access, Identity, Rules};
use crate::maps::HashMap;
use crate::mqtt::{self, DecodeError, Decoded, Disconnect, Packet, ReasonCode, Version, encode};
use crate::record::{Append, Appended, Batch, Offset, Refused, Timestamp};
use crate::retained::RetainedStore;
use crate::router::{Matches, Router};
use crate::session::Session;
use crate::slots::{Key, Slots};
use crate::topic::TopicFilter;

/// The topic aliases a client may use.
const TOPIC_ALIASES_MAX: u16 = 64;

/// Answers that may wait for a client besides the deliveries: beyond these nothing is read from it.
const OUTBOX_BYTES_SPARE: usize = 64 * 1_024;

/// SUBSCRIBE and UNSUBSCRIBE packets taken from one client before others have their turn.
const SUBSCRIBES_PER_TURN: usize = 256;

/// The time of an input.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// Since an arbitrary start; never goes back. Intervals are measured with it.
    pub monotonic: Duration,
    /// Wall-clock time, for records.
    pub wall: Timestamp,
}

/// What became of received bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    /// The first `consumed` bytes are done with; the rest is the beginning of a packet of `needed` bytes, if
    /// that is known yet.
    More {
        /// Bytes done with.
        consumed: usize,
        /// Bytes of the packet that begins behind them.
        needed: Option<usize>,
    },
    /// The first `consumed` bytes are done with; the rest must be offered again when
    /// [`Broker::poll_resumed`] names the connection, and nothing may be read from it until then.
    Held {
        /// Bytes done with.
        consumed: usize,
    },
    /// The connection is closing; nothing more is taken from it.
    Closing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    AwaitingConnect,
    /// Its CONNECT waits for the end of enhanced authentication.
    Authenticating,
    /// Its CONNECT is refused, and it waits for the answer.
    Refusing(ReasonCode),
    Connected,
    /// What waits is still written, then the connection is closed.
    Closing,
}

#[derive(Debug)]
struct Connection {
    peer: IpAddr,
    stage: Stage,
    version: Version,
    session: Option<Key>,
    /// The name in the client's certificate.
    certificate: Option<Box<str>>,
    /// Who the client was found to be.
    identity: Option<Identity>,
    /// Whether the rules let it do everything.
    unrestricted: bool,
    /// The topic to which it published last, if it may; the next publish often goes there too.
    may_publish: String,
    enhanced: Option<Box<Enhanced>>,
    /// When it is looked at whether its client's proof has expired.
    expiry_checked_at: Option<Duration>,
    /// Whether CONNACK was sent: nothing may come before it [MQTT-3.2.0-1].
    greeted: bool,
    outbox: Outbox,
    /// The longest silence allowed; zero means any.
    silence_max: Duration,
    heard_at: Duration,
    /// The client's Receive Maximum, or our limit.
    in_flight_max: u16,
    /// The client's Maximum Packet Size.
    packet_bytes_max: usize,
    /// The client's Request Problem Information.
    takes_words: bool,
    /// QoS 1 and 2 publishes received and not yet acknowledged in full.
    unacknowledged: u16,
    aliases: Vec<Option<Arc<str>>>,
    /// Those of what is sent, if the client takes any.
    aliases_out: Option<Box<OutgoingAliases>>,
    in_output: bool,
    /// Why nothing is read from it.
    hold: Option<Hold>,
    /// Whether the network has taken something from it since its silence was last looked at.
    took_output: bool,
    /// When its silence is looked at next; zero means never.
    silence_at: Duration,
    /// Why it ends, once that is known.
    ending: Ending,
    /// How its CONNECT must be answered, because a limit was reached when it came.
    refusal: Option<ReasonCode>,
    /// Where rates are limited.
    rates: Option<Box<Rates>>,
}

/// Why nothing is read from a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hold {
    /// The journal or the memory has no room for what it publishes.
    Room,
    /// It publishes faster than it may.
    Rate,
    /// It lets too many answers wait.
    Outbox,
    /// It has had its turn, and the others have theirs.
    Turn,
}

/// A record that goes to these sessions when it is durable.
#[derive(Debug)]
struct Delivery {
    place: Appended,
    matches: Matches,
    /// The groups of shared subscriptions it goes to.
    shared: Option<Matches>,
}

/// Who wants to read the journal: see [`Broker::poll_read`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadFor {
    /// A session that is behind.
    Session(Key),
    /// The group of a shared subscription that is behind.
    Group(Key),
}

/// The broker core.
#[derive(Debug)]
pub struct Broker {
    limits: Limits,
    access: Arc<Access>,
    /// The rules of `access`, as far as they are known here.
    rules: Arc<Rules>,
    rules_version: u64,
    /// Makes assigned Client Identifiers hard to guess.
    seed: u64,
    durable_end: Offset,
    /// What was durable before is not counted as waiting.
    counted_from: Offset,
    /// Nothing becomes durable any more: see [`Broker::journal_failed`].
    journal_failed: bool,
    connections: Slots<Connection>,
    sessions: Slots<Session>,
    by_client: HashMap<Arc<str>, Key>,
    by_number: HashMap<u64, Key>,
    next_session: u64,
    router: Router,
    groups: Slots<Group>,
    by_share: HashMap<TopicFilter, Key>,
    /// Which groups a topic matches.
    shared_router: Router,
    shared_subscriptions: usize,
    retained: RetainedStore,
    gated: VecDeque<Gated>,
    deliveries: VecDeque<Delivery>,
    reads: VecDeque<ReadFor>,
    /// The journal has refused what a delivery has to tell it. Whoever reads waits for the next retry then, instead of
    /// reading the same for ever.
    is_refused: bool,
    output: VecDeque<Key>,
    resumed: VecDeque<Key>,
    held: Vec<Key>,
    /// Bytes of the packets in `gated`.
    gated_bytes: usize,
    /// Connections with a `refusal`.
    refused_connections: usize,
    connects: Bucket,
    /// Counted only where they are limited.
    per_address: HashMap<IpAddr, usize>,
    is_over_memory: bool,
    gauges: Gauges,
    system: System,
    /// Sessions that have acknowledged something since the journal was last told.
    progressing: Vec<Key>,
    /// Sessions of whose connection, or its end, the full journal could not be told.
    untold: Vec<Key>,
    /// The places at which the next turns through sessions and connections begin.
    quiet_next: usize,
    retry_next: usize,
    local_done: VecDeque<(u64, Result<Offset, Refused>)>,
    timers: Timers,
    stats: Stats,
    scratch: Vec<u8>,
}

impl Broker {
    /// A broker without sessions. `seed` should be random.
    pub fn new(limits: Limits, access: Arc<Access>, seed: u64) -> Self {
        Self {
            limits,
            rules_version: access.rules_version(),
            rules: access.rules(),
            access,
            seed,
            durable_end: Offset(0),
            counted_from: Offset(0),
            journal_failed: false,
            connections: Slots::default(),
            sessions: Slots::default(),
            by_client: HashMap::default(),
            by_number: HashMap::default(),
            next_session: 1,
            router: Router::default(),
            groups: Slots::default(),
            by_share: HashMap::default(),
            shared_router: Router::default(),
            shared_subscriptions: 0,
            retained: RetainedStore::default(),
            gated: VecDeque::new(),
            deliveries: VecDeque::new(),
            reads: VecDeque::new(),
            is_refused: false,
            output: VecDeque::new(),
            resumed: VecDeque::new(),
            held: Vec::new(),
            gated_bytes: 0,
            refused_connections: 0,
            connects: Bucket::default(),
            per_address: HashMap::default(),
            is_over_memory: false,
            gauges: Gauges::default(),
            system: System::default(),
            progressing: Vec::new(),
            untold: Vec::new(),
            quiet_next: 0,
            retry_next: 0,
            local_done: VecDeque::new(),
            timers: Timers::default(),
            stats: Stats::default(),
            scratch: Vec::new(),
        }
    }

    /// A connection was accepted. Where a limit was reached it stays until its CONNECT can be answered; `None` when
    /// there are too many of those as well, and the caller closes it.
    pub fn open(&mut self, peer: IpAddr, now: Now) -> Option<Key> {
        self.stats.connections_total += 1;
        let refusal = self.over_limit(peer, now);
        if refusal.is_some() && self.refused_connections >= REFUSED_CONNECTIONS_MAX {
            self.stats.connections_refused_total += 1;
            return None;
        }
        self.refused_connections += usize::from(refusal.is_some());
        self.count_address(peer);
        let key = self.connections.insert(Connection {
            peer,
            stage: Stage::AwaitingConnect,
            version: Version::V311,
            session: None,
            certificate: None,
            identity: None,
            unrestricted: false,
            may_publish: String::new(),
            enhanced: None,
            expiry_checked_at: None,
            greeted: false,
            outbox: Outbox::default(),
            silence_max: self.limits.connect_timeout,
            heard_at: now.monotonic,
            in_flight_max: self.limits.in_flight,
            packet_bytes_max: usize::MAX,
            takes_words: true,
            unacknowledged: 0,
            aliases: Vec::new(),
            aliases_out: None,
            in_output: false,
            hold: None,
            took_output: false,
            silence_at: Duration::ZERO,
            ending: Ending::Lost,
            refusal,
            rates: None,
        });
        self.watch_silence(key);
        self.thin_timers();
        Some(key)
    }

    /// The client has proven with its certificate that it is `name`. To be called before anything is received.
    pub fn set_certificate(&mut self, key: Key, name: &str) {
        if let Some(connection) = self.connections.get_mut(key) {
            connection.certificate = Some(name.into());
        }
    }

    /// Where a connection comes from.
    pub fn peer(&self, key: Key) -> Option<IpAddr> {
        self.connections.get(key).map(|connection| connection.peer)
    }

    /// What carries the connection was used in a way that is not allowed: it is closed, and a v5 client that was
    /// greeted is told `reason`.
    pub fn break_off(&mut self, key: Key, reason: ReasonCode, now: Now, log: &mut dyn Append) {
        self.stats.protocol_errors_total += 1;
        self.disconnect(key, reason, now, log);
    }

    /// Bytes were read from a connection. They begin where the last call's `consumed` ended.
    pub fn receive(&mut self, key: Key, bytes: &[u8], now: Now, log: &mut dyn Append) -> Received {
        self.check_rules();
        let mut consumed = 0;
        let mut subscribes = 0;
        // What is delivered to a client alone never takes more, so a client cannot be kept from acknowledging.
        let outbox_bytes_max = self.limits.outgoing_bytes + self.limits.packet_bytes + OUTBOX_BYTES_SPARE;
        let received = loop {
            let Some(connection) = self.connections.get_mut(key) else { return Received::Closing };
            let rest = &bytes[consumed..];
            let step = match connection.stage {
                Stage::Closing | Stage::Refusing(_) => return Received::Closing,
                Stage::Authenticating => self.receive_auth(key, rest, now, log),
                Stage::AwaitingConnect => self.receive_connect(key, rest, now, log),
                Stage::Connected if connection.outbox.len() > outbox_bytes_max => {
                    connection.hold = Some(Hold::Outbox);
                    self.reached(Limit::OutgoingBytes);
                    Step::NotNow
                }
                Stage::Connected if subscribes >= SUBSCRIBES_PER_TURN => {
                    connection.hold = Some(Hold::Turn);
                    self.resume_from(key, Hold::Turn);
                    Step::NotNow
                }
                Stage::Connected => {
                    let version = connection.version;
                    subscribes += usize::from(matches!(rest.first(), Some(0x82 | 0xA2)));
                    self.receive_packet(key, version, rest, now, log)
                }
            };
            match step {
                Step::Done { bytes } => consumed += bytes,
                Step::Incomplete { needed } => break Received::More { consumed, needed },
                Step::NotNow => break Received::Held { consumed },
                Step::Wrong => break Received::Closing,
            }
        };
        self.stats.bytes_in_total += consumed as u64;
        if consumed > 0
            && let Some(connection) = self.connections.get_mut(key)
        {
            // Whole packets count, not bytes [MQTT-3.1.2-22].
            connection.heard_at = now.monotonic;
        }
        received
    }

    fn receive_connect(&mut self, key: Key, raw: &[u8], now: Now, log: &mut dyn Append) -> Step {
        match mqtt::decode_connect(raw, self.limits.packet_bytes) {
            Ok(Decoded::Incomplete { needed }) => Step::Incomplete { needed },
            Ok(Decoded::Packet { packet, bytes }) => {
                self.stats.packets_in_total += 1;
                self.handle_connect(key, &packet, &raw[..bytes], now, log);
                Step::Done { bytes }
            }
            Err(error) => {
                error.answer(self.outbox(key));
                self.count_decode_error(&error.error);
                self.reject(key, &error);
                Step::Wrong
            }
        }
    }

    fn receive_packet(
        &mut self,
        key: Key,
        version: Version,
        bytes: &[u8],
        now: Now,
        log: &mut dyn Append,
    ) -> Step {
        match mqtt::decode_from_client(bytes, version, self.limits.packet_bytes) {
            Ok(Decoded::Incomplete { needed }) => Step::Incomplete { needed },
            Ok(Decoded::Packet { packet, bytes }) => {
                self.stats.packets_in_total += 1;
                match self.handle_packet(key, &packet, now, log) {
                    Taken::Taken => Step::Done { bytes },
                    Taken::NotNow => Step::NotNow,
                }
            }
            Err(error) => {
                tracing::debug!(client = self.client_of(key), %error, "closing a connection");
                self.count_decode_error(&error);
                self.disconnect_for(key, &error, now, log);
                Step::Wrong
            }
        }
    }

    fn count_decode_error(&mut self, error: &DecodeError) {
        self.stats.protocol_errors_total += 1;
        match error {
            DecodeError::TooLarge { .. } => self.reached(Limit::PacketBytes),
            DecodeError::TopicLevels => self.reached(Limit::TopicLevels),
            DecodeError::Malformed { .. }
            | DecodeError::Protocol { .. }
            | DecodeError::TopicAlias
            | DecodeError::UnsupportedVersion { .. } => {}
        }
    }

    fn handle_packet(&mut self, key: Key, packet: &Packet<'_>, now: Now, log: &mut dyn Append) -> Taken {
        match packet {
            Packet::Publish(publish) => return self.handle_publish(key, publish, now, log),
            Packet::PubAck(ack) => self.handle_puback(key, ack, now, log),
            Packet::PubRec(ack) => self.handle_pubrec(key, ack, now, log),
            Packet::PubRel(ack) => self.handle_pubrel(key, ack, now, log),
            Packet::PubComp(ack) => self.handle_pubcomp(key, ack, now, log),
            Packet::Subscribe(subscribe) => self.handle_subscribe(key, subscribe, now, log),
            Packet::Unsubscribe(unsubscribe) => self.handle_unsubscribe(key, unsubscribe, now, log),
            Packet::PingReq => self.handle_pingreq(key, log),
            Packet::Disconnect(disconnect) => self.handle_disconnect(key, disconnect, now, log),
            Packet::Auth(auth) => self.handle_auth(key, auth, now, log),
            // A second CONNECT is a protocol error [MQTT-3.1.0-2], and the rest only servers send.
            Packet::Connect(_)
            | Packet::ConnAck(_)
            | Packet::SubAck(_)
            | Packet::UnsubAck(_)
            | Packet::PingResp => {
                self.stats.protocol_errors_total += 1;
                self.disconnect(key, ReasonCode::ProtocolError, now, log);
            }
        }
        Taken::Taken
    }

    fn handle_pingreq(&mut self, key: Key, log: &mut dyn Append) {
        if self.connections.get(key).is_some_and(|connection| connection.greeted) {
            encode::pingresp(self.outbox(key));
            self.stats.packets_out_total += 1;
        } else {
            let mut packet = Vec::with_capacity(2);
            encode::pingresp(&mut packet);
            self.gate(log.end(), key, Release::Packet(packet.into()));
        }
    }

    /// The connection was closed by the client or the network.
    pub fn closed(&mut self, key: Key, now: Now, log: &mut dyn Append) {
        self.leave(key, Leaving::Lost, now, log);
        let Some(connection) = self.connections.remove(key) else { return };
        self.refused_connections -= usize::from(connection.refusal.is_some());
        self.discount_address(connection.peer);
    }

    /// Entries up to the end of `batch` are durable. Batches come in order and without gaps.
    pub fn durable(&mut self, batch: &Batch, now: Now, log: &mut dyn Append) {
        debug_assert!(self.durable_end <= batch.base(), "batches become durable in order");
        self.durable_end = batch.end();
        self.check_rules();
        self.release();
        self.deliver_durable(batch, now, log);
    }

    /// The next connection that has something to write or is to be closed.
    pub fn poll_output(&mut self) -> Option<Key> {
        let key = self.output.pop_front()?;
        if let Some(connection) = self.connections.get_mut(key) {
            connection.in_output = false;
        }
        Some(key)
    }

    /// The network takes more from a connection again.
    pub fn want_output(&mut self, key: Key) {
        if let Some(connection) = self.connections.get_mut(key)
            && !connection.in_output
            && (!connection.outbox.is_empty() || connection.stage == Stage::Closing)
        {
            connection.in_output = true;
            self.output.push_back(key);
        }
    }

    /// What waits to be written to a connection, and whether it is to be closed after that.
    pub fn output(&mut self, key: Key) -> Option<(&mut Outbox, bool)> {
        let connection = self.connections.get_mut(key)?;
        Some((&mut connection.outbox, connection.stage == Stage::Closing))
    }

    /// Part of a connection's output was written, so that there may be room for more.
    pub fn written(&mut self, key: Key, bytes: usize) {
        self.stats.bytes_out_total += bytes as u64;
        let Some(connection) = self.connections.get_mut(key) else { return };
        connection.took_output = true;
        if connection.outbox.len() > self.limits.outgoing_bytes / 2 {
            return;
        }
        let session = connection.session;
        self.resume_from(key, Hold::Outbox);
        if let Some(session) = session {
            self.want_read(session);
        }
    }

    /// The next connection from which bytes may be offered again.
    pub fn poll_resumed(&mut self) -> Option<Key> {
        self.resumed.pop_front()
    }

    /// How many connections wait to have bytes offered again.
    pub fn resuming(&self) -> usize {
        self.resumed.len()
    }

    /// The journal has room again: connections that were held back go on, unless it is the memory that has none.
    pub fn handle_room(&mut self) {
        if self.is_over_memory {
            return;
        }
        for key in std::mem::take(&mut self.held) {
            self.resume_from(key, Hold::Room);
        }
    }

    /// Whether connections are held back until there is room.
    pub const fn is_holding(&self) -> bool {
        !self.held.is_empty()
    }

    /// The next local publish that is durable or was refused, by its token.
    pub fn poll_local(&mut self) -> Option<(u64, Result<Offset, Refused>)> {
        self.local_done.pop_front()
    }

    /// Closes every connection, telling v5 clients why. Sessions are kept, and so are Wills: a client whose
    /// broker goes away has not gone away itself.
    pub fn drain(&mut self, now: Now, log: &mut dyn Append) {
        let connections: Vec<Key> = self.connections.iter().map(|(key, _)| key).collect();
        for key in connections {
            self.finish_with(key, ReasonCode::ServerShuttingDown);
            self.leave(key, Leaving::Drained, now, log);
        }
        self.save_progress(log);
    }

    /// The journal has failed: what waits for it will never be durable. Whoever waits is told, and so is whoever
    /// comes from now on.
    pub fn journal_failed(&mut self, now: Now, log: &mut dyn Append) {
        self.journal_failed = true;
        let unacknowledged = self.connections.iter().filter(|(_, connection)| connection.unacknowledged > 0);
        let mut waiting: Vec<Key> = unacknowledged.map(|(key, _)| key).collect();
        self.gated_bytes = 0;
        for gated in self.gated.drain(..) {
            match gated.release {
                Release::Local(token, _) => self.local_done.push_back((token, Err(Refused::Failed))),
                Release::PubAck(..)
                | Release::PubRec(..)
                | Release::PubComp(..)
                | Release::PubRel(_)
                | Release::Announced(_)
                | Release::Packet(_) => waiting.push(gated.connection),
            }
        }
        for key in waiting {
            let Some(connection) = self.connections.get(key) else { continue };
            if connection.stage == Stage::Connected && !connection.greeted {
                // Its first packet must be a CONNACK [MQTT-3.2.0-1], and the one that waited says success.
                self.refuse(key, connection.version, ReasonCode::ServerUnavailable);
                self.leave(key, Leaving::Lost, now, log);
            } else if connection.stage == Stage::Connected {
                self.disconnect(key, ReasonCode::ImplementationSpecificError, now, log);
            }
        }
        self.deliveries.clear();
    }

    /// Totals and counts.
    pub fn stats(&self) -> Stats {
        let (denials, logins) = (self.access.denials(), self.access.logins());
        let mut publishes_refused = self.stats.publishes_refused;
        publishes_refused.add(RefusalReason::Denied, denials.publishes);
        Stats {
            publishes_refused,
            logins_failed_total: logins.failed,
            logins_unchecked_total: logins.unchecked,
            credentials_expired_total: logins.expired,
            publishes_denied_total: denials.publishes,
            subscriptions_denied_total: denials.subscriptions,
            connections: self.connections.len() as u64,
            sessions: self.sessions.len() as u64,
            subscriptions: (self.router.len() + self.shared_subscriptions) as u64,
            shared_subscriptions: self.shared_subscriptions as u64,
            retained: self.retained.len() as u64,
            retained_bytes: self.retained.bytes() as u64,
            memory_bytes: self.gauges.memory_bytes,
            journal_entries: self.gauges.journal_entries,
            journal_bytes: self.gauges.journal_bytes,
            ..self.stats
        }
    }

    /// Every entry before it is durable, as far as the broker was told.
    pub const fn durable_end(&self) -> Offset {
        self.durable_end
    }

    /// Where packets to a connection are encoded to. Whatever is written for a connection that is gone goes
    /// into a scratch buffer.
    fn outbox(&mut self, key: Key) -> &mut Vec<u8> {
        match self.connections.get_mut(key) {
            Some(connection) => {
                if !connection.in_output {
                    connection.in_output = true;
                    self.output.push_back(key);
                }
                connection.outbox.own()
            }
            None => {
                self.scratch.clear();
                &mut self.scratch
            }
        }
    }

    fn client_of(&self, key: Key) -> Option<&str> {
        let session = self.connections.get(key)?.session?;
        self.sessions.get(session).map(|session| &*session.client)
    }

    /// Ends a connection from our side, as an error of the client or by decision: its Will is published.
    fn disconnect(&mut self, key: Key, reason: ReasonCode, now: Now, log: &mut dyn Append) {
        self.finish_with(key, reason);
        self.leave(key, Leaving::Lost, now, log);
    }

    /// Ends a connection for what came on it, in words where the client takes them.
    fn disconnect_for(&mut self, key: Key, error: &DecodeError, now: Now, log: &mut dyn Append) {
        self.disconnect_saying(key, error.reason(), &error.to_string(), now, log);
    }

    fn disconnect_saying(
        &mut self,
        key: Key,
        reason: ReasonCode,
        text: &str,
        now: Now,
        log: &mut dyn Append,
    ) {
        let Some(connection) = self.connections.get(key) else { return };
        let (version, bytes_max) = (connection.version, connection.packet_bytes_max);
        let mut packet = Vec::new();
        if connection.greeted && version.is_v5() && connection.takes_words {
            let told = Disconnect { reason_string: Some(text), ..Disconnect::new(reason) };
            encode::disconnect(&mut packet, version, &told);
        }
        if packet.is_empty() || packet.len() > bytes_max {
            // [MQTT-3.14.2-3]
            self.disconnect(key, reason, now, log);
            return;
        }
        if let Some(connection) = self.connections.get_mut(key) {
            connection.ending = Ending::Told(reason);
        }
        self.outbox(key).extend_from_slice(&packet);
        self.stats.packets_out_total += 1;
        self.close(key);
        self.leave(key, Leaving::Lost, now, log);
    }

    /// Gates a packet that may be larger than the client takes: then it is not sent, and the connection ends
    /// [MQTT-3.1.2-24].
    fn answer(&mut self, key: Key, gate: Offset, packet: Vec<u8>, now: Now, log: &mut dyn Append) {
        let bytes_max =
            self.connections.get(key).map_or(usize::MAX, |connection| connection.packet_bytes_max);
        if packet.len() > bytes_max {
            self.disconnect(key, ReasonCode::PacketTooLarge, now, log);
        } else {
            self.gate(gate, key, Release::Packet(packet.into()));
        }
    }

    /// Writes the DISCONNECT that v5 clients get and lets the shell close the connection after it.
    fn finish_with(&mut self, key: Key, reason: ReasonCode) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        connection.ending = Ending::Told(reason);
        let version = connection.version;
        if connection.greeted && version.is_v5() {
            encode::disconnect(self.outbox(key), version, &Disconnect::new(reason));
            self.stats.packets_out_total += 1;
        }
        self.close(key);
    }

    fn close(&mut self, key: Key) {
        let _ = self.outbox(key);
        if let Some(connection) = self.connections.get_mut(key) {
            connection.stage = Stage::Closing;
        }
    }
}

/// What came of the bytes at the front.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Done { bytes: usize },
    Incomplete { needed: Option<usize> },
    NotNow,
    Wrong,
}

/// How a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Leaving {
    /// With a DISCONNECT that leaves no Will.
    Orderly,
    /// In any other way.
    Lost,
    /// Another connection took the session over.
    TakenOver,
    /// The broker stops.
    Drained,
}

/// Whether a packet was dealt with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Taken {
    Taken,
    /// The journal has no room: the packet must come again.
    NotNow,
}
