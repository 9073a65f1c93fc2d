//! Storing groups of rows together with the cursor, one transaction each.
//!
//! Whether a commit that was cut off took place is read from the cursor by the next session, never guessed.

use bytes::Bytes;
use tidegate_broker::journal::JournalId;
use tidegate_broker::record::{Offset, Record};
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, SimpleQueryMessage, Statement};
use tracing::{info, warn};

use super::config::{Config, describe};
use super::connection::{Connection, PART_BYTES};
use super::copy::{COLUMNS, Rows};
use super::failure::{StoreError, sink_error, store_error, timed_out};
use super::follower::{Begun, Follower, Room};
use super::migration::{MIGRATION_TIMEOUT, is_current, migrate};
use super::rollup::Buckets;
use super::series::{self, Changed, Series};
use super::upkeep::{Upkeep, retained_since_us};
use crate::pump::SinkError;

const NOTING: &str = "noting devices and metrics";

/// The number by which rows know the journal: the same again, should the cursor's row ever be lost.
pub(super) const fn journal_key(journal: JournalId) -> i64 {
    (journal.0 as u64 >> 1) as i64
}

/// A connection that is ready to store.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) connection: Connection,
    pub(super) follower: Follower,
    statements: Statements,
    pub(super) config: Config,
    journal: i64,
    /// The cursor as the database last told or took it.
    position: Option<Offset>,
    series: Series,
    pub(super) upkeep: Upkeep,
}

impl Session {
    /// Connects, brings the schema up to date, and reads the cursor.
    pub(super) async fn open(config: &Config, journal: JournalId) -> Result<Self, SinkError> {
        let mut connection = Connection::open(config).await?;
        let (statements, position) = prepare(&mut connection, config, journal).await?;
        let follower = Follower::open(config, journal_key(journal), position).await?;
        let read = series::read(&config.internal_schema());
        let rows =
            connection.within("reading devices and metrics", connection.client.query(&read, &[])).await?;
        let series = Series::from_rows(rows.iter().map(|row| (row.get(0), row.get(1), row.get(2))));
        info!(at = %describe(&connection.place.target), schema = %config.schema, position = ?position, "connected to PostgreSQL");
        let mut session = Self {
            connection,
            follower,
            statements,
            config: config.clone(),
            journal: journal_key(journal),
            position,
            series,
            upkeep: Upkeep::default(),
        };
        session.maintain().await;
        Ok(session)
    }

    /// Every entry before it is stored; `None` if this journal was never stored here.
    pub(super) const fn position(&self) -> Option<Offset> {
        self.position
    }

    /// Returns when a connection is lost; to be asked once.
    pub(super) async fn lost(&mut self) -> SinkError {
        tokio::select! {
            error = self.connection.lost() => error,
            error = self.follower.lost() => error,
        }
    }

    /// Waits for the rollups. What cannot be written now is made good by whoever connects next.
    pub(super) async fn close(&mut self) {
        if let Err(error) = self.follower.settled().await {
            tracing::debug!("the rollups are left behind: {error}");
        }
    }

    /// Stores `rows` and moves the cursor to `end`, both or neither.
    pub(super) async fn store(&mut self, mut rows: Rows, end: Offset) -> Result<(), StoreError> {
        self.make_partitions_for(&rows.days).await;
        let minutes = std::mem::take(&mut rows.minutes);
        let changed = self.series.changed(&minutes);
        // Rollups that are further than the readings have some of these already: somebody has set the cursor back.
        let is_repeated = self.position.unwrap_or_default() < self.follower.end();
        let stored = if is_repeated {
            Err(StoreError::Duplicate)
        } else {
            self.store_once(&rows.stream, minutes, &changed, end).await
        };
        match stored {
            Err(StoreError::Duplicate) => self.store_missing(rows.stream, &changed, end).await?,
            stored => stored?,
        }
        self.series.learn(changed);
        self.position = Some(end);
        Ok(())
    }

