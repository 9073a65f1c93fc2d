//! A journal that holds records before anything carries them, and what carries all of them.

use std::path::Path;
use std::time::Duration;

use tidegate::health::Part;
use tidegate::pump::{self, Sink};
use tidegate_broker::journal::{FileStorage, FullPolicy, Journal, Options, StartAt, SyncPolicy};
use tidegate_broker::record::{Append, Entry, Record};
use tokio::sync::watch;

/// Records that are handed to the writer at a time.
const SUBMITTED: u64 = 1_000;

/// Makes a journal in `folder` of all records that `each` hands over, and returns when they can be read.
///
/// # Panics
///
/// If `folder` cannot be written to.
pub fn journal(folder: &Path, each: impl FnOnce(&mut dyn FnMut(&Record<'_>))) -> Journal {
    let options = Options {
        segment_bytes: 64 << 20,
        max_bytes: 4 << 30,
        max_age: None,
        full: FullPolicy::Refuse,
        sync: SyncPolicy::Never,
        tail_bytes: 1 << 20,
        batch_bytes: 1 << 20,
    };
    let storage = FileStorage::open(folder).expect("the folder can be written to");
    let (journal, mut appender) = Journal::open(storage, options).expect("the folder holds no other journal");
    let mut count = 0;
    each(&mut |record| {
        appender.append(&Entry::Record(*record)).expect("there is room for all");
        count += 1;
        if count % SUBMITTED == 0 {
            appender.submit();
        }
    });
    while journal.durable_end() < appender.end() {
        appender.submit();
        std::thread::yield_now();
    }
    journal
}

/// Carries all of `journal` to `sink`, from the beginning if `cursor` is new.
///
/// # Panics
///
/// If this process can have no further cursor or runtime.
pub fn carry(sink: impl Sink, part: Part, journal: &Journal, cursor: &str) {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime can be made");
    let cursor = journal.cursor(cursor, StartAt::Oldest).expect("the cursor's name is legal");
    let (drain, signal) = watch::channel(None);
    runtime.block_on(async {
        let carried = pump::carry(journal, &cursor, sink, part, signal);
        let done = async {
            while cursor.position() < journal.durable_end() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            drain.send_replace(Some(tokio::time::Instant::now()));
        };
        tokio::join!(carried, done);
    });
}
