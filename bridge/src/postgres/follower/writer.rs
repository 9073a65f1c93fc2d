//! The far side: writes what was handed over, and owns the connection.
//!
//! Minutes are written as they come. Their hours change again and again, and are held back while they are many: where
//! 100,000 devices report once a minute, an hour is then written a few times and not sixty. Each rollup has its place
//! in the cursor, moved in the transaction in which it is written.

use std::sync::Arc;
use std::time::Duration;

use metrics::Gauge;
use tidegate_broker::record::Offset;
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::Instant;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, SimpleQueryMessage, Statement};

use super::super::config::{Config, describe};
use super::super::connection::Connection;
use super::super::failure::sink_error;
use super::super::rollup::{Buckets, copy, upsert};
use super::newest::Newest;
use super::{Item, Written};
use crate::pump::SinkError;

/// No transaction begins sooner after the one before, nor before as much time has passed as that one took, unless
/// somebody waits for it: readings come first, and fewer transactions write fewer buckets again. If nothing comes for so
/// long, hours that were held back are written.
const PAUSE: Duration = Duration::from_millis(500);
/// So few hours are written together with their minutes.
const HOURS_AT_ONCE: usize = 5_000;
/// More are held back for so long,
const HOURS_PAUSE: Duration = Duration::from_secs(10);
/// unless there are more than this; about 200 bytes of memory each.
const HOURS_MAX: usize = 250_000;
/// So many entries are made good in one transaction after a crash.
const MADE_GOOD_ENTRIES: u64 = 100_000;
const DOING: &str = "adding to the rollups";
const MINUTES: &str = "readings_per_minute";
const HOURS: &str = "readings_per_hour";

/// What the far side hears from and tells to the near one.
pub(super) struct Following {
    pub(super) incoming: mpsc::Receiver<Item>,
    pub(super) told: watch::Sender<Written>,
    /// No pause before what has come.
    pub(super) hurry: Arc<Notify>,
    /// So far hours are waited for.
    pub(super) wanted: watch::Receiver<Offset>,
    pub(super) behind: Gauge,
}

#[derive(Debug)]
pub(super) struct Writer {
    connection: Connection,
    minutes: Table,
    hours: Table,
    internal: String,
    journal: i64,
    /// The cursor as the database last told or took it.
    written: Written,
    /// The hours of the readings between the two places of the cursor.
    held: Buckets,
    hours_written_at: Instant,
}

