//! What must be true, of every delivery when it comes and of everything at the end.

use std::collections::{BTreeMap, BTreeSet};

use tidegate_broker::mqtt::Version;
use tidegate_broker::record::{Offset, Qos};

use super::client::{Client, Filter, Kind};
use super::ledger::{Id, Ledger, Seen};
use super::world::{LEAVER, MEMBERS, World};

/// What was just delivered, from `before` on: it is durable, and was asked for.
pub(super) fn deliveries(client: &mut Client, before: usize, ledger: &Ledger) {
    let name = client.kind.name;
    // What another member of a group leaves behind comes late.
    let is_ordered = client.kind.filter.is_some_and(|(filter, _)| filter != Filter::Jobs);
    for delivery in &client.deliveries[before..] {
        let offsets = ledger.offsets(delivery.id);
        assert!(
            delivery.qos == Qos::AtMostOnce || !offsets.is_empty(),
            "{name} got {delivery:?}, which is not durable"
        );
        if let (Some(until), Some(offset), false) =
            (client.unsubscribed_from, offsets.first(), delivery.retain)
        {
            assert!(*offset < until, "{name} got {delivery:?} after it had unsubscribed at {until}");
        }
        // One that the device has sent twice may have come the second time only.
        if let Some(offset) = offsets.last().filter(|_| is_ordered && delivery.is_first) {
            let last = client.last.entry((delivery.id.client, delivery.qos)).or_default();
            assert!(*last <= *offset, "{name} got {delivery:?}, at {offset}, after what is at {last}");
            *last = offsets[0].max(*last);
        }
    }
}

pub(super) fn everything(world: &mut World) {
    journal(world);
    acknowledged(world);
    destinations(world);
    subscribers(world);
    group(world);
    published(world);
    wills(world);
    counters(world);
    retained(world);
}

/// What was ever seen is still there, except what was trimmed.
fn journal(world: &mut World) {
    let mut reader = world.machine.journal.reader(Offset(0));
    while let Some(batch) = reader.next().expect("the journal can be read") {
        world.ledger.see(&batch, "the end");
    }
    assert_eq!(world.ledger.end(), world.machine.journal.durable_end());
}

fn acknowledged(world: &World) {
    for (index, client) in world.clients.iter().enumerate() {
        for &number in &client.acknowledged {
            let id = Id { client: index as u8, will: false, number };
            assert!(
                !world.ledger.offsets(id).is_empty(),
                "{id:?} was acknowledged and is not in the journal"
            );
        }
    }
    device_order(world);
    for (id, offsets) in world.ledger.ids().filter(|(id, _)| !id.will) {
        let qos = world.ledger.record(offsets[0]).expect("ids name records").qos;
        let client = &world.clients[usize::from(id.client)];
        let once = qos != Qos::AtLeastOnce && !client.may_repeat.contains(&id.number);
        assert!(!once || offsets.len() == 1, "{id:?} was published once at {qos:?} and is at {offsets:?}");
    }
}

/// The order in which devices published, unless one was told that the journal takes no more, and went on.
fn device_order(world: &World) {
    if world.refused() > 0 {
        return;
    }
    let mut last: BTreeMap<u8, (u32, Offset)> = BTreeMap::new();
    for (offset, seen) in world.ledger.records(Offset(0)).filter(|(_, seen)| !seen.id.will) {
        if world.ledger.offsets(seen.id)[0] == offset {
            let (number, at) = last.insert(seen.id.client, (seen.id.number, offset)).unwrap_or_default();
            assert!(number <= seen.id.number, "{:?} is at {offset}, behind number {number} at {at}", seen.id);
        }
    }
}

fn destinations(world: &World) {
    let start = world.machine.journal.start();
    for (destination, carrier) in world.destinations.iter().zip(&world.machine.carriers) {
        let (name, skipped) = (destination.name, carrier.skipped());
        carrier.check_conservation(&world.ledger, name);
        let mut missing = 0;
        for (offset, seen) in world.ledger.records(Offset(0)) {
            if !destination.has(offset) {
                missing += 1;
                assert!(world.plan.drops() && offset < start, "{name} misses {seen:?} at offset {offset}");
            }
        }
        assert!(missing <= skipped, "{name} misses {missing} records and counts {skipped} as skipped");
    }
}

fn subscribers(world: &World) {
    let everything = |client: &&Client| {
        client.kind.filter.is_some_and(|(filter, _)| filter == Filter::All) && !client.kind.toggles
    };
    for client in world.clients.iter().filter(everything) {
        let name = client.kind.name;
        let got: BTreeSet<Id> = client.deliveries.iter().map(|delivery| delivery.id).collect();
        let Some(since) = client.subscribed_from else {
            continue;
        };
        let known = |seen: &Seen| !seen.is_empty || client.kind.version.is_v5();
        let due = world.ledger.records(since);
        let due = due.filter(|(_, seen)| seen.qos > Qos::AtMostOnce && known(seen));
        let missing: Vec<_> = due.filter(|(_, seen)| !got.contains(&seen.id)).collect();
        may_miss(world, name, &missing);
    }
}

