//! What was ever seen in the journal, by anybody, in any life: an offset that was seen once has its content for ever.

use std::collections::BTreeMap;

use tidegate_broker::record::{Batch, Entry, Offset, Properties, Property, Qos, Record};

/// Names one publish: its device, whether it is a Will, and a number that grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Id {
    pub(super) client: u8,
    pub(super) will: bool,
    pub(super) number: u32,
}

impl Id {
    /// As the payload of a publish, with so many bytes behind it.
    pub(super) fn payload(self, padding: usize) -> Vec<u8> {
        let mut bytes = vec![self.client, u8::from(self.will)];
        bytes.extend(self.number.to_le_bytes());
        bytes.resize(bytes.len() + padding, b'.');
        bytes
    }

    fn of_payload(payload: &[u8]) -> Option<Self> {
        let (head, _) = payload.split_first_chunk::<6>()?;
        let number = u32::from_le_bytes([head[2], head[3], head[4], head[5]]);
        Some(Self { client: head[0], will: head[1] == 1, number })
    }

    /// An empty payload, which clears a retained record, has its name in a User Property; where those do not get, it
    /// has none.
    pub(super) fn of(payload: &[u8], properties: Properties<'_>) -> Option<Self> {
        Self::of_payload(payload).or_else(|| properties.iter().find_map(Self::of_property))
    }

    /// As the value of a User Property.
    pub(super) fn text(self) -> String {
        format!("{}-{}", self.client, self.number)
    }

    fn of_text(text: &str) -> Option<Self> {
        let (client, number) = text.split_once('-')?;
        Some(Self { client: client.parse().ok()?, will: false, number: number.parse().ok()? })
    }

    fn of_property(property: Property<'_>) -> Option<Self> {
        match property {
            Property::User("id", text) => Self::of_text(text),
            _ => None,
        }
    }
}

/// A record, as far as anything depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) id: Id,
    pub(super) qos: Qos,
    pub(super) retain: bool,
    pub(super) is_empty: bool,
    topic_at: u32,
    topic_bytes: u32,
}

#[derive(Clone, Copy, Debug)]
struct Kept {
    hash: u64,
    record: Option<Seen>,
}

#[derive(Debug, Default)]
pub(super) struct Ledger {
    /// By offset; none where entries were trimmed before anybody saw them.
    entries: Vec<Option<Kept>>,
    topics: String,
    by_id: BTreeMap<Id, Vec<Offset>>,
}

impl Ledger {
    /// Everything before it was seen.
    pub(super) fn end(&self) -> Offset {
        Offset(self.entries.len() as u64)
    }

    /// Somebody sees these entries. What was seen before must be the same.
    pub(super) fn see(&mut self, batch: &Batch, who: &str) {
        for (place, entry) in batch.entries() {
            let (offset, hash) = (place.offset, hash(&entry));
            let at = offset.0 as usize;
            match self.entries.get(at) {
                Some(Some(kept)) => {
                    assert_eq!(
                        kept.hash, hash,
                        "{who} sees other content at offset {offset} than was seen before"
                    );
                }
                Some(None) | None => self.enter(at, hash, &entry),
            }
        }
    }

    /// As far as these entries were seen before, they must be the same.
    pub(super) fn compare(&self, batch: &Batch) {
        for (place, entry) in batch.entries() {
            let kept = self.entries.get(place.offset.0 as usize).and_then(Option::as_ref);
            let differs = kept.is_some_and(|kept| kept.hash != hash(&entry));
            assert!(!differs, "offset {} has other content than was seen before", place.offset);
        }
    }

    fn enter(&mut self, at: usize, hash: u64, entry: &Entry<'_>) {
        if self.entries.len() <= at {
            self.entries.resize(at + 1, None);
        }
        let record = match entry {
            Entry::Record(record) => Some(self.seen(record)),
            Entry::Control(_) => None,
        };
        if let Some(seen) = record {
            self.by_id.entry(seen.id).or_default().push(Offset(at as u64));
        }
        self.entries[at] = Some(Kept { hash, record });
    }

    fn seen(&mut self, record: &Record<'_>) -> Seen {
        let topic_at = self.topics.len() as u32;
        self.topics.push_str(record.topic.as_str());
        Seen {
            id: Id::of(record.payload, record.properties).expect("every record names itself"),
            qos: record.qos,
            retain: record.retain,
            is_empty: record.payload.is_empty(),
            topic_at,
            topic_bytes: record.topic.as_str().len() as u32,
        }
    }

    pub(super) fn topic(&self, seen: &Seen) -> &str {
        &self.topics[seen.topic_at as usize..][..seen.topic_bytes as usize]
    }

    /// All records from `from` on.
    pub(super) fn records(&self, from: Offset) -> impl Iterator<Item = (Offset, &Seen)> {
        let entries = self.entries.iter().enumerate().skip(from.0 as usize);
        entries.filter_map(|(at, kept)| Some((Offset(at as u64), kept.as_ref()?.record.as_ref()?)))
    }

    /// How many records lie between two offsets.
    pub(super) fn count(&self, from: Offset, to: Offset) -> u64 {
        self.records(from).take_while(|(offset, _)| *offset < to).count() as u64
    }

    pub(super) fn record(&self, offset: Offset) -> Option<&Seen> {
        self.entries.get(offset.0 as usize)?.as_ref()?.record.as_ref()
    }

    /// Where a publish is in the journal.
    pub(super) fn offsets(&self, id: Id) -> &[Offset] {
        self.by_id.get(&id).map_or(&[], |offsets| offsets)
    }

    pub(super) fn ids(&self) -> impl Iterator<Item = (Id, &[Offset])> {
        self.by_id.iter().map(|(id, offsets)| (*id, &offsets[..]))
    }

    pub(super) fn digest(&self, hasher: &mut Hasher) {
        self.entries.iter().flatten().for_each(|kept| hasher.add(kept.hash));
    }
}

fn hash(entry: &Entry<'_>) -> u64 {
    let mut hasher = Hasher::default();
    match entry {
        Entry::Control(body) => hasher.bytes(body),
        Entry::Record(record) => {
            hasher.add(record.time.0);
            hasher
                .add(u64::from(record.packet_id) << 16 | (record.qos as u64) << 8 | u64::from(record.retain));
            hasher.bytes(record.client.as_bytes());
            hasher.bytes(record.topic.as_str().as_bytes());
            hasher.bytes(record.properties.encoded());
            hasher.bytes(record.payload);
        }
    }
    hasher.0
}

/// A quick hash, good enough to notice that something is not the same.
#[derive(Clone, Copy, Debug)]
pub(super) struct Hasher(pub(super) u64);

impl Default for Hasher {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Hasher {
    pub(super) fn add(&mut self, number: u64) {
        self.0 = (self.0.rotate_left(5) ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    pub(super) fn bytes(&mut self, bytes: &[u8]) {
        let mut chunks = bytes.chunks_exact(8);
        for chunk in &mut chunks {
            self.add(u64::from_le_bytes(chunk.try_into().expect("eight bytes")));
        }
        let mut last = [0; 8];
        last[..chunks.remainder().len()].copy_from_slice(chunks.remainder());
        self.add(u64::from_le_bytes(last));
        self.add(bytes.len() as u64);
    }
}