    async fn store_once(
        &mut self,
        stream: &Bytes,
        minutes: Buckets,
        changed: &Changed,
        end: Offset,
    ) -> Result<(), StoreError> {
        let room = self.follower.room(&minutes).await?;
        self.begin(end).await?;
        if !stream.is_empty() {
            let copied = self.copy(&self.statements.copy, stream.clone()).await;
            self.or_rollback(copied).await?;
        }
        let are_new = self.note_series(changed).await?;
        self.connection.simple("storing readings", "COMMIT").await?;
        let begun = if are_new {
            let series = changed.names().map(Box::from).collect();
            Begun { series, since_us: retained_since_us(&self.config) }
        } else {
            Begun::default()
        };
        Ok(self.follower.push(minutes, begun, end, room).await?)
    }

    /// Returns whether all of them are new. They are written in their order, in one statement, so that two appliances do
    /// not wait for each other in a circle.
    async fn note_series(&mut self, changed: &Changed) -> Result<bool, SinkError> {
        if changed.is_empty() {
            return Ok(false);
        }
        if changed.are_unknown() && self.series.is_complete() && self.copy_series(changed).await? {
            return Ok(true);
        }
        let columns = changed.columns();
        let parameters = columns.parameters();
        let noted = self.connection.client.execute(&self.statements.series, &parameters);
        self.connection.within(NOTING, noted).await?;
        Ok(false)
    }

    /// Writes series of which none is known; returns whether they were new. It costs the server half as much as looking
    /// for each of them.
    async fn copy_series(&mut self, changed: &Changed) -> Result<bool, SinkError> {
        self.connection.simple(NOTING, "SAVEPOINT series").await?;
        let stream = std::iter::once(changed.stream());
        match self.connection.copy(NOTING, &self.statements.copy_series, stream).await? {
            Ok(()) => Ok(true),
            Err(error) if error.code() == Some(&SqlState::UNIQUE_VIOLATION) => {
                self.connection.simple(NOTING, "ROLLBACK TO SAVEPOINT series").await?;
                self.series.doubt();
                Ok(false)
            }
            Err(error) => Err(sink_error(&error, NOTING, &self.connection.place)),
        }
    }

    /// Like [`Session::store_once`] for rows of which some are there already: somebody has set the cursor back.
    async fn store_missing(&mut self, rows: Bytes, changed: &Changed, end: Offset) -> Result<(), StoreError> {
        warn!("some of the readings up to {end} are stored already; storing the others");
        // The rollups move with this transaction, from where they are.
        self.follower.settled().await?;
        self.begin(end).await?;
        let (schema, internal, columns) = (&self.config.schema, self.config.internal_schema(), columns());
        let make = format!(
            "CREATE TEMP TABLE incoming (LIKE \"{schema}\".readings) ON COMMIT DROP;
             CREATE TEMP TABLE missing (LIKE \"{schema}\".readings) ON COMMIT DROP"
        );
        self.connection.simple("storing readings", &make).await?;
        // A group without rows has not even the head of a stream.
        if !rows.is_empty() {
            let copy = format!("COPY pg_temp.incoming ({columns}) FROM STDIN (FORMAT binary)");
            let prepared = self.connection.client.prepare(&copy);
            let copy = self.connection.within("storing readings", prepared).await?;
            let copied = self.copy(&copy, rows).await;
            self.or_rollback(copied).await?;
        }
        let insert = format!(
            "WITH stored AS (INSERT INTO \"{schema}\".readings ({columns})
                SELECT {columns} FROM pg_temp.incoming ON CONFLICT DO NOTHING RETURNING {columns})
             INSERT INTO pg_temp.missing ({columns}) SELECT {columns} FROM stored;
             SELECT \"{internal}\".add_rollups('pg_temp.missing');
             UPDATE \"{internal}\".rollup_cursor SET minutes = greatest(minutes, {end}), hours = greatest(hours, {end}), changed = now()
                WHERE journal = {}",
            self.journal
        );
        let inserted = self
            .connection
            .deadline("storing readings", self.connection.client.batch_execute(&insert))
            .await?;
        self.or_rollback(inserted.map_err(|error| store_error(&error, &self.connection.place))).await?;
        self.note_series(changed).await?;
        self.connection.simple("storing readings", "COMMIT").await?;
        Ok(self.follower.passed(end).await?)
    }

