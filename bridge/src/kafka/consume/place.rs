//! Where a consumed record is published: its MQTT topic; pure.
//!
//! What a record says first in this order counts. What it says must be legal: it is not replaced by what stands further
//! down, because then a command could reach another device than the one that was meant.
//!
//! | | the whole topic | `{device_id}` | `{action}` | `{severity}` | any other `{field}` |
//! |---|---|---|---|---|---|
//! | 1 | headers `ce_subject`, `mqtt_topic`, if it is of the template's family | | | | |
//! | 2 | | header `device_id` | header `action` | header `severity` | header `field` |
//! | 3 | | the record's key, if it is text | | | |
//! | 4 | | JSON `device_id`, `deviceId`, `device`, `sensor_id` | JSON `action`, `command` | JSON `severity`, `level` | JSON `field` |
//!
//! JSON fields are those of the value, if it is a JSON object; texts and numbers count. Of several headers with one name
//! the last counts, as with Kafka's own clients.

use std::borrow::Cow;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};
use tidegate_broker::topic::TopicName;

use super::headers::{self, Header};
use super::template::{Level, Template};

/// Why a record can be published nowhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Unplaced {
    /// A short word for it.
    pub(super) reason: &'static str,
    /// What is wrong with the record, and what would be right.
    pub(super) detail: String,
}

/// The MQTT topic of a record with these `headers`, `key` and `value`.
pub(super) fn place(
    template: &Template,
    headers: &[Header<'_>],
    key: Option<&[u8]>,
    value: &[u8],
) -> Result<String, Unplaced> {
    if let Some(topic) = named_topic(template, headers)? {
        return Ok(topic);
    }
    let mut json = None;
    let mut topic = String::new();
    for (at, level) in template.levels().iter().enumerate() {
        if at > 0 {
            topic.push('/');
        }
        match level {
            Level::Fixed(text) => topic.push_str(text),
            Level::Field(field) => {
                let (found, from) = find(field, headers, key, || {
                    let fields = json.get_or_insert_with(|| Fields::read(template, value));
                    fields.of(field)
                })?;
                topic.push_str(legal_level(&found, field, from)?);
            }
        }
    }
    match TopicName::new(&topic) {
        Ok(name) if !name.is_system() => Ok(topic),
        Ok(_) => Err(illegal(format!("the topic {topic:?} begins with $: such topics belong to the broker"))),
        Err(why) => Err(illegal(format!("it makes no topic: {why}"))),
    }
}

const TOPIC_HEADERS: [&str; 2] = ["ce_subject", "mqtt_topic"];

/// The topic that a header names, if one names a topic of the family.
fn named_topic(template: &Template, headers: &[Header<'_>]) -> Result<Option<String>, Unplaced> {
    for name in TOPIC_HEADERS {
        let Some(topic) = headers::last(headers, name).and_then(headers::text) else { continue };
        if !template.is_family(topic) {
            continue;
        }
        return match TopicName::new(topic) {
            Ok(legal) if !legal.is_system() => Ok(Some(topic.to_owned())),
            Ok(_) => Err(illegal(format!("the header {name} names {topic:?}, which belongs to the broker"))),
            Err(why) => Err(illegal(format!("the header {name} names {topic:?}: {why}"))),
        };
    }
    Ok(None)
}

const fn illegal(detail: String) -> Unplaced {
    Unplaced { reason: "illegal_topic", detail }
}

/// What fills `field`, and where it stands.
fn find<'a>(
    field: &str,
    headers: &[Header<'a>],
    key: Option<&'a [u8]>,
    json: impl FnOnce() -> Option<String>,
) -> Result<(Cow<'a, str>, &'static str), Unplaced> {
    if let Some(value) = headers::last(headers, field) {
        let text = headers::text(value);
        let text = text.ok_or_else(|| illegal(format!("the header {field} is no text")))?;
        return Ok((text.into(), "header"));
    }
    // A key of a number's bytes is no text, and names no device.
    let key = key.filter(|_| field == DEVICE_ID).and_then(headers::text).filter(|key| !key.is_empty());
    if let Some(key) = key.filter(|key| !key.contains(char::is_control)) {
        return Ok((key.into(), "key"));
    }
    if let Some(value) = json() {
        return Ok((value.into(), "JSON"));
    }
    let key = if field == DEVICE_ID { ", a key" } else { "" };
    Err(Unplaced {
        reason: "no_topic",
        detail: format!(
            "nothing says what {{{field}}} is: give it a header {field}{key} or a JSON field {}",
            names(field).collect::<Vec<_>>().join(" or ")
        ),
    })
}

/// Checks that `text`, which comes from outside, is one level of a topic and nothing more.
fn legal_level<'t>(text: &'t str, field: &str, from: &str) -> Result<&'t str, Unplaced> {
    if text.is_empty() {
        return Err(illegal(format!("its {from} has an empty {field}")));
    }
    if let Some(wrong) = text.chars().find(|letter| matches!(letter, '+' | '#' | '/' | '\0')) {
        return Err(illegal(format!(
            "its {from} has {field} = {text:?}: a level of a topic cannot hold {wrong:?}"
        )));
    }
    Ok(text)
}

