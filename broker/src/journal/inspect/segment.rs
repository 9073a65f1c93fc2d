//! One segment, byte by byte.

use std::collections::{BTreeMap, VecDeque};
use std::io;

use bytes::Bytes;

use super::super::TopicSummary;
use super::super::format::{self, FRAME_BYTES, Footer, Frame, Kind, SEGMENT_HEADER_BYTES, TRAILER_BYTES};
use super::super::storage::{Storage, StorageFile};
use super::super::walk::{Step, Walk};
use super::{Candidate, Counts, Fault, Loss, Meaning, Outside, Proof, SegmentReport};
use crate::record::{Batch, Entry, Offset, Timestamp, entries_that_seem};
use crate::topic::{TopicFilter, TopicName};

/// How much of a damaged frame is looked at to tell whose records it held.
const ESTIMATE_BYTES: u64 = 8 << 20;
/// How many clients are told of; the rest are counted together under [`OTHERS`].
const CLIENTS_MAX: usize = 1_000;
const OTHERS: &str = "(others)";

/// What a pass over one segment came to.
#[derive(Debug)]
pub(super) struct PassReport {
    pub(super) segment: SegmentReport,
    pub(super) faults: Vec<Fault>,
    pub(super) losses: Vec<Loss>,
    pub(super) counts: Counts,
    pub(super) end_is_doubtful: bool,
    /// Of a sound, sealed, last segment: up to where entries were behind it, and what proves it.
    pub(super) lost_behind: Option<(Offset, String)>,
}

/// Bytes that are no frame, until the next frame tells what they cost.
#[derive(Debug)]
struct BadBytes {
    at: u64,
    to: u64,
    fault: usize,
    clients: BTreeMap<String, u64>,
}

/// How things stood at the first bad frame: where a journal ends whose rest is only a torn tail.
#[derive(Clone, Copy, Debug)]
struct FirstBad {
    end: Offset,
    counts: Counts,
    faults: usize,
    losses: usize,
    newest: Timestamp,
}

#[derive(Debug)]
pub(super) struct Pass<'a> {
    storage: &'a dyn Storage,
    outside: Outside<'a>,
    candidate: &'a Candidate,
    salt: Option<u32>,
    next: Option<Offset>,
    /// The offset that comes next.
    expected: Offset,
    /// The most that a frame of this file proves.
    proof: Proof,
    bad: Vec<BadBytes>,
    first_bad: Option<FirstBad>,
    faults: Vec<Fault>,
    losses: Vec<Loss>,
    counts: Counts,
    newest: Timestamp,
    /// What is left of the index that the footer names.
    index: VecDeque<(Offset, u64)>,
    /// What the footer says of the topics.
    topics: Option<TopicSummary>,
    footer: Option<Footer>,
    /// Whether the last frame proves everything before it.
    ends_proved: bool,
    /// Where the walk has come to.
    at: u64,
}

impl<'a> Pass<'a> {
    /// Reads the whole file.
    pub(super) fn run(
        storage: &'a dyn Storage,
        outside: Outside<'a>,
        candidate: &'a Candidate,
        salt: Option<u32>,
        next: Option<Offset>,
    ) -> io::Result<Self> {
        let mut pass = Self {
            storage,
            outside,
            candidate,
            salt,
            next,
            expected: candidate.base,
            proof: Proof { before: candidate.base, by: String::new() },
            bad: Vec::new(),
            first_bad: None,
            faults: Vec::new(),
            losses: Vec::new(),
            counts: Counts { bytes: candidate.length, ..Counts::default() },
            newest: candidate.header.map_or(Timestamp(0), |header| header.created),
            index: VecDeque::new(),
            topics: None,
            footer: None,
            ends_proved: false,
            at: SEGMENT_HEADER_BYTES as u64,
        };
        if let Some(salt) = salt {
            if let Some(footer) = read_footer(candidate, salt)? {
                pass.index = footer.index.into();
                pass.topics = Some(footer.topics);
            }
            let mut walk = Walk::new(candidate.file.clone(), salt, candidate.length);
            while let Some(step) = walk.next()? {
                pass.take(step);
            }
        } else {
            pass.take(Step::Bad { at: 0, to: candidate.length, header: None });
        }
        Ok(pass)
    }

