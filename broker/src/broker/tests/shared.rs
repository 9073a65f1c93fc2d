//! Shared subscriptions: each record goes to one member, and members that come and go lose nothing.

use std::collections::BTreeSet;

use super::rig::Seen;
use super::{Client, Rig};
use crate::broker::Limits;
use crate::mqtt::{ReasonCode, Version, encode};
use crate::record::Qos;

const QOS0: Qos = Qos::AtMostOnce;
const QOS1: Qos = Qos::AtLeastOnce;
const QOS2: Qos = Qos::ExactlyOnce;
const SHARE: &str = "$share/workers/job/+";

/// A delivery: payload, QoS, Packet Identifier, whether it is marked as sent before.
type Got = (String, u8, u16, bool);

/// What a client was sent, acknowledging nothing.
fn got(rig: &mut Rig, client: &Client) -> Vec<Got> {
    publishes(rig.seen(client))
}

fn publishes(seen: Vec<Seen>) -> Vec<Got> {
    let mut found = Vec::new();
    for packet in seen {
        if let Seen::Publish { payload, qos, packet_id, dup, .. } = packet {
            found.push((payload, qos, packet_id, dup));
        }
    }
    found
}

fn payloads(got: &[Got]) -> Vec<&str> {
    got.iter().map(|(payload, ..)| payload.as_str()).collect()
}

fn acknowledge(rig: &mut Rig, client: &Client, packet_id: u16) {
    let version = client.version;
    rig.send(client, |out| encode::puback(out, version, packet_id, ReasonCode::Success));
}

/// Takes everything, acknowledging QoS 1.
fn work(rig: &mut Rig, client: &Client) -> Vec<String> {
    let mut done = Vec::new();
    loop {
        let got = got(rig, client);
        if got.is_empty() {
            return done;
        }
        for (payload, qos, packet_id, _) in got {
            done.push(payload);
            if qos == 1 {
                acknowledge(rig, client, packet_id);
            }
        }
        rig.sync();
    }
}

fn worker(rig: &mut Rig, id: &str, qos: Qos) -> Client {
    let client = rig.client(Version::V5, id);
    rig.subscribe(&client, SHARE, qos);
    assert!(matches!(&rig.seen(&client)[..], [Seen::SubAck(codes)] if codes[0].as_u8() == qos as u8));
    client
}

fn kept_worker(rig: &mut Rig, id: &str, qos: Qos) -> Client {
    returning_worker(rig, id, qos).0
}

/// A kept worker with what it was sent at once.
fn returning_worker(rig: &mut Rig, id: &str, qos: Qos) -> (Client, Vec<Got>) {
    let (client, mut seen) = rig.keeper(id);
    rig.subscribe(&client, SHARE, qos);
    seen.extend(rig.seen(&client));
    (client, publishes(seen))
}

fn publish(rig: &mut Rig, publisher: &Client, numbers: std::ops::Range<u16>, qos: Qos) {
    for number in numbers {
        let packet_id = if qos == QOS0 { 0 } else { number + 1 };
        rig.publish(publisher, "job/1", &number.to_string(), qos, packet_id);
    }
    rig.sync();
    rig.seen(publisher);
}

#[test]
fn members_take_turns_and_each_record_goes_to_one() {
    for qos in [QOS0, QOS1] {
        let mut rig = Rig::new();
        let publisher = rig.client(Version::V311, "publisher");
        let workers = ["a", "b", "c"].map(|id| worker(&mut rig, id, QOS1));
        let other = rig.client(Version::V311, "other");
        rig.subscribe(&other, "$share/others/#", QOS1);
        publish(&mut rig, &publisher, 0..6, qos);
        let shares = workers.each_ref().map(|client| work(&mut rig, client));
        assert_eq!(shares, [["0", "3"], ["1", "4"], ["2", "5"]]);
        assert_eq!(work(&mut rig, &other).len(), 6, "another ShareName is another subscription");
    }
}

#[test]
fn a_member_gets_at_most_the_qos_it_was_granted() {
    // [MQTT-4.8.2-3]
    let mut rig = Rig::new();
    let publisher = rig.client(Version::V311, "publisher");
    let (careless, careful) = (worker(&mut rig, "careless", QOS0), worker(&mut rig, "careful", QOS1));
    publish(&mut rig, &publisher, 0..4, QOS1);
    assert_eq!(got(&mut rig, &careless).iter().map(|it| it.1).collect::<Vec<_>>(), [0, 0]);
    assert_eq!(got(&mut rig, &careful).iter().map(|it| it.1).collect::<Vec<_>>(), [1, 1]);
}

