//! What the clauses of the specification allow and forbid, in packets other than CONNECT and CONNACK.

use super::*;

#[test]
fn fixed_headers() {
    let reserved = Malformed("MQTT-2.1.3-1");
    check_from_client(&[
        (ALL, vec![0x00, 0], "type 0", Malformed("2.1.2")),
        (V3, vec![0xF0, 0], "type 15 before 5.0", Malformed("2.2.1")),
        (ALL, vec![0xC0, 0], "PINGREQ", Fine),
        (ALL, vec![0xC0, 1, 0], "PINGREQ with a body", Malformed("2.1.4")),
        (NOT_V31, vec![0xC1, 0], "PINGREQ with a flag", reserved),
        (NOT_V31, vec![0xE1, 0], "DISCONNECT with a flag", reserved),
        (NOT_V31, vec![0x41, 2, 0, 1], "PUBACK with a flag", reserved),
        (NOT_V31, vec![0x52, 2, 0, 1], "PUBREC with a flag", reserved),
        (NOT_V31, vec![0x60, 2, 0, 1], "PUBREL without its flag [MQTT-3.6.1-1]", reserved),
        (NOT_V31, vec![0x6A, 2, 0, 1], "PUBREL with another flag", reserved),
        (NOT_V31, vec![0x72, 2, 0, 1], "PUBCOMP with a flag", reserved),
        (NOT_V31, packet(0x80, &[&[0, 1], &s("a"), &[0]]), "SUBSCRIBE without its flag", reserved),
        (NOT_V31, packet(0xA0, &[&[0, 1], &s("a")]), "UNSUBSCRIBE without its flag", reserved),
        (V31, vec![0x6A, 2, 0, 1], "3.1 repeats PUBREL with DUP", Fine),
        (V31, packet(0x8A, &[&[0, 1], &s("a"), &[0]]), "3.1 repeats SUBSCRIBE with DUP", Fine),
        (ALL, vec![0x10, 0], "a second CONNECT", Protocol("MQTT-3.1.0-2")),
        (ALL, vec![0xD0, 0], "PINGRESP from a client", Protocol("2.1.2")),
        (V5, vec![0xF1, 0], "AUTH with a flag", Malformed("MQTT-2.1.3-1")),
        (ALL, vec![0xC0, 0x80, 0x80, 0x80, 0x80], "five bytes of length", Malformed("1.5.5")),
        (V3, vec![0xC0, 0x80, 0x00], "a padded length", Fine),
        (V5, vec![0xC0, 0x80, 0x00], "a padded length", Malformed("MQTT-1.5.5-1")),
    ]);
    check_from_either(&[
        (ALL, vec![0xD0, 0], "PINGRESP", Fine),
        (ALL, vec![0xD0, 1, 0], "with a body", Malformed("2.1.4")),
    ]);
}

/// A PUBLISH without properties.
fn publish(
    first: u8,
    version_has_properties: bool,
    topic: impl AsRef<[u8]>,
    packet_id: &[u8],
    payload: &[u8],
) -> Vec<u8> {
    packet(first, &[&s(topic), packet_id, if version_has_properties { &[0] } else { &[] }, payload])
}

