//! The recorder of what sinks, sources and the pump count, and what each number is.

use std::time::Duration;

use metrics::{describe_counter, describe_gauge};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use tokio::runtime::Runtime;

use super::StartError;

const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);

#[derive(Clone, Copy)]
enum Kind {
    Counter,
    Gauge,
}
use Kind::{Counter, Gauge};

/// Kind, name, and what it says.
const DESCRIPTIONS: [(Kind, &str, &str); 22] = [
    (Counter, "tidegate_kafka_transactions_total", "Transactions of exactly once that ended, by outcome."),
    (Counter, "tidegate_postgres_retention_failures_total", "Times that old rows could not be dropped."),
    (
        Gauge,
        "tidegate_postgres_rollup_lag_entries",
        "Entries by which rollups per minute are behind readings.",
    ),
    (Counter, "tidegate_postgres_rows_total", "Rows stored in readings."),
    (Counter, "tidegate_postgres_transactions_total", "Transactions that stored readings."),
    (
        Counter,
        "tidegate_sink_dead_letters_discarded_total",
        "Dead letters in files that gave way to newer ones.",
    ),
    (Counter, "tidegate_sink_dead_letters_total", "Records kept as dead letters, by where."),
    (Counter, "tidegate_sink_delivered_total", "Records that the destination has stored, without rejects."),
    (Gauge, "tidegate_sink_lag_entries", "Journal entries that are not confirmed yet."),
    (Gauge, "tidegate_sink_lag_seconds", "Age of the oldest of them."),
    (Counter, "tidegate_sink_lost_total", "Entries that the journal dropped before they were delivered."),
    (Counter, "tidegate_sink_rejected_total", "Records that the destination will never take, by reason."),
    (Counter, "tidegate_sink_retries_total", "Times that the sink began anew after an error."),
    (Counter, "tidegate_sink_returning_total", "Records not sent back to where they were consumed."),
    (Counter, "tidegate_sink_unrouted_total", "Records that no route takes."),
    (Counter, "tidegate_source_consumed_total", "Records consumed."),
    (Counter, "tidegate_source_dead_letters_total", "Consumed records kept as dead letters, by where."),
    (Counter, "tidegate_source_headers_left_out_total", "Headers of consumed records that cannot travel on."),
    (Gauge, "tidegate_source_lag_entries", "Records that are in the topic and not settled."),
    (
        Counter,
        "tidegate_source_passed_over_total",
        "Consumed records not published although nothing is wrong with them, by reason.",
    ),
    (Counter, "tidegate_source_published_total", "Consumed records that are durable in the journal."),
    (Counter, "tidegate_source_rejected_total", "Consumed records that can be published nowhere, by reason."),
];

/// Takes what every part counts, for `/metrics`.
pub(super) fn install(runtime: &Runtime) -> Result<PrometheusHandle, StartError> {
    let handle = PrometheusBuilder::new()
        .install_recorder()
        .map_err(|error| StartError::Internal { part: "the metrics", error: error.to_string() })?;
    for (kind, name, says) in DESCRIPTIONS {
        match kind {
            Counter => describe_counter!(name, says),
            Gauge => describe_gauge!(name, says),
        }
    }
    let kept = handle.clone();
    runtime.spawn(async move {
        let mut tick = tokio::time::interval(UPKEEP_INTERVAL);
        loop {
            tick.tick().await;
            kept.run_upkeep();
        }
    });
    Ok(handle)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;

    /// The names that the macros of `kind` are given in the sources below `folder`.
    fn counted(folder: &Path, kind: &str, names: &mut BTreeSet<String>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                counted(&path, kind, names);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let source = std::fs::read_to_string(&path).unwrap();
                for call in source.split(kind).skip(1) {
                    let name =
                        call.trim_start().strip_prefix("\"tidegate_").and_then(|name| name.split('"').next());
                    names.extend(name.map(|name| format!("tidegate_{name}")));
                }
            }
        }
    }

    #[test]
    fn everything_that_is_counted_is_described_as_what_it_is() {
        let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        for (kind, call) in [(true, concat!("counter", "!(")), (false, concat!("gauge", "!("))] {
            let mut names = BTreeSet::new();
            counted(&sources, call, &mut names);
            let described: BTreeSet<_> = DESCRIPTIONS
                .iter()
                .filter(|(described, ..)| matches!(described, Counter) == kind)
                .map(|(_, name, _)| (*name).to_owned())
                .collect();
            assert_eq!(names, described, "{call}");
        }
    }
}
