//! Numbers per device, metric and minute, summed up before they are sent: one row per bucket, whatever the number of
//! readings in it.
//!
//! Buckets are in the order of device, metric and time, so that two instances that add to the same ones never wait for
//! each other in a circle.

use std::error::Error;

use bytes::{BufMut, Bytes, BytesMut};
use foldhash::HashMap;
use tokio_postgres::types::{FromSql, IsNull, ToSql, Type, to_sql_checked};

use super::connection::PART_BYTES;
use super::copy::{HEADER, TRAILER, put_f64, put_i64, put_text};
use super::reading::Reading;

const MINUTE_US: i64 = 60_000_000;
const HOUR_US: i64 = 3_600_000_000;
const TIME_BYTES: usize = 8;
/// Flips the sign, so that times sort as bytes.
const SIGN: u64 = 1 << 63;

/// The numbers of one bucket.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Numbers {
    count: i64,
    min: f64,
    max: f64,
    /// NaN if it is too large for a double.
    sum: f64,
    first: f64,
    first_us: i64,
    last: f64,
    last_us: i64,
}

impl Numbers {
    /// Of readings that are no numbers.
    const NONE: Self = Self {
        count: 0,
        min: f64::INFINITY,
        max: f64::NEG_INFINITY,
        sum: 0.0,
        first: 0.0,
        first_us: i64::MAX,
        last: 0.0,
        last_us: i64::MIN,
    };

    const fn of(number: f64, time_us: i64) -> Self {
        Self {
            count: 1,
            min: number,
            max: number,
            sum: number,
            first: number,
            first_us: time_us,
            last: number,
            last_us: time_us,
        }
    }

    /// Adds what came later; of numbers of the same time the later one counts as last.
    fn add(&mut self, later: &Self) {
        self.count += later.count;
        self.min = self.min.min(later.min);
        self.max = self.max.max(later.max);
        self.sum += later.sum;
        if !self.sum.is_finite() {
            self.sum = f64::NAN;
        }
        if later.first_us < self.first_us {
            (self.first, self.first_us) = (later.first, later.first_us);
        }
        if later.last_us >= self.last_us {
            (self.last, self.last_us) = (later.last, later.last_us);
        }
    }
}

/// Sums up readings. Holds at most one bucket per reading, each about as large as the reading's row.
#[derive(Debug, Default)]
pub(super) struct Rollup {
    /// By device, a zero byte, metric, a zero byte, and the minute.
    minutes: HashMap<Box<[u8]>, Numbers>,
    key: Vec<u8>,
}

impl Rollup {
    /// Adds a reading. `time_us` is as PostgreSQL counts, from 2000 on.
    pub(super) fn push(&mut self, reading: &Reading<'_>, time_us: i64) {
        self.key.clear();
        put_names(&mut self.key, reading.device, reading.metric);
        push_time(&mut self.key, time_us.div_euclid(MINUTE_US) * MINUTE_US);
        let numbers = reading.number.map_or(Numbers::NONE, |number| Numbers::of(number, time_us));
        match self.minutes.get_mut(self.key.as_slice()) {
            Some(minute) => minute.add(&numbers),
            None => _ = self.minutes.insert(self.key.as_slice().into(), numbers),
        }
    }

    pub(super) fn clear(&mut self) {
        self.minutes.clear();
    }

    /// Hands over what was summed up.
    pub(super) fn take(&mut self) -> Buckets {
        let mut sorted: Vec<_> = self.minutes.drain().collect();
        sorted.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        Buckets(sorted)
    }
}

/// Device and metric with their ends: what the key of a bucket begins with.
pub(super) fn put_names(key: &mut Vec<u8>, device: &str, metric: &str) {
    push_text(key, device);
    push_text(key, metric);
}

/// As it lies in a row: without U+0000.
fn push_text(key: &mut Vec<u8>, text: &str) {
    for (index, part) in text.as_bytes().split(|&byte| byte == 0).enumerate() {
        if index > 0 {
            key.extend_from_slice("\u{fffd}".as_bytes());
        }
        key.extend_from_slice(part);
    }
    key.push(0);
}

fn push_time(key: &mut Vec<u8>, time_us: i64) {
    key.extend_from_slice(&(time_us.cast_unsigned() ^ SIGN).to_be_bytes());
}

