//! Every limit is reached: it has its answer, it is counted, and nothing else suffers.

use std::net::IpAddr;
use std::time::Duration;

use super::rig::{Seen, delivery};
use super::{Client, Rig};
use crate::broker::{
    DropReason, Gauges, Limit, Limits, REFUSED_CONNECTIONS_MAX, RateAction, Received, RefusalReason,
};
use crate::mqtt::{Ack, Connect, ReasonCode, Subscription, Version, encode};
use crate::record::{Properties, Qos};

const QOS0: Qos = Qos::AtMostOnce;
const QOS1: Qos = Qos::AtLeastOnce;

/// Fails unless exactly these limits were reached, each so often.
#[track_caller]
fn reached(rig: &Rig, expected: &[(Limit, u64)]) {
    let counts = rig.broker.stats().limits;
    for limit in Limit::ALL {
        let count = expected.iter().find(|(each, _)| *each == limit).map_or(0, |(_, count)| *count);
        assert_eq!(counts.of(limit), count, "{limit:?}");
    }
}

/// What a client is told that opens a connection and says CONNECT.
fn knock(rig: &mut Rig, version: Version, id: &str) -> (Client, Vec<Seen>) {
    let client = rig.open(version);
    rig.send(&client, |out| encode::connect(out, &Connect::new(version, id)));
    rig.sync();
    let seen = rig.seen(&client);
    (client, seen)
}

fn refused(reason: ReasonCode) -> Vec<Seen> {
    vec![Seen::ConnAck { present: false, reason }]
}

#[test]
fn one_connection_too_many_is_told_and_a_flood_of_them_is_closed() {
    let mut rig = Rig::with(Limits { connections: 1, ..Limits::default() });
    let first = rig.client(Version::V5, "first");
    let (second, seen) = knock(&mut rig, Version::V5, "second");
    assert_eq!(seen, refused(ReasonCode::QuotaExceeded));
    let (third, seen) = knock(&mut rig, Version::V311, "third");
    assert_eq!(seen, refused(ReasonCode::ServerUnavailable));
    reached(&rig, &[(Limit::Connections, 2)]);
    let peer = IpAddr::from([127, 0, 0, 1]);
    let more = (0..2 * REFUSED_CONNECTIONS_MAX).filter_map(|_| rig.broker.open(peer, rig.now)).count();
    assert_eq!(more, REFUSED_CONNECTIONS_MAX - 2, "the rest is closed without an answer");
    for client in [first, second, third] {
        rig.close(client);
    }
    assert_eq!(knock(&mut rig, Version::V5, "fourth").1, refused(ReasonCode::Success), "there is room again");
}

#[test]
fn connections_of_one_address_are_limited_apart_from_others() {
    let mut rig = Rig::with(Limits { connections_per_address: 1, ..Limits::default() });
    let first = rig.client(Version::V5, "first");
    assert_eq!(knock(&mut rig, Version::V5, "second").1, refused(ReasonCode::QuotaExceeded));
    reached(&rig, &[(Limit::ConnectionsPerAddress, 1)]);
    let elsewhere = IpAddr::from([192, 0, 2, 1]);
    let other = Client { key: rig.broker.open(elsewhere, rig.now).unwrap(), version: Version::V5 };
    rig.send(&other, |out| encode::connect(out, &Connect::new(Version::V5, "other")));
    rig.sync();
    assert_eq!(rig.seen(&other), refused(ReasonCode::Success));
    rig.close(first);
    assert_eq!(
        knock(&mut rig, Version::V5, "third").1,
        refused(ReasonCode::QuotaExceeded),
        "the second stays"
    );
}

#[test]
fn who_comes_through_a_proxy_counts_at_its_own_address() {
    let mut rig = Rig::with(Limits { connections_per_address: 1, ..Limits::default() });
    let elsewhere = IpAddr::from([192, 0, 2, 1]);
    for reason in [ReasonCode::Success, ReasonCode::QuotaExceeded] {
        let client = rig.open(Version::V5);
        rig.broker.set_peer(client.key, elsewhere);
        rig.send(&client, |out| encode::connect(out, &Connect::new(Version::V5, "")));
        assert_eq!(rig.seen(&client), refused(reason));
    }
    reached(&rig, &[(Limit::ConnectionsPerAddress, 1)]);
}

