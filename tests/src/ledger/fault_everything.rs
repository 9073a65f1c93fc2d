//! Everything at once: faults of all kinds in a random order, each while the one before may not be over.

use std::time::{Duration, Instant};

use super::quick_or_long;
use super::row::Place;
use super::stage::{Plan, Stage};
use crate::support::process::{Frozen, Signal};
use crate::support::random::Random;
use crate::support::report;
use crate::support::services::{Own, Service};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_when_everything_fails_in_any_order() {
    let faults = quick_or_long(0, 30);
    if faults == 0 {
        return report("ledger", "everything at once: in the long form only");
    }
    let mut random = Random::printed("everything");
    let (kafka, postgres) = (Own::start(Service::Kafka), Own::start(Service::Postgres));
    let plan = Plan {
        kafka: kafka.url(),
        kafka_for_consumers: kafka.url(),
        postgres: postgres.url(),
        ..Plan::usual()
    };
    let mut stage = Stage::start("everything", plan).await;
    for _ in 0..faults {
        match random.within(0..6) {
            0 | 1 => stage.crash_and_restart().await,
            2 => frozen(kafka.pid(), &mut random).await,
            3 => frozen(postgres.pid(), &mut random).await,
            4 => dies(&kafka, Signal::Kill),
            _ => dies(&postgres, Signal::Quit),
        }
        stage.load.more_acknowledged(random.within(1..2_000)).await;
    }
    let findings = stage.finish(Instant::now()).await;
    findings.row(format!("{faults} faults of these kinds in random order")).record(Place::Everything);
}

async fn frozen(pid: u32, random: &mut Random) {
    let frozen = Frozen::with_children(pid);
    tokio::time::sleep(Duration::from_millis(random.within(0..4_000))).await;
    drop(frozen);
}

fn dies(service: &Own, signal: Signal) {
    tokio::task::block_in_place(|| {
        service.signal(signal);
        service.stop();
        service.start_again();
    });
}
