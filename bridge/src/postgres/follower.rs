//! The rollups follow the readings: on a connection of their own, a moment behind, exactly once.
//!
//! What always holds: `rollup_cursor` moves in the transaction of the rollups, and every reading of before it is in them.
//! Sums are handed over once their readings are committed, and what was handed over while a transaction ran goes into
//! the next one together, so that a bucket is written less often than readings come. Sums that were lost on the way, in
//! a crash or with a connection, are made anew from the readings between the two cursors, before anything else is
//! stored.
//!
//! At most [`BUCKETS_MAX`] buckets wait; with more of them, readings wait.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use metrics::{Gauge, gauge};
use tidegate_broker::record::Offset;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, SimpleQueryMessage, Statement};

use super::config::{Config, describe};
use super::connection::Connection;
use super::failure::sink_error;
use super::rollup::{Buckets, insert, upsert};
use crate::pump::SinkError;

/// About 200 bytes of memory each.
const BUCKETS_MAX: u32 = 250_000;
/// How many may be waiting to be merged; with more of them, readings wait.
const ITEMS_MAX: usize = 4_096;
/// No transaction begins sooner after the one before, unless somebody waits for it.
const PAUSE: Duration = Duration::from_millis(500);
/// With more series than this all of them are forgotten.
const SERIES_MAX: usize = 1_000_000;
const MINUTES: &str = "readings_per_minute";
const DOING: &str = "adding to the rollups";
/// So many entries are made good in one transaction after a crash.
const MADE_GOOD_ENTRIES: u64 = 100_000;

/// The near side: takes sums, and says how far they are written.
#[derive(Debug)]
pub(super) struct Follower {
    items: mpsc::Sender<Item>,
    room: Arc<Semaphore>,
    hurry: Arc<Notify>,
    /// Every reading of before it is in the rollups, as the database last said.
    written: watch::Receiver<Offset>,
    /// Every reading of before it is in the rollups or handed over.
    end: Offset,
    behind: Gauge,
    task: JoinHandle<SinkError>,
    /// The task was seen to have ended.
    is_over: bool,
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The sums of a stretch of readings.
#[derive(Debug)]
struct Item {
    buckets: Buckets,
    end: Offset,
    /// Somebody else has moved the cursor there.
    is_written: bool,
    _room: Option<OwnedSemaphorePermit>,
}

/// Room for sums that are to come; by default for none.
#[derive(Debug, Default)]
pub(super) struct Room(Option<OwnedSemaphorePermit>);

impl Follower {
    /// Connects, and brings the rollups to where the readings are: `stored`, if this journal was stored before.
    pub(super) async fn open(
        config: &Config,
        journal: i64,
        stored: Option<Offset>,
    ) -> Result<Self, SinkError> {
        let connection = Connection::open(config).await?;
        let mut writer = Writer::open(connection, config, journal, stored.is_some()).await?;
        let stored = stored.unwrap_or_default();
        writer.make_good(stored).await?;
        let (items, incoming) = mpsc::channel(ITEMS_MAX);
        let (told, written) = watch::channel(writer.position);
        let (hurry, behind) = (Arc::new(Notify::new()), gauge!("tidegate_postgres_rollup_lag_entries"));
        behind.set(0.0);
        let end = writer.position.max(stored);
        let following = Following { incoming, told, hurry: Arc::clone(&hurry), behind: behind.clone() };
        let task = tokio::spawn(writer.run(following));
        let room = Arc::new(Semaphore::new(BUCKETS_MAX as usize));
        Ok(Self { items, room, hurry, written, end, behind, task, is_over: false })
    }

    /// Every reading of before it is in the rollups, or will be.
    pub(super) const fn end(&self) -> Offset {
        self.end
    }

    /// Waits until there is room for `buckets`.
    pub(super) async fn room(&mut self, buckets: &Buckets) -> Result<Room, SinkError> {
        let count = u32::try_from(buckets.len()).unwrap_or(BUCKETS_MAX).min(BUCKETS_MAX);
        if count == 0 {
            return Ok(Room::default());
        }
        if self.room.available_permits() < count as usize {
            self.hurry.notify_one();
        }
        let room = Arc::clone(&self.room);
        tokio::select! {
            permit = room.acquire_many_owned(count) => {
                Ok(Room(Some(permit.expect("the semaphore is never closed"))))
            }
            error = self.lost() => Err(error),
        }
    }

    /// Hands over the sums of the committed readings from [`Self::end`] to `end`.
    pub(super) async fn push(
        &mut self,
        mut buckets: Buckets,
        end: Offset,
        room: Room,
    ) -> Result<(), SinkError> {
        buckets.retain_numbers();
        self.hand_over(Item { buckets, end, is_written: false, _room: room.0 }).await
    }

    /// The transaction that stored readings has moved the cursor to `end`, after [`Self::settled`].
    pub(super) async fn passed(&mut self, end: Offset) -> Result<(), SinkError> {
        if end <= self.end {
            return Ok(());
        }
        self.hand_over(Item { buckets: Buckets::default(), end, is_written: true, _room: None }).await
    }

