//! Each property of MQTT 5.0 in each packet a client sends: taken where it belongs, refused elsewhere and where it stands
//! twice.

use super::broker;
use super::client::{Answer, Client};
use super::wire::{self, Connect, Publish, Will, packet, properties, property};

/// A packet that a client sends, with these properties.
type Carrier = fn(&[Vec<u8>]) -> Vec<u8>;

fn connect(list: &[Vec<u8>]) -> Vec<u8> {
    Connect { properties: list.to_vec(), ..Connect::new(5, "") }.bytes()
}

fn will(list: &[Vec<u8>]) -> Vec<u8> {
    let will = Will { properties: list.to_vec(), ..Will::new("properties/will", "text") };
    Connect::new(5, "").will(will).bytes()
}

fn publish(list: &[Vec<u8>]) -> Vec<u8> {
    Publish { properties: list.to_vec(), ..Publish::at(1, 1, "properties/publish", "text") }.bytes(5)
}

fn subscribe(list: &[Vec<u8>]) -> Vec<u8> {
    wire::subscribe_all(5, 1, list, &[("properties/nothing", 0)])
}

fn unsubscribe(list: &[Vec<u8>]) -> Vec<u8> {
    packet(0xA2, &[&[0, 1], &properties(list), &wire::string("properties/nothing")])
}

fn puback(list: &[Vec<u8>]) -> Vec<u8> {
    packet(wire::PUBACK, &[&[0, 1, 0], &properties(list)])
}

fn pubrec(list: &[Vec<u8>]) -> Vec<u8> {
    packet(wire::PUBREC, &[&[0, 1, 0], &properties(list)])
}

fn pubrel(list: &[Vec<u8>]) -> Vec<u8> {
    packet(wire::PUBREL, &[&[0, 1, 0], &properties(list)])
}

fn pubcomp(list: &[Vec<u8>]) -> Vec<u8> {
    packet(wire::PUBCOMP, &[&[0, 1, 0], &properties(list)])
}

fn disconnect(list: &[Vec<u8>]) -> Vec<u8> {
    packet(0xE0, &[&[0], &properties(list)])
}

/// Which properties each packet may have (table 2-4).
const PLACES: [(Carrier, &[u8]); 10] = [
    (
        connect,
        &[
            property::SESSION_EXPIRY,
            property::REQUEST_PROBLEM_INFORMATION,
            property::REQUEST_RESPONSE_INFORMATION,
            property::RECEIVE_MAXIMUM,
            property::TOPIC_ALIAS_MAXIMUM,
            property::MAXIMUM_PACKET_SIZE,
            property::USER,
        ],
    ),
    (
        will,
        &[
            property::PAYLOAD_FORMAT,
            property::MESSAGE_EXPIRY,
            property::CONTENT_TYPE,
            property::RESPONSE_TOPIC,
            property::CORRELATION_DATA,
            property::WILL_DELAY,
            property::USER,
        ],
    ),
    (
        publish,
        &[
            property::PAYLOAD_FORMAT,
            property::MESSAGE_EXPIRY,
            property::CONTENT_TYPE,
            property::RESPONSE_TOPIC,
            property::CORRELATION_DATA,
            property::TOPIC_ALIAS,
            property::USER,
        ],
    ),
    (subscribe, &[property::SUBSCRIPTION_ID, property::USER]),
    (unsubscribe, &[property::USER]),
    (puback, &[property::REASON_STRING, property::USER]),
    (pubrec, &[property::REASON_STRING, property::USER]),
    (pubrel, &[property::REASON_STRING, property::USER]),
    (pubcomp, &[property::REASON_STRING, property::USER]),
    (disconnect, &[property::REASON_STRING, property::USER]),
];

/// These mean more than their own presence, and have tests of their own.
fn is_told_elsewhere(carrier: Carrier, id: u8) -> bool {
    let bytes = carrier(&[]);
    let connects =
        bytes[0] == 0x10 && matches!(id, property::AUTHENTICATION_METHOD | property::AUTHENTICATION_DATA);
    let publishes = bytes[0] == 0x32 && id == property::SUBSCRIPTION_ID;
    let leaves = bytes[0] == 0xE0 && matches!(id, property::SESSION_EXPIRY | property::SERVER_REFERENCE);
    connects || publishes || leaves
}

