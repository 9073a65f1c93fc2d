//! For each output in = delivered + dropped + pending: in every scrape while everything happens at once, and with nothing
//! pending when all is at rest.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use serde_json::json;
use tidegate_broker::mqtt::{Connect, Version, encode};
use tidegate_broker::record::Qos;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::support::device::{Device, Done, Order};
use crate::support::http::EventStream;
use crate::support::metrics::{Metrics, Output};
use crate::support::mqtt::{Connection, Flags, Options, Received};
use crate::support::postgres::Database;
use crate::support::raw::Raw;
use crate::support::services::{self, Own, Service};
use crate::support::tidegate::{Settings, Tidegate};
use crate::support::websocket::WebSocket;
use crate::support::{eventually, report, unique, within};

const PATIENCE: Duration = Duration::from_secs(120);
const QOS0: Qos = Qos::AtMostOnce;
const QOS1: Qos = Qos::AtLeastOnce;
const QOS2: Qos = Qos::ExactlyOnce;
const EVERYTHING: &str = "sensors/#";
/// What a subscriber that takes only small packets does not take.
const LARGE_BYTES: usize = 300;

/// A session of MQTT 5 with what a test wants of it.
fn raw(address: SocketAddr, connect: Connect<'_>, filter: &str, qos: Qos) -> Raw {
    let mut raw = Raw::connect(address, &connect);
    assert!(raw.subscribe(&[filter], qos).is_some(), "{} subscribes", connect.client_id);
    raw
}

/// Takes what comes and answers it, until it is told to stop or the connection ends.
async fn take(mut connection: Connection, stop: Arc<AtomicBool>, count: Option<usize>) {
    let mut taken = 0;
    while !stop.load(Ordering::Relaxed) && count.is_none_or(|count| taken < count) {
        let Ok(received) = tokio::time::timeout(Duration::from_millis(100), connection.receive()).await
        else {
            continue;
        };
        match received.expect("the connection lives") {
            Received::Publish { qos, packet_id, .. } => {
                taken += 1;
                match qos {
                    QOS0 => {}
                    QOS1 => connection.puback(packet_id),
                    QOS2 => connection.pubrec(packet_id),
                }
            }
            Received::PubRel { packet_id } => connection.pubcomp(packet_id),
            other => panic!("a subscriber is sent {other:?}"),
        }
        connection.flush().await.unwrap();
    }
    connection.close().await.unwrap();
}

struct Load {
    order: watch::Sender<Order>,
    devices: Vec<JoinHandle<Done>>,
    total: Arc<AtomicU64>,
}

impl Load {
    fn start(tidegate: &Tidegate, run: &str) -> Self {
        let (order, orders) = watch::channel(Order::Publish);
        let total = Arc::new(AtomicU64::new(0));
        let device = |index: usize, qos| {
            let payload: fn(&str, u64) -> Vec<u8> = |_, number| {
                let digits = number.to_string().into_bytes();
                if number % 50 == 7 { [digits, vec![b' '; LARGE_BYTES]].concat() } else { digits }
            };
            let id = format!("{run}-{index}");
            let device = Device { pace: Some(150), payload, ..Device::new(tidegate.mqtt, &id, qos) };
            tokio::spawn(device.run(orders.clone(), Arc::clone(&total)))
        };
        let devices =
            [QOS1, QOS2, QOS1].into_iter().enumerate().map(|(index, qos)| device(index, qos)).collect();
        Self { order, devices, total }
    }

    /// Waits until so many more are acknowledged.
    async fn goes_on(&self, count: u64) {
        let until = self.total.load(Ordering::Relaxed) + count;
        eventually("publishes are acknowledged", PATIENCE, async || {
            (self.total.load(Ordering::Relaxed) >= until).then_some(())
        })
        .await;
    }

    async fn finish(self) {
        self.order.send(Order::Finish).unwrap();
        for device in self.devices {
            within("a device finishes", PATIENCE, device).await.unwrap();
        }
    }
}

