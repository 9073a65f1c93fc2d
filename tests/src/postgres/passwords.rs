//! Passwords that a real server asks for by SCRAM: wrong, missing, in the URL, and in a file that changes meanwhile.

use std::fs;

use super::{admit_ada, deliver, numbered, operator_message, sink};
use crate::support::mosquitto::{self, Version};
use crate::support::postgres::Database;
use crate::support::services::{Own, Service};
use crate::support::tidegate::{Settings, Tidegate};
use crate::support::{PATIENCE, eventually};
use tidegate::pump::Sink as _;

/// A server that asks `ada` for her password, and a database there.
async fn server_that_asks() -> (Own, Database) {
    let server = Own::start(Service::Postgres);
    let database = Database::create(&server.url()).await;
    admit_ada(&database, "host all ada 127.0.0.1/32 scram-sha-256\n").await;
    let without = database.url.replace("postgres@", "ada@");
    // The reload reaches the server's main process a moment later; until then anybody is let in.
    let message = eventually("the password is asked for", PATIENCE, async || {
        let message = operator_message(sink(&without).connect().await);
        Some(message).filter(|message| message.contains("password missing"))
    })
    .await;
    assert!(message.contains("check user and password in postgres.url"), "{message}");
    (server, database)
}

#[tokio::test]
async fn wrong_passwords_and_missing_rights_say_so() {
    let (_server, database) = server_that_asks().await;
    let as_ada = |password: &str| database.url.replace("postgres@", &format!("ada:{password}@"));
    let message = operator_message(sink(&as_ada("swordfish")).connect().await);
    assert!(message.contains("password authentication failed"), "{message}");
    assert!(message.contains("check user and password in postgres.url"), "{message}");
    assert!(!message.contains("swordfish"), "{message}");

    let message = operator_message(sink(&as_ada("sesame")).connect().await);
    assert!(message.contains("GRANT CREATE") && message.contains("\"ada\""), "{message}");

    database.query(&format!("GRANT CREATE ON DATABASE {} TO ada", database.name()), &[]).await;
    deliver(&mut sink(&as_ada("sesame")), &numbered(1, 10)).await;
}

fn publish(tidegate: &Tidegate, number: u8) {
    mosquitto::publish(tidegate.mqtt, Version::V5, 1, "room/n", number.to_string().as_bytes(), &[]);
}

/// Waits until `/health` says that nothing can be stored, with these words.
async fn refused_with(tidegate: &Tidegate, words: &[&str]) {
    eventually(&format!("/health says {words:?}"), PATIENCE, async || {
        let health = tidegate.sink("postgres").await;
        (health.state == "failed" && words.iter().all(|word| health.detail.contains(word))).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_password_is_read_from_its_file_at_each_connect() {
    let (_server, database) = server_that_asks().await;
    database.query(&format!("ALTER DATABASE {} OWNER TO ada", database.name()), &[]).await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("password");
    let path = file.to_str().unwrap();
    let refused = ["password authentication failed", "postgres.password_file", path];
    fs::write(&file, "swordfish\n").unwrap();
    // The one in the URL is right and does not count.
    let url = database.url.replace("postgres@", "ada:sesame@");
    let settings = Settings::default().postgres(&url).set("TIDEGATE_POSTGRES_PASSWORD_FILE", path);
    let tidegate = Tidegate::start(settings).await;
    publish(&tidegate, 1);
    refused_with(&tidegate, &refused).await;
    fs::write(&file, "sesame\n").unwrap();
    tidegate.caught_up("postgres", 0, PATIENCE).await;

    // Changed first in the database, then in the file; a session that is open goes on until it is ended.
    let end_sessions = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'ada'";
    database.query("ALTER ROLE ada PASSWORD 'hunter2'", &[]).await;
    publish(&tidegate, 2);
    tidegate.caught_up("postgres", 0, PATIENCE).await;
    database.query(end_sessions, &[]).await;
    publish(&tidegate, 3);
    refused_with(&tidegate, &refused).await;
    fs::write(&file, "hunter2").unwrap();
    tidegate.caught_up("postgres", 0, PATIENCE).await;

    fs::remove_file(&file).unwrap();
    database.query(end_sessions, &[]).await;
    publish(&tidegate, 4);
    refused_with(&tidegate, &["postgres.password_file", path, "cannot be read"]).await;
    fs::write(&file, "hunter2").unwrap();
    tidegate.caught_up("postgres", 0, PATIENCE).await;

    let numbers = "SELECT string_agg(number::text, ' ' ORDER BY position) FROM tidegate.readings";
    assert_eq!(database.query(numbers, &[]).await[0].get::<_, String>(0), "1 2 3 4");
    let said = format!("{}{}", tidegate.log(), tidegate.health().await);
    for password in ["swordfish", "sesame", "hunter2"] {
        assert!(!said.contains(password), "{password} is told: {said}");
    }
}
