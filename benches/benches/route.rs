//! What it costs to find a record's Kafka topic and key, per record.
//!
//! `remembered` looks topics up that were seen before, as a fleet's are; `new` has more topics than are remembered, so
//! that each is matched against the routes anew.

#![allow(missing_docs, reason = "criterion's macros make functions without docs")]

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use tidegate::route::{Routes, default_routes};
use tidegate_broker::topic::TopicName;

fn topics(count: usize) -> Vec<String> {
    (0..count).map(|number| format!("sensors/device-{number:05}/temperature")).collect()
}

fn route(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("route");
    for (name, count) in [("remembered", 1_000), ("new", 100_000)] {
        let topics = topics(count);
        let mut routes = Routes::new(&default_routes()).expect("the default routes are right");
        group.throughput(Throughput::Elements(count as u64));
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                for topic in &topics {
                    let topic = TopicName::new(topic).expect("a legal topic");
                    black_box(routes.destination(topic, "client", b"23.5"));
                }
            });
        });
    }
    group.finish();
}

criterion_group!(benches, route);
criterion_main!(benches);
