//! Packets to bytes, appended to `out`. One function per packet; versions before 5.0 leave out what they do
//! not have.
//!
//! What is encoded is the caller's own: strings of at most 65,535 bytes, valid topics and filters, nothing that
//! the receiver's limits forbid. [`PublishHead::packet_bytes`] tells the size beforehand, for a client's Maximum
//! Packet Size [MQTT-3.1.2-24].

use super::packet::{Ack, Auth, ConnAck, Connect, Disconnect, Subscription};
use super::property::{UserProperties, id, message_expiry_at};
use super::{REMAINING_LENGTH_MAX, ReasonCode, Version};
use crate::record::{Properties, Qos};

/// Everything of a PUBLISH but its payload.
#[derive(Clone, Copy, Debug)]
pub struct PublishHead<'a> {
    /// Whether it may have been sent before; false at QoS 0.
    pub dup: bool,
    /// Quality of Service.
    pub qos: Qos,
    /// RETAIN flag.
    pub retain: bool,
    /// The Packet Identifier; not written at QoS 0.
    pub packet_id: u16,
    /// A Topic Name; empty where `topic_alias` stands for it.
    pub topic: &'a str,
    /// The publisher's properties.
    pub properties: Properties<'a>,
    /// Seconds left, to stand in the place of the publisher's Message Expiry Interval [MQTT-3.3.2-6]; no
    /// effect if there is none among `properties`.
    pub message_expiry: Option<u32>,
    /// The Subscription Identifiers of the subscriptions it is sent for [MQTT-3.3.4-3].
    pub subscription_ids: &'a [u32],
    /// What stands for the topic, or will from now on.
    pub topic_alias: Option<u16>,
    /// How many bytes of payload follow.
    pub payload_bytes: usize,
}

impl PublishHead<'_> {
    /// How many bytes the whole packet takes, payload included.
    pub fn packet_bytes(&self, version: Version) -> usize {
        let remaining = self.remaining(self.properties_bytes(version), version);
        1 + var_int_bytes(remaining) + remaining
    }

    /// How many bytes the section of properties takes, without its length.
    fn properties_bytes(&self, version: Version) -> usize {
        if !version.is_v5() {
            return 0;
        }
        let ids: usize = self.subscription_ids.iter().map(|id| 1 + var_int_bytes(*id as usize)).sum();
        let alias = if self.topic_alias.is_some() { 3 } else { 0 };
        self.properties.encoded().len() + ids + alias
    }

    /// The Remaining Length.
    fn remaining(&self, properties_bytes: usize, version: Version) -> usize {
        let packet_id = if self.qos == Qos::AtMostOnce { 0 } else { 2 };
        let properties = if version.is_v5() { var_int_bytes(properties_bytes) + properties_bytes } else { 0 };
        2 + self.topic.len() + packet_id + properties + self.payload_bytes
    }
}

/// Writes a PUBLISH without its payload; returns where in `out` its Packet Identifier lies, so that one encoding
/// can be shared and patched (at QoS 0: where it would lie).
pub fn publish_head(out: &mut Vec<u8>, version: Version, head: &PublishHead<'_>) -> usize {
    let properties_bytes = head.properties_bytes(version);
    let remaining = head.remaining(properties_bytes, version);
    assert!(
        remaining <= REMAINING_LENGTH_MAX,
        "callers keep packets below the receiver's Maximum Packet Size"
    );
    out.reserve(1 + 4 + remaining);
    out.push(0x30 | (head.dup as u8) << 3 | (head.qos as u8) << 1 | head.retain as u8);
    put_var_int(out, remaining);
    put_binary(out, head.topic.as_bytes());
    let packet_id_at = out.len();
    if head.qos != Qos::AtMostOnce {
        out.extend_from_slice(&head.packet_id.to_be_bytes());
    }
    if version.is_v5() {
        put_var_int(out, properties_bytes);
        put_publish_properties(out, head);
    }
    packet_id_at
}

