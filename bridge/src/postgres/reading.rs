//! The readings in a record: rules that turn topic, Client Identifier, payload and time of receipt into rows.
//!
//! Every record gives at least one reading, and nothing is refused for its payload.
//!
//! **Payload**
//! - A bare number (`23.5`) is a number. A number that a double cannot hold exactly, or not at all, is kept as text too.
//! - A JSON object with `value` is one reading with the metric of the topic; `value` may itself be an object, each
//!   entry of which is a metric. What else the object says is kept in `json`.
//! - In any other JSON object each field is a metric of its own: numbers as numbers, booleans as 1 or 0 and as text,
//!   strings as text (and as number, if they are nothing but a number), arrays as `json`; nulls are left out. Fields
//!   of inner objects have dotted names (`location.latitude`); an inner object with `value` is one metric
//!   (`{"temp": {"value": 23.5, "unit": "°C"}}` is `temp`).
//! - A JSON array of objects is as many documents. Any other JSON is one reading with the whole in `json`.
//! - Other text is text, whole: `Temperature: 22.5°C`. Bytes that are no text are kept in `payload`, which also keeps
//!   what a column cannot hold as it was sent (U+0000).
//!
//! **Device**: in `sensors/{device}/…`, `devices/{device}/…` and `commands/{device}/…` the level of the topic. In
//! every other topic (`sensors/temperature`, `health/device_data`) the body's `device`, `deviceId`, `device_id`,
//! `sensor_id` or `sensorId`; else the Client Identifier.
//!
//! **Metric**: the field's name. Where there is none: the levels behind the device; in other topics the body's
//! `metric` or `reading_type`, else the last level. What is said *to* devices gets a prefix, `command.` or `alert.`,
//! so that a set point is never taken for a measurement.
//!
//! **Time**: the body's `timestamp`, `ts` or `time` (see [`super::timestamp`] for its forms), else the time of receipt.
//!
//! **Unit**: the `unit` beside a `value`, or of a document with a single number. The fields of the platform's
//! health documents have known units.
//!
//! Identity, time and unit fields that were understood are no metrics.

use tidegate_broker::record::Record;

use super::json::{self, Document, Key, Leaf, Quoted, Scan, Span, Value};
use super::timestamp;

/// Device and metric are cut at this many bytes: PostgreSQL refuses an index entry above 2,704 bytes, and the two
/// are indexed together. Topic and client are kept whole beside them.
pub const NAME_BYTES_MAX: usize = 1_000;
/// A document with more leaves is one reading with the whole in `json`.
pub const LEAVES_MAX: usize = 1_000;
/// Topic and client are stored with every reading; a record whose readings would repeat more bytes than this is one
/// reading with the whole in `json`.
pub const REPEATED_BYTES_MAX: usize = 8 << 20;
/// The device of a record with no Client Identifier whose topic and body name none.
pub const DEVICE_UNKNOWN: &str = "unknown";

/// One row, without what all rows of its record have in common.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Reading<'a> {
    /// When it was measured, in microseconds since the Unix epoch.
    pub time_us: i64,
    /// What measured it; at most [`NAME_BYTES_MAX`] bytes.
    pub device: &'a str,
    /// What was measured; at most [`NAME_BYTES_MAX`] bytes.
    pub metric: &'a str,
    /// The value, if it is a finite number or a boolean.
    pub number: Option<f64>,
    /// The value, unless `number` or `json` says it all. May hold U+0000.
    pub text: Option<&'a str>,
    /// The unit of `number`, as sent.
    pub unit: Option<&'a str>,
    /// JSON that is no single value, or said more than its readings hold; valid for `jsonb`.
    pub json: Option<&'a str>,
    /// The bytes as published, if no other column holds them faithfully.
    pub payload: Option<&'a [u8]>,
}

