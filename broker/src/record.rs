//! What was accepted and where it lies: [`Record`], [`Offset`], and the [`Batch`] that carries them.
//!
//! A batch is a run of entries with dense offsets, encoded once when they are accepted. The same bytes are
//! written to disk, handed to every reader and sliced, by reference count, into what leaves the process; a
//! payload is never copied out of them on the way. How batches are framed, checked and kept on disk is the
//! journal's business; what control entries mean is the broker's.
//!
//! An entry, all integers little-endian:
//!
//! ```text
//! u32 bytes that follow | u8 kind | u8 flags | u16 packet id | u32 ms since the batch's time
//! kind 1, a record:  u16 client bytes | u16 topic bytes | u32 properties bytes | client | topic | properties | payload
//! kind 2, control:   body
//! ```

use std::fmt;

use bytes::{BufMut, Bytes, BytesMut};

use crate::topic::TopicName;

/// A place in the journal. Offsets are dense, begin at 0 and are never used again for other content.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
pub struct Offset(pub u64);

impl Offset {
    /// The offset `entries` further on.
    #[must_use]
    pub const fn plus(self, entries: u64) -> Self {
        Self(self.0 + entries)
    }

    /// How many entries lie from `earlier` up to this one; zero if `earlier` is not earlier.
    pub const fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl fmt::Display for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// Wall-clock time in milliseconds since the Unix epoch.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
pub struct Timestamp(pub u64);

/// Quality of Service (MQTT 5.0 section 4.3).
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
#[repr(u8)]
pub enum Qos {
    /// QoS 0.
    #[default]
    AtMostOnce = 0,
    /// QoS 1.
    AtLeastOnce = 1,
    /// QoS 2.
    ExactlyOnce = 2,
}

impl Qos {
    /// The QoS written as `bits`; 3 is malformed [MQTT-3.3.1-4].
    pub const fn from_bits(bits: u8) -> Option<Self> {
        match bits {
            0 => Some(Self::AtMostOnce),
            1 => Some(Self::AtLeastOnce),
            2 => Some(Self::ExactlyOnce),
            _ => None,
        }
    }
}

/// One property of a publish that travels with it to every receiver (MQTT 5.0 section 3.3.2.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Property<'a> {
    /// 0 = unspecified bytes, 1 = UTF-8.
    PayloadFormat(u8),
    /// Seconds from the record's time until it must not be delivered any more.
    MessageExpiry(u32),
    /// What the payload is, usually a MIME type.
    ContentType(&'a str),
    /// The topic for an answer.
    ResponseTopic(&'a str),
    /// What the requester recognises the answer by.
    CorrelationData(&'a [u8]),
    /// A name and a value; order and repetition are kept [MQTT-3.3.2-17].
    User(&'a str, &'a str),
}

/// The identifiers of the properties that travel (MQTT 5.0 table 2-4).
pub mod property_id {
    #![allow(missing_docs)]
    pub const PAYLOAD_FORMAT: u8 = 0x01;
    pub const MESSAGE_EXPIRY: u8 = 0x02;
    pub const CONTENT_TYPE: u8 = 0x03;
    pub const RESPONSE_TOPIC: u8 = 0x08;
    pub const CORRELATION_DATA: u8 = 0x09;
    pub const USER: u8 = 0x26;
}

/// The travelling properties of a publish in MQTT 5.0 property encoding, without the length in front.
///
/// Holds only well-formed properties of the kinds in [`Property`].
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Properties<'a>(&'a [u8]);

impl<'a> Properties<'a> {
    /// No properties.
    pub const NONE: Self = Self(&[]);

    /// Properties whose encoding the caller has checked; iteration ends at the first byte that is not well-formed.
    pub const fn from_encoded(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// The encoding.
    pub const fn encoded(self) -> &'a [u8] {
        self.0
    }

    /// Whether there is none.
    pub const fn is_empty(self) -> bool {
        self.0.is_empty()
    }

    /// The properties in the order in which they were sent.
    pub const fn iter(self) -> PropertyIter<'a> {
        PropertyIter(self.0)
    }

    /// Seconds from the record's time until it expires, if it does.
    pub fn message_expiry(self) -> Option<u32> {
        self.iter().find_map(|property| match property {
            Property::MessageExpiry(seconds) => Some(seconds),
            Property::PayloadFormat(_)
            | Property::ContentType(_)
            | Property::ResponseTopic(_)
            | Property::CorrelationData(_)
            | Property::User(..) => None,
        })
    }

    /// The content type, if the publisher named one.
    pub fn content_type(self) -> Option<&'a str> {
        self.iter().find_map(|property| match property {
            Property::ContentType(text) => Some(text),
            Property::PayloadFormat(_)
            | Property::MessageExpiry(_)
            | Property::ResponseTopic(_)
            | Property::CorrelationData(_)
            | Property::User(..) => None,
        })
    }
}

