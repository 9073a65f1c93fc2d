//! Rollups agree with the readings, to the last one, whatever happens.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tidegate::pump::Sink as _;
use tidegate_broker::record::Batch;

use super::faults::KILL;
use super::{JOURNAL, batch, deliver, numbered, sink};
use crate::support::postgres::Database;
use crate::support::services;

/// How many buckets differ from what the readings say; `-1` stands for none at all.
fn differing(unit: &str) -> String {
    format!(
        "WITH expected AS (
            SELECT device, metric, date_trunc('{unit}', time, 'UTC') AS time, count(*) AS count, min(number), max(number),
                sum(number), (array_agg(number ORDER BY time, position, item))[1] AS first, min(time) AS first_time,
                (array_agg(number ORDER BY time DESC, position DESC, item DESC))[1] AS last, max(time) AS last_time
            FROM tidegate.readings WHERE number IS NOT NULL GROUP BY 1, 2, 3),
        found AS (SELECT device, metric, time, count, min, max, sum, first, first_time, last, last_time
            FROM tidegate.readings_per_{unit}),
        different AS ((TABLE expected EXCEPT TABLE found) UNION ALL (TABLE found EXCEPT TABLE expected))
        SELECT CASE WHEN EXISTS (TABLE found) THEN (SELECT count(*) FROM different) ELSE -1 END"
    )
}

async fn assert_exact(database: &Database) {
    database.await_rollups().await;
    for unit in ["minute", "hour"] {
        assert_eq!(database.count(&differing(unit)).await, Some(0), "per {unit}");
    }
}

