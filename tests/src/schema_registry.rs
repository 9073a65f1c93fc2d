//! Routes whose encoding is Avro: the shipped program, a real Schema Registry and a real Kafka. What arrives is read by
//! the Avro project's own library, by the schema that the registry has under the id in the record.

mod gate;
mod java;

use std::net::SocketAddr;

use apache_avro::Schema;
use apache_avro::reader::datum::GenericDatumReader;
use apache_avro::types::Value;
use serde_json::json;

use crate::support::kafka::{Consumed, Topic};
use crate::support::mosquitto::{self, Version};
use crate::support::services::{self, Own, Service};
use crate::support::tidegate::{Settings, Tidegate};
use crate::support::{PATIENCE, eventually, http, root, unique};

use gate::Gate;

const FULL: &str = r#"{"deviceId": "monitor-7", "timestamp": 1753626600, "heartRate": 72, "systolic": 120,
    "diastolic": 80, "oxygenSaturation": 98, "bodyTemperature": 98.6, "latitude": 37.7749, "longitude": -122.4194}"#;
/// What the published generator of samples sends: without latitude and longitude.
const PUBLISHED_SAMPLE: &str = r#"{"deviceId": "monitor-7", "timestamp": 1753626601, "heartRate": 75, "systolic": 118,
    "diastolic": 79, "oxygenSaturation": 97, "bodyTemperature": 98.4}"#;

fn health_data() -> String {
    std::fs::read_to_string(root().join("deploy/schemas/HealthData.avsc")).unwrap()
}

/// A registry, asked by the test.
struct Registry {
    address: SocketAddr,
    path: String,
}

impl Registry {
    fn new(url: &str) -> Self {
        let (address, path) = url.strip_prefix("http://").unwrap().split_once('/').unwrap();
        Self { address: address.parse().unwrap(), path: format!("/{path}") }
    }

    async fn get(&self, path: &str) -> serde_json::Value {
        let reply = http::get(self.address, &format!("{}{path}", self.path)).await;
        assert_eq!(reply.status, 200, "{path}: {}", reply.text());
        reply.json()
    }

    async fn ask(&self, method: &str, path: &str, body: &serde_json::Value) -> serde_json::Value {
        let (path, headers) = (format!("{}{path}", self.path), [("Content-Type", "application/json")]);
        let reply = http::request(self.address, method, &path, &headers, body.to_string().as_bytes()).await;
        let reply = reply.unwrap();
        assert_eq!(reply.status, 200, "{path}: {}", reply.text());
        reply.json()
    }

    /// Registers a schema; returns its id.
    async fn register(&self, subject: &str, schema: &str) -> u64 {
        let path = format!("/subjects/{subject}/versions");
        self.ask("POST", &path, &json!({"schema": schema})).await["id"].as_u64().unwrap()
    }

    async fn set_compatibility(&self, subject: &str, level: &str) {
        self.ask("PUT", &format!("/config/{subject}"), &json!({"compatibility": level})).await;
    }

    /// The id that `record` names, and the value that is in it.
    async fn read(&self, record: &Consumed) -> (u64, Value) {
        assert_eq!(record.value[0], 0, "Confluent's wire format begins with 0: {:02x?}", record.value);
        let id = u32::from_be_bytes(record.value[1..5].try_into().unwrap());
        let answer = self.get(&format!("/schemas/ids/{id}")).await;
        let schema = Schema::parse_str(answer["schema"].as_str().unwrap()).unwrap();
        let mut rest = &record.value[5..];
        let value = GenericDatumReader::builder(&schema).build().unwrap().read_value(&mut rest).unwrap();
        assert_eq!(rest, b"", "nothing is behind the value");
        (u64::from(id), value)
    }
}

fn field<'a>(value: &'a Value, name: &str) -> &'a Value {
    let Value::Record(fields) = value else { panic!("{value:?} is no record") };
    &fields.iter().find(|(known, _)| known == name).unwrap_or_else(|| panic!("{value:?} has no {name}")).1
}

/// The Kafka topics of one test.
struct Names {
    topic: String,
    subject: String,
    dead_letters: String,
}

impl Names {
    fn new() -> Self {
        let topic = unique("device-data");
        Self { subject: format!("{topic}-value"), dead_letters: format!("{topic}-dead"), topic }
    }

