//! What the clauses of sections 3.1 and 3.2 allow and forbid in CONNECT and CONNACK.

use super::*;

/// Checks CONNECT packets: the first bytes, a claim, the verdict.
#[track_caller]
fn check(cases: &[(Vec<u8>, &str, Verdict)]) {
    for (bytes, claim, verdict) in cases {
        let decoded = decode_connect(bytes, PACKET_BYTES_MAX).map_err(DecodeError::from);
        assert_eq!(Verdict::of(decoded), Some(*verdict), "{claim}: {bytes:02x?}");
    }
}

/// An MQTT 3.1.1 CONNECT with these flags and this payload.
fn v311(flags: u8, payload: &[&[u8]]) -> Vec<u8> {
    packet(0x10, &[&s("MQTT"), &[4, flags, 0, 10], &payload.concat()])
}

/// An MQTT 5.0 CONNECT with these flags, properties and payload.
fn v5(flags: u8, properties: &[u8], payload: &[&[u8]]) -> Vec<u8> {
    packet(0x10, &[&s("MQTT"), &[5, flags, 0, 10], &[properties.len() as u8], properties, &payload.concat()])
}

#[test]
fn the_first_packet_is_a_connect_of_a_known_version() {
    let level = |name: &str, level| packet(0x10, &[&s(name), &[level, 2, 0, 0], &s("c")]);
    check(&[
        (level("MQIsdp", 3), "MQTT 3.1", Fine),
        (level("MQTT", 4), "MQTT 3.1.1", Fine),
        (v5(2, b"", &[&s("c")]), "MQTT 5.0", Fine),
        (level("MQTT", 3), "a level without version", Verdict::Unsupported),
        (level("MQTT", 0), "a level without version", Verdict::Unsupported),
        (level("MQTT", 6), "a later level", Verdict::Unsupported),
        (level("MQIsdp", 4), "the old name with a new level", Verdict::Unsupported),
        (level("mqtt", 4), "the name is case sensitive", Protocol("MQTT-3.1.2-1")),
        (level("MQTTX", 4), "another name", Protocol("MQTT-3.1.2-1")),
        (level("", 4), "no name", Protocol("MQTT-3.1.2-1")),
        (vec![0x30, 3, 0, 1, b'a'], "PUBLISH first", Protocol("MQTT-3.1.0-1")),
        (vec![0xC0, 0], "PINGREQ first", Protocol("MQTT-3.1.0-1")),
        (vec![0xF0, 0], "AUTH first", Protocol("MQTT-3.1.0-1")),
        (vec![0x00, 0], "nonsense first", Protocol("MQTT-3.1.0-1")),
        (vec![0x11, 0], "reserved header flags", Malformed("MQTT-2.1.3-1")),
        (vec![0x18, 0], "reserved header flags", Malformed("MQTT-2.1.3-1")),
        (vec![0x10, 0], "an empty CONNECT", Malformed("2.1.4")),
        (vec![0x10, 0xFF, 0xFF, 0xFF, 0xFF], "five bytes of Remaining Length", Malformed("1.5.5")),
    ]);
}

