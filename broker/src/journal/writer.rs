//! The group-commit writer: takes all filled batches at once, writes them, syncs once, then lets them be seen.
//!
//! Nothing is told to be durable before the sync that makes it so has returned. After one failed write or sync
//! nothing is written any more: what a failed sync leaves in the operating system's cache cannot be known, and
//! only a recovery, which writes the doubtful tail again, may build on it.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::cursors::Passed;
use super::format::{FRAME_BYTES, Frame, FramePlace, Kind, SegmentHeader};
use super::segment::{ActiveSegment, Segment};
use super::{FullPolicy, Shared, SyncPolicy, fresh_salt};
use crate::plant::{self, Bug};
use crate::record::{Batch, BatchBuilder, Offset, Timestamp};

/// How often cursors are saved, age is looked at and an idle journal is marked.
const HOUSEKEEPING: Duration = Duration::from_secs(1);

/// The most that a segment is made longer ahead of what is written.
const RESERVE_BYTES_MAX: u64 = 8 << 20;

/// Writes batches and syncs them.
#[derive(Debug)]
pub struct Writer {
    shared: Arc<Shared>,
    active: ActiveSegment,
    /// The offset behind the last written entry.
    end: Offset,
    /// Every entry before it was synced.
    synced: Offset,
    /// What the newest mark proves to be synced.
    marked: Offset,
    /// Written and not published.
    written: Vec<Batch>,
    /// Bytes of `written`, frames included.
    written_bytes: u64,
    /// The same of all batches since the journal was opened.
    total_bytes: u64,
    synced_at: Timestamp,
    housekeeping_at: Timestamp,
    /// Whether the file of cursors could not be written; not tried again before the next housekeeping.
    cursors_unsaved: bool,
}

impl Writer {
    pub(super) fn new(shared: Arc<Shared>, mut active: ActiveSegment, marked: Offset) -> Self {
        active.reserve_ahead((shared.options.segment_bytes / 8).min(RESERVE_BYTES_MAX));
        let (end, now) = (shared.durable_end(), shared.now());
        let writer = Self {
            shared,
            active,
            end,
            synced: end,
            marked,
            written: Vec::new(),
            written_bytes: 0,
            total_bytes: 0,
            synced_at: now,
            housekeeping_at: now,
            cursors_unsaved: false,
        };
        writer.make_room_known();
        writer
    }

    /// Writes and syncs the submitted batches, if there are any; says whether there were. Looks after cursors, age
    /// and size when it is time.
    pub fn step(&mut self) -> bool {
        let wrote = self.write_submitted();
        self.publish_written();
        self.keep_house();
        wrote
    }

    /// The first half of [`Writer::step`]: writes what was submitted and does not sync it. A simulation may let
    /// anything happen before [`Writer::publish_written`].
    pub fn write_submitted(&mut self) -> bool {
        let batches = self.shared.handover.take();
        if batches.is_empty() || self.shared.is_failed() {
            return false;
        }
        if let Err(error) = self.write_all(batches) {
            self.fail("write", &error);
        }
        true
    }

    /// The second half of [`Writer::step`]: syncs, as the policy says, and publishes what was written.
    pub fn publish_written(&mut self) {
        if self.shared.is_failed() {
            self.shared.handover.settle(std::iter::empty(), 0);
            return;
        }
        if plant::is(Bug::WatermarkOffByOne) && !self.written.is_empty() {
            self.shared.durable_end.fetch_add(1, Ordering::Release);
        }
        if self.sync_is_due()
            && let Err(error) = self.sync()
        {
            self.fail("sync", &error);
            return;
        }
        if !self.written.is_empty() {
            self.publish();
            self.active.let_cache_go();
        }
    }

    /// Ends the journal in order: syncs whatever the policy is, leaves a mark, saves the cursors.
    pub fn finish(&mut self) {
        self.step();
        if self.shared.is_failed() {
            return;
        }
        let ended = self.sync().and_then(|()| self.mark()).and_then(|()| self.active.cut());
        let ended = ended.and_then(|()| self.active.sync());
        if let Err(error) = ended {
            self.fail("sync", &error);
        } else if let Err(error) = self.shared.save_cursors(None) {
            tracing::error!(%error, "the cursors could not be saved: sinks will repeat what they did since");
        }
    }

    /// Writes until the journal is closed.
    pub(super) fn run(mut self) {
        loop {
            let closing = self.shared.handover.wait(self.wake_after());
            let wrote = self.step();
            if closing && !wrote {
                return self.finish();
            }
        }
    }

