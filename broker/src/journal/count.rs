//! How many records lie between an offset and the durable end, without reading what lies there.
//!
//! The writer counts records as it writes them. Each segment knows how many it holds (its footer says so), and so each
//! knows its ordinal: how many records lie before it, counted from the durable end at opening, where it is 0. Of the
//! segment an offset lies in, the part before the offset is read; nothing else is, but segments whose footers were
//! written before they said so, once.

use std::sync::{Arc, PoisonError};

use super::segment::Segment;
use super::{Journal, ReadError, Shared};
use crate::record::Offset;

/// How far records are published, and how many have been since the journal was opened.
#[derive(Clone, Copy, Debug)]
pub(super) struct Published {
    pub(super) end: Offset,
    pub(super) records: u64,
}

/// Records between an offset and the durable end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordsFrom {
    /// How many there were.
    pub records: u64,
    /// What [`Journal::records_total`] was then.
    pub total: u64,
}

impl Journal {
    /// How many records have become durable since the journal was opened, control entries not counted. It moves before
    /// the durable end does.
    pub fn records_total(&self) -> u64 {
        self.shared.published().records
    }

    /// How many records lie between `from` and the durable end; from the oldest kept entry on, if that is later.
    ///
    /// Reads at most the segment that holds `from`: do not call it where blocking is forbidden.
    ///
    /// # Errors
    ///
    /// If that segment cannot be read or is damaged.
    pub fn records_from(&self, from: Offset) -> Result<RecordsFrom, ReadError> {
        loop {
            let Published { end, records: total } = self.shared.published();
            let from = from.max(self.start());
            if from >= end {
                return Ok(RecordsFrom { records: 0, total });
            }
            let segment = self.shared.segment_of(from).ok_or(ReadError::Missing { offset: from })?;
            let counted = self
                .ordinal(&segment)
                .and_then(|ordinal| Ok(ordinal + signed(self.records_between(segment.base(), from)?)));
            match counted {
                // Trimmed meanwhile: what was read is not what was meant.
                _ if from < self.start() => {}
                Ok(before) => {
                    let records = u64::try_from(signed(total) - before).unwrap_or(0);
                    return Ok(RecordsFrom { records, total });
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Records before `segment`, counted from where the journal ended when it was opened; negative before that.
    fn ordinal(&self, segment: &Arc<Segment>) -> Result<i64, ReadError> {
        if let Some(known) = segment.ordinal.get() {
            return Ok(*known);
        }
        let behind: Vec<_> = {
            let segments = self.shared.segments();
            let at = segments.partition_point(|other| other.base() < segment.base());
            segments.iter().skip(at).cloned().collect()
        };
        let mut between = 0;
        for next in &behind {
            if let Some(known) = next.ordinal.get() {
                let ordinal = known - signed(between);
                // Whoever was first has found the same.
                let _ = segment.ordinal.set(ordinal);
                return Ok(ordinal);
            }
            between += match next.records.get() {
                Some(known) => *known,
                None => {
                    let counted = self.records_between(next.base(), next.end())?;
                    *next.records.get_or_init(|| counted)
                }
            };
        }
        // Only if the segment was trimmed meanwhile: the one that is written to has an ordinal from the beginning.
        Err(ReadError::Missing { offset: segment.base() })
    }

    fn records_between(&self, from: Offset, to: Offset) -> Result<u64, ReadError> {
        let mut reader = self.reader(from);
        let mut records = 0;
        while reader.offset() < to
            && let Some(batch) = reader.next()?
        {
            records += batch.records().take_while(|(offset, _)| *offset < to).count() as u64;
        }
        Ok(records)
    }
}

impl Shared {
    pub(super) fn published(&self) -> Published {
        *self.published.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn publish_records(&self, published: Published) {
        *self.published.lock().unwrap_or_else(PoisonError::into_inner) = published;
    }
}

fn signed(records: u64) -> i64 {
    i64::try_from(records).unwrap_or(i64::MAX)
}
