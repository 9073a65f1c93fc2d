//! Dead letters: records that their Kafka topic will never take, on their way to where they are kept instead.
//!
//! Each goes to the dead-letter topic, or, where that does not take it either, into the dead-letter file. It is counted
//! when its place in the journal is confirmed, once, by reason. Nothing is confirmed before the file is on disk.
//!
//! What is condemned stays so until it is confirmed, so that a record that is offered again goes the same way; what
//! was found out while a record was shaped is found out anew.

mod file;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use tidegate_broker::journal::JournalId;
use tidegate_broker::record::{Offset, Record};

use crate::health::Part;
use crate::pump::{Reject, Rejects, SinkError};

use super::config::DeadLetterConfig;
pub(super) use file::DeadLetterFile;

/// The header of a dead letter that says why, in a word.
pub(super) const REASON: &str = "tidegate_reason";
/// The header of a dead letter that says why, and what to do.
pub(super) const DETAIL: &str = "tidegate_detail";
/// The header of a dead letter that names the Kafka topic it was to go to, or came from.
pub(super) const KAFKA_TOPIC: &str = "tidegate_kafka_topic";
/// Longer details are cut in a header, so that they do not make a record larger than its topic takes.
const DETAIL_BYTES_MAX: usize = 1_000;

/// Why a Kafka topic does not take a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wrong {
    /// A short fixed word for the metric, such as `too_large`.
    pub(super) reason: &'static str,
    /// What Kafka said, and what to do about it.
    pub(super) detail: Arc<str>,
}

impl Wrong {
    /// For `reason`, told in the words of `detail`.
    pub(super) fn new(reason: &'static str, detail: impl Into<Arc<str>>) -> Self {
        Self { reason, detail: detail.into() }
    }
}

/// Where a dead letter is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Topic,
    File,
    Nowhere,
}

/// A dead letter that is not confirmed yet.
#[derive(Debug)]
struct Letter {
    wrong: Wrong,
    place: Place,
    /// Where it was published.
    topic: Box<str>,
}

#[derive(Debug)]
struct Condemned {
    wrong: Wrong,
    /// The dead-letter topic has refused it.
    to_file: bool,
}

/// The dead letters of one sink.
#[derive(Debug)]
pub(super) struct DeadLetters {
    journal: JournalId,
    sink: &'static str,
    topic: Option<String>,
    file: Option<DeadLetterFile>,
    /// Why a line could not be written, until it is told.
    failed: Option<std::io::Error>,
    /// Not more than are in flight.
    condemned: BTreeMap<Offset, Condemned>,
    /// Not more than are in flight.
    letters: BTreeMap<Offset, Letter>,
    rejects: Rejects,
    line: Vec<u8>,
}

impl DeadLetters {
    /// For the sink whose health is `part`, and records of `journal`.
    pub(super) fn new(config: &DeadLetterConfig, journal: JournalId, part: Part) -> Self {
        let sink = part.name();
        let in_folder = |folder: &PathBuf| DeadLetterFile::new(folder.clone(), sink, config.file_bytes_max);
        Self {
            journal,
            sink,
            topic: config.topic.clone(),
            file: config.folder.as_ref().map(in_folder),
            failed: None,
            condemned: BTreeMap::new(),
            letters: BTreeMap::new(),
            rejects: Rejects::new(part),
            line: Vec::new(),
        }
    }

    /// The record at `offset` is a dead letter whenever it is offered again, until it is confirmed.
    pub(super) fn condemn(&mut self, offset: Offset, wrong: Wrong) {
        self.condemned.insert(offset, Condemned { wrong, to_file: false });
    }

    /// The dead-letter topic has refused the record at `offset` as well, because of `wrong`.
    pub(super) fn condemn_to_file(&mut self, offset: Offset, wrong: &Wrong) {
        let before = self.letters.get(&offset).map(|letter| letter.wrong.clone());
        let wrong = before.map_or_else(
            || wrong.clone(),
            |before| {
                let detail = format!("{}; nor does the dead-letter topic: {}", before.detail, wrong.detail);
                Wrong::new(before.reason, detail)
            },
        );
        self.condemned.insert(offset, Condemned { wrong, to_file: true });
    }

    /// Why the record at `offset` is condemned, and whether the dead-letter topic has refused it too.
    pub(super) fn condemned(&self, offset: Offset) -> Option<(Wrong, bool)> {
        self.condemned.get(&offset).map(|condemned| (condemned.wrong.clone(), condemned.to_file))
    }

    /// Whether the record at `offset` is on its way as a dead letter.
    pub(super) fn has(&self, offset: Offset) -> bool {
        self.letters.contains_key(&offset)
    }

    /// `record` is on its way to the dead-letter topic.
    pub(super) fn send(&mut self, offset: Offset, record: &Record<'_>, wrong: Wrong) {
        self.add(offset, record, wrong, Place::Topic);
    }

