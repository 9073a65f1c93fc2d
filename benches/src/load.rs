//! The load: publishers that keep a window of publishes in flight, and one `#` subscriber that counts, on one
//! thread.
//!
//! Everything is done in batches: one read takes all acknowledgements or deliveries there are, one write sends
//! as many publishes as the window allows, and the subscriber acknowledges all it has read with one write. Each
//! payload names its publisher, its place in that publisher's sequence and its own length, and the subscriber
//! checks all three, so that loss, repetition and reordering are counted exactly.
//!
//! What counts as in flight: at QoS 1 a publish that the broker has not acknowledged; at QoS 0, where nothing
//! is acknowledged, one that the subscriber has not seen. So at QoS 0 too a broker is never sent more than it
//! can pass on, and a publish that does not arrive was dropped for no need. What is missing when nothing has
//! arrived for [`STALL`] is given up as lost, and the load goes on.

use std::net::{SocketAddr, TcpStream as BlockingStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use mio::{Events, Poll};

use crate::link::{self, ANSWER_TIMEOUT, Link};
use crate::wire::{self, Incoming};

/// How long nothing may arrive before what is missing counts as lost.
pub const STALL: Duration = Duration::from_secs(5);

/// Payloads have at least and at most this many bytes.
pub const PAYLOAD_BYTES: std::ops::RangeInclusive<usize> = 16..=100;

const HEAD_BYTES: usize = *PAYLOAD_BYTES.start();
const READ_BYTES: usize = 256 * 1024;
/// After this many full reads in a row the subscriber lets the publishers have their turn.
const SUBSCRIBER_READS_MAX: usize = 4;

/// How much is published, by how many, and how.
#[derive(Clone, Debug)]
pub struct Load {
    /// What the command line calls it.
    pub name: &'static str,
    /// How many clients publish.
    pub publishers: usize,
    /// How many publishes each may have in flight.
    pub in_flight: u64,
    /// 0 or 1, of the publishes and of the subscription.
    pub qos: u8,
    /// How many publishes there are, of all publishers together.
    pub publishes: u64,
}

/// What became of a [`Load`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Publishes written to the broker.
    pub published: u64,
    /// Publishes it acknowledged; 0 at QoS 0.
    pub acknowledged: u64,
    /// Publishes that reached the subscriber, each counted once.
    pub delivered: u64,
    /// Deliveries of a publish at or before the newest one seen from its publisher: repeated or out of order.
    pub repeated: u64,
    /// From the first write to the last arrival.
    pub elapsed: Duration,
}

/// The clients of a load, connected and subscribed.
pub trait Crew {
    /// Publishes everything and waits until all of it has arrived or is given up; fails if `limit` passes.
    fn run(&mut self, limit: Duration) -> Result<Outcome>;

    /// Waits until the broker has read everything the subscribers sent: a PINGREQ behind it is answered.
    fn settle(&mut self) -> Result<()>;
}

/// All clients of a [`Load`].
#[derive(Debug)]
pub struct Clients {
    poll: Poll,
    buffer: Box<[u8]>,
    publishers: Vec<Publisher>,
    subscriber: Subscriber,
    qos: u8,
}

impl Clients {
    /// Connects every client of `load` to `address` and subscribes to `#`.
    pub fn connect(address: SocketAddr, load: &Load) -> Result<Self> {
        ensure!(load.qos < 2, "the load generator speaks QoS 0 and 1");
        let poll = Poll::new()?;
        let connection = link::open_subscribed(address, "bench-subscriber", "#", load.qos)?;
        let subscriber = Subscriber::new(connection, &poll, load)?;
        let mut publishers = Vec::with_capacity(load.publishers);
        for index in 0..load.publishers {
            let connection = link::open(address, &format!("bench-{index}"))
                .with_context(|| format!("publisher {} of {}", index + 1, load.publishers))?;
            publishers.push(Publisher::new(connection, &poll, load, index)?);
        }
        let buffer = vec![0; READ_BYTES].into_boxed_slice();
        Ok(Self { poll, buffer, publishers, subscriber, qos: load.qos })
    }

    /// Handles what `events` announce; says whether anything arrived.
    fn turn(&mut self, events: &Events) -> Result<bool> {
        let mut arrived = false;
        let mut subscriber_ready = self.subscriber.more;
        for event in events {
            let Some(publisher) = self.publishers.get_mut(event.token().0) else {
                subscriber_ready = true;
                continue;
            };
            if event.is_readable() {
                arrived |= publisher.read_acknowledgements(&mut self.buffer)?;
            }
            publisher.publish()?;
        }
        if subscriber_ready {
            arrived |= self.subscriber.turn(&mut self.buffer)?;
            if self.qos == 0 {
                for (publisher, sequence) in self.publishers.iter_mut().zip(&self.subscriber.sequences) {
                    publisher.settled = publisher.settled.max(sequence.next);
                    publisher.publish()?;
                }
            }
        }
        Ok(arrived)
    }

