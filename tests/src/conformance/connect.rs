//! CONNECT and CONNACK: what is granted, what is told, who is refused.

use super::client::{Answer, Client, value};
use super::wire::{self, Connect, Publish, property};
use super::{LEVELS, broker};
use crate::support::tidegate::Settings;

/// The properties of the CONNACK that answers `connect`.
fn connack(connect: &Connect) -> Vec<Vec<u8>> {
    Client::accepted(broker().mqtt, connect).2
}

#[test]
fn a_valid_connect_is_acknowledged_in_its_own_version() {
    for level in LEVELS {
        let mut client = Client::dial(broker().mqtt, level);
        // A client need not wait for CONNACK; it comes before every other answer [MQTT-3.2.0-1].
        client.send([Connect::new(level, "connect-valid").bytes(), wire::PINGREQ.into()].concat());
        let first = client.receive();
        assert!(matches!(first, Answer::ConnAck { present: false, code: 0, .. }), "level {level}: {first:?}");
        client.expect(&Answer::PingResp);
        client.expect_nothing_but_pingresp();
    }
}

#[test]
fn client_identifiers_of_every_kind_are_taken() {
    // [MQTT-3.1.3-5] and what a server may take beyond it.
    let longest = "x".repeat(65_000);
    for level in LEVELS {
        for id in [
            "0",
            "0123456789abcdefghijklm",
            "nopqrstuvwxyzABCDEFGHIJ",
            "KLMNOPQRSTUVWXYZ",
            "é ‰/+#$",
            &longest,
        ] {
            Client::open(broker().mqtt, &Connect::new(level, id)).disconnect();
        }
    }
}

#[test]
fn a_client_without_identifier_gets_one_of_its_own() {
    // [MQTT-3.1.3-6] [MQTT-3.1.3-7] [MQTT-3.2.2-16]
    let mut assigned = Vec::new();
    for flags in [0, wire::CLEAN_START] {
        let connect = Connect { flags, ..Connect::new(5, "") };
        let (client, present, properties) = Client::accepted(broker().mqtt, &connect);
        assert!(!present, "nobody had it before");
        let id = value(&properties, property::ASSIGNED_CLIENT_ID).expect("an identifier is assigned");
        let id = String::from_utf8(id[2..].to_vec()).unwrap();
        assert!(!id.is_empty() && !assigned.contains(&id), "{id} is new");
        // It is the client's as if it had brought it: whoever brings it now takes the session over.
        let _successor = Client::open(broker().mqtt, &Connect::new(5, &id));
        let mut client = client;
        client.expect_disconnect(0x8E);
        assigned.push(id);
    }
    Client::open(broker().mqtt, &Connect::new(4, "")).expect_nothing_but_pingresp();
    assert_eq!(value(&connack(&Connect::new(5, "connect-own")), property::ASSIGNED_CLIENT_ID), None);
}

#[test]
fn an_identifier_is_required_where_a_session_is_to_be_kept_or_mqtt_3_1_is_spoken() {
    // [MQTT-3.1.3-8] [MQTT-3.1.3-9]: return code 2, and the end.
    let kept = Connect { flags: 0, ..Connect::new(4, "") };
    for connect in [kept, Connect::new(3, "")] {
        let (mut client, answer) = Client::asked(broker().mqtt, &connect);
        assert_eq!(answer, Answer::ConnAck { present: false, code: 2, properties: Vec::new() });
        client.expect_closed();
    }
}

#[test]
fn what_follows_a_refused_connect_is_not_processed() {
    // [MQTT-3.1.4-5] [MQTT-3.1.4-6]
    let mut watcher = Client::open(broker().mqtt, &Connect::new(5, "connect-watcher"));
    watcher.subscribe("connect/refused", 0);
    let mut client = Client::dial(broker().mqtt, 4);
    let refused = Connect { flags: 0, ..Connect::new(4, "") }.bytes();
    client.send([refused, Publish::new("connect/refused", "never").bytes(4)].concat());
    client.expect(&Answer::ConnAck { present: false, code: 2, properties: Vec::new() });
    client.expect_closed();
    watcher.publish(&Publish::at(1, 9, "connect/refused", "marker"));
    assert_eq!(watcher.take_text(), "marker");
}

