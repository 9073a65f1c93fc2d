//! The PROXY protocol: who the client is counts, and only proxies are believed.

use tidegate_broker::mqtt::{ReasonCode, Version};

use super::{Client, Everywhere, connect};
use crate::support::tidegate::Settings;
use crate::support::{PATIENCE, eventually};

const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

fn v2(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
    [SIGNATURE, &[command, family], &(body.len() as u16).to_be_bytes(), body].concat()
}

fn behind_proxy() -> Settings {
    Settings::default().set("TIDEGATE_MQTT_PROXY_PROTOCOL", "v1-v2")
}

#[tokio::test]
async fn the_client_that_is_carried_counts_and_not_the_proxy() {
    let everywhere = Everywhere::start(behind_proxy()).await;
    let here: &[u8] = b"PROXY TCP4 127.0.0.1 127.0.0.1 1 2\r\n";
    let there: &[u8] = b"PROXY TCP4 192.0.2.7 127.0.0.1 1 2\r\n";
    let ipv4 = [192, 0, 2, 7, 127, 0, 0, 1, 0, 1, 0, 2];
    let extended = [&ipv4[..], &[0x04, 0, 2, 9, 9, 0x20, 0, 1, 7]].concat();
    let loopback = [&ipv4[4..8], &ipv4[4..]].concat();
    let headers = [
        (here.to_vec(), ReasonCode::Success),
        (there.to_vec(), ReasonCode::NotAuthorized),
        (b"PROXY TCP6 2001:db8::7 ::1 1 2\r\n".to_vec(), ReasonCode::NotAuthorized),
        (b"PROXY UNKNOWN\r\n".to_vec(), ReasonCode::Success),
        (v2(0x21, 0x11, &ipv4), ReasonCode::NotAuthorized),
        (v2(0x21, 0x11, &extended), ReasonCode::NotAuthorized),
        (v2(0x21, 0x11, &loopback), ReasonCode::Success),
        (v2(0x20, 0x00, &[]), ReasonCode::Success),
    ];
    for (header, expected) in headers {
        let all = [header.clone(), connect("carried", Version::V5)].concat();
        // At once, byte by byte, and the header before the rest.
        for pieces in [vec![&all[..]], all.chunks(1).collect(), vec![&header[..], &all[header.len()..]]] {
            let mut client = Client::plain(everywhere.tidegate.mqtt).await;
            for piece in pieces {
                client.send(piece).await;
            }
            client.expect_connack(expected).await;
        }
    }
}

#[tokio::test]
async fn a_connection_without_a_header_that_is_right_is_closed() {
    let everywhere = Everywhere::start(behind_proxy()).await;
    let wrong: [Vec<u8>; 8] = [
        connect("no header", Version::V5),
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        b"PROXY TCP4 192.0.2.7 127.0.0.1 1\r\n".to_vec(),
        b"PROXY TCP4 2001:db8::7 ::1 1 2\r\n".to_vec(),
        [b"PROXY TCP4 ".as_slice(), &[b'1'; 120]].concat(),
        v2(0x31, 0x11, &[0; 12]),
        v2(0x21, 0x11, &[0; 4]),
        v2(0x20, 0x00, &[0; 60_000]),
    ];
    for address in [everywhere.tidegate.mqtt, everywhere.tls, everywhere.ws] {
        for bytes in &wrong {
            let mut client = Client::plain(address).await;
            // The broker may have closed already.
            let _ = tokio::io::AsyncWriteExt::write_all(&mut client.stream, bytes).await;
            client.expect_end().await;
            assert!(client.received.is_empty(), "{bytes:x?} is answered {:x?}", client.received);
        }
    }
    let failures = "tidegate_mqtt_handshake_failures_total{transport=\"tcp\"}";
    eventually("all are counted", PATIENCE, async || (everywhere.metric(failures).await == 8).then_some(()))
        .await;
}

#[tokio::test]
async fn a_header_from_somebody_who_is_no_proxy_is_not_believed() {
    let everywhere =
        Everywhere::start(behind_proxy().set("TIDEGATE_MQTT_PROXY_FROM", "192.0.2.0/24,::1")).await;
    let mut client = Client::plain(everywhere.tidegate.mqtt).await;
    let spoof = [b"PROXY TCP4 127.0.0.1 127.0.0.1 1 2\r\n".to_vec(), connect("spoof", Version::V5)].concat();
    let _ = tokio::io::AsyncWriteExt::write_all(&mut client.stream, &spoof).await;
    client.expect_end().await;
    assert!(client.received.is_empty(), "{:x?}", client.received);
    everywhere.tidegate.log_has("127.0.0.1 is not in mqtt.proxy_from").await;
}
