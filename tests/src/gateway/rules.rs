//! What who is let in over HTTP may do, with the program itself: the rules of MQTT, whatever they are, wherever
//! something is published or read, and also when they change under a running stream.

use std::net::SocketAddr;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use ring::hmac;
use serde_json::{Value, json};
use tempfile::NamedTempFile;
use tidegate_broker::auth::PasswordFile;
use tokio_tungstenite::tungstenite::Message;

use super::websocket::Client;
use crate::support::http::{self, EventStream, Reply};
use crate::support::process::{self, Signal};
use crate::support::tidegate::{Settings, Tidegate};

const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";

/// `Authorization` of the user `name`, whose password is `secret`.
pub(super) fn basic(name: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{name}:secret")))
}

/// A running program with the users `d1` and `d2`, and with these rules.
pub(super) async fn appliance(settings: Settings, acl: Option<&str>) -> Tidegate {
    let mut tidegate = Tidegate::prepare(settings);
    let data = tidegate.folder().join("data");
    std::fs::create_dir_all(&data).unwrap();
    let mut users = PasswordFile::default();
    for user in ["d1", "d2"] {
        users.set(user, b"secret").unwrap();
    }
    std::fs::write(data.join("passwords"), users.to_string()).unwrap();
    if let Some(acl) = acl {
        write_rules(&data, acl);
    }
    tidegate.spawn();
    tidegate.ready().await;
    tidegate
}

fn write_rules(data: &Path, acl: &str) {
    std::fs::write(data.join("new"), acl).unwrap();
    std::fs::rename(data.join("new"), data.join("acl")).unwrap();
}

/// `Authorization` of the operator.
pub(super) fn operator(tidegate: &Tidegate) -> String {
    let token = std::fs::read_to_string(tidegate.folder().join("data/operator-token")).unwrap();
    format!("Bearer {}", token.trim())
}

fn headers(authorization: Option<&str>) -> Vec<(&str, &str)> {
    authorization.map(|value| ("Authorization", value)).into_iter().collect()
}

pub(super) async fn get(address: SocketAddr, path: &str, authorization: Option<&str>) -> Reply {
    http::request(address, "GET", path, &headers(authorization), b"").await.unwrap()
}

async fn post(address: SocketAddr, path: &str, authorization: Option<&str>) -> Reply {
    http::request(address, "POST", path, &headers(authorization), b"{}").await.unwrap()
}

async fn publish(address: SocketAddr, topic: &str, authorization: Option<&str>) -> Reply {
    post(address, &format!("/realtime/topic/{topic}"), authorization).await
}

/// Publishes to each, which must be allowed.
async fn publish_all(address: SocketAddr, topics: &[&str], authorization: Option<&str>) {
    for topic in topics {
        let reply = publish(address, topic, authorization).await;
        assert_eq!(reply.status, 200, "{topic}: {}", reply.text());
    }
}

/// An event stream, which goes on behind `last`, if that is given.
async fn stream(
    address: SocketAddr,
    query: &str,
    authorization: Option<&str>,
    last: Option<&str>,
) -> EventStream {
    let mut headers = headers(authorization);
    headers.extend(last.map(|id| ("Last-Event-ID", id)));
    EventStream::open_with(address, &format!("/stream/events?status=off{query}"), &headers).await
}

/// The topics of the next records; returns the last id.
async fn expect_events(stream: &mut EventStream, topics: &[&str]) -> String {
    let mut last = String::new();
    for topic in topics {
        let event = stream.next().await;
        let data: Value = serde_json::from_str(&event.data).unwrap();
        assert_eq!(data["topic"], *topic, "{data}");
        last = event.id;
    }
    last
}

async fn expect_frames(client: &mut Client, message_type: &str, topics: &[&str]) {
    for topic in topics {
        let frame = client.next().await;
        assert_eq!(frame["message_type"], message_type, "{frame}");
        let payload = &frame["payload"];
        let record = if message_type == "event" { &payload["data"] } else { payload };
        assert_eq!(record["topic"], *topic, "{frame}");
    }
}

