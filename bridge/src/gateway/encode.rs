//! What a record looks like to a browser: one server-sent event, one `topic_message` frame, one `event` frame.
//!
//! Every payload can be recovered byte for byte. Valid JSON is spliced in as it is and never serialised again;
//! other UTF-8 text becomes a JSON string; anything else is base64. JSON with a CR or LF in it goes as text,
//! because a line break would end a line of the event stream. Time is RFC 3339 in UTC with milliseconds.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use jiff::fmt::temporal::DateTimePrinter;
use serde::de::IgnoredAny;
use tidegate_broker::journal::JournalId;
use tidegate_broker::record::{Offset, Record, Timestamp};

/// The forms in which a record leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// A whole server-sent event: `id:`, `data:` and the empty line.
    Sse,
    /// A WebSocket frame of type `topic_message`, for sockets that subscribed.
    TopicMessage,
    /// A WebSocket frame of type `event` with a RealtimeEvent, for sockets that receive everything.
    Event,
}

/// Encodes records; holds what is the same in all of them.
#[derive(Clone, Debug)]
pub(super) struct Encoder {
    journal: JournalId,
    service: String,
}

impl Encoder {
    pub(super) fn new(journal: JournalId, service: &str) -> Self {
        Self { journal, service: service.to_owned() }
    }

    /// `record` as `form`.
    pub(super) fn encode(&self, form: Form, offset: Offset, record: &Record<'_>) -> Bytes {
        let mut out = Vec::with_capacity(320 + record.topic.as_str().len() + 2 * record.payload.len());
        match form {
            Form::Sse => {
                out.extend_from_slice(format!("id: {offset}\ndata: ").as_bytes());
                put_reading(&mut out, offset, record);
                out.extend_from_slice(b"\n\n");
            }
            Form::TopicMessage => {
                out.extend_from_slice(b"{\"message_type\":\"topic_message\",\"payload\":");
                put_reading(&mut out, offset, record);
                self.put_envelope_end(&mut out, offset, record.time);
            }
            Form::Event => {
                out.extend_from_slice(b"{\"message_type\":\"event\",\"payload\":");
                self.put_event(&mut out, offset, record);
                self.put_envelope_end(&mut out, offset, record.time);
            }
        }
        out.into()
    }

    fn put_envelope_end(&self, out: &mut Vec<u8>, offset: Offset, time: Timestamp) {
        let id = record_uuid(self.journal, offset);
        let time = rfc3339(time);
        out.extend_from_slice(
            format!(
                ",\"message_id\":\"{id}\",\"timestamp\":\"{time}\",\"correlation_id\":null,\"response_to\":null}}"
            )
            .as_bytes(),
        );
    }

    /// A RealtimeEvent. `data` serves both kinds of existing clients: those of a Kafka gateway read
    /// `data.message`, the decoded value, those of an MQTT gateway `data.payload`, a string.
    fn put_event(&self, out: &mut Vec<u8>, offset: Offset, record: &Record<'_>) {
        let id = record_uuid(self.journal, offset);
        out.extend_from_slice(
            format!("{{\"event_id\":\"{id}\",\"event_type\":\"data_processed\",\"source_service\":")
                .as_bytes(),
        );
        put_string(out, &self.service);
        out.extend_from_slice(b",\"source_agent\":null,\"timestamp\":\"");
        out.extend_from_slice(rfc3339(record.time).as_bytes());
        out.extend_from_slice(b"\",\"correlation_id\":null,\"stream_id\":");
        put_string(out, record.topic.as_str());
        out.extend_from_slice(b",\"priority\":1,\"data\":{\"topic\":");
        put_string(out, record.topic.as_str());
        out.extend_from_slice(b",\"client\":");
        put_string(out, record.client);
        let encoding = Encoding::of(record.payload);
        out.extend_from_slice(
            format!(",\"offset\":{offset},\"partition\":0,\"encoding\":\"{}\",\"payload\":", encoding.name())
                .as_bytes(),
        );
        match encoding {
            Encoding::Json | Encoding::Text => Encoding::Text.put(out, record.payload),
            Encoding::Base64 => Encoding::Base64.put(out, record.payload),
        }
        out.extend_from_slice(b",\"message\":");
        encoding.put(out, record.payload);
        out.extend_from_slice(b"}}");
    }
}

/// `{topic, client, time, offset, qos, retain, encoding, data}`; `data` stands last, so that whoever wants the
/// exact bytes of a JSON payload finds them between `"data":` and the closing brace.
fn put_reading(out: &mut Vec<u8>, offset: Offset, record: &Record<'_>) {
    out.extend_from_slice(b"{\"topic\":");
    put_string(out, record.topic.as_str());
    out.extend_from_slice(b",\"client\":");
    put_string(out, record.client);
    let (time, qos, retain) = (rfc3339(record.time), record.qos as u8, record.retain);
    let encoding = Encoding::of(record.payload);
    out.extend_from_slice(
        format!(
            ",\"time\":\"{time}\",\"offset\":{offset},\"qos\":{qos},\"retain\":{retain},\"encoding\":\"{}\",\"data\":",
            encoding.name()
        )
        .as_bytes(),
    );
    encoding.put(out, record.payload);
    out.push(b'}');
}