#[test]
fn connect_flags_announce_what_follows() {
    let c = s("c");
    check(&[
        (v311(0b0000_0010, &[&c]), "nothing announced", Fine),
        (v311(0b0000_0000, &[&c]), "not clean", Fine),
        (v311(0b0000_0011, &[&c]), "reserved flag", Malformed("MQTT-3.1.2-3")),
        (v5(0b0000_0011, b"", &[&c]), "reserved flag", Malformed("MQTT-3.1.2-3")),
        (packet(0x10, &[&s("MQIsdp"), &[3, 3, 0, 0], &c]), "3.1 has no rule for it", Fine),
        (v311(0b0000_0110, &[&c, &s("w"), &s("p")]), "a will", Fine),
        (v311(0b0011_0110, &[&c, &s("w"), &s("p")]), "a retained will at QoS 2", Fine),
        (v311(0b0001_1110, &[&c, &s("w"), &s("p")]), "Will QoS 3", Malformed("MQTT-3.1.2-12")),
        (v311(0b0001_1010, &[&c]), "Will QoS 3 without a will", Malformed("MQTT-3.1.2-12")),
        (v311(0b0000_1010, &[&c]), "Will QoS 1 without a will", Malformed("MQTT-3.1.2-11")),
        (v5(0b0001_0010, b"", &[&c]), "Will QoS 2 without a will", Malformed("MQTT-3.1.2-11")),
        (v311(0b0010_0010, &[&c]), "Will Retain without a will", Malformed("MQTT-3.1.2-13")),
        (v311(0b0000_0110, &[&c]), "an announced will is missing", Malformed("2.1.4")),
        (v311(0b0000_0110, &[&c, &s("w")]), "an announced will payload is missing", Malformed("2.1.4")),
        (v311(0b1000_0010, &[&c, &s("u")]), "a user name", Fine),
        (v311(0b1100_0010, &[&c, &s("u"), &s("p")]), "user name and password", Fine),
        (v311(0b1100_0010, &[&c, &s("u"), &s([0xFF, 0])]), "a password is any bytes", Fine),
        (v311(0b1100_0010, &[&c, &s(""), &s("")]), "both empty", Fine),
        (v311(0b0100_0010, &[&c, &s("p")]), "a password alone", Malformed("MQTT-3.1.2-22")),
        (v5(0b0100_0010, b"", &[&c, &s("p")]), "5.0 allows a password alone", Fine),
        (v311(0b1000_0010, &[&c]), "an announced user name is missing", Malformed("2.1.4")),
        (v311(0b1100_0010, &[&c, &s("u")]), "an announced password is missing", Malformed("2.1.4")),
        (v311(0b0000_0010, &[&c, &s("u")]), "a user name that was not announced", Malformed("2.1.4")),
        (v311(0b0000_0010, &[&c, &[0]]), "a byte left over", Malformed("2.1.4")),
    ]);
}

#[test]
fn connect_strings_are_utf8() {
    let c = s("c");
    check(&[
        (v311(2, &[&s("")]), "an empty Client Identifier", Fine),
        (v311(2, &[&s("é/漢字/🌡")]), "any characters", Fine),
        (v311(2, &[&s("\u{FEFF}c")]), "a byte order mark [MQTT-1.5.4-3]", Fine),
        (v311(2, &[&s("c\u{1}")]), "control characters are allowed", Fine),
        (v311(2, &[&s("x".repeat(65_535))]), "the longest Client Identifier", Fine),
        (v311(2, &[]), "no Client Identifier", Malformed("2.1.4")),
        (v311(2, &[&s(b"c\xFF")]), "ill-formed", Malformed("MQTT-1.5.4-1")),
        (v311(2, &[&s(b"\xED\xA0\x80")]), "a surrogate", Malformed("MQTT-1.5.4-1")),
        (v311(2, &[&s(b"\xC0\x80")]), "an overlong U+0000", Malformed("MQTT-1.5.4-1")),
        (v311(2, &[&s(b"\xF4\x90\x80\x80")]), "beyond U+10FFFF", Malformed("MQTT-1.5.4-1")),
        (v311(2, &[&s(b"\xE6\xBC")]), "a character cut short", Malformed("MQTT-1.5.4-1")),
        (v311(2, &[&s("c\0")]), "U+0000", Malformed("MQTT-1.5.4-2")),
        (v311(0x82, &[&c, &s(b"\xFF")]), "an ill-formed User Name", Malformed("MQTT-1.5.4-1")),
        (v311(0x82, &[&c, &s("u\0")]), "U+0000 in the User Name", Malformed("MQTT-1.5.4-2")),
        (v311(6, &[&c, &s(b"\xFF"), &s("")]), "an ill-formed Will Topic", Malformed("MQTT-1.5.4-1")),
        (v311(6, &[&c, &s(""), &s("")]), "an empty Will Topic", Malformed("MQTT-4.7.3-1")),
        (v311(6, &[&c, &s("a/+"), &s("")]), "a wildcard in the Will Topic", Malformed("MQTT-3.3.2-2")),
        (v311(6, &[&c, &s("a"), &s(b"\xFF\0")]), "a Will payload is any bytes", Fine),
    ]);
}

