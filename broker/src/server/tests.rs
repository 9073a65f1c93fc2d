//! What other parts of the appliance ask of a running broker through its [`Handle`](super::Handle).

use std::net::Ipv4Addr;
use std::sync::mpsc::sync_channel;

use super::*;
use crate::auth::Anonymous;
use crate::journal::{self, FullPolicy, MemoryStorage, StartAt, SyncPolicy};
use crate::topic::TopicError;

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

fn start() -> (Server, Journal) {
    let options = journal::Options {
        segment_bytes: 1 << 20,
        max_bytes: 2 << 20,
        full: FullPolicy::Refuse,
        sync: SyncPolicy::Always,
        ..journal::Options::default()
    };
    let (journal, appender) = Journal::open(Arc::new(MemoryStorage::default()), options).unwrap();
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let access = Arc::new(Access::new(Anonymous::Loopback, None));
    let options = Options::plain(address, access, Limits::default());
    let server =
        Server::start(options, journal.clone(), appender, Arc::new(MemoryStorage::default())).unwrap();
    (server, journal)
}

fn publish(topic: &str, payload: Vec<u8>) -> LocalPublish {
    let payload = payload.into();
    let (client, topic) = ("test".to_owned(), topic.to_owned());
    LocalPublish { client, topic, payload, qos: Qos::AtLeastOnce, retain: false, properties: Vec::new() }
}

/// Publishes of 100 KiB that begin with their number.
fn numbered(numbers: std::ops::Range<u8>) -> Vec<LocalPublish> {
    numbers
        .map(|number| {
            let mut payload = vec![0; 100 << 10];
            payload[0] = number;
            publish("numbers", payload)
        })
        .collect()
}

fn outcome(server: &Server, series: Vec<LocalPublish>) -> SeriesOutcome {
    let (done, outcome) = sync_channel(1);
    server.handle().publish_series(series, move |outcome| done.send(outcome).unwrap());
    outcome.recv_timeout(PATIENCE).expect("the series is answered")
}

/// The first byte of each payload from `from` on.
fn stored(journal: &Journal, from: Offset) -> Vec<u8> {
    let mut reader = journal.reader(from);
    let mut numbers = Vec::new();
    while let Some(batch) = reader.next().unwrap() {
        numbers.extend(batch.records().map(|(_, record)| record.payload[0]));
    }
    numbers
}

#[test]
fn a_series_stops_at_the_first_that_a_full_journal_refuses_and_none_overtakes_it() {
    let (server, journal) = start();
    let slow = journal.cursor("slow", StartAt::Oldest).unwrap();
    let first = outcome(&server, numbered(0..40));
    assert_eq!(first.refused, Some(PublishError::Refused(Refused::Full)));
    let durable = u8::try_from(first.durable).unwrap();
    assert!((5..40).contains(&durable), "two segments of ten were there: {durable}");
    assert_eq!(stored(&journal, Offset(0)), (0..durable).collect::<Vec<_>>());

    let end = journal.durable_end();
    slow.advance(end);
    let deadline = std::time::Instant::now() + PATIENCE;
    let mut next = durable;
    while next < durable + 3 {
        let more = outcome(&server, numbered(next..durable + 3));
        next += u8::try_from(more.durable).unwrap();
        assert!(std::time::Instant::now() < deadline, "there was no room again: {more:?}");
    }
    assert_eq!(stored(&journal, end), (durable..durable + 3).collect::<Vec<_>>());
    server.drain(PATIENCE);
}

#[test]
fn a_series_stops_before_what_can_never_be_published() {
    let (server, journal) = start();
    let series = ["a", "a/+", "b"].map(|topic| publish(topic, topic.into())).to_vec();
    let wildcard = Some(PublishError::Topic(TopicError::WildcardInName));
    assert_eq!(outcome(&server, series.clone()), SeriesOutcome { durable: 1, refused: wildcard });
    assert_eq!(stored(&journal, Offset(0)), b"a");
    assert_eq!(outcome(&server, series[1..].to_vec()), SeriesOutcome { durable: 0, refused: wildcard });
    assert_eq!(outcome(&server, Vec::new()), SeriesOutcome { durable: 0, refused: None });
    let handle = server.handle();
    server.drain(PATIENCE);
    let (done, outcome) = sync_channel(1);
    handle.publish_series(series[..1].to_vec(), move |outcome| done.send(outcome).unwrap());
    let stopped = SeriesOutcome { durable: 0, refused: Some(PublishError::Stopped) };
    assert_eq!(outcome.recv_timeout(PATIENCE), Ok(stopped));
}
