//! `tidegate journal dump`: one line of JSON for each record, read past whatever is damaged.
//!
//! Read batch by batch: memory does not grow with the journal. Every payload can be recovered: text as `payload`, a
//! string with exactly its bytes, anything else as `payload_base64`.

use std::io;
use std::ops::ControlFlow;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};
use tidegate_broker::journal::inspect::{Item, Outside, Source};
use tidegate_broker::record::{Batch, Entry, Offset, Properties, Property, Record, Timestamp};
use tidegate_broker::session::control::Control;

use super::filters::Filters;
use super::output::{Output, rfc3339, told};
use super::{Place, unusable};
use crate::Failure;

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    filters: Filters,
    /// Also control entries (sessions, subscriptions, deliveries in flight), and gaps.
    #[arg(long)]
    control: bool,
    /// No more than this many lines.
    #[arg(long, value_name = "N")]
    limit: Option<u64>,
}

pub(super) fn run(place: &Place<'_>, arguments: &Arguments) -> Result<(), Failure> {
    let storage = place.read()?;
    let outside = Outside { checkpoint: place.checkpoint()?.offset(), control: None };
    let source = Source::open(&*storage, outside).map_err(unusable)?;
    let mut output = Output::new();
    let mut lines = Lines::new(&arguments.filters, arguments.control, arguments.limit);
    let mut write = |line: &[u8]| output.write(line);
    let lost = lines.write_all(&source, &mut write)?;
    told(std::mem::replace(&mut lines.failed, Ok(())).and_then(|()| output.flush()))?;
    say_lost(lost)
}

/// How a command ends that has read past `places` that are damaged.
pub(super) fn say_lost(places: u64) -> Result<(), Failure> {
    if places == 0 {
        return Ok(());
    }
    Err(Failure::damaged(format!(
        "{places} runs of entries are not readable and were passed over, see above; `tidegate journal verify` tells more"
    )))
}

/// Writes entries as lines.
#[derive(Debug)]
pub(super) struct Lines<'a> {
    filters: &'a Filters,
    control: bool,
    left: u64,
    line: Vec<u8>,
    /// How the last write ended.
    pub(super) failed: io::Result<()>,
}

impl<'a> Lines<'a> {
    pub(super) fn new(filters: &'a Filters, control: bool, limit: Option<u64>) -> Self {
        Self { filters, control, left: limit.unwrap_or(u64::MAX), line: Vec::new(), failed: Ok(()) }
    }

    /// Gives each line of what is wanted to `write`, until that fails. Returns how many runs of entries could not be read;
    /// each is told on stderr.
    pub(super) fn write_all(
        &mut self,
        source: &Source<'_>,
        write: &mut dyn FnMut(&[u8]) -> io::Result<()>,
    ) -> Result<u64, Failure> {
        let mut lost = 0;
        let (from, to) = (self.filters.from(), self.filters.to());
        let read = source.read(from, self.filters.since(), &mut |item| {
            let written = match item {
                _ if self.left == 0 => return ControlFlow::Break(()),
                Item::Batch(batch) if batch.base() >= to => return ControlFlow::Break(()),
                Item::Lost { from, .. } if from >= to => return ControlFlow::Break(()),
                Item::Batch(batch) => self.write_batch(&batch, to, write),
                Item::Lost { from, to, fault } => {
                    lost += 1;
                    eprintln!("tidegate: {} byte {}: {}", fault.file, fault.at, fault.found);
                    self.write_gap(from, to, "unreadable", write)
                }
            };
            match written {
                Ok(()) => ControlFlow::Continue(()),
                Err(error) => {
                    self.failed = Err(error);
                    ControlFlow::Break(())
                }
            }
        });
        read.map_err(unusable)?;
        Ok(lost)
    }

