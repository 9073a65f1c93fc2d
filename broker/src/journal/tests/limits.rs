//! What happens at the limits: full journals, trimming by size and age, readers and cursors left behind.

use super::*;
use crate::record::Refused;

struct Fixture {
    disk: MemoryStorage,
    journal: Journal,
    appender: Appender,
    writer: Writer,
    time: Arc<AtomicU64>,
}

fn open(options: Options) -> Fixture {
    reopen(MemoryStorage::default(), options)
}

fn reopen(disk: MemoryStorage, options: Options) -> Fixture {
    let time = Arc::new(AtomicU64::new(1_000_000));
    let told = time.clone();
    let clock: Clock = Arc::new(move || Timestamp(told.load(Ordering::Relaxed)));
    let storage = Arc::new(disk.clone());
    let (journal, appender, writer) = Journal::open_stepped_at(storage, options, clock).unwrap();
    Fixture { disk, journal, appender, writer, time }
}

impl Fixture {
    /// Appends, each entry a group of its own, until the journal refuses; how many it took.
    fn fill(&mut self, entries_max: u64) -> u64 {
        for number in 0..entries_max {
            match self.appender.append(&Entry::Control(&payload(number))) {
                Ok(_) => self.step(),
                Err(Refused::Full) => return number,
                Err(Refused::Failed) => panic!("{:?}", self.journal.status().failed),
            }
        }
        entries_max
    }

    fn step(&mut self) {
        self.appender.submit();
        self.writer.step();
    }

    fn pass_time(&mut self, ms: u64) {
        self.time.fetch_add(ms, Ordering::Relaxed);
        self.writer.step();
    }

    fn segment_files(&self) -> usize {
        self.disk.list().unwrap().iter().filter(|name| name.ends_with(".log")).count()
    }
}

#[test]
fn without_cursors_the_oldest_segments_go_and_nothing_is_refused() {
    let mut fixture = open(small());
    assert_eq!(fixture.fill(2_000), 2_000);
    let status = fixture.journal.status();
    assert!(status.bytes <= 20_000 && status.bytes > 15_000, "{status:?}");
    assert!(status.start.0 > 1_000, "{status:?}");
    assert_eq!(fixture.segment_files(), status.segments);
    let files = fixture.disk.list().unwrap();
    fixture.writer.finish();
    let status = fixture.journal.status();
    let segments = files.iter().filter(|name| name.ends_with(".log"));
    let lengths = segments.map(|name| fixture.disk.open(name).unwrap().len().unwrap());
    assert_eq!(lengths.sum::<u64>(), status.bytes, "bytes are what the files take");
}

#[test]
fn a_full_journal_refuses_until_the_slowest_cursor_moves() {
    let mut fixture = open(small());
    let (told, heard) = sync_channel(10_000);
    fixture.journal.on_durable(move |end| told.try_send(end).unwrap());
    let slow = fixture.journal.cursor("slow", StartAt::Oldest).unwrap();
    let fast = fixture.journal.cursor("fast", StartAt::Oldest).unwrap();
    let taken = fixture.fill(10_000);
    fast.advance(Offset(taken));
    fixture.step();
    assert!((150..400).contains(&taken), "{taken}");
    assert_eq!(fixture.appender.refused(), Some(Refused::Full));
    assert!(fixture.journal.status().full);
    assert_eq!(fixture.journal.start(), Offset(0));
    assert_eq!(read_all(&fixture.journal, Offset(0)).len() as u64, taken);

    assert!(heard.try_iter().count() > 0);
    slow.advance(Offset(100));
    fixture.step();
    assert_eq!(fixture.appender.refused(), None);
    assert!(!fixture.journal.status().full);
    assert_eq!(heard.try_iter().last(), Some(Offset(taken)), "the shard is told that there is room");
    assert!(fixture.journal.start().0 > 0 && fixture.journal.start() <= Offset(100));
    assert!(fixture.fill(10_000) > 0);
    assert_eq!((slow.skipped(), fast.skipped()), (0, 0));
}

#[test]
fn removing_the_slowest_cursor_makes_room() {
    let mut fixture = open(small());
    let cursor = fixture.journal.cursor("gone", StartAt::Oldest).unwrap();
    fixture.fill(10_000);
    fixture.journal.remove_cursor("gone").unwrap();
    fixture.step();
    assert_eq!(fixture.fill(1_000), 1_000);
    cursor.advance(Offset(1));
    assert!(fixture.journal.status().cursors.is_empty());
}

#[test]
fn dropping_the_oldest_is_counted_for_whoever_missed_it() {
    let options = Options { full: FullPolicy::DropOldest, ..small() };
    let mut fixture = open(options.clone());
    let cursor = fixture.journal.cursor("slow", StartAt::Oldest).unwrap();
    let mut reader = fixture.journal.reader(Offset(0));
    fixture.fill(1);
    assert_eq!(reader.next().unwrap().unwrap().end(), Offset(1));
    assert_eq!(fixture.fill(2_000), 2_000);
    let start = fixture.journal.start();
    assert!(start.0 > 1_000);
    assert_eq!((cursor.position(), cursor.skipped()), (start, start.0));
    assert_eq!(reader.next().unwrap().unwrap().base(), start);
    assert_eq!(reader.skipped(), start.0 - 1);
    assert!(fixture.journal.status().bytes <= 20_000);

    fixture.pass_time(2_000);
    fixture.disk.lose_power(3);
    let again = reopen(fixture.disk.clone(), options);
    let status = again.journal.status();
    assert_eq!((status.cursors[0].position, status.cursors[0].skipped), (start, start.0));
}

