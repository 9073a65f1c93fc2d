//! 100,000 damaged packets and runs of random bytes at a running broker, from connections that come and go.
//!
//! Each connection that sends what is malformed is closed, and is told why as far as its version allows: the reason is the
//! one that the codec gives for the same bytes. All the while two pairs of well-behaved clients publish and receive; they lose
//! nothing, get nothing twice and get everything in order. The broker runs in this process, built as the tests are, so that
//! an overflow or a failed assertion anywhere in it ends its thread and with it this test.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use tidegate_broker::auth::{Access, Anonymous};
use tidegate_broker::journal::{self, FileStorage, Journal};
use tidegate_broker::mqtt::encode::{self, AckType, PublishHead};
use tidegate_broker::mqtt::{
    Ack, Auth, ConnAck, Connect, Decoded, Disconnect, Packet, ReasonCode, Subscription, UserProperties,
    Version, Will, WireProperties, decode, decode_connect, decode_from_client,
};
use tidegate_broker::record::{Properties, Qos};
use tidegate_broker::server::{Limits, Options as ServerOptions, Server};
use tidegate_broker::topic::TopicName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};

use super::support::mqtt::{Connection, Flags, Options, Received};
use super::support::random::Random;
use super::support::{PATIENCE, eventually, target, unique, within};

/// Damaged packets and runs of random bytes to send in all.
const ATTACKS: u64 = 100_000;
/// Connections that send them at one time.
const ATTACKERS: usize = 8;
/// The most packets one connection sends, unless it is closed before.
const PACKETS_PER_CONNECTION: u64 = 8;
/// Publishes that a well-behaved client sends before it waits for their acknowledgements.
const WINDOW: u16 = 10;
const VERSIONS: [Version; 3] = [Version::V31, Version::V311, Version::V5];

#[tokio::test]
async fn bad_input_ends_its_own_connection_and_harms_nobody_else() {
    let mut random = Random::printed("bad_input");
    let folder = tempfile::tempdir_in(target()).expect("target/ can be written");
    let server = start(folder.path());
    let address = server.address().expect("it listens");
    let front = Arc::new(Front::default());

    let bystanders = [Version::V5, Version::V311]
        .map(|version| tokio::spawn(bystanders(address, version, Arc::clone(&front))));
    let attackers: Vec<_> = (0..ATTACKERS)
        .map(|_| tokio::spawn(attack(address, Random::new(random.next()), Arc::clone(&front))))
        .collect();
    for attacker in attackers {
        attacker.await.expect("the attack is answered as it must be");
    }
    front.over.store(true, Ordering::Relaxed);
    for pair in bystanders {
        let delivered = within("the bystanders finish", PATIENCE, pair).await.expect("nothing disturbs them");
        assert!(delivered > 0, "they published throughout");
        println!("bad_input: a pair of bystanders carried {delivered} publishes");
    }

    let handle = server.handle();
    eventually("every connection is given back", PATIENCE, async || {
        (handle.stats().connections == 0).then_some(())
    })
    .await;
    let (sent, malformed) = (front.sent.load(Ordering::Relaxed), front.malformed.load(Ordering::Relaxed));
    crate::support::report(
        "bad_input",
        &format!("{sent} attacks, {malformed} of them malformed: {:?}", handle.stats()),
    );
    assert!(sent >= ATTACKS);
    assert!(malformed > ATTACKS / 10, "too few of the attacks are malformed to prove anything: {malformed}");
    tokio::task::spawn_blocking(move || server.drain(PATIENCE)).await.expect("the broker drains");
}

/// Starts a broker with its data in `folder`.
fn start(folder: &std::path::Path) -> Server {
    let storage = FileStorage::open(&folder.join("journal")).unwrap();
    let (journal, appender) = Journal::open(storage, journal::Options::default()).unwrap();
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let access = Arc::new(Access::new(Anonymous::Loopback, None));
    let options = ServerOptions::plain(address, access, Limits::default());
    let state = FileStorage::open(&folder.join("broker")).unwrap();
    Server::start(options, journal, appender, state).unwrap()
}

/// What the two sides of the test tell each other.
#[derive(Debug, Default)]
struct Front {
    /// Attacks sent.
    sent: AtomicU64,
    /// Connections that were closed for what they sent.
    malformed: AtomicU64,
    /// The attack is over.
    over: AtomicBool,
}

