//! Cursors: named durable reading positions, and the file that keeps them.
//!
//! A cursor never passes the durable end and never moves back. The journal is trimmed below the slowest *saved*
//! position only, so that a cursor read back after a crash still finds its entries. The file is replaced as a
//! whole. It also tells how far the journal was synced when it was written, so that a later recovery that finds
//! less knows of the damage:
//!
//! ```text
//! magic[8] | u32 version | u32 crc of what follows | u128 journal id | u64 synced | u32 count
//! | (u64 position | u64 skipped | u16 name bytes | name)*
//! ```

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use super::storage::{self, Storage};
use super::{CursorError, JournalId, Shared, StartAt, format};
use crate::plant::{self, Bug};
use crate::record::Offset;

pub(super) const FILE: &str = "cursors";
const MAGIC: [u8; 8] = *b"TidegatC";
const VERSION: u32 = 1;
const HEADER_BYTES: usize = 16;
/// The longest name of a cursor, in bytes; a longer one is an error.
const NAME_BYTES_MAX: usize = 1_024;

/// All cursors of a journal.
#[derive(Debug, Default)]
pub(super) struct Cursors {
    all: Mutex<BTreeMap<String, Arc<State>>>,
    dirty: AtomicBool,
    /// Held while the file is written, so that an older picture never replaces a newer one.
    saving: Mutex<()>,
}

#[derive(Debug)]
pub(super) struct State {
    position: AtomicU64,
    /// The position that a crash would bring back.
    saved: AtomicU64,
    skipped: AtomicU64,
}

impl State {
    fn new(position: Offset, saved: Offset, skipped: u64) -> Arc<Self> {
        let (position, saved) = (AtomicU64::new(position.0), AtomicU64::new(saved.0));
        Arc::new(Self { position, saved, skipped: AtomicU64::new(skipped) })
    }

    pub(super) fn position(&self) -> Offset {
        Offset(self.position.load(Ordering::Acquire))
    }

    pub(super) fn skipped(&self) -> u64 {
        self.skipped.load(Ordering::Relaxed)
    }

    /// Moves it up to `start` if it lies before, counting what it misses.
    fn skip_to(&self, start: Offset) -> u64 {
        let before = self.position.fetch_max(start.0, Ordering::AcqRel);
        let missed = start.since(Offset(before));
        let missed = if plant::is(Bug::SkippedNotCounted) { 0 } else { missed };
        self.skipped.fetch_add(missed, Ordering::Relaxed);
        self.saved.fetch_max(start.0, Ordering::AcqRel);
        missed
    }
}

/// What the file holds.
#[derive(Debug)]
pub(super) struct Saved {
    pub(super) id: JournalId,
    /// Every entry before it was synced.
    pub(super) synced: Offset,
    pub(super) cursors: Vec<SavedCursor>,
}

/// A cursor as the file holds it.
#[derive(Debug)]
pub(super) struct SavedCursor {
    pub(super) name: String,
    pub(super) position: Offset,
    pub(super) skipped: u64,
}

/// How far the file of cursors may go.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ends {
    /// Every entry before it is synced.
    pub(super) synced: Offset,
    /// Positions are saved up to here only: one beyond the end that a crash leaves would look like damage.
    pub(super) positions: Offset,
}

/// Whether every cursor has passed some offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Passed {
    /// Yes, and a crash would not change that.
    Saved,
    /// Yes, but the file does not say so yet.
    Unsaved,
    /// No.
    No,
}

impl Cursors {
    /// The cursors in the file, whose first bytes may lie before `start`: those have missed entries.
    pub(super) fn restored(saved: Vec<SavedCursor>, start: Offset) -> Self {
        let cursors = Self::default();
        for saved in saved {
            let state = State::new(saved.position, saved.position, saved.skipped);
            cursors.skip(&saved.name, &state, start);
            cursors.locked().insert(saved.name, state);
        }
        cursors
    }

