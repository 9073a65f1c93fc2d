//! One valid packet of every type, and then each of its fields in turn made wrong: the prescribed answer comes, and the
//! connection ends.
//!
//! Before MQTT 5.0 the answer is that the connection is closed; 5.0 says why in DISCONNECT, or in CONNACK if it is CONNECT
//! that is wrong [MQTT-4.13.1-1] [MQTT-4.13.2-1].

use super::client::{Answer, Client};
use super::wire::{self, Connect, Publish, Will, packet, properties, property, string};
use super::{LEVELS, broker};

const MALFORMED: u8 = 0x81;
const PROTOCOL_ERROR: u8 = 0x82;
const TOPIC_NAME_INVALID: u8 = 0x90;
const TOPIC_ALIAS_INVALID: u8 = 0x94;
const PACKET_TOO_LARGE: u8 = 0x95;

/// Sends `bytes` on a fresh connection that is in order so far, and awaits the end with this reason.
#[track_caller]
fn ends(level: u8, what: &str, bytes: &[u8], reason: u8) {
    let mut client = Client::open(broker().mqtt, &Connect::fresh(level));
    client.send(bytes);
    if level == 5 {
        let answer = client.receive();
        let told = matches!(answer, Answer::Disconnect { code, .. } if code == reason);
        assert!(told, "level {level}, {what}: DISCONNECT {reason:#04x} is awaited and not {answer:02x?}");
    }
    let end = client.receive();
    assert_eq!(end, Answer::Closed, "level {level}, {what}: {bytes:02x?}");
}

/// Sends `bytes` as the first of a connection, and awaits the end: with this reason if it is said to have one.
#[track_caller]
fn refused(level: u8, what: &str, bytes: &[u8], reason: Option<u8>) {
    let mut client = Client::dial(broker().mqtt, level);
    client.send(bytes);
    if let Some(reason) = reason {
        let answer = client.receive();
        let told = matches!(answer, Answer::ConnAck { present: false, code, .. } if code == reason);
        assert!(told, "level {level}, {what}: CONNACK {reason:#04x} is awaited and not {answer:02x?}");
    }
    let end = client.receive();
    assert_eq!(end, Answer::Closed, "level {level}, {what}: {bytes:02x?}");
}

/// The reason in MQTT 5.0, nothing before.
fn in_v5(level: u8, reason: u8) -> Option<u8> {
    (level == 5).then_some(reason)
}

/// An anonymous client that may leave its Client Identifier out in every version.
fn named(level: u8) -> Connect {
    Connect::new(level, "malformed")
}

/// Every packet whose body is that of `bytes` cut short.
fn cut_short(bytes: &[u8]) -> impl Iterator<Item = (usize, Vec<u8>)> {
    assert!(bytes[1] < 0x80, "a short packet");
    (0..bytes.len() - 2).map(|end| (end, packet(bytes[0], &[&bytes[2..2 + end]])))
}

#[test]
fn the_protocol_name_and_level_are_checked() {
    for level in LEVELS {
        for name in ["", "MQTt", "mqtt", "MQTTX", "MQIsdP", "HTTP"] {
            let connect = Connect { name: name.into(), ..named(level) };
            refused(level, name, &connect.bytes(), None);
        }
    }
    // A level that is not spoken is answered in the words of the nearest version [MQTT-3.1.2-2].
    for (name, asked, answered_as, code) in [
        ("MQTT", 0, 4, 1),
        ("MQTT", 3, 4, 1),
        ("MQTT", 6, 5, 0x84),
        ("MQTT", 0x7F, 5, 0x84),
        ("MQTT", 0x84, 4, 1),
        ("MQIsdp", 4, 4, 1),
        ("MQIsdp", 5, 5, 0x84),
    ] {
        let connect = Connect { name: name.into(), level: asked, ..named(4) };
        refused(answered_as, &format!("{name} {asked}"), &connect.bytes(), Some(code));
    }
}

