//! A topic that may be seen and not written, in the middle of transactions: its records are dead letters, and nothing else waits.

use std::collections::BTreeMap;

use super::rejects::publish;
use super::{PATIENCE, Stage, delivered_once};
use crate::support::kafka::Topic;
use crate::support::services::{Secure, kafka_secure, secret};
use crate::support::tidegate::Tidegate;
use crate::support::{eventually, unique};

/// Publishes before each change of the rights, which are told apart by their payloads.
const PUBLISHES: u64 = 20;

/// A user's way in.
fn login<'a>(user: &'a str, password: &'a str) -> [(&'a str, &'a str); 4] {
    [
        ("security.protocol", "sasl_plaintext"),
        ("sasl.mechanism", "PLAIN"),
        ("sasl.username", user),
        ("sasl.password", password),
    ]
}

/// Changes what the writer may.
fn change_rights(secure: &Secure, arguments: &[&str]) {
    tokio::task::block_in_place(|| secure.tool("org.apache.kafka.tools.AclCommand", arguments));
}

async fn alerts(tidegate: &Tidegate, when: &str) {
    let payloads = (0..PUBLISHES).map(|number| format!("{when} {number}").into_bytes());
    publish(tidegate, "alerts/high", &payloads.collect::<Vec<_>>()).await;
}

async fn rejected(tidegate: &Tidegate, count: u64) {
    eventually(&format!("{count} dead letters"), PATIENCE, async || {
        let sink = tidegate.sink("kafka").await;
        assert_ne!(sink.state, "failed", "nobody has to act for the others: {sink:?}");
        (sink.rejected == count).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_that_may_be_seen_and_not_written_holds_up_no_other_whenever_that_is_found() {
    let secure = kafka_secure();
    let (name, identity) = (format!("{}once", Secure::ALLOWED), unique("rights"));
    let (password, password_of_admin) = (secret("writer"), secret("admin"));
    let admin = login("admin", &password_of_admin);
    let allow = ["--add", "--allow-principal", "User:writer"];
    let transactions = ["--transactional-id", &identity, "--operation", "Write", "--operation", "Describe"];
    change_rights(&secure, &[&allow[..], &transactions].concat());
    let cursors = ["--topic", &name, "--resource-pattern-type", "prefixed", "--operation", "Read"];
    change_rights(&secure, &[&allow[..], &cursors].concat());

    let dead_letters = format!("{}{}", Secure::ALLOWED, unique("dead"));
    let mut stage = Stage::start(&name, &secure.sasl, |settings| {
        let properties = login("writer", &password).map(|(name, value)| format!("\"{name}\" = \"{value}\""));
        settings
            .set("TIDEGATE_KAFKA_TRANSACTIONAL_ID", &identity)
            .set("TIDEGATE_KAFKA_DEAD_LETTER_TOPIC", &dead_letters)
            .set("TIDEGATE_KAFKA_DEAD_LETTER_PATIENCE", "1s")
            .set("TIDEGATE_KAFKA_PROPERTIES", &format!("{{ {} }}", properties.join(", ")))
    })
    .await;
    let rest = format!("{}-rest", stage.run);
    let denial = ["--topic", rest.as_str(), "--operation", "Write"];
    let deny = [&["--add", "--deny-principal", "User:writer"][..], &denial].concat();
    let allow = [&["--remove", "--force", "--deny-principal", "User:writer"][..], &denial].concat();
    // librdkafka reports the refusal of the topic, or, where no other was in the transaction, that it cannot even be aborted.
    let refusals = |stage: &Stage| {
        let log = stage.tidegate.log();
        log.matches("asking which").count() + log.matches("has to be made anew").count()
    };
    alerts(&stage.tidegate, "allowed").await;
    let mut reader = Topic::open_with(&secure.sasl, &rest, &admin).await;
    reader.matching(PUBLISHES as usize, PATIENCE, |_| true).await;
    assert_eq!(refusals(&stage), 0, "nothing was refused");

    // Found by a transaction that is refused for it, and only by that one.
    change_rights(&secure, &deny);
    alerts(&stage.tidegate, "denied").await;
    rejected(&stage.tidegate, PUBLISHES).await;
    stage.delivers().await;
    assert_eq!(refusals(&stage), 1, "the transaction was refused: {}", stage.tidegate.log());

    // Tried as soon as it may be.
    change_rights(&secure, &allow);
    let mut tries = 0;
    while reader.records.len() == PUBLISHES as usize {
        publish(&stage.tidegate, "alerts/high", &[b"try".to_vec()]).await;
        tries += 1;
        stage.delivers().await;
        reader.read_to_end(PATIENCE).await;
    }
    let before = stage.tidegate.sink("kafka").await.rejected;

    // Found before anything is tried.
    change_rights(&secure, &deny);
    stage.tidegate.crash_and_restart().await;
    alerts(&stage.tidegate, "denied from the start").await;
    rejected(&stage.tidegate, PUBLISHES).await;
    stage.delivers().await;
    assert_eq!(refusals(&stage), 1, "nothing more was refused: {}", stage.tidegate.log());
    assert!(before < PUBLISHES + tries, "at least one try arrived");

    let accounts = stage.load.finish().await;
    stage.tidegate.caught_up("kafka", 0, PATIENCE).await;
    let topic = Topic::open_with(&secure.sasl, &stage.run, &admin).await;
    delivered_once(&mut stage.tidegate, topic, &accounts).await;
    let mut dead = Topic::open_with(&secure.sasl, &dead_letters, &admin).await;
    dead.read_to_end(PATIENCE).await;
    reader.read_to_end(PATIENCE).await;
    let mut places: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for (place, records) in [("dead", &dead.records), ("delivered", &reader.records)] {
        for record in records {
            let payload = String::from_utf8_lossy(&record.value).into_owned();
            places.entry(payload).or_default().push(place);
            if place == "dead" {
                assert_eq!(record.header("tidegate_reason"), Some("not_authorised"), "{record:?}");
                assert_eq!(record.header("tidegate_kafka_topic"), Some(rest.as_str()), "{record:?}");
            }
        }
    }
    let tried = places.remove("try").unwrap_or_default();
    assert_eq!(tried.len() as u64, tries, "each try is somewhere, once: {tried:?}");
    for (when, place) in [("allowed", "delivered"), ("denied", "dead"), ("denied from the start", "dead")] {
        for number in 0..PUBLISHES {
            assert_eq!(places.remove(&format!("{when} {number}")), Some(vec![place]), "{when} {number}");
        }
    }
    assert!(places.is_empty(), "{places:?}");
}