fn put_publish_properties(out: &mut Vec<u8>, head: &PublishHead<'_>) {
    let begin = out.len();
    out.extend_from_slice(head.properties.encoded());
    if let Some(seconds) = head.message_expiry
        && let Some(at) = message_expiry_at(head.properties)
    {
        let at = begin + at;
        out[at..at + 4].copy_from_slice(&seconds.to_be_bytes());
    }
    for subscription_id in head.subscription_ids {
        out.push(id::SUBSCRIPTION_ID);
        put_var_int(out, *subscription_id as usize);
    }
    if let Some(alias) = head.topic_alias {
        put_u16(out, id::TOPIC_ALIAS, alias);
    }
}

/// Writes a whole PUBLISH; `head.payload_bytes` must be the length of `payload`. Returns as [`publish_head`].
pub fn publish(out: &mut Vec<u8>, version: Version, head: &PublishHead<'_>, payload: &[u8]) -> usize {
    debug_assert_eq!(head.payload_bytes, payload.len());
    let packet_id_at = publish_head(out, version, head);
    out.extend_from_slice(payload);
    packet_id_at
}

/// Writes a PUBACK: 4 bytes, or 5 with a `reason` other than success in 5.0.
#[inline]
pub fn puback(out: &mut Vec<u8>, version: Version, packet_id: u16, reason: ReasonCode) {
    put_ack(out, version, AckType::PubAck, packet_id, reason);
}

/// Writes a PUBREC, as [`puback`].
#[inline]
pub fn pubrec(out: &mut Vec<u8>, version: Version, packet_id: u16, reason: ReasonCode) {
    put_ack(out, version, AckType::PubRec, packet_id, reason);
}

/// Writes a PUBREL, as [`puback`].
#[inline]
pub fn pubrel(out: &mut Vec<u8>, version: Version, packet_id: u16, reason: ReasonCode) {
    put_ack(out, version, AckType::PubRel, packet_id, reason);
}

/// Writes a PUBCOMP, as [`puback`].
#[inline]
pub fn pubcomp(out: &mut Vec<u8>, version: Version, packet_id: u16, reason: ReasonCode) {
    put_ack(out, version, AckType::PubComp, packet_id, reason);
}

#[inline]
fn put_ack(out: &mut Vec<u8>, version: Version, ack_type: AckType, packet_id: u16, reason: ReasonCode) {
    let [high, low] = packet_id.to_be_bytes();
    if reason == ReasonCode::Success || !version.is_v5() {
        out.extend_from_slice(&[ack_type as u8, 2, high, low]);
    } else {
        out.extend_from_slice(&[ack_type as u8, 3, high, low, reason.as_u8()]);
    }
}

/// Which acknowledgement an [`Ack`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
#[allow(missing_docs)] // The names are the specification's.
pub enum AckType {
    PubAck = 0x40,
    PubRec = 0x50,
    PubRel = 0x62,
    PubComp = 0x70,
}

/// Writes an acknowledgement with its Reason String and User Properties.
pub fn ack(out: &mut Vec<u8>, version: Version, ack_type: AckType, ack: &Ack<'_>) {
    if !version.is_v5() || ack.reason_string.is_none() && ack.user_properties.iter().next().is_none() {
        return put_ack(out, version, ack_type, ack.packet_id, ack.reason);
    }
    packet(out, ack_type as u8, |out| {
        out.extend_from_slice(&ack.packet_id.to_be_bytes());
        out.push(ack.reason.as_u8());
        with_length(out, |out| {
            put_text(out, id::REASON_STRING, ack.reason_string);
            put_user_properties(out, ack.user_properties);
        });
    });
}

/// Writes a CONNECT.
pub fn connect(out: &mut Vec<u8>, connect: &Connect<'_>) {
    let v5 = connect.version.is_v5();
    packet(out, 0x10, |out| {
        put_binary(out, if connect.version == Version::V31 { b"MQIsdp" } else { b"MQTT" });
        out.push(connect.version.level());
        out.push(connect_flags(connect));
        out.extend_from_slice(&connect.keep_alive_s.to_be_bytes());
        if v5 {
            with_length(out, |out| put_connect_properties(out, connect));
        }
        put_binary(out, connect.client_id.as_bytes());
        if let Some(will) = &connect.will {
            if v5 {
                with_length(out, |out| {
                    put_u32_unless(out, id::WILL_DELAY, will.delay_s, 0);
                    out.extend_from_slice(will.travelling(&mut Vec::new()).encoded());
                });
            }
            put_binary(out, will.topic.as_str().as_bytes());
            put_binary(out, will.payload);
        }
        if let Some(username) = connect.username {
            put_binary(out, username.as_bytes());
        }
        if let Some(password) = connect.password {
            put_binary(out, password);
        }
    });
}

