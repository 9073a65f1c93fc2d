//! Which series there are, and on which day the latest reading of each is: what the view `latest_readings` begins with.
//!
//! The table changes only when a series is new or has reached another day, in the transaction of the readings. What was
//! written is remembered, so that a series costs nothing for the rest of its day.

use std::collections::HashMap;

use super::rollup::{Buckets, Micros, texts};

const DAY_US: i64 = 86_400_000_000;
/// With more series than this all of them are forgotten, and written again if they have changed.
const KNOWN_MAX: usize = 1_000_000;

/// The series that the database is known to have.
#[derive(Debug, Default)]
pub(super) struct Series {
    /// By device and metric; the day begins at so many microseconds since 2000.
    known: HashMap<Box<[u8]>, i64>,
}

/// Series that the database may not have, in the order in which everybody changes them.
#[derive(Debug, Default)]
pub(super) struct Changed(Vec<(Box<[u8]>, i64)>);

/// What [`upsert`] takes: one list per column.
#[derive(Debug, Default)]
pub(super) struct Columns<'a> {
    pub(super) device: Vec<&'a str>,
    pub(super) metric: Vec<&'a str>,
    pub(super) since: Vec<Micros>,
}

impl Series {
    /// Those of `buckets` that are new, or of a later day than known.
    pub(super) fn changed(&self, buckets: &Buckets) -> Changed {
        let days = buckets.series().map(|(names, minute_us)| (names, minute_us.div_euclid(DAY_US) * DAY_US));
        let news = days.filter(|(names, day)| self.known.get(*names).is_none_or(|known| known < day));
        Changed(news.map(|(names, day)| (names.into(), day)).collect())
    }

    /// The database has these now.
    pub(super) fn learn(&mut self, changed: Changed) {
        if self.known.len() + changed.0.len() > KNOWN_MAX {
            self.known.clear();
        }
        self.known.extend(changed.0);
    }
}

impl Changed {
    pub(super) const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn columns(&self) -> Columns<'_> {
        let mut columns = Columns::default();
        for (names, day) in &self.0 {
            let (device, metric) = texts(names);
            columns.device.push(device);
            columns.metric.push(metric);
            columns.since.push(Micros(*day));
        }
        columns
    }
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
}
