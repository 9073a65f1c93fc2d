//! Sequences of operations on the broker core: the bytes choose what clients, the journal, the clock and the power do.
//!
//! What must hold whatever happens:
//!
//! - The broker sends whole, valid packets, CONNACK first.
//! - A Packet Identifier in flight has one use, and no more are in flight than the client's Receive Maximum allows.
//! - Nothing is acknowledged, and nothing is delivered at QoS 1 or 2, before it is durable.
//! - A client that has a QoS 2 publish and has not seen its PUBREL is never sent another one under its identifier.
//! - What waits for a connection is bounded, and the broker comes to rest.

mod client;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tidegate_broker::auth::{Access, Anonymous};
use tidegate_broker::broker::{Broker, Limits, Now, Received};
use tidegate_broker::mqtt::{Connect, RetainHandling, Subscription, Version, encode};
use tidegate_broker::record::{
    Append, Appended, Batch, BatchBuilder, Entry, Offset, Qos, Refused, Timestamp,
};
use tidegate_broker::slots::Key;

use self::client::Client;

/// Longer inputs only repeat themselves.
const OPERATIONS_MAX: usize = 400;

/// More rounds than anything that comes to rest takes.
const ROUNDS_MAX: usize = 20_000;

/// Waiting above it is only what was asked for: answers, and the delivery that crossed the limit.
const OUTGOING_BYTES: usize = 512;

const TOPICS: [&str; 6] = ["a", "a/b", "a/b/c", "$own/x", "b", "a//"];
const FILTERS: [&str; 10] =
    ["#", "a/#", "+/b", "a/+", "a", "$own/#", "b", "a/b/c", "$share/g/a/#", "$share/g/b"];

/// Does what `bytes` say.
pub(crate) fn check(bytes: &[u8]) {
    let mut input = Input(bytes);
    let mut world = World::new();
    for _ in 0..OPERATIONS_MAX {
        if input.0.is_empty() {
            break;
        }
        world.step(&mut input);
    }
    world.come_to_rest();
}