/// Finds readings. Keeps its memory from one record to the next.
#[derive(Debug, Default)]
pub struct Extractor {
    document: Document,
    elements: Vec<Span>,
    scratch: Scratch,
}

/// Where decoded and composed texts lie while a reading is handed over.
#[derive(Debug, Default)]
struct Scratch {
    topic_metric: String,
    body_metric: String,
    device: String,
    metric: String,
    text: String,
    unit: String,
}

impl Extractor {
    /// Hands each reading of `record` to `emit`, in the order of the payload.
    pub fn extract(&mut self, record: &Record<'_>, mut emit: impl FnMut(&Reading<'_>)) {
        let origin = Origin::of(record);
        let Ok(text) = std::str::from_utf8(record.payload) else {
            return self.whole(&origin, |reading| reading.payload = Some(record.payload), &mut emit);
        };
        let trimmed = text.trim_matches([' ', '\t', '\r', '\n']);
        match trimmed.as_bytes().first() {
            Some(b'{') => self.object(&origin, text, trimmed, &mut emit),
            Some(b'[') => self.array(&origin, text, trimmed, &mut emit),
            Some(b'"') => self.string(&origin, text, trimmed, &mut emit),
            Some(_) | None => self.bare(&origin, text, trimmed, &mut emit),
        }
    }

    /// One reading for the whole payload; `fill` says what is in it.
    fn whole<'a>(
        &'a mut self,
        origin: &Origin<'a>,
        fill: impl FnOnce(&mut Reading<'a>),
        emit: &mut impl FnMut(&Reading<'_>),
    ) {
        let metric = origin.topic_metric(&mut self.scratch.topic_metric);
        let mut reading = origin.reading(origin.device_without_body(), metric);
        fill(&mut reading);
        emit(&reading);
    }

    fn text(&mut self, origin: &Origin<'_>, text: &str, emit: &mut impl FnMut(&Reading<'_>)) {
        self.whole(
            origin,
            |reading| {
                reading.text = Some(text);
                reading.payload = text.contains('\0').then_some(text.as_bytes());
            },
            emit,
        );
    }

    fn bare(&mut self, origin: &Origin<'_>, text: &str, trimmed: &str, emit: &mut impl FnMut(&Reading<'_>)) {
        let (number, kept) = match trimmed {
            "true" => (Some(1.0), Some(trimmed)),
            "false" => (Some(0.0), Some(trimmed)),
            _ if is_number(trimmed) => number(trimmed),
            _ => return self.text(origin, text, emit),
        };
        self.whole(origin, |reading| (reading.number, reading.text) = (number, kept), emit);
    }

    /// A payload that begins like a JSON string.
    fn string(
        &mut self,
        origin: &Origin<'_>,
        text: &str,
        trimmed: &str,
        emit: &mut impl FnMut(&Reading<'_>),
    ) {
        let Some(quoted) = json::string(trimmed) else {
            return self.text(origin, text, emit);
        };
        let mut decoded = std::mem::take(&mut self.scratch.text);
        let meant = quoted.decode(trimmed, &mut decoded);
        let number = if is_number(meant) { number(meant).0 } else { None };
        let lost = meant.contains('\u{fffd}').then_some(text.as_bytes());
        self.whole(
            origin,
            |reading| (reading.number, reading.text, reading.payload) = (number, Some(meant), lost),
            emit,
        );
        self.scratch.text = decoded;
    }

    fn object(
        &mut self,
        origin: &Origin<'_>,
        text: &str,
        trimmed: &str,
        emit: &mut impl FnMut(&Reading<'_>),
    ) {
        match self.document.scan(trimmed, origin.leaves_max()) {
            Scan::Flat => Rows::new(origin, trimmed, &self.document).emit(&mut self.scratch, emit),
            Scan::TooMany => self.json(origin, trimmed, self.document.is_jsonb(), emit),
            Scan::NotJson => self.text(origin, text, emit),
        }
    }

    fn array(&mut self, origin: &Origin<'_>, text: &str, trimmed: &str, emit: &mut impl FnMut(&Reading<'_>)) {
        let mut elements = std::mem::take(&mut self.elements);
        match json::array(trimmed, &mut elements) {
            None => self.text(origin, text, emit),
            Some(is_jsonb) if elements.is_empty() || elements.len() > origin.leaves_max() => {
                self.json(origin, trimmed, is_jsonb, emit);
            }
            Some(is_jsonb) => {
                let leaves_max = origin.leaves_max() / elements.len();
                let mut leaves =
                    elements.iter().map(|element| self.document.scan(element.of(trimmed), leaves_max));
                if leaves.all(|scan| scan == Scan::Flat) {
                    for element in &elements {
                        let element = element.of(trimmed);
                        self.document.scan(element, leaves_max);
                        Rows::new(origin, element, &self.document).emit(&mut self.scratch, emit);
                    }
                } else {
                    self.json(origin, trimmed, is_jsonb, emit);
                }
            }
        }
        self.elements = elements;
    }

    /// JSON that is not taken apart.
    fn json(&mut self, origin: &Origin<'_>, text: &str, is_jsonb: bool, emit: &mut impl FnMut(&Reading<'_>)) {
        self.whole(
            origin,
            |reading| if is_jsonb { reading.json = Some(text) } else { reading.text = Some(text) },
            emit,
        );
    }
}