#[test]
fn publishes() {
    for (versions, v5) in [(V3, false), (V5, true)] {
        let cases = [
            (publish(0x30, v5, "a", b"", b""), "QoS 0, no payload", Fine),
            (publish(0x31, v5, "a", b"", b"p"), "retained", Fine),
            (publish(0x32, v5, "a", b"\0\x01", b"p"), "QoS 1", Fine),
            (publish(0x34, v5, "a", b"\xFF\xFF", b"p"), "QoS 2", Fine),
            (publish(0x3A, v5, "a", b"\0\x01", b"p"), "repeated", Fine),
            (publish(0x36, v5, "a", b"\0\x01", b"p"), "QoS 3", Malformed("MQTT-3.3.1-4")),
            (publish(0x3E, v5, "a", b"\0\x01", b"p"), "QoS 3 repeated", Malformed("MQTT-3.3.1-4")),
            (publish(0x38, v5, "a", b"", b"p"), "QoS 0 repeated", Malformed("MQTT-3.3.1-2")),
            (publish(0x32, v5, "a", b"\0\0", b"p"), "Packet Identifier 0", Protocol("MQTT-2.2.1-3")),
            (publish(0x34, v5, "a", b"\0\0", b"p"), "Packet Identifier 0", Protocol("MQTT-2.2.1-3")),
            (publish(0x30, v5, "a/+", b"", b""), "a + in the topic", Malformed("MQTT-3.3.2-2")),
            (publish(0x30, v5, "#", b"", b""), "a # in the topic", Malformed("MQTT-3.3.2-2")),
            (publish(0x30, v5, "sensors/sensor01/a+b", b"", b""), "a late +", Malformed("MQTT-3.3.2-2")),
            (publish(0x30, v5, "a\0", b"", b""), "U+0000 in the topic", Malformed("MQTT-1.5.4-2")),
            (publish(0x30, v5, b"a\xFF", b"", b""), "an ill-formed topic", Malformed("MQTT-1.5.4-1")),
            (
                publish(0x30, v5, b"\xED\xBF\xBF", b"", b""),
                "a surrogate in the topic",
                Malformed("MQTT-1.5.4-1"),
            ),
            (publish(0x30, v5, "étage/1/temp", b"", b""), "any characters", Fine),
            (publish(0x30, v5, "/", b"", b""), "empty levels", Fine),
            (publish(0x30, v5, " ", b"", b""), "a blank", Fine),
            (publish(0x30, v5, "$SYS/a", b"", b""), "a $ topic is for the broker to judge", Fine),
            (publish(0x30, v5, "x".repeat(65_535), b"", b""), "the longest topic", Fine),
            (publish(0x30, v5, "/".repeat(199), b"", b""), "200 levels", Fine),
            (publish(0x30, v5, "/".repeat(200), b"", b""), "201 levels", Verdict::TopicLevels),
            (publish(0x30, v5, "a", b"", &[0xFF; 300]), "a payload is any bytes", Fine),
            (vec![0x30, 0], "no topic", Malformed("2.1.4")),
            (vec![0x30, 1, 0], "half a length", Malformed("2.1.4")),
            (vec![0x30, 3, 0, 2, b'a'], "a topic beyond the packet", Malformed("2.1.4")),
            (vec![0x32, 3, 0, 1, b'a'], "no Packet Identifier", Malformed("2.1.4")),
            (vec![0x32, 4, 0, 1, b'a', 1], "half a Packet Identifier", Malformed("2.1.4")),
        ];
        check_from_client(&cases.map(|(bytes, claim, verdict)| (versions, bytes, claim, verdict)));
    }
    check_from_client(&[
        (V3, publish(0x30, false, "", b"", b""), "an empty topic", Malformed("MQTT-4.7.3-1")),
        (V5, publish(0x30, true, "", b"", b""), "neither topic nor alias", Protocol("3.3.2.1")),
        (V5, packet(0x30, &[&s("a")]), "no Property Length", Malformed("2.1.4")),
        (V5, packet(0x30, &[&s("a"), &[1]]), "properties beyond the packet", Malformed("2.1.4")),
    ]);
}

