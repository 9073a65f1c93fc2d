//! A client of our own for the clauses: bytes out, bytes in, nothing done by itself.
//!
//! It reads what a server may send, strictly and on its own; what does not belong there fails the test.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use super::wire::{self, Connect, PINGREQ, Publish};
use crate::support::PATIENCE;

/// A packet from the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    ConnAck {
        present: bool,
        code: u8,
        properties: Vec<Vec<u8>>,
    },
    Publish(Publish),
    /// PUBACK, PUBREC, PUBREL or PUBCOMP, by its first byte.
    Ack {
        first: u8,
        packet_id: u16,
        code: u8,
    },
    SubAck {
        packet_id: u16,
        codes: Vec<u8>,
    },
    /// Without codes before MQTT 5.0.
    UnsubAck {
        packet_id: u16,
        codes: Vec<u8>,
    },
    PingResp,
    Disconnect {
        code: u8,
        properties: Vec<Vec<u8>>,
    },
    /// The connection was closed.
    Closed,
}

/// A connection.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) level: u8,
    stream: TcpStream,
    received: Vec<u8>,
    /// What came while something else was waited for.
    set_aside: VecDeque<Publish>,
    last_id: u16,
}

impl Client {
    /// A network connection on which nothing was said yet, to be read as one of this level.
    pub(super) fn dial(address: SocketAddr, level: u8) -> Self {
        let stream = TcpStream::connect(address).expect("the broker listens");
        stream.set_nodelay(true).expect("a TCP option");
        stream.set_read_timeout(Some(PATIENCE)).expect("a TCP option");
        Self { level, stream, received: Vec::new(), set_aside: VecDeque::new(), last_id: 0 }
    }

    /// Connects and is accepted.
    pub(super) fn open(address: SocketAddr, connect: &Connect) -> Self {
        Self::accepted(address, connect).0
    }

    /// Connects and is accepted; also says whether a session was there, and the properties of CONNACK.
    pub(super) fn accepted(address: SocketAddr, connect: &Connect) -> (Self, bool, Vec<Vec<u8>>) {
        let (client, answer) = Self::asked(address, connect);
        let Answer::ConnAck { present, code: 0, properties } = answer else {
            panic!("{connect:?} is answered with {answer:?}")
        };
        (client, present, properties)
    }

    /// Connects; gives the answer, whatever it is.
    pub(super) fn asked(address: SocketAddr, connect: &Connect) -> (Self, Answer) {
        let mut client = Self::dial(address, connect.level);
        client.send(connect.bytes());
        let answer = client.receive();
        (client, answer)
    }

    /// Sends bytes. That the broker has closed meanwhile is for [`Self::receive`] to tell.
    pub(super) fn send(&mut self, bytes: impl AsRef<[u8]>) {
        let _ = self.stream.write_all(bytes.as_ref());
    }

    /// Publishes, and goes through the handshake of its QoS until the broker has answered.
    pub(super) fn publish(&mut self, publish: &Publish) {
        let (level, packet_id) = (self.level, publish.packet_id);
        self.send(publish.bytes(level));
        match publish.qos {
            0 => {}
            1 => self.expect(&Answer::Ack { first: wire::PUBACK, packet_id, code: 0 }),
            _ => {
                self.expect(&Answer::Ack { first: wire::PUBREC, packet_id, code: 0 });
                self.send(wire::ack(wire::PUBREL, packet_id));
                self.expect(&Answer::Ack { first: wire::PUBCOMP, packet_id, code: 0 });
            }
        }
    }

    /// Publishes without waiting for an answer.
    pub(super) fn publish_only(&mut self, publish: &Publish) {
        let level = self.level;
        self.send(publish.bytes(level));
    }

    /// Subscribes to one filter and is granted the QoS it asks for.
    pub(super) fn subscribe(&mut self, filter: &str, options: u8) {
        let (level, packet_id) = (self.level, self.next_id());
        self.send(wire::subscribe(level, packet_id, filter, options));
        self.expect(&Answer::SubAck { packet_id, codes: vec![options & 3] });
    }

    /// Subscribes as above, with this Packet Identifier.
    pub(super) fn subscribe_as(&mut self, packet_id: u16, filter: &str, options: u8) {
        self.last_id = packet_id - 1;
        self.subscribe(filter, options);
    }

