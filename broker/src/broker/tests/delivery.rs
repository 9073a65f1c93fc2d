//! Publishes and deliveries, and what must be durable before either is seen.

use super::rig::{Seen, delivery};
use super::{Client, Rig};
use crate::broker::{DropReason, Limits, Received, RefusalReason};
use crate::mqtt::{Ack, Connect, ReasonCode, Version, encode};
use crate::record::{Qos, Refused};

const QOS0: Qos = Qos::AtMostOnce;
const QOS1: Qos = Qos::AtLeastOnce;
const QOS2: Qos = Qos::ExactlyOnce;

fn puback(rig: &mut Rig, client: &Client, packet_id: u16) {
    let version = client.version;
    rig.send(client, |out| encode::puback(out, version, packet_id, ReasonCode::Success));
}

#[test]
fn nothing_is_acknowledged_or_delivered_before_it_is_durable() {
    let mut rig = Rig::new();
    let publisher = rig.client(Version::V311, "publisher");
    let subscriber = rig.client(Version::V311, "subscriber");
    rig.subscribe(&subscriber, "#", QOS2);
    rig.seen(&subscriber);
    rig.publish(&publisher, "a", "1", QOS1, 1);
    rig.publish(&publisher, "a", "2", QOS2, 2);
    assert_eq!(rig.seen(&publisher), []);
    assert_eq!(rig.seen(&subscriber), []);
    rig.sync();
    assert_eq!(
        rig.seen(&publisher),
        [Seen::PubAck(1, ReasonCode::Success), Seen::PubRec(2, ReasonCode::Success)]
    );
    assert_eq!(rig.seen(&subscriber), [delivery("a", "1", 1, 1), delivery("a", "2", 2, 2)]);
}

#[test]
fn qos_0_reaches_live_subscribers_on_arrival() {
    let mut rig = Rig::new();
    let publisher = rig.client(Version::V311, "publisher");
    let subscriber = rig.client(Version::V5, "subscriber");
    rig.subscribe(&subscriber, "a/+", QOS1);
    rig.seen(&subscriber);
    rig.publish(&publisher, "a/b", "1", QOS0, 0);
    assert_eq!(rig.seen(&subscriber), [delivery("a/b", "1", 0, 0)]);
    rig.sync();
    assert_eq!(rig.seen(&subscriber), [], "not a second time when it is durable");
}

#[test]
fn a_full_window_is_filled_again_from_the_journal_in_order() {
    let mut rig = Rig::with(Limits { in_flight: 4, ..Limits::default() });
    let publisher = rig.client(Version::V311, "publisher");
    let subscriber = rig.client(Version::V311, "subscriber");
    rig.subscribe(&subscriber, "#", QOS1);
    rig.seen(&subscriber);
    let mut received = Vec::new();
    for round in 0..10_u16 {
        for at in 0..7 {
            // Every third is QoS 0 and must keep its place among those that wait with it.
            let number = round * 7 + at;
            let qos = if number % 3 == 0 { QOS0 } else { QOS1 };
            let packet_id = if qos == QOS0 { 0 } else { number + 1 };
            rig.publish(&publisher, "a", &number.to_string(), qos, packet_id);
        }
        rig.sync();
        collect(&mut rig, &subscriber, &mut received);
    }
    let (mut ordered, mut qos0) = (Vec::new(), Vec::new());
    for number in received {
        if number % 3 == 0 { qos0.push(number) } else { ordered.push(number) }
    }
    assert_eq!(ordered, (0..70).filter(|number| number % 3 != 0).collect::<Vec<_>>());
    assert_eq!(qos0, (0..70).filter(|number| number % 3 == 0).collect::<Vec<_>>());
}

/// Takes everything a subscriber is sent, acknowledging as it goes.
fn collect(rig: &mut Rig, subscriber: &Client, received: &mut Vec<u16>) {
    loop {
        let seen = rig.seen(subscriber);
        if seen.is_empty() {
            return;
        }
        for packet in seen {
            let Seen::Publish { payload, packet_id, qos, .. } = packet else { continue };
            received.push(payload.parse().unwrap());
            if qos == 1 {
                puback(rig, subscriber, packet_id);
            }
        }
    }
}

