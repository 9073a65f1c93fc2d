//! What it costs to carry a record from the journal to a sink that takes everything at once, per record.
//!
//! `tail` reads batches that are still in memory, `segments` from files that the operating system has cached. What a
//! real sink does comes on top; see the `kafka` bench.

#![allow(missing_docs, reason = "criterion's macros make functions without docs")]

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use tidegate::health::Part;
use tidegate::pump::{self, Sink, SinkError};
use tidegate_broker::journal::{FileStorage, FullPolicy, Journal, Options, StartAt, SyncPolicy};
use tidegate_broker::record::{Append, Batch, Entry, Offset, Properties, Qos, Record, Timestamp};
use tidegate_broker::topic::TopicName;
use tokio::sync::watch;
use tokio::time::Instant;

const RECORDS: u64 = 100_000;

/// Confirms whatever it is handed, and ends the pump with the last record.
struct Nowhere {
    end: Offset,
    taken: Offset,
    done: watch::Sender<Option<Instant>>,
}

impl Sink for Nowhere {
    const WINDOW: usize = 256;

    async fn connect(&mut self) -> Result<Option<Offset>, SinkError> {
        Ok(None)
    }

    async fn write(&mut self, batch: Batch) -> Result<(), SinkError> {
        self.taken = batch.end();
        Ok(())
    }

    async fn confirmed(&mut self) -> Result<Offset, SinkError> {
        if self.taken == self.end {
            self.done.send_replace(Some(Instant::now()));
        }
        Ok(self.taken)
    }
}

/// A journal with [`RECORDS`] readings, of which `tail_bytes` stay in memory.
fn journal(folder: &std::path::Path, tail_bytes: usize) -> Journal {
    let options = Options {
        segment_bytes: 64 << 20,
        max_bytes: 1 << 30,
        max_age: None,
        full: FullPolicy::Refuse,
        sync: SyncPolicy::Never,
        tail_bytes,
        batch_bytes: 1 << 20,
    };
    let storage = FileStorage::open(folder).expect("a new folder can be used");
    let (journal, mut appender) = Journal::open(storage, options).expect("an empty folder is a journal");
    let payload = [b'x'; 60];
    for number in 0..RECORDS {
        let topic = format!("sensors/device-{:03}/temperature", number % 1_000);
        let record = Record {
            time: Timestamp(1_753_626_600_000),
            client: "gateway",
            topic: TopicName::new(&topic).expect("a legal topic"),
            properties: Properties::NONE,
            payload: &payload,
            qos: Qos::AtLeastOnce,
            retain: false,
            packet_id: 1,
        };
        appender.append(&Entry::Record(record)).expect("there is room");
        if number % 1_000 == 0 {
            appender.submit();
        }
    }
    while journal.durable_end() < appender.end() {
        appender.submit();
        std::thread::yield_now();
    }
    journal
}

fn carry(criterion: &mut Criterion) {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime can be made");
    let mut group = criterion.benchmark_group("pump");
    group.throughput(Throughput::Elements(RECORDS));
    let mut number = 0;
    for (name, tail_bytes) in [("tail", 256 << 20), ("segments", 0)] {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let journal = journal(folder.path(), tail_bytes);
        group.bench_function(name, |bencher| {
            let start = || {
                number += 1;
                journal.cursor(&format!("{name}-{number}"), StartAt::Oldest).expect("a cursor can be made")
            };
            let run = |cursor| {
                let (done, drain) = watch::channel(None);
                let sink = Nowhere { end: journal.durable_end(), taken: Offset(0), done };
                runtime.block_on(pump::carry(&journal, &cursor, sink, Part::new("nowhere"), drain));
                assert_eq!(cursor.position(), journal.durable_end(), "everything was carried");
            };
            bencher.iter_batched(start, run, BatchSize::PerIteration);
        });
    }
    group.finish();
}

criterion_group!(benches, carry);
criterion_main!(benches);
