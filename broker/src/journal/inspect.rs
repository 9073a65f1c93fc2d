//! Looking at every byte of a journal without changing one: what is sound, what is damaged, what that costs.
//!
//! Every frame of every segment is read, whatever lies before it, and checked: checksums with the segment's salt, dense
//! offsets, footers against what they are of, names against headers, and the cursors against the end. What is wrong is
//! told as a [`Fault`] with file and position; entries that were acknowledged and are not there, as a [`Loss`].
//!
//! The durable end of a damaged journal is what anything proves to have been on disk: frames and marks, the cursors,
//! the checkpoint. A bad frame behind which nothing is proved is the torn tail of a crash, and no damage.

mod reading;
mod segment;
mod survey;

use std::collections::BTreeMap;
use std::sync::Arc;

use super::cursors::{self, Saved};
use super::forgiving::ForgivingFile;
use super::format::{HeaderFault, SEGMENT_HEADER_BYTES, SegmentHeader};
use super::segment::base_in_name;
use super::storage::{self, Storage, StorageFile};
use super::{CursorStatus, JournalId, OpenError, salt};
use crate::record::{Offset, Timestamp};
pub use reading::{Item, Source};
use segment::Pass;
pub use survey::{Survey, survey};

/// What a [`Fault`] means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meaning {
    /// Below the durable end: something that was acknowledged is not there, or cannot be proved.
    Damage,
    /// Beyond the durable end: it was never acknowledged, and the next start drops it.
    Tail,
    /// Nothing is lost by it.
    Remark,
}

/// Something that is not as it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Which file.
    pub file: String,
    /// At which byte of it.
    pub at: u64,
    /// What is there.
    pub found: String,
    /// What it means.
    pub meaning: Meaning,
}

/// Entries that were acknowledged and cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loss {
    /// The first one.
    pub from: Offset,
    /// The one behind the last.
    pub to: Offset,
    /// The file that held them.
    pub file: String,
    /// Where in it.
    pub at: u64,
    /// How many bytes there are damaged; 0 if they are missing.
    pub bytes: u64,
    /// Records by client, as far as the garbled bytes tell: an estimate.
    pub clients: BTreeMap<String, u64>,
}

/// What was counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Segments.
    pub segments: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Whole frames.
    pub frames: u64,
    /// Whole batches.
    pub batches: u64,
    /// Records in them.
    pub records: u64,
    /// Control entries in them.
    pub controls: u64,
    /// Offsets that an earlier repair or an export has left without entries.
    pub unused: u64,
}

/// What one segment's file holds.
#[derive(Clone, Debug)]
pub struct SegmentReport {
    /// Its file's name.
    pub name: String,
    /// Its first entry.
    pub base: Offset,
    /// The entry behind its last one.
    pub end: Offset,
    /// Its size.
    pub bytes: u64,
    /// When its newest batch was begun.
    pub newest: Timestamp,
    /// Whether it is closed by a footer.
    pub sealed: bool,
    /// Whether it must be written anew.
    pub(super) damaged: bool,
    pub(super) header: Option<SegmentHeader>,
    pub(super) salt: Option<u32>,
}

/// The file of cursors.
#[derive(Debug)]
pub(super) enum CursorsFile {
    Missing,
    Sound(Saved),
    /// With what it seems to say.
    Damaged(Vec<(String, Offset)>),
    Foreign,
}

/// Says what is wrong with the body of a control entry, whose meaning is the broker's.
pub type CheckControl<'a> = &'a dyn Fn(&[u8]) -> Result<(), String>;

/// What is known from outside of the journal's folder.
#[derive(Clone, Copy, Default)]
pub struct Outside<'a> {
    /// The offset of the checkpoint: everything before it was on disk.
    pub checkpoint: Option<Offset>,
    /// Says what is wrong with the body of a control entry.
    pub control: Option<CheckControl<'a>>,
}

impl std::fmt::Debug for Outside<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Outside").field("checkpoint", &self.checkpoint).finish_non_exhaustive()
    }
}

