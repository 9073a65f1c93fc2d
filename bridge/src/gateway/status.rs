//! `/realtime/status` and `/realtime/connections`, in the shape existing clients read.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, UNIX_EPOCH};

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::{Map, Value, json};
use tidegate_broker::record::Timestamp;

use super::caller::Caller;
use super::encode::rfc3339;
use super::reply;
use super::routes::App;
use crate::health::{self, Part};

/// Event streams share one status for this long.
const CACHE_FOR: Duration = Duration::from_millis(500);

/// Bytes of Topic Filters in one status; more are left out. `/realtime/connections` has all.
const ACTIVE_STREAMS_BYTES_MAX: usize = 16 << 10;

/// The last `status_update`, encoded.
#[derive(Debug, Default)]
pub(super) struct Cache(Mutex<Option<(Instant, Arc<str>)>>);

impl App {
    /// Records the broker took since the start.
    pub(super) fn message_count(&self) -> u64 {
        self.publisher.stats().publishes_in_total
    }

    /// What went wrong since the start: refused publishes, protocol errors, records a sink will never take.
    pub(super) fn error_count(&self) -> u64 {
        let stats = self.publisher.stats();
        let rejected: u64 = self.parts.all().map(|part| part.report().rejected).sum();
        stats.publishes_refused.sum() + stats.protocol_errors_total + rejected
    }

    fn last_activity(&self) -> Option<String> {
        self.hub.last_activity().map(rfc3339)
    }

    fn status(&self) -> Value {
        let parts = self.parts.all();
        let mut bytes = 0;
        let topics = self.topics().into_iter().map(|(topic, _)| topic).take_while(|topic| {
            bytes += topic.len();
            bytes <= ACTIVE_STREAMS_BYTES_MAX
        });
        json!({
            "agent_type": "realtime-gateway",
            "implementation_type": "deterministic",
            "service_name": self.config.service_name,
            "realtime_enabled": true,
            "websocket_enabled": true,
            "connections": parts.map(connection).collect::<Vec<_>>(),
            "active_streams": topics.collect::<Vec<_>>(),
            "message_count": self.message_count(),
            "error_count": self.error_count(),
            "last_activity": self.last_activity(),
        })
    }

    /// The body of a `status_update` event, one line. Who is no operator learns what `/health` tells everybody.
    pub(super) fn status_update(&self, caller: &Caller) -> Arc<str> {
        if !self.guard.is_operator(caller) {
            let data = json!({
                "service_name": self.config.service_name,
                "realtime_enabled": true,
                "websocket_enabled": true,
            });
            return json!({"type": "status_update", "data": data, "timestamp": null}).to_string().into();
        }
        let mut cache = self.status.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((since, update)) = &*cache
            && since.elapsed() < CACHE_FOR
        {
            return Arc::clone(update);
        }
        let update =
            json!({"type": "status_update", "data": self.status(), "timestamp": self.last_activity()});
        let update: Arc<str> = update.to_string().into();
        *cache = Some((Instant::now(), Arc::clone(&update)));
        update
    }

    /// Every subscribed Topic Filter with the number of its subscribers, by name.
    fn topics(&self) -> Map<String, Value> {
        let mut topics = std::collections::BTreeMap::new();
        for subscriber in self.hub.subscribers() {
            let interest = Arc::clone(&subscriber.state().interest);
            for filter in interest.filters() {
                *topics.entry(filter.to_owned()).or_insert(0_u64) += 1;
            }
        }
        topics.into_iter().map(|(topic, count)| (topic, json!(count))).collect()
    }
}

/// One backing service.
fn connection(part: &Part) -> Value {
    let report = part.report();
    let since = report.since.duration_since(UNIX_EPOCH).unwrap_or_default();
    let since = rfc3339(Timestamp(u64::try_from(since.as_millis()).unwrap_or(u64::MAX)));
    let (status, connected) = match report.state {
        health::State::Starting => ("connecting", false),
        health::State::Up | health::State::Degraded => ("connected", true),
        health::State::Down => ("reconnecting", false),
        health::State::Failed => ("error", false),
    };
    json!({
        "service_name": part.name(),
        "connection_type": part.name(),
        "status": status,
        "endpoint": null,
        "connected_at": connected.then_some(&since),
        "last_activity": since,
        "error_message": report.detail,
        "retry_count": 0,
    })
}

/// `GET /realtime/status`
pub(super) async fn status(State(app): State<Arc<App>>) -> Response {
    reply::json(StatusCode::OK, &app.status())
}

/// `GET /realtime/connections`
pub(super) async fn connections(State(app): State<Arc<App>>) -> Response {
    let topics = app.topics();
    let mut total_subscriptions = 0;
    let details: Vec<_> = app
        .hub
        .subscribers()
        .iter()
        .map(|subscriber| {
            let interest = Arc::clone(&subscriber.state().interest);
            total_subscriptions += interest.filters().len();
            json!({
                "client_id": subscriber.client_id(),
                "connected_at": rfc3339(subscriber.connected_at),
                "message_count": subscriber.delivered.load(Ordering::Relaxed),
                "subscriptions": interest.filters().collect::<Vec<_>>(),
            })
        })
        .collect();
    let body = json!({
        "total_connections": details.len(),
        "total_topics": topics.len(),
        "total_subscriptions": total_subscriptions,
        "total_messages": app.hub.totals.delivered.load(Ordering::Relaxed),
        "topics": topics,
        "connection_details": details,
    });
    reply::json(StatusCode::OK, &body)
}
