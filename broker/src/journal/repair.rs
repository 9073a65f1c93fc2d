//! Making a damaged journal usable again, without hiding what that costs.
//!
//! What always holds: nothing is changed before a copy of it is kept beside it; an entry that is readable keeps its
//! offset and its content; the offsets of lost entries stay empty for ever (a gap), so that no offset is ever used
//! for other content, readers go on behind it and everybody who passes it can count what is lost. Every change is a
//! whole new file put in place by one rename, and the proof of where the journal ends is the last thing to go: a
//! repair that is interrupted, at any point and by a power loss, is run again.
//!
//! Where the end itself is damaged nobody knows how many entries were behind what is proved. Then offsets are left
//! unused, more than can have been in what is missing of one segment.

use std::io;
use std::sync::Arc;

use super::cursors::{self, Saved};
use super::forgiving::ForgivingFile;
use super::format::{FramePlace, Kind, SegmentHeader};
use super::inspect::{CursorsFile, Examined, Loss, SegmentReport};
use super::segment::{base_in_name, file_name};
use super::segment_writer::SegmentWriter;
use super::storage::{self, Storage, StorageFile};
use super::walk::{Step, Walk};
use super::{JournalId, OpenError, fresh_id, fresh_salt};
use crate::record::{Batch, Offset, Timestamp};

/// What stands in the name of a file that a repair has kept, between its old name and the time.
pub const KEPT: &str = ".damaged-";
/// An entry takes at least so many bytes.
const ENTRY_BYTES_MIN: u64 = 12;
/// The new end behind a damaged one is a multiple of it, for people to recognise.
const ROUND: u64 = 1_000;
const CHUNK_BYTES: u64 = 1 << 20;

/// One file that is changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// It is no file of this journal and leaves its name to one that is.
    SetAside {
        /// Its name.
        name: String,
    },
    /// It is missing, and made with nothing but a gap.
    Make {
        /// Its name.
        name: String,
        /// Its first offset.
        from: Offset,
        /// The offset behind its last one.
        to: Offset,
    },
    /// It is written anew from everything in it that is sound.
    Rewrite {
        /// Its name.
        name: String,
    },
    /// The cursors are forgotten: sinks begin again at the oldest entry there is.
    ForgetCursors,
}

/// What a repair will do. Nothing is done before [`Plan::apply`].
#[derive(Debug)]
pub struct Plan {
    /// In this order.
    pub changes: Vec<Change>,
    /// What is lost by the damage, and not by the repair.
    pub losses: Vec<Loss>,
    /// Offsets that stay unused because nobody knows whether they were used.
    pub unused: Option<(Offset, Offset)>,
    /// The journal's end afterwards.
    pub end: Offset,
    /// Whether nothing tells the journal's id any more, so that it gets a new one.
    pub new_id: bool,
    id: JournalId,
    segments: Vec<SegmentReport>,
}

