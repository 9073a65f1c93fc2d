//! Clients that are slow, or mean harm, harm nobody: what they cost is bounded, and others hardly notice.

use std::net::{Shutdown, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tidegate_broker::mqtt::encode::{self, AckType};
use tidegate_broker::mqtt::{Ack, Connect, ReasonCode, Subscription, Version};
use tidegate_broker::record::Qos;

use super::support::mqtt::Received;
use super::support::process::{memory_bytes, peak_memory_bytes};
use super::support::raw::{self, Raw};
use super::support::tidegate::{Settings, Tidegate};
use super::support::{PATIENCE, eventually, http, report};

const QOS0: Qos = Qos::AtMostOnce;
const QOS1: Qos = Qos::AtLeastOnce;
const MIB: u64 = 1 << 20;

/// How long each kind of attack lasts.
const ATTACK: Duration = Duration::from_secs(3);
/// The longest that a publish of others may take meanwhile, on a machine that does other things as well.
const LATENCY_MAX: Duration = Duration::from_secs(5);
/// What an attack may cost of memory: some megabytes of answers for each of its connections.
const ATTACK_BYTES_MAX: u64 = 128 * MIB;

/// The value of a metric.
async fn metric(tidegate: &Tidegate, name: &str) -> u64 {
    let metrics = http::get(tidegate.http, "/metrics").await.text().to_owned();
    let line = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {name} in:\n{metrics}")).parse().unwrap()
}

async fn wait_for(tidegate: &Tidegate, name: &str, value: u64) {
    eventually(&format!("{name} is {value}"), PATIENCE, async || {
        (metric(tidegate, name).await == value).then_some(())
    })
    .await;
}

/// A thread that runs until it is told to stop.
struct Worker<T> {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<T>,
}

impl<T: Send + 'static> Worker<T> {
    fn start(work: impl FnOnce(&AtomicBool) -> T + Send + 'static) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&stop);
        Self { stop, thread: std::thread::spawn(move || work(&seen)) }
    }

    fn stop(self) -> T {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.thread().unpark();
        self.thread.join().expect("the client is served as it must be")
    }
}

/// Publishes at QoS 1 to a subscriber, one at a time; returns how long each took to arrive.
fn pulse(address: SocketAddr, stop: &AtomicBool) -> Vec<Duration> {
    let mut subscriber = Raw::connect(address, &Connect::new(Version::V5, "pulse-in"));
    subscriber.subscribe(&["pulse"], QOS0);
    let mut publisher = Raw::connect(address, &Connect::new(Version::V5, "pulse-out"));
    let mut took = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let started = Instant::now();
        publisher.publish("pulse", b"x", QOS1, 1, false);
        assert!(matches!(publisher.next(), Some(Received::PubAck { .. })), "the pulse is acknowledged");
        assert!(matches!(subscriber.next(), Some(Received::Publish { .. })), "the pulse arrives");
        took.push(started.elapsed());
        std::thread::park_timeout(Duration::from_millis(2));
    }
    took
}

fn quantile(sorted: &[Duration], part: f64) -> Duration {
    sorted[((sorted.len() - 1) as f64 * part) as usize]
}

/// Sends `bytes` again and again and reads nothing, until told to stop. The broker need not take them.
fn flood(address: SocketAddr, id: &str, bytes: &[u8], stop: &AtomicBool) {
    let mut client = Raw::connect(address, &Connect::new(Version::V5, id));
    client.stream.set_write_timeout(Some(Duration::from_millis(100))).unwrap();
    let mut rest = bytes;
    while !stop.load(Ordering::Relaxed) {
        match std::io::Write::write(&mut client.stream, rest) {
            Ok(written) => rest = if written == rest.len() { bytes } else { &rest[written..] },
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            // The broker may have had enough of it.
            Err(_) => return,
        }
    }
}

/// Opens connections that say nothing, or one byte of a CONNECT at a time.
fn dribble(address: SocketAddr, stop: &AtomicBool) {
    let mut packet = Vec::new();
    encode::connect(&mut packet, &Connect::new(Version::V5, "dribble"));
    let mut connections: Vec<Raw> = (0..200).map(|_| Raw::open(address, Version::V5)).collect();
    for byte in packet {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        connections.iter_mut().step_by(2).for_each(|connection| connection.send(|out| out.push(byte)));
        std::thread::park_timeout(Duration::from_secs(1));
    }
}

/// Opens and closes connections as fast as it goes, in the middle of whatever it was saying.
fn come_and_go(address: SocketAddr, stop: &AtomicBool) {
    let mut turn = 0_u32;
    while !stop.load(Ordering::Relaxed) {
        let mut raw = Raw::open(address, Version::V5);
        let id = format!("hasty-{}", turn % 100);
        if !turn.is_multiple_of(3) {
            raw.send(|out| encode::connect(out, &Connect::new(Version::V5, &id)));
        }
        if turn.is_multiple_of(2) {
            let _ = raw.stream.shutdown(Shutdown::Both);
        }
        turn += 1;
    }
}