/// Buckets in order; each once. Also of minutes without numbers, until [`Buckets::retain_numbers`].
#[derive(Clone, Debug, Default)]
pub(super) struct Buckets(Vec<(Box<[u8]>, Numbers)>);

impl Buckets {
    pub(super) const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) const fn len(&self) -> usize {
        self.0.len()
    }

    /// Each device and metric once, with the end of its names and the latest minute of it.
    pub(super) fn series(&self) -> impl Iterator<Item = (&[u8], i64)> {
        let runs = self.0.chunk_by(|(a, _), (b, _)| split(a).0 == split(b).0);
        runs.filter_map(<[_]>::last).map(|(key, _)| split(key))
    }

    /// Forgets minutes without numbers, which are in no rollup.
    pub(super) fn retain_numbers(&mut self) {
        self.0.retain(|(_, numbers)| numbers.count > 0);
    }

    /// One of several, each of which came later than those before it.
    pub(super) fn merged(mut several: Vec<Self>) -> Self {
        if several.len() < 2 {
            return several.pop().unwrap_or_default();
        }
        let mut all: Vec<_> = several.into_iter().flat_map(|buckets| buckets.0).collect();
        // Stable, so that of one bucket what came later stays behind.
        all.sort_by(|(a, _), (b, _)| a.cmp(b));
        all.dedup_by(|(later_key, later), (key, numbers)| {
            let is_same = later_key == key;
            if is_same {
                numbers.add(later);
            }
            is_same
        });
        Self(all)
    }

    /// Those that `is_new` says cannot be there yet, and the others; both in order. It is asked with the names and the
    /// time of each.
    pub(super) fn split(self, mut is_new: impl FnMut(&[u8], i64) -> bool) -> (Self, Self) {
        let (new, others) = self.0.into_iter().partition(|(key, _)| {
            let (names, time_us) = split(key);
            is_new(names, time_us)
        });
        (Self(new), Self(others))
    }

    /// The same per hour.
    pub(super) fn hours(&self) -> Self {
        let mut hours: Vec<(Box<[u8]>, Numbers)> = Vec::new();
        for (key, numbers) in &self.0 {
            let (names, minute) = split(key);
            let mut hour_key = names.to_vec();
            push_time(&mut hour_key, minute.div_euclid(HOUR_US) * HOUR_US);
            match hours.last_mut() {
                Some((last, hour)) if **last == *hour_key => hour.add(numbers),
                Some(_) | None => hours.push((hour_key.into(), *numbers)),
            }
        }
        Self(hours)
    }

    /// Parts of a binary `COPY` stream, for [`copy`].
    pub(super) fn stream(&self) -> impl Iterator<Item = Bytes> {
        let mut left = self.0.iter();
        let mut buffer = BytesMut::from(&HEADER[..]);
        let mut is_over = false;
        std::iter::from_fn(move || {
            while !is_over && buffer.len() < PART_BYTES {
                match left.next() {
                    Some((key, numbers)) => put_bucket(&mut buffer, key, numbers),
                    None => {
                        buffer.put_i16(TRAILER);
                        is_over = true;
                    }
                }
            }
            (!buffer.is_empty()).then(|| buffer.split().freeze())
        })
    }

    /// One list per column, for [`upsert`].
    pub(super) fn columns(&self) -> Columns<'_> {
        let mut columns = Columns::default();
        for (key, numbers) in &self.0 {
            let (names, time_us) = split(key);
            let (device, metric) = texts(names);
            columns.device.push(device);
            columns.metric.push(metric);
            columns.time.push(Micros(time_us));
            columns.count.push(numbers.count);
            columns.min.push(numbers.min);
            columns.max.push(numbers.max);
            columns.sum.push(numbers.sum);
            columns.first.push(numbers.first);
            columns.first_time.push(Micros(numbers.first_us));
            columns.last.push(numbers.last);
            columns.last_time.push(Micros(numbers.last_us));
        }
        columns
    }
}

fn put_bucket(buffer: &mut BytesMut, key: &[u8], numbers: &Numbers) {
    /// As many as [`COLUMNS`] names.
    const FIELDS: i16 = 11;
    let (names, time_us) = split(key);
    let (device, metric) = texts(names);
    buffer.put_i16(FIELDS);
    for text in [device, metric] {
        put_text(buffer, text);
    }
    put_i64(buffer, time_us);
    put_i64(buffer, numbers.count);
    for number in [numbers.min, numbers.max, numbers.sum, numbers.first] {
        put_f64(buffer, number);
    }
    put_i64(buffer, numbers.first_us);
    put_f64(buffer, numbers.last);
    put_i64(buffer, numbers.last_us);
}

