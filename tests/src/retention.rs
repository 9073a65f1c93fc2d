//! What the journal keeps for a destination that is away, what it drops, and that it says so.

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use serde_json::json;
use tidegate_broker::record::Qos;
use tokio::sync::watch;

use crate::support::device::{Device, Order};
use crate::support::metrics::{Metrics, Output};
use crate::support::postgres::Database;
use crate::support::services::{Own, Service};
use crate::support::tidegate::{Settings, Tidegate};
use crate::support::{eventually, free_address, within};

const PATIENCE: Duration = Duration::from_secs(60);

/// A journal of 8 MiB.
fn small(full: &str) -> Settings {
    Settings::default()
        .set("TIDEGATE_JOURNAL_MAX_BYTES", "8MiB")
        .set("TIDEGATE_JOURNAL_SEGMENT_BYTES", "1MiB")
        .set("TIDEGATE_JOURNAL_TAIL_BYTES", "1MiB")
        .set("TIDEGATE_JOURNAL_FULL", full)
}

/// A database to which nobody answers.
fn nobody() -> String {
    format!("postgresql://postgres@{}/postgres", free_address())
}

/// Publishes so many KiB and waits until all are acknowledged.
async fn publish(tidegate: &Tidegate, id: &str, kib: u64) {
    let (_order, orders) = watch::channel(Order::Publish);
    let payload: fn(&str, u64) -> Vec<u8> = |_, number| format!("{number:<1000}").into_bytes();
    let device =
        Device { limit: kib, window: 100, payload, ..Device::new(tidegate.mqtt, id, Qos::AtLeastOnce) };
    let done =
        within("the device publishes", PATIENCE, device.run(orders, Arc::new(AtomicU64::new(0)))).await;
    assert_eq!(done.acknowledged, kib, "{done:?}");
}

async fn postgres(tidegate: &Tidegate) -> Output {
    let outputs = Metrics::of(tidegate).await.outputs();
    let output = outputs.into_iter().find(|output| output.name == "postgres").expect("it is switched on");
    assert!(output.is_balanced(), "{output:?}");
    output
}

async fn of_cursor(tidegate: &Tidegate, metric: &str) -> u64 {
    Metrics::of(tidegate).await.one(&format!("tidegate_journal_cursor_{metric}{{cursor=\"postgres\"}}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn dropping_the_oldest_is_loud_and_every_record_is_accounted_for() {
    let server = Own::start(Service::Postgres);
    let mut database = Database::create(&server.url()).await;
    let mut tidegate = Tidegate::start(small("drop-oldest").postgres(&database.url)).await;
    publish(&tidegate, "before", 10).await;
    tidegate.caught_up("postgres", 0, PATIENCE).await;
    server.stop();
    // Nine tenths, and then more than there is room for.
    publish(&tidegate, "during", 7_000).await;
    let log = tidegate.log_has("postgres holds").await;
    assert!(!log.contains("entries were trimmed"), "it is told before anything is lost: {log}");
    let warning = log.lines().find(|line| line.contains("postgres holds")).expect("it was just there");
    let warning = warning.to_owned();
    publish(&tidegate, "then", 7_000).await;
    tidegate.log_has("entries were trimmed before this cursor had read them").await;
    assert!(warning.contains("what it has not read is dropped"), "{warning}");
    assert!(warning.contains("tidegate journal cursors remove postgres"), "{warning}");
    let dropped = eventually("what was trimmed is counted while it is away", PATIENCE, async || {
        Some(postgres(&tidegate).await.dropped["trimmed"]).filter(|count| *count > 1_000)
    })
    .await;
    assert!(of_cursor(&tidegate, "skipped_total").await >= dropped);
    assert_eq!(of_cursor(&tidegate, "holding").await, 1);
    let held = tidegate.health().await["journal"]["held"].clone();
    assert_eq!(held["cursor"], "postgres", "{held}");
    assert!(held["bytes"].as_u64().unwrap() > 4 << 20 && held["age_ms"].as_u64().unwrap() > 0, "{held}");

    server.start_again();
    let settled = eventually("PostgreSQL has what is left", PATIENCE, async || {
        Some(postgres(&tidegate).await).filter(|output| output.pending == 0)
    })
    .await;
    assert_eq!(settled.taken_in, 14_010, "{settled:?}");
    database.reconnect().await;
    let rows = database.count("SELECT count(*) FROM tidegate.readings").await.unwrap();
    assert_eq!(settled.delivered, u64::try_from(rows).unwrap(), "{settled:?}");
    assert_eq!(settled.delivered + settled.dropped["trimmed"], 14_010, "{settled:?}");
    tidegate.assert_alive();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_old_is_kept_for_who_has_not_read_it_unless_the_oldest_is_dropped() {
    for full in ["refuse", "drop-oldest"] {
        let settings = small(full).postgres(&nobody()).set("TIDEGATE_JOURNAL_MAX_AGE", "1s");
        let mut tidegate = Tidegate::start(settings).await;
        publish(&tidegate, "d1", 3_000).await;
        // What a restart needs is never dropped: after an orderly end that is little.
        assert!(tidegate.drain().await.success());
        tidegate.spawn();
        tidegate.ready().await;
        if full == "refuse" {
            eventually("it is three times as old as it may be", PATIENCE, async || {
                (of_cursor(&tidegate, "age_milliseconds").await > 3_000).then_some(())
            })
            .await;
            let output = postgres(&tidegate).await;
            assert_eq!((output.pending, output.dropped["trimmed"]), (3_000, 0), "{output:?}");
            assert_eq!(of_cursor(&tidegate, "skipped_total").await, 0);
        } else {
            let output = eventually("what is too old is dropped", PATIENCE, async || {
                Some(postgres(&tidegate).await).filter(|output| output.pending == 0)
            })
            .await;
            assert_eq!(output.dropped["trimmed"], output.taken_in, "{output:?}");
            assert!(of_cursor(&tidegate, "skipped_total").await >= 3_000);
            tidegate.log_has("entries were trimmed before this cursor had read them").await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cursor_that_nothing_moves_any_more_is_named_until_it_is_removed() {
    // As if PostgreSQL had been taken out of the configuration.
    let mut tidegate = Tidegate::start(small("refuse").postgres(&nobody())).await;
    publish(&tidegate, "d1", 10).await;
    assert_eq!(tidegate.health().await["journal"]["unused_cursors"], json!([]));
    assert!(tidegate.drain().await.success());
    tidegate.unset("TIDEGATE_POSTGRES_URL");
    tidegate.spawn();
    tidegate.ready().await;
    let log = tidegate.log_has("tidegate journal cursors remove postgres").await;
    assert!(log.contains("postgres is switched off but was on before"), "{log}");
    let journal = tidegate.health().await["journal"].clone();
    assert_eq!(
        (&journal["unused_cursors"], &journal["held"]["cursor"]),
        (&json!(["postgres"]), &json!("postgres"))
    );
    assert!(journal["unused_cursors_hint"].as_str().unwrap().contains("tidegate journal cursors remove"));
    assert_eq!(of_cursor(&tidegate, "holding").await, 1);

    assert!(tidegate.drain().await.success());
    let removed = Command::new(Tidegate::program())
        .args(["journal", "cursors", "remove", "postgres"])
        .env("TIDEGATE_DATA_DIR", tidegate.folder().join("data"))
        .output()
        .unwrap();
    assert!(removed.status.success(), "{removed:?}");
    tidegate.spawn();
    tidegate.ready().await;
    assert_eq!(tidegate.health().await["journal"]["unused_cursors"], json!([]));
}
