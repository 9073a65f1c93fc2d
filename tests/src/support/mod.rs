//! What the tests stand on: the shipped programs as processes, real services, clients of every kind.
//!
//! Nothing here skips: a service, tool or program that is missing makes the test fail with one line that says how it is had.
//! Waiting is always for an event, and always with a deadline.

#![allow(dead_code, reason = "each part is here for every test, whether one uses it now or not")]

pub(crate) mod device;
pub(crate) mod http;
pub(crate) mod kafka;
pub(crate) mod metrics;
pub(crate) mod mosquitto;
pub(crate) mod mqtt;
pub(crate) mod postgres;
pub(crate) mod process;
pub(crate) mod random;
pub(crate) mod raw;
pub(crate) mod services;
pub(crate) mod silent_proxy;
pub(crate) mod small_disk;
pub(crate) mod tidegate;
pub(crate) mod websocket;

use std::io::Write as _;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How long anything may take that normally takes a moment, on a machine that does other things as well.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Pause between two looks at something that tells no event of its own, such as a health page.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// Asks `look` again and again until it has an answer; after `patience`, fails and tells what was awaited.
pub(crate) async fn eventually<T>(
    what: &str,
    patience: Duration,
    mut look: impl AsyncFnMut() -> Option<T>,
) -> T {
    let deadline = tokio::time::Instant::now() + patience;
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(tokio::time::Instant::now() < deadline, "not within {patience:?}: {what}");
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

/// Waits for `future`; after `patience`, fails and tells what was awaited.
pub(crate) async fn within<T>(what: &str, patience: Duration, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(patience, future).await {
        Ok(value) => value,
        Err(_) => panic!("not within {patience:?}: {what}"),
    }
}

/// A loopback address nobody listens on. It lies below the ports that the kernel gives to clients, and no other test of this
/// process gets it, so it can be listened on again after a crash.
pub(crate) fn free_address() -> SocketAddr {
    const FIRST: u32 = 12_000;
    const PORTS: u32 = 8_000;
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let start = std::process::id().wrapping_mul(97);
    for _ in 0..PORTS {
        let port = FIRST + start.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % PORTS;
        let address = SocketAddr::from(([127, 0, 0, 1], port as u16));
        if TcpListener::bind(address).is_ok() {
            return address;
        }
    }
    panic!("no free port from {FIRST} to {}", FIRST + PORTS);
}

/// Prints a figure that belongs into the record of every run: the test runner keeps what a passing test prints to
/// itself, and does not see what is written to the stream.
pub(crate) fn report(test: &str, figures: &str) {
    for line in figures.lines() {
        let _ = writeln!(std::io::stderr(), "    {test}: {line}");
    }
}

/// A name nothing else has: a database, a device, a group. Made of a-z, 0-9 and `_`.
pub(crate) fn unique(prefix: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros();
    format!("{prefix}_{now:x}_{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

/// The checkout.
pub(crate) fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ lies in the checkout").to_owned()
}

/// Where cargo builds, and where everything else lies that tests make.
pub(crate) fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), |folder| root().join(folder))
}