    fn fault(&mut self, at: u64, found: String) {
        let file = self.storage.display(&self.candidate.name);
        self.faults.push(Fault { file, at, found, meaning: Meaning::Damage });
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::Frame { at, frame, body } => {
                self.counts.frames += 1;
                self.at = at + frame.bytes() as u64;
                let before = frame.durable_before;
                self.proof.raise(before, || {
                    format!("byte {at} proves that every entry before {before} was on disk")
                });
                if self.footer.is_some() {
                    self.fault(at, "a frame lies behind the footer".to_owned());
                }
                self.check_index(at, frame.base);
                match frame.kind {
                    Kind::Batch | Kind::Gap => self.take_entries(at, &frame, body),
                    Kind::Mark => self.take_end(at, &frame),
                    Kind::Footer => self.take_footer(at, &frame, &body),
                }
            }
            Step::Bad { at, to, header } => {
                let found = match header {
                    Some(frame) if at + frame.bytes() as u64 > self.candidate.length => {
                        "the file ends inside a frame"
                    }
                    Some(_) => "a frame whose checksum is wrong",
                    None => "bytes that are no frame",
                };
                self.note_bad(at, to, header, format!("{found}, up to byte {to}"));
                self.at = to;
            }
            Step::Zeros { .. } => {}
        }
    }

    fn note_bad(&mut self, at: u64, to: u64, header: Option<Frame>, found: String) {
        self.first_bad.get_or_insert(FirstBad {
            end: self.expected,
            counts: self.counts,
            faults: self.faults.len(),
            losses: self.losses.len(),
            newest: self.newest,
        });
        let clients = self.estimate(at, to, header);
        self.bad.push(BadBytes { at, to, fault: self.faults.len(), clients });
        self.fault(at, found);
        self.ends_proved = false;
    }

    /// The footer's index names frames of any kind.
    fn check_index(&mut self, at: u64, base: Offset) {
        while let Some((offset, place)) = self.index.front().copied().filter(|(_, place)| *place <= at) {
            self.index.pop_front();
            if (offset, place) != (base, at) {
                self.fault(
                    place,
                    format!("the footer says that entry {offset} begins here, which it does not"),
                );
            }
        }
    }

    fn take_entries(&mut self, at: u64, frame: &Frame, body: Bytes) {
        self.ends_proved = false;
        let (base, end) = (frame.base, frame.end());
        if base < self.expected || end < base {
            return self.fault(at, format!("a batch from entry {base} on, which came before already"));
        }
        if let Some(next) = self.next.filter(|next| end > *next) {
            return self
                .fault(at, format!("a batch up to entry {end}, but the next segment begins at {next}"));
        }
        if frame.kind == Kind::Gap {
            self.counts.unused += u64::from(frame.count);
        } else {
            match Batch::from_encoded(base, frame.count, frame.time, body) {
                Ok(batch) => self.count(at, &batch),
                Err(error) => {
                    let to = at + frame.bytes() as u64;
                    return self.note_bad(
                        at,
                        to,
                        Some(*frame),
                        format!("{error}, although its checksum is right"),
                    );
                }
            }
        }
        self.lose_up_to(base, at);
        self.expected = end;
        self.newest = self.newest.max(frame.time);
    }

    fn count(&mut self, at: u64, batch: &Batch) {
        self.counts.batches += 1;
        for (place, entry) in batch.entries() {
            match entry {
                Entry::Record(record) => {
                    self.counts.records += 1;
                    self.check_topic(at, place.offset, record.topic);
                }
                Entry::Control(body) => {
                    self.counts.controls += 1;
                    if let Some(Err(error)) = self.outside.control.map(|check| check(body)) {
                        let found =
                            format!("the control entry {} cannot be understood: {error}", place.offset);
                        let file = self.storage.display(&self.candidate.name);
                        self.faults.push(Fault { file, at, found, meaning: Meaning::Remark });
                    }
                }
            }
        }
    }

    /// A session that the footer tells that a topic is not here would miss its records.
    fn check_topic(&mut self, at: u64, offset: Offset, topic: TopicName<'_>) {
        let Some(topics) = &self.topics else { return };
        let filter = TopicFilter::new(topic.as_str());
        if filter.is_ok_and(|filter| !topics.may_match(&filter)) {
            self.fault(at, format!("the footer says that no record has the topic of entry {offset}"));
            self.topics = None;
        }
    }

    /// A mark, or a footer: the entries before it end at its base. It proves entries, but only what comes next, or the
    /// end of the segment, tells which are lost: what lies here may belong to another place.
    fn take_end(&mut self, at: u64, frame: &Frame) {
        let (base, expected) = (frame.base, self.expected);
        if base < expected || self.next.is_some_and(|next| base > next) {
            return self
                .fault(at, format!("it says that the entries before it end at {base}, not at {expected}"));
        }
        if base > expected && self.bad.is_empty() {
            self.note_bad(
                at,
                at,
                None,
                format!("it says that the entries before it end at {base}, not at {expected}"),
            );
        } else if base == expected {
            self.lose_up_to(base, at);
        }
        self.ends_proved = base == expected && frame.durable_before >= base;
    }

    fn take_footer(&mut self, at: u64, frame: &Frame, body: &Bytes) {
        let footer = Footer::decode(body).filter(|footer| footer.position == at && footer.end == frame.base);
        if footer.is_none() {
            return self.fault(at, "a footer that does not fit to its segment".to_owned());
        }
        self.take_end(at, frame);
        let end = frame.base;
        self.proof.raise(end, || format!("its footer says that it ends at entry {end}"));
        self.ends_proved = self.expected == end;
        if at + frame.bytes() as u64 != self.candidate.length {
            return self.fault(self.at, "there are bytes behind the footer".to_owned());
        }
        if let Some((offset, place)) = self.index.front().copied() {
            self.fault(place, format!("the footer says that entry {offset} begins here, which it does not"));
        }
        self.footer = footer;
    }

    /// Everything from the expected offset up to `to` should have been before `at`.
    fn lose_up_to(&mut self, to: Offset, at: u64) {
        let from = self.expected;
        let bad = std::mem::take(&mut self.bad);
        if to <= from {
            for each in bad {
                self.faults[each.fault].found += "; no entry is lost by it";
            }
            return;
        }
        let bytes = bad.iter().map(|bad| bad.to - bad.at).sum();
        let begins = bad.first().map_or(at, |bad| bad.at);
        match bad.first() {
            Some(bad) => {
                self.faults[bad.fault].found += &format!("; entries {from} to {} are lost by it", to.0 - 1);
            }
            None => self.fault(at, format!("entries {from} to {} are missing before it", to.0 - 1)),
        }
        let mut clients: BTreeMap<String, u64> = BTreeMap::new();
        for (client, records) in bad.into_iter().flat_map(|bad| bad.clients) {
            let known = clients.len() < CLIENTS_MAX || clients.contains_key(&client);
            *clients.entry(if known { client } else { OTHERS.to_owned() }).or_default() += records;
        }
        let file = self.storage.display(&self.candidate.name);
        self.losses.push(Loss { from, to, file, at: begins, bytes, clients });
        self.expected = to;
    }

    /// Whose records the damaged bytes seem to hold.
    fn estimate(&self, at: u64, to: u64, header: Option<Frame>) -> BTreeMap<String, u64> {
        let mut clients: BTreeMap<String, u64> = BTreeMap::new();
        let begin = at + FRAME_BYTES as u64;
        let bytes = to.saturating_sub(begin).min(ESTIMATE_BYTES);
        let mut garbled = vec![0; usize::try_from(bytes).expect("it is bounded")];
        if self.candidate.file.read_at(&mut garbled, begin).is_err() {
            return clients;
        }
        let most = header.map_or(usize::MAX, |frame| frame.count as usize);
        for entry in entries_that_seem(&garbled).take(most) {
            let Entry::Record(record) = entry else { continue };
            let known = clients.len() < CLIENTS_MAX || clients.contains_key(record.client);
            *clients.entry(if known { record.client } else { OTHERS }.to_owned()).or_default() += 1;
        }
        clients
    }

    fn report(self, damaged: bool) -> PassReport {
        PassReport {
            segment: SegmentReport {
                name: self.candidate.name.clone(),
                base: self.candidate.base,
                end: self.expected,
                bytes: self.candidate.length,
                newest: self.newest,
                sealed: self.footer.is_some(),
                damaged,
                header: self.candidate.header,
                salt: self.salt,
            },
            faults: self.faults,
            losses: self.losses,
            counts: self.counts,
            end_is_doubtful: false,
            lost_behind: None,
        }
    }

    /// Of a segment that is followed by one that begins at `next`.
    pub(super) fn settle_sealed(mut self, next: Offset) -> PassReport {
        let is_closed = self.footer.is_some() && self.bad.is_empty();
        if !is_closed {
            let at = self.candidate.length.saturating_sub(TRAILER_BYTES as u64);
            let has_bad = !self.bad.is_empty();
            if self.footer.is_none() {
                self.fault(at, "a later segment exists, but its footer is not readable".to_owned());
            }
            if self.expected < next || has_bad {
                self.lose_up_to(next, self.at);
            }
        }
        let damaged = !self.faults.iter().all(|fault| fault.meaning == Meaning::Remark);
        let damaged = damaged || self.candidate.header.is_none();
        self.report(damaged)
    }

    /// Of the last segment; `proof` comes from outside of it.
    pub(super) fn settle_last(mut self, proof: &Proof, cursors_known: bool) -> PassReport {
        let own = self.proof.clone();
        let mut proof = proof.clone();
        proof.raise(own.before, || own.by.clone());
        let without_header = self.candidate.header.is_none();
        if let Some(bad) = self.first_bad.filter(|bad| proof.before <= bad.end && cursors_known) {
            self.forget_tail(bad);
            return self.report(without_header);
        }
        let is_sound = self.footer.is_some() && self.faults.is_empty() && !without_header;
        if is_sound && (proof.before > self.expected || !cursors_known) {
            let end = self.expected;
            let mut report = self.report(false);
            report.lost_behind = Some((proof.before.max(end), proof.by));
            return report;
        }
        if is_sound {
            let found =
                "it is closed and no segment follows: a repair or a crash ended here, or a file is missing";
            let file = self.storage.display(&self.candidate.name);
            let meaning = Meaning::Remark;
            self.faults.push(Fault { file, at: self.at, found: found.to_owned(), meaning });
        }
        // A closed segment is hardly ever the last one.
        let is_closed = self.footer.is_some();
        let mut doubtful = !self.bad.is_empty() || is_closed || (!cursors_known && !self.ends_proved);
        if proof.before > self.expected {
            let (expected, at) = (self.expected, self.at);
            self.fault(at, format!("entry {expected} is not readable, but {}", proof.by));
            self.lose_up_to(proof.before, at);
            doubtful = true;
        }
        let faults = self.faults.iter().any(|fault| fault.meaning == Meaning::Damage);
        let mut report = self.report(faults || doubtful || without_header);
        report.end_is_doubtful = doubtful;
        report
    }

    /// What lies behind the first bad frame was never acknowledged.
    fn forget_tail(&mut self, bad: FirstBad) {
        for fault in &mut self.faults[bad.faults..] {
            fault.meaning = Meaning::Tail;
            fault.found += " (the torn tail of a crash: it was never acknowledged)";
        }
        self.losses.truncate(bad.losses);
        (self.expected, self.newest) = (bad.end, bad.newest);
        self.counts = bad.counts;
        self.footer = None;
    }
}

/// The footer, found from the end of the file.
pub(super) fn read_footer(candidate: &Candidate, salt: u32) -> io::Result<Option<Footer>> {
    let Some(at) = candidate.length.checked_sub(TRAILER_BYTES as u64) else { return Ok(None) };
    let mut trailer = [0; TRAILER_BYTES];
    candidate.file.read_at(&mut trailer, at)?;
    let Some(at) = Footer::position(&trailer).filter(|at| *at < candidate.length) else { return Ok(None) };
    let mut header = [0; FRAME_BYTES];
    if at + FRAME_BYTES as u64 > candidate.length {
        return Ok(None);
    }
    candidate.file.read_at(&mut header, at)?;
    let Some(frame) = Frame::decode(&header, salt).filter(|frame| frame.kind == format::Kind::Footer) else {
        return Ok(None);
    };
    if at + frame.bytes() as u64 != candidate.length {
        return Ok(None);
    }
    let mut body = vec![0; frame.body_bytes as usize];
    candidate.file.read_at(&mut body, at + FRAME_BYTES as u64)?;
    Ok(if frame.holds(&body, salt) { Footer::decode(&body.into()) } else { None })
}
