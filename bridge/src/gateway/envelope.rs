//! The JSON envelope that WebSocket clients speak, both ways.
//!
//! Frames that are records are written by `encode`, once for all sockets; these are the others. Timestamps are
//! RFC 3339 in UTC.

use serde_json::{Map, Value, json};

use super::encode;
use super::resume::{From, FromError};

/// A frame from us.
pub(super) fn frame(message_type: &str, payload: &Value, response_to: Option<&str>) -> String {
    json!({
        "message_type": message_type,
        "payload": payload,
        "message_id": encode::random_uuid(),
        "timestamp": encode::rfc3339(encode::now()),
        "correlation_id": null,
        "response_to": response_to,
    })
    .to_string()
}

/// A frame of type `error`.
pub(super) fn error(text: &str, response_to: Option<&str>) -> String {
    frame("error", &json!({ "error": text }), response_to)
}

/// What a client asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Request {
    /// Records of a Topic Filter, from a place if one is named.
    Subscribe { topic: String, from: Option<From> },
    /// No more of them.
    Unsubscribe { topic: String },
    /// A sign of life.
    Ping,
    /// A task for an agent; there is none here.
    AgentTask { query: bool },
}

/// A frame from a client: what it asks, or the text of our `error`, and in both cases its own identifier.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Received {
    pub(super) request: Result<Request, String>,
    pub(super) message_id: Option<String>,
}

/// Reads a text frame.
pub(super) fn parse(text: &str) -> Received {
    let Ok(envelope) = serde_json::from_str::<Map<String, Value>>(text) else {
        return Received { request: Err("Invalid JSON format".into()), message_id: None };
    };
    let message_id = match envelope.get("message_id") {
        Some(Value::String(id)) => Some(id.clone()),
        None | Some(Value::Null) => None,
        Some(other) => Some(other.to_string()),
    };
    let payload = envelope.get("payload").unwrap_or(&Value::Null);
    let request = match envelope.get("message_type").and_then(Value::as_str) {
        Some("subscribe") => subscribe(payload),
        Some("unsubscribe") => topic(payload).map(|topic| Request::Unsubscribe { topic }),
        Some("ping") => Ok(Request::Ping),
        Some("agent_request") => {
            let query = payload.get("query").and_then(Value::as_str);
            Ok(Request::AgentTask { query: query.is_some_and(|query| !query.is_empty()) })
        }
        Some(other) => Err(format!("Unknown message type: {other}")),
        None => Err("Unknown message type: message_type is missing".into()),
    };
    Received { request, message_id }
}

fn topic(payload: &Value) -> Result<String, String> {
    match payload.get("topic").and_then(Value::as_str) {
        Some(topic) if !topic.is_empty() => Ok(topic.to_owned()),
        Some(_) | None => Err("Topic is required: payload.topic is an MQTT Topic Filter".into()),
    }
}

/// `from` is `oldest`, `end`, `-N` or an offset; `last_offset` is the offset of the last record received.
fn subscribe(payload: &Value) -> Result<Request, String> {
    let topic = topic(payload)?;
    let word = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let from: Result<_, FromError> = match (payload.get("last_offset"), payload.get("from")) {
        (Some(last), _) if !last.is_null() => From::parse_id(&word(last)).map(Some),
        (_, Some(from)) if !from.is_null() => From::parse(&word(from)).map(Some),
        (_, _) => Ok(None),
    };
    from.map(|from| Request::Subscribe { topic, from }).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidegate_broker::record::Offset;

    #[test]
    fn requests_are_read_as_existing_clients_write_them() {
        let check = |text: &str, expected: Result<Request, &str>, id: Option<&str>| {
            let received = parse(text);
            assert_eq!(received.request, expected.map_err(String::from), "{text}");
            assert_eq!(received.message_id.as_deref(), id, "{text}");
        };
        let subscribe = |from| Ok(Request::Subscribe { topic: "a/+".into(), from });
        check(
            r#"{"message_type":"subscribe","payload":{"topic":"a/+"},"message_id":"7","timestamp":null}"#,
            subscribe(None),
            Some("7"),
        );
        check(
            r#"{"message_type":"subscribe","payload":{"topic":"a/+","last_offset":41}}"#,
            subscribe(Some(From::After(Offset(41)))),
            None,
        );
        check(
            r#"{"message_type":"subscribe","payload":{"topic":"a/+","from":-5,"last_offset":null}}"#,
            subscribe(Some(From::Newest(5))),
            None,
        );
        check(
            r#"{"message_type":"subscribe","payload":{"topic":"a/+","from":"oldest"}}"#,
            subscribe(Some(From::Oldest)),
            None,
        );
        check(
            r#"{"message_type":"unsubscribe","payload":{"topic":"a/+"}}"#,
            Ok(Request::Unsubscribe { topic: "a/+".into() }),
            None,
        );
        check(r#"{"message_type":"ping","message_id":9}"#, Ok(Request::Ping), Some("9"));
        check(
            r#"{"message_type":"subscribe","message_id":"x"}"#,
            Err("Topic is required: payload.topic is an MQTT Topic Filter"),
            Some("x"),
        );
        check(r#"{"message_type":"sing"}"#, Err("Unknown message type: sing"), None);
        check(r#"{}"#, Err("Unknown message type: message_type is missing"), None);
        check("hello", Err("Invalid JSON format"), None);
        check("[1]", Err("Invalid JSON format"), None);
    }

    #[test]
    fn a_frame_has_every_field_of_the_envelope() {
        let frame: Value = serde_json::from_str(&error("no", Some("7"))).unwrap();
        let mut fields: Vec<_> = frame.as_object().unwrap().keys().map(String::as_str).collect();
        fields.sort_unstable();
        assert_eq!(
            fields,
            ["correlation_id", "message_id", "message_type", "payload", "response_to", "timestamp"]
        );
        assert_eq!(frame["payload"]["error"], "no");
        assert_eq!(frame["response_to"], "7");
        assert!(frame["timestamp"].as_str().unwrap().ends_with('Z'));
        assert_eq!(frame["message_id"].as_str().unwrap().len(), 36);
    }
}
