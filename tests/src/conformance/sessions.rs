//! Sessions: how long they last, who goes on with them, what waits in them.

use std::time::{Duration, Instant};

use super::client::{Answer, Client, value};
use super::wire::{self, Connect, Publish, property};
use super::{LEVELS, broker};

/// Connects; says whether a session was there.
fn present(connect: &Connect) -> (Client, bool) {
    let (client, present, _) = Client::accepted(broker().mqtt, connect);
    (client, present)
}

fn publisher() -> Client {
    Client::open(broker().mqtt, &Connect::fresh(5))
}

#[test]
fn session_present_says_whether_the_session_was_there() {
    for level in LEVELS {
        let id = format!("sessions-present-{level}");
        // MQTT 3.1 has no flag for it.
        let told = level != 3;
        let (client, was_there) = present(&Connect::kept(level, &id));
        assert!(!was_there, "level {level}: a new session");
        client.disconnect();
        let (client, was_there) = present(&Connect::kept(level, &id));
        assert_eq!(was_there, told, "level {level}: it goes on");
        client.break_off();
        let (client, was_there) = present(&Connect::kept(level, &id));
        assert_eq!(was_there, told, "level {level}: also after a broken connection");
        client.disconnect();
        let (client, was_there) = present(&Connect::new(level, &id));
        assert!(!was_there, "level {level}: a clean start");
        client.disconnect();
        let (client, was_there) = present(&Connect::kept(level, &id));
        assert!(!was_there, "level {level}: the clean start's session ended with its connection");
        client.disconnect();
        present(&Connect::new(level, &id)).0.disconnect();
    }
}

#[test]
fn a_kept_session_gets_what_came_while_it_was_away() {
    for level in LEVELS {
        let (id, topic) = (format!("sessions-away-{level}"), format!("sessions/away/{level}"));
        let (mut client, _) = present(&Connect::kept(level, &id));
        client.subscribe(&topic, 2);
        client.disconnect();
        let mut publisher = publisher();
        for (qos, packet_id, text) in [(1, 1, "one"), (2, 2, "two"), (1, 3, "three")] {
            publisher.publish(&Publish::at(qos, packet_id, &topic, text));
        }
        let (mut client, _) = present(&Connect::kept(level, &id));
        let mut got: Vec<Publish> = (0..3).map(|_| client.take_publish()).collect();
        // Order is promised among those of one QoS.
        got.sort_by_key(|publish| publish.qos);
        for (publish, (qos, text)) in got.iter().zip([(1, "one"), (1, "three"), (2, "two")]) {
            assert_eq!((publish.qos, publish.dup, publish.text()), (qos, false, text), "level {level}");
        }
        client.expect_nothing_but_pingresp();
        drop(client);
        present(&Connect::new(level, &id)).0.disconnect();
    }
}

#[test]
fn a_clean_start_forgets_subscriptions_and_what_waits() {
    for level in LEVELS {
        let (id, topic) = (format!("sessions-clean-{level}"), format!("sessions/clean/{level}"));
        let (mut client, _) = present(&Connect::kept(level, &id));
        client.subscribe(&topic, 1);
        client.disconnect();
        let mut publisher = publisher();
        publisher.publish(&Publish::at(1, 1, &topic, "waits"));
        let (mut client, was_there) = present(&Connect::new(level, &id));
        assert!(!was_there);
        publisher.publish(&Publish::at(1, 1, &topic, "later"));
        // A subscription of the new session shows that nothing of the old one came before it.
        client.subscribe("sessions/clean/marker", 1);
        publisher.publish(&Publish::at(1, 2, "sessions/clean/marker", "marker"));
        assert_eq!(client.take_text(), "marker", "level {level}");
    }
}

#[test]
fn another_connection_with_the_same_identifier_takes_over() {
    for (old, new) in [(5, 5), (4, 4), (3, 4), (4, 5), (5, 3)] {
        let id = format!("sessions-takeover-{old}{new}");
        let (mut first, _) = present(&Connect::kept(old, &id));
        first.subscribe("sessions/takeover", 1);
        let (mut second, was_there) = present(&Connect::kept(new, &id));
        assert_eq!(was_there, new != 3, "levels {old} and {new}: the session goes on");
        // [MQTT-3.1.4-3]
        first.expect_disconnect(0x8E);
        publisher().publish(&Publish::at(1, 1, "sessions/takeover", "to the second"));
        assert_eq!(second.take_text(), "to the second");
        second.disconnect();
        present(&Connect::new(new, &id)).0.disconnect();
    }
}

