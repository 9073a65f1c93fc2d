//! The questions of dashboards, asked of many readings: how long they take, and how the server answers them.
//!
//! Rows are made by the server and go through the sink's own tables, partitions and functions, a day at a time:
//! 90 machines that report every five seconds, and 2,000 rooms with five metrics each that report every two hours,
//! which is 1,675,200 rows a day. Each question is asked once after the database was taken out of the machine's
//! file cache (cold; what the server itself has buffered stays), then seven times (warm, the median).
//!
//! ```text
//! eval "$(tests/services start postgres)" && cargo bench -p tidegate-benches --bench postgres_rows -- --days 30
//! ```
//!
//! `--database NAME` keeps the database, and uses it again; `--plans` prints every plan.

#![allow(clippy::unwrap_used, reason = "a bench that cannot run says so by its panic")]

use std::process::Command;
use std::time::Instant;

use tidegate::health::Part;
use tidegate::postgres::{Config, PostgresSink};
use tidegate::pump::Sink as _;
use tidegate_broker::journal::JournalId;

/// One day of rows.
const DAY: &str = include_str!("postgres_rows.sql");
const ROUNDS: usize = 7;

/// Name and SQL. `YESTERDAY` is the beginning of the last whole day.
const QUESTIONS: [(&str, &str); 9] = [
    ("latest values of everything", "SELECT * FROM tidegate.latest_readings"),
    ("latest values of a device", "SELECT * FROM tidegate.latest_readings WHERE device = 'room-0500'"),
    ("which devices are online", "SELECT * FROM tidegate.device_status"),
    (
        "a day of a metric, per minute",
        "SELECT time, avg FROM tidegate.readings_per_minute WHERE device = 'machine-0042' AND metric = 'temperature' \
         AND time >= YESTERDAY AND time < YESTERDAY + interval '1 day' ORDER BY time",
    ),
    (
        "a day of a metric, every reading",
        "SELECT time, number FROM tidegate.readings WHERE device = 'machine-0042' AND metric = 'temperature' \
         AND time >= YESTERDAY AND time < YESTERDAY + interval '1 day' ORDER BY time",
    ),
    (
        "a day of a metric, from readings by date_trunc",
        "SELECT date_trunc('minute', time), avg(number) FROM tidegate.readings WHERE device = 'machine-0042' \
         AND metric = 'temperature' AND time >= YESTERDAY AND time < YESTERDAY + interval '1 day' GROUP BY 1 ORDER BY 1",
    ),
    (
        "a month of a metric, per hour",
        "SELECT time, min, avg, max FROM tidegate.readings_per_hour WHERE device = 'machine-0042' \
         AND metric = 'temperature' AND time >= YESTERDAY - interval '29 days' ORDER BY time",
    ),
    (
        "a day of all devices, per hour",
        "SELECT time, avg(avg), sum(count) FROM tidegate.readings_per_hour WHERE metric = 'temperature' \
         AND time >= YESTERDAY AND time < YESTERDAY + interval '1 day' GROUP BY 1 ORDER BY 1",
    ),
    ("alerts of the last day", "SELECT * FROM tidegate.alerts WHERE time >= YESTERDAY ORDER BY time DESC"),
];

struct Options {
    days: u32,
    database: Option<String>,
    plans: bool,
}

fn options() -> Options {
    let mut options = Options { days: 30, database: None, plans: false };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        match word.as_str() {
            "--days" => {
                options.days = words.next().and_then(|days| days.parse().ok()).expect("--days NUMBER")
            }
            "--database" => options.database = Some(words.next().expect("--database NAME")),
            "--plans" => options.plans = true,
            // What cargo adds.
            "--bench" => {}
            other => panic!("{other} is not an option: --days, --database, --plans"),
        }
    }
    options
}

