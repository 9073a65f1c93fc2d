//! Peers that take their time over a handshake: they are cut, and harm nobody.

use std::time::{Duration, Instant};

use tidegate_broker::mqtt::{ReasonCode, Version};
use tokio::io::AsyncWriteExt as _;

use super::{Client, Everywhere, connect};
use crate::support::tidegate::Settings;
use crate::support::{PATIENCE, eventually};

const TIMEOUT: Duration = Duration::from_secs(1);
/// Between two bytes of a client that dribbles.
const DRIBBLE: Duration = Duration::from_millis(50);

/// Sends bytes one by one until the broker closes; says how long that took.
async fn dribble(address: std::net::SocketAddr, bytes: &[u8]) -> Duration {
    let began = Instant::now();
    let mut client = Client::plain(address).await;
    let mut bytes = bytes.iter();
    let mut tick = tokio::time::interval(DRIBBLE);
    loop {
        tokio::select! {
            () = client.expect_end() => return began.elapsed(),
            _ = tick.tick() => {
                if let Some(byte) = bytes.next() {
                    let _ = client.stream.write_all(&[*byte]).await;
                }
            }
        }
    }
}

#[tokio::test]
async fn a_handshake_that_dribbles_is_cut_at_the_connect_timeout_and_harms_nobody() {
    let everywhere = Everywhere::start(Settings::default().set("TIDEGATE_MQTT_CONNECT_TIMEOUT", "1s")).await;
    // A record of TLS that would be a ClientHello, a request that never ends.
    let hello = [&[0x16, 3, 1, 1, 0, 1, 0, 0, 0xFC, 3, 3][..], &[7; 200]].concat();
    let request = format!("GET / HTTP/1.1\r\nhost: localhost\r\nx: {}", "y".repeat(400));
    let others = async {
        for _ in 0..20 {
            let began = Instant::now();
            let mut client = Client::plain(everywhere.tidegate.mqtt).await;
            client.send(&connect("in a hurry", Version::V5)).await;
            client.expect_connack(ReasonCode::Success).await;
            assert!(began.elapsed() < TIMEOUT, "others wait for nobody");
        }
    };
    let (tls, ws, wss, silent, ()) = tokio::join!(
        dribble(everywhere.tls, &hello),
        dribble(everywhere.ws, request.as_bytes()),
        dribble(everywhere.wss, &hello),
        dribble(everywhere.tls, &[]),
        others,
    );
    for cut in [tls, ws, wss, silent] {
        assert!(cut >= TIMEOUT && cut < PATIENCE / 4, "cut after {cut:?}");
    }
    for transport in ["tls", "ws", "wss"] {
        let failures = format!("tidegate_mqtt_handshake_failures_total{{transport=\"{transport}\"}}");
        eventually("it is counted", PATIENCE, async || {
            (everywhere.metric(&failures).await > 0).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn a_proxy_header_that_dribbles_is_cut_too() {
    let settings = Settings::default()
        .set("TIDEGATE_MQTT_CONNECT_TIMEOUT", "1s")
        .set("TIDEGATE_MQTT_PROXY_PROTOCOL", "v1-v2");
    let everywhere = Everywhere::start(settings).await;
    let header = format!("PROXY UNKNOWN {}", "x".repeat(80));
    let cut = dribble(everywhere.tidegate.mqtt, header.as_bytes()).await;
    assert!(cut >= TIMEOUT && cut < PATIENCE / 4, "cut after {cut:?}");
}