    fn finished(&self) -> bool {
        self.publishers.iter().all(|publisher| publisher.settled == publisher.quota)
            && (self.qos == 0 || self.subscriber.delivered() >= self.published())
    }

    fn give_up_in_flight(&mut self) -> Result<()> {
        for publisher in &mut self.publishers {
            publisher.settled = publisher.sent;
            publisher.publish()?;
        }
        Ok(())
    }

    fn published(&self) -> u64 {
        self.publishers.iter().map(|publisher| publisher.sent).sum()
    }

    fn outcome(&self, elapsed: Duration) -> Outcome {
        Outcome {
            published: self.published(),
            acknowledged: match self.qos {
                0 => 0,
                _ => self.publishers.iter().map(|publisher| publisher.settled).sum(),
            },
            delivered: self.subscriber.delivered(),
            repeated: self.subscriber.sequences.iter().map(|sequence| sequence.repeated).sum(),
            elapsed,
        }
    }
}

impl Crew for Clients {
    fn run(&mut self, limit: Duration) -> Result<Outcome> {
        let started = Instant::now();
        let mut last_arrival = started;
        let mut events = Events::with_capacity(1024);
        for publisher in &mut self.publishers {
            publisher.publish()?;
        }
        while !self.finished() {
            let wait = if self.subscriber.more { Duration::ZERO } else { STALL };
            self.poll.poll(&mut events, Some(wait)).or_else(link::ignore_interrupt)?;
            if self.turn(&events)? {
                last_arrival = Instant::now();
            } else if last_arrival.elapsed() >= STALL {
                if self.qos == 1 {
                    break;
                }
                self.give_up_in_flight()?;
                last_arrival = Instant::now();
            }
            ensure!(
                started.elapsed() < limit,
                "not finished after {limit:?}: {:?}",
                self.outcome(last_arrival - started)
            );
        }
        Ok(self.outcome(last_arrival - started))
    }

    fn settle(&mut self) -> Result<()> {
        wire::put_pingreq(&mut self.subscriber.link.out);
        self.subscriber.link.flush()?;
        let asked = Instant::now();
        let mut events = Events::with_capacity(16);
        while !self.subscriber.ponged {
            self.poll.poll(&mut events, Some(Duration::from_millis(100))).or_else(link::ignore_interrupt)?;
            self.turn(&events)?;
            ensure!(asked.elapsed() < ANSWER_TIMEOUT, "no PINGRESP within {ANSWER_TIMEOUT:?}");
        }
        Ok(())
    }
}

#[derive(Debug)]
struct Publisher {
    link: Link,
    index: u32,
    topic: String,
    qos: u8,
    in_flight: u64,
    quota: u64,
    sent: u64,
    /// Publishes that are no longer in flight.
    settled: u64,
    random: u64,
}

impl Publisher {
    fn new(stream: BlockingStream, poll: &Poll, load: &Load, index: usize) -> Result<Self> {
        let publishers = load.publishers as u64;
        let quota = load.publishes / publishers + u64::from((index as u64) < load.publishes % publishers);
        Ok(Self {
            link: Link::new(stream, poll, index)?,
            index: u32::try_from(index)?,
            topic: format!("sensors/device-{index}/temperature"),
            qos: load.qos,
            in_flight: load.in_flight,
            quota,
            sent: 0,
            settled: 0,
            random: 0x9E37_79B9_7F4A_7C15 ^ ((index as u64) << 17),
        })
    }

    /// Writes as many publishes as the window has room for.
    fn publish(&mut self) -> Result<()> {
        let until = self.quota.min(self.settled + self.in_flight);
        while self.sent < until {
            self.put_publish();
        }
        self.link.flush()
    }

    #[inline]
    fn put_publish(&mut self) {
        const FILLER: [u8; *PAYLOAD_BYTES.end()] = [b'.'; *PAYLOAD_BYTES.end()];
        // xorshift64: every run has the same payload sizes.
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let sizes = (PAYLOAD_BYTES.end() - PAYLOAD_BYTES.start() + 1) as u64;
        let filler_bytes = (self.random % sizes) as usize;
        let mut head = [0; HEAD_BYTES];
        head[..8].copy_from_slice(&self.sent.to_le_bytes());
        head[8..12].copy_from_slice(&self.index.to_le_bytes());
        head[12..].copy_from_slice(&((HEAD_BYTES + filler_bytes) as u32).to_le_bytes());
        let packet_id = (self.qos > 0).then(|| packet_id(self.sent));
        wire::put_publish(&mut self.link.out, &self.topic, packet_id, [&head, &FILLER[..filler_bytes]]);
        self.sent += 1;
    }

