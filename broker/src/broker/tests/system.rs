//! `$SYS`: values at an interval, events as they happen, and nothing of it in the journal.

use super::rig::Seen;
use super::{Client, Rig};
use crate::broker::{Gauges, Limits};
use crate::mqtt::{Connect, Disconnect, ReasonCode, Version, encode};
use crate::record::{Entry, Qos};

const QOS0: Qos = Qos::AtMostOnce;
const QOS1: Qos = Qos::AtLeastOnce;

/// The publishes among what a client has seen, with whether they came as retained.
fn publishes(rig: &mut Rig, client: &Client) -> Vec<(String, String, bool)> {
    let mut published = Vec::new();
    for seen in rig.seen(client) {
        if let Seen::Publish { topic, payload, retain, qos: 0, .. } = seen {
            published.push((topic, payload, retain));
        }
    }
    published
}

fn value<'a>(published: &'a [(String, String, bool)], topic: &str) -> Option<&'a str> {
    published.iter().find(|(each, ..)| each == topic).map(|(_, payload, _)| payload.as_str())
}

#[test]
fn who_subscribes_gets_every_value_at_once_and_then_what_changes() {
    let mut rig = Rig::new();
    let everything = rig.client(Version::V5, "everything");
    rig.subscribe(&everything, "#", QOS1);
    rig.subscribe(&everything, "+/broker/uptime", QOS1);
    rig.seen(&everything);
    let watcher = rig.client(Version::V311, "watcher");
    rig.subscribe(&watcher, "$SYS/#", QOS1);
    let first = publishes(&mut rig, &watcher);
    assert!(first.iter().all(|(.., retain)| *retain), "as retained: {first:?}");
    assert_eq!(value(&first, "$SYS/broker/uptime"), Some("0 seconds"));
    let version = format!("tidegate version {}", crate::VERSION);
    assert_eq!(value(&first, "$SYS/broker/version"), Some(version.as_str()));
    assert_eq!(value(&first, "$SYS/broker/timestamp"), Some("1970-01-01T00:00:01.000Z"));
    rig.broker.handle_gauges(Gauges { memory_bytes: 7, journal_entries: 8, journal_bytes: 9 });
    rig.publish_with(&watcher, "kept", "12345", QOS0, 0, true, false);
    rig.sync();
    rig.pass(10);
    let changed = publishes(&mut rig, &watcher);
    assert!(changed.iter().all(|(.., retain)| !retain), "not as retained: {changed:?}");
    for (topic, expected) in [
        ("uptime", "10 seconds"),
        ("clients/total", "2"),
        ("clients/connected", "2"),
        ("clients/active", "2"),
        ("clients/maximum", "2"),
        ("subscriptions/count", "3"),
        ("retained messages/count", "1"),
        ("publish/messages/received", "1"),
        ("publish/bytes/received", "5"),
        ("heap/current size", "7"),
        ("heap/maximum", "7"),
        ("messages/stored", "8"),
        ("store/messages/count", "8"),
        ("store/messages/bytes", "9"),
        // 1 in ten seconds is 6 a minute: 6 * (1 - e^(-10/60)).
        ("load/publish/received/1min", "0.92"),
    ] {
        assert_eq!(value(&changed, &format!("$SYS/broker/{topic}")), Some(expected), "{topic}");
    }
    assert_eq!(value(&changed, "$SYS/broker/version"), None, "it has not changed");
    let others = publishes(&mut rig, &everything);
    assert_eq!(others, [("kept".to_owned(), "12345".to_owned(), false)], "wildcards do not reach $SYS");
    let recorded = rig.log.batches.iter().flat_map(|batch| batch.entries());
    let records = recorded.filter(|(_, entry)| matches!(entry, Entry::Record(_))).count();
    assert_eq!(records, 1, "the journal knows of none of it");
    assert_eq!(rig.broker.stats().retained, 1);
}

#[test]
fn an_interval_of_nothing_switches_it_off() {
    let mut rig = Rig::with(Limits { system_interval: std::time::Duration::ZERO, ..Limits::default() });
    let watcher = rig.client(Version::V5, "watcher");
    rig.subscribe(&watcher, "$SYS/#", QOS1);
    let other = rig.client(Version::V5, "other");
    rig.close(other);
    rig.pass(100);
    assert_eq!(publishes(&mut rig, &watcher), []);
}

#[test]
fn coming_and_going_is_told_with_the_reason() {
    let mut rig = Rig::new();
    let watcher = rig.client(Version::V5, "watcher");
    rig.subscribe(&watcher, "$SYS/brokers/clients/+/+", QOS1);
    rig.seen(&watcher);
    let connect = Connect { keep_alive_s: 20, session_expiry_s: 60, ..Connect::new(Version::V5, "a/\"b\"") };
    let told = |rig: &mut Rig| publishes(rig, &watcher);
    let about = r#"{"client_id":"a/\"b\"","address":"127.0.0.1","protocol_version":"5.0","keep_alive":20,"session_expiry":60"#;
    let connected = |time| {
        let rest = format!(r#","clean_start":true,"session_present":false,"time":"{time}"}}"#);
        ("$SYS/brokers/clients/a%2F\"b\"/connected".to_owned(), format!("{about}{rest}"), false)
    };
    let disconnected = |reason, code, time| {
        let rest = format!(r#","reason":"{reason}","reason_code":{code},"time":"{time}"}}"#);
        ("$SYS/brokers/clients/a%2F\"b\"/disconnected".to_owned(), format!("{about}{rest}"), false)
    };
    let client = rig.connect(&connect);
    assert_eq!(told(&mut rig), [connected("1970-01-01T00:00:01.000Z")]);
    rig.close(client);
    assert_eq!(told(&mut rig), [disconnected("Connection lost", "null", "1970-01-01T00:00:01.000Z")]);
    let client = rig.connect(&connect);
    let second = rig.connect(&connect);
    assert_eq!(told(&mut rig)[1], disconnected("Session taken over", "142", "1970-01-01T00:00:01.000Z"));
    rig.close(client);
    rig.send(&second, |out| encode::disconnect(out, Version::V5, &Disconnect::new(ReasonCode::Success)));
    assert_eq!(told(&mut rig), [disconnected("Normal disconnection", "0", "1970-01-01T00:00:01.000Z")]);
    rig.connect(&connect);
    told(&mut rig);
    rig.pass(31);
    let seen = told(&mut rig);
    assert_eq!(seen, [disconnected("Keep Alive timeout", "141", "1970-01-01T00:00:32.000Z")]);
}
