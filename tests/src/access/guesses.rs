//! Wrong passwords from one address, guessed with stock clients, and what that means for those who know theirs.

use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::write_users;
use crate::support::tidegate::{Settings, Tidegate};
use crate::support::{PATIENCE, eventually, http, process};

/// Wrong guesses that this machine has for nothing.
const FREE: u64 = 10;
/// Refusals that wait per address.
const WAITING_MAX: usize = 16;
/// The longest that one waits.
const DELAY_MAX: Duration = Duration::from_secs(5);

/// A client of the user `d1` that is to publish from `from`.
fn client(address: SocketAddr, from: &str, password: &str) -> Child {
    let mut command = Command::new("mosquitto_pub");
    command
        .args(["-h", &address.ip().to_string(), "-p", &address.port().to_string(), "-A", from, "-q", "1"])
        .args(["-t", "sensors/d1/t", "-m", "1", "-u", "d1", "-P", password])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    process::spawn(&mut command)
}

fn publishes(address: SocketAddr, from: &str, password: &str) -> bool {
    client(address, from, password).wait().unwrap().success()
}

async fn metric(tidegate: &Tidegate, name: &str) -> u64 {
    let metrics = http::get(tidegate.http, "/metrics").await;
    let value = metrics.text().lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.unwrap_or_else(|| panic!("no {name} in:\n{}", metrics.text())).parse().unwrap()
}

/// Waits until so many logins have failed.
async fn have_failed(tidegate: &Tidegate, count: u64) {
    eventually(&format!("{count} failed logins are counted"), PATIENCE, async || {
        (metric(tidegate, "tidegate_mqtt_logins_failed_total").await == count).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn guesses_become_slow_and_those_who_know_do_not_wait() {
    let mut tidegate = Tidegate::prepare(Settings::default());
    let data = tidegate.folder().join("data");
    std::fs::create_dir_all(&data).unwrap();
    write_users(&data.join("passwords"), &["d1"]);
    tidegate.spawn();
    tidegate.ready().await;
    let address = tidegate.mqtt;

    // The pauses double behind the ones that are free: 0.1 s, 0.2 s, 0.4 s.
    for _ in 0..FREE {
        assert!(!publishes(address, "127.0.0.1", "wrong"));
    }
    let started = Instant::now();
    for _ in 0..3 {
        assert!(!publishes(address, "127.0.0.1", "wrong"));
    }
    assert!(started.elapsed() >= Duration::from_millis(700), "answered within {:?}", started.elapsed());
    have_failed(&tidegate, FREE + 3).await;

    // As many as may wait do so. Who knows the password comes and goes meanwhile, also from the same address.
    let started = Instant::now();
    let mut guesses: Vec<Child> =
        (0..WAITING_MAX - 1).map(|_| client(address, "127.0.0.1", "wrong")).collect();
    have_failed(&tidegate, FREE + 3 + guesses.len() as u64).await;
    for from in ["127.0.0.2", "127.0.0.1"] {
        assert!(publishes(address, from, "secret"), "from {from}");
    }
    let slowest_wait =
        guesses.iter_mut().filter_map(|guess| guess.try_wait().unwrap()).count() < guesses.len();
    assert!(slowest_wait, "the right password overtakes the guesses ({:?})", started.elapsed());

    // More than may wait are not even looked at, and counted apart.
    let unchecked = eventually("a guess is refused unchecked", PATIENCE, async || {
        guesses.push(client(address, "127.0.0.1", "wrong"));
        Some(metric(&tidegate, "tidegate_mqtt_logins_unchecked_total").await).filter(|count| *count > 0)
    })
    .await;
    assert!(unchecked < guesses.len() as u64);

    // It ends: every guess is answered, none before its time, and then nobody is refused unchecked.
    for mut guess in guesses {
        assert!(!process::ended(&mut guess, PATIENCE).await.success());
    }
    assert!(started.elapsed() >= DELAY_MAX, "the last guess waits longest: {:?}", started.elapsed());
    assert!(publishes(address, "127.0.0.1", "secret"));
    assert!(publishes(address, "127.0.0.2", "secret"));
    tidegate.assert_alive();
}
