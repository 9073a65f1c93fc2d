//! Databases that are not there, not ready, not ours or not of our time.

use std::time::Duration;

use tidegate::health::Part;
use tidegate::postgres::{Config, PostgresSink, migration};
use tidegate::pump::{Sink, SinkError};
use tidegate_broker::journal::JournalId;

use super::{JOURNAL, config, deliver, numbered, operator_message, sink};
use crate::support::postgres::Database;
use crate::support::services;
use crate::support::{PATIENCE, free_address, unique};

fn server() -> &'static str {
    services::postgres().rsplit_once('/').unwrap().0
}

#[tokio::test]
async fn a_database_that_does_not_exist_is_named_and_used_once_it_exists() {
    let name = unique("later");
    let mut sink = sink(&format!("{}/{name}", server()));
    let message = operator_message(sink.connect().await);
    assert!(message.contains(&format!("CREATE DATABASE \"{name}\"")), "{message}");
    let administrator = Database::create(services::postgres()).await;
    administrator.query(&format!("CREATE DATABASE {name}"), &[]).await;
    deliver(&mut sink, &numbered(1, 10)).await;
}

#[tokio::test]
async fn a_server_that_is_away_is_tried_again() {
    let address = free_address();
    let mut sink = sink(&format!("postgres://ada:sesame@{address}/sensors"));
    match sink.connect().await {
        Err(SinkError::Retry(message)) => {
            assert!(message.contains(&format!("role ada at {address}, database sensors")), "{message}");
            assert!(message.contains("refused") && !message.contains("sesame"), "{message}");
        }
        other => panic!("nobody listens there: {other:?}"),
    }
}

#[tokio::test]
async fn a_server_that_accepts_and_never_answers_is_given_up() {
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("postgres://ada:sesame@{}/sensors", silent.local_addr().unwrap());
    let hasty = Config { connect_timeout: Duration::from_millis(200), ..config(&url) };
    let mut sink = PostgresSink::new(hasty, JOURNAL, Part::new("postgres"));
    let result = tokio::time::timeout(PATIENCE, sink.connect()).await.expect("it is given up");
    match result {
        Err(SinkError::Retry(message)) => assert!(message.contains("no answer within 200 ms"), "{message}"),
        other => panic!("nobody answers: {other:?}"),
    }
}

#[tokio::test]
async fn tables_made_by_somebody_else_are_enough_for_a_role_that_may_only_write() {
    let database = Database::create(services::postgres()).await;
    deliver(&mut sink(&database.url), &numbered(1, 10)).await;
    let role = unique("writer");
    for sql in [
        "CREATE ROLE WRITER LOGIN",
        "GRANT USAGE ON SCHEMA tidegate, tidegate_internal TO WRITER",
        "GRANT INSERT, SELECT ON ALL TABLES IN SCHEMA tidegate, tidegate_internal TO WRITER",
        "GRANT UPDATE ON tidegate_internal.cursor, tidegate_internal.rollup_cursor, tidegate_internal.series, \
            tidegate.readings_per_minute, tidegate.readings_per_hour TO WRITER",
    ] {
        database.query(&sql.replace("WRITER", &role), &[]).await;
    }
    let mut sink = sink(&database.url.replace("postgres@", &format!("{role}@")));
    deliver(&mut sink, &numbered(2, 10)).await;
    assert_eq!(database.count("SELECT count(*) FROM tidegate.readings").await, Some(20));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn appliances_that_start_at_once_make_the_tables_once() {
    let database = Database::create(services::postgres()).await;
    let starts: Vec<_> = (0..6)
        .map(|number| {
            let mut sink = PostgresSink::new(config(&database.url), JournalId(number), Part::new("postgres"));
            tokio::spawn(async move { sink.connect().await.map(|_| ()) })
        })
        .collect();
    for start in starts {
        start.await.unwrap().unwrap();
    }
    let applied = database.count("SELECT count(*) FROM tidegate_internal.migration").await;
    assert_eq!(applied, Some(i64::from(migration::VERSION)));
    sink(&database.url).connect().await.unwrap();
    assert_eq!(
        database.count("SELECT count(*) FROM tidegate_internal.migration").await,
        applied,
        "made once"
    );
}

#[tokio::test]
async fn a_schema_of_a_newer_version_is_left_alone() {
    let database = Database::create(services::postgres()).await;
    sink(&database.url).connect().await.unwrap();
    database
        .query("INSERT INTO tidegate_internal.migration (version, name) VALUES (1000, 'future')", &[])
        .await;
    let message = operator_message(sink(&database.url).connect().await);
    assert!(message.contains("version 1000") && message.contains("newer Tidegate"), "{message}");
}

#[tokio::test]
async fn a_failed_migration_leaves_nothing_behind() {
    let database = Database::create(services::postgres()).await;
    database.query("CREATE SCHEMA tidegate CREATE TABLE readings (mine int)", &[]).await;
    let message = operator_message(sink(&database.url).connect().await);
    assert!(message.contains("another postgres.schema"), "{message}");
    let left = "SELECT count(*) FROM pg_namespace WHERE nspname = 'tidegate_internal'";
    assert_eq!(database.count(left).await, Some(0));
    let elsewhere = Config { schema: "elsewhere".to_owned(), ..config(&database.url) };
    let mut sink = PostgresSink::new(elsewhere, JOURNAL, Part::new("postgres"));
    deliver(&mut sink, &numbered(1, 10)).await;
    assert_eq!(database.count("SELECT count(*) FROM elsewhere.readings").await, Some(10));
}

#[tokio::test]
async fn a_database_that_cannot_hold_every_text_is_refused() {
    let administrator = Database::create(services::postgres()).await;
    let name = unique("latin");
    let create = format!("CREATE DATABASE {name} ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0");
    administrator.query(&create, &[]).await;
    let message = operator_message(sink(&format!("{}/{name}", server())).connect().await);
    assert!(message.contains("LATIN1") && message.contains("ENCODING 'UTF8'"), "{message}");
}

#[tokio::test]
async fn changed_tables_are_named() {
    let database = Database::create(services::postgres()).await;
    let mut sink = sink(&database.url);
    let batches = numbered(2, 10);
    deliver(&mut sink, &batches[..1]).await;
    database.query("ALTER TABLE tidegate.readings DROP COLUMN unit CASCADE", &[]).await;
    sink.write(batches[1].clone()).await.unwrap();
    let message = operator_message(sink.confirmed().await);
    assert!(message.contains("changed Tidegate's tables"), "{message}");
}
