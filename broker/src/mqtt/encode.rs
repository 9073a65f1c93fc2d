//! Packets to bytes, appended to `out`. One function per packet; versions before 5.0 leave out what they do
//! not have.
//!
//! What is encoded is the caller's own: strings of at most 65,535 bytes, valid topics and filters, nothing that
//! the receiver's limits forbid. [`PublishHead::packet_bytes`] tells the size beforehand, for a client's Maximum
//! Packet Size [MQTT-3.1.2-24].

use super::packet::{Ack, Auth, ConnAck, Connect, Disconnect, Subscription};
use super::{ReasonCode, Version};
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
        let _ = version;
        todo!()
    }
}

/// Writes a PUBLISH without its payload; returns where in `out` its Packet Identifier lies, so that one encoding
/// can be shared and patched (at QoS 0: where it would lie).
pub fn publish_head(out: &mut Vec<u8>, version: Version, head: &PublishHead<'_>) -> usize {
    let _ = (out, version, head);
    todo!()
}

/// Writes a whole PUBLISH; `head.payload_bytes` must be the length of `payload`. Returns as [`publish_head`].
pub fn publish(out: &mut Vec<u8>, version: Version, head: &PublishHead<'_>, payload: &[u8]) -> usize {
    let _ = (out, version, head, payload);
    todo!()
}

/// Writes a PUBACK: 4 bytes, or 5 with a `reason` other than success in 5.0.
pub fn puback(out: &mut Vec<u8>, version: Version, packet_id: u16, reason: ReasonCode) {
    let _ = (out, version, packet_id, reason);
    todo!()
}

/// Writes a PUBREC, as [`puback`].
pub fn pubrec(out: &mut Vec<u8>, version: Version, packet_id: u16, reason: ReasonCode) {
    let _ = (out, version, packet_id, reason);
    todo!()
}

/// Writes a PUBREL, as [`puback`].
pub fn pubrel(out: &mut Vec<u8>, version: Version, packet_id: u16, reason: ReasonCode) {
    let _ = (out, version, packet_id, reason);
    todo!()
}

/// Writes a PUBCOMP, as [`puback`].
pub fn pubcomp(out: &mut Vec<u8>, version: Version, packet_id: u16, reason: ReasonCode) {
    let _ = (out, version, packet_id, reason);
    todo!()
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
    let _ = (out, version, ack_type, ack);
    todo!()
}

/// Writes a CONNECT.
pub fn connect(out: &mut Vec<u8>, connect: &Connect<'_>) {
    let _ = (out, connect);
    todo!()
}

/// Writes a CONNACK; properties that hold their default are left out. In MQTT 3 the reason becomes the nearest
/// Connect Return code.
pub fn connack(out: &mut Vec<u8>, version: Version, connack: &ConnAck<'_>) {
    let _ = (out, version, connack);
    todo!()
}

/// Writes the CONNACK that refuses a connection, with nothing but the reason.
pub fn connack_refused(out: &mut Vec<u8>, version: Version, reason: ReasonCode) {
    connack(out, version, &ConnAck { reason, ..ConnAck::default() });
}

/// Writes a SUBSCRIBE. `subscriptions` is walked twice.
pub fn subscribe<'a, S>(
    out: &mut Vec<u8>,
    version: Version,
    packet_id: u16,
    subscription_id: Option<u32>,
    subscriptions: S,
) where
    S: IntoIterator<Item = Subscription<'a>> + Clone,
{
    let _ = (out, version, packet_id, subscription_id, subscriptions);
    todo!()
}

/// Writes a SUBACK; in MQTT 3 every failure is 0x80.
pub fn suback(out: &mut Vec<u8>, version: Version, packet_id: u16, codes: &[ReasonCode]) {
    let _ = (out, version, packet_id, codes);
    todo!()
}

/// Writes an UNSUBSCRIBE. `filters` is walked twice.
pub fn unsubscribe<'a, F>(out: &mut Vec<u8>, version: Version, packet_id: u16, filters: F)
where
    F: IntoIterator<Item = &'a str> + Clone,
{
    let _ = (out, version, packet_id, filters);
    todo!()
}

/// Writes an UNSUBACK; in MQTT 3 it has no codes.
pub fn unsuback(out: &mut Vec<u8>, version: Version, packet_id: u16, codes: &[ReasonCode]) {
    let _ = (out, version, packet_id, codes);
    todo!()
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
    let _ = (out, version, disconnect);
    todo!()
}

/// Writes an AUTH, which only 5.0 has.
pub fn auth(out: &mut Vec<u8>, auth: &Auth<'_>) {
    let _ = (out, auth);
    todo!()
}

/// Writes one User Property, to build [`super::UserProperties`] and travelling properties from.
pub fn user_property(out: &mut Vec<u8>, name: &str, value: &str) {
    let _ = (out, name, value);
    todo!()
}