fn connect_flags(connect: &Connect<'_>) -> u8 {
    let will =
        connect.will.as_ref().map_or(0, |will| 0b100 | (will.qos as u8) << 3 | (will.retain as u8) << 5);
    (connect.clean_start as u8) << 1
        | will
        | (connect.password.is_some() as u8) << 6
        | (connect.username.is_some() as u8) << 7
}

fn put_connect_properties(out: &mut Vec<u8>, connect: &Connect<'_>) {
    put_u32_unless(out, id::SESSION_EXPIRY, connect.session_expiry_s, 0);
    put_u16_unless(out, id::RECEIVE_MAXIMUM, connect.receive_maximum, u16::MAX);
    put_u32_unless(out, id::MAXIMUM_PACKET_SIZE, connect.maximum_packet_bytes.unwrap_or(0), 0);
    put_u16_unless(out, id::TOPIC_ALIAS_MAXIMUM, connect.topic_alias_maximum, 0);
    put_bool_unless(out, id::REQUEST_RESPONSE_INFORMATION, connect.request_response_information, false);
    put_bool_unless(out, id::REQUEST_PROBLEM_INFORMATION, connect.request_problem_information, true);
    put_text(out, id::AUTHENTICATION_METHOD, connect.authentication_method);
    put_data(out, id::AUTHENTICATION_DATA, connect.authentication_data);
    put_user_properties(out, connect.user_properties);
}

/// Writes a CONNACK; properties that hold their default are left out. In MQTT 3 the reason becomes the nearest
/// Connect Return code.
pub fn connack(out: &mut Vec<u8>, version: Version, connack: &ConnAck<'_>) {
    if !version.is_v5() {
        let session_present = connack.session_present && version != Version::V31;
        out.extend_from_slice(&[0x20, 2, session_present as u8, connack.reason.v3_connect_return()]);
        return;
    }
    packet(out, 0x20, |out| {
        out.push(connack.session_present as u8);
        out.push(connack.reason.as_u8());
        with_length(out, |out| put_connack_properties(out, connack));
    });
}

fn put_connack_properties(out: &mut Vec<u8>, connack: &ConnAck<'_>) {
    if let Some(seconds) = connack.session_expiry_s {
        put_u32(out, id::SESSION_EXPIRY, seconds);
    }
    put_u16_unless(out, id::RECEIVE_MAXIMUM, connack.receive_maximum, u16::MAX);
    match connack.maximum_qos {
        Qos::AtMostOnce => out.extend_from_slice(&[id::MAXIMUM_QOS, 0]),
        Qos::AtLeastOnce => out.extend_from_slice(&[id::MAXIMUM_QOS, 1]),
        Qos::ExactlyOnce => {}
    }
    put_bool_unless(out, id::RETAIN_AVAILABLE, connack.retain_available, true);
    put_u32_unless(out, id::MAXIMUM_PACKET_SIZE, connack.maximum_packet_bytes.unwrap_or(0), 0);
    put_text(out, id::ASSIGNED_CLIENT_ID, connack.assigned_client_id);
    put_u16_unless(out, id::TOPIC_ALIAS_MAXIMUM, connack.topic_alias_maximum, 0);
    put_text(out, id::REASON_STRING, connack.reason_string);
    put_user_properties(out, connack.user_properties);
    put_bool_unless(out, id::WILDCARD_SUBSCRIPTIONS, connack.wildcard_subscriptions, true);
    put_bool_unless(out, id::SUBSCRIPTION_IDS, connack.subscription_ids, true);
    put_bool_unless(out, id::SHARED_SUBSCRIPTIONS, connack.shared_subscriptions, true);
    if let Some(seconds) = connack.server_keep_alive_s {
        put_u16(out, id::SERVER_KEEP_ALIVE, seconds);
    }
    put_text(out, id::RESPONSE_INFORMATION, connack.response_information);
    put_text(out, id::SERVER_REFERENCE, connack.server_reference);
    put_text(out, id::AUTHENTICATION_METHOD, connack.authentication_method);
    put_data(out, id::AUTHENTICATION_DATA, connack.authentication_data);
}

