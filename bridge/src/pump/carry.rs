//! The shell around [`Pump`]: awaits the sink, the journal's durable end, the clock and the signal to drain.

use std::pin::pin;
use std::time::Duration;

use tidegate_broker::journal::{Cursor, Journal, Reader};
use tidegate_broker::record::{Offset, Timestamp};
use tokio::sync::watch;
use tokio::time::{Instant, Interval, MissedTickBehavior, sleep_until};

use crate::health::Part;

use super::report::Reporter;
use super::{Action, Limits, Pump, Sink, SinkError};

/// How often lag is told while nothing else happens.
const REPORT_INTERVAL: Duration = Duration::from_millis(500);
/// How long a drain may take when whoever should have said it has gone.
const DRAIN_DEFAULT: Duration = Duration::from_secs(5);

/// `None` while the pump is to run; then the time until which what is in flight may be confirmed.
pub type DrainSignal = watch::Receiver<Option<Instant>>;

/// Carries what `journal` holds from `cursor` on to `sink`, until `drain` says to stop.
///
/// It never fails: while the destination is away it tries again and says so in `part`. When told to drain it reads no
/// further, waits for what is in flight until the deadline, and saves the cursor.
pub async fn carry<S: Sink>(journal: &Journal, cursor: &Cursor, mut sink: S, part: Part, drain: DrainSignal) {
    let mut carrier = Carrier::new::<S>(journal, cursor, part, drain);
    loop {
        // A sink that is always ready must not keep its thread from other tasks.
        tokio::task::coop::consume_budget().await;
        match carrier.pump.poll(carrier.now()) {
            Action::Connect => carrier.connect(&mut sink).await,
            Action::Read(from) => carrier.read(&mut sink, from).await,
            Action::Wait { confirmation, entries, until } => {
                carrier.wait(&mut sink, confirmation, entries, until).await;
            }
            Action::Stop => break,
        }
        cursor.advance(carrier.pump.confirmed());
    }
    carrier.finish();
    let deadline = carrier.drain.borrow().unwrap_or_else(Instant::now);
    // Nothing that was confirmed is cut off.
    let _ = tokio::time::timeout_at(deadline, sink.close()).await;
}

struct Carrier<'a> {
    journal: &'a Journal,
    cursor: &'a Cursor,
    reader: Reader,
    durable: watch::Receiver<Offset>,
    drain: DrainSignal,
    draining: bool,
    pump: Pump,
    report: Reporter,
    begun: Instant,
    tick: Interval,
    /// Up to where the account is settled: the confirmed offset, unless that lies inside a batch.
    settled: Offset,
    /// The confirmed offset, and when the batch behind it was begun, as last looked up in the journal.
    oldest: Option<(Offset, Timestamp)>,
}

