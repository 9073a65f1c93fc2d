//! The rollups follow the readings: on a connection of their own, a moment behind, exactly once.
//!
//! What always holds: `rollup_cursor` moves in the transaction of the rollups, and every reading of before it is in them.
//! Sums are handed over once their readings are committed, and what was handed over while a transaction ran goes into
//! the next one together, so that a bucket is written less often than readings come. Sums that were lost on the way, in
//! a crash or with a connection, are made anew from the readings between the cursors, before anything else is stored.
//!
//! At most [`BUCKETS_MAX`] buckets wait; with more of them, readings wait. [`Follower`] is the near side, which takes
//! sums and says how far they are written; the [`writer`] owns the connection.

mod newest;
mod writer;

use std::sync::Arc;

use metrics::{Gauge, gauge};
use tidegate_broker::record::Offset;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::task::JoinHandle;

use super::config::Config;
use super::rollup::Buckets;
use crate::pump::SinkError;
use writer::{Following, Writer};

/// About 200 bytes of memory each.
const BUCKETS_MAX: u32 = 250_000;
/// How many may be waiting to be merged; with more of them, readings wait.
const ITEMS_MAX: usize = 4_096;

/// The near side: takes sums, and says how far they are written.
#[derive(Debug)]
pub(super) struct Follower {
    items: mpsc::Sender<Item>,
    room: Arc<Semaphore>,
    hurry: Arc<Notify>,
    /// So far hours are waited for.
    wanted: watch::Sender<Offset>,
    /// As the database last said.
    written: watch::Receiver<Written>,
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

/// Series of which nothing was stored before, except what is older than `since_us` and forgotten.
#[derive(Debug, Default)]
pub(super) struct Begun {
    /// Device and metric.
    pub(super) series: Vec<Box<[u8]>>,
    /// In microseconds since 2000.
    pub(super) since_us: i64,
}

/// The sums of a stretch of readings.
#[derive(Debug)]
struct Item {
    buckets: Buckets,
    begun: Begun,
    end: Offset,
    /// Somebody else has moved the cursor there.
    is_written: bool,
    room: Option<OwnedSemaphorePermit>,
}

/// How far the rollups are: every reading of before it is in them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Written {
    minutes: Offset,
    hours: Offset,
}

impl Written {
    fn both(self) -> Offset {
        self.minutes.min(self.hours)
    }
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
        let writer = Writer::open(config, journal, stored).await?;
        let (items, incoming) = mpsc::channel(ITEMS_MAX);
        let end = writer.written().minutes.max(stored.unwrap_or_default());
        let (told, written) = watch::channel(writer.written());
        let (wanted, want) = watch::channel(Offset(0));
        let (hurry, behind) = (Arc::new(Notify::new()), gauge!("tidegate_postgres_rollup_lag_entries"));
        behind.set(0.0);
        let following =
            Following { incoming, told, hurry: Arc::clone(&hurry), wanted: want, behind: behind.clone() };
        let task = tokio::spawn(writer.run(following));
        let room = Arc::new(Semaphore::new(BUCKETS_MAX as usize));
        Ok(Self { items, room, hurry, wanted, written, end, behind, task, is_over: false })
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
        // Early enough that readings need not wait.
        if self.room.available_permits() < (BUCKETS_MAX / 2 + count) as usize {
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

    /// Hands over the sums of the committed readings from [`Self::end`] to `end`, with which some series have `begun`.
    pub(super) async fn push(
        &mut self,
        mut buckets: Buckets,
        begun: Begun,
        end: Offset,
        room: Room,
    ) -> Result<(), SinkError> {
        buckets.retain_numbers();
        self.hand_over(Item { buckets, begun, end, is_written: false, room: room.0 }).await
    }

    /// The transaction that stored readings has moved the cursor to `end`, after [`Self::settled`].
    pub(super) async fn passed(&mut self, end: Offset) -> Result<(), SinkError> {
        if end <= self.end {
            return Ok(());
        }
        let (buckets, begun) = (Buckets::default(), Begun::default());
        self.hand_over(Item { buckets, begun, end, is_written: true, room: None }).await
    }

    async fn hand_over(&mut self, item: Item) -> Result<(), SinkError> {
        self.end = item.end;
        #[expect(clippy::cast_precision_loss, reason = "for a gauge")]
        self.behind.set(item.end.0.saturating_sub(self.written.borrow().minutes.0) as f64);
        if self.items.send(item).await.is_err() {
            return Err(self.lost().await);
        }
        Ok(())
    }

    /// Waits until everything handed over is written.
    pub(super) async fn settled(&mut self) -> Result<(), SinkError> {
        let end = self.end;
        if self.written.borrow().both() >= end {
            return Ok(());
        }
        self.wanted.send_replace(end);
        self.hurry.notify_one();
        let is_written = self.written.wait_for(|written| written.both() >= end).await.is_ok();
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