#[test]
fn a_session_ends_when_its_expiry_interval_has_passed() {
    let expiry = |flags, seconds| {
        let connect =
            Connect::new(5, "sessions-expiry").with(property::four(property::SESSION_EXPIRY, seconds));
        Connect { flags, ..connect }
    };
    // Zero, or none at all: it ends with the connection.
    present(&expiry(wire::CLEAN_START, 0)).0.disconnect();
    let (client, was_there) = present(&Connect { flags: 0, ..Connect::new(5, "sessions-expiry") });
    assert!(!was_there, "an interval of 0");
    client.disconnect();
    let (client, was_there) = present(&expiry(0, 1));
    assert!(!was_there, "no interval");
    client.break_off();
    // Within the interval it is there, and then no longer [MQTT-4.1.0-2].
    let (client, was_there) = present(&expiry(0, 1));
    assert!(was_there, "within the interval");
    client.disconnect();
    let begin = Instant::now();
    let mut clock =
        Client::open(broker().mqtt, &Connect { keep_alive_s: 1, ..Connect::new(5, "sessions-clock") });
    clock.expect_disconnect(0x8D);
    assert!(begin.elapsed() > Duration::from_secs(1));
    let (client, was_there) = present(&expiry(0, 1));
    assert!(!was_there, "after the interval");
    client.disconnect();
}

#[test]
fn disconnect_may_change_the_session_expiry() {
    let leave = |mut client: Client, seconds: u32| {
        let expiry = property::four(property::SESSION_EXPIRY, seconds);
        client.send(wire::packet(0xE0, &[&[0], &wire::properties(&[expiry])]));
        client.expect_closed();
    };
    let kept = Connect::kept(5, "sessions-leave");
    leave(present(&kept).0, 600);
    let (client, was_there) = present(&kept);
    assert!(was_there, "it was kept");
    leave(client, 0);
    let (client, was_there) = present(&kept);
    assert!(!was_there, "it was let go");
    client.disconnect();
    let short = Connect { flags: 0, ..Connect::new(5, "sessions-leave") }
        .with(property::four(property::SESSION_EXPIRY, 1));
    leave(present(&short).0, 600);
    let mut clock =
        Client::open(broker().mqtt, &Connect { keep_alive_s: 1, ..Connect::new(5, "sessions-clock2") });
    clock.expect_disconnect(0x8D);
    let (client, was_there) = present(&short);
    assert!(was_there, "it was prolonged");
    client.disconnect();
    present(&Connect::new(5, "sessions-leave")).0.disconnect();
}

#[test]
fn what_was_not_acknowledged_comes_again_with_its_identifier() {
    for level in LEVELS {
        let (id, topic) = (format!("sessions-again-{level}"), format!("sessions/again/{level}"));
        let (mut client, _) = present(&Connect::kept(level, &id));
        client.subscribe(&topic, 2);
        let mut publisher = publisher();
        for (packet_id, qos) in [(1, 1), (2, 2), (3, 1)] {
            publisher.publish(&Publish::at(qos, packet_id, &topic, &packet_id.to_string()));
        }
        let sent: Vec<Publish> = (0..3).map(|_| client.receive_publish()).collect();
        let identifiers: Vec<u16> = sent.iter().map(|publish| publish.packet_id).collect();
        assert!(identifiers.windows(2).all(|pair| pair[0] != pair[1]), "{identifiers:?}");
        client.break_off();
        // The same packets in the same order, marked as repeated [MQTT-4.4.0-1] [MQTT-4.6.0-1] [MQTT-3.3.1-1].
        let (mut client, _) = present(&Connect::kept(level, &id));
        for first in sent {
            assert_eq!(client.receive_publish(), Publish { dup: true, ..first }, "level {level}");
        }
        client.break_off();
        present(&Connect::new(level, &id)).0.disconnect();
    }
}

#[test]
fn after_pubrec_only_pubrel_comes_again() {
    for level in LEVELS {
        let (id, topic) = (format!("sessions-pubrel-{level}"), format!("sessions/pubrel/{level}"));
        let (mut client, _) = present(&Connect::kept(level, &id));
        client.subscribe(&topic, 2);
        publisher().publish(&Publish::at(2, 1, &topic, "two"));
        let packet_id = client.receive_publish().packet_id;
        client.send(wire::ack(wire::PUBREC, packet_id));
        let pubrel = Answer::Ack { first: wire::PUBREL, packet_id, code: 0 };
        client.expect(&pubrel);
        client.break_off();
        // [MQTT-4.3.3-5] [MQTT-4.3.3-6]
        let (mut client, _) = present(&Connect::kept(level, &id));
        client.expect(&pubrel);
        client.send(wire::ack(wire::PUBCOMP, packet_id));
        client.expect_nothing_but_pingresp();
        client.disconnect();
        let (mut client, _) = present(&Connect::kept(level, &id));
        client.expect_nothing_but_pingresp();
        client.disconnect();
        present(&Connect::new(level, &id)).0.disconnect();
    }
}

