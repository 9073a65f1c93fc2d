//! The headers of a Kafka record: CloudEvents 1.0 in binary mode (Kafka Protocol Binding, section 3.2) and the MQTT
//! user properties; pure.
//!
//! User properties come first, so that a client which looks a name up from the end, as Kafka's own does, cannot be
//! misled by a device that calls a property `ce_source`. Texts that change with every record are written into
//! buffers that are kept.

use std::fmt::Write as _;

use tidegate_broker::record::{Offset, Property, Record, Timestamp};

use crate::route::HeaderStyle;

const EVENT_TYPE: &str = "io.tidegate.publish";

/// Takes the headers of one record in, in order.
pub(super) trait HeaderSink {
    /// Adds one header; names may repeat.
    fn add(&mut self, name: &str, value: &[u8]);
}

/// Writes the headers of one record after the other.
#[derive(Debug)]
pub(super) struct HeaderWriter {
    id: String,
    id_prefix_bytes: usize,
    source: String,
    source_prefix_bytes: usize,
    /// The client whose `source` is written.
    source_client: Option<String>,
    time: TimeText,
}

impl HeaderWriter {
    /// For the journal whose id is `journal`; `source` begins `ce_source`.
    pub(super) fn new(journal: u128, source: &str) -> Self {
        let id = format!("{journal:032x}-");
        let source = format!("{source}/clients/");
        Self {
            id_prefix_bytes: id.len(),
            id,
            source_prefix_bytes: source.len(),
            source,
            source_client: None,
            time: TimeText::new(),
        }
    }

    /// Adds the headers of `record`, which lies at `offset`, to `headers`.
    pub(super) fn write(
        &mut self,
        style: HeaderStyle,
        offset: Offset,
        record: &Record<'_>,
        headers: &mut impl HeaderSink,
    ) {
        match style {
            HeaderStyle::None => {}
            HeaderStyle::Minimal => {
                write_properties(record, headers);
                self.write_id(offset, headers);
            }
            HeaderStyle::CloudEvents => {
                write_properties(record, headers);
                self.write_event(offset, record, headers);
            }
        }
    }

    fn write_id(&mut self, offset: Offset, headers: &mut impl HeaderSink) {
        self.id.truncate(self.id_prefix_bytes);
        push_decimal(&mut self.id, offset.0);
        headers.add("ce_id", self.id.as_bytes());
    }

    fn write_event(&mut self, offset: Offset, record: &Record<'_>, headers: &mut impl HeaderSink) {
        self.name_client(record.client);
        headers.add("ce_specversion", b"1.0");
        self.write_id(offset, headers);
        headers.add("ce_source", self.source.as_bytes());
        headers.add("ce_type", EVENT_TYPE.as_bytes());
        headers.add("ce_subject", record.topic.as_str().as_bytes());
        headers.add("ce_time", self.time.of(record.time).as_bytes());
    }

    /// Makes `source` end in `client`, as a URI segment (RFC 3986 section 3.3).
    fn name_client(&mut self, client: &str) {
        if self.source_client.as_deref() == Some(client) {
            return;
        }
        self.source.truncate(self.source_prefix_bytes);
        for &byte in client.as_bytes() {
            if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~' | b':' | b'@') {
                self.source.push(char::from(byte));
            } else {
                write!(self.source, "%{byte:02X}").expect("a String takes everything");
            }
        }
        let known = self.source_client.get_or_insert_default();
        known.clear();
        known.push_str(client);
    }
}

/// What the publisher sent along.
fn write_properties(record: &Record<'_>, headers: &mut impl HeaderSink) {
    let mut content_type = None;
    for property in record.properties {
        match property {
            Property::User(name, value) => headers.add(name, value.as_bytes()),
            Property::ContentType(text) => content_type = Some(text),
            Property::ResponseTopic(topic) => headers.add("mqtt_response_topic", topic.as_bytes()),
            Property::CorrelationData(data) => headers.add("mqtt_correlation_data", data),
            Property::PayloadFormat(_) | Property::MessageExpiry(_) => {}
        }
    }
    if let Some(text) = content_type {
        headers.add("content-type", text.as_bytes());
    }
}

