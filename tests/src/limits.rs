//! Every limit is set by its key, reached, answered as its description says, and counted in `/metrics` by its name.

use tidegate_broker::mqtt::{Connect, ReasonCode, Version, encode};
use tidegate_broker::record::Qos;

use super::support::mqtt::Received;
use super::support::raw::{self, Raw};
use super::support::tidegate::{Settings, Tidegate};
use super::support::{PATIENCE, eventually, http};

const QOS0: Qos = Qos::AtMostOnce;
const QOS1: Qos = Qos::AtLeastOnce;

/// How often the limit `name` was reached, as `/metrics` tells.
async fn reached(tidegate: &Tidegate, name: &str) -> u64 {
    let metrics = http::get(tidegate.http, "/metrics").await.text().to_owned();
    let line = format!("tidegate_mqtt_limit_reached_total{{limit=\"{name}\"}} ");
    let count = metrics.lines().find_map(|each| each.strip_prefix(&line));
    count.unwrap_or_else(|| panic!("no {name} in:\n{metrics}")).parse().unwrap()
}

/// Waits until `/metrics` tells that each of the limits was reached.
async fn all_reached(tidegate: &Tidegate, names: &[&str]) {
    for name in names {
        eventually(&format!("{name} is counted"), PATIENCE, async || {
            (reached(tidegate, name).await > 0).then_some(())
        })
        .await;
    }
}

fn knock(tidegate: &Tidegate, version: Version, id: &str) -> (Raw, Option<Received>) {
    Raw::knock(tidegate.mqtt, &Connect::new(version, id))
}

fn refused(reason: ReasonCode) -> Option<Received> {
    // What a CONNACK without properties means.
    Some(Received::ConnAck { session_present: false, reason, receive_maximum: u16::MAX })
}

