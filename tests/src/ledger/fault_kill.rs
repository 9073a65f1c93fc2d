//! SIGKILL at random moments, now and then also while it starts again.

use std::time::{Duration, Instant};

use tidegate_broker::mqtt::Version;
use tidegate_broker::record::Qos;

use super::quick_or_long;
use super::row::Place;
use super::stage::{Plan, Stage};
use crate::support::mosquitto;
use crate::support::mqtt::{Connection, Options, Received};
use crate::support::random::Random;
use crate::support::tidegate::Tidegate;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost_when_it_is_killed_at_random_moments() {
    let crashes = quick_or_long(8, 60);
    let mut random = Random::printed("kill");
    let mut stage = Stage::start("kill", Plan::usual()).await;
    let kept_topic = format!("kept/{}", stage.run);
    mosquitto::publish(stage.tidegate.mqtt, mosquitto::Version::V5, 1, &kept_topic, b"kept", &["-r"]);
    let away = Options::persistent(Version::V5, &format!("{}_away", stage.run));
    let mut connection = Connection::open(stage.tidegate.mqtt, &away).await.unwrap();
    connection.subscribe(&format!("sensors/{}_1/+", stage.run), Qos::AtLeastOnce).await.unwrap();
    connection.close().await.unwrap();
    let seen_before = stage.load.acknowledged();

    let mut kills = 0;
    for _ in 0..crashes {
        stage.load.more_acknowledged(random.within(1..800)).await;
        // Somewhere between two acknowledgements, too.
        tokio::time::sleep(Duration::from_micros(random.within(0..20_000))).await;
        if random.within(0..4) == 0 {
            stage.tidegate.kill();
            stage.tidegate.spawn();
            tokio::time::sleep(Duration::from_micros(random.within(0..100_000))).await;
            kills += 1;
        }
        stage.crash_and_restart().await;
        kills += 1;
    }
    let ended = Instant::now();
    stage.load.more_acknowledged(500).await;
    assert!(stage.load.acknowledged() > seen_before + 500);
    let of_queue = format!("{}_1", stage.run);
    let findings = stage.finish(ended).await;
    let tidegate = &findings.tidegate;
    findings
        .row_of(Qos::AtLeastOnce, format!("SIGKILL, {kills} times; devices at QoS 1"))
        .record(Place::Killed);
    findings.row_of(Qos::ExactlyOnce, "the same; devices at QoS 2").record(Place::KilledQos2);
    for account in findings.accounts.iter().filter(|account| account.done.acknowledged > 1) {
        assert!(account.done.connects > 1, "{} never lost its connection: {account:?}", account.device);
    }

    let mut subscriber =
        mosquitto::Subscriber::start(tidegate.mqtt, mosquitto::Version::V311, 1, &kept_topic, &[]).await;
    let received = subscriber.next().await;
    assert_eq!((received.payload.as_ref(), received.retain), (b"kept".as_ref(), true));
    let account = findings.accounts.iter().find(|account| account.device == of_queue).unwrap();
    queue_is_kept(tidegate, &away, account.done.acknowledged).await;
}

/// The session of a subscriber that was away all the time is there, subscribed, and has every publish since in order. Each was
/// published at QoS 2, so none comes twice but by the broker's own repetition, which says DUP.
async fn queue_is_kept(tidegate: &Tidegate, away: &Options, published: u64) {
    let mut connection = Connection::open(tidegate.mqtt, away).await.unwrap();
    assert!(connection.session_present, "the session of the subscriber that was away is kept");
    let mut next = None;
    while next < Some(published) {
        let received = connection.receive().await.expect("the connection lives");
        let Received::Publish { payload, packet_id, .. } = received else {
            panic!("unexpected: {received:?}")
        };
        let payload: serde_json::Value = serde_json::from_slice(&payload).unwrap();
        let number = payload["seq"].as_u64().unwrap();
        assert_eq!(number, next.unwrap_or(number), "of {published}");
        next = Some(number + 1);
        connection.puback(packet_id);
        connection.flush().await.expect("the connection lives");
    }
}
