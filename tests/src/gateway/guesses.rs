//! Wrong passwords and tokens over HTTP, with the program itself: one count with MQTT, and what it means for others.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;
use tidegate_broker::mqtt::{Connect, Version};

use super::rules::{appliance, basic, get, metric, operator};
use crate::support::mqtt::Received;
use crate::support::raw::Raw;
use crate::support::tidegate::{Settings, Tidegate};
use crate::support::{PATIENCE, eventually};

/// Wrong guesses that this machine has for nothing.
const FREE: u64 = 10;

/// Tries to log in over MQTT as `d1`, which must be refused.
async fn mqtt_refuses(tidegate: &Tidegate, password: &'static str) {
    let address = tidegate.mqtt;
    let knock = move || {
        let connect = Connect {
            username: Some("d1"),
            password: Some(password.as_bytes()),
            ..Connect::new(Version::V5, "c")
        };
        Raw::knock(address, &connect).1
    };
    match tokio::task::spawn_blocking(knock).await.unwrap() {
        Some(Received::ConnAck { reason, .. }) if reason.is_failure() => {}
        other => panic!("{password} is answered {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn guesses_over_http_and_mqtt_have_one_count() {
    let tidegate = appliance(Settings::default(), None).await;
    let (address, right, token) = (tidegate.http, basic("d1"), operator(&tidegate));
    let wrong = format!("Basic {}", STANDARD.encode("d1:guess"));
    for turn in 0..FREE / 2 {
        mqtt_refuses(&tidegate, "guess").await;
        let guess = if turn % 2 == 0 { wrong.as_str() } else { "Bearer guess" };
        let reply = get(address, "/", Some(guess)).await;
        assert_eq!((reply.status, &reply.json()["error"]), (401, &json!("bad_credentials")), "{guess}");
    }
    let reply = get(address, "/", Some(&wrong)).await;
    assert_eq!((reply.status, reply.header("retry-after")), (429, Some("1")));
    assert_eq!(reply.json()["error"], "too_many_failures");
    assert!(reply.json()["detail"].as_str().unwrap().contains("Retry-After"));
    assert_eq!(metric(&tidegate, "tidegate_mqtt_logins_failed_total").await, FREE + 1);
    assert_eq!(get(address, "/", Some(&right)).await.status, 200, "who knows the password does not wait");
    assert_eq!(get(address, "/", None).await.status, 200, "nor who needs none");

    // So many that they are not looked at any more: over MQTT neither.
    eventually("a guess is refused unchecked", PATIENCE, async || {
        assert_eq!(get(address, "/health", Some(&wrong)).await.status, 200, "probes are answered");
        (metric(&tidegate, "tidegate_mqtt_logins_unchecked_total").await > 0).then_some(())
    })
    .await;
    let reply = get(address, "/", Some(&right)).await;
    assert_eq!((reply.status, reply.header("retry-after").is_some()), (429, true), "{}", reply.text());
    let unchecked = metric(&tidegate, "tidegate_mqtt_logins_unchecked_total").await;
    mqtt_refuses(&tidegate, "secret").await;
    assert_eq!(metric(&tidegate, "tidegate_mqtt_logins_unchecked_total").await, unchecked + 1);
    assert_eq!(get(address, "/", Some(&token)).await.status, 200, "an operator is not locked out");
    eventually("it ends", PATIENCE, async || {
        (get(address, "/", Some(&right)).await.status == 200).then_some(())
    })
    .await;
}
