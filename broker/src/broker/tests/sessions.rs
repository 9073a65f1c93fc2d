//! Sessions that come, go, are taken over, expire and survive a crash.

use super::rig::{Seen, delivery};
use super::{Client, Rig};
use crate::broker::DropReason;
use crate::mqtt::{Connect, Disconnect, ReasonCode, Version, Will, WireProperties, encode};
use crate::record::{Batch, Properties, Qos};
use crate::topic::TopicName;

const QOS1: Qos = Qos::AtLeastOnce;
const QOS2: Qos = Qos::ExactlyOnce;
const SUCCESS: ReasonCode = ReasonCode::Success;

fn present(present: bool) -> Seen {
    Seen::ConnAck { present, reason: SUCCESS }
}

fn again(mut seen: Seen) -> Seen {
    if let Seen::Publish { dup, .. } = &mut seen {
        *dup = true;
    }
    seen
}

fn with_will<'a>(id: &'a str, delay_s: u32, payload: &'a [u8]) -> Connect<'a> {
    let will = Will {
        topic: TopicName::new("will").unwrap(),
        payload,
        qos: QOS1,
        retain: false,
        delay_s,
        properties: WireProperties::from_travelling(Properties::NONE),
    };
    Connect { will: Some(will), ..Connect::new(Version::V5, id) }
}

/// A subscriber to `will`, with its SUBACK swallowed.
fn watcher(rig: &mut Rig) -> Client {
    let client = rig.client(Version::V311, "watcher");
    rig.subscribe(&client, "will", QOS1);
    rig.seen(&client);
    client
}

#[test]
fn an_offline_session_gets_everything_when_it_returns() {
    for crash in [false, true] {
        let mut rig = Rig::new();
        let (keeper, seen) = rig.keeper("keeper");
        assert_eq!(seen, [present(false)]);
        rig.subscribe(&keeper, "a/#", QOS1);
        rig.close(keeper);
        rig.sync();
        let mut publisher = rig.client(Version::V311, "publisher");
        for number in 1..=3 {
            rig.publish(&publisher, "a/b", &number.to_string(), QOS1, number);
            rig.publish(&publisher, "other", "no", QOS1, number + 10);
        }
        rig.sync();
        if crash {
            rig.crash(None);
            publisher = rig.client(Version::V311, "publisher");
        }
        let (keeper, seen) = rig.keeper("keeper");
        let backlog = (1..=3_u16).map(|number| delivery("a/b", &number.to_string(), 1, number));
        assert_eq!(seen, [present(true)].into_iter().chain(backlog).collect::<Vec<_>>(), "crash: {crash}");
        rig.publish(&publisher, "a/c", "live", QOS1, 4);
        rig.sync();
        assert_eq!(rig.seen(&keeper), [delivery("a/c", "live", 1, 4)]);
    }
}

/// A repair has left a gap where the second record was, and one at the end.
#[test]
fn a_session_and_a_group_go_on_behind_entries_that_are_lost() {
    // A group passes the gaps beside its member.
    for (filter, counted) in [("a/#", 2), ("$share/group/a/#", 4)] {
        let mut rig = Rig::new();
        let (keeper, _) = rig.keeper("keeper");
        rig.subscribe(&keeper, filter, QOS1);
        rig.close(keeper);
        rig.sync();
        let publisher = rig.client(Version::V311, "publisher");
        for number in 1..=4 {
            rig.publish(&publisher, "a/b", &number.to_string(), QOS1, number);
            rig.sync();
        }
        let count = rig.log.batches.len();
        for lost in [count - 3, count - 1] {
            let batch = rig.log.batches[lost].clone();
            rig.log.batches[lost] = Batch::gap(batch.base(), batch.count(), batch.time(), true);
        }
        rig.crash(None);
        let (keeper, seen) = rig.keeper("keeper");
        let delivered: Vec<_> = seen.into_iter().skip(1).collect();
        assert_eq!(delivered, [delivery("a/b", "1", 1, 1), delivery("a/b", "3", 1, 2)], "{filter}");
        assert_eq!(rig.broker.stats().publishes_dropped.of(DropReason::Trimmed), counted, "{filter}");
        let publisher = rig.client(Version::V311, "publisher");
        rig.publish(&publisher, "a/b", "new", QOS1, 1);
        rig.sync();
        assert_eq!(rig.seen(&keeper), [delivery("a/b", "new", 1, 3)], "{filter}");
    }
}

