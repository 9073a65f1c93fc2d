//! Every route, and what the handlers share.

use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::middleware;
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use metrics_exporter_prometheus::PrometheusHandle;
use serde_json::json;

use super::events::Hub;
use super::guard::{self, Guard};
use super::publish::Publish;
use super::reply::{self, Refusal};
use super::serve::Drain;
use super::{Config, Mqtt, Parts, health, metrics, mqtt, page, publish, sse, status, websocket};

/// What the handlers share.
pub(super) struct App {
    pub(super) config: Config,
    pub(super) hub: Arc<Hub>,
    pub(super) publisher: Arc<dyn Publish>,
    pub(super) mqtt: Option<Mqtt>,
    pub(super) guard: Guard,
    pub(super) parts: Parts,
    pub(super) metrics: Option<PrometheusHandle>,
    /// Becomes true when the gateway drains.
    pub(super) drain: Drain,
    pub(super) started: Instant,
    pub(super) status: status::Cache,
    pub(super) sockets: websocket::Open,
}

impl App {
    pub(super) fn is_draining(&self) -> bool {
        self.drain.has_begun()
    }

    /// The platform's name, if it has one.
    pub(super) fn platform(&self) -> Option<&str> {
        Some(self.config.platform.as_str()).filter(|name| !name.is_empty())
    }
}

/// The whole gateway. Routes for people and programs that only read stand first.
pub(super) fn router(app: Arc<App>) -> Router {
    Router::new()
        .route("/", get(root))
        .route("/health", get(health::health))
        .route("/health/live", get(health::live))
        .route("/health/ready", get(health::ready))
        .route("/metrics", get(metrics::metrics))
        .route("/realtime/status", get(status::status))
        .route("/realtime/connections", get(status::connections))
        .route("/stream/events", get(sse::events))
        .route("/ws", get(websocket::ws))
        .route("/ws/events", get(websocket::ws_events))
        .route("/mqtt", get(mqtt::mqtt))
        .route("/realtime/topic/{*topic}", post(publish::topic))
        .route("/realtime/broadcast", post(publish::broadcast))
        .route("/ingest", post(publish::ingest))
        .fallback(no_such_route)
        .method_not_allowed_fallback(no_such_method)
        .layer(middleware::from_fn_with_state(Arc::clone(&app), guard::guard))
        .with_state(app)
}

/// The page for browsers, a few words of JSON for programs.
async fn root(State(app): State<Arc<App>>, headers: HeaderMap) -> Response {
    let accept = headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or_default();
    let mut response = if accept.contains("text/html") {
        page::page()
    } else {
        let body = json!({
            "service": app.config.service_name,
            "status": if app.is_draining() { "stopping" } else { "running" },
            "type": "realtime",
            "realtime_enabled": true,
            "websocket_enabled": true,
            "platform": app.platform(),
            "version": env!("CARGO_PKG_VERSION"),
        });
        reply::json(StatusCode::OK, &body)
    };
    response.headers_mut().append(header::VARY, header::HeaderValue::from_static("accept"));
    response
}

async fn no_such_route(uri: Uri) -> Response {
    let detail = format!(
        "there is nothing at {}; see /health, /stream/events, /ws, /mqtt, /metrics, /realtime/status, \
         POST /realtime/topic/TOPIC",
        uri.path()
    );
    Refusal::new(StatusCode::NOT_FOUND, "not_found", detail).into_response()
}

async fn no_such_method(uri: Uri) -> Response {
    let detail = format!("{} does not take this method", uri.path());
    Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", detail).into_response()
}