#[test]
fn a_subscriber_that_does_not_read_leaves_the_live_tail_and_misses_nothing() {
    let mut rig = Rig::with(Limits { outgoing_bytes: 300, ..Limits::default() });
    let publisher = rig.client(Version::V311, "publisher");
    let slow = rig.client(Version::V311, "slow");
    let quick = rig.client(Version::V311, "quick");
    rig.subscribe(&slow, "#", QOS1);
    rig.subscribe(&quick, "#", QOS1);
    rig.seen(&slow);
    rig.seen(&quick);
    let (mut quick_received, mut slow_received) = (Vec::new(), Vec::new());
    for number in 0..500_u16 {
        let qos = if number % 2 == 0 { QOS0 } else { QOS1 };
        rig.publish(&publisher, "t", &number.to_string(), qos, if qos == QOS0 { 0 } else { number });
        if number % 5 == 0 {
            rig.sync();
        }
        collect(&mut rig, &quick, &mut quick_received);
        let (outbox, _) = rig.broker.output(slow.key).unwrap();
        assert!(outbox.len() <= 400, "memory for a slow reader is bounded: {}", outbox.len());
    }
    rig.sync();
    collect(&mut rig, &quick, &mut quick_received);
    for _ in 0..500 {
        collect(&mut rig, &slow, &mut slow_received);
        rig.sync();
    }
    let parity = |numbers: &[u16], odd: u16| -> Vec<u16> {
        numbers.iter().copied().filter(|number| number % 2 == odd).collect()
    };
    for received in [&quick_received, &slow_received] {
        for odd in [0, 1] {
            let expected: Vec<u16> = (0..500).filter(|number| number % 2 == odd).collect();
            assert_eq!(parity(received, odd), expected);
        }
    }
}

#[test]
fn qos_2_is_taken_once_however_often_it_is_sent() {
    let mut rig = Rig::new();
    let publisher = rig.client(Version::V311, "publisher");
    let subscriber = rig.client(Version::V311, "subscriber");
    rig.subscribe(&subscriber, "#", QOS0);
    rig.seen(&subscriber);
    rig.publish(&publisher, "a", "x", QOS2, 5);
    rig.publish_with(&publisher, "a", "x", QOS2, 5, false, true);
    rig.sync();
    let success = ReasonCode::Success;
    assert_eq!(rig.seen(&publisher), [Seen::PubRec(5, success), Seen::PubRec(5, success)]);
    assert_eq!(rig.seen(&subscriber), [delivery("a", "x", 0, 0)]);
    rig.send(&publisher, |out| encode::pubrel(out, Version::V311, 5, success));
    rig.sync();
    assert_eq!(rig.seen(&publisher), [Seen::PubComp(5, success)]);
    rig.publish(&publisher, "a", "y", QOS2, 5);
    rig.sync();
    assert_eq!(rig.seen(&publisher), [Seen::PubRec(5, success)]);
    assert_eq!(rig.seen(&subscriber), [delivery("a", "y", 0, 0)]);
}

#[test]
fn qos_2_goes_out_in_four_steps() {
    let mut rig = Rig::new();
    let publisher = rig.client(Version::V5, "publisher");
    let subscriber = rig.client(Version::V5, "subscriber");
    rig.subscribe(&subscriber, "#", QOS2);
    rig.seen(&subscriber);
    rig.publish(&publisher, "a", "x", QOS2, 1);
    rig.sync();
    assert_eq!(rig.seen(&subscriber), [delivery("a", "x", 2, 1)]);
    rig.send(&subscriber, |out| encode::pubrec(out, Version::V5, 1, ReasonCode::Success));
    assert_eq!(rig.seen(&subscriber), [Seen::PubRel(1)]);
    rig.send(&subscriber, |out| encode::pubcomp(out, Version::V5, 1, ReasonCode::Success));
    assert_eq!(rig.seen(&subscriber), []);
    // PUBACK for a QoS 2 delivery is the wrong answer.
    rig.publish(&publisher, "a", "y", QOS2, 2);
    rig.sync();
    assert_eq!(rig.seen(&subscriber), [delivery("a", "y", 2, 2)]);
    rig.send(&subscriber, |out| {
        encode::ack(out, Version::V5, encode::AckType::PubAck, &Ack::new(2, ReasonCode::Success))
    });
    assert_eq!(rig.seen(&subscriber), [Seen::Disconnect(ReasonCode::ProtocolError)]);
}

#[test]
fn retained_records_come_with_the_subscription_and_behind_its_suback() {
    let mut rig = Rig::new();
    let publisher = rig.client(Version::V311, "publisher");
    rig.publish_with(&publisher, "a/1", "one", QOS1, 1, true, false);
    rig.publish_with(&publisher, "a/2", "two", QOS1, 2, true, false);
    rig.publish_with(&publisher, "a/1", "", QOS1, 3, true, false);
    let subscriber = rig.client(Version::V311, "subscriber");
    rig.publish_with(&publisher, "a/3", "three", QOS0, 0, true, false);
    rig.subscribe(&subscriber, "a/+", QOS1);
    let mut seen = rig.seen(&subscriber);
    assert_eq!(seen.remove(0), Seen::SubAck(vec![ReasonCode::GrantedQos1]));
    seen.sort_by_key(|seen| format!("{seen:?}"));
    let retained = |topic: &str, payload: &str, qos, packet_id| Seen::Publish {
        topic: topic.into(),
        payload: payload.into(),
        qos,
        packet_id,
        dup: false,
        retain: true,
    };
    assert_eq!(seen, [retained("a/2", "two", 1, 1), retained("a/3", "three", 0, 0)]);
    rig.publish_with(&publisher, "a/2", "now", QOS0, 0, true, false);
    rig.sync();
    assert_eq!(rig.seen(&subscriber), [delivery("a/2", "now", 0, 0)], "not retained for who is there");
}

