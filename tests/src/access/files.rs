//! The files in use: what a device may by default, and files that change while the program runs.

use super::{credentials, publish, write_users};
use crate::support::mosquitto::{Subscriber, Version};
use crate::support::process::{self, Signal};
use crate::support::tidegate::{Settings, Tidegate};
use crate::support::{PATIENCE, eventually, http};

/// A running program with the user `d1`, whose password is `secret`.
async fn with_user() -> Tidegate {
    let mut tidegate = Tidegate::prepare(Settings::default());
    let data = tidegate.folder().join("data");
    std::fs::create_dir_all(&data).unwrap();
    write_users(&data.join("passwords"), &["d1"]);
    tidegate.spawn();
    tidegate.ready().await;
    tidegate
}

#[tokio::test]
async fn by_default_a_device_has_its_own_topics() {
    let tidegate = with_user().await;
    let device = [credentials(Some("d1")), vec!["-V", "mqttv5", "-q", "1", "-d"]].concat();
    let mut watcher = Subscriber::start(tidegate.mqtt, Version::V5, 1, "#", &[]).await;
    let mut reader = Subscriber::start(tidegate.mqtt, Version::V5, 1, "#", &credentials(Some("d1"))).await;
    for (topic, allowed) in [
        ("sensors/d1/t", true),
        ("sensors/d2/t", false),
        ("devices/d1/status", true),
        ("commands/d1/reboot", false),
        ("alerts/high", false),
    ] {
        let (_, said) = publish(tidegate.mqtt, topic, "from d1", &device);
        assert_eq!(!said.contains("(Mid: 1, RC:135)"), allowed, "{topic}: {said}");
        if allowed {
            assert_eq!(watcher.next().await.topic, topic);
        }
    }
    for topic in ["commands/d2/reboot", "sensors/d1/t", "commands/d1/reboot", "alerts/high"] {
        assert!(publish(tidegate.mqtt, topic, "from here", &[]).0);
        assert_eq!(watcher.next().await.topic, topic);
    }
    assert_eq!(reader.next().await.topic, "commands/d1/reboot");
    assert_eq!(reader.next().await.topic, "alerts/high");

    let log = tidegate.log_has("sensors/d2/t").await;
    let line = log.lines().find(|line| line.contains("sensors/d2/t")).unwrap();
    assert!(line.contains("denied") && line.contains("d1") && line.contains("auth.acl_file"), "{line}");
    eventually("the metrics tell of it", PATIENCE, async || {
        let metrics = http::get(tidegate.http, "/metrics").await;
        let text = String::from_utf8_lossy(&metrics.body).into_owned();
        text.contains("tidegate_mqtt_publishes_denied_total 3\n").then_some(())
    })
    .await;
}

#[tokio::test]
async fn changed_files_hold_at_once_and_bad_ones_change_nothing() {
    let mut tidegate = with_user().await;
    let data = tidegate.folder().join("data");
    let mut reader = Subscriber::start(tidegate.mqtt, Version::V5, 0, "#", &credentials(Some("d1"))).await;

    // Seen by itself.
    std::fs::write(data.join("acl"), "topic #\nuser d1\ntopic read news\n").unwrap();
    tidegate.log_has("changed: rules are read again").await;
    for topic in ["alerts/high", "news"] {
        assert!(publish(tidegate.mqtt, topic, "x", &[]).0);
    }
    assert_eq!(reader.next().await.topic, "news");

    // On SIGHUP.
    std::fs::write(data.join("acl"), "topic #\nuser d1\ntopic read other\n").unwrap();
    process::send(tidegate.pid(), Signal::Hangup);
    tidegate.log_has("SIGHUP: rules are read again").await;
    for topic in ["news", "other"] {
        assert!(publish(tidegate.mqtt, topic, "x", &[]).0);
    }
    assert_eq!(reader.next().await.topic, "other");

    // With a mistake.
    std::fs::write(data.join("acl"), "topic #\nuser d1\ntopic read news\ntopic raed more\n").unwrap();
    process::send(tidegate.pid(), Signal::Hangup);
    let log = tidegate.log_has("the rules are those of before").await;
    assert!(log.contains("line 4: \"raed\" is none of read"), "{log}");
    for topic in ["news", "other"] {
        assert!(publish(tidegate.mqtt, topic, "x", &[]).0);
    }
    assert_eq!(reader.next().await.topic, "other");

    // A user removed stays connected and cannot come again.
    write_users(&data.join("passwords"), &["d2"]);
    tidegate.log_has("changed: users are read again").await;
    assert!(!publish(tidegate.mqtt, "x", "x", &credentials(Some("d1"))).0);
    assert!(publish(tidegate.mqtt, "other", "x", &credentials(Some("d2"))).0);
    assert!(publish(tidegate.mqtt, "other", "x", &[]).0);
    assert_eq!(reader.next().await.topic, "other");
    tidegate.assert_alive();
}
