//! Side by side into one real PostgreSQL: `psql \copy ... (FORMAT binary)` and tidegate's sink.
//!
//! Both store the same rows into the same table, in turn; printed are rows per second and the ratio. psql only reads a
//! file that was encoded before. tidegate reads the journal, finds the readings in the payloads, encodes them, notes
//! devices and metrics, and moves its cursor, all of it in the transactions of the rows; on a second connection it adds
//! them to the rollups per minute and per hour. Two figures are shown: until every row is stored, and until every
//! rollup is as well. How much rollups cost depends on how many readings fall into one minute of a device, therefore
//! several loads, from text, which is in no rollup, to devices that report once a minute, where every reading is a row
//! in `readings_per_minute` of its own.
//!
//! ```text
//! eval "$(tests/services start postgres)" && cargo bench -p tidegate-benches --bench postgres
//! ```
//!
//! `-- --only TEXT` runs the loads whose names contain it, `--rounds N` is how often each side has its turn.

#![allow(clippy::unwrap_used, reason = "a bench that cannot run says so by its panic")]

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use clap::Parser;
use tidegate::health::Part;
use tidegate::postgres::copy::{COLUMNS, RowEncoder};
use tidegate::postgres::{Config, PostgresSink};
use tidegate::pump;
use tidegate_benches::filled;
use tidegate_broker::journal::{Journal, StartAt};
use tidegate_broker::record::{Offset, Properties, Qos, Record, Timestamp};
use tidegate_broker::topic::TopicName;
use tokio::sync::watch;

const RECORDS: u64 = 500_000;

#[derive(Parser)]
struct Arguments {
    #[arg(long, default_value_t = 3)]
    rounds: u32,
    #[arg(long, default_value = "")]
    only: String,
    /// What cargo adds.
    #[arg(long, hide = true)]
    bench: bool,
}

/// Devices that take turns.
struct Load {
    name: &'static str,
    devices: u64,
    /// How often each of them reports.
    every_ms: u64,
    /// Text is in no rollup.
    is_text: bool,
}

const LOADS: [Load; 4] = [
    Load { name: "1,000 devices, every second, text", devices: 1_000, every_ms: 1_000, is_text: true },
    Load { name: "1,000 devices, every second", devices: 1_000, every_ms: 1_000, is_text: false },
    Load { name: "1 device, 100 a second", devices: 1, every_ms: 10, is_text: false },
    Load { name: "100,000 devices, every minute", devices: 100_000, every_ms: 60_000, is_text: false },
];