/// What the topic, the publisher and the clock say, before the payload is looked at.
#[derive(Clone, Copy, Debug)]
struct Origin<'a> {
    received_us: i64,
    client: &'a str,
    /// The device, if the topic has a level for it.
    device: Option<&'a str>,
    prefix: &'static str,
    metric: &'a str,
    /// The topic is one of the platform's health topics, whose fields have known units.
    is_health: bool,
    /// Topic and client, which every row repeats.
    repeated_bytes: usize,
}

impl<'a> Origin<'a> {
    fn of(record: &Record<'a>) -> Self {
        let topic = record.topic.as_str();
        let (first, rest) = topic.split_once('/').unwrap_or(("", topic));
        let two = rest.split_once('/').filter(|(device, metric)| !device.is_empty() && !metric.is_empty());
        let (device, prefix, metric) = match (first, two) {
            ("sensors" | "devices", Some((device, metric))) => (Some(device), "", metric),
            ("commands", Some((device, action))) => (Some(device), "command.", action),
            ("commands", None) => (None, "command.", rest),
            ("alerts", _) => (None, "alert.", rest),
            (_, _) => (None, "", topic.rsplit('/').find(|level| !level.is_empty()).unwrap_or(topic)),
        };
        Self {
            received_us: i64::try_from(record.time.0.saturating_mul(1_000)).unwrap_or(i64::MAX),
            client: record.client,
            device,
            prefix,
            metric,
            is_health: first == "health",
            repeated_bytes: topic.len() + record.client.len(),
        }
    }

    fn leaves_max(&self) -> usize {
        LEAVES_MAX.min(REPEATED_BYTES_MAX / self.repeated_bytes.max(1))
    }

    fn device_without_body(&self) -> &'a str {
        match self.device {
            Some(device) => device,
            None if self.client.is_empty() => DEVICE_UNKNOWN,
            None => self.client,
        }
    }

    fn topic_metric<'s>(&self, scratch: &'s mut String) -> &'s str
    where
        'a: 's,
    {
        if self.prefix.is_empty() {
            return self.metric;
        }
        scratch.clear();
        scratch.push_str(self.prefix);
        scratch.push_str(self.metric);
        scratch
    }

    fn reading<'r>(&self, device: &'r str, metric: &'r str) -> Reading<'r> {
        Reading {
            time_us: self.received_us,
            device: cut(device),
            metric: cut(metric),
            number: None,
            text: None,
            unit: None,
            json: None,
            payload: None,
        }
    }
}