impl<'a> IntoIterator for Properties<'a> {
    type Item = Property<'a>;
    type IntoIter = PropertyIter<'a>;

    fn into_iter(self) -> PropertyIter<'a> {
        self.iter()
    }
}

impl fmt::Debug for Properties<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

/// Iterator over [`Properties`].
#[derive(Clone, Debug)]
pub struct PropertyIter<'a>(&'a [u8]);

impl<'a> PropertyIter<'a> {
    fn binary(&mut self) -> Option<&'a [u8]> {
        let (length, rest) = self.0.split_first_chunk::<2>()?;
        let (value, rest) = rest.split_at_checked(usize::from(u16::from_be_bytes(*length)))?;
        self.0 = rest;
        Some(value)
    }

    fn text(&mut self) -> Option<&'a str> {
        std::str::from_utf8(self.binary()?).ok()
    }
}

impl<'a> Iterator for PropertyIter<'a> {
    type Item = Property<'a>;

    fn next(&mut self) -> Option<Property<'a>> {
        let (&identifier, rest) = self.0.split_first()?;
        self.0 = rest;
        match identifier {
            property_id::PAYLOAD_FORMAT => {
                let (&value, rest) = self.0.split_first()?;
                self.0 = rest;
                Some(Property::PayloadFormat(value))
            }
            property_id::MESSAGE_EXPIRY => {
                let (value, rest) = self.0.split_first_chunk::<4>()?;
                self.0 = rest;
                Some(Property::MessageExpiry(u32::from_be_bytes(*value)))
            }
            property_id::CONTENT_TYPE => self.text().map(Property::ContentType),
            property_id::RESPONSE_TOPIC => self.text().map(Property::ResponseTopic),
            property_id::CORRELATION_DATA => self.binary().map(Property::CorrelationData),
            property_id::USER => {
                let name = self.text()?;
                self.text().map(|value| Property::User(name, value))
            }
            _ => None,
        }
    }
}

/// One accepted publish, as it lies in a [`Batch`] (or, before it is appended, in the receive buffer).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// When it was accepted.
    pub time: Timestamp,
    /// The Client Identifier of the publisher; at most 65,535 bytes.
    pub client: &'a str,
    /// Where it was published.
    pub topic: TopicName<'a>,
    /// The properties that travel with it.
    pub properties: Properties<'a>,
    /// What was published, unchanged.
    pub payload: &'a [u8],
    /// The QoS at which it was published.
    pub qos: Qos,
    /// Whether it became its topic's retained record.
    pub retain: bool,
    /// The publisher's Packet Identifier; 0 at QoS 0. QoS 2 needs it to recognise a repeated publish after a crash.
    pub packet_id: u16,
}

/// Anything the journal stores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry<'a> {
    /// An accepted publish.
    Record(Record<'a>),
    /// A change of broker state, encoded by the broker.
    Control(&'a [u8]),
}

/// An entry's byte position inside its batch: lets whoever saw it appended find it again without a scan.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position(pub u32);

/// Where an entry was appended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Appended {
    /// Its offset.
    pub offset: Offset,
    /// Its place inside the batch that holds it.
    pub position: Position,
}

