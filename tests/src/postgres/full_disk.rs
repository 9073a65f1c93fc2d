//! PostgreSQL's disk is really full, that of its tables or that of its log of changes: readings wait in the journal,
//! `/health` says why, and afterwards each is there once.

use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use tidegate_broker::record::Qos;
use tokio::sync::watch;

use crate::support::device::{Device, Order};
use crate::support::postgres::Database;
use crate::support::services::{Own, Service};
use crate::support::small_disk::{FileSystem, SmallDisk};
use crate::support::tidegate::{Settings, Tidegate};
use crate::support::{PATIENCE, eventually, unique, within};

const DISK_BYTES: u64 = 64 << 20;
/// The log of changes takes 16 MiB at a time, and nothing of it is given back before a checkpoint.
const LOG_DISK_BYTES: u64 = 128 << 20;
const PUBLISHES: u64 = 20_000;

/// A database whose tables lie on the small disk, while the server's log of changes does not.
async fn database_on(disk: &SmallDisk, server: &Own) -> String {
    let administrator = Database::create(&server.url()).await;
    // By the server itself, so that it is the server's.
    let folder = disk.mounted_at().join("tables");
    let make = format!("COPY (SELECT) TO PROGRAM 'mkdir {}'", folder.display());
    administrator.query(&make, &[]).await;
    administrator.query(&format!("CREATE TABLESPACE small LOCATION '{}'", folder.display()), &[]).await;
    administrator.query("CREATE DATABASE sensors TABLESPACE small", &[]).await;
    server.url().replace("/postgres", "/sensors").replace("//sensors@", "//postgres@")
}

async fn publish(tidegate: &Tidegate, id: &str, limit: u64) {
    let (_orders, order) = watch::channel(Order::Publish);
    let device = Device { window: 500, limit, ..Device::new(tidegate.mqtt, id, Qos::AtLeastOnce) };
    let done = within("it publishes", PATIENCE, device.run(order, Arc::new(AtomicU64::new(0)))).await;
    assert_eq!(done.acknowledged, limit);
}

/// A small disk that the server's own user reaches.
fn small_disk(bytes: u64) -> SmallDisk {
    let disk = SmallDisk::mount(FileSystem::Tmpfs, bytes);
    let around = disk.mounted_at().parent().unwrap().to_owned();
    std::fs::set_permissions(&around, std::fs::Permissions::from_mode(0o755)).unwrap();
    disk
}

/// Moves the log of changes of a stopped server onto the disk.
fn move_log(data: &Path, disk: &SmallDisk) {
    let log = data.join("pg_wal");
    let status = Command::new("cp").arg("-a").arg(&log).arg(disk.seen_from_outside()).status().unwrap();
    assert!(status.success(), "cp says why");
    std::fs::remove_dir_all(&log).unwrap();
    symlink(disk.mounted_at().join("pg_wal"), &log).unwrap();
}

/// Of the devices `before`, with 100 publishes, and `during` each reading is there once, also in the rollups.
async fn assert_each_once(database: &Database, during: &str) {
    database.await_rollups().await;
    for (sql, expected) in [
        ("SELECT count(*) FROM tidegate.readings".to_owned(), PUBLISHES + 100),
        (
            format!(
                "SELECT count(DISTINCT (topic, number)) FROM tidegate.readings WHERE device = '{during}'"
            ),
            PUBLISHES,
        ),
        ("SELECT sum(count)::bigint FROM tidegate.readings_per_hour".to_owned(), PUBLISHES + 100),
        ("SELECT count(*) FROM tidegate_internal.quarantine".to_owned(), 0),
    ] {
        assert_eq!(database.count(&sql).await, Some(i64::try_from(expected).unwrap()), "{sql}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_is_lag_with_a_reason_and_then_everything_once() {
    let disk = small_disk(DISK_BYTES);
    let server = Own::start_inside(Service::Postgres, &disk.enter());
    let url = database_on(&disk, &server).await;
    let tidegate = Tidegate::start(Settings::default().postgres(&url)).await;
    let (before, during) = (unique("before"), unique("during"));
    publish(&tidegate, &before, 100).await;
    tidegate.caught_up("postgres", 0, PATIENCE).await;

    disk.fill(0);
    publish(&tidegate, &during, PUBLISHES).await;
    let told = eventually("/health says that the disk is full", PATIENCE, async || {
        let health = tidegate.sink("postgres").await;
        (health.state == "down" && health.detail.contains("disk is full")).then_some(health)
    })
    .await;
    assert!(told.detail.contains("53100") && told.detail.contains("make room"), "{told:?}");
    assert!(told.lag_entries > 0 && told.rejected == 0, "{told:?}");

    disk.free();
    tidegate.caught_up("postgres", 0, PATIENCE).await;
    let mut database = Database::create(&server.url()).await;
    database.url = url;
    database.reconnect().await;
    assert_each_once(&database, &during).await;
}

/// Without room for its log a server panics, and cannot even start again: clients only see it go away.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_below_the_servers_log_is_lag_until_the_server_is_back() {
    let disk = small_disk(LOG_DISK_BYTES);
    let server = Own::start_inside(Service::Postgres, &disk.enter());
    let mut database = Database::create(&server.url()).await;
    let data = database.setting("data_directory").await;
    server.stop();
    move_log(Path::new(&data), &disk);
    server.start_again();
    database.reconnect().await;
    let tidegate = Tidegate::start(Settings::default().postgres(&database.url)).await;
    let (before, during) = (unique("before"), unique("during"));
    publish(&tidegate, &before, 100).await;
    tidegate.caught_up("postgres", 0, PATIENCE).await;

    disk.fill(0);
    // What is left of the piece in use would take much; the next one cannot be made.
    let _ = database.count("SELECT count(pg_switch_wal())").await;
    publish(&tidegate, &during, PUBLISHES).await;
    let log = eventually("the server panics", PATIENCE, async || {
        Some(server.log()).filter(|log| log.contains("PANIC"))
    })
    .await;
    assert!(log.contains("No space left on device"), "{log}");
    let told = eventually("/health says that PostgreSQL does not store", PATIENCE, async || {
        Some(tidegate.sink("postgres").await).filter(|health| health.state == "down")
    })
    .await;
    assert!(told.detail.contains("PostgreSQL"), "{told:?}");
    assert!(told.lag_entries > 0 && told.rejected == 0, "{told:?}");

    disk.free();
    // Where it has ended altogether, whoever made room starts it.
    server.start_again();
    tidegate.caught_up("postgres", 0, PATIENCE).await;
    database.reconnect().await;
    assert_each_once(&database, &during).await;
}
