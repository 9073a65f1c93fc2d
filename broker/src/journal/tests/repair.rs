//! Damaged journals are examined, repaired and opened: whatever was done to the disk, nothing readable is lost, what is
//! lost is named, and no offset gets other content.

use std::collections::BTreeMap;

use super::super::inspect::{self, Examined, Item, Meaning, Outside, Source};
use super::super::memory::Rng;
use super::super::repair::{KEPT, Plan};
use super::*;

type Files = BTreeMap<String, Vec<u8>>;

fn files_of(disk: &MemoryStorage) -> Files {
    let read = |name: String| (name.clone(), read_file(&*disk.open(&name).unwrap()).unwrap());
    disk.list().unwrap().into_iter().map(read).collect()
}

fn disk_of(files: &Files) -> MemoryStorage {
    let disk = MemoryStorage::default();
    for (name, bytes) in files {
        let file = disk.create(name).unwrap();
        file.write_at(bytes, 0).unwrap();
        file.sync().unwrap();
    }
    disk.sync_folder().unwrap();
    disk
}

/// A journal of `groups` groups of records, each with its own sync, and a cursor that has read some. Entries with a
/// number that 7 divides are control entries.
fn journal(groups: u64, ends_in_order: bool, cursor_at: u64) -> Files {
    let disk = MemoryStorage::default();
    // No batch may be younger than its records.
    let clock: Clock = Arc::new(|| Timestamp(1_000));
    let opened = Journal::open_stepped_at(Arc::new(disk.clone()), small(), clock);
    let (journal, mut appender, mut writer) = opened.unwrap();
    let cursor = journal.cursor("sink", StartAt::Oldest).unwrap();
    for group in 0..groups {
        if group + 1 == groups {
            cursor.advance(Offset(cursor_at));
            cursor.save().unwrap();
        }
        for number in group * 4..group * 4 + 4 {
            append(&mut appender, number);
        }
        // A batch that was full has been handed over, and the rest waits for it.
        for _ in 0..2 {
            appender.submit();
            writer.step();
        }
    }
    assert_eq!(journal.durable_end(), Offset(groups * 4));
    if ends_in_order {
        writer.finish();
    }
    files_of(&disk)
}

fn append(appender: &mut Appender, number: u64) {
    let payload = payload(number);
    if number.is_multiple_of(7) {
        assert_eq!(push(appender, number), Offset(number));
        return;
    }
    let client = format!("device-{}", number % 3);
    let record = Record {
        time: Timestamp(1_000 + number),
        client: &client,
        topic: TopicName::new("a/b").unwrap(),
        properties: Properties::NONE,
        payload: &payload,
        qos: Qos::AtLeastOnce,
        retain: false,
        packet_id: 1,
    };
    assert_eq!(appender.append(&Entry::Record(record)).unwrap().offset, Offset(number));
}

fn examine(disk: &MemoryStorage) -> Examined {
    inspect::examine(disk, Outside::default()).unwrap()
}

/// The number in the entry's content, by offset.
fn numbers(journal: &Journal) -> BTreeMap<u64, u64> {
    let mut reader = journal.reader(Offset(0));
    let mut expected = reader.offset();
    let mut found = BTreeMap::new();
    while let Some(batch) = reader.next().unwrap() {
        assert_eq!(batch.base(), expected);
        expected = batch.end();
        for (place, entry) in batch.entries() {
            let content = match entry {
                Entry::Record(record) => record.payload,
                Entry::Control(body) => body,
            };
            let number = u64::from_le_bytes(content[..8].try_into().unwrap());
            assert_eq!(content, payload(number), "the content is whole");
            found.insert(place.offset.0, number);
        }
    }
    assert_eq!(expected, journal.durable_end());
    found
}

/// What a plan says to be lost, or perhaps lost.
fn named(plan: &Plan) -> Vec<(u64, u64)> {
    let lost = plan.losses.iter().map(|loss| (loss.from, loss.to)).chain(plan.unused);
    lost.map(|(from, to)| (from.0, to.0)).collect()
}

/// Repairs `disk`, which held the numbers up to `true_end`, and checks what is left. Returns what was lost.
fn repair(disk: &MemoryStorage, true_end: u64) -> Vec<(u64, u64)> {
    repair_again(disk, true_end, Vec::new())
}

