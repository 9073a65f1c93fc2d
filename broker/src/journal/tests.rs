//! Tests of the whole journal.

mod clock;
mod count;
mod damage;
mod faults;
mod limits;
mod opening;
mod repair;
mod space;
mod threads;
mod topics;
mod world;

use std::sync::mpsc::sync_channel;
use std::time::Duration;

use super::*;
use crate::record::{Append, Batch, Entry, Properties, Qos, Record};
use crate::topic::TopicName;

/// Small enough that a few entries roll, trim and overflow.
fn small() -> Options {
    Options {
        segment_bytes: 1_000,
        max_bytes: 20_000,
        tail_bytes: 600,
        batch_bytes: 300,
        ..Options::default()
    }
}

/// An entry's content follows from its number.
fn push(appender: &mut Appender, number: u64) -> Offset {
    let payload = payload(number);
    appender.append(&Entry::Control(&payload)).unwrap().offset
}

fn payload(number: u64) -> Vec<u8> {
    let mut payload = number.to_le_bytes().to_vec();
    payload.resize(8 + (number % 40) as usize, number as u8);
    payload
}

/// Reads everything from `from` on and checks that it is dense.
fn read_all(journal: &Journal, from: Offset) -> Vec<Vec<u8>> {
    let mut reader = journal.reader(from);
    let mut read = Vec::new();
    let mut expected = reader.offset();
    while let Some(batch) = reader.next().unwrap() {
        assert_eq!(batch.base(), expected);
        read.extend(contents(&batch));
        expected = batch.end();
        assert_eq!(reader.offset(), expected);
    }
    assert_eq!(expected, journal.durable_end());
    read
}

fn contents(batch: &Batch) -> Vec<Vec<u8>> {
    let body = |entry| match entry {
        Entry::Control(body) => Vec::from(body),
        Entry::Record(record) => panic!("no record was appended: {record:?}"),
    };
    batch.entries().map(|(_, entry)| body(entry)).collect()
}

fn expected(numbers: std::ops::Range<u64>) -> Vec<Vec<u8>> {
    numbers.map(payload).collect()
}

#[test]
fn what_was_appended_is_read_back_from_memory_and_after_reopening() {
    let folder = tempfile::tempdir().unwrap();
    let id = {
        let (journal, mut appender) =
            Journal::open(FileStorage::open(folder.path()).unwrap(), small()).unwrap();
        let (told, heard) = sync_channel(1_000);
        journal.on_durable(move |end| told.try_send(end).unwrap());
        for number in 0..200 {
            assert_eq!(push(&mut appender, number), Offset(number));
            appender.submit();
        }
        let mut durable = Vec::new();
        while durable.len() < 200 {
            appender.submit();
            match appender.take_durable() {
                Some(batch) => durable.extend(contents(&batch)),
                None => drop(heard.recv_timeout(Duration::from_secs(10)).unwrap()),
            }
        }
        assert_eq!(durable, expected(0..200));
        assert_eq!(journal.durable_end(), Offset(200));
        assert_eq!(appender.backlog_bytes(), 0);
        assert!(journal.status().segments > 3);
        assert_eq!(read_all(&journal, Offset(0)), expected(0..200));
        assert_eq!(read_all(&journal, Offset(77)), expected(77..200));
        journal.id()
    };
    let (journal, mut appender) = Journal::open(FileStorage::open(folder.path()).unwrap(), small()).unwrap();
    assert_eq!(journal.id(), id);
    assert_eq!(appender.end(), Offset(200));
    assert_eq!(read_all(&journal, Offset(0)), expected(0..200));
    assert_eq!(push(&mut appender, 200), Offset(200));
    drop(appender);
    journal.close();
    assert_eq!(read_all(&journal, Offset(190)), expected(190..201));
}

#[test]
fn records_keep_their_time_and_find_their_place() {
    let storage = Arc::new(MemoryStorage::default());
    let (_journal, mut appender, mut writer) = Journal::open_stepped(storage, small()).unwrap();
    let record = Record {
        time: Timestamp(5),
        client: "c",
        topic: TopicName::new("a/b").unwrap(),
        properties: Properties::NONE,
        payload: b"payload",
        qos: Qos::AtLeastOnce,
        retain: false,
        packet_id: 9,
    };
    let places: Vec<_> = (0..5).map(|_| appender.append(&Entry::Record(record)).unwrap()).collect();
    appender.submit();
    assert!(appender.take_durable().is_none());
    assert!(writer.step());
    let batch = appender.take_durable().unwrap();
    assert!(appender.take_durable().is_none());
    for place in places {
        assert_eq!(batch.entries_at(place).next(), Some((place, Entry::Record(record))));
    }
}

