//! Kafka as a cluster of three nodes, of which two must have a record before it counts as stored. Nodes that lead partitions are
//! killed, and all are restarted in turn: another one leads at once, and nothing is there twice, because each record has a number
//! by which the new leader knows it.

use std::fs;
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
    Stage::start(name, Plan { devices, ..Plan::on_kafka(servers) }).await
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

/// As operators do before they work on a node: other replicas are preferred, and elected while everything runs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_missing_or_twice_after_leaders_were_moved() {
    let times = quick_or_long(2, 12);
    let cluster = Own::start(Service::KafkaCluster);
    let stage = on(&cluster, "moved").await;
    let folder = tempfile::tempdir().expect("there is room for a file");
    let file = folder.path().join("replicas.json");
    let mut ended = Instant::now();
    for _ in 0..times {
        let led = in_sync(&cluster, &stage).await;
        let next: Vec<i32> = led.iter().map(|partition| partition.leader % 3 + 1).collect();
        let replicas = |(partition, leader): (usize, &i32)| {
            let replicas = [*leader, leader % 3 + 1, (leader + 1) % 3 + 1];
            serde_json::json!({ "topic": stage.run, "partition": partition, "replicas": replicas })
        };
        let partitions: Vec<_> = next.iter().enumerate().map(replicas).collect();
        let document = serde_json::json!({ "version": 1, "partitions": partitions });
        fs::write(&file, document.to_string()).expect("there is room for a file");
        let path = file.to_str().expect("our folders are text");
        tokio::task::block_in_place(|| {
            let prefer = ["--reassignment-json-file", path, "--execute"];
            cluster.tool("org.apache.kafka.tools.reassign.ReassignPartitionsCommand", &prefer);
            let elect = ["--election-type", "preferred", "--all-topic-partitions"];
            cluster.tool("org.apache.kafka.tools.LeaderElectionCommand", &elect);
        });
        eventually("the preferred ones lead", PATIENCE, async || {
            let led = in_sync(&cluster, &stage).await;
            led.iter().map(|partition| partition.leader).eq(next.iter().copied()).then_some(())
        })
        .await;
        stage.load.more_acknowledged(1_000).await;
        stage.is_keeping_up("kafka").await;
        ended = Instant::now();
    }
    let fault = format!("of three Kafka nodes others made leaders of all partitions, {times} times");
    finish(stage, ended, fault, Place::KafkaLeadersMoved).await;
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