impl Writer {
    /// Connects, and brings the rollups to where the readings are: `stored`, if this journal was stored before.
    pub(super) async fn open(
        config: &Config,
        journal: i64,
        stored: Option<Offset>,
    ) -> Result<Self, SinkError> {
        let connection = Connection::open(config).await?;
        let doing = "preparing the rollups";
        let (schema, internal) = (&config.schema, config.internal_schema());
        let client = &connection.client;
        // Up to here an older version, which adds to the rollups while it stores, may have been at work.
        let begin = format!(
            "INSERT INTO \"{internal}\".rollup_cursor (journal, minutes, hours)
            SELECT journal, coalesce(\"position\", 0), coalesce(\"position\", 0) FROM \"{internal}\".cursor WHERE journal = $1
            ON CONFLICT DO NOTHING"
        );
        let begun = connection.within(doing, client.execute(&begin, &[&journal])).await?;
        if begun > 0 && stored.is_some() {
            connection.simple(doing, &format!("SELECT \"{internal}\".find_series()")).await?;
        }
        // Waits for what is left of an earlier connection to commit or give up.
        let select =
            format!("SELECT minutes, hours FROM \"{internal}\".rollup_cursor WHERE journal = $1 FOR UPDATE");
        let row = connection.within(doing, client.query_one(&select, &[&journal])).await?;
        let place = |column| Offset(u64::try_from(row.get::<_, i64>(column)).unwrap_or(0));
        let written = Written { minutes: place(0), hours: place(1) };
        let prepare = async {
            let minutes = Table::prepare(client, schema, &internal, MINUTES).await?;
            Ok((minutes, Table::prepare(client, schema, &internal, HOURS).await?))
        };
        let (minutes, hours) = connection.within(doing, prepare).await?;
        let held = Buckets::default();
        let hours_written_at = Instant::now();
        let mut writer =
            Self { connection, minutes, hours, internal, journal, written, held, hours_written_at };
        writer.make_good(stored.unwrap_or_default()).await?;
        Ok(writer)
    }

    pub(super) const fn written(&self) -> Written {
        self.written
    }

    /// Adds the stored readings of before `stored` that are not in the rollups.
    async fn make_good(&mut self, stored: Offset) -> Result<(), SinkError> {
        let Self { connection, internal, journal, written, .. } = self;
        for (unit, place) in [("minute", &mut written.minutes), ("hour", &mut written.hours)] {
            while *place < stored {
                let end = stored.min(place.plus(MADE_GOOD_ENTRIES));
                let add = format!("SELECT \"{internal}\".roll_up('{unit}', {journal}, {place}, {end})");
                connection.simple("adding readings of before to the rollups", &add).await?;
                *place = end;
            }
        }
        Ok(())
    }

    /// Writes what comes until the connection is lost.
    pub(super) async fn run(mut self, mut following: Following) -> SinkError {
        let mut begin_at = Instant::now();
        loop {
            let mut items = Vec::new();
            tokio::select! {
                item = following.incoming.recv() => match item {
                    Some(item) => items.push(item),
                    None => return SinkError::Retry("nobody stores readings".to_owned()),
                },
                Ok(()) = following.wanted.changed() => {}
                () = tokio::time::sleep(PAUSE), if !self.held.is_empty() => {}
                error = self.connection.lost() => return error,
            }
            let is_idle = items.is_empty();
            if !is_idle {
                tokio::select! {
                    () = tokio::time::sleep_until(begin_at) => {}
                    () = following.hurry.notified() => {}
                }
            }
            let began = Instant::now();
            while let Ok(item) = following.incoming.try_recv() {
                items.push(item);
            }
            let wanted = *following.wanted.borrow_and_update();
            if let Err(error) = self.write_all(items, is_idle || self.written.hours < wanted).await {
                return error;
            }
            begin_at = (began + PAUSE).max(Instant::now() + began.elapsed());
            following.told.send_replace(self.written);
            if following.incoming.is_empty() {
                following.behind.set(0.0);
            }
        }
    }

    /// Writes `items`, and the hours if they are due or `with_hours`.
    async fn write_all(&mut self, items: Vec<Item>, with_hours: bool) -> Result<(), SinkError> {
        let mut buckets = Vec::with_capacity(items.len());
        // Items give their room back when they are dropped, and that is when they are written.
        let mut rooms = Vec::with_capacity(items.len());
        let mut end = self.written.minutes;
        for item in items {
            if item.is_written {
                // Whoever wrote it has waited for everything of before.
                self.written = Written { minutes: item.end, hours: item.end };
            }
            end = item.end;
            for names in item.begun.series {
                self.minutes.newest.begin(names.clone(), item.begun.since_us);
                self.hours.newest.begin(names, item.begun.since_us);
            }
            buckets.push(item.buckets);
            rooms.push(item.room);
        }
        let minutes = Buckets::merged(buckets);
        self.held = Buckets::merged(vec![std::mem::take(&mut self.held), minutes.hours()]);
        let is_due = with_hours
            || self.held.len() <= HOURS_AT_ONCE
            || self.held.len() > HOURS_MAX
            || self.hours_written_at.elapsed() > HOURS_PAUSE;
        let hours = if is_due { std::mem::take(&mut self.held) } else { Buckets::default() };
        let to = Written { minutes: end, hours: if is_due { end } else { self.written.hours } };
        if to != self.written {
            self.write(minutes, hours, to).await?;
        }
        if is_due {
            self.hours_written_at = Instant::now();
        }
        Ok(())
    }

    /// Adds `minutes` and `hours`, and moves the cursor to `to`, all or nothing.
    async fn write(&mut self, minutes: Buckets, hours: Buckets, to: Written) -> Result<(), SinkError> {
        let minutes = self.minutes.newest.split(minutes);
        let hours = self.hours.newest.split(hours);
        if !self.attempt(&minutes, &hours, to).await? {
            self.connection.simple(DOING, "ROLLBACK").await?;
            // Each table in one statement, so that the order of all of them is the same everywhere, and nobody waits in
            // a circle.
            let together = |table: &mut Table, (new, others)| {
                table.newest.give_up();
                (Buckets::default(), Buckets::merged(vec![new, others]))
            };
            let (minutes, hours) = (together(&mut self.minutes, minutes), together(&mut self.hours, hours));
            if !self.attempt(&minutes, &hours, to).await? {
                return Err(SinkError::Retry(
                    "another appliance writes the same rollups in PostgreSQL at this moment".to_owned(),
                ));
            }
        }
        self.written = to;
        Ok(())
    }

    /// Writes it all in one transaction; `false` if somebody else is in the way, and then it has to be rolled back.
    async fn attempt(
        &self,
        minutes: &(Buckets, Buckets),
        hours: &(Buckets, Buckets),
        to: Written,
    ) -> Result<bool, SinkError> {
        self.begin(to).await?;
        for (table, (new, others)) in [(&self.minutes, minutes), (&self.hours, hours)] {
            if !(self.copy(&table.copy, new).await? && self.add(&table.add, others).await?) {
                return Ok(false);
            }
        }
        self.connection.simple(DOING, "COMMIT").await?;
        Ok(true)
    }

    async fn begin(&self, to: Written) -> Result<(), SinkError> {
        let begin = format!(
            "BEGIN; UPDATE \"{}\".rollup_cursor SET minutes = {}, hours = {}, changed = now()
            WHERE journal = {} AND minutes = {} AND hours = {}",
            self.internal, to.minutes, to.hours, self.journal, self.written.minutes, self.written.hours
        );
        let answers = self.connection.within(DOING, self.connection.client.simple_query(&begin)).await?;
        if answers.iter().any(|answer| matches!(answer, SimpleQueryMessage::CommandComplete(1))) {
            return Ok(());
        }
        Err(SinkError::Retry(format!(
            "the rollups in PostgreSQL are no longer where this appliance left them ({}): another instance on a copy of the same journal; going on from what the database says",
            describe(&self.connection.place.target)
        )))
    }

    /// Adds buckets that are new; `false` if one of them is there.
    async fn copy(&self, statement: &Statement, buckets: &Buckets) -> Result<bool, SinkError> {
        if buckets.is_empty() {
            return Ok(true);
        }
        match self.connection.copy(DOING, statement, buckets.stream()).await? {
            Ok(()) => Ok(true),
            Err(error) => self.is_in_the_way(&error),
        }
    }

    /// Adds buckets, some of which may be there; `false` if two appliances wait for each other's.
    async fn add(&self, statement: &Statement, buckets: &Buckets) -> Result<bool, SinkError> {
        if buckets.is_empty() {
            return Ok(true);
        }
        let columns = buckets.columns();
        let parameters = columns.parameters();
        let adding = self.connection.client.execute(statement, &parameters);
        match self.connection.deadline(DOING, adding).await? {
            Ok(_) => Ok(true),
            Err(error) => self.is_in_the_way(&error),
        }
    }

    /// `Ok(false)` if it is, else the error.
    fn is_in_the_way(&self, error: &tokio_postgres::Error) -> Result<bool, SinkError> {
        let ours = [SqlState::UNIQUE_VIOLATION, SqlState::T_R_DEADLOCK_DETECTED];
        if error.code().is_some_and(|code| ours.contains(code)) {
            return Ok(false);
        }
        Err(sink_error(error, DOING, &self.connection.place))
    }
}

/// What is run for one of the rollups.
#[derive(Debug)]
struct Table {
    /// Of buckets that are not there.
    copy: Statement,
    add: Statement,
    newest: Newest,
}

impl Table {
    async fn prepare(
        client: &Client,
        schema: &str,
        internal: &str,
        name: &str,
    ) -> Result<Self, tokio_postgres::Error> {
        let copy = client.prepare(&copy(schema, name)).await?;
        let add = client.prepare(&upsert(schema, internal, name)).await?;
        Ok(Self { copy, add, newest: Newest::default() })
    }
}