impl Load {
    fn each(&self, mut take: impl FnMut(u64, &Record<'_>)) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        // An hour ago, so that neither is in the future.
        let begin_ms = u64::try_from(now.as_millis()).unwrap() - 3_600_000;
        for number in 0..RECORDS {
            let topic = format!("sensors/device-{:06}/temperature", number % self.devices);
            let degrees = number % 400;
            let unit = if self.is_text { "C" } else { "" };
            let payload = format!("{}.{}{unit}", degrees / 10, degrees % 10);
            take(
                number,
                &Record {
                    time: Timestamp(begin_ms + number * self.every_ms / self.devices),
                    client: "gateway",
                    topic: TopicName::new(&topic).unwrap(),
                    properties: Properties::NONE,
                    payload: payload.as_bytes(),
                    qos: Qos::AtLeastOnce,
                    retain: false,
                    packet_id: 1,
                },
            );
        }
    }

    fn journal(&self, folder: &Path) -> Journal {
        filled::journal(folder, |take| self.each(|_, record| take(record)))
    }

    /// The rows as a file, as `COPY` takes them.
    fn file(&self, path: &Path) {
        let mut encoder = RowEncoder::new(1);
        self.each(|number, record| encoder.push(Offset(number), record));
        std::fs::write(path, encoder.take().stream).unwrap();
    }
}

/// What the server answers.
fn psql(url: &str, sql: &str) -> String {
    let output =
        Command::new("psql").args(["-X", "-q", "-At", "-v", "ON_ERROR_STOP=1", url, "-c", sql]).output();
    let output = output.expect("psql is installed: tests/services install postgres");
    assert!(output.status.success(), "{sql}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn empty(url: &str) {
    psql(
        url,
        "TRUNCATE tidegate.readings, tidegate.readings_per_minute, tidegate.readings_per_hour, tidegate_internal.series; \
         CHECKPOINT",
    );
}

/// Until every row is stored, and until every rollup is.
fn tidegate(url: &str, journal: &Journal, cursor: &str) -> (Duration, Duration) {
    let forget =
        "DO $$ BEGIN DELETE FROM tidegate_internal.cursor; DELETE FROM tidegate_internal.rollup_cursor;
        EXCEPTION WHEN undefined_table THEN END $$";
    psql(url, forget);
    let config = Config { url: url.to_owned(), ..Config::default() };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let part = Part::new("postgres");
    let sink = PostgresSink::new(config, journal.id(), part.clone());
    let cursor = journal.cursor(cursor, StartAt::Oldest).unwrap();
    let (drain, signal) = watch::channel(None);
    let begun = Instant::now();
    runtime.block_on(async {
        let carried = pump::carry(journal, &cursor, sink, part, signal);
        let done = async {
            while cursor.position() < journal.durable_end() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            let stored = begun.elapsed();
            let end = journal.durable_end();
            let is_level =
                format!("SELECT least(minutes, hours) >= {end} FROM tidegate_internal.rollup_cursor");
            while psql(url, &is_level).trim() != "t" {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            let rolled_up = begun.elapsed();
            drain.send_replace(Some(tokio::time::Instant::now()));
            (stored, rolled_up)
        };
        tokio::join!(carried, done).1
    })
}

fn copy(url: &str, file: &Path) -> Duration {
    let columns = COLUMNS.map(|column| format!("\"{column}\"")).join(", ");
    let sql = format!("\\copy tidegate.readings ({columns}) FROM '{}' (FORMAT binary)", file.display());
    let begun = Instant::now();
    psql(url, &sql);
    begun.elapsed()
}

fn main() {
    let Ok(server) = std::env::var("TIDEGATE_TEST_POSTGRES") else {
        // `cargo test --benches` and a plain `cargo bench` have no PostgreSQL.
        println!(
            "postgres: TIDEGATE_TEST_POSTGRES is not set; eval \"$(tests/services start postgres)\" first"
        );
        return;
    };
    let Arguments { rounds, only, .. } = Arguments::parse();
    let database = format!("bench_{}", std::process::id());
    psql(&server, &format!("CREATE DATABASE {database}"));
    let url = format!("{}/{database}", server.rsplit_once('/').unwrap().0);
    println!("{RECORDS} rows, thousands per second:");
    println!(
        "{:<36} {:>14} {:>10} {:>7} {:>13} {:>7}",
        "", "psql \\copy", "tidegate", "ratio", "with rollups", "ratio"
    );
    for (index, load) in LOADS.iter().filter(|load| load.name.contains(&only)).enumerate() {
        let folder = tempfile::tempdir().unwrap();
        let journal = load.journal(folder.path());
        let file = folder.path().join("rows");
        load.file(&file);
        if index == 0 {
            // Makes the tables.
            tidegate(&url, &journal, "first");
        }
        for round in 0..rounds {
            empty(&url);
            let (stored, rolled_up) = tidegate(&url, &journal, &format!("round-{round}"));
            empty(&url);
            let theirs = copy(&url, &file);
            println!(
                "{:<36} {:>14.1} {:>10.1} {:>7.2} {:>13.1} {:>7.2}",
                load.name,
                rate(theirs),
                rate(stored),
                theirs.as_secs_f64() / stored.as_secs_f64(),
                rate(rolled_up),
                theirs.as_secs_f64() / rolled_up.as_secs_f64()
            );
        }
    }
    psql(&server, &format!("DROP DATABASE {database} WITH (FORCE)"));
}

#[expect(clippy::cast_precision_loss, reason = "shown with one digit")]
fn rate(duration: Duration) -> f64 {
    RECORDS as f64 / 1_000.0 / duration.as_secs_f64()
}
