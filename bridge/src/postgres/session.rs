//! One connection: made ready, then storing groups of rows together with the cursor, one transaction each.
//!
//! Nothing waits for ever: every exchange has a deadline, after which the connection is given up. Whether a commit
//! that was cut off took place is read from the cursor by the next session, never guessed.

use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use futures_util::SinkExt;
use tidegate_broker::journal::JournalId;
use tidegate_broker::record::{Offset, Record};
use tokio::task::JoinHandle;
use tokio_postgres::{Client, CopyInSink, SimpleQueryMessage, Statement};
use tracing::{info, warn};

use super::config::{Config, describe};
use super::copy::{COLUMNS, Rows};
use super::failure::{StoreError, sink_error, store_error, timed_out};
use super::migration::{MIGRATION_TIMEOUT, is_current, migrate};
use super::rollup::{Buckets, upsert};
use super::tls;
use super::upkeep::Upkeep;
use crate::pump::SinkError;

/// `COPY` is sent in parts of this size, so that the connection never holds a second copy of a whole group.
const PART_BYTES: usize = 256 << 10;
/// What is added to the server's own timeout before the client gives up.
const GRACE: Duration = Duration::from_secs(5);
/// The number by which rows know the journal: the same again, should the cursor's row ever be lost.
pub(super) const fn journal_key(journal: JournalId) -> i64 {
    (journal.0 as u64 >> 1) as i64
}