#[test]
fn publish_properties() {
    let with = |properties: &[u8]| packet(0x30, &[&s("a"), &[properties.len() as u8], properties, b"p"]);
    let unnamed = |properties: &[u8]| packet(0x30, &[&s(""), &[properties.len() as u8], properties]);
    let twice = Protocol("2.2.2.2");
    let out_of_range = Protocol("2.2.2");
    let unknown = Malformed("2.2.2.2");
    check_from_client(&[
        (V5, with(b"\x01\0\x02\0\0\0\0\x03\0\0\x08\0\x01r\x09\0\0\x23\0\x01\x26\0\0\0\0"), "all", Fine),
        (V5, with(b"\x26\0\x01b\0\0\x26\0\x01a\0\0\x26\0\x01b\0\0"), "User Properties repeat", Fine),
        (V5, unnamed(b"\x23\0\x01"), "an alias instead of a topic", Fine),
        (V5, unnamed(b"\x23\xFF\xFF"), "the highest alias", Fine),
        (V5, unnamed(b"\x01\x01"), "neither topic nor alias", Protocol("3.3.2.1")),
        (V5, with(b"\x23\0\0"), "alias 0", Verdict::TopicAlias),
        (V5, with(b"\x23\0\x01\x23\0\x01"), "two aliases", twice),
        (V5, with(b"\x01\x01\x01\x01"), "Payload Format twice", twice),
        (V5, with(b"\x02\0\0\0\x01\x02\0\0\0\x01"), "Message Expiry twice", twice),
        (V5, with(b"\x03\0\x01a\x03\0\x01a"), "Content Type twice", twice),
        (V5, with(b"\x08\0\x01a\x08\0\x01a"), "Response Topic twice", twice),
        (V5, with(b"\x09\0\x01a\x09\0\x01a"), "Correlation Data twice", twice),
        (V5, with(b"\x01\x02"), "Payload Format 2", out_of_range),
        (V5, with(b"\x08\0\x03a/#"), "a # in the Response Topic", Protocol("MQTT-3.3.2-14")),
        (V5, with(b"\x08\0\x03+/a"), "a + in the Response Topic", Protocol("MQTT-3.3.2-14")),
        (V5, with(b"\x08\0\x02a\0"), "U+0000 in the Response Topic", Malformed("MQTT-1.5.4-2")),
        (V5, with(b"\x03\0\x01\xFF"), "an ill-formed Content Type", Malformed("MQTT-1.5.4-1")),
        (V5, with(b"\x09\0\x02\xFF\0"), "Correlation Data is any bytes", Fine),
        (V5, with(b"\x26\0\x01k\0\x01\xFF"), "an ill-formed User Property", Malformed("MQTT-1.5.4-1")),
        (V5, with(b"\x26\0\x01k\0\x05v"), "a value beyond the section", Malformed("2.1.4")),
        (V5, with(b"\x02\0\0\0"), "a number cut short", Malformed("2.1.4")),
        (V5, with(b"\x0B\x01"), "a client's Subscription Identifier", Protocol("MQTT-3.3.4-6")),
        (V5, with(b"\x11\0\0\0\0"), "Session Expiry", unknown),
        (V5, with(b"\x1F\0\0"), "Reason String", unknown),
        (V5, with(b"\x18\0\0\0\0"), "Will Delay", unknown),
        (V5, with(b"\x3F"), "an unknown identifier", unknown),
        (V5, with(b"\x40"), "an identifier above 63", unknown),
    ]);
    check_from_either(&[
        (V5, with(b"\x0B\x01\x0B\xFF\xFF\xFF\x7F"), "a server's Subscription Identifiers", Fine),
        (V5, with(b"\x0B\0"), "Subscription Identifier 0", out_of_range),
        (V5, with(b"\x0B\x80\0"), "a padded Subscription Identifier", Malformed("MQTT-1.5.5-1")),
        (V5, with(b"\x0B\x80\x80\x80\x80\x01"), "one of five bytes", Malformed("1.5.5")),
        (V5, with(b"\x0B\x80"), "one cut short", Malformed("2.1.4")),
    ]);
}

#[test]
fn acknowledgements() {
    for first in [0x40, 0x50, 0x62, 0x70] {
        let with = |reason: u8, properties: &[u8]| {
            packet(first, &[&[0, 1, reason], &[properties.len() as u8], properties])
        };
        check_from_client(&[
            (ALL, packet(first, &[b"\0\x01"]), "a Packet Identifier", Fine),
            (ALL, packet(first, &[b"\0\0"]), "Packet Identifier 0", Protocol("MQTT-2.2.1-3")),
            (ALL, packet(first, &[b"\0"]), "half a Packet Identifier", Malformed("2.1.4")),
            (ALL, packet(first, &[]), "nothing", Malformed("2.1.4")),
            (V3, packet(first, &[b"\0\x01\0"]), "a byte left over", Malformed("2.1.4")),
            (V5, packet(first, &[b"\0\x01\0"]), "success, without Property Length", Fine),
            (V5, with(0, b""), "success, with it", Fine),
            (V5, with(0, b"\x1F\0\x01r\x26\0\x01k\0\x01v\x26\0\0\0\0"), "properties", Fine),
            (V5, with(0, b"\x1F\0\x01r\x1F\0\x01r"), "Reason String twice", Protocol("2.2.2.2")),
            (V5, with(0, b"\x0B\x01"), "another property", Malformed("2.2.2.2")),
            (V5, with(0x01, b""), "Granted QoS 1", Protocol("MQTT-3.4.2-1")),
            (V5, with(0x81, b""), "Malformed Packet", Protocol("MQTT-3.4.2-1")),
            (V5, with(0x7F, b""), "an unknown code", Protocol("MQTT-3.4.2-1")),
            (
                V5,
                packet(first, &[b"\0\x01\0\x05\x1F\0\x01r"]),
                "properties beyond the packet",
                Malformed("2.1.4"),
            ),
            (V5, packet(first, &[b"\0\x01\0\0\0"]), "a byte left over", Malformed("2.1.4")),
        ]);
        let (of_publish, of_release) = if matches!(first, 0x40 | 0x50) {
            (Fine, Protocol("MQTT-3.4.2-1"))
        } else {
            (Protocol("MQTT-3.4.2-1"), Fine)
        };
        for reason in [0x10, 0x80, 0x83, 0x87, 0x90, 0x91, 0x97, 0x99] {
            check_from_client(&[(V5, with(reason, b""), "a code of PUBACK and PUBREC", of_publish)]);
        }
        check_from_client(&[(V5, with(0x92, b""), "a code of PUBREL and PUBCOMP", of_release)]);
    }
}

