//! Topic Names and Topic Filters, UTF-8, payloads, and the properties that travel with a publish.

use super::client::{Answer, Client, value};
use super::wire::{self, Connect, Publish, property};
use super::{LEVELS, broker};

fn open(level: u8) -> Client {
    Client::open(broker().mqtt, &Connect::fresh(level))
}

#[test]
fn topics_match_by_levels_and_characters_as_they_are() {
    let check = |filter: &str, matching: &[&str], others: &[&str]| {
        for level in LEVELS {
            let mut client = open(level);
            client.subscribe(filter, 1);
            client.subscribe("topics-marker", 1);
            for topic in matching.iter().chain(others).chain(&["topics-marker"]) {
                let packet_id = client.next_id();
                client.publish_only(&Publish::at(1, packet_id, topic, ""));
            }
            for topic in matching.iter().chain(&["topics-marker"]) {
                assert_eq!(client.take_publish_amid_acks().topic, **topic, "{filter}");
            }
        }
    };
    check(
        "tm/player1/#",
        &["tm/player1", "tm/player1/ranking", "tm/player1/score/x"],
        &["tm", "tm/player2", "tm/player10"],
    );
    check("tm/+", &["tm/a", "tm/", "tm/é"], &["tm", "tm/a/b", "/tm/a"]);
    check("tm/+/x", &["tm/a/x", "tm//x"], &["tm/x", "tm/a/b/x", "tm/a/X"]);
    check("/tm", &["/tm"], &["tm", "tm/", "/tm/"]);
    check("+/tm2", &["/tm2", "a/tm2"], &["tm2", "$a/tm2"]);
    check("tm/ACCOUNTS", &["tm/ACCOUNTS"], &["tm/Accounts"]);
    check("tm/a b", &["tm/a b"], &["tm/a  b", "tm/a"]);
    // Composed and decomposed, with and without a byte order mark: no normalisation [MQTT-4.7.3-4] [MQTT-1.5.4-3].
    check("tm/\u{e9}", &["tm/\u{e9}"], &["tm/e\u{301}"]);
    check("tm/\u{feff}a", &["tm/\u{feff}a"], &["tm/a"]);
    check("\u{feff}tm", &["\u{feff}tm"], &["tm"]);
    check("tm/\u{fffd}\u{10ffff}\u{1}\u{85}", &["tm/\u{fffd}\u{10ffff}\u{1}\u{85}"], &["tm/\u{fffd}"]);
    check("$tm/#", &["$tm", "$tm/a"], &["tm/a"]);
    check("$tm/+", &["$tm/a"], &["$tm", "tm/a"]);
}

#[test]
fn dollar_topics_are_hidden_from_wildcards_at_the_first_level() {
    // [MQTT-4.7.2-1], for what is published now and for what is retained.
    for level in LEVELS {
        let mut publisher = open(level);
        let topic = format!("$hidden{level}/a");
        publisher.publish(&Publish::at(1, 1, &topic, "kept").retained());
        for filter in ["#", "+/#", "+/a", "+/+"] {
            let mut client = open(level);
            client.send([wire::subscribe(level, 1, filter, 0), wire::PINGREQ.into()].concat());
            while client.receive() != Answer::PingResp {}
            publisher.publish(&Publish::at(1, 2, &topic, "hidden"));
            let marker = format!("topics-hidden/{level}");
            publisher.publish(&Publish::at(1, 3, &marker, ""));
            publisher.publish(&Publish::at(1, 3, &format!("{marker}/a"), ""));
            publisher.publish(&Publish::at(1, 3, "topics-hidden/a", ""));
            loop {
                let publish = match client.receive() {
                    Answer::Publish(publish) => publish,
                    Answer::SubAck { codes, .. } => {
                        assert_eq!(codes, [0]);
                        continue;
                    }
                    other => panic!("{other:?}"),
                };
                assert!(!publish.topic.starts_with('$'), "{filter} brought {}", publish.topic);
                if publish.topic.starts_with("topics-hidden/") {
                    break;
                }
            }
        }
        publisher.publish(&Publish::at(1, 1, &topic, "").retained());
    }
}

