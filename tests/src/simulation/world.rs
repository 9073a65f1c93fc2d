//! Everything that can happen, chosen by a seed.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tidegate_broker::broker::Now;
use tidegate_broker::journal::{Clock, Journal, MemoryStorage, OpenError, Storage};
use tidegate_broker::mqtt::Version;
use tidegate_broker::record::{Append, Offset, Qos, Timestamp};
use tidegate_broker::server::checkpoint;

use super::check;
use super::client::{Client, Filter, Kind};
use super::ledger::{Hasher, Ledger};
use super::machine::{Machine, Took};
use super::outcome::{Counts, Outcome};
use super::plan::Plan;
use super::sinks::{self, Carrier, Destination};
use crate::support::random::Random;

/// The clients by their place in [`World::clients`].
pub(super) const LEAVER: usize = 3;
pub(super) const MEMBERS: std::ops::Range<usize> = 6..9;
const PUBLISHERS: u64 = 4;

/// The one that is away for longer than its session lasts, at times.
const LEAVER_EXPIRY_S: u32 = 30;

fn kinds(plan: &Plan) -> [Kind; 9] {
    let subscriber =
        |name, version, filter, qos| Kind { filter: Some((filter, qos)), ..Kind::new(name, version) };
    let member =
        |name, toggles| Kind { toggles, ..subscriber(name, Version::V5, Filter::Jobs, plan.group_qos) };
    [
        Kind::new("a", Version::V311),
        Kind::new("b", Version::V5),
        Kind {
            toggles: true,
            will_delay_s: Some(0),
            ..subscriber("c", Version::V5, Filter::Sensors, Qos::AtLeastOnce)
        },
        Kind { expiry_s: LEAVER_EXPIRY_S, will_delay_s: Some(5), ..Kind::new("leaver", Version::V5) },
        subscriber("at-least-once", Version::V311, Filter::All, Qos::AtLeastOnce),
        subscriber("exactly-once", Version::V5, Filter::All, Qos::ExactlyOnce),
        member("steady", false),
        member("second", true),
        member("third", true),
    ]
}

/// When a connection ended, as far as it can be known from outside: an attempt to come back may have been seen or not.
#[derive(Clone, Copy, Debug)]
struct Left {
    first_life: u64,
    earliest: u64,
    last_life: u64,
    latest: u64,
}

pub(super) struct World {
    pub(super) plan: Plan,
    random: Random,
    pub(super) disk: MemoryStorage,
    /// Milliseconds; never goes back.
    monotonic: u64,
    wall: Arc<AtomicU64>,
    pub(super) machine: Machine,
    pub(super) clients: Vec<Client>,
    pub(super) destinations: [Destination; 2],
    pub(super) ledger: Ledger,
    /// How often the broker was started.
    life: u64,
    /// Wills that are void once the journal is durable up to an offset, by client and connection.
    voided: Vec<(usize, usize, Offset)>,
    /// When the connection of the leaver ended.
    left: Option<Left>,
    /// What was trimmed before a subscriber had it, in lives before this one.
    trimmed: u64,
    counts: Counts,
    digest: Hasher,
    bytes: Vec<u8>,
}

