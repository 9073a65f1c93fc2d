//! Retained records: kept, replaced, cleared, and sent to those who subscribe.

use super::client::{Client, value};
use super::wire::{self, Connect, Publish, property};
use super::{LEVELS, broker};

fn open(level: u8) -> Client {
    Client::open(broker().mqtt, &Connect::fresh(level))
}

/// The texts that a new subscription at QoS 2 gets, until a marker that is published behind it.
fn sent_to_new(level: u8, filter: &str) -> Vec<(String, u8, bool)> {
    let mut client = open(level);
    client.subscribe("retained-marker", 1);
    client.subscribe(filter, 2);
    let packet_id = client.next_id();
    client.publish_only(&Publish::at(1, packet_id, "retained-marker", "marker"));
    let mut got = Vec::new();
    loop {
        let publish = client.take_publish_amid_acks();
        if publish.text() == "marker" {
            return got;
        }
        got.push((publish.text().to_owned(), publish.qos, publish.retain));
    }
}

/// Removes what the test has left.
fn clear(topics: &[String]) {
    let mut client = open(5);
    for topic in topics {
        client.publish(&Publish::at(1, 1, topic, "").retained());
    }
}

#[test]
fn the_last_retained_record_goes_to_each_new_subscription() {
    for level in LEVELS {
        let topics: Vec<String> = (0..3).map(|qos| format!("retained/last/{level}/{qos}")).collect();
        let mut publisher = open(level);
        for (qos, topic) in topics.iter().enumerate() {
            let (qos, packet_id) = (qos as u8, 10 + qos as u16);
            publisher.publish(&Publish::at(qos, packet_id, topic, "first").retained());
            publisher.publish(&Publish::at(qos, packet_id, topic, &format!("at {qos}")).retained());
        }
        drop(publisher);
        let mut got = sent_to_new(level, &format!("retained/last/{level}/+"));
        got.sort();
        let expected = [0, 1, 2].map(|qos| (format!("at {qos}"), qos, true));
        assert_eq!(got, expected, "level {level}");
        clear(&topics);
    }
}

#[test]
fn an_empty_payload_clears_and_is_delivered() {
    for level in LEVELS {
        for qos in 0..3 {
            let topic = format!("retained/clear/{level}/{qos}");
            let mut watcher = open(5);
            watcher.subscribe(&topic, 2);
            let mut publisher = open(level);
            publisher.publish(&Publish::at(1, 1, &topic, "kept").retained());
            assert_eq!(watcher.take_text(), "kept");
            // [MQTT-3.3.1-6] [MQTT-3.3.1-7]; a subscriber sees it as any publish.
            publisher.publish(&Publish::at(qos, 2, &topic, "").retained());
            let publish = watcher.take_publish();
            assert_eq!((publish.text(), publish.retain), ("", false));
            drop(publisher);
            assert_eq!(sent_to_new(level, &topic), [], "level {level}, QoS {qos}");
        }
    }
}

#[test]
fn a_publish_without_the_flag_changes_nothing() {
    for level in LEVELS {
        let topic = format!("retained/unflagged/{level}");
        let mut publisher = open(level);
        publisher.publish(&Publish::at(1, 1, &topic, "plain"));
        drop(publisher);
        assert_eq!(sent_to_new(level, &topic), [], "level {level}: nothing is stored");
        let mut publisher = open(level);
        publisher.publish(&Publish::at(1, 1, &topic, "kept").retained());
        publisher.publish(&Publish::at(1, 2, &topic, "plain"));
        publisher.publish(&Publish::at(1, 3, &topic, ""));
        drop(publisher);
        assert_eq!(sent_to_new(level, &topic), [("kept".to_owned(), 1, true)], "level {level}");
        clear(&[topic]);
    }
}

#[test]
fn retain_is_cleared_on_the_way_unless_it_is_kept_as_published() {
    let topic = "retained/as-published";
    let mut publisher = open(5);
    // [MQTT-3.3.1-12] [MQTT-3.3.1-13], for each way out: on arrival, when durable, in four steps.
    for (options, kept) in [(0b0000_0000, false), (0b0000_1000, true)] {
        for level in LEVELS.into_iter().filter(|level| !kept || *level == 5) {
            let mut subscriber = open(level);
            subscriber.subscribe(topic, options | 2);
            for qos in 0..3 {
                publisher.publish(&Publish::at(qos, 1, topic, "flagged").retained());
                publisher.publish(&Publish::at(qos, 2, topic, "plain"));
                let flagged = subscriber.take_publish();
                let plain = subscriber.take_publish();
                assert_eq!((flagged.retain, plain.retain), (kept, false), "level {level}, QoS {qos}");
            }
            clear(&[topic.to_owned()]);
        }
    }
}