/// The rows of one JSON object.
struct Rows<'a> {
    origin: &'a Origin<'a>,
    text: &'a str,
    document: &'a Document,
    time_us: i64,
    /// The leaf that names the device, if it is used or says the same as the topic.
    device: Option<usize>,
    /// The leaf that names the metric of `value`.
    metric: Option<usize>,
    /// Whether the unit of the document counts for its one number.
    root_unit_counts: bool,
}

impl<'a> Rows<'a> {
    fn new(origin: &'a Origin<'a>, text: &'a str, document: &'a Document) -> Self {
        let mut rows = Self {
            origin,
            text,
            document,
            time_us: origin.received_us,
            device: None,
            metric: None,
            root_unit_counts: false,
        };
        let (mut numbers, mut is_timed) = (0, false);
        for (index, leaf) in document.leaves().iter().enumerate() {
            match leaf.key {
                Key::Time if !is_timed => {
                    if let Some(time_us) = rows.time(leaf) {
                        (rows.time_us, is_timed) = (time_us, true);
                    }
                }
                Key::Device if rows.device.is_none() && rows.names_device(leaf) => rows.device = Some(index),
                Key::Metric if rows.metric.is_none() && rows.names_metric(leaf) => rows.metric = Some(index),
                Key::Value | Key::Other => numbers += usize::from(matches!(leaf.value, Value::Number(_))),
                Key::Time | Key::Device | Key::Metric | Key::Unit => {}
            }
        }
        rows.root_unit_counts = document.has_value() || numbers == 1;
        rows
    }

    fn time(&self, leaf: &Leaf) -> Option<i64> {
        match leaf.value {
            Value::Number(literal) => timestamp::from_number(literal.of(self.text)),
            Value::Text(quoted) => timestamp::from_text(quoted.decode(self.text, &mut String::new())),
            Value::NotFinite(_) | Value::Bool(_) | Value::Null | Value::Array(_) | Value::EmptyObject => None,
        }
    }

    fn names_device(&self, leaf: &Leaf) -> bool {
        let mut decoded = String::new();
        let device = self.device_of(leaf, &mut decoded);
        !device.is_empty() && self.origin.device.is_none_or(|of_topic| of_topic == device)
    }

