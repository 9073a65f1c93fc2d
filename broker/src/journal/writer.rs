//! The group-commit writer: takes all filled batches at once, writes them, syncs once, then lets them be seen.
//!
//! Nothing is told to be durable before the sync that makes it so has returned. After one failed write or sync
//! nothing is written any more: what a failed sync leaves in the operating system's cache cannot be known, and
//! only a recovery, which writes the doubtful tail again, may build on it.
//!
//! A write for which the disk has no space is the one exception: nothing that was written before is in doubt. What
//! does not fit waits here, the appender refuses, and the same bytes are tried again whenever something was trimmed,
//! and every second.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;

use super::count::Published;
use super::cursors::Passed;
use super::format::{FRAME_BYTES, Frame, FramePlace, Kind, SegmentHeader};
use super::segment::{ActiveSegment, Segment, WriteError};
use super::storage::is_no_space;
use super::{FullPolicy, Shared, SyncPolicy, fresh_salt};
use crate::plant::{self, Bug};
use crate::record::{Batch, BatchBuilder, Offset, Timestamp};

/// How often cursors are saved, age is looked at and an idle journal is marked.
const HOUSEKEEPING: Duration = Duration::from_secs(1);

/// The most that is reserved ahead of what is written; at times twice as much.
const RESERVE_BYTES_MAX: u64 = 4 << 20;

/// Writes batches and syncs them.
#[derive(Debug)]
pub struct Writer {
    shared: Arc<Shared>,
    active: ActiveSegment,
    /// Handed over, and not written yet: empty, unless the disk is full.
    waiting: VecDeque<BatchBuilder>,
    /// The frame of the batch before those.
    unwritten: Option<Unwritten>,
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
    /// Records of all batches since the journal was opened, and so the ordinal of the next one.
    records: u64,
    synced_at: Timestamp,
    housekeeping_at: Timestamp,
    /// Whether the file of cursors could not be written; not tried again before the next housekeeping.
    cursors_unsaved: bool,
}

/// A batch whose frame is made and not written. It fits this one place in the active segment only.
#[derive(Debug)]
struct Unwritten {
    frame: Bytes,
    batch: Batch,
    memory_bytes: usize,
}

impl Writer {
    pub(super) fn new(shared: Arc<Shared>, mut active: ActiveSegment, marked: Offset) -> Self {
        active.reserve_ahead((shared.options.segment_bytes / 16).min(RESERVE_BYTES_MAX));
        let (end, now) = (shared.durable_end(), shared.now());
        let held = i64::try_from(active.records()).unwrap_or(i64::MAX);
        let _ = active.segment.ordinal.set(-held);
        let writer = Self {
            shared,
            active,
            waiting: VecDeque::new(),
            unwritten: None,
            end,
            synced: end,
            marked,
            written: Vec::new(),
            written_bytes: 0,
            total_bytes: 0,
            records: 0,
            synced_at: now,
            housekeeping_at: now,
            cursors_unsaved: false,
        };
        writer.make_room_known();
        writer
    }

    /// Writes and syncs the submitted batches, if there are any; says whether it wrote any. Looks after cursors, age
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
        self.waiting.extend(self.shared.handover.take());
        if self.shared.is_failed() || (self.waiting.is_empty() && self.unwritten.is_none()) {
            return false;
        }
        let before = self.end;
        if let Err(error) = self.write_while_there_is_space() {
            self.fail("write", &error);
        }
        self.end > before
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
        let entries: u32 = self.waiting.iter().map(BatchBuilder::count).sum();
        let entries = entries + self.unwritten.as_ref().map_or(0, |unwritten| unwritten.batch.count());
        if entries > 0 {
            tracing::warn!(
                entries,
                "the disk was full to the end: these were never acknowledged and are gone"
            );
        }
        let ended = self.sync().and_then(|()| no_matter(self.mark())).and_then(|()| self.active.cut());
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

    fn write_while_there_is_space(&mut self) -> io::Result<()> {
        loop {
            match self.write_waiting() {
                Ok(()) => {
                    self.unblock();
                    return Ok(());
                }
                Err(WriteError::Failed(error)) => return Err(error),
                Err(WriteError::NoSpace(error)) => {
                    if !self.make_space()? {
                        self.block(&error);
                        return Ok(());
                    }
                }
            }
        }
    }

