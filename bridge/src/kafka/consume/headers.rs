//! The headers of a consumed record: what they say, and which travel on as MQTT properties; pure.
//!
//! What travels is bounded in number and bytes. What does not fit, or is no text, is left out and counted: the payload
//! is what a command is about.

use tidegate_broker::record::property_id;
use tidegate_broker::topic::TopicName;

use super::origin::VIA;

/// Name and value; a header may have none.
pub(super) type Header<'a> = (&'a str, Option<&'a [u8]>);

/// How many headers become user properties.
const USER_PROPERTIES_MAX: usize = 32;
/// How many bytes all properties of a record have together.
const PROPERTIES_BYTES_MAX: usize = 8 << 10;

/// The value of the last header called `name`, which counts with Kafka's own clients too; empty if it has none.
pub(super) fn last<'a>(headers: &[Header<'a>], name: &str) -> Option<&'a [u8]> {
    let (_, value) = headers.iter().rev().find(|(known, _)| *known == name)?;
    Some(value.unwrap_or_default())
}

/// `bytes` as a UTF-8 Encoded String of MQTT [MQTT-1.5.4-2], if they are one.
pub(super) fn text(bytes: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(bytes).ok()?;
    (text.len() <= usize::from(u16::MAX) && !text.contains('\0')).then_some(text)
}

/// Properties in the encoding of [`tidegate_broker::record::Properties`], and how many headers were left out.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Travelling {
    pub(super) encoded: Vec<u8>,
    pub(super) left_out: u64,
    user_properties: usize,
}

/// What of `headers` travels on. `via` is added, and takes the place of what they say of it.
pub(super) fn travelling(headers: &[Header<'_>], via: Option<&str>) -> Travelling {
    let mut travelling = Travelling::default();
    if let Some(via) = via {
        travelling.add_user(VIA, via);
    }
    // Those that can be there once only.
    for (name, add) in [
        ("content-type", Travelling::add_content_type as fn(&mut Travelling, &[u8]) -> bool),
        ("mqtt_response_topic", Travelling::add_response_topic),
        ("mqtt_correlation_data", |travelling, value| {
            travelling.add(property_id::CORRELATION_DATA, &[value])
        }),
    ] {
        if let Some(value) = last(headers, name)
            && !add(&mut travelling, value)
        {
            travelling.left_out += 1;
        }
    }
    for (name, value) in headers {
        if matches!(*name, VIA | "content-type" | "mqtt_response_topic" | "mqtt_correlation_data") {
            continue;
        }
        let value = text(value.unwrap_or_default());
        if !value.is_some_and(|value| text(name.as_bytes()).is_some() && travelling.add_user(name, value)) {
            travelling.left_out += 1;
        }
    }
    travelling
}

impl Travelling {
    fn add_user(&mut self, name: &str, value: &str) -> bool {
        if self.user_properties == USER_PROPERTIES_MAX {
            return false;
        }
        let added = self.add(property_id::USER, &[name.as_bytes(), value.as_bytes()]);
        self.user_properties += usize::from(added);
        added
    }

    fn add_content_type(&mut self, value: &[u8]) -> bool {
        text(value).is_some() && self.add(property_id::CONTENT_TYPE, &[value])
    }

    fn add_response_topic(&mut self, value: &[u8]) -> bool {
        let is_topic = text(value).is_some_and(|value| TopicName::new(value).is_ok());
        is_topic && self.add(property_id::RESPONSE_TOPIC, &[value])
    }

    /// Adds a property of these parts if there is room.
    fn add(&mut self, id: u8, parts: &[&[u8]]) -> bool {
        let bytes: usize = parts.iter().map(|part| 2 + part.len()).sum();
        if self.encoded.len() + 1 + bytes > PROPERTIES_BYTES_MAX {
            return false;
        }
        self.encoded.push(id);
        for part in parts {
            let length = u16::try_from(part.len()).expect("all properties together have fewer bytes");
            self.encoded.extend_from_slice(&length.to_be_bytes());
            self.encoded.extend_from_slice(part);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use tidegate_broker::record::{Properties, Property};

    use super::*;

    fn read(travelling: &Travelling) -> Vec<(String, String)> {
        let shown = |property: Property<'_>| match property {
            Property::User(name, value) => (name.to_owned(), value.to_owned()),
            Property::ContentType(text) => ("=type".to_owned(), text.to_owned()),
            Property::ResponseTopic(topic) => ("=response".to_owned(), topic.to_owned()),
            Property::CorrelationData(data) => {
                ("=correlation".to_owned(), String::from_utf8_lossy(data).into_owned())
            }
            Property::PayloadFormat(_) | Property::MessageExpiry(_) => ("=other".to_owned(), String::new()),
        };
        Properties::from_encoded(&travelling.encoded).iter().map(shown).collect()
    }

    fn owned(expected: &[(&str, &str)]) -> Vec<(String, String)> {
        expected.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect()
    }

    #[test]
    fn texts_travel_and_what_the_sink_wrote_of_mqtt_is_mqtt_again() {
        let headers: [Header<'_>; 9] = [
            ("room", Some("é1".as_bytes())),
            ("mqtt_response_topic", Some(b"replies/7")),
            ("mqtt_correlation_data", Some(b"\x01\xff")),
            ("content-type", Some(b"text/plain")),
            ("content-type", Some(b"application/json")),
            ("tidegate_via", Some(b"forged")),
            ("ce_source", Some(b"/x")),
            ("empty", None),
            ("room", Some(b"2")),
        ];
        let travelling = travelling(&headers, Some("0a"));
        let expected = owned(&[
            ("tidegate_via", "0a"),
            ("=type", "application/json"),
            ("=response", "replies/7"),
            ("=correlation", "\u{1}\u{fffd}"),
            ("room", "é1"),
            ("ce_source", "/x"),
            ("empty", ""),
            ("room", "2"),
        ]);
        assert_eq!(read(&travelling), expected);
        assert_eq!(travelling.left_out, 0);
    }

    #[test]
    fn what_mqtt_has_no_place_for_is_left_out_and_counted() {
        let headers: [Header<'_>; 6] = [
            ("bytes", Some(b"\xff")),
            ("nul", Some(b"a\0b")),
            ("a\0name", Some(b"x")),
            ("content-type", Some(b"\xff")),
            ("mqtt_response_topic", Some(b"a/#")),
            ("good", Some(b"x")),
        ];
        let travelling = travelling(&headers, None);
        assert_eq!(read(&travelling), owned(&[("good", "x")]));
        assert_eq!(travelling.left_out, 5);
    }

    #[test]
    fn number_and_bytes_are_bounded() {
        let many: Vec<Header<'_>> = vec![("a", Some(b"b")); 100];
        let few = travelling(&many, Some("0a"));
        assert_eq!((read(&few).len(), few.left_out), (USER_PROPERTIES_MAX, 69));
        let large = vec![b'x'; 70_000];
        let headers: [Header<'_>; 4] = [
            ("huge", Some(&large)),
            ("content-type", Some(&large)),
            ("large", Some(&large[..8_100])),
            ("next", Some(&large[..100])),
        ];
        let bounded = travelling(&headers, None);
        assert!(bounded.encoded.len() <= PROPERTIES_BYTES_MAX);
        assert_eq!((read(&bounded).len(), bounded.left_out), (1, 3));
    }
}