/// Why an entry could not be appended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The journal has reached its size and the slowest cursor does not let it trim.
    #[error("the journal is full: a sink or an offline session has not read far enough to trim it")]
    Full,
    /// A write or sync failed; nothing is accepted until the journal is opened again.
    #[error("the journal failed and accepts nothing until it is opened again")]
    Failed,
}

/// Whatever takes entries in: the journal, or a vector in a test.
pub trait Append {
    /// Takes `entry` in at the end. It is not durable yet.
    fn append(&mut self, entry: &Entry<'_>) -> Result<Appended, Refused>;

    /// Takes `entry` in even if the end is reached, because what it says lets something be trimmed: without it what is
    /// full would stay full. There are not many more of these than there are entries to be read.
    fn append_freeing(&mut self, entry: &Entry<'_>) -> Result<Appended, Refused> {
        self.append(entry)
    }

    /// The offset that the next entry will get.
    fn end(&self) -> Offset;
}

const ENTRY_FIXED_BYTES: usize = 8;
const RECORD_FIXED_BYTES: usize = 8;
const LENGTH_BYTES: usize = 4;
const KIND_RECORD: u8 = 1;
const KIND_CONTROL: u8 = 2;
const FLAG_QOS: u8 = 0b0011;
const FLAG_RETAIN: u8 = 0b0100;

/// How many bytes `entry` takes in a batch.
pub const fn encoded_bytes(entry: &Entry<'_>) -> usize {
    let body = match entry {
        Entry::Record(record) => {
            RECORD_FIXED_BYTES
                + record.client.len()
                + record.topic.as_str().len()
                + record.properties.encoded().len()
                + record.payload.len()
        }
        Entry::Control(body) => body.len(),
    };
    LENGTH_BYTES + ENTRY_FIXED_BYTES + body
}

/// A batch while it is being filled.
#[derive(Debug)]
pub struct BatchBuilder {
    bytes: BytesMut,
    header_bytes: usize,
    base: Offset,
    count: u32,
    time: Timestamp,
}

impl BatchBuilder {
    /// An empty batch whose first entry will have the offset `base`. `header_bytes` are left free in front for
    /// the journal's frame.
    pub fn new(base: Offset, time: Timestamp, header_bytes: usize, capacity_bytes: usize) -> Self {
        let mut bytes = BytesMut::with_capacity(header_bytes + capacity_bytes);
        bytes.put_bytes(0, header_bytes);
        Self { bytes, header_bytes, base, count: 0, time }
    }

    /// The offset that the next entry will get.
    pub const fn end(&self) -> Offset {
        self.base.plus(self.count as u64)
    }

    /// The offset of the first entry.
    pub const fn base(&self) -> Offset {
        self.base
    }

    /// The time that entries count from.
    pub const fn time(&self) -> Timestamp {
        self.time
    }

    /// How many entries it holds.
    pub const fn count(&self) -> u32 {
        self.count
    }

    /// How many bytes its entries take.
    pub fn entries_bytes(&self) -> usize {
        self.bytes.len() - self.header_bytes
    }

    /// How much memory it holds on to, and the finished batch after it.
    pub fn memory_bytes(&self) -> usize {
        self.bytes.capacity()
    }

    /// Copies `entry` in: the one copy on a payload's way.
    pub fn push(&mut self, entry: &Entry<'_>) -> Appended {
        let appended = Appended {
            offset: self.end(),
            position: Position(
                u32::try_from(self.entries_bytes()).expect("the journal keeps batches below 4 GiB"),
            ),
        };
        let length = encoded_bytes(entry);
        self.bytes.reserve(length);
        let length = u32::try_from(length - LENGTH_BYTES).expect("packets are below 256 MiB [MQTT-1.5.5]");
        match entry {
            Entry::Record(record) => self.put_record(length, record),
            Entry::Control(body) => {
                let mut fixed = [0; LENGTH_BYTES + ENTRY_FIXED_BYTES];
                fixed[..LENGTH_BYTES].copy_from_slice(&length.to_le_bytes());
                fixed[LENGTH_BYTES] = KIND_CONTROL;
                self.bytes.put_slice(&fixed);
                self.bytes.put_slice(body);
            }
        }
        self.count += 1;
        appended
    }

