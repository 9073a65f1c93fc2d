//! Records as rows in PostgreSQL's binary `COPY` format.
//!
//! Everything goes into one buffer that is used again and again; no row allocates. U+0000, which PostgreSQL has no
//! text for, becomes U+FFFD on the way.
//!
//! Source: PostgreSQL 15 documentation, `COPY`, "Binary Format"; the forms of the types are those of their
//! `typreceive` functions: big-endian, `timestamptz` in microseconds since 2000, `jsonb` as a version byte and text.

use bytes::{BufMut, Bytes, BytesMut};
use tidegate_broker::record::{Batch, Entry, Offset, Record};

use super::reading::{Extractor, Reading};
use super::rollup::{Buckets, Rollup};

/// The columns of `readings` in the order in which they are written.
pub const COLUMNS: [&str; 14] = [
    "time", "device", "metric", "number", "text", "unit", "json", "payload", "topic", "client", "received",
    "journal", "position", "item",
];

pub(super) const HEADER: &[u8; 19] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
pub(super) const TRAILER: i16 = -1;
const NULL: i32 = -1;
/// 2000-01-01T00:00:00Z, where PostgreSQL counts from, in microseconds since 1970.
const EPOCH_US: i64 = 946_684_800_000_000;
const JSONB_VERSION: u8 = 1;

/// More days than this are not listed in [`Rows::days`].
const DAYS_MAX: usize = 64;
pub(super) const DAY_US: i64 = 86_400_000_000;
/// A larger buffer is not kept for the next rows, so that one huge record does not hold memory for ever.
const KEPT_BYTES_MAX: usize = 32 << 20;

/// Encoded rows.
#[derive(Clone, Debug, Default)]
pub struct Rows {
    /// A whole `COPY` stream; empty if there are no rows.
    pub stream: Bytes,
    /// How many rows.
    pub count: u64,
    /// The days, in UTC and counted from 1970-01-01, on which they were measured; each once, at most 64 of them.
    pub days: Vec<i64>,
    /// Their numbers per minute.
    pub(super) minutes: Buckets,
}

/// Encodes the readings of records.
#[derive(Debug)]
pub struct RowEncoder {
    journal: i64,
    rows: u64,
    days: Vec<i64>,
    buffer: BytesMut,
    extractor: Extractor,
    rollup: Rollup,
}

impl RowEncoder {
    /// An empty encoder for records of the journal that rows call `journal`.
    pub fn new(journal: i64) -> Self {
        Self {
            journal,
            rows: 0,
            days: Vec::new(),
            buffer: BytesMut::new(),
            extractor: Extractor::default(),
            rollup: Rollup::default(),
        }
    }

    /// How many rows it holds.
    pub const fn rows(&self) -> u64 {
        self.rows
    }

    /// How many bytes it holds.
    pub fn bytes(&self) -> usize {
        self.buffer.len()
    }

    /// Forgets what it holds.
    pub fn clear(&mut self) {
        self.buffer.clear();
        self.days.clear();
        self.rollup.clear();
        self.rows = 0;
    }

    /// Appends the rows of the records of `batch` from `from` up to, and without, `to`.
    pub fn push_batch(&mut self, batch: &Batch, from: Offset, to: Offset) {
        let entries = batch.entries_from(from).take_while(|(place, _)| place.offset < to);
        for (place, entry) in entries {
            match entry {
                Entry::Record(record) => self.push(place.offset, &record),
                Entry::Control(_) => {}
            }
        }
    }

    /// Appends the rows of one record.
    pub fn push(&mut self, offset: Offset, record: &Record<'_>) {
        if self.buffer.is_empty() {
            self.buffer.put_slice(HEADER);
        }
        let received_us = i64::try_from(record.time.0.saturating_mul(1_000)).unwrap_or(i64::MAX);
        let position = i64::try_from(offset.0).expect("a journal never reaches 2^63 entries");
        let (buffer, days, journal) = (&mut self.buffer, &mut self.days, self.journal);
        let rollup = &mut self.rollup;
        let mut item = 0;
        self.extractor.extract(record, |reading| {
            note_day(days, reading.time_us);
            put_reading(buffer, reading);
            rollup.push(reading, since_2000(reading.time_us));
            put_text(buffer, record.topic.as_str());
            put_text(buffer, record.client);
            put_time(buffer, received_us);
            put_i64(buffer, journal);
            put_i64(buffer, position);
            buffer.put_i32(4);
            buffer.put_i32(item);
            item += 1;
        });
        self.rows += u64::from(item.unsigned_abs());
    }

    /// Ends the stream and hands it over; the encoder is empty again and will use the same memory once the stream
    /// is dropped.
    pub fn take(&mut self) -> Rows {
        if self.buffer.is_empty() {
            return Rows::default();
        }
        self.buffer.put_i16(TRAILER);
        let stream = self.buffer.split().freeze();
        if stream.len() > KEPT_BYTES_MAX {
            self.buffer = BytesMut::new();
        }
        Rows {
            stream,
            count: std::mem::take(&mut self.rows),
            days: std::mem::take(&mut self.days),
            minutes: self.rollup.take(),
        }
    }
}

/// Most rows are of the same day as the one before.
fn note_day(days: &mut Vec<i64>, time_us: i64) {
    let day = time_us.div_euclid(DAY_US);
    if days.last() != Some(&day) && days.len() < DAYS_MAX && !days.contains(&day) {
        days.push(day);
    }
}

