//! Random valid packets: what is encoded is decoded again as it was.

use super::*;

const SEED: u64 = 0x7E1D_E6A7_E000_0001;

/// A string of up to `length_end` characters of one to four bytes.
fn text(random: &mut Random, length_end: usize) -> String {
    (0..random.below(length_end))
        .map(|_| random.pick(&['a', 'Z', '0', ' ', '.', 'é', '漢', '🌡', '\u{FEFF}']))
        .collect()
}

fn topic(random: &mut Random) -> String {
    let mut topic = text(random, 12);
    for _ in 0..random.below(4) {
        topic.push('/');
        topic.push_str(&text(random, 8));
    }
    if topic.is_empty() { "t".to_owned() } else { topic }
}

fn filter(random: &mut Random) -> String {
    let filter = topic(random);
    match random.below(4) {
        0 => format!("+/{filter}"),
        1 => format!("{filter}/#"),
        2 => format!("$share/group/{filter}"),
        _ => filter,
    }
}

fn packet_id(random: &mut Random) -> u16 {
    random.below(65_535) as u16 + 1
}

fn user_properties(random: &mut Random) -> Vec<u8> {
    let mut out = Vec::new();
    for _ in 0..random.below(3) {
        encode::user_property(&mut out, &text(random, 9), &text(random, 200));
    }
    out
}

/// Properties that travel, in any order.
pub(super) fn travelling(random: &mut Random) -> Vec<u8> {
    let mut out = user_properties(random);
    let mut kinds = [1u8, 2, 3, 8, 9];
    for at in (1..kinds.len()).rev() {
        kinds.swap(at, random.below(at + 1));
    }
    for kind in &kinds[..random.below(6)] {
        out.push(*kind);
        match kind {
            1 => out.push(random.below(2) as u8),
            2 => out.extend((random.next() as u32).to_be_bytes()),
            3 => out.extend(s(text(random, 20))),
            8 => out.extend(s(topic(random))),
            _ => out.extend(s(random.bytes(30))),
        }
    }
    out.extend(user_properties(random));
    out
}

/// Decodes one whole packet and finds all its strict prefixes incomplete.
#[track_caller]
fn decoded<'a>(bytes: &'a [u8], version: Version, note: &str) -> Packet<'a> {
    for cut in 0..bytes.len() {
        match decode(&bytes[..cut], version, PACKET_BYTES_MAX) {
            Ok(Decoded::Incomplete { needed }) => {
                assert!(needed.is_none_or(|needed| needed == bytes.len()), "{note}: cut at {cut}");
            }
            other => panic!("{note}: cut at {cut}: {other:?}"),
        }
    }
    match decode(bytes, version, PACKET_BYTES_MAX) {
        Ok(Decoded::Packet { packet, bytes: taken }) => {
            assert_eq!(taken, bytes.len(), "{note}");
            packet
        }
        other => panic!("{note}: {other:?}: {bytes:02x?}"),
    }
}

fn rounds(round: impl Fn(&mut Random, Version, &str)) {
    for count in 0..1_000 {
        let version = VERSIONS[count % 3];
        let seed = SEED.wrapping_add(count as u64);
        round(&mut Random(seed), version, &format!("seed {seed:#x} {version:?}"));
    }
}

