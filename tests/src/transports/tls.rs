//! TLS: versions, client certificates and whom they name, certificates that change, and peers that take nothing.

use std::fs;
use std::process::{Command, Stdio};

use rcgen::SanType;
use tidegate_broker::mqtt::{Packet, ReasonCode, Version};

use super::certificates::Authority;
use super::{Everywhere, connect, payload, publish, subscribe};
use crate::support::mosquitto::{self, Subscriber};
use crate::support::process::{self, Signal};
use crate::support::tidegate::{Settings, Tidegate};
use crate::support::{PATIENCE, eventually};

/// Whether `mosquitto_pub` with these arguments is served.
fn is_served(everywhere: &Everywhere, arguments: &[&str]) -> bool {
    let mut command = Command::new("mosquitto_pub");
    command.args([
        "-h",
        "127.0.0.1",
        "-p",
        &everywhere.tls.port().to_string(),
        "-q",
        "1",
        "-t",
        "a",
        "-m",
        "b",
    ]);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    process::spawn(&mut command).wait().unwrap().success()
}

#[tokio::test(flavor = "multi_thread")]
async fn mosquitto_speaks_every_version_with_and_without_a_certificate() {
    let everywhere = Everywhere::start(Settings::default().set("TIDEGATE_AUTH_DEFAULT_RULES", "open")).await;
    everywhere.authority.client("sensor01", Vec::new()).write(everywhere.tidegate.folder(), "client");
    let [ca, cert, key] = ["authority.pem", "client.pem", "client.key"].map(|name| everywhere.file(name));
    let without = vec!["--cafile", &ca];
    let with = vec!["--cafile", &ca, "--cert", &cert, "--key", &key];
    let sent = payload(1 << 20);
    for version in [mosquitto::Version::V311, mosquitto::Version::V5] {
        for tls in ["tlsv1.2", "tlsv1.3"] {
            for arguments in [&without, &with] {
                let arguments = [&arguments[..], &["--tls-version", tls]].concat();
                let mut subscriber = Subscriber::start(everywhere.tls, version, 1, "big", &arguments).await;
                mosquitto::publish(everywhere.tls, version, 1, "big", &sent, &arguments);
                let received = subscriber.next().await;
                assert!(received.payload == sent, "{version:?} {tls}: {} bytes came", received.payload.len());
            }
        }
    }
    assert!(everywhere.metric("tidegate_mqtt_transport_connections_total{transport=\"tls\"}").await >= 16);
}

#[tokio::test]
async fn strangers_certificates_are_refused_and_counted() {
    let everywhere =
        Everywhere::start(Settings::default().set("TIDEGATE_MQTT_TLS_CLIENT_REQUIRED", "true")).await;
    let folder = everywhere.tidegate.folder();
    let stranger = Authority::new("stranger");
    stranger.write(folder);
    stranger.client("sensor01", Vec::new()).write(folder, "forged");
    everywhere.authority.client("sensor01", Vec::new()).write(folder, "client");
    let file = |name| everywhere.file(name);
    let [ca, other, cert, key] = ["authority.pem", "stranger.pem", "client.pem", "client.key"].map(file);
    let [forged, forged_key] = ["forged.pem", "forged.key"].map(file);
    assert!(is_served(&everywhere, &["--cafile", &ca, "--cert", &cert, "--key", &key]));
    assert!(!is_served(&everywhere, &["--cafile", &ca]), "a certificate is required");
    assert!(!is_served(&everywhere, &["--cafile", &ca, "--cert", &forged, "--key", &forged_key]));
    assert!(!is_served(&everywhere, &["--cafile", &other, "--cert", &cert, "--key", &key]));
    assert!(!is_served(&everywhere, &[]), "no TLS where there must be");
    eventually("the refused are counted", PATIENCE, async || {
        let failures = "tidegate_mqtt_handshake_failures_total{transport=\"tls\"}";
        (everywhere.metric(failures).await == 4).then_some(())
    })
    .await;
    everywhere.assert_serves().await;
}

