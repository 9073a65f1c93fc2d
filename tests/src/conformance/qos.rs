//! The three handshakes in both directions, Packet Identifiers, flow control, order.

use super::client::{Answer, Client};
use super::wire::{self, Connect, Publish, packet, property};
use super::{LEVELS, broker};

fn open(level: u8) -> Client {
    Client::open(broker().mqtt, &Connect::fresh(level))
}

fn acked(first: u8, packet_id: u16, code: u8) -> Answer {
    Answer::Ack { first, packet_id, code }
}

#[test]
fn each_qos_is_answered_with_its_own_packet() {
    for level in LEVELS {
        let topic = format!("qos/answers/{level}");
        let mut watcher = open(5);
        watcher.subscribe(&topic, 2);
        let mut client = open(level);
        // [MQTT-3.3.4-1]
        client.publish_only(&Publish::new(&topic, "zero"));
        client.publish_only(&Publish::at(1, 65_535, &topic, "one"));
        client.expect(&acked(wire::PUBACK, 65_535, 0));
        client.publish_only(&Publish::at(2, 1, &topic, "two"));
        client.expect(&acked(wire::PUBREC, 1, 0));
        client.send(wire::ack(wire::PUBREL, 1));
        client.expect(&acked(wire::PUBCOMP, 1, 0));
        for (qos, text) in [(0, "zero"), (1, "one"), (2, "two")] {
            let publish = watcher.take_publish();
            assert_eq!((publish.qos, publish.dup, publish.text()), (qos, false, text), "level {level}");
        }
    }
}

#[test]
fn after_puback_the_same_identifier_is_a_new_publish() {
    // [MQTT-4.3.2-5], [MQTT-4.3.2-2] of 3.1.1: whatever its DUP flag says, which is not passed on [MQTT-3.3.1-3].
    for level in LEVELS {
        let topic = format!("qos/dup/{level}");
        let mut watcher = open(5);
        watcher.subscribe(&topic, 1);
        let mut client = open(level);
        for (dup, text) in [(false, "first"), (false, "second"), (true, "third")] {
            client.publish(&Publish { dup, ..Publish::at(1, 5, &topic, text) });
            let publish = watcher.take_publish();
            assert_eq!((publish.text(), publish.dup), (text, false), "level {level}");
        }
    }
}

#[test]
fn a_qos_2_publish_is_delivered_once_however_often_it_is_sent() {
    for level in LEVELS {
        let topic = format!("qos/twice/{level}");
        let mut watcher = open(5);
        watcher.subscribe(&topic, 2);
        let mut client = open(level);
        for dup in [false, true, true] {
            client.publish_only(&Publish { dup, ..Publish::at(2, 3, &topic, "once") });
            client.expect(&acked(wire::PUBREC, 3, 0));
        }
        client.send(wire::ack(wire::PUBREL, 3));
        client.expect(&acked(wire::PUBCOMP, 3, 0));
        client.publish(&Publish::at(2, 3, &topic, "again"));
        assert_eq!([watcher.take_text(), watcher.take_text()], ["once", "again"], "level {level}");
        watcher.expect_nothing_but_pingresp();
    }
}

#[test]
fn a_pubrel_for_nothing_is_answered_and_so_is_a_second_one() {
    for level in LEVELS {
        let unknown = if level == 5 { 0x92 } else { 0 };
        let mut client = open(level);
        client.send(wire::ack(wire::PUBREL, 9));
        client.expect(&acked(wire::PUBCOMP, 9, unknown));
        client.publish(&Publish::at(2, 9, "qos/pubrel", ""));
        client.send(wire::ack(wire::PUBREL, 9));
        client.expect(&acked(wire::PUBCOMP, 9, unknown));
        client.expect_nothing_but_pingresp();
    }
}

