//! `/ws` and `/ws/events`: the envelope existing clients speak, resuming, and who gets what.

use std::net::SocketAddr;
use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

use super::stage::{Setting, Stage};
use crate::support::{PATIENCE, eventually, http, within};

pub(super) struct Client(WebSocketStream<MaybeTlsStream<TcpStream>>);

impl Client {
    /// Connects and returns the welcome with it.
    async fn open(address: SocketAddr, path: &str) -> (Self, Value) {
        Self::open_as(address, path, None).await
    }

    /// Connects with this header `Authorization`.
    pub(super) async fn open_as(
        address: SocketAddr,
        path: &str,
        authorization: Option<&str>,
    ) -> (Self, Value) {
        let mut request = format!("ws://{address}{path}").into_client_request().unwrap();
        if let Some(value) = authorization {
            request.headers_mut().insert("authorization", value.parse().unwrap());
        }
        let connected =
            within("the WebSocket connects", PATIENCE, tokio_tungstenite::connect_async(request)).await;
        let mut client = Self(connected.unwrap().0);
        let welcome = client.next().await;
        (client, welcome)
    }

    pub(super) async fn message(&mut self) -> Message {
        within("a frame arrives", PATIENCE, self.0.next()).await.unwrap().unwrap()
    }

    /// The next text frame, with every field of the envelope.
    pub(super) async fn next(&mut self) -> Value {
        loop {
            if let Message::Text(text) = self.message().await {
                let frame: Value = serde_json::from_str(&text).unwrap();
                let fields = frame.as_object().unwrap();
                assert_eq!(fields.len(), 6, "{frame}");
                assert_eq!(frame["message_id"].as_str().unwrap().len(), 36);
                assert!(frame["timestamp"].as_str().unwrap().ends_with('Z'));
                assert!(fields.contains_key("correlation_id") && fields.contains_key("response_to"));
                return frame;
            }
        }
    }

    async fn send(&mut self, frame: Value) {
        self.0.send(Message::text(frame.to_string())).await.unwrap();
    }

    pub(super) async fn ask(&mut self, frame: Value) -> Value {
        self.send(frame).await;
        self.next().await
    }

