//! Kafka with passwords, certificates and TLS: every way to prove who we are, what is told when that fails, secrets that are
//! changed while everything runs, and that no secret is to be read anywhere.

use std::fs;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tidegate_broker::record::Qos;
use tokio::sync::watch;

use crate::support::device::{Device, Order};
use crate::support::kafka::Topic;
use crate::support::services::{Own, Secure, Service, kafka_secure, secret};
use crate::support::tidegate::{Settings, SinkHealth, Tidegate};
use crate::support::{PATIENCE, eventually, http, unique};

/// Publishes of one device.
const PUBLISHES: u64 = 50;

/// Properties of librdkafka with their values.
type Properties<'a> = &'a [(&'a str, &'a str)];

/// A name that `writer` may create and write.
fn topic() -> String {
    format!("{}{}", Secure::ALLOWED, unique("s").replace('_', "-"))
}

/// Everything to `topic` at `servers`, with these properties of librdkafka.
fn settings(servers: &str, topic: &str, properties: Properties<'_>) -> Settings {
    let properties: Vec<_> =
        properties.iter().map(|(name, value)| format!("\"{name}\" = \"{value}\"")).collect();
    Settings::default()
        .kafka(servers)
        .set("TIDEGATE_KAFKA_ROUTES", &format!("[{{ filter = \"#\", topic = \"{topic}\" }}]"))
        .set("TIDEGATE_KAFKA_PROPERTIES", &format!("{{ {} }}", properties.join(", ")))
}

