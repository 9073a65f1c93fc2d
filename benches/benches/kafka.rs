//! Side by side into one real Kafka: a bare rdkafka producer, which copies, and tidegate's sinks, which do not: at least
//! once, and exactly once by transactions.
//!
//! Both send the same records, with and without the same headers, in turn, in one process; printed are records per
//! second, this process's CPU seconds and allocations (those of Rust; librdkafka's own are the same for both), and the
//! ratio. The bare producer starts from payloads in memory, tidegate from the journal's segments.
//!
//! ```text
//! eval "$(tests/services start kafka)" && cargo bench -p tidegate-benches --bench kafka
//! ```
//!
//! Properties of librdkafka can follow as `-- name=value`; they are given to both.

#![allow(clippy::unwrap_used, reason = "a bench that cannot run says so by its panic")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use tidegate::health::Part;
use tidegate::kafka::{Config, ExactlyOnceSink, HeaderStyle, KafkaSink};
use tidegate_benches::filled;
use tidegate_benches::kafka::{self, Bare};
use tidegate_benches::peer::process_cpu_time;
use tidegate_broker::journal::Journal;
use tidegate_broker::record::{Properties, Qos, Record, Timestamp};
use tidegate_broker::topic::TopicName;

const RECORDS: u64 = 500_000;
const ROUNDS: usize = 3;

/// Counts what Rust allocates.
struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: everything is passed on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Properties of librdkafka from the command line.
fn properties() -> impl Iterator<Item = (String, String)> {
    std::env::args().filter_map(|argument| {
        argument.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned()))
    })
}

/// What one run cost.
#[derive(Clone, Copy)]
struct Cost {
    seconds: f64,
    cpu_seconds: f64,
    allocations: f64,
}

fn measure(run: impl FnOnce()) -> Cost {
    let (begun, cpu, allocations) =
        (Instant::now(), process_cpu_time(None).unwrap(), ALLOCATIONS.load(Ordering::Relaxed));
    run();
    let allocations = ALLOCATIONS.load(Ordering::Relaxed) - allocations;
    #[expect(clippy::cast_precision_loss, reason = "shown with two digits")]
    let allocations = allocations as f64 / RECORDS as f64;
    Cost {
        seconds: begun.elapsed().as_secs_f64(),
        cpu_seconds: (process_cpu_time(None).unwrap() - cpu).as_secs_f64(),
        allocations,
    }
}

const PAYLOAD_BYTES: usize = 60;
const PAYLOAD: [u8; PAYLOAD_BYTES] = [b'.'; PAYLOAD_BYTES];
const CLIENT: &str = "gateway";

fn bare(servers: &str, topic: &str, with_headers: bool) {
    let bare = Bare::new(servers, topic, with_headers, properties()).unwrap();
    kafka::send_from_memory(&bare, RECORDS, PAYLOAD_BYTES).unwrap();
}

fn journal(folder: &std::path::Path) -> Journal {
    filled::journal(folder, |take| {
        for number in 0..RECORDS {
            let topic = format!("sensors/{}/temperature", kafka::device(number));
            take(&Record {
                time: Timestamp(1_753_626_600_000),
                client: CLIENT,
                topic: TopicName::new(&topic).unwrap(),
                properties: Properties::NONE,
                payload: &PAYLOAD,
                qos: Qos::AtLeastOnce,
                retain: false,
                packet_id: 1,
            });
        }
    })
}

fn config(servers: &str, topic: &str, headers: HeaderStyle) -> Config {
    let mut config = Config { bootstrap_servers: servers.into(), headers, ..Config::default() };
    for route in &mut config.routes {
        route.topic = topic.into();
    }
    config.properties.extend(properties());
    config
}

fn at_least_once(config: &Config, journal: &Journal, cursor: &str) {
    let part = Part::new("kafka");
    let sink = KafkaSink::new(config, journal.id(), part.clone()).unwrap();
    filled::carry(sink, part, journal, cursor);
}

fn exactly_once(config: &Config, journal: &Journal, cursor: &str) {
    // A cursor topic of its own: each round begins at the beginning.
    let config =
        Config { cursor_topic: format!("bench-cursors-{}-{cursor}", std::process::id()), ..config.clone() };
    let part = Part::new("kafka");
    let sink = ExactlyOnceSink::new(&config, journal.id(), part.clone()).unwrap();
    filled::carry(sink, part, journal, cursor);
}

fn main() {
    let Ok(servers) = std::env::var("TIDEGATE_TEST_KAFKA") else {
        // `cargo test --benches` and a plain `cargo bench` have no Kafka.
        println!("kafka: TIDEGATE_TEST_KAFKA is not set; eval \"$(tests/services start kafka)\" first");
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let journal = journal(folder.path());
    let topic = format!("bench-{}", std::process::id());
    println!("{RECORDS} records of {} bytes; per million records:", PAYLOAD_BYTES);
    println!("{:<34} {:>12} {:>12} {:>14}", "", "records/s", "CPU seconds", "allocations/r");
    for round in 0..ROUNDS {
        // The first of all also creates the topic, which is why tidegate begins.
        let run = |headers, name| {
            let config = config(&servers, &topic, headers);
            measure(|| at_least_once(&config, &journal, &format!("{name}-{round}")))
        };
        let ours_full = run(HeaderStyle::CloudEvents, "full");
        let bare_full = measure(|| bare(&servers, &topic, true));
        let ours_plain = run(HeaderStyle::None, "plain");
        let bare_plain = measure(|| bare(&servers, &topic, false));
        let config = config(&servers, &topic, HeaderStyle::CloudEvents);
        let ours_once = measure(|| exactly_once(&config, &journal, &format!("once-{round}")));
        show("tidegate, CloudEvents headers", ours_full);
        show("the same, exactly once", ours_once);
        show("bare rdkafka, the same headers", bare_full);
        show("tidegate, no headers", ours_plain);
        show("bare rdkafka, no headers", bare_plain);
        println!(
            "ratio of records/s: {:.2} with headers, {:.2} without; exactly once {:.2} of at least once\n",
            bare_full.seconds / ours_full.seconds,
            bare_plain.seconds / ours_plain.seconds,
            ours_full.seconds / ours_once.seconds
        );
    }
}

#[expect(clippy::cast_precision_loss, reason = "shown with few digits")]
fn show(name: &str, cost: Cost) {
    let records = RECORDS as f64;
    println!(
        "{name:<34} {:>12.0} {:>12.2} {:>14.2}",
        records / cost.seconds,
        cost.cpu_seconds * 1e6 / records,
        cost.allocations
    );
}