/// The same where an earlier repair, which was interrupted, has told some of what is lost.
fn repair_again(disk: &MemoryStorage, true_end: u64, told: Vec<(u64, u64)>) -> Vec<(u64, u64)> {
    let examined = examine(disk);
    let (start, faults) = (examined.start.0, examined.faults.clone());
    let plan = Plan::new(examined, small().segment_bytes);
    let named = [told, named(&plan)].concat();
    plan.apply(disk, "now", Timestamp(9)).unwrap();
    let again = examine(disk);
    assert!(!again.is_damaged(), "{:#?}", again.faults);

    let (journal, mut appender, _writer) = Journal::open_stepped(Arc::new(disk.clone()), small()).unwrap();
    let found = numbers(&journal);
    assert!(found.iter().all(|(offset, number)| offset == number), "an offset has other content: {found:?}");
    let is_named = |offset: u64| named.iter().any(|(from, to)| (*from..*to).contains(&offset));
    for offset in start..true_end {
        assert!(found.contains_key(&offset) != is_named(offset), "entry {offset}: {named:?}, {faults:#?}");
    }
    let next = push(&mut appender, 3).0;
    assert!(next >= true_end, "offset {next} is used again: {true_end} were there");
    named
}

fn segments(files: &Files) -> Vec<String> {
    files.keys().filter(|name| name.ends_with(".log")).cloned().collect()
}

#[test]
fn a_sound_journal_has_no_fault_and_nothing_is_changed() {
    for ends_in_order in [true, false] {
        let files = journal(10, ends_in_order, 5);
        let disk = disk_of(&files);
        let examined = examine(&disk);
        assert_eq!(examined.faults, []);
        assert_eq!((examined.start, examined.end), (Offset(0), Offset(40)));
        assert_eq!((examined.counts.records, examined.counts.controls), (34, 6));
        assert_eq!(examined.counts.segments, segments(&files).len() as u64);
        let plan = Plan::new(examined, 1_000);
        assert!(plan.is_empty());
        plan.apply(&disk, "now", Timestamp(0)).unwrap();
        assert_eq!(files_of(&disk), files);
    }
}

/// The index of a footer names every 256 KiB a frame, which may as well be a mark.
#[test]
fn a_footer_whose_index_names_marks_is_sound() {
    let disk = MemoryStorage::default();
    let time = Arc::new(AtomicU64::new(1_000));
    let now = time.clone();
    let clock: Clock = Arc::new(move || Timestamp(now.load(Ordering::Relaxed)));
    let options = Options { segment_bytes: 4 << 20, ..Options::default() };
    let opened = Journal::open_stepped_at(Arc::new(disk.clone()), options, clock).unwrap();
    let (_journal, mut appender, mut writer) = opened;
    for _ in 0..150 {
        appender.append(&Entry::Control(&[1; 60_000])).unwrap();
        appender.submit();
        writer.step();
        time.fetch_add(1_001, Ordering::Relaxed);
        writer.step();
    }
    writer.finish();
    let examined = examine(&disk);
    assert_eq!((examined.faults, examined.segments.len()), (vec![], 3));
}

#[test]
fn every_changed_byte_is_named_and_only_its_frame_is_lost() {
    let files = journal(10, true, 5);
    for (name, bytes) in &files {
        for at in (0..bytes.len()).step_by(7) {
            let mut damaged = files.clone();
            damaged.get_mut(name).unwrap()[at] ^= 1 << (at % 8);
            let disk = disk_of(&damaged);
            let examined = examine(&disk);
            let file = disk.display(name);
            let fault = examined.faults.iter().find(|fault| fault.file == file && fault.at <= at as u64);
            assert!(fault.is_some(), "{name} byte {at}: {:?}", examined.faults);
            let lost: u64 =
                repair(&disk, 40).iter().map(|(from, to)| (*to).min(40).saturating_sub(*from)).sum();
            assert!(lost <= 4, "{name} byte {at}: {lost} entries are lost");
        }
    }
}

#[test]
fn the_header_of_a_segment_can_be_lost_without_its_entries() {
    let files = journal(10, true, 5);
    for name in segments(&files) {
        let mut damaged = files.clone();
        damaged.get_mut(&name).unwrap()[..64].fill(0xaa);
        let disk = disk_of(&damaged);
        assert_eq!(repair(&disk, 40), [], "{name}");
    }
}

#[test]
fn a_lost_file_is_a_gap_that_readers_pass_and_count() {
    let files = journal(10, true, 2);
    let name = segments(&files)[1].clone();
    let mut damaged = files.clone();
    damaged.remove(&name);
    let disk = disk_of(&damaged);
    let before = Journal::open_stepped(Arc::new(disk.clone()), small()).unwrap_err().to_string();
    assert!(before.contains("tidegate journal repair"), "{before}");
    let lost = repair(&disk, 40);
    assert_eq!(lost.len(), 1);
    let (from, to) = lost[0];
    assert_eq!(from, super::super::segment::base_in_name(&name).unwrap().0);

    let (journal, ..) = Journal::open_stepped(Arc::new(disk.clone()), small()).unwrap();
    let mut reader = journal.reader(Offset(from + 1));
    let gap = reader.next().unwrap().unwrap();
    assert!(gap.is_gap());
    assert_eq!((gap.base().0, gap.end().0, gap.lost()), (from + 1, to, to - from - 1));
    assert_eq!(reader.next().unwrap().unwrap().base().0, to);
    let cursor = journal.cursor("sink", StartAt::Oldest).unwrap();
    assert_eq!(cursor.position(), Offset(2), "the cursor is kept");
    cursor.count_lost(gap.lost());
    assert_eq!(cursor.skipped(), gap.lost());
}