#[test]
fn what_is_needed_to_know_ones_own_state_is_never_dropped() {
    let mut fixture = open(Options { full: FullPolicy::DropOldest, ..small() });
    let slow = fixture.journal.cursor("slow", StartAt::Oldest).unwrap();
    fixture.journal.keep_from(Offset(50));
    let taken = fixture.fill(2_000);
    assert!((100..1_000).contains(&taken), "{taken} {:?}", fixture.journal.status());
    assert!(fixture.journal.start() <= Offset(50));
    assert!(fixture.journal.status().full);
    fixture.journal.keep_from(Offset(taken));
    fixture.step();
    assert_eq!(fixture.appender.refused(), None);
    assert_eq!(fixture.fill(30), 30);
    assert!(fixture.journal.start() <= Offset(taken));
    assert_eq!(slow.skipped(), fixture.journal.start().0);
}

#[test]
fn only_saved_positions_let_segments_go() {
    let mut fixture = open(small());
    let cursor = fixture.journal.cursor("sink", StartAt::Oldest).unwrap();
    fixture.fill(10_000);
    cursor.advance(fixture.journal.durable_end());
    fixture.disk.fail(Some(Call::Rename), 1);
    fixture.step();
    fixture.step();
    assert_eq!(fixture.journal.start(), Offset(0), "a crash would bring the cursor back to 0");
    fixture.pass_time(1_000);
    assert!(fixture.journal.start().0 > 0);
    fixture.disk.lose_power(0);
    let again = reopen(fixture.disk.clone(), small());
    assert_eq!(again.journal.status().cursors[0].skipped, 0);
}

#[test]
fn old_segments_go_when_every_cursor_has_passed_them() {
    let max_age = Some(Duration::from_secs(60));
    let mut fixture = open(Options { max_age, ..small() });
    let cursor = fixture.journal.cursor("sink", StartAt::Oldest).unwrap();
    fixture.fill(100);
    fixture.pass_time(61_000);
    assert_eq!(fixture.journal.start(), Offset(0), "the cursor has not passed them");
    cursor.advance(Offset(100));
    fixture.pass_time(1_000);
    assert_eq!(fixture.journal.start(), Offset(100), "the active segment is sealed and goes as well");
    assert_eq!(fixture.segment_files(), 1);
    assert_eq!(fixture.appender.end(), Offset(100));
    fixture.fill(1);
    fixture.pass_time(30_000);
    assert_eq!(fixture.journal.start(), Offset(100), "not old yet");
    drop(fixture.writer);
    fixture.disk.kill();
    let again = reopen(fixture.disk.clone(), Options { max_age, ..small() });
    assert_eq!(again.journal.durable_end(), Offset(101));
}

#[test]
fn a_reader_goes_on_where_it_was_while_its_segment_is_trimmed() {
    let mut fixture = open(small());
    fixture.fill(300);
    let start = fixture.journal.start();
    let mut reader = fixture.journal.reader(start);
    let first = reader.next().unwrap().unwrap();
    assert_eq!((first.base(), first.end()), (start, start.plus(1)));
    fixture.fill(300);
    let trimmed_to = fixture.journal.start();
    assert!(trimmed_to > reader.offset());
    let next = reader.next().unwrap().unwrap();
    assert_eq!(next.base(), trimmed_to);
    assert_eq!(reader.skipped(), trimmed_to.0 - start.0 - 1);
}

#[test]
fn an_entry_larger_than_a_batch_or_a_segment_has_a_batch_of_its_own() {
    let mut fixture = open(small());
    let large = vec![7; 4_000];
    for entry in [&b"before"[..], &large, b"behind"] {
        fixture.appender.append(&Entry::Control(entry)).unwrap();
    }
    fixture.step();
    fixture.step();
    let batches: Vec<_> = std::iter::from_fn(|| fixture.appender.take_durable()).collect();
    assert_eq!(batches.iter().map(Batch::count).collect::<Vec<_>>(), [1, 1, 1]);
    assert_eq!(contents(&batches[1])[0], large);
    let again = reopen(fixture.disk.clone(), small());
    assert_eq!(read_all(&again.journal, Offset(1))[0], large);
}

#[test]
fn a_trickle_of_tiny_batches_takes_little_memory() {
    let mut fixture = open(Options { tail_bytes: 100_000, batch_bytes: 1 << 20, ..Options::default() });
    for _ in 0..5_000 {
        fixture.appender.append(&Entry::Control(&[0; 100])).unwrap();
    }
    fixture.step();
    for _ in 0..30 {
        fixture.fill(1);
    }
    let (batches, bytes) = fixture.journal.shared.tail.held();
    assert!(batches > 15 && bytes <= 100_000, "{batches} batches hold {bytes} bytes");
}

#[test]
fn an_idle_journal_writes_nothing_but_one_mark() {
    let mut fixture = open(small());
    fixture.fill(3);
    fixture.pass_time(1_500);
    let calls = fixture.disk.calls();
    for _ in 0..10 {
        fixture.pass_time(1_500);
    }
    assert_eq!(fixture.disk.calls(), calls);
}

#[test]
fn lag_is_told_in_bytes() {
    let mut fixture = open(small());
    let cursor = fixture.journal.cursor("sink", StartAt::Oldest).unwrap();
    fixture.fill(200);
    let lag = |fixture: &Fixture| fixture.journal.status().cursors[0].lag_bytes;
    let all = lag(&fixture);
    assert!(all > 200 * 28 && all < fixture.journal.status().bytes, "{all}");
    cursor.advance(Offset(150));
    assert!(lag(&fixture) < all / 2);
    cursor.advance(Offset(200));
    assert_eq!(lag(&fixture), 0);
}
