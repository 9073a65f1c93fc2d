//! Publishing over HTTP: any topic, any bytes, and an answer that means it is on disk.

use serde_json::{Value, json};
use tidegate_broker::record::{Entry, Offset, Qos};

use super::stage::{Setting, Stage};
use crate::support::http::{self, EventStream};

#[tokio::test(flavor = "multi_thread")]
async fn a_publish_is_durable_when_it_is_answered() {
    let (stage, _folder) = Stage::new(Setting::default()).await;
    let _subscriber = EventStream::open(stage.address, "/stream/events?filter=sensors/%23", None).await;
    let path = "/realtime/topic/sensors/%C3%A9tage/temperature?qos=2&retain=true";
    let reply = http::post(stage.address, path, "application/json", br#"{"temp": 23.5}"#).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    let body = reply.json();
    assert_eq!(
        body,
        json!({"status": "sent", "topic": "sensors/étage/temperature", "subscribers": 1, "offset": body["offset"]})
    );
    let offset = Offset(body["offset"].as_u64().unwrap());
    assert!(stage.journal.durable_end() > offset);
    let batch = stage.journal.reader(offset).next().unwrap().unwrap();
    let Some((_, Entry::Record(record))) = batch.entries_from(offset).next() else { panic!("no record") };
    assert_eq!(record.topic.as_str(), "sensors/étage/temperature");
    assert_eq!(record.payload, br#"{"temp": 23.5}"#);
    assert_eq!((record.qos, record.retain), (Qos::ExactlyOnce, true));
    assert_eq!(record.properties.content_type(), Some("application/json"));
}

#[tokio::test(flavor = "multi_thread")]
async fn any_bytes_and_any_topic_go_through() {
    let mut setting = Setting::default();
    setting.config.body_bytes_max = 300 << 10;
    let (stage, _folder) = Stage::new(setting).await;
    let large: Vec<u8> = (0..200 << 10).map(|n: u32| (n * 7 % 251) as u8).collect();
    let all: [(&str, &str, &[u8]); 5] = [
        ("a", "a", b""),
        ("/leading/and/trailing/", "/leading/and/trailing/", b"\x00\xff"),
        ("a%20b/100%25/%3F", "a b/100%/?", b"text"),
        ("iot/sensors", "iot/sensors", "Temperature: 22.5°C".as_bytes()),
        ("large", "large", &large),
    ];
    for (path, topic, payload) in all {
        let path = format!("/realtime/topic/{path}");
        let reply = http::post(stage.address, &path, "application/octet-stream", payload).await;
        assert_eq!((reply.status, &reply.json()["topic"]), (200, &json!(topic)), "{}", reply.text());
        let offset = Offset(reply.json()["offset"].as_u64().unwrap());
        let batch = stage.journal.reader(offset).next().unwrap().unwrap();
        let Some((_, Entry::Record(record))) = batch.entries_from(offset).next() else { panic!("no record") };
        assert_eq!((record.topic.as_str(), record.payload), (topic, payload));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_published_is_refused_by_name() {
    let mut setting = Setting::default();
    setting.config.body_bytes_max = 100;
    let (stage, _folder) = Stage::new(setting).await;
    let refused = async |path: &str, body: &[u8]| -> (u16, Value) {
        let reply = http::post(stage.address, path, "text/plain", body).await;
        (reply.status, reply.json()["error"].clone())
    };
    assert_eq!(refused("/realtime/topic/a/%2B/b", b"x").await, (400, json!("bad_topic")));
    assert_eq!(refused("/realtime/topic/a/%23", b"x").await, (400, json!("bad_topic")));
    assert_eq!(refused("/realtime/topic/a%00b", b"x").await, (400, json!("bad_topic")));
    assert_eq!(refused("/realtime/topic/$SYS/uptime", b"x").await, (400, json!("bad_topic")));
    assert_eq!(refused("/realtime/topic/a?qos=3", b"x").await, (400, json!("bad_qos")));
    assert_eq!(refused("/realtime/topic/a?retain=perhaps", b"x").await, (400, json!("bad_query")));
    assert_eq!(refused("/realtime/topic/a", &[b'x'; 101]).await, (413, json!("too_large")));
    assert_eq!(refused("/nowhere", b"x").await, (404, json!("not_found")));
    let reply = http::get(stage.address, "/realtime/topic/a").await;
    assert_eq!((reply.status, &reply.json()["error"]), (405, &json!("method_not_allowed")));
    assert_eq!(refused("/realtime/topic/a%FF", b"x").await, (400, json!("bad_topic")));
    assert_eq!(stage.journal.durable_end(), Offset(0), "nothing of it was accepted");
}

#[tokio::test(flavor = "multi_thread")]
async fn ingest_publishes_a_json_object_to_its_topic() {
    let mut setting = Setting::default();
    setting.config.ingest_topic = "demo/ingest".into();
    let (stage, _folder) = Stage::new(setting).await;
    let mut stream = EventStream::open(stage.address, "/stream/events?filter=demo/ingest", None).await;
    let body = br#"{"sensor_id":"s1","value":42}"#;
    let reply = http::post(stage.address, "/ingest", "application/json", body).await;
    assert_eq!((reply.status, &reply.json()["status"]), (200, &json!("produced")));
    assert_eq!(reply.json()["topic"], "demo/ingest");
    assert!(stream.next().await.data.ends_with(r#""data":{"sensor_id":"s1","value":42}}"#));
    for body in [&b"[1]"[..], b"{", b"42"] {
        let reply = http::post(stage.address, "/ingest", "application/json", body).await;
        assert_eq!(reply.status, 422);
        assert!(reply.json()["detail"].is_string());
    }

    let mut setting = Setting::default();
    setting.config.ingest_topic = String::new();
    let (stage, _folder) = Stage::new(setting).await;
    let reply = http::post(stage.address, "/ingest", "application/json", b"{}").await;
    assert_eq!(reply.status, 503);
    assert!(reply.text().contains("No produce topic configured"));
}
