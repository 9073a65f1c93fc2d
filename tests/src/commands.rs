//! From Kafka to the devices: the shipped program consumes topics of a real Kafka and publishes what is in them.

mod crash;
mod dead_letters;
mod exactly_once;
mod loops;
mod security;
mod setup;
mod stage;
mod troubles;

use rdkafka::message::{Header, OwnedHeaders};
use tidegate_broker::mqtt::Version;

use crate::support::kafka::{Topic, add_header};
use crate::support::mosquitto::{self, Subscriber};
use crate::support::services;

use stage::{Receiver, Stage, metric};

#[tokio::test]
async fn a_command_reaches_the_device_it_names_and_an_alert_everybody() {
    let stage = Stage::new(services::kafka());
    let tidegate = stage.start().await;
    let version = mosquitto::Version::V5;
    let mut valve = Subscriber::start(tidegate.mqtt, version, 1, "commands/valve-7/+", &[]).await;
    let mut everybody = Subscriber::start(tidegate.mqtt, version, 1, "alerts/#", &[]).await;

    let binary: &[u8] = b"\x00\xffopen";
    stage.produce("commands", Some("valve-7"), &[("action", "open")], binary).await;
    stage.produce("commands", None, &[], br#"{"deviceId":"valve-7","command":"close","x":[1]}"#).await;
    stage.produce("commands", Some("other"), &[("ce_subject", "commands/valve-7/stop")], b"").await;
    stage.produce("alerts", None, &[], br#"{"level":"critical"}"#).await;
    // Of one partition or another, so in any order.
    let mut commands = Vec::new();
    for _ in 0..3 {
        let received = valve.next().await;
        assert_eq!((received.qos, received.retain), (1, false));
        commands.push((received.topic, received.payload.to_vec()));
    }
    commands.sort();
    let json = br#"{"deviceId":"valve-7","command":"close","x":[1]}"#.to_vec();
    let command = |action: &str, payload: Vec<u8>| (format!("commands/valve-7/{action}"), payload);
    assert_eq!(commands, [command("close", json), command("open", binary.to_vec()), command("stop", vec![])]);
    let alert = everybody.next().await;
    assert_eq!(
        (alert.topic.as_str(), &alert.payload[..]),
        ("alerts/critical", &br#"{"level":"critical"}"#[..])
    );

    let commands = stage.topic("commands");
    stage.settled(&tidegate, "commands", 3).await;
    assert_eq!(metric(&tidegate, "tidegate_source_published_total", &commands).await, 3.0);
    stage.settled(&tidegate, "alerts", 1).await;
}

#[tokio::test]
async fn what_a_producer_sends_along_travels_as_properties_and_a_retained_alert_stays() {
    let mut stage = Stage::new(services::kafka());
    stage.consumed = vec![("alerts", "alerts/{severity}", 1, true)];
    let tidegate = stage.start().await;
    let headers = [("room", "é1"), ("content-type", "application/json"), ("severity", "high")];
    stage.produce("alerts", None, &headers, b"{}").await;
    stage.settled(&tidegate, "alerts", 1).await;
    let shown = tokio::process::Command::new("mosquitto_sub")
        .args(["-V", "mqttv5", "-p", &tidegate.mqtt.port().to_string(), "-h", "127.0.0.1"])
        .args(["-t", "alerts/#", "-C", "1", "-W", "60", "-F", "%t|%r|%C|%P|%p"])
        .kill_on_drop(true)
        .output()
        .await
        .expect("mosquitto_sub is installed");
    let shown = String::from_utf8(shown.stdout).expect("it prints text");
    assert_eq!(shown.trim(), "alerts/high|1|application/json|room:é1 severity:high|{}");
}

/// Whoever writes to Kafka names headers as it likes; MQTT has names that are UTF-8.
#[tokio::test]
async fn a_header_whose_name_is_no_text_is_left_out_and_counted() {
    let stage = Stage::new(services::kafka());
    let tidegate = stage.start().await;
    let mut valve = Subscriber::start(tidegate.mqtt, mosquitto::Version::V5, 1, "commands/#", &[]).await;
    let mut headers = OwnedHeaders::new().insert(Header { key: "action", value: Some("open") });
    add_header(&mut headers, b"\xff\xfe", b"x");
    stage.send("commands", Some("valve"), headers, b"now").await;
    let received = valve.next().await;
    assert_eq!((received.topic.as_str(), &received.payload[..]), ("commands/valve/open", &b"now"[..]));
    let commands = stage.topic("commands");
    assert_eq!(metric(&tidegate, "tidegate_source_headers_left_out_total", &commands).await, 1.0);
}

#[tokio::test]
async fn a_command_for_a_device_that_is_away_waits_for_it_also_across_a_restart() {
    let stage = Stage::new(services::kafka());
    let mut tidegate = stage.start().await;
    Receiver::open(tidegate.mqtt, Version::V311, "pump").await.close().await;
    for number in 0..5 {
        stage.command("pump", number).await;
    }
    stage.settled(&tidegate, "commands", 5).await;
    tidegate.crash_and_restart().await;
    let mut pump = Receiver::open(tidegate.mqtt, Version::V311, "pump").await;
    assert!(pump.was_known, "its session was kept");
    pump.until(5).await;
    assert_eq!(pump.numbers, [0, 1, 2, 3, 4]);
}

/// Records of the sink, which a device has published, and what was consumed besides: neither gets in the other's way.
#[tokio::test]
async fn what_devices_publish_goes_on_to_kafka_and_none_of_it_comes_back() {
    let stage = Stage::new(services::kafka());
    let tidegate = stage.start().await;
    let version = mosquitto::Version::V5;
    let mut valve = Subscriber::start(tidegate.mqtt, version, 1, "commands/#", &[]).await;
    mosquitto::publish(tidegate.mqtt, version, 1, "commands/valve/open", b"from here", &[]);
    assert_eq!(valve.next().await.payload, "from here");
    stage.produce("commands", Some("valve"), &[("action", "open")], b"from Kafka").await;
    assert_eq!(valve.next().await.payload, "from Kafka");
    mosquitto::publish(tidegate.mqtt, version, 1, "commands/valve/close", b"the last", &[]);
    assert_eq!(valve.next().await.payload, "the last");

    stage.settled(&tidegate, "commands", 3).await;
    let name = stage.topic("commands");
    let own = format!("reason=\"own\",topic=\"{name}\"");
    let own_reversed = format!("topic=\"{name}\",reason=\"own\"");
    let passed_over = "tidegate_source_passed_over_total";
    let passed_over =
        metric(&tidegate, passed_over, &own).await + metric(&tidegate, passed_over, &own_reversed).await;
    assert_eq!(passed_over, 2.0, "what was published here is passed over when it is consumed");
    assert_eq!(metric(&tidegate, "tidegate_sink_returning_total", "sink=\"kafka\"").await, 1.0);
    let mut topic = Topic::open(services::kafka(), &name).await;
    topic.read_to_end(crate::support::PATIENCE).await;
    assert_eq!(topic.records.len(), 3, "what came from Kafka was not sent there again");
}
