//! What the simulation of the whole system has found, each in the smallest form.

use std::time::Duration;

use super::rig::{Rig, Seen, delivery};
use crate::mqtt::{Connect, Disconnect, ReasonCode, Version, Will, WireProperties, encode};
use crate::record::{Qos, Refused};
use crate::topic::TopicName;

const QOS1: Qos = Qos::AtLeastOnce;

fn with_will<'a>(id: &'a str, delay_s: u32, expiry_s: u32) -> Connect<'a> {
    let will = Will {
        topic: TopicName::new("will").unwrap(),
        payload: id.as_bytes(),
        qos: QOS1,
        retain: false,
        delay_s,
        properties: WireProperties::NONE,
    };
    Connect {
        clean_start: false,
        session_expiry_s: expiry_s,
        will: Some(will),
        ..Connect::new(Version::V5, id)
    }
}

/// The machine slept: time has passed, and the client comes before anybody looked at the timers.
fn sleep(rig: &mut Rig, seconds: u64) {
    rig.now.monotonic += Duration::from_secs(seconds);
    rig.now.wall.0 += seconds * 1_000;
}

#[test]
fn a_session_has_expired_although_nobody_has_looked_at_the_timers() {
    let mut rig = Rig::new();
    let (client, _) = rig.keeper("late");
    rig.close(client);
    sleep(&mut rig, 1_001);
    let (_, seen) = rig.keeper("late");
    assert_eq!(seen, [Seen::ConnAck { present: false, reason: ReasonCode::Success }]);
}

#[test]
fn a_will_was_due_before_its_client_came_back() {
    let mut rig = Rig::new();
    let watcher = rig.client(Version::V5, "watcher");
    rig.subscribe(&watcher, "will", QOS1);
    rig.seen(&watcher);
    let connect = with_will("late", 10, 100);
    let client = rig.connect(&connect);
    rig.close(client);
    sleep(&mut rig, 11);
    rig.connect(&connect);
    assert_eq!(rig.seen(&watcher), [delivery("will", "late", 1, 1)]);
}

#[test]
fn a_will_waits_while_the_journal_is_full() {
    for expiry_s in [0, 5] {
        let mut rig = Rig::new();
        let watcher = rig.client(Version::V5, "watcher");
        rig.subscribe(&watcher, "will", QOS1);
        rig.seen(&watcher);
        let connect = with_will("lost", 0, expiry_s);
        let client = rig.connect(&connect);
        rig.log.refuse = Some(Refused::Full);
        rig.close(client);
        rig.pass(20);
        assert_eq!(rig.seen(&watcher), []);
        let back = rig.open(Version::V5);
        rig.send(&back, |out| encode::connect(out, &connect));
        let refused = Seen::ConnAck { present: false, reason: ReasonCode::QuotaExceeded };
        assert_eq!(rig.seen(&back), [refused]);
        rig.log.refuse = None;
        rig.pass(2);
        rig.sync();
        assert_eq!(rig.seen(&watcher), [delivery("will", "lost", 1, 1)]);
        rig.pass(20);
        assert_eq!(rig.broker.stats().sessions, 1, "it has ended now");
    }
}

#[test]
fn a_will_that_was_taken_back_while_the_journal_was_full_stays_void_after_a_crash() {
    let mut rig = Rig::new();
    let client = rig.connect(&with_will("polite", 0, 100));
    rig.log.refuse = Some(Refused::Full);
    rig.log.refuse_control = true;
    rig.send(&client, |out| encode::disconnect(out, Version::V5, &Disconnect::new(ReasonCode::Success)));
    rig.log.refuse = None;
    rig.pass(2);
    rig.sync();
    rig.crash(None);
    let watcher = rig.client(Version::V5, "watcher");
    rig.subscribe(&watcher, "will", QOS1);
    rig.seen(&watcher);
    rig.pass(60);
    rig.sync();
    assert_eq!(rig.seen(&watcher), []);
}