/// What was found in a journal.
#[derive(Debug)]
pub struct Examined {
    /// Which journal it is; `None` if nothing tells.
    pub id: Option<JournalId>,
    /// The oldest entry there is.
    pub start: Offset,
    /// The durable end, as far as anything proves it.
    pub end: Offset,
    /// Every segment of this journal, in order.
    pub segments: Vec<SegmentReport>,
    /// What is wrong, in the order of the files.
    pub faults: Vec<Fault>,
    /// What is lost, in order.
    pub losses: Vec<Loss>,
    /// What was counted.
    pub counts: Counts,
    /// The cursors, if their file is sound. Their lag in bytes is not worked out here.
    pub cursors: Vec<CursorStatus>,
    pub(super) cursors_file: CursorsFile,
    /// Files that bear a segment's name and are none of this journal.
    pub(super) aside: Vec<String>,
    /// Offsets that no file holds.
    pub(super) missing: Vec<(Offset, Offset)>,
    /// Whether more entries may have been behind `end` than anything proves.
    pub(super) end_is_doubtful: bool,
}

impl Examined {
    /// Whether anything below the durable end is not as it was written.
    pub fn is_damaged(&self) -> bool {
        self.faults.iter().any(|fault| fault.meaning == Meaning::Damage)
    }

    /// What the file of cursors seems to say although its checksum is wrong.
    pub fn cursors_that_seem(&self) -> &[(String, Offset)] {
        match &self.cursors_file {
            CursorsFile::Damaged(seem) => seem,
            CursorsFile::Missing | CursorsFile::Sound(_) | CursorsFile::Foreign => &[],
        }
    }
}

/// A file with a segment's name.
#[derive(Debug)]
struct Candidate {
    name: String,
    base: Offset,
    length: u64,
    file: Arc<ForgivingFile>,
    /// `None` if it is not readable.
    header: Option<SegmentHeader>,
}

/// The most that anything proves to have been on disk.
#[derive(Clone, Debug)]
struct Proof {
    before: Offset,
    by: String,
}

impl Proof {
    fn raise(&mut self, before: Offset, by: impl FnOnce() -> String) {
        if before > self.before {
            *self = Self { before, by: by() };
        }
    }
}

/// Reads everything in `storage`, and changes nothing.
///
/// # Errors
///
/// If a file cannot be opened, or was written by a newer program. What cannot be read inside a file is a fault.
pub fn examine(storage: &dyn Storage, outside: Outside<'_>) -> Result<Examined, OpenError> {
    let names = storage.list().map_err(|error| io_error(storage, "list", "", error))?;
    let mut examiner = Examiner::new(storage, outside);
    let mut candidates = Vec::new();
    for name in &names {
        match base_in_name(name) {
            Some(base) => candidates.push(open(storage, name, base)?),
            None => examiner.remark_on(name),
        }
    }
    examiner.read_cursors(&names)?;
    examiner.choose_journal(&mut candidates);
    examiner.examine_all(&candidates)?;
    Ok(examiner.finish())
}

fn open(storage: &dyn Storage, name: &str, base: Offset) -> Result<Candidate, OpenError> {
    let fail = |error| io_error(storage, "open", name, error);
    let file = ForgivingFile::new(storage.open(name).map_err(fail)?);
    let length = file.len().map_err(fail)?;
    let mut header = None;
    if length >= SEGMENT_HEADER_BYTES as u64 {
        let mut bytes = [0; SEGMENT_HEADER_BYTES];
        file.read_at(&mut bytes, 0).map_err(fail)?;
        header = match SegmentHeader::decode(&bytes) {
            Ok(header) => Some(header),
            Err(HeaderFault::Damaged) => None,
            Err(HeaderFault::Version(version)) => {
                return Err(OpenError::Version { file: storage.display(name), version });
            }
        };
    }
    Ok(Candidate { name: name.to_owned(), base, length, file, header })
}

struct Examiner<'a> {
    storage: &'a dyn Storage,
    outside: Outside<'a>,
    proof: Proof,
    found: Examined,
}

impl<'a> Examiner<'a> {
    fn new(storage: &'a dyn Storage, outside: Outside<'a>) -> Self {
        let mut proof = Proof { before: Offset(0), by: String::new() };
        if let Some(checkpoint) = outside.checkpoint {
            proof.raise(checkpoint, || format!("the checkpoint is of offset {checkpoint}"));
        }
        let found = Examined {
            id: None,
            start: Offset(0),
            end: Offset(0),
            segments: Vec::new(),
            faults: Vec::new(),
            losses: Vec::new(),
            counts: Counts::default(),
            cursors: Vec::new(),
            cursors_file: CursorsFile::Missing,
            aside: Vec::new(),
            missing: Vec::new(),
            end_is_doubtful: false,
        };
        Self { storage, outside, proof, found }
    }