#[test]
fn a_second_journal_on_the_same_folder_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let first = FileStorage::open(folder.path()).unwrap();
    let error = FileStorage::open(folder.path()).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ResourceBusy);
    let message = error.to_string();
    assert!(message.contains(folder.path().to_str().unwrap()), "{message}");
    assert!(message.contains(&format!("process {}", std::process::id())), "{message}");
    drop(first);
    FileStorage::open(folder.path()).unwrap();
}

#[test]
fn cursors_are_kept_and_never_pass_the_durable_end() {
    let disk = MemoryStorage::default();
    {
        let (journal, mut appender, mut writer) =
            Journal::open_stepped(Arc::new(disk.clone()), small()).unwrap();
        let oldest = journal.cursor("oldest", StartAt::Oldest).unwrap();
        assert_eq!((0..10).map(|number| push(&mut appender, number)).last(), Some(Offset(9)));
        oldest.advance(Offset(5));
        assert_eq!(oldest.position(), Offset(0), "nothing is durable yet");
        appender.submit();
        writer.step();
        oldest.advance(Offset(5));
        oldest.advance(Offset(3));
        assert_eq!(oldest.position(), Offset(5));
        assert_eq!(journal.cursor("end", StartAt::End).unwrap().position(), Offset(10));
        assert_eq!(journal.cursor("at", StartAt::Offset(Offset(7))).unwrap().position(), Offset(7));
        journal.remove_cursor("at").unwrap();
        assert!(matches!(journal.remove_cursor("at"), Err(CursorError::Unknown(_))));
        oldest.save().unwrap();
    }
    disk.lose_power(1);
    let (journal, ..) = Journal::open_stepped(Arc::new(disk.clone()), small()).unwrap();
    let positions: Vec<_> =
        journal.status().cursors.into_iter().map(|cursor| (cursor.name, cursor.position.0)).collect();
    assert_eq!(positions, [("end".to_owned(), 10), ("oldest".to_owned(), 5)]);
}

#[test]
fn after_a_failed_sync_nothing_is_accepted_and_everyone_is_told() {
    let disk = MemoryStorage::default();
    let (journal, mut appender, mut writer) = Journal::open_stepped(Arc::new(disk.clone()), small()).unwrap();
    let (told, heard) = sync_channel(10);
    journal.on_durable(move |end| told.try_send(end).unwrap());
    push(&mut appender, 0);
    appender.submit();
    disk.fail(Some(Call::Sync), 1);
    writer.step();
    assert_eq!(heard.try_recv(), Ok(Offset(0)));
    assert_eq!(journal.durable_end(), Offset(0));
    assert_eq!(appender.append(&Entry::Control(b"x")), Err(crate::record::Refused::Failed));
    assert!(appender.take_durable().is_none());
    let failed = journal.status().failed.unwrap();
    assert!(failed.contains("memory:00000000000000000000.log"), "{failed}");
    assert!(journal.reader(Offset(0)).next().unwrap().is_none());
}

#[test]
fn a_reader_that_took_a_part_of_a_batch_goes_on_inside_it_without_reading_again() {
    let disk = MemoryStorage::default();
    let options = Options { tail_bytes: 0, ..small() };
    let (journal, mut appender, mut writer) = Journal::open_stepped(Arc::new(disk.clone()), options).unwrap();
    for number in 0..12 {
        push(&mut appender, number);
        if number % 6 == 5 {
            appender.submit();
            writer.step();
        }
    }
    let mut reader = journal.reader(Offset(1));
    assert_eq!(contents(&reader.next().unwrap().unwrap()), expected(1..6));
    let calls = disk.calls();
    for from in [3, 0, 5] {
        reader.seek(Offset(from));
        assert_eq!(contents(&reader.next().unwrap().unwrap()), expected(from..6));
    }
    assert_eq!(contents(&reader.next().unwrap().unwrap()), expected(6..12));
    assert_eq!(disk.calls(), calls, "it was all read with the first call");
    assert!(reader.next().unwrap().is_none());
}

#[test]
fn a_seek_reads_near_its_offset_only() {
    let disk = MemoryStorage::default();
    let options = Options { tail_bytes: 0, batch_bytes: 20_000, ..Options::default() };
    let (journal, mut appender, mut writer) =
        Journal::open_stepped(Arc::new(disk.clone()), options.clone()).unwrap();
    for _ in 0..1_000 {
        appender.append(&Entry::Control(&[1; 3_000])).unwrap();
    }
    appender.submit();
    writer.step();
    writer.finish();
    assert_eq!(journal.status().segments, 1);
    disk.kill();
    let (again, ..) = Journal::open_stepped(Arc::new(disk.clone()), options).unwrap();
    let calls = disk.calls();
    assert_eq!(again.reader(Offset(900)).next().unwrap().unwrap().base(), Offset(900));
    assert!(disk.calls() - calls <= 3, "open it, and read 256 KiB at most twice");
}
