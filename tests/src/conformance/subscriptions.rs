//! SUBSCRIBE and UNSUBSCRIBE, and what each Subscription Option does.

use super::client::{Answer, Client};
use super::wire::{self, Connect, Publish, property};
use super::{LEVELS, broker};

fn open(level: u8) -> Client {
    Client::open(broker().mqtt, &Connect::fresh(level))
}

/// Publishes at `qos` from another client and waits for its acknowledgement.
fn publish(qos: u8, topic: &str, text: &str) {
    open(5).publish(&Publish::at(qos, 1, topic, text));
}

#[test]
fn suback_has_a_code_for_each_filter_in_order() {
    for level in LEVELS {
        let mut client = open(level);
        // [MQTT-3.8.4-5] [MQTT-3.8.4-6] [MQTT-3.9.3-1]: also for one that is refused in the middle.
        let deep = "/".repeat(200);
        let filters = [("a", 0), ("b/+", 1), (deep.as_str(), 1), ("c/#", 2), ("a", 2)];
        client.send(wire::subscribe_all(level, 4_711, &[], &filters));
        let refused = if level == 5 { 0x8F } else { 0x80 };
        client.expect(&Answer::SubAck { packet_id: 4_711, codes: vec![0, 1, refused, 2, 2] });
    }
}

#[test]
fn a_malformed_shared_subscription_is_refused() {
    for filter in ["$share", "$share/", "$share/g", "$share/g/", "$share//a", "$share/+/a", "$share/#/a"] {
        let mut client = open(5);
        client.send(wire::subscribe(5, 1, filter, 0));
        // [MQTT-4.8.2-1] [MQTT-4.8.2-2]: as a packet, or as a filter.
        match client.receive() {
            Answer::SubAck { codes, .. } => assert_eq!(codes, [0x8F], "{filter}"),
            Answer::Disconnect { code: 0x81 | 0x82 | 0x8F, .. } => client.expect_closed(),
            other => panic!("{filter} is answered with {other:?}"),
        }
    }
    // [MQTT-3.8.3-4]
    let mut client = open(5);
    client.send(wire::subscribe(5, 1, "$share/g/a", 0b0000_0100));
    client.expect_disconnect(0x82);
}

#[test]
fn delivery_is_at_the_lower_of_both_qos() {
    for level in LEVELS {
        for granted in 0..3 {
            let topic = format!("subscriptions/lower/{level}/{granted}");
            let mut client = open(level);
            client.subscribe(&topic, granted);
            for published in 0..3 {
                publish(published, &topic, "text");
                assert_eq!(client.take_publish().qos, granted.min(published), "[MQTT-3.8.4-8]");
            }
        }
    }
}

#[test]
fn the_same_filter_again_replaces_the_subscription() {
    for level in LEVELS {
        let topic = format!("subscriptions/again/{level}");
        publish(1, "subscriptions/other", "");
        let mut client = open(level);
        client.subscribe(&topic, 2);
        publish(2, &topic, "before");
        client.subscribe_amid_publishes(&topic, 0);
        publish(2, &topic, "after");
        // One copy, at the new QoS [MQTT-3.8.4-3].
        let after = client.take_publish_amid_acks();
        assert_eq!((after.text(), after.qos), ("after", 0), "level {level}");
        client.expect_nothing_but_pingresp();
    }
}

#[test]
fn overlapping_filters_bring_one_copy_at_the_highest_qos() {
    // [MQTT-3.3.4-2], [MQTT-3.3.5-1] of 3.1.1
    for level in LEVELS {
        let mut client = open(level);
        let filters =
            [("subscriptions/+/overlap", 1), ("subscriptions/#", 0), ("subscriptions/a/overlap", 2)];
        client.send(wire::subscribe_all(level, 1, &[], &filters));
        client.expect(&Answer::SubAck { packet_id: 1, codes: vec![1, 0, 2] });
        publish(2, "subscriptions/a/overlap", "one");
        let publish = loop {
            // The widest of them also sees what other tests publish.
            let publish = client.take_publish();
            if publish.topic == "subscriptions/a/overlap" {
                break publish;
            }
        };
        assert_eq!((publish.text(), publish.qos), ("one", 2), "level {level}");
    }
}

#[test]
fn every_matching_subscription_identifier_comes_along() {
    // [MQTT-3.3.4-3] [MQTT-3.3.4-4]
    let identifier = |number| [property::number(property::SUBSCRIPTION_ID, number)];
    let mut client = open(5);
    for (packet_id, number, filter) in
        [(1, 1, "identifiers/a"), (2, 268_435_455, "identifiers/+"), (3, 300, "identifiers/b")]
    {
        client.send(wire::subscribe_all(5, packet_id, &identifier(number), &[(filter, 2)]));
        client.expect(&Answer::SubAck { packet_id, codes: vec![2] });
    }
    client.subscribe_as(4, "identifiers/#", 2);
    for qos in 0..3 {
        publish(qos, "identifiers/a", "text");
        let mut got = client.take_publish().properties;
        got.sort();
        let mut expected = [identifier(1), identifier(268_435_455)].concat();
        expected.sort();
        assert_eq!(got, expected, "QoS {qos}");
    }
    // The identifier is replaced with the subscription, and gone with an identifier-less one.
    client.send(wire::subscribe_all(5, 5, &identifier(7), &[("identifiers/a", 2)]));
    client.expect(&Answer::SubAck { packet_id: 5, codes: vec![2] });
    client.subscribe_as(6, "identifiers/+", 2);
    publish(1, "identifiers/a", "text");
    assert_eq!(client.take_publish().properties, identifier(7));
}

