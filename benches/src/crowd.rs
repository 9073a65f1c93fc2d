//! A crowd of clients: one publisher whose every publish goes to all of many subscribers ([`FanOut`]), and clients
//! that are connected and silent ([`Idle`]).
//!
//! Fan-out runs on one thread: one read per subscriber takes all deliveries that have come, one write answers
//! them. A publish is in flight until every subscriber has seen it and, at QoS 1, the broker has acknowledged it;
//! so no broker has to queue, drop or hold back anything, and the whole way of every delivery is in the figures.

use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use mio::{Events, Poll};

use crate::link::{self, ANSWER_TIMEOUT, Link};
use crate::load::{Crew, Outcome, STALL};
use crate::wire::{self, Incoming};

/// The size of every payload.
pub const PAYLOAD_BYTES: usize = 40;

const TOPIC: &str = "alerts/building/7/fire";
const NUMBER_BYTES: usize = 8;
const READ_BYTES: usize = 64 * 1024;

/// One publisher and its subscribers.
#[derive(Clone, Debug)]
pub struct FanOut {
    /// What the command line calls it.
    pub name: &'static str,
    /// How many clients have subscribed to the publisher's topic.
    pub subscribers: usize,
    /// How many publishes may be in flight.
    pub in_flight: usize,
    /// 0 or 1, of the publishes and of the subscriptions.
    pub qos: u8,
    /// How many publishes there are.
    pub publishes: u64,
}

/// All clients of a [`FanOut`].
#[derive(Debug)]
pub struct Crowd {
    poll: Poll,
    events: Events,
    buffer: Box<[u8]>,
    load: FanOut,
    publisher: Link,
    subscribers: Vec<Subscriber>,
    sent: u64,
    acknowledged: u64,
    /// Publishes that are no longer in flight.
    settled: u64,
    /// How many subscribers have seen each publish in flight, by its number modulo the window.
    seen: Vec<usize>,
    ponged: usize,
}

#[derive(Debug)]
struct Subscriber {
    link: Link,
    /// The number that comes next.
    next: u64,
    arrived: u64,
    repeated: u64,
}

impl Crowd {
    /// Connects every client of `load` to `address` and subscribes.
    pub fn connect(address: SocketAddr, load: &FanOut) -> Result<Self> {
        ensure!(load.qos < 2, "the load generator speaks QoS 0 and 1");
        ensure!(load.in_flight <= usize::from(u16::MAX), "there are not so many Packet Identifiers");
        let poll = Poll::new()?;
        let mut subscribers = Vec::with_capacity(load.subscribers);
        for index in 0..load.subscribers {
            let stream = link::open_subscribed(address, &format!("crowd-{index}"), TOPIC, load.qos)
                .with_context(|| format!("subscriber {} of {}", index + 1, load.subscribers))?;
            let link = Link::new(stream, &poll, index)?;
            subscribers.push(Subscriber { link, next: 0, arrived: 0, repeated: 0 });
        }
        let publisher = Link::new(link::open(address, "crowd-publisher")?, &poll, load.subscribers)?;
        Ok(Self {
            poll,
            events: Events::with_capacity(load.subscribers + 1),
            buffer: vec![0; READ_BYTES].into_boxed_slice(),
            load: load.clone(),
            publisher,
            subscribers,
            sent: 0,
            acknowledged: 0,
            settled: 0,
            seen: vec![0; load.in_flight],
            ponged: 0,
        })
    }

    /// Writes as many publishes as the window has room for.
    fn publish(&mut self) -> Result<()> {
        while self.settled < self.sent && self.is_settled(self.settled) {
            let place = self.place(self.settled);
            self.seen[place] = 0;
            self.settled += 1;
        }
        let until = self.load.publishes.min(self.settled + self.load.in_flight as u64);
        for number in self.sent..until {
            let packet_id = (self.load.qos > 0).then(|| packet_id(number));
            let parts = [&number.to_le_bytes()[..], &[b'.'; PAYLOAD_BYTES - NUMBER_BYTES]];
            wire::put_publish(&mut self.publisher.out, TOPIC, packet_id, parts);
        }
        self.sent = self.sent.max(until);
        self.publisher.flush()
    }

    fn is_settled(&self, number: u64) -> bool {
        self.seen[self.place(number)] == self.subscribers.len()
            && (self.load.qos == 0 || number < self.acknowledged)
    }

    fn place(&self, number: u64) -> usize {
        (number % self.load.in_flight as u64) as usize
    }

    /// Waits for something and handles it; says whether anything arrived.
    fn turn(&mut self) -> Result<bool> {
        self.poll.poll(&mut self.events, Some(STALL)).or_else(link::ignore_interrupt)?;
        let mut arrived = false;
        for event in &self.events {
            if !event.is_readable() {
                continue;
            }
            arrived = true;
            let Some(subscriber) = self.subscribers.get_mut(event.token().0) else {
                read_acknowledgements(&mut self.publisher, &mut self.buffer, &mut self.acknowledged)?;
                continue;
            };
            subscriber
                .turn(&mut self.buffer, &mut self.seen, &mut self.ponged)
                .with_context(|| format!("subscriber {}", event.token().0))?;
        }
        Ok(arrived)
    }