/// Choices, byte by byte; when there are none left, the first of everything.
pub(crate) struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn byte(&mut self) -> u8 {
        let Some((&first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        first
    }

    fn below(&mut self, end: usize) -> usize {
        usize::from(self.byte()) % end
    }

    fn yes(&mut self) -> bool {
        self.byte() & 1 == 1
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    fn qos(&mut self) -> Qos {
        self.pick(&[Qos::AtLeastOnce, Qos::ExactlyOnce, Qos::AtMostOnce])
    }
}

/// A journal in memory. What was appended since the last sync is not durable.
struct Log {
    batches: Vec<Batch>,
    filling: BatchBuilder,
    refuse: Option<Refused>,
}

impl Log {
    fn begin(base: Offset) -> BatchBuilder {
        BatchBuilder::new(base, Timestamp(0), 0, 256)
    }

    fn durable_end(&self) -> Offset {
        self.batches.last().map_or(Offset(0), Batch::end)
    }
}

impl Append for Log {
    fn append(&mut self, entry: &Entry<'_>) -> Result<Appended, Refused> {
        match self.refuse {
            Some(Refused::Full) if matches!(entry, Entry::Control(_)) => Ok(self.filling.push(entry)),
            Some(refused) => Err(refused),
            None => Ok(self.filling.push(entry)),
        }
    }

    fn end(&self) -> Offset {
        self.filling.end()
    }
}

struct World {
    broker: Broker,
    log: Log,
    now: Now,
    limits: Limits,
    clients: Vec<Client>,
    /// The payloads of all durable records: each publish has its own.
    durable: BTreeSet<Vec<u8>>,
    published: u32,
    checkpoint: Option<(Offset, Vec<u8>)>,
}

impl World {
    fn new() -> Self {
        let limits =
            Limits { outgoing_bytes: OUTGOING_BYTES, in_flight: 8, receive_maximum: 8, ..Limits::default() };
        let now = Now { monotonic: Duration::from_secs(1), wall: Timestamp(1_000) };
        let mut log = Log { batches: Vec::new(), filling: Log::begin(Offset(0)), refuse: None };
        let mut broker = Broker::new(limits, access(), 1);
        broker.restored(Offset(0), now, &mut log);
        let clients = vec![
            Client::new("one", Version::V5),
            Client::new("two", Version::V311),
            Client::new("three", Version::V5),
            Client::new("four", Version::V31),
        ];
        Self { broker, log, now, limits, clients, durable: BTreeSet::new(), published: 0, checkpoint: None }
    }

    fn step(&mut self, input: &mut Input<'_>) {
        let operation = input.below(32);
        let chosen = input.below(self.clients.len());
        match operation {
            0..=2 => self.connect(chosen, input),
            3 | 4 => self.subscribe(chosen, input),
            5..=10 => self.publish(chosen, input),
            11..=15 => self.collect(chosen),
            16..=18 => {
                for _ in 0..=input.below(8) {
                    self.clients[chosen].answer_one(input.yes());
                }
                self.deliver_to_broker(chosen);
            }
            19..=22 => self.sync(),
            23 => self.serve_reads(),
            24 => self.pass(Duration::from_millis(u64::from(input.byte()) * 50)),
            25 => self.disconnect(chosen, input),
            26 => self.lose(chosen),
            27 => self.unsubscribe(chosen, input),
            28 => self.send_anything(chosen, input),
            29 => self.journal_changes(input),
            30 => self.take_checkpoint(),
            _ => self.crash(input.yes()),
        }
        self.broker.audit().unwrap_or_else(|wrong| panic!("the books are wrong: {wrong}"));
        self.check_bounds();
    }

    fn connect(&mut self, chosen: usize, input: &mut Input<'_>) {
        let before = self.clients[chosen].key;
        let Some(key) = self.broker.open([127, 0, 0, 1].into(), self.now) else { return };
        let client = &mut self.clients[chosen];
        let (clean_start, will, keep) = (input.yes(), input.yes(), input.byte());
        client.open(key, u16::from(input.byte() % 4) + 1);
        let version = client.version;
        let id = client.id;
        let will_topic = tidegate_broker::topic::TopicName::new("a/b").expect("it is one");
        let connect = Connect {
            clean_start,
            session_expiry_s: if version.is_v5() { u32::from(keep) } else { 0 },
            receive_maximum: if version.is_v5() { client.receive_maximum } else { u16::MAX },
            keep_alive_s: u16::from(keep % 16),
            will: will.then(|| tidegate_broker::mqtt::Will {
                topic: will_topic,
                payload: b"will",
                qos: Qos::AtLeastOnce,
                retain: keep & 1 == 1,
                delay_s: if version.is_v5() { u32::from(keep % 3) } else { 0 },
                properties: tidegate_broker::mqtt::WireProperties::from_travelling(
                    tidegate_broker::record::Properties::NONE,
                ),
            }),
            ..Connect::new(version, id)
        };
        if !version.is_v5() {
            self.clients[chosen].receive_maximum = self.limits.in_flight;
        }
        encode::connect(&mut self.clients[chosen].output, &connect);
        self.deliver_to_broker(chosen);
        if let Some(before) = before {
            // It was taken over, or the new one was refused; either way its socket ends.
            self.broker.closed(before, self.now, &mut self.log);
        }
    }

    fn subscribe(&mut self, chosen: usize, input: &mut Input<'_>) {
        let client = &mut self.clients[chosen];
        let v5 = client.version.is_v5();
        let subscription = Subscription {
            no_local: v5 && input.yes(),
            retain_as_published: v5 && input.yes(),
            retain_handling: if v5 { input.pick(&RETAIN_HANDLING) } else { RetainHandling::Send },
            ..Subscription::new(input.pick(&FILTERS), input.qos())
        };
        let identifier = (v5 && input.yes()).then_some(7);
        encode::subscribe(&mut client.output, client.version, 77, identifier, [subscription]);
        self.deliver_to_broker(chosen);
    }

    fn unsubscribe(&mut self, chosen: usize, input: &mut Input<'_>) {
        let client = &mut self.clients[chosen];
        encode::unsubscribe(&mut client.output, client.version, 78, [input.pick(&FILTERS)]);
        self.deliver_to_broker(chosen);
    }

    fn publish(&mut self, chosen: usize, input: &mut Input<'_>) {
        for _ in 0..=input.below(4) {
            self.published += 1;
            let payload = format!("p{}", self.published).into_bytes();
            let (topic, qos) = (input.pick(&TOPICS), input.qos());
            let retain = input.byte() % 8 == 7;
            self.clients[chosen].publish(
                topic,
                payload,
                qos,
                retain,
                usize::from(self.limits.receive_maximum),
            );
        }
        self.deliver_to_broker(chosen);
    }

    /// Bytes that no client sends: from here on only the broker's own assertions watch it.
    fn send_anything(&mut self, chosen: usize, input: &mut Input<'_>) {
        let count = input.below(24);
        let client = &mut self.clients[chosen];
        client.wild = true;
        for _ in 0..count {
            client.output.push(input.byte());
        }
        self.deliver_to_broker(chosen);
    }

    fn disconnect(&mut self, chosen: usize, input: &mut Input<'_>) {
        let client = &mut self.clients[chosen];
        if input.yes() {
            encode::pingreq(&mut client.output);
        } else {
            let disconnect =
                tidegate_broker::mqtt::Disconnect::new(tidegate_broker::mqtt::ReasonCode::Success);
            encode::disconnect(&mut client.output, client.version, &disconnect);
        }
        self.deliver_to_broker(chosen);
    }

    fn lose(&mut self, chosen: usize) {
        if let Some(key) = self.clients[chosen].lose() {
            self.broker.closed(key, self.now, &mut self.log);
        }
    }

    /// What the client has to send reaches the broker.
    fn deliver_to_broker(&mut self, chosen: usize) {
        let client = &mut self.clients[chosen];
        let Some(key) = client.key else {
            client.output.clear();
            return;
        };
        match self.broker.receive(key, &client.output, self.now, &mut self.log) {
            Received::More { consumed, needed } => {
                assert!(consumed <= client.output.len());
                assert!(needed.is_none_or(|needed| needed > client.output.len() - consumed));
                client.output.drain(..consumed);
            }
            Received::Held { consumed } => {
                client.output.drain(..consumed);
            }
            Received::Closing => client.output.clear(),
        }
    }

    /// What waits for the client reaches it.
    fn collect(&mut self, chosen: usize) {
        let Some(key) = self.clients[chosen].key else { return };
        let closing = self.take_output(key, chosen);
        if closing {
            self.lose(chosen);
        }
    }

    fn take_output(&mut self, key: Key, chosen: usize) -> bool {
        let Some((outbox, closing)) = self.broker.output(key) else { return true };
        let mut bytes = Vec::new();
        while !outbox.is_empty() {
            let piece: Vec<u8> = outbox.pieces().flat_map(|piece| piece.to_vec()).collect();
            outbox.advance(piece.len());
            bytes.extend_from_slice(&piece);
        }
        self.broker.written(key, bytes.len());
        self.clients[chosen].receive(&bytes, &self.durable);
        closing
    }

    /// Everything accepted becomes durable.
    fn sync(&mut self) {
        if self.log.refuse == Some(Refused::Failed) {
            return;
        }
        let next = Log::begin(self.log.filling.end());
        let filled = std::mem::replace(&mut self.log.filling, next);
        if filled.count() == 0 {
            return;
        }
        let (_, batch) = filled.finish(|_| {});
        self.durable.extend(batch.records().map(|(_, record)| record.payload.to_vec()));
        self.log.batches.push(batch.clone());
        self.broker.durable(&batch, self.now, &mut self.log);
        if self.log.refuse.is_none() {
            self.resume();
        }
    }

    fn serve_reads(&mut self) {
        for _ in 0..ROUNDS_MAX {
            let Some((key, offset)) = self.broker.poll_read(self.now, &mut self.log) else { return };
            let found = self.log.batches.iter().find(|batch| offset < batch.end()).cloned();
            let batch = found.expect("the broker reads only what is durable");
            // A reader gives the rest of the batch, or the whole batch.
            self.broker.read(key, &batch, self.now, &mut self.log);
        }
        panic!("the broker reads for ever");
    }

    fn pass(&mut self, time: Duration) {
        self.now.monotonic += time;
        self.now.wall.0 += time.as_millis() as u64;
        self.broker.handle_timeout(self.now, &mut self.log);
    }

    fn journal_changes(&mut self, input: &mut Input<'_>) {
        match input.below(8) {
            0 => {
                self.log.refuse = Some(Refused::Failed);
                self.broker.journal_failed(self.now, &mut self.log);
            }
            1..=3 => {
                if self.log.refuse.is_none() {
                    self.log.refuse = Some(Refused::Full);
                }
            }
            _ => {
                if self.log.refuse == Some(Refused::Full) {
                    self.log.refuse = None;
                    self.resume();
                }
            }
        }
    }

    /// There is room again: what was held back goes on.
    fn resume(&mut self) {
        self.broker.handle_room();
        while let Some(key) = self.broker.poll_resumed() {
            if let Some(chosen) = self.clients.iter().position(|client| client.key == Some(key)) {
                self.deliver_to_broker(chosen);
            }
        }
    }

    fn take_checkpoint(&mut self) {
        self.sync();
        let end = self.log.end();
        if self.log.durable_end() == end && self.log.refuse.is_none() {
            let lowest = self.broker.lowest_position().map_or(end, |lowest| lowest.min(end));
            self.checkpoint = Some((end, self.broker.checkpoint(end)));
            self.log.batches.retain(|batch| batch.end() > lowest || batch.end() == end);
        }
    }

    /// The process dies: what is not durable is lost; perhaps the checkpoint was written, perhaps an older one holds.
    fn crash(&mut self, with_checkpoint: bool) {
        let trimmed = self.log.batches.first().is_some_and(|batch| batch.base() > Offset(0));
        let saved = self.checkpoint.as_ref().filter(|_| with_checkpoint || trimmed);
        let bytes = saved.map(|(_, bytes)| &bytes[..]);
        let (broker, from) =
            Broker::restore(self.limits, access(), 2, bytes).expect("it reads what it wrote");
        self.broker = broker;
        self.log.refuse = None;
        self.log.filling = Log::begin(self.log.durable_end());
        for batch in self.log.batches.iter().filter(|batch| batch.end() > from) {
            self.broker.replay(&batch.starting_at(from)).expect("it reads what it wrote");
        }
        self.broker.restored(self.log.durable_end(), self.now, &mut self.log);
        for client in &mut self.clients {
            let _ = client.lose();
        }
    }

    fn check_bounds(&mut self) {
        for client in &mut self.clients {
            let Some((outbox, _)) = client.key.and_then(|key| self.broker.output(key)) else { continue };
            client.most_waiting(outbox.len(), OUTGOING_BYTES);
        }
    }

    /// Without anything new, everything ends.
    fn come_to_rest(&mut self) {
        self.log.refuse = None;
        let mut calm = 0;
        for _ in 0..ROUNDS_MAX {
            let before = (self.broker.stats(), self.log.end());
            self.resume();
            self.sync();
            self.serve_reads();
            for chosen in 0..self.clients.len() {
                self.collect(chosen);
                while self.clients[chosen].answer_one(false) {}
                self.deliver_to_broker(chosen);
            }
            while self.broker.poll_output().is_some() {}
            calm = if (self.broker.stats(), self.log.end()) == before { calm + 1 } else { 0 };
            if calm > 2 {
                return;
            }
        }
        panic!("the broker does not come to rest");
    }
}

const RETAIN_HANDLING: [RetainHandling; 3] =
    [RetainHandling::Send, RetainHandling::SendIfNew, RetainHandling::DoNotSend];

fn access() -> Arc<Access> {
    Arc::new(Access::new(Anonymous::Always, None))
}