    /// Subscribes as above, and takes what is published before the answer comes.
    pub(super) fn subscribe_amid_publishes(&mut self, filter: &str, options: u8) {
        let (level, packet_id) = (self.level, self.next_id());
        self.send(wire::subscribe(level, packet_id, filter, options));
        loop {
            match self.receive() {
                Answer::SubAck { packet_id: answered, codes } => {
                    return assert_eq!((answered, codes), (packet_id, vec![options & 3]));
                }
                Answer::Publish(publish) if publish.qos == 0 => {}
                Answer::Publish(publish) if publish.qos == 1 => {
                    self.send(wire::ack(wire::PUBACK, publish.packet_id))
                }
                Answer::Publish(publish) => self.send(wire::ack(wire::PUBREC, publish.packet_id)),
                Answer::Ack { first: wire::PUBREL, packet_id, .. } => {
                    self.send(wire::ack(wire::PUBCOMP, packet_id))
                }
                other => panic!("{other:?}"),
            }
        }
    }

    /// A Packet Identifier that this client has not used.
    pub(super) fn next_id(&mut self) -> u16 {
        self.last_id += 1;
        self.last_id
    }

    /// The next packet, or [`Answer::Closed`].
    pub(super) fn receive(&mut self) -> Answer {
        match self.next_packet() {
            Some((first, body)) => read(self.level, first, &body),
            None => Answer::Closed,
        }
    }

    /// The next packet must be this one.
    #[track_caller]
    pub(super) fn expect(&mut self, answer: &Answer) {
        assert_eq!(&self.receive(), answer);
    }

    /// The next packet must be a PUBLISH.
    #[track_caller]
    pub(super) fn receive_publish(&mut self) -> Publish {
        if let Some(publish) = self.set_aside.pop_front() {
            return publish;
        }
        match self.receive() {
            Answer::Publish(publish) => publish,
            other => panic!("a PUBLISH is awaited, and this came: {other:?}"),
        }
    }

    /// The next packet must be a PUBLISH, which is acknowledged through to the end.
    #[track_caller]
    pub(super) fn take_publish(&mut self) -> Publish {
        let publish = self.receive_publish();
        let packet_id = publish.packet_id;
        match publish.qos {
            0 => {}
            1 => self.send(wire::ack(wire::PUBACK, packet_id)),
            _ => {
                self.send(wire::ack(wire::PUBREC, packet_id));
                self.expect_pubrel(packet_id);
                self.send(wire::ack(wire::PUBCOMP, packet_id));
            }
        }
        publish
    }

    /// The PUBREL of `packet_id` must come; what is published before it is set aside.
    #[track_caller]
    fn expect_pubrel(&mut self, packet_id: u16) {
        let pubrel = Answer::Ack { first: wire::PUBREL, packet_id, code: 0 };
        loop {
            match self.receive() {
                Answer::Publish(publish) => self.set_aside.push_back(publish),
                other => return assert_eq!(other, pubrel),
            }
        }
    }

    /// The next PUBLISH, acknowledged through to the end, whatever answers to this client's own publishes come before it.
    #[track_caller]
    pub(super) fn take_publish_amid_acks(&mut self) -> Publish {
        loop {
            let publish = match self.receive() {
                Answer::Publish(publish) => publish,
                Answer::Ack { first: wire::PUBREC, packet_id, code: 0 } => {
                    self.send(wire::ack(wire::PUBREL, packet_id));
                    continue;
                }
                Answer::Ack { first: wire::PUBREL, packet_id, code: 0 } => {
                    self.send(wire::ack(wire::PUBCOMP, packet_id));
                    continue;
                }
                Answer::Ack { code: 0, .. } => continue,
                other => panic!("a PUBLISH is awaited, and this came: {other:?}"),
            };
            match publish.qos {
                0 => {}
                1 => self.send(wire::ack(wire::PUBACK, publish.packet_id)),
                _ => self.send(wire::ack(wire::PUBREC, publish.packet_id)),
            }
            return publish;
        }
    }

    /// The payload of the next packet, which must be a PUBLISH and is acknowledged.
    #[track_caller]
    pub(super) fn take_text(&mut self) -> String {
        self.take_publish().text().to_owned()
    }

