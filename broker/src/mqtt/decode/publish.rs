//! PUBLISH (section 3.3) and its acknowledgements (sections 3.4 to 3.7): the packets that come by the million.

use super::super::error::{Checked, DecodeError, protocol};
use super::super::packet::{Ack, Publish};
use super::super::property::{Found, Place, UserProperties, WireProperties, read_publish};
use super::super::wire::{Reader, topic_name};
use super::super::{ReasonCode, Version};
use super::Sender;
use crate::record::Qos;

/// Reads the body of a PUBLISH whose flags have been checked.
#[inline]
pub(super) fn publish(first: u8, body: &[u8], version: Version, sender: Sender) -> Checked<Publish<'_>> {
    let qos = match first & 0b0110 {
        0b0000 => Qos::AtMostOnce,
        0b0010 => Qos::AtLeastOnce,
        _ => Qos::ExactlyOnce,
    };
    let mut reader = Reader::new(body);
    let topic = reader.binary()?;
    let packet_id = if qos == Qos::AtMostOnce { 0 } else { reader.packet_id()? };
    let (properties, topic_alias) =
        if version.is_v5() { read_publish(reader.properties()?)? } else { (WireProperties::NONE, None) };
    if sender == Sender::Client && properties.has_subscription_ids() {
        return Err(protocol!("a client's PUBLISH has no Subscription Identifier", "MQTT-3.3.4-6"));
    }
    let topic = match (topic, topic_alias) {
        ([], Some(_)) => "",
        ([], None) if version.is_v5() => {
            return Err(protocol!("a PUBLISH needs a Topic Name or a Topic Alias", "3.3.2.1"));
        }
        (topic, _) => topic_name(topic)?.as_str(),
    };
    Ok(Publish {
        dup: first & 0b1000 != 0,
        qos,
        retain: first & 0b0001 != 0,
        topic,
        packet_id,
        topic_alias,
        properties,
        payload: reader.rest(),
    })
}

/// What PUBACK and PUBREC may say (tables 3-4 and 3-5).
pub(super) const TAKEN_OVER: &[ReasonCode] = &[
    ReasonCode::Success,
    ReasonCode::NoMatchingSubscribers,
    ReasonCode::UnspecifiedError,
    ReasonCode::ImplementationSpecificError,
    ReasonCode::NotAuthorized,
    ReasonCode::TopicNameInvalid,
    ReasonCode::PacketIdentifierInUse,
    ReasonCode::QuotaExceeded,
    ReasonCode::PayloadFormatInvalid,
];

/// What PUBREL and PUBCOMP may say (tables 3-6 and 3-7).
pub(super) const RELEASED: &[ReasonCode] = &[ReasonCode::Success, ReasonCode::PacketIdentifierNotFound];

/// Reads the body of an acknowledgement.
#[inline]
pub(super) fn ack<'a>(body: &'a [u8], version: Version, legal: &[ReasonCode]) -> Checked<Ack<'a>> {
    let mut reader = Reader::new(body);
    let packet_id = reader.packet_id()?;
    if reader.is_empty() {
        return Ok(Ack::new(packet_id, ReasonCode::Success));
    }
    ack_with_reason(packet_id, reader, version, legal)
}

#[inline(never)]
fn ack_with_reason<'a>(
    packet_id: u16,
    mut reader: Reader<'a>,
    version: Version,
    legal: &[ReasonCode],
) -> Checked<Ack<'a>> {
    if !version.is_v5() {
        reader.end()?;
    }
    const ILLEGAL: &DecodeError =
        protocol!("a Reason Code that this acknowledgement cannot carry", "MQTT-3.4.2-1");
    let reason = super::reason_code(reader.u8()?, legal, ILLEGAL)?;
    // The Property Length too may be left out (section 3.4.2.2.1).
    if reader.is_empty() {
        return Ok(Ack::new(packet_id, reason));
    }
    let found = Found::read(reader.properties()?, Place::ACK)?;
    reader.end()?;
    let user_properties: UserProperties<'a> = found.user_properties;
    Ok(Ack { packet_id, reason, reason_string: found.reason_string, user_properties })
}
