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