#[test]
fn publishes_come_back_as_they_were() {
    rounds(|random, version, note| {
        let v5 = version.is_v5();
        let qos = random.pick(&[Qos::AtMostOnce, Qos::AtLeastOnce, Qos::ExactlyOnce]);
        let (topic, travelling, payload) = (topic(random), travelling(random), random.bytes(300));
        let subscription_ids: Vec<u32> =
            (0..random.below(3)).map(|_| 1 + random.below(REMAINING_LENGTH_MAX) as u32).collect();
        let topic_alias = random.maybe(packet_id);
        let unnamed = v5 && topic_alias.is_some() && random.yes();
        let head = PublishHead {
            dup: qos != Qos::AtMostOnce && random.yes(),
            qos,
            retain: random.yes(),
            packet_id: packet_id(random),
            topic: if unnamed { "" } else { &topic },
            properties: Properties::from_encoded(&travelling),
            message_expiry: random.maybe(|random| random.next() as u32),
            subscription_ids: &subscription_ids,
            topic_alias,
            payload_bytes: payload.len(),
        };
        let mut out = Vec::new();
        let packet_id_at = encode::publish(&mut out, version, &head, &payload);
        assert_eq!(out.len(), head.packet_bytes(version), "{note}");
        let Packet::Publish(publish) = decoded(&out, version, note) else { panic!("{note}") };
        assert_eq!((publish.dup, publish.qos, publish.retain), (head.dup, qos, head.retain), "{note}");
        assert_eq!((publish.topic, publish.payload), (head.topic, payload.as_slice()), "{note}");
        if qos == Qos::AtMostOnce {
            assert_eq!(publish.packet_id, 0, "{note}");
        } else {
            assert_eq!(publish.packet_id, head.packet_id, "{note}");
            assert_eq!(out[packet_id_at..packet_id_at + 2], head.packet_id.to_be_bytes(), "{note}");
        }
        let mut scratch = Vec::new();
        let properties = publish.travelling(&mut scratch);
        if !v5 {
            assert!(properties.is_empty() && publish.topic_alias.is_none(), "{note}");
            return;
        }
        assert_eq!(publish.topic_alias, topic_alias, "{note}");
        assert_eq!(publish.subscription_ids().collect::<Vec<_>>(), subscription_ids, "{note}");
        let sent = head.properties;
        assert_eq!(properties.iter().count(), sent.iter().count(), "{note}");
        for (left, right) in properties.iter().zip(sent) {
            match (left, head.message_expiry) {
                (crate::record::Property::MessageExpiry(left), Some(replaced)) => {
                    assert_eq!(left, replaced, "{note}")
                }
                _ => assert_eq!(left, right, "{note}"),
            }
        }
    });
}

#[test]
fn acknowledgements_come_back_as_they_were() {
    rounds(|random, version, note| {
        let (reason_string, user) = (text(random, 200), user_properties(random));
        let ack_type = random.pick(&[AckType::PubAck, AckType::PubRec, AckType::PubRel, AckType::PubComp]);
        let failure = match ack_type {
            AckType::PubAck | AckType::PubRec => ReasonCode::QuotaExceeded,
            AckType::PubRel | AckType::PubComp => ReasonCode::PacketIdentifierNotFound,
        };
        let ack = Ack {
            packet_id: packet_id(random),
            reason: random.pick(&[ReasonCode::Success, failure]),
            reason_string: random.maybe(|_| reason_string.as_str()),
            user_properties: UserProperties::from_encoded(&user),
        };
        let mut out = Vec::new();
        encode::ack(&mut out, version, ack_type, &ack);
        let expected = if version.is_v5() { ack } else { Ack::new(ack.packet_id, ReasonCode::Success) };
        let expected = match ack_type {
            AckType::PubAck => Packet::PubAck(expected),
            AckType::PubRec => Packet::PubRec(expected),
            AckType::PubRel => Packet::PubRel(expected),
            AckType::PubComp => Packet::PubComp(expected),
        };
        assert_eq!(decoded(&out, version, note), expected, "{note}");
    });
}