#[test]
fn damaged_bytes_tell_whose_records_they_held() {
    let files = journal(10, true, 5);
    let name = segments(&files)[0].clone();
    let mut damaged = files.clone();
    // In the payload of the last of the four entries of the first frame: the others are told.
    let second = damaged[&name][64 + 48..].windows(4).position(|bytes| *bytes == *b"\xd7TgF").unwrap();
    damaged.get_mut(&name).unwrap()[64 + 48 + second - 1] ^= 1;
    let examined = examine(&disk_of(&damaged));
    assert_eq!(examined.losses.len(), 1);
    let clients: Vec<_> = examined.losses[0].clients.iter().map(|(name, count)| (&**name, *count)).collect();
    assert_eq!(clients, [("device-0", 1), ("device-1", 1), ("device-2", 1)]);
}

#[test]
fn a_torn_tail_is_no_damage() {
    let files = journal(10, false, 5);
    let name = segments(&files).pop().unwrap();
    let mut torn = files.clone();
    let used = torn[&name].iter().rposition(|byte| *byte != 0).unwrap();
    torn.get_mut(&name).unwrap()[used] ^= 1;
    let examined = examine(&disk_of(&torn));
    assert!((36..40).contains(&examined.end.0), "only the last batch is dropped");
    assert!(!examined.is_damaged());
    assert_eq!(examined.faults.len(), 1);
    assert_eq!(examined.faults[0].meaning, Meaning::Tail);
}

#[test]
fn damaged_cursors_are_forgotten_and_what_they_seem_to_say_is_told() {
    let mut files = journal(10, true, 5);
    files.get_mut("cursors").unwrap()[13] ^= 1;
    let disk = disk_of(&files);
    let examined = examine(&disk);
    assert_eq!(examined.cursors_that_seem(), [("sink".to_owned(), Offset(5))]);
    assert_eq!(repair(&disk, 40), []);
    assert!(files_of(&disk).contains_key(&format!("cursors{KEPT}now")));
    assert!(examine(&disk).cursors.is_empty());
}

#[test]
fn a_checkpoint_behind_the_end_proves_a_loss() {
    let disk = disk_of(&journal(10, true, 5));
    let outside = Outside { checkpoint: Some(Offset(50)), control: None };
    let examined = inspect::examine(&disk, outside).unwrap();
    assert!(examined.is_damaged());
    assert_eq!(examined.end, Offset(50));
    let plan = Plan::new(examined, 1_000);
    plan.apply(&disk, "now", Timestamp(0)).unwrap();
    let (journal, ..) = Journal::open_stepped(Arc::new(disk.clone()), small()).unwrap();
    assert_eq!(journal.durable_end(), plan.end);
    assert!(plan.end > Offset(50));
}

#[test]
fn reading_past_damage_tells_what_it_passes() {
    let files = journal(10, true, 5);
    let mut damaged = files.clone();
    damaged.get_mut(&segments(&files)[0]).unwrap()[64 + 60] ^= 1;
    let disk = disk_of(&damaged);
    let source = Source::open(&disk, Outside::default()).unwrap();
    let (mut entries, mut lost) = (0, Vec::new());
    let read = source.read(Offset(2), None, &mut |item| {
        match item {
            Item::Batch(batch) => entries += batch.entries().count(),
            Item::Lost { from, to, .. } => lost.push((from.0, to.0)),
        }
        std::ops::ControlFlow::Continue(())
    });
    read.unwrap();
    assert_eq!((entries, lost), (36, vec![(2, 4)]));
}