#[test]
fn the_connect_flags_are_checked() {
    for level in [4, 5] {
        for (what, flags) in [
            ("the reserved flag", 0b0000_0011),
            ("Will QoS 1 without a Will", 0b0000_1010),
            ("Will QoS 2 without a Will", 0b0001_0010),
            ("Will Retain without a Will", 0b0010_0010),
        ] {
            let connect = Connect { flags, ..named(level) };
            refused(level, what, &connect.bytes(), in_v5(level, MALFORMED));
        }
        let will = Will { qos: 3, ..Will::new("malformed/will", "") };
        refused(level, "Will QoS 3", &named(level).will(will).bytes(), in_v5(level, MALFORMED));
        for (what, flag) in [("a Will", 0b0000_0100), ("a user name", 0b1000_0000), ("both", 0b1100_0000)] {
            let connect = Connect { flags: 2 | flag, ..named(level) };
            refused(
                level,
                &format!("{what} announced and left out"),
                &connect.bytes(),
                in_v5(level, MALFORMED),
            );
        }
        // The payload holds what the flags do not announce: it is not looked for, so bytes are left over.
        let body = Connect { username: Some("name".into()), ..named(level) }.bytes();
        let silent: Vec<u8> =
            body.iter().enumerate().map(|(at, byte)| if at == 9 { 2 } else { *byte }).collect();
        refused(level, "a user name without its flag", &silent, in_v5(level, MALFORMED));
    }
    let password_alone = Connect { password: Some("secret".into()), ..named(4) };
    refused(4, "a password without a user name", &password_alone.bytes(), None);
}

#[test]
fn every_field_of_connect_may_not_be_cut_short() {
    for level in LEVELS {
        let mut connect = named(level).will(Will::new("t", "p"));
        connect.username = Some("u".into());
        connect.password = Some("p".into());
        let bytes = connect.bytes();
        let level_ends = 2 + connect.name.len() + 1;
        // MQTT 3.1 lets a client announce credentials and send none.
        let may_end = if level == 3 { vec![bytes.len() - 2 - 6, bytes.len() - 2 - 3] } else { Vec::new() };
        for (end, short) in cut_short(&bytes).filter(|(end, _)| !may_end.contains(end)) {
            let reason = in_v5(level, MALFORMED).filter(|_| end >= level_ends);
            refused(level, &format!("cut short after {end} bytes"), &short, reason);
        }
        let long = packet(0x10, &[&bytes[2..], b"\0"]);
        refused(level, "a byte too many", &long, in_v5(level, MALFORMED));
    }
}

#[test]
fn every_string_of_connect_is_utf8_without_nul() {
    // Ill-formed, a surrogate, an overlong form, beyond U+10FFFF, cut off, U+0000 [MQTT-1.5.4-1] [MQTT-1.5.4-2].
    let wrong: [&[u8]; 6] =
        [b"a\xFF", b"\xED\xA0\x80", b"\xC0\xAF", b"\xF4\x90\x80\x80", b"a\xE2\x82", b"a\0b"];
    for level in LEVELS {
        for bytes in wrong {
            let client_id = Connect { client_id: bytes.into(), ..named(level) };
            let will = named(level).will(Will { topic: bytes.into(), ..Will::new("", "p") });
            let username = Connect { username: Some(bytes.into()), ..named(level) };
            for (what, connect) in
                [("Client Identifier", client_id), ("Will Topic", will), ("User Name", username)]
            {
                refused(level, &format!("{what} {bytes:02x?}"), &connect.bytes(), in_v5(level, MALFORMED));
            }
        }
        for topic in ["", "a/+", "#"] {
            let connect = named(level).will(Will::new(topic, "p"));
            refused(level, &format!("Will Topic {topic:?}"), &connect.bytes(), in_v5(level, MALFORMED));
        }
    }
}

#[test]
fn a_remaining_length_has_four_bytes_and_no_more_than_it_needs() {
    for level in LEVELS {
        refused(level, "five bytes of length", &[0x10, 0x80, 0x80, 0x80, 0x80, 0x01], None);
        ends(level, "five bytes of length", &[0xC0, 0x80, 0x80, 0x80, 0x80, 0x01], MALFORMED);
        ends(level, "a packet of 256 MB", &[0x30, 0xFF, 0xFF, 0xFF, 0x7F], PACKET_TOO_LARGE);
    }
    ends(5, "a padded length [MQTT-1.5.5-1]", &[0xC0, 0x80, 0x00], MALFORMED);
    let padded = |bytes: Vec<u8>| [&[bytes[0], bytes[1] | 0x80, 0], &bytes[2..]].concat();
    refused(5, "a padded length", &padded(named(5).bytes()), Some(MALFORMED));
    // MQTT 3 does not ask for the shortest form.
    let mut client = Client::open(broker().mqtt, &named(4));
    client.send([0xC0, 0x80, 0x00]);
    client.expect(&Answer::PingResp);
}