/// How a payload is written into JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Encoding {
    /// As it is.
    Json,
    /// As a JSON string.
    Text,
    /// As a JSON string of base64 (RFC 4648 section 4).
    Base64,
}

impl Encoding {
    fn of(payload: &[u8]) -> Self {
        match std::str::from_utf8(payload) {
            Err(_) => Self::Base64,
            Ok(text) if is_spliceable(text) => Self::Json,
            Ok(_) => Self::Text,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Json => "json",
            Self::Text => "text",
            Self::Base64 => "base64",
        }
    }

    fn put(self, out: &mut Vec<u8>, payload: &[u8]) {
        match self {
            Self::Json => out.extend_from_slice(payload),
            Self::Text => {
                put_string(out, std::str::from_utf8(payload).expect("text was chosen because it is UTF-8"));
            }
            Self::Base64 => {
                out.push(b'"');
                out.extend_from_slice(STANDARD.encode(payload).as_bytes());
                out.push(b'"');
            }
        }
    }
}

/// Parsers take about 128 levels; the frame around the payload has a few of its own.
const DEPTH_MAX: usize = 100;

/// Whether `text` can stand inside other JSON on one line and every parser will read it. Escapes of lone
/// surrogates and numbers beyond a double are grammatical JSON that strict parsers refuse, together with
/// everything around them: a full parse settles those rare cases.
fn is_spliceable(text: &str) -> bool {
    let breaks_line = |byte| byte == b'\n' || byte == b'\r';
    if text.is_empty() || text.bytes().any(breaks_line) || nests_deeper_than(text.as_bytes(), DEPTH_MAX) {
        return false;
    }
    if needs_full_parse(text.as_bytes()) {
        serde_json::from_str::<serde_json::Value>(text).is_ok()
    } else {
        serde_json::from_str::<IgnoredAny>(text).is_ok()
    }
}

/// Counts brackets in strings as well, which errs on the side of text.
fn nests_deeper_than(text: &[u8], depth_max: usize) -> bool {
    let mut depth: usize = 0;
    text.iter().any(|byte| {
        match byte {
            b'[' | b'{' => depth += 1,
            b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        depth > depth_max
    })
}

fn needs_full_parse(text: &[u8]) -> bool {
    const DIGITS_SAFE: usize = 300;
    let mut digits = 0;
    let mut before = 0;
    for &byte in text {
        match byte {
            b'0'..=b'9' => digits += 1,
            b'e' | b'E' if digits > 0 => return true,
            b'u' if before == b'\\' => return true,
            _ => digits = 0,
        }
        if digits > DIGITS_SAFE {
            return true;
        }
        before = byte;
    }
    false
}

/// `text` as a JSON string.
pub(super) fn put_string(out: &mut Vec<u8>, text: &str) {
    serde_json::to_writer(out, text).expect("a string is always JSON and a vector takes any bytes");
}

/// RFC 3339 in UTC with milliseconds: `2026-01-31T12:00:00.000Z`.
pub(super) fn rfc3339(time: Timestamp) -> String {
    const PRINTER: DateTimePrinter = DateTimePrinter::new().precision(Some(3));
    let time = i64::try_from(time.0)
        .ok()
        .and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok())
        .unwrap_or(jiff::Timestamp::MAX);
    PRINTER.timestamp_to_string(&time)
}

/// The wall clock now.
pub(super) fn now() -> Timestamp {
    Timestamp(u64::try_from(jiff::Timestamp::now().as_millisecond()).unwrap_or(0))
}

/// The same identifier for the same record, whoever asks and however often it is sent again (UUID version 8,
/// RFC 9562: half from the journal, half from the offset).
fn record_uuid(journal: JournalId, offset: Offset) -> String {
    uuid(8, (journal.0 & !u128::from(u64::MAX)) | u128::from(offset.0))
}

/// A random UUID, version 4.
pub(super) fn random_uuid() -> String {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).expect("the operating system gives random bytes after it has started");
    uuid(4, u128::from_be_bytes(bytes))
}