fn push_decimal(text: &mut String, mut number: u64) {
    let mut digits = [0_u8; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    text.extend(digits[at..].iter().map(|&digit| char::from(digit)));
}

/// RFC 3339 in UTC with milliseconds; the part that changes each second is kept.
#[derive(Debug)]
struct TimeText {
    second: Option<u64>,
    text: String,
}

/// `2025-07-27T14:30:00.`
const SECOND_BYTES: usize = 20;

impl TimeText {
    const fn new() -> Self {
        Self { second: None, text: String::new() }
    }

    fn of(&mut self, time: Timestamp) -> &str {
        let (second, millis) = (time.0 / 1_000, time.0 % 1_000);
        if self.second != Some(second) {
            self.begin_second(second);
        }
        self.text.truncate(SECOND_BYTES);
        for digit in [millis / 100, millis / 10 % 10, millis % 10] {
            self.text.push(char::from(b'0' + digit as u8));
        }
        self.text.push('Z');
        &self.text
    }

    fn begin_second(&mut self, second: u64) {
        // Beyond the year 9999 there is no RFC 3339.
        let shown = i64::try_from(second).ok().and_then(|second| jiff::Timestamp::from_second(second).ok());
        let shown = shown.unwrap_or(jiff::Timestamp::UNIX_EPOCH);
        self.text.clear();
        write!(self.text, "{shown:.3}").expect("a String takes everything");
        self.second = Some(second);
    }
}

#[cfg(test)]
mod tests {
    use tidegate_broker::record::{Properties, Qos};
    use tidegate_broker::topic::TopicName;

    use super::*;

    #[derive(Default)]
    struct Collected(Vec<(String, String)>);

    impl HeaderSink for Collected {
        fn add(&mut self, name: &str, value: &[u8]) {
            self.0.push((name.into(), String::from_utf8(value.to_vec()).unwrap()));
        }
    }

    fn headers(style: HeaderStyle, client: &str, properties: &[u8]) -> Vec<(String, String)> {
        let mut writer = HeaderWriter::new(0xABC, "/tidegate");
        let record = Record {
            time: Timestamp(1_753_626_600_007),
            client,
            topic: TopicName::new("étage/1").unwrap(),
            properties: Properties::from_encoded(properties),
            payload: b"22.5",
            qos: Qos::AtLeastOnce,
            retain: false,
            packet_id: 1,
        };
        let mut collected = Collected::default();
        writer.write(style, Offset(0), &record, &mut collected);
        collected.0.clear();
        writer.write(style, Offset(18_446_744_073_709_551_615), &record, &mut collected);
        collected.0
    }

    fn owned(expected: &[(&str, &str)]) -> Vec<(String, String)> {
        expected.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect()
    }

    const USER_AND_CONTENT_TYPE: &[u8] =
        b"\x26\x00\x01k\x00\x01v\x03\x00\x04text\x26\x00\x05ce_id\x00\x01x\x08\x00\x01r";

    #[test]
    fn a_record_carries_cloudevents_headers_behind_its_own() {
        let expected = owned(&[
            ("k", "v"),
            ("ce_id", "x"),
            ("mqtt_response_topic", "r"),
            ("content-type", "text"),
            ("ce_specversion", "1.0"),
            ("ce_id", "00000000000000000000000000000abc-18446744073709551615"),
            ("ce_source", "/tidegate/clients/sensor%2F1%20%C3%A9"),
            ("ce_type", "io.tidegate.publish"),
            ("ce_subject", "étage/1"),
            ("ce_time", "2025-07-27T14:30:00.007Z"),
        ]);
        assert_eq!(headers(HeaderStyle::CloudEvents, "sensor/1 é", USER_AND_CONTENT_TYPE), expected);
    }

    #[test]
    fn fewer_headers_are_a_choice() {
        let id = "00000000000000000000000000000abc-18446744073709551615";
        let minimal = owned(&[
            ("k", "v"),
            ("ce_id", "x"),
            ("mqtt_response_topic", "r"),
            ("content-type", "text"),
            ("ce_id", id),
        ]);
        assert_eq!(headers(HeaderStyle::Minimal, "c", USER_AND_CONTENT_TYPE), minimal);
        assert_eq!(headers(HeaderStyle::Minimal, "c", b""), owned(&[("ce_id", id)]));
        assert_eq!(headers(HeaderStyle::None, "c", USER_AND_CONTENT_TYPE), []);
    }

    #[test]
    fn times_are_written_as_rfc_3339_in_utc_with_milliseconds() {
        let mut time = TimeText::new();
        let mut check = |ms: u64, expected: &str| assert_eq!(time.of(Timestamp(ms)), expected);
        check(0, "1970-01-01T00:00:00.000Z");
        check(999, "1970-01-01T00:00:00.999Z");
        check(1_000, "1970-01-01T00:00:01.000Z");
        check(951_827_696_789, "2000-02-29T12:34:56.789Z");
        check(951_827_696_780, "2000-02-29T12:34:56.780Z");
    }
}