#[test]
fn the_longest_topic_and_the_deepest_are_carried() {
    // [MQTT-4.7.3-3]
    let longest = format!("topics/{}", "x".repeat(65_535 - 7));
    let deepest = format!("topics{}", "/".repeat(199));
    for level in LEVELS {
        for topic in [&longest, &deepest] {
            let mut client = open(level);
            client.subscribe(topic, 1);
            let packet_id = client.next_id();
            client.publish_only(&Publish::at(1, packet_id, topic, "far"));
            let publish = client.take_publish_amid_acks();
            assert_eq!((&publish.topic, publish.text()), (topic, "far"));
            client.send(wire::unsubscribe(level, 9, &[topic]));
            let codes = if level == 5 { vec![0] } else { Vec::new() };
            while client.receive() != (Answer::UnsubAck { packet_id: 9, codes: codes.clone() }) {}
        }
    }
}

#[test]
fn payloads_are_any_bytes_of_any_length() {
    for level in LEVELS {
        let topic = format!("topics/payload/{level}");
        let mut client = open(level);
        client.subscribe(&topic, 2);
        let mut publisher = open(level);
        for bytes in [0, 1, 127, 128, 8_191, 8_192, 16_384, 500_000] {
            let payload: Vec<u8> = (0..bytes).map(|index: usize| (index * 7 + bytes) as u8).collect();
            for qos in 0..3 {
                publisher.publish(&Publish { payload: payload.clone(), ..Publish::at(qos, 1, &topic, "") });
                assert!(
                    client.take_publish().payload == payload,
                    "{bytes} bytes at QoS {qos}, level {level}"
                );
            }
        }
    }
}

#[test]
fn the_properties_of_a_publish_travel_unaltered() {
    // [MQTT-3.3.2-4] [MQTT-3.3.2-15] [MQTT-3.3.2-16] [MQTT-3.3.2-17] [MQTT-3.3.2-18] [MQTT-3.3.2-20]
    let list = vec![
        property::byte(property::PAYLOAD_FORMAT, 1),
        property::text(property::CONTENT_TYPE, "application/json; é"),
        property::text(property::RESPONSE_TOPIC, "answers/here"),
        property::text(property::CORRELATION_DATA, b"\x00\xFF\x01"),
        property::user("b", "1"),
        property::user("a", ""),
        property::user("b", "1"),
        property::user("", "é"),
    ];
    let mut client = open(5);
    client.subscribe("topics/properties", 2);
    let mut old = open(4);
    old.subscribe("topics/properties", 2);
    let mut publisher = open(5);
    for qos in 0..3 {
        let publish = Publish { properties: list.clone(), ..Publish::at(qos, 1, "topics/properties", "{}") };
        publisher.publish(&publish);
        let got = client.take_publish();
        let users = |list: &[Vec<u8>]| -> Vec<Vec<u8>> {
            list.iter().filter(|property| property[0] == property::USER).cloned().collect()
        };
        assert_eq!(users(&got.properties), users(&list), "QoS {qos}: their order is kept");
        let sorted = |list: &[Vec<u8>]| {
            let mut list = list.to_vec();
            list.sort();
            list
        };
        assert_eq!(sorted(&got.properties), sorted(&list), "QoS {qos}");
        assert_eq!(
            old.take_publish(),
            Publish { packet_id: old_id(qos), ..Publish::at(qos, 1, "topics/properties", "{}") }
        );
    }
}

/// The Packet Identifiers of a session that had nothing before: one by one.
fn old_id(qos: u8) -> u16 {
    u16::from(qos)
}