    /// The broker must close the connection without a further packet.
    #[track_caller]
    pub(super) fn expect_closed(&mut self) {
        self.expect(&Answer::Closed);
    }

    /// The broker must say why it closes, where the version has words for it, and close.
    #[track_caller]
    pub(super) fn expect_disconnect(&mut self, reason: u8) {
        if self.level == 5 {
            match self.receive() {
                Answer::Disconnect { code, .. } => {
                    assert_eq!(code, reason, "the Reason Code of DISCONNECT: {code:#04x}, not {reason:#04x}");
                }
                other => panic!("DISCONNECT {reason:#04x} is awaited, and this came: {other:?}"),
            }
        }
        self.expect_closed();
    }

    /// The connection must be alive, and nothing must be on its way but what a PINGREQ brings.
    #[track_caller]
    pub(super) fn expect_nothing_but_pingresp(&mut self) {
        self.send(PINGREQ);
        self.expect(&Answer::PingResp);
    }

    /// Says goodbye; returns when the broker has closed.
    #[track_caller]
    pub(super) fn disconnect(mut self) {
        self.send(wire::DISCONNECT);
        self.expect_closed();
    }

    /// Breaks the connection; returns when the broker has noticed.
    #[track_caller]
    pub(super) fn break_off(mut self) {
        self.stream.shutdown(Shutdown::Write).expect("the connection is open");
        while self.next_packet().is_some() {}
    }

    /// Waits at most `patience` for each read.
    pub(super) fn patience(&self, patience: Duration) {
        self.stream.set_read_timeout(Some(patience)).expect("a TCP option");
    }

    /// Whether the broker has neither said anything nor closed, after a read has waited its time.
    pub(super) fn is_open(&mut self) -> bool {
        let mut buffer = [0; 64];
        match self.stream.read(&mut buffer) {
            Ok(0) => false,
            Ok(bytes) => {
                self.received.extend_from_slice(&buffer[..bytes]);
                false
            }
            Err(error) => matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut),
        }
    }

    /// The first byte and the body of the next packet; `None` when the connection is closed.
    fn next_packet(&mut self) -> Option<(u8, Vec<u8>)> {
        loop {
            if let Some((body_at, end)) = frame(&self.received) {
                let packet: Vec<u8> = self.received.drain(..end).collect();
                return Some((packet[0], packet[body_at..].to_vec()));
            }
            let mut buffer = [0; 1 << 16];
            match self.stream.read(&mut buffer) {
                Ok(0) => break,
                Ok(bytes) => self.received.extend_from_slice(&buffer[..bytes]),
                // What the broker has not read when it closes makes the kernel say this to us.
                Err(error) if error.kind() == ErrorKind::ConnectionReset => break,
                Err(error) => panic!("the broker neither answers nor closes: {error}"),
            }
        }
        assert!(self.received.is_empty(), "the connection ends inside a packet: {:02x?}", self.received);
        None
    }
}

/// Where the body of the packet at the front of `bytes` begins and ends, if it is whole.
fn frame(bytes: &[u8]) -> Option<(usize, usize)> {
    let mut remaining = 0;
    for at in 0..4 {
        let byte = *bytes.get(1 + at)?;
        remaining |= usize::from(byte & 0x7F) << (7 * at);
        if byte & 0x80 == 0 {
            let end = 2 + at + remaining;
            return (bytes.len() >= end).then_some((2 + at, end));
        }
    }
    panic!("a Remaining Length of more than four bytes: {bytes:02x?}");
}

