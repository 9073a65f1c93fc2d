//! Kafka with passwords, certificates and rights: the consumer gets in as the sink does, and says which right it lacks.

use crate::support::mosquitto::{Subscriber, Version};
use crate::support::services::{Secure, kafka_secure, secret};
use crate::support::tidegate::Tidegate;
use crate::support::{PATIENCE, eventually};

use super::stage::{Stage, consumes, health, metric};

/// Gives `writer` the right to read: `--topic NAME`, `--group NAME`.
async fn allow(secure: &Secure, what: &str, name: &str) {
    let (secure, what, name) = (secure.clone(), what.to_owned(), name.to_owned());
    let give = move || {
        let rights = ["--add", "--allow-principal", "User:writer", "--operation", "Read"];
        secure.tool("org.apache.kafka.tools.AclCommand", &[&rights[..], &[&what, &name]].concat());
    };
    tokio::task::spawn_blocking(give).await.unwrap();
}

/// Waits until it says that it is in this state, with this word.
async fn says(tidegate: &Tidegate, state: &str, word: &str) {
    eventually(&format!("the consumer is {state} and says {word:?}"), PATIENCE, async || {
        let health = health(tidegate).await;
        (health["state"] == state && health["detail"].as_str()?.contains(word)).then_some(())
    })
    .await;
}

#[tokio::test]
async fn it_gets_in_as_the_sink_does_and_says_which_right_it_lacks() {
    let secure = kafka_secure();
    let password = secret("admin");
    let admin = [
        ("security.protocol", "sasl_plaintext"),
        ("sasl.mechanism", "PLAIN"),
        ("sasl.username", "admin"),
        ("sasl.password", &password),
    ];
    let mut stage = Stage::with(&secure.sasl, Secure::ALLOWED, &admin);
    stage.consumed.truncate(1);
    let folder = tempfile::tempdir().unwrap();
    let password_file = folder.path().join("password");
    std::fs::write(&password_file, secret("writer")).unwrap();
    let authority = secure.file("ca.pem");
    let properties = format!(
        r#"{{ "security.protocol" = "sasl_ssl", "sasl.mechanism" = "SCRAM-SHA-512", "ssl.ca.location" = "{authority}" }}"#
    );
    let by_password = stage
        .told(&stage.group)
        .kafka(&secure.tls)
        .set("TIDEGATE_KAFKA_PROPERTIES", &properties)
        .set("TIDEGATE_KAFKA_USERNAME", "writer")
        .set("TIDEGATE_KAFKA_PASSWORD_FILE", password_file.to_str().unwrap());

    let tidegate = Tidegate::start(by_password).await;
    says(&tidegate, "failed", "the right to read that group").await;
    allow(&secure, "--group", &stage.group).await;
    says(&tidegate, "degraded", "the right to read that topic").await;
    allow(&secure, "--topic", &stage.topic("commands")).await;
    consumes(&tidegate).await;
    let mut valve = Subscriber::start(tidegate.mqtt, Version::V5, 1, "commands/valve/+", &[]).await;
    stage.command("valve", 1).await;
    assert_eq!(valve.next().await.payload, "1");
    // Dead letters go the same way.
    stage.produce("commands", Some("valve"), &[], b"no action").await;
    stage.settled(&tidegate, "commands", 2).await;
    assert_eq!(stage.ends("dead").await.values().sum::<i64>(), 1);
    assert_eq!(metric(&tidegate, "tidegate_source_dead_letters_total", "to=\"topic\"").await, 1.0);
    drop((tidegate, valve));

    let (certificate, key) = (secure.file("writer.pem"), secure.file("writer.key"));
    let properties = format!(
        r#"{{ "security.protocol" = "ssl", "ssl.ca.location" = "{authority}", "ssl.certificate.location" = "{certificate}", "ssl.key.location" = "{key}" }}"#
    );
    let passphrase = format!("{{ \"ssl.key.password\" = \"{}\" }}", secure.file("writer.pass"));
    let by_certificate = stage
        .told(&stage.group)
        .kafka(&secure.mutual)
        .set("TIDEGATE_KAFKA_PROPERTIES", &properties)
        .set("TIDEGATE_KAFKA_PROPERTY_FILES", &passphrase);
    let tidegate = Tidegate::start(by_certificate).await;
    consumes(&tidegate).await;
    let mut valve = Subscriber::start(tidegate.mqtt, Version::V5, 1, "commands/valve/+", &[]).await;
    stage.command("valve", 2).await;
    assert_eq!(valve.next().await.payload, "2");
    stage.settled(&tidegate, "commands", 1).await;
}