#[test]
fn unacknowledged_deliveries_come_again_with_their_identifiers() {
    let mut rig = Rig::new();
    let (keeper, _) = rig.keeper("keeper");
    rig.subscribe(&keeper, "#", QOS2);
    let publisher = rig.client(Version::V311, "publisher");
    rig.publish(&publisher, "a", "1", QOS1, 1);
    rig.publish(&publisher, "a", "2", QOS2, 2);
    rig.publish(&publisher, "a", "3", QOS1, 3);
    rig.publish(&publisher, "a", "4", QOS2, 4);
    rig.sync();
    let mut seen = rig.seen(&keeper);
    seen.retain(|seen| matches!(seen, Seen::Publish { .. }));
    assert_eq!(seen.len(), 4, "{seen:?}");
    rig.send(&keeper, |out| encode::puback(out, Version::V5, 1, SUCCESS));
    rig.send(&keeper, |out| encode::pubrec(out, Version::V5, 2, SUCCESS));
    rig.sync();
    assert_eq!(rig.seen(&keeper), [Seen::PubRel(2)]);
    rig.close(keeper);
    let (_, seen) = rig.keeper("keeper");
    assert_eq!(
        seen,
        [present(true), Seen::PubRel(2), again(delivery("a", "3", 1, 3)), again(delivery("a", "4", 2, 4))]
    );
}

#[test]
fn qos_2_deliveries_keep_their_identifiers_across_a_crash() {
    for checkpointed in [false, true] {
        let mut rig = Rig::new();
        let (keeper, _) = rig.keeper("keeper");
        rig.subscribe(&keeper, "#", QOS2);
        let publisher = rig.client(Version::V311, "publisher");
        for number in 1..=3 {
            rig.publish(&publisher, "a", &number.to_string(), QOS2, number);
        }
        rig.sync();
        rig.send(&keeper, |out| {
            encode::pubrec(out, Version::V5, 1, SUCCESS);
            encode::pubrec(out, Version::V5, 2, SUCCESS);
        });
        rig.sync();
        rig.send(&keeper, |out| encode::pubcomp(out, Version::V5, 1, SUCCESS));
        rig.sync();
        let checkpoint = rig.broker.checkpoint(rig.broker.durable_end());
        rig.crash(checkpointed.then_some(&checkpoint[..]));
        let (_, seen) = rig.keeper("keeper");
        assert_eq!(
            seen,
            [present(true), Seen::PubRel(2), again(delivery("a", "3", 2, 3))],
            "1 is complete, 2 is the client's, 3 comes again as itself; checkpoint: {checkpointed}"
        );
    }
}

#[test]
fn a_qos_2_delivery_is_not_sent_before_its_identifier_is_durable() {
    let mut rig = Rig::new();
    let (keeper, _) = rig.keeper("keeper");
    rig.subscribe(&keeper, "#", QOS2);
    rig.seen(&keeper);
    let publisher = rig.client(Version::V311, "publisher");
    rig.publish(&publisher, "a", "1", QOS2, 1);
    rig.sync();
    let announced = rig.log.batches.iter().rev().position(|batch| batch.records().next().is_some());
    assert!(announced > Some(0), "a batch with the identifier follows the record's");
    assert_eq!(rig.seen(&keeper), [delivery("a", "1", 2, 1)]);
}

#[test]
fn a_received_qos_2_publish_is_remembered_across_a_crash() {
    let mut rig = Rig::new();
    let (keeper, _) = rig.keeper("keeper");
    rig.publish(&keeper, "a", "x", QOS2, 7);
    rig.sync();
    assert_eq!(rig.seen(&keeper), [Seen::PubRec(7, SUCCESS)]);
    let before = rig.log.batches.iter().flat_map(|batch| batch.records()).count();
    rig.crash(None);
    let (keeper, _) = rig.keeper("keeper");
    rig.publish_with(&keeper, "a", "x", QOS2, 7, false, true);
    rig.sync();
    assert_eq!(rig.seen(&keeper), [Seen::PubRec(7, SUCCESS)]);
    assert_eq!(rig.log.batches.iter().flat_map(|batch| batch.records()).count(), before);
    rig.send(&keeper, |out| encode::pubrel(out, Version::V5, 7, SUCCESS));
    assert_eq!(rig.seen(&keeper), [], "PUBCOMP waits for the journal");
    rig.sync();
    assert_eq!(rig.seen(&keeper), [Seen::PubComp(7, SUCCESS)]);
    rig.crash(None);
    let (keeper, _) = rig.keeper("keeper");
    rig.publish(&keeper, "a", "y", QOS2, 7);
    rig.sync();
    assert_eq!(rig.log.batches.iter().flat_map(|batch| batch.records()).count(), before + 1);
}