/// A connection that is ready to store.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) client: Client,
    connection: JoinHandle<()>,
    statements: Statements,
    pub(super) config: Config,
    pub(super) target: tokio_postgres::Config,
    journal: i64,
    /// The cursor as the database last told or took it.
    position: Option<Offset>,
    pub(super) upkeep: Upkeep,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl Session {
    /// Connects, brings the schema up to date, and reads the cursor.
    pub(super) async fn open(config: &Config, journal: JournalId) -> Result<Self, SinkError> {
        let mut target = config.target().map_err(SinkError::Operator)?;
        if let Some(password) = config.read_password().map_err(SinkError::Operator)? {
            target.password(password);
        }
        let tls = config.tls().and_then(|(_, verify, file)| tls::connector(verify, file.as_deref()));
        // The library's own timeout counts for each address alone, and not for what follows the connect.
        let (wait, connecting) = (config.connect_timeout, target.connect(tls.map_err(SinkError::Operator)?));
        let (client, connection) = match tokio::time::timeout(wait, connecting).await {
            Err(_) => return Err(timed_out("connecting", wait, &target)),
            Ok(connected) => connected.map_err(|error| sink_error(&error, "the connection", &target))?,
        };
        let connection = tokio::spawn(async move {
            if let Err(error) = connection.await {
                // The statement under way reports it as well, with what to do.
                tracing::debug!(%error, "the PostgreSQL connection ended");
            }
        });
        // From here on the connection task ends with the guard.
        let guard = AbortOnDrop(Some(connection));
        let (client, statements, position) = prepare(client, config, &target, journal).await?;
        info!(at = %describe(&target), schema = %config.schema, position = ?position, "connected to PostgreSQL");
        let mut session = Self {
            client,
            connection: guard.release(),
            statements,
            config: config.clone(),
            target,
            journal: journal_key(journal),
            position,
            upkeep: Upkeep::default(),
        };
        session.maintain().await;
        Ok(session)
    }

    /// Every entry before it is stored; `None` if this journal was never stored here.
    pub(super) const fn position(&self) -> Option<Offset> {
        self.position
    }

    /// Returns when the connection is lost.
    pub(super) async fn lost(&mut self) -> SinkError {
        // A task that was aborted or has panicked is gone as well.
        let _ = (&mut self.connection).await;
        SinkError::Retry(format!("the connection to PostgreSQL was lost ({})", describe(&self.target)))
    }

    /// Stores `rows` and moves the cursor to `end`, both or neither.
    pub(super) async fn store(&mut self, rows: Rows, end: Offset) -> Result<(), StoreError> {
        self.make_partitions_for(&rows.days).await;
        let stored = match self.store_once(&rows, end).await {
            Err(StoreError::Duplicate) => self.store_missing(rows.stream, end).await,
            stored => stored,
        };
        if stored.is_ok() {
            self.position = Some(end);
        }
        stored
    }

    async fn store_once(&self, rows: &Rows, end: Offset) -> Result<(), StoreError> {
        self.begin(end).await?;
        if !rows.stream.is_empty() {
            let copied = self.copy(&self.statements.copy, rows.stream.clone()).await;
            self.or_rollback(copied).await?;
        }
        if !rows.minutes.is_empty() {
            let added = self.add_rollups(&rows.minutes).await;
            self.or_rollback(added).await?;
        }
        Ok(self.simple("storing readings", "COMMIT").await?)
    }

    async fn add_rollups(&self, minutes: &Buckets) -> Result<(), StoreError> {
        let hours = minutes.hours();
        let (minutes, hours) = (minutes.columns(), hours.columns());
        let (minutes, hours) = (minutes.parameters(), hours.parameters());
        // One after the other on the wire, without waiting in between. If the first fails, the second is told only that
        // the transaction has failed, so both answers are waited for and the first error counts.
        let added = async {
            let (per_minute, per_hour) = tokio::join!(
                self.client.execute(&self.statements.per_minute, &minutes),
                self.client.execute(&self.statements.per_hour, &hours),
            );
            per_minute.and(per_hour)
        };
        let added = self.deadline("adding up readings", added).await?;
        added.map(|_| ()).map_err(|error| store_error(&error, &self.target))
    }

    /// Like [`Session::store_once`] for rows of which some are there already: somebody has set the cursor back.
    async fn store_missing(&self, rows: Bytes, end: Offset) -> Result<(), StoreError> {
        warn!("some of the readings up to {end} are stored already; storing the others");
        self.begin(end).await?;
        let (schema, columns) = (&self.config.schema, columns());
        let make = format!(
            "CREATE TEMP TABLE incoming (LIKE \"{schema}\".readings) ON COMMIT DROP;
             CREATE TEMP TABLE missing (LIKE \"{schema}\".readings) ON COMMIT DROP"
        );
        self.simple("storing readings", &make).await?;
        let copy = format!("COPY pg_temp.incoming ({columns}) FROM STDIN (FORMAT binary)");
        let copy = self.within("storing readings", self.client.prepare(&copy)).await?;
        let copied = self.copy(&copy, rows).await;
        self.or_rollback(copied).await?;
        let insert = format!(
            "WITH stored AS (INSERT INTO \"{schema}\".readings ({columns})
                SELECT {columns} FROM pg_temp.incoming ON CONFLICT DO NOTHING RETURNING {columns})
             INSERT INTO pg_temp.missing ({columns}) SELECT {columns} FROM stored;
             SELECT \"{}\".add_rollups('pg_temp.missing')",
            self.config.internal_schema()
        );
        let inserted = self.deadline("storing readings", self.client.batch_execute(&insert)).await?;
        self.or_rollback(inserted.map_err(|error| store_error(&error, &self.target))).await?;
        Ok(self.simple("storing readings", "COMMIT").await?)
    }

    /// Ends the transaction if the server has refused the rows, so that the connection can go on.
    async fn or_rollback(&self, outcome: Result<(), StoreError>) -> Result<(), StoreError> {
        match &outcome {
            Ok(()) | Err(StoreError::Sink(_)) => {}
            Err(StoreError::Refused { .. } | StoreError::Duplicate) => {
                self.simple("giving a group up", "ROLLBACK").await?;
            }
        }
        outcome
    }

    /// Puts a record that the server refuses aside, and moves the cursor to `end`.
    pub(super) async fn quarantine(
        &mut self,
        offset: Offset,
        record: &Record<'_>,
        reason: &str,
        end: Offset,
    ) -> Result<(), SinkError> {
        self.begin(end).await?;
        let sql = format!(
            "INSERT INTO \"{}\".quarantine (journal, \"position\", received, topic, client, payload, reason) \
             VALUES ($1, $2, to_timestamp($3::float8 / 1000), $4, $5, $6, $7) ON CONFLICT DO NOTHING",
            self.config.internal_schema()
        );
        let clean = |text: &str| text.replace('\0', "\u{fffd}");
        let position = i64::try_from(offset.0).expect("a journal never reaches 2^63 entries");
        let (topic, client, reason) = (clean(record.topic.as_str()), clean(record.client), clean(reason));
        let received_ms = record.time.0 as f64;
        let parameters: [&(dyn tokio_postgres::types::ToSql + Sync); 7] =
            [&self.journal, &position, &received_ms, &topic, &client, &record.payload, &reason];
        self.within("putting a refused record aside", self.client.execute(&sql, &parameters)).await?;
        self.simple("putting a refused record aside", "COMMIT").await?;
        self.position = Some(end);
        Ok(())
    }

    /// Begins the transaction that moves the cursor from where it is to `end`. The lock on its row keeps another
    /// instance, or what is left of an earlier connection, from storing the same records.
    async fn begin(&self, end: Offset) -> Result<(), SinkError> {
        let expected = match self.position {
            Some(position) => format!("= {position}"),
            None => "IS NULL".to_owned(),
        };
        let sql = format!(
            "BEGIN; UPDATE \"{}\".cursor SET \"position\" = {end}, changed = now() \
             WHERE journal = {} AND \"position\" {expected}",
            self.config.internal_schema(),
            self.journal
        );
        let messages = self.within("moving the cursor", self.client.simple_query(&sql)).await?;
        let moved = messages.iter().any(|message| matches!(message, SimpleQueryMessage::CommandComplete(1)));
        if moved {
            return Ok(());
        }
        Err(SinkError::Retry(format!(
            "the cursor in PostgreSQL is no longer where this appliance left it ({}): another instance on a copy of the same journal, or a commit whose answer was lost; going on from what the database says",
            describe(&self.target)
        )))
    }

    async fn copy(&self, copy: &Statement, mut rows: Bytes) -> Result<(), StoreError> {
        let doing = "storing readings";
        let stream = self.deadline(doing, self.client.copy_in(copy)).await?;
        let stream: CopyInSink<Bytes> = stream.map_err(|error| store_error(&error, &self.target))?;
        let mut stream = pin!(stream);
        while !rows.is_empty() {
            let part = rows.split_to(rows.len().min(PART_BYTES));
            // An error here only says that the server has answered already; `finish` tells what.
            if self.deadline(doing, stream.send(part)).await?.is_err() {
                break;
            }
        }
        let finished = self.deadline(doing, stream.finish()).await?;
        finished.map(|_| ()).map_err(|error| store_error(&error, &self.target))
    }

    pub(super) async fn simple(&self, doing: &str, sql: &str) -> Result<(), SinkError> {
        self.within(doing, self.client.batch_execute(sql)).await
    }

    pub(super) async fn within<T>(
        &self,
        doing: &str,
        exchange: impl Future<Output = Result<T, tokio_postgres::Error>>,
    ) -> Result<T, SinkError> {
        self.deadline(doing, exchange).await?.map_err(|error| sink_error(&error, doing, &self.target))
    }

    async fn deadline<T>(&self, doing: &str, exchange: impl Future<Output = T>) -> Result<T, SinkError> {
        let wait = self.config.statement_timeout + GRACE;
        tokio::time::timeout(wait, exchange).await.map_err(|_| timed_out(doing, wait, &self.target))
    }
}