#[test]
fn a_full_journal_holds_publishers_back_and_tells_v5() {
    let mut rig = Rig::new();
    let old = rig.client(Version::V311, "old");
    let new = rig.client(Version::V5, "new");
    rig.log.refuse = Some(Refused::Full);
    let received = rig.publish_with(&old, "a", "1", QOS1, 1, false, false);
    assert_eq!(received, Received::Held { consumed: 0 });
    rig.publish(&new, "a", "2", QOS1, 1);
    rig.sync();
    assert_eq!(rig.seen(&new), [Seen::PubAck(1, ReasonCode::QuotaExceeded)]);
    let refused = rig.broker.stats().publishes_refused;
    assert_eq!(
        (refused.of(RefusalReason::JournalFull), refused.sum()),
        (1, 1),
        "who is held back is not refused"
    );
    assert!(rig.broker.is_holding());
    rig.log.refuse = None;
    rig.broker.handle_room();
    assert_eq!(rig.broker.poll_resumed(), Some(old.key));
    rig.publish(&old, "a", "1", QOS1, 1);
    rig.sync();
    assert_eq!(rig.seen(&old), [Seen::PubAck(1, ReasonCode::Success)]);
}

#[test]
fn a_failed_journal_acknowledges_nothing_and_says_so() {
    let mut rig = Rig::new();
    let old = rig.client(Version::V311, "old");
    let new = rig.client(Version::V5, "new");
    rig.publish(&new, "a", "waits", QOS1, 1);
    rig.log.refuse = Some(Refused::Failed);
    let (now, mut log) = (rig.now, std::mem::replace(&mut rig.log, Rig::new().log));
    rig.broker.journal_failed(now, &mut log);
    rig.log = log;
    assert_eq!(rig.seen(&new), [Seen::Disconnect(ReasonCode::ImplementationSpecificError)]);
    let received = rig.publish_with(&old, "a", "1", QOS1, 1, false, false);
    assert_eq!(received, Received::Closing);
    assert_eq!(rig.seen(&old), []);
}

#[test]
fn a_client_that_exceeds_our_receive_maximum_is_told() {
    let mut rig = Rig::with(Limits { receive_maximum: 2, ..Limits::default() });
    let client = rig.client(Version::V5, "eager");
    for packet_id in 1..=3 {
        rig.publish(&client, "a", "x", QOS1, packet_id);
    }
    assert_eq!(rig.seen(&client), [Seen::Disconnect(ReasonCode::ReceiveMaximumExceeded)]);
}

#[test]
fn a_packet_larger_than_the_client_takes_counts_as_delivered() {
    let mut rig = Rig::new();
    let publisher = rig.client(Version::V311, "publisher");
    let connect = Connect { maximum_packet_bytes: Some(30), ..Connect::new(Version::V5, "small") };
    let small = rig.connect(&connect);
    rig.subscribe(&small, "#", QOS1);
    rig.seen(&small);
    rig.publish(&publisher, "a", &"x".repeat(40), QOS1, 1);
    rig.publish(&publisher, "a", "fits", QOS1, 2);
    rig.sync();
    assert_eq!(rig.seen(&small), [delivery("a", "fits", 1, 1)]);
    assert_eq!(rig.broker.stats().publishes_dropped.of(DropReason::TooLarge), 1);
}

#[test]
fn no_local_keeps_a_client_from_its_own_publishes() {
    let mut rig = Rig::new();
    let client = rig.client(Version::V5, "both");
    let mut subscription = crate::mqtt::Subscription::new("#", QOS1);
    subscription.no_local = true;
    rig.send(&client, |out| encode::subscribe(out, Version::V5, 1, None, [subscription]));
    rig.sync();
    rig.seen(&client);
    let other = rig.client(Version::V5, "other");
    rig.publish(&client, "a", "mine", QOS1, 1);
    rig.publish(&client, "a", "mine", QOS0, 0);
    rig.publish(&other, "a", "theirs", QOS1, 1);
    rig.sync();
    assert_eq!(rig.seen(&client), [Seen::PubAck(1, ReasonCode::Success), delivery("a", "theirs", 1, 1)]);
}
