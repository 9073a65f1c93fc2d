//! Who may publish and receive what.

#![allow(clippy::wildcard_enum_match_arm, reason = "a test names what it expects")]

use std::sync::Arc;

use super::rig::{Client, Rig, Seen, delivery};
use crate::auth::{Access, AclFile, Anonymous, PasswordFile, Rules};
use crate::broker::Limits;
use crate::mqtt::{Connect, ReasonCode, Subscription, Version, Will, WireProperties, encode};
use crate::record::Qos;
use crate::topic::TopicName;

const ALL_VERSIONS: [Version; 3] = [Version::V31, Version::V311, Version::V5];
const ALL_QOS: [Qos; 3] = [Qos::AtMostOnce, Qos::AtLeastOnce, Qos::ExactlyOnce];

fn acl(content: &str) -> Rules {
    Rules::Acl(AclFile::parse("acl".as_ref(), content).unwrap_or_else(|error| panic!("{error}")))
}

/// With the users ada and bob, whose passwords are their names.
fn guarded(rules: &str) -> (Rig, Arc<Access>) {
    let mut passwords = PasswordFile::default();
    for name in ["ada", "bob"] {
        passwords.set(name, name.as_bytes()).unwrap();
    }
    let access = Arc::new(Access::new(Anonymous::Always, Some(passwords)));
    access.replace_rules(acl(rules));
    (Rig::guarded(Limits::default(), Arc::clone(&access)), access)
}

fn user<'a>(version: Version, name: &'a str, client: &'a str) -> Connect<'a> {
    Connect { username: Some(name), password: Some(name.as_bytes()), ..Connect::new(version, client) }
}

fn keeper<'a>(name: &'a str, client: &'a str) -> Connect<'a> {
    Connect { clean_start: false, session_expiry_s: 1_000, ..user(Version::V5, name, client) }
}

/// Connects; returns what comes at once.
fn returning(rig: &mut Rig, connect: &Connect<'_>) -> (Client, Vec<Seen>) {
    let client = rig.open(connect.version);
    rig.send(&client, |out| encode::connect(out, connect));
    rig.sync();
    let seen = rig.seen(&client);
    (client, seen)
}

fn subscribe(rig: &mut Rig, client: &Client, filters: &[&str]) -> Vec<ReasonCode> {
    let (version, all) = (client.version, filters.iter());
    rig.send(client, |out| {
        encode::subscribe(
            out,
            version,
            3,
            None,
            all.map(|filter| Subscription::new(filter, Qos::ExactlyOnce)),
        )
    });
    rig.sync();
    match &rig.seen(client)[..] {
        [Seen::SubAck(codes), ..] => codes.clone(),
        other => panic!("{other:?}"),
    }
}

fn topics(seen: &[Seen]) -> Vec<&str> {
    let publishes = seen.iter().map(|seen| match seen {
        Seen::Publish { topic, .. } => topic.as_str(),
        _ => "",
    });
    publishes.filter(|topic| !topic.is_empty()).collect()
}

#[test]
fn a_denied_publish_reaches_nobody_and_is_answered_as_the_version_can() {
    for version in ALL_VERSIONS {
        let (mut rig, _) = guarded("topic read #\nuser ada\ntopic write own/#\n");
        let watcher = rig.client(Version::V5, "watcher");
        subscribe(&mut rig, &watcher, &["#"]);
        let ada = rig.connect(&user(version, "ada", "a"));
        let refusal = if version.is_v5() { ReasonCode::NotAuthorized } else { ReasonCode::Success };
        for qos in ALL_QOS {
            for topic in ["other", "owner", "$SYS/x", "$share/g/own/x"] {
                let end = rig.log_end();
                rig.publish(&ada, topic, "no", qos, 7);
                assert_eq!(rig.log_end(), end, "nothing is stored");
                rig.sync();
                let expected = match qos {
                    Qos::AtMostOnce => vec![],
                    Qos::AtLeastOnce => vec![Seen::PubAck(7, refusal)],
                    Qos::ExactlyOnce => vec![Seen::PubRec(7, refusal)],
                };
                assert_eq!(rig.seen(&ada), expected, "{version:?} {qos:?} {topic}");
                if qos == Qos::ExactlyOnce && !version.is_v5() {
                    rig.send(&ada, |out| encode::pubrel(out, version, 7, ReasonCode::Success));
                    rig.sync();
                    assert!(matches!(rig.seen(&ada)[..], [Seen::PubComp(7, _)]));
                }
            }
            rig.publish(&ada, "own/x", "yes", qos, 8);
            rig.sync();
            assert_eq!(topics(&rig.seen(&watcher)), ["own/x"], "{version:?} {qos:?}");
            rig.seen(&ada);
        }
        assert_eq!(rig.broker.stats().publishes_denied_total, 12);
    }
}

