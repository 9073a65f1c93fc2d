//! Copying a part of a journal into a new one.
//!
//! Every entry keeps its offset and the journal its id, so that a sink that knows the one recognises the other. What is
//! left out leaves a gap, and the new journal ends where the old one ended: an offset never gets other content, also not
//! in the copy.

use std::io;
use std::ops::ControlFlow;

use super::cursors::{self, Saved, SavedCursor};
use super::format::{FramePlace, SegmentHeader};
use super::inspect::{Fault, Item, Source};
use super::segment_writer::SegmentWriter;
use super::storage::{self, Storage};
use super::{OpenError, fresh_id, fresh_salt};
use crate::record::{Batch, BatchBuilder, Entry, Offset, Timestamp};

/// What an export came to.
#[derive(Debug, Default)]
pub struct Exported {
    /// Entries that were copied.
    pub entries: u64,
    /// What could not be read, and is a gap of lost entries in the copy.
    pub faults: Vec<Fault>,
}

/// Copies the entries from `from` to `to` for which `keep` says so into `target`, which must be empty, with the cursors.
/// `keep` is asked with the offset, the time of the batch and the entry.
///
/// # Errors
///
/// If one of the storages fails.
pub fn export(
    source: &Source<'_>,
    target: &dyn Storage,
    (from, to): (Offset, Offset),
    segment_bytes: u64,
    keep: &mut dyn FnMut(Offset, Timestamp, &Entry<'_>) -> bool,
) -> Result<Exported, OpenError> {
    let from = from.clamp(source.start, source.end);
    let mut exporter = Exporter {
        target,
        id: source.id.unwrap_or_else(|| fresh_id(|| target.random())),
        segment_bytes,
        writer: None,
        end: from,
        exported: Exported::default(),
    };
    let mut failed = None;
    source.read(from, None, &mut |item| {
        let written = match item {
            Item::Batch(batch) if batch.base() >= to => return ControlFlow::Break(()),
            Item::Batch(batch) => exporter.take(&batch, to, keep),
            Item::Lost { from, .. } if from >= to => return ControlFlow::Break(()),
            Item::Lost { to: behind, fault, .. } => {
                exporter.exported.faults.push(fault);
                exporter.gap_to(behind.min(to), true)
            }
        };
        match written {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => {
                failed = Some(error);
                ControlFlow::Break(())
            }
        }
    })?;
    let finished = match failed {
        Some(error) => Err(error),
        None => exporter.finish(source, from),
    };
    finished.map_err(|error| OpenError::Io { doing: "write", file: target.display(""), error })?;
    Ok(exporter.exported)
}

struct Exporter<'a> {
    target: &'a dyn Storage,
    id: super::JournalId,
    segment_bytes: u64,
    writer: Option<SegmentWriter<'a>>,
    end: Offset,
    exported: Exported,
}

impl<'a> Exporter<'a> {
    fn take(
        &mut self,
        batch: &Batch,
        to: Offset,
        keep: &mut dyn FnMut(Offset, Timestamp, &Entry<'_>) -> bool,
    ) -> io::Result<()> {
        if batch.is_gap() {
            return self.gap_to(batch.end().min(to), batch.lost() > 0);
        }
        let mut run: Option<BatchBuilder> = None;
        for (place, entry) in batch.entries() {
            if place.offset < to && keep(place.offset, batch.time(), &entry) {
                self.exported.entries += 1;
                let run = run.get_or_insert_with(|| BatchBuilder::new(place.offset, batch.time(), 0, 0));
                run.push(&entry);
            } else if let Some(run) = run.take() {
                self.write(run)?;
            }
        }
        if let Some(run) = run {
            self.write(run)?;
        }
        self.gap_to(batch.end().min(to), false)
    }

    fn write(&mut self, run: BatchBuilder) -> io::Result<()> {
        let (base, count, time) = (run.base(), run.count(), run.time());
        self.gap_to(base, false)?;
        let (body, _) = run.finish(|_| {});
        let writer = self.writer(time)?;
        writer.batch(FramePlace { base, count, time, durable_before: base }, body)?;
        self.end = writer.end();
        Ok(())
    }

    fn gap_to(&mut self, to: Offset, lost: bool) -> io::Result<()> {
        if self.end < to {
            let writer = self.writer(Timestamp(0))?;
            writer.gap_to(to, lost)?;
            self.end = writer.end();
        }
        Ok(())
    }

    /// The segment to go on in.
    fn writer(&mut self, time: Timestamp) -> io::Result<&mut SegmentWriter<'a>> {
        if let Some(full) = self.writer.take_if(|writer| writer.bytes() > self.segment_bytes) {
            full.finish()?;
        }
        match &mut self.writer {
            Some(writer) => Ok(writer),
            none => {
                let header = SegmentHeader {
                    id: self.id,
                    base: self.end,
                    created: time,
                    salt: fresh_salt(self.target),
                };
                Ok(none.insert(SegmentWriter::begin(self.target, header)?))
            }
        }
    }

    fn finish(&mut self, source: &Source<'_>, from: Offset) -> io::Result<()> {
        self.gap_to(source.end, false)?;
        // Also where there is nothing: the folder is a journal, and knows where it goes on.
        self.writer(Timestamp(0))?;
        if let Some(writer) = self.writer.take() {
            writer.finish()?;
        }
        let cursors = source.cursors.iter().map(|cursor| SavedCursor {
            name: cursor.name.clone(),
            position: cursor.position.clamp(from, source.end),
            skipped: cursor.skipped,
        });
        let saved = Saved { id: self.id, synced: source.end, cursors: cursors.collect() };
        storage::replace_file(self.target, cursors::FILE, &cursors::encode(&saved))
    }
}
