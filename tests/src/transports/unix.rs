//! The Unix socket, and the end of connections of every kind.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Stdio};

use tidegate_broker::mqtt::{Packet, ReasonCode, Version};
use tokio::net::UnixStream;

use super::{Client, Everywhere, connect, payload, publish, subscribe};
use crate::support::process;
use crate::support::tidegate::Settings;

#[tokio::test]
async fn mosquitto_and_large_payloads_go_through_a_unix_socket() {
    let mut everywhere = Everywhere::start(Settings::default().set("TIDEGATE_MQTT_UNIX_MODE", "0600")).await;
    let path = everywhere.file("mqtt.sock");
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let arguments = ["--unix", &path, "-q", "2", "-t", "a", "-m", "b", "-V", "mqttv5"];
    let mut mosquitto = Command::new("mosquitto_pub");
    assert!(process::spawn(mosquitto.args(arguments).stdin(Stdio::null())).wait().unwrap().success());

    let sent = payload(1 << 20);
    let stream = UnixStream::connect(&path).await.unwrap();
    let mut client = Client { stream, received: Vec::new() };
    client.send(&connect("unix", Version::V5)).await;
    client.send(&subscribe("big", Version::V5)).await;
    client.send(&publish("big", &sent, 7, Version::V5)).await;
    client
        .until(Version::V5, |packet| match packet {
            Packet::Publish(publish) => {
                assert!(publish.payload == sent, "what came is what was sent");
                true
            }
            _ => false,
        })
        .await;

    // Killed, it leaves its file behind; the next start takes its place.
    everywhere.tidegate.crash_and_restart().await;
    UnixStream::connect(&path).await.unwrap();
    assert!(everywhere.tidegate.drain().await.success());
    assert!(!fs::exists(&path).unwrap(), "a drain takes the file along");
}

#[tokio::test]
async fn a_drain_tells_the_clients_of_every_transport() {
    let mut everywhere = Everywhere::start(Settings::default()).await;
    let path = everywhere.file("mqtt.sock");
    let mut tcp = Client::plain(everywhere.tidegate.mqtt).await;
    let mut tls = everywhere.authority.connect(everywhere.tls).await;
    let stream = UnixStream::connect(&path).await.unwrap();
    let mut unix = Client { stream, received: Vec::new() };
    let mut web = super::web::open(&format!("ws://{}", everywhere.ws), "mqtt").await;
    let mut http = super::web::open(&format!("ws://{}/mqtt", everywhere.tidegate.http), "mqtt").await;
    tcp.send(&connect("tcp", Version::V5)).await;
    tcp.expect_connack(ReasonCode::Success).await;
    tls.send(&connect("tls", Version::V5)).await;
    tls.expect_connack(ReasonCode::Success).await;
    unix.send(&connect("unix", Version::V5)).await;
    unix.expect_connack(ReasonCode::Success).await;
    web.connect("web").await;
    http.connect("http").await;
    let told = |packet: &Packet<'_>| {
        let Packet::Disconnect(disconnect) = packet else { return false };
        assert_eq!(disconnect.reason, ReasonCode::ServerShuttingDown);
        true
    };
    let ((), (), (), web, http, status) = tokio::join!(
        tcp.until(Version::V5, told),
        tls.until(Version::V5, told),
        unix.until(Version::V5, told),
        web.farewell(),
        http.farewell(),
        everywhere.tidegate.drain(),
    );
    assert_eq!([web, http], [(ReasonCode::ServerShuttingDown, 1000); 2]);
    assert!(status.success(), "{status}");
}
