//! Which series there are, and on which day the latest reading of each is: what the view `latest_readings` begins with.
//!
//! The table changes only when a series is new or has reached another day, in the transaction of the readings. What was
//! written is remembered, so that a series costs nothing for the rest of its day.

use bytes::{BufMut, Bytes, BytesMut};
use foldhash::HashMap;
use tokio_postgres::types::ToSql;

use super::copy::{DAY_US, HEADER, TRAILER, put_i64, put_text};
use super::rollup::{Buckets, Micros, put_names, texts};

/// With more series than this all of them are forgotten, and written again if they have changed.
const KNOWN_MAX: usize = 1_000_000;
/// So many are read from the database at the beginning, if there are no more; about 100 bytes of memory each.
const READ_MAX: usize = 200_000;

/// The series that the database is known to have.
#[derive(Debug, Default)]
pub(super) struct Series {
    /// By device and metric; the day begins at so many microseconds since 2000.
    known: HashMap<Box<[u8]>, i64>,
    /// The database had no others when it was last asked, and nobody else is known to write any.
    is_complete: bool,
}

/// Series that the database may not have, in the order in which everybody changes them.
#[derive(Debug, Default)]
pub(super) struct Changed {
    series: Vec<(Box<[u8]>, i64)>,
    /// So many of them are known, and have reached another day.
    known: usize,
}

/// What [`upsert`] takes: one list per column.
#[derive(Debug, Default)]
pub(super) struct Columns<'a> {
    device: Vec<&'a str>,
    metric: Vec<&'a str>,
    since: Vec<Micros>,
}

impl Series {
    /// From the rows of [`read`].
    pub(super) fn from_rows<'r>(rows: impl ExactSizeIterator<Item = (&'r str, &'r str, Micros)>) -> Self {
        if rows.len() > READ_MAX {
            return Self::default();
        }
        let known = rows.map(|(device, metric, Micros(day))| {
            let mut names = Vec::with_capacity(device.len() + metric.len() + 2);
            put_names(&mut names, device, metric);
            (names.into_boxed_slice(), day)
        });
        Self { known: known.collect(), is_complete: true }
    }

    /// Whether series that are not known are new.
    pub(super) const fn is_complete(&self) -> bool {
        self.is_complete
    }

    /// Somebody else writes series.
    pub(super) const fn doubt(&mut self) {
        self.is_complete = false;
    }

    /// Those of `buckets` that are not known, or of a later day than known.
    pub(super) fn changed(&self, buckets: &Buckets) -> Changed {
        let mut changed = Changed::default();
        for (names, minute_us) in buckets.series() {
            let day = minute_us.div_euclid(DAY_US) * DAY_US;
            let known = self.known.get(names);
            if known.is_none_or(|known| *known < day) {
                changed.series.push((names.into(), day));
                changed.known += usize::from(known.is_some());
            }
        }
        changed
    }

    /// The database has these now.
    pub(super) fn learn(&mut self, changed: Changed) {
        if self.known.len() + changed.series.len() > KNOWN_MAX {
            *self = Self::default();
        }
        self.known.extend(changed.series);
    }
}

impl Changed {
    pub(super) const fn is_empty(&self) -> bool {
        self.series.is_empty()
    }

    /// Whether there are any, and nothing is known of any of them.
    pub(super) const fn are_unknown(&self) -> bool {
        !self.is_empty() && self.known == 0
    }

    /// Device and metric of each.
    pub(super) fn names(&self) -> impl Iterator<Item = &[u8]> {
        self.series.iter().map(|(names, _)| &**names)
    }

    /// A binary `COPY` stream, for [`copy`].
    pub(super) fn stream(&self) -> Bytes {
        const FIELDS: i16 = 3;
        let mut stream = BytesMut::from(&HEADER[..]);
        for (names, day) in &self.series {
            let (device, metric) = texts(names);
            stream.put_i16(FIELDS);
            put_text(&mut stream, device);
            put_text(&mut stream, metric);
            put_i64(&mut stream, *day);
        }
        stream.put_i16(TRAILER);
        stream.freeze()
    }

    pub(super) fn columns(&self) -> Columns<'_> {
        let mut columns = Columns::default();
        for (names, day) in &self.series {
            let (device, metric) = texts(names);
            columns.device.push(device);
            columns.metric.push(metric);
            columns.since.push(Micros(*day));
        }
        columns
    }
}

