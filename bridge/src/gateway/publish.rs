//! Publishing over HTTP: the same way as an MQTT publish at QoS 1, answered when the record is durable.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::ws::Utf8Bytes;
use axum::extract::{Extension, Path, Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::Response;
use bytes::Bytes;
use serde_json::{Value, json};
use tidegate_broker::record::{Offset, Qos, Refused, property_id};
use tidegate_broker::server::{Handle, LocalPublish, PublishError, Stats};
use tidegate_broker::topic::TopicName;
use tokio::sync::oneshot;

use super::caller::Caller;
use super::envelope;
use super::reply::{self, Refusal};
use super::routes::App;

/// Stands in for the Client Identifier of whoever publishes over HTTP.
const CLIENT: &str = "http";
/// `Retry-After` when the broker only has too much to do.
const BUSY_RETRY_S: u32 = 1;
/// `Retry-After` when a sink has to catch up, or an operator has to act.
const REFUSED_RETRY_S: u32 = 10;

/// Where publishes go: the broker, or a stand-in in a test.
pub trait Publish: Send + Sync + 'static {
    /// Publishes; `done` is called once, when the record is durable or refused. It does not block.
    fn publish(&self, publish: LocalPublish, done: Box<dyn FnOnce(Result<Offset, PublishError>) + Send>);

    /// What the broker has done so far.
    fn stats(&self) -> Stats;
}

impl Publish for Handle {
    fn publish(&self, publish: LocalPublish, done: Box<dyn FnOnce(Result<Offset, PublishError>) + Send>) {
        Self::publish(self, publish, done);
    }

    fn stats(&self) -> Stats {
        Self::stats(self)
    }
}

/// The query of `POST /realtime/topic/...`.
#[derive(Debug, Default, serde::Deserialize)]
pub(super) struct Wishes {
    qos: Option<String>,
    retain: Option<String>,
}