    /// Carries `health/device_data` as Avro; `more` is what the route says beside that.
    fn settings(&self, registry: &str, more: &str) -> Settings {
        let Self { topic, dead_letters, .. } = self;
        let routes = format!(
            r##"[{{ filter = "health/device_data", topic = "{topic}", key = "/deviceId", encoding = "avro"{more} }}]"##
        );
        Settings::default()
            .kafka(services::kafka())
            .set("TIDEGATE_KAFKA_ROUTES", &routes)
            .set("TIDEGATE_KAFKA_DEAD_LETTER_TOPIC", dead_letters)
            .set("TIDEGATE_KAFKA_SCHEMA_REGISTRY_URL", registry)
            .set("TIDEGATE_KAFKA_SCHEMA_REGISTRY_REFRESH", "100ms")
    }

    /// As `settings`, with the schema of health readings in a file.
    fn with_file(&self, registry: &str) -> Settings {
        let file = root().join("deploy/schemas/HealthData.avsc");
        self.settings(registry, &format!(", schema = \"{}\"", file.display()))
    }

    async fn read(&self, count: usize) -> Vec<Consumed> {
        let mut topic = Topic::open(services::kafka(), &self.topic).await;
        topic.matching(count, PATIENCE, |_| true).await
    }
}

fn publish(tidegate: &Tidegate, payload: &str) {
    mosquitto::publish(tidegate.mqtt, Version::V5, 1, "health/device_data", payload.as_bytes(), &[]);
}

/// Waits until `/health` says `text` of Kafka while something is behind.
async fn waits_saying(tidegate: &Tidegate, text: &str) {
    eventually(&format!("/health says {text:?}"), PATIENCE, async || {
        let sink = tidegate.sink("kafka").await;
        (sink.detail.contains(text) && sink.lag_entries > 0 && sink.state != "up").then_some(())
    })
    .await;
    let rejected = tidegate.sink("kafka").await.rejected;
    assert_eq!(rejected, 0, "what waits is no dead letter");
}