#[test]
fn another_connection_takes_a_session_over() {
    let mut rig = Rig::new();
    let watcher = watcher(&mut rig);
    let first = rig.connect(&with_will("same", 0, b"gone"));
    let (second, seen) = rig.keeper("same");
    assert_eq!(rig.seen(&first), [Seen::Disconnect(ReasonCode::SessionTakenOver)]);
    assert_eq!(seen, [present(false)], "the first session ended with its connection");
    assert_eq!(rig.seen(&watcher), [delivery("will", "gone", 1, 1)]);
    rig.send(&second, encode::pingreq);
    assert_eq!(rig.seen(&second), [Seen::PingResp]);
}

#[test]
fn a_will_is_published_unless_the_client_says_goodbye() {
    let mut rig = Rig::new();
    let watcher = watcher(&mut rig);
    let polite = rig.connect(&with_will("polite", 0, b"no"));
    rig.send(&polite, |out| encode::disconnect(out, Version::V5, &Disconnect::new(SUCCESS)));
    let insisting = rig.connect(&with_will("insisting", 0, b"asked"));
    let with = Disconnect::new(ReasonCode::DisconnectWithWill);
    rig.send(&insisting, |out| encode::disconnect(out, Version::V5, &with));
    let lost = rig.connect(&with_will("lost", 0, b"lost"));
    rig.close(lost);
    rig.sync();
    assert_eq!(rig.seen(&watcher), [delivery("will", "asked", 1, 1), delivery("will", "lost", 1, 2)]);
}

#[test]
fn a_will_waits_for_its_delay_and_is_void_when_the_client_returns() {
    let mut rig = Rig::new();
    let watcher = watcher(&mut rig);
    let connect = Connect { session_expiry_s: 100, clean_start: false, ..with_will("late", 10, b"late") };
    let client = rig.connect(&connect);
    rig.close(client);
    rig.pass(9);
    let client = rig.connect(&connect);
    rig.pass(60);
    rig.sync();
    assert_eq!(rig.seen(&watcher), []);
    rig.close(client);
    rig.pass(10);
    rig.sync();
    assert_eq!(rig.seen(&watcher), [delivery("will", "late", 1, 1)]);
}

#[test]
fn the_will_of_a_client_that_a_crash_cut_off_is_published_if_it_stays_away() {
    for returns in [false, true] {
        let mut rig = Rig::new();
        let _lost = rig.connect(&with_will("lost", 0, b"lost"));
        rig.sync();
        rig.crash(None);
        let watcher = watcher(&mut rig);
        let _client = returns.then(|| rig.client(Version::V5, "lost"));
        rig.pass(20);
        rig.sync();
        let expected = if returns { vec![] } else { vec![delivery("will", "lost", 1, 1)] };
        assert_eq!(rig.seen(&watcher), expected, "returns: {returns}");
    }
}

#[test]
fn a_session_expires_and_leaves_nothing_behind() {
    let mut rig = Rig::new();
    let (keeper, _) = rig.keeper("keeper");
    rig.subscribe(&keeper, "#", QOS1);
    rig.close(keeper);
    rig.pass(1_001);
    assert_eq!((rig.broker.stats().sessions, rig.broker.stats().subscriptions), (0, 0));
    rig.sync();
    rig.crash(None);
    assert_eq!(rig.broker.stats().sessions, 0);
    let (_, seen) = rig.keeper("keeper");
    assert_eq!(seen, [present(false)]);
}

#[test]
fn clean_start_forgets_the_session() {
    let mut rig = Rig::new();
    let (keeper, _) = rig.keeper("keeper");
    rig.subscribe(&keeper, "#", QOS1);
    rig.close(keeper);
    let _clean = rig.client(Version::V311, "keeper");
    assert_eq!(rig.broker.stats().subscriptions, 0);
    rig.crash(None);
    assert_eq!(rig.broker.stats().subscriptions, 0);
}

#[test]
fn subscriptions_and_retained_records_survive_a_crash() {
    for checkpointed in [false, true] {
        let mut rig = Rig::new();
        let (keeper, _) = rig.keeper("keeper");
        rig.subscribe(&keeper, "a/#", QOS1);
        rig.subscribe(&keeper, "b", QOS1);
        rig.send(&keeper, |out| encode::unsubscribe(out, Version::V5, 3, ["b"]));
        rig.publish_with(&keeper, "kept", "value", QOS1, 1, true, false);
        rig.sync();
        let checkpoint = rig.broker.checkpoint(rig.broker.durable_end());
        rig.crash(checkpointed.then_some(&checkpoint[..]));
        let stats = rig.broker.stats();
        assert_eq!((stats.sessions, stats.subscriptions, stats.retained), (1, 1, 1));
    }
}