/// Writes the CONNACK that refuses a connection, with nothing but the reason.
pub fn connack_refused(out: &mut Vec<u8>, version: Version, reason: ReasonCode) {
    connack(out, version, &ConnAck { reason, ..ConnAck::default() });
}

/// Writes a SUBSCRIBE.
pub fn subscribe<'a, S>(
    out: &mut Vec<u8>,
    version: Version,
    packet_id: u16,
    subscription_id: Option<u32>,
    subscriptions: S,
) where
    S: IntoIterator<Item = Subscription<'a>>,
{
    packet(out, 0x82, |out| {
        out.extend_from_slice(&packet_id.to_be_bytes());
        if version.is_v5() {
            with_length(out, |out| {
                if let Some(subscription_id) = subscription_id {
                    out.push(id::SUBSCRIPTION_ID);
                    put_var_int(out, subscription_id as usize);
                }
            });
        }
        for subscription in subscriptions {
            put_binary(out, subscription.filter.as_bytes());
            out.push(if version.is_v5() { subscription.options() } else { subscription.qos as u8 });
        }
    });
}

/// Writes a SUBACK; in MQTT 3 every failure is 0x80.
pub fn suback(out: &mut Vec<u8>, version: Version, packet_id: u16, codes: &[ReasonCode]) {
    packet(out, 0x90, |out| {
        out.extend_from_slice(&packet_id.to_be_bytes());
        if version.is_v5() {
            out.push(0);
            out.extend(codes.iter().map(|code| code.as_u8()));
        } else {
            out.extend(codes.iter().map(|code| if code.is_failure() { 0x80 } else { code.as_u8() }));
        }
    });
}

/// Writes an UNSUBSCRIBE.
pub fn unsubscribe<'a, F>(out: &mut Vec<u8>, version: Version, packet_id: u16, filters: F)
where
    F: IntoIterator<Item = &'a str>,
{
    packet(out, 0xA2, |out| {
        out.extend_from_slice(&packet_id.to_be_bytes());
        if version.is_v5() {
            out.push(0);
        }
        for filter in filters {
            put_binary(out, filter.as_bytes());
        }
    });
}

/// Writes an UNSUBACK; in MQTT 3 it has no codes.
pub fn unsuback(out: &mut Vec<u8>, version: Version, packet_id: u16, codes: &[ReasonCode]) {
    packet(out, 0xB0, |out| {
        out.extend_from_slice(&packet_id.to_be_bytes());
        if version.is_v5() {
            out.push(0);
            out.extend(codes.iter().map(|code| code.as_u8()));
        }
    });
}

/// Writes a PINGREQ.
pub fn pingreq(out: &mut Vec<u8>) {
    out.extend_from_slice(&[0xC0, 0]);
}

/// Writes a PINGRESP.
pub fn pingresp(out: &mut Vec<u8>) {
    out.extend_from_slice(&[0xD0, 0]);
}

/// Writes a DISCONNECT. In MQTT 3 only a client may send one, and it says nothing; a server just closes the
/// connection there.
pub fn disconnect(out: &mut Vec<u8>, version: Version, disconnect: &Disconnect<'_>) {
    let Disconnect { reason, session_expiry_s, reason_string, user_properties, server_reference } =
        *disconnect;
    let bare = session_expiry_s.is_none()
        && reason_string.is_none()
        && server_reference.is_none()
        && user_properties.iter().next().is_none();
    if !version.is_v5() || bare && reason == ReasonCode::Success {
        out.extend_from_slice(&[0xE0, 0]);
    } else if bare {
        out.extend_from_slice(&[0xE0, 1, reason.as_u8()]);
    } else {
        packet(out, 0xE0, |out| {
            out.push(reason.as_u8());
            with_length(out, |out| {
                if let Some(seconds) = session_expiry_s {
                    put_u32(out, id::SESSION_EXPIRY, seconds);
                }
                put_text(out, id::REASON_STRING, reason_string);
                put_user_properties(out, user_properties);
                put_text(out, id::SERVER_REFERENCE, server_reference);
            });
        });
    }
}