#[test]
fn subscribes() {
    let v3 = |filter: &str, options: u8| packet(0x82, &[b"\0\x01", &s(filter), &[options]]);
    let v5 = |filter: &str, options: u8| packet(0x82, &[b"\0\x01\0", &s(filter), &[options]]);
    let with =
        |properties: &[u8]| packet(0x82, &[b"\0\x01", &[properties.len() as u8], properties, &s("a"), &[0]]);
    check_from_client(&[
        (V3, v3("a", 0), "QoS 0", Fine),
        (V3, v3("a/+/#", 2), "QoS 2", Fine),
        (V3, v3("a", 3), "QoS 3", Malformed("MQTT-3-8.3-4")),
        (V3, v3("a", 4), "a reserved bit", Malformed("MQTT-3-8.3-4")),
        (V3, v3("a", 0x80), "a reserved bit", Malformed("MQTT-3-8.3-4")),
        (V3, packet(0x82, &[b"\0\x01", &s("a"), &[0], &s("b"), &[1]]), "two filters", Fine),
        (V3, packet(0x82, &[b"\0\x01"]), "no filter", Protocol("MQTT-3.8.3-2")),
        (V3, packet(0x82, &[b"\0\x01", &s("a")]), "a filter without QoS", Malformed("2.1.4")),
        (V3, packet(0x82, &[b"\0\x01", &s("a"), &[0], &s("b")]), "the last without QoS", Malformed("2.1.4")),
        (V3, packet(0x82, &[b"\0\0", &s("a"), &[0]]), "Packet Identifier 0", Protocol("MQTT-2.2.1-3")),
        (V3, v3("", 0), "an empty filter", Malformed("MQTT-4.7.3-1")),
        (V3, v3("a/#/b", 0), "# before the end", Malformed("MQTT-4.7.1-1")),
        (V3, v3("a#", 0), "# within a level", Malformed("MQTT-4.7.1-1")),
        (V3, v3("a+/b", 0), "+ within a level", Malformed("MQTT-4.7.1-1")),
        (V3, v3("a\0", 0), "U+0000", Malformed("MQTT-1.5.4-2")),
        (V3, packet(0x82, &[b"\0\x01", &s(b"\xFF"), &[0]]), "ill-formed", Malformed("MQTT-1.5.4-1")),
        (V3, v3(&"/".repeat(200), 0), "201 levels are for the broker to answer", Fine),
        (V5, v5(&"/".repeat(200), 0), "201 levels are for the broker to answer", Fine),
        (V3, v3("$share/x", 0), "in MQTT 3 a topic like others", Fine),
        (V5, v5("a", 0b0010_1110), "all options", Fine),
        (V5, v5("a", 0b0001_0000), "retained if new", Fine),
        (V5, v5("a", 0b0000_0011), "QoS 3", Protocol("3.8.3.1")),
        (V5, v5("a", 0b0011_0000), "Retain Handling 3", Protocol("3.8.3.1")),
        (V5, v5("a", 0b0100_0000), "a reserved bit", Malformed("MQTT-3.8.3-5")),
        (V5, v5("a", 0b1000_0000), "a reserved bit", Malformed("MQTT-3.8.3-5")),
        (V5, v5("$share/g/a", 0), "a Shared Subscription", Fine),
        (V5, v5("$share/g/a", 0b0000_0100), "a shared one with No Local", Protocol("MQTT-3.8.3-4")),
        (V5, v5("$share/g", 0), "a shared one without filter", Malformed("MQTT-4.8.2-2")),
        (V5, v5("$share//a", 0), "a shared one without name", Malformed("MQTT-4.8.2-2")),
        (V5, v5("$share/g+/a", 0), "a wildcard in the share's name", Malformed("MQTT-4.7.1-1")),
        (V5, v5("$share/+/a", 0), "a wildcard as the share's name", Malformed("MQTT-4.8.2-2")),
        (V5, packet(0x82, &[b"\0\x01\0"]), "no filter", Protocol("MQTT-3.8.3-2")),
        (V5, packet(0x82, &[b"\0\x01"]), "no Property Length", Malformed("2.1.4")),
        (V5, with(b"\x0B\x01\x26\0\x01k\0\x01v"), "a Subscription Identifier", Fine),
        (V5, with(b"\x0B\xFF\xFF\xFF\x7F"), "the highest Subscription Identifier", Fine),
        (V5, with(b"\x0B\0"), "Subscription Identifier 0", Protocol("2.2.2")),
        (V5, with(b"\x0B\x01\x0B\x02"), "two Subscription Identifiers", Protocol("2.2.2.2")),
        (V5, with(b"\x1F\0\x01r"), "a Reason String", Malformed("2.2.2.2")),
    ]);
}

