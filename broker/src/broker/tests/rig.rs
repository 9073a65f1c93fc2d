//! A broker, a log that becomes durable when told, and clients.

use std::sync::Arc;
use std::time::Duration;

use super::super::{Broker, Limits, Now, Received};
use crate::auth::{Access, Anonymous};
use crate::mqtt::{self, Connect, Decoded, Packet, ReasonCode, Subscription, Version, encode};
use crate::record::{
    Append, Appended, Batch, BatchBuilder, Entry, Offset, Properties, Qos, Record, Refused, Timestamp,
};
use crate::slots::Key;

/// A log in memory. What was appended since the last sync is not durable.
pub(super) struct Log {
    pub(super) batches: Vec<Batch>,
    filling: BatchBuilder,
    /// Why records are refused; control entries only if it has failed.
    pub(super) refuse: Option<Refused>,
    /// Whether control entries are refused for the same reason.
    pub(super) refuse_control: bool,
}

impl Log {
    fn new() -> Self {
        Self { batches: Vec::new(), filling: begin(Offset(0)), refuse: None, refuse_control: false }
    }

    fn durable_end(&self) -> Offset {
        self.batches.last().map_or(Offset(0), Batch::end)
    }
}

fn begin(base: Offset) -> BatchBuilder {
    BatchBuilder::new(base, Timestamp(0), 0, 256)
}

impl Append for Log {
    fn append(&mut self, entry: &Entry<'_>) -> Result<Appended, Refused> {
        match self.refuse {
            Some(Refused::Full) if matches!(entry, Entry::Control(_)) && !self.refuse_control => {
                Ok(self.filling.push(entry))
            }
            Some(refused) => Err(refused),
            None => Ok(self.filling.push(entry)),
        }
    }

    fn append_freeing(&mut self, entry: &Entry<'_>) -> Result<Appended, Refused> {
        match self.refuse {
            Some(Refused::Failed) => Err(Refused::Failed),
            Some(Refused::Full) | None => Ok(self.filling.push(entry)),
        }
    }

    fn end(&self) -> Offset {
        self.filling.end()
    }
}

/// More than any test needs.
const READS_MAX: u32 = 1_000_000;

/// What a client has seen, in a form that is easy to compare.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    ConnAck { present: bool, reason: ReasonCode },
    Publish { topic: String, payload: String, qos: u8, packet_id: u16, dup: bool, retain: bool },
    PubAck(u16, ReasonCode),
    PubRec(u16, ReasonCode),
    PubRel(u16),
    PubComp(u16, ReasonCode),
    SubAck(Vec<ReasonCode>),
    UnsubAck,
    PingResp,
    Auth(ReasonCode, String),
    Disconnect(ReasonCode),
}

pub(super) struct Client {
    pub(super) key: Key,
    pub(super) version: Version,
}

pub(super) struct Rig {
    pub(super) broker: Broker,
    pub(super) log: Log,
    pub(super) now: Now,
    limits: Limits,
    access: Arc<Access>,
}

impl Rig {
    pub(super) fn new() -> Self {
        Self::with(Limits::default())
    }

    pub(super) fn with(limits: Limits) -> Self {
        Self::guarded(limits, access())
    }

    /// One in which `access` decides.
    pub(super) fn guarded(limits: Limits, access: Arc<Access>) -> Self {
        let mut broker = Broker::new(limits, Arc::clone(&access), 1);
        let mut log = Log::new();
        let now = Now { monotonic: Duration::from_secs(1), wall: Timestamp(1_000) };
        broker.restored(Offset(0), now, &mut log);
        Self { broker, log, now, limits, access }
    }

    /// The broker goes away and comes back with what the log holds; what was not synced is lost.
    pub(super) fn crash(&mut self, checkpoint: Option<&[u8]>) {
        let (broker, from) = Broker::restore(self.limits, Arc::clone(&self.access), 2, checkpoint).unwrap();
        self.broker = broker;
        self.log.filling = begin(self.log.durable_end());
        for batch in self.log.batches.iter().filter(|batch| batch.base() >= from) {
            self.broker.replay(batch).unwrap();
        }
        self.broker.restored(self.log.durable_end(), self.now, &mut self.log);
        self.audit();
    }

