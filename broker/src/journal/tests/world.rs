//! Random lives of a journal on a disk that loses power and whose calls fail, checked against a model.
//!
//! The model is the list of all accepted contents. Whatever happens: what was told to be durable is there with the
//! same content after every crash, nothing is there that was not accepted, readers see exactly the model and never
//! past the durable end, and no cursor misses anything. Run one seed alone with `World::run(seed)`.

use super::super::memory::Rng;
use super::*;

struct World {
    rng: Rng,
    disk: MemoryStorage,
    options: Options,
    time: Arc<AtomicU64>,
    /// The content of every offset: accepted in this life, or recovered.
    accepted: Vec<u64>,
    /// Up to here nothing may ever change again.
    durable: u64,
    /// Up to here everything survives as long as the power stays on.
    written: u64,
    next_number: u64,
    crashes: u64,
}

struct Life {
    journal: Journal,
    appender: Appender,
    writer: Writer,
    readers: Vec<Reader>,
    taken: u64,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut rng = Rng(seed);
        let sync = match rng.below(4) {
            0 => SyncPolicy::Never,
            1 => SyncPolicy::Interval(Duration::from_millis(700)),
            _ => SyncPolicy::Always,
        };
        let options = Options {
            segment_bytes: 300 + rng.below(2_000),
            max_bytes: 4_000 + rng.below(40_000),
            tail_bytes: rng.index(4_000),
            batch_bytes: 50 + rng.index(500),
            max_age: (rng.below(3) == 0).then_some(Duration::from_secs(20)),
            full: if rng.below(2) == 0 { FullPolicy::Refuse } else { FullPolicy::DropOldest },
            sync,
        };
        let disk = MemoryStorage::default();
        disk.seed(rng.next());
        let time = Arc::new(AtomicU64::new(1 << 40));
        Self {
            rng,
            disk,
            options,
            time,
            accepted: Vec::new(),
            durable: 0,
            written: 0,
            next_number: 0,
            crashes: 0,
        }
    }

    fn run(seed: u64) -> Self {
        let mut world = Self::new(seed);
        let lives = 1 + world.rng.below(6);
        for _ in 0..lives {
            let mut life = world.open();
            for _ in 0..world.rng.below(60) {
                world.act(&mut life);
            }
            world.end(life);
        }
        let life = world.try_open().unwrap();
        assert!(world.check_content(&life), "no fault was planned");
        world
    }

    /// Opens the journal, through crashes while it opens, and takes over what it recovered.
    fn open(&mut self) -> Life {
        if self.rng.below(4) == 0 {
            self.disk.power_off_at(1 + self.rng.below(30));
            if let Ok(life) = self.try_open() {
                return life;
            }
            self.crash();
        }
        self.try_open().unwrap()
    }

    fn try_open(&mut self) -> Result<Life, OpenError> {
        let time = self.time.clone();
        let clock: Clock = Arc::new(move || Timestamp(time.load(Ordering::Relaxed)));
        let disk = Arc::new(self.disk.clone());
        let (journal, appender, writer) = Journal::open_stepped_at(disk, self.options.clone(), clock)?;
        let end = journal.durable_end().0;
        assert_eq!(appender.end().0, end);
        let least = self.durable.max(self.written);
        assert!(least <= end, "told durable up to {least}, recovered up to {end}");
        assert!(end <= self.accepted.len() as u64, "more was recovered than accepted");
        self.accepted.truncate(usize::try_from(end).unwrap());
        (self.durable, self.written) = (end, end);
        let life = Life { journal, appender, writer, readers: Vec::new(), taken: end };
        self.check_content(&life);
        Ok(life)
    }

    fn act(&mut self, life: &mut Life) {
        match self.rng.below(16) {
            0..4 => self.append(life),
            4..6 => life.appender.submit(),
            6..8 => drop(life.writer.step()),
            8 => {
                // Others act between the write and the sync.
                life.writer.write_submitted();
                self.read(life);
                self.take_durable(life);
                life.writer.publish_written();
            }
            9 => self.take_durable(life),
            10 | 11 => self.read(life),
            12 => self.use_cursors(life),
            13 if self.rng.below(10) == 0 => self.jump(),
            13 => drop(self.time.fetch_add(self.rng.below(3_000), Ordering::Relaxed)),
            14 if self.rng.below(8) == 0 => {
                let size = (self.rng.below(2) == 0).then(|| self.disk.used_bytes() + self.rng.below(3_000));
                self.disk.set_capacity(size);
            }
            14 if self.rng.below(8) == 0 => {
                let fault = [Fault::Io, Fault::NoSpace][self.rng.index(2)];
                self.disk.fail_with(None, 1 + self.rng.below(20), fault);
            }
            14 if self.rng.below(8) == 0 => self.disk.power_off_at(1 + self.rng.below(20)),
            _ => life.appender.submit(),
        }
    }

    /// The clock is set forwards or back by hours.
    fn jump(&mut self) {
        let ms = self.rng.below(10 * 3_600_000);
        if self.rng.below(2) == 0 {
            self.time.fetch_add(ms, Ordering::Relaxed);
        } else {
            self.time.fetch_sub(ms, Ordering::Relaxed);
        }
    }

    fn append(&mut self, life: &mut Life) {
        for _ in 0..1 + self.rng.below(12) {
            let content = content(self.next_number);
            match life.appender.append(&Entry::Control(&content)) {
                Ok(appended) => {
                    assert_eq!(appended.offset.0, self.accepted.len() as u64);
                    self.accepted.push(self.next_number);
                    self.next_number += 1;
                }
                Err(crate::record::Refused::Full) => {
                    let waits = life.journal.status().no_space.is_some();
                    assert!(waits || self.options.full == FullPolicy::Refuse);
                }
                Err(crate::record::Refused::Failed) => assert!(life.journal.status().failed.is_some()),
            }
        }
        // Such tiny segments have headers and footers that matter.
        let (status, batch_bytes_max) = (life.journal.status(), 3_500);
        let slack = batch_bytes_max + 200 * status.segments as u64;
        assert!(status.bytes < self.options.max_bytes + slack, "{status:?} with {:?}", self.options);
    }

    fn take_durable(&mut self, life: &mut Life) {
        while let Some(batch) = life.appender.take_durable() {
            assert_eq!(batch.base().0, life.taken);
            life.taken = batch.end().0;
            self.check_batch(&life.journal, &batch);
        }
        assert!(life.taken <= life.journal.durable_end().0);
    }

    fn read(&mut self, life: &mut Life) {
        if life.readers.len() < 3 {
            let from = Offset(self.rng.below(life.journal.durable_end().0 + 1));
            life.readers.push(life.journal.reader(from));
        }
        let at = self.rng.index(life.readers.len());
        let mut reader = life.readers.swap_remove(at);
        for _ in 0..self.rng.below(10) {
            let before = (reader.offset().0, reader.skipped());
            match reader.next() {
                Ok(Some(batch)) => {
                    assert_eq!(batch.base().0, before.0 + reader.skipped() - before.1);
                    self.check_batch(&life.journal, &batch);
                    if self.rng.below(4) == 0 {
                        let back = self.rng.below(u64::from(batch.count()) + 2);
                        reader.seek(Offset(batch.end().0.saturating_sub(back)));
                    }
                }
                Ok(None) => assert!(reader.offset() >= life.journal.durable_end()),
                Err(ReadError::Io { .. }) => {}
                Err(error) => panic!("{error}"),
            }
        }
        if self.rng.below(4) > 0 {
            life.readers.push(reader);
        }
    }

    /// What anybody sees is durable, and as it was accepted.
    fn check_batch(&mut self, journal: &Journal, batch: &Batch) {
        assert!(batch.end() <= journal.durable_end(), "{batch:?} {:?}", journal.status());
        if self.options.sync == SyncPolicy::Always {
            self.durable = self.durable.max(batch.end().0);
        }
        let accepted = &self.accepted[batch.base().0 as usize..batch.end().0 as usize];
        let accepted: Vec<_> = accepted.iter().map(|number| content(*number)).collect();
        assert_eq!(contents(batch), accepted, "{batch:?}");
    }

    fn use_cursors(&mut self, life: &mut Life) {
        let name = ["kafka", "postgres", "sessions"][self.rng.index(3)];
        let start = [StartAt::Oldest, StartAt::End][self.rng.index(2)];
        let Ok(cursor) = life.journal.cursor(name, start) else { return };
        let (position, end) = (cursor.position(), life.journal.durable_end());
        assert!(life.journal.start() <= position && position <= end);
        match self.rng.below(4) {
            0 => drop(cursor.save()),
            1 => drop(life.journal.remove_cursor(name)),
            _ => cursor.advance(Offset(position.0 + self.rng.below(40))),
        }
        assert!(cursor.position() <= end);
        if self.options.full == FullPolicy::Refuse {
            assert_eq!(cursor.skipped(), 0, "nothing is trimmed below a cursor");
        }
    }

    fn end(&mut self, mut life: Life) {
        self.disk.set_capacity(None);
        let ends_in_order = self.rng.below(3) == 0;
        if ends_in_order {
            life.appender.submit();
            life.writer.finish();
            if life.journal.status().failed.is_none() {
                self.durable = life.journal.durable_end().0;
            }
        }
        self.take_durable(&mut life);
        if self.options.sync == SyncPolicy::Always {
            self.durable = self.durable.max(life.journal.durable_end().0);
        }
        if self.rng.below(3) == 0 && life.journal.status().failed.is_none() {
            // Killed, but the operating system goes on: everything written survives, synced or not.
            self.written = life.journal.durable_end().0;
            self.disk.kill();
        } else if self.rng.below(3) == 0 {
            self.disk.kill();
        } else {
            self.crash();
        }
    }

    fn crash(&mut self) {
        self.crashes += 1;
        self.written = 0;
        self.disk.lose_power(self.rng.next());
    }

    /// Whether everything could be read; what could be is checked.
    fn check_content(&mut self, life: &Life) -> bool {
        let mut reader = life.journal.reader(Offset(0));
        let mut at = life.journal.start().0;
        loop {
            let batch = match reader.next() {
                Ok(Some(batch)) => batch,
                Ok(None) => break,
                Err(ReadError::Io { .. }) => return false,
                Err(error) => panic!("{error}"),
            };
            assert_eq!(batch.base().0, at);
            at = batch.end().0;
            let durable = self.durable;
            self.check_batch(&life.journal, &batch);
            self.durable = durable;
        }
        assert_eq!(at, life.journal.durable_end().0);
        true
    }
}