#[test]
fn connack_tells_the_limits_that_hold() {
    let properties = connack(&Connect::new(5, "connect-limits"));
    let two = |id| value(&properties, id).map(|bytes| u16::from_be_bytes(bytes.try_into().unwrap()));
    assert!(two(property::RECEIVE_MAXIMUM).is_some_and(|maximum| maximum > 0), "{properties:?}");
    assert!(two(property::TOPIC_ALIAS_MAXIMUM).is_some_and(|maximum| maximum > 0), "{properties:?}");
    assert!(value(&properties, property::MAXIMUM_PACKET_SIZE).is_some(), "{properties:?}");
    // Every QoS, retained records, wildcards and Subscription Identifiers are there; so nothing says otherwise.
    for id in [
        property::MAXIMUM_QOS,
        property::RETAIN_AVAILABLE,
        property::WILDCARD_SUBSCRIPTIONS,
        property::SUBSCRIPTION_IDS,
    ] {
        assert_ne!(value(&properties, id), Some(&[0][..]), "property {id:#04x}");
    }
    // Nobody asked for these, and nothing gives a reason for them [MQTT-3.1.2-28] [MQTT-4.12.0-6].
    for id in [
        property::RESPONSE_INFORMATION,
        property::AUTHENTICATION_METHOD,
        property::AUTHENTICATION_DATA,
        property::SERVER_KEEP_ALIVE,
        property::REASON_STRING,
        property::USER,
    ] {
        assert_eq!(value(&properties, id), None, "property {id:#04x}");
    }
    // Response Information is optional, and not given here to those who ask for it either.
    let asked =
        Connect::new(5, "connect-ask").with(property::byte(property::REQUEST_RESPONSE_INFORMATION, 1));
    assert_eq!(value(&connack(&asked), property::RESPONSE_INFORMATION), None);
}

#[test]
fn a_session_expiry_beyond_the_limit_is_lowered_and_told() {
    let expiry =
        |seconds| Connect::new(5, "connect-expiry").with(property::four(property::SESSION_EXPIRY, seconds));
    assert_eq!(value(&connack(&expiry(60)), property::SESSION_EXPIRY), None, "granted as it was asked for");
    let lowered = connack(&expiry(u32::MAX));
    let lowered = value(&lowered, property::SESSION_EXPIRY).expect("it is told");
    assert!(u32::from_be_bytes(lowered.try_into().unwrap()) > 60);
    // The session is gone, for the sake of the other tests.
    Client::open(broker().mqtt, &Connect::new(5, "connect-expiry")).disconnect();
}

#[test]
fn an_authentication_method_that_is_not_known_is_refused() {
    // [MQTT-4.12.0-1]
    let connect =
        Connect::new(5, "connect-auth").with(property::text(property::AUTHENTICATION_METHOD, "unheard-of"));
    let (mut client, answer) = Client::asked(broker().mqtt, &connect);
    assert!(matches!(answer, Answer::ConnAck { present: false, code: 0x8C, .. }), "{answer:?}");
    client.expect_closed();
}

#[test]
fn a_silent_client_is_cut_off_after_one_and_a_half_keep_alives() {
    for level in LEVELS {
        let connect = Connect { keep_alive_s: 1, ..Connect::new(level, "connect-silent") };
        let begin = std::time::Instant::now();
        let mut client = Client::open(broker().mqtt, &connect);
        client.expect_disconnect(0x8D);
        let silent_ms = begin.elapsed().as_millis();
        assert!((1_400..10_000).contains(&silent_ms), "cut off after {silent_ms} ms");
    }
}

#[test]
fn a_keep_alive_beyond_the_limit_is_lowered_and_told() {
    let short = super::start(Settings::default().set("TIDEGATE_MQTT_MAX_KEEP_ALIVE", "1s"));
    let connect = |level| Connect { keep_alive_s: 100, ..Connect::fresh(level) };
    // MQTT 3 has no word for it, so there the client's own holds.
    let mut old = Client::open(short.mqtt, &connect(4));
    let (mut client, _, properties) = Client::accepted(short.mqtt, &connect(5));
    assert_eq!(value(&properties, property::SERVER_KEEP_ALIVE), Some(&[0, 1][..]));
    client.expect_disconnect(0x8D);
    old.expect_nothing_but_pingresp();
    // One within the limit, or none at all, is granted as it is [MQTT-3.2.2-22].
    for keep_alive_s in [0, 1] {
        let within = Connect { keep_alive_s, ..Connect::fresh(5) };
        assert_eq!(value(&Client::accepted(short.mqtt, &within).2, property::SERVER_KEEP_ALIVE), None);
    }
    // Without a setting it is a minute.
    let told = connack(&Connect { keep_alive_s: 120, ..Connect::fresh(5) });
    assert_eq!(value(&told, property::SERVER_KEEP_ALIVE), Some(&[0, 60][..]));
}

