//! `/stream/events`: nothing missed, nothing twice, whatever happens to the connection, the reader or the journal.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};
use tidegate_broker::journal::{FullPolicy, Options, StartAt};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::stage::{Setting, Stage};
use crate::support::http::{self, EventStream};
use crate::support::random::Random;
use crate::support::{PATIENCE, eventually, within};

/// Reads `count` readings and checks that they are exactly `expected..expected + count`; returns the last id.
async fn read_numbers(stream: &mut EventStream, expected: u64, count: u64) -> String {
    let mut id = String::new();
    for number in expected..expected + count {
        let event = stream.next().await;
        assert_eq!(event.name, "", "{event:?}");
        let data: Value = serde_json::from_str(&event.data).unwrap();
        assert_eq!(data["data"], number, "{data}");
        assert_eq!(data["offset"].to_string(), event.id);
        id = event.id;
    }
    id
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_tells_the_whole_record() {
    let (stage, _folder) = Stage::new(Setting::default()).await;
    let path = "/stream/events?filter=sensors/%2B/temperature&filter=b/%23&status=off";
    let mut stream = EventStream::open(stage.address, path, None).await;
    stage.publish("sensors/a/humidity", "1").await;
    let offset = stage.publish("sensors/a/temperature", r#"{"temp": 23.50}"#).await;
    stage.publish("b", "Temperature: 22.5°C").await;
    stage.publish("b/c", &b"\xff\x00\n\n"[..]).await;

    let event = stream.next().await;
    assert_eq!(event.id, offset.to_string());
    assert!(event.data.ends_with(r#""encoding":"json","data":{"temp": 23.50}}"#), "{}", event.data);
    let data: Value = serde_json::from_str(&event.data).unwrap();
    assert_eq!(data["topic"], "sensors/a/temperature");
    assert_eq!(data["client"], "device-1");
    assert_eq!((&data["qos"], &data["retain"]), (&json!(1), &json!(false)));
    let time = data["time"].as_str().unwrap();
    assert!(time.len() == 24 && time.ends_with('Z'), "{time}");

    let data: Value = serde_json::from_str(&stream.next().await.data).unwrap();
    assert_eq!((&data["encoding"], &data["data"]), (&json!("text"), &json!("Temperature: 22.5°C")));
    let data: Value = serde_json::from_str(&stream.next().await.data).unwrap();
    assert_eq!((&data["encoding"], &data["data"]), (&json!("base64"), &json!("/wAKCg==")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_resumes_without_gap_or_duplicate_while_records_come() {
    const TOTAL: u64 = 30_000;
    let (stage, _folder) = Stage::new(Setting::default()).await;
    let stage = Arc::new(stage);
    let mut stream = EventStream::open(stage.address, "/stream/events?status=off&from=0", None).await;
    let publishing = tokio::spawn({
        let stage = Arc::clone(&stage);
        async move {
            for first in (0..TOTAL).step_by(500) {
                stage.publish_numbers("numbers", first..first + 500).await;
            }
        }
    });
    let mut random = Random::printed("a_stream_resumes");
    let mut next = 0;
    while next < TOTAL {
        let count = (random.within(1..3_000)).min(TOTAL - next);
        let id = read_numbers(&mut stream, next, count).await;
        next += count;
        stream = EventStream::open(stage.address, "/stream/events?status=off&from=end", Some(&id)).await;
    }
    publishing.await.unwrap();
    stage.publish_numbers("numbers", TOTAL..TOTAL + 1).await;
    read_numbers(&mut stream, TOTAL, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_resumes_after_the_journal_was_opened_again() {
    let folder = tempfile::tempdir().unwrap();
    let stage = Stage::in_folder(folder.path(), Setting::default()).await;
    let mut stream = EventStream::open(stage.address, "/stream/events?status=off", None).await;
    stage.publish_numbers("numbers", 0..100).await;
    let id = read_numbers(&mut stream, 0, 60).await;
    stage.end().await;

    let stage = Stage::in_folder(folder.path(), Setting::default()).await;
    let mut stream = EventStream::open(stage.address, "/stream/events?status=off", Some(&id)).await;
    stage.publish_numbers("numbers", 100..120).await;
    read_numbers(&mut stream, 60, 60).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_begins_where_it_is_told() {
    let (stage, _folder) = Stage::new(Setting::default()).await;
    stage.publish_numbers("numbers", 0..10).await;
    for (query, first) in
        [("from=oldest", 0), ("from=4", 4), ("from=-3", 7), ("from=-99", 0), ("last_event_id=4", 5)]
    {
        let path = format!("/stream/events?status=off&{query}");
        let mut stream = EventStream::open(stage.address, &path, None).await;
        read_numbers(&mut stream, first, 10 - first).await;
    }
    let reply = http::get(stage.address, "/stream/events?from=11").await;
    assert_eq!((reply.status, &reply.json()["error"]), (400, &json!("bad_from")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_stops_reading_harms_nobody_and_misses_nothing() {
    const RECORDS: u64 = 6_000;
    let mut setting = Setting::default();
    setting.config.queue_bytes_max = 128 << 10;
    let (stage, _folder) = Stage::new(setting).await;
    let mut stuck = EventStream::open(stage.address, "/stream/events?status=off", None).await;
    let mut reading = EventStream::open(stage.address, "/stream/events?status=off", None).await;

    // 24 MB: more than the sockets and every queue between hold.
    let padding = "x".repeat(4_000);
    let record =
        |n: u64| ("numbers".to_owned(), Bytes::from(format!("{{\"n\":{n},\"padding\":\"{padding}\"}}")));
    let number = |data: &str| serde_json::from_str::<Value>(data).unwrap()["data"]["n"].as_u64().unwrap();
    for first in (0..RECORDS).step_by(200) {
        stage.publish_all((first..first + 200).map(record)).await;
        for expected in first..first + 200 {
            assert_eq!(number(&reading.next().await.data), expected);
        }
    }
    let (_, health) = stage.health().await;
    assert_eq!(health["gateway"]["catching_up"], 1, "{health}");
    assert!(stage.metric("tidegate_gateway_fell_behind_total").await >= 1);
    for expected in 0..RECORDS {
        assert_eq!(number(&stuck.next().await.data), expected);
    }
    stage.publish_all([record(RECORDS)]).await;
    assert_eq!(number(&stuck.next().await.data), RECORDS);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_trimmed_is_told_once_before_going_on() {
    let mut setting = Setting::default();
    setting.options = Options {
        segment_bytes: 64 << 10,
        max_bytes: 256 << 10,
        tail_bytes: 16 << 10,
        full: FullPolicy::DropOldest,
        ..setting.options
    };
    let (stage, _folder) = Stage::new(setting).await;
    let _held_back = stage.journal.cursor("sink", StartAt::Oldest).unwrap();
    let padding = "x".repeat(1_000);
    for _ in 0..20 {
        stage.publish_all((0..50).map(|_| ("a".to_owned(), Bytes::from(padding.clone())))).await;
    }
    let start = stage.journal.start();
    assert!(start.0 > 3, "the journal trims at 256 KiB");

    let mut stream = EventStream::open(stage.address, "/stream/events?status=off", Some("2")).await;
    let gap = stream.next().await;
    assert_eq!(gap.name, "gap");
    let data: Value = serde_json::from_str(&gap.data).unwrap();
    assert_eq!(data, json!({"from": 3, "to": start.0, "reason": "trimmed"}));
    assert_eq!(stream.next().await.id, start.to_string());

    let mut stream = EventStream::open(stage.address, "/stream/events?status=off", Some(&gap.id)).await;
    assert_eq!(stream.next().await.id, start.to_string());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_id_of_another_journal_begins_anew_and_says_so() {
    let (stage, _folder) = Stage::new(Setting::default()).await;
    stage.publish_numbers("numbers", 0..3).await;
    let mut stream = EventStream::open(stage.address, "/stream/events?status=off", Some("900")).await;
    let gap = stream.next().await;
    assert_eq!(gap.name, "gap");
    assert_eq!(
        serde_json::from_str::<Value>(&gap.data).unwrap(),
        json!({"from": 901, "to": 0, "reason": "another journal"})
    );
    read_numbers(&mut stream, 0, 3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_status_update_moves_the_place_to_resume_from() {
    let mut setting = Setting::default();
    setting.config.status_interval_ms = 50;
    let (stage, _folder) = Stage::new(setting).await;
    let mut stream = EventStream::open(stage.address, "/stream/events?filter=nothing/here", None).await;
    let last = stage.publish_numbers("numbers", 0..500).await;
    let update = loop {
        let event = stream.next().await;
        assert_eq!(event.name, "status_update");
        // The status itself may be half a second old.
        if event.id == last.to_string() && !event.data.contains(r#""timestamp":null"#) {
            break event;
        }
    };
    let data: Value = serde_json::from_str(&update.data).unwrap();
    assert_eq!(data["type"], "status_update");
    assert_eq!(data["data"]["service_name"], "tidegate");
    assert!(data["data"]["connections"].is_array());
    assert!(data["timestamp"].as_str().unwrap().ends_with('Z'));

    let mut stream = EventStream::open(stage.address, "/stream/events?status=message", None).await;
    let update = stream.next().await;
    assert_eq!(update.name, "");
    assert!(update.data.contains("status_update"));
}

#[tokio::test(flavor = "multi_thread")]
async fn too_many_subscribers_and_filters_are_refused_by_name() {
    let mut setting = Setting::default();
    setting.config.subscribers_max = 2;
    setting.config.filters_max = 2;
    let (stage, _folder) = Stage::new(setting).await;
    let first = EventStream::open(stage.address, "/stream/events", None).await;
    let _second = EventStream::open(stage.address, "/stream/events", None).await;
    let reply = http::get(stage.address, "/stream/events").await;
    assert_eq!((reply.status, &reply.json()["error"]), (503, &json!("too_many_subscribers")));
    assert!(reply.header("retry-after").is_some());
    let reply = http::get(stage.address, "/stream/events?filter=a&filter=b&filter=c").await;
    assert_eq!((reply.status, &reply.json()["error"]), (400, &json!("too_many_filters")));
    let reply = http::get(stage.address, "/stream/events?filter=a/%23/b").await;
    assert_eq!((reply.status, &reply.json()["error"]), (400, &json!("bad_filter")));

    drop(first);
    eventually("a place is free again", PATIENCE, async || {
        let (_, health) = stage.health().await;
        (health["gateway"]["event_streams"] == 1).then_some(())
    })
    .await;
    EventStream::open(stage.address, "/stream/events", None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_that_never_ends_loses_its_connection() {
    let mut setting = Setting::default();
    setting.config.header_timeout_ms = 100;
    let (stage, _folder) = Stage::new(setting).await;
    let mut stream = TcpStream::connect(stage.address).await.unwrap();
    stream.write_all(b"GET /health HTTP/1.1\r\nHost: localhost\r\n").await.unwrap();
    let mut rest = Vec::new();
    let read = within("the connection is closed", PATIENCE, stream.read_to_end(&mut rest)).await;
    assert!(read.is_ok() && !rest.starts_with(b"HTTP/1.1 200"), "{rest:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_connection_too_many_is_told_so() {
    let mut setting = Setting::default();
    setting.config.connections_max = 1;
    let (stage, _folder) = Stage::new(setting).await;
    let _stream = EventStream::open(stage.address, "/stream/events", None).await;
    let reply = http::get(stage.address, "/health").await;
    assert_eq!((reply.status, &reply.json()["error"]), (503, &json!("too_many_connections")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_ends_streams_and_a_busy_port_is_one_clear_error() {
    let (stage, _folder) = Stage::new(Setting::default()).await;
    let config = tidegate::gateway::Config { listen: stage.address, ..Default::default() };
    let wiring = tidegate::gateway::Wiring {
        mqtt: None,
        certificates: None,
        journal: stage.journal.clone(),
        publisher: Arc::clone(&stage.publisher) as Arc<dyn tidegate::gateway::Publish>,
        access: Arc::default(),
        operator_token: None,
        parts: tidegate::gateway::Parts { mqtt: stage.mqtt.clone(), sinks: Vec::new(), sources: Vec::new() },
        metrics: None,
    };
    let error = tidegate::gateway::start(config, wiring).await.unwrap_err().to_string();
    assert!(error.contains(&stage.address.to_string()) && error.contains("TIDEGATE_HTTP_LISTEN"), "{error}");
    assert!(!error.contains('\n'));

    let mut stream = TcpStream::connect(stage.address).await.unwrap();
    stream.write_all(b"GET /stream/events HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    let mut begun = [0; 12];
    stream.read_exact(&mut begun).await.unwrap();
    assert_eq!(&begun, b"HTTP/1.1 200");
    let address = stage.address;
    within("the drain ends", PATIENCE, stage.gateway.drain(Duration::from_secs(30))).await;
    let mut rest = Vec::new();
    within("the stream ends", PATIENCE, stream.read_to_end(&mut rest)).await.unwrap();
    assert!(rest.ends_with(b"0\r\n\r\n"), "the body ends in order");
    assert!(TcpStream::connect(address).await.is_err(), "nobody is accepted any more");
}
