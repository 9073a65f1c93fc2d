//! SIGKILL under a load of commands: every command arrives, in order, and nothing is committed that is not in the journal.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tidegate_broker::mqtt::Version;
use tokio::task::JoinHandle;

use crate::support::kafka::Topic;
use crate::support::{PATIENCE, eventually, report, services};

use super::stage::{Receiver, Stage, consumes};

const DEVICES: u64 = 5;
const KILLS: u64 = 4;
/// Commands for each device, at least, between two kills.
const BETWEEN_KILLS: u64 = 150;

fn device(number: u64) -> String {
    format!("device{number}")
}

/// Produces commands for every device in turn until it is told to stop; returns how many each has got.
fn produce(stage: &Arc<Stage>, stop: &Arc<AtomicBool>) -> JoinHandle<u64> {
    let (stage, stop) = (Arc::clone(stage), Arc::clone(stop));
    tokio::spawn(async move {
        let mut number = 0;
        while !stop.load(Ordering::Relaxed) {
            let stage = &stage;
            let commands = (0..DEVICES).map(|each| async move { stage.command(&device(each), number).await });
            futures_util::future::join_all(commands).await;
            number += 1;
        }
        number
    })
}

/// Receives what a device is sent, over every loss of the connection, until it has the number before `end`.
async fn receive(receiver: &mut Receiver, address: std::net::SocketAddr, id: &str, end: u64) {
    while receiver.numbers.last() != Some(&(end - 1)) {
        if receiver.next(PATIENCE).await.is_none() {
            let numbers = std::mem::take(&mut receiver.numbers);
            *receiver = eventually("the device connects again", PATIENCE, async || {
                Some(Receiver::open(address, Version::V5, id).await)
            })
            .await;
            receiver.numbers = numbers;
        }
    }
}

/// Every number before `end` is there, first occurrences in order. Returns how many came again.
fn check_numbers(id: &str, numbers: &[u64], end: u64) -> usize {
    let (mut next, mut repeated) = (0, 0);
    for &number in numbers {
        assert!(number <= next, "{id}: {number} came before {next}");
        if number == next { next += 1 } else { repeated += 1 }
    }
    assert_eq!(next, end, "{id} has every command");
    repeated
}

#[tokio::test]
async fn every_command_arrives_in_order_although_the_appliance_is_killed_again_and_again() {
    let stage = Arc::new(Stage::new(services::kafka()));
    let mut tidegate = stage.start().await;
    for each in 0..DEVICES {
        Receiver::open(tidegate.mqtt, Version::V5, &device(each)).await.close().await;
    }
    let stop = Arc::new(AtomicBool::new(false));
    let producing = produce(&stage, &stop);
    for kill in 1..=KILLS {
        let least = i64::try_from(kill * BETWEEN_KILLS * DEVICES).unwrap();
        eventually("more commands are committed", PATIENCE, async || {
            (stage.committed("commands").await.values().sum::<i64>() >= least).then_some(())
        })
        .await;
        tidegate.kill();
        check_that_what_is_committed_is_durable(&stage, &mut tidegate).await;
        tidegate.spawn();
        tidegate.ready().await;
        consumes(&tidegate).await;
    }
    stop.store(true, Ordering::Relaxed);
    let end = producing.await.unwrap();
    let mut repeated = 0;
    for each in 0..DEVICES {
        let id = device(each);
        let mut receiver = Receiver::open(tidegate.mqtt, Version::V5, &id).await;
        receive(&mut receiver, tidegate.mqtt, &id, end).await;
        repeated += check_numbers(&id, &receiver.numbers, end);
    }
    assert!(end >= KILLS * BETWEEN_KILLS, "only {end} commands were produced");
    report(
        "commands::crash",
        &format!("{KILLS} kills, {} commands, {repeated} of them came again", end * DEVICES),
    );
}

/// Reads the journal of the appliance, which does not run: it has every command below the committed offsets.
async fn check_that_what_is_committed_is_durable(
    stage: &Stage,
    tidegate: &mut crate::support::tidegate::Tidegate,
) {
    let committed = stage.committed("commands").await;
    let mut topic = Topic::open(services::kafka(), &stage.topic("commands")).await;
    topic.read_to_end(PATIENCE).await;
    let mut expected = BTreeMap::<String, u64>::new();
    for record in &topic.records {
        if record.offset < committed.get(&record.partition).copied().unwrap_or(0) {
            let number: u64 = std::str::from_utf8(&record.value).unwrap().parse().unwrap();
            expected.insert(record.key().to_owned(), number);
        }
    }
    let dump = std::process::Command::new(crate::support::tidegate::Tidegate::program())
        .args(["journal", "dump"])
        .env("TIDEGATE_DATA_DIR", tidegate.folder().join("data"))
        .output()
        .expect("the program runs");
    assert!(dump.status.success(), "{}", String::from_utf8_lossy(&dump.stderr));
    let mut durable = BTreeMap::<String, u64>::new();
    for line in String::from_utf8(dump.stdout).unwrap().lines() {
        let record: serde_json::Value = serde_json::from_str(line).expect("a line is JSON");
        let Some(topic) = record["topic"].as_str() else { continue };
        let Some(device) = topic.strip_prefix("commands/").and_then(|rest| rest.strip_suffix("/count"))
        else {
            continue;
        };
        let number = record["payload"].as_str().and_then(|text| text.parse().ok());
        let last = durable.entry(device.to_owned()).or_default();
        *last = (*last).max(number.expect("the payload is a number"));
    }
    for (device, number) in expected {
        let has = durable.get(&device);
        assert!(
            has.is_some_and(|has| *has >= number),
            "{device}: {number} is committed, the journal has {has:?}"
        );
    }
}