#[test]
fn connects_come_back_as_they_were() {
    rounds(|random, version, note| {
        let v5 = version.is_v5();
        let texts: Vec<String> = (0..4).map(|_| text(random, 40)).collect();
        let (will_topic, will_payload, will_properties) =
            (topic(random), random.bytes(200), travelling(random));
        let (password, data, user) = (random.bytes(40), random.bytes(40), user_properties(random));
        let username = random.maybe(|_| texts[1].as_str());
        let mut connect = Connect {
            clean_start: random.yes(),
            keep_alive_s: random.next() as u16,
            will: random.maybe(|random| Will {
                topic: TopicName::new(&will_topic).unwrap(),
                payload: &will_payload,
                qos: random.pick(&[Qos::AtMostOnce, Qos::AtLeastOnce, Qos::ExactlyOnce]),
                retain: random.yes(),
                delay_s: if v5 { random.below(3) as u32 } else { 0 },
                properties: WireProperties::from_travelling(if v5 {
                    Properties::from_encoded(&will_properties)
                } else {
                    Properties::NONE
                }),
            }),
            username,
            password: if username.is_some() || v5 { random.maybe(|_| password.as_slice()) } else { None },
            ..Connect::new(version, &texts[0])
        };
        if v5 {
            connect.session_expiry_s = random.pick(&[0, 1, u32::MAX]);
            connect.receive_maximum = random.pick(&[1, 100, u16::MAX]);
            connect.maximum_packet_bytes = random.maybe(|random| random.next() as u32 | 1);
            connect.topic_alias_maximum = random.pick(&[0, 1, u16::MAX]);
            connect.request_response_information = random.yes();
            connect.request_problem_information = random.yes();
            connect.authentication_method = random.maybe(|_| texts[2].as_str());
            connect.authentication_data = connect.authentication_method.and(Some(data.as_slice()));
            connect.user_properties = UserProperties::from_encoded(&user);
        }
        let mut out = Vec::new();
        encode::connect(&mut out, &connect);
        assert_eq!(decoded(&out, version, note), Packet::Connect(Box::new(connect.clone())), "{note}");
        let first = decode_connect(&out, PACKET_BYTES_MAX);
        assert_eq!(first, Ok(Decoded::Packet { packet: connect, bytes: out.len() }), "{note}");
        for cut in 0..out.len() {
            let cut = decode_connect(&out[..cut], PACKET_BYTES_MAX);
            assert!(matches!(cut, Ok(Decoded::Incomplete { .. })), "{note}: {cut:?}");
        }
    });
}

#[test]
fn connacks_come_back_as_they_were() {
    rounds(|random, version, note| {
        let texts: Vec<String> = (0..5).map(|_| text(random, 60)).collect();
        let (data, user) = (random.bytes(40), user_properties(random));
        let reason =
            random.pick(&[ReasonCode::Success, ReasonCode::NotAuthorized, ReasonCode::BadUserNameOrPassword]);
        let mut connack = ConnAck {
            session_present: version != Version::V31 && reason == ReasonCode::Success && random.yes(),
            reason,
            ..ConnAck::default()
        };
        if version.is_v5() {
            connack.session_expiry_s = random.maybe(|random| random.next() as u32);
            connack.receive_maximum = random.pick(&[1, 100, u16::MAX]);
            connack.maximum_qos = random.pick(&[Qos::AtMostOnce, Qos::AtLeastOnce, Qos::ExactlyOnce]);
            connack.retain_available = random.yes();
            connack.maximum_packet_bytes = random.maybe(|random| random.next() as u32 | 1);
            connack.assigned_client_id = random.maybe(|_| texts[0].as_str());
            connack.topic_alias_maximum = random.pick(&[0, 9]);
            connack.reason_string = random.maybe(|_| texts[1].as_str());
            connack.user_properties = UserProperties::from_encoded(&user);
            connack.wildcard_subscriptions = random.yes();
            connack.subscription_ids = random.yes();
            connack.shared_subscriptions = random.yes();
            connack.server_keep_alive_s = random.maybe(|random| random.next() as u16);
            connack.response_information = random.maybe(|_| texts[2].as_str());
            connack.server_reference = random.maybe(|_| texts[3].as_str());
            connack.authentication_method = random.maybe(|_| texts[4].as_str());
            connack.authentication_data = random.maybe(|_| data.as_slice());
        }
        let mut out = Vec::new();
        encode::connack(&mut out, version, &connack);
        assert_eq!(decoded(&out, version, note), Packet::ConnAck(Box::new(connack)), "{note}");
    });
}

