//! The sink: encodes batches into a group while the one before is being stored.
//!
//! A group closes by itself when the server is ready for it, so that transactions grow with the load and need no
//! timer: a quiet appliance stores each batch at once, a busy one many batches per commit. At most one group is under
//! way and one is being filled.

use std::collections::VecDeque;

use metrics::counter;
use tidegate_broker::journal::JournalId;
use tidegate_broker::record::{Batch, Entry, Offset};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::config::Config;
use super::copy::{RowEncoder, Rows};
use super::failure::StoreError;
use super::session::{Session, journal_key};
use crate::health::Part;
use crate::pump::{Reject, Rejects, Sink, SinkError};

/// A group is never made to take less than this.
const GROUP_BYTES_MIN: usize = 64 << 10;

/// Carries records into PostgreSQL. Rejects are counted, told, and kept in the table `quarantine`.
#[derive(Debug)]
pub struct PostgresSink {
    config: Config,
    journal: JournalId,
    part: Part,
    encoder: RowEncoder,
    /// The group being filled; its rows are in `encoder`.
    open: Vec<Batch>,
    /// Confirmed, and not yet told.
    settled: Option<Offset>,
    /// A group takes no further batch once it has this many bytes of rows. Halved by every failure and doubled by every
    /// success, so that also a line that is too slow for a large group within the timeout makes progress.
    group_bytes_max: usize,
    worker: Option<Worker>,
}

/// The task that owns the connection.
#[derive(Debug)]
struct Worker {
    /// Closed when no more will come.
    groups: Option<mpsc::Sender<Group>>,
    outcomes: mpsc::Receiver<Result<Offset, SinkError>>,
    is_busy: bool,
    task: JoinHandle<()>,
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Batches that are stored in one transaction.
#[derive(Debug)]
struct Group {
    batches: Vec<Batch>,
    rows: Rows,
    end: Offset,
}

impl PostgresSink {
    /// A sink for records of `journal`; nothing is connected yet.
    pub fn new(config: Config, journal: JournalId, part: Part) -> Self {
        Self {
            group_bytes_max: config.transaction_bytes_max,
            config,
            journal,
            part,
            encoder: RowEncoder::new(journal_key(journal)),
            open: Vec::new(),
            settled: None,
            worker: None,
        }
    }

    /// The error that a sink without connection answers everything with.
    fn not_connected() -> SinkError {
        SinkError::Retry("not connected to PostgreSQL".to_owned())
    }

    /// Hands the open group to the worker, if there is one and the worker waits for it.
    fn dispatch(&mut self) -> Result<(), SinkError> {
        let Some(worker) = self.worker.as_mut() else {
            return Err(Self::not_connected());
        };
        let Some(last) = self.open.last().filter(|_| !worker.is_busy) else {
            return Ok(());
        };
        let end = last.end();
        let group = Group { end, rows: self.encoder.take(), batches: std::mem::take(&mut self.open) };
        worker.is_busy = true;
        // There is room: only one group is ever under way. A closed channel means that the worker has told why.
        if let Some(groups) = &worker.groups {
            let _ = groups.try_send(group);
        }
        Ok(())
    }

    /// Waits for the group under way. Cancelling loses nothing.
    async fn outcome(&mut self) -> Result<(), SinkError> {
        let Some(worker) = self.worker.as_mut() else {
            return Err(Self::not_connected());
        };
        let outcome = worker.outcomes.recv().await;
        match outcome {
            Some(Ok(end)) => {
                worker.is_busy = false;
                self.group_bytes_max = (self.group_bytes_max * 2).min(self.config.transaction_bytes_max);
                self.settled = Some(end);
                self.dispatch()
            }
            Some(Err(error)) => {
                self.group_bytes_max = (self.group_bytes_max / 2).max(GROUP_BYTES_MIN);
                self.disconnect();
                Err(error)
            }
            None => {
                self.disconnect();
                Err(Self::not_connected())
            }
        }
    }

    fn disconnect(&mut self) {
        self.worker = None;
        self.open.clear();
        self.encoder.clear();
        self.settled = None;
    }
}

impl Sink for PostgresSink {
    /// Many, because they become one transaction, and small where few records come at a time; their bytes bound the memory.
    const WINDOW: usize = 1_024;

    async fn connect(&mut self) -> Result<Option<Offset>, SinkError> {
        self.disconnect();
        let session = Session::open(&self.config, self.journal).await?;
        let position = session.position();
        let (groups, incoming) = mpsc::channel(1);
        let (outgoing, outcomes) = mpsc::channel(1);
        let store = Store {
            session,
            encoder: RowEncoder::new(journal_key(self.journal)),
            rejects: Rejects::new(self.part.clone()),
        };
        let task = tokio::spawn(store.run(incoming, outgoing));
        self.worker = Some(Worker { groups: Some(groups), outcomes, is_busy: false, task });
        Ok(position)
    }

    async fn write(&mut self, batch: Batch) -> Result<(), SinkError> {
        while self.encoder.bytes() >= self.group_bytes_max {
            self.outcome().await?;
        }
        self.encoder.push_batch(&batch, batch.base(), batch.end());
        self.open.push(batch);
        self.dispatch()
    }