#[test]
fn connects_faster_than_their_rate_are_told() {
    let mut rig = Rig::with(Limits { connect_rate: 2, ..Limits::default() });
    for _ in 0..2 {
        assert_eq!(knock(&mut rig, Version::V5, "").1.len(), 1);
    }
    assert_eq!(knock(&mut rig, Version::V5, "a").1, refused(ReasonCode::ConnectionRateExceeded));
    assert_eq!(knock(&mut rig, Version::V311, "b").1, refused(ReasonCode::ServerUnavailable));
    reached(&rig, &[(Limit::ConnectRate, 2)]);
    rig.pass(1);
    assert_eq!(knock(&mut rig, Version::V5, "c").1, refused(ReasonCode::Success));
}

#[test]
fn a_connection_that_never_says_connect_is_closed() {
    let mut rig = Rig::new();
    let silent = rig.open(Version::V5);
    let dribbling = rig.open(Version::V5);
    let mut packet = Vec::new();
    encode::connect(&mut packet, &Connect::new(Version::V5, "dribbling"));
    for second in 0..10 {
        assert!(matches!(
            rig.send(&dribbling, |out| out.extend_from_slice(&packet[..=second])),
            Received::More { consumed: 0, .. }
        ));
        rig.pass(1);
    }
    for client in [&silent, &dribbling] {
        assert!(rig.broker.output(client.key).unwrap().1, "it is to be closed");
    }
    reached(&rig, &[(Limit::ConnectTimeout, 2)]);
}

#[test]
fn bytes_that_are_no_packet_yet_do_not_keep_a_connection_alive() {
    let mut rig = Rig::new();
    let connect = Connect { keep_alive_s: 4, ..Connect::new(Version::V5, "dribbling") };
    let client = rig.connect(&connect);
    for received in 1..=6 {
        rig.send(&client, |out| out.extend_from_slice(&[0x30, 100, 0, 90, b'a', b'a', b'a'][..received]));
        rig.pass(1);
    }
    assert_eq!(rig.seen(&client), [Seen::Disconnect(ReasonCode::KeepAliveTimeout)]);
}

#[test]
fn packets_that_are_too_large_and_topics_that_are_too_deep_are_counted() {
    let mut rig = Rig::with(Limits { packet_bytes: 1_024, topic_levels: 3, ..Limits::default() });
    let large = rig.client(Version::V5, "large");
    rig.publish(&large, "a", &"x".repeat(1_024), QOS1, 1);
    assert_eq!(rig.seen(&large), [Seen::Disconnect(ReasonCode::PacketTooLarge)]);
    let deep = rig.client(Version::V5, "deep");
    rig.publish(&deep, "a/b/c", "fits", QOS1, 1);
    rig.subscribe(&deep, "a/b/c/#", QOS1);
    rig.publish(&deep, "a/b/c/d", "", QOS1, 2);
    assert_eq!(
        rig.seen(&deep),
        [
            Seen::PubAck(1, ReasonCode::Success),
            Seen::SubAck(vec![ReasonCode::TopicFilterInvalid]),
            Seen::Disconnect(ReasonCode::TopicNameInvalid)
        ]
    );
    let deepest = rig.client(Version::V5, "deepest");
    rig.publish(&deepest, &"/".repeat(200), "", QOS1, 1);
    assert_eq!(rig.seen(&deepest), [Seen::Disconnect(ReasonCode::TopicNameInvalid)]);
    reached(&rig, &[(Limit::PacketBytes, 1), (Limit::TopicLevels, 3)]);
}

#[test]
fn a_publisher_that_is_too_fast_waits_and_loses_nothing() {
    for bytes in [false, true] {
        let limits = if bytes {
            Limits { publish_bytes_rate: 8, ..Limits::default() }
        } else {
            Limits { publish_rate: 4, ..Limits::default() }
        };
        let mut rig = Rig::with(limits);
        let client = rig.client(Version::V311, "fast");
        for packet_id in 1..=4 {
            rig.publish(&client, "a", "1", QOS1, packet_id);
        }
        let more = rig.publish_with(&client, "a", "1", QOS1, 5, false, false);
        assert_eq!(more, Received::Held { consumed: 0 });
        assert_eq!(rig.broker.poll_resumed(), None);
        assert!(rig.broker.poll_timeout().unwrap() <= rig.now.monotonic + Duration::from_millis(251));
        rig.pass(1);
        assert_eq!(rig.broker.poll_resumed(), Some(client.key));
        rig.publish(&client, "a", "1", QOS1, 5);
        rig.sync();
        let acknowledged: Vec<Seen> = (1..=5).map(|id| Seen::PubAck(id, ReasonCode::Success)).collect();
        assert_eq!(rig.seen(&client), acknowledged);
        let limit = if bytes { Limit::PublishBytesRate } else { Limit::PublishRate };
        reached(&rig, &[(limit, 1)]);
    }
}

