//! `$SYS`, as stock clients and others see it: values at once and as they change, events, and none of it stored.

use tidegate_broker::mqtt::{Connect, Version};
use tidegate_broker::record::Qos;

use super::support::mqtt::Received;
use super::support::raw::Raw;
use super::support::tidegate::{Settings, Tidegate};

/// The next publish to a topic that `is` wanted.
fn next(client: &mut Raw, is: impl Fn(&str) -> bool) -> (String, String, bool) {
    loop {
        match client.next() {
            Some(Received::Publish { topic, payload, retain, qos: Qos::AtMostOnce, .. }) if is(&topic) => {
                return (topic, String::from_utf8(payload.to_vec()).unwrap(), retain);
            }
            Some(Received::Publish { qos: Qos::AtMostOnce, .. }) => {}
            other => panic!("instead of a value comes {other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn values_and_events_reach_who_subscribes_and_nothing_else() {
    let mut tidegate = Tidegate::start(Settings::default().set("TIDEGATE_MQTT_SYS_INTERVAL", "1s")).await;
    let mut watcher = Raw::connect(tidegate.mqtt, &Connect::new(Version::V5, "watcher"));
    watcher.subscribe(&["$SYS/#"], Qos::AtLeastOnce);
    let (_, version, retain) = next(&mut watcher, |topic| topic == "$SYS/broker/version");
    assert!(version.starts_with("tidegate version "), "{version}");
    assert!(retain, "it was there before");
    let connect = Connect { username: Some("anna"), ..Connect::new(Version::V311, "dev/1") };
    let guest = Raw::connect(tidegate.mqtt, &connect);
    drop(guest);
    for what in ["connected", "disconnected"] {
        let (topic, event, retain) = next(&mut watcher, |topic| topic.contains("/clients/dev"));
        assert_eq!(
            (topic.as_str(), retain),
            (format!("$SYS/brokers/clients/dev%2F1/{what}").as_str(), false)
        );
        let event: serde_json::Value = serde_json::from_str(&event).unwrap();
        assert_eq!(event["client_id"], "dev/1");
        assert_eq!(event["address"], "127.0.0.1");
        assert_eq!(event["protocol_version"], "3.1.1");
    }
    let (_, uptime, retain) = next(&mut watcher, |topic| topic == "$SYS/broker/uptime");
    assert!(uptime.ends_with(" seconds") && !retain, "{uptime}");
    let (_, load, _) = next(&mut watcher, |topic| topic == "$SYS/broker/load/connections/1min");
    assert!(load.parse::<f64>().unwrap() > 0.0, "{load}");
    let heap = next(&mut watcher, |topic| topic == "$SYS/broker/heap/current size").1;
    assert!(heap.parse::<u64>().unwrap() > 1 << 20, "{heap}");
    drop(watcher);
    assert!(tidegate.drain().await.success());
    let info = std::process::Command::new(Tidegate::program())
        .args(["journal", "info"])
        .env("TIDEGATE_DATA_DIR", tidegate.folder().join("data"))
        .output()
        .unwrap();
    assert!(info.status.success(), "{}", String::from_utf8_lossy(&info.stderr));
    let mut files = Vec::new();
    for file in std::fs::read_dir(tidegate.folder().join("data/journal")).unwrap() {
        files.extend(std::fs::read(file.unwrap().path()).unwrap());
    }
    assert!(!files.windows(11).any(|bytes| bytes == b"$SYS/broker"), "nothing of it is stored");
}