    fn write_all(&mut self, batches: Vec<BatchBuilder>) -> io::Result<()> {
        for batch in batches {
            let bytes = (FRAME_BYTES + batch.entries_bytes()) as u64;
            self.trim(bytes)?;
            let full = self.active.position() + bytes > self.shared.options.segment_bytes;
            if full && self.end > self.active.segment.base() {
                self.roll()?;
            }
            self.write(batch)?;
        }
        Ok(())
    }

    fn write(&mut self, batch: BatchBuilder) -> io::Result<()> {
        let memory_bytes = batch.memory_bytes();
        let place = FramePlace {
            base: batch.base(),
            count: batch.count(),
            time: batch.time(),
            durable_before: self.synced,
        };
        let salt = self.active.segment.header.salt;
        let (frame, batch) = batch.finish(|frame| Frame::seal(Kind::Batch, place, salt, frame));
        assert_eq!(batch.base(), self.end, "offsets are dense");
        self.active.write(&frame, batch.base())?;
        self.active.note_topics(&batch);
        self.end = batch.end();
        self.shared.bytes.fetch_add(frame.len() as u64, Ordering::Relaxed);
        self.written_bytes += frame.len() as u64;
        self.shared.tail.push(batch.clone(), memory_bytes);
        self.written.push(batch);
        Ok(())
    }

    fn sync_is_due(&self) -> bool {
        match self.shared.options.sync {
            SyncPolicy::Always => self.synced < self.end,
            SyncPolicy::Interval(interval) => {
                self.synced < self.end && u128::from(self.since(self.synced_at)) >= interval.as_millis()
            }
            SyncPolicy::Never => false,
        }
    }

    fn sync(&mut self) -> io::Result<()> {
        if self.synced < self.end {
            self.active.sync()?;
            self.synced = self.end;
            self.shared.synced.store(self.synced.0, Ordering::Release);
            self.synced_at = self.shared.now();
        }
        Ok(())
    }

    /// Lets everything written be seen: by readers, by the appender, by whoever asked to be told.
    fn publish(&mut self) {
        self.active.segment.publish(self.end, self.active.position(), self.shared.now());
        self.shared.durable_end.store(self.end.0, Ordering::Release);
        let bytes = std::mem::take(&mut self.written_bytes);
        self.total_bytes += bytes;
        self.make_room_known();
        self.shared.handover.settle(self.written.drain(..), bytes);
        self.shared.notify();
    }

    /// Tells the appender up to which total of bytes it may accept entries.
    fn make_room_known(&self) {
        let options = &self.shared.options;
        let room = match options.full {
            FullPolicy::DropOldest => u64::MAX,
            FullPolicy::Refuse => {
                let written = self.total_bytes + self.written_bytes;
                let limit = options.max_bytes + options.reserve_bytes();
                written + limit.saturating_sub(self.shared.bytes.load(Ordering::Relaxed))
            }
        };
        self.shared.allow(room);
    }

    /// Seals the active segment and begins the next one. Everything in a sealed segment is published, so that
    /// trimming never passes the durable end.
    fn roll(&mut self) -> io::Result<()> {
        let now = self.shared.now();
        let before = self.active.position();
        let newest = if self.written.is_empty() { self.active.segment.newest() } else { now };
        self.active.seal(self.end, self.synced, newest)?;
        self.synced = self.end;
        self.shared.synced.store(self.synced.0, Ordering::Release);
        self.synced_at = now;
        let footer_bytes = self.active.position() - before;
        let header = SegmentHeader { id: self.shared.id, base: self.end, created: now, salt: fresh_salt() };
        self.active.go_on(&*self.shared.storage, header)?;
        let bytes = footer_bytes + self.active.position();
        self.shared.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.shared.segments_mut().push_back(self.active.segment.clone());
        if !self.written.is_empty() {
            self.publish();
        }
        Ok(())
    }

    /// Discards old segments so that one more segment and `incoming` bytes fit into the journal, as far as the
    /// cursors and the policy allow.
    fn trim(&mut self, incoming: u64) -> io::Result<()> {
        let options = &self.shared.options;
        let (limit, max, full) = (options.max_bytes - options.segment_bytes, options.max_bytes, options.full);
        loop {
            let bytes = self.shared.bytes.load(Ordering::Relaxed) + incoming;
            let Some(oldest) = self.shared.oldest_sealed().filter(|_| bytes > limit) else {
                self.shared.trim_wanted.store(u64::MAX, Ordering::Release);
                return Ok(());
            };
            // Told before the cursors are looked at, so that one that moves after the look pokes the writer.
            self.shared.trim_wanted.store(oldest.end().0, Ordering::Release);
            let forced = full == FullPolicy::DropOldest && bytes > max;
            if !self.discard(&oldest, forced)? {
                return Ok(());
            }
        }
    }

