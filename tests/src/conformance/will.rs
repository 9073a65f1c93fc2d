//! Wills: when they are published, when they are not, and as what.

use std::time::{Duration, Instant};

use super::client::{Answer, Client, value};
use super::wire::{Connect, Publish, Will, packet, property};
use super::{LEVELS, broker};

/// A subscriber to `topic` at QoS 2 that keeps RETAIN flags as they were published.
fn watcher(topic: &str) -> Client {
    let mut watcher = Client::open(broker().mqtt, &Connect::fresh(5));
    watcher.subscribe(topic, 0b0000_1010);
    watcher
}

/// The next text must be that of a marker which is published now: nothing came before it.
#[track_caller]
fn expect_nothing(watcher: &mut Client, topic: &str) {
    let packet_id = 100 + watcher.next_id();
    watcher.publish_only(&Publish::at(1, packet_id, topic, "marker"));
    assert_eq!(watcher.take_publish_amid_acks().text(), "marker", "nothing else was to come");
}

#[test]
fn a_will_is_published_when_the_connection_breaks() {
    for level in LEVELS {
        for qos in 0..3 {
            let topic = format!("will/breaks/{level}/{qos}");
            let mut watcher = watcher(&topic);
            let will = Will { qos, ..Will::new(&topic, "gone") };
            Client::open(broker().mqtt, &Connect::fresh(level).will(will)).break_off();
            let publish = watcher.take_publish();
            // [MQTT-3.1.2-8] [MQTT-3.1.2-16] of 3.1.1: not retained.
            assert_eq!((publish.text(), publish.qos, publish.retain), ("gone", qos, false));
            // Once only [MQTT-3.1.2-10].
            expect_nothing(&mut watcher, &topic);
        }
    }
}

#[test]
fn a_will_with_retain_becomes_the_retained_record() {
    for level in LEVELS {
        let topic = format!("will/retained/{level}");
        let will = Will { retain: true, ..Will::new(&topic, "gone") };
        let mut watch = watcher(&topic);
        Client::open(broker().mqtt, &Connect::fresh(level).will(will)).break_off();
        assert!(watch.take_publish().retain, "as it was published");
        let mut later = watcher(&topic);
        let publish = later.take_publish();
        assert_eq!((publish.text(), publish.retain), ("gone", true));
        later.publish(&Publish::at(1, 9, &topic, "").retained());
    }
}

#[test]
fn a_will_is_discarded_after_a_disconnect() {
    for level in LEVELS {
        let topic = format!("will/disconnect/{level}");
        let mut watcher = watcher(&topic);
        let connect = Connect::fresh(level).will(Will::new(&topic, "gone"));
        // [MQTT-3.14.4-3]
        Client::open(broker().mqtt, &connect).disconnect();
        expect_nothing(&mut watcher, &topic);
    }
}

#[test]
fn a_disconnect_with_another_reason_leaves_the_will() {
    for reason in [0x04, 0x80, 0x81, 0x93, 0x98] {
        let topic = format!("will/reason/{reason}");
        let mut watcher = watcher(&topic);
        let mut client = Client::open(broker().mqtt, &Connect::fresh(5).will(Will::new(&topic, "gone")));
        client.send(packet(0xE0, &[&[reason]]));
        client.expect_closed();
        assert_eq!(watcher.take_text(), "gone", "reason {reason:#04x}");
    }
}

#[test]
fn a_will_is_published_when_the_client_is_cut_off() {
    for level in LEVELS {
        // For its silence, its mistake, its successor.
        let topic = format!("will/cut-off/{level}");
        let mut watcher = watcher(&topic);
        let connect = Connect::fresh(level).will(Will::new(&topic, "gone"));
        let mut silent = Client::open(broker().mqtt, &Connect { keep_alive_s: 1, ..connect.clone() });
        silent.expect_disconnect(0x8D);
        assert_eq!(watcher.take_text(), "gone", "silent");
        let mut mistaken = Client::open(broker().mqtt, &connect);
        mistaken.send([0x00, 0x00]);
        mistaken.expect_disconnect(0x81);
        assert_eq!(watcher.take_text(), "gone", "mistaken");
        let id = format!("will-succeeded-{level}");
        let connect = Connect { client_id: id.into(), ..connect };
        let mut first = Client::open(broker().mqtt, &connect);
        let _second = Client::open(broker().mqtt, &Connect { will: None, ..connect });
        first.expect_disconnect(0x8E);
        assert_eq!(watcher.take_text(), "gone", "succeeded");
    }
}

