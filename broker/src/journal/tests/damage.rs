//! Damaged disks: whatever byte is changed and wherever a file is cut, the journal either refuses, naming the file
//! and the place, or loses nothing but what it never promised.

use std::collections::BTreeMap;

use super::*;

type Files = BTreeMap<String, Vec<u8>>;

/// What opening and reading a damaged journal came to.
#[derive(Debug, PartialEq)]
enum Outcome {
    /// Refused at opening or at reading, with this file and position.
    Refused(String, u64),
    /// Opened; the entries that were there.
    Read(Vec<Vec<u8>>),
}

fn files_of(disk: &MemoryStorage) -> Files {
    let read = |name: String| {
        let bytes = read_file(&*disk.open(&name).unwrap()).unwrap();
        (name, bytes)
    };
    disk.list().unwrap().into_iter().map(read).collect()
}

fn outcome(files: &Files) -> Outcome {
    let disk = MemoryStorage::default();
    for (name, bytes) in files {
        disk.create(name).unwrap().write_at(bytes, 0).unwrap();
    }
    let (journal, _appender, _writer) = match Journal::open_stepped(Arc::new(disk), small()) {
        Ok(opened) => opened,
        Err(OpenError::Damaged { file, at, .. }) => return Outcome::Refused(file, at),
        Err(OpenError::Foreign { file }) => return Outcome::Refused(file, 0),
        Err(error) => panic!("{error}"),
    };
    let mut reader = journal.reader(Offset(0));
    let mut read = Vec::new();
    loop {
        match reader.next() {
            Ok(Some(batch)) => read.extend(contents(&batch)),
            Ok(None) => return Outcome::Read(read),
            Err(ReadError::Damaged { file, at, .. }) => return Outcome::Refused(file, at),
            Err(error) => panic!("{error}"),
        }
    }
}

/// A journal of three sealed segments and an active one, with a cursor: 40 entries in groups of four.
fn journal(ends_in_order: bool) -> Files {
    let disk = MemoryStorage::default();
    let (journal, mut appender, mut writer) = Journal::open_stepped(Arc::new(disk.clone()), small()).unwrap();
    journal.cursor("sink", StartAt::Oldest).unwrap();
    for group in 0..10 {
        (group * 4..group * 4 + 4).for_each(|number| assert_eq!(push(&mut appender, number).0, number));
        appender.submit();
        writer.step();
    }
    if ends_in_order {
        writer.finish();
    }
    assert_eq!(journal.status().segments, 3);
    files_of(&disk)
}

/// The damaged file and a position at or before `at` are named.
fn names(outcome: &Outcome, file: &str, at: usize) -> bool {
    matches!(outcome, Outcome::Refused(named, position)
        if *named == format!("memory:{file}") && *position <= at as u64)
}

fn last_segment(files: &Files) -> String {
    files.keys().rfind(|name| name.ends_with(".log")).unwrap().clone()
}

#[test]
fn after_an_orderly_end_every_changed_byte_is_found_or_harmless() {
    let files = journal(true);
    let whole = Outcome::Read(expected(0..40));
    assert_eq!(outcome(&files), whole);
    let mut harmless = 0;
    for (name, bytes) in &files {
        for at in 0..bytes.len() {
            let mut damaged = files.clone();
            damaged.get_mut(name).unwrap()[at] ^= 1 << (at % 8);
            let found = outcome(&damaged);
            if found == whole {
                harmless += 1;
            } else {
                assert!(names(&found, name, at), "{name} byte {at}: {found:?}");
            }
        }
    }
    // Only the mark at the end can be missed without a loss.
    assert_eq!(harmless, format::FRAME_BYTES);
}

#[test]
fn after_an_orderly_end_every_cut_is_found_or_harmless() {
    let files = journal(true);
    let whole = Outcome::Read(expected(0..40));
    for (name, bytes) in &files {
        for length in 0..bytes.len() {
            let mut damaged = files.clone();
            damaged.get_mut(name).unwrap().truncate(length);
            let found = outcome(&damaged);
            let only_the_mark = *name == last_segment(&files) && bytes.len() - length <= format::FRAME_BYTES;
            if only_the_mark {
                assert_eq!(found, whole);
            } else {
                assert!(names(&found, name, length), "{name} cut at {length}: {found:?}");
            }
        }
    }
}

#[test]
fn after_a_crash_every_changed_byte_is_found_except_in_the_last_group() {
    let files = journal(false);
    let (whole, without_last) = (Outcome::Read(expected(0..40)), Outcome::Read(expected(0..36)));
    assert_eq!(outcome(&files), whole);
    let last = last_segment(&files);
    let used = files[&last].iter().rposition(|byte| *byte != 0).unwrap();
    assert!(files[&last].len() > used + 1, "space was reserved");
    let mut dropped = 0;
    for (name, bytes) in &files {
        for at in 0..bytes.len() {
            let mut damaged = files.clone();
            damaged.get_mut(name).unwrap()[at] ^= 1 << (at % 8);
            let found = outcome(&damaged);
            if found == without_last {
                assert_eq!(*name, last);
                dropped += 1;
            } else if found == whole {
                assert!(*name == last && at >= used, "byte {at} is not only reserved");
            } else {
                assert!(names(&found, name, at), "{name} byte {at}: {found:?}");
            }
        }
    }
    let last_group: usize = (36..40).map(|number| 12 + payload(number).len()).sum();
    assert_eq!(dropped, format::FRAME_BYTES + last_group);
}

