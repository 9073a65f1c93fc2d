//! What a pump says of itself: its [`Part`] of `/health`, its metrics, and one log line per change.

use std::time::{Duration, SystemTime};

use metrics::{Counter, Gauge};
use tidegate_broker::journal::RecordsFrom;
use tidegate_broker::record::{Offset, Timestamp};

use crate::balance::Account;
use crate::health::{Lag, Part, Report, State};

use super::{Progress, Resumed, SinkError};

/// A sink whose oldest undelivered record is older is degraded, although it works.
const FAR_BEHIND: Duration = Duration::from_secs(30);
/// A sink that has rejected a record stays degraded for this long.
const REJECTS_REMEMBERED: Duration = Duration::from_secs(60);

/// How the sink was when it was last told.
#[derive(Debug, PartialEq, Eq)]
enum Told {
    Nothing,
    Working,
    Troubled { detail: String, since: Duration },
}

/// Tells what one pump does.
#[derive(Debug)]
pub(super) struct Reporter {
    part: Part,
    told: Told,
    rejected: u64,
    rejected_at: Option<Duration>,
    delivered: Counter,
    retries: Counter,
    lost: Counter,
    lag_entries: Gauge,
    lag_seconds: Gauge,
}

impl Reporter {
    pub(super) fn new(part: Part) -> Self {
        let sink = part.name();
        Self {
            told: Told::Nothing,
            rejected: part.report().rejected,
            rejected_at: None,
            delivered: metrics::counter!("tidegate_sink_delivered_total", "sink" => sink),
            retries: metrics::counter!("tidegate_sink_retries_total", "sink" => sink),
            lost: metrics::counter!("tidegate_sink_lost_total", "sink" => sink),
            lag_entries: metrics::gauge!("tidegate_sink_lag_entries", "sink" => sink),
            lag_seconds: metrics::gauge!("tidegate_sink_lag_seconds", "sink" => sink),
            part,
        }
    }

    /// The sink has connected, and goes on from `from`.
    pub(super) fn connected(&mut self, resumed: Resumed, from: Offset, now: Duration) {
        let sink = self.part.name();
        if resumed.ahead > 0 {
            tracing::error!(
                sink,
                "{sink} remembers {} entries more than the journal holds: the journal has lost its tail, or another \
                 journal filled this destination; going on at offset {from}",
                resumed.ahead
            );
        }
        self.lost(resumed.lost);
        self.working(now);
    }

    /// `entries` were trimmed from the journal before this sink had them.
    pub(super) fn lost(&self, entries: u64) {
        if entries == 0 {
            return;
        }
        let sink = self.part.name();
        self.lost.increment(entries);
        tracing::error!(
            sink,
            "{entries} entries were trimmed from the journal before {sink} had them: they are lost to it; \
             give the journal more room (journal.max_bytes) or let it refuse instead of dropping the oldest"
        );
    }

    /// The sink failed, and is tried again after `pause` (or goes on by itself).
    pub(super) fn failed(&mut self, error: &SinkError, pause: Option<Duration>, now: Duration) {
        let sink = self.part.name();
        let state = match error {
            SinkError::Retry(_) | SinkError::Waiting(_) => State::Down,
            SinkError::Operator(_) => State::Failed,
        };
        if pause.is_some() {
            self.retries.increment(1);
        }
        let detail = error.to_string();
        let since = match &self.told {
            Told::Troubled { detail: told, .. } if *told == detail => return,
            Told::Troubled { since, .. } => *since,
            Told::Nothing | Told::Working => now,
        };
        tracing::warn!(
            sink,
            "{sink}: {detail}; what is accepted stays in the journal and is delivered afterwards"
        );
        self.part.set(state, Some(detail.clone()));
        self.told = Told::Troubled { detail, since };
    }

    /// The destination confirmed more.
    pub(super) fn progressed(&mut self, progress: Progress, now: Duration) {
        let Report { rejected, reasons, .. } = self.part.report();
        let newly_rejected = rejected - self.rejected;
        if newly_rejected > 0 {
            self.rejected = rejected;
            self.rejected_at = Some(now);
        }
        if progress.lost > 0 {
            let (sink, lost) = (self.part.name(), progress.lost);
            self.lost.increment(lost);
            tracing::error!(
                sink,
                "{lost} entries are lost since the journal was repaired, before {sink} had them; it goes on behind them"
            );
        }
        let delivered = self
            .part
            .book(|account| account.as_mut().map_or(0, |account| account.passed(progress.records, &reasons)));
        self.delivered.increment(delivered);
        if progress.entries > 0 {
            self.working(now);
        }
    }

    /// Whether it is known what became of its records.
    pub(super) fn has_account(&self) -> bool {
        self.part.book(|account| account.is_some())
    }

    /// What lies before the sink when it begins.
    pub(super) fn begin_account(&self, found: RecordsFrom) {
        self.part.book(|account| *account = Some(Account::begin(found)));
    }

    /// What lies before the sink when it goes on elsewhere than where it was.
    pub(super) fn resume_account(&self, found: RecordsFrom, lost: u64) {
        let reasons = self.part.report().reasons;
        let delivered = self
            .part
            .book(|account| account.as_mut().map_or(0, |account| account.resume(found, lost, &reasons)));
        self.delivered.increment(delivered);
    }

    /// What is left when something was trimmed before it was read.
    pub(super) fn count_trimmed(&self, found: RecordsFrom, in_flight: u64) {
        self.part.book(|account| account.as_mut().map(|account| account.trimmed(found, in_flight)));
    }

    /// How far behind it is, with the time of acceptance of the oldest undelivered record.
    pub(super) fn lagging(&self, entries: u64, oldest: Option<Timestamp>, now: Duration) {
        let age_ms = oldest.map_or(0, |oldest| wall_clock_ms().saturating_sub(oldest.0));
        let lag = Lag { entries, age_ms: if entries == 0 { 0 } else { age_ms } };
        #[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
        {
            self.lag_entries.set(lag.entries as f64);
            self.lag_seconds.set(lag.age_ms as f64 / 1_000.0);
        }
        let far_behind = u128::from(lag.age_ms) > FAR_BEHIND.as_millis();
        let rejecting = self.rejected_at.is_some_and(|at| now.saturating_sub(at) < REJECTS_REMEMBERED);
        let working = self.told == Told::Working;
        self.part.update(|report| {
            report.lag = Some(lag);
            if working {
                report.state = if far_behind || rejecting { State::Degraded } else { State::Up };
                if !rejecting {
                    report.detail = None;
                }
            }
        });
    }

    fn working(&mut self, now: Duration) {
        let sink = self.part.name();
        match &self.told {
            Told::Working => return,
            Told::Nothing => tracing::info!(sink, "{sink} is connected"),
            Told::Troubled { since, .. } => {
                let seconds = now.saturating_sub(*since).as_secs_f64();
                tracing::info!(sink, "{sink} is back after {seconds:.1} s");
            }
        }
        self.told = Told::Working;
        self.part.set(State::Up, None);
    }
}

fn wall_clock_ms() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}