/// Writes an AUTH, which only 5.0 has.
pub fn auth(out: &mut Vec<u8>, auth: &Auth<'_>) {
    if auth.reason == ReasonCode::Success && auth.method.is_none() {
        out.extend_from_slice(&[0xF0, 0]);
        return;
    }
    packet(out, 0xF0, |out| {
        out.push(auth.reason.as_u8());
        with_length(out, |out| {
            put_text(out, id::AUTHENTICATION_METHOD, auth.method);
            put_data(out, id::AUTHENTICATION_DATA, auth.data);
            put_text(out, id::REASON_STRING, auth.reason_string);
            put_user_properties(out, auth.user_properties);
        });
    });
}

/// Writes one User Property, to build [`super::UserProperties`] and travelling properties from.
pub fn user_property(out: &mut Vec<u8>, name: &str, value: &str) {
    out.push(id::USER);
    put_binary(out, name.as_bytes());
    put_binary(out, value.as_bytes());
}

/// Writes a packet: its first byte, its Remaining Length, and what `body` writes.
fn packet(out: &mut Vec<u8>, first: u8, body: impl FnOnce(&mut Vec<u8>)) {
    out.push(first);
    with_length(out, body);
}

/// Writes what `body` writes with its length in front. Costs a move of the body when that takes more than one
/// byte, which only packets pay that are rare.
fn with_length(out: &mut Vec<u8>, body: impl FnOnce(&mut Vec<u8>)) {
    let begin = out.len();
    out.push(0);
    body(out);
    let bytes = out.len() - begin - 1;
    let (length, length_bytes) = var_int(bytes);
    out[begin] = length[0];
    if length_bytes > 1 {
        out.splice(begin + 1..begin + 1, length[1..length_bytes].iter().copied());
    }
}

/// How many bytes `value` takes as a Variable Byte Integer.
const fn var_int_bytes(value: usize) -> usize {
    match value {
        0..0x80 => 1,
        0x80..0x4000 => 2,
        0x4000..0x20_0000 => 3,
        _ => 4,
    }
}

/// `value` as a Variable Byte Integer, and how many bytes that is.
fn var_int(value: usize) -> ([u8; 4], usize) {
    assert!(value <= REMAINING_LENGTH_MAX, "callers keep packets below the receiver's Maximum Packet Size");
    let mut bytes = [0; 4];
    let mut rest = value;
    let mut at = 0;
    while rest >= 0x80 {
        bytes[at] = rest as u8 | 0x80;
        rest >>= 7;
        at += 1;
    }
    bytes[at] = rest as u8;
    (bytes, at + 1)
}

#[inline]
fn put_var_int(out: &mut Vec<u8>, value: usize) {
    if value < 0x80 {
        out.push(value as u8);
    } else {
        let (bytes, length) = var_int(value);
        out.extend_from_slice(&bytes[..length]);
    }
}

#[inline]
fn put_binary(out: &mut Vec<u8>, bytes: &[u8]) {
    let length = u16::try_from(bytes.len()).expect("callers keep strings below 64 KiB [MQTT-1.5.4]");
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(bytes);
}

fn put_u16(out: &mut Vec<u8>, id: u8, value: u16) {
    let [high, low] = value.to_be_bytes();
    out.extend_from_slice(&[id, high, low]);
}

fn put_u16_unless(out: &mut Vec<u8>, id: u8, value: u16, default: u16) {
    if value != default {
        put_u16(out, id, value);
    }
}

fn put_u32(out: &mut Vec<u8>, id: u8, value: u32) {
    out.push(id);
    out.extend_from_slice(&value.to_be_bytes());
}

fn put_u32_unless(out: &mut Vec<u8>, id: u8, value: u32, default: u32) {
    if value != default {
        put_u32(out, id, value);
    }
}

fn put_bool_unless(out: &mut Vec<u8>, id: u8, value: bool, default: bool) {
    if value != default {
        out.extend_from_slice(&[id, value as u8]);
    }
}

fn put_text(out: &mut Vec<u8>, id: u8, text: Option<&str>) {
    put_data(out, id, text.map(str::as_bytes));
}

fn put_data(out: &mut Vec<u8>, id: u8, data: Option<&[u8]>) {
    if let Some(data) = data {
        out.push(id);
        put_binary(out, data);
    }
}

fn put_user_properties(out: &mut Vec<u8>, properties: UserProperties<'_>) {
    for (name, value) in properties {
        user_property(out, name, value);
    }
}
