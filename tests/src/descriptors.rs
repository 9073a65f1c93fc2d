//! More clients than the process may open files: those that are in go on, those that are not wait, and the journal
//! finds a descriptor whenever it needs one.

use std::io::ErrorKind;

use tidegate_broker::mqtt::{Connect, ReasonCode, Version, encode};
use tidegate_broker::record::Qos;

use crate::support::mqtt::Received;
use crate::support::process;
use crate::support::raw::Raw;
use crate::support::tidegate::{Settings, Tidegate};
use crate::support::{PATIENCE, eventually, http};

const OPEN_FILES_MAX: u32 = 200;
/// More than find a place, and fewer than twice as many.
const CLIENTS: usize = 210;
const TOLD: &str = "no more connections are accepted";

/// How many leave.
const LEAVING: usize = 20;
/// Files that are open for a moment and leave their place to a client, or take the one of a client.
const TRANSIENT: usize = 5;

/// A segment is full after a few publishes.
fn settings() -> Settings {
    Settings::default().set("TIDEGATE_JOURNAL_SEGMENT_BYTES", "1MiB")
}

/// Publishes far more than a segment holds, and waits for every acknowledgement.
fn fill_segments(client: &mut Raw) {
    for packet_id in 1..=100 {
        client.publish("sensors/full/t", &[b'x'; 50_000], Qos::AtLeastOnce, packet_id, false);
        assert_eq!(client.next(), Some(Received::PubAck { packet_id, reason: ReasonCode::Success }));
    }
}

fn segments(tidegate: &Tidegate) -> usize {
    let files = std::fs::read_dir(tidegate.folder().join("data/journal")).unwrap();
    files.filter(|file| file.as_ref().unwrap().metadata().unwrap().len() > 100_000).count()
}

/// Says CONNECT, and does not wait for the answer.
fn knock(tidegate: &Tidegate, number: usize) -> Raw {
    let mut client = Raw::open(tidegate.mqtt, Version::V5);
    client.send(|out| encode::connect(out, &Connect::new(Version::V5, &format!("client-{number}"))));
    client
}

fn is_answered(client: &Raw) -> bool {
    client.stream.set_nonblocking(true).unwrap();
    let peeked = client.stream.peek(&mut [0]);
    client.stream.set_nonblocking(false).unwrap();
    match peeked {
        Ok(bytes) => bytes > 0 || panic!("a client that waits is closed"),
        Err(error) => error.kind() != ErrorKind::WouldBlock && panic!("{error}"),
    }
}

/// How many are let in, or at least answered.
fn inside(clients: &[Raw]) -> usize {
    clients.iter().take_while(|client| is_answered(client)).count()
}

fn assert_let_in(client: &mut Raw) {
    let answer = client.next();
    assert!(matches!(answer, Some(Received::ConnAck { reason: ReasonCode::Success, .. })), "{answer:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_finds_no_place_waits_until_somebody_leaves() {
    let mut tidegate = Tidegate::start(settings().open_files_max(OPEN_FILES_MAX)).await;
    let mut clients: Vec<Raw> = (0..CLIENTS).map(|number| knock(&tidegate, number)).collect();
    let log = tidegate.log_has(TOLD).await;
    assert!(log.contains("LimitNOFILE"), "it says what to do: {log}");
    eventually("as many are in as have a place", PATIENCE, async || {
        // HTTP has a few places of its own.
        let metrics = http::get(tidegate.http, "/metrics").await;
        let value =
            metrics.text().lines().find_map(|line| line.strip_prefix("tidegate_mqtt_sessions_connected "));
        (value.expect("it is a metric").parse() == Ok(inside(&clients))).then_some(())
    })
    .await;
    let first = inside(&clients);
    assert!((50..OPEN_FILES_MAX as usize * 3 / 4).contains(&first), "{first} are in");
    clients[..first].iter_mut().for_each(assert_let_in);
    assert_eq!(http::get(tidegate.http, "/health").await.status, 200);

    let before = segments(&tidegate);
    fill_segments(&mut clients[0]);
    assert!(segments(&tidegate) > before + 2, "the journal goes on in new files");
    let waiting = clients.split_off(first);
    assert!(inside(&waiting) <= TRANSIENT, "the others wait");

    // As many come in as have left, in their order.
    clients.truncate(first - LEAVING);
    let came = eventually("others come in", PATIENCE, async || {
        Some(inside(&waiting)).filter(|came| *came >= LEAVING - TRANSIENT)
    })
    .await;
    clients.extend(waiting);
    let last = first - LEAVING + came - 1;
    clients[first - LEAVING..=last].iter_mut().for_each(assert_let_in);
    fill_segments(&mut clients[0]);
    fill_segments(&mut clients[last]);
    assert!(inside(&clients[last + 1..]) <= TRANSIENT + LEAVING, "the others still wait");

    // When there is room for all, all are in.
    clients.drain(..=last);
    clients.iter_mut().for_each(assert_let_in);
    assert_eq!(tidegate.log().matches(TOLD).count(), 1, "it is told once:\n{}", tidegate.log());
    tidegate.assert_alive();
}

/// A connection that the system drops because too many wait is tried again for two minutes, and then fails.
#[tokio::test(flavor = "multi_thread")]
async fn a_whole_site_may_wait_to_be_let_in() {
    let tidegate = Tidegate::start(settings().open_files_max(OPEN_FILES_MAX)).await;
    let begun = std::time::Instant::now();
    let clients: Vec<Raw> = (0..600).map(|number| knock(&tidegate, number)).collect();
    // The first that is dropped comes again after a second, the later ones after three, seven, fifteen.
    assert!(begun.elapsed() < PATIENCE, "connecting took {:?}", begun.elapsed());
    assert!(inside(&clients) < OPEN_FILES_MAX as usize, "the others wait");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_journal_that_can_open_no_more_files_begins_its_next_segments() {
    let mut tidegate = Tidegate::start(settings()).await;
    let mut client = Raw::connect(tidegate.mqtt, &Connect::new(Version::V5, "client"));
    process::limit_to_open_files(tidegate.pid());
    let before = segments(&tidegate);
    fill_segments(&mut client);
    assert!(segments(&tidegate) > before + 2);
    tidegate.assert_alive();
}