impl Plan {
    /// How to repair what was found. `segment_bytes` is the size at which the journal's segments were sealed.
    pub fn new(examined: Examined, segment_bytes: u64) -> Self {
        let last_bytes = examined.segments.last().map_or(0, |last| last.bytes);
        let mut end = examined.end;
        let mut unused = None;
        if examined.end_is_doubtful {
            let more = segment_bytes.max(last_bytes) / ENTRY_BYTES_MIN + 1;
            let to = Offset((end.0 + more).next_multiple_of(ROUND));
            unused = Some((end, to));
            end = to;
        }
        let mut changes: Vec<Change> =
            examined.aside.iter().map(|name| Change::SetAside { name: name.clone() }).collect();
        changes.extend(examined.missing.iter().map(|(from, to)| Change::Make {
            name: file_name(*from),
            from: *from,
            to: *to,
        }));
        let damaged = examined.segments.iter().filter(|segment| segment.damaged);
        changes.extend(damaged.map(|segment| Change::Rewrite { name: segment.name.clone() }));
        if matches!(examined.cursors_file, CursorsFile::Damaged(_) | CursorsFile::Foreign) {
            changes.push(Change::ForgetCursors);
        }
        let new_id = examined.id.is_none() && !changes.is_empty();
        Self {
            changes,
            losses: examined.losses,
            unused,
            end,
            new_id,
            id: examined.id.unwrap_or_else(|| fresh_id(storage::random)),
            segments: examined.segments,
        }
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// How many entries are lost.
    pub fn entries_lost(&self) -> u64 {
        self.losses.iter().map(|loss| loss.to.since(loss.from)).sum()
    }

    /// The name under which `name` is kept when it is changed at the time `stamp`.
    pub fn kept_name(name: &str, stamp: &str) -> String {
        format!("{name}{KEPT}{stamp}")
    }

    /// Does it. Every file that is changed is kept as [`Plan::kept_name`]. `now` is the time of the segments it makes.
    ///
    /// # Errors
    ///
    /// If the storage fails. Then the repair is to be planned and run again.
    pub fn apply(&self, storage: &dyn Storage, stamp: &str, now: Timestamp) -> Result<(), OpenError> {
        let fail = |doing, name: &str| {
            let file = storage.display(name);
            move |error| OpenError::Io { doing, file, error }
        };
        remove_unfinished(storage).map_err(fail("clear", ""))?;
        for change in &self.changes {
            let name = match change {
                Change::Rewrite { name } => name.as_str(),
                Change::ForgetCursors => cursors::FILE,
                Change::SetAside { .. } | Change::Make { .. } => continue,
            };
            keep(storage, name, &Self::kept_name(name, stamp)).map_err(fail("keep a copy of", name))?;
        }
        for change in &self.changes {
            match change {
                Change::SetAside { name } => {
                    let moved = storage.rename(name, &Self::kept_name(name, stamp));
                    moved.and_then(|()| storage.sync_folder()).map_err(fail("set aside", name))?;
                }
                Change::Make { name, from, to } => {
                    self.make(storage, *from, *to, now).map_err(fail("make", name))?;
                }
                Change::Rewrite { name } => self.rewrite(storage, name).map_err(fail("write", name))?,
                Change::ForgetCursors => {
                    let saved = Saved { id: self.id, synced: self.end, cursors: Vec::new() };
                    let replaced = storage::replace_file(storage, cursors::FILE, &cursors::encode(&saved));
                    replaced.map_err(fail("write", cursors::FILE))?;
                }
            }
        }
        Ok(())
    }

    /// Up to where the segment goes that ends at `end` as far as is known.
    fn unused_up_to(&self, end: Offset) -> Offset {
        self.unused.filter(|(from, _)| *from == end).map_or(end, |(_, to)| to)
    }

    fn make(&self, storage: &dyn Storage, from: Offset, to: Offset, now: Timestamp) -> io::Result<()> {
        let header = SegmentHeader { id: self.id, base: from, created: now, salt: fresh_salt(storage) };
        let mut writer = SegmentWriter::begin(storage, header)?;
        writer.gap_to(to, true)?;
        if self.segments.last().is_none_or(|last| last.base < to) {
            writer.gap_to(self.unused_up_to(to), false)?;
        }
        writer.finish()
    }

    fn rewrite(&self, storage: &dyn Storage, name: &str) -> io::Result<()> {
        let place = self.segments.iter().position(|segment| segment.name == name);
        let place = place.expect("only segments that were found are written anew");
        let segment = &self.segments[place];
        let salt = segment.salt.unwrap_or_else(|| fresh_salt(storage));
        // When it was made is lost with its header, and is told only to people.
        let header = segment.header.unwrap_or(SegmentHeader {
            id: self.id,
            base: segment.base,
            created: segment.newest,
            salt,
        });
        let file = ForgivingFile::new(storage.open(name)?);
        let length = file.len()?;
        let mut writer = SegmentWriter::begin(storage, header)?;
        let mut walk = segment.salt.map(|salt| Walk::new(file, salt, length));
        while let Some(walk) = &mut walk
            && let Some(step) = walk.next()?
        {
            copy(&mut writer, step, segment.end)?;
        }
        writer.gap_to(segment.end, true)?;
        if place + 1 == self.segments.len() {
            writer.gap_to(self.unused_up_to(segment.end), false)?;
        }
        writer.finish()
    }
}

/// Adds what is sound and follows what is there already; the same that was counted as sound when it was examined.
fn copy(writer: &mut SegmentWriter<'_>, step: Step, end: Offset) -> io::Result<()> {
    let Step::Frame { frame, body, .. } = step else { return Ok(()) };
    if frame.base < writer.end() || frame.end() > end || frame.end() < frame.base {
        return Ok(());
    }
    match frame.kind {
        Kind::Batch => {
            if Batch::from_encoded(frame.base, frame.count, frame.time, body.clone()).is_err() {
                return Ok(());
            }
            writer.gap_to(frame.base, true)?;
            let (base, count, time) = (frame.base, frame.count, frame.time);
            writer.batch(FramePlace { base, count, time, durable_before: frame.durable_before }, body)
        }
        Kind::Gap => {
            writer.gap_to(frame.base, true)?;
            writer.gap_to(frame.end(), super::format::gap_is_loss(&body))
        }
        Kind::Mark | Kind::Footer => Ok(()),
    }
}

/// Removes what an earlier repair, or a start, has not finished.
fn remove_unfinished(storage: &dyn Storage) -> io::Result<()> {
    for name in storage.list()? {
        let Some(of) = name.strip_suffix(".new") else { continue };
        if of == cursors::FILE || of.contains(KEPT) || base_in_name(of).is_some() {
            storage.remove(&name)?;
        }
    }
    storage.sync_folder()
}

/// Copies `name` to `kept`, which exists only when it is whole. What the disk cannot read of it is not in the copy.
fn keep(storage: &dyn Storage, name: &str, kept: &str) -> io::Result<()> {
    let from: Arc<dyn StorageFile> = ForgivingFile::new(storage.open(name)?);
    let new = format!("{kept}.new");
    let to = storage.create(&new)?;
    let length = from.len()?;
    let mut at = 0;
    while at < length {
        let bytes = (length - at).min(CHUNK_BYTES);
        let mut chunk = vec![0; usize::try_from(bytes).expect("a chunk is small")];
        from.read_at(&mut chunk, at)?;
        to.write_at(&chunk, at)?;
        at += bytes;
    }
    to.sync()?;
    storage.rename(&new, kept)?;
    storage.sync_folder()
}