#[tokio::test(flavor = "multi_thread")]
async fn health_readings_arrive_as_avro_once_in_transactions_over_kills() {
    const ROUNDS: usize = 3;
    const READINGS: usize = 6;
    let (names, registry) = (Names::new(), Registry::new(services::schema_registry()));
    let settings = names
        .with_file(services::schema_registry())
        .set("TIDEGATE_KAFKA_EXACTLY_ONCE", "true")
        .set("TIDEGATE_KAFKA_CURSOR_TOPIC", &format!("{}-cursors", names.topic));
    let mut tidegate = Tidegate::start(settings).await;
    for round in 0..ROUNDS {
        for reading in 0..READINGS {
            publish(&tidegate, &FULL.replace("72", &(round * READINGS + reading).to_string()));
        }
        publish(&tidegate, &FULL.replace("72", "\"fast\""));
        if round == 0 {
            eventually("a transaction with a dead letter is committed", PATIENCE, async || {
                (tidegate.sink("kafka").await.rejected == 1).then_some(())
            })
            .await;
        }
        tidegate.crash_and_restart().await;
    }
    let mut topic = Topic::open(services::kafka(), &names.topic).await;
    topic.matching(ROUNDS * READINGS, PATIENCE, |_| true).await;
    let mut dead = Topic::open(services::kafka(), &names.dead_letters).await;
    dead.matching(3, PATIENCE, |_| true).await;
    assert!(tidegate.drain().await.success());
    topic.read_to_end(PATIENCE).await;
    let mut rates = Vec::new();
    for record in &topic.records {
        rates.push(field(&registry.read(record).await.1, "heartRate").clone());
    }
    let expected: Vec<Value> = (0..18).map(Value::Int).collect();
    assert_eq!(rates, expected, "each once, in order");
    dead.read_to_end(PATIENCE).await;
    let reasons: Vec<_> = dead.records.iter().map(|record| record.header("tidegate_reason")).collect();
    assert_eq!(reasons, [Some("schema"); ROUNDS]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_health_reading_arrives_as_avro_and_what_does_not_fit_is_a_dead_letter_that_names_the_field() {
    let (names, registry) = (Names::new(), Registry::new(services::schema_registry()));
    let tidegate = Tidegate::start(names.with_file(services::schema_registry())).await;
    publish(&tidegate, FULL);
    publish(&tidegate, PUBLISHED_SAMPLE);
    publish(&tidegate, &FULL.replace("72", "\"fast\""));
    publish(&tidegate, "Temperature: 22.5°C");
    publish(&tidegate, &FULL.replace("72", "73"));

    let records = names.read(2).await;
    for (record, heart_rate) in records.iter().zip([72, 73]) {
        assert_eq!(record.key(), "monitor-7");
        let (id, value) = registry.read(record).await;
        assert_eq!(field(&value, "deviceId"), &Value::String("monitor-7".into()));
        assert_eq!(field(&value, "timestamp"), &Value::Long(1_753_626_600));
        assert_eq!(field(&value, "heartRate"), &Value::Int(heart_rate));
        assert_eq!(field(&value, "systolic"), &Value::Int(120));
        assert_eq!(field(&value, "diastolic"), &Value::Int(80));
        assert_eq!(field(&value, "oxygenSaturation"), &Value::Int(98));
        assert_eq!(field(&value, "bodyTemperature"), &Value::Double(98.6));
        assert_eq!(field(&value, "latitude"), &Value::Double(37.7749));
        assert_eq!(field(&value, "longitude"), &Value::Double(-122.4194));
        let latest = registry.get(&format!("/subjects/{}/versions/latest", names.subject)).await;
        assert_eq!(latest["id"].as_u64(), Some(id), "the subject is TOPIC-value");
    }
    assert_eq!(records.len(), 2);

    let mut dead = Topic::open(services::kafka(), &names.dead_letters).await;
    let dead = dead.matching(3, PATIENCE, |_| true).await;
    let told: Vec<_> = dead
        .iter()
        .map(|record| {
            assert_eq!(record.header("tidegate_reason"), Some("schema"));
            assert_eq!(record.header("tidegate_kafka_topic"), Some(names.topic.as_str()));
            (&record.value[..], record.header("tidegate_detail").unwrap().to_owned())
        })
        .collect();
    let detail = |payload: &str| {
        let found = told.iter().find(|(value, _)| *value == payload.as_bytes());
        found.unwrap_or_else(|| panic!("{payload} is unchanged among the dead letters")).1.clone()
    };
    let check = |payload: &str, expected: &str| {
        let detail = detail(payload);
        assert!(detail.contains(expected), "{payload}: {detail}");
    };
    check(PUBLISHED_SAMPLE, "/latitude: missing and the schema has no default");
    check(&FULL.replace("72", "\"fast\""), "/heartRate: expected int, found \"fast\"");
    check("Temperature: 22.5°C", "the payload: no JSON: ");
    let health = tidegate.sink("kafka").await;
    assert_eq!(health.rejected, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_is_away_holds_records_back_and_later_is_not_needed() {
    let (names, own) = (Names::new(), Own::start(Service::SchemaRegistry));
    let url = own.url();
    let registry = Registry::new(&url);
    own.stop();
    let tidegate = Tidegate::start(names.with_file(&url)).await;
    publish(&tidegate, FULL);
    waits_saying(&tidegate, &format!("the Schema Registry at {url} cannot be reached")).await;

    own.start_again();
    let id = registry.read(&names.read(1).await[0]).await.0;

    own.stop();
    tidegate.log_has("records go on with the schemas of before").await;
    publish(&tidegate, &FULL.replace("72", "73"));
    let records = names.read(2).await;
    assert_eq!(u32::from_be_bytes(records[1].value[1..5].try_into().unwrap()), id as u32);
    own.start_again();
    assert_eq!(field(&registry.read(&records[1]).await.1, "heartRate"), &Value::Int(73));
    assert_eq!(tidegate.sink("kafka").await.rejected, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_file_the_latest_schema_of_the_subject_counts() {
    let (names, registry) = (Names::new(), Registry::new(services::schema_registry()));
    let tidegate = Tidegate::start(names.settings(services::schema_registry(), "")).await;
    publish(&tidegate, FULL);
    waits_saying(&tidegate, &format!("has no subject \"{}\"", names.subject)).await;

    let first = registry.register(&names.subject, &health_data()).await;
    let record = names.read(1).await.remove(0);
    assert_eq!(registry.read(&record).await.0, first);

    let more = r#"{ "name": "source", "type": "string", "default": "unknown" }, { "name": "deviceId""#;
    let second =
        registry.register(&names.subject, &health_data().replace(r#"{ "name": "deviceId""#, more)).await;
    assert_ne!(first, second);
    tidegate.log_has(&format!("id={second} ")).await;
    publish(&tidegate, FULL);
    let record = names.read(2).await.remove(1);
    let (id, value) = registry.read(&record).await;
    assert_eq!(id, second);
    assert_eq!(field(&value, "source"), &Value::String("unknown".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schema_that_is_not_compatible_holds_records_back_until_somebody_acts() {
    let (names, registry) = (Names::new(), Registry::new(services::schema_registry()));
    let other = r#"{"type": "record", "name": "HealthData", "namespace": "com.example", "fields": []}"#;
    registry.register(&names.subject, other).await;
    registry.set_compatibility(&names.subject, "BACKWARD").await;
    let tidegate = Tidegate::start(names.with_file(services::schema_registry())).await;
    publish(&tidegate, FULL);
    waits_saying(&tidegate, "not compatible with those of the subject").await;
    registry.set_compatibility(&names.subject, "NONE").await;
    let record = names.read(1).await.remove(0);
    assert_eq!(field(&registry.read(&record).await.1, "heartRate"), &Value::Int(72));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_behind_tls_and_a_password_is_reached_with_both_and_says_what_is_wrong_without() {
    let (names, registry) = (Names::new(), Registry::new(services::schema_registry()));
    let gate = Gate::open(registry.address, "tidegate", "right").await;
    let url = format!("https://{}{}", gate.address, registry.path);
    let mut tidegate = Tidegate::start(names.with_file(&url)).await;
    publish(&tidegate, FULL);
    waits_saying(&tidegate, "shows a certificate that is not trusted").await;
    assert!(tidegate.drain().await.success());

    let folder = tidegate.folder().to_owned();
    std::fs::write(folder.join("authority.pem"), gate.authority()).unwrap();
    std::fs::write(folder.join("password"), "wrong\n").unwrap();
    tidegate.also("TIDEGATE_KAFKA_SCHEMA_REGISTRY_CA_FILE", "authority.pem");
    tidegate.spawn();
    tidegate.ready().await;
    waits_saying(&tidegate, "wants credentials: 401").await;
    assert!(tidegate.drain().await.success());

    tidegate.also("TIDEGATE_KAFKA_SCHEMA_REGISTRY_USERNAME", "tidegate");
    tidegate.also("TIDEGATE_KAFKA_SCHEMA_REGISTRY_PASSWORD_FILE", "password");
    tidegate.spawn();
    tidegate.ready().await;
    waits_saying(&tidegate, "does not accept the user \"tidegate\" with this password: 401").await;
    // Read anew for every attempt.
    std::fs::write(folder.join("password"), "right\n").unwrap();
    let record = names.read(1).await.remove(0);
    assert_eq!(field(&registry.read(&record).await.1, "heartRate"), &Value::Int(72));
    assert!(!tidegate.log().contains("right"), "the password is not in the log");
}

#[tokio::test(flavor = "multi_thread")]
async fn mistakes_in_what_routes_say_of_encodings_are_told_together() {
    let names = Names::new();
    let check = async |registry: &str, more: &str, expected: &[&str]| {
        let mut tidegate = Tidegate::prepare(names.settings(registry, more));
        tidegate.spawn();
        assert_eq!(tidegate.ended().await.code(), Some(64));
        let log = tidegate.log();
        for expected in expected {
            assert!(log.contains(expected), "{expected}: {log}");
        }
    };
    let of_route = |what: &str| format!("the route for \"health/device_data\": {what}");
    let (needs, empty) =
        (of_route("encoding = \"avro\" needs kafka.schema_registry.url"), of_route("the subject is empty"));
    check("", ", subject = \"\"", &[&needs, &empty]).await;
    let missing = of_route("schema: no-such-file.avsc cannot be read: No such file or directory");
    check("http://127.0.0.1:9", ", schema = \"no-such-file.avsc\"", &[&missing]).await;
}

#[test]
fn the_example_of_a_route_to_avro_can_be_used_where_it_lies() {
    let checked = std::process::Command::new(Tidegate::program())
        .args(["check", "--config", "health-avro.toml"])
        .env("TIDEGATE_KAFKA_BOOTSTRAP_SERVERS", "127.0.0.1:9")
        .current_dir(root().join("deploy"))
        .output()
        .unwrap();
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
    let shown = String::from_utf8(checked.stdout).unwrap();
    assert!(shown.contains("encoding = \"avro\", schema = \"schemas/HealthData.avsc\""), "{shown}");
}