/// Publishes and receives until the attack is over; returns how many publishes arrived. Fails if one is lost, doubled or out
/// of order.
async fn bystanders(address: SocketAddr, version: Version, front: Arc<Front>) -> u64 {
    let topic = format!("bystanders/{version:?}");
    let mut subscriber =
        Connection::open(address, &Options::clean(version, &format!("subscriber-{version:?}")))
            .await
            .unwrap();
    subscriber.subscribe(&topic, Qos::AtLeastOnce).await.unwrap();
    let mut publisher =
        Connection::open(address, &Options::clean(version, &format!("publisher-{version:?}"))).await.unwrap();
    let mut next = 0_u64;
    while !front.over.load(Ordering::Relaxed) {
        for packet_id in 1..=WINDOW {
            let payload = (next + u64::from(packet_id)).to_string();
            publisher.publish(&topic, payload.as_bytes(), Qos::AtLeastOnce, packet_id, Flags::default());
        }
        publisher.flush().await.expect("the bystanders stay connected");
        for expected in 1..=WINDOW {
            let acknowledged = publisher.receive().await.expect("the bystanders stay connected");
            assert_eq!(acknowledged, Received::PubAck { packet_id: expected, reason: ReasonCode::Success });
        }
        for expected in 1..=WINDOW {
            match subscriber.receive().await.expect("the bystanders stay connected") {
                Received::Publish { payload, packet_id, qos: Qos::AtLeastOnce, dup: false, .. } => {
                    assert_eq!(payload, (next + u64::from(expected)).to_string(), "in order, nothing lost");
                    subscriber.puback(packet_id);
                }
                other => panic!("instead of a publish came {other:?}"),
            }
        }
        subscriber.flush().await.expect("the bystanders stay connected");
        next += u64::from(WINDOW);
    }
    publisher.close().await.unwrap();
    subscriber.close().await.unwrap();
    next
}