    /// Ends the transaction if the server has refused the rows, so that the connection can go on.
    async fn or_rollback(&self, outcome: Result<(), StoreError>) -> Result<(), StoreError> {
        match &outcome {
            Ok(()) | Err(StoreError::Sink(_)) => {}
            Err(StoreError::Refused { .. } | StoreError::Duplicate) => {
                self.connection.simple("giving a group up", "ROLLBACK").await?;
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
        self.connection
            .within("putting a refused record aside", self.connection.client.execute(&sql, &parameters))
            .await?;
        self.connection.simple("putting a refused record aside", "COMMIT").await?;
        self.position = Some(end);
        if self.follower.end() < end {
            self.follower.push(Buckets::default(), Begun::default(), end, Room::default()).await?;
        }
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
        let messages =
            self.connection.within("moving the cursor", self.connection.client.simple_query(&sql)).await?;
        let moved = messages.iter().any(|message| matches!(message, SimpleQueryMessage::CommandComplete(1)));
        if moved {
            return Ok(());
        }
        Err(SinkError::Retry(format!(
            "the cursor in PostgreSQL is no longer where this appliance left it ({}): another instance on a copy of the same journal, or a commit whose answer was lost; going on from what the database says",
            describe(&self.connection.place.target)
        )))
    }

    async fn copy(&self, copy: &Statement, mut rows: Bytes) -> Result<(), StoreError> {
        let parts =
            std::iter::from_fn(move || (!rows.is_empty()).then(|| rows.split_to(rows.len().min(PART_BYTES))));
        let copied = self.connection.copy("storing readings", copy, parts).await?;
        copied.map_err(|error| store_error(&error, &self.connection.place))
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
    copy_series: Statement,
    series: Statement,
}

impl Statements {
    async fn prepare(client: &Client, config: &Config) -> Result<Self, tokio_postgres::Error> {
        let copy = format!("COPY \"{}\".readings ({}) FROM STDIN (FORMAT binary)", config.schema, columns());
        let internal = config.internal_schema();
        Ok(Self {
            copy: client.prepare(&copy).await?,
            copy_series: client.prepare(&series::copy(&internal)).await?,
            series: client.prepare(&series::upsert(&internal)).await?,
        })
    }
}

/// Checks, schema, cursor and the statements.
async fn prepare(
    connection: &mut Connection,
    config: &Config,
    journal: JournalId,
) -> Result<(Statements, Option<Offset>), SinkError> {
    let doing = "preparing the session";
    check_server(connection).await?;
    let is_current = connection.within(doing, is_current(&connection.client, config)).await?;
    // A role without the right to make tables may store readings, once somebody else has made them.
    if !is_current {
        let migrating = migrate(&mut connection.client, config, &connection.place);
        let migrated = tokio::time::timeout(MIGRATION_TIMEOUT, migrating).await;
        migrated.map_err(|_| timed_out("making its tables", MIGRATION_TIMEOUT, &connection.place))??;
    }
    let position = connection.within(doing, cursor(&connection.client, config, journal)).await?;
    let statements = connection.within(doing, Statements::prepare(&connection.client, config)).await?;
    Ok((statements, position))
}

async fn check_server(connection: &Connection) -> Result<(), SinkError> {
    let ask = "SELECT current_setting('server_encoding'), pg_is_in_recovery(), current_setting('server_version_num')::int";
    let target = &connection.place.target;
    let row = connection.within("preparing the session", connection.client.query_one(ask, &[])).await?;
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