const DEVICE_ID: &str = "device_id";

/// The JSON fields that can fill `field`, the first that is there counts.
fn names(field: &str) -> impl Iterator<Item = &str> {
    let others: &[&str] = match field {
        DEVICE_ID => &["deviceId", "device", "sensor_id"],
        "action" => &["command"],
        "severity" => &["level"],
        _ => &[],
    };
    std::iter::once(field).chain(others.iter().copied())
}

/// The fields of a JSON object that can fill those of a template.
#[derive(Debug)]
struct Fields<'t>(Vec<(&'t str, Option<String>)>);

impl<'t> Fields<'t> {
    /// Reads `value`; of what is no JSON object there are none.
    fn read(template: &'t Template, value: &[u8]) -> Self {
        let mut fields = Self(template.fields().flat_map(names).map(|name| (name, None)).collect());
        let mut json = serde_json::Deserializer::from_slice(value);
        let read = json.deserialize_map(&mut fields).and_then(|()| json.end());
        if read.is_err() {
            fields.0.clear();
        }
        fields
    }

    fn of(&self, field: &str) -> Option<String> {
        let value = |name| self.0.iter().find(|(known, _)| *known == name)?.1.clone();
        names(field).find_map(value)
    }
}

impl<'de> Visitor<'de> for &mut Fields<'_> {
    type Value = ();

    fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(name) = map.next_key::<Cow<'de, str>>()? {
            match self.0.iter_mut().find(|(known, _)| *known == name) {
                Some((_, place)) => *place = map.next_value_seed(Scalar)?,
                None => _ = map.next_value::<IgnoredAny>()?,
            }
        }
        Ok(())
    }
}

/// A JSON text or number, as text; anything else is none.
struct Scalar;