    /// Writes what waits, in order. After [`WriteError::NoSpace`] it goes on with the same frame.
    fn write_waiting(&mut self) -> Result<(), WriteError> {
        loop {
            if let Some(unwritten) = &self.unwritten {
                let written = self.active.write(&unwritten.frame, unwritten.batch.base());
                if !(plant::is(Bug::NoSpaceIgnored) && matches!(written, Err(WriteError::NoSpace(_)))) {
                    written?;
                }
                self.note_written();
            }
            let Some(batch) = self.waiting.front() else { return Ok(()) };
            let bytes = (FRAME_BYTES + batch.entries_bytes()) as u64;
            self.trim(bytes)?;
            let full = self.active.position() + bytes > self.shared.options.segment_bytes;
            if full && self.end > self.active.segment.base() {
                self.roll()?;
            }
            self.unwritten = self.waiting.pop_front().map(|batch| self.seal(batch));
        }
    }

    fn seal(&self, batch: BatchBuilder) -> Unwritten {
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
        Unwritten { frame, batch, memory_bytes }
    }

    fn note_written(&mut self) {
        let Some(Unwritten { frame, batch, memory_bytes }) = self.unwritten.take() else { return };
        self.records += self.active.note_records(&batch);
        self.end = batch.end();
        self.shared.bytes.fetch_add(frame.len() as u64, Ordering::Relaxed);
        self.written_bytes += frame.len() as u64;
        self.shared.tail.push(batch.clone(), memory_bytes);
        self.written.push(batch);
    }

    /// Whether the disk is full.
    fn is_blocked(&self) -> bool {
        self.shared.no_space().is_some()
    }

    /// The disk is full and nothing can be trimmed: nothing more is accepted until that changes.
    fn block(&mut self, error: &io::Error) {
        let file = self.shared.storage.display(&self.active.segment.name);
        let reason = format!("no space for {file}: {error}");
        if self.shared.no_space().replace(reason.clone()).is_none() {
            tracing::error!(
                reason,
                "the disk is full: the journal goes on by itself when there is space, or when a cursor moves on"
            );
        }
        self.make_room_known();
        if !self.shared.full.swap(true, Ordering::SeqCst) {
            self.shared.notify();
        }
    }

    fn unblock(&mut self) {
        if self.shared.no_space().take().is_some() {
            tracing::info!("the disk has space again");
            self.make_room_known();
            if self.shared.full.swap(false, Ordering::SeqCst) {
                self.shared.notify();
            }
        }
    }