    fn device_of<'s>(&self, leaf: &Leaf, decoded: &'s mut String) -> &'s str
    where
        'a: 's,
    {
        match leaf.value {
            Value::Text(quoted) => quoted.decode(self.text, decoded),
            Value::Number(literal) => literal.of(self.text),
            Value::NotFinite(_) | Value::Bool(_) | Value::Null | Value::Array(_) | Value::EmptyObject => "",
        }
    }

    fn names_metric(&self, leaf: &Leaf) -> bool {
        let counts =
            self.document.has_value() && self.origin.device.is_none() && self.origin.prefix.is_empty();
        counts
            && matches!(leaf.value, Value::Text(name) if !name.decode(self.text, &mut String::new()).is_empty())
    }

    fn emit(&self, scratch: &mut Scratch, emit: &mut impl FnMut(&Reading<'_>)) {
        let Scratch { topic_metric, body_metric, device, metric, text, unit } = scratch;
        let device = match (self.origin.device, self.device) {
            (None, Some(leaf)) => self.device_of(&self.document.leaves()[leaf], device),
            (Some(_), _) | (None, None) => self.origin.device_without_body(),
        };
        let value_metric = match self.metric.map(|leaf| self.document.leaves()[leaf].value) {
            Some(Value::Text(name)) => name.decode(self.text, body_metric),
            Some(_) | None => self.origin.topic_metric(topic_metric),
        };
        let blank = Reading { time_us: self.time_us, ..self.origin.reading(device, value_metric) };
        // What the rows leave out of an object with `value` goes along with the first of them.
        let mut whole = self.document.has_value() && self.says_more();
        let mut is_empty = true;
        for (index, leaf) in self.document.leaves().iter().enumerate() {
            if !self.is_reading(index, leaf) {
                continue;
            }
            let mut reading = blank;
            let name = self.metric(leaf, value_metric, metric);
            reading.metric = cut(name);
            self.fill(leaf, &mut reading, text);
            reading.unit = match reading.number {
                Some(_) => self.unit(leaf, name, unit),
                None => None,
            };
            if std::mem::take(&mut whole) {
                self.keep_whole(&mut reading);
            }
            emit(&reading);
            is_empty = false;
        }
        if is_empty {
            let mut reading = blank;
            self.keep_whole(&mut reading);
            emit(&reading);
        }
    }

    fn keep_whole<'r>(&self, reading: &mut Reading<'r>)
    where
        'a: 'r,
    {
        if self.document.is_jsonb() {
            reading.json = Some(self.text);
        } else {
            reading.payload = Some(self.text.as_bytes());
        }
    }

    /// Whether the object says anything beside its `value` and what gives its readings their device, time, metric
    /// and unit.
    fn says_more(&self) -> bool {
        self.document.leaves().iter().enumerate().any(|(index, leaf)| !self.is_understood(index, leaf))
    }

    fn is_understood(&self, index: usize, leaf: &Leaf) -> bool {
        let is_root = leaf.object == json::ROOT;
        match leaf.key {
            Key::Value if is_root => {
                !matches!(leaf.value, Value::Array(_) | Value::EmptyObject | Value::Null)
            }
            Key::Time => true,
            Key::Device => self.device == Some(index),
            Key::Metric => self.metric == Some(index),
            Key::Unit if is_root => matches!(leaf.value, Value::Text(_)),
            Key::Unit | Key::Value | Key::Other => self.document.in_root_value(leaf),
        }
    }

    fn is_reading(&self, index: usize, leaf: &Leaf) -> bool {
        if matches!(leaf.value, Value::Null | Value::EmptyObject) {
            return false;
        }
        let is_root = leaf.object == json::ROOT;
        if self.document.has_value() {
            let is_value = is_root && leaf.key == Key::Value && !matches!(leaf.value, Value::Array(_));
            return is_value || self.document.in_root_value(leaf);
        }
        match leaf.key {
            Key::Time => false,
            Key::Device => self.device != Some(index),
            Key::Unit if matches!(leaf.value, Value::Text(_)) => {
                let counts = if is_root { self.root_unit_counts } else { self.document.beside_value(leaf) };
                !counts
            }
            Key::Unit | Key::Metric | Key::Value | Key::Other => true,
        }
    }

    fn metric<'s>(&self, leaf: &Leaf, value_metric: &'s str, scratch: &'s mut String) -> &'s str
    where
        'a: 's,
    {
        let path = self.document.path(leaf);
        let name = if leaf.key == Key::Value { None } else { Some(leaf.name) };
        if name.is_none() && path.is_empty() {
            return value_metric;
        }
        if let (Some(name), true, true) = (name, path.is_empty(), self.origin.prefix.is_empty()) {
            let name = name.decode(self.text, scratch);
            return if name.is_empty() { value_metric } else { name };
        }
        let mut decoded = String::new();
        scratch.clear();
        if !self.origin.prefix.is_empty() {
            scratch.push_str(self.origin.prefix);
            scratch.push_str(self.origin.metric);
            scratch.push('.');
        }
        scratch.push_str(path);
        if let Some(name) = name {
            if !path.is_empty() {
                scratch.push('.');
            }
            scratch.push_str(name.decode(self.text, &mut decoded));
        }
        scratch
    }

    fn fill<'r>(&self, leaf: &Leaf, reading: &mut Reading<'r>, decoded: &'r mut String)
    where
        'a: 'r,
    {
        match leaf.value {
            Value::Number(literal) => (reading.number, reading.text) = number(literal.of(self.text)),
            Value::NotFinite(word) => reading.text = Some(word.of(self.text)),
            Value::Text(quoted) => {
                let text = quoted.decode(self.text, decoded);
                reading.text = Some(text);
                reading.number = if is_number(text) { number(text).0 } else { None };
            }
            Value::Bool(is_true) => {
                reading.number = Some(f64::from(u8::from(is_true)));
                reading.text = Some(if is_true { "true" } else { "false" });
            }
            Value::Array(span) if self.document.is_jsonb() => reading.json = Some(span.of(self.text)),
            Value::Array(span) => reading.text = Some(span.of(self.text)),
            Value::Null | Value::EmptyObject => {}
        }
    }

    fn unit<'s>(&self, leaf: &Leaf, name: &str, scratch: &'s mut String) -> Option<&'s str>
    where
        'a: 's,
    {
        let counts = if leaf.object == json::ROOT {
            self.root_unit_counts
        } else {
            leaf.key == Key::Value || self.document.in_root_value(leaf)
        };
        let root_unit = || self.document.root_unit().filter(|_| self.root_unit_counts);
        let unit: Option<Quoted> =
            if counts { self.document.unit_of(leaf).or_else(root_unit) } else { root_unit() };
        match unit {
            Some(unit) if matches!(leaf.value, Value::Number(_) | Value::Text(_)) => {
                Some(unit.decode(self.text, scratch)).filter(|unit| !unit.is_empty())
            }
            Some(_) | None => known_unit(self.origin, name),
        }
    }
}

