//! A publisher that keeps its side of the specification to the letter, for tests that count.
//!
//! It numbers its publishes from 0, sends them in order, holds each until the broker has taken it over (PUBACK; at QoS 2
//! PUBREC), and after a lost connection sends what is still open again, in the original order: publishes with DUP, releases as
//! PUBREL [MQTT-4.4.0-1], [MQTT-4.6.0-1]. What the broker refuses is sent again when everything else is answered. So whatever the
//! broker loses was acknowledged, and nothing is lost on this side.

use std::collections::{BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tidegate_broker::mqtt::Version;
use tidegate_broker::record::Qos;
use tokio::sync::watch;

use super::mqtt::{Connection, Flags, Options, Received};

/// Pause before the next attempt to connect.
const RECONNECT_INTERVAL: Duration = Duration::from_millis(10);
/// How often the pace is looked at.
const PACE_INTERVAL: Duration = Duration::from_millis(10);

/// What a device shall do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// Publish on and on.
    Publish,
    /// Begin nothing new, and end when everything is acknowledged.
    Finish,
}

/// A device that publishes.
#[derive(Clone, Debug)]
pub(crate) struct Device {
    pub(crate) address: SocketAddr,
    pub(crate) version: Version,
    /// Its Client Identifier, and the device in its topic.
    pub(crate) id: String,
    pub(crate) topic: String,
    /// 1 or 2.
    pub(crate) qos: Qos,
    /// The most publishes that are unacknowledged at one time.
    pub(crate) window: usize,
    /// Publishes per second; `None` is as many as the broker takes.
    pub(crate) pace: Option<u32>,
    /// How many to publish at most.
    pub(crate) limit: u64,
    /// The payload of a publish by the device's id and the publish's number.
    pub(crate) payload: fn(&str, u64) -> Vec<u8>,
}

/// What a device has done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Done {
    /// Publishes 0 to this number were acknowledged, each of them.
    pub(crate) acknowledged: u64,
    /// Publishes that were sent more than once.
    pub(crate) resent: u64,
    /// Publishes that were refused at first. They were sent once more, as if they were new, perhaps behind later ones that the
    /// broker had taken meanwhile.
    pub(crate) refused: BTreeSet<u64>,
    /// Times it connected.
    pub(crate) connects: u64,
    /// Times a session that had been there was gone.
    pub(crate) sessions_lost: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Open {
    /// Not taken over by the broker.
    Published,
    /// At QoS 2, taken over and not completed.
    Received,
}

#[derive(Clone, Copy, Debug)]
struct InFlight {
    packet_id: u16,
    number: u64,
    open: Open,
}

#[derive(Debug)]
struct Publisher {
    device: Device,
    in_flight: VecDeque<InFlight>,
    /// Refused, in their order; nothing new is begun before they are sent again.
    refused: VecDeque<u64>,
    next_number: u64,
    last_packet_id: u16,
    budget: u64,
    total: Arc<AtomicU64>,
    done: Done,
}

impl Device {
    /// A device with its usual topic that sends bare numbers.
    pub(crate) fn new(address: SocketAddr, id: &str, qos: Qos) -> Self {
        Self {
            address,
            version: Version::V5,
            id: id.to_owned(),
            topic: format!("sensors/{id}/load"),
            qos,
            window: 20,
            pace: None,
            limit: u64::MAX,
            payload: |_, number| number.to_string().into_bytes(),
        }
    }

    /// Publishes until `limit` is reached or the order is to finish; adds every acknowledgement to `total` at once. Goes on
    /// through every loss of the connection: whoever calls sets the deadline.
    pub(crate) async fn run(self, mut order: watch::Receiver<Order>, total: Arc<AtomicU64>) -> Done {
        assert_ne!(self.qos, Qos::AtMostOnce, "at QoS 0 nothing is acknowledged");
        let mut publisher = Publisher {
            device: self,
            in_flight: VecDeque::new(),
            refused: VecDeque::new(),
            next_number: 0,
            last_packet_id: 0,
            budget: 0,
            total,
            done: Done::default(),
        };
        let options = Options::persistent(publisher.device.version, &publisher.device.id);
        let mut pace = tokio::time::interval(PACE_INTERVAL);
        loop {
            let connected = Connection::open(publisher.device.address, &options).await;
            if let Ok(mut connection) = connected
                && publisher.converse(&mut connection, &mut order, &mut pace).await.is_ok()
            {
                let _ = connection.close().await;
                return publisher.done;
            }
            // Not a wait for anything: the broker may be away, and asking in a busy loop would slow its return.
            tokio::time::sleep(RECONNECT_INTERVAL).await;
        }
    }
}

impl Publisher {
    /// Publishes over one connection. `Ok` when everything is done, an error when the connection is lost.
    async fn converse(
        &mut self,
        connection: &mut Connection,
        order: &mut watch::Receiver<Order>,
        pace: &mut tokio::time::Interval,
    ) -> std::io::Result<()> {
        self.done.connects += 1;
        // A session that has taken nothing over yet may be gone with the crash.
        if self.done.acknowledged > 0 && !connection.session_present {
            self.done.sessions_lost += 1;
        }
        self.resend(connection);
        loop {
            let publishing = *order.borrow_and_update() == Order::Publish;
            self.publish_more(connection, publishing);
            connection.flush().await?;
            let all_sent = !publishing || self.next_number == self.device.limit;
            if all_sent && self.in_flight.is_empty() && self.refused.is_empty() {
                return Ok(());
            }
            tokio::select! {
                read = connection.read_more() => read?,
                _ = pace.tick(), if self.device.pace.is_some() => self.earn(),
                changed = order.changed() => changed.expect("whoever gives orders outlives the device"),
            }
            while let Some(received) = connection.received_already() {
                self.handle(connection, &received)?;
            }
        }
    }