    fn locked(&self) -> MutexGuard<'_, BTreeMap<String, Arc<State>>> {
        self.all.lock().expect("no thread panics while it holds the cursors")
    }

    pub(super) fn is_dirty(&self) -> bool {
        self.dirty.load(Ordering::Relaxed)
    }

    /// Notes that the file is out of date; whether it was not before.
    fn soil(&self) -> bool {
        !self.dirty.swap(true, Ordering::AcqRel)
    }

    /// Every cursor by name.
    pub(super) fn all(&self) -> Vec<(String, Arc<State>)> {
        self.locked().iter().map(|(name, state)| (name.clone(), state.clone())).collect()
    }

    /// Whether every cursor has passed `end`, and whether it still would have after a crash.
    pub(super) fn passed(&self, end: Offset) -> Passed {
        let all = self.locked();
        if all.values().all(|state| state.saved.load(Ordering::Acquire) >= end.0) {
            Passed::Saved
        } else if all.values().all(|state| state.position() >= end) {
            Passed::Unsaved
        } else {
            Passed::No
        }
    }

    /// Moves the start of the journal to `start`, if every saved position allows it or it is forced; whether it
    /// was moved. No cursor can be made before it from then on. Those that were before it have missed what is
    /// trimmed, loudly.
    pub(super) fn trim_to(&self, start: Offset, forced: bool, journal_start: &AtomicU64) -> bool {
        let all = self.locked();
        let kept = |state: &State| match () {
            () if plant::is(Bug::TrimmedBelowCursor) => u64::MAX,
            () if plant::is(Bug::TrimmedByUnsaved) => state.position().0,
            () => state.saved.load(Ordering::Acquire),
        };
        if !forced && all.values().any(|state| kept(state) < start.0) {
            return false;
        }
        journal_start.store(start.0, Ordering::Release);
        for (name, state) in all.iter() {
            self.skip(name, state, start);
        }
        true
    }

    fn skip(&self, name: &str, state: &State, start: Offset) {
        let missed = state.skip_to(start);
        if missed > 0 {
            self.soil();
            tracing::warn!(cursor = name, missed, "entries were trimmed before this cursor had read them");
        }
    }

    /// The cursor called `name`, made if there is none; and whether it was made.
    fn entry(&self, name: &str, position: impl FnOnce() -> Offset) -> (Arc<State>, bool) {
        let mut all = self.locked();
        if let Some(state) = all.get(name) {
            return (state.clone(), false);
        }
        // Nothing is saved yet, and where nothing is synced yet it may not be saved as far as it stands.
        let state = State::new(position(), Offset(0), 0);
        all.insert(name.to_owned(), state.clone());
        (state, true)
    }

    /// Writes the file, without the cursor called `without`.
    pub(super) fn save(
        &self,
        storage: &dyn Storage,
        id: JournalId,
        ends: Ends,
        without: Option<&str>,
    ) -> io::Result<()> {
        let _one_at_a_time = self.saving.lock().expect("no thread panics while it saves cursors");
        self.dirty.store(false, Ordering::Release);
        let mut all = self.all();
        all.retain(|(name, _)| without != Some(name));
        let saved: Vec<_> = all.iter().map(|(_, state)| state.position().min(ends.positions)).collect();
        let positions = all.iter().zip(&saved);
        let cursors = positions.map(|((name, state), position)| SavedCursor {
            name: name.clone(),
            position: *position,
            skipped: state.skipped(),
        });
        let file = Saved { id, synced: ends.synced, cursors: cursors.collect() };
        let result = storage::replace_file(storage, FILE, &encode(&file));
        let behind = all.iter().zip(&saved).any(|((_, state), saved)| state.position() > *saved);
        if result.is_err() || behind {
            self.soil();
        }
        result?;
        for ((_, state), saved) in all.iter().zip(saved) {
            state.saved.fetch_max(saved.0, Ordering::AcqRel);
        }
        Ok(())
    }
}

/// The content of the file.
pub(super) fn encode(saved: &Saved) -> Vec<u8> {
    let mut bytes = vec![0; HEADER_BYTES];
    bytes.extend(saved.id.0.to_le_bytes());
    bytes.extend(saved.synced.0.to_le_bytes());
    let count = u32::try_from(saved.cursors.len()).expect("fewer than 4 billion cursors fit into memory");
    bytes.extend(count.to_le_bytes());
    for cursor in &saved.cursors {
        let name_bytes = u16::try_from(cursor.name.len()).expect("names are checked when cursors are made");
        bytes.extend(cursor.position.0.to_le_bytes());
        bytes.extend(cursor.skipped.to_le_bytes());
        bytes.extend(name_bytes.to_le_bytes());
        bytes.extend(cursor.name.as_bytes());
    }
    let crc = format::crc(0, &bytes[HEADER_BYTES..]);
    bytes[0..8].copy_from_slice(&MAGIC);
    bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
    bytes[12..16].copy_from_slice(&crc.to_le_bytes());
    bytes
}

/// What a file whose checksum is wrong seems to say; nothing of it can be relied on.
pub(super) fn that_seem(bytes: &[u8]) -> Vec<(String, Offset)> {
    let Some(body) = bytes.get(HEADER_BYTES..) else { return Vec::new() };
    let seems = decode_body(body).map(|saved| saved.cursors).unwrap_or_default();
    seems.into_iter().map(|cursor| (cursor.name, cursor.position)).collect()
}

/// What the file holds. `Err` says at which byte it is damaged.
pub(super) fn decode(bytes: &[u8]) -> Result<Saved, usize> {
    let (header, body) = bytes.split_at_checked(HEADER_BYTES).ok_or(bytes.len())?;
    if header[0..8] != MAGIC || format::u32_at(header, 8) != VERSION {
        return Err(0);
    }
    if format::u32_at(header, 12) != format::crc(0, body) {
        return Err(12);
    }
    decode_body(body)
}

