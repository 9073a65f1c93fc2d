//! The journal as the appliance uses it: a writer thread, an appender that follows its backlog, readers and cursors
//! on threads of their own, on a real folder.

use std::sync::atomic::AtomicUsize;
use std::sync::mpsc::{Receiver, SyncSender};
use std::time::Instant;

use super::*;
use crate::record::Refused;

const ENTRIES: u64 = 30_000;
/// Far more than it takes; only a journal that hangs needs it.
const DEADLINE: Duration = Duration::from_secs(120);

/// Tells each change of the durable end, and keeps one that nobody has taken yet.
fn follow(journal: &Journal) -> Receiver<()> {
    let (told, heard): (SyncSender<()>, _) = sync_channel(1);
    journal.on_durable(move |_| {
        // Full: whoever listens has one to take already.
        let _ = told.try_send(());
    });
    heard
}

/// Until something has changed; but not for ever, for a change may have been told just before.
fn wait(heard: &Receiver<()>) {
    let _ = heard.recv_timeout(Duration::from_millis(100));
}

/// Appends all entries as the shard does: never more than 64 KiB ahead of the disk, waiting where it is refused.
fn append_all(mut appender: Appender, heard: &Receiver<()>) {
    let mut durable = 0;
    let mut number = 0;
    while durable < ENTRIES {
        while number < ENTRIES && appender.backlog_bytes() < 64 << 10 {
            match appender.append(&Entry::Control(&payload(number))) {
                Ok(appended) => assert_eq!(appended.offset, Offset(number)),
                Err(Refused::Full) => break,
                Err(Refused::Failed) => panic!("the journal failed"),
            }
            number += 1;
            if number % 64 == 0 {
                break;
            }
        }
        appender.submit();
        while let Some(batch) = appender.take_durable() {
            assert_eq!(batch.base(), Offset(durable));
            durable = batch.end().0;
        }
        if number == ENTRIES || appender.backlog_bytes() >= 64 << 10 || appender.refused().is_some() {
            wait(heard);
        }
    }
}

/// Reads all entries and moves `cursor` behind them.
fn read_to_end(journal: &Journal, cursor: &Cursor, heard: &Receiver<()>, done: &AtomicUsize) {
    let mut reader = journal.reader(cursor.position());
    let deadline = Instant::now() + DEADLINE;
    while reader.offset().0 < ENTRIES {
        assert!(Instant::now() < deadline, "stuck at {:?} of {:?}", reader.offset(), journal.status());
        match reader.next().unwrap() {
            Some(batch) => {
                assert!(batch.end() <= journal.durable_end());
                assert_eq!(contents(&batch), expected(batch.base().0..batch.end().0));
                cursor.advance(batch.end());
            }
            None => wait(heard),
        }
    }
    assert_eq!(reader.skipped(), 0, "its cursor held everything for it");
    done.fetch_add(1, Ordering::Relaxed);
}

#[test]
fn readers_on_threads_see_every_entry_once_while_the_journal_trims_behind_them() {
    let folder = tempfile::tempdir().unwrap();
    let options = Options {
        segment_bytes: 20_000,
        max_bytes: 100_000,
        tail_bytes: 4_000,
        batch_bytes: 2_000,
        ..Options::default()
    };
    let storage = FileStorage::open(folder.path()).unwrap();
    let (journal, appender) = Journal::open(storage, options.clone()).unwrap();
    let done = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for name in ["kafka", "postgres", "gateway"] {
            let (cursor, heard) = (journal.cursor(name, StartAt::Oldest).unwrap(), follow(&journal));
            let (journal, done) = (&journal, &done);
            scope.spawn(move || read_to_end(journal, &cursor, &heard, done));
        }
        let heard = follow(&journal);
        scope.spawn(move || append_all(appender, &heard));
    });
    assert_eq!(done.load(Ordering::Relaxed), 3);
    let status = journal.status();
    assert!(status.start.0 > ENTRIES / 2, "it trimmed on the way: {status:?}");
    journal.close();
    drop(journal);
    let storage = FileStorage::open(folder.path()).unwrap();
    let (journal, _appender) = Journal::open(storage, options).unwrap();
    assert_eq!(journal.durable_end(), Offset(ENTRIES));
    assert!(journal.status().cursors.iter().all(|cursor| cursor.position == Offset(ENTRIES)));
}

#[test]
fn a_dropped_journal_closes_in_order() {
    let disk = MemoryStorage::default();
    let (journal, mut appender) = Journal::open(Arc::new(disk.clone()), small()).unwrap();
    let cursor = journal.cursor("sink", StartAt::Oldest).unwrap();
    assert_eq!((0..100).map(|number| push(&mut appender, number)).last(), Some(Offset(99)));
    drop(journal);
    drop(appender);
    // The thread has ended: nothing is written any more, and everything is synced.
    disk.lose_power(5);
    let (again, ..) = Journal::open_stepped(Arc::new(disk.clone()), small()).unwrap();
    assert_eq!(read_all(&again, Offset(0)), expected(0..100));
    assert_eq!(cursor.position(), Offset(0));
}

#[test]
fn with_an_interval_the_sync_comes_by_itself() {
    let disk = MemoryStorage::default();
    let sync = SyncPolicy::Interval(Duration::from_millis(20));
    let (journal, mut appender) = Journal::open(Arc::new(disk.clone()), Options { sync, ..small() }).unwrap();
    let heard = follow(&journal);
    push(&mut appender, 0);
    appender.submit();
    heard.recv_timeout(DEADLINE).unwrap();
    assert_eq!(journal.durable_end(), Offset(1));
    let deadline = Instant::now() + DEADLINE;
    while journal.shared.synced.load(Ordering::Acquire) == 0 {
        assert!(Instant::now() < deadline);
        std::thread::yield_now();
    }
    disk.lose_power(0);
    let (again, ..) = Journal::open_stepped(Arc::new(disk.clone()), small()).unwrap();
    assert_eq!(again.durable_end(), Offset(1));
}

#[test]
fn a_closed_journal_refuses_and_can_still_be_read() {
    let disk = MemoryStorage::default();
    let (journal, mut appender) = Journal::open(Arc::new(disk.clone()), small()).unwrap();
    push(&mut appender, 0);
    appender.submit();
    journal.close();
    assert_eq!(appender.append(&Entry::Control(b"x")), Err(Refused::Failed));
    assert_eq!(appender.refused(), Some(Refused::Failed));
    assert_eq!(read_all(&journal, Offset(0)), expected(0..1));
    assert_eq!(journal.status().failed, None);
    journal.close();
}

#[test]
fn a_notifier_may_hold_the_last_handle() {
    let (journal, mut appender) = Journal::open(Arc::new(MemoryStorage::default()), small()).unwrap();
    let held = std::sync::Mutex::new(Some(journal.clone()));
    let (told, heard) = sync_channel(1);
    journal.on_durable(move |_| {
        drop(held.lock().unwrap().take());
        let _ = told.try_send(());
    });
    push(&mut appender, 0);
    appender.submit();
    drop((journal, appender));
    heard.recv_timeout(DEADLINE).unwrap();
}
