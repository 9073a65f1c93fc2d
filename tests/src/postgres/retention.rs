//! What is older than its retention goes, and nothing else; never in the way of storing.

use tidegate::health::Part;
use tidegate::postgres::{Config, PostgresSink};
use tidegate::pump::Sink;

use super::{JOURNAL, batch, config, deliver, sink};
use crate::support::postgres::Database;
use crate::support::services;

fn days_ago(days: u64) -> (&'static str, String) {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    ("sensors/a/t", format!(r#"{{"value":{days},"ts":{}}}"#, now - days * 86_400))
}

fn keeping(url: &str, retention_days: Option<u32>, rollup_retention_days: Option<u32>) -> PostgresSink {
    let config = Config { retention_days, rollup_retention_days, ..config(url) };
    PostgresSink::new(config, JOURNAL, Part::new("postgres"))
}

async fn kept(database: &Database, table: &str, column: &str) -> Vec<f64> {
    let sql = format!("SELECT {column} FROM tidegate.{table} ORDER BY 1");
    database.query(&sql, &[]).await.iter().map(|row| row.get(0)).collect()
}

/// Partitions, without those of yesterday, today and the days ahead.
const PARTITIONS: &str = "SELECT count(*) FROM pg_inherits WHERE inhparent = 'tidegate.readings'::regclass \
    AND inhrelid::regclass::text < 'tidegate_internal.readings_' || to_char((now() AT TIME ZONE 'UTC')::date - 1, 'YYYY_MM_DD')";

#[tokio::test]
async fn days_older_than_the_retention_are_dropped() {
    let database = Database::create(services::postgres()).await;
    let records = [days_ago(0), days_ago(3), days_ago(7), days_ago(9), days_ago(300), days_ago(4_000)];
    let mut first = sink(&database.url);
    deliver(&mut first, &[batch(0, &records)]).await;
    assert_eq!(database.count(PARTITIONS).await, Some(4));
    database.await_rollups().await;
    // For ever is the default.
    sink(&database.url).connect().await.unwrap();
    assert_eq!(kept(&database, "readings", "number").await, [0.0, 3.0, 7.0, 9.0, 300.0, 4_000.0]);

    // A day goes when all of it is older: the seventh day back is not.
    keeping(&database.url, Some(7), None).connect().await.unwrap();
    assert_eq!(kept(&database, "readings", "number").await, [0.0, 3.0, 7.0]);
    assert_eq!(database.count(PARTITIONS).await, Some(2));
    let left = "SELECT count(*) FROM pg_class WHERE relname ~ '^readings_\\d' AND relkind = 'r'";
    assert_eq!(database.count(left).await, Some(2 + 9), "they are dropped, not only detached");
    let hours = kept(&database, "readings_per_hour", "last").await;
    assert_eq!(hours, [0.0, 3.0, 7.0, 9.0, 300.0, 4_000.0], "rollups have a retention of their own");

    keeping(&database.url, Some(7), Some(100)).connect().await.unwrap();
    for table in ["readings_per_minute", "readings_per_hour"] {
        assert_eq!(kept(&database, table, "last").await, [0.0, 3.0, 7.0, 9.0]);
    }
}

#[tokio::test]
async fn readings_that_come_too_late_make_no_partition_and_go() {
    let database = Database::create(services::postgres()).await;
    let mut sink = keeping(&database.url, Some(2), None);
    let records = [days_ago(0), days_ago(9), days_ago(4_000)];
    deliver(&mut sink, &[batch(0, &records)]).await;
    assert_eq!(database.count(PARTITIONS).await, Some(0));
    assert_eq!(sink.connect().await.unwrap().map(|offset| offset.0), Some(3));
    assert_eq!(kept(&database, "readings", "number").await, [0.0]);
}

#[tokio::test]
async fn a_long_query_delays_the_drop_and_not_the_readings() {
    let database = Database::create(services::postgres()).await;
    deliver(&mut sink(&database.url), &[batch(0, &[days_ago(9)])]).await;
    database.query("BEGIN", &[]).await;
    assert_eq!(database.count("SELECT count(*) FROM tidegate.readings").await, Some(1));
    let mut sink = keeping(&database.url, Some(7), None);
    let begun = std::time::Instant::now();
    deliver(&mut sink, &[batch(0, &[days_ago(9)]), batch(1, &[days_ago(0)])]).await;
    assert!(begun.elapsed().as_secs() < 15, "storing waited for {:?}", begun.elapsed());
    assert_eq!(database.count("SELECT count(*) FROM tidegate.readings").await, Some(2));
    database.query("COMMIT", &[]).await;
    sink.connect().await.unwrap();
    assert_eq!(kept(&database, "readings", "number").await, [0.0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn instances_that_start_at_once_drop_each_day_once() {
    let database = Database::create(services::postgres()).await;
    let records: Vec<_> = (5..25).map(days_ago).collect();
    deliver(&mut sink(&database.url), &[batch(0, &records)]).await;
    assert_eq!(database.count(PARTITIONS).await, Some(20));
    let starts: Vec<_> = (0..4)
        .map(|number| {
            let config = Config { retention_days: Some(4), ..config(&database.url) };
            let journal = tidegate_broker::journal::JournalId(number);
            let mut sink = PostgresSink::new(config, journal, Part::new("postgres"));
            tokio::spawn(async move { sink.connect().await.map(|_| ()) })
        })
        .collect();
    for start in starts {
        start.await.unwrap().unwrap();
    }
    // Whoever came while another was at it has left it to that one.
    assert_eq!(database.count(PARTITIONS).await, Some(0));
}