    fn outcome(&self, elapsed: Duration) -> Outcome {
        Outcome {
            published: self.sent,
            acknowledged: self.acknowledged,
            delivered: self.subscribers.iter().map(|subscriber| subscriber.arrived).sum(),
            repeated: self.subscribers.iter().map(|subscriber| subscriber.repeated).sum(),
            elapsed,
        }
    }
}

impl Crew for Crowd {
    fn run(&mut self, limit: Duration) -> Result<Outcome> {
        let started = Instant::now();
        let mut last_arrival = started;
        self.publish()?;
        while self.settled < self.load.publishes {
            if self.turn()? {
                last_arrival = Instant::now();
            } else if last_arrival.elapsed() >= STALL {
                // What is missing was lost.
                self.settled = self.sent;
                self.seen.fill(0);
            }
            self.publish()?;
            let elapsed = started.elapsed();
            ensure!(elapsed < limit, "not finished after {limit:?}: {:?}", self.outcome(elapsed));
        }
        Ok(self.outcome(last_arrival - started))
    }

    fn settle(&mut self) -> Result<()> {
        for subscriber in &mut self.subscribers {
            wire::put_pingreq(&mut subscriber.link.out);
            subscriber.link.flush()?;
        }
        let asked = Instant::now();
        while self.ponged < self.subscribers.len() {
            self.turn()?;
            ensure!(asked.elapsed() < ANSWER_TIMEOUT, "no PINGRESP within {ANSWER_TIMEOUT:?}");
        }
        Ok(())
    }
}

/// Counts acknowledgements, which must come in the order of the publishes [MQTT-4.6.0-2].
fn read_acknowledgements(publisher: &mut Link, buffer: &mut [u8], acknowledged: &mut u64) -> Result<()> {
    let mut handle = |packet: Incoming<'_>, _: &mut Vec<u8>| match packet {
        Incoming::PubAck(acknowledges) if acknowledges == packet_id(*acknowledged) => {
            *acknowledged += 1;
            Ok(())
        }
        other @ (Incoming::ConnAck(_)
        | Incoming::SubAck(_)
        | Incoming::PubAck(_)
        | Incoming::Publish { .. }
        | Incoming::PingResp) => bail!("the publisher was sent {other:?}"),
    };
    while publisher.read(buffer, &mut handle)? {}
    Ok(())
}

/// The Packet Identifier of publish number `number`.
fn packet_id(number: u64) -> u16 {
    (number % u64::from(u16::MAX)) as u16 + 1
}

impl Subscriber {
    /// Reads deliveries, counts them, acknowledges them.
    fn turn(&mut self, buffer: &mut [u8], seen: &mut [usize], ponged: &mut usize) -> Result<()> {
        let mut more = true;
        while more {
            let (next, arrived, repeated) = (&mut self.next, &mut self.arrived, &mut self.repeated);
            let handle = |packet: Incoming<'_>, out: &mut Vec<u8>| match packet {
                Incoming::Publish { packet_id, payload } => {
                    if let Some(packet_id) = packet_id {
                        wire::put_puback(out, packet_id);
                    }
                    let number = number_of(payload).context("a payload came that was never published")?;
                    if number < *next {
                        *repeated += 1;
                    } else {
                        *arrived += 1;
                        *next = number + 1;
                        seen[(number % seen.len() as u64) as usize] += 1;
                    }
                    Ok(())
                }
                Incoming::PingResp => {
                    *ponged += 1;
                    Ok(())
                }
                other @ (Incoming::ConnAck(_) | Incoming::SubAck(_) | Incoming::PubAck(_)) => {
                    bail!("it was sent {other:?}")
                }
            };
            more = self.link.read(buffer, handle)?;
            self.link.flush()?;
        }
        Ok(())
    }
}

/// The number of a publish, if its payload is whole.
fn number_of(payload: &[u8]) -> Option<u64> {
    let (number, filler) = payload.split_first_chunk::<NUMBER_BYTES>()?;
    let whole = filler.len() == PAYLOAD_BYTES - NUMBER_BYTES && filler.iter().all(|&byte| byte == b'.');
    whole.then(|| u64::from_le_bytes(*number))
}

/// Clients that connect, subscribe to a topic of their own and say nothing more.
#[derive(Clone, Debug)]
pub struct Idle {
    /// What the command line calls it.
    pub name: &'static str,
    /// How many.
    pub clients: usize,
}

impl Idle {
    /// Connects them; they are gone when the streams are dropped.
    pub fn connect(&self, address: SocketAddr) -> Result<Vec<TcpStream>> {
        let open = |index| {
            let filter = format!("commands/device-{index}/restart");
            link::open_subscribed(address, &format!("device-{index}"), &filter, 1)
                .with_context(|| format!("client {} of {}", index + 1, self.clients))
        };
        (0..self.clients).map(open).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_that_was_cut_or_changed_has_no_number() {
        let whole = [&7_u64.to_le_bytes()[..], &[b'.'; PAYLOAD_BYTES - NUMBER_BYTES]].concat();
        assert_eq!(number_of(&whole), Some(7));
        let mut changed = whole.clone();
        changed[PAYLOAD_BYTES - 1] = b'!';
        for damaged in [&whole[..PAYLOAD_BYTES - 1], &whole[..4], &changed] {
            assert_eq!(number_of(damaged), None);
        }
    }
}
