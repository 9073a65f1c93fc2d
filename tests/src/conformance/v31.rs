//! What MQTT 3.1 (protocol name `MQIsdp`, level 3) does differently from 3.1.1, and that it is carried along.

use super::broker;
use super::client::{Answer, Client};
use super::wire::{self, Connect, Publish};

#[test]
fn a_client_of_mqtt_3_1_publishes_and_subscribes() {
    let mut client = Client::open(broker().mqtt, &Connect::fresh(3));
    client.subscribe("v31/#", 2);
    for qos in 0..3 {
        let packet_id = client.next_id();
        client.publish_only(&Publish::at(qos, packet_id, "v31/a", "text"));
        assert_eq!(client.take_publish_amid_acks().qos, qos);
    }
}

#[test]
fn unused_bits_are_not_looked_at() {
    let connect = Connect { flags: wire::CLEAN_START | 1, ..Connect::fresh(3) };
    let mut client = Client::open(broker().mqtt, &connect);
    // A repeated SUBSCRIBE, UNSUBSCRIBE or PUBREL carries DUP.
    let mut subscribe = wire::subscribe(3, 1, "v31/bits", 0);
    subscribe[0] |= 0b1000;
    client.send(&subscribe);
    client.expect(&Answer::SubAck { packet_id: 1, codes: vec![0] });
    let mut unsubscribe = wire::unsubscribe(3, 2, &["v31/bits"]);
    unsubscribe[0] |= 0b1000;
    client.send(&unsubscribe);
    client.expect(&Answer::UnsubAck { packet_id: 2, codes: Vec::new() });
    client.publish_only(&Publish::at(2, 3, "v31/bits", ""));
    client.expect(&Answer::Ack { first: wire::PUBREC, packet_id: 3, code: 0 });
    client.send(wire::ack(wire::PUBREL | 0b1000, 3));
    client.expect(&Answer::Ack { first: wire::PUBCOMP, packet_id: 3, code: 0 });
}

#[test]
fn credentials_may_be_announced_and_left_out() {
    for flags in [0b1000_0010, 0b1100_0010] {
        Client::open(broker().mqtt, &Connect { flags, ..Connect::fresh(3) }).disconnect();
    }
}

#[test]
fn a_client_identifier_is_required_and_may_be_long() {
    let (mut client, answer) = Client::asked(broker().mqtt, &Connect::new(3, ""));
    assert_eq!(answer, Answer::ConnAck { present: false, code: 2, properties: Vec::new() });
    client.expect_closed();
    Client::open(broker().mqtt, &Connect::new(3, &"x".repeat(200))).disconnect();
}

#[test]
fn connack_has_no_session_present_flag() {
    let kept = Connect::kept(3, "v31-present");
    let mut client = Client::open(broker().mqtt, &kept);
    client.subscribe("v31/present", 1);
    client.disconnect();
    let (mut client, present, _) = Client::accepted(broker().mqtt, &kept);
    assert!(!present, "the byte is reserved");
    // The session went on all the same.
    Client::open(broker().mqtt, &Connect::fresh(5)).publish(&Publish::at(1, 1, "v31/present", "text"));
    assert_eq!(client.take_text(), "text");
    client.disconnect();
    Client::open(broker().mqtt, &Connect::new(3, "v31-present")).disconnect();
}