/// Readings at many times of a day, some of them late, several in each minute.
fn scattered(count: u64, size: u64) -> Vec<Batch> {
    let scattered = |index: u64| {
        let records: Vec<_> = (index * size..(index + 1) * size)
            .map(|number| {
                let second = number * 7_919 % 20_000;
                let value = number * 31 % 97;
                let payload = format!(r#"{{"value":{value},"ts":{}}}"#, 981_194_400 + second);
                (format!("sensors/d{}/n", number % 5), payload)
            })
            .collect();
        batch(index * size, &records)
    };
    (0..count).map(scattered).collect()
}

#[tokio::test]
async fn rollups_agree_with_the_readings() {
    let database = Database::create(services::postgres()).await;
    let mut sink = sink(&database.url);
    let batches = scattered(30, 100);
    deliver(&mut sink, &batches).await;
    assert_exact(&database).await;
    let mean = "SELECT count(*) FROM tidegate.readings_per_minute WHERE abs(avg - sum / count) > 1e-9";
    assert_eq!(database.count(mean).await, Some(0));
    let buckets = database.count("SELECT count(*) FROM tidegate.readings_per_hour").await;
    assert_eq!(buckets, Some(30), "five devices, and six hours are begun");
    // Some readings were stored before: only the others count.
    database.query("UPDATE tidegate_internal.cursor SET position = 1000", &[]).await;
    deliver(&mut sink, &batches).await;
    assert_exact(&database).await;
    // The day gets its partition after the readings.
    let make = "SELECT tidegate_internal.make_partitions('2001-02-03', '2001-02-04')";
    database.query(make, &[]).await;
    let held = "SELECT count(*) FROM tidegate_internal.readings_default";
    assert_eq!(database.count(held).await, Some(0), "the readings have moved");
    assert_exact(&database).await;
}

#[tokio::test]
async fn numbers_at_the_ends_of_their_range_are_added_up() {
    let database = Database::create(services::postgres()).await;
    let records = ["1.7e308", "1.7e308", "5e-324", "5e-324", "-0", "1e309", "text"]
        .map(|number| (if number == "5e-324" { "sensors/a/tiny" } else { "sensors/a/huge" }, number));
    let mut sink = sink(&database.url);
    deliver(&mut sink, &[batch(0, &records), batch(7, &records)]).await;
    let again = [batch(0, &records), batch(7, &records), batch(14, &records)];
    deliver(&mut sink, &again).await;
    database.await_rollups().await;
    let rows = database
        .query("SELECT concat_ws(' ', metric, count, min, max, avg, sum) FROM tidegate.readings_per_hour ORDER BY 1", &[])
        .await;
    let rows: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    assert_eq!(rows, ["huge 9 -0 1.7e+308 NaN NaN", "tiny 6 5e-324 5e-324 0 3e-323"]);
    let refused = database.count("SELECT count(*) FROM tidegate_internal.quarantine").await;
    assert_eq!(refused, Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rollups_count_once_through_killed_connections() {
    let database = Arc::new(Database::create(services::postgres()).await);
    let mut sink = sink(&database.url);
    let batches = scattered(300, 50);
    deliver(&mut sink, &batches[..1]).await;
    let is_done = Arc::new(AtomicBool::new(false));
    let killer = {
        let (database, is_done) = (Arc::clone(&database), Arc::clone(&is_done));
        tokio::spawn(async move {
            let (mut killed, mut stored) = (0, None);
            while !is_done.load(Ordering::Relaxed) && killed < 30 {
                let cursor = database.count("SELECT position FROM tidegate_internal.cursor").await;
                if cursor > stored {
                    stored = cursor;
                    killed += database.count(KILL).await.unwrap_or(0);
                }
                tokio::task::yield_now().await;
            }
            killed
        })
    };
    let connects = deliver(&mut sink, &batches).await;
    is_done.store(true, Ordering::Relaxed);
    let killed = killer.await.unwrap();
    eprintln!("{killed} connections killed, connected {connects} times");
    assert!(killed >= 3, "the load outlasted the kills: {killed}");
    database.await_rollups().await;
    let counted = database.count("SELECT sum(count)::bigint FROM tidegate.readings_per_minute").await;
    assert_eq!(counted, Some(15_000));
    assert_exact(&database).await;
}

const BEHIND: &str = "SELECT c.position - least(r.minutes, r.hours) FROM tidegate_internal.cursor c
    JOIN tidegate_internal.rollup_cursor r USING (journal)";

/// So many devices that their hours are held back, each of which reports in one minute.
fn crowd(minute: u64) -> Batch {
    const DEVICES: u64 = 6_000;
    let report = |device: u64| {
        let value = (device + minute * 31) % 97;
        let payload = format!(r#"{{"value":{value},"ts":{}}}"#, 981_194_400 + minute * 60);
        (format!("sensors/d{device}/n"), payload)
    };
    batch(minute * DEVICES, &(0..DEVICES).map(report).collect::<Vec<_>>())
}

/// The process ends while minutes are written and their hours are not.
#[tokio::test]
async fn hours_that_were_held_back_are_made_good() {
    let database = Database::create(services::postgres()).await;
    let mut first = sink(&database.url);
    let batches = [crowd(0), crowd(1), crowd(2)];
    deliver(&mut first, &batches[..1]).await;
    database.await_rollups().await;
    database.query("BEGIN", &[]).await;
    database.query("LOCK TABLE tidegate.readings_per_hour", &[]).await;
    first.write(batches[1].clone()).await.unwrap();
    assert_eq!(first.confirmed().await.unwrap(), batches[1].end());
    let place = |unit: &str| format!("SELECT {unit} FROM tidegate_internal.rollup_cursor");
    database.await_count(&place("minutes"), 12_000, crate::support::PATIENCE).await;
    drop(first);
    database.query("COMMIT", &[]).await;
    assert_eq!(database.count(&place("hours")).await, Some(6_000));
    let mut second = sink(&database.url);
    second.connect().await.unwrap();
    assert_exact(&database).await;
    deliver(&mut second, &batches).await;
    assert_exact(&database).await;
}

#[tokio::test]
async fn a_drain_leaves_no_rollup_behind() {
    let database = Database::create(services::postgres()).await;
    let mut sink = sink(&database.url);
    let batches = [crowd(0), crowd(1)];
    deliver(&mut sink, &batches).await;
    sink.close().await;
    assert_eq!(database.count(BEHIND).await, Some(0));
    assert_exact(&database).await;
}

/// The tables of a version in which both rollups had one place.
#[tokio::test]
async fn the_place_of_both_rollups_becomes_one_of_each() {
    let database = Database::create(services::postgres()).await;
    let mut first = sink(&database.url);
    let batches = scattered(20, 100);
    deliver(&mut first, &batches[..10]).await;
    first.close().await;
    for sql in [
        "ALTER TABLE tidegate_internal.rollup_cursor DROP COLUMN hours",
        "ALTER TABLE tidegate_internal.rollup_cursor RENAME COLUMN minutes TO position",
        "DROP FUNCTION tidegate_internal.add_rollup, tidegate_internal.roll_up",
        "CREATE FUNCTION tidegate_internal.roll_up(bigint, bigint, bigint) RETURNS void LANGUAGE sql AS ''",
        "DELETE FROM tidegate_internal.migration WHERE version >= 4",
    ] {
        database.query(sql, &[]).await;
    }
    let mut second = sink(&database.url);
    deliver(&mut second, &batches).await;
    assert_exact(&database).await;
}

/// Readings are stored while the rollups cannot be written, and the process ends before they are.
#[tokio::test]
async fn rollups_that_were_left_behind_are_made_good() {
    let database = Database::create(services::postgres()).await;
    let mut first = sink(&database.url);
    let batches = scattered(40, 100);
    deliver(&mut first, &batches[..10]).await;
    database.await_rollups().await;
    database.query("BEGIN", &[]).await;
    database.query("LOCK TABLE tidegate.readings_per_hour", &[]).await;
    for batch in &batches[10..25] {
        first.write(batch.clone()).await.unwrap();
        let confirmed = first.confirmed().await.unwrap();
        assert_eq!(confirmed, batch.end());
    }
    assert_eq!(database.count("SELECT count(*) FROM tidegate.readings").await, Some(2_500), "nothing waits");
    drop(first);
    database.query("COMMIT", &[]).await;
    assert_eq!(database.count(BEHIND).await, Some(1_500));
    let mut second = sink(&database.url);
    second.connect().await.unwrap();
    assert_eq!(database.count(BEHIND).await, Some(0), "made good before anything else is stored");
    assert_exact(&database).await;
    deliver(&mut second, &batches).await;
    assert_exact(&database).await;
}

/// An older version adds to the rollups while it stores, and knows neither their cursor nor the series.
#[tokio::test]
async fn what_an_older_version_stored_is_not_added_again_and_its_series_are_found() {
    let database = Database::create(services::postgres()).await;
    let mut first = sink(&database.url);
    let batches = scattered(20, 100);
    deliver(&mut first, &batches[..10]).await;
    database.await_rollups().await;
    drop(first);
    database.query("DELETE FROM tidegate_internal.rollup_cursor", &[]).await;
    database.query("DELETE FROM tidegate_internal.series", &[]).await;
    assert_eq!(database.count("SELECT count(*) FROM tidegate.latest_readings").await, Some(0));
    let mut second = sink(&database.url);
    second.connect().await.unwrap();
    assert_eq!(database.count("SELECT count(*) FROM tidegate.latest_readings").await, Some(5));
    deliver(&mut second, &batches).await;
    assert_exact(&database).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_appliances_add_to_the_same_buckets() {
    let database = Database::create(services::postgres()).await;
    let deliveries: Vec<_> = (0..2_u128)
        .map(|number| {
            let journal = tidegate_broker::journal::JournalId(JOURNAL.0.wrapping_add(number << 3));
            let part = tidegate::health::Part::new("postgres");
            let mut sink = tidegate::postgres::PostgresSink::new(super::config(&database.url), journal, part);
            tokio::spawn(async move {
                deliver(&mut sink, &scattered(100, 50)).await;
                sink
            })
        })
        .collect();
    let mut sinks = Vec::new();
    for delivery in deliveries {
        sinks.push(delivery.await.unwrap());
    }
    database.await_rollups().await;
    let counted = database.count("SELECT sum(count)::bigint FROM tidegate.readings_per_hour").await;
    assert_eq!(counted, Some(10_000));
    // Of equal times either journal may count as the later; all else agrees.
    let sums = "SELECT count(*) FROM tidegate.readings_per_minute m WHERE (
            SELECT row(m.count, m.min, m.max, m.sum) <> row(count(*), min(number), max(number), sum(number))
            FROM tidegate.readings r WHERE r.device = m.device AND r.metric = m.metric
                AND r.time >= m.time AND r.time < m.time + interval '1 min')";
    let rows = database.query(sums, &[]).await;
    assert_eq!(rows[0].get::<_, i64>(0), 0);
}

/// A database that an older version has filled gets rollups of what it holds.
#[tokio::test]
async fn readings_of_before_the_rollups_are_added_up() {
    let database = Database::create(services::postgres()).await;
    let mut first = sink(&database.url);
    let batches = scattered(10, 100);
    deliver(&mut first, &batches).await;
    drop(first);
    for sql in [
        "DROP TABLE tidegate.readings_per_minute, tidegate.readings_per_hour, tidegate_internal.rollup_cursor",
        "DROP VIEW tidegate.alerts, tidegate.device_status, tidegate.latest_readings",
        "DROP TABLE tidegate_internal.series",
        "DROP FUNCTION tidegate_internal.roll_up, tidegate_internal.find_series, tidegate_internal.forget_series",
        "DROP INDEX tidegate.readings_alerts",
        "DROP FUNCTION tidegate_internal.drop_partition_before, tidegate_internal.delete_before, \
            tidegate_internal.add_rollups, tidegate_internal.add_rollup",
        "DROP AGGREGATE tidegate_internal.total(double precision)",
        "DROP FUNCTION tidegate_internal.add",
        "CREATE VIEW tidegate.latest_readings AS SELECT device, metric, time, number, text, unit, json, topic, received \
            FROM tidegate.readings",
        "CREATE VIEW tidegate.device_status AS SELECT device, ''::text AS status FROM tidegate.readings",
        "DELETE FROM tidegate_internal.migration WHERE version >= 2",
    ] {
        database.query(sql, &[]).await;
    }
    let mut second = sink(&database.url);
    deliver(&mut second, &numbered(1, 1)).await;
    assert_exact(&database).await;
    let counted = database.count("SELECT sum(count)::bigint FROM tidegate.readings_per_minute").await;
    assert_eq!(counted, Some(1_000));
}

#[tokio::test]
async fn alerts_have_their_severity_and_their_device() {
    let database = Database::create(services::postgres()).await;
    let records = [
        (
            "alerts/critical",
            r#"{"device":"pump-1","value":93.5,"unit":"°C","ts":981194400,"text":"too hot"}"#,
        ),
        ("alerts/info", "all is well"),
        ("sensors/a/alerts", "1"),
    ];
    deliver(&mut sink(&database.url), &[batch(0, &records)]).await;
    let rows = database
        .query("SELECT concat_ws('|', severity, device, name, message, unit, json->>'text') FROM tidegate.alerts ORDER BY position", &[])
        .await;
    let rows: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    assert_eq!(rows, ["critical|pump-1|critical|93.5|°C|too hot", "info|client|info|all is well"]);
}

#[tokio::test]
async fn everything_to_be_seen_has_a_comment() {
    let database = Database::create(services::postgres()).await;
    deliver(&mut sink(&database.url), &numbered(1, 10)).await;
    let tables = "SELECT c.oid::regclass::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE n.nspname IN ('tidegate', 'tidegate_internal') AND c.relkind IN ('r', 'p', 'v', 'm')
            AND obj_description(c.oid, 'pg_class') IS NULL";
    let columns =
        "SELECT c.oid::regclass || '.' || a.attname FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
        JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE n.nspname IN ('tidegate', 'tidegate_internal') AND c.relkind IN ('r', 'p', 'v', 'm')
            AND a.attnum > 0 AND NOT a.attisdropped AND col_description(c.oid, a.attnum) IS NULL";
    for sql in [tables, columns] {
        let without: Vec<String> = database.query(sql, &[]).await.iter().map(|row| row.get(0)).collect();
        assert_eq!(without, Vec::<String>::new());
    }
    let seen = "SELECT count(*) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE n.nspname = 'tidegate' AND c.relkind IN ('r', 'p', 'v')";
    assert_eq!(database.count(seen).await, Some(6));
}