/// The code with which a packet is refused; `None` when it is taken.
fn refusal(bytes: &[u8]) -> Option<u8> {
    if bytes[0] == 0x10 {
        let mut client = Client::dial(broker().mqtt, 5);
        client.send(bytes);
        return match client.receive() {
            Answer::ConnAck { code: 0, .. } => None,
            Answer::ConnAck { code, .. } => {
                client.expect_closed();
                Some(code)
            }
            other => panic!("{bytes:02x?} is answered with {other:?}"),
        };
    }
    let mut client = Client::open(broker().mqtt, &Connect::new(5, ""));
    client.send(bytes);
    client.send(wire::PINGREQ);
    loop {
        match client.receive() {
            Answer::PingResp => return None,
            Answer::Closed => return (bytes[0] != 0xE0).then_some(0),
            Answer::Disconnect { code, .. } => {
                client.expect_closed();
                return Some(code);
            }
            // The answer to the packet itself, perhaps behind that to PINGREQ.
            _ => {}
        }
    }
}

#[test]
fn a_property_stands_only_where_it_belongs() {
    for (carrier, allowed) in PLACES {
        for id in property::ALL.into_iter().filter(|id| !is_told_elsewhere(carrier, *id)) {
            let bytes = carrier(&[property::sample(id)]);
            let expected = if allowed.contains(&id) { None } else { Some(0x81) };
            assert_eq!(refusal(&bytes), expected, "property {id:#04x} in {bytes:02x?}");
        }
        for unknown in [0x00, 0x04, 0x2B, 0x7F] {
            let bytes = carrier(&[vec![unknown, 0]]);
            assert_eq!(refusal(&bytes), Some(0x81), "property {unknown:#04x} in {bytes:02x?}");
        }
    }
}

#[test]
fn a_property_stands_once_except_user_properties() {
    for (carrier, allowed) in PLACES {
        for id in allowed {
            let bytes = carrier(&[property::sample(*id), property::sample(*id)]);
            let expected = if *id == property::USER { None } else { Some(0x82) };
            assert_eq!(refusal(&bytes), expected, "property {id:#04x} twice in {bytes:02x?}");
        }
    }
}

#[test]
fn values_of_connect_properties_are_checked() {
    for (what, wrong, code) in [
        ("Receive Maximum 0", property::two(property::RECEIVE_MAXIMUM, 0), 0x82),
        ("Maximum Packet Size 0", property::four(property::MAXIMUM_PACKET_SIZE, 0), 0x82),
        ("Request Problem Information 2", property::byte(property::REQUEST_PROBLEM_INFORMATION, 2), 0x82),
        ("Request Response Information 2", property::byte(property::REQUEST_RESPONSE_INFORMATION, 2), 0x82),
        ("Authentication Data alone", property::text(property::AUTHENTICATION_DATA, "x"), 0x82),
        ("an ill-formed User Property", vec![property::USER, 0, 1, 0xFF, 0, 0], 0x81),
        ("a number cut short", vec![property::SESSION_EXPIRY, 0], 0x81),
    ] {
        assert_eq!(refusal(&connect(&[wrong])), Some(code), "{what}");
    }
    for (what, wrong, code) in [
        ("Payload Format 2", property::byte(property::PAYLOAD_FORMAT, 2), 0x82),
        ("a wildcard to respond to", property::text(property::RESPONSE_TOPIC, "#"), 0x82),
        ("an ill-formed Content Type", property::text(property::CONTENT_TYPE, b"\xFF"), 0x81),
    ] {
        assert_eq!(refusal(&will(&[wrong])), Some(code), "{what} in a Will");
    }
}

#[test]
fn a_property_length_of_zero_says_that_there_are_none() {
    // [MQTT-2.2.2-1]: what the broker sends is read by the client above, which expects the length everywhere.
    let mut client = Client::open(broker().mqtt, &Connect::new(5, ""));
    client.send(wire::subscribe(5, 1, "properties/none", 0));
    client.expect(&Answer::SubAck { packet_id: 1, codes: vec![0] });
    client.send(Publish::new("properties/none", "x").bytes(5));
    assert_eq!(client.receive_publish().properties, Vec::<Vec<u8>>::new());
    client.send(wire::unsubscribe(5, 2, &["properties/none"]));
    client.expect(&Answer::UnsubAck { packet_id: 2, codes: vec![0] });
}