#[test]
fn connect_properties() {
    let c = s("c");
    let with = |properties: &[u8]| v5(2, properties, &[&c]);
    let will = |properties: &[u8]| v5(6, b"", &[&c, &[properties.len() as u8], properties, &s("w"), &s("p")]);
    let unknown = Malformed("2.2.2.2");
    let twice = Protocol("2.2.2.2");
    let out_of_range = Protocol("2.2.2");
    check(&[
        (with(b"\x11\0\0\0\x0A\x21\0\x01\x27\0\0\0\x01\x22\0\0\x19\x01\x17\0"), "all numbers", Fine),
        (with(b"\x15\0\x01m\x16\0\x01d"), "method and data", Fine),
        (with(b"\x15\0\x01m"), "a method alone", Fine),
        (with(b"\x16\0\x01d"), "data without a method", Protocol("3.1.2.11.10")),
        (with(b"\x26\0\x01k\0\x01v\x26\0\x01k\0\x01v"), "User Properties repeat", Fine),
        (with(b"\x26\0\0\0\0"), "an empty User Property", Fine),
        (with(b"\x26\0\x01k"), "a User Property without a value", Malformed("2.1.4")),
        (with(b"\x26\0\x01\0\0\x01v"), "U+0000 in a User Property", Malformed("MQTT-1.5.4-2")),
        (with(b"\x26\0\x01\xFF\0\x01v"), "ill-formed User Property", Malformed("MQTT-1.5.4-1")),
        (with(b"\x11\0\0\0\x0A\x11\0\0\0\x0A"), "Session Expiry twice", twice),
        (with(b"\x21\0\x05\x21\0\x05"), "Receive Maximum twice", twice),
        (with(b"\x21\0\0"), "Receive Maximum 0", out_of_range),
        (with(b"\x27\0\0\0\0"), "Maximum Packet Size 0", out_of_range),
        (with(b"\x17\x02"), "Request Problem Information 2", out_of_range),
        (with(b"\x19\x02"), "Request Response Information 2", out_of_range),
        (with(b"\x11\0\0\x0A"), "a number cut short", Malformed("2.1.4")),
        (with(b"\x11"), "an identifier alone", Malformed("2.1.4")),
        (with(b"\x00"), "identifier 0", unknown),
        (with(b"\x04\0"), "an identifier that does not exist", unknown),
        (with(b"\x7F\0"), "an identifier above all", unknown),
        (with(b"\x91\x00\0\0\0\x0A"), "an identifier of two bytes", unknown),
        (with(b"\x01\x00"), "Payload Format belongs to the will", unknown),
        (with(b"\x18\0\0\0\x01"), "Will Delay belongs to the will", unknown),
        (with(b"\x23\0\x01"), "Topic Alias belongs to PUBLISH", unknown),
        (with(b"\x1F\0\x01r"), "Reason String belongs to answers", unknown),
        (packet(0x10, &[&s("MQTT"), &[5, 2, 0, 0]]), "no Property Length", Malformed("2.1.4")),
        (
            packet(0x10, &[&s("MQTT"), &[5, 2, 0, 0, 9], &c]),
            "properties beyond the packet",
            Malformed("2.1.4"),
        ),
        (
            packet(0x10, &[&s("MQTT"), &[5, 2, 0, 0, 0x80, 0], &c]),
            "a padded length",
            Malformed("MQTT-1.5.5-1"),
        ),
        (
            packet(0x10, &[&s("MQTT"), &[5, 2, 0, 0, 0x80, 0x80, 0x80, 0x80, 1], &c]),
            "a length of five bytes",
            Malformed("1.5.5"),
        ),
        (will(b""), "a will", Fine),
        (
            will(b"\x18\0\0\0\x05\x01\x01\x02\0\0\0\x09\x03\0\x01t\x08\0\x01r\x09\0\x01c"),
            "all of a will",
            Fine,
        ),
        (will(b"\x18\0\0\0\x05\x18\0\0\0\x05"), "Will Delay twice", twice),
        (will(b"\x01\x02"), "Payload Format 2", out_of_range),
        (will(b"\x08\0\x01#"), "a wildcard in the Response Topic", Protocol("MQTT-3.3.2-14")),
        (will(b"\x08\0\0"), "an empty Response Topic", Protocol("MQTT-3.3.2-14")),
        (will(b"\x11\0\0\0\x01"), "Session Expiry belongs to the connection", unknown),
        (will(b"\x23\0\x01"), "a will has no Topic Alias", unknown),
        (will(b"\x0B\x01"), "a will has no Subscription Identifier", unknown),
    ]);
    // A padded Remaining Length is allowed in MQTT 3 and not in 5.0 [MQTT-1.5.5-1].
    let padded = |mut bytes: Vec<u8>| {
        bytes[1] |= 0x80;
        bytes.insert(2, 0);
        bytes
    };
    check(&[
        (padded(v311(2, &[&c])), "padded", Fine),
        (padded(with(b"")), "padded", Malformed("MQTT-1.5.5-1")),
    ]);
}

