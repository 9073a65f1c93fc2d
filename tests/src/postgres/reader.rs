//! The role of those who only read sees the schema, and nothing else of the database.

use tidegate::health::Part;
use tidegate::postgres::{Config, PostgresSink};
use tidegate::pump::Sink;
use tokio_postgres::error::SqlState;

use super::{JOURNAL, config, deliver, numbered, sink};
use crate::support::postgres::Database;
use crate::support::services;
use crate::support::unique;

fn with_reader(url: &str, reader_role: &str) -> PostgresSink {
    let config = Config { reader_role: reader_role.to_owned(), ..config(url) };
    PostgresSink::new(config, JOURNAL, Part::new("postgres"))
}

async fn connect(url: &str, role: &str) -> tokio_postgres::Client {
    let url = url.replace("postgres@", &format!("{role}@"));
    let (client, connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

#[tokio::test]
async fn the_reader_reads_everything_and_changes_nothing() {
    let database = Database::create(services::postgres()).await;
    let role = unique("reader");
    let mut sink = with_reader(&database.url, &role);
    deliver(&mut sink, &numbered(2, 10)).await;
    database.await_rollups().await;
    let reader = connect(&database.url, &role).await;
    for (table, count) in [
        ("readings", 20),
        ("readings_per_minute", 7),
        ("readings_per_hour", 7),
        ("latest_readings", 7),
        ("device_status", 7),
        ("alerts", 0),
    ] {
        let rows = reader.query(&format!("SELECT count(*) FROM tidegate.{table}"), &[]).await.unwrap();
        assert_eq!(rows[0].get::<_, i64>(0), count, "{table}");
    }
    // Keys are found as JDBC drivers look for them, and of what may be read nothing lies elsewhere.
    let keys =
        "SELECT count(*) FROM pg_constraint WHERE contype = 'p' AND connamespace = 'tidegate'::regnamespace";
    assert_eq!(reader.query_one(keys, &[]).await.unwrap().get::<_, i64>(0), 3);
    let tables = "SELECT DISTINCT table_schema::text FROM information_schema.tables
        WHERE table_schema NOT IN ('pg_catalog', 'information_schema')";
    let schemas: Vec<String> =
        reader.query(tables, &[]).await.unwrap().iter().map(|row| row.get(0)).collect();
    assert_eq!(schemas, ["tidegate"]);
    // Also if the reader's own settings did not refuse it first.
    reader.batch_execute("SET default_transaction_read_only = off").await.unwrap();
    for refused in [
        "DELETE FROM tidegate.readings",
        "CREATE TABLE tidegate.mine (n int)",
        "SELECT * FROM tidegate_internal.cursor",
        "SELECT tidegate_internal.make_partitions('2001-01-01', '2001-01-01')",
    ] {
        let error = reader.batch_execute(refused).await.unwrap_err();
        assert_eq!(error.code(), Some(&SqlState::INSUFFICIENT_PRIVILEGE), "{refused}");
    }
    // Tables and partitions of later on.
    database.query("CREATE TABLE tidegate.later (n int)", &[]).await;
    reader.batch_execute("SELECT * FROM tidegate.later").await.unwrap();
    database.query("REVOKE SELECT ON tidegate.readings FROM ROLE".replace("ROLE", &role).as_str(), &[]).await;
    with_reader(&database.url, &role).connect().await.unwrap();
    reader.batch_execute("SELECT * FROM tidegate.readings").await.unwrap();
}

#[tokio::test]
async fn a_name_with_quotes_is_a_name() {
    let database = Database::create(services::postgres()).await;
    let role = format!("{}'\"\\ä b", unique("odd"));
    with_reader(&database.url, &role).connect().await.unwrap();
    let may = "SELECT has_table_privilege($1, 'tidegate.readings', 'SELECT')";
    assert!(database.query(may, &[&role]).await[0].get::<_, bool>(0));
}

#[tokio::test]
async fn a_sink_that_may_make_no_roles_stores_all_the_same_and_lets_one_read_that_exists() {
    let database = Database::create(services::postgres()).await;
    let (writer, role) = (unique("writer"), unique("reader"));
    let name = database.url.rsplit_once('/').unwrap().1;
    database.query(&format!("CREATE ROLE {writer} LOGIN"), &[]).await;
    database.query(&format!("GRANT CREATE ON DATABASE {name} TO {writer}"), &[]).await;
    let url = database.url.replace("postgres@", &format!("{writer}@"));
    deliver(&mut with_reader(&url, &role), &numbered(1, 10)).await;
    assert_eq!(database.count("SELECT count(*) FROM tidegate.readings").await, Some(10));
    database.query(&format!("CREATE ROLE {role} LOGIN"), &[]).await;
    with_reader(&url, &role).connect().await.unwrap();
    let reader = connect(&database.url, &role).await;
    reader.batch_execute("SELECT * FROM tidegate.readings_per_hour").await.unwrap();
    drop(sink(&url));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn instances_that_start_at_once_make_the_role_once() {
    let database = Database::create(services::postgres()).await;
    let role = unique("reader");
    let starts: Vec<_> = (0..4)
        .map(|number| {
            let config = Config { reader_role: role.clone(), ..config(&database.url) };
            let journal = tidegate_broker::journal::JournalId(number);
            let mut sink = PostgresSink::new(config, journal, Part::new("postgres"));
            tokio::spawn(async move { sink.connect().await.map(|_| ()) })
        })
        .collect();
    for start in starts {
        start.await.unwrap().unwrap();
    }
    connect(&database.url, &role).await.batch_execute("SELECT * FROM tidegate.readings").await.unwrap();
}
