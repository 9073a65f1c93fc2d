//! Kafka's own console consumer reads what a route makes, with the Avro deserializer of the registry's project for Java.

use serde_json::{Value, json};

use super::{FULL, Names, publish};
use crate::support::services;
use crate::support::tidegate::Tidegate;

const DESERIALIZER: &str = "io.apicurio.registry.serde.avro.AvroKafkaDeserializer";

/// Reads `count` records of `topic` from its beginning: key and value, as the consumer prints them.
async fn read(topic: &str, count: usize) -> Vec<(String, Value)> {
    let registry = services::schema_registry();
    let root = registry.strip_suffix("/apis/ccompat/v7").expect("it is Apicurio's Confluent-compatible API");
    let printed = tokio::process::Command::new("java")
        .args(["-Xmx128m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-cp", &services::serde()])
        .arg("org.apache.kafka.tools.consumer.ConsoleConsumer")
        .args(["--bootstrap-server", services::kafka(), "--topic", topic, "--from-beginning"])
        .args(["--max-messages", &count.to_string(), "--timeout-ms", "60000"])
        .args(["--property", "print.key=true"])
        .args(["--property", &format!("value.deserializer={DESERIALIZER}")])
        .args(["--property", &format!("value.deserializer.apicurio.registry.url={root}/apis/registry/v2")])
        // Confluent's wire format: a byte 0, the id of the schema in four bytes, Avro.
        .args(["--property", "value.deserializer.apicurio.registry.as-confluent=true"])
        .args(["--property", "value.deserializer.apicurio.registry.use-id=contentId"])
        .kill_on_drop(true)
        .output()
        .await
        .expect("java can be run: tests/services install serde");
    let (said, errors) = (String::from_utf8_lossy(&printed.stdout), String::from_utf8_lossy(&printed.stderr));
    // A line with a tab; what it logs goes to the same place.
    let records = said.lines().filter_map(|line| line.split_once('\t'));
    let records: Vec<_> = records
        .filter_map(|(key, value)| Some((key.to_owned(), serde_json::from_str(value).ok()?)))
        .collect();
    assert_eq!(records.len(), count, "{said}{errors}");
    records
}

#[tokio::test(flavor = "multi_thread")]
async fn a_java_consumer_reads_every_field_of_a_health_reading() {
    let names = Names::new();
    let tidegate = Tidegate::start(names.with_file(services::schema_registry())).await;
    let other: Value = json!({
        "deviceId": "é", "timestamp": i64::MIN, "heartRate": i32::MAX, "systolic": -1, "diastolic": 0,
        "oxygenSaturation": 64, "bodyTemperature": 1e-300, "latitude": -90.0, "longitude": 180,
    });
    publish(&tidegate, FULL);
    publish(&tidegate, &other.to_string());
    let records = read(&names.topic, 2).await;
    for expected in [serde_json::from_str(FULL).unwrap(), other] {
        let device = expected["deviceId"].as_str().unwrap();
        let (_, value) = records.iter().find(|(key, _)| key == device).expect("the key is the device");
        let fields = expected.as_object().unwrap();
        assert_eq!(value.as_object().unwrap().len(), fields.len());
        for (name, field) in fields {
            let read = &value[name];
            // 180 is a double in the schema.
            let is_same = read == field || (read.is_f64() && read.as_f64() == field.as_f64());
            assert!(is_same, "{name}: {read}, not {field}");
        }
    }
}
