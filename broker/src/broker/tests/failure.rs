//! When the journal fails: whoever waits for it is told, in the order the protocol asks for.

use super::rig::*;
use crate::mqtt::{Connect, ReasonCode, Version, encode};
use crate::record::{Qos, Refused};

fn fail(rig: &mut Rig) {
    rig.log.refuse = Some(Refused::Failed);
    rig.broker.journal_failed(rig.now, &mut rig.log);
}

#[test]
fn a_client_whose_connack_waits_is_refused() {
    for version in [Version::V311, Version::V5] {
        let mut rig = Rig::new();
        let client = rig.open(version);
        let kept = Connect { clean_start: false, session_expiry_s: 60, ..Connect::new(version, "kept") };
        rig.send(&client, |out| encode::connect(out, &kept));
        assert_eq!(rig.seen(&client), [], "its session is not durable");
        fail(&mut rig);
        // Sent before it could know: its answer must not be the first packet of the connection.
        rig.publish(&client, "a", "1", Qos::AtLeastOnce, 1);
        let refused = Seen::ConnAck { present: false, reason: ReasonCode::ServerUnavailable };
        assert_eq!(rig.seen(&client), [refused], "{version:?}");
        assert!(rig.broker.output(client.key).is_some_and(|(_, closing)| closing));
    }
}

#[test]
fn a_client_whose_suback_waits_is_disconnected() {
    let mut rig = Rig::new();
    let (keeper, _) = rig.keeper("keeper");
    rig.send(&keeper, |out| {
        encode::subscribe(out, Version::V5, 9, None, [crate::mqtt::Subscription::new("a", Qos::AtLeastOnce)]);
    });
    fail(&mut rig);
    assert_eq!(rig.seen(&keeper), [Seen::Disconnect(ReasonCode::ImplementationSpecificError)]);
}

#[test]
fn a_client_that_waits_for_nothing_stays() {
    let mut rig = Rig::new();
    let client = rig.client(Version::V5, "calm");
    fail(&mut rig);
    rig.send(&client, encode::pingreq);
    assert_eq!(rig.seen(&client), [Seen::PingResp]);
}

/// A delivery at QoS 2 to a kept session has to be told to the journal first.
#[test]
fn a_delivery_that_the_journal_refuses_is_not_tried_again_for_ever_but_later() {
    let mut rig = Rig::new();
    let (keeper, _) = rig.keeper("keeper");
    rig.subscribe(&keeper, "a", Qos::ExactlyOnce);
    let (member, _) = rig.keeper("member");
    rig.subscribe(&member, "$share/group/a", Qos::ExactlyOnce);
    rig.sync();
    rig.seen(&keeper);
    rig.seen(&member);
    let publisher = rig.client(Version::V5, "publisher");
    rig.publish(&publisher, "a", "1", Qos::AtLeastOnce, 1);
    rig.publish(&publisher, "a", "2", Qos::ExactlyOnce, 2);
    rig.log.refuse = Some(Refused::Failed);
    rig.sync();
    let sent = |seen: Vec<Seen>| seen.iter().filter(|seen| matches!(seen, Seen::Publish { .. })).count();
    for client in [&keeper, &member] {
        assert_eq!(sent(rig.seen(client)), 1, "QoS 1 needs no entry");
    }
    // As if there were room again.
    rig.log.refuse = None;
    rig.pass(1);
    rig.sync();
    for client in [&keeper, &member] {
        assert_eq!(sent(rig.seen(client)), 1);
    }
}

#[test]
fn nothing_comes_before_connack() {
    let mut rig = Rig::new();
    let client = rig.open(Version::V5);
    let kept = Connect { clean_start: false, session_expiry_s: 60, ..Connect::new(Version::V5, "kept") };
    rig.send(&client, |out| {
        encode::connect(out, &kept);
        encode::pubrec(out, Version::V5, 7, ReasonCode::Success);
        encode::pingreq(out);
    });
    assert_eq!(rig.seen(&client), []);
    rig.sync();
    let seen = rig.seen(&client);
    assert!(matches!(seen[..], [Seen::ConnAck { .. }, Seen::PubRel(7), Seen::PingResp]), "{seen:?}");
}