#[test]
fn connack() {
    let with = |properties: &[u8]| packet(0x20, &[&[0, 0], &[properties.len() as u8], properties]);
    let out_of_range = Protocol("2.2.2");
    check_from_either(&[
        (V3, vec![0x20, 2, 0, 0], "accepted", Fine),
        (V5, vec![0x20, 3, 0, 0, 0], "accepted", Fine),
        (V311, vec![0x20, 2, 1, 0], "session present", Fine),
        (V31, vec![0x20, 2, 0xFF, 0], "3.1 has no flags", Fine),
        (V311, vec![0x20, 2, 2, 0], "reserved flags", Malformed("MQTT-3.2.2-1")),
        (V5, vec![0x20, 3, 0x81, 0, 0], "reserved flags", Malformed("MQTT-3.2.2-1")),
        (V311, vec![0x20, 2, 1, 5], "refused with a session", Protocol("MQTT-3.2.2-6")),
        (V5, vec![0x20, 3, 1, 0x87, 0], "refused with a session", Protocol("MQTT-3.2.2-6")),
        (V3, vec![0x20, 2, 0, 5], "refused", Fine),
        (V3, vec![0x20, 2, 0, 6], "a reserved return code", Protocol("3.2.2.3")),
        (V3, vec![0x20, 2, 0, 0x87], "a 5.0 code", Protocol("3.2.2.3")),
        (V5, vec![0x20, 3, 0, 0x87, 0], "refused", Fine),
        (V5, vec![0x20, 3, 0, 1, 0], "a code of SUBACK", Protocol("MQTT-3.2.2-8")),
        (V5, vec![0x20, 3, 0, 0x8B, 0], "a code of DISCONNECT", Protocol("MQTT-3.2.2-8")),
        (V5, vec![0x20, 2, 0, 0], "no Property Length", Malformed("2.1.4")),
        (V3, vec![0x20, 3, 0, 0, 0], "a byte left over", Malformed("2.1.4")),
        (ALL, vec![0x20, 1, 0], "cut short", Malformed("2.1.4")),
        (V5, with(b"\x12\0\x01c\x13\0\x0A\x1A\0\x01i\x1C\0\x01s\x1F\0\x01r"), "texts", Fine),
        (V5, with(b"\x21\0\x01\x22\0\x09\x24\x01\x25\0\x27\0\0\0\x09\x28\0\x29\0\x2A\0"), "numbers", Fine),
        (V5, with(b"\x24\x02"), "Maximum QoS 2 is told by leaving it out", out_of_range),
        (V5, with(b"\x21\0\0"), "Receive Maximum 0", out_of_range),
        (V5, with(b"\x27\0\0\0\0"), "Maximum Packet Size 0", out_of_range),
        (V5, with(b"\x25\x02"), "Retain Available 2", out_of_range),
        (V5, with(b"\x2A\x07"), "Shared Subscription Available 7", out_of_range),
        (V5, with(b"\x12\0\x01c\x12\0\x01c"), "a Client Identifier twice", Protocol("2.2.2.2")),
        (V5, with(b"\x17\x01"), "a property of CONNECT", Malformed("2.2.2.2")),
    ]);
    check_from_client(&[
        (V3, vec![0x20, 2, 0, 0], "from a client", Protocol("2.1.2")),
        (V5, vec![0x20, 3, 0, 0, 0], "from a client", Protocol("2.1.2")),
    ]);
}