fn decode_body(body: &[u8]) -> Result<Saved, usize> {
    let mut rest = body;
    let mut take = |count: usize| -> Result<&[u8], usize> {
        let (taken, left) = rest.split_at_checked(count).ok_or(HEADER_BYTES + body.len())?;
        rest = left;
        Ok(taken)
    };
    let id = take(16)?;
    let id = u128::from(format::u64_at(id, 0)) | u128::from(format::u64_at(id, 8)) << 64;
    let synced = Offset(format::u64_at(take(8)?, 0));
    let count = format::u32_at(take(4)?, 0);
    let mut cursors = Vec::new();
    for _ in 0..count {
        let fixed = take(18)?;
        let name = take(usize::from(u16::from_le_bytes([fixed[16], fixed[17]])))?;
        let name = std::str::from_utf8(name).map_err(|_| HEADER_BYTES)?.to_owned();
        cursors.push(SavedCursor {
            name,
            position: Offset(format::u64_at(fixed, 0)),
            skipped: format::u64_at(fixed, 8),
        });
    }
    Ok(Saved { id: JournalId(id), synced, cursors })
}

/// A named durable reading position. What lies before it is done and may be trimmed.
#[derive(Debug)]
pub struct Cursor {
    shared: Arc<Shared>,
    state: Arc<State>,
}

impl Cursor {
    pub(super) fn open(shared: &Arc<Shared>, name: &str, start: StartAt) -> Result<Self, CursorError> {
        if name.is_empty() || name.len() > NAME_BYTES_MAX {
            return Err(CursorError::Name { bytes: name.len() });
        }
        let (state, made) = shared.cursors.entry(name, || {
            let (oldest, end) = (shared.start(), shared.durable_end());
            match start {
                StartAt::Oldest => oldest,
                StartAt::End => end,
                StartAt::Offset(offset) => offset.clamp(oldest, end),
            }
        });
        let cursor = Self { shared: shared.clone(), state };
        // Were it forgotten in a crash, it would begin at a later end and miss what lies between. Saving may have
        // failed when it was made: then it is still dirty.
        if made || shared.cursors.is_dirty() {
            cursor.save()?;
        }
        Ok(cursor)
    }

    pub(super) fn remove(shared: &Shared, name: &str) -> Result<(), CursorError> {
        if !shared.cursors.locked().contains_key(name) {
            return Err(CursorError::Unknown(name.to_owned()));
        }
        // While the file still holds it, so must the journal what it has not read.
        shared.save_cursors(Some(name))?;
        shared.cursors.locked().remove(name);
        // Another save may have put it back into the file meanwhile.
        shared.cursors.soil();
        shared.handover.poke();
        Ok(())
    }

    /// Puts the cursor called `name` at `to`, also back, and saves it; it is made if there is none. `skipped` entries
    /// are counted as lost to it.
    pub(super) fn place(shared: &Shared, name: &str, to: Offset, skipped: u64) -> Result<(), CursorError> {
        if name.is_empty() || name.len() > NAME_BYTES_MAX {
            return Err(CursorError::Name { bytes: name.len() });
        }
        let (start, end) = (shared.start(), shared.durable_end());
        if to < start || to > end {
            return Err(CursorError::Outside { to, start, end });
        }
        let (state, _) = shared.cursors.entry(name, || to);
        state.position.store(to.0, Ordering::Release);
        state.saved.fetch_min(to.0, Ordering::AcqRel);
        state.skipped.fetch_add(skipped, Ordering::Relaxed);
        Ok(shared.save_cursors(None)?)
    }

    /// Every entry before it is done.
    pub fn position(&self) -> Offset {
        self.state.position()
    }

    /// Entries that were trimmed or lost before it had read them.
    pub fn skipped(&self) -> u64 {
        self.state.skipped()
    }

    /// Moves it forward; it is saved within a second, and at close. An offset before its position changes
    /// nothing, one beyond the durable end counts as the durable end.
    pub fn advance(&self, to: Offset) {
        let to = to.min(self.shared.durable_end());
        if self.state.position.fetch_max(to.0, Ordering::AcqRel) >= to.0 {
            return;
        }
        if self.shared.cursors.soil() || to.0 >= self.shared.trim_wanted.load(Ordering::Acquire) {
            self.shared.handover.poke();
        }
    }

    /// Counts entries that are lost to it although they were not trimmed: those of a gap that it has passed.
    pub fn count_lost(&self, entries: u64) {
        self.state.skipped.fetch_add(entries, Ordering::Relaxed);
        if self.shared.cursors.soil() {
            self.shared.handover.poke();
        }
    }

    /// Saves all cursors now.
    ///
    /// # Errors
    ///
    /// If the file cannot be written. The old file stays, and the positions in memory hold.
    pub fn save(&self) -> Result<(), CursorError> {
        Ok(self.shared.save_cursors(None)?)
    }
}
