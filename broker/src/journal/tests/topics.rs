//! Segments in which nothing is looked for are passed over.

use super::*;
use crate::topic::TopicFilter;

/// Small segments of which none is trimmed.
fn options() -> Options {
    Options { max_bytes: 100_000, ..small() }
}

fn publish(appender: &mut Appender, topic: &str) -> Offset {
    let record = Record {
        time: Timestamp(5),
        client: "c",
        topic: TopicName::new(topic).unwrap(),
        properties: Properties::NONE,
        payload: b"a payload that takes some room",
        qos: Qos::AtLeastOnce,
        retain: false,
        packet_id: 9,
    };
    appender.append(&Entry::Record(record)).unwrap().offset
}

/// A journal of many segments: a rare topic stands alone at these offsets, common ones elsewhere.
fn fill(disk: &MemoryStorage, rare: &[u64]) -> (Journal, Appender, Writer) {
    let (journal, mut appender, mut writer) =
        Journal::open_stepped(Arc::new(disk.clone()), options()).unwrap();
    for number in 0..200 {
        let topic =
            if rare.contains(&number) { "rare/one".to_owned() } else { format!("common/{}/x", number % 7) };
        publish(&mut appender, &topic);
        appender.submit();
        writer.step();
    }
    (journal, appender, writer)
}

/// Every record that a reader of `filter` finds, and how many records it read for that.
fn look_for(journal: &Journal, filter: &str) -> (Vec<Offset>, u64) {
    let filter = TopicFilter::new(filter).unwrap();
    let mut reader = journal.reader(Offset(0));
    let (mut found, mut read, mut near_until) = (Vec::new(), 0, Offset(0));
    loop {
        if reader.offset() >= near_until {
            near_until = reader.pass_over(|topics| topics.may_match(&filter));
        }
        let Some(batch) = reader.next().unwrap() else { return (found, read) };
        for (offset, record) in batch.records() {
            read += 1;
            found.extend(filter.matches(record.topic).then_some(offset));
        }
    }
}

#[test]
fn what_was_trimmed_is_not_passed_over_unsaid() {
    let (journal, mut appender, mut writer) = fill(&MemoryStorage::default(), &[]);
    while journal.start() == Offset(0) {
        publish(&mut appender, "common/1/x");
        appender.submit();
        writer.step();
    }
    let mut reader = journal.reader(journal.start());
    reader.seek(Offset(0));
    assert_eq!(reader.pass_over(|_| false), Offset(0));
    assert_eq!(reader.offset(), Offset(0), "whoever asked has not learnt that these are gone");
    assert_eq!(reader.next().unwrap().unwrap().base(), journal.start());
}

#[test]
fn whole_segments_are_passed_over_also_after_reopening() {
    let disk = MemoryStorage::default();
    let rare = [3, 90, 91, 199];
    let expected: Vec<Offset> = rare.map(Offset).into();
    {
        let (journal, _appender, mut writer) = fill(&disk, &rare);
        let (found, read) = look_for(&journal, "rare/#");
        assert_eq!(found, expected);
        assert!(read < 50, "{read} of 200 records were read for 4");
        let (found, read) = look_for(&journal, "rare/two");
        assert!(
            found.is_empty() && read < 15,
            "{read}: what is no part of any topic is known not to be there"
        );
        assert_eq!(look_for(&journal, "#").1, 200);
        assert_eq!(look_for(&journal, "common/+/x").0.len(), 196);
        writer.finish();
    }
    disk.kill();
    let (journal, ..) = Journal::open_stepped(Arc::new(disk.clone()), options()).unwrap();
    let (found, read) = look_for(&journal, "rare/#");
    assert_eq!(found, expected);
    assert!(read < 50, "{read} of 200 records were read for 4");
}

#[test]
fn a_segment_that_was_open_in_a_crash_knows_all_its_topics_when_it_is_sealed() {
    let disk = MemoryStorage::default();
    let (_journal, mut appender, mut writer) =
        Journal::open_stepped(Arc::new(disk.clone()), options()).unwrap();
    publish(&mut appender, "before/the/crash");
    appender.submit();
    writer.step();
    disk.kill();
    let (journal, mut appender, mut writer) =
        Journal::open_stepped(Arc::new(disk.clone()), options()).unwrap();
    while journal.status().segments < 4 {
        publish(&mut appender, "after/it");
        appender.submit();
        writer.step();
    }
    assert_eq!(look_for(&journal, "before/#").0, [Offset(0)]);
}

#[test]
fn a_summary_that_cannot_be_read_is_no_reason_to_pass_over() {
    let disk = MemoryStorage::default();
    let (journal, ..) = fill(&disk, &[3]);
    let mut reader = journal.reader(Offset(0));
    let nothing = TopicFilter::new("nothing").unwrap();
    disk.fail(Some(Call::Open), 1);
    let near_until = reader.pass_over(|topics| topics.may_match(&nothing));
    assert_eq!(reader.offset(), Offset(0));
    assert!(near_until > Offset(0) && near_until < Offset(200));
    reader.next().unwrap().unwrap();
}