/// Units that the platform's health documents leave unsaid; latitude and longitude are degrees everywhere.
fn known_unit(origin: &Origin<'_>, metric: &str) -> Option<&'static str> {
    match metric.rsplit('.').next().unwrap_or(metric) {
        "latitude" | "longitude" => Some("°"),
        _ if !origin.is_health => None,
        "heartRate" => Some("bpm"),
        "systolic" | "diastolic" => Some("mmHg"),
        "oxygenSaturation" => Some("%"),
        "bodyTemperature" => Some("°F"),
        _ => None,
    }
}

/// Whether `text` is a number and nothing else: digits with an optional sign, point and exponent.
fn is_number(text: &str) -> bool {
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    let is_digit_first = match digits.as_bytes() {
        [first, ..] if first.is_ascii_digit() => true,
        [b'.', second, ..] => second.is_ascii_digit(),
        _ => false,
    };
    is_digit_first
        && digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'.' | b'e' | b'E' | b'+' | b'-'))
        && text.parse::<f64>().is_ok()
}

/// The number written as `literal`, if a double can hold one of its size; and the literal itself if the number does
/// not say it all: it is too large, or an integer beyond what a double holds exactly, or written unlike a number (`007`).
fn number(literal: &str) -> (Option<f64>, Option<&str>) {
    let number = literal.parse::<f64>().ok().filter(|number| number.is_finite());
    let Some(number) = number else {
        return (None, Some(literal));
    };
    let digits = literal.strip_prefix(['-', '+']).unwrap_or(literal);
    let is_whole = digits.bytes().all(|byte| byte.is_ascii_digit());
    let is_padded = digits.len() > 1 && digits.starts_with('0') && is_whole;
    // Integers of up to 15 digits are exact. A longer fraction is what doubles print; nothing is lost worth keeping.
    let is_inexact = is_whole && digits.len() > 15 && literal.parse::<i128>() != Ok(number as i128);
    (Some(number), (is_padded || is_inexact).then_some(literal))
}

/// At most [`NAME_BYTES_MAX`] bytes of `name`.
fn cut(name: &str) -> &str {
    if name.len() <= NAME_BYTES_MAX {
        return name;
    }
    let end = (0..=NAME_BYTES_MAX).rev().find(|&end| name.is_char_boundary(end)).unwrap_or(0);
    &name[..end]
}

#[cfg(test)]
mod tests;
