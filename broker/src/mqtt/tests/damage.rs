//! Damaged packets and random bytes: the decoder answers, whatever comes, and reads nothing beyond the packet.

use super::*;

const SEED: u64 = 0x7E1D_E6A7_E000_0002;

/// Valid packets of every type, to be damaged.
fn samples(version: Version, random: &mut Random) -> Vec<Vec<u8>> {
    let travelling = round_trip::travelling(random);
    let connect = Connect {
        will: Some(Will {
            topic: TopicName::new("will/étage").unwrap(),
            payload: b"gone",
            qos: Qos::AtLeastOnce,
            retain: true,
            delay_s: 7,
            properties: WireProperties::from_travelling(Properties::from_encoded(&travelling)),
        }),
        username: Some("user"),
        password: Some(b"password"),
        receive_maximum: 20,
        ..Connect::new(version, "client")
    };
    let head = PublishHead {
        dup: false,
        qos: random.pick(&[Qos::AtMostOnce, Qos::AtLeastOnce, Qos::ExactlyOnce]),
        retain: false,
        packet_id: 7,
        topic: "sensors/étage/temperature",
        properties: Properties::from_encoded(&travelling),
        message_expiry: None,
        subscription_ids: &[1, 70_000],
        topic_alias: Some(3),
        payload_bytes: 5,
    };
    let ack = Ack { reason_string: Some("why"), ..Ack::new(9, ReasonCode::Success) };
    let disconnect = Disconnect { reason_string: Some("why"), ..Disconnect::new(ReasonCode::Success) };
    let mut samples = vec![Vec::new(); 15];
    encode::connect(&mut samples[0], &connect);
    encode::publish(&mut samples[1], version, &head, b"23.5 ");
    encode::publish(&mut samples[2], version, &PublishHead { subscription_ids: &[], ..head }, b"23.5 ");
    encode::ack(&mut samples[3], version, AckType::PubAck, &ack);
    encode::ack(&mut samples[4], version, AckType::PubRec, &ack);
    encode::ack(&mut samples[5], version, AckType::PubRel, &ack);
    encode::ack(&mut samples[6], version, AckType::PubComp, &ack);
    let filters = ["a/+/#", "$share/g/é", "b"];
    let subscriptions = filters.map(|filter| Subscription::new(filter, Qos::AtLeastOnce));
    encode::subscribe(&mut samples[7], version, 1, Some(300), subscriptions);
    encode::unsubscribe(&mut samples[8], version, 2, filters);
    encode::suback(&mut samples[9], version, 1, &[ReasonCode::Success, ReasonCode::GrantedQos1]);
    encode::unsuback(&mut samples[10], version, 2, &[ReasonCode::Success]);
    encode::disconnect(&mut samples[11], version, &disconnect);
    encode::pingreq(&mut samples[12]);
    encode::connack(
        &mut samples[13],
        version,
        &ConnAck { assigned_client_id: Some("x"), ..ConnAck::default() },
    );
    let auth = Auth {
        reason: ReasonCode::ContinueAuthentication,
        method: Some("m"),
        data: Some(b"d"),
        reason_string: None,
        user_properties: UserProperties::NONE,
    };
    encode::auth(&mut samples[14], &auth);
    samples
}

fn damage(bytes: &mut Vec<u8>, random: &mut Random) {
    for _ in 0..1 + random.below(4) {
        let at = random.below(bytes.len().max(1));
        match random.below(7) {
            _ if bytes.is_empty() => bytes.push(random.next() as u8),
            0 => bytes[at] ^= 1 << random.below(8),
            1 => bytes[at] = random.next() as u8,
            2 => bytes[at] = random.pick(&[0, 1, 0x7F, 0x80, 0xFF]),
            3 => bytes.insert(at, random.next() as u8),
            4 => drop(bytes.remove(at)),
            5 => bytes.truncate(at),
            _ => {
                let copied = bytes[at..].to_vec();
                bytes.extend(copied);
            }
        }
    }
    // Often with a Remaining Length that fits, so that the damage is found in the body.
    if random.yes() && (2..0x82).contains(&bytes.len()) {
        bytes[1] = (bytes.len() - 2) as u8;
    }
}

