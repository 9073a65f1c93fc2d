//! A persistent subscriber that was away gets everything that was acknowledged meanwhile.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use tidegate_broker::mqtt::Version;
use tidegate_broker::record::Qos;
use tokio::sync::watch;

use crate::support::device::{Device, Order};
use crate::support::mqtt::{Connection, Options, Received};
use crate::support::tidegate::{Settings, Tidegate};
use crate::support::{process, report, unique, within};

const PUBLISHES: u64 = 200_000;
const PATIENCE: Duration = Duration::from_secs(180);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscriber_gets_200_000_publishes_acknowledged_while_it_was_away() {
    let tidegate = Tidegate::start(Settings::default()).await;
    let id = unique("offline");
    let subscriber = Options::persistent(Version::V5, &format!("{id}_subscriber"));
    let mut connection = Connection::open(tidegate.mqtt, &subscriber).await.unwrap();
    connection.subscribe(&format!("sensors/{id}/+"), Qos::AtLeastOnce).await.unwrap();
    connection.close().await.unwrap();

    let (_orders, order) = watch::channel(Order::Publish);
    let device =
        Device { window: 1_000, limit: PUBLISHES, ..Device::new(tidegate.mqtt, &id, Qos::AtLeastOnce) };
    let publishing = device.run(order, Arc::new(AtomicU64::new(0)));
    let done = within("all publishes are acknowledged", PATIENCE, publishing).await;
    assert_eq!((done.acknowledged, done.connects, done.resent), (PUBLISHES, 1, 0));

    let mut connection = Connection::open(tidegate.mqtt, &subscriber).await.unwrap();
    assert!(connection.session_present, "the session is kept");
    let received =
        within("all publishes are delivered", PATIENCE, receive_all(&mut connection, PUBLISHES)).await;
    let peak_mib = process::peak_memory_bytes(tidegate.pid()) >> 20;
    let acknowledged = done.acknowledged;
    report(
        "offline",
        &format!("acknowledged {acknowledged}, delivered {received}, peak memory {peak_mib} MiB"),
    );
    assert_eq!(received, PUBLISHES);
}

/// A full journal that an absent subscriber holds is drained by its return.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscriber_that_fills_the_journal_by_its_absence_can_return_and_drain_it() {
    let settings = Settings::default()
        .set("TIDEGATE_JOURNAL_MAX_BYTES", "4MiB")
        .set("TIDEGATE_JOURNAL_SEGMENT_BYTES", "1MiB");
    let tidegate = Tidegate::start(settings).await;
    let id = unique("full");
    let subscriber = Options::persistent(Version::V311, &format!("{id}_subscriber"));
    let mut connection = Connection::open(tidegate.mqtt, &subscriber).await.unwrap();
    connection.subscribe(&format!("sensors/{id}/+"), Qos::AtLeastOnce).await.unwrap();
    connection.close().await.unwrap();

    // Many more than fit: the device is held back until the subscriber reads.
    let publishes = 100_000;
    let (_orders, order) = watch::channel(Order::Publish);
    let device = Device {
        window: 1_000,
        limit: publishes,
        version: Version::V311,
        ..Device::new(tidegate.mqtt, &id, Qos::AtLeastOnce)
    };
    let publishing = tokio::spawn(device.run(order, Arc::new(AtomicU64::new(0))));
    within("the journal is full", PATIENCE, async {
        while tidegate.health().await["journal"]["state"] != "full" {
            tokio::task::yield_now().await;
        }
    })
    .await;

    let mut connection = Connection::open(tidegate.mqtt, &subscriber).await.unwrap();
    assert!(connection.session_present, "the session is kept");
    let receiving = receive_all(&mut connection, publishes);
    assert_eq!(within("all publishes are delivered", PATIENCE, receiving).await, publishes);
    let done = within("all publishes are acknowledged", PATIENCE, publishing).await.unwrap();
    assert_eq!((done.acknowledged, done.connects, done.resent), (publishes, 1, 0));
}

/// Receives the numbers in their order until the last of `publishes`, and acknowledges each.
async fn receive_all(connection: &mut Connection, publishes: u64) -> u64 {
    let mut expected = 0;
    while expected < publishes {
        connection.read_more().await.expect("the connection lives");
        while let Some(received) = connection.received_already() {
            let Received::Publish { payload, packet_id, qos: Qos::AtLeastOnce, .. } = received else {
                panic!("unexpected: {received:?}");
            };
            let number: u64 = std::str::from_utf8(&payload).unwrap().parse().unwrap();
            assert_eq!(number, expected, "one is missing, doubled or out of order");
            expected += 1;
            connection.puback(packet_id);
        }
        connection.flush().await.expect("the connection lives");
    }
    expected
}