    /// Discards `oldest` if every cursor has passed it, or if it is forced; whether it did.
    fn discard(&mut self, oldest: &Segment, forced: bool) -> io::Result<bool> {
        if self.shared.cursors.passed(oldest.end()) == Passed::Unsaved && !self.cursors_unsaved {
            self.save_cursors();
        }
        let shared = &self.shared;
        if !shared.cursors.trim_to(oldest.end(), forced, &shared.start) {
            return Ok(false);
        }
        shared.segments_mut().pop_front();
        shared.storage.remove(&oldest.name)?;
        // One after the other: segments must stay dense also where a crash undoes a removal.
        shared.storage.sync_folder()?;
        shared.bytes.fetch_sub(oldest.file_bytes(), Ordering::Relaxed);
        tracing::debug!(segment = oldest.name, "trimmed");
        self.make_room_known();
        if shared.full.swap(false, Ordering::AcqRel) {
            tracing::info!("the journal has room again");
            shared.notify();
        }
        Ok(true)
    }

    /// What is not needed for durability: cursors, marks, trimming.
    fn keep_house(&mut self) {
        if self.shared.is_failed() {
            return;
        }
        let due = u128::from(self.since(self.housekeeping_at)) >= HOUSEKEEPING.as_millis();
        if due {
            self.housekeeping_at = self.shared.now();
            self.cursors_unsaved = false;
            if self.shared.cursors.is_dirty() {
                self.save_cursors();
            }
        }
        // Behind the saving, which may be what trimming waits for.
        let kept = self
            .trim(0)
            .and_then(|()| if due { self.trim_aged().and_then(|()| self.mark()) } else { Ok(()) });
        if let Err(error) = kept {
            self.fail("write", &error);
        }
    }

    fn save_cursors(&mut self) {
        if let Err(error) = self.shared.save_cursors(None) {
            self.cursors_unsaved = true;
            tracing::error!(%error, "the cursors could not be saved; tried again in a second");
        }
    }

    /// Once everything written is synced, says so on disk.
    fn mark(&mut self) -> io::Result<()> {
        if self.synced == self.end && self.marked < self.end {
            self.active.mark(self.end, self.shared.now())?;
            self.shared.bytes.fetch_add(FRAME_BYTES as u64, Ordering::Relaxed);
            self.marked = self.end;
        }
        Ok(())
    }

    /// Discards segments that are too old and done with. An active one that is too old is sealed for that.
    fn trim_aged(&mut self) -> io::Result<()> {
        let Some(max_age) = self.shared.options.max_age else { return Ok(()) };
        let active = self.active.segment.clone();
        let done = || self.shared.cursors.passed(self.end) != Passed::No;
        if self.is_older(&active, max_age) && self.end > active.base() && self.synced == self.end && done() {
            self.roll()?;
        }
        while let Some(oldest) = self.shared.oldest_sealed() {
            if !self.is_older(&oldest, max_age) || !self.discard(&oldest, false)? {
                break;
            }
        }
        Ok(())
    }

    fn is_older(&self, segment: &Segment, max_age: Duration) -> bool {
        u128::from(self.shared.now().0.saturating_sub(segment.newest().0)) > max_age.as_millis()
    }

    /// Milliseconds since `then`. A clock that was set back counts as a long time.
    fn since(&self, then: Timestamp) -> u64 {
        self.shared.now().0.checked_sub(then.0).unwrap_or(u64::MAX)
    }

    /// When the thread must look again although nobody wakes it.
    fn wake_after(&self) -> Option<Duration> {
        if self.shared.is_failed() {
            return None;
        }
        let unsynced = match self.shared.options.sync {
            SyncPolicy::Interval(interval) if self.synced < self.end => Some((self.synced_at, interval)),
            SyncPolicy::Always | SyncPolicy::Interval(_) | SyncPolicy::Never => None,
        };
        let unmarked = self.marked < self.end && self.synced == self.end;
        let house = unmarked || self.shared.cursors.is_dirty() || self.shared.options.max_age.is_some();
        let house = house.then_some((self.housekeeping_at, HOUSEKEEPING));
        let left = |(last, period): (Timestamp, Duration)| {
            // The clock counts whole milliseconds: one more, so that it is time when the thread wakes up.
            period.saturating_sub(Duration::from_millis(self.since(last))) + Duration::from_millis(1)
        };
        unsynced.into_iter().chain(house).map(left).min()
    }

    /// Stops everything for good.
    fn fail(&mut self, doing: &str, error: &io::Error) {
        let file = self.shared.storage.display(&self.active.segment.name);
        let reason = format!("cannot {doing} {file}: {error}");
        tracing::error!(
            reason,
            "the journal failed and accepts nothing until it is opened again: repair the disk, then restart"
        );
        self.shared.fail(reason);
        self.written.clear();
        self.shared.handover.settle(std::iter::empty(), 0);
        self.shared.notify();
    }
}