#[test]
fn retain_handling_says_whether_a_subscription_gets_them() {
    let topic = "retained/handling";
    open(5).publish(&Publish::at(1, 1, topic, "kept").retained());
    // [MQTT-3.3.1-9] [MQTT-3.3.1-10] [MQTT-3.3.1-11]: to the first and to a second SUBSCRIBE of the same filter.
    for (handling, to_new, to_old) in [(0, true, true), (1, true, false), (2, false, false)] {
        let mut client = open(5);
        client.subscribe("retained/handling/marker", 1);
        for (round, awaited) in [("new", to_new), ("old", to_old)] {
            client.subscribe(topic, 1 | handling << 4);
            let packet_id = client.next_id();
            client.publish_only(&Publish::at(1, packet_id, "retained/handling/marker", "marker"));
            if awaited {
                let publish = client.take_publish_amid_acks();
                assert_eq!((publish.text(), publish.retain), ("kept", true), "handling {handling}, {round}");
            }
            assert_eq!(client.take_publish_amid_acks().text(), "marker", "handling {handling}, {round}");
        }
    }
    clear(&[topic.to_owned()]);
}

#[test]
fn a_retained_record_keeps_its_properties_and_counts_down() {
    let topic = "retained/properties";
    let list = [
        property::text(property::CONTENT_TYPE, "text/plain"),
        property::text(property::CORRELATION_DATA, "c"),
        property::user("b", "1"),
        property::user("a", "2"),
    ];
    let mut publish = Publish::at(1, 1, topic, "kept").retained();
    publish.properties = list.to_vec();
    open(5).publish(&publish.with(property::four(property::MESSAGE_EXPIRY, 1_000)));
    let mut client = open(5);
    client.subscribe(topic, 1);
    let got = client.take_publish();
    let expiry = value(&got.properties, property::MESSAGE_EXPIRY).expect("the rest of its time is told");
    assert!((900..=1_000).contains(&u32::from_be_bytes(expiry.try_into().unwrap())));
    for property in &list {
        assert!(got.properties.contains(property), "{property:02x?} in {:02x?}", got.properties);
    }
    // One whose time is over is not sent.
    let short = property::four(property::MESSAGE_EXPIRY, 1);
    client.publish(&Publish::at(1, 8, "retained/short", "gone").retained().with(short));
    let mut clock =
        Client::open(broker().mqtt, &Connect { keep_alive_s: 1, ..Connect::new(5, "retained-clock") });
    clock.expect_disconnect(0x8D);
    assert_eq!(sent_to_new(5, "retained/short"), []);
    clear(&[topic.to_owned(), "retained/short".to_owned()]);
}

#[test]
fn a_retained_record_is_sent_at_the_lower_qos() {
    let topic = "retained/lower";
    for (published, subscribed) in [(0, 2), (1, 0), (2, 1), (2, 2)] {
        open(5).publish(&Publish::at(published, 1, topic, "kept").retained());
        let mut client = open(5);
        client.subscribe(topic, subscribed);
        assert_eq!(client.take_publish().qos, published.min(subscribed));
    }
    clear(&[topic.to_owned()]);
}

#[test]
fn each_filter_of_a_subscribe_brings_its_retained_records() {
    let topics = ["retained/each/a".to_owned(), "retained/each/b".to_owned()];
    for topic in &topics {
        open(4).publish(&Publish::at(1, 1, topic, "kept").retained());
    }
    let mut client = open(4);
    client.send(wire::subscribe_all(
        4,
        1,
        &[],
        &[("retained/each/a", 1), ("nothing", 1), ("retained/each/b", 1)],
    ));
    client.expect(&super::client::Answer::SubAck { packet_id: 1, codes: vec![1, 1, 1] });
    let mut got = [client.take_publish().topic, client.take_publish().topic];
    got.sort();
    assert_eq!(got, topics);
    clear(&topics);
}