#[test]
fn an_export_keeps_offsets_and_says_what_it_leaves_out() {
    let disk = disk_of(&journal(10, true, 15));
    let source = Source::open(&disk, Outside::default()).unwrap();
    let copy = MemoryStorage::default();
    let exported =
        export(&source, &copy, (Offset(10), Offset(30)), 300, &mut |offset, _, _| offset.0 % 5 != 0);
    assert_eq!(exported.unwrap().entries, 16);
    assert!(!examine(&copy).is_damaged());
    let (journal, mut appender, _writer) = Journal::open_stepped(Arc::new(copy.clone()), small()).unwrap();
    let expected: Vec<_> = (10..30).filter(|number| number % 5 != 0).collect();
    assert_eq!(
        numbers(&journal).into_iter().collect::<Vec<_>>(),
        expected.into_iter().map(|n| (n, n)).collect::<Vec<_>>()
    );
    assert_eq!(journal.id(), source.id.unwrap());
    assert_eq!(journal.start(), Offset(10));
    assert_eq!(push(&mut appender, 3), Offset(40), "no offset of the original is used again");
    let status = journal.status();
    assert_eq!((status.cursors[0].position, status.cursors[0].skipped), (Offset(15), 0));
}

/// Does something to the files that a disk, or a person, can do. Returns the first offset that is still there, and the
/// names of files that were touched.
fn damage(rng: &mut Rng, files: &mut Files, touched: &mut Vec<String>) {
    let names: Vec<String> = files.keys().filter(|name| !name.contains(KEPT)).cloned().collect();
    let name = names[rng.index(names.len())].clone();
    let is_first = segments(files).first() == Some(&name);
    touched.push(name.clone());
    let bytes = files.get_mut(&name).unwrap();
    let length = bytes.len();
    if length == 0 {
        return;
    }
    let (at, count) = (rng.index(length), 1 + rng.index(300));
    let range = at..length.min(at + count);
    match rng.below(6) {
        0 => bytes[at] ^= 1 << rng.below(8),
        1 => bytes[range].fill(0),
        2 => bytes[range].iter_mut().for_each(|byte| *byte = rng.next() as u8),
        3 => bytes.truncate(at),
        // The oldest segment may have been trimmed, and cursors may never have been saved: nobody would know.
        4 if !is_first && name != "cursors" => drop(files.remove(&name)),
        4 => bytes[at] = !bytes[at],
        _ => {
            let moved: Vec<u8> = bytes[range.clone()].to_vec();
            let to = rng.index(length - moved.len() + 1);
            bytes[to..to + moved.len()].copy_from_slice(&moved);
        }
    }
}

/// Damages a journal, repairs it (perhaps through a power loss in the middle of the repair), and checks it.
fn run(seed: u64) {
    let mut rng = Rng(seed);
    let groups = 1 + rng.below(14);
    let true_end = groups * 4;
    let mut files = journal(groups, true, rng.below(true_end - 3));
    let whole = files.clone();
    let mut touched = Vec::new();
    for _ in 0..1 + rng.below(3) {
        damage(&mut rng, &mut files, &mut touched);
    }
    let disk = disk_of(&files);
    let examined = examine(&disk);
    assert_eq!(files_of(&disk), files, "looking changes nothing");
    if !examined.is_damaged() {
        let opened = Journal::open_stepped(Arc::new(disk.clone()), small()).unwrap();
        assert_eq!(numbers(&opened.0).len() as u64, true_end, "{:?}", examined.faults);
        return;
    }
    let lost_where: Vec<_> = examined.losses.iter().map(|loss| (loss.from.0, loss.to.0)).collect();
    for name in segments(&whole).iter().filter(|name| !touched.contains(name)) {
        let base = super::super::segment::base_in_name(name).unwrap().0;
        assert!(lost_where.iter().all(|(from, to)| !(*from..*to).contains(&base)), "{name} is whole");
    }
    let told = if rng.below(2) == 0 { interrupt(&mut rng, &disk, true_end) } else { Vec::new() };
    repair_again(&disk, true_end, told);
}

/// Begins a repair and loses power in it. Whatever is left opens with all offsets used, or refuses.
fn interrupt(rng: &mut Rng, disk: &MemoryStorage, true_end: u64) -> Vec<(u64, u64)> {
    let plan = Plan::new(examine(disk), small().segment_bytes);
    disk.power_off_at(1 + rng.below(80));
    let done = plan.apply(disk, "before", Timestamp(9));
    disk.lose_power(rng.next());
    if done.is_ok() {
        return named(&plan);
    }
    let copy = disk_of(&files_of(disk));
    if let Ok((journal, ..)) = Journal::open_stepped(Arc::new(copy), small()) {
        assert!(journal.durable_end().0 >= true_end, "it opens and would use offsets again");
    }
    named(&plan)
}

#[test]
fn whatever_is_damaged_is_named_and_repaired_and_nothing_else_is_lost() {
    let asked = std::env::var("TIDEGATE_TEST_SEEDS").ok();
    let seeds = asked.map_or(3_000, |seeds| seeds.parse().expect("TIDEGATE_TEST_SEEDS is a number"));
    for seed in 0..seeds {
        std::panic::catch_unwind(|| run(seed)).unwrap_or_else(|_| panic!("seed {seed} fails"));
    }
}
