//! Who is let in, and that a web page of a stranger cannot use the trust this machine has.
//! What who is let in may do is tested in `rules`.

use std::net::SocketAddr;

use serde_json::json;
use tidegate_broker::auth::{Access, Anonymous, PasswordFile};
use tidegate_broker::record::Offset;
use tokio_tungstenite::tungstenite::Error;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;

use super::stage::{Setting, Stage};
use crate::support::http::{self, Reply};

const TOKEN: &str = "0123456789abcdef0123456789abcdef";
/// `device:secret`, `device:wrong`, `anybody:TOKEN`.
const RIGHT_PASSWORD: &str = "Basic ZGV2aWNlOnNlY3JldA==";
const WRONG_PASSWORD: &str = "Basic ZGV2aWNlOndyb25n";
const TOKEN_AS_PASSWORD: &str = "Basic YW55Ym9keTowMTIzNDU2Nzg5YWJjZGVmMDEyMzQ1Njc4OWFiY2RlZg==";

fn setting(anonymous: Anonymous, with_password: bool) -> Setting {
    let passwords = with_password.then(|| {
        let mut passwords = PasswordFile::default();
        passwords.set("device", b"secret").unwrap();
        passwords
    });
    let mut setting = Setting::default();
    setting.config.allowed_origins = vec!["https://dash.example".into()];
    Setting { access: Access::new(anonymous, passwords), token: Some(TOKEN.into()), ..setting }
}

async fn get(address: SocketAddr, path: &str, headers: &[(&str, &str)]) -> Reply {
    http::request(address, "GET", path, headers, b"").await.unwrap()
}

async fn post(address: SocketAddr, headers: &[(&str, &str)]) -> Reply {
    http::request(address, "POST", "/realtime/topic/sensors/device/t", headers, b"x").await.unwrap()
}