#[test]
fn qos_2_goes_out_in_four_steps() {
    for level in LEVELS {
        let topic = format!("qos/out/{level}");
        let mut client = open(level);
        client.subscribe(&topic, 2);
        open(5).publish(&Publish::at(2, 1, &topic, "two"));
        let packet_id = client.receive_publish().packet_id;
        // PUBREC may come twice; each is answered with PUBREL [MQTT-4.3.3-4].
        for _ in 0..2 {
            client.send(wire::ack(wire::PUBREC, packet_id));
            client.expect(&acked(wire::PUBREL, packet_id, 0));
        }
        client.send(wire::ack(wire::PUBCOMP, packet_id));
        // Now it is over, and the identifier is not known any more.
        client.send(wire::ack(wire::PUBREC, packet_id));
        client.expect(&acked(wire::PUBREL, packet_id, if level == 5 { 0x92 } else { 0 }));
        client.expect_nothing_but_pingresp();
    }
}

#[test]
fn acknowledgements_of_nothing_harm_nobody() {
    for level in LEVELS {
        let mut client = open(level);
        for first in [wire::PUBACK, wire::PUBCOMP] {
            client.send(wire::ack(first, 1_234));
        }
        client.expect_nothing_but_pingresp();
    }
}

#[test]
fn an_acknowledgement_of_the_wrong_kind_is_a_protocol_error() {
    for level in LEVELS {
        // The last one is early: no PUBREL was sent that it could answer.
        for (qos, wrong) in [(1, wire::PUBREC), (1, wire::PUBCOMP), (2, wire::PUBACK), (2, wire::PUBCOMP)] {
            let topic = format!("qos/wrong/{level}/{qos}{wrong}");
            let mut client = open(level);
            client.subscribe(&topic, qos);
            open(5).publish(&Publish::at(qos, 1, &topic, ""));
            let packet_id = client.receive_publish().packet_id;
            client.send(wire::ack(wrong, packet_id));
            client.expect_disconnect(0x82);
        }
    }
}

#[test]
fn a_delivery_that_the_client_refuses_is_over() {
    // [MQTT-4.4.0-2]: it is not sent again, and makes room.
    let connect = Connect::kept(5, "qos-refuses").with(property::two(property::RECEIVE_MAXIMUM, 1));
    let mut client = Client::open(broker().mqtt, &connect);
    client.subscribe("qos/refuses", 2);
    let mut publisher = open(5);
    for (qos, first) in [(1, wire::PUBACK), (2, wire::PUBREC)] {
        publisher.publish(&Publish::at(qos, 1, "qos/refuses", "refused"));
        publisher.publish(&Publish::at(qos, 2, "qos/refuses", "taken"));
        let refused = client.receive_publish();
        assert_eq!(refused.text(), "refused");
        client.send(packet(first, &[&refused.packet_id.to_be_bytes(), &[0x83]]));
        assert_eq!(client.take_text(), "taken", "QoS {qos}");
    }
    client.disconnect();
    let mut client = Client::open(broker().mqtt, &connect);
    client.expect_nothing_but_pingresp();
    client.disconnect();
    Client::open(broker().mqtt, &Connect::new(5, "qos-refuses")).disconnect();
}

#[test]
fn a_clients_receive_maximum_is_kept() {
    // [MQTT-3.3.4-9] [MQTT-4.9.0-2]
    for (qos, maximum) in [(1, 1), (1, 2), (1, 5), (2, 1), (2, 3)] {
        let topic = format!("qos/maximum/{qos}/{maximum}");
        let connect = Connect::fresh(5).with(property::two(property::RECEIVE_MAXIMUM, maximum));
        let mut client = Client::open(broker().mqtt, &connect);
        client.subscribe(&topic, qos);
        let mut publisher = open(5);
        for number in 1..=20 {
            publisher.publish(&Publish::at(qos, number, &topic, &number.to_string()));
        }
        let mut open: Vec<Publish> = (0..maximum).map(|_| client.receive_publish()).collect();
        // No more, while everything else is answered [MQTT-3.3.4-10] [MQTT-4.9.0-3].
        client.expect_nothing_but_pingresp();
        client.send(wire::unsubscribe(5, 7, &["qos/nothing"]));
        client.expect(&Answer::UnsubAck { packet_id: 7, codes: vec![0x11] });
        for number in 1..=20_u16 {
            let publish = open.remove(0);
            assert_eq!(publish.text(), number.to_string());
            let packet_id = publish.packet_id;
            if qos == 1 {
                client.send(wire::ack(wire::PUBACK, packet_id));
            } else {
                client.send(wire::ack(wire::PUBREC, packet_id));
                client.expect(&acked(wire::PUBREL, packet_id, 0));
                client.expect_nothing_but_pingresp();
                client.send(wire::ack(wire::PUBCOMP, packet_id));
            }
            if number + maximum <= 20 {
                let next = client.receive_publish();
                assert!(open.iter().all(|publish| publish.packet_id != next.packet_id));
                open.push(next);
            }
        }
        client.expect_nothing_but_pingresp();
    }
}

