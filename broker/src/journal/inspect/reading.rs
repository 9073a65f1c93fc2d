//! Reading the entries of a journal that nobody has open, past whatever is damaged in it.

use std::ops::ControlFlow;

use super::super::format::{self, Kind};
use super::super::storage::Storage;
use super::super::walk::{Step, Walk};
use super::super::{CursorStatus, JournalId, OpenError, salt};
use super::segment::{Pass, read_footer};
use super::{Candidate, CursorsFile, Examiner, Fault, Meaning, Outside, base_in_name, io_error, open};
use crate::record::{Batch, Offset, Timestamp};

/// Clocks are not exact: a segment is passed over only if its newest entry is older by more than this.
const CLOCK_SLACK_MS: u64 = 60_000;

/// What comes next while a journal is read.
#[derive(Debug)]
pub enum Item {
    /// A batch, or a gap. In order, and dense except where a loss was told before.
    Batch(Batch),
    /// Entries are not readable; what comes next lies behind them.
    Lost {
        /// The first one.
        from: Offset,
        /// The one behind the last.
        to: Offset,
        /// Where they should be.
        fault: Fault,
    },
}

/// A journal whose entries are read without opening it, so that nothing is changed.
#[derive(Debug)]
pub struct Source<'a> {
    storage: &'a dyn Storage,
    /// Which journal it is, if anything tells.
    pub id: Option<JournalId>,
    /// The oldest entry.
    pub start: Offset,
    /// The durable end.
    pub end: Offset,
    /// The cursors, if their file is readable.
    pub cursors: Vec<CursorStatus>,
    /// When the newest batch of the last segment was begun.
    pub(super) newest: Timestamp,
    /// Files that are not what their names say, or not readable.
    pub(super) misplaced: Vec<String>,
    pub(super) candidates: Vec<Candidate>,
}

impl<'a> Source<'a> {
    /// Finds the segments, and reads the last one for the durable end.
    ///
    /// # Errors
    ///
    /// If a file cannot be opened, or was written by a newer program.
    pub fn open(storage: &'a dyn Storage, outside: Outside<'a>) -> Result<Self, OpenError> {
        let names = storage.list().map_err(|error| io_error(storage, "list", "", error))?;
        let mut examiner = Examiner::new(storage, outside);
        let mut candidates = Vec::new();
        for name in &names {
            if let Some(base) = base_in_name(name) {
                candidates.push(open(storage, name, base)?);
            }
        }
        examiner.read_cursors(&names)?;
        examiner.choose_journal(&mut candidates);
        let start = candidates.first().map_or(Offset(0), |first| first.base);
        let (mut end, mut newest) = (start, Timestamp(0));
        if let Some(last) = candidates.last() {
            let salt = salt_of(storage, last)?;
            let known =
                !matches!(examiner.found.cursors_file, CursorsFile::Damaged(_) | CursorsFile::Foreign);
            let pass = Pass::run(storage, outside, last, salt, None)
                .map_err(|error| io_error(storage, "read", &last.name, error))?;
            let segment = pass.settle_last(&examiner.proof, known).segment;
            (end, newest) = (segment.end, segment.newest);
        }
        let examined = examiner.finish();
        let damaged = examined.faults.iter().filter(|fault| fault.meaning == Meaning::Damage);
        let misplaced = damaged.map(|fault| fault.file.clone()).collect();
        Ok(Self {
            storage,
            id: examined.id,
            start,
            end,
            cursors: examined.cursors,
            newest,
            misplaced,
            candidates,
        })
    }