    fn put_record(&mut self, length: u32, record: &Record<'_>) {
        let (client, topic) = (record.client.as_bytes(), record.topic.as_str().as_bytes());
        let properties = record.properties.encoded();
        let since = u32::try_from(record.time.0.saturating_sub(self.time.0)).unwrap_or(u32::MAX);
        // One small array instead of many small writes: this runs for every record.
        let mut fixed = [0; LENGTH_BYTES + ENTRY_FIXED_BYTES + RECORD_FIXED_BYTES];
        fixed[0..4].copy_from_slice(&length.to_le_bytes());
        fixed[4] = KIND_RECORD;
        fixed[5] = record.qos as u8 | if record.retain { FLAG_RETAIN } else { 0 };
        fixed[6..8].copy_from_slice(&record.packet_id.to_le_bytes());
        fixed[8..12].copy_from_slice(&since.to_le_bytes());
        fixed[12..14].copy_from_slice(&length_u16(client).to_le_bytes());
        fixed[14..16].copy_from_slice(&length_u16(topic).to_le_bytes());
        let properties_bytes =
            u32::try_from(properties.len()).expect("packets are below 256 MiB [MQTT-1.5.5]");
        fixed[16..20].copy_from_slice(&properties_bytes.to_le_bytes());
        self.bytes.put_slice(&fixed);
        self.bytes.put_slice(client);
        self.bytes.put_slice(topic);
        self.bytes.put_slice(properties);
        self.bytes.put_slice(record.payload);
    }

    /// Ends the batch. `frame` may fill the header bytes left free in front; the result is the whole frame and
    /// the batch inside it, both the same memory.
    pub fn finish(mut self, frame: impl FnOnce(&mut [u8])) -> (Bytes, Batch) {
        frame(&mut self.bytes);
        let whole = self.bytes.freeze();
        let batch = Batch {
            base: self.base,
            count: self.count,
            time: self.time,
            entries: whole.slice(self.header_bytes..),
            lost: false,
        };
        (whole, batch)
    }
}

fn length_u16(bytes: &[u8]) -> u16 {
    u16::try_from(bytes.len()).expect("MQTT strings have at most 65535 bytes [MQTT-1.5.4]")
}

/// The bytes of a batch are not a run of entries, although their checksum was right.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("entry {index} of the batch is malformed")]
pub struct MalformedBatch {
    /// Which entry, counted from 0.
    pub index: u32,
}

/// A run of entries with dense offsets. Cloning and slicing it counts references; nothing is copied.
#[derive(Clone)]
pub struct Batch {
    base: Offset,
    count: u32,
    time: Timestamp,
    /// Empty only in a gap.
    entries: Bytes,
    lost: bool,
}

impl Batch {
    /// Takes in `count` encoded entries that come from outside the process, and checks them.
    pub fn from_encoded(
        base: Offset,
        count: u32,
        time: Timestamp,
        entries: Bytes,
    ) -> Result<Self, MalformedBatch> {
        let mut rest = &entries[..];
        for index in 0..count {
            rest = check_entry(rest).ok_or(MalformedBatch { index })?;
        }
        if !rest.is_empty() {
            return Err(MalformedBatch { index: count });
        }
        Ok(Self { base, count, time, entries, lost: false })
    }

    /// A gap: `count` offsets without entries. What they held is lost, or it was left out on purpose.
    pub const fn gap(base: Offset, count: u32, time: Timestamp, lost: bool) -> Self {
        Self { base, count, time, entries: Bytes::new(), lost }
    }

    /// Whether it holds offsets and no entries. Whoever reads passes it like any other batch.
    pub const fn is_gap(&self) -> bool {
        self.entries.is_empty() && self.count > 0
    }

    /// How many entries are lost in it: none, except in a gap that a repair has left.
    pub const fn lost(&self) -> u64 {
        if self.lost { self.count as u64 } else { 0 }
    }

