//! The server is there and does not store: locked tables, a full disk, rights that were taken away. Every case says what
//! it waits for, and goes on by itself once that is over.

use std::time::Duration;

use tidegate::health::Part;
use tidegate::postgres::{Config, PostgresSink};
use tidegate::pump::{Sink, SinkError};
use tidegate_broker::record::Offset;

use super::{JOURNAL, config, deliver, numbered, operator_message, sink};
use crate::support::postgres::Database;
use crate::support::services;
use crate::support::unique;

fn retry_message<T: std::fmt::Debug>(result: Result<T, SinkError>) -> String {
    match result {
        Err(SinkError::Retry(message)) => message,
        other => panic!("not a case to try again: {other:?}"),
    }
}

/// How storing failed: the readings, or the rollups that follow them.
async fn failure(sink: &mut PostgresSink) -> Result<(), SinkError> {
    match sink.confirmed().await {
        Ok(_) => Err(sink.lost().await),
        Err(error) => Err(error),
    }
}

async fn assert_whole(database: &Database, expected: i64) {
    database.await_rollups().await;
    for sql in [
        "SELECT count(*) FROM tidegate.readings",
        "SELECT count(DISTINCT position) FROM tidegate.readings",
        "SELECT sum(count)::bigint FROM tidegate.readings_per_hour",
    ] {
        assert_eq!(database.count(sql).await, Some(expected), "{sql}");
    }
    assert_eq!(database.count("SELECT count(*) FROM tidegate_internal.quarantine").await, Some(0));
}

#[tokio::test]
async fn a_locked_table_is_waited_for() {
    let database = Database::create(services::postgres()).await;
    let hasty = Config { statement_timeout: Duration::from_secs(1), ..config(&database.url) };
    let mut sink = PostgresSink::new(hasty, JOURNAL, Part::new("postgres"));
    let batches = numbered(20, 50);
    deliver(&mut sink, &batches[..1]).await;
    database.query("BEGIN", &[]).await;
    database.query("LOCK TABLE tidegate.readings", &[]).await;
    sink.write(batches[1].clone()).await.unwrap();
    let message = retry_message(sink.confirmed().await);
    assert!(message.contains("holds a lock") && message.contains("57014"), "{message}");
    assert_eq!(sink.connect().await.unwrap(), Some(Offset(50)), "nothing of the batch is stored");
    database.query("COMMIT", &[]).await;
    deliver(&mut sink, &batches).await;
    assert_whole(&database, 1_000).await;
}

#[tokio::test]
async fn a_lock_of_a_moment_is_not_even_an_error() {
    let database = Database::create(services::postgres()).await;
    let mut sink = sink(&database.url);
    let batches = numbered(20, 50);
    deliver(&mut sink, &batches[..1]).await;
    database.query("BEGIN", &[]).await;
    database.query("LOCK TABLE tidegate.readings", &[]).await;
    sink.write(batches[1].clone()).await.unwrap();
    let waiting =
        "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'tidegate.readings'::regclass";
    database.await_count(waiting, 1, crate::support::PATIENCE).await;
    database.query("COMMIT", &[]).await;
    assert_eq!(sink.confirmed().await.unwrap(), Offset(100));
    deliver(&mut sink, &batches).await;
    assert_whole(&database, 1_000).await;
}

/// What the server answers when its disk is full, its memory is used up, or it takes no writes.
#[tokio::test]
async fn a_server_without_room_is_waited_for_and_no_row_is_put_aside() {
    let database = Database::create(services::postgres()).await;
    let mut sink = sink(&database.url);
    let batches = numbered(40, 50);
    let mut end = 1;
    deliver(&mut sink, &batches[..end]).await;
    for (table, when) in [("tidegate.readings", "INSERT"), ("tidegate.readings_per_hour", "INSERT OR UPDATE")]
    {
        for (code, expected) in [
            ("53100", "disk is full"),
            ("53200", "lacks memory"),
            ("53000", "lacks memory"),
            ("25006", "primary"),
        ] {
            let function = format!(
                "CREATE OR REPLACE FUNCTION tidegate_internal.fail() RETURNS trigger LANGUAGE plpgsql AS
                 $$ BEGIN RAISE 'could not extend file' USING ERRCODE = '{code}'; END $$"
            );
            database.query(&function, &[]).await;
            let trigger = format!(
                "CREATE TRIGGER fail BEFORE {when} ON {table} FOR EACH ROW EXECUTE FUNCTION tidegate_internal.fail()"
            );
            database.query(&trigger, &[]).await;
            sink.write(batches[end].clone()).await.unwrap();
            let message = retry_message(failure(&mut sink).await);
            assert!(message.contains(expected) && message.contains(code), "{table}: {message}");
            database.query(&format!("DROP TRIGGER fail ON {table}"), &[]).await;
            end += 1;
            deliver(&mut sink, &batches[..end]).await;
        }
    }
    deliver(&mut sink, &batches).await;
    assert_whole(&database, 2_000).await;
}

#[tokio::test]
async fn rights_that_were_taken_away_are_named_and_used_once_they_are_back() {
    let database = Database::create(services::postgres()).await;
    let batches = numbered(8, 10);
    deliver(&mut sink(&database.url), &batches[..1]).await;
    let role = unique("writer");
    for sql in [
        "CREATE ROLE WRITER LOGIN",
        "GRANT USAGE ON SCHEMA tidegate, tidegate_internal TO WRITER",
        "GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA tidegate, tidegate_internal TO WRITER",
    ] {
        database.query(&sql.replace("WRITER", &role), &[]).await;
    }
    let mut sink = sink(&database.url.replace("postgres@", &format!("{role}@")));
    let mut end = 2;
    deliver(&mut sink, &batches[..end]).await;
    for right in [
        "INSERT ON tidegate.readings",
        "UPDATE ON tidegate.readings_per_minute",
        "UPDATE ON tidegate_internal.cursor",
    ] {
        database.query(&format!("REVOKE {right} FROM {role}"), &[]).await;
        sink.write(batches[end].clone()).await.unwrap();
        let message = operator_message(failure(&mut sink).await);
        let table = right.rsplit_once('.').unwrap().1;
        assert!(message.contains(table), "{message}");
        let grant = format!(
            "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA \"tidegate\", \"tidegate_internal\" TO \"{role}\""
        );
        assert!(message.contains(&grant), "{message}");
        database.query(&format!("GRANT {right} TO {role}"), &[]).await;
        end += 1;
        deliver(&mut sink, &batches[..end]).await;
    }
    assert_whole(&database, 50).await;
}