    async fn hand_over(&mut self, item: Item) -> Result<(), SinkError> {
        self.end = item.end;
        #[expect(clippy::cast_precision_loss, reason = "for a gauge")]
        self.behind.set(item.end.0.saturating_sub(self.written.borrow().0) as f64);
        if self.items.send(item).await.is_err() {
            return Err(self.lost().await);
        }
        Ok(())
    }

    /// Waits until everything handed over is written.
    pub(super) async fn settled(&mut self) -> Result<(), SinkError> {
        let end = self.end;
        if *self.written.borrow() >= end {
            return Ok(());
        }
        self.hurry.notify_one();
        let is_written = self.written.wait_for(|written| *written >= end).await.is_ok();
        if is_written { Ok(()) } else { Err(self.lost().await) }
    }

    /// Returns when the connection is lost or the rollups cannot be written.
    pub(super) async fn lost(&mut self) -> SinkError {
        if self.is_over {
            return SinkError::Retry("the rollups are not written any more, see above".to_owned());
        }
        let ended = (&mut self.task).await;
        self.is_over = true;
        ended.unwrap_or_else(|error| SinkError::Retry(format!("what writes the rollups has ended: {error}")))
    }
}

/// What the far side hears from and tells to the near one.
struct Following {
    incoming: mpsc::Receiver<Item>,
    told: watch::Sender<Offset>,
    hurry: Arc<Notify>,
    behind: Gauge,
}

/// The far side: owns the connection.
#[derive(Debug)]
struct Writer {
    connection: Connection,
    statements: Statements,
    newest: Newest,
    internal: String,
    journal: i64,
    /// The rollups' cursor as the database last told or took it.
    position: Offset,
}

impl Writer {
    async fn open(
        connection: Connection,
        config: &Config,
        journal: i64,
        is_stored: bool,
    ) -> Result<Self, SinkError> {
        let doing = "preparing the rollups";
        let (schema, internal) = (&config.schema, config.internal_schema());
        let client = &connection.client;
        // Up to here an older version, which adds to the rollups while it stores, may have been at work.
        let begin = format!(
            "INSERT INTO \"{internal}\".rollup_cursor (journal, \"position\")
            SELECT journal, coalesce(\"position\", 0) FROM \"{internal}\".cursor WHERE journal = $1
            ON CONFLICT DO NOTHING"
        );
        let begun = connection.within(doing, client.execute(&begin, &[&journal])).await?;
        if begun > 0 && is_stored {
            connection.simple(doing, &format!("SELECT \"{internal}\".find_series()")).await?;
        }
        // Waits for what is left of an earlier connection to commit or give up.
        let select =
            format!("SELECT \"position\" FROM \"{internal}\".rollup_cursor WHERE journal = $1 FOR UPDATE");
        let position: i64 = connection.within(doing, client.query_one(&select, &[&journal])).await?.get(0);
        let statements = connection.within(doing, Statements::prepare(client, schema, &internal)).await?;
        let position = Offset(u64::try_from(position).unwrap_or(0));
        Ok(Self { connection, statements, newest: Newest::default(), internal, journal, position })
    }

    /// Adds the stored readings of before `stored` that are not in the rollups.
    async fn make_good(&mut self, stored: Offset) -> Result<(), SinkError> {
        while self.position < stored {
            let end = stored.min(self.position.plus(MADE_GOOD_ENTRIES));
            let add =
                format!("SELECT \"{}\".roll_up({}, {}, {end})", self.internal, self.journal, self.position);
            self.connection.simple("adding readings of before to the rollups", &add).await?;
            self.position = end;
        }
        Ok(())
    }

    async fn run(mut self, mut following: Following) -> SinkError {
        let mut begin_at = Instant::now();
        loop {
            let first = tokio::select! {
                item = following.incoming.recv() => item,
                error = self.connection.lost() => return error,
            };
            let Some(first) = first else { return SinkError::Retry("nobody stores readings".to_owned()) };
            tokio::select! {
                () = tokio::time::sleep_until(begin_at) => {}
                () = following.hurry.notified() => {}
            }
            begin_at = Instant::now() + PAUSE;
            let mut items = vec![first];
            while let Ok(item) = following.incoming.try_recv() {
                items.push(item);
            }
            if let Err(error) = self.write_all(&mut items).await {
                return error;
            }
            following.told.send_replace(self.position);
            if following.incoming.is_empty() {
                following.behind.set(0.0);
            }
        }
    }

    async fn write_all(&mut self, items: &mut [Item]) -> Result<(), SinkError> {
        let mut buckets = Vec::with_capacity(items.len());
        let mut end = self.position;
        for item in items {
            if item.is_written {
                self.position = item.end;
            }
            end = item.end;
            buckets.push(std::mem::take(&mut item.buckets));
        }
        if end > self.position {
            self.write(Buckets::merged(buckets), end).await?;
        }
        Ok(())
    }

    /// Adds `minutes`, and moves the cursor to `end`, both or neither.
    async fn write(&mut self, minutes: Buckets, end: Offset) -> Result<(), SinkError> {
        let hours = minutes.hours();
        let (new, others) = self.newest.split(minutes);
        if !self.attempt(&new, &others, &hours, end).await? {
            self.connection.simple(DOING, "ROLLBACK").await?;
            self.newest.give_up();
            // In one statement, so that the order of all of them is the same everywhere, and nobody waits in a circle.
            let all = Buckets::merged(vec![new, others]);
            if !self.attempt(&Buckets::default(), &all, &hours, end).await? {
                return Err(SinkError::Retry(
                    "another appliance writes the same rollups in PostgreSQL at this moment".to_owned(),
                ));
            }
        }
        self.position = end;
        Ok(())
    }

    /// Writes it all in one transaction; `false` if somebody else is in the way, and then it has to be rolled back.
    async fn attempt(
        &self,
        new: &Buckets,
        others: &Buckets,
        hours: &Buckets,
        end: Offset,
    ) -> Result<bool, SinkError> {
        self.begin(end).await?;
        let Statements { new_minutes, per_minute, per_hour } = &self.statements;
        for (statement, buckets) in [(new_minutes, new), (per_minute, others), (per_hour, hours)] {
            if !self.add(statement, buckets).await? {
                return Ok(false);
            }
        }
        self.connection.simple(DOING, "COMMIT").await?;
        Ok(true)
    }

    async fn begin(&self, end: Offset) -> Result<(), SinkError> {
        let begin = format!(
            "BEGIN; UPDATE \"{}\".rollup_cursor SET \"position\" = {end}, changed = now()
            WHERE journal = {} AND \"position\" = {}",
            self.internal, self.journal, self.position
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

    /// `false` if a bucket that was to be new is there, or two appliances wait for each other's.
    async fn add(&self, statement: &Statement, buckets: &Buckets) -> Result<bool, SinkError> {
        if buckets.is_empty() {
            return Ok(true);
        }
        let columns = buckets.columns();
        let parameters = columns.parameters();
        let adding = self.connection.client.execute(statement, &parameters);
        match self.connection.deadline(DOING, adding).await? {
            Ok(_) => Ok(true),
            Err(error)
                if error.code().is_some_and(|code| {
                    [SqlState::UNIQUE_VIOLATION, SqlState::T_R_DEADLOCK_DETECTED].contains(code)
                }) =>
            {
                Ok(false)
            }
            Err(error) => Err(sink_error(&error, DOING, &self.connection.place)),
        }
    }
}

/// What is run for every transaction.
#[derive(Debug)]
struct Statements {
    new_minutes: Statement,
    per_minute: Statement,
    per_hour: Statement,
}

impl Statements {
    async fn prepare(client: &Client, schema: &str, internal: &str) -> Result<Self, tokio_postgres::Error> {
        Ok(Self {
            new_minutes: client.prepare(&insert(schema, MINUTES)).await?,
            per_minute: client.prepare(&upsert(schema, internal, MINUTES)).await?,
            per_hour: client.prepare(&upsert(schema, internal, "readings_per_hour")).await?,
        })
    }
}

/// The newest minute of each series, as far as it was written here. What is newer is inserted without looking for it,
/// which costs the server half as much.
#[derive(Debug, Default)]
struct Newest {
    minutes: HashMap<Box<[u8]>, i64>,
    /// Somebody else writes minutes of the same series.
    is_given_up: bool,
}

impl Newest {
    /// Those that are new, and the others. A series that is not known has been written before, perhaps.
    fn split(&mut self, minutes: Buckets) -> (Buckets, Buckets) {
        if self.is_given_up {
            return (Buckets::default(), minutes);
        }
        if self.minutes.len() > SERIES_MAX {
            self.minutes.clear();
        }
        minutes.split(|names, minute| match self.minutes.get_mut(names) {
            Some(newest) => std::mem::replace(newest, minute.max(*newest)) < minute,
            None => {
                self.minutes.insert(names.into(), minute);
                false
            }
        })
    }

    fn give_up(&mut self) {
        *self = Self { is_given_up: true, ..Self::default() };
    }
}

#[cfg(test)]
mod tests {
    use super::super::rollup::Rollup;
    use super::*;

    #[test]
    fn only_what_is_newer_than_all_that_was_written_is_new() {
        let mut newest = Newest::default();
        for (minutes, expected) in
            [(&[3, 4][..], &[4][..]), (&[2, 4], &[]), (&[5, 6], &[5, 6]), (&[1, 6, 7], &[7])]
        {
            let (new, others) = newest.split(Rollup::of_minutes(minutes));
            assert_eq!(new.minutes(), expected, "{minutes:?}");
            assert_eq!(new.len() + others.len(), minutes.len());
        }
        newest.give_up();
        assert_eq!(newest.split(Rollup::of_minutes(&[9])).0.minutes(), Vec::<i64>::new());
    }
}