fn put_reading(buffer: &mut BytesMut, reading: &Reading<'_>) {
    const FIELDS: i16 = COLUMNS.len() as i16;
    buffer.put_i16(FIELDS);
    put_time(buffer, reading.time_us);
    put_text(buffer, reading.device);
    put_text(buffer, reading.metric);
    match reading.number {
        Some(number) => put_f64(buffer, number),
        None => buffer.put_i32(NULL),
    }
    put_optional_text(buffer, reading.text);
    put_optional_text(buffer, reading.unit);
    match reading.json {
        Some(json) => {
            buffer.put_i32(length(json.len() + 1));
            buffer.put_u8(JSONB_VERSION);
            buffer.put_slice(json.as_bytes());
        }
        None => buffer.put_i32(NULL),
    }
    match reading.payload {
        Some(payload) => {
            buffer.put_i32(length(payload.len()));
            buffer.put_slice(payload);
        }
        None => buffer.put_i32(NULL),
    }
}

pub(super) fn put_i64(buffer: &mut BytesMut, number: i64) {
    buffer.put_i32(8);
    buffer.put_i64(number);
}

pub(super) fn put_f64(buffer: &mut BytesMut, number: f64) {
    buffer.put_i32(8);
    buffer.put_f64(number);
}

fn put_time(buffer: &mut BytesMut, micros: i64) {
    put_i64(buffer, since_2000(micros));
}

/// As PostgreSQL counts; what `timestamptz` cannot hold becomes its nearest end.
pub(super) fn since_2000(micros_since_1970: i64) -> i64 {
    /// 294276-12-31T23:59:59Z, the last second of `timestamptz`.
    const LAST_US: i64 = 9_223_371_331_199_000_000;
    micros_since_1970.saturating_sub(EPOCH_US).min(LAST_US)
}

fn put_optional_text(buffer: &mut BytesMut, text: Option<&str>) {
    match text {
        Some(text) => put_text(buffer, text),
        None => buffer.put_i32(NULL),
    }
}

pub(super) fn put_text(buffer: &mut BytesMut, text: &str) {
    const REPLACEMENT: &[u8] = "\u{fffd}".as_bytes();
    let nuls = text.bytes().filter(|&byte| byte == 0).count();
    buffer.put_i32(length(text.len() + nuls * (REPLACEMENT.len() - 1)));
    if nuls == 0 {
        return buffer.put_slice(text.as_bytes());
    }
    for (index, part) in text.as_bytes().split(|&byte| byte == 0).enumerate() {
        if index > 0 {
            buffer.put_slice(REPLACEMENT);
        }
        buffer.put_slice(part);
    }
}

fn length(bytes: usize) -> i32 {
    // The worst case is a text of U+0000 alone, three times the 256 MiB of the largest packet.
    i32::try_from(bytes).expect("packets are below 256 MiB [MQTT-1.5.5]")
}

#[cfg(test)]
mod tests {
    use tidegate_broker::record::{Properties, Qos, Timestamp};
    use tidegate_broker::topic::TopicName;

    use super::*;

    fn record<'a>(topic: &'a str, payload: &'a [u8]) -> Record<'a> {
        Record {
            time: Timestamp(946_684_801_000),
            client: "c",
            topic: TopicName::new(topic).unwrap(),
            properties: Properties::NONE,
            payload,
            qos: Qos::AtMostOnce,
            retain: false,
            packet_id: 0,
        }
    }

    #[test]
    fn a_row_is_encoded_as_the_format_says() {
        let mut encoder = RowEncoder::new(7);
        encoder.push(Offset(9), &record("sensors/d/m", b"1.5"));
        assert_eq!(encoder.rows(), 1);
        let mut expected = HEADER.to_vec();
        expected.extend(14_i16.to_be_bytes());
        let fields: [Option<&[u8]>; 14] = [
            Some(&1_000_000_i64.to_be_bytes()),
            Some(b"d"),
            Some(b"m"),
            Some(&1.5_f64.to_be_bytes()),
            None,
            None,
            None,
            None,
            Some(b"sensors/d/m"),
            Some(b"c"),
            Some(&1_000_000_i64.to_be_bytes()),
            Some(&7_i64.to_be_bytes()),
            Some(&9_i64.to_be_bytes()),
            Some(&0_i32.to_be_bytes()),
        ];
        for field in fields {
            match field {
                None => expected.extend((-1_i32).to_be_bytes()),
                Some(bytes) => {
                    expected.extend(i32::try_from(bytes.len()).unwrap().to_be_bytes());
                    expected.extend(bytes);
                }
            }
        }
        expected.extend((-1_i16).to_be_bytes());
        let rows = encoder.take();
        assert_eq!((rows.stream, rows.count, rows.days), (Bytes::from(expected), 1, vec![10_957]));
        let rows = encoder.take();
        assert_eq!((encoder.rows(), encoder.bytes()), (0, 0));
        assert_eq!((rows.stream, rows.count, rows.days), (Bytes::new(), 0, vec![]));
    }

    #[test]
    fn nul_becomes_a_replacement_character_of_the_right_length() {
        for (text, expected) in
            [("\0", "\u{fffd}"), ("a\0\0b", "a\u{fffd}\u{fffd}b"), ("a\0", "a\u{fffd}"), ("", ""), ("é", "é")]
        {
            let mut buffer = BytesMut::new();
            put_text(&mut buffer, text);
            assert_eq!(buffer[..4], i32::try_from(expected.len()).unwrap().to_be_bytes(), "{text:?}");
            assert_eq!(&buffer[4..], expected.as_bytes(), "{text:?}");
        }
    }
}