#[test]
fn a_publisher_that_is_too_fast_is_disconnected_where_that_is_wanted() {
    let mut rig = Rig::with(Limits {
        publish_rate: 1,
        publish_rate_action: RateAction::Disconnect,
        ..Limits::default()
    });
    let client = rig.client(Version::V5, "fast");
    for _ in 0..2 {
        rig.publish(&client, "a", "1", QOS0, 0);
    }
    assert_eq!(rig.seen(&client), [Seen::Disconnect(ReasonCode::MessageRateTooHigh)]);
    reached(&rig, &[(Limit::PublishRate, 1)]);
    assert_eq!(rig.broker.stats().publishes_refused.of(RefusalReason::Rate), 1);
}

#[test]
fn one_subscription_too_many_is_refused_and_an_old_one_can_be_changed() {
    let mut rig = Rig::with(Limits { subscriptions: 2, ..Limits::default() });
    for (version, refusal) in
        [(Version::V5, ReasonCode::QuotaExceeded), (Version::V311, ReasonCode::UnspecifiedError)]
    {
        let client = rig.client(version, "many");
        rig.send(&client, |out| {
            let filters = ["a", "b", "c"].map(|filter| Subscription::new(filter, QOS1));
            encode::subscribe(out, version, 1, None, filters);
        });
        rig.subscribe(&client, "d", QOS0);
        rig.subscribe(&client, "b", QOS0);
        let granted = ReasonCode::GrantedQos1;
        assert_eq!(
            rig.seen(&client),
            [
                Seen::SubAck(vec![granted, granted, refusal]),
                Seen::SubAck(vec![refusal]),
                Seen::SubAck(vec![ReasonCode::Success])
            ]
        );
        rig.close(client);
    }
    reached(&rig, &[(Limit::Subscriptions, 4)]);
}

#[test]
fn one_session_too_many_is_refused_and_an_old_one_goes_on() {
    let mut rig = Rig::with(Limits { sessions: 1, ..Limits::default() });
    let (keeper, _) = rig.keeper("keeper");
    assert_eq!(knock(&mut rig, Version::V5, "other").1, refused(ReasonCode::QuotaExceeded));
    assert_eq!(knock(&mut rig, Version::V311, "other").1, refused(ReasonCode::ServerUnavailable));
    reached(&rig, &[(Limit::Sessions, 2)]);
    rig.close(keeper);
    let (_, seen) = rig.keeper("keeper");
    assert_eq!(seen, [Seen::ConnAck { present: true, reason: ReasonCode::Success }]);
}

#[test]
fn what_cannot_be_retained_is_refused_or_carried_without() {
    let cases = [
        (Limits { retained: 1, ..Limits::default() }, Limit::Retained),
        (
            Limits { retained_bytes: "p".len() + "a".len() + "1".len(), ..Limits::default() },
            Limit::RetainedBytes,
        ),
    ];
    for (limits, limit) in cases {
        let mut rig = Rig::with(limits);
        let subscriber = rig.client(Version::V5, "s");
        rig.subscribe(&subscriber, "#", QOS1);
        rig.seen(&subscriber);
        let client = rig.client(Version::V5, "p");
        rig.publish_with(&client, "a", "1", QOS1, 1, true, false);
        rig.publish_with(&client, "b", "2", QOS1, 2, true, false);
        rig.publish_with(&client, "a", "3", QOS1, 3, true, false);
        rig.publish_with(&client, "b", "4", QOS0, 0, true, false);
        rig.sync();
        assert_eq!(
            rig.seen(&client),
            [
                Seen::PubAck(1, ReasonCode::Success),
                Seen::PubAck(2, ReasonCode::QuotaExceeded),
                Seen::PubAck(3, ReasonCode::Success)
            ]
        );
        assert_eq!(
            rig.seen(&subscriber),
            [delivery("b", "4", 0, 0), delivery("a", "1", 1, 1), delivery("a", "3", 1, 2)],
            "carried all the same"
        );
        reached(&rig, &[(limit, 2)]);
        assert_eq!(rig.broker.stats().publishes_refused.of(RefusalReason::Quota), 1);
        assert_eq!(rig.broker.stats().retained, 1);
        rig.crash(None);
        assert_eq!(rig.broker.stats().retained, 1, "a restart comes to the same");
    }
}