#[test]
fn the_first_packet_is_connect_and_comes_once() {
    for level in LEVELS {
        let all: [(&str, Vec<u8>); 9] = [
            ("PUBLISH", Publish::new("a", "").bytes(level)),
            ("PUBACK", wire::ack(wire::PUBACK, 1)),
            ("PUBREL", wire::ack(wire::PUBREL, 1)),
            ("SUBSCRIBE", wire::subscribe(level, 1, "a", 0)),
            ("UNSUBSCRIBE", wire::unsubscribe(level, 1, &["a"])),
            ("PINGREQ", wire::PINGREQ.into()),
            ("DISCONNECT", wire::DISCONNECT.into()),
            ("AUTH", vec![0xF0, 0]),
            ("CONNACK", vec![0x20, 2, 0, 0]),
        ];
        for (what, bytes) in all {
            refused(level, &format!("{what} before CONNECT [MQTT-3.1.0-1]"), &bytes, None);
        }
        ends(level, "a second CONNECT [MQTT-3.1.0-2]", &named(level).bytes(), PROTOCOL_ERROR);
    }
}

#[test]
fn what_only_servers_send_is_a_protocol_error() {
    for level in LEVELS {
        ends(level, "CONNACK", &[0x20, 2, 0, 0], PROTOCOL_ERROR);
        ends(level, "SUBACK", &[0x90, 3, 0, 1, 0], PROTOCOL_ERROR);
        ends(level, "UNSUBACK", &[0xB0, 2, 0, 1], PROTOCOL_ERROR);
        ends(level, "PINGRESP", &wire::PINGRESP, PROTOCOL_ERROR);
        ends(level, "a packet of type 0", &[0x00, 0], MALFORMED);
    }
    for level in [3, 4] {
        ends(level, "a packet of type 15", &[0xF0, 0], MALFORMED);
    }
}

#[test]
fn reserved_flags_are_as_they_must_be() {
    for level in [4, 5] {
        let all: [(u8, Vec<u8>); 9] = [
            (0b0000, wire::ack(wire::PUBACK, 1)),
            (0b0000, wire::ack(wire::PUBREC, 1)),
            (0b0010, wire::ack(wire::PUBREL, 1)),
            (0b0000, wire::ack(wire::PUBCOMP, 1)),
            (0b0010, wire::subscribe(level, 1, "a", 0)),
            (0b0010, wire::unsubscribe(level, 1, &["a"])),
            (0b0000, wire::PINGREQ.into()),
            (0b0000, wire::DISCONNECT.into()),
            (0b0000, named(level).bytes()),
        ];
        for (right, bytes) in all {
            for flags in (0..16).filter(|flags| *flags != right) {
                let mut wrong = bytes.clone();
                wrong[0] = (wrong[0] & 0xF0) | flags;
                let what = format!("flags {flags:04b} in {wrong:02x?}");
                if bytes[0] == 0x10 {
                    refused(level, &what, &wrong, None);
                } else {
                    ends(level, &what, &wrong, MALFORMED);
                }
            }
        }
    }
    for flags in 1..16 {
        ends(5, "flags in AUTH [MQTT-3.15.1-1]", &[0xF0 | flags, 0], MALFORMED);
    }
    for level in LEVELS {
        for dup_and_retain in [0, 1, 8, 9] {
            let bytes = packet(0x36 | dup_and_retain, &[&string("a"), b"\0\x01\0"]);
            ends(level, "QoS 3 [MQTT-3.3.1-4]", &bytes, MALFORMED);
        }
        let dup = Publish { dup: true, ..Publish::new("a", "") };
        ends(level, "DUP at QoS 0 [MQTT-3.3.1-2]", &dup.bytes(level), MALFORMED);
    }
}

#[test]
fn a_packet_identifier_is_never_zero() {
    for level in LEVELS {
        for (what, bytes) in [
            ("PUBLISH at QoS 1", Publish::at(1, 0, "a", "").bytes(level)),
            ("PUBLISH at QoS 2", Publish::at(2, 0, "a", "").bytes(level)),
            ("PUBACK", wire::ack(wire::PUBACK, 0)),
            ("PUBREC", wire::ack(wire::PUBREC, 0)),
            ("PUBREL", wire::ack(wire::PUBREL, 0)),
            ("PUBCOMP", wire::ack(wire::PUBCOMP, 0)),
            ("SUBSCRIBE", wire::subscribe(level, 0, "a", 0)),
            ("UNSUBSCRIBE", wire::unsubscribe(level, 0, &["a"])),
        ] {
            ends(level, what, &bytes, PROTOCOL_ERROR);
        }
    }
}

