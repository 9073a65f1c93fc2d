//! Records are counted as they are written, and found again after reopening.

use super::*;

/// Small segments of which none is trimmed.
fn options() -> Options {
    Options { max_bytes: 100_000, ..small() }
}

fn append(appender: &mut Appender, number: u64) {
    // One entry of three is none that anybody carries anywhere.
    if number % 3 == 1 {
        appender.append(&Entry::Control(b"control")).unwrap();
        return;
    }
    let record = Record {
        time: Timestamp(5),
        client: "c",
        topic: TopicName::new("a/b").unwrap(),
        properties: Properties::NONE,
        payload: b"a payload that takes some room",
        qos: Qos::AtLeastOnce,
        retain: false,
        packet_id: 9,
    };
    appender.append(&Entry::Record(record)).unwrap();
}

fn fill(appender: &mut Appender, writer: &mut Writer, numbers: std::ops::Range<u64>) {
    for number in numbers {
        append(appender, number);
        if number % 4 == 0 {
            appender.submit();
            writer.step();
        }
    }
    while appender.backlog_bytes() > 0 {
        appender.submit();
        writer.step();
    }
}

fn check(journal: &Journal, total: u64) {
    assert_eq!(journal.records_total(), total);
    let end = journal.durable_end().0;
    for from in (0..end + 3).rev() {
        let records = (from..end).filter(|number| number % 3 != 1).count() as u64;
        let counted = journal.records_from(Offset(from)).unwrap();
        assert_eq!(counted, RecordsFrom { records, total }, "from {from} to {end}");
    }
}

#[test]
fn records_are_counted_from_anywhere_also_after_reopening() {
    let disk = MemoryStorage::default();
    let (journal, mut appender, mut writer) =
        Journal::open_stepped(Arc::new(disk.clone()), options()).unwrap();
    fill(&mut appender, &mut writer, 0..100);
    assert!(journal.status().segments > 3);
    check(&journal, 67);
    fill(&mut appender, &mut writer, 100..150);
    check(&journal, 100);
    drop((journal, appender, writer));

    let (journal, mut appender, mut writer) =
        Journal::open_stepped(Arc::new(disk.clone()), options()).unwrap();
    check(&journal, 0);
    fill(&mut appender, &mut writer, 150..250);
    check(&journal, 67);
    // Before anything was asked of the segments from before.
    drop((journal, appender, writer));
    let (journal, mut appender, mut writer) =
        Journal::open_stepped(Arc::new(disk.clone()), options()).unwrap();
    fill(&mut appender, &mut writer, 250..300);
    check(&journal, 33);
}

#[test]
fn what_was_trimmed_is_not_counted() {
    let disk = MemoryStorage::default();
    let options = Options { max_bytes: 4_000, full: FullPolicy::DropOldest, ..small() };
    let (journal, mut appender, mut writer) = Journal::open_stepped(Arc::new(disk), options).unwrap();
    fill(&mut appender, &mut writer, 0..300);
    let start = journal.start().0;
    assert!(start > 0);
    let kept = (start..300).filter(|number| number % 3 != 1).count() as u64;
    let counted = journal.records_from(Offset(0)).unwrap();
    assert_eq!(counted, RecordsFrom { records: kept, total: 200 });
}