/// Content that follows from its number: mostly short, sometimes longer than a batch or a segment.
fn content(number: u64) -> Vec<u8> {
    let mut rng = Rng(number);
    let bytes = match rng.below(40) {
        0 => rng.index(3_000),
        1..10 => rng.index(200),
        _ => rng.index(40),
    };
    (0..bytes).map(|_| rng.next() as u8).chain(number.to_le_bytes()).collect()
}

/// How many seeds a run tries; more than the default through `TIDEGATE_TEST_SEEDS`.
fn seeds() -> u64 {
    let asked = std::env::var("TIDEGATE_TEST_SEEDS").ok();
    asked.map_or(600, |seeds| seeds.parse().expect("TIDEGATE_TEST_SEEDS is a number"))
}

#[test]
fn random_lives_lose_nothing_durable_and_invent_nothing() {
    let (mut accepted, mut crashes) = (0, 0);
    for seed in 0..seeds() {
        let run = std::panic::catch_unwind(|| World::run(seed));
        let world = run.unwrap_or_else(|_| panic!("seed {seed} fails"));
        accepted += world.next_number;
        crashes += world.crashes;
    }
    assert!(
        accepted > 50 * seeds() && crashes > seeds(),
        "{accepted} entries and {crashes} crashes prove little"
    );
}

#[cfg(feature = "planted-bugs")]
#[test]
fn every_planted_bug_is_caught() {
    use crate::plant::{Bug, plant};
    let bugs = [
        Bug::SyncSkipped,
        Bug::SyncErrorIgnored,
        Bug::NoSpaceIgnored,
        Bug::WatermarkOffByOne,
        Bug::ReadPastDurableEnd,
        Bug::TornTailKept,
        Bug::ChecksumUnchecked,
        Bug::OffsetReused,
        Bug::TailNotRewritten,
        Bug::FooterEndOffByOne,
        Bug::SealNotSynced,
        Bug::FolderNotSynced,
        Bug::TrimmedBelowCursor,
        Bug::TrimmedByUnsaved,
        Bug::CursorsNotSynced,
        Bug::CursorsOverwritten,
    ];
    for bug in bugs {
        let caught = (0..3_000).find(|seed| {
            plant(Some(bug));
            let run = std::panic::catch_unwind(|| World::run(*seed));
            plant(None);
            run.is_err()
        });
        assert!(caught.is_some(), "{bug:?} is not caught");
        println!("{bug:?} is caught by seed {}", caught.unwrap());
    }
}