    /// Gives every batch that holds entries from `from` on to `on`, until it breaks off. Segments whose entries are all
    /// older than `since` may be passed over.
    ///
    /// # Errors
    ///
    /// If a file cannot be read at all.
    pub fn read(
        &self,
        from: Offset,
        since: Option<Timestamp>,
        on: &mut dyn FnMut(Item) -> ControlFlow<()>,
    ) -> Result<(), OpenError> {
        let mut expected = None;
        for (index, candidate) in self.candidates.iter().enumerate() {
            let next = self.candidates.get(index + 1).map(|next| next.base);
            let limit = next.unwrap_or(self.end);
            if limit <= from && next.is_some() {
                continue;
            }
            let salt = salt_of(self.storage, candidate)?;
            if let (Some(since), Some(salt), Some(_)) = (since, salt, next) {
                let footer = read_footer(candidate, salt)
                    .map_err(|error| io_error(self.storage, "read", &candidate.name, error))?;
                if footer.is_some_and(|footer| footer.newest.0 + CLOCK_SLACK_MS < since.0) {
                    expected = Some(limit);
                    continue;
                }
            }
            let mut segment = Segment { source: self, candidate, limit, expected: candidate.base, from };
            if let Some(before) = expected.filter(|before| *before < candidate.base)
                && segment.tell_lost(before, candidate.base, 0, on).is_break()
            {
                return Ok(());
            }
            if segment.read(salt, on)?.is_break() {
                return Ok(());
            }
            expected = Some(limit);
        }
        Ok(())
    }
}

fn salt_of(storage: &dyn Storage, candidate: &Candidate) -> Result<Option<u32>, OpenError> {
    match candidate.header {
        Some(header) => Ok(Some(header.salt)),
        None => salt::find(&*candidate.file, candidate.base)
            .map_err(|error| io_error(storage, "read", &candidate.name, error)),
    }
}

struct Segment<'a> {
    source: &'a Source<'a>,
    candidate: &'a Candidate,
    limit: Offset,
    expected: Offset,
    from: Offset,
}

impl Segment<'_> {
    fn read(
        &mut self,
        salt: Option<u32>,
        on: &mut dyn FnMut(Item) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, OpenError> {
        let Some(salt) = salt else { return Ok(self.tell_lost(self.expected, self.limit, 0, on)) };
        let mut walk = Walk::new(self.candidate.file.clone(), salt, self.candidate.length);
        let mut at = 0;
        loop {
            let step = walk
                .next()
                .map_err(|error| io_error(self.source.storage, "read", &self.candidate.name, error))?;
            let Some(step) = step else { break };
            if self.expected >= self.limit {
                return Ok(ControlFlow::Continue(()));
            }
            match step {
                Step::Frame { at: place, frame, body } => {
                    at = place;
                    if self.take(at, &frame, body, on).is_break() {
                        return Ok(ControlFlow::Break(()));
                    }
                }
                Step::Bad { at: place, .. } | Step::Zeros { at: place, .. } => at = place,
            }
        }
        if self.expected < self.limit {
            return Ok(self.tell_lost(self.expected, self.limit, at, on));
        }
        Ok(ControlFlow::Continue(()))
    }

    fn take(
        &mut self,
        at: u64,
        frame: &format::Frame,
        body: bytes::Bytes,
        on: &mut dyn FnMut(Item) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        if frame.base < self.expected || frame.end() > self.limit {
            return ControlFlow::Continue(());
        }
        let batch = match frame.kind {
            Kind::Batch => Batch::from_encoded(frame.base, frame.count, frame.time, body).ok(),
            Kind::Gap => Some(Batch::gap(frame.base, frame.count, frame.time, format::gap_is_loss(&body))),
            Kind::Mark | Kind::Footer => None,
        };
        let Some(batch) = batch else { return ControlFlow::Continue(()) };
        if batch.base() > self.expected {
            self.tell_lost(self.expected, batch.base(), at, on)?;
        }
        self.expected = batch.end();
        if batch.end() <= self.from {
            return ControlFlow::Continue(());
        }
        on(Item::Batch(batch.starting_at(self.from)))
    }

    fn tell_lost(
        &self,
        from: Offset,
        to: Offset,
        at: u64,
        on: &mut dyn FnMut(Item) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        if to <= self.from {
            return ControlFlow::Continue(());
        }
        let from = from.max(self.from);
        let fault = Fault {
            file: self.source.storage.display(&self.candidate.name),
            at,
            found: format!("entries {from} to {} are not readable", to.0.saturating_sub(1)),
            meaning: Meaning::Damage,
        };
        on(Item::Lost { from, to, fault })
    }
}