impl Columns<'_> {
    pub(super) fn parameters(&self) -> [&(dyn ToSql + Sync); 3] {
        [&self.device, &self.metric, &self.since]
    }
}

/// The query for all series; for one more than are read, if there are too many.
pub(super) fn read(internal: &str) -> String {
    format!("SELECT device, metric, since FROM \"{internal}\".series LIMIT {}", READ_MAX + 1)
}

/// The statement that writes [`Changed::stream`], of which the database must have none.
pub(super) fn copy(internal: &str) -> String {
    format!("COPY \"{internal}\".series (device, metric, since) FROM STDIN (FORMAT binary)")
}

/// The statement that writes series. One that the database has already is not even locked.
pub(super) fn upsert(internal: &str) -> String {
    format!(
        "INSERT INTO \"{internal}\".series AS had (device, metric, since)
        SELECT device, metric, since
        FROM unnest($1::text[], $2::text[], $3::timestamptz[]) AS given (device, metric, since)
        WHERE NOT EXISTS (SELECT FROM \"{internal}\".series s
            WHERE s.device = given.device AND s.metric = given.metric AND s.since >= given.since)
        ORDER BY device COLLATE \"C\", metric COLLATE \"C\"
        ON CONFLICT (device, metric) DO UPDATE SET since = excluded.since WHERE had.since < excluded.since"
    )
}

#[cfg(test)]
mod tests {
    use super::super::reading::Reading;
    use super::super::rollup::Rollup;
    use super::*;

    fn buckets(readings: &[(&str, i64)]) -> Buckets {
        let mut rollup = Rollup::default();
        for (device, day) in readings {
            let reading = Reading {
                time_us: 0,
                device,
                metric: "m",
                number: None,
                text: Some("on"),
                unit: None,
                json: None,
                payload: None,
            };
            rollup.push(&reading, day * DAY_US + 5);
        }
        rollup.take()
    }

    #[test]
    fn a_series_is_written_once_for_each_later_day() {
        let mut series = Series::default();
        for (readings, expected) in [
            (&[("b", 7), ("a", -1), ("b", 8)][..], &[("a", -1), ("b", 8)][..]),
            (&[("a", -1), ("b", 8)], &[]),
            (&[("a", -2), ("b", 3)], &[]),
            (&[("a", 0), ("b", 3), ("c", 0)], &[("a", 0), ("c", 0)]),
        ] {
            let changed = series.changed(&buckets(readings));
            let columns = changed.columns();
            let days = columns.since.iter().map(|Micros(us)| us / DAY_US);
            let found: Vec<_> = columns.device.iter().copied().zip(days).collect();
            assert_eq!(found, expected, "{readings:?}");
            series.learn(changed);
        }
    }

    #[test]
    fn who_has_read_all_series_knows_which_are_new() {
        let rows = [("a", "m", Micros(0)), ("b", "m", Micros(7 * DAY_US))];
        let mut series = Series::from_rows(rows.into_iter());
        assert!(series.is_complete());
        let changed = series.changed(&buckets(&[("a", 1), ("b", 7), ("c", 2)]));
        assert!(!changed.are_unknown());
        assert_eq!(changed.names().collect::<Vec<_>>(), [b"a\0m\0", b"c\0m\0"]);
        assert_eq!(changed.columns().since, [Micros(DAY_US), Micros(2 * DAY_US)]);
        series.learn(changed);
        assert!(!series.changed(&buckets(&[("a", 1), ("c", 2)])).are_unknown());
        let changed = series.changed(&buckets(&[("c", 2), ("d", 2)]));
        assert!(changed.are_unknown());
        assert_eq!(changed.names().collect::<Vec<_>>(), [b"d\0m\0"]);
        assert_eq!(changed.stream().len(), HEADER.len() + 2 + (4 + 1) + (4 + 1) + (4 + 8) + 2);
        series.doubt();
        assert!(!series.is_complete());
        let many = (0..=READ_MAX).map(|_| ("a", "m", Micros(0))).collect::<Vec<_>>();
        assert!(!Series::from_rows(many.into_iter()).is_complete());
    }
}