    /// The offset of the first entry.
    pub const fn base(&self) -> Offset {
        self.base
    }

    /// The offset behind the last entry.
    pub const fn end(&self) -> Offset {
        self.base.plus(self.count as u64)
    }

    /// How many offsets it takes: of its entries, control entries included, or of a gap.
    pub const fn count(&self) -> u32 {
        self.count
    }

    /// How many bytes its entries take.
    pub fn entries_bytes(&self) -> usize {
        self.entries.len()
    }

    /// When it was begun; no record in it is older.
    pub const fn time(&self) -> Timestamp {
        self.time
    }

    /// The entries in order.
    pub fn entries(&self) -> Entries<'_> {
        Entries { batch: self, offset: self.base, position: 0 }
    }

    /// The entries from `offset` on. Skipping reads one length per entry.
    pub fn entries_from(&self, offset: Offset) -> Entries<'_> {
        let mut entries = self.entries();
        while entries.offset < offset && entries.skip_one() {}
        entries
    }

    /// The rest of this batch from `offset` on, of the same memory; the whole batch if it begins later. Places
    /// that were told for the whole batch do not fit into the rest.
    #[must_use]
    pub fn starting_at(&self, offset: Offset) -> Self {
        if offset <= self.base {
            return self.clone();
        }
        if self.is_gap() {
            let passed = u32::try_from(offset.since(self.base)).unwrap_or(u32::MAX).min(self.count);
            return Self {
                base: self.base.plus(u64::from(passed)),
                count: self.count - passed,
                ..self.clone()
            };
        }
        let rest = self.entries_from(offset);
        let passed =
            u32::try_from(rest.offset.since(self.base)).expect("a batch has at most u32::MAX entries");
        let entries = self.entries.slice(rest.position..);
        Self { base: rest.offset, count: self.count - passed, time: self.time, entries, lost: false }
    }

    /// The entries from `place` on, which must be of this batch.
    pub fn entries_at(&self, place: Appended) -> Entries<'_> {
        debug_assert!(
            self.base <= place.offset && place.offset <= self.end(),
            "the place is of another batch"
        );
        Entries { batch: self, offset: place.offset, position: place.position.0 as usize }
    }

    /// The records in order, without the control entries.
    pub fn records(&self) -> impl Iterator<Item = (Offset, Record<'_>)> {
        self.entries().filter_map(|(appended, entry)| match entry {
            Entry::Record(record) => Some((appended.offset, record)),
            Entry::Control(_) => None,
        })
    }

    /// The Topic Names of its records, in order. Reads a few lengths per entry.
    pub fn topics(&self) -> impl Iterator<Item = &[u8]> {
        const CLIENT_AT: usize = ENTRY_FIXED_BYTES + RECORD_FIXED_BYTES;
        let mut entries = self.entries();
        std::iter::from_fn(move || entries.take_one()).filter_map(|entry| {
            let fixed = entry.first_chunk::<CLIENT_AT>().filter(|fixed| fixed[0] == KIND_RECORD)?;
            let length = |at: usize| {
                usize::from(u16::from_le_bytes([
                    fixed[ENTRY_FIXED_BYTES + at],
                    fixed[ENTRY_FIXED_BYTES + at + 1],
                ]))
            };
            let topic_at = CLIENT_AT + length(0);
            entry.get(topic_at..topic_at + length(2))
        })
    }

    /// How many records it holds. Reads one length and one kind per entry.
    pub fn records_count(&self) -> u64 {
        let mut entries = self.entries();
        std::iter::from_fn(|| entries.take_one()).filter(|entry| entry.first() == Some(&KIND_RECORD)).count()
            as u64
    }

    /// A counted reference to `part`, which must lie in this batch; nothing is copied. It keeps the whole batch
    /// in memory until it is dropped.
    ///
    /// # Panics
    ///
    /// If `part` is not a slice of this batch.
    pub fn share(&self, part: &[u8]) -> Bytes {
        self.entries.slice_ref(part)
    }
}

