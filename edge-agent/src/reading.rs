//! What is published: a [`Reading`] of one of this machine's own sensors, or one made of a line of JSON.
//!
//! A line is one JSON object and becomes the payload as it stands, so that no digit of a number changes. Its
//! `metric`, if it has one, is the last level of the topic `sensors/<device id>/<metric>`; without one that is
//! `data`. If it names no time of its own (`timestamp`, `time` or `ts`), the time at which it was read is added
//! as `timestamp`: it may be hours before the broker can be reached. Pure: time is an argument.

use serde_json::{Map, Value};

/// The longest line that is taken, in bytes without the line's end; a longer one is an error.
pub(crate) const LINE_BYTES_MAX: usize = 64 * 1024;

/// A line without a `metric` is published under this.
const METRIC_OF_OBJECTS: &str = "data";
const TIME_FIELDS: [&str; 3] = ["timestamp", "time", "ts"];

/// Something to publish.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reading {
    /// A valid Topic Name.
    pub(crate) topic: String,
    /// A JSON object.
    pub(crate) payload: String,
}

/// Why a line is not taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BadLine {
    #[error("it is longer than {LINE_BYTES_MAX} bytes")]
    TooLong,
    #[error("it is not JSON: {0}")]
    NotJson(#[from] serde_json::Error),
    #[error("it is not a JSON object; write one like {{\"metric\":\"temperature\",\"value\":22.5}}")]
    NotAnObject,
    #[error("its metric is not a text")]
    MetricNotText,
    #[error(
        "its metric {0:?} cannot be a level of a topic: it must have 1 to 128 bytes and none of / + # or U+0000"
    )]
    MetricNotLevel(String),
}

impl Reading {
    /// A number that was measured. `time` is RFC 3339.
    pub(crate) fn measured(device_id: &str, metric: &str, value: f64, unit: &str, time: &str) -> Self {
        let payload = serde_json::json!({ "value": value, "unit": unit, "timestamp": time }).to_string();
        Self { topic: topic(device_id, metric), payload }
    }

    /// What a line says. `time`, RFC 3339, is when it was read.
    pub(crate) fn from_line(device_id: &str, line: &[u8], time: &str) -> Result<Self, BadLine> {
        if line.len() > LINE_BYTES_MAX {
            return Err(BadLine::TooLong);
        }
        let object = match serde_json::from_slice(line)? {
            Value::Object(object) => object,
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
                return Err(BadLine::NotAnObject);
            }
        };
        let metric = metric(&object)?;
        let text = std::str::from_utf8(line).expect("JSON was parsed from it, so it is UTF-8").trim();
        let payload = if TIME_FIELDS.iter().any(|field| object.contains_key(*field)) {
            text.to_owned()
        } else {
            let open = text.strip_suffix('}').expect("an object ends with a brace").trim_end();
            let comma = if object.is_empty() { "" } else { "," };
            format!("{open}{comma}\"timestamp\":\"{time}\"}}")
        };
        Ok(Self { topic: topic(device_id, metric), payload })
    }
}

fn topic(device_id: &str, metric: &str) -> String {
    format!("sensors/{device_id}/{metric}")
}

fn metric(object: &Map<String, Value>) -> Result<&str, BadLine> {
    match object.get("metric") {
        None => Ok(METRIC_OF_OBJECTS),
        Some(Value::String(metric)) if is_level(metric) => Ok(metric),
        Some(Value::String(metric)) => Err(BadLine::MetricNotLevel(metric.chars().take(128).collect())),
        Some(Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_)) => {
            Err(BadLine::MetricNotText)
        }
    }
}

/// Whether `text` can be one level of a topic of ours.
pub(crate) fn is_level(text: &str) -> bool {
    (1..=128).contains(&text.len()) && !text.contains(['/', '+', '#', '\0'])
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIME: &str = "2026-11-23T08:00:00.000Z";

    fn check(line: &str, topic: &str, payload: &str) {
        let reading = Reading::from_line("pi", line.as_bytes(), TIME).unwrap();
        assert_eq!((reading.topic.as_str(), reading.payload.as_str()), (topic, payload));
        serde_json::from_str::<Value>(&reading.payload).unwrap();
    }

    #[test]
    fn an_object_becomes_the_payload_as_it_stands() {
        let temperature = "sensors/pi/temperature";
        let line = r#"{"metric":"temperature", "value":22.50,"unit":"°C","timestamp":1753626600}"#;
        check(line, temperature, line);
        check(
            "  {\"value\":1e2,\"metric\":\"temperature\" }\r",
            temperature,
            r#"{"value":1e2,"metric":"temperature","timestamp":"2026-11-23T08:00:00.000Z"}"#,
        );
        check("{ }", "sensors/pi/data", r#"{"timestamp":"2026-11-23T08:00:00.000Z"}"#);
        check(r#"{"ts":1,"a":{"b":[{}]}}"#, "sensors/pi/data", r#"{"ts":1,"a":{"b":[{}]}}"#);
    }

    #[test]
    fn a_bad_line_says_what_is_wrong_with_it() {
        let long = format!("{{\"a\":\"{}\"}}", "x".repeat(LINE_BYTES_MAX));
        for (line, reason) in [
            (long.as_bytes(), "longer"),
            (b"", "not JSON"),
            (b"{\"a\":1", "not JSON"),
            (b"{\"a\":\"\xff\"}", "not JSON"),
            (b"22.5", "not a JSON object"),
            (b"[1]", "not a JSON object"),
            (b"{\"metric\":7}", "not a text"),
            (b"{\"metric\":\"a/b\"}", "\"a/b\""),
            (b"{\"metric\":\"#\"}", "level of a topic"),
            (b"{\"metric\":\"\"}", "level of a topic"),
            (b"{\"metric\":\"a\\u0000\"}", "level of a topic"),
        ] {
            let error = Reading::from_line("pi", line, TIME).unwrap_err().to_string();
            assert!(error.contains(reason), "{error:?} does not say {reason:?}");
        }
    }

    #[test]
    fn a_measured_number_has_value_unit_and_time() {
        let reading = Reading::measured("pi", "load1", 0.25, "1", TIME);
        assert_eq!(reading.topic, "sensors/pi/load1");
        assert_eq!(
            serde_json::from_str::<Value>(&reading.payload).unwrap(),
            serde_json::json!({"value": 0.25, "unit": "1", "timestamp": TIME})
        );
    }
}
