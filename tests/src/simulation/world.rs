//! Everything that can happen, chosen by a seed, and what must be true at the end.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tidegate_broker::broker::Now;
use tidegate_broker::journal::MemoryStorage;
use tidegate_broker::mqtt::Version;
use tidegate_broker::record::{Append, Offset, Qos, Record, Timestamp};

use super::client::Client;
use super::machine::Machine;
use super::sinks::{Destination, Kind, first_occurrences};
use crate::support::random::Random;

const STEPS: u64 = 500;

/// A record as a destination sees it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Seen {
    pub(super) offset: Offset,
    pub(super) client: String,
    pub(super) payload: String,
    qos: Qos,
    retained_topic: Option<String>,
}

impl Seen {
    pub(super) fn of(offset: Offset, record: &Record<'_>) -> Self {
        Self {
            offset,
            client: record.client.to_owned(),
            payload: String::from_utf8(record.payload.to_vec()).expect("devices publish text"),
            qos: record.qos,
            retained_topic: record.retain.then(|| record.topic.as_str().to_owned()),
        }
    }

    fn number(&self) -> u64 {
        self.payload.rsplit_once(':').and_then(|(_, number)| number.parse().ok()).expect("as devices publish")
    }
}

pub(super) struct World {
    seed: u64,
    random: Random,
    disk: MemoryStorage,
    clock: Arc<AtomicU64>,
    machine: Machine,
    clients: Vec<Client>,
    destinations: Vec<Destination>,
    crashes: u64,
    digest: DefaultHasher,
}

impl World {
    pub(super) fn new(seed: u64) -> Self {
        let disk = MemoryStorage::default();
        disk.seed(seed);
        let clock = Arc::new(AtomicU64::new(1_000_000));
        let destinations =
            vec![Destination::new("kafka", Kind::Repeats), Destination::new("postgres", Kind::Transactional)];
        let names: Vec<&str> = destinations.iter().map(|destination| destination.name).collect();
        let machine = Machine::start(&disk, &clock, seed, &names).expect("an empty disk opens");
        let clients = vec![
            Client::new("device-a", Version::V311, None),
            Client::new("device-b", Version::V5, None),
            Client::new("device-c", Version::V5, Some(("sensors/device-a/+", Qos::AtLeastOnce))),
            Client::new("at-least-once", Version::V311, Some(("#", Qos::AtLeastOnce))),
            Client::new("exactly-once", Version::V5, Some(("#", Qos::ExactlyOnce))),
        ];
        Self {
            seed,
            random: Random::new(seed),
            disk,
            clock,
            machine,
            clients,
            destinations,
            crashes: 0,
            digest: DefaultHasher::new(),
        }
    }

    /// Lets everything happen, then lets everything settle, then checks. Returns a digest of what happened.
    pub(super) fn run(mut self) -> u64 {
        for _ in 0..STEPS {
            self.step();
        }
        self.settle();
        self.check();
        for destination in &self.destinations {
            destination.stored.hash(&mut self.digest);
        }
        for client in &self.clients {
            format!("{:?}", client.deliveries).hash(&mut self.digest);
        }
        self.crashes.hash(&mut self.digest);
        self.digest.finish()
    }

    fn now(&self) -> Now {
        let millis = self.clock.load(Ordering::Relaxed);
        Now { monotonic: Duration::from_millis(millis), wall: Timestamp(millis) }
    }

    fn chance(&mut self, one_in: u64) -> bool {
        self.random.within(0..one_in) == 0
    }

    fn step(&mut self) {
        self.clock.fetch_add(self.random.within(0..50), Ordering::Relaxed);
        let chosen = self.random.within(0..self.clients.len() as u64) as usize;
        match self.random.within(0..100) {
            0..25 => self.publish_some(chosen),
            25..50 => self.exchange(chosen, false),
            50..62 => self.machine.round(self.now()),
            62..76 => {
                self.machine.writer.step();
                self.machine.round(self.now());
            }
            76..79 => {
                // Written, not synced: the moment that matters most.
                self.machine.appender.submit();
                if self.machine.writer.write_submitted() && self.chance(4) {
                    self.crash();
                }
            }
            79..93 => self.carry(false),
            93..95 => self.lose_connection(chosen),
            95 => self.machine.take_checkpoint(),
            96 => self.toggle_destination(),
            97 => {
                self.clock.fetch_add(self.random.within(0..3_000), Ordering::Relaxed);
            }
            98 => self.plan_fault(),
            _ => {
                if self.chance(2) {
                    self.crash();
                }
            }
        }
        if self.machine.has_failed() {
            // Until an operator restarts an appliance whose journal has failed, the sinks go on reading.
            self.carry(true);
            if self.chance(10) {
                self.crash();
            }
        }
    }