    fn fault(&mut self, name: &str, at: u64, meaning: Meaning, found: String) {
        self.found.faults.push(Fault { file: self.storage.display(name), at, found, meaning });
    }

    fn remark_on(&mut self, name: &str) {
        if [cursors::FILE, storage::LOCK_FILE].contains(&name) {
            return;
        }
        let found = if name.contains(super::repair::KEPT) {
            "kept by a repair, and not read; remove it when nobody wants to look into it any more"
        } else if name.ends_with(".new") {
            "a file that was not finished when a process ended; the next start removes it if it is the journal's"
        } else {
            "no file of the journal, and left alone"
        };
        self.fault(name, 0, Meaning::Remark, found.to_owned());
    }

    fn read_cursors(&mut self, names: &[String]) -> Result<(), OpenError> {
        if !names.iter().any(|name| name == cursors::FILE) {
            return Ok(());
        }
        let fail = |error| io_error(self.storage, "read", cursors::FILE, error);
        let file = ForgivingFile::new(self.storage.open(cursors::FILE).map_err(fail)?);
        let bytes = storage::read_file(&*file).map_err(fail)?;
        self.found.cursors_file = match cursors::decode(&bytes) {
            Ok(saved) => CursorsFile::Sound(saved),
            Err(at) => {
                let found =
                    "the saved cursors are not readable, so that nobody knows what was already carried on";
                self.fault(cursors::FILE, at as u64, Meaning::Damage, found.to_owned());
                CursorsFile::Damaged(cursors::that_seem(&bytes))
            }
        };
        Ok(())
    }

    /// Says which journal this is, and takes files of others out of `candidates`.
    fn choose_journal(&mut self, candidates: &mut Vec<Candidate>) {
        let saved_id = match &self.found.cursors_file {
            CursorsFile::Sound(saved) => Some(saved.id),
            CursorsFile::Missing | CursorsFile::Damaged(_) | CursorsFile::Foreign => None,
        };
        let mut votes: BTreeMap<u128, usize> = BTreeMap::new();
        for header in candidates.iter().filter_map(|candidate| candidate.header) {
            *votes.entry(header.id.0).or_default() += 1;
        }
        let is_saved = |id: u128| saved_id.is_some_and(|saved| saved.0 == id);
        let elected = votes.iter().max_by_key(|(id, votes)| (**votes, is_saved(**id)));
        let id = elected.map(|(id, _)| JournalId(*id)).or(saved_id);
        self.found.id = id;
        candidates.retain(|candidate| {
            let Some(header) = candidate.header else { return true };
            let (at, found) = if Some(header.id) != id {
                (16, "it belongs to another journal".to_owned())
            } else if header.base != candidate.base {
                let name = super::segment::file_name(header.base);
                (
                    32,
                    format!(
                        "the file was renamed: it begins with entry {}, so {name} is its name",
                        header.base
                    ),
                )
            } else {
                return true;
            };
            self.fault(&candidate.name, at, Meaning::Damage, found);
            self.found.aside.push(candidate.name.clone());
            false
        });
        if saved_id.is_some() && saved_id != id {
            self.fault(cursors::FILE, 16, Meaning::Damage, "it belongs to another journal".to_owned());
            self.found.cursors_file = CursorsFile::Foreign;
        }
        if let CursorsFile::Sound(saved) = &self.found.cursors_file {
            let file = self.storage.display(cursors::FILE);
            self.proof.raise(saved.synced, || {
                format!("{file} proves that every entry before {} was on disk", saved.synced)
            });
            for cursor in &saved.cursors {
                let (name, position) = (&cursor.name, cursor.position);
                self.proof
                    .raise(position, || format!("cursor `{name}` had already passed it, to {position}"));
            }
        }
    }

    fn examine_all(&mut self, candidates: &[Candidate]) -> Result<(), OpenError> {
        let mut end = candidates.first().map(|first| first.base);
        self.found.start = end.unwrap_or_default();
        for (index, candidate) in candidates.iter().enumerate() {
            let next = candidates.get(index + 1).map(|next| next.base);
            if let Some(end) = end.filter(|end| *end < candidate.base) {
                let found = format!("the segment before it ends at entry {end}: a file is missing");
                self.miss(end, candidate.base, &candidate.name, found);
            }
            end = Some(self.examine_one(candidate, next)?);
        }
        self.found.end = end.unwrap_or_default();
        if candidates.is_empty() {
            self.find_nothing();
        }
        Ok(())
    }