/// Opens connections and sends damaged bytes until all attackers together have sent enough.
async fn attack(address: SocketAddr, mut random: Random, front: Arc<Front>) {
    while front.sent.load(Ordering::Relaxed) < ATTACKS {
        let seed = random.next();
        let mut random = Random::new(seed);
        let attack = if random.within(0..4) == 0 {
            Attack::on_connect(&mut random)
        } else {
            Attack::on_connected(&mut random)
        };
        front.sent.fetch_add(attack.packets, Ordering::Relaxed);
        if attack
            .run(address, &mut random)
            .await
            .unwrap_or_else(|fault| panic!("seed {seed}: {fault}: {attack:02x?}"))
        {
            front.malformed.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// What one connection sends and what must come of it.
#[derive(Debug)]
struct Attack {
    version: Version,
    /// Whether a good CONNECT goes before.
    greet: bool,
    /// Packets in `bytes`, damaged or random.
    packets: u64,
    bytes: Vec<u8>,
    expected: Expected,
}

#[derive(Debug, PartialEq)]
enum Expected {
    /// Exactly these bytes, then the end of the connection.
    Bytes(Vec<u8>),
    /// The last packet tells this reason, or one that has to do with an earlier packet; then the end of the connection.
    Reason(ReasonCode),
    /// Nothing is malformed: whatever the broker makes of it.
    Anything,
}

impl Attack {
    /// Damages the first packet of a connection.
    fn on_connect(random: &mut Random) -> Self {
        let version = VERSIONS[random.within(0..3) as usize];
        let bytes = if random.within(0..3) == 0 {
            let length = 1 + random.within(0..200) as usize;
            random.bytes(length)
        } else {
            let mut bytes = Vec::new();
            encode::connect(&mut bytes, &connect(version, &unique("damaged")));
            damage(&mut bytes, random);
            bytes
        };
        let expected = match decode_connect(&bytes, Limits::default().packet_bytes) {
            Err(error) => {
                let mut answer = Vec::new();
                error.answer(&mut answer);
                Expected::Bytes(answer)
            }
            Ok(Decoded::Packet { .. } | Decoded::Incomplete { .. }) => Expected::Anything,
        };
        Self { version, greet: false, packets: 1, bytes, expected }
    }

    /// Damages packets of a connection that began well.
    fn on_connected(random: &mut Random) -> Self {
        let version = VERSIONS[random.within(0..3) as usize];
        let mut attack =
            Self { version, greet: true, packets: 0, bytes: Vec::new(), expected: Expected::Anything };
        for _ in 0..1 + random.within(0..PACKETS_PER_CONNECTION) {
            let mut packet = if random.within(0..8) == 0 {
                let length = 1 + random.within(0..200) as usize;
                random.bytes(length)
            } else {
                sample(version, random)
            };
            damage(&mut packet, random);
            attack.bytes.extend(packet);
            attack.packets += 1;
        }
        attack.expected = expected(&attack.bytes, version);
        attack
    }

    /// Sends it and checks the answer; says whether the connection was closed for what is malformed.
    async fn run(&self, address: SocketAddr, random: &mut Random) -> Result<bool, String> {
        let mut stream = open(address, random).await.map_err(|error| format!("cannot connect: {error}"))?;
        if self.greet {
            greet(&mut stream, self.version, random).await?;
        }
        // The broker may close before it has everything.
        let _ = stream.write_all(&self.bytes).await;
        if self.expected == Expected::Anything {
            let _ = stream.shutdown().await;
        }
        let mut answer = Vec::new();
        let ended = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await;
        let ended =
            ended.map_err(|_| format!("after {answer:02x?} the broker does not close the connection"))?;
        match (&self.expected, ended) {
            (Expected::Anything, _) => Ok(false),
            (_, Err(error)) => Err(format!("the connection was cut before the reason was told: {error}")),
            (Expected::Bytes(expected), Ok(_)) if answer == *expected => Ok(true),
            (Expected::Bytes(expected), Ok(_)) => {
                Err(format!("instead of {expected:02x?} came {answer:02x?}"))
            }
            (Expected::Reason(expected), Ok(_)) => {
                last_reason(&answer, self.version, *expected).map(|()| true)
            }
        }
    }
}

/// What must come of `bytes`, sent after a good CONNECT.
fn expected(bytes: &[u8], version: Version) -> Expected {
    let mut rest = bytes;
    let mut good = 0;
    loop {
        match decode_from_client(rest, version, Limits::default().packet_bytes) {
            Ok(Decoded::Packet { packet: Packet::Disconnect(_), .. } | Decoded::Incomplete { .. }) => {
                return Expected::Anything;
            }
            Ok(Decoded::Packet { bytes, .. }) => {
                rest = &rest[bytes..];
                good += 1;
            }
            Err(error) if good > 0 => return Expected::Reason(error.reason()),
            Err(error) => {
                let mut answer = Vec::new();
                // MQTT 3 has no DISCONNECT from the server.
                if version == Version::V5 {
                    let words = error.to_string();
                    let told = Disconnect { reason_string: Some(&words), ..Disconnect::new(error.reason()) };
                    encode::disconnect(&mut answer, version, &told);
                }
                return Expected::Bytes(answer);
            }
        }
    }
}

/// Checks that `answer` ends with a DISCONNECT for `expected`, or for a reason that an earlier, well-formed packet can have
/// given. In MQTT 3 there is none.
fn last_reason(answer: &[u8], version: Version, expected: ReasonCode) -> Result<(), String> {
    let mut rest = answer;
    let mut last = None;
    while !rest.is_empty() {
        match decode(rest, version, usize::MAX) {
            Ok(Decoded::Packet { packet, bytes }) => {
                rest = &rest[bytes..];
                last = match packet {
                    Packet::Disconnect(disconnect) => Some(disconnect.reason),
                    _ => None,
                };
            }
            other => return Err(format!("the broker sent what is no packet: {other:?}")),
        }
    }
    match (version, last) {
        (Version::V31 | Version::V311, None) => Ok(()),
        (Version::V5, Some(reason)) if reason == expected => Ok(()),
        (
            Version::V5,
            Some(
                ReasonCode::ProtocolError
                | ReasonCode::TopicAliasInvalid
                | ReasonCode::ReceiveMaximumExceeded
                | ReasonCode::PacketTooLarge
                | ReasonCode::QuotaExceeded
                | ReasonCode::PayloadFormatInvalid
                | ReasonCode::TopicNameInvalid,
            ),
        ) => Ok(()),
        (_, last) => Err(format!("instead of {expected} the last packet told {last:?}")),
    }
}

/// Connects from one of many loopback addresses, so that closed connections do not use up the ports.
async fn open(address: SocketAddr, random: &mut Random) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    let from = Ipv4Addr::new(127, 0, random.within(0..200) as u8, random.within(2..250) as u8);
    socket.bind(SocketAddr::from((from, 0)))?;
    let stream = socket.connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Sends a good CONNECT and waits until it is accepted.
async fn greet(stream: &mut TcpStream, version: Version, random: &mut Random) -> Result<(), String> {
    let client_id = unique("a");
    let mut out = Vec::new();
    let connect = Connect { clean_start: random.within(0..8) > 0, ..Connect::new(version, &client_id) };
    encode::connect(&mut out, &connect);
    stream.write_all(&out).await.map_err(|error| format!("cannot send CONNECT: {error}"))?;
    let mut answer = Vec::new();
    loop {
        let read = within("the broker answers CONNECT", PATIENCE, stream.read_buf(&mut answer)).await;
        if !matches!(read, Ok(1..)) {
            return Err(format!("a good CONNECT was not answered: {read:?}"));
        }
        match decode(&answer, version, usize::MAX) {
            Ok(Decoded::Incomplete { .. }) => {}
            Ok(Decoded::Packet { packet: Packet::ConnAck(connack), bytes })
                if connack.reason == ReasonCode::Success && bytes == answer.len() =>
            {
                return Ok(());
            }
            other => return Err(format!("a good CONNECT was answered with {other:?}")),
        }
    }
}

const PROPERTIES: &[u8] = b"\x01\x01\x02\x00\x00\x00\x0A\x03\x00\x04text\x08\x00\x05reply\x09\x00\x02\xFF\x00\x26\x00\x01k\x00\x01v";

fn connect(version: Version, client_id: &str) -> Connect<'_> {
    let properties = if version == Version::V5 { PROPERTIES } else { b"" };
    Connect {
        will: Some(Will {
            topic: TopicName::new("wills/étage").expect("it is valid"),
            payload: b"gone",
            qos: Qos::AtLeastOnce,
            retain: false,
            delay_s: 0,
            properties: WireProperties::from_travelling(Properties::from_encoded(properties)),
        }),
        username: Some("user"),
        password: Some(b"password"),
        receive_maximum: 20,
        ..Connect::new(version, client_id)
    }
}

/// A valid packet of any type.
fn sample(version: Version, random: &mut Random) -> Vec<u8> {
    let packet_id = 1 + random.within(0..5) as u16;
    let ack = Ack { reason_string: Some("why"), ..Ack::new(packet_id, ReasonCode::Success) };
    let mut out = Vec::new();
    match random.within(0..16) {
        0..=4 => publish(&mut out, version, packet_id, random),
        5 => encode::ack(&mut out, version, AckType::PubAck, &ack),
        6 => encode::ack(&mut out, version, AckType::PubRec, &ack),
        7 => encode::ack(&mut out, version, AckType::PubRel, &ack),
        8 => encode::ack(&mut out, version, AckType::PubComp, &ack),
        9 | 10 => {
            let filters = ["attacks/+/#", "$share/group/é", "b"];
            let subscriptions = filters.map(|filter| Subscription::new(filter, Qos::AtLeastOnce));
            encode::subscribe(&mut out, version, packet_id, Some(300), subscriptions);
        }
        11 => encode::unsubscribe(&mut out, version, packet_id, ["attacks/+/#", "b"]),
        12 => encode::pingreq(&mut out),
        13 => {
            let goodbye = Disconnect { reason_string: Some("why"), ..Disconnect::new(ReasonCode::Success) };
            encode::disconnect(&mut out, version, &goodbye);
        }
        14 => encode::connack(&mut out, version, &ConnAck::default()),
        _ => {
            let (method, data) = (Some("method"), Some(&b"data"[..]));
            let (reason, user_properties) = (ReasonCode::ContinueAuthentication, UserProperties::NONE);
            encode::auth(&mut out, &Auth { reason, method, data, reason_string: None, user_properties });
        }
    }
    out
}

fn publish(out: &mut Vec<u8>, version: Version, packet_id: u16, random: &mut Random) {
    let payload = vec![b'x'; random.within(0..60) as usize];
    let head = PublishHead {
        dup: false,
        qos: [Qos::AtMostOnce, Qos::AtLeastOnce, Qos::ExactlyOnce][random.within(0..3) as usize],
        retain: random.within(0..4) == 0,
        packet_id,
        topic: "attacks/étage/temperature",
        properties: Properties::from_encoded(PROPERTIES),
        message_expiry: None,
        subscription_ids: &[],
        topic_alias: (random.within(0..4) == 0).then_some(1),
        payload_bytes: payload.len(),
    };
    encode::publish(out, version, &head, &payload);
}

/// Changes one to four things in `bytes`; half of the time with a Remaining Length that fits, so that the damage is in the body.
fn damage(bytes: &mut Vec<u8>, random: &mut Random) {
    for _ in 0..1 + random.within(0..4) {
        if bytes.is_empty() {
            bytes.push(random.next() as u8);
        }
        let at = random.within(0..bytes.len() as u64) as usize;
        match random.within(0..7) {
            0 => bytes[at] ^= 1 << random.within(0..8),
            1 => bytes[at] = random.next() as u8,
            2 => bytes[at] = [0, 1, 0x7F, 0x80, 0xFF][random.within(0..5) as usize],
            3 => bytes.insert(at, random.next() as u8),
            4 => drop(bytes.remove(at)),
            5 => bytes.truncate(at),
            _ => bytes.extend_from_within(at..),
        }
    }
    if random.within(0..2) == 0 && (2..0x82).contains(&bytes.len()) {
        bytes[1] = (bytes.len() - 2) as u8;
    }
}