async fn upgrade(address: SocketAddr, path: &str, headers: &[(&'static str, &str)]) -> u16 {
    let mut request = format!("ws://{address}{path}").into_client_request().unwrap();
    for (name, value) in headers {
        request.headers_mut().insert(*name, value.parse().unwrap());
    }
    match tokio_tungstenite::connect_async(request).await {
        Ok(_) => 101,
        Err(Error::Http(reply)) => reply.status().as_u16(),
        Err(error) => panic!("{error}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn where_nobody_is_anonymous_every_route_wants_credentials() {
    let (stage, _folder) = Stage::new(setting(Anonymous::Never, true)).await;
    let address = stage.address;
    let routes = [
        "/",
        "/metrics",
        "/realtime/status",
        "/realtime/connections",
        "/stream/events",
        "/ws",
        "/ws/events",
        "/docs",
        "/openapi.json",
        "/nowhere",
    ];
    for route in routes {
        let reply = get(address, route, &[]).await;
        assert_eq!((reply.status, &reply.json()["error"]), (401, &json!("unauthorized")), "{route}");
        assert!(reply.header("www-authenticate").is_some());
        assert!(reply.json()["detail"].as_str().unwrap().contains("operator-token"));
    }
    for route in ["/realtime/topic/a", "/realtime/broadcast", "/ingest"] {
        assert_eq!(http::post(address, route, "application/json", b"{}").await.status, 401, "{route}");
    }
    assert_eq!(stage.journal.durable_end(), Offset(0));
    assert_eq!(upgrade(address, "/ws", &[]).await, 401);

    let bearer = format!("Bearer {TOKEN}");
    for authorization in [bearer.as_str(), RIGHT_PASSWORD, TOKEN_AS_PASSWORD] {
        let headers = [("Authorization", authorization)];
        assert_eq!(get(address, "/", &headers).await.status, 200, "{authorization}");
        assert_eq!(post(address, &headers).await.status, 200, "{authorization}");
    }
    for authorization in [WRONG_PASSWORD, "Bearer 0123", "Bearer ", "Digest x"] {
        let reply = get(address, "/realtime/status", &[("Authorization", authorization)]).await;
        assert_eq!(
            (reply.status, &reply.json()["error"]),
            (401, &json!("bad_credentials")),
            "{authorization}"
        );
    }
    assert_eq!(upgrade(address, &format!("/ws?token={TOKEN}"), &[]).await, 101);
    assert_eq!(upgrade(address, "/ws?token=ct-probe", &[]).await, 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_probe_without_credentials_learns_the_status_and_nothing_else() {
    let (stage, _folder) = Stage::new(setting(Anonymous::Never, true)).await;
    let reply = get(stage.address, "/health", &[]).await;
    assert_eq!(
        (reply.status, reply.json()),
        (
            200,
            json!({"status": "healthy", "service": "tidegate", "realtime_enabled": true, "websocket_enabled": true})
        )
    );
    assert_eq!(get(stage.address, "/health/live", &[]).await.status, 200);
    assert_eq!(get(stage.address, "/health/ready", &[]).await.status, 200);
    let device = get(stage.address, "/health", &[("Authorization", RIGHT_PASSWORD)]).await;
    assert_eq!(device.json(), reply.json(), "a device learns no more");
    let reply = get(stage.address, "/health", &[("Authorization", &format!("Bearer {TOKEN}"))]).await;
    assert!(reply.json()["journal"].is_object());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_strange_page_cannot_use_the_trust_of_this_machine() {
    let (stage, _folder) = Stage::new(setting(Anonymous::Loopback, true)).await;
    let address = stage.address;
    let own = format!("http://{address}");
    assert_eq!(post(address, &[]).await.status, 200);
    assert_eq!(post(address, &[("Origin", &own)]).await.status, 200);
    assert_eq!(post(address, &[("Origin", "https://dash.example")]).await.status, 200);
    let end = stage.journal.durable_end();

    for origin in ["https://evil.example", "null", "http://localhost:1"] {
        let reply = post(address, &[("Origin", origin)]).await;
        assert_eq!((reply.status, &reply.json()["error"]), (403, &json!("origin_not_allowed")), "{origin}");
        // A remembered password is sent by the browser, whoever's page asks.
        let headers = [("Origin", origin), ("Authorization", RIGHT_PASSWORD)];
        assert_eq!(post(address, &headers).await.status, 403, "{origin}");
        assert_eq!(get(address, "/stream/events", &[("Origin", origin)]).await.status, 403, "{origin}");
        assert_eq!(upgrade(address, "/ws", &[("origin", origin)]).await, 403, "{origin}");
    }
    assert_eq!(upgrade(address, "/ws", &[("origin", own.as_str())]).await, 101);
    // Only somebody who knows the token can send it.
    let path = format!("/ws?token={TOKEN}");
    assert_eq!(upgrade(address, &path, &[("origin", "https://evil.example")]).await, 101);

    // DNS rebinding: the stranger's own name leads to this machine, and page and host agree.
    let rebound = [("Host", "evil.example"), ("Origin", "http://evil.example")];
    for headers in [&rebound[..], &rebound[..1]] {
        let reply = raw(address, headers).await;
        assert!(reply.starts_with("HTTP/1.1 403 ") && reply.contains("host_not_allowed"), "{reply}");
    }
    assert_eq!(stage.journal.durable_end(), end, "nothing of it was accepted");
}

/// `POST` with exactly these headers.
async fn raw(address: SocketAddr, headers: &[(&str, &str)]) -> String {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let request = format!(
        "POST /realtime/topic/sensors/http/t HTTP/1.1\r\n{headers}Connection: close\r\nContent-Length: 1\r\n\r\nx"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut reply = String::new();
    crate::support::within("the answer ends", crate::support::PATIENCE, stream.read_to_string(&mut reply))
        .await
        .unwrap();
    reply
}

#[tokio::test(flavor = "multi_thread")]
async fn behind_a_proxy_nobody_is_on_this_machine() {
    for with_password in [true, false] {
        let (stage, _folder) = Stage::new(setting(Anonymous::Loopback, with_password)).await;
        for name in ["X-Forwarded-For", "Forwarded", "X-Real-IP"] {
            assert_eq!(post(stage.address, &[(name, "127.0.0.1")]).await.status, 401, "{name}");
            let headers = [(name, "127.0.0.1"), ("Authorization", WRONG_PASSWORD)];
            assert_eq!(post(stage.address, &headers).await.status, 401, "{name}");
            let bearer = format!("Bearer {TOKEN}");
            let headers = [(name, "127.0.0.1"), ("Authorization", bearer.as_str())];
            assert_eq!(post(stage.address, &headers).await.status, 200, "{name}");
        }
    }
    let (stage, _folder) = Stage::new(setting(Anonymous::Always, true)).await;
    // Nobody in particular, then: a device whose id is `http`.
    let headers = [("X-Forwarded-For", "10.0.0.9")];
    let reply = post(stage.address, &headers).await;
    assert_eq!((reply.status, &reply.json()["error"]), (403, &json!("denied")));
    let path = "/realtime/topic/sensors/http/t";
    assert_eq!(http::request(stage.address, "POST", path, &headers, b"x").await.unwrap().status, 200);
    assert_eq!(get(stage.address, "/metrics", &headers).await.status, 403);
    assert_eq!(get(stage.address, "/metrics", &[]).await.status, 200);
    assert_eq!(post(stage.address, &[]).await.status, 200);
    assert!(raw(stage.address, &[("Host", "gateway.lan")]).await.starts_with("HTTP/1.1 200 "));
}

#[tokio::test(flavor = "multi_thread")]
async fn other_origins_may_read_only_when_they_are_named() {
    let (stage, _folder) = Stage::new(setting(Anonymous::Loopback, false)).await;
    let allowed = get(stage.address, "/realtime/status", &[("Origin", "https://dash.example")]).await;
    assert_eq!(allowed.header("access-control-allow-origin"), Some("https://dash.example"));
    let plain = get(stage.address, "/realtime/status", &[]).await;
    assert_eq!(plain.header("access-control-allow-origin"), None);
    let evil = get(stage.address, "/realtime/status", &[("Origin", "https://evil.example")]).await;
    assert_eq!((evil.status, evil.header("access-control-allow-origin")), (403, None));

    let preflight = async |origin: &str| {
        let headers = [("Origin", origin), ("Access-Control-Request-Method", "POST")];
        http::request(stage.address, "OPTIONS", "/realtime/topic/a", &headers, b"").await.unwrap()
    };
    let reply = preflight("https://dash.example").await;
    assert_eq!(reply.status, 204);
    assert_eq!(reply.header("access-control-allow-origin"), Some("https://dash.example"));
    assert_eq!(preflight("https://evil.example").await.status, 403);
}
