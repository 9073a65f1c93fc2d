//! Packets written out byte by byte, most of them from the specification's own figures.

use super::*;

const MAX: usize = 1 << 20;

#[track_caller]
fn whole(bytes: &[u8], version: Version) -> Packet<'_> {
    match decode(bytes, version, MAX) {
        Ok(Decoded::Packet { packet, bytes: taken }) => {
            assert_eq!(taken, bytes.len());
            packet
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_v311_connect_with_everything() {
    let bytes = packet(
        0x10,
        &[&s("MQTT"), &[4, 0xEE, 0, 60], &s("device"), &s("will/topic"), &s("gone"), &s("user"), &s("pass")],
    );
    let Ok(Decoded::Packet { packet: connect, bytes: taken }) = decode_connect(&bytes, MAX) else { panic!() };
    assert_eq!(taken, bytes.len());
    let expected = Connect {
        keep_alive_s: 60,
        will: Some(Will {
            topic: TopicName::new("will/topic").unwrap(),
            payload: b"gone",
            qos: Qos::AtLeastOnce,
            retain: true,
            delay_s: 0,
            properties: WireProperties::NONE,
        }),
        username: Some("user"),
        password: Some(b"pass"),
        ..Connect::new(Version::V311, "device")
    };
    assert_eq!(connect, expected);
    let mut out = Vec::new();
    encode::connect(&mut out, &connect);
    assert_eq!(out, bytes);
}

#[test]
fn a_v5_connect_with_properties() {
    let properties =
        b"\x11\x00\x00\x00\x0A\x21\x00\x14\x27\x00\x00\x04\x00\x22\x00\x05\x17\x00\x26\x00\x01k\x00\x01v";
    let bytes = packet(0x10, &[&s("MQTT"), &[5, 2, 0, 0], &[properties.len() as u8], properties, &s("")]);
    let Ok(Decoded::Packet { packet: connect, .. }) = decode_connect(&bytes, MAX) else { panic!() };
    assert_eq!(connect.session_expiry_s, 10);
    assert_eq!(connect.receive_maximum, 20);
    assert_eq!(connect.maximum_packet_bytes, Some(1024));
    assert_eq!(connect.topic_alias_maximum, 5);
    assert!(!connect.request_problem_information);
    assert_eq!(connect.user_properties.iter().collect::<Vec<_>>(), [("k", "v")]);
    assert_eq!(connect.client_id, "");
}

#[test]
fn a_v31_connect_may_leave_out_what_its_flags_announce() {
    let bytes = packet(0x10, &[&s("MQIsdp"), &[3, 0xC2, 0, 10], &s("old"), &s("user")]);
    let Ok(Decoded::Packet { packet: connect, .. }) = decode_connect(&bytes, MAX) else { panic!() };
    assert_eq!((connect.username, connect.password), (Some("user"), None));
    let bytes = packet(0x10, &[&s("MQIsdp"), &[3, 0xC2, 0, 10], &s("old")]);
    let Ok(Decoded::Packet { packet: connect, .. }) = decode_connect(&bytes, MAX) else { panic!() };
    assert_eq!((connect.username, connect.password), (None, None));
}

#[test]
fn a_publish_borrows_its_properties_unless_some_do_not_travel() {
    let travelling = b"\x01\x01\x02\x00\x00\x00\x0A\x03\x00\x04text\x08\x00\x01r\x09\x00\x02\xFF\x00\x26\x00\x01k\x00\x01v";
    let bytes = packet(0x3D, &[&s("a/b"), &[0x12, 0x34], &[travelling.len() as u8], travelling, b"payload"]);
    let Packet::Publish(publish) = whole(&bytes, Version::V5) else { panic!() };
    let mut scratch = Vec::new();
    assert_eq!(publish.travelling(&mut scratch).encoded(), travelling);
    let borrowed = publish.travelling(&mut scratch).encoded().as_ptr();
    assert!(bytes.as_ptr_range().contains(&borrowed), "not copied");
    assert!(publish.dup && publish.retain && publish.properties.payload_is_text());
    assert_eq!((publish.qos, publish.packet_id, publish.topic), (Qos::ExactlyOnce, 0x1234, "a/b"));
    assert_eq!(publish.payload, b"payload");

    let mut section = b"\x23\x00\x07".to_vec();
    section.extend(travelling);
    section.extend(b"\x0B\xFF\x7F\x0B\x01");
    let bytes = packet(0x30, &[&s(""), &[section.len() as u8], &section]);
    let Packet::Publish(publish) = whole(&bytes, Version::V5) else { panic!() };
    assert_eq!(publish.travelling(&mut scratch).encoded(), travelling);
    assert_eq!(publish.topic_alias, Some(7));
    assert_eq!(publish.topic_name(), None);
    assert_eq!(publish.subscription_ids().collect::<Vec<_>>(), [16_383, 1]);
}

#[test]
fn a_publish_is_written_as_figure_3_11_shows_it() {
    let mut out = b"before".to_vec();
    let head = PublishHead {
        dup: false,
        qos: Qos::AtLeastOnce,
        retain: false,
        packet_id: 10,
        topic: "a/b",
        properties: Properties::NONE,
        message_expiry: None,
        subscription_ids: &[],
        topic_alias: None,
        payload_bytes: 2,
    };
    let packet_id_at = encode::publish(&mut out, Version::V5, &head, b"hi");
    assert_eq!(out, b"before\x32\x0A\x00\x03a/b\x00\x0A\x00hi");
    assert_eq!(out[packet_id_at..packet_id_at + 2], [0, 10]);
    out.clear();
    encode::publish(&mut out, Version::V311, &head, b"hi");
    assert_eq!(out, b"\x32\x09\x00\x03a/b\x00\x0Ahi");
    out.clear();
    encode::publish(&mut out, Version::V311, &PublishHead { qos: Qos::AtMostOnce, ..head }, b"hi");
    assert_eq!(out, b"\x30\x07\x00\x03a/bhi");
}

#[test]
fn the_message_expiry_is_replaced_where_the_publisher_set_one() {
    let with = b"\x26\x00\x01k\x00\x01v\x02\x00\x00\x00\x0A\x01\x01";
    let head = PublishHead {
        dup: false,
        qos: Qos::AtMostOnce,
        retain: false,
        packet_id: 0,
        topic: "t",
        properties: Properties::from_encoded(with),
        message_expiry: Some(3),
        subscription_ids: &[300],
        topic_alias: Some(9),
        payload_bytes: 0,
    };
    let mut out = Vec::new();
    encode::publish_head(&mut out, Version::V5, &head);
    assert_eq!(
        out,
        b"\x30\x18\x00\x01t\x14\x26\x00\x01k\x00\x01v\x02\x00\x00\x00\x03\x01\x01\x0B\xAC\x02\x23\x00\x09"
    );
    assert_eq!(head.packet_bytes(Version::V5), out.len());
    let head = PublishHead { properties: Properties::from_encoded(b"\x01\x01"), ..head };
    out.clear();
    encode::publish_head(&mut out, Version::V5, &head);
    assert_eq!(out, b"\x30\x0C\x00\x01t\x08\x01\x01\x0B\xAC\x02\x23\x00\x09");
}

#[test]
fn lengths_take_as_few_bytes_as_they_can_at_every_step() {
    // What does not belong to the payload: the topic with its length, and the Property Length.
    const REST: usize = 3 + 1;
    for (remaining, length_bytes) in
        [(127, 1), (128, 2), (16_383, 2), (16_384, 3), (2_097_151, 3), (2_097_152, 4), (3_000_000, 4)]
    {
        let payload = vec![b'x'; remaining - REST];
        let head = PublishHead {
            dup: false,
            qos: Qos::AtMostOnce,
            retain: false,
            packet_id: 0,
            topic: "t",
            properties: Properties::NONE,
            message_expiry: None,
            subscription_ids: &[],
            topic_alias: None,
            payload_bytes: payload.len(),
        };
        let mut out = Vec::new();
        encode::publish(&mut out, Version::V5, &head, &payload);
        assert_eq!(out.len(), 1 + length_bytes + remaining);
        assert_eq!(head.packet_bytes(Version::V5), out.len());
        let Ok(Decoded::Packet { packet: Packet::Publish(publish), bytes }) =
            decode(&out, Version::V5, PACKET_BYTES_MAX)
        else {
            panic!("{remaining}");
        };
        assert_eq!((publish.payload.len(), bytes), (payload.len(), out.len()));
    }
    for properties_bytes in [127, 128, 16_383, 16_384] {
        // The decoder refuses lengths that take more bytes than they need. A User Property takes five bytes beside its name and value.
        let mut properties = Vec::new();
        encode::user_property(&mut properties, "", &"v".repeat(properties_bytes - 5));
        let ack = Ack {
            user_properties: UserProperties::from_encoded(&properties),
            ..Ack::new(1, ReasonCode::Success)
        };
        let mut out = Vec::new();
        encode::ack(&mut out, Version::V5, AckType::PubAck, &ack);
        let Packet::PubAck(read) = whole(&out, Version::V5) else { panic!("{properties_bytes}") };
        assert_eq!(read, ack);

        let head = PublishHead {
            dup: false,
            qos: Qos::AtMostOnce,
            retain: false,
            packet_id: 0,
            topic: "t",
            properties: Properties::from_encoded(&properties),
            message_expiry: None,
            subscription_ids: &[],
            topic_alias: None,
            payload_bytes: 0,
        };
        out.clear();
        encode::publish_head(&mut out, Version::V5, &head);
        assert_eq!(head.packet_bytes(Version::V5), out.len());
        let Packet::Publish(publish) = whole(&out, Version::V5) else { panic!("{properties_bytes}") };
        assert_eq!(publish.travelling(&mut Vec::new()).encoded(), properties);
    }
}

#[test]
fn acknowledgements_are_as_short_as_they_can_be() {
    let check = |version, reason, expected: &[u8]| {
        let mut out = Vec::new();
        encode::puback(&mut out, version, 0x0102, reason);
        assert_eq!(out, expected);
    };
    check(Version::V311, ReasonCode::Success, &[0x40, 2, 1, 2]);
    check(Version::V311, ReasonCode::QuotaExceeded, &[0x40, 2, 1, 2]);
    check(Version::V5, ReasonCode::Success, &[0x40, 2, 1, 2]);
    check(Version::V5, ReasonCode::QuotaExceeded, &[0x40, 3, 1, 2, 0x97]);
    let mut out = Vec::new();
    encode::pubrec(&mut out, Version::V5, 1, ReasonCode::Success);
    encode::pubrel(&mut out, Version::V5, 1, ReasonCode::Success);
    encode::pubcomp(&mut out, Version::V5, 1, ReasonCode::PacketIdentifierNotFound);
    encode::pingreq(&mut out);
    encode::pingresp(&mut out);
    assert_eq!(out, [0x50, 2, 0, 1, 0x62, 2, 0, 1, 0x70, 3, 0, 1, 0x92, 0xC0, 0, 0xD0, 0]);
    out.clear();
    let ack = Ack { reason_string: Some("full"), ..Ack::new(1, ReasonCode::QuotaExceeded) };
    encode::ack(&mut out, Version::V5, AckType::PubAck, &ack);
    assert_eq!(out, b"\x40\x0B\x00\x01\x97\x07\x1F\x00\x04full");
}

#[test]
fn a_refused_connection_is_told_in_its_own_version() {
    let check = |connect: &[u8], reason, expected: &[u8]| {
        let error = decode_connect(connect, MAX).unwrap_err();
        assert_eq!(error.reason(), reason, "{error}");
        let mut out = Vec::new();
        error.answer(&mut out);
        assert_eq!(out, expected, "{error}");
    };
    let level = |name: &str, level| packet(0x10, &[&s(name), &[level, 2, 0, 0], &s("c")]);
    let unsupported = ReasonCode::UnsupportedProtocolVersion;
    check(&level("MQTT", 3), unsupported, &[0x20, 2, 0, 1]);
    check(&level("MQIsdp", 4), unsupported, &[0x20, 2, 0, 1]);
    check(&level("MQTT", 0x84), unsupported, &[0x20, 2, 0, 1]);
    check(&level("MQTT", 6), unsupported, &[0x20, 3, 0, 0x84, 0]);
    // Not MQTT: no answer.
    check(&level("AMQP", 4), ReasonCode::ProtocolError, &[]);
    check(b"GET / HTTP/1.1\r\n", ReasonCode::ProtocolError, &[]);
    check(&[0x16, 3, 1, 2, 0], ReasonCode::MalformedPacket, &[]);
    // A malformed CONNECT: MQTT 5.0 says why, MQTT 3 just closes.
    check(&packet(0x10, &[&s("MQTT"), &[4, 3, 0, 0], &s("c")]), ReasonCode::MalformedPacket, &[]);
    check(
        &packet(0x10, &[&s("MQTT"), &[5, 3, 0, 0, 0], &s("c")]),
        ReasonCode::MalformedPacket,
        &[0x20, 3, 0, 0x81, 0],
    );
}

#[test]
fn the_length_of_an_incomplete_packet_is_told_as_soon_as_it_is_known() {
    let check = |bytes: &[u8], needed| {
        assert_eq!(decode(bytes, Version::V311, MAX), Ok(Decoded::Incomplete { needed }));
    };
    check(&[], None);
    check(&[0x30], None);
    check(&[0x30, 0x80], None);
    check(&[0x30, 0x80, 0x01], Some(131));
    check(&[0x30, 0x05, 0, 1], Some(7));
}

#[test]
fn a_packet_too_large_is_refused_before_it_arrives() {
    let too_large = |bytes| Err(DecodeError::TooLarge { bytes, bytes_max: 100 });
    assert_eq!(decode(&[0x30, 99], Version::V5, 100), too_large(101));
    assert_eq!(decode(&[0x30, 98], Version::V5, 100), Ok(Decoded::Incomplete { needed: Some(100) }));
    assert_eq!(decode(&[0x30, 0xFF, 0xFF, 0xFF, 0x7F], Version::V5, 100), too_large(268_435_460));
}

#[test]
fn every_reason_code_has_its_number_and_name() {
    let mut known = 0;
    for byte in 0..=u8::MAX {
        if let Some(reason) = ReasonCode::from_u8(byte) {
            assert_eq!(reason.as_u8(), byte);
            assert!(!reason.name().is_empty());
            known += 1;
        }
    }
    assert_eq!(known, 43);
    assert_eq!(ReasonCode::QuotaExceeded.to_string(), "Quota exceeded (0x97)");
    for code in 0..=5 {
        let reason = ReasonCode::from_v3_connect_return(code).unwrap();
        assert_eq!(reason.v3_connect_return(), code);
    }
}
