//! Shared subscriptions, with stock clients and across a crash of the program.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use tidegate_broker::mqtt::Version;
use tidegate_broker::record::Qos;
use tokio::sync::watch;

use crate::support::device::{Device, Order};
use crate::support::mosquitto::{self, Subscriber};
use crate::support::mqtt::{Connection, Flags, Options, Received};
use crate::support::tidegate::{Settings, Tidegate};
use crate::support::{PATIENCE, report, unique, within};

#[tokio::test]
async fn mosquitto_subs_with_one_share_name_divide_the_publishes() {
    let tidegate = Tidegate::start(Settings::default()).await;
    let filter = "$share/workers/jobs/#";
    let mut workers = Vec::new();
    for version in [mosquitto::Version::V311, mosquitto::Version::V5, mosquitto::Version::V5] {
        workers.push(Subscriber::start(tidegate.mqtt, version, 1, filter, &[]).await);
    }
    let mut everything = Subscriber::start(tidegate.mqtt, mosquitto::Version::V5, 1, "jobs/#", &[]).await;
    let mut publisher = Connection::open(tidegate.mqtt, &Options::clean(Version::V5, "p")).await.unwrap();
    let jobs = 30;
    for number in 0..jobs {
        let (payload, packet_id) = (format!("{number}"), number + 1);
        publisher.publish("jobs/x", payload.as_bytes(), Qos::AtLeastOnce, packet_id, Flags::default());
    }
    publisher.flush().await.unwrap();
    let mut divided = BTreeSet::new();
    for worker in &mut workers {
        for _ in 0..jobs / 3 {
            let job = worker.next().await;
            assert_eq!((job.topic.as_str(), job.qos, job.retain), ("jobs/x", 1, false));
            assert!(divided.insert(job.payload.clone()), "{job:?} came twice");
        }
    }
    assert_eq!(divided.len(), usize::from(jobs));
    for number in 0..jobs {
        assert_eq!(everything.next().await.payload, format!("{number}"), "others get every one, in order");
    }
}

/// Kept members, one of which acknowledges nothing and goes; the program is killed in the middle.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_to_its_publisher_is_done_by_some_member_also_across_a_crash() {
    const PUBLISHES: u64 = 20_000;
    let mut tidegate = Tidegate::start(Settings::default()).await;
    let id = unique("share");
    let filter = format!("$share/workers/sensors/{id}/+");
    let members: Vec<Options> =
        (0..3).map(|at| Options::persistent(Version::V5, &format!("{id}_{at}"))).collect();
    let mut idler = Connection::open(tidegate.mqtt, &members[2]).await.unwrap();
    idler.subscribe(&filter, Qos::AtLeastOnce).await.unwrap();
    for member in &members[..2] {
        let mut connection = Connection::open(tidegate.mqtt, member).await.unwrap();
        connection.subscribe(&filter, Qos::AtLeastOnce).await.unwrap();
        connection.close().await.unwrap();
    }

    let (_orders, order) = watch::channel(Order::Publish);
    let device =
        Device { window: 500, limit: PUBLISHES, ..Device::new(tidegate.mqtt, &id, Qos::AtLeastOnce) };
    let publishing = device.run(order, Arc::new(AtomicU64::new(0)));
    let published = within("all publishes are acknowledged", PATIENCE, publishing).await;
    assert_eq!(published.acknowledged, PUBLISHES);
    drop(idler);

    let mut done = BTreeSet::new();
    let mut first = Connection::open(tidegate.mqtt, &members[0]).await.unwrap();
    work(&mut first, &mut done, PUBLISHES / 3).await;
    tidegate.crash_and_restart().await;
    drop(first);
    for member in &members[..2] {
        let mut connection = Connection::open(tidegate.mqtt, member).await.unwrap();
        assert!(connection.session_present);
        let wanted = if member.client_id == members[0].client_id { PUBLISHES * 2 / 3 } else { PUBLISHES };
        work(&mut connection, &mut done, wanted).await;
    }
    report("shared", &format!("acknowledged {PUBLISHES}, done by the members {}", done.len()));
}

/// Takes and acknowledges deliveries until `done` has `wanted` different payloads.
async fn work(connection: &mut Connection, done: &mut BTreeSet<Vec<u8>>, wanted: u64) {
    while (done.len() as u64) < wanted {
        let received = connection.receive().await.expect("the broker goes on delivering");
        if let Received::Publish { payload, packet_id, .. } = received {
            done.insert(payload.to_vec());
            connection.puback(packet_id);
            connection.flush().await.expect("the broker takes acknowledgements");
        }
    }
}