/// Ends the connection's task unless it is released.
struct AbortOnDrop(Option<JoinHandle<()>>);

impl AbortOnDrop {
    fn release(mut self) -> JoinHandle<()> {
        self.0.take().expect("released once")
    }
}

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        if let Some(task) = &self.0 {
            task.abort();
        }
    }
}

fn columns() -> String {
    let quoted: Vec<String> = COLUMNS.iter().map(|column| format!("\"{column}\"")).collect();
    quoted.join(", ")
}

/// What is run for every group.
#[derive(Debug)]
struct Statements {
    copy: Statement,
    per_minute: Statement,
    per_hour: Statement,
}

impl Statements {
    async fn prepare(client: &Client, config: &Config) -> Result<Self, tokio_postgres::Error> {
        let (schema, internal) = (&config.schema, config.internal_schema());
        let copy = format!("COPY \"{schema}\".readings ({}) FROM STDIN (FORMAT binary)", columns());
        let rollup = |table| upsert(schema, &internal, table);
        Ok(Self {
            copy: client.prepare(&copy).await?,
            per_minute: client.prepare(&rollup("readings_per_minute")).await?,
            per_hour: client.prepare(&rollup("readings_per_hour")).await?,
        })
    }
}

/// Settings, checks, schema, cursor and the statements.
async fn prepare(
    mut client: Client,
    config: &Config,
    target: &tokio_postgres::Config,
    journal: JournalId,
) -> Result<(Client, Statements, Option<Offset>), SinkError> {
    let doing = "preparing the session";
    let failed = |error: tokio_postgres::Error| sink_error(&error, doing, target);
    let wait = config.statement_timeout + GRACE;
    let late = |_| timed_out(doing, wait, target);
    let checked = async {
        client.batch_execute(&settings(config)).await.map_err(failed)?;
        check_server(&client, target).await?;
        is_current(&client, config).await.map_err(failed)
    };
    // A role without the right to make tables may store readings, once somebody else has made them.
    if !tokio::time::timeout(wait, checked).await.map_err(late)?? {
        let migrated = tokio::time::timeout(MIGRATION_TIMEOUT, migrate(&mut client, config, target)).await;
        migrated.map_err(|_| timed_out("making its tables", MIGRATION_TIMEOUT, target))??;
    }
    let ready = async {
        let position = cursor(&client, config, journal).await.map_err(failed)?;
        let statements = Statements::prepare(&client, config).await.map_err(failed)?;
        Ok((statements, position))
    };
    let (statements, position) = tokio::time::timeout(wait, ready).await.map_err(late)??;
    Ok((client, statements, position))
}

