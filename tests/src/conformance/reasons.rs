//! The server's DISCONNECT: the right reason for each cause, in words where the client takes them.

use super::client::{Answer, Client, value};
use super::wire::{Connect, Publish, property};
use super::{LEVELS, broker};
use crate::support::tidegate::{Settings, Tidegate};

/// The properties of the DISCONNECT that answers `bytes`.
fn told(connect: &Connect, bytes: &[u8], reason: u8) -> Vec<Vec<u8>> {
    let mut client = Client::open(broker().mqtt, connect);
    client.send(bytes);
    let answer = client.receive();
    let Answer::Disconnect { code, properties } = answer else { panic!("{bytes:02x?} brings {answer:?}") };
    assert_eq!(code, reason);
    client.expect_closed();
    properties
}

#[test]
fn a_mistake_is_named_in_words() {
    for (bytes, reason, names) in [
        (Publish::new("a/+", "").bytes(5), 0x81, "MQTT-3.3.2-2"),
        (Connect::fresh(5).bytes(), 0x82, "MQTT-3.1.0-2"),
        (Publish::new(&"/".repeat(200), "").bytes(5), 0x90, "levels"),
        (vec![0x30, 0xFF, 0xFF, 0xFF, 0x7F], 0x95, "larger"),
    ] {
        let properties = told(&Connect::fresh(5), &bytes, reason);
        let text = value(&properties, property::REASON_STRING).expect("a Reason String");
        let text = std::str::from_utf8(&text[2..]).unwrap();
        assert!(text.contains(names), "{text:?} names {names}");
    }
}

#[test]
fn words_are_left_out_for_who_does_not_take_them() {
    let bytes = Publish::new("a/+", "").bytes(5);
    // [MQTT-3.14.2-3]: not beyond its Maximum Packet Size; and not where problem information is not asked for.
    for limit in [
        property::four(property::MAXIMUM_PACKET_SIZE, 40),
        property::byte(property::REQUEST_PROBLEM_INFORMATION, 0),
    ] {
        let properties = told(&Connect::fresh(5).with(limit), &bytes, 0x81);
        assert_eq!(properties, Vec::<Vec<u8>>::new());
    }
}

#[test]
fn a_server_that_ends_says_so() {
    // One of its own, because it ends. [MQTT-4.13.2-1]
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut tidegate = Tidegate::start(Settings::default()).await;
        let address = tidegate.mqtt;
        let mut clients = LEVELS.map(|level| Client::open(address, &Connect::fresh(level)));
        assert!(tidegate.drain().await.success());
        for client in &mut clients {
            // It sends no Session Expiry Interval [MQTT-3.14.2-2].
            client.expect_disconnect(0x8B);
        }
    });
}
