//! Conservation: what came in is delivered, dropped for a named reason, or pending, by the program's own figures.

use std::time::{Duration, Instant};

use crate::support::metrics::Metrics;
use crate::support::tidegate::Tidegate;

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
    for output in metrics.outputs() {
        if !output.is_balanced() {
            return Err(format!("in is not delivered + dropped + pending: {output:?}"));
        }
        let is_sink = ["kafka", "postgres"].contains(&output.name.as_str());
        if is_sink && output.pending > 0 {
            return Err(format!("something is pending: {output:?}"));
        }
    }
    let end = metrics.one("tidegate_journal_durable_end_offset") as f64;
    let accepted = metrics.one("tidegate_publishes_accepted_total") as f64;
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