    /// No file holds the entries from `from` to `to`; `found` is told of the file `name`.
    fn miss(&mut self, from: Offset, to: Offset, name: &str, found: String) {
        self.fault(name, 0, Meaning::Damage, found);
        let file = self.storage.display(&super::segment::file_name(from));
        self.found.losses.push(Loss { from, to, file, at: 0, bytes: 0, clients: BTreeMap::new() });
        self.found.missing.push((from, to));
    }

    fn examine_one(&mut self, candidate: &Candidate, next: Option<Offset>) -> Result<Offset, OpenError> {
        let fail = |error| io_error(self.storage, "read", &candidate.name, error);
        let salt = match candidate.header {
            Some(header) => Some(header.salt),
            None => salt::find(&*candidate.file, candidate.base).map_err(fail)?,
        };
        if candidate.header.is_none() {
            let (at, what) = match candidate.length < SEGMENT_HEADER_BYTES as u64 {
                true => (candidate.length, "the file ends inside its header"),
                false => (0, "its header is not readable"),
            };
            let frames = if salt.is_some() { "" } else { ", and no frame tells what it said" };
            self.fault(&candidate.name, at, Meaning::Damage, format!("{what}{frames}"));
        }
        let cursors_known = matches!(self.found.cursors_file, CursorsFile::Sound(_) | CursorsFile::Missing);
        let pass = Pass::run(self.storage, self.outside, candidate, salt, next).map_err(fail)?;
        let report = match next {
            Some(next) => pass.settle_sealed(next),
            None => pass.settle_last(&self.proof, cursors_known),
        };
        for (at, error) in candidate.file.failed() {
            self.fault(&candidate.name, at, Meaning::Damage, format!("the disk cannot read it: {error}"));
        }
        let found = &mut self.found;
        found.faults.extend(report.faults);
        found.losses.extend(report.losses);
        found.counts.add(&report.counts);
        found.end_is_doubtful |= report.end_is_doubtful;
        let (end, lost_behind) = (report.segment.end, report.lost_behind);
        found.segments.push(report.segment);
        if let Some((to, by)) = lost_behind {
            if end < to {
                self.miss(
                    end,
                    to,
                    &candidate.name,
                    format!("it ends at entry {end}, but {by}: a file is missing"),
                );
            } else {
                // The cursors, which would prove it, are lost.
                self.found.missing.push((end, end));
            }
            self.found.end_is_doubtful = true;
            return Ok(to);
        }
        Ok(end)
    }

    /// There is no segment.
    fn find_nothing(&mut self) {
        let CursorsFile::Sound(saved) = &self.found.cursors_file else { return };
        let start = saved.cursors.iter().map(|cursor| cursor.position).min().unwrap_or_default();
        let end = self.proof.before;
        if end > Offset(0) {
            let found = format!("{}, but there are no segments", self.proof.by);
            let start = start.min(end);
            (self.found.start, self.found.end) = (start, end);
            self.found.end_is_doubtful = true;
            if start < end {
                self.miss(start, end, cursors::FILE, found);
            } else {
                self.fault(cursors::FILE, 0, Meaning::Damage, found);
                self.found.missing.push((start, end));
            }
        }
    }

    fn finish(mut self) -> Examined {
        if let CursorsFile::Sound(saved) = &self.found.cursors_file {
            let start = self.found.start;
            let mut behind = Vec::new();
            for cursor in &saved.cursors {
                if cursor.position < start {
                    behind.push(format!(
                        "cursor `{}` stands at {}, before the oldest kept entry {start}: it has missed {} entries",
                        cursor.name,
                        cursor.position,
                        start.since(cursor.position)
                    ));
                }
                self.found.cursors.push(CursorStatus {
                    name: cursor.name.clone(),
                    position: cursor.position,
                    lag_bytes: 0,
                    skipped: cursor.skipped,
                    behind_since: None,
                });
            }
            for found in behind {
                self.fault(cursors::FILE, 0, Meaning::Remark, found);
            }
        }
        self.found.counts.segments = self.found.segments.len() as u64;
        self.found
    }
}

impl Counts {
    fn add(&mut self, other: &Self) {
        self.bytes += other.bytes;
        self.frames += other.frames;
        self.batches += other.batches;
        self.records += other.records;
        self.controls += other.controls;
        self.unused += other.unused;
    }
}

fn io_error(storage: &dyn Storage, doing: &'static str, name: &str, error: std::io::Error) -> OpenError {
    OpenError::Io { doing, file: storage.display(name), error }
}