#[test]
fn what_a_member_leaves_unacknowledged_goes_to_another_at_qos_1() {
    for kept in [false, true] {
        let mut rig = Rig::new();
        let publisher = rig.client(Version::V311, "publisher");
        let make = if kept { kept_worker } else { worker };
        let (first, second) = (make(&mut rig, "first", QOS1), make(&mut rig, "second", QOS1));
        publish(&mut rig, &publisher, 0..6, QOS1);
        let taken = got(&mut rig, &first);
        assert_eq!(payloads(&taken), ["0", "2", "4"]);
        acknowledge(&mut rig, &first, taken[1].2);
        rig.close(first);
        rig.sync();
        assert_eq!(work(&mut rig, &second), ["1", "3", "5", "0", "4"], "kept: {kept}");
        let (first, _) = rig.keeper("first");
        assert_eq!(work(&mut rig, &first), [""; 0], "nothing twice");
    }
}

#[test]
fn the_only_member_gets_its_own_deliveries_again_and_everything_since() {
    let mut rig = Rig::new();
    let publisher = rig.client(Version::V311, "publisher");
    let only = kept_worker(&mut rig, "only", QOS1);
    publish(&mut rig, &publisher, 0..2, QOS1);
    let taken = got(&mut rig, &only);
    rig.close(only);
    publish(&mut rig, &publisher, 2..4, QOS1);
    publish(&mut rig, &publisher, 9..10, QOS0);
    let (only, seen) = rig.keeper("only");
    // The same Packet Identifiers, marked as sent before [MQTT-4.4.0-1].
    let again = publishes(seen);
    assert_eq!(again[..2], taken.iter().map(|it| (it.0.clone(), 1, it.2, true)).collect::<Vec<_>>());
    assert_eq!(payloads(&again[2..]), ["2", "3"], "and nothing at QoS 0 from the time when nobody was there");
    publish(&mut rig, &publisher, 4..5, QOS0);
    assert_eq!(payloads(&got(&mut rig, &only)), ["4"]);
}

#[test]
fn at_qos_2_a_delivery_stays_with_its_member() {
    let mut rig = Rig::new();
    let publisher = rig.client(Version::V311, "publisher");
    let (first, second) = (kept_worker(&mut rig, "first", QOS2), kept_worker(&mut rig, "second", QOS2));
    publish(&mut rig, &publisher, 0..4, QOS2);
    let (taken, others) = (got(&mut rig, &first), got(&mut rig, &second));
    assert_eq!((payloads(&taken), payloads(&others)), (vec!["0", "2"], vec!["1", "3"]));
    rig.send(&first, |out| encode::pubrec(out, Version::V5, taken[0].2, ReasonCode::Success));
    rig.sync();
    rig.close(first);
    rig.sync();
    assert_eq!(got(&mut rig, &second), []);
    // The client comes back and completes it [MQTT-4.8.2-4].
    let (first, seen) = rig.keeper("first");
    assert!(seen.contains(&Seen::PubRel(taken[0].2)), "{seen:?}");
    assert_eq!(publishes(seen), [("2".to_owned(), 2, taken[1].2, true)]);
    // Its session ends: what it has is not sent to another [MQTT-4.8.2-5].
    rig.close(first);
    rig.pass(2_000);
    rig.sync();
    assert_eq!(got(&mut rig, &second), []);
    publish(&mut rig, &publisher, 4..6, QOS2);
    assert_eq!(payloads(&got(&mut rig, &second)), ["4", "5"], "the group goes on");
}

#[test]
fn members_without_room_are_passed_over_and_nothing_is_lost_when_all_are() {
    let mut rig = Rig::with(Limits { in_flight: 2, ..Limits::default() });
    let publisher = rig.client(Version::V311, "publisher");
    let (idle, busy) = (worker(&mut rig, "idle", QOS1), worker(&mut rig, "busy", QOS1));
    let mut done = Vec::new();
    for round in 0..20_u16 {
        publish(&mut rig, &publisher, round * 5..round * 5 + 5, QOS1);
        done.extend(work(&mut rig, &busy));
    }
    let stuck = got(&mut rig, &idle);
    assert_eq!(stuck.len(), 2, "it acknowledges nothing");
    rig.close(idle);
    rig.sync();
    done.extend(work(&mut rig, &busy));
    let mut numbers: Vec<u16> = done.iter().map(|payload| payload.parse().unwrap()).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (0..100).collect::<Vec<_>>());
}