impl World {
    pub(super) fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let plan = Plan::new(&mut random);
        let disk = MemoryStorage::default();
        disk.seed(seed);
        let wall = Arc::new(AtomicU64::new(1_000_000_000_000));
        let destinations = [
            Destination::new("kafka", sinks::Kind::Repeats),
            Destination::new("postgres", sinks::Kind::Transactional),
        ];
        let mut ledger = Ledger::default();
        let now = Now { monotonic: Duration::from_secs(1), wall: Timestamp(1_000_000_000_000) };
        let names = destinations.each_ref().map(|destination| destination.name);
        let machine = Machine::start(&disk, &plan, clock(&wall), now, &names, &mut ledger)
            .expect("an empty disk opens");
        let clients = kinds(&plan).into_iter().enumerate().map(|(index, kind)| Client::new(index, kind));
        Self {
            random,
            disk,
            monotonic: 1_000,
            wall,
            machine,
            clients: clients.collect(),
            destinations,
            ledger,
            life: 0,
            voided: Vec::new(),
            left: None,
            trimmed: 0,
            counts: Counts::default(),
            digest: Hasher::default(),
            bytes: Vec::new(),
            plan,
        }
    }

    /// Lets everything happen, then lets everything settle, then checks.
    pub(super) fn run(mut self) -> Outcome {
        for _ in 0..self.plan.steps {
            self.step();
        }
        self.settle();
        check::everything(&mut self);
        self.ledger.digest(&mut self.digest);
        self.digest.add(self.disk.digest());
        self.destinations.iter().for_each(|destination| self.digest.add(destination.digest.0));
        self.count_life();
        self.counts.trimmed = self.machine.journal.start().0;
        self.counts.skipped = self.machine.carriers.iter().map(Carrier::skipped).sum();
        self.counts.publishes = self.ledger.count(Offset(0), self.ledger.end());
        self.counts.deliveries = self.clients.iter().map(|client| client.deliveries.len() as u64).sum();
        self.counts.wills = self.ledger.ids().filter(|(id, _)| id.will).count() as u64;
        Outcome { digest: self.digest.0, counts: self.counts }
    }

    /// Adds up what a life of the broker counts.
    fn count_life(&mut self) {
        let stats = self.machine.stats();
        self.counts.refused += stats.publishes_refused.sum();
        self.counts.expired += stats.sessions_expired_total;
        self.counts.failures += u64::from(self.machine.has_failed());
    }

    pub(super) fn now(&self) -> Now {
        Now {
            monotonic: Duration::from_millis(self.monotonic),
            wall: Timestamp(self.wall.load(Ordering::Relaxed)),
        }
    }

    pub(super) fn pass_time(&mut self, ms: u64) {
        self.monotonic += ms;
        self.wall.fetch_add(ms, Ordering::Relaxed);
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.random.within(0..n) == 0
    }

    fn step(&mut self) {
        let ms = self.random.within(0..50);
        self.pass_time(ms);
        let chosen = self.random.within(0..self.clients.len() as u64) as usize;
        match self.random.within(0..100) {
            0..24 => self.publish_some(),
            24..52 => _ = self.exchange(chosen, false),
            52..62 => self.round(),
            62..74 => {
                self.machine.writer.step();
                self.round();
            }
            74..77 => self.write_and_perhaps_crash(),
            77..89 => _ = self.carry(false),
            89..92 => self.end_connection(chosen),
            92 => self.machine.take_checkpoint(),
            93 => self.toggle_destination(),
            94 => self.wait_long(),
            95 => self.toggle_subscription(),
            96 if self.plan.disk_fails => self.plan_fault(),
            97 if self.plan.disk_fills => self.resize_disk(),
            98 if self.plan.clock_jumps => self.jump(),
            99 if self.one_in(2) => self.crash(),
            _ => {
                self.exchange(chosen, true);
                self.round();
            }
        }
        if self.machine.has_failed() {
            // Until an operator restarts an appliance whose journal has failed, the sinks go on reading.
            self.round();
            self.carry(true);
            if self.one_in(10) {
                self.crash();
            }
        }
    }

    pub(super) fn round(&mut self) {
        let now = self.now();
        self.machine.round(now, &mut self.ledger);
        self.note_ended_by_broker();
        let durable_end = self.machine.broker.durable_end();
        let clients = &mut self.clients;
        self.voided.retain(|(client, will, gate)| {
            let void = *gate <= durable_end;
            clients[*client].wills[*will].must_not |= void;
            !void
        });
    }

    fn publish_some(&mut self) {
        let chosen = self.random.within(0..PUBLISHERS) as usize;
        for _ in 0..self.random.within(1..6) {
            let qos = match self.random.within(0..5) {
                0 => Qos::AtMostOnce,
                1 | 2 => Qos::AtLeastOnce,
                // A session that ends takes with it what makes QoS 2 exact.
                _ if chosen == LEAVER => Qos::AtLeastOnce,
                _ => Qos::ExactlyOnce,
            };
            let (retain, clears) = (self.one_in(8), self.one_in(20));
            self.clients[chosen].publish(qos, retain, clears);
        }
    }

    /// Moves bytes between one client and the broker, in pieces as networks do.
    pub(super) fn exchange(&mut self, chosen: usize, whole: bool) -> bool {
        let now = self.now();
        let Some(key) = self.clients[chosen].connection else {
            let clean_start =
                self.plan.group_qos < Qos::ExactlyOnce && chosen == MEMBERS.end - 1 && self.one_in(6);
            if let Some(key) = self.machine.broker.open(IpAddr::from([127, 0, 0, 1]), now) {
                self.clients[chosen].open(key, clean_start);
            }
            return true;
        };
        let limit = if whole { usize::MAX } else { self.random.within(1..400) as usize };
        let client = &mut self.clients[chosen];
        client.ask();
        let sent = limit.min(client.output.len());
        let mut took = Took::Everything;
        if sent > 0 && !self.machine.is_held(key) {
            took = self.machine.receive(key, &client.output[..sent], now);
            self.digest.bytes(&client.output[..sent]);
            client.output.drain(..sent);
            if client.output.is_empty() {
                client.connect_sent_at.get_or_insert(self.monotonic);
            }
        }
        let mut bytes = std::mem::take(&mut self.bytes);
        let closed = self.machine.transmit(key, limit, &mut bytes);
        self.digest.bytes(&bytes);
        self.deliver(chosen, &bytes);
        self.counts.held += u64::from(took == Took::Held);
        let moved = sent > 0 || !bytes.is_empty();
        self.bytes = bytes;
        if closed || took == Took::Closing {
            self.lose_connection(chosen);
        }
        moved
    }

    /// Bytes reach a client, which may learn something from them.
    fn deliver(&mut self, chosen: usize, bytes: &[u8]) {
        let client = &mut self.clients[chosen];
        let (was_subscribed, before) = (client.subscribed, client.deliveries.len());
        client.receive(bytes);
        if client.subscribed && !was_subscribed {
            // Whatever is accepted from here on belongs to it.
            client.subscribed_from.get_or_insert(self.machine.appender.end());
        } else if was_subscribed && !client.subscribed && client.present != Some(false) {
            client.unsubscribed_from = Some(self.machine.appender.end());
        }
        check::deliveries(client, before, &self.ledger);
        if let Some(present) = client.present.take() {
            self.connected(chosen, present);
        }
    }

    /// CONNACK has come.
    fn connected(&mut self, chosen: usize, present: bool) {
        let life = self.life;
        let monotonic = self.clients[chosen].connect_sent_at.unwrap_or(self.monotonic);
        let ended = self.is_ended_by_broker(chosen);
        let client = &mut self.clients[chosen];
        let name = client.kind.name;
        if chosen != LEAVER {
            assert!(present || !client.kept, "{name}: the broker forgot a session it had confirmed");
        } else if let Some(left) = self.left.take() {
            let (longest_s, shortest_s) = (
                monotonic.saturating_sub(left.earliest) / 1_000,
                monotonic.saturating_sub(left.latest) / 1_000,
            );
            let expiry_s = u64::from(client.kind.expiry_s);
            let same_clock = left.first_life == life || !self.plan.clock_jumps;
            assert!(
                present || !client.kept || longest_s + 1 >= expiry_s || !same_clock,
                "{name}: its session ended after {longest_s} s"
            );
            assert!(
                !present || shortest_s <= expiry_s + 1 || left.last_life != life,
                "{name}: its session was still there after {shortest_s} s"
            );
            // What it hears of is over already.
            self.left = ended.then_some(left);
        }
        client.kept = true;
        let Some(before) = client.wills.len().checked_sub(2) else {
            return;
        };
        let fate = &mut client.wills[before];
        if let Some((left_life, left_at)) = fate.lost_at
            && left_life == life
        {
            let away_ms = monotonic.saturating_sub(left_at);
            let due_ms = u64::from(fate.delay_s) * 1_000;
            fate.must |= away_ms > due_ms + 100;
            fate.must_not |= away_ms + 100 < due_ms;
        }
    }

    fn end_connection(&mut self, chosen: usize) {
        if !self.clients[chosen].is_connected() || !self.one_in(3) || self.machine.has_failed() {
            self.lose_connection(chosen);
            return;
        }
        let (Some(key), now) = (self.clients[chosen].connection, self.now()) else {
            return;
        };
        let client = &mut self.clients[chosen];
        client.disconnect();
        self.digest.bytes(&client.output);
        let took = self.machine.receive(key, &client.output, now);
        let written = self.machine.appender.refused().is_none();
        if written && took == Took::Closing && !client.wills.is_empty() {
            let will = client.wills.len() - 1;
            self.voided.push((chosen, will, self.machine.appender.end()));
        }
        self.lose_connection(chosen);
    }

    fn lose_connection(&mut self, chosen: usize) {
        let now = self.now();
        let Some(key) = self.clients[chosen].lose_connection() else {
            return;
        };
        self.machine.close(key, now);
        self.note_lost(chosen);
    }

    fn note_lost(&mut self, chosen: usize) {
        let at = (self.life, self.monotonic);
        let client = &mut self.clients[chosen];
        if let Some(fate) = client.wills.last_mut()
            && fate.armed
            && !fate.orderly
        {
            fate.lost_at.get_or_insert(at);
        }
        if chosen == LEAVER {
            self.note_left();
        }
    }

    /// The broker may end a connection long before its client hears of that.
    fn note_ended_by_broker(&mut self) {
        if self.is_ended_by_broker(LEAVER) {
            self.note_left();
        }
    }

    fn is_ended_by_broker(&mut self, chosen: usize) -> bool {
        let Some(key) = self.clients[chosen].connection else {
            return false;
        };
        self.machine.broker.output(key).is_none_or(|(_, closing)| closing)
    }

    fn note_left(&mut self) {
        let (life, now) = (self.life, self.monotonic);
        let left =
            self.left.get_or_insert(Left { first_life: life, earliest: now, last_life: life, latest: now });
        (left.last_life, left.latest) = (life, now);
    }

    pub(super) fn carry(&mut self, calm: bool) -> bool {
        let now = self.now().monotonic;
        let mut done = true;
        for (carrier, destination) in self.machine.carriers.iter_mut().zip(&mut self.destinations) {
            let (journal, ledger) = (&self.machine.journal, &mut self.ledger);
            carrier.step(destination, journal, ledger, now, &mut self.random, calm);
            done &= carrier.is_done(journal);
        }
        done
    }

    fn toggle_destination(&mut self) {
        let chosen = self.random.within(0..2) as usize;
        self.destinations[chosen].away = !self.destinations[chosen].away;
    }

    fn toggle_subscription(&mut self) {
        let chosen = self.random.within(0..self.clients.len() as u64) as usize;
        if self.clients[chosen].kind.toggles {
            self.clients[chosen].wants = !self.clients[chosen].wants;
        }
    }

    fn wait_long(&mut self) {
        let longest = if self.one_in(3) { 60_000 } else { 3_000 };
        let ms = self.random.within(0..longest);
        self.pass_time(ms);
        self.round();
    }

    fn jump(&mut self) {
        const DAY_MS: u64 = 24 * 3_600_000;
        let ms = self.random.within(0..DAY_MS);
        if self.one_in(2) {
            self.wall.fetch_add(ms, Ordering::Relaxed);
        } else {
            self.wall.fetch_sub(ms, Ordering::Relaxed);
        }
    }

    fn plan_fault(&mut self) {
        let call = self.random.within(1..30);
        if self.one_in(2) {
            self.disk.fail(None, call);
        } else {
            self.disk.power_off_at(call);
        }
    }

    fn resize_disk(&mut self) {
        let spare = self.random.within(0..6_000);
        let size = if self.one_in(2) { None } else { Some(self.disk.used_bytes() + spare) };
        self.disk.set_capacity(size);
        self.counts.disk_full += u64::from(self.machine.journal.status().no_space.is_some());
    }

    /// Written, not synced: the moment that matters most.
    fn write_and_perhaps_crash(&mut self) {
        self.machine.appender.submit();
        let wrote = self.machine.writer.write_submitted();
        if wrote && self.one_in(3) {
            self.carry(false);
            self.crash();
        }
    }

    /// The process dies, and perhaps the power goes with it; then it starts again.
    fn crash(&mut self) {
        for (carrier, destination) in self.machine.carriers.iter().zip(&self.destinations) {
            carrier.check_conservation(&self.ledger, destination.name);
        }
        self.trimmed += self.machine.trimmed();
        self.count_life();
        for chosen in 0..self.clients.len() {
            // Nobody knows what became of the Will of one that was connected, or waited.
            if let Some(fate) = self.clients[chosen].wills.last_mut() {
                fate.lost_at = None;
            }
            let connected = self.clients[chosen].lose_connection().is_some();
            if chosen == LEAVER && connected {
                self.note_left();
            }
            self.clients[chosen].publishes_in = 0;
        }
        self.voided.clear();
        self.life += 1;
        if self.one_in(5) && !self.machine.has_failed() {
            self.counts.orderly_ends += 1;
            let now = self.now();
            self.machine.end(now, &mut self.ledger);
            self.disk.kill();
        } else if self.one_in(3) {
            self.counts.crashes += 1;
            self.disk.kill();
        } else {
            self.counts.crashes += 1;
            self.disk.lose_power(self.random.next());
        }
        if self.plan.disk_rots && self.one_in(2) {
            self.rot();
        }
        let names = self.destinations.each_ref().map(|destination| destination.name);
        let mut started = self.start(&names);
        if started.is_err() && self.plan.disk_fills {
            // It needs a little space to start; the operator makes some.
            self.disk.set_capacity(None);
            started = self.start(&names);
        }
        self.machine = started.unwrap_or_else(|error| panic!("it does not start: {error}"));
        let cursors = self.machine.journal.status().cursors;
        let skipped = cursors.iter().find(|cursor| cursor.skipped > 0);
        assert!(self.plan.drops() || skipped.is_none(), "entries were trimmed too early: {skipped:?}");
        let end = self.machine.journal.durable_end();
        assert!(self.ledger.end() <= end, "it ends at {end}, and was seen up to {}", self.ledger.end());
    }

    fn start(&mut self, names: &[&str]) -> Result<Machine, String> {
        let (clock, now) = (clock(&self.wall), self.now());
        Machine::start(&self.disk, &self.plan, clock, now, names, &mut self.ledger)
    }

    /// A byte on the disk changes, which must be noticed. Tried out on a copy of the disk.
    fn rot(&mut self) {
        let disk = self.disk.fork();
        let names: Vec<String> = disk.list().expect("the disk works").into_iter().collect();
        let name = &names[self.random.within(0..names.len() as u64) as usize];
        let bytes = disk.content(name).expect("it is listed").len();
        if bytes == 0 || name.ends_with(".new") {
            return;
        }
        let at = self.random.within(0..bytes as u64) as usize;
        disk.flip(name, at, 1 << self.random.within(0..8));
        let storage: Arc<dyn Storage> = Arc::new(disk.clone());
        if name == "checkpoint" {
            // The last bytes of its header hold nothing.
            let noticed = checkpoint::read(&storage).is_err() || (12..16).contains(&at);
            assert!(noticed, "byte {at} of the checkpoint has changed unnoticed");
            return;
        }
        disk.set_capacity(None);
        let opened = Journal::open_stepped_at(storage, self.plan.options.clone(), clock(&self.wall));
        let noticed = match opened {
            Err(OpenError::Damaged { .. } | OpenError::Foreign { .. } | OpenError::Version { .. }) => true,
            Err(error) => panic!("{name}, byte {at}: {error}"),
            Ok((journal, ..)) => {
                // Behind the last proof it looks like a torn tail, or is a mark that nobody needs any more.
                let end = format!("{:020}.log", journal.durable_end());
                let later = |other: &String| other.ends_with(".log") && other > name && *other < end;
                !names.iter().any(later) || self.reads_something_wrong(&journal)
            }
        };
        assert!(noticed, "byte {at} of {name} has changed unnoticed");
    }

    /// Reads all that is there, which must be what was seen before, up to where it is found to be damaged.
    fn reads_something_wrong(&self, journal: &Journal) -> bool {
        let mut reader = journal.reader(Offset(0));
        loop {
            match reader.next() {
                Ok(Some(batch)) => self.ledger.compare(&batch),
                Ok(None) => return false,
                Err(_) => return true,
            }
        }
    }

    /// No more faults: everybody returns and everything flows until nothing moves.
    fn settle(&mut self) {
        self.disk.set_capacity(None);
        self.crash();
        self.destinations.iter_mut().for_each(|destination| destination.away = false);
        // What the member has begun at QoS 2 waits for it, and fills a small journal: then it must return.
        let away = |plan: &Plan, client| {
            let can_do_without = plan.group_qos < Qos::ExactlyOnce && plan.options.max_bytes > 1 << 20;
            let is_member = client == MEMBERS.end - 1 && can_do_without;
            plan.ends_away && (client == LEAVER || is_member)
        };
        let mut quiet = 0;
        for round in 0..4_000 {
            self.pass_time(if round == 10 { 40_000 } else { 100 });
            let before = (self.machine.appender.end(), self.machine.journal.durable_end());
            let mut moved = false;
            for chosen in 0..self.clients.len() {
                if !away(&self.plan, chosen) {
                    moved |= self.exchange(chosen, true);
                }
            }
            self.machine.writer.step();
            self.round();
            let mut done = false;
            for _ in 0..4 {
                done = self.carry(true);
            }
            let settled = done
                && !moved
                && before == (self.machine.appender.end(), self.machine.journal.durable_end())
                && self.machine.is_settled()
                && self
                    .clients
                    .iter()
                    .enumerate()
                    .all(|(at, client)| away(&self.plan, at) || client.is_idle());
            quiet = if settled && round > 11 { quiet + 1 } else { 0 };
            if quiet > 12 {
                return;
            }
        }
        let waiting = self.clients.iter().filter(|client| !client.is_idle()).map(|client| client.kind.name);
        let (waiting, status) = (waiting.collect::<Vec<_>>(), self.machine.journal.status());
        let lowest = self.machine.broker.lowest_position();
        panic!("it does not come to rest; waiting: {waiting:?}; needed from {lowest:?}; {status:?}");
    }

    /// What was trimmed before a subscriber had it.
    pub(super) fn trimmed(&self) -> u64 {
        self.trimmed + self.machine.trimmed()
    }

    /// Publishes that were refused.
    pub(super) fn refused(&self) -> u64 {
        self.counts.refused + self.machine.stats().publishes_refused.sum()
    }
}

fn clock(wall: &Arc<AtomicU64>) -> Clock {
    let wall = Arc::clone(wall);
    Arc::new(move || Timestamp(wall.load(Ordering::Relaxed)))
}
