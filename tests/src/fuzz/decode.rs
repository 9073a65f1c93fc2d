//! Packets from a client that has connected. The first byte chooses the version, the rest is what the client sends.

use tidegate_broker::mqtt::encode::{self, AckType, PublishHead};
use tidegate_broker::mqtt::{
    Ack, Decoded, PACKET_BYTES_MAX, Packet, Publish, Version, decode, decode_from_client,
};
use tidegate_broker::topic::TopicFilter;

const VERSIONS: [Version; 3] = [Version::V31, Version::V311, Version::V5];

/// Reads `bytes` packet after packet, as a connection does.
pub(crate) fn check(bytes: &[u8]) {
    let Some((&choice, mut rest)) = bytes.split_first() else { return };
    let version = VERSIONS[usize::from(choice) % VERSIONS.len()];
    loop {
        match decode_from_client(rest, version, PACKET_BYTES_MAX) {
            Ok(Decoded::Incomplete { needed }) => {
                assert!(needed.is_none_or(|needed| needed > rest.len()), "a whole packet is not waited for");
                return;
            }
            Ok(Decoded::Packet { packet, bytes: taken }) => {
                assert!(0 < taken && taken <= rest.len());
                for cut in [0, 1, taken / 2, taken - 1] {
                    let decoded = decode_from_client(&rest[..cut], version, PACKET_BYTES_MAX);
                    assert!(matches!(decoded, Ok(Decoded::Incomplete { .. })), "cut at {cut}: {decoded:?}");
                }
                let either = decode(&rest[..taken], version, PACKET_BYTES_MAX);
                assert!(matches!(either, Ok(Decoded::Packet { bytes, .. }) if bytes == taken), "{either:?}");
                check_packet(version, &packet);
                rest = &rest[taken..];
            }
            Err(error) => {
                assert!(error.reason().is_failure());
                return;
            }
        }
    }
}

/// Everything in a packet can be walked through, and is encoded and decoded again as it was.
fn check_packet(version: Version, packet: &Packet<'_>) {
    match packet {
        Packet::Publish(publish) => check_publish(version, publish),
        Packet::PubAck(ack) => check_ack(version, AckType::PubAck, ack),
        Packet::PubRec(ack) => check_ack(version, AckType::PubRec, ack),
        Packet::PubRel(ack) => check_ack(version, AckType::PubRel, ack),
        Packet::PubComp(ack) => check_ack(version, AckType::PubComp, ack),
        Packet::Subscribe(subscribe) => {
            assert_ne!(subscribe.packet_id, 0);
            let mut count = 0;
            for subscription in subscribe.subscriptions {
                let _ = TopicFilter::new(subscription.filter);
                count += 1;
            }
            assert!(count > 0, "[MQTT-3.8.3-2]");
            let mut out = Vec::new();
            let identifier = subscribe.subscription_id;
            encode::subscribe(&mut out, version, subscribe.packet_id, identifier, subscribe.subscriptions);
            assert_whole(&out, version);
        }
        Packet::Unsubscribe(unsubscribe) => {
            assert_ne!(unsubscribe.packet_id, 0);
            assert!(unsubscribe.filters.into_iter().count() > 0, "[MQTT-3.10.3-2]");
            let mut out = Vec::new();
            encode::unsubscribe(&mut out, version, unsubscribe.packet_id, unsubscribe.filters);
            assert_whole(&out, version);
        }
        Packet::Disconnect(disconnect) => {
            let mut out = Vec::new();
            encode::disconnect(&mut out, version, disconnect);
            assert_whole(&out, version);
        }
        Packet::Auth(auth) => {
            assert!(version.is_v5());
            let mut out = Vec::new();
            encode::auth(&mut out, auth);
            assert_whole(&out, version);
        }
        Packet::PingReq => {}
        other => panic!("a client does not send {other:?}"),
    }
}

fn check_publish(version: Version, publish: &Publish<'_>) {
    let mut scratch = Vec::new();
    let properties = publish.travelling(&mut scratch);
    let subscription_ids: Vec<u32> = publish.subscription_ids().collect();
    let head = PublishHead {
        dup: publish.dup,
        qos: publish.qos,
        retain: publish.retain,
        packet_id: publish.packet_id,
        topic: publish.topic,
        properties,
        message_expiry: None,
        subscription_ids: &subscription_ids,
        topic_alias: publish.topic_alias,
        payload_bytes: publish.payload.len(),
    };
    let mut out = Vec::new();
    encode::publish(&mut out, version, &head, publish.payload);
    assert_eq!(out.len(), head.packet_bytes(version));
    let Ok(Decoded::Packet { packet: Packet::Publish(again), bytes }) =
        decode(&out, version, PACKET_BYTES_MAX)
    else {
        panic!("{publish:?} is encoded as {out:02x?}");
    };
    assert_eq!(bytes, out.len());
    assert_eq!(
        (again.dup, again.qos, again.retain, again.topic, again.packet_id, again.topic_alias, again.payload),
        (
            publish.dup,
            publish.qos,
            publish.retain,
            publish.topic,
            publish.packet_id,
            publish.topic_alias,
            publish.payload
        )
    );
    let mut scratch = Vec::new();
    assert_eq!(again.travelling(&mut scratch).encoded(), properties.encoded());
}

fn check_ack(version: Version, ack_type: AckType, ack: &Ack<'_>) {
    assert_ne!(ack.packet_id, 0, "[MQTT-2.2.1-3]");
    let mut out = Vec::new();
    encode::ack(&mut out, version, ack_type, ack);
    assert_whole(&out, version);
}

fn assert_whole(out: &[u8], version: Version) {
    let decoded = decode(out, version, PACKET_BYTES_MAX);
    assert!(
        matches!(decoded, Ok(Decoded::Packet { bytes, .. }) if bytes == out.len()),
        "{out:02x?} is decoded as {decoded:?}"
    );
}