    /// Where the next entry goes.
    pub(super) fn log_end(&self) -> Offset {
        self.log.filling.end()
    }

    pub(super) fn sync(&mut self) {
        loop {
            let base = self.log.filling.end();
            let filled = std::mem::replace(&mut self.log.filling, begin(base));
            if filled.count() > 0 {
                let (_, batch) = filled.finish(|_| {});
                self.log.batches.push(batch.clone());
                self.broker.durable(&batch, self.now, &mut self.log);
            }
            self.serve_reads();
            self.audit();
            if self.log.filling.count() == 0 {
                return;
            }
        }
    }

    /// What became of every copy is known at any time.
    fn audit(&self) {
        self.broker.audit().unwrap_or_else(|wrong| panic!("{wrong}"));
    }

    fn serve_reads(&mut self) {
        let mut left = READS_MAX;
        while let Some((key, offset)) = self.broker.poll_read(self.now, &mut self.log) {
            left -= 1;
            assert!(left > 0, "the broker reads for ever");
            if let Some(filters) = self.broker.looks_for(key, offset) {
                // Exactly what nothing matches is passed over, entry by entry.
                let holds = |batch: &&Batch| {
                    let may_match =
                        |record: &Record<'_>| filters.iter().any(|filter| filter.matches(record.topic));
                    batch.is_gap() || batch.records().any(|(at, record)| at >= offset && may_match(&record))
                };
                let behind = self.log.batches.iter().filter(|batch| offset < batch.end());
                let next = behind.clone().find(holds).map_or(self.log.durable_end(), Batch::base).max(offset);
                drop(filters);
                self.broker.passed_over(key, next, Offset(0));
                if next > offset {
                    continue;
                }
            }
            let found = self.log.batches.iter().find(|batch| offset < batch.end()).cloned();
            let batch = found.expect("the broker reads only what is durable");
            self.broker.read(key, &batch, self.now, &mut self.log);
        }
    }

    pub(super) fn pass(&mut self, seconds: u64) {
        self.now.monotonic += Duration::from_secs(seconds);
        self.now.wall.0 += seconds * 1_000;
        self.broker.handle_timeout(self.now, &mut self.log);
        self.audit();
    }

    pub(super) fn open(&mut self, version: Version) -> Client {
        self.open_from([127, 0, 0, 1], version)
    }

    pub(super) fn open_from(&mut self, peer: [u8; 4], version: Version) -> Client {
        let peer = std::net::IpAddr::from(peer);
        Client { key: self.broker.open(peer, self.now).unwrap(), version }
    }

    /// Connects and swallows the CONNACK, which must be a success.
    pub(super) fn connect(&mut self, connect: &Connect<'_>) -> Client {
        let client = self.open(connect.version);
        self.send(&client, |out| encode::connect(out, connect));
        self.sync();
        let seen = self.seen(&client);
        assert!(matches!(seen.first(), Some(Seen::ConnAck { reason: ReasonCode::Success, .. })), "{seen:?}");
        client
    }

    /// A clean client.
    pub(super) fn client(&mut self, version: Version, id: &str) -> Client {
        self.connect(&Connect::new(version, id))
    }

    /// A client whose session outlives its connection; returns whether it was there.
    pub(super) fn keeper(&mut self, id: &str) -> (Client, Vec<Seen>) {
        let client = self.open(Version::V5);
        let connect =
            Connect { clean_start: false, session_expiry_s: 1_000, ..Connect::new(Version::V5, id) };
        self.send(&client, |out| encode::connect(out, &connect));
        self.sync();
        let seen = self.seen(&client);
        (client, seen)
    }

    pub(super) fn send(&mut self, client: &Client, encode: impl FnOnce(&mut Vec<u8>)) -> Received {
        let mut bytes = Vec::new();
        encode(&mut bytes);
        let received = self.broker.receive(client.key, &bytes, self.now, &mut self.log);
        self.serve_reads();
        received
    }