    fn earn(&mut self) {
        let per_second = u64::from(self.device.pace.unwrap_or_default());
        let per_tick = (per_second * PACE_INTERVAL.as_millis() as u64 / 1_000).max(1);
        self.budget = (self.budget + per_tick).min(per_second.max(1));
    }

    fn publish_more(&mut self, connection: &mut Connection, publishing: bool) {
        let window = self.device.window.min(usize::from(connection.receive_maximum));
        // One at a time, and only when nothing else is on its way: what follows must not overtake it.
        if self.in_flight.is_empty()
            && let Some(number) = self.refused.pop_front()
        {
            self.begin(connection, number);
        }
        while self.refused.is_empty()
            && publishing
            && self.next_number < self.device.limit
            && self.in_flight.len() < window
        {
            if self.device.pace.is_some() {
                if self.budget == 0 {
                    return;
                }
                self.budget -= 1;
            }
            let number = self.next_number;
            self.next_number += 1;
            self.begin(connection, number);
        }
    }

    fn begin(&mut self, connection: &mut Connection, number: u64) {
        let in_flight = InFlight { packet_id: self.free_packet_id(), number, open: Open::Published };
        self.send(connection, in_flight, false);
        self.in_flight.push_back(in_flight);
    }

    fn send(&self, connection: &mut Connection, in_flight: InFlight, dup: bool) {
        let payload = (self.device.payload)(&self.device.id, in_flight.number);
        let flags = Flags { dup, retain: false };
        connection.publish(&self.device.topic, &payload, self.device.qos, in_flight.packet_id, flags);
    }

    fn resend(&mut self, connection: &mut Connection) {
        for in_flight in self.in_flight.clone() {
            match in_flight.open {
                Open::Published => {
                    self.send(connection, in_flight, true);
                    self.done.resent += 1;
                }
                Open::Received => connection.pubrel(in_flight.packet_id),
            }
        }
    }

    fn free_packet_id(&mut self) -> u16 {
        loop {
            self.last_packet_id = self.last_packet_id.checked_add(1).unwrap_or(1);
            if self.in_flight.iter().all(|in_flight| in_flight.packet_id != self.last_packet_id) {
                return self.last_packet_id;
            }
        }
    }

    fn handle(&mut self, connection: &mut Connection, received: &Received) -> std::io::Result<()> {
        match *received {
            Received::PubAck { packet_id, reason } if reason.is_failure() => {
                self.refuse(packet_id, Qos::AtLeastOnce);
            }
            Received::PubRec { packet_id, reason } if reason.is_failure() => {
                self.refuse(packet_id, Qos::ExactlyOnce);
            }
            Received::PubAck { packet_id, .. } => {
                self.take_over(packet_id, Qos::AtLeastOnce);
                self.complete(packet_id);
            }
            Received::PubRec { packet_id, .. } => {
                self.take_over(packet_id, Qos::ExactlyOnce);
                connection.pubrel(packet_id);
            }
            Received::PubComp { packet_id } => self.complete(packet_id),
            // It drains or makes us go: the connection ends now, as if it were lost.
            Received::Disconnect { .. } => return Err(std::io::ErrorKind::ConnectionAborted.into()),
            Received::ConnAck { .. }
            | Received::Publish { .. }
            | Received::PubRel { .. }
            | Received::SubAck { .. }
            | Received::UnsubAck { .. }
            | Received::PingResp => panic!("{} did not ask for {received:?}", self.device.id),
        }
        Ok(())
    }

    /// The broker has the publish now.
    fn take_over(&mut self, packet_id: u16, qos: Qos) {
        assert_eq!(qos, self.device.qos, "{}: an answer for another QoS", self.device.id);
        let found = self.in_flight.iter_mut().find(|in_flight| in_flight.packet_id == packet_id);
        let found =
            found.unwrap_or_else(|| panic!("{packet_id} of {} is acknowledged unasked", self.device.id));
        // A PUBREC may come again, when the publish was sent again and the first answer was lost.
        if found.open == Open::Published {
            found.open = Open::Received;
            self.done.acknowledged += 1;
            self.total.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The broker will not have the publish now; its Packet Identifier is free again.
    fn refuse(&mut self, packet_id: u16, qos: Qos) {
        assert_eq!(qos, self.device.qos, "{}: an answer for another QoS", self.device.id);
        let at = self.in_flight.iter().position(|in_flight| in_flight.packet_id == packet_id);
        let at = at.unwrap_or_else(|| panic!("{packet_id} of {} is refused unasked", self.device.id));
        let refused = self.in_flight.remove(at).expect("it was just found");
        assert_eq!(refused.open, Open::Published, "{packet_id} of {} is refused too late", self.device.id);
        self.done.refused.insert(refused.number);
        let place = self.refused.partition_point(|number| *number < refused.number);
        self.refused.insert(place, refused.number);
    }

    fn complete(&mut self, packet_id: u16) {
        let at = self.in_flight.iter().position(|in_flight| in_flight.packet_id == packet_id);
        let at = at.unwrap_or_else(|| panic!("{packet_id} of {} is completed unasked", self.device.id));
        let completed = self.in_flight.remove(at).expect("it was just found");
        assert_eq!(
            completed.open,
            Open::Received,
            "{packet_id} of {} is completed too early",
            self.device.id
        );
    }
}