impl fmt::Debug for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Batch({}..{}, {} bytes)", self.base, self.end(), self.entries.len())
    }
}

/// Iterator over the entries of a [`Batch`], each with its place.
#[derive(Clone, Debug)]
pub struct Entries<'a> {
    batch: &'a Batch,
    offset: Offset,
    position: usize,
}

impl<'a> Entries<'a> {
    /// Where the next entry lies; equal to the batch's end when none is left.
    pub fn place(&self) -> Appended {
        let position = u32::try_from(self.position).expect("the journal keeps batches below 4 GiB");
        Appended { offset: self.offset, position: Position(position) }
    }

    fn take_one(&mut self) -> Option<&'a [u8]> {
        let (length, rest) = self.batch.entries.get(self.position..)?.split_first_chunk::<LENGTH_BYTES>()?;
        let length = u32::from_le_bytes(*length) as usize;
        self.position += LENGTH_BYTES + length;
        self.offset = self.offset.plus(1);
        rest.get(..length)
    }

    fn skip_one(&mut self) -> bool {
        self.take_one().is_some()
    }
}

impl<'a> Iterator for Entries<'a> {
    type Item = (Appended, Entry<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        let place = self.place();
        let bytes = self.take_one()?;
        Some((
            place,
            parse_entry(bytes, self.batch.time).expect("entries are checked when the batch is made"),
        ))
    }
}

/// `bytes` without the length in front.
fn parse_entry(bytes: &[u8], base: Timestamp) -> Option<Entry<'_>> {
    let (fixed, body) = bytes.split_first_chunk::<ENTRY_FIXED_BYTES>()?;
    match fixed[0] {
        KIND_RECORD => {
            let (lengths, body) = body.split_first_chunk::<RECORD_FIXED_BYTES>()?;
            let client_bytes = usize::from(u16::from_le_bytes([lengths[0], lengths[1]]));
            let topic_bytes = usize::from(u16::from_le_bytes([lengths[2], lengths[3]]));
            let properties_bytes =
                u32::from_le_bytes([lengths[4], lengths[5], lengths[6], lengths[7]]) as usize;
            let (client, body) = body.split_at_checked(client_bytes)?;
            let (topic, body) = body.split_at_checked(topic_bytes)?;
            let (properties, payload) = body.split_at_checked(properties_bytes)?;
            let since = u32::from_le_bytes([fixed[4], fixed[5], fixed[6], fixed[7]]);
            Some(Entry::Record(Record {
                time: Timestamp(base.0 + u64::from(since)),
                client: std::str::from_utf8(client).ok()?,
                topic: TopicName::trusted(std::str::from_utf8(topic).ok()?),
                properties: Properties::from_encoded(properties),
                payload,
                qos: Qos::from_bits(fixed[1] & FLAG_QOS)?,
                retain: fixed[1] & FLAG_RETAIN != 0,
                packet_id: u16::from_le_bytes([fixed[2], fixed[3]]),
            }))
        }
        KIND_CONTROL => Some(Entry::Control(body)),
        _ => None,
    }
}

/// The entries at the front of `bytes`, which may be garbled: as far as they look like entries. For estimates only.
pub(crate) fn entries_that_seem(mut bytes: &[u8]) -> impl Iterator<Item = Entry<'_>> {
    std::iter::from_fn(move || {
        let rest = check_entry(bytes)?;
        let entry = &bytes[LENGTH_BYTES..bytes.len() - rest.len()];
        bytes = rest;
        parse_entry(entry, Timestamp::default())
    })
}