    pub(super) async fn subscribe(&mut self, payload: Value) -> Value {
        let confirmed = self.ask(json!({"message_type": "subscribe", "payload": payload})).await;
        assert_eq!(confirmed["message_type"], "subscription_confirmed", "{confirmed}");
        confirmed
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_envelope_is_what_existing_clients_speak() {
    let (stage, _folder) = Stage::new(Setting::default()).await;
    let (mut client, welcome) = Client::open(stage.address, "/ws").await;
    assert_eq!(welcome["message_type"], "connection_established");
    assert!(welcome["payload"]["client_id"].as_str().unwrap().starts_with("client_"));
    assert!(welcome["payload"]["connection_id"].is_u64());
    assert!(welcome["payload"]["server_time"].as_str().unwrap().ends_with('Z'));

    let pong = client.ask(json!({"message_type": "ping", "payload": {}, "message_id": "p1"})).await;
    assert_eq!((&pong["message_type"], &pong["response_to"]), (&json!("pong"), &json!("p1")));
    assert!(pong["payload"]["timestamp"].is_string());

    let errors = [
        (json!({"message_type": "sing", "message_id": "e1"}), "Unknown message type: sing"),
        (json!({"message_type": "subscribe", "message_id": "e1"}), "Topic is required"),
        (json!({"message_type": "subscribe", "payload": {"topic": "a/#/b"}, "message_id": "e1"}), "wildcard"),
        (
            json!({"message_type": "subscribe", "payload": {"topic": "$share/g/a"}, "message_id": "e1"}),
            "share",
        ),
        (
            json!({"message_type": "subscribe", "payload": {"topic": "a", "from": "noon"}, "message_id": "e1"}),
            "place to begin",
        ),
        (json!({"message_type": "agent_request", "payload": {}, "message_id": "e1"}), "Query is required"),
    ];
    for (request, expected) in errors {
        let error = client.ask(request.clone()).await;
        assert_eq!(
            (&error["message_type"], &error["response_to"]),
            (&json!("error"), &json!("e1")),
            "{request}"
        );
        assert!(error["payload"]["error"].as_str().unwrap().contains(expected), "{error}");
    }
    client.0.send(Message::text("no json")).await.unwrap();
    assert_eq!(client.next().await["payload"]["error"], "Invalid JSON format");
    client.0.send(Message::binary(&b"\x00"[..])).await.unwrap();
    assert_eq!(client.next().await["message_type"], "error");

    let gone = client
        .ask(json!({"message_type": "unsubscribe", "payload": {"topic": "never"}, "message_id": "u1"}))
        .await;
    assert_eq!(
        (&gone["message_type"], &gone["response_to"]),
        (&json!("unsubscription_confirmed"), &json!("u1"))
    );
    assert_eq!(gone["payload"], json!({"topic": "never"}));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_socket_that_only_listens_gets_every_record_as_an_event() {
    let (stage, _folder) = Stage::new(Setting::default()).await;
    let (mut client, _) = Client::open(stage.address, "/ws").await;
    let marker = r#"{"contract_test":true,"marker_id":"ct-0123456789ab","ts":1.5,"value":42}"#;
    let offset = stage.publish("demo/readings", marker).await;
    let frame = client.next().await;
    assert_eq!(frame["message_type"], "event");
    let event = &frame["payload"];
    assert_eq!(event["event_type"], "data_processed");
    assert_eq!(event["source_service"], "tidegate");
    assert_eq!(event["data"]["topic"], "demo/readings");
    assert_eq!(event["data"]["message"], serde_json::from_str::<Value>(marker).unwrap());
    assert_eq!(event["data"]["payload"], marker);
    assert_eq!(event["data"]["offset"], offset.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscribed_socket_gets_what_it_subscribed_once() {
    let (stage, _folder) = Stage::new(Setting::default()).await;
    let (mut client, _) = Client::open(stage.address, "/ws").await;
    let confirmed = client.subscribe(json!({"topic": "sensors/+/temperature"})).await;
    assert_eq!(confirmed["payload"]["topic"], "sensors/+/temperature");
    assert_eq!(confirmed["payload"]["subscriber_count"], 1);
    client.subscribe(json!({"topic": "sensors/#"})).await;
    stage.publish("other", "0").await;
    let offset = stage.publish("sensors/a/temperature", "21.5").await;
    stage.publish("sensors/a/humidity", "text").await;
    let frame = client.next().await;
    assert_eq!(frame["message_type"], "topic_message");
    assert_eq!(frame["payload"]["topic"], "sensors/a/temperature");
    assert_eq!(frame["payload"]["data"], 21.5);
    assert_eq!(frame["payload"]["offset"], offset.0);
    assert_eq!(frame["payload"]["encoding"], "json");
    let frame = client.next().await;
    assert_eq!((&frame["payload"]["data"], &frame["payload"]["encoding"]), (&json!("text"), &json!("text")));

    for topic in ["sensors/+/temperature", "sensors/#"] {
        let request = json!({"message_type": "unsubscribe", "payload": {"topic": topic}});
        assert_eq!(client.ask(request).await["message_type"], "unsubscription_confirmed");
    }
    stage.publish("sensors/a/temperature", "22").await;
    assert_eq!(client.ask(json!({"message_type": "ping"})).await["message_type"], "pong");
}

#[tokio::test(flavor = "multi_thread")]
async fn ws_events_gets_everything_until_it_unsubscribes_events() {
    let (stage, _folder) = Stage::new(Setting::default()).await;
    let (mut client, _) = Client::open(stage.address, "/ws/events").await;
    let confirmed = client.next().await;
    assert_eq!(confirmed["message_type"], "subscription_confirmed");
    assert_eq!(confirmed["payload"]["topic"], "events");
    client.subscribe(json!({"topic": "sensors/#"})).await;
    stage.publish("sensors/a", "1").await;
    stage.publish("other", "2").await;
    assert_eq!(client.next().await["message_type"], "topic_message");
    assert_eq!(client.next().await["message_type"], "event");
    client.ask(json!({"message_type": "unsubscribe", "payload": {"topic": "events"}})).await;
    stage.publish("other", "3").await;
    stage.publish("sensors/a", "4").await;
    assert_eq!(client.next().await["payload"]["data"], 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscription_resumes_behind_the_last_record_and_repeats_nothing_of_others() {
    let (stage, _folder) = Stage::new(Setting::default()).await;
    for n in 0..2_000_u64 {
        let topic = if n % 2 == 0 { "even" } else { "odd" };
        stage.publish_all([(topic.to_owned(), n.to_string().into())]).await;
    }
    let (mut client, _) = Client::open(stage.address, "/ws").await;
    client.subscribe(json!({"topic": "even", "last_offset": 999})).await;
    for n in (1_000..2_000_u64).step_by(2) {
        assert_eq!(client.next().await["payload"]["data"], n);
    }
    client.subscribe(json!({"topic": "#", "from": 1_900})).await;
    for n in (1_901..2_000_u64).step_by(2) {
        assert_eq!(client.next().await["payload"]["data"], n);
    }
    stage.publish("even", "2000").await;
    assert_eq!(client.next().await["payload"]["data"], 2_000);

    let (mut client, _) = Client::open(stage.address, "/ws").await;
    client.subscribe(json!({"topic": "even", "last_offset": 50_000})).await;
    let gap = client.next().await;
    assert_eq!(gap["message_type"], "gap");
    assert_eq!(gap["payload"]["reason"], "another journal");
    assert_eq!(client.next().await["payload"]["data"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broadcast_reaches_every_socket_and_ids_are_never_given_again() {
    let (stage, _folder) = Stage::new(Setting::default()).await;
    let (mut one, first) = Client::open(stage.address, "/ws").await;
    let (mut two, second) = Client::open(stage.address, "/ws").await;
    let reply =
        http::post(stage.address, "/realtime/broadcast", "application/json", br#"{"note":"hello"}"#).await;
    assert_eq!(reply.json(), json!({"status": "broadcasted", "connections": 2}));
    for client in [&mut one, &mut two] {
        let frame = client.next().await;
        assert_eq!(
            (&frame["message_type"], &frame["payload"]),
            (&json!("broadcast"), &json!({"note": "hello"}))
        );
    }
    let reply = http::post(stage.address, "/realtime/broadcast", "application/json", b"[1]").await;
    assert_eq!(reply.status, 422);

    two.subscribe(json!({"topic": "a/#"})).await;
    drop(one);
    let connections = eventually("the closed socket is gone", PATIENCE, async || {
        let connections = http::get(stage.address, "/realtime/connections").await.json();
        (connections["total_connections"] == 1).then_some(connections)
    })
    .await;
    assert_eq!(connections["topics"], json!({"a/#": 1}));
    assert_eq!(connections["total_topics"], 1);
    assert_eq!(connections["total_subscriptions"], 1);
    let detail = &connections["connection_details"][0];
    assert_eq!(detail["client_id"], second["payload"]["client_id"]);
    assert_eq!(detail["subscriptions"], json!(["a/#"]));

    let (_three, third) = Client::open(stage.address, "/ws").await;
    let ids = [&first, &second, &third].map(|welcome| welcome["payload"]["client_id"].to_string());
    assert!(ids[0] != ids[1] && ids[1] != ids[2] && ids[0] != ids[2], "{ids:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pure_listener_is_pinged_and_stays_and_a_dead_one_goes() {
    let mut setting = Setting::default();
    setting.config.ping_interval_ms = 50;
    let (stage, _folder) = Stage::new(setting).await;
    let (mut listener, _) = Client::open(stage.address, "/ws").await;
    // This one's pongs never leave, because nothing reads its socket.
    let (_dead, _) = Client::open(stage.address, "/ws").await;
    let mut pings = 0;
    while pings < 10 {
        if matches!(listener.message().await, Message::Ping(_)) {
            pings += 1;
        }
    }
    // Reading keeps the listener alive while the other is found out.
    let open = async {
        loop {
            let (_, health) = stage.health().await;
            if health["gateway"]["websockets"] == 1 {
                break;
            }
        }
    };
    let reading = async {
        loop {
            listener.message().await;
        }
    };
    within("the dead socket is closed", PATIENCE, async {
        tokio::select! { () = open => {}, () = reading => {} }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_socket_that_takes_nothing_is_cut_and_its_client_misses_nothing() {
    const RECORDS: u64 = 6_000;
    let mut setting = Setting::default();
    setting.config.send_timeout_ms = 300;
    let (stage, _folder) = Stage::new(setting).await;
    let (mut stuck, _) = Client::open(stage.address, "/ws").await;
    stuck.subscribe(json!({"topic": "#"})).await;
    let first = stage.publish("numbers", "first").await;
    assert_eq!(stuck.next().await["payload"]["offset"], first.0);

    // 24 MB: more than the sockets and every queue between hold.
    let padding = "x".repeat(4_000);
    for n in (1..RECORDS).step_by(200) {
        let record = |n: u64| ("numbers".to_owned(), format!("{n} {padding}").into());
        stage.publish_all((n..n + 200).map(record)).await;
    }
    eventually("the stuck socket is cut", PATIENCE, async || {
        let (_, health) = stage.health().await;
        (health["gateway"]["websockets"] == 0).then_some(())
    })
    .await;

    let (mut again, _) = Client::open(stage.address, "/ws").await;
    again.subscribe(json!({"topic": "#", "last_offset": first.0})).await;
    for n in 1..RECORDS {
        let frame = again.next().await;
        let data = frame["payload"]["data"].as_str().unwrap();
        assert_eq!(data.split(' ').next().unwrap(), n.to_string());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_have_names() {
    let mut setting = Setting::default();
    setting.config.filters_max = 1;
    setting.config.subscribers_max = 1;
    setting.config.frame_bytes_max = 1_024;
    let (stage, _folder) = Stage::new(setting).await;
    let (mut client, _) = Client::open(stage.address, "/ws").await;
    client.subscribe(json!({"topic": "a"})).await;
    let error = client.ask(json!({"message_type": "subscribe", "payload": {"topic": "b"}})).await;
    assert!(error["payload"]["error"].as_str().unwrap().contains("http.filters_max"), "{error}");
    client.subscribe(json!({"topic": "a"})).await;

    let refused = tokio_tungstenite::connect_async(format!("ws://{}/ws", stage.address)).await;
    assert!(matches!(refused, Err(Error::Http(reply)) if reply.status() == 503));

    client.0.send(Message::text("x".repeat(2_000))).await.unwrap();
    let closed = client.message().await;
    assert!(matches!(&closed, Message::Close(Some(frame)) if u16::from(frame.code) == 1009), "{closed:?}");

    let reply = http::get(stage.address, "/ws").await;
    assert_eq!(reply.json()["error"], "no_websocket");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_says_goodbye() {
    let (stage, _folder) = Stage::new(Setting::default()).await;
    let (mut client, _) = Client::open(stage.address, "/ws").await;
    let draining = tokio::spawn(stage.gateway.drain(Duration::from_secs(30)));
    let closed = client.message().await;
    assert!(matches!(&closed, Message::Close(Some(frame)) if u16::from(frame.code) == 1001), "{closed:?}");
    drop(client);
    within("the drain ends", PATIENCE, draining).await.unwrap();
}