/// Looks at every output again and again. Returns how often it did.
fn watch_balances(tidegate: &Tidegate, stop: Arc<AtomicBool>) -> JoinHandle<u64> {
    let address = tidegate.http;
    tokio::spawn(async move {
        let mut looks = 0;
        while !stop.load(Ordering::Relaxed) {
            let metrics = Metrics::at(address).await;
            let outputs = metrics.outputs();
            assert_eq!(outputs.len(), 4, "{outputs:?}");
            for output in &outputs {
                assert!(output.is_balanced(), "{output:?}");
            }
            looks += 1;
        }
        looks
    })
}

fn output<'a>(outputs: &'a [Output], name: &str) -> &'a Output {
    outputs.iter().find(|output| output.name == name).unwrap_or_else(|| panic!("no {name} in {outputs:?}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_comes_in_is_delivered_dropped_or_pending_at_any_time() {
    let postgres = Own::start(Service::Postgres);
    let database = Database::create(&postgres.url()).await;
    let settings = Settings::default().kafka(services::kafka()).postgres(&database.url);
    let mut tidegate = Tidegate::start(settings).await;
    for sink in ["kafka", "postgres"] {
        tidegate.caught_up(sink, 0, PATIENCE).await;
    }
    let (mqtt, run) = (tidegate.mqtt, unique("keep"));
    let (stop, looked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let looks = watch_balances(&tidegate, Arc::clone(&looked));

    // Some take everything, one of them in a shared group with one that comes and goes.
    let mut takers = Vec::new();
    for (id, filter, qos) in
        [("two", EVERYTHING, QOS2), ("one", EVERYTHING, QOS1), ("zero", EVERYTHING, QOS0)]
    {
        let mut taker = Connection::open(mqtt, &Options::persistent(Version::V5, id)).await.unwrap();
        taker.subscribe(filter, qos).await.unwrap();
        takers.push(tokio::spawn(take(taker, Arc::clone(&stop), None)));
    }
    // A group in which nobody is there, but for QoS 0.
    let member = Options::persistent(Version::V5, "member");
    let mut absent = Connection::open(mqtt, &member).await.unwrap();
    absent.subscribe("$share/group/sensors/#", QOS0).await.unwrap();
    absent.close().await.unwrap();
    // One whose session ends while records wait for it, one that takes only small packets, one that is slow.
    let expiring =
        Connect { session_expiry_s: 2, clean_start: false, ..Connect::new(Version::V5, "expiring") };
    let small = Connect { maximum_packet_bytes: Some(200), ..Connect::new(Version::V5, "small") };
    let slow = Connect { receive_maximum: 3, ..Connect::new(Version::V5, "slow") };
    let expiring = raw(mqtt, expiring, EVERYTHING, QOS1);
    let small = raw(mqtt, small, EVERYTHING, QOS0);
    let slow = raw(mqtt, slow, EVERYTHING, QOS1);
    let mut stream =
        EventStream::open(tidegate.http, "/stream/events?status=off&filter=sensors/%23", None).await;
    let mut socket = WebSocket::open(tidegate.http, "/ws").await;
    socket.subscribe("sensors/#").await;

    let load = Load::start(&tidegate, &run);
    load.goes_on(200).await;
    drop(expiring);
    // One comes, takes a little, and goes with more in flight; publishes at QoS 0 come in between.
    let guest = Options::persistent(Version::V5, "guest");
    for turn in 0..5 {
        let mut visit = Connection::open(mqtt, &guest).await.unwrap();
        if turn == 0 {
            visit.subscribe(EVERYTHING, QOS2).await.unwrap();
        }
        within("a guest takes some", PATIENCE, take(visit, Arc::clone(&stop), Some(20))).await;
        let mut publisher = Connection::open(mqtt, &Options::clean(Version::V311, "quick")).await.unwrap();
        for _ in 0..50 {
            publisher.publish("sensors/quick/t", b"1", QOS0, 0, Flags::default());
        }
        publisher.flush().await.unwrap();
        publisher.close().await.unwrap();
        load.goes_on(100).await;
        stream.next().await;
    }
    // One destination is away for a while, with records in flight, and something is published through HTTP.
    postgres.stop();
    load.goes_on(500).await;
    let pending = eventually("records wait for PostgreSQL", PATIENCE, async || {
        let outputs = Metrics::of(&tidegate).await.outputs();
        Some(output(&outputs, "postgres").pending).filter(|pending| *pending > 100)
    })
    .await;
    socket.send("unsubscribe", json!({"topic": "sensors/#"})).await;
    postgres.start_again();
    load.goes_on(200).await;
    load.finish().await;

    // At rest: whoever has not answered goes for good, the rest takes what is left.
    drop((slow, small, stream, socket));
    let mut last = Connection::open(mqtt, &guest).await.unwrap();
    last.flush().await.unwrap();
    takers.push(tokio::spawn(take(last, Arc::clone(&stop), None)));
    let mut back = Connection::open(mqtt, &member).await.unwrap();
    back.flush().await.unwrap();
    takers.push(tokio::spawn(take(back, Arc::clone(&stop), None)));
    let outputs = eventually("nothing is pending", PATIENCE, async || {
        let outputs = Metrics::of(&tidegate).await.outputs();
        outputs.iter().all(|output| output.pending == 0).then_some(outputs)
    })
    .await;
    stop.store(true, Ordering::Relaxed);
    for taker in takers {
        within("a subscriber goes", PATIENCE, taker).await.unwrap();
    }
    looked.store(true, Ordering::Relaxed);
    let looks = looks.await.unwrap();
    tidegate.assert_alive();

    let accepted = Metrics::of(&tidegate).await.one("tidegate_publishes_accepted_total");
    for sink in ["kafka", "postgres"] {
        let sink = output(&outputs, sink);
        assert_eq!((sink.taken_in, sink.delivered), (accepted, accepted), "{sink:?}");
    }
    let subscribers = output(&outputs, "mqtt");
    for reason in ["away", "session_ended", "too_large"] {
        assert!(subscribers.dropped[reason] > 0, "{reason}: {subscribers:?}");
    }
    for reason in ["trimmed", "denied", "refused", "expired"] {
        assert_eq!(subscribers.dropped[reason], 0, "{reason}: {subscribers:?}");
    }
    assert!(output(&outputs, "http").delivered > 0);
    assert!(looks > 20, "only {looks} scrapes");
    let health = tidegate.health().await;
    let told = health["outputs"].as_array().unwrap().iter().find(|output| output["name"] == "kafka").unwrap();
    assert_eq!((&told["in"], &told["pending"]), (&json!(accepted), &json!(0)), "{told}");
    report("conservation", &format!("{looks} scrapes balanced, {pending} were pending; {subscribers:?}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_client_refuses_or_no_longer_wants_is_dropped_by_name() {
    let tidegate = Tidegate::start(Settings::default()).await;
    let address = tidegate.mqtt;
    let steps = tokio::task::spawn_blocking(move || {
        let kept =
            |id| Connect { session_expiry_s: 600, clean_start: false, ..Connect::new(Version::V5, id) };
        let mut refusing = raw(address, Connect::new(Version::V5, "refusing"), "a", QOS1);
        drop(raw(address, kept("leaving"), "a", QOS1));
        let mut publisher = Raw::connect(address, &Connect::new(Version::V5, "publisher"));
        for number in 1..=3 {
            publisher.publish("a", b"x", QOS1, number, false);
            assert!(matches!(publisher.next(), Some(Received::PubAck { .. })));
        }
        for _ in 0..3 {
            let Some(Received::Publish { packet_id, .. }) = refusing.next() else { panic!("no publish") };
            let quota = tidegate_broker::mqtt::ReasonCode::QuotaExceeded;
            refusing.send(|out| encode::puback(out, Version::V5, packet_id, quota));
        }
        // It says that it does not want them before it could be told how many there are.
        let mut back = Raw::open(address, Version::V5);
        back.send(|out| {
            encode::connect(out, &kept("leaving"));
            encode::unsubscribe(out, Version::V5, 2, ["a"]);
        });
        (refusing, publisher, back)
    });
    let _connections = steps.await.unwrap();
    eventually("all is settled", PATIENCE, async || {
        let outputs = Metrics::of(&tidegate).await.outputs();
        let mqtt = output(&outputs, "mqtt");
        assert!(mqtt.is_balanced(), "{mqtt:?}");
        let gone = mqtt.dropped["refused"] == 3 && mqtt.taken_in == 6;
        // What was sent before UNSUBSCRIBE was seen is in flight; the rest is dropped.
        (gone && mqtt.dropped["unsubscribed"] + mqtt.pending == 3).then_some(())
    })
    .await;
}