#[test]
fn what_was_begun_is_completed_after_unsubscribing() {
    let mut rig = Rig::new();
    let publisher = rig.client(Version::V311, "publisher");
    let only = kept_worker(&mut rig, "only", QOS1);
    publish(&mut rig, &publisher, 0..1, QOS1);
    let taken = got(&mut rig, &only);
    rig.send(&only, |out| encode::unsubscribe(out, Version::V5, 3, [SHARE]));
    rig.sync();
    assert_eq!(rig.seen(&only), [Seen::UnsubAck]);
    publish(&mut rig, &publisher, 1..2, QOS1);
    assert_eq!(got(&mut rig, &only), []);
    assert_eq!(rig.broker.stats().subscriptions, 0);
    rig.close(only);
    let (_, seen) = rig.keeper("only");
    assert_eq!(publishes(seen), [("0".to_owned(), 1, taken[0].2, true)]);
}

#[test]
fn retained_records_are_not_sent_for_a_shared_subscription() {
    let mut rig = Rig::new();
    let publisher = rig.client(Version::V311, "publisher");
    rig.publish_with(&publisher, "job/1", "old", QOS1, 1, true, false);
    rig.sync();
    let client = worker(&mut rig, "a", QOS1);
    rig.sync();
    assert_eq!(got(&mut rig, &client), []);
}

#[test]
fn a_group_survives_a_crash_with_its_backlog_and_its_qos_2_deliveries() {
    for checkpoint in [false, true] {
        let mut rig = Rig::new();
        let publisher = rig.client(Version::V311, "publisher");
        let client = kept_worker(&mut rig, "only", QOS2);
        publish(&mut rig, &publisher, 0..3, QOS2);
        publish(&mut rig, &publisher, 3..5, QOS1);
        let taken = got(&mut rig, &client);
        assert_eq!(payloads(&taken), ["0", "1", "2", "3", "4"]);
        acknowledge(&mut rig, &client, taken[3].2);
        rig.send(&client, |out| encode::pubrec(out, Version::V5, taken[0].2, ReasonCode::Success));
        rig.sync();
        rig.send(&client, |out| encode::pubcomp(out, Version::V5, taken[0].2, ReasonCode::Success));
        rig.close(client);
        publish(&mut rig, &publisher, 5..7, QOS2);
        rig.pass(2);
        rig.sync();
        let saved = checkpoint.then(|| rig.broker.checkpoint(rig.log.batches.last().unwrap().end()));
        rig.crash(saved.as_deref());
        let (_, seen) = rig.keeper("only");
        let mut again = publishes(seen);
        let begun: Vec<Got> = again.extract_if(.., |it| it.3).collect();
        assert_eq!(
            begun,
            [("1".to_owned(), 2, taken[1].2, true), ("2".to_owned(), 2, taken[2].2, true)],
            "those of QoS 2 keep their identifiers; the completed one does not come again"
        );
        let mut rest = payloads(&again);
        // At QoS 1 a repetition after a crash is allowed, a loss is not.
        rest.retain(|payload| *payload != "3");
        assert_eq!(rest, ["4", "5", "6"], "checkpoint: {checkpoint}");
    }
}

/// Workers that come, go, crash, acknowledge late or in another order, on a broker that crashes: every job is done.
#[test]
fn every_record_is_acknowledged_by_somebody_whatever_members_do() {
    for seed in 1..=300_u64 {
        let mut state = seed;
        let mut random = move |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % below
        };
        let limits = Limits { in_flight: 1 + random(5) as u16, ..Limits::default() };
        let mut rig = Rig::with(limits);
        let mut publisher = rig.client(Version::V311, "publisher");
        let mut members: [Option<Client>; 3] = [None, None, None];
        let mut held: [Vec<Got>; 3] = Default::default();
        let (mut next, mut done) = (0_u16, BTreeSet::new());
        for step in 0..120 {
            let at = random(3) as usize;
            let id = ["a", "b", "c"][at];
            match (random(10), &members[at]) {
                (0..=3, _) => {
                    publish(&mut rig, &publisher, next..next + 3, QOS1);
                    next += 3;
                }
                (4 | 5, None) => {
                    let (client, got) = returning_worker(&mut rig, id, QOS1);
                    held[at] = got;
                    members[at] = Some(client);
                }
                (4, Some(_)) => {
                    held[at].clear();
                    let client = members[at].take().unwrap();
                    rig.close(client);
                    rig.sync();
                }
                (9, _) if step > 10 && random(4) == 0 => {
                    rig.sync();
                    rig.crash(None);
                    members = [None, None, None];
                    held = Default::default();
                    publisher = rig.client(Version::V311, "publisher");
                }
                (_, Some(client)) => {
                    held[at].extend(got(&mut rig, client));
                    let count = random(1 + held[at].len() as u64) as usize;
                    for _ in 0..count {
                        let chosen = random(held[at].len() as u64) as usize;
                        let (payload, _, packet_id, _) = held[at].swap_remove(chosen);
                        acknowledge(&mut rig, client, packet_id);
                        done.insert(payload.parse::<u16>().unwrap());
                    }
                    rig.sync();
                }
                (_, None) => {}
            }
            if random(7) == 0 {
                rig.pass(1);
                rig.sync();
            }
        }
        members.iter_mut().for_each(|member| _ = member.take().map(|client| rig.close(client)));
        // The group is formed by whoever subscribed first; a job published before that is nobody's.
        let (last, got) = returning_worker(&mut rig, "a", QOS1);
        for (payload, _, packet_id, _) in got {
            acknowledge(&mut rig, &last, packet_id);
            done.insert(payload.parse::<u16>().unwrap());
        }
        rig.sync();
        done.extend(work(&mut rig, &last).iter().map(|payload| payload.parse::<u16>().unwrap()));
        let missing: Vec<u16> = (0..next).filter(|number| !done.contains(number)).collect();
        let first_done = done.first().copied().unwrap_or(next);
        assert!(missing.iter().all(|number| *number < first_done), "seed {seed}: {missing:?} are lost");
    }
}