fn read(level: u8, first: u8, body: &[u8]) -> Answer {
    let mut fields = Fields(body);
    let answer = match first {
        0x20 => {
            let flags = fields.byte();
            assert!(flags <= 1, "the reserved flags of CONNACK are 0 [MQTT-3.2.2-1]: {flags:#04x}");
            let code = fields.byte();
            Answer::ConnAck { present: flags == 1, code, properties: fields.properties(level) }
        }
        0x30..=0x3F => Answer::Publish(read_publish(level, first, &mut fields)),
        wire::PUBACK | wire::PUBREC | wire::PUBREL | wire::PUBCOMP => {
            let packet_id = fields.two();
            let code = if level == 5 && !fields.0.is_empty() { fields.byte() } else { 0 };
            if !fields.0.is_empty() {
                fields.properties(level);
            }
            Answer::Ack { first, packet_id, code }
        }
        wire::SUBACK => {
            let packet_id = fields.two();
            fields.properties(level);
            Answer::SubAck { packet_id, codes: fields.rest() }
        }
        wire::UNSUBACK => {
            let packet_id = fields.two();
            fields.properties(level);
            Answer::UnsubAck { packet_id, codes: fields.rest() }
        }
        0xD0 => Answer::PingResp,
        0xE0 => {
            assert_eq!(level, 5, "only a server of MQTT 5.0 sends DISCONNECT");
            let code = if fields.0.is_empty() { 0 } else { fields.byte() };
            let properties = if fields.0.is_empty() { Vec::new() } else { fields.properties(level) };
            Answer::Disconnect { code, properties }
        }
        other => panic!("a server does not send a packet that begins with {other:#04x}"),
    };
    assert!(fields.0.is_empty(), "bytes are left over: {answer:?} {:02x?}", fields.0);
    answer
}

fn read_publish(level: u8, first: u8, fields: &mut Fields<'_>) -> Publish {
    let qos = (first >> 1) & 3;
    assert!(qos < 3, "QoS 3");
    assert!(qos > 0 || first & 8 == 0, "DUP at QoS 0 [MQTT-3.3.1-2]");
    let topic = fields.string();
    let topic = String::from_utf8(topic).expect("a topic is UTF-8");
    let packet_id = if qos > 0 { fields.two() } else { 0 };
    assert!(qos == 0 || packet_id != 0, "a Packet Identifier is never 0");
    let properties = fields.properties(level);
    let (retain, dup) = (first & 1 != 0, first & 8 != 0);
    Publish { topic, payload: fields.rest(), qos, retain, dup, packet_id, properties }
}

/// What is left of a packet's body.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take(&mut self, bytes: usize) -> Vec<u8> {
        let (taken, rest) = self.0.split_at_checked(bytes).expect("the packet ends inside a field");
        self.0 = rest;
        taken.to_vec()
    }

    fn byte(&mut self) -> u8 {
        self.take(1)[0]
    }

    fn two(&mut self) -> u16 {
        u16::from_be_bytes(self.take(2).try_into().expect("two were taken"))
    }

    fn string(&mut self) -> Vec<u8> {
        let length = self.two();
        self.take(usize::from(length))
    }

    fn number(&mut self) -> Vec<u8> {
        let mut bytes = vec![self.byte()];
        while bytes.last().is_some_and(|byte| byte & 0x80 != 0) {
            bytes.push(self.byte());
        }
        bytes
    }

    fn rest(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.0).to_vec()
    }

    /// The properties, each with its identifier in front, as they were written.
    fn properties(&mut self, level: u8) -> Vec<Vec<u8>> {
        if level != 5 {
            return Vec::new();
        }
        let length = self.number().iter().rev().fold(0, |sum, byte| sum << 7 | usize::from(byte & 0x7F));
        let section = self.take(length);
        let mut fields = Fields(&section);
        let mut list = Vec::new();
        while !fields.0.is_empty() {
            let before = fields.0;
            let id = fields.byte();
            match id {
                0x0B => drop(fields.number()),
                0x02 | 0x11 | 0x18 | 0x27 => drop(fields.take(4)),
                0x13 | 0x21 | 0x22 | 0x23 => drop(fields.take(2)),
                0x01 | 0x17 | 0x19 | 0x24 | 0x25 | 0x28 | 0x29 | 0x2A => drop(fields.take(1)),
                0x26 => drop((fields.string(), fields.string())),
                0x03 | 0x08 | 0x09 | 0x12 | 0x15 | 0x16 | 0x1A | 0x1C | 0x1F => drop(fields.string()),
                other => panic!("there is no property {other:#04x}"),
            }
            list.push(before[..before.len() - fields.0.len()].to_vec());
        }
        list
    }
}

/// The value of the property `id` in a list of them.
pub(super) fn value(properties: &[Vec<u8>], id: u8) -> Option<&[u8]> {
    properties.iter().find(|property| property[0] == id).map(|property| &property[1..])
}
