//! Side by side from one real Kafka: tidegate's consumer, which has each record durable in the journal before it commits
//! its offset, and a bare rdkafka consumer that only reads the same topic.
//!
//! Both read the same records in turn, in one process, from the first that arrives to the last; printed are records per
//! second, CPU microseconds of this process per record, and the ratio. The broker that takes the records in is tidegate's,
//! with a journal in a temporary folder that syncs always.
//!
//! ```text
//! eval "$(tests/services start kafka)" && cargo bench -p tidegate-benches --bench commands
//! ```
//!
//! `-- --records N` is the number of records, `--rounds N` how often each side has its turn.

#![allow(clippy::unwrap_used, reason = "a bench that cannot run says so by its panic")]

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Parser;
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::message::Message as _;
use tidegate::kafka::{Config, ConsumeConfig, ConsumedTopic, KafkaConsumer, Start};
use tidegate_benches::kafka::{self, Bare};
use tidegate_benches::peer::process_cpu_time;
use tidegate_broker::auth::{Access, Anonymous};
use tidegate_broker::broker::Limits;
use tidegate_broker::journal::{FileStorage, Journal, Options, SyncPolicy};
use tidegate_broker::server::{self, Server};

const PAYLOAD_BYTES: usize = 60;
/// How long one side may take.
const PATIENCE: Duration = Duration::from_secs(300);

#[derive(Parser)]
struct Arguments {
    #[arg(long, default_value_t = 300_000)]
    records: u64,
    #[arg(long, default_value_t = 3)]
    rounds: u32,
    /// What cargo adds.
    #[arg(long, hide = true)]
    bench: bool,
}

/// What one turn cost, from the first record on.
#[derive(Clone, Copy)]
struct Cost {
    records_per_second: f64,
    cpu_microseconds: f64,
}

/// Runs until `count` says that all `records` are there; the clock starts when the first is.
#[expect(clippy::cast_precision_loss, reason = "shown with few digits")]
fn measure(records: u64, mut count: impl FnMut() -> u64) -> Cost {
    let deadline = Instant::now() + PATIENCE;
    let mut begun = None;
    loop {
        let counted = count();
        let (first, at, cpu) = match begun {
            Some(begun) => begun,
            None if counted > 0 => *begun.insert((counted, Instant::now(), process_cpu_time(None).unwrap())),
            None => (0, Instant::now(), Duration::ZERO),
        };
        if counted >= records {
            let measured = (records - first) as f64;
            let cpu = process_cpu_time(None).unwrap() - cpu;
            return Cost {
                records_per_second: measured / at.elapsed().as_secs_f64(),
                cpu_microseconds: cpu.as_secs_f64() * 1e6 / measured,
            };
        }
        assert!(Instant::now() < deadline, "{counted} of {records} records came within {PATIENCE:?}");
    }
}

fn unique(what: &str) -> String {
    use std::sync::atomic::{AtomicU64, Ordering};
    static COUNT: AtomicU64 = AtomicU64::new(0);
    format!("bench-{what}-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
}

fn ours(servers: &str, topic: &str, records: u64, runtime: &tokio::runtime::Runtime) -> Cost {
    let folder = tempfile::tempdir().unwrap();
    let storage = |name: &str| FileStorage::open(&folder.path().join(name)).unwrap();
    let options = Options { sync: SyncPolicy::Always, ..Options::default() };
    let (journal, appender) = Journal::open(storage("journal"), options).unwrap();
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let access = Arc::new(Access::new(Anonymous::Loopback, None));
    let options = server::Options::plain(address, access, Limits::default());
    let server = Server::start(options, journal.clone(), appender, storage("broker")).unwrap();
    let consumed = ConsumedTopic {
        topic: topic.to_owned(),
        mqtt: "commands/{device_id}/run".into(),
        qos: 1,
        retain: false,
    };
    let consume = ConsumeConfig { group: unique("group"), start: Start::Earliest, topics: vec![consumed] };
    let config = Config { bootstrap_servers: servers.into(), consume, ..Config::default() };
    // What the broker itself has written.
    let before = journal.durable_end().0;
    let consumer = KafkaConsumer::start(&config, journal.id(), server.handle(), runtime.handle()).unwrap();
    let cost = measure(records, || {
        std::thread::sleep(Duration::from_millis(1));
        journal.durable_end().0 - before
    });
    consumer.drain(Instant::now() + PATIENCE);
    server.drain(PATIENCE);
    journal.close();
    cost
}

fn bare(servers: &str, topic: &str, records: u64) -> Cost {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", servers)
        .set("group.id", unique("bare"))
        .set("auto.offset.reset", "earliest")
        .create()
        .unwrap();
    consumer.subscribe(&[topic]).unwrap();
    let mut count = 0;
    measure(records, || {
        if let Some(record) = consumer.poll(Duration::from_millis(100)) {
            std::hint::black_box(record.unwrap().payload());
            count += 1;
        }
        count
    })
}

fn main() {
    let Ok(servers) = std::env::var("TIDEGATE_TEST_KAFKA") else {
        // `cargo test --benches` and a plain `cargo bench` have no Kafka.
        println!("commands: TIDEGATE_TEST_KAFKA is not set; eval \"$(tests/services start kafka)\" first");
        return;
    };
    let Arguments { records, rounds, .. } = Arguments::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    println!("{records} records of {PAYLOAD_BYTES} bytes from Kafka, {rounds} rounds in turn");
    println!("{:<44} {:>10} {:>6} {:>8} {:>6}", "", "records/s", "ratio", "CPU µs/r", "ratio");
    for (named, with_headers) in [("key only", false), ("key and six headers", true)] {
        let topic = unique("commands");
        kafka::create_topic(&servers, &topic).unwrap();
        let filling = Bare::new(&servers, &topic, with_headers, []).unwrap();
        kafka::send_from_memory(&filling, records, PAYLOAD_BYTES).unwrap();
        drop(filling);
        for _ in 0..rounds {
            let ours = ours(&servers, &topic, records, &runtime);
            let bare = bare(&servers, &topic, records);
            for (name, cost) in [("rdkafka alone, only reads", bare), ("tidegate, durable", ours)] {
                println!(
                    "{:<44} {:>10.0} {:>6.2} {:>8.2} {:>6.1}",
                    format!("{named}: {name}"),
                    cost.records_per_second,
                    cost.records_per_second / bare.records_per_second,
                    cost.cpu_microseconds,
                    cost.cpu_microseconds / bare.cpu_microseconds
                );
            }
        }
    }
}