#[test]
fn denied_publishes_do_not_use_up_the_receive_maximum() {
    let limits = Limits { receive_maximum: 2, ..Limits::default() };
    let access = Access::new(Anonymous::Always, None);
    access.replace_rules(acl("topic write own\n"));
    let mut rig = Rig::guarded(limits, Arc::new(access));
    let client = rig.client(Version::V5, "c");
    for packet_id in 1..=10 {
        for qos in [Qos::AtLeastOnce, Qos::ExactlyOnce] {
            rig.publish(&client, "other", "no", qos, packet_id);
            rig.sync();
        }
    }
    let seen = rig.seen(&client);
    assert!(!seen.iter().any(|seen| matches!(seen, Seen::Disconnect(_))), "{seen:?}");
}

#[test]
fn what_a_session_may_not_receive_is_left_out() {
    for qos in ALL_QOS {
        let (mut rig, _) =
            guarded("topic write #\nuser ada\ntopic read a/#\ntopic deny a/no\nuser bob\ntopic #\n");
        let (ada, bob) =
            (rig.connect(&user(Version::V5, "ada", "a")), rig.connect(&user(Version::V5, "bob", "b")));
        assert_eq!(subscribe(&mut rig, &ada, &["#"]), [ReasonCode::GrantedQos2]);
        assert_eq!(subscribe(&mut rig, &bob, &["#"]), [ReasonCode::GrantedQos2]);
        let publisher = rig.client(Version::V5, "p");
        for round in [0, 10] {
            for (packet_id, topic) in [(1, "a/no"), (2, "a/yes"), (3, "b")] {
                rig.publish(&publisher, topic, "x", qos, round + packet_id);
            }
            rig.sync();
        }
        assert_eq!(topics(&rig.seen(&ada)), ["a/yes"; 2], "{qos:?}");
        assert_eq!(topics(&rig.seen(&bob)), ["a/no", "a/yes", "b", "a/no", "a/yes", "b"], "{qos:?}");
    }
}

#[test]
fn a_subscription_of_which_nothing_can_be_read_is_refused() {
    for version in ALL_VERSIONS {
        let (mut rig, _) = guarded("user ada\ntopic read a/#\ntopic write b\n");
        let ada = rig.connect(&user(version, "ada", "a"));
        let refused = if version.is_v5() { ReasonCode::NotAuthorized } else { ReasonCode::UnspecifiedError };
        let codes = subscribe(&mut rig, &ada, &["b", "a/x", "c/#", "#"]);
        assert_eq!(codes, [refused, ReasonCode::GrantedQos2, refused, ReasonCode::GrantedQos2]);
        assert_eq!(rig.broker.stats().subscriptions, 2);
        assert_eq!(rig.broker.stats().subscriptions_denied_total, 2);
    }
}

#[test]
fn retained_records_and_the_backlog_obey_the_rules() {
    let (mut rig, _) = guarded("topic write #\nuser ada\ntopic read a/#\nuser bob\ntopic read b/#\n");
    let publisher = rig.client(Version::V5, "p");
    for (packet_id, topic) in [(1, "a/x"), (2, "b/x")] {
        rig.publish_with(&publisher, topic, "kept", Qos::AtLeastOnce, packet_id, true, false);
    }
    rig.sync();
    let ada = rig.connect(&keeper("ada", "c"));
    rig.send(&ada, |out| {
        encode::subscribe(out, Version::V5, 3, None, [Subscription::new("#", Qos::AtLeastOnce)]);
    });
    rig.sync();
    assert_eq!(topics(&rig.seen(&ada)), ["a/x"]);
    rig.close(ada);
    for (packet_id, topic) in [(3, "a/y"), (4, "b/y"), (5, "a/z")] {
        rig.publish(&publisher, topic, "later", Qos::AtLeastOnce, packet_id);
        rig.sync();
    }
    // The same session, another user: neither its backlog nor what was begun for the first goes to the second.
    let (_, seen) = returning(&mut rig, &keeper("bob", "c"));
    assert_eq!(topics(&seen), ["b/y"]);
}

#[test]
fn the_backlog_obeys_the_rules_after_a_restart_too() {
    let (mut rig, _) = guarded("topic write #\nuser ada\ntopic read a/#\n");
    let ada = rig.connect(&keeper("ada", "c"));
    subscribe(&mut rig, &ada, &["#"]);
    rig.close(ada);
    rig.sync();
    rig.crash(None);
    let publisher = rig.client(Version::V5, "p");
    for (packet_id, topic) in [(3, "b/y"), (4, "a/y")] {
        rig.publish(&publisher, topic, "x", Qos::AtLeastOnce, packet_id);
    }
    rig.sync();
    let (ada, seen) = returning(&mut rig, &keeper("ada", "c"));
    assert_eq!(topics(&seen), ["a/y"]);
    // Now live, with what was remembered while it was away.
    rig.publish(&publisher, "b/y", "x", Qos::AtLeastOnce, 5);
    rig.sync();
    assert_eq!(topics(&rig.seen(&ada)), [""; 0]);
}

