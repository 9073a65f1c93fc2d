//! Zero-copy as a number: the bytes that `memcpy` moves in this process per record, on the way from tidegate's journal
//! into one real Kafka, beside a bare rdkafka producer that sends the same payloads from memory.
//!
//! Every call of `memcpy` is counted, those of librdkafka included, which is part of this program. Not seen are copies of
//! a few bytes whose number the compiler knew, and those of the kernel. What is copied beside the payload (keys, topics,
//! headers, librdkafka's own bookkeeping) is the same for every size, so the smallest size shows it and the largest hides
//! it. CPU is that of the whole process, with what the counting costs.
//!
//! ```text
//! eval "$(tests/services start kafka)" && cargo bench -p tidegate-benches --bench copies
//! ```
//!
//! Properties of librdkafka can follow as `-- name=value`; they are given to both.

#![allow(clippy::unwrap_used, reason = "a bench that cannot run says so by its panic")]

use std::ffi::c_void;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use tidegate::health::Part;
use tidegate::kafka::{Config, HeaderStyle, KafkaSink};
use tidegate_benches::filled;
use tidegate_benches::kafka::{self, Bare};
use tidegate_benches::peer::process_cpu_time;
use tidegate_broker::journal::Journal;
use tidegate_broker::record::{Properties, Qos, Record, Timestamp};
use tidegate_broker::topic::TopicName;

/// Bytes of a payload, and how many records have it.
const SIZES: [(usize, u64); 5] =
    [(100, 100_000), (1_000, 50_000), (10_000, 10_000), (60_000, 2_000), (500_000, 300)];

const ROUNDS: usize = 7;

static COPIED: AtomicU64 = AtomicU64::new(0);

/// Stands in for the C library's, in everything that is linked into this program.
///
/// # Safety
///
/// As memcpy(3): `bytes` can be read at `from` and written at `to`, and the two do not overlap.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut c_void, from: *const c_void, bytes: usize) -> *mut c_void {
    COPIED.fetch_add(bytes as u64, Ordering::Relaxed);
    // SAFETY: memmove asks for no more than memcpy, whose contract the caller keeps.
    unsafe { libc::memmove(to, from, bytes) }
}

fn main() {
    let Ok(servers) = std::env::var("TIDEGATE_TEST_KAFKA") else {
        // `cargo test --benches` and a plain `cargo bench` have no Kafka.
        println!("copies: TIDEGATE_TEST_KAFKA is not set; eval \"$(tests/services start kafka)\" first");
        return;
    };
    println!("Median of {ROUNDS} rounds in turn; for CPU also the least and the greatest:\n");
    println!("| payload bytes | way | bytes copied per record | of the payload | CPU µs per record |");
    println!("|---:|---|---:|---:|---:|");
    for (payload_bytes, records) in SIZES {
        let topic = format!("copies-{}-{payload_bytes}", std::process::id());
        kafka::create_topic(&servers, &topic).unwrap();
        let bare = Bare::new(&servers, &topic, false, properties()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let journal = journal(folder.path(), records, payload_bytes);
        let mut theirs = Row { way: "rdkafka, from memory", payload_bytes, records, rounds: Vec::new() };
        let mut ours = Row { way: "tidegate, from its journal", payload_bytes, records, rounds: Vec::new() };
        for round in 0..ROUNDS {
            theirs.measure(|| kafka::send_from_memory(&bare, records, payload_bytes).unwrap());
            ours.measure(|| tidegate(&servers, &topic, &journal, &format!("round-{round}")));
        }
        theirs.print();
        ours.print();
    }
}

/// Properties of librdkafka from the command line.
fn properties() -> impl Iterator<Item = (String, String)> {
    std::env::args().filter_map(|argument| {
        argument.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned()))
    })
}

struct Row {
    way: &'static str,
    payload_bytes: usize,
    records: u64,
    /// Bytes copied per record, and CPU microseconds per record.
    rounds: Vec<(f64, f64)>,
}

impl Row {
    #[expect(clippy::cast_precision_loss, reason = "shown with few digits")]
    fn measure(&mut self, run: impl FnOnce()) {
        let (copied, cpu) = (COPIED.load(Ordering::Relaxed), process_cpu_time(None).unwrap());
        run();
        let cpu = process_cpu_time(None).unwrap() - cpu;
        let copied = COPIED.load(Ordering::Relaxed) - copied;
        let records = self.records as f64;
        self.rounds.push((copied as f64 / records, cpu.as_secs_f64() * 1e6 / records));
    }

    #[expect(clippy::cast_precision_loss, reason = "shown with few digits")]
    fn print(&self) {
        let sorted = |pick: fn(&(f64, f64)) -> f64| {
            let mut values: Vec<f64> = self.rounds.iter().map(pick).collect();
            values.sort_by(f64::total_cmp);
            values
        };
        let (copied, cpu) = (sorted(|round| round.0), sorted(|round| round.1));
        let median = self.rounds.len() / 2;
        println!(
            "| {} | {} | {:.0} | {:.2} | {:.2} ({:.2}–{:.2}) |",
            self.payload_bytes,
            self.way,
            copied[median],
            copied[median] / self.payload_bytes as f64,
            cpu[median],
            cpu[0],
            cpu[cpu.len() - 1],
        );
    }
}

fn journal(folder: &Path, records: u64, payload_bytes: usize) -> Journal {
    let payload = vec![b'.'; payload_bytes];
    filled::journal(folder, |take| {
        for number in 0..records {
            let topic = format!("sensors/{}/temperature", kafka::device(number));
            take(&Record {
                time: Timestamp(1_753_626_600_000),
                client: "gateway",
                topic: TopicName::new(&topic).unwrap(),
                properties: Properties::NONE,
                payload: &payload,
                qos: Qos::AtLeastOnce,
                retain: false,
                packet_id: 1,
            });
        }
    })
}

/// Carries what `journal` holds to `topic`, without headers.
fn tidegate(servers: &str, topic: &str, journal: &Journal, cursor: &str) {
    let mut config =
        Config { bootstrap_servers: servers.into(), headers: HeaderStyle::None, ..Config::default() };
    for route in &mut config.routes {
        route.topic = topic.into();
    }
    config.properties.extend(properties());
    let part = Part::new("kafka");
    let sink = KafkaSink::new(&config, journal.id(), part.clone()).unwrap();
    filled::carry(sink, part, journal, cursor);
}