/// Bits that change while the journal is open, in the segment that is written to and in sealed ones: a reader is told,
/// and nobody is handed something that was never written.
#[test]
fn damage_under_an_open_journal_is_told_to_whoever_reads_it() {
    let disk = MemoryStorage::default();
    let options = Options { tail_bytes: 0, ..small() };
    let (journal, mut appender, mut writer) = Journal::open_stepped(Arc::new(disk.clone()), options).unwrap();
    for number in 0..40 {
        push(&mut appender, number);
        appender.submit();
        writer.step();
    }
    let names = disk.list().unwrap();
    for name in names.iter().filter(|name| name.ends_with(".log")) {
        let bytes = disk.content(name).unwrap();
        let used = bytes.iter().rposition(|byte| *byte != 0).unwrap();
        for at in format::SEGMENT_HEADER_BYTES..used {
            disk.flip(name, at, 0x10);
            let mut reader = journal.reader(Offset(0));
            let mut read = 0;
            let damaged = loop {
                match reader.next() {
                    Ok(Some(batch)) => {
                        assert_eq!(contents(&batch), expected(read..read + u64::from(batch.count())));
                        read = batch.end().0;
                    }
                    Ok(None) => break false,
                    Err(ReadError::Damaged { file, at: named, .. }) => {
                        assert!(file.ends_with(name.as_str()) && named <= at as u64, "{file} at {named}");
                        break true;
                    }
                    Err(error) => panic!("{error}"),
                }
            };
            disk.flip(name, at, 0x10);
            // A footer is only looked at when the journal is opened.
            assert!(damaged || read == 40, "{name} byte {at}");
        }
    }
    assert_eq!(read_all(&journal, Offset(0)), expected(0..40), "everything was mended again");
}

/// Whole parts of files that hold something else, by a seed.
#[test]
fn garbled_parts_are_found_or_harmless() {
    let files = journal(true);
    let whole = Outcome::Read(expected(0..40));
    for seed in 0..200 {
        let disk = MemoryStorage::default();
        let mut rng = super::super::memory::Rng(seed);
        for (name, bytes) in &files {
            disk.create(name).unwrap().write_at(bytes, 0).unwrap();
        }
        let (name, bytes) = files.iter().nth(rng.index(files.len())).unwrap();
        let from = rng.index(bytes.len());
        let to = (from + 1 + rng.index(300)).min(bytes.len());
        disk.garble(name, from..to, seed);
        let found = outcome(&files_of(&disk));
        let only_the_mark = *name == last_segment(&files) && bytes.len() - from <= format::FRAME_BYTES;
        assert!(
            names(&found, name, to) || (only_the_mark && found == whole),
            "{name} {from}..{to}, seed {seed}: {found:?}"
        );
    }
}

#[test]
fn a_missing_or_foreign_file_is_refused() {
    let files = journal(true);
    let segments: Vec<_> = files.keys().filter(|name| name.ends_with(".log")).cloned().collect();
    let without = |name: &String| {
        let mut files = files.clone();
        files.remove(name);
        outcome(&files)
    };
    assert_eq!(without(&segments[1]), Outcome::Refused(format!("memory:{}", segments[2]), 0));
    assert!(matches!(without(&segments[2]), Outcome::Refused(file, _) if file.ends_with(&segments[1])));
    let mut emptied = files.clone();
    emptied.retain(|name, _| !name.ends_with(".log"));
    assert_eq!(outcome(&emptied), Outcome::Refused("memory:cursors".to_owned(), 0));

    let other = journal(true);
    for name in [&segments[1], &segments[2], "cursors"] {
        let mut mixed = files.clone();
        mixed.insert(name.to_owned(), other[name].clone());
        assert!(names(&outcome(&mixed), name, 0), "{name}");
    }
}

#[test]
fn the_message_says_what_to_do() {
    let mut files = journal(true);
    let last = last_segment(&files);
    files.get_mut(&last).unwrap()[200] ^= 1;
    let disk = MemoryStorage::default();
    for (name, bytes) in &files {
        disk.create(name).unwrap().write_at(bytes, 0).unwrap();
    }
    let before = files_of(&disk);
    let message = Journal::open_stepped(Arc::new(disk.clone()), small()).unwrap_err().to_string();
    for part in [&*last, "damaged at byte", "proves that every entry before 40 was on disk", "restore"] {
        assert!(message.contains(part), "{message}");
    }
    assert_eq!(files_of(&disk), before, "a journal that is refused is not changed");
}

#[test]
fn a_payload_that_imitates_a_frame_is_not_taken_for_one() {
    let disk = MemoryStorage::default();
    let (_, mut appender, mut writer) = Journal::open_stepped(Arc::new(disk.clone()), small()).unwrap();
    let mut imitation = vec![0; format::FRAME_BYTES];
    let place =
        format::FramePlace { base: Offset(1), count: 0, time: Timestamp(0), durable_before: Offset(1_000) };
    // Its author knows everything but the salt.
    format::Frame::seal(format::Kind::Mark, place, 0, &mut imitation);
    push(&mut appender, 0);
    appender.submit();
    writer.step();
    appender.append(&Entry::Control(&imitation)).unwrap();
    appender.submit();
    writer.step();
    let mut files = files_of(&disk);
    let bytes = files.values_mut().next().unwrap();
    let last = bytes.iter().rposition(|byte| *byte != 0).unwrap();
    bytes[last] ^= 1;
    assert_eq!(outcome(&files), Outcome::Read(expected(0..1)));
}