    pub(super) fn publish(&mut self, client: &Client, topic: &str, payload: &str, qos: Qos, packet_id: u16) {
        self.publish_with(client, topic, payload, qos, packet_id, false, false);
    }

    #[allow(clippy::too_many_arguments)]
    pub(super) fn publish_with(
        &mut self,
        client: &Client,
        topic: &str,
        payload: &str,
        qos: Qos,
        packet_id: u16,
        retain: bool,
        dup: bool,
    ) -> Received {
        let head = encode::PublishHead {
            dup,
            qos,
            retain,
            packet_id,
            topic,
            properties: Properties::NONE,
            message_expiry: None,
            subscription_ids: &[],
            topic_alias: None,
            payload_bytes: payload.len(),
        };
        let version = client.version;
        self.send(client, |out| {
            encode::publish(out, version, &head, payload.as_bytes());
        })
    }

    pub(super) fn subscribe(&mut self, client: &Client, filter: &str, qos: Qos) {
        let version = client.version;
        self.send(client, |out| encode::subscribe(out, version, 9, None, [Subscription::new(filter, qos)]));
        self.sync();
    }

    pub(super) fn close(&mut self, client: Client) {
        self.broker.closed(client.key, self.now, &mut self.log);
    }

    /// Everything written to a client since the last call.
    pub(super) fn seen(&mut self, client: &Client) -> Vec<Seen> {
        let Some((outbox, _)) = self.broker.output(client.key) else { return Vec::new() };
        let bytes: Vec<u8> = outbox.pieces().flat_map(|piece| piece.to_vec()).collect();
        assert_eq!(bytes.len(), outbox.len(), "tests stay below the pieces of one write");
        outbox.advance(bytes.len());
        self.broker.written(client.key, bytes.len());
        self.serve_reads();
        let mut seen = Vec::new();
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let Decoded::Packet { packet, bytes } =
                mqtt::decode(rest, client.version, usize::MAX).expect("the broker sends valid packets")
            else {
                panic!("the broker sends whole packets: {rest:?}");
            };
            seen.push(saw(&packet));
            rest = &rest[bytes..];
        }
        seen
    }
}

fn access() -> Arc<Access> {
    Arc::new(Access::new(Anonymous::Always, None))
}

fn saw(packet: &Packet<'_>) -> Seen {
    match packet {
        Packet::ConnAck(ack) => Seen::ConnAck { present: ack.session_present, reason: ack.reason },
        Packet::Publish(publish) => Seen::Publish {
            topic: publish.topic.into(),
            payload: String::from_utf8_lossy(publish.payload).into(),
            qos: publish.qos as u8,
            packet_id: publish.packet_id,
            dup: publish.dup,
            retain: publish.retain,
        },
        Packet::PubAck(ack) => Seen::PubAck(ack.packet_id, ack.reason),
        Packet::PubRec(ack) => Seen::PubRec(ack.packet_id, ack.reason),
        Packet::PubRel(ack) => Seen::PubRel(ack.packet_id),
        Packet::PubComp(ack) => Seen::PubComp(ack.packet_id, ack.reason),
        Packet::SubAck(ack) => Seen::SubAck(ack.codes.iter().collect()),
        Packet::UnsubAck(_) => Seen::UnsubAck,
        Packet::PingResp => Seen::PingResp,
        Packet::Auth(auth) => {
            Seen::Auth(auth.reason, String::from_utf8_lossy(auth.data.unwrap_or_default()).into())
        }
        Packet::Disconnect(disconnect) => Seen::Disconnect(disconnect.reason),
        Packet::Connect(_) | Packet::Subscribe(_) | Packet::Unsubscribe(_) | Packet::PingReq => {
            panic!("only clients send {packet:?}")
        }
    }
}

/// A delivery as a subscriber sees it at first.
pub(super) fn delivery(topic: &str, payload: &str, qos: u8, packet_id: u16) -> Seen {
    Seen::Publish { topic: topic.into(), payload: payload.into(), qos, packet_id, dup: false, retain: false }
}