fn psql(url: &str, sql: &str) -> String {
    let arguments = ["-X", "-q", "-At", "-v", "ON_ERROR_STOP=1", url, "-c", sql];
    let output = Command::new("psql").args(arguments).output();
    let output = output.expect("psql is installed: tests/services install postgres");
    assert!(output.status.success(), "{sql}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Makes the tables, as the sink does when it connects.
fn migrate(url: &str) {
    let config = Config { url: url.to_owned(), ..Config::default() };
    let mut sink = PostgresSink::new(config, JournalId(2), Part::new("postgres"));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let begun = Instant::now();
    runtime.block_on(sink.connect()).unwrap();
    println!("tables made or brought up to date in {:.1} s", begun.elapsed().as_secs_f64());
}

fn fill(url: &str, days: u32) {
    for day in (1..=days).rev() {
        let begun = Instant::now();
        let sql = [
            ("{day}", day.to_string()),
            ("{dense}", "90".to_owned()),
            ("{sparse}", "2000".to_owned()),
            ("{seconds}", "5".to_owned()),
            ("{minutes}", "120".to_owned()),
        ];
        psql(url, &sql.iter().fold(DAY.to_owned(), |sql, (name, value)| sql.replace(name, value)));
        println!("{day:>3} days ago: stored in {:.0} s", begun.elapsed().as_secs_f64());
    }
    psql(url, "SELECT tidegate_internal.find_series()");
    psql(url, "VACUUM ANALYZE");
}

/// Milliseconds, in the server, and the plan.
fn explain(url: &str, sql: &str) -> (f64, String) {
    let plan = psql(url, &format!("EXPLAIN (ANALYZE, BUFFERS, TIMING OFF) {sql}"));
    let total = |name| {
        let line = plan.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.trim().trim_end_matches(" ms").parse::<f64>().unwrap()
    };
    (total("Planning Time:") + total("Execution Time:"), plan)
}

/// Takes the files of the database out of the machine's file cache. The server's own buffers stay.
fn forget(url: &str) {
    psql(url, "CHECKPOINT");
    let folder = "SELECT current_setting('data_directory') || '/base/' || oid FROM pg_database
        WHERE datname = current_database()";
    let folder = psql(url, folder);
    let dropped = Command::new("find")
        .args([
            folder.trim(),
            "-type",
            "f",
            "-exec",
            "dd",
            "if={}",
            "iflag=nocache",
            "count=0",
            "status=none",
            ";",
        ])
        .status();
    assert!(
        dropped.unwrap().success(),
        "the files of the database cannot be read: run this as its user, or as root"
    );
}

fn main() {
    let Ok(server) = std::env::var("TIDEGATE_TEST_POSTGRES") else {
        println!(
            "postgres_rows: TIDEGATE_TEST_POSTGRES is not set; eval \"$(tests/services start postgres)\" first"
        );
        return;
    };
    let options = options();
    let database = options.database.clone().unwrap_or_else(|| format!("rows_{}", std::process::id()));
    let is_there = format!("SELECT 1 FROM pg_database WHERE datname = '{database}'");
    let url = format!("{}/{database}", server.rsplit_once('/').unwrap().0);
    let is_new = psql(&server, &is_there).is_empty();
    if is_new {
        psql(&server, &format!("CREATE DATABASE {database}"));
    }
    migrate(&url);
    if is_new {
        fill(&url, options.days);
    }
    let count = |what: &str| psql(&url, &format!("SELECT count(*) FROM {what}")).trim().to_owned();
    let size = psql(&url, "SELECT pg_size_pretty(pg_database_size(current_database()))");
    println!(
        "{} readings, {} series, {} minutes, {} hours, {}",
        count("tidegate.readings"),
        count("tidegate_internal.series"),
        count("tidegate.readings_per_minute"),
        count("tidegate.readings_per_hour"),
        size.trim()
    );
    println!("{:<48} {:>9} {:>9} {:>9}", "", "rows", "cold ms", "warm ms");
    for (name, sql) in QUESTIONS {
        let yesterday = "(date_trunc('day', now() AT TIME ZONE 'UTC') AT TIME ZONE 'UTC' - interval '1 day')";
        let sql = sql.replace("YESTERDAY", yesterday);
        forget(&url);
        let (cold, _) = explain(&url, &sql);
        let mut warm: Vec<_> = (0..ROUNDS).map(|_| explain(&url, &sql)).collect();
        warm.sort_by(|(a, _), (b, _)| a.total_cmp(b));
        let (median, plan) = &warm[ROUNDS / 2];
        let rows = count(&format!("({sql}) rows"));
        println!("{name:<48} {rows:>9} {cold:>9.1} {median:>9.1}");
        if options.plans {
            println!("{plan}");
        }
    }
    if options.database.is_none() {
        psql(&server, &format!("DROP DATABASE {database} WITH (FORCE)"));
    }
}