fn uuid(version: u128, bits: u128) -> String {
    let bits = bits & !(0xf << 76) & !(0b11 << 62) | (version << 76) | (0b10 << 62);
    let hex = format!("{bits:032x}");
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;
    use tidegate_broker::record::{Properties, Qos};
    use tidegate_broker::topic::TopicName;

    fn record<'a>(topic: &'a str, payload: &'a [u8]) -> Record<'a> {
        Record {
            time: Timestamp(1_753_626_600_007),
            client: "sensor\"01",
            topic: TopicName::new(topic).unwrap(),
            properties: Properties::NONE,
            payload,
            qos: Qos::AtLeastOnce,
            retain: false,
            packet_id: 1,
        }
    }

    fn encoder() -> Encoder {
        Encoder::new(JournalId(7 << 64), "tidegate")
    }

    #[test]
    fn every_payload_is_recovered_byte_for_byte() {
        let payloads: &[(&[u8], &str)] = &[
            (br#"{"device":"sensor01","temp":23.50,"timestamp":"2025-07-27T14:30:00Z"}"#, "json"),
            (b"23.5", "json"),
            (b" 23.5\t", "json"),
            (b"-0.0", "json"),
            (b"1e3", "json"),
            (b"123456789012345678901234567890", "json"),
            (b"null", "json"),
            ("Temperature: 22.5°C".as_bytes(), "text"),
            (b"online", "text"),
            (b"", "text"),
            (b"{\"a\":1,\n\"b\":2}", "text"),
            (b"{\"a\":1}\r", "text"),
            (b"data: x\n\ndata: y", "text"),
            (b"1e999", "text"),
            (br#""\ud800""#, "text"),
            (br#""\u00e9""#, "json"),
            (b"{\"a\":\"\0\"}", "text"),
            (b"\xff\xfe\x00", "base64"),
            (b"\"\xff\"", "base64"),
        ];
        for &(payload, encoding) in payloads {
            for form in [Form::Sse, Form::TopicMessage, Form::Event] {
                let encoded = encoder().encode(form, Offset(42), &record("a/\"b\"", payload));
                let text = std::str::from_utf8(&encoded).unwrap();
                let json = match form {
                    Form::Sse => {
                        let rest = text.strip_prefix("id: 42\ndata: ").unwrap().strip_suffix("\n\n").unwrap();
                        assert!(!rest.contains(['\n', '\r']), "{rest:?}");
                        rest.to_owned()
                    }
                    Form::TopicMessage => text.to_owned(),
                    Form::Event => text.to_owned(),
                };
                let value: Value = serde_json::from_str(&json).expect(&json);
                let (body, name) = match form {
                    Form::Sse => (&value, "data"),
                    Form::TopicMessage => (&value["payload"], "data"),
                    Form::Event => (&value["payload"]["data"], "message"),
                };
                assert_eq!(body["encoding"], encoding, "{payload:?}");
                assert_eq!(body["topic"], "a/\"b\"");
                let recovered = match encoding {
                    "json" => {
                        let at = json.find(&format!("\"{name}\":")).unwrap() + name.len() + 3;
                        json.as_bytes()[at..at + payload.len()].to_vec()
                    }
                    "text" => body[name].as_str().unwrap().as_bytes().to_vec(),
                    _ => STANDARD.decode(body[name].as_str().unwrap()).unwrap(),
                };
                assert_eq!(recovered, payload, "{json}");
            }
        }
    }

    #[test]
    fn json_nested_beyond_what_parsers_take_goes_as_text() {
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        assert_eq!(Encoding::of(deep.as_bytes()), Encoding::Text);
    }

    #[test]
    fn a_reading_has_the_documented_fields() {
        let encoded = encoder().encode(Form::Sse, Offset(3), &record("sensors/a/temperature", b"21.5"));
        assert_eq!(
            std::str::from_utf8(&encoded).unwrap(),
            concat!(
                "id: 3\ndata: {\"topic\":\"sensors/a/temperature\",\"client\":\"sensor\\\"01\",",
                "\"time\":\"2025-07-27T14:30:00.007Z\",\"offset\":3,\"qos\":1,\"retain\":false,",
                "\"encoding\":\"json\",\"data\":21.5}\n\n"
            )
        );
    }

    #[test]
    fn the_event_frame_serves_kafka_and_mqtt_clients() {
        let encoded = encoder().encode(Form::Event, Offset(3), &record("a", br#"{"value":42}"#));
        let frame: Value = serde_json::from_slice(&encoded).unwrap();
        assert_eq!(frame["message_type"], "event");
        assert_eq!(frame["message_id"], "00000000-0000-8007-8000-000000000003");
        let event = &frame["payload"];
        assert_eq!(event["event_type"], "data_processed");
        assert_eq!(event["source_service"], "tidegate");
        assert_eq!(event["data"]["message"]["value"], 42);
        assert_eq!(event["data"]["payload"], r#"{"value":42}"#);
        assert_eq!(event["data"]["offset"], 3);
        assert_eq!(event["priority"], 1);
    }

    #[test]
    fn times_without_a_fraction_keep_their_milliseconds() {
        assert_eq!(rfc3339(Timestamp(0)), "1970-01-01T00:00:00.000Z");
        assert_eq!(rfc3339(Timestamp(1_700_000_000_500)), "2023-11-14T22:13:20.500Z");
        assert!(rfc3339(Timestamp(u64::MAX)).starts_with("9999-"));
    }
}