    /// Counts acknowledgements, which must come in the order of the publishes [MQTT-4.6.0-2].
    fn read_acknowledgements(&mut self, buffer: &mut [u8]) -> Result<bool> {
        let (before, sent, settled) = (self.settled, self.sent, &mut self.settled);
        let mut handle = |packet: Incoming<'_>, _: &mut Vec<u8>| match packet {
            Incoming::PubAck(acknowledged) if *settled < sent && acknowledged == packet_id(*settled) => {
                *settled += 1;
                Ok(())
            }
            other @ (Incoming::ConnAck(_)
            | Incoming::SubAck(_)
            | Incoming::PubAck(_)
            | Incoming::Publish { .. }
            | Incoming::PingResp) => {
                bail!("publisher {} was sent {other:?} with {settled} of {sent} acknowledged", self.index)
            }
        };
        while self.link.read(buffer, &mut handle).with_context(|| format!("publisher {}", self.index))? {}
        Ok(self.settled > before)
    }
}

/// The Packet Identifier of a publisher's publish number `sequence`.
fn packet_id(sequence: u64) -> u16 {
    (sequence % u64::from(u16::MAX)) as u16 + 1
}

/// What has arrived from one publisher.
#[derive(Clone, Debug, Default)]
struct Sequence {
    /// One more than the newest that has arrived.
    next: u64,
    arrived: u64,
    repeated: u64,
}

#[derive(Debug)]
struct Subscriber {
    link: Link,
    sequences: Vec<Sequence>,
    /// The last read filled the buffer, so there is likely more.
    more: bool,
    ponged: bool,
}

impl Subscriber {
    fn new(stream: BlockingStream, poll: &Poll, load: &Load) -> Result<Self> {
        Ok(Self {
            link: Link::new(stream, poll, load.publishers)?,
            sequences: vec![Sequence::default(); load.publishers],
            more: false,
            ponged: false,
        })
    }

    fn delivered(&self) -> u64 {
        self.sequences.iter().map(|sequence| sequence.arrived).sum()
    }

    /// Reads deliveries, acknowledges them; says whether there were any.
    fn turn(&mut self, buffer: &mut [u8]) -> Result<bool> {
        let mut arrived = false;
        for _ in 0..SUBSCRIBER_READS_MAX {
            let (sequences, ponged) = (&mut self.sequences, &mut self.ponged);
            let handle = |packet: Incoming<'_>, out: &mut Vec<u8>| {
                arrived = true;
                match packet {
                    Incoming::Publish { packet_id, payload } => {
                        if let Some(packet_id) = packet_id {
                            wire::put_puback(out, packet_id);
                        }
                        note_arrival(sequences, payload)
                    }
                    Incoming::PingResp => {
                        *ponged = true;
                        Ok(())
                    }
                    other @ (Incoming::ConnAck(_) | Incoming::SubAck(_) | Incoming::PubAck(_)) => {
                        bail!("the subscriber was sent {other:?}")
                    }
                }
            };
            self.more = self.link.read(buffer, handle).context("the subscriber")?;
            self.link.flush()?;
            if !self.more {
                break;
            }
        }
        Ok(arrived)
    }
}

#[inline]
fn note_arrival(sequences: &mut [Sequence], payload: &[u8]) -> Result<()> {
    let (number, index) = parse_payload(payload).context("a payload arrived that was never published")?;
    let sequence = sequences.get_mut(index).context("a payload names a publisher that does not exist")?;
    if number < sequence.next {
        sequence.repeated += 1;
    } else {
        sequence.arrived += 1;
        sequence.next = number + 1;
    }
    Ok(())
}

/// The place in its publisher's sequence and the publisher, if the payload is whole.
#[inline]
fn parse_payload(payload: &[u8]) -> Option<(u64, usize)> {
    let head = payload.first_chunk::<HEAD_BYTES>()?;
    let number = u64::from_le_bytes(head[..8].try_into().ok()?);
    let index = u32::from_le_bytes(head[8..12].try_into().ok()?);
    let bytes = u32::from_le_bytes(head[12..].try_into().ok()?);
    (payload.len() == bytes as usize).then_some((number, index as usize))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(number: u64, index: u32, bytes: u32) -> Vec<u8> {
        let mut payload = [&number.to_le_bytes()[..], &index.to_le_bytes(), &bytes.to_le_bytes()].concat();
        payload.resize(20, b'.');
        payload
    }

    #[test]
    fn loss_repetition_and_reordering_are_counted_apart() {
        let mut sequences = vec![Sequence::default(); 2];
        for number in [0, 1, 3, 2, 3, 5] {
            note_arrival(&mut sequences, &payload(number, 1, 20)).unwrap();
        }
        let Sequence { next, arrived, repeated } = sequences[1];
        // 4 never came, 2 came late and 3 twice.
        assert_eq!((next, arrived, repeated), (6, 4, 2));
        assert_eq!(sequences[0].arrived, 0);
    }

    #[test]
    fn a_payload_that_was_cut_or_changed_is_an_error() {
        let mut sequences = vec![Sequence::default(); 2];
        for damaged in [payload(0, 1, 21), payload(0, 2, 20), payload(0, 1, 20)[..15].to_vec()] {
            assert!(note_arrival(&mut sequences, &damaged).is_err(), "{damaged:?}");
        }
    }
}