    /// Writes `record`, which was to go to `kafka_topic` under `key`, into the file. That it could not be is told by
    /// [`DeadLetters::settle`], so that nothing is confirmed.
    pub(super) fn write(
        &mut self,
        offset: Offset,
        record: &Record<'_>,
        wrong: Wrong,
        (kafka_topic, key): (&str, Option<&[u8]>),
    ) {
        let Some(file) = &mut self.file else {
            return self.add(offset, record, wrong, Place::Nowhere);
        };
        let (payload, payload_base64) = text_or_base64(record.payload);
        let line = Line {
            journal: format!("{:032x}", self.journal.0),
            offset: offset.0,
            time: i64::try_from(record.time.0).ok().and_then(rfc_3339),
            client: record.client,
            topic: record.topic.as_str(),
            kafka_topic,
            key: key.map(String::from_utf8_lossy),
            reason: wrong.reason,
            detail: &wrong.detail,
            payload,
            payload_base64,
        };
        self.line.clear();
        serde_json::to_writer(&mut self.line, &line).expect("texts and numbers are always JSON");
        self.line.push(b'\n');
        if let Err(error) = file.append(&self.line) {
            self.failed = Some(error);
        }
        self.add(offset, record, wrong, Place::File);
    }

    /// Makes sure that what was written into the file is on disk.
    pub(super) fn sync(&mut self) -> Result<(), SinkError> {
        if let Some(file) = &mut self.file
            && let Err(error) = self.failed.take().map_or_else(|| file.sync(), Err)
        {
            return Err(SinkError::Operator(unwritable(&file.path(), &error)));
        }
        Ok(())
    }

    /// Everything before `confirmed` is stored: makes sure of the file, and counts the dead letters before it.
    pub(super) fn settle(&mut self, confirmed: Offset) -> Result<(), SinkError> {
        self.sync()?;
        while let Some(first) = self.letters.first_entry().filter(|first| *first.key() < confirmed) {
            let (offset, letter) = first.remove_entry();
            self.count(offset, letter);
        }
        self.condemned = self.condemned.split_off(&confirmed);
        Ok(())
    }

    /// What was in flight is offered again.
    pub(super) fn forget(&mut self) {
        self.letters.clear();
        self.failed = None;
    }

    fn add(&mut self, offset: Offset, record: &Record<'_>, wrong: Wrong, place: Place) {
        self.letters.insert(offset, Letter { wrong, place, topic: record.topic.as_str().into() });
    }

    fn count(&mut self, offset: Offset, letter: Letter) {
        let Letter { wrong, place, topic } = letter;
        let kept = match (place, &self.topic, &self.file) {
            (Place::Topic, Some(topic), _) => format!("it is in the Kafka topic {topic}"),
            (Place::File, _, Some(file)) => format!("it is in {}", file.path().display()),
            _ => "it is not kept".to_owned(),
        };
        let detail = format!("{}; {kept}", wrong.detail);
        let reject = Reject { offset, topic: topic.into(), reason: wrong.reason, detail };
        if self.rejects.add(&reject) {
            let to = match place {
                Place::Topic => "topic",
                Place::File => "file",
                Place::Nowhere => "nowhere",
            };
            metrics::counter!("tidegate_sink_dead_letters_total", "sink" => self.sink, "to" => to)
                .increment(1);
        }
    }
}

/// What to say when the file at `path` cannot be written.
pub(super) fn unwritable(path: &Path, error: &std::io::Error) -> String {
    format!(
        "dead letters cannot be written to {} ({error}): make room for them, or give Kafka a topic that takes them \
         (kafka.dead_letter.topic)",
        path.display()
    )
}

/// `detail`, short enough for a header.
pub(super) fn shortened(detail: &str) -> &str {
    if detail.len() <= DETAIL_BYTES_MAX {
        return detail;
    }
    let end = (0..=DETAIL_BYTES_MAX).rev().find(|end| detail.is_char_boundary(*end));
    &detail[..end.unwrap_or(0)]
}

/// A time in milliseconds as a line of the file has it.
pub(super) fn rfc_3339(milliseconds: i64) -> Option<String> {
    let time = jiff::Timestamp::from_millisecond(milliseconds).ok()?;
    Some(format!("{time:.3}"))
}

/// `bytes` if they are UTF-8, else in base64 (RFC 4648 section 4): a line of a file has one of the two.
pub(super) fn text_or_base64(bytes: &[u8]) -> (Option<&str>, Option<String>) {
    match std::str::from_utf8(bytes) {
        Ok(text) => (Some(text), None),
        Err(_) => (None, Some(STANDARD.encode(bytes))),
    }
}