#[test]
fn subscriptions_come_back_as_they_were() {
    rounds(|random, version, note| {
        let v5 = version.is_v5();
        let filters: Vec<String> = (0..1 + random.below(20)).map(|_| filter(random)).collect();
        let asked: Vec<Subscription<'_>> = filters
            .iter()
            .map(|filter| Subscription {
                no_local: v5 && !filter.starts_with("$share") && random.yes(),
                retain_as_published: v5 && random.yes(),
                retain_handling: if v5 {
                    random.pick(&[RetainHandling::Send, RetainHandling::SendIfNew, RetainHandling::DoNotSend])
                } else {
                    RetainHandling::Send
                },
                ..Subscription::new(
                    filter,
                    random.pick(&[Qos::AtMostOnce, Qos::AtLeastOnce, Qos::ExactlyOnce]),
                )
            })
            .collect();
        let packet_id = packet_id(random);
        let subscription_id = random.maybe(|random| 1 + random.below(REMAINING_LENGTH_MAX) as u32);
        let mut out = Vec::new();
        encode::subscribe(&mut out, version, packet_id, subscription_id, asked.iter().copied());
        let Packet::Subscribe(subscribe) = decoded(&out, version, note) else { panic!("{note}") };
        assert_eq!(subscribe.packet_id, packet_id, "{note}");
        assert_eq!(subscribe.subscription_id, subscription_id.filter(|_| v5), "{note}");
        assert_eq!(subscribe.subscriptions.iter().collect::<Vec<_>>(), asked, "{note}");

        let codes: Vec<ReasonCode> = asked
            .iter()
            .map(|subscription| {
                if random.yes() {
                    ReasonCode::granted(subscription.qos)
                } else {
                    ReasonCode::UnspecifiedError
                }
            })
            .collect();
        let mut out = Vec::new();
        encode::suback(&mut out, version, packet_id, &codes);
        let Packet::SubAck(suback) = decoded(&out, version, note) else { panic!("{note}") };
        assert_eq!((suback.packet_id, suback.codes.iter().collect::<Vec<_>>()), (packet_id, codes), "{note}");

        let mut out = Vec::new();
        encode::unsubscribe(&mut out, version, packet_id, filters.iter().map(String::as_str));
        let Packet::Unsubscribe(unsubscribe) = decoded(&out, version, note) else { panic!("{note}") };
        assert_eq!(unsubscribe.packet_id, packet_id, "{note}");
        assert!(unsubscribe.filters.iter().eq(filters.iter().map(String::as_str)), "{note}");

        let codes =
            vec![random.pick(&[ReasonCode::Success, ReasonCode::NoSubscriptionExisted]); filters.len()];
        let mut out = Vec::new();
        encode::unsuback(&mut out, version, packet_id, &codes);
        let Packet::UnsubAck(unsuback) = decoded(&out, version, note) else { panic!("{note}") };
        let expected = if v5 { codes } else { Vec::new() };
        assert_eq!(
            (unsuback.packet_id, unsuback.codes.iter().collect::<Vec<_>>()),
            (packet_id, expected),
            "{note}"
        );
    });
}

#[test]
fn disconnects_and_auths_come_back_as_they_were() {
    rounds(|random, version, note| {
        let (texts, user, data) =
            ([text(random, 60), text(random, 60)], user_properties(random), random.bytes(9));
        let disconnect = Disconnect {
            reason: random.pick(&[
                ReasonCode::Success,
                ReasonCode::DisconnectWithWill,
                ReasonCode::ServerShuttingDown,
            ]),
            session_expiry_s: random.maybe(|random| random.next() as u32),
            reason_string: random.maybe(|_| texts[0].as_str()),
            user_properties: UserProperties::from_encoded(&user),
            server_reference: random.maybe(|_| texts[1].as_str()),
        };
        let mut out = Vec::new();
        encode::disconnect(&mut out, version, &disconnect);
        let expected = if version.is_v5() { disconnect } else { Disconnect::new(ReasonCode::Success) };
        assert_eq!(decoded(&out, version, note), Packet::Disconnect(expected), "{note}");

        let auth = Auth {
            reason: random.pick(&[
                ReasonCode::Success,
                ReasonCode::ContinueAuthentication,
                ReasonCode::Reauthenticate,
            ]),
            method: Some(&texts[0]),
            data: random.maybe(|_| data.as_slice()),
            reason_string: random.maybe(|_| texts[1].as_str()),
            user_properties: UserProperties::from_encoded(&user),
        };
        let mut out = Vec::new();
        encode::auth(&mut out, &auth);
        assert_eq!(decoded(&out, Version::V5, note), Packet::Auth(auth), "{note}");
    });
}