#[test]
fn unsubscribes() {
    check_from_client(&[
        (V3, packet(0xA2, &[b"\0\x01", &s("a"), &s("b/#")]), "two filters", Fine),
        (V5, packet(0xA2, &[b"\0\x01\0", &s("a")]), "a filter", Fine),
        (V5, packet(0xA2, &[b"\0\x01\x07\x26\0\x01k\0\x01v", &s("a")]), "User Properties", Fine),
        (
            V5,
            packet(0xA2, &[b"\0\x01\x02\x0B\x01", &s("a")]),
            "a Subscription Identifier",
            Malformed("2.2.2.2"),
        ),
        (V3, packet(0xA2, &[b"\0\x01"]), "no filter", Protocol("MQTT-3.10.3-2")),
        (V5, packet(0xA2, &[b"\0\x01\0"]), "no filter", Protocol("MQTT-3.10.3-2")),
        (V3, packet(0xA2, &[b"\0\0", &s("a")]), "Packet Identifier 0", Protocol("MQTT-2.2.1-3")),
        (V3, packet(0xA2, &[b"\0\x01", &s("")]), "an empty filter", Malformed("MQTT-4.7.3-1")),
        (V3, packet(0xA2, &[b"\0\x01", &s("#/a")]), "a misplaced wildcard", Malformed("MQTT-4.7.1-1")),
        (V3, packet(0xA2, &[b"\0\x01", &s("a"), &[0]]), "half a length", Malformed("2.1.4")),
        (V3, packet(0xA2, &[b"\0\x01", &s(b"\xFF")]), "ill-formed", Malformed("MQTT-1.5.4-1")),
    ]);
}

#[test]
fn answers_to_subscribe_and_unsubscribe() {
    check_from_either(&[
        (V3, packet(0x90, &[b"\0\x01\0\x01\x02\x80"]), "all codes", Fine),
        (V3, packet(0x90, &[b"\0\x01\x03"]), "QoS 3", Protocol("MQTT-3.9.3-2")),
        (V3, packet(0x90, &[b"\0\x01\x87"]), "a 5.0 code", Protocol("MQTT-3.9.3-2")),
        (V3, packet(0x90, &[b"\0\x01"]), "no code", Protocol("MQTT-3.9.3-2")),
        (V5, packet(0x90, &[b"\0\x01"]), "no Property Length", Malformed("2.1.4")),
        (V5, packet(0x90, &[b"\0\x01\0\0\x01\x02\x80\x83\x87\x8F\x91\x97\x9E\xA1\xA2"]), "all codes", Fine),
        (V5, packet(0x90, &[b"\0\x01\0\x11"]), "a code of UNSUBACK", Protocol("MQTT-3.9.3-2")),
        (V5, packet(0x90, &[b"\0\x01\0"]), "no code", Protocol("MQTT-3.9.3-2")),
        (V5, packet(0x90, &[b"\0\x01\x04\x1F\0\x01r\0"]), "a Reason String", Fine),
        (V3, packet(0xB0, &[b"\0\x01"]), "a Packet Identifier", Fine),
        (V3, packet(0xB0, &[b"\0\x01\0"]), "MQTT 3 has no codes", Malformed("2.1.4")),
        (V5, packet(0xB0, &[b"\0\x01\0\0\x11\x80\x83\x87\x8F\x91"]), "all codes", Fine),
        (V5, packet(0xB0, &[b"\0\x01\0\x01"]), "a code of SUBACK", Protocol("MQTT-3.11.3-2")),
        (ALL, packet(0xB0, &[b"\0\0\0\0"]), "Packet Identifier 0", Protocol("MQTT-2.2.1-3")),
    ]);
    check_from_client(&[
        (V3, packet(0x90, &[b"\0\x01\0"]), "SUBACK from a client", Protocol("2.1.2")),
        (V5, packet(0xB0, &[b"\0\x01\0\0"]), "UNSUBACK from a client", Protocol("2.1.2")),
    ]);
}