    /// The disk is full before the journal is: discards the oldest segment, if the cursors and the policy allow it.
    fn make_space(&mut self) -> io::Result<bool> {
        let Some(oldest) = self.shared.oldest_sealed() else { return Ok(false) };
        self.shared.trim_wanted.store(oldest.end().0, Ordering::Release);
        self.discard(&oldest, self.shared.options.full == FullPolicy::DropOldest)
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
            if !plant::is(Bug::SyncSkipped) {
                let synced = self.active.sync();
                if !plant::is(Bug::SyncErrorIgnored) {
                    synced?;
                }
            }
            self.synced = self.end;
            self.shared.synced.store(self.synced.0, Ordering::Release);
            self.synced_at = self.shared.now();
        }
        Ok(())
    }

    /// Lets everything written be seen: by readers, by the appender, by whoever asked to be told.
    fn publish(&mut self) {
        self.active.segment.publish(self.end, self.active.position(), self.shared.now());
        // Before the end: whoever has read a record finds it counted.
        self.shared.publish_records(Published { end: self.end, records: self.records });
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
            _ if self.is_blocked() => 0,
            FullPolicy::DropOldest if self.shared.oldest_sealed().is_none_or(|it| self.may_drop(&it)) => {
                u64::MAX
            }
            FullPolicy::DropOldest | FullPolicy::Refuse => {
                let written = self.total_bytes + self.written_bytes;
                let limit = options.max_bytes + options.reserve_bytes();
                written + limit.saturating_sub(self.shared.bytes.load(Ordering::Relaxed))
            }
        };
        self.shared.allow(room);
        if room == u64::MAX && self.shared.full.swap(false, Ordering::SeqCst) {
            self.shared.notify();
        }
    }

    /// Whether nobody needs `segment` to know its own state.
    fn may_drop(&self, segment: &Segment) -> bool {
        segment.end().0 <= self.shared.kept_from.load(Ordering::Acquire)
    }

    /// Seals the active segment and begins the next one. Everything in a sealed segment is published, so that
    /// trimming never passes the durable end.
    fn roll(&mut self) -> Result<(), WriteError> {
        let now = self.shared.now();
        let sealed = self.active.segment.clone();
        let before = self.active.position();
        let newest = if self.written.is_empty() { sealed.newest() } else { now };
        let salt = fresh_salt(&*self.shared.storage);
        let header = SegmentHeader { id: self.shared.id, base: self.end, created: now, salt };
        self.active.roll(&*self.shared.storage, header, self.synced, newest)?;
        self.synced = self.end;
        self.shared.synced.store(self.synced.0, Ordering::Release);
        self.synced_at = now;
        let ordinal = i64::try_from(self.records).unwrap_or(i64::MAX);
        let _ = self.active.segment.ordinal.set(ordinal);
        let bytes = sealed.file_bytes() - before + self.active.position();
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
                if !self.is_blocked() {
                    self.shared.trim_wanted.store(u64::MAX, Ordering::Release);
                }
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
        if !self.may_drop(oldest) {
            return Ok(false);
        }
        if self.shared.cursors.passed(oldest.end()) == Passed::Unsaved && !self.cursors_unsaved {
            self.save_cursors()?;
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
        if !self.is_blocked() && shared.full.swap(false, Ordering::SeqCst) {
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
        if let Err(error) = self.keep_house_at(due) {
            self.fail("write", &error);
        }
    }

    fn keep_house_at(&mut self, due: bool) -> io::Result<()> {
        if due {
            self.housekeeping_at = self.shared.now();
            self.cursors_unsaved = false;
            if self.shared.cursors.is_dirty() {
                self.save_cursors()?;
            }
        }
        // Behind the saving, which may be what trimming waits for.
        self.trim(0)?;
        if self.shared.options.full == FullPolicy::DropOldest {
            self.make_room_known();
        }
        // A frame that waits must find the place for which it was made.
        if due && self.unwritten.is_none() {
            no_matter(self.trim_aged())?;
            no_matter(self.mark())?;
        }
        Ok(())
    }

    /// Saves the cursors, if it can.
    fn save_cursors(&mut self) -> io::Result<()> {
        let mut saved = self.shared.save_cursors(None);
        if saved.as_ref().is_err_and(is_no_space) {
            // What was reserved ahead is worth less than what can be trimmed once they are saved.
            self.active.cut()?;
            saved = self.shared.save_cursors(None);
        }
        if let Err(error) = saved {
            self.cursors_unsaved = true;
            tracing::error!(%error, "the cursors could not be saved; tried again in a second");
        }
        Ok(())
    }

    /// Once everything written is synced, says so on disk.
    fn mark(&mut self) -> Result<(), WriteError> {
        if self.synced == self.end && self.marked < self.end {
            self.active.mark(self.end, self.shared.now())?;
            self.shared.bytes.fetch_add(FRAME_BYTES as u64, Ordering::Relaxed);
            self.marked = self.end;
        }
        Ok(())
    }

    /// Discards segments that are too old, and done with unless the policy drops the oldest. An active one that is too
    /// old is sealed for that.
    fn trim_aged(&mut self) -> Result<(), WriteError> {
        let Some(max_age) = self.shared.options.max_age else { return Ok(()) };
        let active = self.active.segment.clone();
        let forced = self.shared.options.full == FullPolicy::DropOldest;
        let done = || forced || self.shared.cursors.passed(self.end) != Passed::No;
        if self.is_older(&active, max_age) && self.end > active.base() && self.synced == self.end && done() {
            self.roll()?;
        }
        while let Some(oldest) = self.shared.oldest_sealed() {
            if !self.is_older(&oldest, max_age) || !self.discard(&oldest, forced)? {
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
        let house = unmarked
            || self.is_blocked()
            || self.shared.cursors.is_dirty()
            || self.shared.options.max_age.is_some();
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
        self.waiting.clear();
        self.unwritten = None;
        self.shared.handover.settle(std::iter::empty(), 0);
        self.shared.notify();
    }
}

/// Housekeeping that a full disk does not let happen is done later.
fn no_matter(done: Result<(), WriteError>) -> io::Result<()> {
    match done {
        Ok(()) | Err(WriteError::NoSpace(_)) => Ok(()),
        Err(WriteError::Failed(error)) => Err(error),
    }
}