impl<'a> Carrier<'a> {
    fn new<S: Sink>(journal: &'a Journal, cursor: &'a Cursor, part: Part, drain: DrainSignal) -> Self {
        let position = cursor.position();
        let mut tick = tokio::time::interval(REPORT_INTERVAL);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            journal,
            cursor,
            reader: journal.reader(position),
            durable: follow(journal),
            drain,
            draining: false,
            pump: Pump::new(position, Limits::of::<S>()),
            report: begin(journal, position, part),
            begun: Instant::now(),
            tick,
            settled: position,
            oldest: None,
        }
    }

    fn now(&self) -> Duration {
        self.begun.elapsed()
    }

    async fn connect<S: Sink>(&mut self, sink: &mut S) {
        let mut connecting = pin!(sink.connect());
        let result = loop {
            tokio::select! {
                biased;
                deadline = drained(&mut self.drain, self.draining) => return self.begin_drain(deadline),
                result = &mut connecting => break result,
                _ = self.tick.tick() => self.tell_lag(),
            }
        };
        let now = self.now();
        match result {
            Ok(remembered) => {
                let resumed =
                    self.pump.handle_connected(remembered, self.journal.start(), self.journal.durable_end());
                self.report.connected(resumed, self.pump.confirmed(), now);
                self.resume_account(resumed.lost);
                self.tell_lag();
            }
            Err(error) => self.fail(&error),
        }
    }

    async fn read<S: Sink>(&mut self, sink: &mut S, from: Offset) {
        // Marked as seen before the read, so that what becomes durable during it is not missed.
        self.durable.borrow_and_update();
        if self.reader.offset() != from {
            self.reader.seek(from);
        }
        let batch = match self.reader.next() {
            Ok(Some(batch)) => batch,
            Ok(None) => return self.pump.handle_end(),
            Err(error) => {
                return self.fail(&SinkError::Operator(format!("the journal cannot be read: {error}")));
            }
        };
        let in_flight = self.pump.records_in_flight();
        let (begin, (batch, lost)) = (batch.base(), self.pump.handle_batch(batch));
        if lost > 0 {
            self.report.lost(lost);
            self.count_trimmed(begin, in_flight);
        }
        let Some(batch) = batch else { return };
        let mut writing = pin!(sink.write(batch));
        loop {
            let deadline = *self.drain.borrow();
            tokio::select! {
                biased;
                result = &mut writing => {
                    if let Err(error) = result {
                        self.fail(&error);
                    }
                    return;
                }
                () = sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => {
                    return self.begin_drain(Instant::now());
                }
                _ = self.tick.tick() => self.tell_lag(),
            }
        }
    }

    async fn wait<S: Sink>(
        &mut self,
        sink: &mut S,
        confirmation: bool,
        entries: bool,
        until: Option<Duration>,
    ) {
        let idle = !confirmation && entries;
        if idle {
            self.tell_lag();
        }
        let until = until.map(|until| self.begun + until);
        tokio::select! {
            biased;
            deadline = drained(&mut self.drain, self.draining) => self.begin_drain(deadline),
            result = heard(sink, confirmation), if confirmation || idle => match result {
                Ok(to) => {
                    let progress = self.pump.handle_confirmed(to);
                    if progress.lost > 0 {
                        self.cursor.count_lost(progress.lost);
                    }
                    let now = self.now();
                    self.report.progressed(progress, now);
                    self.settled = progress.completed.unwrap_or(self.settled);
                }
                Err(error) => self.fail(&error),
            },
            Ok(()) = self.durable.changed(), if entries => self.pump.handle_durable(),
            () = sleep_until(until.unwrap_or_else(Instant::now)), if until.is_some() => {}
            _ = self.tick.tick() => self.tell_lag(),
        }
    }

    /// Begins the account, or brings it to where the sink goes on, if that is not where it was settled.
    fn resume_account(&mut self, lost: u64) {
        let from = self.pump.confirmed();
        let begun = self.report.has_account();
        if begun && from == self.settled && lost == 0 {
            return;
        }
        match self.journal.records_from(from) {
            Ok(found) if begun => self.report.resume_account(found, lost),
            Ok(found) => self.report.begin_account(found),
            Err(error) => {
                return self.fail(&SinkError::Operator(format!("the journal cannot be read: {error}")));
            }
        }
        self.settled = from;
    }

    /// Entries before `begin` were trimmed before they could be read.
    fn count_trimmed(&mut self, begin: Offset, in_flight: u64) {
        // A journal that cannot be read is told when the pump reads it; then the account waits for the next gap.
        if let Ok(found) = self.journal.records_from(begin) {
            self.report.count_trimmed(found, in_flight);
        }
    }

    fn fail(&mut self, error: &SinkError) {
        let now = self.now();
        let pause = self.pump.handle_error(error, now);
        self.report.failed(error, pause, now);
        self.tell_lag();
    }

    fn begin_drain(&mut self, deadline: Instant) {
        self.draining = true;
        self.pump.handle_drain(deadline.saturating_duration_since(self.begun));
    }

    /// What was trimmed while the destination is away is settled at once, not when it is back.
    fn settle_trimmed(&mut self) {
        let start = self.journal.start();
        if start > self.settled && self.pump.records_in_flight() == 0 && self.report.has_account() {
            self.count_trimmed(start, 0);
            self.settled = start;
        }
    }

    fn tell_lag(&mut self) {
        self.settle_trimmed();
        let entries = self.journal.durable_end().since(self.pump.confirmed());
        let oldest = if entries == 0 { None } else { self.oldest_undelivered() };
        let now = self.now();
        self.report.lagging(entries, oldest, now);
    }

    /// When the oldest record that is not delivered was accepted. While nothing is in flight it is looked up in the
    /// journal, once per place.
    fn oldest_undelivered(&mut self) -> Option<Timestamp> {
        if let Some(time) = self.pump.oldest_in_flight() {
            return Some(time);
        }
        let confirmed = self.pump.confirmed();
        if let Some((at, time)) = self.oldest
            && at == confirmed
        {
            return Some(time);
        }
        // A journal that cannot be read is told when the pump reads it.
        let time = self.journal.reader(confirmed).next().ok().flatten()?.time();
        self.oldest = Some((confirmed, time));
        Some(time)
    }

    fn finish(&mut self) {
        self.tell_lag();
        let left = self.journal.durable_end().since(self.pump.confirmed());
        if left > 0 {
            tracing::info!("drained with {left} entries not delivered: they stay in the journal");
        }
        if let Err(error) = self.cursor.save() {
            tracing::error!(
                "a cursor could not be saved ({error}): some records will be delivered again after the next start"
            );
        }
    }
}

/// A reporter whose account begins at `position`. Where the journal cannot be read it begins with the connection.
fn begin(journal: &Journal, position: Offset, part: Part) -> Reporter {
    let report = Reporter::new(part);
    if let Ok(found) = journal.records_from(position) {
        report.begin_account(found);
    }
    report
}

/// The journal's durable end as something to await.
fn follow(journal: &Journal) -> watch::Receiver<Offset> {
    let (sender, receiver) = watch::channel(journal.durable_end());
    journal.on_durable(move |end| {
        sender.send_replace(end);
    });
    receiver
}

/// What the sink says next: of what is in flight, or, if nothing is, that the connection is lost.
async fn heard<S: Sink>(sink: &mut S, in_flight: bool) -> Result<Offset, SinkError> {
    if in_flight { sink.confirmed().await } else { Err(sink.lost().await) }
}

/// Waits until a drain is asked for that has not begun yet.
async fn drained(signal: &mut DrainSignal, draining: bool) -> Instant {
    if draining {
        return std::future::pending().await;
    }
    match signal.wait_for(Option::is_some).await {
        Ok(deadline) => deadline.expect("waited until it is set"),
        Err(_) => Instant::now() + DRAIN_DEFAULT,
    }
}
