//! A disk that is full, at every size it may have: nothing acknowledged is lost, nothing is accepted that does not fit,
//! and it goes on by itself when there is space.

use super::*;
use crate::record::Refused;

fn open(disk: &MemoryStorage, options: &Options) -> Result<(Journal, Appender, Writer), OpenError> {
    Journal::open_stepped(Arc::new(disk.clone()), options.clone())
}

/// Appends until the journal refuses; the number of the next entry.
fn fill(appender: &mut Appender, writer: &mut Writer, mut number: u64) -> u64 {
    while number < 2_000 {
        match appender.append(&Entry::Control(&payload(number))) {
            Ok(appended) => assert_eq!(appended.offset, Offset(number)),
            Err(Refused::Full) => return number,
            Err(Refused::Failed) => panic!("a full disk is no failure"),
        }
        number += 1;
        appender.submit();
        writer.step();
    }
    number
}

fn durable(appender: &mut Appender) -> Vec<Vec<u8>> {
    std::iter::from_fn(|| appender.take_durable()).flat_map(|batch| contents(&batch)).collect()
}

#[test]
fn at_every_size_of_the_disk_nothing_is_lost_and_it_goes_on_when_there_is_space() {
    for size in (200..6_000).step_by(7) {
        let disk = MemoryStorage::default();
        disk.seed(size);
        disk.set_capacity(Some(size));
        let (journal, mut appender, mut writer) = open(&disk, &small()).unwrap();
        // Holds everything back.
        let Ok(cursor) = journal.cursor("sink", StartAt::Oldest) else { continue };
        let accepted = fill(&mut appender, &mut writer, 0);
        assert!(accepted < 2_000 && disk.used_bytes() <= size, "{size}");
        let status = journal.status();
        assert!(status.full && status.failed.is_none(), "{status:?}");
        assert!(status.no_space.unwrap().contains(".log"));
        let acknowledged = durable(&mut appender);
        assert_eq!(acknowledged, expected(0..acknowledged.len() as u64));
        assert!(!writer.step(), "it does not fit any better");

        let crashed = disk.fork();
        crashed.lose_power(size);
        crashed.set_capacity(None);
        let (again, ..) = open(&crashed, &small()).unwrap();
        assert!(again.durable_end().0 >= acknowledged.len() as u64, "{size}");
        assert_eq!(read_all(&again, Offset(0)), expected(0..again.durable_end().0));

        disk.set_capacity(Some(size + 2_000));
        writer.step();
        let status = journal.status();
        assert!(!status.full && status.no_space.is_none(), "{size}: {status:?}");
        assert_eq!(appender.refused(), None);
        let further = fill(&mut appender, &mut writer, accepted);
        assert!(further > accepted, "{size}");
        cursor.advance(journal.durable_end());
        writer.finish();
        let status = journal.status();
        assert_eq!(status.failed, None);
        drop((journal, appender, writer));
        disk.kill();
        disk.set_capacity(None);
        let (again, ..) = open(&disk, &small()).unwrap();
        let (start, end) = (again.start().0, again.durable_end().0);
        assert!(accepted <= end && end <= further, "{size}: {end}");
        assert_eq!(read_all(&again, Offset(0)), expected(start..end));
    }
}

#[test]
fn a_disk_smaller_than_the_journal_is_used_in_turns_like_a_small_journal() {
    for full in [FullPolicy::Refuse, FullPolicy::DropOldest] {
        let disk = MemoryStorage::default();
        disk.set_capacity(Some(20_000));
        let options = Options { full, segment_bytes: 4_000, max_bytes: 200_000, ..small() };
        let (journal, mut appender, mut writer) = open(&disk, &options).unwrap();
        let cursor = journal.cursor("sink", StartAt::Oldest).unwrap();
        for number in 0..4_000 {
            push(&mut appender, number);
            appender.submit();
            writer.step();
            if full == FullPolicy::Refuse {
                cursor.advance(journal.durable_end());
            }
        }
        let status = journal.status();
        assert_eq!(status.durable_end, Offset(4_000));
        assert!(status.start.0 > 3_000, "{status:?}");
        assert_eq!(cursor.skipped() > 0, full == FullPolicy::DropOldest);
        assert_eq!(read_all(&journal, Offset(0)), expected(status.start.0..4_000));
    }
}

#[test]
fn the_writer_looks_for_space_by_itself() {
    let disk = MemoryStorage::default();
    disk.set_capacity(Some(3_000));
    let (journal, mut appender) = Journal::open(Arc::new(disk.clone()), small()).unwrap();
    let _cursor = journal.cursor("sink", StartAt::Oldest).unwrap();
    let (told, heard) = sync_channel(10_000);
    journal.on_durable(move |end| told.try_send(end).unwrap());
    let mut accepted = 0;
    while appender.append(&Entry::Control(&payload(accepted))).is_ok() {
        accepted += 1;
        appender.submit();
        if accepted % 4 == 0 && appender.backlog_bytes() > 400 {
            let _ = heard.recv_timeout(Duration::from_millis(200));
        }
    }
    assert_eq!(appender.refused(), Some(Refused::Full));
    disk.set_capacity(None);
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    while appender.refused().is_some() || journal.durable_end().0 < accepted {
        assert!(std::time::Instant::now() < deadline, "{:?}", journal.status());
        appender.submit();
        let _ = heard.recv_timeout(Duration::from_millis(100));
    }
    assert_eq!(durable(&mut appender), expected(0..accepted));
    journal.close();
}