#[track_caller]
fn assert_denied(reply: &Reply, topic: &str, rule: &str) {
    assert_eq!((reply.status, &reply.json()["error"]), (403, &json!("denied")), "{}", reply.text());
    let detail = reply.json()["detail"].as_str().unwrap().to_owned();
    assert!(detail.contains(topic) && detail.contains(rule), "{detail}");
}

pub(super) async fn metric(tidegate: &Tidegate, name: &str) -> u64 {
    let metrics = get(tidegate.http, "/metrics", None).await;
    let line = metrics.text().lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_publishes_its_own_topics_and_nothing_else() {
    let tidegate = appliance(Settings::default(), None).await;
    let (address, d1) = (tidegate.http, basic("d1"));
    let rule = "auth.acl_file";
    publish_all(address, &["sensors/d1/t", "devices/d1/status"], Some(&d1)).await;
    for topic in ["sensors/d2/t", "commands/d1/x", "alerts/high", "other"] {
        assert_denied(&publish(address, topic, Some(&d1)).await, topic, rule);
    }
    assert_denied(&post(address, "/ingest", Some(&d1)).await, "ingest", rule);
    assert_denied(&post(address, "/realtime/broadcast", Some(&d1)).await, "broadcast", "operators");
    // A denial comes before the body is looked at.
    let reply = http::request(address, "POST", "/ingest", &headers(Some(&d1)), b"no JSON").await.unwrap();
    assert_denied(&reply, "ingest", rule);

    let log = tidegate.log_has("sensors/d2/t").await;
    let line = log.lines().find(|line| line.contains("sensors/d2/t")).unwrap();
    assert!(line.contains("denied") && line.contains("d1") && line.contains(rule), "{line}");
    assert_eq!(metric(&tidegate, "tidegate_mqtt_publishes_denied_total").await, 7);
    assert_eq!(metric(&tidegate, "tidegate_publishes_refused_total{reason=\"denied\"}").await, 7);

    // Whoever is here, and whoever has the token, may do everything, as ever.
    let token = operator(&tidegate);
    for authorization in [None, Some(token.as_str())] {
        publish_all(address, &["sensors/d2/t", "other"], authorization).await;
        for path in ["/ingest", "/realtime/broadcast"] {
            assert_eq!(post(address, path, authorization).await.status, 200, "{path}");
        }
    }
    let mut all = stream(address, "&from=oldest", None, None).await;
    let allowed = ["sensors/d2/t", "other", "ingest"];
    expect_events(&mut all, &["sensors/d1/t", "devices/d1/status"]).await;
    expect_events(&mut all, &[allowed, allowed].concat()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_streams_of_a_device_show_what_is_for_it() {
    const TOPICS: [&str; 8] = [
        "sensors/d1/t",
        "commands/d2/x",
        "commands/d1/x",
        "other",
        "alerts/high",
        "commands/d1/y",
        "devices/d1/status",
        "alerts",
    ];
    const FOR_D1: [&str; 4] = ["commands/d1/x", "alerts/high", "commands/d1/y", "alerts"];
    let tidegate = appliance(Settings::default(), None).await;
    let (address, d1) = (tidegate.http, basic("d1"));
    let d1 = Some(d1.as_str());
    let mut live = stream(address, "", d1, None).await;
    let (mut socket, _) = Client::open_as(address, "/ws", d1).await;
    let (mut events, _) = Client::open_as(address, "/ws/events", d1).await;
    assert_eq!(events.next().await["message_type"], "subscription_confirmed");
    publish_all(address, &TOPICS, None).await;
    let last = expect_events(&mut live, &FOR_D1).await;
    expect_frames(&mut socket, "event", &FOR_D1).await;
    expect_frames(&mut events, "event", &FOR_D1).await;

    // Old records are no way around, however they are asked for.
    for query in ["&from=oldest", "&from=oldest&filter=%23", "&from=0&filter=%2B/d1/%23&filter=alerts/%23"] {
        expect_events(&mut stream(address, query, d1, None).await, &FOR_D1).await;
    }
    expect_events(&mut stream(address, "", d1, Some("0")).await, &FOR_D1).await;
    let mut resumed = stream(address, "", d1, Some(&last)).await;
    publish_all(address, &["sensors/d1/t", "alerts/low"], None).await;
    expect_events(&mut resumed, &["alerts/low"]).await;
    expect_events(&mut live, &["alerts/low"]).await;
    expect_frames(&mut socket, "event", &["alerts/low"]).await;
    let again = [&FOR_D1[..], &["alerts/low"]].concat();
    socket.subscribe(json!({"topic": "#", "from": "oldest"})).await;
    expect_frames(&mut socket, "topic_message", &again).await;
    socket.ask(json!({"message_type": "unsubscribe", "payload": {"topic": "#"}})).await;
    socket.subscribe(json!({"topic": "commands/#", "last_offset": 0})).await;
    expect_frames(&mut socket, "topic_message", &["commands/d1/x", "commands/d1/y"]).await;

    // Where there is nothing for it, it is told so.
    let reply = get(address, "/stream/events?filter=alerts/%23&filter=sensors/%23", d1).await;
    assert_denied(&reply, "subscribe to sensors/#", "auth.acl_file");
    let frame =
        json!({"message_type": "subscribe", "payload": {"topic": "commands/d2/#"}, "message_id": "7"});
    let error = socket.ask(frame).await;
    assert_eq!((&error["message_type"], &error["response_to"]), (&json!("error"), &json!("7")));
    let text = error["payload"]["error"].as_str().unwrap();
    assert!(text.contains("commands/d2/#") && text.contains("auth.acl_file"), "{text}");
    assert_eq!(metric(&tidegate, "tidegate_mqtt_subscriptions_denied_total").await, 2);

    let token = operator(&tidegate);
    for authorization in [None, Some(token.as_str())] {
        expect_events(&mut stream(address, "&from=oldest", authorization, None).await, &TOPICS).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_gateway_tells_about_itself_is_for_operators() {
    let settings = Settings::default().set("TIDEGATE_HTTP_STATUS_INTERVAL", "100ms");
    let tidegate = appliance(settings, None).await;
    let (address, token, d1) = (tidegate.http, operator(&tidegate), basic("d1"));
    let stranger = http::request(address, "GET", "/health", &[("X-Forwarded-For", "10.0.0.9")], b"").await;
    let stranger = stranger.unwrap().json();
    assert!(stranger["journal"].is_null());
    assert_eq!(get(address, "/health", Some(&d1)).await.json(), stranger);
    for path in ["/metrics", "/realtime/status", "/realtime/connections"] {
        let reply = get(address, path, Some(&d1)).await;
        assert_eq!((reply.status, &reply.json()["error"]), (403, &json!("operators_only")), "{path}");
        for authorization in [None, Some(token.as_str())] {
            assert_eq!(get(address, path, authorization).await.status, 200, "{path}");
        }
    }
    let update = async |authorization| {
        let mut stream = EventStream::open_with(address, "/stream/events", &headers(authorization)).await;
        let event = stream.next().await;
        assert_eq!(event.name, "status_update");
        let data: Value = serde_json::from_str(&event.data).unwrap();
        data["data"].as_object().unwrap().keys().cloned().collect::<Vec<_>>()
    };
    assert_eq!(update(Some(&*d1)).await, ["realtime_enabled", "service_name", "websocket_enabled"]);
    assert!(update(None).await.contains(&"active_streams".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn open_rules_are_open_over_http_too() {
    let settings = Settings::default().set("TIDEGATE_AUTH_DEFAULT_RULES", "open");
    let tidegate = appliance(settings, None).await;
    let (address, d1) = (tidegate.http, basic("d1"));
    let mut all = stream(address, "&filter=%23", Some(&d1), None).await;
    publish_all(address, &["sensors/d2/t", "other"], Some(&d1)).await;
    expect_events(&mut all, &["sensors/d2/t", "other"]).await;
    assert_eq!(get(address, "/metrics", Some(&d1)).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_acl_file_holds_for_everybody_but_the_token() {
    const RULES: &str = "topic read public/#\n\
        user d1\ntopic read plant/#\ntopic deny plant/secret/#\ntopic write plant/d1\n\
        pattern readwrite own/%u/#\n";
    const TOPICS: [&str; 6] =
        ["plant/d1", "plant/secret/x", "public/x", "own/d1/x", "own/d2/x", "sensors/d1/t"];
    let tidegate = appliance(Settings::default(), Some(RULES)).await;
    let (address, token) = (tidegate.http, operator(&tidegate));
    let (d1, d2, token) = (basic("d1"), basic("d2"), Some(token.as_str()));
    let (d1, d2) = (Some(d1.as_str()), Some(d2.as_str()));
    let may_publish: [(Option<&str>, &[&str]); 4] =
        [(token, &TOPICS), (d1, &["plant/d1", "own/d1/x"]), (d2, &["own/d2/x"]), (None, &[])];
    for (authorization, allowed) in may_publish {
        for topic in TOPICS {
            let reply = publish(address, topic, authorization).await;
            if allowed.contains(&topic) {
                assert_eq!(reply.status, 200, "{authorization:?} {topic}: {}", reply.text());
            } else {
                assert_denied(&reply, topic, "ACL file");
            }
        }
    }
    let may_receive: [(Option<&str>, &[&str]); 4] = [
        (token, &TOPICS),
        (d1, &["plant/d1", "own/d1/x"]),
        (d2, &["own/d2/x"]),
        // As over MQTT, the rules before the first user are for who has no credentials, here too.
        (None, &["public/x"]),
    ];
    for (authorization, topics) in may_receive {
        expect_events(&mut stream(address, "&from=oldest", authorization, None).await, topics).await;
        let (mut socket, _) = Client::open_as(address, "/ws", authorization).await;
        socket.subscribe(json!({"topic": "#", "from": "oldest"})).await;
        expect_frames(&mut socket, "topic_message", topics).await;
    }
    for filter in ["plant/secret/%23", "public/%23"] {
        let reply = get(address, &format!("/stream/events?filter={filter}"), d1).await;
        assert_denied(&reply, "subscribe to", "ACL file");
    }
    assert_eq!(get(address, "/metrics", d1).await.status, 403);
    assert_eq!(get(address, "/metrics", None).await.status, 200, "that is no topic");
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_that_change_hold_at_once_also_for_running_streams() {
    let tidegate = appliance(Settings::default(), None).await;
    let (address, data) = (tidegate.http, tidegate.folder().join("data"));
    let (token, d1) = (operator(&tidegate), basic("d1"));
    let (token, d1) = (Some(token.as_str()), Some(d1.as_str()));
    let mut device = stream(address, "", d1, None).await;
    let mut here = stream(address, "", None, None).await;
    let mut above = stream(address, "", token, None).await;
    let (mut socket, _) = Client::open_as(address, "/ws", d1).await;

    const TOPICS: [&str; 3] = ["alerts/high", "news", "end"];
    publish_all(address, &TOPICS, token).await;
    expect_events(&mut device, &["alerts/high"]).await;
    expect_frames(&mut socket, "event", &["alerts/high"]).await;
    expect_events(&mut here, &TOPICS).await;

    write_rules(&data, "topic read end\nuser d1\ntopic read news\n");
    process::send(tidegate.pid(), Signal::Hangup);
    tidegate.log_has("SIGHUP: rules are read again").await;
    publish_all(address, &TOPICS, token).await;
    expect_events(&mut device, &["news"]).await;
    expect_frames(&mut socket, "event", &["news"]).await;
    expect_events(&mut here, &["end"]).await;
    assert_denied(&publish(address, "sensors/d1/t", d1).await, "sensors/d1/t", "ACL file");

    // Without the file it is as before; the stream has missed nothing of what it may have now.
    std::fs::remove_file(data.join("acl")).unwrap();
    process::send(tidegate.pid(), Signal::Hangup);
    tidegate.log_has(&format!("SIGHUP: there is no {}", data.join("acl").display())).await;
    publish_all(address, &TOPICS, token).await;
    expect_events(&mut device, &["alerts/high"]).await;
    expect_frames(&mut socket, "event", &["alerts/high"]).await;
    expect_events(&mut here, &TOPICS).await;
    expect_events(&mut above, &[TOPICS, TOPICS, TOPICS].concat()).await;
    publish_all(address, &["sensors/d1/t"], d1).await;
}

/// A token for `user` that expires at `expires`, in seconds since the Unix epoch.
fn jwt(user: &str, expires: u64, secret: &[u8]) -> String {
    let encode = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let signed =
        format!("{}.{}", encode(json!({"alg": "HS256"})), encode(json!({"sub": user, "exp": expires})));
    let signature = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), signed.as_bytes());
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
}

fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// A program that takes tokens, and the file with their key.
async fn with_tokens() -> (Tidegate, NamedTempFile) {
    let key = NamedTempFile::new().unwrap();
    std::fs::write(key.path(), SECRET).unwrap();
    let settings = Settings::default().set("TIDEGATE_AUTH_JWT_KEY_FILE", key.path().to_str().unwrap());
    (appliance(settings, None).await, key)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_json_web_token_says_which_device_it_is() {
    let (tidegate, _key) = with_tokens().await;
    let address = tidegate.http;
    let token = jwt("d7", now_s() + 600, SECRET);
    let bearer = format!("Bearer {token}");
    let basic = format!("Basic {}", STANDARD.encode(format!("whoever:{token}")));
    for authorization in [&bearer, &basic] {
        publish_all(address, &["sensors/d7/t"], Some(authorization)).await;
        let reply = publish(address, "sensors/d1/t", Some(authorization)).await;
        assert_denied(&reply, "d7 may not publish to sensors/d1/t", "auth.acl_file");
    }
    publish_all(address, &["commands/d1/x", "commands/d7/x"], None).await;
    let path = format!("/stream/events?status=off&from=oldest&token={token}");
    expect_events(&mut EventStream::open(address, &path, None).await, &["commands/d7/x"]).await;

    // On this machine, too: who brings a token is judged by it.
    let expired = jwt("d7", now_s() - 600, SECRET);
    let forged = jwt("d7", now_s() + 600, b"another secret, also of 32 bytes");
    for token in [expired, forged, "x.y.z".to_owned(), token.replace('.', "")] {
        let reply = publish(address, "sensors/d7/t", Some(&format!("Bearer {token}"))).await;
        assert_eq!((reply.status, &reply.json()["error"]), (401, &json!("bad_credentials")), "{token}");
    }
    assert_eq!(get(address, "/metrics", Some(&bearer)).await.status, 403);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_ends_with_its_token() {
    let (tidegate, _key) = with_tokens().await;
    let address = tidegate.http;
    // It counts for thirty seconds more than it says.
    let bearer = format!("Bearer {}", jwt("d7", now_s() - 24, SECRET));
    let (mut socket, _) = Client::open_as(address, "/ws", Some(&bearer)).await;
    let mut events = stream(address, "", Some(&bearer), None).await;
    let event = events.next().await;
    assert_eq!(event.name, "error");
    assert!(event.data.contains("expired"), "{}", event.data);
    let close = loop {
        match socket.message().await {
            Message::Close(close) => break close.unwrap(),
            Message::Ping(_) => {}
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(u16::from(close.code), 1008);
    assert!(close.reason.contains("expired"), "{close}");
    assert_eq!(metric(&tidegate, "tidegate_mqtt_credentials_expired_total").await, 2);
    assert_eq!(get(address, "/", Some(&bearer)).await.status, 401);
}
