//! Shared Subscriptions, as far as the standard binds them: QoS, completion, refusal.

use super::broker;
use super::client::{Answer, Client, value};
use super::wire::{self, Connect, Publish, packet, property};

/// A member of the group `$share/{group}/shared/{group}` with a session that is kept.
fn member(group: &str, id: &str, qos: u8) -> (Client, Connect) {
    let connect = Connect::kept(5, &format!("shared-{group}-{id}"));
    let mut client = Client::open(broker().mqtt, &connect);
    client.subscribe(&format!("$share/{group}/shared/{group}"), qos);
    (client, connect)
}

fn forget(connect: &Connect) {
    Client::open(broker().mqtt, &Connect { flags: wire::CLEAN_START, ..connect.clone() }).disconnect();
    let connect = Connect { properties: Vec::new(), flags: wire::CLEAN_START, ..connect.clone() };
    Client::open(broker().mqtt, &connect).disconnect();
}

fn publisher() -> Client {
    Client::open(broker().mqtt, &Connect::fresh(5))
}

#[test]
fn shared_subscriptions_are_there() {
    let (_, _, properties) = Client::accepted(broker().mqtt, &Connect::fresh(5));
    assert_ne!(value(&properties, property::SHARED_SUBSCRIPTIONS), Some(&[0][..]));
}

#[test]
fn each_member_gets_at_most_its_granted_qos() {
    // [MQTT-4.8.2-3]
    let topic = "shared/granted";
    let mut members: Vec<_> = (0..3).map(|qos| member("granted", &qos.to_string(), qos)).collect();
    let mut publisher = publisher();
    for number in 1..=30 {
        publisher.publish(&Publish::at(2, number, topic, &number.to_string()));
    }
    let mut got = Vec::new();
    for (granted, (client, _)) in members.iter_mut().enumerate() {
        client.send(wire::subscribe(5, 999, "shared/granted-end", 1));
        // What is published after it shows that nothing more comes.
        let mut ended = false;
        while !ended {
            match client.receive() {
                Answer::Publish(publish) => {
                    assert!(usize::from(publish.qos) <= granted, "{publish:?} to a member at {granted}");
                    match publish.qos {
                        0 => {}
                        1 => client.send(wire::ack(wire::PUBACK, publish.packet_id)),
                        _ => client.send(wire::ack(wire::PUBREC, publish.packet_id)),
                    }
                    got.push(publish.text().parse::<u16>().unwrap());
                }
                Answer::Ack { first: wire::PUBREL, packet_id, .. } => {
                    client.send(wire::ack(wire::PUBCOMP, packet_id));
                }
                Answer::SubAck { packet_id: 999, .. } => ended = true,
                other => panic!("{other:?}"),
            }
        }
    }
    got.sort_unstable();
    got.dedup();
    assert!(!got.is_empty() && got.len() <= 30);
    for (client, connect) in members {
        drop(client);
        forget(&connect);
    }
}

#[test]
fn a_qos_2_delivery_is_completed_to_its_member_and_to_nobody_else() {
    // [MQTT-4.8.2-4] [MQTT-4.8.2-5]
    let topic = "shared/completed";
    let (mut first, connect) = member("completed", "first", 2);
    publisher().publish(&Publish::at(2, 1, topic, "begun"));
    let begun = first.receive_publish();
    let (mut second, other) = member("completed", "second", 2);
    first.break_off();
    second.expect_nothing_but_pingresp();
    let mut first = Client::open(broker().mqtt, &connect);
    assert_eq!(first.receive_publish(), Publish { dup: true, ..begun });
    first.break_off();
    // The session ends: the others still do not get it.
    forget(&connect);
    publisher().publish(&Publish::at(2, 1, topic, "next"));
    assert_eq!(second.take_text(), "next");
    drop(second);
    forget(&other);
}

#[test]
fn what_a_member_refuses_goes_to_nobody_else() {
    // [MQTT-4.8.2-6]
    for (qos, first_byte) in [(1, wire::PUBACK), (2, wire::PUBREC)] {
        let group = format!("refused{qos}");
        let topic = format!("shared/{group}");
        let (mut first, connect) = member(&group, "first", qos);
        publisher().publish(&Publish::at(qos, 1, &topic, "refused"));
        let refused = first.receive_publish();
        let (mut second, other) = member(&group, "second", qos);
        first.send(packet(first_byte, &[&refused.packet_id.to_be_bytes(), &[0x83]]));
        first.expect_nothing_but_pingresp();
        drop(first);
        forget(&connect);
        publisher().publish(&Publish::at(qos, 1, &topic, "next"));
        assert_eq!(second.take_text(), "next", "QoS {qos}");
        drop(second);
        forget(&other);
    }
}
