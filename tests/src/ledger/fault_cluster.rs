//! Kafka as a cluster of three nodes, of which two must have a record before it counts as stored. Nodes that lead partitions are
//! killed, and all are restarted in turn: another one leads at once, and nothing is there twice, because each record has a number
//! by which the new leader knows it.

use std::time::Instant;

use super::load::Devices;
use super::row::Place;
use super::stage::{Plan, Stage};
use super::{PATIENCE, quick_or_long};
use crate::support::eventually;
use crate::support::kafka::{Partition, partitions};
use crate::support::process::{self, Signal};
use crate::support::services::{NODES, Own, Service};

async fn on(cluster: &Own, name: &str) -> Stage {
    let servers = cluster.url();
    // The short form is on a machine with few cores, which three nodes keep busy by themselves.
    let devices = Devices { pace: quick_or_long(30, Devices::USUAL.pace), ..Devices::USUAL };
    Stage::start(
        name,
        Plan { devices, kafka: servers.clone(), kafka_for_consumers: servers, ..Plan::usual() },
    )
    .await
}

/// Waits until every replica of every partition is in sync.
async fn in_sync(cluster: &Own, stage: &Stage) -> Vec<Partition> {
    let all = |partition: &Partition| partition.leader > 0 && partition.in_sync == NODES.len();
    partitions("all replicas are in sync", &cluster.url(), &stage.run, all).await
}

/// Counts everything; in Kafka nothing may be there twice.
async fn finish(stage: Stage, ended: Instant, fault: String, place: Place) {
    let findings = stage.finish(ended).await;
    for account in &findings.accounts {
        assert_eq!(account.done.connects, 1, "{} noticed: {account:?}", account.device);
    }
    let row = findings.row(fault);
    row.record(place);
    assert_eq!(row.kafka.duplicated, 0, "{row:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_missing_or_twice_after_leaders_were_killed() {
    let times = quick_or_long(2, 12);
    let cluster = Own::start(Service::KafkaCluster);
    let stage = on(&cluster, "leaders").await;
    let mut ended = Instant::now();
    for nth in 0..times {
        let led = in_sync(&cluster, &stage).await;
        let killed = led[nth % led.len()].leader;
        let node = usize::try_from(killed).expect("it leads a partition");
        process::send(cluster.node(node), Signal::Kill);
        let others = |partition: &Partition| partition.leader > 0 && partition.leader != killed;
        partitions("another node leads", &cluster.url(), &stage.run, others).await;
        stage.load.more_acknowledged(1_000).await;
        stage.is_keeping_up("kafka").await;
        tokio::task::block_in_place(|| cluster.start_again());
        ended = Instant::now();
    }
    let fault = format!("of three Kafka nodes the one that leads killed (SIGKILL), {times} times");
    finish(stage, ended, fault, Place::KafkaLeadersKilled).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_missing_or_twice_after_all_nodes_were_restarted_in_turn() {
    let rounds = quick_or_long(1, 4);
    let cluster = Own::start(Service::KafkaCluster);
    let stage = on(&cluster, "turns").await;
    let mut ended = Instant::now();
    for node in NODES.repeat(rounds) {
        in_sync(&cluster, &stage).await;
        let pid = cluster.node(node);
        process::send(pid, Signal::Term);
        eventually("the node ends", PATIENCE, async || (!process::lives(pid)).then_some(())).await;
        stage.load.more_acknowledged(1_000).await;
        stage.is_keeping_up("kafka").await;
        tokio::task::block_in_place(|| cluster.start_again());
        ended = Instant::now();
    }
    let fault = format!("all three Kafka nodes restarted in turn, {rounds} times");
    finish(stage, ended, fault, Place::KafkaRestartedInTurn).await;
}