/// Walks everything a packet borrows, as the broker would.
fn walk(packet: &Packet<'_>) -> usize {
    let mut scratch = Vec::new();
    let of_user = |properties: UserProperties<'_>| -> usize {
        properties.iter().map(|(name, value)| name.len() + value.len()).sum()
    };
    match packet {
        Packet::Connect(connect) => {
            let will = connect.will.as_ref().map_or(0, |will| will.travelling(&mut scratch).iter().count());
            will + of_user(connect.user_properties)
        }
        Packet::ConnAck(connack) => of_user(connack.user_properties),
        Packet::Publish(publish) => {
            assert!(publish.topic.is_empty() == publish.topic_name().is_none());
            assert!(publish.topic.is_empty() || TopicName::new(publish.topic).is_ok());
            let travelling = publish.travelling(&mut scratch);
            let whole: usize = travelling.iter().map(|property| property_bytes(&property)).sum();
            assert_eq!(whole, travelling.encoded().len(), "what travels can be read to its end");
            publish.subscription_ids().count()
        }
        Packet::PubAck(ack) | Packet::PubRec(ack) | Packet::PubRel(ack) | Packet::PubComp(ack) => {
            of_user(ack.user_properties)
        }
        Packet::Subscribe(subscribe) => {
            let count = subscribe.subscriptions.iter().count();
            assert!(count > 0);
            count
        }
        Packet::SubAck(suback) => suback.codes.iter().count(),
        Packet::Unsubscribe(unsubscribe) => unsubscribe.filters.iter().map(str::len).sum(),
        Packet::UnsubAck(unsuback) => unsuback.codes.iter().count(),
        Packet::PingReq | Packet::PingResp => 0,
        Packet::Disconnect(disconnect) => of_user(disconnect.user_properties),
        Packet::Auth(auth) => of_user(auth.user_properties),
    }
}

fn property_bytes(property: &crate::record::Property<'_>) -> usize {
    use crate::record::Property;
    1 + match property {
        Property::PayloadFormat(_) => 1,
        Property::MessageExpiry(_) => 4,
        Property::ContentType(text) | Property::ResponseTopic(text) => 2 + text.len(),
        Property::CorrelationData(data) => 2 + data.len(),
        Property::User(name, value) => 4 + name.len() + value.len(),
    }
}

/// Decodes `bytes` in every way and checks what must hold of any answer.
fn attack(bytes: &[u8], note: &dyn Fn() -> String) {
    for version in VERSIONS {
        let either = decode(bytes, version, PACKET_BYTES_MAX);
        let client = decode_from_client(bytes, version, PACKET_BYTES_MAX);
        match &either {
            Ok(Decoded::Packet { packet, bytes: taken }) => {
                assert!((2..=bytes.len()).contains(taken), "{}", note());
                walk(packet);
                // What follows the packet does not matter, and less than the packet is incomplete.
                assert_eq!(decode(&bytes[..*taken], version, PACKET_BYTES_MAX), either, "{}", note());
                let cut = decode(&bytes[..taken - 1], version, PACKET_BYTES_MAX);
                assert!(matches!(cut, Ok(Decoded::Incomplete { .. })), "{}: {cut:?}", note());
                let small = decode(bytes, version, taken - 1);
                assert!(matches!(small, Err(DecodeError::TooLarge { .. })), "{}: {small:?}", note());
                assert!(client == either || client.is_err(), "{}", note());
            }
            Ok(Decoded::Incomplete { needed }) => {
                assert!(needed.is_none_or(|needed| needed > bytes.len()), "{}", note());
                assert!(client == either || client.is_err(), "{}", note());
            }
            Err(error) => {
                assert!(error.reason().is_failure() && !error.to_string().is_empty(), "{}", note());
                assert!(client.is_err(), "{}", note());
            }
        }
    }
    match decode_connect(bytes, PACKET_BYTES_MAX) {
        Ok(Decoded::Packet { bytes: taken, .. }) => assert!(taken <= bytes.len(), "{}", note()),
        Ok(Decoded::Incomplete { .. }) => {}
        Err(error) => {
            let mut out = Vec::new();
            error.answer(&mut out);
            assert!(out.is_empty() || out[0] == 0x20, "{}", note());
        }
    }
}

#[test]
fn damaged_packets_are_answered_and_never_a_panic() {
    for round in 0..3_000 {
        let seed = SEED.wrapping_add(round);
        let mut random = Random(seed);
        let version = random.pick(&VERSIONS);
        for mut bytes in samples(version, &mut random) {
            damage(&mut bytes, &mut random);
            attack(&bytes, &|| format!("seed {seed:#x} {version:?} {bytes:02x?}"));
        }
    }
}

#[test]
fn random_bytes_are_answered_and_never_a_panic() {
    for round in 0..30_000 {
        let seed = SEED.wrapping_sub(round);
        let mut random = Random(seed);
        let mut bytes = random.bytes(64);
        if bytes.len() > 2 && random.yes() {
            bytes[1] = bytes.len() as u8 - 2;
        }
        attack(&bytes, &|| format!("seed {seed:#x} {bytes:02x?}"));
    }
}

#[test]
fn one_changed_bit_anywhere_is_answered() {
    for version in VERSIONS {
        for sample in samples(version, &mut Random(SEED)) {
            for at in 0..sample.len() {
                for bit in 0..8 {
                    let mut bytes = sample.clone();
                    bytes[at] ^= 1 << bit;
                    attack(&bytes, &|| format!("{version:?}, byte {at}, bit {bit}: {bytes:02x?}"));
                }
            }
        }
    }
}
