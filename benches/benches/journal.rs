//! The journal alone, on a real disk: what group commit costs per record, what a recovery and a catch-up take.
//!
//! `journal/cpu` is processor time of all threads, appender, writer and kernel together; the other groups are
//! wall-clock time. Records carry 100 bytes of payload. The folder lies where the system keeps temporary files: set
//! `TMPDIR` to measure another disk, for on a memory file system a sync costs nothing.

use std::hint::black_box;
use std::thread::Thread;
use std::time::Duration;

use criterion::measurement::{Measurement, ValueFormatter, WallTime};
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use tidegate_broker::journal::{Appender, FileStorage, Journal, Options, StartAt, SyncPolicy};
use tidegate_broker::record::{Append, Entry, Offset, Properties, Qos, Record, Timestamp};
use tidegate_broker::topic::TopicName;

const PAYLOAD_BYTES: usize = 100;
const RECORDS_PER_SUBMIT: [u64; 3] = [1, 100, 5_000];

/// An open journal in a folder of its own, and the one who appends to it.
struct Fixture {
    journal: Journal,
    appender: Appender,
    folder: tempfile::TempDir,
}

fn options() -> Options {
    Options { max_bytes: 1 << 30, sync: SyncPolicy::Always, ..Options::default() }
}

impl Fixture {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("the temporary folder is writable");
        let storage = FileStorage::open(folder.path()).expect("the folder is new");
        let (journal, appender) = Journal::open(storage, options()).expect("the folder is empty");
        let thread: Thread = std::thread::current();
        journal.on_durable(move |_| thread.unpark());
        Self { journal, appender, folder }
    }

    fn append(&mut self, records: u64) {
        let payload = [7; PAYLOAD_BYTES];
        let record = Record {
            time: Timestamp(1_800_000_000_000),
            client: "sensor-0001",
            topic: TopicName::new("sensors/sensor-0001/temperature").expect("a Topic Name"),
            properties: Properties::NONE,
            payload: &payload,
            qos: Qos::AtLeastOnce,
            retain: false,
            packet_id: 1,
        };
        for _ in 0..records {
            self.appender.append(black_box(&Entry::Record(record))).expect("there is room");
        }
    }

    /// Takes what is durable until at most `backlog` bytes are not.
    fn wait(&mut self, backlog: usize) {
        loop {
            self.appender.submit();
            while let Some(batch) = self.appender.take_durable() {
                black_box(batch);
            }
            if self.appender.backlog_bytes() <= backlog {
                return;
            }
            std::thread::park_timeout(Duration::from_secs(1));
        }
    }

    /// Rounds of input as the shard makes them: append, submit, go on while the writer syncs.
    fn rounds(&mut self, rounds: u64, records: u64) {
        for _ in 0..rounds {
            self.append(records);
            self.wait(1 << 20);
        }
        self.wait(0);
    }
}

/// Processor time of the whole process, kernel included.
#[derive(Debug)]
struct CpuTime;

impl CpuTime {
    fn now() -> Duration {
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: the pointer is to a live `timespec` that nothing else refers to.
        let failed = unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) };
        assert_eq!(failed, 0, "Linux knows this clock");
        let seconds = u64::try_from(time.tv_sec).expect("processor time is not negative");
        Duration::from_secs(seconds) + Duration::from_nanos(time.tv_nsec.unsigned_abs())
    }
}

impl Measurement for CpuTime {
    type Intermediate = Duration;
    type Value = Duration;

    fn start(&self) -> Duration {
        Self::now()
    }

    fn end(&self, start: Duration) -> Duration {
        Self::now() - start
    }

    fn add(&self, first: &Duration, second: &Duration) -> Duration {
        *first + *second
    }

    fn zero(&self) -> Duration {
        Duration::ZERO
    }

    fn to_f64(&self, value: &Duration) -> f64 {
        WallTime.to_f64(value)
    }

    fn formatter(&self) -> &dyn ValueFormatter {
        WallTime.formatter()
    }
}

fn append<M: Measurement<Value = Duration>>(group: &mut BenchmarkGroup<'_, M>, measurement: &M) {
    for records in RECORDS_PER_SUBMIT {
        let mut fixture = Fixture::new();
        group.throughput(Throughput::Elements(records));
        group.bench_function(BenchmarkId::new("append and sync", records), |bencher| {
            bencher.iter_custom(|rounds| {
                let start = measurement.start();
                fixture.rounds(rounds, records);
                measurement.end(start)
            });
        });
    }
}

fn cpu(criterion: &mut Criterion<CpuTime>) {
    append(&mut criterion.benchmark_group("journal/cpu"), &CpuTime);
}

fn wall(criterion: &mut Criterion) {
    append(&mut criterion.benchmark_group("journal/wall"), &WallTime);
}

/// One record at a time, each waited for: what a lone device sees.
fn round_trip(criterion: &mut Criterion) {
    let mut fixture = Fixture::new();
    criterion.bench_function("journal/round trip of one record", |bencher| {
        bencher.iter(|| {
            fixture.append(1);
            fixture.wait(0);
        });
    });
}

/// Opening with one full segment to scan; per record in it.
fn recover(criterion: &mut Criterion) {
    let mut fixture = Fixture::new();
    let records = (options().segment_bytes - (1 << 20)) / 200;
    fixture.rounds(records / 1_000, 1_000);
    let Fixture { journal, appender, folder } = fixture;
    let records = journal.durable_end().0;
    drop((journal, appender));
    let mut group = criterion.benchmark_group("journal");
    group.throughput(Throughput::Elements(records));
    group.sample_size(10);
    group.bench_function("recover", |bencher| {
        bencher.iter(|| {
            let storage = FileStorage::open(folder.path()).expect("nobody else has it open");
            let (journal, ..) = Journal::open_stepped(storage, options()).expect("it was closed in order");
            assert_eq!(journal.durable_end(), Offset(records));
        });
    });
}

/// Reading a million records back from segments, in the operating system's cache, and the newest from memory.
fn read(criterion: &mut Criterion) {
    let mut fixture = Fixture::new();
    fixture.rounds(1_000, 1_000);
    let end = fixture.journal.durable_end();
    let journal = fixture.journal.clone();
    let mut group = criterion.benchmark_group("journal/read");
    group.sample_size(10);
    for (name, from) in [("segments", Offset(0)), ("tail", Offset(end.0 - 50_000))] {
        group.throughput(Throughput::Elements(end.since(from)));
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                let mut reader = journal.reader(from);
                let mut bytes = 0;
                while let Some(batch) = reader.next().expect("the disk is well") {
                    bytes += batch.records().map(|(_, record)| record.payload.len()).sum::<usize>();
                }
                assert_eq!(bytes as u64, end.since(from) * PAYLOAD_BYTES as u64);
            });
        });
    }
    let cursor = fixture.journal.cursor("sink", StartAt::Oldest).expect("the folder is writable");
    group.throughput(Throughput::Elements(1));
    group.bench_function("advance a cursor", |bencher| {
        let mut offset = 0;
        bencher.iter(|| {
            offset = (offset + 1) % end.0;
            cursor.advance(Offset(offset));
        });
    });
}

criterion_group! { name = by_cpu; config = Criterion::default().with_measurement(CpuTime); targets = cpu }
criterion_group!(by_wall, wall, round_trip, recover, read);
criterion_main!(by_cpu, by_wall);
