//! `/health` tells the truth about each part, and only what stops acceptance makes a probe fail.

use std::sync::Arc;

use bytes::Bytes;
use serde_json::json;
use tidegate::health::{Lag, Part, State};
use tidegate_broker::journal::{Call, MemoryStorage, StartAt};

use super::stage::{Setting, Stage};
use crate::support::http;

#[tokio::test(flavor = "multi_thread")]
async fn a_healthy_gateway_says_what_existing_clients_read() {
    let (stage, _folder) = Stage::new(Setting::default()).await;
    stage.publish_numbers("a", 0..3).await;
    let (status, health) = stage.health().await;
    assert_eq!(status, 200);
    for (field, expected) in [
        ("status", json!("healthy")),
        ("service", json!("tidegate")),
        ("realtime_enabled", json!(true)),
        ("websocket_enabled", json!(true)),
        ("connections", json!(1)),
        ("message_count", json!(3)),
        ("error_count", json!(0)),
    ] {
        assert_eq!(health[field], expected, "{field} in {health}");
    }
    assert_eq!(health["journal"]["state"], "ok");
    assert_eq!((&health["journal"]["start"], &health["journal"]["durable_end"]), (&json!(0), &json!(3)));
    assert_eq!(http::get(stage.address, "/health/live").await.status, 200);
    assert_eq!(http::get(stage.address, "/health/ready").await.status, 200);

    let root = http::get(stage.address, "/").await.json();
    assert_eq!((&root["service"], &root["status"]), (&json!("tidegate"), &json!("running")));
    assert_eq!((&root["type"], &root["platform"]), (&json!("realtime"), &json!(null)));
    let status = http::get(stage.address, "/realtime/status").await.json();
    assert_eq!(status["service_name"], "tidegate");
    assert_eq!(status["connections"][0]["status"], "connected");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sink_that_is_away_is_degraded_and_told_with_its_lag() {
    let kafka = Part::new("kafka");
    let (stage, _folder) = Stage::new(Setting { sinks: vec![kafka.clone()], ..Setting::default() }).await;
    let cursor = stage.journal.cursor("kafka", StartAt::Oldest).unwrap();
    let last = stage.publish_numbers("a", 0..50).await;
    kafka.update(|report| {
        report.state = State::Down;
        report.detail = Some("no broker answers at 127.0.0.1:9".into());
        report.lag = Some(Lag { entries: 50, age_ms: 1_234 });
        report.rejected = 2;
    });
    let (status, health) = stage.health().await;
    assert_eq!((status, &health["status"]), (200, &json!("degraded")));
    let sink = &health["sinks"][0];
    assert_eq!((&sink["name"], &sink["state"]), (&json!("kafka"), &json!("down")));
    assert_eq!(sink["detail"], "no broker answers at 127.0.0.1:9");
    assert_eq!(sink["lag"], json!({"entries": 50, "age_ms": 1_234}));
    assert_eq!((&sink["rejected"], &health["error_count"]), (&json!(2), &json!(2)));
    assert_eq!(health["journal"]["blocking_cursor"], "kafka");
    assert_eq!(health["journal"]["cursors"][0]["lag_entries"], 50);
    assert_eq!(http::get(stage.address, "/health/ready").await.status, 200);
    assert_eq!(stage.metric("tidegate_journal_cursor_lag_entries{cursor=\"kafka\"}").await, 50);

    kafka.set(State::Up, None);
    cursor.advance(last.plus(1));
    let (_, health) = stage.health().await;
    assert_eq!((&health["status"], &health["journal"]["blocking_cursor"]), (&json!("healthy"), &json!(null)));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_its_listener_the_appliance_is_unhealthy() {
    let (stage, _folder) = Stage::new(Setting::default()).await;
    stage.mqtt.set(State::Failed, Some("the shard ended".into()));
    let (status, health) = stage.health().await;
    assert_eq!((status, &health["status"]), (503, &json!("unhealthy")));
    assert_eq!(health["mqtt"]["detail"], "the shard ended");
    assert_eq!(http::get(stage.address, "/health/ready").await.status, 503);
    assert_eq!(http::get(stage.address, "/health/live").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_journal_refuses_publishes_and_says_who_holds_it() {
    let mut setting = Setting::default();
    setting.options.segment_bytes = 64 << 10;
    setting.options.max_bytes = 256 << 10;
    let (stage, _folder) = Stage::new(setting).await;
    let cursor = stage.journal.cursor("postgres", StartAt::Oldest).unwrap();
    let body = Bytes::from(vec![b'x'; 10_000]);
    let refused = loop {
        let reply = http::post(stage.address, "/realtime/topic/a", "text/plain", &body).await;
        if reply.status != 200 {
            break reply;
        }
        assert!(stage.journal.durable_end().0 < 100, "256 KiB hold no hundred records of 10 kB");
    };
    assert_eq!((refused.status, &refused.json()["error"]), (503, &json!("journal_full")));
    assert!(refused.header("retry-after").is_some());
    let (status, health) = stage.health().await;
    assert_eq!((status, &health["journal"]["state"]), (503, &json!("full")), "{health}");
    assert!(health["journal"]["detail"].as_str().unwrap().contains("postgres"), "{health}");
    assert_eq!(http::get(stage.address, "/health/ready").await.status, 503);
    assert_eq!(stage.metric("tidegate_journal_full").await, 1);

    cursor.advance(stage.journal.durable_end());
    crate::support::eventually("the journal accepts again", crate::support::PATIENCE, async || {
        let reply = http::post(stage.address, "/realtime/topic/a", "text/plain", b"x").await;
        (reply.status == 200).then_some(())
    })
    .await;
    assert_eq!(stage.health().await.0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_journal_is_told_and_what_is_durable_still_streams() {
    let storage = MemoryStorage::default();
    let stage = Stage::on(Arc::new(storage.clone()), Setting::default()).await;
    stage.publish_numbers("a", 0..5).await;
    storage.fail(Some(Call::Sync), 1);
    let reply = http::post(stage.address, "/realtime/topic/a", "text/plain", b"5").await;
    assert_eq!((reply.status, &reply.json()["error"]), (503, &json!("journal_failed")));
    let (status, health) = stage.health().await;
    assert_eq!((status, &health["journal"]["state"]), (503, &json!("failed")));
    assert!(health["journal"]["detail"].as_str().unwrap().contains("restart"), "{health}");
    assert_eq!(stage.metric("tidegate_journal_failed").await, 1);
    let mut stream = http::EventStream::open(stage.address, "/stream/events?from=oldest", None).await;
    for number in 0..5 {
        assert!(stream.next().await.data.ends_with(&format!("\"data\":{number}}}")));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_have_help_and_type_and_numbers() {
    let part = Part::new("kafka");
    let (stage, _folder) = Stage::new(Setting { sinks: vec![part], ..Setting::default() }).await;
    stage.publish_numbers("a", 0..7).await;
    let reply = http::get(stage.address, "/metrics").await;
    assert!(reply.header("content-type").unwrap().starts_with("text/plain; version=0.0.4"));
    let mut family = String::new();
    for line in reply.text().lines() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            family = help.split(' ').next().unwrap().to_owned();
            continue;
        }
        if let Some(kind) = line.strip_prefix("# TYPE ") {
            let (name, kind) = kind.split_once(' ').unwrap();
            assert_eq!(name, family);
            assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
            continue;
        }
        let (name, value) = line.rsplit_once(' ').unwrap();
        assert_eq!(name.split('{').next().unwrap(), family, "{line}");
        value.parse::<u64>().unwrap();
    }
    assert_eq!(stage.metric("tidegate_journal_durable_end_offset").await, 7);
    assert_eq!(stage.metric("tidegate_publishes_accepted_total").await, 7);
}