#[test]
fn without_memory_nobody_new_comes_in_and_publishers_wait() {
    let mut rig = Rig::with(Limits { memory_bytes: 1_000, ..Limits::default() });
    let client = rig.client(Version::V311, "client");
    rig.broker.handle_gauges(Gauges { memory_bytes: 1_001, ..Gauges::default() });
    assert_eq!(knock(&mut rig, Version::V5, "new").1, refused(ReasonCode::QuotaExceeded));
    let received = rig.publish_with(&client, "a", "1", QOS1, 1, false, false);
    assert_eq!(received, Received::Held { consumed: 0 });
    rig.broker.handle_room();
    assert_eq!(rig.broker.poll_resumed(), None, "room in the journal does not help");
    rig.broker.handle_gauges(Gauges { memory_bytes: 1_000, ..Gauges::default() });
    rig.broker.handle_room();
    assert_eq!(rig.broker.poll_resumed(), Some(client.key));
    rig.publish(&client, "a", "1", QOS1, 1);
    rig.sync();
    assert_eq!(rig.seen(&client), [Seen::PubAck(1, ReasonCode::Success)]);
    reached(&rig, &[(Limit::Memory, 2)]);
}

#[test]
fn a_slow_subscriber_reaches_its_limits_and_gets_everything() {
    let limits = Limits { in_flight: 2, outgoing_bytes: 16 << 10, ..Limits::default() };
    let mut rig = Rig::with(limits);
    let publisher = rig.client(Version::V5, "publisher");
    let subscriber = rig.client(Version::V5, "subscriber");
    rig.subscribe(&subscriber, "#", QOS1);
    rig.seen(&subscriber);
    for packet_id in 1..=4 {
        rig.publish(&publisher, "a", &packet_id.to_string(), QOS1, packet_id);
        rig.sync();
    }
    reached(&rig, &[(Limit::InFlight, 1)]);
    let mut delivered = 0;
    while delivered < 4 {
        for seen in rig.seen(&subscriber) {
            let Seen::Publish { payload, packet_id, .. } = seen else { panic!("{seen:?}") };
            delivered += 1;
            assert_eq!(payload, delivered.to_string());
            rig.send(&subscriber, |out| {
                encode::ack(
                    out,
                    Version::V5,
                    encode::AckType::PubAck,
                    &Ack::new(packet_id, ReasonCode::Success),
                );
            });
        }
    }
    let payload = "x".repeat(7_000);
    for _ in 0..6 {
        rig.publish(&publisher, "a", &payload, QOS0, 0);
    }
    assert_eq!(rig.broker.stats().limits.of(Limit::OutgoingBytes), 1);
    rig.sync();
    let mut delivered = 0;
    for _ in 0..6 {
        delivered += rig.seen(&subscriber).len();
    }
    assert_eq!(delivered, 6);
}

#[test]
fn a_client_that_lets_its_answers_wait_is_not_read_until_it_takes_them() {
    let limits = Limits { outgoing_bytes: 16 << 10, packet_bytes: 1 << 10, ..Limits::default() };
    let mut rig = Rig::with(limits);
    let client = rig.connect(&Connect { keep_alive_s: 10, ..Connect::new(Version::V5, "flood") });
    let mut flood = Vec::new();
    (0..100_000).for_each(|_| encode::pingreq(&mut flood));
    let received = rig.send(&client, |out| out.extend_from_slice(&flood));
    let Received::Held { consumed } = received else { panic!("{received:?}") };
    let waiting = rig.broker.output(client.key).unwrap().0.len();
    assert_eq!(waiting, consumed, "an answer is as long as its question");
    assert!(waiting <= (16 << 10) + (1 << 10) + (64 << 10) + 2, "{waiting} bytes wait");
    assert_eq!(rig.broker.poll_resumed(), None);
    reached(&rig, &[(Limit::OutgoingBytes, 1)]);
    assert!(rig.seen(&client).len() > 30_000);
    assert_eq!(rig.broker.poll_resumed(), Some(client.key), "it goes on");
    rig.send(&client, |out| out.extend_from_slice(&flood));
    rig.pass(20);
    assert!(!rig.broker.output(client.key).unwrap().1, "it took something meanwhile");
    rig.pass(20);
    let (outbox, closing) = rig.broker.output(client.key).unwrap();
    assert!(closing, "who takes nothing for so long is gone");
    outbox.clear();
}