/// A line of the file.
#[derive(Serialize)]
struct Line<'a> {
    journal: String,
    offset: u64,
    /// RFC 3339; when it was accepted.
    time: Option<String>,
    client: &'a str,
    topic: &'a str,
    /// Where it was to go.
    kafka_topic: &'a str,
    key: Option<std::borrow::Cow<'a, str>>,
    reason: &'a str,
    detail: &'a str,
    /// If it is UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    payload: Option<&'a str>,
    /// If it is not.
    #[serde(skip_serializing_if = "Option::is_none")]
    payload_base64: Option<String>,
}

#[cfg(test)]
mod tests {
    use tidegate_broker::record::{Properties, Qos, Timestamp};
    use tidegate_broker::topic::TopicName;

    use super::*;

    fn record(payload: &[u8]) -> Record<'_> {
        Record {
            time: Timestamp(1_753_626_600_007),
            client: "c",
            topic: TopicName::new("sensors/d/x").unwrap(),
            properties: Properties::NONE,
            payload,
            qos: Qos::AtLeastOnce,
            retain: false,
            packet_id: 1,
        }
    }

    fn letters(folder: &std::path::Path, part: &Part) -> DeadLetters {
        let config = DeadLetterConfig { folder: Some(folder.into()), ..DeadLetterConfig::default() };
        DeadLetters::new(&config, JournalId(0xABC), part.clone())
    }

    fn wrong() -> Wrong {
        Wrong::new("too_large", "it is too large")
    }

    #[test]
    fn a_line_of_the_file_holds_everything_and_the_payload_unchanged() {
        let folder = tempfile::tempdir().unwrap();
        let mut letters = letters(folder.path(), &Part::new("kafka"));
        letters.write(Offset(7), &record("22.5 °C".as_bytes()), wrong(), ("sensors", Some(b"d")));
        letters.write(Offset(9), &record(b"\xff\x00"), wrong(), ("sensors", None));
        letters.settle(Offset(10)).unwrap();
        let text = std::fs::read_to_string(folder.path().join("kafka.jsonl")).unwrap();
        let lines: Vec<serde_json::Value> =
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(
            lines[0],
            serde_json::json!({
                "journal": "00000000000000000000000000000abc", "offset": 7, "time": "2025-07-27T14:30:00.007Z",
                "client": "c", "topic": "sensors/d/x", "kafka_topic": "sensors", "key": "d",
                "reason": "too_large", "detail": "it is too large", "payload": "22.5 °C",
            })
        );
        assert_eq!(lines[1]["payload_base64"], "/wA=");
        assert_eq!(lines[1]["key"], serde_json::Value::Null);
        assert_eq!(lines.len(), 2);
    }

    #[test]
    fn each_is_counted_once_when_it_is_confirmed_also_if_it_was_offered_again() {
        let folder = tempfile::tempdir().unwrap();
        let part = Part::new("kafka");
        let mut letters = letters(folder.path(), &part);
        letters.condemn(Offset(1), wrong());
        letters.send(Offset(1), &record(b""), wrong());
        letters.send(Offset(3), &record(b""), wrong());
        letters.settle(Offset(1)).unwrap();
        assert_eq!(part.report().rejected, 0);
        assert_eq!(letters.condemned(Offset(1)), Some((wrong(), false)));
        letters.settle(Offset(2)).unwrap();
        assert_eq!(part.report().rejected, 1);
        assert_eq!(letters.condemned(Offset(1)), None);
        letters.forget();
        assert!(!letters.has(Offset(3)));
        letters.send(Offset(1), &record(b""), wrong());
        letters.send(Offset(3), &record(b""), wrong());
        letters.settle(Offset(4)).unwrap();
        assert_eq!(part.report().rejected, 2);
        let told = part.report().detail.unwrap();
        assert!(told.contains("it is in the Kafka topic tidegate-dead-letter"), "{told}");
    }

    #[test]
    fn what_the_topic_refuses_goes_to_the_file_with_both_reasons() {
        let folder = tempfile::tempdir().unwrap();
        let mut letters = letters(folder.path(), &Part::new("kafka"));
        letters.send(Offset(1), &record(b""), wrong());
        letters.condemn_to_file(Offset(1), &Wrong::new("policy", "no"));
        let (wrong, to_file) = letters.condemned(Offset(1)).unwrap();
        assert!(to_file);
        assert_eq!(
            (wrong.reason, &*wrong.detail),
            ("too_large", "it is too large; nor does the dead-letter topic: no")
        );
    }

    #[test]
    fn nothing_is_confirmed_while_the_file_cannot_be_written() {
        let folder = tempfile::tempdir().unwrap();
        let in_the_way = folder.path().join("file");
        std::fs::write(&in_the_way, "").unwrap();
        let part = Part::new("kafka");
        let mut letters = letters(&in_the_way, &part);
        letters.write(Offset(1), &record(b""), wrong(), ("sensors", None));
        let error = letters.settle(Offset(2)).unwrap_err();
        assert!(matches!(error, SinkError::Operator(_)), "{error:?}");
        assert!(error.to_string().contains("dead letters cannot be written"), "{error}");
        assert_eq!(part.report().rejected, 0);
    }
}
