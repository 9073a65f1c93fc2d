//! Commands come from Kafka while the sink writes each record once, by transactions, into the same topics.

use std::collections::{BTreeMap, BTreeSet};

use rdkafka::ClientConfig;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use tidegate_broker::mqtt::Version;

use crate::support::kafka::Topic;
use crate::support::mosquitto;
use crate::support::{PATIENCE, eventually, services, unique};

use super::stage::{Receiver, Stage, consumes, health};

const ROUNDS: u64 = 4;

/// Produces a command for `d` in a transaction of its own, and commits it or not.
async fn transaction(topic: String, number: u64, commits: bool) {
    let produce = move || {
        let producer: BaseProducer = ClientConfig::new()
            .set("bootstrap.servers", services::kafka())
            .set("transactional.id", unique("commands"))
            .create()
            .unwrap();
        producer.init_transactions(PATIENCE).unwrap();
        producer.begin_transaction().unwrap();
        let payload = number.to_string();
        let headers = OwnedHeaders::new().insert(Header { key: "action", value: Some("count") });
        let record = BaseRecord::to(&topic).key("d").payload(&payload).headers(headers);
        producer.send(record).map_err(|(error, _)| error).unwrap();
        producer.flush(PATIENCE).unwrap();
        if commits {
            producer.commit_transaction(PATIENCE).unwrap();
        } else {
            producer.abort_transaction(PATIENCE).unwrap();
        }
    };
    tokio::task::spawn_blocking(produce).await.unwrap();
}

/// Receives until this command is there.
async fn until(device: &mut Receiver, number: u64) {
    while !device.numbers.contains(&number) {
        device.next(PATIENCE).await.expect("the command arrives");
    }
}

#[tokio::test]
async fn each_record_of_the_sink_is_there_once_and_only_committed_commands_arrive() {
    let mut stage = Stage::new(services::kafka());
    let cursors = stage.topic("cursors");
    stage.settings = stage
        .settings
        .set("TIDEGATE_KAFKA_EXACTLY_ONCE", "true")
        .set("TIDEGATE_KAFKA_CURSOR_TOPIC", &cursors);
    let mut tidegate = stage.start().await;
    let version = mosquitto::Version::V5;
    let mut device = Receiver::open(tidegate.mqtt, Version::V5, "d").await;
    for round in 0..ROUNDS {
        // One that no transaction has, one that is taken back, one that is committed, and one that a device sends.
        let numbers = [0, 1, 2, 3].map(|each| round * 10 + each);
        stage.command("d", numbers[0]).await;
        transaction(stage.topic("commands"), numbers[1], false).await;
        transaction(stage.topic("commands"), numbers[2], true).await;
        until(&mut device, numbers[2]).await;
        let payload = numbers[3].to_string();
        mosquitto::publish(tidegate.mqtt, version, 1, "commands/d/count", payload.as_bytes(), &[]);
        mosquitto::publish(tidegate.mqtt, version, 1, "sensors/d/x", payload.as_bytes(), &[]);
        until(&mut device, numbers[3]).await;
        if round % 2 == 1 {
            // What was not committed yet is consumed again, and written again.
            stage.produce("commands", Some("e"), &[("action", "count")], b"7").await;
            let numbers = std::mem::take(&mut device.numbers);
            tidegate.kill();
            tidegate.spawn();
            tidegate.ready().await;
            consumes(&tidegate).await;
            device = Receiver::open(tidegate.mqtt, Version::V5, "d").await;
            device.numbers = numbers;
        }
    }
    tidegate.caught_up("kafka", 0, PATIENCE).await;
    let expected: Vec<u64> = (0..ROUNDS).flat_map(|round| [0, 2, 3].map(|each| round * 10 + each)).collect();
    // After a crash commands may come again, which is what at least once means.
    let mut seen = BTreeSet::new();
    let first: Vec<u64> = device.numbers.iter().copied().filter(|number| seen.insert(*number)).collect();
    assert_eq!(first, expected, "of {:?}", device.numbers);

    // Each entry of the journal that a device published is in Kafka once; none that came from there is.
    let journal = tidegate.journal_id().await;
    for name in ["commands", "sensors"] {
        let mut topic = Topic::open(services::kafka(), &stage.topic(name)).await;
        topic.read_to_end(PATIENCE).await;
        let mut entries = BTreeMap::<u64, Vec<&[u8]>>::new();
        for record in topic.records.iter().filter(|record| record.header("ce_id").is_some()) {
            let (from, offset) = record.origin();
            assert_eq!(from, journal);
            entries.entry(offset).or_default().push(&record.value);
        }
        assert!(entries.values().all(|records| records.len() == 1), "{name}: {entries:?}");
        let payloads: Vec<String> =
            entries.values().map(|records| String::from_utf8(records[0].to_vec()).unwrap()).collect();
        let published: Vec<String> = (0..ROUNDS).map(|round| (round * 10 + 3).to_string()).collect();
        assert_eq!(payloads, published, "{name}");
    }
    // The marks behind transactions are no records: nothing lags when all are consumed.
    eventually("nothing lags", PATIENCE, async || {
        (health(&tidegate).await["lag"]["entries"] == 0).then_some(())
    })
    .await;
}