#[test]
fn every_field_of_publish_is_checked() {
    let deep = "/".repeat(200);
    for level in LEVELS {
        let whole = Publish::at(1, 7, "topic", "").bytes(level);
        for (end, short) in cut_short(&whole) {
            ends(level, &format!("cut short after {end} bytes"), &short, MALFORMED);
        }
        for topic in ["a/+", "+", "#", "a/#", "a#b", "a+b"] {
            let bytes = Publish::new(topic, "").bytes(level);
            ends(level, &format!("the topic {topic} [MQTT-3.3.2-2]"), &bytes, MALFORMED);
        }
        for topic in [&b"a\xFF"[..], b"\xED\xA0\x80", b"\xC0\x80", b"a\0"] {
            let bytes = packet(0x30, &[&string(topic), b"\0"]);
            ends(level, &format!("the topic {topic:02x?}"), &bytes, MALFORMED);
        }
        ends(level, "201 levels", &Publish::new(&deep, "").bytes(level), TOPIC_NAME_INVALID);
        let nameless = Publish::new("", "").bytes(level);
        ends(level, "no topic [MQTT-4.7.3-1]", &nameless, PROTOCOL_ERROR);
    }
    for (what, property, reason) in [
        ("alias 0 [MQTT-3.3.2-8]", property::two(property::TOPIC_ALIAS, 0), TOPIC_ALIAS_INVALID),
        ("an alias above the maximum", property::two(property::TOPIC_ALIAS, 65_535), TOPIC_ALIAS_INVALID),
        ("Payload Format 2", property::byte(property::PAYLOAD_FORMAT, 2), PROTOCOL_ERROR),
        ("a Subscription Identifier", property::number(property::SUBSCRIPTION_ID, 1), PROTOCOL_ERROR),
        ("a wildcard to respond to", property::text(property::RESPONSE_TOPIC, "a/+"), PROTOCOL_ERROR),
        ("an ill-formed Response Topic", property::text(property::RESPONSE_TOPIC, b"\xFF"), MALFORMED),
        ("an ill-formed Content Type", property::text(property::CONTENT_TYPE, b"\xFF"), MALFORMED),
        (
            "an ill-formed User Property",
            [&[property::USER][..], &string(b"\xFF"), &string("")].concat(),
            MALFORMED,
        ),
        ("an ill-formed value", [&[property::USER][..], &string(""), &string(b"\xFF")].concat(), MALFORMED),
        ("a number cut short", vec![property::MESSAGE_EXPIRY, 0, 0, 0], MALFORMED),
        ("a string cut short", vec![property::CONTENT_TYPE, 0, 5, b'a'], MALFORMED),
    ] {
        ends(5, what, &Publish::new("a", "").with(property).bytes(5), reason);
    }
    let unknown = Publish::new("", "").with(property::two(property::TOPIC_ALIAS, 3));
    ends(5, "an alias that was not set", &unknown.bytes(5), PROTOCOL_ERROR);
    ends(5, "properties beyond the packet", &packet(0x30, &[&string("a"), &[9]]), MALFORMED);
    ends(5, "a padded Property Length", &packet(0x30, &[&string("a"), &[0x80, 0]]), MALFORMED);
}

#[test]
fn every_field_of_an_acknowledgement_is_checked() {
    for (first, legal) in
        [(wire::PUBACK, 0x10), (wire::PUBREC, 0x10), (wire::PUBREL, 0x92), (wire::PUBCOMP, 0x92)]
    {
        for level in LEVELS {
            for (end, short) in cut_short(&wire::ack(first, 1)) {
                ends(level, &format!("{first:#04x} cut short after {end} bytes"), &short, MALFORMED);
            }
        }
        for level in [3, 4] {
            ends(level, "a byte too many", &packet(first, &[b"\0\x01\0"]), MALFORMED);
        }
        for reason in [0x03, 0x04, 0x8E, 0xA2, 0xFF] {
            ends(5, "an illegal Reason Code", &packet(first, &[&[0, 1, reason]]), PROTOCOL_ERROR);
        }
        for (what, rest) in [
            ("properties beyond the packet", &[1][..]),
            ("a byte too many", &[0, 0]),
            ("a property cut short", &[2, property::REASON_STRING, 0]),
            ("an ill-formed Reason String", &[4, property::REASON_STRING, 0, 1, 0xFF]),
        ] {
            ends(5, what, &packet(first, &[&[0, 1, legal], rest]), MALFORMED);
        }
    }
}