/// What holds the journal back is what somebody still has to read, not that somebody may come back.
#[test]
fn a_session_for_which_nothing_came_holds_nothing_back() {
    let mut rig = Rig::new();
    let (device, _) = rig.keeper("device");
    let (listener, _) = rig.keeper("listener");
    rig.subscribe(&listener, "mine/#", QOS1);
    rig.close(device);
    rig.close(listener);
    let publisher = rig.client(Version::V5, "publisher");
    for packet_id in 1..50 {
        rig.publish(&publisher, "others", "x", QOS1, packet_id);
    }
    rig.sync();
    assert_eq!(rig.broker.lowest_position(), Some(rig.log_end()));
    let mine = rig.log_end();
    rig.publish(&publisher, "mine/1", "x", QOS1, 50);
    rig.publish(&publisher, "others", "x", QOS1, 51);
    rig.sync();
    assert_eq!(rig.broker.lowest_position(), Some(mine));
    rig.crash(None);
    assert!(rig.broker.lowest_position() <= Some(mine));
    let (listener, seen) = rig.keeper("listener");
    assert!(matches!(seen[0], Seen::ConnAck { present: true, .. }));
    rig.sync();
    let mut seen = seen;
    seen.extend(rig.seen(&listener));
    assert!(seen.contains(&delivery("mine/1", "x", 1, 1)), "{seen:?}");
}

/// Else nothing could ever be trimmed again, and the journal would stay full.
#[test]
fn a_full_journal_lets_those_come_back_and_read_for_whom_it_is_full() {
    let mut rig = Rig::new();
    let connect = |id| Connect { will: None, ..with_will(id, 0, 100) };
    let reader = rig.connect(&connect("reader"));
    rig.subscribe(&reader, "a", Qos::ExactlyOnce);
    rig.close(reader);
    let publisher = rig.client(Version::V5, "publisher");
    rig.publish(&publisher, "a", "unread", Qos::ExactlyOnce, 1);
    rig.sync();
    let unread = rig.broker.lowest_position();
    rig.log.refuse = Some(Refused::Full);
    rig.log.refuse_control = true;
    let reader = rig.open(Version::V5);
    rig.send(&reader, |out| encode::connect(out, &connect("reader")));
    rig.sync();
    let seen = rig.seen(&reader);
    assert_eq!(seen[0], Seen::ConnAck { present: true, reason: ReasonCode::Success });
    assert!(seen.contains(&delivery("a", "unread", 2, 1)), "{seen:?}");
    rig.send(&reader, |out| encode::pubrec(out, Version::V5, 1, ReasonCode::Success));
    rig.sync();
    rig.send(&reader, |out| encode::pubcomp(out, Version::V5, 1, ReasonCode::Success));
    assert_eq!(rig.seen(&reader), [Seen::PubRel(1)]);
    assert!(rig.broker.lowest_position() > unread);
    let stranger = rig.open(Version::V5);
    rig.send(&stranger, |out| encode::connect(out, &connect("stranger")));
    assert_eq!(rig.seen(&stranger), [Seen::ConnAck { present: false, reason: ReasonCode::QuotaExceeded }]);
}

#[test]
fn an_unsubscription_that_a_restart_would_undo_is_not_confirmed() {
    let mut rig = Rig::new();
    let (client, _) = rig.keeper("keeper");
    rig.subscribe(&client, "a", QOS1);
    rig.seen(&client);
    rig.log.refuse = Some(Refused::Full);
    rig.log.refuse_control = true;
    rig.send(&client, |out| encode::unsubscribe(out, Version::V5, 7, ["a"]));
    assert_eq!(rig.seen(&client), [Seen::UnsubAck]);
    rig.log.refuse = None;
    rig.publish(&client, "a", "still", QOS1, 1);
    rig.sync();
    let seen = rig.seen(&client);
    assert!(seen.contains(&delivery("a", "still", 1, 1)), "{seen:?}");
}
