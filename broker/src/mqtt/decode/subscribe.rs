//! SUBSCRIBE, SUBACK, UNSUBSCRIBE and UNSUBACK (sections 3.8 to 3.11).

use super::super::error::{Checked, DecodeError, malformed, protocol};
use super::super::packet::{Filters, ReasonCodes, SubAck, Subscribe, Subscriptions, UnsubAck, Unsubscribe};
use super::super::property::{Found, Place};
use super::super::wire::{Reader, check_filter, topic_error};
use super::super::{ReasonCode, Version};

fn properties<'a>(reader: &mut Reader<'a>, version: Version, place: Place) -> Checked<Found<'a>> {
    let section = if version.is_v5() { reader.properties()? } else { &[] };
    Found::read(section, place)
}

/// Reads the body of a SUBSCRIBE.
pub(super) fn subscribe(body: &[u8], version: Version) -> Checked<Subscribe<'_>> {
    let mut reader = Reader::new(body);
    let packet_id = reader.packet_id()?;
    let found = properties(&mut reader, version, Place::SUBSCRIBE)?;
    let subscriptions = Subscriptions(reader.rest());
    if reader.is_empty() {
        return Err(protocol!("a SUBSCRIBE asks for at least one Topic Filter", "MQTT-3.8.3-2"));
    }
    while !reader.is_empty() {
        subscription(&mut reader, version)?;
    }
    Ok(Subscribe {
        packet_id,
        subscription_id: found.subscription_id,
        user_properties: found.user_properties,
        subscriptions,
    })
}

/// Checks one Topic Filter with its Subscription Options.
fn subscription(reader: &mut Reader<'_>, version: Version) -> Checked<()> {
    let filter = check_filter(reader.text()?)?;
    let options = reader.u8()?;
    if !version.is_v5() {
        return if options > 2 {
            Err(malformed!("a subscription's QoS is 0, 1 or 2, and other bits are 0", "MQTT-3-8.3-4"))
        } else {
            Ok(())
        };
    }
    if options & 0b1100_0000 != 0 {
        return Err(malformed!("the reserved Subscription Options must be 0", "MQTT-3.8.3-5"));
    }
    if options & 0b0000_0011 == 3 {
        return Err(protocol!("a subscription's Maximum QoS is 0, 1 or 2", "3.8.3.1"));
    }
    if options & 0b0011_0000 == 0b0011_0000 {
        return Err(protocol!("a subscription's Retain Handling is 0, 1 or 2", "3.8.3.1"));
    }
    let Some(filter) = filter else { return Ok(()) };
    let shared = filter.shared().map_err(topic_error)?.is_some();
    if shared && options & 0b0000_0100 != 0 {
        return Err(protocol!("a Shared Subscription cannot be No Local", "MQTT-3.8.3-4"));
    }
    Ok(())
}

/// Reads the body of an UNSUBSCRIBE.
pub(super) fn unsubscribe(body: &[u8], version: Version) -> Checked<Unsubscribe<'_>> {
    let mut reader = Reader::new(body);
    let packet_id = reader.packet_id()?;
    let found = properties(&mut reader, version, Place::UNSUBSCRIBE)?;
    let filters = Filters(reader.rest());
    if reader.is_empty() {
        return Err(protocol!("an UNSUBSCRIBE names at least one Topic Filter", "MQTT-3.10.3-2"));
    }
    while !reader.is_empty() {
        check_filter(reader.text()?)?;
    }
    Ok(Unsubscribe { packet_id, user_properties: found.user_properties, filters })
}

/// Reads the body of a SUBACK.
pub(super) fn suback(body: &[u8], version: Version) -> Checked<SubAck<'_>> {
    use ReasonCode as R;
    const V3: &[ReasonCode] = &[R::Success, R::GrantedQos1, R::GrantedQos2, R::UnspecifiedError];
    const V5: &[ReasonCode] = &[
        R::Success,
        R::GrantedQos1,
        R::GrantedQos2,
        R::UnspecifiedError,
        R::ImplementationSpecificError,
        R::NotAuthorized,
        R::TopicFilterInvalid,
        R::PacketIdentifierInUse,
        R::QuotaExceeded,
        R::SharedSubscriptionsNotSupported,
        R::SubscriptionIdentifiersNotSupported,
        R::WildcardSubscriptionsNotSupported,
    ];
    const FAULT: &DecodeError = protocol!("a SUBACK has a legal Reason Code for each filter", "MQTT-3.9.3-2");
    let mut reader = Reader::new(body);
    let packet_id = reader.packet_id()?;
    let found = properties(&mut reader, version, Place::ACK)?;
    let codes = reason_codes(reader.rest(), if version.is_v5() { V5 } else { V3 }, FAULT)?;
    Ok(SubAck {
        packet_id,
        codes,
        reason_string: found.reason_string,
        user_properties: found.user_properties,
    })
}

/// Reads the body of an UNSUBACK.
pub(super) fn unsuback(body: &[u8], version: Version) -> Checked<UnsubAck<'_>> {
    use ReasonCode as R;
    const V5: &[ReasonCode] = &[
        R::Success,
        R::NoSubscriptionExisted,
        R::UnspecifiedError,
        R::ImplementationSpecificError,
        R::NotAuthorized,
        R::TopicFilterInvalid,
        R::PacketIdentifierInUse,
    ];
    const FAULT: &DecodeError =
        protocol!("an UNSUBACK has a legal Reason Code for each filter", "MQTT-3.11.3-2");
    let mut reader = Reader::new(body);
    let packet_id = reader.packet_id()?;
    let found = properties(&mut reader, version, Place::ACK)?;
    let codes = if version.is_v5() {
        reason_codes(reader.rest(), V5, FAULT)?
    } else {
        reader.end()?;
        ReasonCodes(&[])
    };
    Ok(UnsubAck {
        packet_id,
        codes,
        reason_string: found.reason_string,
        user_properties: found.user_properties,
    })
}

fn reason_codes<'a>(
    bytes: &'a [u8],
    legal: &[ReasonCode],
    fault: &'static DecodeError,
) -> Checked<ReasonCodes<'a>> {
    if bytes.is_empty() {
        return Err(fault);
    }
    for byte in bytes {
        super::reason_code(*byte, legal, fault)?;
    }
    Ok(ReasonCodes(bytes))
}
