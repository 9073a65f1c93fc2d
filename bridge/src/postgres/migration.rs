//! Makes the tables and brings older ones up to date.
//!
//! Migrations are numbered from 1 and applied in order, all in one transaction under an advisory lock, so two
//! appliances that start at once do not meet in the middle, and a failure leaves the database as it was. A migration
//! that was released is never changed. A schema newer than this program is refused.

use std::time::Duration;

use tokio_postgres::Client;
use tracing::info;

use super::config::Config;
use super::failure::{Place, sink_error};
use crate::pump::SinkError;

/// One step of the schema. `{schema}` and `{internal}` stand for the quoted names of the two schemas,
/// `{internal_literal}` for the internal one as a string, `{lock}` for the advisory lock.
struct Migration {
    name: &'static str,
    sql: &'static str,
}

const MIGRATIONS: [Migration; 4] = [
    Migration { name: "readings", sql: include_str!("migrations/001_readings.sql") },
    Migration { name: "rollups", sql: include_str!("migrations/002_rollups.sql") },
    Migration { name: "rollup cursor", sql: include_str!("migrations/003_rollup_cursor.sql") },
    Migration { name: "hours", sql: include_str!("migrations/004_hours.sql") },
];

/// The version of the schema that this program works with.
pub const VERSION: i32 = MIGRATIONS.len() as i32;

/// Guards changes of the schema in a database. Any number would do, but it must stay the same.
pub(super) const LOCK: i64 = 0x7469_6465_6761_7465;

/// A migration may have to read all readings, or wait for another instance that does.
pub(super) const MIGRATION_TIMEOUT: Duration = Duration::from_secs(3_600);

/// Whether the schema is of [`VERSION`].
pub(super) async fn is_current(client: &Client, config: &Config) -> Result<bool, tokio_postgres::Error> {
    Ok(version(client, config).await? == Some(VERSION))
}

/// Brings the schema to [`VERSION`]; does nothing if it is there.
pub(super) async fn migrate(client: &mut Client, config: &Config, place: &Place) -> Result<(), SinkError> {
    let failed = |error: tokio_postgres::Error| sink_error(&error, "making its tables", place);
    let transaction = client.transaction().await.map_err(failed)?;
    let begin = format!(
        "SET LOCAL statement_timeout = {}; SELECT pg_advisory_xact_lock({LOCK})",
        MIGRATION_TIMEOUT.as_millis()
    );
    transaction.batch_execute(&begin).await.map_err(failed)?;
    let found = version(&transaction, config).await.map_err(failed)?;
    if found.is_some_and(|found| found > VERSION) {
        return Err(newer(config, found.unwrap_or_default()));
    }
    if let Some(found) = found.filter(|found| *found < VERSION) {
        info!(schema = %config.schema, from = found, to = VERSION, "bringing the tables up to date; with many readings this takes a while");
    }
    if found.is_none() {
        transaction.batch_execute(&housekeeping(config)).await.map_err(failed)?;
    }
    let done = usize::try_from(found.unwrap_or(0)).expect("versions are not negative");
    for (index, migration) in MIGRATIONS.iter().enumerate().skip(done) {
        transaction.batch_execute(&filled(migration.sql, config)).await.map_err(failed)?;
        let note = format!(
            "INSERT INTO \"{}\".migration (version, name) VALUES ({}, '{}')",
            config.internal_schema(),
            index + 1,
            migration.name
        );
        transaction.batch_execute(&note).await.map_err(failed)?;
    }
    transaction.commit().await.map_err(failed)
}

/// The version that the database has, if it has any of ours.
async fn version(
    client: &impl tokio_postgres::GenericClient,
    config: &Config,
) -> Result<Option<i32>, tokio_postgres::Error> {
    // Not `to_regclass`, which may answer from a cache that does not know yet what was committed a moment ago.
    let exists = "SELECT EXISTS (SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
        WHERE n.nspname = $1 AND c.relname = 'migration')";
    let exists = client.query_one(exists, &[&config.internal_schema()]).await?;
    if !exists.get::<_, bool>(0) {
        return Ok(None);
    }
    let newest = format!("SELECT coalesce(max(version), 0) FROM \"{}\".migration", config.internal_schema());
    let row = client.query_one(&newest, &[]).await?;
    Ok(Some(row.get(0)))
}

fn newer(config: &Config, found: i32) -> SinkError {
    SinkError::Operator(format!(
        "the schema {} is of version {found}, made by a newer Tidegate; this one knows version {VERSION}: install the newer Tidegate again, or name another postgres.schema",
        config.schema
    ))
}

/// The schemas and the table of migrations. `CREATE SCHEMA IF NOT EXISTS` asks for the right to make schemas even if
/// there is nothing to make, therefore the question first.
fn housekeeping(config: &Config) -> String {
    let internal = config.internal_schema();
    let schema = |name: &str, comment: &str| {
        format!(
            "DO $$ BEGIN IF NOT EXISTS (SELECT FROM pg_namespace WHERE nspname = '{name}') THEN
                CREATE SCHEMA \"{name}\";
                COMMENT ON SCHEMA \"{name}\" IS '{comment}';
            END IF; END $$;\n"
        )
    };
    let mut sql = schema(&config.schema, "What devices sent, stored by Tidegate");
    sql += &schema(&internal, "Housekeeping of Tidegate: partitions, cursor, quarantine, migrations");
    sql += &format!(
        "CREATE TABLE \"{internal}\".migration (
            version integer PRIMARY KEY, name text NOT NULL, applied timestamptz NOT NULL DEFAULT now())"
    );
    sql
}

fn filled(sql: &str, config: &Config) -> String {
    let internal = config.internal_schema();
    sql.replace("{schema}", &format!("\"{}\"", config.schema))
        .replace("{internal}", &format!("\"{internal}\""))
        .replace("{internal_literal}", &format!("'{internal}'"))
        .replace("{lock}", &LOCK.to_string())
}
