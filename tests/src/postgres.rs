//! The PostgreSQL sink against a real server: right rows, exactly once, whatever happens to server and connection.

mod faults;
mod full_disk;
mod jdbc;
mod outages;
mod passwords;
mod platform;
mod reader;
mod retention;
mod rollups;
mod rows;
mod setup;
mod tls;

use std::time::Duration;

use tidegate::health::Part;
use tidegate::postgres::{Config, PostgresSink};
use tidegate::pump::{Sink, SinkError};
use tidegate_broker::journal::JournalId;
use tidegate_broker::record::{Batch, BatchBuilder, Entry, Offset, Properties, Qos, Record, Timestamp};
use tidegate_broker::topic::TopicName;

use crate::support::PATIENCE;
use crate::support::postgres::Database;

/// 2001-02-03T10:00:00Z, a day too long ago to have a partition.
const RECEIVED_MS: u64 = 981_194_400_000;
const JOURNAL: JournalId = JournalId(0x0123_4567_89ab_cdef_0123_4567_89ab_cdef);

fn config(url: &str) -> Config {
    Config { url: url.to_owned(), ..Config::default() }
}

fn sink(url: &str) -> PostgresSink {
    PostgresSink::new(config(url), JOURNAL, Part::new("postgres"))
}

/// Makes the role `ada` with the password `sesame`, whom the server, which is the test's own, lets in by these lines of
/// `pg_hba.conf` once it has read them.
async fn admit_ada(database: &Database, rules: &str) {
    database.query("CREATE ROLE ada LOGIN PASSWORD 'sesame'", &[]).await;
    let file = database.setting("hba_file").await;
    let others = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, format!("{rules}{others}")).unwrap();
    database.query("SELECT pg_reload_conf()", &[]).await;
}

/// A batch that begins at `base` and holds these records, of client `client`.
fn batch<T: AsRef<str>, P: AsRef<[u8]>>(base: u64, records: &[(T, P)]) -> Batch {
    let mut builder = BatchBuilder::new(Offset(base), Timestamp(RECEIVED_MS), 0, 1 << 16);
    for (topic, payload) in records {
        builder.push(&Entry::Record(Record {
            time: Timestamp(RECEIVED_MS),
            client: "client",
            topic: TopicName::new(topic.as_ref()).unwrap(),
            properties: Properties::NONE,
            payload: payload.as_ref(),
            qos: Qos::AtLeastOnce,
            retain: false,
            packet_id: 1,
        }));
    }
    builder.finish(|_| {}).1
}

/// `count` batches of `size` numbered readings each, one after another.
fn numbered(count: u64, size: u64) -> Vec<Batch> {
    let numbered = |index: u64| {
        let records: Vec<_> = (index * size..(index + 1) * size)
            .map(|number| (format!("sensors/d{}/n", number % 7), number.to_string()))
            .collect();
        batch(index * size, &records)
    };
    (0..count).map(numbered).collect()
}

/// What a pump does: offers batches from where the database says, again after every error that may pass, until all
/// are confirmed. Returns how often it connected.
async fn deliver(sink: &mut PostgresSink, batches: &[Batch]) -> u32 {
    let deadline = tokio::time::Instant::now() + 2 * PATIENCE;
    let end = batches.last().unwrap().end();
    let mut connects = 0;
    loop {
        assert!(tokio::time::Instant::now() < deadline, "not everything was delivered in time");
        connects += 1;
        match attempt(sink, batches, end).await {
            Ok(()) => return connects,
            Err(SinkError::Retry(_)) => tokio::time::sleep(Duration::from_millis(20)).await,
            Err(error) => panic!("{error}"),
        }
    }
}

async fn attempt(sink: &mut PostgresSink, batches: &[Batch], end: Offset) -> Result<(), SinkError> {
    let stored = sink.connect().await?.unwrap_or_default();
    let (mut confirmed, mut written) = (stored, stored);
    let mut left = batches.iter().filter(|batch| batch.end() > stored);
    while confirmed < end {
        // A commit covers whole batches, so the place is always the beginning of one.
        match left.next() {
            Some(batch) if written.since(confirmed) < 4_000 => {
                assert_eq!(batch.base(), written, "the cursor lies between two batches");
                sink.write(batch.clone()).await?;
                written = batch.end();
            }
            Some(batch) => {
                confirmed = sink.confirmed().await?;
                sink.write(batch.clone()).await?;
                written = batch.end();
            }
            None => confirmed = sink.confirmed().await?,
        }
        assert!(confirmed <= written, "confirmed {confirmed}, written {written}");
    }
    Ok(())
}

/// The message of an error that an operator must act upon.
fn operator_message<T: std::fmt::Debug>(result: Result<T, SinkError>) -> String {
    match result {
        Err(SinkError::Operator(message)) => message,
        other => panic!("not a case for an operator: {other:?}"),
    }
}
