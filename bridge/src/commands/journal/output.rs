//! Standard output, where nobody may be reading any more, and times as people write them.

use std::fmt::Display;
use std::io::{self, BufWriter, StdoutLock, Write as _};

use jiff::fmt::temporal::DateTimePrinter;
use tidegate_broker::record::Timestamp;

use crate::Failure;

/// Lines on standard output.
#[derive(Debug)]
pub(super) struct Output(BufWriter<StdoutLock<'static>>);

impl Output {
    pub(super) fn new() -> Self {
        Self(BufWriter::with_capacity(64 << 10, io::stdout().lock()))
    }

    pub(super) fn line(&mut self, line: impl Display) -> io::Result<()> {
        writeln!(self.0, "{line}")
    }

    pub(super) fn json(&mut self, value: &serde_json::Value) -> io::Result<()> {
        self.line(format_args!("{value:#}"))
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all(bytes)
    }

    pub(super) fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// Whoever read has gone, as in `... | head -1`: that is an end like any other.
pub(super) fn told(result: io::Result<()>) -> Result<(), Failure> {
    match result {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::files(format!("cannot write to standard output: {error}")))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

/// RFC 3339 in UTC with milliseconds.
pub(super) fn rfc3339(time: Timestamp) -> String {
    const PRINTER: DateTimePrinter = DateTimePrinter::new().precision(Some(3));
    let milliseconds = i64::try_from(time.0).ok();
    let time = milliseconds.and_then(|time| jiff::Timestamp::from_millisecond(time).ok());
    PRINTER.timestamp_to_string(&time.unwrap_or(jiff::Timestamp::MAX))
}

/// The time now.
pub(super) fn now() -> Timestamp {
    Timestamp(u64::try_from(jiff::Timestamp::now().as_millisecond()).unwrap_or(0))
}

/// `20260131T120000Z`: a time that can stand in the name of a file.
pub(super) fn stamp(time: Timestamp) -> String {
    let text = rfc3339(time);
    let digits: String =
        text.split('.').next().unwrap_or_default().chars().filter(|each| !"-:".contains(*each)).collect();
    digits + "Z"
}

/// A time that an operator typed: RFC 3339, a date or a date and a time in UTC, or how long ago (`90m`, `2h`, `7d`).
pub(super) fn parse_time(text: &str) -> Result<Timestamp, String> {
    let of = |time: jiff::Timestamp| u64::try_from(time.as_millisecond()).ok().map(Timestamp);
    if let Ok(time) = text.parse::<jiff::Timestamp>() {
        return of(time).ok_or_else(|| "it lies before 1970".to_owned());
    }
    if let Some(unit) = text.chars().next_back()
        && let Ok(count) = text[..text.len() - unit.len_utf8()].parse::<u64>()
        && let Some((_, milliseconds)) = [('s', 1_000), ('m', 60_000), ('h', 3_600_000), ('d', 86_400_000)]
            .into_iter()
            .find(|(name, _): &(char, u64)| *name == unit)
    {
        return Ok(Timestamp(now().0.saturating_sub(count.saturating_mul(milliseconds))));
    }
    let civil = text.parse::<jiff::civil::DateTime>();
    let time = civil.and_then(|civil| civil.to_zoned(jiff::tz::TimeZone::UTC)).ok();
    time.and_then(|time| of(time.timestamp())).ok_or_else(|| {
        "write 2026-01-31T12:00:00Z, 2026-01-31 (UTC), or how long ago: 90m, 2h, 7d".to_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_people_write_them() {
        let at = |text: &str| parse_time(text).unwrap().0;
        assert_eq!(at("1970-01-02T00:00:00Z"), 86_400_000);
        assert_eq!(at("1970-01-02T01:00:00+01:00"), 86_400_000);
        assert_eq!(at("1970-01-02"), 86_400_000);
        assert_eq!(at("1970-01-01T00:00:01"), 1_000);
        let before = now().0;
        assert!((before - 7_200_000..before - 7_100_000).contains(&at("2h")));
        for wrong in ["", "yesterday", "5", "5y", "1969-01-01", "é"] {
            assert!(parse_time(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_stamp_fits_into_a_name() {
        assert_eq!(stamp(Timestamp(86_400_123)), "19700102T000000Z");
    }
}