#[test]
fn a_subscription_identifier_comes_with_retained_records_and_after_a_reconnect() {
    let identifier = [property::number(property::SUBSCRIPTION_ID, 42)];
    open(5).publish(&Publish::at(1, 1, "identifiers-kept/retained", "kept").retained());
    let connect = Connect::kept(5, "subscriptions-identifier");
    let mut client = Client::open(broker().mqtt, &connect);
    client.send(wire::subscribe_all(5, 1, &identifier, &[("identifiers-kept/#", 1)]));
    client.expect(&Answer::SubAck { packet_id: 1, codes: vec![1] });
    assert_eq!(client.take_publish().properties, identifier);
    client.disconnect();
    publish(1, "identifiers-kept/away", "text");
    let mut client = Client::open(broker().mqtt, &connect);
    let publish = client.receive_publish();
    assert_eq!(publish.properties, identifier);
    client.break_off();
    let mut client = Client::open(broker().mqtt, &connect);
    let again = client.take_publish();
    assert_eq!((again.dup, again.properties), (true, identifier.to_vec()));
    client.publish(&Publish::at(1, 9, "identifiers-kept/retained", "").retained());
    drop(client);
    Client::open(broker().mqtt, &Connect::new(5, "subscriptions-identifier")).disconnect();
}

#[test]
fn no_local_keeps_a_clients_own_publishes_from_it() {
    // [MQTT-3.8.3-3]
    for qos in 0..3 {
        let topic = format!("subscriptions/no-local/{qos}");
        let mut own = open(5);
        own.subscribe(&topic, 0b0000_0100 | qos);
        let mut other = open(5);
        other.subscribe(&topic, 0b0000_0100 | qos);
        own.publish(&Publish::at(qos, 9, &topic, "mine"));
        assert_eq!(other.take_text(), "mine", "QoS {qos}");
        other.publish(&Publish::at(qos, 9, &topic, "yours"));
        assert_eq!(own.take_text(), "yours", "QoS {qos}");
        own.expect_nothing_but_pingresp();
    }
}

#[test]
fn unsubscribe_ends_what_matches_exactly_and_answers_each_filter() {
    for level in LEVELS {
        let mut client = open(level);
        for filter in ["unsubscribe/+", "unsubscribe/a", "unsubscribe/b"] {
            client.subscribe(filter, 1);
        }
        // A filter is compared as text: a wildcard does not take others with it [MQTT-3.10.4-1].
        client.send(wire::unsubscribe(level, 99, &["unsubscribe/+", "unsubscribe/#", "unsubscribe/a"]));
        let codes = if level == 5 { vec![0, 0x11, 0] } else { Vec::new() };
        client.expect(&Answer::UnsubAck { packet_id: 99, codes });
        publish(1, "unsubscribe/a", "no longer");
        publish(1, "unsubscribe/b", "still");
        assert_eq!(client.take_text(), "still", "level {level}");
        // Also where there is nothing to end [MQTT-3.10.4-5].
        client.send(wire::unsubscribe(level, 100, &["unsubscribe/a"]));
        let codes = if level == 5 { vec![0x11] } else { Vec::new() };
        client.expect(&Answer::UnsubAck { packet_id: 100, codes });
    }
}

#[test]
fn what_was_begun_is_completed_after_unsubscribe() {
    // [MQTT-3.10.4-3]
    for level in LEVELS {
        let topic = format!("unsubscribe/begun/{level}");
        let connect = Connect::kept(level, &format!("unsubscribe-begun-{level}"));
        let mut client = Client::open(broker().mqtt, &connect);
        client.subscribe(&topic, 2);
        publish(2, &topic, "begun");
        let begun = client.receive_publish();
        client.send(wire::unsubscribe(level, 9, &[&topic]));
        let codes = if level == 5 { vec![0] } else { Vec::new() };
        client.expect(&Answer::UnsubAck { packet_id: 9, codes });
        client.break_off();
        let mut client = Client::open(broker().mqtt, &connect);
        assert_eq!(client.take_publish(), Publish { dup: true, ..begun }, "level {level}");
        client.expect_nothing_but_pingresp();
        client.disconnect();
        Client::open(broker().mqtt, &Connect { flags: wire::CLEAN_START, ..connect }).disconnect();
    }
}

#[test]
fn a_new_subscription_does_not_disturb_the_flow() {
    // [MQTT-3.8.4-4]: while the same filter is subscribed again and again, nothing is lost or doubled.
    let topic = "subscriptions/flow";
    let mut client = open(5);
    client.subscribe(topic, 1);
    let mut publisher = open(5);
    for round in 0..20_u16 {
        for step in 0..5 {
            publisher.publish_only(&Publish::at(1, 1 + step, topic, &(round * 5 + step).to_string()));
        }
        client.send(wire::subscribe(5, 1_000 + round, topic, 1));
        for _ in 0..5 {
            assert!(matches!(publisher.receive(), Answer::Ack { first: wire::PUBACK, code: 0, .. }));
        }
    }
    let mut next = 0;
    while next < 100 {
        match client.receive() {
            Answer::Publish(publish) => {
                assert_eq!(publish.text(), next.to_string());
                client.send(wire::ack(wire::PUBACK, publish.packet_id));
                next += 1;
            }
            Answer::SubAck { codes, .. } => assert_eq!(codes, [1]),
            other => panic!("{other:?}"),
        }
    }
}