impl<'de> DeserializeSeed<'de> for Scalar {
    type Value = Option<String>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        use serde::Deserialize as _;
        Ok(match serde_json::Value::deserialize(deserializer)? {
            serde_json::Value::String(text) => Some(text),
            serde_json::Value::Number(number) => Some(number.to_string()),
            serde_json::Value::Null
            | serde_json::Value::Bool(_)
            | serde_json::Value::Array(_)
            | serde_json::Value::Object(_) => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Outcome = Result<String, (&'static str, String)>;

    fn placed(template: &str, headers: &[(&str, &str)], key: Option<&[u8]>, value: &str) -> Outcome {
        let headers: Vec<Header<'_>> =
            headers.iter().map(|(name, value)| (*name, Some(value.as_bytes()))).collect();
        let template = Template::new(template).unwrap();
        place(&template, &headers, key, value.as_bytes()).map_err(|it| (it.reason, it.detail))
    }

    const COMMANDS: &str = "commands/{device_id}/{action}";
    const ALERTS: &str = "alerts/{severity}";

    #[test]
    fn what_stands_first_in_the_table_counts() {
        let json = r#"{"deviceId":"json","action":"jump","x":{"device_id":"inner"}}"#;
        let check = |headers: &[(&str, &str)], key: Option<&[u8]>, value: &str, expected: &str| {
            assert_eq!(placed(COMMANDS, headers, key, value), Ok(expected.into()), "{headers:?} {value}");
        };
        let subject = ("ce_subject", "commands/sub/ject/deep");
        check(&[("device_id", "head"), subject], Some(b"key"), json, "commands/sub/ject/deep");
        check(&[("mqtt_topic", "commands/a/b")], Some(b"key"), json, "commands/a/b");
        // A subject of another family is somebody else's.
        let stranger = ("ce_subject", "orders/17");
        check(&[stranger, ("device_id", "head")], Some(b"key"), json, "commands/head/jump");
        check(&[("action", "run")], Some(b"key"), json, "commands/key/run");
        check(&[], Some(b"key"), json, "commands/key/jump");
        check(&[], None, json, "commands/json/jump");
        check(&[], Some(b""), json, "commands/json/jump");
        // The bytes of a number are no text.
        check(&[], Some(&[0, 0, 0, 7]), json, "commands/json/jump");
        check(&[], Some(&[0xff]), json, "commands/json/jump");
        check(&[("action", "a"), ("action", "b")], Some(b"k"), "", "commands/k/b");
    }

    #[test]
    fn every_name_of_a_field_is_known() {
        let check = |value: &str, expected: &str| {
            assert_eq!(placed(COMMANDS, &[], None, value), Ok(expected.into()), "{value}");
        };
        check(r#"{"device_id":"1","deviceId":"2","command":"c"}"#, "commands/1/c");
        check(r#"{"deviceId":"2","device":"3","command":"c","action":"a"}"#, "commands/2/a");
        check(r#"{"sensor_id":"4","device":"3","action":"a"}"#, "commands/3/a");
        check(r#"{"sensor_id":17,"action":"a"}"#, "commands/17/a");
        check(r#"{"device_id":null,"device":true,"sensor_id":"4","action":"\u00e9"}"#, "commands/4/é");
        let severity = |value: &str| placed(ALERTS, &[], None, value);
        assert_eq!(severity(r#"{"level":"high"}"#), Ok("alerts/high".into()));
        assert_eq!(severity(r#"{"level":"high","severity":"low"}"#), Ok("alerts/low".into()));
        let lot = placed("parking/{lot}/{bay}/calibrate", &[("lot", "p1")], None, r#"{"bay":4}"#);
        assert_eq!(lot, Ok("parking/p1/4/calibrate".into()));
        assert_eq!(placed("news", &[], None, "x"), Ok("news".into()));
    }

    #[test]
    fn what_says_nothing_is_told_what_to_say() {
        let check = |template: &str, value: &str, expected: &str| {
            let (reason, detail) = placed(template, &[], None, value).unwrap_err();
            assert_eq!(reason, "no_topic", "{value}");
            assert!(detail.contains(expected), "{value}: {detail}");
        };
        check(COMMANDS, "22.5", "header device_id, a key or a JSON field device_id or deviceId or device");
        check(COMMANDS, r#"{"device_id":"a","#, "{device_id}");
        check(COMMANDS, r#"{"device_id":"a"} x"#, "{device_id}");
        check(COMMANDS, r#"[{"device_id":"a"}]"#, "{device_id}");
        check(COMMANDS, r#"{"device_id":"a"}"#, "header action or a JSON field action or command");
        check(ALERTS, r#"{"severity":{"of":"x"}}"#, "{severity}");
        check(ALERTS, &"[".repeat(100_000), "{severity}");
    }

    #[test]
    fn a_level_from_outside_never_widens_or_leaves_its_place() {
        let check = |headers: &[(&str, &str)], key: Option<&[u8]>, value: &str| {
            let (reason, detail) = placed(COMMANDS, headers, key, value).unwrap_err();
            assert_eq!(reason, "illegal_topic", "{headers:?} {value}: {detail}");
        };
        let json = r#"{"device_id":"other","action":"open"}"#;
        for level in ["", "+", "#", "a/b", "a\0b", "a#", "/"] {
            check(&[("device_id", level)], None, json);
            check(&[("action", level)], Some(b"d"), json);
            let value = serde_json::json!({"device_id": level, "action": "a"}).to_string();
            check(&[], None, &value);
        }
        check(&[], Some(b"a/b"), json);
        check(&[("ce_subject", "commands/+/open")], Some(b"d"), json);
        check(&[("ce_subject", "commands/#")], Some(b"d"), json);
        let long = "x".repeat(70_000);
        check(&[("action", &long)], Some(b"d"), json);
        let system = placed("{a}/b", &[("a", "$SYS")], None, "").unwrap_err();
        assert_eq!(system.0, "illegal_topic");
        let system = placed("{a}/b", &[("ce_subject", "$SYS/b")], None, "").unwrap_err();
        assert_eq!(system.0, "illegal_topic");
        let bytes: [Header<'_>; 1] = [("device_id", Some(&[0xff]))];
        let template = Template::new(COMMANDS).unwrap();
        assert_eq!(place(&template, &bytes, Some(b"d"), b"{}").unwrap_err().reason, "illegal_topic");
    }
}
