//! A quick look: footers instead of frames. Only the last segment is read, for its end.

use super::super::storage::Storage;
use super::super::{CursorStatus, JournalId, OpenError};
use super::segment::read_footer;
use super::{Candidate, Outside, SegmentReport, Source, io_error};
use crate::record::{Offset, Timestamp};

/// What a journal looks like that nobody has open.
#[derive(Debug)]
pub struct Survey {
    /// Which journal it is, if anything tells.
    pub id: Option<JournalId>,
    /// The oldest entry.
    pub start: Offset,
    /// The durable end.
    pub end: Offset,
    /// Size of all segments.
    pub bytes: u64,
    /// Every segment.
    pub segments: Vec<SegmentReport>,
    /// Every cursor.
    pub cursors: Vec<CursorStatus>,
    /// Segments that have no readable footer although others follow, or that do not follow one another.
    pub damaged: Vec<String>,
}

/// Looks at the journal in `storage`, and changes nothing.
///
/// # Errors
///
/// As [`Source::open`].
pub fn survey(storage: &dyn Storage, outside: Outside<'_>) -> Result<Survey, OpenError> {
    let source = Source::open(storage, outside)?;
    let (mut segments, mut damaged) = (Vec::new(), source.misplaced.clone());
    for (index, candidate) in source.candidates.iter().enumerate() {
        let next = source.candidates.get(index + 1).map(|next| next.base);
        let mut report = report(storage, candidate, next.unwrap_or(source.end))?;
        if next.is_none() {
            report.newest = source.newest;
        }
        if next.is_some_and(|next| !report.sealed || report.end != next) || candidate.header.is_none() {
            damaged.push(storage.display(&candidate.name));
        }
        segments.push(report);
    }
    let mut survey = Survey {
        id: source.id,
        start: source.start,
        end: source.end,
        bytes: segments.iter().map(|segment| segment.bytes).sum(),
        segments,
        cursors: source.cursors,
        damaged,
    };
    for at in 0..survey.cursors.len() {
        survey.cursors[at].lag_bytes = survey.bytes_from(survey.cursors[at].position);
    }
    Ok(survey)
}

impl Survey {
    /// About how many bytes lie between `offset` and the end: entries of a segment count alike.
    fn bytes_from(&self, offset: Offset) -> u64 {
        let behind = self.segments.iter().filter(|segment| segment.end > offset);
        let bytes = behind.map(|segment| {
            let entries = u128::from(segment.end.since(segment.base));
            let left = u128::from(segment.end.since(offset.max(segment.base)));
            u64::try_from(u128::from(segment.bytes) * left / entries.max(1)).unwrap_or(segment.bytes)
        });
        bytes.sum()
    }
}

fn report(storage: &dyn Storage, candidate: &Candidate, end: Offset) -> Result<SegmentReport, OpenError> {
    let footer = match candidate.header {
        Some(header) => read_footer(candidate, header.salt)
            .map_err(|error| io_error(storage, "read", &candidate.name, error))?,
        None => None,
    };
    let created = candidate.header.map_or(Timestamp(0), |header| header.created);
    Ok(SegmentReport {
        name: candidate.name.clone(),
        base: candidate.base,
        end: footer.as_ref().map_or(end, |footer| footer.end),
        bytes: candidate.length,
        newest: footer.as_ref().map_or(created, |footer| footer.newest),
        sealed: footer.is_some(),
        damaged: false,
        header: candidate.header,
        salt: None,
    })
}