fn client(tidegate: &Tidegate, id: &str) -> Raw {
    Raw::connect(tidegate.mqtt, &Connect::new(Version::V5, id))
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_one_too_many_is_told_in_connack() {
    let cases = [
        ("MQTT_MAX_CONNECTIONS", "1", "connections", ReasonCode::QuotaExceeded),
        ("LIMITS_CONNECTIONS_PER_ADDRESS", "1", "connections_per_address", ReasonCode::QuotaExceeded),
        ("LIMITS_SESSIONS", "1", "sessions", ReasonCode::QuotaExceeded),
        ("LIMITS_CONNECT_RATE", "1", "connect_rate", ReasonCode::ConnectionRateExceeded),
    ];
    for (key, value, name, reason) in cases {
        let tidegate = Tidegate::start(Settings::default().set(&format!("TIDEGATE_{key}"), value)).await;
        let (_first, answer) = knock(&tidegate, Version::V5, "first");
        assert!(matches!(answer, Some(Received::ConnAck { reason: ReasonCode::Success, .. })), "{name}");
        // At a rate of one a second, one of these comes within a second of the one before.
        let answers: Vec<_> =
            (0..3).map(|id| knock(&tidegate, Version::V5, &format!("more-{id}")).1).collect();
        assert!(answers.contains(&refused(reason)), "{name}: {answers:?}");
        all_reached(&tidegate, &[name]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_client_wants_too_much_of_is_refused_and_counted() {
    let tidegate = Tidegate::start(
        Settings::default()
            .set("TIDEGATE_MQTT_MAX_PACKET_BYTES", "1KiB")
            .set("TIDEGATE_MQTT_CONNECT_TIMEOUT", "300ms")
            .set("TIDEGATE_MQTT_RECEIVE_MAXIMUM", "2")
            .set("TIDEGATE_MQTT_MAX_IN_FLIGHT", "1")
            .set("TIDEGATE_LIMITS_SUBSCRIPTIONS", "1")
            .set("TIDEGATE_LIMITS_TOPIC_LEVELS", "3")
            .set("TIDEGATE_LIMITS_RETAINED", "1"),
    )
    .await;
    assert_eq!(Raw::open(tidegate.mqtt, Version::V5).next(), None, "without a CONNECT it is closed");

    let mut large = client(&tidegate, "large");
    large.publish("a", &[0; 1_024], QOS1, 1, false);
    assert_eq!(large.next(), Some(Received::Disconnect { reason: ReasonCode::PacketTooLarge }));

    let mut deep = client(&tidegate, "deep");
    let suback = |code| Some(Received::SubAck { packet_id: 1, codes: vec![code] });
    assert_eq!(deep.subscribe(&["a/b/c/d"], QOS1), suback(ReasonCode::TopicFilterInvalid));
    assert_eq!(deep.subscribe(&["a/b/c"], QOS1), suback(ReasonCode::GrantedQos1));
    assert_eq!(deep.subscribe(&["b"], QOS1), suback(ReasonCode::QuotaExceeded));
    deep.publish("a/b/c/d", b"", QOS1, 1, false);
    assert_eq!(deep.next(), Some(Received::Disconnect { reason: ReasonCode::TopicNameInvalid }));

    let mut eager = client(&tidegate, "eager");
    eager.send(|out| {
        for packet_id in 1..=20 {
            raw::publish(out, Version::V5, "x", b"", QOS1, packet_id, false);
        }
    });
    let told = std::iter::from_fn(|| eager.next()).last();
    assert_eq!(told, Some(Received::Disconnect { reason: ReasonCode::ReceiveMaximumExceeded }));

    let mut slow = client(&tidegate, "slow");
    slow.subscribe(&["slow"], QOS1);
    let mut keeper = client(&tidegate, "keeper");
    let puback = |packet_id, reason| Some(Received::PubAck { packet_id, reason });
    for packet_id in 1..=2 {
        keeper.publish("slow", b"", QOS1, packet_id, false);
        assert_eq!(keeper.next(), puback(packet_id, ReasonCode::Success));
    }
    keeper.publish("kept/1", b"1", QOS1, 1, true);
    assert_eq!(keeper.next(), puback(1, ReasonCode::Success));
    keeper.publish("kept/2", b"1", QOS1, 1, true);
    assert_eq!(keeper.next(), puback(1, ReasonCode::QuotaExceeded));
    let names = [
        "connect_timeout",
        "packet_bytes",
        "topic_levels",
        "subscriptions",
        "receive_maximum",
        "in_flight",
        "retained",
    ];
    all_reached(&tidegate, &names).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn publishers_that_are_too_fast_wait_and_lose_nothing() {
    for (key, value, name) in
        [("PUBLISH_RATE", "20", "publish_rate"), ("PUBLISH_BYTES_RATE", "100", "publish_bytes_rate")]
    {
        let tidegate =
            Tidegate::start(Settings::default().set(&format!("TIDEGATE_LIMITS_{key}"), value)).await;
        let mut fast = client(&tidegate, "fast");
        let started = std::time::Instant::now();
        fast.send(|out| {
            for packet_id in 1..=60 {
                raw::publish(out, Version::V5, "a", b"1234", QOS1, packet_id, false);
            }
        });
        for packet_id in 1..=60 {
            assert_eq!(
                fast.next(),
                Some(Received::PubAck { packet_id, reason: ReasonCode::Success }),
                "{name}"
            );
        }
        // 20 at once, then 20 a second.
        assert!(started.elapsed().as_millis() >= 1_900, "{name}: {:?}", started.elapsed());
        all_reached(&tidegate, &[name]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn publishers_that_are_too_fast_are_disconnected_where_that_is_wanted() {
    let settings = Settings::default()
        .set("TIDEGATE_LIMITS_PUBLISH_RATE", "5")
        .set("TIDEGATE_LIMITS_PUBLISH_RATE_ACTION", "disconnect")
        .set("TIDEGATE_LIMITS_RETAINED_BYTES", "20");
    let tidegate = Tidegate::start(settings).await;
    let mut fast = client(&tidegate, "fast");
    fast.publish("a", &[b'x'; 30], QOS1, 1, true);
    assert_eq!(fast.next(), Some(Received::PubAck { packet_id: 1, reason: ReasonCode::QuotaExceeded }));
    fast.send(|out| (0..20).for_each(|_| raw::publish(out, Version::V5, "a", b"", QOS0, 0, false)));
    assert_eq!(fast.next(), Some(Received::Disconnect { reason: ReasonCode::MessageRateTooHigh }));
    all_reached(&tidegate, &["publish_rate", "retained_bytes"]).await;
    let metrics = http::get(tidegate.http, "/metrics").await.text().to_owned();
    for line in [
        "tidegate_publishes_refused_total{reason=\"rate\"} 1",
        "tidegate_publishes_refused_total{reason=\"quota\"} 1",
        "tidegate_publishes_dropped_total{reason=\"expired\"} 0",
    ] {
        assert!(metrics.contains(line), "{line} in:\n{metrics}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_uses_too_much_memory_lets_nobody_in() {
    let tidegate = Tidegate::start(Settings::default().set("TIDEGATE_LIMITS_MEMORY_BYTES", "1MiB")).await;
    tidegate.log_has("limits.memory_bytes (1 MiB)").await;
    assert_eq!(knock(&tidegate, Version::V5, "new").1, refused(ReasonCode::QuotaExceeded));
    assert_eq!(knock(&tidegate, Version::V311, "new").1, refused(ReasonCode::ServerUnavailable));
    all_reached(&tidegate, &["memory"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_that_nobody_takes_are_not_piled_up() {
    let settings = Settings::default()
        .set("TIDEGATE_MQTT_MAX_OUTGOING_BYTES", "16KiB")
        .set("TIDEGATE_MQTT_MAX_PACKET_BYTES", "1KiB");
    let tidegate = Tidegate::start(settings).await;
    let mut flood = client(&tidegate, "flood");
    flood.stream.set_write_timeout(Some(std::time::Duration::from_secs(1))).unwrap();
    let mut pings = Vec::new();
    (0..1 << 20).for_each(|_| encode::pingreq(&mut pings));
    // Until the broker reads no more: then the socket takes nothing for a second.
    let mut sent = 0;
    while std::io::Write::write_all(&mut flood.stream, &pings).is_ok() {
        sent += pings.len();
        assert!(sent < 1 << 30, "the broker reads on and on");
    }
    all_reached(&tidegate, &["outgoing_bytes"]).await;
    assert_eq!(flood.next(), Some(Received::PingResp), "what was taken in is answered");
}
