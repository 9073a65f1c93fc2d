//! Databases of single tests, and queries.

use std::time::Duration;

use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, NoTls, Row};

use super::{eventually, unique};

/// A database of one test alone, and a connection to it.
pub(crate) struct Database {
    pub(crate) url: String,
    client: Client,
}

impl std::fmt::Debug for Database {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Database").field("url", &self.url).finish()
    }
}

impl Database {
    /// Makes an empty database on the server that `administrator_url` names.
    pub(crate) async fn create(administrator_url: &str) -> Self {
        let name = unique("test");
        let administrator = connect(administrator_url).await;
        administrator
            .batch_execute(&format!("CREATE DATABASE {name}"))
            .await
            .expect("a database can be made");
        let (server, _) = administrator_url.rsplit_once('/').expect("the URL ends with a database");
        let url = format!("{server}/{name}");
        let client = connect(&url).await;
        Self { url, client }
    }

    /// Its name.
    pub(crate) fn name(&self) -> &str {
        self.url.rsplit_once('/').expect("the URL ends with a database").1
    }

    /// Connects again, after the server was away.
    pub(crate) async fn reconnect(&mut self) {
        self.client = connect(&self.url).await;
    }

    /// Runs a query that must work.
    pub(crate) async fn query(&self, sql: &str, parameters: &[&(dyn ToSql + Sync)]) -> Vec<Row> {
        self.client.query(sql, parameters).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"))
    }

    /// A setting of the server.
    pub(crate) async fn setting(&self, name: &str) -> String {
        self.query("SELECT current_setting($1)", &[&name]).await[0].get(0)
    }

    /// The number that a query gives; `None` while the query fails, for instance because the table is not made yet.
    pub(crate) async fn count(&self, sql: &str) -> Option<i64> {
        let row = self.client.query_one(sql, &[]).await.ok()?;
        row.try_get(0).ok()
    }

    /// Waits until the rollups have everything that is stored.
    pub(crate) async fn await_rollups(&self) {
        let level = "SELECT count(*) FROM tidegate_internal.cursor c JOIN tidegate_internal.rollup_cursor r USING (journal)
            WHERE least(r.minutes, r.hours) >= c.position HAVING count(*) = (SELECT count(*) FROM tidegate_internal.cursor WHERE position IS NOT NULL)";
        self.await_count(level, 1, super::PATIENCE).await;
    }

    /// Waits until a query gives `expected`, or more.
    pub(crate) async fn await_count(&self, sql: &str, expected: i64, patience: Duration) {
        let mut last = None;
        let deadline = tokio::time::Instant::now() + patience;
        while last < Some(expected) {
            let in_time = tokio::time::Instant::now() < deadline;
            assert!(in_time, "not within {patience:?}: {expected} from {sql}; it gives {last:?}");
            last = self.count(sql).await;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

async fn connect(url: &str) -> Client {
    eventually(&format!("{url} answers"), Duration::from_secs(30), async || {
        let (client, connection) = tokio_postgres::connect(url, NoTls).await.ok()?;
        tokio::spawn(async move {
            // It ends with an error when a test stops the server; the next query tells.
            let _ = connection.await;
        });
        Some(client)
    })
    .await
}