/// The names with their ends, and the time.
fn split(key: &[u8]) -> (&[u8], i64) {
    let (names, time) = key.split_at(key.len() - TIME_BYTES);
    let time = u64::from_be_bytes(time.try_into().expect("it was split off at this length"));
    (names, (time ^ SIGN).cast_signed())
}

/// Device and metric.
pub(super) fn texts(names: &[u8]) -> (&str, &str) {
    let mut names = names.split(|&byte| byte == 0).map(|name| std::str::from_utf8(name));
    let mut name = || names.next().and_then(Result::ok).expect("two texts were written, as such");
    (name(), name())
}

/// What [`upsert`] takes.
#[derive(Debug, Default)]
pub(super) struct Columns<'a> {
    device: Vec<&'a str>,
    metric: Vec<&'a str>,
    time: Vec<Micros>,
    count: Vec<i64>,
    min: Vec<f64>,
    max: Vec<f64>,
    sum: Vec<f64>,
    first: Vec<f64>,
    first_time: Vec<Micros>,
    last: Vec<f64>,
    last_time: Vec<Micros>,
}

impl Columns<'_> {
    pub(super) fn parameters(&self) -> [&(dyn ToSql + Sync); 11] {
        [
            &self.device,
            &self.metric,
            &self.time,
            &self.count,
            &self.min,
            &self.max,
            &self.sum,
            &self.first,
            &self.first_time,
            &self.last,
            &self.last_time,
        ]
    }
}

/// The columns in which buckets are written.
const COLUMNS: &str = "device, metric, \"time\", count, min, max, sum, first, first_time, last, last_time";

/// The statement that adds [`Buckets::stream`] to `table`, which has none of them.
pub(super) fn copy(schema: &str, table: &str) -> String {
    format!("COPY \"{schema}\".{table} ({COLUMNS}) FROM STDIN (FORMAT binary)")
}

/// The statement that adds [`Buckets::columns`] to `table`, to what it has of them.
pub(super) fn upsert(schema: &str, internal: &str, table: &str) -> String {
    format!(
        "INSERT INTO \"{schema}\".{table} AS had ({COLUMNS})
        SELECT * FROM unnest($1::text[], $2::text[], $3::timestamptz[], $4::bigint[], $5::float8[], $6::float8[],
            $7::float8[], $8::float8[], $9::timestamptz[], $10::float8[], $11::timestamptz[])
        ON CONFLICT (device, metric, \"time\") DO UPDATE SET
            count = had.count + excluded.count,
            min = least(had.min, excluded.min),
            max = greatest(had.max, excluded.max),
            sum = \"{internal}\".add(had.sum, excluded.sum),
            first = CASE WHEN excluded.first_time < had.first_time THEN excluded.first ELSE had.first END,
            first_time = least(had.first_time, excluded.first_time),
            last = CASE WHEN excluded.last_time >= had.last_time THEN excluded.last ELSE had.last END,
            last_time = greatest(had.last_time, excluded.last_time)"
    )
}

/// Microseconds since 2000, as `timestamptz` has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Micros(pub(super) i64);

impl ToSql for Micros {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
        out.put_i64(self.0);
        Ok(IsNull::No)
    }

    fn accepts(ty: &Type) -> bool {
        *ty == Type::TIMESTAMPTZ
    }

    to_sql_checked!();
}

impl FromSql<'_> for Micros {
    fn from_sql(_: &Type, raw: &[u8]) -> Result<Self, Box<dyn Error + Sync + Send>> {
        Ok(Self(i64::from_be_bytes(raw.try_into()?)))
    }

    fn accepts(ty: &Type) -> bool {
        *ty == Type::TIMESTAMPTZ
    }
}

#[cfg(test)]
impl Rollup {
    /// A number in each of these minutes, of one series.
    pub(super) fn of_minutes(minutes: &[i64]) -> Buckets {
        let mut rollup = Self::default();
        for minute in minutes {
            let reading = Reading {
                time_us: 0,
                device: "d",
                metric: "m",
                number: Some(1.0),
                text: None,
                unit: None,
                json: None,
                payload: None,
            };
            rollup.push(&reading, minute * MINUTE_US);
        }
        rollup.take()
    }
}

