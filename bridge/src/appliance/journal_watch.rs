//! Tells, in `/health` and in the log, when the journal has failed, is full, or holds records for a sink that is off.

use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use tidegate_broker::journal::{Journal, Status};

use crate::health::{Part, State};

const LOOK_EVERY: Duration = Duration::from_millis(500);

/// A thread that looks at the journal twice a second.
pub(super) struct JournalWatch {
    stop: SyncSender<()>,
    thread: Option<JoinHandle<()>>,
}

impl JournalWatch {
    /// Begins to look.
    pub(super) fn start(journal: &Journal, part: Part) -> Self {
        let (stop, stopped) = sync_channel(1);
        let journal = journal.clone();
        let watch = move || {
            let mut told = State::Starting;
            loop {
                told = tell(&journal.status(), &part, told);
                match stopped.recv_timeout(LOOK_EVERY) {
                    Err(RecvTimeoutError::Timeout) => {}
                    Ok(()) | Err(RecvTimeoutError::Disconnected) => return,
                }
            }
        };
        let thread = std::thread::Builder::new().name("tidegate-watch".to_owned()).spawn(watch);
        Self { stop, thread: thread.ok() }
    }

    /// Ends the thread.
    pub(super) fn stop(self) {
        // It may have ended already; then there is nothing to stop.
        _ = self.stop.try_send(());
        if let Some(thread) = self.thread {
            _ = thread.join();
        }
    }
}

/// Says in `part` how the journal is; logs it when that is new. Returns what was told.
fn tell(status: &Status, part: &Part, told: State) -> State {
    let (state, detail) = judge(status);
    if state != told {
        match (state, &detail) {
            (State::Failed, Some(detail)) => tracing::error!("{detail}"),
            (_, Some(detail)) => tracing::warn!("{detail}"),
            (_, None) if told != State::Starting => tracing::info!("the journal takes entries again"),
            (_, None) => {}
        }
    }
    part.set(state, detail);
    state
}

/// How the journal is, and what to do about it.
fn judge(status: &Status) -> (State, Option<String>) {
    if let Some(failure) = &status.failed {
        let detail = format!(
            "the journal takes nothing more, because a write failed: {failure}. Publishers are refused and nothing \
             acknowledged is lost. Repair the disk, then start tidegate again"
        );
        return (State::Failed, Some(detail));
    }
    if status.full {
        let slowest = status.cursors.iter().min_by_key(|cursor| cursor.position);
        let slowest = slowest.map_or_else(String::new, |cursor| {
            format!("; the slowest reader is {} ({} bytes behind)", cursor.name, cursor.lag_bytes)
        });
        let detail = format!(
            "the journal is full ({} of {} bytes): publishers are held back{slowest}. Let it catch up, or raise \
             TIDEGATE_JOURNAL_MAX_BYTES",
            status.bytes, status.max_bytes
        );
        return (State::Degraded, Some(detail));
    }
    (State::Up, None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidegate_broker::journal::CursorStatus;
    use tidegate_broker::record::Offset;

    fn status() -> Status {
        let cursor = |name: &str, position, lag_bytes| CursorStatus {
            name: name.to_owned(),
            position: Offset(position),
            lag_bytes,
            skipped: 0,
        };
        Status {
            start: Offset(0),
            durable_end: Offset(10),
            bytes: 100,
            max_bytes: 100,
            segments: 1,
            full: false,
            failed: None,
            cursors: vec![cursor("kafka", 9, 10), cursor("postgres", 2, 80)],
        }
    }

    #[test]
    fn a_journal_that_failed_says_what_failed_and_what_to_do() {
        let part = Part::new("journal");
        let mut status = status();
        assert_eq!(tell(&status, &part, State::Starting), State::Up);
        status.failed = Some("sync of 00001.log: Input/output error".to_owned());
        status.full = true;
        assert_eq!(tell(&status, &part, State::Up), State::Failed);
        let report = part.report();
        assert_eq!(report.state, State::Failed);
        let detail = report.detail.unwrap();
        assert!(
            detail.contains("sync of 00001.log: Input/output error")
                && detail.contains("start tidegate again")
        );
    }

    #[test]
    fn a_full_journal_names_the_reader_that_holds_it() {
        let mut status = status();
        status.full = true;
        let (state, detail) = judge(&status);
        assert_eq!(state, State::Degraded);
        assert!(detail.unwrap().contains("the slowest reader is postgres (80 bytes behind)"));
    }
}
