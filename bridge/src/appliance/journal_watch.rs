//! Tells in the log when the journal has failed or is full, when a reader is about to fill it, and when that is over.
//! `/health` tells it by itself.

use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use tidegate_broker::journal::{CursorStatus, FullPolicy, Journal, Status};
use tidegate_broker::server::SESSIONS_CURSOR;

use crate::health::age_ms;

/// How the journal is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Taking,
    Full,
    Failed,
}

/// A reader that holds so much of what the journal may take is told of, in percent.
const HELD_PERCENT: u64 = 80;

const LOOK_EVERY: Duration = Duration::from_millis(500);

/// A thread that looks at the journal twice a second.
pub(super) struct JournalWatch {
    stop: SyncSender<()>,
    thread: Option<JoinHandle<()>>,
}

impl JournalWatch {
    /// Begins to look.
    pub(super) fn start(journal: &Journal) -> Self {
        let (stop, stopped) = sync_channel(1);
        let journal = journal.clone();
        let watch = move || {
            let mut told = State::Taking;
            let mut held = None;
            loop {
                let status = journal.status();
                told = tell(&status, told);
                held = tell_held(&status, held.as_deref());
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

/// Logs how the journal is when that is new. Returns what was told.
fn tell(status: &Status, told: State) -> State {
    let (state, detail) = judge(status);
    if state != told {
        match state {
            State::Failed => tracing::error!("{detail}"),
            State::Full => tracing::warn!("{detail}"),
            State::Taking => tracing::info!("{detail}"),
        }
    }
    state
}

/// Logs once which reader holds most of the journal, until it is another one or none. Returns which one does.
fn tell_held(status: &Status, told: Option<&str>) -> Option<String> {
    let cursor = holder(status)?;
    if told != Some(cursor.name.as_str()) {
        tracing::warn!("{}", held(status, cursor));
    }
    Some(cursor.name.clone())
}

/// The slowest reader, if it holds so much that it must be told. The broker's own follows its checkpoints by itself.
fn holder(status: &Status) -> Option<&CursorStatus> {
    let others = status.cursors.iter().filter(|cursor| cursor.name != SESSIONS_CURSOR);
    let slowest = others.min_by_key(|cursor| cursor.position)?;
    (slowest.lag_bytes >= status.max_bytes / 100 * HELD_PERCENT).then_some(slowest)
}

fn held(status: &Status, cursor: &CursorStatus) -> String {
    let name = &cursor.name;
    let age_s = cursor.behind_since.map_or(0, age_ms) / 1_000;
    let then = match status.policy {
        FullPolicy::Refuse => "publishers are held back",
        FullPolicy::DropOldest => "what it has not read is dropped",
    };
    format!(
        "{name} holds {} of the {} bytes that the journal may take, the oldest for {age_s} s: when it is full, {then}. \
         Bring its destination back, raise TIDEGATE_JOURNAL_MAX_BYTES, or, if it is not wanted any more, let go of it with \
         `tidegate journal cursors remove {name}` while tidegate does not run",
        cursor.lag_bytes, status.max_bytes
    )
}

/// How the journal is, and what to do about it.
fn judge(status: &Status) -> (State, String) {
    if let Some(failure) = &status.failed {
        let detail = format!(
            "the journal takes nothing more, because a write failed: {failure}. Publishers are refused and nothing \
             acknowledged is lost. Repair the disk, then start tidegate again"
        );
        return (State::Failed, detail);
    }
    if let Some(reason) = &status.no_space {
        let detail = format!(
            "the disk is full ({reason}): publishers are held back, and nothing acknowledged is lost. Make space, or let \
             the slowest reader catch up; it goes on by itself. Set TIDEGATE_JOURNAL_MAX_BYTES below what the disk has"
        );
        return (State::Full, detail);
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
        return (State::Full, detail);
    }
    (State::Taking, "the journal takes entries again".to_owned())
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
            behind_since: None,
        };
        Status {
            start: Offset(0),
            durable_end: Offset(10),
            bytes: 100,
            max_bytes: 100,
            policy: FullPolicy::Refuse,
            segments: 1,
            full: false,
            no_space: None,
            failed: None,
            cursors: vec![cursor("kafka", 9, 10), cursor("postgres", 2, 80)],
        }
    }

    #[test]
    fn a_journal_that_failed_says_what_failed_and_what_to_do() {
        let mut status = status();
        assert_eq!(judge(&status).0, State::Taking);
        status.failed = Some("sync of 00001.log: Input/output error".to_owned());
        status.full = true;
        let (state, detail) = judge(&status);
        assert_eq!(state, State::Failed);
        assert!(detail.contains("sync of 00001.log: Input/output error"), "{detail}");
        assert!(detail.contains("start tidegate again"), "{detail}");
    }

    #[test]
    fn a_full_journal_names_the_reader_that_holds_it() {
        let mut status = status();
        status.full = true;
        let (state, detail) = judge(&status);
        assert_eq!(state, State::Full);
        assert!(detail.contains("the slowest reader is postgres (80 bytes behind)"), "{detail}");
    }

    #[test]
    fn a_full_disk_is_told_from_a_full_journal() {
        let mut status = status();
        status.full = true;
        status.no_space = Some("no space for 00001.log: No space left on device".to_owned());
        let (state, detail) = judge(&status);
        assert_eq!(state, State::Full);
        assert!(detail.contains("the disk is full (no space for 00001.log"), "{detail}");
    }

    #[test]
    fn a_reader_that_holds_four_fifths_is_told_of_once_until_it_has_caught_up() {
        let mut status = status();
        let message = held(&status, holder(&status).unwrap());
        assert!(message.starts_with("postgres holds 80 of the 100 bytes"), "{message}");
        assert!(message.contains("publishers are held back"), "{message}");
        assert!(message.contains("tidegate journal cursors remove postgres"), "{message}");
        assert_eq!(tell_held(&status, None).as_deref(), Some("postgres"));
        // The broker's own cursor, behind until the next checkpoint, hides nobody.
        let own = CursorStatus {
            name: SESSIONS_CURSOR.to_owned(),
            position: Offset(0),
            ..status.cursors[1].clone()
        };
        status.cursors.push(own);
        assert_eq!(holder(&status).map(|cursor| cursor.name.as_str()), Some("postgres"));
        status.cursors[1].lag_bytes = 79;
        assert_eq!(tell_held(&status, Some("postgres")), None);
        status.policy = FullPolicy::DropOldest;
        assert!(held(&status, &status.cursors[1]).contains("is dropped"));
    }
}