    fn write_batch(
        &mut self,
        batch: &Batch,
        to: Offset,
        write: &mut dyn FnMut(&[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        if batch.is_gap() {
            let kind = if batch.lost() > 0 { "lost" } else { "unused" };
            return self.write_gap(batch.base(), batch.end(), kind, write);
        }
        for (place, entry) in batch.entries() {
            if place.offset >= to || self.left == 0 {
                return Ok(());
            }
            if !self.filters.wants_entry(&entry, batch.time(), self.control) {
                continue;
            }
            let value = match entry {
                Entry::Record(record) => record_value(place.offset, &record),
                Entry::Control(body) => control_value(place.offset, batch.time(), body),
            };
            self.write_line(&value, write)?;
        }
        Ok(())
    }

    fn write_gap(
        &mut self,
        from: Offset,
        to: Offset,
        kind: &str,
        write: &mut dyn FnMut(&[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        if !self.control {
            return Ok(());
        }
        self.write_line(&json!({ "offset": from, "to": to, "gap": kind }), write)
    }

    fn write_line(
        &mut self,
        value: &Value,
        write: &mut dyn FnMut(&[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        self.line.clear();
        serde_json::to_writer(&mut self.line, value)?;
        self.line.push(b'\n');
        self.left -= 1;
        write(&self.line)
    }
}

fn record_value(offset: Offset, record: &Record<'_>) -> Value {
    let mut value = json!({
        "offset": offset,
        "time": rfc3339(record.time),
        "client": record.client,
        "topic": record.topic.as_str(),
        "qos": record.qos as u8,
        "retain": record.retain,
    });
    if !record.properties.is_empty() {
        value["properties"] = properties(record.properties);
    }
    put_bytes(value.as_object_mut().expect("it was made as one"), "payload", record.payload);
    value
}

/// Text as `name`, anything else as `name_base64`.
fn put_bytes(object: &mut Map<String, Value>, name: &str, bytes: &[u8]) {
    match std::str::from_utf8(bytes) {
        Ok(text) => object.insert(name.to_owned(), text.into()),
        Err(_) => object.insert(format!("{name}_base64"), STANDARD.encode(bytes).into()),
    };
}

fn properties(properties: Properties<'_>) -> Value {
    let mut value = Map::new();
    let mut user = Vec::new();
    for property in properties {
        match property {
            Property::PayloadFormat(format) => drop(value.insert("payload_format".into(), format.into())),
            Property::MessageExpiry(seconds) => drop(value.insert("message_expiry_s".into(), seconds.into())),
            Property::ContentType(text) => drop(value.insert("content_type".into(), text.into())),
            Property::ResponseTopic(text) => drop(value.insert("response_topic".into(), text.into())),
            Property::CorrelationData(bytes) => put_bytes(&mut value, "correlation_data", bytes),
            Property::User(name, text) => user.push(json!([name, text])),
        }
    }
    if !user.is_empty() {
        value.insert("user".into(), user.into());
    }
    value.into()
}

/// `{"offset":..,"time":..,"control":"connected", and what it says}`. The time is that of its batch.
fn control_value(offset: Offset, time: Timestamp, body: &[u8]) -> Value {
    let mut value = json!({ "offset": offset, "time": rfc3339(time) });
    let object = value.as_object_mut().expect("it was made as one");
    let decoded = Control::decode(body).ok().and_then(|control| serde_json::to_value(control).ok());
    // As serde tells an enum: its name, and what it holds.
    let Some((name, Value::Object(fields))) =
        decoded.and_then(|value| if let Value::Object(one) = value { one.into_iter().next() } else { None })
    else {
        object.insert("control".into(), "unknown".into());
        put_bytes(object, "body", body);
        return value;
    };
    object.insert("control".into(), snake_case(&name).into());
    object.extend(fields.into_iter().map(|(name, value)| (name, with_texts(value))));
    value
}

/// `AnnouncedShared` as `announced_shared`.
fn snake_case(name: &str) -> String {
    let mut text = String::new();
    for (at, letter) in name.char_indices() {
        if letter.is_uppercase() && at > 0 {
            text.push('_');
        }
        text.extend(letter.to_lowercase());
    }
    text
}

/// With the bytes of payloads and properties, which are lists of numbers, as text or base64.
fn with_texts(value: Value) -> Value {
    let Value::Object(fields) = value else { return value };
    let mut texts = Map::new();
    for (name, value) in fields {
        let bytes: Option<Vec<u8>> = match (&*name, &value) {
            ("payload" | "properties", Value::Array(items)) => {
                items.iter().map(|item| item.as_u64().and_then(|byte| u8::try_from(byte).ok())).collect()
            }
            _ => None,
        };
        match bytes {
            Some(bytes) => put_bytes(&mut texts, &name, &bytes),
            None => drop(texts.insert(name, with_texts(value))),
        }
    }
    texts.into()
}

#[cfg(test)]
mod tests {
    use tidegate_broker::record::Qos;
    use tidegate_broker::topic::TopicName;

    use super::*;

    fn check(payload: &[u8], name: &str, expected: &str) {
        let record = Record {
            time: Timestamp(0),
            client: "c",
            topic: TopicName::new("a").unwrap(),
            properties: Properties::from_encoded(b"\x03\x00\x01j\x26\x00\x01k\x00\x01v"),
            payload,
            qos: Qos::AtLeastOnce,
            retain: true,
            packet_id: 1,
        };
        let value = record_value(Offset(7), &record);
        assert_eq!(value[name], expected);
        assert_eq!(value["offset"], 7);
        assert_eq!(value["properties"], json!({ "content_type": "j", "user": [["k", "v"]] }));
    }

    #[test]
    fn every_payload_can_be_recovered() {
        check(b"22.5", "payload", "22.5");
        check(b"{\"a\":1}", "payload", "{\"a\":1}");
        check("°C".as_bytes(), "payload", "°C");
        check(b"", "payload", "");
        check(b"\xff\x00", "payload_base64", "/wA=");
    }

    #[test]
    fn control_entries_say_what_they_are() {
        let will = tidegate_broker::session::control::Will {
            topic: "t".into(),
            properties: Box::new([]),
            payload: Box::new(*b"gone"),
            qos: Qos::AtMostOnce,
            retain: false,
            delay_s: 0,
        };
        let control = Control::Connected {
            session: 3,
            client: "c".into(),
            expiry_s: 9,
            will: Some(std::borrow::Cow::Owned(will)),
        };
        let value = control_value(Offset(1), Timestamp(0), &control.encode());
        assert_eq!(
            (&value["control"], &value["client"], &value["session"]),
            (&json!("connected"), &json!("c"), &json!(3))
        );
        assert_eq!(value["will"]["payload"], "gone");
        let unknown = control_value(Offset(1), Timestamp(0), b"\xff\xff");
        assert_eq!((&unknown["control"], &unknown["body_base64"]), (&json!("unknown"), &json!("//8=")));
    }
}