#[test]
fn message_expiry_is_told_to_live_subscribers() {
    let mut client = open(5);
    client.subscribe("topics/expiry", 2);
    let mut publisher = open(5);
    for qos in 0..3 {
        let expiry = property::four(property::MESSAGE_EXPIRY, 500);
        publisher.publish(&Publish::at(qos, 1, "topics/expiry", "text").with(expiry));
        let publish = client.take_publish();
        let left = value(&publish.properties, property::MESSAGE_EXPIRY).expect("it travels");
        assert!((490..=500).contains(&u32::from_be_bytes(left.try_into().unwrap())));
    }
}

#[test]
fn the_server_uses_aliases_as_far_as_the_client_takes_them() {
    // [MQTT-3.1.2-26] [MQTT-3.1.2-27] [MQTT-3.3.2-11]
    let topics = ["topics/out/first", "topics/out/second", "topics/out/third"];
    for maximum in [0, 1, 2] {
        let connect = Connect::fresh(5).with(property::two(property::TOPIC_ALIAS_MAXIMUM, maximum));
        let mut client = Client::open(broker().mqtt, &connect);
        // A second subscriber, so that each publish goes to several of different kinds.
        let mut plain = open(5);
        client.subscribe("topics/out/+", 2);
        plain.subscribe("topics/out/+", 2);
        let mut publisher = open(5);
        let mut known: Vec<(Vec<u8>, String)> = Vec::new();
        for round in 0..3 {
            for topic in topics {
                for qos in 0..3 {
                    let text = format!("{round} {qos}");
                    publisher.publish(&Publish::at(qos, 1, topic, &text));
                    let mut publish = client.take_publish();
                    if let Some(alias) = value(&publish.properties, property::TOPIC_ALIAS) {
                        let number = u16::from_be_bytes(alias.try_into().unwrap());
                        assert!((1..=maximum).contains(&number), "alias {number} of {maximum}");
                        if publish.topic.is_empty() {
                            let meant = known.iter().find(|(known, _)| known == alias);
                            publish.topic = meant.expect("an alias is set before it is used").1.clone();
                        } else {
                            known.retain(|(known, _)| known != alias);
                            known.push((alias.to_vec(), publish.topic.clone()));
                        }
                    }
                    assert_eq!((publish.topic.as_str(), publish.text()), (topic, text.as_str()));
                    let plain = plain.take_publish();
                    assert_eq!((plain.topic.as_str(), plain.text()), (topic, text.as_str()));
                    assert!(plain.properties.is_empty(), "{:?}", plain.properties);
                }
            }
        }
        assert_eq!(known.len(), usize::from(maximum), "aliases are used where they save bytes");
    }
}

#[test]
fn a_topic_alias_stands_for_its_topic_until_it_is_set_anew() {
    // [MQTT-3.3.2-12]: every alias up to the maximum that was told.
    let (mut client, _, properties) = Client::accepted(broker().mqtt, &Connect::fresh(5));
    let maximum = value(&properties, property::TOPIC_ALIAS_MAXIMUM).expect("it is told");
    let maximum = u16::from_be_bytes(maximum.try_into().unwrap());
    let mut watcher = open(5);
    watcher.subscribe("topics/alias/#", 1);
    let alias = |number| property::two(property::TOPIC_ALIAS, number);
    for number in 1..=maximum {
        client.publish(&Publish::at(1, 1, &format!("topics/alias/{number}"), "set").with(alias(number)));
        client.publish(&Publish::at(1, 1, "", "used").with(alias(number)));
        for text in ["set", "used"] {
            let publish = watcher.take_publish();
            assert_eq!((publish.topic, publish.payload), (format!("topics/alias/{number}"), text.into()));
            assert!(
                publish.properties.is_empty(),
                "an alias is for one connection: {:?}",
                publish.properties
            );
        }
    }
    client.publish(&Publish::at(1, 1, "topics/alias/new", "set").with(alias(1)));
    client.publish(&Publish::at(1, 1, "", "used").with(alias(1)));
    for _ in 0..2 {
        assert_eq!(watcher.take_publish().topic, "topics/alias/new");
    }
    client.publish_only(&Publish::at(1, 1, "topics/alias/x", "").with(alias(maximum + 1)));
    client.expect_disconnect(0x94);
}
