//! What it costs to make a JSON payload into Avro, per record: the health reading of deploy/schemas/HealthData.avsc.
//!
//! `tidegate` is the encoder of Kafka routes. `apache-avro` is what one would write with the Avro project's library: the
//! payload read by serde_json, its value resolved to the schema and written. It tells less of what does not fit.

#![allow(missing_docs, reason = "criterion's macros make functions without docs")]

use std::hint::black_box;

use apache_avro::writer::datum::GenericDatumWriter;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use tidegate::kafka::avro::Schema;

const SCHEMA: &str = include_str!("../../deploy/schemas/HealthData.avsc");

fn payloads(count: u32) -> Vec<Vec<u8>> {
    let payload = |number: u32| {
        format!(
            "{{\"deviceId\":\"monitor-{number}\",\"timestamp\":{},\"heartRate\":{},\"systolic\":120,\"diastolic\":80,\
             \"oxygenSaturation\":98,\"bodyTemperature\":98.6,\"latitude\":37.7749,\"longitude\":-122.4194}}",
            1_753_626_600 + number,
            60 + number % 40,
        )
    };
    (0..count).map(|number| payload(number).into_bytes()).collect()
}

fn avro(criterion: &mut Criterion) {
    const COUNT: u32 = 1_000;
    let payloads = payloads(COUNT);
    let mut group = criterion.benchmark_group("avro");
    group.throughput(Throughput::Elements(u64::from(COUNT)));
    let schema = Schema::parse(SCHEMA, &[]).expect("the schema is right");
    group.bench_function("tidegate", |bencher| {
        bencher.iter(|| {
            for payload in &payloads {
                let mut out = Vec::with_capacity(payload.len());
                schema.encode(payload, &mut out).expect("the payload fits");
                black_box(out);
            }
        });
    });
    let schema = apache_avro::Schema::parse_str(SCHEMA).expect("the schema is right");
    let writer = GenericDatumWriter::builder(&schema).build().expect("the schema is right");
    group.bench_function("apache-avro", |bencher| {
        bencher.iter(|| {
            for payload in &payloads {
                let json: serde_json::Value = serde_json::from_slice(payload).expect("the payload is JSON");
                let value = apache_avro::types::Value::try_from(json).expect("JSON has a value");
                let value = value.resolve(&schema).expect("the payload fits");
                black_box(writer.write_value_to_vec(value).expect("the value fits"));
            }
        });
    });
    group.finish();
}

criterion_group!(benches, avro);
criterion_main!(benches);
