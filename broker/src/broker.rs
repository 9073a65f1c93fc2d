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

mod aliases;
mod connect;
mod deliver;
mod outbox;
mod publish;
mod restore;
mod shared;
mod subscribe;
#[cfg(test)]
mod tests;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use foldhash::HashMap;

use self::aliases::OutgoingAliases;
pub use self::outbox::{Outbox, SHARED_BYTES_MIN};
pub use self::restore::RestoreError;
use self::shared::Group;
use crate::auth::{Access, Identity};
use crate::mqtt::{self, DecodeError, Decoded, Disconnect, Packet, ReasonCode, Version, encode};
use crate::plant::{self, Bug};
use crate::record::{Append, Appended, Batch, Offset, Refused, Timestamp};
use crate::retained::RetainedStore;
use crate::router::{Matches, Router};
use crate::session::Session;
use crate::slots::{Key, Slots};
use crate::topic::TopicFilter;

/// How often kept sessions tell the journal how far they are.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);

/// The topic aliases a client may use.
const TOPIC_ALIASES_MAX: u16 = 64;

/// What one client may use. What happens at each limit stands beside it.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at one time; one more is closed at once.
    pub connections: usize,
    /// Bytes of one packet; a larger one closes the connection with 0x95.
    pub packet_bytes: usize,
    /// Unacknowledged QoS 1 and 2 publishes the broker sends to one client; more wait in the journal.
    pub in_flight: u16,
    /// QoS 1 and 2 publishes one client may have unacknowledged (our Receive Maximum); a v5 client that sends
    /// more is disconnected with 0x93.
    pub receive_maximum: u16,
    /// The longest Session Expiry Interval in seconds; a longer wish is lowered to it, also for MQTT 3 clients
    /// without clean session.
    pub session_expiry_s: u32,
    /// The longest Keep Alive in seconds that is granted to an MQTT 5 client, which is told (MQTT 3 has no word for
    /// it); a client may turn it off. 0 means any.
    pub keep_alive_s: u16,
    /// Time from the connection to its CONNECT packet; then it is closed.
    pub connect_timeout: Duration,
    /// Bytes waiting to be sent to one client; a slower reader leaves the live tail and reads the journal.
    pub outgoing_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 100_000,
            packet_bytes: 1 << 20,
            in_flight: 4_096,
            receive_maximum: 1_024,
            session_expiry_s: 7 * 24 * 3_600,
            keep_alive_s: 60,
            connect_timeout: Duration::from_secs(10),
            outgoing_bytes: 1 << 20,
        }
    }
}

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

/// Totals since the start, and current counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Stats {
    pub connections: u64,
    pub connections_total: u64,
    pub connections_refused_total: u64,
    pub sessions: u64,
    pub subscriptions: u64,
    pub shared_subscriptions: u64,
    pub retained: u64,
    pub packets_in_total: u64,
    pub packets_out_total: u64,
    pub bytes_in_total: u64,
    pub bytes_out_total: u64,
    pub publishes_in_total: u64,
    pub publishes_out_total: u64,
    pub publishes_refused_total: u64,
    pub publishes_dropped_total: u64,
    pub protocol_errors_total: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    AwaitingConnect,
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
    held: bool,
}

/// Something that leaves when every entry before `gate` is durable.
#[derive(Debug)]
struct Gated {
    gate: Offset,
    connection: Key,
    release: Release,
}

#[derive(Debug)]
enum Release {
    PubAck(u16, ReasonCode),
    PubRec(u16, ReasonCode),
    PubComp(u16, ReasonCode),
    /// To a subscriber: the journal knows that it has the publish.
    PubRel(u16),
    /// To a subscriber: the journal knows the Packet Identifier of this QoS 2 delivery.
    Announced(u16),
    /// An encoded packet.
    Packet(Box<[u8]>),
    /// A local publish, by its token.
    Local(u64, Offset),
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

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    /// A connection may have been silent too long, or have sent no CONNECT.
    Silence(Key),
    /// A session may have expired.
    Expiry(Key),
    /// A Will may be due.
    Will(Key),
    /// Kept sessions tell the journal how far they are.
    Progress,
}

/// The broker core.
#[derive(Debug)]
pub struct Broker {
    limits: Limits,
    access: Arc<Access>,
    /// Makes assigned Client Identifiers hard to guess.
    seed: u64,
    durable_end: Offset,
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
    output: VecDeque<Key>,
    resumed: VecDeque<Key>,
    held: Vec<Key>,
    local_done: VecDeque<(u64, Result<Offset, Refused>)>,
    timers: BinaryHeap<Reverse<(Duration, Timer)>>,
    stats: Stats,
    scratch: Vec<u8>,
}

impl Broker {
    /// A broker without sessions. `seed` should be random.
    pub fn new(limits: Limits, access: Arc<Access>, seed: u64) -> Self {
        Self {
            limits,
            access,
            seed,
            durable_end: Offset(0),
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
            output: VecDeque::new(),
            resumed: VecDeque::new(),
            held: Vec::new(),
            local_done: VecDeque::new(),
            timers: BinaryHeap::new(),
            stats: Stats::default(),
            scratch: Vec::new(),
        }
    }

