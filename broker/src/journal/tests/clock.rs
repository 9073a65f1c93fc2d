//! A wall clock that jumps by hours, forwards and backwards: nothing depends on it but when things are tidied up.

use super::*;

const HOUR: u64 = 3_600_000;

/// What the clock says while entries are appended, a few at each time.
fn live(
    times: &[u64],
    max_age: Option<Duration>,
) -> (Journal, Appender, Writer, Arc<AtomicU64>, MemoryStorage) {
    let (disk, time) = (MemoryStorage::default(), Arc::new(AtomicU64::new(times[0])));
    let told = time.clone();
    let clock: Clock = Arc::new(move || Timestamp(told.load(Ordering::Relaxed)));
    let options = Options { max_age, ..small() };
    let (journal, mut appender, mut writer) =
        Journal::open_stepped_at(Arc::new(disk.clone()), options, clock).unwrap();
    for (turn, now) in (0..).zip(times) {
        time.store(*now, Ordering::Relaxed);
        for number in turn * 10..turn * 10 + 10 {
            push(&mut appender, number);
            appender.submit();
            writer.step();
        }
    }
    (journal, appender, writer, time, disk)
}

#[test]
fn a_clock_that_jumps_changes_nothing_that_is_kept() {
    let times = [100 * HOUR, 148 * HOUR, 3 * HOUR, 3 * HOUR + 1, 0, 100 * HOUR];
    let (journal, _appender, mut writer, _, disk) = live(&times, None);
    let cursor = journal.cursor("sink", StartAt::Oldest).unwrap();
    cursor.advance(Offset(30));
    writer.step();
    assert_eq!(read_all(&journal, Offset(0)), expected(0..60));
    disk.lose_power(1);
    let (again, ..) = Journal::open_stepped(Arc::new(disk), small()).unwrap();
    assert_eq!(read_all(&again, Offset(0)), expected(0..60));
    assert_eq!(again.cursor("sink", StartAt::Oldest).unwrap().skipped(), 0);
}

#[test]
fn after_a_jump_back_cursors_are_still_saved_and_the_end_is_marked() {
    let (journal, mut appender, mut writer, time, disk) = live(&[100 * HOUR], None);
    let cursor = journal.cursor("sink", StartAt::Oldest).unwrap();
    cursor.advance(Offset(10));
    time.store(HOUR, Ordering::Relaxed);
    writer.step();
    disk.kill();
    let (again, ..) = Journal::open_stepped(Arc::new(disk), small()).unwrap();
    assert_eq!(again.status().cursors[0].position, Offset(10), "it was not put off for four days");
    push(&mut appender, 10);
}

/// A jump forwards makes everything old, which only trims what every cursor has passed.
#[test]
fn a_jump_forwards_trims_nothing_that_is_not_read() {
    let (journal, _appender, mut writer, time, _) = live(&[100 * HOUR], Some(Duration::from_secs(60)));
    let cursor = journal.cursor("sink", StartAt::Oldest).unwrap();
    cursor.advance(Offset(3));
    time.fetch_add(48 * HOUR, Ordering::Relaxed);
    writer.step();
    assert_eq!(read_all(&journal, Offset(3)), expected(3..10));
    assert_eq!(cursor.skipped(), 0);
}

/// An entry keeps its time although the clock was set back while its batch was filled.
#[test]
fn a_record_keeps_its_time_when_the_clock_was_set_back() {
    let (_journal, mut appender, mut writer, time, _) = live(&[100 * HOUR], None);
    let record = |time| {
        let topic = TopicName::new("a").unwrap();
        let (client, payload, qos) = ("c", &b"x"[..], Qos::AtLeastOnce);
        Record {
            time,
            client,
            topic,
            properties: Properties::NONE,
            payload,
            qos,
            retain: false,
            packet_id: 1,
        }
    };
    let times = [100 * HOUR, 2 * HOUR, 2 * HOUR + 5, 90 * HOUR, 1].map(Timestamp);
    while appender.take_durable().is_some() {}
    for at in times {
        time.store(at.0, Ordering::Relaxed);
        appender.append(&Entry::Record(record(at))).unwrap();
    }
    let mut kept = Vec::new();
    while kept.len() < times.len() {
        appender.submit();
        writer.step();
        while let Some(batch) = appender.take_durable() {
            kept.extend(batch.records().map(|(_, record)| record.time));
        }
    }
    assert_eq!(kept, times);
}