#[test]
fn changed_rules_hold_at_once_for_who_is_connected() {
    let (mut rig, access) = guarded("topic #\n");
    let (publisher, reader) = (rig.client(Version::V5, "p"), rig.client(Version::V5, "r"));
    subscribe(&mut rig, &reader, &["#"]);
    let round = |rig: &mut Rig| {
        for topic in ["a", "b"] {
            rig.publish(&publisher, topic, "x", Qos::AtMostOnce, 0);
        }
        rig.sync();
        topics(&rig.seen(&reader)).join(" ")
    };
    assert_eq!(round(&mut rig), "a b");
    access.replace_rules(acl("topic write #\ntopic read b\n"));
    assert_eq!(round(&mut rig), "b");
    access.replace_rules(acl("topic read #\ntopic write a\n"));
    assert_eq!(round(&mut rig), "a");
    access.replace_rules(Rules::default());
    assert_eq!(round(&mut rig), "a b", "clients on this machine may do everything");
    access.replace_rules(acl(""));
    assert_eq!(round(&mut rig), "");
}

#[test]
fn a_will_that_may_not_be_published_refuses_the_connection() {
    let (mut rig, access) = guarded("user ada\ntopic write a\nuser bob\ntopic read #\n");
    for version in ALL_VERSIONS {
        for (topic, expected) in [("a", ReasonCode::Success), ("b", ReasonCode::NotAuthorized)] {
            let will = Will {
                topic: TopicName::new(topic).unwrap(),
                payload: b"gone",
                qos: Qos::AtLeastOnce,
                retain: false,
                delay_s: 0,
                properties: WireProperties::NONE,
            };
            let client = rig.open(version);
            let connect = Connect { will: Some(will), ..user(version, "ada", "a") };
            rig.send(&client, |out| encode::connect(out, &connect));
            rig.sync();
            assert_eq!(rig.seen(&client), [Seen::ConnAck { present: false, reason: expected }]);
            if topic == "a" {
                // Allowed when it connected, and no more when it is due.
                access.replace_rules(acl("user ada\ntopic write b\nuser bob\ntopic read #\n"));
                let bob = rig.connect(&user(Version::V5, "bob", "b"));
                subscribe(&mut rig, &bob, &["#"]);
                rig.close(client);
                rig.sync();
                assert_eq!(rig.seen(&bob), []);
                access.replace_rules(acl("user ada\ntopic write a\nuser bob\ntopic read #\n"));
            }
        }
    }
}

#[test]
fn a_certificate_is_who_its_client_is() {
    let (mut rig, _) = guarded("user machine 7\ntopic #\n");
    let client = rig.open(Version::V5);
    rig.broker.set_certificate(client.key, "machine 7");
    let connect =
        Connect { username: Some("ada"), password: Some(b"wrong"), ..Connect::new(Version::V5, "c") };
    rig.send(&client, |out| encode::connect(out, &connect));
    rig.sync();
    rig.seen(&client);
    subscribe(&mut rig, &client, &["a"]);
    rig.publish(&client, "a", "x", Qos::AtMostOnce, 0);
    assert_eq!(rig.seen(&client), [delivery("a", "x", 0, 0)]);
}

#[test]
fn a_group_gives_records_only_to_members_that_may_receive_them() {
    let (mut rig, _) = guarded("topic write #\nuser ada\ntopic read #\nuser bob\ntopic read b\n");
    let (ada, bob) =
        (rig.connect(&user(Version::V5, "ada", "a")), rig.connect(&user(Version::V5, "bob", "b")));
    assert_eq!(subscribe(&mut rig, &bob, &["$share/g/a", "$share/g/#"])[0], ReasonCode::NotAuthorized);
    let publisher = rig.client(Version::V5, "p");
    let round = |rig: &mut Rig, first: u16| {
        for packet_id in 0..4_u16 {
            rig.publish(
                &publisher,
                if packet_id % 2 == 0 { "a" } else { "b" },
                "x",
                Qos::AtLeastOnce,
                first + packet_id,
            );
        }
        rig.sync();
        (topics(&rig.seen(&ada)).join(" "), topics(&rig.seen(&bob)).join(" "))
    };
    assert_eq!(round(&mut rig, 1), (String::new(), "b b".into()), "what nobody may receive holds nothing up");
    subscribe(&mut rig, &ada, &["$share/g/#"]);
    let (ada_got, bob_got) = round(&mut rig, 10);
    assert!(!bob_got.contains('a'), "{bob_got}");
    assert_eq!(ada_got.matches('a').count(), 2, "{ada_got}");
    assert_eq!(ada_got.matches('b').count() + bob_got.matches('b').count(), 2);
}