#[test]
fn disconnects() {
    let with = |reason: u8, properties: &[u8]| packet(0xE0, &[&[reason, properties.len() as u8], properties]);
    let illegal = Protocol("MQTT-3.14.2-1");
    check_from_client(&[
        (ALL, vec![0xE0, 0], "the normal end", Fine),
        (V3, vec![0xE0, 1, 0], "MQTT 3 says no reason", Malformed("2.1.4")),
        (V5, vec![0xE0, 1, 0x04], "with will, without Property Length", Fine),
        (V5, with(0x04, b""), "with will", Fine),
        (V5, with(0, b"\x11\0\0\0\x09\x1F\0\x01r\x26\0\0\0\0"), "properties", Fine),
        (V5, with(0, b"\x11\0\0\0\x09\x11\0\0\0\x09"), "Session Expiry twice", Protocol("2.2.2.2")),
        (V5, with(0, b"\x21\0\x01"), "another property", Malformed("2.2.2.2")),
        (V5, with(0x8B, b""), "a server's code", illegal),
        (V5, with(0x8E, b""), "a server's code", illegal),
        (V5, with(0x01, b""), "a code of SUBACK", illegal),
        (V5, with(0x84, b""), "a code of CONNACK", illegal),
        (V5, with(0x05, b""), "an unknown code", illegal),
        (V5, with(0, b"\x1C\0\x01s"), "a client's Server Reference", Protocol("3.14.2.2.5")),
        (V5, vec![0xE0, 3, 0, 0, 0], "a byte left over", Malformed("2.1.4")),
    ]);
    check_from_either(&[
        (V5, with(0x8B, b"\x1C\0\x01s"), "Server shutting down", Fine),
        (V5, with(0xA2, b""), "Wildcard Subscriptions not supported", Fine),
        (V5, with(0x84, b""), "a code of CONNACK", illegal),
    ]);
}

#[test]
fn auths() {
    let with = |reason: u8, properties: &[u8]| packet(0xF0, &[&[reason, properties.len() as u8], properties]);
    let illegal = Protocol("MQTT-3.15.2-1");
    check_from_client(&[
        (V5, with(0x18, b"\x15\0\x01m\x16\0\x01d\x1F\0\x01r\x26\0\0\0\0"), "a step", Fine),
        (V5, with(0x19, b"\x15\0\x01m"), "again", Fine),
        (V5, with(0x00, b"\x15\0\x01m"), "success is the server's to tell", illegal),
        (V5, vec![0xF0, 0], "success is the server's to tell", illegal),
        (V5, with(0x87, b"\x15\0\x01m"), "another code", illegal),
        (V5, with(0x18, b"\x16\0\x01d"), "no method", Protocol("3.15.2.2.2")),
        (V5, with(0x18, b"\x15\0\x01m\x15\0\x01m"), "two methods", Protocol("2.2.2.2")),
        (V5, with(0x18, b"\x15\0\x01m\x11\0\0\0\0"), "another property", Malformed("2.2.2.2")),
        (V5, vec![0xF0, 1, 0x18], "no Property Length", Malformed("2.1.4")),
    ]);
    check_from_either(&[
        (V5, vec![0xF0, 0], "success", Fine),
        (V5, with(0x00, b"\x15\0\x01m"), "success with its method", Fine),
    ]);
}