    fn publish_some(&mut self, chosen: usize) {
        for _ in 0..self.random.within(1..6) {
            let qos = match self.random.within(0..5) {
                0 => Qos::AtMostOnce,
                1 | 2 => Qos::AtLeastOnce,
                _ => Qos::ExactlyOnce,
            };
            let retain = self.chance(10);
            self.clients[chosen].publish(qos, retain);
        }
    }

    /// Moves bytes between one client and the broker, in pieces as networks do.
    fn exchange(&mut self, chosen: usize, whole: bool) {
        let now = self.now();
        let Some(key) = self.clients[chosen].connection else {
            if let Some(key) = self.machine.broker.open(std::net::IpAddr::from([127, 0, 0, 1]), now) {
                self.clients[chosen].open(key);
            }
            return;
        };
        let limit = if whole { usize::MAX } else { self.random.within(1..400) as usize };
        let client = &mut self.clients[chosen];
        let sent: Vec<u8> = client.output.drain(..limit.min(client.output.len())).collect();
        let lives = sent.is_empty() || self.machine.receive(key, &sent, now);
        let (received, closed) = self.machine.transmit(key, limit);
        received.hash(&mut self.digest);
        let client = &mut self.clients[chosen];
        client.receive(&received);
        if client.subscribed {
            // Whatever is accepted from here on belongs to it.
            client.subscribed_from.get_or_insert(self.machine.appender.end());
        }
        if closed || !lives {
            self.lose_connection(chosen);
        }
    }

    fn lose_connection(&mut self, chosen: usize) {
        let now = self.now();
        if let Some(key) = self.clients[chosen].lose_connection() {
            self.machine.close(key, now);
        }
    }

    fn carry(&mut self, calm: bool) {
        let now = self.now().monotonic;
        for (carrier, destination) in self.machine.carriers.iter_mut().zip(&mut self.destinations) {
            carrier.step(destination, &self.machine.journal, now, &mut self.random, calm);
        }
    }

    fn toggle_destination(&mut self) {
        let chosen = self.random.within(0..self.destinations.len() as u64) as usize;
        self.destinations[chosen].away = !self.destinations[chosen].away;
    }

    fn plan_fault(&mut self) {
        if self.chance(2) {
            self.disk.fail(None, self.random.within(1..30));
        } else {
            self.disk.power_off_at(self.random.within(1..30));
        }
    }

    /// The process dies, and perhaps the power goes with it; then it starts again.
    fn crash(&mut self) {
        self.crashes += 1;
        if self.chance(3) {
            self.disk.kill();
        } else {
            self.disk.lose_power(self.random.next());
        }
        let names: Vec<&str> = self.destinations.iter().map(|destination| destination.name).collect();
        let started = Machine::start(&self.disk, &self.clock, self.random.next(), &names);
        self.machine = started.unwrap_or_else(|error| panic!("seed {}: does not open: {error}", self.seed));
        for client in &mut self.clients {
            let _ = client.lose_connection();
        }
    }

    /// No more faults: everybody returns and everything flows until nothing moves.
    fn settle(&mut self) {
        self.crash();
        for destination in &mut self.destinations {
            destination.away = false;
        }
        for round in 0..20_000 {
            self.clock.fetch_add(20, Ordering::Relaxed);
            for chosen in 0..self.clients.len() {
                self.exchange(chosen, true);
            }
            self.machine.writer.step();
            self.machine.round(self.now());
            self.carry(true);
            let settled = self.machine.is_settled()
                && self.clients.iter().all(Client::is_idle)
                && self.machine.carriers.iter().all(|carrier| carrier.is_done(&self.machine.journal));
            if settled && round > 100 && self.is_quiet() {
                return;
            }
        }
        panic!("seed {}: the system does not come to rest", self.seed);
    }

    /// Whether no client has anything more to come.
    fn is_quiet(&mut self) -> bool {
        let before: usize = self.clients.iter().map(|client| client.deliveries.len()).sum();
        for _ in 0..5 {
            for chosen in 0..self.clients.len() {
                self.exchange(chosen, true);
            }
            self.machine.writer.step();
            self.machine.round(self.now());
        }
        before == self.clients.iter().map(|client| client.deliveries.len()).sum::<usize>()
            && self.clients.iter().all(Client::is_connected)
    }

    fn check(&mut self) {
        let log = self.log();
        self.check_destinations(&log);
        self.check_exactly_once_in(&log);
        self.check_subscribers(&log);
        self.check_retained(&log);
    }