    async fn confirmed(&mut self) -> Result<Offset, SinkError> {
        loop {
            if let Some(end) = self.settled.take() {
                return Ok(end);
            }
            self.outcome().await?;
        }
    }

    async fn close(&mut self) {
        if let Some(mut worker) = self.worker.take() {
            worker.groups = None;
            // A task that has panicked is over as well.
            let _ = (&mut worker.task).await;
        }
    }

    async fn lost(&mut self) -> SinkError {
        loop {
            if let Err(error) = self.outcome().await {
                return error;
            }
        }
    }
}

/// The worker's own state.
struct Store {
    session: Session,
    /// For the parts of a group that is refused as a whole.
    encoder: RowEncoder,
    rejects: Rejects,
}

impl Store {
    async fn run(
        mut self,
        mut groups: mpsc::Receiver<Group>,
        outcomes: mpsc::Sender<Result<Offset, SinkError>>,
    ) {
        loop {
            let maintain_at = self.session.maintain_at();
            let group = tokio::select! {
                group = groups.recv() => group,
                error = self.session.lost() => {
                    // Nobody to tell means that the sink is gone.
                    let _ = outcomes.send(Err(error)).await;
                    return;
                }
                () = tokio::time::sleep_until(maintain_at) => {
                    self.session.maintain().await;
                    continue;
                }
            };
            let Some(group) = group else {
                self.session.close().await;
                return;
            };
            let end = group.end;
            let outcome = self.store(group).await;
            let is_failed = outcome.is_err();
            let is_unheard = outcomes.send(outcome.map(|()| end)).await.is_err();
            if is_failed || is_unheard {
                return;
            }
        }
    }

    async fn store(&mut self, mut group: Group) -> Result<(), SinkError> {
        let rows = std::mem::take(&mut group.rows);
        let count = rows.count;
        match self.session.store(rows, group.end).await {
            Ok(()) => {
                counter!("tidegate_postgres_rows_total").increment(count);
                counter!("tidegate_postgres_transactions_total").increment(1);
                Ok(())
            }
            Err(StoreError::Sink(error)) => Err(error),
            Err(StoreError::Refused { .. } | StoreError::Duplicate) => self.store_in_parts(&group).await,
        }
    }

    /// Divides the group until what is refused is a single record, which is put aside: at the row that the server
    /// names, else in the middle. Each part is a transaction of its own, in order, so the cursor never passes what is
    /// not yet stored.
    async fn store_in_parts(&mut self, group: &Group) -> Result<(), SinkError> {
        let begin = group.batches.first().map_or(group.end, Batch::base);
        let mut parts = VecDeque::from([(begin, group.end)]);
        while let Some((from, to)) = parts.pop_front() {
            for batch in &group.batches {
                self.encoder.push_batch(batch, from, to);
            }
            let rows = self.encoder.take();
            let count = rows.count;
            let (reason, line) = match self.session.store(rows, to).await {
                Ok(()) => {
                    counter!("tidegate_postgres_rows_total").increment(count);
                    continue;
                }
                Err(StoreError::Sink(error)) => return Err(error),
                Err(StoreError::Refused { reason, line }) => (reason, line),
                Err(StoreError::Duplicate) => ("a unique index of another than Tidegate".to_owned(), None),
            };
            if to.since(from) == 1 {
                self.put_aside(group, from, &reason).await?;
                continue;
            }
            let refused = line.and_then(|line| self.entry_of_row(group, from, to, line));
            let cuts = match refused {
                Some(offset) => [from, offset, offset.plus(1), to],
                None => [from, from, from.plus(to.since(from) / 2), to],
            };
            for cut in cuts.windows(2).rev().filter(|cut| cut[0] < cut[1]) {
                parts.push_front((cut[0], cut[1]));
            }
        }
        Ok(())
    }

    /// The entry that the row number `line`, from 1, of the entries from `from` to `to` is of.
    fn entry_of_row(&mut self, group: &Group, from: Offset, to: Offset, line: u64) -> Option<Offset> {
        let records = group.batches.iter().flat_map(|batch| batch.entries_from(from));
        let mut found = None;
        for (place, entry) in records.take_while(|(place, _)| place.offset < to) {
            if let Entry::Record(record) = entry {
                self.encoder.push(place.offset, &record);
            }
            if self.encoder.rows() >= line {
                found = Some(place.offset);
                break;
            }
        }
        self.encoder.clear();
        found
    }

    async fn put_aside(&mut self, group: &Group, offset: Offset, reason: &str) -> Result<(), SinkError> {
        let found = group.batches.iter().find(|batch| batch.base() <= offset && offset < batch.end());
        let Some((_, Entry::Record(record))) = found.and_then(|batch| batch.entries_from(offset).next())
        else {
            // Only records have rows that can be refused; anything else is a mistake of ours that must not loop.
            return Err(SinkError::Retry(format!(
                "PostgreSQL refused entry {offset}, which has no rows: {reason}"
            )));
        };
        self.session.quarantine(offset, &record, reason, offset.plus(1)).await?;
        self.rejects.add(&Reject {
            offset,
            topic: record.topic.as_str().to_owned(),
            reason: "refused",
            detail: format!("PostgreSQL refuses its rows: {reason}; it is kept in the table quarantine"),
        });
        Ok(())
    }
}
