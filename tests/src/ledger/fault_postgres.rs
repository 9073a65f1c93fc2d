//! PostgreSQL is ended in the middle of a COPY, without tidying up, again and again; and a backend of it is terminated.

use std::time::Instant;

use super::row::Place;
use super::stage::{Plan, Stage};
use super::{PATIENCE, quick_or_long};
use crate::support::eventually;
use crate::support::postgres::Database;
use crate::support::process::{self, Signal};
use crate::support::services::{Own, Service};

/// The backend that copies rows into this database at the moment.
const COPYING: &str =
    "SELECT pid FROM pg_stat_progress_copy WHERE datname = current_database() AND tuples_processed > 0";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_missing_or_double_after_postgresql_died_in_the_middle_of_copies() {
    let restarts = quick_or_long(2, 8);
    let server = Own::start(Service::Postgres);
    let mut stage = Stage::start("copy", Plan { postgres: server.url(), ..Plan::usual() }).await;
    let mut ended = Instant::now();
    for _ in 0..restarts {
        stage.load.more_acknowledged(300).await;
        freeze_a_copy(&stage.database, |backend| {
            // It dies of what it finds when it goes on, before it does anything else.
            server.signal(Signal::Quit);
            process::send(backend, Signal::Quit);
        })
        .await;
        tokio::task::block_in_place(|| {
            server.stop();
            server.start_again();
        });
        ended = Instant::now();
        stage.database.reconnect().await;
        stage.is_keeping_up("postgres").await;
    }
    let findings = stage.finish(ended).await;
    let fault = format!("PostgreSQL killed in the middle of a COPY (immediate shutdown), {restarts} times");
    findings.row(fault).record(Place::PostgresRestarted);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_missing_or_double_after_a_backend_was_terminated() {
    let times = quick_or_long(3, 20);
    let stage = Stage::start("backend", Plan::usual()).await;
    let mut ended = Instant::now();
    for _ in 0..times {
        stage.load.more_acknowledged(300).await;
        let copying = format!("SELECT pg_terminate_backend(pid) FROM ({COPYING}) AS copying");
        eventually("a COPY is met", PATIENCE, async || {
            (!stage.database.query(&copying, &[]).await.is_empty()).then_some(())
        })
        .await;
        ended = Instant::now();
        stage.is_keeping_up("postgres").await;
    }
    let findings = stage.finish(ended).await;
    let fault = format!("PostgreSQL backend terminated in the middle of a COPY, {times} times");
    findings.row(fault).record(Place::BackendTerminated);
}

/// Stops a backend while it copies, looks again whether it really is in the middle, and lets `end` have it.
async fn freeze_a_copy(database: &Database, end: impl Fn(u32)) {
    eventually("a COPY is met", PATIENCE, async || {
        let rows = database.query(COPYING, &[]).await;
        let backend: i32 = rows.first()?.get(0);
        let backend = u32::try_from(backend).expect("process ids are positive");
        process::send(backend, Signal::Stop);
        let still = database.query(COPYING, &[]).await;
        let is_in_the_middle = still.iter().any(|row| row.get::<_, i32>(0) as u32 == backend);
        if is_in_the_middle {
            end(backend);
        }
        process::send(backend, Signal::Continue);
        is_in_the_middle.then_some(())
    })
    .await;
}