/// The client's side of QoS 2: it takes a publish once, however often it is sent.
#[derive(Default)]
struct Receiver {
    /// Sent PUBREC for them, and awaits PUBREL.
    unreleased: BTreeSet<u16>,
    taken: Vec<u16>,
}

impl Receiver {
    /// Answers everything a client was sent, or with `hold` takes it without an answer, as if the network failed.
    fn answer(&mut self, rig: &mut Rig, client: &Client, seen: Vec<Seen>, hold: bool) {
        for packet in seen {
            if let Seen::Publish { payload, qos: 2, packet_id, .. } = packet {
                if self.unreleased.insert(packet_id) {
                    self.taken.push(payload.parse().unwrap());
                }
                if !hold {
                    let success = ReasonCode::Success;
                    rig.send(client, |out| encode::pubrec(out, Version::V5, packet_id, success));
                }
            } else if let Seen::PubRel(packet_id) = packet {
                self.unreleased.remove(&packet_id);
                if !hold {
                    let success = ReasonCode::Success;
                    rig.send(client, |out| encode::pubcomp(out, Version::V5, packet_id, success));
                }
            }
        }
    }
}

/// Members lose connections and answers, the broker loses what is not durable: at QoS 2 each record is taken once.
#[test]
fn at_qos_2_every_record_is_taken_exactly_once_across_crashes() {
    for seed in 1..=300_u64 {
        let mut state = seed;
        let mut random = move |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % below
        };
        let mut rig = Rig::with(Limits { in_flight: 1 + random(4) as u16, ..Limits::default() });
        let mut members: [(Option<Client>, Receiver); 2] = Default::default();
        for (at, id) in ["a", "b"].into_iter().enumerate() {
            members[at].0 = Some(kept_worker(&mut rig, id, QOS2));
        }
        let mut publisher = rig.client(Version::V311, "publisher");
        let mut next = 0;
        for _ in 0..150 {
            let at = random(2) as usize;
            let id = ["a", "b"][at];
            match random(10) {
                0..=1 => {
                    publish(&mut rig, &publisher, next..next + 3, QOS1);
                    publish(&mut rig, &publisher, next + 3..next + 5, QOS2);
                    next += 5;
                }
                2 => {
                    if let Some(client) = members[at].0.take() {
                        rig.close(client);
                    }
                }
                3 => {
                    rig.crash(None);
                    members.iter_mut().for_each(|(client, _)| *client = None);
                    publisher = rig.client(Version::V311, "publisher");
                }
                4 => rig.pass(1),
                5 => rig.sync(),
                _ => {
                    let (client, receiver) = &mut members[at];
                    let seen = match client {
                        Some(client) => rig.seen(client),
                        None => {
                            let (returned, seen) = rig.keeper(id);
                            *client = Some(returned);
                            seen
                        }
                    };
                    let client = client.as_ref().expect("it was there or has come");
                    receiver.answer(&mut rig, client, seen, random(5) == 0);
                }
            }
        }
        rig.crash(None);
        let [(_, mut a), (_, mut b)] = members;
        for (id, receiver) in [("a", &mut a), ("b", &mut b)] {
            let (client, mut seen) = rig.keeper(id);
            while !seen.is_empty() {
                for packet in &seen {
                    if let Seen::Publish { qos: 1, packet_id, .. } = packet {
                        acknowledge(&mut rig, &client, *packet_id);
                    }
                }
                receiver.answer(&mut rig, &client, seen, false);
                rig.sync();
                seen = rig.seen(&client);
            }
        }
        let mut taken: Vec<u16> = a.taken.into_iter().chain(b.taken).collect();
        taken.sort_unstable();
        let once: Vec<u16> = (0..next).filter(|number| number % 5 >= 3).collect();
        assert_eq!(taken, once, "seed {seed}");
    }
}
