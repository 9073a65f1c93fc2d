//! The codec alone: bytes to packets and packets to bytes, one packet per iteration, no I/O and no allocation.
//!
//! `decode` reads with `decode_from_client`, which is what the broker runs, from a buffer that holds many packets
//! one after another, as a busy connection's does. `encode` appends to a buffer that is cleared now and then.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use tidegate_broker::mqtt::encode::{self, PublishHead};
use tidegate_broker::mqtt::{
    Connect, Decoded, PACKET_BYTES_MAX, Packet, ReasonCode, Subscription, Version, decode_connect,
    decode_from_client,
};
use tidegate_broker::record::{Properties, Qos};

const TOPIC: &str = "sensors/sensor01/temperature";
const PAYLOAD: [u8; 40] = *b"{\"temp\":23.5,\"ts\":1753626600,\"unit\":\"C\"}";
/// A content type, a user property and an expiry.
const PROPERTIES: &[u8] = b"\x02\x00\x00\x0E\x10\x03\x00\x10application/json\x26\x00\x04site\x00\x05north";
/// Packets in the buffer that is decoded.
const PACKETS: usize = 1_000;

const fn head(qos: Qos, properties: &'static [u8]) -> PublishHead<'static> {
    PublishHead {
        dup: false,
        qos,
        retain: false,
        packet_id: 4_711,
        topic: TOPIC,
        properties: Properties::from_encoded(properties),
        message_expiry: None,
        subscription_ids: &[],
        topic_alias: None,
        payload_bytes: PAYLOAD.len(),
    }
}

fn repeated(write: impl Fn(&mut Vec<u8>)) -> Vec<u8> {
    let mut out = Vec::new();
    for _ in 0..PACKETS {
        write(&mut out);
    }
    out
}

/// Decodes every packet of `bytes`; returns how many there were.
fn decode_all(mut bytes: &[u8], version: Version) -> usize {
    let mut packets = 0;
    while let Decoded::Packet { packet, bytes: taken } =
        decode_from_client(bytes, version, PACKET_BYTES_MAX).expect("the bench encodes valid packets")
    {
        black_box::<&Packet<'_>>(&packet);
        packets += 1;
        bytes = &bytes[taken..];
    }
    packets
}

fn decoding(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("decode");
    group.throughput(Throughput::Elements(PACKETS as u64));
    let mut bench = |name: &str, version, bytes: Vec<u8>| {
        assert_eq!(decode_all(&bytes, version), PACKETS);
        group.bench_function(name, |bencher| bencher.iter(|| decode_all(black_box(&bytes), version)));
    };
    for (name, version, qos, properties) in [
        ("publish QoS 0, 3.1.1", Version::V311, Qos::AtMostOnce, &b""[..]),
        ("publish QoS 1, 3.1.1", Version::V311, Qos::AtLeastOnce, b""),
        ("publish QoS 1, 5.0", Version::V5, Qos::AtLeastOnce, b""),
        ("publish QoS 1, 5.0 with three properties", Version::V5, Qos::AtLeastOnce, PROPERTIES),
    ] {
        let bytes = repeated(|out| {
            encode::publish(out, version, &head(qos, properties), &PAYLOAD);
        });
        bench(name, version, bytes);
    }
    bench(
        "puback, 3.1.1",
        Version::V311,
        repeated(|out| encode::puback(out, Version::V311, 1, ReasonCode::Success)),
    );
    bench(
        "puback, 5.0",
        Version::V5,
        repeated(|out| encode::puback(out, Version::V5, 1, ReasonCode::Success)),
    );
    let subscription = [Subscription::new("sensors/+/temperature", Qos::AtLeastOnce)];
    bench(
        "subscribe, 5.0",
        Version::V5,
        repeated(|out| encode::subscribe(out, Version::V5, 1, None, subscription)),
    );
    group.finish();

    let mut connect = Vec::new();
    encode::connect(&mut connect, &Connect::new(Version::V5, "sensor01"));
    criterion.bench_function("decode/connect, 5.0", |bencher| {
        bencher.iter(|| decode_connect(black_box(&connect), PACKET_BYTES_MAX).map(drop));
    });
}

fn encoding(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("encode");
    group.throughput(Throughput::Elements(PACKETS as u64));
    let mut out = Vec::new();
    let mut bench = |name: &str, write: &dyn Fn(&mut Vec<u8>)| {
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                out.clear();
                for _ in 0..PACKETS {
                    write(&mut out);
                }
                black_box(out.len())
            });
        });
    };
    for (name, version, properties) in [
        ("publish, 3.1.1", Version::V311, &b""[..]),
        ("publish, 5.0 with three properties", Version::V5, PROPERTIES),
    ] {
        bench(name, &|out| {
            encode::publish(out, version, black_box(&head(Qos::AtLeastOnce, properties)), &PAYLOAD);
        });
    }
    bench("publish head with another expiry, 5.0", &|out| {
        let head = PublishHead { message_expiry: Some(9), ..head(Qos::AtLeastOnce, PROPERTIES) };
        encode::publish_head(out, Version::V5, black_box(&head));
    });
    bench("puback", &|out| encode::puback(out, Version::V5, black_box(1), ReasonCode::Success));
    group.finish();
}

criterion_group!(benches, decoding, encoding);
criterion_main!(benches);
