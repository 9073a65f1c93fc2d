//! A fault at every single call of one fixed life of a journal: it rolls, saves cursors, trims and ends in order.

use super::*;
use crate::record::Refused;

/// What a life came to, as far as anybody outside was told.
#[derive(Default)]
struct Told {
    /// Contents that came back as durable.
    durable: Vec<Vec<u8>>,
    /// Whether the journal said that it had failed.
    failed: bool,
    /// The position that the cursor was told to have been saved at.
    saved: Offset,
}

/// Appends 80 entries in groups of four. Opening may fail.
fn live(disk: &MemoryStorage, told: &mut Told) -> Result<(), OpenError> {
    let options = Options { max_bytes: 4_000, ..small() };
    let time = AtomicU64::new(1_000_000);
    let clock: Clock = Arc::new(move || Timestamp(time.fetch_add(40, Ordering::Relaxed)));
    let (journal, mut appender, mut writer) =
        Journal::open_stepped_at(Arc::new(disk.clone()), options, clock)?;
    let cursor = || journal.cursor("sink", StartAt::Oldest);
    let cursor = cursor().or_else(|_| cursor()).ok();
    for number in 0..80 {
        let mut appended = appender.append(&Entry::Control(&payload(number)));
        if appended == Err(Refused::Full) && journal.status().no_space.is_some() {
            // The next try finds space.
            writer.step();
            appended = appender.append(&Entry::Control(&payload(number)));
        }
        match appended {
            Ok(appended) => assert_eq!(appended.offset, Offset(number)),
            Err(Refused::Failed) => break,
            Err(Refused::Full) => panic!("the cursor follows: {:?}", journal.status()),
        }
        if number % 4 == 3 {
            appender.submit();
            writer.step();
        }
        told.durable
            .extend(std::iter::from_fn(|| appender.take_durable()).flat_map(|batch| contents(&batch)));
        assert_eq!(told.durable.len() as u64, journal.durable_end().0);
        if let Some(cursor) = &cursor {
            cursor.advance(journal.durable_end());
            if number % 20 == 19 && cursor.save().is_ok() {
                told.saved = cursor.position();
            }
        }
    }
    writer.finish();
    told.failed = journal.status().failed.is_some();
    Ok(())
}

fn check_after(disk: &MemoryStorage, told: &Told, fault: u64) {
    let opened = Journal::open_stepped(Arc::new(disk.clone()), small());
    let (journal, appender, _writer) =
        opened.unwrap_or_else(|error| panic!("fault at call {fault}: {error}"));
    let (start, end) = (journal.start().0, journal.durable_end().0);
    assert!(end >= told.durable.len() as u64, "fault at call {fault}: {end} entries are left");
    assert_eq!(appender.end().0, end);
    assert_eq!(read_all(&journal, Offset(0)), expected(start..end), "fault at call {fault}");
    let cursor = journal.cursor("sink", StartAt::Oldest).unwrap();
    assert!(cursor.position() >= told.saved && cursor.position().0 <= end, "fault at call {fault}");
    assert_eq!(cursor.skipped(), 0, "fault at call {fault}");
}

/// How many calls the life makes when nothing fails.
fn calls() -> u64 {
    let (disk, mut told) = (MemoryStorage::default(), Told::default());
    live(&disk, &mut told).unwrap();
    assert_eq!(told.durable, expected(0..80));
    assert!(!told.failed);
    check_after(&disk, &told, 0);
    disk.calls()
}

#[test]
fn a_fault_at_any_call_loses_nothing_that_was_acknowledged() {
    for fault in 1..=calls() {
        for seed in 0..4 {
            let (disk, mut told) = (MemoryStorage::default(), Told::default());
            disk.seed(seed);
            disk.fail(None, fault);
            let opened = live(&disk, &mut told);
            if told.durable.len() < 80 {
                assert!(opened.is_err() || told.failed, "call {fault} failed and nobody was told");
            }
            if seed % 2 == 0 {
                disk.kill()
            } else {
                disk.lose_power(seed)
            }
            check_after(&disk, &told, fault);
        }
    }
}

/// The second try of a call that found no space may succeed, so nobody need be told; but nothing may be lost.
#[test]
fn want_of_space_at_any_call_loses_nothing_that_was_acknowledged() {
    for fault in 1..=calls() {
        for seed in 0..4 {
            let (disk, mut told) = (MemoryStorage::default(), Told::default());
            disk.seed(seed);
            disk.fail_with(None, fault, Fault::NoSpace);
            let opened = live(&disk, &mut told);
            assert!(told.durable.len() == 80 || opened.is_err() || told.failed, "call {fault}");
            if seed % 2 == 0 {
                disk.kill()
            } else {
                disk.lose_power(seed)
            }
            check_after(&disk, &told, fault);
        }
    }
}