/// The rest behind the first entry of `bytes`, if that entry is whole and well-formed.
fn check_entry(bytes: &[u8]) -> Option<&[u8]> {
    let (length, rest) = bytes.split_first_chunk::<LENGTH_BYTES>()?;
    let (entry, rest) = rest.split_at_checked(u32::from_le_bytes(*length) as usize)?;
    match parse_entry(entry, Timestamp::default())? {
        Entry::Record(record) => TopicName::new(record.topic.as_str()).ok().map(|_| rest),
        Entry::Control(_) => Some(rest),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record<'a>(topic: &'a str, payload: &'a [u8]) -> Record<'a> {
        Record {
            time: Timestamp(1_005),
            client: "device-1",
            topic: TopicName::new(topic).unwrap(),
            properties: Properties::from_encoded(b"\x03\x00\x01j\x26\x00\x01k\x00\x01v"),
            payload,
            qos: Qos::ExactlyOnce,
            retain: true,
            packet_id: 7,
        }
    }

    #[test]
    fn entries_come_back_as_they_were_pushed() {
        let mut builder = BatchBuilder::new(Offset(40), Timestamp(1_000), 16, 64);
        let entries = [
            Entry::Record(record("étage/1", b"22.5")),
            Entry::Control(b"state"),
            Entry::Record(record("a", b"")),
        ];
        let places: Vec<_> = entries.iter().map(|entry| builder.push(entry)).collect();
        let (whole, batch) = builder.finish(|frame| frame[..16].copy_from_slice(b"a journal header"));
        assert_eq!(&whole[..16], b"a journal header");
        assert_eq!((batch.base(), batch.end(), batch.count()), (Offset(40), Offset(43), 3));
        let read: Vec<_> = batch.entries().collect();
        assert_eq!(read, places.iter().copied().zip(entries).collect::<Vec<_>>());
        assert_eq!(batch.entries_from(Offset(42)).next(), Some(read[2]));
        assert_eq!(batch.entries_at(places[1]).next(), Some(read[1]));
        assert_eq!(batch.entries_from(Offset(43)).next(), None);
        assert_eq!(batch.records_count(), 2);

        let again = Batch::from_encoded(Offset(40), 3, Timestamp(1_000), whole.slice(16..)).unwrap();
        assert_eq!(again.entries().collect::<Vec<_>>(), read);
    }

    #[test]
    fn a_shared_payload_is_the_same_memory() {
        let mut builder = BatchBuilder::new(Offset(0), Timestamp(0), 0, 0);
        builder.push(&Entry::Record(record("a", b"payload")));
        let (_, batch) = builder.finish(|_| {});
        let (_, read) = batch.records().next().unwrap();
        let shared = batch.share(read.payload);
        assert_eq!(shared.as_ptr(), read.payload.as_ptr());
    }

    #[test]
    fn damaged_entries_are_refused_and_never_panic() {
        let mut builder = BatchBuilder::new(Offset(0), Timestamp(0), 0, 0);
        builder.push(&Entry::Record(record("a/b", b"payload")));
        builder.push(&Entry::Control(b"x"));
        let (whole, _) = builder.finish(|_| {});
        for cut in 0..whole.len() {
            assert!(
                Batch::from_encoded(Offset(0), 2, Timestamp(0), whole.slice(..cut)).is_err(),
                "cut at {cut}"
            );
        }
        for at in 0..whole.len() {
            for bit in 0..8 {
                let mut bytes = whole.to_vec();
                bytes[at] ^= 1 << bit;
                if let Ok(batch) = Batch::from_encoded(Offset(0), 2, Timestamp(0), bytes.into()) {
                    assert_eq!(batch.entries().count(), 2);
                }
            }
        }
    }

    #[test]
    fn properties_are_read_in_order() {
        let bytes = b"\x01\x01\x02\x00\x00\x00\x0a\x03\x00\x04text\x08\x00\x01r\x09\x00\x02\xff\x00\x26\x00\x01k\x00\x01v";
        let properties = Properties::from_encoded(bytes);
        assert_eq!(
            properties.iter().collect::<Vec<_>>(),
            [
                Property::PayloadFormat(1),
                Property::MessageExpiry(10),
                Property::ContentType("text"),
                Property::ResponseTopic("r"),
                Property::CorrelationData(b"\xff\x00"),
                Property::User("k", "v"),
            ]
        );
        assert_eq!(properties.message_expiry(), Some(10));
        assert_eq!(properties.content_type(), Some("text"));
    }
}