#[test]
fn a_qos_2_publish_is_taken_once_across_a_reconnect() {
    for level in LEVELS {
        let (id, topic) = (format!("sessions-once-{level}"), format!("sessions/once/{level}"));
        let mut watcher = Client::open(broker().mqtt, &Connect::fresh(5));
        watcher.subscribe(&topic, 2);
        let publish = Publish::at(2, 77, &topic, "once");
        let pubrec = Answer::Ack { first: wire::PUBREC, packet_id: 77, code: 0 };
        let (mut client, _) = present(&Connect::kept(level, &id));
        client.send(publish.bytes(level));
        client.expect(&pubrec);
        client.break_off();
        // It does not know that its publish arrived [MQTT-4.3.3-10].
        let (mut client, _) = present(&Connect::kept(level, &id));
        client.send(Publish { dup: true, ..publish.clone() }.bytes(level));
        client.expect(&pubrec);
        client.send(wire::ack(wire::PUBREL, 77));
        client.expect(&Answer::Ack { first: wire::PUBCOMP, packet_id: 77, code: 0 });
        // After PUBCOMP the identifier is free, and stands for a new publish [MQTT-4.3.3-12].
        client.publish(&Publish::at(2, 77, &topic, "twice"));
        assert_eq!([watcher.take_text(), watcher.take_text()], ["once", "twice"], "level {level}");
        watcher.expect_nothing_but_pingresp();
        client.disconnect();
        present(&Connect::new(level, &id)).0.disconnect();
    }
}

#[test]
fn topic_aliases_end_with_the_connection() {
    // [MQTT-3.3.2-7]
    let (mut client, _) = present(&Connect::kept(5, "sessions-alias"));
    let alias = || property::two(property::TOPIC_ALIAS, 1);
    client.publish(&Publish::at(1, 1, "sessions/alias", "").with(alias()));
    client.publish(&Publish::at(1, 1, "", "").with(alias()));
    client.disconnect();
    let (mut client, was_there) = present(&Connect::kept(5, "sessions-alias"));
    assert!(was_there);
    client.send(Publish::at(1, 1, "", "").with(alias()).bytes(5));
    client.expect_disconnect(0x82);
    present(&Connect::new(5, "sessions-alias")).0.disconnect();
}

#[test]
fn retained_records_are_no_part_of_a_session() {
    // [MQTT-3.1.2-7] of MQTT 3.1.1
    let (mut client, _) = present(&Connect::new(4, "sessions-retained"));
    client.publish(&Publish::at(1, 1, "sessions/retained", "stays").retained());
    client.disconnect();
    let (mut client, _) = present(&Connect::new(4, "sessions-retained"));
    client.subscribe("sessions/retained", 1);
    assert_eq!(client.take_text(), "stays");
    client.publish(&Publish::at(1, 1, "sessions/retained", "").retained());
}

#[test]
fn what_was_begun_does_not_expire() {
    // [MQTT-4.3.3-7] [MQTT-4.3.3-13], for both sides of the handshake.
    let (mut client, _) = present(&Connect::kept(5, "sessions-begun"));
    client.subscribe("sessions/begun", 2);
    let expiry = || property::four(property::MESSAGE_EXPIRY, 1);
    let mut publisher = publisher();
    publisher.publish_only(&Publish::at(2, 1, "sessions/begun", "begun").with(expiry()));
    publisher.expect(&Answer::Ack { first: wire::PUBREC, packet_id: 1, code: 0 });
    let begun = client.receive_publish();
    client.break_off();
    let mut clock = Client::open(broker().mqtt, &Connect { keep_alive_s: 1, ..Connect::fresh(5) });
    clock.expect_disconnect(0x8D);
    publisher.send(wire::ack(wire::PUBREL, 1));
    publisher.expect(&Answer::Ack { first: wire::PUBCOMP, packet_id: 1, code: 0 });
    let (mut client, _) = present(&Connect::kept(5, "sessions-begun"));
    let again = client.take_publish();
    assert_eq!((again.packet_id, again.dup, again.text()), (begun.packet_id, true, "begun"));
    client.expect_nothing_but_pingresp();
    client.disconnect();
    present(&Connect::new(5, "sessions-begun")).0.disconnect();
}

#[test]
fn message_expiry_counts_down_while_a_session_is_away() {
    // [MQTT-3.3.2-5] [MQTT-3.3.2-6]
    let (mut client, _) = present(&Connect::kept(5, "sessions-message-expiry"));
    client.subscribe("sessions/message-expiry", 2);
    client.disconnect();
    let mut publisher = publisher();
    for (packet_id, qos, seconds, text) in
        [(1, 1, 1, "gone"), (2, 2, 1, "gone"), (3, 1, 100, "stays"), (4, 2, 100, "too")]
    {
        let expiry = property::four(property::MESSAGE_EXPIRY, seconds);
        publisher.publish(&Publish::at(qos, packet_id, "sessions/message-expiry", text).with(expiry));
    }
    let mut clock =
        Client::open(broker().mqtt, &Connect { keep_alive_s: 1, ..Connect::new(5, "sessions-clock3") });
    clock.expect_disconnect(0x8D);
    let (mut client, _) = present(&Connect::kept(5, "sessions-message-expiry"));
    for text in ["stays", "too"] {
        let publish = client.take_publish();
        assert_eq!(publish.text(), text);
        let left =
            value(&publish.properties, property::MESSAGE_EXPIRY).expect("it is told how long it still holds");
        let left = u32::from_be_bytes(left.try_into().unwrap());
        assert!((50..100).contains(&left), "{left} s are left");
    }
    client.expect_nothing_but_pingresp();
    client.disconnect();
    present(&Connect::new(5, "sessions-message-expiry")).0.disconnect();
}