#[test]
fn a_silent_client_is_disconnected() {
    let mut rig = Rig::new();
    let connect = Connect { keep_alive_s: 10, ..Connect::new(Version::V5, "silent") };
    let client = rig.connect(&connect);
    rig.pass(14);
    rig.send(&client, encode::pingreq);
    rig.pass(14);
    assert_eq!(rig.seen(&client), [Seen::PingResp]);
    rig.pass(2);
    assert_eq!(rig.seen(&client), [Seen::Disconnect(ReasonCode::KeepAliveTimeout)]);
    let mute = rig.open(Version::V5);
    rig.pass(11);
    assert!(rig.broker.output(mute.key).is_some_and(|(_, closing)| closing), "no CONNECT in time");
}

#[test]
fn acknowledged_positions_are_kept_so_that_nothing_is_read_twice() {
    let mut rig = Rig::new();
    let (keeper, _) = rig.keeper("keeper");
    rig.subscribe(&keeper, "#", QOS1);
    let publisher = rig.client(Version::V311, "publisher");
    for number in 1..=4 {
        rig.publish(&publisher, "a", &number.to_string(), QOS1, number);
    }
    rig.sync();
    rig.seen(&keeper);
    for packet_id in [1, 2, 4] {
        rig.send(&keeper, |out| encode::puback(out, Version::V5, packet_id, SUCCESS));
    }
    rig.pass(2);
    rig.sync();
    rig.crash(None);
    let (_, seen) = rig.keeper("keeper");
    let payloads: Vec<String> = seen
        .into_iter()
        .filter_map(|seen| if let Seen::Publish { payload, .. } = seen { Some(payload) } else { None })
        .collect();
    assert_eq!(payloads, ["3", "4"], "1 and 2 are done; 4 may come twice, 3 must come");
}

/// What it had in flight comes again, though no more at a time than it takes now [MQTT-3.3.4-9].
#[test]
fn a_client_may_return_with_a_smaller_receive_maximum() {
    let mut rig = Rig::new();
    let (keeper, _) = rig.keeper("keeper");
    rig.subscribe(&keeper, "#", QOS2);
    let publisher = rig.client(Version::V311, "publisher");
    for (number, qos) in [(1, QOS1), (2, QOS2), (3, QOS1), (4, QOS2), (5, QOS1)] {
        rig.publish(&publisher, "a", &number.to_string(), qos, number);
    }
    rig.sync();
    assert_eq!(rig.seen(&keeper).iter().filter(|seen| matches!(seen, Seen::Publish { .. })).count(), 5);
    rig.close(keeper);
    let narrow = Connect {
        clean_start: false,
        session_expiry_s: 1_000,
        receive_maximum: 1,
        ..Connect::new(Version::V5, "keeper")
    };
    let client = rig.open(Version::V5);
    rig.send(&client, |out| encode::connect(out, &narrow));
    let mut payloads = Vec::new();
    for _ in 0..20 {
        rig.sync();
        let seen = rig.seen(&client);
        let publishes = seen.iter().filter(|seen| matches!(seen, Seen::Publish { .. })).count();
        assert!(publishes <= 1, "{seen:?}");
        for seen in seen {
            if let Seen::Publish { payload, qos, packet_id, .. } = seen {
                payloads.push(payload);
                rig.send(&client, |out| match qos {
                    1 => encode::puback(out, Version::V5, packet_id, SUCCESS),
                    _ => encode::pubrec(out, Version::V5, packet_id, SUCCESS),
                });
            } else if let Seen::PubRel(packet_id) = seen {
                rig.send(&client, |out| encode::pubcomp(out, Version::V5, packet_id, SUCCESS));
            }
        }
    }
    payloads.sort();
    assert_eq!(payloads, ["1", "2", "3", "4", "5"]);
}

#[test]
fn a_client_that_takes_no_connack_has_come_and_gone() {
    for session_expiry_s in [0, 1_000] {
        let mut rig = Rig::new();
        let client = rig.open(Version::V5);
        let connect = Connect {
            clean_start: false,
            session_expiry_s,
            maximum_packet_bytes: Some(2),
            ..Connect::new(Version::V5, "narrow")
        };
        rig.send(&client, |out| encode::connect(out, &connect));
        rig.sync();
        assert_eq!(rig.seen(&client), []);
        let stats = rig.broker.stats();
        assert_eq!((stats.sessions_connected, stats.sessions_connected_max), (0, 1));
        assert_eq!(stats.sessions, u64::from(session_expiry_s > 0));
        rig.client(Version::V5, "narrow");
        assert_eq!(rig.broker.stats().sessions_connected, 1);
    }
}