#[test]
fn a_client_that_keeps_talking_is_not_cut_off() {
    // Whatever it sends counts, also what is no PINGREQ.
    let connect = Connect { keep_alive_s: 1, ..Connect::new(4, "connect-talks") };
    let mut client = Client::open(broker().mqtt, &connect);
    let mut slow =
        Client::open(broker().mqtt, &Connect { keep_alive_s: 1, ..Connect::new(5, "connect-slow") });
    let mut told = 0;
    // The silent one's end is the clock: it comes after one and a half seconds.
    slow.patience(std::time::Duration::from_millis(300));
    while slow.is_open() {
        told += 1;
        client.publish(&Publish::at(1, told, "connect/talks", ""));
    }
    assert!(told > 2);
    client.expect_nothing_but_pingresp();
}

#[test]
fn the_maximum_packet_size_of_a_client_is_kept() {
    // [MQTT-3.1.2-24] [MQTT-3.1.2-25]: what is too large counts as delivered.
    let connect = Connect::new(5, "connect-small").with(property::four(property::MAXIMUM_PACKET_SIZE, 64));
    let mut client = Client::open(broker().mqtt, &connect);
    client.subscribe("connect/size", 2);
    let mut publisher = Client::open(broker().mqtt, &Connect::new(5, "connect-sender"));
    for (qos, packet_id) in [(0, 0), (1, 1), (2, 2)] {
        publisher.publish(&Publish::at(qos, packet_id, "connect/size", &"x".repeat(64)));
        publisher.publish(&Publish::at(qos, packet_id, "connect/size", "small"));
        assert_eq!(client.take_text(), "small", "QoS {qos}");
    }
    // PUBLISH: 2 bytes of header, 2 + 12 of topic, 1 of properties, 47 of payload.
    for (payload, fits) in [(47, true), (48, false)] {
        publisher.publish(&Publish::new("connect/size", &"y".repeat(payload)));
        publisher.publish(&Publish::at(1, 3, "connect/size", "marker"));
        if fits {
            assert_eq!(client.take_text().len(), payload);
        }
        assert_eq!(client.take_text(), "marker");
    }
}

#[test]
fn a_client_that_takes_no_connack_is_let_go() {
    // Its Maximum Packet Size is smaller than the CONNACK, which therefore is not sent [MQTT-3.1.2-24].
    let connect = Connect::new(5, "connect-tiny").with(property::four(property::MAXIMUM_PACKET_SIZE, 10));
    let (mut client, answer) = Client::asked(broker().mqtt, &connect);
    if answer != Answer::Closed {
        assert_eq!(answer, Answer::ConnAck { present: false, code: 0x95, properties: Vec::new() });
        client.expect_closed();
    }
}

#[test]
fn a_suback_beyond_the_maximum_packet_size_is_not_sent() {
    let connect = Connect::new(5, "connect-codes").with(property::four(property::MAXIMUM_PACKET_SIZE, 64));
    let mut client = Client::open(broker().mqtt, &connect);
    client.send(wire::subscribe_all(5, 1, &[], &[("connect/codes", 0); 100]));
    client.expect_disconnect(0x95);
}

#[test]
fn a_packet_beyond_our_maximum_packet_size_ends_the_connection() {
    let properties = connack(&Connect::new(5, "connect-max"));
    let maximum = value(&properties, property::MAXIMUM_PACKET_SIZE).expect("it is told");
    let maximum = u32::from_be_bytes(maximum.try_into().unwrap()) as usize;
    let topic = "connect/max";
    let overhead = Publish::at(1, 1, topic, "").bytes(5).len() + 2;
    for level in LEVELS {
        let mut client = Client::open(broker().mqtt, &Connect::new(level, "connect-max"));
        let overhead = if level == 5 { overhead } else { overhead - 1 };
        client.publish(&Publish::at(1, 1, topic, &"x".repeat(maximum - overhead)));
        // Its length is enough: the rest need not come.
        let too_large = Publish::at(1, 1, topic, &"x".repeat(maximum - overhead + 1)).bytes(level);
        client.send(&too_large[..20]);
        client.expect_disconnect(0x95);
    }
}
