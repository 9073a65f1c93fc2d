//! When the shard takes a checkpoint, and how it is written beside everything else.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::{Shard, checkpoint};
use crate::broker::Now;
use crate::journal::{Cursor, Storage};
use crate::record::{Append, Offset, Refused};

/// A checkpoint is taken after so many journal entries ...
const CHECKPOINT_ENTRIES: u64 = 1_000_000;
/// ... or after this time, if there was any entry,
const CHECKPOINT_INTERVAL: Duration = Duration::from_secs(60);
/// or when so large a part of the journal is held only for the restart, so that it does not become full of that,
pub(super) const CHECKPOINT_SHARE: u64 = 4;
/// and, unless the journal is full already, not more often than this.
const CHECKPOINT_INTERVAL_MIN: Duration = Duration::from_secs(2);
/// What a checkpoint lets go of once it is written.
pub(super) struct Written {
    /// What it is the state at.
    offset: Offset,
    /// What the cursor may move to.
    position: Offset,
}

/// Checkpoints taken and to be taken.
pub(super) struct Checkpoints {
    pub(super) storage: Arc<dyn Storage>,
    pub(super) cursor: Cursor,
    pub(super) last: Offset,
    pub(super) last_at: Duration,
    /// Whether more than its share of the journal has come since the last one.
    pub(super) crowded: bool,
    /// Taken, and waiting until every entry in it is durable.
    pub(super) waiting: Option<checkpoint::Taken>,
    /// Being written by a thread of its own.
    pub(super) writing: Option<(Written, std::thread::JoinHandle<io::Result<()>>)>,
}

impl Shard {
    /// Takes a checkpoint when it is time, writes it when everything before it is durable, and lets the journal
    /// trim what it makes superfluous.
    pub(super) fn checkpoint(&mut self, now: Now) {
        let durable_end = self.broker.durable_end();
        let checkpoints = &mut self.checkpoints;
        if let Some((written, thread)) = checkpoints.writing.take_if(|(_, thread)| thread.is_finished()) {
            match thread.join() {
                Ok(Ok(())) => {
                    self.journal.keep_from(written.offset);
                    checkpoints.cursor.advance(written.position);
                }
                Ok(Err(error)) => {
                    tracing::error!(%error, "the checkpoint cannot be written; the journal is kept until it can")
                }
                Err(_) => tracing::error!("the thread that writes the checkpoint has failed"),
            }
        }
        let idle = checkpoints.writing.is_none();
        if let Some(checkpoint::Taken { offset, position, body }) =
            checkpoints.waiting.take_if(|taken| idle && taken.may_be_written(durable_end))
        {
            let storage = Arc::clone(&checkpoints.storage);
            let write = move || checkpoint::write(&storage, &body);
            match std::thread::Builder::new().name("checkpoint".into()).spawn(write) {
                Ok(thread) => checkpoints.writing = Some((Written { offset, position }, thread)),
                Err(error) => {
                    tracing::error!(%error, "the checkpoint cannot be written; the journal is kept until it can")
                }
            }
        }
        let end = self.appender.end();
        let since = now.monotonic.saturating_sub(checkpoints.last_at);
        let entries = end.since(checkpoints.last);
        let wanted = entries >= CHECKPOINT_ENTRIES || since >= CHECKPOINT_INTERVAL || checkpoints.crowded;
        let full = self.appender.refused() == Some(Refused::Full);
        let due = entries > 0 && (full || (wanted && since >= CHECKPOINT_INTERVAL_MIN));
        if due && checkpoints.waiting.is_none() && !self.journal_failed {
            checkpoints.waiting = Some(checkpoint::Taken::of(&self.broker, end));
            checkpoints.last = end;
            checkpoints.last_at = now.monotonic;
        }
    }

    pub(super) fn save_last_checkpoint(&mut self) {
        if let Some((_, thread)) = self.checkpoints.writing.take() {
            let _ = thread.join();
        }
        let end = self.appender.end();
        if self.journal_failed || self.broker.durable_end() < end {
            return;
        }
        let taken = checkpoint::Taken::of(&self.broker, end);
        match checkpoint::write(&self.checkpoints.storage, &taken.body) {
            Ok(()) => self.checkpoints.cursor.advance(taken.position),
            Err(error) => {
                tracing::error!(%error, "the checkpoint cannot be written; the next start replays more")
            }
        }
    }
}