#[test]
fn every_field_of_subscribe_is_checked() {
    for level in LEVELS {
        let whole = wire::subscribe(level, 1, "a/b", 1);
        let filters_at = if level == 5 { 3 } else { 2 };
        for (end, short) in cut_short(&whole) {
            // Without any Topic Filter it can be read, but asks for nothing [MQTT-3.8.3-2].
            let reason = if end == filters_at { PROTOCOL_ERROR } else { MALFORMED };
            ends(level, &format!("cut short after {end} bytes"), &short, reason);
        }
        for filter in ["", "a/#/b", "a#", "#/a", "a+", "+a/b", "a/b+/c", "a\0"] {
            let bytes = wire::subscribe(level, 1, filter, 0);
            ends(level, &format!("the filter {filter:?}"), &bytes, MALFORMED);
        }
        let none: &[u8] = if level == 5 { &[0] } else { &[] };
        let ill_formed = packet(0x82, &[b"\0\x01", none, &string(b"a\xFF"), &[0]]);
        ends(level, "an ill-formed filter [MQTT-3.8.3-1]", &ill_formed, MALFORMED);
    }
    for level in [3, 4] {
        for options in [3, 4, 8, 0x10, 0x80] {
            let bytes = wire::subscribe(level, 1, "a", options);
            ends(level, &format!("options {options:#04x} [MQTT-3-8.3-4]"), &bytes, MALFORMED);
        }
    }
    for (what, options, reason) in [
        ("a reserved bit [MQTT-3.8.3-5]", 0x40, MALFORMED),
        ("the other reserved bit", 0x80, MALFORMED),
        ("QoS 3", 3, PROTOCOL_ERROR),
        ("Retain Handling 3", 0x30, PROTOCOL_ERROR),
    ] {
        ends(5, what, &wire::subscribe(5, 1, "a", options), reason);
    }
    let identifier = |bytes: &[u8]| {
        let list = [[&[property::SUBSCRIPTION_ID][..], bytes].concat()];
        wire::subscribe_all(5, 1, &list, &[("a", 0)])
    };
    ends(5, "Subscription Identifier 0", &identifier(&[0]), PROTOCOL_ERROR);
    ends(5, "a padded Subscription Identifier", &identifier(&[0x81, 0]), MALFORMED);
    ends(5, "one of five bytes", &identifier(&[0x80, 0x80, 0x80, 0x80, 1]), MALFORMED);
}

#[test]
fn every_field_of_unsubscribe_is_checked() {
    for level in LEVELS {
        let filters_at = if level == 5 { 3 } else { 2 };
        for (end, short) in cut_short(&wire::unsubscribe(level, 1, &["a/b"])) {
            // [MQTT-3.10.3-2]
            let reason = if end == filters_at { PROTOCOL_ERROR } else { MALFORMED };
            ends(level, &format!("cut short after {end} bytes"), &short, reason);
        }
        for filter in ["", "a/#/b", "a+", "a\0"] {
            let bytes = wire::unsubscribe(level, 1, &[filter]);
            ends(level, &format!("the filter {filter:?}"), &bytes, MALFORMED);
        }
        let none: &[u8] = if level == 5 { &[0] } else { &[] };
        let ill_formed = packet(0xA2, &[b"\0\x01", none, &string(b"\xED\xBF\xBF")]);
        ends(level, "an ill-formed filter [MQTT-3.10.3-1]", &ill_formed, MALFORMED);
    }
}

#[test]
fn pingreq_and_disconnect_hold_nothing_they_should_not() {
    for level in LEVELS {
        ends(level, "PINGREQ with a body", &[0xC0, 1, 0], MALFORMED);
    }
    for level in [3, 4] {
        ends(level, "DISCONNECT with a body", &[0xE0, 1, 0], MALFORMED);
    }
    for reason in [0x01, 0x03, 0x8E, 0x8B, 0xFF] {
        ends(5, "a Reason Code that no client sends [MQTT-3.14.2-1]", &[0xE0, 1, reason], PROTOCOL_ERROR);
    }
    let with = |list: &[Vec<u8>]| packet(0xE0, &[&[0], &properties(list)]);
    let reference = property::text(property::SERVER_REFERENCE, "elsewhere");
    ends(5, "a Server Reference from a client", &with(&[reference]), PROTOCOL_ERROR);
    let longer = property::four(property::SESSION_EXPIRY, 10);
    ends(5, "a session that was to end is to be kept", &with(&[longer]), PROTOCOL_ERROR);
    ends(5, "properties beyond the packet", &packet(0xE0, &[&[0, 1]]), MALFORMED);
    ends(5, "a byte too many", &packet(0xE0, &[&[0, 0, 0]]), MALFORMED);
    ends(5, "AUTH without a method agreed on [MQTT-4.12.0-7]", &[0xF0, 0], PROTOCOL_ERROR);
}