/// The properties of SASL with `mechanism`, in plain text.
fn sasl(mechanism: &str) -> [(&'static str, &str); 2] {
    [("security.protocol", "SASL_PLAINTEXT"), ("sasl.mechanism", mechanism)]
}

/// Publishes `0`, `1`, ... as `device`, and waits until all of it is acknowledged.
async fn publish(tidegate: &Tidegate, device: &str) {
    let (_orders, order) = watch::channel(Order::Publish);
    let payload = |_: &str, number: u64| number.to_string().into_bytes();
    let device = Device { limit: PUBLISHES, payload, ..Device::new(tidegate.mqtt, device, Qos::AtLeastOnce) };
    let done = device.run(order, Arc::new(AtomicU64::new(0))).await;
    assert_eq!(done.acknowledged, PUBLISHES);
}

/// Fails unless everything that `devices` published lies in `topic`, in order.
async fn all_arrived(servers: &str, topic: &str, devices: &[&str]) {
    let password = secret("admin");
    let admin = [("sasl.username", "admin"), ("sasl.password", password.as_str())];
    let mut topic = Topic::open_with(servers, topic, &[&sasl("PLAIN")[..], &admin].concat()).await;
    topic.read_to_end(PATIENCE).await;
    for device in devices {
        let of_device = topic.records.iter().filter(|record| record.key() == *device);
        let mut numbers: Vec<u64> =
            of_device.map(|record| std::str::from_utf8(&record.value).unwrap().parse().unwrap()).collect();
        // What was offered again after a refusal may be there twice.
        numbers.dedup();
        assert_eq!(numbers, (0..PUBLISHES).collect::<Vec<_>>(), "{device}");
    }
}

/// Waits until Kafka is `failed` or `down` and says a text with `word`.
async fn troubled(tidegate: &Tidegate, state: &str, word: &str) -> SinkHealth {
    eventually(&format!("Kafka is {state} and /health says {word:?}"), PATIENCE, async || {
        let health = tidegate.sink("kafka").await;
        (health.state == state && health.detail.contains(word)).then_some(health)
    })
    .await
}

#[tokio::test]
async fn every_way_to_prove_who_we_are_carries_records() {
    let secure = kafka_secure();
    let folder = tempfile::tempdir().unwrap();
    let password_file = folder.path().join("password");
    fs::write(&password_file, secret("writer") + "\n").unwrap();
    let password_file = password_file.to_str().unwrap();
    let authority = secure.file("ca.pem");
    let (certificate, key) = (secure.file("writer.pem"), secure.file("writer.key"));
    let passphrase = format!("{{ \"ssl.key.password\" = \"{}\" }}", secure.file("writer.pass"));
    let tls = [("security.protocol", "sasl_ssl"), ("ssl.ca.location", authority.as_str())];
    let mutual = [
        ("security.protocol", "ssl"),
        ("ssl.ca.location", &authority),
        ("ssl.certificate.location", &certificate),
        ("ssl.key.location", &key),
    ];
    let topic = topic();
    let as_platform = |settings: Settings| {
        settings
            .set("KAFKA_SECURITY_PROTOCOL", "SASL_PLAINTEXT")
            .set("KAFKA_SASL_MECHANISM", "PLAIN")
            .set("KAFKA_USERNAME", "writer")
            .set("KAFKA_PASSWORD", &secret("writer"))
    };
    let with_file = |settings: Settings| {
        settings.set("TIDEGATE_KAFKA_USERNAME", "writer").set("TIDEGATE_KAFKA_PASSWORD_FILE", password_file)
    };
    let scram_256 = [&tls[..], &[("sasl.mechanism", "SCRAM-SHA-256")]].concat();
    let scram_512 = [&tls[..], &[("sasl.mechanism", "SCRAM-SHA-512")]].concat();
    let password = secret("writer");
    let by_properties = [("sasl.username", "writer"), ("sasl.password", password.as_str())];
    let by_properties = [&scram_512[..], &by_properties].concat();
    let ways = [
        ("platform", as_platform(settings(&secure.sasl, &topic, &[]))),
        ("scram-256", with_file(settings(&secure.sasl, &topic, &sasl("SCRAM-SHA-256")))),
        ("scram-256-tls", with_file(settings(&secure.tls, &topic, &scram_256))),
        ("scram-512-tls", settings(&secure.tls, &topic, &by_properties)),
        (
            "certificate",
            settings(&secure.mutual, &topic, &mutual)
                .set("TIDEGATE_KAFKA_PROPERTY_FILES", &passphrase)
                .set("TIDEGATE_KAFKA_COMPRESSION", "zstd"),
        ),
    ];
    let devices: Vec<_> = ways.iter().map(|(device, _)| *device).collect();
    for (device, settings) in &ways {
        let tidegate = Tidegate::start(settings.clone()).await;
        publish(&tidegate, device).await;
        tidegate.caught_up("kafka", 0, PATIENCE).await;
    }
    all_arrived(&secure.sasl, &topic, &devices).await;
}

#[tokio::test]
async fn whoever_is_refused_or_refuses_says_where_to_look() {
    let secure = kafka_secure();
    let (authority, wrong_authority) = (secure.file("ca.pem"), secure.file("stranger-ca.pem"));
    let (certificate, key) = (secure.file("stranger.pem"), secure.file("stranger.key"));
    let writer = [("sasl.username", "writer"), ("sasl.password", "no-such-password")];
    let scram = [&sasl("SCRAM-SHA-256")[..], &writer].concat();
    let plain = [&sasl("PLAIN")[..], &writer].concat();
    let by = |authority| [("security.protocol", "ssl"), ("ssl.ca.location", authority)];
    let stranger = [("ssl.certificate.location", certificate.as_str()), ("ssl.key.location", key.as_str())];
    let stranger = [&by(&authority)[..], &stranger].concat();
    let cases: [(&str, Properties<'_>, &str, &str); 9] = [
        (&secure.sasl, &scram, "failed", "refuses this client"),
        (&secure.sasl, &plain, "failed", "kafka.password_file"),
        (&secure.mutual, &by(&wrong_authority), "failed", "ssl.ca.location"),
        (&secure.tls, &[("security.protocol", "ssl")], "failed", "ssl.ca.location"),
        (&secure.mutual, &by(&authority), "failed", "ssl.certificate.location"),
        (&secure.mutual, &stranger, "failed", "ssl.certificate.location"),
        (&secure.sasl, &[], "down", "security.protocol"),
        (&secure.tls, &[], "down", "security.protocol"),
        (&secure.sasl, &by(&authority), "down", "security.protocol"),
    ];
    let topic = topic();
    let mut started = Vec::new();
    for (servers, properties, ..) in cases {
        started.push(Tidegate::start(settings(servers, &topic, properties)).await);
    }
    for (tidegate, (servers, properties, state, word)) in started.iter().zip(cases) {
        let told = troubled(tidegate, state, word).await;
        assert!(told.detail.contains(servers), "{properties:?}: {told:?}");
        assert!(tidegate.log().contains(&told.detail), "it is in the log as well: {told:?}");
    }
}

#[tokio::test]
async fn a_wrong_password_is_put_right_in_its_file_without_a_restart() {
    let secure = kafka_secure();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("password");
    fs::write(&file, "no-such-password").unwrap();
    let topic = topic();
    let settings = settings(&secure.sasl, &topic, &sasl("SCRAM-SHA-512"))
        .set("KAFKA_USERNAME", "writer")
        .set("KAFKA_PASSWORD_FILE", file.to_str().unwrap());
    let tidegate = Tidegate::start(settings).await;
    publish(&tidegate, "before").await;
    troubled(&tidegate, "failed", "kafka.password_file").await;
    fs::remove_file(&file).unwrap();
    let told = troubled(&tidegate, "failed", "cannot be read").await;
    assert!(told.detail.starts_with("kafka.password_file: "), "{told:?}");
    fs::write(&file, secret("writer")).unwrap();
    tidegate.caught_up("kafka", 0, PATIENCE).await;
    publish(&tidegate, "after").await;
    tidegate.caught_up("kafka", 0, PATIENCE).await;
    all_arrived(&secure.sasl, &topic, &["before", "after"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_password_that_is_changed_at_kafka_and_in_the_file_loses_nothing() {
    let kafka = Own::start(Service::KafkaSecure);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("password");
    fs::write(&file, secret("writer")).unwrap();
    let topic = topic();
    let settings = settings(&kafka.url(), &topic, &sasl("SCRAM-SHA-256"))
        .set("TIDEGATE_KAFKA_USERNAME", "writer")
        .set("TIDEGATE_KAFKA_PASSWORD_FILE", file.to_str().unwrap());
    let tidegate = Tidegate::start(settings).await;
    publish(&tidegate, "first").await;
    tidegate.caught_up("kafka", 0, PATIENCE).await;

    // A connection outlives the password that it was made with; a restart of the broker asks for it again.
    tokio::task::block_in_place(|| {
        let change = ["--alter", "--entity-type", "users", "--entity-name", "writer", "--add-config"];
        let change = [&change[..], &["SCRAM-SHA-256=[password=changed-secret]"]].concat();
        kafka.tool("kafka.admin.ConfigCommand", &change);
        kafka.stop();
        kafka.start_again();
    });
    publish(&tidegate, "second").await;
    troubled(&tidegate, "failed", "kafka.password_file").await;
    fs::write(&file, "changed-secret\n").unwrap();
    tidegate.caught_up("kafka", 0, PATIENCE).await;
    all_arrived(&kafka.url(), &topic, &["first", "second"]).await;
}

#[tokio::test]
async fn a_password_file_that_cannot_be_read_is_a_mistake_with_its_name() {
    let settings = settings("127.0.0.1:9", "allowed-x", &sasl("PLAIN"))
        .set("TIDEGATE_KAFKA_PASSWORD_FILE", "/nowhere/kafka")
        .postgres("postgres://tide@127.0.0.1:9/sensors")
        .set("TIDEGATE_POSTGRES_PASSWORD_FILE", "/nowhere/postgres");
    let mut tidegate = Tidegate::prepare(settings);
    tidegate.spawn();
    assert_eq!(tidegate.ended().await.code(), Some(64));
    for key in ["kafka", "postgres"] {
        let line = format!("tidegate: {key}.password_file: /nowhere/{key} cannot be read: No such file");
        assert!(tidegate.log().contains(&line), "{}", tidegate.log());
    }
}

/// Texts that must not be read anywhere, however they are written.
fn forms(secrets: &[&str], user: &str) -> Vec<String> {
    let mut forms = Vec::new();
    for secret in secrets {
        forms.push((*secret).to_owned());
        forms.push(STANDARD.encode(secret));
        // What SASL/PLAIN sends, and what Basic authentication sends.
        forms.push(STANDARD.encode(format!("\0{user}\0{secret}")));
        forms.push(STANDARD.encode(format!("{user}:{secret}")));
        forms.push(secret.bytes().map(|byte| format!("{byte:02x}")).collect());
    }
    forms
}

#[tokio::test]
async fn no_secret_is_printed_or_served_whatever_fails() {
    const WRONG: &str = "q7Wrong-kafka-secret";
    const DATABASE: &str = "q8Database-secret";
    const KEY: &str = "q9Key-secret";
    let secure = kafka_secure();
    let folder = tempfile::tempdir().unwrap();
    let (file, key_file) = (folder.path().join("password"), folder.path().join("key"));
    fs::write(&file, WRONG).unwrap();
    fs::write(&key_file, KEY).unwrap();
    let right = secret("writer");
    let secrets = forms(&[WRONG, DATABASE, KEY, &right], "writer");
    let topic = topic();
    for mechanism in ["PLAIN", "SCRAM-SHA-256"] {
        fs::write(&file, WRONG).unwrap();
        let properties = [&sasl(mechanism)[..], &[("debug", "all"), ("ssl.keystore.password", KEY)]].concat();
        let settings = settings(&secure.sasl, &topic, &properties)
            .set("TIDEGATE_KAFKA_USERNAME", "writer")
            .set("TIDEGATE_KAFKA_PASSWORD_FILE", file.to_str().unwrap())
            .set(
                "TIDEGATE_KAFKA_PROPERTY_FILES",
                &format!("{{ \"ssl.key.password\" = \"{}\" }}", key_file.display()),
            )
            .postgres(&format!("postgres://tide:{DATABASE}@127.0.0.1:9/sensors"))
            .set("TIDEGATE_LOG_LEVEL", "trace");
        let mut tidegate = Tidegate::start(settings.clone()).await;
        publish(&tidegate, mechanism).await;
        let mut seen = Vec::new();
        let mut look = async |tidegate: &Tidegate| {
            for path in
                ["/", "/health", "/health/ready", "/metrics", "/realtime/status", "/docs", "/openapi.json"]
            {
                let reply = http::get(tidegate.http, path).await;
                seen.push((path.to_owned(), String::from_utf8_lossy(&reply.body).into_owned()));
            }
            let arguments = fs::read(format!("/proc/{}/cmdline", tidegate.pid())).unwrap();
            seen.push(("the arguments".to_owned(), String::from_utf8_lossy(&arguments).into_owned()));
        };
        troubled(&tidegate, "failed", "kafka.password_file").await;
        look(&tidegate).await;
        fs::write(&file, &right).unwrap();
        tidegate.caught_up("kafka", 0, PATIENCE).await;
        look(&tidegate).await;
        tidegate.drain().await;
        let log = tidegate.log();
        assert!(log.contains("TRACE") && log.contains("librdkafka"), "the log has everything");
        seen.push(("the log".to_owned(), log));
        for extra in ["", "TIDEGATE_KAFKA_ACKS"] {
            let mut check = Command::new(Tidegate::program());
            check.arg("check").envs(settings.variables());
            if !extra.is_empty() {
                check.env(extra, KEY);
            }
            let output = check.output().unwrap();
            assert_eq!(output.status.code(), Some(if extra.is_empty() { 0 } else { 64 }));
            let printed = [output.stdout, output.stderr].concat();
            seen.push((format!("check {extra}"), String::from_utf8_lossy(&printed).into_owned()));
        }
        for (place, text) in &seen {
            assert!(!text.is_empty(), "{place}");
            for secret in &secrets {
                let line = text.lines().find(|line| line.contains(secret));
                assert_eq!(line, None, "{mechanism}: {place} shows {secret}");
            }
        }
    }
}