#[test]
fn what_is_sent_again_keeps_to_the_new_receive_maximum() {
    // [MQTT-3.3.4-9] [MQTT-3.3.4-10]: the quota begins anew with each connection, whatever was in flight before.
    let topic = "qos/again";
    let connect = Connect::kept(5, "qos-again");
    let mut client = Client::open(broker().mqtt, &connect);
    client.subscribe(topic, 2);
    let mut publisher = open(5);
    for number in 1..=10 {
        publisher.publish(&Publish::at(if number > 8 { 2 } else { 1 }, number, topic, &number.to_string()));
    }
    let sent: Vec<Publish> = (0..10).map(|_| client.receive_publish()).collect();
    // The last is past PUBREC: its PUBREL is no PUBLISH and waits for nothing.
    let last = sent.iter().find(|publish| publish.text() == "10").expect("it was sent").packet_id;
    client.send(wire::ack(wire::PUBREC, last));
    client.expect(&acked(wire::PUBREL, last, 0));
    client.break_off();
    let narrow = connect.clone().with(property::two(property::RECEIVE_MAXIMUM, 2));
    let mut client = Client::open(broker().mqtt, &narrow);
    let (mut open, mut got, mut released) = (Vec::new(), Vec::new(), false);
    while open.len() < 2 || !released {
        match client.receive() {
            Answer::Publish(publish) => open.push(publish),
            answer => {
                assert_eq!(answer, acked(wire::PUBREL, last, 0));
                client.send(wire::ack(wire::PUBCOMP, last));
                released = true;
            }
        }
    }
    client.expect_nothing_but_pingresp();
    while let Some(publish) = open.pop() {
        assert!(publish.dup);
        got.push(publish.text().parse::<u16>().unwrap());
        let packet_id = publish.packet_id;
        if publish.qos == 1 {
            client.send(wire::ack(wire::PUBACK, packet_id));
        } else {
            client.send(wire::ack(wire::PUBREC, packet_id));
            client.expect(&acked(wire::PUBREL, packet_id, 0));
            client.send(wire::ack(wire::PUBCOMP, packet_id));
        }
        if got.len() + open.len() < 9 {
            open.push(client.receive_publish());
        }
    }
    got.sort_unstable();
    assert_eq!(got, (1..=9).collect::<Vec<_>>());
    client.expect_nothing_but_pingresp();
    client.disconnect();
    Client::open(broker().mqtt, &Connect::new(5, "qos-again")).disconnect();
}

#[test]
fn who_exceeds_our_receive_maximum_is_told() {
    let (mut client, _, properties) = Client::accepted(broker().mqtt, &Connect::fresh(5));
    let maximum = super::client::value(&properties, property::RECEIVE_MAXIMUM).expect("it is told");
    let maximum = u16::from_be_bytes(maximum.try_into().unwrap());
    for packet_id in 1..=maximum {
        client.publish_only(&Publish::at(2, packet_id, "qos/exceeds", ""));
    }
    for packet_id in 1..=maximum {
        client.expect(&acked(wire::PUBREC, packet_id, 0));
    }
    client.publish_only(&Publish::at(1, maximum + 1, "qos/exceeds", ""));
    client.expect_disconnect(0x93);
}