    /// Everything in the journal, trimmed segments as the destinations remember them.
    fn log(&self) -> BTreeMap<Offset, Seen> {
        let mut log: BTreeMap<Offset, Seen> = BTreeMap::new();
        for destination in &self.destinations {
            for seen in destination.stored.iter().filter(|seen| seen.offset < self.machine.journal.start()) {
                log.insert(seen.offset, seen.clone());
            }
        }
        let mut reader = self.machine.journal.reader(self.machine.journal.start());
        while let Some(batch) = reader.next().expect("the journal can be read") {
            for (offset, record) in batch.records() {
                log.insert(offset, Seen::of(offset, &record));
            }
        }
        log
    }

    fn check_destinations(&self, log: &BTreeMap<Offset, Seen>) {
        let seed = self.seed;
        for destination in &self.destinations {
            let name = destination.name;
            for seen in &destination.stored {
                let kept = log.get(&seen.offset);
                assert_eq!(kept, Some(seen), "seed {seed}: {name} has what the journal does not say");
            }
            let offsets: BTreeSet<Offset> = destination.stored.iter().map(|seen| seen.offset).collect();
            for offset in log.keys() {
                assert!(offsets.contains(offset), "seed {seed}: {name} misses offset {offset}");
            }
            if destination.kind == Kind::Transactional {
                assert_eq!(offsets.len(), destination.stored.len(), "seed {seed}: {name} has a record twice");
            }
            let payloads: BTreeSet<&str> = destination.stored.iter().map(|seen| &*seen.payload).collect();
            for client in &self.clients {
                for number in &client.acknowledged {
                    let payload = format!("{}:{number}", client.id);
                    assert!(
                        payloads.contains(&*payload),
                        "seed {seed}: {payload} was acknowledged, {name} misses it"
                    );
                }
                let of_client = first_occurrences(&destination.stored)
                    .into_iter()
                    .filter(|seen| seen.client == client.id);
                let numbers: Vec<u64> = of_client.map(Seen::number).collect();
                assert!(
                    numbers.is_sorted(),
                    "seed {seed}: {name} has {} out of order: {numbers:?}",
                    client.id
                );
            }
        }
    }

    fn check_exactly_once_in(&self, log: &BTreeMap<Offset, Seen>) {
        let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
        for seen in log.values().filter(|seen| seen.qos == Qos::ExactlyOnce) {
            *counts.entry(&seen.payload).or_default() += 1;
        }
        for (payload, count) in counts {
            assert_eq!(count, 1, "seed {}: {payload} was published once at QoS 2", self.seed);
        }
    }

    fn check_subscribers(&self, log: &BTreeMap<Offset, Seen>) {
        for client in &self.clients {
            let at_qos_2: Vec<&str> = client
                .deliveries
                .iter()
                .filter(|delivery| delivery.qos == Qos::ExactlyOnce && !delivery.retain)
                .map(|delivery| &*delivery.payload)
                .collect();
            let distinct: BTreeSet<&str> = at_qos_2.iter().copied().collect();
            assert_eq!(
                at_qos_2.len(),
                distinct.len(),
                "seed {}: {} got a QoS 2 record twice",
                self.seed,
                client.id
            );
        }
        for id in ["at-least-once", "exactly-once"] {
            let client =
                self.clients.iter().find(|client| client.id == id).expect("it was made at the start");
            let got: BTreeSet<&str> = client.deliveries.iter().map(|delivery| &*delivery.payload).collect();
            let Some(since) = client.subscribed_from else { continue };
            for seen in log.range(since..).map(|(_, seen)| seen).filter(|seen| seen.qos > Qos::AtMostOnce) {
                assert!(got.contains(&*seen.payload), "seed {}: {id} misses {}", self.seed, seen.payload);
            }
        }
    }

    fn check_retained(&mut self, log: &BTreeMap<Offset, Seen>) {
        let mut expected: BTreeMap<&str, &str> = BTreeMap::new();
        for seen in log.values() {
            if let Some(topic) = &seen.retained_topic {
                expected.insert(topic, &seen.payload);
            }
        }
        let expected: BTreeSet<String> = expected.values().map(|payload| (*payload).to_owned()).collect();
        let late = Client::new("late", Version::V5, Some(("#", Qos::AtLeastOnce)));
        self.clients.push(late);
        let chosen = self.clients.len() - 1;
        for _ in 0..200 {
            self.exchange(chosen, true);
            self.machine.writer.step();
            self.machine.round(self.now());
        }
        let got: BTreeSet<String> =
            self.clients[chosen].deliveries.iter().map(|delivery| delivery.payload.clone()).collect();
        assert_eq!(got, expected, "seed {}: retained records", self.seed);
    }
}