    /// A connection was accepted. `None` when there are too many; the caller closes it.
    pub fn open(&mut self, peer: IpAddr, now: Now) -> Option<Key> {
        if self.connections.len() >= self.limits.connections {
            self.stats.connections_refused_total += 1;
            return None;
        }
        self.stats.connections_total += 1;
        let key = self.connections.insert(Connection {
            peer,
            stage: Stage::AwaitingConnect,
            version: Version::V311,
            session: None,
            certificate: None,
            identity: None,
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
            held: false,
        });
        self.timers.push(Reverse((now.monotonic + self.limits.connect_timeout, Timer::Silence(key))));
        Some(key)
    }

    /// The client has proven with its certificate that it is `name`. To be called before anything is received.
    pub fn set_certificate(&mut self, key: Key, name: &str) {
        if let Some(connection) = self.connections.get_mut(key) {
            connection.certificate = Some(name.into());
        }
    }

    /// The connection comes from `peer` and not from where it seemed to: a proxy said so. To be called before
    /// anything is received.
    pub fn set_peer(&mut self, key: Key, peer: IpAddr) {
        if let Some(connection) = self.connections.get_mut(key) {
            connection.peer = peer;
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
        let mut consumed = 0;
        let received = loop {
            let Some(connection) = self.connections.get_mut(key) else { return Received::Closing };
            let rest = &bytes[consumed..];
            let step = match connection.stage {
                Stage::Closing => return Received::Closing,
                Stage::AwaitingConnect => self.receive_connect(key, rest, now, log),
                Stage::Connected => {
                    connection.heard_at = now.monotonic;
                    let version = connection.version;
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
        received
    }

    fn receive_connect(&mut self, key: Key, bytes: &[u8], now: Now, log: &mut dyn Append) -> Step {
        match mqtt::decode_connect(bytes, self.limits.packet_bytes) {
            Ok(Decoded::Incomplete { needed }) => Step::Incomplete { needed },
            Ok(Decoded::Packet { packet, bytes }) => {
                self.stats.packets_in_total += 1;
                self.handle_connect(key, &packet, now, log);
                Step::Done { bytes }
            }
            Err(error) => {
                error.answer(self.outbox(key));
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
                self.stats.protocol_errors_total += 1;
                self.disconnect_for(key, &error, now, log);
                Step::Wrong
            }
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
            // A second CONNECT is a protocol error [MQTT-3.1.0-2], AUTH has no place where no enhanced
            // authentication was agreed on [MQTT-4.12.0-1], and the rest only servers send.
            Packet::Connect(_)
            | Packet::Auth(_)
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
        self.connections.remove(key);
    }

    /// Entries up to the end of `batch` are durable. Batches come in order and without gaps.
    pub fn durable(&mut self, batch: &Batch, now: Now, log: &mut dyn Append) {
        debug_assert!(self.durable_end <= batch.base(), "batches become durable in order");
        self.durable_end = batch.end();
        self.release();
        self.deliver_durable(batch, now, log);
    }

    /// When [`Broker::handle_timeout`] wants to be called next.
    pub fn poll_timeout(&self) -> Option<Duration> {
        self.timers.peek().map(|Reverse((at, _))| *at)
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Now, log: &mut dyn Append) {
        while let Some(&Reverse((at, timer))) = self.timers.peek() {
            if at > now.monotonic {
                return;
            }
            self.timers.pop();
            match timer {
                Timer::Silence(key) => self.check_silence(key, now, log),
                Timer::Expiry(key) => self.check_expiry(key, now, log),
                Timer::Will(key) => self.check_will(key, now, log),
                Timer::Progress => {
                    self.save_progress(log);
                    self.retry_reads();
                    self.timers.push(Reverse((now.monotonic + PROGRESS_INTERVAL, Timer::Progress)));
                }
            }
        }
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
        let Some(connection) = self.connections.get(key) else { return };
        let Some(session) = connection.session else { return };
        if connection.outbox.len() <= self.limits.outgoing_bytes / 2 {
            self.want_read(session);
        }
    }

    /// The next connection from which bytes may be offered again.
    pub fn poll_resumed(&mut self) -> Option<Key> {
        self.resumed.pop_front()
    }

    /// The journal has room again: connections that were held back go on.
    pub fn handle_room(&mut self) {
        for key in self.held.drain(..) {
            if let Some(connection) = self.connections.get_mut(key) {
                connection.held = false;
                self.resumed.push_back(key);
            }
        }
    }

    /// Whether connections are held back.
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
        let waiting = self.connections.iter().filter(|(_, connection)| connection.unacknowledged > 0);
        for key in waiting.map(|(key, _)| key).collect::<Vec<_>>() {
            self.disconnect(key, ReasonCode::ImplementationSpecificError, now, log);
        }
        for gated in self.gated.drain(..) {
            if let Release::Local(token, _) = gated.release {
                self.local_done.push_back((token, Err(Refused::Failed)));
            }
        }
        self.deliveries.clear();
    }

    /// Totals and counts.
    pub fn stats(&self) -> Stats {
        Stats {
            connections: self.connections.len() as u64,
            sessions: self.sessions.len() as u64,
            subscriptions: (self.router.len() + self.shared_subscriptions) as u64,
            shared_subscriptions: self.shared_subscriptions as u64,
            retained: self.retained.len() as u64,
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

    /// Queues `release` until every entry before `gate` is durable. When nothing else waits and it is durable
    /// already, it leaves at once.
    fn gate(&mut self, gate: Offset, connection: Key, release: Release) {
        let at_once = (gate <= self.durable_end && self.gated.is_empty()) || plant::is(Bug::AckBeforeDurable);
        if at_once {
            self.let_go(connection, release);
        } else {
            self.gated.push_back(Gated { gate, connection, release });
        }
    }

    fn release(&mut self) {
        while let Some(gated) = self.gated.front() {
            if gated.gate > self.durable_end {
                return;
            }
            let Some(Gated { connection, release, .. }) = self.gated.pop_front() else { return };
            self.let_go(connection, release);
        }
    }

    fn let_go(&mut self, key: Key, release: Release) {
        if let Release::Local(token, offset) = release {
            self.local_done.push_back((token, Ok(offset)));
            return;
        }
        let Some(connection) = self.connections.get_mut(key) else { return };
        if connection.stage == Stage::Closing {
            return;
        }
        let version = connection.version;
        match release {
            Release::Announced(packet_id) => {
                self.send_announced(key, packet_id);
                return;
            }
            Release::PubRel(packet_id) => {
                self.send_pubrel(key, packet_id);
                return;
            }
            Release::PubAck(..) | Release::PubRec(..) | Release::PubComp(..) => {}
            // Retained records of a subscription wait for the same gate as its SUBACK.
            Release::Packet(_) | Release::Local(..) => {
                // The first packet of a connection is its CONNACK.
                connection.greeted = true;
                if let Some(session) = connection.session {
                    self.want_read(session);
                }
            }
        }
        let Some(connection) = self.connections.get_mut(key) else { return };
        if finishes_publish(&release) {
            connection.unacknowledged = connection.unacknowledged.saturating_sub(1);
        }
        self.stats.packets_out_total += 1;
        let out = self.outbox(key);
        match release {
            Release::PubAck(packet_id, reason) => encode::puback(out, version, packet_id, reason),
            Release::PubRec(packet_id, reason) => encode::pubrec(out, version, packet_id, reason),
            Release::PubComp(packet_id, reason) => encode::pubcomp(out, version, packet_id, reason),
            Release::Packet(bytes) => out.extend_from_slice(&bytes),
            Release::PubRel(_) | Release::Announced(_) | Release::Local(..) => {}
        }
    }

    /// Ends a connection from our side, as an error of the client or by decision: its Will is published.
    fn disconnect(&mut self, key: Key, reason: ReasonCode, now: Now, log: &mut dyn Append) {
        self.finish_with(key, reason);
        self.leave(key, Leaving::Lost, now, log);
    }

    /// Ends a connection for what came on it, in words where the client takes them.
    fn disconnect_for(&mut self, key: Key, error: &DecodeError, now: Now, log: &mut dyn Append) {
        let Some(connection) = self.connections.get(key) else { return };
        let (version, bytes_max) = (connection.version, connection.packet_bytes_max);
        let mut packet = Vec::new();
        if connection.greeted && version.is_v5() && connection.takes_words {
            let text = error.to_string();
            let told = Disconnect { reason_string: Some(&text), ..Disconnect::new(error.reason()) };
            encode::disconnect(&mut packet, version, &told);
        }
        if packet.is_empty() || packet.len() > bytes_max {
            // [MQTT-3.14.2-3]
            self.disconnect(key, error.reason(), now, log);
            return;
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
        let Some(connection) = self.connections.get(key) else { return };
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

    fn check_silence(&mut self, key: Key, now: Now, log: &mut dyn Append) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        if connection.silence_max.is_zero() || connection.stage == Stage::Closing {
            return;
        }
        if connection.held {
            // It is not the client that is silent: nothing is read from it.
            connection.heard_at = now.monotonic;
        }
        let due = connection.heard_at + connection.silence_max;
        if due > now.monotonic {
            self.timers.push(Reverse((due, Timer::Silence(key))));
            return;
        }
        tracing::debug!(client = self.client_of(key), "closing a silent connection");
        self.disconnect(key, ReasonCode::KeepAliveTimeout, now, log);
    }
}

const fn finishes_publish(release: &Release) -> bool {
    match release {
        Release::PubAck(..) | Release::PubComp(..) => true,
        Release::PubRec(_, reason) => reason.as_u8() >= 0x80,
        Release::PubRel(_) | Release::Announced(_) | Release::Packet(_) | Release::Local(..) => false,
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
