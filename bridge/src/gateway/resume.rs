//! Where a subscriber begins: the words of `from`, `last_event_id` and `last_offset`, resolved against what the
//! journal holds.

use tidegate_broker::journal::Journal;
use tidegate_broker::record::Offset;

/// Where a subscriber wants to begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum From {
    /// At the durable end: only what comes from now on.
    End,
    /// At the oldest kept entry.
    Oldest,
    /// At an offset.
    Offset(Offset),
    /// That many entries before the durable end, or at the oldest.
    Newest(u64),
    /// Behind the last record that was received.
    After(Offset),
}

/// A resolved beginning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Beginning {
    /// The first entry to read. It may have been trimmed already; reading tells.
    pub(super) from: Offset,
    /// A last record that this journal never held: the data folder was replaced. Everything kept is new then.
    pub(super) unknown: Option<Offset>,
}

/// Why a beginning cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum FromError {
    /// Not one of the words.
    #[error("{0:?} is no place to begin: use oldest, end, an offset, or -N for the newest N entries")]
    Malformed(String),
    /// Not an offset.
    #[error("{0:?} is no offset: the id of an event is a whole number")]
    MalformedId(String),
    /// Nothing is there yet.
    #[error("offset {from} lies beyond the durable end {end}")]
    Beyond {
        /// The wish.
        from: Offset,
        /// The durable end.
        end: Offset,
    },
}

impl From {
    /// Reads `oldest`, `end`, `OFFSET` or `-N`.
    pub(super) fn parse(text: &str) -> Result<Self, FromError> {
        let malformed = || FromError::Malformed(text.chars().take(40).collect());
        match text {
            "oldest" => Ok(Self::Oldest),
            "end" => Ok(Self::End),
            _ => match text.strip_prefix('-') {
                Some(newest) => newest.parse().map(Self::Newest).map_err(|_| malformed()),
                None => text.parse().map(|offset| Self::Offset(Offset(offset))).map_err(|_| malformed()),
            },
        }
    }

    /// Reads the id of the last event that was received.
    pub(super) fn parse_id(text: &str) -> Result<Self, FromError> {
        let malformed = |_| FromError::MalformedId(text.chars().take(40).collect());
        text.trim().parse().map(|offset| Self::After(Offset(offset))).map_err(malformed)
    }

    /// The first entry to read.
    pub(super) fn resolve(self, journal: &Journal) -> Result<Beginning, FromError> {
        let (start, end) = (journal.start(), journal.durable_end());
        resolve(self, start, end)
    }
}

fn resolve(from: From, start: Offset, end: Offset) -> Result<Beginning, FromError> {
    let known = |from| Ok(Beginning { from, unknown: None });
    match from {
        From::End => known(end),
        From::Oldest => known(start),
        From::Newest(entries) => known(Offset(end.0.saturating_sub(entries)).max(start)),
        From::Offset(from) if from > end => Err(FromError::Beyond { from, end }),
        From::Offset(from) => known(from),
        From::After(last) if last >= end => Ok(Beginning { from: start, unknown: Some(last) }),
        From::After(last) => known(last.plus(1)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_beginning_is_resolved_against_what_the_journal_holds() {
        let check = |from: &str, expected: u64| {
            let beginning = resolve(From::parse(from).unwrap(), Offset(10), Offset(20)).unwrap();
            assert_eq!((beginning.from, beginning.unknown), (Offset(expected), None), "{from}");
        };
        check("end", 20);
        check("oldest", 10);
        check("-3", 17);
        check("-500", 10);
        check("15", 15);
        check("20", 20);
        check("0", 0);
        let beyond = resolve(From::Offset(Offset(21)), Offset(10), Offset(20));
        assert_eq!(beyond, Err(FromError::Beyond { from: Offset(21), end: Offset(20) }));
        for malformed in ["", "x", "1.5", "--1", "-", "99999999999999999999999", "+x"] {
            assert!(From::parse(malformed).is_err(), "{malformed}");
        }
    }

    #[test]
    fn an_id_of_another_journal_begins_at_the_oldest_and_says_so() {
        let after = |id: &str| resolve(From::parse_id(id).unwrap(), Offset(10), Offset(20)).unwrap();
        assert_eq!(after("14"), Beginning { from: Offset(15), unknown: None });
        assert_eq!(after("19"), Beginning { from: Offset(20), unknown: None });
        assert_eq!(after("20"), Beginning { from: Offset(10), unknown: Some(Offset(20)) });
        assert_eq!(after("3"), Beginning { from: Offset(4), unknown: None });
        assert!(From::parse_id("abc").is_err());
        assert!(From::parse_id("18446744073709551616").is_err());
    }
}