/// `POST /realtime/topic/{topic...}`: any body.
pub(super) async fn topic(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    topic: Result<Path<String>, PathRejection>,
    query: Result<Query<Wishes>, QueryRejection>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refusal> {
    let Path(topic) = topic.map_err(|error| Refusal::bad_request("bad_topic", error.body_text()))?;
    let Query(wishes) = query.map_err(|error| Refusal::bad_request("bad_query", error.body_text()))?;
    let qos = qos(wishes.qos.as_deref())?;
    let retain = flag("retain", wishes.retain.as_deref())?;
    app.guard.may_publish(&caller, check_topic(&topic)?)?;
    let payload = read_body(&app, &headers, body).await?;
    let properties = content_type(&headers);
    let publish =
        LocalPublish { client: CLIENT.into(), topic: topic.clone(), payload, qos, retain, properties };
    let offset = send(&app, publish).await?;
    let subscribers = TopicName::new(&topic).map_or(0, |name| app.hub.interested(name));
    let body = json!({"status": "sent", "topic": topic, "subscribers": subscribers, "offset": offset.0});
    Ok(reply::json(StatusCode::OK, &body))
}

/// `POST /ingest`: one JSON object, published to the configured topic.
pub(super) async fn ingest(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refusal> {
    let topic = app.config.ingest_topic.clone();
    if topic.is_empty() {
        let detail = "No produce topic configured: set http.ingest_topic";
        return Err(Refusal::unavailable("no_ingest_topic", detail, REFUSED_RETRY_S));
    }
    let name = TopicName::new(&topic).map_err(|error| refusal(PublishError::Topic(error)))?;
    app.guard.may_publish(&caller, name)?;
    let payload = read_body(&app, &headers, body).await?;
    json_object(&payload)?;
    let properties = content_type(&headers);
    let client = CLIENT.into();
    let qos = Qos::AtLeastOnce;
    let publish = LocalPublish { client, topic: topic.clone(), payload, qos, retain: false, properties };
    let offset = send(&app, publish).await?;
    Ok(reply::json(StatusCode::OK, &json!({"status": "produced", "topic": topic, "offset": offset.0})))
}

/// `POST /realtime/broadcast`: one JSON object, to every WebSocket that is open now. It is no record: it is
/// neither stored nor sent to anybody else.
pub(super) async fn broadcast(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refusal> {
    app.guard.may_broadcast(&caller)?;
    let payload = read_body(&app, &headers, body).await?;
    let object = json_object(&payload)?;
    let frame = Utf8Bytes::from(envelope::frame("broadcast", &object, None));
    let connections = app.hub.broadcast(&frame);
    Ok(reply::json(StatusCode::OK, &json!({"status": "broadcasted", "connections": connections})))
}

/// Hands a publish to the broker and waits until it is durable.
async fn send(app: &App, publish: LocalPublish) -> Result<Offset, Refusal> {
    let (done, durable) = oneshot::channel();
    app.publisher.publish(
        publish,
        Box::new(move |result| {
            // Nobody waits any more if the request was cut; the record is durable nevertheless.
            let _ = done.send(result);
        }),
    );
    let timeout = Duration::from_millis(app.config.publish_timeout_ms);
    match tokio::time::timeout(timeout, durable).await {
        Ok(Ok(result)) => result.map_err(refusal),
        Ok(Err(_)) => Err(refusal(PublishError::Stopped)),
        Err(_) => Err(Refusal::unavailable(
            "not_durable_in_time",
            format!("the record was not durable within {timeout:?}; it may still become durable"),
            REFUSED_RETRY_S,
        )),
    }
}

/// The one place where a refused publish becomes an HTTP status.
fn refusal(error: PublishError) -> Refusal {
    match error {
        PublishError::Topic(error) => Refusal::bad_request("bad_topic", error.to_string()),
        PublishError::Refused(Refused::Full) => {
            Refusal::unavailable("journal_full", error.to_string(), REFUSED_RETRY_S)
        }
        PublishError::Refused(Refused::Failed) => {
            Refusal::unavailable("journal_failed", error.to_string(), REFUSED_RETRY_S)
        }
        PublishError::TooLarge => Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", error.to_string()),
        PublishError::Busy => Refusal::unavailable("busy", error.to_string(), BUSY_RETRY_S),
        PublishError::Stopped => Refusal::unavailable("stopping", error.to_string(), REFUSED_RETRY_S),
    }
}

/// Topics that begin with `$` belong to the broker [MQTT-4.7.2-1].
fn check_topic(topic: &str) -> Result<TopicName<'_>, Refusal> {
    let name = TopicName::new(topic).map_err(|error| Refusal::bad_request("bad_topic", error.to_string()))?;
    if name.is_system() {
        return Err(Refusal::bad_request("bad_topic", "topics that begin with $ belong to the broker"));
    }
    Ok(name)
}

fn qos(text: Option<&str>) -> Result<Qos, Refusal> {
    let bits = text.map_or(Ok(Qos::AtLeastOnce as u8), str::parse);
    let qos = bits.ok().and_then(Qos::from_bits);
    qos.ok_or_else(|| Refusal::bad_request("bad_qos", "qos is 0, 1 or 2"))
}

fn flag(name: &str, text: Option<&str>) -> Result<bool, Refusal> {
    match text {
        None | Some("false" | "0") => Ok(false),
        Some("true" | "1" | "") => Ok(true),
        Some(_) => Err(Refusal::bad_request("bad_query", format!("{name} is true or false"))),
    }
}

async fn read_body(app: &App, headers: &HeaderMap, body: Body) -> Result<Bytes, Refusal> {
    let bytes_max = app.config.body_bytes_max;
    let too_large = || {
        let detail = format!("the body has more than {bytes_max} bytes (http.body_bytes_max)");
        Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", detail)
    };
    let declared = headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    if declared.is_some_and(|length: u64| length > bytes_max as u64) {
        return Err(too_large());
    }
    let timeout = Duration::from_millis(app.config.body_timeout_ms);
    match tokio::time::timeout(timeout, to_bytes(body, bytes_max)).await {
        Ok(Ok(bytes)) => Ok(bytes),
        // The only failures are the limit and a connection that is gone and reads no answer.
        Ok(Err(_)) => Err(too_large()),
        Err(_) => Err(Refusal::new(
            StatusCode::REQUEST_TIMEOUT,
            "body_too_slow",
            format!("the body did not arrive within {timeout:?} (http.body_timeout_ms)"),
        )),
    }
}

fn json_object(payload: &[u8]) -> Result<Value, Refusal> {
    let refusal = |detail| Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, "not_a_json_object", detail);
    let value: Value =
        serde_json::from_slice(payload).map_err(|error| refusal(format!("the body is not JSON: {error}")))?;
    if value.is_object() { Ok(value) } else { Err(refusal("the body must be a JSON object".into())) }
}

/// A Content-Type becomes the record's, in MQTT 5.0 property encoding; the one that curl adds to any body says
/// nothing and does not.
fn content_type(headers: &HeaderMap) -> Vec<u8> {
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("");
    let Ok(length) = u16::try_from(content_type.len()) else { return Vec::new() };
    if content_type.is_empty() || content_type.starts_with("application/x-www-form-urlencoded") {
        return Vec::new();
    }
    let mut properties = vec![property_id::CONTENT_TYPE];
    properties.extend_from_slice(&length.to_be_bytes());
    properties.extend_from_slice(content_type.as_bytes());
    properties
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidegate_broker::record::Properties;

    #[test]
    fn a_content_type_travels_unless_it_says_nothing() {
        let check = |content_type: &str, expected: Option<&str>| {
            let mut headers = HeaderMap::new();
            headers.insert(header::CONTENT_TYPE, content_type.parse().unwrap());
            assert_eq!(Properties::from_encoded(&super::content_type(&headers)).content_type(), expected);
        };
        check("application/json", Some("application/json"));
        check("application/x-www-form-urlencoded", None);
        check("", None);
    }

    #[test]
    fn wishes_are_checked() {
        assert_eq!(qos(None), Ok(Qos::AtLeastOnce));
        assert_eq!(qos(Some("0")), Ok(Qos::AtMostOnce));
        assert!(qos(Some("3")).is_err());
        assert!(qos(Some("x")).is_err());
        assert_eq!(flag("retain", Some("1")), Ok(true));
        assert_eq!(flag("retain", None), Ok(false));
        assert!(flag("retain", Some("maybe")).is_err());
        assert!(check_topic("sensors/a").is_ok());
        assert!(check_topic("sensors/+").is_err());
        assert!(check_topic("$SYS/uptime").is_err());
    }
}