/// The packets of a flood, by its name.
fn packets(name: &str) -> Vec<u8> {
    let mut out = Vec::new();
    for turn in 0..10_000_u16 {
        match name {
            "ping" => encode::pingreq(&mut out),
            "subscribe" => {
                let filter = format!("flood/{}", turn % 100);
                let subscription = Subscription::new(&filter, QOS1);
                encode::subscribe(&mut out, Version::V5, 1, None, [subscription]);
                encode::unsubscribe(&mut out, Version::V5, 2, [filter.as_str()]);
            }
            "acknowledge" => {
                for kind in [AckType::PubAck, AckType::PubRec, AckType::PubRel, AckType::PubComp] {
                    encode::ack(&mut out, Version::V5, kind, &Ack::new(turn + 1, ReasonCode::Success));
                }
            }
            other => panic!("no flood of {other}"),
        }
    }
    out
}

#[tokio::test(flavor = "multi_thread")]
async fn floods_dribbles_and_haste_harm_nobody() {
    let mut tidegate = Tidegate::start(Settings::default()).await;
    let address = tidegate.mqtt;
    let before = memory_bytes(tidegate.pid());
    for name in ["calm", "dribble", "haste", "ping", "subscribe", "acknowledge"] {
        let attackers: Vec<Worker<()>> = (0..if name == "calm" { 0 } else { 4 })
            .map(|number| match name {
                "dribble" => Worker::start(move |stop| dribble(address, stop)),
                "haste" => Worker::start(move |stop| come_and_go(address, stop)),
                _ => {
                    let (id, bytes) = (format!("{name}-{number}"), packets(name));
                    Worker::start(move |stop| flood(address, &id, &bytes, stop))
                }
            })
            .collect();
        let pulse = Worker::start(move |stop| pulse(address, stop));
        tokio::time::sleep(ATTACK).await;
        let mut took = tokio::task::spawn_blocking(|| pulse.stop()).await.unwrap();
        took.sort();
        let memory = memory_bytes(tidegate.pid());
        let (middle, most) = (quantile(&took, 0.5), quantile(&took, 1.0));
        let figures = format!(
            "{name}: {} publishes of others, median {middle:.1?}, p99 {:.1?}, longest {most:.1?}; {} MiB of memory",
            took.len(),
            quantile(&took, 0.99),
            memory / MIB
        );
        report("hostile", &figures);
        assert!(most < LATENCY_MAX, "{figures}");
        assert!(memory < before + ATTACK_BYTES_MAX, "{figures}");
        tokio::task::spawn_blocking(|| attackers.into_iter().for_each(Worker::stop)).await.unwrap();
        wait_for(&tidegate, "tidegate_mqtt_connections", 0).await;
        wait_for(&tidegate, "tidegate_mqtt_sessions", 0).await;
    }
    tidegate.assert_alive();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscriber_that_stops_reading_costs_little_and_loses_nothing() {
    const PAYLOAD_BYTES: usize = 256 << 10;
    const PUBLISHES: u64 = 2_000_000_000 / PAYLOAD_BYTES as u64;
    const IN_FLIGHT: u64 = 64;
    let settings = Settings::default().set("TIDEGATE_JOURNAL_MAX_BYTES", "4GiB");
    let tidegate = Tidegate::start(settings).await;
    let (address, pid) = (tidegate.mqtt, tidegate.pid());
    let run = move || {
        let keeper =
            Connect { clean_start: false, session_expiry_s: 3_600, ..Connect::new(Version::V5, "keeper") };
        let mut subscriber = Raw::connect(address, &keeper);
        subscriber.subscribe(&["flow"], QOS1);
        let mut publisher = Raw::connect(address, &Connect::new(Version::V5, "publisher"));
        let started = Instant::now();
        let mut payload = vec![b'x'; PAYLOAD_BYTES];
        for number in 0..PUBLISHES + IN_FLIGHT {
            if number < PUBLISHES {
                payload[..8].copy_from_slice(&number.to_be_bytes());
                publisher.publish("flow", &payload, QOS1, (number % 1_000) as u16 + 1, false);
            }
            if number >= IN_FLIGHT {
                let answer = publisher.next();
                assert!(
                    matches!(answer, Some(Received::PubAck { reason, .. }) if !reason.is_failure()),
                    "{answer:?}"
                );
            }
        }
        let flowed = started.elapsed();
        let memory = peak_memory_bytes(pid);
        let started = Instant::now();
        for number in 0..PUBLISHES {
            let Some(Received::Publish { payload, packet_id, .. }) = subscriber.next() else {
                panic!("publish {number} is lost")
            };
            assert_eq!(payload[..8], number.to_be_bytes(), "in order, none lost, none doubled");
            subscriber.send(|out| encode::puback(out, Version::V5, packet_id, ReasonCode::Success));
        }
        (flowed, memory, started.elapsed())
    };
    let (flowed, memory, read) = tokio::task::spawn_blocking(run).await.expect("nothing is lost");
    let peak = peak_memory_bytes(pid);
    let figures = format!(
        "2 GB past a subscriber that did not read in {flowed:.1?} with at most {} MiB of memory, read by it in \
         {read:.1?} with at most {} MiB",
        memory / MIB,
        peak / MIB
    );
    report("hostile", &figures);
    assert!(peak < 512 * MIB, "{figures}");
}

/// Connects, subscribes, publishes and leaves as `count` clients, one after the other.
fn visit(address: SocketAddr, name: &str, count: u32) {
    for number in 0..count {
        let id = format!("{name}-{number}");
        let kept = number.is_multiple_of(2);
        let connect = Connect {
            keep_alive_s: u16::MAX,
            session_expiry_s: if kept { 3_600 } else { 0 },
            ..Connect::new(Version::V5, &id)
        };
        let mut client = Raw::connect(address, &connect);
        client.subscribe(&[&format!("visits/{id}/+"), "visits/all"], QOS1);
        client.publish(&format!("visits/{id}"), b"here", QOS0, 0, false);
        let goodbye = tidegate_broker::mqtt::Disconnect {
            session_expiry_s: kept.then_some(0),
            ..tidegate_broker::mqtt::Disconnect::new(ReasonCode::Success)
        };
        client.send(|out| encode::disconnect(out, Version::V5, &goodbye));
        assert_eq!(client.next(), None, "the broker closes too");
    }
}

async fn visits(address: SocketAddr, round: u32, count: u32) {
    let visitors = (0..4).map(|part| {
        tokio::task::spawn_blocking(move || visit(address, &format!("visitor-{round}-{part}"), count / 4))
    });
    for visitor in visitors.collect::<Vec<_>>() {
        visitor.await.expect("every visitor is served");
    }
}

/// Publishes to `topics` topics of its own while subscribing to and dropping `filters` filters.
fn roam(address: SocketAddr, round: u32, topics: u32, filters: u32) {
    let mut client = Raw::connect(address, &Connect::new(Version::V5, "roamer"));
    let every = topics / filters;
    for number in 0..topics {
        if number.is_multiple_of(every) {
            let filter = format!("roam/{round}/{number}/#");
            client.subscribe(&[&filter], QOS1);
            client.send(|out| encode::unsubscribe(out, Version::V5, 2, [filter.as_str()]));
            let mut answer = client.next();
            while matches!(answer, Some(Received::Publish { .. })) {
                answer = client.next();
            }
            assert!(matches!(answer, Some(Received::UnsubAck { .. })), "{answer:?}");
            client.send(|out| {
                for number in number..number + every {
                    let topic = format!("roam/{round}/{number}/of/many/topics");
                    raw::publish(out, Version::V5, &topic, b"1", QOS0, 0, false);
                }
            });
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_topics_and_filters_that_come_and_go_leave_nothing_behind() {
    let settings = Settings::default().set("TIDEGATE_JOURNAL_TAIL_BYTES", "1MiB");
    let tidegate = Tidegate::start(settings).await;
    let (address, pid) = (tidegate.mqtt, tidegate.pid());
    // Somebody listens, so that topics are looked up.
    let mut listener = Raw::connect(address, &Connect::new(Version::V5, "listener"));
    listener.subscribe(&["nothing/+/of/many/#"], QOS1);
    visits(address, 0, 4_000).await;
    tokio::task::spawn_blocking(move || roam(address, 0, 100_000, 1_000)).await.unwrap();
    wait_for(&tidegate, "tidegate_mqtt_connections", 1).await;
    let before = memory_bytes(pid);
    let started = Instant::now();
    visits(address, 1, 20_000).await;
    let visited = started.elapsed();
    wait_for(&tidegate, "tidegate_mqtt_connections", 1).await;
    wait_for(&tidegate, "tidegate_mqtt_sessions", 1).await;
    wait_for(&tidegate, "tidegate_mqtt_subscriptions", 1).await;
    let after_visits = memory_bytes(pid);
    let started = Instant::now();
    tokio::task::spawn_blocking(move || roam(address, 1, 1_000_000, 10_000)).await.unwrap();
    let roamed = started.elapsed();
    wait_for(&tidegate, "tidegate_mqtt_connections", 1).await;
    wait_for(&tidegate, "tidegate_mqtt_subscriptions", 1).await;
    let after_roaming = memory_bytes(pid);
    let figures = format!(
        "{:.1} MiB of memory; after 20,000 client identifiers in {visited:.1?} {:.1}; after 1,000,000 topics and \
         10,000 filters in {roamed:.1?} {:.1}",
        before as f64 / MIB as f64,
        after_visits as f64 / MIB as f64,
        after_roaming as f64 / MIB as f64
    );
    report("hostile", &figures);
    assert!(after_visits.max(after_roaming) < before + 24 * MIB, "{figures}");
}