#[cfg(test)]
impl Buckets {
    pub(super) fn minutes(&self) -> Vec<i64> {
        self.0.iter().map(|(key, _)| split(key).1 / MINUTE_US).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading<'a>(device: &'a str, number: Option<f64>) -> Reading<'a> {
        Reading { time_us: 0, device, metric: "m", number, text: None, unit: None, json: None, payload: None }
    }

    #[test]
    fn buckets_are_in_order_and_hours_are_made_of_their_minutes() {
        let mut rollup = Rollup::default();
        for (device, second, number) in
            [("b", 61, 1.0), ("a", -1, 7.0), ("a", 59, 3.0), ("a", 1, 5.0), ("a", 59, 4.0), ("a", 60, 9.0)]
        {
            rollup.push(&reading(device, Some(number)), second * 1_000_000);
        }
        rollup.push(&reading("a", None), 0);
        rollup.push(&reading("c", None), 90_000_000_000);
        let mut minutes = rollup.take();
        let series: Vec<_> =
            minutes.series().map(|(names, minute)| (texts(names).0, minute / 1_000_000)).collect();
        assert_eq!(series, [("a", 60), ("b", 60), ("c", 90_000)]);
        minutes.retain_numbers();
        let shape = |buckets: &Buckets| {
            let columns = buckets.columns();
            (0..columns.device.len())
                .map(|at| {
                    (
                        columns.device[at].to_owned(),
                        columns.time[at].0 / 1_000_000,
                        columns.count[at],
                        columns.min[at],
                        columns.max[at],
                        columns.sum[at],
                        columns.first[at],
                        columns.last[at],
                    )
                })
                .collect::<Vec<_>>()
        };
        let a = || "a".to_owned();
        assert_eq!(
            shape(&minutes),
            [
                (a(), -60, 1, 7.0, 7.0, 7.0, 7.0, 7.0),
                (a(), 0, 3, 3.0, 5.0, 12.0, 5.0, 4.0),
                (a(), 60, 1, 9.0, 9.0, 9.0, 9.0, 9.0),
                ("b".to_owned(), 60, 1, 1.0, 1.0, 1.0, 1.0, 1.0),
            ]
        );
        assert_eq!(
            shape(&minutes.hours()),
            [
                (a(), -3_600, 1, 7.0, 7.0, 7.0, 7.0, 7.0),
                (a(), 0, 4, 3.0, 9.0, 21.0, 5.0, 9.0),
                ("b".to_owned(), 0, 1, 1.0, 1.0, 1.0, 1.0, 1.0),
            ]
        );
        assert!(rollup.take().is_empty());
    }

    #[test]
    fn what_came_later_is_last_in_a_merge() {
        let of = |numbers: &[(i64, f64)]| {
            let mut rollup = Rollup::default();
            for (second, number) in numbers {
                rollup.push(&reading("a", Some(*number)), second * 1_000_000);
            }
            rollup.take()
        };
        let merged = Buckets::merged(vec![
            of(&[(3, 1.0), (70, 1.5)]),
            of(&[]),
            of(&[(3, 2.0), (70, 2.5)]),
            of(&[(1, 3.0), (130, 3.5)]),
        ]);
        let columns = merged.columns();
        assert_eq!(columns.count, [3, 2, 1]);
        assert_eq!(columns.first, [3.0, 1.5, 3.5]);
        assert_eq!(columns.last, [2.0, 2.5, 3.5]);
        assert_eq!(columns.sum, [6.0, 4.0, 3.5]);
    }

    #[test]
    fn what_a_row_cannot_hold_is_the_same_here() {
        let mut rollup = Rollup::default();
        rollup.push(&reading("a\0b", Some(f64::MAX)), 0);
        rollup.push(&reading("a\u{fffd}b", Some(f64::MAX)), 0);
        let buckets = rollup.take();
        let columns = buckets.columns();
        assert_eq!(columns.device, ["a\u{fffd}b"]);
        assert!(columns.sum[0].is_nan());
        assert_eq!(columns.max, [f64::MAX]);
    }
}