#[test]
fn a_will_carries_its_properties() {
    let topic = "will/properties";
    let list = vec![
        property::byte(property::PAYLOAD_FORMAT, 1),
        property::four(property::MESSAGE_EXPIRY, 1_000),
        property::text(property::CONTENT_TYPE, "text/plain"),
        property::text(property::RESPONSE_TOPIC, "will/answers"),
        property::text(property::CORRELATION_DATA, b"\x00\xFF"),
        property::user("b", "1"),
        property::user("a", "2"),
        property::user("b", "3"),
    ];
    let mut watcher = watcher(topic);
    let delay = property::four(property::WILL_DELAY, 0);
    let will = Will { properties: [vec![delay], list.clone()].concat(), ..Will::new(topic, "gone") };
    Client::open(broker().mqtt, &Connect::fresh(5).will(will)).break_off();
    let publish = watcher.take_publish();
    let expiry = value(&publish.properties, property::MESSAGE_EXPIRY).expect("it has an expiry");
    assert!(u32::from_be_bytes(expiry.try_into().unwrap()) >= 900);
    // All others unaltered, and User Properties in their order [MQTT-3.1.3-10]; the delay was for the broker.
    let without_expiry = |list: &[Vec<u8>]| -> Vec<Vec<u8>> {
        let mut rest: Vec<_> =
            list.iter().filter(|property| property[0] != property::MESSAGE_EXPIRY).cloned().collect();
        rest.sort_by_key(|property| property[0]);
        rest
    };
    assert_eq!(without_expiry(&publish.properties), without_expiry(&list));
}

#[test]
fn a_will_waits_for_its_delay() {
    let topic = "will/delay";
    let mut watcher = watcher(topic);
    let delayed = |seconds: u32, expiry: u32| {
        let delay = property::four(property::WILL_DELAY, seconds);
        let will = Will { properties: vec![delay], ..Will::new(topic, "gone") };
        Connect::new(5, "will-delay").with(property::four(property::SESSION_EXPIRY, expiry)).will(will)
    };
    // The delay, or the end of the session if that comes first [MQTT-3.1.2-8].
    for (delay_s, expiry_s, due_ms) in [(1, 60, 1_000..8_000), (60, 1, 1_000..8_000), (60, 0, 0..900)] {
        let begin = Instant::now();
        Client::open(broker().mqtt, &delayed(delay_s, expiry_s)).break_off();
        assert_eq!(watcher.take_text(), "gone");
        let waited = begin.elapsed().as_millis();
        assert!(
            due_ms.contains(&waited),
            "delay {delay_s} s, session {expiry_s} s: it came after {waited} ms"
        );
    }
    // A client that is back in time has no Will any more [MQTT-3.1.3-9].
    Client::open(broker().mqtt, &delayed(1, 60)).break_off();
    let back = Connect { flags: 0, will: None, ..delayed(0, 60) };
    Client::open(broker().mqtt, &back).disconnect();
    let begin = Instant::now();
    let mut clock =
        Client::open(broker().mqtt, &Connect { keep_alive_s: 1, ..Connect::new(5, "will-clock") });
    clock.expect_disconnect(0x8D);
    assert!(begin.elapsed() > Duration::from_secs(1));
    expect_nothing(&mut watcher, topic);
    // One that starts clean ends the session, and that publishes it.
    Client::open(broker().mqtt, &delayed(60, 60)).break_off();
    Client::open(broker().mqtt, &Connect::new(5, "will-delay")).disconnect();
    assert_eq!(watcher.take_text(), "gone");
}

#[test]
fn a_will_that_is_not_the_text_it_declares_is_refused() {
    let format = property::byte(property::PAYLOAD_FORMAT, 1);
    let will = Will { properties: vec![format], payload: b"\xFF".into(), ..Will::new("will/format", "") };
    let (mut client, answer) = Client::asked(broker().mqtt, &Connect::fresh(5).will(will));
    assert!(matches!(answer, Answer::ConnAck { code: 0x99, .. }), "{answer:?}");
    client.expect_closed();
}