#[test]
fn acknowledgements_come_in_the_order_of_the_publishes() {
    // [MQTT-4.6.0-2] [MQTT-4.6.0-3] [MQTT-4.6.0-4]
    for level in LEVELS {
        let mut client = open(level);
        let all: Vec<u8> = (1..=200)
            .flat_map(|id| Publish::at(1 + (id % 2) as u8, id, "qos/order", "").bytes(level))
            .collect();
        client.send(all);
        for id in 1..=200 {
            let first = if id % 2 == 0 { wire::PUBACK } else { wire::PUBREC };
            client.expect(&acked(first, id, 0));
        }
        let releases: Vec<u8> = (1..=200).step_by(2).flat_map(|id| wire::ack(wire::PUBREL, id)).collect();
        client.send(releases);
        for id in (1..=200).step_by(2) {
            client.expect(&acked(wire::PUBCOMP, id, 0));
        }
    }
}

#[test]
fn pubrels_come_in_the_order_of_the_pubrecs() {
    // [MQTT-4.6.0-4]
    for level in LEVELS {
        let topic = format!("qos/pubrels/{level}");
        let connect = if level == 4 { Connect::kept(4, "qos-pubrels") } else { Connect::fresh(level) };
        let mut client = Client::open(broker().mqtt, &connect);
        client.subscribe(&topic, 2);
        let mut publisher = open(5);
        for number in 1..=50 {
            publisher.publish(&Publish::at(2, number, &topic, ""));
        }
        let identifiers: Vec<u16> = (0..50).map(|_| client.receive_publish().packet_id).collect();
        let answers: Vec<u8> = identifiers.iter().flat_map(|id| wire::ack(wire::PUBREC, *id)).collect();
        client.send(answers);
        for id in &identifiers {
            client.expect(&acked(wire::PUBREL, *id, 0));
        }
        client.send(identifiers.iter().flat_map(|id| wire::ack(wire::PUBCOMP, *id)).collect::<Vec<u8>>());
        client.expect_nothing_but_pingresp();
        client.disconnect();
        Client::open(broker().mqtt, &Connect { flags: wire::CLEAN_START, ..connect }).disconnect();
    }
}

#[test]
fn publishes_arrive_in_the_order_in_which_they_were_sent() {
    // [MQTT-4.6.0-5] [MQTT-4.6.0-6]: for each topic and QoS.
    for level in LEVELS {
        let filter = format!("qos/sequence/{level}/+");
        let mut client = open(level);
        client.subscribe(&filter, 2);
        let mut publisher = open(level);
        for number in 0..300_u16 {
            let (qos, topic) = ((number % 3) as u8, format!("qos/sequence/{level}/{}", number % 2));
            publisher.publish_only(&Publish::at(qos, 1 + number, &topic, &number.to_string()));
        }
        let mut last = [[-1_i32; 3]; 2];
        for _ in 0..300 {
            let publish = client.take_publish_amid_acks();
            let number: i32 = publish.text().parse().unwrap();
            let last = &mut last[(number % 2) as usize][usize::from(publish.qos)];
            assert!(*last < number, "level {level}: {number} came behind {last}");
            *last = number;
        }
    }
}

#[test]
fn a_payload_that_is_not_the_text_it_declares_is_refused() {
    let text = || property::byte(property::PAYLOAD_FORMAT, 1);
    let mut watcher = open(5);
    watcher.subscribe("qos/format", 2);
    let mut client = open(5);
    let wrong =
        |qos| Publish { payload: b"\xFF".into(), ..Publish::at(qos, 4, "qos/format", "") }.with(text());
    client.publish_only(&wrong(1));
    client.expect(&acked(wire::PUBACK, 4, 0x99));
    client.publish_only(&wrong(2));
    client.expect(&acked(wire::PUBREC, 4, 0x99));
    // After such a PUBREC the identifier stands for a new publish [MQTT-4.3.3-9].
    client.publish(&Publish::at(2, 4, "qos/format", "22.5 °C").with(text()));
    assert_eq!(watcher.take_text(), "22.5 °C", "nothing that was refused came before it");
    // Bytes that are declared as such, or not at all, are anything.
    for list in [vec![property::byte(property::PAYLOAD_FORMAT, 0)], Vec::new()] {
        client.publish(&Publish {
            properties: list,
            payload: b"\xFF\0".into(),
            ..Publish::at(1, 4, "qos/format", "")
        });
        assert_eq!(watcher.take_publish().payload, b"\xFF\0");
    }
    client.publish_only(&wrong(0));
    client.expect_disconnect(0x99);
}
