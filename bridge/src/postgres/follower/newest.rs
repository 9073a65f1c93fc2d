//! The newest bucket of each series, as far as it was written here. What is newer is copied in without looking for it,
//! which costs the server less than half as much.

use foldhash::HashMap;

use super::super::rollup::Buckets;

/// With more series than this all of them are forgotten.
const SERIES_MAX: usize = 1_000_000;

/// By device and metric.
#[derive(Debug, Default)]
pub(super) struct Newest {
    times: HashMap<Box<[u8]>, i64>,
    /// Somebody else writes buckets of the same series.
    is_given_up: bool,
}

impl Newest {
    /// Those that are new, and the others. A series that is not known has been written before, perhaps.
    pub(super) fn split(&mut self, buckets: Buckets) -> (Buckets, Buckets) {
        if self.is_given_up {
            return (Buckets::default(), buckets);
        }
        if self.times.len() > SERIES_MAX {
            self.times.clear();
        }
        buckets.split(|names, time| match self.times.get_mut(names) {
            Some(newest) => std::mem::replace(newest, time.max(*newest)) < time,
            None => {
                self.times.insert(names.into(), time);
                false
            }
        })
    }

    /// Nothing of the series with these names was written that is not older than `since_us`.
    pub(super) fn begin(&mut self, names: Box<[u8]>, since_us: i64) {
        if !self.is_given_up {
            self.times.entry(names).or_insert(since_us.saturating_sub(1));
        }
    }

    pub(super) fn give_up(&mut self) {
        *self = Self { is_given_up: true, ..Self::default() };
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::rollup::Rollup;
    use super::*;

    #[test]
    fn only_what_is_newer_than_all_that_was_written_is_new() {
        let mut newest = Newest::default();
        for (minutes, expected) in
            [(&[3, 4][..], &[4][..]), (&[2, 4], &[]), (&[5, 6], &[5, 6]), (&[1, 6, 7], &[7])]
        {
            let (new, others) = newest.split(Rollup::of_minutes(minutes));
            assert_eq!(new.minutes(), expected, "{minutes:?}");
            assert_eq!(new.len() + others.len(), minutes.len());
        }
        newest.begin(b"d\0m\0".as_slice().into(), 0);
        assert_eq!(newest.split(Rollup::of_minutes(&[7, 8])).0.minutes(), [8], "it is known better");
        newest.give_up();
        newest.begin(b"d\0m\0".as_slice().into(), 0);
        assert_eq!(newest.split(Rollup::of_minutes(&[9])).0.minutes(), Vec::<i64>::new());
    }

    #[test]
    fn all_of_a_series_that_has_begun_is_new_that_is_not_older() {
        let mut newest = Newest::default();
        newest.begin(b"d\0m\0".as_slice().into(), 180_000_000);
        let (new, others) = newest.split(Rollup::of_minutes(&[2, 3, 4]));
        assert_eq!((new.minutes(), others.minutes()), (vec![3, 4], vec![2]));
    }
}
