//! Conservation: what came in is delivered, dropped for a named reason, or pending, by the program's own figures.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::support::http;
use crate::support::tidegate::Tidegate;

/// The samples of `/metrics` by name and labels, as they are written there.
#[derive(Debug)]
pub(super) struct Metrics(BTreeMap<String, f64>);

impl Metrics {
    /// What a running program says now.
    pub(super) async fn of(tidegate: &Tidegate) -> Self {
        Self::parse(http::get(tidegate.http, "/metrics").await.text())
    }

    fn parse(text: &str) -> Self {
        let samples = text.lines().filter(|line| !line.starts_with('#'));
        let samples = samples.filter_map(|line| line.rsplit_once(' '));
        Self(samples.filter_map(|(name, value)| Some((name.to_owned(), value.parse().ok()?))).collect())
    }

    /// One sample; 0 if nothing was counted yet.
    fn one(&self, name: &str) -> f64 {
        self.0.get(name).copied().unwrap_or_default()
    }

    /// All samples of a family that have this label.
    fn sum(&self, family: &str, label: &str) -> f64 {
        let of_family = self.0.iter().filter(|(name, _)| {
            name.strip_prefix(family).is_some_and(|rest| rest.starts_with('{') && rest.contains(label))
        });
        of_family.map(|(_, value)| value).sum()
    }
}

/// What is published is a moment old; a balance that is not reached in this time never is.
const PATIENCE: Duration = Duration::from_secs(20);

/// Waits until a program that has delivered everything says so in figures that balance.
pub(super) async fn balances(tidegate: &Tidegate, is_whole: bool) {
    let deadline = Instant::now() + PATIENCE;
    while let Err(wrong) = conservation(&Metrics::of(tidegate).await, is_whole) {
        assert!(Instant::now() < deadline, "the figures do not balance: {wrong}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Whether for each output in = delivered + dropped + pending, with nothing pending. `is_whole` says that the process has run
/// from the beginning, so that its counts are those of everything.
fn conservation(metrics: &Metrics, is_whole: bool) -> Result<(), String> {
    let end = metrics.one("tidegate_journal_durable_end_offset");
    let accepted = metrics.one("tidegate_publishes_accepted_total");
    for sink in ["kafka", "postgres"] {
        let (of_sink, of_cursor) = (format!("sink=\"{sink}\""), format!("cursor=\"{sink}\""));
        let cursor = metrics.sum("tidegate_journal_cursor_offset", &of_cursor);
        equal(&format!("{sink} has read, of the journal"), cursor, end)?;
        let dropped = metrics.sum("tidegate_journal_cursor_skipped_total", &of_cursor)
            + metrics.sum("tidegate_sink_lost_total", &of_sink)
            + metrics.sum("tidegate_sink_rejected_total", &of_sink)
            + metrics.sum("tidegate_sink_unrouted_total", &of_sink);
        equal(&format!("{sink} was not given"), dropped, 0.0)?;
        if is_whole {
            let delivered = metrics.sum("tidegate_sink_delivered_total", &of_sink);
            equal(&format!("delivered to {sink}, of those accepted"), delivered, accepted)?;
        }
    }
    let dropped = metrics.sum("tidegate_publishes_dropped_total", "reason=");
    equal("dropped before an MQTT subscriber", dropped, 0.0)
}

fn equal(what: &str, found: f64, expected: f64) -> Result<(), String> {
    if (found - expected).abs() < 0.5 { Ok(()) } else { Err(format!("{what}: {found}, and not {expected}")) }
}

#[test]
fn metrics_that_do_not_balance_are_found() {
    let check = |delivered: u64, position: u64| {
        let mut text = String::from("# TYPE x gauge\ntidegate_publishes_accepted_total 7\n");
        for sink in ["kafka", "postgres"] {
            text += &format!("tidegate_sink_delivered_total{{sink=\"{sink}\"}} {delivered}\n");
            text += &format!("tidegate_journal_cursor_offset{{cursor=\"{sink}\"}} {position}\n");
        }
        text += "tidegate_journal_durable_end_offset 9\n";
        conservation(&Metrics::parse(&text), true)
    };
    assert_eq!(check(7, 9), Ok(()));
    assert!(check(6, 9).is_err(), "one is neither delivered nor pending");
    assert!(check(7, 8).is_err(), "one is pending");
}
