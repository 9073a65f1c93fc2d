//! Nothing is lost and nothing is stored twice when connections, servers and rows fail.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tidegate::health::Part;
use tidegate::postgres::{Config, PostgresSink};
use tidegate::pump::{Sink, SinkError};
use tidegate_broker::record::{BatchBuilder, Entry, Offset, Timestamp};

use super::{JOURNAL, batch, config, deliver, numbered, sink};
use crate::support::PATIENCE;
use crate::support::postgres::Database;
use crate::support::random::Random;
use crate::support::services::{self, Own, Service};

/// Ends every other connection to the database.
pub(super) const KILL: &str = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
    WHERE datname = current_database() AND pid <> pg_backend_pid()";

const KILLS: i64 = 40;

/// Every number from 0 once, and nothing else.
async fn assert_once_each(database: &Database, expected: i64) {
    let stored = database.count("SELECT count(*) FROM tidegate.readings").await;
    let distinct = database
        .count("SELECT count(DISTINCT position) FROM tidegate.readings WHERE number = position")
        .await;
    eprintln!("acknowledged {expected}, stored {stored:?}, distinct {distinct:?}");
    assert_eq!((stored, distinct), (Some(expected), Some(expected)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_connections_lose_and_repeat_nothing() {
    let database = Arc::new(Database::create(services::postgres()).await);
    let mut sink = sink(&database.url);
    let batches = numbered(600, 50);
    deliver(&mut sink, &batches[..1]).await;
    let is_done = Arc::new(AtomicBool::new(false));
    let killer = {
        let (database, is_done) = (Arc::clone(&database), Arc::clone(&is_done));
        tokio::spawn(async move {
            let mut random = Random::printed("killed_connections_lose_and_repeat_nothing");
            let (mut killed, mut stored) = (0, None);
            while killed < KILLS && !is_done.load(Ordering::Relaxed) {
                // A kill, some progress, a random moment of what follows, the next kill.
                let cursor = database.count("SELECT position FROM tidegate_internal.cursor").await;
                if cursor > stored {
                    stored = cursor;
                    tokio::time::sleep(Duration::from_micros(random.within(0..20_000))).await;
                    killed += database.count(KILL).await.unwrap_or(0);
                } else {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            }
            killed
        })
    };
    let connects = deliver(&mut sink, &batches).await;
    // Should the load ever end before the kills do.
    is_done.store(true, Ordering::Relaxed);
    let killed = killer.await.unwrap();
    eprintln!("{killed} connections killed, connected {connects} times");
    assert!(
        killed >= 3 && connects >= 3,
        "the load outlasted the kills: {killed} killed, {connects} connects"
    );
    assert_once_each(&database, 30_000).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_restarts_and_one_that_hangs_lose_and_repeat_nothing() {
    let server = Own::start(Service::Postgres);
    let mut database = Database::create(&server.url()).await;
    let patient = Config { statement_timeout: Duration::from_secs(1), ..config(&database.url) };
    let mut sink = PostgresSink::new(patient, JOURNAL, Part::new("postgres"));
    let batches = numbered(400, 50);
    deliver(&mut sink, &batches[..1]).await;

    let delivery = tokio::spawn(async move {
        let connects = deliver(&mut sink, &batches[..200]).await;
        (sink, batches, connects)
    });
    database.await_count("SELECT count(*) FROM tidegate.readings", 51, PATIENCE).await;
    tokio::task::block_in_place(|| {
        server.stop();
        server.start_again();
    });
    let (mut sink, batches, connects) = delivery.await.unwrap();
    eprintln!("connected {connects} times over a restart");
    database.reconnect().await;
    assert_once_each(&database, 10_000).await;

    // A trigger that waits for a lock makes the statement hang while the server is well.
    let mut holder = Database::create(&server.url()).await;
    holder.url.clone_from(&database.url);
    holder.reconnect().await;
    holder.query("SELECT pg_advisory_lock(1)", &[]).await;
    let hang = "DO $$ BEGIN EXECUTE 'CREATE FUNCTION tidegate_internal.hang() RETURNS trigger LANGUAGE plpgsql AS \
        ''BEGIN PERFORM pg_advisory_lock_shared(1); PERFORM pg_advisory_unlock_shared(1); RETURN NEW; END'''; \
        EXECUTE 'CREATE TRIGGER hang BEFORE UPDATE ON tidegate_internal.cursor FOR EACH ROW \
        EXECUTE FUNCTION tidegate_internal.hang()'; END $$";
    database.query(hang, &[]).await;
    let from = sink.connect().await.unwrap().unwrap();
    assert_eq!(from, Offset(10_000));
    sink.write(batches[200].clone()).await.unwrap();
    let message = match sink.confirmed().await {
        Err(SinkError::Retry(message)) => message,
        other => panic!("the statement hangs for longer than its timeout: {other:?}"),
    };
    assert!(message.contains("timeout") || message.contains("no answer"), "{message}");
    holder.query("SELECT pg_advisory_unlock(1)", &[]).await;
    deliver(&mut sink, &batches).await;
    assert_once_each(&database, 20_000).await;
}

#[tokio::test]
async fn a_lost_connection_is_told_while_nothing_flows() {
    let database = Database::create(services::postgres()).await;
    let mut sink = sink(&database.url);
    deliver(&mut sink, &numbered(1, 1)).await;
    assert_eq!(database.count(KILL).await, Some(2), "one for the readings, one for the rollups");
    let lost = tokio::time::timeout(PATIENCE, sink.lost()).await.expect("the loss is noticed");
    assert!(lost.to_string().contains("lost"), "{lost}");
}

#[tokio::test]
async fn a_cursor_that_was_set_back_changes_nothing() {
    let database = Database::create(services::postgres()).await;
    let mut sink = sink(&database.url);
    let batches = numbered(10, 100);
    deliver(&mut sink, &batches).await;
    database.query("UPDATE tidegate_internal.cursor SET position = 300", &[]).await;
    database.query("DELETE FROM tidegate.readings WHERE position = 555", &[]).await;
    deliver(&mut sink, &batches).await;
    assert_once_each(&database, 1_000).await;
    database.query("DELETE FROM tidegate_internal.cursor", &[]).await;
    deliver(&mut sink, &batches).await;
    assert_once_each(&database, 1_000).await;
}

/// What is no record makes no row, and so no stream of rows that a server could take.
#[tokio::test]
async fn a_cursor_that_was_set_back_before_what_makes_no_rows_goes_on() {
    let database = Database::create(services::postgres()).await;
    let mut sink = sink(&database.url);
    let mut batches = numbered(2, 100);
    let mut builder = BatchBuilder::new(Offset(200), Timestamp(1), 0, 64);
    builder.push(&Entry::Control(b"a session"));
    batches.push(builder.finish(|_| {}).1);
    deliver(&mut sink, &batches).await;
    database.query("UPDATE tidegate_internal.cursor SET position = 200", &[]).await;
    deliver(&mut sink, &batches).await;
    assert_eq!(database.count("SELECT position FROM tidegate_internal.cursor").await, Some(201));
    assert_once_each(&database, 200).await;
}

#[tokio::test]
async fn two_appliances_on_one_journal_do_not_store_twice() {
    let database = Database::create(services::postgres()).await;
    let (mut first, mut second) = (sink(&database.url), sink(&database.url));
    let batches = numbered(2, 10);
    assert_eq!(first.connect().await.unwrap(), None);
    assert_eq!(second.connect().await.unwrap(), None);
    first.write(batches[0].clone()).await.unwrap();
    assert_eq!(first.confirmed().await.unwrap(), Offset(10));
    second.write(batches[0].clone()).await.unwrap();
    let message = second.confirmed().await.unwrap_err().to_string();
    assert!(message.contains("cursor") && message.contains("another instance"), "{message}");
    assert_eq!(second.connect().await.unwrap(), Some(Offset(10)));
    deliver(&mut second, &batches).await;
    assert_once_each(&database, 20).await;
}

#[tokio::test]
async fn journals_do_not_mix() {
    let database = Database::create(services::postgres()).await;
    let batches = numbered(1, 10);
    deliver(&mut sink(&database.url), &batches).await;
    let other = tidegate_broker::journal::JournalId(7);
    let mut sink = PostgresSink::new(config(&database.url), other, Part::new("postgres"));
    assert_eq!(sink.connect().await.unwrap(), None, "another journal begins anew");
    deliver(&mut sink, &batches).await;
    assert_eq!(database.count("SELECT count(*) FROM tidegate.readings").await, Some(20));
    assert_eq!(
        database.count("SELECT count(*) FROM tidegate_internal.cursor WHERE position = 10").await,
        Some(2)
    );
}

#[tokio::test]
async fn rows_that_the_server_refuses_are_put_aside_and_the_others_go_on() {
    let database = Database::create(services::postgres()).await;
    let part = Part::new("postgres");
    let mut sink = PostgresSink::new(config(&database.url), JOURNAL, part.clone());
    let batches = numbered(10, 100);
    deliver(&mut sink, &batches[..1]).await;
    // A constraint tells the row; a trigger that raises may not.
    let constraint =
        "ALTER TABLE tidegate.readings ADD CONSTRAINT sane CHECK (number NOT IN (150, 151, 399)) NOT VALID";
    database.query(constraint, &[]).await;
    let function = "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS \
        $$ BEGIN IF NEW.number IN (700, 999) THEN RAISE 'not number %', NEW.number; END IF; RETURN NEW; END $$";
    database.query(function, &[]).await;
    let trigger =
        "CREATE TRIGGER refuse BEFORE INSERT ON tidegate.readings FOR EACH ROW EXECUTE FUNCTION refuse()";
    database.query(trigger, &[]).await;
    deliver(&mut sink, &batches).await;
    let refused = database
        .query("SELECT position, topic, payload, reason FROM tidegate_internal.quarantine ORDER BY 1", &[])
        .await;
    let positions: Vec<i64> = refused.iter().map(|row| row.get(0)).collect();
    assert_eq!(positions, [150, 151, 399, 700, 999]);
    assert_eq!(refused[0].get::<_, String>(1), "sensors/d3/n");
    assert_eq!(refused[0].get::<_, Vec<u8>>(2), b"150");
    assert!(refused[0].get::<_, String>(3).contains("\"sane\""), "the reason names the constraint");
    assert!(refused[4].get::<_, String>(3).contains("not number 999"));
    assert_eq!(
        database.count("SELECT count(*) FROM tidegate.readings WHERE number = position").await,
        Some(995)
    );
    assert_eq!(part.report().rejected, 5);
}

#[tokio::test]
async fn a_group_larger_than_a_transaction_is_divided() {
    let database = Database::create(services::postgres()).await;
    let small = Config { transaction_bytes_max: 64 << 10, ..config(&database.url) };
    let mut sink = PostgresSink::new(small, JOURNAL, Part::new("postgres"));
    let batches = numbered(60, 100);
    sink.connect().await.unwrap();
    for batch in &batches {
        sink.write(batch.clone()).await.unwrap();
    }
    while sink.confirmed().await.unwrap() < Offset(6_000) {}
    assert_once_each(&database, 6_000).await;
    let largest = "SELECT max(n) FROM (SELECT count(*) AS n FROM tidegate_internal.readings_default GROUP BY xmin::text) t";
    let rows = database.count(largest).await.unwrap();
    assert!((100..1_000).contains(&rows), "the largest transaction has {rows} rows");
    let mixed = batch(6_000, &[("a", "x".repeat(200_000)), ("a", "1".to_owned())]);
    sink.write(mixed).await.unwrap();
    assert_eq!(sink.confirmed().await.unwrap(), Offset(6_002), "one batch always fits");
}
