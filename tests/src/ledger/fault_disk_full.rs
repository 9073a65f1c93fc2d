//! The file system is full, and has room again.

use std::time::{Duration, Instant};

use serde_json::Value;

use super::row::Place;
use super::stage::{Plan, Stage};
use super::{PATIENCE, quick_or_long};
use crate::support::small_disk::{FileSystem, SmallDisk, is_root};
use crate::support::tidegate::{Settings, Tidegate};
use crate::support::{eventually, http, report};

const DISK_BYTES: u64 = 64 << 20;
/// What is left when the disk begins to fill under load.
const LEFT_BYTES: u64 = 1 << 19;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_when_the_disk_is_full_and_has_room_again() {
    full_and_free(FileSystem::Tmpfs, quick_or_long(2, 6), Place::DiskFull).await;
}

/// Another file system reserves and gives out its space in another way. Only root may mount one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_when_an_ext4_is_full_and_has_room_again() {
    if quick_or_long(true, false) || !is_root() {
        return report("ledger", "a full ext4: in the long form only, as root");
    }
    full_and_free(FileSystem::Ext4, 6, Place::DiskFullReal).await;
}

async fn full_and_free(file_system: FileSystem, rounds: u32, place: Place) {
    let disk = SmallDisk::mount(file_system, DISK_BYTES);
    let settings = Settings::default()
        .on(&disk)
        .set("TIDEGATE_JOURNAL_SEGMENT_BYTES", "1MiB")
        .set("TIDEGATE_JOURNAL_MAX_BYTES", "32MiB");
    let mut stage = Stage::start("full", Plan { settings, ..Plan::usual() }).await;
    let (mut restarts, mut ended) = (0, Instant::now());
    for round in 0..rounds {
        stage.load.more_acknowledged(500).await;
        disk.fill(LEFT_BYTES);
        is_full(&stage).await;
        let acknowledged = stage.load.acknowledged();
        // Every other time it is killed in the middle of it, and started while there is still no room.
        let is_killed = round % 2 == 1;
        if is_killed {
            stage.will_be_restarted();
            stage.tidegate.kill();
            restarts += u32::from(!starts_without_room(&mut stage.tidegate).await);
        }
        disk.free();
        ended = Instant::now();
        if !stage.tidegate.is_running() {
            stage.tidegate.spawn();
            stage.tidegate.ready().await;
        } else if wants_restart(&stage.tidegate).await {
            restarts += 1;
            stage.will_be_restarted();
            assert_eq!(stage.tidegate.drain().await.code(), Some(0), "a drain loses nothing, so it is one");
            stage.tidegate.spawn();
            stage.tidegate.ready().await;
        }
        takes_again(&stage.tidegate).await;
        assert!(stage.load.acknowledged() >= acknowledged);
    }
    let findings = stage.finish(ended).await;
    let healed = if restarts == 0 { "went on by itself".to_owned() } else { format!("{restarts} restarts") };
    let fault = format!("file system full ({}), {rounds} times; {healed}", disk.kind());
    findings.row(fault).record(place);
}

/// Waits until the appliance says that it cannot keep any more, and what it says to whom.
async fn is_full(stage: &Stage) {
    let health = eventually("/health says that the disk is full", PATIENCE, async || {
        Some(stage.tidegate.health().await).filter(|health| health["journal"]["state"] != "ok")
    })
    .await;
    assert_eq!(health["status"], "unhealthy", "{health}");
    let detail = health["journal"]["detail"].as_str().expect("it says what is wrong");
    report("ledger", &format!("the disk is full: {}", health["journal"]));
    assert!(detail.contains("No space left on device"), "{detail}");
    assert_eq!(http::get(stage.tidegate.http, "/health/ready").await.status, 503);
    let refused = http::post(stage.tidegate.http, "/ingest", "application/json", b"{}").await;
    assert_eq!(refused.status, 503, "{}", refused.text());
    // No publish is acknowledged that has no room.
    let acknowledged = eventually("acknowledgements stop", PATIENCE, async || {
        let before = stage.load.acknowledged();
        tokio::time::sleep(Duration::from_millis(200)).await;
        (stage.load.acknowledged() == before).then_some(before)
    })
    .await;
    assert!(acknowledged > 0);
}

/// Whether it came up on the full disk. If not, it has said why.
async fn starts_without_room(tidegate: &mut Tidegate) -> bool {
    tidegate.spawn();
    let is_up = eventually("it starts, or ends and says why", PATIENCE, async || {
        if !tidegate.is_running() {
            return Some(false);
        }
        http::try_get(tidegate.http, "/health").await.is_ok().then_some(true)
    })
    .await;
    if !is_up {
        let status = tidegate.ended().await;
        let log = tidegate.log();
        assert_eq!(status.code(), Some(74), "{log}");
        assert!(log.lines().rev().take(3).any(|line| line.contains("No space left on device")), "{log}");
    }
    is_up
}

/// Whether `/health` says that it needs a restart.
async fn wants_restart(tidegate: &Tidegate) -> bool {
    let health: Value = tidegate.health().await;
    health["journal"]["state"] == "failed"
}

async fn takes_again(tidegate: &Tidegate) {
    eventually("the journal takes entries again", PATIENCE, async || {
        (tidegate.health().await["journal"]["state"] == "ok").then_some(())
    })
    .await;
}
