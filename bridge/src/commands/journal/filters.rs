//! Which entries are meant: the filters of `dump` and `export`.

use tidegate_broker::record::{Entry, Offset, Record, Timestamp};
use tidegate_broker::topic::TopicFilter;

use super::output::parse_time;

#[derive(Debug, clap::Args)]
pub(super) struct Filters {
    /// Only records whose topic matches this filter (`sensors/+/temperature`, `sensors/#`).
    #[arg(long, value_name = "TOPIC_FILTER")]
    filter: Option<TopicFilter>,
    /// Only from this offset on.
    #[arg(long, value_name = "OFFSET")]
    from: Option<u64>,
    /// Only before this offset.
    #[arg(long, value_name = "OFFSET")]
    to: Option<u64>,
    /// Only from this time on: 2026-01-31T12:00:00Z, 2026-01-31 (UTC), or how long ago: 90m, 2h, 7d.
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    since: Option<Timestamp>,
    /// Only before this time.
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    until: Option<Timestamp>,
    /// Only what this client published.
    #[arg(long, value_name = "ID")]
    client: Option<String>,
}

impl Filters {
    pub(super) fn from(&self) -> Offset {
        Offset(self.from.unwrap_or(0))
    }

    pub(super) fn to(&self) -> Offset {
        Offset(self.to.unwrap_or(u64::MAX))
    }

    pub(super) fn since(&self) -> Option<Timestamp> {
        self.since
    }

    /// Whether everything is meant.
    pub(super) fn is_empty(&self) -> bool {
        let by_place = self.from.is_some() || self.to.is_some();
        let by_time = self.since.is_some() || self.until.is_some();
        !by_place && !by_time && self.filter.is_none() && self.client.is_none()
    }

    /// Whether a record is meant, its offset apart.
    pub(super) fn wants(&self, record: &Record<'_>) -> bool {
        self.wants_time(record.time)
            && self.client.as_ref().is_none_or(|client| client == record.client)
            && self.filter.as_ref().is_none_or(|filter| filter.matches(record.topic))
    }

    /// Whether the entry is meant; control entries only if `control` says so. `time` is that of its batch.
    pub(super) fn wants_entry(&self, entry: &Entry<'_>, time: Timestamp, control: bool) -> bool {
        match entry {
            Entry::Record(record) => self.wants(record),
            Entry::Control(_) => control && self.wants_time(time),
        }
    }

    fn wants_time(&self, time: Timestamp) -> bool {
        self.since.is_none_or(|since| since <= time) && self.until.is_none_or(|until| time < until)
    }
}