/// A server that has lost us must not hold our lock for long; and a commit that is confirmed must be on its disk,
/// since the journal may be trimmed then.
fn settings(config: &Config) -> String {
    let timeout_ms = config.statement_timeout.as_millis();
    format!(
        "SET statement_timeout = {timeout_ms};
         SET idle_in_transaction_session_timeout = {timeout_ms};
         SET tcp_keepalives_idle = 10; SET tcp_keepalives_interval = 5; SET tcp_keepalives_count = 3;
         SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'"
    )
}

async fn check_server(client: &Client, target: &tokio_postgres::Config) -> Result<(), SinkError> {
    let failed = |error: tokio_postgres::Error| sink_error(&error, "preparing the session", target);
    let row = client
        .query_one(
            "SELECT current_setting('server_encoding'), pg_is_in_recovery(), current_setting('server_version_num')::int",
            &[],
        )
        .await
        .map_err(failed)?;
    let (encoding, is_standby, version): (String, bool, i32) = (row.get(0), row.get(1), row.get(2));
    if encoding != "UTF8" {
        return Err(SinkError::Operator(format!(
            "the database is encoded in {encoding}, which cannot hold every text ({}): create one with ENCODING 'UTF8' TEMPLATE template0",
            describe(target)
        )));
    }
    if version < 120_000 {
        return Err(SinkError::Operator(format!(
            "PostgreSQL {} is too old ({}): use 12 or newer",
            version / 10_000,
            describe(target)
        )));
    }
    if is_standby {
        return Err(SinkError::Retry(format!(
            "PostgreSQL is a standby and takes no writes ({}): name the primary in postgres.url",
            describe(target)
        )));
    }
    Ok(())
}

/// The cursor, made if there is none. `FOR UPDATE` waits for what is left of an earlier connection to commit or give up.
async fn cursor(
    client: &Client,
    config: &Config,
    journal: JournalId,
) -> Result<Option<Offset>, tokio_postgres::Error> {
    let table = format!("\"{}\".cursor", config.internal_schema());
    let key = journal_key(journal);
    let uuid = format!("{:032x}", journal.0);
    let insert = format!(
        "INSERT INTO {table} (journal, journal_id) VALUES ($1, $2::text::uuid) ON CONFLICT DO NOTHING"
    );
    client.execute(&insert, &[&key, &uuid]).await?;
    let select = format!("SELECT \"position\" FROM {table} WHERE journal = $1 FOR UPDATE");
    let position: Option<i64> = client.query_one(&select, &[&key]).await?.get(0);
    Ok(position.map(|position| Offset(u64::try_from(position).unwrap_or(0))))
}