#[tokio::test]
async fn a_certificate_names_its_client() {
    let everywhere = Everywhere::start(Settings::default().set("TIDEGATE_AUTH_ANONYMOUS", "never")).await;
    let ca = everywhere.file("authority.pem");
    let dns = || SanType::DnsName("sensor02.example".try_into().unwrap());
    let uri = || SanType::URI("urn:dev:sensor03".try_into().unwrap());
    let email = || SanType::Rfc822Name("sensor04@example.org".try_into().unwrap());
    let address = || SanType::IpAddress([192, 0, 2, 7].into());
    let check = |common_name: &str, others: Vec<SanType>, expected: bool| {
        everywhere.authority.client(common_name, others).write(everywhere.tidegate.folder(), "client");
        let [cert, key] = ["client.pem", "client.key"].map(|name| everywhere.file(name));
        let served = is_served(&everywhere, &["--cafile", &ca, "--cert", &cert, "--key", &key]);
        assert_eq!(served, expected, "{common_name:?}");
    };
    check("sensor01", Vec::new(), true);
    check("sensor01", vec![dns()], true);
    check("", vec![address(), dns()], true);
    check("", vec![uri()], true);
    check("", vec![email()], true);
    check("", vec![address()], false);
    assert!(!is_served(&everywhere, &["--cafile", &ca]), "who shows none is nobody");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_certificate_is_shown_to_new_connections_and_disturbs_no_old_one() {
    let everywhere = Everywhere::start(Settings::default()).await;
    let folder = everywhere.tidegate.folder();
    let [ca, other] = ["authority.pem", "second.pem"].map(|name| everywhere.file(name));
    let second = Authority::new("second");
    second.write(folder);
    let is_second = || is_served(&everywhere, &["--cafile", &other]);
    let is_first = || is_served(&everywhere, &["--cafile", &ca]);
    let mut old =
        Subscriber::start(everywhere.tls, mosquitto::Version::V5, 1, "still/here", &["--cafile", &ca]).await;
    assert!(is_first() && !is_second());

    second.server().write(folder, "server");
    eventually("the change is seen", PATIENCE, async || is_second().then_some(())).await;
    assert!(!is_first());

    // Half a change: the certificate of one and the key of another.
    let log_before = everywhere.tidegate.log().len();
    everywhere.authority.server().write(folder, "torn");
    fs::copy(folder.join("torn.pem"), folder.join("server.pem")).unwrap();
    eventually("the mistake is told", PATIENCE, async || {
        everywhere.tidegate.log()[log_before..].contains("the certificate is that of before").then_some(())
    })
    .await;
    assert!(is_second() && !is_first());

    fs::copy(folder.join("torn.key"), folder.join("server.key")).unwrap();
    process::send(everywhere.tidegate.pid(), Signal::Hangup);
    everywhere.tidegate.log_has("SIGHUP: the certificate is read again").await;
    eventually("the first authority's certificate is back", PATIENCE, async || is_first().then_some(()))
        .await;
    mosquitto::publish(everywhere.tidegate.mqtt, mosquitto::Version::V5, 1, "still/here", b"yes", &[]);
    assert_eq!(&old.next().await.payload[..], b"yes");
}

#[tokio::test]
async fn a_mistake_with_certificates_is_told_in_one_line_and_ends_the_start() {
    let check = async |variables: &[(&str, &str)], expected: &str| {
        let settings =
            variables.iter().fold(Settings::default(), |settings, (name, value)| settings.set(name, value));
        let mut tidegate = Tidegate::prepare(settings);
        let folder = tidegate.folder();
        let authority = Authority::new("authority");
        authority.write(folder);
        authority.server().write(folder, "server");
        authority.server().write(folder, "other");
        fs::write(folder.join("empty"), "").unwrap();
        tidegate.spawn();
        assert_eq!(tidegate.ended().await.code(), Some(64), "{expected}");
        let log = tidegate.log();
        let lines: Vec<&str> = log.lines().filter(|line| line.starts_with("tidegate: ")).collect();
        assert!(lines.len() == 1 && lines[0].contains(expected), "{expected:?} in {log}");
    };
    let (cert, key) = ("TIDEGATE_MQTT_TLS_CERT_FILE", "TIDEGATE_MQTT_TLS_KEY_FILE");
    let (ca, tls) = ("TIDEGATE_MQTT_TLS_CLIENT_CA_FILE", "TIDEGATE_MQTT_TLS_LISTEN");
    check(&[(cert, "server.pem")], "set mqtt.tls_key_file").await;
    check(&[(key, "server.key")], "set mqtt.tls_cert_file").await;
    check(&[(tls, "127.0.0.1:1")], "mqtt.tls_listen: needs a certificate").await;
    check(&[("TIDEGATE_MQTT_TLS_CLIENT_REQUIRED", "true")], "set mqtt.tls_client_ca_file").await;
    check(&[(cert, "none.pem"), (key, "server.key")], "cannot read a certificate from none.pem: ").await;
    check(&[(cert, "empty"), (key, "server.key")], "empty has no a certificate in PEM").await;
    check(&[(cert, "server.pem"), (key, "server.pem")], "server.pem has no a private key").await;
    check(&[(cert, "server.pem"), (key, "other.key")], "cannot be used: ").await;
    check(&[(cert, "server.pem"), (key, "server.key"), (ca, "empty")], "empty has no a certificate").await;
}

#[tokio::test]
async fn a_subscriber_that_stops_reading_costs_little_and_loses_nothing() {
    const PUBLISHES: u16 = 200;
    const MEMORY_MAX: u64 = 160 << 20;
    let everywhere = Everywhere::start(Settings::default()).await;
    let sent = payload(1 << 20);
    let version = Version::V311;
    let mut subscriber = everywhere.authority.connect(everywhere.tls).await;
    subscriber.send(&connect("stands still", version)).await;
    subscriber.send(&subscribe("flood", version)).await;
    subscriber.until(version, |packet| matches!(packet, Packet::SubAck(_))).await;
    let mut publisher = everywhere.authority.connect(everywhere.tls).await;
    publisher.send(&connect("floods", version)).await;
    for packet_id in 1..=PUBLISHES {
        publisher.send(&publish("flood", &sent, packet_id, version)).await;
        publisher.until(version, |packet| matches!(packet, Packet::PubAck(_))).await;
    }
    let memory = process::peak_memory_bytes(everywhere.tidegate.pid());
    crate::support::report("transports", &format!("a TLS subscriber stood still: {} MiB", memory >> 20));
    assert!(memory < MEMORY_MAX, "{} MiB", memory >> 20);
    let mut received = 0;
    while received < PUBLISHES {
        let mut packet_id = 0;
        subscriber
            .until(version, |packet| {
                let Packet::Publish(publish) = packet else { return false };
                assert!(publish.payload == sent, "what came is what was sent");
                packet_id = publish.packet_id;
                true
            })
            .await;
        received += 1;
        let mut ack = Vec::new();
        tidegate_broker::mqtt::encode::puback(&mut ack, version, packet_id, ReasonCode::Success);
        subscriber.send(&ack).await;
    }
}