/// Only what the retention policy trimmed may be missing, and no more than was counted.
fn may_miss(world: &World, name: &str, missing: &[(Offset, &Seen)]) {
    let start = world.machine.journal.start();
    let rightly = |(offset, _): &(Offset, _)| world.plan.drops() && *offset < start;
    if let Some((offset, seen)) = missing.iter().find(|missing| !rightly(missing)) {
        panic!("{name} misses {seen:?} at offset {offset}");
    }
    let (count, trimmed) = (missing.len() as u64, world.trimmed());
    assert!(count <= trimmed, "{name} misses {count} publishes, {trimmed} are counted as trimmed");
}

fn group(world: &World) {
    let members = &world.clients[MEMBERS];
    let Some(since) = members[0].subscribed_from else {
        return;
    };
    let mut got: BTreeMap<Id, u64> = BTreeMap::new();
    for delivery in members.iter().flat_map(|member| &member.deliveries) {
        *got.entry(delivery.id).or_default() += 1;
    }
    let due = |(_, seen): &(Offset, &Seen)| {
        seen.qos > Qos::AtMostOnce && world.ledger.topic(seen).starts_with("jobs/")
    };
    let due: Vec<_> = world.ledger.records(since).filter(due).collect();
    for (_, seen) in due.iter().filter(|(_, seen)| seen.qos.min(world.plan.group_qos) == Qos::ExactlyOnce) {
        let count = got.get(&seen.id).copied().unwrap_or_default();
        assert!(count <= 1, "{seen:?} reached {count} members of a group at QoS 2");
    }
    let missing: Vec<_> = due.into_iter().filter(|(_, seen)| !got.contains_key(&seen.id)).collect();
    may_miss(world, "the group", &missing);
}

/// Nothing is delivered that was never published, and everything with its own topic.
fn published(world: &World) {
    for client in &world.clients {
        for delivery in client.deliveries.iter().filter(|delivery| !delivery.id.will) {
            let publisher = &world.clients[usize::from(delivery.id.client)];
            assert!(delivery.id.number < publisher.next_number, "{delivery:?} was never published");
        }
    }
    for (id, offsets) in world.ledger.ids().filter(|(id, _)| !id.will) {
        let topic = world.clients[usize::from(id.client)].topic(id.number);
        let seen = world.ledger.record(offsets[0]).expect("ids name records");
        assert_eq!(world.ledger.topic(seen), topic, "{id:?} has another topic");
    }
}

fn wills(world: &World) {
    for (index, client) in world.clients.iter().enumerate() {
        let name = client.kind.name;
        for (number, fate) in client.wills.iter().enumerate() {
            let id = Id { client: index as u8, will: true, number: number as u32 };
            let published = world.ledger.offsets(id).len();
            let is_last = number + 1 == client.wills.len();
            let is_away = world.plan.ends_away && index == LEAVER && is_last && fate.armed && !fate.orderly;
            // A crash between the record and the entry that says so repeats it, as QoS 1 may.
            assert!(published <= 2, "{name}: its Will {number} was published {published} times");
            assert!(!fate.must_not || published == 0, "{name}: its Will {number} is void and was published");
            assert!(
                !(fate.must || is_away) || published >= 1,
                "{name}: its Will {number} was not published: {fate:?}"
            );
        }
    }
}

/// In the last life no connection was lost: what the broker says it has sent is what came.
fn counters(world: &World) {
    let stats = world.machine.stats();
    let came: u64 = world.clients.iter().map(|client| client.publishes_in).sum();
    assert_eq!(stats.publishes_out_total, came, "what the broker has sent, and what came");
}

/// A client that subscribes now gets the last retained record of each topic.
fn retained(world: &mut World) {
    let mut last: BTreeMap<&str, Option<Id>> = BTreeMap::new();
    for (_, seen) in world.ledger.records(Offset(0)).filter(|(_, seen)| seen.retain) {
        last.insert(world.ledger.topic(seen), (!seen.is_empty).then_some(seen.id));
    }
    let expected: BTreeSet<Id> = last.into_values().flatten().collect();
    let filter = Some((Filter::All, Qos::AtLeastOnce));
    let late = world.clients.len();
    world.clients.push(Client::new(late, Kind { filter, ..Kind::new("late", Version::V5) }));
    for _ in 0..40 {
        world.pass_time(100);
        world.exchange(late, true);
        world.machine.writer.step();
        world.round();
    }
    let got = world.clients[late].deliveries.iter().filter(|delivery| delivery.retain);
    let got: BTreeSet<Id> = got.map(|delivery| delivery.id).collect();
    assert_eq!(got, expected, "retained records");
}