#[test]
fn subscribing_without_end_leaves_others_their_turn() {
    let mut rig = Rig::new();
    let client = rig.client(Version::V5, "flood");
    let mut flood = Vec::new();
    for _ in 0..1_000 {
        encode::subscribe(&mut flood, Version::V5, 1, None, [Subscription::new("a", QOS0)]);
    }
    let (mut rest, mut turns) = (&flood[..], 0);
    loop {
        turns += 1;
        match rig.send(&client, |out| out.extend_from_slice(rest)) {
            Received::Held { consumed } => rest = &rest[consumed..],
            Received::More { consumed, .. } => {
                assert_eq!(consumed, rest.len());
                break;
            }
            Received::Closing => panic!("it did nothing wrong"),
        }
        assert_eq!(rig.broker.poll_resumed(), Some(client.key));
    }
    assert_eq!(turns, 4);
    rig.sync();
    assert_eq!(rig.seen(&client).len(), 1_000);
}

#[test]
fn clients_that_come_and_go_leave_no_timers_or_sessions() {
    let mut rig = Rig::with(Limits { connect_rate: 0, ..Limits::default() });
    let (keeper, _) = rig.keeper("keeper");
    rig.subscribe(&keeper, "devices/+/status", QOS1);
    for id in 0..20_000 {
        let connect = Connect {
            keep_alive_s: u16::MAX,
            session_expiry_s: if id % 2 == 0 { 1_000_000 } else { 0 },
            ..Connect::new(Version::V5, "quick")
        };
        let client = rig.open(Version::V5);
        rig.send(&client, |out| encode::connect(out, &connect));
        rig.close(client);
    }
    rig.sync();
    assert_eq!(rig.broker.connections.len(), 1);
    assert_eq!(rig.broker.sessions.len(), 1);
    assert_eq!(rig.broker.router.len(), 1);
    assert!(rig.broker.timers.len() < 2_000, "{} timers", rig.broker.timers.len());
    // Those that count are still there.
    rig.close(keeper);
    rig.pass(1_001);
    assert_eq!(rig.broker.sessions.len(), 0, "the session has expired");
}

#[test]
fn what_is_accepted_for_a_subscriber_is_sent_or_counted_as_dropped_or_waits() {
    let mut rig = Rig::new();
    let publisher = rig.client(Version::V5, "publisher");
    let connect = |id| Connect {
        clean_start: false,
        session_expiry_s: 1_000,
        maximum_packet_bytes: Some(100),
        ..Connect::new(Version::V5, id)
    };
    let subscriber = rig.connect(&connect("subscriber"));
    rig.subscribe(&subscriber, "#", QOS1);
    rig.seen(&subscriber);
    let send = |rig: &mut Rig, base: u16| {
        rig.publish(&publisher, "a", "arrives", QOS0, 0);
        rig.publish(&publisher, "a", "arrives", QOS1, base + 1);
        rig.publish(&publisher, "a", &"x".repeat(200), QOS0, 0);
        rig.publish(&publisher, "a", &"x".repeat(200), QOS1, base + 2);
        let expires_in_a_second = [0x02, 0, 0, 0, 1];
        let head = encode::PublishHead {
            dup: false,
            qos: QOS1,
            retain: false,
            packet_id: base + 3,
            topic: "a",
            properties: Properties::from_encoded(&expires_in_a_second),
            message_expiry: None,
            subscription_ids: &[],
            topic_alias: None,
            payload_bytes: 0,
        };
        rig.send(&publisher, |out| {
            encode::publish(out, Version::V5, &head, b"");
        });
        rig.sync();
    };
    send(&mut rig, 0);
    assert_eq!(rig.seen(&subscriber).len(), 3);
    rig.close(subscriber);
    send(&mut rig, 10);
    let balance = |rig: &Rig| {
        let stats = rig.broker.stats();
        let sent = stats.publishes_out_total - stats.publishes_again_total;
        (stats.publishes_in_total, sent, stats.publishes_dropped.sum())
    };
    assert_eq!(balance(&rig), (10, 3, 4), "three wait");
    rig.pass(2);
    let subscriber = rig.connect(&connect("subscriber"));
    rig.sync();
    rig.seen(&subscriber);
    let dropped = rig.broker.stats().publishes_dropped;
    assert_eq!((dropped.of(DropReason::Away), dropped.of(DropReason::TooLarge)), (2, 3));
    assert_eq!(dropped.of(DropReason::Expired), 1);
    assert_eq!(balance(&rig), (10, 4, 6), "in = sent + dropped");
    assert_eq!(rig.broker.stats().publishes_again_total, 2, "the unacknowledged ones came again");
}