/// Each kind of call, from some point on for ever: a disk that has become read-only, or lost its folder.
#[test]
fn a_kind_of_call_that_fails_for_ever_loses_nothing_that_was_acknowledged() {
    use Call::*;
    for call in [List, Create, Open, Rename, Remove, SyncFolder, Read, Write, Sync, Len, SetLen] {
        for first in 1..40 {
            let (disk, mut told) = (MemoryStorage::default(), Told::default());
            for nth in 0..200 {
                disk.fail(Some(call), first + nth);
            }
            let _ = live(&disk, &mut told);
            disk.lose_power(first);
            check_after(&disk, &told, first);
        }
    }
}

/// A sync tells of the want of space too late: the writes before it are in doubt.
#[test]
fn a_sync_without_space_is_a_failed_sync() {
    let disk = MemoryStorage::default();
    let (journal, mut appender, mut writer) = Journal::open_stepped(Arc::new(disk.clone()), small()).unwrap();
    push(&mut appender, 0);
    appender.submit();
    disk.fail_with(Some(Call::Sync), 1, Fault::NoSpace);
    writer.step();
    assert!(journal.status().failed.unwrap().contains("no space"));
    assert_eq!(appender.append(&Entry::Control(b"x")), Err(Refused::Failed));
    assert_eq!(journal.durable_end(), Offset(0));
}

#[test]
fn a_power_loss_at_any_call_loses_nothing_that_was_acknowledged() {
    for fault in 1..=calls() {
        for seed in 0..8 {
            let (disk, mut told) = (MemoryStorage::default(), Told::default());
            disk.seed(seed);
            disk.power_off_at(fault);
            // Whether it opened or not, it must open after the power is back.
            let _ = live(&disk, &mut told);
            disk.lose_power(seed);
            check_after(&disk, &told, fault);
        }
    }
}

#[test]
fn a_power_loss_at_any_call_of_a_recovery_loses_nothing() {
    let crashed = |seed| {
        let (disk, mut told) = (MemoryStorage::default(), Told::default());
        disk.seed(seed);
        disk.power_off_at(100 + seed * 7);
        let _ = live(&disk, &mut told);
        disk.lose_power(seed);
        (disk, told)
    };
    for seed in 0..20 {
        for fault in 1..40 {
            let (disk, told) = crashed(seed);
            disk.power_off_at(fault);
            let _ = Journal::open_stepped(Arc::new(disk.clone()), small());
            disk.lose_power(fault);
            check_after(&disk, &told, fault);
        }
    }
}

#[test]
fn a_new_name_is_durable_before_anything_behind_it_is_acknowledged() {
    let disk = MemoryStorage::default();
    let (_journal, mut appender, mut writer) =
        Journal::open_stepped(Arc::new(disk.clone()), small()).unwrap();
    for number in 0..60 {
        push(&mut appender, number);
        appender.submit();
        writer.step();
    }
    disk.lose_power_keeping(Kept::Nothing, Kept::Nothing, 0);
    let (journal, ..) = Journal::open_stepped(Arc::new(disk.clone()), small()).unwrap();
    assert!(journal.status().segments > 2);
    assert_eq!(read_all(&journal, Offset(0)), expected(0..60));
}

#[test]
fn after_one_failed_write_every_later_one_is_refused_until_reopened() {
    for call in [Call::Write, Call::Sync] {
        let disk = MemoryStorage::default();
        let (journal, mut appender, mut writer) =
            Journal::open_stepped(Arc::new(disk.clone()), small()).unwrap();
        push(&mut appender, 0);
        appender.submit();
        disk.fail(Some(call), 1);
        writer.step();
        let calls = disk.calls();
        for _ in 0..3 {
            assert_eq!(appender.append(&Entry::Control(b"x")), Err(Refused::Failed));
            assert_eq!(appender.refused(), Some(Refused::Failed));
            appender.submit();
            writer.step();
        }
        writer.finish();
        assert_eq!(disk.calls(), calls, "a failed journal leaves the disk alone");
        assert!(journal.status().failed.unwrap().contains("simulated"));
        disk.kill();
        let (_, mut appender, _) = Journal::open_stepped(Arc::new(disk.clone()), small()).unwrap();
        assert!(push(&mut appender, 0) <= Offset(1));
    }
}
